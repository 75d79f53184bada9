"""
The compiled loops of a replay: events on slab caches, and the same events on the process's malloc.

Above `heap` and `raw`, below `replay`.  An event is the word ``object << 32 | cache * ROW | op``; `rows` is the thread's own
table of the caches, `handles` the handles by object number that all threads share, 0 where there is none yet.

Both loops do the same work around the allocator: load the event, write or verify the stamp, publish or look up the handle.
"""

from __future__ import annotations

from typing import Any

from numba import types

from ..core.calls import my_heap
from ..core.heap import H_RECORDS, SLOT_MASK, address, alloc, free_any
from ..core.layout import NULL
from ..machine.compile import Entry, kernel
from ..machine.memory import (
    frozen,
    heap_address,
    heap_pointer,
    load1,
    load4,
    load8,
    load8_acquire,
    mixed,
    pause,
    store1,
    store4,
    store8,
    store8_release,
    unlikely,
    zero_bytes,
)
from ..machine.system import yield_core
from ..sizes import kernels as raw

ROW = 64  # bytes of a cache's row in a thread's table: words CONTROL .. SIZE
CONTROL, HEAP, STRIDE, WIDTH, SIZE = range(5)  # WIDTH: bytes of a stamp
BLOCK, SIZES, FILL = 0, 1, 2  # words of the one row of a trace of malloc: the allocator; u4 sizes by object; 1: touch every byte
ROW_MASK = 0xFFFFFFC0
REFUSED = -1  # handle of an object that there was no memory for
_external: Any = types.ExternalFunction
_malloc = _external("malloc", types.int64(types.int64))
_free = _external("free", types.void(types.int64))


@kernel
def write_stamp(at: int, width: int, obj: int) -> None:
    """Stamp a record with its object's number, spread over all bits."""
    stamp = mixed(obj + 1)
    if width == 8:
        store8(at, 0, stamp)
    elif width == 4:
        store4(at, 0, stamp >> 32)
    else:
        store1(at, 0, stamp >> 56)


@kernel
def has_stamp(at: int, width: int, obj: int) -> bool:
    """Whether a record still has its stamp."""
    stamp = mixed(obj + 1)
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


# --- Traces of malloc: sizes by object, and no caches ---


@kernel
def write_mark(at: int, size: int, obj: int) -> None:
    """Stamp memory with its object's number: 8 bytes where it has them, else one."""
    write_stamp(at, 8 if size >= 8 else 1, obj)


@kernel
def has_mark(at: int, size: int, obj: int) -> bool:
    """Whether memory still has its stamp."""
    return has_stamp(at, 8 if size >= 8 else 1, obj)


@Entry
def run_sizes(words: int, n: int, handles: int, rows: int, n_rows: int) -> int:
    """Run n events on an allocator by size; returns how many frees found the memory changed, or were refused."""
    s, sizes, fill = load8(rows, BLOCK), load8(rows, SIZES), load8(rows, FILL)
    bad = 0
    for i in range(n):
        word = load8(words, i)
        obj = word >> 32
        size = load4(sizes, obj)
        if word & 1 == 0:
            ptr, at = raw.allocate_at(s, size)
            if unlikely(ptr == NULL):
                ptr = REFUSED
            else:
                if unlikely(fill != 0):
                    zero_bytes(at, size)
                write_mark(at, size, obj)
            store8_release(handles, obj, ptr)
        else:
            ptr = wait_for(handles, obj)
            if ptr != REFUSED:
                bad += not verify_release(s, ptr, size, obj)
    return bad


@kernel
def verify_release(s: int, ptr: int, size: int, obj: int) -> bool:
    """Verify the stamp of memory and free it; whether both went well."""
    at = raw.address(s, ptr, size)
    is_good = at != 0 and has_mark(at, size, obj)
    return raw.release(s, ptr, size) and is_good


@Entry
def run_malloc_sizes(words: int, n: int, handles: int, rows: int, n_rows: int) -> int:
    """Run n events on malloc and free; returns how many frees found the memory changed.  The handle is the address."""
    sizes, fill = load8(rows, SIZES), load8(rows, FILL)
    bad = 0
    for i in range(n):
        word = load8(words, i)
        obj = word >> 32
        size = load4(sizes, obj)
        if word & 1 == 0:
            at = _malloc(size)
            if unlikely(at == 0):
                at = REFUSED
            else:
                if unlikely(fill != 0):
                    zero_bytes(at, size)
                write_mark(at, size, obj)
            store8_release(handles, obj, at)
        else:
            at = wait_for(handles, obj)
            if at != REFUSED:
                bad += not has_mark(at, size, obj)
                _free(at)
    return bad
