// StepRows as a plugin.
#include "common/plugin_creator.h"
#include "step_rows/params.h"

namespace sparsespec {
namespace {

class StepRows final : public Op {
public:
    static constexpr const char* kName = "StepRows";

    explicit StepRows(FieldReader& /*fields*/) {}

    Status launch(const Call& call, cudaStream_t stream) const override {
        StepRowsParams params{};
        params.max_batch_size = call.size(batch_);
        params.max_positions = call.size(max_positions_);
        params.max_pages = call.size(max_pages_);
        params.max_lookups = call.size(max_lookups_);
        params.max_grants = call.size(max_grants_);
        params.num_rows = call.size(num_rows_);
        params.num_logits = call.size(num_logits_);
        params.max_scored = call.size(max_scored_);
        params.row_start = call.read<int32_t>(row_start_);
        params.phase = call.read<int32_t>(phase_);
        params.draft_index = call.read<int32_t>(draft_index_);
        params.logit_start = call.read<int32_t>(logit_start_);
        params.num_grants = call.read<int32_t>(num_grants_);
        params.grant_place = call.read<int32_t>(grant_place_);
        params.grant_page = call.read<int32_t>(grant_page_);
        params.kv_len = call.read<int32_t>(kv_len_);
        params.recent_start = call.read<int32_t>(recent_start_);
        params.lookup_budget = call.read<int32_t>(lookup_budget_);
        params.token_ids = call.read<int64_t>(token_ids_);
        params.page_table = call.update<int32_t>(page_table_);
        params.lookups = call.update<int32_t>(lookups_);
        params.num_lookups = call.update<int32_t>(num_lookups_);
        params.row_token = call.update<int64_t>(row_token_);
        params.logit_rows = call.update<int64_t>(logit_rows_);
        params.logit_slot = call.update<int32_t>(logit_slot_);
        params.logit_position = call.update<int32_t>(logit_position_);
        params.scored_slot = call.update<int32_t>(scored_slot_);
        return launch_step_rows(params, stream);
    }

private:
    const Symbol batch_ = signature_.symbol("max_batch_size", 1);
    const Symbol max_positions_ = signature_.symbol("max_positions", 1);
    const Symbol max_pages_ = signature_.symbol("max_pages");
    const Symbol max_lookups_ = signature_.symbol("max_lookups", 1, kMaxStepLookups);
    const Symbol max_grants_ = signature_.symbol("max_grants");
    const Symbol num_rows_ = signature_.symbol("num_rows");
    const Symbol num_logits_ = signature_.symbol("num_logits");
    const Symbol max_scored_ = signature_.symbol("max_scored");

    // In the order of the plugin's inputs.
    const Input row_start_ = signature_.input("row_start", ElementType::kInt32, {batch_ + 1});
    const Input phase_ = signature_.input("phase", ElementType::kInt32, {batch_});
    const Input draft_index_ = signature_.input("draft_index", ElementType::kInt32, {batch_});
    const Input logit_start_ = signature_.input("logit_start", ElementType::kInt32, {batch_ + 1});
    const Input num_grants_ = signature_.input("num_grants", ElementType::kInt32, {1});
    const Input grant_place_ = signature_.input("grant_place", ElementType::kInt32, {max_grants_});
    const Input grant_page_ = signature_.input("grant_page", ElementType::kInt32, {max_grants_});
    const Input kv_len_ = signature_.input("kv_len", ElementType::kInt32, {batch_});
    const Input recent_start_ = signature_.input("recent_start", ElementType::kInt32, {batch_});
    const Input lookup_budget_ = signature_.input("lookup_budget", ElementType::kInt32, {batch_});
    const Input token_ids_ = signature_.input("token_ids", ElementType::kInt64, {batch_, max_positions_});
    const InOut page_table_ = signature_.in_out("page_table", ElementType::kInt32, {batch_, max_pages_});
    const InOut lookups_ = signature_.in_out("lookups", ElementType::kInt32, {batch_, max_lookups_});
    const InOut num_lookups_ = signature_.in_out("num_lookups", ElementType::kInt32, {batch_});
    const InOut row_token_ = signature_.in_out("row_token", ElementType::kInt64, {num_rows_});
    const InOut logit_rows_ = signature_.in_out("logit_rows", ElementType::kInt64, {num_logits_});
    const InOut logit_slot_ = signature_.in_out("logit_slot", ElementType::kInt32, {num_logits_});
    const InOut logit_position_ = signature_.in_out("logit_position", ElementType::kInt32, {num_logits_});
    const InOut scored_slot_ = signature_.in_out("scored_slot", ElementType::kInt32, {max_scored_});
};

}  // namespace

nvinfer1::IPluginCreatorInterface* step_rows_creator() {
    static auto* const creator = new PluginCreator<StepRows>();
    return creator;
}

}  // namespace sparsespec
