// The consumers: warps that attend to tile after tile, and finish what the tiles add up to.
#pragma once

#include "pillar_attention/complete.cuh"
#include "pillar_attention/consume_ahead.cuh"
#include "pillar_attention/consume_columns.cuh"
#include "pillar_attention/widen.cuh"

namespace sparsespec {

// Where mma.sync finds the keys or values that the stage has, in 16 bits.
template <typename Kind>
__device__ __forceinline__ const unsigned char* tile_of_halves(const Worker<Kind>& worker, ConsumerCursors& at) {
    if constexpr (Kind::kFp8) {
        widen(worker, at.stages.place, at.buffer);
        return at.widened(worker);
    } else {
        return worker.stage(at.stages.place);
    }
}

// The tile's sums, to the scorer.
template <int kRowWarps, typename Kind, int kColumns>
__device__ __forceinline__ void put_sums(const Worker<Kind>& worker, const ScoredRows& scored, bool has_rows,
                                         const ScoreWeights<kColumns>& taken, PairCursor& sums) {
    auto& pipeline = worker.shared.pipeline;
    barrier_wait(&pipeline.sums_empty[sums.place()], sums.parity() ^ 1);
    if (has_rows) {
        sum_weights<kRowWarps>(worker.shared, scored, taken, sums.place(), worker.warp, worker.lane);
    }
    barrier_arrive(&pipeline.sums_full[sums.place()]);
    sums.advance();
}

// One tile, by warps that share no products. Its keys' stage can be filled anew while its values are still to be read.
template <int kRowWarps, typename Kind>
__device__ __forceinline__ void consume_tile(const Worker<Kind>& worker, WarpRows<Kind::kHeadDim>& mine,
                                             ScoredRows& scored, Pass pass, int kv_tile, ConsumerCursors& at) {
    constexpr int kColumns = WarpShare<kRowWarps>::kKeys / 8;
    float weights[kColumns][4];
    ScoreWeights<kColumns> taken;
    uint32_t packed[kColumns / 2][4] = {};
    wait_for_stage(worker, at.stages);
    const uint64_t unmasked = worker.shared.pipeline.unmasked[at.stages.place];
    const unsigned char* keys = tile_of_halves(worker, at);
    if (mine.has_rows) {
        multiply_keys<kRowWarps>(worker, mine, keys, weights);
        mask_keys<kRowWarps>(worker, mine, kv_tile, unmasked, weights);
        weigh<kRowWarps>(worker, pass, mine, scored, weights, taken);
        pack_weights<typename Kind::Product>(weights, packed);
    }
    release_stage(worker, at.stages);  // earlier it would cost registers
    wait_for_stage(worker, at.stages);
    if (pass.attends) {
        const unsigned char* values = tile_of_halves(worker, at);
        if (mine.has_rows) {
            multiply_values<kRowWarps>(worker, mine, values, packed);
        }
    }
    if (pass.scores) {
        put_sums<kRowWarps>(worker, scored, mine.has_rows, taken, at.sums);
    }
    release_stage(worker, at.stages);
}

// The job, for a row tile with kRowWarps * 16 packed rows at most.
template <int kRowWarps, typename Kind>
__device__ __forceinline__ void consume_tiles(const Worker<Kind>& worker, ConsumerCursors& at) {
    const TileRange range = worker.job().range;
    const Pass pass = worker.job().pass;
    WarpRows<Kind::kHeadDim> mine;
    ScoredRows scored;
    load_rows<kRowWarps>(worker, mine);
    if (pass.scores) {
        open_scores<kRowWarps>(worker, scored);
    }
#pragma unroll 1
    for (int kv_tile = range.begin; kv_tile < range.end; ++kv_tile) {
        consume_tile<kRowWarps>(worker, mine, scored, pass, kv_tile, at);
    }
    if (pass.scores) {  // sums lie where warps now exchange their output
        barrier_wait(&worker.shared.pipeline.scored, at.scored_parity);
        at.scored_parity ^= 1;
    }
    if (pass.attends) {
        finish_rows<kRowWarps>(worker, mine);
    }
}

// Many rows that are not scored, in a wide worker.
template <typename Kind>
__device__ __forceinline__ void consume_many(const Worker<Kind>& consumer, ConsumerCursors& at) {
    const Worker<Kind> worker = in_team(consumer);
    WarpRows<Kind::kHeadDim> mine;
    open_many_rows(worker, mine);
    consume_ahead(worker, mine, worker.job().range, at.stages);
    finish_many_rows(worker, mine);
}

template <typename Kind>
__device__ __forceinline__ void consume_job(const Worker<Kind>& worker, ConsumerCursors& at) {
    const RowTile& tile = worker.tile();
    if constexpr (kConsumesAhead<Kind>) {
        if (!worker.job().pass.scores && !tile.work.drafts) {
            consume_many(worker, at);
        } else {
            consume_columns(worker, at);
        }
    } else if constexpr (kHasWgmma) {
        consume_columns(worker, at);
    } else if constexpr (Kind::kWay == Way::kNarrow) {
        if (tile.packed_rows() <= 16) {
            consume_tiles<1>(worker, at);
        } else if (tile.packed_rows() <= 32) {
            consume_tiles<2>(worker, at);
        } else {
            consume_tiles<4>(worker, at);
        }
    }
}

// When a piece is done whose unit may be passed over once more: tells the guide whether to, and then leaves the
// log-sum-exps of all its keys in shared memory.
template <typename Kind>
__device__ __forceinline__ void finish_piece(const Worker<Kind>& worker, const Job& job) {
    const Finish& finish = job.finish;
    bool complete = true;
    if (finish.shares) {
        const RowTile& tile = job.tile;
        complete = complete_unit(
            worker, row_tile(tile.work, tile.kv_head, finish.first_row, finish.num_rows, tile.group), finish.unit);
    }
    consumer_sync(worker);  // the log-sum-exps are in shared memory
    if (worker.thread == 0) {
        worker.shared.pipeline.once_more = complete;
        barrier_arrive(&worker.shared.pipeline.decided);
    }
}

// The consumers' side of the whole launch.
template <typename Kind>
__device__ __forceinline__ void run_consumer(Worker<Kind> worker) {
    auto& pipeline = worker.shared.pipeline;
    RingCursor jobs;
    ConsumerCursors at;
    const Turns<Kind> turns(worker.warp / 4);
    turns.open();
    wait_for_launch_before();  // for the queries
    while (true) {
        barrier_wait(&pipeline.job_full[jobs.place], jobs.parity);
        worker.job_slot = jobs.place;
        const Job& job = worker.job();
        if (job.ends) {
            turns.close();
            return;
        }
        consume_job(worker, at);
        if (job.finish.may_repeat) {
            finish_piece(worker, job);
        }
        barrier_arrive(&pipeline.job_empty[jobs.place]);
        jobs.advance(kMaxJobs);
    }
}

}  // namespace sparsespec
