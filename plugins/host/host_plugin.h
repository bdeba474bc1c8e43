// A plugin and its capabilities, and what is asked of it with the host's own types.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "host/plugin_host.h"

struct SparsespecPlugin {
    // The host destroys the plugin.
    std::unique_ptr<nvinfer1::IPluginV3> plugin;
    nvinfer1::IPluginV3OneBuild* build;  // null where a plugin of the runtime phase has none
    nvinfer1::IPluginV3OneRuntime* runtime;
    std::string identity;
};

struct SparsespecLaunch {
    nvinfer1::IPluginV3OneRuntime* runtime;
    std::vector<nvinfer1::PluginTensorDesc> inputs;
    std::vector<nvinfer1::PluginTensorDesc> outputs;
    int64_t workspace_size;  // bytes that an enqueue needs
};

namespace sparsespec::host {

// Takes over a plugin that somebody answered with; throws if it is null or cannot run.
std::unique_ptr<SparsespecPlugin> adopt(nvinfer1::IPluginV3* plugin, const char* answered);

// Throws for a null pointer.
SparsespecPlugin& plugin_at(SparsespecPlugin* plugin);

// Its build capability; throws if it has none.
nvinfer1::IPluginV3OneBuild& builder_at(SparsespecPlugin* plugin);

// -1 as well if the plugin knows nothing of aliases.
int32_t aliased_input(nvinfer1::IPluginV3OneBuild& build, int32_t output);

// Needs no workspace as yet.
SparsespecLaunch describe_launch(SparsespecPlugin& plugin, const SparsespecTensors* tensors);

// Inputs, then outputs, as the build phase describes them.
std::vector<nvinfer1::DynamicPluginTensorDesc> describe_dynamic(const SparsespecTensors* tensors);

int32_t output_shapes(nvinfer1::IPluginV3OneBuild& build, SparsespecTensor* tensors, int32_t num_inputs,
                      int32_t num_outputs, bool symbolic);

// How many fields there are; copies the first `capacity` of them.
int32_t copy_fields(const nvinfer1::PluginFieldCollection* from, SparsespecField* fields, int32_t capacity);

}  // namespace sparsespec::host
