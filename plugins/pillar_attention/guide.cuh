// The guide: a warp that walks the worker's stretch of the step's list of tiles, unit by unit, and tells everybody what
// the jobs are, some jobs ahead.
#pragma once

#include "pillar_attention/entries.cuh"
#include "pillar_attention/merge.cuh"

namespace sparsespec {

// The lengths of the slots at work, one slot after another, read ahead: each lane reads one of a slot's numbers.
struct SlotReader {
    const int32_t* numbers;  // the lane's, [max_batch_size]
    int slot;
    int number;  // the lane's, of `slot`
    int next_slot;
    int next_number;

    // Some time after next_slot has been loaded: it waits for that.
    __device__ __forceinline__ void read_next_number() { next_number = numbers[max(next_slot, 0)]; }
    __device__ __forceinline__ void advance() {
        slot = next_slot;
        number = next_number;
    }
};

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

    // Both of the worker's stretches, in the same order as all others: drafts among verifications would wait for their
    // lists and pages all the time. What is better first was measured.
    __device__ __forceinline__ void run() {
        constexpr int kFirst = static_cast<int>(Kind::kHeadDim == 64 ? Units::kWhole : Units::kDivided);
        read_stretches();
#pragma unroll 1
        for (int turn = 0; turn < kUnitLists; ++turn) {
            const Stretch& stretch = state().stretches[turn == 0 ? kFirst : kUnitLists - 1 - kFirst];
            if (!same_unit(stretch.start, stretch.end) || stretch.start.tile != stretch.end.tile) {
                walk(stretch);
            }
        }
        end();
    }

    // From the worker's start in a list to the next worker's.
    __device__ __forceinline__ void walk(const Stretch& stretch) {
        SlotReader reader = read_start(stretch);
        const WorkerStart& ends = stretch.end;
        int unit = stretch.start.unit, tile = stretch.start.tile;
#pragma unroll 1
        for (int active = stretch.start.active; active <= ends.active; ++active) {
            const bool last_slot = active == ends.active;
            if (last_slot && ends.unit == 0 && ends.tile == 0) {
                break;  // also where no slot is left
            }
            open_slot(reader);
            reader.next_slot = active_slot(active + 1);
            const SlotUnits units(state().work, worker.params.num_kv_heads, worker.shape.rows_per_tile);
            const int num_units = last_slot ? ends.unit + (ends.tile > 0) : units.num_units();
#pragma unroll 1
            for (; unit < num_units; ++unit) {
                const int end = last_slot && unit == ends.unit ? ends.tile : units.kv_tiles;
                if (tile < end) {
                    add_piece(units, unit, {tile, end});
                    reader.read_next_number();
                }
                tile = 0;
            }
            unit = 0;
            reader.advance();
        }
    }

    // What the plan says of this worker and where the next one starts: all loads at once. Past the L1: this launch may
    // have started as soon as the plan was made.
    __device__ __forceinline__ void read_stretches() const {
        constexpr int kNumbers = sizeof(PlannedWorker) / sizeof(int32_t), kUsed = kStartNumbers + kLengths;
        const int lane = worker.lane;
        int number[kUnitLists], next[kUnitLists];
#pragma unroll
        for (int list = 0; list < kUnitLists; ++list) {
            const int32_t* planned = reinterpret_cast<const int32_t*>(
                planned_workers(worker.params.plan, Kind::kWay, static_cast<Units>(list)) + blockIdx.x);
            number[list] = lane < kUsed ? __ldcg(planned + lane) : 0;
            next[list] = lane < kStartNumbers ? __ldcg(planned + kNumbers + lane) : 0;
        }
#pragma unroll
        for (int list = 0; list < kUnitLists; ++list) {
            Stretch& stretch = state().stretches[list];
            if (lane < kStartNumbers) {
                reinterpret_cast<int32_t*>(&stretch.start)[lane] = number[list];
                reinterpret_cast<int32_t*>(&stretch.end)[lane] = next[list];
            } else if (lane < kUsed) {
                reinterpret_cast<int32_t*>(&stretch.lengths)[lane - kStartNumbers] = number[list];
            }
        }
        __syncwarp();
    }

    // At a place in the plan's list, or at its last.
    __device__ __forceinline__ int active_slot(int place) const {
        const int batch = worker.params.step.max_batch_size;
        return active_slots(worker.params.plan, Kind::kWay, batch)[min(place, batch - 1)];
    }

    __device__ __forceinline__ SlotReader read_start(const Stretch& stretch) const {
        const int lane = worker.lane;
        SlotReader reader{lane_numbers(worker.params, lane), stretch.start.slot,
                          lane < kLengths ? reinterpret_cast<const int32_t*>(&stretch.lengths)[lane] : 0};
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
            const Stretch& stretch = state().stretches[static_cast<int>(Units::kDivided)];
            copy_numbers(&job.finish.unit, starts_here ? &stretch.end : &stretch.start, sizeof(WorkerStart));
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
