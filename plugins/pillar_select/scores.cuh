// Scores of one row as a thread takes them: eight at a time, packed in registers, compared as they are.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace sparsespec {

constexpr int kGroup = 8;

// A group's scores in ascending order of position, two fp16 or one fp32 to a register.
template <typename T>
struct Group {
    static constexpr int kPacks = kGroup * sizeof(T) / sizeof(uint32_t);
    static constexpr int kVectors = kPacks / 4;

    uint32_t packs[kPacks];

    __device__ __forceinline__ uint4 vector(int index) const {
        return {packs[4 * index], packs[4 * index + 1], packs[4 * index + 2], packs[4 * index + 3]};
    }

    __device__ __forceinline__ void set_vector(int index, uint4 vector) {
        packs[4 * index] = vector.x;
        packs[4 * index + 1] = vector.y;
        packs[4 * index + 2] = vector.z;
        packs[4 * index + 3] = vector.w;
    }
};

// Numbers in their order have levels: 0 for both zeros, the bits of a positive number, and those of its opposite
// negated. NaN is above infinity.
template <typename T>
constexpr int kOneLevel = sizeof(T) == 2 ? 0x3c00 : 0x3f800000;
template <typename T>
constexpr int kNanLevel = sizeof(T) == 2 ? 0x7c01 : 0x7f800001;

// The number of a level in all places of a register; NaN for kNanLevel and its negative.
template <typename T>
__device__ __forceinline__ uint32_t packed_level(int level) {
    const uint32_t magnitude = abs(level);
    if constexpr (sizeof(T) == 2) {
        return (magnitude | (level < 0 ? 0x8000u : 0u)) * 0x10001u;
    } else {
        return magnitude | (level < 0 ? 0x80000000u : 0u);
    }
}

__device__ __forceinline__ __half2 as_half2(uint32_t pack) {
    return *reinterpret_cast<const __half2*>(&pack);
}

__device__ __forceinline__ uint32_t as_bits(__half2 pack) {
    return *reinterpret_cast<const uint32_t*>(&pack);
}

// Whether a score is above a level's number. NaN is; where the number is NaN, all are.
__device__ __forceinline__ bool is_above(uint32_t score, uint32_t number) {
    return !(__uint_as_float(score) <= __uint_as_float(number));
}

// How many scores of the groups are above the number. Pairs are counted in fp16, from 1024 on: there its last bits are
// an integer.
template <int kGroups>
__device__ __forceinline__ uint32_t count_above(const Group<__half> (&groups)[kGroups], uint32_t number) {
    constexpr uint32_t kZero = 0x64006400u;
    __half2 counts[2] = {as_half2(kZero), as_half2(kZero)};
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
        for (int pack = 0; pack < Group<__half>::kPacks; ++pack) {
            const __half2 above = __hgtu2(as_half2(groups[group].packs[pack]), as_half2(number));
            counts[pack % 2] = __hadd2(counts[pack % 2], above);
        }
    }
    const uint32_t both = as_bits(counts[0]) + as_bits(counts[1]) - 2 * kZero;
    return (both & 0xffffu) + (both >> 16);
}

template <int kGroups>
__device__ __forceinline__ uint32_t count_above(const Group<float> (&groups)[kGroups], uint32_t number) {
    uint32_t count = 0;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
        for (int pack = 0; pack < Group<float>::kPacks; ++pack) {
            count += is_above(groups[group].packs[pack], number) ? 1 : 0;
        }
    }
    return count;
}

// Bit i: whether the group's i-th score is above the number.
__device__ __forceinline__ uint8_t bits_above(const Group<__half>& group, uint32_t number) {
    uint32_t bits = 0;
#pragma unroll
    for (int pack = 0; pack < Group<__half>::kPacks; ++pack) {
        const uint32_t above = __hgtu2_mask(as_half2(group.packs[pack]), as_half2(number));
        bits |= above & (0x00020001u << (2 * pack));
    }
    return static_cast<uint8_t>(bits | bits >> 16);
}

__device__ __forceinline__ uint8_t bits_above(const Group<float>& group, uint32_t number) {
    uint32_t bits = 0;
#pragma unroll
    for (int pack = 0; pack < Group<float>::kPacks; ++pack) {
        bits |= is_above(group.packs[pack], number) ? 1u << pack : 0u;
    }
    return static_cast<uint8_t>(bits);
}

// The lowest `count` bits; none below 1, all from 32 on.
__device__ __forceinline__ uint32_t low_bits(int count) {
    return count >= 32 ? 0xffffffffu : count > 0 ? (1u << count) - 1 : 0u;
}

// The lowest `count` of the bits that are set.
__device__ __forceinline__ uint32_t first_of(uint32_t bits, int count) {
    if (count <= 0) {
        return 0;
    }
#pragma unroll 1
    for (int surplus = __popc(bits) - count; surplus > 0; --surplus) {
        bits &= ~(0x80000000u >> __clz(static_cast<int>(bits)));
    }
    return bits;
}

// A row's scores in global memory.
template <typename T>
struct ScoreRow {
    const T* scores;
    int num_scores;
    bool by_vectors;  // every group begins at a multiple of 16 bytes, and the last one is whole in memory

    __device__ __forceinline__ int num_groups() const { return (num_scores + kGroup - 1) / kGroup; }

    // What they load from num_scores on is anything.
    __device__ __forceinline__ Group<T> load_vectors(int index) const {
        const auto* from = reinterpret_cast<const uint4*>(scores + int64_t{index} * kGroup);
        Group<T> group;
#pragma unroll
        for (int vector = 0; vector < Group<T>::kVectors; ++vector) {
            group.set_vector(vector, __ldg(from + vector));
        }
        return group;
    }

    __device__ __forceinline__ Group<T> load_singly(int index) const {
        using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
        const auto* from = reinterpret_cast<const Bits*>(scores);
        Group<T> group{};
#pragma unroll
        for (int place = 0; place < kGroup; ++place) {
            const int at = min(index * kGroup + place, num_scores - 1);
            const int bit = place * 8 * static_cast<int>(sizeof(T));
            group.packs[bit / 32] |= uint32_t{__ldg(from + at)} << (bit % 32);
        }
        return group;
    }

    // Makes scores from num_scores on minus infinity, which is above no number.
    __device__ __forceinline__ void hide_absent(Group<T>& group, int index) const {
        constexpr int kBits = 8 * sizeof(T);
        const int present = num_scores - index * kGroup;
        if (__builtin_expect(present < kGroup, 0)) {
#pragma unroll
            for (int pack = 0; pack < Group<T>::kPacks; ++pack) {
                const uint32_t kept = low_bits(present * kBits - pack * 32);
                group.packs[pack] = (group.packs[pack] & kept) | (packed_level<T>(1 - kNanLevel<T>) & ~kept);
            }
        }
    }

    __device__ __forceinline__ Group<T> load_whole(int index) const {
        Group<T> group = by_vectors ? load_vectors(index) : load_singly(index);
        hide_absent(group, index);
        return group;
    }
};

}  // namespace sparsespec
