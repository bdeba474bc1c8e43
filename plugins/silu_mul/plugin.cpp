// SiluMul as a TensorRT plugin.
#include "common/plugin_creator.h"
#include "silu_mul/params.h"

namespace sparsespec {
namespace {

class SiluMul final : public Op {
public:
    static constexpr const char* kName = "SiluMul";

    explicit SiluMul(FieldReader& fields)
        : intermediate_size_(fields.vector_multiple("intermediate_size", kMaxIntermediateSize)) {}

    Status launch(const Call& call, cudaStream_t stream) const override {
        SiluMulParams params{};
        params.num_rows = call.size(num_rows_);
        params.intermediate_size = intermediate_size_;
        params.dtype = call.dtype(gate_up_);
        params.gate_up = call.read<void>(gate_up_);
        params.output = call.write<void>(output_);
        return launch_silu_mul(params, stream);
    }

private:
    const int32_t intermediate_size_;
    const Symbol num_rows_ = signature_.symbol("num_rows");

    const Input gate_up_ = signature_.input("gate_up", ElementType::kModel, {num_rows_, 2 * intermediate_size_});
    const Output output_ = signature_.output("output", ElementType::kModel, {num_rows_, intermediate_size_});
};

}  // namespace

nvinfer1::IPluginCreatorInterface* silu_mul_creator() {
    static auto* const creator = new PluginCreator<SiluMul>();
    return creator;
}

}  // namespace sparsespec
