// exp and sigmoid on Vec. exp by Cody-Waite reduction to |r| <= ln(2)/2 and a degree-7 polynomial (Taylor coefficients;
// the first term left out, r^8/40320, is under 6e-9 there): 2 ulp on the range used.

// exp(x) for x <= 88; 0 below -87, where the result leaves the normal range. NaN gives NaN.
inline Vec exp_f32(Vec x) {
  // max(low, x) returns x, so NaN, when the comparison fails.
  const Vec clamped = max(Vec::set(-87.0f), x);
  const Vec n = round_even(mul(clamped, Vec::set(1.44269504088896341f)));
  Vec r = mul_add(n, Vec::set(-0.693359375f), clamped);  // ln 2 in two parts, the first with few bits
  r = mul_add(n, Vec::set(2.12194440054690583e-4f), r);
  Vec p = Vec::set(1.0f / 5040.0f);
  p = mul_add(p, r, Vec::set(1.0f / 720.0f));
  p = mul_add(p, r, Vec::set(1.0f / 120.0f));
  p = mul_add(p, r, Vec::set(1.0f / 24.0f));
  p = mul_add(p, r, Vec::set(1.0f / 6.0f));
  p = mul_add(p, r, Vec::set(0.5f));
  p = mul_add(mul(p, r), r, add(r, Vec::set(1.0f)));
  return select_greater(Vec::set(-87.0f), x, Vec::set(0.0f), mul(p, exp2_int(n)));
}

// exp(-|x|) never overflows, and both signs of x share it.
inline Vec sigmoid(Vec x) {
  const Vec zero = Vec::set(0.0f), one = Vec::set(1.0f);
  const Vec negative = sub(zero, x);
  const Vec e = exp_f32(min(x, negative));  // min returns its second operand for NaN, which is NaN too
  return div(select_greater(zero, x, e, one), add(one, e));
}
