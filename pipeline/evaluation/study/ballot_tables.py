"""Ballots as tables: one row a rank, in Parquet (contract ballots/v1) and CSV, for the analysis and for people."""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.data.tables import read_table
from pipeline.evaluation.study.answers import Ballot, checked_ranks, require_rater
from pipeline.evaluation.study.files import Key, Study

CONTRACT = "ballots/v1"
ORIGINS = ("web", "offline", "simulated")
SCHEMA = pa.schema(
    [
        ("study_id", pa.string()),
        ("rater", pa.int32()),  # from 1, as on the pages
        ("ballot_number", pa.int32()),  # of this rater, from 1
        ("prompt_id", pa.string()),
        ("kind", pa.string()),  # ranked, repeat, real or shuffled
        ("question", pa.string()),  # quality or match
        ("candidate_id", pa.string()),
        ("method", pa.string()),
        ("position", pa.int32()),  # 1 is the first on the page
        ("rank", pa.int32()),  # 1 is best
        ("seconds", pa.float64()),  # of the whole ballot
        ("origin", pa.string()),  # web, offline or simulated
    ],
    metadata={"contract": CONTRACT},
)


def ballots_table(study: Study, key: Key, ballots: Iterable[Ballot]) -> pa.Table:
    """Lay ballots out, one row a rank, with the names behind the candidates."""
    rows: list[dict[str, Any]] = []
    for ballot in ballots:
        showing = study.showings[ballot.rater][ballot.slot]
        check = key.checks.get(showing.prompt_id)
        kind = check.kind if check else "repeat" if (ballot.rater, ballot.slot) in key.first_slots else "ranked"
        for question, ranks in (("quality", ballot.quality), ("match", ballot.match)):
            rows += [
                {
                    "study_id": ballot.study_id,
                    "rater": ballot.rater + 1,
                    "ballot_number": ballot.slot + 1,
                    "prompt_id": showing.prompt_id,
                    "kind": kind,
                    "question": question,
                    "candidate_id": candidate,
                    "method": key.method_of[candidate],
                    "position": position,
                    "rank": ranks[candidate],
                    "seconds": round(ballot.seconds, 3),
                    "origin": ballot.origin,
                }
                for position, candidate in enumerate(showing.candidate_ids, 1)
            ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def parquet_bytes(study: Study, key: Key, ballots: Iterable[Ballot]) -> bytes:
    """Return the table as a Parquet file; equal ballots give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(ballots_table(study, key, ballots), buffer, write_page_checksum=True)
    return buffer.getvalue()


def csv_bytes(study: Study, key: Key, ballots: Iterable[Ballot]) -> bytes:
    """Return the table as CSV."""
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(ballots_table(study, key, ballots), buffer)
    return buffer.getvalue()


def read_ballots(folder: Path, study: Study) -> tuple[list[Ballot], int]:
    """Read the .parquet files of a folder.

    Returns:
        The study's ballots by rater and slot, and how many of other studies were left out.

    Raises:
        ValueError: a file is not of the contract, an answer is not valid, or two files disagree.
    """
    found: dict[tuple[int, int], Ballot] = {}
    strangers: set[tuple[str, int, int]] = set()
    for path in sorted(folder.glob("*.parquet")):
        remedy = "export the ballots again with `stackgan study export`"
        rows_of: dict[tuple[str, int, int], list[dict[str, object]]] = {}
        for row in read_table(path, CONTRACT, remedy).to_pylist():
            rows_of.setdefault((row["study_id"], row["rater"] - 1, row["ballot_number"] - 1), []).append(row)
        for (study_id, rater, slot), rows in rows_of.items():
            if study_id != study.study_id:
                strangers.add((study_id, rater, slot))
                continue
            ballot = _ballot(path, study, rater, slot, rows)
            if found.setdefault((rater, slot), ballot) != ballot:
                raise ValueError(f"{path}: {_who(rater, slot)} is another one than in a file before; {remedy}")
    return [found[place] for place in sorted(found)], len(strangers)


def _ballot(path: Path, study: Study, rater: int, slot: int, rows: Sequence[dict[str, object]]) -> Ballot:
    ranks: dict[str, dict[str, object]] = {"quality": {}, "match": {}}
    try:
        require_rater(study, rater)
        if not 0 <= slot < len(study.showings[rater]):
            raise ValueError("no such slot was planned")
        for row in rows:
            of_question, candidate = ranks[str(row["question"])], str(row["candidate_id"])
            if candidate in of_question:
                raise ValueError(f"{candidate} is ranked twice")
            of_question[candidate] = row["rank"]
        about = {(row["seconds"], row["origin"]) for row in rows}
        seconds, origin = about.pop()
        if about or not isinstance(seconds, float) or not 0 <= seconds < math.inf or origin not in ORIGINS:
            raise ValueError(f"seconds and origin must be one number from 0 and one of {', '.join(ORIGINS)}")
        showing = study.showings[rater][slot]
        quality, match = (checked_ranks(showing, ranks[question], question) for question in ranks)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: {_who(rater, slot)}: {error}") from None
    return Ballot(
        study_id=study.study_id,
        rater=rater,
        slot=slot,
        revision=0,
        quality=quality,
        match=match,
        seconds=seconds,
        origin=str(origin),
    )


def _who(rater: int, slot: int) -> str:
    return f"rater {rater + 1}'s ballot {slot + 1}"
