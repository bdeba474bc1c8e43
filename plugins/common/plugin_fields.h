// The fields of a plugin: read, checked and kept for serialisation by naming each of them once.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <deque>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/dtype.h"
#include "common/status.h"

namespace sparsespec {

// Fields with values that live as long as the list. Shared by clones, so never changed once it is complete.
class FieldList {
public:
    FieldList() = default;
    FieldList(const FieldList&) = delete;
    FieldList& operator=(const FieldList&) = delete;

    // Text is stored without a final NUL. name: lives as long as the program.
    void add(const char* name, std::variant<int32_t, float, std::string> value);
    // Names and types alone, as IPluginCreatorV3One::getFieldNames gives them.
    void forget_values();

    const std::vector<nvinfer1::PluginField>& fields() const { return fields_; }
    const nvinfer1::PluginFieldCollection* collection() const { return &collection_; }

private:
    std::deque<std::variant<int32_t, float, std::string>> values_;  // a deque: fields_ points to them
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

// Both ends included.
struct Range {
    int32_t least;
    int32_t most;
};

template <typename Enum>
struct Choice {
    const char* name;
    Enum value;
};

// Reads fields one by one. The first error is kept, and from then on values are merely valid ones.
class FieldReader {
public:
    // Reads from nothing, to learn which fields there are: every value is the default, or the least.
    FieldReader() = default;
    // given: outlives the reader.
    explicit FieldReader(const nvinfer1::PluginFieldCollection* given);

    int32_t required(const char* name, Range range);
    int32_t required(const char* name, std::initializer_list<int32_t> allowed);
    // Required: what kernels read in whole vectors, a multiple of kVectorNumbers.
    int32_t vector_multiple(const char* name, int32_t most);
    bool flag(const char* name, bool fallback);
    float positive(const char* name, float fallback);

    // The first choice is the default.
    template <typename Enum>
    Enum choice(const char* name, std::initializer_list<Choice<Enum>> choices) {
        std::vector<std::string> names;
        for (const Choice<Enum>& each : choices) {
            names.emplace_back(each.name);
        }
        return (choices.begin() + choose(name, names))->value;
    }

    // Keeps the first failure of a check across fields.
    void require(bool holds, const std::string& message);

    // What went wrong, if anything did. Also refuses fields that nobody read.
    Status finish();
    // What was read. Call once, last.
    std::shared_ptr<FieldList> take() { return std::move(read_); }

private:
    const nvinfer1::PluginField* find(const char* name, nvinfer1::PluginFieldType type);
    template <typename Value>
    Value scalar(const char* name, const Value* fallback, Value any);
    size_t choose(const char* name, const std::vector<std::string>& names);
    void fail(const std::string& message);
    Status check_unknown() const;

    bool dry_ = true;
    std::vector<nvinfer1::PluginField> given_;
    std::shared_ptr<FieldList> read_ = std::make_shared<FieldList>();
    Status status_;
};

}  // namespace sparsespec
