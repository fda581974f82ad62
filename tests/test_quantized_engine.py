"""Quantised networks in the native engine: the bits of the plain integer reference, S, M and L."""

from __future__ import annotations

import numpy as np
import pytest
from harness import ISAS, runs_here, using_isa, using_threads
from quantized_networks import narrow, picture, quantize_

from yolonas.config import VARIANTS
from yolonas.lowering import lower
from yolonas.native_engine import NativeEngine
from yolonas.nn import YoloNAS
from yolonas.quantization.reference import run_integer
from yolonas.quantized_graph import quantized_graph

X = picture(2, 64, 96)


@pytest.fixture(scope="module", params=VARIANTS)
def network(request: pytest.FixtureRequest) -> YoloNAS:
    return quantize_(narrow(request.param), X)


def heads(network: YoloNAS, x: np.ndarray = X) -> list[np.ndarray]:
    cls, reg = NativeEngine.of_module(network).heads(x)
    return [level for pair in zip(cls, reg, strict=True) for level in pair]


def test_every_bit_of_every_head_output(network: YoloNAS) -> None:
    graph = quantized_graph(lower(network), network.activation_scales)
    written = run_integer(graph, X)
    expected = [written[f"heads.head{level}.{kind}_pred"] for level in (1, 2, 3) for kind in ("cls", "reg")]
    for isa in filter(runs_here, ISAS):
        for threads in (1, 2):
            with using_isa(isa), using_threads(threads):
                for one, other in zip(heads(network), expected, strict=True):
                    np.testing.assert_array_equal(one, other)
