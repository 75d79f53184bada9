"""
The table of entry points of a cache that is read only: of a pool that another process writes to.

Such a cache has no index.  Its threads use the shared heap, whose magazine holds nothing: so each alloc and each free calls an
entry point of this table, which refuses it and sets a fault.
"""

from __future__ import annotations

from ..machine.compile import Entry
from ..machine.memory import popcount
from ..machine.pointers import address_of
from .batch import note_refused
from .claim import open_heap
from .dispatch import TABLE
from .faults import note_fault
from .heap_table import wake
from .layout import FIRST_NODE_HEAP, NULL, PARTIALLY_USED, READ_ONLY, SHARED_HEAP, WORD_SLOTS, control_at
from .slab import slab_row
from .vectors import live_mask

GROUP = "reader"


@Entry
def claim_to_read(c: int, me: int) -> int:
    """Return the shared heap: by its limit, generations and records a thread finds records."""
    return address_of(open_heap(control_at(c), FIRST_NODE_HEAP + SHARED_HEAP))


@Entry
def refuse_alloc(c: int, h: int) -> int:
    """`alloc`: NULL and a fault."""
    note_fault(control_at(c), NULL, READ_ONLY)
    return NULL


@Entry
def refuse_free(c: int, h: int, handle: int) -> int:
    """`free`: 0 and a fault."""
    note_fault(control_at(c), handle, READ_ONLY)
    return 0


@Entry
def refuse_alloc_many(c: int, out: int, n: int) -> int:
    """`alloc_many`: no slot and a fault."""
    note_fault(control_at(c), NULL, READ_ONLY)
    return 0


@Entry
def refuse_free_many(c: int, hs: int, n: int, refused: int) -> int:
    """`free_many`: each handle is refused, and one fault is set."""
    note_fault(control_at(c), NULL, READ_ONLY)
    for p in range(n):
        note_refused(refused, p)
    return 0


@Entry
def refuse_alloc_few(c: int, h: int, out: int, n: int, done: int) -> int:
    """`alloc_few`: no slot and a fault."""
    note_fault(control_at(c), NULL, READ_ONLY)
    return 0


@Entry
def refuse_free_few(c: int, h: int, hs: int, n: int) -> int:
    """`free_few`: nothing is freed, and one fault is set."""
    note_fault(control_at(c), NULL, READ_ONLY)
    return 0


@Entry
def refuse_clear(c: int) -> int:
    """`clear`: nothing is freed, and one fault is set."""
    note_fault(control_at(c), NULL, READ_ONLY)
    return 0


@Entry
def nothing(c: int) -> int:
    """Do nothing: there is nothing in a heap, nor in the slab layer."""
    return 0


@Entry
def nothing_of_one(c: int, a: int) -> int:
    """Do nothing, with one argument."""
    return 0


@Entry
def nothing_of_two(c: int, a: int, b: int) -> int:
    """Do nothing, with two arguments."""
    return 0


@Entry
def count_live(c: int) -> int:
    """Count the live records by their generations; a scan, which asks for this first, then finds all slabs marked."""
    control = control_at(c)
    wake(control)
    n = 0
    for base in range(0, control.state.limit, WORD_SLOTS):
        n += popcount(live_mask(control.generations, base))
    return n


@Entry
def mark_made(c: int) -> int:
    """Mark each slab as partially used, in the place of a rebuild: so no scan skips one."""
    control = control_at(c)
    for i in range(control.state.n_slabs):
        slab_row(control, i).state = PARTIALLY_USED
    return 0


READER_TABLE: dict[str, Entry] = TABLE | {
    "claim": claim_to_read,
    "alloc": refuse_alloc,
    "free": refuse_free,
    "refill": nothing_of_one,
    "flush": nothing_of_two,
    "release": nothing_of_one,
    "rebuild": mark_made,
    "alloc_many": refuse_alloc_many,
    "free_many": refuse_free_many,
    "alloc_few": refuse_alloc_few,
    "free_few": refuse_free_few,
    "count": count_live,
    "clear": refuse_clear,
    "flush_own": nothing,
}
