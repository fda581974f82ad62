// What the functions of the module yolonas._cuda share.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "bindings/tensor_arg.h"
#include "core/check.h"
#include "cuda/maps.h"

namespace yolonas::bindings {

// The tensors of one call: all on the same CUDA device.
class CudaArgs {
 public:
  explicit CudaArgs(const char* op) : op_(op) {}

  TensorArg take(const pybind11::handle& object, const char* argument) {
    TensorArg tensor(object, op_, argument, true);
    place(tensor.view(), argument);
    return tensor;
  }

  std::vector<TensorArg> take_list(const pybind11::sequence& objects, const char* argument) {
    std::vector<TensorArg> tensors = tensor_list(objects, op_, argument, true);
    for (const TensorArg& tensor : tensors) place(tensor.view(), argument);
    return tensors;
  }

  int device() const { return device_; }

 private:
  void place(const TensorView& view, const char* argument) {
    YN_CHECK(view.device == Device::cuda, op_, ": ", argument, " must lie on a CUDA device, got ", name(view.device));
    if (device_ < 0) device_ = view.device_index;
    YN_CHECK(view.device_index == device_, op_, ": ", argument,
             " must lie on the device of the first tensor, cuda:", device_, ", got cuda:", view.device_index);
  }

  const char* op_;
  int device_ = -1;
};

inline cuda::Stream as_stream(std::uintptr_t stream) { return reinterpret_cast<cuda::Stream>(stream); }

}  // namespace yolonas::bindings
