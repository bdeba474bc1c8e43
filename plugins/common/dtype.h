// Number types that cross the boundary between a plugin and its kernels.
#pragma once

#include <cstdint>

namespace sparsespec {

enum class Dtype : int32_t { kFloat32, kFloat16, kBfloat16, kFloat8E4m3 };

// Numbers of 16 bits in the 16 bytes that kernels read and write at a time.
constexpr int32_t kVectorNumbers = 8;

}  // namespace sparsespec
