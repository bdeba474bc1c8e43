// Numbers of the model's type: to float and back, one, two or eight of them at a time; and their matrix products (sm_80
// on).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace sparsespec {

template <typename T>
struct Numbers;

template <>
struct Numbers<float> {
    static constexpr int kZeroBits = 0;  // how many last bits of a float are 0 in every such number
    __device__ static float to_float(float x) { return x; }
};

template <>
struct Numbers<__half> {
    static constexpr int kZeroBits = 13;
    __device__ static float to_float(__half x) { return __half2float(x); }
    __device__ static __half from_float(float x) { return __float2half_rn(x); }
    __device__ static uint32_t pack(float low, float high) {
        const __half2 pair = __floats2half2_rn(low, high);
        return reinterpret_cast<const uint32_t&>(pair);
    }
    __device__ static float2 unpack(uint32_t pair) { return __half22float2(reinterpret_cast<const __half2&>(pair)); }

    // c [16 x 8] += a [16 x 16] b [16 x 8]
    __device__ static void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

template <>
struct Numbers<__nv_bfloat16> {
    static constexpr int kZeroBits = 16;
    __device__ static float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
    __device__ static __nv_bfloat16 from_float(float x) { return __float2bfloat16_rn(x); }
    __device__ static uint32_t pack(float low, float high) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        return reinterpret_cast<const uint32_t&>(pair);
    }
    __device__ static float2 unpack(uint32_t pair) {
        return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pair));
    }

    __device__ static void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};\n"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

template <typename T>
__device__ __forceinline__ void unpack_eight(const uint4& packed, float (&numbers)[8]) {
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int index = 0; index < 4; ++index) {
        const float2 pair = Numbers<T>::unpack(words[index]);
        numbers[2 * index] = pair.x;
        numbers[2 * index + 1] = pair.y;
    }
}

template <typename T>
__device__ __forceinline__ uint4 pack_eight(const float (&numbers)[8]) {
    return {Numbers<T>::pack(numbers[0], numbers[1]), Numbers<T>::pack(numbers[2], numbers[3]),
            Numbers<T>::pack(numbers[4], numbers[5]), Numbers<T>::pack(numbers[6], numbers[7])};
}

template <typename T>
__device__ __forceinline__ float rounded(float x) {
    return Numbers<T>::to_float(Numbers<T>::from_float(x));
}

// A norm's last steps: times factor, then times weights, rounded after each.
template <typename T>
__device__ __forceinline__ void scale_by(float (&numbers)[8], float factor, const uint4& weights) {
    float weight[8];
    unpack_eight<T>(weights, weight);
#pragma unroll
    for (int index = 0; index < 8; ++index) {
        numbers[index] = rounded<T>(rounded<T>(numbers[index] * factor) * weight[index]);
    }
}

}  // namespace sparsespec
