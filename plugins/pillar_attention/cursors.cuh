// Where consumers are in what they go through.
#pragma once

#include "pillar_attention/worker.cuh"

namespace sparsespec {

// Who consumes goes through stages, and through the two buffers of their sums.
struct ConsumerCursors {
    RingCursor stages;
    PairCursor sums;
    int scored_parity = 0;
    int buffer = 0;  // of a team's weights; without wgmma of fp16, for an FP8 pool's next tile

    // Where products find the tile that all consumers have made fp16 of. Two buffers in turn make one meeting a tile
    // enough: who has come to that of the next tile is done with this one's products, and only after it is this buffer
    // written to anew.
    template <typename Kind>
    __device__ __forceinline__ const unsigned char* widened(const Worker<Kind>& worker) {
        consumer_sync(worker);
        const unsigned char* tile = worker.buffer(buffer);
        buffer ^= 1;
        return tile;
    }
};

}  // namespace sparsespec
