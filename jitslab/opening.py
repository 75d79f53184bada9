"""
The opening of a size class at its first use, in kernels: from its plan to a cache.

Above `process` and `rawlayout`, below `raw`.  Compiled code opens a class as Python does: by `control_of`, where it needs the
class's control block and finds none.
"""

from __future__ import annotations

from ._native import (
    Entry,
    call_table,
    control_at,
    copy_bytes,
    int64,
    kernel,
    likely,
    load8,
    load8_acquire,
    store8,
    store8_release,
)
from ._os import CAN_GROW, commit, let_read
from .layout import HEAP_BYTES, LISTS, NIL, C
from .process import enter_row, unlock_registry
from .rawlayout import (
    AT_OWN,
    CLASS_BYTES,
    F_OPEN,
    HEAPS_AT,
    K_BASE,
    K_CONTROL,
    OWN_BYTES,
    P_CONTROL,
    P_INTERVAL_END,
    P_READABLE,
    P_START,
    P_USABLE,
    PLAN_BYTES,
    PLANS,
    ROWS,
    S_CLOSED,
    S_LARGE,
    THREAD_BYTES,
)
from .slab import C_HEADS, C_LOCK, C_TAILS, lock_word

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
        if make_usable(plan):
            c = load8(plan, P_CONTROL)
            fill_control(c, load8(s, S_LARGE), plan)
            place_heaps(c, s + HEAPS_AT, number, load8(row, K_BASE))
            control = control_at(c)
            control.row = enter_row(p, c)
            if control.row == NIL:
                c = int64(0)
            store8_release(row, K_CONTROL, c)
    unlock_registry(p)
    return c


@kernel
def make_usable(plan: int) -> bool:
    """Make usable what a cache needs from the start, and let all its generations be read; whether the system granted it."""
    start, n, n_read = load8(plan, P_START), load8(plan, P_USABLE), load8(plan, P_READABLE)
    return commit(start, n) and (n_read == 0 or let_read(start + n, n_read))


@kernel
def fill_control(c: int, other: int, plan: int) -> None:
    """Fill a control block in: by a plan, and for what all caches with one array set have in common from another's."""
    copy_bytes(c, other, int64(C_LOCK))
    copy_bytes(c, plan + AT_OWN, int64(OWN_BYTES))
    control = control_at(c)
    control.front = c
    control.interval_end = load8(plan, P_INTERVAL_END)
    control.committed = int64(0) if CAN_GROW else control.max_slabs
    for which in range(LISTS):
        store8(c + C_HEADS, which, int64(NIL))
        store8(c + C_TAILS, which, int64(NIL))


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
