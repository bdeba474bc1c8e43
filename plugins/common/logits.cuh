// A row of logits: read by a thread block in tiles, summarised, and turned into probabilities.
#pragma once

#include <cfloat>
#include <cstdint>

#include "common/numbers.cuh"

namespace sparsespec {

// Neighbouring numbers that a thread has at a time.
constexpr int kLogitsPerThread = 8;

template <int kThreads>
constexpr int kLogitTile = kThreads * kLogitsPerThread;

// numbers[first] to numbers[first + kLogitsPerThread - 1]; `beyond` from `count` on. first: a multiple of
// kLogitsPerThread. Rows of another length than a multiple of it are not aligned.
template <typename T>
__device__ inline void load_numbers(const T* numbers, int first, int count, float beyond,
                                    float (&values)[kLogitsPerThread]) {
    if (count % kLogitsPerThread == 0 && first < count) {
        constexpr int kVectors = kLogitsPerThread * sizeof(T) / 16;
        uint4 raw[kVectors];
#pragma unroll
        for (int vector = 0; vector < kVectors; ++vector) {
            raw[vector] = reinterpret_cast<const uint4*>(numbers + first)[vector];
        }
        const T* loaded = reinterpret_cast<const T*>(raw);
#pragma unroll
        for (int index = 0; index < kLogitsPerThread; ++index) {
            values[index] = Numbers<T>::to_float(loaded[index]);
        }
        return;
    }
#pragma unroll
    for (int index = 0; index < kLogitsPerThread; ++index) {
        values[index] = first + index < count ? Numbers<T>::to_float(numbers[first + index]) : beyond;
    }
}

// Which tokens of a row are kept: those of larger logits, and of equal ones those up to `token`.
struct Cut {
    float logit = -INFINITY;
    int32_t token = INT32_MAX;

    __device__ bool keeps(float value, int of) const { return value > logit || (value == logit && of <= token); }
};

// What a row's probabilities are made of.
struct Softmax {
    float largest;  // logit
    float scale;    // of logits less the largest, to exponents of 2
    Cut cut{};
    float sum = 1;  // of all weights

    // The largest logit's is 1, and 0 what is cut.
    __device__ float weight(float logit, int token) const {
        return cut.keeps(logit, token) ? exp2f((logit - largest) * scale) : 0.0f;
    }
    __device__ float probability(float logit, int token) const { return weight(logit, token) / sum; }
    __device__ Softmax with(const Cut& other) const { return {largest, scale, other, sum}; }
};

// log2(e) / temperature; a temperature so small that this overflows leaves the largest logits alone.
__device__ inline float exponent_scale(float temperature) {
    return fminf(1.4426950408889634f / temperature, FLT_MAX);
}

struct Candidate {
    float value;
    int32_t token;

    // NaN is never better.
    __device__ bool better_than(const Candidate& other) const {
        return value > other.value || (value == other.value && token < other.token);
    }
};

__device__ inline Candidate better(const Candidate& a, const Candidate& b) {
    return b.better_than(a) ? b : a;
}

// The same for all threads; of equal values the lowest token. The next call needs a barrier before it.
template <int kThreads>
__device__ inline Candidate block_best(Candidate own, Candidate (&warps)[kThreads / 32]) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const Candidate other{__shfl_xor_sync(0xffffffffu, own.value, step),
                              __shfl_xor_sync(0xffffffffu, own.token, step)};
        own = better(own, other);
    }
    if (threadIdx.x % 32 == 0) {
        warps[threadIdx.x / 32] = own;
    }
    __syncthreads();
    Candidate best = warps[0];
    for (int warp = 1; warp < kThreads / 32; ++warp) {
        best = better(best, warps[warp]);
    }
    return best;
}

// The most likely of the tokens that this thread looks at, of a row of vocab_size logits.
template <int kThreads, typename T>
__device__ inline Candidate own_best(const T* logits, int vocab_size) {
    Candidate best{-INFINITY, 0};
    for (int first = threadIdx.x * kLogitsPerThread; first < vocab_size; first += kLogitTile<kThreads>) {
        float values[kLogitsPerThread];
        load_numbers(logits, first, vocab_size, -INFINITY, values);
#pragma unroll
        for (int index = 0; index < kLogitsPerThread; ++index) {
            if (values[index] > best.value) {
                best = {values[index], first + index};
            }
        }
    }
    return best;
}

}  // namespace sparsespec
