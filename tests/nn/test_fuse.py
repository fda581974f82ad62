"""Fusing whole networks: same function, keys of the form, in place, one block at a time, and what is refused."""

from __future__ import annotations

import copy
import weakref
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_numbers import ANCHORS, NETWORKS
from golden_recipe import fill_, make_input

from yolonas.nn import FORMS, YoloNAS, fuse, fuse_, state_dict_form
from yolonas.nn.blocks import QARepVGG

PAIRS = [(start, end) for start in FORMS for end in FORMS if FORMS.index(start) <= FORMS.index(end)]


@cache
def golden_network() -> YoloNAS:
    return fill_(YoloNAS("s").double()).eval()


@cache
def golden_outputs() -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        return golden_network()(torch.from_numpy(make_input(0, (1, 3, 96, 64))).double())


@pytest.mark.parametrize(("start", "end"), PAIRS)
def test_every_step_keeps_the_function_and_reaches_the_form(start: str, end: str) -> None:
    network = fuse_(copy.deepcopy(golden_network()), start)
    assert fuse_(network, end) is network
    assert network.form == end
    with torch.device("meta"):
        built = YoloNAS("s", form=end)
    assert list(network.state_dict()) == list(built.state_dict())
    assert state_dict_form(network.state_dict()) == end
    assert {block.form for block in network.modules() if isinstance(block, QARepVGG)} == {end}
    with torch.inference_mode():
        boxes, scores = network(torch.from_numpy(make_input(0, (1, 3, 96, 64))).double())
    torch.testing.assert_close(boxes, golden_outputs()[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(scores, golden_outputs()[1], rtol=0, atol=1e-12)


def test_folded_float32_network_equals_golden_numbers() -> None:
    network = fuse_(fill_(YoloNAS("s")).eval())
    assert network.form == "folded"
    with torch.inference_mode():
        boxes, scores = network(torch.from_numpy(make_input(0, (1, 3, 320, 320))))
    np.testing.assert_allclose(boxes[0, list(ANCHORS)], NETWORKS["s"]["boxes"], rtol=0, atol=3e-3)
    np.testing.assert_allclose(scores[0, list(ANCHORS), :4], NETWORKS["s"]["scores"], rtol=0, atol=1e-5)


@pytest.mark.shared
@pytest.mark.parametrize("form", ["partial", "full"])
def test_fused_kernels_equal_golden(form: str, shared: Path) -> None:
    network = fuse_(copy.deepcopy(golden_network()), form)
    state = network.state_dict()
    with np.load(shared / "reference" / "goldens_s_320x320.npz") as golden:
        names = [name for name in golden if name.startswith(f"fused_{form}/")]
        assert len(names) == 6
        for name in names:
            actual = state[name.removeprefix(f"fused_{form}/")]
            np.testing.assert_allclose(actual, golden[name], rtol=2e-7, atol=1e-7, err_msg=name)


def test_fusing_twice_changes_nothing() -> None:
    network = fuse_(copy.deepcopy(golden_network()), "folded")
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    fuse_(network, "folded")
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("form", ["partial", "full", "folded"])
def test_old_tensors_are_let_go_block_by_block(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = copy.deepcopy(golden_network())
    seen: list[weakref.ref] = []
    merge = fuse.merge_branches

    def merge_and_watch(block: QARepVGG) -> tuple[torch.Tensor, torch.Tensor]:
        assert not any(ref() is not None for ref in seen), "a block that was fused before still has its branches"
        seen.append(weakref.ref(block.branch_3x3.conv.weight))
        return merge(block)

    monkeypatch.setattr(fuse, "merge_branches", merge_and_watch)
    fuse_(network, form)
    assert len(seen) == 37


def test_alphas_survive_and_stay_on_the_shortcut() -> None:
    state = fuse_(copy.deepcopy(golden_network())).state_dict()
    alphas = [key for key in state if key.endswith(".alpha")]
    assert len(alphas) == 20
    assert all(torch.equal(state[key], golden_network().state_dict()[key]) for key in alphas)


@pytest.mark.parametrize("form", FORMS)
def test_only_training_and_partial_take_gradients(form: str) -> None:
    network = fuse_(copy.deepcopy(golden_network()), form)
    with torch.device("meta"):
        built = YoloNAS("s", form=form)
    for model in (network, built):
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert bool(trainable) == (form in ("training", "partial"))
        assert any(".rbr_reparam." in name for name in trainable) == (form == "partial")


def test_a_partially_fused_network_trains() -> None:
    network = fuse_(YoloNAS("s", num_classes=2).eval(), "partial").train()
    _, raw = network(torch.rand(2, 3, 64, 64))
    (raw[0].square().mean() + raw[1].square().mean()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_float16_weights_are_fused_in_float64() -> None:
    half = YoloNAS("s", num_classes=1).eval().half()
    double = copy.deepcopy(half).double()
    expected = {key: tensor.half() for key, tensor in fuse_(double).state_dict().items()}
    assert all(torch.equal(tensor, expected[key]) for key, tensor in fuse_(half).state_dict().items())


def test_fusing_cannot_be_undone() -> None:
    network = fuse_(copy.deepcopy(golden_network()), "full")
    with pytest.raises(ValueError, match="must not be before the model's form 'full', got 'partial'"):
        fuse_(network, "partial")
    assert network.form == "full"


def test_unknown_forms_are_refused() -> None:
    with pytest.raises(ValueError, match="form must be one of training, partial, full, folded, got 'fused'"):
        fuse_(copy.deepcopy(golden_network()), "fused")


def test_training_mode_is_refused_even_in_a_part() -> None:
    network = copy.deepcopy(golden_network())
    network.heads.head2.train()
    with pytest.raises(ValueError, match=r"model must be in eval mode.*call model.eval\(\) first"):
        fuse_(network)
    assert state_dict_form(network.state_dict()) == "training"


@pytest.mark.parametrize(
    ("keys", "form"),
    [
        (["backbone.stem.conv.branch_3x3.conv.weight", "backbone.stem.conv.post_bn.weight"], "training"),
        (["backbone.stem.conv.post_bn.weight", "backbone.stage1.blocks.conv1.bn.weight"], "partial"),
        (["backbone.stem.conv.rbr_reparam.weight", "backbone.stage1.blocks.conv1.bn.weight"], "full"),
        (["backbone.stem.conv.rbr_reparam.weight", "backbone.stage1.blocks.conv1.conv.bias"], "folded"),
    ],
)
def test_the_form_is_read_from_the_keys(keys: list[str], form: str) -> None:
    assert state_dict_form(iter(keys)) == form
