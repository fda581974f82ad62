// AVX2 and FMA. Only the letterbox rows and the dot products differ in shape from the bodies shared by all ISAs.
#include <immintrin.h>

#include "cpu/kernels.h"

namespace yolonas::cpu::avx2 {
namespace {

#include "cpu/avx2/vec.h"
// (keeps the order: the vector before its users)
#include "cpu/avx2/dot4-inl.h"
#include "cpu/avx2/letterbox-inl.h"
// (and, on the registers of dot4)
#include "cpu/avx2/dot2-inl.h"
// (and, with these)
#include "cpu/simd/table-inl.h"

}  // namespace

extern const CpuKernels kTable;
constexpr CpuKernels kTable = table_of("avx2", 1.05);

}  // namespace yolonas::cpu::avx2
