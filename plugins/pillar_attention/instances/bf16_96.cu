#include "pillar_attention/instance_impl.cuh"

namespace sparsespec {

using Kind = KernelKind<__nv_bfloat16, 96, false>;
template Status launch_instance<Kind>(const PillarAttentionParams&, const Occupancy&, cudaStream_t);

}  // namespace sparsespec
