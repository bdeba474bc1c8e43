// PillarAttention: QK-norm, RoPE, KV append and ragged paged attention with a phase per slot; names and shapes are
// those of inputs.py and docs/plugins.md.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "common/dtype.h"
#include "common/status.h"
#include "pillar_plan/params.h"

namespace sparsespec {

// What scored rows leave behind; ScorePlanes in inputs.py.
enum class ScorePlanes : int32_t { kNone, kMean, kDiagonal, kRows };

// What scores are normalised by. kDraft: a verified row takes the log-sum-exp that the draft of the same row left in
// draft_lse, the last row its neighbour's; rows without a draft are scored exactly, and so are all with kExact.
enum class ScoreNormalizer : int32_t { kDraft, kExact };

// Most rows that one slot may verify or score in a step.
constexpr int32_t kMaxBlockRows = 17;
// Most query heads that may share a KV head.
constexpr int32_t kMaxGroup = 16;

struct PillarAttentionParams {
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t head_dim;   // 64, 96 or 128
    int32_t page_size;  // 16, 32 or 64
    float rms_norm_eps;
    ScorePlanes score_planes;
    ScoreNormalizer score_normalizer;
    Dtype dtype;        // of qkv, output and the norms: kFloat16 or kBfloat16
    Dtype kv_dtype;     // of kv_pool: dtype or kFloat8E4m3
    Dtype score_dtype;  // of scores: kFloat32 or kFloat16

    int32_t max_pages;
    int32_t max_budget;
    int32_t max_lookups;
    int32_t max_draft_len;
    int32_t num_planes;
    int32_t max_positions;

    StepLengths step;
    int32_t num_rows;
    int32_t num_pages;
    const void* qkv;             // [num_rows, (num_heads + 2 * num_kv_heads) * head_dim]
    const void* q_norm;          // [head_dim], or null for no QK-norm
    const void* k_norm;          // [head_dim], or null
    void* kv_pool;               // [num_pages, 2, num_kv_heads, page_size, head_dim]
    const float* kv_scale;       // [2, num_kv_heads]: keys, values; null for a pool of the model's type
    float* draft_lse;            // [max_batch_size, max_draft_len, num_heads]
    const int32_t* pillars;      // [max_batch_size, num_kv_heads, max_budget]
    const int32_t* score_index;  // [max_batch_size], or null without scores
    const int32_t* lookups;      // [max_batch_size, max_lookups]
    const int32_t* page_table;   // [max_batch_size, max_pages]
    const float* rope_table;     // [max_positions, head_dim]
    void* scores;                // [max_scored, num_planes, num_kv_heads, max_positions], or null
    int32_t* plan;               // PillarPlan's; its counters are back at 0 after the launch
    void* output;                // [num_rows, num_heads * head_dim]
    void* workspace;             // pillar_attention_workspace_size bytes
};

// Bytes for any step on any device.
size_t pillar_attention_workspace_size(int32_t num_heads, int32_t num_kv_heads, int32_t head_dim);

Status launch_pillar_attention(const PillarAttentionParams& params, cudaStream_t stream);

}  // namespace sparsespec
