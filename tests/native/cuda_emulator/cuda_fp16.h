// Float16 as cuda_fp16.h has it: what csrc/cuda uses of it.
#pragma once

#include "device_functions.h"

namespace emulator {

// Every NaN becomes 0x7fffffff, as in the instruction.
inline float float_of_half(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  const std::uint32_t magnitude = half & 0x7fff;
  if (magnitude > 0x7c00) return bits_as<float>(0x7fffffffu);
  if (magnitude == 0x7c00) return bits_as<float>(sign | 0x7f800000);
  if (magnitude >= 0x0400) return bits_as<float>(sign | ((magnitude << 13) + (112u << 23)));
  const float small = static_cast<float>(magnitude) * 0x1p-24f;  // exact
  return sign ? -small : small;
}

// To nearest, ties to even; every NaN becomes 0x7fff.
inline std::uint16_t half_of_float(float value) {
  const auto bits = bits_as<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);  // from 65520 on
  std::uint32_t shift = 13, number = magnitude - (112u << 23);
  if (magnitude < 0x38800000) {  // subnormal or 0
    const std::uint32_t exponent = magnitude >> 23;
    if (exponent < 102) return static_cast<std::uint16_t>(sign);  // below half of the least one
    number = (magnitude & 0x7fffff) | 0x800000;
    shift = 126 - exponent;
  }
  const std::uint32_t kept = number >> shift, rest = number & ((1u << shift) - 1), half = 1u << (shift - 1);
  const std::uint32_t up = rest > half || (rest == half && (kept & 1));
  return static_cast<std::uint16_t>(sign | (kept + up));
}

}  // namespace emulator

struct __half {
  std::uint16_t bits;
  __half() = default;
  __half(float value) : bits(emulator::half_of_float(value)) {}
  operator float() const { return emulator::float_of_half(bits); }
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;
static_assert(sizeof(__half) == 2 && std::is_trivially_copyable_v<__half> && sizeof(__half2) == 4);

inline __half __float2half_rn(float x) { return __half(x); }
inline __half __float2half(float x) { return __half(x); }
inline float __half2float(__half x) { return emulator::float_of_half(x.bits); }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 x) { return {__half(x.x), __half(x.y)}; }
inline float2 __half22float2(__half2 x) { return {__half2float(x.x), __half2float(x.y)}; }
inline __half __low2half(__half2 x) { return x.x; }
inline __half __high2half(__half2 x) { return x.y; }
inline float __low2float(__half2 x) { return __half2float(x.x); }
inline float __high2float(__half2 x) { return __half2float(x.y); }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) {
  __half x;
  x.bits = bits;
  return x;
}
inline bool __hisnan(__half x) { return (x.bits & 0x7fff) > 0x7c00; }
// The greater one; the number where one is NaN; +0 of two zeros.
inline __half __hmax(__half a, __half b) {
  if (__hisnan(a)) return __hisnan(b) ? __ushort_as_half(0x7fff) : b;
  if (__hisnan(b)) return a;
  const float x = a, y = b;
  if (x == y) return a.bits & 0x8000 ? b : a;
  return x < y ? b : a;
}
inline __half __hmin(__half a, __half b) {
  if (__hisnan(a)) return __hisnan(b) ? __ushort_as_half(0x7fff) : b;
  if (__hisnan(b)) return a;
  const float x = a, y = b;
  if (x == y) return a.bits & 0x8000 ? a : b;
  return y < x ? b : a;
}
inline __half2 __hmax2(__half2 a, __half2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
inline __half2 __hmin2(__half2 a, __half2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
