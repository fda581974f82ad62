// What the two Winograd convolutions share: patches of the input with zeros around the picture, the order of the work,
// and the finish of an output tile.
//
// A convolution runs in chunks of tiles. V[tile][plane][channel] holds the transformed input of a chunk. Block of
// output channels by block, U[plane][channel][block] takes the transformed weights of a part of the channels and
// M[plane][tile][block] sums up the products; then the output tiles are made from M. Weights are transformed anew in
// each chunk: for 25 tiles that costs a fifth of the products, for 100 a twentieth, while weights transformed ahead are
// four times the bytes, which have to come from far away in a network that is larger than the caches.
//
// Rows and planes are padded so that the lines that a transform touches together fall into different sets of the cache.

constexpr std::int64_t kWinogradLine = 16;          // floats of a cache line
constexpr std::int64_t kWinogradCache = 192 << 10;  // floats of V and M together, where that is enough tiles
constexpr std::int64_t kWinogradProducts = 2106;  // tiles times planes at least: weights are not transformed too often
constexpr std::int64_t kWinogradDepth = 128;      // channels of U

inline std::int64_t winograd_odd_lines(std::int64_t floats) {
  return (floats + 2 * kWinogradLine - 1) / (2 * kWinogradLine) * (2 * kWinogradLine) + kWinogradLine;
}

// How a call is cut: a matter of speed only, results do not depend on it.
struct WinogradChunk {
  std::int64_t tiles;                    // of a chunk, at most
  std::int64_t v_row, v_plane;           // floats from tile to tile and from plane to plane
  std::int64_t m_plane, u_plane, depth;  // depth: channels of U, at most
};

inline WinogradChunk winograd_chunk(const ConvArgs& a, std::int64_t planes, std::int64_t tiles) {
  WinogradChunk c{};
  const std::int64_t lines = (a.in_c + kWinogradLine - 1) / kWinogradLine;
  c.v_plane = (lines % 4 == 0 ? lines + 1 : lines) * kWinogradLine;
  c.v_row = winograd_odd_lines(planes * c.v_plane - 1);
  c.tiles = kWinogradCache / (c.v_row + planes * kConvBlock);
  const std::int64_t least = kWinogradProducts / planes;
  if (c.tiles < least) c.tiles = least;
  if (c.tiles > tiles) c.tiles = tiles;
  c.depth = a.in_c < kWinogradDepth ? a.in_c : kWinogradDepth;
  c.m_plane = winograd_odd_lines(c.tiles * kConvBlock - 1);
  c.u_plane = winograd_odd_lines(c.depth * kConvBlock - 1);
  return c;
}

// Stores into one of many places that are filled side by side, and fetches the line `next` floats on, which follows.
inline void winograd_store(Vec value, float* to, std::int64_t next) {
  value.store(to);
  __builtin_prefetch(to + next, 1, 3);
}

// Pixel (y, x) of a patch holds a vector of channels at `at + y * row + x * column`.
struct WinogradPatch {
  const float* at;
  std::int64_t row, column;
};

// The patch of kSide x kSide pixels from (top, left) on and Vec::kWidth channels from `channel` on: the input itself
// where it has all of them, else a copy of what it has, among zeros.
template <int kSide>
inline WinogradPatch winograd_patch(const ConvArgs& a, std::int64_t top, std::int64_t left, std::int64_t channel,
                                    float* copy) {
  const std::int64_t row = a.in_w * a.in_stride, left_channels = a.in_c - channel;
  const float* from = a.x + top * row + left * a.in_stride + channel;
  if (top >= 0 && left >= 0 && top + kSide <= a.in_h && left + kSide <= a.in_w && left_channels >= Vec::kWidth) {
    return {from, row, a.in_stride};
  }
  const int channels = left_channels < Vec::kWidth ? static_cast<int>(left_channels) : Vec::kWidth;
  for (int y = 0; y < kSide; ++y) {
    const bool row_inside = top + y >= 0 && top + y < a.in_h;
    for (int x = 0; x < kSide; ++x) {
      const bool inside = row_inside && left + x >= 0 && left + x < a.in_w;
      const Vec value = inside ? Vec::load_part(from + y * row + x * a.in_stride, channels, 0.0f) : Vec::set(0.0f);
      value.store(copy + (y * kSide + x) * Vec::kWidth);
    }
  }
  return {copy, kSide * Vec::kWidth, Vec::kWidth};
}

// Writes a 4x4 tile of outputs from (top, left) on, the part inside of the picture, for `channels` channels from
// `channel` on: act(value + bias) + residual_scale * residual.
template <bool kWhole>
inline void winograd_finish(const ConvArgs& a, const Vec (&value)[4][4], std::int64_t top, std::int64_t left,
                            std::int64_t channel, int channels) {
  const Vec zero = Vec::set(0.0f), bias = Vec::load(a.bias + channel), scale = Vec::set(a.residual_scale);
  const int rows = !kWhole && a.out_h - top < 4 ? static_cast<int>(a.out_h - top) : 4;
  const int columns = !kWhole && a.out_w - left < 4 ? static_cast<int>(a.out_w - left) : 4;
  for (int y = 0; y < rows; ++y) {
    for (int x = 0; x < columns; ++x) {
      const std::int64_t pixel = (top + y) * a.out_w + left + x;
      Vec sum = add(value[y][x], bias);
      if (a.relu) sum = max(zero, sum);  // NaN passes
      if (a.residual) {
        const float* residual = a.residual + pixel * a.residual_stride + channel;
        sum = mul_add(scale, kWhole ? Vec::load(residual) : Vec::load_part(residual, channels, 0.0f), sum);
      }
      float* to = a.y + pixel * a.out_stride + channel;
      if (kWhole) {
        sum.store(to);
      } else {
        sum.store_part(to, channels);
      }
    }
  }
}

// Floats of U, V and M for at most `tiles` tiles.
template <class Algorithm>
inline std::int64_t winograd_workspace(const ConvArgs& a, std::int64_t tiles) {
  const WinogradChunk chunk = winograd_chunk(a, Algorithm::kPlanes, tiles);
  return chunk.tiles * chunk.v_row + Algorithm::kPlanes * chunk.m_plane + Algorithm::kWeightPlanes * chunk.u_plane;
}

// V of tiles [begin, end).
template <class Algorithm>
inline void winograd_input(const ConvArgs& a, const WinogradChunk& chunk, std::int64_t begin, std::int64_t end,
                           float* v) {
  constexpr int kSide = Algorithm::kSide;
  float copy[kSide * kSide * Vec::kWidth];
  const std::int64_t tile_columns = conv_tiles(a.out_w);
  for (std::int64_t tile = begin; tile < end; ++tile, v += chunk.v_row) {
    const std::int64_t top = tile / tile_columns * (4 * a.stride) - 1, left = tile % tile_columns * (4 * a.stride) - 1;
    for (std::int64_t c = 0; c < a.in_c; c += Vec::kWidth) {
      Algorithm::input_tile(winograd_patch<kSide>(a, top, left, c, copy), v + c, chunk.v_plane);
    }
  }
}

// Outputs of tiles [begin, end) and one block of channels.
template <class Algorithm>
inline void winograd_output(const ConvArgs& a, const WinogradChunk& chunk, std::int64_t begin, std::int64_t end,
                            std::int64_t block, const float* m) {
  const std::int64_t tile_columns = conv_tiles(a.out_w);
  for (std::int64_t tile = begin; tile < end; ++tile, m += kConvBlock) {
    const std::int64_t top = tile / tile_columns * 4, left = tile % tile_columns * 4;
    for (std::int64_t c = 0; c < kConvBlock; c += Vec::kWidth) {
      const std::int64_t channel = block * kConvBlock + c, channels = a.out_c - channel;
      if (channels <= 0) break;
      for (int y = 0; y < 4; ++y) {  // the lines that the next tile is written to
        const float* next = a.y + ((top + y) * a.out_w + left + 4) * a.out_stride + channel;
        for (int x = 0; x < 4; ++x) __builtin_prefetch(next + x * a.out_stride, 1, 2);
      }
      Vec value[4][4];
      Algorithm::output_tile(m + c, chunk.m_plane, value);
      if (channels >= Vec::kWidth && top + 4 <= a.out_h && left + 4 <= a.out_w) {
        winograd_finish<true>(a, value, top, left, channel, Vec::kWidth);
      } else {
        const int part = channels < Vec::kWidth ? static_cast<int>(channels) : Vec::kWidth;
        winograd_finish<false>(a, value, top, left, channel, part);
      }
    }
  }
}

// U of channels [begin, end) of a block's weights.
template <class Algorithm>
inline void winograd_weights(const ConvArgs& a, const WinogradChunk& chunk, std::int64_t block, int vectors,
                             std::int64_t begin, std::int64_t end, float* u) {
  const std::int64_t tap = a.in_c * kConvBlock;
  const float* weight = a.weight + block * 9 * tap;
  for (std::int64_t c = begin; c < end; ++c, u += kConvBlock) {
    for (int v = 0; v < vectors; ++v) {
      Algorithm::weight_tile(weight + c * kConvBlock + v * Vec::kWidth, tap, u + v * Vec::kWidth, chunk.u_plane);
    }
  }
}

// A tile of M: written for the first channels, added to for the others. The sum of a product runs over the channels in
// their order, however they are cut.
template <int Rows, int Vectors>
inline void winograd_product(const float* v, std::int64_t v_row, const float* u, std::int64_t depth, bool first,
                             float* m) {
  Vec acc[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < Vectors; ++i) {
      acc[r][i] = first ? Vec::set(0.0f) : Vec::load(m + r * kConvBlock + i * Vec::kWidth);
    }
  }
  gemm_accumulate(v, v_row, u, depth, acc);
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < Vectors; ++i) acc[r][i].store(m + r * kConvBlock + i * Vec::kWidth);
  }
}

template <int Rows>
struct WinogradProduct {
  static void run(const float* v, std::int64_t v_row, const float* u, std::int64_t depth, int vectors, bool first,
                  float* m) {
    if (vectors == 2) {
      winograd_product<Rows, 2>(v, v_row, u, depth, first, m);
    } else {
      winograd_product<Rows, 1>(v, v_row, u, depth, first, m);
    }
  }
};

// Tiles [tile_begin, tile_end) of blocks [block_begin, block_end).
template <class Algorithm>
inline void winograd_convolution(const ConvArgs& a, std::int64_t tile_begin, std::int64_t tile_end,
                                 std::int64_t block_begin, std::int64_t block_end, float* workspace) {
  const std::int64_t tiles = tile_end - tile_begin;
  const WinogradChunk chunk = winograd_chunk(a, Algorithm::kPlanes, tiles);
  const std::int64_t chunks = (tiles + chunk.tiles - 1) / chunk.tiles, step = (tiles + chunks - 1) / chunks;
  float* const v = workspace;
  float* const m = v + chunk.tiles * chunk.v_row;
  float* const u = m + Algorithm::kPlanes * chunk.m_plane;
  for (std::int64_t begin = tile_begin; begin < tile_end; begin += step) {
    const std::int64_t end = begin + step < tile_end ? begin + step : tile_end;
    winograd_input<Algorithm>(a, chunk, begin, end, v);
    for (std::int64_t block = block_begin; block < block_end; ++block) {
      const int vectors = block_vectors(a.out_c, block);
      for (std::int64_t c = 0; c < a.in_c; c += chunk.depth) {
        const std::int64_t depth = c + chunk.depth < a.in_c ? chunk.depth : a.in_c - c;
        winograd_weights<Algorithm>(a, chunk, block, vectors, c, c + depth, u);
        for (int plane = 0; plane < Algorithm::kPlanes; ++plane) {
          const float* rows = v + plane * chunk.v_plane + c;
          const float* weight = u + Algorithm::weight_plane(plane) * chunk.u_plane;
          float* to = m + plane * chunk.m_plane;
          for (std::int64_t left = end - begin; left > 0;) {
            const int tile = gemm_tile_rows(left);
            with_rows<WinogradProduct>(tile, rows, chunk.v_row, weight, depth, vectors, c == 0, to);
            rows += tile * chunk.v_row;
            to += tile * kConvBlock;
            left -= tile;
          }
        }
      }
      winograd_output<Algorithm>(a, chunk, begin, end, block, m);
    }
  }
}
