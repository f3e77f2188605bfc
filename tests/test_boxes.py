"""Boxes: from pixels of the original to fractions of what the networks see, and to a map."""

import numpy as np
import pytest
import torch

from pipeline.data.boxes import BOX_DIM, box_coverage, boxes_in_centres, boxes_in_windows, boxes_of


def row(bbox: list[float] | None, crop_box: list[int]) -> dict[str, object]:
    return {"bbox": bbox, "crop_box": crop_box}


def test_a_box_is_told_in_fractions_of_the_stored_crop_and_cut_at_its_border() -> None:
    boxes = boxes_of([row([30.0, 20.0, 40.0, 10.0], [10, 10, 110, 60]), row([0.0, 0.0, 50.0, 500.0], [25, 0, 75, 50])])
    assert boxes.shape == (2, BOX_DIM) and boxes.dtype == torch.float32
    assert boxes.numpy() == pytest.approx(np.array([[0.2, 0.2, 0.6, 0.4], [0.0, 0.0, 0.5, 1.0]]))


def test_a_picture_without_a_box_is_all_object() -> None:
    assert boxes_of([row(None, [0, 0, 9, 9])]).tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_a_mirrored_window_has_its_boxes_on_the_other_side() -> None:
    boxes = torch.tensor([[0.25, 0.5, 0.5, 0.75]] * 2)
    inside = boxes_in_windows(boxes, torch.tensor([[0.25, 0.25]] * 2), torch.tensor([False, True]), share=0.5)
    assert inside.tolist() == [[0.0, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]]


def test_the_middle_of_a_picture_is_the_mean_of_the_crops_that_a_training_sees() -> None:
    box = torch.tensor([[30, 20, 50, 40]]) / 76
    corners = torch.tensor([[left, top] for left in range(13) for top in range(13)]) / 76
    everywhere = boxes_in_windows(box.expand(169, -1), corners, torch.zeros(169, dtype=torch.bool), 64 / 76)
    assert torch.allclose(everywhere.mean(dim=0), boxes_in_centres(box)[0], atol=1e-6)


def test_coverage_is_the_share_of_each_cell_and_adds_up_to_the_box() -> None:
    box = torch.tensor([[0.25, 0.125, 0.75, 0.5]])
    covered = box_coverage(box, 4)
    rows, columns = torch.tensor([0.5, 1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert torch.equal(covered, (rows[:, None] * columns)[None, None])
    random = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)).sort(dim=1).values
    areas = (random[:, 2] - random[:, 0]) * (random[:, 3] - random[:, 1])
    assert torch.allclose(box_coverage(random, 16).mean(dim=(1, 2, 3)), areas, atol=1e-6)
