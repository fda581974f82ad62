// Feature maps as functions of the module yolonas._cuda take them, for tests: on channel ranges of wider buffers.
#pragma once

#include <array>

#include "bindings/cuda_args.h"

namespace yolonas::bindings {

// Pictures (N, H, W, C) on a device whose pixels lie evenly in raster order.
struct Map {
  static constexpr std::int64_t kMostElements = 0x7fffffff;

  Map(CudaArgs& args, const pybind11::handle& object, const char* op, const char* argument)
      : arg(args.take(object, argument)) {
    const TensorView& tensor = arg.view();
    const auto& [n, h, w, c] = sides(tensor);
    view.channels = static_cast<int>(c);
    const bool empty = tensor.numel() == 0;  // such a tensor may have any strides
    const std::int64_t pixel = empty   ? c
                               : w > 1 ? tensor.stride[2]
                               : h > 1 ? tensor.stride[1]
                               : n > 1 ? tensor.stride[0]
                                       : c;
    const bool typed = tensor.dtype == DType::f32 || tensor.dtype == DType::f16 || tensor.dtype == DType::s8;
    const bool even = (tensor.stride[3] == 1 || c == 1) && (h == 1 || tensor.stride[1] == w * pixel) &&
                      (n == 1 || tensor.stride[0] == h * w * pixel);
    YN_CHECK(typed && tensor.rank == 4 && (empty || even) && pixel >= c && pixel <= kMostElements, op, ": ", argument,
             " must be float32, float16 or int8 of shape (N, H, W, C), channels of a contiguous tensor, got ",
             name(tensor.dtype), " ", shape_text(tensor));
    for (const std::int64_t side : {n, h, w}) {
      YN_CHECK(side <= kMostElements, op, ": ", argument, " has a side that is too long, got ", shape_text(tensor));
    }
    view.data = tensor.data;
    view.elem = tensor.dtype == DType::f32   ? cuda::Elem::f32
                : tensor.dtype == DType::f16 ? cuda::Elem::f16
                                             : cuda::Elem::s8;
    view.pixel = static_cast<int>(pixel);
  }

  static std::array<std::int64_t, 4> sides(const TensorView& tensor) {
    return {tensor.shape[0], tensor.shape[1], tensor.shape[2], tensor.shape[3]};
  }
  int side(int axis) const { return static_cast<int>(arg.view().shape[static_cast<std::size_t>(axis)]); }
  std::int64_t pixels() const { return static_cast<std::int64_t>(side(0)) * side(1) * side(2); }

  void check_type(const char* op, const char* argument, cuda::Elem elem) const {
    YN_CHECK_TYPE(view.elem == elem, op, ": ", argument, " must be ", name(elem), ", got ", name(view.elem));
  }
  void check_sides(const char* op, const char* argument, std::int64_t n, std::int64_t h, std::int64_t w) const {
    YN_CHECK(side(0) == n && side(1) == h && side(2) == w, op, ": ", argument, " must have ", n, " pictures of ", h,
             "x", w, ", got ", shape_text(arg.view()));
  }

  TensorArg arg;
  cuda::MapView view;
};

}  // namespace yolonas::bindings
