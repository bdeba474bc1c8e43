// One kernel for each type and head size, each in a file of its own under instances/: they take long to compile.
#pragma once

#include <cuda_runtime_api.h>

#include "pillar_attention/occupancy.h"
#include "pillar_attention/params.h"

namespace sparsespec {

template <typename T, int kHeadDim>
Status launch_instance(const PillarAttentionParams& params, const Occupancy& occupancy, cudaStream_t stream);

}  // namespace sparsespec
