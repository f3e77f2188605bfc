"""The pickles that the published code released (lists of names, class ids, NumPy arrays), read without obeying them.

A pickle is a program: unpickled as Python does it, it may call whatever it names. Here it meets three walls:

1. every opcode is looked at before the first one runs (pipeline.data.pickle_opcodes);
2. a global that the pickle names is looked up in a short list and stands for a function of this module that checks its
   arguments. No class and no function of Python or NumPy can be reached: NumPy's own ones trust what they are given;
3. what comes out is checked type by type before anything walks over it, and may not hold more bytes than its file.

This is the only module that imports pickle. Python 2 and 3, protocols 0 to 5, NumPy 1 and 2 are read.
"""

import math
import mmap
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.data.pickle_opcodes import Refused, check_opcodes

MAX_LIST_BYTES = 64 * 2**20  # COCO's 82,783 names have some 5 MB
MAX_ARRAYS_BYTES = 32 * 2**30  # COCO's 82,783 x 5 skip-thought vectors of 4,800 numbers have 8 GB
_NDARRAY = object()  # what numpy.ndarray stands for: a word that _empty_array expects


def read_names(path: Path) -> list[str]:
    """Read a pickled list of distinct texts; Python 2's byte strings are read as UTF-8.

    Raises:
        ValueError: the file is missing, torn, asks for anything else than data, or is no such list.
    """
    values = _load(path, MAX_LIST_BYTES)
    if not isinstance(values, list) or not all(isinstance(value, str | bytes) for value in values):
        raise ValueError(f"{path} is no list of texts; bring the list of file names as it was released")
    names: list[str] = []
    seen: set[str | bytes] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{path} lists {value!a:.200} twice; bring a list of distinct names")
        seen.add(value)
        try:
            names.append(value.decode() if isinstance(value, bytes) else value)
        except UnicodeDecodeError:
            raise ValueError(f"{path}: the name {value!a:.200} is not UTF-8; rename the file") from None
    return names


def read_whole_numbers(path: Path) -> list[int]:
    """Read a pickled list (or array of one axis) of whole numbers from 0.

    Raises:
        ValueError: see read_names.
    """
    values = _load(path, MAX_LIST_BYTES)
    if isinstance(values, _Array) and values.numbers is not None and values.numbers.ndim == 1:
        values = values.numbers.tolist()
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 2**63 for value in values):
        raise ValueError(f"{path} is no list of whole numbers from 0; bring the list of class ids as it was released")
    return values


def read_matrices(path: Path) -> list[npt.NDArray[np.floating[Any]]]:
    """Read a pickled list of N arrays (K, dim), or one array (N, K, dim), of floating-point numbers.

    Raises:
        ValueError: see read_names.
    """
    values = _load(path, MAX_ARRAYS_BYTES)
    found = values if isinstance(values, list) else [values]
    arrays = [value.numbers for value in found if isinstance(value, _Array) and value.numbers is not None]
    num_axes = 2 if isinstance(values, list) else 3
    if len(arrays) != len(found) or not all(array.ndim == num_axes and array.dtype.kind == "f" for array in arrays):
        raise ValueError(
            f"{path} is neither a list of arrays (captions, numbers) nor one array (pictures, captions, numbers) of "
            "floating-point numbers; bring the embeddings as they were released"
        )
    # One array named a million times costs the file a few bytes each, and whoever copies it the whole memory.
    if sum(array.nbytes for array in arrays) > path.stat().st_size:
        raise ValueError(f"{path} names more numbers than it holds; bring the embeddings as they were released")
    return arrays if num_axes == 2 else list(arrays[0])


def _load(path: Path, max_bytes: int) -> Any:
    """Unpickle a file into lists, tuples, texts, bytes, whole numbers and _Array."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: bring it as it was released")
    num_bytes = path.stat().st_size
    if num_bytes > max_bytes:
        raise ValueError(f"{path} has {num_bytes} bytes, more than the {max_bytes} that such a file may have")
    if not num_bytes:
        raise ValueError(f"{path} is empty; bring it as it was released")
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                check_opcodes(content)
            return _DataUnpickler(file, num_bytes).load()
        except Refused as error:
            raise ValueError(f"{path}: {error}; bring the file as it was released") from error
        except Exception as error:  # bytes that mean harm may raise anything here, a MemoryError too
            raise ValueError(
                f"{path} is torn or no pickle ({type(error).__name__}: {str(error)!a:.200}); bring the file as it was "
                "released"
            ) from error


class _DataUnpickler(pickle.Unpickler):
    """An unpickler that knows the globals of NumPy's arrays alone, and hands out its own functions for them."""

    def __init__(self, file: IO[bytes], num_bytes: int):
        # Python 2 strings as bytes: an array's content needs no way through latin1 text and back, which costs a copy.
        super().__init__(file, encoding="bytes")
        self._encodable = num_bytes

    def find_class(self, module_name: str, global_name: str, /) -> object:
        match module_name.replace("numpy._core.", "numpy.core."), global_name:  # NumPy 2 renamed the package
            case "numpy.core.multiarray", "_reconstruct":
                return _empty_array
            case "numpy.core.multiarray", "scalar":
                return _whole_number
            case "numpy.core.numeric", "_frombuffer":
                return _array_from_buffer
            case "numpy", "ndarray":
                return _NDARRAY
            case "numpy", "dtype":
                return _dtype_named
            case "_codecs", "encode":
                return self._encode
            case _:
                raise Refused(f"it names {f'{module_name}.{global_name}'!a:.200}: it would run code; it is refused")

    def _encode(self, *arguments: object) -> bytes:
        """Python 3 writes bytes under protocols 0 to 2 as latin1 text, each once."""
        match arguments:
            case (str() as text, b"latin1" | "latin1") if len(text) <= self._encodable:
                self._encodable -= len(text)
                return text.encode("latin1")
            case _:
                raise Refused("it encodes a text otherwise than bytes are written; it is refused")


class _Dtype:
    """The type of an array's numbers: floating-point, signed or unsigned, in 1 to 8 bytes."""

    def __init__(self, code: str):
        self._code, self._order = code, "="

    def __setstate__(self, state: object) -> None:
        """Take (version, byte order, None: no sub-array, None: no names, None: no fields, ...)."""
        match state:
            case (int(), b"<" | b">" | b"|" | "<" | ">" | "|" as order, None, None, None, *_):
                self._order = order if isinstance(order, str) else order.decode()
            case _:
                raise Refused("it has an array of another type than plain numbers; it is refused")

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self._order + self._code)


class _Array:
    """An array of the pickle; without numbers until it is given its state."""

    def __init__(self, numbers: npt.NDArray[Any] | None = None):
        self.numbers = numbers

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), shape, dtype, is_fortran, content):
                self.numbers = _numbers(content, dtype, shape, "F" if is_fortran else "C")
            case _:
                raise Refused("it has an array of a form that NumPy does not write; it is refused")


def _numbers(content: object, dtype: object, shape: object, order: Literal["C", "F"]) -> npt.NDArray[Any]:
    """View the bytes of an array; NumPy sees only a type, sizes and a length that fit each other."""
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
        raise Refused("it has an array without bytes, type or shape; it is refused")
    sizes: Sequence[Any] = shape
    if len(sizes) > 3 or not all(type(size) is int and 0 < size < 2**31 for size in sizes):
        raise Refused("it has an array with no numbers, or of more than three axes; it is refused")
    if math.prod(sizes) * dtype.numpy().itemsize != len(content):
        raise Refused("it has an array whose shape does not fit its bytes; it is refused")
    return np.frombuffer(content, dtype.numpy()).reshape(sizes, order=order)


def _dtype_named(*arguments: object) -> _Dtype:
    """Stand for numpy.dtype(code, align, copy)."""
    match arguments:
        case (str() | bytes() as code, *_):
            text = code if isinstance(code, str) else code.decode("latin1")
            if re.fullmatch(r"f[248]|[iu][1248]", text, re.ASCII):
                return _Dtype(text)
            raise Refused(f"it has an array of type {text!a:.20}, not of plain numbers; it is refused")
        case _:
            raise Refused("it has an array without a type; it is refused")


def _empty_array(*arguments: object) -> _Array:
    """Stand for numpy.core.multiarray._reconstruct(ndarray, (0,), b"b"); the state follows."""
    if not arguments or arguments[0] is not _NDARRAY:
        raise Refused("it makes an array that is no numpy.ndarray; it is refused")
    return _Array()


def _array_from_buffer(*arguments: object) -> _Array:
    """Stand for numpy.core.numeric._frombuffer(content, dtype, shape, order), as protocol 5 has it."""
    match arguments:
        case (content, dtype, shape, "C" | "F" as order):
            return _Array(_numbers(content, dtype, shape, "F" if order == "F" else "C"))
        case _:
            raise Refused("it has an array of a form that NumPy does not write; it is refused")


def _whole_number(*arguments: object) -> int:
    """Stand for numpy.core.multiarray.scalar(dtype, content)."""
    match arguments:
        case (dtype, content):
            number = _numbers(content, dtype, (), "C")
        case _:
            raise Refused("it has a number of a form that NumPy does not write; it is refused")
    if number.dtype.kind not in "iu":
        raise Refused("it has a number that is not whole; it is refused")
    return int(number)
