"""
Batches and scans: many slots under one hold of the lock, 64 at a time; everything that is live.

Above `heap`, below `entry`.  Small batches, below half a magazine, go through the caller's heap.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._native import (
    Entry,
    advance,
    call_table,
    control_at,
    frozen,
    heap_address,
    heap_at,
    i8_array,
    int64,
    kernel,
    likely,
    live_mask,
    load4,
    load8_relaxed,
    lowest_bit,
    my_heap,
    popcount,
    prefetch_read,
    prefetch_write,
    shift_right,
    store1,
    store4,
    u4_array,
    unlikely,
)
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
    free_any,
    make_live,
    next_slab,
    room_for,
)
from .layout import BLOCK, FREE, HOLD, MAGAZINE, NO_INIT, NULL, TAKEN, C
from .recover import live_of_all, wake, wake_all
from .slab import (
    ALL,
    C_LIMIT,
    C_NODE_SHIFT,
    C_NODES,
    C_WORDS,
    MUST_GROW,
    ONE,
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

AHEAD = 24  # handles that a batch of frees looks ahead, to have their generations at hand
F_ALLOC_MANY = C["f_alloc_many"]
F_FREE_MANY, F_GROW, F_RELEASE = C["f_free_many"], C["f_grow"], C["f_release"]
C_RECORDS, C_STRIDE = C["records"], C["stride"]


# --- Alloc ---


@kernel
def make_block_live(c: int, block: int, mask: int, out: int) -> int:
    """Make the slots of a mask live; their handles go to the int64 array at `out`.  Returns how many (retired ones drop out)."""
    handles = i8_array(out)
    if mask == ALL and control_at(c).init == NO_INIT:
        words = u4_array(frozen(c, C_WORDS) + block * 4)
        taken = np.uint32(0)
        for j in range(BLOCK):
            taken |= words[j]
        if likely(int64(taken) & TAKEN == 0):
            for j in range(BLOCK):
                word = int64(words[j])
                words[j] = np.uint32(word | 1)
                handles[j] = word >> 1 << 32 | (block + j)
            return int64(BLOCK)
    n = int64(0)
    while mask != 0:
        handle = make_live(c, block + lowest_bit(mask))
        mask &= mask - 1
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
    """Return how many slots are so many that they go by the slab layer: half a magazine, which is one refill."""
    return max(heap_at(heap).rounds >> 1, int64(2))


@kernel
def pop_run(heap: Heap, out: int, n: int) -> int:
    """Pop up to n slots and make them live, as `alloc` does, with the top in a register; returns how many."""
    h = heap_at(heap)
    top = int64(h.top)
    n = min(n, top)
    handles = i8_array(out)
    words = frozen(heap, H_WORDS)
    done = int64(0)
    while done < n:
        slot = load4(advance(heap, BELOW_TOP), top)
        word = load4(words, slot)
        if unlikely(word & TAKEN != 0):
            break
        store4(words, slot, word | 1)
        handles[done] = word >> 1 << 32 | slot
        top -= 1
        done += 1
    h.top = top
    return done


@kernel
def push_run(heap: Heap, hs: int, n: int) -> int:
    """Free handles from the first on, as `free` does, until one is refused or the magazine is full; returns how many."""
    h = heap_at(heap)
    top = int64(h.top)
    n = min(n, frozen(heap, H_ROUNDS) - top)
    handles = i8_array(hs)
    words, limit = frozen(heap, H_WORDS), frozen(heap, H_LIMIT)
    done = int64(0)
    while done < n:
        handle = handles[done]
        slot = handle & SLOT_MASK
        live = shift_right(handle, 31) | 1
        if unlikely(slot >= limit):
            break
        if unlikely(load4(words, slot) != live):
            break
        store4(words, slot, live + 1)
        store4(advance(heap, MAGAZINE), top, slot)
        top += 1
        done += 1
    h.top = top
    return done


@kernel
def alloc_few(c: int, heap: Heap, out: int, n: int) -> int:
    """`alloc_many`, in the caller's code as far as the magazine has enough."""
    done = int64(0)
    if likely(n <= heap_at(heap).top):
        done = pop_run(heap, out, n)
        if likely(done == n):
            return n
    if call_table(c, F_ALLOC_MANY, (out + done * 8, n - done)) == n - done:
        return n
    call_table(c, F_FREE_MANY, (out, done, ZERO))
    return int64(0)


@kernel
def free_few(c: int, heap: Heap, hs: int, n: int) -> int:
    """`free_many`, in the caller's code as far as the magazine has room."""
    done = int64(0)
    if likely(n <= frozen(heap, H_ROUNDS) - heap_at(heap).top):
        done = push_run(heap, hs, n)
        if likely(done == n):
            return n
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
    if n >= large_batch(heap):
        if control_at(c).closed != 0 or live_of_all(c) + n > control_at(c).capacity:
            return int64(0)
        done = draw_many(follow(heap_at(heap).control, at), at, out, n)
    while done < n:  # a small batch, or what the slab layer did not have: the caller's magazine counts
        if control_at(c).init == NO_INIT:
            done += pop_run(heap, out + done * 8, n - done)
            if done == n:
                break
        handle = alloc_any(c, heap)
        if handle == NULL:
            call_table(c, F_FREE_MANY, (out, done, ZERO))
            return int64(0)
        handles[done] = handle
        done += 1
    return done


# --- Free ---


@kernel
def is_run(c: int, hs: int, first: int) -> bool:
    """Whether the 64 handles at `hs` are live and of the slots from `first`, one after the other."""
    handles = i8_array(hs)
    words = u4_array(frozen(c, C_WORDS) + first * 4)
    wrong = int64(0)
    for j in range(BLOCK):
        word = int64(words[j])
        wrong |= (handles[j] ^ (word >> 1 << 32 | (first + j))) | ((word & 1) ^ 1)
    return wrong == 0


@Entry
def free_many(c: int, hs: int, n: int, refused: int) -> int:
    """
    Free the valid ones of the n handles at `hs`.

    refused  int64   address of n bytes, set to 1 where a handle is refused, or 0

    Returns how many were freed.  A handle that stands there twice is freed once.
    """
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
    words = u4_array(frozen(c, C_WORDS))
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
            if slot & 63 == 0 and shift == 6 and p + BLOCK <= stop and handles[p + BLOCK - 1] & SLOT_MASK == slot + BLOCK - 1:
                if slot + BLOCK <= limit and is_run(c, hs + p * 8, slot):
                    for j in range(BLOCK):
                        words[slot + j] += np.uint32(1)
                    given += put_block(c, slot >> 6, ALL)
                    freed += BLOCK
                    p += BLOCK
                    continue
            if p + AHEAD < n:
                prefetch_write(frozen(c, C_WORDS) + (handles[p + AHEAD] & SLOT_MASK) * 4)
            live = shift_right(handle, 31) | 1
            if unlikely(slot >= limit or int64(words[slot]) != live):
                note_refused(refused, p)
                p += 1
                continue
            words[slot] = np.uint32(live + 1)
            if slot >> shift != key:
                if mask != 0:
                    given += put_block(c, key << shift >> 6, mask)
                key, mask = slot >> shift, int64(0)
            mask |= ONE << (slot & 63)
            freed += 1
            p += 1
        if mask != 0:
            given += put_block(c, key << shift >> 6, mask)
        control.out -= given
        surplus = end_of_interval(c) if control.closed == 0 else int64(0)
        unlock(c)
        if unlikely(surplus > 0):
            call_table(c, F_RELEASE, (surplus,))
    return freed


@kernel
def note_refused(refused: int, p: int) -> None:
    """Set byte p of the array at `refused`, if there is one."""
    if refused != 0:
        store1(refused, p, 1)


# --- Scans: what is live ---


@kernel
def next_live(c: int, end: int, base: int, mask: int) -> Any:
    """
    Return (base, mask, handle) of the next live record of a scan by blocks of 64; handle NULL at the end.

    Starts with base -64 and mask 0.  Slabs that are FREE are passed over.
    """
    while True:
        while mask == 0:
            base += BLOCK
            if base >= end:
                return base, mask, int64(NULL)
            mask = live_mask(frozen(c, C_WORDS) + base * 4)
            if unlikely(mask == 0):
                base = skip_free(c, base)
        slot = base + lowest_bit(mask)
        mask &= mask - 1
        word = load4(frozen(c, C_WORDS), slot)
        if likely(word & 1 == 1):
            return base, mask, word >> 1 << 32 | slot


@kernel
def next_record(c: int, end: int, base: int, mask: int, ahead: int) -> Any:
    """
    Return (base, mask, ahead, handle): `next_live`, and one record of the block after asked for with each of this one.

    ahead  int64   live slots of the next block whose records were not asked for yet; 0 to start with
    """
    before = base
    base, mask, handle = next_live(c, end, base, mask)
    if base != before:
        ahead = live_mask(frozen(c, C_WORDS) + (base + BLOCK) * 4) if base + BLOCK < end else int64(0)
    if ahead != 0:
        prefetch_read(frozen(c, C_RECORDS) + (base + BLOCK + lowest_bit(ahead)) * frozen(c, C_STRIDE))
        ahead &= ahead - 1
    return base, mask, ahead, handle


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
    n = int64(0)
    end = scan_end(c)
    base, mask, handle = next_live(c, end, int64(-BLOCK), int64(0))
    while handle != NULL:
        if n < most:
            handles[n] = handle
        n += 1
        base, mask, handle = next_live(c, end, base, mask)
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
    freed = int64(0)
    for node in range(frozen(c, C_NODES)):
        freed += clear_set(set_at(c, node))
    return freed


@kernel
def clear_set(c: int) -> int:
    """Free every live record of one array set."""
    control = control_at(c)
    wake(c)
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
    wake_all(c)
    if live_of_all(c) + n > control.capacity:
        return int64(1)
    if control.nodes > 1:
        return int64(0)  # all of their memory is usable from the start
    slots = (control.n_slabs << control.shift) - control.out  # free or fresh in the slab layer
    missing = n - slots - ((control.committed - control.n_slabs) << control.shift)
    if missing > 0 and call_table(c, F_GROW, (((missing - 1) >> control.shift) + 1,)) == 0:
        return int64(2)
    return int64(0)


@Entry
def alloc_one(c: int) -> int:
    """Take one slot for a caller that has no C method."""
    return alloc_any(c, my_heap(c))


@Entry
def free_one(c: int, handle: int) -> int:
    """Free one record for a caller that has no C method; 1: freed."""
    return int64(free_any(c, my_heap(c), handle))
