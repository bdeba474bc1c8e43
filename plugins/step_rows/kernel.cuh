// A block for each slot, and one more for what belongs to no slot.
#pragma once

#include <cstdint>

#include "common/block_scan.cuh"
#include "common/phase.h"
#include "step_rows/params.h"

namespace sparsespec {

constexpr int kStepRowsThreads = 256;

// Longer matches are not told apart.
constexpr int kMaxMatch = 4;
constexpr int kTokensPerThread = 8;
constexpr int kTokensPerPass = kStepRowsThreads * kTokensPerThread;

// How many of a thread's places match 1, 2, 3 and kMaxMatch tokens: 16 bits each.
struct MatchCounts {
    uint64_t packed = 0;

    __device__ void add(int matched) { packed += 1ull << (16 * (matched - 1)); }
    __device__ int of(int matched) const { return static_cast<int>(packed >> (16 * (matched - 1)) & 0xffff); }
};

// How many tokens, up to kMaxMatch, agree going back from `place` and from the newest.
__device__ inline int match_length(const int64_t* tokens, int place, int newest) {
    int matched = 0;
    while (matched < kMaxMatch && matched <= place && tokens[place - matched] == tokens[newest - matched]) {
        ++matched;
    }
    return matched;
}

struct LookupShared {
    int64_t warp_sums[2][kStepRowsThreads / 32];
    int found[kMaxMatch];  // places of each match length in the passes so far
    int32_t best[kMaxMatch][kMaxStepLookups];
};

// Positions after earlier occurrences of tokens[newest], all below `before`: the most recent `most` of each match
// length. Passes go from the newest tokens back; within a pass thread 0 has the newest ones.
__device__ inline void find_matches(const int64_t* tokens, int newest, int before, int most, LookupShared& shared) {
    const int num_places = min(before - 1, newest);  // places 0 to num_places - 1 have something known after them
    const int64_t wanted = tokens[newest];
    for (int pass = 0; pass * kTokensPerPass < num_places; ++pass) {
        const int last = num_places - 1 - pass * kTokensPerPass - static_cast<int>(threadIdx.x) * kTokensPerThread;
        int8_t matched[kTokensPerThread];
        MatchCounts counts;
#pragma unroll
        for (int index = 0; index < kTokensPerThread; ++index) {
            const int place = last - index;
            matched[index] = place >= 0 && tokens[place] == wanted ? match_length(tokens, place, newest) : 0;
            if (matched[index] > 0) {
                counts.add(matched[index]);
            }
        }
        const InclusiveSum sum =
            block_inclusive_sum<kStepRowsThreads>(static_cast<int64_t>(counts.packed), shared.warp_sums[pass % 2]);
        MatchCounts before_this{static_cast<uint64_t>(sum.end) - counts.packed};
#pragma unroll
        for (int index = 0; index < kTokensPerThread; ++index) {
            const int length = matched[index];
            if (length > 0) {
                const int rank = shared.found[length - 1] + before_this.of(length);
                before_this.add(length);
                if (rank < most) {
                    shared.best[length - 1][rank] = last - index + 1;
                }
            }
        }
        __syncthreads();
        if (threadIdx.x < kMaxMatch) {
            const MatchCounts total{static_cast<uint64_t>(sum.total)};
            const int length = static_cast<int>(threadIdx.x);
            shared.found[length] = min(most, shared.found[length] + total.of(length + 1));
        }
        __syncthreads();
    }
}

__device__ inline void look_up(const StepRowsParams& params, int slot, LookupShared& shared) {
    const int most = min(params.lookup_budget[slot], params.max_lookups);
    if (threadIdx.x < kMaxMatch) {
        shared.found[threadIdx.x] = 0;
    }
    __syncthreads();
    const int64_t* tokens = params.token_ids + static_cast<int64_t>(slot) * params.max_positions;
    const int newest = params.kv_len[slot] + params.draft_index[slot];
    if (most > 0) {
        find_matches(tokens, newest, params.recent_start[slot], most, shared);
    }
    int before = 0;
    for (int length = kMaxMatch; length >= 1; --length) {
        const int count = min(shared.found[length - 1], most - before);
        for (int index = threadIdx.x; index < count; index += kStepRowsThreads) {
            params.lookups[slot * params.max_lookups + before + index] = shared.best[length - 1][index];
        }
        before += max(0, count);
    }
    if (threadIdx.x == 0) {
        params.num_lookups[slot] = before;
    }
}

__device__ inline void place_rows(const StepRowsParams& params, int slot) {
    const int first = params.row_start[slot], num_rows = params.row_start[slot + 1] - first;
    const int start = params.kv_len[slot] + params.draft_index[slot];
    const int64_t* tokens = params.token_ids + static_cast<int64_t>(slot) * params.max_positions + start;
    for (int row = threadIdx.x; row < num_rows; row += kStepRowsThreads) {
        params.row_token[first + row] = tokens[row];
    }
    const int logit = params.logit_start[slot], num_logits = params.logit_start[slot + 1] - logit;
    for (int index = threadIdx.x; index < num_logits; index += kStepRowsThreads) {
        const int row = num_rows - num_logits + index;
        params.logit_rows[logit + index] = first + row;
        params.logit_slot[logit + index] = slot;
        params.logit_position[logit + index] = start + row + 1;
    }
}

// What the step has no use for, and what is new in the page table.
__device__ inline void fill_the_rest(const StepRowsParams& params) {
    for (int row = params.row_start[params.max_batch_size] + threadIdx.x; row < params.num_rows;
         row += kStepRowsThreads) {
        params.row_token[row] = 0;
    }
    for (int logit = params.logit_start[params.max_batch_size] + threadIdx.x; logit < params.num_logits;
         logit += kStepRowsThreads) {
        params.logit_rows[logit] = 0;
        params.logit_slot[logit] = -1;
        params.logit_position[logit] = 0;
    }
    for (int index = threadIdx.x; index < params.max_scored; index += kStepRowsThreads) {
        params.scored_slot[index] = -1;
    }
    for (int grant = threadIdx.x; grant < params.num_grants[0]; grant += kStepRowsThreads) {
        params.page_table[params.grant_place[grant]] = params.grant_page[grant];
    }
}

__global__ void __launch_bounds__(kStepRowsThreads)
step_rows_kernel(StepRowsParams params) {
    __shared__ LookupShared shared;
    const int slot = static_cast<int>(blockIdx.x);
    if (slot == params.max_batch_size) {
        fill_the_rest(params);
        return;
    }
    place_rows(params, slot);
    if (params.phase[slot] == static_cast<int32_t>(Phase::kDraft) && params.max_lookups > 0) {
        look_up(params, slot, shared);
    }
}

}  // namespace sparsespec
