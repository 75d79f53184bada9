"""
The heaps of a cache by their rows, and how many records are live.

The heaps of a node are numbered: first the heaps of threads, which all nodes share, then the node's own (alien, shared, closed,
back).  With one node these follow the threads' heaps in one array, and there are no alien ones.
"""

from __future__ import annotations

from ..machine.compile import Entry, kernel
from ..machine.memory import likely, lowest_bit, pause, thread_pointer
from ..machine.pointers import address_of, load_relaxed
from ..machine.system import yield_core
from .calls import call
from .layout import (
    EVEN,
    FIRST_NODE_HEAP,
    HEAP_ROWS,
    MAGAZINE_SLOTS,
    NIL,
    TORN,
    WORD_SHIFT,
    WORD_SLOTS,
    Control,
    Heap,
    control_at,
    heap_at,
)
from .slab import ALL, lock, node_at, unlock

SAMPLES = 4000  # how often `is_active` looks: some 100 microseconds


@kernel
def next_claimed(control: Control, index: int) -> int:
    """Return the first heap row at or after `index` that was ever claimed, or NIL."""
    while index < FIRST_NODE_HEAP + HEAP_ROWS:
        bits = load_relaxed(control.claimed, index >> WORD_SHIFT) & (ALL << (index & 63))
        if bits != 0:
            return (index & -WORD_SLOTS) + lowest_bit(bits)
        index = (index & -WORD_SLOTS) + WORD_SLOTS
    return NIL


@kernel
def heap_at_index(control: Control, index: int) -> Heap:
    """Return a heap by its row."""
    if index < FIRST_NODE_HEAP:
        return heap_at(control.heaps + index * control.heap_step)
    return heap_at(control.node_heaps + (index - FIRST_NODE_HEAP) * control.node_heap_step)


@kernel
def heap_index(control: Control, heap: Heap) -> int:
    """Return the row of a heap."""
    at, own, step = address_of(heap), control.node_heaps, control.node_heap_step
    if own != control.heaps and own <= at < own + HEAP_ROWS * step:
        return FIRST_NODE_HEAP + (at - own) // step
    return (at - control.heaps) // control.heap_step


@kernel
def next_heap(control: Control, index: int) -> int:
    """Return the first heap row at or after `index` that belongs to this node, or NIL."""
    index = next_claimed(control, index)
    while index >= 0 and address_of(heap_at_index(control, index).control) != address_of(control):
        index = next_claimed(control, index + 1)
    return index


@kernel
def is_owner(owner: int, me: int) -> bool:
    """Whether an owner field names thread `me`; a fork may have made it odd."""
    return owner & EVEN == me


@kernel
def own_heap(control: Control) -> None:
    """Claim a heap of the cache for the calling thread: by its owner a fork knows that a thread may change the slab layer."""
    call(control.first_node, "claim", (thread_pointer(),))


# --- Torn caches ---


@kernel
def wake(control: Control) -> None:
    """Rebuild the index of every torn node; a kernel that reads the index without the lock calls this first."""
    for number in range(control.nodes):
        node = node_at(control, number)
        if node.torn == TORN:
            lock(node)  # this rebuilds the index
            unlock(node)


# --- How many are live ---


@kernel
def parked(control: Control) -> int:
    """Return how many slots are in the magazines of one node."""
    n = 0
    index = next_heap(control, 0)
    while index >= 0:
        n += heap_at_index(control, index).top
        index = next_heap(control, index + 1)
    return n


@kernel
def live_of(control: Control) -> int:
    """Return how many records of one node are live; exact at rest."""
    n = control.state.used - parked(control) - control.state.retired
    return n if n > 0 else 0


@kernel
def live_of_all(control: Control) -> int:
    """
    Return how many records of the cache are live; exact at rest, also while the end of a thread flushes its slots.

    Needs   that no lock of the cache is held: each node is counted under its own.
    """
    n = 0
    for number in range(control.nodes):
        node = node_at(control, number)
        lock(node)
        n += live_of(node)
        unlock(node)
    return n


@kernel
def count_near(heap: Heap) -> int:
    """
    Return how many records of a cache of one node are live, without its lock; -1 if that does not suffice.

    It does while no heap row was ever claimed but the calling thread's, which is given: nobody else changes the index then.
    """
    if heap.magazine_size > 0:
        control = heap.control
        if load_relaxed(control, "n_claimed") == 1 and load_relaxed(control, "closed") == 0 and control.torn != TORN:
            state = control.state
            return max(load_relaxed(state, "used") - heap.top - state.retired, 0)
    return -1


@kernel
def count_any(control: Control, heap: Heap) -> int:
    """Return how many records of a cache of one node are live."""
    n = count_near(heap)
    return n if likely(n >= 0) else call(control, "count", ())


@Entry
def count(c: int) -> int:
    """Count the live records of the cache."""
    return live_of_all(control_at(c))


@Entry
def count_in_node(c: int) -> int:
    """Count the live records of one node."""
    control = control_at(c)
    lock(control)
    n = live_of(control)
    unlock(control)
    return n


# --- Is a thread at work? ---


@kernel
def activity_mark(control: Control, heap: Heap) -> int:
    """
    Return a number that changes as the heap's owner allocs and frees.

    It includes the generation of the slot popped last: a well compiled loop of pairs always stores the same `top`.
    """
    top = load_relaxed(heap, "top")
    slot = load_relaxed(heap.magazine, min(max(top, 0), MAGAZINE_SLOTS - 1))
    generation = 0
    if slot < load_relaxed(control.state, "limit"):
        generation = load_relaxed(control.generations, slot)
    return (generation << 32 | slot) ^ (top << 20)


@Entry
def is_active(c: int) -> int:
    """Watch a node for some time; returns 1 if another thread's heap or the slab layer changed, else 0."""
    control = control_at(c)
    me = thread_pointer()
    ticks = load_relaxed(control.state, "ticks")
    index = next_heap(control, 0)
    while index >= 0:
        heap = heap_at_index(control, index)
        if not is_owner(load_relaxed(heap, "owner"), me):
            mark = activity_mark(control, heap)
            for k in range(SAMPLES):
                if activity_mark(control, heap) != mark:
                    return 1
                if k & 255:
                    pause()
                else:
                    yield_core()  # let a thread that waits for a core run
        index = next_heap(control, index + 1)
    return 1 if load_relaxed(control.state, "ticks") != ticks or control.state.releasing != 0 else 0
