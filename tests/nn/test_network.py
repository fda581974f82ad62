"""Whole networks: values of every stage and output, keys, inputs that are refused, training mode, initial values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_numbers import ANCHORS, NETWORKS, STATE_DICTS
from golden_recipe import fill_, make_input, make_tensor, pattern

from yolonas.config import VARIANTS
from yolonas.nn import FORMS, YoloNAS, fuse_
from yolonas.nn.head import flatten_levels, raw_outputs

FILES = ["s_320x320", "s_256x384", "m_320x320", "l_320x320"]
STAGES = ["backbone.stem", "backbone.stage1", "backbone.stage2", "backbone.stage3", "backbone.stage4"]
STAGES += ["backbone.context_module", "neck.neck1", "neck.neck2", "neck.neck3", "neck.neck4"]
STAGES += ["heads.head1", "heads.head2", "heads.head3"]
OUTPUTS = {"neck.neck1": ("inter", "out"), "neck.neck2": ("inter", "out")}
OUTPUTS |= {f"heads.head{level}": ("cls", "reg") for level in (1, 2, 3)}


@pytest.fixture(scope="module")
def golden_network() -> Callable[[str], YoloNAS]:
    """Makes each size once; they go with the module, since together they take a gigabyte."""
    return cache(lambda variant: fill_(YoloNAS(variant).double()).eval())


def golden_input(height: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(make_input(0, (1, 3, height, width))).to(dtype)


def golden_file(shared: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(shared / "reference" / f"goldens_{name}.npz") as file:
        return dict(file)


def split_name(name: str) -> tuple[str, int, int]:
    variant, size = name.split("_")
    height, width = map(int, size.split("x"))
    return variant, height, width


def compare_outputs(
    boxes: torch.Tensor, scores: torch.Tensor, golden: dict, boxes_atol: float, scores_atol: float
) -> None:
    actual_boxes, actual_scores = boxes[0].numpy(), scores[0].numpy()
    if "boxes" in golden:
        np.testing.assert_allclose(actual_boxes, golden["boxes"], rtol=0, atol=boxes_atol)
        np.testing.assert_allclose(actual_scores, golden["scores"], rtol=0, atol=scores_atol)
    else:
        rows = golden["sub_index"]
        np.testing.assert_allclose(actual_boxes[rows], golden["boxes_sub"], rtol=0, atol=boxes_atol)
        np.testing.assert_allclose(actual_scores[rows], golden["scores_sub"], rtol=0, atol=scores_atol)


def compare_sums(boxes: torch.Tensor, scores: torch.Tensor, golden: dict) -> None:
    """Sums over all anchors of float64 outputs, which were summed in float64."""
    np.testing.assert_allclose(boxes[0].sum(0), golden["boxes_colsum"], rtol=1e-10)
    np.testing.assert_allclose(boxes[0].abs().sum(0), golden["boxes_abssum"], rtol=1e-10)
    np.testing.assert_allclose(scores.sum(), golden["scores_sum"], rtol=1e-10)
    np.testing.assert_allclose(scores.square().sum(), golden["scores_sqsum"], rtol=1e-10)


def test_recipe_makes_the_documented_values() -> None:
    weight = make_tensor(0, "backbone.stem.conv.branch_3x3.conv.weight", (48, 3, 3, 3))
    np.testing.assert_allclose(weight.ravel()[:3], [-0.21825029, 0.121627897, 0.292663544], rtol=1e-7)
    assert weight.astype(np.float64).sum() == pytest.approx(-5.10068829, abs=1e-7)
    upsample = make_tensor(0, "neck.neck1.upsample.weight", (192, 192, 2, 2))
    assert upsample.astype(np.float64).sum() == pytest.approx(-38.2347128, abs=1e-6)
    bias = make_tensor(0, "heads.head1.cls_pred.bias", (80,))
    assert bias.astype(np.float64).sum() == pytest.approx(-159.264198, abs=1e-5)
    assert make_input(0, (1, 3, 320, 320)).astype(np.float64).sum() == pytest.approx(153683.190511, abs=1e-5)
    values = pattern("ema:", "backbone.stem.conv.branch_1x1.weight", (48, 3, 1, 1))
    assert np.array_equal(values, values.astype(np.float16))
    assert pattern("", "bn.num_batches_tracked", ()).dtype == np.int64


@pytest.mark.parametrize("variant", NETWORKS)
def test_network_equals_golden_numbers(variant: str, golden_network: Callable[[str], YoloNAS]) -> None:
    golden = NETWORKS[variant]
    with torch.inference_mode():
        boxes, scores = golden_network(variant)(golden_input(320, 320))
    assert boxes.shape == (1, 2100, 4)
    assert scores.shape == (1, 2100, 80)
    np.testing.assert_allclose(boxes[0, list(ANCHORS)], golden["boxes"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(scores[0, list(ANCHORS), :4], golden["scores"], rtol=0, atol=1e-6)
    compare_sums(boxes, scores, golden)


@pytest.mark.shared
@pytest.mark.parametrize("name", FILES)
def test_every_stage_equals_golden(name: str, shared: Path, golden_network: Callable[[str], YoloNAS]) -> None:
    """The first stage that differs is the one to look at: stages are compared in the order of the data flow."""
    variant, height, width = split_name(name)
    golden = golden_file(shared, name)
    network, x = golden_network(variant), golden_input(height, width)
    np.testing.assert_array_equal(x.flatten()[:16].float(), golden["input_first16"])
    found: dict[str, torch.Tensor] = {}

    def record(stage: str, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        if stage in OUTPUTS:
            found.update({f"{stage}.{part}": y for part, y in zip(OUTPUTS[stage], output, strict=True)})
        else:
            found[stage] = output

    hooks = [
        network.get_submodule(stage).register_forward_hook(lambda _, __, output, stage=stage: record(stage, output))
        for stage in STAGES
    ]
    try:
        with torch.inference_mode():
            boxes, scores = network(x)
    finally:
        for hook in hooks:
            hook.remove()

    assert {key.split("/")[1] for key in golden if key.startswith("stage/")} == set(found)
    for stage, output in found.items():
        expected = {part: golden[f"stage/{stage}/{part}"] for part in ("shape", "mean", "std", "first16")}
        assert tuple(output.shape) == tuple(expected["shape"]), stage
        np.testing.assert_allclose(output.mean(), expected["mean"], rtol=1e-9, atol=1e-12, err_msg=stage)
        np.testing.assert_allclose(output.std(correction=0), expected["std"], rtol=1e-9, err_msg=stage)
        np.testing.assert_allclose(output.flatten()[:16], expected["first16"], rtol=1e-6, atol=1e-7, err_msg=stage)
    compare_outputs(boxes, scores, golden, boxes_atol=1e-4, scores_atol=1e-6)
    compare_sums(boxes, scores, golden)
    np.testing.assert_allclose(scores[0].sum(0), golden["scores_classsum"], rtol=1e-10)

    class_maps = [found[f"heads.head{level}.cls"] for level in (1, 2, 3)]
    box_maps = [found[f"heads.head{level}.reg"] for level in (1, 2, 3)]
    rows = golden["sub_index"]
    np.testing.assert_allclose(flatten_levels(class_maps)[0, rows], golden["cls_logits_sub"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(flatten_levels(box_maps)[0, rows], golden["reg_logits_sub"], rtol=1e-6, atol=1e-6)
    if "anchor_points" in golden:
        _, _, anchor_boxes, points, counts, strides = raw_outputs(class_maps, box_maps)
        np.testing.assert_array_equal(anchor_boxes, golden["anchor_boxes"])
        np.testing.assert_array_equal(points, golden["anchor_points"])
        assert counts == golden["anchor_counts"].tolist()
        np.testing.assert_array_equal(strides, golden["stride_tensor"])


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", [*FILES, "s_640x640"])
def test_outputs_equal_golden_in_every_form(name: str, dtype: torch.dtype, shared: Path) -> None:
    variant, height, width = split_name(name)
    golden = golden_file(shared, name)
    network, x = fill_(YoloNAS(variant).to(dtype)).eval(), golden_input(height, width, dtype)
    atol = (1e-4, 1e-6) if dtype == torch.float64 else (3e-3, 1e-5)
    for form in FORMS:
        with torch.inference_mode():
            boxes, scores = fuse_(network, form)(x)
        assert boxes.dtype == scores.dtype == dtype
        compare_outputs(boxes, scores, golden, *atol)
        if dtype == torch.float64:
            compare_sums(boxes, scores, golden)


@pytest.mark.parametrize(("variant", "form"), STATE_DICTS)
def test_state_dict_is_pinned(variant: str, form: str) -> None:
    entries, parameters, digest = STATE_DICTS[variant, form]
    with torch.device("meta"):
        network = YoloNAS(variant, form=form)
    state = network.state_dict()
    assert len(state) == entries
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    if digest is not None:
        lines = "\n".join(f"{key} {'x'.join(map(str, tensor.shape))}" for key, tensor in state.items())
        assert hashlib.sha256(lines.encode()).hexdigest() == digest


@pytest.mark.shared
@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_equal_manifest_in_order(variant: str, shared: Path) -> None:
    manifest = json.loads((shared / "reference" / f"manifest_{variant}.json").read_text())
    for form, name in (("training", "training"), ("partial", "fused_partial"), ("full", "fused_full")):
        with torch.device("meta"):
            state = YoloNAS(variant, form=form).state_dict()
        found = [[key, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for key, tensor in state.items()]
        assert found == manifest[name]


def test_every_batch_norm_has_the_published_settings() -> None:
    with torch.device("meta"):
        norms = [module for module in YoloNAS("s").modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


def test_training_mode_returns_decoded_and_raw_outputs() -> None:
    network = YoloNAS("s", num_classes=3).train()
    (boxes, scores), raw = network(torch.rand(2, 3, 64, 96))
    class_logits, box_logits, anchor_boxes, points, counts, strides = raw
    assert (boxes.shape, scores.shape) == ((2, 126, 4), (2, 126, 3))
    assert (class_logits.shape, box_logits.shape) == ((2, 126, 3), (2, 126, 68))
    assert (anchor_boxes.shape, points.shape, strides.shape) == ((126, 4), (126, 2), (126, 1))
    assert counts == [96, 24, 6]
    torch.testing.assert_close(scores, class_logits.sigmoid())
    assert points[:2].tolist() == [[4.0, 4.0], [12.0, 4.0]]
    assert anchor_boxes[0].tolist() == [-16.0, -16.0, 24.0, 24.0]
    assert (points[96].tolist(), strides[96].item()) == ([8.0, 8.0], 16.0)

    (class_logits.square().mean() + box_logits.square().mean()).backward()
    untouched = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert untouched == {name for name, _ in network.named_parameters() if ".rbr_reparam." in name}
    assert all(not network.get_parameter(name).requires_grad for name in untouched)


def test_initial_values_are_those_of_training() -> None:
    network = YoloNAS("s")
    for level in (1, 2, 3):
        bias = network.get_parameter(f"heads.head{level}.cls_pred.bias")
        assert bias.tolist() == pytest.approx([-4.59512] * 80, abs=1e-5)
    alphas = [parameter for name, parameter in network.named_parameters() if name.endswith(".alpha")]
    assert len(alphas) == 20
    assert all(alpha.tolist() == [1.0] for alpha in alphas)


def test_predictions_do_not_depend_on_the_rest_of_the_batch(golden_network: Callable[[str], YoloNAS]) -> None:
    network = golden_network("s")
    x = torch.rand(3, 3, 64, 32, generator=torch.Generator().manual_seed(3)).double()
    with torch.inference_mode():
        boxes, scores = network(x)
        for index in range(3):
            alone = network(x[index : index + 1])
            torch.testing.assert_close(boxes[index : index + 1], alone[0], rtol=0, atol=1e-9)
            torch.testing.assert_close(scores[index : index + 1], alone[1], rtol=0, atol=1e-12)
        empty_boxes, empty_scores = network(x[:0])
    assert (empty_boxes.shape, empty_scores.shape) == ((0, 42, 4), (0, 42, 80))


def test_forward_heads_gives_the_maps_before_decoding(golden_network: Callable[[str], YoloNAS]) -> None:
    with torch.inference_mode():
        class_maps, box_maps = golden_network("s").forward_heads(golden_input(64, 96))
        _, scores = golden_network("s")(golden_input(64, 96))
    assert [tuple(level.shape) for level in class_maps] == [(1, 80, 8, 12), (1, 80, 4, 6), (1, 80, 2, 3)]
    assert [tuple(level.shape) for level in box_maps] == [(1, 68, 8, 12), (1, 68, 4, 6), (1, 68, 2, 3)]
    # Not bit for bit: vectorised code and the rest of a loop may round differently.
    torch.testing.assert_close(class_maps[1][0, :, 2, 1].sigmoid(), scores[0, 96 + 2 * 6 + 1], rtol=1e-14, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_built_on_meta_and_loaded_it_is_the_same_network(form: str) -> None:
    source = fuse_(YoloNAS("s", num_classes=2).eval(), form)
    with torch.device("meta"):
        network = YoloNAS("s", num_classes=2, form=form)
    network.load_state_dict(source.state_dict(), assign=True)
    network.eval()
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == {
        name for name, parameter in source.named_parameters() if parameter.requires_grad
    }
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(network(x), source(x), strict=True))


@pytest.mark.parametrize(
    ("shape", "dtype", "text"),
    [
        ((3, 64, 64), torch.float32, r"shape \(N, 3, H, W\), got \(3, 64, 64\)"),
        ((1, 4, 64, 64), torch.float32, r"shape \(N, 3, H, W\), got \(1, 4, 64, 64\)"),
        ((1, 64, 64, 3), torch.float32, r"shape \(N, 3, H, W\), got \(1, 64, 64, 3\)"),
        ((1, 3, 64, 100), torch.float32, r"multiples of 32, got \(1, 3, 64, 100\)"),
        ((1, 3, 0, 64), torch.float32, r"multiples of 32, got \(1, 3, 0, 64\)"),
        ((1, 3, 64, 64), torch.uint8, r"dtype torch.float32, got torch.uint8 \(1, 3, 64, 64\)"),
        ((1, 3, 64, 64), torch.float64, r"dtype torch.float32, got torch.float64 \(1, 3, 64, 64\)"),
    ],
)
def test_wrong_inputs_are_refused_with_their_shape(shape: tuple[int, ...], dtype: torch.dtype, text: str) -> None:
    with torch.device("meta"):
        network = YoloNAS("s").eval()
    with pytest.raises(ValueError, match=text):
        network(torch.empty(shape, dtype=dtype))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"variant": "x"}, "variant must be one of s, m, l, got 'x'"),
        ({"variant": "s", "num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"variant": "s", "form": "fused"}, "form must be one of training, partial, full, folded, got 'fused'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        YoloNAS(**arguments)


def test_half_precision_weights_give_float32_results() -> None:
    network = fill_(YoloNAS("s")).eval()
    x = golden_input(64, 64, torch.float32)
    with torch.inference_mode():
        expected_boxes, expected_scores = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            boxes, scores = network(x)
        assert boxes.dtype == scores.dtype == torch.float32
        assert (scores - expected_scores).abs().max() < 0.1
        boxes, scores = network.bfloat16()(x.bfloat16())
    assert boxes.dtype == scores.dtype == torch.float32
    assert (scores - expected_scores).abs().max() < 0.2
    assert (boxes - expected_boxes).abs().mean() < 5
