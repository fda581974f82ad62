// Memory, streams, events and graphs of a device, each with an owner, for plain C++. Every function may throw
// std::runtime_error with CUDA's text, OutOfMemory where memory is what is missing; they work on the current device
// (DeviceGuard). Owners give back what they hold without waiting for work that is still queued: who owns memory waits
// first.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "cuda/choose.h"
#include "cuda/maps.h"

namespace yolonas::cuda {

// Throws unless `device` is one that can be used and that has code here: std::runtime_error without a driver or a
// device, std::invalid_argument for an index beyond them, NotSupported for a device older than sm_75.
void check_device(const char* op, int device);

// Of the current device, which `device` is.
Processor processor_of(int device);

std::int64_t free_bytes();  // of the current device

class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(std::int64_t bytes);  // undefined values; throws OutOfMemory
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  char* data() const noexcept { return static_cast<char*>(data_); }
  std::int64_t bytes() const noexcept { return bytes_; }

 private:
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

// A stream of its own, that the default stream does not wait for.
class OwnedStream {
 public:
  OwnedStream();
  ~OwnedStream();
  OwnedStream(OwnedStream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  OwnedStream& operator=(OwnedStream&&) = delete;
  Stream get() const noexcept { return stream_; }

 private:
  Stream stream_ = nullptr;
};

class Event {
 public:
  explicit Event(bool timing = false);
  ~Event();
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&&) = delete;

  void record(Stream stream) const;
  void make_wait(Stream stream) const;  // what is queued on the stream from now on waits; at once if never recorded
  void synchronize() const;             // the host waits
  double milliseconds_since(const Event& earlier) const;  // of events with timing, after synchronize()

 private:
  void* event_ = nullptr;
};

// Work that was captured, ready to be queued as one. Empty at first.
class GraphExec {
 public:
  GraphExec() = default;
  ~GraphExec();
  GraphExec(GraphExec&& other) noexcept : exec_(std::exchange(other.exec_, nullptr)) {}
  GraphExec& operator=(GraphExec&& other) noexcept {
    std::swap(exec_, other.exec_);
    return *this;
  }
  explicit operator bool() const noexcept { return exec_ != nullptr; }
  void launch(Stream stream) const;

 private:
  friend class Capture;
  void* exec_ = nullptr;
};

// Between its construction and finish() what this thread queues on the stream, and on streams that wait for its events,
// is not run but recorded. Without finish() it is dropped.
class Capture {
 public:
  explicit Capture(Stream stream);
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  GraphExec finish();

 private:
  Stream stream_;
  bool active_ = true;
};

bool is_capturing(Stream stream);  // by whoever owns the stream

void upload(void* device, const void* host, std::int64_t bytes);                 // waits
void copy_async(void* to, const void* from, std::int64_t bytes, Stream stream);  // within the device
void zero_async(void* device, std::int64_t bytes, Stream stream);
void synchronize(Stream stream);

// How often a timed step is queued in a row.
int timed_repeats() noexcept;

}  // namespace yolonas::cuda
