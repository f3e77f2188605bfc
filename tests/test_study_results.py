"""The report of a study: numbers from ballots, none without them, and simulated raters called so."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.evaluation.study.answers import Ballot
from pipeline.evaluation.study.ballot_tables import csv_bytes, parquet_bytes, read_ballots
from pipeline.evaluation.study.files import Key, Study
from pipeline.evaluation.study.results import evaluate_human_rank
from tests.study_data import ATTENTIVE, ballots_of, write_inputs, write_study

RULES: dict[str, Any] = {
    "max_failed_checks": 1,
    "max_reversed_share": 0.5,
    "min_median_sec": 5.0,
    "min_answered_share": 0.5,
    "confidence": 0.95,
    "num_resamples": 500,
    "seed": 0,
}
OTHER = ("real_test", "stage1", "stackgan", "untrained")
BACKWARDS = ("real_test of another caption", "untrained", "stage1", "stackgan", "real_test")


class Folder:
    """A study with its ballots on the disk."""

    def __init__(self, folder: Path):
        write_inputs(folder)
        self.folder = folder
        self.study, self.key = write_study(folder)
        (folder / "ballots").mkdir()

    def keep(self, ballots: list[Ballot], name: str = "ballots", study: Study | None = None) -> Path:
        path = self.folder / "ballots" / f"{name}.parquet"
        path.write_bytes(parquet_bytes(study or self.study, self.key, ballots))
        return path

    def report(self, **changed: Any) -> dict[str, Any]:
        paths = {name: self.folder / f"out.{name}" for name in ("json", "csv", "png")}
        evaluate_human_rank(
            study_dir=self.folder / "study",
            ballots_dir=self.folder / "ballots",
            report_path=paths["json"],
            table_path=paths["csv"],
            chart_path=paths["png"],
            **RULES | changed,
        )
        return json.loads(paths["json"].read_text())

    @property
    def table(self) -> list[dict[str, str]]:
        return list(csv.DictReader((self.folder / "out.csv").read_text().splitlines()))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def raters(study: Study, key: Key, orders: dict[int, tuple[str, ...]], **changed: Any) -> list[Ballot]:
    return [ballot for rater, order in orders.items() for ballot in ballots_of(study, key, rater, order, **changed)]


def test_without_ballots_it_says_of_how_many_raters_and_never_a_number(folder: Folder) -> None:
    report = folder.report()
    assert report["summary"] == "0 of 4 raters"
    assert report["questions"] == {} and folder.table == [] and report["num_ballots"] == 0
    with Image.open(folder.folder / "out.png") as chart:
        assert chart.size[0] > 100


def test_raters_who_agree_give_their_order(folder: Folder) -> None:
    folder.keep(raters(folder.study, folder.key, dict.fromkeys(range(4), ATTENTIVE), origin="web"))
    report = folder.report()
    assert report["summary"] == "4 of 4 raters" and report["num_ballots"] == sum(map(len, folder.study.showings))
    for question in ("quality", "match"):
        result = report["questions"][question]
        assert [result["methods"][method]["mean_rank"] for method in ("stackgan", "stage1")] == [1, 2]
        for method in result["methods"].values():  # ballots that all say the same do not say how sure that is
            assert {method[end] for end in ("low", "high", "log_strength_low", "log_strength_high")} == {None}
        assert result["kendalls_w"] == {"of_raters": 1, "within_prompts": 1} and result["krippendorff_alpha"] == 1
        strengths = [result["methods"][method]["log_strength"] for method in ("stackgan", "stage1")]
        assert strengths[0] > 1 and strengths[0] == pytest.approx(-strengths[1])
    assert {(row["question"], row["method"], row["mean_rank"]) for row in folder.table} == {
        (question, method, rank)
        for question in ("quality", "match")
        for method, rank in (("stackgan", "1.0"), ("stage1", "2.0"))
    }


def test_mean_ranks_are_those_of_the_ballots(folder: Folder) -> None:
    orders = {0: ATTENTIVE, 1: ATTENTIVE, 2: ATTENTIVE, 3: OTHER}
    folder.keep(raters(folder.study, folder.key, orders, origin="web"))
    result = folder.report()["questions"]["quality"]
    assert result["methods"]["stackgan"]["mean_rank"] == 1.25 and result["methods"]["stage1"]["mean_rank"] == 1.75
    difference = result["differences"]["stage1 - stackgan"]
    assert difference["mean"] == 0.5 and difference["low"] < 0 < difference["high"]
    assert result["friedman"]["statistic"] == pytest.approx(1) and result["friedman"]["num_raters"] == 4
    assert result["kendalls_w"]["of_raters"] == pytest.approx(0.25)


def test_raters_who_do_not_look_are_left_out_and_named_with_the_rule(folder: Folder) -> None:
    orders = {0: ATTENTIVE, 1: ATTENTIVE, 2: BACKWARDS}
    ballots = raters(folder.study, folder.key, orders, origin="web")
    hasty = raters(folder.study, folder.key, {3: ATTENTIVE}, origin="web", seconds=1.0)
    folder.keep([*ballots, *hasty])
    report = folder.report()
    assert report["summary"] == "2 of 4 raters" and report["num_raters_excluded"] == 2
    assert [(one["rater"], one["rule"]) for one in report["excluded"]] == [
        (3, "max_failed_checks"),
        (4, "min_median_sec"),
    ]
    assert report["questions"]["quality"]["methods"]["stackgan"]["mean_rank"] == 1
    assert folder.report(max_failed_checks=3, min_median_sec=0.0)["summary"] == "4 of 4 raters"
    everyone = folder.report(min_answered_share=1.0, min_median_sec=100.0)
    assert everyone["summary"] == "0 of 4 raters" and everyone["questions"] == {}


def test_simulated_raters_are_called_so_wherever_they_count(folder: Folder) -> None:
    folder.keep(raters(folder.study, folder.key, {0: ATTENTIVE}))
    report = folder.report()
    assert report["summary"] == "1 of 4 raters, SIMULATED"
    assert report["num_simulated_ballots"] == report["num_ballots"] > 0


def test_one_rater_and_one_ballot_leave_what_cannot_be_told_empty(folder: Folder) -> None:
    ballots = raters(folder.study, folder.key, {1: ATTENTIVE}, origin="web")
    folder.keep(ballots)
    result = folder.report()["questions"]["match"]
    assert result["friedman"] is None and result["krippendorff_alpha"] is None and result["raters_needed"] is None
    ranked = [
        ballot
        for ballot in ballots
        if folder.study.showings[1][ballot.slot].prompt_id not in folder.key.checks
        and (1, ballot.slot) not in folder.key.first_slots
    ]
    folder.keep(ranked[:1])
    result = folder.report(min_answered_share=0.0)["questions"]["match"]
    assert result["methods"]["stackgan"] | {"low": None, "high": None} == result["methods"]["stackgan"] | {
        "mean_rank": 1
    }


def test_the_same_ballots_write_the_same_bytes_in_any_order(folder: Folder) -> None:
    ballots = raters(folder.study, folder.key, {0: ATTENTIVE, 1: OTHER, 2: ATTENTIVE}, origin="web")
    written = []
    for order in (ballots, ballots[::-1]):
        folder.keep(order)
        folder.report()
        written.append([(folder.folder / f"out.{name}").read_bytes() for name in ("json", "csv", "png")])
    assert written[0] == written[1]


def test_ballots_of_several_files_are_one_study_and_those_of_another_are_counted_apart(
    folder: Folder, tmp_path: Path
) -> None:
    orders = {0: ATTENTIVE, 1: OTHER}
    folder.keep(raters(folder.study, folder.key, {0: orders[0]}, origin="web"), "one")
    folder.keep(raters(folder.study, folder.key, orders, origin="web"), "both")
    other = [ballot._replace(study_id="e" * 64) for ballot in raters(folder.study, folder.key, {2: ATTENTIVE})]
    folder.keep(other, "other")
    report = folder.report()
    assert report["summary"] == "2 of 4 raters" and report["num_ballots_of_other_studies"] == len(other)
    assert report["num_simulated_ballots"] == 0

    ballots, _ = read_ballots(folder.folder / "ballots", folder.study)
    assert ballots == raters(folder.study, folder.key, orders, origin="web")


def test_files_that_disagree_or_hold_no_valid_ballot_are_refused_by_name(folder: Folder) -> None:
    (first, *_) = raters(folder.study, folder.key, {0: ATTENTIVE}, origin="web")
    reversed_quality = {candidate: 4 - rank for candidate, rank in first.quality.items()}
    folder.keep([first], "a")
    path = folder.keep([first._replace(quality=reversed_quality)], "b")
    with pytest.raises(ValueError, match=r"b\.parquet: rater 1's ballot 1 is another one than in a file before"):
        folder.report()
    folder.keep([first._replace(quality=dict.fromkeys(first.quality, 9))], "b")
    with pytest.raises(
        ValueError, match=r"b\.parquet: rater 1's ballot 1: quality: a rank is a whole number from 1 to 3"
    ):
        folder.report()
    once = pq.read_table(folder.keep([first], "b"))
    seconds = once.schema.get_field_index("seconds")
    far = once.set_column(seconds, once.field(seconds), pa.array([math.inf] * len(once), pa.float64()))
    for table, words in (
        (pa.concat_tables([once, once]), "is ranked twice"),
        (far, "seconds and origin must be one number from 0 and one of web, offline, simulated"),
    ):
        pq.write_table(table, path)
        with pytest.raises(ValueError, match=rf"b\.parquet: rater 1's ballot 1: .*{words}"):
            folder.report()
    for changed in ({"origin": "robot"}, {"seconds": math.nan}, {"seconds": -5.0}):
        folder.keep([first._replace(**changed)], "b")
        with pytest.raises(ValueError, match=r"b\.parquet: rater 1's ballot 1: seconds and origin must be"):
            folder.report()
    path.write_bytes(b"no Parquet")
    with pytest.raises(ValueError, match=r"b\.parquet is not a whole Parquet file .*stackgan study export"):
        folder.report()


def test_the_csv_says_what_the_parquet_says_with_names_and_places(folder: Folder) -> None:
    ballots = raters(folder.study, folder.key, {2: ATTENTIVE}, origin="web")
    rows = list(csv.DictReader(csv_bytes(folder.study, folder.key, ballots).decode().splitlines()))
    assert len(rows) == len(ballots) * 3 * 2
    assert {row["kind"] for row in rows} == {"ranked", "repeat", "real", "shuffled"}
    assert {row["rater"] for row in rows} == {"3"} and {row["position"] for row in rows} == {"1", "2", "3"}
    best = [row for row in rows if row["rank"] == "1" and row["kind"] == "ranked"]
    assert {row["method"] for row in best} == {"stackgan"}


def test_more_raters_make_narrower_intervals(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    widths = []
    for num_raters in (4, 24):
        study, key = write_study(tmp_path, num_raters=num_raters)
        (tmp_path / "ballots").mkdir(exist_ok=True)
        orders = {rater: OTHER if rater % 4 == 3 else ATTENTIVE for rater in range(num_raters)}
        ballots = raters(study, key, orders, origin="web")
        (tmp_path / "ballots" / "b.parquet").write_bytes(parquet_bytes(study, key, ballots))
        evaluate_human_rank(
            study_dir=tmp_path / "study",
            ballots_dir=tmp_path / "ballots",
            report_path=tmp_path / "r.json",
            table_path=tmp_path / "r.csv",
            chart_path=tmp_path / "r.png",
            **RULES,
        )
        of_method = json.loads((tmp_path / "r.json").read_text())["questions"]["quality"]["methods"]["stackgan"]
        widths.append(of_method["high"] - of_method["low"])
    assert widths[1] < widths[0] / 1.5
