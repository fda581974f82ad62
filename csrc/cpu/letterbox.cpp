#include "cpu/letterbox.h"

#include <vector>

#include "core/parallel.h"
#include "cpu/kernels.h"

namespace yolonas::cpu {

void letterbox(const TensorView& image, const TensorView& out, const LetterboxParams& params) {
  check_letterbox(image, out, params);
  const ResizeTable x = resize_table(image.shape[1], params.resized_w, false);
  const ResizeTable y = resize_table(image.shape[0], params.resized_h, true);

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
  args.x = {x.index.data(), x.weights.data()};
  args.y = {y.index.data(), y.weights.data()};
  while (args.x_inner < args.resized_w && x.index[static_cast<std::size_t>(args.x_inner)] + 2 < args.src_w)
    ++args.x_inner;
  for (int c = 0; c < 3; ++c) {
    args.mean[c] = params.mean[c];
    args.divisor[c] = params.divisor[c];
    args.pad[c] = (static_cast<float>(params.pad_value) - params.mean[c]) / params.divisor[c];
  }

  const CpuKernels& table = kernels();
  const std::int64_t workspace = letterbox_workspace(args);
  // One piece of rows a thread, each with its own workspace.
  const std::int64_t threads = num_threads();  // read once: another thread may change it
  const std::int64_t grain = (args.frame_h + threads - 1) / threads;
  const std::int64_t pieces = (args.frame_h + grain - 1) / grain;
  std::vector<std::int16_t> buffer(static_cast<std::size_t>(workspace * pieces));
  parallel_for(pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t piece = begin; piece < end; ++piece) {
      const std::int64_t first = piece * grain, stop = first + grain;
      table.letterbox_rows(args, first, stop < args.frame_h ? stop : args.frame_h, buffer.data() + piece * workspace);
    }
  });
}

}  // namespace yolonas::cpu
