// Hides AVX-512 and AMX from libraries that choose their code by CPUID and have no switch for it, so that all sides of
// a benchmark can be held to AVX2. Linux on x86-64, where the processor can let CPUID trap ("cpuid_fault" in
// /proc/cpuinfo). For benchmarks only: nothing of the package uses it.
//
// c++ -O2 -std=c++17 -shared -fPIC hide_avx512.cpp -o hide_avx512.so
#include <asm/prctl.h>
#include <cpuid.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

namespace {

constexpr unsigned kLeaf7Ebx = 1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31;
constexpr unsigned kLeaf7Ecx = 1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14;
constexpr unsigned kLeaf7Edx = 1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25;
constexpr unsigned kLeaf7Sub1Eax = 1u << 4 | 1u << 5 | 1u << 21;             // AVX-VNNI, AVX512-BF16, AMX-FP16
constexpr unsigned kLeaf7Sub1Edx = 1u << 4 | 1u << 5 | 1u << 10 | 1u << 19;  // AVX-VNNI-INT8, NE-CONVERT, INT16, AVX10

long trap_cpuid(bool trap) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, trap ? 0 : 1); }

void answer(int, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const auto* code = reinterpret_cast<const unsigned char*>(registers[REG_RIP]);
  if (code[0] != 0x0f || code[1] != 0xa2) {  // not CPUID: a true fault, which happens again without this handler
    signal(SIGSEGV, SIG_DFL);
    return;
  }
  const auto leaf = static_cast<unsigned>(registers[REG_RAX]);
  const auto sub = static_cast<unsigned>(registers[REG_RCX]);
  unsigned eax, ebx, ecx, edx;
  trap_cpuid(false);
  __cpuid_count(leaf, sub, eax, ebx, ecx, edx);
  trap_cpuid(true);
  if (leaf == 7 && sub == 0) {
    ebx &= ~kLeaf7Ebx;
    ecx &= ~kLeaf7Ecx;
    edx &= ~kLeaf7Edx;
  } else if (leaf == 7 && sub == 1) {
    eax &= ~kLeaf7Sub1Eax;
    edx &= ~kLeaf7Sub1Edx;
  }
  registers[REG_RAX] = eax;
  registers[REG_RBX] = ebx;
  registers[REG_RCX] = ecx;
  registers[REG_RDX] = edx;
  registers[REG_RIP] += 2;
}

}  // namespace

// From here on, in this thread and those that it starts. Returns 0, or -1 where CPUID cannot trap.
extern "C" int hide_avx512() {
  struct sigaction action = {};
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  if (sigaction(SIGSEGV, &action, nullptr) != 0) return -1;
  return trap_cpuid(true) == 0 ? 0 : -1;
}
