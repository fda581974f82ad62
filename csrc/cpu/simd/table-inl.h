// All kernels on one Vec, and the table of them. Included inside an unnamed namespace, after the instruction set's Vec,
// letterbox rows and dot products.
#include "cpu/simd/math-inl.h"
// (keeps the order: math before its users)
#include "cpu/simd/post-inl.h"
#include "cpu/simd/quantize-inl.h"
// (and)
#include "cpu/simd/gemm-inl.h"
// (keeps the order: the matrix product before its users)
#include "cpu/simd/conv2d-inl.h"
#include "cpu/simd/gemm_s8-inl.h"
// (and)
#include "cpu/simd/conv2d_s8-inl.h"
#include "cpu/simd/pool-inl.h"
#include "cpu/simd/pool_s8-inl.h"
#include "cpu/simd/quantize_s8-inl.h"
#include "cpu/simd/winograd-inl.h"
#include "cpu/simd/winograd43_s8-inl.h"
// (and)
#include "cpu/simd/winograd43-inl.h"
#include "cpu/simd/winograd_s2-inl.h"

constexpr CpuKernels table_of(const char* isa, double winograd43_slower) {
  return {
      isa,
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
      {conv2d_direct_s8, conv2d_pointwise_s8, max_pool5_s8, quantize_s8, dequantize_s8, winograd43_s8_workspace,
       conv2d_winograd43_s8, winograd43_slower, 0},
  };
}
