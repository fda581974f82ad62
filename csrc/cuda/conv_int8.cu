#include "cuda/conv_kernel.h"

namespace yolonas::cuda {

const ConvEntry kInt8Convs[] = YN_CONV_TILES(Int8);
const int kInt8ConvCount = static_cast<int>(sizeof(kInt8Convs) / sizeof(kInt8Convs[0]));

}  // namespace yolonas::cuda
