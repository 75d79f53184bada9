"""
Links between records, followed and judged: which records they lead to, and which of them lead to no record.

A *graph* is some caches and the links between their records; a *part* is one of these caches.  `walk` reaches records: it has
one bit a slot, set when a link names the slot's record, and a queue of the records whose own links come next.  The queue has a
fixed size.  If it is full, a second bit of the slot says that its record waits: cycles, long lists and wide trees need no more
memory than small ones.  A record is *lost* if it is live and not reached.  A link is *dangling* if it is neither NULL nor the
handle of a live record of its cache.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from ..machine.compile import Entry, inlined, int64, kernel
from ..machine.memory import lowest_bit, popcount, prefetch_read, shift_right, unlikely
from ..machine.pointers import I8S, StructPointer, i8s, make_cast
from .calls import call
from .guard_calls import peek
from .layout import NULL, SLOT_MASK, WORD_SHIFT, WORD_SLOTS, Control, ControlPointer, control_at, names_of, row
from .scan import scan_end, skip_free
from .vectors import live_mask

GROUP = "reach"  # of entry points: compiled with the first use, apart from those of caches
AHEAD = 16  # queued records that `walk` looks ahead, to prefetch them

# --- The rows, filled in by Python ---

GRAPH = row(
    ("parts", "i8"),  # address of the first PART row
    ("queue", "i8"),  # address of an array: ``part << 32 | slot`` of records that are reached, and whose links come next
    ("queue_size", "i8"),  # a power of two
    ("head", "i8"),  # records taken out of the queue so far
    ("tail", "i8"),  # records put into it so far
    ("n_waiting", "i8"),  # bits that are set in `waiting` of all parts
    ("dangling", "i8"),  # dangling links met so far
)
PART = row(
    ("control", "i8"),  # address of the cache's first CONTROL row
    ("limit", "i8"),  # slots below this are part of the graph; a multiple of 64
    ("reached", "i8"),  # address of one bit a slot: a root or a link names the slot's record
    ("waiting", "i8"),  # address of one bit a slot: reached while the queue was full
    ("links", "i8"),  # address of the first LINK row
    ("n_links", "i8"),
    ("freed", "i8"),  # records that `free_lost` freed
)
LINK = row(
    # A field that holds handles, or a sub-array of them, or a field in a sub-array of nested records.
    ("target", "i8"),  # number of the part that the handles are of
    ("offset", "i8"),  # of the first handle in the record
    ("count", "i8"),  # handles in the record
    ("step", "i8"),  # bytes from one handle to the next, if `n_levels` is 0
    ("levels", "i8"),  # address of (count, step) of each level of sub-arrays, the innermost first
    ("n_levels", "i8"),  # 0: one step leads from each handle to the next
    ("is_swapped", "i8"),  # 1: in the other byte order
)
FOUND = row(("handle", "i8"), ("link", "i8"), ("position", "i8"), ("value", "i8"))  # a dangling link; `link` numbers its LINK row

Graph: TypeAlias = Any  # to a type checker, pointers of kernels are Any
Part: TypeAlias = Any
Link: TypeAlias = Any

graph_at = make_cast(StructPointer("Graph", GRAPH, frozen=("parts", "queue", "queue_size"), addresses={"queue": I8S}))
part_at = make_cast(
    StructPointer(
        "Part",
        PART,
        frozen=("control", "limit", "reached", "waiting", "links", "n_links"),
        addresses={"control": ControlPointer, "reached": I8S, "waiting": I8S},
    )
)
link_at = make_cast(StructPointer("Link", LINK, frozen=names_of(LINK), addresses={"levels": I8S}))
found_at = make_cast(StructPointer("Found", FOUND))
PART_BYTES, LINK_BYTES, FOUND_BYTES = PART.itemsize, LINK.itemsize, FOUND.itemsize


@inlined
def part_of(graph: Graph, number: int) -> Part:
    """Return a part by its number."""
    return part_at(graph.parts + number * PART_BYTES)


@inlined
def link_of(part: Part, number: int) -> Link:
    """Return a link by its number."""
    return link_at(part.links + number * LINK_BYTES)


@inlined
def record_at(control: Control, slot: int) -> int:
    """Return the address of the record of a slot."""
    return control.records + slot * control.stride


# --- The handles in a record ---


@inlined
def place_of(link: Link, position: int) -> int:
    """Return where in a record the handle at a position of a link is."""
    if link.n_levels == 0:
        return link.offset + position * link.step
    return link.offset + place_in_levels(link, position)


@inlined
def handle_at(link: Link, at: int) -> int:
    """Return the handle at an address, a place of a link in a record."""
    handle = peek(at, "i8")
    return swapped(handle) if unlikely(link.is_swapped != 0) else handle


@kernel
def place_in_levels(link: Link, position: int) -> int:
    """Return how many bytes after the first handle the one at a position is."""
    place, levels = 0, link.levels
    for k in range(link.n_levels):
        count = levels[2 * k]
        outer = position // count
        place += (position - outer * count) * levels[2 * k + 1]
        position = outer
    return place


@kernel
def swapped(x: int) -> int:
    """Return an integer with its bytes in the other order."""
    bytes_, pairs = 0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF
    x = (x & bytes_) << 8 | shift_right(x, 8) & bytes_
    x = (x & pairs) << 16 | shift_right(x, 16) & pairs
    return x << 32 | shift_right(x, 32)


@inlined
def names_live(part: Part, handle: int) -> bool:
    """Whether a handle is that of a live record of a part."""
    slot, limit = handle & SLOT_MASK, part.limit
    generation = part.control.generations[min(slot, max(limit - 1, 0))]  # no branch: the CPU would mispredict NULL
    return (generation == shift_right(handle, 31) | 1) & (slot < limit)


@Entry
def end_of(c: int) -> int:
    """Return the end of the slots of a cache that a graph has: a multiple of 64."""
    return (scan_end(control_at(c)) + WORD_SLOTS - 1) & -WORD_SLOTS


# --- Reach ---


@inlined
def reach(graph: Graph, number: int, part: Part, handle: int) -> None:
    """Reach the live record of a handle; if that is the first time and it has links, queue it."""
    slot = handle & SLOT_MASK
    word, bit = slot >> WORD_SHIFT, int64(1) << (slot & 63)
    before = part.reached[word]
    if before & bit == 0:
        part.reached[word] = before | bit
        if part.n_links > 0:
            if graph.tail - graph.head < graph.queue_size:
                enqueue(graph, number, part, slot)
            else:
                part.waiting[word] |= bit
                graph.n_waiting += 1


@inlined
def enqueue(graph: Graph, number: int, part: Part, slot: int) -> None:
    """Put a record into the queue, which has room."""
    tail = graph.tail
    graph.queue[tail & (graph.queue_size - 1)] = number << 32 | slot
    graph.tail = tail + 1
    if 0 < tail - graph.head < AHEAD:
        prefetch_links(part, slot)


@inlined
def prefetch_links(part: Part, slot: int) -> None:
    """Ask the CPU for the first link of a record."""
    prefetch_read(record_at(part.control, slot) + link_of(part, 0).offset)


@inlined
def follow(graph: Graph, number: int, slot: int) -> None:
    """Reach all that the links of one record lead to; dangling ones are counted."""
    part = part_of(graph, number)
    record = record_at(part.control, slot)
    for k in range(part.n_links):
        link = link_of(part, k)
        target = part_of(graph, link.target)
        for position in range(link.count):
            handle = handle_at(link, record + place_of(link, position))
            if names_live(target, handle):
                reach(graph, link.target, target, handle)
            elif unlikely(handle != NULL):
                graph.dangling += 1


@kernel
def queue_waiting(graph: Graph, n_parts: int) -> None:
    """Put records that wait into the queue, which is empty, until it is full."""
    for number in range(n_parts):
        part = part_of(graph, number)
        waiting = part.waiting
        if part.n_links > 0:
            for word in range(part.limit >> WORD_SHIFT):
                while waiting[word] != 0:
                    if graph.n_waiting == 0 or graph.tail - graph.head >= graph.queue_size:
                        return
                    slot = (word << WORD_SHIFT) + lowest_bit(waiting[word])
                    waiting[word] &= waiting[word] - 1
                    graph.n_waiting -= 1
                    enqueue(graph, number, part, slot)


@Entry
def reach_roots(g: int, number: int, hs: int, n: int) -> int:
    """Reach the records of n handles of a part, which were live when they were given."""
    graph = graph_at(g)
    part, handles = part_of(graph, number), i8s(hs)
    for p in range(n):
        if names_live(part, handles[p]):
            reach(graph, number, part, handles[p])
    return 0


@Entry
def walk(g: int, n_parts: int, most: int) -> int:
    """
    Follow the links of up to `most` records that were reached.

    Returns how many are left; at 0 all that the roots lead to is reached.  Called again and again, so that Ctrl-C is heard.
    Needs   rest.
    """
    graph = graph_at(g)
    queue, mask = graph.queue, graph.queue_size - 1
    for _ in range(most):
        head = graph.head
        if head == graph.tail:
            if graph.n_waiting == 0:
                break
            queue_waiting(graph, n_parts)
        if head + AHEAD < graph.tail:
            ahead = queue[(head + AHEAD) & mask]
            prefetch_links(part_of(graph, ahead >> 32), ahead & SLOT_MASK)
        at = queue[head & mask]
        graph.head = head + 1
        follow(graph, at >> 32, at & SLOT_MASK)
    return graph.tail - graph.head + graph.n_waiting


# --- What was not reached ---


@inlined
def lost_mask(part: Part, base: int) -> int:
    """Return a mask of the slots of the word at `base` that hold a live record which was not reached."""
    return live_mask(part.control.generations, base) & ~part.reached[base >> WORD_SHIFT]


@inlined
def write_handles(part: Part, base: int, mask: int, out: int) -> int:
    """Write the handles of the slots of a mask, in the word at `base`, to the array at `out`; returns how many."""
    handles, generations, n = i8s(out), part.control.generations, 0
    while mask != 0:
        slot = base + lowest_bit(mask)
        mask &= mask - 1
        handles[n] = generations[slot] >> 1 << 32 | slot
        n += 1
    return n


@Entry
def lost_handles(p: int, out: int, most: int) -> int:
    """Write the handles of the live records of a part that were not reached to the array at `out`; returns how many there are."""
    part = part_at(p)
    n, base = 0, 0
    while base < part.limit:
        mask = lost_mask(part, base)
        if mask == 0:
            base = skip_free(part.control, base)
        elif n + popcount(mask) <= most:
            n += write_handles(part, base, mask, out + n * 8)
        else:
            n += popcount(mask)
        base += WORD_SLOTS
    return n


@Entry
def free_lost(g: int, n_parts: int, out: int, room: int) -> int:
    """
    Free the live records that were not reached, of the first `n_parts` parts: in one call, which no exception can cut.

    out   int64   address of an array for handles
    room  int64   how many it holds, 64 at least

    Returns how many were freed; PART says how many of each part.
    Needs   rest.
    """
    graph = graph_at(g)
    freed = 0
    for number in range(n_parts):
        part = part_of(graph, number)
        n, base, before = 0, 0, freed
        while base < part.limit:
            if n + WORD_SLOTS > room:
                freed += call(part.control, "free_many", (out, n, 0))
                n = 0
            mask = lost_mask(part, base)
            if mask == 0:
                base = skip_free(part.control, base)
            else:
                n += write_handles(part, base, mask, out + n * 8)
            base += WORD_SLOTS
        if n > 0:
            freed += call(part.control, "free_many", (out, n, 0))
        part.freed = freed - before
    return freed


# --- Dangling links ---


@inlined
def count_dangling(graph: Graph, part: Part, base: int, mask: int) -> int:
    """Return how many links are dangling in the records of the slots of a mask, in the word at `base`."""
    n, records, stride = 0, record_at(part.control, base), part.control.stride
    for k in range(part.n_links):
        link = link_of(part, k)
        target = part_of(graph, link.target)
        for position in range(link.count):
            at, rest = records + place_of(link, position), mask
            while rest != 0:  # short, so that the CPU waits for many generations at a time
                handle = handle_at(link, at + lowest_bit(rest) * stride)
                rest &= rest - 1
                n += (handle != NULL) & (not names_live(target, handle))
    return n


@kernel
def write_dangling(graph: Graph, part: Part, slot: int, out: int, room: int) -> int:
    """Write a FOUND row for each of the first `room` dangling links of a live record; returns how many."""
    control, n = part.control, 0
    record = record_at(control, slot)
    for k in range(part.n_links):
        link = link_of(part, k)
        target = part_of(graph, link.target)
        for position in range(link.count):
            handle = handle_at(link, record + place_of(link, position))
            if handle != NULL and not names_live(target, handle) and n < room:
                found = found_at(out + n * FOUND_BYTES)
                found.handle = control.generations[slot] >> 1 << 32 | slot
                found.link = k
                found.position = position
                found.value = handle
                n += 1
    return n


@Entry
def find_dangling(g: int, start: int, end: int, out: int, room: int) -> int:
    """
    Find the dangling links in the live records of part 0 from slot `start` to `end`, both multiples of 64.

    out   int64   address of FOUND rows
    room  int64   how many there are

    Returns how many were found; those beyond `room` are not written.
    """
    graph = graph_at(g)
    part = part_of(graph, 0)
    control, stop = part.control, min(end, part.limit)
    n, written, base = 0, 0, start
    while base < stop:
        mask = live_mask(control.generations, base)
        if mask == 0:
            base = skip_free(control, base)
        else:
            found = count_dangling(graph, part, base, mask)
            while found > 0 and written < room and mask != 0:
                slot = base + lowest_bit(mask)
                mask &= mask - 1
                written += write_dangling(graph, part, slot, out + written * FOUND_BYTES, room - written)
            n += found
        base += WORD_SLOTS
    return n
