#include "host/host_plugin.h"

#include <algorithm>
#include <iterator>
#include <new>

#include "host/host_expressions.h"
#include "host/host_log.h"

namespace sparsespec::host {
namespace {

using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginTensorDesc;

template <typename Capability>
Capability* capability(nvinfer1::IPluginV3& plugin, PluginCapabilityType type) {
    return static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

template <typename Capability>
Capability& require(Capability* found, const char* name) {
    if (found == nullptr) {
        fail(std::string("expected a plugin with the capability ") + name + ", got a null pointer");
    }
    return *found;
}

void require_rank(const SparsespecTensor& tensor) {
    if (tensor.rank < 0 || tensor.rank > SPARSESPEC_HOST_MAX_DIMS) {
        fail("expected a tensor of rank 0 to " + std::to_string(SPARSESPEC_HOST_MAX_DIMS) + ", got rank " +
             std::to_string(tensor.rank));
    }
}

PluginTensorDesc to_desc(const SparsespecTensor& tensor) {
    require_rank(tensor);
    PluginTensorDesc desc{};
    desc.type = static_cast<nvinfer1::DataType>(tensor.type);
    desc.format = static_cast<nvinfer1::TensorFormat>(tensor.format);
    desc.dims.nbDims = tensor.rank;
    std::copy(tensor.sizes, tensor.sizes + SPARSESPEC_HOST_MAX_DIMS, desc.dims.d);
    desc.scale = 1.0F;
    return desc;
}

void require_tensors(const SparsespecTensors* tensors) {
    if (tensors == nullptr || tensors->tensors == nullptr || tensors->num_inputs < 0 || tensors->num_outputs < 0) {
        fail("expected descriptions of tensors, got a null pointer or a negative number of them");
    }
}

std::vector<DimsExprs> input_expressions(ExpressionBuilder& builder, const SparsespecTensor* tensors,
                                         int32_t num_inputs, bool symbolic) {
    std::vector<DimsExprs> shapes(static_cast<size_t>(num_inputs));
    for (DimsExprs& shape : shapes) {
        const SparsespecTensor& tensor = *tensors++;
        require_rank(tensor);
        shape.nbDims = tensor.rank;
        for (int32_t axis = 0; axis < tensor.rank; ++axis) {
            shape.d[axis] = builder.input_size(tensor.sizes[axis], !symbolic);
            if (shape.d[axis] == nullptr) {
                throw std::bad_alloc();
            }
        }
    }
    return shapes;
}

void write_sizes(const DimsExprs& shape, SparsespecTensor& tensor) {
    tensor.rank = shape.nbDims;
    require_rank(tensor);
    for (int32_t axis = 0; axis < shape.nbDims; ++axis) {
        if (shape.d[axis] == nullptr) {
            fail("expected an expression for every size of an output, got a null pointer");
        }
        tensor.sizes[axis] = ExpressionBuilder::value_of(*shape.d[axis]);
    }
}

}  // namespace

std::unique_ptr<SparsespecPlugin> adopt(nvinfer1::IPluginV3* plugin, const char* answered) {
    if (plugin == nullptr) {
        refuse(std::string(answered) + " returned no plugin");
    }
    auto adopted = std::make_unique<SparsespecPlugin>();
    adopted->plugin.reset(plugin);
    adopted->build = capability<nvinfer1::IPluginV3OneBuild>(*plugin, PluginCapabilityType::kBUILD);
    adopted->runtime = capability<nvinfer1::IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME);
    require(adopted->runtime, "runtime");
    auto& core = require(capability<nvinfer1::IPluginV3OneCore>(*plugin, PluginCapabilityType::kCORE), "core");
    adopted->identity =
        std::string(core.getPluginName()) + "\n" + core.getPluginVersion() + "\n" + core.getPluginNamespace() + "\n";
    return adopted;
}

SparsespecPlugin& plugin_at(SparsespecPlugin* plugin) {
    if (plugin == nullptr) {
        fail("expected a plugin, got a null pointer");
    }
    return *plugin;
}

nvinfer1::IPluginV3OneBuild& builder_at(SparsespecPlugin* plugin) {
    return require(plugin_at(plugin).build, "build");
}

int32_t aliased_input(nvinfer1::IPluginV3OneBuild& build, int32_t output) {
    if (build.getInterfaceInfo().major < 2) {
        return -1;
    }
    return static_cast<nvinfer1::IPluginV3OneBuildV2&>(build).getAliasedInput(output);
}

SparsespecLaunch describe_launch(SparsespecPlugin& plugin, const SparsespecTensors* tensors) {
    require_tensors(tensors);
    SparsespecLaunch launch{plugin.runtime, {}, {}, 0};
    const SparsespecTensor* const outputs = tensors->tensors + tensors->num_inputs;
    std::transform(tensors->tensors, outputs, std::back_inserter(launch.inputs), to_desc);
    std::transform(outputs, outputs + tensors->num_outputs, std::back_inserter(launch.outputs), to_desc);
    return launch;
}

std::vector<DynamicPluginTensorDesc> describe_dynamic(const SparsespecTensors* tensors) {
    require_tensors(tensors);
    std::vector<DynamicPluginTensorDesc> descs;
    for (int32_t index = 0; index < tensors->num_inputs + tensors->num_outputs; ++index) {
        DynamicPluginTensorDesc desc{};
        desc.desc = to_desc(tensors->tensors[index]);
        desc.min = desc.desc.dims;
        desc.opt = desc.desc.dims;
        desc.max = desc.desc.dims;
        descs.push_back(desc);
    }
    return descs;
}

int32_t output_shapes(nvinfer1::IPluginV3OneBuild& build, SparsespecTensor* tensors, int32_t num_inputs,
                      int32_t num_outputs, bool symbolic) {
    if (tensors == nullptr || num_inputs < 0 || num_outputs < 0) {
        fail("expected tensors, got a null pointer or a negative number of them");
    }
    ExpressionBuilder builder;
    const std::vector<DimsExprs> inputs = input_expressions(builder, tensors, num_inputs, symbolic);
    std::vector<DimsExprs> outputs(static_cast<size_t>(num_outputs));
    const int32_t code =
        build.getOutputShapes(inputs.data(), num_inputs, nullptr, 0, outputs.data(), num_outputs, builder);
    for (int32_t index = 0; code == 0 && index < num_outputs; ++index) {
        write_sizes(outputs[static_cast<size_t>(index)], tensors[num_inputs + index]);
    }
    return checked("getOutputShapes", code);
}

int32_t copy_fields(const nvinfer1::PluginFieldCollection* from, SparsespecField* fields, int32_t capacity) {
    if (from == nullptr) {
        fail("expected a collection of fields, got a null pointer");
    }
    const int32_t count = fields == nullptr ? 0 : std::min(from->nbFields, capacity);
    for (int32_t index = 0; index < count; ++index) {
        const nvinfer1::PluginField& field = from->fields[index];
        fields[index] = {field.name, field.data, static_cast<int32_t>(field.type), field.length};
    }
    return from->nbFields;
}

}  // namespace sparsespec::host
