"""Data folders of the published code in the bytes that Python 2 wrote, by a writer of the tests' own.

The streams were compared, byte for byte, with those of Python 2.7.18's cPickle and NumPy 1.16.6, protocols 0 and 2.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Protocol = Literal[0, 2]


def text(value: bytes, protocol: Protocol) -> bytes:
    if protocol == 0:
        return b"S" + repr(value)[1:].encode() + b"\n"
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + len(value).to_bytes(4, "little") + value


def number(value: int, protocol: Protocol) -> bytes:
    if protocol == 0:
        return b"I%d\n" % value
    if 0 <= value < 256:
        return b"K" + bytes([value])
    return b"M" + value.to_bytes(2, "little") if 0 <= value < 65536 else b"J" + value.to_bytes(4, "little", signed=True)


def tuple_of(items: Sequence[bytes], protocol: Protocol) -> bytes:
    if protocol == 0 or len(items) > 3:
        return b"(" + b"".join(items) + b"t"
    return b"".join(items) + {1: b"\x85", 2: b"\x86", 3: b"\x87"}[len(items)]


def list_of(items: Sequence[bytes], protocol: Protocol) -> bytes:
    if protocol == 0:
        return b"(lp1\n" + b"".join(item + b"a" for item in items)
    return b"]q\x01(" + b"".join(items) + b"e"


def put(place: int, protocol: Protocol) -> bytes:
    if protocol == 0:
        return b"p%d\n" % place
    return b"q" + bytes([place]) if place < 256 else b"r" + place.to_bytes(4, "little")


def get(place: int, protocol: Protocol) -> bytes:
    return b"g%d\n" % place if protocol == 0 else b"h" + bytes([place])


def whole(body: bytes, protocol: Protocol) -> bytes:
    return (b"\x80\x02" if protocol == 2 else b"") + body + b"."


class ArrayWriter:
    """Writes float32 arrays one after the other: the first names NumPy's globals, the others refer to them."""

    def __init__(self, protocol: Protocol, first_place: int):
        self.protocol, self.first_place, self.num_arrays = protocol, first_place, 0

    def write(self, array: NDArray[np.float32]) -> bytes:
        proto, place = self.protocol, self.first_place
        is_first = self.num_arrays == 0
        self.num_arrays += 1
        if is_first:
            reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n" + put(place, proto)
            ndarray = b"cnumpy\nndarray\n" + put(place + 1, proto)
            dtype = b"cnumpy\ndtype\n" + put(place + 3, proto)
            dtype += tuple_of([text(b"f4", proto), number(0, proto), number(1, proto)], proto)
            dtype += b"R" + put(place + 4, proto)
            state = [
                number(3, proto),
                text(b"<", proto),
                b"NNN",
                number(-1, proto),
                number(-1, proto),
                number(0, proto),
            ]
            dtype += tuple_of(state, proto) + b"b"
        else:
            reconstruct, ndarray, dtype = (get(place + offset, proto) for offset in (0, 1, 4))
        made = reconstruct + tuple_of([ndarray, tuple_of([number(0, proto)], proto), text(b"b", proto)], proto) + b"R"
        made += put(place + 2 if is_first else place + 3 + self.num_arrays, proto)
        shape = tuple_of([number(size, proto) for size in array.shape], proto)
        content = text(array.astype("<f4").tobytes(), proto)
        is_fortran = b"I00\n" if proto == 0 else b"\x89"
        return made + tuple_of([number(1, proto), shape, dtype, is_fortran, content], proto) + b"b"


def pickled_arrays(arrays: Sequence[NDArray[np.float32]], protocol: Protocol) -> bytes:
    writer = ArrayWriter(protocol, first_place=2)
    return whole(list_of([writer.write(array) for array in arrays], protocol), protocol)


def pickled_array(array: NDArray[np.float32], protocol: Protocol) -> bytes:
    return whole(ArrayWriter(protocol, first_place=1).write(array), protocol)


def pickled_names(names: Sequence[str], protocol: Protocol) -> bytes:
    texts = [text(name.encode(), protocol) + put(place, protocol) for place, name in enumerate(names, start=2)]
    return whole(list_of(texts, protocol), protocol)


def pickled_numbers(numbers: Sequence[int], protocol: Protocol) -> bytes:
    return whole(list_of([number(value, protocol) for value in numbers], protocol), protocol)


class ReleasedFolder:
    """A released data folder of 3 + 2 pictures with 4 captions each, in 6 numbers."""

    def __init__(self, root: Path, protocol: Protocol = 2):
        self.root = root
        rng = np.random.default_rng(0)
        self.keys = {"train": ["002.B/b_1", "002.B/b_2", "003.C/c_1"], "test": ["001.A/a_1", "001.A/a_2"]}
        self.class_ids = {"train": [2, 2, 3], "test": [1, 1]}
        self.vectors = {
            split: rng.standard_normal((len(keys), 4, 6)).astype(np.float32) for split, keys in self.keys.items()
        }
        for split, keys in self.keys.items():
            self.write(split, "filenames", pickled_names(keys, protocol))
            self.write(split, "class_info", pickled_numbers(self.class_ids[split], protocol))
            self.write(split, "char-CNN-RNN-embeddings", pickled_arrays(list(self.vectors[split]), protocol))

    def path(self, split: str, name: str) -> Path:
        return self.root / split / f"{name}.pickle"

    def write(self, split: str, name: str, content: bytes) -> Path:
        path = self.path(split, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def dump(self, split: str, name: str, value: object, protocol: int = 2) -> Path:
        """Write what Python 3 makes of a value."""
        return self.write(split, name, pickle.dumps(value, protocol))
