#include "host/host_expressions.h"

#include <algorithm>
#include <limits>
#include <optional>

namespace sparsespec::host {
namespace {

using nvinfer1::DimensionOperation;
using nvinfer1::IDimensionExpr;

std::optional<int64_t> divide(int64_t first, int64_t second, bool round_up) {
    if (second == 0) {
        return std::nullopt;
    }
    const int64_t quotient = first / second;
    const bool inexact = first % second != 0;
    const bool negative = (first < 0) != (second < 0);
    const int64_t floor = quotient - (inexact && negative ? 1 : 0);
    return floor + (inexact && round_up ? 1 : 0);
}

std::optional<int64_t> apply(DimensionOperation operation, int64_t first, int64_t second) {
    switch (operation) {
        case DimensionOperation::kSUM:
            return first + second;
        case DimensionOperation::kPROD:
            return first * second;
        case DimensionOperation::kMAX:
            return std::max(first, second);
        case DimensionOperation::kMIN:
            return std::min(first, second);
        case DimensionOperation::kSUB:
            return first - second;
        case DimensionOperation::kEQUAL:
            return first == second ? 1 : 0;
        case DimensionOperation::kLESS:
            return first < second ? 1 : 0;
        case DimensionOperation::kFLOOR_DIV:
            return divide(first, second, false);
        case DimensionOperation::kCEIL_DIV:
            return divide(first, second, true);
    }
    return std::nullopt;
}

}  // namespace

int64_t Expression::getConstantValue() const {
    return is_constant_ ? value_ : std::numeric_limits<int64_t>::min();
}

const IDimensionExpr* ExpressionBuilder::input_size(int64_t value, bool is_constant) noexcept {
    try {
        return &expressions_.emplace_back(value, is_constant);
    } catch (...) {  // out of memory
        return nullptr;
    }
}

int64_t ExpressionBuilder::value_of(const IDimensionExpr& expression) {
    return static_cast<const Expression&>(expression).value();
}

const IDimensionExpr* ExpressionBuilder::operation(DimensionOperation operation, const IDimensionExpr& first,
                                                   const IDimensionExpr& second) {
    const std::optional<int64_t> value = apply(operation, value_of(first), value_of(second));
    const bool is_constant = first.isConstant() && second.isConstant();
    return value.has_value() ? input_size(*value, is_constant) : nullptr;
}

const IDimensionExpr* ExpressionBuilder::declareSizeTensor(int32_t /*output_index*/, const IDimensionExpr& /*opt*/,
                                                           const IDimensionExpr& /*upper*/) {
    return nullptr;
}

}  // namespace sparsespec::host
