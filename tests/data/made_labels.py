"""Data sets made on the spot. Pictures are empty files: no test of labels opens them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 11, "name": "cow"}]
NAMES = ["cat", "dog", "cow"]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def yolo_set(root: Path, labels: Mapping[str, str | bytes | None], *, yaml: str = "") -> Path:
    """A yaml with `val: images/val` and three classes. `labels`: text by stem, None for no label file."""
    for stem, text in labels.items():
        touch(root / f"images/val/{stem}.jpg")
        if text is not None:
            write(root / f"labels/val/{stem}.txt", text)
    return write(root / f"{root.name}.yaml", yaml or "val: images/val\nnames: [cat, dog, cow]\n")


def annotation(image: Any, category: Any, box: Any, **others: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "iscrowd": 0, **others}


def instances(pictures: Mapping[Any, str], annotations: list[Any], **others: Any) -> dict[str, Any]:
    """Content of an instances file; the pictures are 200 pixels wide and 100 high."""
    listed = [{"id": key, "file_name": name, "width": 200, "height": 100} for key, name in pictures.items()]
    return {"images": listed, "annotations": annotations, "categories": CATEGORIES, **others}


def write_json(path: Path, content: Any) -> Path:
    return write(path, json.dumps(content))
