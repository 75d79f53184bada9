"""
`SlabPage`, `SlabState` and `SlabObject`: the public views of one slab and one slot.

Below `cache`.  They are snapshots, taken when they are made.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

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
        Slot, 0 to capacity - 1, where the first record of a new slab goes.
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
    """The slabs of a cache, node by node: a sequence that makes each `SlabPage` when it is asked for."""

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
