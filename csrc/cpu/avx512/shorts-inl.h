// What the integer Winograd convolutions on zmm registers share; meanings as in simd/dot2-inl.h. Included after
// sums-inl.h.
struct Shorts {
  static constexpr int kWidth = 2 * Vec::kWidth;
  static constexpr int kRows = 14;  // 28 of 32 registers are sums
  __m512i reg;

  static Shorts load(const std::int16_t* p) { return {_mm512_loadu_si512(p)}; }
  static Shorts load_s8(const std::int8_t* p, int n) {
    const __mmask32 first = static_cast<__mmask32>((std::uint64_t{1} << n) - 1);
    return {_mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(first, p))};
  }
  template <int Pair>
  static Shorts load_pairs(const std::int8_t* p) {
    constexpr char a = 2 * Pair, b = a + 1, no = -1;  // each into the upper byte of its lane
    const __m512i upper = _mm512_maskz_broadcast_i32x4(
        0xffff, _mm_setr_epi8(no, a, no, b, no, a + 4, no, b + 4, no, a + 8, no, b + 8, no, a + 12, no, b + 12));
    return {_mm512_srai_epi16(_mm512_shuffle_epi8(_mm512_loadu_si512(p), upper), 8)};
  }
  static Shorts set_pair(const std::int16_t* p) {
    int two;
    __builtin_memcpy(&two, p, sizeof two);
    return {_mm512_set1_epi32(two)};
  }
  void store(std::int16_t* p) const { _mm512_storeu_si512(p, reg); }
};

inline Shorts add(Shorts a, Shorts b) { return {_mm512_add_epi16(a.reg, b.reg)}; }
inline Shorts sub(Shorts a, Shorts b) { return {_mm512_sub_epi16(a.reg, b.reg)}; }
inline Shorts times4(Shorts a) { return {_mm512_slli_epi16(a.reg, 2)}; }

inline Sums add(Sums a, Sums b) { return {_mm512_add_epi32(a.reg, b.reg)}; }
inline Sums sub(Sums a, Sums b) { return {_mm512_sub_epi32(a.reg, b.reg)}; }
inline Sums times4(Sums a) { return {_mm512_maskz_slli_epi32(0xffff, a.reg, 2)}; }
inline Sums ninth(Sums a, int shift) {
  const __m512i whole = _mm512_mullo_epi32(a.reg, _mm512_set1_epi32(0x38e38e39));
  return {_mm512_maskz_srai_epi32(0xffff, whole, static_cast<unsigned>(shift))};
}
