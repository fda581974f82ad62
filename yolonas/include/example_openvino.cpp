// Prints what an exported network finds in a picture, one line each: name score x1 y1 x2 y2.
//
//   c++ -std=c++17 -O2 example_openvino.cpp -o example_openvino -lopenvino
//   ./example_openvino network.onnx picture.ppm
//
// The network is an ONNX or OpenVINO file with the outputs "heads" or "raw", the picture a binary PPM of 8 bits.
#include <cstdio>
#include <fstream>
#include <openvino/openvino.hpp>

#include "yolonas.hpp"

static yolonas::Picture read_ppm(const char* path, std::vector<std::uint8_t>& pixels) {
  std::ifstream file(path, std::ios::binary);
  std::string magic, comment;
  file >> magic;
  int width = 0, height = 0, highest = 0;
  for (int* number : {&width, &height, &highest}) {
    while ((file >> std::ws).peek() == '#') std::getline(file, comment);
    file >> *number;
  }
  file.get();
  if (magic != "P6" || !file || width < 1 || height < 1 || highest != 255) {
    throw std::runtime_error(std::string(path) + " must be a binary PPM of 8 bits");
  }
  pixels.resize(std::size_t{3} * static_cast<std::size_t>(width) * static_cast<std::size_t>(height));
  if (!file.read(reinterpret_cast<char*>(pixels.data()), static_cast<std::streamsize>(pixels.size()))) {
    throw std::runtime_error(std::string(path) + " is cut off");
  }
  return {pixels.data(), height, width, std::ptrdiff_t{3} * width, yolonas::Channels::rgb};
}

static void run(const char* network, const char* file) {
  std::vector<std::uint8_t> pixels;
  const yolonas::Picture picture = read_ppm(file, pixels);
  ov::Core core;
  const std::shared_ptr<ov::Model> model = core.read_model(network);
  // What stands in metadata_props of an ONNX file is below "framework".
  std::vector<std::string> key{"yolonas"};
  if (!model->has_rt_info(key)) key.insert(key.begin(), "framework");
  const yolonas::Metadata metadata = yolonas::read_metadata(model->get_rt_info<std::string>(key));
  // float32 also where the processor has bfloat16, which OpenVINO would take.
  const ov::AnyMap options{ov::hint::inference_precision(ov::element::f32)};
  ov::InferRequest request = core.compile_model(model, "CPU", options).create_infer_request();

  const yolonas::Geometry geometry = yolonas::plan(metadata, picture.height, picture.width);
  const std::size_t height = static_cast<std::size_t>(geometry.frame.height);
  const std::size_t width = static_cast<std::size_t>(geometry.frame.width);
  ov::Tensor input(metadata.uint8 ? ov::element::u8 : ov::element::f32,
                   metadata.nhwc ? ov::Shape{1, height, width, 3} : ov::Shape{1, 3, height, width});
  if (metadata.uint8) {
    yolonas::letterbox(metadata, picture, input.data<std::uint8_t>(), input.get_size());
  } else {
    yolonas::letterbox(metadata, picture, input.data<float>(), input.get_size());
  }
  request.set_input_tensor(input);
  request.infer();

  const auto values = [&](const char* name) {
    const ov::Tensor tensor = request.get_tensor(name);
    return yolonas::Values{tensor.data<const float>(), tensor.get_size()};
  };
  std::vector<yolonas::Detection> detections;
  if (metadata.outputs == "heads") {
    const std::array<yolonas::Level, 3> levels{yolonas::Level{values("cls8"), values("reg8")},
                                               yolonas::Level{values("cls16"), values("reg16")},
                                               yolonas::Level{values("cls32"), values("reg32")}};
    detections = yolonas::detections_from_heads(metadata, levels, geometry.frame);
  } else if (metadata.outputs == "raw") {
    detections = yolonas::detections_from_raw(metadata, values("boxes"), values("scores"));
  } else {
    throw std::runtime_error("the network must have the outputs \"heads\" or \"raw\", got " + metadata.outputs);
  }
  yolonas::boxes_to_picture(geometry, detections);
  for (const yolonas::Detection& d : detections) {
    const std::string& name = metadata.names[static_cast<std::size_t>(d.class_id)];
    std::printf("%s %.4f %.2f %.2f %.2f %.2f\n", name.c_str(), d.score, d.x1, d.y1, d.x2, d.y2);
  }
}

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s network.onnx picture.ppm\n", argv[0]);
    return 2;
  }
  try {
    run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
