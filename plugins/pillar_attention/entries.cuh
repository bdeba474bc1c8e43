// Which token each key of a tile is, and where it lies in the pool.
#pragma once

#include "pillar_attention/worker.cuh"

namespace sparsespec {

// Whether `value` is among the ascending `list[0 .. size)`.
__device__ __forceinline__ bool contains(const int32_t* list, int size, int value) {
    int low = 0, high = size;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (list[middle] < value) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < size && list[low] == value;
}

__device__ __forceinline__ bool stays(const DraftList& list, int position) {
    return contains(list.pillars, list.num_staying, position);
}

__device__ __forceinline__ bool moves(const DraftList& list, int position) {
    return contains(list.pillars + list.num_staying, list.num_moving, position - list.shift);
}

__device__ __forceinline__ bool is_earlier_lookup(const DraftList& list, int place, int position) {
    for (int earlier = 0; earlier < place; ++earlier) {
        if (list.lookups[earlier] == position) {
            return true;
        }
    }
    return false;
}

// What the list's tensors hold of an entry; 0 of recent tokens.
__device__ __forceinline__ int load_listed(const DraftList& list, int entry) {
    const int lookup = entry - list.num_staying - list.num_moving;
    return lookup < 0 ? list.pillars[entry] : lookup < list.num_lookups ? list.lookups[lookup] : 0;
}

// Position of an entry, or kMasked: a token counts where it comes first, and not where it is recent anyway.
__device__ __forceinline__ int list_position(const DraftList& list, int entry, int listed) {
    const int lookup = entry - list.num_staying - list.num_moving;
    if (lookup >= list.num_lookups) {
        return list.recent_start + lookup - list.num_lookups;
    }
    const bool is_moving = entry >= list.num_staying && lookup < 0;
    const int position = listed + (is_moving ? list.shift : 0);
    const bool known = position < 0 || position >= list.recent_start ||
                       (entry >= list.num_staying && stays(list, position)) ||
                       (lookup >= 0 && (moves(list, position) || is_earlier_lookup(list, lookup, position)));
    return known ? kMasked : position;
}

__device__ __forceinline__ DraftList draft_list(const PillarAttentionParams& params, int slot, int kv_head) {
    const StepLengths& step = params.step;
    return {params.pillars + (int64_t{slot} * params.num_kv_heads + kv_head) * params.max_budget,
            params.lookups + int64_t{slot} * params.max_lookups,
            step.num_staying[slot],
            step.num_moving[slot],
            step.num_lookups[slot],
            step.recent_start[slot],
            step.draft_index[slot]};
}

__device__ __forceinline__ int load_listed(const Job& job, int key) {
    return job.tile.work.drafts && key < job.tile.num_keys ? load_listed(job.list, key) : 0;
}

// Position of a key of the row tile, or kMasked where it has none.
__device__ __forceinline__ int key_position(const Job& job, int key, int listed) {
    if (key >= job.tile.num_keys) {
        return kMasked;
    }
    return job.tile.work.drafts ? list_position(job.list, key, listed) : key;
}

template <typename T, int kHeadDim>
__device__ __forceinline__ int load_page(const Worker<T, kHeadDim>& worker, int position) {
    const int64_t first = int64_t{worker.tile().work.slot} * worker.params.max_pages;
    return position < 0 ? 0 : worker.params.page_table[first + (position >> worker.page_shift)];
}

// Where the key of the token at a position of a page begins in the pool, in numbers.
template <typename T, int kHeadDim>
__device__ __forceinline__ int64_t pool_offset(const Worker<T, kHeadDim>& worker, int position, int page) {
    const PillarAttentionParams& params = worker.params;
    const int offset = position & (params.page_size - 1);
    return ((int64_t{page} * 2 * params.num_kv_heads + worker.tile().kv_head) * params.page_size + offset) * kHeadDim;
}

// The same, or kMasked.
template <typename T, int kHeadDim>
__device__ __forceinline__ int64_t entry_of(const Worker<T, kHeadDim>& worker, int position, int page) {
    return position < 0 ? kMasked : pool_offset(worker, position, page);
}

}  // namespace sparsespec
