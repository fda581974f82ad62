#include "core/env.h"

#include <cstdlib>

namespace yolonas {
namespace {

std::string read(const char* variable) {
  const char* value = std::getenv(variable);
  return value ? value : "";
}

}  // namespace

std::string env_cpu_isa() { return read("YOLONAS_CPU_ISA"); }

std::string env_num_threads() {
  const std::string own = read("YOLONAS_NUM_THREADS");
  return own.empty() ? read("OMP_NUM_THREADS") : own;
}

bool env_cuda_sync() {
  const std::string value = read("YOLONAS_CUDA_SYNC");
  return !value.empty() && value != "0";
}

bool env_cuda_graph() { return read("YOLONAS_CUDA_GRAPH") != "0"; }

bool env_cuda_overlap() { return read("YOLONAS_CUDA_OVERLAP") != "0"; }

}  // namespace yolonas
