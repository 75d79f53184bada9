"""
Read first: the words, the ladders, the data and the laws of a cache.

A cache hands out places for records of one dtype and takes them back, in constant time and with no search.  It cuts its memory
into slabs of equal slots, and each thread keeps some free slots at hand: so most operations need no lock.

1. Words
   Records
     record      one user value of the cache's dtype
     slot        the place of one record: an integer, counted from 0 over all slabs of a cache
     slab        a run of slots, a power of two of them: nearest to 64 KiB of records
     cache       all slabs of one dtype
     capacity    records that one thread can always have; the reservation has more slots
     node        one share of a cache: on a machine with several NUMA nodes there is one for each (section 7)
     line        64 bytes: what the CPU loads at a time; 16 generations
     word        64 free bits in one integer, or 64 bits of any other mask of slots
     NIL         -1: the end of a list of slabs, no slab, no row
     NULL        0: no handle

   One slot
     generation  a 4-byte number of each slot: odd = live, even = free; it only goes up
     live        holding a record that the user has not freed
     cycle       generation // 2: how often the slot was used; a cache starts it at a number of its own
     handle      ``cycle << 32 | slot``: names one record
     stale       of a handle: its record was freed, so the generation has gone up.  A stale handle is refused
     retired     of a slot: its generations are used up, so it is not handed out again.  A slab of such slots is worn out
     fresh       of a slot: never handed out since its slab was made or released
     free bit    one bit a slot: set = the slot is free and in no magazine

   Threads
     heap        one thread's part of a cache: a magazine, and addresses for the fast paths
     magazine    an array of free slots in a heap: alloc pops it, free pushes it.  Its lowest slots are the cold ones
     parked      of slots: free and in a magazine
     slab layer  all that is in no heap: free bits, fresh counts, lists of slabs; guarded by one short lock
     used        of slots: outside the slab layer, that is live, parked or retired
     draw        to take slots from the slab layer; a heap draws from one slab until that is full
     refill      to draw half a magazine; *flush* puts slots of a magazine back into the slab layer
     claim       to make a thread the owner of a heap
     shared heap the heap of all threads that find no free one.  Its magazine holds nothing, so they take the slow path; there
                 they use the *back heap* in turn
     closed heap the heap of every thread after `close`: it refuses everything
     alien heap  a thread's heap for records of another node (section 7)
     fault       a refused handle in compiled code, which cannot raise: it is counted, and Python reports it
     rest        no thread is in the middle of an operation

   Memory
     row         one record of metadata, of a dtype below
     entry point a kernel with a C address, called through a table: the slow paths
     frozen      of a field: not changed after its row was filled in, so LLVM loads it once
     reservation the addresses of a cache; a page of it is *usable* when it can be written to
     release     to give the memory of a slab back to the system; the slab is fresh again
     working set the slabs that a program needs again: those used within one *interval* of refills and flushes
     colour      the slot where a slab's fresh slots start: different slabs use different lines of the CPU's cache first
     registry    the list of a process's open caches
     range       addresses with an end: when the last array of them ends, their memory goes back
     kept        of a range: ended, but its addresses stay mapped and read as zeros
     image       of a cache: what makes the same cache somewhere else, with the same handles (image)
     torn        of a cache in a child of `fork`: copied in the middle of a change
     pool        a directory with caches whose generations and records are files, mapped privately (pool.pool)
     commit      to append the pages that were written since the last commit to a pool's journal, as one *frame*
     checkpoint  to copy the journal into the files, after which it is empty
     size class  a cache of an allocator by size; its *ptr* is a handle with slots counted over all classes (sizes.layout)

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
   Free bits, SLAB and STATE: the thread that holds the cache's lock; it owns a heap of the cache.
   CONTROL: no thread after the cache was made, except LOCAL, whose fields name their writers.
   A thread takes the process's registry lock first, then one cache's lock.  Under a cache's lock there is no system call and
   no call of CPython.  Under the registry's lock the end of a thread may give slabs back, and memory is made usable.
   The process holds the registry's lock over a fork.  So no cache is opened or closed meanwhile, and no heap changes its
   owner.  If no other thread owns a heap of a cache, that cache is whole in the child.  Any other cache may have been copied
   in the middle of a change: it is TORN, and the first thread that takes its lock in the child rebuilds the index.  The
   thread that forks keeps its heaps.  Their owner fields are odd while a cache is torn: so the thread comes by `claim.claim`,
   which rebuilds the index before the magazine changes.

6. Space
   One reservation a cache.  Each part is reserved for its largest size, and made usable as it grows.  No record ever moves.
   The parts in the order of their addresses (`geometry.lay_out`):

     heaps | template | scratch | free bits | slab rows  CONTROL STATE  generations | records
                                              <-- grow    one page      grow -->      grow -->

   The slab rows grow downwards: so the first of them share a page with CONTROL, STATE and the first generations.
   The record of slot i is at ``records + i * stride``.  `alloc` copies the template into a new record if the cache has an
   `init`.  A refused handle is answered with a zeroed scratch record, so that compiled code never reads another record.
   A size class of an allocator has no heaps and no scratch in its reservation: the heaps of all classes lie side by side
   (sizes.layout), and its reservation is made at its first use (sizes.opening).
   When a reservation ends, its memory goes back to the system.  Its addresses are kept for a while, since compiled code may
   still have some of them: they read as zeros (process).
   A cache without a capacity takes a share of the addresses that are left, and is refused the last 128th of them (process).

7. Nodes
   With several NUMA nodes a cache has a CONTROL and a STATE row for each (machine.numa says when); slot i belongs to the node
   ``i >> node_shift``.  Slab rows, free bits, generations and records of those slots lie on that node's memory:

     heaps | template | scratch | node of each CPU | free bits of all nodes | slab rows of all nodes
           | CONTROL STATE, CONTROL STATE, ... | generations of all nodes | records of all nodes

   A thread's heap draws from the node that the thread runs on, looked up at each refill; so a heap has slots of one node only.
   The thread frees a record of another node into its *alien heap* for that node, which is flushed when it is full, when the
   thread moves to that node, and when the thread ends.  A node never draws from another, so each has the whole capacity.  User
   code and Python have the address of the first node's CONTROL.  With one node there is no alien heap and nothing to look up.

8. Files
   The generations and records of a pool's cache are mapped from two files (pool.memory), all else is as in any cache:

     CONTROL STATE | heaps | template | scratch | free bits | slab rows | head, generations | records

   Stores stay in the process.  No store needs an order: on the medium there are whole commits only, so a link is never older than
   the record that it names.  Any content of the two files is legal to the kernels: an odd generation is a live record, and behind
   the slabs that were made there are zeros.  An opened cache is TORN: its index is rebuilt when it is needed.  A cache that is
   read only has no index, and a table of entry points that refuse changes (reader).

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

HEAPS = 256  # heaps of threads in a cache; a thread that finds no free one goes to the slab layer at every operation
HASH_SHIFT = 64 - 8  # hash of a thread pointer >> HASH_SHIFT == the first heap row that the thread tries
SHARED_HEAP = HEAPS  # row of the shared heap
CLOSED_HEAP = HEAPS + 1  # row of the closed heap: its magazine holds nothing, and no slot is below its limit
BACK_HEAP = HEAPS + 2  # row of the back heap: its owner field is its lock
HEAP_ROWS = HEAPS + 3
FIRST_NODE_HEAP = HEAP_ROWS  # first row of a node's own heaps; the rows before are those of threads
NODE_BORDER = 64 * 1024  # bytes: a node's records start at a multiple, so that no page is on two nodes
NODE_SHIFT = 10  # a node has at least 1 << NODE_SHIFT slots: a page of generations
# Most slots in a magazine.  With 256, batches of 32 that go through it cost 25 % more; with 128, allocs in order cost 45 % more.
MAGAZINE_SLOTS = 512
MAGAZINE_BYTES = 256 * 1024  # most bytes of records in a magazine
LINE = 64  # bytes of a cache line
LINE_SLOTS = 16  # generations on one line: slots leave a slab in whole lines, so that two heaps share none
LINE_SHIFT = 4
WORD_SLOTS = 64  # slots of one word of free bits
WORD_SHIFT = 6
PAGE = 4096  # alignment of parts; the system's own page may be larger (`addresses.page_bytes`)
SLAB_BYTES = 64 * 1024  # a slab has as many slots as come nearest to this
MAX_SLAB_SHIFT = 16  # most slots a slab: 65,536
QUARTERS = 4  # lists of partially used slabs, by occupancy
EMPTY, FRESH = QUARTERS, QUARTERS + 1  # lists of FREE slabs: with memory behind them; never used, or released
LISTS = QUARTERS + 2
INTERVAL = 512  # least refills and flushes of one interval of the working set
NEVER = 1 << 62  # refills and flushes: the end of an interval that does not end
TURNOVERS = 4  # times that all slots of the cache could come and go in one interval
HUGE_BYTES = 4 << 20  # of a node's records; those beyond are in huge pages if the system has them: a small cache would waste them
RELEASE_BYTES = 1 << 20  # least that is given back to the system at a time
SLOTS_PER_LOCK = 4096  # most slots moved under one hold of the lock

MAX_SLOTS = 1 << 32
DEFAULT_BYTES = 64 << 30  # most bytes of records that a cache without a capacity reserves
MAX_CYCLE = 1 << 30  # a slot is retired when its cycle has reached this
SPARE_SLOTS = 1 << 22  # most slots that a cache reserves beyond its capacity, for those that will be retired
START_BITS = 29  # the first cycle of a cache is below 2**29
RETIRED = 2 * MAX_CYCLE  # generation of a retired slot: 0x80000000
NOT_FREE = RETIRED | 1  # generation & NOT_FREE == 0 <=> the slot is free and not retired
SLOT_MASK = 0xFFFFFFFF  # handle & SLOT_MASK == slot
EVEN = -2  # owner & EVEN == thread pointer; generation & EVEN == the even generation before it was handed out

FREE, PARTIALLY_USED, FULL = 0, 1, 2  # states of a slab
RELEASING = 3  # state of a slab on no list, while its memory is given back
SOUND, TORN, MENDED = 0, 1, 2  # of a node: not torn; torn, and the index not rebuilt yet; rebuilt
NO_INIT, TEMPLATE = 0, 1  # alloc leaves the record as it is, or copies the template into it
# Kinds of fault: refused; NULL; freed twice in a race; after `close`; changed though it was opened to read.
STALE, EXHAUSTED, DOUBLE_FREE, AFTER_CLOSE, READ_ONLY = 1, 2, 3, 4, 5


def row(*fields: tuple[Any, ...]) -> np.dtype[Any]:
    """Return the aligned dtype of a metadata row."""
    return np.dtype(list(fields), align=True)


def offset_of(dtype: np.dtype[Any], name: str) -> int:
    """Return the offset of a field in its row."""
    assert dtype.fields is not None
    return int(dtype.fields[name][1])


# --- CONTROL: where one node of a cache is, and its sizes ---

ENTRIES = row(
    # Addresses of the entry points: one table a process.  Through it user code calls the slow paths without linking and
    # optimising them again (its compile takes 57 ms instead of 115), and one store replaces an entry point.
    *[
        (name, "i8")
        for name in (
            *("claim", "alloc", "free", "address", "refill", "flush", "grow", "release", "rebuild"),
            *("alloc_many", "free_many", "alloc_few", "free_few", "count", "clear", "note_live", "flush_own"),
        )
    ]
)
ADDRESSES = row(
    # Frozen, and valid in this process only.
    ("heaps", "i8"),  # the first of the threads' heaps
    ("generations", "i8"),  # u4 a slot
    ("records", "i8"),  # the record of slot 0
    ("bits", "i8"),  # the free bits, one a slot, in words of 64
    ("slabs", "i8"),  # the row of slab 0; the others are before it, by falling addresses
    ("scratch", "i8"),  # the scratch records
    ("template", "i8"),  # the template
    ("state", "i8"),  # the STATE row
    ("entries", "i8"),  # the ENTRIES row
    ("process", "i8"),  # the PROCESS row
    ("first_node", "i8"),  # the CONTROL row of the first node; with one node this row
    ("node_heaps", "i8"),  # this node's own heaps: alien, shared, closed and back; with one node == heaps
    ("cpu_nodes", "i8"),  # by CPU: the number of its node, u1[CPUS]; 0: there is one node
    ("heap_region", "i8"),  # of a size class: the heaps of its allocator, which a claim makes writable; else 0
)
GEOMETRY = row(
    # Frozen.
    ("stride", "i8"),  # bytes from slot to slot
    ("itemsize", "i8"),  # bytes of a record
    ("shift", "i8"),  # slots a slab == 1 << shift
    ("max_slabs", "i8"),  # number of this node's last slab + 1, by the reservation
    ("capacity", "i8"),  # records that one thread can always have
    ("magazine_size", "i8"),  # slots that a magazine may hold
    ("first_generation", "i8"),  # that every slot starts with: even
    ("is_coloured", "i8"),  # 1: slabs start at different slots, 0: all at slot 0
    ("init", "i8"),  # NO_INIT or TEMPLATE
    ("scratch_step", "i8"),  # bytes from one heap's scratch record to the next, 0: all heaps share one
    ("nodes", "i8"),  # how many nodes the cache has
    ("node", "i8"),  # number of this node
    ("node_shift", "i8"),  # slot >> node_shift == number of its node
    ("node_slots", "i8"),  # slots from one node to the next
    ("first_slab", "i8"),  # of this node; `n_slabs`, `committed`, `max_slabs` and `limit` count from slab 0 of the cache
    ("first_slot", "i8"),  # of this node
    ("heap_step", "i8"),  # bytes from one thread's heap to the next: of a size class the heaps of other classes lie in between
    ("node_heap_step", "i8"),  # bytes from one of `node_heaps` to the next
    ("ptr_base", "i8"),  # of a size class: ptr - handle, the number of its first slot
    ("is_file", "i8"),  # 1: a pool's cache, whose generations and records are mapped from files
)
LOCAL = row(
    # Changed, and valid in this process only.
    ("row", "i8"),  # row in the registry; under the registry's lock
    ("closed", "i8"),  # 1: the cache refuses everything; under the lock
    ("torn", "i8"),  # SOUND, TORN or MENDED; under the lock
    ("committed", "i8"),  # number of the last usable slab + 1; under the lock
    ("faults", "i8"),  # faults since the last report; this and the following by any thread, by atomics
    ("fault_first", "i8"),  # handle of the first fault
    ("fault_kind", "i8"),  # STALE, EXHAUSTED, DOUBLE_FREE or AFTER_CLOSE
    ("fault_code", "i8"),  # code object of the Python function that called the kernel, owned; 0: not known
    ("fault_line", "i8"),  # the line that it was at
    ("migrations", "i8"),  # heaps that began to draw from this node because their thread had moved to it
    ("n_claimed", "i8"),  # bits that are set in `claimed`
    # One bit a heap row that ever belonged to this node: `heaps`, then `node_heaps`.
    ("claimed", "i8", (2 * HEAP_ROWS // 64 + 1,)),
)
CONTROL = row(
    ("addresses", ADDRESSES),
    ("geometry", GEOMETRY),
    ("pad_geometry", "i8", (6,)),  # frozen and changed fields are on different lines
    ("local", LOCAL),
    ("pad_local", "i8", (4,)),
)

# --- STATE: the slab layer of one node: numbers, no addresses; written under the lock only ---

STATE = row(
    ("lock", "i8"),  # 0: free; else the thread that holds it, by its thread pointer
    ("limit", "i8"),  # number of the last slab's last slot + 1; from here on generations read 0 and no record is touched
    ("n_slabs", "i8"),  # number of the last slab made + 1
    ("used", "i8"),  # slots outside the slab layer: live, parked or retired
    ("heads", "i8", (LISTS,)),  # first slab of each list
    ("tails", "i8", (LISTS,)),  # last slab of each list
    ("n_empty", "i8"),  # slabs on the list EMPTY
    ("least_empty", "i8"),  # least n_empty of this interval
    ("ticks", "i8"),  # refills and flushes so far
    ("interval_end", "i8"),  # ticks at which the interval of the working set ends
    ("refills", "i8"),
    ("flushes", "i8"),
    ("released", "i8"),  # slabs given back to the system
    ("releasing", "i8"),  # 1 while one thread gives slabs back
    ("remote_frees", "i8"),  # slots that threads of other nodes freed and flushed
    ("retired", "i8"),  # retired slots; by any thread, by atomics
    ("pad", "i8", (6,)),
)
NODE = row(("control", CONTROL), ("state", STATE))  # one a node, side by side

# --- HEAP and SLAB ---

HEAP = row(
    # Written by its owner only, except the owner field.  The fast paths need the first line only.
    ("owner", "i8"),  # thread pointer, odd after a fork until the index is rebuilt; 0: no thread
    ("top", "i8"),  # slots in the magazine
    ("magazine_size", "i8"),  # slots that the magazine may hold; frozen, like the rest of the line
    ("limit", "i8"),  # slots of the reservation: the generations of all of them can be read
    ("generations", "i8"),
    ("records", "i8"),
    ("ptr_base", "i8"),  # of a size class: ptr - handle
    ("stride", "i8"),
    ("control", "i8"),  # CONTROL of the node that it draws from; changes when its thread runs on another node
    ("slab", "i4"),  # slab that it draws from, NIL: none
    ("first_slot", "u4"),  # of that node
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
    ("rover", "i4"),  # word of free bits where the next search starts
    ("reserved_by", "i4"),  # row of the heap that draws from it, NIL: none
    ("min_generation", "u4"),  # of its fresh slots, at least: even, not below any that the slab ever issued
    ("has_remote_frees", "i4"),  # 1: another thread frees what the drawing heap allocates
    # Fixed when the slab is made.
    ("colour", "i4"),  # first fresh slot of the slab; the others follow it and wrap
    ("pad", "i4", (5,)),
)

# --- PROCESS and RANGE ---

MAX_ROWS = 1 << 20  # caches open at once in one process
MOST_KEPT = 512  # most ranges that are kept: each takes up to 6 of the 65,530 mappings that Linux gives a process

PROCESS = row(
    ("lock", "i8"),  # guards the registry: 0: free; else the thread that holds it
    ("epoch", "i8"),  # forks that led to this process
    ("exit_key", "i8"),  # key whose destructor runs at the end of each thread, -1: none
    ("n_rows", "i8"),  # registry rows in use, holes counted
    ("n_holes", "i8"),
    ("started", "i8"),  # 1: registered for forks and for ends of threads
    ("address_space", "i8"),  # bytes of address space of a process, if no limit is set
    ("most_rows", "i8"),  # how many caches may be open before those without a capacity are refused
    ("path", "i8", (3,)),  # of the file with the bytes of address space in use, as a C string
    ("text", "i8", (4,)),  # room for the content of that file
    ("kept_first", "i8"),  # index of the oldest kept range
    ("n_kept", "i8"),  # ranges that are kept
    ("kept_bytes", "i8"),  # bytes of them
    ("most_kept_bytes", "i8"),  # most bytes of them
    ("is_limited", "i8"),  # 1: the system counts usable pages as memory of the process
    ("kept", "i8", (2 * MOST_KEPT,)),  # (address, bytes) of each kept range
    ("entries", ENTRIES),
)  # the registry follows: i8 a row, the address of an open cache's first CONTROL, 0: a hole
RANGE = row(
    # What the end of a range of addresses needs; it is outside that range.
    ("end", "i8"),  # address of the entry point that is called
    ("start", "i8"),
    ("bytes", "i8"),
    ("control", "i8"),  # address of the one CONTROL in the range that is in the registry, 0: none or several
    ("head", "i8"),  # address, of a page, of the part that keeps its content at the end: compiled code may still read it
    ("head_bytes", "i8"),
)

# --- Pointers to these rows, for kernels ---

Control: TypeAlias = Any  # to a type checker, pointers of kernels are Any
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
NODE_WORDS = {  # offset of each field in the NODE row, in int64s
    name: (start + pointer.fields[name][0]) // 8
    for pointer, start, dtypes in (
        (ControlPointer, 0, (ADDRESSES, GEOMETRY, LOCAL)),
        (StatePointer, CONTROL.itemsize, (STATE,)),
    )
    for name in names_of(*dtypes)
}
MAGAZINE = HEAP.itemsize  # offset of a heap's magazine
HEAP_BYTES = (MAGAZINE + 4 * MAGAZINE_SLOTS) | LINE  # an odd number of lines: so equal tops of two heaps are in different sets
FIRST_ROWS = 8  # least slab rows that share the page of CONTROL
STAGGERS = 16  # the CONTROL rows of caches start on so many different lines of a page
STAGGER = (FIRST_ROWS + STAGGERS) * LINE  # bytes before the last of these lines
HEAD_BYTES = STAGGER + NODE_BYTES  # usable bytes from the border of the page of CONTROL on
EAGER_BYTES = 2 << 20  # most metadata that is made usable at once: so a small cache has few mappings

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
