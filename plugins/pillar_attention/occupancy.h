// How PillarAttention fills a device.
#pragma once

#include <cstdint>

#include "pillar_plan/params.h"

namespace sparsespec {

struct Occupancy {
    Way way;
    int32_t processors;
    int32_t num_workers;  // thread blocks, as many as fit at once
    int32_t room;         // for keys and values in flight and at work, see shared_memory.cuh
    bool starts_early;    // whether a launch can start beside the one before
};

}  // namespace sparsespec
