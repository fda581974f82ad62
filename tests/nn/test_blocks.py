"""The blocks, one by one, against the golden file, and fused against unfused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_recipe import fill_
from torch import nn

from yolonas.config import StageConfig
from yolonas.nn.blocks import SPP, Bottleneck, ConvUnit, CSPLayer, QARepVGG
from yolonas.nn.fuse import fuse_block_
from yolonas.nn.neck import DownStage, UpStage

QAREPVGG = {
    "qrep_id": {"channels": (8, 8), "identity": True},
    "qrep_noid": {"channels": (6, 8)},
    "qrep_s2": {"channels": (6, 8), "stride": 2},
    "qrep_groups": {"channels": (8, 8), "groups": 4, "identity": True},
    "qrep_groups_s2": {"channels": (8, 12), "groups": 2, "stride": 2},
    "qrep_alpha": {"channels": (8, 8), "identity": True, "learn_alpha": True},
    "qrep_nopostbn": {"channels": (8, 8), "identity": True, "post_bn": False},
    "qrep_no1x1bias": {"channels": (8, 8), "identity": True, "bias_1x1": False},
    "qrep_dil2": {"channels": (8, 8), "identity": True, "dilation": 2},
}

STAGE = StageConfig(8, blocks=2, hidden=4)
COMPOSED = {
    "csp_plain": lambda: CSPLayer(8, 10, 2, 6),
    "csp_concat": lambda: CSPLayer(8, 10, 2, 6, concat=True),
    "spp": lambda: SPP(8, 4, 10, (5, 9, 13)),
    "up": lambda: UpStage(12, (10, 6), STAGE),
    "down": lambda: DownStage(6, 5, STAGE),
}


@pytest.fixture(scope="module")
def goldens(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "reference" / "goldens_blocks.npz") as file:
        return dict(file)


def make_qarepvgg(name: str) -> QARepVGG:
    settings = dict(QAREPVGG[name])
    block = QARepVGG(*settings.pop("channels"), **settings)
    return fill_(block.double(), prefix=f"{name}.").eval()


def close(actual: torch.Tensor, expected: np.ndarray) -> None:
    """The golden arrays are float64 results stored in float32."""
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=2e-7, atol=2e-7)


@pytest.mark.shared
@pytest.mark.parametrize("name", QAREPVGG)
def test_qarepvgg_equals_golden_in_every_form(name: str, goldens: dict[str, np.ndarray]) -> None:
    block = make_qarepvgg(name)
    x = torch.from_numpy(goldens[f"{name}/x"]).double()
    close(block(x), goldens[f"{name}/y"])
    fuse_block_(block, "partial")
    close(block.rbr_reparam.weight, goldens[f"{name}/partial_weight"])
    close(block.rbr_reparam.bias, goldens[f"{name}/partial_bias"])
    close(block(x), goldens[f"{name}/y"])
    fuse_block_(block, "full")
    close(block.rbr_reparam.weight, goldens[f"{name}/full_weight"])
    close(block.rbr_reparam.bias, goldens[f"{name}/full_bias"])
    close(block(x), goldens[f"{name}/y"])


@pytest.mark.shared
@pytest.mark.parametrize("name", QAREPVGG)
def test_qarepvgg_in_training_mode_equals_golden(name: str, goldens: dict[str, np.ndarray]) -> None:
    block = make_qarepvgg(name).train()
    x = torch.from_numpy(goldens[f"{name}/x"]).double()
    close(block(x), goldens[f"{name}/y_train"])
    close(block.branch_3x3.bn.running_mean, goldens[f"{name}/train_running_mean"])
    close(block.branch_3x3.bn.running_var, goldens[f"{name}/train_running_var"])


@pytest.mark.shared
@pytest.mark.parametrize("name", COMPOSED)
def test_composed_block_equals_golden(name: str, goldens: dict[str, np.ndarray]) -> None:
    block = fill_(COMPOSED[name]().double(), prefix=f"{name}.").eval()
    assert list(block.state_dict()) == goldens[f"{name}/keys"].tolist()
    inputs = [torch.from_numpy(goldens[key]).double() for key in sorted(goldens) if key.startswith(f"{name}/x")]
    outputs = block(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    expected = [goldens[key] for key in sorted(goldens) if key.startswith(f"{name}/y")]
    assert len(outputs) == len(expected)
    for actual, wanted in zip(outputs, expected, strict=True):
        close(actual, wanted)


@pytest.mark.shared
def test_all_golden_blocks_are_tested(goldens: dict[str, np.ndarray]) -> None:
    assert {*QAREPVGG, *COMPOSED} == set(goldens["names"].tolist())


@pytest.mark.parametrize("form", ["partial", "full", "folded"])
@pytest.mark.parametrize("name", QAREPVGG)
@pytest.mark.parametrize("size", [(1, 1), (7, 4)])
def test_fused_qarepvgg_is_the_same_function(name: str, form: str, size: tuple[int, int]) -> None:
    block = make_qarepvgg(name)
    x = torch.randn(2, QAREPVGG[name]["channels"][0], *size, generator=torch.Generator().manual_seed(1)).double()
    expected = block(x)
    fuse_block_(block, form)
    assert block.form == form
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["partial", "full"])
@pytest.mark.parametrize("name", QAREPVGG)
def test_qarepvgg_built_in_a_form_takes_the_fused_state(name: str, form: str) -> None:
    fused = make_qarepvgg(name)
    fuse_block_(fused, form)
    settings = dict(QAREPVGG[name])
    built = QARepVGG(*settings.pop("channels"), **settings, form=form).double().eval()
    built.load_state_dict(fused.state_dict())
    x = torch.ones(1, QAREPVGG[name]["channels"][0], 5, 5, dtype=torch.float64)
    assert torch.equal(built(x), fused(x))


def test_qarepvgg_ignores_the_placeholder_kernel_in_training_form() -> None:
    block = make_qarepvgg("qrep_id")
    x = torch.ones(1, 8, 4, 4, dtype=torch.float64)
    expected = block(x)
    nn.init.constant_(block.rbr_reparam.weight, float("nan"))
    assert torch.equal(block(x), expected)
    assert not block.rbr_reparam.weight.requires_grad
    fuse_block_(block, "partial")
    assert block.rbr_reparam.weight.requires_grad
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("channels_out", "stride"), [(9, 1), (8, 2)])
def test_qarepvgg_refuses_an_impossible_identity(channels_out: int, stride: int) -> None:
    with pytest.raises(ValueError, match=f"equal channels and stride 1, got 8 -> {channels_out}, stride {stride}"):
        QARepVGG(8, channels_out, stride, identity=True)


def test_bottleneck_scales_the_shortcut() -> None:
    block = Bottleneck(4, rep=False).eval()
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        branch = block.cv2(block.cv1(x))
        block.alpha.fill_(0.25)
        assert torch.equal(block(x), 0.25 * x + branch)


def test_csp_layer_joins_the_plain_path_last() -> None:
    layer = CSPLayer(3, 4, 2, 5, concat=True, rep=False).eval()
    joined = []
    layer.conv3.register_forward_pre_hook(lambda _, inputs: joined.append(inputs[0]))
    x = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        layer(x)
        first = layer.conv1(x)
        second = layer.bottlenecks[0](first)
        third = layer.bottlenecks[1](second)
        assert torch.equal(joined[0], torch.cat([first, second, third, layer.conv2(x)], dim=1))


@pytest.mark.parametrize("form", ["training", "folded"])
def test_conv_unit_has_either_a_batch_norm_or_a_bias(form: str) -> None:
    unit = ConvUnit(3, 4, 3, form=form)
    assert (unit.bn is None) == (unit.conv.bias is not None) == (form == "folded")
