// Top-k by bisection: a thread block holds a row of scores in registers and counts those above one level after another,
// until as many are as are wanted. Then it marks them in a bitmap, and writes their positions in ascending order. One
// thread block per layer, scored slot, KV head and plane.
#pragma once

#include "common/block_scan.cuh"
#include "pillar_select/params.h"
#include "pillar_select/scores.cuh"

namespace sparsespec {

// What a thread holds of a row, in 64 or 32 registers, and how many threads there are on a multiprocessor at least.
template <typename T>
constexpr int kHeldGroups = sizeof(T) == 2 ? 16 : 4;
template <typename T>
constexpr int kResidentThreads = sizeof(T) == 2 ? 640 : 768;

// The rows that a launch serves, by the positions to choose from, and how it reads them.
struct SelectTier {
    int more_than;
    int at_most;
    int num_spare;    // groups of a row that have room in dynamic shared memory
    bool by_vectors;  // see ScoreRow
};

template <typename T, int kThreads>
struct SelectShared {
    static constexpr int kWords = kThreads * kHeldGroups<T> * kGroup / 32;

    // Whether the scores of kHeldGroups * kThreads groups are above a cut's two levels: a bit each, a byte for a group.
    uint32_t above_high[kWords];
    uint32_t above_low[kWords];
    WarpSums<kThreads> warps[2];
};

// What is taken: the scores above the level `high`, num_above of them, and the first num_equal of those that are above
// `low` but not above `high`, which are all equal.
struct Cut {
    int low;
    int high;
    int num_above;
    int num_equal;

    // How many of a stretch that has so many of both.
    __device__ __forceinline__ int taken(int above, int equal) const { return above + min(equal, num_equal); }
};

// The list to write: `wanted` positions, of `zeros` positions that score 0 and, after them, those of the row's scores.
struct SelectList {
    int wanted;
    int zeros;
    int32_t* positions;
};

// A thread block and its row. The first kHeld groups are in registers. With kOthers there are more: num_spare in shared
// memory, and the rest is read again in every pass.
template <typename T, int kThreads, int kGroups, bool kOthers>
struct RowSelect {
    static constexpr int kHeld = kThreads * kGroups;
    static constexpr int kWords = kGroups * kGroup / 32;  // of a thread in each bitmap
    static_assert(kHeld * kGroup <= 0xffff, "two counts of a chunk are summed as halves of one word");

    const ScoreRow<T>& row;
    const SelectList& list;
    SelectShared<T, kThreads>& shared;
    uint4* spare;  // [vectors of a group, num_spare]; a group is written and read by one thread
    int num_spare;
    Group<T> held[kGroups];
    uint32_t num_passes;

    __device__ __forceinline__ void load() {
        if (row.by_vectors) {
            load_held<true>();
        } else {
            load_held<false>();
        }
#pragma unroll
        for (int place = 0; place < kGroups; ++place) {
            row.hide_absent(held[place], place * kThreads + threadIdx.x);
        }
        if constexpr (kOthers) {
            for (int index = kHeld + threadIdx.x; index < spare_end(); index += kThreads) {
                const Group<T> group = row.load_whole(index);
#pragma unroll
                for (int vector = 0; vector < Group<T>::kVectors; ++vector) {
                    spare_vector(index, vector) = group.vector(vector);
                }
            }
        }
    }

    // Scores are probabilities, so the first search is from 0 to 1. A cut at its ends may lie beyond them.
    __device__ __forceinline__ Cut find_cut() {
        int low = -2, high = kOneLevel<T> + 2;
        while (true) {
            const Cut cut = bisect(low, high);
            if (low == -kNanLevel<T> || (cut.low > low && cut.high < high)) {
                return cut;
            }
            low = -kNanLevel<T>;
            high = kNanLevel<T>;
        }
    }

    // Writes the positions taken, ascending, chunk by chunk of kHeld groups.
    __device__ __forceinline__ void write(const Cut& cut) {
        int above = cut.high < 0 ? list.zeros : 0;
        int equal = (cut.low < 0 ? list.zeros : 0) - above;
#pragma unroll 1
        for (int position = threadIdx.x; position < cut.taken(above, equal); position += kThreads) {
            list.positions[position] = position;
        }
        mark_held(shared.above_high, cut.high);
        if (cut.num_equal > 0) {
            mark_held(shared.above_low, cut.low);
        }
        __syncthreads();
        uint32_t counts = write_chunk(cut, 0, above, equal);
        for (int first = kHeld; kOthers && first < row.num_groups(); first += kHeld) {
            above += static_cast<int>(counts & 0xffffu);
            equal += static_cast<int>(counts >> 16);
            mark_others(shared.above_high, cut.high, first);
            mark_others(shared.above_low, cut.low, first);
            __syncthreads();
            counts = write_chunk(cut, first * kGroup, above, equal);
        }
    }

private:
    // Loads overlap: no score is looked at before all are on their way.
    template <bool kByVectors>
    __device__ __forceinline__ void load_held() {
#pragma unroll
        for (int place = 0; place < kGroups; ++place) {
            const int index = place * kThreads + threadIdx.x;
            if (index < row.num_groups()) {
                held[place] = kByVectors ? row.load_vectors(index) : row.load_singly(index);
            }
        }
    }

    // Halves what is between two levels until as many scores as wanted are above one, or no level is between.
    __device__ __forceinline__ Cut bisect(int low, int high) {
        int num_above = 0;
        while (static_cast<uint32_t>(high) - static_cast<uint32_t>(low) > 1) {
            const int level = (low & high) + ((low ^ high) >> 1);  // half-way, without overflow
            const uint32_t mine = count(packed_level<T>(level));
            const int zeros = level < 0 ? list.zeros : 0;
            const int above = zeros + static_cast<int>(block_sum(mine, shared.warps[num_passes++ % 2]));
            low = above >= list.wanted ? level : low;
            high = above <= list.wanted ? level : high;
            num_above = above <= list.wanted ? above : num_above;
        }
        return {low, high, num_above, list.wanted - num_above};
    }

    // How many of the thread's scores are above the number.
    __device__ __forceinline__ uint32_t count(uint32_t number) const {
        uint32_t above = count_above(held, number);
        if constexpr (kOthers) {
            int index = kHeld + threadIdx.x;
#pragma unroll 2
            for (const int end = spare_end(); index < end; index += kThreads) {
                const Group<T> groups[] = {load_spare(index)};
                above += count_above(groups, number);
            }
#pragma unroll 1
            for (; index < row.num_groups(); index += kThreads) {
                const Group<T> groups[] = {row.load_whole(index)};
                above += count_above(groups, number);
            }
        }
        return above;
    }

    __device__ __forceinline__ int spare_end() const { return min(row.num_groups(), kHeld + num_spare); }

    __device__ __forceinline__ uint4& spare_vector(int index, int vector) const {
        return spare[vector * num_spare + index - kHeld];
    }

    __device__ __forceinline__ Group<T> load_spare(int index) const {
        Group<T> group;
#pragma unroll
        for (int vector = 0; vector < Group<T>::kVectors; ++vector) {
            group.set_vector(vector, spare_vector(index, vector));
        }
        return group;
    }

    // Fills a bitmap for the first chunk. Bits of scores that do not exist may be anything.
    __device__ __forceinline__ void mark_held(uint32_t* bitmap, int level) {
        auto* bytes = reinterpret_cast<uint8_t*>(bitmap);
#pragma unroll
        for (int place = 0; place < kGroups; ++place) {
            bytes[place * kThreads + threadIdx.x] = bits_above(held[place], packed_level<T>(level));
        }
    }

    // The same for the chunk that begins with group `first`.
    __device__ __forceinline__ void mark_others(uint32_t* bitmap, int level, int first) {
        auto* bytes = reinterpret_cast<uint8_t*>(bitmap);
        for (int place = threadIdx.x; place < min(kHeld, row.num_groups() - first); place += kThreads) {
            const int index = first + place;
            const Group<T> group = index < spare_end() ? load_spare(index) : row.load_whole(index);
            bytes[place] = bits_above(group, packed_level<T>(level));
        }
    }

    // Writes the positions of the chunk that begins with score `first` behind those of so many scores before it.
    // Returns its own two counts, one in each half.
    __device__ __forceinline__ uint32_t write_chunk(const Cut& cut, int first, int above_before, int equal_before) {
        const int first_word = threadIdx.x * kWords;
        uint32_t above[kWords], equal[kWords], counts = 0;
#pragma unroll
        for (int word = 0; word < kWords; ++word) {
            const int index = first_word + word;
            const uint32_t real = low_bits(row.num_scores - first - index * 32);
            above[word] = cut.high == kNanLevel<T> ? 0u : shared.above_high[index] & real;
            equal[word] = cut.num_equal == 0 ? 0u : shared.above_low[index] & real & ~above[word];
            counts += __popc(above[word]) + (__popc(equal[word]) << 16);
        }
        const BlockSums sums = block_scan(counts, shared.warps[0]);
        equal_before += static_cast<int>(sums.before >> 16);
        int place = cut.taken(above_before + static_cast<int>(sums.before & 0xffffu), equal_before);
        int equal_left = cut.num_equal - equal_before;
#pragma unroll
        for (int word = 0; word < kWords; ++word) {
            const int position = list.zeros + first + (first_word + word) * 32;
#pragma unroll 1
            for (uint32_t bits = above[word] | first_of(equal[word], equal_left); bits != 0; bits &= bits - 1) {
                list.positions[place++] = position + __ffs(static_cast<int>(bits)) - 1;
            }
            equal_left -= __popc(equal[word]);
        }
        return sums.total;
    }
};

// With as few groups to a thread as the row allows: no more registers are counted than it fills.
template <typename T, int kThreads, int kGroups>
__device__ __forceinline__ void select_row(const ScoreRow<T>& row, const SelectList& list,
                                           SelectShared<T, kThreads>& shared, int num_spare) {
    extern __shared__ uint4 spare[];
    if constexpr (kGroups > 4) {
        if (row.num_groups() <= kThreads * kGroups / 2) {
            select_row<T, kThreads, kGroups / 2>(row, list, shared, num_spare);
            return;
        }
    }
    if (kGroups < kHeldGroups<T> || row.num_groups() <= kThreads * kGroups) {
        RowSelect<T, kThreads, kGroups, false> select{row, list, shared, spare, num_spare, {}, 0};
        select.load();
        select.write(select.find_cut());
    } else {
        RowSelect<T, kThreads, kGroups, true> select{row, list, shared, spare, num_spare, {}, 0};
        select.load();
        select.write(select.find_cut());
    }
}

template <typename T, int kThreads>
__global__ void __launch_bounds__(kThreads, kResidentThreads<T> / kThreads)
pillar_select_kernel(const __grid_constant__ PillarSelectParams params, const SelectTier tier) {
    __shared__ SelectShared<T, kThreads> shared;
    const int layer = blockIdx.z, scored = blockIdx.y;
    const int plane = blockIdx.x / params.num_kv_heads, kv_head = blockIdx.x % params.num_kv_heads;
    const int slot = params.scored_slot[scored];
    if (slot < 0 || slot >= params.max_batch_size) {
        return;
    }
    const int count = min(params.recent_start[slot], params.max_positions);
    const int num_staying = params.num_staying[slot];
    const int first = plane > 0 ? num_staying : 0;
    const int wanted = min(min(plane > 0 ? params.num_moving[slot] : num_staying, params.max_budget - first), count);
    if (wanted <= 0 || count <= tier.more_than || count > tier.at_most) {
        return;
    }
    const int zeros = plane > 0 ? min(params.moving_shift[scored], count) : 0;
    const int64_t of_row =
        ((int64_t{layer} * params.max_scored + scored) * params.num_planes + plane) * params.num_kv_heads + kv_head;
    const int64_t of_list = (int64_t{layer} * params.max_batch_size + slot) * params.num_kv_heads + kv_head;
    const ScoreRow<T> row{static_cast<const T*>(params.scores) + of_row * params.max_positions, count - zeros,
                          tier.by_vectors};
    const SelectList list{wanted, zeros, params.pillars + of_list * params.max_budget + first};
    select_row<T, kThreads, kHeldGroups<T>>(row, list, shared, tier.num_spare);
}

}  // namespace sparsespec
