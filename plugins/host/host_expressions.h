// TensorRT's dimension expressions, without TensorRT.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <deque>

namespace sparsespec::host {

// A number that a plugin may or may not see, together with what it really is.
class Expression final : public nvinfer1::IDimensionExpr, public nvinfer1::apiv::VDimensionExpr {
public:
    Expression(int64_t value, bool is_constant) : value_(value), is_constant_(is_constant) {
        nvinfer1::IDimensionExpr::mImpl = this;
    }

    bool isConstant() const override { return is_constant_; }
    int64_t getConstantValue() const override;
    bool isSizeTensor() const override { return false; }

    int64_t value() const { return value_; }

private:
    int64_t value_;
    bool is_constant_;
};

// Owns the expressions that it makes.
class ExpressionBuilder final : public nvinfer1::IExprBuilder, public nvinfer1::apiv::VExprBuilder {
public:
    ExpressionBuilder() { nvinfer1::IExprBuilder::mImpl = this; }

    // Null where there is no memory.
    const nvinfer1::IDimensionExpr* input_size(int64_t value, bool is_constant) noexcept;
    // What an expression of this builder stands for.
    static int64_t value_of(const nvinfer1::IDimensionExpr& expression);

    const nvinfer1::IDimensionExpr* constant(int64_t value) override { return input_size(value, true); }
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation operation,
                                              const nvinfer1::IDimensionExpr& first,
                                              const nvinfer1::IDimensionExpr& second) override;
    // Sizes that depend on values: not supported.
    const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t output_index, const nvinfer1::IDimensionExpr& opt,
                                                      const nvinfer1::IDimensionExpr& upper) override;

private:
    std::deque<Expression> expressions_;  // a deque: expressions stay where they are
};

}  // namespace sparsespec::host
