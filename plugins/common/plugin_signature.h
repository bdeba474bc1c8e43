// The tensors of a plugin: names, types and shapes, from which the glue answers TensorRT and checks what it gets.
//
// A dimension is a number, or a symbol plus a number. A symbol has the same value wherever it stands.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

namespace sparsespec {

// What the elements of a tensor may be. All tensors of kModel have one type, and so have all of kScore, and of kLogit.
enum class ElementType : int32_t {
    kInt32,
    kPlan,  // int32, in the 16-byte structs of pillar_plan/params.h
    kFloat32,
    kTable,  // float32, in vectors
    kModel,  // float16 or bfloat16, in vectors
    kFp8,    // float8_e4m3, in vectors
    kScore,  // float32 or float16
    kInt64,
    kLogit,        // float32, float16 or bfloat16, in vectors
    kProbability,  // float32, in vectors
};
constexpr size_t kNumElementTypes = 10;

// Place of a symbol in its Signature.
struct Symbol {
    int32_t index;
};

struct Extent {
    // NOLINTBEGIN(google-explicit-constructor): shapes are lists of numbers and symbols.
    Extent(Symbol of, int64_t plus = 0) : symbol(of.index), offset(plus) {}
    Extent(int64_t number) : offset(number) {}
    // NOLINTEND(google-explicit-constructor)

    bool is_number() const { return symbol < 0; }

    int32_t symbol = -1;
    int64_t offset;
};

inline Extent operator+(Symbol symbol, int64_t offset) {
    return {symbol, offset};
}

constexpr int32_t kAbsent = -1;

// Places of tensors among a plugin's inputs and outputs; kAbsent if this instance has no such tensor.
struct Input {
    int32_t index = kAbsent;
};
struct Output {
    int32_t index = kAbsent;
};

// An input that is updated in place, and the output that is the same memory.
struct InOut {
    Input input;
    Output output;
};

struct SymbolSpec {
    std::string name;
    int64_t least;
    int64_t most;
};

struct TensorSpec {
    std::string name;
    ElementType type;
    std::vector<Extent> shape;
    int32_t aliased_input = kAbsent;  // of an output
};

struct Signature {
    std::vector<SymbolSpec> symbols;
    std::vector<TensorSpec> inputs;
    std::vector<TensorSpec> outputs;

    // Sizes go to the kernels as int32.
    Symbol symbol(const char* name, int64_t least = 0, int64_t most = std::numeric_limits<int32_t>::max());
    Input input(const char* name, ElementType type, std::initializer_list<Extent> shape);
    Output output(const char* name, ElementType type, std::initializer_list<Extent> shape);
    InOut in_out(const char* name, ElementType type, std::initializer_list<Extent> shape);
};

}  // namespace sparsespec
