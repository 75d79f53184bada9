"""The gate of the arguments: each becomes an exact type here, or is refused by name."""

from __future__ import annotations

import copy
import operator
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from .core.layout import MAX_SLOTS
from .errors import ArrayError, CapacityError, HandleTypeError, LayoutError, SlabError, shown

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
    if not least <= count <= MAX_SLOTS:
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


def is_many(handles: Any) -> bool:
    """Whether an object stands for several handles: a list, or what has dimensions as an array has."""
    return isinstance(handles, list) or getattr(handles, "ndim", 0) > 0


def check_out(out: Any, dtype: np.dtype[Any], n: int) -> None:
    """Raise unless `out` can take n values of `dtype`."""
    is_array = issubclass(type(out), np.ndarray)  # a weak proxy says it is one, and does not keep it
    if not is_array or out.dtype != dtype or out.shape != (n,):
        got = f"{out.dtype} of shape {out.shape}" if is_array else type(out).__name__
        raise ArrayError(f"out must be an array of {dtype} and shape ({n},), got {got}")
    if not out.flags.writeable or not out.flags.c_contiguous or not out.dtype.isnative:
        raise ArrayError("out must be writable, contiguous and of native byte order")


# --- Dtypes of records ---

USERS = 256  # number of the first dtype that is not NumPy's own


def check_dtype(value: Any) -> np.dtype[Any]:
    """Return the dtype of a record, or raise `LayoutError`."""
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except MemoryError:
        raise
    except Exception as error:  # of a class with a dtype of its own, whatever that raises
        raise LayoutError(f"not a dtype: {error}{advice(value)}") from error
    if dtype.hasobject:
        raise LayoutError(f"a record cannot hold Python objects{advice(value)}")
    if dtype.names is None or dtype.fields is None:
        base = dtype.base
        one = repr(base.str if base.itemsize else f"{base.kind}8") if is_own(base) and not base.names else base.name
        many = f", {dtype.shape}" if dtype.shape else ""
        raise LayoutError(f"a record needs named fields, got {dtype}; write [('value', {one}{many})]")
    if dtype.itemsize == 0:
        raise LayoutError("a record cannot be of size 0")
    check_places(dtype, "")
    return own_copy(dtype)


def check_places(dtype: np.dtype[Any], within: str) -> None:
    """Raise if fields of a record, or of one in it, overlap."""
    fields: Any = dtype.fields
    end = 0
    for name in sorted(dtype.names or (), key=lambda n: int(fields[n][1])):  # by name: `fields` has titles, too
        field, offset = fields[name][:2]
        if offset < end:
            raise LayoutError(f"fields overlap at byte {offset} ({within + name!r})")
        end = offset + field.itemsize
        if field.base.names is not None:
            check_places(field.base, f"{within}{name}.")


def advice(value: Any) -> str:
    """Return the end of a message: what to write for a class that is no dtype, and for a type of Numba's, alone or in a list."""
    fields = [it[:2] for it in value if isinstance(it, tuple) and len(it) > 1] if isinstance(value, list) else [(None, value)]
    for name, of in fields:
        where = "" if name is None else f"; field {name!r}"
        if isinstance(of, type) and of not in (object, np.object_) and means_objects(of):
            return (
                f"{where}: class {of.__name__} is no dtype; declare its annotations under @jitslab.record,"
                " in the place of dataclass, NamedTuple or TypedDict"
            )
        if type(of).__module__.startswith("numba.") and str(of) in np.sctypeDict:
            return f"{where}: for Numba's {of} write {str(of)!r}"
    return ""


def means_objects(of: type) -> bool:
    """Whether a class is to NumPy one of Python objects."""
    try:
        return np.dtype(of).kind == "O"
    except Exception:  # as in `check_dtype`
        return False


def is_own(dtype: np.dtype[Any]) -> bool:
    """Whether it is one of NumPy's own dtypes, not one of a user's, such as bfloat16."""
    return 0 <= dtype.num < USERS


def own_copy(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Copy a dtype: its names can be assigned, and those of a cache are not to be, by way of the caller's dtype."""
    if has_titles(dtype):
        return copy.deepcopy(dtype)
    return dtype.newbyteorder("|")  # the order stays; a copy by NumPy itself, in 0.2 us instead of 20 to 100, but without titles


def has_titles(dtype: np.dtype[Any]) -> bool:
    """Whether a field, at any depth, has a title, by which it is found as by its name."""
    if dtype.subdtype is not None:
        return has_titles(dtype.base)
    if dtype.names is None or dtype.fields is None:
        return False
    return len(dtype.fields) != len(dtype.names) or any(has_titles(dtype[name]) for name in dtype.names)


def dtype_identity(dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """
    Return what tells a dtype from others that NumPy calls equal: alignment, class of the scalars, units as they are written.

    With the dtype itself it is the key of what is made once a dtype.  Metadata is not in it: it need not be hashable.
    """
    if dtype.subdtype is not None:
        return dtype_identity(dtype.base)
    if dtype.fields is None or dtype.names is None:
        return dtype.str, dtype.type
    return dtype.isalignedstruct, dtype.type, *[dtype_identity(dtype.fields[name][0]) for name in dtype.names]
