"""The lowered graph computes what the modules compute, and is what the native engine expects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_recipe import fill_

from yolonas.config import VARIANTS
from yolonas.info import count_layers
from yolonas.lowering import Buffer, Graph, View, lower
from yolonas.nn import YoloNAS, fuse_
from yolonas.quantization.reference import run_fake_quantized


@pytest.fixture(scope="module", params=VARIANTS)
def network(request: pytest.FixtureRequest) -> YoloNAS:
    return fuse_(fill_(YoloNAS(request.param, num_classes=7).double()).eval())


def test_graph_computes_what_the_modules_compute(network: YoloNAS) -> None:
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).double()
    with torch.inference_mode():
        expected = network.forward_heads(x)
    graph = lower(network)
    found = run_fake_quantized(graph, x.permute(0, 2, 3, 1).numpy())
    for kind, levels in zip(("cls", "reg"), expected, strict=True):
        for number, level in enumerate(levels):
            name = f"heads.head{number + 1}.{kind}_pred"
            assert [step["output"] for step in graph.steps if step["name"] == name] == [graph.outputs[number][kind]]
            torch.testing.assert_close(torch.from_numpy(found[name]).permute(0, 3, 1, 2), level, rtol=1e-10, atol=1e-10)


def test_every_multiplication_of_the_modules_is_in_the_graph(network: YoloNAS) -> None:
    """And none twice: the sums of the weights and of the arithmetic are those of the modules."""
    graph = lower(network)
    taken = sum(step["weight"].size + step["bias"].size for step in graph.steps if "weight" in step)
    scalars = sum(parameter.numel() for name, parameter in network.named_parameters() if name.endswith(".alpha"))
    assert taken == sum(parameter.numel() for parameter in network.parameters()) - scalars
    convolutions = sum("Conv" in layer.kind for layer in count_layers(network, (64, 64)))
    merged = sum("+" in step["name"] for step in graph.steps)
    assert sum("weight" in step for step in graph.steps) == convolutions - merged


def test_views_lie_inside_their_buffers_and_steps_do_not_overwrite_their_input(network: YoloNAS) -> None:
    graph = lower(network)
    assert graph.buffers[0] == Buffer(0, 3)
    written: list[set[int]] = [set() for _ in graph.buffers]
    written[0] = {0, 1, 2}
    for step in graph.steps:
        for view in (step["input"], step["output"], step.get("residual")):
            if view is not None:
                assert 0 <= view.offset < view.offset + view.channels <= graph.buffers[view.buffer].channels
        source, out = step["input"], step["output"]
        assert written[source.buffer] >= channels(source), f"{step['name']} reads what nothing has written"
        assert source.buffer != out.buffer or not channels(source) & channels(out)
        in_place = step.get("residual") == out
        assert in_place or not written[out.buffer] & channels(out), f"{step['name']} overwrites"
        written[out.buffer] |= channels(out)
    assert [len(found) for found in written] == [buffer.channels for buffer in graph.buffers]  # no buffer is too wide
    assert len({step["name"] for step in graph.steps}) == len(graph.steps)


def channels(view: View) -> set[int]:
    return set(range(view.offset, view.offset + view.channels))


def test_outputs_are_the_three_levels(network: YoloNAS) -> None:
    graph = lower(network)
    assert [level["stride"] for level in graph.outputs] == [8, 16, 32]
    for level in graph.outputs:
        assert (level["cls"].channels, level["reg"].channels) == (7, 68)
        assert 2 ** graph.downscale(level["cls"]) == level["stride"]


def test_weights_keep_their_dtype_and_are_contiguous() -> None:
    network = fuse_(YoloNAS("s", num_classes=2).eval()).to(memory_format=torch.channels_last)
    graph = lower(network)
    for step in graph.steps:
        for key in ("weight", "bias"):
            if key in step:
                assert step[key].dtype == np.float32
                assert step[key].flags.c_contiguous


def test_steps_name_the_modules_whose_outputs_they_compute(network: YoloNAS) -> None:
    convolutions = {
        module for module in network.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
    }
    found = [module for step in lower(network).steps for module in step.get("modules", ())]
    assert len(found) == len(convolutions)
    assert set(found) == convolutions
    for step in lower(network).steps:
        if step["op"] != "max_pool5":
            assert np.array_equal(step["bias"], np.concatenate([module.bias for module in step["modules"]]))
            assert step["weight_scale"] is None


def test_weight_scales_are_those_of_the_modules() -> None:
    network = fuse_(YoloNAS("s", num_classes=2).eval())
    first, second = network.heads.head2.cls_convs[0].seq.conv, network.heads.head2.reg_convs[0].seq.conv
    network.neck.neck1.upsample.register_buffer("weight_scale", torch.rand(192))
    first.register_buffer("weight_scale", torch.rand(128))
    name, up = "heads.head2.cls_convs+reg_convs", "neck.neck1.upsample"
    steps = {step["name"]: step for step in lower(network).steps}
    assert np.array_equal(steps.pop(up)["weight_scale"], network.neck.neck1.upsample.weight_scale)
    assert all(step.get("weight_scale") is None for step in steps.values())
    second.register_buffer("weight_scale", torch.rand(128))
    steps = {step["name"]: step for step in lower(network).steps}
    assert np.array_equal(steps[name]["weight_scale"], torch.cat([first.weight_scale, second.weight_scale]))
    assert sum(step.get("weight_scale") is not None for step in steps.values()) == 2


def test_other_forms_are_refused() -> None:
    with torch.device("meta"):
        network = YoloNAS("s", form="full")
    with pytest.raises(ValueError, match="lower: model must be in folded form, got 'full'"):
        lower(network)


def test_views() -> None:
    graph = Graph()
    view = graph.buffer(2, 10)
    assert view == (0, 0, 10)
    assert view.part(4, 6).part(1, 2) == (0, 5, 2)
    assert view.split(3, 7) == [(0, 0, 3), (0, 3, 7)]
