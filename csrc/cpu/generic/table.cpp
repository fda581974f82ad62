// The variant for any processor: plain loops over eight lanes.
#include "cpu/kernels.h"

namespace yolonas::cpu::generic {
namespace {

#include "cpu/generic/vec.h"
#include "cpu/simd/math-inl.h"
// (keeps the order: math before its users)
#include "cpu/simd/post-inl.h"
#include "cpu/simd/quantize-inl.h"
// (and)
#include "cpu/simd/gemm-inl.h"
// (keeps the order: the matrix product before its users)
#include "cpu/simd/conv2d-inl.h"
#include "cpu/simd/pool-inl.h"
#include "cpu/simd/winograd-inl.h"
// (and)
#include "cpu/simd/winograd43-inl.h"
#include "cpu/simd/winograd_s2-inl.h"
// (and on integers)
#include "cpu/simd/dot4-inl.h"
// (keeps the order: the dot product before its user)
#include "cpu/simd/conv2d_s8-inl.h"

inline void resize_row_x_plain(const LetterboxArgs&, const std::uint8_t*, std::int64_t, std::int16_t*, std::int64_t);
inline void finish_row_plain(const LetterboxArgs&, std::int64_t, std::int64_t, const std::int16_t*, const std::int16_t*,
                             std::int32_t, std::int64_t);

inline void resize_row_x(const LetterboxArgs& a, const std::uint8_t* source, std::int16_t* planes, std::int64_t plane) {
  resize_row_x_plain(a, source, 0, planes, plane);
}

inline void finish_row(const LetterboxArgs& a, std::int64_t row, const std::int16_t* upper, const std::int16_t* lower,
                       std::int32_t weights, std::int64_t plane) {
  finish_row_plain(a, row, 0, upper, lower, weights, plane);
}

#include "cpu/simd/letterbox-inl.h"

}  // namespace

extern const CpuKernels kTable;
const CpuKernels kTable = {
    "generic",
    letterbox_rows,
    collect_greater_f32,
    sigmoid_f32,
    dfl_expectation_f32,
    class_max_f32,
    nms_f32,
    fake_quantize_f32,
    fake_quantize_backward_f32,
    kConvBlock,
    conv2d_direct_f32,
    conv2d_pointwise_f32,
    winograd43_workspace,
    conv2d_winograd43_f32,
    winograd_s2_workspace,
    conv2d_winograd_s2_f32,
    max_pool5_f32,
    {conv2d_direct_s8, conv2d_pointwise_s8},
};

}  // namespace yolonas::cpu::generic
