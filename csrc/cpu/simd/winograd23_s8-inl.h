// 3x3 convolution of quantised numbers, stride 1, by Winograd's F(2x2, 3x3) (Lavin and Gray 2015) in integers: 16
// products for 4 outputs instead of 36, and the same sums, bit for bit. G times 2 is made of integers, so that products
// come out times 4. Inputs -128..127 become at most 512 and weights within +-127 at most 9 * 127 = 1143 in magnitude:
// int16. The fourfold sum of a convolution is at most 4 * 9 * 128 * 127 = 512 * 1143 times the input channels in
// magnitude, which is also the bound of a plane's sum of products; kWinograd23Channels keeps it in int32. What wraps
// around between the planes and the fourfold sum does no harm.
//
// The work goes as in winograd-inl.h, in chunks of tiles: V[plane][tile][channel] is int16, and so is U[plane][channel
// pair][block][2], made from the weights of the direct form block of output channels by block; M[plane][tile][block] is
// int32. To transform the weights costs as much as the products of two or three tiles.

constexpr std::int64_t kWinograd23Planes = 16;
constexpr std::int64_t kWinograd23Cache = 512 << 10;  // bytes of V and M together, where that is enough tiles
constexpr std::int64_t kWinograd23Tiles = 48;         // of a chunk at least: weights are not transformed too often
constexpr std::int64_t kWinograd23Depth = 256;        // channels of U, a multiple of 4
constexpr int kWinograd23Run = 8;                     // tiles that are finished together

// Bytes of a plane: an odd number of lines, for planes are touched side by side and then lie in different sets of the
// cache.
inline std::int64_t winograd23_plane(std::int64_t bytes) { return ((bytes + 63) / 64 | 1) * 64; }

// How a call is cut: a matter of speed only. All but tiles and depth in bytes.
struct Winograd23Chunk {
  std::int64_t tiles, depth;  // tiles of a chunk and channels of U, at most
  std::int64_t v_row, v_plane, m_plane, u_plane;

  Winograd23Chunk(const QuantConvArgs& a, std::int64_t all) {
    v_row = (a.in_c + Shorts::kWidth - 1) / Shorts::kWidth * Shorts::kWidth * 2;
    tiles = kWinograd23Cache / (kWinograd23Planes * (v_row + 4 * kConvBlock));
    if (tiles < kWinograd23Tiles) tiles = kWinograd23Tiles;
    if (tiles > all) tiles = all;
    const std::int64_t channels = (a.in_c + 3) / 4 * 4;
    depth = channels < kWinograd23Depth ? channels : kWinograd23Depth;
    v_plane = winograd23_plane(tiles * v_row);
    m_plane = winograd23_plane(tiles * 4 * kConvBlock);
    u_plane = winograd23_plane(depth * 2 * kConvBlock);
  }
};

inline std::int64_t winograd23_s8_workspace(const QuantConvArgs& a, std::int64_t tiles) {
  const Winograd23Chunk chunk(a, tiles);
  return kWinograd23Planes * (chunk.v_plane + chunk.m_plane + chunk.u_plane) / 4;
}

// B^T d: four inputs of a line to its four points 0, 1, -1, infinity.
inline void winograd23_input(const Shorts (&d)[4], Shorts (&t)[4]) {
  t[0] = sub(d[0], d[2]);
  t[1] = add(d[1], d[2]);
  t[2] = sub(d[2], d[1]);
  t[3] = sub(d[1], d[3]);
}

// 2 G g: three weights of a line to its four points.
inline void winograd23_weight(const Shorts (&g)[3], Shorts (&t)[4]) {
  const Shorts even = add(g[0], g[2]);
  t[0] = add(g[0], g[0]);
  t[1] = add(even, g[1]);
  t[2] = sub(even, g[1]);
  t[3] = add(g[2], g[2]);
}

// A^T m: four points of a line to its two outputs.
inline void winograd23_output(const Sums (&m)[4], Sums (&y)[2]) {
  y[0] = add(m[0], add(m[1], m[2]));
  y[1] = sub(sub(m[1], m[2]), m[3]);
}

// V of `channels` channels of a run of tiles side by side; pixel: the inputs of their columns. Neighbours share two
// columns.
inline void winograd23_input_run(const std::int8_t* const (*pixel)[4], std::int64_t channel, int channels,
                                 std::int64_t run, char* v, std::int64_t row, std::int64_t plane) {
  const auto column = [&](const std::int8_t* const(&at)[4], Shorts(&t)[4]) {
    Shorts d[4];
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) d[y] = Shorts::load_s8(at[y] + channel, channels);
    winograd23_input(d, t);
  };
  Shorts columns[4][4];
  column(pixel[0], columns[0]);
  column(pixel[1], columns[1]);
  for (std::int64_t i = 0; i < run; ++i, v += row) {
    column(pixel[2 * i + 2], columns[2]);
    column(pixel[2 * i + 3], columns[3]);
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) {
      Shorts t[4];
      winograd23_input({columns[0][y], columns[1][y], columns[2][y], columns[3][y]}, t);
#pragma GCC unroll 4
      for (int x = 0; x < 4; ++x) t[x].store(reinterpret_cast<std::int16_t*>(v + (4 * y + x) * plane));
      columns[0][y] = columns[2][y];
      columns[1][y] = columns[3][y];
    }
  }
}

// Tiles of a row from `tile` on, before `end`, that are worked on together.
inline std::int64_t winograd23_run(std::int64_t tile, std::int64_t end, std::int64_t tile_columns) {
  const std::int64_t row_end = tile / tile_columns * tile_columns + tile_columns, most = tile + kWinograd23Run;
  const std::int64_t run_end = row_end < end ? row_end : end;
  return (run_end < most ? run_end : most) - tile;
}

// V of tiles [begin, end).
inline void winograd23_inputs(const QuantConvArgs& a, const Winograd23Chunk& chunk, std::int64_t begin,
                              std::int64_t end, char* v) {
  const std::int64_t tile_columns = conv_tiles23(a.out_w);
  for (std::int64_t tile = begin; tile < end;) {
    const std::int64_t top = tile / tile_columns * 2 - 1, left = tile % tile_columns * 2 - 1;
    const std::int64_t run = winograd23_run(tile, end, tile_columns);
    const std::int8_t* pixel[2 * kWinograd23Run + 2][4];
    for (int y = 0; y < 4; ++y) {
      const bool row_inside = top + y >= 0 && top + y < a.in_h;
      const std::int8_t* const row = a.x + ((top + y) * a.in_w + left) * a.in_stride;
      for (std::int64_t x = 0; x < 2 * run + 2; ++x) {
        const bool inside = row_inside && left + x >= 0 && left + x < a.in_w;
        pixel[x][y] = inside ? row + x * a.in_stride : a.zeros;
      }
    }
    std::int64_t c = 0;
    for (; c + Shorts::kWidth <= a.in_c; c += Shorts::kWidth) {
      winograd23_input_run(pixel, c, Shorts::kWidth, run, v + 2 * c, chunk.v_row, chunk.v_plane);
    }
    if (c < a.in_c) {
      winograd23_input_run(pixel, c, static_cast<int>(a.in_c - c), run, v + 2 * c, chunk.v_row, chunk.v_plane);
    }
    tile += run;
    v += run * chunk.v_row;
  }
}

// U of a pair out of four channels and a vector of output channels; tap: bytes from tap to tap of the weights.
template <int Pair>
inline void winograd23_weight_pair(const std::int8_t* weight, std::int64_t tap, char* u, std::int64_t plane) {
  Shorts lines[4][3];
#pragma GCC unroll 3
  for (int x = 0; x < 3; ++x) {
    Shorts g[3], t[4];
#pragma GCC unroll 3
    for (int y = 0; y < 3; ++y) g[y] = Shorts::load_pairs<Pair>(weight + (3 * y + x) * tap);
    winograd23_weight(g, t);
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) lines[y][x] = t[y];
  }
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y) {
    Shorts t[4];
    winograd23_weight(lines[y], t);
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) t[x].store(reinterpret_cast<std::int16_t*>(u + (4 * y + x) * plane));
  }
}

// U of channels [begin, end), multiples of 4, of a block's weights.
inline void winograd23_weights(const QuantConvArgs& a, const Winograd23Chunk& chunk, std::int64_t block, int vectors,
                               std::int64_t begin, std::int64_t end, char* u) {
  const std::int64_t tap = (a.in_c + 3) / 4 * 4 * kConvBlock;
  const std::int8_t* weight = a.weight + block * 9 * tap + begin * kConvBlock;
  for (std::int64_t c = begin; c < end; c += 4, weight += 4 * kConvBlock, u += 8 * kConvBlock) {
    for (int v = 0; v < vectors; ++v) {
      const std::int8_t* four = weight + v * 4 * Vec::kWidth;
      winograd23_weight_pair<0>(four, tap, u + v * 4 * Vec::kWidth, chunk.u_plane);
      winograd23_weight_pair<1>(four, tap, u + v * 4 * Vec::kWidth + 4 * kConvBlock, chunk.u_plane);
    }
  }
}

// Rows of M: written for the first channels, added to for the others.
template <int Rows, int Vectors>
inline void winograd23_product(const char* v, std::int64_t v_row, const char* u, std::int64_t depth, bool first,
                               std::int32_t* m) {
  Sums acc[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < Vectors; ++i) {
      acc[r][i] = first ? Sums{} : Sums::load(m + r * kConvBlock + i * Vec::kWidth);
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
    for (int i = 0; i < Vectors; ++i) acc[r][i].store(m + r * kConvBlock + i * Vec::kWidth);
  }
}

template <int Rows>
struct Winograd23Product {
  static void run(const char* v, std::int64_t v_row, const char* u, std::int64_t depth, int vectors, bool first,
                  std::int32_t* m) {
    if (vectors == 2) {
      winograd23_product<Rows, 2>(v, v_row, u, depth, first, m);
    } else {
      winograd23_product<Rows, 1>(v, v_row, u, depth, first, m);
    }
  }
};

// Outputs of tiles [begin, end) and one block of channels.
inline void winograd23_outputs(const QuantConvArgs& a, const Winograd23Chunk& chunk, std::int64_t begin,
                               std::int64_t end, std::int64_t block, int vectors, const char* m) {
  const std::int64_t tile_columns = conv_tiles23(a.out_w);
  std::int32_t sums[2][2 * kWinograd23Run * kConvBlock];
  for (std::int64_t tile = begin; tile < end;) {
    const std::int64_t row = tile / tile_columns * 2, column = tile % tile_columns;
    const std::int64_t run = winograd23_run(tile, end, tile_columns);
    for (std::int64_t i = 0; i < run; ++i, m += 4 * kConvBlock) {
      for (int v = 0; v < vectors; ++v) {
        Sums lines[2][4];
#pragma GCC unroll 4
        for (int x = 0; x < 4; ++x) {
          Sums plane[4], t[2];
#pragma GCC unroll 4
          for (int y = 0; y < 4; ++y) {
            plane[y] =
                Sums::load(reinterpret_cast<const std::int32_t*>(m + (4 * y + x) * chunk.m_plane) + v * Vec::kWidth);
          }
          winograd23_output(plane, t);
          lines[0][x] = t[0];
          lines[1][x] = t[1];
        }
#pragma GCC unroll 2
        for (int y = 0; y < 2; ++y) {
          Sums t[2];
          winograd23_output(lines[y], t);
#pragma GCC unroll 2
          for (int x = 0; x < 2; ++x) quarter(t[x]).store(sums[y] + ((2 * i + x) * vectors + v) * Vec::kWidth);
        }
      }
    }
    const std::int64_t left = a.out_w - 2 * column;
    const int columns = static_cast<int>(left < 2 * run ? left : 2 * run);
    for (int y = 0; y < 2 && row + y < a.out_h; ++y) {
      finish_tile_s8(a, (row + y) * a.out_w + 2 * column, block, sums[y], columns, vectors);
    }
    tile += run;
  }
}

inline void conv2d_winograd23_s8(const QuantConvArgs& a, std::int64_t tile_begin, std::int64_t tile_end,
                                 std::int64_t block_begin, std::int64_t block_end, float* workspace) {
  const std::int64_t tiles = tile_end - tile_begin, channels = (a.in_c + 3) / 4 * 4;
  if (tiles <= 0) return;
  const Winograd23Chunk chunk(a, tiles);
  const std::int64_t chunks = (tiles + chunk.tiles - 1) / chunk.tiles, step = (tiles + chunks - 1) / chunks;
  char* const v = reinterpret_cast<char*>(workspace);
  char* const m = v + kWinograd23Planes * chunk.v_plane;
  char* const u = m + kWinograd23Planes * chunk.m_plane;
  for (std::int64_t begin = tile_begin; begin < tile_end; begin += step) {
    const std::int64_t end = begin + step < tile_end ? begin + step : tile_end;
    const GemmTiles rows(end - begin, Shorts::kRows);
    winograd23_inputs(a, chunk, begin, end, v);
    for (std::int64_t block = block_begin; block < block_end; ++block) {
      const int vectors = block_vectors(a.out_c, block);
      for (std::int64_t c = 0; c < channels; c += chunk.depth) {
        const std::int64_t depth = c + chunk.depth < channels ? chunk.depth : channels - c;
        winograd23_weights(a, chunk, block, vectors, c, c + depth, u);
        for (std::int64_t plane = 0; plane < kWinograd23Planes; ++plane) {
          const char* from = v + plane * chunk.v_plane + 2 * c;
          std::int32_t* to = reinterpret_cast<std::int32_t*>(m + plane * chunk.m_plane);
          for (std::int64_t i = 0; i < rows.count; ++i) {
            const int tile_rows = rows.rows_of(i);
            with_rows<Winograd23Product, Shorts::kRows>(tile_rows, from, chunk.v_row, u + plane * chunk.u_plane, depth,
                                                        vectors, c == 0, to);
            from += tile_rows * chunk.v_row;
            to += tile_rows * kConvBlock;
          }
        }
      }
      winograd23_outputs(a, chunk, begin, end, block, vectors, m);
    }
  }
}
