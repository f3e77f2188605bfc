"""What a demo picture shows, as facts and in words: shapes, plumages and views of birds; their names and captions.

The facts stand beside the words because each caption states them; demo_birds and demo_scenes draw the same facts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (206, 32, 38), "orange": (242, 128, 22), "yellow": (247, 212, 40), "green": (52, 150, 62),
    "blue": (38, 92, 210), "purple": (128, 58, 168), "brown": (124, 78, 44), "black": (34, 34, 40),
    "white": (242, 242, 240), "grey": (142, 147, 153),
}  # fmt: skip
# Colours that a reader of the caption could mix up: never side by side on one bird.
_ALIKE = (
    {"red", "orange"}, {"orange", "yellow"}, {"orange", "brown"}, {"blue", "purple"}, {"brown", "black"},
    {"grey", "white"},
)  # fmt: skip
# Scene -> body colours that would vanish in it.
SCENE_CLASHES: dict[str, tuple[str, ...]] = {
    "sky": ("blue",), "leaves": ("green",), "dusk": ("orange", "purple"), "water": ("blue",), "sand": ("brown",),
    "grass": ("green",), "snow": ("white",),
}  # fmt: skip
ACTIVITY_SCENES: dict[str, tuple[str, ...]] = {
    "perching": ("sky", "leaves", "dusk", "snow"), "standing": ("sand", "grass", "snow"),
    "flying": ("sky", "leaves", "dusk"), "swimming": ("water",),
}  # fmt: skip


class BirdShape(NamedTuple):
    """What a kind of bird has in common, lengths in body lengths; the words are those a caption may use."""

    name: str
    size: str
    girth: float
    head_radius: float
    neck: float
    leg: float
    tail: tuple[float, float, float]  # length, half angle of the fan in degrees, fork (outer feathers longer)
    tail_words: tuple[str, ...]
    beak: tuple[float, float, float, float]  # length, half height, droop, bluntness of the tip
    beak_words: tuple[str, ...]
    crested: bool
    activities: tuple[str, ...]  # one is drawn, repeats are weights


_PERCH3_STAND_FLY = ("perching", "perching", "perching", "standing", "flying")
SHAPES = (
    BirdShape("Finch", "small", 0.31, 0.21, 0.29, 0.20, (0.45, 9, 0.0), ("short",),
              (0.17, 0.085, 0.01, 1.2), ("short", "thick", "small cone shaped"), False, _PERCH3_STAND_FLY),
    BirdShape("Warbler", "small", 0.26, 0.185, 0.30, 0.24, (0.55, 8, 0.0), ("narrow",),
              (0.18, 0.042, 0.0, 1.0), ("short pointed", "small pointed", "small thin"), False, _PERCH3_STAND_FLY),
    BirdShape("Jay", "medium sized", 0.27, 0.19, 0.33, 0.24, (0.85, 8, 0.0), ("long",),
              (0.23, 0.06, 0.01, 1.1), ("strong pointed", "sturdy"), True, _PERCH3_STAND_FLY),
    BirdShape("Parakeet", "medium sized", 0.26, 0.20, 0.31, 0.16, (1.0, 5, -0.5), ("long pointed", "long narrow"),
              (0.13, 0.105, 0.15, 1.6), ("hooked", "curved hooked"), False, (*_PERCH3_STAND_FLY[:3], "flying")),
    BirdShape("Sunbird", "tiny", 0.25, 0.175, 0.31, 0.18, (0.4, 8, 0.0), ("short",),
              (0.42, 0.035, 0.12, 0.9), ("long curved", "long thin curved"), False, _PERCH3_STAND_FLY),
    BirdShape("Teal", "large", 0.27, 0.175, 0.40, 0.18, (0.26, 16, 0.0), ("short", "stubby"),
              (0.25, 0.06, 0.03, 4.0), ("flat", "broad flat"), False, ("swimming", "swimming", "standing")),
    BirdShape("Kingfisher", "small", 0.28, 0.235, 0.31, 0.12, (0.3, 11, 0.0), ("short", "stubby"),
              (0.48, 0.055, 0.0, 1.0), ("long straight", "long pointed"), True, ("perching", "perching", "flying")),
    BirdShape("Swallow", "small", 0.235, 0.175, 0.28, 0.13, (0.8, 13, 1.0), ("forked", "long forked"),
              (0.10, 0.045, 0.01, 1.0), ("tiny", "very short"), False, ("perching", "flying", "flying")),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Plumage:
    """What every bird of a class has: its shape and the colour of each part, names of COLOURS."""

    shape: BirdShape
    body: str
    wing: str  # the tail too
    belly: str | None  # breast and belly; None: as the body
    cap: str | None  # crown (and crest) or the whole head; None: as the body
    cap_part: Literal["crown", "head"]
    beak: str
    leg: str
    wing_bars: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What differs from picture to picture of a class; angles in degrees, negative is upward."""

    activity: str
    scene: str
    facing: Literal["left", "right"]
    tilt: float
    beak_pitch: float
    wing_lift: float
    width: int
    height: int
    area_share: float  # wanted share of the picture's area in the bounding box


def tell_apart(first: str, second: str) -> bool:
    """Whether no reader of a caption could mix up these two names of COLOURS."""
    return first != second and {first, second} not in _ALIKE


def species_names(plumages: list[Plumage]) -> list[str]:
    """Numbered folder names, built from what sets the species apart, such as 009.Grey_crowned_Yellow_Warbler."""
    numbered: list[str] = []
    names: set[str] = set()
    for class_id, plumage in enumerate(plumages, start=1):
        kind = f"{plumage.body.capitalize()}_{plumage.shape.name}"
        options = [kind] if class_id % 3 == 1 else []
        if plumage.cap:
            options.append(f"{plumage.cap.capitalize()}_{plumage.cap_part}ed_{kind}")
        if plumage.belly:
            options.append(f"{plumage.belly.capitalize()}_bellied_{kind}")
        # Body, wing and shape are unique together, so this last one is always free.
        options.append(f"{plumage.wing.capitalize()}_winged_{kind}")
        name = next(name for name in options if name not in names)
        names.add(name)
        numbered.append(f"{class_id:03d}.{name}")
    return numbered


# Each names the body's colour; {1}, {2}, {3} are parts, {doing} is what the bird does where.
_SENTENCES = (
    "this bird is {body} with {1} and {2}",
    "this bird is {tone} and has {1}",
    "this {size} bird is {tone} with {1}",
    "a {size} {body} bird with {1} and {2}",
    "a {body} bird with {1} {doing}",
    "the bird has a {body} body, {1} and {2}",
    "the body of this bird is {body} and it has {1}",
    "this is a {body} bird that has {1}, {2} and {3}",
    "a {body} and {wing} bird {doing}",
    "a {size} bird with a {body} body and {1}",
    "bird with {body} feathers, {1} and {2}",
    "this {body} bird has {1}",
    "this is a {size} {tone} bird with {1}",
    "there is a {body} bird {doing}, it has {1}",
    "a {size} {tone} bird {doing}",
    "it is a {size} bird that is {tone} in color, with {1} and {2}",
    "this bird has {1}, {2} and a {body} body",
    "{doing}, this {body} bird has {1}",
    "this bird has {1} and its body is {tone}",
    "the {body} bird is {size} and has {1} and {2}",
)
_DOING: dict[str, tuple[str, ...]] = {
    "perching": ("sitting on a branch", "perched on a branch", "resting on a thin branch", "on a branch"),
    "standing": ("standing", "standing on the ground", "on the ground"),
    "flying": ("flying", "in flight", "flying with its wings spread"),
    "swimming": ("swimming", "floating", "swimming along"),
}
_WHERE: dict[str, tuple[str, ...]] = {
    "sky": ("against the sky", "under a cloudy sky"), "leaves": ("in front of leaves", "among the leaves"),
    "dusk": ("at sunset", "in the evening"), "water": ("on the water", "in a lake"),
    "sand": ("on the sand", "at the beach"), "grass": ("in the grass", "on a meadow"),
    "snow": ("in the snow", "in winter"),
}  # fmt: skip
_BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple")


def write_captions(plumage: Plumage, view: View, count: int, rng: np.random.Generator) -> list[str]:
    """Sentences about one picture, each with the body's colour and only what can be seen; ASCII, under 200 characters.

    Left and right are never named: training flips pictures. Sentences differ unless more are wanted than can be made.
    """
    captions: list[str] = []
    order: list[int] = []
    attempts = 0
    while len(captions) < count:
        order = order or [int(k) for k in rng.permutation(len(_SENTENCES))]
        caption = _caption(_SENTENCES[order.pop()], plumage, view, rng)
        attempts += 1
        if caption not in captions or attempts > 20 * count:
            captions.append(caption)
    return captions


def _caption(sentence: str, plumage: Plumage, view: View, rng: np.random.Generator) -> str:
    parts = _parts_in_words(plumage, view, rng)
    where = _WHERE[view.scene]
    doing = _one_of(_DOING[view.activity], rng)
    doing += f" {_one_of(where, rng)}" if rng.random() < 0.6 else ""
    tone = f"bright {plumage.body}" if plumage.body in _BRIGHT and rng.random() < 0.4 else plumage.body
    words = {"body": plumage.body, "wing": plumage.wing, "tone": tone, "size": plumage.shape.size, "doing": doing}
    words |= {str(k): part for k, part in enumerate(parts, start=1)}
    text = re.sub(r"\{(\w+)\}", lambda match: words[match[1]], sentence)
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    return text + ("." if rng.random() < 0.15 else "")


def _one_of(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def _parts_in_words(plumage: Plumage, view: View, rng: np.random.Generator) -> list[str]:
    """Three parts of this bird as noun phrases, what sets the species apart more often than the rest."""
    shape, body, wing = plumage.shape, plumage.body, plumage.wing
    bill = _one_of(("beak", "bill"), rng)
    form = _one_of(shape.beak_words, rng)
    beaks = (f"a {form} {bill}", f"a {form} {plumage.beak} {bill}", f"a {plumage.beak} {bill}")
    wings = (f"{wing} wings", f"{wing} wings", f"wings that are {wing}", f"{wing} feathers on its wings")
    wings += (f"{wing} wings and tail",)
    if plumage.wing_bars:
        wings = (*wings[:3], f"{wing} wings with white bars", f"white wing bars on its {wing} wings")
    bellies = ("belly", "breast", "belly and breast", "underside")
    if view.activity == "swimming":
        bellies = ("breast", "chest")  # the belly is under water
    options = [
        (4.0, _one_of(wings, rng)),
        (3.0 if plumage.belly else 0.5, f"a {plumage.belly or body} {_one_of(bellies, rng)}"),
        (3.0 if plumage.cap else 0.5, f"a {plumage.cap or body} {plumage.cap_part if plumage.cap else 'head'}"),
        (2.0, _one_of(beaks, rng)),
        (1.0, _one_of((f"a {_one_of(shape.tail_words, rng)} tail", f"a {wing} tail"), rng)),
        (0.3, "small black eyes"),
    ]
    if shape.crested:
        options.append((1.0, f"a {plumage.cap or body} crest"))
    if view.activity in ("perching", "standing"):
        options.append((0.7, f"{plumage.leg} {_one_of(('legs', 'feet'), rng)}"))
    weights = np.array([weight for weight, _ in options])
    chosen = rng.choice(len(options), size=3, replace=False, p=weights / weights.sum())
    return [options[int(k)][1] for k in chosen]
