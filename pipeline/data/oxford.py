"""Oxford-102's layout on the disk (Nilsback and Zisserman, 2008), read into one canonical list of records.

    <root>/jpg/image_00001.jpg ...                    the pictures: 8,189 in 102 classes
    <root>/imagelabels.mat                            `labels` (1, N): class_id of picture 1, 2, ..., N, from 1
    <root>/setid.mat                                  `trnid`, `valid`, `tstid` (1, n): picture numbers; for official
    <root>/text_c10/class_00001/image_00001.txt ...   one caption a line, ten a picture (Reed et al., CVPR 2016)
    <root>/testclasses.txt                            `class_00001` or `1` a line; for split: testclasses
    <root>/cat_to_name.json                           optional: {"1": "pink primrose", ...}

The .mat files are read as MATLAB 5 by scipy, which executes nothing in them.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pipeline.data.records import (
    BadImages,
    SourceImage,
    SplitRule,
    is_text,
    read_captions,
    read_json,
    read_test_class_names,
    require_folder,
    require_split_rule,
)

# Of the MATLAB 5 format: types of elements, classes of arrays, and how far a compressed variable is inflated.
INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
NUMBER_TYPES = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 12, 13})  # whole numbers of 8 to 64 bits, single and double
NUMBER_CLASSES = frozenset(range(6, 16))  # the same; below are cells, structs, text and sparse arrays
COMPLEX = 0x0800
MAX_MAT_BYTES = 16_000_000
REMEDY = "bring it from the Oxford-102 data set anew"
SETS = ("trnid", "valid", "tstid")


def read_oxford(root: Path, *, split: SplitRule, captions_per_image: int, bad: BadImages) -> list[SourceImage]:
    """Read the record of every picture that has a label, sorted by image_id; whether it is there, decoding tells.

    Args:
        root: the data set's folder.
        split: `testclasses` for the 82 + 20 classes of Reed et al. (7,034 and 1,155 pictures), which the paper uses:
            bring their testclasses.txt. `official` takes trnid and valid for training and tstid for testing (2,040 and
            6,149 pictures); every class is in both, so it tests another thing than the paper does.
        captions_per_image: how many captions a picture must have; further ones are not read.
        bad: notes a picture without enough captions.

    Raises:
        ValueError: a folder or file is missing or torn, or `bad` ends the reading.
    """
    require_split_rule(split, "oxford", ("testclasses", "official"))
    require_folder(root / "jpg", "the pictures of Oxford-102, image_00001.jpg and so on")
    require_folder(root / "text_c10", "the captions, class_00001/image_00001.txt and so on, ten lines each")
    labels = _read_whole_numbers(root / "imagelabels.mat", ["labels"])[0]
    if split == "official":
        test_ids = _official_test_ids(root / "setid.mat", len(labels))
    else:
        test_ids = _test_class_image_ids(root, labels)
    names = _read_class_names(root / "cat_to_name.json", labels)

    records: list[SourceImage] = []
    for image_id, class_id in enumerate(labels, start=1):
        file_name = f"jpg/image_{image_id:05}.jpg"
        captions_path = root / "text_c10" / _class_folder(class_id) / f"image_{image_id:05}.txt"
        with bad.noted(file_name):
            record = SourceImage(
                image_id=image_id,
                class_id=class_id,
                class_name=names[class_id],
                split="test" if image_id in test_ids else "train",
                file_name=file_name,
                image_path=root / file_name,
                bbox=None,
                captions=read_captions(captions_path, captions_per_image),
            )
            records.append(record)
    return records


def _class_folder(class_id: int) -> str:
    return f"class_{class_id:05}"


def _test_class_image_ids(root: Path, labels: Sequence[int]) -> frozenset[int]:
    class_ids = sorted(set(labels))
    listed = read_test_class_names(root, [*map(_class_folder, class_ids), *map(str, class_ids)])
    return frozenset(
        image_id
        for image_id, class_id in enumerate(labels, start=1)
        if _class_folder(class_id) in listed or str(class_id) in listed
    )


def _official_test_ids(path: Path, num_images: int) -> frozenset[int]:
    """Read the test pictures of setid.mat; each of the pictures 1 to num_images must be in one of its sets."""
    sets = _read_whole_numbers(path, SETS)
    listed = [image_id for ids in sets for image_id in ids]
    outside = [image_id for image_id in listed if image_id > num_images]
    if outside:
        raise ValueError(f"{path} lists picture {outside[0]}, but imagelabels.mat has {num_images} labels; {REMEDY}")
    ids, counts = np.unique(listed, return_counts=True)
    if counts.max() > 1:
        raise ValueError(f"{path} lists picture {ids[counts.argmax()]} twice in {', '.join(SETS)}; {REMEDY}")
    if len(ids) < num_images:
        missing = min(set(range(1, num_images + 1)) - set(listed))
        raise ValueError(f"{path}: picture {missing} is in none of {', '.join(SETS)}; {REMEDY}")
    return frozenset(sets[SETS.index("tstid")])


def _read_class_names(path: Path, labels: Sequence[int]) -> dict[int, str]:
    """Return each class's name as cat_to_name.json has it, or its folder's where there is no such file."""
    class_ids = sorted(set(labels))
    if not path.is_file():
        return {class_id: _class_folder(class_id) for class_id in class_ids}
    content = read_json(path)
    names = cast(dict[str, object], content) if isinstance(content, dict) else {}
    chosen: dict[int, str] = {}
    for class_id in class_ids:
        name = names.get(str(class_id))
        if not is_text(name) or not name:
            raise ValueError(
                f'{path} has no name for class {class_id}; add `"{class_id}": "<name>"` or remove the file'
            )
        chosen[class_id] = name
    return chosen


def _read_whole_numbers(path: Path, keys: Sequence[str]) -> list[list[int]]:
    """Read rows (1, N) of whole numbers from 1 up, N > 0, out of a MATLAB 5 file."""
    arrays = _read_mat(path, keys)
    rows: list[list[int]] = []
    for key in keys:
        if key not in arrays:
            raise ValueError(f"{path} has no `{key}`; {REMEDY}")
        array = arrays[key]
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf" or array.ndim != 2 or len(array) != 1:
            shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
            raise ValueError(f"{path}: `{key}` is {dtype} of shape {shape}, not a row (1, N) of numbers; {REMEDY}")
        values = cast(npt.NDArray[np.float64], array[0].astype(np.float64))
        if not values.size or not np.all((values >= 1) & (values < 100_000) & (values == np.floor(values))):
            raise ValueError(f"{path}: `{key}` is empty or has a value that is no whole number 1 to 99999; {REMEDY}")
        rows.append([int(value) for value in values])
    return rows


def _read_mat(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    from scipy.io import loadmat  # some 50 ms; no other source needs it

    if not path.is_file():
        raise ValueError(f"{path} is missing: {REMEDY}")
    try:
        content = BytesIO(_checked_mat(path.read_bytes()))
        return cast(dict[str, Any], loadmat(content, appendmat=False, variable_names=list(keys)))
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError, NotImplementedError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no whole MATLAB 5 file of numbers ({reason}); {REMEDY}") from None


def _checked_mat(content: bytes) -> bytes:
    """Return a MATLAB 5 file with its variables inflated, if each is an array of numbers that is there as a whole.

    scipy (1.17) takes an element's type as an index without a look at it: one altered byte there ends the process.

    Raises:
        ValueError: another kind of file, or a torn one.
        zlib.error: a variable cannot be inflated.
    """
    header, order = content[:128], {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if not header.startswith(b"MATLAB 5.0 MAT-file") or order is None:
        raise ValueError("its header is another")
    checked = header
    for kind, element in _elements(content[128:], order):
        if kind == COMPRESSED:
            inflater = zlib.decompressobj()
            [(kind, element)] = _elements(inflater.decompress(element, MAX_MAT_BYTES), order)
        parts = list(_elements(element, order)) if kind == MATRIX else []  # flags, shape, name, values
        if [part_kind for part_kind, _ in parts[:3]] != [UINT32, INT32, INT8] or len(parts[0][1]) != 8:
            raise ValueError("it holds something else than arrays")
        flags = struct.unpack(order + "II", parts[0][1])[0]
        if len(parts) != 4 or parts[3][0] not in NUMBER_TYPES or flags & 0xFF not in NUMBER_CLASSES or flags & COMPLEX:
            raise ValueError("it holds an array of something else than real numbers")
        checked += struct.pack(order + "II", kind, len(element)) + element
    return checked


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the content of each element: a tag of 8 bytes, the content, zeros to a multiple of 8 bytes."""
    offset = 0
    while offset < len(content):
        kind, size = struct.unpack(order + "II", content[offset : offset + 8].ljust(8, b"\0"))
        if kind >> 16:  # the short form: the size above the type, up to 4 bytes of content in the tag itself
            kind, size, start, end = kind & 0xFFFF, kind >> 16, offset + 4, offset + 8
        else:
            start = offset + 8
            end = start + size + (0 if kind == COMPRESSED else -size % 8)
        if start + size > min(end, len(content)):
            raise ValueError("it ends in the middle of a variable")
        yield kind, content[start : start + size]
        offset = end
