// The dot product in one instruction, vpdpbusd, of unsigned by signed bytes. Signed inputs are to lie there as x + 128
// (shifted-inl.h), so that every sum is too large by 128 times the sum of all weights: that is where it starts from,
// below zero.
constexpr bool kOneDot4 = true;

inline Sums first_sums(const QuantConvArgs& a, std::int64_t at) {
  if (a.unsigned_input) return {_mm512_setzero_si512()};
  return {_mm512_mullo_epi32(Sums::load(a.weight_sum + at).reg, _mm512_set1_epi32(-128))};
}

template <bool Unsigned>
inline Sums dot4(Sums acc, const std::int8_t* x, FourWeights w) {
  return {_mm512_dpbusd_epi32(acc.reg, broadcast4(x), w.reg)};
}
