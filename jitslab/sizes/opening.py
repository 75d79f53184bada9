"""
The opening of a size class at its first use, in kernels: from its PLAN row to a cache.

Compiled code and Python open a class by `control_of`, when they need its CONTROL row.  The class then reserves its share of the
addresses that are left.  A class that is never used takes none.
"""

from __future__ import annotations

from typing import Any

from ..core.calls import call
from ..core.grow import whole_pages
from ..core.layout import (
    CONTROL_BYTES,
    EAGER_BYTES,
    GEOMETRY_BYTES,
    HEAD_BYTES,
    HEAP_BYTES,
    HEAPS,
    LINE,
    LISTS,
    NIL,
    WORD_SLOTS,
    Control,
    Process,
    control_at,
    state_at,
)
from ..core.memory import META_BYTES
from ..core.process import SMALL_SHIFT, enter_row, range_of, room_of, share_of
from ..core.slab import lock_row, unlock_row
from ..machine.addresses import CAN_GROW, page_bytes
from ..machine.compile import Entry, kernel
from ..machine.memory import copy_bytes, likely
from ..machine.pointers import address_in, address_of, i8s, load_acquire, store_release, u1s, u4s
from ..machine.system import commit, let_read, place_pages, reserve_pages
from .layout import (
    CLASS_BYTES,
    CLASSES,
    HEAPS_AT,
    PLAN_BYTES,
    PLANS,
    THREAD_BYTES,
    Class,
    Plan,
    Sizes,
    class_at,
    plan_at,
    sizes_at,
)


@kernel
def control_of(sizes: Sizes, row: Class) -> Control:
    """Return the CONTROL row of a class, opened now if needed; NULL: there is no memory for it, or the allocator is closed."""
    c = load_acquire(row, "control")
    return control_at(c if likely(c != 0) else call(sizes, "open", (row,)))


@Entry
def open_class(s: int, k: int) -> int:
    """
    Open a class by its plan, unless another thread has; returns the address of its CONTROL row, or 0.

    It holds the registry's lock, so no fork comes in between.
    """
    sizes, row = sizes_at(s), class_at(k)
    process = sizes.large.process
    lock_row(process)
    c: int = row.control
    if c == 0 and sizes.closed == 0:
        number = (k - s - CLASSES) // CLASS_BYTES
        plan = plan_at(s + PLANS + number * PLAN_BYTES)
        if has_range(sizes, process, plan) and make_usable(plan):
            control = fill_control(sizes, plan, number, row.ptr_base)
            control.row = enter_row(process, control)
            c = address_of(control) if control.row != NIL else 0
            store_release(row, "control", c)
    unlock_row(process)
    return c


@kernel
def regions(plan: Plan) -> Any:
    """Return the offsets of the CONTROL row and of the records in the range of a class, and the bytes of the range."""
    slots = plan.max_slabs << plan.shift
    control = whole_pages((slots + WORD_SLOTS - 1) // WORD_SLOTS * 8) + whole_pages(plan.max_slabs * LINE)
    records = control + whole_pages(slots * 4 + WORD_SLOTS * 4 + page_bytes)
    return control, records, records + whole_pages(slots * plan.stride)


@kernel
def has_range(sizes: Sizes, process: Process, plan: Plan) -> bool:
    """
    Reserve a range of addresses for a class, if it has none; returns whether it has one now.

    The range has the class's share of the addresses that are left, or less if those are in pieces, but the least that it needs.
    """
    if plan.memory != 0:
        return True
    least, most = plan.least, plan.max_slabs
    room, unit = room_of(process), plan.stride + META_BYTES << plan.shift
    share = range_of(process, room) if plan.capacity == 0 else share_of(process, room)
    if plan.capacity == 0 and share < least * unit:
        return False
    plan.max_slabs = max(min(most, share // unit), least)
    n = regions(plan)[2]
    at = reserve_pages(n)
    while at == 0 and plan.max_slabs > least:
        plan.max_slabs = max(plan.max_slabs >> 1, least)
        n = regions(plan)[2]
        at = reserve_pages(n)
    if at == 0:
        plan.max_slabs = most
        return False
    if sizes.mode != 0:
        place_pages(at, n, sizes.mode, address_in(sizes, "mask"))
    plan.bytes = n
    store_release(plan, "memory", at)
    return True


@kernel
def make_usable(plan: Plan) -> bool:
    """Make the first parts of a class usable, and let all generations be read; returns whether the system granted it."""
    at = plan.memory
    control, records, _ = regions(plan)
    if records <= EAGER_BYTES:
        return commit(at, records)
    end = control + whole_pages(HEAD_BYTES)
    return commit(at + control, end - control) and let_read(at + end, records - end)


@kernel
def fill_control(sizes: Sizes, plan: Plan, number: int, ptr_base: int) -> Control:
    """Fill in the CONTROL row of a class by its plan; its heaps are in the allocator's region."""
    large, at = sizes.large, plan.memory
    border, records, _ = regions(plan)
    c = at + border + plan.control_offset
    control = control_at(c)
    copy_bytes(address_in(control, "geometry"), address_in(plan, "geometry"), GEOMETRY_BYTES)
    control.max_slabs = plan.max_slabs
    if plan.capacity == 0:
        slots = plan.max_slabs << plan.shift
        control.capacity = slots - min(HEAPS * plan.magazine_size, slots >> SMALL_SHIFT)
    control.node_shift = large.node_shift
    control.node_slots = large.node_slots
    control.heap_step = THREAD_BYTES
    control.node_heap_step = THREAD_BYTES
    control.ptr_base = ptr_base
    region = address_of(sizes) + HEAPS_AT
    control.heap_region = region
    control.heaps = region + number * HEAP_BYTES
    control.node_heaps = region + number * HEAP_BYTES
    control.generations = u4s(at + border + plan.generations_offset)
    control.records = at + records
    control.bits = i8s(at)
    control.slabs = c - LINE
    control.scratch = plan.scratch
    control.template = plan.scratch
    control.state = state_at(c + CONTROL_BYTES)
    control.entries = large.entries
    control.process = large.process
    control.first_node = control
    control.cpu_nodes = u1s(0)
    control.committed = 0 if CAN_GROW else plan.max_slabs
    state = state_at(c + CONTROL_BYTES)
    state.interval_end = plan.interval_end
    for which in range(LISTS):
        state.heads[which] = NIL
        state.tails[which] = NIL
    return control
