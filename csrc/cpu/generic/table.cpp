// The variant for any processor: plain loops over eight lanes.
#include "cpu/kernels.h"

namespace yolonas::cpu::generic {
namespace {

#include "cpu/generic/vec.h"
// (keeps the order: the vector before its users)
#include "cpu/generic/letterbox-inl.h"
#include "cpu/simd/dot4-inl.h"
// (and, on its types)
#include "cpu/simd/dot2-inl.h"
// (and, with these)
#include "cpu/simd/table-inl.h"

}  // namespace

extern const CpuKernels kTable;
constexpr CpuKernels kTable = table_of("generic", 3.0);

}  // namespace yolonas::cpu::generic
