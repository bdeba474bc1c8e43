// The producers: two warps that bring the keys and values of tile after tile to the stages, ahead of the consumers and
// across the ends of jobs. Each has half of a tile's keys, one for each lane.
#pragma once

#include "pillar_attention/append.cuh"

namespace sparsespec {

static_assert(kTileTokens == kProducerWarps * 32);

// Where a lane's key of each tile lies. A position may have to be read from a list, and its page from the page table:
// neither load is waited for while the tile before is on its way.
template <typename T, int kHeadDim>
struct KeySearch {
    const Worker<T, kHeadDim>& worker;
    int key;       // of the next tile
    int position;  // of that key
    int page;
    int listed;  // of the tile after it

    __device__ __forceinline__ KeySearch(const Worker<T, kHeadDim>& worker, int first_tile)
        : worker(worker), key(first_tile * kTileTokens + worker.producer() * 32 + worker.lane) {
        listed = load_listed(worker.job(), key);
        resolve();
    }

    __device__ __forceinline__ void resolve() {
        position = key_position(worker.job(), key, listed);
        page = load_page(worker, position);
        listed = load_listed(worker.job(), key + kTileTokens);
    }

    // Where the next tile's key begins in the pool, or kMasked.
    __device__ __forceinline__ int64_t next() {
        const int64_t entry = entry_of(worker, position, page);
        key += kTileTokens;
        resolve();
        return entry;
    }
};

// Starts the copies of the warp's keys, and of their values if there is a use for them. Masked ones become zeros, so
// that no NaN of theirs spreads. Addresses come first, in groups: a copy need not wait for the shuffle of the one
// before.
template <bool kValues, typename T, int kHeadDim>
__device__ __forceinline__ void start_copies(const Worker<T, kHeadDim>& worker, int64_t entry, int stage) {
    constexpr int kChunks = kHeadDim / 8, kGroup = 8;
    const T* pool = static_cast<const T*>(worker.params.kv_pool);
    const uint32_t keys_at = shared_address(worker.keys(stage)), values_at = shared_address(worker.values(stage));
    const int64_t to_value = value_offset<kHeadDim>(worker.params);
#pragma unroll
    for (int first = 0; first < kChunks; first += kGroup) {
        int64_t entries[kGroup];
#pragma unroll
        for (int part = 0; part < kGroup && first + part < kChunks; ++part) {
            entries[part] = __shfl_sync(0xffffffffu, entry, ((first + part) * 32 + worker.lane) / kChunks);
        }
#pragma unroll
        for (int part = 0; part < kGroup && first + part < kChunks; ++part) {
            const int index = (first + part) * 32 + worker.lane;
            const int chunk = index % kChunks;
            const bool valid = entries[part] >= 0;
            const T* source = pool + (valid ? entries[part] : 0) + chunk * 8;
            const int offset = tile_offset<kHeadDim>(worker.producer() * 32 + index / kChunks, chunk);
            copy_async_16(keys_at + offset, source, valid);
            if (kValues) {
                copy_async_16(values_at + offset, source + to_value, valid);
            }
        }
    }
}

// Waits for the barrier's next phase. None is missed: consumers need a tile that this producer brings after it has seen
// one phase before they can complete the next.
__device__ __forceinline__ void wait_for_next(uint64_t* barrier, int& parity) {
    barrier_wait(barrier, parity);
    parity ^= 1;
}

// One tile into an empty stage.
template <typename T, int kHeadDim>
__device__ __forceinline__ void produce_tile(const Worker<T, kHeadDim>& worker, int64_t entry, int stage) {
    Pipeline& pipeline = worker.shared.pipeline;
    const uint32_t unmasked = __ballot_sync(0xffffffffu, entry >= 0);
    if (worker.lane == 0) {
        pipeline.unmasked[stage][worker.producer()] = unmasked;
    }
    if (worker.job().pass.attends) {
        start_copies<true>(worker, entry, stage);
    } else {
        start_copies<false>(worker, entry, stage);
    }
    copy_async_arrive(&pipeline.full[stage]);
    if (worker.lane == 0) {
        barrier_arrive(&pipeline.full[stage]);
    }
}

// A producer's side of the whole launch.
template <typename T, int kHeadDim>
struct Producer {
    const Worker<T, kHeadDim>& worker;
    StageCursor cursor;
    int appended_parity = 0;
    int decided_parity = 0;

    __device__ __forceinline__ void sync() const { __syncwarp(); }
    __device__ __forceinline__ bool leads() const { return worker.lane == 0; }

    __device__ __forceinline__ void run_job() {
        const Job& job = worker.job();
        Pipeline& pipeline = worker.shared.pipeline;
        const NewKeys keys = new_keys(job);
        KeySearch<T, kHeadDim> search(worker, job.range.begin);
        for (int kv_tile = job.range.begin; kv_tile < job.range.end; ++kv_tile) {
            const int64_t entry = search.next();
            barrier_wait(&pipeline.empty[cursor.stage], cursor.parity ^ 1);
            if (keys.any() && kv_tile == keys.first / kTileTokens) {  // the first tile with a new token
                wait_for_next(&pipeline.appended, appended_parity);
            }
            produce_tile(worker, entry, cursor.stage);
            cursor.advance(worker.num_stages);
        }
    }

    // Whether the consumers pass over the piece once more.
    __device__ __forceinline__ bool finish_piece(const Piece&, bool, bool may_repeat) {
        if (!may_repeat) {
            return false;
        }
        wait_for_next(&worker.shared.pipeline.decided, decided_parity);
        return worker.shared.pipeline.once_more;
    }
};

}  // namespace sparsespec
