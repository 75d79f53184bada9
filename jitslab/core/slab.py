"""
The slab layer: every free slot that is in no magazine, under one short lock a cache.

A slab keeps its free slots as one bit a slot, and its fresh ones as a count that needs no set-up.  Slots leave it by
`slab_draw`, up to 64 of one word of free bits at a time, and come back by `put_word`.  `pick` finds the slab to draw from.
"""

from __future__ import annotations

from typing import Any

from ..machine.compile import inlined, int64, kernel
from ..machine.memory import lowest_bit, popcount, thread_pointer, unlikely
from ..machine.pointers import address_of, compare_exchange, i8s, load_relaxed, store_release, u4s
from ..machine.system import relax
from .calls import call
from .layout import (
    EMPTY,
    FREE,
    FRESH,
    FULL,
    LINE,
    LINE_SHIFT,
    LINE_SLOTS,
    MENDED,
    NIL,
    NODE_BYTES,
    PARTIALLY_USED,
    QUARTERS,
    TORN,
    WORD_SHIFT,
    WORD_SLOTS,
    Control,
    Slab,
    control_at,
    heap_at,
    slab_at,
)
from .vectors import is_line

ALL = -1  # a mask with all 64 slots of a word
LINE_MASK = (1 << LINE_SLOTS) - 1
NO_SLAB, MUST_GROW = -1, -2  # answers of `pick` instead of a slab
PICK_PROBES = 8  # slabs of other heaps that `pick` skips before it takes a new one
COLOUR_STEP = 37  # odd: so the first 64 slabs start at 64 different slots


@kernel
def slab_row(control: Control, i: int) -> Slab:
    """Return the row of slab `i`."""
    return slab_at(control.slabs - i * LINE)


@kernel
def node_at(control: Control, number: int) -> Control:
    """Return a node of the cache by its number."""
    return control_at(address_of(control.first_node) + number * NODE_BYTES)


@kernel
def node_of_slot(control: Control, slot: int) -> Control:
    """Return the node that a slot of the cache belongs to."""
    return control_at(address_of(control.first_node) + (slot >> control.node_shift) * NODE_BYTES)


# --- The lock ---


@kernel
def lock_row(row: Any) -> None:
    """
    Take the lock of a row: of a STATE or of the PROCESS.

    The lock names the thread that holds it.  A waiting thread looks a few times, then lets others run.
    """
    me = thread_pointer()
    tries = 0
    while not (load_relaxed(row, "lock") == 0 and compare_exchange(row, "lock", 0, me)):
        tries += 1
        relax(tries)


@kernel
def unlock_row(row: Any) -> None:
    """Release the lock of a row."""
    store_release(row, "lock", 0)


@kernel
def lock(control: Control) -> None:
    """Take the lock of a node; if the node is torn, rebuild its index."""
    lock_row(control.state)
    if unlikely(control.torn == TORN):
        if control.closed == 0:
            call(control, "rebuild", ())
        control.torn = MENDED


@kernel
def unlock(control: Control) -> None:
    """Release the lock of a node."""
    unlock_row(control.state)


# --- Lists ---


@kernel
def unlink(control: Control, i: int) -> None:
    """Take slab `i` off its list."""
    state, slab = control.state, slab_row(control, i)
    which, previous, following = slab.list, slab.prev, slab.next
    if previous >= 0:
        slab_row(control, previous).next = following
    else:
        state.heads[which] = following
    if following >= 0:
        slab_row(control, following).prev = previous
    else:
        state.tails[which] = previous
    if which == EMPTY:
        n = state.n_empty - 1
        state.n_empty = n
        if n < state.least_empty:
            state.least_empty = n
    slab.list = NIL


@kernel
def link(control: Control, i: int, which: int) -> None:
    """Put slab `i`, which is on no list, at the head of one."""
    state, slab = control.state, slab_row(control, i)
    head = state.heads[which]
    slab.prev = NIL
    slab.next = head
    slab.list = which
    if head >= 0:
        slab_row(control, head).prev = i
    else:
        state.tails[which] = i
    state.heads[which] = i
    if which == EMPTY:
        state.n_empty += 1


@kernel
def occupancy_quarter(control: Control, i: int) -> int:
    """Return the partial list of slab `i` by its occupancy; the last is the fullest."""
    slab = slab_row(control, i)
    occupied = (1 << control.shift) - slab.n_free - slab.n_fresh
    quarter = occupied * QUARTERS >> control.shift
    return quarter if quarter < QUARTERS else QUARTERS - 1


@kernel
def relist(control: Control, i: int) -> None:
    """
    Put slab `i`, to which slots came back, on the list of its new state: EMPTY, or a partial list if it was full.

    A slab that was full goes to the fullest list; `pick` moves it on when it meets it there.
    """
    slab = slab_row(control, i)
    if slab.n_free + slab.n_fresh == 1 << control.shift:
        if slab.list != NIL:
            unlink(control, i)
        slab.state = FREE
        link(control, i, EMPTY)
    elif slab.state == FULL:
        slab.state = PARTIALLY_USED
        link(control, i, QUARTERS - 1)


@kernel
def note_drawn(control: Control, i: int, n: int) -> None:
    """Account for n slots that left slab `i`."""
    slab = slab_row(control, i)
    control.state.used += n
    if slab.n_free + slab.n_fresh == 0:
        unlink(control, i)
        slab.state = FULL
    elif slab.state == FREE:
        unlink(control, i)
        slab.state = PARTIALLY_USED
        link(control, i, occupancy_quarter(control, i))


@kernel
def make_slab(control: Control) -> int:
    """Make the next slab, all fresh; its memory must be usable.  O(1)."""
    state = control.state
    i = state.n_slabs
    slab = slab_row(control, i)
    slots = 1 << control.shift
    slab.n_free = 0
    slab.n_fresh = slots
    slab.min_generation = control.first_generation
    slab.colour = (i * COLOUR_STEP + control.row * 5) & (slots - 1) if control.is_coloured != 0 else 0
    slab.rover = slab.colour >> WORD_SHIFT
    slab.reserved_by = NIL
    slab.state = FREE
    link(control, i, FRESH)
    if control.is_file != 0:
        start_generations(control, i)
    state.n_slabs = i + 1
    store_release(state, "limit", (i + 1) << control.shift)
    return i


@kernel
def start_generations(control: Control, i: int) -> None:
    """
    Write the first generation to every slot of a new slab, so that none of them is lower when the file is opened again.

    A generation that is higher already stays: the slab was made before, and that was rolled back.
    """
    generations = u4s(address_of(control.generations) + (i << control.shift) * 4)
    for j in range(1 << control.shift):
        generations[j] = max(generations[j], control.first_generation)


@kernel
def is_drawn_by_other(control: Control, i: int, me: int) -> bool:
    """Whether a heap in another row than `me` draws from slab `i`."""
    index = slab_row(control, i).reserved_by
    if index == NIL or index == me:
        return False
    other = heap_at(control.heaps + index * control.heap_step)
    return other.owner != 0 and other.slab == i


@kernel
def any_partial(control: Control) -> int:
    """Return any partially used slab, even one that another heap draws from, or NO_SLAB."""
    heads = control.state.heads
    for which in range(QUARTERS):
        if heads[which] >= 0:
            return heads[which]
    return NO_SLAB


@kernel
def pick(control: Control, me: int) -> int:
    """
    Return the slab that the heap in row `me` should draw from next, or NO_SLAB, or MUST_GROW.

    Partially used slabs come first, the fullest quarter before the others.  A slab that another heap draws from comes last: two
    heaps that draw from one slab come to share lines of generations (13 to 21 ns an operation instead of 1).
    Needs   the lock.
    """
    state = control.state
    shared = NO_SLAB
    probes = PICK_PROBES
    which = QUARTERS - 1
    while which >= 0:
        i = state.heads[which]
        while i >= 0 and probes > 0:
            following = slab_row(control, i).next
            quarter = occupancy_quarter(control, i)
            if quarter != which:
                unlink(control, i)
                link(control, i, quarter)
                probes -= 1
            elif is_drawn_by_other(control, i, me):
                shared = i
                probes -= 1
            else:
                return i
            i = following
        which -= 1
    if state.heads[EMPTY] >= 0:
        return state.heads[EMPTY]
    if state.heads[FRESH] >= 0:
        return state.heads[FRESH]
    if state.n_slabs < control.committed:
        return make_slab(control)
    if control.committed < control.max_slabs:
        return MUST_GROW
    return shared if shared != NO_SLAB else any_partial(control)  # the probes may have ended before a list was reached


# --- Slots out and in ---


@inlined
def slab_draw(control: Control, i: int, room: int) -> Any:
    """
    Take up to `room` slots of one word of free bits from slab `i`.

    Returns (first slot of the word, mask of the slots taken, how many): free bits before fresh slots, whole lines of 16
    generations if they fit, at least one slot.
    Needs   the lock, and a slab that is not full.
    Keeps   L1 to L6, except the state, which `note_drawn` sets.
    """
    slab = slab_row(control, i)
    slots = 1 << control.shift
    first = i << control.shift
    if slab.n_free > 0:
        bits = i8s(address_of(control.bits) + (first >> WORD_SHIFT << 3))
        n_words = slots >> WORD_SHIFT if slots >= WORD_SLOTS else 1
        own = ALL if slots >= WORD_SLOTS else ((1 << slots) - 1) << (first & 63)
        q = slab.rover
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
            free = pick_bits(free, room)
            n = popcount(free)
        bits[q] &= ~free
        slab.rover = q
        slab.n_free = slab.n_free - n if free != 0 else 0
        return (first >> WORD_SHIFT << WORD_SHIFT) + (q << WORD_SHIFT), free, n
    at = first + ((slab.colour + slots - slab.n_fresh) & (slots - 1))
    n = min(slab.n_fresh, room)
    n = min(n, WORD_SLOTS - (at & 63))
    n = min(n, first + slots - at)
    whole = ((at + n) & -LINE_SLOTS) - at
    if n < slab.n_fresh and whole > 0:
        n = whole
    generations = u4s(address_of(control.generations) + at * 4)
    least = slab.min_generation
    for j in range(n):
        generations[j] = least
    slab.n_fresh -= n
    mask = ALL if n == WORD_SLOTS else ((1 << n) - 1) << (at & 63)
    return at & -WORD_SLOTS, mask, n


@kernel
def pick_bits(free: int, room: int) -> int:
    """Return the part of a mask that has at most `room` bits: whole lines of 16, or the lowest bits if no line fits."""
    picked = int64(0)
    left = room
    for k in range(0, WORD_SLOTS, LINE_SLOTS):
        line = free & (LINE_MASK << k)
        n = popcount(line)
        if n <= left:
            picked |= line
            left -= n
    if picked == 0:
        for _ in range(room):
            picked |= free & -free
            free &= free - 1
    return picked


@kernel
def put_word(control: Control, word: int, mask: int) -> int:
    """
    Give back the slots of a mask in word number `word` of the free bits, all of one slab; returns how many.

    A slot whose free bit is set already (a race in the user's code freed it twice at once) changes nothing.
    Needs   the lock, and even generations.
    Keeps   all laws but L8: the caller subtracts the slots from `used`, once for many calls.
    """
    bits = control.bits
    old = bits[word]
    bits[word] = old | mask
    i = ((word << WORD_SHIFT) + lowest_bit(mask)) >> control.shift
    n = popcount(mask & ~old)
    slab = slab_row(control, i)
    slab.n_free += n
    if unlikely(slab.state == FULL or slab.n_free + slab.n_fresh == 1 << control.shift):
        relist(control, i)
    return n


@kernel
def put_slots(control: Control, at: int, count: int) -> None:
    """
    Give back the slots in the u4 array at an address; neighbours on one line of generations go together.

    Needs   the lock, and even generations.
    """
    slots = u4s(at)
    shift = min(control.shift, WORD_SHIFT)
    key, mask, given = slots[0] >> shift, int64(0), int64(0)
    j = int64(0)
    while j < count:
        slot = slots[j]
        ends_alike = j + LINE_SLOTS <= count and slots[j + LINE_SLOTS - 1] >> LINE_SHIFT == slot >> LINE_SHIFT
        if ends_alike and shift >= LINE_SHIFT and is_line(at + j * 4):
            bits, got = int64(LINE_MASK) << (slot & (WORD_SLOTS - LINE_SLOTS)), LINE_SLOTS
        else:
            bits, got = int64(1) << (slot & (WORD_SLOTS - 1)), 1
        if slot >> shift != key:
            given += put_word(control, key << shift >> WORD_SHIFT, mask)
            key, mask = slot >> shift, int64(0)
        mask |= bits
        j += got
    given += put_word(control, key << shift >> WORD_SHIFT, mask)
    control.state.used -= given
