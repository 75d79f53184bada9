"""
The slab layer: every free slot that is in no magazine, under one short lock a cache.

Above `_os`, below `heap`.  A slab keeps its free slots as one bit a slot, and its never-used ones as a count that needs no
set-up.  Slots leave it by `slab_draw`, a block of up to 64 at a time, and come back by `put_block`.  The lists are found by
`pick`; `grow` and `release` talk to the system, outside the lock.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.addresses import page_bytes
from ..machine.compile import Entry, inlined, int64, kernel
from ..machine.memory import (
    compare_exchange,
    frozen,
    i8_array,
    load8,
    load8_relaxed,
    lowest_bit,
    pause,
    popcount,
    store8,
    store8_release,
    u4_array,
    unlikely,
)
from ..machine.system import commit, give_back, prefer_huge_pages, yield_core
from .calls import call_table, control_at, heap_at, slab_view
from .layout import (
    BLOCK,
    CONTROL,
    EMPTY,
    FREE,
    FRESH,
    FULL,
    HUGE_BYTES,
    INTERVAL,
    LINE,
    MENDED,
    NIL,
    PARTIALLY_USED,
    QUARTERS,
    RELEASE_BYTES,
    RELEASING,
    RUN,
    SLAB,
    TORN,
    TURNOVERS,
    C,
)
from .vectors import is_run

# np.int64: an argument that Numba knows as a literal would be compiled a second time.
L_EMPTY, L_FRESH, L_FULLEST = int64(EMPTY), int64(FRESH), int64(QUARTERS - 1)
ZERO, ONE = int64(0), int64(1)
ALL = int64(-1)  # a block whose 64 slots are all meant
RUN_MASK = (1 << RUN) - 1
RUN_SHIFT = RUN.bit_length() - 1
NO_SLAB, MUST_GROW = -1, -2  # answers of `pick` that are no slab
WORN = 0x60000000  # a slab with a generation from here on is not released: its other slots would end with that one
LOOKS = 8  # slabs of other heaps that `pick` passes over before it takes a new one

C_LOCK, C_SLABS, C_BITS, C_WORDS, C_HEAPS, C_HEAP_STEP, C_HEADS, C_TAILS, C_LIMIT = (
    C[name] for name in ("lock", "slabs", "bits", "words", "heaps", "heap_step", "heads", "tails", "limit")
)
C_FRONT, C_NODES, C_NODE_SHIFT, F_REBUILD = C["front"], C["nodes"], C["node_shift"], C["f_rebuild"]
SET_BYTES = CONTROL.itemsize  # from one array set to the next
ROW = SLAB.itemsize
COLOUR_STEP = 37  # odd: the first 64 slabs start on different slots of 64
assert ROW == LINE


@kernel
def slab_at(c: int, i: int) -> Any:
    """Row of slab `i`."""
    return slab_view(frozen(c, C_SLABS) - i * ROW)


@kernel
def set_at(c: int, node: int) -> int:
    """Return the address of the array set of a node, by its number."""
    return frozen(c, C_FRONT) + node * SET_BYTES


@kernel
def set_of(c: int, slot: int) -> int:
    """Return the address of the array set that a slot of the cache belongs to."""
    return frozen(c, C_FRONT) + (slot >> frozen(c, C_NODE_SHIFT)) * SET_BYTES


# --- The lock ---


@kernel
def lock_word(at: int) -> None:
    """Take the lock that is the int64 at an address; a waiter looks a few times and then lets others run."""
    tries = 0
    while not (load8_relaxed(at, 0) == 0 and compare_exchange(at, 0, 1)):
        tries += 1
        if tries & 15:
            pause()
        else:
            yield_core()


@kernel
def lock(c: int) -> None:
    """Take the lock of an array set; in a child of `fork` rebuild its index first, if that may be torn."""
    lock_word(c + C_LOCK)
    control = control_at(c)
    if unlikely(control.torn == TORN):
        if control.closed == 0:
            call_table(c, F_REBUILD, ())
        control.torn = MENDED


@kernel
def unlock(c: int) -> None:
    """Give the lock of an array set back."""
    store8_release(c + C_LOCK, 0, 0)


# --- Lists ---


@kernel
def unlink(c: int, i: int) -> None:
    """Take slab `i` off its list."""
    control = control_at(c)
    slab = slab_at(c, i)
    which = int64(slab.list)
    previous, following = int64(slab.prev), int64(slab.next)
    if previous >= 0:
        slab_at(c, previous).next = following
    else:
        store8(c + C_HEADS, which, following)
    if following >= 0:
        slab_at(c, following).prev = previous
    else:
        store8(c + C_TAILS, which, previous)
    if which == EMPTY:
        control.n_empty -= 1
        control.low_empty = min(control.low_empty, control.n_empty)
    slab.list = NIL


@kernel
def link(c: int, i: int, which: int) -> None:
    """Put slab `i`, which is on no list, at the head of one."""
    slab = slab_at(c, i)
    head = load8(c + C_HEADS, which)
    slab.prev = NIL
    slab.next = head
    slab.list = which
    if head >= 0:
        slab_at(c, head).prev = i
    else:
        store8(c + C_TAILS, which, i)
    store8(c + C_HEADS, which, i)
    if which == EMPTY:
        control_at(c).n_empty += 1


@kernel
def quarter(c: int, i: int) -> int:
    """Return the partial list that slab `i` belongs to by its occupancy; the fullest is the last."""
    shift = control_at(c).shift
    slab = slab_at(c, i)
    used = (int64(1) << shift) - slab.n_free - slab.n_fresh
    return min(used * QUARTERS >> shift, QUARTERS - 1)


@kernel
def relist(c: int, i: int) -> None:
    """
    Put slab `i`, to which slots came back, on the list of what it is now: empty, or partially used and full before.

    A full slab goes to the fullest list; `pick` moves it on when it meets it there.
    """
    slab = slab_at(c, i)
    if slab.n_free + slab.n_fresh == ONE << control_at(c).shift:
        if slab.list != NIL:
            unlink(c, i)
        slab.state = FREE
        link(c, i, L_EMPTY)
    elif slab.state == FULL:
        slab.state = PARTIALLY_USED
        link(c, i, L_FULLEST)


@inlined
def slab_lost(c: int, i: int, n: int) -> None:
    """Account for n slots that left slab `i`."""
    slab = slab_at(c, i)
    control_at(c).out += n
    if slab.n_free + slab.n_fresh == 0:
        unlink(c, i)
        slab.state = FULL
    elif slab.state == FREE:
        unlink(c, i)
        slab.state = PARTIALLY_USED
        link(c, i, quarter(c, i))


@kernel
def make_slab(c: int) -> int:
    """Make the next slab, all fresh; its memory must be usable.  O(1)."""
    control = control_at(c)
    i = int64(control.n_slabs)
    slab = slab_at(c, i)
    slots = int64(1) << control.shift
    slab.n_free = 0
    slab.n_fresh = slots
    slab.base = np.uint32(control.start)
    slab.colour = (i * COLOUR_STEP + control.row * 5) & (slots - 1) if control.colours else 0
    slab.rover = int64(slab.colour) >> 6
    slab.drawer = NIL
    slab.state = FREE
    link(c, i, L_FRESH)
    control.n_slabs = i + 1
    store8_release(c + C_LIMIT, 0, (i + 1) << control.shift)
    return i


@kernel
def is_drawn_by_other(c: int, i: int, me: int) -> bool:
    """Whether another heap draws from slab `i`."""
    drawer = int64(slab_at(c, i).drawer)
    if drawer == NIL or drawer == me:
        return False
    other = heap_at(frozen(c, C_HEAPS) + drawer * frozen(c, C_HEAP_STEP))
    return other.owner != 0 and other.slab == i


@kernel
def some_partial(c: int) -> int:
    """Return a partially used slab, whoever draws from it, or NO_SLAB."""
    for which in range(QUARTERS):
        i = load8(c + C_HEADS, which)
        if i >= 0:
            return i
    return int64(NO_SLAB)


@kernel
def pick(c: int, me: int) -> int:
    """
    Return the slab that heap row `me` should draw from next, or NO_SLAB, or MUST_GROW.

    Partially used ones first, fullest quarter first; one that another heap draws from is the last resort, since two
    heaps that draw from one slab come to share lines of generations (13 to 21 ns an operation instead of 1).
    Needs   the lock.
    """
    control = control_at(c)
    shared = int64(NO_SLAB)
    looks = LOOKS
    which = QUARTERS - 1
    while which >= 0:
        i = load8(c + C_HEADS, which)
        while i >= 0 and looks > 0:
            slab = slab_at(c, i)
            following = int64(slab.next)
            fits = quarter(c, i)
            if fits != which:
                unlink(c, i)
                link(c, i, fits)
                looks -= 1
            elif is_drawn_by_other(c, i, me):
                shared = i
                looks -= 1
            else:
                return i
            i = following
        which -= 1
    for spare in (EMPTY, FRESH):
        i = load8(c + C_HEADS, spare)
        if i >= 0:
            return i
    if control.n_slabs < control.committed:
        return make_slab(c)
    if control.committed < control.max_slabs:
        return int64(MUST_GROW)
    return shared if shared != NO_SLAB else some_partial(c)  # the looks may have run out before a list was reached


# --- Slots out and in ---


@inlined
def slab_draw(c: int, i: int, room: int) -> Any:
    """
    Take up to `room` slots of one block of 64 from slab `i`.

    Returns (first slot of the block, mask of the slots taken, how many); recycled slots before fresh ones, whole runs of
    16 generations where they fit, at least one slot.
    Needs   the lock, and a slab that is not full.
    Keeps   L1 to L6 but for the state, which `slab_lost` sets.
    """
    slab = slab_at(c, i)
    shift = control_at(c).shift
    slots = int64(1) << shift
    first = i << shift
    if slab.n_free > 0:
        bits = i8_array(frozen(c, C_BITS) + (first >> 6 << 3))
        n_words = max(slots >> 6, 1)
        own = int64(ALL) if slots >= BLOCK else ((int64(1) << slots) - 1) << (first & 63)
        q = int64(slab.rover)
        free = bits[q] & own
        looks = n_words
        while free == 0 and looks > 0:
            looks -= 1
            q += 1
            if q == n_words:
                q = 0
            free = bits[q] & own
        n = popcount(free)
        if n > room:
            free = fitting(free, room)
            n = popcount(free)
        bits[q] &= ~free
        slab.rover = q
        slab.n_free = slab.n_free - n if free != 0 else 0
        return (first >> 6 << 6) + (q << 6), free, n
    at = first + ((slab.colour + slots - slab.n_fresh) & (slots - 1))
    n = min(min(int64(slab.n_fresh), room), min(BLOCK - (at & 63), first + slots - at))
    whole = ((at + n) & -RUN) - at
    if n < slab.n_fresh and whole > 0:
        n = whole
    words = u4_array(frozen(c, C_WORDS) + at * 4)
    base = np.uint32(slab.base)
    for j in range(n):
        words[j] = base
    slab.n_fresh -= n
    mask = int64(ALL) if n == BLOCK else ((int64(1) << n) - 1) << (at & 63)
    return at & -BLOCK, mask, n


@kernel
def fitting(free: int, room: int) -> int:
    """Return the part of a mask that has at most `room` bits: whole runs of 16, or the lowest bits where no run fits."""
    taken = int64(0)
    left = room
    for k in range(0, BLOCK, RUN):
        run = free & (int64(RUN_MASK) << k)
        n = popcount(run)
        if n <= left:
            taken |= run
            left -= n
    if taken == 0:
        for _ in range(room):
            taken |= free & -free
            free &= free - 1
    return taken


@kernel
def put_block(c: int, block: int, mask: int) -> int:
    """
    Give back the slots of a mask in block number `block` (64 slots each), all of one slab; returns how many.

    A slot that is there already (freed twice at the same instant, by a race in the user's code) changes nothing.
    Needs   the lock, and even generations.
    Keeps   all laws but L8: the caller lowers `out` by what came back, once for many.
    """
    bits = frozen(c, C_BITS)
    control = control_at(c)
    old = load8(bits, block)
    store8(bits, block, old | mask)
    i = ((block << 6) + lowest_bit(mask)) >> control.shift
    n = popcount(mask & ~old)
    slab = slab_at(c, i)
    slab.n_free += n
    if unlikely(slab.state == FULL or slab.n_free + slab.n_fresh == ONE << control.shift):
        relist(c, i)
    return n


@kernel
def put_slots(c: int, source: int, count: int) -> None:
    """
    Give back the slots in the u4 array at `source`, together those of a line of generations that stand together.

    Needs   the lock, and even generations.
    """
    slots = u4_array(source)
    shift = min(control_at(c).shift, int64(6))
    key, mask, given = int64(slots[0]) >> shift, int64(0), int64(0)
    j = int64(0)
    while j < count:
        slot = int64(slots[j])
        ends_alike = j + RUN <= count and int64(slots[j + RUN - 1]) >> RUN_SHIFT == slot >> RUN_SHIFT
        if ends_alike and shift >= RUN_SHIFT and is_run(source + j * 4):
            bits, got = int64(RUN_MASK) << (slot & (BLOCK - RUN)), int64(RUN)
        else:
            bits, got = ONE << (slot & (BLOCK - 1)), ONE
        if slot >> shift != key:
            given += put_block(c, key << shift >> 6, mask)
            key, mask = slot >> shift, int64(0)
        mask |= bits
        j += got
    given += put_block(c, key << shift >> 6, mask)
    control_at(c).out -= given


# --- Memory ---


@kernel
def commit_slabs(c: int, n_slabs: int) -> bool:
    """Make the memory of the first n slabs usable; whether the system granted it."""
    control = control_at(c)
    slots = n_slabs << control.shift
    rows = (control.slabs - n_slabs * ROW) & -page_bytes
    return (
        commit(rows, control.slabs + ROW - rows)
        and commit(control.bits, (slots + BLOCK - 1) // BLOCK * 8)
        and commit(control.words & -page_bytes, (slots + BLOCK) * 4 + page_bytes)
        and commit(control.records, slots * control.stride)
    )


@Entry
def grow(c: int, n_slabs: int) -> int:
    """
    Make the memory of at least `n_slabs` more slabs usable, ahead of use; 1: the system granted it.

    Needs   that the lock is not held.  Two at once do no harm: both ask for prefixes of the same regions.
    """
    control = control_at(c)
    old = int64(control.committed)
    most = int64(control.max_slabs)
    ahead = max(old >> 2, int64(RELEASE_BYTES) // (control.stride << control.shift))
    new = min(old + max(ahead, n_slabs), most)
    if new == old:
        return ZERO
    granted = commit_slabs(c, new)
    if not granted:
        new = min(old + n_slabs, most)
        granted = commit_slabs(c, new)
    if not granted:
        return ZERO
    slab_bytes = control.stride << control.shift
    if old * slab_bytes >= HUGE_BYTES:
        start = (control.records + old * slab_bytes) & -page_bytes
        prefer_huge_pages(start, control.records + new * slab_bytes - start)
    lock(c)
    if control.closed == 0:
        control.committed = max(int64(control.committed), new)
    unlock(c)
    return ONE if old + n_slabs <= most else ZERO


@kernel
def end_of_interval(c: int) -> int:
    """
    Count one refill or flush; at the end of an interval return how many empty slabs it never needed.

    An interval is long enough for all slots to come and go: who builds a structure, drops it and builds it again would
    otherwise get every page anew each time (1.8 us, as long as all the rest of the page's 64 records).
    Needs   the lock.
    """
    control = control_at(c)
    control.ticks += 1
    if control.ticks < control.interval_end:
        return int64(0)
    slots = (control.n_slabs - control.first_slab) << control.shift
    control.interval_end = control.ticks + max(int64(INTERVAL), TURNOVERS * slots // control.rounds)
    surplus = int64(control.low_empty)
    control.low_empty = int64(control.n_empty)
    return surplus if surplus * (control.stride << control.shift) >= RELEASE_BYTES else int64(0)


@Entry
def release(c: int, count: int) -> int:
    """
    Give the memory of up to `count` empty slabs back to the system, the longest empty first; returns how many.

    A released slab is fresh again: its row keeps the highest generation that it issued and its words restart there, so
    that no handle of before is taken for one of after, and the generations' pages go back too.
    Needs   that the lock is not held, and a heap of the cache.
    """
    control = control_at(c)
    chain = int64(NIL)
    lock(c)
    if control.releasing == 0 and control.closed == 0:
        control.releasing = 1
        for _ in range(count):
            i = load8(c + C_TAILS, EMPTY)
            if i < 0:
                break
            slab = slab_at(c, i)
            unlink(c, i)
            slab.state = RELEASING
            slab.next = chain
            chain = i
        if chain < 0:
            control.releasing = 0
    unlock(c)
    done = int64(0)
    if chain < 0:
        return done
    i = chain
    while i >= 0:  # nobody else touches a slab that is on no list
        slab = slab_at(c, i)
        highest = highest_free_word(c, i)
        if 0 <= highest < WORN:
            slab.base = np.uint32(max(highest, int64(slab.base)))
            slab.n_fresh = int64(1) << control.shift
            done += 1
        else:
            slab.state = FREE  # worn, or a live record in an empty slab, as `check` will tell: its memory stays
        i = int64(slab.next)
    i = chain
    while i >= 0:
        slab = slab_at(c, i)
        if slab.state == RELEASING:
            give_back_run(c, i)
        i = int64(slab.next)
    lock(c)
    while chain >= 0:
        slab = slab_at(c, chain)
        following = int64(slab.next)
        slab.state = FREE
        if slab.n_fresh == int64(1) << control.shift:
            clear_bits(c, chain)
            slab.n_free = 0
            link(c, chain, L_FRESH)
        else:
            link(c, chain, L_EMPTY)
        chain = following
    control.released += done
    control.releasing = 0
    unlock(c)
    return done


@kernel
def highest_free_word(c: int, i: int) -> int:
    """Return the highest generation of slab `i`, or -1 if one of them is odd."""
    shift = control_at(c).shift
    words = u4_array(frozen(c, C_WORDS) + (i << shift) * 4)
    highest, odd = np.uint32(0), np.uint32(0)
    for j in range(int64(1) << shift):
        odd |= words[j]
        highest = max(highest, words[j])
    return int64(-1) if odd & np.uint32(1) else int64(highest)


@kernel
def clear_bits(c: int, i: int) -> None:
    """Clear the free bits of slab `i`."""
    shift = control_at(c).shift
    first, slots = i << shift, int64(1) << shift
    bits = i8_array(frozen(c, C_BITS))
    if slots < BLOCK:
        bits[first >> 6] &= ~(((int64(1) << slots) - 1) << (first & 63))
    else:
        for q in range(first >> 6, (first + slots) >> 6):
            bits[q] = 0


@kernel
def give_back_run(c: int, first: int) -> None:
    """
    Give back the pages of the records and generations of the run of slabs being released that starts with `first`.

    Does nothing if the slab before is of the same run.  A page that the run shares with a slab that stays, stays.
    """
    control = control_at(c)
    if first > control.first_slab and slab_at(c, first - 1).state == RELEASING:
        return
    end = first + 1
    while end < control.n_slabs and slab_at(c, end).state == RELEASING:
        end += 1
    for base, unit in ((control.records, control.stride), (control.words, int64(4))):
        start = (base + (first << control.shift) * unit + page_bytes - 1) & -page_bytes
        stop = (base + (end << control.shift) * unit) & -page_bytes
        if stop > start:
            give_back(start, stop - start)
