"""Decoding against a version written as loops, and the order of anchors."""

from __future__ import annotations

import math

import pytest
import torch

from yolonas.nn.head import BINS, anchor_grid, decode, decode_boxes, flatten_levels

SIZES = [(4, 6), (2, 3), (1, 2)]


def random_maps(channels: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(channels)
    return [torch.randn(2, channels, *size, generator=generator).mul(3).to(dtype) for size in SIZES]


def decode_by_loops(class_maps: list[torch.Tensor], box_maps: list[torch.Tensor]) -> tuple[list, list]:
    boxes, scores = [], []
    for image in range(class_maps[0].shape[0]):
        for classes, sides, stride in zip(class_maps, box_maps, (8, 16, 32), strict=True):
            for y in range(classes.shape[2]):
                for x in range(classes.shape[3]):
                    distances = []
                    for side in range(4):
                        weights = [math.exp(sides[image, side * 17 + k, y, x].item()) for k in range(17)]
                        distances.append(sum(k * weight for k, weight in enumerate(weights)) / sum(weights))
                    left, top, right, bottom = distances
                    corners = (x + 0.5 - left, y + 0.5 - top, x + 0.5 + right, y + 0.5 + bottom)
                    boxes.append([corner * stride for corner in corners])
                    scores.append([1 / (1 + math.exp(-value)) for value in classes[image, :, y, x].tolist()])
    return boxes, scores


def test_decode_equals_loops() -> None:
    class_maps, box_maps = random_maps(5), random_maps(4 * BINS)
    boxes, scores = decode(class_maps, box_maps)
    expected_boxes, expected_scores = decode_by_loops(class_maps, box_maps)
    torch.testing.assert_close(boxes.flatten(0, 1), torch.tensor(expected_boxes, dtype=torch.float64))
    torch.testing.assert_close(scores.flatten(0, 1), torch.tensor(expected_scores, dtype=torch.float64))


def test_anchors_run_fine_to_coarse_and_row_by_row() -> None:
    points, strides = anchor_grid(random_maps(1), torch.float32)
    assert points.shape == (24 + 6 + 2, 2)
    assert points[:7].tolist() == [[x + 0.5, 0.5] for x in range(6)] + [[0.5, 1.5]]
    assert strides.flatten().tolist() == [8.0] * 24 + [16.0] * 6 + [32.0] * 2
    flat = flatten_levels(random_maps(3))
    assert torch.equal(flat[1, 24 + 1 * 3 + 2], random_maps(3)[1][1, :, 1, 2])


def test_certain_bins_give_whole_distances() -> None:
    logits = torch.full((1, 1, 4, BINS), -1000.0)
    for side, distance in enumerate((0, 3, 16, 7)):
        logits[0, 0, side, distance] = 1000.0
    boxes = decode_boxes(logits.flatten(2), torch.tensor([[2.5, 4.5]]), torch.tensor([[8.0]]))
    assert boxes.tolist() == [[[20.0, 12.0, 148.0, 92.0]]]


def test_equal_bins_give_the_middle() -> None:
    boxes = decode_boxes(torch.zeros(1, 1, 68), torch.tensor([[0.5, 0.5]]), torch.tensor([[32.0]]))
    torch.testing.assert_close(boxes, torch.tensor([[[-240.0, -240.0, 272.0, 272.0]]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_decoded_in_float32(dtype: torch.dtype) -> None:
    class_maps, box_maps = random_maps(5, dtype), random_maps(68, dtype)
    boxes, scores = decode(class_maps, box_maps)
    expected = decode([level.float() for level in class_maps], [level.float() for level in box_maps])
    assert torch.equal(boxes, expected[0])
    assert torch.equal(scores, expected[1])


def test_decode_passes_gradients() -> None:
    box_maps = [level.requires_grad_() for level in random_maps(68)]
    decode(random_maps(2), box_maps)[0].square().sum().backward()
    assert all(level.grad.abs().sum() > 0 for level in box_maps)
