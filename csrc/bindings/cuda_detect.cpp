// The kernels between head outputs and detections, for tests.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace yolonas::bindings {
void bind_cuda_detect(py::module_& module);

void bind_cuda_detect(py::module_& module) { static_cast<void>(module); }

}  // namespace yolonas::bindings
