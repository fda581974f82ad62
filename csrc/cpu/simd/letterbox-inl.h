// Letterbox rows. The resampling of a row needs two source rows, each resampled along x into three int16 planes (one
// per channel); `resize_row_x` and `finish_row` are the ISA's. Values: (I0 * w0 + I1 * w1) >> 4 <= 32656 fits int16.

// Grey in columns [begin, end) of a row. Three vectors hold a whole number of HWC pixels, and one value each for a CHW
// plane.
inline void fill_pixels(const LetterboxArgs& a, std::int64_t row, std::int64_t begin, std::int64_t end) {
  constexpr int kWidth = Vec::kWidth;
  float pattern[3 * kWidth];
  for (int i = 0; i < 3 * kWidth; ++i) pattern[i] = a.pad[a.hwc ? i % 3 : i / kWidth];
  for (int part = 0; part < (a.hwc ? 1 : 3); ++part) {
    const std::int64_t length = a.hwc ? 3 * (end - begin) : end - begin;
    float* out = a.hwc ? a.out + (row * a.frame_w + begin) * 3 : a.out + (part * a.frame_h + row) * a.frame_w + begin;
    const Vec first = Vec::load(pattern + (a.hwc ? 0 : part * kWidth));
    const Vec second = a.hwc ? Vec::load(pattern + kWidth) : first,
              third = a.hwc ? Vec::load(pattern + 2 * kWidth) : first;
    std::int64_t i = 0;
    for (; i + 3 * kWidth <= length; i += 3 * kWidth) {
      first.store(out + i);
      second.store(out + i + kWidth);
      third.store(out + i + 2 * kWidth);
    }
    for (; i < length; ++i) out[i] = a.pad[a.hwc ? i % 3 : part];
  }
}

// Columns [begin, resized_w) of one source row, plainly: also the tail of the vector versions.
inline void resize_row_x_plain(const LetterboxArgs& a, const std::uint8_t* source, std::int64_t begin,
                               std::int16_t* planes, std::int64_t plane) {
  for (std::int64_t x = begin; x < a.resized_w; ++x) {
    const std::int64_t first = a.x.index[x], second = first + 1 < a.src_w ? first + 1 : first;
    const std::int32_t w0 = a.x.weights[x] & 0xffff, w1 = a.x.weights[x] >> 16;
    for (int c = 0; c < 3; ++c) {
      planes[c * plane + x] =
          static_cast<std::int16_t>((source[3 * first + c] * w0 + source[3 * second + c] * w1) >> 4);
    }
  }
}

// Columns [begin, resized_w) of one frame row from two resampled rows.
inline void finish_row_plain(const LetterboxArgs& a, std::int64_t row, std::int64_t begin, const std::int16_t* upper,
                             const std::int16_t* lower, std::int32_t weights, std::int64_t plane) {
  const std::int32_t w0 = weights & 0xffff, w1 = weights >> 16;
  for (int c = 0; c < 3; ++c) {
    const int to = a.swap_channels ? 2 - c : c;
    const std::int64_t step = a.hwc ? 3 : 1;
    float* out =
        a.hwc ? a.out + (row * a.frame_w + a.left) * 3 + to : a.out + (to * a.frame_h + row) * a.frame_w + a.left;
    for (std::int64_t x = begin; x < a.resized_w; ++x) {
      const std::int32_t value = (((w0 * upper[c * plane + x]) >> 16) + ((w1 * lower[c * plane + x]) >> 16) + 2) >> 2;
      out[x * step] = (static_cast<float>(value) - a.mean[to]) / a.divisor[to];
    }
  }
}

inline void letterbox_rows(const LetterboxArgs& a, std::int64_t row_begin, std::int64_t row_end,
                           std::int16_t* workspace) {
  const std::int64_t plane = letterbox_row_stride(a);
  std::int16_t* slot[2] = {workspace, workspace + 3 * plane};
  std::int64_t held[2] = {-1, -1};  // source row in each slot: neighbouring rows share them when enlarging
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const std::int64_t y = row - a.top;
    if (y < 0 || y >= a.resized_h) {
      fill_pixels(a, row, 0, a.frame_w);
      continue;
    }
    fill_pixels(a, row, 0, a.left);
    fill_pixels(a, row, a.left + a.resized_w, a.frame_w);
    const std::int64_t last = a.src_h - 1, index = a.y.index[y];
    const std::int64_t wanted[2] = {index < 0 ? 0 : index, index + 1 > last ? last : index + 1};
    if (held[1] == wanted[0] && held[0] != wanted[0]) {  // moved down by one: the lower row becomes the upper
      std::int16_t* upper = slot[1];
      slot[1] = slot[0];
      slot[0] = upper;
      held[1] = held[0];
      held[0] = wanted[0];
    }
    for (int i = 0; i < 2; ++i) {
      if (held[i] == wanted[i]) continue;
      resize_row_x(a, a.image + wanted[i] * a.row_bytes, slot[i], plane);
      held[i] = wanted[i];
    }
    finish_row(a, row, slot[0], slot[1], a.y.weights[y], plane);
  }
}
