"""What all sources share: bad pictures end the reading or are noted, and text, paths, boxes and JSON are checked."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.cropping import Bbox
from pipeline.data.records import (
    MAX_CAPTION_CHARS,
    BadImage,
    BadImages,
    SourceImage,
    chosen_captions,
    finite_bbox,
    is_id,
    is_text,
    path_inside,
    read_captions,
    read_json,
    read_lines,
    read_test_class_names,
    require_both_splits,
    require_split_rule,
)
from tests.source_data import refusal


def test_skipped_pictures_are_noted_in_order_with_their_reasons() -> None:
    bad = BadImages("skip")
    for file_name, reason in (("b.jpg", "torn"), ("a.jpg", "empty")):
        with bad.noted(file_name):
            raise ValueError(reason)
    with bad.noted("good.jpg"):
        pass
    assert bad.found == [BadImage("b.jpg", "torn"), BadImage("a.jpg", "empty")]


def test_the_first_bad_picture_ends_the_reading_under_fail() -> None:
    bad = BadImages("fail")
    with pytest.raises(ValueError, match="torn"), bad.noted("a.jpg"):
        raise ValueError("torn")
    assert bad.found == []


@pytest.mark.parametrize("on_bad_image", ["fail", "skip"])
def test_a_mistake_of_ours_is_never_noted(on_bad_image: str) -> None:
    bad = BadImages("skip" if on_bad_image == "skip" else "fail")
    with pytest.raises(KeyError), bad.noted("a.jpg"):
        raise KeyError("ours")
    assert bad.found == []


FOLDER = Path("/data/set")
LIST = Path("/data/set/images.txt")


@given(st.text(st.sampled_from("ab./\\ \0\n\ud800é"), max_size=12))
def test_a_path_is_inside_its_folder_or_is_refused(relative: str) -> None:
    try:
        path = path_inside(FOLDER, relative, LIST)
    except ValueError as error:
        assert str(LIST) in str(error) and "\n" not in str(error)
        return
    assert path.is_relative_to(FOLDER) and path != FOLDER and ".." not in path.parts
    assert path.resolve().is_relative_to(FOLDER)
    assert str(path).encode().isascii() or "é" in relative


@pytest.mark.parametrize("relative", ["a/b.jpg", "a..b.jpg", "...", "a b/ü.jpg", "./a.jpg"])
def test_common_names_are_taken(relative: str) -> None:
    assert path_inside(FOLDER, relative, LIST) == FOLDER / relative


NUMBERS = st.floats(-1e300, 1e300)


@given(st.lists(NUMBERS, min_size=4, max_size=4))
def test_a_box_of_four_numbers_or_their_texts_is_taken_as_it_stands(values: list[float]) -> None:
    assert finite_bbox(values, "here") == finite_bbox([repr(value) for value in values], "here") == Bbox(*values)


ODD = st.one_of(NUMBERS, st.sampled_from([float("nan"), float("inf"), 10**400, None, "x", "nan", "", [], {}, b"1"]))


@given(st.one_of(st.lists(ODD, max_size=6), ODD))
def test_another_box_is_refused_in_one_line(values: object) -> None:
    try:
        bbox = finite_bbox(values, "boxes.txt, line 3")
    except ValueError as error:
        assert str(error).startswith("boxes.txt, line 3") and "\n" not in str(error)
        return
    assert isinstance(values, list) and all(value == value and abs(value) < 1e301 for value in bbox)


def test_captions_are_the_first_lines_that_are_not_empty() -> None:
    lines = ["", " one ", "\t", "two\r\nlines", "three"]
    assert chosen_captions(lines, 2, "here") == ("one", "two  lines")
    assert chosen_captions([], 0, "here") == ()


def test_the_longest_caption_is_taken_and_one_character_more_is_refused() -> None:
    assert len(chosen_captions(["x" * MAX_CAPTION_CHARS], 1, "a.txt")[0]) == MAX_CAPTION_CHARS
    message = refusal(lambda: chosen_captions(["x" * (MAX_CAPTION_CHARS + 1)], 1, "a.txt"))
    assert message.startswith("a.txt") and "shorten it" in message


def test_too_few_captions_name_the_file_and_the_key() -> None:
    message = refusal(lambda: chosen_captions(["one", " "], 2, "a.txt"))
    assert message.startswith("a.txt has 1 captions") and "crop_images.captions_per_image = 2" in message


def test_half_a_character_is_no_text() -> None:
    assert is_text("ü \U0001f426") and is_text("") and not is_text("\ud83d") and not is_text(b"a")
    assert refusal(lambda: chosen_captions(["\ud83d"], 1, "a.json")).startswith("a.json")


@given(st.text(st.characters(), max_size=20))
def test_text_is_what_utf8_can_hold(value: str) -> None:
    assert is_text(value) == (value.encode("utf-8", "ignore").decode() == value)


def test_ids_are_whole_numbers_of_an_int64_column() -> None:
    assert all(map(is_id, [0, 1, 2**63 - 1]))
    assert not any(map(is_id, [-1, 2**63, 1.0, "1", None, True]))


def test_captions_of_a_missing_file_are_refused_by_its_name(tmp_path: Path) -> None:
    assert str(tmp_path / "a.txt") in refusal(lambda: read_captions(tmp_path / "a.txt", 1))


def test_lines_end_at_line_ends_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\x85\u2028 still\r\ntwo\x0c\n".encode())
    assert read_lines(tmp_path / "a.txt") == ["one\x85\u2028 still", "two\x0c", ""]


def test_json_is_read_without_a_byte_order_mark_and_without_what_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('\ufeff{"a": [[1, 2], [3]], "b": [{"a" :\n[], "c": "\\"a\\": [1]"}], "d": {"a": [1]}}'.encode())
    assert read_json(path) == {"a": [[1, 2], [3]], "b": [{"a": [], "c": '"a": [1]'}], "d": {"a": [1]}}
    expected = {"a": None, "b": [{"a": None, "c": '"a": [1]'}], "d": {"a": None}}
    assert read_json(path, passed_over="a") == expected


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"[" + b"1" * 5000 + b"]", b"{} {}"])
def test_what_is_no_json_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    message = refusal(lambda: read_json(tmp_path / "a.json"))
    assert str(tmp_path / "a.json") in message and "bring a whole copy" in message


def test_an_unknown_test_class_and_a_missing_list_name_the_file_and_an_example(tmp_path: Path) -> None:
    path = tmp_path / "testclasses.txt"
    missing = refusal(lambda: read_test_class_names(tmp_path, ["b", "a"]))
    assert str(path) in missing and "one a line, such as 'b'" in missing
    path.write_text(" a \n\nc\n")
    assert "'c' is no class of this data set, such as 'b'" in refusal(
        lambda: read_test_class_names(tmp_path, ["b", "a"])
    )
    assert read_test_class_names(tmp_path, ["b", "a", "c"]) == {"a", "c"}
    assert "'a' is no class of this data set; correct" in refusal(lambda: read_test_class_names(tmp_path, []))


def test_a_split_rule_that_a_source_lacks_is_refused_by_the_key() -> None:
    require_split_rule("official", "coco", ("official",))
    message = refusal(lambda: require_split_rule("zero_shot", "own", ("official", "testclasses")))
    assert "crop_images.split" in message and "own" in message and "official or testclasses" in message


def test_both_splits_must_have_a_picture() -> None:
    record = SourceImage(
        image_id=1,
        class_id=1,
        class_name="a",
        split="test",
        file_name="a.jpg",
        image_path=Path("a.jpg"),
        bbox=None,
        captions=(),
    )
    message = refusal(lambda: require_both_splits([record], Path("/data/set")))
    assert "/data/set" in message and "train split" in message and "crop_images.split" in message
