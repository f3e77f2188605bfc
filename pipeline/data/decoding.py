"""Picture files to pixels: decode to RGB, whatever the file's name says, and resize crops to the sizes that are stored.

What becomes of odd files:

    missing, empty, torn, no picture     refused
    name says another format             read by what is in it: JPEG, PNG, GIF, WebP, BMP, TIFF or PNM
    greyscale, palette, CMYK             turned into RGB; colour profiles are not applied, as in the published code
    transparent                          laid on white
    16 bits a channel                    the upper eight are kept; 32-bit numbers have no stated range: refused
    turned by its EXIF orientation       turned upright, as boxes are of the upright picture; EXIF that cannot be read
                                         turns nothing
    animated, or of several pages        refused: which frame is meant nobody said
    more than MAX_PIXELS                 refused before it is unpacked
    a side shorter than MIN_SIDE         refused: a placeholder, no picture
"""

import errno
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from pipeline.data.albumentations_release import import_albumentations

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)

MAX_PIXELS = 64_000_000
MIN_SIDE = 16
# The others are not tried: some start programs (EPS) or read other files, and no data set uses them.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")  # MPO is opened as JPEG

# What torn files make Pillow raise, found by feeding it thousands of damaged ones.
TORN = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error, zlib.error,
)  # fmt: skip

# In a scan 0xff is followed by zero or by a restart's number; with anything else it is a marker.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unusable(ValueError):
    """A whole picture that is not wanted; the message goes on where its file's name ends."""


def decode_image(path: Path) -> Pixels:
    """Decode a picture to (H, W, 3) uint8 RGB, as the module's text says.

    Raises:
        ValueError: the picture cannot be used; the message names the file and the remedy.
        OSError: the file cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing though the data set lists it; bring it or remove it from the list")
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            return _decoded(file)
    except Unusable as error:
        raise ValueError(f"{path} {error}") from None
    except Image.DecompressionBombError:  # Pillow's own bound, which is higher
        raise ValueError(f"{path} has far more than {MAX_PIXELS} pixels; shrink it") from None
    except Image.UnidentifiedImageError:  # its own text holds an address in memory
        reason = f"it is none of {', '.join(FORMATS)}"
    except TORN as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the disk's or the system's, and no property of the picture; EINVAL: it sent Pillow out of the file
        reason = str(error) or type(error).__name__
    raise ValueError(f"{path} cannot be decoded ({reason}); bring a whole copy or remove it from the list")


def _decoded(file: IO[bytes]) -> Pixels:
    with Image.open(file, formats=FORMATS) as image:
        _require_size(image)
        _require_one_frame(image)
        if image.format == "JPEG" and image.mode == "RGB" and _orientation(image) not in _TURNS:
            pixels = _jpeg_decoded(file, file.tell())
            if pixels is not None and pixels.shape == (image.height, image.width, 3):
                return pixels
        image.load()  # a TIFF is turned upright by this and forgets its orientation
        turn = _TURNS.get(_orientation(image))
        return _rgb(image if turn is None else image.transpose(turn))


def _require_size(image: Image.Image) -> None:
    size = f"{image.width}x{image.height} pixels"
    if image.width * image.height > MAX_PIXELS:
        raise Unusable(f"has {size}, more than {MAX_PIXELS}; shrink it")
    if min(image.size) < MIN_SIDE:
        raise Unusable(f"has {size}, a side shorter than {MIN_SIDE}; bring a larger copy or remove it from the list")


def _require_one_frame(image: Image.Image) -> None:
    # Phones write a second, smaller view behind the first under .jpg (MPO): such a file is a picture.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise Unusable(f"is an animation of {cast(Any, image).n_frames} frames; save one frame as a picture")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 1 where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except TORN:
        return 1


def _jpeg_decoded(file: IO[bytes], scan_start: int) -> Pixels | None:
    """Decode a whole RGB JPEG of one scan by OpenCV: Pillow's pixels, since both have libjpeg-turbo, but sooner.

    Pillow keeps four bytes a pixel and packs them anew for NumPy, so this takes 0.7 to 0.9 of its time. But OpenCV
    accepts torn files that Pillow refuses: all those whose scan, which begins at `scan_start`, has another marker than
    the one at the file's end. They are left to Pillow, and so is what OpenCV refuses: None.
    """
    import cv2

    file.seek(0)
    data = file.read()
    marker = _JPEG_MARKER.search(data, scan_start)
    if marker is None or marker.group() != b"\xff\xd9" or marker.end() != len(data):
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        return cast(Pixels | None, cv2.imdecode(np.frombuffer(data, np.uint8), flags))
    except cv2.error:
        return None


def _rgb(image: Image.Image) -> Pixels:
    """Return a loaded picture of any mode as (H, W, 3) uint8."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # converting would clip at 255
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise Unusable(f"has pixels of 32-bit numbers (mode {image.mode}); save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return np.asarray(Image.alpha_composite(white, opaque).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def resize_crop(crop: Pixels, size: int) -> Pixels:
    """Resize a crop to (size, size, 3): sides that shrink are averaged over areas, then the others grow bicubic."""
    height, width = min(crop.shape[0], size), min(crop.shape[1], size)
    if crop.shape[:2] != (height, width):
        crop = _resizing(height, width, grows=False)(crop)
    return crop if crop.shape[:2] == (size, size) else _resizing(size, size, grows=True)(crop)


@cache
def _resizing(height: int, width: int, *, grows: bool) -> Callable[[Pixels], Pixels]:
    """Return albumentations' resizing to one size; making one costs as much as a quarter of the resizing itself."""
    import cv2

    A = import_albumentations()
    cv2.setNumThreads(1)  # one task a CPU
    resize = A.Resize(height, width, interpolation=cv2.INTER_CUBIC if grows else cv2.INTER_AREA)
    return lambda crop: resize(image=crop)["image"]
