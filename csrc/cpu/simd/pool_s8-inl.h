// Maximum over 5x5 windows of quantised numbers, as in pool-inl.h.

template <int Width>
struct Bytes {
  typedef std::int8_t Register __attribute__((vector_size(Width)));
  Register reg;

  // References, not values: those would be passed in memory where there is no such register, and warned of.
  void set(std::int8_t a) { reg = a - Register{}; }
  void load(const std::int8_t* p) { __builtin_memcpy(&reg, p, Width); }
  void store(std::int8_t* p) const { __builtin_memcpy(p, &reg, Width); }
  void raise(const Bytes& to) { reg = reg > to.reg ? reg : to.reg; }
};

// One row of outputs of `Width` channels; x: the first row of the window, y: the row.
template <int Width>
inline void max_pool5_row_s8(const QuantPoolArgs& a, const std::int8_t* x, std::int64_t rows, std::int8_t* y) {
  // column[i] is the maximum of the window's rows at ox - 2 + i.
  Bytes<Width> column[5];
  for (auto& lowest : column) lowest.set(-128);
  for (std::int64_t ox = -2; ox < a.w; ++ox) {
    for (int i = 0; i < 4; ++i) column[i] = column[i + 1];
    column[4].set(-128);
    if (ox + 2 < a.w) {
      const std::int8_t* source = x + (ox + 2) * a.in_stride;
      for (std::int64_t row = 0; row < rows; ++row, source += a.w * a.in_stride) {
        Bytes<Width> value;
        value.load(source);
        column[4].raise(value);
      }
    }
    if (ox < 0) continue;
    Bytes<Width> most = column[4];
    for (int i = 0; i < 4; ++i) most.raise(column[i]);
    most.store(y + ox * a.out_stride);
  }
}

// All channels in vectors of `Width`, the last one moved back where it does not fit; of fewer than that many, in
// narrower vectors.
template <int Width>
inline void max_pool5_channels_s8(const QuantPoolArgs& a, const std::int8_t* x, std::int64_t rows, std::int8_t* y) {
  if constexpr (Width > 1) {
    if (a.channels < Width) return max_pool5_channels_s8<Width / 2>(a, x, rows, y);
  }
  for (std::int64_t c = 0; c < a.channels; c += Width) {
    const std::int64_t at = c + Width <= a.channels ? c : a.channels - Width;
    max_pool5_row_s8<Width>(a, x + at, rows, y + at);
  }
}

inline void max_pool5_s8(const QuantPoolArgs& a, std::int64_t row_begin, std::int64_t row_end) {
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const std::int64_t top = row > 2 ? row - 2 : 0, bottom = row + 3 < a.h ? row + 3 : a.h;
    max_pool5_channels_s8<4 * Vec::kWidth>(a, a.x + top * a.w * a.in_stride, bottom - top,
                                           a.y + row * a.w * a.out_stride);
  }
}
