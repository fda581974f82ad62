#include "cpu/isa.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#endif

namespace yolonas::cpu {

#if defined(__x86_64__)
namespace {

// Bits of CPUID leaf 7's EBX, and of XCR0.
constexpr unsigned kAvx2 = 1u << 5;
constexpr unsigned kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
constexpr unsigned kYmmSaved = 0x06, kZmmSaved = 0xe6;                   // with SSE's, the masks' and both zmm bits

// FMA, the wanted features of leaf 7, and registers that the operating system saves.
bool has(unsigned features, unsigned saved) noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  constexpr unsigned kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28;
  if ((c & (kFma | kOsxsave | kAvx)) != (kFma | kOsxsave | kAvx)) return false;
  unsigned low = 0, high = 0;  // XCR0, by opcode so that this file needs no ISA flag
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & saved) != saved) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & features) == features;
}

}  // namespace

bool has_avx2_fma() noexcept { return has(kAvx2, kYmmSaved); }
bool has_avx512() noexcept { return has(kAvx2 | kAvx512, kZmmSaved); }
#else
bool has_avx2_fma() noexcept { return false; }
bool has_avx512() noexcept { return false; }
#endif

}  // namespace yolonas::cpu
