"""
Memory above the largest size class: pages of its own, in kernels.

A slot of the cache `large` describes each piece, so its ptr is checked as any other.  Pages that are freed are *retained*, up to
RETAINED_BYTES of them, for the next piece that they fit: a system call and the faults of new pages cost more than most programs
do with them.

Retained pages come back at the same address, and often to the same slot.  So the address of a piece stands in its LARGE row
together with the low bits of its ptr's cycle (`pack_pages`).  A thread that replaces that number by compare and exchange has
taken the pages of that ptr, and not those of another ptr that the slot was given to meanwhile.

  live      pages: packed   pin: 0, or of the array that shows them
  moving    pages: 0        pin: MOVING, while a realloc has them
  freed     pages: 0        pin: 0, or of the array that still shows them: it unmaps them at its end
"""

from __future__ import annotations

from typing import Any

from ..core.calls import call, my_heap
from ..core.grow import whole_pages
from ..core.heap import alloc, free_any, is_live
from ..core.layout import NULL, SLOT_MASK
from ..core.process import let_all_kept_go, part_with, part_with_moved
from ..core.slab import node_at
from ..machine.addresses import page_bytes
from ..machine.compile import Entry, kernel
from ..machine.memory import copy_bytes, shift_right
from ..machine.pointers import address_in, compare_exchange, fetch_add, i8s, load_acquire, store_release
from ..machine.system import CAN_MAP, give_back, map_pages, map_spare_pages, move_pages, place_pages, unmap_pages
from .layout import (
    LARGE_BYTES,
    LARGEST,
    MAX_BYTES,
    MOVING,
    RETAINED,
    RETAINED_BYTES,
    RETAINED_PAGE,
    RETAINED_SHIFT,
    TAG_BITS,
    TAG_MASK,
    Large,
    Sizes,
    large_row_at,
    pinned_at,
    retained_size,
    sizes_at,
)

_retained_size: Any = kernel(retained_size)


# --- Pieces ---


@kernel
def pack_pages(pages: int, ptr: int) -> int:
    """Return what stands in the row of live memory."""
    return pages >> 3 << TAG_BITS | (ptr >> 32) & TAG_MASK


@kernel
def tag_matches(packed: int, ptr: int) -> bool:
    """Whether packed pages, or a packed pin, are of that ptr."""
    return packed != 0 and (packed ^ (ptr >> 32)) & TAG_MASK == 0


@kernel
def pages_of(row: Large, ptr: int) -> int:
    """Return the address of the pages of a ptr by its row; 0: they were taken."""
    packed = load_acquire(row, "pages")
    return shift_right(packed, TAG_BITS) << 3 if tag_matches(packed, ptr) else 0


@kernel
def take_pages(row: Large, ptr: int) -> int:
    """Take the pages of a ptr by its row: their address; 0: another thread did."""
    pages = pages_of(row, ptr)
    return pages if pages != 0 and compare_exchange(row, "pages", pack_pages(pages, ptr), 0) else 0


@kernel
def row_of_slot(sizes: Sizes, slot: int) -> Large:
    """Return the LARGE row of a slot of the cache of large memory."""
    return large_row_at(sizes.large.records + slot * LARGE_BYTES)


@kernel
def is_large(sizes: Sizes, ptr: int, size: int) -> bool:
    """Whether a ptr is of live large memory of that size; a size of 0 stands for any."""
    handle = ptr - sizes.large_base
    if not is_live(my_heap(sizes.large), handle):
        return False
    row = row_of_slot(sizes, handle & SLOT_MASK)
    return pages_of(row, ptr) != 0 and (size == 0 or row.asked == size)


@kernel
def row_of_ptr(sizes: Sizes, ptr: int) -> Large:
    """Return the LARGE row of a ptr's slot."""
    return row_of_slot(sizes, (ptr - sizes.large_base) & SLOT_MASK)


# --- Allocate, free, realloc ---


@kernel
def allocate_large(sizes: Sizes, size: int, fresh: int) -> int:
    """Take pages of their own, new ones that read as zeros if `fresh` is not 0; returns a ptr or NULL."""
    if size > MAX_BYTES:
        return NULL
    n = whole_pages(size)
    pages = retained_pages(sizes, n) if fresh == 0 else 0
    if pages == 0:
        pages = map_pages(n)
        if pages == 0:
            give_up_all(sizes)
            let_all_kept_go(sizes.large.process)
            pages = map_pages(n)
        if pages == 0:
            return NULL
        if sizes.mode != 0:
            place_pages(pages, n, sizes.mode, address_in(sizes, "mask"))
    handle = alloc(my_heap(sizes.large))
    if handle == NULL:
        unmap_pages(pages, n)
        return NULL
    row = row_of_slot(sizes, handle & SLOT_MASK)
    row.bytes = n
    row.asked = size
    row.pin = 0  # a fork may have left one
    ptr = handle + sizes.large_base
    store_release(row, "pages", pack_pages(pages, ptr))
    fetch_add(sizes, "large_bytes", n)
    return ptr


@kernel
def free_large(sizes: Sizes, ptr: int, size: int) -> int:
    """
    Give pages back; 1: freed.  Of several threads at the same instant one gets them: the one that makes `pages` 0.

    Pages that an array in Python shows lose their content, and stay mapped until the array is gone.
    """
    if not is_large(sizes, ptr, size):
        return 0
    row = row_of_ptr(sizes, ptr)
    pages = take_pages(row, ptr)
    if pages == 0:
        return 0
    drop_large(sizes, ptr, row, pages)
    return 1


@kernel
def drop_large(sizes: Sizes, ptr: int, row: Large, pages: int) -> None:
    """Give back pages that the caller has taken: by making `pages` in their row 0."""
    n = row.bytes
    fetch_add(sizes, "large_bytes", -n)
    pin = fetch_add(row, "pin", 0)
    while tag_matches(pin, ptr) and not compare_exchange(row, "pin", pin, 0):
        pin = load_acquire(row, "pin")
    if tag_matches(pin, ptr):
        give_back(pages, n)
    elif not retain(sizes, pages, n):
        part_with(sizes.large.process, pages, n)
    free_any(sizes.large, my_heap(sizes.large), ptr - sizes.large_base)


@kernel
def realloc_large(sizes: Sizes, ptr: int, old: int, new: int) -> int:
    """
    `realloc` of large memory: its pages are taken, as by a free, and put back or given up; other threads are refused meanwhile.

    Moved by the system where that can be; pages that an array in Python shows are copied.
    """
    if not is_large(sizes, ptr, old):
        return NULL
    row = row_of_ptr(sizes, ptr)
    pages = take_pages(row, ptr)
    if pages == 0:
        return NULL
    is_mine = compare_exchange(row, "pin", 0, MOVING)
    n = row.bytes
    moved, size = pages, whole_pages(new)
    if is_mine and LARGEST < new <= MAX_BYTES:
        if size > n:
            moved = move_pages(pages, n, size)
            if moved != 0 and moved != pages:
                part_with_moved(sizes.large.process, pages, n)
        elif size < n:
            part_with(sizes.large.process, pages + size, n - size)
        if moved != 0:
            row.bytes = size
            row.asked = new
            fetch_add(sizes, "large_bytes", size - n)
            store_release(row, "pin", 0)
            store_release(row, "pages", pack_pages(moved, ptr))
            return ptr
    if is_mine:
        store_release(row, "pin", 0)
    to = call(sizes, "allocate", (new,))
    if to == NULL:
        store_release(row, "pages", pack_pages(pages, ptr))
        return NULL
    copy_bytes(call(sizes, "address", (to, new)), pages, min(old, new))
    drop_large(sizes, ptr, row, pages)
    return to


@kernel
def large_scratch(sizes: Sizes, size: int) -> int:
    """Return the address of zeroed scratch pages of a size; they grow, and smaller ones stay, as others may use them."""
    n = whole_pages(size)
    while True:
        at = load_acquire(sizes, "scratch")
        if at != 0 and i8s(at)[0] >= n:
            give_back(at + page_bytes, n)
            return at + page_bytes
        new = map_spare_pages(n + page_bytes)
        if new == 0:
            return 0
        i8s(new)[0] = n
        if compare_exchange(sizes, "scratch", at, new):
            return new + page_bytes
        unmap_pages(new, n + page_bytes)


@kernel
def free_all(sizes: Sizes) -> None:
    """Refuse large memory from now on, and give all of it back."""
    store_release(sizes, "closed", 1)
    for number in range(sizes.large.nodes):
        node = node_at(sizes.large, number)
        for slot in range(node.first_slot, load_acquire(node.state, "limit")):
            generation = node.generations[slot]
            if generation & 1 != 0:
                free_large(sizes, (generation >> 1 << 32 | slot) + sizes.large_base, 0)
    give_up_all(sizes)


# --- Arrays in Python that show large memory ---


@Entry
def pin_pages(pinned: int, size: int) -> int:
    """
    Have an array keep the pages of large memory mapped; returns their address, 0: refused, or another array does.

    Its PINNED row says which pages; their address is noted there, for the end of the array.
    """
    it = pinned_at(pinned)
    sizes, ptr, pin = sizes_at(it.sizes), it.ptr, pack_pin(it.number, it.ptr)
    if not is_large(sizes, ptr, size):
        return 0
    row = row_of_ptr(sizes, ptr)
    pages = pages_of(row, ptr)
    if pages == 0 or not compare_exchange(row, "pin", 0, pin):
        return 0
    if fetch_add(row, "pages", 0) == pack_pages(pages, ptr) and row.asked == size:  # from here on no realloc changes them
        it.pages = pages
        return pages  # looked at again, after the pin was set: a free at the same instant sees the pin, or is seen
    compare_exchange(row, "pin", pin, 0)  # a free that has seen it left nothing mapped but addresses
    return 0


@Entry
def unpin_pages(pinned: int) -> int:
    """The end of an array that kept pages mapped: they are the ptr's again, or, if that was freed, unmapped."""
    it = pinned_at(pinned)
    if it.pages != 0:
        sizes = sizes_at(it.sizes)
        if not compare_exchange(row_of_ptr(sizes, it.ptr), "pin", pack_pin(it.number, it.ptr), 0):
            part_with(sizes.large.process, it.pages, it.bytes)
    return 0


@kernel
def pack_pin(number: int, ptr: int) -> int:
    """Return what stands in the row of memory that an array pins: a free of another ptr of that slot passes it by."""
    return number << TAG_BITS | (ptr >> 32) & TAG_MASK


# --- Retained pages: taken and put by compare and exchange, so that no fork and no dead thread can leave a lock behind ---


@kernel
def retain(sizes: Sizes, pages: int, n: int) -> bool:
    """
    Keep freed pages for the next piece that they fit; False: the caller gives them back.

    Not with several nodes, where they may be far from the next owner.
    """
    if not CAN_MAP or sizes.closed != 0 or sizes.nodes > 1:
        return False
    if retained_bytes(sizes) + n > RETAINED_BYTES:
        return False
    piece = pages >> RETAINED_PAGE << RETAINED_SHIFT | n >> RETAINED_PAGE
    for k in range(RETAINED):
        if compare_exchange(sizes.retained, k, 0, piece):
            # Looked at once more: `close` may have come before.
            if load_acquire(sizes, "closed") != 0 or retained_bytes(sizes) > RETAINED_BYTES:
                give_up(sizes, k)
            return True
    return False


@kernel
def retained_bytes(sizes: Sizes) -> int:
    """Bytes of all retained pieces; counted, since a count that is kept would be wrong in a child of `fork`."""
    n = 0
    for k in range(RETAINED):
        n += _retained_size(load_acquire(sizes.retained, k))
    return n


@kernel
def retained_pages(sizes: Sizes, n: int) -> int:
    """
    Return the address of n bytes of retained pages, the end of a larger piece given back; 0: none fit.

    A piece that fits no request goes at last: one each time that none fits.
    """
    for k in range(RETAINED):
        piece = load_acquire(sizes.retained, k)
        size = _retained_size(piece)
        if n <= size <= n + (n >> 2) and compare_exchange(sizes.retained, k, piece, 0):
            pages = piece >> RETAINED_SHIFT << RETAINED_PAGE
            if size > n:
                part_with(sizes.large.process, pages + n, size - n)
            return pages
    give_up(sizes, fetch_add(sizes, "clock_hand", 1) & (RETAINED - 1))
    return 0


@kernel
def give_up(sizes: Sizes, k: int) -> None:
    """Give the pages in place k back to the system."""
    piece = load_acquire(sizes.retained, k)
    if piece != 0 and compare_exchange(sizes.retained, k, piece, 0):
        part_with(sizes.large.process, piece >> RETAINED_SHIFT << RETAINED_PAGE, _retained_size(piece))


@kernel
def give_up_all(sizes: Sizes) -> None:
    """Give all retained pages back to the system."""
    for k in range(RETAINED):
        give_up(sizes, k)


@Entry
def drop_retained(s: int) -> int:
    """Give all retained pages back to the system; returns the bytes that are left: other threads retained them meanwhile."""
    sizes = sizes_at(s)
    give_up_all(sizes)
    return retained_bytes(sizes)
