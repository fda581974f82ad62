"""mAP of one model in int8: ours beside OpenVINO's after NNCF, and both in float32; and what ours takes to calibrate.

All sides calibrate with the same pictures of the data, and share the preparation of pictures, the selection of
detections and the evaluation: only the network differs.

python bench/int8_accuracy.py MODEL DATA [--pictures 128] [--save NAME]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from network_files import flat
from network_sides import not_installed
from timing import compare, machine, save, versions

from yolonas import NAS
from yolonas.config import DetectSettings
from yolonas.native_engine import CpuDevice, NativeEngine
from yolonas.quantization import collect_histograms
from yolonas.quantization.pictures import Reading
from yolonas.quantization.ranges import set_ranges
from yolonas.quantize import QuantizeOptions
from yolonas.quantize_setup import set_up
from yolonas.selection import select_detections
from yolonas.val import Validator, ValOptions

PRESETS = {"OpenVINO int8": "performance", "OpenVINO int8, mixed preset": "mixed"}
PACKAGES = ("nncf", "openvino")


class OpenVINOEngine:
    """OpenVINO's network in the place of an engine of ours, as far as an evaluation needs one."""

    name, layout, half, device = "openvino", "chw", False, CpuDevice()

    def __init__(self, network: Any):
        import openvino

        options = {"INFERENCE_PRECISION_HINT": "f32"}
        self._request = openvino.Core().compile_model(network, "CPU", options).create_infer_request()

    def heads(self, batch: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        pictures = []
        for one in batch:
            self._request.infer([one[None]])
            pictures.append([self._request.get_output_tensor(number).data.copy() for number in range(6)])
        levels = [
            np.ascontiguousarray(np.concatenate(level).transpose(0, 2, 3, 1)) for level in zip(*pictures, strict=True)
        ]
        return levels[:3], levels[3:]

    def select(self, cls: list[np.ndarray], reg: list[np.ndarray], settings: DetectSettings) -> list[np.ndarray]:
        return select_detections(cls, reg, settings)


def openvino_network(model: NAS) -> Any:
    """OpenVINO's form of a fused model."""
    import openvino
    import torch

    shape = [1, 3, *model.preprocess.size]
    network = openvino.convert_model(flat(model.model), example_input=torch.zeros(shape))
    network.reshape(shape)
    return network


def openvino_int8(model: NAS, pictures: list[np.ndarray], preset: str) -> Any:
    """The same quantised by NNCF with the settings that it has unasked."""
    import nncf

    inputs = [np.ascontiguousarray(x.transpose(0, 3, 1, 2)) for x in pictures]
    chosen = {"preset": nncf.QuantizationPreset(preset), "subset_size": len(inputs)}
    return nncf.quantize(openvino_network(model), nncf.Dataset(inputs), **chosen)


def calibration(model: NAS, pictures: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Times of the float network on the pictures, and of finding ranges from them."""
    engine = NativeEngine.of_module(model.model)
    batches = [np.concatenate(pictures[begin : begin + 16]) for begin in range(0, len(pictures), 16)]

    def run() -> None:
        for batch in batches:
            engine.heads(batch)

    def calibrate() -> None:
        set_ranges(copy.deepcopy(model.model), collect_histograms(engine, batches))

    run()
    return compare({"network": run, "calibration": calibrate}, rounds=5, repeats=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--pictures", type=int, default=128, help="to calibrate with")
    parser.add_argument("--save", metavar="NAME", help="write bench/results/int8_accuracy_NAME.json")
    arguments = parser.parse_args()
    model = NAS(arguments.model).fuse()
    asked = {"data": arguments.data, "n": arguments.pictures, "verbose": False}
    setup = set_up(QuantizeOptions.of(**asked, batch=1), model.names, model.preprocess)
    pictures = list(setup.calibration_batches(Reading()))
    times = calibration(model, pictures)
    ratio = times["calibration"]["median_ms"] / times["network"]["median_ms"]
    print(f"ranges of {len(pictures)} pictures: {ratio:.2f} times the float network on them", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        engines: dict[str, Callable[[], Any]] = {
            "yolonas": lambda: NativeEngine.of_module(model.model),
            "yolonas int8": lambda: NativeEngine.of_module(model.quantize(**asked, project=folder).model),
        }
        if absent := not_installed(PACKAGES):
            print(f"OpenVINO is left out: {absent}")
        else:
            engines["OpenVINO"] = lambda: OpenVINOEngine(openvino_network(model))
            for side, preset in PRESETS.items():
                engines[side] = lambda preset=preset: OpenVINOEngine(openvino_int8(model, pictures, preset))
        rows = []
        for side, engine in engines.items():
            options = ValOptions.of(data=arguments.data, project=folder, name=side, plots=False, verbose=False)
            run = Validator(engine(), dict(model.names), model.preprocess, side, arguments.model, options)
            coco = run.run().coco
            rows.append({"side": side, "coco": coco})
            figures = (f"{name} {coco[name]:.4f}" for name in ("AP", "AP50", "AP75"))
            print(f"{side:<28} {', '.join(figures)}", flush=True)
    if arguments.save:
        result = {
            "command": f"bench/int8_accuracy.py {Path(arguments.model).name} {Path(arguments.data).name}",
            "model": Path(arguments.model).name,
            "data": Path(arguments.data).name,
            "calibration": f"{len(pictures)} of {setup.offered} pictures of {setup.source}",
            "calibration_times": times,
            "pictures": run.seen,
            "rows": rows,
            "machine": machine(),
            "versions": versions(PACKAGES),
        }
        print(f"saved {save(f'int8_accuracy_{arguments.save}', result)}")


if __name__ == "__main__":
    main()
