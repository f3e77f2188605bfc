"""Captions of a person: the same sentence however it comes, and what is done to it said."""

import io

import pytest

from pipeline.data.captions import captions_of_arguments, captions_of_lines


def lines_of(data: bytes) -> list[tuple[str, str]]:
    return [tuple(caption) for caption in captions_of_lines(io.BytesIO(data), "c.txt")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", ["", "{end}"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lines_are_captions_however_they_end(
    end: str, last: str, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = (f"a red bird{end}ein Vögelchen \U0001f426" + last.format(end=end)).encode(encoding)
    assert lines_of(data) == [("a red bird", "c.txt line 1"), ("ein Vögelchen \U0001f426", "c.txt line 2")]
    assert not caplog.messages


def test_empty_lines_are_passed_over_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    assert lines_of(b"\n a bird \n\n \t\nanother\n") == [("a bird", "c.txt line 2"), ("another", "c.txt line 5")]
    assert caplog.messages == ["c.txt: empty lines passed over: 3", "control characters replaced by spaces: 1"]


@pytest.mark.parametrize("data", [b"", b"\n", b" \n\n"])
def test_a_file_without_a_sentence_has_no_captions(data: bytes) -> None:
    assert lines_of(data) == []


def test_a_line_ends_at_a_line_end_only() -> None:
    assert [text for text, _ in lines_of("a\u2028b\x0cc\x85d\n".encode())] == ["a\u2028b c d"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a bird\n\na caf\xe9 bird\n", "c.txt line 3 is not UTF-8: save the file as UTF-8"),
        ("a bird".encode("utf-16"), "c.txt line 1 is not UTF-8"),
        ("a bird".encode("utf-16-le"), "c.txt holds zero bytes"),
    ],
)
def test_a_file_that_is_not_utf8_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lines_of(data)


def test_an_argument_and_a_line_are_the_same_caption(caplog: pytest.LogCaptureFixture) -> None:
    (argument,) = captions_of_arguments([" a\tred bird\x1b\n"])
    assert caplog.messages == ["control characters replaced by spaces: 3"]
    assert argument.text == lines_of(b" a\tred bird\x1b\n")[0][0] == "a red bird"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a bird", ""], "caption 2 is empty: write a description or leave it out"),
        ([" \n"], "caption 1 is empty"),
        (["caf\udce9"], r"caption 1 \('caf\\udce9'\) is not UTF-8"),
    ],
)
def test_an_argument_that_is_no_sentence_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        captions_of_arguments(arguments)
