"""
The source of a cache's memory: a range of addresses whose pages are made usable, placed, and given back.

`Region` lists the methods that `CacheMemory` needs.  The only kind today is `AnonymousRegion`: memory of this process.  Another
kind, such as a file, needs a class with these methods, and a table of entry points (`layout.ENTRIES`) with its own `grow` and
`release`, which make slabs usable and give them back while the cache is used.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import CacheFullError
from ..machine import addresses, numa
from ..machine.compile import Entry
from ..machine.owner import owner
from .layout import RANGE
from .process import leave_range, map_range_of, this_process


class Region(Protocol):
    """
    A range of addresses with an end.

    ``np.asarray(region)`` is an array of its bytes and keeps it alive.  When the last array ends, the caches in the range leave
    the process's registry and its memory is given back, in one native step.
    """

    address: int  # of its first byte
    range: npt.NDArray[np.void]  # its RANGE row, shape (1,)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """As NumPy asks for it: to be written to, though nothing may be usable yet."""

    def commit(self, offset: int, n: int) -> bool:
        """Make n bytes usable, from the border of a page on; whether that was granted."""

    def let_read(self, offset: int, n: int) -> bool:
        """Let n bytes be read, as zeros without memory behind them; whether that was granted."""

    def place(self, offset: int, n: int, placement: numa.Placement, number: int) -> None:
        """Ask for the pages of n bytes on the NUMA nodes that node `number` of a cache is to lie on."""

    def prefer_huge_pages(self, offset: int, n: int) -> None:
        """Ask for huge pages in n bytes."""


class AnonymousRegion:
    """
    Memory of this process alone.

    Parameters
    ----------
    n : int
        Bytes.
    kept
        Objects that must live as long: memory that is used together with this.
    end : Entry, default `leave_range`
        Called with the address of the RANGE row; it must give the range back.

    Raises
    ------
    CacheFullError
        If the address space, or its limit (RLIMIT_AS), does not hold it, even after all kept addresses were given up.
    """

    __slots__ = ("_owner", "address", "range")

    def __init__(self, n: int, *kept: Any, end: Entry = leave_range) -> None:
        process = this_process()
        process.prepare_to_keep()
        row = np.zeros(RANGE.itemsize // 8, np.int64)
        self.range = row.view(RANGE)
        self._owner = owner(end, row, *kept)
        self.address = map_range_of(process.address, row.ctypes.data, n)
        if self.address == 0:
            reason = os.strerror(errno.ENOMEM)
            raise CacheFullError(f"cannot reserve {n} bytes of address space{addresses.limit_text()}: {reason}")

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """As NumPy asks for it: to be written to, though nothing may be usable yet."""
        return {"shape": (int(self.range["bytes"][0]),), "typestr": "|u1", "data": (self.address, False), "version": 3}

    def commit(self, offset: int, n: int) -> bool:
        """Make n bytes usable, from the border of a page on; whether the system granted it."""
        return addresses.make_usable(self.address + offset, n)

    def let_read(self, offset: int, n: int) -> bool:
        """Let n bytes be read, as zeros without memory behind them; whether the system granted it."""
        return addresses.make_readable(self.address + offset, n)

    def place(self, offset: int, n: int, placement: numa.Placement, number: int) -> None:
        """Ask for the pages of n bytes on the NUMA nodes that node `number` of a cache is to lie on."""
        numa.bind(self.address + offset, n, placement, number)

    def prefer_huge_pages(self, offset: int, n: int) -> None:
        """Ask for huge pages in n bytes."""
        addresses.advise_huge_pages(self.address + offset, n)
