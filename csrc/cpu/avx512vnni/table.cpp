// AVX-512 with VNNI: the integer convolutions. The rest is that of AVX-512; dispatch.cpp puts both together.
#include <immintrin.h>

#include "cpu/kernels.h"

namespace yolonas::cpu::avx512vnni {
namespace {

#include "cpu/avx512/vec.h"
#include "cpu/simd/gemm-inl.h"
// (keeps the order: the cuts into tiles before their user)
#include "cpu/avx512/sums-inl.h"
// (and)
#include "cpu/avx512/shorts-inl.h"
// (and)
#include "cpu/avx512vnni/dot2-inl.h"
#include "cpu/avx512vnni/dot4-inl.h"
#include "cpu/simd/gemm_s8-inl.h"
// (and)
#include "cpu/simd/conv2d_s8-inl.h"
// (and)
#include "cpu/avx512vnni/shifted-inl.h"
#include "cpu/simd/pool_s8-inl.h"
#include "cpu/simd/quantize_s8-inl.h"
#include "cpu/simd/winograd43_s8-inl.h"

}  // namespace

extern const QuantKernels kTable;
const QuantKernels kTable = {conv2d_direct_any_s8,    conv2d_pointwise_any_s8, max_pool5_s8, quantize_s8, dequantize_s8,
                             winograd43_s8_workspace, conv2d_winograd43_s8,    2.2,          30};

}  // namespace yolonas::cpu::avx512vnni
