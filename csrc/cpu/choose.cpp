#include "cpu/choose.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <utility>

#include "core/check.h"

namespace yolonas::cpu {
namespace {

constexpr std::int64_t kWinogradChannels = 16;
constexpr double kWinogradSlower = 1.05;  // a product, with the transforms of the outputs

constexpr std::int64_t kPoolFloats = 1 << 18;  // of a picture: below, a pool is done sooner than threads have met

constexpr std::int64_t kMostRounds = 64;  // pieces that a thread runs after each other, at most
constexpr double kUnevenness = 0.04;      // of the time of a piece

// What a piece costs beside its products, all in products of one unit (a row, pixel or tile) with one block of
// channels. Measured with AVX-512 (blocks of 32); a unit's own costs weigh more against smaller blocks.
constexpr double kCall = 4;                       // the call itself
constexpr double kWinogradInput = 1.15 * 32;      // the transform of a tile's input, over the channels of a block
constexpr double kReadWeights = 2;                // a block's weights from far away, in pixels of the pointwise form
constexpr double kReadInput = 0.15 * 32;          // a pixel of the input, likewise, over the channels of a block
constexpr std::int64_t kInputFloats = 128 << 10;  // of a piece: beyond, the input is read anew for every block

// Products per tile; the transform of a block's weights in tiles; the tiles that it serves.
struct WinogradCost {
  double products, weights, chunk;
};
WinogradCost winograd_cost(Algorithm algorithm) {
  return algorithm == Algorithm::winograd43 ? WinogradCost{36, 9, 58} : WinogradCost{81, 3.5, 26};
}

double piece_cost(Algorithm algorithm, const ConvSizes& sizes, const Cut& cut, std::int64_t conv_block) {
  const double units = static_cast<double>(cut.unit_step), blocks = static_cast<double>(cut.block_step);
  const double products = units * blocks, block = static_cast<double>(conv_block);
  if (algorithm == Algorithm::winograd43 || algorithm == Algorithm::winograd_s2) {
    const WinogradCost cost = winograd_cost(algorithm);
    return products + units * kWinogradInput / block + blocks * cost.weights * std::ceil(units / cost.chunk) + kCall;
  }
  const double taps = static_cast<double>(sizes.kernel_h * sizes.kernel_w);
  std::int64_t unit_floats = sizes.in_c;
  double pixels = 1;  // of a unit, once per tap
  if (algorithm != Algorithm::pointwise) {
    unit_floats *= sizes.in_w * sizes.stride;
    pixels = taps * static_cast<double>(sizes.out_w);
  }
  const bool fits = cut.unit_step * unit_floats <= kInputFloats;
  const double reads = fits ? 1.0 : blocks;
  return pixels * products + blocks * taps * kReadWeights + reads * units * pixels * kReadInput / block + kCall;
}

}  // namespace

const char* name(Algorithm algorithm) noexcept {
  switch (algorithm) {
    case Algorithm::direct:
      return "direct";
    case Algorithm::pointwise:
      return "pointwise";
    case Algorithm::winograd43:
      return "winograd43";
    case Algorithm::winograd_s2:
      return "winograd_s2";
    case Algorithm::upsample:
      return "upsample";
    case Algorithm::max_pool:
      return "max_pool";
    case Algorithm::quantize:
      return "quantize";
    case Algorithm::dequantize:
      return "dequantize";
  }
  return "unknown";
}

Algorithm find_algorithm(const std::string& wanted) {
  for (const Algorithm one : {Algorithm::direct, Algorithm::pointwise, Algorithm::winograd43, Algorithm::winograd_s2,
                              Algorithm::upsample, Algorithm::max_pool, Algorithm::quantize, Algorithm::dequantize}) {
    if (wanted == name(one)) return one;
  }
  throw std::invalid_argument(concat("choices: there is no algorithm '", wanted, "'"));
}

std::vector<Algorithm> algorithms_for(std::int64_t kernel, std::int64_t stride, bool integer) {
  if (kernel == 1 && stride == 1) return {Algorithm::direct, Algorithm::pointwise};
  if (kernel == 3 && stride == 1) return {Algorithm::direct, Algorithm::winograd43};
  if (kernel == 3 && stride == 2 && !integer) return {Algorithm::direct, Algorithm::winograd_s2};
  return {Algorithm::direct};
}

// Winograd's forms win on all of the networks' layers but small maps, where tiles reach over the edges and the weights'
// transform serves few tiles: at 640 by 2.0 to 3.2 (stride 1) and 1.2 to 1.6 (stride 2), AVX-512 and AVX2. Few input
// channels fill a part of a vector, and the transforms cost as much as the products. In integers Winograd's form wins
// with AVX2 wherever it does in floats (2.1 to 2.4 from 64 channels on); with VNNI, whose direct form is four times as
// fast as that of floats, from 128 channels on.
Algorithm choose_algorithm(const ConvSizes& sizes, bool integer, const CpuKernels& table) {
  if (sizes.kernel_h == 1 && sizes.stride == 1) return Algorithm::pointwise;
  if (sizes.kernel_h != 3 || sizes.in_c < kWinogradChannels) return Algorithm::direct;
  if (integer && sizes.stride == 2) return Algorithm::direct;
  const Algorithm winograd = sizes.stride == 1 ? Algorithm::winograd43 : Algorithm::winograd_s2;
  Cut whole;
  whole.unit_step = conv_tiles(sizes.out_h) * conv_tiles(sizes.out_w);
  whole.block_step = conv_blocks(sizes.out_c, table.conv_block);
  const double products = winograd_cost(winograd).products * piece_cost(winograd, sizes, whole, table.conv_block);
  const double direct = static_cast<double>(sizes.out_h * sizes.out_w * 9 * whole.block_step);
  const double slower =
      integer ? table.s8.winograd43_slower * (1 + table.s8.winograd43_channels / static_cast<double>(sizes.in_c))
              : kWinogradSlower;
  return slower * products < direct ? winograd : Algorithm::direct;
}

namespace {

// Without products: memory is what they wait for.
bool is_copy(Algorithm algorithm) {
  return algorithm == Algorithm::max_pool || algorithm == Algorithm::quantize || algorithm == Algorithm::dequantize;
}

// Calls visit(cut, cost) for all cuts that come into question.
template <class Visit>
void for_each_cut(Algorithm algorithm, const ConvSizes& sizes, std::int64_t units, std::int64_t pictures, int threads,
                  const CpuKernels& table, const Visit& visit) {
  Cut cut;
  cut.units = units;
  cut.blocks = is_copy(algorithm) ? 1 : conv_blocks(sizes.out_c, table.conv_block);
  const auto consider = [&](std::int64_t unit_pieces, std::int64_t block_pieces) {
    cut.unit_step = (units + unit_pieces - 1) / unit_pieces;
    cut.block_step = (cut.blocks + block_pieces - 1) / block_pieces;
    const std::int64_t pieces = pictures * cut.unit_pieces() * cut.block_pieces();
    const double rounds = static_cast<double>((pieces + threads - 1) / threads);
    // With one piece a thread all wait for the slowest.
    const double waiting = threads > 1 ? 1.0 + kUnevenness / rounds : 1.0;
    visit(cut, rounds * waiting * piece_cost(algorithm, sizes, cut, table.conv_block));
  };
  if (is_copy(algorithm) && sizes.in_h * sizes.in_w * sizes.in_c <= kPoolFloats) return consider(1, 1);
  for (std::int64_t rounds = 1; rounds <= kMostRounds; ++rounds) {
    for (std::int64_t block_pieces = 1; block_pieces <= cut.blocks; ++block_pieces) {
      const std::int64_t unit_pieces = (rounds * threads + block_pieces * pictures - 1) / (block_pieces * pictures);
      consider(std::min(unit_pieces, units), block_pieces);
      if (block_pieces > rounds * threads) break;
    }
  }
}

// By a quarter at least, in one of the two.
bool differ(const Cut& a, const Cut& b) {
  const auto apart = [](std::int64_t x, std::int64_t y) { return 4 * std::abs(x - y) >= std::max(x, y); };
  return apart(a.unit_step, b.unit_step) || apart(a.block_step, b.block_step);
}

}  // namespace

Cut choose_cut(Algorithm algorithm, const ConvSizes& sizes, std::int64_t units, std::int64_t pictures, int threads,
               const CpuKernels& table) {
  Cut best;
  double least = std::numeric_limits<double>::infinity();
  for_each_cut(algorithm, sizes, units, pictures, threads, table, [&](const Cut& cut, double cost) {
    if (cost >= least) return;
    least = cost;
    best = cut;
  });
  return best;
}

std::vector<Cut> best_cuts(Algorithm algorithm, const ConvSizes& sizes, std::int64_t units, std::int64_t pictures,
                           int threads, const CpuKernels& table, std::size_t most) {
  std::vector<std::pair<double, Cut>> all;
  for_each_cut(algorithm, sizes, units, pictures, threads, table,
               [&](const Cut& cut, double cost) { all.emplace_back(cost, cut); });
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<Cut> cuts;
  for (const auto& [cost, cut] : all) {
    if (cuts.size() == most) break;
    const Cut& one = cut;
    if (std::all_of(cuts.begin(), cuts.end(), [&](const Cut& kept) { return differ(kept, one); })) cuts.push_back(one);
  }
  return cuts;
}

}  // namespace yolonas::cpu
