// AcceptDrafts: which drafts of each verified block stand, the token after them, and the lengths that follow.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/coupling.h"
#include "common/dtype.h"
#include "common/status.h"

namespace sparsespec {

// Of budget_split: tokens per KV head that a draft reads in each way; runtime/device/drafter.py says the same.
enum BudgetPart : int32_t { kStaying = 0, kRecent = 1, kMoving = 2, kLookups = 3, kNumBudgetParts = 4 };

// Of results, before the tokens; runtime/device/torch_results.py says the same.
enum ResultField : int32_t {
    kNumTokens = 0,
    kNumDrafts = 1,
    kNumAccepted = 2,
    kKvLen = 3,
    kRecentStart = 4,
    kNumChosen = 5,
    kNumResultFields = 6
};

struct AcceptDraftsParams {
    int32_t max_batch_size;
    int32_t max_positions;  // of token_ids
    int32_t draft_len;
    int32_t num_logits;
    int32_t vocab_size;
    int32_t max_scored;
    Dtype logit_dtype;  // kFloat32, kFloat16 or kBfloat16
    Coupling coupling;

    const void* logits;            // [num_logits, vocab_size]
    const float* row_max;          // [num_logits] of SampleRows
    const float* row_sum;          // [num_logits]
    const int32_t* row_token;      // [num_logits]
    const float* row_cut_logit;    // [num_logits]
    const int32_t* row_cut_token;  // [num_logits]
    const float* draft_probs;      // [max_batch_size, draft_len, vocab_size]; null under kGumbel
    const int32_t* row_start;      // [max_batch_size + 1]
    const int32_t* phase;          // [max_batch_size]
    const int32_t* logit_start;    // [max_batch_size + 1]
    const int32_t* block_rows;     // [max_batch_size] rows of the block that ends in this step, 0 for none
    const int32_t* score_rows;     // [max_batch_size]
    const int32_t* score_index;    // [max_batch_size]
    const int32_t* num_drafts;     // [max_batch_size] drafts to verify, at most
    const float* temperature;      // [max_batch_size]
    const int64_t* seed;           // [max_batch_size]
    const int32_t* end_len;        // [max_batch_size] where kv_len stops
    const int32_t* budget_split;   // [max_lengths, kNumBudgetParts] by kv_len

    int64_t* token_ids;  // [max_batch_size, max_positions] the token after the accepted drafts is written
    int32_t* kv_len;     // [max_batch_size] and below
    int32_t* recent_start;
    int32_t* num_staying;
    int32_t* num_moving;
    int32_t* lookup_budget;
    int32_t* scored_slot;   // [max_scored] whose scores they are, where the block was scored
    int32_t* moving_shift;  // [max_scored] tokens by which the block moved on
    int32_t* results;  // [max_batch_size, kNumResultFields + draft_len + 1] fields, then tokens, where a block ends
};

Status launch_accept_drafts(const AcceptDraftsParams& params, cudaStream_t stream);

}  // namespace sparsespec
