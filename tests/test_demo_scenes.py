"""The demo set's pictures: the box holds the bird and nothing else."""

import numpy as np
import pytest

from pipeline.data.demo_captions import SHAPES
from tests.demo_data import drawn, plumage_of, view_of


@pytest.mark.parametrize("activity", ["perching", "standing", "flying", "swimming"])
def test_box_holds_exactly_the_pixels_that_change_with_the_bird(activity: str) -> None:
    for key, shape in enumerate(SHAPES):
        red = plumage_of(shape, body="red", wing="red", beak="red", leg="red")
        blue = plumage_of(shape, body="blue", wing="blue", beak="blue", leg="blue")
        view = view_of(red, activity, key)
        first, second = drawn(red, view, key), drawn(blue, view, key)
        x, y, width, height = first.bbox
        assert first.bbox == second.bbox

        changed = np.abs(first.pixels.astype(int) - second.pixels).max(axis=2) > 60
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        # A mirror image lies under a swimming bird and is no part of it.
        bottom = rows[-1] + 1 if activity != "swimming" else y + height
        np.testing.assert_allclose(
            [columns[0], rows[0], columns[-1] + 1, bottom], [x, y, x + width, y + height], atol=3
        )
        assert first.mask[y : y + height, x : x + width].sum() == first.mask.sum() > 0.2 * width * height
