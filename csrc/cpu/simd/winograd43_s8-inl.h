// 3x3 convolution of quantised numbers, stride 1, by Winograd's F(4x4, 3x3) (Lavin and Gray 2015) in integers: 36
// products for 16 outputs instead of 144, and the same sums, bit for bit. Points 0, +-1, +-2 and infinity.
//
// The fractions that usually stand in G are multiplied out: a line of outputs comes 24, 12, 6 and 6 times too large,
// which makes two lines' factors a power of two, 64 at most, times 9. Inputs -128..127 become at most 100 * 128 and
// weights within +-127 at most 49 * 127 in magnitude: int16. All sums from there on are modulo 2^32, where 9 has an
// inverse: what is left is an output times 64 at most, exact where it fits an int32. kWinograd43WeightSum sees to that.
//
// The work goes as in winograd-inl.h, in chunks of tiles: V[tile][plane][channel] is int16, and so is
// U[plane][channel pair][block][2], made from the weights of the direct form block of output channels by block;
// M[tile][plane][block] is int32.

// Bytes rounded up to an odd number of cache lines, for what is touched side by side then lies in different sets.
constexpr std::int64_t winograd_s8_odd_lines(std::int64_t bytes) { return ((bytes + 63) / 64 | 1) * 64; }

constexpr std::int64_t kWinogradS8Planes = 36;
// Bytes of V and M together, where that is enough tiles: what has wider registers has larger caches as well.
constexpr std::int64_t kWinogradS8Cache = (24 << 10) * kConvBlock;
constexpr std::int64_t kWinogradS8Tiles = 50;          // of a chunk at least: weights are not transformed too often
constexpr std::int64_t kWinogradS8Depth = 256;         // channels of U, a multiple of 4
constexpr int kWinogradS8Run = 4;                      // tiles of a row that are worked on together
constexpr std::int64_t kWinogradS8M = 4 * kConvBlock;  // bytes of M from plane to plane, and from tile to tile
constexpr std::int64_t kWinogradS8MRow = winograd_s8_odd_lines(kWinogradS8Planes * kWinogradS8M);

// How a call is cut: a matter of speed only.
struct WinogradS8Chunk {
  std::int64_t tiles, depth;             // tiles of a chunk and channels of U, at most
  std::int64_t v_row, v_plane, u_plane;  // bytes from tile to tile and from plane to plane

  WinogradS8Chunk(const QuantConvArgs& a, std::int64_t all) {
    const std::int64_t channels = (a.in_c + Shorts::kWidth - 1) / Shorts::kWidth * Shorts::kWidth;
    v_plane = 2 * channels % 256 == 0 ? 2 * channels + 64 : 2 * channels;
    v_row = winograd_s8_odd_lines(kWinogradS8Planes * v_plane);
    tiles = kWinogradS8Cache / (v_row + kWinogradS8MRow);
    if (tiles < kWinogradS8Tiles) tiles = kWinogradS8Tiles;
    if (tiles > all) tiles = all;
    depth = channels < kWinogradS8Depth ? channels : kWinogradS8Depth;
    u_plane = winograd_s8_odd_lines(depth * 2 * kConvBlock);
  }
};

inline std::int64_t winograd43_s8_workspace(const QuantConvArgs& a, std::int64_t tiles) {
  const WinogradS8Chunk chunk(a, tiles);
  return (chunk.tiles * (chunk.v_row + kWinogradS8MRow) + kWinogradS8Planes * chunk.u_plane) / 4;
}

// B^T d: six inputs of a line to its six points 0, 1, -1, 2, -2, infinity.
inline void winograd_s8_input(const Shorts (&d)[6], Shorts (&t)[6]) {
  const Shorts even = sub(d[4], times4(d[2])), odd = sub(d[3], times4(d[1]));
  const Shorts difference = sub(d[4], d[2]), rise = sub(d[3], d[1]), twice = add(rise, rise);
  t[0] = add(times4(sub(d[0], d[2])), difference);
  t[1] = add(even, odd);
  t[2] = sub(even, odd);
  t[3] = add(difference, twice);
  t[4] = sub(difference, twice);
  t[5] = sub(sub(d[5], d[3]), times4(rise));
}

// G g: three weights of a line to its six points, those at 0 and infinity times 6, which is what A^T then leaves out.
inline void winograd_s8_weight(const Shorts (&g)[3], Shorts (&t)[6]) {
  const Shorts even = add(g[0], g[2]), wide = add(g[0], times4(g[2])), twice = add(g[1], g[1]);
  t[0] = add(times4(g[0]), add(g[0], g[0]));
  t[1] = add(even, g[1]);
  t[2] = sub(even, g[1]);
  t[3] = add(wide, twice);
  t[4] = sub(wide, twice);
  t[5] = add(times4(g[2]), add(g[2], g[2]));
}

// A^T m: six points of a line to its four outputs, output i times 3 << kWinogradS8Shift[i].
constexpr int kWinogradS8Shift[4] = {3, 2, 1, 1};
inline void winograd_s8_output(const Sums (&m)[6], Sums (&y)[4]) {
  const Sums near = add(m[1], m[2]), step = sub(m[2], m[1]), far = add(m[3], m[4]), wide = sub(m[3], m[4]);
  y[0] = sub(add(m[0], far), times4(near));
  y[1] = add(add(step, step), wide);
  y[2] = sub(far, near);
  y[3] = add(add(step, m[5]), add(wide, wide));
}

// V of `channels` channels of a run of tiles side by side; pixel: the inputs of their columns. Neighbours share two
// columns. The lines that the next tile is written to are fetched: up to 4 % of a convolution of 32 channels.
inline void winograd_s8_input_run(const std::int8_t* const (*pixel)[6], std::int64_t channel, int channels,
                                  std::int64_t run, char* v, std::int64_t row, std::int64_t plane) {
  const auto column = [&](const std::int8_t* const(&at)[6], Shorts(&t)[6]) {
    Shorts d[6];
#pragma GCC unroll 6
    for (int y = 0; y < 6; ++y) d[y] = Shorts::load_s8(at[y] + channel, channels);
    winograd_s8_input(d, t);
  };
  Shorts columns[6][6];
  column(pixel[0], columns[0]);
  column(pixel[1], columns[1]);
  for (std::int64_t i = 0; i < run; ++i, v += row) {
    for (int x = 2; x < 6; ++x) column(pixel[4 * i + x], columns[x]);
    for (int y = 0; y < 6; ++y) {
      Shorts d[6], t[6];
#pragma GCC unroll 6
      for (int x = 0; x < 6; ++x) d[x] = columns[x][y];
      winograd_s8_input(d, t);
#pragma GCC unroll 6
      for (int x = 0; x < 6; ++x) {
        char* const to = v + (6 * y + x) * plane;
        t[x].store(reinterpret_cast<std::int16_t*>(to));
        __builtin_prefetch(to + row, 1, 3);
      }
      columns[0][y] = d[4];
      columns[1][y] = d[5];
    }
  }
}

// Tiles of a row from `tile` on, before `end`, that are worked on together.
inline std::int64_t winograd_s8_run(std::int64_t tile, std::int64_t end, std::int64_t tile_columns) {
  const std::int64_t row_end = tile / tile_columns * tile_columns + tile_columns, most = tile + kWinogradS8Run;
  const std::int64_t run_end = row_end < end ? row_end : end;
  return (run_end < most ? run_end : most) - tile;
}

// V of tiles [begin, end).
inline void winograd_s8_inputs(const QuantConvArgs& a, const WinogradS8Chunk& chunk, std::int64_t begin,
                               std::int64_t end, char* v) {
  const std::int64_t tile_columns = conv_tiles(a.out_w);
  for (std::int64_t tile = begin; tile < end;) {
    const std::int64_t top = tile / tile_columns * 4 - 1, left = tile % tile_columns * 4 - 1;
    const std::int64_t run = winograd_s8_run(tile, end, tile_columns);
    const std::int8_t* pixel[4 * kWinogradS8Run + 2][6];
    for (int y = 0; y < 6; ++y) {
      const bool row_inside = top + y >= 0 && top + y < a.in_h;
      const std::int8_t* const row = a.x + ((top + y) * a.in_w + left) * a.in_stride;
      for (std::int64_t x = 0; x < 4 * run + 2; ++x) {
        const bool inside = row_inside && left + x >= 0 && left + x < a.in_w;
        pixel[x][y] = inside ? row + x * a.in_stride : a.zeros;
      }
    }
    std::int64_t c = 0;
    for (; c + Shorts::kWidth <= a.in_c; c += Shorts::kWidth) {
      winograd_s8_input_run(pixel, c, Shorts::kWidth, run, v + 2 * c, chunk.v_row, chunk.v_plane);
    }
    if (c < a.in_c) {
      winograd_s8_input_run(pixel, c, static_cast<int>(a.in_c - c), run, v + 2 * c, chunk.v_row, chunk.v_plane);
    }
    tile += run;
    v += run * chunk.v_row;
  }
}

// U of a pair out of four channels and a vector of output channels; tap: bytes from tap to tap of the weights.
template <int Pair>
inline void winograd_s8_weight_pair(const std::int8_t* weight, std::int64_t tap, char* u, std::int64_t plane) {
  Shorts lines[6][3];
#pragma GCC unroll 3
  for (int x = 0; x < 3; ++x) {
    Shorts g[3], t[6];
#pragma GCC unroll 3
    for (int y = 0; y < 3; ++y) g[y] = Shorts::load_pairs<Pair>(weight + (3 * y + x) * tap);
    winograd_s8_weight(g, t);
#pragma GCC unroll 6
    for (int y = 0; y < 6; ++y) lines[y][x] = t[y];
  }
#pragma GCC unroll 6
  for (int y = 0; y < 6; ++y) {
    Shorts t[6];
    winograd_s8_weight(lines[y], t);
#pragma GCC unroll 6
    for (int x = 0; x < 6; ++x) t[x].store(reinterpret_cast<std::int16_t*>(u + (6 * y + x) * plane));
  }
}

// U of channels [begin, end), multiples of 4, of a block's weights.
inline void winograd_s8_weights(const QuantConvArgs& a, const WinogradS8Chunk& chunk, std::int64_t block, int vectors,
                                std::int64_t begin, std::int64_t end, char* u) {
  const std::int64_t tap = (a.in_c + 3) / 4 * 4 * kConvBlock;
  const std::int8_t* weight = a.weight + block * 9 * tap + begin * kConvBlock;
  for (std::int64_t c = begin; c < end; c += 4, weight += 4 * kConvBlock, u += 8 * kConvBlock) {
    for (int v = 0; v < vectors; ++v) {
      const std::int8_t* four = weight + v * 4 * Vec::kWidth;
      winograd_s8_weight_pair<0>(four, tap, u + v * 4 * Vec::kWidth, chunk.u_plane);
      winograd_s8_weight_pair<1>(four, tap, u + v * 4 * Vec::kWidth + 4 * kConvBlock, chunk.u_plane);
    }
  }
}

// Rows of M: written for the first channels, added to for the others.
template <int Rows, int Vectors>
inline void winograd_s8_product(const char* v, std::int64_t v_row, const char* u, std::int64_t depth, bool first,
                                char* m) {
  const auto at = [m](int row, int i) {
    return reinterpret_cast<std::int32_t*>(m + row * kWinogradS8MRow) + i * Vec::kWidth;
  };
  Sums acc[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < Vectors; ++i) {
      acc[r][i] = first ? Sums{} : Sums::load(at(r, i));
    }
  }
  for (std::int64_t c = 0; c < depth; c += 4, v += 8, u += 8 * kConvBlock) {
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair) {
      Shorts weight[Vectors];
#pragma GCC unroll 2
      for (int i = 0; i < Vectors; ++i) {
        weight[i] = Shorts::load(reinterpret_cast<const std::int16_t*>(u + pair * 4 * kConvBlock) + i * Shorts::kWidth);
      }
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        const Shorts input = Shorts::set_pair(reinterpret_cast<const std::int16_t*>(v + r * v_row) + 2 * pair);
#pragma GCC unroll 2
        for (int i = 0; i < Vectors; ++i) acc[r][i] = dot2(acc[r][i], input, weight[i]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < Vectors; ++i) acc[r][i].store(at(r, i));
  }
}

template <int Rows>
struct WinogradS8Product {
  static void run(const char* v, std::int64_t v_row, const char* u, std::int64_t depth, int vectors, bool first,
                  char* m) {
    if (vectors == 2) {
      winograd_s8_product<Rows, 2>(v, v_row, u, depth, first, m);
    } else {
      winograd_s8_product<Rows, 1>(v, v_row, u, depth, first, m);
    }
  }
};

// The sums of a tile and a vector of channels; row: numbers from a row of sums to the next, pixel: from pixel to pixel.
inline void winograd_s8_output_tile(const char* m, std::int32_t* sums, std::int64_t row, std::int64_t pixel) {
  Sums lines[4][6];
#pragma GCC unroll 6
  for (int x = 0; x < 6; ++x) {
    Sums column[6], t[4];
#pragma GCC unroll 6
    for (int y = 0; y < 6; ++y) {
      column[y] = Sums::load(reinterpret_cast<const std::int32_t*>(m + (6 * y + x) * kWinogradS8M));
    }
    winograd_s8_output(column, t);
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) lines[y][x] = t[y];
  }
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y) {
    Sums t[4];
    winograd_s8_output(lines[y], t);
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) {
      ninth(t[x], kWinogradS8Shift[y] + kWinogradS8Shift[x]).store(sums + y * row + x * pixel);
    }
  }
}

// Outputs of tiles [begin, end) and one block of channels.
inline void winograd_s8_outputs(const QuantConvArgs& a, std::int64_t begin, std::int64_t end, std::int64_t block,
                                int vectors, const char* m) {
  const std::int64_t tile_columns = conv_tiles(a.out_w);
  constexpr std::int64_t kRow = 4 * kWinogradS8Run * kConvBlock;
  std::int32_t sums[4 * kRow];
  const std::int64_t pixel = vectors * Vec::kWidth;
  for (std::int64_t tile = begin; tile < end;) {
    const std::int64_t row = tile / tile_columns * 4, column = tile % tile_columns * 4;
    const std::int64_t run = winograd_s8_run(tile, end, tile_columns);
    for (std::int64_t i = 0; i < run; ++i, m += kWinogradS8MRow) {
      for (int v = 0; v < vectors; ++v) {
        winograd_s8_output_tile(m + 4 * v * Vec::kWidth, sums + 4 * i * pixel + v * Vec::kWidth, kRow, pixel);
      }
    }
    const std::int64_t left = a.out_w - column;
    const int columns = static_cast<int>(left < 4 * run ? left : 4 * run);
    for (int y = 0; y < 4 && row + y < a.out_h; ++y) {
      finish_tile_s8(a, (row + y) * a.out_w + column, block, sums + y * kRow, columns, vectors);
    }
    tile += run;
  }
}

inline void conv2d_winograd43_s8(const QuantConvArgs& a, std::int64_t tile_begin, std::int64_t tile_end,
                                 std::int64_t block_begin, std::int64_t block_end, float* workspace) {
  const std::int64_t tiles = tile_end - tile_begin, channels = (a.in_c + 3) / 4 * 4;
  if (tiles <= 0) return;
  const WinogradS8Chunk chunk(a, tiles);
  const std::int64_t chunks = (tiles + chunk.tiles - 1) / chunk.tiles, step = (tiles + chunks - 1) / chunks;
  char* const v = reinterpret_cast<char*>(workspace);
  char* const m = v + chunk.tiles * chunk.v_row;
  char* const u = m + chunk.tiles * kWinogradS8MRow;
  for (std::int64_t begin = tile_begin; begin < tile_end; begin += step) {
    const std::int64_t end = begin + step < tile_end ? begin + step : tile_end;
    const GemmTiles rows(end - begin, Shorts::kRows);
    winograd_s8_inputs(a, chunk, begin, end, v);
    for (std::int64_t block = block_begin; block < block_end; ++block) {
      const int vectors = block_vectors(a.out_c, block);
      for (std::int64_t c = 0; c < channels; c += chunk.depth) {
        const std::int64_t depth = c + chunk.depth < channels ? chunk.depth : channels - c;
        winograd_s8_weights(a, chunk, block, vectors, c, c + depth, u);
        for (std::int64_t plane = 0; plane < kWinogradS8Planes; ++plane) {
          const char* from = v + plane * chunk.v_plane + 2 * c;
          char* to = m + plane * kWinogradS8M;
          for (std::int64_t i = 0; i < rows.count; ++i) {
            const int tile_rows = rows.rows_of(i);
            with_rows<WinogradS8Product, Shorts::kRows>(tile_rows, from, chunk.v_row, u + plane * chunk.u_plane, depth,
                                                        vectors, c == 0, to);
            from += tile_rows * chunk.v_row;
            to += tile_rows * kWinogradS8MRow;
          }
        }
      }
      winograd_s8_outputs(a, begin, end, block, vectors, m);
    }
  }
}
