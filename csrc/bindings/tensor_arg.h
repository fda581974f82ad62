// The only place that turns Python objects into TensorView: through the buffer protocol, else through DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "core/tensor_view.h"

namespace yolonas::bindings {

// Holds the object's memory for the time of a call. Must be made and destroyed with the GIL held.
class TensorArg {
 public:
  // on_device: for memory of a device, of which another library is told that this call needs no order with its streams:
  // the caller names the stream that the tensor's work is queued on.
  TensorArg(const pybind11::handle& object, const char* op, const char* argument, bool on_device = false);
  ~TensorArg();
  TensorArg(TensorArg&& other) noexcept;
  TensorArg(const TensorArg&) = delete;
  TensorArg& operator=(const TensorArg&) = delete;
  TensorArg& operator=(TensorArg&&) = delete;

  const TensorView& view() const { return view_; }

 private:
  void from_buffer(const char* op, const char* argument);
  void from_dlpack(const pybind11::object& capsule, const char* op, const char* argument);

  TensorView view_;
  Py_buffer buffer_{};
  bool has_buffer_ = false;
  pybind11::object capsule_;
};

// Throws for a tensor elsewhere.
void check_on_cpu(const TensorArg& tensor, const char* op, const char* argument);
TensorArg on_cpu(const pybind11::handle& object, const char* op, const char* argument);

// A list or tuple of tensors.
std::vector<TensorArg> tensor_list(const pybind11::sequence& objects, const char* op, const char* argument,
                                   bool on_device = false);
std::vector<TensorView> views(const std::vector<TensorArg>& arguments);

// Maps yolonas::TypeError, NotSupported and OutOfMemory; std::invalid_argument is ValueError already.
void register_exceptions();

}  // namespace yolonas::bindings
