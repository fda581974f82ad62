"""From a JPEG file to a picture with drawn boxes, S on a CPU: how much more than the network alone is it, and where?

The network alone, the public way (`NAS(...).predict(path)`, `result.plot()`) and every stage by itself take turns in
one process, and with them, in another, the same done by hand with OpenCV and OpenVINO, which must find the same boxes.

python bench/predict.py [--save] [--rounds 9] [--model FILE] [--source FILE] [--conf 0.25]

Without --model: weights from the tests' recipe, and a conf at which 20 boxes are drawn, all of them meaningless.
Without --source: a drawn scene.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import predict_by_hand
from network_sides import not_installed
from timing import ROOT, compare, machine, save, versions

from yolonas import NAS, Results
from yolonas.config import REG_MAX, STRIDES
from yolonas.data.images import read_image
from yolonas.demo import draw_scene
from yolonas.prepare import fill_from_picture, input_shape
from yolonas.selection import select_detections

SIZE = (1080, 810)  # of the drawn scene, as a photograph from a phone in the usual example
BOXES = 20
AIM = 1.15  # times the network alone, from the file to drawn boxes
NETWORK, DRAWN, SAVED = "network alone", "`predict(file)` and `plot()`", "`predict(file, save=True)`"
BY_HAND = "OpenCV and OpenVINO by hand"
CLOSE = 0.05  # pixels between the same boxes of both
QUIET: dict[str, Any] = {"device": "cpu", "engine": "native", "verbose": False}

Side = Callable[[], Any]


def conf_for(model: NAS, path: Path, count: int) -> float:
    """A score that so many boxes of the picture are above."""
    scores = model.predict(path, conf=0.01, max_det=count + 1, **QUIET)[0].boxes.conf
    if len(scores) <= count:
        return 0.01
    return (float(scores[count - 1]) + float(scores[count])) / 2


def stages(model: NAS, path: Path) -> dict[str, Side]:
    """What `predict` and `plot` do, one by one. The first is the network alone."""
    predictor = model.predictor
    assert predictor is not None
    preprocess, settings, names = predictor.preprocess, predictor.settings, predictor.names
    picture = read_image(path)
    geometry = preprocess.plan(*picture.shape[:2])
    batch = np.empty((1, *input_shape(geometry.frame, "hwc")), np.float32)
    levels = [(1, geometry.frame[0] // stride, geometry.frame[1] // stride) for stride in STRIDES]
    cls = [np.empty((*level, len(names)), np.float32) for level in levels]
    reg = [np.empty((*level, 4 * (REG_MAX + 1)), np.float32) for level in levels]
    engine = predictor.engine.native

    def letterbox() -> None:
        fill_from_picture(batch[0], picture, geometry, preprocess, "hwc")

    def select() -> np.ndarray:
        return geometry.boxes_to_picture(select_detections(cls, reg, settings)[0])

    def results() -> Results:
        return Results(picture, str(path), names, boxes=rows)

    letterbox()
    engine.run(batch, cls, reg)
    rows = select()
    return {
        NETWORK: partial(engine.run, batch, cls, reg),
        "read the file, decode JPEG": partial(read_image, path),
        "letterbox": letterbox,
        "decode, NMS": select,
        "Results": results,
        "plot": results().plot,
    }


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether both found the same boxes, in any order: equal scores have none."""
    if ours.shape != theirs.shape:
        return False
    apart = np.abs(ours[:, None, :4] - theirs[None, :, :4]).max(axis=2)
    apart[ours[:, None, 5] != theirs[None, :, 5]] = np.inf
    return bool(
        (apart.min(axis=0, initial=np.inf) <= CLOSE).all() and (apart.min(axis=1, initial=np.inf) <= CLOSE).all()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write bench/results/predict.json")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", help="weights file; default: the tests' recipe, S")
    parser.add_argument("--source", type=Path, help="a JPEG file; default: a drawn scene")
    parser.add_argument("--conf", type=float, help=f"lowest score; default: the model's, or one for {BOXES} boxes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    if arguments.save:
        print(f"saved {save('predict', result)}")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Times, printed and as they are saved."""
    path = arguments.source or folder / "scene.jpg"
    if arguments.source is None:
        cv2.imwrite(str(path), draw_scene(*SIZE))
    elif not path.is_file() or path.read_bytes()[:2] != b"\xff\xd8":
        sys.exit(f"--source must be a JPEG file, got {path}")
    weights = arguments.model
    if weights is None:
        sys.path.append(str(ROOT / "tests"))
        from recipe_checkpoint import write

        weights = write(folder / "recipe.safetensors")
    model = NAS(weights)
    options = dict(QUIET)
    if arguments.conf is not None:
        options["conf"] = arguments.conf
    elif arguments.model is None:
        options["conf"] = conf_for(model, path, BOXES)
    found = model.predict(path, **options)[0]
    parts = stages(model, path)
    height, width = found.orig_shape

    def drawn() -> Any:
        return model.predict(path, **options)[0].plot()

    def saved() -> None:
        model.predict(path, **options, save=True, project=str(folder), name="run", exist_ok=True)

    sides: dict[str, Side] = {NETWORK: parts.pop(NETWORK), DRAWN: drawn, SAVED: saved}
    info = machine()
    missing = not_installed(("openvino",))
    with predict_by_hand.process() as pool:
        if not missing:
            settings = model.predictor.settings
            try:
                sides[BY_HAND] = predict_by_hand.start(pool, weights, path, settings, info["threads"]["yolonas"])
                if not same(np.asarray(found.boxes.data), sides[BY_HAND]()):
                    missing = "finds other boxes: the model may have other pre-processing than the published weights"
            except Exception as error:  # what OpenVINO cannot convert
                missing = f"{type(error).__name__}: {error}".splitlines()[0]
        if missing:
            sides.pop(BY_HAND, None)
        times = compare({**sides, **parts, "cv2.imread": partial(cv2.imread, str(path))}, rounds=arguments.rounds)

    alone, total = times[NETWORK]["median_ms"], times[DRAWN]["median_ms"]
    ratio = total / alone
    by_stage = {NETWORK: alone, **{name: times[name]["median_ms"] for name in parts}}
    by_stage["the rest of predict"] = total - sum(by_stage.values())
    picture = f"JPEG of {width}x{height}"
    print(f"{model!r}, {picture}, {path.stat().st_size >> 10} kB, {len(found)} boxes")
    for side in sides:
        print(f"  {side:<30} {show(times[side])}   {times[side]['median_ms'] / alone:.2f} x the network alone")
    if missing:
        print(f"  {BY_HAND:<30} left out: {missing}")
    print(f"aim for {DRAWN}: {AIM:.2f} x, {'met' if ratio <= AIM else 'not met'}\n\nits stages, each by itself:")
    for name, ms in by_stage.items():
        print(f"  {name:<30} {ms:8.2f} ms   {ms / alone:6.1%} of the network alone")
    print(f"for comparison, cv2.imread       {show(times['cv2.imread'])}")
    return {
        "machine": info,
        "versions": versions(["openvino"]),
        "command": " ".join(["python", "bench/predict.py", *sys.argv[1:]]),
        "rounds": arguments.rounds,
        "model": model.model.variant.model_name,
        "weights": "made by a recipe" if arguments.model is None else Path(arguments.model).name,
        "size": "x".join(map(str, model.preprocess.size)),
        "picture": picture,
        "picture_bytes": path.stat().st_size,
        "boxes": len(found),
        "conf": model.predictor.settings.conf,
        "network": NETWORK,
        "measured": DRAWN,
        "ratio": round(ratio, 3),
        "aim": AIM,
        "met": ratio <= AIM,
        "times": {side: times[side] for side in sides},
        "missing": {BY_HAND: missing} if missing else {},
        "stages_ms": by_stage,
        "stages": {name: times[name] for name in (*parts, "cv2.imread")},
    }


def show(times: dict[str, float]) -> str:
    return f"{times['median_ms']:8.2f} ms ({times['min_ms']:.2f} to {times['max_ms']:.2f})"


if __name__ == "__main__":
    main()
