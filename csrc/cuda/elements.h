// Numbers of feature maps in kernels: conversions, and pieces of 16 bytes. Included by .cu files alone.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "cuda/maps.h"

namespace yolonas::cuda {

// clamp(rint(value), -128, 127) with ties to even; -128 for a NaN.
__device__ __forceinline__ std::int8_t to_s8(float value) {
  const float integer = rintf(value), low = integer > -128.0f ? integer : -128.0f;
  return static_cast<std::int8_t>(low < 127.0f ? low : 127.0f);
}

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float as_float(std::int8_t value) { return static_cast<float>(value); }

__device__ __forceinline__ void assign(float& to, float value) { to = value; }
__device__ __forceinline__ void assign(__half& to, float value) { to = __float2half_rn(value); }
__device__ __forceinline__ void assign(std::int8_t& to, float value) { to = to_s8(value); }

// 16 bytes of a map, which are loaded and stored at once; their address is a multiple of 16.
template <class T>
struct alignas(16) Piece {
  static constexpr int kCount = 16 / static_cast<int>(sizeof(T));
  T at[kCount];

  __device__ __forceinline__ static Piece load(const T* from) {
    Piece piece;
    check_aligned(from);
#if defined(YOLONAS_CUDA_EMULATOR)
    std::memcpy(&piece, from, sizeof piece);
#else
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    std::memcpy(&piece, &bits, sizeof piece);
#endif
    return piece;
  }

  __device__ __forceinline__ void store(T* to) const {
    check_aligned(to);
#if defined(YOLONAS_CUDA_EMULATOR)
    std::memcpy(to, this, sizeof *this);
#else
    uint4 bits;
    std::memcpy(&bits, this, sizeof bits);
    // Four registers from here on: the compiler would store halves by twos.
    asm("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
    *reinterpret_cast<uint4*>(to) = bits;
#endif
  }

 private:
  __device__ __forceinline__ static void check_aligned(const T* address) {
#if defined(YOLONAS_CUDA_EMULATOR)  // a GPU looks for itself
    if (reinterpret_cast<std::uintptr_t>(address) % 16 != 0) std::abort();
#else
    static_cast<void>(address);
#endif
  }
};

// Whether the map's pixels begin at multiples of 16 bytes.
inline bool in_pieces(const MapView& map) {
  return reinterpret_cast<std::uintptr_t>(map.data) % 16 == 0 && map.pixel * bytes_of(map.elem) % 16 == 0;
}

// Calls run with a value of the type of `elem`.
template <class Run>
void with_elem(Elem elem, const Run& run) {
  switch (elem) {
    case Elem::f32:
      return run(float{});
    case Elem::f16:
      return run(__half{});
    default:
      return run(std::int8_t{});
  }
}

}  // namespace yolonas::cuda
