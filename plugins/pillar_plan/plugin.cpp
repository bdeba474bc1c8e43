// PillarPlan as a TensorRT plugin.
#include "common/plugin_creator.h"
#include "common/plugin_step.h"
#include "pillar_plan/params.h"

namespace sparsespec {
namespace {

class PillarPlan final : public Op {
public:
    static constexpr const char* kName = "PillarPlan";

    explicit PillarPlan(FieldReader& fields) { read_heads(fields, constants_); }

    Status launch(const Call& call, cudaStream_t stream) const override {
        PillarPlanParams params = constants_;
        params.step = step_.read(call, num_lookups_);
        params.plan = call.write<int32_t>(plan_);
        return launch_pillar_plan(params, stream);
    }

private:
    PillarPlanParams constants_{};

    // In the order of the plugin's inputs.
    const Symbol batch_ = planned_batch(signature_);
    const StepTensors step_{signature_, batch_};
    const Input num_lookups_ = signature_.input("num_lookups", ElementType::kInt32, {batch_});

    const Output plan_ = signature_.output("plan", ElementType::kPlan, {batch_ + kPlanHead});
};

}  // namespace

nvinfer1::IPluginCreatorInterface* pillar_plan_creator() {
    static auto* const creator = new PluginCreator<PillarPlan>();
    return creator;
}

}  // namespace sparsespec
