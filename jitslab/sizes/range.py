"""
Plans of size classes, and the ranges of addresses that open classes have.

A PLAN row describes a class before its first use; then `opening.open_class` reserves its range and makes the cache there.  A
`ClassMemory` shows Python that range.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..core.geometry import Geometry, slab_shape
from ..core.layout import MAX_SLOTS, NO_INIT, NODE, PAGE
from ..core.memory import LEAST_BYTES, CacheMemory, HeapPlace, first_cycle, serials, staggered
from ..machine import numa
from .layout import CLASS, LARGER_SCRATCH, PLAN, SCRATCH


class PlannedClass(NamedTuple):
    """A class to be planned."""

    low: int  # the class serves sizes above this
    high: int  # and up to this
    is_aligned: bool  # whether only aligned requests use it
    capacity: int  # pieces that one thread can always have; 0: no capacity, as many as fit
    least: int  # least slots
    most: int  # most slots


@lru_cache(maxsize=256)
def dtype_of(high: int) -> np.dtype[Any]:
    """Return the dtype of the records of a class."""
    return np.dtype([("bytes", "u1", (high,))])


@lru_cache(maxsize=4)
def lay_out(wanted: tuple[PlannedClass, ...]) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """Return the PLAN and CLASS rows of several classes, as they are in every allocator, with slots numbered from 0."""
    plans, rows = np.zeros(len(wanted), PLAN), np.zeros(len(wanted), CLASS)
    own, slot = plans["geometry"], 0
    for i, each in enumerate(wanted):
        stride, shift, magazine_size = slab_shape(each.high, 1, not each.is_aligned)
        own["stride"][i], own["shift"][i], own["magazine_size"][i] = stride, shift, magazine_size
        least = max(-(-each.least >> shift), LEAST_BYTES // (stride << shift) if each.capacity == 0 else 0, 1)
        plans["least"][i], own["max_slabs"][i] = least, max(-(-each.most >> shift), least)
        end = slot + (int(own["max_slabs"][i]) << shift)
        rows[i] = (slot, stride, 0, end, each.low, each.high, int(each.is_aligned), 0)
        slot = end
    own["itemsize"], own["capacity"] = rows["high"], [each.capacity for each in wanted]
    own["scratch_step"] = np.where(own["stride"] <= PAGE, PAGE, 0)
    plans["scratch"] = np.where(own["stride"] <= PAGE, SCRATCH, LARGER_SCRATCH)
    own["is_coloured"], own["init"] = 1 - rows["is_aligned"], NO_INIT
    own["nodes"], own["node_shift"] = 1, MAX_SLOTS.bit_length()
    own["node_slots"] = 1 << MAX_SLOTS.bit_length()
    return plans, rows


def plan_classes(
    wanted: tuple[PlannedClass, ...], first_slot: int, interval_end: int, allocator: int
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """Return the PLAN and CLASS rows of several classes; each has a first cycle and lines of the CPU's cache of its own."""
    plans, rows = (each.copy() for each in lay_out(wanted))
    numbers = np.array([next(serials) for _ in wanted])
    plans["control_offset"], _, plans["generations_offset"] = staggered(numbers)
    plans["interval_end"] = interval_end
    plans["scratch"] += allocator
    plans["geometry"]["first_generation"] = [2 * first_cycle(number) for number in numbers.tolist()]
    rows["ptr_base"] += first_slot
    rows["end"] += first_slot
    return plans, rows


class ClassMemory:
    """The range of addresses of a class, an array of bytes to NumPy; it ends with its allocator's memory."""

    __slots__ = ("__array_interface__", "_kept")

    def __init__(self, plan: np.void, kept: npt.NDArray[np.uint8]) -> None:
        self._kept = kept
        data = int(plan["memory"]), False
        self.__array_interface__: dict[str, Any] = {"shape": (int(plan["bytes"]),), "typestr": "|u1", "data": data, "version": 3}


def memory_of(
    memory: npt.NDArray[np.uint8], row: np.void, plan: np.void, placement: numa.Placement, place: HeapPlace
) -> CacheMemory:
    """Return the memory of an open class, in its range."""
    start, address = int(plan["memory"]), int(row["control"])
    control = memory[address - start : address - start + NODE.itemsize].view(NODE)["control"][0]
    shape = control["geometry"]
    own = {name: int(shape[name]) for name in ("itemsize", "stride", "shift", "capacity", "max_slabs", "magazine_size")}
    where = {name: int(control["addresses"][name]) for name in ("records", "generations")}
    border = address - start - int(plan["control_offset"])
    sizes = Geometry(
        **own,
        nodes=1,
        node_shift=int(shape["node_shift"]),
        scratch_step=int(shape["scratch_step"]),
        offset={"bits": 0, "control": border, "generations": border, "records": where["records"] - start},
        total=memory.size,
    )
    return CacheMemory(memory, sizes, dtype_of(int(row["high"])), placement, address, where["generations"], place)
