// Fake quantisation on Vec (Jacob et al. 2018), symmetric: zero point 0.

// Adding zero turns -0 into 0: an integer has no sign of zero.
inline Vec quantized(Vec x, Vec inverse) { return add(round_even(mul(x, inverse)), Vec::set(0.0f)); }

inline void fake_quantize_f32(const float* x, const float* scale, std::int64_t scale_step, std::int64_t n, float qmin,
                              float qmax, float* y) {
  const Vec low = Vec::set(qmin), high = Vec::set(qmax), one = Vec::set(1.0f);
  for (std::int64_t i = 0; i < n; i += Vec::kWidth) {
    const int part = n - i < Vec::kWidth ? static_cast<int>(n - i) : Vec::kWidth;
    const Vec s = scale_step ? Vec::load_part(scale + i, part, 1.0f) : Vec::set(scale[0]);
    const Vec q = quantized(Vec::load_part(x + i, part, 0.0f), div(one, s));
    mul(min(max(q, low), high), s).store_part(y + i, part);
  }
}

inline void fake_quantize_backward_f32(const float* dy, const float* x, const float* scale, std::int64_t scale_step,
                                       std::int64_t n, float qmin, float qmax, float* dx) {
  const Vec low = Vec::set(qmin - 0.5f), high = Vec::set(qmax + 0.5f), one = Vec::set(1.0f), zero = Vec::set(0.0f);
  for (std::int64_t i = 0; i < n; i += Vec::kWidth) {
    const int part = n - i < Vec::kWidth ? static_cast<int>(n - i) : Vec::kWidth;
    const Vec s = scale_step ? Vec::load_part(scale + i, part, 1.0f) : Vec::set(scale[0]);
    const Vec q = quantized(Vec::load_part(x + i, part, 0.0f), div(one, s));
    const Vec g = Vec::load_part(dy + i, part, 0.0f);
    // q is integral, so comparing with the limits moved by a half keeps both ends.
    select_greater(q, low, select_greater(high, q, g, zero), zero).store_part(dx + i, part);
  }
}
