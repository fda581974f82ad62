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

// As int32. What lies beyond int32, and a NaN, becomes the lowest: a large number may not.
inline __m512i rounded(Vec a) { return _mm512_maskz_cvtps_epi32(0xffff, min(Vec::set(127.0f), a).reg); }

inline void store_s8(std::int8_t* p, Vec a, int n) {
  _mm_mask_storeu_epi8(p, Vec::first_lanes(n), _mm512_maskz_cvtsepi32_epi8(0xffff, rounded(a)));
}

inline void store_s8(std::int8_t* p, std::int8_t* q, const Vec (&a)[4], std::int8_t lowest) {
  const __m512i low = _mm512_packs_epi32(rounded(a[0]), rounded(a[1]));
  const __m512i high = _mm512_packs_epi32(rounded(a[2]), rounded(a[3]));
  // Packing stays within quarters of a register.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i mixed = _mm512_max_epi8(_mm512_packs_epi16(low, high), _mm512_set1_epi8(lowest));
  const __m512i bytes = _mm512_maskz_permutexvar_epi32(0xffff, order, mixed);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_extracti64x4_epi64(0xf, bytes, 0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm512_maskz_extracti64x4_epi64(0xf, bytes, 1));
}

inline Vec load_pixels3(const float* p) {
  const __m512i place = _mm512_setr_epi32(0, 1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 0, 9, 10, 11, 0);
  return {_mm512_maskz_permutexvar_ps(0x7777, place, _mm512_maskz_loadu_ps(0x0fff, p))};
}
