// Maximum over 5x5 windows, stride 1, vectors of channels: the maxima of five rows slide along a row of outputs.

inline void max_pool5_f32(const PoolArgs& a, std::int64_t row_begin, std::int64_t row_end) {
  const Vec lowest = Vec::set(-__builtin_inff());
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const std::int64_t top = row > 2 ? row - 2 : 0, bottom = row + 3 < a.h ? row + 3 : a.h;
    for (std::int64_t c = 0; c < a.channels; c += Vec::kWidth) {
      const int part = a.channels - c < Vec::kWidth ? static_cast<int>(a.channels - c) : Vec::kWidth;
      // column[i] is the maximum of the window's rows at x - 2 + i.
      Vec column[5] = {lowest, lowest, lowest, lowest, lowest};
      for (std::int64_t x = -2; x < a.w; ++x) {
        for (int i = 0; i < 4; ++i) column[i] = column[i + 1];
        column[4] = lowest;
        if (x + 2 < a.w) {
          const float* source = a.x + (top * a.w + x + 2) * a.in_stride + c;
          for (std::int64_t y = top; y < bottom; ++y, source += a.w * a.in_stride) {
            const Vec value = part == Vec::kWidth ? Vec::load(source) : Vec::load_part(source, part, 0.0f);
            column[4] = max(column[4], value);
          }
        }
        if (x < 0) continue;
        const Vec most = max(max(max(column[0], column[1]), max(column[2], column[3])), column[4]);
        float* target = a.y + (row * a.w + x) * a.out_stride + c;
        if (part == Vec::kWidth) {
          most.store(target);
        } else {
          most.store_part(target, part);
        }
      }
    }
  }
}
