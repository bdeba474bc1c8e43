// Which way of copying gathers random rows into shared memory fastest on Hopper, and how long another warp's loads take
// meanwhile. Two blocks on each multiprocessor, three tiles of 32 KB in each.
//
//     nvcc -std=c++17 -arch=sm_90a benchmarks/copy_engines.cu -o copy_engines
//     ./copy_engines --json copy_engines.json
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "copy_engines.cuh"

constexpr uint64_t kPoolBytes = uint64_t{16} << 30, kPlainBytes = uint64_t{4} << 30;
constexpr int kLaunches = 11, kPlainLoads = 4, kPlainThreads = 512;

struct Bench {
    std::string device;
    int blocks;
    char* pool;
    uint32_t *ids, *table, *sums;
    Latency* latencies;
    cudaEvent_t start, end;
};

struct Case {
    const char* name;
    void (*kernel)(CUtensorMap, Args);
    Engine engine;
    int row_bytes;
    int box_lines, box_rows;  // of 128 bytes; where copies are not of boxes, those of a row

    int unit_rows() const { return engine == Engine::kTensorPages ? kPageRows : 1; }
    uint64_t tiles() const { return uint64_t{kIds} * kPasses * row_bytes / kTileBytes; }
};

struct Cycles {
    double mean;
    unsigned long long most;
};

struct Row {
    const char* name;
    int row_bytes;
    std::optional<double> gigabytes_per_s;
    Cycles shared_load, l2_load;
};

__global__ void fill(uint32_t* words, uint64_t count) {
    for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < count;
         i += uint64_t{gridDim.x} * blockDim.x) {
        words[i] = static_cast<uint32_t>(i * 2654435761u >> 7);
    }
}

// The sums that the consumers of `gather` have to find.
__global__ void sum_rows(Args args, int row_words) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(args.pool);
    uint32_t sum = 0;
    for (int at = threadIdx.x; at < kIds * kPasses * row_words; at += blockDim.x) {
        const int row = at / row_words;
        const uint64_t id = args.ids[blockIdx.x * kIds + row % kIds] + row / kIds * args.pass_rows;
        sum += words[id * row_words + at % row_words];
    }
    atomicAdd(args.sums + blockIdx.x, sum);
}

// `rounds` of kPlainLoads loads of 16 bytes that a thread has in flight.
__global__ void read_plainly(const uint4* words, int rounds, uint32_t* sums) {
    const uint64_t step = uint64_t{gridDim.x} * blockDim.x;
    uint32_t sum = 0;
    words += blockIdx.x * uint64_t{blockDim.x} + threadIdx.x;
    for (int round = 0; round < rounds; ++round, words += kPlainLoads * step) {
        uint4 taken[kPlainLoads];
#pragma unroll
        for (int load = 0; load < kPlainLoads; ++load) {
            taken[load] = __ldcs(words + load * step);
        }
#pragma unroll
        for (int load = 0; load < kPlainLoads; ++load) {
            sum += taken[load].x + taken[load].y + taken[load].z + taken[load].w;
        }
    }
    atomicAdd(sums + blockIdx.x, sum);
}

[[noreturn]] void fail(const std::string& what, const char* why) {
    std::fprintf(stderr, "error: %s: %s\n", what.c_str(), why);
    std::exit(1);
}

void check(cudaError_t error, const std::string& what) {
    if (error != cudaSuccess) {
        fail(what, cudaGetErrorString(error));
    }
}

template <typename T>
T* allocate(uint64_t count, const char* what) {
    T* memory = nullptr;
    check(cudaMalloc(&memory, count * sizeof(T)), std::string("allocating ") + what);
    return memory;
}

template <typename T>
std::vector<T> fetched(const T* from, int count, const std::string& what) {
    std::vector<T> values(count);
    check(cudaMemcpy(values.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost), "reading " + what);
    return values;
}

template <typename Launch>
float milliseconds(const Bench& bench, const std::string& what, Launch launch) {
    check(cudaEventRecord(bench.start), "recording before " + what);
    launch();
    check(cudaGetLastError(), "launching " + what);
    check(cudaEventRecord(bench.end), "recording after " + what);
    check(cudaEventSynchronize(bench.end), "running " + what);
    float ms = 0;
    check(cudaEventElapsedTime(&ms, bench.start, bench.end), "timing " + what);
    return ms;
}

// The first one, which warms up, is left out.
template <typename Launch>
float median_milliseconds(const Bench& bench, const std::string& what, Launch launch) {
    milliseconds(bench, what, launch);
    std::vector<float> times(kLaunches);
    for (float& ms : times) {
        ms = milliseconds(bench, what, launch);
    }
    std::sort(times.begin(), times.end());
    return times[kLaunches / 2];
}

Bench open_bench() {
    cudaDeviceProp device{};
    check(cudaGetDeviceProperties(&device, 0), "looking for a GPU");
    if (device.major != 9) {
        fail(device.name, "expected a GPU of compute capability 9.0");
    }
    Bench bench{};
    bench.device = device.name;
    bench.blocks = 2 * device.multiProcessorCount;
    bench.pool = allocate<char>(kPoolBytes, "a pool of 16 GiB");
    bench.ids = allocate<uint32_t>(uint64_t{kIds} * bench.blocks, "ids");
    bench.table = allocate<uint32_t>(kTableLines * kLineWords, "a table");
    bench.sums = allocate<uint32_t>(2 * bench.blocks, "sums");
    bench.latencies = allocate<Latency>(bench.blocks, "latencies");
    check(cudaEventCreate(&bench.start), "creating an event");
    check(cudaEventCreate(&bench.end), "creating an event");
    std::vector<uint32_t> table(kTableLines * kLineWords);
    for (int line = 0; line < kTableLines; ++line) {
        table[line * kLineWords] = (line + 197) % kTableLines * kLineWords;
    }
    check(cudaMemcpy(bench.table, table.data(), table.size() * 4, cudaMemcpyHostToDevice), "writing the table");
    milliseconds(bench, "the filling of the pool",
                 [&] { fill<<<bench.blocks * 8, 256>>>(reinterpret_cast<uint32_t*>(bench.pool), kPoolBytes / 4); });
    return bench;
}

double plain_gigabytes_per_s(const Bench& bench) {
    const int blocks = 2 * bench.blocks;  // as many as run at once
    const uint64_t round_bytes = uint64_t{16} * kPlainLoads * kPlainThreads * blocks;
    const int rounds = static_cast<int>(kPlainBytes / round_bytes);
    const float ms = median_milliseconds(bench, "a plain read", [&] {
        read_plainly<<<blocks, kPlainThreads>>>(reinterpret_cast<const uint4*>(bench.pool), rounds, bench.sums);
    });
    return rounds * round_bytes / (ms * 1e6);
}

// Boxes of a pool [rows, lines of 128 bytes, 64 numbers of 16 bits].
CUtensorMap tensor_map(const Bench& bench, const Case& each) {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
          "looking for cuTensorMapEncodeTiled");
    if (result != cudaDriverEntryPointSuccess) {
        fail("looking for cuTensorMapEncodeTiled", "this driver has none");
    }
    const cuuint64_t bytes = each.row_bytes, sizes[] = {64, bytes / 128, kPoolBytes / bytes}, strides[] = {128, bytes};
    const cuuint32_t box[] = {64, static_cast<cuuint32_t>(each.box_lines), static_cast<cuuint32_t>(each.box_rows)};
    const cuuint32_t steps[] = {1, 1, 1};
    CUtensorMap map{};
    const CUresult status = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found)(
        &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, bench.pool, sizes, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS) {
        fail(std::string("making the tensor map of ") + each.name, ("error " + std::to_string(status)).c_str());
    }
    return map;
}

// Of the first pass; no row twice.
void write_ids(const Bench& bench, uint32_t pass_rows, int unit_rows) {
    std::vector<uint32_t> units(pass_rows / unit_rows), ids(size_t{kIds} * bench.blocks);
    std::iota(units.begin(), units.end(), 0u);
    std::shuffle(units.begin(), units.end(), std::mt19937(7));
    for (size_t at = 0; at < ids.size(); ++at) {
        ids[at] = units[at / unit_rows] * unit_rows + at % unit_rows;
    }
    check(cudaMemcpy(bench.ids, ids.data(), ids.size() * 4, cudaMemcpyHostToDevice), "writing ids");
}

class Runner {
public:
    Runner(const Bench& bench, const Case& each) : bench_(bench), case_(each), map_(tensor_map(bench, each)) {
        const void* kernel = reinterpret_cast<const void*>(each.kernel);
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes), each.name);
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100), each.name);
        int fit = 0;
        check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, kernel, kThreads, kSharedBytes), each.name);
        if (fit != 2) {
            fail(each.name, "expected two blocks on a multiprocessor");
        }
        args_.pool = bench.pool;
        args_.ids = bench.ids;
        args_.pass_rows = static_cast<uint32_t>(kPoolBytes / each.row_bytes / kPasses);
        args_.table = bench.table;
        args_.latencies = bench.latencies;
        write_ids(bench, args_.pass_rows, each.unit_rows());
    }

    Row row() const {
        Row found{case_.name, case_.row_bytes, std::nullopt, {}, {}};
        if (case_.engine != Engine::kNothing) {
            verify();
            const float ms = median_milliseconds(bench_, case_.name, [&] { launch(args_); });
            found.gigabytes_per_s = bench_.blocks * case_.tiles() * kTileBytes / (ms * 1e6);
        }
        found.shared_load = cycles(Watched::kSharedLoads);
        found.l2_load = cycles(Watched::kL2Loads);
        return found;
    }

private:
    void launch(const Args& args) const { case_.kernel<<<bench_.blocks, kThreads, kSharedBytes>>>(map_, args); }

    // Of all words that each block copied, from a launch of `sum`.
    template <typename Launch>
    std::vector<uint32_t> sums(const char* what, Launch sum) const {
        check(cudaMemset(bench_.sums, 0, bench_.blocks * sizeof(uint32_t)), "clearing sums");
        Args args = args_;
        args.sums = bench_.sums;
        milliseconds(bench_, what, [&] { sum(args); });
        return fetched(bench_.sums, bench_.blocks, what);
    }

    void verify() const {
        const auto expected = sums(
            "sums of rows", [&](const Args& args) { sum_rows<<<bench_.blocks, 1024>>>(args, case_.row_bytes / 4); });
        if (sums(case_.name, [&](const Args& args) { launch(args); }) != expected) {
            fail(case_.name, "what it copied is not what lies in its rows");
        }
    }

    Cycles cycles(Watched watched) const {
        Args args = args_;
        args.watched = watched;
        for (int i = 0; i < 2; ++i) {  // the first one warms the L2
            milliseconds(bench_, case_.name, [&] { launch(args); });
        }
        Latency all{};
        for (const Latency& block : fetched(bench_.latencies, bench_.blocks, "latencies")) {
            all.sum += block.sum;
            all.count += block.count;
            all.most = std::max(all.most, block.most);
        }
        return {static_cast<double>(all.sum) / all.count, all.most};
    }

    const Bench& bench_;
    const Case& case_;
    CUtensorMap map_;
    Args args_{};  // watches nothing, sums nothing
};

template <Engine kEngine, int kRowBytes>
Case of(const char* name, int box_lines = kRowBytes / 128, int box_rows = 1) {
    return {name, gather<kEngine, kRowBytes>, kEngine, kRowBytes, box_lines, box_rows};
}

std::vector<Case> cases() {
    return {
        of<Engine::kNothing, 256>("nothing"),
        of<Engine::kCpAsync, 256>("cp.async, one warp"),
        of<Engine::kTensorHalves, 256>("tensor map, half a row a copy", 1),
        of<Engine::kTensorRows, 256>("tensor map, a row a copy"),
        of<Engine::kBulkRows, 256>("bulk copies, a row each"),
        of<Engine::kTensorPages, 256>("tensor map, whole pages", 1, kPageRows),
        of<Engine::kCpAsync, 128>("cp.async, one warp"),
        of<Engine::kTensorRows, 128>("tensor map, a row a copy"),
        of<Engine::kBulkRows, 128>("bulk copies, a row each"),
        of<Engine::kTensorPages, 128>("tensor map, whole pages", 1, kPageRows),
    };
}

void print(const Row& row) {
    char speed[16] = "";
    if (row.gigabytes_per_s) {
        std::snprintf(speed, sizeof speed, "%.0f", *row.gigabytes_per_s);
    }
    std::printf("%-30s %9d %8s %12.0f %10llu %12.0f %10llu\n", row.name, row.row_bytes, speed, row.shared_load.mean,
                row.shared_load.most, row.l2_load.mean, row.l2_load.most);
    std::fflush(stdout);
}

std::string json(const Row& row) {
    char text[512];
    const std::string speed = row.gigabytes_per_s ? std::to_string(*row.gigabytes_per_s) : "null";
    std::snprintf(text, sizeof text,
                  "{\"copies_by\": \"%s\", \"row_bytes\": %d, \"gigabytes_per_s\": %s,"
                  " \"shared_load_cycles\": {\"mean\": %.1f, \"most\": %llu},"
                  " \"l2_load_cycles\": {\"mean\": %.1f, \"most\": %llu}}",
                  row.name, row.row_bytes, speed.c_str(), row.shared_load.mean, row.shared_load.most, row.l2_load.mean,
                  row.l2_load.most);
    return text;
}

void write_json(const char* path, const Bench& bench, double plain, const std::vector<Row>& rows) {
    std::FILE* file = std::fopen(path, "w");
    if (file == nullptr) {
        fail(path, std::strerror(errno));
    }
    std::fprintf(file, "{\"device\": \"%s\",\n \"plain_read_gigabytes_per_s\": %.1f,\n \"rows\": [",
                 bench.device.c_str(), plain);
    for (const Row& row : rows) {
        std::fprintf(file, "%s\n  %s", &row == rows.data() ? "" : ",", json(row).c_str());
    }
    std::fprintf(file, "\n ]}\n");
    if (std::fclose(file) != 0) {
        fail(path, std::strerror(errno));
    }
}

int main(int argc, char** argv) {
    const bool has_json = argc == 3 && std::strcmp(argv[1], "--json") == 0;
    if (argc != 1 && !has_json) {
        std::fprintf(stderr, "usage: %s [--json FILE]\n", argv[0]);
        return 2;
    }
    const Bench bench = open_bench();
    const double plain = plain_gigabytes_per_s(bench);
    std::printf("%s: a plain read reaches %.0f GB/s\n\n", bench.device.c_str(), plain);
    std::printf("%-30s %9s %8s %12s %10s %12s %10s\n", "", "", "", "shared load,", "at", "L2 load,", "at");
    std::printf("%-30s %9s %8s %12s %10s %12s %10s\n", "copies by", "row bytes", "GB/s", "cycles", "worst", "cycles",
                "worst");
    std::vector<Row> rows;
    for (const Case& each : cases()) {
        rows.push_back(Runner(bench, each).row());
        print(rows.back());
    }
    if (has_json) {
        write_json(argv[2], bench, plain, rows);
    }
    return 0;
}
