#include "cpu/letterbox.h"

#include "core/parallel.h"

namespace yolonas::cpu {

void letterbox(const TensorView& image, const TensorView& out, const LetterboxParams& params) {
  LetterboxWorkspace workspace;
  letterbox(kernels(), check_letterbox(image, out, params), workspace);
}

void letterbox(const CpuKernels& table, const LetterboxFrame& frame, LetterboxWorkspace& workspace) {
  LetterboxArgs args{};
  static_cast<LetterboxFrame&>(args) = frame;
  ResizeTable &x = workspace.x, &y = workspace.y;
  resize_table(args.src_w, args.resized_w, false, x);
  resize_table(args.src_h, args.resized_h, true, y);
  args.x = {x.index.data(), x.weights.data()};
  args.y = {y.index.data(), y.weights.data()};
  while (args.x_inner < args.resized_w && x.index[static_cast<std::size_t>(args.x_inner)] + 2 < args.src_w)
    ++args.x_inner;

  const std::int64_t piece_workspace = letterbox_workspace(args);
  // One piece of rows a thread, each with its own workspace.
  const std::int64_t threads = num_threads();  // read once: another thread may change it
  const std::int64_t grain = (args.frame_h + threads - 1) / threads;
  const std::int64_t pieces = (args.frame_h + grain - 1) / grain;
  workspace.rows.resize(static_cast<std::size_t>(piece_workspace * pieces));
  parallel_for(pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t piece = begin; piece < end; ++piece) {
      const std::int64_t first = piece * grain, stop = first + grain;
      table.letterbox_rows(args, first, stop < args.frame_h ? stop : args.frame_h,
                           workspace.rows.data() + piece * piece_workspace);
    }
  });
}

}  // namespace yolonas::cpu
