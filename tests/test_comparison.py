"""The paper's tables with our figures: where each stands, which orderings hold, only like with like, the page."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.comparison import Evaluation, as_text, make_tables, write_page
from pipeline.evaluation.pictures import NOISE, REAL
from pipeline.evaluation.published import ORDERINGS, SYSTEMS, TABLE_1_CHOICES, TABLE_2_CHOICES
from tests.tracked_data import scores

CAPTIONS = ("a red bird", '<script>alert("caption")</script> & a bird')


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def evaluation(
    mean: float,
    *,
    half_interval: float = 0.1,
    captions: Sequence[str] = CAPTIONS,
    settings: dict[str, str] | None = None,
    seed: int = 0,
) -> Evaluation:
    methods = {
        REAL: scores(9.0, seed=seed) | {"fid": None},
        "stage1": scores(1.5, seed=seed),
        "stackgan": scores(mean, half_interval, seed),
        NOISE: scores(1.01, seed=seed) | {"r_precision": None},
    }
    pictures = [png(100 + number) for number in range(len(captions))]
    return Evaluation(
        run_id="0123456789abcdef", methods=methods, settings=settings or {}, captions=captions, pictures=pictures
    )


def line_of(lines: Sequence[str], *words: str) -> str:
    found = [line for line in lines if all(word in line for word in words)]
    assert len(found) == 1, (words, lines)
    return found[0]


def test_each_score_stands_in_its_row_beside_the_published_one() -> None:
    tables = make_tables({"stackgan_128": evaluation(2.5), "gawwn": evaluation(2.0)})
    assert [row.system.choice for row in tables.table_1] == list(TABLE_1_CHOICES)
    assert [row.system.choice for row in tables.table_2] == list(TABLE_2_CHOICES) and len(tables.table_2) == 10
    lines = as_text(tables, "cub")
    row = line_of(lines, "StackGAN, CA, text twice", "  128  ").split("  ")
    assert [cell.strip() for cell in row if cell.strip()] == [
        "StackGAN, CA, text twice", "128", "3.35 ± .02", "2.50 ± 0.05", "2.40 - 2.60", "12.3", "50%", "01234567",
    ]  # fmt: skip
    assert "2.00 ± 0.05" in line_of(lines, "GAWWN", "3.62 ± .07")
    assert line_of(lines, "GAN-INT-CLS").endswith("not run")
    assert "9.00" in line_of(lines, "Real ") and "1.01" in line_of(lines, "Noise")


@pytest.mark.parametrize(
    ("dataset", "told"),
    [("cub", "2.88 ± .04 "), ("oxford", "2.66 ± .03 "), ("coco", "7.88"), ("demo", "2.88 ± .04 (CUB)")],
)
def test_published_scores_are_those_of_the_data_set_or_said_to_be_of_cub(dataset: str, told: str) -> None:
    assert told in line_of(as_text(make_tables({"gan_int_cls": evaluation(2.0)}), dataset), "GAN-INT-CLS")


@pytest.mark.parametrize(
    ("with_ca", "without", "outcome"),
    [(2.5, 2.0, "holds"), (2.0, 2.5, "does not hold"), (2.1, 2.0, "undecided"), (2.0, 2.1, "undecided")],
)
def test_an_ordering_is_decided_where_the_intervals_are_apart(with_ca: float, without: float, outcome: str) -> None:
    tables = make_tables({"stage1_64": evaluation(with_ca), "stage1_64_no_ca": evaluation(without)})
    (ordering,) = tables.orderings
    assert ordering.claim == "with conditioning augmentation above without" and ordering.outcome == outcome
    assert (ordering.better.system.choice, ordering.worse.system.choice) == ("stage1_64", "stage1_64_no_ca")
    assert line_of(as_text(tables, "demo"), "augmentation above").endswith(outcome)


def test_the_papers_own_scores_have_every_ordering_that_it_concludes() -> None:
    published = {system.choice: system.published["cub"] for system in SYSTEMS if system.published}
    tables = make_tables(
        {choice: evaluation(float(score.split()[0]), half_interval=0.01) for choice, score in published.items()}
    )
    assert len(tables.orderings) == len(ORDERINGS) - 1  # that of gan_256 is its pictures', not its score's
    assert {ordering.outcome for ordering in tables.orderings} == {"holds"}


def test_scores_of_unlike_protocols_are_refused_with_what_differs() -> None:
    with pytest.raises(ValueError, match=r"stage1_64, stackgan_256 cannot be compared.* seed \(stage1_64: 0, .*: 3\)"):
        make_tables({"stage1_64": evaluation(2.0), "stackgan_256": evaluation(2.0, seed=3)})


def test_without_scores_the_command_that_makes_them_is_named() -> None:
    with pytest.raises(ValueError, match="with these settings: `stackgan tables run` makes them"):
        make_tables({})


def test_a_system_of_ones_own_has_a_row_below() -> None:
    tables = make_tables({"mine": evaluation(2.0), "stage1_64": evaluation(2.0)})
    assert [(row.system.choice, row.system.pixels) for row in tables.others] == [("mine", 64)]
    assert "2.00" in line_of(as_text(tables, "demo"), "mine")


def test_settings_in_which_the_trainings_differ_are_told_with_who_has_which() -> None:
    one = {"train_stage1.num_epochs": "600", "train_stage1.seed": "0", "gan.stage1_size": "64"}
    tables = make_tables(
        {
            "stage1_64": evaluation(2.0, settings=one),
            "stage1_256": evaluation(2.0, settings=one | {"gan.stage1_size": "256"}),
            "gawwn": evaluation(2.0, settings=one | {"train_stage1.num_epochs": "300"}),
        }
    )
    assert tables.settings == {"train_stage1.num_epochs": {"600": ["stage1_64", "stage1_256"], "300": ["gawwn"]}}
    assert "600 (stage1_64, stage1_256); 300 (gawwn)" in line_of(as_text(tables, "demo"), "num_epochs")


def test_the_page_shows_the_same_captions_system_by_system_and_needs_nothing_else(tmp_path: Path) -> None:
    evaluations = {"stackgan_256": evaluation(2.5), "stage1_64": evaluation(2.0)}
    write_page(make_tables(evaluations), evaluations, "demo", tmp_path / "tables.html")
    page = (tmp_path / "tables.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2 * len(CAPTIONS) and page.count('src="data:image/png;base64,') == 2 * len(CAPTIONS)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    for told in ("2.50 ± 0.05", "3.70 ± .04 (CUB)", "not run", "other data than demo", "num_images"):
        assert told in page


def test_pictures_of_other_captions_are_refused(tmp_path: Path) -> None:
    evaluations = {"stackgan_256": evaluation(2.5), "stage1_64": evaluation(2.0, captions=("a blue bird",))}
    with pytest.raises(ValueError, match=r"stackgan_256, stage1_64 are of different captions.*generate_samples"):
        write_page(make_tables(evaluations), evaluations, "demo", tmp_path / "tables.html")
    assert not (tmp_path / "tables.html").exists()
