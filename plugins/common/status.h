// How everything below the plugins reports failure: a value, never an exception and never an abort.
#pragma once

#include <string>
#include <utility>

namespace sparsespec {

enum class StatusCode : int {
    kOk = 0,
    kInvalidArgument = 1,  // the caller's: what was expected and what came is in the message
    kUnsupported = 2,      // right, but not built in; the message says what is
    kCuda = 3,             // a CUDA call failed
};

struct [[nodiscard]] Status {
    StatusCode code = StatusCode::kOk;
    std::string message;

    bool ok() const noexcept { return code == StatusCode::kOk; }
};

inline Status invalid_argument(std::string message) {
    return {StatusCode::kInvalidArgument, std::move(message)};
}

inline Status unsupported(std::string message) {
    return {StatusCode::kUnsupported, std::move(message)};
}

}  // namespace sparsespec
