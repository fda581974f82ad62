// The engine on a CUDA device.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace yolonas::bindings {
void bind_cuda_engine(py::module_& module);

void bind_cuda_engine(py::module_& module) { static_cast<void>(module); }

}  // namespace yolonas::bindings
