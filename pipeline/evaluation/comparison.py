"""The paper's Tables 1 and 2 with our figures beside the published ones, which of its orderings hold, and pictures.

Only scores of one protocol stand side by side; the published ones are of other classifiers, so they are comparable in
their order alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.files import replaced_file
from pipeline.evaluation.pictures import FINAL
from pipeline.evaluation.protocol import require_comparable
from pipeline.evaluation.published import (
    ORDERINGS,
    PUBLISHED_DATASETS,
    SYSTEMS,
    TABLE_1_CHOICES,
    TABLE_2_CHOICES,
    System,
)
from pipeline.evaluation.report import png_uri
from pipeline.evaluation.templates import page_template
from pipeline.evaluation.verdict import BOUNDS, method_name

_PUBLISHED = {system.choice: system for system in SYSTEMS}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What was tracked of one system: a run of evaluate_inception and the runs before it."""

    run_id: str
    methods: Mapping[str, Mapping[str, Any]]  # of reports/evaluate_inception.json
    settings: Mapping[str, str]  # params of its trainings
    captions: Sequence[str]  # of its gallery
    pictures: Sequence[bytes]  # PNG files, one a caption

    @property
    def scores(self) -> Mapping[str, Any]:
        """Return the scores of its final pictures."""
        return self.methods[FINAL]


class Row(NamedTuple):
    """A system, or a bound, with its published scores and ours; None where it was not run."""

    system: System
    scores: Mapping[str, Any] | None
    run_id: str = ""


class Ordering(NamedTuple):
    """Whether what the paper concludes holds here.

    Attributes:
        claim: in words.
        better: the row that is to score above.
        worse: the other row.
        outcome: `holds` or `does not hold` where the intervals of the two scores are apart, else `undecided`.
    """

    claim: str
    better: Row
    worse: Row
    outcome: str


class Tables(NamedTuple):
    """Both tables, systems of one's own, bounds, the orderings, and in which settings the trainings differ."""

    table_1: list[Row]
    table_2: list[Row]
    others: list[Row]
    bounds: list[Row]
    orderings: list[Ordering]
    settings: dict[str, dict[str, list[str]]]  # key -> value -> choices, for keys that have several values


def make_tables(evaluations: Mapping[str, Evaluation]) -> Tables:
    """Put evaluations by their choice of conf/gan into the paper's tables.

    Raises:
        ValueError: there is none, or they were not scored by one protocol; the message names what differs.
    """
    if not evaluations:
        raise ValueError(
            "no system's scores are tracked with these settings: `stackgan tables run` makes them, and `show` finds "
            "them by the same -S"
        )
    require_comparable({choice: evaluation.scores["protocol"] for choice, evaluation in evaluations.items()})
    newest = next(iter(evaluations.values()))

    def row(choice: str) -> Row:
        if choice not in evaluations:
            return Row(_PUBLISHED[choice], None)
        evaluation = evaluations[choice]
        system = _PUBLISHED.get(choice) or System(choice, choice, evaluation.scores["image_size"])
        return Row(system, evaluation.scores, evaluation.run_id)

    return Tables(
        table_1=[row(choice) for choice in TABLE_1_CHOICES],
        table_2=[row(choice) for choice in TABLE_2_CHOICES],
        others=[row(choice) for choice in evaluations if choice not in _PUBLISHED],
        bounds=[
            Row(System("", method_name(method), newest.methods[method]["image_size"]), newest.methods[method])
            for method in BOUNDS
            if method in newest.methods
        ],
        orderings=[
            _ordering(claim, row(better), row(worse))
            for claim, better, worse in ORDERINGS
            if better in evaluations and worse in evaluations
        ],
        settings=_differing({choice: evaluation.settings for choice, evaluation in evaluations.items()}),
    )


def _ordering(claim: str, better: Row, worse: Row) -> Ordering:
    assert better.scores is not None and worse.scores is not None
    above, below = (scores["inception_score"] for scores in (better.scores, worse.scores))
    if above["low"] > below["high"]:
        outcome = "holds"
    elif above["high"] < below["low"]:
        outcome = "does not hold"
    else:
        outcome = "undecided"
    return Ordering(claim, better, worse, outcome)


def _differing(settings: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, list[str]]]:
    """Return the trainings' settings (epochs, batches, code) that are not the same for all, with who has which."""
    keys = dict.fromkeys(key for of_one in settings.values() for key in of_one if key.startswith(("train_", "code")))
    differing: dict[str, dict[str, list[str]]] = {}
    for key in keys:
        values: dict[str, list[str]] = {}
        for choice, of_one in settings.items():
            values.setdefault(of_one.get(key, "-"), []).append(choice)
        if len(values) > 1:
            differing[key] = values
    return differing


def as_text(tables: Tables, dataset: str) -> list[str]:
    """Return the tables as lines of text."""
    lines: list[str] = []
    for title, rows in _titled(tables):
        lines += [title, *_aligned([HEADERS, *(_cells(row, dataset) for row in rows)]), ""]
    if tables.orderings:
        lines.append("What the paper concludes, here (undecided: the 95 % intervals of the two scores overlap)")
        lines += [*_aligned([_ordering_cells(ordering) for ordering in tables.orderings]), ""]
    if tables.settings:
        lines.append("The trainings differ in")
    for key, values in tables.settings.items():
        lines.append(f"  {key}: " + "; ".join(f"{value} ({', '.join(who)})" for value, who in values.items()))
    return lines


HEADERS = ("system", "pixels", "published", "ours", "95 % interval", "FID", "R-precision", "run")


def _titled(tables: Tables) -> list[tuple[str, list[Row]]]:
    titled = [
        ("Table 1: Inception score (with the plain GAN of Figure 1)", tables.table_1),
        ("Table 2: Inception score", tables.table_2),
        ("Other systems", tables.others),
        ("Bounds", tables.bounds),
    ]
    return [(title, rows) for title, rows in titled if rows]


def _cells(row: Row, dataset: str) -> tuple[str, ...]:
    system, scores, run_id = row
    published = system.published.get(dataset) or _of_cub(system)
    if scores is None:
        return system.title, str(system.pixels), published, "not run", "", "", "", ""
    inception, retrieved = scores["inception_score"], scores["r_precision"]
    return (
        system.title,
        str(system.pixels),
        published,
        f"{inception['mean']:.2f} ± {inception['std']:.2f}",
        f"{inception['low']:.2f} - {inception['high']:.2f}",
        "-" if scores["fid"] is None else f"{scores['fid']:.1f}",
        f"{retrieved['value']:.0%}" if retrieved else "-",
        run_id[:8],
    )


def _of_cub(system: System) -> str:
    return f"{system.published['cub']} (CUB)" if "cub" in system.published else "-"


def _ordering_cells(ordering: Ordering) -> tuple[str, ...]:
    values: list[str] = []
    for row in (ordering.better, ordering.worse):
        assert row.scores is not None
        values.append(f"{row.system.choice} {row.scores['inception_score']['mean']:.2f}")
    return ordering.claim, values[0], values[1], ordering.outcome


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def write_page(tables: Tables, evaluations: Mapping[str, Evaluation], dataset: str, out_path: Path) -> None:
    """Write the tables as one HTML file that needs nothing else, with pictures for the same captions system by system.

    Args:
        tables: what `make_tables` made of the evaluations.
        evaluations: by choice of conf/gan.
        dataset: of their runs.
        out_path: the .html file, replaced whole.

    Raises:
        ValueError: the systems' pictures are of other captions.
    """
    captions = {tuple(evaluation.captions) for evaluation in evaluations.values()}
    if len(captions) > 1:
        raise ValueError(
            f"the pictures of {', '.join(evaluations)} are of different captions: run all of them with one "
            "generate_samples section"
        )
    systems = [*(system for system in SYSTEMS if system.choice in evaluations), *(row.system for row in tables.others)]
    page = page_template("comparison.html.j2").render(
        dataset_name=dataset,
        is_published_dataset=dataset in PUBLISHED_DATASETS,
        headers=HEADERS[:-1],
        tables=[(title, [(row, _cells(row, dataset)) for row in rows]) for title, rows in _titled(tables)],
        orderings=[(ordering, _ordering_cells(ordering)) for ordering in tables.orderings],
        settings=tables.settings,
        captions=next(iter(captions)),
        galleries=[
            (system, [png_uri(picture) for picture in evaluations[system.choice].pictures]) for system in systems
        ],
        protocol=next(iter(evaluations.values())).scores["protocol"],
    )
    with replaced_file(out_path) as partial_path:
        partial_path.write_text(page, encoding="utf-8")
