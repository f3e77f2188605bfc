"""The contact sheet: the pictures it chooses, what it shows of them, and that its bytes are stable."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from pipeline.data import contact_sheet as sheets
from pipeline.data.contact_sheet import RULE_COLOURS, contact_sheet, spread_over
from pipeline.data.cropping import Bbox, CropRule, crop_box_for
from pipeline.data.decoding import decode_image, resize_crop
from pipeline.data.records import SourceImage
from pipeline.data.sources import read_source


@pytest.fixture
def records(cub_root: Path) -> list[SourceImage]:
    source = read_source(cub_root, source="cub", split="testclasses", captions_per_image=10, on_bad_image="fail")
    return source.records


def drawn(records: list[SourceImage], rule: CropRule = "area") -> np.ndarray:
    with Image.open(io.BytesIO(contact_sheet(records, rule=rule, min_object_area=0.75))) as image:
        assert image.format == "JPEG"
        return np.asarray(image).astype(int)


def record_of(path: Path, bbox: Bbox | None, name: str = "bird.jpg") -> SourceImage:
    return SourceImage(
        image_id=1, class_id=1, class_name="one", split="train", file_name=name, image_path=path, bbox=bbox,
        captions=("a bird",),
    )  # fmt: skip


@given(st.lists(st.floats(0, 1), max_size=40), st.integers(1, 9))
def test_the_chosen_places_are_spread_evenly_over_the_ranks(values: list[float], count: int) -> None:
    places = spread_over(values, count)
    assert len(set(places)) == len(places) == min(count, len(values))
    chosen = [values[place] for place in places]
    assert chosen == sorted(chosen)
    rank = {place: position for position, place in enumerate(np.argsort(values, kind="stable").tolist())}
    for part, place in enumerate(places):
        assert abs(rank[place] + 0.5 - (part + 0.5) * len(values) / len(places)) <= 0.5


def test_three_of_nine_are_the_middles_of_thirds() -> None:
    assert spread_over([0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 3) == [7, 4, 1]
    assert spread_over([0.5] * 9, 3) == [1, 4, 7]


def test_the_crops_of_each_rule_stand_beside_the_picture(records: list[SourceImage]) -> None:
    sheet = drawn(records[:4])
    side, line = sheets.TILE - 2 * sheets.LINE, sheets.LINE
    for row, record in enumerate(records[:4]):
        assert record.bbox is not None
        image = decode_image(record.image_path)
        top = sheets.HEAD_HEIGHT + row * (sheets.TILE + sheets.LABEL_HEIGHT) + line
        for column, rule in enumerate(RULE_COLOURS):
            left = sheets.MARGIN + sheets.PICTURE_WIDTH + sheets.GAP + column * (sheets.TILE + sheets.GAP) + line
            box = crop_box_for(record.bbox, image.shape[1], image.shape[0], rule=rule, min_object_area=0.75)
            expected = resize_crop(image[box.top : box.bottom, box.left : box.right], side)
            shown = sheet[top : top + side, left : left + side]
            assert np.abs(shown - expected)[8:-8, 8:-8].mean() < 3, (row, rule)  # JPEG blurs the frame inwards
            frame = sheet[top + 20 : top + side - 20, left - 2]
            assert np.abs(frame - ImageColor.getrgb(RULE_COLOURS[rule])).mean() < 25, (row, rule)


def test_outlines_lie_around_what_each_rule_keeps(tmp_path: Path) -> None:
    """On a grey picture that is shown at its own size, the outlines' pixels are counted from the crops' edges."""
    room = 2 * sheets.LINE * len(RULE_COLOURS)
    width, height = sheets.PICTURE_WIDTH - room, sheets.TILE - room
    Image.new("RGB", (width, height), (128, 128, 128)).save(tmp_path / "grey.png")
    bbox = Bbox(100.0, 70.0, 60.0, 30.0)
    sheet = drawn([record_of(tmp_path / "grey.png", bbox)])
    left, top = sheets.MARGIN + room // 2, sheets.HEAD_HEIGHT + room // 2
    middle_y, middle_x = top + 85, left + 130
    for place, (rule, colour) in enumerate(RULE_COLOURS.items()):
        box = crop_box_for(bbox, width, height, rule=rule, min_object_area=0.75)
        out = sheets.LINE * place + 1  # the middle of a line of three pixels
        for pixel in (
            sheet[middle_y, left + box.left - out - 1],
            sheet[middle_y, left + box.right + out],
            sheet[top + box.top - out - 1, middle_x],
            sheet[top + box.bottom + out, middle_x],
        ):
            assert np.abs(pixel - ImageColor.getrgb(colour)).max() < 60, (rule, pixel)
    edge = sheet[top + 70, left + 100 : left + 160]  # the box's upper edge, dashed
    assert edge.min() < 50 and edge.max() > 205


def test_a_picture_without_a_box_fills_every_crop(tmp_path: Path, records: list[SourceImage]) -> None:
    whole, boxed = drawn([record_of(records[0].image_path, None)]), drawn(records[:1])
    columns = [
        sheets.MARGIN + sheets.PICTURE_WIDTH + sheets.GAP + place * (sheets.TILE + sheets.GAP) for place in range(3)
    ]
    tiles = [
        whole[sheets.HEAD_HEIGHT + 12 : sheets.HEAD_HEIGHT + sheets.TILE - 12, left + 12 : left + sheets.TILE - 12]
        for left in columns
    ]
    assert np.abs(tiles[0] - tiles[2]).mean() < 2 and np.abs(tiles[1] - tiles[2]).mean() < 2
    assert np.abs(whole - boxed).mean() > 1


def test_equal_pictures_give_equal_bytes_and_the_rule_in_use_is_marked(records: list[SourceImage]) -> None:
    sheet = contact_sheet(records[:2], rule="area", min_object_area=0.75)
    assert sheet == contact_sheet(records[:2], rule="area", min_object_area=0.75)
    area, published = drawn(records[:2]), drawn(records[:2], rule="published")
    differs = np.argwhere(np.abs(area - published).sum(axis=2) > 60)
    assert len(differs) and differs[:, 0].max() < sheets.HEAD_HEIGHT - sheets.GAP


def test_nothing_is_written_over_the_pictures_or_past_the_sheet(records: list[SourceImage]) -> None:
    """However long a name is, its text ends where its column does."""
    long = record_of(records[0].image_path, records[0].bbox, name="W" * 300 + ".jpg")
    sheet, short = drawn([long]), drawn([record_of(records[0].image_path, records[0].bbox, name=".")])
    differs = np.argwhere(np.abs(sheet - short).sum(axis=2) > 60)
    assert differs[:, 0].min() >= sheets.HEAD_HEIGHT + sheets.TILE
    assert differs[:, 1].max() < sheets.MARGIN + sheets.PICTURE_WIDTH


@pytest.mark.parametrize("size", [(20_000, 16), (16, 20_000), (16, 16)])
def test_pictures_of_any_shape_can_be_shown(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "odd.png")
    sheet = drawn([record_of(tmp_path / "odd.png", Bbox(0.5, 0.5, 1.0, 1.0))])
    assert sheet.shape[2] == 3 and (np.abs(sheet - (10, 200, 30)).sum(axis=2) < 30).sum() > 10_000
