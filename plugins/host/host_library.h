// A plugin library that was opened, and the creators in it.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

#include "host/plugin_host.h"

struct SparsespecLibrary {
    std::vector<nvinfer1::IPluginCreatorV3One*> creators;
};

namespace sparsespec::host {

SparsespecLibrary open_library(const char* path);

// Throws for an index out of range.
nvinfer1::IPluginCreatorV3One& creator_at(const SparsespecLibrary* library, int32_t index);

}  // namespace sparsespec::host
