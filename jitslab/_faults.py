"""
What is said of faults: the errors, notes and warnings that tell of refused handles in compiled code.

Whoever closes or hands out many records takes the faults first, as errors, and raises them when its own work is done.
"""

from __future__ import annotations

import linecache
import warnings
from collections.abc import Iterable

from .core import layout
from .core.faults import Faults, take
from .errors import FaultError

TEXTS = {
    layout.STALE: "stale or foreign handle {:#x} (freed before, or another cache's?)",
    layout.EXHAUSTED: "NULL handle {:#x} (NULL from a full cache?)",
    layout.DOUBLE_FREE: "record {:#x}, freed by two threads at the same instant",
    layout.AFTER_CLOSE: "handle {:#x} after the cache was closed",
    layout.READ_ONLY: "handle {:#x} allocated or freed though the pool was opened to read",
}


def fault_of(address: int, name: str) -> FaultError | None:
    """Return the error of the faults since the last report of a cache, None if there are none; from now on they are told."""
    faults = take(address)
    if faults is None:
        return None
    called, where = place_of(faults)
    first = TEXTS.get(faults.kind, "fault {:#x}").format(faults.first)
    text = f"{shown_count(faults.n)} in compiled code on cache {name!r}{called}; the first: {first}"
    return FaultError(text, faults.n, faults.first, where)


def shown_count(n: int) -> str:
    """Say how many faults."""
    return "1 fault" if n == 1 else f"{n} faults"


def place_of(faults: Faults) -> tuple[str, str]:
    """Say which call of a kernel had the first fault, as part of a message and as "file:line"; both empty if it is not known."""
    if faults.code is None:
        return "", ""
    where = f"{faults.code.co_filename}:{faults.line}"
    line = linecache.getline(faults.code.co_filename, faults.line).strip()
    return f", by {line or faults.code.co_name!r} at {where}", where


def joined(faults: list[FaultError]) -> FaultError | None:
    """Return one error for those of several caches, None for none."""
    if len(faults) < 2:
        return faults[0] if faults else None
    text = "\n".join(map(str, faults))
    return FaultError(text, sum(fault.count for fault in faults), faults[0].first, faults[0].where)


def add_note(error: BaseException, fault: FaultError) -> None:
    """Add a fault to the notes of an exception; before Python 3.11, which shows none, to its list `__notes__`."""
    note = f"{type(fault).__module__}.{type(fault).__qualname__}: {fault}"
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:
        error.__dict__.setdefault("__notes__", []).append(note)


def warn_of_lost(faults: Iterable[FaultError]) -> None:
    """Warn of the faults of a cache or an allocator that is collected, or there at the end of the process."""
    for fault in faults:
        warnings.warn(f"never reported: {fault}", ResourceWarning, stacklevel=3)
