#include "common/plugin_signature.h"

namespace sparsespec {
namespace {

int32_t append(std::vector<TensorSpec>& specs, const TensorSpec& spec) {
    specs.push_back(spec);
    return static_cast<int32_t>(specs.size()) - 1;
}

}  // namespace

Symbol Signature::symbol(const char* name, int64_t least, int64_t most) {
    symbols.push_back({name, least, most});
    return {static_cast<int32_t>(symbols.size()) - 1};
}

Input Signature::input(const char* name, ElementType type, std::initializer_list<Extent> shape) {
    return {append(inputs, {name, type, shape})};
}

Output Signature::output(const char* name, ElementType type, std::initializer_list<Extent> shape) {
    return {append(outputs, {name, type, shape})};
}

InOut Signature::in_out(const char* name, ElementType type, std::initializer_list<Extent> shape) {
    const Input updated = input(name, type, shape);
    return {updated, {append(outputs, {name, type, shape, updated.index})}};
}

}  // namespace sparsespec
