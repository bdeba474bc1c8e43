// What min_p, top_k and top_p leave of a row of logits: a prefix of its tokens by logit, of equal ones by token.
//
// The few tokens that the cut can lie among are listed in shared memory, and the cut is found there by bisection over
// the numbers of the logits' type, with counts and masses at each. Where they do not fit (a flat row, a top_k beyond
// the number of threads), the bisection goes over the whole row. Sums are taken in an order that depends on the row
// alone.
#pragma once

#include <cstdint>

#include "common/block_scan.cuh"
#include "common/draw.cuh"
#include "common/logits.cuh"

namespace sparsespec {

constexpr int kSampleThreads = 512;
constexpr int kMostListed = 4096;

struct CutRules {
    float min_p;    // 0 for all
    int32_t top_k;  // 0 for all; less than there are tokens
    float top_p;    // 1 for all

    __device__ bool any() const { return min_p > 0 || top_k > 0 || top_p < 1; }
};

struct CutShared {
    alignas(16) float logits[kMostListed];
    int32_t tokens[kMostListed];
    WarpSums<kSampleThreads> counts;
    double masses[kSampleThreads / 32];
    int32_t found;
};

// Floats as integers in the same order, without the last bits that are 0 in all numbers of a row's type.
struct Ranks {
    int zero_bits;

    __device__ uint32_t of(float x) const {
        const uint32_t bits = __float_as_uint(x);
        return ((bits >> 31) != 0 ? ~bits : bits | 0x80000000u) >> zero_bits;
    }
    __device__ float value(uint32_t rank) const {
        const uint32_t ordered = rank << zero_bits, zeros = (1u << zero_bits) - 1;
        return __uint_as_float((ordered >> 31) != 0 ? ordered & 0x7FFFFFFFu : ~(ordered | zeros));
    }
    // The rank of the largest number that is at most x.
    __device__ uint32_t below(float x) const { return of(x) - (value(of(x)) > x ? 1 : 0); }
};

// A row, or the part of it that is listed.
template <typename T>
struct Logits {
    const T* numbers;
    int count;
    Ranks ranks;
};

// The largest number from `low` to `high` that `reached` holds for, which it does for `low`, and where it does not, for
// none above. For all threads.
template <typename Reached>
__device__ inline float largest_reached(const Ranks& ranks, float low, float high, const Reached& reached) {
    uint32_t least = ranks.below(low), most = ranks.below(high);
    while (least < most) {
        const uint32_t middle = most - (most - least) / 2;
        if (reached(ranks.value(middle))) {
            least = middle;
        } else {
            most = middle - 1;
        }
    }
    return ranks.value(least);
}

struct Measure {
    uint32_t count;
    double mass;  // sum of weights
};

// Of the tokens that a softmax's cut keeps, for all threads. Grows with what is kept, rounding included. Ends with a
// barrier.
template <typename T>
__device__ inline Measure measure(const Logits<T>& row, const Softmax& softmax, CutShared& shared) {
    uint32_t count = 0;
    float mass = 0;
    for (int first = threadIdx.x * kLogitsPerThread; first < row.count; first += kLogitTile<kSampleThreads>) {
        float values[kLogitsPerThread];
        load_numbers(row.numbers, first, row.count, -INFINITY, values);
#pragma unroll
        for (int index = 0; index < kLogitsPerThread; ++index) {
            if (first + index < row.count && softmax.cut.keeps(values[index], first + index)) {
                ++count;
                mass += softmax.weight(values[index], first + index);
            }
        }
    }
    const uint32_t counted = block_sum<kSampleThreads>(count, shared.counts);
    double total;
    block_prefix<kSampleThreads>(mass, shared.masses, total);
    __syncthreads();
    return {counted, total};
}

// Place of the number-th number of a row that is `value`, from 1 on, for all threads; INT32_MAX where there are fewer.
template <typename T>
__device__ inline int32_t find_equal(const Logits<T>& row, float value, uint32_t number, CutShared& shared) {
    uint32_t before = 0;
    for (int start = 0; start < row.count; start += kLogitTile<kSampleThreads>) {
        const int first = start + static_cast<int>(threadIdx.x) * kLogitsPerThread;
        float values[kLogitsPerThread];
        load_numbers(row.numbers, first, row.count, NAN, values);
        uint32_t own = 0;
#pragma unroll
        for (int index = 0; index < kLogitsPerThread; ++index) {
            own += values[index] == value ? 1 : 0;
        }
        const BlockSums equal = block_scan<kSampleThreads>(own, shared.counts);
        uint32_t at = before + equal.before;
#pragma unroll
        for (int index = 0; index < kLogitsPerThread; ++index) {
            if (values[index] == value && ++at == number) {
                shared.found = first + index;
            }
        }
        before += equal.total;
        __syncthreads();
        if (before >= number) {
            return shared.found;
        }
    }
    return INT32_MAX;
}

// The first `number` tokens of a row, which has more from `lowest` on.
template <typename T>
__device__ inline Cut cut_at_count(const Logits<T>& row, const Softmax& softmax, float lowest, uint32_t number,
                                   CutShared& shared) {
    const float last = largest_reached(row.ranks, lowest, softmax.largest, [&](float at) {
        return measure(row, softmax.with({at}), shared).count >= number;
    });
    const uint32_t above = measure(row, softmax.with({last, -1}), shared).count;
    return {last, find_equal(row, last, number - above, shared)};
}

// The first tokens of a row that weigh `mass` together, of those that `kept` keeps and that weigh as much.
template <typename T>
__device__ inline Cut cut_at_mass(const Logits<T>& row, const Softmax& softmax, const Cut& kept, double mass,
                                  CutShared& shared) {
    const float last = largest_reached(row.ranks, kept.logit, softmax.largest, [&](float at) {
        return measure(row, softmax.with(at > kept.logit ? Cut{at} : kept), shared).mass >= mass;
    });
    if (last < kept.logit) {  // rounding
        return kept;
    }
    const double above = measure(row, softmax.with({last, -1}), shared).mass;
    const double number = ceil((mass - above) / softmax.with({last}).weight(last, 0));
    const auto least = static_cast<uint32_t>(fmin(fmax(number, 1.0), static_cast<double>(row.count)));
    const int32_t token = find_equal(row, last, least, shared);
    return {last, last > kept.logit ? token : min(token, kept.token)};
}

// By top_k, then top_p, of the tokens from `lowest` on. everything: what all tokens weigh that min_p leaves, where
// there is no top_k. Tokens are places in the row.
template <typename T>
__device__ inline Cut cut_within(const Logits<T>& row, const Softmax& softmax, const CutRules& rules, float lowest,
                                 double everything, CutShared& shared) {
    Cut cut{lowest};
    double mass = everything;
    if (rules.top_k > 0) {
        const auto top_k = static_cast<uint32_t>(rules.top_k);
        if (measure(row, softmax.with(cut), shared).count > top_k) {
            cut = cut_at_count(row, softmax, lowest, top_k, shared);
        }
        mass = measure(row, softmax.with(cut), shared).mass;
    }
    return rules.top_p < 1 ? cut_at_mass(row, softmax, cut, rules.top_p * mass, shared) : cut;
}

// The lowest logit that min_p leaves.
__device__ inline float lowest_of_min_p(const Ranks& ranks, const Softmax& softmax, float min_p) {
    if (min_p == 0) {
        return -INFINITY;
    }
    const float too_low =
        largest_reached(ranks, -INFINITY, softmax.largest, [&](float at) { return softmax.weight(at, 0) < min_p; });
    return ranks.value(ranks.of(too_low) + 1);
}

// A number that at least top_k logits reach: so many threads' best ones do. own_best: this thread's.
__device__ inline float lowest_of_top_k(const Ranks& ranks, float own_best, float largest, int top_k) {
    if (top_k > kSampleThreads) {
        return -INFINITY;
    }
    return largest_reached(ranks, -INFINITY, largest,
                           [&](float at) { return __syncthreads_count(own_best >= at ? 1 : 0) >= top_k; });
}

// Below it all `count` tokens together weigh less than what top_p leaves out; half of that, since sums are rounded.
__device__ inline float lowest_of_top_p(const Softmax& softmax, double everything, float top_p, int count) {
    const double least_weight = 0.5 * (1.0 - static_cast<double>(top_p)) * everything / count;
    return softmax.largest + log2f(static_cast<float>(least_weight)) / softmax.scale;
}

// Lists the numbers of a row from `lowest` on, in their order, and returns how many these are: where they are more than
// fit, all or some of them. Ends with a barrier.
template <typename T>
__device__ inline int list_numbers(const Logits<T>& row, float lowest, CutShared& shared) {
    int listed = 0;
    for (int start = 0; start < row.count && listed <= kMostListed; start += kLogitTile<kSampleThreads>) {
        const int first = start + static_cast<int>(threadIdx.x) * kLogitsPerThread;
        float values[kLogitsPerThread];
        load_numbers(row.numbers, first, row.count, NAN, values);
        uint32_t own = 0;
#pragma unroll
        for (int index = 0; index < kLogitsPerThread; ++index) {
            own += values[index] >= lowest ? 1 : 0;
        }
        if (__syncthreads_or(static_cast<int>(own)) == 0) {
            continue;
        }
        const BlockSums sums = block_scan<kSampleThreads>(own, shared.counts);
        int at = listed + static_cast<int>(sums.before);
#pragma unroll
        for (int index = 0; index < kLogitsPerThread; ++index) {
            if (values[index] >= lowest && at < kMostListed) {
                shared.logits[at] = values[index];
                shared.tokens[at] = first + index;
                ++at;
            }
        }
        listed += static_cast<int>(sums.total);
    }
    __syncthreads();
    return listed;
}

// For all threads, of which each gives its own best logit. softmax: without a cut.
template <typename T>
__device__ inline Cut find_cut(const Logits<T>& row, const Softmax& softmax, const CutRules& rules, float own_best,
                               CutShared& shared) {
    const float of_min_p = lowest_of_min_p(row.ranks, softmax, rules.min_p);
    if (rules.top_k == 0 && rules.top_p == 1) {
        return {of_min_p};
    }
    double everything = 0;
    float lowest = of_min_p;
    if (rules.top_k > 0) {
        lowest = fmaxf(lowest, lowest_of_top_k(row.ranks, own_best, softmax.largest, rules.top_k));
    } else {
        everything = measure(row, softmax.with({of_min_p}), shared).mass;
        lowest = fmaxf(lowest, lowest_of_top_p(softmax, everything, rules.top_p, row.count));
    }
    const int listed = list_numbers(row, lowest, shared);
    if (listed > kMostListed) {
        return cut_within(row, softmax, rules, lowest, everything, shared);
    }
    const Logits<float> few{shared.logits, listed, row.ranks};
    const Cut cut = cut_within(few, softmax, rules, lowest, everything, shared);
    return {cut.logit, cut.token < listed ? shared.tokens[cut.token] : INT32_MAX};
}

}  // namespace sparsespec
