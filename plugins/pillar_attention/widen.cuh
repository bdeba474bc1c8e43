// Without wgmma: tiles of an FP8 pool become fp16, by the consumers.
#pragma once

#include "pillar_attention/worker.cuh"

namespace sparsespec {

// How consumers share a tile. A lane takes 16 bytes at a time, and the warp kRows rows of what becomes a block of
// columns in fp16. Eight lanes at once read all banks, and so does each of their two writes: rows r and r ^ 5 lie in
// the two halves of what eight lanes read, and of what they write one takes the even chunks and the other the odd ones.
// The four rows that eight lanes have at head_dim 96 do so in their order.
template <typename Kind>
struct WidenShare {
    using From = typename Kind::StageLayout;
    using To = typename Kind::ValueLayout;
    static constexpr int kChunks = To::kChunks / 2;  // of a row
    static constexpr int kRows = 32 / kChunks;
    static constexpr int kGroups = kTileTokens / kRows;  // of rows
    static constexpr int kGroupsEach = kGroups > Kind::kWarps ? kGroups / Kind::kWarps : 1;
    static constexpr int kSharers = kGroups < Kind::kWarps ? Kind::kWarps / kGroups : 1;  // warps with the same rows
    static constexpr int kBlocksEach = (To::kBlocks + kSharers - 1) / kSharers;
    static_assert(kGroupsEach * Kind::kWarps == kGroups * kSharers, "every warp has as many rows");

    __device__ __forceinline__ static int row(int lane) {
        return kChunks == 4 ? lane / 8 ^ lane / 4 % 2 * 5 : lane / kChunks;
    }
    // Where a lane reads, from where it does of the first block and rows on.
    __device__ __forceinline__ static int source(int first, int block, int group) {
        const int chunk = block * kChunks;
        return (first ^ chunk % From::kChunks * 16) + chunk / From::kChunks * From::kBlockBytes +
               group * kRows / 8 * From::kEightRows;
    }
};

// 16 numbers, as two chunks.
__device__ __forceinline__ void put_halves(const uint4& chunk, unsigned char* low, unsigned char* high) {
    const uint2 x = fp8_to_half(chunk.x), y = fp8_to_half(chunk.y);
    const uint2 z = fp8_to_half(chunk.z), w = fp8_to_half(chunk.w);
    *reinterpret_cast<uint4*>(low) = {x.x, x.y, y.x, y.y};
    *reinterpret_cast<uint4*>(high) = {z.x, z.y, w.x, w.y};
}

// This warp's share of a stage, to a buffer. Registers are short: all addresses are made of one for what is read and
// one for what is written, and those are made anew each time.
template <typename Kind>
__device__ __forceinline__ void widen(const Worker<Kind>& worker, int place, int buffer) {
    using Share = WidenShare<Kind>;
    using To = typename Share::To;
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(thread));  // else the compiler would make them once and spill them
    const int warp = thread / 32, lane = thread % 32;
    const int row = warp / Share::kSharers * Share::kGroupsEach * Share::kRows + Share::row(lane);
    const int chunk = lane % Share::kChunks, first_block = warp % Share::kSharers;
    const int from = worker.stage_offset(place) + Share::From::offset(row, chunk);
    const int low = buffer * tile_bytes(Kind::kHeadDim, 2) + To::offset(row, 2 * chunk), high = low ^ 16;
#pragma unroll
    for (int index = 0; index < Share::kBlocksEach; ++index) {
        const int block = first_block + index * Share::kSharers;
        if (block < To::kBlocks) {
            uint4 read[Share::kGroupsEach];
#pragma unroll
            for (int group = 0; group < Share::kGroupsEach; ++group) {
                read[group] = *reinterpret_cast<const uint4*>(worker.memory + Share::source(from, block, group));
            }
#pragma unroll
            for (int group = 0; group < Share::kGroupsEach; ++group) {
                unsigned char* to = worker.memory + block * To::kBlockBytes + group * Share::kRows / 8 * To::kEightRows;
                put_halves(read[group], to + low, to + high);
            }
        }
    }
}

}  // namespace sparsespec
