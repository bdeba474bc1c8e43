// The scout: a warp that finds out where the keys of tile after tile lie, several tiles ahead of the copies and across
// the ends of jobs. A position may have to be read from a list, and its page from the page table; both loads take
// microseconds while the copies saturate the memory, so they are made for a batch of tiles at once, and the lists of a
// batch are on their way while the pages of the batch before are. There is one place that calls each function here:
// code that runs once in a while comes from afar.
#pragma once

#include "pillar_attention/entries.cuh"

namespace sparsespec {

constexpr int kLaneKeys = kTileTokens / 32;

// Tiles of one job. One without tiles finishes what was taken up before.
struct Batch {
    int job_slot;
    int first_tile;
    int num_tiles;
    bool ends_job;
};

template <typename Kind>
struct Scout {
    static constexpr int kBatchTiles = batch_tiles(Kind::kWay);

    Worker<Kind> worker;
    RingCursor keys{};
    Batch batch{};  // the one whose lists are on their way

    // The lane's place in what the lists hold of the batch.
    __device__ __forceinline__ int& listed(int tile, int index) const {
        return worker.shared.listed[tile][index * 32 + worker.lane];
    }

    __device__ __forceinline__ int key(int tile, int index) const {
        return tile * kTileTokens + index * 32 + worker.lane;
    }

    // Takes a batch up, and finishes the one taken up before.
    __device__ __forceinline__ void add_batch(const Batch& next) {
        const Job& job = worker.shared.jobs[batch.job_slot];
        int positions[kBatchTiles][kLaneKeys], pages[kBatchTiles][kLaneKeys];
        find_positions(job, positions);
        const int slot = batch.num_tiles > 0 ? job.tile.work.slot : 0;
        const int32_t* page_table = worker.params.page_table + int64_t{slot} * worker.params.max_pages;
#pragma unroll
        for (int tile = 0; tile < kBatchTiles; ++tile) {
#pragma unroll
            for (int index = 0; index < kLaneKeys; ++index) {
                const int position = positions[tile][index];
                pages[tile][index] = position < 0 ? 0 : page_table[position >> worker.shape.page_shift];
            }
        }
        read_lists(next);
#pragma unroll
        for (int tile = 0; tile < kBatchTiles; ++tile) {
            if (tile < batch.num_tiles) {
                put_keys(job, batch.first_tile + tile, positions[tile], pages[tile]);
            }
        }
        if (batch.ends_job) {
            barrier_arrive(&worker.shared.pipeline.job_empty[batch.job_slot]);
        }
        batch = next;
    }

    // Of drafts. To shared memory, not to registers: there are too few of them for all loads to be on their way at
    // once.
    __device__ __forceinline__ void read_lists(const Batch& next) {
        const Job& job = worker.shared.jobs[next.job_slot];
        if (next.num_tiles == 0 || !job.tile.work.drafts) {
            return;
        }
        const DraftList& list = job.list;
        const int num_pillars = list.num_staying + list.num_moving, num_keys = job.tile.num_keys;
#pragma unroll
        for (int tile = 0; tile < kBatchTiles; ++tile) {
#pragma unroll
            for (int index = 0; index < kLaneKeys; ++index) {
                const int entry = key(next.first_tile + tile, index), lookup = entry - num_pillars;
                const int32_t* from = lookup < 0 ? list.pillars + entry : list.lookups + lookup;
                copy_async_4(shared_address(&listed(tile, index)), from, entry < num_keys && lookup < list.num_lookups);
            }
        }
    }

    // Of the batch; kMasked for what is no key.
    __device__ __forceinline__ void find_positions(const Job& job, int (&positions)[kBatchTiles][kLaneKeys]) const {
        const bool is_batch = batch.num_tiles > 0, drafts = is_batch && job.tile.work.drafts;
        const int num_keys = is_batch ? job.tile.num_keys : 0, recent_start = is_batch ? job.list.recent_start : 0;
        const int whole_tiles = drafts ? job.list.num_staying / kTileTokens - batch.first_tile : kBatchTiles;
        copy_async_wait_all();
        if (whole_tiles < batch.num_tiles) {
            find_others(job, max(whole_tiles, 0));
        }
#pragma unroll
        for (int tile = 0; tile < kBatchTiles; ++tile) {
#pragma unroll
            for (int index = 0; index < kLaneKeys; ++index) {
                const int entry = key(batch.first_tile + tile, index);
                const int position = drafts ? listed(tile, index) : entry;
                const int end = !drafts ? num_keys : tile < whole_tiles ? recent_start : INT32_MAX;
                positions[tile][index] =
                    static_cast<uint32_t>(position) < static_cast<uint32_t>(end) ? position : kMasked;
            }
        }
    }

    // The positions of tiles from the batch's `first` on, which are not of staying pillars alone, in the place of what
    // the lists hold. Not unrolled: that they are listed once has to be looked up.
    __device__ __forceinline__ void find_others(const Job& job, int first) const {
        const DraftList& list = job.list;
#pragma unroll 1
        for (int place = first * kLaneKeys; place < batch.num_tiles * kLaneKeys; ++place) {
            const int entry = key(batch.first_tile + place / kLaneKeys, place % kLaneKeys);
            int& found = listed(place / kLaneKeys, place % kLaneKeys);
            int position = list_position(list, entry, found);
            if (entry >= job.tile.num_keys || is_outside(list, entry, position) ||
                (may_repeat(list, entry) && repeats(list, entry, position))) {
                position = kMasked;
            }
            found = position;
        }
    }

    // Tells the copier of one tile.
    __device__ __forceinline__ void put_keys(const Job& job, int tile, const int (&positions)[kLaneKeys],
                                             const int (&pages)[kLaneKeys]) {
        auto& pipeline = worker.shared.pipeline;
        TileKeys& found = worker.shared.keys[keys.place];
        const PillarAttentionParams& params = worker.params;
        const uint32_t page_rows = 2 * params.num_kv_heads * params.page_size;
        const uint32_t first_row = job.tile.kv_head * params.page_size;
        barrier_wait(&pipeline.keys_empty[keys.place], keys.parity ^ 1);
        uint32_t unmasked[kLaneKeys];
#pragma unroll
        for (int index = 0; index < kLaneKeys; ++index) {
            const uint32_t offset = positions[index] & (params.page_size - 1);
            found.row[index * 32 + worker.lane] =
                positions[index] < 0 ? 0 : static_cast<uint32_t>(pages[index]) * page_rows + (first_row + offset);
            unmasked[index] = __ballot_sync(0xffffffffu, positions[index] >= 0);
        }
        if (worker.lane == 0) {
            found.unmasked = uint64_t{unmasked[1]} << 32 | unmasked[0];
            found.values = job.pass.attends;
            found.new_keys = (tile + 1) * kTileTokens > job.tile.first_new;
            found.whole_pages = !job.tile.work.drafts && found.unmasked == ~uint64_t{0};
            found.ends = false;
        }
        barrier_arrive(&pipeline.keys_full[keys.place]);
        keys.advance(Kind::kTilesAhead);
    }

    // The scout's side of the whole launch. What was taken up last is finished when there is a next job, or at once
    // where there is none yet.
    __device__ __forceinline__ void run() {
        auto& pipeline = worker.shared.pipeline;
        RingCursor jobs;
        int job_slot = 0;
        TileRange range{0, 0};
        bool warm = false;
        while (true) {
            Batch next{job_slot, range.begin, min(kBatchTiles, range.end - range.begin), false};
            if (!warm) {  // nothing to do as yet: the code comes near
                warm = true;
            } else if (next.num_tiles > 0) {
                range.begin += next.num_tiles;
                next.ends_job = range.begin == range.end;
            } else if (batch.num_tiles > 0 && !is_told(jobs)) {
                next.num_tiles = 0;
            } else {
                barrier_wait(&pipeline.job_full[jobs.place], jobs.parity);
                job_slot = jobs.place;
                const Job& job = worker.shared.jobs[job_slot];
                if (job.ends && batch.num_tiles == 0) {
                    break;
                }
                range = job.ends ? TileRange{0, 0} : job.range;
                if (!job.ends) {
                    jobs.advance(kMaxJobs);
                }
                if (range.begin < range.end) {
                    continue;
                }
                if (!job.ends) {
                    barrier_arrive(&pipeline.job_empty[job_slot]);
                    continue;
                }
                next.num_tiles = 0;
            }
            add_batch(next);
        }
        end();
    }

    // Whether there is a next job already. All lanes say the same.
    __device__ __forceinline__ bool is_told(const RingCursor& jobs) const {
        return __all_sync(0xffffffffu, barrier_is_complete(&worker.shared.pipeline.job_full[jobs.place], jobs.parity));
    }

    __device__ __forceinline__ void end() {
        auto& pipeline = worker.shared.pipeline;
        barrier_wait(&pipeline.keys_empty[keys.place], keys.parity ^ 1);
        if (worker.lane == 0) {
            worker.shared.keys[keys.place].ends = true;
        }
        barrier_arrive(&pipeline.keys_full[keys.place]);
    }
};

}  // namespace sparsespec
