// Which variant computes a convolution, in how many parts of its depth: an estimate of the time of each, from the sizes
// and what is known of the device. Plain C++, and no device is needed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/conv.h"

namespace yolonas::cuda {

// Raise it when a choice would no longer mean the same: variants renamed, or their arithmetic changed. Measurements
// kept by users are not looked at after that.
inline constexpr int kPlanVersion = 1;

struct Processor {
  int arch = 90;  // compute capability, ten times
  int code = 90;  // what the kernels that run there were compiled for: less where they are translated
  int multiprocessors = 132;
  int shared_bytes = 227 << 10;       // of a multiprocessor
  ResidentBlocks resident;            // by the driver; empty: estimated
  std::vector<std::string> excluded;  // names of variants that are not to be used
};

// A convolution as the estimate sees it.
struct ConvWork {
  Elem elem = Elem::f32;
  std::int64_t rows = 0;  // of the product
  int columns = 0;
  std::int64_t depth_bytes = 0;
};
ConvWork work_of(const ConvArgs& args);

// Microseconds, roughly: right for comparing, not for telling the time.
double estimated_time(const ConvVariant& variant, int splits, const ConvWork& work, const Processor& processor);

// The same for a step that reads and writes so many bytes.
double estimated_copy_time(std::int64_t bytes, const Processor& processor);

struct RatedChoice {
  ConvChoice choice;
  double microseconds = 0;
};

// What comes into question, the best first: every variant that the device can run, each with its best `splits`
// numbers of splits at most.
std::vector<RatedChoice> rated_choices(const ConvWork& work, const ConvVariant* variants, int count,
                                       const Processor& processor, int splits);

// Whether a choice can be run: the variant is there and for this device, and no part of the depth is empty.
bool can_run(const ConvWork& work, const ConvVariant* variants, int count, const ConvChoice& choice,
             const Processor& processor);

}  // namespace yolonas::cuda
