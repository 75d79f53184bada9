"""
The gate of the fields: a value becomes exactly what a field holds, or is refused; never wrapped, cut or rounded to infinity.

Above `errors`, below `guard`.  What is refused is said in the words of the field: its name, what it takes, what it got.  Kinds
are strict, as a type checker is: no float goes into an integer, whole or not, no number into a bool, no text into a number.  A
bool is an integer, as in Python; integers go into floats, and are rounded as `float` does.
"""

from __future__ import annotations

import datetime
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from .cast import shown
from .errors import ArrayError, FieldRangeError, FieldTypeError

TAKES = {"b": "b", "i": "biu", "u": "biu", "f": "biuf", "c": "biufc", "S": "S", "U": "U", "M": "M", "m": "m", "V": "SV"}
SECOND = 10**18
UNITS = {"W": 604800 * SECOND, "D": 86400 * SECOND, "h": 3600 * SECOND, "m": 60 * SECOND, "s": SECOND}
UNITS |= {unit: 1000**power for power, unit in enumerate(("as", "fs", "ps", "ns", "us", "ms"))}  # in attoseconds
A_KIND = {"b": "a bool", "f": "a float", "c": "a complex number"}


def description(dtype: np.dtype[Any]) -> str:
    """Say what a field takes."""
    kind, size = dtype.kind, dtype.itemsize
    if dtype.names is not None:
        return f"a record of {', '.join(dtype.names)}"
    if kind in "iu":
        limits = np.iinfo(dtype)
        return f"an integer {limits.min} .. {limits.max}"
    if kind in "fc":
        return f"{A_KIND[kind]} of {8 * size} bits"
    if kind == "S":
        return f"at most {size} bytes"
    if kind == "U":
        return f"a str of at most {size // 4}"
    if kind in "mM":
        return f"a {dtype.name}"
    return A_KIND.get(kind, f"{size} raw bytes")


def wrong_kind(value: Any, dtype: np.dtype[Any], name: str) -> FieldTypeError:
    """Say that the value is of another kind than the field."""
    return FieldTypeError(f"field {name!r} takes {description(dtype)}, got {type(value).__name__} {shown(value)}")


def out_of_range(value: Any, dtype: np.dtype[Any], name: str) -> FieldRangeError:
    """Say that the field cannot hold the value."""
    return FieldRangeError(f"field {name!r} takes {description(dtype)}, got {shown(value)}")


def pack(value: Any, dtype: np.dtype[Any], name: str, shape: tuple[int, ...] = ()) -> Any:
    """Return a value as a contiguous array of its own, byte for byte what a field of that dtype holds; arguments as of `fit`."""
    base, own = dtype.subdtype or (dtype, ())
    fitted = fit(value, dtype, name, shape)
    if base.names is None and fitted.shape == shape + own and fitted.flags.c_contiguous:
        return fitted  # a copy already
    out = np.zeros(shape + own, base)
    out[...] = fitted
    return out


def fit(value: Any, dtype: np.dtype[Any], name: str, shape: tuple[int, ...] = ()) -> Any:
    """
    Return a value as exactly what a field holds.

    Parameters
    ----------
    value
        What is assigned.
    dtype : numpy.dtype
        Of the field: a scalar, a sub-array or a nested record.
    name : str
        Of the field, for messages.
    shape : tuple of int
        Of the array that is wanted, before the field's own shape; () for one record.

    Returns
    -------
    ndarray or numpy.void
        Of the field's base dtype; an array that broadcasts to what is wanted.

    Raises
    ------
    FieldTypeError, FieldRangeError, ArrayError
        If it is of another kind, too large, or of another shape.
    """
    if dtype.subdtype is not None:
        base, own = dtype.subdtype
        return fit(value, base, name, shape + own)
    if isinstance(value, np.ndarray) and hasattr(value, "mask") and is_masked(value):  # `numpy.ma` is imported with the first one
        raise FieldTypeError(f"field {name!r} takes {description(dtype)}, got an array with masked elements; fill them")
    if dtype.names is not None:
        return fit_record(value, dtype, name, shape)
    array = as_array(value, dtype, name)
    fit_shape(array.shape, name, shape)
    if array.dtype.str == dtype.str or array.size == 0:  # `==` holds between dates of any unit and of none
        return array.astype(dtype)
    if array.dtype.kind == "O":
        return fit_objects(array, dtype, name)
    if array.dtype.kind not in TAKES[dtype.kind]:
        raise wrong_kind(value, dtype, name)
    return fit_array(array, value, dtype, name)


def as_array(value: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Return a value as an array of what it is, not of what the field wants."""
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        raise FieldTypeError(f"field {name!r} takes {description(dtype)} without a time zone, got {value!r}")
    if isinstance(value, datetime.date):
        return np.asarray(np.datetime64(value))
    if isinstance(value, datetime.timedelta):
        return time_span(value, dtype, name)
    if dtype.kind == "V" and isinstance(value, bytes):
        return np.array(value, f"V{len(value)}")
    if dtype.kind == "U" and isinstance(value, str):  # NumPy drops NULs at the end: their count, too, must fit
        if len(value) * 4 > dtype.itemsize:
            raise out_of_range(value, dtype, name)
        return np.array(value, dtype)
    if dtype.kind == "S" and isinstance(value, bytes):
        if len(value) > dtype.itemsize:
            raise out_of_range(value, dtype, name)
        return np.array(value, dtype)
    try:
        array = np.asarray(value)
        if dtype.kind in "iu" and array.dtype.kind == "f" and isinstance(value, (list, tuple)):
            return np.asarray(value, object)  # integers of which some need u8 and some have a sign, to NumPy, are floats
        return array
    except (ValueError, TypeError, OverflowError) as error:  # ragged lists, objects that refuse
        raise FieldTypeError(f"field {name!r} takes {description(dtype)}: {error}") from error


def time_span(value: datetime.timedelta, dtype: np.dtype[Any], name: str) -> Any:
    """Return a duration as a field holds it, counted in Python's integers: NumPy wraps beyond 2**63 microseconds."""
    if dtype.kind != "m":
        raise wrong_kind(value, dtype, name)
    unit, count = np.datetime_data(dtype)
    if unit in UNITS:
        ticks, rest = divmod(value // datetime.timedelta(microseconds=1) * UNITS["us"], UNITS[unit] * count)
        if rest == 0 and abs(ticks) < 1 << 63:
            return np.array(ticks, dtype)
    raise out_of_range(value, dtype, name)


def is_masked(value: Any) -> bool:
    """Whether some element of an array, or part of one, is masked."""
    return isinstance(value, np.ma.MaskedArray) and bool(np.ma.flatten_mask(np.ma.getmask(value)).any())


def fit_shape(found: tuple[int, ...], name: str, shape: tuple[int, ...]) -> None:
    """Raise unless an array of the shape that was found broadcasts to a shape."""
    try:
        fits = np.broadcast_shapes(found, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ArrayError(f"field {name!r} takes an array of shape {shape}, got one of shape {found}")


def fit_objects(array: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Fit what NumPy knows no dtype of, one by one: integers beyond 64 bits, fractions, Python's dates."""
    out = np.zeros(array.shape, dtype)
    for i, value in np.ndenumerate(array):
        out[i] = fit_number(value, dtype, name)
    return out


def fit_number(value: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Return one Python number or date as a field holds it."""
    if isinstance(value, (int, np.integer, np.bool_)) and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not limits.min <= int(value) <= limits.max:
            raise out_of_range(value, dtype, name)
        return int(value)
    if isinstance(value, (datetime.date, datetime.timedelta)):
        return fit(value, dtype, name)
    if not isinstance(value, numbers.Real) or dtype.kind not in "fc":
        raise wrong_kind(value, dtype, name)
    try:
        return fit(float(value), dtype, name)
    except OverflowError:
        raise out_of_range(value, dtype, name) from None


def fit_record(value: Any, dtype: np.dtype[Any], name: str, shape: tuple[int, ...]) -> Any:
    """Fit a whole record, field by field: another record, a tuple, a mapping; for many, an array or a list of them."""
    names = dtype.names or ()
    value = getattr(value, "record", value) if not isinstance(value, (np.void, np.ndarray, Mapping)) else value
    if isinstance(value, (np.void, np.ndarray)) and value.dtype.names is not None:
        array = np.asarray(value)
        fit_shape(array.shape, name, shape)
        if array.dtype == dtype:
            return array
        if array.dtype.names != dtype.names:
            raise wrong_kind(value, dtype, name)
        parts, shape = {n: array[n] for n in names}, array.shape
    elif isinstance(value, list) and shape:
        shape = shape[-depth_of(value) :]  # as NumPy broadcasts: what is missing is missing in front
        out = np.zeros((len(value), *shape[1:]), dtype)
        fit_shape(out.shape, name, shape)
        for i, record in enumerate(value):
            out[i] = fit_record(record, dtype, name, shape[1:])
        return out
    elif isinstance(value, tuple) and len(value) == len(names):
        parts, shape = dict(zip(names, value, strict=True)), ()
    elif isinstance(value, Mapping) and set(value) == set(names):
        parts, shape = dict(value), ()
    else:
        raise wrong_kind(value, dtype, name)
    out = np.zeros(shape, dtype)
    for part, it in parts.items():
        out[part] = fit(it, dtype[part], f"{name}.{part}" if name else part, shape)
    return out


def depth_of(value: Any) -> int:
    """Return how many lists deep the first record lies."""
    return 1 + depth_of(value[0]) if isinstance(value, list) and value else int(isinstance(value, list))


def fit_array(array: Any, value: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Convert an array of the right kind; raises if an element would change its meaning."""
    kind = dtype.kind
    if kind in "iu" and array.dtype.kind != "b":
        limits = np.iinfo(dtype)
        least, most = int(array.min()), int(array.max())
        if least < limits.min or most > limits.max:
            raise out_of_range(value if array.ndim == 0 else least if least < limits.min else most, dtype, name)
    if (kind in "SU" and array.dtype.itemsize > dtype.itemsize) or (kind == "V" and array.dtype.itemsize != dtype.itemsize):
        raise out_of_range(value, dtype, name)
    if kind in "mM" and not np.can_cast(array.dtype, dtype, "same_kind"):  # years and months have no length, nor what has no unit
        raise out_of_range(value, dtype, name)
    with np.errstate(all="ignore"):
        try:
            out = array.astype(dtype)
            is_same = kind not in "mM" or (np.isnat(array) | (out.astype(array.dtype) == array)).all()
        except (ValueError, TypeError, OverflowError):  # dates: years where days are wanted, out of range
            is_same = False
    if kind in "fc":
        is_same = all(np.array_equal(np.isfinite(a), np.isfinite(b)) for a, b in ((out.real, array.real), (out.imag, array.imag)))
    if not is_same:
        raise out_of_range(value, dtype, name)
    return out
