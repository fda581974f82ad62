#include "engine/schedule.h"

#include <algorithm>

namespace yolonas::engine {
namespace {

bool overlap(const View& a, const View& b) {
  return a.buffer == b.buffer && a.offset < b.offset + b.channels && b.offset < a.offset + a.channels;
}

bool reads(const Step& step, const View& view) {
  return overlap(step.input, view) || (step.has_residual && overlap(step.residual, view));
}

std::size_t at(int index) { return static_cast<std::size_t>(index); }

// The latest task of each stream that has ended; -1: none.
using Clock = std::vector<int>;

void advance(Clock& clock, const Clock& other) {
  for (std::size_t i = 0; i < clock.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

// Gives each task a stream.
class Streams {
 public:
  Streams(const std::vector<Task>& tasks, int most)
      : tasks_(tasks), order_(tasks), most_(most), heir_(tasks.size(), -1), critical_(tasks.size(), false) {
    rank_and_choose_heirs();
  }

  std::vector<int> assign() {
    std::vector<int> stream(tasks_.size(), 0);
    std::vector<double> end(tasks_.size(), 0.0);
    for (int i = 0; i < count(); ++i) {
      double start = 0;
      for (const int need : tasks_[at(i)].needs) start = std::max(start, end[at(need)]);
      const int chosen = choose(i);
      if (chosen == static_cast<int>(tail_.size())) {
        tail_.push_back(-1);
        free_.push_back(0);
      }
      stream[at(i)] = chosen;
      end[at(i)] = std::max(start, free_[at(chosen)]) + tasks_[at(i)].cost;
      tail_[at(chosen)] = i;
      free_[at(chosen)] = end[at(i)];
    }
    return stream;
  }

 private:
  int count() const { return static_cast<int>(tasks_.size()); }

  // The heir of a task is that of its followers from which it is farthest to the end.
  void rank_and_choose_heirs() {
    std::vector<double> rank(tasks_.size(), 0.0);
    int first = -1;
    for (int i = count() - 1; i >= 0; --i) {
      rank[at(i)] = tasks_[at(i)].cost + (heir_[at(i)] >= 0 ? rank[at(heir_[at(i)])] : 0.0);
      for (const int need : tasks_[at(i)].needs) {
        int& heir = heir_[at(need)];
        if (heir < 0 || rank[at(i)] >= rank[at(heir)]) heir = i;
      }
      if (first < 0 || rank[at(i)] >= rank[at(first)]) first = i;
    }
    for (int i = first; i >= 0; i = heir_[at(i)]) critical_[at(i)] = true;
  }

  // A stream, or their number: a new one.
  int choose(int task) const {
    const int streams = static_cast<int>(tail_.size());
    if (critical_[at(task)] || most_ == 1) return 0;
    int best = -1;
    for (int s = 1; s < streams; ++s) {  // what goes on after its predecessor, the one that ends last
      if (heir_[at(tail_[at(s)])] == task && (best < 0 || free_[at(s)] > free_[at(best)])) best = s;
    }
    if (best >= 0) return best;
    for (int s = 1; s < streams; ++s) {  // one whose work comes before this anyway, and that waits for nothing else
      const int tail = tail_[at(s)], heir = heir_[at(tail)];
      const bool done = heir < task || critical_[at(heir)];
      if (done && order_.before(tail, task)) return s;
    }
    if (streams < most_) return std::max(streams, 1);
    best = 1;
    for (int s = 2; s < streams; ++s) {
      if (free_[at(s)] < free_[at(best)]) best = s;
    }
    return best;
  }

  const std::vector<Task>& tasks_;
  Order order_;
  int most_;
  std::vector<int> heir_;
  std::vector<bool> critical_;
  std::vector<int> tail_ = {-1};      // the last task of each stream
  std::vector<double> free_ = {0.0};  // when it will have ended
};

}  // namespace

std::vector<std::vector<int>> step_needs(const Graph& graph) {
  std::vector<std::vector<int>> needs(graph.steps.size());
  for (std::size_t i = 0; i < graph.steps.size(); ++i) {
    const Step& step = graph.steps[i];
    for (std::size_t j = 0; j < i; ++j) {
      const Step& earlier = graph.steps[j];
      if (reads(step, earlier.output) || reads(earlier, step.output) || overlap(earlier.output, step.output)) {
        needs[i].push_back(static_cast<int>(j));
      }
    }
  }
  return needs;
}

Order::Order(const std::vector<Task>& tasks) : bits_(tasks.size(), std::vector<bool>(tasks.size(), false)) {
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    for (auto need = tasks[i].needs.rbegin(); need != tasks[i].needs.rend(); ++need) {
      if (bits_[i][at(*need)]) continue;
      for (std::size_t j = 0; j < at(*need); ++j) {
        if (bits_[at(*need)][j]) bits_[i][j] = true;
      }
      bits_[i][at(*need)] = true;
    }
  }
}

Schedule schedule(const std::vector<Task>& tasks, int most_streams) {
  Schedule result;
  result.slots.resize(tasks.size());
  const std::vector<int> streams = Streams(tasks, most_streams).assign();
  for (const int stream : streams) result.streams = std::max(result.streams, stream + 1);
  const Clock nothing(at(result.streams), -1);
  std::vector<Clock> ended(tasks.size(), nothing);  // when the task itself has
  std::vector<int> tail(at(result.streams), -1);
  for (int i = 0; i < static_cast<int>(tasks.size()); ++i) {
    Slot& slot = result.slots[at(i)];
    slot.stream = streams[at(i)];
    int& before = tail[at(slot.stream)];
    Clock clock = before >= 0 ? ended[at(before)] : nothing;
    std::vector<int> missing;  // the latest need on each stream
    for (auto need = tasks[at(i)].needs.rbegin(); need != tasks[at(i)].needs.rend(); ++need) {
      const int stream = streams[at(*need)];
      const bool seen =
          std::any_of(missing.begin(), missing.end(), [&](int other) { return streams[at(other)] == stream; });
      if (clock[at(stream)] < *need && !seen) missing.push_back(*need);
    }
    for (const int need : missing) {  // unless another one comes after it
      const bool implied = std::any_of(missing.begin(), missing.end(), [&](int other) {
        return other != need && ended[at(other)][at(streams[at(need)])] >= need;
      });
      if (!implied) slot.waits.push_back(need);
    }
    for (const int wait : slot.waits) {
      advance(clock, ended[at(wait)]);
      result.slots[at(wait)].record = true;
    }
    slot.fork = before < 0 && slot.waits.empty() && slot.stream != 0;
    slot.overlap = before >= 0 && slot.waits.empty();
    clock[at(slot.stream)] = i;
    ended[at(i)] = clock;
    before = i;
  }
  Clock clock = !tail.empty() && tail[0] >= 0 ? ended[at(tail[0])] : nothing;
  std::vector<int> ends(tail.begin() + 1, tail.end());
  std::sort(ends.rbegin(), ends.rend());
  for (const int end : ends) {  // the latest first: it may imply others
    if (end < 0 || clock[at(streams[at(end)])] >= end) continue;
    result.joins.push_back(end);
    result.slots[at(end)].record = true;
    advance(clock, ended[at(end)]);
  }
  return result;
}

}  // namespace yolonas::engine
