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

// Position of an entry; `listed`: what the list's tensors hold of it. Not whether it has been listed before.
__device__ __forceinline__ int list_position(const DraftList& list, int entry, int listed) {
    const int lookup = entry - list.num_staying - list.num_moving;
    const bool is_moving = entry >= list.num_staying && lookup < 0;
    return lookup >= list.num_lookups ? list.recent_start + lookup - list.num_lookups
                                      : listed + (is_moving ? list.shift : 0);
}

// Whether an entry may name a token that another one names too.
__device__ __forceinline__ bool may_repeat(const DraftList& list, int entry) {
    return entry >= list.num_staying && entry < list.num_staying + list.num_moving + list.num_lookups;
}

// Whether such an entry does: a token counts where it comes first.
__device__ __forceinline__ bool repeats(const DraftList& list, int entry, int position) {
    const int lookup = entry - list.num_staying - list.num_moving;
    return stays(list, position) ||
           (lookup >= 0 && (moves(list, position) || is_earlier_lookup(list, lookup, position)));
}

// Whether an entry names no token that is read: none at all, or one that is recent anyway.
__device__ __forceinline__ bool is_outside(const DraftList& list, int entry, int position) {
    return position < 0 ||
           (position >= list.recent_start && entry < list.num_staying + list.num_moving + list.num_lookups);
}

__device__ __forceinline__ DraftList draft_list(const PillarAttentionParams& params, const SlotLengths& lengths,
                                                int slot, int kv_head) {
    return {params.pillars + (int64_t{slot} * params.num_kv_heads + kv_head) * params.max_budget,
            params.lookups + int64_t{slot} * params.max_lookups,
            lengths.num_staying,
            lengths.num_moving,
            lengths.num_lookups,
            lengths.recent_start,
            lengths.draft_index};
}

// Page of a position of a slot.
__device__ __forceinline__ int load_page(const PillarAttentionParams& params, int slot, int position, int page_shift) {
    return position < 0 ? 0 : params.page_table[int64_t{slot} * params.max_pages + (position >> page_shift)];
}

}  // namespace sparsespec
