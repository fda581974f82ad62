#include "core/tensor_view.h"

namespace yolonas {

const char* name(DType dtype) noexcept {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::f64:
      return "float64";
    case DType::f16:
      return "float16";
    case DType::s8:
      return "int8";
    case DType::u8:
      return "uint8";
    case DType::s16:
      return "int16";
    case DType::s32:
      return "int32";
    case DType::s64:
      return "int64";
    case DType::boolean:
      return "bool";
  }
  return "unknown";
}

const char* name(Device device) noexcept { return device == Device::cpu ? "cpu" : "cuda"; }

namespace {

std::int64_t item_bytes(DType dtype) noexcept {
  switch (dtype) {
    case DType::f64:
    case DType::s64:
      return 8;
    case DType::f32:
    case DType::s32:
      return 4;
    case DType::f16:
    case DType::s16:
      return 2;
    default:
      return 1;
  }
}

}  // namespace

std::int64_t TensorView::numel() const noexcept {
  // Empty first: the other sides of an empty tensor may be so long that their product overflows.
  for (int axis = 0; axis < rank; ++axis) {
    if (shape[axis] == 0) return 0;
  }
  std::int64_t count = 1;
  for (int axis = 0; axis < rank; ++axis) count *= shape[axis];
  return count;
}

bool TensorView::is_contiguous() const noexcept {
  if (numel() == 0) return true;
  std::int64_t expected = 1;
  for (int axis = rank - 1; axis >= 0; --axis) {
    if (shape[axis] != 1 && stride[axis] != expected) return false;
    expected *= shape[axis];
  }
  return true;
}

std::string shape_text(const TensorView& view) {
  std::string text = "(";
  for (int axis = 0; axis < view.rank; ++axis) {
    if (axis) text += ", ";
    text += std::to_string(view.shape[axis]);
  }
  return text + (view.rank == 1 ? ",)" : ")");
}

bool overlap(const TensorView& a, const TensorView& b) noexcept {
  const char *a0 = a.as<const char>(), *b0 = b.as<const char>();
  const std::int64_t a_bytes = a.numel() * item_bytes(a.dtype), b_bytes = b.numel() * item_bytes(b.dtype);
  return a_bytes && b_bytes && a0 < b0 + b_bytes && b0 < a0 + a_bytes;
}

void check_tensor(const TensorView& view, const char* op, const char* argument, DType dtype,
                  std::initializer_list<std::int64_t> shape, const char* what) {
  YN_CHECK_TYPE(view.dtype == dtype, op, ": ", argument, " must be ", name(dtype), ", got ", name(view.dtype));
  bool fits = view.rank == static_cast<int>(shape.size());
  if (fits) {
    int axis = 0;
    for (const std::int64_t side : shape) {
      fits = fits && (side < 0 || view.shape[axis] == side);
      ++axis;
    }
  }
  if (!fits) {
    std::string expected;
    for (const std::int64_t side : shape) {
      expected += (expected.empty() ? "" : ", ") + (side < 0 ? std::string("*") : std::to_string(side));
    }
    YN_CHECK(false, op, ": ", argument, " must have shape ", what, " = (", expected, "), got ", shape_text(view));
  }
  YN_CHECK(view.is_contiguous(), op, ": ", argument, " of shape ", shape_text(view),
           " must be C-contiguous; pass a contiguous copy");
  YN_CHECK(view.data != nullptr || view.numel() == 0, op, ": ", argument, " has no memory");
}

void check_output(const TensorView& view, const char* op, const char* argument, DType dtype,
                  std::initializer_list<std::int64_t> shape, const char* what) {
  check_tensor(view, op, argument, dtype, shape, what);
  YN_CHECK(view.writable, op, ": ", argument, " is written to and must not be read-only");
}

}  // namespace yolonas
