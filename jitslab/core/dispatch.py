"""
The table of entry points in every control block: which kernel stands in which field.

Above `batch` and `process`, below `compiled`.  User code calls them by address, without linking or optimising them again (a
user's compile takes 57 ms instead of 115).
"""

from __future__ import annotations

from ..machine.compile import Entry
from . import batch, heap, recover, slab

TABLE: dict[str, Entry] = {
    "f_claim": heap.claim,
    "f_alloc": heap.slow_alloc,
    "f_free": heap.slow_free,
    "f_address": heap.slow_address,
    "f_refill": heap.refill,
    "f_flush": heap.flush,
    "f_grow": slab.grow,
    "f_release": slab.release,
    "f_rebuild": recover.rebuild,
    "f_alloc_many": batch.alloc_many,
    "f_free_many": batch.free_many,
    "f_alloc_few": batch.alloc_by_heap,
    "f_free_few": batch.free_by_heap,
    "f_len": recover.count_live,
    "f_flush_own": heap.flush_own,
    "f_clear": batch.clear,
    "f_note": batch.note_live,
}
