// What consumers of wide workers do where nothing is scored, prompts above all: while they weigh a tile, the matrix
// units are busy with the values of the tile before.
//
// No branch depends on a tile or on a warp's rows while products are under way: the compiler would let each of them
// wait for the one before.
#pragma once

#include "pillar_attention/many_rows.cuh"

namespace sparsespec {

// Not of an FP8 pool, whose values the consumers make fp16 of while the matrix units are busy with the keys.
template <typename Kind>
constexpr bool kConsumesAhead = kHasWgmma && Kind::kWay == Way::kWide && !Kind::kFp8;

// A warp's weights of a tile.
using TileWeights = uint32_t[kTileTokens / 16][4];

// A number that all lanes have alike, so that the compiler knows it: what is made of it takes no lane's time.
__device__ __forceinline__ int same_in_all_lanes(int number) {
    return __shfl_sync(0xffffffffu, number, 0);
}

// The two teams of a worker start their products in turn, so that one's softmax runs under the other's products.
// Barriers 2 and 3: it is the first's turn, or the second's. Both have the same tiles, and so as many turns.
template <typename Kind>
struct Turns {
    static constexpr int kThreads = Kind::kConsumers;
    static_assert(kThreads == 2 * kTeamThreads || !kConsumesAhead<Kind>, "two teams");
    int mine;

    __device__ __forceinline__ explicit Turns(int team) : mine(2 + same_in_all_lanes(team)) {}
    __device__ __forceinline__ void wait() const {
        asm volatile("bar.sync %0, %1;\n" ::"r"(mine), "n"(kThreads) : "memory");
    }
    // To the other one.
    __device__ __forceinline__ void give() const {
        asm volatile("bar.arrive %0, %1;\n" ::"r"(5 - mine), "n"(kThreads) : "memory");
    }
    // Before all jobs: the first one begins.
    __device__ __forceinline__ void open() const {
        if (kConsumesAhead<Kind> && mine == 3) {
            give();
        }
    }
    // After all jobs: takes the turn that was given last.
    __device__ __forceinline__ void close() const {
        if (kConsumesAhead<Kind> && mine == 2) {
            wait();
        }
    }
};

// Keeps the weights, which the sums are made of, before the wait that follows. The compiler moves a wait up as far as
// it can, but not over what may write to memory; this never does, since no sum is negative.
template <typename Kind>
__device__ __forceinline__ void weigh_before_wait(const Worker<Kind>& worker, const WarpRows<Kind::kHeadDim>& mine) {
    asm volatile(
        "{ .reg .pred never;\n"
        "setp.lt.f32 never, %0, 0f00000000;\n"
        "setp.lt.or.f32 never, %1, 0f00000000, never;\n"
        "@never st.shared.f32 [%2], %0; }\n" ::"f"(mine.sum[0]),
        "f"(mine.sum[1]), "r"(shared_address(worker.memory))
        : "memory");
}

// Weights of a tile's logits as if no base moved; returns the largest exponent.
template <int kHeadDim, int kColumns>
__device__ __forceinline__ float weigh_rows(const WarpRows<kHeadDim>& mine, const float (&logits)[kColumns][4],
                                            float (&weights)[kColumns][4]) {
    float most = -INFINITY;
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
#pragma unroll
        for (int index = 0; index < 4; ++index) {
            const float exponent = fmaf(logits[column][index], mine.scale[index / 2], -mine.base[index / 2]);
            most = fmaxf(most, exponent);
            weights[column][index] = exp2_fast(exponent);
        }
    }
    return most;
}

// Moves the bases of rows whose weights would grow too large: the output is to be multiplied by `factor`.
template <int kHeadDim, int kColumns>
__device__ __forceinline__ void move_row_bases(WarpRows<kHeadDim>& mine, const float (&logits)[kColumns][4],
                                               float (&factor)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float most = -INFINITY;
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
            most = fmaxf(most, fmaxf(logits[column][half * 2], logits[column][half * 2 + 1]));
        }
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2)) * mine.scale[half];
        const float base = mine.base[half];
        mine.base[half] = most > base + kMostExponent ? most - kMoveExponent : base;
        factor[half] = exp2_fast(base - mine.base[half]);
        mine.sum[half] *= factor[half];
    }
}

// Logits become weights, and are summed. A base seldom moves after the first tiles: so weights are made as if none did,
// and only where one of the warp's would be too large are bases found, and weights made anew. Whether bases have moved.
template <int kHeadDim, int kColumns>
__device__ __forceinline__ bool soften_rows(WarpRows<kHeadDim>& mine, const float (&logits)[kColumns][4],
                                            float (&weights)[kColumns][4], float (&factor)[2]) {
    const float most = weigh_rows(mine, logits, weights);
    const bool moves = __any_sync(0xffffffffu, most > kMostExponent);
    if (moves) {  // of no registers that products write
        move_row_bases(mine, logits, factor);
        weigh_rows(mine, logits, weights);
    }
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
        mine.sum[0] += weights[column][0] + weights[column][1];
        mine.sum[1] += weights[column][2] + weights[column][3];
    }
    return moves;
}

// The first tile's weights. From here on `stages` is at the values of the last tile that has been weighed.
template <typename Kind>
__device__ __forceinline__ void weigh_first(const Worker<Kind>& worker, WarpRows<Kind::kHeadDim>& mine, int kv_tile,
                                            RingCursor& stages, TileWeights& packed) {
    float logits[kTileTokens / 8][4], weights[kTileTokens / 8][4], factor[2];
    wait_for_stage(worker, stages);
    const uint64_t unmasked = worker.shared.pipeline.unmasked[stages.place];
    start_keys(worker, mine, stages.place, logits);
    products_wait();
    hold(logits);
    mask_keys<Kind::kWarps>(worker, mine, kv_tile, unmasked, logits);
    release_stage(worker, stages);
    soften_rows(mine, logits, weights, factor);
    pack_weights<typename Kind::Product>(weights, packed);
}

// Starts the products of the next tile's keys, then those of the last weighed tile's values. Tiles without masks are
// whole pages, which the copy engine brings.
template <bool kMasks, typename Kind>
__device__ __forceinline__ void start_products(const Worker<Kind>& worker, WarpRows<Kind::kHeadDim>& mine,
                                               const RingCursor& keys, const RingCursor& values,
                                               float (&logits)[kTileTokens / 8][4], const TileWeights& packed) {
    const int keys_place = same_in_all_lanes(keys.place), values_place = same_in_all_lanes(values.place);
    const Turns<Kind> turns(worker.team);
    wait_for_stage<kMasks>(worker, keys);
    turns.wait();
    start_keys(worker, mine, keys_place, logits);
    wait_for_stage<kMasks>(worker, values);
    start_values(worker, mine, worker.stage(values_place), packed);
    turns.give();
}

// Weighs a tile while the values of the one before are added up.
template <bool kMasks, typename Kind>
__device__ __forceinline__ void weigh_next(const Worker<Kind>& worker, WarpRows<Kind::kHeadDim>& mine, int kv_tile,
                                           RingCursor& stages, TileWeights& packed) {
    float logits[kTileTokens / 8][4], weights[kTileTokens / 8][4], factor[2];
    RingCursor keys = stages;
    keys.advance(worker.num_stages);
    start_products<kMasks>(worker, mine, keys, stages, logits, packed);
    // The logits are there; the output is still being added to.
    products_wait<1>();
    hold(logits);
    if constexpr (kMasks) {
        const uint64_t unmasked = worker.shared.pipeline.unmasked[keys.place];
        set_masks<Kind::kWarps>(mine, kv_tile, unmasked, worker.warp, worker.lane, logits);
    }
    release_stage(worker, keys);
    const bool moves = soften_rows(mine, logits, weights, factor);
    weigh_before_wait(worker, mine);
    // The output is there, and nothing is under way.
    products_wait();
    hold(mine.output);
    release_stage(worker, stages);
    stages = keys;
    if (moves) {
        rescale_output(mine, factor);
    }
    pack_weights<typename Kind::Product>(weights, packed);
}

// The last tile's values.
template <typename Kind>
__device__ __forceinline__ void add_last(const Worker<Kind>& worker, WarpRows<Kind::kHeadDim>& mine, RingCursor& stages,
                                         const TileWeights& packed) {
    wait_for_stage(worker, stages);
    start_values(worker, mine, worker.stage(stages.place), packed);
    products_wait();
    hold(mine.output);
    release_stage(worker, stages);
}

// Attends to the tiles of a job: first to those that all rows read whole.
template <typename Kind>
__device__ __forceinline__ void consume_ahead(const Worker<Kind>& worker, WarpRows<Kind::kHeadDim>& mine,
                                              const TileRange& range, RingCursor& stages) {
    if (range.begin >= range.end) {
        return;
    }
    const int end_whole = min(range.end, mine.read_by_all / kTileTokens);
    TileWeights packed;
    int kv_tile = range.begin;
    weigh_first(worker, mine, kv_tile, stages, packed);
#pragma unroll 1
    for (++kv_tile; kv_tile < end_whole; ++kv_tile) {
        weigh_next<false>(worker, mine, kv_tile, stages, packed);
    }
#pragma unroll 1
    for (; kv_tile < range.end; ++kv_tile) {
        weigh_next<true>(worker, mine, kv_tile, stages, packed);
    }
    add_last(worker, mine, stages, packed);
}

}  // namespace sparsespec
