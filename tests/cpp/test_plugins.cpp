// Plugins for tests, exported as TensorRT wants them. AddOne is written as anybody writes one, without this project's
// glue, and works on the host's memory. Throwing has the glue, and a launch that throws.
#include <NvInferRuntime.h>

#include <array>
#include <cstring>
#include <stdexcept>

#include "common/plugin_creator.h"

namespace {

using namespace nvinfer1;  // NOLINT(google-build-using-namespace)

// What getOutputShapes answers where a size is a constant, so that a test sees whether it is.
constexpr int32_t kConstantSize = 77;

// y = x + 1 in fp32, by way of the workspace. Has a build capability in the build phase only, and of version 1: it
// knows nothing of aliases.
class AddOne final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
public:
    explicit AddOne(bool builds) : builds_(builds) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE:
                return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD:
                return builds_ ? static_cast<IPluginV3OneBuild*>(this) : nullptr;
            case PluginCapabilityType::kRUNTIME:
                return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    IPluginV3* clone() noexcept override { return new AddOne(builds_); }

    char const* getPluginName() const noexcept override { return "AddOne"; }
    char const* getPluginVersion() const noexcept override { return "7"; }
    char const* getPluginNamespace() const noexcept override { return "anybody"; }

    int32_t getNbOutputs() const noexcept override { return 1; }
    int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                            int32_t) noexcept override {
        return 0;
    }
    bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors, int32_t,
                                   int32_t) noexcept override {
        const bool is_last = position == 1;  // what lies beyond is not known yet
        return tensors[position].desc.type == DataType::kFLOAT &&
               (is_last || static_cast<int32_t>(tensors[position + 1].desc.type) == -1);
    }
    int32_t getOutputDataTypes(DataType* outputs, int32_t, DataType const* inputs, int32_t) const noexcept override {
        outputs[0] = inputs[0];
        return 0;
    }
    int32_t getOutputShapes(DimsExprs const* inputs, int32_t, DimsExprs const*, int32_t, DimsExprs* outputs, int32_t,
                            IExprBuilder&) noexcept override {
        outputs[0] = inputs[0];
        return inputs[0].d[0]->isConstant() ? kConstantSize : 0;
    }
    size_t getWorkspaceSize(DynamicPluginTensorDesc const* inputs, int32_t, DynamicPluginTensorDesc const*,
                            int32_t) const noexcept override {
        return static_cast<size_t>(inputs[0].desc.dims.d[0]) * sizeof(float);
    }

    int32_t onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) noexcept override {
        return 0;
    }
    int32_t enqueue(PluginTensorDesc const* descs, PluginTensorDesc const*, void const* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t) noexcept override {
        const int64_t size = descs[0].dims.d[0];
        std::memcpy(workspace, inputs[0], static_cast<size_t>(size) * sizeof(float));
        for (int64_t index = 0; index < size; ++index) {
            static_cast<float*>(outputs[0])[index] = static_cast<const float*>(workspace)[index] + 1;
        }
        return 0;
    }
    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
    PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &fields_; }

private:
    const bool builds_;
    const PluginFieldCollection fields_{0, nullptr};
};

class AddOneCreator final : public IPluginCreatorV3One {
public:
    IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const*, TensorRTPhase phase) noexcept override {
        return new AddOne(phase == TensorRTPhase::kBUILD);
    }
    PluginFieldCollection const* getFieldNames() noexcept override { return &fields_; }
    AsciiChar const* getPluginName() const noexcept override { return "AddOne"; }
    AsciiChar const* getPluginVersion() const noexcept override { return "7"; }
    AsciiChar const* getPluginNamespace() const noexcept override { return "anybody"; }

private:
    const PluginFieldCollection fields_{0, nullptr};
};

class Throwing final : public sparsespec::Op {
public:
    static constexpr const char* kName = "Throwing";

    explicit Throwing(sparsespec::FieldReader& /*fields*/) {}

    sparsespec::Status launch(const sparsespec::Call& /*call*/, cudaStream_t /*stream*/) const override {
        throw std::runtime_error("thrown in launch");
    }

private:
    const sparsespec::Symbol size_ = signature_.symbol("size");
    const sparsespec::Input input_ = signature_.input("x", sparsespec::ElementType::kFloat32, {size_});
    const sparsespec::Output output_ = signature_.output("y", sparsespec::ElementType::kFloat32, {size_});
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(ILoggerFinder* finder) {
    sparsespec::set_logger_finder(finder);
}

extern "C" __attribute__((visibility("default"))) IPluginCreatorInterface* const* getCreators(int32_t& num_creators) {
    static AddOneCreator add_one;
    static sparsespec::PluginCreator<Throwing> throwing;
    static const std::array<IPluginCreatorInterface*, 2> creators = {&add_one, &throwing};
    num_creators = static_cast<int32_t>(creators.size());
    return creators.data();
}
