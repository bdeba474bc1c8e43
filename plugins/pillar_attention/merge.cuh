// From the warps' registers to the output; or to the workspace, where workers share a unit.
#pragma once

#include "pillar_attention/parts.cuh"
#include "pillar_attention/score.cuh"

namespace sparsespec {

// Softmax over disjoint sets of keys, put together. Sums are of weights 2^(logit - base).
struct Sum {
    float base = -INFINITY;
    float sum = 0;
    float4 output{0, 0, 0, 0};

    __device__ __forceinline__ void add(float other_base, float other_sum, float4 other) {
        if (other_sum == 0) {
            return;
        }
        const float both = fmaxf(base, other_base);
        const float mine = exp2f(base - both), factor = exp2f(other_base - both);
        output = {output.x * mine + other.x * factor, output.y * mine + other.y * factor,
                  output.z * mine + other.z * factor, output.w * mine + other.w * factor};
        sum = sum * mine + other_sum * factor;
        base = both;
    }
};

template <typename Kind>
__device__ __forceinline__ typename Kind::Model* output_row(const PillarAttentionParams& params, const RowTile& tile,
                                                            int packed) {
    return static_cast<typename Kind::Model*>(params.output) +
           (int64_t{tile.qkv_row(packed)} * params.num_heads + tile.query_head(packed)) * Kind::kHeadDim;
}

// Leaves a draft's log-sum-exp, in log2, to its verification.
__device__ __forceinline__ void put_draft_lse(const PillarAttentionParams& params, const RowTile& tile, int draft_index,
                                              int packed, float lse) {
    if (tile.work.drafts && draft_index < params.max_draft_len) {
        const int64_t row = int64_t{tile.work.slot} * params.max_draft_len + draft_index;
        params.draft_lse[row * params.num_heads + tile.query_head(packed)] = lse * 0.6931471805599453f;
    }
}

// Leaves a packed row's log-sum-exp, in log2, to the scores.
template <typename Kind>
__device__ __forceinline__ void put_score_lse(const Worker<Kind>& worker, const RowTile& tile, int packed, float lse) {
    const int place = (tile.first_row - tile.work.body_rows) * tile.group + packed;
    if (place >= 0 && place < kMaxBlockRows * kMaxGroup) {  // the device's lengths may promise more rows
        worker.shared.lse[place] = lse;
    }
}

template <typename Kind>
__device__ __forceinline__ void put_lse(const Worker<Kind>& worker, const RowTile& tile, int packed, float lse) {
    if (worker.job().finish.keeps_lse) {  // else a team that has gone on may already have left its own there
        put_score_lse(worker, tile, packed, lse);
    }
    put_draft_lse(worker.params, tile, worker.job().list.shift, packed, lse);
}

// What the values of a head are to be multiplied by: those of an FP8 pool are over a scale.
template <typename Kind>
__device__ __forceinline__ float value_scale(const PillarAttentionParams& params, int kv_head) {
    if constexpr (Kind::kFp8) {
        return params.kv_scale[params.num_kv_heads + kv_head];
    } else {
        return 1;
    }
}

// Four numbers to the output, in the model's type.
template <typename Model>
__device__ __forceinline__ void put_numbers(Model* output, const float4& numbers) {
    *reinterpret_cast<uint2*>(output) = {Numbers<Model>::pack(numbers.x, numbers.y),
                                         Numbers<Model>::pack(numbers.z, numbers.w)};
}

// Writes four numbers of a packed row's output.
template <typename Kind>
__device__ __forceinline__ void put_output(const PillarAttentionParams& params, const RowTile& tile, int packed,
                                           int column, const Sum& sum) {
    const float factor = sum.sum > 0 ? value_scale<Kind>(params, tile.kv_head) / sum.sum : 0;
    const float4& output = sum.output;
    put_numbers(output_row<Kind>(params, tile, packed) + column,
                {output.x * factor, output.y * factor, output.z * factor, output.w * factor});
}

__device__ __forceinline__ void put_partial(const Partial& part, int row, int head_dim, int column, const Sum& sum) {
    *reinterpret_cast<float4*>(part.output + int64_t{row} * head_dim + column) = sum.output;
    if (column == 0) {
        part.base[row] = sum.base;
        part.sum[row] = sum.sum;
    }
}

// The largest base, and the sum, of a packed row over the warps that share its keys.
template <int kRowWarps, typename Shared>
__device__ __forceinline__ Sum row_total(const Shared& shared, int packed) {
    constexpr int kKeyWarps = WarpShare<kRowWarps>::kKeyWarps;
    Sum total;
#pragma unroll
    for (int key_warp = 0; key_warp < kKeyWarps; ++key_warp) {
        const int warp = packed / 16 * kKeyWarps + key_warp;
        total.add(shared.exchange.row_base[warp][packed % 16], shared.exchange.row_sum[warp][packed % 16],
                  {0, 0, 0, 0});
    }
    return total;
}

// The sum of a row's weights over the four lanes that share it.
__device__ __forceinline__ float sum_of_row(float sum) {
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    return sum + __shfl_xor_sync(0xffffffffu, sum, 2);
}

// Shares the warps' bases and sums; returns what scales each of the lane's two rows to the largest base.
template <int kRowWarps, typename Kind>
__device__ __forceinline__ void share_sums(const Worker<Kind>& worker, const WarpRows<Kind::kHeadDim>& mine,
                                           float (&factor)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float sum = sum_of_row(mine.sum[half]);
        if (worker.lane % 4 == 0) {
            worker.shared.exchange.row_base[worker.warp][worker.lane / 4 + half * 8] = mine.base[half];
            worker.shared.exchange.row_sum[worker.warp][worker.lane / 4 + half * 8] = sum;
        }
    }
    consumer_sync(worker);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int packed = first_row<kRowWarps>(worker) + worker.lane / 4 + half * 8;
        const float base = row_total<kRowWarps>(worker.shared, packed).base;
        factor[half] = mine.base[half] == -INFINITY ? 0 : exp2f(mine.base[half] - base);
    }
}

template <int kRowWarps, typename Shared>
__device__ __forceinline__ float4 sum_exchange(const Shared& shared, int packed, int column) {
    constexpr int kKeyWarps = WarpShare<kRowWarps>::kKeyWarps;
    float4 sum{0, 0, 0, 0};
#pragma unroll
    for (int key_warp = 0; key_warp < kKeyWarps; ++key_warp) {
        const int warp = packed / 16 * kKeyWarps + key_warp;
        const float4 part = *reinterpret_cast<const float4*>(&shared.exchange.output[warp][packed % 16][column]);
        sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
    }
    return sum;
}

// A row's part of a unit, to the workspace. `half`: which of the lane's two rows; `row`: of the part.
template <typename Kind>
__device__ __forceinline__ void put_row_part(const Worker<Kind>& worker, const WarpRows<Kind::kHeadDim>& mine, int half,
                                             int row, float sum) {
    const Partial& part = worker.job().part;
    const int first = worker.lane % 4 * 2;
    float* output = part.output + int64_t{row} * Kind::kHeadDim + first;
#pragma unroll
    for (int column = 0; column < Kind::kHeadDim / 8; ++column) {
        *reinterpret_cast<float2*>(output + column * 8) = {mine.output[column][half * 2],
                                                           mine.output[column][half * 2 + 1]};
    }
    if (first == 0) {
        part.base[row] = mine.base[half];
        part.sum[row] = sum;
    }
}

// Of rows that a warp has all keys of. `half`: which of the lane's two.
template <typename Kind>
__device__ __forceinline__ void finish_row(const Worker<Kind>& worker, const WarpRows<Kind::kHeadDim>& mine, int half,
                                           int packed, float sum) {
    const RowTile& tile = worker.tile();
    const int first = worker.lane % 4 * 2;
    if (worker.job().finish.shares) {
        put_row_part(worker, mine, half, max(0, tile.first_row - tile.work.body_rows) * tile.group + packed, sum);
        return;
    }
    typename Kind::Model* output = output_row<Kind>(worker.params, tile, packed) + first;
    const float factor = sum > 0 ? value_scale<Kind>(worker.params, tile.kv_head) / sum : 0;
#pragma unroll
    for (int column = 0; column < Kind::kHeadDim / 8; ++column) {
        *reinterpret_cast<uint32_t*>(output + column * 8) = Numbers<typename Kind::Model>::pack(
            mine.output[column][half * 2] * factor, mine.output[column][half * 2 + 1] * factor);
    }
    if (first == 0) {
        put_lse(worker, tile, packed, mine.base[half] + log2f(sum));
    }
}

// Of rows whose keys went over several warps.
template <int kRowWarps, typename Kind>
__device__ __forceinline__ void finish_shared_rows(const Worker<Kind>& worker, const WarpRows<Kind::kHeadDim>& mine) {
    const RowTile& tile = worker.tile();
    const int packed_rows = tile.packed_rows(),
              first_packed = max(0, tile.first_row - tile.work.body_rows) * tile.group;
    float factor[2];
    share_sums<kRowWarps>(worker, mine, factor);
#pragma unroll
    for (int first = 0; first < Kind::kHeadDim; first += kExchange) {
#pragma unroll
        for (int index = 0; index < kExchange / 4; ++index) {
            const int column = index / 2, half = index % 2;
            const float (&output)[4] = mine.output[first / 8 + column];
            *reinterpret_cast<float2*>(&worker.shared.exchange.output[worker.warp][worker.lane / 4 + half * 8]
                                                                     [column * 8 + worker.lane % 4 * 2]) = {
                output[half * 2] * factor[half], output[half * 2 + 1] * factor[half]};
        }
        consumer_sync(worker);
        for (int index = worker.thread; index < packed_rows * (kExchange / 4); index += Kind::kConsumers) {
            const int packed = index / (kExchange / 4), column = index % (kExchange / 4) * 4;
            Sum sum = row_total<kRowWarps>(worker.shared, packed);
            sum.output = sum_exchange<kRowWarps>(worker.shared, packed, column);
            if (worker.job().finish.shares) {
                put_partial(worker.job().part, first_packed + packed, Kind::kHeadDim, first + column, sum);
            } else {
                put_output<Kind>(worker.params, tile, packed, first + column, sum);
                if (first + column == 0) {
                    put_lse(worker, tile, packed, sum.base + log2f(sum.sum));
                }
            }
        }
        consumer_sync(worker);
    }
}

// The row tile's result: to the workspace if other workers share the unit, else to the output.
template <int kRowWarps, typename Kind>
__device__ __forceinline__ void finish_rows(const Worker<Kind>& worker, const WarpRows<Kind::kHeadDim>& mine) {
    if constexpr (WarpShare<kRowWarps>::kKeyWarps > 1) {
        finish_shared_rows<kRowWarps>(worker, mine);
    } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int packed = first_row<kRowWarps>(worker) + worker.lane / 4 + half * 8;
            const float sum = sum_of_row(mine.sum[half]);
            if (packed < worker.tile().packed_rows()) {
                finish_row(worker, mine, half, packed, sum);
            }
        }
    }
}

}  // namespace sparsespec
