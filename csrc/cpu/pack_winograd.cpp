// What the Winograd convolutions do to weights, in float64, and how much of float32 it costs. The kernels transform the
// weights of the direct form themselves; their files name the points.
#include <cmath>
#include <limits>

#include "cpu/pack.h"

namespace yolonas::cpu {
namespace {

constexpr int kPlanes = 36;  // of either algorithm

// One row a point x: 1, x, x^2 over the product of x's distances to the other finite points; last, infinity.
struct Points43 {
  double row[6][3];
  Points43() {
    const double points[5] = {0.0, 0.625, -0.625, 1.5, -1.5};
    for (int p = 0; p < 5; ++p) {
      double distances = 1.0;
      for (int q = 0; q < 5; ++q) distances *= q == p ? 1.0 : points[p] - points[q];
      for (int i = 0; i < 3; ++i) row[p][i] = (i == 0 ? 1.0 : i == 1 ? points[p] : points[p] * points[p]) / distances;
    }
    row[5][0] = row[5][1] = 0.0;
    row[5][2] = 1.0;
  }
};

struct PointsS2 {
  double row[5][2];
  PointsS2() {
    const double points[4] = {0.5, -0.5, 1.25, -1.25};
    for (int p = 0; p < 4; ++p) {
      double distances = 1.0;
      for (int q = 0; q < 4; ++q) distances *= q == p ? 1.0 : points[p] - points[q];
      row[p][0] = 1.0 / distances;
      row[p][1] = points[p] / distances;
    }
    row[4][0] = 0.0;
    row[4][1] = 1.0;
  }
};

void transform43(const double (&g)[3][3], double (&planes)[kPlanes]) {
  static const Points43 points;
  for (int i = 0; i < 6; ++i) {
    double line[3] = {};  // of the rows' point i
    for (int x = 0; x < 3; ++x) {
      for (int y = 0; y < 3; ++y) line[x] += points.row[i][y] * g[y][x];
    }
    for (int j = 0; j < 6; ++j) {
      planes[6 * i + j] = line[0] * points.row[j][0] + line[1] * points.row[j][1] + line[2] * points.row[j][2];
    }
  }
}

// 25 planes of the four corners, 5 of the middle column, 5 of the middle row, the middle.
void transform_s2(const double (&g)[3][3], double (&planes)[kPlanes]) {
  static const PointsS2 points;
  const auto both = [](const double (&row)[2], double first, double second) {
    return row[0] * first + row[1] * second;
  };
  for (int i = 0; i < 5; ++i) {
    const double left = both(points.row[i], g[0][0], g[2][0]), right = both(points.row[i], g[0][2], g[2][2]);
    for (int j = 0; j < 5; ++j) planes[5 * i + j] = both(points.row[j], left, right);
    planes[25 + i] = both(points.row[i], g[0][1], g[2][1]);
    planes[30 + i] = both(points.row[i], g[1][0], g[1][2]);
  }
  planes[35] = g[1][1];
}

// How strongly a product of point i shows in the outputs, for inputs of variance 1: the squares of row i of B^T times
// the mean square of column i of A^T.
constexpr double kErrorBase = 4.0, kErrorPerChannel = 0.4;  // fitted to random layers, then doubled
constexpr double kGain43[6] = {2.186, 3.378, 3.378, 18.452, 18.452, 2.186};
constexpr double kGainS2[5] = {1.428, 1.428, 6.003, 6.003, 1.109};

double gain43(int plane) { return kGain43[plane / 6] * kGain43[plane % 6]; }

// A plane of weights beyond the first 25 stands for four planes of products, the last for 16, of one output each.
double gain_s2(int plane) {
  if (plane < 25) return kGainS2[plane / 5] * kGainS2[plane % 5];
  return plane < 35 ? kGainS2[plane % 5] : 1.0;
}

}  // namespace

double winograd_error(const float* weight, std::int64_t out_c, std::int64_t in_c, std::int64_t stride) {
  constexpr double kLargest = 1e30, kRoundoff = 1.0 / (1 << 24);
  double worst = 0.0;
  for (std::int64_t k = 0; k < out_c; ++k) {
    double products = 0.0, outputs = 0.0;  // variances
    for (std::int64_t c = 0; c < in_c; ++c) {
      double g[3][3], planes[kPlanes];
      for (int tap = 0; tap < 9; ++tap) {
        const double value = weight[(k * 9 + tap) * in_c + c];
        if (!(std::fabs(value) < kLargest)) return std::numeric_limits<double>::infinity();
        g[tap / 3][tap % 3] = value;
        outputs += value * value;
      }
      stride == 1 ? transform43(g, planes) : transform_s2(g, planes);
      for (int plane = 0; plane < kPlanes; ++plane) {
        products += planes[plane] * planes[plane] * (stride == 1 ? gain43(plane) : gain_s2(plane));
      }
    }
    if (outputs > 0.0) worst = std::fmax(worst, products / outputs);
  }
  // A product is rounded some times, and again for each channel that is added to it.
  return kRoundoff * std::sqrt(worst * (kErrorBase + kErrorPerChannel * static_cast<double>(in_c)));
}

}  // namespace yolonas::cpu
