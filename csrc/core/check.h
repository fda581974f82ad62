// Checks at the boundary: a failed one throws an exception whose text holds the values. Kernels never throw.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace yolonas {

// Wrong dtype or kind of object; becomes Python's TypeError. Wrong values and shapes are std::invalid_argument
// (ValueError).
class TypeError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A combination that this build does not have; becomes Python's NotImplementedError.
class NotSupported : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// More memory than a device has left; becomes Python's MemoryError, with its text.
class OutOfMemory : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace yolonas

#define YN_CHECK(condition, ...)                                                 \
  do {                                                                           \
    if (!(condition)) throw std::invalid_argument(yolonas::concat(__VA_ARGS__)); \
  } while (false)

#define YN_CHECK_TYPE(condition, ...)                                         \
  do {                                                                        \
    if (!(condition)) throw yolonas::TypeError(yolonas::concat(__VA_ARGS__)); \
  } while (false)
