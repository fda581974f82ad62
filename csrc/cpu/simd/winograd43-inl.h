// 3x3 convolution of stride 1 by Winograd's F(4x4, 3x3) (Lavin and Gray 2015): 36 products for 16 outputs instead of
// 144. Points 0, +-5/8, +-3/2 and infinity: with them float32 loses half of what it loses with 0, +-1, +-2. The
// factors that usually stand in G are moved to where they cost nothing: that of 0 into B^T, the others into A^T.

constexpr double kWino43A = 0.625, kWino43B = 1.5, kWino43AA = kWino43A * kWino43A, kWino43BB = kWino43B * kWino43B;

// G g: three weights of a line to its six points.
inline void winograd43_weight(const Vec (&g)[3], Vec (&t)[6]) {
  const Vec a = Vec::set(kWino43A), b = Vec::set(kWino43B), aa = Vec::set(kWino43AA), bb = Vec::set(kWino43BB);
  const Vec minus_a = Vec::set(-kWino43A), minus_b = Vec::set(-kWino43B);
  const Vec even_a = mul_add(aa, g[2], g[0]), even_b = mul_add(bb, g[2], g[0]);
  t[0] = g[0];
  t[1] = mul_add(a, g[1], even_a);
  t[2] = mul_add(minus_a, g[1], even_a);
  t[3] = mul_add(b, g[1], even_b);
  t[4] = mul_add(minus_b, g[1], even_b);
  t[5] = g[2];
}

// B^T d: six inputs of a line to its six points.
inline void winograd43_input(const Vec (&d)[6], Vec (&t)[6]) {
  constexpr double kProduct = kWino43AA * kWino43BB, kSum = kWino43AA + kWino43BB;
  const Vec a = Vec::set(kWino43A), b = Vec::set(kWino43B), minus_a = Vec::set(-kWino43A),
            minus_b = Vec::set(-kWino43B);
  const Vec minus_aa = Vec::set(-kWino43AA), minus_bb = Vec::set(-kWino43BB);
  const Vec product = Vec::set(kProduct), minus_sum = Vec::set(-kSum);
  t[0] = mul_add(Vec::set(1.0 / kProduct), d[4], mul_add(Vec::set(-kSum / kProduct), d[2], d[0]));
  const Vec even_a = mul_add(minus_bb, d[2], d[4]), odd_a = mul_add(minus_bb, d[1], d[3]);
  t[1] = mul_add(a, odd_a, even_a);
  t[2] = mul_add(minus_a, odd_a, even_a);
  const Vec even_b = mul_add(minus_aa, d[2], d[4]), odd_b = mul_add(minus_aa, d[1], d[3]);
  t[3] = mul_add(b, odd_b, even_b);
  t[4] = mul_add(minus_b, odd_b, even_b);
  t[5] = mul_add(product, d[1], mul_add(minus_sum, d[3], d[5]));
}

// A^T m: six points of a line to its four outputs.
inline void winograd43_output(const Vec (&m)[6], Vec (&y)[4]) {
  constexpr double kA = 0.5 / (kWino43AA * (kWino43AA - kWino43BB)), kB = 0.5 / (kWino43BB * (kWino43BB - kWino43AA));
  const Vec sum_a = add(m[1], m[2]), difference_a = sub(m[1], m[2]);
  const Vec sum_b = add(m[3], m[4]), difference_b = sub(m[3], m[4]);
  y[0] = mul_add(Vec::set(kA), sum_a, mul_add(Vec::set(kB), sum_b, m[0]));
  y[1] = mul_add(Vec::set(kWino43A * kA), difference_a, mul(Vec::set(kWino43B * kB), difference_b));
  y[2] = mul_add(Vec::set(kWino43AA * kA), sum_a, mul(Vec::set(kWino43BB * kB), sum_b));
  y[3] = mul_add(Vec::set(kWino43A * kWino43AA * kA), difference_a,
                 mul_add(Vec::set(kWino43B * kWino43BB * kB), difference_b, m[5]));
}

struct Winograd43 {
  static constexpr int kPlanes = 36, kWeightPlanes = 36, kSide = 6;

  static int weight_plane(int plane) { return plane; }

  static void weight_tile(const float* weight, std::int64_t tap, float* u, std::int64_t plane) {
    Vec lines[6][3];
    for (int x = 0; x < 3; ++x) {
      Vec g[3], t[6];
      for (int y = 0; y < 3; ++y) g[y] = Vec::load(weight + (3 * y + x) * tap);
      winograd43_weight(g, t);
      for (int y = 0; y < 6; ++y) lines[y][x] = t[y];
    }
    for (int y = 0; y < 6; ++y) {
      Vec t[6];
      winograd43_weight(lines[y], t);
      for (int x = 0; x < 6; ++x) winograd_store(t[x], u + (6 * y + x) * plane, kConvBlock);
    }
  }

  static void input_tile(const WinogradPatch& patch, float* v, std::int64_t plane) {
    Vec lines[6][6];
    for (int x = 0; x < 6; ++x) {
      Vec d[6], t[6];
      for (int y = 0; y < 6; ++y) d[y] = Vec::load(patch.at + y * patch.row + x * patch.column);
      winograd43_input(d, t);
      for (int y = 0; y < 6; ++y) lines[y][x] = t[y];
    }
    for (int y = 0; y < 6; ++y) {
      Vec t[6];
      winograd43_input(lines[y], t);
      for (int x = 0; x < 6; ++x) winograd_store(t[x], v + (y * 6 + x) * plane, kWinogradLine);
    }
  }

  static void output_tile(const float* m, std::int64_t plane, Vec (&value)[4][4]) {
    Vec lines[4][6];
    for (int x = 0; x < 6; ++x) {
      Vec d[6], t[4];
      for (int y = 0; y < 6; ++y) d[y] = Vec::load(m + (y * 6 + x) * plane);
      winograd43_output(d, t);
      for (int y = 0; y < 4; ++y) lines[y][x] = t[y];
    }
    for (int y = 0; y < 4; ++y) winograd43_output(lines[y], value[y]);
  }
};

inline std::int64_t winograd43_workspace(const ConvArgs& a, std::int64_t tiles) {
  return winograd_workspace<Winograd43>(a, tiles);
}

inline void conv2d_winograd43_f32(const ConvArgs& a, std::int64_t tile_begin, std::int64_t tile_end,
                                  std::int64_t block_begin, std::int64_t block_end, float* workspace) {
  winograd_convolution<Winograd43>(a, tile_begin, tile_end, block_begin, block_end, workspace);
}
