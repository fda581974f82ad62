#include "bindings/tensor_arg.h"

#include <cstring>

#include "bindings/dlpack_abi.h"

namespace py = pybind11;

namespace yolonas::bindings {
namespace {

// struct-module format of one element; native sizes only.
bool dtype_of_format(const char* format, std::int64_t item_size, DType& dtype) {
  if (!format) format = "B";
  if (*format == '@' || *format == '=' || *format == '<') ++format;
  if (format[0] == '\0' || format[1] != '\0') return false;
  const char code = format[0];
  if (code == '?') {
    dtype = DType::boolean;
  } else if (code == 'f' && item_size == 4) {
    dtype = DType::f32;
  } else if (code == 'd' && item_size == 8) {
    dtype = DType::f64;
  } else if (code == 'e' && item_size == 2) {
    dtype = DType::f16;
  } else if (code == 'B' || (code == 'c' && item_size == 1)) {
    dtype = DType::u8;
  } else if (std::strchr("bhilq", code)) {
    if (item_size == 1)
      dtype = DType::s8;
    else if (item_size == 2)
      dtype = DType::s16;
    else if (item_size == 4)
      dtype = DType::s32;
    else
      dtype = DType::s64;
  } else {
    return false;
  }
  return true;
}

bool dtype_of_dlpack(const dlpack::Tensor& t, DType& dtype) {
  if (t.type_lanes != 1) return false;
  switch (t.type_code << 8 | t.type_bits) {
    case dlpack::kFloat << 8 | 32:
      dtype = DType::f32;
      return true;
    case dlpack::kFloat << 8 | 64:
      dtype = DType::f64;
      return true;
    case dlpack::kFloat << 8 | 16:
      dtype = DType::f16;
      return true;
    case dlpack::kInt << 8 | 8:
      dtype = DType::s8;
      return true;
    case dlpack::kInt << 8 | 16:
      dtype = DType::s16;
      return true;
    case dlpack::kInt << 8 | 32:
      dtype = DType::s32;
      return true;
    case dlpack::kInt << 8 | 64:
      dtype = DType::s64;
      return true;
    case dlpack::kUInt << 8 | 8:
      dtype = DType::u8;
      return true;
    case dlpack::kBool << 8 | 8:
      dtype = DType::boolean;
      return true;
    default:
      return false;
  }
}

}  // namespace

TensorArg::TensorArg(const py::handle& object, const char* op, const char* argument, bool on_device) {
  if (PyObject_CheckBuffer(object.ptr())) {
    // Read-only memory is taken; check_output refuses it where it would be written to.
    if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_RECORDS) != 0) {
      PyErr_Clear();
      if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_RECORDS_RO) != 0) throw py::error_already_set();
    }
    has_buffer_ = true;
    try {
      from_buffer(op, argument);
    } catch (...) {
      PyBuffer_Release(&buffer_);
      throw;
    }
  } else if (py::hasattr(object, "__dlpack__")) {
    const py::object dlpack = object.attr("__dlpack__");
    from_dlpack(on_device ? dlpack(py::arg("stream") = -1) : dlpack(), op, argument);
  } else {
    YN_CHECK_TYPE(false, op, ": ", argument, " must be an array (buffer protocol or DLPack), got ",
                  Py_TYPE(object.ptr())->tp_name);
  }
}

void TensorArg::from_buffer(const char* op, const char* argument) {
  YN_CHECK_TYPE(dtype_of_format(buffer_.format, buffer_.itemsize, view_.dtype), op, ": ", argument,
                " has an unsupported dtype (format '", buffer_.format ? buffer_.format : "", "')");
  YN_CHECK(buffer_.ndim <= kMaxRank, op, ": ", argument, " must have at most ", kMaxRank, " axes, got ", buffer_.ndim);
  view_.data = buffer_.buf;
  view_.rank = buffer_.ndim;
  view_.writable = !buffer_.readonly;
  YN_CHECK_TYPE(buffer_.ndim == 0 || buffer_.shape, op, ": ", argument, " must tell its shape; pass an array");
  // Strides were asked for, but some exporters (ctypes, NumPy's datetime scalars) leave them out: C order then.
  std::uint64_t expected = 1;
  for (int axis = buffer_.ndim - 1; axis >= 0; --axis) {
    view_.shape[axis] = buffer_.shape[axis];
    view_.stride[axis] = static_cast<std::int64_t>(expected);
    expected *= static_cast<std::uint64_t>(buffer_.shape[axis]);
    if (!buffer_.strides) continue;
    YN_CHECK(buffer_.strides[axis] % buffer_.itemsize == 0, op, ": ", argument,
             " must have strides that are whole elements; pass a contiguous copy");
    view_.stride[axis] = buffer_.strides[axis] / buffer_.itemsize;
  }
  YN_CHECK(buffer_.strides || view_.numel() * buffer_.itemsize <= buffer_.len, op, ": ", argument, " of shape ",
           shape_text(view_), " must have that many elements, got ", buffer_.len, " bytes");
}

void TensorArg::from_dlpack(const py::object& capsule, const char* op, const char* argument) {
  capsule_ = capsule;
  auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
  if (!managed) throw py::error_already_set();
  // The capsule keeps its name, so its own destructor frees the tensor when this object goes.
  const dlpack::Tensor& t = managed->tensor;
  YN_CHECK_TYPE(dtype_of_dlpack(t, view_.dtype), op, ": ", argument, " has an unsupported dtype (DLPack code ",
                static_cast<int>(t.type_code), ", ", static_cast<int>(t.type_bits), " bits)");
  YN_CHECK(t.ndim >= 0 && t.ndim <= kMaxRank, op, ": ", argument, " must have at most ", kMaxRank, " axes, got ",
           t.ndim);
  YN_CHECK_TYPE(t.device_type == dlpack::kCpu || t.device_type == dlpack::kCudaHost || t.device_type == dlpack::kCuda ||
                    t.device_type == dlpack::kCudaManaged,
                op, ": ", argument, " must lie on a CPU or CUDA device, got DLPack device type ", t.device_type);
  view_.device = t.device_type == dlpack::kCuda || t.device_type == dlpack::kCudaManaged ? Device::cuda : Device::cpu;
  view_.device_index = t.device_id;
  view_.data = static_cast<char*>(t.data) + t.byte_offset;
  view_.rank = t.ndim;
  std::int64_t expected = 1;
  for (int axis = t.ndim - 1; axis >= 0; --axis) {
    view_.shape[axis] = t.shape[axis];
    view_.stride[axis] = t.strides ? t.strides[axis] : expected;
    expected *= t.shape[axis];
  }
}

TensorArg::TensorArg(TensorArg&& other) noexcept
    : view_(other.view_), buffer_(other.buffer_), has_buffer_(other.has_buffer_), capsule_(std::move(other.capsule_)) {
  other.has_buffer_ = false;
}

TensorArg::~TensorArg() {
  if (has_buffer_) PyBuffer_Release(&buffer_);
}

void check_on_cpu(const TensorArg& tensor, const char* op, const char* argument) {
  YN_CHECK(tensor.view().device == Device::cpu, op, ": ", argument, " must lie on the CPU, got device ",
           name(tensor.view().device), ":", tensor.view().device_index);
}

TensorArg on_cpu(const py::handle& object, const char* op, const char* argument) {
  TensorArg tensor(object, op, argument);
  check_on_cpu(tensor, op, argument);
  return tensor;
}

std::vector<TensorArg> tensor_list(const py::sequence& objects, const char* op, const char* argument, bool on_device) {
  std::vector<TensorArg> list;
  list.reserve(objects.size());
  for (std::size_t i = 0; i < objects.size(); ++i) {
    const py::object object = objects[i];  // owned: not every sequence keeps the items that it hands out
    list.emplace_back(object, op, argument, on_device);
  }
  return list;
}

std::vector<TensorView> views(const std::vector<TensorArg>& arguments) {
  std::vector<TensorView> list;
  list.reserve(arguments.size());
  for (const TensorArg& argument : arguments) list.push_back(argument.view());
  return list;
}

void register_exceptions() {
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    } catch (const NotSupported& e) {
      PyErr_SetString(PyExc_NotImplementedError, e.what());
    } catch (const OutOfMemory& e) {
      PyErr_SetString(PyExc_MemoryError, e.what());
    }
  });
}

}  // namespace yolonas::bindings
