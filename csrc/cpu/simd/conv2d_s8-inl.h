// Direct and pointwise convolution of quantised numbers, in tiles of neighbouring output pixels as in conv2d-inl.h, on
// the sums of dot4-inl.h.

// Where the inputs of a tile's rows lie: evenly spaced, or anywhere.
struct EvenRows {
  const std::int8_t* first;
  std::int64_t stride;
  const std::int8_t* row(int r) const { return first + r * stride; }
};
struct AnyRows {
  const std::int8_t* const* rows;
  const std::int8_t* row(int r) const { return rows[r]; }
};

// acc[r][v] += sum over k < depth of row(r)[k] * b[k / 4][v][lane][k % 4].
template <bool Unsigned, int Rows, int Vectors, class Source>
inline void accumulate_s8(Source source, const std::int8_t* b, std::int64_t depth, Sums (&acc)[Rows][Vectors]) {
  FourWeights weight[Vectors];
  std::int64_t k = 0;
  for (; k + 4 <= depth; k += 4, b += 4 * kConvBlock) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) weight[v] = FourWeights::load(b + 4 * v * Vec::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) acc[r][v] = dot4<Unsigned>(acc[r][v], source.row(r) + k, weight[v]);
    }
  }
  if (k == depth) return;
  std::int8_t last[Rows][4] = {};
  for (int r = 0; r < Rows; ++r) {
    for (std::int64_t i = 0; i < depth - k; ++i) last[r][i] = source.row(r)[k + i];
  }
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; ++v) weight[v] = FourWeights::load(b + 4 * v * Vec::kWidth);
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) acc[r][v] = dot4<Unsigned>(acc[r][v], last[r], weight[v]);
  }
}

// Finishes `rows` pixels from output pixel `pixel` on, `channels` channels from `channel` on; sums: a vector for each
// pixel, `step` numbers from one to the next. Whole: a whole vector of channels, and y is int8.
template <bool Whole>
inline void finish_vector_s8(const QuantConvArgs& a, std::int64_t pixel, std::int64_t channel, int channels,
                             const std::int32_t* sums, int step, int rows) {
  // Out of `a`, which a store of bytes might change for all that the compiler knows.
  const std::int64_t out_stride = a.out_stride, residual_stride = a.residual_stride;
  std::int8_t* const y = a.y ? a.y + pixel * out_stride + channel : nullptr;
  float* const y_f32 = a.y ? nullptr : a.y_f32 + pixel * out_stride + channel;
  const std::int8_t* const residual = a.residual ? a.residual + pixel * residual_stride + channel : nullptr;
  const Vec multiplier = Vec::load(a.multiplier + channel), offset = Vec::load(a.offset + channel);
  const Vec least = Vec::set(a.relu ? 0.0f : -__builtin_inff()), residual_multiplier = Vec::set(a.residual_multiplier);
  const int width = Whole ? Vec::kWidth : channels;
  for (std::int64_t r = 0; r < rows; ++r, sums += step) {
    Vec value = max(least, add(mul(to_float(Sums::load(sums)), multiplier), offset));  // NaN passes
    if (residual) value = add(value, mul(load_s8(residual + r * residual_stride, width), residual_multiplier));
    if (Whole || y) {
      store_s8(y + r * out_stride, value, width);
    } else {
      value.store_part(y_f32 + r * out_stride, width);
    }
  }
}

// Finishes the tile of `rows` pixels from output pixel `pixel` on; sums: [rows][vectors][kWidth]. A function of its
// own, so that there is one for all shapes of tiles.
__attribute__((noinline)) void finish_tile_s8(const QuantConvArgs& a, std::int64_t pixel, std::int64_t block,
                                              const std::int32_t* sums, int rows, int vectors) {
  for (int v = 0; v < vectors; ++v, sums += Vec::kWidth) {
    const std::int64_t channel = block * kConvBlock + v * Vec::kWidth;
    const int channels = a.out_c - channel < Vec::kWidth ? static_cast<int>(a.out_c - channel) : Vec::kWidth;
    if (a.y && channels == Vec::kWidth) {
      finish_vector_s8<true>(a, pixel, channel, channels, sums, vectors * Vec::kWidth, rows);
    } else {
      finish_vector_s8<false>(a, pixel, channel, channels, sums, vectors * Vec::kWidth, rows);
    }
  }
}

template <bool Unsigned, int Rows, int Vectors>
inline void direct_tile_s8(const QuantConvArgs& a, std::int64_t row, std::int64_t column, std::int64_t block) {
  Sums acc[Rows][Vectors];
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; ++v) {
    const Sums first = first_sums<Unsigned>(a.weight_sum + block * kConvBlock + v * Vec::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) acc[r][v] = first;
  }
  const std::int64_t tap_bytes = (a.in_c + 3) / 4 * 4 * kConvBlock, first_x = column * a.stride - a.padding;
  const std::int8_t* weight = a.weight + block * a.kernel_h * a.kernel_w * tap_bytes;
  for (std::int64_t ky = 0; ky < a.kernel_h; ++ky) {
    const std::int64_t iy = row * a.stride + ky - a.padding;
    const bool padding = iy < 0 || iy >= a.in_h;
    if (padding && !kZerosCount<Unsigned>) {
      weight += a.kernel_w * tap_bytes;
      continue;
    }
    for (std::int64_t kx = 0; kx < a.kernel_w; ++kx, weight += tap_bytes) {
      const std::int64_t first = first_x + kx, step = a.stride * a.in_stride;
      const std::int8_t* source = a.x + (iy * a.in_w + first) * a.in_stride;
      if (!padding && first >= 0 && first + (Rows - 1) * a.stride < a.in_w) {
        accumulate_s8<Unsigned>(EvenRows{source, step}, weight, a.in_c, acc);
      } else {
        const std::int8_t* pixel[Rows];
        for (int r = 0; r < Rows; ++r) {
          const std::int64_t ix = first + r * a.stride;
          pixel[r] = !padding && ix >= 0 && ix < a.in_w ? source + r * step : a.zeros;
        }
        accumulate_s8<Unsigned>(AnyRows{pixel}, weight, a.in_c, acc);
      }
    }
  }
  std::int32_t sums[Rows * Vectors * Vec::kWidth];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) acc[r][v].store(sums + (r * Vectors + v) * Vec::kWidth);
  }
  finish_tile_s8(a, row * a.out_w + column, block, sums, Rows, Vectors);
}

template <int Rows>
struct DirectTileS8 {
  static void run(const QuantConvArgs& a, std::int64_t row, std::int64_t column, std::int64_t block) {
    if (a.unsigned_input) {
      run_as<true>(a, row, column, block);
    } else {
      run_as<false>(a, row, column, block);
    }
  }
  template <bool Unsigned>
  static void run_as(const QuantConvArgs& a, std::int64_t row, std::int64_t column, std::int64_t block) {
    if (block_vectors(a.out_c, block) == 2) {
      direct_tile_s8<Unsigned, Rows, 2>(a, row, column, block);
    } else {
      direct_tile_s8<Unsigned, Rows, 1>(a, row, column, block);
    }
  }
};

inline void conv2d_direct_s8(const QuantConvArgs& a, std::int64_t row_begin, std::int64_t row_end,
                             std::int64_t block_begin, std::int64_t block_end) {
  const GemmTiles tiles(a.out_w, Sums::kRows);
  for (std::int64_t block = block_begin; block < block_end; ++block) {
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      std::int64_t column = 0;
      for (std::int64_t tile = 0; tile < tiles.count; ++tile) {
        const int columns = tiles.rows_of(tile);
        with_rows<DirectTileS8, Sums::kRows>(columns, a, row, column, block);
        column += columns;
      }
    }
  }
}

// The pixels are one row of a picture.
inline void conv2d_pointwise_s8(const QuantConvArgs& a, std::int64_t pixel_begin, std::int64_t pixel_end,
                                std::int64_t block_begin, std::int64_t block_end) {
  QuantConvArgs row = a;
  row.x += pixel_begin * a.in_stride;
  if (a.y) row.y += pixel_begin * a.out_stride;
  if (a.y_f32) row.y_f32 += pixel_begin * a.out_stride;
  if (a.residual) row.residual += pixel_begin * a.residual_stride;
  row.in_h = row.out_h = row.kernel_h = row.kernel_w = row.stride = 1;
  row.in_w = row.out_w = pixel_end - pixel_begin;
  row.padding = 0;
  conv2d_direct_s8(row, 0, 1, block_begin, block_end);
}
