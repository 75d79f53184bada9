"""
The memory of slabs, outside the lock: `grow` makes it usable ahead of use, `release` gives it back to the system.

`end_of_interval` says how many slabs `release` shall give back.
"""

from __future__ import annotations

from ..machine.addresses import page_bytes
from ..machine.compile import Entry, kernel
from ..machine.pointers import address_of, u4s
from ..machine.system import commit, give_back, prefer_huge_pages
from .layout import (
    EMPTY,
    FREE,
    FRESH,
    HUGE_BYTES,
    INTERVAL,
    LINE,
    NIL,
    RELEASE_BYTES,
    RELEASING,
    TURNOVERS,
    WORD_SHIFT,
    WORD_SLOTS,
    Control,
    control_at,
)
from .slab import link, lock, slab_row, unlink, unlock

MAX_RELEASABLE = 0x60000000  # a slab with a generation from here on is not released: all its slots would restart there


@kernel
def whole_pages(n: int) -> int:
    """Return n bytes, or an address, rounded up to whole pages."""
    return (n + page_bytes - 1) & -page_bytes


# --- Grow ---


@kernel
def commit_slabs(control: Control, n_slabs: int) -> bool:
    """Make the memory of the first n slabs usable; returns whether the system granted it."""
    slots = n_slabs << control.shift
    rows = (control.slabs - n_slabs * LINE) & -page_bytes
    return (
        commit(rows, control.slabs + LINE - rows)
        and commit(address_of(control.bits), (slots + WORD_SLOTS - 1) // WORD_SLOTS * 8)
        and commit(address_of(control.generations) & -page_bytes, (slots + WORD_SLOTS) * 4 + page_bytes)
        and commit(control.records, slots * control.stride)
    )


@Entry
def grow(c: int, n_slabs: int) -> int:
    """
    Make the memory of at least `n_slabs` more slabs usable, ahead of use; returns 1 if the system granted it.

    Needs   that the lock is not held.  Two threads may do it at once: both ask for prefixes of the same parts.
    """
    control = control_at(c)
    slab_bytes = control.stride << control.shift
    old, most = control.committed, control.max_slabs
    ahead = max(old >> 2, RELEASE_BYTES // slab_bytes)
    new = min(old + max(ahead, n_slabs), most)
    if new == old:
        return 0
    granted = commit_slabs(control, new)
    if not granted:
        new = min(old + n_slabs, most)
        granted = commit_slabs(control, new)
    if not granted:
        return 0
    if old * slab_bytes >= HUGE_BYTES and control.is_file == 0:
        start = (control.records + old * slab_bytes) & -page_bytes
        prefer_huge_pages(start, control.records + new * slab_bytes - start)
    lock(control)
    if control.closed == 0 and new > control.committed:
        control.committed = new
    unlock(control)
    return 1 if old + n_slabs <= most else 0


# --- Release ---


@kernel
def end_of_interval(control: Control) -> int:
    """
    Count one refill or flush; at the end of an interval return how many empty slabs it never needed, else 0.

    An interval is long enough for all slots to come and go.  Otherwise a program that builds a structure, drops it and builds
    it again would fault in every page each time (1.8 us, as long as all else with the page's 64 records).
    Needs   the lock.
    """
    state = control.state
    state.ticks += 1
    if state.ticks < state.interval_end:
        return 0
    slots = (state.n_slabs - control.first_slab) << control.shift
    state.interval_end = state.ticks + max(INTERVAL, TURNOVERS * slots // control.magazine_size)
    surplus = state.least_empty
    state.least_empty = state.n_empty
    return surplus if surplus * (control.stride << control.shift) >= RELEASE_BYTES else 0


@Entry
def release(c: int, count: int) -> int:
    """
    Give the memory of up to `count` empty slabs back to the system, the longest empty first; returns how many.

    A released slab is fresh again.  Its row keeps the highest generation that it issued, and its slots restart there: so old
    handles stay stale although the pages of the generations go back, too.
    Needs   that the lock is not held, and a heap of the cache.
    """
    control = control_at(c)
    chain = take_empty(control, count)
    if chain < 0:
        return 0
    done = 0
    i = chain
    while i >= 0:  # a slab on no list is touched by this thread only
        slab = slab_row(control, i)
        highest = highest_generation(control, i)
        if 0 <= highest < MAX_RELEASABLE:
            slab.min_generation = max(highest, slab.min_generation)
            slab.n_fresh = 1 << control.shift
            done += 1
        else:
            slab.state = FREE  # keep its memory: its generations are used up, or it has a live record, which `check` will report
        i = slab.next
    i = chain
    while i >= 0:
        if slab_row(control, i).state == RELEASING:
            give_back_run(control, i)
        i = slab_row(control, i).next
    put_empty(control, chain, done)
    return done


@kernel
def take_empty(control: Control, count: int) -> int:
    """Take up to `count` slabs off the list EMPTY and chain them by `next`; returns the first, or NIL."""
    state = control.state
    chain = NIL
    lock(control)
    if state.releasing == 0 and control.closed == 0:
        state.releasing = 1
        for _ in range(count):
            i = state.tails[EMPTY]
            if i < 0:
                break
            unlink(control, i)
            slab_row(control, i).state = RELEASING
            slab_row(control, i).next = chain
            chain = i
        if chain < 0:
            state.releasing = 0
    unlock(control)
    return chain


@kernel
def put_empty(control: Control, chain: int, n_released: int) -> None:
    """Put the slabs of a chain on the lists that they belong to."""
    state = control.state
    lock(control)
    while chain >= 0:
        slab = slab_row(control, chain)
        following = slab.next
        slab.state = FREE
        if slab.n_fresh == 1 << control.shift:
            clear_bits(control, chain)
            slab.n_free = 0
            link(control, chain, FRESH)
        else:
            link(control, chain, EMPTY)
        chain = following
    state.released += n_released
    state.releasing = 0
    unlock(control)


@kernel
def highest_generation(control: Control, i: int) -> int:
    """Return the highest generation of slab `i`, or -1 if one of them is odd."""
    generations = u4s(address_of(control.generations) + (i << control.shift) * 4)
    highest, odd = 0, 0
    for j in range(1 << control.shift):
        odd |= generations[j]
        highest = max(highest, generations[j])
    return -1 if odd & 1 else highest


@kernel
def clear_bits(control: Control, i: int) -> None:
    """Clear the free bits of slab `i`."""
    bits = control.bits
    first, slots = i << control.shift, 1 << control.shift
    if slots < WORD_SLOTS:
        bits[first >> WORD_SHIFT] &= ~(((1 << slots) - 1) << (first & 63))
    else:
        for q in range(first >> WORD_SHIFT, (first + slots) >> WORD_SHIFT):
            bits[q] = 0


@kernel
def give_back_run(control: Control, first: int) -> None:
    """
    Give back the pages of the records and generations of the run of slabs being released that starts with `first`.

    Does nothing if the slab before belongs to the same run.  A page that the run shares with another slab is kept.  So are
    generations in a file: their pages would come back with the generations of the last checkpoint.
    """
    if first > control.first_slab and slab_row(control, first - 1).state == RELEASING:
        return
    end = first + 1
    while end < control.state.n_slabs and slab_row(control, end).state == RELEASING:
        end += 1
    first_slot, end_slot = first << control.shift, end << control.shift
    give_back_pages(control.records + first_slot * control.stride, control.records + end_slot * control.stride)
    if control.is_file == 0:
        generations = address_of(control.generations)
        give_back_pages(generations + first_slot * 4, generations + end_slot * 4)


@kernel
def give_back_pages(start: int, end: int) -> None:
    """Give back the whole pages between two addresses."""
    start, end = whole_pages(start), end & -page_bytes
    if end > start:
        give_back(start, end - start)
