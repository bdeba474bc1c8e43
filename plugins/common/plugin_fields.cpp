#include "common/plugin_fields.h"

#include <cmath>
#include <cstring>
#include <type_traits>

namespace sparsespec {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

const char* name_of(PluginFieldType type) {
    switch (type) {
        case PluginFieldType::kFLOAT16:
            return "float16";
        case PluginFieldType::kFLOAT32:
            return "float32";
        case PluginFieldType::kFLOAT64:
            return "float64";
        case PluginFieldType::kINT8:
            return "int8";
        case PluginFieldType::kINT16:
            return "int16";
        case PluginFieldType::kINT32:
            return "int32";
        case PluginFieldType::kINT64:
            return "int64";
        case PluginFieldType::kCHAR:
            return "char";
        default:
            return "another type";
    }
}

std::string quoted(const std::string& text) {
    return "\"" + text + "\"";
}

std::string joined(const std::vector<std::string>& parts) {
    std::string all;
    for (const std::string& part : parts) {
        all += (all.empty() ? "" : ", ") + part;
    }
    return all;
}

// Whether the text of a field came with the NUL that ends a C string does not matter.
std::string text_of(const PluginField& field) {
    std::string text(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
    if (!text.empty() && text.back() == '\0') {
        text.pop_back();
    }
    return text;
}

}  // namespace

void FieldList::add(const char* name, std::variant<int32_t, float, std::string> value) {
    values_.push_back(std::move(value));
    const auto& kept = values_.back();
    if (const auto* text = std::get_if<std::string>(&kept); text != nullptr) {
        fields_.emplace_back(name, text->data(), PluginFieldType::kCHAR, static_cast<int32_t>(text->size()));
    } else if (const auto* number = std::get_if<int32_t>(&kept); number != nullptr) {
        fields_.emplace_back(name, number, PluginFieldType::kINT32, 1);
    } else {
        fields_.emplace_back(name, std::get_if<float>(&kept), PluginFieldType::kFLOAT32, 1);
    }
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

void FieldList::forget_values() {
    for (PluginField& field : fields_) {
        field.data = nullptr;
        field.length = 1;
    }
}

FieldReader::FieldReader(const nvinfer1::PluginFieldCollection* given) : dry_(false) {
    if (given == nullptr || given->nbFields < 0 || (given->nbFields > 0 && given->fields == nullptr)) {
        fail("expected a collection of fields, got none");
        return;
    }
    given_.assign(given->fields, given->fields + given->nbFields);
    for (const PluginField& field : given_) {
        require(field.name != nullptr, "expected a name for every field, got a null pointer");
    }
    if (!status_.ok()) {
        given_.clear();
    }
}

const PluginField* FieldReader::find(const char* name, PluginFieldType type) {
    const PluginField* found = nullptr;
    for (const PluginField& field : given_) {
        if (std::strcmp(field.name, name) == 0) {
            require(found == nullptr, std::string("field ") + name + ": expected once, got it twice");
            found = &field;
        }
    }
    if (found == nullptr) {
        return nullptr;
    }
    const std::string where = std::string("field ") + name + ": expected ";
    const bool is_text = type == PluginFieldType::kCHAR;
    require(found->type == type, where + name_of(type) + ", got " + name_of(found->type));
    require(is_text ? found->length > 0 : found->length == 1,
            where + (is_text ? "a text" : "one value") + ", got length " + std::to_string(found->length));
    require(found->data != nullptr, where + "a value, got a null pointer");
    return status_.ok() ? found : nullptr;
}

// The value given, or the fallback; `any` where there is neither, which is an error.
template <typename Value>
Value FieldReader::scalar(const char* name, const Value* fallback, Value any) {
    const bool is_integer = std::is_same_v<Value, int32_t>;
    const PluginField* const field = find(name, is_integer ? PluginFieldType::kINT32 : PluginFieldType::kFLOAT32);
    Value value = fallback == nullptr ? any : *fallback;
    if (field != nullptr) {
        std::memcpy(&value, field->data, sizeof(value));
    } else {
        require(fallback != nullptr || dry_, std::string("field ") + name + ": required, but not given");
    }
    return value;
}

int32_t FieldReader::required(const char* name, Range range) {
    const auto value = scalar<int32_t>(name, nullptr, range.least);
    const bool fits = value >= range.least && value <= range.most;
    require(fits, std::string("field ") + name + ": expected " + std::to_string(range.least) + " to " +
                      std::to_string(range.most) + ", got " + std::to_string(value));
    read_->add(name, value);
    return fits ? value : range.least;
}

int32_t FieldReader::required(const char* name, std::initializer_list<int32_t> allowed) {
    const auto value = scalar<int32_t>(name, nullptr, *allowed.begin());
    bool fits = false;
    std::vector<std::string> names;
    for (const int32_t each : allowed) {
        fits = fits || each == value;
        names.push_back(std::to_string(each));
    }
    require(fits,
            std::string("field ") + name + ": expected one of " + joined(names) + ", got " + std::to_string(value));
    read_->add(name, value);
    return fits ? value : *allowed.begin();
}

int32_t FieldReader::vector_multiple(const char* name, int32_t most) {
    const int32_t value = required(name, Range{kVectorNumbers, most});
    require(value % kVectorNumbers == 0, std::string("field ") + name + ": expected a multiple of " +
                                             std::to_string(kVectorNumbers) + ", got " + std::to_string(value));
    return value;
}

bool FieldReader::flag(const char* name, bool fallback) {
    const int32_t default_value = fallback ? 1 : 0;
    const auto value = scalar<int32_t>(name, &default_value, 0);
    require(value == 0 || value == 1, std::string("field ") + name + ": expected 0 or 1, got " + std::to_string(value));
    read_->add(name, value);
    return value == 1;
}

float FieldReader::positive(const char* name, float fallback) {
    const auto value = scalar<float>(name, &fallback, 1.0F);
    require(std::isfinite(value) && value > 0,
            std::string("field ") + name + ": expected a finite number above 0, got " + std::to_string(value));
    read_->add(name, value);
    return value;
}

size_t FieldReader::choose(const char* name, const std::vector<std::string>& names) {
    const PluginField* const field = find(name, PluginFieldType::kCHAR);
    const std::string text = field == nullptr ? names.front() : text_of(*field);
    size_t place = 0;
    while (place < names.size() && names[place] != text) {
        ++place;
    }
    require(place < names.size(),
            std::string("field ") + name + ": expected one of " + joined(names) + ", got " + quoted(text));
    place = place < names.size() ? place : 0;
    read_->add(name, names[place]);
    return place;
}

void FieldReader::require(bool holds, const std::string& message) {
    if (!holds) {
        fail(message);
    }
}

void FieldReader::fail(const std::string& message) {
    if (status_.ok() && !dry_) {
        status_ = invalid_argument(message);
    }
}

Status FieldReader::check_unknown() const {
    std::vector<std::string> names;
    for (const PluginField& known : read_->fields()) {
        names.emplace_back(known.name);
    }
    for (const PluginField& field : given_) {
        bool known = false;
        for (const std::string& name : names) {
            known = known || name == field.name;
        }
        if (!known) {
            return invalid_argument("unknown field " + quoted(field.name) + ": expected " +
                                    (names.empty() ? "no fields" : joined(names)));
        }
    }
    return {};
}

Status FieldReader::finish() {
    if (const Status unknown = check_unknown(); !unknown.ok()) {
        fail(unknown.message);
    }
    return status_;
}

}  // namespace sparsespec
