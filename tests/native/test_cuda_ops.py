"""The CUDA ops against the CPU ops, on a device where there is one, and everywhere through an emulator on the CPU.

The emulator runs kernels, launchers, bindings and registrations alike. It shows that indices and arithmetic are right;
it does not show that they run on a GPU.
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
from yolonas.ops import _torch_cuda
from yolonas.ops.conv import conv2d_shape

OPS = torch.ops.yolonas
SIZES = [(2, 3), (1, 1), (5, 7)]

Run = Callable[..., Any]  # (name of the op, its arguments on the CPU) -> its results on the CPU


@pytest.fixture(
    params=[
        pytest.param("emulated", marks=pytest.mark.slow),  # compiles C++ first
        pytest.param("emulated backward", marks=pytest.mark.slow),
        pytest.param("device", marks=pytest.mark.cuda),
    ]
)
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs an op's CUDA version."""
    if request.param == "device":
        return device_run()
    backward = request.param == "emulated backward"
    return emulated_run(request.getfixturevalue("emulated"), monkeypatch, backward)


def device_run() -> Run:
    if _native.cuda() is None or not torch.cuda.is_available():
        pytest.skip("no CUDA device, or a build without yolonas._cuda")
    return lambda name, *arguments: moved(getattr(OPS, name)(*moved(arguments, "cuda")), "cpu")


def moved(value: Any, device: str) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(moved(item, device) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    if value._base is None or value.is_contiguous():
        return value.to(device)
    # A crop keeps its rows apart: alone, it would be moved as a contiguous tensor.
    return value._base.to(device).as_strided(value.shape, value.stride(), value.storage_offset())


def emulated_run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, backward: bool) -> Run:
    """Threads of a block in either order; every tensor ends (or begins) at a page that nobody may touch."""
    monkeypatch.setenv("YOLONAS_EMULATOR_ORDER", "backward" if backward else "forward")

    def call(op: str, on: torch.Tensor, *arguments: Any, **settings: Any) -> None:
        copies: list[tuple[torch.Tensor, np.ndarray]] = []

        def fake(value: Any) -> Any:
            if isinstance(value, list):
                return [fake(item) for item in value]
            if not isinstance(value, torch.Tensor):
                return value
            if not value.is_contiguous():  # a crop keeps its rows apart
                return FakeCudaTensor(value.numpy())
            copies.append((value, harness.guarded(value.numpy(), front=backward)))
            return FakeCudaTensor(copies[-1][1])

        getattr(module, op)(*map(fake, arguments), **{k: fake(v) for k, v in settings.items()}, stream=0)
        for tensor, copy in copies:
            tensor.copy_(torch.from_numpy(copy))

    monkeypatch.setattr(_torch_cuda, "_call", call)
    monkeypatch.setattr(_native, "cuda", lambda: module)
    return lambda name, *arguments: getattr(_torch_cuda, name)(*arguments)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


LETTERBOXES = [
    # source, frame, resized, offset
    ((37, 53), (64, 64), (45, 60), (9, 2)),
    ((53, 37), (33, 41), (33, 23), (0, 18)),
    ((9, 200), (32, 32), (1, 32), (15, 0)),
    ((1, 1), (9, 9), (9, 9), (0, 0)),
    ((1, 5), (8, 70), (8, 70), (0, 0)),
    ((70, 71), (96, 104), (70, 71), (13, 16)),
    ((300, 200), (20, 70), (3, 2), (17, 68)),
]


@pytest.mark.parametrize("hwc", [False, True])
@pytest.mark.parametrize("sizes", LETTERBOXES)
def test_letterbox(cuda: Run, sizes: tuple, hwc: bool) -> None:
    (height, width), frame, resized, offset = sizes
    image = (random(height, width, 3) * 256).to(torch.uint8)
    scaling = ([0.0, 0.0, 0.0], [255.0, 255.0, 255.0]) if hwc else ([123.7, 116.3, 103.5], [58.4, 57.1, 57.4])
    for swap in (False, True):
        arguments = (image, frame, resized, offset, 114, swap, hwc, *scaling)
        assert torch.equal(cuda("letterbox", *arguments), OPS.letterbox(*arguments))


def test_letterbox_of_a_crop(cuda: Run) -> None:
    crop = (random(40, 50, 3) * 256).to(torch.uint8)[3:37, 5:47]
    arguments = (crop, [32, 64], [30, 37], [1, 20], 0, True, False, [0.0] * 3, [255.0] * 3)
    assert torch.equal(cuda("letterbox", *arguments), OPS.letterbox(*arguments))


def heads(sizes: list, batch: int, classes: int, channels_last: bool) -> tuple[list, list, list]:
    def level(channels: int, size: tuple[int, int], seed: int) -> torch.Tensor:
        logits = (random(batch, channels, *size, seed=seed) - 0.5) * 24
        return logits.permute(0, 2, 3, 1).contiguous() if channels_last else logits

    cls = [level(classes, size, seed) for seed, size in enumerate(sizes)]
    reg = [level(68, size, 50 + seed) for seed, size in enumerate(sizes)]
    return cls, reg, [8.0 * 2**i for i in range(len(sizes))]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("batch", "classes"), [(1, 3), (3, 1), (2, 80), (0, 4)])
def test_decode(cuda: Run, batch: int, classes: int, channels_last: bool) -> None:
    cls, reg, strides = heads(SIZES, batch, classes, channels_last)
    boxes, scores = cuda("decode", cls, reg, strides, channels_last)
    expected_boxes, expected_scores = OPS.decode(cls, reg, strides, channels_last)
    torch.testing.assert_close(boxes, expected_boxes, rtol=1e-6, atol=5e-4)
    torch.testing.assert_close(scores, expected_scores, rtol=2e-6, atol=1e-30)


def test_decode_extremes(cuda: Run) -> None:
    cls, reg, strides = heads([(2, 4)], 1, 3, False)
    cls[0].view(-1)[:6] = torch.tensor([torch.nan, torch.inf, -torch.inf, 88.0, -100.0, 0.0])
    reg[0][0, 3, 0, 0] = torch.nan
    reg[0][0, 20, 1, 1] = 1e30
    boxes, scores = cuda("decode", cls, reg, strides, False)
    expected_boxes, expected_scores = OPS.decode(cls, reg, strides, False)
    torch.testing.assert_close(boxes, expected_boxes, rtol=1e-6, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(scores, expected_scores, rtol=2e-6, atol=1e-30, equal_nan=True)


def sorted_candidates(batch: int, count: int, seed: int = 3) -> tuple[torch.Tensor, ...]:
    boxes = random(batch, count, 4, seed=seed) * 60
    boxes[..., 2:] = boxes[..., :2] + random(batch, count, 2, seed=seed + 1) * 40
    scores = ((random(batch, count, seed=seed + 2) * 50).round() / 50).sort(dim=1, descending=True).values
    classes = (random(batch, count, seed=seed + 3) * 4).to(torch.int32)
    counts = torch.tensor([count, 0, count // 2, count - 1][:batch]).clamp(0, count)
    return boxes, scores, classes, counts


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 127, 128, 129, 500])
def test_nms_candidates(cuda: Run, count: int, agnostic: bool) -> None:
    candidates = sorted_candidates(4, count)
    for iou, max_det in ((0.0, 5), (0.3, 300), (0.7, 40), (1.0, 1000)):
        detections, counts = cuda("nms_candidates", *candidates, iou, max_det, agnostic)
        expected_detections, expected_counts = OPS.nms_candidates(*candidates, iou, max_det, agnostic)
        assert torch.equal(counts, expected_counts)
        assert torch.equal(detections, expected_detections)


def test_nms_a_picture_at_a_time(cuda: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory for the verdicts: same result."""
    candidates = sorted_candidates(4, 130)
    expected = OPS.nms_candidates(*candidates, 0.5, 100, False)
    for pictures in (0, 1, 3):
        monkeypatch.setattr(_torch_cuda, "MASK_BYTES", pictures * 130 * 3 * 8)
        detections, counts = cuda("nms_candidates", *candidates, 0.5, 100, False)
        assert torch.equal(counts, expected[1])
        assert torch.equal(detections, expected[0])


def test_nms_hostile_boxes_and_counts(cuda: Run) -> None:
    boxes, scores, classes, counts = sorted_candidates(3, 70)
    boxes[0, 3, 1] = torch.nan
    boxes[0, 5] = torch.inf
    boxes[0, 7, 2] = -torch.inf
    boxes[2, 1] = boxes[2, 0]  # the same box twice
    boxes[2, 2, 2:] = boxes[2, 2, :2]  # no area
    expected = OPS.nms_candidates(boxes, scores, classes, counts, 0.5, 60, True)
    detections, kept = cuda("nms_candidates", boxes, scores, classes, counts, 0.5, 60, True)
    assert torch.equal(kept, expected[1])
    torch.testing.assert_close(detections, expected[0], rtol=0, atol=0, equal_nan=True)
    beyond = torch.tensor([1 << 40, -5, 35])
    _, kept = cuda("nms_candidates", boxes, scores, classes, beyond, 0.5, 60, True)
    assert kept.tolist() == expected[1].tolist()


@pytest.mark.parametrize("multi_label", [False, True])
def test_batched_nms_and_decode_candidates(cuda: Run, multi_label: bool) -> None:
    boxes = random(3, 90, 4) * 100
    boxes[..., 2:] += boxes[..., :2]
    scores = (random(3, 90, 6, seed=9) * 20).round() / 20  # many ties
    boxes[1, 4] = torch.nan
    scores[2, 7, 1] = torch.nan
    scores[0, 8, 2] = torch.inf
    scores[0, 9] = -0.0
    for conf, top_k, classes in ((0.0, 40, None), (0.5, 1024, [0, 5]), (0.95, 1024, None), (1.0, 7, None)):
        arguments = (boxes, scores, conf, 0.4, top_k, 50, multi_label, False, classes)
        detections, counts = cuda("batched_nms", *arguments)
        expected_detections, expected_counts = OPS.batched_nms(*arguments)
        assert torch.equal(counts, expected_counts)
        assert torch.equal(detections, expected_detections)

    cls, reg, strides = heads(SIZES, 2, 5, False)
    got = cuda("decode_candidates", cls, reg, strides, 0.3, 60, multi_label, [1, 2, 4], False)
    expected = OPS.decode_candidates(cls, reg, strides, 0.3, 60, multi_label, [1, 2, 4], False)
    assert torch.equal(got[3], expected[3])
    for picture, count in enumerate(expected[3].tolist()):
        assert torch.equal(got[2][picture, :count], expected[2][picture, :count])
        torch.testing.assert_close(got[1][picture, :count], expected[1][picture, :count], rtol=2e-6, atol=0)
        torch.testing.assert_close(got[0][picture, :count], expected[0][picture, :count], rtol=1e-6, atol=5e-4)


@pytest.mark.parametrize("shape", [(0, 4), (1,), (3, 5, 7), (2, 33, 17, 3), (1500,)])
def test_fake_quantize(cuda: Run, shape: tuple[int, ...]) -> None:
    x = (random(*shape) - 0.5) * 30
    x.view(-1)[:4] = torch.tensor([torch.nan, torch.inf, 12.75, -0.5])[: x.numel()]
    grad = random(*shape, seed=5)
    for axis in range(-1, len(shape)):
        scale = random(1 if axis < 0 else shape[axis], seed=7) / 10 + 0.05
        for limits in ((-128, 127), (-8, 7)):
            out = cuda("fake_quantize", x, scale, axis, *limits)
            expected = OPS.fake_quantize(x, scale, axis, *limits)
            assert torch.equal(out.view(torch.int32), expected.view(torch.int32))  # the sign of zero as well
            slope = cuda("fake_quantize_backward", grad, x, scale, axis, *limits)
            assert torch.equal(slope, OPS.fake_quantize_backward(grad, x, scale, axis, *limits))


# x (N, H, W, C), weight (K, kh, kw), stride, padding
CONVOLUTIONS = [
    ((1, 1, 1, 1), (1, 1, 1), 1, 0),
    ((2, 5, 7, 3), (5, 3, 3), 1, 1),
    ((1, 9, 8, 8), (68, 3, 3), 2, 1),
    ((1, 6, 9, 5), (4, 2, 5), 1, 2),
    ((1, 5, 6, 4), (3, 5, 1), 3, 4),
    ((1, 2, 3, 2), (2, 9, 8), 2, 7),
    ((1, 4, 5, 16), (12, 1, 1), 1, 0),
    ((0, 4, 4, 3), (2, 3, 3), 1, 0),
]


def convolution(case: tuple, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight, bias and residual."""
    shape, (channels, *kernel), stride, padding = case
    x, weight = random(*shape, seed=seed) - 0.5, random(channels, *kernel, shape[3], seed=seed + 1) - 0.5
    residual = torch.empty(conv2d_shape(shape, weight.shape, stride, padding)).uniform_(-1, 1)
    return x, weight, random(channels, seed=seed + 2) - 0.5, residual


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(cuda: Run, case: tuple) -> None:
    x, weight, bias, residual = convolution(case)
    for optional in ((None, None), (bias, None), (None, residual), (bias, residual)):
        for relu, scale in ((True, 0.7), (False, -1.5)):
            arguments = (x, weight, *optional, *case[2:], relu, scale)
            found, expected = cuda("conv2d_bias_act", *arguments), OPS.conv2d_bias_act(*arguments)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if len(x) == 0:
        return
    x[0, 0, 0, 0] = torch.nan  # passes the activation, and reaches the windows that it is in alone
    arguments = (x, weight, bias, None, *case[2:], True, 1.0)
    found, expected = cuda("conv2d_bias_act", *arguments), OPS.conv2d_bias_act(*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_convolution_from_any_address(cuda: Run) -> None:
    """A tensor that begins four bytes after a multiple of sixteen."""
    x, weight, bias, residual = convolution(((1, 5, 4, 8), (6, 3, 3), 1, 1))
    expected = cuda("conv2d_bias_act", x, weight, bias, residual, 1, 1, True, 0.5)
    moved_by_one = []
    for tensor in (x, weight, bias, residual):
        whole = torch.empty(tensor.numel() + 1)
        whole[1:] = tensor.flatten()
        moved_by_one.append(whole[1:].view(tensor.shape))
    assert torch.equal(cuda("conv2d_bias_act", *moved_by_one, 1, 1, True, 0.5), expected)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": random(4, 4, 3)}, ValueError, r"x must have shape \(N, H, W, C\)"),
        ({"x": random(1, 4, 4, 3).double()}, TypeError, "x must be float32, got float64"),
        ({"x": random(1, 4, 3, 4).transpose(2, 3)}, ValueError, "x of shape .* must be C-contiguous"),
        ({"weight": random(2, 3, 3, 5)}, ValueError, "weight must have shape"),
        ({"bias": random(3)}, ValueError, "bias must have shape"),
        ({"residual": random(1, 4, 4, 3)}, ValueError, "residual must have shape"),
        ({"stride": 0}, ValueError, "stride must lie in 1..1024"),
        ({"padding": 0, "weight": random(2, 5, 5, 3)}, ValueError, "must fit into the padded input"),
        ({"scale": float("nan")}, ValueError, "residual_scale must be finite"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_convolution_checks_its_arguments_as_the_cpu_does(cuda: Run, change: dict, error: Any, text: str) -> None:
    given = {"x": random(1, 4, 4, 3), "weight": random(2, 3, 3, 3), "bias": random(2), "residual": None}
    arguments = {**given, "stride": 1, "padding": 1, "relu": True, "scale": 1.0, **change}.values()
    with pytest.raises(error, match=f"conv2d_bias_act: .*{text}"):
        OPS.conv2d_bias_act(*arguments)
    with pytest.raises(error, match=f"conv2d_bias_act: .*{text}"):
        cuda("conv2d_bias_act", *arguments)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda m: m.decode([fake(1, 2, 3, 3)], [fake(1, 67, 3, 3)], [8.0], **decode_settings()),
            ValueError,
            r"box output must have shape \(B, 68, h, w\) = \(1, 68, 3, 3\), got \(1, 67, 3, 3\)",
        ),
        (
            lambda m: m.fake_quantize(fake(3), fake(1, device=1), fake(3), **quantize_settings()),
            ValueError,
            "scale must lie on the device of the first tensor, cuda:0, got cuda:1",
        ),
        (
            lambda m: m.fake_quantize(fake(3), fake(2), fake(3), **quantize_settings()),
            ValueError,
            r"scale must have shape \(channels,\) = \(1\), got \(2,\)",
        ),
        (
            lambda m: m.fake_quantize(fake(3, dtype=np.int8), fake(1), fake(3), **quantize_settings()),
            TypeError,
            "x must be float32, got int8",
        ),
        (lambda m: m.nms_workspace_bytes((1 << 18) + 1), NotImplementedError, "N must be at most 262144 on a CUDA dev"),
        (
            lambda m: m.nms_candidates(
                fake(1, 70, 4),
                fake(1, 70),
                fake(1, 70, dtype=np.int32),
                fake(1, dtype=np.int64),
                iou=0.5,
                max_det=3,
                agnostic=False,
                detections=fake(1, 3, 6),
                counts=fake(1, dtype=np.int64),
                workspace=fake(139, dtype=np.int64),
                stream=0,
            ),
            ValueError,
            "workspace must have at least 140 words for N = 70, got 139",
        ),
    ],
    ids=["shape", "device", "scale", "dtype", "too many", "workspace"],
)
def test_errors(emulated: ModuleType, call: Callable[[ModuleType], None], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(emulated)


def fake(*shape: int, dtype: Any = np.float32, device: int = 0) -> FakeCudaTensor:
    return FakeCudaTensor(np.zeros(shape, dtype), device)


def decode_settings() -> dict[str, Any]:
    return {"channels_last": False, "boxes": fake(1, 9, 4), "scores": fake(1, 9, 2), "stream": 0}


def quantize_settings() -> dict[str, Any]:
    return {"axis": -1, "quant_min": -128, "quant_max": 127, "stream": 0}


@pytest.mark.cuda
def test_gradient_on_a_device() -> None:
    device_run()
    gradients = []
    for device in ("cpu", "cuda"):
        x = ((random(7, 9) - 0.5) * 30).to(device).requires_grad_()
        OPS.fake_quantize(x, torch.tensor([0.1], device=device), -1, -128, 127).sum().backward()
        gradients.append(x.grad.cpu())
    assert torch.equal(*gradients)
    assert 0 < gradients[0].sum() < gradients[0].numel()


@pytest.mark.cuda
def test_graph_capture() -> None:
    """Kernels neither allocate nor wait, so they can be captured and replayed on new contents."""
    device_run()
    candidates = moved(sorted_candidates(2, 200), "cuda")
    cls, reg, strides = moved(heads(SIZES, 2, 5, False), "cuda")

    def run() -> tuple[torch.Tensor, ...]:
        return (*OPS.decode(cls, reg, strides, False), *OPS.nms_candidates(*candidates, 0.5, 100, False))

    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    for source, fresh in zip(candidates, moved(sorted_candidates(2, 200, seed=40), "cuda"), strict=True):
        source.copy_(fresh)
    graph.replay()
    for got, expected in zip(results, run(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.cuda
def test_convolution_on_a_device() -> None:
    device_run()
    x, weight, bias, residual = moved(convolution(CONVOLUTIONS[1]), "cuda")
    torch.library.opcheck(OPS.conv2d_bias_act.default, (x, weight, bias, residual, 1, 1, True, 0.5))
    with pytest.raises(ValueError, match="conv2d_bias_act: weight must lie on a CUDA device, got cpu"):
        OPS.conv2d_bias_act(x, weight.cpu(), None, None, 1, 1, True, 1.0)
