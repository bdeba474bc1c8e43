// The worker: it walks its stretch of the step's list of tiles, unit by unit.
#pragma once

#include "pillar_attention/attend.cuh"
#include "pillar_attention/merge.cuh"

namespace sparsespec {

// Brings a tile, if the range has it, to its stage. One group of copies each, also an empty one.
template <typename T, int kHeadDim>
__device__ __forceinline__ void fetch_tile(const Worker<T, kHeadDim>& worker, int kv_tile) {
    if (kv_tile < worker.job().range.end) {
        const int stage = (kv_tile - worker.job().range.begin) % worker.num_stages;
        start_copies(worker, kv_tile, stage);
    }
    copy_async_commit();
}

// Tokens of the first tiles, their copies, and the queries, which pass through the one stage that is not filled yet.
template <int kRowWarps, typename T, int kHeadDim>
__device__ __forceinline__ void open_pipeline(const Worker<T, kHeadDim>& worker, WarpRows<kHeadDim>& mine) {
    const int begin = worker.job().range.begin, ahead = worker.num_stages;
    if (worker.job().pass.attends) {
        append_tokens(worker);
    }
    for (int index = worker.thread; index < ahead * kTileTokens; index += kThreads) {
        const int key = begin * kTileTokens + index;
        const int position = key_position(worker.job(), key, load_listed(worker.job(), key));
        worker.entries(begin + index / kTileTokens)[index % kTileTokens] =
            make_entry(worker, position, load_page(worker, position));
    }
    __syncthreads();
    for (int step = 0; step < ahead - 1; ++step) {
        fetch_tile(worker, begin + step);
    }
    unsigned char* queries = worker.keys(ahead - 1);
    stage_queries(worker, queries, kRowWarps * 16);
    __syncthreads();
    load_rows<kRowWarps>(worker, queries, mine);
    if (worker.job().pass.scores) {
        load_lse<kRowWarps>(worker, mine);
    }
}

// The entries of tiles to come. Finding one takes loads that depend on loads: a position is looked up one tile before its
// page, and neither is waited for while there is a tile to attend to.
template <typename T, int kHeadDim>
struct EntrySearch {
    const Worker<T, kHeadDim>& worker;
    int key;       // of this thread, in the next tile to search
    int position;  // of that key
    int page = 0;  // of that position, once it is loaded
    int listed = 0;

    __device__ __forceinline__ EntrySearch(const Worker<T, kHeadDim>& worker, int kv_tile)
        : worker(worker), key(kv_tile * kTileTokens + worker.thread % kTileTokens), position(kMasked) {
        if (searches()) {
            position = key_position(worker.job(), key, load_listed(worker.job(), key));
        }
    }

    __device__ __forceinline__ bool searches() const { return worker.thread < kTileTokens; }

    __device__ __forceinline__ void begin() {
        if (searches()) {
            page = load_page(worker, position);
            listed = load_listed(worker.job(), key + kTileTokens);
        }
    }

    __device__ __forceinline__ void end() {
        if (searches()) {
            worker.entries(key / kTileTokens)[worker.thread] = make_entry(worker, position, page);
            position = key_position(worker.job(), key + kTileTokens, listed);
        }
        key += kTileTokens;
    }
};

template <typename T, int kHeadDim>
__device__ __forceinline__ void score_tile(const Worker<T, kHeadDim>& worker, int kv_tile) {
    __syncthreads();
    sum_rows(worker, kv_tile);
    __syncthreads();
    if (worker.params.score_planes != ScorePlanes::kRows) {
        put_sums(worker, kv_tile);
    }
}

// The job, for a row tile with kRowWarps * 16 packed rows at most.
template <int kRowWarps, typename T, int kHeadDim>
__device__ __forceinline__ void run_rows(const Worker<T, kHeadDim>& worker) {
    WarpRows<kHeadDim> mine;
    open_pipeline<kRowWarps>(worker, mine);
    const TileRange range = worker.job().range;
    const Pass pass = worker.job().pass;
    EntrySearch<T, kHeadDim> search(worker, range.begin + worker.num_stages);
    int stage = 0;
    for (int kv_tile = range.begin; kv_tile < range.end; ++kv_tile) {
        copy_async_wait(worker.num_stages - 2);
        __syncthreads();
        fetch_tile(worker, kv_tile + worker.num_stages - 1);
        search.begin();
        attend_tile<kRowWarps>(worker, mine, kv_tile, stage);
        search.end();
        if (pass.scores) {
            score_tile(worker, kv_tile);
        }
        stage = stage + 1 == worker.num_stages ? 0 : stage + 1;
    }
    if (pass.scores) {
        __syncthreads();
        put_carry(worker);
    }
    if (pass.attends) {
        finish_rows<kRowWarps>(worker, mine);
    }
}

template <typename T, int kHeadDim>
__device__ __forceinline__ void run_job(const Worker<T, kHeadDim>& worker, const RowTile& tile, TileRange range, Pass pass, bool shares) {
    __syncthreads();  // the job before may still be read
    if (worker.thread == 0) {
        Job& job = worker.shared.job;
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
    __syncthreads();
    const int packed_rows = tile.packed_rows();
    if (packed_rows <= 16) {
        run_rows<1>(worker);
    } else if (packed_rows <= 32) {
        run_rows<2>(worker);
    } else {
        run_rows<4>(worker);
    }
}

// A worker's piece of a unit: which rows, which tiles, and with whom it is shared.
struct Piece {
    RowTile rows;  // all of the unit's, also where they are several row tiles
    TileRange range;
    bool shares;
    WorkerStart unit;  // if it shares
};

template <typename T, int kHeadDim>
__device__ __forceinline__ void run_row_tiles(const Worker<T, kHeadDim>& worker, const RowTile& rows, TileRange range, Pass pass,
                              bool shares) {
    const int step = rows_per_tile(rows.group), end = rows.first_row + rows.num_rows;
    for (int first = rows.first_row; first < end; first += step) {
        const RowTile tile = row_tile(rows.work, rows.kv_head, first, min(step, end - first), rows.group);
        run_job(worker, tile, range, pass, shares);
    }
}

// Whether the drafts of the same rows left log-sum-exps to score by.
template <typename T, int kHeadDim>
__device__ __forceinline__ bool scores_by_drafts(const Worker<T, kHeadDim>& worker, const SlotWork& work) {
    return work.verifies && work.num_rows > 1 && worker.params.score_normalizer == ScoreNormalizer::kDraft &&
           worker.params.max_draft_len > 0;
}

template <typename T, int kHeadDim>
__device__ __forceinline__ void run_piece(const Worker<T, kHeadDim>& worker, WorkerStart* starts, const Piece& piece) {
    const SlotWork& work = piece.rows.work;
    const bool scored = piece.rows.first_row >= work.body_rows && work.score_rows > 0 &&
                        worker.params.score_planes != ScorePlanes::kNone;
    const bool at_once = scored && scores_by_drafts(worker, work);
    const TileRange all{0, ceil_div(piece.rows.num_keys, kTileTokens)};
    // First the piece itself; then, if that completes a unit whose scores need its log-sum-exps, the unit once more.
    for (Pass pass{true, at_once}; true; pass = {false, true}) {
        const TileRange range = pass.attends ? piece.range : all;
        run_row_tiles(worker, piece.rows, range, pass, pass.attends && piece.shares);
        if (!pass.attends || (piece.shares && !arrive(worker, starts, piece.unit))) {
            return;
        }
        if (piece.shares) {
            merge_parts(worker, piece.rows, starts, piece.unit);
            if (at_once && worker.params.score_planes == ScorePlanes::kDiagonal) {
                merge_halos(worker, score_target(worker.params, piece.rows), starts, piece.unit);
            }
        }
        if (!scored || at_once) {
            return;
        }
        __syncthreads();  // the log-sum-exps are in shared memory
    }
}

template <typename T, int kHeadDim>
__device__ __forceinline__ RowTile unit_rows(const Worker<T, kHeadDim>& worker, const SlotWork& work, const SlotUnits& units, int unit) {
    const int group = worker.group();
    if (units.is_block(unit)) {
        return row_tile(work, unit, work.body_rows, work.block_rows, group);
    }
    unit -= units.num_block_units();
    const int step = rows_per_tile(group), first = unit % units.body_tiles * step;
    return row_tile(work, unit / units.body_tiles, first, min(step, work.body_rows - first), group);
}

// From the worker's start to the next worker's.
template <typename T, int kHeadDim>
__device__ __forceinline__ void run_worker(const Worker<T, kHeadDim>& worker) {
    WorkerStart* starts = reinterpret_cast<WorkerStart*>(worker.params.plan);
    const int32_t* active_slots = worker.params.plan + (kMaxWorkers + 1) * (sizeof(WorkerStart) / sizeof(int32_t));
    const WorkerStart mine = starts[blockIdx.x], next = starts[blockIdx.x + 1];
    int unit = mine.unit, tile = mine.tile;
    for (int active = mine.active; active <= next.active; ++active) {
        const bool last_slot = active == next.active;
        if (last_slot && next.unit == 0 && next.tile == 0) {
            return;  // also where no slot is left
        }
        const SlotWork work = slot_work(worker.params.step, active_slots[active]);
        const SlotUnits units(work, worker.params.num_kv_heads, worker.group());
        const int end_unit = last_slot ? next.unit + (next.tile > 0) : units.num_units();
        for (; unit < end_unit; ++unit) {
            const int end = last_slot && unit == next.unit ? next.tile : units.kv_tiles;
            const RowTile rows = unit_rows(worker, work, units, unit);
            const int last = units.is_block(unit) ? end : min(end, ceil_div(rows.num_keys, kTileTokens));
            if (tile < end) {
                const bool shares = tile > 0 || end < units.kv_tiles;
                run_piece(worker, starts, {rows, {tile, last}, shares, tile > 0 ? mine : next});
            }
            tile = 0;
        }
        unit = 0;
    }
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 2)
    pillar_attention_kernel(const __grid_constant__ PillarAttentionParams params, int num_stages) {
    extern __shared__ __align__(128) unsigned char memory[];
    WorkerShared& shared = *reinterpret_cast<WorkerShared*>(memory);
    const int thread = threadIdx.x;
    const Worker<T, kHeadDim> worker{params, shared, memory + sizeof(WorkerShared), num_stages, __ffs(params.page_size) - 1,
                                     thread, thread / 32, thread % 32};
    run_worker(worker);
}

}  // namespace sparsespec
