"""From head outputs to detections in the CUDA kernels, against the ops of the CPU: on a device where there is one, and
everywhere through the emulator.

Logits are multiples of 1/4, so that the rounding of exp cannot change the order of scores; equal logits are ties.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import harness
import numpy as np
import pytest
import torch
from emulated_cuda import FakeCudaTensor

from yolonas import _native
from yolonas.ops import _torch  # noqa: F401 - registers the ops

OPS = torch.ops.yolonas
SIZES = [(5, 6), (3, 4), (1, 2)]
LARGE = [(24, 28), (5, 5)]
BINS = 68

Heads = tuple[list[np.ndarray], list[np.ndarray]]


class Emulated:
    """The emulator, and memory between guard pages; `front`: at the beginning of a page, else at the end of one."""

    stream = 0

    def __init__(self, module: ModuleType, *, front: bool = False) -> None:
        self.module = module
        self.front = front

    def put(self, array: np.ndarray) -> Any:
        return harness.guarded(array, front=self.front)

    def tensor(self, held: Any) -> Any:
        """What the module takes."""
        return FakeCudaTensor(held)

    def get(self, held: Any) -> np.ndarray:
        return held.copy()


class OnDevice:
    """The same on a real device."""

    def __init__(self) -> None:
        if _native.cuda() is None or not torch.cuda.is_available():
            pytest.skip("no CUDA device, or a build without yolonas._cuda")
        self.module = _native.cuda()
        self.stream = torch.cuda.current_stream().cuda_stream

    def put(self, array: np.ndarray) -> Any:
        return torch.from_numpy(array).cuda()

    def tensor(self, held: Any) -> Any:
        return held

    def get(self, held: Any) -> np.ndarray:
        return held.cpu().numpy()


Place = Emulated | OnDevice
DEVICE = pytest.param("device", marks=pytest.mark.cuda)
ORDERS = [pytest.param(order, marks=pytest.mark.slow) for order in ("forward", "backward", "random:5")]  # compiles C++


@pytest.fixture(params=[*ORDERS, DEVICE])
def ordered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A device, and the emulator with its threads in several orders."""
    if request.param == "device":
        return OnDevice()
    monkeypatch.setenv("YOLONAS_EMULATOR_ORDER", request.param)
    return Emulated(request.getfixturevalue("emulated"), front=request.param == "backward")


@pytest.fixture(params=[pytest.param("emulated", marks=pytest.mark.slow), DEVICE])
def cuda(request: pytest.FixtureRequest) -> Place:
    return OnDevice() if request.param == "device" else Emulated(request.getfixturevalue("emulated"))


def heads(sizes: list, batch: int, classes: int, seed: int = 0, low: float = -5.0, high: float = 5.0) -> Heads:
    rng = np.random.default_rng(seed)
    cls = [(rng.integers(int(low * 4), int(high * 4) + 1, (batch, *size, classes)) / 4) for size in sizes]
    reg = [rng.uniform(-6, 6, (batch, *size, BINS)) for size in sizes]
    return [x.astype(np.float32) for x in cls], [x.astype(np.float32) for x in reg]


def strides_of(outputs: list) -> list[float]:
    return [8.0 * 2**i for i in range(len(outputs))]


def workspace_for(place: Place, outputs: Heads, *, top_k: int = 1000, multi_label: bool = True, **_: Any) -> Any:
    """Full of rubbish."""
    cls = outputs[0]
    batch, count = cls[0].shape[0], cls[0].shape[3]
    sizes = [x.shape[1:3] for x in cls]
    needed = place.module._detect_workspace_bytes(sizes, batch, count, top_k=top_k, multi_label=multi_label)
    assert needed % 256 == 0
    return place.put(np.full(needed, 0xFF, np.uint8))


def detect(
    place: Place,
    outputs: Heads,
    workspace: Any = None,
    *,
    conf: float = 0.3,
    top_k: int = 1000,
    multi_label: bool = True,
    classes: list[int] | None = None,
    iou: float = 0.6,
    max_det: int = 300,
    agnostic: bool = False,
    extra: int = 0,
    prepared: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """All memory is full of rubbish; `extra` channels before the outputs' own."""

    def slices(maps: list[np.ndarray], rubbish: float) -> list[Any]:
        wide = [np.pad(x, [(0, 0)] * 3 + [(extra, 0)], constant_values=rubbish) for x in maps]
        return [place.tensor(place.put(x)[..., extra:]) for x in wide]

    cls, reg = outputs
    batch, count = cls[0].shape[0], cls[0].shape[3]
    if workspace is None:
        workspace = workspace_for(place, outputs, top_k=top_k, multi_label=multi_label)
    detections = place.put(np.full((batch, max_det, 6), -7, np.float32))
    counts = place.put(np.full(batch, -7, np.int64))
    mask = None
    if classes is not None:
        mask = place.tensor(place.put(np.isin(np.arange(count), classes).astype(np.uint8)))
    place.module._detect(
        slices(cls, 50.0),
        slices(reg, np.nan),
        strides_of(cls),
        conf=conf,
        top_k=top_k,
        multi_label=multi_label,
        class_mask=mask,
        iou=iou,
        max_det=max_det,
        agnostic=agnostic,
        detections=place.tensor(detections),
        counts=place.tensor(counts),
        workspace=place.tensor(workspace),
        prepared=prepared,
        stream=place.stream,
    )
    return place.get(detections), place.get(counts)


def most_pairs(outputs: Heads, top_k: int) -> int:
    return max(1, min(top_k, sum(x[0].size for x in outputs[0])))


def expected_candidates(
    outputs: Heads,
    *,
    conf: float = 0.3,
    top_k: int = 1000,
    multi_label: bool = True,
    classes: list[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """As the rows of a result from which nothing was suppressed."""
    cls, reg = ([torch.from_numpy(x) for x in maps] for maps in outputs)
    most = most_pairs(outputs, top_k)
    candidates = OPS.decode_candidates(cls, reg, strides_of(cls), conf, most, multi_label, classes, True)
    rows, counts = OPS.nms_candidates(*candidates, 1.0, most, False)
    return rows.numpy(), counts.numpy()


def suppressed(
    rows: np.ndarray, counts: np.ndarray, *, iou: float = 0.6, max_det: int = 300, agnostic: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """What the CPU leaves of such rows."""
    boxes, scores, labels = (np.ascontiguousarray(rows[..., part]) for part in (slice(4), 4, 5))
    candidates = map(torch.from_numpy, (boxes, scores, labels.astype(np.int32), counts))
    left, left_counts = OPS.nms_candidates(*candidates, iou, max_det, agnostic)
    return left.numpy(), left_counts.numpy()


def compare(
    place: Place, outputs: Heads, extra: int = 0, *, top_k: int = 1000, **settings: Any
) -> tuple[np.ndarray, np.ndarray]:
    """First the candidates, up to the rounding of exp; then what suppression leaves of them, bit for bit: a call that
    takes over the workspace.
    """
    suppression = {name: settings.pop(name) for name in ("iou", "max_det", "agnostic") if name in settings}
    settings["top_k"] = top_k
    workspace = workspace_for(place, outputs, **settings)
    most = most_pairs(outputs, top_k)
    rows, counts = detect(place, outputs, workspace, extra=extra, iou=1.0, max_det=most, **settings)
    wanted, wanted_counts = expected_candidates(outputs, **settings)
    assert counts.tolist() == wanted_counts.tolist()
    np.testing.assert_array_equal(rows[..., 5], wanted[..., 5])
    np.testing.assert_allclose(rows[..., 4], wanted[..., 4], rtol=0, atol=1e-6)
    np.testing.assert_allclose(rows[..., :4], wanted[..., :4], rtol=1e-6, atol=3e-4)  # 1e-5 cells of 32 pixels
    got, left = detect(place, outputs, workspace, extra=extra, prepared=True, **suppression, **settings)
    wanted, wanted_left = suppressed(rows, counts, **suppression)
    assert left.tolist() == wanted_left.tolist()
    np.testing.assert_array_equal(harness.bits(got), harness.bits(wanted))
    return got, left


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize(("batch", "classes"), [(1, 1), (2, 4), (7, 5), (1, 80)])
def test_detections(ordered: Place, batch: int, classes: int, multi_label: bool) -> None:
    outputs = heads(SIZES, batch, classes, seed=batch + classes)
    for extra, conf, iou, agnostic in ((0, 0.31, 0.4, False), (4, 0.7, 0.1, True), (3, 0.02, 0.6, False)):
        settings = {"conf": conf, "iou": iou, "agnostic": agnostic, "multi_label": multi_label}
        got, counts = compare(ordered, outputs, extra=extra, max_det=50, **settings)
        assert counts.min() > 0 or conf > 0.5
        assert (np.diff(got[0, : counts[0], 4]) <= 0).all()


@pytest.mark.parametrize("multi_label", [True, False])
def test_order_of_candidates(ordered: Place, multi_label: bool) -> None:
    """Nothing is suppressed: the result is the list of candidates, in which many scores are equal."""
    outputs = heads(SIZES, 2, 6, seed=1)
    for top_k in (1, 2, 63, 64, 65, 10**12):
        compare(ordered, outputs, conf=0.0, top_k=top_k, multi_label=multi_label, iou=1.0, max_det=300)


@pytest.mark.slow
def test_same_bits_in_every_order(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for order in ("forward", "backward", "random:1", "random:2"):
        monkeypatch.setenv("YOLONAS_EMULATOR_ORDER", order)
        results.append(detect(Emulated(emulated), heads(LARGE, 1, 8, seed=2), conf=0.2, iou=0.5, top_k=900))
    for detections, counts in results[1:]:
        np.testing.assert_array_equal(harness.bits(detections), harness.bits(results[0][0]))
        assert counts.tolist() == results[0][1].tolist()


@pytest.mark.parametrize("top_k", [1, 1000, 2048, 2049, 3000, 4096, 4097, 10**9])
def test_many_candidates(cuda: Place, top_k: int) -> None:
    """More than are sorted in shared memory, and ties across the cut at top_k."""
    outputs = heads(LARGE, 1, 8, seed=3)  # 5576 pairs
    compare(cuda, outputs, conf=0.0, top_k=top_k, iou=1.0, max_det=6000 if top_k == 4097 else 1200)


def test_many_equal_scores(cuda: Place) -> None:
    """Only the lower half of a key tells them apart."""
    cls, reg = heads([(30, 30)], 2, 4, seed=4)
    cls[0][:] = 1.25
    cls[0][1, 3, 3, 2] = 2.0
    for top_k in (1, 5, 1500, 2300):
        compare(cuda, (cls, reg), conf=0.5, top_k=top_k, iou=1.0, max_det=1200)


@pytest.mark.parametrize("max_det", [1, 3, 100, 1300])
@pytest.mark.parametrize("agnostic", [True, False])
def test_crowded_pictures(cuda: Place, max_det: int, agnostic: bool) -> None:
    """Large boxes drop many others, within 64 candidates and beyond."""
    cls, reg = heads([(16, 18)], 2, 3, seed=6)
    reg[0].reshape(2, 16, 18, 4, 17)[..., 0:4] -= 6.0
    for iou in (0.0, 0.3, 0.8):
        settings = {"conf": 0.1, "iou": iou, "max_det": max_det, "agnostic": agnostic}
        _, counts = compare(cuda, (cls, reg), **settings)
        assert counts.max() < 700


def hostile(classes: int) -> Heads:
    cls, reg = heads(SIZES, 3, classes, seed=7)
    odd = np.array([np.nan, np.inf, -np.inf, 88.0, -100.0, 20.0, 17.0, -87.5, 0.0, -0.0], np.float32)
    flat = cls[0].reshape(-1)
    flat[: odd.size] = odd
    flat[40 : 40 + 6 * odd.size] = np.tile(odd, 6)
    cls[1][1, 1] = np.nan
    cls[1][2, 1] = -np.inf
    cls[2][1] = np.inf
    reg[0][0, 0, 1, 3] = np.nan
    reg[0][0, 0, 2, 20] = np.inf
    reg[0][1, 1, 1, 67] = -np.inf  # no weight: the box is finite
    reg[0][2, :, :, 34:51] = -np.inf
    reg[1][:, 0, 0, 5] = 1e30
    reg[2][1, 0, 0] = np.nan
    return cls, reg


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("conf", [0.0, 0.3, 0.999, 1.0])
def test_hostile_values(ordered: Place, conf: float, multi_label: bool) -> None:
    for classes in (4, 5):
        for top_k in (7, 1000):
            settings = {"conf": conf, "top_k": top_k, "multi_label": multi_label}
            compare(ordered, hostile(classes), iou=1.0, **settings)


@pytest.mark.parametrize("multi_label", [True, False])
def test_class_mask(ordered: Place, multi_label: bool) -> None:
    outputs = heads(SIZES, 2, 9, seed=8)
    for classes in ([0, 5, 8], [3], list(range(9))):
        compare(ordered, outputs, conf=0.4, classes=classes, multi_label=multi_label)
    detections, counts = detect(ordered, outputs, classes=[], multi_label=multi_label)
    assert not detections.any()
    assert not counts.any()


@pytest.mark.parametrize("multi_label", [True, False])
def test_same_bits_at_every_place_of_a_batch(cuda: Place, multi_label: bool) -> None:
    cls, reg = heads(LARGE, 3, 4, seed=9)
    settings = {"conf": 0.2, "iou": 0.5, "top_k": 300, "multi_label": multi_label}
    apart = [detect(cuda, ([x[i : i + 1] for x in cls], [x[i : i + 1] for x in reg]), **settings) for i in range(3)]
    places = [0, 1, 2, 1, 0, 2, 2]
    detections, counts = detect(cuda, ([x[places] for x in cls], [x[places] for x in reg]), **settings)
    for place, picture in enumerate(places):
        np.testing.assert_array_equal(harness.bits(detections[place]), harness.bits(apart[picture][0][0]))
        assert counts[place] == apart[picture][1][0]


@pytest.mark.parametrize("multi_label", [True, False])
def test_nothing_to_detect(cuda: Place, multi_label: bool) -> None:
    outputs = heads(SIZES, 2, 3)
    for nothing in (heads([(0, 3)], 2, 3), heads([(0, 0), (4, 0)], 1, 2), heads(SIZES, 0, 3)):
        detections, counts = detect(cuda, nothing, conf=0.0, multi_label=multi_label)
        assert not detections.any()
        assert not counts.any()
    compare(cuda, outputs, conf=1.0, multi_label=multi_label)
    some = heads([(0, 3), (2, 3), (4, 0), (1, 1), (0, 0)], 2, 3)  # levels without anchors between others
    compare(cuda, some, multi_label=multi_label)


@pytest.mark.parametrize("max_det", [1, 70, 400])
def test_walk_of_the_bitmask(ordered: Place, max_det: int) -> None:
    """nms_candidates, which takes 64 candidates at a time too."""
    rng = np.random.default_rng(max_det)
    boxes = rng.uniform(0, 90, (7, 400, 4)).astype(np.float32)
    boxes[..., 2:] = boxes[..., :2] + rng.uniform(0, 40, (7, 400, 2)).astype(np.float32)
    scores = np.sort(rng.random((7, 400), np.float32), axis=1)[:, ::-1].copy()
    classes = rng.integers(0, 3, (7, 400)).astype(np.int32)
    candidates = np.array([400, 0, 1, 64, 65, 128, 399])
    workspace = ordered.put(np.full(7 * ordered.module.nms_workspace_bytes(400) // 8, -1, np.int64))
    detections = ordered.put(np.full((7, max_det, 6), -7, np.float32))
    counts = ordered.put(np.full(7, -7, np.int64))
    for iou, agnostic in ((0.2, True), (0.5, False), (1.0, True)):
        inputs = (boxes, scores, classes, candidates)
        ordered.module.nms_candidates(
            *(ordered.tensor(ordered.put(one)) for one in inputs),
            iou=iou,
            max_det=max_det,
            agnostic=agnostic,
            detections=ordered.tensor(detections),
            counts=ordered.tensor(counts),
            workspace=ordered.tensor(workspace),
            stream=ordered.stream,
        )
        wanted, wanted_counts = OPS.nms_candidates(*map(torch.from_numpy, inputs), iou, max_det, agnostic)
        np.testing.assert_array_equal(ordered.get(detections), wanted.numpy())
        np.testing.assert_array_equal(ordered.get(counts), wanted_counts.numpy())


def test_one_picture_of_a_batch_is_empty(cuda: Place) -> None:
    cls, reg = heads(SIZES, 3, 4)
    for level in cls:
        level[1] = -9.0
    _, counts = compare(cuda, (cls, reg))
    assert counts[1] == 0
    assert counts[0] > 0


def workspace_bytes(module: ModuleType) -> int:
    return module._detect_workspace_bytes([(2, 2)], 1, 4, top_k=10, multi_label=True)


def call(module: ModuleType, **changes: Any) -> None:
    (cls, reg), batch = heads([(2, 2)], 1, 4), 1
    arguments: dict[str, Any] = {
        "cls": cls,
        "reg": reg,
        "strides": [8.0],
        "conf": 0.5,
        "top_k": 10,
        "multi_label": True,
        "class_mask": None,
        "iou": 0.5,
        "max_det": 5,
        "agnostic": False,
        "detections": np.zeros((batch, 5, 6), np.float32),
        "counts": np.zeros(batch, np.int64),
        "workspace": harness.guarded_empty((workspace_bytes(module),), np.uint8),
        "stream": 0,
    }
    arguments.update(changes)

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        return FakeCudaTensor(value) if isinstance(value, np.ndarray) else value

    module._detect(**{name: moved(value) for name, value in arguments.items()})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"conf": 1.5}, ValueError, "conf must lie in 0..1, got 1.5"),
        ({"conf": float("nan")}, ValueError, "conf must lie in 0..1, got nan"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"iou": -1.0}, ValueError, "iou must lie in 0..1, got -1"),
        ({"max_det": 0}, ValueError, "max_det must lie in 1..1000000, got 0"),
        ({"strides": [0.0]}, ValueError, "strides must be positive, got 0"),
        ({"strides": [8.0, 16.0]}, ValueError, "lists of the same length >= 1, got 1, 1 and 2"),
        ({"cls": [], "reg": [], "strides": []}, ValueError, "lists of the same length >= 1, got 0, 0 and 0"),
        ({"cls": [np.zeros((1, 2, 2, 4), np.float16)]}, TypeError, "class output must be float32, got float16"),
        ({"cls": [np.zeros((1, 2, 3, 4), np.float32)]}, ValueError, "box output must have 1 pictures of 2x3, got"),
        (
            {"cls": [np.zeros((1, 2, 4, 4), np.float32)[:, :, :2]]},
            ValueError,
            "class output must be float32, .* channels of a contiguous tensor, got",
        ),
        (
            {"reg": [np.zeros((1, 2, 2, 67), np.float32)]},
            ValueError,
            "box output 0 must have 68 channels, got 67 of 67",
        ),
        ({"class_mask": np.zeros(3, np.uint8)}, ValueError, r"class_mask must have shape \(K,\) = \(4\), got \(3,\)"),
        ({"detections": np.zeros((1, 4, 6), np.float32)}, ValueError, "detections must have shape"),
        ({"counts": np.zeros(1, np.int32)}, TypeError, "counts must be int64"),
        ({"workspace": np.zeros(256, np.uint8)}, ValueError, r"workspace must have at least \d+ bytes, got 256"),
    ],
)
def test_errors_in_arguments(emulated: ModuleType, changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"detect: .*{text}"):
        call(emulated, **changes)


@pytest.mark.slow
def test_error_of_an_unaligned_workspace(emulated: ModuleType) -> None:
    workspace = harness.guarded_empty((workspace_bytes(emulated) + 256,), np.uint8)[8:]
    with pytest.raises(ValueError, match="detect: workspace must lie at a multiple of 256 bytes"):
        call(emulated, workspace=workspace)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "classes", "text"),
    [
        ([], 4, "levels must be 1..8, got 0"),
        ([(1, 1)] * 9, 4, "levels must be 1..8, got 9"),
        ([(1, 1)], 0, "number of classes must lie in"),
        ([(-1, 1)], 1, "level 0 must not have negative sides, got -1 x 1"),
        ([(40000, 40000)], 2, r"anchors \* classes must be below 2\^31, got at least 1600000000 \* 2"),
    ],
)
def test_errors_of_sizes(emulated: ModuleType, sizes: list, classes: int, text: str) -> None:
    with pytest.raises(ValueError, match=f"detect: {text}"):
        emulated._detect_workspace_bytes(sizes, 1, classes, top_k=10, multi_label=True)


@pytest.mark.slow
def test_workspace_grows_with_its_sizes(emulated: ModuleType) -> None:
    def needed(**changes: Any) -> int:
        arguments = {"sizes": [(80, 80), (40, 40), (20, 20)], "batch": 2, "classes": 80, "top_k": 1000}
        settings: Callable[..., int] = emulated._detect_workspace_bytes
        return settings(**{**arguments, "multi_label": True, **changes})

    pairs = 2 * 8400 * 80
    assert 8 * pairs <= needed() <= 8 * pairs + 2 * 24 * 1000 + 6 * 256
    assert needed(multi_label=False) < needed() / 50
    assert needed(top_k=10**15) == needed(top_k=8400 * 80) > needed(top_k=10**5) > needed()
