// Matching of one picture's detections with its true boxes, on the calling thread.
#pragma once

#include "ops/match.h"

namespace yolonas::cpu {

// The detections that count: per class, ascending, the max_det best by descending score, equal scores in the given
// order. Writes their rows to order and their positions within the class to rank, and returns how many they are;
// order and rank hold undefined values beyond.
std::int64_t match_order(const TensorView& scores, const TensorView& classes, std::int64_t max_det,
                         const TensorView& order, const TensorView& rank);

// Per area range and threshold: each detection, best first, takes the true box of its class with the highest IoU >=
// min(threshold, 1 - 1e-10), of equal ones the last. Crowd regions and boxes whose area lies outside the range are
// ignored: they are taken only where no other box is to be had, and the detection is then ignored, too. A crowd region
// may be taken many times, any other box once. A detection that takes nothing is ignored when its width * height lies
// outside the range. IoU is intersection / union, of a crowd region intersection / area of the detection, and 0 for
// boxes that share nothing. Outputs must not overlap inputs. Memory: A * T bytes for each true box of a class.
// Reference: COCO's evaluation code (Lin et al. 2014), whose matches these are, bit for bit.
void match_detections(const MatchInput& input, const MatchOutput& output);

}  // namespace yolonas::cpu
