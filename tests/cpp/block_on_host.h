// A thread block on the CPU, for kernels compiled as C++: its threads take turns, each until it waits for others. No
// kernel is included before this header.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#undef __shared__
#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)

using std::max;
using std::min;

inline uint3 threadIdx, blockIdx;

namespace on_host {

constexpr int kStackBytes = 1 << 16;

// Where threads wait for each other, and what they bring; what they brought last lasts until all have met again.
struct Meeting {
    int expected;
    int arrived = 0;
    int64_t times = 0;
    std::vector<uint64_t> brought[2] = {std::vector<uint64_t>(expected), std::vector<uint64_t>(expected)};
    int64_t sums[2] = {0, 0};
};

struct Block {
    explicit Block(int threads) : all{threads}, warps(threads / 32, Meeting{32}), contexts(threads), done(threads) {}

    Meeting all;
    std::vector<Meeting> warps;
    std::vector<ucontext_t> contexts;
    std::vector<bool> done;
    ucontext_t scheduler{};
    int current = 0;
    std::function<void()> kernel;
};

inline Block* block = nullptr;

// Which of the pairs of a meeting holds what this time's threads brought.
inline int wait(Meeting& meeting) {
    const int64_t time = meeting.times;
    if (++meeting.arrived == meeting.expected) {
        meeting.arrived = 0;
        ++meeting.times;
        meeting.sums[meeting.times % 2] = 0;
    }
    while (meeting.times == time) {
        const int self = block->current;
        swapcontext(&block->contexts[self], &block->scheduler);
    }
    return static_cast<int>(time % 2);
}

inline int64_t sum_of_all(Meeting& meeting, int64_t value) {
    meeting.sums[meeting.times % 2] += value;
    return meeting.sums[wait(meeting)];
}

inline Meeting& warp() {
    return block->warps[threadIdx.x / 32];
}

// What lane `from` of the warp has brought.
template <typename T>
T shuffle(T value, unsigned from) {
    Meeting& meeting = warp();
    std::memcpy(&meeting.brought[meeting.times % 2][threadIdx.x % 32], &value, sizeof(T));
    const int which = wait(meeting);
    std::memcpy(&value, &meeting.brought[which][from], sizeof(T));
    return value;
}

inline void run_thread() {
    block->kernel();
    block->done[block->current] = true;
}

// Runs one block of a kernel.
inline void run_block(int threads, int index, const std::function<void()>& kernel) {
    Block running(threads);
    block = &running;
    running.kernel = kernel;
    blockIdx = {static_cast<unsigned>(index), 0, 0};
    const std::unique_ptr<char[]> stacks(new char[static_cast<size_t>(threads) * kStackBytes]);
    for (int thread = 0; thread < threads; ++thread) {
        ucontext_t& context = running.contexts[thread];
        getcontext(&context);
        context.uc_stack.ss_sp = stacks.get() + static_cast<size_t>(thread) * kStackBytes;
        context.uc_stack.ss_size = kStackBytes;
        context.uc_link = &running.scheduler;
        makecontext(&context, run_thread, 0);
    }
    while (std::find(running.done.begin(), running.done.end(), false) != running.done.end()) {
        for (int thread = 0; thread < threads; ++thread) {
            if (!running.done[thread]) {
                running.current = thread;
                threadIdx = {static_cast<unsigned>(thread), 0, 0};
                swapcontext(&running.scheduler, &running.contexts[thread]);
            }
        }
    }
}

}  // namespace on_host

inline void __syncthreads() {
    on_host::wait(on_host::block->all);
}
inline int __syncthreads_count(int value) {
    return static_cast<int>(on_host::sum_of_all(on_host::block->all, value != 0 ? 1 : 0));
}
inline int __syncthreads_or(int value) {
    return __syncthreads_count(value) > 0 ? 1 : 0;
}
template <typename T>
T __shfl_sync(unsigned /*mask*/, T value, int lane) {
    return on_host::shuffle(value, static_cast<unsigned>(lane) % 32);
}
template <typename T>
T __shfl_up_sync(unsigned /*mask*/, T value, int step) {
    const unsigned lane = threadIdx.x % 32, up = static_cast<unsigned>(step);
    return on_host::shuffle(value, lane < up ? lane : lane - up);
}
template <typename T>
T __shfl_xor_sync(unsigned /*mask*/, T value, int step) {
    return on_host::shuffle(value, (threadIdx.x % 32) ^ static_cast<unsigned>(step));
}
inline unsigned __reduce_add_sync(unsigned /*mask*/, unsigned value) {
    return static_cast<unsigned>(on_host::sum_of_all(on_host::warp(), value));
}
inline unsigned __ballot_sync(unsigned /*mask*/, bool holds) {
    const int64_t bit = holds ? int64_t{1} << (threadIdx.x % 32) : 0;
    return static_cast<unsigned>(on_host::sum_of_all(on_host::warp(), bit));
}
inline int __ffs(int value) {
    return __builtin_ffs(value);
}
inline void atomicMin(int32_t* to, int32_t value) {
    *to = min(*to, value);
}
inline void atomicMax(int32_t* to, int32_t value) {
    *to = max(*to, value);
}
inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(x));
    return bits;
}
inline float __log2f(float x) {
    return std::log2(x);
}
inline float __uint_as_float(uint32_t x) {
    float number;
    std::memcpy(&number, &x, sizeof(x));
    return number;
}
