"""The texts for Frigate, Triton, DeepStream and trtexec, each read by a parser of its language."""

from __future__ import annotations

import configparser
import shlex
from dataclasses import replace
from typing import Any

import pytest
import yaml

from yolonas.config import COCO_NAMES, DetectSettings
from yolonas.exporting.spec import ExportSpec
from yolonas.exporting.targets import (
    DEEPSTREAM,
    FRIGATE,
    TRITON,
    deepstream_config,
    frigate_config,
    frigate_labels,
    labels,
    profile_shapes,
    triton_config,
    triton_files,
    trtexec_line,
)
from yolonas.preprocess import Preprocess

COCO = dict(enumerate(COCO_NAMES))


def spec_of(preset: Any = (), **changes: Any) -> ExportSpec:
    """The spec that a driver makes of a preset, with some fields of it or of its settings replaced."""
    spec = ExportSpec(variant="s", names=COCO, preprocess=Preprocess(), settings=DetectSettings())
    values = {**dict(preset), **changes}
    if (size := values.pop("size", None)) is not None:
        spec = replace(spec, preprocess=spec.preprocess.with_size(size))
    own = {key: values.pop(key) for key in list(values) if key in DetectSettings.__dataclass_fields__}
    return replace(spec, settings=replace(spec.settings, **own), **values)


def test_labels_are_one_name_a_line() -> None:
    assert labels(spec_of()).splitlines() == list(COCO_NAMES)
    odd = spec_of(names={0: "two\nlines", 1: " ", 2: "weiße Zelle"})
    assert labels(odd) == "two lines\nclass_1\nweiße Zelle\n"
    assert frigate_labels(odd) == "0 two lines\n1 class_1\n2 weiße Zelle\n"


# --- Frigate ---


def test_frigate_reads_what_the_preset_makes() -> None:
    spec = spec_of(FRIGATE)
    text = frigate_config(spec, "/config/yolo_nas_s.onnx", "/config/labels.txt")
    assert yaml.safe_load(text) == {
        "detectors": {"onnx": {"type": "onnx"}},
        "model": {
            "model_type": "yolonas",
            "width": 320,
            "height": 320,
            "input_tensor": "nchw",
            "input_pixel_format": "bgr",
            "input_dtype": "int",
            "path": "/config/yolo_nas_s.onnx",
            "labelmap_path": "/config/labels.txt",
        },
    }
    assert "no accuracy is\n# lost" in text
    assert spec.swaps_channels
    assert spec.settings == replace(DetectSettings(), conf=0.4, top_k=300, max_det=20)


@pytest.mark.parametrize("path", ["/config/a: b #c.onnx", "/config/weiß.onnx", "/config/'q\".onnx", "yes"])
def test_frigate_paths_survive_yaml(path: str) -> None:
    assert yaml.safe_load(frigate_config(spec_of(FRIGATE), path, path))["model"]["path"] == path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": "batch"}, "frigate: outputs must be 'rows' or 'flat', got 'batch'; Frigate reads rows"),
        ({"uint8": False}, "frigate: preprocess must be True, got False"),
        ({"nhwc": True}, "frigate: layout must be 'nchw', got 'nhwc'"),
        ({"batch": None}, "frigate: batch must be 1, got None"),
        ({"dynamic_size": True}, "frigate: dynamic must be False, got True"),
        ({"size": (320, 640)}, "frigate: size must be square, got 320x640"),
    ],
)
def test_frigate_refuses_what_it_cannot_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frigate_config(spec_of(FRIGATE, **changes), "m.onnx", "l.txt")


# --- Triton ---


def parse_triton(text: str) -> Any:
    """The text as a message with the fields that Triton's ModelConfig has for it."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="test", syntax="proto3")
    kind = descriptor_pb2.FieldDescriptorProto
    types = file.enum_type.add(name="DataType")
    for number, name in enumerate(("TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_INT64", "TYPE_FP32")):
        types.value.add(name=name, number=number)

    def message(name: str, /, **fields: tuple[Any, bool, str]) -> None:
        entry = file.message_type.add(name=name)
        for number, (field, (of, repeated, of_name)) in enumerate(fields.items(), 1):
            label = kind.LABEL_REPEATED if repeated else kind.LABEL_OPTIONAL
            one = entry.field.add(name=field, number=number, type=of, label=label)
            if of_name:
                one.type_name = f".test.{of_name}"

    text_field, enum, ints = (kind.TYPE_STRING, False, ""), (kind.TYPE_ENUM, False, "DataType"), kind.TYPE_INT64
    tensor = {"name": text_field, "data_type": enum, "dims": (ints, True, "")}
    message("ModelInput", **tensor)
    message("ModelOutput", **tensor, label_filename=text_field)
    delay = (kind.TYPE_UINT64, False, "")
    message("Batching", preferred_batch_size=(kind.TYPE_INT32, True, ""), max_queue_delay_microseconds=delay)
    message(
        "ModelConfig",
        name=text_field,
        backend=text_field,
        max_batch_size=(kind.TYPE_INT32, False, ""),
        input=(kind.TYPE_MESSAGE, True, "ModelInput"),
        output=(kind.TYPE_MESSAGE, True, "ModelOutput"),
        dynamic_batching=(kind.TYPE_MESSAGE, False, "Batching"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("test.ModelConfig"))()
    return text_format.Parse(text, config)


def tensors(entries: Any) -> list[tuple[str, str, list[int]]]:
    def name_of(entry: Any) -> str:
        field = entry.DESCRIPTOR.fields_by_name["data_type"]
        return str(field.enum_type.values_by_number[entry.data_type].name)

    return [(entry.name, name_of(entry), list(entry.dims)) for entry in entries]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_triton_batches_what_the_preset_makes(precision: str) -> None:
    text = triton_config(spec_of(TRITON, precision=precision), "yolo_nas_s", max_batch=8, queue_delay_us=500)
    config = parse_triton(text)
    assert (config.name, config.backend, config.max_batch_size) == ("yolo_nas_s", "onnxruntime", 8)
    assert tensors(config.input) == [("input", "TYPE_UINT8", [3, 640, 640])]
    assert tensors(config.output) == [
        ("graph2_num_predictions", "TYPE_INT64", [1]),
        ("graph2_pred_boxes", "TYPE_FP32", [300, 4]),
        ("graph2_pred_scores", "TYPE_FP32", [300]),
        ("graph2_pred_classes", "TYPE_INT64", [300]),
    ]
    assert [entry.label_filename for entry in config.output] == ["", "", "", "labels.txt"]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert not config.dynamic_batching.preferred_batch_size


def test_triton_takes_any_size() -> None:
    config = parse_triton(triton_config(spec_of(TRITON, dynamic_size=True, outputs="heads", uint8=False), "n"))
    assert tensors(config.input) == [("input", "TYPE_FP32", [3, -1, -1])]
    assert tensors(config.output)[0] == ("cls8", "TYPE_FP32", [80, -1, -1])
    assert tensors(config.output)[5] == ("reg32", "TYPE_FP32", [68, -1, -1])
    config = parse_triton(triton_config(spec_of(TRITON, dynamic_size=True, nhwc=True, outputs="raw"), "n"))
    assert tensors(config.input) == [("input", "TYPE_UINT8", [-1, -1, 3])]
    assert tensors(config.output) == [("boxes", "TYPE_FP32", [-1, 4]), ("scores", "TYPE_FP32", [-1, 80])]


def test_triton_knows_all_axes_of_one_size() -> None:
    spec = spec_of(TRITON, size=(320, 640), outputs="heads")
    assert [dims for *_, dims in tensors(parse_triton(triton_config(spec, "n")).output)] == [
        *([80, 40, 80], [80, 20, 40], [80, 10, 20]),
        *([68, 40, 80], [68, 20, 40], [68, 10, 20]),
    ]
    spec = replace(spec, outputs="raw")
    assert [dims for *_, dims in tensors(parse_triton(triton_config(spec, "n")).output)] == [[4200, 4], [4200, 80]]


@pytest.mark.parametrize(
    ("changes", "shape", "first"),
    [
        ({"batch": 4}, [4, 3, 640, 640], [4, 1]),
        ({"batch": 1, "outputs": "raw"}, [1, 3, 640, 640], [1, 8400, 4]),
        ({"outputs": "flat"}, [-1, 3, 640, 640], [-1, 7]),
        ({"outputs": "rows", "max_det": 20}, [-1, 3, 640, 640], [-1, 7]),
        ({"outputs": "rows", "max_det": 20, "batch": 2}, [2, 3, 640, 640], [40, 7]),
    ],
)
def test_triton_does_not_batch_what_has_no_axis_for_it(
    changes: dict[str, Any], shape: list[int], first: list[int]
) -> None:
    config = parse_triton(triton_config(spec_of(TRITON, **changes), "n"))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert tensors(config.input)[0][2] == shape
    assert tensors(config.output)[0][2] == first


def test_triton_repository() -> None:
    spec = spec_of(TRITON)
    files = triton_files(spec, "cells-v1.2", max_batch=4, queue_delay_us=0)
    assert files == {
        "cells-v1.2/config.pbtxt": triton_config(spec, "cells-v1.2", max_batch=4, queue_delay_us=0).encode(),
        "cells-v1.2/labels.txt": labels(spec).encode(),
        "cells-v1.2/1/model.onnx": None,
    }


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", 'a"b', "a\n"])
def test_triton_names_are_names_of_folders(name: str) -> None:
    with pytest.raises(ValueError, match="triton: name must be letters"):
        triton_files(spec_of(TRITON), name)


def test_triton_numbers_are_checked() -> None:
    with pytest.raises(ValueError, match="max_batch=0 and"):
        triton_config(spec_of(TRITON), "n", max_batch=0)
    with pytest.raises(ValueError, match="queue_delay_us=-1"):
        triton_config(spec_of(TRITON), "n", queue_delay_us=-1)


# --- DeepStream ---


def parse_deepstream(spec: ExportSpec, **changes: Any) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.read_string(deepstream_config(spec, "yolo_nas_s.onnx", "labels.txt", **changes))
    return {section: dict(parser[section]) for section in parser.sections()}


def test_deepstream_configuration() -> None:
    config = parse_deepstream(spec_of(DEEPSTREAM), batch=4)
    assert config == {
        "property": {
            "gpu-id": "0",
            "gie-unique-id": "1",
            "process-mode": "1",
            "network-type": "0",
            "onnx-file": "yolo_nas_s.onnx",
            "model-engine-file": "yolo_nas_s.onnx_b4_gpu0_fp32.engine",
            "labelfile-path": "labels.txt",
            "batch-size": "4",
            "network-mode": "0",
            "num-detected-classes": "80",
            "interval": "0",
            "model-color-format": "0",
            "net-scale-factor": repr(1 / 255),
            "maintain-aspect-ratio": "1",
            "symmetric-padding": "1",
            "cluster-mode": "2",
            "parse-bbox-func-name": "NvDsInferParseYolo",
            "custom-lib-path": "nvdsinfer_custom_impl_Yolo/libnvdsinfer_custom_impl_Yolo.so",
        },
        "class-attrs-all": {"nms-iou-threshold": "0.7", "pre-cluster-threshold": "0.25", "topk": "300"},
    }


def test_deepstream_follows_the_preprocessing() -> None:
    pre = Preprocess(keep_ratio=False, padding="bottom_right", mean=(1.5, 2.0, 3.25), divisor=(58.0, 58.0, 58.0))
    spec = spec_of(DEEPSTREAM, preprocess=pre, batch=2)
    values = parse_deepstream(spec)["property"]
    assert values["batch-size"] == "2"
    assert values["offsets"] == "1.5;2.0;3.25"
    assert float(values["net-scale-factor"]) == 1 / 58
    assert (values["maintain-aspect-ratio"], values["symmetric-padding"]) == ("0", "0")
    values = parse_deepstream(replace(spec, channels="bgr"))["property"]
    assert values["model-color-format"] == "1"
    assert values["offsets"] == "3.25;2.0;1.5"  # in the order in which nvinfer sends the channels


@pytest.mark.parametrize(("precision", "mode"), [("fp32", "0"), ("int8", "1"), ("fp16", "2")])
def test_deepstream_precisions(precision: str, mode: str) -> None:
    values = parse_deepstream(spec_of(DEEPSTREAM, precision=precision))["property"]
    assert values["network-mode"] == mode
    assert values["model-engine-file"].endswith(f"_b1_gpu0_{precision}.engine")
    assert ("engine-create-func-name" in values) == (precision == "int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": "rows"}, "deepstream: outputs must be 'deepstream', got 'rows'"),
        ({"uint8": True}, "deepstream: preprocess must be False, got True; nvinfer sends float32"),
        ({"nhwc": True}, "deepstream: layout must be 'nchw'"),
        ({"dynamic_size": True}, "deepstream: dynamic must be False"),
        ({"preprocess": Preprocess(divisor=(58.0, 57.0, 57.5))}, "deepstream: divisor must be the same"),
    ],
)
def test_deepstream_refuses_what_it_cannot_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deepstream_config(spec_of(DEEPSTREAM, **changes), "m.onnx", "l.txt")


# --- TensorRT ---


def test_trtexec_line_of_a_fixed_input() -> None:
    line = trtexec_line(spec_of(batch=1), "my model.onnx", "it's.engine", workspace=2.5)
    assert shlex.split(line) == [
        "trtexec",
        "--onnx=my model.onnx",
        "--saveEngine=it's.engine",
        "--stronglyTyped",
        "--skipInference",
        "--memPoolSize=workspace:2560",
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_trtexec_takes_the_precision_from_the_file(precision: str) -> None:
    line = trtexec_line(spec_of(precision=precision), "m.onnx", "m.engine")
    assert line == "trtexec --onnx=m.onnx --saveEngine=m.engine --stronglyTyped --skipInference"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"batch": None}, ["1x3x640x640", "8x3x640x640", "8x3x640x640"]),
        ({"batch": 2, "dynamic_size": True}, ["2x3x32x32", "2x3x640x640", "2x3x640x640"]),
        ({"batch": None, "dynamic_size": True, "nhwc": True}, ["1x32x32x3", "8x640x640x3", "8x640x640x3"]),
    ],
)
def test_trtexec_shapes(changes: dict[str, Any], expected: list[str]) -> None:
    words = shlex.split(trtexec_line(spec_of(**changes), "m.onnx", "m.engine", max_batch=8))
    shapes = dict(zip(("min", "opt", "max"), expected, strict=True))
    assert words[-3:] == [f"--{name}Shapes=input:{shape}" for name, shape in shapes.items()]


def test_profile_shapes() -> None:
    assert profile_shapes(spec_of(batch=3), 8) is None
    assert profile_shapes(spec_of(batch=None), 8) == ((1, 3, 640, 640), (8, 3, 640, 640), (8, 3, 640, 640))


@pytest.mark.parametrize("preset", [FRIGATE, TRITON, DEEPSTREAM], ids=["frigate", "triton", "deepstream"])
def test_presets_name_fields_that_exist(preset: dict[str, Any]) -> None:
    known = {*ExportSpec.__dataclass_fields__, *DetectSettings.__dataclass_fields__, "size"}
    assert not set(preset) - known
