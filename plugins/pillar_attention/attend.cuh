// What a consumer does with a tile: Q K^T, online softmax and P V on the matrix units, and scores on the way.
#pragma once

#include <type_traits>

#include "pillar_attention/query.cuh"
#include "pillar_attention/score.cuh"
#include "pillar_attention/wgmma.cuh"

namespace sparsespec {

template <int kRowWarps, typename Kind>
__device__ __forceinline__ void load_rows(const Worker<Kind>& worker, WarpRows<Kind::kHeadDim>& mine) {
    const RowTile& tile = worker.tile();
    const float scale = logit_scale(worker);
    const int first = first_row<kRowWarps>(worker);
    mine.has_rows = first < tile.packed_rows();
    mine.read_by_all = tile.last_key(0) + 1;
    open_rows(mine, scale);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first + worker.lane / 4 + half * 8;
        const int packed = min(row, tile.packed_rows() - 1);  // rows beyond repeat the last and are dropped in the end
        uint32_t q[Kind::kHeadDim / 16][2] = {};
        load_query(worker, packed, q);
#pragma unroll
        for (int step = 0; step < Kind::kHeadDim / 16; ++step) {
            mine.q[step][half] = q[step][0];
            mine.q[step][half + 2] = q[step][1];
        }
        mine.last_key[half] = tile.last_key(packed);
    }
}

// logits[n] = the warp's rows times keys n * 8 to n * 8 + 7 of its share, not scaled yet. `tile`: of 16-bit numbers.
template <int kRowWarps, typename Kind, int kColumns>
__device__ __forceinline__ void multiply_keys(const Worker<Kind>& worker, const WarpRows<Kind::kHeadDim>& mine,
                                              const unsigned char* tile, float (&logits)[kColumns][4]) {
    const int first = WarpShare<kRowWarps>::first_key(worker.warp);
    const LaneChunks<typename Kind::ValueLayout> keys(
        shared_address(tile), first + worker.lane % 8 + worker.lane / 16 * 8, worker.lane / 8 % 2);
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
        logits[column][0] = logits[column][1] = logits[column][2] = logits[column][3] = 0;
    }
#pragma unroll
    for (int step = 0; step < Kind::kHeadDim / 16; ++step) {
#pragma unroll
        for (int pair = 0; pair < kColumns / 2; ++pair) {
            uint32_t k[4];
            load_matrices(k, keys.at(step, pair * 16));
            Numbers<typename Kind::Product>::multiply_add(logits[2 * pair], mine.q[step], k[0], k[1]);
            Numbers<typename Kind::Product>::multiply_add(logits[2 * pair + 1], mine.q[step], k[2], k[3]);
        }
    }
}

// -inf for keys that a row does not read. `unmasked`: a bit for each key of the tile.
template <int kRowWarps, int kHeadDim, int kColumns>
__device__ __forceinline__ void set_masks(const WarpRows<kHeadDim>& mine, int kv_tile, uint64_t unmasked, int warp,
                                          int lane, float (&logits)[kColumns][4]) {
    // From the lane's first key on, so that what is left is constant.
    const int first = WarpShare<kRowWarps>::first_key(warp) + lane % 4 * 2;
    const uint64_t bits = unmasked >> first;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int last = mine.last_key[half] - kv_tile * kTileTokens - first;
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
#pragma unroll
            for (int index = 0; index < 2; ++index) {
                const int key = column * 8 + index;
                float& logit = logits[column][half * 2 + index];
                logit = key <= last && (bits >> key & 1) != 0 ? logit : -INFINITY;
            }
        }
    }
}

// The same, but for tiles that all rows read whole.
template <int kRowWarps, typename Kind, int kColumns>
__device__ __forceinline__ void mask_keys(const Worker<Kind>& worker, const WarpRows<Kind::kHeadDim>& mine, int kv_tile,
                                          uint64_t unmasked, float (&logits)[kColumns][4]) {
    if (unmasked != ~uint64_t{0} || (kv_tile + 1) * kTileTokens > mine.read_by_all) {
        set_masks<kRowWarps>(mine, kv_tile, unmasked, worker.warp, worker.lane, logits);
    }
}

// The bases that the lane's own keys ask for.
template <int kHeadDim, int kColumns>
__device__ __forceinline__ void find_lane_base(const WarpRows<kHeadDim>& mine, const float (&logits)[kColumns][4],
                                               float (&base)[2]) {
    base[1] = mine.base[1];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float most = logits[0][half * 2];
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
            most = fmaxf(most, fmaxf(logits[column][half * 2], logits[column][half * 2 + 1]));
        }
        base[half] = fmaxf(mine.base[half], fmaf(most, mine.scale[half], -kWeightExponent));
    }
}

// The rows' new bases, over all lanes that share a row.
__device__ __forceinline__ void share_base(float (&base)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        base[half] = fmaxf(base[half], __shfl_xor_sync(0xffffffffu, base[half], 1));
        base[half] = fmaxf(base[half], __shfl_xor_sync(0xffffffffu, base[half], 2));
    }
}

// Moves the rows, but for their output, to new bases; it is to be multiplied by `factor`.
template <int kHeadDim>
__device__ __forceinline__ void move_base(WarpRows<kHeadDim>& mine, const float (&base)[2], float (&factor)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        factor[half] = exp2_fast(mine.base[half] - finite_base(base[half]));
        mine.base[half] = base[half];
        mine.sum[half] *= factor[half];
    }
}

template <int kHeadDim>
__device__ __forceinline__ void rescale_output(WarpRows<kHeadDim>& mine, const float (&factor)[2]) {
#pragma unroll
    for (int column = 0; column < kHeadDim / 8; ++column) {
#pragma unroll
        for (int index = 0; index < 4; ++index) {
            mine.output[column][index] *= factor[index / 2];
        }
    }
}

// Logits become weights 2^(scaled logit - base), and are summed.
template <int kHeadDim, int kColumns>
__device__ __forceinline__ void exponentiate(WarpRows<kHeadDim>& mine, float (&logits)[kColumns][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float base = finite_base(mine.base[half]);
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
#pragma unroll
            for (int index = half * 2; index < half * 2 + 2; ++index) {
                logits[column][index] = exp2_fast(fmaf(logits[column][index], mine.scale[half], -base));
                mine.sum[half] += logits[column][index];
            }
        }
    }
}

// Whether a row of the warp has another base than before, by the lanes' own keys or by all.
template <int kHeadDim>
__device__ __forceinline__ bool any_moves(const WarpRows<kHeadDim>& mine, const float (&base)[2]) {
    return __any_sync(0xffffffffu, base[0] != mine.base[0] || base[1] != mine.base[1]);
}

// Logits become weights of the rows' running softmax. Whether a base has moved: seldom does one, and only then do lanes
// have to exchange what they found, which takes long while the copies keep the shared memory busy.
template <int kHeadDim, int kColumns>
__device__ __forceinline__ bool update_softmax(WarpRows<kHeadDim>& mine, float (&logits)[kColumns][4]) {
    float base[2];
    find_lane_base(mine, logits, base);
    const bool moves = any_moves(mine, base);
    if (moves) {
        float factor[2];
        share_base(base);
        move_base(mine, base, factor);
        rescale_output(mine, factor);
    }
    exponentiate(mine, logits);
    return moves;
}

// Weights in 16 bits, as products take them: [i] for keys 16 i to 16 i + 15 of the warp's share.
template <typename T, int kColumns>
__device__ __forceinline__ void pack_weights(const float (&weights)[kColumns][4], uint32_t (&packed)[kColumns / 2][4]) {
#pragma unroll
    for (int pair = 0; pair < kColumns / 2; ++pair) {
        const float (&low)[4] = weights[2 * pair];
        const float (&high)[4] = weights[2 * pair + 1];
        packed[pair][0] = Numbers<T>::pack(low[0], low[1]);
        packed[pair][1] = Numbers<T>::pack(low[2], low[3]);
        packed[pair][2] = Numbers<T>::pack(high[0], high[1]);
        packed[pair][3] = Numbers<T>::pack(high[2], high[3]);
    }
}

template <int kRowWarps, typename Kind, int kPairs>
__device__ __forceinline__ void multiply_values(const Worker<Kind>& worker, WarpRows<Kind::kHeadDim>& mine,
                                                const unsigned char* tile, const uint32_t (&weights)[kPairs][4]) {
    const int first = WarpShare<kRowWarps>::first_key(worker.warp);
    const LaneChunks<typename Kind::ValueLayout> values(shared_address(tile), first + worker.lane % 16,
                                                        worker.lane / 16);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
        for (int step = 0; step < Kind::kHeadDim / 16; ++step) {
            uint32_t v[4];
            load_matrices_transposed(v, values.at(step, pair * 16));
            Numbers<typename Kind::Product>::multiply_add(mine.output[2 * step], weights[pair], v[0], v[1]);
            Numbers<typename Kind::Product>::multiply_add(mine.output[2 * step + 1], weights[pair], v[2], v[3]);
        }
    }
}

// Logits become weights by log-sum-exps that are known: probabilities times 2^kWeightExponent.
template <int kColumns>
__device__ __forceinline__ void exponentiate(const ScoredRows& scored, const float (&scale)[2],
                                             float (&logits)[kColumns][4]) {
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
#pragma unroll
        for (int index = 0; index < 4; ++index) {
            const float logit = fmaf(logits[column][index], scale[index / 2], -scored.lse[index / 2]);
            logits[column][index] = exp2_fast(fminf(logit, 0.0f) + kWeightExponent);
        }
    }
}

// Logits become weights, and what scores need of them is taken.
template <int kRowWarps, typename Kind, int kColumns>
__device__ __forceinline__ void weigh(const Worker<Kind>& worker, Pass pass, WarpRows<Kind::kHeadDim>& mine,
                                      ScoredRows& scored, float (&weights)[kColumns][4],
                                      ScoreWeights<kColumns>& taken) {
    bool moves = false;
    if (pass.attends) {
        moves = update_softmax(mine, weights);
    } else {
        exponentiate(scored, mine.scale, weights);
    }
    if (!pass.scores) {
        return;
    }
    const float base[2] = {pass.attends ? mine.base[0] : scored.lse[0] - kWeightExponent,
                           pass.attends ? mine.base[1] : scored.lse[1] - kWeightExponent};
    if (moves) {
        set_factors(scored, base, worker.lane);
    }
    take_weights(weights, taken);
    if (scored.has(ScoredRows::kCuts)) {
        cut_weights(scored, base, weights, taken);
    }
}

// As multiply_keys, by the whole warpgroup; started only.
template <typename Kind>
__device__ __forceinline__ void start_keys(const Worker<Kind>& worker, const WarpRows<Kind::kHeadDim>& mine, int stage,
                                           float (&logits)[kTileTokens / 8][4]) {
    using Layout = typename Kind::StageLayout;
    const uint64_t keys = matrix_descriptor<Layout>(worker.stage(stage));
    hold(logits);
    products_begin();
#pragma unroll
    for (int step = 0; step < Kind::kHeadDim / 16; ++step) {
        const int bytes = step / Layout::kSteps * Layout::kBlockBytes + step % Layout::kSteps * 32;
        Products<typename Kind::Product, false>::multiply_add(logits, mine.q[step], keys + bytes / 16, step > 0);
    }
    products_commit();
}

// As multiply_values, by the whole warpgroup; started only.
template <typename Kind>
__device__ __forceinline__ void start_values(const Worker<Kind>&, WarpRows<Kind::kHeadDim>& mine,
                                             const unsigned char* tile,
                                             const uint32_t (&weights)[kTileTokens / 16][4]) {
    using Layout = typename Kind::ValueLayout;
    const uint64_t values = matrix_descriptor<Layout>(tile);
    hold(mine.output);
    products_begin();
#pragma unroll
    for (int pair = 0; pair < kTileTokens / 16; ++pair) {
        Products<typename Kind::Product, true>::multiply_add(mine.output, weights[pair],
                                                             values + pair * 2 * Layout::kEightRows / 16, true);
    }
    products_commit();
}

}  // namespace sparsespec
