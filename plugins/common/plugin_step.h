// What PillarPlan and PillarAttention have in common: head counts, and the lengths of a step.
#pragma once

#include "common/plugin_fields.h"
#include "common/plugin_op.h"
#include "pillar_attention/params.h"
#include "pillar_plan/params.h"

namespace sparsespec {

// Reads num_heads, num_kv_heads and head_dim into PillarPlanParams or PillarAttentionParams.
template <typename Params>
void read_heads(FieldReader& fields, Params& params) {
    constexpr Range kHeads = {1, 1024};
    params.num_heads = fields.required("num_heads", kHeads);
    params.num_kv_heads = fields.required("num_kv_heads", kHeads);
    params.head_dim = fields.required("head_dim", {64, 96, 128});
    const bool divides = params.num_heads % params.num_kv_heads == 0;
    fields.require(divides && params.num_heads / params.num_kv_heads <= kMaxGroup,
                   "field num_heads: expected a multiple of num_kv_heads = " + std::to_string(params.num_kv_heads) +
                       ", at most " + std::to_string(kMaxGroup) + " times it, got " + std::to_string(params.num_heads));
}

inline Symbol planned_batch(Signature& signature) {
    return signature.symbol("max_batch_size", 1, kMaxPlannedBatch);
}

// The step's tensors up to num_moving; both plugins have them in this order.
class StepTensors {
public:
    StepTensors(Signature& signature, Symbol batch)
        : batch_(batch),
          row_start_(signature.input("row_start", ElementType::kInt32, {batch + 1})),
          phase_(signature.input("phase", ElementType::kInt32, {batch})),
          draft_index_(signature.input("draft_index", ElementType::kInt32, {batch})),
          score_rows_(signature.input("score_rows", ElementType::kInt32, {batch})),
          kv_len_(signature.input("kv_len", ElementType::kInt32, {batch})),
          recent_start_(signature.input("recent_start", ElementType::kInt32, {batch})),
          num_staying_(signature.input("num_staying", ElementType::kInt32, {batch})),
          num_moving_(signature.input("num_moving", ElementType::kInt32, {batch})) {}

    StepLengths read(const Call& call, Input num_lookups) const {
        return {call.size(batch_),
                call.read<int32_t>(row_start_),
                call.read<int32_t>(phase_),
                call.read<int32_t>(draft_index_),
                call.read<int32_t>(score_rows_),
                call.read<int32_t>(kv_len_),
                call.read<int32_t>(recent_start_),
                call.read<int32_t>(num_staying_),
                call.read<int32_t>(num_moving_),
                call.read<int32_t>(num_lookups)};
    }

private:
    Symbol batch_;
    Input row_start_, phase_, draft_index_, score_rows_, kv_len_, recent_start_, num_staying_, num_moving_;
};

}  // namespace sparsespec
