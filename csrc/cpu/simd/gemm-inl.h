// The matrix product under all convolutions: acc[row][channel] += a[row][k] * b[k][channel] for up to kGemmRows rows
// and one packed block of two vectors (or one). A tile of kGemmRows x 2 accumulators, 2 weights and a broadcast fill
// the registers.

constexpr int kConvBlock = 2 * Vec::kWidth;
constexpr int kGemmRows = Vec::kGemmRows;

// Next tile's rows are fetched into the first-level cache while these are multiplied, where they take half of it at
// most: they usually lie right behind, and a call reads depth * Rows floats of them. Worth 1.1x to 1.8x where the rows
// come from the third level, and some percent where they come from the second.
constexpr std::int64_t kGemmAheadBytes = 24 << 10;

// Weights that come next, fetched into the second-level cache while those before them are used: `step` floats on with
// every k. A network's weights are read once a run, from far away, and the processor by itself fetches too few ahead:
// worth 1.05x to 1.15x on maps of 10x10 and 20x20.
struct GemmNext {
  const float* weight;
  std::int64_t step;
  void fetch() {
    __builtin_prefetch(weight, 0, 2);
    weight += step;
  }
};
struct GemmNothingNext {
  void fetch() {}
};

// acc[r][v] += sum over k < depth of a[r * a_stride + k] * b[k * kConvBlock + v * kWidth + lane], k upwards.
template <int Rows, int Vectors, class Next = GemmNothingNext>
inline void gemm_accumulate(const float* a, std::int64_t a_stride, const float* b, std::int64_t depth,
                            Vec (&acc)[Rows][Vectors], Next next = {}) {
  const bool fetch = Rows * a_stride * 4 <= kGemmAheadBytes;
  const std::int64_t step = fetch ? Rows : 0;
  const float* ahead = fetch ? a + Rows * a_stride : a;
  for (std::int64_t k = 0; k < depth; ++k, ahead += step) {
    __builtin_prefetch(ahead);
    next.fetch();
    Vec weight[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) weight[v] = Vec::load(b + k * kConvBlock + v * Vec::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const Vec value = Vec::set(a[r * a_stride + k]);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) acc[r][v] = mul_add(value, weight[v], acc[r][v]);
    }
  }
}

template <int Rows, int Vectors>
inline void gemm_tile(const float* a, std::int64_t a_stride, const float* b, std::int64_t depth, float* c,
                      std::int64_t c_stride) {
  Vec acc[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) acc[r][v] = Vec::set(0.0f);
  }
  gemm_accumulate(a, a_stride, b, depth, acc);
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) acc[r][v].store(c + r * c_stride + v * Vec::kWidth);
  }
}

// Calls Tile<rows>::run(arguments...) for a number of rows known only at run time.
template <template <int> class Tile, int Rows = kGemmRows, class... Arguments>
inline void with_rows(int rows, const Arguments&... arguments) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return with_rows<Tile, Rows - 1>(rows, arguments...);
  }
  Tile<Rows>::run(arguments...);
}

// Cuts rows into tiles that differ by at most one row: 25 = 9 + 8 + 8, not 12 + 12 + 1.
struct GemmTiles {
  std::int64_t count, larger;  // tiles, and how many at the start have one row more
  int rows;

  explicit GemmTiles(std::int64_t all, int most = kGemmRows)
      : count((all + most - 1) / most),
        larger(count ? all % count : 0),
        rows(static_cast<int>(count ? all / count : 0)) {}
  int rows_of(std::int64_t tile) const { return tile < larger ? rows + 1 : rows; }
};

// Rows of the next tile when `rows` are left, cut in the same way.
inline int gemm_tile_rows(std::int64_t rows) { return GemmTiles(rows).rows_of(0); }

template <int Rows>
struct GemmTile {
  static void run(const float* a, std::int64_t a_stride, const float* b, std::int64_t depth, int vectors, float* c,
                  std::int64_t c_stride) {
    if (vectors == 2) {
      gemm_tile<Rows, 2>(a, a_stride, b, depth, c, c_stride);
    } else {
      gemm_tile<Rows, 1>(a, a_stride, b, depth, c, c_stride);
    }
  }
};

// c[r][0 .. vectors * kWidth) = sum over k < depth of a[r][k] * b[k][...], k upwards from 0. a: rows a_stride floats
// apart; b: packed [depth][kConvBlock]; c: rows c_stride floats apart, whole vectors are written.
inline void gemm_f32(const float* a, std::int64_t a_stride, std::int64_t rows, const float* b, std::int64_t depth,
                     int vectors, float* c, std::int64_t c_stride) {
  const GemmTiles tiles(rows);
  for (std::int64_t tile = 0; tile < tiles.count; ++tile) {
    const int tile_rows = tiles.rows_of(tile);
    with_rows<GemmTile>(tile_rows, a, a_stride, b, depth, vectors, c, c_stride);
    a += tile_rows * a_stride;
    c += tile_rows * c_stride;
  }
}

// Vectors that a block needs: 1 for a last block of at most one vector's channels.
inline int block_vectors(std::int64_t out_c, std::int64_t block) {
  return out_c - block * kConvBlock > Vec::kWidth ? 2 : 1;
}
