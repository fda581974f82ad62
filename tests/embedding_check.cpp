// Answers requests about yolonas.hpp for its tests. On stdin: a line "<command> <number of bytes> <numbers>", then the
// bytes. On stdout: a line "ok <number of bytes>" or "error <number of bytes>", then the bytes.
#include <cstdio>
#include <cstring>
#include <iostream>

#include "yolonas.hpp"

namespace {

// Memory of its own for every tensor, so that a sanitiser sees a read beyond its end.
class Payload {
 public:
  explicit Payload(std::vector<char> bytes) : bytes_(std::move(bytes)) {}

  template <class T>
  std::vector<T> take(std::size_t count) {
    if (count * sizeof(T) > bytes_.size() - at_) throw std::logic_error("payload too short");
    std::vector<T> values(count);
    if (count != 0) std::memcpy(values.data(), bytes_.data() + at_, count * sizeof(T));
    at_ += count * sizeof(T);
    return values;
  }

  std::size_t rest() const { return bytes_.size() - at_; }

 private:
  std::vector<char> bytes_;
  std::size_t at_ = 0;
};

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string bytes_of(const yolonas::Geometry& g) {
  const std::vector<int> sides{g.original.height,
                               g.original.width,
                               g.resized.height,
                               g.resized.width,
                               g.frame.height,
                               g.frame.width,
                               g.top,
                               g.left};
  return bytes_of(sides) + bytes_of(std::vector<double>{g.scale_y, g.scale_x});
}

std::string description(const yolonas::Metadata& m) {
  const yolonas::Preprocess& p = m.preprocess;
  std::string text;
  for (const std::string& name : m.names) text += name + "\n";
  char line[400];
  std::snprintf(line, sizeof line, "%d %d %d %d %d %d %d %d %d %d %.9g %.9g %.9g %.9g %.9g %.9g\n", p.size.height,
                p.size.width, p.fit.height, p.fit.width, p.keep_ratio, p.enlarge, p.center, p.pad_value,
                p.channels == yolonas::Channels::bgr, p.rect, p.mean[0], p.mean[1], p.mean[2], p.divisor[0],
                p.divisor[1], p.divisor[2]);
  text += line;
  std::snprintf(line, sizeof line, "%.9g %.9g %d %d %d %d %d %d %d %d %d %s\n", m.conf, m.iou, m.top_k, m.max_det,
                m.multi_label, m.agnostic, m.uint8, m.nhwc, m.channels == yolonas::Channels::bgr, m.batch, m.any_size,
                m.outputs.c_str());
  return text + line;
}

template <class T>
std::string letterboxed(const yolonas::Metadata& metadata, const yolonas::Picture& picture, std::size_t count) {
  std::vector<T> out(count);
  const yolonas::Geometry geometry = yolonas::letterbox(metadata, picture, out.data(), out.size());
  return bytes_of(geometry) + bytes_of(out);
}

std::string answer(const std::string& command, const std::vector<int>& number, Payload payload,
                   yolonas::Metadata& metadata) {
  if (command == "metadata") {
    metadata = yolonas::read_metadata(bytes_of(payload.take<char>(payload.rest())));
    return description(metadata);
  }
  if (command == "plan") return bytes_of(yolonas::plan(metadata, number.at(0), number.at(1)));
  if (command == "letterbox") {  // height, width, row bytes, whether BGR, whether to bytes, values of the input
    const std::vector<std::uint8_t> pixels = payload.take<std::uint8_t>(payload.rest());
    const yolonas::Picture picture{pixels.data(), number.at(0), number.at(1), number.at(2),
                                   number.at(3) != 0 ? yolonas::Channels::bgr : yolonas::Channels::rgb};
    const std::size_t count = static_cast<std::size_t>(number.at(5));
    return number.at(4) != 0 ? letterboxed<std::uint8_t>(metadata, picture, count)
                             : letterboxed<float>(metadata, picture, count);
  }
  if (command == "heads") {  // height, width, then how many values the outputs of each level have
    std::array<std::vector<float>, 6> outputs;
    std::array<yolonas::Level, 3> levels;
    for (std::size_t i = 0; i < 6; ++i) {
      outputs[i] = payload.take<float>(static_cast<std::size_t>(number.at(2 + i)));
      (i % 2 == 0 ? levels[i / 2].cls : levels[i / 2].reg) = {outputs[i].data(), outputs[i].size()};
    }
    return bytes_of(yolonas::detections_from_heads(metadata, levels, {number.at(0), number.at(1)}));
  }
  if (command == "raw") {  // how many values boxes and scores have
    const std::vector<float> boxes = payload.take<float>(static_cast<std::size_t>(number.at(0)));
    const std::vector<float> scores = payload.take<float>(static_cast<std::size_t>(number.at(1)));
    return bytes_of(
        yolonas::detections_from_raw(metadata, {boxes.data(), boxes.size()}, {scores.data(), scores.size()}));
  }
  if (command == "picture") {
    std::vector<yolonas::Detection> detections =
        payload.take<yolonas::Detection>(payload.rest() / sizeof(yolonas::Detection));
    yolonas::boxes_to_picture(yolonas::plan(metadata, number.at(0), number.at(1)), detections);
    return bytes_of(detections);
  }
  throw std::logic_error("unknown command " + command);
}

void reply(const char* word, const std::string& bytes) {
  std::printf("%s %zu\n", word, bytes.size());
  std::fwrite(bytes.data(), 1, bytes.size(), stdout);
}

// The numbers of a program whose user writes 0,5.
struct Comma : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

}  // namespace

int main() {
  std::locale::global(std::locale(std::locale(), new Comma));
  yolonas::Metadata metadata;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    words.imbue(std::locale::classic());
    std::string command;
    std::size_t size = 0;
    words >> command >> size;
    std::vector<int> numbers;
    for (int number; words >> number;) numbers.push_back(number);
    std::vector<char> payload(size);
    std::cin.read(payload.data(), static_cast<std::streamsize>(size));
    try {
      reply("ok", answer(command, numbers, Payload(std::move(payload)), metadata));
    } catch (const std::runtime_error& error) {
      reply("error", std::string("runtime_error: ") + error.what());
    } catch (const std::invalid_argument& error) {
      reply("error", std::string("invalid_argument: ") + error.what());
    }
  }
}
