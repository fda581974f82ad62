// The matrix product under the integer convolutions, on the sums of dot4-inl.h.

// Where the inputs of a tile's rows lie: evenly spaced, or anywhere.
struct EvenRows {
  const std::int8_t* first;
  std::int64_t stride;
  const std::int8_t* row(int r) const { return first + r * stride; }
};
struct AnyRows {
  const std::int8_t* const* rows;
  const std::int8_t* row(int r) const { return rows[r]; }
};

// acc[r][v] += sum over k < depth of row(r)[k] * b[k / 4][v][lane][k % 4].
template <bool Unsigned, int Rows, int Vectors, class Source>
inline void accumulate_s8(Source source, const std::int8_t* b, std::int64_t depth, Sums (&acc)[Rows][Vectors]) {
  FourWeights weight[Vectors];
  std::int64_t k = 0;
  for (; k + 4 <= depth; k += 4, b += 4 * kConvBlock) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) weight[v] = FourWeights::load(b + 4 * v * Vec::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) acc[r][v] = dot4<Unsigned>(acc[r][v], source.row(r) + k, weight[v]);
    }
  }
  if (k == depth) return;
  std::int8_t last[Rows][4] = {};
  for (int r = 0; r < Rows; ++r) {
    for (std::int64_t i = 0; i < depth - k; ++i) last[r][i] = source.row(r)[k + i];
  }
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; ++v) weight[v] = FourWeights::load(b + 4 * v * Vec::kWidth);
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) acc[r][v] = dot4<Unsigned>(acc[r][v], last[r], weight[v]);
  }
}
