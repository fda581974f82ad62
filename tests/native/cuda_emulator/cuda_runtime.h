// A stand-in for CUDA's header that runs kernels on the CPU, one after the other, for tests on machines without a GPU.
// It has what csrc/cuda uses and no more. The threads of a block are fibers: each runs up to the next __syncthreads(),
// then the next one does. That checks indices and arithmetic, and that barriers are met by all threads of a block; it
// says nothing about races between barriers, memory spaces or speed (running the threads backwards, which
// YOLONAS_EMULATOR_ORDER=backward does, shows some of the races).
#pragma once

#define YOLONAS_CUDA_EMULATOR 1

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static  // blocks run one at a time
#define __launch_bounds__(...)
#define CUDART_VERSION 13000
#define __CUDA_ARCH_LIST__ 0

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = struct CUstream_st*;
enum cudaError_t {
  cudaSuccess,
  cudaErrorNoDevice,
  cudaErrorInsufficientDriver,
  cudaErrorNoKernelImageForDevice,
  cudaErrorInvalidDeviceFunction,
  cudaErrorUnsupportedPtxVersion,
};
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor };
inline const char* cudaGetErrorString(cudaError_t) { return "emulated error"; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorEmulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 0, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

namespace emulator {

struct Fiber {
  ucontext_t context{};
  std::vector<char> stack = std::vector<char>(64 << 10);
  bool done = false;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline Fiber* current = nullptr;
inline const std::function<void()>* body = nullptr;

inline void enter() {
  (*body)();
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

inline void run_block(unsigned threads) {
  const char* order = std::getenv("YOLONAS_EMULATOR_ORDER");
  const bool backward = order && std::strcmp(order, "backward") == 0;
  if (fibers.size() < threads) fibers.resize(threads);
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    makecontext(&fiber.context, enter, 0);
  }
  for (unsigned done = 0; done < threads;) {
    done = 0;
    for (unsigned turn = 0; turn < threads; ++turn) {
      const unsigned t = backward ? threads - 1 - turn : turn;
      current = &fibers[t];
      threadIdx = dim3(t, 0, 0);
      swapcontext(&scheduler, &current->context);
      done += current->done;
    }
    if (done != 0 && done != threads) throw std::runtime_error("emulator: some threads ended, others met a barrier");
  }
}

}  // namespace emulator

inline void __syncthreads() { swapcontext(&emulator::current->context, &emulator::scheduler); }

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim{}, blockDim{};
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  blockDim = config->blockDim;
  gridDim = config->gridDim;
  const std::function<void()> body = [&] { kernel(static_cast<Params>(args)...); };
  emulator::body = &body;
  for (unsigned block = 0; block < gridDim.x; ++block) {
    blockIdx = dim3(block, 0, 0);
    emulator::run_block(blockDim.x);
  }
  return cudaSuccess;
}
