"""
Scans: the handles of live records, a word of 64 slots at a time.

A scan visits the records that are live at its start and still live at their turn.
"""

from __future__ import annotations

from typing import Any

from ..machine.compile import Entry, inlined, int64, kernel
from ..machine.memory import likely, load8, lowest_bit, prefetch_read, shift_right, store1, thread_pointer, unlikely
from ..machine.pointers import address_in, i8s, load_acquire, load_relaxed
from .calls import call
from .heap_table import heap_at_index, is_owner, next_heap, wake
from .layout import (
    BACK_HEAP,
    FIRST_NODE_HEAP,
    FREE,
    FULL,
    LINE_SLOTS,
    NULL,
    PARTIALLY_USED,
    SLOT_MASK,
    TORN,
    WORD_SHIFT,
    WORD_SLOTS,
    Control,
    Heap,
    control_at,
)
from .slab import ALL, LINE_MASK, node_at, node_of_slot, slab_row
from .vectors import is_line, live_mask

# --- The slots that a scan visits ---


@Entry
def note_live(c: int, out: int, end: int) -> int:
    """
    Note the slots below `end` that a scan which starts now visits, if they are live at their turn: bit i of the array at `out`.

    A slot is noted if it is outside the slab layer and in no magazine that the calling thread takes slots from.  So a record that
    the thread allocates meanwhile is not visited.  For 64 slots one word is read, not their generations.
    """
    control = control_at(c)
    noted = i8s(out)
    wake(control)
    for number in range(control.nodes):
        node = node_at(control, number)
        if control.shift < WORD_SHIFT:
            for base in range(node.first_slot, min(node.state.limit, end), WORD_SLOTS):
                noted[base >> WORD_SHIFT] = live_mask(control.generations, base)
        else:
            for i in range(node.first_slab, min(node.state.n_slabs, end >> control.shift)):
                note_slab(node, i, out)
    me = thread_pointer()
    for number in range(control.nodes):
        node = node_at(control, number)
        index = next_heap(node, 0)
        while index >= 0:
            heap = heap_at_index(node, index)
            if is_owner(load_acquire(heap, "owner"), me) or index == FIRST_NODE_HEAP + BACK_HEAP:
                note_magazine(heap, out, end)
            index = next_heap(node, index + 1)
    return 0


@kernel
def note_slab(control: Control, i: int, out: int) -> None:
    """Note the slots of a slab that are outside the slab layer, for `note_live`."""
    slab, bits, noted = slab_row(control, i), control.bits, i8s(out)
    state, fresh, slots = slab.state, slab.n_fresh, 1 << control.shift
    oldest = (slab.colour + slots - fresh) & (slots - 1)  # the first fresh slot; the others follow it and wrap
    first = i << control.shift >> WORD_SHIFT
    for k in range(slots >> WORD_SHIFT):
        mask = int64(0)
        if state == PARTIALLY_USED or state == FULL:
            mask = ~bits[first + k]
            if fresh > 0:
                at = ((k << WORD_SHIFT) - oldest) & (slots - 1)  # the word's first slot, counted from `oldest`
                before_wrap = low_bits(slots - at)
                mask &= ~(low_bits(fresh - at) & before_wrap | low_bits(slots - at + fresh) & ~before_wrap)
        noted[first + k] = mask


@kernel
def note_magazine(heap: Heap, out: int, end: int) -> None:
    """Clear the bits of the slots in a magazine, for `note_live`."""
    magazine, noted = heap.magazine, i8s(out)
    j, n = 0, heap.top
    while j < n:
        slot = magazine[j]
        mask, got = int64(1) << (slot & 63), 1
        if j + LINE_SLOTS <= n and is_line(address_in(heap, "magazine") + j * 4):
            mask, got = int64(LINE_MASK) << (slot & 63 & -LINE_SLOTS), LINE_SLOTS
        if slot < end:
            noted[slot >> WORD_SHIFT] &= ~mask
        j += got


@kernel
def low_bits(n: int) -> int:
    """Return a mask of the lowest n of 64 bits; 0 if n is negative."""
    return ALL if n >= WORD_SLOTS else (int64(1) << max(n, 0)) - 1


# --- The next live record ---


@kernel
def mask_at(generations: Any, noted: int, all_: int, end: int, base: int) -> int:
    """Return the mask of the live slots that a scan visits in the word at `base`; 0 at the end."""
    return live_mask(generations, base) & load8(noted, base >> WORD_SHIFT & all_) if base < end else 0


@inlined
def next_live(
    control: Control, generations: Any, noted: int, all_: int, end: int, base: int, mask: int, after: int, ahead: int
) -> Any:
    """
    Return (base, mask, after, ahead, handle, 1) of the next live record of a scan by words of 64; NULL and 0 at the end.

    noted  int64   address of the bits that `note_live` set when the scan started
    all_   int64   -1; or 0 if there was no memory for those bits: the first word then stands for all
    after  int64   mask of the word after `base`
    ahead  int64   that mask without the slots whose records were prefetched

    Starts with base -64, mask 0, and `mask_at` 0 as after and ahead.  Slabs that are FREE are skipped.
    """
    while True:
        while mask == 0:
            base += WORD_SLOTS
            if base >= end:
                return base, mask, after, ahead, int64(NULL), int64(0)
            mask = after
            if unlikely(mask == 0):
                base = skip(control, noted, all_, end, base)
            after = mask_at(generations, noted, all_, end, base + WORD_SLOTS)
            ahead = after
        slot = base + lowest_bit(mask)
        mask &= mask - 1
        generation = generations[slot]
        if likely(generation & 1 == 1):
            return base, mask, after, ahead, generation >> 1 << 32 | slot, int64(1)


@inlined
def next_record(
    control: Control,
    generations: Any,
    noted: int,
    all_: int,
    end: int,
    base: int,
    mask: int,
    after: int,
    ahead: int,
    records: int,
    stride: int,
) -> Any:
    """
    `next_live`, which also prefetches one record of the next word.

    It has no branch, since the CPU would mispredict that once a word: if no record is left, an unused address is prefetched.
    """
    base, mask, after, ahead, handle, is_found = next_live(control, generations, noted, all_, end, base, mask, after, ahead)
    prefetch_read(records + (base + WORD_SLOTS + lowest_bit(ahead)) * stride)
    return base, mask, after, ahead & (ahead - 1), handle, is_found


@kernel
def skip(control: Control, noted: int, all_: int, end: int, base: int) -> int:
    """Return the last word from `base` on that comes before a word with slots to visit; the word at `base` has none."""
    base = skip_free(control, base)
    while base + WORD_SLOTS < end and load8(noted, (base >> WORD_SHIFT) + 1 & all_) == 0:
        base += WORD_SLOTS
    return base


@kernel
def skip_free(control: Control, base: int) -> int:
    """Return the last word of the FREE slab that starts at `base`, or the last before the next node; else `base`."""
    if control.nodes > 1:
        node_shift = control.node_shift
        control = node_of_slot(control, base)
        if base >= load_relaxed(control.state, "limit"):
            return (((base >> node_shift) + 1) << node_shift) - WORD_SLOTS
    slots = 1 << control.shift
    if slots > WORD_SLOTS and base & (slots - 1) == 0 and slab_row(control, base >> control.shift).state == FREE:
        return base + slots - WORD_SLOTS
    return base


@kernel
def scan_end(control: Control) -> int:
    """Return the end of a scan that starts now: above the slots of all slabs made so far."""
    end = 0
    for number in range(control.nodes):
        node = node_at(control, number)
        if unlikely(node.torn == TORN):
            call(control, "count", ())  # this rebuilds the index if it is torn
        if node.state.n_slabs > node.first_slab:
            end = max(end, load_relaxed(node.state, "limit"))
    return end


# --- All handles ---


@Entry
def live_handles(c: int, out: int, most: int) -> int:
    """Write the handles of up to `most` live records to the int64 array at `out`, by slot; returns how many there are."""
    control = control_at(c)
    handles, generations, end = i8s(out), control.generations, scan_end(control)
    n, base = 0, 0
    while base < end:
        mask = live_mask(generations, base)
        if mask == 0:
            base = skip_free(control, base)
        while mask != 0:
            slot = base + lowest_bit(mask)
            mask &= mask - 1
            generation = generations[slot]
            if generation & 1 == 1:
                if n < most:
                    handles[n] = generation >> 1 << 32 | slot
                n += 1
        base += WORD_SLOTS
    return n


@Entry
def find_refused(c: int, hs: int, n: int, refused: int) -> int:
    """Set byte p of the array at `refused` if handle p of the n at `hs` is not live; returns how many are not."""
    control = control_at(c)
    handles, generations, limit = i8s(hs), control.generations, scan_end(control)
    bad = 0
    for p in range(n):
        slot = handles[p] & SLOT_MASK
        if slot >= limit or generations[slot] != shift_right(handles[p], 31) | 1:
            store1(refused, p, 1)
            bad += 1
    return bad
