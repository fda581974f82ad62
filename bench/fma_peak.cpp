// The most float32 multiply-adds that this machine does in a second: independent FMA chains in registers, per thread.
// GCC or Clang on x86-64. Written in assembly, since compilers like to keep arrays of vectors in memory.
//
// c++ -O2 -std=c++17 -pthread fma_peak.cpp -o fma_peak; fma_peak avx512|avx2 THREADS   prints GFLOP/s of all threads
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr long kSteps = 2'000'000;
constexpr int kChains = 12;  // more than latency times units, and few enough for 16 registers

#define YN_ZERO "vzeroall\n"
#define YN_CHAIN(R, N) "vfmadd213ps %%" R "15, %%" R "14, %%" R #N "\n"
#define YN_FOUR(R, A, B, C, D) YN_CHAIN(R, A) YN_CHAIN(R, B) YN_CHAIN(R, C) YN_CHAIN(R, D)
#define YN_CHAINS(R)                                                                                            \
  asm volatile(YN_ZERO "1:\n" YN_FOUR(R, 0, 1, 2, 3) YN_FOUR(R, 4, 5, 6, 7)                                     \
                   YN_FOUR(R, 8, 9, 10, 11) "dec %0\njnz 1b\nvzeroupper\n"                                      \
               : "+r"(steps)                                                                                    \
               :                                                                                                \
               : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
                 "xmm11", "xmm12", "xmm13", "xmm14", "xmm15")

// Runs the chains on registers that hold zeros (the data does not matter for the time); returns the operations done.
double chains(bool avx512) {
  long steps = kSteps;
  if (avx512) {
    YN_CHAINS("zmm");
  } else {
    YN_CHAINS("ymm");
  }
  return 2.0 * kChains * (avx512 ? 16 : 8) * kSteps;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const bool avx512 = std::strcmp(arguments[1], "avx512") == 0;
  double best = 0;
  for (int round = 0; round < 20; ++round) {
    std::vector<std::thread> threads(std::strtoul(arguments[2], nullptr, 10));
    std::vector<double> rates(threads.size());
    for (std::size_t i = 0; i < threads.size(); ++i) {
      threads[i] = std::thread([&rate = rates[i], avx512] {
        const auto start = std::chrono::steady_clock::now();
        const double work = chains(avx512);
        rate = work / std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
      });
    }
    for (auto& thread : threads) thread.join();
    double sum = 0;
    for (const double rate : rates) sum += rate;
    best = sum > best ? sum : best;
  }
  std::printf("%.1f\n", best);
}
