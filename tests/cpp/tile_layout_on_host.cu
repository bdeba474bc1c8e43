// TileLayout of PillarAttention's shared memory, for tests on the CPU.
#include "pillar_attention/shared_memory.cuh"

namespace sparsespec {

namespace {

template <int kBytes, Way kWay>
void put_offsets(int32_t* offsets) {
    using Layout = TileLayout<kBytes, kWay>;
    constexpr int kChunks = kBytes / 16;
    for (int row = 0; row < kTileTokens; ++row) {
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            offsets[row * kChunks + chunk] = Layout::offset(row, chunk);
        }
    }
}

template <int kBytes>
void put_offsets(bool wide, int32_t* offsets) {
    wide ? put_offsets<kBytes, Way::kWide>(offsets) : put_offsets<kBytes, Way::kNarrow>(offsets);
}

}  // namespace

extern "C" {

// offsets: [kTileTokens, bytes / 16]. Returns whether there are keys of so many bytes.
int32_t tile_offsets(int32_t bytes, int32_t wide, int32_t* offsets) {
    switch (bytes) {
        case 64:
            put_offsets<64>(wide != 0, offsets);
            return 1;
        case 96:
            put_offsets<96>(wide != 0, offsets);
            return 1;
        case 128:
            put_offsets<128>(wide != 0, offsets);
            return 1;
        case 192:
            put_offsets<192>(wide != 0, offsets);
            return 1;
        case 256:
            put_offsets<256>(wide != 0, offsets);
            return 1;
        default:
            return 0;
    }
}

}  // extern "C"

}  // namespace sparsespec
