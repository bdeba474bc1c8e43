// TensorRT's IPluginCreatorV3One for any Op.
#pragma once

#include <NvInferRuntime.h>

#include <memory>

#include "common/plugin.h"
#include "common/plugin_fields.h"
#include "common/plugin_log.h"

namespace sparsespec {

// OpType is an Op as plugin_op.h describes it.
template <typename OpType>
class PluginCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    PluginCreator() {
        FieldReader nothing;
        const OpType learned(nothing);
        field_names_ = nothing.take();
        field_names_->forget_values();
    }

    // Fields are the same in both phases. Null for fields that do not fit, which is logged.
    nvinfer1::IPluginV3* createPlugin(const char* /*name*/, const nvinfer1::PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase /*phase*/) noexcept override {
        nvinfer1::IPluginV3* plugin = nullptr;
        guarded(OpType::kName, [&] {
            FieldReader reader(fields);
            auto op = std::make_shared<const OpType>(reader);
            Status status = reader.finish();
            if (status.ok()) {
                plugin = new Plugin(OpType::kName, std::move(op), reader.take());
            }
            return status;
        });
        return plugin;
    }

    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return field_names_->collection(); }
    const char* getPluginName() const noexcept override { return OpType::kName; }
    const char* getPluginVersion() const noexcept override { return kPluginVersion; }
    const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

private:
    std::shared_ptr<FieldList> field_names_;
};

// One each, in the op's plugin.cpp; made on the first call, and never destroyed because TensorRT may use them until the
// process ends.
nvinfer1::IPluginCreatorInterface* pillar_plan_creator();
nvinfer1::IPluginCreatorInterface* pillar_attention_creator();
nvinfer1::IPluginCreatorInterface* pillar_select_creator();
nvinfer1::IPluginCreatorInterface* add_rms_norm_creator();
nvinfer1::IPluginCreatorInterface* silu_mul_creator();
nvinfer1::IPluginCreatorInterface* step_rows_creator();
nvinfer1::IPluginCreatorInterface* sample_rows_creator();
nvinfer1::IPluginCreatorInterface* accept_drafts_creator();

}  // namespace sparsespec
