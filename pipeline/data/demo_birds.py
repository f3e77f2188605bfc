"""Procedural birds: a plumage and a view become a picture, the bird's exact mask and its bounding box.

A bird is a list of polygons in body lengths (x to the right, y down, beak to the right). They are drawn three times too
large and reduced, which smooths every edge; light from above comes from the blurred mask, as if it were inflated. No
picture of any data set is read or traced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Floats = NDArray[np.float64]  # geometry
Plane = NDArray[np.floating[Any]]  # pixels, float32, (H, W) or (H, W, 3), colours in [0, 255]
RGB = tuple[int, int, int]
Layer = Literal["paint", "body", "mark", "wing"]
SUPERSAMPLE = 3

COLOURS: dict[str, RGB] = {
    "red": (206, 32, 38), "orange": (242, 128, 22), "yellow": (247, 212, 40), "green": (52, 150, 62),
    "blue": (38, 92, 210), "purple": (128, 58, 168), "brown": (124, 78, 44), "black": (34, 34, 40),
    "white": (242, 242, 240), "grey": (142, 147, 153),
}  # fmt: skip
# Scene -> body colours that would vanish in it.
SCENE_CLASHES: dict[str, tuple[str, ...]] = {
    "sky": ("blue",), "leaves": ("green",), "dusk": ("orange", "purple"), "water": ("blue",), "sand": ("brown",),
    "grass": ("green",), "snow": ("white",),
}  # fmt: skip
ACTIVITY_SCENES: dict[str, tuple[str, ...]] = {
    "perching": ("sky", "leaves", "dusk", "snow"), "standing": ("sand", "grass", "snow"),
    "flying": ("sky", "leaves", "dusk"), "swimming": ("water",),
}  # fmt: skip
PICTURE_SIZES = ((400, 300), (390, 260), (360, 360), (320, 400), (375, 300), (400, 267), (340, 300))


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


class BBox(NamedTuple):
    """CUB's bounding box: left upper corner and size in pixels."""

    x: int
    y: int
    width: int
    height: int


class Picture(NamedTuple):
    """A drawn picture: pixels (H, W, 3) uint8, mask (H, W) bool of the bird alone, and the box around the mask."""

    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    bbox: BBox


class _Part(NamedTuple):
    points: Floats  # (N, 2) body lengths
    colour: RGB
    layer: Layer


def choose_view(plumage: Plumage, rng: np.random.Generator) -> View:
    """Draws a pose, a scene that does not hide the bird, a picture size and how much of it the bird takes."""
    activity = str(rng.choice(plumage.shape.activities))
    scenes = ACTIVITY_SCENES[activity]
    # A bird whose wings match the scene is still seen, one whose body does is not.
    clash = [(plumage.body in SCENE_CLASHES[scene], plumage.wing in SCENE_CLASHES[scene]) for scene in scenes]
    scene = str(rng.choice([scene for scene, c in zip(scenes, clash, strict=True) if c == min(clash)]))
    tilts = {"perching": (-38, -12), "standing": (-24, 0), "flying": (-14, 8), "swimming": (-3, 2)}
    if plumage.shape.tail[0] > 0.7:
        tilts["standing"] = (-8, 2)  # a long tail would reach into the ground
    width, height = PICTURE_SIZES[rng.integers(len(PICTURE_SIZES))]
    return View(
        activity=activity,
        scene=scene,
        facing="left" if rng.random() < 0.5 else "right",
        tilt=float(rng.uniform(*tilts[activity])),
        beak_pitch=float(rng.uniform(-22, 18)),
        wing_lift=float(rng.uniform(100, 135)),
        width=width,
        height=height,
        # CUB: four boxes in five cover less than half of the picture.
        area_share=float(rng.uniform(0.14, 0.46) if rng.random() < 0.8 else rng.uniform(0.52, 0.72)),
    )


def draw_picture(plumage: Plumage, view: View, rng: np.random.Generator) -> Picture:
    """Draws one bird in its scene.

    Args:
        plumage: colours and shape of the class.
        view: pose, scene and size of the picture.
        rng: where the bird sits, the scene's noise and the light.
    """
    parts, foot, waterline = _bird_parts(plumage, view)
    points = np.concatenate([part.points for part in parts if part.layer != "mark"])
    low, high = points.min(axis=0), points.max(axis=0)
    high[1] = min(high[1], waterline)
    box = high - low
    size = np.array([view.width, view.height], dtype=np.float64)
    # Pixels a body length: the wanted area share, unless the bird would touch the border.
    scale = float(min(np.sqrt(view.area_share * size.prod() / box.prod()), (size / box).min() * 0.93))
    room = size - box * scale
    corner = room * (0.5 + rng.uniform(-0.38, 0.38, size=2))
    if view.activity == "standing":
        corner[1] = room[1] * rng.uniform(0.45, 0.8)
    offset = corner - low * scale
    base = np.array([foot[0], min(foot[1], waterline)]) * scale + offset

    pixels = _scene(view, base, scale, rng)
    colour, alpha = _drawn_bird(parts, scale, offset, pixels.shape[:2], rng)
    if view.activity == "swimming":
        surface = base[1] + 0.012 * scale * np.sin(np.arange(view.width) / (0.07 * scale))
        alpha = np.where(np.arange(view.height)[:, None] >= surface[None, :], np.float32(0), alpha)
        _reflect(pixels, colour, alpha, round(float(base[1])))
    _cover(pixels, colour, alpha)
    pixels += 2.0 * rng.standard_normal(size=(view.height, view.width, 1), dtype=np.float32)
    mask = alpha >= 0.5
    return Picture(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), mask, _box_around(mask))


def _box_around(mask: NDArray[np.bool_]) -> BBox:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return BBox(x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y)


# ---- the bird's outline ----------------------------------------------------------------------------------------------


def _smooth(knots: Floats, per_span: int) -> Floats:
    """Catmull-Rom curve through knots (N, D), open, with end points repeated: ((N - 1) * per_span + 1, D)."""
    padded = np.concatenate([knots[:1], knots, knots[-1:]])
    u = np.linspace(0.0, 1.0, per_span, endpoint=False)[:, None]
    spans: list[Floats] = []
    for k in range(len(knots) - 1):
        a, b, c, d = padded[k : k + 4]
        spans.append(b + 0.5 * u * (c - a + u * (2 * a - 5 * b + 4 * c - d + u * (3 * b - 3 * c + d - a))))
    return np.concatenate([*spans, knots[-1:]])


def _heading(degrees: float) -> Floats:
    """Unit vector that many degrees counter-clockwise from the beak's side, y down."""
    return np.array([np.cos(np.radians(degrees)), -np.sin(np.radians(degrees))])


def _disc(centre: Floats, radius: float) -> Floats:
    angles = np.linspace(0.0, 2 * np.pi, 40, endpoint=False)
    return centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _band(centres: Floats, half_widths: Floats) -> Floats:
    """Outline (2N, 2) of a stroke along centres (N, 2) with half_widths (N,)."""
    along = np.gradient(centres, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    across = np.stack([along[:, 1], -along[:, 0]], axis=1) * half_widths[:, None]
    return np.concatenate([centres + across, (centres - across)[::-1]])


def _feather(base: Floats, degrees: float, length: float, half_width: float) -> Floats:
    u = np.linspace(0.0, 1.0, 16)
    half_widths = half_width * np.sin(np.pi * (0.08 + 0.92 * u**0.8)) ** 0.6
    return _band(base + u[:, None] * length * _heading(degrees), half_widths)


def _tone(colour: RGB, factor: float) -> RGB:
    """Darker below 1, lighter above; a colour that is nearly black can only be told apart by lighter."""
    if max(colour) < 70 and factor < 1:
        factor = 2.0 - factor
    scaled = [c * factor if factor <= 1 else c + (255 - c) * (factor - 1) for c in colour]
    return (int(scaled[0]), int(scaled[1]), int(scaled[2]))


def _bird_parts(plumage: Plumage, view: View) -> tuple[list[_Part], Floats, float]:
    """The polygons from back to front, where the feet stand, and the height of the water's surface (inf: no water)."""
    shape = plumage.shape
    breast = np.array([0.23, -0.05])
    head = breast + shape.neck * _heading(62 if view.activity != "flying" else 34)
    neck = 0.42 * breast + 0.58 * head
    knots = np.array([  # x, y and radius from the tail to the head
        [-0.55, 0.03, 0.07], [-0.30, 0.02, 0.72 * shape.girth], [-0.02, 0.0, shape.girth],
        [*breast, 0.90 * shape.girth], [*neck, 1.02 * shape.head_radius], [*head, shape.head_radius],
    ])  # fmt: skip
    spine = _smooth(knots, 12)
    body, wing, leg = COLOURS[plumage.body], COLOURS[plumage.wing], COLOURS[plumage.leg]

    parts = _tail(shape, wing)
    if view.activity == "flying":
        parts = [*_spread_wing(_tone(wing, 0.8), view.wing_lift - 38, bars=False), *parts]
    parts += [_Part(_disc(centre[:2], float(centre[2])), body, "body") for centre in spine]
    parts += _markings(plumage, spine, head)
    parts += _face(plumage, head, pitch=0.7 * view.tilt - view.beak_pitch)
    if view.activity == "flying":
        parts += _spread_wing(wing, view.wing_lift, bars=plumage.wing_bars)
    else:
        parts += _folded_wing(wing, shape.girth, bars=plumage.wing_bars)

    # Body frame -> picture frame: tilt, then mirror. Legs come after, they hang straight down.
    cos, sin = np.cos(np.radians(view.tilt)), np.sin(np.radians(view.tilt))
    rotation = np.array([[cos, sin], [-sin, cos]])
    parts = [part._replace(points=part.points @ rotation) for part in parts]
    hip = np.array([-0.02, 0.80 * shape.girth]) @ rotation
    foot = hip + np.array([0.03, (0.45 if view.activity == "perching" else 1.0) * shape.leg + 0.08])
    if view.activity in ("perching", "standing"):
        apart = np.array([0.10, -0.015])
        parts = [*_leg(hip + apart, foot + apart, _tone(leg, 0.8)), *_leg(hip, foot, leg), *parts]
    waterline = 0.42 * shape.girth if view.activity == "swimming" else np.inf
    if view.facing == "left":
        parts = [part._replace(points=part.points * [-1, 1]) for part in parts]
        foot = foot * [-1, 1]
    return parts, foot, float(waterline)


def _tail(shape: BirdShape, colour: RGB) -> list[_Part]:
    length, half_angle, fork = shape.tail
    parts: list[_Part] = []
    for k, side in enumerate((-1.0, 1.0, -0.5, 0.5, 0.0)):
        # A fork has long outer feathers, a pointed tail (negative fork) a long middle one.
        feather_length = length * (1 - 0.45 * fork * (1 - abs(side)) if fork >= 0 else 1 + 0.6 * fork * abs(side))
        points = _feather(np.array([-0.46, 0.03]), 183 + half_angle * side, feather_length + 0.1, 0.07)
        parts.append(_Part(points, _tone(colour, (0.78, 0.84, 0.9, 0.95, 1.0)[k]), "paint"))
    return parts


def _markings(plumage: Plumage, spine: Floats, head: Floats) -> list[_Part]:
    """Soft patches of another colour: belly with breast, crown or head."""
    parts: list[_Part] = []
    if plumage.belly is not None:
        # From under the tail to the throat the patch turns from straight down to forward.
        under = spine[6:47]
        outward = np.stack([_heading(degrees) for degrees in np.linspace(-95, -12, len(under))]) * under[:, 2:]
        patch = np.concatenate([under[:, :2] + 0.10 * outward, (under[:, :2] + 1.3 * outward)[::-1]])
        parts.append(_Part(patch, COLOURS[plumage.belly], "mark"))
    if plumage.cap is not None:
        radius = plumage.shape.head_radius
        centre = head + radius * (_heading(115) * 0.62 if plumage.cap_part == "crown" else _heading(60) * 0.2)
        disc = _disc(centre, radius * (0.95 if plumage.cap_part == "crown" else 1.22))
        parts.append(_Part(disc, COLOURS[plumage.cap], "mark"))
    return parts


def _face(plumage: Plumage, head: Floats, pitch: float) -> list[_Part]:
    """Crest, beak and eye; pitch in degrees, positive lifts the beak."""
    shape, beak = plumage.shape, COLOURS[plumage.beak]
    radius, (length, half_height, droop, blunt) = shape.head_radius, shape.beak
    top = COLOURS[plumage.cap or plumage.body]
    parts: list[_Part] = []
    for k in range(4 if shape.crested else 0):
        root = head + radius * 0.5 * _heading(pitch + 80 + 12 * k)
        plume = _feather(root, pitch + 118 + 13 * k, radius * (1.55 - 0.2 * k), 0.06)
        parts.append(_Part(plume, _tone(top, 1.0 - 0.07 * (k % 2)), "paint"))
    forward, down = _heading(pitch), _heading(pitch - 90)
    u = np.linspace(0.0, 1.0, 24)
    centres = head + radius * 0.82 * forward + 0.1 * radius * down
    line = centres + np.outer(u, forward * (length + 0.18 * radius)) + np.outer(u**2, down * droop)
    heights = half_height * (1 - u**blunt) + 0.004
    parts.append(_Part(_band(line, heights), beak, "paint"))
    parts.append(_Part(_band(line + np.outer(heights * 0.45, down), heights * 0.55), _tone(beak, 0.8), "paint"))
    eye = head + radius * (0.36 * forward - 0.22 * down)
    dark = max(top) < 130
    parts.append(_Part(_disc(eye, radius * 0.285), (205, 205, 200) if dark else _tone(top, 0.62), "paint"))
    parts.append(_Part(_disc(eye, radius * 0.225), (18, 16, 20), "paint"))
    parts.append(_Part(_disc(eye + radius * np.array([0.06, -0.08]), radius * 0.075), (250, 250, 250), "paint"))
    return parts


def _folded_wing(colour: RGB, girth: float, *, bars: bool) -> list[_Part]:
    """A wing on the bird's side: long feathers from shoulder to tip, shorter ones over them, perhaps two white bars."""
    edge = np.array([[0.25, -0.02], [0.17, 0.40], [-0.14, 0.42], [-0.46, 0.08], [-0.70, -0.04]]) * [1, girth / 0.8]
    lower, upper = _smooth(edge, 8), _smooth(edge * [1, -1] + [0, -0.05 * girth], 8)

    def strip(start: int, stop: int, low: float, high: float) -> Floats:
        first, second = ((lower + (upper - lower) * w)[start:stop] for w in (low, high))
        return np.concatenate([first, second[::-1]])

    parts = [_Part(strip(0, 33, 0.0, 1.0), colour, "wing")]
    for k in range(6):
        parts.append(_Part(strip(10, 33, k / 6, (k + 1) / 6), _tone(colour, 0.76 if k % 2 == 0 else 0.92), "wing"))
    parts.append(_Part(strip(0, 14, 0.0, 1.0), _tone(colour, 0.9), "wing"))
    parts.append(_Part(strip(0, 10, 0.02, 0.98), _tone(colour, 1.06), "wing"))
    if bars:
        parts += [_Part(strip(start, start + 3, 0.06, 0.9), (246, 246, 244), "wing") for start in (9, 14)]
    return parts


def _spread_wing(colour: RGB, lift: float, *, bars: bool) -> list[_Part]:
    """An open wing seen from the side: feathers fan out along the arm, which points lift degrees up and back."""
    shoulder, arm = np.array([0.14, -0.10]), 0.46 * _heading(lift)
    parts: list[_Part] = []
    for k in range(10):
        u = k / 9
        degrees = 188 + (lift + 6 - 188) * u**1.3
        points = _feather(shoulder + arm * u, degrees, 0.42 + 0.22 * np.sin(np.pi * (0.15 + 0.6 * u)), 0.075)
        parts.append(_Part(points, _tone(colour, 0.8 if k % 2 == 0 else 0.93), "wing"))
    u = np.linspace(0.0, 1.0, 16)
    coverts = shoulder + (1.3 * u - 0.32)[:, None] * arm + 0.08 * _heading(lift + 70)
    parts.append(_Part(_band(coverts, 0.16 * np.sin(np.pi * u) ** 0.5 * (1 - 0.45 * u)), _tone(colour, 1.05), "wing"))
    if bars:
        bar = shoulder + np.outer(0.1 + 0.85 * u, arm) + np.outer(0.25 - 0.09 * u, _heading(lift + 70))
        parts.append(_Part(_band(bar, np.full(len(u), 0.024)), (246, 246, 244), "wing"))
    return parts


def _leg(hip: Floats, foot: Floats, colour: RGB) -> list[_Part]:
    knee = 0.5 * (hip + foot) - np.array([0.04, 0.02])
    strokes = [np.stack([hip - np.array([0, 0.06]), knee, foot])]
    strokes += [foot + np.array([[0, -0.015], [reach, 0.012]]) for reach in (-0.07, 0.09, 0.13)]
    return [_Part(_band(stroke, np.full(len(stroke), 0.017)), colour, "paint") for stroke in strokes]


# ---- light and pixels ------------------------------------------------------------------------------------------------


class _Raster(NamedTuple):
    """The bird alone, at the picture's scale: RGBA, and the masks that light falls on."""

    flat: Image.Image
    body: Image.Image
    wing: Image.Image


def _rasterise(parts: list[_Part], scale: float, offset: Floats, size: tuple[int, int]) -> _Raster:
    large = (size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE)
    flat, body, wing = Image.new("RGBA", large), Image.new("L", large), Image.new("L", large)
    draw_flat, draw_mask = ImageDraw.Draw(flat), {"body": ImageDraw.Draw(body), "wing": ImageDraw.Draw(wing)}
    for part in parts:
        xy = ((part.points * scale + offset) * SUPERSAMPLE).ravel().tolist()
        if part.layer == "mark":
            soft = Image.new("L", large)
            ImageDraw.Draw(soft).polygon(xy, fill=255)
            soft = soft.filter(ImageFilter.BoxBlur(0.018 * scale * SUPERSAMPLE))
            flat.paste((*part.colour, 255), mask=ImageChops.multiply(soft, body))
            continue
        draw_flat.polygon(xy, fill=(*part.colour, 255))
        if part.layer in draw_mask:
            draw_mask[part.layer].polygon(xy, fill=255)
    return _Raster(flat.reduce(SUPERSAMPLE), body.reduce(SUPERSAMPLE), wing.reduce(SUPERSAMPLE))


def _drawn_bird(
    parts: list[_Part], scale: float, offset: Floats, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[Plane, Plane]:
    """Colour (H, W, 3) and alpha (H, W) in [0, 1] of the lit bird on an empty picture of shape (H, W)."""
    points = np.concatenate([part.points for part in parts if part.layer != "mark"]) * scale + offset
    left, top = (max(int(edge) - 3, 0) for edge in points.min(axis=0))
    right, bottom = (min(int(edge) + 4, limit) for edge, limit in zip(points.max(axis=0), shape[1::-1], strict=True))
    bird = _rasterise(parts, scale, offset - [left, top], (right - left, bottom - top))
    colour, alpha = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32)
    colour[top:bottom, left:right], alpha[top:bottom, left:right] = _shaded(bird, scale, rng)
    return colour, alpha


def _shaded(bird: _Raster, scale: float, rng: np.random.Generator) -> tuple[Plane, Plane]:
    rgba = np.asarray(bird.flat, dtype=np.float32)
    alpha = rgba[..., 3] / 255
    body, wing = (np.asarray(mask, dtype=np.float32) / 255 for mask in (bird.body, bird.wing))
    light = 0.95 * _relief(body, 0.17 * scale) * body * (1 - 0.5 * wing) + 0.55 * _relief(wing, 0.08 * scale) * wing
    shadow = np.roll(_blurred(wing, 0.03 * scale), max(1, round(0.035 * scale)), axis=0) * (1 - wing) * body
    grain = _noise(rng, alpha.shape, 0.02 * scale, 0.012 * scale) * alpha
    light += 0.07 * grain - 0.30 * shadow + float(rng.uniform(-0.06, 0.05))
    # A highlight that lifts a bright colour a little would turn black into grey.
    light *= np.where(light > 0, 0.35 + 0.65 * rgba[..., :3].max(axis=2) / 255, 1)
    return _lit(rgba[..., :3], light), alpha


def _blurred(mask: Plane, radius: float) -> Plane:
    image = Image.fromarray((np.clip(mask, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255


def _relief(mask: Plane, radius: float) -> Plane:
    """Light from above on a mask, as if inflated: about +0.4 at its upper edge, -0.4 at its lower edge, 0 inside."""
    blurred, light = _blurred(mask, radius), np.zeros_like(mask)
    light[1:-1] = (blurred[2:] - blurred[:-2]) * (0.5 * radius)
    return light


def _lit(colour: Plane, light: Plane) -> Plane:
    """Towards black where light (H, W) is below 0 and towards white above; colour (H, W, 3), or one colour (3,)."""
    end = np.where(light < 0, np.float32(0), np.float32(255))[..., None]
    return colour + (end - colour) * np.minimum(np.abs(light), 1)[..., None]


def _cover(pixels: Plane, colour: Plane, weight: Plane) -> None:
    """Lays colour (H, W, 3) or (3,) over pixels in place, weight (H, W) in [0, 1]."""
    pixels += (colour - pixels) * weight[..., None]


def _noise(rng: np.random.Generator, shape: tuple[int, ...], cell_width: float, cell_height: float) -> Plane:
    """Smooth noise (H, W) in about [-1, 1] whose spots are about cell_width by cell_height pixels."""
    cells = (cell_height, cell_width)
    rows, columns = (max(2, round(length / max(cell, 1.0))) for length, cell in zip(shape, cells, strict=True))
    coarse = Image.fromarray(2 * rng.random(size=(rows, columns), dtype=np.float32) - 1)
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), dtype=np.float32)


# ---- the scene -------------------------------------------------------------------------------------------------------


def _rgb(red: float, green: float, blue: float) -> Plane:
    return np.array([red, green, blue], dtype=np.float32)


def _scene(view: View, base: Floats, scale: float, rng: np.random.Generator) -> Plane:
    """Background (H, W, 3) with what the bird sits, stands or swims on; base (2,) is where its feet are, in pixels."""
    shape = (view.height, view.width)
    rows = np.arange(view.height, dtype=np.float32)[:, None]
    soft = _noise(rng, shape, 0.3 * view.width, 0.2 * view.height)
    if view.scene == "sky":
        pixels = _gradient(_rgb(92, 158, 222), _rgb(196, 222, 240), rows / view.height + 0.1 * soft)
        clouds = _noise(rng, shape, 110, 45) + 0.5 * _noise(rng, shape, 40, 18)
        _cover(pixels, _rgb(250, 250, 250), np.clip(0.7 * clouds - 0.15, 0, 0.75))
    elif view.scene == "dusk":
        pixels = _gradient(_rgb(92, 74, 128), _rgb(244, 148, 88), 1.2 * rows / view.height + 0.08 * soft)
        hills = view.height * (0.88 + 0.05 * _noise(rng, (2, view.width), 0.3 * view.width, 1)[:1])
        _cover(pixels, _rgb(70, 44, 62), np.clip((rows - hills) / 6, 0, 1))
    elif view.scene == "leaves":
        pixels = _gradient(_rgb(34, 74, 34), _rgb(104, 150, 66), 0.45 + 0.4 * soft + 0.25 * _noise(rng, shape, 50, 50))
        pixels = _bokeh(pixels, [(160, 198, 96), (78, 128, 52), (196, 214, 130), (40, 84, 40)], 26, rng)
    elif view.scene == "water":
        ripples = _noise(rng, shape, 46, 7) + 0.6 * _noise(rng, shape, 20, 3.5)
        pixels = _gradient(_rgb(128, 178, 196), _rgb(42, 104, 138), rows / view.height + 0.08 * soft)
        pixels = _lit(pixels, 0.16 * ripples * (0.4 + rows / view.height))
    else:
        pixels = _ground(view, soft, base, rng)
    if view.activity == "perching":
        _add_branch(pixels, view.scene, base, scale, rng)
    elif view.activity == "standing":
        across = (np.arange(view.width, dtype=np.float32) - float(base[0])) / (0.5 * scale)
        along = (rows - float(base[1])) / (0.08 * scale) - 0.25
        _cover(pixels, _rgb(0, 0, 0), 0.42 * np.exp(-(across**2) - along**2))
    return pixels


def _gradient(low: Plane, high: Plane, weight: Plane) -> Plane:
    """Colours (H, W, 3) between low (weight 0) and high (weight 1), both (3,)."""
    return low + (high - low) * np.clip(weight, 0, 1)[..., None]


def _bokeh(pixels: Plane, colours: list[RGB], count: int, rng: np.random.Generator) -> Plane:
    """Out-of-focus discs over pixels; drawn at half size, for all of it is blurred."""
    height, width = pixels.shape[:2]
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).reduce(2)
    layer = image.copy()
    draw = ImageDraw.Draw(layer)
    for _ in range(count):
        x, y, r = rng.uniform(0, image.width), rng.uniform(0, image.height), rng.uniform(0.03, 0.1) * image.width
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colours[int(rng.integers(len(colours)))])
    image = Image.blend(image, layer, 0.55).filter(ImageFilter.GaussianBlur(5)).resize((width, height))
    return np.array(image, dtype=np.float32)


def _ground(view: View, soft: Plane, base: Floats, rng: np.random.Generator) -> Plane:
    """Sand, grass or snow with a soft horizon above the feet; for a perching bird the ground is far below."""
    far, near, cells, contrast = {
        "sand": ((168, 200, 214), (226, 200, 146), (5, 3), 0.09),
        "grass": ((66, 98, 52), (122, 172, 74), (3, 14), 0.22),
        "snow": ((176, 192, 208), (238, 243, 250), (60, 12), 0.07),
    }[view.scene]
    pixels = _lit(_rgb(*far), 0.12 * soft)
    if view.scene != "sand":
        pixels = _bokeh(pixels, [_tone(far, factor) for factor in (0.75, 0.88, 1.12, 1.25)], 18, rng)
    horizon = (base[1] if view.activity == "standing" else 1.1 * view.height) - rng.uniform(0.10, 0.28) * view.height
    depth = np.arange(view.height, dtype=np.float32)[:, None] - float(horizon) - 5 * soft
    ground = _lit(_rgb(*near), contrast * _noise(rng, soft.shape, *cells) - 0.1 + 0.0008 * depth)
    _cover(pixels, ground, np.clip(depth / 14, 0, 1))
    return pixels


def _add_branch(pixels: Plane, scene: str, base: Floats, scale: float, rng: np.random.Generator) -> None:
    """A branch from side to side just under the feet, with snow on it where there is snow."""
    height, width = pixels.shape[:2]
    half = float(np.clip(0.055 * scale, 4, 12))
    slope, bend = rng.uniform(-0.12, 0.12), rng.uniform(-0.0003, 0.0003)
    x = np.linspace(-10, width + 10, 40)
    y = base[1] + half * 0.8 + slope * (x - base[0]) + bend * (x - base[0]) ** 2
    outline = _band(np.stack([x, y], axis=1), half * (1 + 0.1 * rng.uniform(-1, 1, size=40)))
    large = Image.new("L", (width * 2, height * 2))
    ImageDraw.Draw(large).polygon((outline * 2).ravel().tolist(), fill=255)
    mask = np.asarray(large.reduce(2), dtype=np.float32) / 255
    bark = _lit(_rgb(104, 80, 60), 0.9 * _relief(mask, half * 0.7) + 0.12 * _noise(rng, mask.shape, 22, 3))
    _cover(pixels, bark, mask)
    if scene == "snow":
        raised = np.roll(mask, -round(half * 0.7), axis=0)
        _cover(pixels, _rgb(246, 249, 254), _blurred(raised * (_relief(raised, half) > 0.08), 1.2))


def _reflect(pixels: Plane, colour: Plane, alpha: Plane, waterline: int) -> None:
    """A dim mirror image of the bird under its waterline."""
    rows = np.arange(pixels.shape[0])
    mirrored = np.clip(2 * waterline - rows, 0, len(rows) - 1)
    _cover(pixels, 0.75 * colour[mirrored], 0.38 * _blurred(alpha[mirrored] * (rows >= waterline)[:, None], 2.5))
