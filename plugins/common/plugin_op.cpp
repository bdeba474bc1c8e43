#include "common/plugin_op.h"

namespace sparsespec {

int32_t Call::size(Symbol symbol) const {
    const int64_t size = symbol.index == kAbsent ? kUnknownSize : bound_.size(symbol);
    return size == kUnknownSize ? 0 : static_cast<int32_t>(size);
}

Dtype Call::dtype(Input tensor) const {
    if (tensor.index == kAbsent) {
        return Dtype::kFloat32;
    }
    const ElementType element = signature_.inputs[static_cast<size_t>(tensor.index)].type;
    switch (bound_.type(element).value()) {
        case nvinfer1::DataType::kHALF:
            return Dtype::kFloat16;
        case nvinfer1::DataType::kBF16:
            return Dtype::kBfloat16;
        case nvinfer1::DataType::kFP8:
            return Dtype::kFloat8E4m3;
        default:
            return Dtype::kFloat32;
    }
}

}  // namespace sparsespec
