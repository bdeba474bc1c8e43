#include "host/plugin_host.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "host/host_library.h"
#include "host/host_log.h"
#include "host/host_plugin.h"

using namespace sparsespec::host;  // NOLINT(google-build-using-namespace): this file is their C face

namespace {

using nvinfer1::DynamicPluginTensorDesc;

// Offers nothing: no allocator, no recorder.
class EmptyResourceContext final : public nvinfer1::IPluginResourceContext {
public:
    nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
    nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

std::vector<nvinfer1::PluginField> to_fields(const SparsespecField* fields, int32_t count) {
    if (count < 0 || (count > 0 && fields == nullptr)) {
        fail("expected fields, got a null pointer or a negative number of them");
    }
    std::vector<nvinfer1::PluginField> converted;
    for (int32_t index = 0; index < count; ++index) {
        const SparsespecField& field = fields[index];
        const auto type = static_cast<nvinfer1::PluginFieldType>(field.type);
        converted.emplace_back(field.name, field.data, type, field.length);
    }
    return converted;
}

template <typename Handle>
void give(Handle** to, std::unique_ptr<Handle> handle) {
    if (to == nullptr) {
        fail("expected a place for the answer, got a null pointer");
    }
    *to = handle.release();
}

}  // namespace

const char* sparsespec_host_last_error(void) {
    return last_error();
}

int32_t sparsespec_host_open(const char* path, SparsespecLibrary** library) {
    return at_boundary([&] {
        if (path == nullptr) {
            fail("expected a path, got a null pointer");
        }
        give(library, std::make_unique<SparsespecLibrary>(open_library(path)));
        return 0;
    });
}

int32_t sparsespec_host_num_creators(const SparsespecLibrary* library) {
    return library == nullptr ? 0 : static_cast<int32_t>(library->creators.size());
}

const char* sparsespec_host_creator_name(const SparsespecLibrary* library, int32_t creator) {
    return at_boundary([&] { return creator_at(library, creator).getPluginName(); });
}

const char* sparsespec_host_creator_version(const SparsespecLibrary* library, int32_t creator) {
    return at_boundary([&] { return creator_at(library, creator).getPluginVersion(); });
}

const char* sparsespec_host_creator_namespace(const SparsespecLibrary* library, int32_t creator) {
    return at_boundary([&] { return creator_at(library, creator).getPluginNamespace(); });
}

int32_t sparsespec_host_creator_fields(const SparsespecLibrary* library, int32_t creator, SparsespecField* fields,
                                       int32_t capacity) {
    return at_boundary([&] { return copy_fields(creator_at(library, creator).getFieldNames(), fields, capacity); });
}

int32_t sparsespec_host_create(const SparsespecLibrary* library, int32_t creator, const SparsespecField* fields,
                               int32_t num_fields, int32_t phase, SparsespecPlugin** plugin) {
    return at_boundary([&] {
        nvinfer1::IPluginCreatorV3One& with = creator_at(library, creator);
        const std::vector<nvinfer1::PluginField> given = to_fields(fields, num_fields);
        const nvinfer1::PluginFieldCollection collection{num_fields, given.data()};
        const auto in_phase = static_cast<nvinfer1::TensorRTPhase>(phase);
        give(plugin, adopt(with.createPlugin(with.getPluginName(), &collection, in_phase), "createPlugin"));
        return 0;
    });
}

void sparsespec_host_destroy(SparsespecPlugin* plugin) {
    delete plugin;
}

int32_t sparsespec_host_clone(SparsespecPlugin* plugin, SparsespecPlugin** copy) {
    return at_boundary([&] {
        give(copy, adopt(plugin_at(plugin).plugin->clone(), "clone"));
        return 0;
    });
}

int32_t sparsespec_host_attach(SparsespecPlugin* plugin, int32_t with_context, SparsespecPlugin** attached) {
    return at_boundary([&] {
        EmptyResourceContext context;
        auto* const runtime = plugin_at(plugin).runtime;
        give(attached, adopt(runtime->attachToContext(with_context == 0 ? nullptr : &context), "attachToContext"));
        return 0;
    });
}

const char* sparsespec_host_identity(SparsespecPlugin* plugin) {
    return at_boundary([&] { return plugin_at(plugin).identity.c_str(); });
}

int32_t sparsespec_host_serialise(SparsespecPlugin* plugin, SparsespecField* fields, int32_t capacity) {
    return at_boundary(
        [&] { return copy_fields(plugin_at(plugin).runtime->getFieldsToSerialize(), fields, capacity); });
}

int32_t sparsespec_host_num_outputs(SparsespecPlugin* plugin) {
    return at_boundary([&] { return builder_at(plugin).getNbOutputs(); });
}

int32_t sparsespec_host_aliased_input(SparsespecPlugin* plugin, int32_t output) {
    return at_boundary([&] { return aliased_input(builder_at(plugin), output); });
}

int32_t sparsespec_host_output_types(SparsespecPlugin* plugin, int32_t* types, int32_t num_inputs,
                                     int32_t num_outputs) {
    return at_boundary([&] {
        if (types == nullptr || num_inputs < 0 || num_outputs < 0) {
            fail("expected types, got a null pointer or a negative number of them");
        }
        std::vector<nvinfer1::DataType> inputs;
        for (int32_t index = 0; index < num_inputs; ++index) {
            inputs.push_back(static_cast<nvinfer1::DataType>(types[index]));
        }
        std::vector<nvinfer1::DataType> outputs(static_cast<size_t>(num_outputs));
        const int32_t code =
            builder_at(plugin).getOutputDataTypes(outputs.data(), num_outputs, inputs.data(), num_inputs);
        for (int32_t index = 0; index < num_outputs; ++index) {
            types[num_inputs + index] = static_cast<int32_t>(outputs[static_cast<size_t>(index)]);
        }
        return checked("getOutputDataTypes", code);
    });
}

int32_t sparsespec_host_output_shapes(SparsespecPlugin* plugin, SparsespecTensor* tensors, int32_t num_inputs,
                                      int32_t num_outputs, int32_t symbolic) {
    return at_boundary(
        [&] { return output_shapes(builder_at(plugin), tensors, num_inputs, num_outputs, symbolic != 0); });
}

int32_t sparsespec_host_supports(SparsespecPlugin* plugin, int32_t position, const SparsespecTensors* tensors) {
    return at_boundary([&] {
        std::vector<DynamicPluginTensorDesc> descs = describe_dynamic(tensors);
        for (size_t beyond = static_cast<size_t>(position) + 1; beyond < descs.size(); ++beyond) {
            descs[beyond].desc.type = static_cast<nvinfer1::DataType>(-1);
            descs[beyond].desc.format = static_cast<nvinfer1::TensorFormat>(-1);
        }
        const bool supports = builder_at(plugin).supportsFormatCombination(position, descs.data(), tensors->num_inputs,
                                                                           tensors->num_outputs);
        return supports ? 1 : 0;
    });
}

int32_t sparsespec_host_configure(SparsespecPlugin* plugin, const SparsespecTensors* tensors) {
    return at_boundary([&] {
        const std::vector<DynamicPluginTensorDesc> descs = describe_dynamic(tensors);
        const int32_t code = builder_at(plugin).configurePlugin(
            descs.data(), tensors->num_inputs, descs.data() + tensors->num_inputs, tensors->num_outputs);
        return checked("configurePlugin", code);
    });
}

int64_t sparsespec_host_workspace_size(SparsespecPlugin* plugin, const SparsespecTensors* tensors) {
    return at_boundary([&] {
        const std::vector<DynamicPluginTensorDesc> descs = describe_dynamic(tensors);
        const size_t size = builder_at(plugin).getWorkspaceSize(
            descs.data(), tensors->num_inputs, descs.data() + tensors->num_inputs, tensors->num_outputs);
        return static_cast<int64_t>(size);
    });
}

int32_t sparsespec_host_on_shape_change(SparsespecPlugin* plugin, const SparsespecTensors* tensors) {
    return at_boundary([&] {
        const SparsespecLaunch launch = describe_launch(plugin_at(plugin), tensors);
        const int32_t code = launch.runtime->onShapeChange(launch.inputs.data(), tensors->num_inputs,
                                                           launch.outputs.data(), tensors->num_outputs);
        return checked("onShapeChange", code);
    });
}

int32_t sparsespec_host_prepare(SparsespecPlugin* plugin, const SparsespecTensors* tensors, int64_t workspace_size,
                                SparsespecLaunch** launch) {
    return at_boundary([&] {
        auto prepared = std::make_unique<SparsespecLaunch>(describe_launch(plugin_at(plugin), tensors));
        prepared->workspace_size = workspace_size;
        give(launch, std::move(prepared));
        return 0;
    });
}

void sparsespec_host_discard(SparsespecLaunch* launch) {
    delete launch;
}

int32_t sparsespec_host_enqueue(const SparsespecLaunch* launch, void* const* memory, void* workspace,
                                int64_t workspace_size, void* stream) {
    return at_boundary([&] {
        if (launch == nullptr || memory == nullptr) {
            fail("expected a launch and its memory, got a null pointer");
        }
        if (workspace_size < launch->workspace_size) {
            fail("expected a workspace of " + std::to_string(launch->workspace_size) + " bytes, got " +
                 std::to_string(workspace_size));
        }
        const int32_t code =
            launch->runtime->enqueue(launch->inputs.data(), launch->outputs.data(), memory,
                                     memory + launch->inputs.size(), workspace, static_cast<cudaStream_t>(stream));
        return checked("enqueue", code);
    });
}
