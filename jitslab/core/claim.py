"""Which thread owns which heap."""

from __future__ import annotations

from ..machine.addresses import page_bytes
from ..machine.compile import Entry, kernel
from ..machine.memory import fibonacci_hash, shift_right, thread_pointer, unlikely
from ..machine.numa import CPUS
from ..machine.pointers import address_of, fetch_add, fetch_or, load_acquire, load_relaxed, store_release
from ..machine.system import commit, current_cpu, watch_thread_exit
from .calls import call
from .heap_table import heap_at_index, heap_index, is_owner, next_claimed, next_heap, own_heap, wake
from .layout import (
    BACK_HEAP,
    CLOSED_HEAP,
    EVEN,
    FIRST_NODE_HEAP,
    HASH_SHIFT,
    HEAPS,
    NIL,
    SHARED_HEAP,
    WORD_SHIFT,
    Control,
    Heap,
    control_at,
)
from .slab import lock_row, node_at, unlock_row

CLOSED_OWNER = -1  # differs from every thread pointer


# --- Open and claim ---


@kernel
def open_heap(control: Control, index: int) -> Heap:
    """Fill a heap in for its new owner."""
    heap = heap_at_index(control, index)
    size = control.magazine_size
    limit = control.max_slabs << control.shift if control.nodes == 1 else control.nodes << control.node_shift
    if index == FIRST_NODE_HEAP + CLOSED_HEAP:
        size, limit = 0, 0
    elif index == FIRST_NODE_HEAP + SHARED_HEAP:
        size = 0
    heap.top = 0
    heap.magazine_size = size
    heap.limit = limit
    heap.generations = control.generations
    heap.records = control.records
    heap.ptr_base = control.ptr_base
    heap.stride = control.stride
    heap.control = control
    heap.slab = NIL
    heap.first_slot = control.first_slot
    if size > 0:
        note_claimed(control, index)
    return heap


@kernel
def note_claimed(control: Control, index: int) -> None:
    """Note that a heap row belongs to this node; the first node notes the rows of all threads' heaps."""
    word, bit = index >> WORD_SHIFT, 1 << (index & 63)
    set_claimed(control, word, bit)
    if index < FIRST_NODE_HEAP:
        set_claimed(control.first_node, word, bit)


@kernel
def set_claimed(control: Control, word: int, bit: int) -> None:
    """Set a bit of `claimed`, and count it."""
    if fetch_or(control.claimed, word, bit) & bit == 0:
        fetch_add(control, "n_claimed", 1)


@kernel
def is_noted(control: Control, index: int) -> bool:
    """Whether a heap row ever belonged to this node."""
    return load_relaxed(control.claimed, index >> WORD_SHIFT) >> (index & 63) & 1 != 0


@kernel
def local_node(control: Control) -> Control:
    """Return the node that the calling thread runs on."""
    cpu_nodes = control.cpu_nodes
    if address_of(cpu_nodes) == 0:
        return control
    cpu = current_cpu()
    if cpu < 0 or cpu >= CPUS:
        cpu = 0
    return node_at(control, cpu_nodes[cpu])


@kernel
def alien_heap(control: Control, heap: Heap) -> Heap:
    """Return the alien heap for node `control` of a heap's thread, opened now if needed."""
    index = FIRST_NODE_HEAP + heap_index(control, heap)
    alien = heap_at_index(control, index)
    owner = heap.owner & EVEN
    if load_acquire(alien, "owner") != owner:
        open_heap(control, index)
        store_release(alien, "owner", owner)
    return alien


@kernel
def is_alien(control: Control, heap: Heap) -> bool:
    """Whether a heap is an alien heap of this node."""
    return FIRST_NODE_HEAP <= heap_index(control, heap) < FIRST_NODE_HEAP + HEAPS


@Entry
def claim(c: int, me: int) -> int:
    """
    Return the address of thread `me`'s heap; a thread without one claims it now, to draw from the node that it runs on.

    If all heaps are owned, or there is no memory for one more, the thread gets the shared heap; after `close` every thread gets
    the closed one.  The end of the thread is watched, so that its slots go home.  A torn index is rebuilt first.
    """
    control = control_at(c)
    here = local_node(control)
    wake(control)
    index, n_owned = next_claimed(control, 0), 0
    while 0 <= index < HEAPS and control.closed == 0:
        heap = heap_at_index(control, index)
        owner = load_acquire(heap, "owner")
        if is_owner(owner, me):
            if owner != me:
                store_release(heap, "owner", me)
            return address_of(heap)
        n_owned += 1 if owner != 0 else 0
        index = next_claimed(control, index + 1)
    if unlikely(n_owned == HEAPS and is_noted(here, FIRST_NODE_HEAP + BACK_HEAP) and control.closed == 0):
        return address_of(open_heap(here, FIRST_NODE_HEAP + SHARED_HEAP))
    lock_row(control.process)
    is_open = control.closed == 0
    heap = take_heap(control, here, me) if is_open else open_heap(here, FIRST_NODE_HEAP + CLOSED_HEAP)
    unlock_row(control.process)
    return address_of(heap)


@kernel
def take_heap(control: Control, here: Control, me: int) -> Heap:
    """
    Make thread `me` the owner of a free heap and return it; if there is none, return the shared heap.

    Needs   the registry's lock, and an open cache.
    """
    process = control.process
    index = shift_right(fibonacci_hash(me), HASH_SHIFT)
    for _ in range(HEAPS):
        heap = heap_at_index(control, index)
        if load_acquire(heap, "owner") == 0:
            if not is_writable(control, heap):
                break  # the next ones would not be, either
            open_heap(here, index)
            store_release(heap, "owner", me)
            watch_thread_exit(process.exit_key, address_of(process))
            return heap
        index = (index + 1) & (HEAPS - 1)
    for number in range(control.nodes):
        note_claimed(node_at(control, number), FIRST_NODE_HEAP + BACK_HEAP)  # threads with the shared heap use the back heap
    return open_heap(here, FIRST_NODE_HEAP + SHARED_HEAP)


@kernel
def is_writable(control: Control, heap: Heap) -> bool:
    """Make a thread's heap writable; in an allocator's region, those of all classes together.  Returns whether it is."""
    region, step = control.heap_region, control.heap_step
    if region == 0:
        return True
    first = region + (address_of(heap) - region) // step * step
    start = first & -page_bytes
    return commit(start, first + step - start)


# --- Leave and shut ---


@kernel
def leave_heap(control: Control, heap: Heap) -> None:
    """Flush all slots of a heap and release it; called by its owner, or after the owner's end."""
    if heap.top > 0:
        call(control, "flush", (heap, heap.top))
    store_release(heap, "owner", 0)


@kernel
def shut_heap(heap: Heap) -> None:
    """Empty a heap of a closed cache and take it from its owner: since the generations are gone, it accepts nothing more."""
    heap.top = 0
    store_release(heap, "owner", CLOSED_OWNER)


@Entry
def flush_own(c: int) -> int:
    """Flush all slots of the calling thread's heaps; returns how many."""
    control = control_at(c)
    me = thread_pointer()
    n = 0
    own_heap(control)
    for number in range(control.nodes):
        node = node_at(control, number)
        index = next_heap(node, 0)
        while index >= 0:
            heap = heap_at_index(node, index)
            if is_owner(load_acquire(heap, "owner"), me) and heap.top > 0:
                n += heap.top
                call(node, "flush", (heap, heap.top))
            index = next_heap(node, index + 1)
    return n
