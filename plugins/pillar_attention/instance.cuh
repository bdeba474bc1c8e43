// One kernel for each kind, each in a file of its own under instances/: they take long to compile.
#pragma once

#include <cuda_runtime_api.h>

#include "pillar_attention/occupancy.h"
#include "pillar_attention/params.h"
#include "pillar_attention/worker.cuh"

namespace sparsespec {

template <typename Kind>
Status launch_instance(const PillarAttentionParams& params, const Occupancy& occupancy, cudaStream_t stream);

}  // namespace sparsespec
