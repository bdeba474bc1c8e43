// Collects what plugins log, per thread, and makes it the text of the thread's last error.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <exception>
#include <string>
#include <type_traits>

#include "host/plugin_host.h"

namespace sparsespec::host {

// Of this process; installed into every library that is opened.
nvinfer1::ILoggerFinder& logger_finder();

// A failure of the host's own; the message says what was expected and what came.
struct HostError {
    int32_t code;
    std::string message;
};

[[noreturn]] void fail(const std::string& message);
[[noreturn]] void refuse(const std::string& message);

// Of the calling thread.
const char* last_error() noexcept;
void forget_messages() noexcept;
void set_error(const char* what) noexcept;

// Runs the body of a C function: its answer, or if an exception ended it a negative code, or a null pointer.
template <typename Body>
auto at_boundary(Body&& body) noexcept {
    using Answer = decltype(body());
    int32_t code = SPARSESPEC_HOST_FAILED;
    forget_messages();
    try {
        return body();
    } catch (const HostError& error) {
        set_error(error.message.c_str());
        code = error.code;
    } catch (const std::exception& error) {
        set_error(error.what());
    } catch (...) {
        set_error("unknown exception");
    }
    if constexpr (std::is_pointer_v<Answer>) {
        return Answer{nullptr};
    } else {
        return Answer{code};
    }
}

// The code of a plugin's method, which becomes the last error unless it is 0.
int32_t checked(const char* method, int32_t code);

}  // namespace sparsespec::host
