// Direct and pointwise convolution on the tile of gemm-inl.h: the rows are neighbouring output pixels. Inside the
// picture their inputs lie evenly spaced for every tap; a tap that reaches over its left or right edge is a list of
// pointers, to pixels or to zeros (the indirect GEMM of Dukhan 2019), so edges cost no branch in the inner loop.

// acc[r][v] += sum over k < depth of a[r][k] * b[k][v], rows anywhere.
template <int Rows, int Vectors>
inline void gemm_accumulate_indirect(const float* const (&a)[Rows], const float* b, std::int64_t depth,
                                     Vec (&acc)[Rows][Vectors], GemmNext next) {
  for (std::int64_t k = 0; k < depth; ++k) {
    next.fetch();
    Vec weight[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) weight[v] = Vec::load(b + k * kConvBlock + v * Vec::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const Vec value = Vec::set(a[r][k]);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) acc[r][v] = mul_add(value, weight[v], acc[r][v]);
    }
  }
}

template <int Rows, int Vectors>
inline void start_from_bias(const ConvArgs& a, std::int64_t block, Vec (&acc)[Rows][Vectors]) {
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; ++v) {
    const Vec bias = Vec::load(a.bias + block * kConvBlock + v * Vec::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) acc[r][v] = bias;
  }
}

// Activation, residual and store of the first `channels` channels of one vector.
inline void finish_vector(const ConvArgs& a, Vec value, float* y, const float* residual, int channels) {
  if (a.relu) value = max(Vec::set(0.0f), value);  // NaN passes
  if (channels == Vec::kWidth) {
    if (residual) value = mul_add(Vec::set(a.residual_scale), Vec::load(residual), value);
    value.store(y);
  } else {
    if (residual) value = mul_add(Vec::set(a.residual_scale), Vec::load_part(residual, channels, 0.0f), value);
    value.store_part(y, channels);
  }
}

// Finishes the tile whose first row is output pixel `pixel`.
template <int Rows, int Vectors>
inline void finish_tile(const ConvArgs& a, std::int64_t pixel, std::int64_t block, const Vec (&acc)[Rows][Vectors]) {
  const std::int64_t first = block * kConvBlock;
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; ++v) {
    const std::int64_t at = first + v * Vec::kWidth;
    const int channels = a.out_c - at < Vec::kWidth ? static_cast<int>(a.out_c - at) : Vec::kWidth;
    float* y = a.y + pixel * a.out_stride + at;
    const float* residual = a.residual ? a.residual + pixel * a.residual_stride + at : nullptr;
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      finish_vector(a, acc[r][v], y + r * a.out_stride, residual ? residual + r * a.residual_stride : nullptr,
                    channels);
    }
  }
}

// The weights of the block after `block`, spread over the `tiles` of that one.
inline GemmNext next_block(const ConvArgs& a, std::int64_t depth, std::int64_t block, std::int64_t block_end,
                           std::int64_t tiles) {
  const std::int64_t following = block + 1 < block_end ? block + 1 : block;
  return {a.weight + following * depth * kConvBlock, (kConvBlock + tiles - 1) / tiles};
}

template <int Rows, int Vectors>
inline void direct_tile(const ConvArgs& a, std::int64_t row, std::int64_t column, std::int64_t block, GemmNext next) {
  Vec acc[Rows][Vectors];
  start_from_bias(a, block, acc);
  const std::int64_t tap_floats = a.in_c * kConvBlock, first_x = column * a.stride - a.padding;
  const bool inside = first_x >= 0 && first_x + (Rows - 1) * a.stride + a.kernel_w <= a.in_w;
  // Where pixels follow each other without a gap, the taps of a kernel row are one long run of inputs.
  const bool dense = a.in_stride == a.in_c;
  const std::int64_t runs = dense ? 1 : a.kernel_w, run = dense ? a.kernel_w * a.in_c : a.in_c;
  for (std::int64_t ky = 0; ky < a.kernel_h; ++ky) {
    const std::int64_t iy = row * a.stride + ky - a.padding;
    if (iy < 0 || iy >= a.in_h) continue;
    const float* weight = a.weight + (block * a.kernel_h + ky) * a.kernel_w * tap_floats;
    const float* source = a.x + (iy * a.in_w + first_x) * a.in_stride;
    if (inside) {
      for (std::int64_t i = 0; i < runs; ++i, weight += tap_floats, source += a.in_stride) {
        gemm_accumulate(source, a.stride * a.in_stride, weight, run, acc, next);
        next.weight += run * next.step;
      }
      continue;
    }
    for (std::int64_t kx = 0; kx < a.kernel_w; ++kx, weight += tap_floats, source += a.in_stride) {
      const std::int64_t first = first_x + kx;
      if (first >= 0 && first + (Rows - 1) * a.stride < a.in_w) {
        gemm_accumulate(source, a.stride * a.in_stride, weight, a.in_c, acc, next);
      } else {
        const float* pixel[Rows];
        for (int r = 0; r < Rows; ++r) {
          const std::int64_t ix = first + r * a.stride;
          pixel[r] = ix >= 0 && ix < a.in_w ? source + r * a.stride * a.in_stride : a.zeros;
        }
        gemm_accumulate_indirect(pixel, weight, a.in_c, acc, next);
      }
      next.weight += a.in_c * next.step;
    }
  }
  finish_tile(a, row * a.out_w + column, block, acc);
}

template <int Rows>
struct DirectTile {
  static void run(const ConvArgs& a, std::int64_t row, std::int64_t column, std::int64_t block, GemmNext next) {
    if (block_vectors(a.out_c, block) == 2) {
      direct_tile<Rows, 2>(a, row, column, block, next);
    } else {
      direct_tile<Rows, 1>(a, row, column, block, next);
    }
  }
};

inline void conv2d_direct_f32(const ConvArgs& a, std::int64_t row_begin, std::int64_t row_end, std::int64_t block_begin,
                              std::int64_t block_end) {
  const GemmTiles tiles(a.out_w);
  const std::int64_t all = (row_end - row_begin) * tiles.count, depth = a.kernel_h * a.kernel_w * a.in_c;
  if (all == 0) return;
  for (std::int64_t block = block_begin; block < block_end; ++block) {
    GemmNext next = next_block(a, depth, block, block_end, all);
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      std::int64_t column = 0;
      for (std::int64_t tile = 0; tile < tiles.count; ++tile) {
        const int columns = tiles.rows_of(tile);
        with_rows<DirectTile>(columns, a, row, column, block, next);
        column += columns;
        next.weight += next.step * depth;
      }
    }
  }
}

// The pixels are one row of a picture.
inline void conv2d_pointwise_f32(const ConvArgs& a, std::int64_t pixel_begin, std::int64_t pixel_end,
                                 std::int64_t block_begin, std::int64_t block_end) {
  ConvArgs row = a;
  row.x += pixel_begin * a.in_stride;
  row.y += pixel_begin * a.out_stride;
  if (a.residual) row.residual += pixel_begin * a.residual_stride;
  row.in_h = row.out_h = row.kernel_h = row.kernel_w = row.stride = 1;
  row.in_w = row.out_w = pixel_end - pixel_begin;
  row.padding = 0;
  conv2d_direct_f32(row, 0, 1, block_begin, block_end);
}
