// The dot product without VNNI. Unsigned inputs as in avx2/dot4-inl.h; a zmm register has no vpsignb, so that signed
// ones are widened, every second byte and those between.
constexpr bool kOneDot4 = false;

inline Sums first_sums(const QuantConvArgs&, std::int64_t) { return {_mm512_setzero_si512()}; }

inline __m512i even_bytes(__m512i a) { return _mm512_srai_epi16(_mm512_slli_epi16(a, 8), 8); }
inline __m512i odd_bytes(__m512i a) { return _mm512_srai_epi16(a, 8); }

template <bool Unsigned>
inline Sums dot4(Sums acc, const std::int8_t* x, FourWeights w) {
  const __m512i input = broadcast4(x);
  if constexpr (Unsigned) {
    const __m512i pairs = _mm512_maddubs_epi16(input, w.reg);
    return {_mm512_add_epi32(acc.reg, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
  } else {
    const __m512i even = _mm512_madd_epi16(even_bytes(input), even_bytes(w.reg));
    const __m512i odd = _mm512_madd_epi16(odd_bytes(input), odd_bytes(w.reg));
    return {_mm512_add_epi32(_mm512_add_epi32(acc.reg, even), odd)};
  }
}
