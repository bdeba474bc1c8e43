// The worker: producers and consumers walk the same stretch of the step's list of tiles, unit by unit.
#pragma once

#include "pillar_attention/consume.cuh"
#include "pillar_attention/produce.cuh"

namespace sparsespec {

// Tells the role's threads what to do next, and lets them.
template <typename Role, typename T, int kHeadDim>
__device__ __forceinline__ void run_job(const Worker<T, kHeadDim>& worker, Role& role, const RowTile& tile,
                                        TileRange range, Pass pass, bool shares) {
    role.sync();  // the job before may still be read
    if (role.leads()) {
        Job& job = worker.job();
        job.tile = tile;
        job.range = range;
        job.pass = pass;
        job.shares = shares;
        job.list = draft_list(worker.params, tile.work.slot, tile.kv_head);
        job.part = partial(worker, blockIdx.x, range.begin == 0);
        if (pass.scores) {
            job.target = score_target(worker.params, tile);
        }
    }
    role.sync();
    role.run_job();
}

// Whether the drafts of the same rows left log-sum-exps to score by.
template <typename T, int kHeadDim>
__device__ __forceinline__ bool scores_by_drafts(const Worker<T, kHeadDim>& worker, const SlotWork& work) {
    return work.verifies && work.num_rows > 1 && worker.params.score_normalizer == ScoreNormalizer::kDraft;
}

// The piece itself; then, if that completes a unit whose scores need its log-sum-exps, the whole unit once more.
template <typename Role, typename T, int kHeadDim>
__device__ __forceinline__ void run_piece(const Worker<T, kHeadDim>& worker, Role& role, const Piece& piece) {
    const RowTile& rows = piece.rows;
    const bool scored = rows.first_row >= rows.work.body_rows && rows.work.score_rows > 0 &&
                        worker.params.score_planes != ScorePlanes::kNone;
    const bool at_once = scored && scores_by_drafts(worker, rows.work);
    const int step = rows_per_tile(rows.group), end = rows.first_row + rows.num_rows;
    for (Pass pass{true, at_once}; true; pass = {false, true}) {
        const TileRange range = pass.attends ? piece.range : TileRange{0, ceil_div(rows.num_keys, kTileTokens)};
        for (int first = rows.first_row; first < end; first += step) {
            const RowTile tile = row_tile(rows.work, rows.kv_head, first, min(step, end - first), rows.group);
            run_job(worker, role, tile, range, pass, pass.attends && piece.shares);
        }
        if (!pass.attends || !role.finish_piece(piece, at_once, scored && !at_once)) {
            return;
        }
    }
}

template <typename T, int kHeadDim>
__device__ __forceinline__ RowTile unit_rows(const Worker<T, kHeadDim>& worker, const SlotWork& work,
                                             const SlotUnits& units, int unit) {
    const int group = worker.group();
    if (units.is_block(unit)) {
        return row_tile(work, unit, work.body_rows, work.block_rows, group);
    }
    unit -= units.num_block_units();
    const int step = rows_per_tile(group), first = unit % units.body_tiles * step;
    return row_tile(work, unit / units.body_tiles, first, min(step, work.body_rows - first), group);
}

// From the worker's start to the next worker's.
template <typename Role, typename T, int kHeadDim>
__device__ __forceinline__ void run_worker(const Worker<T, kHeadDim>& worker, Role role) {
    const WorkerStart* starts = worker_starts(worker.params.plan);
    const int32_t* slots = active_slots(worker.params.plan);
    const WorkerStart mine = starts[blockIdx.x], next = starts[blockIdx.x + 1];
    int unit = mine.unit, tile = mine.tile;
    for (int active = mine.active; active <= next.active; ++active) {
        const bool last_slot = active == next.active;
        if (last_slot && next.unit == 0 && next.tile == 0) {
            return;  // also where no slot is left
        }
        const SlotWork work = slot_work(worker.params.step, slots[active]);
        const SlotUnits units(work, worker.params.num_kv_heads, worker.group());
        const int end_unit = last_slot ? next.unit + (next.tile > 0) : units.num_units();
        for (; unit < end_unit; ++unit) {
            const int end = last_slot && unit == next.unit ? next.tile : units.kv_tiles;
            const RowTile rows = unit_rows(worker, work, units, unit);
            const int last = units.is_block(unit) ? end : min(end, ceil_div(rows.num_keys, kTileTokens));
            if (tile < end) {
                const bool shares = tile > 0 || end < units.kv_tiles;
                run_piece(worker, role, {rows, {tile, last}, shares, tile > 0 ? mine : next});
            }
            tile = 0;
        }
        unit = 0;
    }
}

__device__ __forceinline__ void open_pipeline(Pipeline& pipeline, int num_stages) {
    for (int stage = 0; stage < num_stages; ++stage) {
        // Every producing lane for its copies, and one of each warp for the mask; every consumer warp.
        barrier_init(&pipeline.full[stage], kProducerWarps * (32 + 1));
        barrier_init(&pipeline.empty[stage], kWarps);
    }
    // One consumer thread, once for each job with new tokens, and once for each piece that may be repeated.
    barrier_init(&pipeline.appended, 1);
    barrier_init(&pipeline.decided, 1);
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 2)
pillar_attention_kernel(const __grid_constant__ PillarAttentionParams params, int num_stages) {
    extern __shared__ __align__(1024) unsigned char memory[];
    WorkerShared& shared = *reinterpret_cast<WorkerShared*>(memory);
    const int thread = threadIdx.x;
    const Worker<T, kHeadDim> worker{
        params,      shared,     memory + sizeof(WorkerShared), num_stages, __ffs(params.page_size) - 1, thread,
        thread / 32, thread % 32};
    if (thread == 0) {
        open_pipeline(shared.pipeline, num_stages);
    }
    __syncthreads();
    if (worker.producer() >= 0) {
        run_worker(worker, Producer<T, kHeadDim>{worker});
    } else {
        run_worker(worker, Consumer<T, kHeadDim>{worker});
    }
}

}  // namespace sparsespec
