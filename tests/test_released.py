"""Released pickles: read as Python 2 wrote them, never obeyed, and brought into Parquet whole or not at all."""

import copyreg
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.files import file_sha256
from pipeline.data.pickle_opcodes import MAX_OPCODES
from pipeline.data.released import import_released, read_released
from pipeline.data.released_pickles import MAX_LIST_BYTES, read_matrices, read_names, read_whole_numbers
from tests.released_data import (
    Protocol,
    ReleasedFolder,
    pickled_array,
    pickled_arrays,
    pickled_names,
    pickled_numbers,
)

EMBEDDINGS = "char-CNN-RNN-embeddings"
EXTENSION_CODE = 0xE9


@pytest.fixture
def released(tmp_path: Path) -> ReleasedFolder:
    return ReleasedFolder(tmp_path / "birds")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def refusal(run: Callable[[], object], named: Path | str) -> str:
    with pytest.raises(ValueError) as refused:
        run()
    message = str(refused.value)
    assert str(named) in message and "\n" not in message
    return message


def refused_import(released: ReleasedFolder, out: Path, named: Path | str) -> str:
    """Return why an import was refused; nothing may be left of it."""
    message = refusal(lambda: import_released(released.root, out), named)
    assert not [path for path in out.parent.iterdir() if path != released.root]
    return message


# What comes back


@pytest.mark.parametrize("protocol", [0, 2])
def test_what_python_2_wrote_comes_back_exactly(protocol: Protocol, tmp_path: Path, out: Path) -> None:
    released = ReleasedFolder(tmp_path / "birds", protocol)
    written = import_released(released.root, out)
    assert [tuple(split) for split in written] == [(out / "train.parquet", 3, 4, 6), (out / "test.parquet", 2, 4, 6)]
    for split in ("train", "test"):
        read = read_released(out / f"{split}.parquet")
        assert read.file_names == [f"{key}.jpg" for key in released.keys[split]]
        assert read.class_ids == released.class_ids[split]
        assert read.vectors.dtype == np.float32
        np.testing.assert_array_equal(read.vectors, released.vectors[split])


@pytest.mark.parametrize("protocol", [0, 2])
def test_the_tests_own_python_2_pickles_are_what_numpy_reads(protocol: Protocol) -> None:
    arrays = list(np.random.default_rng(1).standard_normal((3, 10, 40)).astype(np.float32))
    read = pickle.loads(pickled_arrays(arrays, protocol), encoding="latin1")
    np.testing.assert_array_equal(read, arrays)
    np.testing.assert_array_equal(pickle.loads(pickled_array(arrays[0], protocol), encoding="latin1"), arrays[0])
    assert pickle.loads(pickled_names(["a/b", "a/c"], protocol), encoding="latin1") == ["a/b", "a/c"]
    assert pickle.loads(pickled_numbers([0, 300, 70_000], protocol)) == [0, 300, 70_000]


@pytest.mark.parametrize("protocol", [0, 2])
def test_one_array_is_as_good_as_a_list_of_arrays(protocol: Protocol, released: ReleasedFolder, out: Path) -> None:
    released.write("train", EMBEDDINGS, pickled_array(released.vectors["train"], protocol))
    import_released(released.root, out)
    np.testing.assert_array_equal(read_released(out / "train.parquet").vectors, released.vectors["train"])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_python_3_writes_is_read_under_every_protocol(protocol: int, released: ReleasedFolder, out: Path) -> None:
    released.dump("train", EMBEDDINGS, list(released.vectors["train"]), protocol)
    released.dump("train", "filenames", released.keys["train"], protocol)
    released.dump("train", "class_info", [np.int64(class_id) for class_id in (2, 2, 3)], protocol)
    released.dump("test", EMBEDDINGS, released.vectors["test"], protocol)
    released.dump("test", "class_info", np.array([1, 1]), protocol)
    import_released(released.root, out)
    for split in ("train", "test"):
        read = read_released(out / f"{split}.parquet")
        np.testing.assert_array_equal(read.vectors, released.vectors[split])
        assert read.class_ids == released.class_ids[split]


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">f8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_float_type_and_order_becomes_float32(
    dtype: str, order: Literal["C", "F"], released: ReleasedFolder, out: Path
) -> None:
    values = released.vectors["train"].astype(dtype, order=order)
    released.dump("train", EMBEDDINGS, values)
    import_released(released.root, out)
    np.testing.assert_array_equal(read_released(out / "train.parquet").vectors, values.astype(np.float32))


def test_coco_comes_without_classes_and_without_a_test_split(released: ReleasedFolder, out: Path) -> None:
    released.path("train", "class_info").unlink()
    for name in ("filenames", "class_info", EMBEDDINGS):
        released.path("test", name).unlink()
    (released.root / "test" / "val_captions.t7").write_bytes(b"torch")
    assert [split.path.name for split in import_released(released.root, out)] == ["train.parquet"]
    read = read_released(out / "train.parquet")
    assert read.class_ids is None and len(read.file_names) == 3
    assert b"class_info_sha256" not in pq.read_schema(out / "train.parquet").metadata


def test_other_embeddings_are_taken_by_name(released: ReleasedFolder, out: Path) -> None:
    for split in ("train", "test"):
        released.dump(split, "skip-thought-embeddings", released.vectors[split][:, :, :2])
    written = import_released(released.root, out, embeddings_name="skip-thought-embeddings.pickle")
    assert [split.embedding_dim for split in written] == [2, 2]
    assert pq.read_schema(out / "test.parquet").metadata[b"encoder_name"] == b"skip-thought"


def test_the_sums_of_the_pickles_stand_in_the_metadata(released: ReleasedFolder, out: Path) -> None:
    import_released(released.root, out)
    assert pq.read_schema(out / "train.parquet").metadata == {
        b"contract": b"released_embeddings/v1",
        b"encoder_name": b"char-CNN-RNN",
        b"encoder_sha256": file_sha256(released.path("train", EMBEDDINGS)).encode(),
        b"filenames_sha256": file_sha256(released.path("train", "filenames")).encode(),
        b"class_info_sha256": file_sha256(released.path("train", "class_info")).encode(),
    }


def test_a_row_is_a_caption_in_the_order_of_the_pickles(released: ReleasedFolder, out: Path) -> None:
    import_released(released.root, out)
    rows = pq.read_table(out / "train.parquet").to_pylist()
    assert [(row["file_name"], row["caption_id"], row["class_id"]) for row in rows[3:6]] == [
        ("002.B/b_1.jpg", 3, 2),
        ("002.B/b_2.jpg", 0, 2),
        ("002.B/b_2.jpg", 1, 2),
    ]
    assert rows[5]["embedding"] == released.vectors["train"][1, 1].tolist()


def test_embeddings_in_many_row_groups_come_back_whole(released: ReleasedFolder, out: Path) -> None:
    vectors = np.random.default_rng(2).standard_normal((3, 9000, 1)).astype(np.float32)
    released.dump("train", EMBEDDINGS, vectors)
    released.dump("test", EMBEDDINGS, vectors[:2])
    import_released(released.root, out)
    assert pq.ParquetFile(out / "train.parquet").num_row_groups > 1
    np.testing.assert_array_equal(read_released(out / "train.parquet").vectors, vectors)


def test_equal_pickles_give_equal_bytes_over_an_earlier_import(released: ReleasedFolder, out: Path) -> None:
    import_released(released.root, out)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    import_released(released.root, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_an_older_split_does_not_stay_beside_a_new_one(released: ReleasedFolder, out: Path) -> None:
    import_released(released.root, out)
    for path in (released.root / "test").iterdir():
        path.unlink()
    import_released(released.root, out)
    assert [path.name for path in out.iterdir()] == ["train.parquet"]


def test_a_folder_that_is_a_link_stays_one(released: ReleasedFolder, out: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    out.symlink_to(tmp_path / "disk")
    import_released(released.root, out)
    assert out.is_symlink() and len(list((tmp_path / "disk").iterdir())) == 2


@pytest.mark.parametrize(("split", "num_images"), [("train", 451), ("test", 328)])
def test_the_names_of_real_cub_pickles_are_those_of_its_pictures(
    split: str, num_images: int, real_data: Path, tmp_path: Path, out: Path
) -> None:
    (tmp_path / "birds" / split).mkdir(parents=True)
    for name in ("filenames.pickle", "class_info.pickle"):
        (tmp_path / "birds" / split / name).write_bytes((real_data / "cub" / split / name).read_bytes())
    with np.load(real_data / "char_cnn_rnn" / "cub_one_image_char_cnn_rnn.npz") as arrays:
        embedding = arrays["txt"]  # (10, 1024), of one real picture
    (tmp_path / "birds" / split / f"{EMBEDDINGS}.pickle").write_bytes(pickled_arrays([embedding] * num_images, 2))
    import_released(tmp_path / "birds", out)
    read = read_released(out / f"{split}.parquet")
    assert read.vectors.shape == (num_images, 10, 1024) and (read.vectors == embedding).all()
    assert all((real_data / "cub" / "CUB_200_2011" / "images" / name).is_file() for name in read.file_names)
    assert read.class_ids == [int(name[:3]) for name in read.file_names]


# Pickles that would run code


def attacks(marker: Path) -> dict[str, bytes]:
    """Return pickles that make the file `marker` when they are obeyed."""
    command = f"touch {marker}".encode()
    python = f"open({str(marker)!r}, 'w').close()".encode()
    return {
        "GLOBAL": b"cos\nsystem\n(S'%s'\ntR." % command,
        "GLOBAL_eval": b"c__builtin__\neval\n(S'%s'\ntR." % python.replace(b"'", b'"'),
        "STACK_GLOBAL": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c%c%s\x85R." % (len(python), python),
        "STACK_GLOBAL_dotted": b"\x80\x04\x8c\x05shlex\x8c\x09os.system\x93\x8c%c%s\x85R." % (len(command), command),
        "INST": b"(S'%s'\nios\nsystem\n." % command,
        "OBJ": b"(cos\nsystem\nS'%s'\no." % command,
        "EXT1": b"\x80\x02\x82%c(S'%s'\ntR." % (EXTENSION_CODE, command),
        "in_a_list": b"\x80\x02](K\x01cos\nsystem\n(S'%s'\ntRe." % command,
        "before_a_good_list": b"\x80\x02cos\nsystem\n(S'%s'\ntRK\x00\x86." % command,
        "numpy": b"\x80\x02cnumpy\nfromregex\n0cos\nsystem\n(S'%s'\ntR." % command,
    }


@pytest.fixture
def extension() -> Iterator[None]:
    """Register os.system with pickle's extension registry, as a library might."""
    copyreg.add_extension("os", "system", EXTENSION_CODE)
    yield
    copyreg.remove_extension("os", "system", EXTENSION_CODE)
    copyreg.clear_extension_cache()


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", ["filenames", "class_info", EMBEDDINGS])
@pytest.mark.parametrize("attack", attacks(Path()))
def test_a_pickle_that_would_run_code_runs_none(
    attack: str, name: str, released: ReleasedFolder, out: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    marker = tmp_path_factory.mktemp("marker") / "m"
    content = attacks(marker)[attack]
    pickle.loads(content, encoding="latin1")
    assert marker.is_file(), "the attack is none"
    marker.unlink()
    path = released.write("test", name, content)
    assert "it is refused" in refused_import(released, out, path)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "arguments"), [(os.system, ("true",)), (eval, ("1",)), (np.fromfile, ("/dev/null",)), (set, ([1],))]
)
def test_a_foreign_global_is_named(
    function: Callable[..., object], arguments: tuple[object], protocol: int, released: ReleasedFolder
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object]]:
            return function, arguments

    path = released.dump("train", EMBEDDINGS, [Evil()], protocol)
    message = refusal(lambda: read_matrices(path), path)
    assert f".{function.__name__}'" in message and "would run code; it is refused" in message


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem.__call__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        b"cnumpy\nload\n.",
        b"ccopyreg\n_reconstructor\n.",
        b"cpipeline.data.released_pickles\nread_names\n.",
        b"c" + b"x" * 10_000 + b"\n\x1b[2J\n.",
    ],
)
def test_naming_a_global_is_enough_to_be_refused(content: bytes, released: ReleasedFolder) -> None:
    path = released.write("train", "filenames", content)
    message = refusal(lambda: read_names(path), path)
    assert "would run code; it is refused" in message and message.isprintable() and len(message) < 600


@pytest.mark.parametrize(
    "content",
    [
        b"Pid\n.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"\x80\x04cnumpy\nndarray\n))\x92.",
        b"\x80\x02}.",
        b"\x80\x04\x8f.",
        b"\x80\x05\x97.",
        b"\x80\x02K\x012.",
        b"\x80\x02\x8b\x04\x00\x00\x00\x01\x00\x00\x00.",
    ],
    ids=["PERSID", "BINPERSID", "NEWOBJ", "NEWOBJ_EX", "EMPTY_DICT", "EMPTY_SET", "NEXT_BUFFER", "DUP", "LONG4"],
)
def test_an_opcode_that_data_does_not_need_is_refused_by_name(
    content: bytes, released: ReleasedFolder, request: pytest.FixtureRequest
) -> None:
    path = released.write("train", "filenames", content)
    assert f"({request.node.callspec.id})" in refusal(lambda: read_names(path), path)


# Pickles that would exhaust the memory, or trick NumPy


def array_pickle(
    shape: bytes = b"K\x01K\x02\x86",
    dtype: bytes = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
    content: bytes = b"U\x08AAAABBBB",
    subtype: bytes = b"cnumpy\nndarray\n",
    state: bytes | None = None,
) -> bytes:
    """Return a list of one array, of the parts given."""
    made = b"cnumpy.core.multiarray\n_reconstruct\n" + subtype + b"K\x00\x85U\x01b\x87R"
    return b"\x80\x02](" + made + (state or b"(K\x01" + shape + dtype + b"\x89" + content + b"t") + b"be."


def dtype_pickle(
    code: bytes = b"f4", state: bytes = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
) -> bytes:
    return b"cnumpy\ndtype\nU" + bytes([len(code)]) + code + b"K\x00K\x01\x87R" + state + b"b"


def test_the_array_that_the_next_tests_spoil_is_read() -> None:
    (array,) = pickle.loads(array_pickle(), encoding="latin1")
    assert array.tobytes() == b"AAAABBBB"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (array_pickle(dtype=dtype_pickle(b"O8"), content=b"](K\x01K\x02e"), "type 'O8'"),
        (array_pickle(dtype=dtype_pickle(b"V4")), "type 'V4'"),
        (array_pickle(dtype=dtype_pickle(b"f4,f4")), "type 'f4,f4'"),
        (array_pickle(dtype=dtype_pickle(b"f4\n")), "type 'f4"),
        # flags 63: the bytes are pointers to Python objects, says NumPy
        (array_pickle(dtype=dtype_pickle(state=b"(K\x03U\x01|NU\x01aU\x01bK\x04K\x01K?t")), "another type"),
        (array_pickle(dtype=b"N"), "without bytes, type or shape"),
        (array_pickle(subtype=b"U\x01x"), "no numpy.ndarray"),
        (array_pickle(subtype=b"cnumpy\ndtype\n"), "no numpy.ndarray"),
        (array_pickle(content=b"U\x04AAAA"), "does not fit its bytes"),
        (array_pickle(shape=b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"), "does not fit its bytes"),
        (array_pickle(shape=b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86"), "no numbers"),
        (array_pickle(shape=b"\x8a\xff" + b"\x7f" * 255 + b"K\x00\x86"), "no numbers"),
        (array_pickle(shape=b"(" + b"K\x01" * 70 + b"t"), "more than three axes"),
        (array_pickle(shape=b"N"), "without bytes, type or shape"),
        (array_pickle(content=b"](K\x01e"), "without bytes, type or shape"),
        (array_pickle(state=b"K\x01"), "a form that NumPy does not write"),
        (array_pickle(shape=b"K\x02\x85"), "neither a list of arrays"),
        (array_pickle(dtype=dtype_pickle(b"i4")), "neither a list of arrays"),
        (b"\x80\x02](cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87Re.", "neither a list"),
    ],
)
def test_an_array_that_numpy_would_trip_over_is_refused(content: bytes, reason: str, released: ReleasedFolder) -> None:
    path = released.write("train", EMBEDDINGS, content)
    assert reason in refusal(lambda: read_matrices(path), path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02]r\xff\xff\xff\x3f.", "memo"),  # C grows the memo to that place: 16 GB
        (b"(lp1073741823\n.", "memo"),
        (b"\x80\x02](U\x01aT\xff\xff\xff\x7fx", "torn"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x0f].", "torn"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "torn"),
        (b"\x80\x02N" + b"\x85" * 200_000 + b".", "no list of texts"),  # as many tuples in each other
        (b"\x80\x02]" + b"]a" * 1000 + b".", "no list of texts"),
        (b"I" + b"9" * 10_000 + b"\n.", "torn or no pickle"),
        (b"\x80\x02c_codecs\nencode\nU\x01xU\x03zip\x86R.", "encodes a text otherwise"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xU\x03hex\x86R.", "encodes a text otherwise"),
        (
            b"\x80\x02](c_codecs\nencode\nq\x00X\x09\x00\x00\x00xxxxxxxxxU\x06latin1\x86q\x01R"
            + b"h\x00h\x01R" * 90  # 5 bytes for each copy of the text
            + b"e.",
            "encodes a text otherwise",
        ),
        (b"\x80\x02](" + b"K\x01" * (MAX_OPCODES // 8), "torn"),
    ],
)
def test_a_pickle_that_would_exhaust_the_memory_is_refused(
    content: bytes, reason: str, released: ReleasedFolder
) -> None:
    path = released.write("train", "filenames", content)
    with address_space(2**30):
        assert reason in refusal(lambda: read_names(path), path)


@contextmanager
def address_space(num_bytes: int) -> Iterator[None]:
    """Let the process grow by `num_bytes` at most, where the system tells how large it is."""
    size_path = Path("/proc/self/statm")
    if not size_path.is_file():
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(size_path.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_one_array_named_many_times_is_refused(released: ReleasedFolder) -> None:
    array = np.zeros((10, 1024), np.float32)
    path = released.dump("train", EMBEDDINGS, [array] * 1_000_000)
    assert "more numbers than it holds" in refusal(lambda: read_matrices(path), path)


def test_a_list_larger_than_any_is_refused_unread(released: ReleasedFolder) -> None:
    path = released.path("train", "filenames")
    with path.open("r+b") as file:
        file.truncate(MAX_LIST_BYTES + 1)  # sparse
    assert "more than the" in refusal(lambda: read_names(path), path)


# Files that are torn, or no pickles


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("name", ["filenames", "class_info", EMBEDDINGS])
def test_a_torn_pickle_is_refused_wherever_it_is_torn(name: str, protocol: Protocol, tmp_path: Path) -> None:
    released = ReleasedFolder(tmp_path, protocol)
    path = released.path("train", name)
    read = {"filenames": read_names, "class_info": read_whole_numbers, EMBEDDINGS: read_matrices}[name]
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refusal(lambda: read(path), path)


@pytest.mark.filterwarnings("ignore:invalid:DeprecationWarning")  # of an escape in an altered Python 2 text
@given(
    places=st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3)), min_size=1, max_size=4),
    which=st.sampled_from([0, 2]),
)
@settings(max_examples=300, deadline=None)
def test_altered_bytes_are_read_or_refused_by_name(
    places: list[tuple[int, bytes]], which: Protocol, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(pickled_arrays(list(np.ones((2, 2, 3), np.float32)), which))
    for place, piece in places:
        start = place % len(content)
        content[start : start + max(1, len(piece))] = piece
    path = tmp_path_factory.getbasetemp() / "altered.pickle"
    path.write_bytes(content)
    try:
        assert all(array.ndim == 2 for array in read_matrices(path))
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"hello, world\n", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"PK\x03\x04", b"\x00" * 100, b"."],
)
@pytest.mark.parametrize("name", ["filenames", "class_info", EMBEDDINGS])
def test_a_file_that_is_no_pickle_is_refused(name: str, content: bytes, released: ReleasedFolder, out: Path) -> None:
    refused_import(released, out, released.write("test", name, content))


def test_bytes_after_the_end_are_refused(released: ReleasedFolder, out: Path) -> None:
    path = released.path("train", "filenames")
    path.write_bytes(path.read_bytes() * 2)
    assert "bytes follow its end" in refused_import(released, out, path)


@pytest.mark.parametrize("name", ["filenames", EMBEDDINGS])
def test_a_missing_file_is_named(name: str, released: ReleasedFolder, out: Path) -> None:
    released.path("train", name).unlink()
    assert "is missing" in refused_import(released, out, released.path("train", name))


# Content that does not fit


@pytest.mark.parametrize(
    "key",
    ["../../etc/passwd", "/etc/passwd", "a/../../b", "a/..", "", ".", "a//b", "./a", "a/", "a\0b", "a\nb", "a\x1b[2Jb"],
)
def test_a_name_that_leaves_its_folder_or_is_no_plain_path_is_refused(
    key: str, released: ReleasedFolder, out: Path
) -> None:
    path = released.write("train", "filenames", pickled_names(["002.B/b_1", key, "003.C/c_1"], 2))
    assert refused_import(released, out, path).isprintable()


def test_a_name_twice_is_refused(released: ReleasedFolder, out: Path) -> None:
    path = released.write("train", "filenames", pickled_names(["a/b", "a/c", "a/b"], 2))
    assert "a/b' twice" in refused_import(released, out, path)
    path = released.write("train", "filenames", pickled_names(["a/b", "a/c", "a/b.jpg"], 2))
    assert "with .jpg and without" in refused_import(released, out, path)


def test_a_name_that_is_not_utf8_is_refused(released: ReleasedFolder, out: Path) -> None:
    path = released.write("train", "filenames", b"\x80\x02](U\x03a/\xffU\x03a/bU\x03a/ce.")
    assert "is not UTF-8" in refused_import(released, out, path)


@pytest.mark.parametrize("value", ["a/b", ("a/b",), [1], [None], [["a/b"]], [("a/b",)], [], 3, None])
def test_file_names_that_are_no_list_of_texts_are_refused(value: object, released: ReleasedFolder, out: Path) -> None:
    refused_import(released, out, released.dump("train", "filenames", value))


@pytest.mark.parametrize("value", [[1, 2, -1], [1, 2, True], [1, 2, "3"], [1, 2, 2**63], [1, 2, None], 7, np.ones(3)])
def test_class_ids_that_are_no_whole_numbers_from_0_are_refused(
    value: object, released: ReleasedFolder, out: Path
) -> None:
    refused_import(released, out, released.dump("train", "class_info", value))


def test_files_of_unlike_length_are_refused(released: ReleasedFolder, out: Path) -> None:
    path = released.write("train", "class_info", pickled_numbers([1, 2], 2))
    assert f"for 2 pictures, {released.path('train', 'filenames')} lists 3" in refused_import(released, out, path)
    released.write("train", "class_info", pickled_numbers([1, 2, 3], 2))
    path = released.write("train", EMBEDDINGS, pickled_arrays(list(released.vectors["train"]) * 2, 2))
    assert "for 6 pictures" in refused_import(released, out, path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_an_embedding_that_float32_cannot_hold_is_refused(value: float, released: ReleasedFolder, out: Path) -> None:
    vectors = released.vectors["train"].astype(np.float64)
    vectors[1, 2, 3] = value
    path = released.dump("train", EMBEDDINGS, vectors)
    assert "002.B/b_2.jpg is NaN or infinite" in refused_import(released, out, path)


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros((3, 4)), np.zeros((3, 4, 6), int), [[0.0]], ["x"], "x", None])
def test_embeddings_of_another_form_are_refused(value: object, released: ReleasedFolder, out: Path) -> None:
    refused_import(released, out, released.dump("train", EMBEDDINGS, value, 3))


def test_unlike_numbers_of_captions_are_refused_or_cut_to_the_first(released: ReleasedFolder, out: Path) -> None:
    first, second, third = released.vectors["train"]
    path = released.dump("train", EMBEDDINGS, [first, second[:2], third])
    message = refused_import(released, out, path)
    assert "002.B/b_2.jpg has 2 captions, 002.B/b_1.jpg has 4; give --captions 2" in message
    assert "give --captions 2 or less" in refusal(
        lambda: import_released(released.root, out, captions_per_image=3), path
    )
    assert "or less" in refusal(lambda: import_released(released.root, out, captions_per_image=10**12), path)
    import_released(released.root, out, captions_per_image=2)
    np.testing.assert_array_equal(read_released(out / "train.parquet").vectors, released.vectors["train"][:, :2])


def test_unlike_lengths_of_embeddings_are_refused(released: ReleasedFolder, out: Path) -> None:
    first, second, third = released.vectors["train"]
    path = released.dump("train", EMBEDDINGS, [first, second[:, :5], third])
    assert "embeddings of 5 numbers, 002.B/b_1.jpg of 6" in refused_import(released, out, path)
    released.dump("train", EMBEDDINGS, [first, second, third])
    released.dump("test", EMBEDDINGS, released.vectors["test"][:, :, :5])
    assert "of 6 numbers in train/ and of 5 in test/" in refused_import(released, out, released.root)


def test_a_picture_in_both_splits_is_refused(released: ReleasedFolder, out: Path) -> None:
    released.write("test", "filenames", pickled_names(["001.A/a_1", "002.B/b_1"], 2))
    assert "002.B/b_1.jpg is in train/ and in test/" in refused_import(released, out, released.root)


# Where it reads and writes


def test_a_folder_without_splits_is_refused(released: ReleasedFolder, out: Path) -> None:
    folder = released.root / "train"
    assert "such as Data/birds" in refusal(lambda: import_released(folder, out), folder)


@pytest.mark.parametrize("name", ["", ".", "..", "../x.pickle", "/etc/passwd", "a/b.pickle", "a\0.pickle"])
def test_a_name_of_embeddings_that_is_a_path_is_refused(name: str, released: ReleasedFolder, out: Path) -> None:
    refusal(lambda: import_released(released.root, out, embeddings_name=name), "--embeddings")


def test_fewer_than_one_caption_is_refused(released: ReleasedFolder, out: Path) -> None:
    refusal(lambda: import_released(released.root, out, captions_per_image=0), "--captions 0")


def test_a_folder_with_other_things_is_left_alone(released: ReleasedFolder, out: Path) -> None:
    assert "holds test, which" in refusal(lambda: import_released(released.root, released.root), released.root)
    out.write_text("mine")
    assert "is a file" in refusal(lambda: import_released(released.root, out), out)
    assert out.read_text() == "mine" and released.path("train", "filenames").is_file()


@pytest.fixture
def earlier(released: ReleasedFolder, out: Path) -> dict[str, bytes]:
    """Import once, and return the bytes."""
    import_released(released.root, out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_refused_import_leaves_the_earlier_one(
    released: ReleasedFolder, out: Path, earlier: dict[str, bytes]
) -> None:
    path = released.path("test", EMBEDDINGS)
    path.write_bytes(path.read_bytes()[:-1])
    refusal(lambda: import_released(released.root, out), path)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == earlier


def test_a_full_disk_leaves_the_earlier_import(released: ReleasedFolder, out: Path, earlier: dict[str, bytes]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError):
            import_released(released.root, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == earlier
    assert {path.name for path in out.parent.iterdir()} == {"out", "birds"}


# Reading what was written


def test_a_missing_torn_or_foreign_table_is_refused(released: ReleasedFolder, out: Path) -> None:
    path = out / "train.parquet"
    assert "run `stackgan import-embeddings`" in refusal(lambda: read_released(path), path)
    import_released(released.root, out)
    table, content = pq.read_table(path), path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "not a whole Parquet file" in refusal(lambda: read_released(path), path)
    pq.write_table(table.replace_schema_metadata({"contract": "embeddings/v1"}), path)
    assert "'embeddings/v1' is not 'released_embeddings/v1'" in refusal(lambda: read_released(path), path)
    pq.write_table(table.replace_schema_metadata(None), path)
    assert "'none' is not" in refusal(lambda: read_released(path), path)


@pytest.mark.parametrize("rows", [[], [0, 1, 2], [0, 1, 2, 3, 4], [1, 0, 2, 3], [0, 1, 2, 7], [1, 2, 3]], ids=str)
def test_rows_that_are_missing_or_apart_are_refused(rows: list[int], released: ReleasedFolder, out: Path) -> None:
    import_released(released.root, out)
    path = out / "train.parquet"
    table = pq.read_table(path)
    kept = [*rows, *range(8, 12)] if rows else []
    pq.write_table(table.take(np.array(kept, dtype=np.int64)), path)
    assert "side by side" in refusal(lambda: read_released(path), path)


def test_a_table_with_a_nan_is_refused(released: ReleasedFolder, out: Path) -> None:
    import_released(released.root, out)
    path = out / "train.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[2]["embedding"][1] = float("nan")
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    assert "NaN or infinite" in refusal(lambda: read_released(path), path)
