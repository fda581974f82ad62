// The host's side of CUDA: launches, memory, streams, events, capture and graphs.
//
// What is queued runs at once, in the program's order; the work that a stream captures is recorded with what it depends
// on, and a graph runs its nodes in an order of choice that the dependencies allow, so that a missing one shows as a
// wrong result. Allocations end at a page that nobody may touch and begin as bytes of 0xff.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <tuple>

#include "fibers.h"

#define CUDART_VERSION 13000
#define __CUDA_ARCH_LIST__ 0

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInitializationError = 3,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorStreamCaptureMerge = 902,
  cudaErrorStreamCaptureUnmatched = 903,
  cudaErrorStreamCaptureUnjoined = 904,
  cudaErrorStreamCaptureIsolation = 905,
  cudaErrorStreamCaptureImplicit = 906,
  cudaErrorCapturedEvent = 907,
  cudaErrorUnknown = 999,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed,
};
enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone,
  cudaStreamCaptureStatusActive,
  cudaStreamCaptureStatusInvalidated,
};
inline constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2;
inline constexpr unsigned cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2;
inline constexpr unsigned cudaEventRecordDefault = 0, cudaEventWaitDefault = 0;
struct cudaDeviceProp {
  char name[256];
  std::size_t totalGlobalMem;
  int major, minor, multiProcessorCount, l2CacheSize;
  std::size_t sharedMemPerBlockOptin;
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
inline constexpr int cudaSharedmemCarveoutMaxShared = 100;
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;
using cudaGraphNode_t = struct CUgraphNode_st*;

struct cudaLaunchConfig_t {
  dim3 gridDim{}, blockDim{};
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace emulator {

struct Node {
  std::function<void()> run;
  std::set<std::size_t> after;  // earlier nodes
};

struct Capture {
  std::vector<Node> nodes;
  cudaStream_t origin = nullptr;
  std::set<cudaStream_t> streams;  // the origin and those that joined
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool invalid = false, ended = false;
};

struct Allocation {
  char* pages;
  std::size_t mapped, bytes;
  bool on_host;
};

struct Machine {
  std::recursive_mutex mutex;  // a call at a time
  cudaError_t last_error = cudaSuccess;
  std::map<char*, Allocation> allocations;  // by first byte
  std::size_t device_bytes = 0;
  std::map<const void*, int> shared_limits;  // of kernels
  std::set<std::shared_ptr<Capture>> captures;
  cudaStream_t default_stream = nullptr;
  unsigned long long launches = 0;  // of kernels that have run
  int spoiled_captures = 0;         // that are still to fail
};

inline Machine& machine() {
  static Machine* const it = new Machine;
  return *it;
}

inline cudaError_t error(cudaError_t code) {
  if (code != cudaSuccess) machine().last_error = code;
  return code;
}

#define YN_EMULATOR_LOCK const std::lock_guard<std::recursive_mutex> lock(emulator::machine().mutex)

inline int shared_limit() {
  switch (architecture()) {
    case 75:
      return 64 << 10;
    case 80:
    case 87:
      return 163 << 10;
    case 86:
    case 89:
    case 120:
      return 99 << 10;
    default:
      return kSharedLimit;
  }
}

inline std::size_t memory_limit() {
  return std::strtoull(setting("YOLONAS_EMULATOR_MEMORY", "85899345920").c_str(), nullptr, 10);
}

inline cudaError_t allocate(void** address, std::size_t bytes, bool on_host) {
  YN_EMULATOR_LOCK;
  Machine& m = machine();
  if (!address) return error(cudaErrorInvalidValue);
  *address = nullptr;
  if (bytes == 0) return cudaSuccess;
  const std::size_t limit = memory_limit();
  if (!on_host && (bytes > limit || m.device_bytes > limit - bytes)) return error(cudaErrorMemoryAllocation);
  const std::size_t rounded = (bytes + 15) / 16 * 16, pages = (rounded + kPage - 1) / kPage * kPage;
  char* memory = nullptr;
  try {
    memory = map_pages(pages + kPage);
  } catch (const std::bad_alloc&) {
    return error(cudaErrorMemoryAllocation);
  }
  forbid_page(memory + pages);
  char* const first = memory + pages - rounded;
  std::memset(first, 0xff, rounded);
  m.allocations[first] = {memory, pages + kPage, bytes, on_host};
  if (!on_host) m.device_bytes += bytes;
  *address = first;
  return cudaSuccess;
}

inline cudaError_t release(void* address, bool on_host) {
  YN_EMULATOR_LOCK;
  Machine& m = machine();
  if (!address) return cudaSuccess;
  const auto found = m.allocations.find(static_cast<char*>(address));
  if (found == m.allocations.end() || found->second.on_host != on_host) return error(cudaErrorInvalidValue);
  if (!on_host) m.device_bytes -= found->second.bytes;
  munmap(found->second.pages, found->second.mapped);
  m.allocations.erase(found);
  return cudaSuccess;
}

inline const Allocation* allocation_of(const void* address) {
  Machine& m = machine();
  const char* const at = static_cast<const char*>(address);
  auto next = m.allocations.upper_bound(const_cast<char*>(at));
  if (next == m.allocations.begin()) return nullptr;
  const auto& [first, allocation] = *--next;
  return at < first + allocation.bytes ? &allocation : nullptr;
}

// Memory that cudaMalloc did not give may be anybody's.
inline bool kind_fits(const void* to, const void* from, cudaMemcpyKind kind) {
  const auto may_be = [](const void* address, bool on_host) {
    const Allocation* const allocation = allocation_of(address);
    return !allocation || allocation->on_host == on_host;
  };
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return false;
  if (kind == cudaMemcpyDefault) return true;
  return may_be(from, kind == cudaMemcpyHostToHost || kind == cudaMemcpyHostToDevice) &&
         may_be(to, kind == cudaMemcpyHostToHost || kind == cudaMemcpyDeviceToHost);
}

}  // namespace emulator

struct CUstream_st {
  std::shared_ptr<emulator::Capture> capture;
  std::set<std::size_t> tail;     // nodes that the next one comes after
  bool waited_for_event = false;  // of another stream, since its last work
};
struct CUevent_st {
  unsigned flags = 0;
  bool recorded = false;
  std::chrono::steady_clock::time_point time;
  cudaStream_t stream = nullptr;
  std::shared_ptr<emulator::Capture> capture;
  std::set<std::size_t> nodes;
};
struct CUgraph_st {
  std::vector<emulator::Node> nodes;
};
struct CUgraphExec_st {
  std::vector<emulator::Node> nodes;
};

namespace emulator {

inline cudaStream_t stream_of(cudaStream_t handle) {
  if (handle) return handle;
  Machine& m = machine();
  if (!m.default_stream) m.default_stream = new CUstream_st;
  return m.default_stream;
}

// Runs the work, or records it where the stream is captured.
inline cudaError_t queue(cudaStream_t handle, std::function<void()> work) {
  const cudaStream_t stream = stream_of(handle);
  stream->waited_for_event = false;
  if (!stream->capture) return work(), cudaSuccess;
  Capture& capture = *stream->capture;
  if (capture.invalid) return error(cudaErrorStreamCaptureInvalidated);
  capture.nodes.push_back({std::move(work), stream->tail});
  stream->tail = {capture.nodes.size() - 1};
  return cudaSuccess;
}

// For calls that may not be made while this thread captures: they end the capture as well.
inline cudaError_t refused_in_capture() {
  cudaError_t result = cudaSuccess;
  for (const auto& capture : machine().captures) {
    if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
    capture->invalid = true;
    result = error(cudaErrorStreamCaptureUnsupported);
  }
  return result;
}

// For waits: those for a stream that is captured are refused in any mode.
inline cudaError_t refused_on(cudaStream_t stream) {
  if (!stream->capture) return cudaSuccess;
  stream->capture->invalid = true;
  return error(cudaErrorStreamCaptureUnsupported);
}

inline void leave_capture(const std::shared_ptr<Capture>& capture) {
  capture->ended = true;
  for (const cudaStream_t stream : capture->streams) {
    stream->capture = nullptr;
    stream->tail.clear();
    stream->waited_for_event = false;
  }
  capture->streams.clear();
  machine().captures.erase(capture);
}

inline void run_graph(const std::vector<Node>& nodes) {
  Random random;
  const Order order = order_setting("YOLONAS_EMULATOR_GRAPH", random);
  std::vector<bool> done(nodes.size());
  for (std::size_t count = 0; count < nodes.size(); ++count) {
    std::vector<std::size_t> ready;
    for (std::size_t i = 0; i < nodes.size() && (order != Order::forward || ready.empty()); ++i) {
      if (done[i]) continue;
      bool may_run = true;
      for (const std::size_t before : nodes[i].after) may_run = may_run && done[before];
      if (may_run) ready.push_back(i);
    }
    const std::size_t next = order == Order::forward    ? ready.front()
                             : order == Order::backward ? ready.back()
                                                        : ready[random.below(static_cast<unsigned>(ready.size()))];
    done[next] = true;
    nodes[next].run();
  }
}

}  // namespace emulator

// --- errors and devices ---

inline const char* cudaGetErrorName(cudaError_t code) {
  static std::map<int, std::string>* const names = new std::map<int, std::string>;
  YN_EMULATOR_LOCK;
  std::string& name = (*names)[code];
  if (name.empty()) name = "cudaError" + std::to_string(static_cast<int>(code));
  return name.c_str();
}
inline const char* cudaGetErrorString(cudaError_t code) {
  static std::map<int, std::string>* const texts = new std::map<int, std::string>;
  YN_EMULATOR_LOCK;
  std::string& text = (*texts)[code];
  if (text.empty()) {
    text = code == cudaErrorMemoryAllocation ? "out of memory"
                                             : "emulated error " + std::to_string(static_cast<int>(code));
  }
  return text.c_str();
}
inline cudaError_t cudaGetLastError() {
  YN_EMULATOR_LOCK;
  return std::exchange(emulator::machine().last_error, cudaSuccess);
}
inline cudaError_t cudaPeekAtLastError() {
  YN_EMULATOR_LOCK;
  return emulator::machine().last_error;
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      return *value = emulator::architecture() / 10, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = emulator::architecture() % 10, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      return *value = 132, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = emulator::shared_limit(), cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = emulator::shared_limit() + 1024, cudaSuccess;
    case cudaDevAttrL2CacheSize:
      return *value = 50 << 20, cudaSuccess;
  }
  return emulator::error(cudaErrorInvalidValue);
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "emulated device");
  properties->totalGlobalMem = emulator::memory_limit();
  properties->major = emulator::architecture() / 10;
  properties->minor = emulator::architecture() % 10;
  properties->multiProcessorCount = 132;
  properties->l2CacheSize = 50 << 20;
  properties->sharedMemPerBlockOptin = static_cast<std::size_t>(emulator::shared_limit());
  return cudaSuccess;
}

// --- memory ---

template <class T>
cudaError_t cudaMalloc(T** address, std::size_t bytes) {
  YN_EMULATOR_LOCK;
  if (const cudaError_t refused = emulator::refused_in_capture()) return refused;
  return emulator::allocate(reinterpret_cast<void**>(address), bytes, false);
}
inline cudaError_t cudaFree(void* address) {
  YN_EMULATOR_LOCK;
  if (const cudaError_t refused = emulator::refused_in_capture()) return refused;
  return emulator::release(address, false);
}
template <class T>
cudaError_t cudaMallocHost(T** address, std::size_t bytes, unsigned = 0) {
  YN_EMULATOR_LOCK;
  if (const cudaError_t refused = emulator::refused_in_capture()) return refused;
  return emulator::allocate(reinterpret_cast<void**>(address), bytes, true);
}
template <class T>
cudaError_t cudaHostAlloc(T** address, std::size_t bytes, unsigned) {
  return cudaMallocHost(address, bytes);
}
inline cudaError_t cudaFreeHost(void* address) {
  YN_EMULATOR_LOCK;
  if (const cudaError_t refused = emulator::refused_in_capture()) return refused;
  return emulator::release(address, true);
}
inline cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  YN_EMULATOR_LOCK;
  *total = emulator::memory_limit();
  *free = *total - std::min(*total, emulator::machine().device_bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream = nullptr) {
  YN_EMULATOR_LOCK;
  if (!emulator::kind_fits(to, from, kind)) return emulator::error(cudaErrorInvalidValue);
  if (bytes == 0) return cudaSuccess;
  return emulator::queue(stream, [=] { std::memmove(to, from, bytes); });
}
inline cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                                     std::size_t width, std::size_t height, cudaMemcpyKind kind,
                                     cudaStream_t stream = nullptr) {
  YN_EMULATOR_LOCK;
  if (!emulator::kind_fits(to, from, kind) || width > to_pitch || width > from_pitch) {
    return emulator::error(cudaErrorInvalidValue);
  }
  if (width == 0 || height == 0) return cudaSuccess;
  return emulator::queue(stream, [=] {
    for (std::size_t row = 0; row < height; ++row)
      std::memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
  });
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream = nullptr) {
  YN_EMULATOR_LOCK;
  if (bytes == 0) return cudaSuccess;
  return emulator::queue(stream, [=] { std::memset(to, value, bytes); });
}
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  YN_EMULATOR_LOCK;
  if (const cudaError_t refused = emulator::refused_in_capture()) return refused;
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
inline cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  YN_EMULATOR_LOCK;
  if (const cudaError_t refused = emulator::refused_in_capture()) return refused;
  return cudaMemsetAsync(to, value, bytes, nullptr);
}

// --- streams and events ---

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return *stream = new CUstream_st, cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  YN_EMULATOR_LOCK;
  if (!stream) return emulator::error(cudaErrorInvalidResourceHandle);
  if (stream->capture) {
    stream->capture->invalid = true;
    stream->capture->streams.erase(stream);
  }
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  YN_EMULATOR_LOCK;
  return emulator::refused_on(emulator::stream_of(stream));
}
inline cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
inline cudaError_t cudaDeviceSynchronize() {
  YN_EMULATOR_LOCK;
  for (const auto& capture : emulator::machine().captures) {
    capture->invalid = true;
    emulator::error(cudaErrorStreamCaptureUnsupported);
  }
  return emulator::machine().captures.empty() ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new CUevent_st;
  (*event)->flags = flags;
  return cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (!event) return emulator::error(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle = nullptr) {
  YN_EMULATOR_LOCK;
  const cudaStream_t stream = emulator::stream_of(handle);
  if (stream->capture && stream->capture->invalid) return emulator::error(cudaErrorStreamCaptureInvalidated);
  event->recorded = true;
  event->stream = stream;
  event->time = std::chrono::steady_clock::now();
  event->capture = stream->capture;
  event->nodes = stream->tail;
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  YN_EMULATOR_LOCK;
  if (!event->capture) return cudaSuccess;
  event->capture->invalid = true;
  return emulator::error(cudaErrorCapturedEvent);
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  YN_EMULATOR_LOCK;
  for (const cudaEvent_t event : {start, end}) {
    if (!event->recorded || event->flags & cudaEventDisableTiming) {
      return emulator::error(cudaErrorInvalidResourceHandle);
    }
    if (event->capture) return emulator::error(cudaErrorCapturedEvent);
  }
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned = 0) {
  YN_EMULATOR_LOCK;
  const cudaStream_t stream = emulator::stream_of(handle);
  if (!event->recorded) return cudaSuccess;
  if (stream->capture && stream->capture->invalid) return emulator::error(cudaErrorStreamCaptureInvalidated);
  if (!event->capture) {
    if (stream->capture) {
      stream->capture->invalid = true;
      return emulator::error(cudaErrorStreamCaptureIsolation);
    }
  } else {
    if (event->capture->ended) return emulator::error(cudaErrorCapturedEvent);
    if (stream->capture && stream->capture != event->capture) {
      stream->capture->invalid = event->capture->invalid = true;
      return emulator::error(cudaErrorStreamCaptureMerge);
    }
    if (stream == emulator::machine().default_stream && !stream->capture) {
      return emulator::error(cudaErrorStreamCaptureImplicit);
    }
    stream->capture = event->capture;
    stream->capture->streams.insert(stream);
    stream->tail.insert(event->nodes.begin(), event->nodes.end());
  }
  if (event->stream != stream) stream->waited_for_event = true;
  return cudaSuccess;
}

// --- capture and graphs ---

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  YN_EMULATOR_LOCK;
  if (!stream) return emulator::error(cudaErrorStreamCaptureUnsupported);
  if (stream->capture) return emulator::error(cudaErrorInvalidValue);
  stream->capture = std::make_shared<emulator::Capture>();
  stream->capture->origin = stream;
  stream->capture->streams.insert(stream);
  stream->capture->mode = mode;
  stream->tail.clear();
  stream->waited_for_event = false;
  emulator::machine().captures.insert(stream->capture);
  return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  YN_EMULATOR_LOCK;
  const auto& capture = emulator::stream_of(stream)->capture;
  *status = !capture           ? cudaStreamCaptureStatusNone
            : capture->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  YN_EMULATOR_LOCK;
  *graph = nullptr;
  if (!stream || !stream->capture) return emulator::error(cudaErrorInvalidValue);
  const auto capture = stream->capture;
  if (capture->origin != stream) return emulator::error(cudaErrorStreamCaptureUnmatched);
  std::set<std::size_t> joined, next = stream->tail;  // what the origin's last work comes after
  while (!next.empty()) {
    const std::size_t node = *next.begin();
    next.erase(next.begin());
    if (!joined.insert(node).second) continue;
    next.insert(capture->nodes[node].after.begin(), capture->nodes[node].after.end());
  }
  emulator::leave_capture(capture);
  int& spoiled = emulator::machine().spoiled_captures;
  if (spoiled > 0) {
    --spoiled;
    capture->invalid = true;
  }
  if (capture->invalid) return emulator::error(cudaErrorStreamCaptureInvalidated);
  if (joined.size() != capture->nodes.size()) return emulator::error(cudaErrorStreamCaptureUnjoined);
  *graph = new CUgraph_st{std::move(capture->nodes)};
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long = 0) {
  return *exec = new CUgraphExec_st{graph->nodes}, cudaSuccess;
}
inline cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle) {
  YN_EMULATOR_LOCK;
  if (emulator::stream_of(handle)->capture) return emulator::error(cudaErrorNotSupported);
  return emulator::queue(handle, [exec] { emulator::run_graph(exec->nodes); });
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return delete exec, cudaSuccess; }
// The count alone.
inline cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  if (nodes) return emulator::error(cudaErrorNotSupported);
  return *count = graph->nodes.size(), cudaSuccess;
}

// --- launches ---

template <class Function>
cudaError_t cudaFuncSetAttribute(Function* function, cudaFuncAttribute attribute, int value) {
  YN_EMULATOR_LOCK;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > emulator::shared_limit()) return emulator::error(cudaErrorInvalidValue);
  emulator::machine().shared_limits[reinterpret_cast<const void*>(function)] = value;
  return cudaSuccess;
}

struct cudaFuncAttributes {
  int ptxVersion;
};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = std::atoi(emulator::setting("YOLONAS_EMULATOR_CODE", "90").c_str());
  return cudaSuccess;
}
// By shared memory and threads alone: there are no registers here.
template <class Function>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* kernel, int threads,
                                                          std::size_t shared_bytes) {
  YN_EMULATOR_LOCK;
  *blocks = 0;
  if (!kernel || threads <= 0) return emulator::error(cudaErrorInvalidValue);
  const auto shared = static_cast<std::size_t>(emulator::shared_limit()) + 1024;
  *blocks =
      static_cast<int>(std::min<std::size_t>(shared / (shared_bytes + 1024), 2048 / static_cast<std::size_t>(threads)));
  return cudaSuccess;
}

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  YN_EMULATOR_LOCK;
  const dim3 grid = config->gridDim, threads = config->blockDim;
  const std::size_t shared_bytes = config->dynamicSmemBytes;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || !threads.x ||
      !threads.y || !threads.z || threads.z > 64 ||
      static_cast<unsigned long long>(threads.x) * threads.y * threads.z > 1024) {
    return emulator::error(cudaErrorInvalidConfiguration);
  }
  std::size_t limit = 48 << 10;
  const auto& limits = emulator::machine().shared_limits;
  const auto raised = limits.find(reinterpret_cast<const void*>(kernel));
  if (raised != limits.end()) limit = std::max(limit, static_cast<std::size_t>(raised->second));
  if (shared_bytes > limit) return emulator::error(cudaErrorInvalidValue);
  bool overlap = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      overlap = overlap || attribute.val.programmaticStreamSerializationAllowed != 0;
    }
  }
  if (overlap && emulator::stream_of(config->stream)->waited_for_event) {
    emulator::fail("a launch may overlap the one before it, but its stream waits for another stream's event");
  }
  // The arguments are the launch's own, as on a device.
  return emulator::queue(config->stream, [=, arguments = std::tuple<Params...>(static_cast<Params>(args)...)] {
    emulator::run_grid(grid, threads, shared_bytes, overlap, [&] { std::apply(kernel, arguments); });
    ++emulator::machine().launches;
  });
}

// --- what tests ask for, by name ---

extern "C" {
__attribute__((visibility("default"), used)) inline unsigned long long yolonas_emulator_live_allocations() {
  YN_EMULATOR_LOCK;
  return emulator::machine().allocations.size();
}
__attribute__((visibility("default"), used)) inline unsigned long long yolonas_emulator_live_bytes() {
  YN_EMULATOR_LOCK;
  return emulator::machine().device_bytes;
}
__attribute__((visibility("default"), used)) inline unsigned long long yolonas_emulator_launches() {
  YN_EMULATOR_LOCK;
  return emulator::machine().launches;
}
// The next captures fail, as if another thread had waited for the device meanwhile.
__attribute__((visibility("default"), used)) inline void yolonas_emulator_spoil_captures(int count) {
  YN_EMULATOR_LOCK;
  emulator::machine().spoiled_captures = count;
}
}
