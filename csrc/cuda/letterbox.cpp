#include "cuda/letterbox.h"

namespace yolonas::cuda {

void letterbox(const TensorView& image, const TensorView& out, const LetterboxParams& params, Stream stream) {
  check_letterbox(image, out, params);
  LetterboxArgs args{};
  args.image = image.as<const std::uint8_t>();
  args.src_h = image.shape[0];
  args.src_w = image.shape[1];
  args.row_bytes = args.src_h == 1 ? 3 * args.src_w : image.stride[0];
  args.out = out.as<float>();
  args.hwc = params.hwc;
  args.frame_h = out.shape[params.hwc ? 0 : 1];
  args.frame_w = out.shape[params.hwc ? 1 : 2];
  args.swap_channels = params.swap_channels;
  args.top = params.top;
  args.left = params.left;
  args.resized_h = params.resized_h;
  args.resized_w = params.resized_w;
  for (int c = 0; c < 3; ++c) {
    args.mean[c] = params.mean[c];
    args.divisor[c] = params.divisor[c];
    args.pad[c] = (static_cast<float>(params.pad_value) - params.mean[c]) / params.divisor[c];
  }
  letterbox_u8_f32(args, stream);
}

}  // namespace yolonas::cuda
