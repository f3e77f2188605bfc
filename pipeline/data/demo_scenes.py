"""The demo set's pictures: a background that fits the view, the bird lit and laid over it, its mask and bounding box.

Light from above comes from the bird's blurred masks, as if they were inflated. No picture of any data set is read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from pipeline.data.demo_birds import Floats, Part, Raster, band, posed_bird, rasterise, tone
from pipeline.data.demo_captions import ACTIVITY_SCENES, RGB, SCENE_CLASHES, Plumage, View

Plane = NDArray[np.floating[Any]]  # pixels, float32, (H, W) or (H, W, 3), colours in [0, 255]
PICTURE_SIZES = ((400, 300), (390, 260), (360, 360), (320, 400), (375, 300), (400, 267), (340, 300))


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
    parts, foot, waterline = posed_bird(plumage, view)
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


def _drawn_bird(
    parts: list[Part], scale: float, offset: Floats, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[Plane, Plane]:
    """Colour (H, W, 3) and alpha (H, W) in [0, 1] of the lit bird on an empty picture of shape (H, W)."""
    points = np.concatenate([part.points for part in parts if part.layer != "mark"]) * scale + offset
    left, top = (max(int(edge) - 3, 0) for edge in points.min(axis=0))
    right, bottom = (min(int(edge) + 4, limit) for edge, limit in zip(points.max(axis=0), shape[1::-1], strict=True))
    bird = rasterise(parts, scale, offset - [left, top], (right - left, bottom - top))
    colour, alpha = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32)
    colour[top:bottom, left:right], alpha[top:bottom, left:right] = _shaded(bird, scale, rng)
    return colour, alpha


def _shaded(bird: Raster, scale: float, rng: np.random.Generator) -> tuple[Plane, Plane]:
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
        pixels = _bokeh(pixels, [tone(far, factor) for factor in (0.75, 0.88, 1.12, 1.25)], 18, rng)
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
    outline = band(np.stack([x, y], axis=1), half * (1 + 0.1 * rng.uniform(-1, 1, size=40)))
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
