// Integer convolutions on ymm registers; meanings as in simd/dot4-inl.h. vpmaddubsw multiplies unsigned by signed bytes
// and adds pairs of products in int16, where it would saturate: two products of magnitudes up to 128 and 127 fit.
struct Sums {
  static constexpr int kRows = 5;  // 10 of 16 registers are sums
  __m256i reg;

  static Sums load(const std::int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  void store(std::int32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reg); }
};

struct FourWeights {
  __m256i reg;

  static FourWeights load(const std::int8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
};

constexpr bool kOneDot4 = false;

inline Sums first_sums(const QuantConvArgs&, std::int64_t) { return {_mm256_setzero_si256()}; }

// Signed: |x| * (w with the sign of x).
template <bool Unsigned>
inline Sums dot4(Sums acc, const std::int8_t* x, FourWeights w) {
  int four;
  __builtin_memcpy(&four, x, sizeof four);
  const __m256i input = _mm256_set1_epi32(four);
  const __m256i pairs = Unsigned ? _mm256_maddubs_epi16(input, w.reg)
                                 : _mm256_maddubs_epi16(_mm256_abs_epi8(input), _mm256_sign_epi8(w.reg, input));
  return {_mm256_add_epi32(acc.reg, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}

inline Vec to_float(Sums a) { return {_mm256_cvtepi32_ps(a.reg)}; }

inline Vec load_s8(const std::int8_t* p, int n) {
  long long bytes = 0;
  if (n == Vec::kWidth) {
    __builtin_memcpy(&bytes, p, sizeof bytes);
  } else {
    std::int8_t part[sizeof bytes] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    __builtin_memcpy(&bytes, part, sizeof bytes);
  }
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes)))};
}

// As int32. What lies beyond int32, and a NaN, becomes the lowest: a large number may not.
inline __m256i rounded(Vec a) { return _mm256_cvtps_epi32(min(Vec::set(127.0f), a).reg); }

inline void store_s8(std::int8_t* p, Vec a, int n) {
  const __m256i whole = rounded(a);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  const long long bytes = _mm_cvtsi128_si64(_mm_packs_epi16(words, words));
  if (n == Vec::kWidth) {
    __builtin_memcpy(p, &bytes, sizeof bytes);
  } else {
    std::int8_t part[sizeof bytes];
    __builtin_memcpy(part, &bytes, sizeof bytes);
    for (int i = 0; i < n; ++i) p[i] = part[i];
  }
}

inline void store_s8(std::int8_t* p, std::int8_t* q, const Vec (&a)[4], std::int8_t lowest) {
  const __m256i low = _mm256_packs_epi32(rounded(a[0]), rounded(a[1]));
  const __m256i high = _mm256_packs_epi32(rounded(a[2]), rounded(a[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing stays within halves of a register
  const __m256i mixed = _mm256_max_epi8(_mm256_packs_epi16(low, high), _mm256_set1_epi8(lowest));
  const __m256i bytes = _mm256_permutevar8x32_epi32(mixed, order);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(bytes));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm256_extracti128_si256(bytes, 1));
}

inline Vec load_pixels3(const float* p) {
  const __m256 six = _mm256_maskload_ps(p, Vec::first_lanes(6));  // the others are zero
  return {_mm256_permutevar8x32_ps(six, _mm256_setr_epi32(0, 1, 2, 6, 3, 4, 5, 7))};
}
