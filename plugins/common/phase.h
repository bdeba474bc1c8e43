// What a slot does in a step; plugins/phase.py says the same.
#pragma once

#include <cstdint>

namespace sparsespec {

enum class Phase : int32_t { kPrefill = 0, kDraft = 1, kVerify = 2, kIdle = 3 };

}  // namespace sparsespec
