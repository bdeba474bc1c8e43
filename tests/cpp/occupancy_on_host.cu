// How PillarAttention fills a device and which way it goes, for tests on the CPU.
#include "pillar_attention/occupancy.h"

namespace sparsespec {

extern "C" {

// device: as Device has it. filled: workers and room, where the device can be filled. Returns whether it can.
bool fill(int32_t head_dim, int32_t way, const int32_t* device, int32_t* filled) {
    Occupancy occupancy{};
    const Status status = fill_device(head_dim, static_cast<Way>(way),
                                      {device[0], device[1], device[2], device[3], device[4]}, &occupancy);
    filled[0] = occupancy.num_workers;
    filled[1] = occupancy.room;
    return status.ok();
}

int32_t bytes_of_worker(int32_t head_dim, int32_t way, int32_t room) {
    return shared_bytes(static_cast<Way>(way), head_dim, room);
}

// step: query heads, KV heads, rows, slots, longest draft, whether scores are left.
int32_t way_of(const int32_t* step, int32_t major) {
    PillarAttentionParams params{};
    params.num_heads = step[0];
    params.num_kv_heads = step[1];
    params.num_rows = step[2];
    params.step.max_batch_size = step[3];
    params.max_draft_len = step[4];
    params.score_planes = step[5] != 0 ? ScorePlanes::kDiagonal : ScorePlanes::kNone;
    return static_cast<int32_t>(choose_way(params, {132, 0, 0, 0, major}));
}

}  // extern "C"

}  // namespace sparsespec
