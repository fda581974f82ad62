// Convolutions of signed inputs: what a piece of a row of outputs reads is copied to the stack as x + 128, without gaps
// and with what lies outside the picture, for all blocks of output channels. That is one exclusive or per 64 inputs
// where one per broadcast would be half of the work.

constexpr std::int64_t kShiftedBytes = 32 << 10;       // most of the first-level cache
constexpr std::int64_t kMostShiftedBytes = 256 << 10;  // one output with in_c = 1, the largest kernel

// y[i] = x[i] + 128 for i < n. Up to 63 bytes more are written: a store with a mask is not forwarded to loads.
inline void shift_inputs(const std::int8_t* x, std::int64_t n, std::int8_t* y) {
  const __m512i top = _mm512_set1_epi8(-128);
  for (; n >= 64; n -= 64, x += 64, y += 64) {
    _mm512_storeu_si512(y, _mm512_xor_si512(_mm512_loadu_si512(x), top));
  }
  if (n > 0) _mm512_storeu_si512(y, _mm512_xor_si512(_mm512_maskz_loadu_epi8(~0ull >> (64 - n), x), top));
}

// `columns` pixels of row iy from column x on, each of in_c bytes up to a multiple of four, and up to 63 bytes more.
inline void shift_pixels(const QuantConvArgs& a, std::int64_t iy, std::int64_t x, std::int64_t columns,
                         std::int8_t* y) {
  const std::int64_t bytes = (a.in_c + 3) / 4 * 4;
  if (iy < 0 || iy >= a.in_h) {
    __builtin_memset(y, 128, static_cast<unsigned long>(columns * bytes));
    return;
  }
  const std::int64_t left = x < 0 ? -x : 0, right = x + columns > a.in_w ? x + columns - a.in_w : 0;
  const std::int64_t inside = columns - left - right;
  if (inside <= 0) {
    __builtin_memset(y, 128, static_cast<unsigned long>(columns * bytes));
    return;
  }
  __builtin_memset(y, 128, static_cast<unsigned long>(left * bytes));
  y += left * bytes;
  const std::int8_t* source = a.x + (iy * a.in_w + x + left) * a.in_stride;
  if (bytes == a.in_stride && bytes == a.in_c) {
    shift_inputs(source, inside * bytes, y);
  } else {
    for (std::int64_t i = 0; i < inside; ++i) shift_inputs(source + i * a.in_stride, a.in_c, y + i * bytes);
  }
  __builtin_memset(y + inside * bytes, 128, static_cast<unsigned long>(right * bytes));
}

template <std::int64_t Bytes>
__attribute__((noinline)) void conv2d_shifted_s8(const QuantConvArgs& a, std::int64_t row_begin, std::int64_t row_end,
                                                 std::int64_t block_begin, std::int64_t block_end) {
  alignas(64) std::int8_t inputs[Bytes + 64];
  QuantConvArgs part = a;
  part.x = inputs;
  part.in_h = a.kernel_h;
  part.in_c = part.in_stride = (a.in_c + 3) / 4 * 4;
  part.out_h = 1;
  part.padding = 0;
  // Columns of inputs that fit, and of outputs.
  const std::int64_t fit = Bytes / (a.kernel_h * part.in_c);
  const std::int64_t most = fit > a.kernel_w ? (fit - a.kernel_w) / a.stride + 1 : 1;
  const GemmTiles pieces(a.out_w, most);
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    std::int64_t column = 0;
    for (std::int64_t piece = 0; piece < pieces.count; ++piece, column += part.out_w) {
      part.out_w = pieces.rows_of(piece);
      part.in_w = (part.out_w - 1) * a.stride + a.kernel_w;
      for (std::int64_t ky = 0; ky < a.kernel_h; ++ky) {
        shift_pixels(a, row * a.stride + ky - a.padding, column * a.stride - a.padding, part.in_w,
                     inputs + ky * part.in_w * part.in_c);
      }
      const std::int64_t pixel = row * a.out_w + column;
      if (a.y) part.y = a.y + pixel * a.out_stride;
      if (a.y_f32) part.y_f32 = a.y_f32 + pixel * a.out_stride;
      if (a.residual) part.residual = a.residual + pixel * a.residual_stride;
      direct_blocks_s8(part, 0, 1, block_begin, block_end, false);
    }
  }
}

inline void conv2d_direct_any_s8(const QuantConvArgs& a, std::int64_t row_begin, std::int64_t row_end,
                                 std::int64_t block_begin, std::int64_t block_end) {
  if (a.unsigned_input) {
    conv2d_direct_s8(a, row_begin, row_end, block_begin, block_end);
  } else if (a.kernel_h * a.kernel_w * ((a.in_c + 3) / 4 * 4) <= kShiftedBytes) {
    conv2d_shifted_s8<kShiftedBytes>(a, row_begin, row_end, block_begin, block_end);
  } else {
    conv2d_shifted_s8<kMostShiftedBytes>(a, row_begin, row_end, block_begin, block_end);
  }
}

inline void conv2d_pointwise_any_s8(const QuantConvArgs& a, std::int64_t pixel_begin, std::int64_t pixel_end,
                                    std::int64_t block_begin, std::int64_t block_end) {
  conv2d_direct_any_s8(row_of_pixels(a, pixel_begin, pixel_end), 0, 1, block_begin, block_end);
}
