"""
Snapshots of slabs, slots, nodes, caches and allocators, taken when they are made.

`SlabPage` and `SlabObject` show one slab and one slot, `SlabNode`, `ClassStats` and `SizeStats` count, and `LiveReport` lists
live records.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from ._faults import shown_count
from .core import layout


class SlabState(enum.IntEnum):
    """State of a slab: whether some, all or none of its slots are handed out."""

    FREE = layout.FREE
    PARTIALLY_USED = layout.PARTIALLY_USED
    FULL = layout.FULL


@dataclass(frozen=True)
class SlabPage:
    """
    One slab, as it was when asked for.

    Attributes
    ----------
    index : int
        Number in the cache; its slots start at ``index * capacity``.  Each node's slabs have numbers in a row.
    state : SlabState
        FREE, PARTIALLY_USED or FULL, to the slab layer: slots in magazines count as used there.
    used : int
        Live records, counted from the generations.
    capacity : int
        Slots, a power of two.
    colour : int
        Slot of the first record of a new slab, 0 to capacity - 1.
    node : int
        NUMA node that its memory is asked for on; of an interleaved cache, the first.
    live : ndarray of bool, shape (capacity,)
        Which slots hold a live record.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> with jitslab.SlabCache("doc-page", np.dtype([("x", "f8")]), capacity=100) as cache:
    ...     handles = cache.alloc_many(10)
    ...     page = cache.pages[0]
    >>> page.used, page.capacity, int(page.live.sum())
    (10, 8192, 10)
    """

    index: int
    state: SlabState
    used: int
    capacity: int
    colour: int
    node: int
    live: npt.NDArray[np.bool_]

    def __repr__(self) -> str:
        """Without the bitmap."""
        return f"<SlabPage {self.index}: {self.state.name}, {self.used} of {self.capacity} used, colour {self.colour}>"


class SlabPages(Sequence[SlabPage]):
    """The slabs of a cache, node by node: a sequence that makes a `SlabPage` when it is indexed."""

    def __init__(self, slabs: Sequence[range], make: Callable[[int], SlabPage]) -> None:
        self._slabs = slabs
        self._make = make

    def __len__(self) -> int:
        """Return the number of slabs made so far."""
        return sum(map(len, self._slabs))

    @overload
    def __getitem__(self, index: int) -> SlabPage: ...
    @overload
    def __getitem__(self, index: slice) -> list[SlabPage]: ...
    def __getitem__(self, index: int | slice) -> SlabPage | list[SlabPage]:
        """Return one slab, or a list of them."""
        wanted = range(len(self))[index]
        return [self._nth(i) for i in wanted] if isinstance(wanted, range) else self._nth(wanted)

    def _nth(self, i: int) -> SlabPage:
        """Return the slab at a position below the length."""
        for slabs in self._slabs:
            if i < len(slabs):
                break
            i -= len(slabs)
        return self._make(slabs[i])

    def __repr__(self) -> str:
        """Say how many."""
        return f"<SlabPages: {len(self)}>"


@dataclass(frozen=True)
class SlabNode:
    """
    The slabs of a cache on one NUMA node, as they were when asked for.

    Attributes
    ----------
    node : int
        The system's number of the node; with ``nodes=`` that of the simulated one.
    live : int
        Live records.
    slabs, empty : int
        Slabs made, and those of them that are empty with memory behind them.
    refills, flushes : int
        Magazines filled from here, and given back.
    came_home : int
        Slots that threads of other nodes freed and gave back in batches.
    arrivals : int
        Threads that moved here from another node and went on to draw from here.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> with jitslab.SlabCache("doc-node", np.dtype([("x", "f8")]), capacity=100, nodes=2) as cache:
    ...     handles = cache.alloc_many(10)
    ...     sum(node.live for node in cache.nodes)
    10
    """

    node: int
    live: int
    slabs: int
    empty: int
    refills: int
    flushes: int
    came_home: int
    arrivals: int


@dataclass(frozen=True)
class SlabObject:
    """
    One slot, as it was when asked for.

    Attributes
    ----------
    handle : int
        The handle asked for.
    slot : int
        Index of the slot: the record is ``cache.records[slot]``.
    page : SlabPage
        The slab it lies in.
    address : int
        Address of the record's first byte; good while the cache is open.
    live : bool
        Whether the handle's record is live.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> with jitslab.SlabCache("doc-object", np.dtype([("x", "f8")]), capacity=100) as cache:
    ...     it = cache.object_at(cache.alloc())
    >>> it.live, it.page.index, it.address % 8
    (True, 0, 0)
    """

    handle: int
    slot: int
    page: SlabPage
    address: int
    live: bool

    def __repr__(self) -> str:
        """Short: handle, slot, slab, whether live."""
        return f"<SlabObject {self.handle:#x}: slot {self.slot}, slab {self.page.index}, {'live' if self.live else 'free'}>"


# --- Counts of an allocator ---


@dataclass(frozen=True)
class ClassStats:
    """
    One size class.

    Attributes
    ----------
    low, high : int
        It serves the sizes above `low` up to `high`.
    live : int
        Pieces of memory that are live.
    slots : int
        Places made so far.
    slabs : int
    memory : int
        Bytes of the slabs' records and generations.
    """

    low: int
    high: int
    live: int
    slots: int
    slabs: int
    memory: int


@dataclass(frozen=True)
class SizeStats:
    """
    An allocator at one instant.

    Attributes
    ----------
    live : int
        Pieces of memory that are live.
    used : int
        Bytes given out for them: whole classes and pages.
    memory : int
        Bytes of all slabs, and of the pages of large memory: live ones, and up to 16 MiB of freed ones, kept for the next.
    large : int
        Live pieces of large memory.
    large_used : int
        Bytes of their pages.
    observed : int
        Sizes observed since observing began, up to the largest class.
    asked, given : int
        Bytes that these asked for, and that the table in force gives out for them.
    classes : tuple of ClassStats
        Those that were ever in use.
    """

    live: int
    used: int
    memory: int
    large: int
    large_used: int
    observed: int
    asked: int
    given: int
    classes: tuple[ClassStats, ...]

    @property
    def waste(self) -> float:
        """Share of the bytes given out that nobody asked for, of the observed sizes."""
        return 1 - self.asked / self.given if self.given else 0.0


# --- Reports of what is live ---


@dataclass(frozen=True)
class LiveCache:
    """
    Live records of one cache.

    Attributes
    ----------
    allocator : str
        Name of the allocator whose cache it is; empty for a cache that was made directly.
    name : str
        Name of the cache, or the kind of its raw memory.
    count : int
        Records, or pieces of raw memory, that are live.
    bytes : int
        Their size together.
    handles : tuple of int
        The first few, by slot.
    faults : int
        How often compiled code used a refused handle, and nobody was told yet.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> with jitslab.SlabAllocator("doc-live") as allocator:
    ...     node = allocator.create_cache("nodes", np.dtype([("x", "f8"), ("next", "i8")]))
    ...     handles = node.alloc_many(3)
    ...     (live,) = allocator.report().caches
    >>> live.allocator, live.name, live.count, live.bytes, live.handles == tuple(handles)
    ('doc-live', 'nodes', 3, 48, True)
    """

    allocator: str
    name: str
    count: int
    bytes: int
    handles: tuple[int, ...]
    faults: int = 0

    def __str__(self) -> str:
        """One line."""
        name = f"{self.allocator}/{self.name}" if self.allocator else self.name
        handles = ", ".join(f"{h:#x}" for h in self.handles) + (", ..." if self.count > len(self.handles) else "")
        faults = f"; {shown_count(self.faults)} in compiled code" if self.faults else ""
        return f"{name}: {self.count:,} live, {self.bytes:,} bytes{': ' if handles else ''}{handles}{faults}"


@dataclass(frozen=True)
class LiveReport:
    """
    Live records in the caches of an allocator, or of the process, and their faults; false if there are none.

    Attributes
    ----------
    caches : tuple of LiveCache
        One for each cache with live records or with faults, the most bytes first.

    Examples
    --------
    >>> import jitslab
    >>> with jitslab.SlabAllocator("doc-report") as allocator:
    ...     ptr = allocator.allocate_typed([("x", "f8")])
    ...     report = allocator.report()
    >>> print(report)
    1 live, 8 bytes:
      doc-report/typed(x): 1 live, 8 bytes: 0x...
    >>> bool(report), bool(jitslab.LiveReport())
    (True, False)
    """

    caches: tuple[LiveCache, ...] = ()

    @property
    def count(self) -> int:
        """Records and pieces of raw memory that are live."""
        return sum(cache.count for cache in self.caches)

    @property
    def bytes(self) -> int:
        """Their size together."""
        return sum(cache.bytes for cache in self.caches)

    def __bool__(self) -> bool:
        """Whether anything is live, or has faults."""
        return bool(self.caches)

    def __str__(self) -> str:
        """A line for each cache."""
        if not self:
            return "nothing is live"
        return "\n".join([f"{self.count:,} live, {self.bytes:,} bytes:", *(f"  {cache}" for cache in self.caches)])


def make_report(found: list[LiveCache]) -> LiveReport:
    """Return the report of the caches that have live records or faults."""
    return LiveReport(tuple(sorted((cache for cache in found if cache.count or cache.faults), key=lambda cache: -cache.bytes)))
