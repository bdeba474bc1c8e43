// SampleRows and AcceptDrafts on the CPU, thread by thread: what test_step_kernels.py runs.
#include "block_on_host.h"
// The kernels, after what stands in for the GPU.
#include "accept_drafts/kernel.cuh"
#include "sample_rows/kernel.cuh"

using namespace sparsespec;

namespace {

template <typename T>
void sample_all(const SampleRowsParams& params) {
    for (int row = 0; row < params.num_logits; ++row) {
        on_host::run_block(kSampleThreads, row, [&] { sample_rows_kernel<T>(params); });
    }
}

template <typename T>
void accept_all(const AcceptDraftsParams& params) {
    for (int slot = 0; slot < params.max_batch_size; ++slot) {
        on_host::run_block(kAcceptThreads, slot, [&] { accept_drafts_kernel<T>(params); });
    }
}

// Takes pointers one by one, in the order of the plugin's tensors.
struct Tensors {
    void* const* next;

    template <typename T>
    void to(T*& pointer) {
        pointer = static_cast<T*>(*next++);
    }
};

}  // namespace

extern "C" {

// sizes: of SampleRowsParams, in its order. tensors: the plugin's inputs, then its outputs that are no inputs.
void sample_rows(const int32_t* sizes, void* const* tensors) {
    SampleRowsParams params{};
    std::memcpy(&params, sizes, 7 * sizeof(int32_t));
    Tensors take{tensors};
    take.to(params.logits);
    take.to(params.logit_slot);
    take.to(params.logit_position);
    take.to(params.phase);
    take.to(params.draft_index);
    take.to(params.temperature);
    take.to(params.min_p);
    take.to(params.top_k);
    take.to(params.top_p);
    take.to(params.seed);
    if (params.coupling == Coupling::kRejection) {
        take.to(params.draft_probs);
    }
    take.to(params.token_ids);
    take.to(params.row_max);
    take.to(params.row_sum);
    take.to(params.row_token);
    take.to(params.row_cut_logit);
    take.to(params.row_cut_token);
    switch (params.logit_dtype) {
        case Dtype::kFloat16:
            return sample_all<__half>(params);
        case Dtype::kBfloat16:
            return sample_all<__nv_bfloat16>(params);
        default:
            return sample_all<float>(params);
    }
}

// As sample_rows, of AcceptDrafts.
void accept_drafts(const int32_t* sizes, void* const* tensors) {
    AcceptDraftsParams params{};
    std::memcpy(&params, sizes, 8 * sizeof(int32_t));
    Tensors take{tensors};
    take.to(params.logits);
    take.to(params.row_max);
    take.to(params.row_sum);
    take.to(params.row_token);
    take.to(params.row_cut_logit);
    take.to(params.row_cut_token);
    if (params.coupling == Coupling::kRejection) {
        take.to(params.draft_probs);
    }
    take.to(params.row_start);
    take.to(params.phase);
    take.to(params.logit_start);
    take.to(params.block_rows);
    take.to(params.score_rows);
    take.to(params.score_index);
    take.to(params.num_drafts);
    take.to(params.temperature);
    take.to(params.seed);
    take.to(params.end_len);
    take.to(params.budget_split);
    take.to(params.token_ids);
    take.to(params.kv_len);
    take.to(params.recent_start);
    take.to(params.num_staying);
    take.to(params.num_moving);
    take.to(params.lookup_budget);
    take.to(params.scored_slot);
    take.to(params.moving_shift);
    take.to(params.results);
    switch (params.logit_dtype) {
        case Dtype::kFloat16:
            return accept_all<__half>(params);
        case Dtype::kBfloat16:
            return accept_all<__nv_bfloat16>(params);
        default:
            return accept_all<float>(params);
    }
}

}  // extern "C"
