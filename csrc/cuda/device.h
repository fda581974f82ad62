// Devices and versions, for plain C++. Nothing here needs a driver to be present but DeviceGuard.
#pragma once

#include <string>
#include <vector>

namespace yolonas::cuda {

// Devices that can be used; 0 without a driver or with one that is too old.
int device_count() noexcept;

// Architectures that the kernels were compiled for, ascending: "sm_75", "sm_80". The newest is there as PTX too in the
// default build.
std::vector<std::string> architectures();

// "13.0" style. The runtime is the one built in; the driver is the newest that the installed one supports, empty
// without a driver.
std::string runtime_version();
std::string driver_version();

// Makes a device current for a scope, and the former one afterwards. Throws std::runtime_error naming the op.
class DeviceGuard {
 public:
  DeviceGuard(const char* op, int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int former_ = -1;  // -1: nothing to restore
};

}  // namespace yolonas::cuda
