"""mAP of a real network through other runtimes is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolonas import NAS
from yolonas.export import Exporter, ExportOptions


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_map_is_the_networks(format: str, package: str, shared: Path, tmp_path: Path) -> None:
    pytest.importorskip(package)
    weights = shared / "weights" / "bccd_s.pth"
    nas = NAS(weights).fuse()
    suffix = ".onnx" if format == "onnx" else "_openvino_model"
    options = ExportOptions.of(
        format=format,
        outputs="raw",
        data=str(shared / "data" / "bccd" / "bccd.yaml"),
        save=str(tmp_path / f"cells{suffix}"),
        verbose=False,
    )
    run = Exporter(nas.model, nas.names, nas.preprocess, nas.settings, weights, options)
    run.run()
    assert run.scores is not None
    assert run.scores.pictures == 87
    assert run.scores.before[0] == pytest.approx(0.5274, abs=1e-4)
    assert run.scores.after == pytest.approx(run.scores.before, abs=1e-3)
