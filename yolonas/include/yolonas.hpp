// What surrounds an exported network in a program of your own: the metadata of the file, the letterbox that makes its
// input, and the way from its outputs "raw" or "heads" to boxes in the picture. One file to copy into a project, which
// needs C++17 and its standard library only.
//
//   const yolonas::Metadata metadata = yolonas::read_metadata(json);  // what the file has under "yolonas"
//   const yolonas::Geometry geometry = yolonas::plan(metadata, height, width);  // geometry.frame is the input's size
//   yolonas::letterbox(metadata, {pixels, height, width, row_bytes, yolonas::Channels::rgb}, input, count);
//   ... run the network ...
//   auto detections = yolonas::detections_from_heads(metadata, levels, geometry.frame);
//   yolonas::boxes_to_picture(geometry, detections);
//
// Everything works on one picture; of a batch, pass each picture's part of the tensors. The numbers are those of the
// Python package: letterbox and selection bit for bit, decoding to a few units in the last place. Functions are
// reentrant, keep no state and do not depend on the locale. They throw std::runtime_error for metadata that cannot be
// used, std::invalid_argument for arguments that do not fit, both with a text that says which and why.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace yolonas {

struct Size {
  int height = 0, width = 0;  // pixels
};

enum class Channels { rgb, bgr };  // order of the three values of a pixel

// How a picture becomes the input. The network sees (value - mean) / divisor per channel.
struct Preprocess {
  Size size;                               // of the input; multiples of 32
  Size fit;                                // the picture is resized to fit into this; 0x0: never resized
  bool keep_ratio = true;                  // false: both sides are stretched to `fit`
  bool enlarge = true;                     // false: pictures smaller than `fit` stay as they are
  bool center = true;                      // false: all of the padding is at the bottom and right
  std::uint8_t pad_value = 114;            // around the picture, before scaling
  Channels channels = Channels::rgb;       // the order that the network was trained with, and that of mean and divisor
  std::array<float, 3> mean{}, divisor{};  // in units of a byte; divisor is not zero
  bool rect = false;                       // the frame is only as large as the resized picture needs
};

// What a file says about itself. `read_metadata` has checked the ranges; change thresholds as you like.
struct Metadata {
  std::vector<std::string> names;  // of the classes, UTF-8 without control characters
  Preprocess preprocess;
  float conf = 0, iou = 0;            // lowest score; highest overlap of two detections; both 0..1
  int top_k = 0, max_det = 0;         // pairs of anchor and class before suppression; detections
  bool multi_label = true;            // an anchor may be reported for several classes
  bool agnostic = false;              // boxes of different classes suppress each other
  bool uint8 = true;                  // the input is bytes, which the graph scales; else float, scaled by `letterbox`
  bool nhwc = false;                  // the input is (batch, height, width, 3); else (batch, 3, height, width)
  Channels channels = Channels::rgb;  // the order that the input wants
  int batch = 0;                      // pictures per call; 0: any number
  bool any_size = false;              // the input's sides may be any multiples of 32; else they are `preprocess.size`
  std::string outputs;                // "raw", "heads", or a form in which detections come from the graph
};

// An 8-bit picture of three interleaved channels; rows from the top, row_bytes apart (at least 3 * width).
struct Picture {
  const std::uint8_t* data = nullptr;
  int height = 0, width = 0;
  std::ptrdiff_t row_bytes = 0;
  Channels channels = Channels::rgb;
};

// Where a picture lies in the network's frame.
struct Geometry {
  Size original, resized, frame;    // the picture, the same after resizing, and the input
  int top = 0, left = 0;            // of the resized picture in the frame
  double scale_y = 1, scale_x = 1;  // pixels of the frame per pixel of the picture
};

struct Detection {
  float x1 = 0, y1 = 0, x2 = 0, y2 = 0;  // pixels of the frame, or of the picture after `boxes_to_picture`
  float score = 0;
  int class_id = 0;  // index into Metadata::names
};

// One picture's part of an output, contiguous. The count is checked, as a file's metadata may be wrong.
struct Values {
  const float* data = nullptr;
  std::size_t count = 0;
};

// The outputs of one level of "heads", of h x w cells, K classes.
struct Level {
  Values cls;  // (K, h, w) logits
  Values reg;  // (68, h, w) logits, channel = side * 17 + bin; left, top, right, bottom
};

namespace detail {

// A product that is rounded before anything is added to it: FMA would give other bits. (Compilers contract freely.)
template <class T>
T rounded_product(T a, T b) {
  const volatile T product = a * b;
  return product;
}

inline void check(bool holds, const std::string& text) {
  if (!holds) throw std::invalid_argument(text);
}

inline void check_count(const std::string& what, const Values& values, std::size_t count) {
  check(
      values.count == count && (values.data || count == 0),
      what + " must have " + std::to_string(count) + " values, got " + std::to_string(values.data ? values.count : 0));
}

// Text from a file may end up in a terminal.
inline std::string printable(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return text;
}

struct Json {
  char kind = 0;                  // its first character: { [ " t f n, and 0 for a number
  std::string text;               // of a string, or as written
  std::vector<std::string> keys;  // of an object, in the order of its items
  std::vector<Json> items;
};

// RFC 8259, strictly, with at most 64 levels in 16 MiB.
class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : text_(text) {}

  Json document() {
    if (text_.size() > std::size_t{1} << 24) fail("more than 16 MiB");
    Json json = value(0);
    next();
    if (at_ != text_.size()) fail("text after the end");
    return json;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw std::runtime_error("metadata: must be JSON, got " + std::string(what) + " at byte " + std::to_string(at_));
  }

  // 0 at the end; no 0 in the text is ever accepted.
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  char next() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
    return peek();
  }

  bool take(char wanted) {
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  Json value(int depth) {
    if (depth > 64) fail("more than 64 levels");
    Json json;
    json.kind = next();
    if (json.kind == '{' || json.kind == '[') {
      ++at_;
      container(json, json.kind == '{' ? '}' : ']', depth);
    } else if (json.kind == '"') {
      json.text = string();
    } else if (json.kind == 't' || json.kind == 'f' || json.kind == 'n') {
      json.text = json.kind == 't' ? "true" : json.kind == 'f' ? "false" : "null";
      if (text_.compare(at_, json.text.size(), json.text) != 0) fail("an unknown word");
      at_ += json.text.size();
    } else {
      json.kind = 0;
      json.text = number();
    }
    return json;
  }

  void container(Json& json, char close, int depth) {
    next();
    if (take(close)) return;
    do {
      if (close == '}') {
        if (next() != '"') fail("an object without a key");
        json.keys.push_back(string());
        next();
        if (!take(':')) fail("a key without a value");
      }
      json.items.push_back(value(depth + 1));
      next();
    } while (take(','));
    if (!take(close)) fail("a list or an object without an end");
  }

  std::string number() {
    const std::size_t begin = at_;
    const auto digits = [this] {
      if (peek() < '0' || peek() > '9') fail("no value");
      while (peek() >= '0' && peek() <= '9') ++at_;
    };
    take('-');
    if (!take('0')) digits();
    if (take('.')) digits();
    if (take('e') || take('E')) {
      if (!take('-')) take('+');
      digits();
    }
    return text_.substr(begin, at_ - begin);
  }

  std::string string() {
    static constexpr char kEscapes[] = "\"\\/bfnrt", kMeanings[] = "\"\\/\b\f\n\r\t";
    std::string result;
    ++at_;
    while (!take('"')) {
      if (static_cast<unsigned char>(peek()) < 0x20) fail("a string without an end or with a control character");
      if (!take('\\')) {
        result += text_[at_++];
      } else if (take('u')) {
        append_code_point(result);
      } else {
        const std::size_t which = std::string(kEscapes).find(peek());
        if (which == std::string::npos) fail("an unknown escape");
        result += kMeanings[which];
        ++at_;
      }
    }
    return result;
  }

  std::uint32_t hex4() {
    std::uint32_t unit = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const std::size_t digit = std::string("0123456789abcdefABCDEF").find(peek());
      if (digit == std::string::npos) fail("a \\u without four digits");
      unit = unit * 16 + static_cast<std::uint32_t>(digit < 16 ? digit : digit - 6);
    }
    return unit;
  }

  void append_code_point(std::string& utf8) {
    std::uint32_t code = hex4();
    if (code >= 0xd800 && code < 0xe000) {
      const std::uint32_t low = code < 0xdc00 && take('\\') && take('u') ? hex4() : 0;
      if (low < 0xdc00 || low >= 0xe000) fail("half of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    const int following = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr std::uint32_t kLead[] = {0, 0xc0, 0xe0, 0xf0};
    utf8 += static_cast<char>(kLead[following] | code >> 6 * following);
    for (int i = following - 1; i >= 0; --i) utf8 += static_cast<char>(0x80 | (code >> 6 * i & 0x3f));
  }

  const std::string& text_;
  std::size_t at_ = 0;
};

// A value with its path, for checks whose errors name it.
class Field {
 public:
  Field(const Json& json, std::string path) : json_(json), path_(std::move(path)) {}

  [[noreturn]] void fail(const std::string& requirement) const {
    const std::string got = json_.kind == '[' ? "a list" : json_.kind == '{' ? "an object" : json_.text.substr(0, 40);
    throw std::runtime_error(printable("metadata: " + path_.substr(0, 80) + " must " + requirement + ", got " + got));
  }

  // The last one of a key that is there twice, as in Python.
  Field operator[](const std::string& key) const {
    if (json_.kind != '{') fail("be an object");
    const std::string path = path_ == "all" ? key : path_ + "." + key;
    const auto found = std::find(json_.keys.rbegin(), json_.keys.rend(), key);
    if (found == json_.keys.rend()) throw std::runtime_error("metadata: " + path + " is missing");
    return {json_.items[static_cast<std::size_t>(json_.keys.rend() - found) - 1], path};
  }

  std::vector<Field> list(std::size_t length) const {
    if (json_.kind != '[' || json_.items.size() != length) fail("be a list of " + std::to_string(length));
    std::vector<Field> fields;
    for (const Json& item : json_.items) fields.emplace_back(item, path_);
    return fields;
  }

  bool is_null() const { return json_.kind == 'n'; }
  const std::vector<std::string>& keys() const { return json_.keys; }

  std::string text() const {
    if (json_.kind != '"') fail("be a string");
    return printable(json_.text);
  }

  std::string one_of(const std::vector<std::string>& known) const {
    std::string requirement = "be one of";
    for (const std::string& word : known) {
      if (json_.kind == '"' && json_.text == word) return word;
      requirement += " " + word;
    }
    fail(requirement);
  }

  bool boolean() const {
    if (json_.kind != 't' && json_.kind != 'f') fail("be true or false");
    return json_.kind == 't';
  }

  int integer(int low, int high) const {
    const bool whole = json_.kind == 0 && json_.text.find_first_of(".eE") == std::string::npos;
    const long long number = whole && json_.text.size() < 12 ? std::stoll(json_.text) : high + 1LL;
    if (number >= low && number <= high) return static_cast<int>(number);
    fail("be a whole number in " + std::to_string(low) + ".." + std::to_string(high));
  }

  float real(float low, float high, const char* requirement) const {
    std::istringstream stream(json_.text);
    stream.imbue(std::locale::classic());
    double number = 0;
    if (json_.kind != 0 || !(stream >> number) || !(number >= low && number <= high)) fail(requirement);
    return static_cast<float>(number);
  }

  Size size(Size most) const {
    const std::vector<Field> sides = list(2);
    return {sides[0].integer(1, most.height), sides[1].integer(1, most.width)};
  }

  Channels channels() const { return one_of({"rgb", "bgr"}) == "rgb" ? Channels::rgb : Channels::bgr; }

 private:
  const Json& json_;
  std::string path_;
};

inline Preprocess read_preprocess(const Field& field) {
  const std::vector<std::string> known{"size",      "fit",      "keep_ratio", "enlarge", "padding",
                                       "pad_value", "channels", "mean",       "divisor", "rect"};
  for (const std::string& key : field.keys()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) field[key].fail("be known to this version");
  }
  Preprocess result;
  result.size = field["size"].size({16384, 16384});
  if (result.size.height % 32 != 0 || result.size.width % 32 != 0) field["size"].fail("be multiples of 32");
  if (!field["fit"].is_null()) result.fit = field["fit"].size(result.size);
  result.keep_ratio = field["keep_ratio"].boolean();
  result.enlarge = field["enlarge"].boolean();
  result.center = field["padding"].one_of({"center", "bottom_right"}) == "center";
  result.pad_value = static_cast<std::uint8_t>(field["pad_value"].integer(0, 255));
  result.channels = field["channels"].channels();
  result.rect = field["rect"].boolean();
  const std::vector<Field> mean = field["mean"].list(3), divisor = field["divisor"].list(3);
  constexpr float kMost = std::numeric_limits<float>::max();
  for (std::size_t c = 0; c < 3; ++c) {
    result.mean[c] = mean[c].real(-kMost, kMost, "be finite numbers");
    result.divisor[c] = divisor[c].real(-kMost, kMost, "be finite numbers");
    if (result.divisor[c] == 0) divisor[c].fail("not be zero");
  }
  return result;
}

// Where a value of a resized axis comes from: two sources and their weights in 2048ths.
struct Tap {
  int first, second, first_weight, second_weight;
};

// OpenCV's uint8 bilinear. Rows beyond the border keep their weights; columns there are those of the border.
inline std::vector<Tap> taps(int source, int resized, bool rows) {
  std::vector<Tap> result;
  const double ratio = static_cast<double>(source) / resized;
  for (int i = 0; i < resized; ++i) {
    const float position = static_cast<float>(rounded_product(i + 0.5, ratio) - 0.5);
    const int index = static_cast<int>(std::floor(position));
    float part = position - std::floor(position);
    if (!rows && (index < 0 || index >= source - 1)) part = 0;
    result.push_back({std::clamp(index, 0, source - 1), std::clamp(index + 1, 0, source - 1),
                      static_cast<int>(std::nearbyint((1 - part) * 2048)),
                      static_cast<int>(std::nearbyint(part * 2048))});
  }
  return result;
}

// 0 below -87, as in the Python package, where exp has no normal numbers.
inline float sigmoid(float x) {
  if (x < -87) return 0;
  const float e = std::exp(-std::abs(x));
  return (x < 0 ? e : 1) / (1 + e);
}

// A logit below which no score can exceed or reach the threshold; lower than its inverse, as sigmoid rounds.
inline float logit_floor(float score) {
  if (score <= 0) return -std::numeric_limits<float>::infinity();
  return static_cast<float>(std::min(std::log(score / (1.0 - score)), 9.0) - 0.01);
}

struct Candidate {
  float score;
  std::size_t index;  // anchor * classes + class
};

// Adds the candidates of `cells` anchors from `anchor` on, with the value of class k of cell i at
// x[i * cell_step + k * class_step].
inline void collect(const Metadata& metadata, const float* x, std::size_t cells, std::size_t cell_step,
                    std::size_t class_step, bool logits, std::size_t anchor, std::vector<Candidate>& candidates) {
  const std::size_t classes = metadata.names.size();
  const float conf = metadata.conf, floor = logits ? logit_floor(conf) : conf;
  for (std::size_t i = 0; i < cells; ++i) {
    float best_value = 0;
    Candidate best{-1, 0};
    for (std::size_t k = 0; k < classes; ++k) {
      const float value = x[i * cell_step + k * class_step];
      if (!(value >= floor)) continue;  // NaN too
      if (!metadata.multi_label && best.score >= 0 && value <= best_value) continue;
      const float score = logits ? sigmoid(value) : value;
      const Candidate candidate{score, (anchor + i) * classes + k};
      if (metadata.multi_label) {
        if (score > conf && std::isfinite(score)) candidates.push_back(candidate);
      } else if (score > best.score) {
        best = candidate;
        best_value = value;
      }
    }
    if (!metadata.multi_label && best.score >= conf && std::isfinite(best.score)) candidates.push_back(best);
  }
}

// The best top_k candidates, suppressed. `box_of` gives the Detection of an anchor, without score and class.
template <class BoxOf>
std::vector<Detection> suppress(const Metadata& metadata, std::vector<Candidate>& candidates, BoxOf box_of) {
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score > b.score : a.index < b.index;
  };
  const std::size_t most = std::min(candidates.size(), static_cast<std::size_t>(std::max(metadata.top_k, 0)));
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(most), candidates.end(),
                    better);
  std::vector<Detection> kept;
  std::vector<float> areas;
  for (std::size_t i = 0; i < most && static_cast<int>(kept.size()) < metadata.max_det; ++i) {
    Detection box = box_of(candidates[i].index / metadata.names.size());
    if (!std::isfinite(box.x1) || !std::isfinite(box.y1) || !std::isfinite(box.x2) || !std::isfinite(box.y2)) continue;
    box.score = candidates[i].score;
    box.class_id = static_cast<int>(candidates[i].index % metadata.names.size());
    const float area = rounded_product(box.x2 - box.x1, box.y2 - box.y1);
    bool dropped = false;
    for (std::size_t j = 0; j < kept.size() && !dropped; ++j) {
      if (!metadata.agnostic && kept[j].class_id != box.class_id) continue;
      const float width = std::min(kept[j].x2, box.x2) - std::max(kept[j].x1, box.x1);
      const float height = std::min(kept[j].y2, box.y2) - std::max(kept[j].y1, box.y1);
      if (!(width > 0 && height > 0)) continue;
      const float shared = rounded_product(width, height);
      dropped = shared / (areas[j] + area - shared) > metadata.iou;
    }
    if (dropped) continue;
    kept.push_back(box);
    areas.push_back(area);
  }
  return kept;
}

// The expectation of a softmax over 17 bins, `step` values apart.
inline float expectation(const float* bins, std::size_t step) {
  float highest = bins[0], total = 0, weighted = 0;
  for (std::size_t bin = 1; bin < 17; ++bin) highest = std::max(highest, bins[bin * step]);
  for (std::size_t bin = 0; bin < 17; ++bin) {
    const float e = std::exp(bins[bin * step] - highest);
    total += e;
    weighted += e * static_cast<float>(bin);
  }
  return weighted / total;
}

}  // namespace detail

// Reads the JSON that a file has under "yolonas" in its metadata (ONNX: metadata_props; OpenVINO: rt_info).
// Throws std::runtime_error, naming the entry, for a text that is not JSON, an entry that is missing or makes no sense,
// or a newer format.
inline Metadata read_metadata(const std::string& json) {
  const detail::Json document = detail::JsonReader(json).document();
  const detail::Field all(document, "all");
  all["format_version"].integer(1, 1);
  Metadata result;
  const int classes = all["num_classes"].integer(1, 100000);
  for (const detail::Field& name : all["names"].list(static_cast<std::size_t>(classes))) {
    result.names.push_back(name.text());
  }
  result.preprocess = detail::read_preprocess(all["preprocess"]);
  result.conf = all["conf"].real(0, 1, "be a number in 0..1");
  result.iou = all["iou"].real(0, 1, "be a number in 0..1");
  result.top_k = all["top_k"].integer(1, 1000000);
  result.max_det = all["max_det"].integer(1, 1000000);
  result.multi_label = all["multi_label"].boolean();
  result.agnostic = all["agnostic"].boolean();
  const detail::Field input = all["input"];
  result.uint8 = input["dtype"].one_of({"uint8", "float32"}) == "uint8";
  result.nhwc = input["layout"].one_of({"nchw", "nhwc"}) == "nhwc";
  result.channels = input["channels"].channels();
  result.batch = input["batch"].is_null() ? 0 : input["batch"].integer(1, 65536);
  const Size size = result.preprocess.size;
  result.any_size = input["height"].is_null() && input["width"].is_null();
  if (!result.any_size) {
    input["height"].integer(size.height, size.height);
    input["width"].integer(size.width, size.width);
  }
  result.outputs = all["outputs"]["format"].text();
  return result;
}

// Where a picture of these sides lies in the input. The frame is `preprocess.size`, or where the file takes any size
// and the pre-processing does not state one (`rect`, or no `fit`), as many multiples of 32 as the picture needs. Throws
// std::invalid_argument for a picture that is empty, larger than 2^20 or does not fit.
inline Geometry plan(const Metadata& metadata, int height, int width) {
  const Preprocess& p = metadata.preprocess;
  const std::string sides = std::to_string(height) + "x" + std::to_string(width);
  detail::check(height >= 1 && width >= 1 && height <= 1 << 20 && width <= 1 << 20,
                "plan: height and width must lie in 1..1048576, got " + sides);
  Geometry g;
  g.original = g.resized = {height, width};
  const bool fits = p.fit.height > 0;
  const double to_height = static_cast<double>(p.fit.height) / height;
  const double to_width = static_cast<double>(p.fit.width) / width, scale = std::min(to_height, to_width);
  if (fits && !p.keep_ratio) {
    g.resized = p.fit;
    g.scale_y = to_height;
    g.scale_x = to_width;
  } else if (fits && (scale < 1 || (scale > 1 && p.enlarge))) {
    // nearbyint rounds half to even. A side never vanishes.
    g.resized = {std::max(1, static_cast<int>(std::nearbyint(height * scale))),
                 std::max(1, static_cast<int>(std::nearbyint(width * scale)))};
    g.scale_y = g.scale_x = scale;
  }
  g.frame = p.size;
  if (metadata.any_size && (p.rect || !fits)) {
    const Size border = fits ? Size{p.size.height - p.fit.height, p.size.width - p.fit.width} : Size{};
    g.frame = {(g.resized.height + border.height + 31) / 32 * 32, (g.resized.width + border.width + 31) / 32 * 32};
  }
  detail::check(g.resized.height <= g.frame.height && g.resized.width <= g.frame.width,
                "plan: a " + sides + " picture does not fit into " + std::to_string(g.frame.height) + "x" +
                    std::to_string(g.frame.width));
  g.top = p.center ? (g.frame.height - g.resized.height) / 2 : 0;
  g.left = p.center ? (g.frame.width - g.resized.width) / 2 : 0;
  return g;
}

// Writes one picture's input: resizes as OpenCV's uint8 bilinear does, pads, orders the channels and, for a float
// input, scales. `out` has `count` values of std::uint8_t or float, as `metadata.uint8` says: 3 * frame.height *
// frame.width of `plan`, in the layout of the input. Returns that plan. Throws std::invalid_argument for a picture or
// an `out` that does not fit.
template <class T>
Geometry letterbox(const Metadata& metadata, const Picture& picture, T* out, std::size_t count) {
  constexpr bool bytes = std::is_same_v<T, std::uint8_t>;
  static_assert(bytes || std::is_same_v<T, float>, "letterbox: out must be of std::uint8_t or float");
  const Preprocess& p = metadata.preprocess;
  const Geometry g = plan(metadata, picture.height, picture.width);
  const std::size_t rows = static_cast<std::size_t>(g.frame.height), columns = static_cast<std::size_t>(g.frame.width);
  detail::check(bytes == metadata.uint8, std::string("letterbox: out must be of ") +
                                             (metadata.uint8 ? "std::uint8_t" : "float") + " for this input");
  const std::size_t wanted = 3 * rows * columns;
  detail::check(out && count == wanted, "letterbox: out must have " + std::to_string(wanted) + " values, got " +
                                            std::to_string(out ? count : 0));
  detail::check(picture.data && picture.row_bytes >= std::ptrdiff_t{3} * picture.width,
                "letterbox: picture must have data and rows of 3 * width bytes, got row_bytes " +
                    std::to_string(picture.row_bytes));
  std::array<std::array<T, 256>, 3> scaled;  // what becomes of a byte, by channel of the input
  for (std::size_t c = 0; c < 3; ++c) {
    const std::size_t trained = metadata.channels == p.channels ? c : 2 - c;
    for (std::size_t value = 0; value < 256; ++value) {
      if constexpr (bytes) {
        scaled[c][value] = static_cast<T>(value);
      } else {
        scaled[c][value] = (static_cast<float>(value) - p.mean[trained]) / p.divisor[trained];
      }
    }
  }
  const auto place = [&](std::size_t row, std::size_t column, std::size_t c) -> T& {
    return out[metadata.nhwc ? (row * columns + column) * 3 + c : (c * rows + row) * columns + column];
  };
  for (std::size_t i = 0; i < count; ++i) {
    out[i] = scaled[metadata.nhwc ? i % 3 : i / (rows * columns)][p.pad_value];
  }
  const std::vector<detail::Tap> x_taps = detail::taps(picture.width, g.resized.width, false);
  const std::vector<detail::Tap> y_taps = detail::taps(picture.height, g.resized.height, true);
  std::array<std::vector<int>, 2> resampled{std::vector<int>(3 * x_taps.size()), std::vector<int>(3 * x_taps.size())};
  std::array<int, 2> held{-1, -1};  // the picture's row in each
  const auto resample = [&](int row, std::size_t slot) {
    if (held[slot] == row) return;
    held[slot] = row;
    const std::uint8_t* from = picture.data + row * picture.row_bytes;
    int* to = resampled[slot].data();
    for (const detail::Tap& tap : x_taps) {
      for (int c = 0; c < 3; ++c) {
        *to++ = (from[3 * tap.first + c] * tap.first_weight + from[3 * tap.second + c] * tap.second_weight) >> 4;
      }
    }
  };
  const bool swap = picture.channels != metadata.channels;
  for (std::size_t y = 0; y < y_taps.size(); ++y) {
    const detail::Tap& tap = y_taps[y];
    if (held[1] == tap.first) {  // the lower row of before is the upper one now
      std::swap(resampled[0], resampled[1]);
      std::swap(held[0], held[1]);
    }
    resample(tap.first, 0);
    resample(tap.second, 1);
    for (std::size_t c = 0; c < 3; ++c) {
      const int *upper = resampled[0].data() + (swap ? 2 - c : c), *lower = resampled[1].data() + (swap ? 2 - c : c);
      for (std::size_t x = 0; x < x_taps.size(); ++x) {
        const int value =
            (((tap.first_weight * upper[3 * x]) >> 16) + ((tap.second_weight * lower[3 * x]) >> 16) + 2) >> 2;
        place(y + static_cast<std::size_t>(g.top), x + static_cast<std::size_t>(g.left), c) =
            scaled[c][static_cast<std::size_t>(value)];
      }
    }
  }
  return g;
}

// The detections of one picture from the outputs of "heads": levels of stride 8, 16 and 32 with frame / stride cells,
// `frame` being the input's size. Best first, equal scores by anchor, then class; boxes in pixels of the frame, not
// clipped. Scores that are NaN and boxes that are not finite are left out. Thresholds are those of `metadata`.
// Throws std::invalid_argument for a frame that is not of multiples of 32 and counts that do not fit it.
inline std::vector<Detection> detections_from_heads(const Metadata& metadata, const std::array<Level, 3>& levels,
                                                    Size frame) {
  const char* op = "detections_from_heads: ";
  detail::check(frame.height > 0 && frame.width > 0 && frame.height % 32 == 0 && frame.width % 32 == 0,
                std::string(op) + "frame must be multiples of 32, got " + std::to_string(frame.height) + "x" +
                    std::to_string(frame.width));
  std::array<std::size_t, 4> first{};  // anchor of each level, and how many there are
  std::vector<detail::Candidate> candidates;
  for (std::size_t i = 0; i < 3; ++i) {
    const int stride = 8 << i;
    const std::size_t cells =
        static_cast<std::size_t>(frame.height / stride) * static_cast<std::size_t>(frame.width / stride);
    detail::check_count(std::string(op) + "cls", levels[i].cls, cells * metadata.names.size());
    detail::check_count(std::string(op) + "reg", levels[i].reg, cells * 68);
    detail::collect(metadata, levels[i].cls.data, cells, 1, cells, true, first[i], candidates);
    first[i + 1] = first[i] + cells;
  }
  return detail::suppress(metadata, candidates, [&](std::size_t anchor) {
    const std::size_t i = anchor >= first[2] ? 2 : anchor >= first[1] ? 1 : 0;
    const std::size_t cell = anchor - first[i], cells = first[i + 1] - first[i];
    const std::size_t columns = static_cast<std::size_t>(frame.width / (8 << i));
    const float stride = static_cast<float>(8 << i);
    const float x = static_cast<float>(cell % columns) + 0.5f, y = static_cast<float>(cell / columns) + 0.5f;
    std::array<float, 4> distance;  // left, top, right, bottom, in strides
    for (std::size_t side = 0; side < 4; ++side) {
      distance[side] = detail::expectation(levels[i].reg.data + side * 17 * cells + cell, cells);
    }
    return Detection{(x - distance[0]) * stride,
                     (y - distance[1]) * stride,
                     (x + distance[2]) * stride,
                     (y + distance[3]) * stride,
                     0,
                     0};
  });
}

// The same from the outputs of "raw": boxes (A, 4) xyxy in pixels of the frame, scores (A, K).
// Throws std::invalid_argument for counts that do not fit each other and the number of classes.
inline std::vector<Detection> detections_from_raw(const Metadata& metadata, Values boxes, Values scores) {
  const std::size_t anchors = boxes.count / 4, classes = metadata.names.size();
  detail::check_count("detections_from_raw: boxes", boxes, 4 * anchors);
  detail::check_count("detections_from_raw: scores", scores, anchors * classes);
  std::vector<detail::Candidate> candidates;
  detail::collect(metadata, scores.data, anchors, classes, 1, false, 0, candidates);
  return detail::suppress(metadata, candidates, [&](std::size_t anchor) {
    const float* box = boxes.data + 4 * anchor;
    return Detection{box[0], box[1], box[2], box[3], 0, 0};
  });
}

// Maps boxes from the frame to the picture, in place, and clips them to it.
inline void boxes_to_picture(const Geometry& geometry, std::vector<Detection>& detections) {
  const float left = static_cast<float>(geometry.left), top = static_cast<float>(geometry.top);
  const float per_x = static_cast<float>(1 / geometry.scale_x), per_y = static_cast<float>(1 / geometry.scale_y);
  const float width = static_cast<float>(geometry.original.width),
              height = static_cast<float>(geometry.original.height);
  for (Detection& d : detections) {
    d.x1 = std::clamp((d.x1 - left) * per_x, 0.0f, width);
    d.y1 = std::clamp((d.y1 - top) * per_y, 0.0f, height);
    d.x2 = std::clamp((d.x2 - left) * per_x, 0.0f, width);
    d.y2 = std::clamp((d.y2 - top) * per_y, 0.0f, height);
  }
}

}  // namespace yolonas
