// Checks of the emulator in cuda_emulator/, one by name on the command line: "ok" is printed where all is as it should
// be, or the text of the error. Compiled and run by test_cuda_emulator.py.
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <emulated_tensor_core.h>

#include <cstdio>
#include <iterator>
#include <string>

namespace cuda = yolonas::cuda;

namespace {

#define EXPECT(condition)                                                                             \
  do {                                                                                                \
    if (!(condition)) throw std::runtime_error("line " + std::to_string(__LINE__) + ": " #condition); \
  } while (false)
#define OK(call) EXPECT((call) == cudaSuccess)

constexpr unsigned kAll = 0xffffffffu;

struct Launch {
  dim3 grid = 1, threads = 32;
  std::size_t shared = 0;
  cudaStream_t stream = nullptr;
  bool overlap = false;

  template <class... Params, class... Args>
  cudaError_t operator()(void (*kernel)(Params...), Args... args) const {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = overlap;
    return cudaLaunchKernelEx(&config, kernel, args...);
  }
};

int lane() { return static_cast<int>(threadIdx.x % 32); }

// Device memory that goes with its scope.
template <class T>
struct Array {
  explicit Array(std::size_t count) { OK(cudaMalloc(&data, count * sizeof(T))); }
  ~Array() { cudaFree(data); }
  T& operator[](std::size_t i) { return data[i]; }
  T* data = nullptr;
};

// --- threads, barriers, collectives ---

__global__ void indices_kernel(int* seen) {
  const unsigned blocks = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  atomicAdd(seen + blocks * blockDim.x * blockDim.y * blockDim.z + thread, 1);
}
void indices() {
  Array<int> seen(2 * 3 * 4 * 5 * 2 * 3);
  OK(cudaMemset(seen.data, 0, 720 * sizeof(int)));
  OK((Launch{{2, 3, 4}, {5, 2, 3}}(indices_kernel, seen.data)));
  for (int i = 0; i < 720; ++i) EXPECT(seen[i] == 1);
}

__global__ void collectives_kernel(int* wrong) {
  const auto expect = [&](bool right, int line) {
    if (!right) atomicCAS(wrong, 0, line);
  };
  const int i = lane();
  expect(__shfl_xor_sync(kAll, i, 5) == (i ^ 5), __LINE__);
  expect(__shfl_sync(kAll, i * 2.5f, 7) == 17.5f, __LINE__);
  expect(__shfl_sync(kAll, i, 35) == 3, __LINE__);
  expect(__shfl_down_sync(kAll, i, 3) == (i + 3 < 32 ? i + 3 : i), __LINE__);
  expect(__shfl_up_sync(kAll, 1ll << i, 3) == 1ll << (i >= 3 ? i - 3 : i), __LINE__);
  expect(__shfl_down_sync(kAll, i, 1, 8) == (i % 8 == 7 ? i : i + 1), __LINE__);
  expect(__shfl_up_sync(kAll, i, 1, 8) == (i % 8 == 0 ? i : i - 1), __LINE__);
  expect(__shfl_sync(kAll, i, 2, 4) == (i & ~3) + 2, __LINE__);
  expect(__ballot_sync(kAll, i % 3 == 0) == 0x49249249u, __LINE__);
  expect(__any_sync(kAll, i == 31) == 1 && __any_sync(kAll, 0) == 0, __LINE__);
  expect(__all_sync(kAll, 1) == 1 && __all_sync(kAll, i != 4) == 0, __LINE__);
  expect(__activemask() == kAll, __LINE__);
  if (i % 2) {  // halves of a warp apart
    expect(__ballot_sync(0xaaaaaaaau, i > 15) == 0xaaaa0000u, __LINE__);
  } else {
    expect(__shfl_sync(0x55555555u, i, 4) == 4, __LINE__);
    __syncwarp(0x55555555u);
  }
  expect(cuda::shuffle_xor(static_cast<unsigned>(i), 16) == static_cast<unsigned>(i ^ 16), __LINE__);
  const int thread = static_cast<int>(threadIdx.x);
  expect(__syncthreads_count(thread % 5 == 0) == 26, __LINE__);
  expect(__syncthreads_or(thread == 99) == 1 && __syncthreads_or(0) == 0, __LINE__);
  expect(__syncthreads_and(1) == 1 && __syncthreads_and(thread != 99) == 0, __LINE__);
}
void collectives() {
  Array<int> wrong(1);
  wrong[0] = 0;
  OK((Launch{2, 128}(collectives_kernel, wrong.data)));
  if (wrong[0]) throw std::runtime_error("line " + std::to_string(wrong[0]));
}

// A sum over neighbours, right with the barriers alone.
template <bool kBarrier>
__global__ void neighbours_kernel(int* sums) {
  __shared__ int numbers[128];
  const int thread = static_cast<int>(threadIdx.x);
  for (int round = 0; round < 4; ++round) {
    numbers[thread] = thread * (round + 1);
    if (kBarrier) __syncthreads();
    sums[thread] += numbers[(thread + 1) % 128] + numbers[(thread + 127) % 128];
    __syncthreads();
  }
}
template <bool kBarrier>
void neighbours() {
  Array<int> sums(128);
  OK(cudaMemset(sums.data, 0, 512));
  OK((Launch{1, 128}(neighbours_kernel<kBarrier>, sums.data)));
  for (int i = 0; i < 128; ++i) EXPECT(sums[i] == 10 * ((i + 1) % 128 + (i + 127) % 128));
}

__global__ void ended_lane_kernel() {
  if (lane() == 3) return;
  __syncwarp();
}
__global__ void late_lane_kernel() {
  if (lane() != 3) __syncwarp();
}
__global__ void other_collective_kernel() {
  if (lane() % 2)
    __syncwarp();
  else
    __ballot_sync(kAll, 1);
}
__global__ void other_mask_kernel() { __syncwarp(lane() % 2 ? kAll : 0x7fffffffu); }
__global__ void foreign_mask_kernel() { __syncwarp(0xfffffffeu); }
__global__ void barrier_and_collective_kernel() {
  if (lane() == 9) __syncthreads();
  __syncwarp();
}
__global__ void ended_thread_kernel() {
  if (threadIdx.x != 40) __syncthreads();
}
__global__ void other_barrier_kernel() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void foreign_lane_kernel() {
  if (lane() < 16) __shfl_sync(0xffffu, 1, 20);
}
__global__ void whole_warp_kernel() { __syncwarp(); }
template <void (*kKernel)()>
void run_two_warps() {
  OK((Launch{1, 64}(kKernel)));
}
void run_half_a_warp() { OK((Launch{1, 48}(whole_warp_kernel))); }

__global__ void atomics_kernel(int* i, unsigned* u, unsigned long long* l, float* f) {
  const int thread = static_cast<int>(threadIdx.x);
  atomicAdd(i, thread);
  atomicMax(i + 1, thread);
  atomicMin(i + 2, -thread);
  atomicOr(u, 1u << thread);
  atomicAdd(u + 1, 3u);
  atomicAdd(l, 1ull << 40);
  atomicMax(l + 1, static_cast<unsigned long long>(thread));
  atomicAdd(f, 0.5f);
}
void intrinsics() {
  int i[3] = {};
  unsigned u[2] = {};
  unsigned long long l[2] = {};
  float f = 0;
  OK(Launch{}(atomics_kernel, i, u, l, &f));
  EXPECT(i[0] == 496 && i[1] == 31 && i[2] == -31 && u[0] == kAll && u[1] == 96);
  EXPECT(l[0] == 1ull << 45 && l[1] == 31 && f == 16.0f);
  EXPECT(atomicExch(u, 5u) == kAll && atomicCAS(u, 4u, 9u) == 5 && atomicCAS(u, 5u, 9u) == 5 && u[0] == 9);
  EXPECT(__popc(0xf0f0u) == 8 && __popcll(~0ull) == 64 && __clz(0) == 32 && __clz(1) == 31 && __clzll(1) == 63);
  EXPECT(__ffs(0) == 0 && __ffs(8) == 4 && __ffsll(1ll << 40) == 41 && __brev(1) == 0x80000000u);
  EXPECT(__float_as_int(1.0f) == 0x3f800000 && __uint_as_float(0x40000000u) == 2.0f);
  EXPECT(__float2int_rn(2.5f) == 2 && __float2int_rn(-3.5f) == -4 && __float2int_rn(NAN) == 0);
  EXPECT(__float2int_rn(3e9f) == 2147483647 && __float2int_rn(-3e9f) == -2147483647 - 1);
  EXPECT(min(-1, 2) == -1 && max(1u, 2u) == 2 && make_uint4(1, 2, 3, 4).w == 4);
}

// --- shared memory and copies ---

__global__ void shared_kernel(int bytes, bool* right) {
  const unsigned char* const shared = emulator::dynamic_shared();
  *right = reinterpret_cast<std::uintptr_t>(shared) % 1024 == 0;
  for (int i = 0; i < bytes; ++i) *right = *right && shared[i] == 0xff;
  if (bytes) std::memset(emulator::dynamic_shared(), 1, static_cast<std::size_t>(bytes));
}
template <int kBytes, int kWritten>
__global__ void overrun_kernel() {
  volatile unsigned char* const shared = emulator::dynamic_shared();
  for (int i = 0; i < kWritten; ++i) shared[i] = 1;
}
template <int kBytes, int kWritten>
void overrun() {
  OK((Launch{1, 1, kBytes}(overrun_kernel<kBytes, kWritten>)));
}
void shared_memory() {
  bool right = false;
  for (const int bytes : {0, 1, 1000, 4096, 48 << 10}) {
    OK((Launch{2, 1, static_cast<std::size_t>(bytes)}(shared_kernel, bytes, &right)));
    EXPECT(right);
  }
  constexpr int kMost = 227 << 10;
  EXPECT((Launch{1, 1, kMost}(shared_kernel, kMost, &right)) == cudaErrorInvalidValue);
  EXPECT(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess);
  const auto raise = [](int bytes) {
    return cudaFuncSetAttribute(shared_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  };
  EXPECT(raise(kMost + 1) == cudaErrorInvalidValue);
  OK(raise(kMost));
  OK((Launch{1, 1, kMost}(shared_kernel, kMost, &right)));
  EXPECT(right);
  EXPECT((Launch{1, 1025}(shared_kernel, 0, &right)) == cudaErrorInvalidConfiguration);
}

__global__ void copies_kernel(const uint4* from, int* wrong) {
  auto* const to = reinterpret_cast<uint4*>(emulator::dynamic_shared());
  const auto expect = [&](bool right, int line) {
    if (!right) atomicCAS(wrong, 0, line);
  };
  cuda::cp_async16(to, from, 0);
  cuda::cp_async_commit();
  cuda::cp_async16(to + 1, from + 1, 0);
  cuda::cp_async16(to + 2, from + 2, 1);
  cuda::cp_async_commit();
  cuda::cp_async_commit();
  cuda::cp_async16(to + 3, from + 3, 0);
  expect(to[0].x == kAll && to[1].x == kAll && to[2].x == kAll && to[3].x == kAll, __LINE__);
  cuda::cp_async_wait<2>();
  expect(to[0].x == from[0].x && to[1].x == kAll, __LINE__);
  cuda::cp_async_wait<1>();
  expect(to[1].w == from[1].w && to[2].x == 0 && to[2].w == 0, __LINE__);
  cuda::cp_async_wait<0>();
  expect(to[3].x == kAll, __LINE__);  // its group is not closed
}
__global__ void crooked_copy_kernel(const char* from) {
  cuda::cp_async16(emulator::dynamic_shared() + 16, from + 8, 0);
}
void copies() {
  Array<uint4> from(4);
  Array<int> wrong(1);
  for (unsigned i = 0; i < 4; ++i) from[i] = make_uint4(i, i + 10, i + 20, i + 30);
  wrong[0] = 0;
  OK((Launch{1, 1, 64}(copies_kernel, from.data, wrong.data)));
  if (wrong[0]) throw std::runtime_error("line " + std::to_string(wrong[0]));
}
void crooked_copy() {
  Array<char> from(64);
  OK((Launch{1, 1, 64}(crooked_copy_kernel, from.data)));
}

// --- the tensor cores ---

// c[16][8] += a[16][*] * b[8][*] from 32 bytes of each row, as a kernel loads them.
template <class Sum>
__global__ void product_kernel(const void* a, const void* b, Sum* c) {
  unsigned char* const shared = emulator::dynamic_shared();
  const int row = lane() / 4, quad = lane() % 4;
  for (int i = lane(); i < 48; i += 32) {
    const void* const from = i < 32 ? static_cast<const uint4*>(a) + i : static_cast<const uint4*>(b) + (i - 32);
    cuda::cp_async16(shared + 16 * i, from, 0);
  }
  cuda::cp_async_commit();
  cuda::cp_async_wait<0>();
  __syncwarp();
  std::uint32_t as[4], bs[4];
  cuda::ldmatrix_x4(as, shared + 32 * (lane() % 16) + 16 * (lane() / 16));
  cuda::ldmatrix_x4(bs, shared + 512 + 32 * (lane() % 8) + 16 * (lane() / 8 % 2));
  Sum sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = c[8 * (row + i / 2 * 8) + 2 * quad + i % 2];
  cuda::mma(sums, as, bs[0], bs[1]);
  for (int i = 0; i < 4; ++i) c[8 * (row + i / 2 * 8) + 2 * quad + i % 2] = sums[i];
}
template <class Sum, class Element>
void product() {
  constexpr int kDepth = 32 / sizeof(Element);
  alignas(16) Element a[16][kDepth], b[8][kDepth];
  Sum c[16][8], expected[16][8];
  emulator::Random random;
  const auto number = [&] { return static_cast<Element>(static_cast<float>(random.below(255)) - 127.0f); };
  for (auto& row : a)
    for (Element& x : row) x = number();
  for (auto& row : b)
    for (Element& x : row) x = number();
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      c[i][j] = expected[i][j] = static_cast<Sum>(100 * i + j);
      for (int k = 0; k < kDepth; ++k) expected[i][j] += static_cast<Sum>(a[i][k]) * static_cast<Sum>(b[j][k]);
    }
  OK((Launch{1, 32, 768}(product_kernel<Sum>, static_cast<const void*>(a), static_cast<const void*>(b), &c[0][0])));
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) EXPECT(c[i][j] == expected[i][j]);
}

// --- float16: floats from stdin, their float16s to stdout; or the other way ---

template <class From, class To, class Convert>
void convert_all(Convert convert) {
  std::vector<From> from(1 << 20);
  from.resize(std::fread(from.data(), sizeof(From), from.size(), stdin));
  std::vector<To> to;
  for (const From x : from) to.push_back(convert(x));
  std::fwrite(to.data(), sizeof(To), to.size(), stdout);
}
void to_half() {
  convert_all<float, std::uint16_t>([](float x) { return __half_as_ushort(__float2half_rn(x)); });
}
void from_half() {
  convert_all<std::uint16_t, float>([](std::uint16_t x) { return __half2float(__ushort_as_half(x)); });
}
void halves() {
  const __half nan = __ushort_as_half(0x7e00), one = __float2half_rn(1), minus = __float2half_rn(-2);
  EXPECT(__half_as_ushort(__hmax(nan, one)) == 0x3c00 && __half_as_ushort(__hmax(minus, nan)) == 0xc000);
  EXPECT(__half_as_ushort(__hmax(nan, nan)) == 0x7fff && __half_as_ushort(__hmax(one, minus)) == 0x3c00);
  EXPECT(__half_as_ushort(__hmax(__ushort_as_half(0x8000), __ushort_as_half(0))) == 0);
  const __half2 two = __hmax2(__floats2half2_rn(1, -2), __halves2half2(minus, one));
  EXPECT(__half2float(__low2half(two)) == 1 && __half2float(__high2half(two)) == 1);
  EXPECT(__half22float2(__floats2half2_rn(3, 4)).y == 4);
}

// --- memory, streams, graphs ---

void memory() {
  char* data = nullptr;
  std::size_t free = 0, total = 0, less = 0;
  OK(cudaMemGetInfo(&free, &total));
  EXPECT(total == 1 << 20 && free == total);
  OK(cudaMalloc(&data, 1000));
  EXPECT(static_cast<unsigned char>(data[999]) == 0xff && yolonas_emulator_live_allocations() == 1);
  OK(cudaMemGetInfo(&less, &total));
  EXPECT(less == free - 1000);
  char* more = nullptr;
  EXPECT(cudaMalloc(&more, 1 << 20) == cudaErrorMemoryAllocation && !more);
  EXPECT(cudaPeekAtLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaErrorMemoryAllocation);
  char* host = nullptr;
  OK(cudaMallocHost(&host, 100));
  std::strcpy(host, "text");
  OK(cudaMemcpy(data, host, 5, cudaMemcpyHostToDevice));
  EXPECT(cudaMemcpy(data, host, 5, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  OK(cudaMemsetAsync(host, 0, 100));
  OK(cudaMemcpy2DAsync(host, 2, data, 1, 1, 4, cudaMemcpyDeviceToHost));
  EXPECT(host[0] == 't' && host[1] == 0 && host[2] == 'e' && host[6] == 't');
  EXPECT(cudaFree(host) == cudaErrorInvalidValue);
  OK(cudaFreeHost(host));
  OK(cudaFree(data));
  EXPECT(cudaFree(data) == cudaErrorInvalidValue);
  OK(cudaFree(nullptr));
  EXPECT(yolonas_emulator_live_allocations() == 0 && yolonas_emulator_live_bytes() == 0);
}
void allocation_overrun() {
  char* data = nullptr;
  OK(cudaMalloc(&data, 992));
  *const_cast<volatile char*>(data + 992) = 1;
}

void events() {
  cudaEvent_t start = nullptr, end = nullptr, untimed = nullptr;
  OK(cudaEventCreate(&start));
  OK(cudaEventCreate(&end));
  OK(cudaEventCreateWithFlags(&untimed, cudaEventDisableTiming));
  float milliseconds = -1;
  EXPECT(cudaEventElapsedTime(&milliseconds, start, end) == cudaErrorInvalidResourceHandle);
  for (const cudaEvent_t event : {start, end, untimed}) OK(cudaEventRecord(event));
  OK(cudaEventElapsedTime(&milliseconds, start, end));
  EXPECT(milliseconds >= 0 && milliseconds < 1000);
  EXPECT(cudaEventElapsedTime(&milliseconds, start, untimed) == cudaErrorInvalidResourceHandle);
  OK(cudaEventQuery(end));
  for (const cudaEvent_t event : {start, end, untimed}) OK(cudaEventDestroy(event));
}

void devices() {
  int value = 0;
  OK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0));
  EXPECT(value == 7);
  OK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMinor, 0));
  EXPECT(value == 5);
  OK(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  EXPECT(value == 64 << 10);
  cudaDeviceProp properties;
  OK(cudaGetDeviceProperties(&properties, 0));
  EXPECT(std::strlen(properties.name) > 0 && properties.major == 7);
}

__global__ void step_kernel(int* x, int factor, int add) {
  cuda::wait_for_previous();
  x[0] = x[0] * factor + add;
}
__global__ void sum_kernel(const int* a, const int* b, int* sum) { sum[0] = a[0] + b[0]; }
__global__ void hasty_kernel() {}
__global__ void partly_hasty_kernel() {
  if (blockIdx.x == 0) cuda::wait_for_previous();
}
__global__ void generous_kernel() {
  cuda::let_next_begin();
  cuda::wait_for_previous();
}

struct Branches {
  cudaStream_t main = nullptr, side = nullptr;
  cudaEvent_t fork = nullptr, join = nullptr;
  Array<int> x = Array<int>(3);
  Branches() {
    OK(cudaStreamCreateWithFlags(&main, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
    OK(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
    OK(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
    OK(cudaMemset(x.data, 0, 12));
  }
  void run_kernel(cudaStream_t stream, int i, int factor, int add) {
    OK((Launch{1, 1, 0, stream}(step_kernel, x.data + i, factor, add)));
  }
  // x[0] and x[1] in two branches, x[2] of both; forgetful: without the last wait, which nobody sees.
  void work(bool forgetful) {
    run_kernel(main, 0, 0, 1);
    OK(cudaMemcpyAsync(x.data + 1, x.data, 4, cudaMemcpyDeviceToDevice, main));
    OK(cudaEventRecord(fork, main));
    OK(cudaStreamWaitEvent(side, fork));
    for (int i = 0; i < 3; ++i) run_kernel(side, 1, 3, i);
    if (!forgetful) OK(cudaEventRecord(join, side));
    for (int i = 0; i < 2; ++i) run_kernel(main, 0, 5, i);
    if (!forgetful) OK(cudaStreamWaitEvent(main, join));
    OK((Launch{1, 1, 0, main}(sum_kernel, x.data, x.data + 1, x.data + 2)));
    if (!forgetful) return;
    OK(cudaEventRecord(join, side));
    OK(cudaStreamWaitEvent(main, join));
  }
};
template <bool kForgetful>
void graphs() {
  Branches branches;
  cudaStreamCaptureStatus status;
  OK(cudaStreamBeginCapture(branches.main, cudaStreamCaptureModeThreadLocal));
  branches.work(kForgetful);
  OK(cudaStreamIsCapturing(branches.side, &status));
  EXPECT(status == cudaStreamCaptureStatusActive && branches.x[0] == 0);
  cudaGraph_t graph = nullptr;
  OK(cudaStreamEndCapture(branches.main, &graph));
  OK(cudaStreamIsCapturing(branches.side, &status));
  EXPECT(status == cudaStreamCaptureStatusNone);
  std::size_t nodes = 0;
  OK(cudaGraphGetNodes(graph, nullptr, &nodes));
  EXPECT(nodes == 8);
  cudaGraphExec_t exec = nullptr;
  OK(cudaGraphInstantiate(&exec, graph, 0));
  OK(cudaGraphDestroy(graph));
  EXPECT(branches.x[2] == 0);
  for (int i = 0; i < 2; ++i) {
    OK(cudaGraphLaunch(exec, branches.side));
    EXPECT(branches.x[0] == 26 && branches.x[1] == 32);
    EXPECT(branches.x[2] == 58);
    branches.x[2] = 0;
  }
  OK(cudaGraphExecDestroy(exec));
}
void eager_branches() {
  Branches branches;
  branches.work(false);
  EXPECT(branches.x[2] == 58);
}
void capture_errors() {
  Branches branches;
  cudaGraph_t graph = nullptr;
  const auto begin = [&](cudaStreamCaptureMode mode) { OK(cudaStreamBeginCapture(branches.main, mode)); };
  begin(cudaStreamCaptureModeRelaxed);  // a branch that never comes back
  OK(cudaEventRecord(branches.fork, branches.main));
  OK(cudaStreamWaitEvent(branches.side, branches.fork));
  branches.run_kernel(branches.side, 0, 1, 1);
  EXPECT(cudaStreamEndCapture(branches.side, &graph) == cudaErrorStreamCaptureUnmatched);
  EXPECT(cudaStreamEndCapture(branches.main, &graph) == cudaErrorStreamCaptureUnjoined && !graph);
  EXPECT(cudaStreamWaitEvent(branches.side, branches.fork) == cudaErrorCapturedEvent);

  begin(cudaStreamCaptureModeThreadLocal);  // calls that wait or allocate
  int* more = nullptr;
  EXPECT(cudaMalloc(&more, 4) == cudaErrorStreamCaptureUnsupported);
  EXPECT((Launch{1, 1, 0, branches.main}(hasty_kernel)) == cudaErrorStreamCaptureInvalidated);
  EXPECT(cudaStreamEndCapture(branches.main, &graph) == cudaErrorStreamCaptureInvalidated);
  begin(cudaStreamCaptureModeRelaxed);
  OK(cudaMalloc(&more, 4));
  OK(cudaFree(more));
  EXPECT(cudaStreamSynchronize(branches.main) == cudaErrorStreamCaptureUnsupported);
  EXPECT(cudaStreamEndCapture(branches.main, &graph) == cudaErrorStreamCaptureInvalidated);

  OK(cudaEventRecord(branches.join, branches.side));  // work from outside
  begin(cudaStreamCaptureModeRelaxed);
  EXPECT(cudaStreamWaitEvent(branches.main, branches.join) == cudaErrorStreamCaptureIsolation);
  EXPECT(cudaStreamEndCapture(branches.main, &graph) == cudaErrorStreamCaptureInvalidated);
}
void overlap() {
  Branches branches;
  const Launch launch{1, 1, 0, branches.main, true};
  OK(launch(step_kernel, branches.x.data, 1, 1));
  OK(cudaEventRecord(branches.fork, branches.main));
  OK(cudaStreamWaitEvent(branches.main, branches.fork));  // its own
  OK(launch(step_kernel, branches.x.data, 1, 1));
}
void overlap_after_event() {
  Branches branches;
  OK(cudaEventRecord(branches.fork, branches.side));
  OK(cudaStreamWaitEvent(branches.main, branches.fork));
  OK((Launch{1, 1, 0, branches.main, true}(step_kernel, branches.x.data, 1, 1)));
}
void overlap_with_some_waits() { OK((Launch{2, 1, 0, nullptr, true}(partly_hasty_kernel))); }
void begin_before_wait() { OK((Launch{1, 1, 0, nullptr, true}(generous_kernel))); }
void overlap_without_wait() { OK((Launch{1, 1, 0, nullptr, true}(hasty_kernel))); }

struct Case {
  const char* name;
  void (*run)();
};
const Case kCases[] = {
    {"indices", indices},
    {"collectives", collectives},
    {"neighbours", neighbours<true>},
    {"neighbours without a barrier", neighbours<false>},
    {"ended lane", run_two_warps<ended_lane_kernel>},
    {"late lane", run_two_warps<late_lane_kernel>},
    {"other collective", run_two_warps<other_collective_kernel>},
    {"other mask", run_two_warps<other_mask_kernel>},
    {"foreign mask", run_two_warps<foreign_mask_kernel>},
    {"barrier and collective", run_two_warps<barrier_and_collective_kernel>},
    {"ended thread", run_two_warps<ended_thread_kernel>},
    {"other barrier", run_two_warps<other_barrier_kernel>},
    {"foreign lane", run_two_warps<foreign_lane_kernel>},
    {"half a warp", run_half_a_warp},
    {"intrinsics", intrinsics},
    {"shared memory", shared_memory},
    {"overrun into the rest", overrun<1000, 1001>},
    {"overrun into the page", overrun<1024, 1025>},
    {"copies", copies},
    {"crooked copy", crooked_copy},
    {"float product", product<float, __half>},
    {"int8 product", product<std::int32_t, std::int8_t>},
    {"to half", to_half},
    {"from half", from_half},
    {"halves", halves},
    {"memory", memory},
    {"allocation overrun", allocation_overrun},
    {"events", events},
    {"devices", devices},
    {"graphs", graphs<false>},
    {"graphs without a wait", graphs<true>},
    {"eager branches", eager_branches},
    {"capture errors", capture_errors},
    {"overlap", overlap},
    {"overlap after an event", overlap_after_event},
    {"overlap without a wait", overlap_without_wait},
    {"overlap with some waits", overlap_with_some_waits},
    {"begin before the wait", begin_before_wait},
};

}  // namespace

int main(int, char** arguments) {
  const std::string name = arguments[1];
  for (const Case& one : kCases) {
    if (name != one.name) continue;
    try {
      one.run();
      if (name != "to half" && name != "from half") std::puts("ok");
    } catch (const std::exception& error) {
      std::puts(error.what());
    }
    return 0;
  }
  std::puts("no such case");
}
