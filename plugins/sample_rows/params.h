// SampleRows: each row of logits summarised, and the drafts drawn from theirs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/coupling.h"
#include "common/dtype.h"
#include "common/status.h"

namespace sparsespec {

struct SampleRowsParams {
    int32_t max_batch_size;
    int32_t max_positions;  // of token_ids
    int32_t draft_len;
    int32_t num_logits;
    int32_t vocab_size;
    Dtype logit_dtype;  // kFloat32, kFloat16 or kBfloat16
    Coupling coupling;

    const void* logits;             // [num_logits, vocab_size]
    const int32_t* logit_slot;      // [num_logits] -1 for nobody's
    const int32_t* logit_position;  // [num_logits] position of the token that the row decides
    const int32_t* phase;           // [max_batch_size]
    const int32_t* draft_index;     // [max_batch_size]
    const float* temperature;       // [max_batch_size] 0 for greedy
    const float* min_p;             // [max_batch_size] 0 for all
    const int64_t* top_k;           // [max_batch_size] 0 for all
    const float* top_p;             // [max_batch_size] 1 for all
    const int64_t* seed;            // [max_batch_size]

    float* draft_probs;  // [max_batch_size, draft_len, vocab_size] written for drafts that are not greedy; null under
                         // kGumbel
    int64_t* token_ids;  // [max_batch_size, max_positions] a draft is written at its position
    float* row_max;      // [num_logits] the largest logit
    float* row_sum;      // [num_logits] of exp((logit - row_max) / temperature) of what is kept; 1 for greedy rows and
                         // under kGumbel
    int32_t* row_token;  // [num_logits] the most likely token, the lowest of equals; under kGumbel the drawn one
    // Kept are the tokens of larger logits, and those of equal ones up to row_cut_token.
    float* row_cut_logit;    // [num_logits] -inf without cuts
    int32_t* row_cut_token;  // [num_logits]
};

Status launch_sample_rows(const SampleRowsParams& params, cudaStream_t stream);

}  // namespace sparsespec
