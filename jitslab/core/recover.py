"""
The index over the generations: counted (`parked`, `live_of`), rebuilt (`rebuild`), recounted (`check_laws`).

Above `slab`, below `heap`.  All that the free bits, counts, states, lists and magazines say follows from the generations;
these kernels derive it anew.  They need the lock, and a cache at rest: a slot between a heap and the user is in no place
that they can see.
"""

from __future__ import annotations

import numpy as np

from ..machine.compile import Entry, int64, kernel
from ..machine.memory import (
    fetch_add,
    frozen,
    i8_array,
    load4,
    load4_relaxed,
    load8,
    load8_relaxed,
    lowest_bit,
    pause,
    store8,
    store8_release,
    thread_pointer,
    u4_array,
    unlikely,
    zero_bytes,
)
from ..machine.system import yield_core
from .calls import call_table, control_at, heap_at
from .layout import (
    BLOCK,
    EMPTY,
    FREE,
    FRESH,
    FULL,
    HEAP_ROWS,
    LISTS,
    MAGAZINE,
    NIL,
    OWN,
    PARTIALLY_USED,
    QUARTERS,
    RETIRED,
    ROUNDS,
    TAKEN,
    TORN,
    C,
)
from .slab import (
    ALL,
    C_BITS,
    C_FRONT,
    C_HEADS,
    C_HEAP_STEP,
    C_HEAPS,
    C_LIMIT,
    C_NODES,
    C_TAILS,
    C_WORDS,
    L_EMPTY,
    L_FRESH,
    ONE,
    ZERO,
    clear_bits,
    link,
    lock,
    quarter,
    set_at,
    slab_at,
    unlock,
)

C_CLAIMED, C_FAULTS, C_TICKS = C["claimed"], C["faults"], C["ticks"]
C_OWN_HEAPS, C_OWN_STEP, F_CLAIM = C["own_heaps"], C["own_step"], C["f_claim"]
EVEN = -2
SAMPLES = 4000  # looks of `is_moving`: some 100 microseconds


@kernel
def next_claimed(c: int, row: int) -> int:
    """Return the first heap row at or after `row` that was ever claimed, or NIL."""
    while row < OWN + HEAP_ROWS:
        bits = load8_relaxed(c + C_CLAIMED, row >> 6) & (int64(ALL) << (row & 63))
        if bits != 0:
            return (row & -BLOCK) + lowest_bit(bits)
        row = (row & -BLOCK) + BLOCK
    return int64(NIL)


@kernel
def heap_row(c: int, row: int) -> int:
    """Return the address of a heap by its row: those of threads first, then the array set's own."""
    if row < OWN:
        return frozen(c, C_HEAPS) + row * frozen(c, C_HEAP_STEP)
    return frozen(c, C_OWN_HEAPS) + (row - OWN) * frozen(c, C_OWN_STEP)


@kernel
def row_of_heap(c: int, at: int) -> int:
    """Return the row of a heap by its address; with one array set its own heaps are the last ones of the threads'."""
    heaps, own, step = frozen(c, C_HEAPS), frozen(c, C_OWN_HEAPS), frozen(c, C_OWN_STEP)
    if own != heaps and own <= at < own + HEAP_ROWS * step:
        return OWN + (at - own) // step
    return (at - heaps) // frozen(c, C_HEAP_STEP)


@kernel
def next_heap(c: int, row: int) -> int:
    """Return the first row at or after `row` whose heap is this array set's, or NIL."""
    row = next_claimed(c, row)
    while row >= 0 and heap_at(heap_row(c, row)).control != c:
        row = next_claimed(c, row + 1)
    return row


@kernel
def is_of(owner: int, me: int) -> bool:
    """Whether an owner word is that of thread `me`, also where a fork made it odd."""
    return owner & EVEN == me


@kernel
def own_heap(c: int) -> None:
    """Have the calling thread own a heap of the cache: a fork takes it that nobody else changes the slab layer."""
    call_table(frozen(c, C_FRONT), F_CLAIM, (thread_pointer(),))


@kernel
def parked(c: int) -> int:
    """Return how many slots are in magazines."""
    n = int64(0)
    row = next_heap(c, ZERO)
    while row >= 0:
        n += heap_at(heap_row(c, row)).top
        row = next_heap(c, row + 1)
    return n


@kernel
def live_of(c: int) -> int:
    """Return how many records of one array set are live: exact at rest."""
    control = control_at(c)
    return max(control.out - parked(c) - control.retired, int64(0))


@kernel
def live_of_all(c: int) -> int:
    """
    Return how many records of the cache are live: exact at rest, and while slots go home at the end of a thread.

    Needs   that no lock of the cache is held: each array set is counted under its own.
    """
    n = ZERO
    for node in range(frozen(c, C_NODES)):
        home = set_at(c, node)
        lock(home)
        n += live_of(home)
        unlock(home)
    return n


@kernel
def trace_of(c: int, heap: int) -> int:
    """
    Return a number that changes as the heap's owner allocs and frees.

    A loop of pairs that is compiled well stores the same `top` for ever: the generation of the slot popped last tells.
    """
    top = load8_relaxed(heap, 1)
    slot = load4_relaxed(heap + MAGAZINE, min(max(top, ZERO), int64(ROUNDS - 1)))
    word = load4_relaxed(frozen(c, C_WORDS), slot) if slot < load8_relaxed(c + C_LIMIT, 0) else ZERO
    return (word << 32 | slot) ^ (top << 20)


@Entry
def is_moving(c: int) -> int:
    """1 if another thread's heap of this array set, or its slab layer, changes while it is looked at for a while, else 0."""
    me = thread_pointer()
    control = control_at(c)
    ticks = load8_relaxed(c + C_TICKS, 0)
    row = next_heap(c, ZERO)
    while row >= 0:
        heap = heap_row(c, row)
        if not is_of(load8_relaxed(heap, 0), me):
            trace = trace_of(c, heap)
            for k in range(SAMPLES):
                if trace_of(c, heap) != trace:
                    return ONE
                if k & 255:
                    pause()
                else:
                    yield_core()  # a thread that waits for a core is to be seen moving, too
        row = next_heap(c, row + 1)
    return ONE if load8_relaxed(c + C_TICKS, 0) != ticks or control.releasing != 0 else ZERO


# --- Rebuild ---


@kernel
def is_fresh(c: int, i: int, at: int) -> bool:
    """Whether slot number `at` of slab `i` was never handed out."""
    slab = slab_at(c, i)
    slots = int64(1) << control_at(c).shift
    return (at - slab.colour - (slots - slab.n_fresh)) & (slots - 1) < slab.n_fresh and slab.n_fresh > 0


@kernel
def rebuild_bits(c: int, i: int) -> int:
    """Set the free bits of slab `i` from its generations; returns how many of its slots are retired."""
    control = control_at(c)
    slab = slab_at(c, i)
    slots = int64(1) << control.shift
    first = i << control.shift
    words = u4_array(frozen(c, C_WORDS))
    bits = i8_array(frozen(c, C_BITS))
    if slab.n_fresh < 0 or slab.n_fresh > slots or slab.colour < 0 or slab.colour >= slots:
        slab.n_fresh = 0
        slab.colour = 0
    slab.base = max(slab.base, np.uint32(control.start))
    slab.rover = 0
    for at in range(slots):
        if is_fresh(c, i, at) and (words[first + at] & 1 != 0 or words[first + at] > slab.base):
            slab.n_fresh = 0  # not to be believed: all of them are looked at
            break
    clear_bits(c, i)
    n_free, retired = 0, 0
    for at in range(slots):
        if is_fresh(c, i, at):
            continue
        slot = first + at
        word = int64(words[slot])
        if word & TAKEN == 0:
            if word < slab.base:
                words[slot] = slab.base
            bits[slot >> 6] |= int64(1) << (slot & 63)
            n_free += 1
        elif word & 1 == 0:
            retired += 1
    slab.n_free = n_free
    return retired


@kernel
def keep_magazine(c: int, heap: int) -> None:
    """Clear the free bits of the slots in a magazine; entries that are no free slot, or stand there twice, are dropped."""
    h = heap_at(heap)
    control = control_at(c)
    slots = u4_array(heap + MAGAZINE)
    bits = i8_array(frozen(c, C_BITS))
    kept = 0
    for j in range(max(min(h.top, h.rounds), int64(0))):
        slot = int64(slots[j])
        bit = int64(1) << (slot & 63)
        if control.first_slot <= slot < control.n_slabs << control.shift and bits[slot >> 6] & bit != 0:
            bits[slot >> 6] &= ~bit
            slab_at(c, slot >> control.shift).n_free -= 1
            slots[kept] = np.uint32(slot)
            kept += 1
    h.top = kept


@Entry
def rebuild(c: int) -> int:
    """
    Rebuild the index from the generations; magazines keep what they rightly hold.

    Nothing else in the index is believed: in a child of `fork` it may have been copied in the middle of a change.
    Needs   the lock, and rest.
    Keeps   all laws.  O(slots).
    """
    control = control_at(c)
    retired, out = 0, int64(0)
    first = int64(control.first_slab)
    control.n_slabs = min(max(control.n_slabs, first), control.max_slabs)
    store8_release(c + C_LIMIT, 0, control.n_slabs << control.shift)
    for i in range(first, control.n_slabs):
        retired += rebuild_bits(c, i)
    row = next_heap(c, ZERO)
    while row >= 0:
        keep_magazine(c, heap_row(c, row))
        row = next_heap(c, row + 1)
    for which in range(LISTS):
        store8(c + C_HEADS, which, int64(NIL))
        store8(c + C_TAILS, which, int64(NIL))
    control.n_empty = 0
    control.low_empty = 0
    slots = int64(1) << control.shift
    for i in range(control.n_slabs - 1, first - 1, -1):
        slab = slab_at(c, i)
        spare = int64(slab.n_free) + slab.n_fresh
        out += slots - spare
        slab.list = NIL
        slab.drawer = NIL
        if spare == 0:
            slab.state = FULL
        elif spare == slots:
            slab.state = FREE
            link(c, i, L_FRESH if slab.n_fresh == slots else L_EMPTY)
        else:
            slab.state = PARTIALLY_USED
            link(c, i, quarter(c, i))
    control.out = out
    control.retired = retired
    control.releasing = 0
    return ZERO


@kernel
def wake(c: int) -> None:
    """Rebuild the index of a cache that is torn: what reads it without the lock comes by here first."""
    if unlikely(control_at(c).torn == TORN):
        lock(c)  # which does it
        unlock(c)


@kernel
def wake_all(c: int) -> None:
    """Wake every array set of the cache."""
    for node in range(frozen(c, C_NODES)):
        wake(set_at(c, node))


@Entry
def recover_cache(c: int) -> int:
    """Rebuild one array set under its lock."""
    own_heap(c)
    control_at(c).torn = TORN
    wake(c)
    return ZERO


@Entry
def count_live(c: int) -> int:
    """Count the live records of the cache."""
    return live_of_all(c)


@Entry
def count_live_in(c: int) -> int:
    """Count the live records of one array set."""
    lock(c)
    n = live_of(c)
    unlock(c)
    return n


# --- Check ---


@kernel
def broken(law: int, slab: int) -> int:
    """Return the number of a broken law and a slab (or NIL) in one."""
    return law << 32 | (slab + 1)


@kernel
def check_magazines(c: int, parked_bits: int, start: int, end: int) -> int:
    """L9, L1 among magazines; sets a bit for each of the slots from `start` to `end` that is in one."""
    control = control_at(c)
    seen = i8_array(parked_bits)
    row = next_heap(c, ZERO)
    while row >= 0:
        heap = heap_row(c, row)
        h = heap_at(heap)
        if h.top < 0 or h.top > control.rounds:
            return broken(int64(9), int64(NIL))
        for j in range(h.top):
            slot = load4(heap + MAGAZINE, j)
            if slot < control.first_slot or slot >= control.n_slabs << control.shift:
                return broken(int64(9), int64(NIL))
            if start <= slot < end:
                bit, word = int64(1) << (slot & 63), (slot - start) >> 6
                if seen[word] & bit != 0:
                    return broken(int64(1), slot >> control.shift)
                seen[word] |= bit
        row = next_heap(c, row + 1)
    return int64(0)


@kernel
def check_slab(c: int, i: int, parked_bits: int, start: int) -> int:
    """L1 to L6 of one slab; the bits of slots in magazines are those from slot `start` on."""
    control = control_at(c)
    slab = slab_at(c, i)
    slots = int64(1) << control.shift
    if slab.n_fresh < 0 or slab.n_fresh > slots:
        return broken(int64(2), i)
    seen, bits = i8_array(parked_bits), i8_array(frozen(c, C_BITS))
    live, in_magazines, n_bits, retired = 0, 0, 0, 0
    for at in range(slots):
        slot = (i << control.shift) + at
        word = load4(frozen(c, C_WORDS), slot)
        parked_here = seen[(slot - start) >> 6] >> (slot & 63) & 1
        free_here = bits[slot >> 6] >> (slot & 63) & 1
        fresh_here = 1 if is_fresh(c, i, at) else 0
        places = parked_here + free_here + fresh_here
        if word & 1 != 0 and places > 0:
            return broken(int64(4), i)
        if places > 1:
            return broken(int64(1), i)
        if fresh_here and word > slab.base:
            return broken(int64(5), i)
        if word & 1 != 0:
            live += 1
        elif places == 0:
            if word & RETIRED == 0:
                return broken(int64(1), i)
            retired += 1
        in_magazines += parked_here
        n_bits += free_here
    if slab.n_free != n_bits:
        return broken(int64(3), i)
    if live + in_magazines + slab.n_free + slab.n_fresh + retired != slots:
        return broken(int64(2), i)
    spare = int64(slab.n_free) + slab.n_fresh
    expected = FULL if spare == 0 else (FREE if spare == slots else PARTIALLY_USED)
    return int64(0) if slab.state == expected else broken(int64(6), i)


@kernel
def check_lists(c: int) -> int:
    """L7, L8."""
    control = control_at(c)
    slots = int64(1) << control.shift
    on_lists, spare_slabs, n_empty, out = 0, 0, 0, int64(0)
    for which in range(LISTS):
        previous, i = int64(NIL), load8(c + C_HEADS, which)
        while i != NIL:
            on_lists += 1
            if i < control.first_slab or i >= control.n_slabs or on_lists > control.n_slabs - control.first_slab:
                return broken(int64(7), int64(NIL))
            slab = slab_at(c, i)
            state = PARTIALLY_USED if which < QUARTERS else FREE
            if slab.list != which or slab.prev != previous or slab.state != state:
                return broken(int64(7), i)
            if which >= QUARTERS and (slab.n_fresh == slots) != (which == FRESH):
                return broken(int64(7), i)
            n_empty += 1 if which == EMPTY else 0
            previous, i = i, int64(slab.next)
        if load8(c + C_TAILS, which) != previous:
            return broken(int64(7), previous)
    for i in range(control.first_slab, control.n_slabs):
        slab = slab_at(c, i)
        spare_slabs += 1 if slab.state != FULL else 0
        if slab.state == FULL and slab.list != NIL:
            return broken(int64(7), i)
        out += slots - slab.n_free - slab.n_fresh
    if on_lists != spare_slabs:
        return broken(int64(7), int64(NIL))
    return int64(0) if control.out == out and control.n_empty == n_empty else broken(int64(8), int64(NIL))


@Entry
def check_laws(c: int, parked_bits: int, n_words: int) -> int:
    """
    Recount everything of one array set from the generations.

    c            int64   address of its CONTROL row
    parked_bits  int64   address of words to work with, for the slots of one slab at least
    n_words      int64   how many words

    Returns 0, or ``law << 32 | slab + 1`` of the first broken law (slab NIL: of the whole cache).  O(slots).
    Needs   rest.
    """
    control = control_at(c)
    lock(c)
    answer, i, end = int64(0), int64(control.first_slab), int64(control.n_slabs)
    while answer == 0:  # as many slabs at a time as the words have bits for
        start, stop = i << control.shift, min(i + (n_words * BLOCK >> control.shift), end)
        zero_bytes(parked_bits, n_words * 8)
        answer = check_magazines(c, parked_bits, start, stop << control.shift)
        while answer == 0 and i < stop:
            answer = check_slab(c, i, parked_bits, start)
            i += 1
        if i >= end:
            break
    if answer == 0:
        answer = check_lists(c)
    unlock(c)
    return answer


@kernel
def note_fault(c: int, handle: int, kind: int) -> None:
    """Count a fault of the cache; the first one since the last report is remembered."""
    front = frozen(c, C_FRONT)
    if fetch_add(front + C_FAULTS, 1) == 0:
        control = control_at(front)
        control.fault_first = handle
        control.fault_kind = kind
