// What a consumer does with a tile: Q K^T, online softmax and P V on the matrix units, and scores on the way.
#pragma once

#include "pillar_attention/rotate.cuh"
#include "pillar_attention/score.cuh"

namespace sparsespec {

// One packed row's query as a lane of the matrix units holds it, rotated: numbers 16 i + 8 j + 2 (lane % 4) and the
// next one of [i][j]. The numbers that rotate together, half a head apart, are in the same lane. Four lanes share a
// row.
template <typename T, int kHeadDim>
__device__ __forceinline__ void load_query(const Worker<T, kHeadDim>& worker, int packed,
                                           uint32_t (&q)[kHeadDim / 16][2]) {
    constexpr int kSteps = kHeadDim / 16;
    const PillarAttentionParams& params = worker.params;
    const RowTile& tile = worker.tile();
    const int lane_first = worker.lane % 4 * 2;
    const T* query = worker.qkv_row(tile.qkv_row(packed)) + tile.query_head(packed) * kHeadDim + lane_first;
    const float* rope = params.rope_table + int64_t{tile.position(packed)} * kHeadDim + lane_first;
    float2 x[kSteps][2];
#pragma unroll
    for (int index = 0; index < 2 * kSteps; ++index) {
        x[index / 2][index % 2] = Numbers<T>::unpack(*reinterpret_cast<const uint32_t*>(query + index * 8));
    }
    if (params.q_norm != nullptr) {
        normalize_query<T, kHeadDim>(x, static_cast<const T*>(params.q_norm) + lane_first, params.rms_norm_eps);
    }
#pragma unroll
    for (int index = 0; index < kSteps; ++index) {
        const float2 cosine = *reinterpret_cast<const float2*>(rope + index * 8);
        const float2 sine = *reinterpret_cast<const float2*>(rope + kHeadDim / 2 + index * 8);
        const float2 low = x[index / 2][index % 2], high = x[(index + kSteps) / 2][(index + kSteps) % 2];
        q[index / 2][index % 2] =
            Numbers<T>::pack(turned(low.x, high.x, cosine.x, -sine.x), turned(low.y, high.y, cosine.y, -sine.y));
        q[(index + kSteps) / 2][(index + kSteps) % 2] =
            Numbers<T>::pack(turned(high.x, low.x, cosine.x, sine.x), turned(high.y, low.y, cosine.y, sine.y));
    }
}

template <int kRowWarps, typename T, int kHeadDim>
__device__ __forceinline__ void load_rows(const Worker<T, kHeadDim>& worker, WarpRows<kHeadDim>& mine) {
    const RowTile& tile = worker.tile();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = WarpShare<kRowWarps>::first_row(worker.warp) + worker.lane / 4 + half * 8;
        const int packed = min(row, tile.packed_rows() - 1);  // rows beyond repeat the last and are dropped in the end
        uint32_t q[kHeadDim / 16][2];
        load_query(worker, packed, q);
#pragma unroll
        for (int step = 0; step < kHeadDim / 16; ++step) {
            mine.q[step][half] = q[step][0];
            mine.q[step][half + 2] = q[step][1];
        }
#pragma unroll
        for (int column = 0; column < kHeadDim / 8; ++column) {
            mine.output[column][half * 2] = mine.output[column][half * 2 + 1] = 0;
        }
        mine.max[half] = -INFINITY;
        mine.sum[half] = 0;
        mine.last_key[half] = tile.last_key(packed);
    }
}

// logits[n] = the warp's rows times keys n * 8 to n * 8 + 7 of its share, not scaled yet.
template <int kRowWarps, typename T, int kHeadDim, int kColumns>
__device__ __forceinline__ void multiply_keys(const Worker<T, kHeadDim>& worker, const WarpRows<kHeadDim>& mine,
                                              int stage, float (&logits)[kColumns][4]) {
    const int first = WarpShare<kRowWarps>::first_key(worker.warp);
    const LaneChunks<kHeadDim> keys(shared_address(worker.keys(stage)), first + worker.lane % 8 + worker.lane / 16 * 8,
                                    worker.lane / 8 % 2);
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
        logits[column][0] = logits[column][1] = logits[column][2] = logits[column][3] = 0;
    }
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
        for (int pair = 0; pair < kColumns / 2; ++pair) {
            uint32_t k[4];
            load_matrices(k, keys.at(step, pair * 16));
            Numbers<T>::multiply_add(logits[2 * pair], mine.q[step], k[0], k[1]);
            Numbers<T>::multiply_add(logits[2 * pair + 1], mine.q[step], k[2], k[3]);
        }
    }
}

// -inf for keys that a row does not read.
template <int kRowWarps, typename T, int kHeadDim, int kColumns>
__device__ __forceinline__ void mask_keys(const Worker<T, kHeadDim>& worker, const WarpRows<kHeadDim>& mine,
                                          int kv_tile, int stage, float (&logits)[kColumns][4]) {
    const uint32_t (&halves)[kProducerWarps] = worker.shared.pipeline.unmasked[stage];
    const uint64_t unmasked = uint64_t{halves[1]} << 32 | halves[0];
    const int tile_start = kv_tile * kTileTokens;
    // Nothing to do when even the first row reads the tile's last key, and all before.
    if (unmasked == ~uint64_t{0} && tile_start + kTileTokens - 1 <= worker.tile().last_key(0)) {
        return;
    }
    // From the lane's first key on, so that what is left is constant.
    const int first = WarpShare<kRowWarps>::first_key(worker.warp) + worker.lane % 4 * 2;
    const uint64_t bits = unmasked >> first;
    const int last[2] = {mine.last_key[0] - tile_start - first, mine.last_key[1] - tile_start - first};
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
#pragma unroll
        for (int index = 0; index < 4; ++index) {
            const int key = column * 8 + index % 2;
            const bool read = key <= last[index / 2] && (bits >> key & 1) != 0;
            logits[column][index] = read ? logits[column][index] : -INFINITY;
        }
    }
}

// The rows' new maxima, in log2, over all lanes that share a row.
template <int kHeadDim, int kColumns>
__device__ __forceinline__ void find_max(const WarpRows<kHeadDim>& mine, const float (&logits)[kColumns][4],
                                         float (&max)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float most = logits[0][half * 2];
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
            most = fmaxf(most, fmaxf(logits[column][half * 2], logits[column][half * 2 + 1]));
        }
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        max[half] = fmaxf(mine.max[half], most * log2_scale<kHeadDim>());
    }
}

// Rescales what was summed before to new maxima.
template <int kHeadDim>
__device__ __forceinline__ void move_base(WarpRows<kHeadDim>& mine, const float (&max)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float factor = exp2_fast(mine.max[half] - (max[half] == -INFINITY ? 0 : max[half]));
        mine.max[half] = max[half];
        mine.sum[half] *= factor;
#pragma unroll
        for (int column = 0; column < kHeadDim / 8; ++column) {
            mine.output[column][half * 2] *= factor;
            mine.output[column][half * 2 + 1] *= factor;
        }
    }
}

// Logits become weights 2^(scaled logit - max) of the rows' running softmax.
template <int kHeadDim, int kColumns>
__device__ __forceinline__ void update_softmax(WarpRows<kHeadDim>& mine, float (&logits)[kColumns][4]) {
    float max[2];
    find_max(mine, logits, max);
    if (__any_sync(0xffffffffu, max[0] != mine.max[0] || max[1] != mine.max[1])) {
        move_base(mine, max);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float base = softmax_base(mine, half);
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
#pragma unroll
            for (int index = half * 2; index < half * 2 + 2; ++index) {
                logits[column][index] = exp2_fast(fmaf(logits[column][index], log2_scale<kHeadDim>(), -base));
                mine.sum[half] += logits[column][index];
            }
        }
    }
}

template <int kRowWarps, typename T, int kHeadDim, int kColumns>
__device__ __forceinline__ void multiply_values(const Worker<T, kHeadDim>& worker, WarpRows<kHeadDim>& mine, int stage,
                                                const float (&weights)[kColumns][4]) {
    const int first = WarpShare<kRowWarps>::first_key(worker.warp);
    const LaneChunks<kHeadDim> values(shared_address(worker.values(stage)), first + worker.lane % 16, worker.lane / 16);
#pragma unroll
    for (int pair = 0; pair < kColumns / 2; ++pair) {
        const float (&low)[4] = weights[2 * pair];
        const float (&high)[4] = weights[2 * pair + 1];
        const uint32_t p[4] = {Numbers<T>::pack(low[0], low[1]), Numbers<T>::pack(low[2], low[3]),
                               Numbers<T>::pack(high[0], high[1]), Numbers<T>::pack(high[2], high[3])};
#pragma unroll
        for (int step = 0; step < kHeadDim / 16; ++step) {
            uint32_t v[4];
            load_matrices_transposed(v, values.at(step, pair * 16));
            Numbers<T>::multiply_add(mine.output[2 * step], p, v[0], v[1]);
            Numbers<T>::multiply_add(mine.output[2 * step + 1], p, v[2], v[3]);
        }
    }
}

// Logits become probabilities by log-sum-exps that are known.
template <int kHeadDim, int kColumns>
__device__ __forceinline__ void exponentiate(const WarpRows<kHeadDim>& mine, float (&logits)[kColumns][4]) {
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
#pragma unroll
        for (int index = 0; index < 4; ++index) {
            const float logit = fmaf(logits[column][index], log2_scale<kHeadDim>(), -mine.lse[index / 2]);
            logits[column][index] = exp2_fast(fminf(logit, 0.0f));
        }
    }
}

// One tile that lies in shared memory.
template <int kRowWarps, typename T, int kHeadDim>
__device__ __forceinline__ void attend_tile(const Worker<T, kHeadDim>& worker, WarpRows<kHeadDim>& mine, int kv_tile,
                                            int stage) {
    if (WarpShare<kRowWarps>::first_row(worker.warp) >= worker.tile().packed_rows()) {
        return;
    }
    const Pass pass = worker.job().pass;
    float weights[WarpShare<kRowWarps>::kKeys / 8][4];
    multiply_keys<kRowWarps>(worker, mine, stage, weights);
    mask_keys<kRowWarps>(worker, mine, kv_tile, stage, weights);
    if (pass.attends) {
        update_softmax(mine, weights);
        multiply_values<kRowWarps>(worker, mine, stage, weights);
    } else {
        exponentiate(mine, weights);
    }
    if (pass.scores) {
        float factor[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float base = pass.attends ? softmax_base(mine, half) - mine.lse[half] : 0;
            factor[half] = mine.lse[half] == INFINITY ? 0 : exp2_fast(fminf(base + kWeightExponent, 100.0f));
        }
        store_weights<kRowWarps>(worker, mine, factor, weights);
    }
}

}  // namespace sparsespec
