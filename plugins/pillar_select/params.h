// PillarSelect: scores to the sorted positions that the coming drafts read, for all layers and scored slots at once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/dtype.h"
#include "common/status.h"

namespace sparsespec {

// Most layers, and most scored slots of a step: dimensions y and z of the grid.
constexpr int32_t kMaxSelectGrid = 65535;

struct PillarSelectParams {
    int32_t num_layers;
    int32_t max_batch_size;
    int32_t max_scored;
    int32_t num_scored;  // places of `scores` that are looked at, from the first on
    int32_t num_planes;  // 1: pillars that stay; 2: also those that move
    int32_t num_kv_heads;
    int32_t max_positions;
    int32_t max_budget;
    Dtype score_dtype;  // kFloat32 or kFloat16

    const void* scores;           // [num_layers, max_scored, num_planes, num_kv_heads, max_positions]
    const int32_t* scored_slot;   // [num_scored] whose scores they are; -1 for nobody's
    const int32_t* moving_shift;  // [num_scored] position p moves on from where plane 1 has p - moving_shift
    const int32_t* recent_start;  // [max_batch_size]
    const int32_t* num_staying;   // [max_batch_size]
    const int32_t* num_moving;    // [max_batch_size]
    int32_t* pillars;             // [num_layers, max_batch_size, num_kv_heads, max_budget]
};

Status launch_pillar_select(const PillarSelectParams& params, cudaStream_t stream);

}  // namespace sparsespec
