#include "common/plugin.h"

#include <sstream>
#include <string>
#include <utility>

#include "common/plugin_log.h"
#include "common/plugin_shapes.h"

namespace sparsespec {
namespace {

using nvinfer1::PluginTensorDesc;

// TensorRT aligns to more, a view of a tensor may not.
constexpr uintptr_t kVectorBytes = 16;

// Whether kernels read or write more than one number at a time.
bool is_vectorised(ElementType element) {
    return element == ElementType::kModel || element == ElementType::kFp8 || element == ElementType::kPlan ||
           element == ElementType::kTable || element == ElementType::kLogit || element == ElementType::kProbability;
}

const PluginTensorDesc& desc_of(const PluginTensorDesc& desc) {
    return desc;
}
const PluginTensorDesc& desc_of(const nvinfer1::DynamicPluginTensorDesc& desc) {
    return desc.desc;
}

Status check_counts(const Signature& signature, int32_t num_inputs, int32_t num_outputs) {
    const auto expected_inputs = static_cast<int32_t>(signature.inputs.size());
    const auto expected_outputs = static_cast<int32_t>(signature.outputs.size());
    if (num_inputs != expected_inputs || num_outputs != expected_outputs) {
        return invalid_argument("expected " + std::to_string(expected_inputs) + " inputs and " +
                                std::to_string(expected_outputs) + " outputs, got " + std::to_string(num_inputs) +
                                " and " + std::to_string(num_outputs));
    }
    return {};
}

// Every tensor against the signature; Desc is PluginTensorDesc or DynamicPluginTensorDesc.
template <typename Desc>
Status bind_all(Binder& binder, const Signature& signature, const Desc* in, const Desc* out) {
    if (in == nullptr || out == nullptr) {
        return invalid_argument("expected descriptions of inputs and outputs, got a null pointer");
    }
    for (size_t index = 0; index < signature.inputs.size(); ++index) {
        const Status bound = binder.bind(input_place(signature, index), desc_of(in[index]));
        if (!bound.ok()) {
            return bound;
        }
    }
    for (size_t index = 0; index < signature.outputs.size(); ++index) {
        const Status bound = binder.bind(output_place(signature, index), desc_of(out[index]));
        if (!bound.ok()) {
            return bound;
        }
    }
    return {};
}

bool is_empty(const PluginTensorDesc& desc) {
    bool empty = false;
    for (int32_t axis = 0; axis < desc.dims.nbDims; ++axis) {
        empty = empty || desc.dims.d[axis] == 0;
    }
    return empty;
}

Status check_pointer(const TensorPlace& place, const PluginTensorDesc& desc, const void* pointer) {
    if (pointer == nullptr && !is_empty(desc)) {
        return invalid_argument(describe(place) + ": expected device memory, got a null pointer");
    }
    if (is_vectorised(place.spec.type) && reinterpret_cast<uintptr_t>(pointer) % kVectorBytes != 0) {
        std::ostringstream message;
        message << describe(place) << ": expected an address that is a multiple of " << kVectorBytes << ", got "
                << pointer;
        return invalid_argument(message.str());
    }
    return {};
}

Status check_alias(const Signature& signature, size_t output_index, const void* const* inputs, void* const* outputs) {
    const int32_t input_index = signature.outputs[output_index].aliased_input;
    if (input_index == kAbsent || outputs[output_index] == inputs[input_index]) {
        return {};
    }
    std::ostringstream message;
    message << describe(output_place(signature, output_index)) << ": expected the memory of input " << input_index
            << ", which it updates in place (PreviewFeature::kALIASED_PLUGIN_IO_10_03), at " << inputs[input_index]
            << ", got " << outputs[output_index];
    return invalid_argument(message.str());
}

// Shapes and types of a build or of a run against the signature.
template <typename Desc>
Status check_tensors(const Signature& signature, const Desc* in, int32_t num_inputs, const Desc* out,
                     int32_t num_outputs) {
    const Status counted = check_counts(signature, num_inputs, num_outputs);
    Binder binder(signature);
    return counted.ok() ? bind_all(binder, signature, in, out) : counted;
}

// inputs, outputs: their descriptions are known to fit the signature.
Status check_pointers(const Signature& signature, const PluginTensorDesc* input_desc,
                      const PluginTensorDesc* output_desc, const void* const* inputs, void* const* outputs) {
    if (inputs == nullptr || outputs == nullptr) {
        return invalid_argument("expected arrays of inputs and outputs, got a null pointer");
    }
    for (size_t index = 0; index < signature.inputs.size(); ++index) {
        const Status checked = check_pointer(input_place(signature, index), input_desc[index], inputs[index]);
        if (!checked.ok()) {
            return checked;
        }
    }
    for (size_t index = 0; index < signature.outputs.size(); ++index) {
        Status checked = check_pointer(output_place(signature, index), output_desc[index], outputs[index]);
        if (checked.ok() && !is_empty(output_desc[index])) {
            checked = check_alias(signature, index, inputs, outputs);
        }
        if (!checked.ok()) {
            return checked;
        }
    }
    return {};
}

}  // namespace

Plugin::Plugin(const char* name, std::shared_ptr<const Op> op, std::shared_ptr<const FieldList> fields)
    : name_(name), op_(std::move(op)), fields_(std::move(fields)) {}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
    nvinfer1::IPluginV3* copy = nullptr;
    guarded(name_, [&] {
        copy = new Plugin(name_, op_, fields_);
        return Status{};
    });
    return copy;
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext* /*context*/) noexcept {
    return clone();
}

int32_t Plugin::getNbOutputs() const noexcept {
    return static_cast<int32_t>(signature().outputs.size());
}

int32_t Plugin::getAliasedInput(int32_t output_index) noexcept {
    const bool exists = output_index >= 0 && output_index < getNbOutputs();
    return exists && op_->declares_aliases() ? signature().outputs[static_cast<size_t>(output_index)].aliased_input
                                             : kAbsent;
}

// Looks at nothing beyond `position`, which TensorRT leaves unset. A question, so no answer is logged.
bool Plugin::supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* in_out,
                                       int32_t num_inputs, int32_t num_outputs) noexcept {
    try {
        if (in_out == nullptr || !check_counts(signature(), num_inputs, num_outputs).ok() || position < 0 ||
            position >= num_inputs + num_outputs) {
            return false;
        }
        Binder binder(signature());
        bool fits = in_out[position].desc.format == nvinfer1::TensorFormat::kLINEAR;
        for (int32_t each = 0; fits && each <= position; ++each) {
            const TensorPlace place = each < num_inputs
                                          ? input_place(signature(), static_cast<size_t>(each))
                                          : output_place(signature(), static_cast<size_t>(each - num_inputs));
            fits = binder.bind_type(place, in_out[each].desc.type).ok();
        }
        return fits;
    } catch (...) {
        return false;
    }
}

int32_t Plugin::getOutputDataTypes(nvinfer1::DataType* output_types, int32_t num_outputs,
                                   const nvinfer1::DataType* input_types, int32_t num_inputs) const noexcept {
    return guarded(name_, [&]() -> Status {
        if (output_types == nullptr || input_types == nullptr) {
            return invalid_argument("expected arrays of types, got a null pointer");
        }
        Binder binder(signature());
        Status status = check_counts(signature(), num_inputs, num_outputs);
        for (size_t index = 0; status.ok() && index < signature().inputs.size(); ++index) {
            status = binder.bind_type(input_place(signature(), index), input_types[index]);
        }
        for (size_t index = 0; status.ok() && index < signature().outputs.size(); ++index) {
            const ElementType element = signature().outputs[index].type;
            output_types[index] = binder.type(element).value_or(nvinfer1::DataType::kINT32);
        }
        return status;
    });
}

int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                                const nvinfer1::DimsExprs* /*shape_inputs*/, int32_t num_shape_inputs,
                                nvinfer1::DimsExprs* outputs, int32_t num_outputs,
                                nvinfer1::IExprBuilder& builder) noexcept {
    return guarded(name_, [&]() -> Status {
        if (inputs == nullptr || outputs == nullptr) {
            return invalid_argument("expected arrays of shapes, got a null pointer");
        }
        if (num_shape_inputs != 0) {
            return invalid_argument("expected no shape inputs, got " + std::to_string(num_shape_inputs));
        }
        const Status counted = check_counts(signature(), num_inputs, num_outputs);
        return counted.ok() ? write_output_shapes(signature(), inputs, outputs, builder) : counted;
    });
}

int32_t Plugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t num_inputs,
                                const nvinfer1::DynamicPluginTensorDesc* out, int32_t num_outputs) noexcept {
    return guarded(name_, [&] { return check_tensors(signature(), in, num_inputs, out, num_outputs); });
}

size_t Plugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* /*in*/, int32_t /*num_inputs*/,
                                const nvinfer1::DynamicPluginTensorDesc* /*out*/,
                                int32_t /*num_outputs*/) const noexcept {
    return op_->workspace_size();
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* in, int32_t num_inputs, const PluginTensorDesc* out,
                              int32_t num_outputs) noexcept {
    return guarded(name_, [&] { return check_tensors(signature(), in, num_inputs, out, num_outputs); });
}

int32_t Plugin::enqueue(const PluginTensorDesc* input_desc, const PluginTensorDesc* output_desc,
                        const void* const* inputs, void* const* outputs, void* workspace,
                        cudaStream_t stream) noexcept {
    return guarded(name_, [&]() -> Status {
        Binder binder(signature());
        Status status = bind_all(binder, signature(), input_desc, output_desc);
        if (status.ok()) {
            status = check_pointers(signature(), input_desc, output_desc, inputs, outputs);
        }
        if (status.ok() && workspace == nullptr && op_->workspace_size() > 0) {
            status = invalid_argument("expected a workspace of " + std::to_string(op_->workspace_size()) +
                                      " bytes, got a null pointer");
        }
        return status.ok() ? op_->launch(Call(signature(), binder, inputs, outputs, workspace), stream) : status;
    });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
    return fields_->collection();
}

}  // namespace sparsespec
