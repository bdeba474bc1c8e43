// AcceptDrafts as a plugin.
#include "accept_drafts/params.h"
#include "common/plugin_creator.h"

namespace sparsespec {
namespace {

class AcceptDrafts final : public Op {
public:
    static constexpr const char* kName = "AcceptDrafts";

    explicit AcceptDrafts(FieldReader& fields)
        : coupling_(fields.choice<Coupling>("coupling",
                                            {{"rejection", Coupling::kRejection}, {"gumbel", Coupling::kGumbel}})) {}

    Status launch(const Call& call, cudaStream_t stream) const override {
        AcceptDraftsParams params{};
        read_sizes(call, params);
        params.logits = call.read<void>(logits_);
        params.row_max = call.read<float>(row_max_);
        params.row_sum = call.read<float>(row_sum_);
        params.row_token = call.read<int32_t>(row_token_);
        params.row_cut_logit = call.read<float>(row_cut_logit_);
        params.row_cut_token = call.read<int32_t>(row_cut_token_);
        params.draft_probs = call.read<float>(draft_probs_);
        params.row_start = call.read<int32_t>(row_start_);
        params.phase = call.read<int32_t>(phase_);
        params.logit_start = call.read<int32_t>(logit_start_);
        params.block_rows = call.read<int32_t>(block_rows_);
        params.score_rows = call.read<int32_t>(score_rows_);
        params.score_index = call.read<int32_t>(score_index_);
        params.num_drafts = call.read<int32_t>(num_drafts_);
        params.temperature = call.read<float>(temperature_);
        params.seed = call.read<int64_t>(seed_);
        params.end_len = call.read<int32_t>(end_len_);
        params.budget_split = call.read<int32_t>(budget_split_);
        params.token_ids = call.update<int64_t>(token_ids_);
        params.kv_len = call.update<int32_t>(kv_len_);
        params.recent_start = call.update<int32_t>(recent_start_);
        params.num_staying = call.update<int32_t>(num_staying_);
        params.num_moving = call.update<int32_t>(num_moving_);
        params.lookup_budget = call.update<int32_t>(lookup_budget_);
        params.scored_slot = call.update<int32_t>(scored_slot_);
        params.moving_shift = call.update<int32_t>(moving_shift_);
        params.results = call.update<int32_t>(results_);
        return launch_accept_drafts(params, stream);
    }

private:
    void read_sizes(const Call& call, AcceptDraftsParams& params) const {
        params.max_batch_size = call.size(batch_);
        params.max_positions = call.size(max_positions_);
        params.draft_len = call.size(draft_len_);
        params.num_logits = call.size(num_logits_);
        params.vocab_size = call.size(vocab_size_);
        params.max_scored = call.size(max_scored_);
        params.logit_dtype = call.dtype(logits_);
        params.coupling = coupling_;
    }

    const Coupling coupling_;
    const Symbol batch_ = signature_.symbol("max_batch_size", 1);
    const Symbol max_positions_ = signature_.symbol("max_positions", 1);
    const Symbol max_lengths_ = signature_.symbol("max_lengths", 1);
    const Symbol draft_len_ = signature_.symbol("draft_len");
    const Symbol num_logits_ = signature_.symbol("num_logits");
    const Symbol vocab_size_ = signature_.symbol("vocab_size", 1);
    const Symbol max_scored_ = signature_.symbol("max_scored");

    // In the order of the plugin's inputs.
    const Input logits_ = signature_.input("logits", ElementType::kLogit, {num_logits_, vocab_size_});
    const Input row_max_ = signature_.input("row_max", ElementType::kFloat32, {num_logits_});
    const Input row_sum_ = signature_.input("row_sum", ElementType::kFloat32, {num_logits_});
    const Input row_token_ = signature_.input("row_token", ElementType::kInt32, {num_logits_});
    const Input row_cut_logit_ = signature_.input("row_cut_logit", ElementType::kFloat32, {num_logits_});
    const Input row_cut_token_ = signature_.input("row_cut_token", ElementType::kInt32, {num_logits_});
    const Input draft_probs_ =
        coupling_ == Coupling::kGumbel
            ? Input{}
            : signature_.input("draft_probs", ElementType::kProbability, {batch_, draft_len_, vocab_size_});
    const Input row_start_ = signature_.input("row_start", ElementType::kInt32, {batch_ + 1});
    const Input phase_ = signature_.input("phase", ElementType::kInt32, {batch_});
    const Input logit_start_ = signature_.input("logit_start", ElementType::kInt32, {batch_ + 1});
    const Input block_rows_ = signature_.input("block_rows", ElementType::kInt32, {batch_});
    const Input score_rows_ = signature_.input("score_rows", ElementType::kInt32, {batch_});
    const Input score_index_ = signature_.input("score_index", ElementType::kInt32, {batch_});
    const Input num_drafts_ = signature_.input("num_drafts", ElementType::kInt32, {batch_});
    const Input temperature_ = signature_.input("temperature", ElementType::kFloat32, {batch_});
    const Input seed_ = signature_.input("seed", ElementType::kInt64, {batch_});
    const Input end_len_ = signature_.input("end_len", ElementType::kInt32, {batch_});
    const Input budget_split_ =
        signature_.input("budget_split", ElementType::kInt32, {max_lengths_, int64_t{kNumBudgetParts}});
    const InOut token_ids_ = signature_.in_out("token_ids", ElementType::kInt64, {batch_, max_positions_});
    const InOut kv_len_ = signature_.in_out("kv_len", ElementType::kInt32, {batch_});
    const InOut recent_start_ = signature_.in_out("recent_start", ElementType::kInt32, {batch_});
    const InOut num_staying_ = signature_.in_out("num_staying", ElementType::kInt32, {batch_});
    const InOut num_moving_ = signature_.in_out("num_moving", ElementType::kInt32, {batch_});
    const InOut lookup_budget_ = signature_.in_out("lookup_budget", ElementType::kInt32, {batch_});
    const InOut scored_slot_ = signature_.in_out("scored_slot", ElementType::kInt32, {max_scored_});
    const InOut moving_shift_ = signature_.in_out("moving_shift", ElementType::kInt32, {max_scored_});
    // One number more than there are fields and drafts: the token after them.
    const InOut results_ =
        signature_.in_out("results", ElementType::kInt32, {batch_, draft_len_ + (kNumResultFields + 1)});
};

}  // namespace

nvinfer1::IPluginCreatorInterface* accept_drafts_creator() {
    static auto* const creator = new PluginCreator<AcceptDrafts>();
    return creator;
}

}  // namespace sparsespec
