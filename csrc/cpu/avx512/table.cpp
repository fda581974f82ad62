// AVX-512 (F, BW, DQ, VL): the convolutions on sixteen lanes. The rest stays on eight, as in AVX2.
#include <immintrin.h>

#include "cpu/kernels.h"

namespace yolonas::cpu::avx512 {
namespace {

namespace eight {
#include "cpu/avx2/vec.h"
#include "cpu/simd/math-inl.h"
// (keeps the order: math before its users)
#include "cpu/avx2/letterbox-inl.h"
#include "cpu/simd/post-inl.h"
#include "cpu/simd/quantize-inl.h"
}  // namespace eight

#include "cpu/avx512/vec.h"
// (and on sixteen lanes)
#include "cpu/simd/gemm-inl.h"
// (keeps the order: the matrix product before its users)
#include "cpu/simd/conv2d-inl.h"
#include "cpu/simd/pool-inl.h"
#include "cpu/simd/winograd-inl.h"
// (and)
#include "cpu/simd/winograd43-inl.h"
#include "cpu/simd/winograd_s2-inl.h"
// (and on integers)
#include "cpu/avx512/sums-inl.h"
// (keeps the order: registers before dot products, and these before their users)
#include "cpu/avx512/shorts-inl.h"
// (and)
#include "cpu/avx512/dot2-inl.h"
#include "cpu/avx512/dot4-inl.h"
#include "cpu/simd/gemm_s8-inl.h"
// (and)
#include "cpu/simd/conv2d_s8-inl.h"
#include "cpu/simd/pool_s8-inl.h"
#include "cpu/simd/quantize_s8-inl.h"
#include "cpu/simd/winograd43_s8-inl.h"

}  // namespace

extern const CpuKernels kTable;
const CpuKernels kTable = {
    "avx512",
    eight::letterbox_rows,
    eight::collect_greater_f32,
    eight::sigmoid_f32,
    eight::dfl_expectation_f32,
    eight::class_max_f32,
    eight::nms_f32,
    eight::fake_quantize_f32,
    eight::fake_quantize_backward_f32,
    kConvBlock,
    conv2d_direct_f32,
    conv2d_pointwise_f32,
    winograd43_workspace,
    conv2d_winograd43_f32,
    winograd_s2_workspace,
    conv2d_winograd_s2_f32,
    max_pool5_f32,
    {conv2d_direct_s8, conv2d_pointwise_s8, max_pool5_s8, quantize_s8, dequantize_s8, winograd43_s8_workspace,
     conv2d_winograd43_s8, 1.2, 0},
};

}  // namespace yolonas::cpu::avx512
