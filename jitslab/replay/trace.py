"""
Allocation traces: their files, the checks of a file, and cuts.

A trace is an .npz file of two arrays: `caches` (name, bytes of an object; no rows in a trace of malloc) and `events`, one a row,
in the order in which they happened.  A free names an object that was allocated before; an object that is never freed is live at
the end.  The file is a stranger's: `load` checks all of it, and no event runs before.
"""

from __future__ import annotations

import atexit
import os
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import TraceError

CACHE = np.dtype([("name", "<U32"), ("size", "<u4")])
EVENT = np.dtype(
    [
        ("op", "u1"),  # ALLOC or FREE
        ("thread", "u1"),  # CPU
        ("cache", "<u2"),  # row of `caches`, NO_CACHE in a trace of malloc
        ("size", "<u4"),  # bytes asked for, 0 for a free
        ("obj", "<u4"),  # number of the object, counted up over the allocs
    ]
)
ALLOC, FREE = 0, 1
NO_CACHE = 0xFFFF
MAX_EVENTS = 1 << 26
MAX_CACHES = 1024  # each takes a few mappings of the process's 65,530
MAX_OBJECT_BYTES = 4 << 20  # the largest object of Linux's slab caches
MAX_BYTES = 1 << 31  # most bytes that a trace of malloc may ask for at once
TABLES = {"caches": (CACHE, MAX_CACHES), "events": (EVENT, MAX_EVENTS)}

Table = npt.NDArray[np.void]


@dataclass(frozen=True)
class Trace:
    """
    A trace that holds together.

    Attributes
    ----------
    caches : ndarray of CACHE
    events : ndarray of EVENT
    """

    caches: Table
    events: Table

    @property
    def is_malloc(self) -> bool:
        """Whether it is a trace of malloc: sizes, and no caches."""
        return not len(self.caches)

    @property
    def allocs(self) -> Table:
        """The events that allocate; row i is of object i."""
        return select(self.events, self.events["op"] == ALLOC)

    @property
    def frees(self) -> Table:
        """The events that free."""
        return select(self.events, self.events["op"] == FREE)

    @property
    def survivors(self) -> npt.NDArray[np.int64]:
        """Numbers of the objects that are live at the end."""
        is_live = np.ones(len(self.allocs), bool)
        is_live[self.frees["obj"]] = False
        return np.flatnonzero(is_live)

    def most_live(self, threads: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """
        Return for each cache how many objects can be live at once when the events run in several threads.

        Parameters
        ----------
        threads : ndarray of int
            The thread of each event.  Threads keep the order of their own events, and none of the others'.
        """
        most = np.zeros(len(self.caches), np.int64)
        if len(self.events):
            order = np.lexsort((self.events["cache"], threads))  # stable: a thread's events of a cache stay in order
            cache, thread = self.events["cache"][order], threads[order]
            change = 1 - 2 * self.events["op"][order].astype(np.int64)
            first = np.flatnonzero(np.r_[True, (cache[1:] != cache[:-1]) | (thread[1:] != thread[:-1])])
            live = np.cumsum(change)
            peak = np.maximum.reduceat(live, first) - (live[first] - change[first])
            np.add.at(most, cache[first], np.maximum(peak, 0))
        return most


def select(table: Table, mask: npt.NDArray[np.bool_]) -> Table:
    """Return the rows of a mask, typed."""
    rows: Table = table[mask]
    return rows


# --- Files ---

_unpacked = ExitStack()  # the trace of a package in an archive: a file until the process ends
atexit.register(_unpacked.close)


@cache
def packaged() -> Path:
    """Return the path of the trace that comes with the package: 200,000 events of a Linux kernel's slab caches."""
    path = resources.files("jitslab") / "data" / "kmem-pipes.npz"
    return path if isinstance(path, Path) else _unpacked.enter_context(resources.as_file(path))


def load(path: str | os.PathLike[str]) -> Trace:
    """
    Read a trace and check all of it.

    Parameters
    ----------
    path : path-like
        An .npz file.

    Returns
    -------
    Trace

    Raises
    ------
    TraceError
        If the file is no trace, or does not hold together.

    Examples
    --------
    >>> from jitslab.replay import trace
    >>> len(trace.load(trace.packaged()).events)
    200000
    """
    where = os.fspath(path)
    try:
        with zipfile.ZipFile(where) as archive:
            tables = [read_table(archive, name) for name in TABLES]
    except TraceError as error:
        raise TraceError(f"{where}: {error}") from None
    except FileNotFoundError:
        raise TraceError(f"{where}: no such file") from None
    except Exception as error:  # zipfile, its decompressors and NumPy raise a dozen kinds for a foreign file
        raise TraceError(f"{where}: no trace: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from error
    trace = Trace(*tables)
    try:
        check_caches(trace.caches)
        check_events(trace)
    except TraceError as error:
        raise TraceError(f"{where}: {error}") from None
    return trace


def save(path: str | os.PathLike[str], trace: Trace) -> None:
    """Write a trace, compressed."""
    with open(path, "wb") as file:  # numpy would append .npz to a name without it
        np.savez_compressed(file, caches=trace.caches, events=trace.events)


def read_table(archive: zipfile.ZipFile, name: str) -> Table:
    """Read one array; its dtype and its length are looked at before there is memory for it."""
    if f"{name}.npy" not in archive.namelist():
        raise TraceError(f"no trace: it has no array {name!r}")
    dtype, most = TABLES[name]
    with archive.open(f"{name}.npy") as file:
        shape, got = read_header(file)  # type: ignore[arg-type]  # zipfile's own kind of file
        if got != dtype:
            raise TraceError(f"{name!r} must be an array of {dtype.descr}, got {got.descr if got.names else got}")
        if len(shape) != 1:
            raise TraceError(f"{name!r} must be a 1-d array, got shape {shape}")
        if shape[0] > most:
            raise TraceError(f"{name!r} has {shape[0]} rows, at most {most} can be replayed")
        data = file.read(shape[0] * dtype.itemsize)
        if len(data) != shape[0] * dtype.itemsize:
            raise TraceError(f"{name!r} should have {shape[0]} rows and has {len(data) // dtype.itemsize}")
        if file.read(1):
            raise TraceError(f"{name!r} should have {shape[0]} rows and has more")
    return np.frombuffer(data, dtype)


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of the array in an .npy file."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise TraceError(f"no trace: .npy version {version[0]}.{version[1]}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


# --- Checks ---


def check_caches(caches: Table) -> None:
    """Raise unless every cache has a name that can be shown and a size that can be had."""
    for i in range(len(caches)):
        try:
            name = str(caches["name"][i])
        except ValueError:
            name = "\0"
        if not name or not name.isprintable():
            raise TraceError(f"cache {i} has no name that can be shown")
        if not 1 <= caches["size"][i] <= MAX_OBJECT_BYTES:
            raise TraceError(
                f"objects of cache {name!r} are of {caches['size'][i]} bytes, they must be of 1 .. {MAX_OBJECT_BYTES}"
            )


def check_events(trace: Trace) -> None:
    """Raise unless the events hold together, naming the first that does not."""
    caches, events = trace.caches, trace.events
    refuse(events, events["op"] > FREE, "op is {op}, must be 0 (alloc) or 1 (free)")
    is_alloc = events["op"] == ALLOC
    if trace.is_malloc:
        refuse(events, events["cache"] != NO_CACHE, "cache {cache} in a trace of malloc, which has none")
        refuse(events, is_alloc & (events["size"] > MAX_BYTES), f"size {{size}} is above {MAX_BYTES}")
    else:
        refuse(events, events["cache"] == NO_CACHE, "an event of malloc in a trace with caches")
        refuse(events, events["cache"] >= len(caches), f"cache {{cache}} is not among the {len(caches)}")
        sizes = caches["size"][events["cache"]]
        refuse(events, is_alloc & (events["size"] != sizes), "size {size} is not that of the objects of cache {cache}")
    last = np.cumsum(is_alloc) - 1  # object allocated last so far
    refuse(events, is_alloc & (events["obj"] != last), "alloc of object {obj}, but objects are counted up from 0")
    refuse(events, ~is_alloc & (events["obj"].astype(np.int64) > last), "free of object {obj}, never allocated before")
    frees = np.flatnonzero(~is_alloc)
    freed = events["obj"][frees]
    is_again = np.ones(len(frees), bool)
    is_again[np.unique(freed, return_index=True)[1]] = False
    refuse(events, frees[is_again], "free of object {obj}, freed before")
    own = trace.allocs["cache"][freed]
    refuse(events, frees[events["cache"][frees] != own], "free of object {obj} into cache {cache}, which is not its own")


def refuse(events: Table, bad: npt.NDArray[Any], text: str) -> None:
    """Raise with the first bad event, if there is one; `bad` is a mask or positions."""
    positions = np.flatnonzero(bad) if bad.dtype == bool else bad
    if len(positions):
        i = int(positions[0])
        fields = {name: int(events[name][i]) for name in EVENT.names or ()}
        raise TraceError(f"event {i}: {text.format(**fields)}")


# --- Cuts ---


def cut(trace: Trace, count: int, start: int = 0) -> Trace:
    """
    Return the trace of `count` events from event `start` on.

    Frees of objects from before are passed over, and not counted; objects are numbered anew.

    Parameters
    ----------
    trace : Trace
        To cut from; it stays as it is.
    count : int
        Most events of the cut.
    start : int, default 0
        Where it begins.
    """
    first = int((trace.events["op"][:start] == ALLOC).sum())
    events = trace.events[start:]
    events = events[events["obj"] >= first][:count].copy()
    events["obj"] -= first
    return Trace(trace.caches, events)
