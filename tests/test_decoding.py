"""Picture files to pixels: odd files become plain RGB or are refused by name, and JPEGs have Pillow's own pixels."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from pipeline.data.decoding import FORMATS, MAX_PIXELS, MIN_SIDE, decode_image, resize_crop

COLOURS = np.random.default_rng(0).integers(0, 256, (18, 25, 3), dtype=np.uint8)


def ramp(width: int = 90, height: int = 61) -> Image.Image:
    """Return a smooth picture that is different at each corner, so that JPEG keeps it and turning it shows."""
    x, y = np.meshgrid(np.linspace(0, 250, width), np.linspace(0, 250, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8))


def jpeg(image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or ramp()).save(buffer, "JPEG", **{"quality": 95, **options})
    return buffer.getvalue()


def saved(path: Path, image: Image.Image, kind: str = "PNG", **options: Any) -> Path:
    image.save(path, kind, **options)
    return path


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def refusal(path: Path) -> str:
    """Return the message of the refusal: one line that names the file."""
    with pytest.raises(ValueError) as refused:
        decode_image(path)
    message = str(refused.value)
    assert message.startswith(f"{path} ") and "\n" not in message
    return message


JPEGS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "poor": {"quality": 20},
    "best": {"quality": 100, "subsampling": 0},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True},
    "restarts": {"restart_marker_rows": 1},
    "stored_as_rgb": {"keep_rgb": True},
    "comment_with_markers": {"comment": b"\xff\xd9\xff\xda\xff\xd8"},
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("size", [(90, 61), (16, 16), (17, 113)])
def test_a_jpeg_has_pillows_pixels(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 40, (size[1], size[0], 3), dtype=np.uint8)
    data = jpeg(Image.fromarray(np.asarray(ramp(*size)) // 2 + noise), **JPEGS[name])
    (tmp_path / "picture.jpg").write_bytes(data)
    pixels = decode_image(tmp_path / "picture.jpg")
    assert pixels.dtype == np.uint8 and pixels.shape == (size[1], size[0], 3)
    np.testing.assert_array_equal(pixels, by_pillow(data))


def test_real_pictures_have_pillows_pixels(real_data: Path) -> None:
    paths = sorted(real_data.rglob("*.jpg"))[::8]
    assert len(paths) > 50
    for path in paths:
        np.testing.assert_array_equal(decode_image(path), by_pillow(path.read_bytes()), err_msg=str(path))


def test_a_file_is_read_by_what_is_in_it_whatever_its_name_says(tmp_path: Path) -> None:
    for kind in ("PNG", "BMP", "TIFF", "PPM", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        path = saved(tmp_path / "picture.jpg", Image.fromarray(COLOURS), kind, **options)
        np.testing.assert_array_equal(decode_image(path), COLOURS, err_msg=kind)


def test_a_greyscale_picture_has_three_equal_channels(tmp_path: Path) -> None:
    grey = COLOURS[..., 0]
    pixels = decode_image(saved(tmp_path / "grey.png", Image.fromarray(grey)))
    np.testing.assert_array_equal(pixels, np.repeat(grey[..., None], 3, axis=2))
    smooth = decode_image(saved(tmp_path / "grey.jpg", ramp().convert("L"), "JPEG"))
    assert (smooth == smooth[..., :1]).all() and smooth.std() > 10


def test_a_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    pixels = decode_image(saved(tmp_path / "print.jpg", ramp().convert("CMYK"), "JPEG", quality=98))
    assert np.abs(pixels.astype(int) - np.asarray(ramp())).max() <= 12


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_a_palette_is_looked_up(kind: str, tmp_path: Path) -> None:
    few = Image.fromarray(COLOURS // 86 * 86)  # 27 colours
    path = saved(tmp_path / "picture.jpg", few.quantize(64, dither=Image.Dither.NONE), kind)
    np.testing.assert_array_equal(decode_image(path), np.asarray(few))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_transparent_picture_lies_on_white(mode: str, tmp_path: Path) -> None:
    alpha = np.zeros(COLOURS.shape[:2], np.uint8)
    alpha[:, 5:10], alpha[:, 10:] = 128, 255
    picture = Image.fromarray(COLOURS).convert(mode)
    picture.putalpha(Image.fromarray(alpha))
    pixels = decode_image(saved(tmp_path / "picture.png", picture))
    opaque = np.asarray(Image.fromarray(COLOURS).convert(mode[:-1]).convert("RGB"))
    expected = 255 + (opaque.astype(float) - 255) * alpha[..., None] / 255
    assert (pixels[:, :5] == 255).all()
    np.testing.assert_array_equal(pixels[:, 10:], opaque[:, 10:])
    assert np.abs(pixels - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palettes_transparent_colour_becomes_white(kind: str, tmp_path: Path) -> None:
    picture = Image.new("P", (20, 20), 0)
    picture.putpalette([10, 20, 30, 200, 100, 0])
    picture.paste(1, (0, 0, 10, 20))
    pixels = decode_image(saved(tmp_path / "picture.png", picture, kind, transparency=0))
    assert (pixels[:, :10] == (200, 100, 0)).all() and (pixels[:, 10:] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_upper_eight(kind: str, tmp_path: Path) -> None:
    deep = np.random.default_rng(2).integers(0, 2**16, (20, 30), dtype=np.uint16)
    pixels = decode_image(saved(tmp_path / "deep.png", Image.fromarray(deep), kind))
    np.testing.assert_array_equal(pixels, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_sixteen_bits_of_a_pgm_keep_their_upper_eight(tmp_path: Path) -> None:
    deep = np.random.default_rng(3).integers(0, 2**16, (20, 30), dtype=np.uint16)
    (tmp_path / "deep.pgm").write_bytes(b"P5 30 20 65535\n" + deep.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode_image(tmp_path / "deep.pgm")[..., 1], (deep >> 8).astype(np.uint8))


def test_sixteen_bits_of_three_colours_keep_their_upper_eight(tmp_path: Path) -> None:
    deep = np.random.default_rng(4).integers(0, 2**16, (20, 30, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)  # 0: no filter
    head = struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0)  # width, height, bits, 2: RGB
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "deep.png").write_bytes(file)
    np.testing.assert_array_equal(decode_image(tmp_path / "deep.png"), (deep >> 8).astype(np.uint8))


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


# What a viewer does with the stored rows and columns to show them upright (Exif 2.3, table of tag 274).
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_picture_is_turned_upright(orientation: int, kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "phone.jpg", ramp(), kind, exif=oriented(orientation))
    stored = by_pillow(jpeg(quality=75)) if kind == "JPEG" else np.asarray(ramp())
    turned = decode_image(path)
    tolerance = 8 if kind == "WEBP" else 0
    assert turned.shape == UPRIGHT[orientation](stored).shape
    assert np.abs(turned.astype(int) - UPRIGHT[orientation](stored)).max() <= tolerance


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0no TIFF at all"])
def test_exif_that_cannot_be_read_turns_nothing(exif: bytes, tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").write_bytes(jpeg(exif=exif))
    np.testing.assert_array_equal(decode_image(tmp_path / "picture.jpg"), by_pillow(jpeg()))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_refused(kind: str, tmp_path: Path) -> None:
    frames = [ramp(), ramp().rotate(90), ramp().rotate(180)]
    path = saved(tmp_path / "moving.jpg", frames[0], kind, save_all=True, append_images=frames[1:])
    assert "is an animation of 3 frames; save one frame as a picture" in refusal(path)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_a_single_frame_is_a_picture_though_its_format_could_move(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "still.jpg", ramp(), kind, save_all=True)
    assert decode_image(path).shape == (61, 90, 3)


def test_a_phones_jpeg_with_a_second_view_is_its_first_picture(tmp_path: Path) -> None:
    path = saved(tmp_path / "phone.jpg", ramp(), "MPO", save_all=True, append_images=[ramp(30, 20)], quality=95)
    np.testing.assert_array_equal(decode_image(path), by_pillow(jpeg()))


def test_a_decompression_bomb_is_refused_before_it_is_unpacked_and_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for side in (8001, 10_000, 30_000):  # Pillow warns from 9,459 squared, and refuses from 13,378 squared
        (tmp_path / "bomb.jpg").write_bytes(b"P4\n%d %d\n" % (side, side))
        message = refusal(tmp_path / "bomb.jpg")
        assert f"more than {MAX_PIXELS}" in message and message.endswith("; shrink it")
    assert not recwarn.list


def test_a_side_that_is_too_short_is_refused(tmp_path: Path) -> None:
    for width, height in ((1, 1), (500, MIN_SIDE - 1), (MIN_SIDE - 1, 500)):
        message = refusal(saved(tmp_path / "dot.jpg", Image.new("RGB", (width, height))))
        assert f"{width}x{height} pixels, a side shorter than {MIN_SIDE}; bring a larger copy" in message
    assert decode_image(saved(tmp_path / "dot.jpg", Image.new("RGB", (MIN_SIDE, MIN_SIDE)))).shape == (16, 16, 3)


def test_a_very_wide_picture_is_a_picture(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG"):
        assert decode_image(saved(tmp_path / "wide.jpg", ramp(20_000, 40), kind)).shape == (40, 20_000, 3)


REMEDY = "; bring a whole copy or remove it from the list"
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "zero_bytes": (b"", "it is none of JPEG, PNG"),
    "text": (b"404: not found", "it is none of JPEG, PNG"),
    "only_a_head": (jpeg()[:30], "cannot be decoded ("),
    "before_the_scan": (jpeg()[:400], "cannot be decoded ("),
    "truncated": (jpeg()[:-700], "cannot be decoded (image file is truncated"),
    "last_byte_gone": (jpeg()[:-1], "cannot be decoded (image file is truncated"),
    "truncated_png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "cannot be decoded ("),
    "torn_pnm": (b"P6 90 61 255\n" + b"\1" * 90, "cannot be decoded (image file is truncated"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_whole_picture_is_refused(name: str, tmp_path: Path) -> None:
    data, expected = BAD_FILES[name]
    (tmp_path / "picture.jpg").write_bytes(data)
    message = refusal(tmp_path / "picture.jpg")
    assert expected in message and message.endswith(REMEDY)
    assert "0x" not in message  # no address in memory: reports must not differ from run to run


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    expected = "is missing though the data set lists it; bring it or remove it from the list"
    assert expected in refusal(tmp_path / "nowhere.jpg")
    assert expected in refusal(tmp_path)


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert "is missing" in refusal(tmp_path / "loop.jpg")


def test_an_error_of_the_disk_is_not_taken_for_a_bad_picture(tmp_path: Path) -> None:
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs a file whose reading fails: Linux has one")
    (tmp_path / "picture.jpg").symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="Input/output error"):
        decode_image(tmp_path / "picture.jpg")


def test_formats_that_start_programs_are_not_tried(tmp_path: Path) -> None:
    assert "EPS" not in FORMATS
    path = tmp_path / "picture.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n")
    assert "it is none of" in refusal(path)


def test_a_damaged_picture_is_what_pillow_makes_of_it_or_refused(tmp_path: Path) -> None:
    """Damage bytes anywhere; OpenCV alone takes some files that Pillow refuses, such as a marker in the scan."""
    rng = np.random.default_rng(5)
    whole = jpeg(quality=80)
    path = tmp_path / "picture.jpg"
    num_read = 0
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(len(data) // 3, len(data), 2):
            data[place] = int(rng.choice([0xFF, rng.integers(256)]))
        path.write_bytes(data)
        try:
            expected = by_pillow(bytes(data))
        except OSError:
            refusal(path)
            continue
        num_read += 1
        np.testing.assert_array_equal(decode_image(path), expected)
    assert 50 < num_read < 400


def test_a_file_cut_anywhere_is_refused_by_name_or_read(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    for kind in FORMATS:
        whole = saved(path, Image.fromarray(COLOURS), kind).read_bytes()
        for end in range(0, len(whole) - 20, max(len(whole) // 40, 1)):
            path.write_bytes(whole[:end])
            try:
                decode_image(path)
            except ValueError as error:
                assert str(error).startswith(f"{path} ")


def area_weights(length: int, size: int) -> np.ndarray:
    """Return (size, length): row r averages the stretch [r, r + 1) * length / size of the pixels."""
    edges = np.arange(size + 1) * length / size
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.maximum(overlap, 0) * size / length


def cubic_weights(length: int, size: int) -> np.ndarray:
    """Return (size, length): cubic convolution with a = -0.75 at half-pixel centres, the border repeated."""
    a = -0.75
    weights = np.zeros((size, length))
    for row in range(size):
        center = (row + 0.5) * length / size - 0.5
        for pixel in range(int(np.floor(center)) - 1, int(np.floor(center)) + 3):
            t = abs(center - pixel)
            near = (a + 2) * t**3 - (a + 3) * t**2 + 1
            far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            weights[row, min(max(pixel, 0), length - 1)] += near if t <= 1 else far
    return weights


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize by matrices: a side that shrinks is averaged over areas, one that grows is convolved with a cubic."""
    down, across = ((area_weights if length >= size else cubic_weights)(length, size) for length in pixels.shape[:2])
    rows = np.tensordot(down, pixels.astype(float), axes=1)  # (size, width, 3)
    return np.einsum("rwc,sw->rsc", rows, across, optimize=True).clip(0, 255)


@pytest.mark.parametrize("size", [76, 304])
@pytest.mark.parametrize(
    "shape", [(400, 500), (304, 304), (76, 76), (100, 350), (350, 100), (40, 30), (1, 1), (1, 900)]
)
def test_sides_that_shrink_are_averaged_and_others_grow_bicubic(shape: tuple[int, int], size: int) -> None:
    image = np.random.default_rng(6).integers(0, 256, (shape[0] + 5, shape[1] + 7, 3), dtype=np.uint8)
    crop = image[2:-3, 3:-4]  # as crops are: no block of memory of their own
    pixels = resize_crop(crop, size)
    assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels - resized(crop, size)).max() <= 1.5
