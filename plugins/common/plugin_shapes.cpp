#include "common/plugin_shapes.h"

#include <vector>

#include "common/plugin_binder.h"

namespace sparsespec {
namespace {

using nvinfer1::DimensionOperation;
using nvinfer1::DimsExprs;
using nvinfer1::IDimensionExpr;
using nvinfer1::IExprBuilder;

// Sizes that are not constants count as unknown.
nvinfer1::Dims known_sizes(const DimsExprs& shape) {
    nvinfer1::Dims sizes{};
    sizes.nbDims = shape.nbDims;
    for (int32_t axis = 0; axis < shape.nbDims && axis < nvinfer1::Dims::MAX_DIMS; ++axis) {
        const IDimensionExpr* const size = shape.d[axis];
        sizes.d[axis] = size != nullptr && size->isConstant() ? size->getConstantValue() : kUnknownSize;
    }
    return sizes;
}

Status check_inputs(const Signature& signature, const DimsExprs* inputs) {
    Binder binder(signature);
    for (size_t index = 0; index < signature.inputs.size(); ++index) {
        const Status bound = binder.bind_shape(input_place(signature, index), known_sizes(inputs[index]));
        if (!bound.ok()) {
            return bound;
        }
    }
    return {};
}

// Where a symbol can be read from: an input's dimension, which is the symbol plus an offset.
struct Source {
    const IDimensionExpr* size = nullptr;
    int64_t offset = 0;
};

std::vector<Source> find_sources(const Signature& signature, const DimsExprs* inputs) {
    std::vector<Source> sources(signature.symbols.size());
    for (size_t index = 0; index < signature.inputs.size(); ++index) {
        const std::vector<Extent>& shape = signature.inputs[index].shape;
        for (size_t axis = 0; axis < shape.size(); ++axis) {
            if (shape[axis].is_number()) {
                continue;
            }
            Source& source = sources[static_cast<size_t>(shape[axis].symbol)];
            if (source.size == nullptr || (source.offset != 0 && shape[axis].offset == 0)) {
                source = {inputs[index].d[axis], shape[axis].offset};
            }
        }
    }
    return sources;
}

const IDimensionExpr* plus(IExprBuilder& builder, const IDimensionExpr* size, int64_t offset) {
    if (size == nullptr || offset == 0) {
        return size;
    }
    const IDimensionExpr* const constant = builder.constant(offset);
    return constant == nullptr ? nullptr : builder.operation(DimensionOperation::kSUM, *size, *constant);
}

const IDimensionExpr* to_expression(const Extent& extent, const std::vector<Source>& sources, IExprBuilder& builder) {
    if (extent.is_number()) {
        return builder.constant(extent.offset);
    }
    const Source& source = sources[static_cast<size_t>(extent.symbol)];
    return plus(builder, source.size, extent.offset - source.offset);
}

}  // namespace

Status write_output_shapes(const Signature& signature, const DimsExprs* inputs, DimsExprs* outputs,
                           IExprBuilder& builder) {
    if (const Status checked = check_inputs(signature, inputs); !checked.ok()) {
        return checked;
    }
    const std::vector<Source> sources = find_sources(signature, inputs);
    for (size_t index = 0; index < signature.outputs.size(); ++index) {
        const TensorSpec& spec = signature.outputs[index];
        DimsExprs& output = outputs[index];
        if (spec.aliased_input != kAbsent) {
            output = inputs[spec.aliased_input];
            continue;
        }
        output.nbDims = static_cast<int32_t>(spec.shape.size());
        for (size_t axis = 0; axis < spec.shape.size(); ++axis) {
            output.d[axis] = to_expression(spec.shape[axis], sources, builder);
            if (output.d[axis] == nullptr) {
                return invalid_argument(describe(output_place(signature, index)) +
                                        ": TensorRT gave no expression for its shape");
            }
        }
    }
    return {};
}

}  // namespace sparsespec
