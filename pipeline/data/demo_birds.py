"""The demo set's birds: a plumage and a pose become polygons, and polygons become flat colours with their masks.

A bird is a list of polygons in body lengths (x to the right, y down, beak to the right). They are drawn three times too
large and reduced, which smooths every edge. No picture of any data set is read or traced.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pipeline.data.demo_captions import COLOURS, RGB, BirdShape, Plumage, View

Floats = NDArray[np.float64]  # geometry
Layer = Literal["paint", "body", "mark", "wing"]
SUPERSAMPLE = 3


class Part(NamedTuple):
    """One polygon in one colour; a mark is soft and shows on the body alone."""

    points: Floats  # (N, 2) body lengths
    colour: RGB
    layer: Layer


class Bird(NamedTuple):
    """A bird in its pose, in body lengths."""

    parts: list[Part]  # from back to front
    foot: Floats  # (2,) where the feet stand
    waterline: float  # height of the water's surface; inf: no water


class Raster(NamedTuple):
    """The bird alone, at the picture's scale: RGBA, and the masks that light falls on."""

    flat: Image.Image
    body: Image.Image
    wing: Image.Image


def posed_bird(plumage: Plumage, view: View) -> Bird:
    """Outlines a bird of this plumage in this view's activity and pose."""
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
        parts = [*_spread_wing(tone(wing, 0.8), view.wing_lift - 38, bars=False), *parts]
    parts += [Part(_disc(centre[:2], float(centre[2])), body, "body") for centre in spine]
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
        parts = [*_leg(hip + apart, foot + apart, tone(leg, 0.8)), *_leg(hip, foot, leg), *parts]
    waterline = 0.42 * shape.girth if view.activity == "swimming" else np.inf
    if view.facing == "left":
        parts = [part._replace(points=part.points * [-1, 1]) for part in parts]
        foot = foot * [-1, 1]
    return Bird(parts, foot, float(waterline))


def rasterise(parts: list[Part], scale: float, offset: Floats, size: tuple[int, int]) -> Raster:
    """Draws parts on an empty picture.

    Args:
        parts: from back to front.
        scale: pixels a body length.
        offset: (2,) pixels, where the body's origin goes.
        size: width and height in pixels.
    """
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
    return Raster(flat.reduce(SUPERSAMPLE), body.reduce(SUPERSAMPLE), wing.reduce(SUPERSAMPLE))


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


def band(centres: Floats, half_widths: Floats) -> Floats:
    """Outline (2N, 2) of a stroke along centres (N, 2) with half_widths (N,)."""
    along = np.gradient(centres, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    across = np.stack([along[:, 1], -along[:, 0]], axis=1) * half_widths[:, None]
    return np.concatenate([centres + across, (centres - across)[::-1]])


def _feather(base: Floats, degrees: float, length: float, half_width: float) -> Floats:
    u = np.linspace(0.0, 1.0, 16)
    half_widths = half_width * np.sin(np.pi * (0.08 + 0.92 * u**0.8)) ** 0.6
    return band(base + u[:, None] * length * _heading(degrees), half_widths)


def tone(colour: RGB, factor: float) -> RGB:
    """Darker below 1, lighter above; a colour that is nearly black can only be told apart by lighter."""
    if max(colour) < 70 and factor < 1:
        factor = 2.0 - factor
    scaled = [c * factor if factor <= 1 else c + (255 - c) * (factor - 1) for c in colour]
    return (int(scaled[0]), int(scaled[1]), int(scaled[2]))


def _tail(shape: BirdShape, colour: RGB) -> list[Part]:
    length, half_angle, fork = shape.tail
    parts: list[Part] = []
    for k, side in enumerate((-1.0, 1.0, -0.5, 0.5, 0.0)):
        # A fork has long outer feathers, a pointed tail (negative fork) a long middle one.
        feather_length = length * (1 - 0.45 * fork * (1 - abs(side)) if fork >= 0 else 1 + 0.6 * fork * abs(side))
        points = _feather(np.array([-0.46, 0.03]), 183 + half_angle * side, feather_length + 0.1, 0.07)
        parts.append(Part(points, tone(colour, (0.78, 0.84, 0.9, 0.95, 1.0)[k]), "paint"))
    return parts


def _markings(plumage: Plumage, spine: Floats, head: Floats) -> list[Part]:
    """Soft patches of another colour: belly with breast, crown or head."""
    parts: list[Part] = []
    if plumage.belly is not None:
        # From under the tail to the throat the patch turns from straight down to forward.
        under = spine[6:47]
        outward = np.stack([_heading(degrees) for degrees in np.linspace(-95, -12, len(under))]) * under[:, 2:]
        patch = np.concatenate([under[:, :2] + 0.10 * outward, (under[:, :2] + 1.3 * outward)[::-1]])
        parts.append(Part(patch, COLOURS[plumage.belly], "mark"))
    if plumage.cap is not None:
        radius = plumage.shape.head_radius
        centre = head + radius * (_heading(115) * 0.62 if plumage.cap_part == "crown" else _heading(60) * 0.2)
        disc = _disc(centre, radius * (0.95 if plumage.cap_part == "crown" else 1.22))
        parts.append(Part(disc, COLOURS[plumage.cap], "mark"))
    return parts


def _face(plumage: Plumage, head: Floats, pitch: float) -> list[Part]:
    """Crest, beak and eye; pitch in degrees, positive lifts the beak."""
    shape, beak = plumage.shape, COLOURS[plumage.beak]
    radius, (length, half_height, droop, blunt) = shape.head_radius, shape.beak
    top = COLOURS[plumage.cap or plumage.body]
    parts: list[Part] = []
    for k in range(4 if shape.crested else 0):
        root = head + radius * 0.5 * _heading(pitch + 80 + 12 * k)
        plume = _feather(root, pitch + 118 + 13 * k, radius * (1.55 - 0.2 * k), 0.06)
        parts.append(Part(plume, tone(top, 1.0 - 0.07 * (k % 2)), "paint"))
    forward, down = _heading(pitch), _heading(pitch - 90)
    u = np.linspace(0.0, 1.0, 24)
    centres = head + radius * 0.82 * forward + 0.1 * radius * down
    line = centres + np.outer(u, forward * (length + 0.18 * radius)) + np.outer(u**2, down * droop)
    heights = half_height * (1 - u**blunt) + 0.004
    parts.append(Part(band(line, heights), beak, "paint"))
    parts.append(Part(band(line + np.outer(heights * 0.45, down), heights * 0.55), tone(beak, 0.8), "paint"))
    eye = head + radius * (0.36 * forward - 0.22 * down)
    dark = max(top) < 130
    parts.append(Part(_disc(eye, radius * 0.285), (205, 205, 200) if dark else tone(top, 0.62), "paint"))
    parts.append(Part(_disc(eye, radius * 0.225), (18, 16, 20), "paint"))
    parts.append(Part(_disc(eye + radius * np.array([0.06, -0.08]), radius * 0.075), (250, 250, 250), "paint"))
    return parts


def _folded_wing(colour: RGB, girth: float, *, bars: bool) -> list[Part]:
    """A wing on the bird's side: long feathers from shoulder to tip, shorter ones over them, perhaps two white bars."""
    edge = np.array([[0.25, -0.02], [0.17, 0.40], [-0.14, 0.42], [-0.46, 0.08], [-0.70, -0.04]]) * [1, girth / 0.8]
    lower, upper = _smooth(edge, 8), _smooth(edge * [1, -1] + [0, -0.05 * girth], 8)

    def strip(start: int, stop: int, low: float, high: float) -> Floats:
        first, second = ((lower + (upper - lower) * w)[start:stop] for w in (low, high))
        return np.concatenate([first, second[::-1]])

    parts = [Part(strip(0, 33, 0.0, 1.0), colour, "wing")]
    for k in range(6):
        parts.append(Part(strip(10, 33, k / 6, (k + 1) / 6), tone(colour, 0.76 if k % 2 == 0 else 0.92), "wing"))
    parts.append(Part(strip(0, 14, 0.0, 1.0), tone(colour, 0.9), "wing"))
    parts.append(Part(strip(0, 10, 0.02, 0.98), tone(colour, 1.06), "wing"))
    if bars:
        parts += [Part(strip(start, start + 3, 0.06, 0.9), (246, 246, 244), "wing") for start in (9, 14)]
    return parts


def _spread_wing(colour: RGB, lift: float, *, bars: bool) -> list[Part]:
    """An open wing seen from the side: feathers fan out along the arm, which points lift degrees up and back."""
    shoulder, arm = np.array([0.14, -0.10]), 0.46 * _heading(lift)
    parts: list[Part] = []
    for k in range(10):
        u = k / 9
        degrees = 188 + (lift + 6 - 188) * u**1.3
        points = _feather(shoulder + arm * u, degrees, 0.42 + 0.22 * np.sin(np.pi * (0.15 + 0.6 * u)), 0.075)
        parts.append(Part(points, tone(colour, 0.8 if k % 2 == 0 else 0.93), "wing"))
    u = np.linspace(0.0, 1.0, 16)
    coverts = shoulder + (1.3 * u - 0.32)[:, None] * arm + 0.08 * _heading(lift + 70)
    parts.append(Part(band(coverts, 0.16 * np.sin(np.pi * u) ** 0.5 * (1 - 0.45 * u)), tone(colour, 1.05), "wing"))
    if bars:
        bar = shoulder + np.outer(0.1 + 0.85 * u, arm) + np.outer(0.25 - 0.09 * u, _heading(lift + 70))
        parts.append(Part(band(bar, np.full(len(u), 0.024)), (246, 246, 244), "wing"))
    return parts


def _leg(hip: Floats, foot: Floats, colour: RGB) -> list[Part]:
    knee = 0.5 * (hip + foot) - np.array([0.04, 0.02])
    strokes = [np.stack([hip - np.array([0, 0.06]), knee, foot])]
    strokes += [foot + np.array([[0, -0.015], [reach, 0.012]]) for reach in (-0.07, 0.09, 0.13)]
    return [Part(band(stroke, np.full(len(stroke), 0.017)), colour, "paint") for stroke in strokes]
