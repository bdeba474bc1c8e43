// The rows of a shared unit, put together. Instructions would bound it, not the few bytes it reads: so what a lane can
// know for others it finds out once, and tells them.
#pragma once

#include "pillar_attention/unite_task.cuh"

namespace sparsespec {

// What another lane of the row knows about an item.
template <typename T>
__device__ __forceinline__ T of_item(T known, int item) {
    return __shfl_sync(0xffffffffu, known, item, kUniteItems);
}

// The lane's item: a part of a row. `exists`: row and part do.
struct UniteItem {
    int row;
    bool exists;
    uint32_t output;  // in the workspace, in floats: of the row
    uint32_t base;
};

template <typename Kind>
__device__ __forceinline__ UniteItem find_item(const PillarAttentionParams& params, const UniteTask<Kind>& task,
                                               const UniteLane<Kind::kHeadDim>& lane, int first_row, int first_part) {
    const SharedUnit& unit = task.unit;
    const int row = first_row + lane.group * task.teams.rows_of_group() + task.teams.row(lane.item);
    const int place = first_part + task.teams.part(lane.item), worker = unit.start.first_worker + place;
    const bool exists = row < unit.rows.packed_rows() && place < unit.num_parts();
    const uint32_t part = (worker * 2 + (place == 0)) *
                          static_cast<uint32_t>(partial_floats(Kind::kWay, unit.rows.group, Kind::kHeadDim));
    return {row, exists && has_tiles(planned_workers(params.plan, Kind::kWay), worker), part + row * Kind::kHeadDim,
            part + partial_rows(Kind::kWay, unit.rows.group) * Kind::kHeadDim + row};
}

// The base and the sum of a row's part; a sum of 0 where there is no such part.
struct PartSum {
    float base;
    float sum;
};

// Of all of a row's items that the warp has, in all lanes that know of one of them.
__device__ __forceinline__ PartSum total_of_row(const PartSum& mine, int part_bits) {
    float base = mine.base, sum = mine.sum;
#pragma unroll 1
    for (int bit = 0; bit < part_bits; ++bit) {
        base = fmaxf(base, __shfl_xor_sync(0xffffffffu, base, 1 << bit));
    }
    sum *= exp2_fast(mine.base - finite_base(base));
#pragma unroll 1
    for (int bit = 0; bit < part_bits; ++bit) {
        sum += __shfl_xor_sync(0xffffffffu, sum, 1 << bit);
    }
    return {base, sum};
}

// Where a row's output goes, in numbers; kNoRow where there is no such row.
constexpr uint32_t kNoRow = 0xffffffffu;

template <typename Kind>
__device__ __forceinline__ uint32_t output_place(const PillarAttentionParams& params, const RowTile& rows, int row) {
    const int head = rows.qkv_row(row) * params.num_heads + rows.query_head(row);
    return row < rows.packed_rows() ? static_cast<uint32_t>(head) * Kind::kHeadDim : kNoRow;
}

// The lane's columns of all items; zeros of those that do not exist.
struct ItemNumbers {
    float4 of[kUniteItems];
};

template <typename Kind>
__device__ __forceinline__ ItemNumbers load_numbers(const float* workspace, const UniteLane<Kind::kHeadDim>& lane,
                                                    const UniteItem& item) {
    const uint32_t exists = __ballot_sync(0xffffffffu, item.exists) >> lane.group * lane.kRowLanes;
    ItemNumbers numbers;
#pragma unroll
    for (int index = 0; index < kUniteItems; ++index) {
        const uint32_t from = of_item(item.output, index) + lane.column;
        numbers.of[index] = {0, 0, 0, 0};
        if ((exists >> index & 1) != 0 && lane.has_columns) {
            numbers.of[index] = __ldcg(reinterpret_cast<const float4*>(workspace + from));
        }
    }
    return numbers;
}

template <typename Kind>
__device__ __forceinline__ PartSum load_part_sum(const float* workspace, const UniteItem& item, int group) {
    if (!item.exists) {
        return {-INFINITY, 0};
    }
    return {__ldcg(workspace + item.base), __ldcg(workspace + item.base + partial_rows(Kind::kWay, group))};
}

__device__ __forceinline__ float4 add_scaled(const float4& sum, float scale, const float4& added) {
    if (scale > 0) {  // what a part without keys holds may be anything
        return {sum.x + scale * added.x, sum.y + scale * added.y, sum.z + scale * added.z, sum.w + scale * added.w};
    }
    return sum;
}

// Rows all of whose parts are the warp's items: written as they are added up. `share`: of the lane's item in the
// output.
template <typename Kind>
__device__ __forceinline__ void put_rows(const PillarAttentionParams& params, const UniteTask<Kind>& task,
                                         const UniteLane<Kind::kHeadDim>& lane, int row, const ItemNumbers& numbers,
                                         float share) {
    using Model = typename Kind::Model;
    const uint32_t place = output_place<Kind>(params, task.unit.rows, row);
    float4 output{0, 0, 0, 0};
#pragma unroll
    for (int index = 0; index < kUniteItems; ++index) {
        output = add_scaled(output, of_item(share, index), numbers.of[index]);
        if (task.teams.part(index + 1) != 0) {
            continue;
        }
        const uint32_t to = of_item(place, index);
        if (to != kNoRow && lane.has_columns) {
            put_numbers(static_cast<Model*>(params.output) + to + lane.column, output);
        }
        output = {0, 0, 0, 0};
    }
}

// The warp's items. Where they are all parts of their rows, the rows are written; else `sum` is what comes of them.
template <typename Kind>
__device__ __forceinline__ void add_items(const PillarAttentionParams& params, const UniteTask<Kind>& task,
                                          const UniteLane<Kind::kHeadDim>& lane, const UniteItem& item, bool has_all,
                                          Sum& sum) {
    const RowTile& rows = task.unit.rows;
    const float* workspace = static_cast<const float*>(params.workspace);
    const ItemNumbers numbers = load_numbers<Kind>(workspace, lane, item);
    const PartSum mine = load_part_sum<Kind>(workspace, item, rows.group);
    const PartSum total = total_of_row(mine, task.teams.part_bits);
    const float share = mine.sum > 0 ? exp2_fast(mine.base - total.base) : 0;
    if (has_all) {
        const float scale = total.sum > 0 ? value_scale<Kind>(params, rows.kv_head) / total.sum : 0;
        put_rows(params, task, lane, item.row, numbers, share * scale);
        if (task.teams.part(lane.item) == 0 && item.row < rows.packed_rows()) {
            put_draft_lse(params, rows, task.unit.draft_index, item.row, total.base + log2f(total.sum));
        }
        return;
    }
    float4 output{0, 0, 0, 0};
#pragma unroll
    for (int index = 0; index < kUniteItems; ++index) {
        output = add_scaled(output, of_item(share, index), numbers.of[index]);
    }
    sum.add(total.base, total.sum, output);
}

// Adds up what the warps that share a row have come to, in their order. The block is together.
template <int kWarps>
__device__ __forceinline__ void add_warps(int warp, int per_row, Sum& sum) {
    __shared__ alignas(Sum) unsigned char memory[kWarps * 32 * sizeof(Sum)];  // a Sum there would ask to be initialised
    Sum(*sums)[32] = reinterpret_cast<Sum(*)[32]>(memory);
    const int lane = threadIdx.x % 32;
    __syncthreads();
    sums[warp][lane] = sum;
    __syncthreads();
    for (int other = 1; other < per_row && warp % per_row == 0; ++other) {
        const Sum& added = sums[warp + other][lane];
        sum.add(added.base, added.sum, added.output);
    }
}

// A row that a warp, or several, have come to the end of.
template <typename Kind>
__device__ __forceinline__ void put_row(const PillarAttentionParams& params, const UniteTask<Kind>& task,
                                        const UniteLane<Kind::kHeadDim>& lane, int row, const Sum& sum) {
    if (row >= task.unit.rows.packed_rows()) {
        return;
    }
    if (lane.has_columns) {
        put_output<Kind>(params, task.unit.rows, row, lane.column, sum);
    }
    if (lane.column == 0) {
        put_draft_lse(params, task.unit.rows, task.unit.draft_index, row, sum.base + log2f(sum.sum));
    }
}

// A warp's rows and parts of a task, at first. Found before the parts are there.
template <typename Kind>
__device__ __forceinline__ UniteItem first_item(const PillarAttentionParams& params, const UniteTask<Kind>& task,
                                                const UniteLane<Kind::kHeadDim>& lane) {
    const int warp = static_cast<int>(threadIdx.x) / 32, per_row = task.teams.per_row;
    return find_item(params, task, lane, task.first_row + warp / per_row * task.teams.rows_of_warp(),
                     warp % per_row * kUniteItems);
}

template <typename Kind>
__device__ __forceinline__ void unite_rows(const PillarAttentionParams& params, const UniteTask<Kind>& task,
                                           UniteItem item) {
    const UniteLane<Kind::kHeadDim> lane;
    const int warp = static_cast<int>(threadIdx.x) / 32, per_row = task.teams.per_row;
    const int num_parts = task.unit.num_parts(), packed_rows = task.unit.rows.packed_rows();
    const bool has_all = num_parts <= kUniteItems;
#pragma unroll 1
    for (int first = task.first_row; first < packed_rows; first += task.stride) {
        const int row = first + warp / per_row * task.teams.rows_of_warp();
        Sum sum;
#pragma unroll 1
        for (int part = warp % per_row * kUniteItems; part < num_parts; part += per_row * kUniteItems) {
            if (first != task.first_row || part >= per_row * kUniteItems) {
                item = find_item(params, task, lane, row, part);
            }
            add_items(params, task, lane, item, has_all, sum);
        }
        if (per_row > 1) {
            add_warps<unite_warps(Kind::kWay)>(warp, per_row, sum);
        }
        if (!has_all && warp % per_row == 0) {
            put_row(params, task, lane, row + lane.group, sum);
        }
    }
}

}  // namespace sparsespec
