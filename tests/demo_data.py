"""Plumages, views and pictures with chosen parts, for the tests of the demo data set."""

import re
from dataclasses import replace

import numpy as np

from pipeline.data.demo_captions import ACTIVITY_SCENES, SHAPES, BirdShape, Plumage, View
from pipeline.data.demo_scenes import Picture, choose_view, draw_picture


def plumage_of(shape: BirdShape = SHAPES[0], **parts: object) -> Plumage:
    plain = Plumage(
        shape=shape, body="red", wing="black", belly=None, cap=None, cap_part="crown", beak="grey", leg="grey",
        wing_bars=False,
    )  # fmt: skip
    return replace(plain, **parts)


def view_of(plumage: Plumage, activity: str, key: int) -> View:
    rng = np.random.default_rng(key)
    return replace(choose_view(plumage, rng), activity=activity, scene=ACTIVITY_SCENES[activity][0])


def drawn(plumage: Plumage, view: View, key: int) -> Picture:
    return draw_picture(plumage, view, np.random.default_rng(key))


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text))
