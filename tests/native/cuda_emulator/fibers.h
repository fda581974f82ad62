// The threads of a block as fibers, its warps, its barriers and its dynamic shared memory.
//
// Blocks run one after the other, and within a block one thread runs until it waits: at a barrier of the block, or at
// a collective of its warp (a shuffle, a vote, a matrix instruction). Blocks, warps and lanes come in an order of
// choice, and warps go ahead of each other as far as barriers let them, so that a missing barrier shows as a wrong
// result in one order or another.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

[[noreturn]] inline void fail(const std::string& text) { throw std::runtime_error("emulator: " + text); }

inline std::string setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}

// --- random numbers, the same for the same seed on any machine ---

struct Random {
  std::uint64_t state = 1;
  std::uint64_t next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state * 0x2545f4914f6cdd1dull;
  }
  unsigned below(unsigned n) { return static_cast<unsigned>((next() >> 32) * n >> 32); }
};

enum class Order { forward, backward, random };

// "forward", "backward" or "random:<seed>".
inline Order order_setting(const char* name, Random& random) {
  const std::string text = setting(name, "forward");
  if (text == "forward") return Order::forward;
  if (text == "backward") return Order::backward;
  if (text.rfind("random:", 0) != 0) fail(std::string(name) + " must be forward, backward or random:<seed>");
  random.state = (std::strtoull(text.c_str() + 7, nullptr, 10) + 1) * 0x9e3779b97f4a7c15ull;
  return Order::random;
}

// --- switching stacks ---

inline constexpr std::size_t kPage = 4096;
#if defined(__SANITIZE_ADDRESS__)
inline constexpr std::size_t kStack = 512 << 10;
#else
inline constexpr std::size_t kStack = 128 << 10;
#endif

inline char* map_pages(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

inline void forbid_page(char* page) {
  if (mprotect(page, kPage, PROT_NONE) != 0) throw std::bad_alloc();
}

#if defined(__x86_64__)
struct Context {
  void* stack_pointer = nullptr;
};
// Keeps what a call keeps (System V ABI); the control words of the floating point units are the same for all fibers.
__attribute__((naked, noinline, noipa)) inline void switch_stacks(void** /*from*/, void* /*to*/) {
  __asm__(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
inline void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStack);
  for (int i = 1; i <= 8; ++i) top[-i] = nullptr;  // no caller, the entry, six registers
  top[-2] = reinterpret_cast<void*>(entry);
  context.stack_pointer = top - 8;
}
inline void switch_context(Context& from, Context& to) { switch_stacks(&from.stack_pointer, to.stack_pointer); }
#else
using Context = ucontext_t;
inline void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

// --- threads, warps, the block ---

struct Copy {  // of cp.async
  void* to;
  const void* from;  // null: zeros
};

struct Fiber {
  Context context;
  char* stack = nullptr;
  dim3 index;
  unsigned number = 0;
  bool waited_for_previous = false;
  std::vector<Copy> copies;         // under way, oldest first
  std::vector<std::size_t> groups;  // how many copies each closed group has
  std::size_t open = 0;             // copies since the last group
  std::shared_ptr<void> products;   // of emulated_warpgroup.h
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
};

// Where a collective or a barrier stands in the source. As the default of a parameter it is the place of the call.
struct Where {
  const char* file;
  int line;
  Where(const char* file_ = __builtin_FILE(), int line_ = __builtin_LINE()) : file(file_), line(line_) {}
  bool operator==(const Where& other) const { return line == other.line && std::strcmp(file, other.file) == 0; }
  std::string text() const { return std::string(" at ") + file + ":" + std::to_string(line); }
};

struct Group {  // lanes of a warp on their way through one collective
  const char* name;
  Where where;
  std::uint32_t mask, arrived;
  void* operands[32];
};

struct Warp {
  std::uint32_t runnable = 0, alive = 0, at_barrier = 0;
  std::vector<Group> groups;
};

struct Block {
  std::vector<Fiber> fibers;  // more than one block needs, kept for the next
  std::vector<Warp> warps;
  unsigned threads = 0, alive = 0, at_barrier = 0;
  const char* barrier = nullptr;
  Where barrier_where;
  int barrier_votes = 0, barrier_result = 0;
  Context scheduler;
  Fiber* current = nullptr;
  const std::function<void()>* body = nullptr;
  std::exception_ptr error;
  Random random;
  bool waited = false;          // every thread so far, for the launch before
  bool copies_at_once = false;  // before sm_80
  char* shared_end = nullptr;   // a page that nobody may touch
  unsigned char* shared = nullptr;
  std::size_t shared_bytes = 0;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  const void* stack = nullptr;
  std::size_t stack_bytes = 0;
#endif
};

inline Block& block() {
  static Block* const it = new Block;  // kept to the very end: its stacks may be anything's
  return *it;
}

inline std::string thread_text(unsigned number) {
  return "thread " + std::to_string(number) + " of block (" + std::to_string(blockIdx.x) + ", " +
         std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + ")";
}

// Back to the scheduler, until it runs this thread again.
inline void pause() {
  Block& b = block();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&b.current->fake_stack, b.stack, b.stack_bytes);
#endif
  switch_context(b.current->context, b.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(b.current->fake_stack, nullptr, nullptr);
#endif
}

inline void run_thread() {
  Block& b = block();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &b.stack, &b.stack_bytes);
#endif
  std::exception_ptr error;
  try {
    (*b.body)();
  } catch (...) {
    error = std::current_exception();
  }
  if (error) b.error = std::move(error);
  Warp& warp = b.warps[b.current->number / 32];
  warp.alive &= ~(1u << b.current->number % 32);
  warp.runnable &= ~(1u << b.current->number % 32);
  --b.alive;
  pause();
}

inline void resume(unsigned number) {
  Block& b = block();
  Fiber& fiber = b.fibers[number];
  b.current = &fiber;
  threadIdx = fiber.index;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&b.fake_stack, fiber.stack, kStack);
#endif
  switch_context(b.scheduler, fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(b.fake_stack, nullptr, nullptr);
#endif
  if (b.error) std::rethrow_exception(std::exchange(b.error, nullptr));
}

inline std::uint32_t lane_bit(unsigned number) { return 1u << number % 32; }

// The lanes of a warp, until all of them wait for the block or have ended; in random order perhaps not as far.
inline void run_warp(unsigned w, Order order) {
  Block& b = block();
  unsigned turns = order == Order::random && b.random.below(2) ? 1 + b.random.below(8) : ~0u;
  for (; b.warps[w].runnable && turns; --turns) {
    std::uint32_t lanes = b.warps[w].runnable;
    const unsigned turn = order == Order::random ? b.random.below(32) : 0;
    if (turn) lanes = lanes << turn | lanes >> (32 - turn);
    const bool down = order == Order::backward || (order == Order::random && b.random.below(2));
    while (lanes) {
      const unsigned bit = down ? 31 - __builtin_clz(lanes) : __builtin_ctz(lanes);
      lanes &= ~(1u << bit);
      resume(w * 32 + (bit - turn) % 32);
    }
  }
}

[[noreturn]] inline void fail_stuck() {
  const Block& b = block();
  for (std::size_t w = 0; w < b.warps.size(); ++w) {
    for (const Group& group : b.warps[w].groups) {
      std::string text = std::string(group.name) + group.where.text() + " in warp " + std::to_string(w) + " of block " +
                         std::to_string(blockIdx.x) + " waits for ever:";
      for (unsigned lane = 0; lane < 32; ++lane) {
        const std::uint32_t bit = 1u << lane;
        if (!(group.mask & bit) || (group.arrived & bit)) continue;
        text += " lane " + std::to_string(lane) + (b.warps[w].alive & bit ? " is elsewhere," : " has ended,");
      }
      if (b.warps[w].at_barrier) text += " some lanes wait at " + std::string(b.barrier) + b.barrier_where.text() + ",";
      text.back() = ';';
      fail(text + " a collective needs every lane of its mask");
    }
  }
  fail("some threads ended, others met a barrier: " + std::string(b.barrier ? b.barrier : "?") +
       b.barrier_where.text());
}

inline void finish_copies(Fiber& fiber, std::size_t groups_left) {
  std::size_t count = 0, groups = 0;
  while (fiber.groups.size() - groups > groups_left) count += fiber.groups[groups++];
  for (std::size_t i = 0; i < count; ++i) {
    const Copy& copy = fiber.copies[i];
    if (copy.from)
      std::memcpy(copy.to, copy.from, 16);
    else
      std::memset(copy.to, 0, 16);
  }
  fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + static_cast<std::ptrdiff_t>(count));
  fiber.groups.erase(fiber.groups.begin(), fiber.groups.begin() + static_cast<std::ptrdiff_t>(groups));
}

inline void close_copies(Fiber& fiber) {
  fiber.groups.push_back(fiber.open);
  fiber.open = 0;
}

inline void start_block() {
  Block& b = block();
  while (b.fibers.size() < b.threads) {
    b.fibers.emplace_back();
    char* const memory = map_pages(kPage + kStack);
    forbid_page(memory);
    b.fibers.back().stack = memory + kPage;
  }
  for (unsigned t = 0; t < b.threads; ++t) {
    Fiber& fiber = b.fibers[t];
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack, kStack);
#endif
    prepare(fiber.context, fiber.stack, run_thread);
    fiber.number = t;
    fiber.index = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y);
    fiber.waited_for_previous = false;
    fiber.copies.clear();
    fiber.groups.clear();
    fiber.open = 0;
    fiber.products.reset();
  }
  b.warps.resize((b.threads + 31) / 32);
  for (unsigned w = 0; w < b.warps.size(); ++w) {
    Warp& warp = b.warps[w];
    const unsigned lanes = b.threads - 32 * w;
    warp.runnable = warp.alive = lanes >= 32 ? ~0u : (1u << lanes) - 1;
    warp.at_barrier = 0;
    warp.groups.clear();
  }
  b.alive = b.threads;
  b.at_barrier = 0;
  b.barrier = nullptr;
  b.barrier_votes = 0;
  b.error = nullptr;
}

inline void run_block(Order order) {
  Block& b = block();
  start_block();
  const auto warps = static_cast<unsigned>(b.warps.size());
  std::vector<unsigned> turns(warps);
  for (unsigned w = 0; w < warps; ++w) turns[w] = order == Order::backward ? warps - 1 - w : w;
  while (b.alive) {
    if (order == Order::random)
      for (unsigned i = warps; i > 1; --i) std::swap(turns[i - 1], turns[b.random.below(i)]);
    bool moved = false;
    for (const unsigned w : turns) {
      if (!b.warps[w].runnable) continue;
      moved = true;
      run_warp(w, order);
    }
    if (b.at_barrier && b.at_barrier == b.threads) {
      for (Warp& warp : b.warps) warp.runnable = std::exchange(warp.at_barrier, 0u);
      b.at_barrier = 0;
      b.barrier = nullptr;
      b.barrier_result = std::exchange(b.barrier_votes, 0);
    } else if (!moved) {
      fail_stuck();
    }
  }
  for (unsigned t = 0; t < b.threads; ++t) {
    if (b.fibers[t].open) close_copies(b.fibers[t]);
    finish_copies(b.fibers[t], 0);
    b.waited = b.waited && b.fibers[t].waited_for_previous;
  }
}

// --- what a thread waits for ---

// A barrier of the whole block; the number of threads that came with a vote.
inline int barrier(const char* name, bool vote, Where where) {
  Block& b = block();
  if (!b.current) fail(std::string(name) + where.text() + " outside a kernel");
  if (!b.barrier) {
    b.barrier = name;
    b.barrier_where = where;
  } else if (std::strcmp(b.barrier, name) != 0 || !(b.barrier_where == where)) {
    fail(thread_text(b.current->number) + " is at " + name + where.text() + ", others are at " + b.barrier +
         b.barrier_where.text());
  }
  Warp& warp = b.warps[b.current->number / 32];
  warp.runnable &= ~lane_bit(b.current->number);
  warp.at_barrier |= lane_bit(b.current->number);
  ++b.at_barrier;
  b.barrier_votes += vote;
  pause();
  return b.barrier_result;
}

// A collective of the lanes in `mask`: the last to come calls finish(operands of all lanes, mask), which writes the
// results into the operands; then all go on.
inline void collective(const char* name, std::uint32_t mask, void* operand,
                       void (*finish)(void* const* operands, std::uint32_t mask), Where where) {
  Block& b = block();
  const unsigned number = b.current->number;
  const std::uint32_t bit = lane_bit(number);
  Warp& warp = b.warps[number / 32];
  const auto complain = [&](const std::string& text) { fail(thread_text(number) + ": " + name + where.text() + text); };
  if (!(mask & bit)) complain(" with a mask that lacks the calling lane");
  if (mask & ~warp.alive) complain(" with a mask that names lanes that have ended or never were");
  Group* group = nullptr;
  for (Group& other : warp.groups) {
    if (other.mask == mask && std::strcmp(other.name, name) == 0 && other.where == where) {
      group = &other;
    } else if ((other.mask & bit) && (other.arrived & mask)) {  // they wait for this lane, and it for them
      complain((other.mask == mask ? " while other lanes of the warp are at " : " with another mask than lanes at ") +
               (other.name + other.where.text()));
    }
  }
  if (!group) {
    warp.groups.push_back(Group{name, where, mask, 0, {}});
    group = &warp.groups.back();
  }
  group->arrived |= bit;
  group->operands[number % 32] = operand;
  if (group->arrived != mask) {
    warp.runnable &= ~bit;
    pause();
    return;
  }
  const Group all = *group;
  *group = warp.groups.back();
  warp.groups.pop_back();
  finish(all.operands, mask);
  warp.runnable |= mask;
}

// The same for operands of a type.
template <class T, void (*kFinish)(T* const* lanes, std::uint32_t mask)>
void collective_of(const char* name, std::uint32_t mask, T& operand, Where where) {
  collective(
      name, mask, &operand,
      [](void* const* operands, std::uint32_t lanes) { kFinish(reinterpret_cast<T* const*>(operands), lanes); }, where);
}

// --- dynamic shared memory: bytes of 0xff before each block; ends at a forbidden page, up to the next 1024 ---

inline constexpr std::size_t kSharedLimit = 227 << 10;
inline constexpr unsigned char kUntouched = 0xa5;

inline unsigned char* dynamic_shared() { return block().shared; }

inline void start_shared(std::size_t bytes) {
  Block& b = block();
  if (!b.shared_end) {
    constexpr std::size_t room = 228 << 10;
    char* const memory = map_pages(room + 2 * kPage);
    forbid_page(memory);
    forbid_page(memory + kPage + room);
    b.shared_end = memory + kPage + room;
  }
  const std::size_t whole = (bytes + 1023) / 1024 * 1024;
  b.shared_bytes = bytes;
  b.shared = reinterpret_cast<unsigned char*>(b.shared_end) - whole;
  std::memset(b.shared, 0xff, bytes);
  std::memset(b.shared + bytes, kUntouched, whole - bytes);
}

inline void check_shared() {
  const Block& b = block();
  for (std::size_t i = b.shared_bytes; i % 1024 != 0; ++i)
    if (b.shared[i] != kUntouched) fail("a kernel wrote past its " + std::to_string(b.shared_bytes) + " shared bytes");
}

// --- a launch ---

inline int architecture() { return std::atoi(setting("YOLONAS_EMULATOR_ARCH", "90").c_str()); }

inline void run_grid(dim3 grid, dim3 threads, std::size_t shared_bytes, bool overlap,
                     const std::function<void()>& body) {
  Block& b = block();
  if (b.current) fail("a kernel launches a kernel");
  const Order order = order_setting("YOLONAS_EMULATOR_ORDER", b.random);
  b.copies_at_once = architecture() < 80;
  blockDim = threads;
  gridDim = grid;
  b.threads = threads.x * threads.y * threads.z;
  b.body = &body;
  b.waited = true;
  struct Outside {
    ~Outside() { block().current = nullptr; }
  } outside;
  std::vector<std::uint64_t> blocks(static_cast<std::size_t>(grid.x) * grid.y * grid.z);
  for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = order == Order::backward ? blocks.size() - 1 - i : i;
  if (order == Order::random) {
    for (std::size_t i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[b.random.next() % i]);
  }
  for (const std::uint64_t i : blocks) {
    blockIdx = dim3(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                    static_cast<unsigned>(i / grid.x / grid.y));
    start_shared(shared_bytes);
    run_block(order);
    check_shared();
  }
  if (overlap && !b.waited) fail("threads of a kernel that may overlap the launch before it do not wait for it");
}

}  // namespace emulator
