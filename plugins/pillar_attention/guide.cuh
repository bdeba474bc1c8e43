// The guide: a warp that walks the worker's stretch of the step's list of tiles, unit by unit, and tells everybody what
// the jobs are, some jobs ahead.
#pragma once

#include "pillar_attention/entries.cuh"
#include "pillar_attention/merge.cuh"

namespace sparsespec {

// The lengths of the slots at work, one slot after another, read ahead: each lane reads one of a slot's numbers.
struct SlotReader {
    const int32_t* numbers;  // the lane's, [max_batch_size]
    const int32_t* slots;    // at work
    int last;                // place in `slots` that there is something to read at
    int slot;
    int number;  // the lane's, of `slot`
    int next_slot;
    int next_number;

    __device__ __forceinline__ void read_next_slot(int place) { next_slot = slots[min(place + 1, last)]; }
    // Some time after read_next_slot: it waits for that.
    __device__ __forceinline__ void read_next_number() { next_number = numbers[max(next_slot, 0)]; }
    __device__ __forceinline__ void advance() {
        slot = next_slot;
        number = next_number;
    }
};

constexpr int kLengths = sizeof(SlotLengths) / sizeof(int32_t);

// Which of the step's arrays a lane reads: its number of SlotLengths, and one lane a slot's place in the scores.
__device__ __forceinline__ const int32_t* lane_numbers(const PillarAttentionParams& params, int lane) {
    const StepLengths& step = params.step;
    switch (lane) {
        case 0:
            return step.row_start;
        case 1:
            return step.row_start + 1;
        case 2:
            return step.phase;
        case 3:
            return step.draft_index;
        case 4:
            return step.score_rows;
        case 5:
            return step.kv_len;
        case 6:
            return step.recent_start;
        case 7:
            return step.num_staying;
        case 8:
            return step.num_moving;
        case 9:
            return step.num_lookups;
        default:
            return params.score_planes == ScorePlanes::kNone ? step.phase : params.score_index;
    }
}

constexpr int kStartNumbers = sizeof(WorkerStart) / sizeof(int32_t);

template <typename Kind>
struct Guide {
    Worker<Kind> worker;
    RingCursor jobs{};
    int decided_parity = 0;

    __device__ __forceinline__ GuideState& state() const { return worker.shared.guide; }

    // From the worker's start to the next worker's.
    __device__ __forceinline__ void run() {
        SlotReader reader = read_start();
        int unit = state().start.unit, tile = state().start.tile;
        const int end_active = state().end.active, end_unit = state().end.unit, end_tile = state().end.tile;
#pragma unroll 1
        for (int active = state().start.active; active <= end_active; ++active) {
            const bool last_slot = active == end_active;
            if (last_slot && end_unit == 0 && end_tile == 0) {
                break;  // also where no slot is left
            }
            open_slot(reader);
            reader.read_next_slot(active);
            const SlotUnits units(state().work, worker.params.num_kv_heads, worker.shape.rows_per_tile);
            const int num_units = last_slot ? end_unit + (end_tile > 0) : units.num_units();
#pragma unroll 1
            for (; unit < num_units; ++unit) {
                const int end = last_slot && unit == end_unit ? end_tile : units.kv_tiles;
                if (tile < end) {
                    add_piece(units, unit, {tile, end});
                    reader.read_next_number();
                }
                tile = 0;
            }
            unit = 0;
            reader.advance();
        }
        end();
    }

    // Both ends of the stretch, and the lengths of its first slot, in one load.
    __device__ __forceinline__ SlotReader read_start() const {
        constexpr int kNumbers = sizeof(PlannedWorker) / sizeof(int32_t);
        const int lane = worker.lane;
        const int32_t* planned =
            reinterpret_cast<const int32_t*>(planned_workers(worker.params.plan, Kind::kWay) + blockIdx.x);
        const int number = lane < kStartNumbers + kLengths ? planned[lane] : 0;
        const int next_number = lane < kStartNumbers ? planned[kNumbers + lane] : 0;
        if (lane < kStartNumbers) {
            reinterpret_cast<int32_t*>(&state().start)[lane] = number;
            reinterpret_cast<int32_t*>(&state().end)[lane] = next_number;
        }
        __syncwarp();
        SlotReader reader{lane_numbers(worker.params, lane), active_slots(worker.params.plan),
                          worker.params.step.max_batch_size - 1, state().start.slot,
                          __shfl_sync(0xffffffffu, number, (kStartNumbers + lane) % 32)};
        if (worker.params.score_planes != ScorePlanes::kNone && lane == kLengths) {
            reader.number = worker.params.score_index[reader.slot];
        }
        return reader;
    }

    __device__ __forceinline__ void open_slot(const SlotReader& reader) const {
        if (worker.lane < kLengths) {
            reinterpret_cast<int32_t*>(&state().lengths)[worker.lane] = reader.number;
        } else if (worker.lane == kLengths) {
            state().score_index = reader.number;
        }
        __syncwarp();
        if (worker.lane == 0) {
            state().work = slot_work(state().lengths, reader.slot);
        }
        __syncwarp();
    }

    // A job for each row tile of the worker's piece of a unit; then, if that completes a unit whose scores need its
    // log-sum-exps, for the whole unit once more.
    __device__ __forceinline__ void add_piece(const SlotUnits& units, int unit, TileRange range) {
        const int step = worker.shape.rows_per_tile;
        const UnitRows rows = unit_rows(state().work, units, unit, step);
        const bool is_block = units.is_block(unit), starts_here = range.begin == 0;
        const bool scored = is_block && state().work.score_rows > 0 && worker.params.score_planes != ScorePlanes::kNone;
        const bool at_once = scored && scores_by_drafts(worker.params, state().work);
        const int end = rows.first + rows.count;
        bool shares = !starts_here || range.end < units.kv_tiles;
        range.end = min(range.end, ceil_div(num_keys(rows), kTileTokens));
        Pass pass{true, at_once};
        int first = rows.first;
#pragma unroll 1
        while (true) {
            const UnitRows tile{rows.kv_head, first, min(step, end - first)};
            first += step;
            const bool keeps_lse = pass.attends && scored && !at_once;
            const bool may_repeat = keeps_lse && first >= end;
            add_job(tile, range, pass, {shares, keeps_lse, may_repeat, rows.first, rows.count}, starts_here);
            if (first < end) {
                continue;
            }
            if (!may_repeat || !is_repeated()) {
                return;
            }
            first = rows.first;
            pass = {false, true};
            range = {0, ceil_div(num_keys(rows), kTileTokens)};
            shares = false;
        }
    }

    // Keys of the last of the rows.
    __device__ __forceinline__ int num_keys(const UnitRows& rows) const {
        const SlotWork& work = state().work;
        return work.drafts ? work.list_len : work.first_position + rows.first + rows.count;
    }

    // Once the consumers know.
    __device__ __forceinline__ bool is_repeated() {
        barrier_wait(&worker.shared.pipeline.decided, decided_parity);
        decided_parity ^= 1;
        return worker.shared.pipeline.once_more;
    }

    // Tells a job. `starts_here`: whether its unit starts in this worker.
    __device__ __forceinline__ void add_job(const UnitRows& rows, TileRange range, Pass pass, const Finish& finish,
                                            bool starts_here) {
        WorkerShared<Kind::kWay>& shared = worker.shared;
        barrier_wait(&shared.pipeline.job_empty[jobs.place], jobs.parity ^ 1);
        Job& job = shared.jobs[jobs.place];
        if (worker.lane == 0) {
            const SlotWork& work = state().work;
            job.tile.kv_head = rows.kv_head;
            job.tile.first_row = rows.first;
            job.tile.num_rows = rows.count;
            job.tile.group = worker.shape.group;
            job.tile.inverse = worker.shape.inverse;
            job.tile.num_keys = num_keys(rows);
            job.tile.first_new = work.drafts ? work.list_len - 1 : work.first_position;
            job.range = range;
            job.pass = pass;
            job.ends = false;
            job.list = draft_list(worker.params, state().lengths, work.slot, rows.kv_head);
            job.finish = finish;
        }
        __syncwarp();
        copy_numbers(&job.tile.work, &state().work, sizeof(SlotWork));
        put_teams(job.tile);
        if (finish.shares) {
            copy_numbers(&job.finish.unit, starts_here ? &state().end : &state().start, sizeof(WorkerStart));
            job.part = partial<Kind>(worker.params, worker.shape.group, blockIdx.x, starts_here);
        }
        __syncwarp();
        if (pass.scores) {
            job.target = score_target(worker.params, job.tile, state().score_index);
        }
        barrier_arrive(&shared.pipeline.job_full[jobs.place]);
        if (job.tile.work.drafts) {
            warm_up(job);
        }
        jobs.advance(kMaxJobs);
    }

    // Each team's part of the row tile: half of its rows.
    __device__ __forceinline__ void put_teams(const RowTile& tile) const {
        constexpr int kTeams = num_teams(Kind::kWay);
        if constexpr (kTeams > 1) {
            __syncwarp();
#pragma unroll
            for (int team = 0; team < kTeams; ++team) {
                RowTile& part = worker.shared.teams[jobs.place][team];
                copy_numbers(&part, &tile, sizeof(RowTile));
                __syncwarp();
                if (worker.lane == 0) {
                    const int most = ceil_div(tile.num_rows, kTeams), first = min(team * most, tile.num_rows);
                    part.first_row = tile.first_row + (first < tile.num_rows ? first : 0);  // a row that there is
                    part.num_rows = min(most, tile.num_rows - first);
                }
            }
        }
    }

    __device__ __forceinline__ void copy_numbers(void* to, const void* from, int bytes) const {
        if (worker.lane < bytes / 4) {
            static_cast<int32_t*>(to)[worker.lane] = static_cast<const int32_t*>(from)[worker.lane];
        }
    }

    // Brings what a draft starts with near, since others come to it soon, and would wait for it long while the copies
    // saturate the memory: its query, its row of rope_table, its list and its pages, as far as they go into kWarmLines
    // lines of the L1 cache.
    __device__ __forceinline__ void warm_up(const Job& job) const {
        constexpr int kLine = 128, kWarmLines = 32;
        const PillarAttentionParams& params = worker.params;
        const RowTile& tile = job.tile;
        const int position = tile.position(0);
        touch_lines(job.list.pillars,
                    min(kWarmLines, ceil_div((job.list.num_staying + job.list.num_moving) * 4, kLine)));
        touch_lines(params.page_table + int64_t{tile.work.slot} * params.max_pages,
                    min(kWarmLines, (position >> worker.shape.page_shift) * 4 / kLine + 1));
        touch_lines(params.rope_table + int64_t{position} * Kind::kHeadDim, Kind::kHeadDim * 4 / kLine);
    }

    // `count` lines, 32 at most.
    __device__ __forceinline__ void touch_lines(const void* first, int count) const {
        if (worker.lane < count) {
            touch(static_cast<const char*>(first) + worker.lane * 128);
        }
    }

    // Nobody has anything more to do.
    __device__ __forceinline__ void end() {
        WorkerShared<Kind::kWay>& shared = worker.shared;
        barrier_wait(&shared.pipeline.job_empty[jobs.place], jobs.parity ^ 1);
        if (worker.lane == 0) {
            shared.jobs[jobs.place].ends = true;
        }
        barrier_arrive(&shared.pipeline.job_full[jobs.place]);
    }
};

}  // namespace sparsespec
