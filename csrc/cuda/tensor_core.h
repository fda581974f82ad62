// Instructions that CUDA C++ has no functions for: asynchronous copies, matrix loads, the tensor cores' products, and
// the start of a kernel before the end of the one queued before it. Included by .cu files alone.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#if defined(YOLONAS_CUDA_EMULATOR)
#include <emulated_tensor_core.h>  // the same functions, on the CPU
#else

namespace yolonas::cuda {

__device__ __forceinline__ unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// The number, which all lanes of the warp have alike, told to the compiler as such: what is computed from it then
// takes no instructions of the lanes. By the whole warp.
__device__ __forceinline__ int same_in_warp(int number) { return __shfl_sync(0xffffffffu, number, 0); }

// The number, found there and then: the compiler neither keeps it nor what was computed from it at another place.
__device__ __forceinline__ int found_anew(int number) {
  asm volatile("mov.b32 %0, %0;\n" : "+r"(number));
  return number;
}

// The same address of shared memory, as a number that the compiler does not know where it comes from: it would find it
// anew in every step of a loop, from a slow register.
__device__ __forceinline__ unsigned char* kept(unsigned char* shared) {
  return static_cast<unsigned char*>(__cvta_shared_to_generic(same_in_warp(shared_address(shared))));
}

// Copies 16 bytes to shared memory, or writes 16 zero bytes where `outside` has a bit set: nothing is read then, and
// `global` may point anywhere. Both are multiples of 16. The bytes are there after cp_async_wait; before sm_80 at once.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, unsigned outside) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "{\n.reg .pred p;\n.reg .b32 bytes;\nsetp.eq.u32 p, %2, 0;\nselp.b32 bytes, 16, 0, p;\n"
      "cp.async.cg.shared.global [%0], [%1], 16, bytes;\n}\n" ::"r"(shared_address(shared)),
      "l"(global), "r"(outside)
      : "memory");
#else
  *static_cast<uint4*>(shared) = outside ? uint4{0, 0, 0, 0} : *static_cast<const uint4*>(global);
#endif
}

// Closes a group of the copies that this thread has begun since the last one.
__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most kGroups of this thread's groups are under way. Other threads see the bytes after a barrier.
template <int kGroups>
__device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroups) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit numbers (or 8x16 of bytes): lane i gives the address of row i % 8 of matrix i / 8, 16
// bytes, aligned; r[m] gets numbers 2 * (lane % 4) and the next one of row lane / 4 of matrix m.
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a * b for a of 16 rows x 32 bytes and b of 32 bytes x 8 columns, by the whole warp. With row = lane / 4 and
// quad = lane % 4: a[0] holds row, bytes 4 * quad on; a[1] row + 8; a[2] and a[3] the same 16 bytes further; b[0] of
// column `row` bytes 4 * quad on, b[1] 16 bytes further; c[0] and c[1] row, columns 2 * quad and 2 * quad + 1, c[2] and
// c[3] row + 8.
__device__ __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

__device__ __forceinline__ void mma(std::int32_t (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};\n"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // 16 bytes of a row
    const std::uint32_t b = half == 0 ? b0 : b1;
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};\n"
                 : "+r"(c[0]), "+r"(c[1])
                 : "r"(a[2 * half]), "r"(b));
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};\n"
                 : "+r"(c[2]), "+r"(c[3])
                 : "r"(a[2 * half + 1]), "r"(b));
  }
#endif
}

// Lane i gets what lane i ^ mask has. By the whole warp.
__device__ __forceinline__ std::uint32_t shuffle_xor(std::uint32_t value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Waits for the end of the launch before this one on the stream, where this one was queued with Queue::overlap. Before
// it a kernel may neither read what others wrote nor write what others use.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// Lets the next launch begin as soon as all blocks of this one have come here or ended. After wait_for_previous: so no
// more than one launch of a stream waits on the device, where it holds shared memory that other streams could use.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

}  // namespace yolonas::cuda

#endif
