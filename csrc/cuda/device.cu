#include "core/check.h"
#include "core/env.h"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace yolonas::cuda {
namespace {

constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__};  // 10 * compute capability of each target, ascending

std::string version_text(int version) { return concat(version / 1000, '.', version % 1000 / 10); }

std::string architectures_text() {
  std::string text;
  for (const std::string& name : architectures()) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// "sm_75", or empty if it cannot be told.
std::string current_architecture() {
  int device = 0, major = 0, minor = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
  cudaGetLastError();
  return known ? concat("sm_", major, minor) : "";
}

}  // namespace

int device_count() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

std::vector<std::string> architectures() {
  std::vector<std::string> names;
  for (const int architecture : kArchitectures) names.push_back(concat("sm_", architecture / 10));
  return names;
}

std::string runtime_version() { return version_text(CUDART_VERSION); }

std::string driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess) cudaGetLastError();
  return version > 0 ? version_text(version) : "";
}

DeviceGuard::DeviceGuard(const char* op, int device) {
  int current = 0;
  YN_CUDA_CHECK(op, cudaGetDevice(&current));
  if (current == device) return;
  YN_CUDA_CHECK(op, cudaSetDevice(device));
  former_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (former_ >= 0) cudaSetDevice(former_);
}

void raise_cuda_error(const char* op, cudaError_t error) {
  cudaGetLastError();  // the error is reported once
  const std::string text = concat(op, ": CUDA error: ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")");
  switch (error) {
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion: {
      const std::string device = current_architecture();
      throw std::runtime_error(concat(op, ": no code for this device: built for ", architectures_text(),
                                      "; this device is ", device.empty() ? "unknown" : device,
                                      "; rebuild with its number in CMAKE_CUDA_ARCHITECTURES (", text, ")"));
    }
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver: {
      const std::string driver = driver_version();
      throw std::runtime_error(concat(text, "; built with CUDA ", runtime_version(), ", the driver ",
                                      driver.empty() ? std::string("is missing") : "supports CUDA " + driver));
    }
    case cudaErrorMemoryAllocation:
      throw OutOfMemory(text);
    default:
      // Errors inside kernels surface at a later call, which need not be the one to blame.
      throw std::runtime_error(sync_after_launch() ? text
                                                   : text +
                                                         "; it may come from an earlier launch: set "
                                                         "YOLONAS_CUDA_SYNC=1 to see which");
  }
}

bool sync_after_launch() {
  static const bool wanted = env_cuda_sync();
  return wanted;
}

}  // namespace yolonas::cuda
