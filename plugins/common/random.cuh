// Random numbers as a function of (seed, position, purpose); runtime/device/rng.py says the same.
#pragma once

#include <cstdint>

namespace sparsespec {

// What a random number at a position decides. Drafts use kDraft plus their draft index; kRace comes before all others.
enum class Purpose : uint64_t { kRace = ~uint64_t{0}, kAccept = 0, kTarget = 1, kDraft = 2 };

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;

// The splitmix64 finaliser (Steele, Lea and Flood, OOPSLA 2014).
__device__ inline uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

__device__ inline uint64_t random_bits(int64_t seed, int64_t position, uint64_t purpose) {
    uint64_t state = mix(static_cast<uint64_t>(seed) + kGolden);
    state = mix(state ^ (static_cast<uint64_t>(position) * kGolden));
    return mix(state ^ (purpose * kGolden + 1));
}

// In [0, 1), of 53 bits.
__device__ inline double uniform(int64_t seed, int64_t position, uint64_t purpose) {
    return static_cast<double>(random_bits(seed, position, purpose) >> 11) * 0x1.0p-53;
}

// The index-th number of the splitmix64 generator that is seeded with random_bits.
__device__ inline uint64_t stream_number(uint64_t stream, uint64_t index) {
    return mix(stream + (index + 1) * kGolden);
}

}  // namespace sparsespec
