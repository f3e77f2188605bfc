"""The demo set's birds: the colour that names a bird is the one that is seen."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.demo_captions import COLOURS, SHAPES
from tests.demo_data import drawn, plumage_of, view_of


@pytest.mark.parametrize("body", list(COLOURS))
def test_the_body_shows_the_colour_that_names_it(body: str) -> None:
    other = "white" if body != "white" else "black"
    for key, activity in enumerate(("perching", "flying")):
        plumage = plumage_of(SHAPES[key], body=body, wing="grey" if body != "grey" else "red", belly="yellow")
        view = view_of(plumage, activity, key)
        pixels = drawn(plumage, view, key).pixels.astype(float)
        changed = np.abs(pixels - drawn(replace(plumage, body=other), view, key).pixels).max(axis=2) > 60
        seen = np.median(pixels[changed], axis=0)
        distances = {name: float(np.abs(seen - np.array(colour)).sum()) for name, colour in COLOURS.items()}
        assert min(distances, key=distances.__getitem__) == body
        assert changed.sum() > 0.12 * drawn(plumage, view, key).mask.sum()
