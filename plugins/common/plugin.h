// TensorRT's IPluginV3 for any Op: the ceremony, written once.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>

#include "common/plugin_fields.h"
#include "common/plugin_op.h"
#include "common/status.h"

namespace sparsespec {

constexpr const char* kPluginVersion = "1";
constexpr const char* kPluginNamespace = "";

// Build and run time in one object; clones share the op and the fields. Every callback returns a StatusCode or
// kInternalError, and logs what was expected and what came.
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuildV2,
                     public nvinfer1::IPluginV3OneRuntime {
public:
    Plugin(const char* name, std::shared_ptr<const Op> op, std::shared_ptr<const FieldList> fields);

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    const char* getPluginName() const noexcept override { return name_; }
    const char* getPluginVersion() const noexcept override { return kPluginVersion; }
    const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

    // IPluginV3OneBuildV2
    int32_t getNbOutputs() const noexcept override;
    int32_t getAliasedInput(int32_t output_index) noexcept override;
    bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* in_out,
                                   int32_t num_inputs, int32_t num_outputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t num_outputs,
                               const nvinfer1::DataType* input_types, int32_t num_inputs) const noexcept override;
    int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                            const nvinfer1::DimsExprs* shape_inputs, int32_t num_shape_inputs,
                            nvinfer1::DimsExprs* outputs, int32_t num_outputs,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t num_inputs,
                            const nvinfer1::DynamicPluginTensorDesc* out, int32_t num_outputs) noexcept override;
    size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t num_inputs,
                            const nvinfer1::DynamicPluginTensorDesc* out, int32_t num_outputs) const noexcept override;

    // IPluginV3OneRuntime
    int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t num_inputs,
                          const nvinfer1::PluginTensorDesc* out, int32_t num_outputs) noexcept override;
    int32_t enqueue(const nvinfer1::PluginTensorDesc* input_desc, const nvinfer1::PluginTensorDesc* output_desc,
                    const void* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

private:
    const Signature& signature() const { return op_->signature(); }

    const char* name_;
    std::shared_ptr<const Op> op_;
    std::shared_ptr<const FieldList> fields_;
};

}  // namespace sparsespec
