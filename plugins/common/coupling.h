// How sampled drafts and verifications belong together.
#pragma once

#include <cstdint>

namespace sparsespec {

enum class Coupling : int32_t {
    kRejection,  // drawn apart, and accepted by a comparison of both distributions
    kGumbel,     // each the winner of one race per position, and accepted where they are equal
};

}  // namespace sparsespec
