// What kernels call: barriers, the collectives of a warp, atomics, intrinsics and vector types.
#pragma once

#include <cassert>
#include <cmath>
#include <type_traits>

#include "fibers.h"

#define YN_EMULATOR_WHERE emulator::Where where = emulator::Where(__builtin_FILE(), __builtin_LINE())

// --- vectors ---

struct alignas(2) char2 {
  signed char x, y;
};
struct alignas(4) char4 {
  signed char x, y, z, w;
};
struct alignas(2) uchar2 {
  unsigned char x, y;
};
struct alignas(4) uchar4 {
  unsigned char x, y, z, w;
};
struct alignas(4) short2 {
  short x, y;
};
struct alignas(8) short4 {
  short x, y, z, w;
};
struct alignas(4) ushort2 {
  unsigned short x, y;
};
struct alignas(8) ushort4 {
  unsigned short x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct int3 {
  int x, y, z;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct float3 {
  float x, y, z;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) longlong2 {
  long long x, y;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
inline uchar4 make_uchar4(unsigned char x, unsigned char y, unsigned char z, unsigned char w) { return {x, y, z, w}; }
inline char2 make_char2(signed char x, signed char y) { return {x, y}; }
inline uchar2 make_uchar2(unsigned char x, unsigned char y) { return {x, y}; }
inline char4 make_char4(signed char x, signed char y, signed char z, signed char w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// --- barriers ---

inline void __syncthreads(YN_EMULATOR_WHERE) { emulator::barrier("__syncthreads", false, where); }
inline int __syncthreads_count(int vote, YN_EMULATOR_WHERE) {
  return emulator::barrier("__syncthreads_count", vote != 0, where);
}
inline int __syncthreads_or(int vote, YN_EMULATOR_WHERE) {
  return emulator::barrier("__syncthreads_or", vote != 0, where) != 0;
}
inline int __syncthreads_and(int vote, YN_EMULATOR_WHERE) {
  return emulator::barrier("__syncthreads_and", vote == 0, where) == 0;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// --- collectives of a warp ---

namespace emulator {

inline constexpr std::uint32_t kAllLanes = 0xffffffffu;

inline void meet(void* const*, std::uint32_t) {}

struct Vote {
  bool yes;
  std::uint32_t ballot;
};
inline void count_votes(Vote* const* lanes, std::uint32_t mask) {
  std::uint32_t ballot = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1 && lanes[lane]->yes) ballot |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) lanes[lane]->ballot = ballot;
}
inline std::uint32_t vote(const char* name, std::uint32_t mask, bool yes, Where where) {
  Vote operand{yes, 0};
  collective_of<Vote, count_votes>(name, mask, operand, where);
  return operand.ballot;
}

struct Shuffle {
  std::uint64_t value, result;
  int source;
};
inline void shuffle_lanes(Shuffle* const* lanes, std::uint32_t mask) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const int source = lanes[lane]->source;
    if (!(mask >> source & 1)) fail("a shuffle reads lane " + std::to_string(source) + ", which is not in its mask");
    lanes[lane]->result = lanes[source]->value;
  }
}
template <class T>
T shuffle(const char* name, std::uint32_t mask, T value, int source, Where where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  Shuffle operand{0, 0, source};
  std::memcpy(&operand.value, &value, sizeof(T));
  collective_of<Shuffle, shuffle_lanes>(name, mask, operand, where);
  std::memcpy(&value, &operand.result, sizeof(T));
  return value;
}
inline int lane() { return static_cast<int>(block().current->number % 32); }
// First and last lane of the part of a warp, `width` lanes, that this lane is in.
inline int first_lane(int width) { return lane() & ~(width - 1); }
inline int last_lane(int width) { return lane() | (width - 1); }

}  // namespace emulator

inline void __syncwarp(unsigned mask = emulator::kAllLanes, YN_EMULATOR_WHERE) {
  emulator::collective("__syncwarp", mask, nullptr, emulator::meet, where);
}
inline unsigned __ballot_sync(unsigned mask, int yes, YN_EMULATOR_WHERE) {
  return emulator::vote("__ballot_sync", mask, yes != 0, where);
}
inline int __any_sync(unsigned mask, int yes, YN_EMULATOR_WHERE) {
  return emulator::vote("__any_sync", mask, yes != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int yes, YN_EMULATOR_WHERE) {
  return emulator::vote("__all_sync", mask, yes == 0, where) == 0;
}
inline unsigned __activemask() {
  const emulator::Block& b = emulator::block();
  return b.warps[b.current->number / 32].alive;  // those that have not ended, diverged or not
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, YN_EMULATOR_WHERE) {
  return emulator::shuffle("__shfl_sync", mask, value, emulator::first_lane(width) | (source & (width - 1)), where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, YN_EMULATOR_WHERE) {
  const int source = emulator::lane() ^ bits;
  const bool there = source >= 0 && source <= emulator::last_lane(width);
  return emulator::shuffle("__shfl_xor_sync", mask, value, there ? source : emulator::lane(), where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, YN_EMULATOR_WHERE) {
  const int source = emulator::lane() - static_cast<int>(delta);
  const bool there = source >= emulator::first_lane(width);
  return emulator::shuffle("__shfl_up_sync", mask, value, there ? source : emulator::lane(), where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, YN_EMULATOR_WHERE) {
  const int source = emulator::lane() + static_cast<int>(delta);
  const bool there = source <= emulator::last_lane(width);
  return emulator::shuffle("__shfl_down_sync", mask, value, there ? source : emulator::lane(), where);
}

// --- atomics: one thread runs at a time ---

#define YN_EMULATOR_ATOMIC(name, T, result) \
  inline T name(T* address, T value) {      \
    const T old = *address;                 \
    *address = static_cast<T>(result);      \
    return old;                             \
  }
#define YN_EMULATOR_ATOMICS(T)                                \
  YN_EMULATOR_ATOMIC(atomicAdd, T, old + value)               \
  YN_EMULATOR_ATOMIC(atomicMax, T, old < value ? value : old) \
  YN_EMULATOR_ATOMIC(atomicMin, T, value < old ? value : old) \
  YN_EMULATOR_ATOMIC(atomicOr, T, old | value)                \
  YN_EMULATOR_ATOMIC(atomicAnd, T, old& value)                \
  YN_EMULATOR_ATOMIC(atomicExch, T, value)                    \
  inline T atomicCAS(T* address, T expected, T value) {       \
    const T old = *address;                                   \
    if (old == expected) *address = value;                    \
    return old;                                               \
  }
YN_EMULATOR_ATOMICS(unsigned)
YN_EMULATOR_ATOMICS(unsigned long long)
#undef YN_EMULATOR_ATOMICS
inline int atomicAdd(int* address, int value) {
  const int old = *address;
  *address = static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value));
  return old;
}
YN_EMULATOR_ATOMIC(atomicMax, int, old < value ? value : old)
YN_EMULATOR_ATOMIC(atomicMin, int, value < old ? value : old)
YN_EMULATOR_ATOMIC(atomicOr, int, old | value)
YN_EMULATOR_ATOMIC(atomicAnd, int, old& value)
YN_EMULATOR_ATOMIC(atomicExch, int, value)
YN_EMULATOR_ATOMIC(atomicAdd, float, old + value)
YN_EMULATOR_ATOMIC(atomicExch, float, value)
#undef YN_EMULATOR_ATOMIC
inline int atomicCAS(int* address, int expected, int value) {
  const int old = *address;
  if (old == expected) *address = value;
  return old;
}

// --- memory and bits ---

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int bit = 0; bit < 32; ++bit) result |= (x >> bit & 1) << (31 - bit);
  return result;
}

namespace emulator {
template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
}  // namespace emulator

inline int __float_as_int(float x) { return emulator::bits_as<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator::bits_as<unsigned>(x); }
inline float __int_as_float(int x) { return emulator::bits_as<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator::bits_as<float>(x); }

// --- arithmetic ---

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
// Saturates; NaN gives 0.
inline int __float2int_rn(float x) {
  if (x != x) return 0;
  if (x >= 2147483648.0f) return 2147483647;
  return x <= -2147483648.0f ? -2147483647 - 1 : static_cast<int>(std::nearbyint(x));
}
inline int __float2int_rz(float x) { return __float2int_rn(std::trunc(x)); }

#define YN_EMULATOR_EXTREMES(T)                    \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
YN_EMULATOR_EXTREMES(int)
YN_EMULATOR_EXTREMES(unsigned)
YN_EMULATOR_EXTREMES(long)
YN_EMULATOR_EXTREMES(unsigned long)
YN_EMULATOR_EXTREMES(long long)
YN_EMULATOR_EXTREMES(unsigned long long)
#undef YN_EMULATOR_EXTREMES
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
