// Eight floats in a ymm register. Included inside an unnamed namespace, after <immintrin.h>; meanings as in
// generic/vec.h.
struct Vec {
  static constexpr int kWidth = 8;
  static constexpr int kGemmRows = 6;  // 12 of 16 registers are sums
  __m256 reg;

  static Vec set(float a) { return {_mm256_set1_ps(a)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Vec load_part(const float* p, int n, float rest) {
    const __m256i mask = first_lanes(n);
    return {_mm256_blendv_ps(_mm256_set1_ps(rest), _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask))};
  }
  void store(float* p) const { _mm256_storeu_ps(p, reg); }
  void store_part(float* p, int n) const { _mm256_maskstore_ps(p, first_lanes(n), reg); }
};

inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.reg, b.reg)}; }
inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.reg, b.reg)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.reg, b.reg)}; }
inline Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.reg, b.reg)}; }
inline Vec mul_add(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.reg, b.reg, c.reg)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.reg, b.reg)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.reg, b.reg)}; }
inline Vec round_even(Vec a) { return {_mm256_round_ps(a.reg, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec exp2_int(Vec a) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a.reg), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}
inline unsigned greater_bits(Vec a, Vec b) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a.reg, b.reg, _CMP_GT_OQ)));
}
inline unsigned equal_bits(Vec a, Vec b) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a.reg, b.reg, _CMP_EQ_OQ)));
}
inline Vec select_greater(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm256_blendv_ps(no.reg, yes.reg, _mm256_cmp_ps(a.reg, b.reg, _CMP_GT_OQ))};
}
