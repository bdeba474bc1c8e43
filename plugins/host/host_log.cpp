#include "host/host_log.h"

namespace sparsespec::host {
namespace {

struct ThreadLog {
    std::string messages;
    std::string error;
};

ThreadLog& thread_log() {
    thread_local ThreadLog log;
    return log;
}

void append_line(std::string& text, const char* line) {
    text += (text.empty() ? "" : "\n") + std::string(line);
}

// Plugins log in the thread that called them, so no lock is needed.
class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kWARNING || message == nullptr) {
            return;
        }
        try {
            append_line(thread_log().messages, message);
        } catch (...) {  // out of memory: the code of the call still tells that it failed
        }
    }
};

class LoggerFinder final : public nvinfer1::ILoggerFinder {
public:
    nvinfer1::ILogger* findLogger() override { return &logger_; }

private:
    Logger logger_;
};

}  // namespace

// As TensorRT's library says it: a plugin that was built for another major version asks before it logs.
extern "C" __attribute__((visibility("default"))) int32_t getInferLibMajorVersion() noexcept {
    return NV_TENSORRT_MAJOR;
}

nvinfer1::ILoggerFinder& logger_finder() {
    static auto* const finder = new LoggerFinder();  // never destroyed: libraries keep it
    return *finder;
}

void fail(const std::string& message) {
    throw HostError{SPARSESPEC_HOST_FAILED, message};
}

void refuse(const std::string& message) {
    throw HostError{SPARSESPEC_HOST_REFUSED, message};
}

const char* last_error() noexcept {
    return thread_log().error.c_str();
}

void forget_messages() noexcept {
    thread_log().messages.clear();
    thread_log().error.clear();
}

void set_error(const char* what) noexcept {
    ThreadLog& log = thread_log();
    try {
        log.error = log.messages;
        append_line(log.error, what);
    } catch (...) {
        log.error.clear();
    }
}

int32_t checked(const char* method, int32_t code) {
    if (code != 0) {
        set_error((std::string(method) + " returned " + std::to_string(code)).c_str());
    }
    return code;
}

}  // namespace sparsespec::host
