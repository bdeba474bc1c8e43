// Queries of a row tile, to shared memory: by all consumer warps, kVectorLanes lanes to a packed row.
#pragma once

#include <cuda_fp8.h>

#include "pillar_attention/columns.cuh"
#include "pillar_attention/rotate.cuh"

namespace sparsespec {

// Where 16-byte chunk `chunk` of a packed row's query lies.
template <typename Kind>
__device__ __forceinline__ unsigned char* query_chunk(const Worker<Kind>& worker, int packed, int chunk) {
    return worker.queries() + QueryLayout<Kind>::offset(packed, chunk);
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

// A power of two and its inverse.
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

// Eight numbers of a query as the sum of two rows of FP8: first what the second rounds away, then the numbers
// themselves, all multiplied by the row's power of two.
//
// FP8 has 4 bits. A number of bf16 has 8: of one in [2^e, 2^(e + 1)), what is rounded away is a multiple of 2^(e - 7)
// and no more than 8 of them, which is again a number of FP8. FP8's smallest is 2^-9, so down to 2^-2, a 512th of the
// row's largest at worst, the sum is bf16's number, and below it is off by 2^-10 at most. fp16's, of 11 bits, keep 9:
// they are off by a 512th at most.
//
// Both parts can be added up in the same sums. What is small comes first: the matrix units keep 13 bits of a sum of FP8
// products after its first, so that it loses the least while it is small.
template <typename Kind>
__device__ __forceinline__ void put_split_eight(const Worker<Kind>& worker, int packed, int first, const float (&x)[8],
                                                float factor) {
    uint32_t numbers[2], rests[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float2 low = {x[half * 4] * factor, x[half * 4 + 1] * factor};
        const float2 high = {x[half * 4 + 2] * factor, x[half * 4 + 3] * factor};
        numbers[half] = pack_fp8(low, high);
        const uint2 taken = fp8_to_half(numbers[half]);
        rests[half] = pack_fp8(rest_of(low, taken.x), rest_of(high, taken.y));
    }
    const int second = Kind::kHeadDim + first;  // the numbers themselves come second
    *reinterpret_cast<uint2*>(query_chunk(worker, packed, first / 16) + first % 16) = {rests[0], rests[1]};
    *reinterpret_cast<uint2*>(query_chunk(worker, packed, second / 16) + second % 16) = {numbers[0], numbers[1]};
}

// The lane's part of a packed row's query. Of FP8, the row's scale goes to `scales`. Every lane of the warp takes part.
template <typename Kind>
__device__ __forceinline__ void put_query(const Worker<Kind>& worker, int packed, int part, const VectorPart& query,
                                          float* scales) {
    using Model = typename Kind::Model;
    const bool holds = holds_part<Kind::kHeadDim>(part);
    if constexpr (Kind::kFp8) {
        float low[8], high[8], most = 0;
        unpack_eight<Model>(query.low, low);
        unpack_eight<Model>(query.high, high);
#pragma unroll
        for (int index = 0; index < 8; ++index) {
            most = fmaxf(most, fmaxf(fabsf(low[index]), fabsf(high[index])));
        }
#pragma unroll
        for (int step = 1; step < kVectorLanes; step *= 2) {
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
        }
        const PowerOfTwo power = power_for(most);
        if (holds) {
            put_split_eight(worker, packed, part * 8, low, power.factor);
            put_split_eight(worker, packed, Kind::kHeadDim / 2 + part * 8, high, power.factor);
        }
        if (part == 0) {
            scales[packed] = power.inverse;
        }
    } else if (holds) {
        *reinterpret_cast<uint4*>(query_chunk(worker, packed, part)) = query.low;
        *reinterpret_cast<uint4*>(query_chunk(worker, packed, Kind::kHeadDim / 16 + part)) = query.high;
    }
}

// All of the tile's queries, zeros for columns beyond its rows. The other consumers see them after a meeting.
template <int kColumns, typename Kind>
__device__ __forceinline__ void load_queries(const Worker<Kind>& worker, float* scales) {
    using Model = typename Kind::Model;
    constexpr int kAtOnce = kTeamThreads / kVectorLanes, kTimes = (kColumns + kAtOnce - 1) / kAtOnce;
    const PillarAttentionParams& params = worker.params;
    const RowTile& tile = worker.team_tile();
    const int first = worker.thread / kVectorLanes, part = worker.thread % kVectorLanes;
    const int last = tile.packed_rows() - 1;
    VectorPart query[kTimes];
    Rotation rotation[kTimes];
#pragma unroll
    for (int time = 0; time < kTimes; ++time) {  // all loads before anything is made of them
        const int packed = min(first + time * kAtOnce, last);
        query[time] = {};
        if (holds_part<Kind::kHeadDim>(part) && first + time * kAtOnce <= last) {
            query[time] = load_part<Model, Kind::kHeadDim>(
                worker.qkv_row(tile.qkv_row(packed)) + tile.query_head(packed) * Kind::kHeadDim, part);
        }
        const float* rope = params.rope_table + int64_t{tile.position(max(0, packed))} * Kind::kHeadDim;
        rotation[time] = load_rotation<Kind::kHeadDim>(rope, part);
    }
#pragma unroll
    for (int time = 0; time < kTimes; ++time) {
        const int packed = first + time * kAtOnce;
        if (kColumns % kAtOnce != 0 && packed - worker.lane / kVectorLanes >= kColumns) {
            break;  // the whole warp
        }
        const VectorPart turned = rotated<Model, Kind::kHeadDim>(query[time], static_cast<const Model*>(params.q_norm),
                                                                 params.rms_norm_eps, rotation[time], part);
        put_query(worker, packed, part, turned, scales);
    }
}

}  // namespace sparsespec
