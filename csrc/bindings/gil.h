// Other Python threads run while an op does.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

namespace yolonas::bindings {

// Gives the GIL back for its lifetime. In place of pybind11's own, because of daemon threads: when the interpreter ends
// while one is inside an op, taking the GIL again ends that thread by unwinding its stack, which would go through this
// destructor (std::terminate) and then free Python objects without the GIL. Such a thread waits for the end of the
// process here instead, as Python 3.14 does by itself.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace yolonas::bindings
