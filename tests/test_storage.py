"""A bucket of a real S3-compatible server and a folder keep the same promises."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from pipeline.storage import Store, reason_of
from tests.bucket import bucket_server


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedMotoServer]:
    with bucket_server("stackgan") as server:
        yield server


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, server: ThreadedMotoServer) -> Store:
    return Store(str(tmp_path / "store") if request.param == "folder" else f"s3://stackgan/{tmp_path.name}")


def test_what_is_written_is_read(store: Store) -> None:
    assert store.read("a.bin") is None
    store.write("a.bin", b"first")
    store.write("a.bin", b"second")
    assert store.read("a.bin") == b"second"
    assert store.folders() == []


def test_a_folder_of_files_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    files = {"b.bin": b"b" * 1000, "manifest.json": b"{}", "z.bin": b""}
    for name, content in files.items():
        (tmp_path / "from").mkdir(exist_ok=True)
        (tmp_path / "from" / name).write_bytes(content)
    for name in ("two", "one"):
        store.child(name).upload(tmp_path / "from", last="manifest.json")
    assert store.folders() == ["one", "two"]
    store.child("one").download(tmp_path / "to")
    assert {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()} == files
    store.child("one").remove()
    store.child("never").remove()
    assert store.folders() == ["two"] and store.child("one").read("b.bin") is None


def test_the_manifest_is_not_there_before_the_rest(store: Store, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a_manifest.json").write_bytes(b"{}")
    (tmp_path / "from" / "state").mkdir()  # which no file can be read of: the upload ends there
    with pytest.raises(IsADirectoryError):
        store.upload(tmp_path / "from", last="a_manifest.json")
    assert store.read("a_manifest.json") is None


def test_a_place_that_can_be_written_keeps_no_trace_of_the_probe(store: Store) -> None:
    store.write("kept", b"")
    store.require_writable()
    assert store.read("kept") == b""
    if not store.place.startswith("s3:"):
        assert [path.name for path in Path(store.place).iterdir()] == ["kept"]


def test_a_missing_bucket_is_told_in_one_line_with_the_remedy(server: ThreadedMotoServer) -> None:
    with pytest.raises(
        ValueError, match=r"^s3://nowhere/runs cannot be used \(.*\); create it, or give .*RUN_STORAGE"
    ) as told:
        Store("s3://nowhere/runs").require_writable()
    assert "\n" not in str(told.value) and "Request ID" not in str(told.value)


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/runs cannot be used \("):
        Store(str(tmp_path / "file" / "runs")).require_writable()


@pytest.mark.parametrize("place", ["runs", "ftp://host/runs", "s3:/bucket"])
def test_what_is_no_place_is_told_in_one_line(place: str) -> None:
    with pytest.raises(ValueError, match="give s3://bucket/prefix or an absolute path"):
        Store(place).read("file")


def test_a_reason_is_short() -> None:
    error = OSError("When reading: Access\nDenied (Request ID: 123; more). Details: much")
    assert reason_of(error) == "When reading: Access Denied"
