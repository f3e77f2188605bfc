"""Where a cluster keeps what a crash must not lose: a bucket, s3://bucket/prefix, or a folder (pyarrow.fs, only here).

A bucket has no rename and no lock, so a reader trusts nothing but files whose hashes a manifest written last names.
Keys and the endpoint of an S3-compatible store come from the environment, under the names that all S3 clients read:
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL.
"""

import contextlib
import logging
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

CHUNK_BYTES = 2**24
PATIENCE_SEC, AGAIN_SEC = 600, 5  # how long a storage that refuses is waited for, and how often it is tried

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of a bucket or of a disk. Can be sent to another process, which opens a connection of its own."""

    place: str  # s3://bucket/prefix, or an absolute path

    def child(self, name: str) -> "Store":
        """Return the folder `name` in this one, there or not."""
        return Store(f"{self.place.rstrip('/')}/{name}")

    def folders(self) -> list[str]:
        """List the names of the folders in this one; none where it is missing itself."""
        filesystem, path = self._opened()
        entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(PurePosixPath(entry.path).name for entry in entries if entry.type == fs.FileType.Directory)

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file, or None where it is missing."""
        filesystem, path = self._opened()
        try:
            with filesystem.open_input_stream(f"{path}/{name}") as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole: a reader sees all of it, or what was there before."""
        filesystem, path = self._opened()
        if isinstance(filesystem, fs.LocalFileSystem):  # a bucket shows an object when all of it is there
            filesystem.create_dir(path)
            self._write_at(filesystem, f"{path}/.{name}.partial", content)
            filesystem.move(f"{path}/.{name}.partial", f"{path}/{name}")
        else:
            self._write_at(filesystem, f"{path}/{name}", content)

    @staticmethod
    def _write_at(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)

    def upload(self, folder: Path, *, last: str) -> None:
        """Copy the files of a local folder here, `last` after all others."""
        filesystem, path = self._opened()
        filesystem.create_dir(path)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == last):
            with file.open("rb") as source, filesystem.open_output_stream(f"{path}/{file.name}") as stream:
                shutil.copyfileobj(source, stream, CHUNK_BYTES)

    def download(self, folder: Path) -> None:
        """Copy the files here into a local folder, which is made; it may be left in part where this raises."""
        filesystem, path = self._opened()
        folder.mkdir(parents=True, exist_ok=True)
        for entry in filesystem.get_file_info(fs.FileSelector(path)):
            if entry.type == fs.FileType.File:
                with filesystem.open_input_stream(entry.path) as stream, (folder / entry.base_name).open("wb") as file:
                    shutil.copyfileobj(stream, file, CHUNK_BYTES)

    def remove(self) -> None:
        """Remove the folder and all in it, if it is there."""
        filesystem, path = self._opened()
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(path)

    def probe(self) -> None:
        """Write a small file, read it and remove it.

        Raises:
            OSError: one of that is refused.
        """
        name, content = f".probe_{secrets.token_hex(8)}", secrets.token_bytes(16)
        self.write(name, content)
        if self.read(name) != content:
            raise OSError("a file that was just written is not there")
        filesystem, path = self._opened()
        filesystem.delete_file(f"{path}/{name}")

    def require_writable(self) -> None:
        """Try it with a small file.

        Raises:
            ValueError: it refuses; the message says what for.
        """
        try:
            self.probe()
        except OSError as error:
            raise ValueError(
                f"{self.place} cannot be used ({reason_of(error)}); create it, or give the cluster's nodes the right "
                "to write there, or set RUN_STORAGE to another folder or bucket"
            ) from None

    def _opened(self) -> tuple[fs.FileSystem, str]:
        try:
            filesystem, path = fs.FileSystem.from_uri(self.place)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.place}: {error}; give s3://bucket/prefix or an absolute path") from None
        return filesystem, path.rstrip("/")


def patiently(what: Callable[[], None], aim: str) -> None:
    """Do what a storage may refuse for a while, again and again; each refusal is said in a warning.

    Args:
        what: may be done twice.
        aim: what is said to be impossible, such as "push the crops".

    Raises:
        OSError: the last refusal, after PATIENCE_SEC.
    """
    deadline = time.monotonic() + PATIENCE_SEC
    while True:
        try:
            return what()
        except OSError as error:
            if time.monotonic() > deadline:
                raise
            logger.warning("could not %s: %s; trying again", aim, reason_of(error))
            time.sleep(AGAIN_SEC)


def reason_of(error: OSError) -> str:
    """Say in a few words why a store refused; what an S3 client adds (request ids, advice) is left out."""
    text = " ".join((error.strerror or str(error)).split())
    return text.partition(" (Request ID")[0].partition("; Details")[0]
