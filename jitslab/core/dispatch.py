"""The table of entry points, one a process: the kernel of each name in `layout.ENTRIES`."""

from __future__ import annotations

from ..machine.compile import Entry
from . import batch, claim, grow, heap, heap_table, rebuild, scan

TABLE: dict[str, Entry] = {
    "claim": claim.claim,
    "alloc": heap.slow_alloc,
    "free": heap.slow_free,
    "address": heap.slow_address,
    "refill": heap.refill,
    "flush": heap.flush,
    "grow": grow.grow,
    "release": grow.release,
    "rebuild": rebuild.rebuild,
    "alloc_many": batch.alloc_many,
    "free_many": batch.free_many,
    "alloc_few": batch.alloc_by_heap,
    "free_few": batch.free_by_heap,
    "count": heap_table.count,
    "clear": batch.clear,
    "note_live": scan.note_live,
    "flush_own": claim.flush_own,
}
