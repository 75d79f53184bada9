"""The laws (`layout.LAWS`), counted again from the generations; under the lock, at rest."""

from __future__ import annotations

from ..machine.compile import Entry, int64, kernel
from ..machine.memory import zero_bytes
from ..machine.pointers import i8s
from .heap_table import heap_at_index, next_heap
from .layout import (
    EMPTY,
    FREE,
    FRESH,
    FULL,
    LISTS,
    NIL,
    PARTIALLY_USED,
    QUARTERS,
    RETIRED,
    WORD_SHIFT,
    WORD_SLOTS,
    Control,
    control_at,
)
from .rebuild import is_fresh
from .slab import lock, slab_row, unlock


@kernel
def broken(law: int, slab: int) -> int:
    """Return the number of a broken law and its slab (or NIL) in one integer."""
    return law << 32 | (slab + 1)


@kernel
def check_magazines(control: Control, parked_bits: int, start: int, end: int) -> int:
    """Check L9, and L1 among magazines; sets the bit of each slot from `start` to `end` that is in a magazine."""
    seen = i8s(parked_bits)
    first, limit = control.first_slot, control.state.n_slabs << control.shift
    index = next_heap(control, 0)
    while index >= 0:
        heap = heap_at_index(control, index)
        if heap.top < 0 or heap.top > control.magazine_size:
            return broken(9, NIL)
        for j in range(heap.top):
            slot = heap.magazine[j]
            if slot < first or slot >= limit:
                return broken(9, NIL)
            if start <= slot < end:
                bit, word = int64(1) << (slot & 63), (slot - start) >> WORD_SHIFT
                if seen[word] & bit != 0:
                    return broken(1, slot >> control.shift)
                seen[word] |= bit
        index = next_heap(control, index + 1)
    return 0


@kernel
def check_slab(control: Control, i: int, parked_bits: int, start: int) -> int:
    """Check L1 to L6 of one slab; bit 0 of `parked_bits` is that of slot `start`."""
    slab, generations, bits, seen = slab_row(control, i), control.generations, control.bits, i8s(parked_bits)
    slots = 1 << control.shift
    if slab.n_fresh < 0 or slab.n_fresh > slots:
        return broken(2, i)
    live, in_magazines, n_bits, retired = 0, 0, 0, 0
    for at in range(slots):
        slot = (i << control.shift) + at
        generation = generations[slot]
        is_parked = seen[(slot - start) >> WORD_SHIFT] >> (slot & 63) & 1
        is_free = bits[slot >> WORD_SHIFT] >> (slot & 63) & 1
        fresh = 1 if is_fresh(control, i, at) else 0
        places = is_parked + is_free + fresh
        if generation & 1 != 0 and places > 0:
            return broken(4, i)
        if places > 1:
            return broken(1, i)
        if fresh == 1 and generation > slab.min_generation:
            return broken(5, i)
        if generation & 1 != 0:
            live += 1
        elif places == 0:
            if generation & RETIRED == 0:
                return broken(1, i)
            retired += 1
        in_magazines += is_parked
        n_bits += is_free
    if slab.n_free != n_bits:
        return broken(3, i)
    spare = slab.n_free + slab.n_fresh
    if live + in_magazines + spare + retired != slots:
        return broken(2, i)
    expected = FULL if spare == 0 else (FREE if spare == slots else PARTIALLY_USED)
    return 0 if slab.state == expected else broken(6, i)


@kernel
def check_lists(control: Control) -> int:
    """Check L7 and L8."""
    state, first, end = control.state, control.first_slab, control.state.n_slabs
    slots = 1 << control.shift
    on_lists, spare_slabs, n_empty, used = 0, 0, 0, 0
    for which in range(LISTS):
        previous, i = int64(NIL), state.heads[which]
        while i != NIL:
            on_lists += 1
            if i < first or i >= end or on_lists > end - first:
                return broken(7, NIL)
            slab = slab_row(control, i)
            if slab.list != which or slab.prev != previous or slab.state != (PARTIALLY_USED if which < QUARTERS else FREE):
                return broken(7, i)
            if which >= QUARTERS and (slab.n_fresh == slots) != (which == FRESH):
                return broken(7, i)
            n_empty += 1 if which == EMPTY else 0
            previous, i = i, slab.next
        if state.tails[which] != previous:
            return broken(7, previous)
    for i in range(first, end):
        slab = slab_row(control, i)
        spare_slabs += 1 if slab.state != FULL else 0
        if slab.state == FULL and slab.list != NIL:
            return broken(7, i)
        used += slots - slab.n_free - slab.n_fresh
    if on_lists != spare_slabs:
        return broken(7, NIL)
    return 0 if state.used == used and state.n_empty == n_empty else broken(8, NIL)


@Entry
def check_laws(c: int, parked_bits: int, n_words: int) -> int:
    """
    Check all laws of one node.

    c            int64   address of its CONTROL row
    parked_bits  int64   address of scratch words: one bit a slot, for one slab at least
    n_words      int64   how many words

    Returns 0, or ``law << 32 | slab + 1`` of the first broken law (slab NIL: of the whole node).  O(slots).
    Needs   rest.
    """
    control = control_at(c)
    lock(control)
    answer, i, end = 0, control.first_slab, control.state.n_slabs
    while answer == 0:  # as many slabs at a time as `parked_bits` has bits for
        start, stop = i << control.shift, min(i + (n_words * WORD_SLOTS >> control.shift), end)
        zero_bytes(parked_bits, n_words * 8)
        answer = check_magazines(control, parked_bits, start, stop << control.shift)
        while answer == 0 and i < stop:
            answer = check_slab(control, i, parked_bits, start)
            i += 1
        if i >= end:
            break
    if answer == 0:
        answer = check_lists(control)
    unlock(control)
    return answer
