// A block for each row of logits.
#pragma once

#include <cstdint>

#include "common/draw.cuh"
#include "common/logits.cuh"
#include "common/phase.h"
#include "common/random.cuh"
#include "sample_rows/cut.cuh"
#include "sample_rows/params.h"
#include "sample_rows/race.cuh"

namespace sparsespec {

constexpr int kSampleBlocks = 3;  // of an SM at a time: rows without cuts need no more registers

struct SampleShared {
    Candidate warps[kSampleThreads / 32];
    DrawShared<kSampleThreads> draw;
    CutShared cut;
};

template <typename T>
struct LogitWeights {
    const T* logits;
    int vocab_size;
    Softmax softmax;

    __device__ void operator()(int first, float (&weights)[kLogitsPerThread]) const {
        load_numbers(logits, first, vocab_size, -INFINITY, weights);
#pragma unroll
        for (int index = 0; index < kLogitsPerThread; ++index) {
            weights[index] = softmax.weight(weights[index], first + index);
        }
    }
};

template <typename T>
__device__ inline void write_probabilities(const LogitWeights<T>& weights_at, float* probabilities) {
    const int vocab_size = weights_at.vocab_size;
    for (int first = threadIdx.x * kLogitsPerThread; first < vocab_size; first += kLogitTile<kSampleThreads>) {
        float weights[kLogitsPerThread];
        weights_at(first, weights);
#pragma unroll
        for (int index = 0; index < kLogitsPerThread; ++index) {
            if (first + index < vocab_size) {
                probabilities[first + index] = weights[index] / weights_at.softmax.sum;
            }
        }
    }
}

// A draft's token, and the distribution that it is drawn from.
template <typename T>
__device__ inline int32_t draw_draft(const SampleRowsParams& params, const LogitWeights<T>& weights_at, int slot,
                                     int position, double sum, DrawShared<kSampleThreads>& shared) {
    const int draft_index = params.draft_index[slot];
    const int64_t row = static_cast<int64_t>(slot) * params.draft_len + draft_index;
    write_probabilities(weights_at, params.draft_probs + row * params.vocab_size);
    const uint64_t purpose = static_cast<uint64_t>(Purpose::kDraft) + static_cast<uint64_t>(draft_index);
    const double target = uniform(params.seed[slot], position, purpose) * sum;
    return find_token<kSampleThreads>(weights_at, params.vocab_size, target, shared);
}

__device__ inline CutRules cut_rules(const SampleRowsParams& params, int slot) {
    const int64_t top_k = params.top_k[slot];
    return {params.min_p[slot], top_k < params.vocab_size ? static_cast<int32_t>(top_k) : 0, params.top_p[slot]};
}

template <typename T>
__global__ void __launch_bounds__(kSampleThreads, kSampleBlocks)
sample_rows_kernel(SampleRowsParams params) {
    __shared__ SampleShared shared;
    const int row = static_cast<int>(blockIdx.x), slot = params.logit_slot[row];
    if (slot < 0) {
        return;
    }
    const T* logits = static_cast<const T*>(params.logits) + static_cast<int64_t>(row) * params.vocab_size;
    const Candidate own = own_best<kSampleThreads>(logits, params.vocab_size);
    const Candidate best = block_best<kSampleThreads>(own, shared.warps);
    const float temperature = params.temperature[slot];
    const bool is_draft = params.phase[slot] == static_cast<int32_t>(Phase::kDraft);
    const int position = params.logit_position[row];
    int32_t decided = best.token, token = best.token;
    Softmax softmax{best.value, exponent_scale(temperature)};
    if (temperature > 0) {
        const CutRules rules = cut_rules(params, slot);
        if (rules.any()) {
            const Logits<T> all{logits, params.vocab_size, {Numbers<T>::kZeroBits}};
            softmax.cut = find_cut(all, softmax, rules, own.value, shared.cut);
        }
        if (params.coupling == Coupling::kGumbel) {
            const uint64_t stream = random_bits(params.seed[slot], position, static_cast<uint64_t>(Purpose::kRace));
            __syncthreads();  // shared.warps
            decided = token = race_winner<kSampleThreads>(logits, params.vocab_size, softmax, stream, shared.warps);
        } else {
            LogitWeights<T> weights_at{logits, params.vocab_size, softmax};
            const double exact = sum_weights<kSampleThreads>(weights_at, params.vocab_size, shared.draw);
            softmax.sum = weights_at.softmax.sum = static_cast<float>(exact);
            token = is_draft ? draw_draft(params, weights_at, slot, position, exact, shared.draw) : token;
        }
    }
    if (threadIdx.x == 0) {
        params.row_max[row] = softmax.largest;
        params.row_sum[row] = softmax.sum;
        params.row_token[row] = decided;
        params.row_cut_logit[row] = softmax.cut.logit;
        params.row_cut_token[row] = softmax.cut.token;
        if (is_draft) {
            params.token_ids[static_cast<int64_t>(slot) * params.max_positions + position] = token;
        }
    }
}

}  // namespace sparsespec
