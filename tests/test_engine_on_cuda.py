"""The native engine on a CUDA device: which engine is chosen, what overlaps, pictures that stay there, errors.

Most tests run on `cuda_stand_in`; those marked `cuda` compare a device with the CPU engine.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cuda_stand_in
import cv2
import numpy as np
import pytest
import torch
from cuda_stand_in import World
from golden_recipe import fill_
from harness import bits
from quantized_networks import narrow, quantize_
from quantized_networks import picture as noise
from val_data import NAMES, write_data

from yolonas import NAS, _native, native_engine
from yolonas.cli import main
from yolonas.config import DetectSettings
from yolonas.cuda_engine import CudaEngine, why_not
from yolonas.data.sources import Picture
from yolonas.engine import TorchEngine, choose_device
from yolonas.engines import Engines
from yolonas.native_engine import NativeEngine
from yolonas.nn import YoloNAS, fuse_
from yolonas.on_device import OnDevice
from yolonas.predict import PredictOptions, Predictor
from yolonas.preprocess import Preprocess

CUDA = torch.device("cuda:0")
QUICK: dict[str, Any] = {"imgsz": 64, "conf": 0.5, "verbose": False}
PREPROCESS = Preprocess(size=(64, 64), fit=(60, 60))
SETTINGS = DetectSettings(conf=0.4, max_det=20)
SIZES = [(90, 120), (33, 40), (60, 60), (1, 2), (200, 50), (90, 120)]
PICTURES = [np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8) for seed, size in enumerate(SIZES)]


def surer(model: YoloNAS) -> YoloNAS:
    """Narrow networks by the recipe find too little."""
    with torch.no_grad():
        for head in (model.heads.head1, model.heads.head2, model.heads.head3):
            head.cls_pred.weight *= 3
            head.cls_pred.bias += 2
    return model


@pytest.fixture(scope="module")
def network() -> YoloNAS:
    return surer(narrow("s"))


@pytest.fixture(scope="module")
def whole() -> YoloNAS:
    return fuse_(fill_(YoloNAS("s", num_classes=3)).eval())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return cuda_stand_in.install(monkeypatch)


def geometries(pictures: list[Any], preprocess: Preprocess = PREPROCESS) -> list[Any]:
    return [preprocess.plan(*picture.shape[:2]) for picture in pictures]


def expected_rows(
    network: YoloNAS, pictures: list[np.ndarray], settings: DetectSettings = SETTINGS
) -> list[np.ndarray]:
    return NativeEngine.of_module(network).detect(pictures, geometries(pictures), PREPROCESS, settings)[0]


def assert_same_rows(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(bits(one), bits(other))


# --- which engine ---


def test_on_a_cuda_device_the_native_engine_is_the_default(network: YoloNAS, world: World) -> None:
    engines = Engines()
    engine = engines.choose(network, 0, half=False, name=None)
    assert isinstance(engine, CudaEngine)
    assert (engine.name, engine.device, engine.half, engine.layout) == ("native", CUDA, False, "hwc")
    assert engines.choose(network, None, half=False, name=None) is engine
    assert engines.choose(network, "cuda", half=False, name="native") is engine
    assert engines.device == CUDA
    half = engines.choose(network, 0, half=True, name=None)
    assert half.half
    assert world.made[-1].half
    other = engines.choose(network, "cuda:1", half=False, name=None)
    assert other.device == torch.device("cuda:1")
    assert world.made[-1].device == 1
    assert isinstance(engines.choose(network, "cpu", half=False, name=None), NativeEngine)
    assert isinstance(Engines().choose(network, None, half=False, name="native"), CudaEngine)


def test_a_network_of_other_widths_runs_in_torch(
    network: YoloNAS, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("engine: channels of step 'x' must be a multiple of 8, got 6")

    monkeypatch.setattr(cuda_stand_in.Engine, "_start", refuse)
    assert isinstance(Engines().choose(network, 0, half=False, name=None), TorchEngine)
    assert "engine 'torch' runs the network on cuda:0, not 'native': engine: channels of step" in caplog.text
    with pytest.raises(NotImplementedError, match="multiple of 8, got 6"):
        Engines().choose(network, 0, half=False, name="native")


def test_torch_stays_choosable(network: YoloNAS, world: World) -> None:
    engine = Engines().choose(network, 0, half=False, name="torch")
    assert isinstance(engine, TorchEngine)
    assert not world.made


def test_an_engine_stands_for_its_weights(world: World) -> None:
    model = narrow("s")
    engine = CudaEngine.of_module(model, CUDA)
    assert engine.stands_for(model, torch.device("cuda"), half=False)
    assert not engine.stands_for(model, torch.device("cuda:1"), half=False)
    assert not engine.stands_for(model, torch.device("cpu"), half=False)
    assert not engine.stands_for(model, CUDA, half=True)
    assert not engine.stands_for(narrow("s"), CUDA, half=False)
    with torch.no_grad():
        model.heads.head1.cls_pred.bias += 1
    assert not engine.stands_for(model, CUDA, half=False)


def module_without(world: World, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Makes this process one in which the native engine does not run on a device."""
    module = _native.cuda()
    assert module is not None
    if what == "build":
        monkeypatch.setattr(_native, "cuda", lambda: None)
    elif what == "load":

        def broken() -> None:
            raise ImportError("undefined symbol: cuMemAlloc")

        monkeypatch.setattr(_native, "cuda", broken)
    elif what == "engine":
        del module.Engine
    elif what == "architecture":
        world.architecture = 75
    else:
        module.device_count = lambda: 0
        module.driver_version = lambda: "12.2"


REASONS = {
    "build": "this build has no module yolonas._cuda; build it where there is a CUDA compiler: CMAKE_ARGS=",
    "load": "cannot be loaded (undefined symbol: cuMemAlloc); build it again: CMAKE_ARGS=",
    "engine": "of this build has no engine; build it again: CMAKE_ARGS=",
    "architecture": "has code for sm_80, sm_90, and this device is sm_75; build it for that: "
    "CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=75 pip install",
    "driver": "is built with CUDA 13.0 and finds no device, the driver supports CUDA 12.2; update the driver, or build",
}


@pytest.mark.parametrize("what", REASONS)
def test_where_it_does_not_run_torch_does_with_one_warning(
    network: YoloNAS, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    module_without(world, monkeypatch, what)
    engines = Engines()
    for _ in range(2):
        assert isinstance(engines.choose(network, 0, half=False, name=None), TorchEngine)
    (record,) = caplog.records
    assert record.getMessage().startswith("engine 'torch' runs the network on cuda:0, not 'native': ")
    assert REASONS[what] in record.getMessage()
    with pytest.raises(
        ValueError, match=r"^engine 'native' does not run on device cuda:0: .*or engine='torch'$"
    ) as told:
        engines.choose(network, 0, half=False, name="native")
    assert REASONS[what] in str(told.value)
    engines = Engines()
    assert isinstance(engines.choose(network, None, half=False, name="native"), NativeEngine)  # as nothing else is said
    assert "the network runs on the CPU, not on cuda:0: " in caplog.text


@pytest.mark.parametrize(
    ("architecture", "runs"), [(80, True), (86, True), (89, True), (90, True), (120, True), (75, False)]
)
def test_code_for_the_architecture(world: World, architecture: int, runs: bool) -> None:
    world.architecture = architecture
    assert (why_not(CUDA) is None) == runs


def test_devices_that_are_not_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"'cuda:7' does not exist: torch sees 2 CUDA devices; they are numbered 0 to 1"
    ):
        choose_device(7)
    world.devices = 0
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match=r"torch sees 0 CUDA devices; torch .* is built without CUDA; install one"):
        choose_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ValueError, match=r"no NVIDIA driver or device is found; look at what nvidia-smi says.*'cpu'"):
        choose_device(0)


def test_quantised_networks(world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    model = quantize_(surer(narrow("s")), noise(1, 64, 64))
    detector = NAS(model, names=NAMES)
    found = detector.predict(PICTURES[0], device=0, **QUICK)[0]
    assert len(world.made) == 1
    assert not world.made[0].half
    cpu = detector.predict(PICTURES[0], device="cpu", **QUICK)[0]
    assert np.array_equal(bits(found.boxes.data.numpy()), bits(cpu.boxes.data.numpy()))
    assert len(found) > 0
    detector.predict(PICTURES[0], device=0, precision="fp16", **QUICK)
    assert "the network is quantised and runs in int8" in caplog.text
    assert "int8" in CudaEngine.of_module(model, CUDA).describe()
    with pytest.raises(ValueError, match=r"native engine, on a CPU or a CUDA device.* got engine='torch'"):
        detector.predict(PICTURES[0], device=0, engine="torch", **QUICK)
    module_without(world, monkeypatch, "architecture")
    with pytest.raises(ValueError, match=r"this device is sm_75; .* or use device='cpu'$"):
        detector.predict(PICTURES[0], device=0, **QUICK)
    assert Engines().choose(model, None, half=False, name=None).device.type == "cpu"


@pytest.mark.parametrize("option", [{"precision": "fp16"}, {"precision": 16}, {"quantize": "fp16"}, {"half": True}])
def test_precisions(network: YoloNAS, world: World, option: dict[str, Any]) -> None:
    detector = NAS(network, names=NAMES)
    detector.predict(PICTURES[0], device=0, **QUICK)
    detector.predict(PICTURES[0], device=0, **option, **QUICK)
    assert [engine.half for engine in world.made] == [False, True]
    with pytest.raises(ValueError, match=r"quantize='int8' needs a quantised network; make one with NAS.quantize"):
        detector.predict(PICTURES[0], device=0, precision="int8", **QUICK)
    with pytest.raises(ValueError, match="precision and quantize are names of one option, got 'fp16' and 'int8'"):
        detector.predict(PICTURES[0], precision="fp16", quantize="int8")
    with pytest.raises(ValueError, match="precision must be one of"):
        detector.predict(PICTURES[0], precision="fp8")


# --- detect ---


@pytest.mark.parametrize("eager", [False, True])
def test_detections_are_those_of_the_cpu_engine(network: YoloNAS, world: World, eager: bool) -> None:
    world.eager = eager
    engine = CudaEngine.of_module(network, CUDA)
    expected = expected_rows(network, PICTURES)
    assert max(map(len, expected)) > 3
    for count in (2, 6, 1, 6):  # buffers grow, and serve smaller calls
        rows, spent = engine.detect(PICTURES[:count], geometries(PICTURES[:count]), PREPROCESS, SETTINGS)
        assert_same_rows(rows, expected[:count])
        assert spent.shape == (3,)
        assert spent[1] == 2e-3
        assert (spent >= 0).all()


def test_the_arrays_may_change_after_submit(network: YoloNAS, world: World) -> None:
    engine = CudaEngine.of_module(network, CUDA)
    expected = expected_rows(network, PICTURES)
    calls = []
    for picture in PICTURES:
        copy = picture.copy()
        calls.append(engine.submit([copy], geometries([copy]), PREPROCESS, SETTINGS))
        copy[...] = 0
    assert world.most_in_flight == len(PICTURES)
    order = [3, 0, 5, 1, 2, 4]
    found = {number: engine.collect(calls[number])[0] for number in order}
    assert_same_rows([found[number][0] for number in range(len(PICTURES))], expected)
    with pytest.raises(RuntimeError, match="the results of a call can be had once"):
        engine.collect(calls[0])
    engine.discard(calls[0])
    assert len(engine._free) == 4


def test_an_abandoned_call_is_waited_for(network: YoloNAS, world: World) -> None:
    engine = CudaEngine.of_module(network, CUDA)
    call = engine.submit(PICTURES[:1], geometries(PICTURES[:1]), PREPROCESS, SETTINGS)
    assert world.in_flight == 1
    del call
    assert world.in_flight == 0


def test_pictures_on_the_device_are_not_copied(network: YoloNAS, world: World) -> None:
    engine = CudaEngine.of_module(network, CUDA)
    wide = world.put(np.repeat(PICTURES[1], 2, axis=1))[:, ::2]  # pixels with gaps
    mixed = [world.put(PICTURES[0]), wide, PICTURES[2]]
    rows, _ = engine.detect(mixed, geometries(mixed), PREPROCESS, SETTINGS)
    assert_same_rows(rows, expected_rows(network, PICTURES[:3]))


def test_many_threads_may_run_one_engine(network: YoloNAS, world: World) -> None:
    world.eager = True  # the stand-in's streams are not for several threads, the engine's slots are
    engine = CudaEngine.of_module(network, CUDA)
    expected = expected_rows(network, PICTURES)
    lock, wrong = threading.Lock(), []
    submit = engine.submit

    def locked(*arguments: Any) -> Any:
        with lock:
            return submit(*arguments)

    engine.submit = locked  # type: ignore[method-assign]

    def run(number: int) -> None:
        for turn in range(6):
            which = [(number + turn) % len(PICTURES)]
            pictures = [PICTURES[one] for one in which]
            rows, _ = engine.detect(pictures, geometries(pictures), PREPROCESS, SETTINGS)
            wrong.extend(one for one in which if not np.array_equal(rows[0], expected[one]))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_classes(network: YoloNAS, world: World) -> None:
    engine = CudaEngine.of_module(network, CUDA)
    settings = DetectSettings(conf=0.3, max_det=20, classes=(1,))
    for _ in range(2):
        rows, _ = engine.detect(PICTURES[:2], geometries(PICTURES[:2]), PREPROCESS, settings)
        assert_same_rows(rows, expected_rows(network, PICTURES[:2], settings))
    with pytest.raises(ValueError, match=r"detect: classes must lie in 0\.\.2, got 7"):
        engine.detect(PICTURES[:1], geometries(PICTURES[:1]), PREPROCESS, DetectSettings(classes=(7,)))


def test_heads(network: YoloNAS, world: World) -> None:
    engine = CudaEngine.of_module(network, CUDA)
    x = noise(2, 64, 96)
    expected = NativeEngine.of_module(network).heads(x)
    for one, other in zip(engine.heads(x), expected, strict=True):
        for level, wanted in zip(one, other, strict=True):
            assert np.array_equal(bits(level), bits(wanted))
    for wrong, kind in ((x.astype(np.float64), TypeError), (x[0], ValueError)):
        with pytest.raises(kind, match="engine: x must"):
            engine.heads(wrong)


@pytest.mark.parametrize(
    ("picture", "kind", "text"),
    [
        (np.zeros((90, 120, 3), np.float32), TypeError, r"detect: pictures\[1\] must be uint8, got float32"),
        (np.zeros((120, 90, 3), np.uint8), ValueError, r"must have shape \(90, 120, 3\), as its geometry says, got"),
        (torch.zeros(90, 120, 3, dtype=torch.uint8), ValueError, "must be a NumPy array or lie on cuda:0, got cpu"),
    ],
)
def test_wrong_pictures(network: YoloNAS, world: World, picture: Any, kind: type[Exception], text: str) -> None:
    engine = CudaEngine.of_module(network, CUDA)
    with pytest.raises(kind, match=text):
        engine.detect([PICTURES[0], picture], geometries([PICTURES[0]] * 2), PREPROCESS, SETTINGS)


def test_too_little_memory(network: YoloNAS, world: World) -> None:
    """What torch keeps is given back first."""
    world.short = 1
    engine = CudaEngine.of_module(network, CUDA)
    world.short = 1
    assert_same_rows(
        engine.detect(PICTURES[:1], geometries(PICTURES[:1]), PREPROCESS, SETTINGS)[0],
        expected_rows(network, PICTURES[:1]),
    )
    assert world.released == 2
    world.short = 2
    with pytest.raises(MemoryError, match=r"needs 1\.23 GiB on cuda:0, 0\.50 GiB are free; use a smaller batch"):
        engine.detect(PICTURES[:1], geometries(PICTURES[:1]), PREPROCESS, SETTINGS)
    assert engine.detect(PICTURES[:1], geometries(PICTURES[:1]), PREPROCESS, SETTINGS)[0]


def test_the_command_line_tells_of_it(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), PICTURES[0])
    file = NAS(fuse_(YoloNAS("s", num_classes=3).eval())).save(tmp_path / "m.safetensors")
    world.short = 5
    code = main(["predict", f"model={file}", f"source={tmp_path / 'a.png'}", "device=0", "imgsz=64", "save=False"])
    assert code != 0
    assert "use a smaller batch" in capsys.readouterr().err


# --- folders and videos ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    for number in range(9):
        cv2.imwrite(str(path / f"{number}.png"), PICTURES[number % len(PICTURES)])
    (path / "3.png").write_bytes(b"no picture")
    return path


EVENTS = ("on_predict_start", "on_predict_batch_start", "on_predict_postprocess_end", "on_predict_batch_end")


def recorded(detector: NAS, source: Any, **options: Any) -> tuple[list[Any], list[Any]]:
    """Results, and events with what the predictor says at them."""
    events: list[Any] = []
    for event in (*EVENTS, "on_predict_end"):
        detector.add_callback(event, lambda run, event=event: events.append((event, run.seen, len(run.results))))
    results = list(detector.predict(source, stream=True, **{**QUICK, **options}))
    detector.reset_callbacks()
    return results, events


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("eager", [False, True])
def test_a_folder_gives_the_same_in_the_same_order(
    network: YoloNAS, world: World, folder: Path, batch: int, eager: bool
) -> None:
    world.eager = eager
    detector = NAS(network, names=NAMES)
    expected, wanted_events = recorded(detector, folder, device="cpu", batch=batch)
    found, events = recorded(detector, folder, device=0, batch=batch)
    assert detector.predictor is not None
    assert events == wanted_events
    assert [result.path for result in found] == [result.path for result in expected]
    assert sum(map(len, found)) > 0
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(bits(one.boxes.data.numpy()), bits(other.boxes.data.numpy()))
        assert all(value is not None and value >= 0 for value in one.speed.values())
    assert [Path(skipped.path).name for skipped in detector.predictor.skipped] == ["3.png"]
    assert detector.predictor.seen == 8
    if not eager:
        assert world.most_in_flight == 2  # never more, whatever the folder's length
    assert world.in_flight == 0


def predictor(network: YoloNAS, **options: Any) -> Predictor:
    engine = Engines().choose(network, 0, half=False, name=None)
    return Predictor(engine, PREPROCESS, dict(enumerate(NAMES)), SETTINGS, PredictOptions.of(**options))


def groups(kind: str, count: int, failure: Exception | None = None) -> Iterator[list[Any]]:
    for number in range(count):
        yield [(Picture(PICTURES[number], f"{number}", kind=kind), PREPROCESS.plan(*SIZES[number]))]  # type: ignore[arg-type]
    if failure is not None:
        raise failure


def test_frames_of_live_streams_do_not_wait_for_the_next(network: YoloNAS, world: World) -> None:
    read: list[int] = []

    def counted() -> Iterator[list[Any]]:
        for number, group in enumerate(groups("stream", 3)):
            read.append(number)
            yield group

    for number, (group, detect) in enumerate(predictor(network)._running(counted())):
        assert read[-1] == number
        assert group[0][0].path == str(number)
        detect()
    assert world.most_in_flight == 1


def test_a_failure_comes_in_its_turn(network: YoloNAS, world: World) -> None:
    done: list[str] = []
    run = predictor(network)

    def consume(source: Iterator[list[Any]], short: int) -> None:
        for group, detect in run._running(source):
            detect()
            done.append(group[0][0].path)
            world.short = short * (len(done) == 1)  # for what is submitted next, the third

    with pytest.raises(OSError, match="the disk is gone"):
        consume(groups("image", 3, OSError("the disk is gone")), 0)
    assert done == ["0", "1", "2"]
    done.clear()
    with pytest.raises(MemoryError, match="smaller batch"):
        consume(groups("image", 4), 2)
    assert done == ["0", "1"]
    assert world.in_flight == 0


def test_a_run_that_is_left_early_leaves_nothing_behind(network: YoloNAS, world: World, folder: Path) -> None:
    detector = NAS(network, names=NAMES)
    results = detector.predict(folder, stream=True, device=0, **QUICK)
    next(iter(results))
    assert world.in_flight == 1
    results.close()
    assert world.in_flight == 0

    def fail(run: Predictor) -> None:
        if run.seen == 2:
            raise RuntimeError("enough")

    detector.add_callback("on_predict_batch_start", fail)
    with pytest.raises(RuntimeError, match="enough"):
        detector.predict(folder, device=0, **QUICK)
    assert world.in_flight == 0


# --- pictures on the device ---


def test_tensors_stay_on_the_device(network: YoloNAS, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.eager = True
    detector = NAS(network, names=NAMES)
    expected = detector.predict(PICTURES[:2], device="cpu", **QUICK)
    detector.predict(PICTURES[0], device=0, **QUICK)
    copied: list[torch.Tensor] = []
    cpu = torch.Tensor.cpu

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        copied.extend([tensor] * world.holds(tensor))
        return cpu(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", watched)
    found = detector.predict([world.put(picture) for picture in PICTURES[:2]], device=0, **QUICK)
    assert not copied
    for one, other, picture in zip(found, expected, PICTURES, strict=False):
        assert np.array_equal(bits(one.boxes.data.numpy()), bits(other.boxes.data.numpy()))
        assert one.orig_shape == picture.shape[:2]
        assert (one.path, repr(one)) == (other.path, repr(other))
    assert len(found[0][0]) == 1
    assert not copied
    assert np.array_equal(found[0].plot(), expected[0].plot())
    assert np.array_equal(found[0][0].orig_img, PICTURES[0])
    assert len(copied) == 1

    # An engine of another device gets copies.
    found = detector.predict([world.put(picture) for picture in PICTURES[:2]], device="cpu", **QUICK)
    assert len(copied) == 3
    assert [len(one) for one in found] == [len(one) for one in expected]
    batch = world.put(np.stack([PICTURES[0], PICTURES[5]]))
    assert len(detector.predict(batch, device=0, **QUICK)[0]) == len(expected[0])


def test_planes_on_the_device(network: YoloNAS, world: World) -> None:
    world.eager = True
    detector = NAS(network, names=NAMES)
    planes = noise(2, 64, 96).transpose(0, 3, 1, 2).copy()
    expected = detector.predict(torch.from_numpy(planes), device="cpu", **QUICK)
    assert sum(map(len, expected)) > 0
    for device in (0, "cpu"):
        found = detector.predict(world.put(planes), device=device, **QUICK)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.boxes.data.numpy(), other.boxes.data.numpy(), rtol=1e-4, atol=1e-4)
            assert np.array_equal(one.orig_img, other.orig_img)
    with pytest.raises(ValueError, match=r"must hold values of 0\.\.1, got 0\..*divide it by 255"):
        detector.predict(world.put(255 * planes), device=0, **QUICK)


def test_tensors_of_the_host(network: YoloNAS) -> None:
    """uint8 tensors are like arrays; so is what speaks DLPack."""
    detector = NAS(network, names=NAMES)
    expected = detector.predict(PICTURES[0], device="cpu", **QUICK)[0]

    class Other:
        def __init__(self, tensor: torch.Tensor):
            self.__dlpack__, self.__dlpack_device__ = tensor.__dlpack__, tensor.__dlpack_device__

    for source in (torch.from_numpy(PICTURES[0]), Other(torch.from_numpy(PICTURES[0]))):
        (found,) = detector.predict(source, device="cpu", **QUICK)
        assert np.array_equal(found.boxes.data.numpy(), expected.boxes.data.numpy())
    with pytest.raises(TypeError, match=r"source: tensor must be floating, got torch.uint8; convert it.*channels last"):
        detector.predict(torch.zeros(3, 64, 64, dtype=torch.uint8), device="cpu")
    broken = type("Broken", (), {"__dlpack__": lambda self, **_: 7, "__dlpack_device__": lambda self: (1, 0)})()
    with pytest.raises(TypeError, match=r"source: Broken cannot be read by torch\.from_dlpack"):
        detector.predict(broken, device="cpu")


def detect_there(network: YoloNAS, **options: Any) -> OnDevice:
    return NAS(network, names=NAMES).on_device(**{"imgsz": 64, "conf": 0.5, "max_det": 20, **options})


def test_on_device_gives_what_predict_gives_and_never_waits(network: YoloNAS, world: World) -> None:
    world.eager = True
    detector = NAS(network, names=NAMES)
    expected = [one.boxes.data.numpy() for one in detector.predict(PICTURES, device="cpu", max_det=20, **QUICK)]
    detect = detect_there(network)
    on_device = [world.put(picture) for picture in PICTURES]
    detect(on_device)  # makes some constants
    waits = world.waits
    detections, counts = detect(on_device)
    assert world.waits == waits
    assert world.holds(detections)
    assert world.holds(counts)
    assert (tuple(detections.shape), detections.dtype) == ((6, 20, 6), torch.float32)
    assert (tuple(counts.shape), counts.dtype) == ((6,), torch.int64)
    for rows, count, wanted in zip(detections.numpy(), counts.tolist(), expected, strict=True):
        assert np.array_equal(bits(rows[:count]), bits(wanted))
        assert not rows[count:].any()
    for source in (on_device[0], [on_device[0]], world.put(PICTURES[0][None])):
        rows, count = detect(source)
        assert np.array_equal(rows[0, : int(count[0])].numpy(), expected[0])
    both, _ = detect([on_device[0], on_device[5]])  # of one size
    assert np.array_equal(both.numpy(), detections[[0, 5]].numpy())


def test_on_device_on_several_streams(network: YoloNAS, world: World) -> None:
    """What is kept for later calls is there for all streams, which need not wait for each other, and for captures."""
    detect = detect_there(network, classes=[0, 1])
    there = world.put(PICTURES[0])
    expected = detect(there)[0]
    world.current.run()
    world.current = cuda_stand_in.Stream(world)
    world.current.wait_event = None  # type: ignore[assignment, method-assign]
    world.capturing = True
    found = detect(there)[0]
    world.current.run()
    assert torch.equal(found, expected)
    with pytest.raises(RuntimeError, match="the same call must have been run once before a stream is captured with it"):
        detect(world.put(PICTURES[1]))  # its boxes go back by other numbers


def test_on_device_takes_planes(network: YoloNAS, world: World) -> None:
    world.eager = True
    detect = detect_there(network)
    planes = noise(2, 64, 96).transpose(0, 3, 1, 2).copy()
    expected = NAS(network, names=NAMES).predict(torch.from_numpy(planes), device="cpu", max_det=20, **QUICK)
    for source in (
        world.put(planes),
        [world.put(one) for one in planes],
        [world.put(planes[0]), world.put(planes[1:])],
    ):
        detections, counts = detect(source)
        for rows, count, wanted in zip(detections.numpy(), counts.tolist(), expected, strict=True):
            np.testing.assert_allclose(rows[:count], wanted.boxes.data.numpy(), rtol=1e-4, atol=1e-4)


def test_on_device_takes_other_libraries(network: YoloNAS, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their memory is held until the device has read it."""
    detect = detect_there(network)
    tensor = world.put(PICTURES[0])

    class Other:
        def __dlpack__(self, **_: Any) -> Any:
            return tensor.__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return tensor.__dlpack_device__()

    world.eager = True
    expected = detect(tensor)[0]
    assert not detect._held
    found = detect(Other())[0]
    assert np.array_equal(found.numpy(), expected.numpy())
    assert len(detect._held) == 1
    assert detect._held[0][0].query()
    detect(Other())
    assert len(detect._held) == 1
    world.capturing = True
    detect(Other())
    assert (len(detect._held), len(detect._held_for_graphs)) == (1, 1)  # a graph reads it whenever it is launched


FLOATS = np.zeros((3, 64, 64), np.float32)
REFUSED: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda put: [], ValueError, "pictures must be one or more"),
    (lambda put: PICTURES[0], TypeError, r"pictures\[0\] must be a tensor on cuda:0, got ndarray; move it there: to"),
    (lambda put: "bus.jpg", TypeError, "got str; move it there"),
    (lambda put: torch.from_numpy(PICTURES[0]), ValueError, r"must lie on cuda:0, got cpu; move it there: t\.to\('c"),
    (lambda put: put(PICTURES[0].astype(np.int16)), TypeError, r"must be uint8 .* or floating .* got int16; convert"),
    (lambda put: put(PICTURES[0].transpose(2, 0, 1).copy()), ValueError, r"of uint8 .*t\.permute\(1, 2, 0\)"),
    (lambda put: put(FLOATS.transpose(1, 2, 0).copy()), ValueError, r"of float32 .*t\.permute\(2, 0, 1\)"),
    (lambda put: put(FLOATS[:, :60]), ValueError, r"multiples of 32, got 60x64; uint8 pictures of any"),
    (lambda put: put(PICTURES[0][:0]), ValueError, "must have shape"),
    (lambda put: [put(PICTURES[0]), put(FLOATS)], TypeError, "all uint8 or all floating"),
    (lambda put: [put(FLOATS), put(FLOATS[:, :, :32])], ValueError, "one size"),
]


@pytest.mark.parametrize(("make", "kind", "text"), REFUSED)
def test_on_device_refuses(
    network: YoloNAS, world: World, make: Callable[[Any], Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        detect_there(network)(make(world.put))


def test_what_on_device_can_be_told(network: YoloNAS, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    detect = detect_there(network, precision="fp16", device=1, classes=[1], iou=0.6)
    assert detect.engine.half
    assert detect.engine.device == torch.device("cuda:1")
    assert (detect.settings.classes, detect.settings.iou, detect.settings.max_det) == ((1,), 0.6, 20)
    assert detect.names == dict(enumerate(NAMES))
    detector = NAS(network, names=NAMES).to("cuda:1")
    assert detector.on_device().engine.device == torch.device("cuda:1")
    with pytest.raises(ValueError, match="on_device: 'save' is no option of it; there are device, precision"):
        detect_there(network, save=True)
    with pytest.raises(ValueError, match="on_device: device must be a CUDA device, got 'cpu'; predict runs there"):
        detect_there(network, device="cpu")
    module_without(world, monkeypatch, "architecture")
    with pytest.raises(ValueError, match="this device is sm_75"):
        detect_there(network)


# --- the other drivers ---


def test_to_device_and_info(whole: YoloNAS, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    detector = NAS(whole, names=NAMES)
    assert detector.device.type == "cpu"
    detector.info(imgsz=64, detailed=True)
    assert "GFLOP/s" not in capsys.readouterr().out
    assert detector.to("cuda") is detector
    assert isinstance(detector._engine_for(None, half=False, name=None), CudaEngine)
    assert detector.device == CUDA
    detector.info(imgsz=64, detailed=True)
    text = capsys.readouterr().out
    assert "Stand-in (sm_90), float32: " in text
    assert "backbone.stem.conv" in text.split("GFLOPs")[1]
    detector.predict(PICTURES[0], device="cpu", **QUICK)
    assert detector.device.type == "cpu"


def test_a_compiled_file_runs_there(
    whole: YoloNAS, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled = NAS(whole, names=NAMES).save(tmp_path / "m.yolonas")
    detector = NAS(compiled)
    expected = detector.predict(PICTURES[0], **QUICK)[0]
    assert not world.made  # on the CPU unless said otherwise
    assert detector.device.type == "cpu"
    found = detector.predict(PICTURES[0], device=0, precision="fp16", **QUICK)[0]
    assert (world.made[0].device, world.made[0].half) == (0, True)
    assert np.array_equal(found.boxes.data.numpy(), expected.boxes.data)
    detector.to("cuda:1")
    assert detector.device == torch.device("cuda:1")
    detector.predict(PICTURES[0], **QUICK)
    assert world.made[-1].device == 1
    made = len(world.made)
    detector.predict(PICTURES[0], **QUICK)
    assert len(world.made) == made
    detector.info(imgsz=64, plan=True)
    assert "Stand-in" in capsys.readouterr().out
    assert detector.on_device(imgsz=64)(world.put(PICTURES[0]))[0].shape == (1, 300, 6)
    again = NAS(detector.save(tmp_path / "again.yolonas"))
    assert again.device.type == "cpu"
    assert main(["info", f"model={compiled}", "plan", "imgsz=64", "device=0"]) == 0
    assert "Stand-in" in capsys.readouterr().out


def test_val(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    detector = NAS(surer(narrow("s")), names=NAMES)
    yaml = write_data(tmp_path / "data", detector, pictures=7)
    (tmp_path / "data" / "images" / "val" / "005.png").write_bytes(b"no picture")
    options: dict[str, Any] = {"data": str(yaml), "imgsz": 64, "batch": 2, "plots": False, "verbose": False}
    expected = detector.val(device="cpu", **options)
    for more in ({}, {"rect": True}):
        expected = detector.val(device="cpu", **options, **more)
        found = detector.val(device=0, **options, **more)
        assert found.box.map == expected.box.map > 0
        assert found.results_dict == expected.results_dict
        assert set(found.speed) == set(expected.speed)
    assert '"device": "cuda"' in (found.save_dir / "results.json").read_text()
    assert 1 < world.most_in_flight <= 4
    assert world.in_flight == 0


def test_tune(
    network: YoloNAS, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.platform", "linux")
    detector = NAS(network, names=NAMES)
    with caplog.at_level(logging.INFO, "yolonas"):
        detector.predict(PICTURES[0], device=0, tune=True, **QUICK)
    path = tmp_path / "cache" / "yolonas" / "tuning.json"
    assert f"tuning for 64x64 on cuda:0, kept in {path}" in caplog.text
    text = path.read_text()
    assert f'"Stand-in, sm_90, CUDA 13.0, yolonas {native_engine.__version__}, plan 7"' in text
    with caplog.at_level(logging.INFO, "yolonas"):
        caplog.clear()
        detector.on_device(imgsz=64, tune=True)
    assert not caplog.text


# --- on a device ---


@pytest.fixture
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    reason = why_not(CUDA)
    if reason is not None:
        pytest.skip(reason)
    return CUDA


FOUND = DetectSettings(conf=0.3, max_det=100)
SHAPES = [(720, 1280), (480, 640), (333, 500), (640, 640)]
LARGE = [np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8) for seed, size in enumerate(SHAPES)]
AT_320 = Preprocess(size=(320, 320), fit=(316, 316))


def both(network: YoloNAS, device: torch.device, *, half: bool = False) -> tuple[list[np.ndarray], list[np.ndarray]]:
    places = geometries(LARGE, AT_320)
    cpu = NativeEngine.of_module(network).detect(LARGE, places, AT_320, FOUND)[0]
    return CudaEngine.of_module(network, device, half=half).detect(LARGE, places, AT_320, FOUND)[0], cpu


def assert_close_heads(network: YoloNAS, device: torch.device, score: float, box: float, *, half: bool) -> None:
    """Scores of all anchors; boxes of 99 in 100, and within four times that of all."""
    from yolonas import ops

    x = noise(2, 320, 320)
    expected = ops.decode(*NativeEngine.of_module(network).heads(x), channels_last=True)
    found = ops.decode(*CudaEngine.of_module(network, device, half=half).heads(x), channels_last=True)
    assert np.abs(found[1] - expected[1]).max() < score
    away = np.abs(found[0] - expected[0])
    assert np.quantile(away, 0.99) < box
    assert away.max() < 4 * box


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["s", "m", "l"])
def test_device_float32(name: str, device: torch.device) -> None:
    model = fuse_(fill_(YoloNAS(name, num_classes=5)).eval())
    assert_close_heads(model, device, 1e-4, 1e-2, half=False)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["s", "m", "l"])
def test_device_float16(name: str, device: torch.device) -> None:
    model = fuse_(fill_(YoloNAS(name, num_classes=5)).eval())
    assert_close_heads(model, device, 5e-3, 0.5, half=True)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["s", "m", "l"])
def test_device_int8_is_exact(name: str, device: torch.device) -> None:
    model = quantize_(fuse_(fill_(YoloNAS(name, num_classes=3)).eval()), noise(1, 64, 64))
    x = noise(2, 320, 320)
    expected, found = NativeEngine.of_module(model).heads(x), CudaEngine.of_module(model, device).heads(x)
    for one, other in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.cuda
def test_device_detections(whole: YoloNAS, device: torch.device) -> None:
    found, expected = both(whole, device)
    for one, other in zip(found, expected, strict=True):
        assert abs(len(one) - len(other)) <= 2  # at a threshold
        same = min(len(one), len(other), 20)
        np.testing.assert_allclose(one[:same, 4], other[:same, 4], atol=1e-4)


@pytest.mark.cuda
def test_device_folders_batches_and_compiled_files(
    whole: YoloNAS, device: torch.device, folder: Path, tmp_path: Path
) -> None:
    detector = NAS(whole, names=NAMES)
    options: dict[str, Any] = {**QUICK, "imgsz": 320}
    expected = detector.predict(folder, device="cpu", batch=2, **options)
    compiled = NAS(detector.save(tmp_path / "m.yolonas"))
    for one in (detector, compiled):
        found = [one.predict(folder, device=0, batch=batch, **options) for batch in (1, 2, 4)]
        for results in found:
            assert [result.path for result in results] == [result.path for result in expected]
            for result, other, first in zip(results, expected, found[0], strict=True):
                assert abs(len(result) - len(other)) <= 2
                assert np.array_equal(result.boxes.data.numpy(), first.boxes.data.numpy())  # whatever the batch


@pytest.mark.cuda
def test_device_on_device(whole: YoloNAS, device: torch.device) -> None:
    detector = NAS(whole, names=NAMES)
    detect = detector.on_device(imgsz=320, conf=0.3)
    pictures = [torch.from_numpy(picture).to(device) for picture in LARGE]
    expected = detector.predict(LARGE, device=0, imgsz=320, conf=0.3, batch=4, verbose=False)
    detections, counts = detect(pictures)
    for rows, count, other in zip(detections.cpu(), counts.tolist(), expected, strict=True):
        assert np.array_equal(rows[:count].numpy(), other.boxes.data.numpy())
        assert not rows[count:].any()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        again, _ = detect(pictures)
    side.synchronize()
    assert torch.equal(again, detections)
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)
        detect(pictures)
        assert not side.query()  # it has not waited
    torch.cuda.synchronize()


@pytest.mark.cuda
def test_device_memory_error(whole: YoloNAS, device: torch.device) -> None:
    engine = CudaEngine.of_module(whole, device)
    picture = np.zeros((8, 8, 3), np.uint8)
    preprocess = Preprocess(size=(8192, 8192), fit=(8000, 8000))
    with pytest.raises(MemoryError, match="smaller"):
        engine.detect([picture] * 256, geometries([picture] * 256, preprocess), preprocess, FOUND)
    assert engine.detect(LARGE[:1], geometries(LARGE[:1], AT_320), AT_320, FOUND)[0]
