"""Labelled grids of pictures: sections with a heading, in each the pictures in lines, a label below every one."""

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

TILE = 256  # pixels a side of a picture: Stage-II's own, so that none is made smaller
MAX_COLUMNS = 10
MARGIN, GAP, GROUP_GAP = 20, 12, 24
HEADING_FONT, HEADING_LINE, MAX_HEADING_LINES = 20, 27, 3
LABEL_FONT, LABEL_LINE, MAX_LABEL_LINES = 15, 20, 4
PAPER, INK = "white", "#1c1c1c"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Tile(NamedTuple):
    """One picture, (H, W, 3) uint8, and the text below it."""

    image: npt.NDArray[np.uint8]
    label: str


class Section(NamedTuple):
    """Pictures under one heading; its lines are wrapped, none is no heading."""

    heading: list[str]
    tiles: list[Tile]


class _Line(NamedTuple):
    """Wrapped text, or pictures side by side, with its place on the grid."""

    top: int
    heading: list[str]
    tiles: Sequence[Tile]


def draw_grid(sections: Sequence[Section], group_size: int = 1) -> Image.Image:
    """Draw a grid.

    Args:
        sections: from top to bottom, each with a tile or more.
        group_size: so many tiles, one behind the other, stay together.

    Returns:
        RGB; its size depends on the tiles and on the length of the texts.
    """
    num_columns = _num_columns(max(len(section.tiles) for section in sections), group_size)
    lefts = [
        MARGIN + column * (TILE + GAP) + (column // group_size) * (GROUP_GAP - GAP) * (group_size > 1)
        for column in range(num_columns)
    ]
    width = lefts[-1] + TILE + MARGIN
    lines, height = _laid_out(sections, num_columns, width - 2 * MARGIN)
    grid = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(grid)
    for top, heading, tiles in lines:
        _draw_text(draw, MARGIN, top, heading, HEADING_FONT, HEADING_LINE)
        for left, tile in zip(lefts, tiles, strict=False):
            grid.paste(_scaled(tile.image), (left, top))
            _draw_text(draw, left, top + TILE, _label_lines(tile), LABEL_FONT, LABEL_LINE)
    return grid


def wrapped(text: str, font: Font, width: float, max_lines: int) -> list[str]:
    """Break a text at spaces into lines of at most `width` pixels; what does not fit ends in an ellipsis.

    Letters lose their accents, and characters that the font lacks become question marks.
    """
    letters = (char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    text = " ".join("".join(char if char.isascii() else "?" for char in letters).split())
    lines: list[str] = []
    while text and len(lines) < max_lines:
        end = _num_fitting(text, font, width)
        if end < len(text):
            space = text.rfind(" ", 0, end + 1)
            end = space if space > 0 else end
        lines.append(text[:end])
        text = text[end:].lstrip()
    if text:
        kept = lines[-1][: _num_fitting(lines[-1], font, width - font.getlength("..."))]
        lines[-1] = kept.rstrip() + "..."
    return lines


def _num_columns(num_tiles: int, group_size: int) -> int:
    """Return how many columns fill lines evenly: ten tiles of at most eight a line are five and five."""
    num_groups = -(-num_tiles // group_size)
    num_lines = -(-num_groups // (MAX_COLUMNS // group_size))
    return group_size * -(-num_groups // num_lines)


def _laid_out(sections: Sequence[Section], num_columns: int, width: int) -> tuple[list[_Line], int]:
    """Return the lines from top to bottom, and the grid's height."""
    lines: list[_Line] = []
    top = MARGIN
    for section in sections:
        for text in section.heading:
            heading = wrapped(text, ImageFont.load_default(HEADING_FONT), width, MAX_HEADING_LINES)
            lines.append(_Line(top, heading, ()))
            top += HEADING_LINE * len(heading)
        top += GAP // 2 if section.heading else 0
        for start in range(0, len(section.tiles), num_columns):
            tiles = section.tiles[start : start + num_columns]
            lines.append(_Line(top, [], tiles))
            top += TILE + LABEL_LINE * max(len(_label_lines(tile)) for tile in tiles) + GAP
        top += GAP if section.heading else 0
    return lines, top - GAP + MARGIN


def _label_lines(tile: Tile) -> list[str]:
    return wrapped(tile.label, ImageFont.load_default(LABEL_FONT), TILE, MAX_LABEL_LINES)


def _num_fitting(text: str, font: Font, width: float) -> int:
    """Return how many characters of a text are at most `width` pixels wide, at least one."""
    return max(1, bisect_right(range(1, len(text) + 1), width, key=lambda count: font.getlength(text[:count])))


def _scaled(image: npt.NDArray[np.uint8]) -> Image.Image:
    """Return the picture at TILE pixels; a smaller one keeps its pixels, as squares."""
    smaller = image.shape[0] < TILE
    return Image.fromarray(image).resize(
        (TILE, TILE), Image.Resampling.NEAREST if smaller else Image.Resampling.LANCZOS
    )


def _draw_text(draw: ImageDraw.ImageDraw, left: int, top: int, lines: Sequence[str], size: int, height: int) -> None:
    font = ImageFont.load_default(size)
    for number, line in enumerate(lines):
        draw.text((left, top + number * height + height // 2 + 1), line, INK, font, anchor="lm")
