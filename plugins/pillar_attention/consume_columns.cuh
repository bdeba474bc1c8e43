// A team of consumers: tile after tile of a job, and what the tiles add up to.
#pragma once

#include "pillar_attention/column_finish.cuh"
#include "pillar_attention/column_scores.cuh"
#include "pillar_attention/cursors.cuh"

namespace sparsespec {

// Before the first tile. With kAttends bases and sums start anew; else bases are such that weights are probabilities.
template <bool kAttends, typename Kind, int kColumns>
__device__ __forceinline__ void open_columns(const Worker<Kind>& worker, ColumnRows<Kind, kColumns>& rows,
                                             const float* scales) {
    constexpr int kEights = kColumns / 8;
    const RowTile& tile = worker.team_tile();
    const RowRange scored = scored_rows(tile, 0, kColumns);
    rows.read_by_all = tile.last_key(0) + 1;
    rows.scale[0][0] = rows.scale[0][1] = logit_scale(worker);
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
#pragma unroll
        for (int block = 0; block < Kind::kHeadBlocks; ++block) {
            float (&four)[4] = rows.output[block][eight];
            four[0] = four[1] = four[2] = four[3] = 0;
        }
#pragma unroll
        for (int index = 0; index < 2; ++index) {
            const int packed = eight * 8 + worker.lane % 4 * 2 + index;
            const bool is_scored = scored_place(tile, scored, packed) >= 0;
            rows.base[eight][index] = kAttends    ? kLowestBase
                                      : is_scored ? worker.shared.team_lse[worker.team][packed] - kMostExponent
                                                  : INFINITY;
            rows.sum[eight][index] = 0;
            if constexpr (Kind::kFp8) {
                rows.scale[eight][index] = logit_scale(worker) * scales[packed];
            }
        }
    }
}

// The tile's sums, to the scorer.
template <typename Kind, int kEights>
__device__ __forceinline__ void put_tile_sums(const Worker<Kind>& worker, const ScoredColumns<Kind, kEights>& scored,
                                              const PackedColumns<kEights>& taken, PairCursor& sums) {
    auto& pipeline = worker.shared.pipeline;
    barrier_wait(&pipeline.sums_empty[sums.place()], sums.parity() ^ 1);
    put_column_sums(worker, scored, taken, sums.place());
    barrier_arrive(&pipeline.sums_full[sums.place()]);
    sums.advance();
}

// What scores need of the weights, in fp16. `packed`: weights in the products' type.
template <typename Kind, int kEights>
__device__ __forceinline__ void take_columns(const Worker<Kind>& worker, const ScoredColumns<Kind, kEights>& scored,
                                             const float (&base)[kEights][2], const ColumnNumbers<kEights>& weights,
                                             float most, const PackedColumns<kEights>& packed,
                                             PackedColumns<kEights>& taken) {
    if constexpr (std::is_same_v<typename Kind::Product, __half>) {
#pragma unroll
        for (int eight = 0; eight < kEights; ++eight) {
            taken[eight][0] = packed[eight][0];
            taken[eight][1] = packed[eight][1];
        }
    } else {
        pack_columns<__half>(weights, taken);
    }
    if (most > scored.limit) {
        cut_columns(worker, base, weights, taken);
    }
}

// Tiles' logits, not masked as yet. Their keys' stages are left, so that they can be filled anew while the values are
// still to be read. Of FP8, the values become wider meanwhile, and are left too. `meanwhile`: what else there is to do
// under the products.
template <typename Kind, int kTiles, int kEights, typename Meanwhile>
__device__ __forceinline__ void find_logits(const Worker<Kind>& worker, const TileStages<kTiles>& stages,
                                            ColumnNumbers<kEights> (&logits)[kTiles], WideValues<Kind> (&wide)[kTiles],
                                            const Meanwhile& meanwhile) {
    start_column_keys(worker, stages.keys, logits);
    if constexpr (Kind::kFp8) {
        wait_for_stages<false>(worker, stages.values);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            widen_column_values(worker, stages.values[tile].place, wide[tile]);
        }
        release_stages(worker, stages.values, stages.count);
    }
    meanwhile();
    wait_for_logits(logits);
    release_stages(worker, stages.keys, stages.count);
}

// What consumers have of a job: its rows, and what scores need of the weights of the tiles before. kTiles: tiles that
// are taken at a time.
template <typename Kind, int kColumns, int kTiles>
struct ColumnJob {
    static constexpr int kEights = kColumns / 8;

    ColumnRows<Kind, kColumns> rows;
    ScoredColumns<Kind, kEights> scored;
    PackedColumns<kEights> taken[kTiles];
};

// The tiles' sums, to the scorer.
template <typename Kind, int kColumns, int kTiles>
__device__ __forceinline__ void put_taken(const Worker<Kind>& worker, const ColumnJob<Kind, kColumns, kTiles>& job,
                                          int count, PairCursor& sums) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
        if (tile < count) {
            put_tile_sums(worker, job.scored, job.taken[tile], sums);
        }
    }
}

// A tile, or kTiles of them. Sums of the tiles before are made under these ones' products with the keys.
template <bool kScores, typename Kind, int kColumns, int kTiles>
__device__ __forceinline__ void attend_columns(const Worker<Kind>& worker, ColumnJob<Kind, kColumns, kTiles>& job,
                                               const TileRange& range, int kv_tile, ConsumerCursors& at) {
    constexpr int kEights = kColumns / 8;
    ColumnNumbers<kEights> logits[kTiles], weights[kTiles];
    PackedColumns<kEights> packed[kTiles];
    WideValues<Kind> wide[kTiles];
    const TileStages<kTiles> stages(worker, at.stages, range.end - kv_tile);
    const bool is_first = kv_tile == range.begin;
    wait_for_stages<true>(worker, stages.keys);
    uint64_t unmasked[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
        unmasked[tile] = tile < stages.count ? worker.shared.pipeline.unmasked[stages.keys[tile].place] : 0;
    }
    find_logits(worker, stages, logits, wide, [&] {
        if (kScores && !is_first) {
            put_taken(worker, job, kTiles, at.sums);
        }
    });
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
        mask_columns(worker, job.rows, kv_tile + tile, unmasked[tile], logits[tile]);
    }
    const Softened softened =
        soften_columns(worker, job.rows, logits, stages.values, at.buffer, is_first, weights, packed);
    start_column_values(worker, job.rows, stages.values, wide, at.buffer);
    if constexpr (kScores) {
        if (softened.moved) {
            set_factors(worker, job.rows.base, job.scored);
        }
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            take_columns(worker, job.scored, job.rows.base, weights[tile], softened.most, packed[tile],
                         job.taken[tile]);
        }
    }
    wait_for_output(job.rows);
    if constexpr (!Kind::kFp8) {
        release_stages(worker, stages.values, stages.count);
    }
    at.buffer ^= 1;
}

// All of a job's tiles.
template <bool kScores, typename Kind, int kColumns, int kTiles>
__device__ __forceinline__ void attend_range(const Worker<Kind>& worker, ColumnJob<Kind, kColumns, kTiles>& job,
                                             const TileRange& range, ConsumerCursors& at) {
    int kv_tile = range.begin;
#pragma unroll 1
    for (; kv_tile < range.end; kv_tile += kTiles) {
        attend_columns<kScores>(worker, job, range, kv_tile, at);
    }
    if (kScores && range.begin < range.end) {
        put_taken(worker, job, range.end - (kv_tile - kTiles), at.sums);
    }
}

// All tiles of a job that only scores, by log-sum-exps that are known.
template <typename Kind, int kColumns, int kTiles>
__device__ __forceinline__ void score_range(const Worker<Kind>& worker, ColumnJob<Kind, kColumns, kTiles>& job,
                                            const TileRange& range, ConsumerCursors& at) {
    static_assert(kTiles == 1, "tile by tile");
#pragma unroll 1
    for (int kv_tile = range.begin; kv_tile < range.end; ++kv_tile) {
        ColumnNumbers<kColumns / 8> logits[1], weights;
        const RingCursor keys[1] = {at.stages};
        wait_for_stages<true>(worker, keys);
        const uint64_t unmasked = worker.shared.pipeline.unmasked[at.stages.place];
        start_column_keys(worker, keys, logits);
        wait_for_logits(logits);
        release_stage(worker, at.stages);
        wait_for_stage<false>(worker, at.stages);
        release_stage(worker, at.stages);  // of the values, which nobody reads
        mask_columns(worker, job.rows, kv_tile, unmasked, logits[0]);
        weigh_by_lse(job.rows, logits[0], weights);
        pack_columns<__half>(weights, job.taken[0]);
        put_tile_sums(worker, job.scored, job.taken[0], at.sums);
    }
}

// A team without rows: it leaves all stages as they come, and sums of nothing.
template <typename Kind>
__device__ __forceinline__ void pass_by(const Worker<Kind>& worker, ConsumerCursors& at) {
    auto& pipeline = worker.shared.pipeline;
    const TileRange range = worker.job().range;
    const Pass pass = worker.job().pass;
    const int sum = scored_row_count(worker.tile()) + worker.team;
    if (!pass.attends) {
        consumer_sync(worker);  // as consume_as does
    }
#pragma unroll 1
    for (int kv_tile = range.begin; kv_tile < range.end; ++kv_tile) {
#pragma unroll 1
        for (int half = 0; half < 2; ++half) {
            wait_for_stage<false>(worker, at.stages);
            release_stage(worker, at.stages);
        }
        if (pass.scores) {
            barrier_wait(&pipeline.sums_empty[at.sums.place()], at.sums.parity() ^ 1);
            if (worker.thread < kTileTokens) {
                worker.shared.sums[at.sums.place()][sum][worker.thread] = 0;
            }
            barrier_arrive(&pipeline.sums_full[at.sums.place()]);
            at.sums.advance();
        }
    }
}

// The worker as a thread of a team sees it. Made anew for each job: else the compiler would make what depends on the
// thread once for jobs of all kinds, and spill it.
template <typename Kind>
__device__ __forceinline__ Worker<Kind> in_team(Worker<Kind> worker) {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(thread));
    worker.team = num_teams(Kind::kWay) == 1 ? 0 : thread / kTeamThreads;
    worker.thread = thread % kTeamThreads;
    worker.warp = worker.thread / 32;
    worker.lane = thread % 32;
    return worker;
}

// The job, for a team with kColumns packed rows at most.
template <bool kAttends, bool kScores, int kColumns, int kTiles, typename Kind>
__device__ __forceinline__ void consume_as(const Worker<Kind>& consumer, ConsumerCursors& at) {
    const Worker<Kind> worker = in_team(consumer);
    ColumnJob<Kind, kColumns, kTiles> job{};  // else what scores need would be alive, without a value, from job to job
    float* scales = reinterpret_cast<float*>(worker.weights(at.buffer));
    const float lse = kScores ? lane_lse(worker) : 0;
    load_queries<kColumns>(worker, scales);
    if constexpr (kScores) {
        put_team_lse(worker, lse);
    }
    products_see_copies();
    if constexpr (kAttends) {
        team_sync(worker);
    } else {
        // All teams have read what the pass before left, before a job after this one writes anew.
        consumer_sync(worker);
    }
    open_columns<kAttends>(worker, job.rows, scales);
    const TileRange range = worker.job().range;
    if constexpr (kAttends) {
        attend_range<kScores>(worker, job, range, at);
        finish_columns(worker, job.rows);
    } else {
        set_factors(worker, job.rows.base, job.scored);
        score_range(worker, job, range, at);
        team_sync(worker);  // the next job's queries go to where these are
    }
}

// kTiles: at a time, where nothing is scored.
template <int kColumns, int kTiles, typename Kind>
__device__ __forceinline__ void attend_as(const Worker<Kind>& worker, ConsumerCursors& at) {
    if (worker.job().pass.scores) {
        consume_as<true, true, kColumns, 1>(worker, at);
    } else {
        consume_as<true, false, kColumns, kTiles>(worker, at);
    }
}

// The job, with as few columns as there are products for: 32 and 40 are nine rows of three heads and of four. Two tiles
// at a time gain where few rows leave a team little else to do than to meet, and stages are small.
template <typename Kind>
__device__ __forceinline__ void consume_columns(const Worker<Kind>& consumer, ConsumerCursors& at) {
    constexpr bool kNarrow = Kind::kWay == Way::kNarrow;
    constexpr int kFewTiles = Kind::kHeadDim == 64 ? 2 : 1, kSomeTiles = Kind::kFp8 ? kFewTiles : 1;
    const Worker<Kind> worker = in_team(consumer);
    const RowTile& tile = worker.team_tile();
    const Pass pass = worker.job().pass;
    const int packed_rows = tile.packed_rows();
    const bool many_scored = pass.scores && tile.num_rows > ScoredColumns<Kind, 40 / 8>::kMostRows;
    if (packed_rows == 0) {
        pass_by(worker, at);
    } else if (!pass.attends) {
        consume_as<false, true, kTeamRows, 1>(consumer, at);
    } else if (packed_rows <= 8 && !pass.scores) {
        consume_as<true, false, 8, kFewTiles>(consumer, at);
    } else if (kNarrow && packed_rows <= 32 && !many_scored) {
        attend_as<32, kSomeTiles>(consumer, at);
    } else if (packed_rows <= 40 && !many_scored) {
        attend_as<40, 1>(consumer, at);
    } else {
        attend_as<kTeamRows, 1>(consumer, at);
    }
}

}  // namespace sparsespec
