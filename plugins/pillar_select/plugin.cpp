// PillarSelect as a TensorRT plugin.
#include "common/plugin_creator.h"
#include "pillar_select/params.h"

namespace sparsespec {
namespace {

class PillarSelect final : public Op {
public:
    static constexpr const char* kName = "PillarSelect";

    explicit PillarSelect(FieldReader& /*fields*/) {}

    Status launch(const Call& call, cudaStream_t stream) const override {
        PillarSelectParams params{};
        params.num_layers = call.size(num_layers_);
        params.max_batch_size = call.size(batch_);
        params.max_scored = call.size(max_scored_);
        params.num_scored = call.size(num_scored_);
        params.num_planes = call.size(num_planes_);
        params.num_kv_heads = call.size(num_kv_heads_);
        params.max_positions = call.size(max_positions_);
        params.max_budget = call.size(max_budget_);
        params.score_dtype = call.dtype(scores_);
        params.scores = call.read<void>(scores_);
        params.scored_slot = call.read<int32_t>(scored_slot_);
        params.moving_shift = call.read<int32_t>(moving_shift_);
        params.recent_start = call.read<int32_t>(recent_start_);
        params.num_staying = call.read<int32_t>(num_staying_);
        params.num_moving = call.read<int32_t>(num_moving_);
        params.pillars = call.update<int32_t>(pillars_);
        return launch_pillar_select(params, stream);
    }

private:
    const Symbol num_layers_ = signature_.symbol("num_layers", 0, kMaxSelectGrid);
    const Symbol batch_ = signature_.symbol("max_batch_size");
    const Symbol max_scored_ = signature_.symbol("max_scored");
    const Symbol num_scored_ = signature_.symbol("num_scored", 0, kMaxSelectGrid);
    const Symbol num_planes_ = signature_.symbol("num_planes", 1, 2);
    const Symbol num_kv_heads_ = signature_.symbol("num_kv_heads");
    const Symbol max_positions_ = signature_.symbol("max_positions");
    const Symbol max_budget_ = signature_.symbol("max_budget");

    // In the order of the plugin's inputs.
    const Input scores_ = signature_.input("scores", ElementType::kScore,
                                           {num_layers_, max_scored_, num_planes_, num_kv_heads_, max_positions_});
    const Input scored_slot_ = signature_.input("scored_slot", ElementType::kInt32, {num_scored_});
    const Input moving_shift_ = signature_.input("moving_shift", ElementType::kInt32, {num_scored_});
    const Input recent_start_ = signature_.input("recent_start", ElementType::kInt32, {batch_});
    const Input num_staying_ = signature_.input("num_staying", ElementType::kInt32, {batch_});
    const Input num_moving_ = signature_.input("num_moving", ElementType::kInt32, {batch_});
    const InOut pillars_ =
        signature_.in_out("pillars", ElementType::kInt32, {num_layers_, batch_, num_kv_heads_, max_budget_});
};

}  // namespace

nvinfer1::IPluginCreatorInterface* pillar_select_creator() {
    static auto* const creator = new PluginCreator<PillarSelect>();
    return creator;
}

}  // namespace sparsespec
