// Tiles in the stages of PillarAttention's shared memory, for tests on the CPU.
#include "pillar_attention/shared_memory.cuh"

namespace sparsespec {

namespace {

template <int kBytes, Way kWay>
void put_offsets(int32_t* offsets) {
    using Layout = StageTile<kBytes, kWay>;
    constexpr int kChunks = kBytes / 16;
    for (int place = 0; place < 4; ++place) {
        for (int row = 0; row < kTileTokens; ++row) {
            for (int chunk = 0; chunk < kChunks; ++chunk) {
                *offsets++ = Layout::stage_offset(place) + Layout::offset(row, chunk);
            }
        }
    }
}

// False if keys have not kBytes.
template <int kBytes>
bool put_offsets(int32_t bytes, bool wide, int32_t* offsets) {
    if (bytes != kBytes) {
        return false;
    }
    wide ? put_offsets<kBytes, Way::kWide>(offsets) : put_offsets<kBytes, Way::kNarrow>(offsets);
    return true;
}

}  // namespace

extern "C" {

// offsets: [4, kTileTokens, bytes / 16], of two tiles' keys and values. Returns whether there are keys of so many
// bytes.
bool tile_offsets(int32_t bytes, bool wide, int32_t* offsets) {
    return put_offsets<64>(bytes, wide, offsets) || put_offsets<96>(bytes, wide, offsets) ||
           put_offsets<128>(bytes, wide, offsets) || put_offsets<192>(bytes, wide, offsets) ||
           put_offsets<256>(bytes, wide, offsets);
}

}  // extern "C"

}  // namespace sparsespec
