// Eight floats as plain C++: the meaning of every Vec operation, and the variant for any processor.
// Included inside an unnamed namespace; no other header may be included here.
struct Vec {
  static constexpr int kWidth = 8;
  static constexpr int kGemmRows = 3;  // 12 of 16 xmm registers, two to a Vec, are sums
  float lane[kWidth];

  static Vec set(float a) {
    Vec r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = a;
    return r;
  }
  static Vec load(const float* p) {
    Vec r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = p[i];
    return r;
  }
  // The first n lanes (0 <= n <= 8); the others are `rest`.
  static Vec load_part(const float* p, int n, float rest) {
    Vec r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = i < n ? p[i] : rest;
    return r;
  }
  void store(float* p) const {
    for (int i = 0; i < kWidth; ++i) p[i] = lane[i];
  }
  void store_part(float* p, int n) const {
    for (int i = 0; i < n; ++i) p[i] = lane[i];
  }
};

#define YN_LANES(expression)                                        \
  do {                                                              \
    Vec r;                                                          \
    for (int i = 0; i < Vec::kWidth; ++i) r.lane[i] = (expression); \
    return r;                                                       \
  } while (false)

inline Vec add(Vec a, Vec b) { YN_LANES(a.lane[i] + b.lane[i]); }
inline Vec sub(Vec a, Vec b) { YN_LANES(a.lane[i] - b.lane[i]); }
inline Vec mul(Vec a, Vec b) { YN_LANES(a.lane[i] * b.lane[i]); }
inline Vec div(Vec a, Vec b) { YN_LANES(a.lane[i] / b.lane[i]); }
// a * b + c; whether it rounds once or twice is the ISA's choice.
inline Vec mul_add(Vec a, Vec b, Vec c) { YN_LANES(a.lane[i] * b.lane[i] + c.lane[i]); }
// b where a is NaN or not the smaller (larger) one.
inline Vec min(Vec a, Vec b) { YN_LANES(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]); }
inline Vec max(Vec a, Vec b) { YN_LANES(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]); }
// To the nearest integer, ties to even; |a| < 2^22 or the value is returned as it is.
inline Vec round_even(Vec a) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  YN_LANES(a.lane[i] > -4194304.0f && a.lane[i] < 4194304.0f ? (a.lane[i] + kMagic) - kMagic : a.lane[i]);
}
// 2^a for integral a in [-126, 127]; any value for NaN.
inline Vec exp2_int(Vec a) {
  Vec r;
  for (int i = 0; i < Vec::kWidth; ++i) {
    // Adding 1.5 * 2^23 leaves the integer in the low bits; no conversion, so NaN is only a wrong number.
    const float shifted = a.lane[i] + 12582912.0f;
    unsigned bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23;
    __builtin_memcpy(&r.lane[i], &bits, sizeof bits);
  }
  return r;
}
// Bit i is set where a > b (a == b) in lane i; never for NaN.
inline unsigned greater_bits(Vec a, Vec b) {
  unsigned bits = 0;
  for (int i = 0; i < Vec::kWidth; ++i) bits |= static_cast<unsigned>(a.lane[i] > b.lane[i]) << i;
  return bits;
}
inline unsigned equal_bits(Vec a, Vec b) {
  unsigned bits = 0;
  for (int i = 0; i < Vec::kWidth; ++i) bits |= static_cast<unsigned>(a.lane[i] == b.lane[i]) << i;
  return bits;
}
// Lane by lane: a > b ? yes : no.
inline Vec select_greater(Vec a, Vec b, Vec yes, Vec no) { YN_LANES(a.lane[i] > b.lane[i] ? yes.lane[i] : no.lane[i]); }

#undef YN_LANES
