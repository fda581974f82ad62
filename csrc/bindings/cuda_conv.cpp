// Single convolutions, for tests and for the tuner's measurements.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace yolonas::bindings {
void bind_cuda_conv(py::module_& module);

void bind_cuda_conv(py::module_& module) { static_cast<void>(module); }

}  // namespace yolonas::bindings
