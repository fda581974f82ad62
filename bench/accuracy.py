"""mAP of one model on one data set under each protocol: `python bench/accuracy.py MODEL DATA [--save NAME]`.

`--save bccd` writes `results/accuracy_bccd.json`, from which `report.py` prints the README's table, and the
precision-recall curve of the first protocol to `results/accuracy_bccd.png`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from timing import ROOT, machine, save

from yolonas import NAS

PROTOCOLS: tuple[dict[str, Any], ...] = (
    {"protocol": "sg"},
    {"protocol": "sg", "rect": True},
    {"protocol": "ultralytics"},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--save", metavar="NAME")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, options in enumerate(PROTOCOLS):
            name = ", ".join("rect" if value is True else str(value) for value in options.values())
            metrics = NAS(arguments.model).val(data=arguments.data, project=folder, name=str(number), **options)
            values = {"precision": metrics.box.mp, "recall": metrics.box.mr, "threshold": metrics.threshold}
            rows.append({"name": name, "protocol": metrics.protocol, "coco": metrics.coco, **values})
            if arguments.save and number == 0:
                (ROOT / "bench" / "results").mkdir(exist_ok=True)
                target = ROOT / "bench" / "results" / f"accuracy_{arguments.save}.png"
                shutil.copy(Path(folder) / "0" / "BoxPR_curve.png", target)
    result = {
        "command": f"bench/accuracy.py {Path(arguments.model).name} {Path(arguments.data).name}",
        "model": Path(arguments.model).name,
        "data": Path(arguments.data).name,
        "pictures": metrics.seen,
        "boxes": int(metrics.nt_per_class.sum()),
        "rows": rows,
        "machine": machine(),
    }
    if arguments.save:
        print(f"saved to {save(f'accuracy_{arguments.save}', result)}")


if __name__ == "__main__":
    main()
