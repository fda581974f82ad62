// How kernels are launched and checked. Included by .cu files alone: everything else sees kernels.h and device.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels.h"

namespace yolonas::cuda {

// Throws OutOfMemory or another std::runtime_error: the op, CUDA's text and name of the error, and the cure where there
// is one.
[[noreturn]] void raise_cuda_error(const char* op, cudaError_t error);

// YOLONAS_CUDA_SYNC, read once.
bool sync_after_launch();

#define YN_CUDA_CHECK(op, call)                                                 \
  do {                                                                          \
    const cudaError_t yn_error = (call);                                        \
    if (yn_error != cudaSuccess) yolonas::cuda::raise_cuda_error(op, yn_error); \
  } while (false)

// The dynamic shared memory of a block, as bytes at a multiple of 1024.
#if defined(YOLONAS_CUDA_EMULATOR)
#define YN_DYNAMIC_SHARED(name) unsigned char* const name = emulator::dynamic_shared()
#else
#define YN_DYNAMIC_SHARED(name)                              \
  extern __shared__ __align__(1024) unsigned char name##_[]; \
  unsigned char* const name = name##_
#endif

inline constexpr int kThreads = 256;
#if defined(YOLONAS_CUDA_EMULATOR)
inline constexpr std::int64_t kMaxBlocks = 5;  // so that the loops over what is left run as well
#else
inline constexpr std::int64_t kMaxBlocks = 0x7fffffff;  // of gridDim.x
#endif

// Runs the kernel with exactly this grid. shared_bytes: dynamic shared memory of a block; for more than 48 KiB the
// kernel must have been allowed it on this device (cudaFuncAttributeMaxDynamicSharedMemorySize). Follows every launch
// with the check.
template <class... Params, class... Args>
void launch_grid(const char* op, Queue queue, dim3 grid, int threads, int shared_bytes, void (*kernel)(Params...),
                 Args... args) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(queue.stream);
  config.attrs = &overlap;
  config.numAttrs = queue.overlap ? 1 : 0;
  YN_CUDA_CHECK(op, cudaLaunchKernelEx(&config, kernel, args...));
  YN_CUDA_CHECK(op, cudaGetLastError());
  if (sync_after_launch()) YN_CUDA_CHECK(op, cudaStreamSynchronize(config.stream));
}

// Runs the kernel with `threads` threads in enough blocks for `items` pieces of work, `per_block` a block, at most as
// many as a grid holds: kernels loop over what is left. Follows every launch with the check.
template <class... Params, class... Args>
void launch(const char* op, Queue queue, std::int64_t items, int per_block, int threads, void (*kernel)(Params...),
            Args... args) {
  if (items <= 0) return;
  const std::int64_t blocks = (items - 1) / per_block + 1;
  const dim3 grid(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks));
  launch_grid(op, queue, grid, threads, 0, kernel, args...);
}
template <class... Params, class... Args>
void launch(const char* op, Stream stream, std::int64_t items, int per_block, int threads, void (*kernel)(Params...),
            Args... args) {
  launch(op, Queue{stream, false}, items, per_block, threads, kernel, args...);
}

}  // namespace yolonas::cuda

// Visits every i in [0, n) once over all threads of a one-dimensional grid.
#define YN_FOR_EACH(i, n)                                                                 \
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, \
                    yn_step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;          \
       i < (n); i += yn_step)
