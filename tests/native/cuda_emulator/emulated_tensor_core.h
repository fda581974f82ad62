// The functions of csrc/cuda/tensor_core.h on the CPU, where their contracts stand. Stricter than a GPU: a copy that is
// under way has filled its target with bytes of 0xff and reads its source only when it is waited for, so that a missing
// wait or barrier shows.
#pragma once

#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace emulator {

inline void check_aligned(const char* name, const void* address, Where where) {
  if (reinterpret_cast<std::uintptr_t>(address) % 16 != 0) {
    fail(thread_text(block().current->number) + ": " + name + where.text() +
         " with an address that is no multiple of 16");
  }
}

using Doubles = double __attribute__((vector_size(64)));
using Ints = std::int32_t __attribute__((vector_size(32)));

struct Rows {
  const void* row;
  std::uint32_t result[4];
};
inline void load_matrices(Rows* const* lanes, std::uint32_t) {
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < 4; ++m) {
      const char* row = static_cast<const char*>(lanes[8 * m + lane / 4]->row);
      std::memcpy(&lanes[lane]->result[m], row + 4 * (lane % 4), 4);
    }
}

template <class T>
struct Product {
  T* c;
  const std::uint32_t* a;
  std::uint32_t b[2];
};
// The 32 bytes of each row of a, and of each column of b.
template <class T>
void gather(Product<T>* const* lanes, unsigned char (&a)[16][32], unsigned char (&b)[8][32]) {
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane / 4, quad = lane % 4;
    for (int part = 0; part < 2; ++part) {
      std::memcpy(&a[row][16 * part + 4 * quad], &lanes[lane]->a[2 * part], 4);
      std::memcpy(&a[row + 8][16 * part + 4 * quad], &lanes[lane]->a[2 * part + 1], 4);
      std::memcpy(&b[row][16 * part + 4 * quad], &lanes[lane]->b[part], 4);
    }
  }
}
// The sums of the products exactly enough, added to c with one rounding.
inline void multiply_halves(Product<float>* const* lanes, std::uint32_t) {
  unsigned char a[16][32], b[8][32];
  gather(lanes, a, b);
  const auto number = [](const unsigned char* row, int k) {
    std::uint16_t half;
    std::memcpy(&half, row + 2 * k, 2);
    return static_cast<double>(float_of_half(half));
  };
  Doubles columns[16], sums[16] = {};
  for (int k = 0; k < 16; ++k)
    for (int column = 0; column < 8; ++column) columns[k][column] = number(b[column], k);
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k) sums[row] += number(a[row], k) * columns[k];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      float& c = lanes[lane]->c[i];
      c = static_cast<float>(c + sums[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2]);
    }
}
inline void multiply_bytes(Product<std::int32_t>* const* lanes, std::uint32_t) {
  unsigned char a[16][32], b[8][32];
  gather(lanes, a, b);
  Ints columns[32], sums[16] = {};
  for (int k = 0; k < 32; ++k)
    for (int column = 0; column < 8; ++column) columns[k][column] = static_cast<std::int8_t>(b[column][k]);
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 32; ++k) sums[row] += static_cast<std::int8_t>(a[row][k]) * columns[k];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const auto sum = static_cast<std::uint32_t>(sums[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2]);
      std::int32_t& c = lanes[lane]->c[i];
      c = static_cast<std::int32_t>(static_cast<std::uint32_t>(c) + sum);
    }
}

}  // namespace emulator

namespace yolonas::cuda {

inline unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(static_cast<const unsigned char*>(shared) - emulator::dynamic_shared());
}

inline int same_in_warp(int number, YN_EMULATOR_WHERE) {
  return __shfl_sync(emulator::kAllLanes, number, 0, 32, where);
}
inline int found_anew(int number) { return number; }
inline unsigned char* kept(unsigned char* shared) { return shared; }

inline void cp_async16(void* shared, const void* global, unsigned outside, YN_EMULATOR_WHERE) {
  emulator::check_aligned("cp_async16", shared, where);
  emulator::check_aligned("cp_async16", global, where);
  emulator::Block& b = emulator::block();
  emulator::Fiber& fiber = *b.current;
  if (b.copies_at_once) {
    if (outside)
      std::memset(shared, 0, 16);
    else
      std::memcpy(shared, global, 16);
    return;
  }
  std::memset(shared, 0xff, 16);
  fiber.copies.push_back({shared, outside ? nullptr : global});
  ++fiber.open;
}

inline void cp_async_commit() { emulator::close_copies(*emulator::block().current); }

template <int kGroups>
void cp_async_wait() {
  emulator::finish_copies(*emulator::block().current, kGroups);
}

inline void ldmatrix_x4(std::uint32_t (&r)[4], const void* row, YN_EMULATOR_WHERE) {
  emulator::check_aligned("ldmatrix_x4", row, where);
  emulator::Rows operand{row, {}};
  emulator::collective_of<emulator::Rows, emulator::load_matrices>("ldmatrix_x4", emulator::kAllLanes, operand, where);
  std::memcpy(r, operand.result, sizeof(r));
}

inline void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1, YN_EMULATOR_WHERE) {
  emulator::Product<float> operand{c, a, {b0, b1}};
  emulator::collective_of<emulator::Product<float>, emulator::multiply_halves>("mma", emulator::kAllLanes, operand,
                                                                               where);
}

inline void mma(std::int32_t (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                YN_EMULATOR_WHERE) {
  emulator::Product<std::int32_t> operand{c, a, {b0, b1}};
  emulator::collective_of<emulator::Product<std::int32_t>, emulator::multiply_bytes>("mma", emulator::kAllLanes,
                                                                                     operand, where);
}

inline std::uint32_t shuffle_xor(std::uint32_t value, int mask, YN_EMULATOR_WHERE) {
  return __shfl_xor_sync(emulator::kAllLanes, value, mask, 32, where);
}

inline void wait_for_previous() { emulator::block().current->waited_for_previous = true; }
inline void let_next_begin() {
  if (!emulator::block().current->waited_for_previous) emulator::fail("a kernel lets the next begin before it waited");
}

}  // namespace yolonas::cuda
