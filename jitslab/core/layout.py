"""
Read first: the words, the ladders, the data and the laws of a cache.

1. Words
   record      one user value of the cache's dtype
   slot        the place of one record: an integer, counted from 0 over all slabs of a cache
   slab        a run of slots, a power of two of them: nearest to 64 KiB of records
   cache       all slabs of one dtype
   generation  a 4-byte number of each slot: odd = live, even = free; it only goes up
   cycle       how often a slot was used before: its generation // 2
   handle      ``cycle << 32 | slot``: names one record, and is stale when the generation of the slot goes up
   retired     a slot whose generations are used up; it is not handed out again
   fresh       a slot that was never handed out since its slab was made or released
   free bit    one bit a slot: set = the slot is free and in no magazine
   heap        what one thread has of a cache: a magazine, and addresses for the fast paths
   magazine    an array of free slots in a heap: alloc pops it, free pushes it
   slab layer  all that is not in a heap: free bits, fresh counts, lists of slabs; guarded by one short lock
   capacity    records that one thread can always have; the reservation has more slots than that
   used        slots outside the slab layer: live, in magazines, or retired
   node        one share of the cache: on a machine with several NUMA nodes there is one for each (section 7)
   NIL         -1: the end of a list of slabs, no slab, no row
   NULL        0: no handle

2. One truth
   The generations say which slots are live.  Free bits, fresh counts, magazines, states and lists of slabs are an index over
   the generations: `rebuild` derives the index from them, `check` counts it again.

3. Alloc ladder
   a. pop the magazine, check that the generation is even, make it odd          heap.alloc: no lock, no atomics
   b. refill half a magazine under the lock                                     heap.slow_alloc
      from the slab that this heap draws from; else from a partially used slab, the fullest quarter first; else from an
      empty, a released or a new slab; else from a slab that another heap draws from                         slab.pick
   c. make memory of the reservation usable, outside the lock                   grow.grow

4. Free ladder
   a. compare the generation with the handle, make it even, push the magazine   heap.free: no lock, no atomics
   b. a full magazine gives its cold half to the slab layer                     heap.slow_free
   c. empty slabs that the working set did not need go back to the system       grow.release

5. Which thread may write what
   A generation: the thread that holds the record (free), or took the slot from a magazine or the slab layer (alloc).
   A heap: the thread that owns it.  Its owner field is set under the registry's lock, and set back to 0 by its thread.
   Free bits, SLAB and STATE: the holder of the cache's lock, which owns a heap of the cache.
   CONTROL: no thread after the cache was made, but for LOCAL, whose fields say it.
   A thread takes the process's registry lock first, then one cache's lock.  Under a cache's lock there is no system call and
   no call of CPython.  Under the registry's lock the end of a thread may give slabs back, and memory is made usable.
   The process holds the registry's lock over a fork.  So no cache is opened or closed meanwhile, and no heap changes its
   owner.  If no other thread owns a heap of a cache, that cache is whole in the child.  Any other cache may have been copied
   in the middle of a change: it is TORN, and the first thread that takes its lock in the child rebuilds the index.  The
   thread that forks keeps its heaps; their owner fields are odd while a cache is torn, so that the thread comes by
   `claim.claim`, and the index is rebuilt before its magazine changes.

6. Space
   One reservation a cache.  Each part is reserved for its largest size, and made usable as it grows.  No record ever moves.

     heaps | template | scratch | free bits | slab rows  CONTROL STATE  generations | records
                                              <-- grow    one page       grow -->     grow -->

   The slab rows grow downwards: so the first of them share a page with CONTROL, STATE and the first generations.
   The record of slot i is at ``records + i * stride``.  `alloc` copies the template into a new record if the cache has an
   `init`.  A refused handle is answered with a zeroed scratch record, so that compiled code never reads another record.
   A size class of an allocator has no heaps and no scratch in its reservation: the heaps of all classes lie side by side
   (sizes.layout), and its reservation is made at its first use (sizes.opening).
   When a reservation ends, its memory goes back to the system.  Its addresses are kept for a while, since compiled code may
   still hold some of them: they read as zeros (process).
   A cache without a capacity takes a share of the addresses that are left, and is refused the last 128th of them (process).

7. Nodes
   With several NUMA nodes a cache has a CONTROL and a STATE row for each; slot i belongs to the node ``i >> node_shift``.
   Slab rows, free bits, generations and records of those slots lie on that node's memory.  A thread's heap draws from the
   node that the thread runs on, looked up at each refill; so a heap holds slots of one node only.  The thread frees a record
   of another node into its *alien heap* for that node, which is flushed home when it is full, when the thread moves to that
   node, and when the thread ends.  A node never draws from another, so each holds the whole capacity.  User code and Python
   hold the address of the first node's CONTROL.  With one node there is no alien heap and nothing to look up.

Sources: J. Bonwick, "The Slab Allocator", USENIX Summer 1994; J. Bonwick and J. Adams, "Magazines and Vmem",
USENIX 2001; D. Leijen, B. Zorn, L. de Moura, "Mimalloc: Free List Sharding in Action", APLAS 2019.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from ..machine.pointers import I8S, U1S, U4S, StructPointer, make_cast

# Every law holds at rest; `check` counts again and names a broken one by its number.
LAWS = {
    1: "a slot is in one place only: live, in one magazine, under its free bit, fresh, or retired",
    2: "live + in magazines + n_free + n_fresh + retired == slots                              (every slab)",
    3: "n_free == number of free bits                                                          (every slab)",
    4: "a free bit, a fresh slot and a magazine's slot have an even generation",
    5: "a fresh slot's generation is not above the slab's ``min_generation``",
    6: "FULL <=> n_free + n_fresh == 0;  FREE <=> n_free + n_fresh == slots, else PARTIALLY_USED",
    7: "a slab is on one list: FREE on FRESH if n_fresh == slots, else on EMPTY; PARTIALLY_USED on a partial one; FULL on none",
    8: "used == sum over the slabs of (slots - n_free - n_fresh);  n_empty == slabs on EMPTY",
    9: "a magazine holds at most ``magazine_size`` slots, each below the limit",
}

NULL = 0
NIL = -1

# --- Limits and sizes, each with its reason ---

HEAPS = 256  # heaps of a cache; a thread beyond them goes to the slab layer at every operation
HASH_SHIFT = 64 - 8  # of the hash of a thread pointer: what is left is the row of its heap
SHARED_HEAP = HEAPS  # row of the heap of all threads beyond: its magazine holds nothing, so they take the slow path
CLOSED_HEAP = HEAPS + 1  # row that a closed cache answers with: nothing in it, nothing below its limit
BACK_HEAP = HEAPS + 2  # row whose magazine the threads beyond use in turn: its owner field is a lock
HEAP_ROWS = HEAPS + 3
FIRST_NODE_HEAP = HEAP_ROWS  # row of the first of a node's own heaps: those of threads have the rows before
NODE_BORDER = 64 * 1024  # bytes: where a node's records start, so that no page is on two nodes
NODE_SHIFT = 10  # least slots of a node: a page of generations
MAGAZINE_SLOTS = (
    512  # most slots in a magazine: half as many cost 25 % on batches of 32 that pass it, 128 on allocs in order 45 %
)
MAGAZINE_BYTES = 256 * 1024  # most bytes of records in a magazine
LINE = 64  # bytes of a cache line
LINE_SLOTS = 16  # generations on one line: slots leave a slab in whole lines, so that two heaps do not share one
LINE_SHIFT = 4
WORD_SLOTS = 64  # slots of one word of free bits
WORD_SHIFT = 6
PAGE = 4096  # what regions are aligned to; the system's own page may be larger (`addresses.page_bytes`)
SLAB_BYTES = 64 * 1024
MAX_SLAB_SHIFT = 16  # most slots a slab: 65,536
QUARTERS = 4  # lists of partially used slabs, by occupancy
EMPTY, FRESH = QUARTERS, QUARTERS + 1  # lists of FREE slabs: with memory behind them; never used, or released
LISTS = QUARTERS + 2
INTERVAL = 512  # refills and flushes of one interval of the working set, at least
TURNOVERS = 4  # times that all slots of the cache could come and go in one interval
HUGE_BYTES = 4 << 20  # records beyond this are in huge pages where the system has them: below, they would be waste
RELEASE_BYTES = 1 << 20  # least that is given back to the system at a time
SLOTS_PER_LOCK = 4096  # most slots moved under one hold of the lock

MAX_SLOTS = 1 << 32
DEFAULT_BYTES = 64 << 30  # of records, reserved when no capacity is given
MAX_CYCLE = 1 << 30  # a slot is retired after its cycle reached this
SPARE_SLOTS = 1 << 22  # slots beyond the capacity that a cache reserves, for those that will be retired
START_BITS = 29  # first cycles of a cache lie below 2**29
RETIRED = 0x80000000  # generation of a retired slot
NOT_FREE = RETIRED | 1  # generation & NOT_FREE == 0 <=> free and not retired
SLOT_MASK = 0xFFFFFFFF  # handle & SLOT_MASK == slot
EVEN = -2  # owner & EVEN == thread pointer; generation & EVEN == the generation of the free slot before

FREE, PARTIALLY_USED, FULL = 0, 1, 2  # states of a slab
RELEASING = 3  # on no list while its memory is given back
SOUND, TORN, MENDED = 0, 1, 2  # of a cache: no fork came between; one did, and the index is not rebuilt yet; it was
NO_INIT, TEMPLATE = 0, 1  # what alloc does with the record
STALE, EXHAUSTED, DOUBLE_FREE, AFTER_CLOSE = 1, 2, 3, 4  # kinds of fault: refused; NULL; freed twice in a race; any after `close`


def row(*fields: tuple[Any, ...]) -> np.dtype[Any]:
    """Return the aligned dtype of a metadata row."""
    return np.dtype(list(fields), align=True)


def offset_of(dtype: np.dtype[Any], name: str) -> int:
    """Return where in a row a field stands."""
    assert dtype.fields is not None
    return int(dtype.fields[name][1])


# --- CONTROL: what one process knows of one node of a cache ---

ENTRIES = row(
    # Addresses of the entry points: one table a process.  So user code neither links nor optimises the slow paths again (its
    # compile takes 57 ms instead of 115), and an entry point is replaced by one store.
    *[
        (name, "i8")
        for name in (
            *("claim", "alloc", "free", "address", "refill", "flush", "grow", "release", "rebuild"),
            *("alloc_many", "free_many", "alloc_few", "free_few", "count", "clear", "note_live", "flush_own"),
        )
    ]
)
ADDRESSES = row(
    # Frozen.  Of this process alone: another one has the same cache elsewhere.
    ("heaps", "i8"),  # the first of the threads' heaps
    ("generations", "i8"),  # u4 a slot
    ("records", "i8"),  # slot 0
    ("bits", "i8"),  # the free bits, one a slot, in words of 64
    ("slabs", "i8"),  # the row of slab 0; the others are before it
    ("scratch", "i8"),  # the scratch records
    ("template", "i8"),  # the record that is copied into a new one
    ("state", "i8"),  # STATE
    ("entries", "i8"),  # ENTRIES
    ("process", "i8"),  # PROCESS
    ("first_node", "i8"),  # CONTROL of the first node, this one's where there is one
    ("node_heaps", "i8"),  # this node's alien, shared, closed and back heaps; with one node == heaps
    ("cpu_nodes", "i8"),  # number of the node of each CPU, u1[CPUS]; 0: there is one node
    ("heap_region", "i8"),  # of a size class: the heaps of its allocator, writable where threads came; else 0
)
GEOMETRY = row(
    # Frozen.
    ("stride", "i8"),  # bytes from slot to slot
    ("itemsize", "i8"),  # bytes of a record
    ("shift", "i8"),  # slots a slab == 1 << shift
    ("max_slabs", "i8"),  # slabs that the reservation holds, up to the end of this node
    ("capacity", "i8"),  # records that one thread can always have
    ("magazine_size", "i8"),  # slots that a magazine may hold
    ("first_generation", "i8"),  # of every slot: even
    ("is_coloured", "i8"),  # 1: slabs start at different slots, 0: all at slot 0
    ("init", "i8"),  # NO_INIT or TEMPLATE
    ("scratch_step", "i8"),  # bytes from one heap's scratch record to the next, 0: all share one
    ("nodes", "i8"),  # nodes of the cache
    ("node", "i8"),  # number of this one
    ("node_shift", "i8"),  # slot >> node_shift == number of its node
    ("node_slots", "i8"),  # slots from one node to the next
    ("first_slab", "i8"),  # its first slab; `n_slabs`, `committed`, `max_slabs` and `limit` count from slab 0 of the cache
    ("first_slot", "i8"),
    ("heap_step", "i8"),  # bytes from one thread's heap to the next: between them lie those of an allocator's other classes
    ("node_heap_step", "i8"),  # the same of `node_heaps`
    ("ptr_base", "i8"),  # of a size class: number of its first slot
)
LOCAL = row(
    # Of this process alone, and changed.
    ("row", "i8"),  # row in the process's registry; under the registry's lock
    ("closed", "i8"),  # 1: it refuses everything; under the lock
    ("torn", "i8"),  # SOUND, TORN or MENDED; under the lock
    ("committed", "i8"),  # slabs whose memory is usable; under the lock
    ("faults", "i8"),  # faults since the last report; by any thread, as the rest of the row, by atomics
    ("fault_first", "i8"),  # handle of the first
    ("fault_kind", "i8"),  # STALE, EXHAUSTED, DOUBLE_FREE or AFTER_CLOSE
    ("fault_code", "i8"),  # code object of the Python function that called the kernel, owned; 0: not known
    ("fault_line", "i8"),  # the line that it was at
    ("migrations", "i8"),  # heaps that came to draw from this node: their thread had moved here
    ("n_claimed", "i8"),  # bits that are set in `claimed`
    ("claimed", "i8", (2 * HEAP_ROWS // 64 + 1,)),  # one bit a heap row that ever was this node's: of `heaps`, then `node_heaps`
)
CONTROL = row(
    ("addresses", ADDRESSES),
    ("geometry", GEOMETRY),
    ("pad_geometry", "i8", (7,)),  # what changes is on other lines than what is frozen
    ("local", LOCAL),
    ("pad_local", "i8", (4,)),
)

# --- STATE: the slab layer of one node: numbers, no addresses; written under the lock only ---

STATE = row(
    ("lock", "i8"),  # 0: free; else the thread that holds it, by its thread pointer
    ("limit", "i8"),  # slots of the slabs made so far; above, every generation reads 0 and no record is touched
    ("n_slabs", "i8"),  # slabs made
    ("used", "i8"),  # slots outside the slab layer: live, in magazines or retired
    ("heads", "i8", (LISTS,)),  # first slab of each list
    ("tails", "i8", (LISTS,)),  # last slab of each list
    ("n_empty", "i8"),  # slabs on the list EMPTY
    ("least_empty", "i8"),  # least n_empty of this interval
    ("ticks", "i8"),  # refills and flushes
    ("interval_end", "i8"),  # ticks at which the interval of the working set ends
    ("refills", "i8"),
    ("flushes", "i8"),
    ("released", "i8"),  # slabs given back to the system
    ("releasing", "i8"),  # 1 while one thread gives slabs back
    ("remote_frees", "i8"),  # slots that other nodes' threads freed and gave back
    ("retired", "i8"),  # slots that will not be handed out again; by any thread, by atomics
    ("pad", "i8", (6,)),
)
NODE = row(("control", CONTROL), ("state", STATE))  # what a cache has of each node, one after the other

# --- HEAP and SLAB ---

HEAP = row(
    # Written by its owner only, but for the owner field.  The first line is all that the fast paths need.
    ("owner", "i8"),  # thread pointer, odd after a fork until the index is rebuilt; 0: no thread
    ("top", "i8"),  # slots in the magazine
    ("magazine_size", "i8"),  # frozen, as the rest of the line: slots it may hold
    ("limit", "i8"),  # slots of the reservation: the generations of all of them can be read
    ("generations", "i8"),
    ("records", "i8"),
    ("ptr_base", "i8"),  # of a size class: what is added to a handle to get a ptr
    ("stride", "i8"),
    ("control", "i8"),  # CONTROL of the node that it draws from; changes when its thread runs on another node
    ("slab", "i4"),  # slab that it draws from, NIL: none
    ("first_slot", "u4"),  # of the node
    ("pad", "i8", (6,)),
)  # the magazine follows: u4[MAGAZINE_SLOTS]
SLAB = row(
    # Written under the lock only.
    ("next", "i4"),  # next slab of its list, or NIL
    ("prev", "i4"),  # previous slab of its list, or NIL
    ("list", "i4"),  # which list it is on, NIL: none
    ("state", "i4"),  # FREE, PARTIALLY_USED, FULL or RELEASING
    ("n_free", "i4"),  # free bits set
    ("n_fresh", "i4"),  # slots never handed out since the slab was made or released
    ("rover", "i4"),  # word of free bits where the last search ended
    ("reserved_by", "i4"),  # row of the heap that draws from it, NIL: none
    ("min_generation", "u4"),  # of a fresh slot: even, not below any that the slab ever issued
    ("has_remote_frees", "i4"),  # 1: another thread frees what the drawing heap allocates
    # Fixed when the slab is made.
    ("colour", "i4"),  # slot where the fresh slots start; they follow it and wrap
    ("pad", "i4", (5,)),
)

# --- PROCESS and RANGE ---

MAX_ROWS = 1 << 20  # caches open at once in one process
MOST_KEPT = 512  # ranges whose addresses are kept: each takes up to 6 of the 65,530 mappings that Linux gives a process

PROCESS = row(
    ("lock", "i8"),  # guards the registry: 0: free; else the thread that holds it
    ("epoch", "i8"),  # forks that led to this process
    ("exit_key", "i8"),  # key whose destructor runs at the end of each thread, -1: none
    ("n_rows", "i8"),  # registry rows in use, holes counted
    ("n_holes", "i8"),
    ("started", "i8"),  # 1: the system tells of forks and of ends of threads
    ("address_space", "i8"),  # bytes of address space that a process can have, if no limit is set
    ("most_rows", "i8"),  # caches that are open when those without a capacity are refused
    ("path", "i8", (3,)),  # where the system tells how many bytes of it are in use, as a C string
    ("text", "i8", (4,)),  # what it tells
    ("kept_first", "i8"),  # of the ranges whose addresses are kept: the oldest one
    ("n_kept", "i8"),
    ("kept_bytes", "i8"),
    ("most_kept_bytes", "i8"),
    ("is_limited", "i8"),  # 1: the system counts what is usable as memory of the process
    ("kept", "i8", (2 * MOST_KEPT,)),  # address and bytes of each
    ("entries", ENTRIES),
)  # the registry follows: i8 a row, the address of an open cache's first CONTROL, 0: a hole
RANGE = row(
    # Beside a range of addresses: what its end needs.
    ("end", "i8"),  # address of the entry point that is the end
    ("start", "i8"),
    ("bytes", "i8"),
    ("control", "i8"),  # address of the one CONTROL in it that stands in the registry, 0: none, or several
    ("head", "i8"),  # address, of a page, of what keeps its content at the end: compiled code may still look at it
    ("head_bytes", "i8"),
)

# --- Pointers to these rows, for kernels ---

Control: TypeAlias = Any  # to a type checker, what kernels take and return is Any or int
State: TypeAlias = Any
Heap: TypeAlias = Any
Slab: TypeAlias = Any
Process: TypeAlias = Any
Range: TypeAlias = Any


def names_of(*dtypes: np.dtype[Any]) -> tuple[str, ...]:
    """Return the names of all fields."""
    return tuple(name for dtype in dtypes for name in dtype.names or ())


SlabPointer = StructPointer("Slab", SLAB)
EntriesPointer = StructPointer("Entries", ENTRIES)
StatePointer = StructPointer("State", STATE)
HeapPointer = StructPointer(
    "Heap",
    HEAP,
    frozen=("magazine_size", "limit", "generations", "records", "ptr_base", "stride"),
    addresses={"generations": U4S},
    tail=("magazine", U4S),
)
ProcessPointer = StructPointer("Process", PROCESS, tail=("rows", I8S))
ControlPointer = StructPointer(
    "Control",
    CONTROL,
    frozen=names_of(ADDRESSES, GEOMETRY),
    addresses={
        "generations": U4S,
        "bits": I8S,
        "state": StatePointer,
        "entries": EntriesPointer,
        "process": ProcessPointer,
        "cpu_nodes": U1S,
    },
)
HeapPointer.addresses["control"] = ControlPointer
ControlPointer.addresses["first_node"] = ControlPointer
RangePointer = StructPointer("Range", RANGE)

slab_at, heap_at, state_at, process_at = map(make_cast, (SlabPointer, HeapPointer, StatePointer, ProcessPointer))
control_at, range_at = make_cast(ControlPointer), make_cast(RangePointer)

NODE_BYTES = NODE.itemsize  # from one node's CONTROL to the next
CONTROL_BYTES, GEOMETRY_BYTES = CONTROL.itemsize, GEOMETRY.itemsize
NODE_WORDS = {  # where each field stands in the NODE row, as a number of int64s
    name: (start + pointer.fields[name][0]) // 8
    for pointer, start, dtypes in (
        (ControlPointer, 0, (ADDRESSES, GEOMETRY, LOCAL)),
        (StatePointer, CONTROL.itemsize, (STATE,)),
    )
    for name in names_of(*dtypes)
}
MAGAZINE = HEAP.itemsize  # offset of a heap's magazine
HEAP_BYTES = (MAGAZINE + 4 * MAGAZINE_SLOTS) | LINE  # an odd number of lines: equal tops of two heaps fall into different sets
FIRST_ROWS = 8  # slab rows, at least, that share the page of the control block
STAGGERS = 16  # lines that the control blocks of caches start on
STAGGER = (FIRST_ROWS + STAGGERS) * LINE  # the last of them
HEAD_BYTES = STAGGER + NODE_BYTES  # what is usable, from a page border on, of the region of a cache's control block
EAGER_BYTES = 2 << 20  # metadata up to this is made usable at once, so that a small cache has few mappings

assert CONTROL.itemsize % LINE == 0
assert STATE.itemsize % LINE == 0
assert SLAB.itemsize == LINE
assert HEAP.itemsize == 2 * LINE
assert HEAP.names is not None
assert HEAP.names.index("control") * 8 == LINE
assert HEAPS == 1 << 64 - HASH_SHIFT
assert 1 << LINE_SHIFT == LINE_SLOTS
assert 1 << WORD_SHIFT == WORD_SLOTS
assert MOST_KEPT & (MOST_KEPT - 1) == 0
