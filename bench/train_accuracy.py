"""mAP that training gives on a real data set: from random weights, from a checkpoint, and with coarse weights.

Three trainings, each with the settings below, as `yolonas train` makes them:
  scratch    S from random weights;
  tuned      a checkpoint of the same classes, trained further;
  quantised  the same checkpoint with weights of 4 bits in the integer engine: as they are rounded, and trained so.
All are measured on the val part of the data at the checkpoint's input size, by the native engine.

python bench/train_accuracy.py DATA CHECKPOINT [--parts scratch,tuned,quantised] [--run FOLDER] [--save NAME]

`--run` takes the best weights of a finished run for the part `scratch`, with the settings that are in its folder.
`--save` keeps what is in the file already of parts that are not run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml
from timing import ROOT, machine, save, versions

from yolonas import NAS
from yolonas.training.fake_quant import finish, prepare

# Cells lie any way up, and their colour tells them apart: no mixing, no swapped channels, flips both ways.
PICTURES = {"augment": "coco", "mixup": 0.0, "bgr": 0.0, "flipud": 0.5}
SCRATCH = {"recipe": "coco", "epochs": 50, "imgsz": 224, "batch": 8, "lr0": 7e-4, **PICTURES}
TUNED = {"recipe": "fine-tuning", "epochs": 12, "batch": 8, "lr0": 2e-4, "ema": 0.999, "min_samples": 0, **PICTURES}
QUANTISED = {"recipe": "qat", "epochs": 5, "batch": 8, "lr0": 3e-4, "min_samples": 0, **PICTURES}
BITS = 4
SHOWN = ("model", "recipe", "epochs", "imgsz", "batch", "lr0", "precision", "weight_bits")


def measured(model: NAS, data: str, size: tuple[int, int]) -> dict[str, float]:
    box = model.val(data=data, imgsz=size, plots=False, verbose=False, project=tempfile.mkdtemp()).box
    return {"map": float(box.map), "map50": float(box.map50), "map75": float(box.map75)}


def trained(model: NAS, data: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    model.train(data=data, project=str(folder), plots=False, **settings)
    assert model.trainer is not None
    return of_run(model.trainer.save_dir)


def of_run(folder: Path) -> dict[str, Any]:
    """Settings and time of a finished run, and the file of its best epoch."""
    stated = yaml.safe_load((folder / "args.yaml").read_text(encoding="utf-8"))
    last = (folder / "results.csv").read_text(encoding="utf-8").splitlines()[-1].split(",")
    return {
        "settings": {name: stated.get(name) for name in SHOWN} | {"used": stated["used"]},
        "seconds": float(last[1]),
        "best": str(folder / "weights" / "best.safetensors"),
    }


def scratch(data: str, checkpoint: str, folder: Path, precision: str | None, run: Path | None) -> dict[str, Any]:
    size = NAS(checkpoint).preprocess.size
    if run is None:
        settings = {**SCRATCH, "precision": precision}
        about = trained(NAS("yolo_nas_s.yaml"), data, folder, settings)
    else:
        about = of_run(run)
    return {**about, "size": size, "after": measured(NAS(about["best"]), data, size)}


def tuned(data: str, checkpoint: str, folder: Path, precision: str | None, _: Path | None) -> dict[str, Any]:
    model = NAS(checkpoint)
    size = model.preprocess.size
    before = measured(NAS(checkpoint), data, size)
    about = trained(model, data, folder, {**TUNED, "precision": precision})
    return {**about, "size": size, "before": before, "after": measured(model, data, size)}


def quantised(data: str, checkpoint: str, folder: Path, _: str | None, __: Path | None) -> dict[str, Any]:
    model = NAS(checkpoint)
    size = model.preprocess.size
    whole = measured(NAS(checkpoint), data, size)
    model = model.quantize(data=data, project=str(folder), verbose=False)
    eight = measured(model, data, size)
    coarse = NAS(finish(prepare(model.model, weight_bits=BITS)), names=model.names)
    coarse.preprocess, coarse.settings = model.preprocess, model.settings
    before = measured(coarse, data, size)
    about = trained(model, data, folder, {**QUANTISED, "weight_bits": BITS})
    return {
        **about,
        "size": size,
        "float32": whole,
        "int8": eight,
        "before": before,
        "after": measured(model, data, size),
    }


PARTS = {"scratch": scratch, "tuned": tuned, "quantised": quantised}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("checkpoint")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--run", type=Path)
    parser.add_argument("--precision", help="of the trainings in float, such as bf16")
    parser.add_argument("--save", metavar="NAME", help="write results/train_NAME.json")
    arguments = parser.parse_args()
    wanted = arguments.parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"--parts must be of {', '.join(PARTS)}, got {', '.join(unknown)}")
    name = f"train_{arguments.save}"
    kept = ROOT / "bench" / "results" / f"{name}.json"
    result: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if arguments.save and kept.exists() else {}
    result.setdefault("parts", {})
    for part in wanted:
        with tempfile.TemporaryDirectory() as folder:
            found = PARTS[part](arguments.data, arguments.checkpoint, Path(folder), arguments.precision, arguments.run)
        del found["best"]
        found["settings"]["model"] = Path(found["settings"]["model"]).name
        result["parts"][part] = {**found, "commit": machine()["commit"]}
        print(part, json.dumps(result["parts"][part], indent=1))
        if arguments.save:  # after each part: they take long
            result |= {"data": Path(arguments.data).stem, "checkpoint": Path(arguments.checkpoint).name}
            result |= {"machine": {**machine(), **versions(("torch", "numpy", "opencv-python", "pycocotools"))}}
            save(name, result)


if __name__ == "__main__":
    main()
