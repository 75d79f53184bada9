"""
The gate of the fields: a value becomes the exact value of a field, or is refused; never wrapped, cut or rounded to infinity.

A message of refusal names the field, the values that the field takes, and the value that it got.  Kinds are strict, as to a type
checker: no float goes into an integer, no number into a bool, no text into a number.  A bool is an integer, as in Python.
Integers and fractions go into floats; numbers are rounded once, to the nearest.

NumPy is not asked if it would lose something.  It makes one kind of a list of several kinds; it takes the word of a sub-class of
Python's own types; it cuts a date of pandas to microseconds; and it drops NULs at the end of bytes and texts.
"""

from __future__ import annotations

import datetime
import numbers
from array import array as buffer
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import chain
from typing import Any

import numpy as np

from ._validate import is_own
from .errors import ArrayError, FieldError, FieldRangeError, FieldTextError, FieldTypeError, LayoutError, shown, shown_with_type

TAKES = {"b": "b", "i": "biu", "u": "biu", "f": "biuf", "c": "biufc", "S": "S", "U": "U", "M": "M", "m": "m", "V": "SV"}
SECOND = 10**18
UNITS = {"W": 604800 * SECOND, "D": 86400 * SECOND, "h": 3600 * SECOND, "m": 60 * SECOND, "s": SECOND}
UNITS |= {unit: 1000**power for power, unit in enumerate(("as", "fs", "ps", "ns", "us", "ms"))}  # in attoseconds
A_KIND = {"b": "a bool", "f": "a float", "c": "a complex number"}
DATES = datetime.date, datetime.timedelta
# A value of a sub-class as one of Python's own type, whatever the methods of the sub-class say.
PLAIN_VALUE: dict[type, Any] = {int: int.__pos__, float: float.__pos__, complex: complex.__pos__, str: str.__str__}
PLAIN_VALUE[bytes] = lambda value: bytes.__getitem__(value, slice(None))
NUMBERS = {int, bool, float}  # that NumPy makes doubles of, in one list
NO_LISTS = str, bytes, bytearray, memoryview, range, buffer  # sequences to Python, arrays or texts to NumPy
WIDEST = {"b": "?", "i": "i8", "f": "f8", "c": "c16"}  # of NumPy's own dtypes, what holds a Python number of that kind
EXACT = 1 << 53  # integers up to here are doubles
MOST_DIMENSIONS = 64  # of an array


def kind_of(dtype: np.dtype[Any]) -> str:
    """Return NumPy's letter of a dtype's kind; of a user's dtype that of the Python numbers it holds, "O" if they are none."""
    if is_own(dtype):
        return dtype.kind
    return {bool: "b", int: "i", float: "f", complex: "c"}.get(type(np.zeros((), dtype).item()), "O")


def description(dtype: np.dtype[Any]) -> str:
    """Return the values that a field takes, in words."""
    kind, size = dtype.kind, dtype.itemsize
    if dtype.names is not None:
        return f"a record of {', '.join(dtype.names)}"
    if not is_own(dtype):
        return f"a {dtype.name}"
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
    return FieldTypeError(f"field {name!r} takes {description(dtype)}, got {shown_with_type(value)}")


def out_of_range(value: Any, dtype: np.dtype[Any], name: str) -> FieldRangeError:
    """Say that the field cannot hold the value."""
    return FieldRangeError(f"field {name!r} takes {description(dtype)}, got {shown(value)}")


def pack(value: Any, dtype: np.dtype[Any], name: str, shape: tuple[int, ...] = ()) -> Any:
    """Return a value as a contiguous array of its own, byte for byte as in a field of that dtype; arguments as of `fit`."""
    base, own = dtype.subdtype or (dtype, ())
    fitted = fit(value, dtype, name, shape)
    if base.names is None and fitted.shape == shape + own and fitted.flags.c_contiguous:
        return fitted  # a copy already
    out = zeros(shape + own, base)
    out[...] = fitted
    return out


def make_template(init: Any, dtype: np.dtype[Any]) -> bytes | None:
    """Return the bytes of the record that a new record is a copy of; its fields take the values that fields of guards take."""
    if init is None:
        return None
    if isinstance(init, str):
        if init != "zero":
            raise LayoutError(f"init is None, 'zero' or a record, got {init!r}")
        return bytes(dtype.itemsize)
    is_record = isinstance(init, (np.ndarray, np.void))
    if is_record and init.shape != ():
        raise LayoutError(f"init must be one record of {dtype}, got {shown(init)}")
    try:
        data = pack(init, dtype, "")
    except (ArrayError, FieldError) as error:
        raise LayoutError(f"init is no record of {dtype}: {error}") from error
    if is_record and init.dtype != dtype:
        raise LayoutError(f"init must be one record of {dtype}, got {shown(init)}")
    return bytes(data.tobytes())


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Return an array of zeros, of texts of no width, too: NumPy would make them one wide."""
    return np.zeros(shape, dtype if dtype.itemsize else "V0")


def fit(value: Any, dtype: np.dtype[Any], name: str, shape: tuple[int, ...] | None = ()) -> Any:
    """
    Return the exact value of a field.

    Parameters
    ----------
    value
        The value that is assigned.
    dtype : numpy.dtype
        Of the field: a scalar, a sub-array or a nested record.
    name : str
        Of the field, for messages.
    shape : tuple of int, or None
        Of the wanted array, before the field's own shape; () for one record.  None: any shape.

    Returns
    -------
    ndarray or numpy.void
        Of the field's base dtype; an array that broadcasts to the wanted shape.

    Raises
    ------
    FieldTypeError, FieldRangeError, ArrayError
        If the value is of another kind, too large, or of another shape.
    """
    if dtype.subdtype is not None:
        base, own = dtype.subdtype
        return fit(value, base, name, None if shape is None else shape + own)
    if isinstance(value, np.ndarray) and hasattr(value, "mask") and is_masked(value):  # `numpy.ma` is imported with the first one
        raise FieldTypeError(f"field {name!r} takes {description(dtype)}, got an array with masked elements; fill them")
    if dtype.names is not None:
        return fit_record(value, dtype, name, shape or ())
    array = as_array(value, dtype, name)
    if shape is not None:
        fit_shape(array.shape, name, shape)
    if array.size == 0:
        return zeros(array.shape, dtype)
    if array.dtype.kind == "O":
        return fit_objects(array, value, dtype, name)
    if (
        array.dtype.str == dtype.str and array.dtype.type is dtype.type and array.dtype.names is None
    ):  # `==` passes over some units
        return array.astype(dtype) if dtype.itemsize else zeros(array.shape, dtype)
    if array.dtype.names is not None or kind_of(array.dtype) not in TAKES.get(kind_of(dtype), ""):
        raise wrong_kind(value, dtype, name)
    if dtype.itemsize == 0:
        if any(array.ravel().tolist()):
            raise out_of_range(value, dtype, name)
        return zeros(array.shape, dtype)
    return fit_array(array, value, dtype, name)


def as_array(value: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Return a value as an array of the value's own dtype, whatever the dtype of the field."""
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if isinstance(value, DATES):
        return as_date(value, dtype, name)
    if type(value) not in PLAIN_VALUE and type(value) is not bool:
        for base, own in PLAIN_VALUE.items():
            if isinstance(value, base):
                value = own(value)
    if isinstance(value, (str, bytes)):
        return as_text(value, dtype, name)
    if hasattr(value, "__len__") and isinstance(value, Sequence) and not isinstance(value, NO_LISTS):
        return of_list(value, dtype, name)
    return by_numpy(np.asarray, value, dtype, name)


def by_numpy(make: Any, value: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Return the array that NumPy makes of a value."""
    try:
        return make(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # ragged lists, objects that refuse
        raise FieldTypeError(f"field {name!r} takes {description(dtype)}: {error}") from error


def as_text(value: str | bytes, dtype: np.dtype[Any], name: str) -> Any:
    """Return a text, or bytes, as an array; raises if it is longer than the field, or ends with a NUL."""
    if dtype.kind == "V" and isinstance(value, bytes):
        return np.array(value, f"V{len(value)}")
    if dtype.kind != ("U" if isinstance(value, str) else "S"):
        return np.asarray(value)
    if len(value) * (4 if isinstance(value, str) else 1) > dtype.itemsize:
        raise out_of_range(value, dtype, name)
    if value[-1:] == ("\0" if isinstance(value, str) else b"\0"):
        raise FieldRangeError(f"field {name!r} takes {description(dtype)}, and keeps no NULs at the end, got {shown(value)}")
    return np.array(value, dtype)


def as_date(value: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Return one of Python's dates or durations, or of a sub-class, as an array of all that it says."""
    if isinstance(value, datetime.datetime):
        if value.tzinfo is not None:
            raise FieldTypeError(f"field {name!r} takes {description(dtype)} without a time zone, got {value!r}")
        if value.fold:
            raise FieldRangeError(f"field {name!r} takes {description(dtype)} without a fold, got {value!r}")
    exact = getattr(value, "to_datetime64", None) or getattr(value, "to_timedelta64", None)
    if exact is not None:  # of pandas, in units of its own
        array = np.asarray(exact())
        return np.array("NaT", dtype) if dtype.kind == "m" and np.isnat(array) else array
    if isinstance(value, datetime.timedelta):
        return time_span(value, dtype, name)
    beyond = getattr(value, "nanosecond", 0)
    if beyond == 0:
        return np.asarray(np.datetime64(value))
    ticks = int(np.datetime64(value, "us").astype(np.int64)) * 1000 + beyond
    if abs(ticks) >= 1 << 63:
        raise out_of_range(value, dtype, name)
    return np.array(ticks, "M8[ns]")


def time_span(value: datetime.timedelta, dtype: np.dtype[Any], name: str) -> Any:
    """Return a duration as a field holds it, counted in Python's integers: NumPy wraps beyond 2**63 microseconds."""
    if dtype.kind != "m":
        raise wrong_kind(value, dtype, name)
    unit, count = np.datetime_data(dtype)
    if unit in UNITS:
        whole = datetime.timedelta.__floordiv__(value, datetime.timedelta(microseconds=1))
        ticks, rest = divmod(whole * UNITS["us"] + getattr(value, "nanoseconds", 0) * UNITS["ns"], UNITS[unit] * count)
        if rest == 0 and abs(ticks) < 1 << 63:
            return np.array(ticks, dtype)
    raise out_of_range(value, dtype, name)


def of_list(value: Sequence[Any], dtype: np.dtype[Any], name: str) -> Any:
    """Return a list as an array: at once if NumPy keeps the kinds of all elements, else part by part."""
    flat, depth = list(value), 0
    while (kinds := set(map(type, flat))) and kinds <= {list, tuple} and depth < MOST_DIMENSIONS:
        flat, depth = [*chain.from_iterable(flat)], depth + 1
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind in (int, bool, float, complex, str, bytes) or is_exact(kind, flat) or (kind is None and kinds <= NUMBERS):
        array = by_numpy(np.asarray, value, dtype, name)
        if array.dtype.kind in "SU":  # NULs at an end are lost
            is_same = bool(array.tolist() == list(value))
        elif flat and array.dtype.kind == "f" and kind in (None, int):  # integers are among them, as doubles
            is_same = dtype.kind in "fc" and (dtype.str[1:] in ("f8", "c16") or not (np.abs(array) >= EXACT).any())
        else:
            is_same = True
        if is_same:
            return array
    try:
        parts = [fit(part, dtype, name, None) for part in value]
    except RecursionError:  # a list that contains itself
        raise wrong_kind(value, dtype, name) from None
    return by_numpy(np.stack, parts, dtype, name) if dtype.itemsize else np.zeros((len(parts), *parts[0].shape), dtype)


def is_exact(kind: Any, values: list[Any]) -> bool:
    """Whether NumPy's scalars of one class are of one dtype, which an array of them has."""
    if kind in (np.datetime64, np.timedelta64):
        return len({value.dtype for value in values}) == 1
    return kind is not None and issubclass(kind, (np.number, np.bool_))


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


def fit_objects(array: Any, value: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Fit objects that NumPy knows no dtype of, one by one: integers beyond 64 bits, fractions, Python's dates."""
    if array.ndim == 0 and array.item() is value:
        return fit_number(value, dtype, name)
    out = zeros(array.shape, dtype)
    for i, part in np.ndenumerate(array):
        out[i] = fit(part, dtype, name)
    return out


def fit_number(value: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Return a number that NumPy knows no dtype of as a field holds it."""
    kind = kind_of(dtype)
    if isinstance(value, int) and kind in "iu":
        raise out_of_range(value, dtype, name)
    if not isinstance(value, numbers.Real) or kind not in "fc":
        raise wrong_kind(value, dtype, name)
    try:
        if isinstance(value, numbers.Rational) and is_own(dtype):
            number = nearest(Fraction(int(value.numerator), int(value.denominator)), np.zeros((), dtype).real.dtype)
        else:
            number = float(value)
    except OverflowError:
        raise out_of_range(value, dtype, name) from None
    return fit(number, dtype, name)


def nearest(value: Fraction, dtype: np.dtype[Any]) -> Any:
    """Return the float of that dtype which is nearest to a fraction, of two the even one; raises `OverflowError` if none is."""
    limits = np.finfo(dtype)
    power = abs(value.numerator).bit_length() - value.denominator.bit_length()
    power -= abs(value) < Fraction(2) ** power  # of the first bit
    power = max(power, int(limits.minexp)) - int(limits.nmant)  # of the last one
    with np.errstate(over="ignore"):
        number = np.ldexp(dtype.type(round(value / Fraction(2) ** power)), power)
    if np.isinf(number):
        raise OverflowError
    return number


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
        shape = shape[-depth_of(value) :]  # as NumPy broadcasts: missing dimensions are missing in front
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
        fitted = fit(it, dtype[part], f"{name}.{part}" if name else part, shape)
        if dtype[part].itemsize:  # of texts of no width NumPy copies nothing, and refuses
            out[part] = fitted
    return out


def depth_of(value: Any) -> int:
    """Return how many lists deep the first record lies."""
    return 1 + depth_of(value[0]) if isinstance(value, list) and value else int(isinstance(value, list))


def fit_array(array: Any, value: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Convert an array of the right kind; raises if an element would change its meaning."""
    kind = dtype.kind
    if not is_own(array.dtype):
        array = from_user_dtype(array, value, dtype, name)
    if not is_own(dtype):
        return to_user_dtype(array, value, dtype, name)
    if kind in "iu" and array.dtype.kind != "b":
        limits = np.iinfo(dtype)
        least, most = int(array.min()), int(array.max())
        if least < limits.min or most > limits.max:
            raise out_of_range(value if array.ndim == 0 else least if least < limits.min else most, dtype, name)
    if (kind in "SU" and array.dtype.itemsize > dtype.itemsize) or (kind == "V" and array.dtype.itemsize != dtype.itemsize):
        raise out_of_range(value, dtype, name)
    if kind in "mM":
        if np.isnat(array).all():
            return np.full(array.shape, "NaT", dtype)
        if length_of(array.dtype) != length_of(dtype):
            raise out_of_range(value, dtype, name)
    with np.errstate(all="ignore"):
        try:
            out = array.astype(dtype)
            is_same = kind not in "mM" or (np.isnat(array) | (out.astype(array.dtype) == array)).all()
        except (ValueError, TypeError, OverflowError):  # dates: years for days, or out of range
            is_same = False
    if kind in "fc":
        is_same = all((np.isfinite(a) == np.isfinite(b)).all() for a, b in ((out.real, array.real), (out.imag, array.imag)))
    if not is_same:
        raise out_of_range(value, dtype, name)
    return out


def length_of(dtype: np.dtype[Any]) -> str:
    """Return a name for the units of dates and durations that can be counted in each other."""
    unit = np.datetime_data(dtype)[0]
    return "none" if unit == "generic" else "months" if unit in "YM" and dtype.kind == "m" else "time"


def from_user_dtype(array: Any, value: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Return an array of a dtype that is not NumPy's own, such as bfloat16, as one of NumPy's own."""
    wide = WIDEST[kind_of(array.dtype)]
    with np.errstate(all="ignore"):
        out = by_numpy(lambda it: it.astype(wide), array, dtype, name)
        is_same = ((out.astype(array.dtype) == array) | (array != array)).all()
    if not is_same:
        raise out_of_range(value, dtype, name)
    return out


def to_user_dtype(array: Any, value: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Convert an array of NumPy's own dtypes to another; numbers are rounded as that rounds, and looked at afterwards."""
    with np.errstate(all="ignore"):
        out = by_numpy(lambda it: it.astype(dtype), array, dtype, name)
        wide = out.astype(WIDEST[kind_of(dtype)])
        if wide.dtype.kind in "fc":  # instead of infinity some have NaN, some their largest number
            least, most = np.array([-np.inf, np.inf]).astype(dtype).astype(wide.dtype).real
            is_same = not ((array.real < least) | (array.real > most)).any()
            is_same &= all((test(wide) == test(array)).all() for test in (np.isfinite, np.isnan))
        else:
            is_same = ((wide.astype(array.dtype) == array) & ((wide < 0) == (array < 0))).all()
    if not is_same:
        raise out_of_range(value, dtype, name)
    return out


def text_of(array: Any, name: str) -> str:
    """Return the text in an array of such; raises for code points that Python has none of: NumPy makes a broken str of them."""
    try:
        text = array.tobytes().decode("utf-32-le" if array.dtype.str[0] == "<" else "utf-32-be", "surrogatepass")
    except UnicodeDecodeError as error:
        raise FieldTextError(f"field {name!r} holds no text (was it ever written?): {error.reason}") from None
    return str(text).rstrip("\0")
