// From float32 to int8 and back, with one scale.

inline void quantize_run(const float* x, std::int64_t n, Vec inverse, std::int8_t* y) {
  std::int64_t i = 0;
  for (; i + 4 * Vec::kWidth <= n; i += 4 * Vec::kWidth) {
    Vec four[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) four[v] = mul(Vec::load(x + i + v * Vec::kWidth), inverse);
    store_s8(y + i, y + i + 2 * Vec::kWidth, four, -128);
  }
  for (; i < n; i += Vec::kWidth) {
    const int part = n - i < Vec::kWidth ? static_cast<int>(n - i) : Vec::kWidth;
    store_s8(y + i, mul(Vec::load_part(x + i, part, 0.0f), inverse), part);
  }
}

// Three channels without a gap to four, as many pixels as go into whole registers; returns how many.
inline std::int64_t quantize_pixels3(const float* x, std::int64_t pixels, Vec inverse, std::int8_t* y) {
  constexpr int kPixels = Vec::kWidth / 4;
  std::int64_t done = 0;
  for (; done + 4 * kPixels <= pixels; done += 4 * kPixels) {
    Vec four[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) four[v] = mul(load_pixels3(x + 3 * (done + v * kPixels)), inverse);
    store_s8(y + 4 * done, y + 4 * done + 2 * Vec::kWidth, four, -128);
  }
  return done;
}

inline void quantize_s8(const QuantizeArgs& a, std::int64_t pixel_begin, std::int64_t pixel_end) {
  const Vec inverse = Vec::set(a.inv_scale);
  const bool dense = a.in_stride == a.in_c && a.out_stride == a.out_c;
  if (dense && a.in_c == a.out_c) {
    const std::int64_t first = pixel_begin * a.in_c;
    return quantize_run(a.x + first, pixel_end * a.in_c - first, inverse, a.y + first);
  }
  std::int64_t pixel = pixel_begin;
  if (dense && a.in_c == 3 && a.out_c == 4) {
    pixel += quantize_pixels3(a.x + 3 * pixel, pixel_end - pixel, inverse, a.y + 4 * pixel);
  }
  for (; pixel < pixel_end; ++pixel) {
    std::int8_t* y = a.y + pixel * a.out_stride;
    quantize_run(a.x + pixel * a.in_stride, a.in_c, inverse, y);
    for (std::int64_t c = a.in_c; c < a.out_c; ++c) y[c] = 0;
  }
}

inline void dequantize_run(const std::int8_t* x, std::int64_t n, Vec scale, float* y) {
  std::int64_t i = 0;
  for (; i + Vec::kWidth <= n; i += Vec::kWidth) mul(load_s8(x + i, Vec::kWidth), scale).store(y + i);
  if (i < n) {
    const int part = static_cast<int>(n - i);
    mul(load_s8(x + i, part), scale).store_part(y + i, part);
  }
}

inline void dequantize_s8(const DequantizeArgs& a, std::int64_t pixel_begin, std::int64_t pixel_end) {
  const Vec scale = Vec::set(a.scale);
  if (a.in_stride == a.channels && a.out_stride == a.channels) {
    const std::int64_t first = pixel_begin * a.channels;
    return dequantize_run(a.x + first, pixel_end * a.channels - first, scale, a.y + first);
  }
  for (std::int64_t pixel = pixel_begin; pixel < pixel_end; ++pixel) {
    dequantize_run(a.x + pixel * a.in_stride, a.channels, scale, a.y + pixel * a.out_stride);
  }
}
