// A token as the winner of a race: token t arrives at E(t) / weight(t), E exponential (the Gumbel-max trick, without
// its second logarithm). E depends on seed, position and token alone, so similar rows have the same winner.
//
// 26 instructions a token or so, of which 13 are for half of a splitmix64 number, and 2 of the special-function unit:
// 151,936 tokens take about 18 us of an SM that runs at 1.8 GHz, less what is skipped, and 180 rows take an H200's 132
// SMs twice that.
#pragma once

#include <cstdint>

#include "common/logits.cuh"
#include "common/random.cuh"

namespace sparsespec {

// -log(1 - v) of v = (bits + 1/2) / 2^32, by a series where the logarithm would lose the digits of a small v.
__device__ inline float exponential(uint32_t bits) {
    const float v = fminf(fmaf(static_cast<float>(bits), 0x1p-32f, 0x1p-33f), 0x1.fffffep-1f);
    const float series = v * fmaf(v, fmaf(v, fmaf(v, 0.25f, 1.0f / 3), 0.5f), 1.0f);
    return v < 0.03f ? series : -0.69314718f * __log2f(1.0f - v);
}

// No E is below 2^-33, and the best token's is below 2^5: tokens of less than 2^-38 of its weight never win.
constexpr float kHopeless = 38;

// The winner among a thread's neighbouring tokens from `first` on, if better than `best`, whose value is minus the
// time.
__device__ inline Candidate race_on(const Softmax& softmax, const float (&logits)[kLogitsPerThread], int first,
                                    uint64_t stream, Candidate best) {
#pragma unroll
    for (int index = 0; index < kLogitsPerThread; index += 2) {
        const uint64_t bits = stream_number(stream, static_cast<uint64_t>(first + index) / 2);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int token = first + index + half;
            const float logit = logits[index + half];
            const float delay = exp2f((softmax.largest - logit) * softmax.scale);
            const float value = -exponential(static_cast<uint32_t>(bits >> (32 * half))) * delay;
            if (softmax.cut.keeps(logit, token) && value > best.value) {
                best = {value, token};
            }
        }
    }
    return best;
}

// For all threads. The next call needs a barrier before it.
template <int kThreads, typename T>
__device__ inline int32_t race_winner(const T* logits, int vocab_size, const Softmax& softmax, uint64_t stream,
                                      Candidate (&warps)[kThreads / 32]) {
    Candidate best{-INFINITY, 0};
    for (int first = threadIdx.x * kLogitsPerThread; first < vocab_size; first += kLogitTile<kThreads>) {
        float values[kLogitsPerThread];
        load_numbers(logits, first, vocab_size, -INFINITY, values);
        float highest = values[0];
#pragma unroll
        for (int index = 1; index < kLogitsPerThread; ++index) {
            highest = fmaxf(highest, values[index]);
        }
        if ((softmax.largest - highest) * softmax.scale < kHopeless) {
            best = race_on(softmax, values, first, stream, best);
        }
    }
    return block_best<kThreads>(best, warps).token;
}

}  // namespace sparsespec
