// StepRows: which token each row of a step is, whose logits are wanted, and what a draft's own token calls for.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/status.h"

namespace sparsespec {

// Most positions that a draft may look up; builder/build_config.py says the same.
constexpr int32_t kMaxStepLookups = 256;

struct StepRowsParams {
    int32_t max_batch_size;
    int32_t max_positions;  // of token_ids
    int32_t max_pages;
    int32_t max_lookups;
    int32_t max_grants;
    int32_t num_rows;    // of row_token: the step's, and padding
    int32_t num_logits;  // of logit_rows, likewise
    int32_t max_scored;

    const int32_t* row_start;      // [max_batch_size + 1]
    const int32_t* phase;          // [max_batch_size]
    const int32_t* draft_index;    // [max_batch_size]
    const int32_t* logit_start;    // [max_batch_size + 1] where the logits of each slot's last rows are
    const int32_t* num_grants;     // [1]
    const int32_t* grant_place;    // [max_grants] in the flattened page_table
    const int32_t* grant_page;     // [max_grants]
    const int32_t* kv_len;         // [max_batch_size]
    const int32_t* recent_start;   // [max_batch_size]
    const int32_t* lookup_budget;  // [max_batch_size]
    const int64_t* token_ids;      // [max_batch_size, max_positions]

    int32_t* page_table;      // [max_batch_size, max_pages]
    int32_t* lookups;         // [max_batch_size, max_lookups] after the longest matches first, then the most recent
    int32_t* num_lookups;     // [max_batch_size]
    int64_t* row_token;       // [num_rows]; 0 in padding
    int64_t* logit_rows;      // [num_logits] row of each logit; 0 in padding
    int32_t* logit_slot;      // [num_logits] -1 in padding
    int32_t* logit_position;  // [num_logits] position of the token that the logits decide; 0 in padding
    int32_t* scored_slot;     // [max_scored] nobody's from here on: -1
};

Status launch_step_rows(const StepRowsParams& params, cudaStream_t stream);

}  // namespace sparsespec
