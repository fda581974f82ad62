"""What exported files give in ONNX Runtime and OpenVINO, beside the network that they were made of.

Three things: detections of S, M and L in all precisions, of fixed and of any size, on real pictures; mAP of one model,
also with red and blue swapped on purpose; time and memory of an export.

S is MODEL; M and L have the tests' recipe weights, and as many classes.

python bench/export.py MODEL DATA [--save]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from network_sides import not_installed
from timing import ROOT, machine, save, versions

from yolonas import NAS
from yolonas.export_check import Difference, add_up, difference, measure
from yolonas.exported_engine import ExportedEngine
from yolonas.exporting.onnx_file import write_onnx
from yolonas.exporting.openvino import write_openvino
from yolonas.exporting.spec import ExportSpec
from yolonas.native_engine import NativeEngine
from yolonas.quantization import collect_histograms
from yolonas.quantization.ranges import set_ranges
from yolonas.sessions import OnnxSession, OpenVINOSession

sys.path.append(str(ROOT / "tests"))  # the recipe

PACKAGES = ("onnx", "onnxruntime", "openvino")
RUNTIMES = ("onnxruntime", "openvino")
PRECISIONS = ("fp32", "fp16", "int8")
FIXED = (640, 640)
SIZES = ((320, 320), (640, 640), (384, 640))
BATCHES = (1, 3, 8)
DETECTIONS = 40  # about so many a picture are compared


def networks(model: str) -> Iterator[NAS]:
    """S, M and L."""
    from golden_recipe import fill_

    from yolonas.nn import YoloNAS

    trained = NAS(model).fuse()
    yield trained
    for variant in ("m", "l"):
        made = NAS(fill_(YoloNAS(variant, num_classes=len(trained.names)).eval()), names=trained.names).fuse()
        made.preprocess = trained.preprocess.with_size(FIXED)
        yield made


def pictures_of(data: str, count: int) -> list[np.ndarray]:
    from yolonas.data.catalog import locate
    from yolonas.data.dataset import open_dataset

    return [cv2.imread(image.path) for image in open_dataset(locate(data), "val").images[:count]]


def quantized(nas: NAS, pictures: list[np.ndarray], folder: str, data: str) -> NAS:
    """In int8: the trained network as users do it, others with ranges of some pictures."""
    if nas.ckpt_path is not None:
        return nas.quantize(data=data, verbose=False, project=folder)
    from yolonas.prepare import fill_from_picture, input_shape

    batch = np.empty((len(pictures), *input_shape(nas.preprocess.size, "hwc")), np.float32)
    for row, picture in zip(batch, pictures, strict=True):
        fill_from_picture(row, picture, nas.preprocess.plan(*picture.shape[:2]), nas.preprocess, "hwc")
    engine = NativeEngine.of_module(nas.model)
    set_ranges(nas.model, collect_histograms(engine, [batch]))
    return nas


def session(runtime: str, onnx_file: Path, spec: ExportSpec) -> ExportedEngine:
    if runtime == "onnxruntime":
        return ExportedEngine(OnnxSession(onnx_file, spec), spec)
    with tempfile.TemporaryDirectory() as folder:
        write_openvino(Path(folder), onnx_file, spec)
        return ExportedEngine(OpenVINOSession(next(Path(folder).glob("*.xml")), spec), spec)


def agreement(nas: NAS, precision: str, pictures: list[np.ndarray]) -> Iterator[dict[str, Any]]:
    """Differences of every runtime, over all outputs, batches and sizes."""
    native = NativeEngine.of_module(nas.model)
    settings = replace(nas.settings, conf=threshold(nas, native, pictures))
    for runtime in RUNTIMES:
        found: dict[str, list[Difference]] = {"fixed": [], "any": []}
        for outputs in ("batch", "raw"):
            for kind, any_size in (("fixed", False), ("any", True)):
                spec = ExportSpec(
                    variant=nas.model.variant.name,
                    names=nas.names,
                    preprocess=nas.preprocess.with_size(FIXED),
                    settings=settings,
                    precision=precision,
                    batch=None if any_size else 1,
                    dynamic_size=any_size,
                    outputs=outputs,
                )
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder, "network.onnx")
                    write_onnx(file, nas.model, spec)
                    engine = session(runtime, file, spec)
                cases = [(size, batch) for size in SIZES for batch in BATCHES] if any_size else [(FIXED, 1)]
                for size, batch in cases:
                    found[kind].append(one_call(native, engine, replace_size(spec, size), pictures[:batch]))
        for kind, differences in found.items():
            total = add_up(differences)
            yield {"runtime": runtime, "size": kind, **vars(total), "within": total.lies_within(spec)}


def replace_size(spec: ExportSpec, size: tuple[int, int]) -> ExportSpec:
    return replace(spec, preprocess=spec.preprocess.with_size(size))


def one_call(native: NativeEngine, engine: ExportedEngine, spec: ExportSpec, pictures: list[np.ndarray]) -> Difference:
    geometries = [spec.preprocess.plan(*picture.shape[:2]) for picture in pictures]
    sides = [side.detect(pictures, geometries, spec.preprocess, spec.settings)[0] for side in (native, engine)]
    return add_up([difference(*rows, spec, spec.settings.conf) for rows in zip(*sides, strict=True)])


def threshold(nas: NAS, native: NativeEngine, pictures: list[np.ndarray]) -> float:
    """The model's own, or for made-up weights one that some detections pass."""
    if nas.ckpt_path is not None:
        return nas.settings.conf
    preprocess = nas.preprocess.with_size(FIXED)
    geometries = [preprocess.plan(*picture.shape[:2]) for picture in pictures]
    rows, _ = native.detect(pictures, geometries, preprocess, replace(nas.settings, conf=0.05))
    scores = np.sort(np.concatenate([one[:, 4] for one in rows]))[::-1]
    return float(scores[min(len(scores) - 1, DETECTIONS * len(pictures))])


def accuracy(model: str, data: str, folder: str) -> Iterator[dict[str, Any]]:
    """mAP through each runtime, and what the wrong order of channels costs."""
    nas = NAS(model).fuse()
    for precision in PRECISIONS:
        one = quantized(nas, [], folder, data) if precision == "int8" else nas
        spec = ExportSpec(
            variant=one.model.variant.name,
            names=one.names,
            preprocess=one.preprocess,
            settings=one.settings,
            precision=precision,
            batch=None,
            outputs="raw",
        )
        file = Path(folder, f"{precision}.onnx")
        write_onnx(file, one.model, spec)
        for runtime in RUNTIMES:
            engine = session(runtime, file, spec)
            scores = measured(one, engine, data)
            yield {
                "network": f"{runtime}, {precision}",
                "map": scores.after,
                "own": scores.before,
                "pictures": scores.pictures,
            }
            if (precision, runtime) == ("fp32", "onnxruntime"):
                engine.spec = replace(spec, channels="bgr")  # what the file does not take
                wrong = measured(one, engine, data)
                yield {"network": "channels in the wrong order", "map": wrong.after, "own": None}


def measured(nas: NAS, engine: ExportedEngine, data: str) -> Any:
    native = NativeEngine.of_module(nas.model)
    return measure(native, engine, engine.spec, data=data, split="val", fraction=1.0, verbose=False)


COST = """
import json, resource, sys, time
from yolonas import NAS
from yolonas.export import ExportOptions
import onnx
def peak(): return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
def now(): return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) * 1024
nas = NAS(sys.argv[1]).fuse()
weights = sum(one.numel() * one.element_size() for one in nas.model.parameters())
open("/proc/self/clear_refs", "w").write("5")
before, start = now(), time.perf_counter()
nas.export(save=sys.argv[2], check=sys.argv[3] == "check", verbose=False)
print(json.dumps({"seconds": time.perf_counter() - start, "bytes": peak() - before, "weights": weights}))
"""


def cost(model: str, folder: str) -> dict[str, Any]:
    """Seconds and memory of the export of a model that is loaded, with and without the comparison."""
    found = {}
    for what in ("write", "check"):
        words = [sys.executable, "-c", COST, model, str(Path(folder, f"{what}.onnx")), what]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        found[what] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--save", action="store_true", help="write bench/results/export.json")
    arguments = parser.parse_args()
    if absent := not_installed(PACKAGES):
        sys.exit(absent)
    pictures = pictures_of(arguments.data, max(BATCHES))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        spent = cost(arguments.model, folder)
        print(spent, flush=True)
        scores = list(accuracy(arguments.model, arguments.data, folder))
        for row in scores:
            print(row, flush=True)
        for nas in networks(arguments.model):
            for precision in PRECISIONS:
                one = quantized(nas, pictures, folder, arguments.data) if precision == "int8" else nas
                for row in agreement(one, precision, pictures):
                    rows.append({"network": nas.model.variant.name.upper(), "precision": precision, **row})
                    print(rows[-1], flush=True)
    if arguments.save:
        result = {
            "model": Path(arguments.model).name,
            "data": Path(arguments.data).name,
            "pictures": scores[0]["pictures"],
            "sizes": SIZES,
            "batches": BATCHES,
            "rows": rows,
            "accuracy": scores,
            "cost": spent,
            "machine": machine(),
            "versions": versions(PACKAGES),
        }
        print(f"saved {save('export', result)}")


if __name__ == "__main__":
    main()
