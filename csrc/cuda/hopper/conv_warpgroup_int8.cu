#include "cuda/hopper/conv_warpgroup.h"

namespace yolonas::cuda {

const ConvEntry kWarpgroupInt8Convs[] = YN_WARPGROUP_TILES(Int8);
const int kWarpgroupInt8ConvCount = static_cast<int>(sizeof(kWarpgroupInt8Convs) / sizeof(kWarpgroupInt8Convs[0]));

}  // namespace yolonas::cuda
