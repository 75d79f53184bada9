"""
Heaps: one a thread, a magazine of free slots that is popped and pushed without a lock and without atomics.

Above `slab` and `recover`, below `batch`.  `alloc`, `free` and `address` are the fast paths, on top; each has one slow
path of the same name below, called through the control block.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from ..machine.addresses import page_bytes
from ..machine.compile import Entry, int64, kernel
from ..machine.memory import (
    advance,
    compare_exchange,
    copy_bytes,
    fetch_add,
    fetch_or,
    frozen,
    likely,
    load1,
    load4,
    load4_relaxed,
    load8_acquire,
    load8_relaxed,
    lowest_bit,
    mixed,
    shift_right,
    store4,
    store4_release,
    store8_release,
    thread_pointer,
    u4_array,
    unlikely,
    zero_bytes,
)
from ..machine.numa import CPUS
from ..machine.system import commit, current_cpu, give_back, watch_thread_exit, yield_core
from .calls import HASH_SHIFT, call_table, control_at, heap_at, process_at, slow
from .layout import (
    BACK_HEAP,
    BLOCK,
    CLOSED_HEAP,
    HEAPS,
    MAGAZINE,
    NIL,
    NO_INIT,
    NO_SLOT,
    NULL,
    OWN,
    RETIRED,
    ROUNDS,
    RUN,
    SHARED_HEAP,
    STALE,
    TAKEN,
    TWICE,
    C,
    H,
)
from .recover import (
    C_CLAIMED,
    EVEN,
    heap_row,
    is_of,
    live_of,
    live_of_all,
    next_claimed,
    next_heap,
    note_fault,
    own_heap,
    row_of_heap,
    wake_all,
)
from .slab import (
    ALL,
    C_FRONT,
    C_HEAP_STEP,
    C_NODES,
    MUST_GROW,
    RUN_MASK,
    ZERO,
    end_of_interval,
    is_drawn_by_other,
    lock,
    lock_word,
    pick,
    put_slots,
    set_at,
    set_of,
    slab_at,
    slab_draw,
    slab_lost,
    some_partial,
    unlock,
)
from .vectors import store_row

Heap: TypeAlias = Any  # of kernels: a HeapPointer
H_WORDS, H_RECORDS, H_LIMIT, H_ROUNDS = (H[name] for name in ("words", "records", "limit", "rounds"))
C_SCRATCH, C_RECORDS, C_TEMPLATE, C_RETIRED = C["scratch"], C["records"], C["template"], C["retired"]
F_ALLOC, F_FREE, F_ADDRESS = C["f_alloc"], C["f_free"], C["f_address"]
F_REFILL, F_FLUSH, F_GROW, F_RELEASE = C["f_refill"], C["f_flush"], C["f_grow"], C["f_release"]
C_NODE_SLOTS, C_ARRIVALS, C_CPU_NODES, C_HEAP_REGION, C_PROCESS = (
    C[name] for name in ("node_slots", "arrivals", "cpu_nodes", "heap_region", "process")
)
BELOW_TOP = MAGAZINE - 4  # entry `top` of the array that starts here is the uppermost slot
SLOT_MASK = 0xFFFFFFFF
CLOSED_OWNER = -1  # no thread pointer


# --- Fast paths ---


@kernel
def alloc(heap: Heap) -> int:
    """
    Take a slot and make it live.

    Returns its handle, or NULL when the cache is full or closed.  O(1), 1 ns; a miss refills half a magazine.

    The handle is put together after the paths have joined: so LLVM still sees the word and the slot in it when the caller
    uses it, and a record accessed or freed near by waits for neither.
    """
    h = heap_at(heap)
    top = h.top
    slot, word = int64(0), int64(TAKEN)
    if likely(top != 0):
        slot = load4(advance(heap, BELOW_TOP), top)
        word = load4(frozen(heap, H_WORDS), slot)
    if likely(word & TAKEN == 0):
        h.top = top - 1
        store4(frozen(heap, H_WORDS), slot, word | 1)
    else:
        handle = slow(heap, F_ALLOC, ())
        slot, word = handle & SLOT_MASK, shift_right(handle, 31) & EVEN
    return word >> 1 << 32 | slot


@kernel
def alloc_filled(c: int, heap: Heap, stride: int, itemsize: int) -> int:
    """Take a slot as `alloc` does; its record is a copy of the template before anybody can find it live."""
    h = heap_at(heap)
    top = h.top
    slot, word = int64(0), int64(TAKEN)
    if likely(top != 0):
        slot = load4(advance(heap, BELOW_TOP), top)
        word = load4(frozen(heap, H_WORDS), slot)
    if likely(word & TAKEN == 0):
        h.top = top - 1
        copy_bytes(frozen(heap, H_RECORDS) + slot * stride, frozen(c, C_TEMPLATE), itemsize)
        store4_release(frozen(heap, H_WORDS), slot, word | 1)
    else:
        handle = slow(heap, F_ALLOC, ())
        slot, word = handle & SLOT_MASK, shift_right(handle, 31) & EVEN
    return word >> 1 << 32 | slot


@kernel
def push(heap: Heap, handle: int) -> bool:
    """`free` without its slow path: False, and nothing changed, where it would take that or refuse the handle."""
    slot = handle & SLOT_MASK
    live = shift_right(handle, 31) | 1
    if unlikely(slot >= frozen(heap, H_LIMIT)):
        return False
    if unlikely(load4(frozen(heap, H_WORDS), slot) != live):
        return False
    h = heap_at(heap)
    top = h.top
    if unlikely(top == frozen(heap, H_ROUNDS)):
        return False
    store4(frozen(heap, H_WORDS), slot, live + 1)
    store4(advance(heap, MAGAZINE), top, slot)
    h.top = top + 1
    return True


@kernel
def free(heap: Heap, handle: int) -> bool:
    """
    Free a record of a cache with one array set; of any other it would take a slot into the wrong heap: `free_near`, `free_any`.

    Returns False, and changes nothing, if the handle is stale or foreign.  O(1), 1 ns; a full magazine flushes its cold half.
    """
    slot = handle & SLOT_MASK
    live = shift_right(handle, 31) | 1
    if unlikely(slot >= frozen(heap, H_LIMIT)):
        return False
    if unlikely(load4(frozen(heap, H_WORDS), slot) != live):
        return False
    h = heap_at(heap)
    top = h.top
    if unlikely(top == frozen(heap, H_ROUNDS)):
        return slow(heap, F_FREE, (handle,)) != 0
    store4(frozen(heap, H_WORDS), slot, live + 1)
    store4(advance(heap, MAGAZINE), top, slot)
    h.top = top + 1
    return True


@kernel
def free_near(c: int, heap: Heap, handle: int) -> bool:
    """
    Free a record of a cache with several array sets, as `free` does.

    A record of another node than the heap's goes into an alien heap, by the slow path.
    """
    slot = handle & SLOT_MASK
    live = shift_right(handle, 31) | 1
    h = heap_at(heap)
    top = h.top
    if unlikely(top == frozen(heap, H_ROUNDS)):  # first: so is the heap of a cache that was never set, which has no words
        return slow(heap, F_FREE, (handle,)) != 0
    if unlikely(np.uint64(slot - h.first) >= np.uint64(frozen(c, C_NODE_SLOTS))):
        return slow(heap, F_FREE, (handle,)) != 0
    if unlikely(load4(frozen(heap, H_WORDS), slot) != live):
        return False
    store4(frozen(heap, H_WORDS), slot, live + 1)
    store4(advance(heap, MAGAZINE), top, slot)
    h.top = top + 1
    return True


@kernel
def free_any(c: int, heap: Heap, handle: int) -> bool:
    """Free a record where the number of array sets is not known when the call is compiled."""
    return free(heap, handle) if frozen(c, C_NODES) == 1 else free_near(c, heap, handle)


@kernel
def address(heap: Heap, handle: int, stride: int) -> int:
    """Return the address of a live record; for a refused handle that of a zeroed scratch record, and a fault is set."""
    slot = handle & SLOT_MASK
    if unlikely(slot >= frozen(heap, H_LIMIT)):
        return slow(heap, F_ADDRESS, (handle,))
    if unlikely(load4(frozen(heap, H_WORDS), slot) != shift_right(handle, 31) | 1):
        return slow(heap, F_ADDRESS, (handle,))
    return frozen(heap, H_RECORDS) + slot * stride


@kernel
def is_live(heap: Heap, handle: int) -> bool:
    """Whether the handle's record is live."""
    slot = handle & SLOT_MASK
    return slot < frozen(heap, H_LIMIT) and load4_relaxed(frozen(heap, H_WORDS), slot) == shift_right(handle, 31) | 1


# --- Slow paths ---


@Entry
def slow_alloc(at: int) -> int:
    """`alloc` when the magazine is empty, its top slot cannot be handed out, or the thread has no heap."""
    c = heap_at(at).control
    if heap_at(at).rounds > 0:
        return take(c, at)
    handle = int64(NULL)
    back = lock_back_heap(c)
    if back != 0:
        handle = take(c, back)
        store8_release(back, 0, 0)
    return handle


@Entry
def slow_free(at: int, handle: int) -> int:
    """`free` when the magazine is full, the record is another node's, or the thread has no heap; 1: freed."""
    h = heap_at(at)
    c = h.control
    if frozen(c, C_NODES) > 1:
        if handle & SLOT_MASK >= h.limit:
            return int64(0)
        c = set_of(c, handle & SLOT_MASK)
    if h.rounds > 0:
        return give(c, at if h.control == c else alien_heap(c, at), handle)
    freed = int64(0)
    back = lock_back_heap(c)
    if back != 0:
        freed = give(c, back, handle)
        store8_release(back, 0, 0)
    return freed


@Entry
def slow_address(at: int, handle: int) -> int:
    """`address` when the handle is refused: set a fault, and zero this heap's scratch record."""
    c = heap_at(at).control
    control = control_at(c)
    note_fault(c, handle, int64(NO_SLOT) if handle == NULL else int64(STALE))
    scratch = control.scratch + row_of_heap(c, at) % OWN * control.scratch_step
    zero_bytes(scratch, control.itemsize)
    return scratch


@kernel
def lock_back_heap(c: int) -> int:
    """Return the heap that threads without one use in turn, locked by its owner word; 0 after `close`."""
    control = control_at(c)
    at = heap_row(c, int64(OWN + BACK_HEAP))
    while not compare_exchange(at, 0, 1):
        if control.closed != 0:
            return int64(0)
        yield_core()
    if heap_at(at).control == 0:
        open_heap(c, int64(OWN + BACK_HEAP))
    return at


@kernel
def alien_heap(c: int, at: int) -> int:
    """Return the heap, opened now if need be, that the thread of heap `at` frees records of array set `c` into."""
    row = int64(OWN) + row_of_heap(c, at)
    alien = heap_row(c, row)
    owner = heap_at(at).owner & EVEN
    if load8_acquire(alien, 0) != owner:
        open_heap(c, row)
        store8_release(alien, 0, owner)
    return alien


@kernel
def take(c: int, at: int) -> int:
    """Pop a magazine, refilled when it is empty; returns a handle or NULL."""
    h = heap_at(at)
    while True:
        while h.top > 0 and control_at(c).closed == 0:
            slot = load4(at + BELOW_TOP, h.top)
            h.top -= 1
            handle = make_live(c, slot)
            if handle != NULL:
                return handle
            give_back_retired(c, slot)
        c = follow(c, at)
        if call_table(c, F_REFILL, (at,)) == 0:
            return int64(NULL)


@kernel
def follow(c: int, at: int) -> int:
    """Return the array set that a heap is to draw from: that of the node its thread runs on now."""
    if frozen(c, C_NODES) == 1 or row_of_heap(c, at) >= HEAPS:  # threads' heaps alone follow
        return c
    here = set_here(c)
    if here != c:
        h = heap_at(at)
        row = row_of_heap(c, at)
        alien = heap_row(here, OWN + row)
        if h.top > 0:
            call_table(c, F_FLUSH, (at, h.top))
        if is_of(h.owner, load8_acquire(alien, 0)) and heap_at(alien).top > 0:
            call_table(here, F_FLUSH, (alien, heap_at(alien).top))
        h.slab = NIL
        h.control = here
        h.first = np.uint32(control_at(here).first_slot)
        note_claimed(here, row)
        fetch_add(here + C_ARRIVALS, 1)
    return here


@kernel
def give(c: int, at: int, handle: int) -> int:
    """Free a record into a magazine, flushed when it is full; 1: freed."""
    h = heap_at(at)
    control = control_at(c)
    slot = handle & SLOT_MASK
    live = shift_right(handle, 31) | 1
    if load4(control.words, slot) != live:
        return int64(0)
    if h.top == h.rounds:
        call_table(c, F_FLUSH, (at, max(h.rounds >> 1, int64(1))))
    store4_release(control.words, slot, live + 1)
    store4(at + MAGAZINE, h.top, slot)
    h.top += 1
    return int64(1)


@kernel
def make_live(c: int, slot: int) -> int:
    """
    Make a slot that left a magazine or the slab layer live, its record filled.

    Returns its handle, or NULL: it is retired, or it was freed twice at the same instant by a race in the user's code, was
    put into two places, and is in use again from the other.
    """
    control = control_at(c)
    word = load4(control.words, slot)
    if word & TAKEN == 0:
        if control.init != NO_INIT:
            copy_bytes(control.records + slot * control.stride, control.template, control.itemsize)
        store4_release(control.words, slot, word | 1)
        return word >> 1 << 32 | slot
    if word & 1 == 0:
        fetch_add(c + C_RETIRED, 1)
    else:
        note_fault(c, word >> 1 << 32 | slot, int64(TWICE))
    return int64(NULL)


@kernel
def give_back_retired(c: int, slot: int) -> None:
    """Give back the pages that only the record of a slot has, if that is retired: nobody will write there any more."""
    control = control_at(c)
    if load4(control.words, slot) & TAKEN == RETIRED:
        record = control.records + slot * control.stride
        start, stop = (record + page_bytes - 1) & -page_bytes, (record + control.stride) & -page_bytes
        if stop > start:
            give_back(start, stop - start)


@kernel
def room_for(c: int, at: int, want: int) -> int:
    """
    Return how many of `want` slots this heap may draw: what is parked in others does not count against the capacity.

    Needs   the lock.  With several array sets it is let go meanwhile: each set is counted under its own.
    """
    control = control_at(c)
    out = int64(control.out)
    if control.nodes > 1:
        out = int64(0)
        for node in range(control.nodes):
            out += control_at(set_at(c, node)).out
    if out + want <= control.capacity:
        return want
    if control.nodes > 1:
        unlock(c)
        taken = live_of_all(c)
        lock(c)
    else:
        taken = live_of(c)
    taken += heap_at(at).top
    return max(min(want, control.capacity - taken), int64(0))


@kernel
def next_slab(c: int, at: int) -> int:
    """
    Return the slab that this heap draws from now, or an answer of `pick` that is none.

    Needs   the lock.
    """
    h = heap_at(at)
    me = row_of_heap(c, at)
    i = int64(h.slab)
    if i >= 0:
        slab = slab_at(c, i)
        if slab.drawer == me and slab.list != NIL:  # on a list: it has slots, and is not being released
            return i
    i = pick(c, me)
    if i >= 0 and me < HEAPS:
        slab_at(c, i).drawer = me
        h.slab = i
    return i


@Entry
def refill(c: int, at: int) -> int:
    """Fill half of an empty magazine, lowest slots uppermost; returns how many it got."""
    h = heap_at(at)
    control = control_at(c)
    slots = u4_array(at + MAGAZINE)
    lock(c)
    control.refills += 1
    want = room_for(c, at, max(h.rounds >> 1, int64(1))) if control.closed == 0 else int64(0)
    left = want
    while left > 0:
        i = next_slab(c, at)
        if i == MUST_GROW and left == want:
            unlock(c)
            granted = call_table(c, F_GROW, (int64(1),))
            lock(c)
            if granted != 0 and control.closed == 0:
                continue
            i = some_partial(c)
        if i < 0:
            break
        block, mask, n = slab_draw(c, i, left)
        slab_lost(c, i, n)
        left -= n
        store_slots(at + MAGAZINE + left * 4, block, mask, n)
        if left < RUN and left < want:
            break  # a run is not torn for a few slots
    got = max(want - left, int64(0))
    if left > 0:
        for j in range(got):
            slots[j] = slots[left + j]
    if unlikely(h.slab >= 0 and slab_at(c, h.slab).shared != 0):
        slab_at(c, h.slab).shared = 0
        interleave(at, got // RUN)
    h.top = got
    surplus = end_of_interval(c)
    unlock(c)
    if unlikely(surplus > 0):
        call_table(c, F_RELEASE, (surplus,))
    return got


@kernel
def store_slots(to: int, block: int, mask: int, n: int) -> None:
    """Write the n slots of a mask in block `block` to the u4 array at `to`, the lowest last."""
    if mask == ALL:
        store_row(to, block, BLOCK)
        return
    slots = u4_array(to)
    for k in range(0, BLOCK, RUN):
        part = mask & (int64(RUN_MASK) << k)
        if part == int64(RUN_MASK) << k:
            n -= RUN
            store_row(to + n * 4, block + k, RUN)
            continue
        while part != 0:
            n -= 1
            slots[n] = np.uint32(block + lowest_bit(part))
            part &= part - 1


@kernel
def interleave(at: int, runs: int) -> None:
    """
    Reorder the uppermost runs of a refill, so that slots popped one after the other are of different runs.

    A thread that frees what this one allocates has the slots popped last on top of its magazine.  In order, its top and this
    heap's would be neighbours on one line of generations for as long as both go on alone (a pair 4 ns instead of 2).
    """
    if runs < 2 or runs * RUN > ROUNDS // 2:
        return
    slots = u4_array(at + MAGAZINE)
    n = runs * RUN
    for j in range(n):
        slots[ROUNDS - 1 - j] = slots[n - 1 - j]  # the upper half is free after a refill
    for j in range(n):
        slots[n - 1 - j] = slots[ROUNDS - 1 - (j % runs * RUN + j // runs)]


@Entry
def flush(c: int, at: int, count: int) -> int:
    """Give the lowest `count` slots of a magazine, the cold ones, to the slab layer; returns how many stay."""
    h = heap_at(at)
    slots = u4_array(at + MAGAZINE)
    lock(c)
    surplus = int64(0)
    if control_at(c).closed == 0:
        control_at(c).flushes += 1
        if is_alien(c, at):
            control_at(c).came_home += count
        last = load4(at + MAGAZINE, count - 1) >> control_at(c).shift
        if is_drawn_by_other(c, last, row_of_heap(c, at)):
            slab_at(c, last).shared = 1
        put_slots(c, at + MAGAZINE, count)
        surplus = end_of_interval(c)
    stay = max(h.top - count, ZERO) if control_at(c).closed == 0 else ZERO  # `close` may have emptied it meanwhile
    for j in range(stay):
        slots[j] = slots[count + j]
    h.top = stay  # under the lock: so the count of live records is right for who holds it
    unlock(c)
    if unlikely(surplus > 0):
        call_table(c, F_RELEASE, (surplus,))
    return stay


# --- Who owns which heap ---


@kernel
def open_heap(c: int, row: int) -> int:
    """Set a heap up for its new owner; returns its address."""
    control = control_at(c)
    at = heap_row(c, row)
    h = heap_at(at)
    h.top = 0
    h.rounds = 0 if row == OWN + SHARED_HEAP or row == OWN + CLOSED_HEAP else control.rounds
    h.limit = control.max_slabs << control.shift if control.nodes == 1 else control.nodes << control.node_shift
    if row == OWN + CLOSED_HEAP:
        h.limit = 0
    h.words = control.words
    h.records = control.records
    h.base = control.base
    h.stride = control.stride
    h.control = c
    h.slab = NIL
    h.first = np.uint32(control.first_slot)
    if h.rounds > 0:
        note_claimed(c, row)
    return at


@kernel
def note_claimed(c: int, row: int) -> None:
    """Note that a heap row is array set `c`'s; the front notes all rows of threads."""
    fetch_or(c + C_CLAIMED + (row >> 6 << 3), int64(1) << (row & 63))
    if row < OWN:
        fetch_or(frozen(c, C_FRONT) + C_CLAIMED + (row >> 6 << 3), int64(1) << (row & 63))


@kernel
def is_noted(c: int, row: int) -> bool:
    """Whether a heap row was ever array set `c`'s."""
    return load8_relaxed(c + C_CLAIMED, row >> 6) >> (row & 63) & 1 != 0


@kernel
def set_here(c: int) -> int:
    """Return the array set of the node that the calling thread runs on."""
    cpu_nodes = frozen(c, C_CPU_NODES)
    if cpu_nodes == 0:
        return c
    cpu = int64(current_cpu())
    return set_at(c, load1(cpu_nodes, cpu if 0 <= cpu < CPUS else ZERO))


@kernel
def is_alien(c: int, at: int) -> bool:
    """Whether heap `at` is one that another node's thread frees records of array set `c` into."""
    return OWN <= row_of_heap(c, at) < OWN + HEAPS


@Entry
def claim(c: int, me: int) -> int:
    """
    Return the address of thread `me`'s heap, claimed now if it has none, to draw from the node that it runs on.

    A thread beyond the table, or without memory for a heap, gets the shared one, and any thread the closed one after `close`.
    The end of the thread is watched, so that its slots go home.  A torn index is rebuilt before anybody has a heap of it.
    """
    control = control_at(c)
    here = set_here(c)
    wake_all(c)
    row, n_owned = next_claimed(c, ZERO), 0
    while 0 <= row < HEAPS and control.closed == 0:
        at = heap_row(c, row)
        owner = load8_acquire(at, 0)
        if is_of(owner, me):
            if owner != me:
                store8_release(at, 0, me)
            return at
        n_owned += owner != 0
        row = next_claimed(c, row + 1)
    if unlikely(n_owned == HEAPS and is_noted(here, int64(OWN + BACK_HEAP)) and control.closed == 0):
        return open_heap(here, int64(OWN + SHARED_HEAP))
    lock_word(control.process)
    at = take_heap(c, here, me) if control.closed == 0 else open_heap(here, int64(OWN + CLOSED_HEAP))
    store8_release(control.process, 0, 0)
    return at


@kernel
def take_heap(c: int, here: int, me: int) -> int:
    """
    Return the address of a heap that was nobody's and is thread `me`'s from now on, or of the shared one.

    Needs   the registry's lock, and an open cache.
    """
    process = frozen(c, C_PROCESS)
    row = shift_right(mixed(me), HASH_SHIFT)
    for _ in range(HEAPS):
        at = heap_row(c, row)
        if load8_acquire(at, 0) == 0:
            if not is_writable(c, at):
                break  # nor would the next ones be
            open_heap(here, row)
            store8_release(at, 0, me)
            watch_thread_exit(process_at(process).key, process)
            return at
        row = (row + 1) & (HEAPS - 1)
    for node in range(frozen(c, C_NODES)):
        note_claimed(set_at(c, node), int64(OWN + BACK_HEAP))  # which who has the shared one goes by
    return open_heap(here, int64(OWN + SHARED_HEAP))


@kernel
def is_writable(c: int, at: int) -> bool:
    """Make a thread's heaps writable, those of all classes together where they lie in an allocator's region; whether they are."""
    region, step = frozen(c, C_HEAP_REGION), frozen(c, C_HEAP_STEP)
    if region == 0:
        return True
    first = region + (at - region) // step * step
    start = first & -page_bytes
    return commit(start, first + step - start)


@kernel
def leave_heap(c: int, at: int) -> None:
    """Give all slots of a heap home and the heap up: by its owner, or for an owner that is no more."""
    h = heap_at(at)
    if h.top > 0:
        call_table(c, F_FLUSH, (at, h.top))
    store8_release(at, 0, 0)


@kernel
def shut_heap(at: int) -> None:
    """Empty a heap whose cache is closed, and make it nobody's: its generations are gone, so it accepts nothing more."""
    heap_at(at).top = 0
    store8_release(at, 0, CLOSED_OWNER)


@Entry
def flush_own(c: int) -> int:
    """Give all slots of the calling thread's heaps home; returns how many."""
    me = thread_pointer()
    n = int64(0)
    own_heap(c)
    for node in range(frozen(c, C_NODES)):
        home = set_at(c, node)
        row = next_heap(home, ZERO)
        while row >= 0:
            at = heap_row(home, row)
            if is_of(load8_acquire(at, 0), me) and heap_at(at).top > 0:
                n += heap_at(at).top
                call_table(home, F_FLUSH, (at, heap_at(at).top))
            row = next_heap(home, row + 1)
    return n
