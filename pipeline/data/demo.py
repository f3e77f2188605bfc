"""The demo data set: procedural birds of invented species in CUB-200-2011's own on-disk layout.

It stands in for CUB where nothing may be downloaded: pictures with boxes, captions, and a class-disjoint split in which
every test class is a new combination of colours and parts that all occur in train classes, as the paper's zero-shot
evaluation asks for. Here are the species and the files; demo_captions writes, demo_birds and demo_scenes draw.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from pipeline.data.demo_captions import COLOURS, SHAPES, BirdShape, Plumage, species_names, tell_apart, write_captions
from pipeline.data.demo_scenes import BBox, choose_view, draw_picture
from pipeline.data.files import replaced_folder

logger = logging.getLogger(__name__)

JPEG_QUALITY = 92
# Entropy of the species' own generator; no picture has this class index.
_SPECIES_STREAM = 2**31


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSummary:
    """What was written."""

    num_train_images: int
    num_test_images: int
    num_captions: int
    share_below_half: float  # share of the pictures whose box covers less than half of them; CUB: 0.785


_Cap = tuple[str | None, Literal["crown", "head"]]  # colour and part
_Key = tuple[str, str, BirdShape]  # body, wing and shape: no two species share all three


class _Species(NamedTuple):
    name: str  # CUB's folder name, "001.Red_Finch"
    is_test: bool
    plumage: Plumage


class _Palette(NamedTuple):
    """Values to draw from; repeats are weights."""

    belly: tuple[str | None, ...]
    cap: tuple[_Cap, ...]
    beak: tuple[str, ...]
    leg: tuple[str, ...]
    wing_bars: tuple[bool, ...]


class _Written(NamedTuple):
    """One picture's line in the tables."""

    relative_path: str  # <class>/<file>.jpg
    class_id: int  # 1-based, as in CUB
    bbox: BBox
    area_share: float


def make_demo_dataset(
    out_dir: Path,
    *,
    num_train_classes: int,
    num_test_classes: int,
    images_per_class: int,
    captions_per_image: int,
    seed: int,
) -> DemoSummary:
    """Draws the demo data set and writes it in CUB's layout; the same arguments write the same bytes.

    Under out_dir: images/<class>/*.jpg, images.txt, bounding_boxes.txt, image_class_labels.txt, classes.txt,
    text_c10/<class>/*.txt (one caption a line) and testclasses.txt (names of the test classes; the others are train).

    Args:
        out_dir: replaced as a whole once everything is written, so a half-written set is never left there.
        num_train_classes: at least 2.
        num_test_classes: at least 1; each combines colours and a shape of train classes in a new way.
        images_per_class: at least 1.
        captions_per_image: at least 1; CUB has 10.
        seed: at least 0. Picture k of class c depends on (seed, c, k) alone, not on the counts of pictures.

    Raises:
        ValueError: a count is too small, or more classes are wanted than there are distinct ones.
    """
    _check_range("num_train_classes", num_train_classes, 2)
    _check_range("num_test_classes", num_test_classes, 1)
    _check_range("images_per_class", images_per_class, 1)
    _check_range("captions_per_image", captions_per_image, 1)
    _check_range("seed", seed, 0)
    all_species = _choose_species(num_train_classes, num_test_classes, seed)

    written: list[_Written] = []
    with replaced_folder(out_dir) as partial_dir:
        for class_index, species in enumerate(all_species):
            for image_index in range(images_per_class):
                rng = np.random.default_rng([seed, class_index, image_index])
                written.append(_write_image(partial_dir, species, class_index, image_index, captions_per_image, rng))
        _write_tables(partial_dir, all_species, written)

    summary = DemoSummary(
        num_train_images=num_train_classes * images_per_class,
        num_test_images=num_test_classes * images_per_class,
        num_captions=len(written) * captions_per_image,
        share_below_half=sum(row.area_share < 0.5 for row in written) / len(written),
    )
    logger.info("drew %d pictures of %d invented species", len(written), len(all_species))
    return summary


def _check_range(key: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"make_demo_dataset.{key} is {value}: give at least {least}")


def _write_image(
    root: Path, species: _Species, class_index: int, image_index: int, num_captions: int, rng: np.random.Generator
) -> _Written:
    view = choose_view(species.plumage, rng)
    picture = draw_picture(species.plumage, view, rng)
    stem = f"{species.name.split('.')[1]}_{image_index + 1:04d}"
    image_path = root / "images" / species.name / f"{stem}.jpg"
    image_path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.pixels).save(image_path, format="JPEG", quality=JPEG_QUALITY)
    captions = write_captions(species.plumage, view, num_captions, rng)
    _write_lines(root / "text_c10" / species.name / f"{stem}.txt", captions)
    share = picture.bbox.width * picture.bbox.height / (view.width * view.height)
    return _Written(f"{species.name}/{stem}.jpg", class_index + 1, picture.bbox, share)


def _write_tables(root: Path, all_species: list[_Species], written: list[_Written]) -> None:
    _write_lines(root / "classes.txt", [f"{k} {species.name}" for k, species in enumerate(all_species, start=1)])
    _write_lines(root / "testclasses.txt", [species.name for species in all_species if species.is_test])
    rows = list(enumerate(written, start=1))
    _write_lines(root / "images.txt", [f"{k} {row.relative_path}" for k, row in rows])
    _write_lines(root / "image_class_labels.txt", [f"{k} {row.class_id}" for k, row in rows])
    boxes = [f"{k} " + " ".join(f"{side:.1f}" for side in row.bbox) for k, row in rows]
    _write_lines(root / "bounding_boxes.txt", boxes)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="ascii", newline="\n")


def _choose_species(num_train: int, num_test: int, seed: int) -> list[_Species]:
    """Train species, then test species, all distinct in (body, wing, shape)."""
    rng = np.random.default_rng([seed, _SPECIES_STREAM])
    every = [key for key in product(COLOURS, COLOURS, SHAPES) if tell_apart(key[0], key[1])]
    if num_train > len(every):
        raise ValueError(f"make_demo_dataset.num_train_classes is {num_train}: there are only {len(every)} species")
    uses: Counter[object] = Counter()
    caps: list[_Cap] = [(colour, "crown") for colour in COLOURS]
    caps.extend((colour, "head") for colour in COLOURS)
    caps.extend((None, "crown") for _ in range(12))
    palette = _Palette(
        belly=(None,) * 12 + tuple(COLOURS),
        cap=tuple(caps),
        beak=("yellow", "orange", "black", "grey", "red"),
        leg=("orange", "grey", "black", "yellow"),
        wing_bars=(True, False, False, False),
    )
    train = [_dress(key, palette, rng) for key in _spread(every, num_train, uses, rng)]

    bodies, wings, shapes = {p.body for p in train}, {p.wing for p in train}, {p.shape for p in train}
    taken = {(p.body, p.wing, p.shape) for p in train}
    fresh = [key for key in every if key[0] in bodies and key[1] in wings and key[2] in shapes and key not in taken]
    if num_test > len(fresh):
        raise ValueError(
            f"make_demo_dataset.num_test_classes is {num_test}: {num_train} train classes leave {len(fresh)} new "
            "combinations of their colours and shapes; ask for fewer test classes or more train classes"
        )
    seen = _Palette(
        belly=tuple(p.belly for p in train),
        cap=tuple((p.cap, p.cap_part) for p in train),
        beak=tuple(p.beak for p in train),
        leg=tuple(p.leg for p in train),
        wing_bars=tuple(p.wing_bars for p in train),
    )
    test = [_dress(key, seen, rng) for key in _spread(fresh, num_test, uses, rng)]
    plumages = [*train, *test]
    names = species_names(plumages)
    return [_Species(name, k >= num_train, plumages[k]) for k, name in enumerate(names)]


def _spread(keys: list[_Key], count: int, uses: Counter[object], rng: np.random.Generator) -> list[_Key]:
    """Takes count keys, one by one: always one whose colour pair, body, shape and wing were used least so far."""

    def uses_of(key: _Key) -> list[int]:
        return [uses[trait] for trait in _traits(key)]

    left = [keys[k] for k in rng.permutation(len(keys))]
    chosen: list[_Key] = []
    for _ in range(count):
        chosen.append(min(left, key=uses_of))
        left.remove(chosen[-1])
        uses.update(_traits(chosen[-1]))
    return chosen


def _traits(key: _Key) -> list[object]:
    body, wing, shape = key
    return [(body, wing), ("body", body), ("shape", shape.name), ("wing", wing), (body, shape.name)]


def _dress(key: _Key, palette: _Palette, rng: np.random.Generator) -> Plumage:
    """Draws the smaller parts. At most one of belly and cap differs from the body, whose colour must stay in sight."""
    body, wing, shape = key
    bellies = [c for c in palette.belly if c is None or (tell_apart(c, body) and c != wing)] or [None]
    belly = bellies[rng.integers(len(bellies))]
    no_cap: _Cap = (None, "crown")
    caps = [c for c in palette.cap if c[0] is None or (tell_apart(c[0], body) and belly is None)] or [no_cap]
    cap, cap_part = caps[rng.integers(len(caps))]
    beaks = [colour for colour in palette.beak if tell_apart(colour, cap or body)] or list(palette.beak)
    bars = palette.wing_bars[rng.integers(len(palette.wing_bars))]
    return Plumage(
        shape=shape,
        body=body,
        wing=wing,
        belly=belly,
        cap=cap,
        cap_part=cap_part,
        beak=beaks[rng.integers(len(beaks))],
        leg=palette.leg[rng.integers(len(palette.leg))],
        wing_bars=bars and wing not in ("white", "yellow", "grey"),
    )
