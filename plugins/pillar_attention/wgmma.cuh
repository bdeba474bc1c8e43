// Hopper's matrix products of a warpgroup, wgmma: c [64 x kColumns] += a [64 x 16] b [16 x kColumns], or 32 deep where
// they are of FP8. Warp w of the four holds rows 16 w to 16 w + 15 of a and c, as in mma.sync; b lies in shared memory
// as TileLayout says.
#pragma once

#include <cuda_fp8.h>

#include "pillar_attention/ptx.cuh"
#include "pillar_attention/shared_memory.cuh"

namespace sparsespec {

// Where an operand lies, in the bits of a matrix descriptor.
template <typename Layout>
__device__ __forceinline__ uint64_t matrix_descriptor(const unsigned char* tile) {
    constexpr uint64_t kSwizzle = Layout::kRowBytes == 128 ? 1 : Layout::kRowBytes == 64 ? 2 : 3;
    // Strides in units of 16 bytes: from block to block of columns, and from eight rows to the next.
    constexpr uint64_t kBlocks = Layout::kBlockBytes / 16, kEightRows = Layout::kEightRows / 16;
    return kSwizzle << 62 | kEightRows << 32 | kBlocks << 16 | (shared_address(tile) & 0x3ffff) >> 4;
}

// Before products: what registers hold is there.
__device__ __forceinline__ void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ __forceinline__ void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// Until all products are done but those of the last kCount commits.
template <int kCount = 0>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kCount) : "memory");
}

// Keeps reads of results behind products_wait.
template <int kColumns>
__device__ __forceinline__ void hold(float (&c)[kColumns][4]) {
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
        asm volatile("" : "+f"(c[column][0]), "+f"(c[column][1]), "+f"(c[column][2]), "+f"(c[column][3])::"memory");
    }
}

template <typename T, bool kTransposed>
struct Products;

// For so many columns: c as operands, four numbers of a lane for each eight columns; their names in the instruction;
// and those of what follows them.
#define SPARSESPEC_COLUMN(j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define SPARSESPEC_C_8 SPARSESPEC_COLUMN(0)
#define SPARSESPEC_C_32 SPARSESPEC_C_8, SPARSESPEC_COLUMN(1), SPARSESPEC_COLUMN(2), SPARSESPEC_COLUMN(3)
#define SPARSESPEC_C_40 SPARSESPEC_C_32, SPARSESPEC_COLUMN(4)
#define SPARSESPEC_C_64 SPARSESPEC_C_40, SPARSESPEC_COLUMN(5), SPARSESPEC_COLUMN(6), SPARSESPEC_COLUMN(7)
#define SPARSESPEC_C_96 \
    SPARSESPEC_C_64, SPARSESPEC_COLUMN(8), SPARSESPEC_COLUMN(9), SPARSESPEC_COLUMN(10), SPARSESPEC_COLUMN(11)
#define SPARSESPEC_C_128 \
    SPARSESPEC_C_96, SPARSESPEC_COLUMN(12), SPARSESPEC_COLUMN(13), SPARSESPEC_COLUMN(14), SPARSESPEC_COLUMN(15)
#define SPARSESPEC_NAMES_8 "%0, %1, %2, %3"
#define SPARSESPEC_NAMES_32 SPARSESPEC_NAMES_8 ", %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define SPARSESPEC_NAMES_40 SPARSESPEC_NAMES_32 ", %16, %17, %18, %19"
#define SPARSESPEC_NAMES_64 SPARSESPEC_NAMES_40 ", %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SPARSESPEC_NAMES_96                                                  \
    SPARSESPEC_NAMES_64                                                      \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45" \
    ", %46, %47"
#define SPARSESPEC_NAMES_128                                                 \
    SPARSESPEC_NAMES_96                                                      \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61" \
    ", %62, %63"
#define SPARSESPEC_AB_8 "{%4, %5, %6, %7}, %8"
#define SPARSESPEC_ADDS_8 "%9"
#define SPARSESPEC_AB_32 "{%16, %17, %18, %19}, %20"
#define SPARSESPEC_ADDS_32 "%21"
#define SPARSESPEC_AB_40 "{%20, %21, %22, %23}, %24"
#define SPARSESPEC_ADDS_40 "%25"
#define SPARSESPEC_AB_64 "{%32, %33, %34, %35}, %36"
#define SPARSESPEC_ADDS_64 "%37"
#define SPARSESPEC_AB_96 "{%48, %49, %50, %51}, %52"
#define SPARSESPEC_ADDS_96 "%53"
#define SPARSESPEC_AB_128 "{%64, %65, %66, %67}, %68"
#define SPARSESPEC_ADDS_128 "%69"
#define SPARSESPEC_SHARED_AB_8 "%4, %5"
#define SPARSESPEC_SHARED_ADDS_8 "%6"
#define SPARSESPEC_SHARED_AB_32 "%16, %17"
#define SPARSESPEC_SHARED_ADDS_32 "%18"
#define SPARSESPEC_SHARED_AB_40 "%20, %21"
#define SPARSESPEC_SHARED_ADDS_40 "%22"
#define SPARSESPEC_SHARED_AB_64 "%32, %33"
#define SPARSESPEC_SHARED_ADDS_64 "%34"

// a in registers.
#define SPARSESPEC_PRODUCT(columns, depth, type, transposed)                                                         \
    __device__ __forceinline__ static void multiply_add(float (&c)[columns / 8][4], const uint32_t (&a)[4],          \
                                                        uint64_t b, bool adds) {                                     \
        asm volatile("{ .reg .pred adds; setp.ne.b32 adds, " SPARSESPEC_ADDS_##columns                               \
                     ", 0;\n"                                                                                        \
                     "wgmma.mma_async.sync.aligned.m64n" #columns "k" #depth ".f32." type "." type                   \
                     " {" SPARSESPEC_NAMES_##columns "}, " SPARSESPEC_AB_##columns ", adds, 1, 1" transposed "; }\n" \
                     : SPARSESPEC_C_##columns                                                                        \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{adds}));                          \
    }

// a in shared memory too.
#define SPARSESPEC_SHARED_PRODUCT(columns, depth, type, transposed)                                                 \
    __device__ __forceinline__ static void multiply_add(float (&c)[columns / 8][4], uint64_t a, uint64_t b,         \
                                                        bool adds) {                                                \
        asm volatile("{ .reg .pred adds; setp.ne.b32 adds, " SPARSESPEC_SHARED_ADDS_##columns                       \
                     ", 0;\n"                                                                                       \
                     "wgmma.mma_async.sync.aligned.m64n" #columns "k" #depth ".f32." type "." type                  \
                     " {" SPARSESPEC_NAMES_##columns "}, " SPARSESPEC_SHARED_AB_##columns ", adds, 1, 1" transposed \
                                                                                          "; }\n"                   \
                     : SPARSESPEC_C_##columns                                                                       \
                     : "l"(a), "l"(b), "r"(int{adds}));                                                             \
    }

// For all numbers of columns that teams have.
#define SPARSESPEC_ROWS(product, depth, type, transposed)                                                         \
    product(8, depth, type, transposed) product(32, depth, type, transposed) product(40, depth, type, transposed) \
        product(64, depth, type, transposed)

// One product of 32 bytes in depth. Keys: b's columns are rows in shared memory. Values, kTransposed: they are columns.
template <>
struct Products<__nv_bfloat16, false> {
    SPARSESPEC_PRODUCT(64, 16, "bf16", ", 0")
};

template <>
struct Products<__nv_bfloat16, true> {
    SPARSESPEC_PRODUCT(64, 16, "bf16", ", 1")
    SPARSESPEC_PRODUCT(96, 16, "bf16", ", 1")
    SPARSESPEC_PRODUCT(128, 16, "bf16", ", 1")
};

template <>
struct Products<__half, false> {
    SPARSESPEC_PRODUCT(64, 16, "f16", ", 0")
};

template <>
struct Products<__half, true> {
    SPARSESPEC_PRODUCT(64, 16, "f16", ", 1")
    SPARSESPEC_PRODUCT(96, 16, "f16", ", 1")
    SPARSESPEC_PRODUCT(128, 16, "f16", ", 1")
};

// Products whose columns are packed rows, see columns.cuh. kTransposed: a's rows are columns in shared memory, as a
// value's numbers are; b's columns are always rows there.
template <typename T, bool kTransposed>
struct ColumnProducts;

template <>
struct ColumnProducts<__nv_fp8_e4m3, false> {
    SPARSESPEC_ROWS(SPARSESPEC_SHARED_PRODUCT, 32, "e4m3", "")
};

template <>
struct ColumnProducts<__nv_bfloat16, false> {
    SPARSESPEC_ROWS(SPARSESPEC_SHARED_PRODUCT, 16, "bf16", ", 0, 0")
};

template <>
struct ColumnProducts<__nv_bfloat16, true> {
    SPARSESPEC_ROWS(SPARSESPEC_SHARED_PRODUCT, 16, "bf16", ", 1, 0")
};

template <>
struct ColumnProducts<__half, false> {
    SPARSESPEC_ROWS(SPARSESPEC_SHARED_PRODUCT, 16, "f16", ", 0, 0")
    SPARSESPEC_ROWS(SPARSESPEC_PRODUCT, 16, "f16", ", 0")
};

template <>
struct ColumnProducts<__half, true> {
    SPARSESPEC_ROWS(SPARSESPEC_SHARED_PRODUCT, 16, "f16", ", 1, 0")
};

#undef SPARSESPEC_ROWS
#undef SPARSESPEC_SHARED_PRODUCT
#undef SPARSESPEC_PRODUCT
#undef SPARSESPEC_COLUMN
#undef SPARSESPEC_C_8
#undef SPARSESPEC_NAMES_8
#undef SPARSESPEC_AB_8
#undef SPARSESPEC_ADDS_8
#undef SPARSESPEC_C_32
#undef SPARSESPEC_NAMES_32
#undef SPARSESPEC_AB_32
#undef SPARSESPEC_ADDS_32
#undef SPARSESPEC_C_40
#undef SPARSESPEC_NAMES_40
#undef SPARSESPEC_AB_40
#undef SPARSESPEC_ADDS_40
#undef SPARSESPEC_C_64
#undef SPARSESPEC_NAMES_64
#undef SPARSESPEC_AB_64
#undef SPARSESPEC_ADDS_64
#undef SPARSESPEC_C_96
#undef SPARSESPEC_NAMES_96
#undef SPARSESPEC_AB_96
#undef SPARSESPEC_ADDS_96
#undef SPARSESPEC_C_128
#undef SPARSESPEC_NAMES_128
#undef SPARSESPEC_AB_128
#undef SPARSESPEC_ADDS_128
#undef SPARSESPEC_SHARED_AB_8
#undef SPARSESPEC_SHARED_ADDS_8
#undef SPARSESPEC_SHARED_AB_32
#undef SPARSESPEC_SHARED_ADDS_32
#undef SPARSESPEC_SHARED_AB_40
#undef SPARSESPEC_SHARED_ADDS_40
#undef SPARSESPEC_SHARED_AB_64
#undef SPARSESPEC_SHARED_ADDS_64

}  // namespace sparsespec
