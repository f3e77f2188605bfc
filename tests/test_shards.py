"""Image shards: the pixels come back, from a memory map, with stable bytes; what is torn is refused by name."""

import os
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from pipeline.data.files import file_sha256
from pipeline.data.shards import ImageShards, read_shard, shard_path, write_shard

SIZES = (5, 8)


def pictures(count: int, size: int, key: int = 0) -> np.ndarray:
    return np.random.default_rng([count, size, key]).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write_split(folder: Path, counts: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Write one shard a count, ids from 100 on, and return all pictures of each size."""
    first_id = 100
    for index, count in enumerate(counts):
        images = {size: pictures(count, size, index) for size in SIZES}
        write_shard(shard_path(folder, index), range(first_id, first_id + count), images)
        first_id += count
    return {
        size: np.concatenate([pictures(count, size, index) for index, count in enumerate(counts)]) for size in SIZES
    }


@pytest.mark.parametrize("size", SIZES)
def test_a_shard_gives_back_its_ids_and_pixels(size: int, tmp_path: Path) -> None:
    expected = write_split(tmp_path, (4,))
    image_ids, pixels, _ = read_shard(shard_path(tmp_path, 0), size)
    assert image_ids == [100, 101, 102, 103]
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected[size])


def test_pixels_that_lie_apart_in_memory_are_written_right(tmp_path: Path) -> None:
    pixels = pictures(6, 5)
    apart = np.asfortranarray(pixels)[::2]
    write_shard(tmp_path / "shard_00000.arrow", [1, 2, 3], {5: apart})
    np.testing.assert_array_equal(read_shard(tmp_path / "shard_00000.arrow", 5).pixels, pixels[::2])


def test_equal_pictures_have_equal_bytes(tmp_path: Path) -> None:
    images = {size: pictures(3, size) for size in SIZES}
    write_shard(tmp_path / "one.arrow", [1, 2, 3], images)
    write_shard(tmp_path / "two.arrow", [1, 2, 3], dict(reversed(images.items())))
    first = file_sha256(tmp_path / "one.arrow")
    write_shard(tmp_path / "one.arrow", [1, 2, 3], images)
    assert first == file_sha256(tmp_path / "one.arrow") == file_sha256(tmp_path / "two.arrow")


def test_shards_sort_by_their_number(tmp_path: Path) -> None:
    paths = [shard_path(tmp_path, index) for index in (0, 2, 10, 99_999)]
    assert sorted(paths) == paths
    assert paths[0].name == "shard_00000.arrow"


@pytest.mark.parametrize("size", SIZES)
def test_a_split_is_its_shards_one_after_the_other(size: int, tmp_path: Path) -> None:
    expected = write_split(tmp_path, (3, 1, 4))
    shards = ImageShards(tmp_path, size)
    assert len(shards) == 8
    assert shards.image_ids == list(range(100, 108))
    np.testing.assert_array_equal(shards.all(), expected[size])


def test_pictures_are_gathered_in_the_order_asked_for_also_twice(tmp_path: Path) -> None:
    expected = write_split(tmp_path, (3, 1, 4))[8]
    shards = ImageShards(tmp_path, 8)
    rng = np.random.default_rng(1)
    for indices in (rng.permutation(8), rng.integers(0, 8, 20), np.array([7]), np.array([], np.int64)):
        np.testing.assert_array_equal(shards.gather(indices), expected[indices])


def test_a_gathered_picture_is_a_copy(tmp_path: Path) -> None:
    expected = write_split(tmp_path, (3,))[5]
    shards = ImageShards(tmp_path, 5)
    shards.gather(np.array([0, 1, 2]))[:] = 0
    shards.all()[:] = 0
    np.testing.assert_array_equal(shards.all(), expected)


def test_pictures_out_of_range_are_our_own_mistake(tmp_path: Path) -> None:
    write_split(tmp_path, (3, 2))
    with pytest.raises(IndexError):
        ImageShards(tmp_path, 5).gather(np.array([5]))


def test_pixels_stay_in_the_map_until_they_are_touched(tmp_path: Path) -> None:
    path = tmp_path / "shard_00000.arrow"
    write_shard(path, range(100), {304: np.zeros((100, 304, 304, 3), np.uint8), 76: pictures(100, 76)})
    arrow_bytes = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        shards = ImageShards(tmp_path, 76)
        pixels = read_shard(path, 304).pixels
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not pixels.flags.owndata and not pixels.flags.writeable
    assert len(shards) == 100
    assert pa.total_allocated_bytes() - arrow_bytes + peak < path.stat().st_size / 100


def test_sizes_that_do_not_fit_are_our_own_mistake(tmp_path: Path) -> None:
    for ids, pixels in (([1, 2], pictures(3, 5)), ([1, 2, 3], pictures(3, 8)), ([1, 2, 3], pictures(3, 5) / 255)):
        with pytest.raises(AssertionError):
            write_shard(tmp_path / "shard_00000.arrow", ids, {5: pixels})
    assert not list(tmp_path.iterdir())


def refusal(path: Path, size: int = 5) -> str:
    with pytest.raises(ValueError) as refused:
        read_shard(path, size)
    message = str(refused.value)
    assert str(path) in message
    return message


def test_a_torn_shard_is_refused_wherever_it_is_torn(tmp_path: Path) -> None:
    write_split(tmp_path, (2,))
    path = shard_path(tmp_path, 0)
    whole = path.read_bytes()
    for index, length in enumerate(range(0, len(whole), 11)):
        torn = tmp_path / f"torn_{index}.arrow"  # a mapped file must not be written over
        torn.write_bytes(whole[:length])
        assert "is not a whole Arrow file" in refusal(torn)


def test_a_missing_shard_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    assert "dvc repro" in refusal(tmp_path / "shard_00000.arrow")
    (tmp_path / "shard_00001.arrow").write_text("a, b, c\n" * 100)
    assert "is not a whole Arrow file" in refusal(tmp_path / "shard_00001.arrow")


@pytest.mark.parametrize("metadata", [{"contract": "shard/v0"}, {"contract": "images/v1"}, {}, None])
def test_another_contract_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "shard_00000.arrow"
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(pictures(1, 5))
    schema = pa.schema([("image_id", pa.int64()), pa.field("image_5", tensor.type)], metadata=metadata)
    with pa.ipc.new_file(str(path), schema) as writer:
        writer.write_batch(pa.record_batch([pa.array([1]), tensor], schema=schema))
    message = refusal(path)
    assert "is not 'shard/v1'" in message and "dvc repro" in message


def test_a_size_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    write_split(tmp_path, (2,))
    message = refusal(shard_path(tmp_path, 0), 7)
    assert "no pictures of 7x7" in message and "image_5" in message and "image_8" in message


def test_one_torn_shard_among_many_is_named(tmp_path: Path) -> None:
    write_split(tmp_path, (2, 2, 2))
    path = shard_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{path} is not a whole Arrow file"):
        ImageShards(tmp_path, 5)


def test_a_shard_cut_short_while_it_is_read_is_named(tmp_path: Path) -> None:
    write_split(tmp_path, (2, 9))
    shards = ImageShards(tmp_path, 8)
    os.truncate(shard_path(tmp_path, 1), 700)
    with pytest.raises(ValueError, match=f"{shard_path(tmp_path, 1)} became shorter"):
        shards.gather(np.array([10]))


def test_open_files_are_closed_with_their_reader(tmp_path: Path) -> None:
    write_split(tmp_path, (2, 2, 2))
    before = psutil.Process().num_fds()
    shards = ImageShards(tmp_path, 5)
    assert psutil.Process().num_fds() == before + 3
    del shards
    assert psutil.Process().num_fds() == before


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} holds no shard_.*dvc repro crop_images"):
        ImageShards(tmp_path, 5)


def test_a_full_disk_leaves_the_shard_before_it(tmp_path: Path) -> None:
    path = tmp_path / "shard_00000.arrow"
    write_shard(path, [1, 2], {5: pictures(2, 5)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError):
            write_shard(path, range(100), {76: pictures(100, 76)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    np.testing.assert_array_equal(read_shard(path, 5).pixels, pictures(2, 5))
    assert [path.name for path in tmp_path.iterdir()] == ["shard_00000.arrow"]


def test_a_system_without_preadv_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path, (1,))
    monkeypatch.delattr(os, "preadv")
    with pytest.raises(OSError, match=r"^this system lacks os\.preadv, which reading shards needs: use Linux, macOS"):
        ImageShards(tmp_path, SIZES[0])
