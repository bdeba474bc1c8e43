// Launches that start under the end of the one before (programmatic dependent launch, sm_90 on), and wait by
// themselves.
#pragma once

#include <cuda_runtime_api.h>

namespace sparsespec {

// Lets the launch that waits for this one start, where it was launched to do so.
__device__ __forceinline__ void start_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n");
#endif
}

// Waits for the launch before, where it has let this one start, and sees what it wrote.
__device__ __forceinline__ void wait_for_launch_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// A launch that may start before the one before it has ended, and waits for that by itself.
struct EarlyLaunch {
    cudaLaunchAttribute early{};
    cudaLaunchConfig_t config{};  // points to `early`

    EarlyLaunch(const EarlyLaunch&) = delete;
    EarlyLaunch& operator=(const EarlyLaunch&) = delete;
    EarlyLaunch(int blocks, int threads, int bytes, bool starts_early, cudaStream_t stream) {
        early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        early.val.programmaticStreamSerializationAllowed = 1;
        config.gridDim = dim3(blocks);
        config.blockDim = dim3(threads);
        config.dynamicSmemBytes = bytes;
        config.stream = stream;
        config.attrs = &early;
        config.numAttrs = starts_early ? 1 : 0;
    }
};

// Whether the program of a kernel that this device runs has the instruction of wait_for_launch_before: without it, an
// early start would be a race. Also fails where the library has no program for this device.
template <typename Kernel>
cudaError_t can_start_early(Kernel* kernel, bool* starts_early) {
    cudaFuncAttributes compiled{};
    const cudaError_t error = cudaFuncGetAttributes(&compiled, kernel);
    *starts_early = compiled.ptxVersion >= 90;
    return error;
}

}  // namespace sparsespec
