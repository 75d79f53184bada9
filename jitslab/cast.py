"""
The gate: what users pass becomes exact types here, or is refused by name.

Above `layout`, below `cache`.
"""

from __future__ import annotations

import operator
import reprlib
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from . import layout
from .errors import ArrayError, CapacityError, HandleTypeError

Handles = npt.NDArray[np.int64]
MOST_BITS = 2048  # of integers that are printed: 640 digits can be, whatever limit Python was given
MOST_SHOWN = 80  # characters of a dtype


class _Short(reprlib.Repr):
    """
    Python's, but for two kinds of values.

    Of integers of thousands of digits each version says something else, or fails.  Of arrays and records with text or fields the
    dtype says why they are refused, and their text may be none: it was never written.
    """

    def repr_int(self, x: int, level: int) -> str:
        """Show an integer, or how long it is."""
        return f"int of {x.bit_length()} bits" if x.bit_length() > MOST_BITS else super().repr_int(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        """Show an object, or of which dtype it is."""
        if issubclass(type(x), (np.ndarray, np.void)) and (x.dtype.names is not None or x.dtype.kind in "SU"):
            text = str(x.dtype)
            return f"{type(x).__name__} of {text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + '...'}"
        return super().repr_instance(x, level)


_short = _Short()


def shown(value: Any) -> str:
    """Return a repr, cut where it is long."""
    try:
        return _short.repr(value)
    except Exception:  # it knows types by their names: a user's own `array` or `deque` is none of Python's
        return _short.repr_instance(value, 0)


def shown_with_type(value: Any) -> str:
    """Return the same with the name of its type before it."""
    name, text = type(value).__name__, shown(value)
    return text if text.startswith(f"{name} of ") else f"{name} {text}"


def as_integer(handle: Any) -> int:
    """Return a handle as an int."""
    try:
        return operator.index(handle)
    except TypeError:
        raise HandleTypeError(f"a handle is an integer, got {type(handle).__name__}") from None


def as_count(n: Any, what: str, least: int = 0) -> int:
    """Return a count as an int within its bounds."""
    try:
        count = operator.index(n)
    except TypeError:
        raise CapacityError(f"{what} must be an integer, got {type(n).__name__}") from None
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
