// Random numbers as a function of (seed, position, purpose); runtime/device/rng.py says the same.
#pragma once

#include <cstdint>

namespace sparsespec {

// What a random number at a position decides. Drafts use kDraft plus their draft index.
enum class Purpose : uint64_t { kAccept = 0, kTarget = 1, kDraft = 2 };

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;

// The splitmix64 finaliser (Steele, Lea and Flood, OOPSLA 2014).
__device__ inline uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

// In [0, 1), of 53 bits.
__device__ inline double uniform(int64_t seed, int64_t position, uint64_t purpose) {
    uint64_t state = mix(static_cast<uint64_t>(seed) + kGolden);
    state = mix(state ^ (static_cast<uint64_t>(position) * kGolden));
    state = mix(state ^ (purpose * kGolden + 1));
    return static_cast<double>(state >> 11) * 0x1.0p-53;
}

}  // namespace sparsespec
