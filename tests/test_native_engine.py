"""The native engine beside the plain modules: heads, boxes and scores, the drivers, and weights that change."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_recipe import fill_, make_input
from harness import ISAS, bits, runs_here, using_isa, using_threads
from val_data import NAMES, write_data

from yolonas import NAS, ops
from yolonas.config import VARIANTS, DetectSettings
from yolonas.engine import TorchEngine
from yolonas.engines import Engines
from yolonas.native_engine import CpuDevice, NativeEngine
from yolonas.nn import YoloNAS, fuse_
from yolonas.prepare import fill_from_picture, input_shape
from yolonas.preprocess import Preprocess

GOLDENS = ["s_320x320", "s_256x384", "s_640x640", "m_320x320", "l_320x320"]
CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"imgsz": 64, "conf": 0.5, "verbose": False}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    if not runs_here(request.param):
        pytest.skip(f"this processor or build cannot run {request.param}")
    with using_isa(request.param):
        yield request.param


@pytest.fixture(scope="module", params=VARIANTS)
def network(request: pytest.FixtureRequest) -> YoloNAS:
    return fuse_(fill_(YoloNAS(request.param, num_classes=5)).eval())


@pytest.fixture(scope="module")
def small() -> YoloNAS:
    return fuse_(fill_(YoloNAS("s", num_classes=3)).eval())


@pytest.fixture
def detector() -> NAS:
    """With weights of its own, which the test may change."""
    return NAS(fill_(YoloNAS("s", num_classes=3)).eval(), names=NAMES)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (90, 120, 3), np.uint8)


def random_batch(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def assert_close_boxes(boxes: np.ndarray, expected: np.ndarray, rtol: float) -> None:
    """Relative to the box's larger side or, for boxes around the origin, to the coordinates."""
    sides = expected[..., 2:] - expected[..., :2]
    scale = np.maximum(np.abs(expected), sides.max(-1, keepdims=True))
    assert (np.abs(boxes - expected) <= rtol * scale).all()


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDENS)
def test_boxes_and_scores_equal_golden(name: str, isa: str, shared: Path) -> None:
    variant, size = name.split("_")
    height, width = map(int, size.split("x"))
    with np.load(shared / "reference" / f"goldens_{name}.npz") as file:
        golden = dict(file)
    engine = NativeEngine.of_module(fill_(YoloNAS(variant)).eval())
    x = make_input(0, (1, 3, height, width)).transpose(0, 2, 3, 1)
    boxes, scores = ops.decode(*engine.heads(np.ascontiguousarray(x)), channels_last=True)
    if "boxes" in golden:
        expected = golden["boxes"], golden["scores"]
        boxes, scores = boxes[0], scores[0]
    else:
        expected = golden["boxes_sub"], golden["scores_sub"]
        boxes, scores = boxes[0, golden["sub_index"]], scores[0, golden["sub_index"]]
    assert_close_boxes(boxes, expected[0], rtol=1e-4)
    np.testing.assert_allclose(scores, expected[1], rtol=1e-4)


def test_heads_equal_those_of_the_modules(network: YoloNAS, isa: str) -> None:
    """Two pictures whose maps end in the middle of every tile: 3x5 cells at the coarsest level."""
    x = random_batch(2, 96, 160, 3)
    found = NativeEngine.of_module(network).heads(x)
    with torch.inference_mode():
        expected = network.forward_heads(torch.from_numpy(x).permute(0, 3, 1, 2))
    for kind, modules in zip(found, expected, strict=True):
        for level, module in zip(kind, modules, strict=True):
            wanted = module.permute(0, 2, 3, 1).numpy()
            assert level.shape == wanted.shape
            assert np.abs(level - wanted).max() < 1e-4 * np.abs(wanted).max()


def out_of_winograds_range_(network: YoloNAS, x: torch.Tensor) -> list[str]:
    """Scales layers up to the end of float32's range and their readers down, in place and exactly; names the layers.

    The direct form cannot overflow in any order of its sums; products by Winograd are larger than the outputs.
    """
    scaled = []
    for name in ("backbone.stage2.blocks", "neck.neck2.blocks"):
        csp = network.get_submodule(name)
        last = csp.bottlenecks[-1]
        first, second, join = last.cv1.rbr_reparam, last.cv2.rbr_reparam, csp.conv3.conv
        inputs: list[torch.Tensor] = []
        hook = first.register_forward_hook(lambda module, arguments, y, to=inputs: to.append(arguments[0]))
        with torch.no_grad():
            network.forward_heads(x)
            hook.remove()
            sums = F.conv2d(inputs[0].double(), first.weight.abs().double(), first.bias.abs().double(), padding=1)
            up, between = 128 - math.ceil(math.log2(1.001 * float(sums.max()))), 20
            for tensor in (first.weight, first.bias):
                tensor *= 2.0**up
            second.weight *= 2.0 ** (between - up)  # smaller than that float32 would lose bits of them
            for tensor in (second.bias, last.alpha):
                tensor *= 2.0**between
            width, before = len(second.weight), len(csp.bottlenecks) if csp.concat else 0
            join.weight[:, before * width : (before + 1) * width] *= 2.0**-between
        scaled.append(f"{name}.bottlenecks.{len(csp.bottlenecks) - 1}.cv1")
    return scaled


def test_layers_out_of_winograds_range_run_direct(isa: str) -> None:
    network = fuse_(fill_(YoloNAS("s", num_classes=3)).eval())
    x = random_batch(1, 128, 160, 3)
    planes = torch.from_numpy(x).permute(0, 3, 1, 2)

    def algorithms(engine: NativeEngine) -> dict[str, str]:
        return {step["name"]: step["algorithm"] for step in engine.plan((128, 160))}

    usual = algorithms(NativeEngine.of_module(network))
    scaled = out_of_winograds_range_(network, planes)
    engine = NativeEngine.of_module(network)
    changed = {name: (usual[name], now) for name, now in algorithms(engine).items() if now != usual[name]}
    assert changed == dict.fromkeys(scaled, ("winograd43", "direct"))

    with torch.no_grad():
        expected = copy.deepcopy(network).double()(planes.double())
    boxes, scores = ops.decode(*engine.heads(x), channels_last=True)
    assert_close_boxes(boxes, expected[0].numpy(), rtol=1e-4)
    np.testing.assert_allclose(scores, expected[1].numpy(), rtol=1e-4)

    for name in scaled:  # what it would be without
        engine.native.set_algorithm(name, "winograd43")
    assert not all(np.isfinite(level).all() for kind in engine.heads(x) for level in kind)


def test_results_do_not_depend_on_threads_or_batch(small: YoloNAS) -> None:
    engine = NativeEngine.of_module(small)
    x = random_batch(3, 64, 96, 3)
    cls, reg = engine.heads(x)
    for count in (1, 2, 3):
        with using_threads(count):
            for index in range(3):
                alone = engine.heads(x[index : index + 1])
                for level, other in zip([*cls, *reg], [*alone[0], *alone[1]], strict=True):
                    assert np.array_equal(bits(level[index]), bits(other[0]))


def test_many_threads_may_run_one_engine(small: YoloNAS) -> None:
    engine = NativeEngine.of_module(small)
    sizes = [(32, 64), (64, 64), (96, 32)]
    inputs = [random_batch(1, *size, 3, seed=number) for number, size in enumerate(sizes)]
    expected = [engine.heads(x) for x in inputs]
    wrong: list[int] = []

    def run(number: int) -> None:
        for turn in range(6):
            which = (number + turn) % len(inputs)
            found = engine.heads(inputs[which])
            pairs = zip([*found[0], *found[1]], [*expected[which][0], *expected[which][1]], strict=True)
            if not all(np.array_equal(bits(one), bits(other)) for one, other in pairs):
                wrong.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("x", "kind", "text"),
    [
        (np.zeros((1, 3, 64, 64), np.float32), ValueError, "3"),
        (np.zeros((64, 64, 3), np.float32), ValueError, r"shape \(N, H, W, 3\), got \(64, 64, 3\)"),
        (np.zeros((1, 64, 100, 3), np.float32), ValueError, "32"),
        (np.zeros((0, 64, 64, 3), np.float32), ValueError, "batch must have at least one picture, got 0"),
        (np.zeros((1, 0, 64, 3), np.float32), ValueError, "32"),
        (np.zeros((1, 64, 64, 3), np.float64), TypeError, "float32"),
        (np.zeros((1, 64, 64, 3), np.uint8), TypeError, "float32"),
        (np.zeros((1, 64, 64, 3), np.float16), TypeError, "float32"),
        (np.zeros((1, 32, 64, 3), ">f4"), TypeError, "unsupported dtype"),
        (np.zeros((1, 33, 64, 3), np.float32), ValueError, "multiples of 32, got 33 x 64"),
        (np.full((1, 64, 64, 3), np.nan, np.float32), ValueError, "finite"),
        (np.full((2, 64, 64, 3), np.inf, np.float32), ValueError, "finite"),
        (np.full((1, 64, 64, 3), -np.inf, np.float32), ValueError, "finite"),
        (np.zeros((1, 64, 128, 3), np.float32)[:, :, ::2], ValueError, "contiguous"),
    ],
)
def test_wrong_inputs_are_refused(small: YoloNAS, x: np.ndarray, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        NativeEngine.of_module(small).heads(x)


def test_weights_that_are_not_finite_are_refused() -> None:
    network = fuse_(YoloNAS("s", num_classes=2).eval())
    network.neck.neck1.conv.conv.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"weight of step 'neck\.neck1\.conv' must be finite"):
        NativeEngine.of_module(network)


# --- from pictures to detections ---


PREPROCESS = Preprocess(size=(64, 96), fit=(60, 92), mean=(10.0, 20.0, 30.0), divisor=(200.0, 100.0, 255.0))
PICTURES = [
    np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    for seed, size in enumerate([(90, 120), (33, 40), (60, 92), (1, 2), (200, 50)])
]


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize(
    "settings",
    [
        DetectSettings(conf=0.5),
        DetectSettings(conf=0.5, multi_label=False, agnostic=True, max_det=7),
        DetectSettings(conf=0.5, classes=(2,), top_k=50),
    ],
    ids=["multi-label", "single-label", "one class"],
)
@pytest.mark.parametrize("kind", ["native", "torch"])
def test_detect_is_letterbox_heads_and_select(
    small: YoloNAS, settings: DetectSettings, channels: Any, kind: str
) -> None:
    """The same bits. With two threads the five pictures run in parts."""
    preprocess = replace(PREPROCESS, channels=channels)
    engine = NativeEngine.of_module(small) if kind == "native" else TorchEngine(small, CPU)
    geometries = [preprocess.plan(*picture.shape[:2]) for picture in PICTURES]
    batch = np.empty((len(PICTURES), *input_shape((64, 96), engine.layout)), np.float32)
    for row, picture, geometry in zip(batch, PICTURES, geometries, strict=True):
        fill_from_picture(row, picture, geometry, preprocess, engine.layout)
    expected = engine.select(*engine.heads(batch), settings)
    with using_threads(2):
        found, seconds = engine.detect(PICTURES, geometries, preprocess, settings)
    assert sum(map(len, expected)) > 5
    for rows, others in zip(found, expected, strict=True):
        assert rows.shape == others.shape
        assert np.array_equal(bits(rows), bits(others))
    assert seconds.shape == (3,)
    assert (seconds > 0).all()


@pytest.mark.parametrize("kind", ["native", "torch"])
def test_detect_refuses_what_does_not_fit(small: YoloNAS, kind: str) -> None:
    engine = NativeEngine.of_module(small) if kind == "native" else TorchEngine(small, CPU)
    geometries = [PREPROCESS.plan(*picture.shape[:2]) for picture in PICTURES]
    settings = DetectSettings()

    def detect(pictures: list[Any], geometries: list[Any], settings: DetectSettings = settings) -> None:
        engine.detect(pictures, geometries, PREPROCESS, settings)

    with pytest.raises(ValueError, match=r"pictures must be one or more with frames of one size, got frames \[\]"):
        detect([], [])
    with pytest.raises(ValueError, match=r"frames of one size, got frames \[\(64, 96\), \(96, 96\)\]"):
        detect(PICTURES[:2], [geometries[0], PREPROCESS.with_size((96, 96)).plan(33, 40)])
    with pytest.raises(ValueError, match="geometries must be one per picture, 1, got 2"):
        detect(PICTURES[:1], geometries[:2])
    with pytest.raises(TypeError, match="must be uint8, got float32"):
        detect([PICTURES[0].astype(np.float32)], geometries[:1])
    for change, text in (
        ({"conf": 1.5}, r"conf must lie in 0\.\.1, got 1\.5"),
        ({"iou": -1.0}, r"iou must lie in 0\.\.1, got -1"),
        ({"max_det": 0}, r"max_det must lie in 1\.\.1000000, got 0"),
        ({"max_det": 10**12}, r"max_det must lie in 1\.\.1000000, got 1000000000000"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"classes": (3,)}, r"classes must lie in 0\.\.2, got 3"),
    ):
        with pytest.raises(ValueError, match=text):
            detect(PICTURES[:1], geometries[:1], replace(settings, **change))


def test_many_threads_may_detect_with_one_engine(small: YoloNAS) -> None:
    engine, settings = NativeEngine.of_module(small), DetectSettings(conf=0.5)
    geometries = [PREPROCESS.plan(*picture.shape[:2]) for picture in PICTURES]
    expected, _ = engine.detect(PICTURES, geometries, PREPROCESS, settings)
    wrong: list[int] = []

    def run(number: int) -> None:
        for turn in range(4):
            first = (number + turn) % len(PICTURES)
            found, _ = engine.detect(PICTURES[first:], geometries[first:], PREPROCESS, settings)
            if not all(np.array_equal(one, other) for one, other in zip(found, expected[first:], strict=True)):
                wrong.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- weights that change ---


def stands(engine: NativeEngine, model: YoloNAS) -> bool:
    return engine.stands_for(model, CPU, half=False)


def test_an_engine_stands_for_its_module_as_long_as_the_weights_stay(detector: NAS) -> None:
    engine = NativeEngine.of_module(detector.model)
    assert stands(engine, detector.model)
    assert engine.stands_for(detector.model, CpuDevice(), half=False)
    assert not engine.stands_for(detector.model, CPU, half=True)
    assert not engine.stands_for(detector.model, torch.device("cuda"), half=False)
    assert not stands(engine, fuse_(YoloNAS("s", num_classes=3).eval()))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.heads.head1.cls_pred.weight.add_(0.1),
        lambda model: model.heads.head1.cls_pred.bias.data.add_(0.1),  # which torch does not count
        lambda model: model.neck.neck1.blocks.bottlenecks[0].alpha.data.add_(0.1),
        lambda model: model.load_state_dict({key: 2 * value for key, value in model.state_dict().items()}),
        lambda model: setattr(model.neck.neck1.conv.conv, "weight", torch.nn.Parameter(torch.ones(192, 768, 1, 1))),
        lambda model: model.half(),
        lambda model: model.activation_scales.update(input=0.5),
        lambda model: model.heads.head1.cls_pred.register_buffer("weight_scale", torch.ones(3)),
    ],
    ids=["in-place", "data", "alpha", "state-dict", "replaced", "half", "scale", "new-weight-scale"],
)
def test_changed_weights_are_noticed(detector: NAS, picture: np.ndarray, change: Any) -> None:
    detector.fuse()
    engine = NativeEngine.of_module(detector.model)
    with torch.no_grad():
        change(detector.model)
    assert not stands(engine, detector.model)


def test_changed_weight_scales_are_noticed(detector: NAS) -> None:
    pred = detector.fuse().model.heads.head1.cls_pred
    pred.register_buffer("weight_scale", torch.ones(3))
    engine = NativeEngine.of_module(detector.model)
    assert stands(engine, detector.model)
    pred.weight_scale.data[1] = 2.0  # which torch does not count
    assert not stands(engine, detector.model)


def test_predict_uses_the_present_weights(detector: NAS, picture: np.ndarray) -> None:
    assert len(detector.predict(picture, engine="native", **QUICK)[0]) > 0
    with torch.no_grad():
        for head in (detector.model.heads.head1, detector.model.heads.head2, detector.model.heads.head3):
            head.cls_pred.bias.fill_(-30.0)
    assert len(detector.predict(picture, engine="native", **QUICK)[0]) == 0


# --- the drivers ---


def test_both_engines_detect_the_same(detector: NAS, picture: np.ndarray) -> None:
    native = detector.predict(picture, engine="native", **QUICK)[0]
    modules = detector.predict(picture, engine="torch", **QUICK)[0]
    assert len(native) > 5
    assert isinstance(native.boxes.data, torch.Tensor)
    torch.testing.assert_close(native.boxes.data, modules.boxes.data, rtol=1e-4, atol=2e-2)
    assert torch.equal(detector.predict(picture, engine="native", **QUICK)[0].boxes.data, native.boxes.data)


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_tensors_go_into_both_engines_the_same_way(detector: NAS, channels: Any) -> None:
    detector.preprocess = replace(
        detector.preprocess, channels=channels, mean=(10.0, 20.0, 30.0), divisor=(200.0, 100.0, 50.0)
    )
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    native, modules = (detector.predict(x, engine=engine, conf=0.5, verbose=False) for engine in ("native", "torch"))
    for one, other in zip(native, modules, strict=True):
        torch.testing.assert_close(one.boxes.data, other.boxes.data, rtol=1e-4, atol=2e-2)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_pictures_and_tensors_in_one_batch(detector: NAS, picture: np.ndarray, engine: str) -> None:
    """Tensors are the network's input already; together with pictures they go the way of tensors."""
    planes = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    together = detector.predict([picture, planes, picture], engine=engine, batch=3, **QUICK)
    for result, alone in zip(together, (picture, planes, picture), strict=True):
        expected = detector.predict(alone, engine=engine, **QUICK)[0]
        assert len(expected) > 0
        torch.testing.assert_close(result.boxes.data, expected.boxes.data, rtol=1e-5, atol=1e-3)
        assert all(ms > 0 for ms in result.speed.values())


def test_the_printed_shape_is_that_of_the_network(
    detector: NAS, picture: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    detector.predict(picture, engine="native", imgsz=(64, 96), conf=0.5)
    out = capsys.readouterr().out
    assert "64x96" in out
    assert "at shape (1, 3, 64, 96)" in out


def test_val_gives_the_same_numbers_with_both_engines(
    detector: NAS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yaml = write_data(tmp_path / "data", detector, pictures=6)
    options: dict[str, Any] = {"data": str(yaml), "imgsz": 64, "batch": 2, "plots": False, "verbose": False}
    native, modules = (detector.val(engine=engine, **options) for engine in ("native", "torch"))
    assert native.box.map > 0.1
    assert native.box.map == pytest.approx(modules.box.map, abs=2e-3)
    assert native.box.map50 == pytest.approx(modules.box.map50, abs=2e-3)


def test_plan_and_its_table(small: YoloNAS, capsys: pytest.CaptureFixture[str]) -> None:
    detector = NAS(small, names=NAMES)
    engine = NativeEngine.of_module(small)
    steps = engine.plan((64, 96))
    assert steps[0]["name"] == "backbone.stem.conv"
    assert steps[0]["output"] == (32, 48, 48)
    detector.info(imgsz=(64, 96), plan=True)
    lines = capsys.readouterr().out.splitlines()
    assert "YOLO_NAS_S summary" in lines[0]
    assert lines[1].split() == ["step", "algorithm", "output", "MFLOPs", "ms", "GFLOP/s"]
    assert len(lines) == 2 + len(steps) + 1
    assert lines[-1].startswith(f"{len(steps)} steps at 64x96, ")
    _, parameters, _, gflops = detector.info(imgsz=(64, 96), verbose=False)
    scalars = sum(name.endswith(".alpha") for name, _ in small.named_parameters())
    assert sum(step["parameters"] for step in steps) == parameters - scalars
    assert sum(step["mflop"] for step in steps) / 1e3 == pytest.approx(gflops, rel=1e-6)


# --- which engine ---


def test_what_users_say_decides_about_the_engine(small: YoloNAS, caplog: pytest.LogCaptureFixture) -> None:
    engines = Engines()
    choose = {"device": None, "half": False, "name": None}
    native = engines.choose(small, **{**choose, "name": "native"})
    modules = engines.choose(small, **{**choose, "device": "cpu", "name": "torch"})
    assert isinstance(native, NativeEngine)
    assert isinstance(modules, TorchEngine)
    assert engines.choose(small, **{**choose, "device": "cpu", "name": "native"}).name == "native"
    assert engines.choose(small, **{**choose, "name": "native", "half": True}).name == "native"
    assert "running in fp32 on the CPU" in caplog.text
    # Both are kept: going back and forth makes none again.
    again = engines.choose(small, **{**choose, "name": "native"})
    assert engines.choose(small, **{**choose, "name": "torch"}) is modules
    assert engines.choose(small, **{**choose, "name": "native"}) is again


def test_the_native_engine_is_for_cpus_and_cuda_devices(small: YoloNAS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolonas.engine.choose_device", lambda device: torch.device("mps"))
    text = r"engine 'native' does not run on device mps: it is for CPUs and CUDA devices; or use device='cpu' or "
    with pytest.raises(ValueError, match=text):
        Engines().choose(small, "mps", half=False, name="native")


def test_unknown_engines_are_refused(small: YoloNAS, picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="engine must be one of 'native', 'torch', got 'onnx'"):
        NAS(small).predict(picture, engine="onnx")
