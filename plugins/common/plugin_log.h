// How plugins report failure: a code to the caller, and a message to the logger of whoever loaded the library.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <exception>

#include "common/status.h"

namespace sparsespec {

// What a callback returns when an exception ended it; the codes before it are those of StatusCode.
constexpr int32_t kInternalError = 4;

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// Logs "<who>: <message>" as an error; to standard error without a logger, or with one of another major version of
// TensorRT than the headers'. Allocates nothing; cut at 2 KiB.
void log_error(const char* who, const char* message) noexcept;

// Runs the body of a noexcept callback: 0, or the code of what went wrong, which is logged.
template <typename Body>
int32_t guarded(const char* who, Body&& body) noexcept {
    try {
        const Status status = body();
        if (!status.ok()) {
            log_error(who, status.message.c_str());
        }
        return static_cast<int32_t>(status.code);
    } catch (const std::exception& error) {
        log_error(who, error.what());
    } catch (...) {
        log_error(who, "unknown exception");
    }
    return kInternalError;
}

}  // namespace sparsespec
