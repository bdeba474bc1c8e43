// Number types that cross the boundary between a plugin and its kernels.
#pragma once

#include <cstdint>

namespace sparsespec {

enum class Dtype : int32_t { kFloat32, kFloat16, kBfloat16, kFloat8E4m3 };

}  // namespace sparsespec
