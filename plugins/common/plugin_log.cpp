#include "common/plugin_log.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>

namespace sparsespec {
namespace {

// Owned by TensorRT, or by the plugin host. Null if there is none that can be used.
std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

// Major version of the TensorRT that an object with virtual methods comes from; 0 if its library does not say.
int32_t tensorrt_version_of(const void* object) noexcept {
    Dl_info home{};
    const void* const virtual_methods = *static_cast<const void* const*>(object);
    if (dladdr(virtual_methods, &home) == 0 || home.dli_fname == nullptr) {
        return 0;
    }
    void* const library = dlopen(home.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) {
        return 0;
    }
    const auto version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibMajorVersion"));
    dlclose(library);  // it was open before
    return version == nullptr ? 0 : version();
}

// TensorRT 11 gave ILogger and ILoggerFinder other virtual methods than 10. Whoever opens this library with another
// TensorRT than it was built for finds plugins that work, but their messages must not go through such an object.
bool fits_headers(const nvinfer1::ILoggerFinder* finder) noexcept {
    const int32_t version = tensorrt_version_of(finder);
    return version == 0 || version == NV_TENSORRT_MAJOR;
}

nvinfer1::ILogger* find_logger() noexcept {
    nvinfer1::ILoggerFinder* const finder = logger_finder.load();
    try {
        return finder == nullptr ? nullptr : finder->findLogger();
    } catch (...) {
        return nullptr;
    }
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
    logger_finder.store(finder != nullptr && fits_headers(finder) ? finder : nullptr);
}

void log_error(const char* who, const char* message) noexcept {
    char line[2048];
    std::snprintf(line, sizeof(line), "%s: %s", who, message);
    if (nvinfer1::ILogger* const logger = find_logger(); logger != nullptr) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, line);
    } else {
        std::fprintf(stderr, "sparsespec: %s\n", line);
    }
}

}  // namespace sparsespec
