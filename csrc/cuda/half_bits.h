// Float16 on the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace yolonas::cuda {

inline constexpr float kLargestHalf = 65504.0f;

// The bits of the float16 number next to a finite value, ties to even; infinity from 65520 on.
inline std::uint16_t half_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x1p-14f) {  // subnormal: a multiple of 2^-24
    return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  std::memcpy(&bits, &magnitude, sizeof bits);
  bits += 0x0fffu + (bits >> 13 & 1u);  // may carry into the exponent
  return static_cast<std::uint16_t>(sign | ((bits >> 13) - (112u << 10)));
}

}  // namespace yolonas::cuda
