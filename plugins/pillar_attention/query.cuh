// Queries that warps keep in registers: normalised, rotated, and as the matrix units take them.
#pragma once

#include <type_traits>

#include "pillar_attention/rotate.cuh"
#include "pillar_attention/warp_rows.cuh"

namespace sparsespec {

// Rounded to the model's type, where that is not how it is packed.
template <typename Kind>
__device__ __forceinline__ float as_model(float x) {
    return std::is_same_v<typename Kind::Product, typename Kind::Model> ? x : rounded<typename Kind::Model>(x);
}

// Four lanes share a row, and a lane has two pairs of each 16 numbers: from 2 * (lane % 4) on, and 8 further on. The
// numbers that rotate together, half a head apart, are in the same lane.
__device__ __forceinline__ constexpr int pair_place(int index) {
    return index / 2 * 16 + index % 2 * 8;
}

// One packed row's query after QK-norm and RoPE.
template <typename Kind>
__device__ __forceinline__ void rotate_query(const Worker<Kind>& worker, int packed,
                                             float2 (&x)[Kind::kHeadDim / 16][2]) {
    constexpr int kSteps = Kind::kHeadDim / 16;
    const PillarAttentionParams& params = worker.params;
    const RowTile& tile = worker.tile();
    const int lane_first = worker.lane % 4 * 2;
    const typename Kind::Model* query =
        worker.qkv_row(tile.qkv_row(packed)) + tile.query_head(packed) * Kind::kHeadDim + lane_first;
    const float* rope = params.rope_table + int64_t{tile.position(packed)} * Kind::kHeadDim + lane_first;
    // All loads before anything is made of them: while copies go on each round trip takes long.
    float2 cosine[kSteps], sine[kSteps];
#pragma unroll
    for (int index = 0; index < kSteps; ++index) {
        cosine[index] = load<float2>(rope + pair_place(index));
        sine[index] = load<float2>(rope + Kind::kHeadDim / 2 + pair_place(index));
    }
    uint32_t packed_pairs[2 * kSteps];
#pragma unroll
    for (int index = 0; index < 2 * kSteps; ++index) {
        packed_pairs[index] = load<uint32_t>(query + pair_place(index));
    }
#pragma unroll
    for (int index = 0; index < 2 * kSteps; ++index) {
        x[index / 2][index % 2] = Numbers<typename Kind::Model>::unpack(packed_pairs[index]);
    }
    if (params.q_norm != nullptr) {
        normalize_query<typename Kind::Model, Kind::kHeadDim>(
            x, static_cast<const typename Kind::Model*>(params.q_norm) + lane_first, params.rms_norm_eps);
    }
#pragma unroll
    for (int index = 0; index < kSteps; ++index) {
        const float2 c = cosine[index], s = sine[index];
        float2 &low = x[index / 2][index % 2], &high = x[(index + kSteps) / 2][(index + kSteps) % 2];
        const float2 turned_low = {turned(low.x, high.x, c.x, -s.x), turned(low.y, high.y, c.y, -s.y)};
        const float2 turned_high = {turned(high.x, low.x, c.x, s.x), turned(high.y, low.y, c.y, s.y)};
        low = {as_model<Kind>(turned_low.x), as_model<Kind>(turned_low.y)};
        high = {as_model<Kind>(turned_high.x), as_model<Kind>(turned_high.y)};
    }
}

// One packed row's query as a lane of the matrix units holds it.
template <typename Kind>
__device__ __forceinline__ void load_query(const Worker<Kind>& worker, int packed,
                                           uint32_t (&q)[Kind::kHeadDim / 16][2]) {
    float2 x[Kind::kHeadDim / 16][2];
    rotate_query(worker, packed, x);
#pragma unroll
    for (int index = 0; index < Kind::kHeadDim / 8; ++index) {
        const float2 pair = x[index / 2][index % 2];
        q[index / 2][index % 2] = Numbers<typename Kind::Product>::pack(pair.x, pair.y);
    }
}

}  // namespace sparsespec
