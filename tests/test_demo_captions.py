"""The demo set's captions: sentences that state only what the picture shows."""

import numpy as np
import pytest

from pipeline.data.demo_captions import ACTIVITY_SCENES, COLOURS, SHAPES, write_captions
from tests.demo_data import plumage_of, view_of, words


@pytest.mark.parametrize("activity", list(ACTIVITY_SCENES))
def test_captions_name_no_colour_and_no_part_that_is_not_there(activity: str) -> None:
    plumage = plumage_of(SHAPES[3], body="green", wing="purple", belly="yellow", beak="red", leg="orange")
    rng = np.random.default_rng(0)
    view = view_of(plumage, activity, 0)
    text = words(" ".join(write_captions(plumage, view, 300, rng)))
    # Eyes are black on every bird; legs show when the bird sits or stands, the belly not in the water.
    legs = {"orange"} if activity in ("perching", "standing") else set[str]()
    assert text & set(COLOURS) == {"green", "purple", "yellow", "red", "black"} | legs
    assert ("legs" in text) == bool(legs)
    assert ("belly" in text) == (activity != "swimming")
    assert not text & {"left", "right", "crest", "bars"}
    assert {"wings", "tail", "hooked"} <= text
