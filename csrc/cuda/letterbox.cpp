#include "cuda/letterbox.h"

namespace yolonas::cuda {

void letterbox(const TensorView& image, const TensorView& out, const LetterboxParams& params, Stream stream) {
  letterbox_u8_f32(check_letterbox(image, out, params), stream);
}

}  // namespace yolonas::cuda
