// The scout: a warp that finds out where the keys of tile after tile lie, several tiles ahead of the copies and across
// the ends of jobs. A position may have to be read from a list, and its page from the page table; both loads take
// microseconds while the copies saturate the memory, so they are made for a batch of tiles at once, and the lists of a
// batch are on their way while the pages of the batch before are. There is one place that calls each function here:
// code that runs once in a while comes from afar.
#pragma once

#include "pillar_attention/entries.cuh"

namespace sparsespec {

constexpr int kLaneKeys = kTileTokens / 32;
constexpr int kBatchTiles = 4;

// Tiles of one job. One without tiles finishes what was taken up before.
struct Batch {
    int job_slot;
    int first_tile;
    int num_tiles;
    bool ends_job;
};

template <typename Kind>
struct Scout {
    Worker<Kind> worker;
    RingCursor keys{};
    Batch batch{};                         // the one whose lists are on their way
    int listed[kBatchTiles][kLaneKeys]{};  // of it

    __device__ __forceinline__ int key(int tile, int index) const {
        return tile * kTileTokens + index * 32 + worker.lane;
    }

    // Takes a batch up, and finishes the one taken up before.
    __device__ __forceinline__ void add_batch(const Batch& next) {
        const Job& job = worker.shared.jobs[batch.job_slot];
        int positions[kBatchTiles][kLaneKeys], pages[kBatchTiles][kLaneKeys];
        find_positions(job, positions);
        const int32_t* page_table = worker.params.page_table + int64_t{job.tile.work.slot} * worker.params.max_pages;
#pragma unroll
        for (int tile = 0; tile < kBatchTiles; ++tile) {
#pragma unroll
            for (int index = 0; index < kLaneKeys; ++index) {
                const int position = positions[tile][index];
                pages[tile][index] = position < 0 ? 0 : page_table[position >> worker.page_shift];
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
            warp_arrive(&worker.shared.pipeline.job_empty[batch.job_slot], worker.lane);
        }
        batch = next;
    }

    // Of drafts. Most tiles lie within the pillars.
    __device__ __forceinline__ void read_lists(const Batch& next) {
        const Job& job = worker.shared.jobs[next.job_slot];
        if (next.num_tiles == 0 || !job.tile.work.drafts) {
            return;
        }
        const DraftList& list = job.list;
        const int num_pillars = list.num_staying + list.num_moving, num_keys = job.tile.num_keys;
        const int32_t* pillars = list.pillars + key(next.first_tile, 0);
#pragma unroll
        for (int tile = 0; tile < kBatchTiles; ++tile) {
            const bool within = (next.first_tile + tile + 1) * kTileTokens <= num_pillars;
#pragma unroll
            for (int index = 0; index < kLaneKeys; ++index) {
                const int entry = key(next.first_tile + tile, index);
                if (within) {
                    listed[tile][index] = pillars[tile * kTileTokens + index * 32];
                } else if (entry < num_keys) {
                    listed[tile][index] = load_listed(list, entry);
                }
            }
        }
    }

    // Of the batch; kMasked for what is no key.
    __device__ __forceinline__ void find_positions(const Job& job, int (&positions)[kBatchTiles][kLaneKeys]) const {
        const bool drafts = job.tile.work.drafts;
        const int num_keys = job.tile.num_keys, num_staying = drafts ? job.list.num_staying : 0;
        const int recent_start = job.list.recent_start;
        bool unsure = false;
#pragma unroll
        for (int tile = 0; tile < kBatchTiles; ++tile) {
            const bool stays = (batch.first_tile + tile + 1) * kTileTokens <= num_staying;
#pragma unroll
            for (int index = 0; index < kLaneKeys; ++index) {
                const int entry = key(batch.first_tile + tile, index);
                int& position = positions[tile][index];
                if (stays) {
                    const int pillar = listed[tile][index];
                    position = static_cast<uint32_t>(pillar) < static_cast<uint32_t>(recent_start) ? pillar : kMasked;
                } else {
                    position = entry < num_keys ? entry : kMasked;
                }
            }
            unsure |= drafts && !stays && tile < batch.num_tiles;
        }
        if (unsure) {
            find_others(job, positions);
        }
    }

    // Of tiles that are not of staying pillars alone. Not unrolled: that they are listed once has to be looked up.
    __device__ __forceinline__ void find_others(const Job& job, int (&positions)[kBatchTiles][kLaneKeys]) const {
        const DraftList& list = job.list;
#pragma unroll 1
        for (int place = 0; place < kBatchTiles * kLaneKeys; ++place) {
            const int tile = batch.first_tile + place / kLaneKeys, entry = key(tile, place % kLaneKeys);
            if ((tile + 1) * kTileTokens <= list.num_staying || entry - worker.lane >= job.tile.num_keys) {
                continue;
            }
            int value = 0;
#pragma unroll
            for (int other = 0; other < kBatchTiles * kLaneKeys; ++other) {
                value = other == place ? listed[other / kLaneKeys][other % kLaneKeys] : value;
            }
            int position = list_position(list, entry, value);
            if (entry >= job.tile.num_keys || is_outside(list, entry, position) ||
                (may_repeat(list, entry) && repeats(list, entry, position))) {
                position = kMasked;
            }
#pragma unroll
            for (int other = 0; other < kBatchTiles * kLaneKeys; ++other) {
                int& found = positions[other / kLaneKeys][other % kLaneKeys];
                found = other == place ? position : found;
            }
        }
    }

    // Tells the copier of one tile.
    __device__ __forceinline__ void put_keys(const Job& job, int tile, const int (&positions)[kLaneKeys],
                                             const int (&pages)[kLaneKeys]) {
        Pipeline& pipeline = worker.shared.pipeline;
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
        warp_arrive(&pipeline.keys_full[keys.place], worker.lane);
        keys.advance(kMaxTilesAhead);
    }

    // The scout's side of the whole launch. What was taken up last is finished when there is a next job, or at once
    // where there is none yet.
    __device__ __forceinline__ void run() {
        Pipeline& pipeline = worker.shared.pipeline;
        RingCursor jobs;
        int job_slot = 0;
        TileRange range{0, 0};
        while (true) {
            Batch next{job_slot, range.begin, min(kBatchTiles, range.end - range.begin), false};
            if (next.num_tiles > 0) {
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
                    warp_arrive(&pipeline.job_empty[job_slot], worker.lane);
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
        Pipeline& pipeline = worker.shared.pipeline;
        barrier_wait(&pipeline.keys_empty[keys.place], keys.parity ^ 1);
        if (worker.lane == 0) {
            worker.shared.keys[keys.place].ends = true;
        }
        warp_arrive(&pipeline.keys_full[keys.place], worker.lane);
    }
};

}  // namespace sparsespec
