"""The native ops against the obvious alternative, both sides in one run and checked to agree first.

python bench/ops.py [--save] [--rounds 15]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from timing import compare, machine, save

from yolonas import ops
from yolonas.preprocess import Preprocess

# Name, what the peer is, the ratio aimed at (0: none), both sides.
Case = tuple[str, str, float, dict[str, Callable[[], Any]]]


def letterbox_case() -> Case:
    """A 1080p BGR picture to the float RGB input of 640x640."""
    image = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    g = Preprocess().plan(1080, 1920)
    bottom, right = g.frame[0] - g.resized[0] - g.top, g.frame[1] - g.resized[1] - g.left
    out = np.empty((3, *g.frame), np.float32)

    def ours() -> np.ndarray:
        offset = (g.top, g.left)
        return ops.letterbox(image, frame=g.frame, resized=g.resized, offset=offset, swap_channels=True, out=out)

    def opencv() -> np.ndarray:
        resized = cv2.resize(image, g.resized[::-1], interpolation=cv2.INTER_LINEAR)
        grey = (114, 114, 114)
        padded = cv2.copyMakeBorder(resized, g.top, bottom, g.left, right, cv2.BORDER_CONSTANT, value=grey)
        return np.ascontiguousarray(padded[:, :, ::-1].transpose(2, 0, 1)).astype(np.float32) / np.float32(255)

    np.testing.assert_array_equal(ours(), opencv())
    return (
        "letterbox 1080p -> 640",
        "OpenCV resize + copyMakeBorder, NumPy normalise",
        2.0,
        {"yolonas": ours, "peer": opencv},
    )


def heads(seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Head outputs at 640 for 80 classes. About 1 % of the 672,000 scores lie above 0.01, as for a trained network."""
    generator = torch.Generator().manual_seed(seed)
    cls = [torch.randn(1, 80, side, side, generator=generator) * 1.6 - 8.3 for side in (80, 40, 20)]
    reg = [torch.randn(1, 68, side, side, generator=generator) for side in (80, 40, 20)]
    return cls, reg


def torch_decode(cls: list[torch.Tensor], reg: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax expectation and sigmoid over all anchors, vectorised."""
    boxes, scores = [], []
    bins = torch.arange(17.0).view(1, 1, 17, 1)
    for logits, distances, stride in zip(cls, reg, (8, 16, 32), strict=True):
        batch, _, height, width = logits.shape
        d = (distances.view(batch, 4, 17, height * width).softmax(2) * bins).sum(2).transpose(1, 2)
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        point = torch.stack((x, y), -1).view(-1, 2)
        boxes.append(torch.cat((point - d[..., :2], point + d[..., 2:]), -1) * stride)
        scores.append(logits.flatten(2).transpose(1, 2).sigmoid())
    return torch.cat(boxes, 1), torch.cat(scores, 1)


def decode_case() -> Case:
    """Head outputs to the candidates above 0.25, the threshold of predict."""
    cls, reg = heads(0)
    cls[0][0, :5, ::9, ::9] = 3.0
    cls_arrays, reg_arrays = [level.numpy() for level in cls], [level.numpy() for level in reg]

    def ours() -> ops.Candidates:
        return ops.decode_candidates(cls_arrays, reg_arrays, conf=0.25)

    def peer() -> tuple[torch.Tensor, ...]:
        boxes, scores = torch_decode(cls, reg)
        anchor, label = torch.nonzero(scores[0] > 0.25, as_tuple=True)
        kept = scores[0, anchor, label]
        kept, order = kept.topk(min(1024, kept.numel()))
        return boxes[0, anchor[order]], kept, label[order]

    candidates, (boxes, scores, _) = ours(), peer()
    count = int(candidates.counts[0])
    assert count == len(scores) > 100
    np.testing.assert_allclose(candidates.scores[0, :count], scores.numpy(), rtol=1e-5)
    np.testing.assert_allclose(candidates.boxes[0, :count].sum(0), boxes.numpy().sum(0), rtol=1e-4)
    return (
        "decode 8,400 x 80, conf 0.25",
        "torch: softmax, sigmoid, threshold, top-k",
        5.0,
        {"yolonas": ours, "peer": peer},
    )


def nms_case() -> Case:
    """Decoded boxes and scores to detections at conf 0.01, top-k 1000, IoU 0.7."""
    boxes, scores = torch_decode(*heads(1))
    box_array, score_array = boxes.numpy(), scores.numpy()
    settings = {"conf": 0.01, "iou": 0.7, "top_k": 1000, "max_det": 300}

    def ours() -> tuple[np.ndarray, np.ndarray]:
        return ops.batched_nms(box_array, score_array, **settings)

    def peer() -> torch.Tensor:
        anchor, label = torch.nonzero(scores[0] > 0.01, as_tuple=True)
        kept = scores[0, anchor, label]
        kept, order = kept.topk(min(1000, kept.numel()))
        box, label = boxes[0, anchor[order]], label[order]
        area = (box[:, 2:] - box[:, :2]).prod(1)
        inter = (
            torch.minimum(box[:, None, 2:], box[None, :, 2:]) - torch.maximum(box[:, None, :2], box[None, :, :2])
        ).clamp(min=0)
        inter = inter.prod(2)
        overlap = (inter / (area[:, None] + area[None] - inter) > 0.7) & (label[:, None] == label[None])
        alive = torch.ones(len(box), dtype=torch.bool)
        rows = overlap.triu(1)
        for i in torch.nonzero(rows.any(1)).flatten().tolist():
            if alive[i]:
                alive &= ~rows[i]
        keep = torch.nonzero(alive).flatten()[:300]
        return torch.cat((box[keep], kept[keep, None], label[keep, None].float()), 1)

    detections, counts = ours()
    expected = peer()
    assert int(counts[0]) == len(expected)
    np.testing.assert_allclose(np.sort(detections[0, : counts[0], 4]), np.sort(expected[:, 4].numpy()), rtol=1e-6)
    return (
        "NMS 8,400 x 80, conf 0.01",
        "torch: threshold, top-k, IoU matrix, greedy loop",
        10.0,
        {"yolonas": ours, "peer": peer},
    )


def conv_case() -> Case:
    """A middle layer of size S at 640, direct form; weights are packed on every call, as a plan would not."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 64, 80, 80, generator=generator).to(memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    bias = torch.randn(64, generator=generator)
    arrays = [tensor.permute(0, 2, 3, 1).numpy() for tensor in (x, weight)]

    def ours() -> np.ndarray:
        return ops.conv2d_bias_act(*arrays, bias.numpy(), padding=1)

    def peer() -> torch.Tensor:
        return torch.nn.functional.conv2d(x, weight, bias, padding=1).relu_()

    np.testing.assert_allclose(ours(), peer().permute(0, 2, 3, 1).numpy(), atol=1e-3)
    return "conv2d 3x3, 64 -> 64, 80x80", "torch: conv2d channels last, relu", 0.0, {"yolonas": ours, "peer": peer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write bench/results/ops.json")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    rows = []
    print(f"{'case':<30} {'yolonas':>9} {'peer':>9} {'ratio':>7} {'aim':>5}   peer")
    for name, peer_name, aim, sides in (letterbox_case(), decode_case(), nms_case(), conv_case()):
        times = compare(sides, rounds=arguments.rounds)
        ratio = times["peer"]["median_ms"] / times["yolonas"]["median_ms"]
        rows.append({"case": name, "peer": peer_name, "ratio": round(ratio, 2), "aim": aim, "times": times})
        ours, other = times["yolonas"]["median_ms"], times["peer"]["median_ms"]
        shown = f"{aim:.0f}x" if aim else "none"
        print(f"{name:<30} {ours:>6.3f} ms {other:>6.2f} ms {ratio:>6.1f}x {shown:>5}   {peer_name}")
    if arguments.save:
        print(f"saved {save('ops', {'machine': machine(), 'rows': rows})}")


if __name__ == "__main__":
    main()
