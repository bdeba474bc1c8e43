// QK-norm and RoPE of one head's vector, with the roundings of the torch reference.
#pragma once

#include "pillar_attention/ptx.cuh"

namespace sparsespec {

// Lanes that share a vector. Lane i holds numbers 8i to 8i + 7 and those half a head further on, which rotate with
// them.
constexpr int kVectorLanes = 8;

// One lane's part of a vector.
struct VectorPart {
    uint4 low;
    uint4 high;
};

template <int kHeadDim>
__device__ __forceinline__ bool holds_part(int part) {
    return part * 16 < kHeadDim;
}

template <typename T, int kHeadDim>
__device__ __forceinline__ VectorPart load_part(const T* vector, int part) {
    return {*reinterpret_cast<const uint4*>(vector + part * 8),
            *reinterpret_cast<const uint4*>(vector + kHeadDim / 2 + part * 8)};
}

// From an address that 16 divides.
__device__ __forceinline__ void load_eight(const float* from, float (&numbers)[8]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float4 four = reinterpret_cast<const float4*>(from)[half];
        numbers[half * 4] = four.x;
        numbers[half * 4 + 1] = four.y;
        numbers[half * 4 + 2] = four.z;
        numbers[half * 4 + 3] = four.w;
    }
}

// x * cosine + y * sine, not fused: the reference rounds the products too, and so every bit is the same.
__device__ __forceinline__ float turned(float x, float y, float cosine, float sine) {
    return __fadd_rn(__fmul_rn(x, cosine), __fmul_rn(y, sine));
}

// x / rms(x) * norm, over all lanes of the vector. Every lane of the warp takes part.
template <typename T, int kHeadDim>
__device__ __forceinline__ void normalize(float (&low)[8], float (&high)[8], const T* norm, float eps, int part) {
    float squares = 0;
#pragma unroll
    for (int index = 0; index < 8; ++index) {
        squares += low[index] * low[index] + high[index] * high[index];
    }
    squares = holds_part<kHeadDim>(part) ? squares : 0;
#pragma unroll
    for (int step = 1; step < kVectorLanes; step *= 2) {
        squares += __shfl_xor_sync(0xffffffffu, squares, step);
    }
    if (holds_part<kHeadDim>(part)) {
        const float factor = rsqrtf(squares / kHeadDim + eps);
        const VectorPart weights = load_part<T, kHeadDim>(norm, part);
        scale_by<T>(low, factor, weights.low);
        scale_by<T>(high, factor, weights.high);
    }
}

// What rotates a lane's part.
struct Rotation {
    float cosine[8];
    float sine[8];
};

// `rope`: a position's row of rope_table.
template <int kHeadDim>
__device__ __forceinline__ Rotation load_rotation(const float* rope, int part) {
    Rotation rotation{};
    if (holds_part<kHeadDim>(part)) {
        load_eight(rope + part * 8, rotation.cosine);
        load_eight(rope + kHeadDim / 2 + part * 8, rotation.sine);
    }
    return rotation;
}

// The vector after QK-norm, if norm is not null, and RoPE. Every lane of the warp takes part; lanes that hold no part
// get and give zeros.
template <typename T, int kHeadDim>
__device__ __forceinline__ VectorPart rotated(const VectorPart& vector, const T* norm, float eps,
                                              const Rotation& rotation, int part) {
    float low[8], high[8], turned_low[8] = {}, turned_high[8] = {};
    unpack_eight<T>(vector.low, low);
    unpack_eight<T>(vector.high, high);
    if (norm != nullptr) {
        normalize<T, kHeadDim>(low, high, norm, eps, part);
    }
    if (holds_part<kHeadDim>(part)) {
#pragma unroll
        for (int index = 0; index < 8; ++index) {
            const float cosine = rotation.cosine[index], sine = rotation.sine[index];
            turned_low[index] = turned(low[index], high[index], cosine, -sine);
            turned_high[index] = turned(high[index], low[index], cosine, sine);
        }
    }
    return {pack_eight<T>(turned_low), pack_eight<T>(turned_high)};
}

// QK-norm of a query that four lanes hold as query.cuh says. `norm`: from the lane's first number on.
template <typename T, int kHeadDim>
__device__ __forceinline__ void normalize_query(float2 (&x)[kHeadDim / 16][2], const T* norm, float eps) {
    float squares = 0;
#pragma unroll
    for (int index = 0; index < kHeadDim / 8; ++index) {
        const float2 pair = x[index / 2][index % 2];
        squares += pair.x * pair.x + pair.y * pair.y;
    }
    squares += __shfl_xor_sync(0xffffffffu, squares, 1);
    squares += __shfl_xor_sync(0xffffffffu, squares, 2);
    const float factor = rsqrtf(squares / kHeadDim + eps);
#pragma unroll
    for (int index = 0; index < kHeadDim / 8; ++index) {
        float2& pair = x[index / 2][index % 2];
        const float2 weight =
            Numbers<T>::unpack(*reinterpret_cast<const uint32_t*>(norm + index / 2 * 16 + index % 2 * 8));
        pair = {rounded<T>(rounded<T>(pair.x * factor) * weight.x), rounded<T>(rounded<T>(pair.y * factor) * weight.y)};
    }
}

}  // namespace sparsespec
