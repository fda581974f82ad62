// The functions of csrc/cuda/hopper/warpgroup.h on the CPU, where their contracts stand. A product is computed when it
// is issued, and again when it is waited for: if its operands have changed in between, the kernel is wrong.
#pragma once

#include <vector>

#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace emulator {

// A product that one thread has issued: what it adds to that thread's sums.
struct Issued {
  void (*compute)(std::uint64_t a, std::uint64_t b, int warp, double* sums);
  void (*add)(void* c, const double* sums, int count);
  void* c;
  std::uint64_t a, b;
  std::vector<double> sums;
};
struct Issuer {
  std::vector<Issued> products;     // under way, oldest first
  std::vector<std::size_t> groups;  // how many each closed group has
  std::size_t open = 0;
};
inline Issuer& issuer() {
  std::shared_ptr<void>& own = block().current->products;
  if (!own) own = std::make_shared<Issuer>();
  return *static_cast<Issuer*>(own.get());
}

// Byte `byte` of row `row` of an operand: rows of 128 bytes, eight of them 1024 apart from the next eight; bits 4 to 6
// of the address are changed by bits 7 to 9.
inline unsigned char operand_byte(std::uint64_t operand, int row, int byte) {
  const std::uint64_t plain = operand + static_cast<std::uint64_t>(row / 8 * 1024 + row % 8 * 128 + byte);
  return dynamic_shared()[plain ^ (plain >> 7 & 7) << 4];
}

template <class T, int kColumns>
void compute_product(std::uint64_t a, std::uint64_t b, int warp, double* sums) {
  constexpr int kDepth = std::is_same<T, float>::value ? 16 : 32;
  const auto number = [](std::uint64_t operand, int row, int k) {
    if (!std::is_same<T, float>::value) {
      return static_cast<double>(static_cast<std::int8_t>(operand_byte(operand, row, k)));
    }
    const int half = operand_byte(operand, row, 2 * k) | operand_byte(operand, row, 2 * k + 1) << 8;
    return static_cast<double>(float_of_half(static_cast<std::uint16_t>(half)));
  };
  const int lane = static_cast<int>(block().current->number) % 32;
  double rows[2][kDepth];
  for (int upper = 0; upper < 2; ++upper)
    for (int k = 0; k < kDepth; ++k) rows[upper][k] = number(a, warp * 16 + lane / 4 + 8 * upper, k);
  for (int j = 0; j < kColumns / 8; ++j)
    for (int e = 0; e < 2; ++e) {
      double& low = sums[4 * j + e] = 0;
      double& high = sums[4 * j + 2 + e] = 0;
      for (int k = 0; k < kDepth; ++k) {
        const double column = number(b, 8 * j + lane % 4 * 2 + e, k);
        low += rows[0][k] * column;
        high += rows[1][k] * column;
      }
    }
}

template <class T>
void add_product(void* c, const double* sums, int count) {
  for (int i = 0; i < count; ++i) {
    T& sum = static_cast<T*>(c)[i];
    sum = static_cast<T>(static_cast<double>(sum) + sums[i]);
  }
}

template <class T, int kColumns>
void issue_product(T (&c)[kColumns / 8][4], std::uint64_t a, std::uint64_t b) {
  Issuer& own = issuer();
  own.products.push_back({compute_product<T, kColumns>, add_product<T>, c, a, b, std::vector<double>(kColumns / 2)});
  const int warp = static_cast<int>(block().current->number) / 32 % 4;
  compute_product<T, kColumns>(a, b, warp, own.products.back().sums.data());
  ++own.open;
}

inline void finish_products(std::size_t groups) {
  Issuer& own = issuer();
  const int warp = static_cast<int>(block().current->number) / 32 % 4;
  while (own.groups.size() > groups) {
    for (std::size_t i = 0; i < own.groups.front(); ++i) {
      const Issued& one = own.products[i];
      std::vector<double> again(one.sums.size());
      one.compute(one.a, one.b, warp, again.data());
      if (std::memcmp(again.data(), one.sums.data(), again.size() * sizeof(double)) != 0) {
        fail(thread_text(block().current->number) + ": operands of a product changed before it was waited for");
      }
      one.add(one.c, again.data(), static_cast<int>(again.size()));
    }
    own.products.erase(own.products.begin(), own.products.begin() + static_cast<std::ptrdiff_t>(own.groups.front()));
    own.groups.erase(own.groups.begin());
  }
}

}  // namespace emulator

namespace yolonas::cuda {

inline std::uint64_t operand_of(const unsigned char* tile) {
  return static_cast<std::uint64_t>(tile - emulator::dynamic_shared());
}
inline std::uint64_t further(std::uint64_t operand, int bytes) { return operand + static_cast<std::uint64_t>(bytes); }
inline void publish_to_products() {}
inline void begin_products() {}
inline void commit_products() {
  emulator::Issuer& own = emulator::issuer();
  own.groups.push_back(own.open);
  own.open = 0;
}
template <int kGroups>
void wait_for_products() {
  emulator::finish_products(kGroups);
}
inline void settle(float&) {}
inline void settle(std::int32_t&) {}

template <int kColumns>
void warpgroup_product(float (&c)[kColumns / 8][4], std::uint64_t a, std::uint64_t b) {
  emulator::issue_product<float, kColumns>(c, a, b);
}
template <int kColumns>
void warpgroup_product(std::int32_t (&c)[kColumns / 8][4], std::uint64_t a, std::uint64_t b) {
  emulator::issue_product<std::int32_t, kColumns>(c, a, b);
}

}  // namespace yolonas::cuda
