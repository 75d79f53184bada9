"""
Raw memory by size, in kernels: from a size to its class, from a ptr to its memory.

A class serves the sizes from ``low + 1`` to ``high``.  A *ptr* is a handle whose slot number is unique in the allocator: class k
has the slot numbers from ``ptr_base`` up to ``end``.  So the ptr alone names its class, and the cache of another class refuses it
by the compare with its limit that it makes anyway.

The heaps of all classes lie in one region, those of one thread side by side.  So a fast path computes the address of its heap
from the thread and one look into the map, and finds all that it needs on the first line of that heap.  Everything unusual goes to
the slow path of the same name, out of line and through the table of entry points: a size out of bounds, a thread whose heap
stands elsewhere, an empty or full magazine, a refused ptr.  While sizes are counted every size is unusual, since the map then
leads to class 0, where no thread has a heap.
"""

from __future__ import annotations

from functools import cache as cached
from typing import Any

import numpy as np

from ..core.calls import call, my_heap, slow
from ..core.heap import alloc, free_any, is_live, push
from ..core.layout import HASH_SHIFT, LINE, NOT_FREE, NULL, SLOT_MASK, Heap, control_at, heap_at, range_at
from ..core.process import close, end_range, leave, part_with, the_process
from ..core.slab import lock_row, unlock_row
from ..machine.addresses import page_bytes
from ..machine.compile import Entry, cold, fill_table, kernel, lean
from ..machine.memory import copy_bytes, fibonacci_hash, likely, shift_right, thread_pointer, zero_bytes
from ..machine.pointers import address_of, fetch_add, i8s, load_acquire, load_relaxed, u1s, u2s
from ..machine.system import unmap_pages
from .large import allocate_large, free_all, free_large, is_large, large_scratch, pages_of, realloc_large
from .large import row_of_ptr as large_row_of_ptr
from .layout import (
    CLASS_BYTES,
    CLASS_OF_PLACE,
    CLASSES,
    COUNTS,
    HEAP_OF_PLACE,
    HEAPS_AT,
    LARGEST,
    MAX_ALIGN,
    MAX_BYTES,
    NATURAL,
    PLAN_BYTES,
    PLANS,
    SIZE_ENTRIES,
    THREAD_BYTES,
    Class,
    Sizes,
    class_at,
    place_of,
    plan_at,
    sizes_at,
)
from .opening import control_of, open_class

_place_of: Any = kernel(place_of)


# --- Fast paths ---


@kernel
def my_heap_of(s: int, me: int, size: int) -> Heap:
    """Return where the heap of thread `me` for a size should be; the caller must compare its owner."""
    first = s + HEAPS_AT + shift_right(fibonacci_hash(me), HASH_SHIFT) * THREAD_BYTES
    return heap_at(first + u2s(s + HEAP_OF_PLACE)[_place_of(size)] * LINE)


@lean
def allocate_at(s: int, size: int) -> Any:
    """Take memory; returns (ptr, address), or (NULL, 0) if the size is out of bounds or there is no memory."""
    me = thread_pointer()
    heap = my_heap_of(s, me, size)
    if likely(load_relaxed(heap, "owner") == me):
        top = heap.top
        slot, generation = 0, NOT_FREE
        if likely(top != 0):
            slot = heap.magazine[top - 1]
            generation = heap.generations[slot]
        if likely(generation & NOT_FREE == 0):
            heap.top = top - 1
            heap.generations[slot] = generation | 1
            ptr = (generation >> 1 << 32 | slot) + heap.ptr_base
            return ptr, heap.records + slot * heap.stride
    return allocate_at_out_of_line(s, size)


@kernel
def allocate(s: int, size: int) -> int:
    """Take memory; returns its ptr, or NULL."""
    return allocate_at(s, size)[0]


@lean
def release(s: int, ptr: int, size: int) -> bool:
    """Free memory; returns False, changing nothing, if the ptr is refused or is of another size."""
    me = thread_pointer()
    heap = my_heap_of(s, me, size)
    if likely(load_relaxed(heap, "owner") == me):
        if likely(sizes_at(s).nodes == 1):
            if likely(push(heap, ptr - heap.ptr_base)):
                return True
    return release_out_of_line(s, ptr, size)


@lean
def address(s: int, ptr: int, size: int) -> int:
    """Return the address of live memory; 0 if the ptr is refused."""
    me = thread_pointer()
    heap = my_heap_of(s, me, size)
    if likely(load_relaxed(heap, "owner") == me):
        handle = ptr - heap.ptr_base
        if likely(is_live(heap, handle)):
            return heap.records + (handle & SLOT_MASK) * heap.stride
    return address_out_of_line(s, ptr, size)


@kernel
def address_or_scratch(s: int, ptr: int, size: int) -> int:
    """Return the address of live memory; if the ptr is refused, that of as much zeroed scratch memory, and set a fault."""
    at = address(s, ptr, size)
    return at if likely(at != 0) else call(sizes_at(s), "scratch", (ptr, size))


# --- Out of line ---


@cold
def allocate_at_out_of_line(s: int, size: int) -> Any:
    """`allocate_at` in unusual cases."""
    ptr = call(sizes_at(s), "allocate", (size,))
    return ptr, call(sizes_at(s), "address", (ptr, size)) if ptr != NULL else 0


@cold
def release_out_of_line(s: int, ptr: int, size: int) -> bool:
    """`release` in unusual cases; a full magazine and several nodes still end in the thread's own heap."""
    me = thread_pointer()
    heap = my_heap_of(s, me, size)
    if load_relaxed(heap, "owner") == me and free_any(heap.control, heap, ptr - heap.ptr_base):
        return True
    return call(sizes_at(s), "free", (ptr, size)) != 0


@cold
def address_out_of_line(s: int, ptr: int, size: int) -> int:
    """`address` in unusual cases."""
    return call(sizes_at(s), "address", (ptr, size)) if size > 0 else 0


# --- From a size or a ptr to its class ---


def quarter_size(size: int, align: int) -> int:
    """Return the least of the sizes 4, 5, 6, 7 times a power of two, not below `size`, that is a multiple of `align`."""
    step = 1
    while step * 8 < max(size, align):
        step *= 2
    while True:
        for times in range(4, 9):
            n = step * times
            if n >= size and n % align == 0:
                return n
        step *= 2


_quarter_size: Any = kernel(quarter_size)


@kernel
def class_of(s: int, size: int) -> Class:
    """Return the row of the class that serves a size within bounds."""
    return class_at(s + CLASSES + u1s(s + CLASS_OF_PLACE)[_place_of(size)] * CLASS_BYTES)


@kernel
def class_of_ptr(sizes: Sizes, ptr: int) -> Class:
    """Return the row of the class that has the slot of a ptr; NULL: none."""
    slot = ptr & SLOT_MASK
    at = address_of(sizes) + CLASSES
    for _ in range(sizes.n_rows):
        if class_at(at).ptr_base <= slot < class_at(at).end:
            return class_at(at)
        at += CLASS_BYTES
    return class_at(0)


@kernel
def serves(row: Class, size: int) -> bool:
    """Whether a request of a size could have got memory of a class."""
    if row.low < size <= row.high:
        return True
    if row.is_aligned != 0 and 0 < size <= row.high:
        align = NATURAL
        while align <= MAX_ALIGN:
            if _quarter_size(size, align) == row.high:
                return True
            align *= 2
    return False


# --- Slow paths ---


@Entry
def allocate_slow(s: int, size: int) -> int:
    """`allocate` of any size, by any thread."""
    sizes = sizes_at(s)
    if size <= 0 or sizes.closed != 0:
        return NULL
    if size > LARGEST:
        return allocate_large(sizes, size, 0)
    if sizes.observe != 0:
        fetch_add(i8s(s + COUNTS), size, 1)
    return take_from(sizes, class_of(s, size))


@Entry
def allocate_zeros(s: int, size: int) -> int:
    """Take large memory in new pages, which read as zeros; returns a ptr or NULL."""
    sizes = sizes_at(s)
    return allocate_large(sizes, size, 1) if size > LARGEST and sizes.closed == 0 else NULL


@Entry
def allocate_in(s: int, k: int) -> int:
    """Take memory of a class; returns a ptr or NULL."""
    return take_from(sizes_at(s), class_at(k))


@kernel
def take_from(sizes: Sizes, row: Class) -> int:
    """Take memory of a class, opened now if needed; returns a ptr or NULL."""
    handle = alloc(my_heap(control_of(sizes, row)))
    return handle + row.ptr_base if handle != NULL else NULL


@Entry
def free_slow(s: int, ptr: int, size: int) -> int:
    """`release` of any ptr, by any thread; returns 1 if freed."""
    if ptr < 0 or size <= 0:
        return 0
    row = class_of_ptr(sizes_at(s), ptr)
    if address_of(row) == 0:
        return free_large(sizes_at(s), ptr, size)
    if not serves(row, size):
        return 0
    c = load_acquire(row, "control")
    if c == 0:
        return 0
    return 1 if free_any(control_at(c), my_heap(control_at(c)), ptr - row.ptr_base) else 0


@Entry
def address_slow(s: int, ptr: int, size: int) -> int:
    """`address` of any ptr, by any thread; a size of 0 stands for any."""
    if ptr < 0:
        return 0
    sizes = sizes_at(s)
    row = class_of_ptr(sizes, ptr)
    if address_of(row) == 0:
        return pages_of(large_row_of_ptr(sizes, ptr), ptr) if is_large(sizes, ptr, size) else 0
    handle = ptr - row.ptr_base
    c = load_acquire(row, "control")
    if c == 0 or (size != 0 and not serves(row, size)) or not is_live(my_heap(control_at(c)), handle):
        return 0
    return control_at(c).records + (handle & SLOT_MASK) * row.stride


@Entry
def scratch(s: int, ptr: int, size: int) -> int:
    """Set a fault, and zero scratch memory for a refused ptr; returns its address, or 0 if the size is invalid."""
    sizes = sizes_at(s)
    if 0 < size <= LARGEST:
        control = control_of(sizes, class_of(s, size))
        if address_of(control) != 0:
            return slow(my_heap(control), "address", (ptr,))
    slow(my_heap(sizes.large), "address", (ptr,))
    return large_scratch(sizes, size) if 0 < size <= MAX_BYTES else 0


@Entry
def realloc(s: int, ptr: int, old: int, new: int) -> int:
    """
    Change the size of memory and keep its content.  Returns the ptr from now on, or NULL: refused or no memory, nothing changed.

    If the class serves both sizes, the memory stays in place.  Pages of large memory are moved; otherwise the bytes are copied.
    """
    sizes = sizes_at(s)
    if old <= 0 or new <= 0 or ptr < 0 or sizes.closed != 0:
        return NULL
    source = address(s, ptr, old)
    if source == 0:
        return NULL
    row = class_of_ptr(sizes, ptr)
    if address_of(row) == 0:
        return realloc_large(sizes, ptr, old, new)
    if serves(row, new):
        return ptr
    to = allocate(s, new)
    if to == NULL:
        return NULL
    copy_bytes(address(s, to, new), source, min(old, new))
    release(s, ptr, old)
    return to


# --- Ends ---


@Entry
def close_sizes(s: int) -> int:
    """Close an allocator: it refuses everything from now on, and its memory is given back."""
    sizes = sizes_at(s)
    free_all(sizes)
    close(sizes.large)  # takes the registry's lock: a thread that takes it afterwards opens no class
    for number in range(sizes.n_rows):
        c = load_acquire(class_at(s + CLASSES + number * CLASS_BYTES), "control")
        if c != 0:
            close(control_at(c))
    return 0


@Entry
def end_sizes(range_: int) -> int:
    """End an allocator's memory: its classes leave the registry, and their ranges and large memory are given back."""
    memory = range_at(range_)
    if memory.start == 0:  # nothing was mapped
        return 0
    if memory.control == 0:  # no allocator was made in it
        end_range(memory)
        return 0
    s = memory.start
    sizes = sizes_at(s)
    free_all(sizes)
    spare = sizes.scratch
    if spare != 0:
        sizes.scratch = 0
        unmap_pages(spare, i8s(spare)[0] + page_bytes)
    process = the_process()
    lock_row(process)
    for number in range(sizes.n_rows):
        c = class_at(s + CLASSES + number * CLASS_BYTES).control
        if c != 0 and plan_at(s + PLANS + number * PLAN_BYTES).memory != 0:
            leave(process, control_at(c))
    unlock_row(process)
    for number in range(sizes.n_rows):
        plan = plan_at(s + PLANS + number * PLAN_BYTES)
        if plan.memory != 0:
            part_with(process, plan.memory, plan.bytes)
    end_range(memory)
    return 0


@Entry
def zero(at: int, n: int) -> int:
    """Zero n bytes."""
    zero_bytes(at, n)
    return 0


TABLE: dict[str, Entry] = {
    "allocate": allocate_slow,
    "free": free_slow,
    "address": address_slow,
    "realloc": realloc,
    "scratch": scratch,
    "open": open_class,
}
table = np.zeros(1, SIZE_ENTRIES)  # one a process


@cached
def entries_address() -> int:
    """Return the address of the table of entry points, which the first allocator fills in."""
    fill_table(table, TABLE)
    return int(table.ctypes.data)
