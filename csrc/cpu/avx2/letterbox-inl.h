// Letterbox rows with AVX2, around the shared bodies of simd/letterbox-inl.h. Included inside an unnamed namespace.
inline void resize_row_x(const LetterboxArgs& a, const std::uint8_t* source, std::int16_t* planes, std::int64_t plane);
inline void finish_row(const LetterboxArgs& a, std::int64_t row, const std::int16_t* upper, const std::int16_t* lower,
                       std::int32_t weights, std::int64_t plane);

#include "cpu/simd/letterbox-inl.h"

// Eight columns at a time: both pixels' bytes by two gathers of 32 bits, then per channel a pair of int16 times the
// pair of weights.
inline void resize_row_x(const LetterboxArgs& a, const std::uint8_t* source, std::int16_t* planes, std::int64_t plane) {
  const __m256i byte = _mm256_set1_epi32(0xff), three = _mm256_set1_epi32(3);
  std::int64_t x = 0;
  for (; x + 8 <= a.x_inner; x += 8) {
    const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a.x.index + x));
    const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a.x.weights + x));
    const __m256i offset = _mm256_mullo_epi32(index, three);
    __m256i first = _mm256_i32gather_epi32(reinterpret_cast<const int*>(source), offset, 1);
    __m256i second = _mm256_i32gather_epi32(reinterpret_cast<const int*>(source + 3), offset, 1);
    for (int c = 0; c < 3; ++c) {
      const __m256i pair =
          _mm256_or_si256(_mm256_and_si256(first, byte), _mm256_slli_epi32(_mm256_and_si256(second, byte), 16));
      const __m256i sum_s32x8 = _mm256_srai_epi32(_mm256_madd_epi16(pair, weights), 4);
      const __m128i sum_s16x8 =
          _mm_packs_epi32(_mm256_castsi256_si128(sum_s32x8), _mm256_extracti128_si256(sum_s32x8, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(planes + c * plane + x), sum_s16x8);
      first = _mm256_srli_epi32(first, 8);
      second = _mm256_srli_epi32(second, 8);
    }
  }
  resize_row_x_plain(a, source, x, planes, plane);
}

// The high half of an int16 product is the formula's (weight * row) >> 16.
inline __m128i blend_rows(const std::int16_t* upper, const std::int16_t* lower, __m128i w0, __m128i w1) {
  const __m128i u = _mm_mulhi_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(upper)), w0);
  const __m128i l = _mm_mulhi_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(lower)), w1);
  return _mm_srai_epi16(_mm_add_epi16(_mm_add_epi16(u, l), _mm_set1_epi16(2)), 2);
}

inline void finish_row(const LetterboxArgs& a, std::int64_t row, const std::int16_t* upper, const std::int16_t* lower,
                       std::int32_t weights, std::int64_t plane) {
  const __m128i w0 = _mm_set1_epi16(static_cast<short>(weights & 0xffff));
  const __m128i w1 = _mm_set1_epi16(static_cast<short>(weights >> 16));
  std::int64_t x = 0;
  for (; x + 8 <= a.resized_w; x += 8) {
    __m256 value[3];
    for (int c = 0; c < 3; ++c) {
      const int to = a.swap_channels ? 2 - c : c;
      const __m256i grey = _mm256_cvtepi16_epi32(blend_rows(upper + c * plane + x, lower + c * plane + x, w0, w1));
      value[to] = _mm256_div_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(grey), _mm256_set1_ps(a.mean[to])),
                                _mm256_set1_ps(a.divisor[to]));
    }
    if (a.hwc) {
      float lane[3][8];
      for (int c = 0; c < 3; ++c) _mm256_storeu_ps(lane[c], value[c]);
      float* out = a.out + (row * a.frame_w + a.left + x) * 3;
      for (int i = 0; i < 8; ++i) {
        for (int c = 0; c < 3; ++c) out[3 * i + c] = lane[c][i];
      }
    } else {
      for (int c = 0; c < 3; ++c) _mm256_storeu_ps(a.out + (c * a.frame_h + row) * a.frame_w + a.left + x, value[c]);
    }
  }
  finish_row_plain(a, row, x, upper, lower, weights, plane);
}
