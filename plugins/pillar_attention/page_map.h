// The KV pool as a matrix that the copy engine takes boxes of.
#pragma once

#include <cuda.h>

#include "pillar_attention/params.h"

namespace sparsespec {

// Rows of head_dim numbers, all of the pool's; a box is page_size rows by `block_bytes`, which shared memory holds with
// chunks permuted as TileLayout says. For a pool of 16-bit numbers.
Status map_pages(const PillarAttentionParams& params, int block_bytes, CUtensorMap* map);

}  // namespace sparsespec
