// Which steps of a network may run at the same time, and an order of them for a device that runs several streams of
// work at once. Independent of the device.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/graph.h"

namespace yolonas::engine {

// For each step the earlier ones that must have ended before it begins: those that write what it reads, and those that
// read or write what it writes, channel by channel. Ascending.
std::vector<std::vector<int>> step_needs(const Graph& graph);

struct Task {
  double cost = 0;         // estimated time, in any unit
  std::vector<int> needs;  // earlier tasks, ascending
};

// Which task comes before which, directly or through others.
class Order {
 public:
  explicit Order(const std::vector<Task>& tasks);
  bool before(int first, int second) const {
    return bits_[static_cast<std::size_t>(second)][static_cast<std::size_t>(first)];
  }

 private:
  std::vector<std::vector<bool>> bits_;
};

// What is queued for a task. Tasks are queued in their order.
struct Slot {
  int stream = 0;
  std::vector<int> waits;  // tasks on other streams that this stream waits for first; none that is implied otherwise
  bool fork = false;       // the first of its stream, without waits: the stream waits for the begin of stream 0
  bool record = false;     // another stream waits for it
  bool overlap = false;    // what it follows is all on its own stream: it may be launched before that has ended
};

struct Schedule {
  std::vector<Slot> slots;
  std::vector<int> joins;  // tasks that stream 0 waits for at the end, so that all have ended when it has
  int streams = 1;
};

// A chain stays on its stream, the longest one on stream 0; another stream is taken for what can run beside.
Schedule schedule(const std::vector<Task>& tasks, int most_streams);

}  // namespace yolonas::engine
