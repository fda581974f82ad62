#include "cuda/conv_kernel.h"

namespace yolonas::cuda {

const ConvEntry kHalfConvs[] = YN_CONV_TILES(Half);
const int kHalfConvCount = static_cast<int>(sizeof(kHalfConvs) / sizeof(kHalfConvs[0]));

}  // namespace yolonas::cuda
