// Checks tensors against a Signature, one after the other, and learns its symbols and types on the way.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "common/plugin_signature.h"
#include "common/status.h"

namespace sparsespec {

// More symbols than any plugin has: a Binder lives on the stack of every enqueue.
constexpr size_t kMaxSymbols = 16;
constexpr int64_t kUnknownSize = -1;  // TensorRT's wildcard too

// Which tensor a message is about.
struct TensorPlace {
    const char* kind;  // "input" or "output"
    size_t index;
    const TensorSpec& spec;
};

TensorPlace input_place(const Signature& signature, size_t index);
TensorPlace output_place(const Signature& signature, size_t index);
std::string describe(const TensorPlace& place);

bool is_allowed(ElementType element, nvinfer1::DataType type);

class Binder {
public:
    // signature: outlives the binder.
    explicit Binder(const Signature& signature);

    Status bind_type(const TensorPlace& place, nvinfer1::DataType type);
    // A size of -1 is not known yet and fits everything.
    Status bind_shape(const TensorPlace& place, const nvinfer1::Dims& shape);
    // Format, type and shape.
    Status bind(const TensorPlace& place, const nvinfer1::PluginTensorDesc& desc);

    // kUnknownSize, or what tensors so far have said.
    int64_t size(Symbol symbol) const { return sizes_[static_cast<size_t>(symbol.index)]; }
    std::optional<nvinfer1::DataType> type(ElementType element) const { return types_[static_cast<size_t>(element)]; }

private:
    bool bind_size(const Extent& extent, int64_t size);
    std::string expected_shape(const TensorSpec& spec) const;
    std::string expected_size(const Extent& extent) const;

    const Signature& signature_;
    std::array<int64_t, kMaxSymbols> sizes_;
    std::array<std::optional<nvinfer1::DataType>, kNumElementTypes> types_;
};

}  // namespace sparsespec
