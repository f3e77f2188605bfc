"""What the raters' ballots say: mean ranks with intervals, tests, agreement, strengths, and whose ballots count."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.files import replaced_file, write_json
from pipeline.evaluation.charts import rank_chart_png
from pipeline.evaluation.study.agreement import (
    friedman,
    kendalls_w,
    krippendorff_alpha,
    mean_prompt_w,
    num_raters_needed,
    position_bias,
    rater_blocks,
    units_of,
)
from pipeline.evaluation.study.answers import Ballot
from pipeline.evaluation.study.ballot_tables import read_ballots
from pipeline.evaluation.study.files import Key, Study, read_key, read_study
from pipeline.evaluation.study.mean_ranks import Array, mean_rank_differences, mean_rank_intervals
from pipeline.evaluation.study.plackett_luce import plackett_luce
from pipeline.evaluation.study.ranks import attention_of, exclusions, rank_arrays

DIFFERENCES = (0.1, 0.25, 0.5)  # of mean ranks, that a study may want to tell apart
POWER = 0.8
COLUMNS = ("question", "method", "mean_rank", "low", "high")

Report = dict[str, Any]


def evaluate_human_rank(
    *,
    study_dir: Path,
    ballots_dir: Path,
    report_path: Path,
    table_path: Path,
    chart_path: Path,
    max_failed_checks: int,
    max_reversed_share: float,
    min_median_sec: float,
    min_answered_share: float,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> None:
    """Write the report, its mean ranks as CSV, and their chart as PNG.

    Without a ballot that counts the report says of how many raters that is, and holds no number of a method.

    Args:
        study_dir: study/, with its key.
        ballots_dir: the .parquet files that `stackgan study export` wrote; those of other studies are left out.
        report_path: JSON.
        table_path: CSV: question, method, mean_rank, low, high.
        chart_path: PNG.
        max_failed_checks: a rater who fails more of the checks is left out.
        max_reversed_share: so is one who puts more of the pairs of repeated ballots the other way round.
        min_median_sec: and one whose median ballot took less.
        min_answered_share: and one who gave a smaller share of the planned ballots.
        confidence: of intervals; 1 less this is the level of tests.
        num_resamples: of bootstrap and permutation test.
        seed: of both.

    Raises:
        ValueError: the study or a file of ballots is missing, altered or not valid.
    """
    study = read_study(study_dir)
    key = read_key(study)
    ballots, num_strangers = read_ballots(ballots_dir, study)
    attention = attention_of(study, key, ballots)
    excluded = exclusions(
        attention,
        max_failed_checks=max_failed_checks,
        max_reversed_share=max_reversed_share,
        min_median_sec=min_median_sec,
        min_answered_share=min_answered_share,
    )
    left_out = {one.rater for one in excluded}
    counted = [ballot for ballot in ballots if ballot.rater not in left_out]
    num_counted = len({ballot.rater for ballot in counted})
    questions = _questions(study, key, counted, confidence, num_resamples, seed) if counted else {}
    num_simulated = sum(ballot.origin == "simulated" for ballot in ballots)
    report: Report = {
        "summary": f"{num_counted} of {study.num_raters} raters" + (", SIMULATED" if num_simulated else ""),
        "study_id": study.study_id,
        "methods": list(key.methods),
        "controls": list(key.controls),
        "num_raters_planned": study.num_raters,
        "num_raters_counted": num_counted,
        "num_raters_excluded": len(left_out),
        "num_ballots": len(ballots),
        "num_ballots_of_other_studies": num_strangers,
        "num_simulated_ballots": num_simulated,
        "rules": {
            "max_failed_checks": max_failed_checks,
            "max_reversed_share": max_reversed_share,
            "min_median_sec": min_median_sec,
            "min_answered_share": min_answered_share,
            "confidence": confidence,
        },
        "excluded": [{**one._asdict(), "rater": one.rater + 1} for one in excluded],
        "attention": [{**one._asdict(), "rater": one.rater + 1} for one in attention],
        "questions": questions,
    }
    write_json(report_path, report)
    rows = [
        (question, method, values["mean_rank"], values["low"], values["high"])
        for question, result in questions.items()
        for method, values in result["methods"].items()
    ]
    with replaced_file(table_path) as partial_path, partial_path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    with replaced_file(chart_path) as partial_path:
        partial_path.write_bytes(rank_chart_png(questions, report["summary"]))


def _questions(
    study: Study, key: Key, ballots: Sequence[Ballot], confidence: float, num_resamples: int, seed: int
) -> dict[str, Report]:
    arrays = rank_arrays(study, key, ballots)
    return {
        question: _result(ranks, arrays.positions, key.methods, confidence, num_resamples, seed)
        for question, ranks in arrays.ranks.items()
    }


def _result(
    ranks: Array, positions: Array, methods: Sequence[str], confidence: float, num_resamples: int, seed: int
) -> Report:
    """Count one question's (R, P, M) ranks."""
    level = 1 - confidence
    intervals = mean_rank_intervals(
        ranks, level=confidence, num_resamples=num_resamples, rng=np.random.default_rng([seed, 0])
    )
    differences = mean_rank_differences(
        ranks, level=confidence, num_resamples=num_resamples, rng=np.random.default_rng([seed, 1])
    )
    blocks = rater_blocks(ranks)
    test = friedman(blocks, level=level)
    strengths = plackett_luce(ranks, level=confidence)
    bias = position_bias(ranks, positions, num_permutations=num_resamples, rng=np.random.default_rng([seed, 2]))
    result: Report = {
        "methods": {
            method: {
                "mean_rank": intervals[place].mean,
                "low": intervals[place].low,
                "high": intervals[place].high,
                **(
                    {
                        "log_strength": strengths.log_strengths[place],
                        "log_strength_low": strengths.low[place],
                        "log_strength_high": strengths.high[place],
                        "share_put_first": strengths.shares[place],
                    }
                    if strengths
                    else {}
                ),
            }
            for place, method in enumerate(methods)
        },
        "differences": {
            f"{methods[a]} - {methods[b]}": {
                **one._asdict(),
                "nemenyi_p_value": test.pair_p_values[a, b] if test else None,
            }
            for (a, b), one in differences.items()
        },
        "friedman": {
            "statistic": test.statistic,
            "p_value": test.p_value,
            "critical_difference": test.critical_difference,
            "num_raters": test.num_blocks,
        }
        if test
        else None,
        "kendalls_w": {"of_raters": kendalls_w(blocks), "within_prompts": mean_prompt_w(ranks)},
        "krippendorff_alpha": krippendorff_alpha(units_of(ranks)),
        "tie_prevalence": strengths.tie_prevalence.tolist() if strengths else [],
        "position_bias": {
            "p_value": bias.p_value,
            "mean_rank_at": {f"place_{place}": rank for place, rank in bias.mean_ranks.items()},
        }
        if bias
        else None,
        "raters_needed": _raters_needed(ranks, level),
    }
    return _plain(result)


def _raters_needed(ranks: Array, level: float) -> Report | None:
    """Say how many raters a study of as many prompts would need, if they are like these."""
    is_given = ~np.isnan(ranks)
    if min(is_given.any((1, 2)).sum(), is_given.any((0, 2)).sum()) < 2:
        return None
    return {
        f"for_a_difference_of_{difference}": num_raters_needed(ranks, difference=difference, level=level, power=POWER)
        for difference in DIFFERENCES
    }


def _plain(value: Any) -> Any:
    """Return JSON values: what is not a number is null, floats have the digits that mean something."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
