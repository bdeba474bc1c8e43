// A block for each slot. Speculative rejection sampling (Leviathan et al. 2023, algorithm 1); greedy is its special
// case.
#pragma once

#include <cstdint>

#include "accept_drafts/params.h"
#include "common/draw.cuh"
#include "common/logits.cuh"
#include "common/phase.h"
#include "common/random.cuh"

namespace sparsespec {

constexpr int kAcceptThreads = 512;

// One slot's part in the step, where a block ends in it.
struct VerifiedBlock {
    int32_t slot;
    int32_t first_logit;
    int32_t num_drafts;      // that may stand
    int32_t first_position;  // of the token that the first logits decide
    int32_t block_start;     // position of the block's first row
};

__device__ inline VerifiedBlock find_block(const AcceptDraftsParams& params, int slot) {
    const int first_logit = params.logit_start[slot], num_logits = params.logit_start[slot + 1] - first_logit;
    const int end = params.kv_len[slot] + params.row_start[slot + 1] - params.row_start[slot];
    return {slot, first_logit, min(num_logits - 1, params.num_drafts[slot]), end - num_logits + 1,
            end - params.block_rows[slot]};
}

__device__ inline int64_t* tokens_of(const AcceptDraftsParams& params, int slot) {
    return params.token_ids + static_cast<int64_t>(slot) * params.max_positions;
}

template <typename T>
struct TargetRow {
    const T* logits;
    int vocab_size;
    Softmax softmax;

    __device__ TargetRow(const AcceptDraftsParams& params, int row, float temperature)
        : logits(static_cast<const T*>(params.logits) + static_cast<int64_t>(row) * params.vocab_size),
          vocab_size(params.vocab_size),
          softmax{params.row_max[row],
                  exponent_scale(temperature),
                  {params.row_cut_logit[row], params.row_cut_token[row]},
                  params.row_sum[row]} {}

    __device__ void operator()(int first, float (&weights)[kLogitsPerThread]) const {
        load_numbers(logits, first, vocab_size, -INFINITY, weights);
#pragma unroll
        for (int index = 0; index < kLogitsPerThread; ++index) {
            weights[index] = softmax.probability(weights[index], first + index);
        }
    }
};

// What the target has more of than the draft.
template <typename T>
struct Residual {
    TargetRow<T> target;
    const float* draft_probs;

    __device__ void operator()(int first, float (&weights)[kLogitsPerThread]) const {
        float drafted[kLogitsPerThread];
        target(first, weights);
        load_numbers(draft_probs, first, target.vocab_size, 0.0f, drafted);
#pragma unroll
        for (int index = 0; index < kLogitsPerThread; ++index) {
            weights[index] = fmaxf(weights[index] - drafted[index], 0.0f);
        }
    }
};

// Whether draft `index` stands, by the rule of its slot.
template <typename T>
__device__ inline bool stands(const AcceptDraftsParams& params, const VerifiedBlock& block, int index,
                              float temperature) {
    const int position = block.first_position + index, row = block.first_logit + index;
    const int64_t token = tokens_of(params, block.slot)[position];
    if (temperature == 0) {
        return token == params.row_token[row];
    }
    const TargetRow<T> target(params, row, temperature);
    const int64_t draft = static_cast<int64_t>(block.slot) * params.draft_len + index;
    const double drafted = params.draft_probs[draft * params.vocab_size + token];
    const uint64_t purpose = static_cast<uint64_t>(Purpose::kAccept);
    const double number = uniform(params.seed[block.slot], position, purpose);
    const float logit = Numbers<T>::to_float(target.logits[token]);
    return number * drafted < static_cast<double>(target.softmax.probability(logit, static_cast<int>(token)));
}

// How many drafts stand, for all threads: a warp looks at 32 at a time.
template <typename T>
__device__ inline int count_accepted(const AcceptDraftsParams& params, const VerifiedBlock& block, float temperature) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int first = 0; first < block.num_drafts; first += 32) {
        const int index = first + lane;
        const bool fails = index < block.num_drafts && !stands<T>(params, block, index, temperature);
        const uint32_t failed = __ballot_sync(0xffffffffu, fails);
        if (failed != 0) {
            return first + __ffs(static_cast<int>(failed)) - 1;
        }
    }
    return block.num_drafts;
}

// The token after the accepted drafts, for all threads.
template <typename T>
__device__ inline int32_t next_token(const AcceptDraftsParams& params, const VerifiedBlock& block, int num_accepted,
                                     float temperature, DrawShared<kAcceptThreads>& shared) {
    const int row = block.first_logit + num_accepted;
    if (temperature == 0) {
        return params.row_token[row];
    }
    const int position = block.first_position + num_accepted;
    const double number = uniform(params.seed[block.slot], position, static_cast<uint64_t>(Purpose::kTarget));
    const TargetRow<T> target(params, row, temperature);
    if (num_accepted < block.num_drafts) {
        const int64_t draft = static_cast<int64_t>(block.slot) * params.draft_len + num_accepted;
        const Residual<T> residual{target, params.draft_probs + draft * params.vocab_size};
        const double sum = sum_weights<kAcceptThreads>(residual, params.vocab_size, shared);
        if (sum > 0) {  // rounding can leave nothing of a residual of equal distributions
            return find_token<kAcceptThreads>(residual, params.vocab_size, number * sum, shared);
        }
    }
    const double sum = sum_weights<kAcceptThreads>(target, params.vocab_size, shared);
    return find_token<kAcceptThreads>(target, params.vocab_size, number * sum, shared);
}

// By one thread.
__device__ inline void commit(const AcceptDraftsParams& params, const VerifiedBlock& block, int num_accepted) {
    const int slot = block.slot, before = block.first_position - 1;
    const int num_tokens = min(num_accepted + 1, params.end_len[slot] - before);
    const int kv_len = before + num_tokens;
    const int32_t* split = params.budget_split + static_cast<int64_t>(kv_len) * kNumBudgetParts;
    const int recent_start = max(0, block.block_start - split[kRecent]);
    params.kv_len[slot] = kv_len;
    params.recent_start[slot] = recent_start;
    const int num_staying = params.num_staying[slot] = min(split[kStaying], recent_start);
    const int num_moving = params.num_moving[slot] = min(split[kMoving], recent_start);
    const int lookups = params.lookup_budget[slot] = min(split[kLookups], recent_start);
    if (params.score_rows[slot] > 0 && params.max_scored > 0) {
        params.scored_slot[params.score_index[slot]] = slot;
        params.moving_shift[params.score_index[slot]] = kv_len - block.block_start;
    }
    int32_t* results = params.results + static_cast<int64_t>(slot) * (kNumResultFields + params.draft_len + 1);
    results[kNumTokens] = num_tokens;
    results[kNumDrafts] = block.num_drafts;
    results[kNumAccepted] = num_accepted;
    results[kKvLen] = kv_len;
    results[kRecentStart] = recent_start;
    results[kNumChosen] = min(num_staying + num_moving + lookups, recent_start);
}

template <typename T>
__device__ inline void end_block(const AcceptDraftsParams& params, int slot, DrawShared<kAcceptThreads>& shared) {
    const VerifiedBlock block = find_block(params, slot);
    // Winners of a race are accepted as most likely tokens are.
    const float temperature = params.coupling == Coupling::kGumbel ? 0 : params.temperature[slot];
    const int num_accepted = count_accepted<T>(params, block, temperature);
    const int32_t token = next_token<T>(params, block, num_accepted, temperature, shared);
    __syncthreads();  // all have read what one changes
    if (threadIdx.x == 0) {
        tokens_of(params, slot)[block.first_position + num_accepted] = token;
        commit(params, block, num_accepted);
    }
    __syncthreads();
    const int width = kNumResultFields + params.draft_len + 1;
    int32_t* told = params.results + static_cast<int64_t>(slot) * width + kNumResultFields;
    for (int index = threadIdx.x; index <= num_accepted; index += kAcceptThreads) {
        told[index] = static_cast<int32_t>(tokens_of(params, slot)[block.first_position + index]);
    }
}

template <typename T>
__global__ void __launch_bounds__(kAcceptThreads)
accept_drafts_kernel(AcceptDraftsParams params) {
    __shared__ DrawShared<kAcceptThreads> shared;
    const int slot = static_cast<int>(blockIdx.x);
    const auto phase = static_cast<Phase>(params.phase[slot]);
    if (phase == Phase::kIdle || phase == Phase::kDraft) {
        return;
    }
    if (params.block_rows[slot] > 0) {
        end_block<T>(params, slot, shared);
    } else if (threadIdx.x == 0) {  // a chunk that ends before its prompt does
        params.kv_len[slot] += params.row_start[slot + 1] - params.row_start[slot];
    }
}

}  // namespace sparsespec
