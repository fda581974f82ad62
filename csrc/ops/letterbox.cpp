#include "ops/letterbox.h"

#include <cmath>

#include "ops/resize_entry.h"

namespace yolonas {
namespace {

constexpr std::int64_t kMaxSide = 1 << 20;  // keeps 3 * side and indices of a row in 32 bits

void check_image(const char* op, const char* argument, const TensorView& image) {
  YN_CHECK_TYPE(image.dtype == DType::u8, op, ": ", argument, " must be uint8, got ", name(image.dtype));
  YN_CHECK(image.rank == 3 && image.shape[2] == 3, op, ": ", argument, " must have shape (H, W, 3), got ",
           shape_text(image));
  const std::int64_t h = image.shape[0], w = image.shape[1];
  YN_CHECK(h > 0 && w > 0, op, ": ", argument, " must have at least one pixel, got shape ", shape_text(image));
  YN_CHECK(h <= kMaxSide && w <= kMaxSide, op, ": ", argument, " sides must be at most ", kMaxSide, ", got ",
           shape_text(image));
  YN_CHECK(image.stride[2] == 1 && (w == 1 || image.stride[1] == 3), op, ": ", argument, " of shape ",
           shape_text(image), " must have contiguous pixels; pass a contiguous copy");
  YN_CHECK(h == 1 || image.stride[0] >= 3 * w, op, ": ", argument,
           " rows must not overlap or run backwards, got a row stride of ", image.stride[0],
           "; pass a contiguous copy");
  YN_CHECK(image.data != nullptr, op, ": ", argument, " has no memory");
}

}  // namespace

LetterboxFrame check_letterbox(const TensorView& image, const TensorView& out, const LetterboxParams& p) {
  const char* op = "letterbox";
  check_output(out, op, "out", DType::f32,
               p.hwc ? std::initializer_list<std::int64_t>{-1, -1, 3} : std::initializer_list<std::int64_t>{3, -1, -1},
               p.hwc ? "(H, W, 3)" : "(3, H, W)");
  LetterboxFrame frame = check_letterbox(op, "image", image, out.shape[p.hwc ? 0 : 1], out.shape[p.hwc ? 1 : 2], p);
  frame.out = out.as<float>();
  return frame;
}

LetterboxFrame check_letterbox(const char* op, const char* argument, const TensorView& image, std::int64_t frame_h,
                               std::int64_t frame_w, const LetterboxParams& p) {
  check_image(op, argument, image);
  YN_CHECK(frame_h > 0 && frame_w > 0 && frame_h <= kMaxSide && frame_w <= kMaxSide, op,
           ": the frame must have between 1 and ", kMaxSide, " rows and columns, got ", frame_h, "x", frame_w);
  YN_CHECK(p.resized_h > 0 && p.resized_w > 0 && p.top >= 0 && p.left >= 0 && p.resized_h <= frame_h - p.top &&
               p.resized_w <= frame_w - p.left,
           op, ": a picture of ", p.resized_h, "x", p.resized_w, " at row ", p.top, ", column ", p.left,
           " must lie inside the frame of ", frame_h, "x", frame_w);
  YN_CHECK(p.pad_value >= 0 && p.pad_value <= 255, op, ": pad_value must lie in 0..255, got ", p.pad_value);
  for (int c = 0; c < 3; ++c) {
    YN_CHECK(std::isfinite(p.mean[c]) && std::isfinite(p.divisor[c]) && p.divisor[c] != 0.0f, op,
             ": mean and divisor must be finite and divisor not zero, got mean ", p.mean[c], ", divisor ", p.divisor[c],
             " for channel ", c);
  }
  LetterboxFrame frame{};
  frame.image = image.as<const std::uint8_t>();
  frame.src_h = image.shape[0];
  frame.src_w = image.shape[1];
  frame.row_bytes = frame.src_h == 1 ? 3 * frame.src_w : image.stride[0];
  frame.frame_h = frame_h;
  frame.frame_w = frame_w;
  frame.hwc = p.hwc;
  frame.swap_channels = p.swap_channels;
  frame.top = p.top;
  frame.left = p.left;
  frame.resized_h = p.resized_h;
  frame.resized_w = p.resized_w;
  for (int c = 0; c < 3; ++c) {
    frame.mean[c] = p.mean[c];
    frame.divisor[c] = p.divisor[c];
    frame.pad[c] = (static_cast<float>(p.pad_value) - p.mean[c]) / p.divisor[c];
  }
  return frame;
}

void resize_table(std::int64_t source, std::int64_t resized, bool keep_border_weights, ResizeTable& table) {
  table.index.resize(static_cast<std::size_t>(resized));
  table.weights.resize(static_cast<std::size_t>(resized));
  const double ratio = static_cast<double>(source) / static_cast<double>(resized);
  for (std::int64_t i = 0; i < resized; ++i) {
    const ResizeEntry entry = resize_entry(i, ratio, source, keep_border_weights);
    table.index[static_cast<std::size_t>(i)] = entry.index;
    table.weights[static_cast<std::size_t>(i)] = entry.weights;
  }
}

}  // namespace yolonas
