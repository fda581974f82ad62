// Direct and pointwise convolution of quantised numbers, in tiles of neighbouring output pixels as in conv2d-inl.h.

// Multiplier, offset, activation and residual of one vector of sums.
struct FinishS8 {
  Vec multiplier, offset, lowest, residual_multiplier;

  FinishS8(const QuantConvArgs& a, std::int64_t at)
      : multiplier(Vec::load(a.multiplier + at)),
        offset(Vec::load(a.offset + at)),
        lowest(Vec::set(a.relu ? 0.0f : -__builtin_inff())),
        residual_multiplier(Vec::set(a.residual_multiplier)) {}

  Vec scaled(Sums sums) const { return add(mul(to_float(sums), multiplier), offset); }
  Vec with_residual(Vec value, const std::int8_t* residual, int channels) const {
    return add(max(lowest, value), mul(load_s8(residual, channels), residual_multiplier));
  }
};

// Finishes the tile of `rows` pixels from output pixel `pixel` on; sums: [rows][vectors][kWidth]. A function of its
// own, so that there is one for all shapes of tiles.
__attribute__((noinline)) void finish_tile_s8(const QuantConvArgs& a, std::int64_t pixel, std::int64_t block,
                                              const std::int32_t* sums, int rows, int vectors) {
  for (int v = 0; v < vectors; ++v) {
    const std::int64_t at = block * kConvBlock + v * Vec::kWidth;
    const int channels = a.out_c - at < Vec::kWidth ? static_cast<int>(a.out_c - at) : Vec::kWidth;
    const FinishS8 finish(a, at);
    for (int r = 0; r < rows; ++r) {
      Vec value = finish.scaled(Sums::load(sums + (r * vectors + v) * Vec::kWidth));
      value = a.residual ? finish.with_residual(value, a.residual + (pixel + r) * a.residual_stride + at, channels)
                         : max(finish.lowest, value);
      const std::int64_t out = (pixel + r) * a.out_stride + at;
      if (a.y) {
        store_s8(a.y + out, value, channels);
      } else if (channels == Vec::kWidth) {
        value.store(a.y_f32 + out);
      } else {
        value.store_part(a.y_f32 + out, channels);
      }
    }
  }
}

// The same for a whole block to int8, two rows at a time. `Residual`: there is one.
template <bool Residual>
__attribute__((noinline)) void finish_whole_tile_s8(const QuantConvArgs& a, std::int64_t pixel, std::int64_t block,
                                                    const std::int32_t* sums, int rows) {
  constexpr int kWidth = Vec::kWidth;
  const std::int64_t at = block * kConvBlock;
  const FinishS8 low(a, at), high(a, at + kWidth);
  // Without a residual no v is NaN, and the activation may wait until four vectors are one.
  const std::int8_t lowest = a.relu && !Residual ? 0 : -128;
  std::int8_t* y = a.y + pixel * a.out_stride + at;
  const std::int8_t* residual = Residual ? a.residual + pixel * a.residual_stride + at : nullptr;
  for (int r = 0; r < rows; r += 2, sums += 2 * kConvBlock, y += 2 * a.out_stride) {
    const int next = r + 1 < rows;  // else the last row twice
    Vec value[4] = {low.scaled(Sums::load(sums)), high.scaled(Sums::load(sums + kWidth)),
                    low.scaled(Sums::load(sums + next * kConvBlock)),
                    high.scaled(Sums::load(sums + next * kConvBlock + kWidth))};
    if constexpr (Residual) {
      const std::int8_t* next_residual = residual + next * a.residual_stride;
      value[0] = low.with_residual(value[0], residual, kWidth);
      value[1] = low.with_residual(value[1], residual + kWidth, kWidth);
      value[2] = low.with_residual(value[2], next_residual, kWidth);
      value[3] = low.with_residual(value[3], next_residual + kWidth, kWidth);
      residual += 2 * a.residual_stride;
    }
    store_s8(y, y + next * a.out_stride, value, lowest);
  }
}

// The weights of the next block, fetched into the second-level cache while those before them are used, as GemmNext
// does: here some at a time with every kernel row, since the innermost loop has no register left.
struct NextWeights {
  const std::int8_t* weight;
  std::int64_t bytes;

  void fetch() {
    for (const std::int8_t* end = weight + bytes; weight < end; weight += 64) __builtin_prefetch(weight, 0, 2);
  }
};

// Adds all taps to the sums of the tile from output pixel (row, column) on.
template <bool Unsigned, int Rows, int Vectors>
inline void accumulate_taps(const QuantConvArgs& a, std::int64_t row, std::int64_t column, std::int64_t block,
                            NextWeights next, Sums (&acc)[Rows][Vectors]) {
  const std::int64_t tap_bytes = (a.in_c + 3) / 4 * 4 * kConvBlock, step = a.stride * a.in_stride;
  const std::int64_t first_x = column * a.stride - a.padding;
  const std::int8_t* weight = a.weight + block * a.kernel_h * a.kernel_w * tap_bytes;
  // Where pixels follow each other without a gap, the taps of a kernel row are one long run of inputs.
  const bool dense = a.in_stride == a.in_c && a.in_c % 4 == 0 && first_x >= 0 &&
                     first_x + (Rows - 1) * a.stride + a.kernel_w <= a.in_w;
  const std::int64_t taps = dense ? a.kernel_w : 1;
  for (std::int64_t ky = 0; ky < a.kernel_h; ++ky) {
    next.fetch();
    const std::int64_t iy = row * a.stride + ky - a.padding;
    if (iy < 0 || iy >= a.in_h) {
      weight += a.kernel_w * tap_bytes;
      continue;
    }
    for (std::int64_t kx = 0; kx < a.kernel_w; kx += taps, weight += taps * tap_bytes) {
      const std::int64_t first = first_x + kx;
      const std::int8_t* source = a.x + (iy * a.in_w + first) * a.in_stride;
      if (first >= 0 && first + (Rows - 1) * a.stride < a.in_w) {
        accumulate_s8<Unsigned>(EvenRows{source, step}, weight, taps * a.in_c, acc);
      } else {
        const std::int8_t* pixel[Rows];
        for (int r = 0; r < Rows; ++r) {
          const std::int64_t ix = first + r * a.stride;
          pixel[r] = ix >= 0 && ix < a.in_w ? source + r * step : a.zeros;
        }
        accumulate_s8<Unsigned>(AnyRows{pixel}, weight, a.in_c, acc);
      }
    }
  }
}

// All calls inlined, since a reference to sums would put them into memory; and a function of its own, since inside of
// its caller registers run short.
template <bool Unsigned, int Rows, int Vectors>
__attribute__((flatten, noinline)) void direct_tile_s8(const QuantConvArgs& a, std::int64_t row, std::int64_t column,
                                                       std::int64_t block, NextWeights next) {
  Sums acc[Rows][Vectors];
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; ++v) {
    const Sums first = first_sums(a, block * kConvBlock + v * Vec::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) acc[r][v] = first;
  }
  accumulate_taps<Unsigned>(a, row, column, block, next, acc);
  std::int32_t sums[Rows * Vectors * Vec::kWidth];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) acc[r][v].store(sums + (r * Vectors + v) * Vec::kWidth);
  }
  const std::int64_t pixel = row * a.out_w + column;
  const bool whole = Vectors == 2 && a.y && a.out_c - block * kConvBlock >= kConvBlock;
  if (whole && a.residual) {
    finish_whole_tile_s8<true>(a, pixel, block, sums, Rows);
  } else if (whole) {
    finish_whole_tile_s8<false>(a, pixel, block, sums, Rows);
  } else {
    finish_tile_s8(a, pixel, block, sums, Rows, Vectors);
  }
}

template <int Rows>
struct DirectTileS8 {
  static void run(const QuantConvArgs& a, std::int64_t row, std::int64_t column, std::int64_t block, NextWeights next) {
    if constexpr (kOneDot4) {
      run_as<true>(a, row, column, block, next);
    } else if (a.unsigned_input) {
      run_as<true>(a, row, column, block, next);
    } else {
      run_as<false>(a, row, column, block, next);
    }
  }
  template <bool Unsigned>
  static void run_as(const QuantConvArgs& a, std::int64_t row, std::int64_t column, std::int64_t block,
                     NextWeights next) {
    if (block_vectors(a.out_c, block) == 2) {
      direct_tile_s8<Unsigned, Rows, 2>(a, row, column, block, next);
    } else {
      direct_tile_s8<Unsigned, Rows, 1>(a, row, column, block, next);
    }
  }
};

// `fetch_next`: whether the weights are not in the second-level cache.
inline void direct_blocks_s8(const QuantConvArgs& a, std::int64_t row_begin, std::int64_t row_end,
                             std::int64_t block_begin, std::int64_t block_end, bool fetch_next) {
  const GemmTiles tiles(a.out_w, Sums::kRows);
  const std::int64_t kernel_rows = (row_end - row_begin) * tiles.count * a.kernel_h;
  if (kernel_rows == 0) return;
  const std::int64_t block_bytes = a.kernel_h * a.kernel_w * ((a.in_c + 3) / 4 * 4 * kConvBlock);
  const std::int64_t share = (block_bytes + 64 * kernel_rows - 1) / (64 * kernel_rows) * 64;
  for (std::int64_t block = block_begin; block < block_end; ++block) {
    NextWeights next = {a.weight + (block + 1) * block_bytes, fetch_next && block + 1 < block_end ? share : 0};
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      std::int64_t column = 0;
      for (std::int64_t tile = 0; tile < tiles.count; ++tile) {
        const int columns = tiles.rows_of(tile);
        with_rows<DirectTileS8, Sums::kRows>(columns, a, row, column, block, next);
        column += columns;
        next.weight += a.kernel_h * next.bytes;
      }
    }
  }
}

inline void conv2d_direct_s8(const QuantConvArgs& a, std::int64_t row_begin, std::int64_t row_end,
                             std::int64_t block_begin, std::int64_t block_end) {
  direct_blocks_s8(a, row_begin, row_end, block_begin, block_end, true);
}

// Pixels as one row of a picture, for 1x1.
inline QuantConvArgs row_of_pixels(const QuantConvArgs& a, std::int64_t pixel_begin, std::int64_t pixel_end) {
  QuantConvArgs row = a;
  row.x += pixel_begin * a.in_stride;
  if (a.y) row.y += pixel_begin * a.out_stride;
  if (a.y_f32) row.y_f32 += pixel_begin * a.out_stride;
  if (a.residual) row.residual += pixel_begin * a.residual_stride;
  row.in_h = row.out_h = row.kernel_h = row.kernel_w = row.stride = 1;
  row.in_w = row.out_w = pixel_end - pixel_begin;
  row.padding = 0;
  return row;
}

inline void conv2d_pointwise_s8(const QuantConvArgs& a, std::int64_t pixel_begin, std::int64_t pixel_end,
                                std::int64_t block_begin, std::int64_t block_end) {
  conv2d_direct_s8(row_of_pixels(a, pixel_begin, pixel_end), 0, 1, block_begin, block_end);
}
