#include <cstdio>

#include "core/check.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/runtime.h"

namespace yolonas::cuda {
namespace {

constexpr const char* kOp = "engine";
constexpr int kOldestArch = 75;
#if defined(YOLONAS_CUDA_EMULATOR)
constexpr int kTimedRepeats = 1;
#else
constexpr int kTimedRepeats = 20;
#endif

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  YN_CUDA_CHECK(kOp, cudaDeviceGetAttribute(&value, which, device));
  return value;
}

int arch_of(int device) {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
         attribute(cudaDevAttrComputeCapabilityMinor, device);
}

cudaStream_t raw(Stream stream) { return static_cast<cudaStream_t>(stream); }

std::string gib(std::int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GiB", static_cast<double>(bytes) / (1 << 30));
  return text;
}

// Compiled for the same devices as all others.
__global__ void probe_kernel() {}

}  // namespace

void check_device(const char* op, int device) {
  int count = 0;
  YN_CUDA_CHECK(op, cudaGetDeviceCount(&count));
  YN_CHECK(device >= 0 && device < count, op, ": device must be one of the ", count, " CUDA device",
           count == 1 ? "" : "s", " here, 0..", count - 1, ", got ", device);
  const int arch = arch_of(device);
  if (arch < kOldestArch) {
    throw NotSupported(
        concat(op, ": cuda:", device, " is of architecture sm_", arch, "; sm_", kOldestArch, " or newer is needed"));
  }
}

Processor processor_of(int device) {
  Processor processor;
  cudaFuncAttributes code = {};
  YN_CUDA_CHECK(kOp, cudaFuncGetAttributes(&code, reinterpret_cast<const void*>(probe_kernel)));
  processor.arch = arch_of(device);
  processor.code = code.ptxVersion;
  processor.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  processor.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) + 1024;
  processor.resident = resident_blocks(processor.arch, processor.code);
  return processor;
}

std::int64_t free_bytes() {
  std::size_t available = 0, total = 0;
  YN_CUDA_CHECK(kOp, cudaMemGetInfo(&available, &total));
  return static_cast<std::int64_t>(available);
}

DeviceMemory::DeviceMemory(std::int64_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  const cudaError_t error = cudaMalloc(&data_, static_cast<std::size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    data_ = nullptr;
    cudaGetLastError();
    throw OutOfMemory(concat(kOp, ": ", gib(bytes), " of device memory are needed, ", gib(free_bytes()), " are free"));
  }
  YN_CUDA_CHECK(kOp, error);
}

DeviceMemory::~DeviceMemory() {
  if (data_) cudaFree(data_);
}

OwnedStream::OwnedStream() {
  cudaStream_t stream = nullptr;
  YN_CUDA_CHECK(kOp, cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  stream_ = stream;
}

OwnedStream::~OwnedStream() {
  if (stream_) cudaStreamDestroy(raw(stream_));
}

Event::Event(bool timing) {
  cudaEvent_t event = nullptr;
  if (timing) {
    YN_CUDA_CHECK(kOp, cudaEventCreate(&event));
  } else {
    YN_CUDA_CHECK(kOp, cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  }
  event_ = event;
}

Event::~Event() {
  if (event_) cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

void Event::record(Stream stream) const {
  YN_CUDA_CHECK(kOp, cudaEventRecord(static_cast<cudaEvent_t>(event_), raw(stream)));
}

void Event::make_wait(Stream stream) const {
  YN_CUDA_CHECK(kOp, cudaStreamWaitEvent(raw(stream), static_cast<cudaEvent_t>(event_), 0));
}

void Event::synchronize() const { YN_CUDA_CHECK(kOp, cudaEventSynchronize(static_cast<cudaEvent_t>(event_))); }

double Event::milliseconds_since(const Event& earlier) const {
  float spent = 0;
  YN_CUDA_CHECK(
      kOp, cudaEventElapsedTime(&spent, static_cast<cudaEvent_t>(earlier.event_), static_cast<cudaEvent_t>(event_)));
  return static_cast<double>(spent);
}

GraphExec::~GraphExec() {
  if (exec_) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(exec_));
}

void GraphExec::launch(Stream stream) const {
  YN_CUDA_CHECK(kOp, cudaGraphLaunch(static_cast<cudaGraphExec_t>(exec_), raw(stream)));
}

// Of this thread alone: others may allocate meanwhile.
Capture::Capture(Stream stream) : stream_(stream) {
  YN_CUDA_CHECK(kOp, cudaStreamBeginCapture(raw(stream), cudaStreamCaptureModeThreadLocal));
}

Capture::~Capture() {
  if (!active_) return;
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(raw(stream_), &graph);
  if (graph) cudaGraphDestroy(graph);
  cudaGetLastError();
}

GraphExec Capture::finish() {
  active_ = false;
  cudaGraph_t graph = nullptr;
  YN_CUDA_CHECK(kOp, cudaStreamEndCapture(raw(stream_), &graph));
  cudaGraphExec_t exec = nullptr;
#if CUDART_VERSION >= 12000
  const cudaError_t error = cudaGraphInstantiate(&exec, graph, 0);
#else
  const cudaError_t error = cudaGraphInstantiateWithFlags(&exec, graph, 0);
#endif
  cudaGraphDestroy(graph);
  YN_CUDA_CHECK(kOp, error);
  GraphExec result;
  result.exec_ = exec;
  return result;
}

bool is_capturing(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  YN_CUDA_CHECK(kOp, cudaStreamIsCapturing(raw(stream), &status));
  return status != cudaStreamCaptureStatusNone;
}

void upload(void* device, const void* host, std::int64_t bytes) {
  if (bytes == 0) return;
  const OwnedStream stream;
  YN_CUDA_CHECK(
      kOp, cudaMemcpyAsync(device, host, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, raw(stream.get())));
  synchronize(stream.get());
}

void copy_async(void* to, const void* from, std::int64_t bytes, Stream stream) {
  if (bytes == 0) return;
  YN_CUDA_CHECK(kOp, cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, raw(stream)));
}

void zero_async(void* device, std::int64_t bytes, Stream stream) {
  if (bytes == 0) return;
  YN_CUDA_CHECK(kOp, cudaMemsetAsync(device, 0, static_cast<std::size_t>(bytes), raw(stream)));
}

void synchronize(Stream stream) { YN_CUDA_CHECK(kOp, cudaStreamSynchronize(raw(stream))); }

int timed_repeats() noexcept { return kTimedRepeats; }

}  // namespace yolonas::cuda
