"""
Memory above the largest size class: pages of its own, in kernels.

Above `heap` and `_pages`, below `raw`.  A slot of the cache `large` describes each piece, so its ptr is checked as any other.
Pages that are freed are *parked*, up to PARKED_BYTES of them, for the next piece that they fit: a system call and the faults of
new pages cost more than most programs do with them.
"""

from __future__ import annotations

from . import _os
from ._native import (
    Entry,
    call_table,
    compare_exchange,
    copy_bytes,
    fetch_add,
    frozen,
    int64,
    kernel,
    load8,
    load8_acquire,
    my_heap,
    store8,
    store8_release,
)
from ._os import give_back
from ._pages import CAN_MAP, map_pages, map_spare_pages, move_pages, place_pages, unmap_pages
from .heap import SLOT_MASK, alloc, free_any, is_live
from .layout import NULL, C
from .rawlayout import (
    AT_HAND,
    AT_HOLD,
    AT_LARGE_BYTES,
    AT_MASK,
    AT_PARKED,
    AT_PARKED_BYTES,
    AT_SCRATCH,
    F_ADDRESS,
    F_ALLOCATE,
    L_ADDRESS,
    L_ASKED,
    L_BYTES,
    L_HOLD,
    LARGE_BYTES,
    LARGEST,
    MAX_BYTES,
    MOVING,
    PARKED,
    PARKED_BYTES,
    PARKED_PAGE,
    PARKED_SHIFT,
    S_CLOSED,
    S_LARGE,
    S_LARGE_BASE,
    S_MODE,
    S_NODES,
)

C_RECORDS = C["records"] // 8
page_bytes = _os.page_bytes


# --- Pieces ---


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
def allocate_large(s: int, size: int, fresh: int) -> int:
    """Take pages of their own, new ones that read as zeros if `fresh` is not 0; returns a ptr or NULL."""
    if size > MAX_BYTES:
        return int64(NULL)
    n = whole_pages(size)
    pages = parked_pages(s, n) if fresh == 0 else int64(0)
    if pages == 0:
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
    elif not park(s, pages, n):
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
    to = call_table(s, F_ALLOCATE, (new,))
    if to == NULL:
        store8_release(at, L_ADDRESS, pages)
        return int64(NULL)
    copy_bytes(call_table(s, F_ADDRESS, (to, new)), pages, min(old, new))
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


# --- Parked pages: taken and put by compare and exchange, so that no fork and no dead thread can leave a lock behind ---


@kernel
def park(s: int, pages: int, n: int) -> bool:
    """
    Keep freed pages for the next piece that they fit; False: they are to be given back.

    Not with several nodes, where they may be far from the next owner.
    """
    if not CAN_MAP or load8(s, S_CLOSED) != 0 or frozen(s, S_NODES) > 1:
        return False
    if fetch_add(s + AT_PARKED_BYTES, n) + n <= PARKED_BYTES:
        word = pages >> PARKED_PAGE << PARKED_SHIFT | n >> PARKED_PAGE
        for k in range(PARKED):
            if compare_exchange(s + AT_PARKED + 8 * k, 0, word):
                if load8_acquire(s, S_CLOSED) != 0:  # meanwhile: `close` may have looked before
                    give_up(s, int64(k))
                return True
    fetch_add(s + AT_PARKED_BYTES, -n)
    return False


@kernel
def take_parked(s: int, k: int, word: int) -> bool:
    """Take the pages in a place; False: somebody else did."""
    if not compare_exchange(s + AT_PARKED + 8 * k, word, 0):
        return False
    fetch_add(s + AT_PARKED_BYTES, -parked_size(word))
    return True


@kernel
def parked_size(word: int) -> int:
    """Bytes of a parked piece."""
    return (word & ((1 << PARKED_SHIFT) - 1)) << PARKED_PAGE


@kernel
def parked_pages(s: int, n: int) -> int:
    """
    Return the address of n bytes of parked pages, the end of a larger piece given back; 0: none fit.

    What fits nobody goes: one piece each time that there is none for who asks.
    """
    for k in range(PARKED):
        word = load8_acquire(s + AT_PARKED, k)
        size = parked_size(word)
        if n <= size <= n + (n >> 2) and take_parked(s, k, word):
            pages = word >> PARKED_SHIFT << PARKED_PAGE
            if size > n:
                unmap_pages(pages + n, size - n)
            return pages
    k = fetch_add(s + AT_HAND, 1) & (PARKED - 1)
    give_up(s, k)
    return int64(0)


@kernel
def give_up(s: int, k: int) -> None:
    """Give the pages in a place back to the system."""
    word = load8_acquire(s + AT_PARKED, k)
    if word != 0 and take_parked(s, k, word):
        unmap_pages(word >> PARKED_SHIFT << PARKED_PAGE, parked_size(word))


@Entry
def drop_parked(s: int) -> int:
    """Give all parked pages back to the system; returns the bytes that are left: others parked them meanwhile."""
    for k in range(PARKED):
        give_up(s, int64(k))
    return load8_acquire(s + AT_PARKED_BYTES, 0)
