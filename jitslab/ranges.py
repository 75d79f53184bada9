"""
The range of addresses that several size classes share, laid out before any of them is opened.

Above `rawlayout` and `block`, below `sizes`.  Each class has its part of the range, laid out as a reservation of its own; a
plan (`rawlayout.PLAN`) says where, and `opening.open_class` makes the class there at its first use.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import numa
from ._os import page_bytes
from .block import EAGER_BYTES, Block, ClassPlace, first_cycle, head_end, serials, staggered
from .layout import NO_INIT, PAGE, SLAB, Geometry, geometry
from .process import close_caches_in, this_process
from .rawlayout import CLASS, LARGER_SCRATCH, PLAN, SCRATCH


class Wanted(NamedTuple):
    """A class that is to be."""

    low: int  # it serves the sizes above this
    high: int  # and up to this
    is_aligned: bool  # whether it is for alignments only
    capacity: int  # pieces


class Layout(NamedTuple):
    """The plans and the rows of several classes, as if their range began at address 0 and their slot numbers at 0."""

    plans: npt.NDArray[np.void]
    rows: npt.NDArray[np.void]
    total: int  # bytes of the range


@lru_cache(maxsize=256)
def dtype_of(high: int) -> np.dtype[Any]:
    """Return the dtype of the records of a class."""
    return np.dtype([("bytes", "u1", (high,))])


def geometry_of(high: int, capacity: int, is_aligned: bool) -> Geometry:
    """Return the geometry of a class with one array set."""
    return geometry(dtype_of(high), capacity, not is_aligned, page_bytes, has_heaps=False, is_part=True)


@lru_cache(maxsize=4)
def lay_out(wanted: tuple[Wanted, ...]) -> Layout:
    """Lay several classes out, one after the other."""
    plans, rows = np.zeros(len(wanted), PLAN), np.zeros(len(wanted), CLASS)
    at = slot = 0
    for i, (each, plan) in enumerate(zip(wanted, plans, strict=True)):
        sizes = geometry_of(each.high, each.capacity, each.is_aligned)
        offset, own = sizes.offset, plan["own"]
        is_eager = offset["records"] <= EAGER_BYTES
        start = 0 if is_eager else offset["control"]
        end = offset["records"] if is_eager else head_end(offset)
        plan["control"], plan["start"], plan["usable"] = at + offset["control"], at + start, end - start
        plan["readable"] = offset["records"] - end
        for region in ("bits", "words", "records"):
            own[region] = at + offset[region]
        for field in ("stride", "itemsize", "shift", "max_slabs", "capacity", "rounds"):
            own[field] = getattr(sizes, field)
        own["scratch_step"] = PAGE if sizes.scratch_step else 0
        own["colours"], own["init"] = int(not each.is_aligned), NO_INIT
        end = slot + sizes.slots
        rows[i] = (slot, sizes.stride, 0, end, each.low, each.high, int(each.is_aligned), 0)
        at, slot = at + sizes.total, end
    return Layout(plans, rows, at)


class ClassRange:
    """
    A range of addresses that is reserved for several classes.

    Attributes
    ----------
    rows : range
        Rows of the classes in their allocator.
    """

    __slots__ = ("_base", "_layout", "_memory", "_placement", "rows")

    def __init__(self, rows: range, wanted: tuple[Wanted, ...], placement: numa.Placement) -> None:
        self.rows, self._layout, self._placement = rows, lay_out(wanted), placement
        memory = this_process().reserve(self._layout.total)
        self._base = memory.address
        self._memory = np.asarray(memory)
        numa.bind(self._base, self._memory.size, placement, 0)

    def plans(self, interval_end: int, allocator: int) -> npt.NDArray[np.void]:
        """Return the plans of the classes, with places of their own in the CPU's caches, and cycles of their own."""
        plans = self._layout.plans.copy()
        numbers = np.array([next(serials) for _ in self.rows])
        control, _, words = staggered(numbers)
        own = plans["own"]
        plans["start"] += self._base
        plans["control"] += self._base + control
        own["slabs"] = plans["control"] - SLAB.itemsize
        own["words"] += self._base + words
        own["bits"] += self._base
        own["records"] += self._base
        own["scratch"] = own["template"] = allocator + np.where(own["scratch_step"] > 0, SCRATCH, LARGER_SCRATCH)
        own["start"] = [2 * first_cycle(number) for number in numbers.tolist()]
        plans["interval_end"] = interval_end
        return plans

    def class_rows(self, first_slot: int) -> npt.NDArray[np.void]:
        """Return the rows of the classes, whose slots are numbered from `first_slot` on."""
        rows = self._layout.rows.copy()
        rows["base"] += first_slot
        rows["end"] += first_slot
        return rows

    def block(self, row: np.void, plan: np.void, place: ClassPlace) -> Block:
        """Return the block of a class that was opened by its plan."""
        own, high = plan["own"], int(row["high"])
        sizes = geometry_of(high, int(own["capacity"]), bool(row["is_aligned"]))
        start = int(own["bits"]) - sizes.offset["bits"] - self._base
        memory = self._memory[start : start + sizes.total]
        return Block(memory, sizes, dtype_of(high), self._placement, int(row["control"]), int(own["words"]), place)

    def leave(self) -> None:
        """Have whatever is in the range leave the process's registry: the range is about to go."""
        close_caches_in(this_process().address, self._base, self._base + self._memory.size)
