// Queries: normalised, rotated, and as the matrix units take them.
#pragma once

#include <cuda_fp8.h>

#include <type_traits>

#include "pillar_attention/rotate.cuh"
#include "pillar_attention/warp_rows.cuh"

namespace sparsespec {

// Whether the matrix units take an FP8 pool's keys as they are.
template <typename Kind>
constexpr bool kMultipliesFp8 = kHasWgmma && Kind::kFp8;

// Of what the matrix products of queries and keys multiply.
template <typename Kind>
using KeyProduct = std::conditional_t<kMultipliesFp8<Kind>, __nv_fp8_e4m3, typename Kind::Product>;

// Four lanes share a row, and a lane has two pairs of each 16 numbers: from kLane * (lane % 4) on, and kPair further
// on. The numbers that rotate together, half a head apart, are in the same lane.
template <typename Kind>
struct QueryPlaces {
    static constexpr int kLane = kMultipliesFp8<Kind> ? 4 : 2;
    static constexpr int kPair = kMultipliesFp8<Kind> ? 2 : 8;

    __device__ __forceinline__ static int of(int index) { return index / 2 * 16 + index % 2 * kPair; }
};

// Rounded to the model's type, where that is not how it is packed.
template <typename Kind>
__device__ __forceinline__ float as_model(float x) {
    return std::is_same_v<KeyProduct<Kind>, typename Kind::Model> ? x : rounded<typename Kind::Model>(x);
}

// One packed row's query after QK-norm and RoPE.
template <typename Kind>
__device__ __forceinline__ void rotate_query(const Worker<Kind>& worker, int packed,
                                             float2 (&x)[Kind::kHeadDim / 16][2]) {
    using Places = QueryPlaces<Kind>;
    constexpr int kSteps = Kind::kHeadDim / 16;
    const PillarAttentionParams& params = worker.params;
    const RowTile& tile = worker.tile();
    const int lane_first = worker.lane % 4 * Places::kLane;
    const typename Kind::Model* query =
        worker.qkv_row(tile.qkv_row(packed)) + tile.query_head(packed) * Kind::kHeadDim + lane_first;
    const float* rope = params.rope_table + int64_t{tile.position(packed)} * Kind::kHeadDim + lane_first;
    // All loads before anything is made of them: while copies go on each round trip takes long.
    float2 cosine[kSteps], sine[kSteps];
#pragma unroll
    for (int index = 0; index < kSteps; ++index) {
        cosine[index] = load<float2>(rope + Places::of(index));
        sine[index] = load<float2>(rope + Kind::kHeadDim / 2 + Places::of(index));
    }
    uint32_t packed_pairs[2 * kSteps];
#pragma unroll
    for (int index = 0; index < 2 * kSteps; ++index) {
        packed_pairs[index] = load<uint32_t>(query + Places::of(index));
    }
#pragma unroll
    for (int index = 0; index < 2 * kSteps; ++index) {
        x[index / 2][index % 2] = Numbers<typename Kind::Model>::unpack(packed_pairs[index]);
    }
    if (params.q_norm != nullptr) {
        normalize_query<typename Kind::Model, Kind::kHeadDim, Places::kPair>(
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

// The largest magnitude of a row.
template <int kParts>
__device__ __forceinline__ float largest_of_row(const float2 (&x)[kParts][2]) {
    float most = 0;
#pragma unroll
    for (int index = 0; index < 2 * kParts; ++index) {
        const float2 pair = x[index / 2][index % 2];
        most = fmaxf(most, fmaxf(fabsf(pair.x), fabsf(pair.y)));
    }
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
    return fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
}

// Four numbers to FP8, to the nearest even.
__device__ __forceinline__ uint32_t pack_fp8(float2 low, float2 high) {
    return __nv_cvt_float2_to_fp8x2(low, __NV_SATFINITE, __NV_E4M3) |
           uint32_t{__nv_cvt_float2_to_fp8x2(high, __NV_SATFINITE, __NV_E4M3)} << 16;
}

// What x is more than a pair of fp16.
__device__ __forceinline__ float2 rest_of(float2 x, uint32_t pair) {
    const float2 taken = Numbers<__half>::unpack(pair);
    return {x.x - taken.x, x.y - taken.y};
}

struct PowerOfTwo {
    float factor;
    float inverse;
};

// What brings a row whose largest magnitude is `most` to numbers of which the largest is from 128 on and below 256.
__device__ __forceinline__ PowerOfTwo power_for(float most) {
    constexpr uint32_t kOne = 127, kLargest = 7;  // exponents
    // Within what leaves both powers normal numbers, also for rows of zeros and of infinities.
    const uint32_t exponent = min(max(__float_as_uint(most) >> 23, 32u), 254u);
    return {__uint_as_float((2 * kOne + kLargest - exponent) << 23), __uint_as_float((exponent - kLargest) << 23)};
}

// A row of a query as the sum of two rows of FP8: q[s] of what the second rounds away, then q[head_dim / 32 + s] of the
// numbers themselves, each for 32 numbers. The row is multiplied by a power of two, so that its largest number is
// from 128 on and below 256. Returns that power's inverse.
//
// FP8 has 4 bits. A number of bf16 has 8: of one in [2^e, 2^(e + 1)), what is rounded away is a multiple of 2^(e - 7)
// and no more than 8 of them, which is again a number of FP8. FP8's smallest is 2^-9, so down to 2^-2, a 512th of the
// row's largest at worst, the sum is bf16's number, and below it is off by 2^-10 at most. fp16's, of 11 bits, keep 9:
// they are off by a 512th at most.
//
// Both parts can be added up in the same sums. What is small comes first: the matrix units keep 13 bits of a sum of FP8
// products after its first, so that it loses the least while it is small.
template <int kHeadDim>
__device__ __forceinline__ float split_query(const float2 (&x)[kHeadDim / 16][2], uint32_t (&q)[kHeadDim / 16][2]) {
    const PowerOfTwo power = power_for(largest_of_row(x));
    const float factor = power.factor;
#pragma unroll
    for (int part = 0; part < kHeadDim / 16; ++part) {
        const float2 low = {x[part][0].x * factor, x[part][0].y * factor};
        const float2 high = {x[part][1].x * factor, x[part][1].y * factor};
        const uint32_t four = pack_fp8(low, high);
        const uint2 taken = fp8_to_half(four);
        q[part / 2][part % 2] = pack_fp8(rest_of(low, taken.x), rest_of(high, taken.y));
        q[kHeadDim / 32 + part / 2][part % 2] = four;
    }
    return power.inverse;
}

// Scales a product of query and key to a logit in log2.
template <typename Kind>
__device__ __forceinline__ float logit_scale(const Worker<Kind>& worker) {
    if constexpr (Kind::kFp8) {
        return log2_scale<Kind::kHeadDim>() * worker.params.kv_scale[worker.tile().kv_head];
    } else {
        return log2_scale<Kind::kHeadDim>();
    }
}

// One packed row's query as a lane of the matrix units holds it. Returns what its products are to be multiplied by.
template <typename Kind>
__device__ __forceinline__ float load_query(const Worker<Kind>& worker, int packed,
                                            uint32_t (&q)[Kind::kHeadDim / 16][2]) {
    float2 x[Kind::kHeadDim / 16][2];
    rotate_query(worker, packed, x);
    if constexpr (kMultipliesFp8<Kind>) {
        return split_query<Kind::kHeadDim>(x, q);
    } else {
#pragma unroll
        for (int index = 0; index < Kind::kHeadDim / 8; ++index) {
            const float2 pair = x[index / 2][index % 2];
            q[index / 2][index % 2] = Numbers<typename Kind::Product>::pack(pair.x, pair.y);
        }
        return 1;
    }
}

}  // namespace sparsespec
