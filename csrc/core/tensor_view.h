// A pointer with its shape. Owns nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <string>

#include "core/check.h"

namespace yolonas {

enum class DType { f32, f64, f16, s8, u8, s16, s32, s64, boolean };
enum class Device { cpu, cuda };

const char* name(DType dtype) noexcept;
const char* name(Device device) noexcept;

inline constexpr int kMaxRank = 8;

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  int device_index = 0;
  int rank = 0;
  std::array<std::int64_t, kMaxRank> shape{};
  std::array<std::int64_t, kMaxRank> stride{};  // in elements
  bool writable = true;

  std::int64_t numel() const noexcept;
  bool is_contiguous() const noexcept;  // C order; sides of length 1 may have any stride

  template <class T>
  T* as() const noexcept {
    return static_cast<T*>(data);
  }
};

// "(2, 3, 640, 640)"
std::string shape_text(const TensorView& view);

// Whether two contiguous tensors share a byte.
bool overlap(const TensorView& a, const TensorView& b) noexcept;

// Throws unless `view` is a C-contiguous tensor of this dtype and rank; `op` and `argument` go into the text.
// A side of -1 matches any length. `what` names the sides, e.g. "(N, A, 4)".
void check_tensor(const TensorView& view, const char* op, const char* argument, DType dtype,
                  std::initializer_list<std::int64_t> shape, const char* what);

// The same for a tensor that will be written to.
void check_output(const TensorView& view, const char* op, const char* argument, DType dtype,
                  std::initializer_list<std::int64_t> shape, const char* what);

}  // namespace yolonas
