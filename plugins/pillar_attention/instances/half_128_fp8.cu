#include "pillar_attention/instance_impl.cuh"

namespace sparsespec {

using Kind = KernelKind<__half, 128, true>;
template Status launch_instance<Kind>(const PillarAttentionParams&, const Occupancy&, cudaStream_t);

}  // namespace sparsespec
