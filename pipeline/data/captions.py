"""Captions that a person gives, as arguments or one a line in a file: cleaned, and what was done to them counted."""

import logging
import re
import unicodedata
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

logger = logging.getLogger(__name__)


class Caption(NamedTuple):
    """A sentence, never empty, and where it was found, for messages."""

    text: str
    place: str


def captions_of_arguments(arguments: Sequence[str]) -> list[Caption]:
    """Return the captions of a command line.

    Raises:
        ValueError: one is empty, or holds bytes that are not UTF-8.
    """
    captions = [Caption(_cleaned(text), f"caption {number}") for number, text in enumerate(arguments, start=1)]
    for text, place in captions:
        if not text:
            raise ValueError(f"{place} is empty: write a description or leave it out")
        if any("\ud800" <= char <= "\udfff" for char in text):  # how Python holds bytes of an argument that are no text
            raise ValueError(f"{place} ({text[:40]!r}) is not UTF-8: write it anew")
    _note_controls(arguments)
    return captions


def captions_of_lines(file: BinaryIO, name: str) -> list[Caption]:
    """Read the captions of a text file, one a line; empty lines are passed over, counted in the log.

    Args:
        file: UTF-8, with or without a byte order mark, the lines ended as on any system.
        name: of the file, for messages.

    Raises:
        ValueError: the file is not UTF-8 text.
    """
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{name} line {number} is not UTF-8: save the file as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{name} holds zero bytes, as no text in UTF-8 does: save it as UTF-8")
    lines = re.split("\r\n|\r|\n", text)
    if not lines[-1]:  # what follows the end of the last line
        lines.pop()
    captions = [Caption(_cleaned(line), f"{name} line {number}") for number, line in enumerate(lines, start=1)]
    kept = [caption for caption in captions if caption.text]
    if len(kept) < len(captions):
        logger.warning("%s: empty lines passed over: %d", name, len(captions) - len(kept))
    _note_controls(lines)
    return kept


def _cleaned(text: str) -> str:
    return "".join(" " if _is_control(char) else char for char in text).strip()


def _note_controls(texts: Sequence[str]) -> None:
    num_controls = sum(_is_control(char) for text in texts for char in text)
    if num_controls:
        logger.warning("control characters replaced by spaces: %d", num_controls)


def _is_control(char: str) -> bool:
    return unicodedata.category(char) == "Cc"
