"""The ballots of studies in a database: SQLite by default, PostgreSQL by its URL.

Rows are only ever added. A ballot is named by (study, rater, slot, revision), which is unique: a form that is sent
twice, by a double click, a lost reply or an attacker, is one ballot. Taking one back adds a row to `withdrawals`, and
the next form of that slot has the next revision. A ballot is acknowledged after its transaction is on the disk.
"""

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.schema import CreateTable

from pipeline.evaluation.study.answers import Ballot, Ranks

METADATA = sa.MetaData()
_IDENTITY = ("study_id", "rater", "slot", "revision")


def _identity() -> list[sa.Column[Any]]:
    return [
        sa.Column("study_id", sa.String(64), primary_key=True),
        sa.Column("rater", sa.Integer, primary_key=True),
        sa.Column("slot", sa.Integer, primary_key=True),
        sa.Column("revision", sa.Integer, primary_key=True),
    ]


BALLOTS = sa.Table(
    "ballots",
    METADATA,
    *_identity(),
    sa.Column("quality", sa.Text, nullable=False),  # JSON: candidate_id -> rank
    sa.Column("match", sa.Text, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("origin", sa.String(16), nullable=False),
)
WITHDRAWALS = sa.Table("withdrawals", METADATA, *_identity())


DatabaseError = exc.SQLAlchemyError  # what every method raises where the database does not answer


class Progress(NamedTuple):
    """Where a rater stands."""

    given: tuple[int, ...]  # slots, in their order
    next_revision: Mapping[int, int]  # of slots that were given before, taken back or not

    @property
    def next_slot(self) -> int:
        """Return the first slot that is not given."""
        return next((slot for slot, given in enumerate(self.given) if slot != given), len(self.given))

    def revision_of(self, slot: int) -> int:
        """Return the revision under which a slot's ballot is kept, or would be if it were given now."""
        return self.next_revision.get(slot, 0) - (slot in self.given)


class Conflict(ValueError):
    """Another answer than the one that is kept was given under the same name."""


class BallotBox:
    """Keeps the ballots of studies."""

    def __init__(self, url: str):
        """Open or make the tables.

        Args:
            url: of SQLAlchemy, such as sqlite:///ballots.db or postgresql+psycopg://user@host/database.

        Raises:
            ValueError: the database cannot be reached; the message holds no password.
        """
        is_sqlite = url.startswith("sqlite")
        try:
            # Each request is one statement, which is a transaction by itself.
            self._engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=not is_sqlite)
            if is_sqlite:
                event.listen(self._engine, "connect", _set_up_sqlite)
            self._make_tables()
        except (exc.SQLAlchemyError, ImportError) as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise ValueError(f"STUDY_DATABASE_URL: {_without_password(url)} cannot be opened: {reason}") from None
        # SQLite has one writer at a time and lets the others poll; queueing here is fair and faster.
        self._writer: AbstractContextManager[Any] = threading.Lock() if is_sqlite else nullcontext()

    def _make_tables(self) -> None:
        """Make the tables that are not there; another process may be doing the same."""
        with self._engine.connect() as connection:
            for table in METADATA.sorted_tables:
                with suppress(exc.IntegrityError):  # PostgreSQL's word for one that was made in between
                    connection.execute(CreateTable(table, if_not_exists=True))

    def give(self, ballot: Ballot) -> None:
        """Keep a ballot; giving the same one again changes nothing.

        Raises:
            Conflict: this rater has given another answer to this showing, or has taken this one back.
        """
        values = ballot._asdict() | {"quality": _text(ballot.quality), "match": _text(ballot.match)}
        try:
            with self._writer, self._engine.connect() as connection:
                connection.execute(sa.insert(BALLOTS), values)
        except exc.IntegrityError:
            kept = self._row(BALLOTS, ballot)
            if kept is None or (kept.quality, kept.match) != (values["quality"], values["match"]):
                raise Conflict(f"ballot {ballot.slot + 1} was already given, with another answer") from None
            if self._row(WITHDRAWALS, ballot):
                raise Conflict(f"ballot {ballot.slot + 1} was taken back since this page was opened") from None

    def bring_in(self, ballots: Iterable[Ballot]) -> None:
        """Keep the ballots of files; one that a rater gave anew later, in another file, takes the place of the first.

        Raises:
            Conflict: of some, another answer is kept. None of the ballots is brought in.
        """
        newest: dict[tuple[int, int], Ballot] = {}
        conflicts: list[Ballot] = []
        for ballot in sorted(ballots, key=lambda one: one.revision):
            before = newest.get((ballot.rater, ballot.slot))
            if before and before.revision == ballot.revision and not _is_same(before, ballot):
                conflicts.append(ballot)
            newest[ballot.rater, ballot.slot] = ballot
        kept = {
            (ballot.rater, ballot.slot): ballot
            for study_id in {ballot.study_id for ballot in newest.values()}
            for ballot in self.all(study_id)
        }
        to_give: list[Ballot] = []
        for place, ballot in newest.items():
            now = kept.get(place)
            if now and _is_same(now, ballot):
                continue
            if now is None or now.revision < ballot.revision:
                to_give.append(ballot)
            else:
                conflicts.append(ballot)
        if conflicts:
            named = ", ".join(f"rater {ballot.rater + 1}'s ballot {ballot.slot + 1}" for ballot in conflicts)
            raise Conflict(
                f"another answer is kept of {named}, so nothing was brought in: take it back on the "
                "rater's page if the file's is to count, and import again"
            )
        for ballot in to_give:
            if now := kept.get((ballot.rater, ballot.slot)):
                self.withdraw(now.study_id, now.rater, now.slot, now.revision)
            first = self.progress(ballot.study_id, ballot.rater).revision_of(ballot.slot)
            self.give(ballot._replace(revision=max(first, ballot.revision)))

    def withdraw(self, study_id: str, rater: int, slot: int, revision: int) -> None:
        """Take a ballot back; its row stays."""
        values = {"study_id": study_id, "rater": rater, "slot": slot, "revision": revision}
        try:
            with self._writer, self._engine.connect() as connection:
                connection.execute(sa.insert(WITHDRAWALS), values)
        except exc.IntegrityError:
            return  # it is taken back already

    def progress(self, study_id: str, rater: int) -> Progress:
        """Return which of a rater's ballots are given."""
        query = (
            sa.select(BALLOTS.c.slot, BALLOTS.c.revision, WITHDRAWALS.c.slot)
            .select_from(_with_withdrawals())
            .where(BALLOTS.c.study_id == study_id, BALLOTS.c.rater == rater)
            .order_by(BALLOTS.c.slot, BALLOTS.c.revision)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return Progress(
            given=tuple(slot for slot, _, withdrawn in rows if withdrawn is None),
            next_revision={slot: revision + 1 for slot, revision, _ in rows},
        )

    def all(self, study_id: str) -> list[Ballot]:
        """Return the ballots of a study that were not taken back, by rater and slot."""
        query = (
            sa.select(BALLOTS)
            .select_from(_with_withdrawals())
            .where(BALLOTS.c.study_id == study_id, WITHDRAWALS.c.slot.is_(None))
            .order_by(BALLOTS.c.rater, BALLOTS.c.slot)
        )
        with self._engine.connect() as connection:
            rows: Sequence[Any] = connection.execute(query).mappings().all()
        return [
            Ballot(**{**row, "quality": json.loads(row["quality"]), "match": json.loads(row["match"])}) for row in rows
        ]

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def _row(self, table: sa.Table, ballot: Ballot) -> Any:
        named = [table.c[name] == getattr(ballot, name) for name in _IDENTITY]
        with self._engine.connect() as connection:
            return connection.execute(sa.select(table).where(*named)).one_or_none()


def _with_withdrawals() -> sa.Join:
    return BALLOTS.outerjoin(WITHDRAWALS, sa.and_(*(BALLOTS.c[name] == WITHDRAWALS.c[name] for name in _IDENTITY)))


def _is_same(one: Ballot, other: Ballot) -> bool:
    return (one.quality, one.match) == (other.quality, other.match)


def _text(ranks: Ranks) -> str:
    return json.dumps(dict(sorted(ranks.items())))


def _set_up_sqlite(connection: Any, _record: object) -> None:
    """Let readers go on beside a writer, and sync each transaction to the disk."""
    cursor = connection.cursor()
    for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _without_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except exc.ArgumentError:
        return "what it holds"
