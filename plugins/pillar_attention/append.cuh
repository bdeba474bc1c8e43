// The step's own keys and values go from qkv to the pool, keys rotated: a kernel of its own, before the attention. It
// lets the attention kernel start before it waits itself for the launch before: that finds out what there is to do, and
// copies what lies in the pool, while the launch before still runs, where that let this one start. What is read so
// early is older than the step's plan, which was launched without leave to start early: all but qkv, and the step's own
// tokens.
#pragma once

#include <cuda_fp8.h>

#include "pillar_attention/entries.cuh"
#include "pillar_attention/rotate.cuh"

namespace sparsespec {

constexpr int kAppendThreads = 128;
// KV heads whose token a warp appends at a time.
constexpr int kAppendHeads = 32 / kVectorLanes;

// The slot that a row belongs to: the last of those that start at it or before. The warp is together.
__device__ __forceinline__ int find_slot(const StepLengths& step, int row, int lane) {
    int first = 0, last = step.max_batch_size - 1;
    while (first < last) {
        const int stride = ceil_div(last - first, 32);
        const int slot = first + (lane + 1) * stride;
        first += __popc(__ballot_sync(0xffffffffu, slot <= last && step.row_start[slot] <= row)) * stride;
        last = min(first + stride - 1, last);
    }
    return first;
}

// A token's value lies so many numbers after its key.
template <int kHeadDim>
__device__ __forceinline__ int64_t value_offset(const PillarAttentionParams& params) {
    return int64_t{params.num_kv_heads} * params.page_size * kHeadDim;
}

// x / scale in FP8, to the nearest even; cut off at the largest number.
template <typename T>
__device__ __forceinline__ uint2 to_fp8(const uint4& packed, float scale) {
    float numbers[8];
    unpack_eight<T>(packed, numbers);
    uint32_t pairs[4];
#pragma unroll
    for (int index = 0; index < 4; ++index) {
        const float2 pair = {__fdiv_rn(numbers[2 * index], scale), __fdiv_rn(numbers[2 * index + 1], scale)};
        pairs[index] = __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3);
    }
    return {pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16};
}

// Eight numbers of the model's type to the pool, from its number `at` on. `scale`: of an FP8 pool.
template <typename Kind>
__device__ __forceinline__ void put_eight(void* pool, int64_t at, const uint4& numbers, float scale) {
    if constexpr (Kind::kFp8) {
        *reinterpret_cast<uint2*>(static_cast<unsigned char*>(pool) + at) =
            to_fp8<typename Kind::Model>(numbers, scale);
    } else {
        *reinterpret_cast<uint4*>(static_cast<typename Kind::Model*>(pool) + at) = numbers;
    }
}

template <typename Kind>
__device__ __forceinline__ void put_part(void* pool, int64_t at, const VectorPart& part, float scale) {
    put_eight<Kind>(pool, at, part.low, scale);
    put_eight<Kind>(pool, at + Kind::kHeadDim / 2, part.high, scale);
}

// One token's key and value of one KV head, by kVectorLanes lanes. The warp is together; not all lanes may hold a part.
template <typename Kind>
__device__ __forceinline__ void append_token(const PillarAttentionParams& params, int row, int64_t token, int position,
                                             int kv_head, int part, bool present) {
    const bool holds = present && holds_part<Kind::kHeadDim>(part);
    const typename Kind::Model* key = static_cast<const typename Kind::Model*>(params.qkv) +
                                      int64_t{row} * (params.num_heads + 2 * params.num_kv_heads) * Kind::kHeadDim +
                                      (params.num_heads + kv_head) * Kind::kHeadDim;
    const Rotation rotation =
        load_rotation<Kind::kHeadDim>(params.rope_table + int64_t{position} * Kind::kHeadDim, part);
    VectorPart k{}, v{};
    wait_for_launch_before();  // which may have made the keys; who waits for this launch waits for both
    if (holds) {
        k = load_part<typename Kind::Model, Kind::kHeadDim>(key, part);
        v = load_part<typename Kind::Model, Kind::kHeadDim>(key + params.num_kv_heads * Kind::kHeadDim, part);
    }
    k = rotated<typename Kind::Model, Kind::kHeadDim>(k, static_cast<const typename Kind::Model*>(params.k_norm),
                                                      params.rms_norm_eps, rotation, part);
    if (holds) {
        const int64_t at = token + int64_t{kv_head} * params.page_size * Kind::kHeadDim + part * 8;
        const float* scale = params.kv_scale + kv_head;
        put_part<Kind>(params.kv_pool, at, k, Kind::kFp8 ? scale[0] : 1);
        put_part<Kind>(params.kv_pool, at + value_offset<Kind::kHeadDim>(params), v,
                       Kind::kFp8 ? scale[params.num_kv_heads] : 1);
    }
}

// Where a row's token is to go; any place that there is where it has none.
struct AppendPlace {
    bool exists;
    int position;
    int page;
};

// Without a branch, so that all of a slot's numbers are loaded at once.
__device__ __forceinline__ AppendPlace append_place(const PillarAttentionParams& params, int row, int lane) {
    const StepLengths& step = params.step;
    const int slot = find_slot(step, row, lane);
    const int num_rows = step.row_start[step.max_batch_size], phase = step.phase[slot];
    const bool exists = (row < num_rows) & (phase != static_cast<int>(Phase::kIdle));
    const int position = step.kv_len[slot] + step.draft_index[slot] + row - step.row_start[slot];
    const int place = exists ? position : 0;
    return {exists, place, load_page(params, slot, place, __ffs(params.page_size) - 1)};
}

// A warp for each row and kAppendHeads of its KV heads. It lets the attention start at once, and waits for the launch
// before itself when it knows where its token is to go.
template <typename Kind>
__global__ void __launch_bounds__(kAppendThreads, 8)
append_kernel(const __grid_constant__ PillarAttentionParams params) {
    start_dependents();
    const int warp = static_cast<int>(blockIdx.x * kAppendThreads + threadIdx.x) / 32, lane = threadIdx.x % 32;
    const int groups = ceil_div(params.num_kv_heads, kAppendHeads);
    const int row = warp / groups, kv_head = warp % groups * kAppendHeads + lane / kVectorLanes;
    const AppendPlace place = append_place(params, row, lane);
    const int64_t token = int64_t{place.page} * 2 * value_offset<Kind::kHeadDim>(params) +
                          int64_t{place.position & (params.page_size - 1)} * Kind::kHeadDim;
    append_token<Kind>(params, row, token, place.position, kv_head, lane % kVectorLanes,
                       place.exists && kv_head < params.num_kv_heads);
}

}  // namespace sparsespec
