"""Quantisation-aware training: the prepared network against the integer engine, its gradients, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import using_threads
from quantized_networks import narrow, picture, quantize_
from torch import Tensor, nn
from training_cases import assert_same, random_batch

from yolonas.checkpoint import load_model, read_checkpoint, save_checkpoint
from yolonas.config import VARIANTS, DetectSettings
from yolonas.lowering import lower
from yolonas.native_engine import NativeEngine
from yolonas.nn import YoloNAS
from yolonas.preprocess import Preprocess
from yolonas.quantization.reference import run_integer
from yolonas.quantized_graph import quantized_graph
from yolonas.training import fake_quant
from yolonas.training.ema import Ema
from yolonas.training.fake_quant import SHRINK, WEIGHT_BITS, EngineConv, EngineConv2d, EngineUpsample, finish, prepare
from yolonas.training.loss import DetectionLoss
from yolonas.training.optimizer import build_optimizer
from yolonas.training.state import Progress, read_state, restore_, save_state
from yolonas.training.step import Learner, train_step

X = picture(2, 64, 96)
IN_FLOAT = ("backbone.stage2.blocks.bottlenecks.0.cv2", "neck.neck1.upsample", "heads.head2.reg_pred")
BOTH = "neck.neck2.blocks.conv1+conv2"  # one step of two convolutions


@pytest.fixture(scope="module", params=VARIANTS)
def quantized(request: pytest.FixtureRequest) -> YoloNAS:
    """Not to be changed."""
    return quantize_(narrow(request.param), X)


@pytest.fixture(scope="module")
def small() -> YoloNAS:
    """The S alone, for what does not depend on the size. Not to be changed."""
    return quantize_(narrow("s"), X)


def of_engine(model: YoloNAS, x: np.ndarray = X) -> list[np.ndarray]:
    cls, reg = NativeEngine.of_module(model).heads(x)
    return [*cls, *reg]


def of_torch(model: YoloNAS, x: np.ndarray = X) -> list[np.ndarray]:
    with torch.no_grad():
        cls, reg = model.forward_heads(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    return [level.permute(0, 2, 3, 1).numpy() for level in (*cls, *reg)]


def assert_equal(actual: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def error(actual: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The noise of the worst level, relative to its values."""
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(actual, expected, strict=True))


def steps_of(learner: Learner, count: int) -> list[float]:
    """The losses of steps on one batch."""
    batch, loss = random_batch([2, 3]), DetectionLoss()
    return [train_step(learner, [batch], step=n, learning_rate=1e-3, loss=loss).total for n in range(count)]


def learner_of(model: YoloNAS, precision: str = "float32") -> Learner:
    return Learner(model, build_optimizer(model, weight_decay=1e-6), ema=Ema(model, 0.5), precision=precision)


# --- what it computes ---


@pytest.mark.parametrize("weight_bits", [4, 8])
def test_every_bit_is_that_of_the_engine(quantized: YoloNAS, weight_bits: int) -> None:
    model = prepare(quantized, weight_bits=weight_bits)
    outputs = of_torch(model)  # in training mode, which makes no difference
    assert_equal(of_torch(model.eval()), outputs)
    assert_equal(outputs, of_engine(finish(model)))
    assert_equal(outputs, of_engine(model))
    if weight_bits == 8:
        assert_equal(outputs, of_engine(quantized))


def test_every_step_ends_with_the_integers_of_the_reference(small: YoloNAS) -> None:
    x = picture(1, 32, 32, seed=1)
    model = prepare(small)
    seen: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen[name] = output.detach().permute(0, 2, 3, 1).numpy()

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(keep(name))
    of_torch(model, x)
    graph = quantized_graph(lower(small), small.activation_scales)
    written = run_integer(graph, x)
    assert written.pop("input.quantize").shape == (1, 32, 32, 4)
    assert list(written) == [step["name"] for step in lower(small).steps]
    for name, expected in written.items():
        before, _, last = name.rpartition(".")
        adds_up = ".bottlenecks." in name and last == "cv2"
        names = [before] if adds_up else [f"{before}.{part}" for part in last.split("+")]
        np.testing.assert_array_equal(np.concatenate([seen[one] for one in names], axis=3), expected, err_msg=name)


def test_all_weight_bits_fill_their_range(small: YoloNAS) -> None:
    errors = []
    for weight_bits in WEIGHT_BITS:
        model = finish(prepare(small, weight_bits=weight_bits))
        graph = quantized_graph(lower(model), model.activation_scales)
        largest = 2 ** (weight_bits - 1) - 1
        for step in graph.steps:
            if step.get("weight_scale") is not None:
                axes = (0, 2, 3) if step["op"] == "upsample" else (1, 2, 3)
                assert (np.abs(step["weight"]).max(axes) == largest).all(), step["name"]
        errors.append(error(of_engine(model), of_engine(small)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


def test_memory_order_does_not_matter(small: YoloNAS) -> None:
    model = prepare(small)
    x = torch.from_numpy(X)
    expected = model(x.permute(0, 3, 1, 2).contiguous())[1]
    actual = model(x.permute(0, 3, 1, 2))[1]
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def test_layers_in_float_stay_in_float() -> None:
    quantized = quantize_(narrow("s"), X, lambda name: name in IN_FLOAT)
    for name in ("neck.neck2.blocks.conv1.conv", IN_FLOAT[1]):  # one without its pair, and none
        assert hasattr(quantized.get_submodule(name), "weight_scale") == (name != IN_FLOAT[1])
    del quantized.neck.neck2.blocks.conv1.conv.weight_scale
    in_float = {*IN_FLOAT, BOTH}
    model = prepare(quantized)
    for step in lower(model).steps:
        for module in step.get("modules", ()):
            assert isinstance(module, EngineConv)
            assert (module.weight_scale is None) == (step["name"] in in_float)
    everywhere = error(of_engine(quantize_(narrow("s"), X)), of_engine(narrow("s")))
    assert error(of_torch(model), of_engine(quantized)) < everywhere  # sums in float decide where values are near ties

    finished = finish(model)
    assert_equal(of_engine(finished), of_engine(quantized))
    kept = {name for name, _ in finished.named_buffers()}
    assert "neck.neck2.blocks.conv2.conv.weight_scale" not in kept
    assert len(kept) == 100 - len(IN_FLOAT) - 2
    for step, other in zip(lower(finished).steps, lower(quantized).steps, strict=True):
        if step["name"] in in_float:
            np.testing.assert_array_equal(step["weight"], other["weight"])


def test_a_float_head_differs_by_rounding_only() -> None:
    quantized = quantize_(narrow("s"), X, lambda name: name.endswith(("cls_pred", "reg_pred")))
    for one, other in zip(of_torch(prepare(quantized)), of_engine(quantized), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_weights_that_int8_clips_are_clipped(small: YoloNAS) -> None:
    quantized = finish(prepare(small))
    conv = quantized.backbone.stage1.downsample.rbr_reparam
    conv.weight_scale *= 0.5
    limit = 127.5 * conv.weight_scale
    made = prepare(quantized).backbone.stage1.downsample.rbr_reparam
    assert torch.equal(made.weight.abs().amax((1, 2, 3)), limit)
    assert torch.equal(made.weight_scale, limit / 127)
    assert not torch.equal(conv.weight, made.weight)


@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.1), ("fp16", 0.05)])
def test_half_precision_is_near(small: YoloNAS, precision: str, most: float) -> None:
    model = prepare(small)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    with torch.autocast("cpu", dtype=dtype):
        outputs = of_torch(model)
    assert 0 < error(outputs, of_engine(small)) < most
    result = train_step(
        learner_of(model, precision), [random_batch([2])], step=0, learning_rate=1e-5, loss=DetectionLoss()
    )
    assert np.isfinite(result.total)


def test_sums_of_integers_stay_within_float16() -> None:
    for variant in VARIANTS:
        with torch.device("meta"):
            model = YoloNAS(variant, 1, "folded")
        products = max(conv.weight[0].numel() for conv in model.modules() if isinstance(conv, nn.Conv2d))
        assert products * 127 * 128 / SHRINK < torch.finfo(torch.float16).max


# --- gradients ---


def engine_conv(kind: type[EngineConv2d | EngineUpsample], weight: Tensor) -> EngineConv2d | EngineUpsample:
    conv = kind(2, 2, weight.shape[-1], 2 if kind is EngineUpsample else 1)
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(torch.tensor([0.11, -0.2]))
    conv.weight_bits, conv.input_scale, conv.output_scale = 4, 0.5, 0.25
    return conv


def test_gradients_by_hand() -> None:
    conv = engine_conv(EngineConv2d, torch.tensor([[0.30, -0.70], [1.4, 0.62]])[:, :, None, None])
    assert torch.allclose(conv.weight_scale, torch.tensor([0.1, 0.2]))
    x = torch.tensor([3.0, -5.0]).view(1, 2, 1, 1).requires_grad_()
    y = conv(x)
    rounded = torch.tensor([[0.30, -0.70], [1.4, 0.60]])
    assert torch.allclose(y.flatten(), (rounded @ torch.tensor([1.5, -2.5]) + conv.bias) / 0.25)
    y.backward(torch.tensor([2.0, 10.0]).view(1, 2, 1, 1))
    by_sum = torch.tensor([2.0, 10.0]) / 0.25
    assert torch.allclose(conv.bias.grad, by_sum)
    assert torch.allclose(conv.weight.grad[:, :, 0, 0], torch.outer(by_sum, torch.tensor([1.5, -2.5])))
    assert torch.allclose(x.grad.flatten(), 0.5 * by_sum @ rounded)


def test_gradients_of_the_transposed_convolution_are_those_of_the_real_one() -> None:
    torch.manual_seed(0)
    integers = torch.randint(-7, 8, (2, 2, 2, 2)).float()
    integers[:, :, 0, 0] = 7.0
    scale = torch.tensor([0.125, 0.5])
    conv = engine_conv(EngineUpsample, integers * scale[:, None, None])
    assert torch.equal(conv.weight_scale, scale)
    x, factor = torch.randint(-128, 128, (1, 2, 3, 3)).float(), torch.randn(1, 2, 6, 6)
    (conv(x) * factor).sum().backward()
    weight, bias = (value.detach().clone().requires_grad_() for value in (conv.weight, conv.bias))
    real = nn.functional.conv_transpose2d(0.5 * x, weight, bias, 2) / 0.25
    (real * factor).sum().backward()
    assert torch.allclose(conv(x), real)
    assert torch.allclose(conv.weight.grad, weight.grad, rtol=1e-4)
    assert torch.allclose(conv.bias.grad, bias.grad, rtol=1e-4)


def test_gradients_pass_where_nothing_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.tensor([-129.0, -128.5, -128.4, -0.5, 0.5, 1.5, 127.4, 127.6, 300.0])
    x = values.clone().requires_grad_()
    y = fake_quant._integers(x, -128, 127)
    assert y.tolist() == [-128, -128, -128, 0, 0, 2, 127, 127, 127]
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 1, 0, 0]
    # Where there are no kernels of ours torch's do the same.
    by_torch = torch.fake_quantize_per_tensor_affine(values.requires_grad_(), 1.0, 0, -128, 127)
    by_torch.sum().backward()
    assert torch.equal(by_torch, y)
    assert torch.equal(values.grad, x.grad)


def test_all_parameters_get_gradients(small: YoloNAS) -> None:
    model = prepare(small)
    _, raw = model(random_batch([2]).pictures)
    (raw[0].square().sum() + raw[1].square().sum()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# --- training ---


def test_training_lowers_the_loss_and_its_result_runs(
    small: YoloNAS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VARIANTS, "narrow", small.variant)  # so that files of it can be written and read
    before = {key: value.clone() for key, value in small.state_dict().items()}
    model = prepare(small, weight_bits=6)
    learner = learner_of(model)
    totals = steps_of(learner, 10)
    assert totals[-1] < 0.9 * totals[0]
    assert_same(small.state_dict(), before)
    assert_equal(of_engine(finish(model)), of_torch(model))
    finished, outputs = finish(learner.ema.model), of_torch(learner.ema.model)
    assert error(outputs, of_engine(small)) > 0.01
    file = save_checkpoint(
        tmp_path / "trained.safetensors",
        finished,
        names={0: "a", 1: "b", 2: "c"},
        preprocess=Preprocess(),
        settings=DetectSettings(),
    )
    read = load_model(read_checkpoint(file))
    assert_same(read.state_dict(), finished.state_dict())
    assert read.activation_scales == small.activation_scales
    assert_equal(of_engine(read), outputs)
    assert_equal(of_torch(prepare(read, weight_bits=6)), outputs)
    kept = {key: value.clone() for key, value in finished.state_dict().items()}
    steps_of(learner, 1)
    assert_same(finished.state_dict(), kept)


def test_training_goes_on_from_a_state(small: YoloNAS, tmp_path: Path) -> None:
    with using_threads(1):
        learner = learner_of(prepare(small))
        steps_of(learner, 2)
        state = read_state(save_state(tmp_path / "last.state", learner, Progress(2, 0)))
        other = learner_of(prepare(small))
        restore_(state, other)
        assert steps_of(learner, 1) == steps_of(other, 1)
        assert_same(other.model.state_dict(), learner.model.state_dict())
        assert_same(other.ema.model.state_dict(), learner.ema.model.state_dict())


def test_the_state_dict_is_that_of_the_folded_network(small: YoloNAS) -> None:
    model = prepare(small)
    assert model.training
    assert (model.variant, model.form, model.num_classes) == (small.variant, "folded", 3)
    assert list(model.state_dict()) == list(narrow("s").state_dict())
    assert model.activation_scales == small.activation_scales


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_cuda_learns_as_the_cpu_does(small: YoloNAS, precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = prepare(small).cuda()
    with torch.no_grad():
        cls, reg = model.forward_heads(torch.from_numpy(X.transpose(0, 3, 1, 2).copy()).cuda())
    outputs = [level.permute(0, 2, 3, 1).cpu().numpy() for level in (*cls, *reg)]
    assert error(outputs, of_engine(small)) < 0.05
    learner, loss = learner_of(model, precision), DetectionLoss()
    batch = random_batch([2, 3], device="cuda")
    totals = [train_step(learner, [batch], step=n, learning_rate=1e-3, loss=loss).total for n in range(12)]
    assert min(totals) < 0.9 * totals[0]
    expected = of_engine(finish(prepare(small)))
    assert_equal(of_engine(finish(prepare(small).cuda())), expected)


# --- what is refused ---


def test_wrong_calls_are_refused(small: YoloNAS) -> None:
    for bits in (3, 9, 6.0, True, "8"):
        with pytest.raises(ValueError, match=rf"^prepare: weight_bits must be one of 4, 5, 6, 7, 8, got {bits!r}$"):
            prepare(small, weight_bits=bits)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^prepare: model must be quantised, got one in float; make one with NAS"):
        prepare(narrow("s"))
    with pytest.raises(ValueError, match=r"^prepare: model must not be prepared, got one that is; call finish"):
        prepare(prepare(small))
    with pytest.raises(ValueError, match=r"^finish: model must come from prepare, got another one$"):
        finish(small)
    model = prepare(small)
    with torch.no_grad():
        model.heads.head1.cls_pred.weight[1] = float("nan")
    with pytest.raises(
        ValueError, match=r"^finish: model must have finite weights, .* in heads.head1.cls_pred.weight;"
    ):
        finish(model)
    without = finish(prepare(small))
    without.activation_scales.pop("backbone.stem.conv")
    with pytest.raises(
        ValueError, match=r"^quantize: scale of 'backbone.stem.conv' must be a positive number, got None"
    ):
        prepare(without)


def test_a_prepared_network_is_not_written(small: YoloNAS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "narrow", small.variant)
    names = {0: "a", 1: "b", 2: "c"}
    with pytest.raises(ValueError, match="activation_scales must belong to a network with int8 weights"):
        save_checkpoint(
            tmp_path / "a.safetensors", prepare(small), names=names, preprocess=Preprocess(), settings=DetectSettings()
        )
