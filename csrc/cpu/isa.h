// Which instruction sets this processor and operating system offer.
#pragma once

namespace yolonas::cpu {

bool has_avx2_fma() noexcept;  // CPUID says AVX2 and FMA, and the OS saves the ymm registers

}  // namespace yolonas::cpu
