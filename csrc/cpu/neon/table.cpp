// NEON, which every 64-bit ARM processor has: the float kernels on two registers at a time. The letterbox is the plain
// one, whose loops the compiler turns into NEON.
#include <arm_neon.h>

#include "cpu/kernels.h"

namespace yolonas::cpu::neon {
namespace {

#include "cpu/neon/vec.h"
// (keeps the order: the vector before its users)
#include "cpu/generic/letterbox-inl.h"
#include "cpu/simd/dot4-inl.h"
// (and, on its types)
#include "cpu/simd/dot2-inl.h"
// (and, with these)
#include "cpu/simd/table-inl.h"

}  // namespace

extern const CpuKernels kTable;
constexpr CpuKernels kTable = table_of("neon", 3.0);

}  // namespace yolonas::cpu::neon
