// The consumers: warps that attend to tile after tile, and finish what the tiles add up to.
#pragma once

#include "pillar_attention/attend.cuh"
#include "pillar_attention/unite.cuh"

namespace sparsespec {

// Who consumes goes through stages, and through the two buffers of their sums.
struct ConsumerCursors {
    RingCursor stages;
    RingCursor sums;
    int scored_parity = 0;
};

// Until the next stage is full.
template <typename Kind>
__device__ __forceinline__ void wait_for_stage(const Worker<Kind>& worker, const RingCursor& stages) {
    barrier_wait(&worker.shared.pipeline.full[stages.place], stages.parity);
    __syncwarp();  // lanes leave the wait on their own, and matrix loads want them together
}

template <typename Kind>
__device__ __forceinline__ void release_stage(const Worker<Kind>& worker, RingCursor& stages) {
    warp_arrive(&worker.shared.pipeline.empty[stages.place], worker.lane);
    stages.advance(worker.num_stages);
}

// The tile's sums, to the scorer.
template <int kRowWarps, typename Kind, int kColumns>
__device__ __forceinline__ void put_sums(const Worker<Kind>& worker, const ScoredRows& scored, bool has_rows,
                                         const ScoreWeights<kColumns>& taken, RingCursor& sums) {
    Pipeline& pipeline = worker.shared.pipeline;
    barrier_wait(&pipeline.sums_empty[sums.place], sums.parity ^ 1);
    if (has_rows) {
        sum_weights<kRowWarps>(worker.shared, scored, taken, sums.place, worker.warp, worker.lane);
    }
    warp_arrive(&pipeline.sums_full[sums.place], worker.lane);
    sums.advance(2);
}

// One tile. Its keys' stage can be filled anew while its values are still to be read.
template <int kRowWarps, typename Kind>
__device__ __forceinline__ void consume_tile(const Worker<Kind>& worker, WarpRows<Kind::kHeadDim>& mine,
                                             ScoredRows& scored, Pass pass, int kv_tile, ConsumerCursors& at) {
    constexpr int kColumns = WarpShare<kRowWarps>::kKeys / 8;
    constexpr bool kTogether = kHasWgmma;
    const bool has_rows = WarpShare<kRowWarps>::first_row(worker.warp) < worker.tile().packed_rows();
    float weights[kColumns][4];
    ScoreWeights<kColumns> taken;
    uint32_t packed[kColumns / 2][4] = {};
    wait_for_stage(worker, at.stages);
    if constexpr (kTogether) {
        start_keys(worker, mine, at.stages.place, weights);
        products_wait();
        hold(weights);
    } else if (has_rows) {
        multiply_keys<kRowWarps>(worker, mine, at.stages.place, weights);
    }
    if (has_rows) {
        mask_keys<kRowWarps>(worker, mine, kv_tile, at.stages.place, weights);
    }
    if constexpr (kTogether) {
        release_stage(worker, at.stages);
    }
    if (has_rows) {
        weigh<kRowWarps>(worker, pass, mine, scored, weights, taken);
        pack_weights<typename Kind::Product>(weights, packed);
    }
    if constexpr (!kTogether) {  // earlier it would cost registers
        release_stage(worker, at.stages);
    }
    if (pass.attends) {
        wait_for_stage(worker, at.stages);
        if constexpr (kTogether) {
            start_values(worker, mine, at.stages.place, packed);
        } else if (has_rows) {
            multiply_values<kRowWarps>(worker, mine, at.stages.place, packed);
        }
    }
    if (pass.scores) {
        put_sums<kRowWarps>(worker, scored, has_rows, taken, at.sums);
    }
    if constexpr (kTogether) {
        products_wait();
        hold(mine.output);
    }
    if (pass.attends) {
        release_stage(worker, at.stages);
    }
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
    for (int kv_tile = range.begin; kv_tile < range.end; ++kv_tile) {
        consume_tile<kRowWarps>(worker, mine, scored, pass, kv_tile, at);
    }
    if (pass.scores) {
        barrier_wait(&worker.shared.pipeline.scored, at.scored_parity);
        at.scored_parity ^= 1;
    }
    if (pass.attends) {
        finish_rows<kRowWarps>(worker, mine);
    }
}

template <typename Kind>
__device__ __forceinline__ void consume_job(const Worker<Kind>& worker, ConsumerCursors& at) {
    if constexpr (kHasWgmma || Kind::kWay == Way::kWide) {
        consume_tiles<Kind::kWarps>(worker, at);
    } else if (worker.tile().packed_rows() <= 16) {
        consume_tiles<1>(worker, at);
    } else if (worker.tile().packed_rows() <= 32) {
        consume_tiles<2>(worker, at);
    } else {
        consume_tiles<Kind::kWarps>(worker, at);
    }
}

// When a piece is done: puts the unit together if this completes it. Tells the scout whether to pass over it once
// more.
template <typename Kind>
__device__ __forceinline__ void finish_piece(const Worker<Kind>& worker, const Job& job) {
    const Finish& finish = job.finish;
    bool complete = true;
    if (finish.shares) {
        const RowTile& tile = job.tile;
        const RowTile rows = row_tile(tile.work, tile.kv_head, finish.first_row, finish.num_rows, tile.group);
        complete = complete_unit(worker, rows, finish.unit);
        if (complete && finish.at_once && worker.params.score_planes == ScorePlanes::kDiagonal) {
            unite_halos(worker, job.target, finish.unit);
        }
    }
    if (finish.may_repeat) {
        consumer_sync(worker);  // the log-sum-exps are in shared memory
        if (worker.thread == 0) {
            worker.shared.pipeline.once_more = complete;
            barrier_arrive(&worker.shared.pipeline.decided);
        }
    }
}

// The consumers' side of the whole launch.
template <typename Kind>
__device__ __forceinline__ void run_consumer(Worker<Kind> worker) {
    Pipeline& pipeline = worker.shared.pipeline;
    RingCursor jobs;
    ConsumerCursors at;
    while (true) {
        barrier_wait(&pipeline.job_full[jobs.place], jobs.parity);
        worker.job_slot = jobs.place;
        const Job& job = worker.job();
        if (job.ends) {
            return;
        }
        consume_job(worker, at);
        if (job.finish.piece) {
            finish_piece(worker, job);
        }
        warp_arrive(&pipeline.job_empty[jobs.place], worker.lane);
        jobs.advance(kMaxJobs);
    }
}

}  // namespace sparsespec
