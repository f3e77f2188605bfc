"""Files for work on another machine of a Ray cluster, which need share no disk.

What a job says it reads is fetched from the machine that handed it out, to the same path, and kept there for the next
job with that path; what it says it writes is brought back. Files are known by path, size and time.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from pipeline.tracking import scratch_dir, storage_bucket, storage_root

Job = TypeVar("Job")
Result = TypeVar("Result")

CHUNK_BYTES = 2**26  # of a file that is fetched, at once in memory


@runtime_checkable
class Travelling(Protocol):
    """A job for `map_shards` that can run on a machine without its files."""

    @property
    def reads(self) -> Sequence[Path]:
        """Files and folders."""
        ...

    @property
    def writes(self) -> Sequence[Path]:
        """Files; those that are there afterwards are brought back."""
        ...


class _Mark(NamedTuple):
    """A file as the machine that hands out work has it."""

    path: Path
    num_bytes: int
    modified_ns: int


class Luggage(NamedTuple):
    """What a worker needs to have a job's files: whom to ask, for what, and what to bring back where."""

    server: Any
    home: str  # the node that hands out work
    reads: tuple[_Mark, ...]
    writes: tuple[Path, ...]


class _FileServer:
    """A Ray actor beside whoever hands out work; it reads that machine's files for the others."""

    def read(self, path: Path, offset: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK_BYTES)


class FileCarrier:
    """This machine's files, for workers elsewhere."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._home = ray.get_runtime_context().get_node_id()
        beside_us: Any = NodeAffinitySchedulingStrategy(self._home, soft=False)
        self._server = ray.remote(num_cpus=0)(_FileServer).options(scheduling_strategy=beside_us).remote()

    def luggage_of(self, job: Travelling) -> Luggage:
        """Note what a job reads, as it is now, and writes."""
        return self.luggage(job.reads, job.writes)

    def luggage(self, reads: Iterable[Path], writes: Iterable[Path] = ()) -> Luggage:
        """Note files to read, those of folders too, as they are now, and files to write."""
        marks = tuple(_mark(file) for path in reads for file in _files_of(path))
        return Luggage(self._server, self._home, marks, tuple(writes))


def _files_of(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in sorted(path.rglob("*")) if file.is_file())
    elif path.is_file():  # what is missing is told by whoever wants to read it
        yield path


def _mark(path: Path) -> _Mark:
    about = path.stat()
    return _Mark(path, about.st_size, about.st_mtime_ns)


def fetch(luggage: Luggage) -> None:
    """Bring the files that this machine lacks; they keep their time, by which they are known when asked for again."""
    for mark in luggage.reads:
        if mark.path.is_file() and _mark(mark.path) == mark:
            continue
        with _one_at_a_time_on_this_machine():
            if not (mark.path.is_file() and _mark(mark.path) == mark):
                write_whole(mark.path, _chunks(luggage.server, mark), modified_ns=mark.modified_ns)


def _chunks(server: Any, mark: _Mark) -> Iterator[bytes]:
    import ray

    for offset in range(0, mark.num_bytes, CHUNK_BYTES):
        chunk: Any = ray.get(server.read.remote(mark.path, offset))
        yield chunk


@contextmanager
def _one_at_a_time_on_this_machine() -> Generator[None]:
    with (scratch_dir() / "fetching.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_whole(path: Path, chunks: Iterable[bytes], modified_ns: int | None = None) -> None:
    """Write a file under a temporary name and rename it; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f".{path.name}.fetched")
    with partial_path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
    if modified_ns is not None:
        os.utime(partial_path, ns=(modified_ns, modified_ns))
    partial_path.replace(path)


def is_elsewhere(luggage: Luggage) -> bool:
    """Return whether this process runs on another machine than the one that handed out the work."""
    import ray

    return ray.get_runtime_context().get_node_id() != luggage.home


def run_job(work: Callable[[Job], Result], job: Job, luggage: Luggage | None) -> tuple[Result, dict[Path, bytes]]:
    """Run in a worker: fetch what the job reads, do it, and return what it wrote on another machine with the result."""
    if luggage is None or not is_elsewhere(luggage):
        return work(job), {}
    fetch(luggage)
    for path in luggage.writes:
        path.parent.mkdir(parents=True, exist_ok=True)
    result = work(job)
    written = {path: path.read_bytes() for path in luggage.writes if path.is_file()}
    for path in written:
        path.unlink()
    return result, written


def remove_remains(at_work: frozenset[str]) -> None:
    """Remove the files of jobs that are over from this machine: those that failed leave them, and workers' files stay.

    Checkpoints are in the bucket too; those here go when no job is at work but the one that asks.
    """
    folders = [
        folder for folder in (scratch_dir() / "jobs").glob("*") if folder.is_dir() and folder.name not in at_work
    ]
    if storage_bucket() and len(at_work) == 1:
        folders += [training for training in storage_root().glob("*") if not is_held(training / "lock")]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def is_held(lock_path: Path) -> bool:
    """Return whether a process of this machine holds a lock file."""
    if not lock_path.is_file():
        return False
    with lock_path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
