"""
The memory of an allocator by size: its SIZES row, its classes, the map from sizes to classes, the heaps.

All of it is one range.  What follows the SIZES row lies at fixed distances, so that no fast path loads an address that it can
compute:

  SIZES | CLASS rows | row of each place | heap of each place | counts | PLAN rows | scratch records | heaps

A *class* is a cache whose records are bytes.  A *place* is where the map has a size (`place_of`).  With one node a class costs
nothing until it is first used: its CLASS row has no CONTROL, and a PLAN row says how `opening.open_class` is to make it, in a
range of addresses that it reserves then.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from ..core.layout import GEOMETRY, HEAP_BYTES, HEAP_ROWS, LINE, PAGE, ControlPointer, row
from ..machine.addresses import MASK_BITS, round_up
from ..machine.pointers import StructPointer, make_cast

GRANULE = 8  # bytes: what the map tells apart up to FINE
FINE = 1024  # above, classes are odd numbers of lines, which lie two lines apart
MAX_CLASSES = 256  # rows: a byte of the map names one
NATURAL, MAX_ALIGN = 16, PAGE  # of every class of the fixed table; most that can be asked for
MAX_BYTES = 1 << 46  # most bytes of one allocation
LARGEST = (1 << 20) + LINE  # largest size of a class
CLASS_BYTES, LARGE_BYTES = 64, 32  # of their rows
RETAINED = 8  # pieces of freed large memory that are kept
RETAINED_BYTES = 16 << 20  # bytes of them, at most
TAG_BITS = 19  # of a ptr's cycle that stand beside the address of its pages, which has 48 bits at most
TAG_MASK = (1 << TAG_BITS) - 1
RETAINED_SHIFT, RETAINED_PAGE = 16, 12  # a retained piece is (address >> 12) << 16 | bytes >> 12

CLASS = row(
    # Frozen while the class is used.
    ("ptr_base", "i8"),  # what is added to a handle to get a ptr: number of the first slot
    ("stride", "i8"),  # bytes from slot to slot
    ("control", "i8"),  # address of the cache's CONTROL row, 0: the class was never used
    ("end", "i8"),  # number after the last slot's
    ("low", "i8"),  # the class serves sizes above this
    ("high", "i8"),  # and up to this
    ("is_aligned", "i8"),  # 1: it serves all sizes that alignments lead to it
    ("pad", "i8"),
)
PLAN = row(
    # Frozen: how a class is opened.
    ("control_offset", "i8"),  # where its CONTROL row is to start, from the border of a page on
    ("generations_offset", "i8"),  # where its generations are to start, from that border on
    ("least", "i8"),  # slabs that it has at least
    ("interval_end", "i8"),  # ticks at which the first interval of the working set ends
    # Written once, under the registry's lock.
    ("memory", "i8"),  # address of its range, 0: it has none yet
    ("bytes", "i8"),  # of the range
    ("scratch", "i8"),  # address of its scratch records
    ("geometry", GEOMETRY),  # of slabs as many as there may be, then as there are
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
    ("mode", "i8"),  # how the pages of large memory are placed, for mbind(2); 0: where they are first written to
    ("mask", "i8", (MASK_BITS // 64,)),  # one bit a node, for that
    ("scratch", "i8"),  # address of the scratch pages of large memory, 0: none yet; their size is their first word
    ("nodes", "i8"),  # most nodes of a class
    ("clock_hand", "i8"),  # where the next place is that is looked at for pages to give up
    (
        "retained",
        "i8",
        (RETAINED,),
    ),  # freed pages (see `retained_size`), 0: none; their number in the low bits, 4 KiB each, above it that of the first
)
LARGE = row(
    ("pages", "i8"),  # their address / 8 << TAG_BITS | low bits of the ptr's cycle; 0 from the instant that a free has taken them
    ("bytes", "i8"),  # of the pages
    ("asked", "i8"),
    ("pin", "i8"),  # number of the array in Python that keeps the pages mapped, with the same low bits; 0: none
)
PINNED = row(
    # Of an array in Python that shows large memory, beside it: what its end needs.
    ("end", "i8"),  # address of the entry point that is the end
    ("sizes", "i8"),  # address of the allocator's SIZES row
    ("ptr", "i8"),
    ("number", "i8"),  # of the array
    ("pages", "i8"),  # their address, 0: it does not keep them mapped
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
Sizes: TypeAlias = Any  # of kernels
Class: TypeAlias = Any
Plan: TypeAlias = Any
Large: TypeAlias = Any

MOVING = -1  # pin of no array: a realloc has the pages
assert (CLASS.itemsize, LARGE.itemsize) == (CLASS_BYTES, LARGE_BYTES)
PLAN_BYTES = PLAN.itemsize
# What follows the SIZES row.
CLASSES = SIZES.itemsize  # the CLASS rows
COARSE = (FINE >> 3) + 1 - (FINE >> 7)  # places of the map before those of two lines each
PLACES = 8 * 1024 + 128  # of the map, at least: see `place_of`
CLASS_OF_PLACE = CLASSES + MAX_CLASSES * CLASS_BYTES  # u1 a place: the row of a size
HEAP_OF_PLACE = CLASS_OF_PLACE + round_up(
    PLACES, LINE
)  # u2 a place: lines from a thread's first heap to the size's; 0 while sizes are counted
COUNTS = HEAP_OF_PLACE + round_up(2 * PLACES, LINE)  # i8 a size: how often it was asked for
PLANS = COUNTS + 8 * (LARGEST + LINE)  # of the classes, by row
SCRATCH = round_up(PLANS + MAX_CLASSES * PLAN_BYTES, PAGE)  # scratch records: a page for each heap, of classes up to that size
LARGER_SCRATCH = SCRATCH + HEAP_ROWS * PAGE  # of larger classes, which share it
HEAPS_AT = round_up(LARGER_SCRATCH + 2 * LARGEST, 64 * 1024)  # the heaps: those of a thread side by side, one a row
HEAP_LINES = HEAP_BYTES // LINE
THREAD_BYTES = MAX_CLASSES * HEAP_BYTES
SIZES_BYTES = HEAPS_AT + HEAP_ROWS * THREAD_BYTES


def place_of(size: int) -> int:
    """Return where the map has a size; 0, where class 0 is, for what is none."""
    if (size >= 0) & (size <= FINE):  # one compare, compiled
        return (size + (GRANULE - 1)) >> 3
    if (size >= 0) & (size <= LARGEST):
        return ((size + (LINE - 1)) >> 7) + COARSE
    return 0


def retained_size(piece: int) -> int:
    """Bytes of a retained piece."""
    return (piece & ((1 << RETAINED_SHIFT) - 1)) << RETAINED_PAGE
