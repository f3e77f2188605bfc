"""The crop rules against brute force, the published formula, and the real birds' boxes."""

import itertools
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.cropping import Bbox, CropBox, CropRule, bbox_inside, crop_box_for, object_area_ratio
from pipeline.data.sources import read_source

SHARES = st.sampled_from([0.5, 0.75, 0.9, 1.0])
many = settings(max_examples=150, deadline=None)


@st.composite
def whole_pixel_boxes(draw: st.DrawFn, max_side: int = 400) -> tuple[Bbox, int, int]:
    """Draw a picture's width and height and a box of whole pixels inside it."""
    width, height = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return Bbox(float(left), float(top), float(right - left), float(bottom - top)), width, height


@st.composite
def quarter_pixel_boxes(draw: st.DrawFn, max_side: int) -> tuple[Bbox, int, int]:
    """Draw a box whose edges are quarters of a pixel, so that its area is exact in floating point."""
    box, width, height = draw(whole_pixel_boxes(4 * max_side))
    return Bbox(*(value / 4 for value in box)), math.ceil(width / 4), math.ceil(height / 4)


def area_crop(bbox: Bbox, width: int, height: int, share: float = 0.75) -> CropBox:
    return crop_box_for(bbox, width, height, rule="area", min_object_area=share)


def sides(crop: CropBox) -> tuple[int, int]:
    return crop.right - crop.left, crop.bottom - crop.top


def stretch(width: int, height: int) -> Fraction:
    return Fraction(max(width, height), min(width, height))


def contains(crop: CropBox, bbox: Bbox) -> bool:
    return (
        crop.left <= bbox.x
        and crop.top <= bbox.y
        and bbox.x + bbox.width <= crop.right
        and bbox.y + bbox.height <= crop.bottom
    )


def is_inside(crop: CropBox, width: int, height: int) -> bool:
    return 0 <= crop.left < crop.right <= width and 0 <= crop.top < crop.bottom <= height


def least_stretch(bbox: Bbox, width: int, height: int, share: float) -> Fraction | None:
    """Try every size of a whole-pixel crop that contains the box and meets the share; None where there is none."""
    least_width = math.ceil(bbox.x + bbox.width) - math.floor(bbox.x)
    least_height = math.ceil(bbox.y + bbox.height) - math.floor(bbox.y)
    object_area = Fraction(bbox.width) * Fraction(bbox.height)
    return min(
        (
            stretch(crop_width, crop_height)
            for crop_width in range(least_width, width + 1)
            for crop_height in range(least_height, height + 1)
            if object_area >= Fraction(str(share)) * crop_width * crop_height
        ),
        default=None,
    )


@many
@given(whole_pixel_boxes(), SHARES)
def test_an_area_crop_contains_its_box_meets_the_share_and_is_inside(
    drawn: tuple[Bbox, int, int], share: float
) -> None:
    bbox, width, height = drawn
    crop = area_crop(bbox, width, height, share)
    assert contains(crop, bbox)
    assert is_inside(crop, width, height)
    assert object_area_ratio(bbox, crop) >= share


@many
@given(quarter_pixel_boxes(max_side=100), SHARES)
def test_a_box_between_pixels_is_contained_and_meets_the_share_where_any_crop_can(
    drawn: tuple[Bbox, int, int], share: float
) -> None:
    bbox, width, height = drawn
    crop = area_crop(bbox, width, height, share)
    assert contains(crop, bbox)
    assert is_inside(crop, width, height)
    tight = (math.ceil(bbox.x + bbox.width) - math.floor(bbox.x)) * (
        math.ceil(bbox.y + bbox.height) - math.floor(bbox.y)
    )
    assert object_area_ratio(bbox, crop) >= min(share, bbox.width * bbox.height / tight)


@many
@given(whole_pixel_boxes(max_side=14), SHARES)
def test_no_crop_of_whole_pixels_is_nearer_to_a_square(drawn: tuple[Bbox, int, int], share: float) -> None:
    bbox, width, height = drawn
    assert stretch(*sides(area_crop(bbox, width, height, share))) == least_stretch(bbox, width, height, share)


@many
@given(quarter_pixel_boxes(max_side=10), SHARES)
def test_no_crop_is_nearer_to_a_square_for_a_box_between_pixels_either(
    drawn: tuple[Bbox, int, int], share: float
) -> None:
    bbox, width, height = drawn
    least = least_stretch(bbox, width, height, share)
    if least is not None:
        assert stretch(*sides(area_crop(bbox, width, height, share))) == least


@many
@given(quarter_pixel_boxes(max_side=6), SHARES)
def test_of_all_crops_that_contain_the_box_and_meet_the_share_it_is_the_squarest_and_then_the_most_central(
    drawn: tuple[Bbox, int, int], share: float
) -> None:
    """Try every crop of a small picture, each of its places included."""
    bbox, width, height = drawn
    object_area = Fraction(bbox.width) * Fraction(bbox.height)
    allowed = [
        crop
        for left, right in itertools.combinations(range(width + 1), 2)
        for top, bottom in itertools.combinations(range(height + 1), 2)
        if contains(crop := CropBox(left, top, right, bottom), bbox)
        and object_area >= Fraction(str(share)) * (right - left) * (bottom - top)
    ]
    if not allowed:
        return  # a box of few pixels with fractional edges: no crop of whole pixels is tight enough
    chosen = area_crop(bbox, width, height, share)
    assert chosen in allowed
    assert stretch(*sides(chosen)) == min(stretch(*sides(crop)) for crop in allowed)
    same_size = [crop for crop in allowed if sides(crop) == sides(chosen)]
    assert off_centre(chosen, bbox) == min(off_centre(crop, bbox) for crop in same_size)


def off_centre(crop: CropBox, bbox: Bbox) -> float:
    """Return how far the crop's centre is from the box's, summed over the axes; quarter pixels are exact."""
    off_x = (crop.left + crop.right) / 2 - (bbox.x + bbox.width / 2)
    off_y = (crop.top + crop.bottom) / 2 - (bbox.y + bbox.height / 2)
    return abs(off_x) + abs(off_y)


@st.composite
def any_boxes(draw: st.DrawFn) -> tuple[Bbox, int, int]:
    """Draw a box of any numbers that shares at least a hundredth of a pixel with the picture on each axis."""
    width, height = draw(st.integers(1, 500)), draw(st.integers(1, 500))
    edges = [
        (
            draw(st.floats(-300, side - 0.01)),
            draw(st.floats(0.01, 300 + side)),
        )
        for side in (width, height)
    ]
    (left, right), (top, bottom) = ((low, max(high, low + 0.01, 0.01)) for low, high in edges)
    return Bbox(left, top, right - left, bottom - top), width, height


@many
@given(any_boxes(), SHARES)
def test_any_box_cut_to_the_picture_is_contained_and_fills_the_share_or_as_much_as_whole_pixels_allow(
    drawn: tuple[Bbox, int, int], share: float
) -> None:
    bbox, width, height = drawn
    inside = bbox_inside(bbox, width, height)
    crop = area_crop(bbox, width, height, share)
    assert is_inside(crop, width, height)
    # Widths are differences of floats: an edge may come out a rounding beyond the pixel that it was cut at.
    assert crop.left <= inside.x and inside.x + inside.width <= crop.right + 1e-9
    assert crop.top <= inside.y and inside.y + inside.height <= crop.bottom + 1e-9
    tight = CropBox(
        math.floor(inside.x),
        math.floor(inside.y),
        min(math.ceil(inside.x + inside.width), width),
        min(math.ceil(inside.y + inside.height), height),
    )
    assert object_area_ratio(inside, crop) >= min(share, object_area_ratio(inside, tight)) * (1 - 1e-12)


@many
@given(whole_pixel_boxes(), SHARES)
def test_an_area_crop_is_centred_on_its_box_unless_the_border_shifts_it(
    drawn: tuple[Bbox, int, int], share: float
) -> None:
    bbox, width, height = drawn
    crop = area_crop(bbox, width, height, share)
    off_x = (crop.left + crop.right) / 2 - (bbox.x + bbox.width / 2)
    off_y = (crop.top + crop.bottom) / 2 - (bbox.y + bbox.height / 2)
    # Half a pixel is what whole pixels cost; a larger way off is towards the inside, with the crop at the border.
    for off, at_low_border, at_high_border in (
        (off_x, crop.left == 0, crop.right == width),
        (off_y, crop.top == 0, crop.bottom == height),
    ):
        assert abs(off) <= 0.5 or (off > 0 and at_low_border) or (off < 0 and at_high_border)


@many
@given(whole_pixel_boxes(), SHARES)
def test_the_border_shifts_a_crop_and_cuts_it_only_where_the_picture_is_smaller(
    drawn: tuple[Bbox, int, int], share: float
) -> None:
    bbox, width, height = drawn
    far_from_borders = Bbox(bbox.x + 1000, bbox.y + 1000, bbox.width, bbox.height)
    free_width, free_height = sides(area_crop(far_from_borders, 3000, 3000, share))
    assert sides(area_crop(bbox, width, height, share)) == (min(free_width, width), min(free_height, height))


@many
@given(whole_pixel_boxes(), SHARES)
def test_turning_the_picture_turns_the_crop(drawn: tuple[Bbox, int, int], share: float) -> None:
    bbox, width, height = drawn
    crop = area_crop(bbox, width, height, share)
    turned = area_crop(Bbox(bbox.y, bbox.x, bbox.height, bbox.width), height, width, share)
    assert (turned.top, turned.left, turned.bottom, turned.right) == crop


@many
@given(whole_pixel_boxes())
def test_a_share_of_one_keeps_the_box_itself(drawn: tuple[Bbox, int, int]) -> None:
    bbox, width, height = drawn
    assert area_crop(bbox, width, height, 1.0) == (bbox.x, bbox.y, bbox.x + bbox.width, bbox.y + bbox.height)


@pytest.mark.parametrize(
    ("bbox", "width", "height", "expected"),
    [
        (Bbox(40, 40, 20, 20), 100, 100, CropBox(40, 40, 60, 60)),  # a square stays
        (Bbox(40, 40, 20, 15), 100, 100, CropBox(40, 38, 60, 58)),  # 15 / 20 is 0.75: just square (37.5 to even)
        (Bbox(40, 40, 30, 15), 100, 100, CropBox(40, 38, 70, 58)),  # 450 / 0.75 / 30: 20 high
        (Bbox(40, 0, 30, 15), 100, 100, CropBox(40, 0, 70, 20)),  # shifted down
        (Bbox(40, 85, 30, 15), 100, 100, CropBox(40, 80, 70, 100)),  # shifted up
        (Bbox(40, 1, 30, 15), 100, 17, CropBox(40, 0, 70, 17)),  # the picture is lower than the crop
        (Bbox(0, 0, 1, 1), 1, 1, CropBox(0, 0, 1, 1)),
        (Bbox(2.5, 2.5, 1, 1), 9, 9, CropBox(2, 2, 4, 4)),  # a share of 0.25 is all that whole pixels allow
    ],
)
def test_area_crops_worked_out_by_hand(bbox: Bbox, width: int, height: int, expected: CropBox) -> None:
    assert area_crop(bbox, width, height) == expected


def published_formula(bbox: Bbox, width: int, height: int) -> CropBox:
    """The published code's crop, written anew from its description: R = int(0.75 max(w, h)) around the centre."""
    x, y, box_width, box_height = int(bbox.x), int(bbox.y), int(bbox.width), int(bbox.height)
    center_x, center_y = int((2 * x + box_width) / 2), int((2 * y + box_height) / 2)
    half_side = int(0.75 * max(box_width, box_height))
    rows = np.arange(height)[max(0, center_y - half_side) : min(height, center_y + half_side)]
    columns = np.arange(width)[max(0, center_x - half_side) : min(width, center_x + half_side)]
    return CropBox(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


@many
@given(whole_pixel_boxes().filter(lambda drawn: max(drawn[0].width, drawn[0].height) >= 2))
def test_a_published_crop_is_the_formula_to_the_pixel(drawn: tuple[Bbox, int, int]) -> None:
    bbox, width, height = drawn
    crop = crop_box_for(bbox, width, height, rule="published", min_object_area=0.75)
    assert crop == published_formula(bbox, width, height)
    assert is_inside(crop, width, height)


@st.composite
def overrunning_boxes(draw: st.DrawFn, step: float) -> tuple[Bbox, int, int]:
    """Draw a box of steps of a pixel that shares some of the picture but may overrun each of its sides."""
    width, height = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    in_x, in_y = (draw(st.integers(0, int(side / step) - 1)) for side in (width, height))
    left, top = (inside - draw(st.integers(0, 100)) for inside in (in_x, in_y))
    right, bottom = (inside + 1 + draw(st.integers(0, 100)) for inside in (in_x, in_y))
    return Bbox(left * step, top * step, (right - left) * step, (bottom - top) * step), width, height


@many
@given(overrunning_boxes(step=1.0).filter(lambda drawn: max(drawn[0].width, drawn[0].height) >= 2))
def test_a_published_crop_takes_a_box_that_overruns_as_it_stands(drawn: tuple[Bbox, int, int]) -> None:
    bbox, width, height = drawn
    crop = crop_box_for(bbox, width, height, rule="published", min_object_area=0.75)
    assert crop == published_formula(bbox, width, height)


@many
@given(overrunning_boxes(step=0.25))
def test_a_published_crop_is_never_empty(drawn: tuple[Bbox, int, int]) -> None:
    bbox, width, height = drawn
    assert is_inside(crop_box_for(bbox, width, height, rule="published", min_object_area=0.75), width, height)


@many
@given(overrunning_boxes(step=0.25), SHARES)
def test_an_area_crop_of_a_box_that_overruns_is_that_of_its_part_inside(
    drawn: tuple[Bbox, int, int], share: float
) -> None:
    bbox, width, height = drawn
    assert area_crop(bbox, width, height, share) == area_crop(bbox_inside(bbox, width, height), width, height, share)


def test_a_published_crop_away_from_the_border_is_one_and_a_half_times_the_longest_side() -> None:
    crop = crop_box_for(Bbox(400, 400, 200, 90), 1000, 1000, rule="published", min_object_area=0.75)
    assert crop == CropBox(500 - 150, 445 - 150, 500 + 150, 445 + 150)


@given(whole_pixel_boxes())
def test_no_rule_keeps_the_whole_picture(drawn: tuple[Bbox, int, int]) -> None:
    bbox, width, height = drawn
    assert crop_box_for(bbox, width, height, rule="none", min_object_area=0.75) == (0, 0, width, height)


@many
@given(
    st.tuples(*[st.integers(-30, 60)] * 2, *[st.integers(-5, 80)] * 2),
    st.integers(1, 50),
    st.integers(1, 50),
)
def test_a_box_is_cut_to_the_pixels_that_it_shares_with_the_picture_or_refused(
    box: tuple[int, int, int, int], width: int, height: int
) -> None:
    x, y, box_width, box_height = box
    columns = set(range(x, x + box_width)) & set(range(width))
    rows = set(range(y, y + box_height)) & set(range(height))
    bbox = Bbox(*map(float, box))
    if columns and rows:
        assert bbox_inside(bbox, width, height) == (min(columns), min(rows), len(columns), len(rows))
    else:
        with pytest.raises(ValueError, match="empty or outside the picture"):
            bbox_inside(bbox, width, height)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(4))
def test_a_box_that_is_not_finite_is_refused(place: int, value: float) -> None:
    numbers = [1.0, 1.0, 3.0, 3.0]
    numbers[place] = value
    with pytest.raises(ValueError, match="is not finite"):
        bbox_inside(Bbox(*numbers), 10, 10)


def test_a_box_that_overruns_by_a_pixel_is_cut() -> None:
    assert bbox_inside(Bbox(5, 127, 496, 131), 500, 275) == Bbox(5, 127, 495, 131)  # one of CUB's own


@many
@given(whole_pixel_boxes(max_side=30), st.data())
def test_the_area_ratio_is_the_share_of_the_crops_pixels(drawn: tuple[Bbox, int, int], data: st.DataObject) -> None:
    bbox, width, height = drawn
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    crop = CropBox(left, top, data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height)))
    covered = np.zeros((height, width))
    covered[int(bbox.y) : int(bbox.y + bbox.height), int(bbox.x) : int(bbox.x + bbox.width)] = 1
    share = covered[crop.top : crop.bottom, crop.left : crop.right].mean()
    assert object_area_ratio(bbox, crop) == pytest.approx(share)


def real_crops(real_data: Path, rule: CropRule) -> list[tuple[Bbox, CropBox, int, int]]:
    crops: list[tuple[Bbox, CropBox, int, int]] = []
    source = read_source(real_data / "cub", source="cub", split="zero_shot", captions_per_image=10, on_bad_image="fail")
    for record in source.records:
        assert record.bbox is not None
        with Image.open(record.image_path) as image:
            width, height = image.size
        bbox = bbox_inside(record.bbox, width, height)
        crops.append((bbox, crop_box_for(bbox, width, height, rule=rule, min_object_area=0.75), width, height))
    return crops


def test_every_real_bird_fills_three_quarters_of_its_crop_at_little_stretch(real_data: Path) -> None:
    crops = real_crops(real_data, "area")
    assert len(crops) == 779
    assert min(object_area_ratio(bbox, crop) for bbox, crop, _, _ in crops) >= 0.75
    assert all(contains(crop, bbox) and is_inside(crop, width, height) for bbox, crop, width, height in crops)
    assert 1.04 < np.median([float(stretch(*sides(crop))) for _, crop, _, _ in crops]) < 1.09
    before = [object_area_ratio(bbox, CropBox(0, 0, width, height)) for bbox, _, width, height in crops]
    assert 0.7 < np.mean(np.less(before, 0.5)) < 0.85  # the paper's motive: about 80 % are below 0.5


def test_published_crops_of_real_birds_fill_far_less(real_data: Path) -> None:
    ratios = [object_area_ratio(bbox, crop) for bbox, crop, _, _ in real_crops(real_data, "published")]
    assert 0.38 < np.median(ratios) < 0.45
    assert np.mean(np.greater_equal(ratios, 0.75)) < 0.08
