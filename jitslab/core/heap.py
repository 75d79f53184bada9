"""
Heaps: one a thread, a magazine of free slots that is popped and pushed without a lock and without atomics.

`alloc`, `free` and `address` are the fast paths, on top.  Each has one slow path below, called by its entry point.
"""

from __future__ import annotations

from ..machine.compile import Entry, kernel, uint64
from ..machine.memory import copy_bytes, likely, lowest_bit, shift_right, unlikely, zero_bytes
from ..machine.pointers import address_of, compare_exchange, fetch_add, load_acquire, load_relaxed, store_release, u4s
from ..machine.system import yield_core
from .calls import call, slow
from .claim import alien_heap, is_alien, local_node, note_claimed, open_heap
from .faults import note_fault
from .grow import end_of_interval, give_back_pages
from .heap_table import heap_at_index, heap_index, is_owner, live_of, live_of_all
from .layout import (
    BACK_HEAP,
    DOUBLE_FREE,
    EVEN,
    EXHAUSTED,
    FIRST_NODE_HEAP,
    HEAPS,
    LINE_SLOTS,
    MAGAZINE_SLOTS,
    NIL,
    NO_INIT,
    NOT_FREE,
    NULL,
    RETIRED,
    SLOT_MASK,
    STALE,
    WORD_SLOTS,
    Control,
    Heap,
    control_at,
    heap_at,
)
from .slab import (
    ALL,
    LINE_MASK,
    MUST_GROW,
    any_partial,
    is_drawn_by_other,
    lock,
    node_at,
    node_of_slot,
    note_drawn,
    pick,
    put_slots,
    slab_draw,
    slab_row,
    unlock,
)
from .vectors import store_row

# --- Fast paths ---
# Several of them repeat the same lines on purpose: a shared function makes a churn 9 % slower.


@kernel
def alloc(heap: Heap) -> int:
    """
    Take a slot and make it live.

    Returns its handle, or NULL if the cache is full or closed.  O(1), 1 ns; a miss refills half a magazine.

    The handle is built after the paths have joined: so LLVM knows the generation and the slot in it, and an access or a free
    near by waits for neither.
    """
    top = heap.top
    slot, generation = 0, NOT_FREE
    if likely(top != 0):
        slot = heap.magazine[top - 1]
        generation = heap.generations[slot]
    if likely(generation & NOT_FREE == 0):
        heap.top = top - 1
        heap.generations[slot] = generation | 1
    else:
        handle = slow(heap, "alloc", ())
        slot, generation = handle & SLOT_MASK, shift_right(handle, 31) & EVEN
    return generation >> 1 << 32 | slot


@kernel
def alloc_filled(control: Control, heap: Heap, stride: int, itemsize: int) -> int:
    """Take a slot as `alloc` does; its record is a copy of the template before another thread can see it live."""
    top = heap.top
    slot, generation = 0, NOT_FREE
    if likely(top != 0):
        slot = heap.magazine[top - 1]
        generation = heap.generations[slot]
    if likely(generation & NOT_FREE == 0):
        heap.top = top - 1
        copy_bytes(heap.records + slot * stride, control.template, itemsize)
        store_release(heap.generations, slot, generation | 1)
    else:
        handle = slow(heap, "alloc", ())
        slot, generation = handle & SLOT_MASK, shift_right(handle, 31) & EVEN
    return generation >> 1 << 32 | slot


@kernel
def alloc_any(control: Control, heap: Heap) -> int:
    """Take a slot, filled if the cache has an `init`."""
    if control.init != NO_INIT:
        return alloc_filled(control, heap, control.stride, control.itemsize)
    return alloc(heap)


@kernel
def push(heap: Heap, handle: int) -> bool:
    """Free by the fast path only; returns False, changing nothing, if the handle is refused or the slow path is needed."""
    slot = handle & SLOT_MASK
    live = shift_right(handle, 31) | 1
    if unlikely(slot >= heap.limit):
        return False
    if unlikely(heap.generations[slot] != live):
        return False
    top = heap.top
    if unlikely(top == heap.magazine_size):
        return False
    heap.generations[slot] = live + 1
    heap.magazine[top] = slot
    heap.top = top + 1
    return True


@kernel
def free(heap: Heap, handle: int) -> bool:
    """
    Free a record of a cache with one node.  With several nodes the slot could get into the wrong heap: see `free_near`.

    Returns False, and changes nothing, if the handle is stale or foreign.  O(1), 1 ns; a full magazine flushes its cold half.
    """
    slot = handle & SLOT_MASK
    live = shift_right(handle, 31) | 1
    if unlikely(slot >= heap.limit):
        return False
    if unlikely(heap.generations[slot] != live):
        return False
    top = heap.top
    if unlikely(top == heap.magazine_size):
        return slow(heap, "free", (handle,)) != 0
    heap.generations[slot] = live + 1
    heap.magazine[top] = slot
    heap.top = top + 1
    return True


@kernel
def free_near(control: Control, heap: Heap, handle: int) -> bool:
    """
    Free a record of a cache with several nodes, as `free` does.

    If the record is of another node than the heap, it goes into an alien heap by the slow path.
    """
    slot = handle & SLOT_MASK
    live = shift_right(handle, 31) | 1
    top = heap.top
    if unlikely(top == heap.magazine_size):  # tested first: a heap of zeros (NULL as the cache) has no generations to read
        return slow(heap, "free", (handle,)) != 0
    if unlikely(uint64(slot - heap.first_slot) >= uint64(control.node_slots)):
        return slow(heap, "free", (handle,)) != 0
    if unlikely(heap.generations[slot] != live):
        return False
    heap.generations[slot] = live + 1
    heap.magazine[top] = slot
    heap.top = top + 1
    return True


@kernel
def free_any(control: Control, heap: Heap, handle: int) -> bool:
    """Free a record of a cache with one node or several."""
    return free(heap, handle) if control.nodes == 1 else free_near(control, heap, handle)


@kernel
def address(heap: Heap, handle: int, stride: int) -> int:
    """Return the address of a live record; if the handle is refused, that of a zeroed scratch record, and set a fault."""
    slot = handle & SLOT_MASK
    if unlikely(slot >= heap.limit):
        return slow(heap, "address", (handle,))
    if unlikely(heap.generations[slot] != shift_right(handle, 31) | 1):
        return slow(heap, "address", (handle,))
    return heap.records + slot * stride


@kernel
def is_live(heap: Heap, handle: int) -> bool:
    """Whether the handle's record is live."""
    slot = handle & SLOT_MASK
    return slot < heap.limit and load_relaxed(heap.generations, slot) == shift_right(handle, 31) | 1


# --- Slow paths ---


@Entry
def slow_alloc(c: int, h: int) -> int:
    """`alloc` if the magazine is empty, its top slot cannot be handed out, or the thread has no heap."""
    control, heap = control_at(c), heap_at(h)
    if heap.magazine_size > 0:
        return pop_or_refill(control, heap)
    if not lock_back_heap(control):
        return NULL
    back = heap_at_index(control, FIRST_NODE_HEAP + BACK_HEAP)
    handle = pop_or_refill(control, back)
    store_release(back, "owner", 0)
    return handle


@Entry
def slow_free(c: int, h: int, handle: int) -> int:
    """`free` if the magazine is full, the record is another node's, or the thread has no heap; returns 1 if freed."""
    control, heap = control_at(c), heap_at(h)
    slot = handle & SLOT_MASK
    if control.nodes > 1:
        if slot >= heap.limit:
            return 0
        control = node_of_slot(control, slot)
    if heap.magazine_size > 0:
        if address_of(heap.control) != address_of(control):
            heap = alien_heap(control, heap)
        return push_or_flush(control, heap, handle)
    if not lock_back_heap(control):
        return 0
    back = heap_at_index(control, FIRST_NODE_HEAP + BACK_HEAP)
    freed = push_or_flush(control, back, handle)
    store_release(back, "owner", 0)
    return freed


@Entry
def slow_address(c: int, h: int, handle: int) -> int:
    """`address` of a refused handle: set a fault and zero this heap's scratch record."""
    control = control_at(c)
    note_fault(control, handle, EXHAUSTED if handle == NULL else STALE)
    scratch = control.scratch + heap_index(control, heap_at(h)) % FIRST_NODE_HEAP * control.scratch_step
    zero_bytes(scratch, control.itemsize)
    return scratch


@kernel
def lock_back_heap(control: Control) -> bool:
    """Lock the back heap, which threads without a heap use in turn, by its owner field; returns False after `close`."""
    back = heap_at_index(control, FIRST_NODE_HEAP + BACK_HEAP)
    while not compare_exchange(back, "owner", 0, 1):
        if control.closed != 0:
            return False
        yield_core()
    if address_of(back.control) == 0:
        open_heap(control, FIRST_NODE_HEAP + BACK_HEAP)
    return True


@kernel
def pop_or_refill(control: Control, heap: Heap) -> int:
    """Pop a magazine, after a refill if it is empty; returns a handle or NULL."""
    while True:
        while heap.top > 0 and control.closed == 0:
            top = heap.top - 1
            slot = heap.magazine[top]
            heap.top = top
            handle = make_live(control, slot)
            if handle != NULL:
                return handle
            give_back_retired(control, slot)
        control = move_to_local_node(control, heap)
        if call(control, "refill", (heap,)) == 0:
            return NULL


@kernel
def move_to_local_node(control: Control, heap: Heap) -> Control:
    """Make a heap draw from the node that its thread runs on; returns that node."""
    index = heap_index(control, heap)
    if control.nodes == 1 or index >= HEAPS:  # only threads' heaps move
        return control
    here = local_node(control)
    if address_of(here) != address_of(control):
        alien = heap_at_index(here, FIRST_NODE_HEAP + index)
        if heap.top > 0:
            call(control, "flush", (heap, heap.top))
        if is_owner(heap.owner, load_acquire(alien, "owner")) and alien.top > 0:
            call(here, "flush", (alien, alien.top))
        heap.slab = NIL
        heap.control = here
        heap.first_slot = here.first_slot
        note_claimed(here, index)
        fetch_add(here, "migrations", 1)
    return here


@kernel
def push_or_flush(control: Control, heap: Heap, handle: int) -> int:
    """Free a record into a magazine, after a flush if it is full; returns 1 if freed."""
    slot = handle & SLOT_MASK
    live = shift_right(handle, 31) | 1
    if control.generations[slot] != live:
        return 0
    if heap.top == heap.magazine_size:
        call(control, "flush", (heap, max(heap.magazine_size >> 1, 1)))
    store_release(control.generations, slot, live + 1)
    top = heap.top
    heap.magazine[top] = slot
    heap.top = top + 1
    return 1


@kernel
def make_live(control: Control, slot: int) -> int:
    """
    Fill the record of a slot that left a magazine or the slab layer, and make it live.

    Returns its handle, or NULL: the slot is retired; or a race in the user's code freed it twice at once, so it stood in two
    places and was already taken from the other.
    """
    generation = control.generations[slot]
    if generation & NOT_FREE == 0:
        if control.init != NO_INIT:
            copy_bytes(control.records + slot * control.stride, control.template, control.itemsize)
        store_release(control.generations, slot, generation | 1)
        return generation >> 1 << 32 | slot
    if generation & 1 == 0:
        fetch_add(control.state, "retired", 1)
    else:
        note_fault(control, generation >> 1 << 32 | slot, DOUBLE_FREE)
    return NULL


@kernel
def give_back_retired(control: Control, slot: int) -> None:
    """Give back the pages that hold nothing but the record of a retired slot: no thread will write there again."""
    if control.generations[slot] & NOT_FREE == RETIRED:
        record = control.records + slot * control.stride
        give_back_pages(record, record + control.stride)


# --- Refill ---


@kernel
def room_for(control: Control, heap: Heap, want: int) -> int:
    """
    Return how many of `want` slots this heap may draw; slots parked in other heaps do not count against the capacity.

    Needs   the lock.  With several nodes the lock is given up meanwhile: each node is counted under its own.
    """
    used = control.state.used
    if control.nodes > 1:
        used = 0
        for number in range(control.nodes):
            used += node_at(control, number).state.used
    if used + want <= control.capacity:
        return want
    if control.nodes > 1:
        unlock(control)
        taken = live_of_all(control)
        lock(control)
    else:
        taken = live_of(control)
    room = control.capacity - taken - heap.top
    return max(min(want, room), 0)


@kernel
def next_slab(control: Control, heap: Heap) -> int:
    """
    Return the slab that this heap draws from now; if there is none, the answer of `pick`.

    Needs   the lock.
    """
    index = heap_index(control, heap)
    i = heap.slab
    if i >= 0:
        slab = slab_row(control, i)
        if slab.reserved_by == index and slab.list != NIL:  # a slab on a list has slots and is not being released
            return i
    i = pick(control, index)
    if i >= 0 and index < HEAPS:
        slab_row(control, i).reserved_by = index
        heap.slab = i
    return i


@kernel
def next_slab_or_grow(control: Control, heap: Heap, n_slabs: int) -> int:
    """
    Return the slab that this heap draws from now, or NO_SLAB; if a new slab is needed, ask for memory for `n_slabs` more.

    Needs   the lock, which is given up meanwhile.
    """
    while True:
        i = next_slab(control, heap)
        if i != MUST_GROW:
            return i
        unlock(control)
        granted = call(control, "grow", (n_slabs,))
        if granted == 0 and n_slabs > 1:
            granted = call(control, "grow", (1,))
        lock(control)
        if granted == 0 or control.closed != 0:
            return any_partial(control)


@Entry
def refill(c: int, h: int) -> int:
    """Fill half of an empty magazine, the lowest slot on top; returns how many slots it got."""
    control, heap = control_at(c), heap_at(h)
    magazine = heap.magazine
    lock(control)
    control.state.refills += 1
    want = room_for(control, heap, max(heap.magazine_size >> 1, 1)) if control.closed == 0 else 0
    left = want
    while left > 0:
        i = next_slab_or_grow(control, heap, 1) if left == want else next_slab(control, heap)
        if i < 0:
            break
        first, mask, n = slab_draw(control, i, left)
        note_drawn(control, i, n)
        left -= n
        store_slots(address_of(magazine) + left * 4, first, mask, n)
        if left < LINE_SLOTS and left < want:
            break  # the rest of the line stays together
    got = max(want - left, 0)
    if left > 0:
        for j in range(got):
            magazine[j] = magazine[left + j]
    if unlikely(heap.slab >= 0 and slab_row(control, heap.slab).has_remote_frees != 0):
        slab_row(control, heap.slab).has_remote_frees = 0
        interleave(heap, got // LINE_SLOTS)
    heap.top = got
    surplus = end_of_interval(control)
    unlock(control)
    if unlikely(surplus > 0):
        call(control, "release", (surplus,))
    return got


@kernel
def store_slots(at: int, first: int, mask: int, n: int) -> None:
    """Write the n slots of a mask, in the word of free bits from slot `first` on, to the u4 array at `at`, the lowest last."""
    if mask == ALL:
        store_row(at, first, WORD_SLOTS)
        return
    slots = u4s(at)
    for k in range(0, WORD_SLOTS, LINE_SLOTS):
        part = mask & (LINE_MASK << k)
        if part == LINE_MASK << k:
            n -= LINE_SLOTS
            store_row(at + n * 4, first + k, LINE_SLOTS)
            continue
        while part != 0:
            n -= 1
            slots[n] = first + lowest_bit(part)
            part &= part - 1


@kernel
def interleave(heap: Heap, lines: int) -> None:
    """
    Reorder the top lines of a refill, so that slots popped one after the other are on different lines.

    If another thread frees the records that this thread allocates, the slots popped last are on top of its magazine.  In
    order, the tops of both magazines would be neighbours on one line of generations while both go on alone (a pair takes 4 ns
    instead of 2).
    """
    if lines < 2 or lines * LINE_SLOTS > MAGAZINE_SLOTS // 2:
        return
    magazine = heap.magazine
    n = lines * LINE_SLOTS
    for j in range(n):
        magazine[MAGAZINE_SLOTS - 1 - j] = magazine[n - 1 - j]  # the upper half is free after a refill
    for j in range(n):
        magazine[n - 1 - j] = magazine[MAGAZINE_SLOTS - 1 - (j % lines * LINE_SLOTS + j // lines)]


# --- Flush ---


@Entry
def flush(c: int, h: int, count: int) -> int:
    """Give the lowest `count` slots of a magazine, the cold ones, to the slab layer; returns how many slots stay."""
    control, heap = control_at(c), heap_at(h)
    state, magazine = control.state, heap.magazine
    surplus, stay = 0, 0
    lock(control)
    if control.closed == 0:  # otherwise `close` has emptied it
        state.flushes += 1
        if is_alien(control, heap):
            state.remote_frees += count
        last = magazine[count - 1] >> control.shift
        if is_drawn_by_other(control, last, heap_index(control, heap)):
            slab_row(control, last).has_remote_frees = 1
        put_slots(control, address_of(magazine), count)
        surplus = end_of_interval(control)
        stay = max(heap.top - count, 0)
    for j in range(stay):
        magazine[j] = magazine[count + j]
    heap.top = stay  # under the lock, so that its holder counts live records right
    unlock(control)
    if unlikely(surplus > 0):
        call(control, "release", (surplus,))
    return stay
