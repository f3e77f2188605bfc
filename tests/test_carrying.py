"""Files reach a machine that lacks them, once, and what is written there comes back."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline import carrying
from pipeline.carrying import (
    FileCarrier,
    Luggage,
    Travelling,
    fetch,
    is_elsewhere,
    remove_remains,
    run_job,
    write_whole,
)
from pipeline.cluster import start
from pipeline.data.files import file_sha256
from pipeline.tracking import scratch_dir, storage_root


@dataclass(frozen=True)
class Copying:
    """Copies a file; reads a folder."""

    folder: Path
    to: Path

    @property
    def reads(self) -> list[Path]:
        return [self.folder, self.folder / "missing"]

    @property
    def writes(self) -> list[Path]:
        return [self.to, self.to.with_suffix(".maybe")]


def copy(job: Copying) -> int:
    return job.to.write_bytes((job.folder / "a.bin").read_bytes())


class OtherDisk:
    """A Ray actor that serves files of a machine whose disk is the folder `root`."""

    def __init__(self, root: Path):
        self._root, self._num_reads = root, 0

    def read(self, path: Path, offset: int) -> bytes:
        self._num_reads += 1
        with (self._root / path.relative_to("/")).open("rb") as file:
            file.seek(offset)
            return file.read(carrying.CHUNK_BYTES)

    def num_reads(self) -> int:
        return self._num_reads


@pytest.fixture(scope="module", autouse=True)
def a_ray() -> None:
    start(2)


@pytest.fixture
def job(tmp_path: Path) -> Copying:
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    (tmp_path / "in" / "a.bin").write_bytes(bytes(range(256)))
    (tmp_path / "in" / "deeper" / "empty").write_bytes(b"")
    return Copying(tmp_path / "in", tmp_path / "out" / "copy.bin")


@pytest.fixture
def luggage(job: Copying, tmp_path: Path) -> tuple[Luggage, Any]:
    """Move what the job reads to a disk of another machine, which serves it."""
    there = tmp_path / "other_disk" / job.folder.relative_to("/")
    packed = FileCarrier().luggage_of(job)
    there.parent.mkdir(parents=True)
    job.folder.rename(there)
    server = ray.remote(OtherDisk).remote(tmp_path / "other_disk")
    return packed._replace(server=server, home="another node"), server


def test_a_job_with_files_is_known_by_what_it_says(job: Copying) -> None:
    assert isinstance(job, Travelling) and not isinstance("job", Travelling)


def test_what_a_job_reads_is_noted_file_by_file(job: Copying) -> None:
    luggage = FileCarrier().luggage_of(job)
    assert [(mark.path.name, mark.num_bytes) for mark in luggage.reads] == [("a.bin", 256), ("empty", 0)]
    assert not is_elsewhere(luggage)


def test_files_are_fetched_once_and_whole(job: Copying, luggage: tuple[Luggage, Any]) -> None:
    packed, server = luggage
    for _ in range(2):
        fetch(packed)
    assert (job.folder / "a.bin").read_bytes() == bytes(range(256))
    assert (job.folder / "deeper" / "empty").read_bytes() == b""
    assert ray.get(server.num_reads.remote()) == 1
    assert [path.name for path in job.folder.rglob(".*")] == []


def test_a_large_file_comes_whole_and_in_order(tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    content = bytes(2**26 - 1) + b"seam" + bytes(2**10) + b"end"
    large.write_bytes(content)
    (mark,) = FileCarrier().luggage([large]).reads
    server = ray.remote(OtherDisk).remote(Path("/"))
    write_whole(tmp_path / "copy.bin", carrying._chunks(server, mark))
    assert file_sha256(tmp_path / "copy.bin") == file_sha256(large)
    assert ray.get(server.num_reads.remote()) == 2


def test_a_file_that_changed_is_fetched_again(job: Copying, luggage: tuple[Luggage, Any]) -> None:
    packed, server = luggage
    fetch(packed)
    os.utime(job.folder / "a.bin", ns=(1, 1))
    fetch(packed)
    assert ray.get(server.num_reads.remote()) == 2


def test_a_job_elsewhere_fetches_and_hands_back(job: Copying, luggage: tuple[Luggage, Any]) -> None:
    result, written = run_job(copy, job, luggage[0])
    assert result == 256 and written == {job.to: bytes(range(256))}
    assert not job.to.exists()  # its home writes it


def test_a_job_at_home_writes_where_it_says(job: Copying) -> None:
    job.to.parent.mkdir()
    assert run_job(copy, job, FileCarrier().luggage_of(job)) == (256, {})
    assert job.to.read_bytes() == bytes(range(256))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def torn() -> Iterator[bytes]:
        yield b"new"
        raise ConnectionError

    path = tmp_path / "folder" / "file"
    write_whole(path, [b"o", b"ld"], modified_ns=5_000_000_000)
    with pytest.raises(ConnectionError):
        write_whole(path, torn())
    assert path.read_bytes() == b"old" and path.stat().st_mtime_ns == 5_000_000_000


def test_what_jobs_that_are_over_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("RUN_STORAGE", "s3://bucket/runs")
    jobs, trainings = scratch_dir() / "jobs", storage_root()
    for folder in (jobs / "one", jobs / "two", jobs / "over", trainings / "held", trainings / "past"):
        folder.mkdir(parents=True)
        (folder / "lock").touch()
    with (trainings / "held" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_remains(frozenset({"one", "two"}))
        assert names(jobs) == {"one", "two"} and names(trainings) == {"held", "past"}
        remove_remains(frozenset({"one"}))
        assert names(jobs) == {"one"} and names(trainings) == {"held"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
