// Which instruction sets this processor and operating system offer.
#pragma once

namespace yolonas::cpu {

bool has_avx2_fma() noexcept;    // CPUID says AVX2 and FMA, and the OS saves the ymm registers
bool has_avx512() noexcept;      // and F, BW, DQ and VL, and the OS saves the zmm and mask registers too
bool has_avx512vnni() noexcept;  // and VNNI

}  // namespace yolonas::cpu
