"""
The records of a cache of a pool, written to one file that other programs read: ``.npy``, ``.csv`` or ``.parquet``.

Links are written as they are, int64.  Records are read and written some thousands at a time.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.layout import SLOT_MASK
from ..errors import CapacityError, ConflictError, OptionError
from .cache import PoolCache

Handles = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]
Tick = Callable[[int], None]

PIECE_BYTES = 4 << 20  # of records that are read at a time
NO_ARROW = "Parquet files are written with pyarrow, which is not installed: pip install pyarrow"
UNITS = ("s", "ms", "us", "ns")  # of dates and durations in Arrow


def dump(cache: PoolCache[Any], out: str | os.PathLike[str], tick: Tick) -> int:
    """
    Write the live records of a cache, by slot, with their handles; returns how many.

    Parameters
    ----------
    cache : PoolCache
        Of a pool that is open.
    out : str or path
        A file that does not exist; its suffix says the format.
    tick : callable
        Is told of records that were written.

    Raises
    ------
    CapacityError
        If the suffix is none of these.
    ConflictError
        If there is such a file.
    OptionError
        If pyarrow is missing.
    OSError
        If the file cannot be written; it is removed.
    """
    path = Path(out)
    write = WRITERS.get(path.suffix.lower())
    if write is None:
        raise CapacityError(f"a file to write ends in {', '.join(WRITERS)}, got {path.name!r}")
    if write is write_parquet:
        need_arrow()
    handles = cache.live()
    try:
        with open(path, "xb") as file:
            try:
                for n in write(file, cache, handles):
                    tick(n)
            except BaseException:
                with suppress(OSError):
                    path.unlink()
                raise
    except FileExistsError:
        raise ConflictError(f"{path} exists; it is not overwritten") from None
    return len(handles)


def pieces(cache: PoolCache[Any], handles: Handles) -> Iterator[tuple[Handles, npt.NDArray[np.void]]]:
    """Yield handles and copies of their records, some at a time."""
    n = max(1, PIECE_BYTES // max(cache.dtype.itemsize, 1))
    for at in range(0, len(handles), n):
        some = handles[at : at + n]
        yield some, cache.records[some & SLOT_MASK]


# --- NumPy ---


def packed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """
    Return a dtype of equal fields, one behind the other, without titles and metadata: NumPy writes it to a file and reads it.

    Examples
    --------
    >>> import jitslab
    >>> packed(np.dtype([("a", "i1"), ("next", jitslab.link("nodes"))], align=True)).descr
    [('a', '|i1'), ('next', '<i8')]
    """
    if dtype.subdtype is not None:
        return np.dtype((packed(dtype.base), dtype.shape))
    if dtype.names is None:
        return np.dtype(dtype.str)
    return np.dtype([(name, packed(dtype[name])) for name in dtype.names])


def write_npy(file: Any, cache: PoolCache[Any], handles: Handles) -> Iterator[int]:
    """Write an array of ``handle`` and ``record``."""
    row = np.dtype([("handle", "<i8"), ("record", packed(cache.dtype))])
    header = {"descr": np.lib.format.dtype_to_descr(row), "fortran_order": False, "shape": (len(handles),)}
    np.lib.format.write_array_header_2_0(file, header)
    for some, records in pieces(cache, handles):
        rows = np.empty(len(some), row)
        rows["handle"], rows["record"] = some, records
        file.write(rows.tobytes())
        yield len(some)


# --- Columns ---


def columns_of(records: npt.NDArray[Any], name: str = "") -> Columns:
    """Return the fields of records without fields, by their names joined by dots; sub-arrays are dimensions."""
    if records.dtype.names is None:
        return {name: records}
    found: Columns = {}
    for field in records.dtype.names:
        found |= columns_of(records[field], f"{name}.{field}" if name else field)
    return found


def text_of(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return values as text from which they can be read again, or as they are if their text is that already."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind in "biu" or (kind == "f" and size == 8):
        return values
    made = np.empty(values.size, object)
    for k in range(values.size):
        made[k] = text_at(values.reshape(-1), k)
    return made.reshape(values.shape)


def text_at(values: npt.NDArray[Any], k: int) -> str:
    """Return one value as text; of raw bytes, and of what is no text or date, the hexadecimal digits."""
    kind = values.dtype.kind
    try:
        if kind == "S":
            return bytes(values[k]).decode("utf-8", "backslashreplace")
        if kind == "U":  # the half of a pair of surrogates is no UTF-8
            return str(values[k]).encode("utf-8", "backslashreplace").decode()
        if kind != "V":
            return str(values[k])
    except (ValueError, OverflowError):
        pass
    return values[k : k + 1].tobytes().hex()


def write_csv(file: Any, cache: PoolCache[Any], handles: Handles) -> Iterator[int]:
    """Write a line of names, and a line a record; each value of a sub-array is a column."""
    empty = columns_of(np.empty(0, cache.dtype))
    names = ["handle"]
    for name, values in empty.items():
        own = free_name(name, names)
        names += [own + "".join(f"[{i}]" for i in index) for index in np.ndindex(values.shape[1:])]
    lines = csv.writer(Encoded(file))
    lines.writerow(names)
    for some, records in pieces(cache, handles):
        texts = [text_of(values).reshape(len(some), values[:1].size).tolist() for values in columns_of(records).values()]
        for k, handle in enumerate(some.tolist()):
            lines.writerow([handle, *(value for text in texts for value in text[k])])
        yield len(some)


class Encoded:
    """A file of text, as `csv.writer` wants one, over one of bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write in UTF-8."""
        return int(self._file.write(text.encode("utf-8")))


# --- Parquet ---


def need_arrow() -> None:
    """Raise if there is no pyarrow."""
    try:
        import pyarrow.parquet  # noqa: F401  # it is only looked for
    except ImportError:
        raise OptionError(NO_ARROW) from None


def write_parquet(file: Any, cache: PoolCache[Any], handles: Handles) -> Iterator[int]:
    """Write a column a field; those of sub-arrays are lists of fixed size."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    def table(some: Handles, records: npt.NDArray[Any]) -> Any:
        columns = {"handle": pyarrow.array(some)}
        for name, values in columns_of(records).items():
            if 0 in values.shape[1:]:  # it has no values, and Arrow no such lists
                continue
            columns[free_name(name, columns)] = arrow_array(values)
        return pyarrow.table(columns)

    schema = table(np.empty(0, np.int64), np.empty(0, cache.dtype)).schema
    with ParquetWriter(file, schema) as writer:
        for some, records in pieces(cache, handles):
            writer.write_table(table(some, records))
            yield len(some)


def free_name(name: str, columns: Any) -> str:
    """Return a name that no column has."""
    return next(new for new in (name, *(f"{name}_{k}" for k in range(1, len(columns) + 2))) if new not in columns)


def arrow_array(values: npt.NDArray[Any]) -> Any:
    """Return an Arrow array of one column; what Arrow has no type for becomes text."""
    import pyarrow

    flat = np.ascontiguousarray(values.reshape(-1) if values.size else np.empty(0, values.dtype))
    flat = flat.astype(flat.dtype.newbyteorder("="))
    kind, size = flat.dtype.kind, flat.dtype.itemsize
    if kind in "biu" or (kind == "f" and size in (4, 8)):
        made = pyarrow.array(flat)
    elif kind == "f" and size == 2:
        made = pyarrow.array(flat.astype(np.float32))
    elif kind in "Mm" and np.datetime_data(flat.dtype) in [(unit, 1) for unit in UNITS]:
        made = pyarrow.array(flat)
    elif kind in "SV":
        made = pyarrow.array([value.tobytes() if kind == "V" else bytes(value) for value in flat], pyarrow.binary())
    else:
        made = pyarrow.array(text_of(flat).tolist(), pyarrow.string())
    width = int(np.prod(values.shape[1:], dtype=np.int64))
    return made if values.ndim == 1 else pyarrow.FixedSizeListArray.from_arrays(made, width)


WRITERS = {".npy": write_npy, ".csv": write_csv, ".parquet": write_parquet}
