#include "cuda/hopper/conv_warpgroup.h"

namespace yolonas::cuda {

const ConvEntry kWarpgroupHalfConvs[] = YN_WARPGROUP_TILES(Half);
const int kWarpgroupHalfConvCount = static_cast<int>(sizeof(kWarpgroupHalfConvs) / sizeof(kWarpgroupHalfConvs[0]));

}  // namespace yolonas::cuda
