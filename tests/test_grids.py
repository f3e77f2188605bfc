"""Labelled grids: every picture at its place in its own pixels, and no text wider than its room."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from pipeline.gan.grids import GAP, GROUP_GAP, MARGIN, TILE, Section, Tile, draw_grid, wrapped

FONT = ImageFont.load_default(15)


def tiles(count: int, size: int = TILE, label: str = "seed 0") -> list[Tile]:
    rng = np.random.default_rng(count)
    return [Tile(rng.integers(0, 256, (size, size, 3), dtype=np.uint8), label) for _ in range(count)]


def pixels_at(grid: np.ndarray, left: int, top: int) -> np.ndarray:
    return grid[top : top + TILE, left : left + TILE]


def test_pictures_of_stage2_keep_their_pixels_and_those_of_stage1_become_squares() -> None:
    large, small = tiles(1)[0], tiles(1, size=64)[0]
    grid = np.asarray(draw_grid([Section([], [small, large])]))
    np.testing.assert_array_equal(pixels_at(grid, MARGIN, MARGIN), small.image.repeat(4, axis=0).repeat(4, axis=1))
    np.testing.assert_array_equal(pixels_at(grid, MARGIN + TILE + GAP, MARGIN), large.image)


@pytest.mark.parametrize(
    ("count", "group_size", "columns"),
    [(1, 1, 1), (10, 1, 10), (11, 1, 6), (21, 1, 7), (2, 2, 2), (10, 2, 10), (12, 2, 6), (14, 2, 8)],
)
def test_lines_are_filled_evenly_and_groups_stay_together(count: int, group_size: int, columns: int) -> None:
    width, _ = draw_grid([Section([], tiles(count))], group_size).size
    gaps = (columns - 1) * GAP + (columns // group_size - 1) * (GROUP_GAP - GAP) * (group_size > 1)
    assert width == 2 * MARGIN + columns * TILE + gaps


def test_text_covers_no_picture_and_leaves_the_gaps_white() -> None:
    black = np.zeros((TILE, TILE, 3), np.uint8)
    long = "a rather long caption, with many words; " * 9
    sections = [Section([long, long], [Tile(black, long), Tile(black, long), Tile(black, "")]) for _ in range(2)]
    grid = np.asarray(draw_grid(sections))
    assert (grid[:, :MARGIN] == 255).all() and (grid[:, -MARGIN:] == 255).all()
    assert (grid[:MARGIN] == 255).all() and (grid[-MARGIN:] == 255).all()
    tops = np.flatnonzero((grid[:, MARGIN : MARGIN + TILE] == 0).all(axis=(1, 2)))
    assert len(tops) == 2 * TILE  # both lines of pictures are whole
    labels = grid[tops[TILE - 1] + 1 : tops[TILE]]  # below the first line, the second's heading included
    first_labels = labels[:80]
    assert (first_labels[:, MARGIN + TILE : MARGIN + TILE + GAP] == 255).all()
    assert (first_labels[:, MARGIN : MARGIN + TILE] < 128).any()


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(alphabet=st.characters(codec="utf-8"), max_size=200),
    width=st.integers(40, 300),
    max_lines=st.integers(1, 4),
)
def test_wrapped_text_fits_its_room(text: str, width: int, max_lines: int) -> None:
    lines = wrapped(text, FONT, width, max_lines)
    assert len(lines) <= max_lines
    assert all(line and line.isascii() and FONT.getlength(line) <= width for line in lines)


def test_words_are_kept_whole_and_in_order_where_they_fit() -> None:
    text = "a small red bird with black wings"
    lines = wrapped(text, FONT, 100, 9)
    assert len(lines) > 1 and " ".join(lines) == text
    cut = wrapped(text, FONT, 100, 2)
    assert cut[0] == lines[0] and cut[1].endswith("...")


def test_letters_lose_accents_and_unknown_characters_are_question_marks() -> None:
    assert wrapped("un  oisé \U0001f426\n鸟", FONT, 300, 1) == ["un oise ? ?"]
