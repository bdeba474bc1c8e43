// What the copier does with an FP8 pool: it copies keys and values to places of their own, linear, and makes fp16 of
// them on the way to the stages once they have landed, in the order in which they were started.
#pragma once

#include "pillar_attention/worker.cuh"

namespace sparsespec {

// FP8 keys or values as they come: cut into TileLayout's blocks, a row half as long, its chunks not permuted.
template <int kHeadDim>
struct RawLayout {
    using Layout = TileLayout<kHeadDim>;
    static constexpr int kRowBytes = Layout::kRowBytes / 2;
    static constexpr int kChunks = Layout::kChunks / 2;

    // Byte offset of 16-byte chunk `chunk` of row `row`.
    __device__ __forceinline__ static int offset(int row, int chunk) {
        return chunk / kChunks * (Layout::kBlockBytes / 2) + row * kRowBytes + chunk % kChunks * 16;
    }
};

// Starts the copies of all keys, or of their values, which lie `offset` bytes after them; 16 bytes a lane, kRows rows
// at once. Those of masked keys become zeros.
template <bool kMasks, typename Kind>
__device__ __forceinline__ void start_raw_copies(const Worker<Kind>& worker, const TileKeys& keys, int64_t offset,
                                                 uint32_t raw) {
    using Layout = RawLayout<Kind::kHeadDim>;
    constexpr int kChunks = Kind::kHeadDim / 16, kRows = kChunks > 4 ? 4 : 8, kParts = 4;
    const int lane_row = worker.lane / kChunks, chunk = worker.lane % kChunks;
    if (lane_row >= kRows) {
        return;
    }
    const char* pool = static_cast<const char*>(worker.params.kv_pool) + offset + chunk * 16;
    const uint32_t target = raw + Layout::offset(0, chunk);
#pragma unroll 1
    for (int first = lane_row; first < kTileTokens; first += kParts * kRows) {
        const uint32_t unmasked = static_cast<uint32_t>(keys.unmasked >> first);
        uint32_t rows[kParts];
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            rows[part] = keys.row[first + part * kRows];
        }
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            const bool reads = !kMasks || (unmasked >> part * kRows & 1) != 0;
            copy_async_16(target + (first + part * kRows) * Layout::kRowBytes,
                          pool + uint64_t{rows[part]} * Kind::kHeadDim, reads);
        }
    }
}

// 16 numbers, as two chunks of a stage.
__device__ __forceinline__ void put_halves(const uint4& raw, unsigned char* low, unsigned char* high) {
    const uint2 x = fp8_to_half(raw.x), y = fp8_to_half(raw.y), z = fp8_to_half(raw.z), w = fp8_to_half(raw.w);
    *reinterpret_cast<uint4*>(low) = {x.x, x.y, y.x, y.y};
    *reinterpret_cast<uint4*>(high) = {z.x, z.y, w.x, w.y};
}

// Fills a stage. A lane takes 16 bytes at a time: eight lanes read all banks, and each of their two writes goes to all
// banks. The rows of 32 chunks are a multiple of 8, after which the permutation of chunks repeats.
template <int kHeadDim>
__device__ __forceinline__ void convert(const unsigned char* raw, unsigned char* stage, int lane) {
    using Layout = TileLayout<kHeadDim>;
    constexpr int kChunks = RawLayout<kHeadDim>::kChunks, kSteps = kTileTokens * kHeadDim / 512;
    constexpr int kAhead = 3;  // reads on their way
    const uint4* chunks = reinterpret_cast<const uint4*>(raw) + lane;
    unsigned char* low = stage + Layout::offset(lane / kChunks, lane % kChunks * 2);
    unsigned char* high = stage + Layout::offset(lane / kChunks, lane % kChunks * 2 + 1);
    uint4 read[kAhead];
#pragma unroll
    for (int step = 0; step < kAhead; ++step) {
        read[step] = chunks[step * 32];
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        const uint4 chunk = read[step % kAhead];
        if (step + kAhead < kSteps) {
            read[step % kAhead] = chunks[(step + kAhead) * 32];
        }
        put_halves(chunk, low + step * 1024, high + step * 1024);
    }
}

// The keys of a tile, or its values, on their way.
struct RawCursor {
    RingCursor tile;  // in the scout's ring
    int place = 0;
    bool values = false;

    // To what comes next; whether that is another tile.
    __device__ __forceinline__ bool advance(bool has_values, int num_places) {
        place = place + 1 == num_places ? 0 : place + 1;
        values = has_values && !values;
        if (!values) {
            tile.advance(kMaxTilesAhead);
        }
        return !values;
    }
};

template <typename Kind>
struct Converter {
    Worker<Kind> worker;
    RawCursor started{};    // whose copies start next
    RawCursor converted{};  // which are converted next
    RingCursor stages{};
    int pending = 0;          // started and not converted
    bool has_waited = false;  // for the step's own tokens

    // The copier's side of the whole launch.
    __device__ __forceinline__ void run() {
        while (true) {
            while (pending < worker.num_raw && start_next()) {
            }
            if (pending == 0) {
                break;
            }
            convert_next();
        }
        wait_for_launch_before();  // whatever was to do: who waits for this launch waits for both
    }

    // Whether the scout has found the next tile. Waits for it where there is nothing else to do.
    __device__ __forceinline__ bool is_found() const {
        uint64_t* found = &worker.shared.pipeline.keys_full[started.tile.place];
        if (pending > 0) {
            return __all_sync(0xffffffffu, barrier_is_complete(found, started.tile.parity));
        }
        barrier_wait(found, started.tile.parity);
        __syncwarp();
        return true;
    }

    // Starts the next copies, a group of them; false if there are none as yet, or no more.
    __device__ __forceinline__ bool start_next() {
        if (!is_found()) {
            return false;
        }
        const TileKeys& keys = worker.shared.keys[started.tile.place];
        if (keys.ends) {
            return false;
        }
        if (keys.new_keys && !has_waited) {
            wait_for_launch_before();
            has_waited = true;
        }
        const int64_t offset =
            started.values ? int64_t{worker.params.num_kv_heads} * worker.params.page_size * Kind::kHeadDim : 0;
        const uint32_t raw = shared_address(worker.raw(started.place));
        if (keys.unmasked == ~uint64_t{0}) {
            start_raw_copies<false>(worker, keys, offset, raw);
        } else {
            start_raw_copies<true>(worker, keys, offset, raw);
        }
        __syncwarp();
        copy_async_commit();
        ++pending;
        started.advance(keys.values, worker.num_raw);
        return true;
    }

    // Fills the next stage with the oldest copies. Their tile's TileKeys are kept until then.
    __device__ __forceinline__ void convert_next() {
        Pipeline& pipeline = worker.shared.pipeline;
        copy_async_wait<kMaxRaw - 1>(pending - 1);
        barrier_wait(&pipeline.empty[stages.place], stages.parity ^ 1);
        __syncwarp();  // all lanes' copies have landed
        convert<Kind::kHeadDim>(worker.raw(converted.place), worker.stage(stages.place), worker.lane);
        const int tile = converted.tile.place;
        const TileKeys& keys = worker.shared.keys[tile];
        if (worker.lane == 0) {
            pipeline.unmasked[stages.place] = keys.unmasked;
        }
        warp_arrive(&pipeline.full[stages.place], worker.lane);
        stages.advance(worker.num_stages);
        --pending;
        if (converted.advance(keys.values, worker.num_raw)) {
            warp_arrive(&pipeline.keys_empty[tile], worker.lane);
        }
    }
};

}  // namespace sparsespec
