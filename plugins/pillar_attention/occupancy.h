// How PillarAttention fills a device.
#pragma once

#include <cstdint>

#include "common/status.h"

namespace sparsespec {

struct Occupancy {
    int32_t num_workers;  // thread blocks, as many as fit at once
    int32_t num_stages;   // KV tiles in flight and at work, each
};

// For the current device.
Status attention_occupancy(int32_t head_dim, Occupancy* occupancy);

}  // namespace sparsespec
