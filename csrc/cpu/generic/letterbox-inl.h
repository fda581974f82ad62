// Letterbox rows in plain C++: the shared bodies and nothing else. Included inside an unnamed namespace.
inline void resize_row_x_plain(const LetterboxArgs&, const std::uint8_t*, std::int64_t, std::int16_t*, std::int64_t);
inline void finish_row_plain(const LetterboxArgs&, std::int64_t, std::int64_t, const std::int16_t*, const std::int16_t*,
                             std::int32_t, std::int64_t);

inline void resize_row_x(const LetterboxArgs& a, const std::uint8_t* source, std::int16_t* planes, std::int64_t plane) {
  resize_row_x_plain(a, source, 0, planes, plane);
}

inline void finish_row(const LetterboxArgs& a, std::int64_t row, const std::int16_t* upper, const std::int16_t* lower,
                       std::int32_t weights, std::int64_t plane) {
  finish_row_plain(a, row, 0, upper, lower, weights, plane);
}

#include "cpu/simd/letterbox-inl.h"
