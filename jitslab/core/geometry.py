"""The sizes of one cache and the offsets of its parts, from its dtype and its capacity."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..errors import CapacityError
from ..machine.addresses import round_up
from ..machine.numa import CPUS
from .layout import (
    HEAP_BYTES,
    HEAP_ROWS,
    HEAPS,
    LINE,
    MAGAZINE_BYTES,
    MAGAZINE_SLOTS,
    MAX_SLAB_SHIFT,
    MAX_SLOTS,
    NODE_BORDER,
    NODE_BYTES,
    NODE_SHIFT,
    PAGE,
    SLAB,
    SLAB_BYTES,
    STAGGER,
    WORD_SLOTS,
)


class Shape(NamedTuple):
    """Where slots are: of a cache that takes the place of another one, and holds its records where that had them."""

    stride: int
    shift: int
    node_shift: int  # with one node it is not used
    slots: int  # that it must have, on each node


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes of one cache, which follow from its dtype, its capacity and its colouring; equal caches share the object."""

    itemsize: int
    stride: int
    shift: int
    capacity: int
    max_slabs: int  # of one node
    magazine_size: int
    nodes: int
    node_shift: int  # slots from one node to the next == 1 << node_shift; with one node it exceeds every slot number
    scratch_step: int  # bytes from one heap's scratch record to the next, 0: all share one
    offset: dict[str, int]  # of each part, from the start of the reservation
    total: int  # bytes of the reservation

    @property
    def slots(self) -> int:
        """Slots in the reservation; the slots between one node's last slab and the next node are never used."""
        return self.nodes << self.node_shift if self.nodes > 1 else self.max_slabs << self.shift


def record_stride(dtype: np.dtype[Any], colouring: bool) -> int:
    """
    Return the bytes from slot to slot: the itemsize, a multiple of the alignment, and one line more if records would alias.

    If a stride of 1 KiB or more is a multiple of 256 bytes, the first lines of the records fall into a quarter of the sets
    of the CPU's cache, or fewer; an odd number of lines uses all sets.
    """
    return stride_of(dtype.itemsize, max(1, dtype.alignment), colouring)


def stride_of(itemsize: int, align: int, colouring: bool) -> int:
    """Return `record_stride` of a dtype by its size and alignment."""
    stride = round_up(itemsize, align)
    if colouring and stride >= 1024 and stride % 256 == 0:
        stride += LINE if LINE % align == 0 else align
    return stride


@lru_cache(maxsize=256)
def slab_shape(itemsize: int, align: int, colouring: bool) -> tuple[int, int, int]:
    """Return (stride, shift, magazine_size) of a dtype by its size and alignment: a slab has ``1 << shift`` slots."""
    stride = stride_of(itemsize, align, colouring)
    shift = min(max(round(np.log2(SLAB_BYTES / stride)), 0), MAX_SLAB_SHIFT)
    return stride, shift, magazine_slots(stride)


def magazine_slots(stride: int) -> int:
    """Return how many slots a magazine may hold."""
    return min(max(MAGAZINE_BYTES // stride, 1), MAGAZINE_SLOTS)


def geometry(
    dtype: np.dtype[Any],
    capacity: int,
    colouring: bool,
    page: int,
    nodes: int = 1,
    has_heaps: bool = True,
    slots: int = 0,
    shape: Shape | None = None,
) -> Geometry:
    """
    Lay out one cache of `slots` slots; 0: of as many as its capacity needs.

    `has_heaps` is False for a size class, whose heaps lie in its allocator's region.
    """
    return lay_out(dtype.itemsize, max(1, dtype.alignment), capacity, colouring, page, nodes, has_heaps, slots, shape)


@lru_cache(maxsize=128)
def lay_out(
    itemsize: int,
    align: int,
    capacity: int,
    colouring: bool,
    page: int,
    nodes: int,
    has_heaps: bool,
    slots: int,
    shape: Shape | None = None,
) -> Geometry:
    """
    Return the `geometry` of a dtype by its size and alignment.

    Each node alone holds the capacity, and more slots: those parked in other threads' magazines, and retired ones, must not
    make `alloc` fail before `capacity` records are live.
    """
    stride, shift, magazine_size = slab_shape(itemsize, align, colouring)
    if shape is not None:
        stride, shift, magazine_size = shape.stride, shape.shift, magazine_slots(shape.stride)
    slots = min(slots or capacity + HEAPS * magazine_size, MAX_SLOTS)
    max_slabs = -(-slots // (1 << shift))
    node_shift, n_slots, where = MAX_SLOTS.bit_length(), max_slabs << shift, ""
    if nodes > 1:
        node_shift = max(((max_slabs << shift) - 1).bit_length(), NODE_SHIFT)
        while (stride << node_shift) % NODE_BORDER:
            node_shift += 1
        if shape is not None:
            node_shift = shape.node_shift
            max_slabs = min(max_slabs, 1 << node_shift >> shift)
        n_slots, where = nodes << node_shift, f" on each of {nodes} nodes"
    if n_slots * stride > 1 << 46:
        raise CapacityError(f"{capacity} records of {stride} bytes{where} are more than the address space holds")
    if n_slots > MAX_SLOTS:
        raise CapacityError(f"{capacity} records{where} are more than the 2**32 slots of a cache")
    n_heaps = (int(has_heaps) + (0 if nodes == 1 else nodes)) * HEAP_ROWS
    parts = {
        "heaps": n_heaps * HEAP_BYTES + page if n_heaps else 0,
        **scratch_parts(stride),
        "cpus": 0 if nodes == 1 else CPUS,
        "bits": nodes * bits_bytes(max_slabs << shift, page),
        "slabs": nodes * round_up(max_slabs * SLAB.itemsize, page),
        "control": 0 if nodes == 1 else STAGGER + nodes * NODE_BYTES,  # with one node: on the first page of the generations
        "generations": n_slots * 4 + WORD_SLOTS * 4 + page,
        "records": n_slots * stride,
    }
    return Geometry(
        itemsize, stride, shift, capacity, max_slabs, magazine_size, nodes, node_shift, scratch_step(stride), *placed(parts, page)
    )


def lay_out_file(itemsize: int, stride: int, shift: int, capacity: int, slots: int, words: int, page: int) -> Geometry:
    """
    Lay out a cache whose generations and records are in files: its other parts are in memory, before those two.

    `words` is the length of the file of the generations.  CONTROL comes first, so that everything behind it is replaced by
    zeros when the range ends (`process.end_range`).
    """
    parts = {
        "control": STAGGER + NODE_BYTES,
        "heaps": HEAP_ROWS * HEAP_BYTES + page,
        **scratch_parts(stride),
        "bits": bits_bytes(slots, page),
        "slabs": round_up((slots >> shift) * SLAB.itemsize, page),
        "generations": words,
        "records": slots * stride,
    }
    one_node = MAX_SLOTS.bit_length()
    return Geometry(
        itemsize,
        stride,
        shift,
        capacity,
        slots >> shift,
        magazine_slots(stride),
        1,
        one_node,
        scratch_step(stride),
        *placed(parts, page),
    )


def bits_bytes(slots: int, page: int) -> int:
    """Return the bytes of the free bits of one node."""
    return round_up(-(-slots // WORD_SLOTS) * 8, page)


def scratch_step(stride: int) -> int:
    """Return the bytes from one heap's scratch record to the next, 0: all share one."""
    scratch = round_up(stride, LINE)
    return scratch if scratch <= PAGE else 0


def scratch_parts(stride: int) -> dict[str, int]:
    """Return the bytes of the template and of the scratch records."""
    return {"template": round_up(stride, LINE), "scratch": HEAP_ROWS * scratch_step(stride) or round_up(stride, LINE)}


def placed(parts: dict[str, int], page: int) -> tuple[dict[str, int], int]:
    """Return the offset of each part, from a page's border on, and the end of the last, by the bytes of the parts in order."""
    offset, at = {}, 0
    for name, size in parts.items():
        offset[name] = at
        at = round_up(at + size, page)
    return offset, at
