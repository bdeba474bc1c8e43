// AddRmsNorm as a TensorRT plugin.
#include <string>

#include "add_rms_norm/params.h"
#include "common/plugin_creator.h"

namespace sparsespec {
namespace {

class AddRmsNorm final : public Op {
public:
    static constexpr const char* kName = "AddRmsNorm";

    explicit AddRmsNorm(FieldReader& fields)
        : hidden_size_(fields.vector_multiple("hidden_size", kMaxHiddenSize)),
          rms_norm_eps_(fields.positive("rms_norm_eps", 1e-6F)) {}

    Status launch(const Call& call, cudaStream_t stream) const override {
        AddRmsNormParams params{};
        params.num_rows = call.size(num_rows_);
        params.num_parts = call.size(num_parts_);
        params.hidden_size = hidden_size_;
        params.rms_norm_eps = rms_norm_eps_;
        params.dtype = call.dtype(delta_);
        params.hidden = call.update<void>(hidden_);
        params.delta = call.read<void>(delta_);
        params.weight = call.read<void>(weight_);
        params.normed = call.write<void>(normed_);
        return launch_add_rms_norm(params, stream);
    }

private:
    const int32_t hidden_size_;
    const float rms_norm_eps_;
    const Symbol num_rows_ = signature_.symbol("num_rows");
    const Symbol num_parts_ = signature_.symbol("num_parts");

    // In the order of the plugin's inputs, and of its outputs.
    const Output normed_ = signature_.output("normed", ElementType::kModel, {num_rows_, hidden_size_});
    const InOut hidden_ = signature_.in_out("hidden", ElementType::kModel, {num_rows_, hidden_size_});
    const Input delta_ = signature_.input("delta", ElementType::kModel, {num_parts_, num_rows_, hidden_size_});
    const Input weight_ = signature_.input("weight", ElementType::kModel, {hidden_size_});
};

}  // namespace

nvinfer1::IPluginCreatorInterface* add_rms_norm_creator() {
    static auto* const creator = new PluginCreator<AddRmsNorm>();
    return creator;
}

}  // namespace sparsespec
