"""What `stackgan generate` paints: captions, or points on the line between two, as PNG files that say what they are.

Each picture is painted alone: rounding depends on the size of a batch, and a file's bytes are to depend on its caption,
seed and models only.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from pipeline.data.files import replaced_file
from pipeline.data.shards import Images
from pipeline.data.tables import EncoderId
from pipeline.gan.grids import Section, Tile, draw_grid
from pipeline.gan.sampling import paint
from pipeline.gan.stages import Stage, load_stage, load_stage1_within

MAX_SLUG = 40  # characters of a caption in a file's name
MAX_GRID = 120  # pictures on a grid; more would make a file that few programs open
STAGE_TITLES = {"stage1": "Stage-I", "stage2": "Stage-II"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Painter:
    """A trained stage, and what its pictures say of it."""

    name: str  # stage1 or stage2
    stage: Stage
    sha256: str
    encoder_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is painted: a caption, or a point on the straight line from its embedding to that of `caption_to`."""

    embedding: Tensor  # (embedding_dim,) float32
    caption: str
    caption_to: str | None = None
    position: float = 0.0  # 0 is caption, 1 is caption_to


class Picture(NamedTuple):
    """A picture to be painted."""

    name: str  # of its file, without the ending
    subject: Subject
    seed: int
    painter: Painter

    def paint(self) -> Images:
        """Return (S, S, 3) uint8."""
        whole = [{"bbox": None}]  # a sentence has no box: where the networks are told one, the object fills the picture
        texts = self.painter.stage.texts_of(self.subject.embedding[None], whole)
        return paint(self.painter.stage, texts, [self.seed])[0]

    def origin(self) -> dict[str, str]:
        """Return what the PNG says of itself: everything that its pixels depend on."""
        between = {"caption_to": str(self.subject.caption_to), "position": f"{self.subject.position:.6g}"}
        return {
            "caption": self.subject.caption,
            **(between if self.subject.caption_to is not None else {}),
            "seed": str(self.seed),
            "stage": self.painter.name,
            "model_sha256": self.painter.sha256,
            "encoder_sha256": self.painter.encoder_sha256,
        }


def load_painters(models_dir: Path, encoder: EncoderId, *, both_stages: bool) -> list[Painter]:
    """Load Stage-II, and with `both_stages` the Stage-I it refines in front of it.

    Args:
        models_dir: with stage2/.
        encoder: that of models_dir/text_encoder, which embeds the captions.
        both_stages: whether Stage-I's sketches are wanted as well.

    Raises:
        ValueError: a snapshot is missing, or was trained on embeddings of another encoder.
    """
    stage2_dir = models_dir / "stage2"
    stage2, sha256 = load_stage(stage2_dir)
    if stage2.encoder is None:
        raise ValueError(f"{stage2_dir} does not say which encoder it was trained with; run `dvc repro`")
    if stage2.encoder.sha256 != encoder.sha256:
        raise ValueError(
            f"{stage2_dir} was trained on embeddings of {stage2.encoder.name} {stage2.encoder.sha256[:12]}, "
            f"{models_dir / 'text_encoder'} is {encoder.name} {encoder.sha256[:12]}; run `dvc repro`, or with "
            "embed_captions.source: released no sentence of your own can be embedded"
        )
    painters = [Painter(name="stage2", stage=stage2, sha256=sha256, encoder_sha256=encoder.sha256)]
    if both_stages:
        if stage2.stage1_generator is None:
            raise ValueError(f"{stage2_dir} paints in one stage (gan.stage2_size: none); leave --both-stages out")
        stage1, sha256 = load_stage1_within(stage2_dir)
        painters.insert(0, Painter(name="stage1", stage=stage1, sha256=sha256, encoder_sha256=encoder.sha256))
    return painters


def subjects_between(captions: Sequence[str], embeddings: Tensor, count: int) -> list[Subject]:
    """Return `count` points, evenly spaced, on the line from the first of two captions to the second, ends included.

    Args:
        captions: two.
        embeddings: (2, embedding_dim) float32.
        count: at least 2.
    """
    positions = [index / (count - 1) for index in range(count)]
    return [
        Subject(
            embedding=torch.lerp(embeddings[0], embeddings[1], position),
            caption=captions[0],
            caption_to=captions[1],
            position=position,
        )
        for position in positions
    ]


def pictures_of(subjects: Sequence[Subject], seeds: Sequence[int], painters: Sequence[Painter]) -> list[Picture]:
    """List every subject with every seed by every painter, named so that the files sort in this order."""
    digits = max(4, len(str(len(subjects) - 1)))
    return [
        Picture(
            f"{number:0{digits}d}{_slug(subject)}{f'_seed{seed}' * (len(seeds) > 1)}"
            f"{f'_{painter.name}' * (len(painters) > 1)}",
            subject,
            seed,
            painter,
        )
        for number, subject in enumerate(subjects)
        for seed in seeds
        for painter in painters
    ]


def write_picture(picture: Picture, path: Path) -> Images:
    """Paint a picture and write its PNG; equal origins give equal bytes."""
    image = picture.paint()
    _write_png(path, Image.fromarray(image), picture.origin())
    return image


def write_pictures(pictures: Sequence[Picture], out_dir: Path) -> Iterator[Path]:
    """Paint pictures into a folder, yielding the path of each once it is written, and that of grid.png last.

    Files of these names are replaced, others are left alone. The grid shows the first MAX_GRID pictures.
    """
    images: list[Images] = []
    for picture in pictures:
        path = out_dir / f"{picture.name}.png"
        image = write_picture(picture, path)
        images += [image] if len(images) < MAX_GRID else []
        yield path
    shown = pictures[: len(images)]
    path = out_dir / "grid.png"
    _write_png(path, _draw_grid(shown, images), _joined_origins(shown))
    yield path


def _slug(subject: Subject) -> str:
    """Return an underscore and what of the caption is safe in a file's name, or nothing where nothing is."""
    texts = [subject.caption] if subject.caption_to is None else [subject.caption, subject.caption_to]
    room = (MAX_SLUG - len("-to-") * (len(texts) - 1)) // len(texts)
    plain = (unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower() for text in texts)
    slugs = [re.sub("[^a-z0-9]+", "-", text).strip("-")[:room].rstrip("-") for text in plain]
    slug = "-to-".join(filter(None, slugs))
    return f"_{slug}" if slug else ""


def _draw_grid(pictures: Sequence[Picture], images: Sequence[Images]) -> Image.Image:
    """Draw a line of pictures for each noise between two captions, or for each caption, or one picture a caption."""
    several_seeds = len({picture.seed for picture in pictures}) > 1
    painters = list(dict.fromkeys(picture.painter.name for picture in pictures))
    is_between = pictures[0].subject.caption_to is not None
    sections: dict[object, Section] = {}
    for (_, subject, seed, painter), image in zip(pictures, images, strict=True):
        made = [f"seed {seed}"] * several_seeds + [STAGE_TITLES[painter.name]] * (len(painters) > 1)
        if is_between:
            ends = [] if sections else [f"0: {subject.caption}", f"1: {subject.caption_to}"]
            section = Section([*ends, ", ".join(made)] if made else ends, [])
            key, label = (seed, painter.name), f"{subject.position:.2f}"
        elif several_seeds:
            section = Section([subject.caption], [])
            key, label = id(subject), ", ".join(made)
        else:
            section = Section([], [])
            captions = [subject.caption] if painter.name == painters[0] else []
            key, label = None, ": ".join([*made, *captions])
        sections.setdefault(key, section).tiles.append(Tile(image, label))
    return draw_grid(list(sections.values()), group_size=1 if is_between else len(painters))


def _joined_origins(pictures: Sequence[Picture]) -> dict[str, str]:
    """Return the origins of a grid's pictures: under each key the different values, one a line."""
    origins = [picture.origin() for picture in pictures]
    return {key: "\n".join(dict.fromkeys(origin[key] for origin in origins)) for key in origins[0]}


def _write_png(path: Path, image: Image.Image, texts: Mapping[str, str]) -> None:
    chunks = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        chunks.add_itxt(key, value)
    with replaced_file(path) as partial_path:
        image.save(partial_path, format="PNG", pnginfo=chunks)
