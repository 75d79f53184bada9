"""
Batches and scans: many slots under one hold of the lock, 64 at a time; everything that is live.

Above `heap`, below `entry`.  Small batches, below a quarter of a magazine, go through the caller's heap.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.compile import Entry, inlined, int64, kernel
from ..machine.memory import (
    advance,
    frozen,
    heap_address,
    heap_pointer,
    i8_array,
    likely,
    load4,
    load8,
    load8_acquire,
    load8_relaxed,
    lowest_bit,
    popcount,
    prefetch_read,
    prefetch_write,
    shift_right,
    store1,
    store4,
    store8,
    thread_pointer,
    u4_array,
    unlikely,
)
from .calls import call_table, control_at, heap_at, my_heap
from .heap import (
    BELOW_TOP,
    H_LIMIT,
    H_ROUNDS,
    H_WORDS,
    SLOT_MASK,
    Heap,
    alloc,
    alloc_filled,
    follow,
    free,
    free_any,
    make_live,
    next_slab,
    room_for,
)
from .layout import BACK_HEAP, BLOCK, FREE, FULL, HOLD, MAGAZINE, NO_INIT, NULL, OWN, PARTIALLY_USED, RETIRED, RUN, TAKEN, TORN, C
from .recover import heap_row, is_of, live_of_all, next_heap, own_heap, wake_all
from .slab import (
    ALL,
    C_BITS,
    C_LIMIT,
    C_NODE_SHIFT,
    C_NODES,
    C_WORDS,
    MUST_GROW,
    ONE,
    RUN_MASK,
    RUN_SHIFT,
    ZERO,
    end_of_interval,
    lock,
    put_block,
    set_at,
    set_of,
    slab_at,
    slab_draw,
    slab_lost,
    some_partial,
    unlock,
)
from .vectors import free_row, is_row, is_run, live_mask, make_row_live, store_row

AHEAD = 24  # handles that a batch of frees looks ahead, to have their generations at hand
F_ALLOC_MANY, F_ALLOC_FEW, F_FREE_FEW = C["f_alloc_many"], C["f_alloc_few"], C["f_free_few"]
F_FREE_MANY, F_GROW, F_RELEASE = C["f_free_many"], C["f_grow"], C["f_release"]
F_REFILL, F_FLUSH, F_NOTE, F_LEN = C["f_refill"], C["f_flush"], C["f_note"], C["f_len"]
C_RECORDS = C["records"]
BLOCK_SHIFT = 6


# --- Alloc ---


@kernel
def make_block_live(c: int, block: int, mask: int, out: int) -> int:
    """Make the slots of a mask live; their handles go to the int64 array at `out`.  Returns how many (retired ones drop out)."""
    handles = i8_array(out)
    words = frozen(c, C_WORDS)
    plain = control_at(c).init == NO_INIT
    if plain and mask == ALL and make_row_live(words, block, out, BLOCK):
        return int64(BLOCK)
    n = int64(0)
    for k in range(0, BLOCK, RUN):
        part = mask & (int64(RUN_MASK) << k)
        if plain and part == int64(RUN_MASK) << k and make_row_live(words, block + k, out + n * 8, RUN):
            n += RUN
            continue
        while part != 0:
            handle = make_live(c, block + lowest_bit(part))
            part &= part - 1
            if handle != NULL:
                handles[n] = handle
                n += 1
    return n


@kernel
def alloc_any(c: int, heap: Heap) -> int:
    """Take one slot, filled if the cache's records start filled."""
    control = control_at(c)
    if control.init != NO_INIT:
        return alloc_filled(c, heap, control.stride, control.itemsize)
    return alloc(heap)


@kernel
def large_batch(heap: Heap) -> int:
    """Return how many slots are so many that they go by the slab layer: a quarter of a magazine."""
    return max(heap_at(heap).rounds >> 2, int64(2))


def _make_rows(n: int) -> tuple[Any, Any]:
    """Return kernels that take n slots in a row out of a magazine, or put them in, by a few vector instructions."""

    @inlined
    def pop_row(heap: Heap, top: int, out: int) -> bool:
        """Pop n slots and make them live if they are in a row and all can be handed out; whether they were."""
        at = heap_address(heap) + MAGAZINE + (top - n) * 4
        return is_row(at, n) and make_row_live(frozen(heap, H_WORDS), load4(at, n - 1), out, n)

    @inlined
    def push_row(heap: Heap, top: int, hs: int) -> bool:
        """Free n handles of slots in a row if all are live; whether they were.  In the magazine the first one is uppermost."""
        first = i8_array(hs)[0] & SLOT_MASK
        if first + n > frozen(heap, H_LIMIT) or not free_row(frozen(heap, H_WORDS), first, hs, n):
            return False
        store_row(heap_address(heap) + MAGAZINE + top * 4, first, n)
        return True

    return pop_row, push_row


HALF = RUN // 2
FEW = 4  # slots in a row that vector instructions are worth while for
pop_row, push_row = _make_rows(RUN)
pop_half, push_half = _make_rows(HALF)
pop_few, push_few = _make_rows(FEW)


@kernel
def pop_each(heap: Heap, top: int, out: int, n: int) -> int:
    """Pop n slots, whatever they are, until one cannot be handed out; returns how many."""
    handles = i8_array(out)
    words = frozen(heap, H_WORDS)
    for j in range(n):
        slot = load4(advance(heap, BELOW_TOP), top - j)
        word = load4(words, slot)
        if unlikely(word & TAKEN != 0):
            return int64(j)
        store4(words, slot, word | 1)
        handles[j] = word >> 1 << 32 | slot
    return n


@kernel
def push_each(heap: Heap, top: int, hs: int, n: int) -> int:
    """Free n handles, of whatever slots, until one is refused; returns how many."""
    handles = i8_array(hs)
    words, limit = frozen(heap, H_WORDS), frozen(heap, H_LIMIT)
    for j in range(n):
        handle = handles[j]
        slot = handle & SLOT_MASK
        live = shift_right(handle, 31) | 1
        if unlikely(slot >= limit):
            return int64(j)
        if unlikely(load4(words, slot) != live):
            return int64(j)
        store4(words, slot, live + 1)
        store4(advance(heap, MAGAZINE), top + j, slot)
    return n


@kernel
def pop_run(heap: Heap, out: int, n: int) -> int:
    """Pop up to n slots and make them live, as `alloc` does; returns how many."""
    h = heap_at(heap)
    top = int64(h.top)
    n = min(n, top)
    done = int64(0)
    while done < n:
        left, at = n - done, out + done * 8
        got = int64(RUN)
        if left < RUN or not pop_row(heap, top, at):
            got = int64(FEW)
            if left < FEW or not pop_few(heap, top, at):
                want = min(left, int64(FEW))
                got = pop_each(heap, top, at, want)
                if unlikely(got != want):
                    n = done + got
        top -= got
        done += got
    h.top = top
    return done


@kernel
def push_run(heap: Heap, hs: int, n: int) -> int:
    """Free handles from the first on, as `free` does, until one is refused or the magazine is full; returns how many."""
    h = heap_at(heap)
    top = int64(h.top)
    n = min(n, frozen(heap, H_ROUNDS) - top)
    done = int64(0)
    while done < n:
        left, at = n - done, hs + done * 8
        got = int64(RUN)
        if left < RUN or not push_row(heap, top, at):
            got = int64(FEW)
            if left < FEW or not push_few(heap, top, at):
                want = min(left, int64(FEW))
                got = push_each(heap, top, at, want)
                if unlikely(got != want):
                    n = done + got
        top += got
        done += got
    h.top = top
    return done


@inlined
def alloc_few(c: int, heap: Heap, out: int, n: int) -> int:
    """`alloc_many` of compiled code: one slot, or rows of them, are taken in the caller's code, others by a call."""
    if n == 1:
        handle = alloc(heap)
        if likely(handle != NULL):
            i8_array(out)[0] = handle
        return int64(handle != NULL)
    h = heap_at(heap)
    top = int64(h.top)
    done = int64(0)
    if likely(n <= top):
        while done + RUN <= n and pop_row(heap, top - done, out + done * 8):
            done += RUN
        while done + HALF <= n and pop_half(heap, top - done, out + done * 8):
            done += HALF
        while done + FEW <= n and pop_few(heap, top - done, out + done * 8):
            done += FEW
        h.top = top - done
        if likely(done == n):
            return n
    return call_table(c, F_ALLOC_FEW, (heap_address(heap), out, n, done))


@inlined
def free_few(c: int, heap: Heap, hs: int, n: int) -> int:
    """`free_many` of compiled code, likewise."""
    if n == 1:
        return int64(free(heap, i8_array(hs)[0]))
    h = heap_at(heap)
    top = int64(h.top)
    done = int64(0)
    if likely(n <= frozen(heap, H_ROUNDS) - top):
        while done + RUN <= n and push_row(heap, top + done, hs + done * 8):
            done += RUN
        while done + HALF <= n and push_half(heap, top + done, hs + done * 8):
            done += HALF
        while done + FEW <= n and push_few(heap, top + done, hs + done * 8):
            done += FEW
        h.top = top + done
        if likely(done == n):
            return n
    return done + call_table(c, F_FREE_FEW, (heap_address(heap), hs + done * 8, n - done))


@Entry
def alloc_by_heap(c: int, at: int, out: int, n: int, done: int) -> int:
    """`alloc_many` of the thread whose heap this is, when `done` of the n were taken already: of a magazine that held n."""
    h = heap_at(at)
    few = n - done < large_batch(heap_pointer(at))
    if few and n - done > h.top and not can_have(c, at, n - done):
        return int64(0)
    while few or n - done <= h.top:
        done += pop_run(heap_pointer(at), out + done * 8, n - done)
        if likely(done == n):
            return n
        if h.top != 0 or h.rounds == 0 or call_table(follow(h.control, at), F_REFILL, (at,)) == 0:
            break
    if call_table(c, F_ALLOC_MANY, (out + done * 8, n - done)) == n - done:
        return n
    take_back(c, out, done)
    return int64(0)


@Entry
def free_by_heap(c: int, at: int, hs: int, n: int) -> int:
    """`free_many` of the thread whose heap this is, for a cache with one array set."""
    h = heap_at(at)
    few = n < large_batch(heap_pointer(at))
    done = int64(0)
    while few or n - done <= h.rounds - h.top:
        done += push_run(heap_pointer(at), hs + done * 8, n - done)
        if likely(done == n):
            return n
        if h.top != h.rounds or h.rounds == 0:
            break
        call_table(c, F_FLUSH, (at, max(h.rounds >> 1, int64(1))))
    return done + call_table(c, F_FREE_MANY, (hs + done * 8, n - done, ZERO))


@kernel
def draw_many(c: int, at: int, out: int, n: int) -> int:
    """Draw up to n records from the slab layer; their handles go to the array at `out`.  Returns how many."""
    control = control_at(c)
    shift = control.shift
    done = int64(0)
    lock(c)
    hold = HOLD
    n = room_for(c, at, n)
    while done < n and control.closed == 0:
        i = next_slab(c, at)
        if i == MUST_GROW:
            unlock(c)
            granted = call_table(c, F_GROW, (((n - done - 1) >> shift) + 1,))
            if granted == 0:
                granted = call_table(c, F_GROW, (ONE,))
            lock(c)
            if granted != 0:
                continue
            i = some_partial(c)
        if i < 0:
            break
        block, mask, drawn = slab_draw(c, i, n - done)
        slab_lost(c, i, drawn)
        done += make_block_live(c, block, mask, out + done * 8)
        hold -= drawn
        if hold <= 0 and done < n:
            unlock(c)
            hold = HOLD
            lock(c)
            n = done + room_for(c, at, n - done)  # others were not idle meanwhile
    unlock(c)
    return done


@kernel
def has_room(c: int, n: int) -> bool:
    """Whether n more records are within the capacity: counted, where what is out of the slab layer does not tell."""
    out = ZERO
    for node in range(frozen(c, C_NODES)):
        out += control_at(set_at(c, node)).out
    return out + n <= control_at(c).capacity or live_of_all(c) + n <= control_at(c).capacity


@kernel
def can_have(c: int, at: int, n: int) -> bool:
    """
    Whether n more records are within the capacity, and their memory is granted.

    So a batch is refused before anything is written to the caller's array, which keeps what it held.
    """
    control = control_at(c)
    wake_all(c)
    if control.closed != 0 or not has_room(c, n):
        return False
    return control.nodes > 1 or is_granted(c, n - heap_at(at).top)


@kernel
def is_granted(c: int, n: int) -> bool:
    """Whether the slab layer has memory for n slots, made usable now if need be; with several array sets all of it always is."""
    control = control_at(c)
    slots = (control.n_slabs << control.shift) - control.out  # free or fresh in the slab layer
    missing = n - slots - ((control.committed - control.n_slabs) << control.shift)
    return missing <= 0 or call_table(c, F_GROW, (((missing - 1) >> control.shift) + 1,)) != 0


@kernel
def take_back(c: int, out: int, n: int) -> None:
    """Free the n records of a batch that others left no room for; NULL stands where their handles were."""
    call_table(c, F_FREE_MANY, (out, n, ZERO))
    for i in range(n):
        i8_array(out)[i] = NULL


@Entry
def alloc_many(c: int, out: int, n: int) -> int:
    """
    Take n slots, all or none; the handles go to the int64 array at `out`.

    Returns n, or 0 when the cache has no room for n more.  0.5 ns a record in order.
    """
    heap = my_heap(c)
    at = heap_address(heap)
    handles = i8_array(out)
    done = int64(0)
    is_large = n >= large_batch(heap)
    if (is_large or n > heap_at(at).top) and not can_have(c, at, n):
        return int64(0)
    if is_large:
        done = draw_many(follow(heap_at(heap).control, at), at, out, n)
    while done < n:  # a small batch, or what the slab layer did not have: the caller's magazine counts
        if control_at(c).init == NO_INIT:
            done += pop_run(heap, out + done * 8, n - done)
            if done == n:
                break
        handle = alloc_any(c, heap)
        if handle == NULL:
            take_back(c, out, done)
            return int64(0)
        handles[done] = handle
        done += 1
    return done


# --- Free ---


@Entry
def free_many(c: int, hs: int, n: int, refused: int) -> int:
    """
    Free the valid ones of the n handles at `hs`.

    refused  int64   address of n bytes, set to 1 where a handle is refused, or 0

    Returns how many were freed.  A handle that stands there twice is freed once.
    """
    if unlikely(control_at(c).closed != 0):
        return free_of_closed(c, hs, n, refused)
    heap = my_heap(c)
    handles = i8_array(hs)
    freed = int64(0)
    if n < large_batch(heap):
        p = int64(0)
        while p < n:
            if frozen(c, C_NODES) == 1:
                run = push_run(heap, hs + p * 8, n - p)
                p += run
                freed += run
                if p == n:
                    break
            if free_any(c, heap, handles[p]):
                freed += 1
            else:
                note_refused(refused, p)
            p += 1
        return freed
    if frozen(c, C_NODES) == 1:
        return free_many_of(c, hs, n, refused)
    concerned = ZERO  # one bit an array set
    for p in range(n):
        node = node_of(c, handles[p] & SLOT_MASK)
        concerned |= ONE << (node if node < frozen(c, C_NODES) else ZERO)
    while concerned != 0:
        freed += free_many_of(set_at(c, lowest_bit(concerned)), hs, n, refused)
        concerned &= concerned - 1
    return freed


@kernel
def free_many_of(c: int, hs: int, n: int, refused: int) -> int:
    """Free the valid ones of many handles that are of one array set; the front's refuses those that are of none."""
    control = control_at(c)
    handles = i8_array(hs)
    words = frozen(c, C_WORDS)
    first, end = int64(control.first_slot), control.first_slot + control.node_slots
    freed = int64(0)
    p = int64(0)
    while p < n:
        stop = min(n, p + HOLD)
        lock(c)
        limit = int64(control.limit)
        shift = min(control.shift, int64(6))
        key, mask, given = int64(0), int64(0), int64(0)
        while p < stop:
            handle = handles[p]
            slot = handle & SLOT_MASK
            if unlikely(slot < first or slot >= end):
                if node_of(c, slot) >= control.nodes and control.node == 0:
                    note_refused(refused, p)
                p += 1
                continue
            got = int64(0)
            last = handles[p + RUN - 1] & SLOT_MASK if p + RUN <= stop else ZERO
            if last == slot + RUN - 1 and slot & (RUN - 1) == 0 and shift >= RUN_SHIFT:
                same = (ONE << shift) - (slot & ((ONE << shift) - 1))  # slots up to the end of the block, or of a smaller slab
                got = free_rows(words, slot, hs + p * 8, min(same, min(stop - p, limit - slot)))
            bits = (ONE << got) - 1 if got < BLOCK else int64(ALL)
            if got == 0:
                if p + AHEAD < n:
                    prefetch_write(words + (handles[p + AHEAD] & SLOT_MASK) * 4)
                live = shift_right(handle, 31) | 1
                if unlikely(slot >= limit or load4(words, slot) != live):
                    note_refused(refused, p)
                    p += 1
                    continue
                store4(words, slot, live + 1)
                got, bits = ONE, ONE
            if slot >> shift != key:
                if mask != 0:
                    given += put_block(c, key << shift >> 6, mask)
                key, mask = slot >> shift, int64(0)
            mask |= bits << (slot & 63)
            freed += got
            p += got
        if mask != 0:
            given += put_block(c, key << shift >> 6, mask)
        control.out -= given
        surplus = end_of_interval(c) if control.closed == 0 else int64(0)
        unlock(c)
        if unlikely(surplus > 0):
            call_table(c, F_RELEASE, (surplus,))
    return freed


@kernel
def free_of_closed(c: int, hs: int, n: int, refused: int) -> int:
    """Free the records that an operation got which `close` came into: nothing else is live, and nothing is handed out again."""
    control = control_at(c)
    handles = i8_array(hs)
    end = control.max_slabs << control.shift if control.nodes == 1 else control.nodes << control.node_shift
    freed = int64(0)
    for p in range(n):
        slot = handles[p] & SLOT_MASK
        if slot < end and load4(frozen(c, C_WORDS), slot) == shift_right(handles[p], 31) | 1:
            store4(frozen(c, C_WORDS), slot, int64(RETIRED))
            freed += 1
        else:
            note_refused(refused, p)
    return freed


@kernel
def free_rows(words: int, first: int, hs: int, most: int) -> int:
    """Free up to `most` records of the slots from `first` on, in whole runs, as far as handles are theirs; returns how many."""
    n = int64(0)
    while n + RUN <= most and free_row(words, first + n, hs + n * 8, RUN):
        n += RUN
    return n


@kernel
def note_refused(refused: int, p: int) -> None:
    """Set byte p of the array at `refused`, if there is one."""
    if refused != 0:
        store1(refused, p, 1)


# --- Scans: what is live ---


@Entry
def note_live(c: int, out: int, end: int) -> int:
    """
    Note which slots below `end` a scan visits that starts now, if they are live at their turn: bit i of the array at `out`.

    Those that are out of the slab layer and not in a magazine that the calling thread takes slots from.  So a record that it
    allocates meanwhile is not visited, and of 64 slots one word is looked at, not their generations.
    """
    shift = control_at(c).shift
    wake_all(c)
    for node in range(frozen(c, C_NODES)):
        home = set_at(c, node)
        control = control_at(home)
        if shift < BLOCK_SHIFT:
            for base in range(control.first_slot, min(int64(control.limit), end), BLOCK):
                store8(out, base >> BLOCK_SHIFT, live_mask(frozen(c, C_WORDS) + base * 4))
        else:
            for i in range(control.first_slab, min(int64(control.n_slabs), end >> shift)):
                note_slab(home, i, out)
    me = thread_pointer()
    for node in range(frozen(c, C_NODES)):
        home = set_at(c, node)
        row = next_heap(home, ZERO)
        while row >= 0:
            at = heap_row(home, row)
            if is_of(load8_acquire(at, 0), me) or row == OWN + BACK_HEAP:
                note_magazine(at, out, end)
            row = next_heap(home, row + 1)
    return ZERO


@kernel
def note_slab(c: int, i: int, out: int) -> None:
    """Note for `note_live` the slots of a slab that are out of the slab layer."""
    slab, shift = slab_at(c, i), control_at(c).shift
    state, fresh, slots = int64(slab.state), int64(slab.n_fresh), ONE << shift
    oldest = (slab.colour + slots - fresh) & (slots - 1)  # the fresh slots start here, and wrap
    first = i << shift >> BLOCK_SHIFT
    for k in range(slots >> BLOCK_SHIFT):
        mask = ZERO
        if state == PARTIALLY_USED or state == FULL:
            mask = ~load8(frozen(c, C_BITS), first + k)
            if fresh > 0:
                at = ((k << BLOCK_SHIFT) - oldest) & (slots - 1)  # of the block's first slot, counted from there
                before_wrap = low_bits(slots - at)
                mask &= ~(low_bits(fresh - at) & before_wrap | low_bits(slots - at + fresh) & ~before_wrap)
        store8(out, first + k, mask)


@kernel
def note_magazine(at: int, out: int, end: int) -> None:
    """Take the slots in a magazine out of what `note_live` notes."""
    slots = at + MAGAZINE
    j, n = int64(0), int64(heap_at(at).top)
    while j < n:
        slot = load4(slots, j)
        mask, got = ONE << (slot & 63), ONE
        if j + RUN <= n and is_run(slots + j * 4):
            mask, got = int64(RUN_MASK) << (slot & 63 & -RUN), int64(RUN)
        if slot < end:
            store8(out, slot >> BLOCK_SHIFT, load8(out, slot >> BLOCK_SHIFT) & ~mask)
        j += got


@kernel
def low_bits(n: int) -> int:
    """Return a mask of the lowest n of 64 bits; of none where n is less than 0."""
    return int64(ALL) if n >= BLOCK else (ONE << max(n, ZERO)) - 1


@kernel
def mask_at(words: int, noted: int, all_: int, end: int, base: int) -> int:
    """Return the mask of the slots of the block at `base` that a scan visits and that are live; 0 at the end."""
    return live_mask(words + base * 4) & load8(noted, base >> BLOCK_SHIFT & all_) if base < end else ZERO


@inlined
def next_live(c: int, words: int, noted: int, all_: int, end: int, base: int, mask: int, after: int, ahead: int) -> Any:
    """
    Return (base, mask, after, ahead, handle, 1) of the next live record of a scan by blocks of 64; NULL and 0 at the end.

    noted  int64   address of what `note_live` noted when the scan started
    all_   int64   -1; or 0 if there was no memory for that: its first word then stands for all
    after  int64   mask of the block after `base`
    ahead  int64   the same without the slots whose records were asked for already

    Starts with base -64, mask 0, and twice `mask_at` 0.  Slabs that are FREE are passed over.
    """
    while True:
        while mask == 0:
            base += BLOCK
            if base >= end:
                return base, mask, after, ahead, int64(NULL), ZERO
            mask = after
            if unlikely(mask == 0):
                base = skip(c, noted, all_, end, base)
            after = mask_at(words, noted, all_, end, base + BLOCK)
            ahead = after
        slot = base + lowest_bit(mask)
        mask &= mask - 1
        word = load4(words, slot)
        if likely(word & 1 == 1):
            return base, mask, after, ahead, word >> 1 << 32 | slot, ONE


@inlined
def next_record(
    c: int, words: int, noted: int, all_: int, end: int, base: int, mask: int, after: int, ahead: int, records: int, stride: int
) -> Any:
    """
    `next_live`, and one record of the block after asked for with each of this one.

    Without a branch, which the CPU would guess wrong once a block: of none ahead, a place is asked for that is not used.
    """
    base, mask, after, ahead, handle, is_found = next_live(c, words, noted, all_, end, base, mask, after, ahead)
    prefetch_read(records + (base + BLOCK + lowest_bit(ahead)) * stride)
    return base, mask, after, ahead & (ahead - 1), handle, is_found


@kernel
def skip(c: int, noted: int, all_: int, end: int, base: int) -> int:
    """Return the block before the next one in which a scan visits slots, if they are live; `base` has none."""
    base = skip_free(c, base)
    while base + BLOCK < end and load8(noted, (base >> BLOCK_SHIFT) + 1 & all_) == 0:
        base += BLOCK
    return base


@kernel
def skip_free(c: int, base: int) -> int:
    """Return the last block of the slab that starts at `base` if it is FREE, or before the next array set; else `base`."""
    if frozen(c, C_NODES) > 1:
        c = set_of(c, base)
        if base >= load8_relaxed(c + C_LIMIT, 0):
            return ((node_of(c, base) + 1) << frozen(c, C_NODE_SHIFT)) - BLOCK
    control = control_at(c)
    slots = int64(1) << control.shift
    if slots > BLOCK and base & (slots - 1) == 0 and slab_at(c, base >> control.shift).state == FREE:
        return base + slots - BLOCK
    return base


@kernel
def scan_end(c: int) -> int:
    """Where a scan ends that starts now: above the slots of all slabs made so far."""
    end = ZERO
    for node in range(frozen(c, C_NODES)):
        home = set_at(c, node)
        if unlikely(control_at(home).torn == TORN):
            call_table(c, F_LEN, ())  # which rebuilds the index
        if control_at(home).n_slabs > control_at(home).first_slab:
            end = max(end, load8_relaxed(home + C_LIMIT, 0))
    return end


@kernel
def node_of(c: int, slot: int) -> int:
    """Return the number of the array set that a slot is of."""
    return slot >> frozen(c, C_NODE_SHIFT)


@Entry
def live_handles(c: int, out: int, most: int) -> int:
    """Write the handles of up to `most` live records to the int64 array at `out`, by slot; returns how many there are."""
    handles = i8_array(out)
    words, end = u4_array(frozen(c, C_WORDS)), scan_end(c)
    n, base = int64(0), int64(0)
    while base < end:
        mask = live_mask(frozen(c, C_WORDS) + base * 4)
        if mask == 0:
            base = skip_free(c, base)
        while mask != 0:
            slot = base + lowest_bit(mask)
            mask &= mask - 1
            word = int64(words[slot])
            if word & 1 == 1:
                if n < most:
                    handles[n] = word >> 1 << 32 | slot
                n += 1
        base += BLOCK
    return n


@Entry
def find_refused(c: int, hs: int, n: int, refused: int) -> int:
    """Set byte p of the array at `refused` where handle p of the n at `hs` is not live; returns how many are not."""
    handles = i8_array(hs)
    limit = scan_end(c)
    bad = int64(0)
    for p in range(n):
        slot = handles[p] & SLOT_MASK
        if slot >= limit or load4(frozen(c, C_WORDS), slot) != shift_right(handles[p], 31) | 1:
            store1(refused, p, 1)
            bad += 1
    return bad


@Entry
def clear(c: int) -> int:
    """Free every live record; returns how many.  Needs rest: a record freed elsewhere at the same instant is freed twice."""
    own_heap(c)
    freed = int64(0)
    for node in range(frozen(c, C_NODES)):
        freed += clear_set(set_at(c, node))
    return freed


@kernel
def clear_set(c: int) -> int:
    """Free every live record of one array set."""
    control = control_at(c)
    words = u4_array(frozen(c, C_WORDS))
    freed = int64(0)
    slots = int64(1) << control.shift
    step = min(slots, int64(BLOCK))
    own = int64(ALL) if step == BLOCK else (int64(1) << step) - 1
    for i in range(control.first_slab, control.n_slabs):
        lock(c)
        if control.closed == 0 and slab_at(c, i).state != FREE:
            for first in range(i << control.shift, (i + 1) << control.shift, step):
                mask = live_mask(frozen(c, C_WORDS) + first * 4) & own
                if mask != 0:
                    rest = mask
                    while rest != 0:
                        words[first + lowest_bit(rest)] += np.uint32(1)
                        rest &= rest - 1
                    control.out -= put_block(c, first >> 6, mask << (first & 63))
                    freed += popcount(mask)
        unlock(c)
    return freed


@Entry
def make_ready(c: int, n: int) -> int:
    """Make the memory of n more records usable.  Returns 0: it is; 1: the capacity is too small; 2: the system refuses."""
    control = control_at(c)
    own_heap(c)
    if live_of_all(c) + n > control.capacity:
        return int64(1)
    if control.nodes > 1 or is_granted(c, n):
        return int64(0)
    return int64(2)


@Entry
def alloc_one(c: int) -> int:
    """Take one slot for a caller that has no C method."""
    return alloc_any(c, my_heap(c))


@Entry
def free_one(c: int, handle: int) -> int:
    """Free one record for a caller that has no C method; 1: freed."""
    return int64(free_any(c, my_heap(c), handle))
