// The few instructions that CUDA C++ has no words for: asynchronous copies and matrix loads (sm_80 on).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/early_launch.cuh"
#include "common/numbers.cuh"

namespace sparsespec {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// a * b + c, in one instruction of the lane's own. Where all lanes have the same a, ptxas (CUDA 13.0) would add up what
// they share for themselves and put it into an address of its own kind, which asynchronous copies with a cache policy
// cannot take: they got the address's bits for a policy, or were illegal instructions.
__device__ __forceinline__ uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result;
    asm volatile("mad.lo.u32 %0, %1, %2, %3;\n" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

// For copies of what nobody reads again: the L2 keeps all else rather than it.
__device__ __forceinline__ uint64_t read_once_policy() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
    return policy;
}

// 16 bytes from global to shared memory, past the L1; zeros where `valid` is false, and then nothing is read. kOnce: by
// read_once_policy(); a policy that says nothing would cost more than none.
template <bool kOnce>
__device__ __forceinline__ void copy_async_16(uint32_t shared, const void* global, bool valid, uint64_t policy) {
    const int bytes = valid ? 16 : 0;
    if constexpr (kOnce) {
        asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;\n" ::"r"(shared), "l"(global),
                     "r"(bytes), "l"(policy));
    } else {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(global), "r"(bytes));
    }
}

// 4 bytes, through the L1; 0 where `valid` is false, and then nothing is read.
__device__ __forceinline__ void copy_async_4(uint32_t shared, const void* global, bool valid) {
    const int bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}

// Until all copies of this thread have landed.
__device__ __forceinline__ void copy_async_wait_all() {
    asm volatile("cp.async.wait_all;\n" ::: "memory");
}

// The barrier counts one arrival of this thread once all its copies so far have landed.
__device__ __forceinline__ void copy_async_arrive(uint64_t* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}

// Loads, in the order of the program.
template <typename T>
__device__ __forceinline__ T load(const void* global);

template <>
__device__ __forceinline__ uint32_t load(const void* global) {
    uint32_t number;
    asm volatile("ld.global.u32 %0, [%1];\n" : "=r"(number) : "l"(global));
    return number;
}

template <>
__device__ __forceinline__ float2 load(const void* global) {
    float2 pair;
    asm volatile("ld.global.v2.f32 {%0, %1}, [%2];\n" : "=f"(pair.x), "=f"(pair.y) : "l"(global));
    return pair;
}

// Loads an address into the L1 cache, for others.
__device__ __forceinline__ void touch(const void* global) {
    asm volatile("{ .reg .b32 unused; ld.global.ca.b32 unused, [%0]; }\n" ::"l"(global));
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }\n" ::"r"(shared_address(barrier))
                 : "memory");
}

// `count` arrivals at once.
__device__ __forceinline__ void barrier_arrive_many(uint64_t* barrier, int count) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0], %1; }\n" ::"r"(shared_address(barrier)),
                 "r"(count)
                 : "memory");
}

// One arrival, and so many bytes that box copies are to bring.
__device__ __forceinline__ void barrier_arrive_for_bytes(uint64_t* barrier, int bytes) {
    asm volatile(
        "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }\n" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}

// Copies a box of a tensor map, the one at `place` in its last dimension, to shared memory; its bytes count for the
// barrier.
__device__ __forceinline__ void copy_box(uint32_t shared, const void* map, int place, uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %2, %2, %2, %3}], "
        "[%4];\n" ::"r"(shared),
        "l"(map), "r"(0), "r"(place), "r"(shared_address(barrier))
        : "memory");
}

// Whether the barrier's phase of this parity is complete.
__device__ __forceinline__ bool barrier_is_complete(uint64_t* barrier, int parity) {
    uint32_t done;
    asm volatile(
        "{ .reg .pred done;\n"
        "mbarrier.test_wait.parity.shared.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done; }\n"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return done != 0;
}

// Waits until the barrier's phase of this parity is complete.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, int parity) {
    uint32_t done = 0;
    while (done == 0) {
        asm volatile(
            "{ .reg .pred done;\n"
#if __CUDA_ARCH__ >= 900
            "mbarrier.try_wait.parity.shared.b64 done, [%1], %2;\n"
#else
            "mbarrier.test_wait.parity.shared.b64 done, [%1], %2;\n"
#endif
            "selp.u32 %0, 1, 0, done; }\n"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    }
}

// What this thread wrote to shared memory, or others copied there and it has waited for, is seen by wgmma.
__device__ __forceinline__ void products_see_copies() {
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// Moves registers from one warpgroup to another: from here on each thread of this one has `kCount` at most.
template <int kCount>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kCount));
}

template <int kCount>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kCount));
}

// Four 8x8 matrices of 16-bit numbers; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

// The same the other way: to shared memory. Of matrices that each lane holds two neighbours of row lane / 4 of, the
// transposes.
__device__ __forceinline__ void store_matrices_transposed(uint32_t address, uint32_t a, uint32_t b, uint32_t c,
                                                          uint32_t d) {
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(address), "r"(a), "r"(b),
                 "r"(c), "r"(d)
                 : "memory");
#endif
}

__device__ __forceinline__ void store_two_matrices_transposed(uint32_t address, uint32_t a, uint32_t b) {
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};\n" ::"r"(address), "r"(a), "r"(b)
                 : "memory");
#endif
}

// The transpose of an 8x8 matrix of 16-bit numbers, of which each lane holds two neighbours of row lane / 4.
__device__ __forceinline__ uint32_t transposed(uint32_t matrix) {
    uint32_t result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(result) : "r"(matrix));
    return result;
}

// 2^x to 22 bits; 0 for -inf and below -126.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// Four numbers of FP8 (e4m3) in fp16, which holds them exactly.
__device__ __forceinline__ uint2 fp8_to_half(uint32_t four) {
    uint2 result;
#if __CUDA_ARCH__ >= 890
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2;\n"
        "cvt.rn.f16x2.e4m3x2 %0, low;\n"
        "cvt.rn.f16x2.e4m3x2 %1, high; }\n"
        : "=r"(result.x), "=r"(result.y)
        : "r"(four));
#else
    // Each in the upper byte of a half: there exponents count from 8 further down. Only NaN comes to more than 448.
    uint32_t* const pairs[2] = {&result.x, &result.y};
#    pragma unroll
    for (int index = 0; index < 2; ++index) {
        const uint32_t bytes = __byte_perm(four, 0, index == 0 ? 0x1404 : 0x3424);
        const uint32_t halves = (bytes & 0x80008000) | (bytes & 0x7f007f00) >> 1;
        const __half2 pair = __hmul2(reinterpret_cast<const __half2&>(halves), __float2half2_rn(256.0f));
        *pairs[index] = reinterpret_cast<const uint32_t&>(pair) | __hgt2_mask(__habs2(pair), __float2half2_rn(448.0f));
    }
#endif
    return result;
}

}  // namespace sparsespec
