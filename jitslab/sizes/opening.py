"""
The opening of a size class at its first use, in kernels: from its plan to a cache.

Above `process` and `rawlayout`, below `raw`.  Compiled code opens a class as Python does: by `control_of`, where it needs the
class's control block and finds none.  A class reserves its addresses then, as many as are its share of what is left; what is
never used takes none.
"""

from __future__ import annotations

from typing import Any

from ..core.calls import call_table, control_at
from ..core.layout import BLOCK, EAGER_BYTES, HEAD_BYTES, HEAP_BYTES, HEAPS, LISTS, META_BYTES, NIL, SMALL_SHIFT, C
from ..core.process import enter_row, range_of, room_of, share_of, unlock_registry
from ..core.slab import C_HEADS, C_LOCK, C_TAILS, ROW, lock_word
from ..machine.addresses import CAN_GROW, page_bytes
from ..machine.compile import Entry, int64, kernel
from ..machine.memory import copy_bytes, likely, load8, load8_acquire, store8, store8_release
from ..machine.system import commit, let_read, place_pages, reserve_pages
from .large import whole_pages
from .layout import (
    AT_MASK,
    AT_OWN,
    CLASS_BYTES,
    F_OPEN,
    HEAPS_AT,
    K_BASE,
    K_CONTROL,
    OWN_BYTES,
    P_BYTES,
    P_CONTROL,
    P_INTERVAL_END,
    P_LEAST,
    P_MEMORY,
    P_WORDS,
    PLAN_BYTES,
    PLANS,
    ROWS,
    S_CLOSED,
    S_LARGE,
    S_MODE,
    THREAD_BYTES,
)

C_PROCESS = C["process"] // 8


@kernel
def control_of(s: int, row: int) -> int:
    """Return the address of a class's control block, opened now if need be; 0: there is no memory for it, or all is closed."""
    c: int = load8_acquire(row, K_CONTROL)
    return c if likely(c != 0) else call_table(s, F_OPEN, (row,))


@Entry
def open_class(s: int, row: int) -> int:
    """
    Make the cache of a class by its plan, if nobody has; returns the address of its control block, or 0.

    Under the lock of the process's registry, which is held over a fork, too.
    """
    p = load8(load8(s, S_LARGE), C_PROCESS)
    lock_word(p)
    c: int = load8(row, K_CONTROL)
    if c == 0 and load8(s, S_CLOSED) == 0:
        number = (row - s - ROWS) // CLASS_BYTES
        plan = s + PLANS + number * PLAN_BYTES
        if has_range(s, p, plan) and make_usable(plan):
            c = fill_control(load8(s, S_LARGE), plan)
            place_heaps(c, s + HEAPS_AT, number, load8(row, K_BASE))
            control = control_at(c)
            control.row = enter_row(p, c)
            if control.row == NIL:
                c = int64(0)
            store8_release(row, K_CONTROL, c)
    unlock_registry(p)
    return c


@kernel
def regions(own: Any) -> Any:
    """Return how far into the range of a class its control block and its records start, and the bytes of the range."""
    slots = own.max_slabs << own.shift
    control = whole_pages((slots + BLOCK - 1) // BLOCK * 8) + whole_pages(own.max_slabs * ROW)
    records = control + whole_pages(slots * 4 + BLOCK * 4 + page_bytes)
    return control, records, records + whole_pages(slots * own.stride)


@kernel
def has_range(s: int, p: int, plan: int) -> bool:
    """
    Reserve a range of addresses for a class, if it has none; whether it has one.

    Of its share of what is left, or of less where that is in pieces; but of the least that it needs.
    """
    if load8(plan, P_MEMORY) != 0:
        return True
    own = control_at(plan + AT_OWN)
    least, most = load8(plan, P_LEAST), int64(own.max_slabs)
    room, unit = room_of(p), own.stride + META_BYTES << own.shift
    share = range_of(p, room) if own.capacity == 0 else share_of(p, room)
    if own.capacity == 0 and share < least * unit:
        return False
    own.max_slabs = max(min(most, share // unit), least)
    n = regions(own)[2]
    at = reserve_pages(n)
    while at == 0 and own.max_slabs > least:
        own.max_slabs = max(own.max_slabs >> 1, least)
        n = regions(own)[2]
        at = reserve_pages(n)
    if at == 0:
        own.max_slabs = most
        return False
    if load8(s, S_MODE) != 0:
        place_pages(at, n, load8(s, S_MODE), s + AT_MASK)
    store8(plan, P_BYTES, n)
    store8_release(plan, P_MEMORY, at)
    return True


@kernel
def make_usable(plan: int) -> bool:
    """Make usable what a cache needs from the start, and let all its generations be read; whether the system granted it."""
    at = load8(plan, P_MEMORY)
    control, records, _ = regions(control_at(plan + AT_OWN))
    if records <= EAGER_BYTES:
        return commit(at, records)
    end = control + whole_pages(int64(HEAD_BYTES))
    return commit(at + control, end - control) and let_read(at + end, records - end)


@kernel
def fill_control(other: int, plan: int) -> int:
    """
    Fill a control block in: by a plan, and for what all caches with one array set have in common from another's.

    Returns its address.
    """
    own = control_at(plan + AT_OWN)
    at = load8(plan, P_MEMORY)
    border, records, _ = regions(own)
    c = at + border + load8(plan, P_CONTROL)
    copy_bytes(c, other, int64(C_LOCK))
    copy_bytes(c, plan + AT_OWN, int64(OWN_BYTES))
    control = control_at(c)
    control.bits = at
    control.slabs = c - ROW
    control.words = at + border + load8(plan, P_WORDS)
    control.records = at + records
    if own.capacity == 0:
        slots = own.max_slabs << own.shift
        control.capacity = slots - min(HEAPS * own.rounds, slots >> SMALL_SHIFT)
    control.front = c
    control.interval_end = load8(plan, P_INTERVAL_END)
    control.committed = int64(0) if CAN_GROW else own.max_slabs
    for which in range(LISTS):
        store8(c + C_HEADS, which, int64(NIL))
        store8(c + C_TAILS, which, int64(NIL))
    return c  # type: ignore[no-any-return]  # int64 has no type


@kernel
def place_heaps(c: int, region: int, number: int, base: int) -> None:
    """Have a class use its heaps in the region of its allocator's."""
    control = control_at(c)
    control.heap_region = region
    control.heaps = region + number * HEAP_BYTES
    control.own_heaps = control.heaps
    control.heap_step = int64(THREAD_BYTES)
    control.own_step = int64(THREAD_BYTES)
    control.base = base
