// The dot product in one instruction, vpdpbusd, of unsigned by signed bytes. A signed x goes in as x + 128, so that
// every sum is too large by 128 times the sum of all weights: that is where it starts from, below zero.
template <bool Unsigned>
constexpr bool kZerosCount = !Unsigned;

template <bool Unsigned>
inline Sums first_sums(const std::int32_t* weight_sum) {
  if constexpr (Unsigned) {
    return {_mm512_setzero_si512()};
  } else {
    return {_mm512_mullo_epi32(Sums::load(weight_sum).reg, _mm512_set1_epi32(-128))};
  }
}

template <bool Unsigned>
inline Sums dot4(Sums acc, const std::int8_t* x, FourWeights w) {
  __m512i input = broadcast4(x);
  if constexpr (!Unsigned) input = _mm512_xor_si512(input, _mm512_set1_epi8(-128));
  return {_mm512_dpbusd_epi32(acc.reg, input, w.reg)};
}
