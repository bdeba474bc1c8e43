// The consumers of narrow workers with wgmma: tile after tile of a job, and what the tiles add up to.
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
    const RowTile& tile = worker.tile();
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
                                      : is_scored ? *known_lse(worker, packed) - kMostExponent
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
__device__ __forceinline__ void put_tile_sums(const Worker<Kind>& worker, const ScoredColumns<kEights>& scored,
                                              const PackedColumns<kEights>& taken, PairCursor& sums) {
    auto& pipeline = worker.shared.pipeline;
    barrier_wait(&pipeline.sums_empty[sums.place()], sums.parity() ^ 1);
    put_column_sums(worker, scored, taken, sums.place());
    barrier_arrive(&pipeline.sums_full[sums.place()]);
    sums.advance();
}

// What scores need of the weights, in fp16. `packed`: the same in the products' type.
template <typename Kind, int kEights>
__device__ __forceinline__ void take_columns(const Worker<Kind>& worker, const ScoredColumns<kEights>& scored,
                                             const float (&base)[kEights][2], const ColumnNumbers<kEights>& weights,
                                             float most, PackedColumns<kEights>& packed) {
    if constexpr (!std::is_same_v<typename Kind::Product, __half>) {
        pack_columns<__half>(weights, packed);
    }
    if (most > scored.limit) {
        cut_columns(worker, base, weights, packed);
    }
}

// A tile's logits, not masked as yet. Its keys' stage is left, so that it can be filled anew while the values are still
// to be read. Of FP8, the values become wider meanwhile, and are left too. `stages` comes to be at the values' stage.
// Returns a bit for each key that any row may read.
template <typename Kind, int kEights>
__device__ __forceinline__ uint64_t find_logits(const Worker<Kind>& worker, RingCursor& stages,
                                                ColumnNumbers<kEights>& logits, WideValues<Kind>& wide) {
    const RingCursor keys = stages;
    wait_for_stage(worker, keys);
    const uint64_t unmasked = worker.shared.pipeline.unmasked[keys.place];
    start_column_keys(worker, keys.place, logits);
    stages.advance(worker.num_stages);
    if constexpr (Kind::kFp8) {
        wait_for_stage<false>(worker, stages);
        widen_column_values(worker, stages.place, wide);
        barrier_arrive(&worker.shared.pipeline.empty[stages.place]);
    }
    products_wait();
    hold(logits);
    barrier_arrive(&worker.shared.pipeline.empty[keys.place]);
    return unmasked;
}

// One tile. Scores are made under the products with the values.
template <bool kScores, typename Kind, int kColumns>
__device__ __forceinline__ void attend_columns(const Worker<Kind>& worker, ColumnRows<Kind, kColumns>& rows,
                                               ScoredColumns<kColumns / 8>& scored, int kv_tile, bool is_first,
                                               ConsumerCursors& at) {
    ColumnNumbers<kColumns / 8> logits, weights;
    PackedColumns<kColumns / 8> packed;
    WideValues<Kind> wide;
    const uint64_t unmasked = find_logits(worker, at.stages, logits, wide);
    mask_columns(worker, rows, kv_tile, unmasked, logits);
    const Softened softened = soften_columns(worker, rows, logits, at.stages, at.buffer, is_first, weights, packed);
    start_column_values(worker, rows, at.stages.place, wide, at.buffer);
    if constexpr (kScores) {
        if (softened.moved) {
            set_factors(worker, rows.base, scored);
        }
        take_columns(worker, scored, rows.base, weights, softened.most, packed);
        put_tile_sums(worker, scored, packed, at.sums);
    }
    wait_for_output(rows);
    if constexpr (Kind::kFp8) {
        at.stages.advance(worker.num_stages);  // find_logits has left it
    } else {
        release_stage(worker, at.stages);
    }
    at.buffer ^= 1;
}

// One tile that is only scored, by log-sum-exps that are known.
template <typename Kind, int kColumns>
__device__ __forceinline__ void score_columns(const Worker<Kind>& worker, const ColumnRows<Kind, kColumns>& rows,
                                              const ScoredColumns<kColumns / 8>& scored, int kv_tile,
                                              ConsumerCursors& at) {
    ColumnNumbers<kColumns / 8> logits, weights;
    PackedColumns<kColumns / 8> taken;
    wait_for_stage(worker, at.stages);
    const uint64_t unmasked = worker.shared.pipeline.unmasked[at.stages.place];
    start_column_keys(worker, at.stages.place, logits);
    products_wait();
    hold(logits);
    release_stage(worker, at.stages);
    mask_columns(worker, rows, kv_tile, unmasked, logits);
    weigh_by_lse(rows, logits, weights);
    pack_columns<__half>(weights, taken);
    put_tile_sums(worker, scored, taken, at.sums);
}

// The same worker; else the compiler would make what depends on the thread once for jobs of all kinds, and spill it.
template <typename Kind>
__device__ __forceinline__ Worker<Kind> reread(Worker<Kind> worker) {
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(worker.thread));
    worker.warp = worker.thread / 32;
    worker.lane = worker.thread % 32;
    return worker;
}

// The job, for a row tile with kColumns packed rows at most.
template <bool kAttends, bool kScores, int kColumns, typename Kind>
__device__ __forceinline__ void consume_columns(const Worker<Kind>& consumer, ConsumerCursors& at) {
    const Worker<Kind> worker = reread(consumer);
    ColumnRows<Kind, kColumns> rows;
    ScoredColumns<kColumns / 8> scored{};  // else it would be alive, without a value, from job to job
    float* scales = reinterpret_cast<float*>(worker.weights(at.buffer));
    const float lse = kScores ? lane_lse(worker) : 0;
    load_queries<kColumns>(worker, scales);
    if constexpr (kScores) {
        put_known_lse(worker, lse);
    }
    products_see_copies();
    consumer_sync(worker);
    open_columns<kAttends>(worker, rows, scales);
    if constexpr (!kAttends) {
        set_factors(worker, rows.base, scored);
    }
    const TileRange range = worker.job().range;
#pragma unroll 1
    for (int kv_tile = range.begin; kv_tile < range.end; ++kv_tile) {
        if constexpr (kAttends) {
            attend_columns<kScores>(worker, rows, scored, kv_tile, kv_tile == range.begin, at);
        } else {
            score_columns(worker, rows, scored, kv_tile, at);
        }
    }
    if constexpr (kAttends) {
        finish_columns(worker, rows);
    } else {
        consumer_sync(worker);  // the next job's queries go to where these are
    }
}

template <int kColumns, typename Kind>
__device__ __forceinline__ void consume_as(const Worker<Kind>& worker, ConsumerCursors& at) {
    if (worker.job().pass.scores) {
        consume_columns<true, true, kColumns>(worker, at);
    } else {
        consume_columns<true, false, kColumns>(worker, at);
    }
}

// The job with as few columns as there are products for.
template <typename Kind>
__device__ __forceinline__ void consume_job_columns(const Worker<Kind>& worker, ConsumerCursors& at) {
    const bool many_scored = worker.job().pass.scores && worker.tile().num_rows > 15;
    const int packed_rows = many_scored ? Kind::kTileRows : worker.tile().packed_rows();
    if (!worker.job().pass.attends) {
        consume_columns<false, true, Kind::kTileRows>(worker, at);
    } else if (packed_rows <= 8) {
        consume_as<8>(worker, at);
    } else if (packed_rows <= 16) {
        consume_as<16>(worker, at);
    } else if (packed_rows <= 32) {
        consume_as<32>(worker, at);
    } else if (packed_rows <= 40) {
        consume_as<40>(worker, at);
    } else if (packed_rows <= 48) {
        consume_as<48>(worker, at);
    } else {
        consume_as<Kind::kTileRows>(worker, at);
    }
}

}  // namespace sparsespec
