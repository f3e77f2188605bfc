"""Reads a data set, laid out as it was published, into one canonical list of records.

| source | in the folder                                                        | split rules            | box         |
|--------|----------------------------------------------------------------------|------------------------|-------------|
| cub    | CUB_200_2011/: images/, images.txt, classes.txt, bounding_boxes.txt, | zero_shot, testclasses | one each    |
|        | image_class_labels.txt; text_c10/<class>/<file>.txt                  |                        |             |
| oxford | jpg/image_00001.jpg, imagelabels.mat, setid.mat (for official),      | testclasses, official  | none        |
|        | text_c10/class_00001/image_00001.txt, cat_to_name.json (optional)    |                        |             |
| coco   | annotations/: captions_train2014.json, captions_val2014.json,        | official               | the largest |
|        | instances_... likewise; train2014/, val2014/; or all of 2017         |                        | object's    |
| own    | images.csv or images.parquet: path, caption (or captions);           | official, testclasses  | optional    |
|        | optional: x, y, width, height, class, split                          |                        |             |

`testclasses` reads testclasses.txt beside them: the classes of the test split, one a line. Captions in text_c10/ are
one a line. Each reader's module says more: pipeline.data.cub, oxford, coco, own.
"""

from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.data.coco import read_coco
from pipeline.data.cub import read_cub
from pipeline.data.own import read_own
from pipeline.data.oxford import read_oxford
from pipeline.data.records import BadImage, BadImages, OnBadImage, SourceImage, SplitRule, require_both_splits

SourceName = Literal["cub", "oxford", "coco", "own"]


class Source(NamedTuple):
    """What a data set's files say."""

    records: list[SourceImage]  # sorted by image_id
    bad_images: list[BadImage]  # left out; their pictures were not opened yet


def read_source(
    root: Path, *, source: SourceName, split: SplitRule, captions_per_image: int, on_bad_image: OnBadImage
) -> Source:
    """Read every picture's record.

    Args:
        root: the data set's folder.
        source: its layout.
        split: which pictures are the test split; the module's text says which rules a source has.
        captions_per_image: how many captions a picture must have; further ones are not read.
        on_bad_image: `fail` ends with the first picture that has no class, box or captions, `skip` lists it.

    Raises:
        ValueError: the data set is not whole; the message names the file and the remedy.
    """
    bad = BadImages(on_bad_image)
    read = {"cub": read_cub, "oxford": read_oxford, "coco": read_coco, "own": read_own}[source]
    records = read(root, split=split, captions_per_image=captions_per_image, bad=bad)
    _require_each_once(records)
    require_both_splits(records, root)
    return Source(records, bad.found)


def _require_each_once(records: list[SourceImage]) -> None:
    """Raise ValueError if two records have one file: it could be in both splits."""
    image_ids: dict[Path, int] = {}
    for record in records:
        first_id = image_ids.setdefault(record.image_path, record.image_id)
        if first_id != record.image_id:
            raise ValueError(
                f"{record.image_path} is listed twice, as image {first_id} and {record.image_id}; keep one"
            )
