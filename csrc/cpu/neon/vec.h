// Eight floats in two NEON registers. Included inside an unnamed namespace, after <arm_neon.h>; meanings as in
// generic/vec.h.
struct Vec {
  static constexpr int kWidth = 8;
  static constexpr int kGemmRows = 6;  // 24 of 32 registers are sums
  float32x4_t low, high;

  static Vec set(float a) { return {vdupq_n_f32(a), vdupq_n_f32(a)}; }
  static Vec load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
  static Vec load_part(const float* p, int n, float rest) {
    float lane[kWidth];
    for (int i = 0; i < kWidth; ++i) lane[i] = i < n ? p[i] : rest;
    return load(lane);
  }
  void store(float* p) const {
    vst1q_f32(p, low);
    vst1q_f32(p + 4, high);
  }
  void store_part(float* p, int n) const {
    float lane[kWidth];
    store(lane);
    for (int i = 0; i < n; ++i) p[i] = lane[i];
  }
};

inline Vec add(Vec a, Vec b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline Vec sub(Vec a, Vec b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
inline Vec mul(Vec a, Vec b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
inline Vec div(Vec a, Vec b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
inline Vec mul_add(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
inline Vec select_greater(Vec a, Vec b, Vec yes, Vec no) {
  return {vbslq_f32(vcgtq_f32(a.low, b.low), yes.low, no.low), vbslq_f32(vcgtq_f32(a.high, b.high), yes.high, no.high)};
}
// NEON's own give NaN where either is NaN.
inline Vec min(Vec a, Vec b) { return select_greater(b, a, a, b); }
inline Vec max(Vec a, Vec b) { return select_greater(a, b, a, b); }
inline Vec round_even(Vec a) { return {vrndnq_f32(a.low), vrndnq_f32(a.high)}; }
inline Vec exp2_int(Vec a) {
  const int32x4_t bias = vdupq_n_s32(127);
  return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(a.low), bias), 23)),
          vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(a.high), bias), 23))};
}
inline unsigned lane_bits(uint32x4_t low, uint32x4_t high) {
  const std::uint32_t bit[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  return vaddvq_u32(vandq_u32(low, vld1q_u32(bit))) + vaddvq_u32(vandq_u32(high, vld1q_u32(bit + 4)));
}
inline unsigned greater_bits(Vec a, Vec b) { return lane_bits(vcgtq_f32(a.low, b.low), vcgtq_f32(a.high, b.high)); }
inline unsigned equal_bits(Vec a, Vec b) { return lane_bits(vceqq_f32(a.low, b.low), vceqq_f32(a.high, b.high)); }
