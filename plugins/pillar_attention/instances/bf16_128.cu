#include "pillar_attention/instance_impl.cuh"

namespace sparsespec {

template Status launch_instance<__nv_bfloat16, 128>(const PillarAttentionParams&, const Occupancy&, cudaStream_t);

}  // namespace sparsespec
