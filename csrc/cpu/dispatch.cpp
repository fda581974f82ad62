// Tables best first; the choice is made once.
#include <atomic>
#include <cstring>
#include <string>

#include "core/check.h"
#include "core/env.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace yolonas::cpu {

namespace generic {
extern const CpuKernels kTable;
}
#if defined(YOLONAS_HAVE_AVX512)
namespace avx512 {
extern const CpuKernels kTable;
}
#endif
#if defined(YOLONAS_HAVE_AVX512VNNI)
namespace avx512vnni {
extern const QuantKernels kTable;
}
#endif
#if defined(YOLONAS_HAVE_AVX2)
namespace avx2 {
extern const CpuKernels kTable;
}
#endif
#if defined(YOLONAS_HAVE_NEON)
namespace neon {
extern const CpuKernels kTable;
}
#endif

namespace {

bool runs_anywhere() noexcept { return true; }

#if defined(YOLONAS_HAVE_AVX512VNNI)
// Put together here and not in avx512vnni/, where it would be code for that instruction set that runs on any processor.
const CpuKernels* avx512vnni_table() {
  static const CpuKernels table = [] {
    CpuKernels both = avx512::kTable;
    both.isa = "avx512vnni";
    both.s8 = avx512vnni::kTable;
    return both;
  }();
  return &table;
}
#endif

struct Candidate {
  const CpuKernels* table;
  bool (*runs_here)() noexcept;
};

const Candidate kCandidates[] = {
#if defined(YOLONAS_HAVE_AVX512VNNI)
    {avx512vnni_table(), has_avx512vnni},
#endif
#if defined(YOLONAS_HAVE_AVX512)
    {&avx512::kTable, has_avx512},
#endif
#if defined(YOLONAS_HAVE_AVX2)
    {&avx2::kTable, has_avx2_fma},
#endif
#if defined(YOLONAS_HAVE_NEON)
    {&neon::kTable, runs_anywhere},
#endif
    {&generic::kTable, runs_anywhere},
};

const CpuKernels& kernels_by_name(const char* isa) {
  for (const Candidate& candidate : kCandidates) {
    if (std::strcmp(candidate.table->isa, isa) != 0) continue;
    YN_CHECK(candidate.runs_here(), "YOLONAS_CPU_ISA: this processor cannot run '", isa, "'; it can run ",
             available_isas());
    return *candidate.table;
  }
  YN_CHECK(false, "YOLONAS_CPU_ISA: must be one of ", available_isas(), ", got '", isa, "'");
  return generic::kTable;
}

const CpuKernels& first_choice() {
  const std::string forced = env_cpu_isa();
  if (!forced.empty()) return kernels_by_name(forced.c_str());
  for (const Candidate& candidate : kCandidates) {
    if (candidate.runs_here()) return *candidate.table;
  }
  return generic::kTable;
}

std::atomic<const CpuKernels*>& chosen() {
  static std::atomic<const CpuKernels*> table{&first_choice()};
  return table;
}

}  // namespace

const char* available_isas() {
  static const std::string list = [] {
    std::string names;
    for (const Candidate& candidate : kCandidates) {
      if (candidate.runs_here()) names += (names.empty() ? "" : ", ") + std::string(candidate.table->isa);
    }
    return names;
  }();
  return list.c_str();
}

const CpuKernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

void use_isa(const char* isa) { chosen().store(&kernels_by_name(isa), std::memory_order_relaxed); }

}  // namespace yolonas::cpu
