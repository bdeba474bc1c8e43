// From the warps' registers to the output; and where workers share a unit, to the workspace and on to the output by the
// worker that comes last.
#pragma once

#include "pillar_attention/score.cuh"

namespace sparsespec {

// Packed rows that a unit may have; a multiple of 4, so that every part of the workspace can be read as float4.
__host__ __device__ inline int partial_rows(int group) {
    const int block = ceil_div(kMaxBlockRows * group, 4) * 4;
    return block > kTileRows ? block : kTileRows;
}

__host__ __device__ inline int64_t partial_floats(int group, int head_dim) {
    return int64_t{partial_rows(group)} * (head_dim + 2) + kReach;
}

// A worker has two parts: of the unit that it goes on with, and of the one that it starts.
template <typename T, int kHeadDim>
__device__ __forceinline__ Partial partial(const Worker<T, kHeadDim>& worker, int index, bool starts_unit) {
    const int rows = partial_rows(worker.group());
    float* output = static_cast<float*>(worker.params.workspace) +
                    (index * 2 + starts_unit) * partial_floats(worker.group(), kHeadDim);
    float* max = output + int64_t{rows} * kHeadDim;
    return {output, max, max + rows, max + 2 * rows};
}

// Softmax over disjoint sets of keys, put together.
struct Sum {
    float max = -INFINITY;
    float sum = 0;
    float4 output{0, 0, 0, 0};

    __device__ __forceinline__ void add(float other_max, float other_sum, float4 other) {
        if (other_sum == 0) {
            return;
        }
        const float both = fmaxf(max, other_max);
        const float mine = exp2f(max - both), factor = exp2f(other_max - both);
        output = {output.x * mine + other.x * factor, output.y * mine + other.y * factor,
                  output.z * mine + other.z * factor, output.w * mine + other.w * factor};
        sum = sum * mine + other_sum * factor;
        max = both;
    }
};

// Writes four numbers of a packed row's output, and with the first four its log-sum-exp.
template <typename T, int kHeadDim>
__device__ __forceinline__ void put_output(const Worker<T, kHeadDim>& worker, const RowTile& tile, int packed,
                                           int column, const Sum& sum) {
    const PillarAttentionParams& params = worker.params;
    const int head = tile.query_head(packed);
    T* output =
        static_cast<T*>(params.output) + (int64_t{tile.qkv_row(packed)} * params.num_heads + head) * kHeadDim + column;
    const float factor = sum.sum > 0 ? 1 / sum.sum : 0;
    const uint2 numbers = {Numbers<T>::pack(sum.output.x * factor, sum.output.y * factor),
                           Numbers<T>::pack(sum.output.z * factor, sum.output.w * factor)};
    *reinterpret_cast<uint2*>(output) = numbers;
    if (column > 0) {
        return;
    }
    const float lse = sum.max + log2f(sum.sum);
    const int place = (tile.first_row - tile.work.body_rows) * tile.group + packed;
    if (place >= 0 && place < kMaxBlockRows * kMaxGroup) {  // the device's lengths may promise more rows
        worker.shared.lse[place] = lse;
    }
    const int draft = tile.work.first_position - params.step.kv_len[tile.work.slot];
    if (tile.work.drafts && draft < params.max_draft_len) {
        const int64_t row = int64_t{tile.work.slot} * params.max_draft_len + draft;
        params.draft_lse[row * params.num_heads + head] = lse * 0.6931471805599453f;
    }
}

__device__ __forceinline__ void put_partial(const Partial& part, int row, int head_dim, int column, const Sum& sum) {
    *reinterpret_cast<float4*>(part.output + int64_t{row} * head_dim + column) = sum.output;
    if (column == 0) {
        part.max[row] = sum.max;
        part.sum[row] = sum.sum;
    }
}

// The largest maximum, and the sum, of a packed row over the warps that share its keys.
template <int kRowWarps>
__device__ __forceinline__ Sum row_total(const WorkerShared& shared, int packed) {
    constexpr int kKeyWarps = WarpShare<kRowWarps>::kKeyWarps;
    Sum total;
#pragma unroll
    for (int key_warp = 0; key_warp < kKeyWarps; ++key_warp) {
        const int warp = packed / 16 * kKeyWarps + key_warp;
        total.add(shared.row_max[warp][packed % 16], shared.row_sum[warp][packed % 16], {0, 0, 0, 0});
    }
    return total;
}

// Shares the warps' maxima and sums; returns what scales each of the lane's two rows to the maximum over all warps.
template <int kRowWarps, typename T, int kHeadDim>
__device__ __forceinline__ void share_sums(const Worker<T, kHeadDim>& worker, const WarpRows<kHeadDim>& mine,
                                           float (&factor)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float sum = mine.sum[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (worker.lane % 4 == 0) {
            worker.shared.row_max[worker.warp][worker.lane / 4 + half * 8] = mine.max[half];
            worker.shared.row_sum[worker.warp][worker.lane / 4 + half * 8] = sum;
        }
    }
    consumer_sync();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int packed = WarpShare<kRowWarps>::first_row(worker.warp) + worker.lane / 4 + half * 8;
        const float max = row_total<kRowWarps>(worker.shared, packed).max;
        factor[half] = mine.max[half] == -INFINITY ? 0 : exp2f(mine.max[half] - max);
    }
}

template <int kRowWarps>
__device__ __forceinline__ float4 sum_exchange(const WorkerShared& shared, int packed, int column) {
    constexpr int kKeyWarps = WarpShare<kRowWarps>::kKeyWarps;
    float4 sum{0, 0, 0, 0};
#pragma unroll
    for (int key_warp = 0; key_warp < kKeyWarps; ++key_warp) {
        const int warp = packed / 16 * kKeyWarps + key_warp;
        const float4 part = *reinterpret_cast<const float4*>(&shared.exchange[warp][packed % 16][column]);
        sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
    }
    return sum;
}

// The row tile's result: to the workspace if other workers share the unit, else to the output.
template <int kRowWarps, typename T, int kHeadDim>
__device__ __forceinline__ void finish_rows(const Worker<T, kHeadDim>& worker, const WarpRows<kHeadDim>& mine) {
    const RowTile& tile = worker.tile();
    const int packed_rows = tile.packed_rows(),
              first_packed = max(0, tile.first_row - tile.work.body_rows) * tile.group;
    float factor[2];
    share_sums<kRowWarps>(worker, mine, factor);
#pragma unroll
    for (int first = 0; first < kHeadDim; first += kExchange) {
#pragma unroll
        for (int index = 0; index < kExchange / 4; ++index) {
            const int column = index / 2, half = index % 2;
            const float (&output)[4] = mine.output[first / 8 + column];
            *reinterpret_cast<float2*>(
                &worker.shared.exchange[worker.warp][worker.lane / 4 + half * 8][column * 8 + worker.lane % 4 * 2]) = {
                output[half * 2] * factor[half], output[half * 2 + 1] * factor[half]};
        }
        consumer_sync();
        for (int index = worker.thread; index < packed_rows * (kExchange / 4); index += kConsumers) {
            const int packed = index / (kExchange / 4), column = index % (kExchange / 4) * 4;
            Sum sum = row_total<kRowWarps>(worker.shared, packed);
            sum.output = sum_exchange<kRowWarps>(worker.shared, packed, column);
            if (worker.job().shares) {
                put_partial(worker.job().part, first_packed + packed, kHeadDim, first + column, sum);
            } else {
                put_output(worker, tile, packed, first + column, sum);
            }
        }
        consumer_sync();
    }
}

__device__ __forceinline__ bool has_tiles(const WorkerStart& start, const WorkerStart& next) {
    return start.active != next.active || start.unit != next.unit || start.tile != next.tile;
}

// Counts this worker's part as done; true in the worker that is last. `unit`: a start within the unit.
template <typename T, int kHeadDim>
__device__ __forceinline__ bool arrive(const Worker<T, kHeadDim>& worker, WorkerStart* starts,
                                       const WorkerStart& unit) {
    consumer_sync();
    if (worker.thread == 0) {
        const uint32_t last = unit.num_parts - 1;
        __threadfence();
        worker.shared.last_to_arrive = atomicInc(&starts[unit.first_worker].arrived, last) == last;
        __threadfence();
    }
    consumer_sync();
    return worker.shared.last_to_arrive != 0;
}

// Puts the parts of a unit together. `tile`: all rows of the unit.
template <typename T, int kHeadDim>
__device__ __forceinline__ void merge_parts(const Worker<T, kHeadDim>& worker, const RowTile& tile,
                                            const WorkerStart* starts, const WorkerStart& unit) {
    for (int index = worker.thread; index < tile.packed_rows() * (kHeadDim / 4); index += kConsumers) {
        const int packed = index / (kHeadDim / 4), column = index % (kHeadDim / 4) * 4;
        Sum sum;
        for (int other = unit.first_worker; other <= unit.last_worker; ++other) {
            if (has_tiles(starts[other], starts[other + 1])) {
                const Partial part = partial(worker, other, other == unit.first_worker);
                const float4 output =
                    __ldcg(reinterpret_cast<const float4*>(part.output + int64_t{packed} * kHeadDim + column));
                sum.add(__ldcg(part.max + packed), __ldcg(part.sum + packed), output);
            }
        }
        put_output(worker, tile, packed, column, sum);
    }
}

// Adds what each part's first tile gave to the diagonals of the part before. `target`: of the whole unit.
template <typename T, int kHeadDim>
__device__ __forceinline__ void merge_halos(const Worker<T, kHeadDim>& worker, const ScoreTarget& target,
                                            const WorkerStart* starts, const WorkerStart& unit) {
    for (int other = unit.first_worker + 1; other <= unit.last_worker; ++other) {
        if (has_tiles(starts[other], starts[other + 1]) && worker.thread < kReach) {
            const int position = starts[other].tile * kTileTokens - kReach + worker.thread;
            put_score(worker.params, target, 1, position, __ldcg(partial(worker, other, false).halo + worker.thread),
                      true);
        }
    }
}

}  // namespace sparsespec
