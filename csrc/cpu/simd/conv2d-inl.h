// Direct convolution as an indirect GEMM (Dukhan 2019): every tap of an output tile is a pointer to in_c inputs, or to
// zeros in the padding, so edges cost no branch in the inner loop. A tile is 6 columns x 16 channels: 12 accumulators,
// 2 weights and 1 broadcast fill 15 of the 16 ymm registers.

constexpr int kTileColumns = 6;

// Multiplies and adds one kernel tap: acc[p][0..15] += sum_c pixel[p][c] * weight[c][0..15].
inline void conv2d_tap(const float* const* pixel, const float* weight, std::int64_t channels, Vec (&low)[kTileColumns],
                       Vec (&high)[kTileColumns]) {
  for (std::int64_t c = 0; c < channels; ++c) {
    const Vec w0 = Vec::load(weight + c * kConvBlock), w1 = Vec::load(weight + c * kConvBlock + 8);
    for (int p = 0; p < kTileColumns; ++p) {
      const Vec value = Vec::set(pixel[p][c]);
      low[p] = mul_add(value, w0, low[p]);
      high[p] = mul_add(value, w1, high[p]);
    }
  }
}

inline void conv2d_direct_f32(const Conv2dArgs& a, std::int64_t row_begin, std::int64_t row_end,
                              std::int64_t block_begin, std::int64_t block_end) {
  const Vec zero = Vec::set(0.0f), residual_scale = Vec::set(a.residual_scale);
  const std::int64_t tap_floats = a.in_c * kConvBlock;
  for (std::int64_t block = block_begin; block < block_end; ++block) {
    const float* block_weight = a.weight + block * a.kernel_h * a.kernel_w * tap_floats;
    const std::int64_t left_channels = a.out_c - block * kConvBlock;
    const int channels = left_channels < kConvBlock ? static_cast<int>(left_channels) : kConvBlock;
    const int low_part = channels < 8 ? channels : 8, high_part = channels - low_part;
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      for (std::int64_t column = 0; column < a.out_w; column += kTileColumns) {
        const int columns = a.out_w - column < kTileColumns ? static_cast<int>(a.out_w - column) : kTileColumns;
        Vec low[kTileColumns], high[kTileColumns];
        for (int p = 0; p < kTileColumns; ++p) {
          low[p] = Vec::load(a.bias + block * kConvBlock);
          high[p] = Vec::load(a.bias + block * kConvBlock + 8);
        }
        const float* weight = block_weight;
        for (std::int64_t ky = 0; ky < a.kernel_h; ++ky) {
          const std::int64_t iy = row * a.stride + ky - a.padding;
          for (std::int64_t kx = 0; kx < a.kernel_w; ++kx, weight += tap_floats) {
            const float* pixel[kTileColumns];
            for (int p = 0; p < kTileColumns; ++p) {
              const std::int64_t ix = (column + p) * a.stride + kx - a.padding;
              const bool inside = p < columns && iy >= 0 && iy < a.in_h && ix >= 0 && ix < a.in_w;
              pixel[p] = inside ? a.x + (iy * a.in_w + ix) * a.in_c : a.zeros;
            }
            conv2d_tap(pixel, weight, a.in_c, low, high);
          }
        }
        for (int p = 0; p < columns; ++p) {
          const std::int64_t at = (row * a.out_w + column + p) * a.out_c + block * kConvBlock;
          Vec first = low[p], second = high[p];
          if (a.relu) {
            first = max(zero, first);  // NaN passes
            second = max(zero, second);
          }
          if (a.residual) {
            first = mul_add(residual_scale, Vec::load_part(a.residual + at, low_part, 0.0f), first);
            second = mul_add(residual_scale, Vec::load_part(a.residual + at + low_part, high_part, 0.0f), second);
          }
          first.store_part(a.y + at, low_part);
          second.store_part(a.y + at + low_part, high_part);
        }
      }
    }
  }
}
