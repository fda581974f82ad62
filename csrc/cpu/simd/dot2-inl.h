// What the integer Winograd convolution is made of, for processors without a form of their own: the meaning of every
// operation. A register of int16 has two lanes for each lane of sums. Included after dot4-inl.h.
struct Shorts {
  static constexpr int kWidth = 2 * Vec::kWidth;
  static constexpr int kRows = 2;  // of a tile of the product
  Words half[2];

  static Shorts load(const std::int16_t* p) {
    Shorts r;
    __builtin_memcpy(&r, p, sizeof r);
    return r;
  }
  // The first n int8; zero in the other lanes.
  static Shorts load_s8(const std::int8_t* p, int n) {
    std::int16_t lane[kWidth];
    for (int i = 0; i < kWidth; ++i) lane[i] = i < n ? p[i] : std::int16_t{0};
    return load(lane);
  }
  // Of [Vec::kWidth][4] int8 the first two of every four (Pair 0), or the last two (Pair 1).
  template <int Pair>
  static Shorts load_pairs(const std::int8_t* p) {
    std::int16_t lane[kWidth];
    for (int i = 0; i < kWidth; ++i) lane[i] = p[i / 2 * 4 + Pair * 2 + i % 2];
    return load(lane);
  }
  // The same two, p[0] and p[1], side by side in all lanes.
  static Shorts set_pair(const std::int16_t* p) {
    std::int32_t two;
    __builtin_memcpy(&two, p, sizeof two);
    const Words all = reinterpret_cast<Words>(Longs{two, two, two, two});
    return {all, all};
  }
  void store(std::int16_t* p) const { __builtin_memcpy(p, this, sizeof *this); }
};

inline Shorts add(Shorts a, Shorts b) { return {a.half[0] + b.half[0], a.half[1] + b.half[1]}; }
inline Shorts sub(Shorts a, Shorts b) { return {a.half[0] - b.half[0], a.half[1] - b.half[1]}; }
inline Shorts times4(Shorts a) { return {a.half[0] * 4, a.half[1] * 4}; }

// Sums are modulo 2^32.
typedef std::uint32_t UnsignedLongs __attribute__((vector_size(16)));
inline Longs add_longs(Longs a, Longs b) {
  return reinterpret_cast<Longs>(reinterpret_cast<UnsignedLongs>(a) + reinterpret_cast<UnsignedLongs>(b));
}
inline Longs sub_longs(Longs a, Longs b) {
  return reinterpret_cast<Longs>(reinterpret_cast<UnsignedLongs>(a) - reinterpret_cast<UnsignedLongs>(b));
}

// acc[lane] + x[2 * lane] * w[2 * lane] + x[2 * lane + 1] * w[2 * lane + 1]. The sum of the two fits an int32.
inline Sums dot2(Sums acc, const Shorts& x, const Shorts& w) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const Longs input = reinterpret_cast<Longs>(x.half[half]), weight = reinterpret_cast<Longs>(w.half[half]);
    const Longs low = ((input << 16) >> 16) * ((weight << 16) >> 16), high = (input >> 16) * (weight >> 16);
    acc.half[half] = add_longs(acc.half[half], low + high);
  }
  return acc;
}

inline Sums add(Sums a, Sums b) { return {add_longs(a.half[0], b.half[0]), add_longs(a.half[1], b.half[1])}; }
inline Sums sub(Sums a, Sums b) { return {sub_longs(a.half[0], b.half[0]), sub_longs(a.half[1], b.half[1])}; }
inline Sums times4(Sums a) {
  const UnsignedLongs four = {4, 4, 4, 4};
  return {reinterpret_cast<Longs>(reinterpret_cast<UnsignedLongs>(a.half[0]) * four),
          reinterpret_cast<Longs>(reinterpret_cast<UnsignedLongs>(a.half[1]) * four)};
}
// The x for which a = x * (9 << shift) modulo 2^32, of those with |x| < 2^(31 - shift).
inline Sums ninth(Sums a, int shift) {
  const UnsignedLongs inverse = {0x38e38e39, 0x38e38e39, 0x38e38e39, 0x38e38e39};  // 9 * 0x38e38e39 = 2^33 + 1
  return {reinterpret_cast<Longs>(reinterpret_cast<UnsignedLongs>(a.half[0]) * inverse) >> shift,
          reinterpret_cast<Longs>(reinterpret_cast<UnsignedLongs>(a.half[1]) * inverse) >> shift};
}
