"""
Raw memory by size, in kernels: from a size to its class, from a ptr to its memory.

Above `heap` and `_pages`, below `sizetype`.  A *class* is a cache whose records are bytes; it serves the sizes from
``low + 1`` to ``high``.  A *ptr* is a handle of its cache, with the slots of all classes numbered through: class k has the
slot numbers ``base`` to ``end``, nobody else's.  So a ptr alone tells its class, and a ptr in the wrong class is out of range
there: it is refused for sure, by the compare that the cache makes anyway.

The heaps of all classes lie in one region, those of one thread side by side: so a fast path computes where the heap of a size
stands from the thread and one look into the map of sizes, and finds all that it needs on the first line of that heap.
Whatever is unusual goes to the slow path of the same name, out of line and through the table in the block SIZES: sizes out of
bounds, a thread whose heap stands elsewhere, an empty or full magazine, a refused ptr, and every size while sizes are counted,
since the map then leads to class 0, where no heap is anybody's.

Memory above the largest class is pages of its own.  A slot of the cache `large` describes it, so its ptr is checked as any other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _os
from ._native import (
    HASH_SHIFT,
    Entry,
    call_table,
    cold,
    compare_exchange,
    copy_bytes,
    fetch_add,
    frozen,
    heap_at,
    heap_pointer,
    int64,
    kernel,
    lean,
    likely,
    load1,
    load2,
    load8,
    load8_acquire,
    load8_relaxed,
    mixed,
    my_heap,
    shift_right,
    slow,
    store4,
    store8,
    store8_release,
    thread_pointer,
    zero_bytes,
)
from ._os import MASK_BITS, give_back
from ._pages import map_pages, map_spare_pages, move_pages, place_pages, unmap_pages
from .heap import F_ADDRESS as CACHE_ADDRESS
from .heap import H_RECORDS, H_WORDS, SLOT_MASK, Heap, alloc, free_any, is_live, push, uppermost
from .layout import HEAP_BYTES, HEAP_ROWS, LINE, NULL, PAGE, TAKEN, C, H, offsets, record, round_up

GRANULE = 8  # bytes: what the map tells apart up to FINE
FINE = 1024  # above, classes are odd numbers of lines, which lie two lines apart
MAX_CLASSES = 256  # rows: a byte of the map names one
NATURAL, MAX_ALIGN = 16, PAGE  # of every class of the fixed table; most that can be asked for
MAX_BYTES = 1 << 46  # most bytes of one allocation
LARGEST = (1 << 20) + LINE  # largest size of a class
CLASS_BYTES, LARGE_BYTES = 64, 32  # of their rows

CLASS = record(
    # Frozen while the class is used.
    ("base", "i8"),  # what is added to a handle to get a ptr: number of the first slot
    ("stride", "i8"),  # bytes from slot to slot
    ("control", "i8"),  # address of the cache's control block
    ("end", "i8"),  # number after the last slot's
    ("low", "i8"),  # the class serves sizes above this
    ("high", "i8"),  # and up to this
    ("is_aligned", "i8"),  # 1: it serves all sizes that alignments lead to it
    ("pad", "i8"),
)
SIZES = record(
    ("f_allocate", "i8"),  # entry points of the slow paths
    ("f_free", "i8"),
    ("f_address", "i8"),
    ("f_realloc", "i8"),
    ("f_scratch", "i8"),
    ("n_rows", "i8"),
    ("large", "i8"),  # address of the control block of the cache of large memory
    ("large_base", "i8"),  # number of its first slot
    ("observe", "i8"),  # 1: sizes are counted
    ("closed", "i8"),
    ("large_bytes", "i8"),  # bytes of pages in large memory, now
    ("mode", "i8"),  # how the pages of large memory are placed, for mbind(2); 0: where they are first written to
    ("mask", "i8", (MASK_BITS // 64,)),  # one bit a node, for that
    (
        "scratch",
        "i8",
    ),  # address of the scratch pages for refused ptrs of large memory, 0: none yet; their size is their first word
    ("nodes", "i8"),  # most array sets of a class
    ("pad", "i8", (2,)),
)
LARGE = record(
    ("address", "i8"),  # of the pages; 0 from the instant that a free has taken them
    ("bytes", "i8"),  # of the pages
    ("asked", "i8"),
    ("hold", "i8"),  # number of the array in Python that keeps the pages mapped, 0: none
)
S, K, L = offsets(SIZES), offsets(CLASS), offsets(LARGE)

S_N_ROWS, S_LARGE, S_LARGE_BASE, S_OBSERVE, S_CLOSED, S_MODE = (
    S[name] // 8 for name in ("n_rows", "large", "large_base", "observe", "closed", "mode")
)
S_NODES = S["nodes"]
F_ALLOCATE, F_FREE, F_ADDRESS, F_REALLOC, F_SCRATCH = (
    S[name] for name in ("f_allocate", "f_free", "f_address", "f_realloc", "f_scratch")
)
K_BASE, K_STRIDE, K_CONTROL, K_END, K_LOW, K_HIGH, K_ALIGNED = (
    K[name] // 8 for name in ("base", "stride", "control", "end", "low", "high", "is_aligned")
)
H_BASE, H_STRIDE = H["base"], H["stride"]
L_ADDRESS, L_BYTES, L_ASKED, L_HOLD = (L[name] // 8 for name in ("address", "bytes", "asked", "hold"))
AT_HOLD, AT_LARGE_BYTES, AT_MASK, AT_SCRATCH = L["hold"], S["large_bytes"], S["mask"], S["scratch"]
MOVING = -1  # number of no array: a realloc has the pages
C_RECORDS, C_CLOSED = C["records"] // 8, C["closed"] // 8
assert (CLASS.itemsize, LARGE.itemsize) == (CLASS_BYTES, LARGE_BYTES)
page_bytes = _os.page_bytes
# What follows the block, at fixed distances: no fast path loads an address that it can compute.
ROWS = SIZES.itemsize  # the CLASS rows
PLACES = 8 * 1024 + 128  # of the map, at least: see `place_of`
ROWS_AT = ROWS + MAX_CLASSES * CLASS_BYTES  # u1 a place: the row of a size
MAP = ROWS_AT + round_up(PLACES, LINE)  # u2 a place: lines from a thread's first heap to the size's; 0 while sizes are counted
COUNTS = MAP + round_up(2 * PLACES, LINE)  # i8 a size: how often it was asked for
HEAPS_AT = round_up(COUNTS + 8 * (LARGEST + LINE), 64 * 1024)  # the heaps: those of a thread side by side, one a row
HEAP_LINES = HEAP_BYTES // LINE
THREAD_BYTES = MAX_CLASSES * HEAP_BYTES
SIZES_BYTES = HEAPS_AT + HEAP_ROWS * THREAD_BYTES


# --- Fast paths ---


def place_of(size: int) -> int:
    """Return where the map has a size of 0 to LARGEST."""
    if size <= FINE:
        return (size + (GRANULE - 1)) >> 3
    return ((size + (LINE - 1)) >> 7) + ((FINE >> 3) + 1 - (FINE >> 7))


_place_of: Any = kernel(place_of)


@kernel
def my_heap_of(s: int, me: int, size: int) -> Heap:
    """Where the heap of a size and of the calling thread, `me`, stands, if nobody else's does."""
    first = s + HEAPS_AT + shift_right(mixed(me), HASH_SHIFT) * THREAD_BYTES
    place = int64(0)  # of sizes out of bounds, and of class 0
    if likely(np.uint64(size) <= np.uint64(LARGEST)):
        place = _place_of(size)
    return heap_pointer(first + (load2(s + MAP, place) << 6))


@lean
def allocate(s: int, size: int) -> int:
    """Take memory of `size` bytes: a ptr, or NULL if the size is out of bounds or there is no memory."""
    me = thread_pointer()
    heap = my_heap_of(s, me, size)
    if likely(load8_relaxed(heap, 0) == me):
        slot, word = uppermost(heap)
        if likely(word & TAKEN == 0):
            heap_at(heap).top -= 1
            store4(frozen(heap, H_WORDS), slot, word | 1)
            return (word >> 1 << 32 | slot) + frozen(heap, H_BASE)
    return allocate_out_of_line(s, size)


@lean
def allocate_at(s: int, size: int) -> Any:
    """Take memory as `allocate` does; returns (ptr, its address), (NULL, 0) if there is none."""
    me = thread_pointer()
    heap = my_heap_of(s, me, size)
    if likely(load8_relaxed(heap, 0) == me):
        slot, word = uppermost(heap)
        if likely(word & TAKEN == 0):
            heap_at(heap).top -= 1
            store4(frozen(heap, H_WORDS), slot, word | 1)
            ptr = (word >> 1 << 32 | slot) + frozen(heap, H_BASE)
            return ptr, frozen(heap, H_RECORDS) + slot * frozen(heap, H_STRIDE)
    return allocate_at_out_of_line(s, size)


@lean
def release(s: int, ptr: int, size: int) -> bool:
    """Free memory; False, and nothing changed, if the ptr is refused or is of another size."""
    me = thread_pointer()
    heap = my_heap_of(s, me, size)
    if likely(load8_relaxed(heap, 0) == me):
        if likely(frozen(s, S_NODES) == 1):
            if likely(push(heap, ptr - frozen(heap, H_BASE))):
                return True
    return release_out_of_line(s, ptr, size)


@lean
def address(s: int, ptr: int, size: int) -> int:
    """Return the address of live memory; 0 if the ptr is refused."""
    me = thread_pointer()
    heap = my_heap_of(s, me, size)
    if likely(load8_relaxed(heap, 0) == me):
        handle = ptr - frozen(heap, H_BASE)
        if likely(is_live(heap, handle)):
            return frozen(heap, H_RECORDS) + (handle & SLOT_MASK) * frozen(heap, H_STRIDE)
    return address_out_of_line(s, ptr, size)


@kernel
def address_or_scratch(s: int, ptr: int, size: int) -> int:
    """Return the address of live memory; if the ptr is refused, that of as much zeroed scratch memory, and a fault is set."""
    at = address(s, ptr, size)
    return at if likely(at != 0) else call_table(s, F_SCRATCH, (ptr, size))


# --- Out of line ---


@cold
def allocate_out_of_line(s: int, size: int) -> int:
    """`allocate` of what is unusual."""
    return call_table(s, F_ALLOCATE, (size,))


@cold
def allocate_at_out_of_line(s: int, size: int) -> Any:
    """`allocate_at` of what is unusual."""
    ptr = call_table(s, F_ALLOCATE, (size,))
    return ptr, call_table(s, F_ADDRESS, (ptr, size)) if ptr != NULL else int64(0)


@cold
def release_out_of_line(s: int, ptr: int, size: int) -> bool:
    """`release` of what is unusual: by a full magazine, or with several array sets, still in the thread's own heap."""
    me = thread_pointer()
    heap = my_heap_of(s, me, size)
    if load8_relaxed(heap, 0) == me and free_any(heap_at(heap).control, heap, ptr - frozen(heap, H_BASE)):
        return True
    return call_table(s, F_FREE, (ptr, size)) != 0


@cold
def address_out_of_line(s: int, ptr: int, size: int) -> int:
    """`address` of what is unusual."""
    return call_table(s, F_ADDRESS, (ptr, size)) if size > 0 else int64(0)


# --- Which class ---


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
def row_of(s: int, size: int) -> int:
    """Return the row of a size that is within bounds."""
    return s + ROWS + load1(s + ROWS_AT, _place_of(size)) * CLASS_BYTES


@kernel
def row_of_ptr(s: int, ptr: int) -> int:
    """Return the row of the class whose slots hold a ptr's; 0: none."""
    slot = ptr & SLOT_MASK
    row = s + ROWS
    for _ in range(load8(s, S_N_ROWS)):
        if load8(row, K_BASE) <= slot < load8(row, K_END):
            return row
        row += CLASS_BYTES
    return int64(0)


@kernel
def serves(row: int, size: int) -> bool:
    """Whether the class could have been given for that size."""
    if load8(row, K_LOW) < size <= load8(row, K_HIGH):
        return True
    if load8(row, K_ALIGNED) != 0 and 0 < size <= load8(row, K_HIGH):
        align = int64(NATURAL)
        while align <= MAX_ALIGN:
            if _quarter_size(size, align) == load8(row, K_HIGH):
                return True
            align *= 2
    return False


# --- Slow paths ---


@Entry
def allocate_slow(s: int, size: int) -> int:
    """`allocate` of any size, by any thread."""
    if size <= 0 or load8(s, S_CLOSED) != 0:
        return int64(NULL)
    if size > LARGEST:
        return allocate_large(s, size)
    if load8(s, S_OBSERVE) != 0:
        fetch_add(s + COUNTS + size * 8, 1)
    row = row_of(s, size)
    return take_from(row)


@Entry
def allocate_in(row: int) -> int:
    """Take memory of a class; returns a ptr or NULL."""
    return take_from(row)


@kernel
def take_from(row: int) -> int:
    """Take memory of a class; returns a ptr or NULL."""
    handle = alloc(my_heap(load8(row, K_CONTROL)))
    return handle + load8(row, K_BASE) if handle != NULL else int64(NULL)


@Entry
def free_slow(s: int, ptr: int, size: int) -> int:
    """`release` of any ptr, by any thread; 1: freed."""
    if ptr < 0 or size <= 0:
        return int64(0)
    row = row_of_ptr(s, ptr)
    if row == 0:
        return free_large(s, ptr, size)
    if not serves(row, size):
        return int64(0)
    c = load8(row, K_CONTROL)
    return int64(1) if free_any(c, my_heap(c), ptr - load8(row, K_BASE)) else int64(0)


@Entry
def address_slow(s: int, ptr: int, size: int) -> int:
    """`address` of any ptr, by any thread; a size of 0 stands for any."""
    if ptr < 0:
        return int64(0)
    row = row_of_ptr(s, ptr)
    if row == 0:
        at = large_at(s, ptr, size)
        return load8_acquire(at, L_ADDRESS) if at != 0 else int64(0)
    handle = ptr - load8(row, K_BASE)
    if (size != 0 and not serves(row, size)) or not is_live(my_heap(load8(row, K_CONTROL)), handle):
        return int64(0)
    return load8(load8(row, K_CONTROL), C_RECORDS) + (handle & SLOT_MASK) * load8(row, K_STRIDE)


@Entry
def scratch(s: int, ptr: int, size: int) -> int:
    """Set a fault, and zero scratch memory of the size for a ptr that was refused; 0 for what is no size."""
    if not 0 < size <= LARGEST:
        slow(my_heap(load8(s, S_LARGE)), CACHE_ADDRESS, (ptr,))
        return large_scratch(s, size) if 0 < size <= MAX_BYTES else int64(0)
    row = row_of(s, size)
    return slow(my_heap(load8(row, K_CONTROL)), CACHE_ADDRESS, (ptr,))


@Entry
def realloc(s: int, ptr: int, old: int, new: int) -> int:
    """
    Change the size of memory; the content is kept.  Returns the ptr from now on, or NULL: refused or no memory, nothing changed.

    In place where the class serves both sizes; large memory is moved by its pages, else the bytes are copied.
    """
    if old <= 0 or new <= 0 or ptr < 0 or load8(s, S_CLOSED) != 0:
        return int64(NULL)
    source = address(s, ptr, old)
    if source == 0:
        return int64(NULL)
    row = row_of_ptr(s, ptr)
    if row == 0:
        return realloc_large(s, ptr, old, new)
    if serves(row, new):
        return ptr
    to = allocate(s, new)
    if to == NULL:
        return int64(NULL)
    copy_bytes(address(s, to, new), source, min(old, new))
    release(s, ptr, old)
    return to


# --- Large memory ---


@kernel
def large_at(s: int, ptr: int, size: int) -> int:
    """Return the address of the row of large memory, 0 if the ptr or its size is refused; a size of 0 stands for any."""
    handle = ptr - load8(s, S_LARGE_BASE)
    control = load8(s, S_LARGE)
    if not is_live(my_heap(control), handle):
        return int64(0)
    at = load8(control, C_RECORDS) + (handle & SLOT_MASK) * LARGE_BYTES
    if load8_acquire(at, L_ADDRESS) == 0 or (size != 0 and load8(at, L_ASKED) != size):
        return int64(0)
    return at


@kernel
def whole_pages(size: int) -> int:
    """Return the size in whole pages."""
    return (size + page_bytes - 1) & -page_bytes


@kernel
def allocate_large(s: int, size: int) -> int:
    """Take pages of their own; returns a ptr or NULL."""
    if size > MAX_BYTES:
        return int64(NULL)
    n = whole_pages(size)
    pages = map_pages(n)
    if pages == 0:
        return int64(NULL)
    if load8(s, S_MODE) != 0:
        place_pages(pages, n, load8(s, S_MODE), s + AT_MASK)
    control = load8(s, S_LARGE)
    handle = alloc(my_heap(control))
    if handle == NULL:
        unmap_pages(pages, n)
        return int64(NULL)
    at = load8(control, C_RECORDS) + (handle & SLOT_MASK) * LARGE_BYTES
    store8(at, L_BYTES, n)
    store8(at, L_ASKED, size)
    store8(at, L_HOLD, 0)
    store8_release(at, L_ADDRESS, pages)
    fetch_add(s + AT_LARGE_BYTES, n)
    return handle + load8(s, S_LARGE_BASE)


@kernel
def free_large(s: int, ptr: int, size: int) -> int:
    """
    Give pages back; 1: freed.  Of several at the same instant one gets them: who makes the address 0.

    Pages that an array in Python shows lose their content, and stay mapped until the array is gone.
    """
    at = large_at(s, ptr, size)
    if at == 0:
        return int64(0)
    pages = load8_acquire(at, L_ADDRESS)
    if pages == 0 or not compare_exchange(at, pages, 0):
        return int64(0)
    drop_large(s, ptr, at, pages)
    return int64(1)


@kernel
def drop_large(s: int, ptr: int, at: int, pages: int) -> None:
    """Give back pages that the caller has taken: by making the address in their row, `at`, 0."""
    n = load8(at, L_BYTES)
    fetch_add(s + AT_LARGE_BYTES, -n)
    hold = load8_acquire(at, L_HOLD)
    while not compare_exchange(at + AT_HOLD, hold, 0):
        hold = load8_acquire(at, L_HOLD)
    if hold != 0:
        give_back(pages, n)
    else:
        unmap_pages(pages, n)
    free_any(load8(s, S_LARGE), my_heap(load8(s, S_LARGE)), ptr - load8(s, S_LARGE_BASE))


@kernel
def realloc_large(s: int, ptr: int, old: int, new: int) -> int:
    """
    `realloc` of large memory: its pages are taken, as by a free, and put back or given up; meanwhile all others are refused.

    Moved by the system where that can be; pages that an array in Python shows are copied.
    """
    at = large_at(s, ptr, old)
    pages = load8_acquire(at, L_ADDRESS) if at != 0 else int64(0)
    if pages == 0 or not compare_exchange(at, pages, 0):
        return int64(NULL)
    is_mine = compare_exchange(at + AT_HOLD, 0, int64(MOVING))
    n = load8(at, L_BYTES)
    moved, size = pages, whole_pages(new)
    if is_mine and LARGEST < new <= MAX_BYTES:
        if size != n:
            moved = move_pages(pages, n, size)
        if moved != 0:
            store8(at, L_BYTES, size)
            store8(at, L_ASKED, new)
            fetch_add(s + AT_LARGE_BYTES, size - n)
            store8_release(at, L_HOLD, 0)
            store8_release(at, L_ADDRESS, moved)
            return ptr
    if is_mine:
        store8_release(at, L_HOLD, 0)
    to = allocate(s, new)
    if to == NULL:
        store8_release(at, L_ADDRESS, pages)
        return int64(NULL)
    copy_bytes(address(s, to, new), pages, min(old, new))
    drop_large(s, ptr, at, pages)
    return to


@kernel
def large_scratch(s: int, size: int) -> int:
    """Return the address of zeroed scratch pages of a size; they grow, and the smaller ones stay: somebody may be using them."""
    n = whole_pages(size)
    while True:
        at = load8_acquire(s + AT_SCRATCH, 0)
        if at != 0 and load8(at, 0) >= n:
            give_back(at + page_bytes, n)
            return at + page_bytes
        new = map_spare_pages(n + page_bytes)
        if new == 0:
            return int64(0)
        store8(new, 0, n)
        if compare_exchange(s + AT_SCRATCH, at, new):
            return new + page_bytes
        unmap_pages(new, n + page_bytes)


@Entry
def hold_pages(s: int, ptr: int, size: int, number: int) -> int:
    """Have an array keep the pages of large memory mapped; returns their address, 0: refused, or another array does."""
    at = large_at(s, ptr, size)
    if at == 0:
        return int64(0)
    pages = load8_acquire(at, L_ADDRESS)
    if not compare_exchange(at + AT_HOLD, 0, number):
        return int64(0)
    n = load8(at, L_BYTES)  # from here on no realloc changes it
    if fetch_add(at, 0) == pages:  # again, after the store above: a free at the same instant sees the number, or is seen
        return pages
    if not compare_exchange(at + AT_HOLD, number, 0) and pages != 0:
        unmap_pages(pages, n)
    return int64(0)


@Entry
def let_pages_go(s: int, slot: int, number: int, pages: int, n: int) -> int:
    """The array that kept pages mapped is gone: they are the slot's again, or, if that was freed, unmapped."""
    at = load8(load8(s, S_LARGE), C_RECORDS) + slot * LARGE_BYTES
    if not compare_exchange(at + AT_HOLD, number, 0):
        unmap_pages(pages, n)
        return int64(1)
    return int64(0)


@Entry
def zero(at: int, n: int) -> int:
    """Zero n bytes."""
    zero_bytes(at, n)
    return int64(0)


TABLE: dict[str, Entry] = {
    "f_allocate": allocate_slow,
    "f_free": free_slow,
    "f_address": address_slow,
    "f_realloc": realloc,
    "f_scratch": scratch,
}
