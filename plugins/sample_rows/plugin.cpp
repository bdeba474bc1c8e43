// SampleRows as a plugin.
#include "common/plugin_creator.h"
#include "sample_rows/params.h"

namespace sparsespec {
namespace {

class SampleRows final : public Op {
public:
    static constexpr const char* kName = "SampleRows";

    explicit SampleRows(FieldReader& fields)
        : coupling_(fields.choice<Coupling>("coupling",
                                            {{"rejection", Coupling::kRejection}, {"gumbel", Coupling::kGumbel}})) {}

    Status launch(const Call& call, cudaStream_t stream) const override {
        SampleRowsParams params{};
        params.max_batch_size = call.size(batch_);
        params.max_positions = call.size(max_positions_);
        params.draft_len = call.size(draft_len_);
        params.num_logits = call.size(num_logits_);
        params.vocab_size = call.size(vocab_size_);
        params.logit_dtype = call.dtype(logits_);
        params.coupling = coupling_;
        params.logits = call.read<void>(logits_);
        params.logit_slot = call.read<int32_t>(logit_slot_);
        params.logit_position = call.read<int32_t>(logit_position_);
        params.phase = call.read<int32_t>(phase_);
        params.draft_index = call.read<int32_t>(draft_index_);
        params.temperature = call.read<float>(temperature_);
        params.min_p = call.read<float>(min_p_);
        params.top_k = call.read<int64_t>(top_k_);
        params.top_p = call.read<float>(top_p_);
        params.seed = call.read<int64_t>(seed_);
        params.draft_probs = call.update<float>(draft_probs_);
        params.token_ids = call.update<int64_t>(token_ids_);
        params.row_max = call.write<float>(row_max_);
        params.row_sum = call.write<float>(row_sum_);
        params.row_token = call.write<int32_t>(row_token_);
        params.row_cut_logit = call.write<float>(row_cut_logit_);
        params.row_cut_token = call.write<int32_t>(row_cut_token_);
        return launch_sample_rows(params, stream);
    }

private:
    const Coupling coupling_;
    const Symbol batch_ = signature_.symbol("max_batch_size", 1);
    const Symbol max_positions_ = signature_.symbol("max_positions", 1);
    const Symbol draft_len_ = signature_.symbol("draft_len");
    const Symbol num_logits_ = signature_.symbol("num_logits");
    const Symbol vocab_size_ = signature_.symbol("vocab_size", 1);

    // In the order of the plugin's inputs.
    const Input logits_ = signature_.input("logits", ElementType::kLogit, {num_logits_, vocab_size_});
    const Input logit_slot_ = signature_.input("logit_slot", ElementType::kInt32, {num_logits_});
    const Input logit_position_ = signature_.input("logit_position", ElementType::kInt32, {num_logits_});
    const Input phase_ = signature_.input("phase", ElementType::kInt32, {batch_});
    const Input draft_index_ = signature_.input("draft_index", ElementType::kInt32, {batch_});
    const Input temperature_ = signature_.input("temperature", ElementType::kFloat32, {batch_});
    const Input min_p_ = signature_.input("min_p", ElementType::kFloat32, {batch_});
    const Input top_k_ = signature_.input("top_k", ElementType::kInt64, {batch_});
    const Input top_p_ = signature_.input("top_p", ElementType::kFloat32, {batch_});
    const Input seed_ = signature_.input("seed", ElementType::kInt64, {batch_});
    const InOut draft_probs_ =
        coupling_ == Coupling::kGumbel
            ? InOut{}
            : signature_.in_out("draft_probs", ElementType::kProbability, {batch_, draft_len_, vocab_size_});
    const InOut token_ids_ = signature_.in_out("token_ids", ElementType::kInt64, {batch_, max_positions_});
    const Output row_max_ = signature_.output("row_max", ElementType::kFloat32, {num_logits_});
    const Output row_sum_ = signature_.output("row_sum", ElementType::kFloat32, {num_logits_});
    const Output row_token_ = signature_.output("row_token", ElementType::kInt32, {num_logits_});
    const Output row_cut_logit_ = signature_.output("row_cut_logit", ElementType::kFloat32, {num_logits_});
    const Output row_cut_token_ = signature_.output("row_cut_token", ElementType::kInt32, {num_logits_});
};

}  // namespace

nvinfer1::IPluginCreatorInterface* sample_rows_creator() {
    static auto* const creator = new PluginCreator<SampleRows>();
    return creator;
}

}  // namespace sparsespec
