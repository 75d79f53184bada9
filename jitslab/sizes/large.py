"""
Memory above the largest size class: pages of its own, in kernels.

Above `process` and `_pages`, below `raw`.  A slot of the cache `large` describes each piece, so its ptr is checked as any other.
Pages that are freed are *parked*, up to PARKED_BYTES of them, for the next piece that they fit: a system call and the faults of
new pages cost more than most programs do with them.

Pages that are parked come back at the same address, and often to the same slot.  So where a piece lies stands in its row as one
*word* with the low bits of its ptr's cycle: who takes the word by compare and exchange has taken the pages of that ptr, not those
of one that the slot was given to meanwhile.
"""

from __future__ import annotations

from typing import Any

from ..core.calls import call_table, control_at, my_heap
from ..core.heap import SLOT_MASK, alloc, free_any, is_live
from ..core.layout import NULL, C
from ..core.process import let_all_kept_go, part_with, part_with_moved
from ..core.slab import C_LIMIT, C_NODES, C_WORDS, set_at
from ..machine import addresses
from ..machine.compile import Entry, int64, kernel
from ..machine.memory import (
    compare_exchange,
    copy_bytes,
    fetch_add,
    frozen,
    load4,
    load8,
    load8_acquire,
    shift_right,
    store8,
    store8_release,
)
from ..machine.system import CAN_MAP, give_back, map_pages, map_spare_pages, move_pages, place_pages, unmap_pages
from .layout import (
    A_BLOCK,
    A_BYTES,
    A_NUMBER,
    A_PAGES,
    A_PTR,
    AT_HAND,
    AT_HOLD,
    AT_LARGE_BYTES,
    AT_MASK,
    AT_PARKED,
    AT_SCRATCH,
    F_ADDRESS,
    F_ALLOCATE,
    L_ASKED,
    L_BYTES,
    L_HOLD,
    L_PAGES,
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
    TAG_BITS,
    TAG_MASK,
    parked_size,
)

C_RECORDS, C_PROCESS = C["records"] // 8, C["process"]
page_bytes = addresses.page_bytes
_parked_size: Any = kernel(parked_size)


# --- Pieces ---


@kernel
def as_word(pages: int, ptr: int) -> int:
    """Return what stands in the row of live memory."""
    return pages >> 3 << TAG_BITS | (ptr >> 32) & TAG_MASK


@kernel
def is_of(word: int, ptr: int) -> bool:
    """Whether a word, of pages or of an array that holds them, is of that ptr."""
    return word != 0 and (word ^ (ptr >> 32)) & TAG_MASK == 0


@kernel
def pages_at(at: int, ptr: int) -> int:
    """Return the address of the pages of a ptr whose row is at `at`; 0: they were taken."""
    word = load8_acquire(at, L_PAGES)
    return shift_right(word, TAG_BITS) << 3 if is_of(word, ptr) else int64(0)


@kernel
def take_pages(at: int, ptr: int) -> int:
    """Take the pages of a ptr whose row is at `at`: their address; 0: somebody else did."""
    pages = pages_at(at, ptr)
    return pages if pages != 0 and compare_exchange(at, as_word(pages, ptr), 0) else int64(0)


@kernel
def large_at(s: int, ptr: int, size: int) -> int:
    """Return the address of the row of large memory, 0 if the ptr or its size is refused; a size of 0 stands for any."""
    handle = ptr - load8(s, S_LARGE_BASE)
    control = load8(s, S_LARGE)
    if not is_live(my_heap(control), handle):
        return int64(0)
    at = load8(control, C_RECORDS) + (handle & SLOT_MASK) * LARGE_BYTES
    if pages_at(at, ptr) == 0 or (size != 0 and load8(at, L_ASKED) != size):
        return int64(0)
    return at


@kernel
def process_of(s: int) -> int:
    """Return the address of the PROCESS block."""
    return frozen(load8(s, S_LARGE), C_PROCESS)


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
            give_up_all(s)
            let_all_kept_go(process_of(s))
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
    store8(at, L_HOLD, 0)  # a fork may have left a mark
    ptr = handle + load8(s, S_LARGE_BASE)
    store8_release(at, L_PAGES, as_word(pages, ptr))
    fetch_add(s + AT_LARGE_BYTES, n)
    return ptr


@kernel
def free_large(s: int, ptr: int, size: int) -> int:
    """
    Give pages back; 1: freed.  Of several at the same instant one gets them: who makes the word 0.

    Pages that an array in Python shows lose their content, and stay mapped until the array is gone.
    """
    at = large_at(s, ptr, size)
    if at == 0:
        return int64(0)
    pages = take_pages(at, ptr)
    if pages == 0:
        return int64(0)
    drop_large(s, ptr, at, pages)
    return int64(1)


@kernel
def drop_large(s: int, ptr: int, at: int, pages: int) -> None:
    """Give back pages that the caller has taken: by making the word in their row, `at`, 0."""
    n = load8(at, L_BYTES)
    fetch_add(s + AT_LARGE_BYTES, -n)
    hold = fetch_add(at + AT_HOLD, 0)
    while is_of(hold, ptr) and not compare_exchange(at + AT_HOLD, hold, 0):
        hold = load8_acquire(at, L_HOLD)
    if is_of(hold, ptr):
        give_back(pages, n)
    elif not park(s, pages, n):
        part_with(process_of(s), pages, n)
    free_any(load8(s, S_LARGE), my_heap(load8(s, S_LARGE)), ptr - load8(s, S_LARGE_BASE))


@kernel
def realloc_large(s: int, ptr: int, old: int, new: int) -> int:
    """
    `realloc` of large memory: its pages are taken, as by a free, and put back or given up; meanwhile all others are refused.

    Moved by the system where that can be; pages that an array in Python shows are copied.
    """
    at = large_at(s, ptr, old)
    pages = take_pages(at, ptr) if at != 0 else int64(0)
    if pages == 0:
        return int64(NULL)
    is_mine = compare_exchange(at + AT_HOLD, 0, int64(MOVING))
    n = load8(at, L_BYTES)
    moved, size = pages, whole_pages(new)
    if is_mine and LARGEST < new <= MAX_BYTES:
        if size > n:
            moved = move_pages(pages, n, size)
            if moved != 0 and moved != pages:
                part_with_moved(process_of(s), pages, n)
        elif size < n:
            part_with(process_of(s), pages + size, n - size)
        if moved != 0:
            store8(at, L_BYTES, size)
            store8(at, L_ASKED, new)
            fetch_add(s + AT_LARGE_BYTES, size - n)
            store8_release(at, L_HOLD, 0)
            store8_release(at, L_PAGES, as_word(moved, ptr))
            return ptr
    if is_mine:
        store8_release(at, L_HOLD, 0)
    to = call_table(s, F_ALLOCATE, (new,))
    if to == NULL:
        store8_release(at, L_PAGES, as_word(pages, ptr))
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
def hold_pages(words: int, size: int) -> int:
    """
    Have an array keep the pages of large memory mapped; returns their address, 0: refused, or another array does.

    Its words (`rawlayout.HELD`) say which; their address is noted there, for the end of the array.
    """
    s, ptr, number = load8(words, A_BLOCK), load8(words, A_PTR), load8(words, A_NUMBER)
    at = large_at(s, ptr, size)
    pages = pages_at(at, ptr) if at != 0 else int64(0)
    mark = as_mark(number, ptr)
    if pages == 0 or not compare_exchange(at + AT_HOLD, 0, mark):
        return int64(0)
    if fetch_add(at, 0) == as_word(pages, ptr) and load8(at, L_ASKED) == size:  # from here on no realloc changes them
        store8(words, A_PAGES, pages)
        return pages  # looked at again, after the mark was set: a free at the same instant sees the mark, or is seen
    compare_exchange(at + AT_HOLD, mark, 0)  # a free that has seen it left nothing mapped but addresses
    return int64(0)


@Entry
def let_pages_go(words: int) -> int:
    """The end of an array that kept pages mapped: they are the ptr's again, or, if that was freed, unmapped."""
    s, ptr, number, pages = load8(words, A_BLOCK), load8(words, A_PTR), load8(words, A_NUMBER), load8(words, A_PAGES)
    if pages == 0:
        return int64(0)
    at = load8(load8(s, S_LARGE), C_RECORDS) + ((ptr - load8(s, S_LARGE_BASE)) & SLOT_MASK) * LARGE_BYTES
    if not compare_exchange(at + AT_HOLD, as_mark(number, ptr), 0):
        part_with(process_of(s), pages, load8(words, A_BYTES))
    return int64(0)


@kernel
def as_mark(number: int, ptr: int) -> int:
    """Return what stands in the row of memory that an array holds: a free of another ptr of that slot passes it by."""
    return number << TAG_BITS | (ptr >> 32) & TAG_MASK


@kernel
def free_all(s: int) -> None:
    """Refuse large memory from now on, and give all of it back."""
    store8_release(s, S_CLOSED, 1)
    c = load8(s, S_LARGE)
    for node in range(frozen(c, C_NODES)):
        home = set_at(c, node)
        control = control_at(home)
        for slot in range(control.first_slot, load8_acquire(home + C_LIMIT, 0)):
            word = load4(frozen(home, C_WORDS), slot)
            if word & 1 != 0:
                free_large(s, (word >> 1 << 32 | slot) + load8(s, S_LARGE_BASE), int64(0))
    give_up_all(s)


# --- Parked pages: taken and put by compare and exchange, so that no fork and no dead thread can leave a lock behind ---


@kernel
def park(s: int, pages: int, n: int) -> bool:
    """
    Keep freed pages for the next piece that they fit; False: they are to be given back.

    Not with several nodes, where they may be far from the next owner.
    """
    if not CAN_MAP or load8(s, S_CLOSED) != 0 or frozen(s, S_NODES) > 1:
        return False
    if parked_bytes(s) + n > PARKED_BYTES:
        return False
    word = pages >> PARKED_PAGE << PARKED_SHIFT | n >> PARKED_PAGE
    for k in range(PARKED):
        if compare_exchange(s + AT_PARKED + 8 * k, 0, word):
            if load8_acquire(s, S_CLOSED) != 0 or parked_bytes(s) > PARKED_BYTES:  # by now: `close` may have looked before
                give_up(s, int64(k))
            return True
    return False


@kernel
def parked_bytes(s: int) -> int:
    """Bytes of all parked pieces; counted, since a count that is kept would be wrong in a child of `fork`."""
    n = int64(0)
    for k in range(PARKED):
        n += _parked_size(load8_acquire(s + AT_PARKED, k))
    return n


@kernel
def parked_pages(s: int, n: int) -> int:
    """
    Return the address of n bytes of parked pages, the end of a larger piece given back; 0: none fit.

    What fits nobody goes: one piece each time that there is none for who asks.
    """
    for k in range(PARKED):
        word = load8_acquire(s + AT_PARKED, k)
        size = _parked_size(word)
        if n <= size <= n + (n >> 2) and compare_exchange(s + AT_PARKED + 8 * k, word, 0):
            pages = word >> PARKED_SHIFT << PARKED_PAGE
            if size > n:
                part_with(process_of(s), pages + n, size - n)
            return pages
    k = fetch_add(s + AT_HAND, 1) & (PARKED - 1)
    give_up(s, k)
    return int64(0)


@kernel
def give_up(s: int, k: int) -> None:
    """Give the pages in a place back to the system."""
    word = load8_acquire(s + AT_PARKED, k)
    if word != 0 and compare_exchange(s + AT_PARKED + 8 * k, word, 0):
        part_with(process_of(s), word >> PARKED_SHIFT << PARKED_PAGE, _parked_size(word))


@kernel
def give_up_all(s: int) -> None:
    """Give all parked pages back to the system."""
    for k in range(PARKED):
        give_up(s, int64(k))


@Entry
def drop_parked(s: int) -> int:
    """Give all parked pages back to the system; returns the bytes that are left: others parked them meanwhile."""
    give_up_all(s)
    return parked_bytes(s)
