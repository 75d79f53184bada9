"""
Raw memory by size, in kernels: from a size to its class, from a ptr to its memory.

Above `heap`, `large` and `opening`, below `sizetype`.  A *class* is a cache whose records are bytes; it serves the sizes from
``low + 1`` to ``high``.  A *ptr* is a handle of its cache, with the slots of all classes numbered through: class k has the
slot numbers ``base`` to ``end``, nobody else's.  So a ptr alone tells its class, and a ptr in the wrong class is out of range
there: it is refused for sure, by the compare that the cache makes anyway.

The heaps of all classes lie in one region, those of one thread side by side: so a fast path computes where the heap of a size
stands from the thread and one look into the map of sizes, and finds all that it needs on the first line of that heap.
Whatever is unusual goes to the slow path of the same name, out of line and through the table in the block SIZES: sizes out of
bounds, a thread whose heap stands elsewhere, an empty or full magazine, a refused ptr, and every size while sizes are counted,
since the map then leads to class 0, where no heap is anybody's.
"""

from __future__ import annotations

from typing import Any

from ..core.calls import HASH_SHIFT, call_table, heap_at, my_heap, slow
from ..core.heap import BELOW_TOP, H_RECORDS, H_WORDS, SLOT_MASK, Heap, alloc, free_any, is_live, push
from ..core.heap import F_ADDRESS as CACHE_ADDRESS
from ..core.layout import NULL, TAKEN, C, H
from ..core.process import R_CONTROL, R_START, close, end_range, leave, part_with, unlock_registry
from ..core.slab import lock_word
from ..machine.compile import Entry, c_object, cold, int64, kernel, lean
from ..machine.memory import (
    advance,
    copy_bytes,
    fetch_add,
    frozen,
    heap_pointer,
    likely,
    load1,
    load2,
    load4,
    load8,
    load8_acquire,
    load8_relaxed,
    mixed,
    shift_right,
    store4,
    store8,
    thread_pointer,
    zero_bytes,
)
from ..machine.system import unmap_pages
from .large import allocate_large, free_all, free_large, large_at, large_scratch, page_bytes, pages_at, realloc_large
from .layout import (
    AT_SCRATCH,
    CLASS_BYTES,
    COUNTS,
    F_ADDRESS,
    F_ALLOCATE,
    F_FREE,
    F_SCRATCH,
    HEAPS_AT,
    K_ALIGNED,
    K_BASE,
    K_CONTROL,
    K_END,
    K_HIGH,
    K_LOW,
    K_STRIDE,
    LARGEST,
    MAP,
    MAX_ALIGN,
    MAX_BYTES,
    NATURAL,
    P_BYTES,
    P_MEMORY,
    PLAN_BYTES,
    PLANS,
    ROWS,
    ROWS_AT,
    S_CLOSED,
    S_LARGE,
    S_N_ROWS,
    S_NODES,
    S_OBSERVE,
    THREAD_BYTES,
    place_of,
)
from .opening import C_PROCESS, control_of, open_class

C_RECORDS = C["records"] // 8
H_BASE, H_STRIDE = H["base"], H["stride"]
_place_of: Any = kernel(place_of)


# --- Fast paths ---


@kernel
def my_heap_of(s: int, me: int, size: int) -> Heap:
    """Where the heap of a size and of the calling thread, `me`, stands, if nobody else's does."""
    first = s + HEAPS_AT + shift_right(mixed(me), HASH_SHIFT) * THREAD_BYTES
    return heap_pointer(first + (load2(s + MAP, _place_of(size)) << 6))


@lean
def allocate_at(s: int, size: int) -> Any:
    """Take memory: (its ptr, its address); (NULL, 0) if the size is out of bounds or there is no memory."""
    me = thread_pointer()
    heap = my_heap_of(s, me, size)
    if likely(load8_relaxed(heap, 0) == me):
        h = heap_at(heap)
        top = h.top
        slot, word = int64(0), int64(TAKEN)
        if likely(top != 0):
            slot = load4(advance(heap, BELOW_TOP), top)
            word = load4(frozen(heap, H_WORDS), slot)
        if likely(word & TAKEN == 0):
            h.top = top - 1
            store4(frozen(heap, H_WORDS), slot, word | 1)
            ptr = (word >> 1 << 32 | slot) + frozen(heap, H_BASE)
            return ptr, frozen(heap, H_RECORDS) + slot * frozen(heap, H_STRIDE)
    return allocate_at_out_of_line(s, size)


@kernel
def allocate(s: int, size: int) -> int:
    """Take memory: its ptr, or NULL."""
    return allocate_at(s, size)[0]


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
        return allocate_large(s, size, int64(0))
    if load8(s, S_OBSERVE) != 0:
        fetch_add(s + COUNTS + size * 8, 1)
    return take_from(s, row_of(s, size))


@Entry
def allocate_zeros(s: int, size: int) -> int:
    """Take large memory that reads as zeros: new pages; returns a ptr or NULL."""
    return allocate_large(s, size, int64(1)) if size > LARGEST and load8(s, S_CLOSED) == 0 else int64(NULL)


@Entry
def allocate_in(s: int, row: int) -> int:
    """Take memory of a class; returns a ptr or NULL."""
    return take_from(s, row)


@kernel
def take_from(s: int, row: int) -> int:
    """Take memory of a class, opened now if need be; returns a ptr or NULL."""
    handle = alloc(my_heap(control_of(s, row)))
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
    c = load8_acquire(row, K_CONTROL)
    return int64(1) if c != 0 and free_any(c, my_heap(c), ptr - load8(row, K_BASE)) else int64(0)


@Entry
def address_slow(s: int, ptr: int, size: int) -> int:
    """`address` of any ptr, by any thread; a size of 0 stands for any."""
    if ptr < 0:
        return int64(0)
    row = row_of_ptr(s, ptr)
    if row == 0:
        at = large_at(s, ptr, size)
        return pages_at(at, ptr) if at != 0 else int64(0)
    handle = ptr - load8(row, K_BASE)
    c = load8_acquire(row, K_CONTROL)
    if c == 0 or (size != 0 and not serves(row, size)) or not is_live(my_heap(c), handle):
        return int64(0)
    return load8(c, C_RECORDS) + (handle & SLOT_MASK) * load8(row, K_STRIDE)


@Entry
def scratch(s: int, ptr: int, size: int) -> int:
    """Set a fault, and zero scratch memory of the size for a ptr that was refused; 0 for what is no size."""
    c = control_of(s, row_of(s, size)) if 0 < size <= LARGEST else int64(0)
    if c != 0:
        return slow(my_heap(c), CACHE_ADDRESS, (ptr,))
    slow(my_heap(load8(s, S_LARGE)), CACHE_ADDRESS, (ptr,))
    return large_scratch(s, size) if 0 < size <= MAX_BYTES else int64(0)


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


@Entry
def close_sizes(s: int) -> int:
    """Close an allocator: it refuses everything from now on, and its memory is given back."""
    c = load8(s, S_LARGE)
    free_all(s)
    close(load8(c, C_PROCESS), c)  # by the registry's lock: who takes that afterwards opens no class any more
    row = s + ROWS
    for _ in range(load8(s, S_N_ROWS)):
        c = load8_acquire(row, K_CONTROL)
        if c != 0:
            close(load8(c, C_PROCESS), c)
        row += CLASS_BYTES
    return int64(0)


@Entry
def end_sizes(words: int) -> int:
    """The end of an allocator's memory: its classes leave the registry, and their ranges and large memory are unmapped."""
    s = load8(words, R_START)
    if s == 0:  # it was never there
        return int64(0)
    if load8(words, R_CONTROL) == 0:  # nor was an allocator in it
        end_range(words)
        return int64(0)
    free_all(s)
    scratch = load8(s + AT_SCRATCH, 0)
    if scratch != 0:
        store8(s + AT_SCRATCH, 0, 0)
        unmap_pages(scratch, load8(scratch, 0) + page_bytes)
    p = c_object("jitslab.process")
    lock_word(p)
    for number in range(load8(s, S_N_ROWS)):
        c = load8(s + ROWS + number * CLASS_BYTES, K_CONTROL)
        plan = s + PLANS + number * PLAN_BYTES
        if c != 0 and load8(plan, P_MEMORY) != 0:
            leave(p, c)
    unlock_registry(p)
    for number in range(load8(s, S_N_ROWS)):
        plan = s + PLANS + number * PLAN_BYTES
        if load8(plan, P_MEMORY) != 0:
            part_with(p, load8(plan, P_MEMORY), load8(plan, P_BYTES))
    end_range(words)
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
    "f_open": open_class,
}
