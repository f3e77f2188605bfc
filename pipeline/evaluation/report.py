"""The page that a person opens: pictures with their captions, scores and what they mean, curves, published figures.

One HTML file that needs nothing else, for styles, charts and pictures stand in it. Equal inputs write equal bytes.
"""

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from pipeline.data.choosing import chosen_rows
from pipeline.data.files import replaced_file
from pipeline.data.shards import Images
from pipeline.evaluation.charts import area_chart, loss_chart, rank_chart
from pipeline.evaluation.pictures import (
    REAL,
    PictureSet,
    picture_at,
    read_samples,
    real_counterparts,
    real_parts,
)
from pipeline.evaluation.published import PUBLISHED_DATASETS, TABLE_1, TABLE_2, published_human_ranks
from pipeline.evaluation.templates import page_template
from pipeline.evaluation.verdict import BOUNDS, METHOD_NAMES, common_protocol, method_name, verdict

REPORTS = (
    "crop_images",
    "fit_text_encoder",
    "embed_captions",
    "train_stage1",
    "train_stage2",
    "train_classifier",
    "evaluate_inception",
    "evaluate_human_rank",
)
STAGE_NAMES = {"train_stage1": "Stage-I", "train_stage2": "Stage-II"}
JPEG_QUALITY = 88
LONGEST_LIST = 8  # of a report's values; a longer one is a histogram, which the page draws
NUM_BAD_IMAGES_SHOWN = 10


class ScoreRow(NamedTuple):
    """One method's line of the table."""

    name: str
    scores: Mapping[str, Any]


class SampleRow(NamedTuple):
    """One caption with its pictures, by method or by what they are."""

    caption: str
    pictures: list[tuple[str, str]]  # name, data URI


def write_report(
    *,
    samples_dir: Path,
    crops_dir: Path,
    reports_dir: Path,
    sheet_path: Path,
    out_path: Path,
    dataset_name: str,
    num_captions: int,
    seed: int,
) -> None:
    """Write the page.

    Args:
        samples_dir: samples.parquet and its shards.
        crops_dir: the real pictures.
        reports_dir: <stage>.json of REPORTS and the trainings' .csv; what is missing is said on the page.
        sheet_path: the contact sheet of crop_images, a JPEG; the page shows it if it is there.
        out_path: the .html file, replaced whole.
        dataset_name: of params.yaml.
        num_captions: rows of pictures, of as many classes as there are.
        seed: of their choice.

    Raises:
        ValueError: samples, crops and scores are missing or do not fit together, or a report is not JSON.
    """
    reports = {name: _read_json(reports_dir / f"{name}.json") for name in REPORTS}
    curves = {name: read_curves(reports_dir / f"{name}.csv") for name in STAGE_NAMES}
    samples = read_samples(samples_dir)
    real = real_counterparts(crops_dir, samples.values())
    methods = _ordered((reports["evaluate_inception"] or {}).get("methods", {}))
    two_stages = (reports["train_stage2"] or {}).get("num_steps") != 0
    if not two_stages:  # the final pictures are Stage-I's, and shown once
        samples.pop("stackgan", None)
        methods.pop("stackgan", None)
    page = page_template("report.html.j2").render(
        dataset_name=dataset_name,
        method_name=method_name,
        is_published_dataset=dataset_name in PUBLISHED_DATASETS,
        two_stages=two_stages,
        verdict=verdict(methods) if methods else None,
        score_rows=[ScoreRow(method_name(method), scores) for method, scores in methods.items()],
        protocol=common_protocol(methods),
        neighbour_rows=neighbour_rows((reports["evaluate_inception"] or {}).get("neighbours", {}), samples, crops_dir),
        classifier=reports["train_classifier"],
        human_rank=reports["evaluate_human_rank"],
        human_rank_chart=_human_rank_chart(reports["evaluate_human_rank"]),
        published_human_ranks=published_human_ranks(dataset_name if dataset_name in PUBLISHED_DATASETS else "cub"),
        sample_rows=sample_rows(samples, real, num_captions, seed),
        missing_methods=[
            name
            for method, name in METHOD_NAMES.items()
            if method not in (*BOUNDS, *samples) and (two_stages or method != "stackgan")
        ],
        loss_charts={
            name: loss_chart(columns, f"Losses of {STAGE_NAMES[name]}") if columns else None
            for name, columns in curves.items()
        },
        stage_names=STAGE_NAMES,
        crop_report=reports["crop_images"],
        area_chart=_area_chart(reports["crop_images"]),
        contact_sheet=jpeg_uri(sheet_path.read_bytes()) if sheet_path.is_file() else None,
        num_bad_images_shown=NUM_BAD_IMAGES_SHOWN,
        published_tables=(TABLE_1, TABLE_2),
        details={name: flattened(report) for name, report in reports.items() if report and "methods" not in report},
        missing_reports=[name for name, report in reports.items() if report is None],
    )
    with replaced_file(out_path) as partial_path:
        partial_path.write_text(page, encoding="utf-8")


def sample_rows(samples: Mapping[str, PictureSet], real: PictureSet, num_captions: int, seed: int) -> list[SampleRow]:
    """Choose captions by the seed, of as many classes as there are, and put their pictures side by side."""
    columns = {REAL: real, **{method: samples[method] for method in reversed(_ordered(samples))}}
    first_row = {
        method: {(row["image_id"], row["caption_id"]): index for index, row in reversed(list(enumerate(pictures.rows)))}
        for method, pictures in columns.items()
    }
    rows: list[SampleRow] = []
    for index in chosen_rows([row["class_id"] for row in real.rows], num_captions, seed):
        caption = real.rows[index]
        key = caption["image_id"], caption["caption_id"]
        pictures = [
            (method_name(method), data_uri(of_method.picture_of(first_row[method][key])))
            for method, of_method in columns.items()
            if key in first_row[method]
        ]
        rows.append(SampleRow(caption["caption"], pictures))
    return rows


def neighbour_rows(
    neighbours: Mapping[str, Sequence[Mapping[str, Any]]], samples: Mapping[str, PictureSet], crops_dir: Path
) -> list[SampleRow]:
    """Put pictures of the method that paints largest beside the training pictures nearest to them."""
    method = next((method for method in ("stackgan", "stage1") if method in neighbours and method in samples), None)
    if method is None:
        return []
    pictures = samples[method]
    train_ids, train_parts = real_parts(crops_dir, "train")
    place_of = {image_id: place for place, image_id in enumerate(train_ids)}
    row_of = {row["sample_id"]: index for index, row in enumerate(pictures.rows)}
    rows: list[SampleRow] = []
    for entry in neighbours[method]:
        index = row_of.get(entry["sample_id"])
        if index is None or not set(entry["image_ids"]) <= place_of.keys():
            raise ValueError("reports/evaluate_inception.json is of other samples; rerun `dvc repro`")
        shown = [(f"{method_name(method)}, generated", data_uri(pictures.picture_of(index)))]
        for image_id, distance in zip(entry["image_ids"], entry["distances"], strict=True):
            shown.append((f"real, at {distance:.1f}", data_uri(picture_at(train_parts, place_of[image_id]))))
        rows.append(SampleRow(pictures.rows[index]["caption"], shown))
    return rows


def data_uri(image: Images) -> str:
    """Encode an (S, S, 3) uint8 picture into the page: small ones exactly, large ones as JPEG."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    if len(image) <= 64:
        picture.save(buffer, "PNG", optimize=True)
        return png_uri(buffer.getvalue())
    # Not optimised: Pillow sizes that buffer for ordinary pictures, and the noise of an untrained generator bursts it.
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return jpeg_uri(buffer.getvalue())


def png_uri(png: bytes) -> str:
    """Encode a PNG file's bytes into the page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def jpeg_uri(jpeg: bytes) -> str:
    """Encode a JPEG file's bytes into the page."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def read_curves(path: Path) -> dict[str, list[float]] | None:
    """Read the numeric columns of a training's CSV; None if it is missing or without rows."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns: dict[str, list[float]] = {}
    for name in rows[0] if rows else ():
        try:
            columns[name] = [float(row[name]) for row in rows]
        except (TypeError, ValueError):
            continue  # a column of words is no curve
    return columns if {"step", "epoch"} & set(columns) else None


def flattened(report: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the report's values by dotted key, without lists that are long or hold more than values."""
    entries: list[tuple[str, str]] = []
    for key, value in report.items():
        if isinstance(value, dict):
            entries += flattened(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            entries.append((f"{prefix}{key}", f"{value:,}" if isinstance(value, int) else str(value)))
        elif len(value) <= LONGEST_LIST and not any(isinstance(item, dict | list) for item in value):
            entries.append((f"{prefix}{key}", ", ".join(map(str, value))))
    return entries


def _ordered(methods: Mapping[str, Any]) -> dict[str, Any]:
    """Return the methods from the upper bound to the lower, unknown ones last."""
    known = [method for method in METHOD_NAMES if method in methods]
    return {method: methods[method] for method in (*known, *(m for m in methods if m not in METHOD_NAMES))}


def _area_chart(report: Mapping[str, Any] | None) -> str | None:
    if report is None:
        return None
    before, after = (report["object_area_ratio"][key] for key in ("before", "after"))
    label = "How much of the picture the object's box fills, before and after the crop"
    return area_chart(before["histogram"], after["histogram"], after["histogram_edges"], 0.75, label)


def _human_rank_chart(report: Mapping[str, Any] | None) -> str | None:
    if report is None or not report["questions"]:
        return None
    return rank_chart(report["questions"], "Mean ranks that raters gave, with their intervals")


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); rerun `dvc repro {path.stem}`") from None
