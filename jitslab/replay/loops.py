"""
The compiled loop of a replay: the events of a trace on slab caches or an allocator, and on the process's malloc.

An event is the word ``object << 32 | cache * ROW | op``.  `rows` is the thread's own table of the caches.  `handles` has the
handle of each object, 0 before its alloc; all threads share it.

Around the allocator the work is equal on both sides: load the event, write or verify the stamp, publish or look up the handle.
"""

from __future__ import annotations

from typing import Any

from numba import types

from ..core.calls import my_heap
from ..core.heap import address, alloc, free_any
from ..core.layout import NULL, SLOT_MASK, Control, Heap, control_at, heap_at
from ..machine.compile import Entry, kernel
from ..machine.memory import fibonacci_hash, load1, load8, store1, store8, unlikely, zero_bytes
from ..machine.pointers import address_of, i8s, load_acquire, store_release, u4s
from ..machine.system import relax
from ..sizes import kernels as raw

ROW = 64  # bytes of a cache's row in a thread's table: words CONTROL .. SIZE
CONTROL, HEAP, STRIDE, WIDTH, SIZE = range(5)  # WIDTH: bytes of a stamp
ALLOCATOR, SIZES, FILL = (
    0,
    1,
    2,
)  # words of the one row of a trace of malloc: the allocator; u4 sizes by object; 1: touch every byte
ROW_MASK = 0xFFFFFFC0
REFUSED = -1  # handle of an object that there was no memory for
_external: Any = types.ExternalFunction
_malloc = _external("malloc", types.int64(types.int64))
_free = _external("free", types.void(types.int64))


@kernel
def write_stamp(at: int, width: int, obj: int) -> None:
    """Stamp a record with its object's number, spread over all bits."""
    stamp = fibonacci_hash(obj + 1)
    if width == 8:
        store8(at, 0, stamp)
    elif width == 4:
        u4s(at)[0] = stamp >> 32
    else:
        store1(at, 0, stamp >> 56)


@kernel
def has_stamp(at: int, width: int, obj: int) -> bool:
    """Whether a record still has its stamp."""
    stamp = fibonacci_hash(obj + 1)
    if width == 8:
        return bool(load8(at, 0) == stamp)
    if width == 4:
        return bool(u4s(at)[0] == stamp >> 32 & 0xFFFFFFFF)
    return bool(load1(at, 0) == stamp >> 56 & 0xFF)


@kernel
def wait_for(handles: int, obj: int) -> int:
    """Return the handle of an object, as soon as its thread has published it."""
    tries = 0
    while True:
        handle: int = load_acquire(i8s(handles), obj)
        if handle != 0:
            return handle
        tries += 1
        relax(tries)


@kernel
def control_of(row: int) -> Control:
    """Return the CONTROL row of a cache."""
    return control_at(load8(row, CONTROL))


@kernel
def heap_of(row: int) -> Heap:
    """Return the calling thread's heap of a cache."""
    return heap_at(load8(row, HEAP))


@kernel
def find_heaps(rows: int, n_rows: int) -> None:
    """Note the calling thread's heap of every cache in its row."""
    for r in range(n_rows):
        row = rows + r * ROW
        store8(row, HEAP, address_of(my_heap(control_of(row))))


@kernel
def take_record(row: int) -> tuple[int, int]:
    """Allocate a record of a cache; returns its handle and address."""
    heap = heap_of(row)
    handle = alloc(heap)
    return handle, heap.records + (handle & SLOT_MASK) * load8(row, STRIDE)


@kernel
def give_record(row: int, handle: int, obj: int) -> bool:
    """Verify a record's stamp and free it; whether both went well."""
    heap = heap_of(row)
    is_good = has_stamp(address(heap, handle, load8(row, STRIDE)), load8(row, WIDTH), obj)
    return free_any(control_of(row), heap, handle) and is_good


@kernel
def give_memory(allocator: int, ptr: int, size: int, width: int, obj: int) -> bool:
    """Verify the stamp of memory of an allocator and free it; whether both went well."""
    at = raw.address(allocator, ptr, size)
    is_good = at != 0 and has_stamp(at, width, obj)
    return raw.release(allocator, ptr, size) and is_good


@kernel
def give_malloc(at: int, width: int, obj: int) -> bool:
    """Verify the stamp of memory of malloc and free it; whether the stamp was there."""
    is_good = has_stamp(at, width, obj)
    _free(at)
    return is_good


def loop(is_malloc: bool, has_caches: bool) -> Entry:
    """Return the loop of one side over traces of one kind; the branches on its kind are gone when it is compiled."""

    @Entry
    def run(words: int, n: int, handles: int, rows: int, n_rows: int) -> int:
        """Run n events; returns how many frees found the object changed, or were refused."""
        allocator, sizes, fill = load8(rows, ALLOCATOR), load8(rows, SIZES), load8(rows, FILL)
        if has_caches and not is_malloc:
            find_heaps(rows, n_rows)
        bad = 0
        for i in range(n):
            word = load8(words, i)
            row, obj = rows + (word & ROW_MASK), word >> 32
            size = load8(row, SIZE) if has_caches else u4s(sizes)[obj]
            width = load8(row, WIDTH) if has_caches else 8 if size >= 8 else 1
            if word & 1 == 0:
                if is_malloc:
                    handle = at = _malloc(size)
                elif has_caches:
                    handle, at = take_record(row)
                else:
                    handle, at = raw.allocate_at(allocator, size)
                if unlikely(handle == NULL):
                    handle = REFUSED
                else:
                    if not has_caches and unlikely(fill != 0):
                        zero_bytes(at, size)
                    write_stamp(at, width, obj)
                store_release(i8s(handles), obj, handle)
            else:
                handle = wait_for(handles, obj)
                if handle == REFUSED:
                    continue
                if is_malloc:
                    bad += not give_malloc(handle, width, obj)
                elif has_caches:
                    bad += not give_record(row, handle, obj)
                else:
                    bad += not give_memory(allocator, handle, size, width, obj)
        return bad

    return run


run_slabs, run_malloc = loop(False, True), loop(True, True)
run_sizes, run_malloc_sizes = loop(False, False), loop(True, False)
