#include "host/host_library.h"

#include <dlfcn.h>

#include <cstring>
#include <string>

#include "host/host_log.h"

namespace sparsespec::host {
namespace {

using nvinfer1::IPluginCreatorInterface;

using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
using SetLoggerFinder = void (*)(nvinfer1::ILoggerFinder*);

std::string loader_message() {
    const char* const message = dlerror();
    return message == nullptr ? "the loader gave no reason" : message;
}

// Null if the library exports no such function.
template <typename Function>
Function find_function(void* handle, const char* name) {
    return reinterpret_cast<Function>(dlsym(handle, name));
}

bool is_v3_one(const IPluginCreatorInterface& creator) {
    return std::strcmp(creator.getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0;
}

}  // namespace

SparsespecLibrary open_library(const char* path) {
    void* const handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        fail("cannot open the plugin library: " + loader_message());
    }
    const auto get_creators = find_function<GetCreators>(handle, "getCreators");
    if (get_creators == nullptr) {
        dlclose(handle);
        fail(std::string(path) + ": expected a plugin library, which exports getCreators; it exports no such function");
    }
    if (const auto set_finder = find_function<SetLoggerFinder>(handle, "setLoggerFinder"); set_finder != nullptr) {
        set_finder(&logger_finder());
    }
    int32_t count = 0;
    IPluginCreatorInterface* const* const creators = get_creators(count);
    SparsespecLibrary library;
    for (int32_t index = 0; creators != nullptr && index < count; ++index) {
        if (creators[index] != nullptr && is_v3_one(*creators[index])) {
            library.creators.push_back(static_cast<nvinfer1::IPluginCreatorV3One*>(creators[index]));
        }
    }
    return library;
}

nvinfer1::IPluginCreatorV3One& creator_at(const SparsespecLibrary* library, int32_t index) {
    if (library == nullptr || index < 0 || index >= static_cast<int32_t>(library->creators.size())) {
        fail("expected the index of a creator, got " + std::to_string(index));
    }
    return *library->creators[static_cast<size_t>(index)];
}

}  // namespace sparsespec::host
