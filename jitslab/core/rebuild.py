"""
The index rebuilt from the generations.

Free bits, counts, states, lists and magazines follow from the generations.  `rebuild` needs the lock and a cache at rest: a slot
that a thread is just taking or freeing is in no structure.
"""

from __future__ import annotations

from ..machine.compile import Entry, int64, kernel
from ..machine.memory import lowest_bit, popcount
from ..machine.pointers import store_release
from .grow import clear_bits
from .heap_table import heap_at_index, next_heap, own_heap, wake
from .layout import (
    EMPTY,
    FREE,
    FRESH,
    FULL,
    LISTS,
    NIL,
    NOT_FREE,
    PARTIALLY_USED,
    RETIRED,
    TORN,
    WORD_SHIFT,
    WORD_SLOTS,
    Control,
    Heap,
    control_at,
)
from .slab import link, occupancy_quarter, slab_row
from .vectors import lower_mask, matching_mask


@kernel
def is_fresh(control: Control, i: int, at: int) -> bool:
    """Whether slot number `at` of slab `i` is fresh."""
    slab = slab_row(control, i)
    slots = 1 << control.shift
    return (at - slab.colour - (slots - slab.n_fresh)) & (slots - 1) < slab.n_fresh and slab.n_fresh > 0


@kernel
def trust_fresh(control: Control, i: int) -> None:
    """Take all slots of slab `i` for not fresh, unless its row can be right, and its fresh slots have low, even generations."""
    slab, generations = slab_row(control, i), control.generations
    slots, first = 1 << control.shift, i << control.shift
    if slab.n_fresh < 0 or slab.n_fresh > slots or slab.colour < 0 or slab.colour >= slots:
        slab.n_fresh = 0
        slab.colour = 0
    if slab.n_fresh > 0:
        for at in range(slots):
            generation = generations[first + at]
            if is_fresh(control, i, at) and (generation & 1 != 0 or generation > slab.min_generation):
                slab.n_fresh = 0
                break


@kernel
def own_mask(control: Control, i: int, base: int) -> int:
    """Return the mask of the slots of slab `i` that are not fresh, among the 64 from slot `base` on."""
    first, slots = i << control.shift, 1 << control.shift
    mask = int64(-1) if slots >= WORD_SLOTS else ((int64(1) << slots) - 1) << (first & 63)
    if slab_row(control, i).n_fresh > 0:
        for k in range(max(base, first), min(base + WORD_SLOTS, first + slots)):
            if is_fresh(control, i, k - first):
                mask &= ~(int64(1) << (k & 63))
    return mask


@kernel
def rebuild_bits(control: Control, i: int) -> int:
    """Set the free bits of slab `i` from its generations, 64 at a time; returns how many of its slots are retired."""
    slab, generations, bits = slab_row(control, i), control.generations, control.bits
    slab.min_generation = max(slab.min_generation, control.first_generation)
    slab.rover = 0
    trust_fresh(control, i)
    clear_bits(control, i)
    n_free, retired = 0, 0
    for base in range(i << control.shift & -WORD_SLOTS, (i + 1) << control.shift, WORD_SLOTS):
        own = own_mask(control, i, base)
        free = matching_mask(generations, base, NOT_FREE, 0) & own
        low = lower_mask(generations, base, slab.min_generation) & free
        while low != 0:
            generations[base + lowest_bit(low)] = slab.min_generation
            low &= low - 1
        bits[base >> WORD_SHIFT] |= free
        n_free += popcount(free)
        retired += popcount(matching_mask(generations, base, NOT_FREE, RETIRED) & own)
    slab.n_free = n_free
    return retired


@kernel
def keep_magazine(control: Control, heap: Heap) -> None:
    """Clear the free bits of the slots in a magazine; entries that are not free, or occur twice, are dropped."""
    magazine, bits = heap.magazine, control.bits
    end = control.state.n_slabs << control.shift
    kept = 0
    for j in range(max(min(heap.top, heap.magazine_size), 0)):
        slot = magazine[j]
        bit = int64(1) << (slot & 63)
        if control.first_slot <= slot < end and bits[slot >> WORD_SHIFT] & bit != 0:
            bits[slot >> WORD_SHIFT] &= ~bit
            slab_row(control, slot >> control.shift).n_free -= 1
            magazine[kept] = slot
            kept += 1
    heap.top = kept


@kernel
def relist_all(control: Control) -> int:
    """Put every slab on the list that its counts demand; returns how many slots are outside the slab layer."""
    state, slots, used = control.state, 1 << control.shift, 0
    for which in range(LISTS):
        state.heads[which] = NIL
        state.tails[which] = NIL
    state.n_empty = 0
    state.least_empty = 0
    for i in range(state.n_slabs - 1, control.first_slab - 1, -1):
        slab = slab_row(control, i)
        spare = slab.n_free + slab.n_fresh
        used += slots - spare
        slab.list = NIL
        slab.reserved_by = NIL
        if spare == 0:
            slab.state = FULL
        elif spare == slots:
            slab.state = FREE
            link(control, i, FRESH if slab.n_fresh == slots else EMPTY)
        else:
            slab.state = PARTIALLY_USED
            link(control, i, occupancy_quarter(control, i))
    return used


@Entry
def rebuild(c: int) -> int:
    """
    Rebuild the index from the generations; magazines keep their free slots.

    Nothing else in the index is trusted: in a child of `fork` it may have been copied in the middle of a change.
    Needs   the lock, and rest.
    Keeps   all laws.  O(slots).
    """
    control = control_at(c)
    state = control.state
    retired = 0
    state.n_slabs = min(max(state.n_slabs, control.first_slab), control.max_slabs)
    store_release(state, "limit", state.n_slabs << control.shift)
    for i in range(control.first_slab, state.n_slabs):
        retired += rebuild_bits(control, i)
    index = next_heap(control, 0)
    while index >= 0:
        keep_magazine(control, heap_at_index(control, index))
        index = next_heap(control, index + 1)
    state.used = relist_all(control)
    state.retired = retired
    state.releasing = 0
    return 0


@Entry
def recover(c: int) -> int:
    """Rebuild the index of one node under its lock."""
    control = control_at(c)
    own_heap(control)
    control.torn = TORN
    wake(control)
    return 0
