#include "cpu/isa.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#endif

namespace yolonas::cpu {

#if defined(__x86_64__)
namespace {

// Bits of CPUID leaf 7's EBX and ECX, and of XCR0.
constexpr unsigned kAvx2 = 1u << 5;
constexpr unsigned kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
constexpr unsigned kVnni = 1u << 11;
constexpr unsigned kYmmSaved = 0x06, kZmmSaved = 0xe6;  // with SSE's, the masks' and both zmm bits

// FMA, the wanted features of leaf 7 in EBX and ECX, and registers that the operating system saves.
bool has(unsigned features_b, unsigned features_c, unsigned saved) noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  constexpr unsigned kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28;
  if ((c & (kFma | kOsxsave | kAvx)) != (kFma | kOsxsave | kAvx)) return false;
  unsigned low = 0, high = 0;  // XCR0, by opcode so that this file needs no ISA flag
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & saved) != saved) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & features_b) == features_b && (c & features_c) == features_c;
}

}  // namespace

bool has_avx2_fma() noexcept { return has(kAvx2, 0, kYmmSaved); }
bool has_avx512() noexcept { return has(kAvx2 | kAvx512, 0, kZmmSaved); }
bool has_avx512vnni() noexcept { return has(kAvx2 | kAvx512, kVnni, kZmmSaved); }
#else
bool has_avx2_fma() noexcept { return false; }
bool has_avx512() noexcept { return false; }
bool has_avx512vnni() noexcept { return false; }
#endif

}  // namespace yolonas::cpu
