// The kernel of copy_engines.cu: one or two warps of a block gather tiles of rows into shared memory, one waits for
// them, and one times a chain of loads.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

constexpr int kTileBytes = 32 * 1024, kStages = 3;
constexpr int kIds = 1536;                         // rows of a block in one pass
constexpr int kPasses = 32;                        // each over another part of the pool
constexpr int kPageRows = 16;                      // rows that follow each other where whole pages are copied
constexpr int kChainWords = 64;                    // of loads from shared memory
constexpr int kTableLines = 512, kLineWords = 32;  // of loads from the L2
constexpr int kThreads = 128, kCopiers = 64;

enum class Engine { kNothing, kCpAsync, kTensorHalves, kTensorRows, kBulkRows, kTensorPages };
enum class Watched { kNothing, kSharedLoads, kL2Loads };

struct Latency {
    unsigned long long sum;  // of cycles, the clock's own included
    unsigned long long most;
    unsigned long long count;
};

struct Args {
    const char* pool;
    const uint32_t* ids;    // [blocks, kIds] rows of the first pass
    uint32_t pass_rows;     // from a row to that of the next pass
    const uint32_t* table;  // [kTableLines, kLineWords]: the first word of a line says where the next line is
    Watched watched;
    Latency* latencies;  // [blocks]
    uint32_t* sums;      // [blocks], of all words copied; null where that would cost time
};

struct Shared {
    uint32_t ids[kIds];
    uint32_t chain[kChainWords];
    uint64_t full[kStages], empty[kStages];
    int done;
};

constexpr int kSharedBytes = 1024 + kStages * kTileBytes + static_cast<int>(sizeof(Shared));  // tiles are aligned

// ---------------------------------------------------------------- instructions

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void init_barrier(uint64_t& barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void arrive(uint64_t& barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(&barrier))
                 : "memory");
}

__device__ __forceinline__ void arrive_expecting(uint64_t& barrier, int bytes) {
    asm volatile(
        "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(shared_address(&barrier)),
        "r"(bytes)
        : "memory");
}

__device__ __forceinline__ void arrive_after_copies(uint64_t& barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

__device__ __forceinline__ bool has_passed(uint64_t& barrier, int parity) {
    uint32_t passed;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(passed)
                 : "r"(shared_address(&barrier)), "r"(parity)
                 : "memory");
    return passed != 0;
}

// A fault of this program ends it after about a second, instead of hanging the GPU.
__device__ __forceinline__ void wait_for(uint64_t& barrier, int parity) {
    if (has_passed(barrier, parity)) {
        return;
    }
    const long long start = clock64();
    while (!has_passed(barrier, parity)) {
        if (clock64() - start > 2'000'000'000) {
            __trap();
        }
    }
}

__device__ __forceinline__ void copy_16_bytes(uint32_t to, const char* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void copy_bulk(uint32_t to, const char* from, int bytes, uint64_t& barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(shared_address(&barrier))
                 : "memory");
}

__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& map, int line, int row, uint64_t& barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
        "[%5];" ::"r"(to),
        "l"(&map), "r"(0), "r"(line), "r"(row), "r"(shared_address(&barrier))
        : "memory");
}

// The clock, once `value` is there.
__device__ __forceinline__ long long clock_after(uint32_t value) {
    long long now;
    asm volatile("{ .reg .pred p; setp.eq.u32 p, %1, 0xffffffff; @p trap; mov.u64 %0, %%clock64; }"
                 : "=l"(now)
                 : "r"(value)
                 : "memory");
    return now;
}

// ---------------------------------------------------------------- the kernel's warps

template <Engine kEngine>
constexpr int kUnitRows = kEngine == Engine::kTensorPages ? kPageRows : 1;  // that follow each other

template <int kRowBytes>
constexpr int kTileRows = kTileBytes / kRowBytes;

template <int kRowBytes>
constexpr int kTilesPerPass = kIds / kTileRows<kRowBytes>;

template <int kRowBytes>
constexpr int kTiles = kTilesPerPass<kRowBytes> * kPasses;

struct TileRows {
    const uint32_t* ids;
    uint32_t add;

    __device__ uint32_t operator[](int at) const { return ids[at] + add; }
};

// 16 bytes a lane; ids are read ahead, 8 at a time.
template <int kRowBytes>
__device__ __forceinline__ void start_cp_async(const char* pool, TileRows rows, uint32_t to, int lane) {
    constexpr int kChunks = kRowBytes / 16, kStep = 32 / kChunks, kBatch = 8;
    const int offset = lane % kChunks * 16;
    for (int first = lane / kChunks; first < kTileRows<kRowBytes>; first += kStep * kBatch) {
        uint32_t batch[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            batch[i] = rows[first + i * kStep];
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            copy_16_bytes(to + (first + i * kStep) * kRowBytes + offset,
                          pool + uint64_t{batch[i]} * kRowBytes + offset);
        }
    }
}

template <Engine kEngine, int kRowBytes>
__device__ __forceinline__ void start_unit(const CUtensorMap& map, const char* pool, uint32_t row, uint32_t to, int at,
                                           uint64_t& barrier) {
    if constexpr (kEngine == Engine::kBulkRows) {
        copy_bulk(to + at * kRowBytes, pool + uint64_t{row} * kRowBytes, kRowBytes, barrier);
    } else if constexpr (kEngine == Engine::kTensorRows) {
        copy_box(to + at * kRowBytes, map, 0, static_cast<int>(row), barrier);
    } else {
#pragma unroll
        for (int line = 0; line < kRowBytes / 128; ++line) {
            copy_box(to + (line * kTileRows<kRowBytes> + at) * 128, map, line, static_cast<int>(row), barrier);
        }
    }
}

// A unit a thread of both copying warps; ids are read first.
template <Engine kEngine, int kRowBytes>
__device__ __forceinline__ void start_units(const CUtensorMap& map, const char* pool, TileRows rows, uint32_t to,
                                            uint64_t& barrier) {
    constexpr int kStep = kCopiers * kUnitRows<kEngine>, kBatch = (kTileRows<kRowBytes> + kStep - 1) / kStep;
    const int first = threadIdx.x * kUnitRows<kEngine>;
    if (first >= kTileRows<kRowBytes>) {
        return;
    }
    uint32_t batch[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
        batch[i] = rows[first + i * kStep];
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
        start_unit<kEngine, kRowBytes>(map, pool, batch[i], to, first + i * kStep, barrier);
    }
}

template <Engine kEngine, int kRowBytes>
__device__ __forceinline__ void run_copiers(const CUtensorMap& map, const Args& args, char* tiles, Shared& shared) {
    for (int tile = 0; tile < kTiles<kRowBytes>; ++tile) {
        const int stage = tile % kStages, pass = tile / kTilesPerPass<kRowBytes>;
        const TileRows rows{shared.ids + tile % kTilesPerPass<kRowBytes> * kTileRows<kRowBytes>, pass * args.pass_rows};
        const uint32_t to = shared_address(tiles + stage * kTileBytes);
        uint64_t& full = shared.full[stage];
        wait_for(shared.empty[stage], tile / kStages % 2 ^ 1);
        __syncwarp();
        if constexpr (kEngine == Engine::kCpAsync) {
            start_cp_async<kRowBytes>(args.pool, rows, to, threadIdx.x);
            arrive_after_copies(full);
        } else {
            if (threadIdx.x == 0) {  // also for the other warp, whose bytes may arrive before
                arrive_expecting(full, kTileBytes);
            }
            __syncwarp();
            start_units<kEngine, kRowBytes>(map, args.pool, rows, to, full);
        }
        __syncwarp();
    }
}

template <Engine kEngine, int kRowBytes>
__device__ __forceinline__ void run_consumer(const Args& args, const char* tiles, Shared& shared, int lane) {
    uint32_t sum = 0;
    for (int tile = 0; tile < kTiles<kRowBytes>; ++tile) {
        const int stage = tile % kStages;
        wait_for(shared.full[stage], tile / kStages % 2);
        if (args.sums != nullptr) {
            const uint32_t* words = reinterpret_cast<const uint32_t*>(tiles + stage * kTileBytes);
            for (int at = lane; at < kTileBytes / 4; at += 32) {
                sum += words[at];
            }
        }
        __syncwarp();
        if (lane == 0) {
            arrive(shared.empty[stage]);
        }
    }
    if (args.sums != nullptr) {
        atomicAdd(args.sums + blockIdx.x, sum);
    }
}

// Loads that depend on each other, until the consumer is done.
template <typename Load>
__device__ __forceinline__ Latency watch(const Shared& shared, uint32_t at, Load load) {
    Latency latency{};
    at = load(at);
    while (*static_cast<const volatile int*>(&shared.done) == 0) {
#pragma unroll 1
        for (int i = 0; i < 8; ++i) {
            const long long start = clock_after(at);
            at = load(at);
            const unsigned long long cycles = clock_after(at) - start;
            latency.sum += cycles;
            latency.most = max(latency.most, cycles);
            ++latency.count;
        }
    }
    return latency;
}

__device__ __forceinline__ void run_watcher(const Args& args, const Shared& shared, int lane) {
    Latency latency{};
    if (args.watched == Watched::kSharedLoads) {
        const uint32_t chain = shared_address(shared.chain);
        latency = watch(shared, 0, [chain](uint32_t at) {
            uint32_t next;
            asm volatile("ld.shared.u32 %0, [%1];" : "=r"(next) : "r"(chain + at * 4) : "memory");
            return next;
        });
    } else if (args.watched == Watched::kL2Loads) {
        latency = watch(shared, blockIdx.x % kTableLines * kLineWords, [&args](uint32_t at) {
            uint32_t next;
            asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(next) : "l"(args.table + at) : "memory");
            return next;
        });
    }
    if (lane == 0) {
        args.latencies[blockIdx.x] = latency;
    }
}

__device__ __forceinline__ void set_up(const Args& args, Shared& shared, int full_arrivals) {
    for (int i = threadIdx.x; i < kIds; i += kThreads) {
        shared.ids[i] = args.ids[blockIdx.x * kIds + i];
    }
    if (threadIdx.x < kChainWords) {
        shared.chain[threadIdx.x] = (threadIdx.x + 17) % kChainWords;
    }
    if (threadIdx.x == 0) {
        shared.done = 0;
        for (int stage = 0; stage < kStages; ++stage) {
            init_barrier(shared.full[stage], full_arrivals);
            init_barrier(shared.empty[stage], 1);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
}

template <Engine kEngine, int kRowBytes>
__global__ __launch_bounds__(kThreads, 2)
void gather(const __grid_constant__ CUtensorMap map, const __grid_constant__ Args args) {
    extern __shared__ char raw[];
    char* tiles = raw + (1024 - shared_address(raw) % 1024) % 1024;
    Shared& shared = *reinterpret_cast<Shared*>(tiles + kStages * kTileBytes);
    set_up(args, shared, kEngine == Engine::kCpAsync ? 32 : 1);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp == 3) {
        run_watcher(args, shared, lane);
    } else if (warp == 2) {
        if constexpr (kEngine == Engine::kNothing) {
            const long long start = clock64();
            while (clock64() - start < 1'000'000) {
                __nanosleep(1000);
            }
        } else {
            run_consumer<kEngine, kRowBytes>(args, tiles, shared, lane);
        }
        __syncwarp();
        *static_cast<volatile int*>(&shared.done) = 1;
    } else if constexpr (kEngine != Engine::kNothing) {
        if (warp == 0 || kEngine != Engine::kCpAsync) {
            run_copiers<kEngine, kRowBytes>(map, args, tiles, shared);
        }
    }
}
