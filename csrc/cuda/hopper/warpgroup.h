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

#define YN_FLOATS(c) "+f"((c)[0]), "+f"((c)[1]), "+f"((c)[2]), "+f"((c)[3])
#define YN_INTS(c) "+r"((c)[0]), "+r"((c)[1]), "+r"((c)[2]), "+r"((c)[3])

template <>
__device__ __forceinline__ void warpgroup_product<64>(float (&c)[8][4], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
      : YN_FLOATS(c[0]), YN_FLOATS(c[1]), YN_FLOATS(c[2]), YN_FLOATS(c[3]), YN_FLOATS(c[4]), YN_FLOATS(c[5]),
        YN_FLOATS(c[6]), YN_FLOATS(c[7])
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void warpgroup_product<64>(std::int32_t (&c)[8][4], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p;\n}\n"
      : YN_INTS(c[0]), YN_INTS(c[1]), YN_INTS(c[2]), YN_INTS(c[3]), YN_INTS(c[4]), YN_INTS(c[5]), YN_INTS(c[6]),
        YN_INTS(c[7])
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void warpgroup_product<96>(float (&c)[12][4], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
      "}, %48, %49, p, 1, 1, 0, 0;\n}\n"
      : YN_FLOATS(c[0]), YN_FLOATS(c[1]), YN_FLOATS(c[2]), YN_FLOATS(c[3]), YN_FLOATS(c[4]), YN_FLOATS(c[5]),
        YN_FLOATS(c[6]), YN_FLOATS(c[7]), YN_FLOATS(c[8]), YN_FLOATS(c[9]), YN_FLOATS(c[10]), YN_FLOATS(c[11])
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void warpgroup_product<96>(std::int32_t (&c)[12][4], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n96k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
      "}, %48, %49, p;\n}\n"
      : YN_INTS(c[0]), YN_INTS(c[1]), YN_INTS(c[2]), YN_INTS(c[3]), YN_INTS(c[4]), YN_INTS(c[5]), YN_INTS(c[6]),
        YN_INTS(c[7]), YN_INTS(c[8]), YN_INTS(c[9]), YN_INTS(c[10]), YN_INTS(c[11])
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void warpgroup_product<128>(float (&c)[16][4], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
      : YN_FLOATS(c[0]), YN_FLOATS(c[1]), YN_FLOATS(c[2]), YN_FLOATS(c[3]), YN_FLOATS(c[4]), YN_FLOATS(c[5]),
        YN_FLOATS(c[6]), YN_FLOATS(c[7]), YN_FLOATS(c[8]), YN_FLOATS(c[9]), YN_FLOATS(c[10]), YN_FLOATS(c[11]),
        YN_FLOATS(c[12]), YN_FLOATS(c[13]), YN_FLOATS(c[14]), YN_FLOATS(c[15])
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void warpgroup_product<128>(std::int32_t (&c)[16][4], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p;\n}\n"
      : YN_INTS(c[0]), YN_INTS(c[1]), YN_INTS(c[2]), YN_INTS(c[3]), YN_INTS(c[4]), YN_INTS(c[5]), YN_INTS(c[6]),
        YN_INTS(c[7]), YN_INTS(c[8]), YN_INTS(c[9]), YN_INTS(c[10]), YN_INTS(c[11]), YN_INTS(c[12]), YN_INTS(c[13]),
        YN_INTS(c[14]), YN_INTS(c[15])
      : "l"(a), "l"(b));
}

#undef YN_FLOATS
#undef YN_INTS

}  // namespace yolonas::cuda

#endif
