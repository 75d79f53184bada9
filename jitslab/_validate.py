"""The gate of the arguments: each becomes an exact type here, or is refused by name."""

from __future__ import annotations

import operator
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from .core import layout
from .errors import ArrayError, CapacityError, HandleTypeError, SlabError, shown

Handles = npt.NDArray[np.int64]


def as_integer(value: Any, subject: str = "a handle is", error: type[SlabError] = HandleTypeError) -> int:
    """Return an integer as an int; `subject` and `error` are those of the message if it is none."""
    try:
        return operator.index(value)
    except TypeError:
        raise error(f"{subject} an integer, got {type(value).__name__}") from None


def as_count(n: Any, what: str, least: int = 0) -> int:
    """Return a count as an int within its bounds."""
    count = as_integer(n, f"{what} must be", CapacityError)
    if not least <= count <= layout.MAX_CAPACITY:
        raise CapacityError(f"{what} must be {least} .. 2**32, got {shown(count)}")
    return count


def as_handles(handles: npt.ArrayLike) -> Handles:
    """Return handles as a contiguous int64 array, with -1 for those that it cannot hold."""
    array = np.asarray(handles)
    if array.ndim == 1 and (array.dtype.kind == "O" or (array.dtype.kind == "f" and isinstance(handles, (list, tuple)))):
        with suppress(TypeError):  # of signed and unsigned integers together NumPy makes floats
            numbers = [operator.index(handle) for handle in np.asarray(handles, object)]
            array = np.array([number if 0 <= number < 1 << 63 else -1 for number in numbers], np.int64)
    if array.size and array.dtype.kind not in "iu":
        raise HandleTypeError(f"handles are integers, got an array of {array.dtype}")
    if array.ndim != 1:
        raise ArrayError(f"handles must be a 1-d array, got shape {array.shape}")
    return np.ascontiguousarray(array, np.int64)


def check_out(out: Any, dtype: np.dtype[Any], n: int) -> None:
    """Raise unless `out` can take n values of `dtype`."""
    is_array = issubclass(type(out), np.ndarray)  # a weak proxy says it is one, and does not keep it
    if not is_array or out.dtype != dtype or out.shape != (n,):
        got = f"{out.dtype} of shape {out.shape}" if is_array else type(out).__name__
        raise ArrayError(f"out must be an array of {dtype} and shape ({n},), got {got}")
    if not out.flags.writeable or not out.flags.c_contiguous or not out.dtype.isnative:
        raise ArrayError("out must be writable, contiguous and of native byte order")
