"""
The memory of an allocator by size: its SIZES row, its classes, the map from sizes to classes, the heaps.

All of it is one range.  The parts after the SIZES row lie at fixed distances, so a fast path computes their addresses and loads
none:

  SIZES | CLASS rows | row of each place | heap of each place | counts | PLAN rows | scratch records | heaps

A *class* is a cache whose records are bytes.  The *map* leads from a size to its class; a *place* is an index into the map
(`place_of`).  With one node a class costs nothing before its first use: its CLASS row has no CONTROL.  Then
`opening.open_class` reserves a range of addresses and makes the class by its PLAN row.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from ..core.layout import GEOMETRY, HEAP_BYTES, HEAP_ROWS, LINE, PAGE, ControlPointer, row
from ..machine.addresses import MASK_BITS, round_up
from ..machine.pointers import StructPointer, make_cast

GRANULE = 8  # bytes of one place of the map, up to FINE
FINE = 1024  # above this, a place is two lines, since classes are odd numbers of lines
MAX_CLASSES = 256  # CLASS rows: the map has one byte for the row
NATURAL, MAX_ALIGN = 16, PAGE  # alignment of every class of the fixed table; largest that can be asked for
MAX_BYTES = 1 << 46  # most bytes of one allocation
LARGEST = (1 << 20) + LINE  # largest size of a class
CLASS_BYTES, LARGE_BYTES = 64, 32  # bytes of a CLASS row and of a LARGE row
RETAINED = 8  # most pieces of freed large memory that are retained
RETAINED_BYTES = 16 << 20  # most bytes of retained pieces
TAG_BITS = 19  # low bits of a ptr's cycle, packed with the address of its pages, which has at most 48 bits
TAG_MASK = (1 << TAG_BITS) - 1
RETAINED_SHIFT, RETAINED_PAGE = 16, 12  # a retained piece is (address >> 12) << 16 | bytes >> 12

CLASS = row(
    # Frozen while the class is used.
    ("ptr_base", "i8"),  # ptr - handle: number of the first slot
    ("stride", "i8"),  # bytes from slot to slot
    ("control", "i8"),  # address of the cache's CONTROL row, 0: the class is not open
    ("end", "i8"),  # number of the last slot + 1
    ("low", "i8"),  # the class serves sizes above this
    ("high", "i8"),  # and up to this
    ("is_aligned", "i8"),  # 1: it serves aligned requests only
    ("pad", "i8"),
)
PLAN = row(
    # Frozen: how a class is opened.
    ("control_offset", "i8"),  # offset of its CONTROL row from the border of a page
    ("generations_offset", "i8"),  # offset of its generations from that border
    ("least", "i8"),  # least slabs
    ("interval_end", "i8"),  # ticks at which the first interval of the working set ends
    # Written once, under the registry's lock.
    ("memory", "i8"),  # address of its range, 0: it has none
    ("bytes", "i8"),  # of the range
    ("scratch", "i8"),  # address of its scratch records
    ("geometry", GEOMETRY),  # `max_slabs` is the most before the class is opened, then the number that it has
)
SIZE_ENTRIES = row(
    # Addresses of the entry points: one table a process.
    *[(name, "i8") for name in ("allocate", "free", "address", "realloc", "scratch", "open")]
)
SIZES = row(
    ("entries", "i8"),  # address of SIZE_ENTRIES
    ("n_rows", "i8"),
    ("large", "i8"),  # address of the CONTROL row of the cache of large memory
    ("large_base", "i8"),  # number of its first slot
    ("observe", "i8"),  # 1: sizes are counted
    ("closed", "i8"),
    ("large_bytes", "i8"),  # bytes of pages in large memory, now
    ("mode", "i8"),  # for mbind(2), of large memory; 0: a page lies on the node of the thread that first writes to it
    ("mask", "i8", (MASK_BITS // 64,)),  # for mbind(2): one bit a node
    ("scratch", "i8"),  # address of the scratch pages of large memory, which begin with their size; 0: none
    ("nodes", "i8"),  # most nodes of a class
    ("clock_hand", "i8"),  # index of the retained piece that is given up next
    ("retained", "i8", (RETAINED,)),  # freed pages: (address >> 12) << 16 | bytes >> 12, 0: none
)
LARGE = row(
    ("pages", "i8"),  # address / 8 << TAG_BITS | low bits of the ptr's cycle; 0: a free or a realloc has taken them
    ("bytes", "i8"),  # of the pages
    ("asked", "i8"),
    ("pin", "i8"),  # number of the array in Python that keeps the pages mapped << TAG_BITS | the same low bits; 0: none
)
PINNED = row(
    # What the end of an array in Python that shows large memory needs.
    ("end", "i8"),  # address of the entry point that is called
    ("sizes", "i8"),  # address of the allocator's SIZES row
    ("ptr", "i8"),
    ("number", "i8"),  # of the array
    ("pages", "i8"),  # address of the pages, 0: the array does not keep them mapped
    ("bytes", "i8"),  # of the pages
)
SizesPointer = StructPointer(
    "Sizes",
    SIZES,
    frozen=("entries", "large", "large_base", "mode", "nodes"),
    addresses={"entries": StructPointer("SizeEntries", SIZE_ENTRIES), "large": ControlPointer},
)
sizes_at, class_at, plan_at = (
    make_cast(each) for each in (SizesPointer, StructPointer("Class", CLASS), StructPointer("Plan", PLAN))
)
large_row_at, pinned_at = make_cast(StructPointer("Large", LARGE)), make_cast(StructPointer("Pinned", PINNED))
Sizes: TypeAlias = Any  # to a type checker, as in `core.layout`
Class: TypeAlias = Any
Plan: TypeAlias = Any
Large: TypeAlias = Any

MOVING = -1  # as a pin: a realloc has the pages
assert (CLASS.itemsize, LARGE.itemsize) == (CLASS_BYTES, LARGE_BYTES)
PLAN_BYTES = PLAN.itemsize
# Offsets of the parts after the SIZES row.
CLASSES = SIZES.itemsize  # the CLASS rows
COARSE = (FINE >> 3) + 1 - (FINE >> 7)  # place = size / (2 * LINE) + COARSE above FINE
PLACES = 8 * 1024 + 128  # no fewer than `place_of` needs
CLASS_OF_PLACE = CLASSES + MAX_CLASSES * CLASS_BYTES  # u1 a place: row of the class
# u2 a place: lines from a thread's first heap to that of the class; 0 while sizes are counted
HEAP_OF_PLACE = CLASS_OF_PLACE + round_up(PLACES, LINE)
COUNTS = HEAP_OF_PLACE + round_up(2 * PLACES, LINE)  # i8 a size: how often it was requested
PLANS = COUNTS + 8 * (LARGEST + LINE)  # PLAN rows, by class
SCRATCH = round_up(PLANS + MAX_CLASSES * PLAN_BYTES, PAGE)  # of classes up to a page: a page for each heap
LARGER_SCRATCH = SCRATCH + HEAP_ROWS * PAGE  # all larger classes share this one
HEAPS_AT = round_up(LARGER_SCRATCH + 2 * LARGEST, 64 * 1024)  # heaps of one thread lie side by side, one a class
HEAP_LINES = HEAP_BYTES // LINE
THREAD_BYTES = MAX_CLASSES * HEAP_BYTES
SIZES_BYTES = HEAPS_AT + HEAP_ROWS * THREAD_BYTES


def place_of(size: int) -> int:
    """Return the place of a size in the map; for an invalid size 0, the place of class 0."""
    if (size >= 0) & (size <= FINE):  # LLVM makes it one compare
        return (size + (GRANULE - 1)) >> 3
    if (size >= 0) & (size <= LARGEST):
        return ((size + (LINE - 1)) >> 7) + COARSE
    return 0


def retained_size(piece: int) -> int:
    """Return the bytes of a retained piece."""
    return (piece & ((1 << RETAINED_SHIFT) - 1)) << RETAINED_PAGE
