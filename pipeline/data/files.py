"""Files that are whole or not there: written under a temporary name, synced to disk, then renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_file(path: Path) -> Generator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes the name `path`, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f".{path.name}.partial")
    try:
        yield partial_path
        sync(partial_path)
        partial_path.replace(path)
        sync(path.parent)
    finally:
        partial_path.unlink(missing_ok=True)


@contextmanager
def replaced_folder(folder: Path) -> Generator[Path]:
    """Yield an empty temporary folder beside `folder`; on success it takes that place, else it is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial_dir, old_dir = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(partial_dir, ignore_errors=True)
    partial_dir.mkdir()
    try:
        yield partial_dir
        for path in (*partial_dir.rglob("*"), partial_dir):
            sync(path)
        if folder.exists():  # a folder cannot be renamed over another: the old one steps aside first
            shutil.rmtree(old_dir, ignore_errors=True)
            folder.replace(old_dir)
        partial_dir.replace(folder)
        sync(folder.parent)
        shutil.rmtree(old_dir, ignore_errors=True)
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """Write a report: indented JSON, its keys in the order given."""
    with replaced_file(path) as partial_path:
        partial_path.write_text(json.dumps(document, indent=2) + "\n")


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk, so that a later rename cannot outlive its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
