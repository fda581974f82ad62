"""What one would write without this library: OpenCV around OpenVINO's network, in a process of its own.

Like the sides of the network benchmark: thread pools that spin would disturb the others.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from yolonas import NAS
from yolonas.config import DetectSettings
from yolonas.preprocess import Preprocess

Side = Callable[[], np.ndarray]
READY: list[Side] = []  # in that process


def start(pool: ProcessPoolExecutor, weights: str | Path, source: Path, settings: DetectSettings, threads: int) -> Side:
    """What reads, detects and draws in the only process of a pool.

    It returns `(n, 6)` rows x1, y1, x2, y2, score, class, in the picture's pixels.
    """
    pool.submit(prepare, weights, source, settings, threads).result()
    return lambda: pool.submit(run).result()


def process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def run() -> np.ndarray:
    return READY[0]()


def prepare(weights: str | Path, source: Path, settings: DetectSettings, threads: int) -> None:
    import openvino
    import torch

    model = NAS(weights).fuse()
    height, width = model.preprocess.size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of the checks of the input's shape
        network = openvino.convert_model(model.model.eval(), example_input=torch.zeros(1, 3, height, width))
    network.reshape([1, 3, height, width])
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(network, "CPU", options).create_infer_request()

    def infer(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        request.infer([x], share_inputs=True, share_outputs=True)
        return request.get_output_tensor(0).data[0], request.get_output_tensor(1).data[0]

    cv2.setNumThreads(threads)
    READY.append(partial(detect_and_draw, infer, source, model.preprocess, settings, model.names))


def detect_and_draw(
    infer: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    source: Path,
    preprocess: Preprocess,
    settings: DetectSettings,
    names: dict[int, str],
) -> np.ndarray:
    picture = cv2.imread(str(source))
    x, scale, left, top = letterboxed(picture, preprocess)
    rows = selected(*infer(x), settings)
    rows[:, 0:4:2] = ((rows[:, 0:4:2] - left) / scale).clip(0, picture.shape[1])
    rows[:, 1:4:2] = ((rows[:, 1:4:2] - top) / scale).clip(0, picture.shape[0])
    for x1, y1, x2, y2, score, number in rows.tolist():
        corner = (round(x1), round(y1))
        cv2.rectangle(picture, corner, (round(x2), round(y2)), (0, 150, 255), 3, cv2.LINE_AA)
        label = f"{names[int(number)]} {score:.2f}"
        cv2.putText(picture, label, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2, cv2.LINE_AA)
    return rows


def letterboxed(picture: np.ndarray, preprocess: Preprocess) -> tuple[np.ndarray, float, int, int]:
    """`(1, 3, H, W)` float32 with scale and offsets, for pre-processing like that of the published weights."""
    (height, width), fit = preprocess.size, preprocess.fit or preprocess.size
    scale = min(fit[0] / picture.shape[0], fit[1] / picture.shape[1])
    resized = cv2.resize(picture, (round(picture.shape[1] * scale), round(picture.shape[0] * scale)))
    free = (height - resized.shape[0], width - resized.shape[1])
    top, left = (side // 2 if preprocess.padding == "center" else 0 for side in free)
    grey = (preprocess.pad_value,) * 3
    framed = cv2.copyMakeBorder(resized, top, free[0] - top, left, free[1] - left, cv2.BORDER_CONSTANT, value=grey)
    scaling = 1 / preprocess.divisor[0]
    return cv2.dnn.blobFromImage(framed, scaling, swapRB=preprocess.channels == "rgb"), scale, left, top


def selected(boxes: np.ndarray, scores: np.ndarray, settings: DetectSettings) -> np.ndarray:
    """Threshold and NMS by class of `(A, 4)` boxes and `(A, C)` scores."""
    anchors, classes = np.nonzero(scores > settings.conf)
    above = scores[anchors, classes]
    best = np.argsort(-above, kind="stable")[: settings.top_k]
    anchors, classes, above = anchors[best], classes[best], above[best]
    corners = boxes[anchors]
    sides = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)
    kept = cv2.dnn.NMSBoxesBatched(sides, above, classes.astype(np.int32), settings.conf, settings.iou)
    kept = np.asarray(kept, np.int64)[: settings.max_det]
    return np.concatenate((corners[kept], above[kept, None], classes[kept, None]), 1)
