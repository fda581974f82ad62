// What integer convolutions are made of, for processors without a form of their own: the meaning of every operation. A
// register of sums has a lane per output channel, as Vec. Written on the compiler's vectors, which it does not find by
// itself here. Wherever halves of a number are taken apart, the order in memory does not matter.
typedef std::int16_t Words __attribute__((vector_size(16)));
typedef std::int32_t Longs __attribute__((vector_size(16)));
static_assert(Vec::kWidth == 8);

struct Sums {
  static constexpr int kRows = 3;  // of a tile
  Longs half[2];

  static Sums load(const std::int32_t* p) {
    Sums r;
    __builtin_memcpy(&r, p, sizeof r);
    return r;
  }
  void store(std::int32_t* p) const { __builtin_memcpy(p, this, sizeof *this); }
};

// Every second of sixteen int8, and those between.
struct EverySecond {
  Words low, high;

  explicit EverySecond(Words bytes) : low((bytes << 8) >> 8), high(bytes >> 8) {}
};

// Weights of four input channels, the four of an output channel side by side.
struct FourWeights {
  Words half[2];

  static FourWeights load(const std::int8_t* p) {
    FourWeights r;
    __builtin_memcpy(&r, p, sizeof r);
    return r;
  }
};

// Whether dot4 is one for both kinds of inputs, as they lie where it reads them.
constexpr bool kOneDot4 = false;

// Where the sums of a tile's kWidth channels from `at` on start.
inline Sums first_sums(const QuantConvArgs&, std::int64_t) { return {}; }

// acc[lane] + sum over c < 4 of x[c] * w[lane][c], exact for weights within -127..127. Unsigned: no x is negative.
template <bool Unsigned>
inline Sums dot4(Sums acc, const std::int8_t* x, const FourWeights& w) {
  std::int32_t four;
  __builtin_memcpy(&four, x, sizeof four);
  const EverySecond input(reinterpret_cast<Words>(Longs{four, four, four, four}));
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const EverySecond weight(w.half[half]);
    // Two products fit 16 bits, four do not.
    const Longs pairs = reinterpret_cast<Longs>(input.low * weight.low + input.high * weight.high);
    acc.half[half] += ((pairs << 16) >> 16) + (pairs >> 16);
  }
  return acc;
}

inline Vec to_float(Sums a) {
  std::int32_t whole[Vec::kWidth];
  a.store(whole);
  float lane[Vec::kWidth];
  for (int i = 0; i < Vec::kWidth; ++i) lane[i] = static_cast<float>(whole[i]);
  return Vec::load(lane);
}

// The first n numbers; zero in the other lanes.
inline Vec load_s8(const std::int8_t* p, int n) {
  float lane[Vec::kWidth];
  for (int i = 0; i < Vec::kWidth; ++i) lane[i] = i < n ? static_cast<float>(p[i]) : 0.0f;
  return Vec::load(lane);
}

// clamp(rint(a), -128, 127), ties to even, -128 for a NaN; writes the first n.
inline void store_s8(std::int8_t* p, Vec a, int n) {
  // Adding 1.5 * 2^23 leaves the integer in the low bits.
  std::int32_t whole[Vec::kWidth];
  float lane[Vec::kWidth];
  add(min(max(a, Vec::set(-128.0f)), Vec::set(127.0f)), Vec::set(12582912.0f)).store(lane);
  __builtin_memcpy(whole, lane, sizeof whole);
  if (n == Vec::kWidth) {
    for (int i = 0; i < Vec::kWidth; ++i) p[i] = static_cast<std::int8_t>(whole[i]);
  } else {
    for (int i = 0; i < n; ++i) p[i] = static_cast<std::int8_t>(whole[i]);
  }
}

// clamp(rint(a), lowest, 127) of four whole vectors, ties to even, the lowest for a NaN; two at each place.
inline void store_s8(std::int8_t* p, std::int8_t* q, const Vec (&a)[4], std::int8_t lowest) {
  for (int i = 0; i < 4; ++i) {
    store_s8((i < 2 ? p : q) + i % 2 * Vec::kWidth, max(a[i], Vec::set(lowest)), Vec::kWidth);
  }
}

// Pixels of three channels, with a fourth of zero: kWidth / 4 of them.
inline Vec load_pixels3(const float* p) {
  const float lane[Vec::kWidth] = {p[0], p[1], p[2], 0.0f, p[3], p[4], p[5], 0.0f};
  return Vec::load(lane);
}
