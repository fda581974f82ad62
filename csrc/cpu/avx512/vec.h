// Sixteen floats in a zmm register, with what the convolutions need; meanings as in generic/vec.h. Included inside an
// unnamed namespace, after <immintrin.h>.
struct Vec {
  static constexpr int kWidth = 16;
  static constexpr int kGemmRows = 14;  // 28 of 32 registers are sums
  __m512 reg;

  static Vec set(float a) { return {_mm512_set1_ps(a)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static Vec load_part(const float* p, int n, float rest) {
    return {_mm512_mask_loadu_ps(_mm512_set1_ps(rest), first_lanes(n), p)};
  }
  void store(float* p) const { _mm512_storeu_ps(p, reg); }
  void store_part(float* p, int n) const { _mm512_mask_storeu_ps(p, first_lanes(n), reg); }
};

inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.reg, b.reg)}; }
inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.reg, b.reg)}; }
inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.reg, b.reg)}; }
inline Vec mul_add(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.reg, b.reg, c.reg)}; }
// With a mask of all lanes: GCC 12 warns that the plain forms read an uninitialised value (its bug 105593).
inline Vec min(Vec a, Vec b) { return {_mm512_maskz_min_ps(0xffff, a.reg, b.reg)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_maskz_max_ps(0xffff, a.reg, b.reg)}; }
