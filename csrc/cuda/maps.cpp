#include "cuda/maps.h"

namespace yolonas::cuda {

const char* name(Elem elem) noexcept {
  switch (elem) {
    case Elem::f32:
      return "float32";
    case Elem::f16:
      return "float16";
    default:
      return "int8";
  }
}

}  // namespace yolonas::cuda
