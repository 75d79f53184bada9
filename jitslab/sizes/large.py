"""
Memory above the largest size class: pages of its own, in kernels.

Each piece has a slot of the cache `large`, whose record is its LARGE row; so its ptr is checked like any other.  Freed pages are
*retained*, up to RETAINED_BYTES, for the next piece that they fit: a system call and the faults of new pages cost more than the
work of most programs with them.

Retained pages come back at the same address, and often to the same slot.  So a LARGE row packs the address with the low bits of
the ptr's cycle (`pack_pages`).  A thread takes the pages by replacing that number with compare and exchange, which fails if the
slot was given to another ptr meanwhile.

  live      pages: packed   pin: 0, or that of the array that shows them
  moving    pages: 0        pin: MOVING, while a realloc has them
  freed     pages: 0        pin: 0, or that of the array that still shows them: it unmaps them at its end
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
    """Return the field `pages` of live memory: address and tag in one."""
    return pages >> 3 << TAG_BITS | (ptr >> 32) & TAG_MASK


@kernel
def tag_matches(packed: int, ptr: int) -> bool:
    """Whether packed pages, or a packed pin, belong to a ptr."""
    return packed != 0 and (packed ^ (ptr >> 32)) & TAG_MASK == 0


@kernel
def pages_of(row: Large, ptr: int) -> int:
    """Return the address of a ptr's pages; 0: they were taken."""
    packed = load_acquire(row, "pages")
    return shift_right(packed, TAG_BITS) << 3 if tag_matches(packed, ptr) else 0


@kernel
def take_pages(row: Large, ptr: int) -> int:
    """Take the pages of a ptr; returns their address, or 0 if another thread has taken them."""
    pages = pages_of(row, ptr)
    return pages if pages != 0 and compare_exchange(row, "pages", pack_pages(pages, ptr), 0) else 0


@kernel
def row_of_slot(sizes: Sizes, slot: int) -> Large:
    """Return the LARGE row of a slot of the cache of large memory."""
    return large_row_at(sizes.large.records + slot * LARGE_BYTES)


@kernel
def is_large(sizes: Sizes, ptr: int, size: int) -> bool:
    """Whether a ptr names live large memory of a size; a size of 0 stands for any."""
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
    """Take large memory; if `fresh` is not 0, in new pages, which read as zeros; returns a ptr or NULL."""
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
    row.pin = 0  # a fork may have left a pin
    ptr = handle + sizes.large_base
    store_release(row, "pages", pack_pages(pages, ptr))
    fetch_add(sizes, "large_bytes", n)
    return ptr


@kernel
def free_large(sizes: Sizes, ptr: int, size: int) -> int:
    """
    Free large memory; returns 1 if freed.  If several threads try at once, the one that sets `pages` to 0 succeeds.

    If an array in Python shows the pages, they lose their content and stay mapped until the array ends.
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
    """Give back pages that the caller has taken, by setting `pages` to 0."""
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
    `realloc` of large memory: takes its pages as a free does, then puts them back or gives them up; meanwhile others are refused.

    The system moves the pages if it can; pages that an array in Python shows are copied.
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
    """Return the address of zeroed scratch pages of a size; if they grow, the old ones stay, since others may use them."""
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
    """Free all large memory, and refuse more."""
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
    Pin the pages of large memory for an array; returns their address, or 0: refused, or another array has pinned them.

    The PINNED row of the array names the ptr; the address of the pages is noted there for the array's end.
    """
    it = pinned_at(pinned)
    sizes, ptr, pin = sizes_at(it.sizes), it.ptr, pack_pin(it.number, it.ptr)
    if not is_large(sizes, ptr, size):
        return 0
    row = row_of_ptr(sizes, ptr)
    pages = pages_of(row, ptr)
    if pages == 0 or not compare_exchange(row, "pin", 0, pin):
        return 0
    if fetch_add(row, "pages", 0) == pack_pages(pages, ptr) and row.asked == size:  # from here on no realloc moves them
        it.pages = pages
        return pages  # `pages` is read after the pin was set: a free at the same time sees the pin, or its 0 is seen here
    compare_exchange(row, "pin", pin, 0)  # if a free has seen the pin, only addresses are left
    return 0


@Entry
def unpin_pages(pinned: int) -> int:
    """End an array that pinned pages: unpin them, or unmap them if their ptr was freed."""
    it = pinned_at(pinned)
    if it.pages != 0:
        sizes = sizes_at(it.sizes)
        if not compare_exchange(row_of_ptr(sizes, it.ptr), "pin", pack_pin(it.number, it.ptr), 0):
            part_with(sizes.large.process, it.pages, it.bytes)
    return 0


@kernel
def pack_pin(number: int, ptr: int) -> int:
    """Return the field `pin` for an array; its tag lets a free of another ptr of that slot ignore it."""
    return number << TAG_BITS | (ptr >> 32) & TAG_MASK


# --- Retained pages: by compare and exchange, since a fork or a dead thread could leave a lock behind ---


@kernel
def retain(sizes: Sizes, pages: int, n: int) -> bool:
    """
    Keep freed pages for the next piece that they fit; returns False if the caller must give them back.

    With several nodes none are kept: they may be far from the next owner.
    """
    if not CAN_MAP or sizes.closed != 0 or sizes.nodes > 1:
        return False
    if retained_bytes(sizes) + n > RETAINED_BYTES:
        return False
    piece = pages >> RETAINED_PAGE << RETAINED_SHIFT | n >> RETAINED_PAGE
    for k in range(RETAINED):
        if compare_exchange(sizes.retained, k, 0, piece):
            # Read again: `close` may have come in between.
            if load_acquire(sizes, "closed") != 0 or retained_bytes(sizes) > RETAINED_BYTES:
                give_up(sizes, k)
            return True
    return False


@kernel
def retained_bytes(sizes: Sizes) -> int:
    """Return the bytes of all retained pieces; they are added up each time, since a stored sum could be wrong after a fork."""
    n = 0
    for k in range(RETAINED):
        n += _retained_size(load_acquire(sizes.retained, k))
    return n


@kernel
def retained_pages(sizes: Sizes, n: int) -> int:
    """
    Return the address of n bytes of retained pages, or 0 if none fit; the end of a larger piece is given back.

    If none fit, one piece is given up: so pieces that fit no request do not stay.
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
    """Give retained piece k back to the system."""
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
    """Give all retained pages back to the system; returns the bytes that other threads have retained meanwhile."""
    sizes = sizes_at(s)
    give_up_all(sizes)
    return retained_bytes(sizes)
