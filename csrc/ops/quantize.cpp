#include "ops/quantize.h"

#include <cmath>

namespace yolonas {
namespace {

void check_same(const char* op, const char* argument, const TensorView& view, const TensorView& x) {
  YN_CHECK_TYPE(view.dtype == DType::f32, op, ": ", argument, " must be float32, got ", name(view.dtype));
  bool same = view.rank == x.rank;
  for (int axis = 0; same && axis < x.rank; ++axis) same = view.shape[axis] == x.shape[axis];
  YN_CHECK(same, op, ": ", argument, " must have the shape of x, ", shape_text(x), ", got ", shape_text(view));
  YN_CHECK(view.is_contiguous(), op, ": ", argument, " of shape ", shape_text(view),
           " must be C-contiguous; pass a contiguous copy");
}

}  // namespace

ChannelSplit check_fake_quantize(const char* op, const TensorView& x, const TensorView& scale,
                                 const FakeQuantizeParams& p, const TensorView& y) {
  check_same(op, "x", x, x);
  check_same(op, "out", y, x);
  YN_CHECK(y.writable, op, ": out is written to and must not be read-only");
  YN_CHECK(p.qmin < p.qmax && p.qmin >= -32768 && p.qmax <= 32767, op,
           ": quant_min must be below quant_max, both within 16 bits, got ", p.qmin, " and ", p.qmax);
  YN_CHECK(p.axis >= -1 && p.axis < x.rank, op, ": axis must name an axis of x ", shape_text(x), ", got ", p.axis);
  ChannelSplit split;
  if (p.axis < 0) {
    split.inner = x.numel();
  } else {
    for (int axis = 0; axis < x.rank; ++axis) {
      (axis < p.axis ? split.outer : axis == p.axis ? split.channels : split.inner) *= x.shape[axis];
    }
  }
  check_tensor(scale, op, "scale", DType::f32, {split.channels}, "(channels,)");
  if (scale.device == Device::cpu) {
    for (std::int64_t c = 0; c < split.channels; ++c) {
      const float s = scale.as<const float>()[c];
      YN_CHECK(std::isfinite(s) && s > 0, op, ": scale must be positive and finite, got ", s, " for channel ", c);
    }
  }
  return split;
}

}  // namespace yolonas
