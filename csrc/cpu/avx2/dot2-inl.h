// The integer Winograd convolution on ymm registers; meanings as in simd/dot2-inl.h.
struct Shorts {
  static constexpr int kWidth = 2 * Vec::kWidth;
  static constexpr int kRows = 6;  // 12 of 16 registers are sums
  __m256i reg;

  static Shorts load(const std::int16_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  static Shorts load_s8(const std::int8_t* p, int n) {
    if (n == kWidth) return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
    std::int8_t part[kWidth] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(part)))};
  }
  template <int Pair>
  static Shorts load_pairs(const std::int8_t* p) {
    constexpr char a = 2 * Pair, b = a + 1, no = -1;  // each into the upper byte of its lane
    const __m256i upper = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(no, a, no, b, no, a + 4, no, b + 4, no, a + 8, no, b + 8, no, a + 12, no, b + 12));
    const __m256i fours = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm256_srai_epi16(_mm256_shuffle_epi8(fours, upper), 8)};
  }
  // The same two in all lanes.
  static Shorts set_pair(const std::int16_t* p) {
    int two;
    __builtin_memcpy(&two, p, sizeof two);
    return {_mm256_set1_epi32(two)};
  }
  void store(std::int16_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reg); }
};

inline Shorts add(Shorts a, Shorts b) { return {_mm256_add_epi16(a.reg, b.reg)}; }
inline Shorts sub(Shorts a, Shorts b) { return {_mm256_sub_epi16(a.reg, b.reg)}; }
inline Shorts times4(Shorts a) { return {_mm256_slli_epi16(a.reg, 2)}; }

inline Sums dot2(Sums acc, Shorts pair, Shorts w) {
  acc.reg = _mm256_add_epi32(acc.reg, _mm256_madd_epi16(pair.reg, w.reg));
  // Or the compiler adds products first and keeps sums in memory, for want of registers.
  __asm__ volatile("" : "+x"(acc.reg));
  return acc;
}

inline Sums add(Sums a, Sums b) { return {_mm256_add_epi32(a.reg, b.reg)}; }
inline Sums sub(Sums a, Sums b) { return {_mm256_sub_epi32(a.reg, b.reg)}; }
inline Sums times4(Sums a) { return {_mm256_slli_epi32(a.reg, 2)}; }
inline Sums ninth(Sums a, int shift) {
  return {_mm256_srai_epi32(_mm256_mullo_epi32(a.reg, _mm256_set1_epi32(0x38e38e39)), shift)};
}
