// Decoding and suppression on Vec: threshold scan, sigmoid, distribution focal loss expectation, class maximum, greedy
// NMS.

inline std::int64_t collect_greater_f32(const float* x, std::int64_t n, float threshold, std::int32_t* index,
                                        float* value) {
  const Vec limit = Vec::set(threshold);
  std::int64_t found = 0, i = 0;
  for (; i + 4 * Vec::kWidth <= n; i += 4 * Vec::kWidth) {
    unsigned bits = greater_bits(Vec::load(x + i), limit) | greater_bits(Vec::load(x + i + 8), limit) << 8 |
                    greater_bits(Vec::load(x + i + 16), limit) << 16 | greater_bits(Vec::load(x + i + 24), limit) << 24;
    while (bits) {
      const std::int64_t at = i + __builtin_ctz(bits);
      index[found] = static_cast<std::int32_t>(at);
      value[found++] = x[at];
      bits &= bits - 1;
    }
  }
  for (; i < n; ++i) {
    if (x[i] > threshold) {
      index[found] = static_cast<std::int32_t>(i);
      value[found++] = x[i];
    }
  }
  return found;
}

inline void sigmoid_f32(const float* x, float* y, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + Vec::kWidth <= n; i += Vec::kWidth) sigmoid(Vec::load(x + i)).store(y + i);
  const int rest = static_cast<int>(n - i);
  if (rest) sigmoid(Vec::load_part(x + i, rest, 0.0f)).store_part(y + i, rest);
}

inline void dfl_expectation_f32(const float* x, std::int64_t bin_stride, float* out) {
  Vec top = Vec::load(x);
  for (int bin = 1; bin < kDflBins; ++bin) top = max(Vec::load(x + bin * bin_stride), top);
  Vec total = Vec::set(0.0f), weighted = Vec::set(0.0f);
  for (int bin = 0; bin < kDflBins; ++bin) {
    const Vec e = exp_f32(sub(Vec::load(x + bin * bin_stride), top));
    total = add(total, e);
    weighted = mul_add(e, Vec::set(static_cast<float>(bin)), weighted);
  }
  div(weighted, total).store(out);
}

inline void class_max_f32(const float* x, std::int64_t class_stride, std::int64_t classes, std::int64_t n, float* best,
                          std::int32_t* best_class) {
  const float lowest = -__builtin_inff();
  std::int64_t i = 0;
  for (; i + Vec::kWidth <= n; i += Vec::kWidth) {
    Vec top = Vec::set(lowest), which = Vec::set(0.0f);
    for (std::int64_t k = 0; k < classes; ++k) {
      const Vec v = Vec::load(x + k * class_stride + i);
      which = select_greater(v, top, Vec::set(static_cast<float>(k)), which);
      top = select_greater(v, top, v, top);
    }
    float which_lane[Vec::kWidth];
    which.store(which_lane);
    top.store(best + i);
    for (int lane = 0; lane < Vec::kWidth; ++lane) best_class[i + lane] = static_cast<std::int32_t>(which_lane[lane]);
  }
  for (; i < n; ++i) {
    best[i] = lowest;
    best_class[i] = 0;
    for (std::int64_t k = 0; k < classes; ++k) {
      const float v = x[k * class_stride + i];
      if (v > best[i]) {
        best[i] = v;
        best_class[i] = static_cast<std::int32_t>(k);
      }
    }
  }
}

// The kept boxes stand in separate rows of x1, y1, x2, y2, area and class, so that one candidate meets eight of them at
// once.
inline std::int64_t nms_f32(const float* boxes, const std::int32_t* class_of, std::int64_t n, float threshold,
                            std::int64_t max_kept, std::int32_t* keep, float* workspace) {
  const std::int64_t row = nms_workspace(max_kept) / 6;
  float *x1 = workspace, *y1 = x1 + row, *x2 = y1 + row, *y2 = x2 + row, *area = y2 + row, *label = area + row;
  const Vec zero = Vec::set(0.0f), limit = Vec::set(threshold);
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < n && kept < max_kept; ++i) {
    const float* box = boxes + 4 * i;
    const Vec bx1 = Vec::set(box[0]), by1 = Vec::set(box[1]), bx2 = Vec::set(box[2]), by2 = Vec::set(box[3]);
    const float own_area = (box[2] - box[0]) * (box[3] - box[1]);
    const float own_label = class_of ? static_cast<float>(class_of[i]) : 0.0f;
    bool dropped = false;
    for (std::int64_t j = 0; j < kept && !dropped; j += Vec::kWidth) {
      const int rest = kept - j < Vec::kWidth ? static_cast<int>(kept - j) : Vec::kWidth;
      const Vec w = max(sub(min(Vec::load(x2 + j), bx2), max(Vec::load(x1 + j), bx1)), zero);
      const Vec h = max(sub(min(Vec::load(y2 + j), by2), max(Vec::load(y1 + j), by1)), zero);
      const Vec inter = mul(w, h);
      const Vec iou = div(inter, sub(add(Vec::load(area + j), Vec::set(own_area)), inter));
      const unsigned hits = greater_bits(iou, limit) & equal_bits(Vec::load(label + j), Vec::set(own_label));
      dropped = (hits & ((1u << rest) - 1u)) != 0;
    }
    if (dropped) continue;
    x1[kept] = box[0];
    y1[kept] = box[1];
    x2[kept] = box[2];
    y2[kept] = box[3];
    area[kept] = own_area;
    label[kept] = own_label;
    keep[kept++] = static_cast<std::int32_t>(i);
  }
  return kept;
}
