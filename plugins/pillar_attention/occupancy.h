// How PillarAttention fills a device.
#pragma once

#include <cstdint>

#include "pillar_plan/params.h"

namespace sparsespec {

struct Occupancy {
    Way way;
    int32_t num_workers;  // thread blocks, as many as fit at once
    int32_t num_stages;   // of keys or values, in flight and at work
    bool starts_early;    // whether a launch can start beside the one before
    bool copies_boxes;    // whether copies of whole pages are the copy engine's
};

}  // namespace sparsespec
