// The KV pool as a matrix that the copy engine takes boxes of.
#pragma once

#include <cuda.h>

#include "pillar_attention/params.h"

namespace sparsespec {

// The pool in boxes of the keys and the values of a page and head, which come to shared memory as StageTile says, in
// blocks of `block_bytes`; the last dimension counts rows by eight. For a pool of 16-bit numbers.
Status map_pages(const PillarAttentionParams& params, int block_bytes, CUtensorMap* map);

}  // namespace sparsespec
