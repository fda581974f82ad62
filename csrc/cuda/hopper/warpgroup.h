// Hopper's products by four warps together, which read both operands from shared memory while the warps go on
// (wgmma, sm_90a). Included by .cu files alone.
//
// An operand is a tile of rows of 128 bytes whose 16-byte chunks are permuted as tile_offset<128> in conv_kernel.h does
// it, which is the hardware's own permutation; it begins at a multiple of 1024 bytes.
#pragma once

#include "cuda/tensor_core.h"

#if defined(YOLONAS_CUDA_EMULATOR)
#include <emulated_warpgroup.h>  // the same functions, on the CPU
#else

namespace yolonas::cuda {

// Describes rows from `tile` on, of which the 32 bytes from `tile` on are multiplied. `tile`: row 8 * i of a tile, plus
// 32 * k bytes for the k-th part of a row.
__device__ __forceinline__ std::uint64_t operand_of(const unsigned char* tile) {
  constexpr std::uint64_t kEightRows = 1024 / 16, kPermuted128 = 1;  // bytes from 8 rows to the next, in units of 16
  return static_cast<std::uint64_t>((shared_address(tile) & 0x3ffff) >> 4) | std::uint64_t{1} << 16 | kEightRows << 32 |
         kPermuted128 << 62;
}

// The operand so many bytes further on, a multiple of 16; tiles of a block lie in less than 256 KiB.
__device__ __forceinline__ std::uint64_t further(std::uint64_t operand, int bytes) {
  const std::uint32_t low = static_cast<std::uint32_t>(operand) + static_cast<std::uint32_t>(bytes) / 16;
  return operand >> 32 << 32 | low;
}

// Makes what this thread has written, or waited for, visible to the products; before the barrier that announces it.
__device__ __forceinline__ void publish_to_products() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// Before the first product of a step.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

// Closes a group of products.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

// Waits until at most kGroups groups are under way; until then nobody may write to their operands or read their sums.
template <int kGroups>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kGroups) : "memory");
}

// Keeps the compiler from reading sums before the wait above this line.
__device__ __forceinline__ void settle(float& sum) { asm volatile("" : "+f"(sum)::"memory"); }
__device__ __forceinline__ void settle(std::int32_t& sum) { asm volatile("" : "+r"(sum)::"memory"); }

// c += a * b for 64 rows of a and kColumns rows of b, of 32 bytes each: float16 for float sums, int8 for integers. Warp
// w of the four holds rows 16 * w on; c[j] are columns 8 * j on, as those of mma() in tensor_core.h.
template <int kColumns>
__device__ void warpgroup_product(float (&c)[kColumns / 8][4], std::uint64_t a, std::uint64_t b);
template <int kColumns>
__device__ void warpgroup_product(std::int32_t (&c)[kColumns / 8][4], std::uint64_t a, std::uint64_t b);

// The registers of the sums, as the instruction wants them: %0 and on, half as many as columns.
#define YN_SUMS_64                                                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define YN_SUMS_96 \
  YN_SUMS_64       \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define YN_SUMS_128 \
  YN_SUMS_96        \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define YN_SUMS_192                                                                                   \
  YN_SUMS_128                                                                                         \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, " \
  "%83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"

#define YN_FOUR(kind, c) kind((c)[0]), kind((c)[1]), kind((c)[2]), kind((c)[3])
#define YN_SIXTEEN(kind, c, i) \
  YN_FOUR(kind, c[i]), YN_FOUR(kind, c[i + 1]), YN_FOUR(kind, c[i + 2]), YN_FOUR(kind, c[i + 3])
#define YN_OPERANDS_64(kind, c) YN_SIXTEEN(kind, c, 0), YN_SIXTEEN(kind, c, 4)
#define YN_OPERANDS_96(kind, c) YN_OPERANDS_64(kind, c), YN_SIXTEEN(kind, c, 8)
#define YN_OPERANDS_128(kind, c) YN_OPERANDS_96(kind, c), YN_SIXTEEN(kind, c, 12)
#define YN_OPERANDS_192(kind, c) YN_OPERANDS_128(kind, c), YN_SIXTEEN(kind, c, 16), YN_SIXTEEN(kind, c, 20)

// a_at, b_at: the operands after the sums, kColumns / 2 and the next number.
#define YN_PRODUCTS(columns, a_at, b_at)                                                                            \
  template <>                                                                                                       \
  __device__ __forceinline__ void warpgroup_product<columns>(float (&c)[columns / 8][4], std::uint64_t a,           \
                                                             std::uint64_t b) {                                     \
    asm volatile(                                                                                                   \
        "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                                                  \
        "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.f16.f16 {" YN_SUMS_##columns "}, %" #a_at ", %" #b_at \
                                                                                           ", p, 1, 1, 0, 0;\n}\n"  \
        : YN_OPERANDS_##columns("+f", c)                                                                            \
        : "l"(a), "l"(b));                                                                                          \
  }                                                                                                                 \
  template <>                                                                                                       \
  __device__ __forceinline__ void warpgroup_product<columns>(std::int32_t (&c)[columns / 8][4], std::uint64_t a,    \
                                                             std::uint64_t b) {                                     \
    asm volatile(                                                                                                   \
        "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                                                  \
        "wgmma.mma_async.sync.aligned.m64n" #columns "k32.s32.s8.s8 {" YN_SUMS_##columns "}, %" #a_at ", %" #b_at   \
                                                                                         ", p;\n}\n"                \
        : YN_OPERANDS_##columns("+r", c)                                                                            \
        : "l"(a), "l"(b));                                                                                          \
  }

YN_PRODUCTS(64, 32, 33)
YN_PRODUCTS(96, 48, 49)
YN_PRODUCTS(128, 64, 65)
YN_PRODUCTS(192, 96, 97)

#undef YN_PRODUCTS
#undef YN_OPERANDS_192
#undef YN_OPERANDS_128
#undef YN_OPERANDS_96
#undef YN_OPERANDS_64
#undef YN_SIXTEEN
#undef YN_FOUR
#undef YN_SUMS_192
#undef YN_SUMS_128
#undef YN_SUMS_96
#undef YN_SUMS_64

}  // namespace yolonas::cuda

#endif
