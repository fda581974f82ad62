// What all integer convolutions on zmm registers share; meanings as in simd/dot4-inl.h. With masks of all lanes where
// GCC 12 warns as in vec.h.
struct Sums {
  static constexpr int kRows = 12;  // 24 of 32 registers are sums
  __m512i reg;

  static Sums load(const std::int32_t* p) { return {_mm512_loadu_si512(p)}; }
  void store(std::int32_t* p) const { _mm512_storeu_si512(p, reg); }
};

struct FourWeights {
  __m512i reg;

  static FourWeights load(const std::int8_t* p) { return {_mm512_loadu_si512(p)}; }
};

inline __m512i broadcast4(const std::int8_t* x) {
  int four;
  __builtin_memcpy(&four, x, sizeof four);
  return _mm512_set1_epi32(four);
}

inline Vec to_float(Sums a) { return {_mm512_maskz_cvtepi32_ps(0xffff, a.reg)}; }

inline Vec load_s8(const std::int8_t* p, int n) {
  const __m128i bytes = _mm_maskz_loadu_epi8(Vec::first_lanes(n), p);
  return {_mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, bytes))};
}

inline void store_s8(std::int8_t* p, Vec a, int n) {
  _mm512_mask_cvtepi32_storeu_epi8(p, Vec::first_lanes(n), _mm512_maskz_cvtps_epi32(0xffff, a.reg));
}
