"""
Batches: many slots at once, up to 64 an instruction or a step of the slab layer.

A batch of less than a quarter of a magazine goes through the caller's heap; a larger one goes to the slab layer.
"""

from __future__ import annotations

from typing import Any

from ..machine.compile import Entry, inlined, int64, kernel
from ..machine.memory import likely, lowest_bit, popcount, prefetch_write, shift_right, store1, unlikely
from ..machine.pointers import address_in, address_of, i8s
from .calls import call, my_heap
from .grow import end_of_interval
from .heap import alloc, alloc_any, free, free_any, make_live, move_to_local_node, next_slab_or_grow, room_for
from .heap_table import live_of_all, own_heap, wake
from .layout import (
    FREE,
    LINE_SHIFT,
    LINE_SLOTS,
    NO_INIT,
    NOT_FREE,
    NULL,
    RETIRED,
    SLOT_MASK,
    SLOTS_PER_LOCK,
    WORD_SHIFT,
    WORD_SLOTS,
    Control,
    Heap,
    control_at,
    heap_at,
)
from .slab import ALL, LINE_MASK, lock, node_at, note_drawn, put_word, slab_draw, slab_row, unlock
from .vectors import free_row, is_row, live_mask, make_row_live, store_row

PREFETCH_DISTANCE = 24  # handles that a batch of frees looks ahead, to prefetch their generations
HALF_LINE = LINE_SLOTS // 2
FEW = 4  # least slots in a row for which vector instructions pay


# --- Slots in a row, out of a magazine and into it ---


def _make_rows(n: int) -> tuple[Any, Any]:
    """Return kernels that pop and push n slots in a row by a few vector instructions."""

    @inlined
    def pop_row(heap: Heap, top: int, out: int) -> bool:
        """Pop n slots and make them live if they are in a row and all can be handed out; returns whether they were."""
        at = address_in(heap, "magazine") + (top - n) * 4
        return is_row(at, n) and make_row_live(heap.generations, heap.magazine[top - 1], out, n)

    @inlined
    def push_row(heap: Heap, top: int, hs: int) -> bool:
        """Free n handles of slots in a row if all are live; returns whether they were.  The first is on top of the magazine."""
        first = i8s(hs)[0] & SLOT_MASK
        if first + n > heap.limit or not free_row(heap.generations, first, hs, n):
            return False
        store_row(address_in(heap, "magazine") + top * 4, first, n)
        return True

    return pop_row, push_row


pop_row, push_row = _make_rows(LINE_SLOTS)
pop_half, push_half = _make_rows(HALF_LINE)
pop_few, push_few = _make_rows(FEW)


@kernel
def pop_each(heap: Heap, top: int, out: int, n: int) -> int:
    """Pop n slots, in a row or not, until one cannot be handed out; returns how many."""
    handles, generations, magazine = i8s(out), heap.generations, heap.magazine
    for j in range(n):
        slot = magazine[top - 1 - j]
        generation = generations[slot]
        if unlikely(generation & NOT_FREE != 0):
            return j
        generations[slot] = generation | 1
        handles[j] = generation >> 1 << 32 | slot
    return n


@kernel
def push_each(heap: Heap, top: int, hs: int, n: int) -> int:
    """Free n handles, of slots in a row or not, until one is refused; returns how many."""
    handles, generations, magazine, limit = i8s(hs), heap.generations, heap.magazine, heap.limit
    for j in range(n):
        handle = handles[j]
        slot = handle & SLOT_MASK
        live = shift_right(handle, 31) | 1
        if unlikely(slot >= limit):
            return j
        if unlikely(generations[slot] != live):
            return j
        generations[slot] = live + 1
        magazine[top + j] = slot
    return n


@kernel
def pop_run(heap: Heap, out: int, n: int) -> int:
    """Pop up to n slots and make them live, as `alloc` does; returns how many."""
    top = heap.top
    n = min(n, top)
    done = 0
    while done < n:
        left, at = n - done, out + done * 8
        got = LINE_SLOTS
        if left < LINE_SLOTS or not pop_row(heap, top, at):
            got = FEW
            if left < FEW or not pop_few(heap, top, at):
                want = min(left, FEW)
                got = pop_each(heap, top, at, want)
                if unlikely(got != want):
                    n = done + got
        top -= got
        done += got
    heap.top = top
    return done


@kernel
def push_run(heap: Heap, hs: int, n: int) -> int:
    """Free handles in order, as `free` does, until one is refused or the magazine is full; returns how many."""
    top = heap.top
    n = min(n, heap.magazine_size - top)
    done = 0
    while done < n:
        left, at = n - done, hs + done * 8
        got = LINE_SLOTS
        if left < LINE_SLOTS or not push_row(heap, top, at):
            got = FEW
            if left < FEW or not push_few(heap, top, at):
                want = min(left, FEW)
                got = push_each(heap, top, at, want)
                if unlikely(got != want):
                    n = done + got
        top += got
        done += got
    heap.top = top
    return done


# --- Inlined into the caller ---


@inlined
def alloc_few(control: Control, heap: Heap, out: int, n: int) -> int:
    """`alloc_many` for compiled code: one slot, or slots in a row, are taken inline, all others by a call."""
    if n == 1:
        handle = alloc(heap)
        if likely(handle != NULL):
            i8s(out)[0] = handle
        return int64(handle != NULL)
    top = heap.top
    done = 0
    if likely(n <= top):
        while done + LINE_SLOTS <= n and pop_row(heap, top - done, out + done * 8):
            done += LINE_SLOTS
        while done + HALF_LINE <= n and pop_half(heap, top - done, out + done * 8):
            done += HALF_LINE
        while done + FEW <= n and pop_few(heap, top - done, out + done * 8):
            done += FEW
        heap.top = top - done
        if likely(done == n):
            return n
    return call(control, "alloc_few", (heap, out, n, done))


@inlined
def free_few(control: Control, heap: Heap, hs: int, n: int) -> int:
    """`free_many` for compiled code: one slot, or slots in a row, are freed inline, all others by a call."""
    if n == 1:
        return int64(free(heap, i8s(hs)[0]))
    top = heap.top
    done = 0
    if likely(n <= heap.magazine_size - top):
        while done + LINE_SLOTS <= n and push_row(heap, top + done, hs + done * 8):
            done += LINE_SLOTS
        while done + HALF_LINE <= n and push_half(heap, top + done, hs + done * 8):
            done += HALF_LINE
        while done + FEW <= n and push_few(heap, top + done, hs + done * 8):
            done += FEW
        heap.top = top + done
        if likely(done == n):
            return n
    return done + call(control, "free_few", (heap, hs + done * 8, n - done))


# --- Alloc ---


@kernel
def large_batch(heap: Heap) -> int:
    """Return the least size of a batch that goes to the slab layer: a quarter of a magazine."""
    return max(heap.magazine_size >> 2, 2)


@Entry
def alloc_by_heap(c: int, h: int, out: int, n: int, done: int) -> int:
    """`alloc_many` from the caller's heap, whose magazine had n slots; `done` of them were taken already."""
    control, heap = control_at(c), heap_at(h)
    few = n - done < large_batch(heap)
    if few and n - done > heap.top and not can_have(control, heap, n - done):
        return 0
    while few or n - done <= heap.top:
        done += pop_run(heap, out + done * 8, n - done)
        if likely(done == n):
            return n
        if heap.top != 0 or heap.magazine_size == 0:
            break
        if call(move_to_local_node(heap.control, heap), "refill", (heap,)) == 0:
            break
    if call(control, "alloc_many", (out + done * 8, n - done)) == n - done:
        return n
    take_back(control, out, done)
    return 0


@Entry
def alloc_many(c: int, out: int, n: int) -> int:
    """
    Take n slots, all or none; the handles go to the int64 array at `out`.

    Returns n, or 0 if the cache has no room for n more.  0.5 ns a record in order.
    """
    control = control_at(c)
    heap = my_heap(control)
    handles = i8s(out)
    done = 0
    is_large = n >= large_batch(heap)
    if (is_large or n > heap.top) and not can_have(control, heap, n):
        return 0
    if is_large:
        done = draw_many(move_to_local_node(heap.control, heap), heap, out, n)
    while done < n:  # a small batch, or more than the slab layer had: take from the caller's magazine
        if control.init == NO_INIT:
            done += pop_run(heap, out + done * 8, n - done)
            if done == n:
                break
        handle = alloc_any(control, heap)
        if handle == NULL:
            take_back(control, out, done)
            return 0
        handles[done] = handle
        done += 1
    return done


@kernel
def draw_many(control: Control, heap: Heap, out: int, n: int) -> int:
    """Draw up to n records from the slab layer; their handles go to the array at `out`.  Returns how many."""
    done, hold = 0, SLOTS_PER_LOCK
    lock(control)
    n = room_for(control, heap, n)
    while done < n and control.closed == 0:
        i = next_slab_or_grow(control, heap, ((n - done - 1) >> control.shift) + 1)
        if i < 0:
            break
        first, mask, drawn = slab_draw(control, i, n - done)
        note_drawn(control, i, drawn)
        done += make_word_live(control, first, mask, out + done * 8)
        hold -= drawn
        if hold <= 0 and done < n:
            unlock(control)
            hold = SLOTS_PER_LOCK
            lock(control)
            n = done + room_for(control, heap, n - done)  # other threads may have drawn slots meanwhile
    unlock(control)
    return done


@kernel
def make_word_live(control: Control, first: int, mask: int, out: int) -> int:
    """
    Make the slots of a mask live, in the word of free bits that begins with slot `first`; the handles go to the array at `out`.

    Returns how many; retired slots are left out.
    """
    handles, generations = i8s(out), control.generations
    plain = control.init == NO_INIT
    if plain and mask == ALL and make_row_live(generations, first, out, WORD_SLOTS):
        return WORD_SLOTS
    n = 0
    for k in range(0, WORD_SLOTS, LINE_SLOTS):
        part = mask & (LINE_MASK << k)
        if plain and part == LINE_MASK << k and make_row_live(generations, first + k, out + n * 8, LINE_SLOTS):
            n += LINE_SLOTS
            continue
        while part != 0:
            handle = make_live(control, first + lowest_bit(part))
            part &= part - 1
            if handle != NULL:
                handles[n] = handle
                n += 1
    return n


@kernel
def has_room(control: Control, n: int) -> bool:
    """Whether n more records are within the capacity; live records are counted only if `used` is too high to decide."""
    used = 0
    for number in range(control.nodes):
        used += node_at(control, number).state.used
    return used + n <= control.capacity or live_of_all(control) + n <= control.capacity


@kernel
def can_have(control: Control, heap: Heap, n: int) -> bool:
    """
    Whether n more records are within the capacity, and their memory is granted.

    So a batch is refused before the caller's array is written to: it keeps its content.
    """
    wake(control)
    if control.closed != 0 or not has_room(control, n):
        return False
    return control.nodes > 1 or is_granted(control, n - heap.top)


@kernel
def is_granted(control: Control, n: int) -> bool:
    """Whether the slab layer has memory for n slots; makes it usable if needed.  With several nodes all of it is usable."""
    state = control.state
    slots = (state.n_slabs << control.shift) - state.used  # free or fresh in the slab layer
    missing = n - slots - ((control.committed - state.n_slabs) << control.shift)
    return missing <= 0 or call(control, "grow", (((missing - 1) >> control.shift) + 1,)) != 0


@kernel
def take_back(control: Control, out: int, n: int) -> None:
    """Free the n records of a batch that found no room for the rest; NULL replaces their handles."""
    call(control, "free_many", (out, n, 0))
    handles = i8s(out)
    for i in range(n):
        handles[i] = NULL


@Entry
def make_ready(c: int, n: int) -> int:
    """Make the memory of n more records usable.  Returns 0: it is; 1: the capacity is too small; 2: the system refuses."""
    control = control_at(c)
    own_heap(control)
    if live_of_all(control) + n > control.capacity:
        return 1
    return 0 if control.nodes > 1 or is_granted(control, n) else 2


# --- Free ---


@Entry
def free_by_heap(c: int, h: int, hs: int, n: int) -> int:
    """`free_many` through the caller's heap, for a cache with one node."""
    control, heap = control_at(c), heap_at(h)
    few = n < large_batch(heap)
    done = 0
    while few or n - done <= heap.magazine_size - heap.top:
        done += push_run(heap, hs + done * 8, n - done)
        if likely(done == n):
            return n
        if heap.top != heap.magazine_size or heap.magazine_size == 0:
            break
        call(control, "flush", (heap, max(heap.magazine_size >> 1, 1)))
    return done + call(control, "free_many", (hs + done * 8, n - done, 0))


@Entry
def free_many(c: int, hs: int, n: int, refused: int) -> int:
    """
    Free the valid ones of the n handles at `hs`.

    refused  int64   address of n bytes, or 0: the byte of a refused handle is set to 1

    Returns how many were freed.  A handle that occurs twice is freed once.
    """
    control = control_at(c)
    if unlikely(control.closed != 0):
        return free_of_closed(control, hs, n, refused)
    heap = my_heap(control)
    if n < large_batch(heap):
        return free_few_any(control, heap, hs, n, refused)
    if control.nodes == 1:
        return free_in_node(control, hs, n, refused)
    handles = i8s(hs)
    concerned = int64(0)  # one bit a node: it has handles of this batch
    for p in range(n):
        number = (handles[p] & SLOT_MASK) >> control.node_shift
        concerned |= int64(1) << (number if number < control.nodes else 0)
    freed = 0
    while concerned != 0:
        freed += free_in_node(node_at(control, lowest_bit(concerned)), hs, n, refused)
        concerned &= concerned - 1
    return freed


@kernel
def free_few_any(control: Control, heap: Heap, hs: int, n: int, refused: int) -> int:
    """`free_many` of a small batch, through the caller's heap."""
    handles = i8s(hs)
    freed, p = 0, 0
    while p < n:
        if control.nodes == 1:
            run = push_run(heap, hs + p * 8, n - p)
            p += run
            freed += run
            if p == n:
                break
        if free_any(control, heap, handles[p]):
            freed += 1
        else:
            note_refused(refused, p)
        p += 1
    return freed


@kernel
def free_in_node(control: Control, hs: int, n: int, refused: int) -> int:
    """Free the valid handles of one node; the first node refuses handles that are of no node."""
    state, handles, generations = control.state, i8s(hs), control.generations
    first, end = control.first_slot, control.first_slot + control.node_slots
    freed, p = 0, 0
    while p < n:
        stop = min(n, p + SLOTS_PER_LOCK)
        lock(control)
        limit = state.limit
        shift = min(control.shift, WORD_SHIFT)
        key, mask, given = 0, int64(0), 0
        while p < stop:
            handle = handles[p]
            slot = handle & SLOT_MASK
            if unlikely(slot < first or slot >= end):
                if slot >> control.node_shift >= control.nodes and control.node == 0:
                    note_refused(refused, p)
                p += 1
                continue
            got = 0
            last = handles[p + LINE_SLOTS - 1] & SLOT_MASK if p + LINE_SLOTS <= stop else 0
            if last == slot + LINE_SLOTS - 1 and slot & (LINE_SLOTS - 1) == 0 and shift >= LINE_SHIFT:
                same = (1 << shift) - (slot & ((1 << shift) - 1))  # slots up to the end of the word, or of a smaller slab
                got = free_rows(control, slot, hs + p * 8, min(same, min(stop - p, limit - slot)))
            bits = (int64(1) << got) - 1 if got < WORD_SLOTS else int64(ALL)
            if got == 0:
                if p + PREFETCH_DISTANCE < n:
                    prefetch_write(address_of(generations) + (handles[p + PREFETCH_DISTANCE] & SLOT_MASK) * 4)
                live = shift_right(handle, 31) | 1
                if unlikely(slot >= limit or generations[slot] != live):
                    note_refused(refused, p)
                    p += 1
                    continue
                generations[slot] = live + 1
                got, bits = 1, int64(1)
            if slot >> shift != key:
                if mask != 0:
                    given += put_word(control, key << shift >> WORD_SHIFT, mask)
                key, mask = slot >> shift, int64(0)
            mask |= bits << (slot & 63)
            freed += got
            p += got
        if mask != 0:
            given += put_word(control, key << shift >> WORD_SHIFT, mask)
        state.used -= given
        surplus = end_of_interval(control) if control.closed == 0 else 0
        unlock(control)
        if unlikely(surplus > 0):
            call(control, "release", (surplus,))
    return freed


@kernel
def free_rows(control: Control, first: int, hs: int, most: int) -> int:
    """Free up to `most` records, in whole lines, while the handles are those of the slots from `first` on; returns how many."""
    n = 0
    while n + LINE_SLOTS <= most and free_row(control.generations, first + n, hs + n * 8, LINE_SLOTS):
        n += LINE_SLOTS
    return n


@kernel
def free_of_closed(control: Control, hs: int, n: int, refused: int) -> int:
    """Free the records of an operation during which the cache was closed; their slots are not handed out again."""
    handles, generations = i8s(hs), control.generations
    end = control.max_slabs << control.shift if control.nodes == 1 else control.nodes << control.node_shift
    freed = 0
    for p in range(n):
        slot = handles[p] & SLOT_MASK
        if slot < end and generations[slot] == shift_right(handles[p], 31) | 1:
            generations[slot] = RETIRED
            freed += 1
        else:
            note_refused(refused, p)
    return freed


@kernel
def note_refused(refused: int, p: int) -> None:
    """Set byte p of the array at `refused`, unless that is 0."""
    if refused != 0:
        store1(refused, p, 1)


# --- Clear ---


@Entry
def clear(c: int) -> int:
    """Free every live record; returns how many.  Needs rest: a record that another thread frees meanwhile is freed twice."""
    control = control_at(c)
    own_heap(control)
    freed = 0
    for number in range(control.nodes):
        freed += clear_node(node_at(control, number))
    return freed


@kernel
def clear_node(control: Control) -> int:
    """Free every live record of one node."""
    generations = control.generations
    freed, slots = 0, 1 << control.shift
    step = min(slots, WORD_SLOTS)
    own = int64(ALL) if step == WORD_SLOTS else (int64(1) << step) - 1
    for i in range(control.first_slab, control.state.n_slabs):
        lock(control)
        if control.closed == 0 and slab_row(control, i).state != FREE:
            for first in range(i << control.shift, (i + 1) << control.shift, step):
                mask = live_mask(generations, first) & own
                rest = mask
                while rest != 0:
                    generations[first + lowest_bit(rest)] += 1
                    rest &= rest - 1
                if mask != 0:
                    control.state.used -= put_word(control, first >> WORD_SHIFT, mask << (first & 63))
                    freed += popcount(mask)
        unlock(control)
    return freed


# --- One record, for callers without a C method ---


@Entry
def alloc_one(c: int) -> int:
    """Take one slot."""
    control = control_at(c)
    return alloc_any(control, my_heap(control))


@Entry
def free_one(c: int, handle: int) -> int:
    """Free one record; 1: freed."""
    control = control_at(c)
    return int64(free_any(control, my_heap(control), handle))
