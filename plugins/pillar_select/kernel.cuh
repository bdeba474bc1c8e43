// Top-k by radix: passes of histograms, two for fp16 and three for fp32, find the k-th largest score exactly; one more
// writes the positions of what is above it, and of its equals from the left, in ascending order. One thread block per
// layer, scored slot, KV head and plane.
#pragma once

#include <cuda_fp16.h>

#include "common/block_scan.cuh"
#include "pillar_select/params.h"

namespace sparsespec {

constexpr int kSelectThreads = 256;
constexpr int kSelectWarps = kSelectThreads / 32;
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
// Scores that a lane takes at a time; their loads overlap.
constexpr int kUnroll = 8;
constexpr int kChunk = kSelectThreads * kUnroll;

// A score's bits in an order that unsigned numbers have. NaN ranks highest, as in torch; the zeros are equal.
__device__ inline uint32_t sort_key(float score) {
    if (isnan(score)) {
        return 0xffffffffu;
    }
    const uint32_t bits = __float_as_uint(score == 0 ? 0.0f : score);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float as_float(float score) {
    return score;
}
__device__ inline float as_float(__half score) {
    return __half2float(score);
}

// Digits that tell all scores apart, and the bits they cover: fp16 numbers are the same in fp32 with 13 zeros at the
// end.
template <typename T>
constexpr int kDigits = sizeof(T) == 2 ? 2 : 3;
template <typename T>
constexpr uint32_t kKeyMask = sizeof(T) == 2 ? ~0u << (32 - 2 * kDigitBits) : ~0u;

// The candidates of one list of pillars: positions 0 to count - 1, scored by scores[position - shift], or 0 before.
template <typename T>
struct Candidates {
    const T* scores;
    int count;
    int shift;

    __device__ uint32_t key(int position) const {
        return sort_key(position < shift ? 0.0f : as_float(scores[position - shift])) & kKeyMask<T>;
    }
};

struct SelectShared {
    int bins[kBins];
    int warp_sums[32];
    int above[kSelectWarps];
    int equal[kSelectWarps];
    int digit;
    int rank;
};

// Calls use(key, present) for the lane's positions first + warp * 32 * kUnroll + place * 32 + lane, place by place;
// present: below count.
template <typename T, typename Use>
__device__ void for_chunk(const Candidates<T>& candidates, int first, Use use) {
    const int start = first + threadIdx.x / 32 * 32 * kUnroll + threadIdx.x % 32;
    uint32_t keys[kUnroll];
#pragma unroll
    for (int place = 0; place < kUnroll; ++place) {
        const int position = start + place * 32;
        keys[place] = position < candidates.count ? candidates.key(position) : 0;
    }
#pragma unroll
    for (int place = 0; place < kUnroll; ++place) {
        use(keys[place], start + place * 32 < candidates.count);
    }
}

// The digit in which the rank-th largest of the counted keys falls, and its rank among those of that digit.
__device__ inline void find_digit(SelectShared& shared, int rank) {
    constexpr int kPerThread = kBins / kSelectThreads;
    const int top = kBins - static_cast<int>(threadIdx.x) * kPerThread;  // bins below it, from the highest digits down
    int count = 0;
    for (int bin = top - kPerThread; bin < top; ++bin) {
        count += shared.bins[bin];
    }
    int before = block_inclusive_sum(count, shared.warp_sums) - count;
    if (before < rank && rank <= before + count) {
        int bin = top - 1;
        while (before + shared.bins[bin] < rank) {
            before += shared.bins[bin--];
        }
        shared.digit = bin;
        shared.rank = rank - before;
    }
    __syncthreads();
}

// The key of the rank-th largest candidate, and how many of its equals are to be taken.
struct Threshold {
    uint32_t key;
    int num_equal;
};

template <typename T>
__device__ Threshold find_threshold(SelectShared& shared, const Candidates<T>& candidates, int rank) {
    uint32_t prefix = 0, known = 0;
    for (int digit = 0; digit < kDigits<T>; ++digit) {
        const int shift = max(0, 32 - (digit + 1) * kDigitBits);  // the last digit repeats a bit that is known
        for (int bin = threadIdx.x; bin < kBins; bin += kSelectThreads) {
            shared.bins[bin] = 0;
        }
        __syncthreads();
        for (int first = 0; first < candidates.count; first += kChunk) {
            for_chunk(candidates, first, [&](uint32_t key, bool present) {
                if (present && (key & known) == prefix) {
                    atomicAdd(&shared.bins[key >> shift & (kBins - 1) & ~(known >> shift)], 1);
                }
            });
        }
        __syncthreads();
        find_digit(shared, rank);
        prefix |= static_cast<uint32_t>(shared.digit) << shift;
        known |= static_cast<uint32_t>(kBins - 1) << shift;
        rank = shared.rank;
        __syncthreads();
    }
    return {prefix, rank};
}

// Writes the positions taken, ascending: keys above the threshold, and the first num_equal that equal it.
template <typename T>
__device__ void write_positions(SelectShared& shared, const Candidates<T>& candidates, Threshold threshold,
                                int32_t* list) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t lanes_before = (1u << lane) - 1;
    int above_before = 0, equal_before = 0;
    for (int first = 0; first < candidates.count; first += kChunk) {
        uint32_t above[kUnroll], equal[kUnroll];
        int num_above = 0, num_equal = 0, place = 0;
        for_chunk(candidates, first, [&](uint32_t key, bool present) {
            above[place] = __ballot_sync(0xffffffffu, present && key > threshold.key);
            equal[place] = __ballot_sync(0xffffffffu, present && key == threshold.key);
            num_above += __popc(above[place]);
            num_equal += __popc(equal[place]);
            ++place;
        });
        if (lane == 0) {
            shared.above[warp] = num_above;
            shared.equal[warp] = num_equal;
        }
        __syncthreads();
        int above_here = above_before, equal_here = equal_before;
        for (int other = 0; other < kSelectWarps; ++other) {
            above_here += other < warp ? shared.above[other] : 0;
            equal_here += other < warp ? shared.equal[other] : 0;
            above_before += shared.above[other];
            equal_before += shared.equal[other];
        }
#pragma unroll
        for (int index = 0; index < kUnroll; ++index) {
            const int equals = equal_here + __popc(equal[index] & lanes_before);
            const int place_in_list =
                above_here + __popc(above[index] & lanes_before) + min(equals, threshold.num_equal);
            const bool is_equal = equal[index] >> lane & 1;
            if ((above[index] >> lane & 1) || (is_equal && equals < threshold.num_equal)) {
                list[place_in_list] = first + (warp * kUnroll + index) * 32 + lane;
            }
            above_here += __popc(above[index]);
            equal_here += __popc(equal[index]);
        }
        __syncthreads();
    }
}

template <typename T>
__global__ void __launch_bounds__(kSelectThreads)
pillar_select_kernel(const __grid_constant__ PillarSelectParams params) {
    __shared__ SelectShared shared;
    const int layer = blockIdx.z, scored = blockIdx.y;
    const int plane = blockIdx.x / params.num_kv_heads, kv_head = blockIdx.x % params.num_kv_heads;
    const int slot = params.scored_slot[scored];
    if (slot < 0 || slot >= params.max_batch_size) {
        return;
    }
    const int num_staying = params.num_staying[slot];
    const int64_t row =
        ((int64_t{layer} * params.max_scored + scored) * params.num_planes + plane) * params.num_kv_heads + kv_head;
    const Candidates<T> candidates{static_cast<const T*>(params.scores) + row * params.max_positions,
                                   min(params.recent_start[slot], params.max_positions),
                                   plane > 0 ? params.moving_shift[scored] : 0};
    int32_t* list = params.pillars + ((int64_t{layer} * params.max_batch_size + slot) * params.num_kv_heads + kv_head) *
                                         params.max_budget;
    const int wanted =
        plane > 0 ? min(params.num_moving[slot], params.max_budget - num_staying) : min(num_staying, params.max_budget);
    const int count = min(wanted, candidates.count);
    if (count <= 0) {
        return;
    }
    write_positions(shared, candidates, find_threshold(shared, candidates, count),
                    list + (plane > 0 ? num_staying : 0));
}

}  // namespace sparsespec
