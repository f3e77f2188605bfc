"""The opcodes of a pickle, looked at before the first one runs.

Only those pass that lists of texts, whole numbers and NumPy arrays need. Left out are, beside all that makes instances
of classes: dicts and sets (hashing a deeply nested key overflows the C stack), the extension registry (a class without
naming it), integers of any length. A place in the memo may not be so high that making room for it takes all memory.
"""

import mmap
import pickletools

MAX_OPCODES = 8_000_000  # the arrays of COCO's 82,783 pictures take some 3 million

_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_NEEDED = frozenset(
    name
    for names in (
        ("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
        ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        ("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        ("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "MEMOIZE"),
        ("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
    )
    for name in names
)
# Byte of a needed opcode -> length of its argument: a number of bytes, or one of pickletools' negative codes.
_ARGUMENTS = {
    ord(opcode.code): opcode.arg.n if opcode.arg else 0 for opcode in pickletools.opcodes if opcode.name in _NEEDED
}
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


class Refused(ValueError):
    """Why a pickle is refused, in words that do not name its file."""


def check_opcodes(content: bytes | mmap.mmap) -> None:
    """Walk over all opcodes of a pickle without running one.

    Raises:
        Refused: one is not needed for data, is torn, asks for too much, or the pickle is followed by other bytes.
    """
    name, end, num_opcodes = "", 0, 0
    while name != "STOP":
        place = end
        if place >= len(content):
            raise Refused("it is torn: it ends before its last opcode")
        length, name = _ARGUMENTS.get(content[place]), _NAMES.get(content[place], "of no pickle")
        if length is None:
            raise Refused(
                f"its opcode {content[place]:#04x} ({name}) at byte {place} is none that data needs; it is refused"
            )
        num_opcodes += 1
        if num_opcodes > MAX_OPCODES:
            raise Refused(f"it has more than {MAX_OPCODES} opcodes; it is refused")
        end = _argument_end(content, place + 1, name, length)
        if end > len(content) or (name == "FRAME" and end + _little_endian(content, place + 1, 8) > len(content)):
            raise Refused(f"it is torn: {name} at byte {place} needs more bytes than there are")
        # A pickler counts the places of its memo up; a high one only serves to exhaust the memory.
        if name in ("PUT", "BINPUT", "LONG_BINPUT") and _memo_place(content[place + 1 : end], name) > num_opcodes:
            raise Refused(f"{name} at byte {place} asks for a place of the memo that is not in turn; it is refused")
    if end != len(content):
        raise Refused(f"{len(content) - end} bytes follow its end; it is refused")


def _argument_end(content: bytes | mmap.mmap, start: int, name: str, length: int) -> int:
    """Return where the argument that begins at `start` ends; beyond the content if it is torn."""
    if length == pickletools.UP_TO_NEWLINE:
        for _ in range(2 if name == "GLOBAL" else 1):  # module and name, a line each
            start = content.find(b"\n", start) + 1 or len(content) + 1
        return start
    if length in _LENGTH_BYTES:
        return start + _LENGTH_BYTES[length] + _little_endian(content, start, _LENGTH_BYTES[length])
    return start + length


def _memo_place(argument: bytes, name: str) -> int:
    if name != "PUT":
        return int.from_bytes(argument, "little")
    if not argument.strip().isdigit():
        raise Refused(f"its PUT has {argument!a:.40} for a place of the memo; it is refused")
    return int(argument)


def _little_endian(content: bytes | mmap.mmap, start: int, num_bytes: int) -> int:
    return int.from_bytes(content[start : start + num_bytes], "little")
