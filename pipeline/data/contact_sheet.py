"""The contact sheet: some pictures with their boxes, and what each crop rule makes of them, on one JPEG for people.

Equal pictures give equal bytes.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from pipeline.data.cropping import Bbox, CropBox, CropRule, bbox_inside, crop_box_for, object_area_ratio
from pipeline.data.decoding import Pixels, decode_image, resize_crop
from pipeline.data.records import SourceImage

# The rules in their order on the sheet, in colours that people who see few of them tell apart (Okabe and Ito, 2008).
RULE_COLOURS: dict[CropRule, str] = {"area": "#d55e00", "published": "#0072b2", "none": "#009e73"}
PAPER, INK, MUTED = "#fbfaf7", "#1d2126", "#5c646e"

TILE = 208  # side of a crop, and height of a picture
PICTURE_WIDTH = 280
MARGIN, GAP = 32, 24
HEAD_HEIGHT, LABEL_HEIGHT = 172, 62  # above the first row; under each, with the space before the next
LINE = 3  # width of a crop's outline
DASH = 7  # length of a dash of the box, and of the space behind it
JPEG_QUALITY = 90


class _Part(NamedTuple):
    """Where something stands on a sheet, in pixels."""

    left: int
    top: int
    right: int
    bottom: int


def spread_over(values: Sequence[float], count: int) -> list[int]:
    """Return the places of `count` values at evenly spaced quantiles, the middle ones of `count` equal parts.

    Equal values stay in their order; fewer values than `count` give all of them.
    """
    order = sorted(range(len(values)), key=lambda place: values[place])
    count = min(count, len(values))
    return [order[(2 * part + 1) * len(values) // (2 * count)] for part in range(count)]


def contact_sheet(records: Sequence[SourceImage], *, rule: CropRule, min_object_area: float) -> bytes:
    """Draw one row a picture: itself with its box and the crops' outlines, then the crop of each rule, as it is stored.

    Args:
        records: pictures that can be decoded, with boxes that lie inside.
        rule: the one in use, marked in the head.
        min_object_area: of rule `area`.

    Returns:
        The JPEG.
    """
    width = 2 * MARGIN + PICTURE_WIDTH + len(RULE_COLOURS) * (GAP + TILE)
    height = HEAD_HEIGHT + len(records) * (TILE + LABEL_HEIGHT)
    sheet = Image.new("RGB", (width, height), PAPER)
    _draw_head(sheet, rule, min_object_area)
    for place, record in enumerate(records):
        image = decode_image(record.image_path)
        picture_size = image.shape[1], image.shape[0]
        published = record.bbox or Bbox(0.0, 0.0, *map(float, picture_size))
        crop_boxes: dict[CropRule, CropBox] = {
            each: crop_box_for(published, *picture_size, rule=each, min_object_area=min_object_area)
            for each in RULE_COLOURS
        }
        top = HEAD_HEIGHT + place * (TILE + LABEL_HEIGHT)
        _draw_row(sheet, top, image, bbox_inside(published, *picture_size), crop_boxes)
        _draw_note(sheet, MARGIN, top, PICTURE_WIDTH, record.file_name.split("/")[-1])
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _columns() -> dict[CropRule, int]:
    """Return the left edge of each rule's crops."""
    return {rule: MARGIN + PICTURE_WIDTH + GAP + place * (TILE + GAP) for place, rule in enumerate(RULE_COLOURS)}


def _draw_head(sheet: Image.Image, used: CropRule, min_object_area: float) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 52), "What each crop rule keeps", INK, _font(28), anchor="ls")
    baseline = 112
    _draw_dashes(draw, _Part(MARGIN, baseline - 18, MARGIN + 35, baseline + 3))
    draw.text((MARGIN + 46, baseline), "the object's box", INK, _font(21), anchor="ls")
    draw.text((MARGIN, baseline + 30), "number: its share of the area", MUTED, _font(17), anchor="ls")
    explained = {
        "area": f"object at least {min_object_area:g}",
        "published": "1.5 x box's longer side",
        "none": "the whole picture",
    }
    for rule, left in _columns().items():
        draw.rectangle((left, baseline - 17, left + 20, baseline + 3), RULE_COLOURS[rule])
        draw.text((left + 30, baseline), rule, INK, _font(21), anchor="ls")
        draw.text((left, baseline + 30), explained[rule], MUTED, _font(17), anchor="ls")
        if rule == used:
            start = left + 40 + round(_font(21).getlength(rule))
            draw.rounded_rectangle((start, baseline - 20, start + 52, baseline + 6), 13, INK)
            draw.text((start + 26, baseline - 7), "used", PAPER, _font(16), anchor="mm")


def _draw_row(sheet: Image.Image, top: int, image: Pixels, bbox: Bbox, crop_boxes: dict[CropRule, CropBox]) -> None:
    _draw_picture(sheet, top, image, bbox, crop_boxes)
    _draw_share(sheet, MARGIN, top, object_area_ratio(bbox, crop_boxes["none"]))
    for rule, left in _columns().items():
        crop_box = crop_boxes[rule]
        inner = TILE - 2 * LINE
        crop = resize_crop(image[crop_box.top : crop_box.bottom, crop_box.left : crop_box.right], inner)
        sheet.paste(Image.fromarray(crop), (left + LINE, top + LINE))
        frame = (left, top, left + TILE - 1, top + TILE - 1)
        ImageDraw.Draw(sheet).rectangle(frame, outline=RULE_COLOURS[rule], width=LINE)
        _draw_share(sheet, left, top, object_area_ratio(bbox, crop_box))
        size = f"{crop_box.right - crop_box.left} x {crop_box.bottom - crop_box.top} pixels"
        _draw_note(sheet, left, top, TILE, size)


def _draw_picture(sheet: Image.Image, top: int, image: Pixels, bbox: Bbox, crop_boxes: dict[CropRule, CropBox]) -> None:
    """Draw the picture as large as it fits, around what a rule keeps its outline, and the box inside its edge.

    Outlines lie around each other (area, published, none), so that all are seen where their edges are the same.
    """
    height, width = image.shape[:2]
    room = 2 * LINE * len(crop_boxes)
    scale = min((PICTURE_WIDTH - room) / width, (TILE - room) / height)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    corner = MARGIN + (PICTURE_WIDTH - size[0]) // 2, top + (TILE - size[1]) // 2
    sheet.paste(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), corner)
    draw = ImageDraw.Draw(sheet)

    def placed(left: float, top: float, right: float, bottom: float) -> _Part:
        return _Part(
            corner[0] + round(left * scale),
            corner[1] + round(top * scale),
            corner[0] + max(round(right * scale), 1),
            corner[1] + max(round(bottom * scale), 1),
        )

    for place, rule in enumerate(RULE_COLOURS):
        part, out = placed(*crop_boxes[rule]), LINE * (place + 1)
        outline = (part.left - out, part.top - out, part.right + out - 1, part.bottom + out - 1)
        draw.rectangle(outline, outline=RULE_COLOURS[rule], width=LINE)
    _draw_dashes(draw, placed(bbox.x, bbox.y, bbox.x + bbox.width, bbox.y + bbox.height))


def _draw_share(sheet: Image.Image, left: int, top: int, share: float) -> None:
    ImageDraw.Draw(sheet).text((left, top + TILE + 27), f"{share:.2f}", INK, _font(22), anchor="ls")


def _draw_note(sheet: Image.Image, left: int, top: int, width: int, note: str) -> None:
    """Write small text behind a share, cut to the column's width."""
    font, room = _font(16), width - 58
    if font.getlength(note) > room:
        while font.getlength(f"{note}...") > room:
            note = note[:-1]
        note = f"{note}..."
    ImageDraw.Draw(sheet).text((left + 58, top + TILE + 27), note, MUTED, font, anchor="ls")


def _draw_dashes(draw: ImageDraw.ImageDraw, part: _Part) -> None:
    """Draw a part's edge just inside it, white dashes on black, which show on any picture."""
    right, bottom = max(part.right - 1, part.left), max(part.bottom - 1, part.top)
    draw.rectangle((part.left, part.top, right, bottom), outline="black", width=2)
    for start in range(part.left, right, 2 * DASH):
        for y in (part.top, max(bottom - 1, part.top)):
            draw.rectangle((start, y, min(start + DASH - 1, right), min(y + 1, bottom)), "white")
    for start in range(part.top, bottom, 2 * DASH):
        for x in (part.left, max(right - 1, part.left)):
            draw.rectangle((x, start, min(x + 1, right), min(start + DASH - 1, bottom)), "white")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the typeface that Pillow brings along, so that sheets look alike everywhere."""
    return ImageFont.load_default(size)
