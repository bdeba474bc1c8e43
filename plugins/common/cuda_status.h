// CUDA's errors as a Status.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "common/status.h"

namespace sparsespec {

inline Status cuda_status(cudaError_t error, const char* what) {
    if (error == cudaSuccess) {
        return {};
    }
    (void)cudaGetLastError();  // or the next launch that succeeds would be blamed for it
    return {StatusCode::kCuda, std::string(what) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error)};
}

}  // namespace sparsespec
