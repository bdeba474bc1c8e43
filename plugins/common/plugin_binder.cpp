#include "common/plugin_binder.h"

#include <stdexcept>

namespace sparsespec {
namespace {

using nvinfer1::DataType;

const char* name_of(DataType type) {
    switch (type) {
        case DataType::kFLOAT:
            return "float32";
        case DataType::kHALF:
            return "float16";
        case DataType::kBF16:
            return "bfloat16";
        case DataType::kFP8:
            return "float8_e4m3";
        case DataType::kINT32:
            return "int32";
        case DataType::kINT64:
            return "int64";
        case DataType::kINT8:
            return "int8";
        default:
            return "another type";
    }
}

const char* allowed_types(ElementType element) {
    switch (element) {
        case ElementType::kInt32:
        case ElementType::kPlan:
            return "int32";
        case ElementType::kFloat32:
        case ElementType::kTable:
        case ElementType::kProbability:
            return "float32";
        case ElementType::kModel:
            return "float16 or bfloat16";
        case ElementType::kFp8:
            return "float8_e4m3";
        case ElementType::kScore:
            return "float32 or float16";
        case ElementType::kInt64:
            return "int64";
        case ElementType::kLogit:
            return "float32, float16 or bfloat16";
    }
    return "";
}

std::string to_string(const nvinfer1::Dims& shape) {
    std::string text = "[";
    for (int32_t axis = 0; axis < shape.nbDims && axis < nvinfer1::Dims::MAX_DIMS; ++axis) {
        text += (axis == 0 ? "" : ", ") + std::to_string(shape.d[axis]);
    }
    return text + "]";
}

}  // namespace

TensorPlace input_place(const Signature& signature, size_t index) {
    return {"input", index, signature.inputs[index]};
}

TensorPlace output_place(const Signature& signature, size_t index) {
    return {"output", index, signature.outputs[index]};
}

std::string describe(const TensorPlace& place) {
    return std::string(place.kind) + " " + std::to_string(place.index) + " (" + place.spec.name + ")";
}

bool is_allowed(ElementType element, DataType type) {
    switch (element) {
        case ElementType::kInt32:
        case ElementType::kPlan:
            return type == DataType::kINT32;
        case ElementType::kFloat32:
        case ElementType::kTable:
        case ElementType::kProbability:
            return type == DataType::kFLOAT;
        case ElementType::kModel:
            return type == DataType::kHALF || type == DataType::kBF16;
        case ElementType::kFp8:
            return type == DataType::kFP8;
        case ElementType::kScore:
            return type == DataType::kFLOAT || type == DataType::kHALF;
        case ElementType::kInt64:
            return type == DataType::kINT64;
        case ElementType::kLogit:
            return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
    }
    return false;
}

Binder::Binder(const Signature& signature) : signature_(signature) {
    if (signature.symbols.size() > kMaxSymbols) {
        throw std::logic_error("more symbols than kMaxSymbols");
    }
    sizes_.fill(kUnknownSize);
}

Status Binder::bind_type(const TensorPlace& place, DataType type) {
    std::optional<DataType>& bound = types_[static_cast<size_t>(place.spec.type)];
    if (!is_allowed(place.spec.type, type)) {
        return invalid_argument(describe(place) + ": expected " + allowed_types(place.spec.type) + ", got " +
                                name_of(type));
    }
    if (bound.has_value() && *bound != type) {
        return invalid_argument(describe(place) + ": expected " + name_of(*bound) +
                                " like the tensors before it, got " + name_of(type));
    }
    bound = type;
    return {};
}

Status Binder::bind_shape(const TensorPlace& place, const nvinfer1::Dims& shape) {
    bool fits = shape.nbDims == static_cast<int32_t>(place.spec.shape.size());
    for (int32_t axis = 0; fits && axis < shape.nbDims; ++axis) {
        fits = bind_size(place.spec.shape[static_cast<size_t>(axis)], shape.d[axis]);
    }
    if (!fits) {
        return invalid_argument(describe(place) + ": expected shape " + expected_shape(place.spec) + ", got " +
                                to_string(shape));
    }
    return {};
}

Status Binder::bind(const TensorPlace& place, const nvinfer1::PluginTensorDesc& desc) {
    if (desc.format != nvinfer1::TensorFormat::kLINEAR) {
        return invalid_argument(describe(place) + ": expected the linear format (0), got format " +
                                std::to_string(static_cast<int32_t>(desc.format)));
    }
    const Status typed = bind_type(place, desc.type);
    return typed.ok() ? bind_shape(place, desc.dims) : typed;
}

bool Binder::bind_size(const Extent& extent, int64_t size) {
    if (size == kUnknownSize) {
        return true;
    }
    if (extent.is_number()) {
        return size == extent.offset;
    }
    const auto index = static_cast<size_t>(extent.symbol);
    const SymbolSpec& symbol = signature_.symbols[index];
    const int64_t value = size - extent.offset;
    if (size < 0 || value < symbol.least || value > symbol.most) {
        return false;
    }
    int64_t& bound = sizes_[index];
    if (bound == kUnknownSize) {
        bound = value;
    }
    return bound == value;
}

std::string Binder::expected_shape(const TensorSpec& spec) const {
    std::string text = "[";
    for (const Extent& extent : spec.shape) {
        text += (text.size() == 1 ? "" : ", ") + expected_size(extent);
    }
    return text + "]";
}

// "128", "num_rows", "max_batch_size + 1 = 4", "planes of 1 to 17" or "max_draft_len of at least 1".
std::string Binder::expected_size(const Extent& extent) const {
    if (extent.is_number()) {
        return std::to_string(extent.offset);
    }
    const SymbolSpec& symbol = signature_.symbols[static_cast<size_t>(extent.symbol)];
    const int64_t bound = sizes_[static_cast<size_t>(extent.symbol)];
    std::string text = symbol.name + (extent.offset == 0 ? "" : " + " + std::to_string(extent.offset));
    if (bound != kUnknownSize) {
        text += " = " + std::to_string(bound + extent.offset);
    } else if (symbol.most < std::numeric_limits<int32_t>::max()) {
        text += " of " + std::to_string(symbol.least) + " to " + std::to_string(symbol.most);
    } else if (symbol.least > 0) {
        text += " of at least " + std::to_string(symbol.least);
    }
    return text;
}

}  // namespace sparsespec
