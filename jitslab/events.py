"""
The compiled loops of a replay: events on slab caches, and the same events on the process's malloc.

Above `heap`, below `replay`.  An event is the word ``object << 32 | cache * ROW | op``; `rows` is the thread's own table of the
caches, `handles` the handles by object number that all threads share, 0 where there is none yet.

Both loops do the same work around the allocator: load the event, write or verify the stamp, publish or look up the handle.
"""

from __future__ import annotations

from typing import Any

from numba import types

from ._native import (
    MIX,
    Entry,
    frozen,
    heap_address,
    heap_pointer,
    kernel,
    load1,
    load4,
    load8,
    load8_acquire,
    my_heap,
    pause,
    store1,
    store4,
    store8,
    store8_release,
    unlikely,
)
from ._os import yield_core
from .heap import H_RECORDS, SLOT_MASK, address, alloc, free_any
from .layout import NULL

ROW = 64  # bytes of a cache's row in a thread's table: words CONTROL .. SIZE
CONTROL, HEAP, STRIDE, WIDTH, SIZE = range(5)  # WIDTH: bytes of a stamp
ROW_MASK = 0xFFFFFFC0
REFUSED = -1  # handle of an object that there was no memory for
_external: Any = types.ExternalFunction
_malloc = _external("malloc", types.int64(types.int64))
_free = _external("free", types.void(types.int64))


@kernel
def write_stamp(at: int, width: int, obj: int) -> None:
    """Stamp a record with its object's number, spread over all bits."""
    stamp = (obj + 1) * MIX
    if width == 8:
        store8(at, 0, stamp)
    elif width == 4:
        store4(at, 0, stamp >> 32)
    else:
        store1(at, 0, stamp >> 56)


@kernel
def has_stamp(at: int, width: int, obj: int) -> bool:
    """Whether a record still has its stamp."""
    stamp = (obj + 1) * MIX
    if width == 8:
        return bool(load8(at, 0) == stamp)
    if width == 4:
        return bool(load4(at, 0) == stamp >> 32 & 0xFFFFFFFF)
    return bool(load1(at, 0) == stamp >> 56 & 0xFF)


@kernel
def wait_for(handles: int, obj: int) -> int:
    """Return the handle of an object, as soon as its thread has published it."""
    tries = 0
    while True:
        handle: int = load8_acquire(handles, obj)
        if handle != 0:
            return handle
        tries += 1
        if tries & 15:
            pause()
        else:
            yield_core()


@Entry
def run_slabs(words: int, n: int, handles: int, rows: int, n_rows: int) -> int:
    """Run n events on slab caches; returns how many frees found the record changed, or were refused."""
    for r in range(n_rows):
        row = rows + r * ROW
        store8(row, HEAP, heap_address(my_heap(load8(row, CONTROL))))
    bad = 0
    for i in range(n):
        word = load8(words, i)
        row = rows + (word & ROW_MASK)
        obj = word >> 32
        heap = heap_pointer(load8(row, HEAP))
        if word & 1 == 0:
            handle = alloc(heap)
            if unlikely(handle == NULL):
                handle = REFUSED
            else:
                at = frozen(heap, H_RECORDS) + (handle & SLOT_MASK) * load8(row, STRIDE)
                write_stamp(at, load8(row, WIDTH), obj)
            store8_release(handles, obj, handle)
        else:
            handle = wait_for(handles, obj)
            if handle != REFUSED:
                bad += not verify_free(heap, handle, row, obj)
    return bad


@kernel
def verify_free(heap: Any, handle: int, row: int, obj: int) -> bool:
    """Verify a record's stamp and free it; whether both went well."""
    is_good = has_stamp(address(heap, handle, load8(row, STRIDE)), load8(row, WIDTH), obj)
    return free_any(load8(row, CONTROL), heap, handle) and is_good


@Entry
def run_malloc(words: int, n: int, handles: int, rows: int, n_rows: int) -> int:
    """Run n events on malloc and free; returns how many frees found the memory changed.  The handle is the address."""
    bad = 0
    for i in range(n):
        word = load8(words, i)
        row = rows + (word & ROW_MASK)
        obj = word >> 32
        if word & 1 == 0:
            at = _malloc(load8(row, SIZE))
            if unlikely(at == 0):
                at = REFUSED
            else:
                write_stamp(at, load8(row, WIDTH), obj)
            store8_release(handles, obj, at)
        else:
            at = wait_for(handles, obj)
            if at != REFUSED:
                bad += not has_stamp(at, load8(row, WIDTH), obj)
                _free(at)
    return bad
