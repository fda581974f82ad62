// 3x3 convolution of stride 2: the parities of the input's rows and columns split it into a 2x2, a 2x1, a 1x2 and a 1x1
// convolution of stride 1, which Winograd's F(4x4, 2x2) and F(4, 2) and a plain product compute: 81 products for 16
// outputs instead of 144. Points +-1/2, +-5/4 and infinity: with them float32 loses half of what it loses with 0, +-1,
// 2. The factors that usually stand in G are moved into A^T.
//
// Of the 9x9 inputs of a tile the even rows and columns (counted from the padding) meet the outer taps of the kernel,
// the odd ones its middle. Planes: 25 of even rows and columns, transformed both ways; 5 x 4 of even rows and odd
// columns, [point][column]; 5 x 4 of odd rows and even columns, [point][row]; 4 x 4 of both odd, as they are. Planes
// of one point share their weights, so that there are 36 planes of weights.

constexpr double kWinoS2A = 0.5, kWinoS2B = 1.25, kWinoS2AA = kWinoS2A * kWinoS2A, kWinoS2BB = kWinoS2B * kWinoS2B;

// G g: two weights of a line to its five points.
inline void winograd_s2_weight(Vec first, Vec second, Vec (&t)[5]) {
  t[0] = mul_add(Vec::set(kWinoS2A), second, first);
  t[1] = mul_add(Vec::set(-kWinoS2A), second, first);
  t[2] = mul_add(Vec::set(kWinoS2B), second, first);
  t[3] = mul_add(Vec::set(-kWinoS2B), second, first);
  t[4] = second;
}

// B^T d: five inputs of a line to its five points.
inline void winograd_s2_input(const Vec (&d)[5], Vec (&t)[5]) {
  const Vec a = Vec::set(kWinoS2A), minus_a = Vec::set(-kWinoS2A), b = Vec::set(kWinoS2B),
            minus_b = Vec::set(-kWinoS2B);
  const Vec minus_aa = Vec::set(-kWinoS2AA), minus_bb = Vec::set(-kWinoS2BB);
  const Vec odd_a = mul_add(minus_bb, d[1], d[3]), even_a = mul_add(minus_bb, d[0], d[2]);
  t[0] = mul_add(a, even_a, odd_a);
  t[1] = mul_add(minus_a, even_a, odd_a);
  const Vec odd_b = mul_add(minus_aa, d[1], d[3]), even_b = mul_add(minus_aa, d[0], d[2]);
  t[2] = mul_add(b, even_b, odd_b);
  t[3] = mul_add(minus_b, even_b, odd_b);
  t[4] = mul_add(Vec::set(kWinoS2AA * kWinoS2BB), d[0], mul_add(Vec::set(-kWinoS2AA - kWinoS2BB), d[2], d[4]));
}

// A^T m: five points of a line to its four outputs. The factors of a point and of its negative have opposite signs.
inline void winograd_s2_output(const Vec (&m)[5], Vec (&y)[4]) {
  constexpr double kA = 0.5 / (kWinoS2A * (kWinoS2AA - kWinoS2BB)), kB = 0.5 / (kWinoS2B * (kWinoS2BB - kWinoS2AA));
  const Vec sum_a = add(m[0], m[1]), difference_a = sub(m[0], m[1]);
  const Vec sum_b = add(m[2], m[3]), difference_b = sub(m[2], m[3]);
  y[0] = mul_add(Vec::set(kA), difference_a, mul(Vec::set(kB), difference_b));
  y[1] = mul_add(Vec::set(kWinoS2A * kA), sum_a, mul(Vec::set(kWinoS2B * kB), sum_b));
  y[2] = mul_add(Vec::set(kWinoS2AA * kA), difference_a, mul(Vec::set(kWinoS2BB * kB), difference_b));
  y[3] = mul_add(Vec::set(kWinoS2A * kWinoS2AA * kA), sum_a, mul_add(Vec::set(kWinoS2B * kWinoS2BB * kB), sum_b, m[4]));
}

struct WinogradS2 {
  static constexpr int kPlanes = 81, kWeightPlanes = 36, kSide = 9;
  static constexpr int kEvenOdd = 25, kOddEven = 45, kOddOdd = 65;  // first planes of the parts

  static int weight_plane(int plane) { return plane < kEvenOdd ? plane : plane < kOddOdd ? 25 + (plane - 25) / 4 : 35; }

  static void weight_tile(const float* weight, std::int64_t tap, float* u, std::int64_t plane) {
    const auto g = [&](int y, int x) { return Vec::load(weight + (3 * y + x) * tap); };
    const auto store = [&](const Vec(&t)[5], int first) {
      for (int i = 0; i < 5; ++i) winograd_store(t[i], u + (first + i) * plane, kConvBlock);
    };
    Vec left[5], right[5], t[5];
    winograd_s2_weight(g(0, 0), g(2, 0), left);
    winograd_s2_weight(g(0, 2), g(2, 2), right);
    for (int y = 0; y < 5; ++y) {
      winograd_s2_weight(left[y], right[y], t);
      store(t, 5 * y);
    }
    winograd_s2_weight(g(0, 1), g(2, 1), t);
    store(t, 25);
    winograd_s2_weight(g(1, 0), g(1, 2), t);
    store(t, 30);
    g(1, 1).store(u + 35 * plane);
  }

  static void input_tile(const WinogradPatch& patch, float* v, std::int64_t plane) {
    const auto pixel = [&](int y, int x) { return Vec::load(patch.at + y * patch.row + x * patch.column); };
    Vec lines[5][5];
    for (int x = 0; x < 9; ++x) {
      Vec d[5], t[5];
      for (int y = 0; y < 5; ++y) d[y] = pixel(2 * y, x);
      winograd_s2_input(d, t);
      for (int y = 0; y < 5; ++y) {
        if (x % 2 == 0) {
          lines[y][x / 2] = t[y];
        } else {
          winograd_store(t[y], v + (kEvenOdd + 4 * y + x / 2) * plane, kWinogradLine);
        }
      }
    }
    for (int y = 0; y < 5; ++y) {
      Vec t[5];
      winograd_s2_input(lines[y], t);
      for (int x = 0; x < 5; ++x) winograd_store(t[x], v + (5 * y + x) * plane, kWinogradLine);
    }
    for (int y = 0; y < 4; ++y) {
      Vec d[5], t[5];
      for (int x = 0; x < 5; ++x) d[x] = pixel(2 * y + 1, 2 * x);
      winograd_s2_input(d, t);
      for (int x = 0; x < 5; ++x) winograd_store(t[x], v + (kOddEven + 4 * x + y) * plane, kWinogradLine);
      for (int x = 0; x < 4; ++x)
        winograd_store(pixel(2 * y + 1, 2 * x + 1), v + (kOddOdd + 4 * y + x) * plane, kWinogradLine);
    }
  }

  static void output_tile(const float* m, std::int64_t plane, Vec (&value)[4][4]) {
    const auto product = [&](int at) { return Vec::load(m + at * plane); };
    Vec lines[5][4];  // [point of the rows][column]
    for (int y = 0; y < 5; ++y) {
      Vec d[5], t[4];
      for (int x = 0; x < 5; ++x) d[x] = product(5 * y + x);
      winograd_s2_output(d, t);
      for (int x = 0; x < 4; ++x) lines[y][x] = add(t[x], product(kEvenOdd + 4 * y + x));
    }
    for (int x = 0; x < 4; ++x) {
      Vec d[5], t[4];
      for (int y = 0; y < 5; ++y) d[y] = lines[y][x];
      winograd_s2_output(d, t);
      for (int y = 0; y < 4; ++y) value[y][x] = t[y];
    }
    for (int y = 0; y < 4; ++y) {
      Vec d[5], t[4];
      for (int x = 0; x < 5; ++x) d[x] = product(kOddEven + 4 * x + y);
      winograd_s2_output(d, t);
      for (int x = 0; x < 4; ++x) value[y][x] = add(value[y][x], add(t[x], product(kOddOdd + 4 * y + x)));
    }
  }
};

inline std::int64_t winograd_s2_workspace(const ConvArgs& a, std::int64_t tiles) {
  return winograd_workspace<WinogradS2>(a, tiles);
}

inline void conv2d_winograd_s2_f32(const ConvArgs& a, std::int64_t tile_begin, std::int64_t tile_end,
                                   std::int64_t block_begin, std::int64_t block_end, float* workspace) {
  winograd_convolution<WinogradS2>(a, tile_begin, tile_end, block_begin, block_end, workspace);
}
