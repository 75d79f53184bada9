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

from . import layout


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
        Position in the cache; its slots start at ``index * capacity``.
    state : SlabState
        FREE, PARTIALLY_USED or FULL, to the slab layer: slots in magazines count as used there.
    used : int
        Live records, counted from the generations.
    capacity : int
        Slots, a power of two.
    colour : int
        Slot, 0 to capacity - 1, where the first record of a new slab goes.
    node : int
        NUMA node of its memory.
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
    """The slabs of a cache: a sequence that makes each `SlabPage` when it is asked for."""

    def __init__(self, count: int, make: Callable[[int], SlabPage]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        """Return the number of slabs made so far."""
        return self._count

    @overload
    def __getitem__(self, index: int) -> SlabPage: ...
    @overload
    def __getitem__(self, index: slice) -> list[SlabPage]: ...
    def __getitem__(self, index: int | slice) -> SlabPage | list[SlabPage]:
        """Return one slab, or a list of them."""
        wanted = range(self._count)[index]
        return [self._make(i) for i in wanted] if isinstance(wanted, range) else self._make(wanted)

    def __repr__(self) -> str:
        """Say how many."""
        return f"<SlabPages: {self._count}>"


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
