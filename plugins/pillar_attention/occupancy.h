// How PillarAttention fills a device, and which way it goes. Known on the host, without a device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "common/status.h"
#include "pillar_attention/params.h"
#include "pillar_attention/shared_memory.cuh"

namespace sparsespec {

struct Device {
    int32_t processors;
    int32_t memory_per_processor;  // shared, in bytes
    int32_t memory_per_block;
    int32_t reserved_memory;
    int32_t major;  // of the compute capability
};

struct Occupancy {
    Way way;
    int32_t processors;
    int32_t num_workers;  // thread blocks, as many as fit at once
    int32_t room;         // for keys and values in flight and at work, see shared_memory.cuh
    bool starts_early;    // whether a launch can start beside the one before
};

inline Status head_dim_error(int32_t head_dim) {
    return unsupported("expected head_dim 64, 96 or 128, got " + std::to_string(head_dim));
}

// As much room as leaves some for workers_per_processor; on devices with little shared memory, for one.
inline Status fill_device(int32_t head_dim, Way way, const Device& device, Occupancy* occupancy) {
    constexpr int kLeastRoom = 4, kLeastRoomBesideOthers = 6;
    if (head_dim != 64 && head_dim != 96 && head_dim != 128) {
        return head_dim_error(head_dim);
    }
    for (int workers = workers_per_processor(way); workers >= 1; --workers) {
        for (int room = kMaxRoom; room >= (workers > 1 ? kLeastRoomBesideOthers : kLeastRoom); --room) {
            const int bytes = shared_bytes(way, head_dim, room);
            if (bytes <= device.memory_per_block &&
                workers * (bytes + device.reserved_memory) <= device.memory_per_processor) {
                *occupancy = {way, device.processors, std::min(device.processors * workers, most_workers(way)), room,
                              device.major >= 9};
                return {};
            }
        }
    }
    return unsupported("expected " + std::to_string(shared_bytes(way, head_dim, kLeastRoom)) +
                       " bytes of shared memory per thread block, the device has " +
                       std::to_string(device.memory_per_block));
}

// Wide where the rows of a verification would not fit a narrow row tile, and for steps that must be of a prompt: they
// have more rows than drafts and verifications can have, and so many that the prompt's work is the most of it. Not
// where no slot leaves scores and there is no more than a row for each, as where all draft, or decode without drafts: a
// verification among them would read its keys twice. In other steps drafts of large groups pay for the others.
inline Way choose_way(const PillarAttentionParams& params, const Device& device) {
    constexpr int kUsualRows = 9, kManyRows = 1024;
    const int rows = params.num_rows, batch = params.step.max_batch_size;
    const bool single_rows = params.score_planes == ScorePlanes::kNone && rows <= batch;
    const bool large_group = kUsualRows * (params.num_heads / params.num_kv_heads) > tile_rows(Way::kNarrow);
    const bool has_prompt = rows >= kManyRows && rows > batch * (params.max_draft_len + 1);
    return device.major == 9 && ((large_group && !single_rows) || has_prompt) ? Way::kWide : Way::kNarrow;
}

}  // namespace sparsespec
