"""
Read first: the words, the ladders, the data and the laws of a cache.

1. Words
   A *record* is one user value of the cache's dtype; a *slot* is the place for one record, an integer index.
   A *slab* is a run of slots, a power of two of them, nearest to 64 KiB of records.  A *cache* is all slabs of
   one dtype.  A slot's *generation* is a 4-byte word: odd = live, even = free; it only goes up.  A *handle* is
   ``cycle << 32 | slot`` with ``generation == 2 * cycle + 1``.  A *heap* is one thread's front end: a *magazine*
   of free slots.  The *slab layer* keeps everything else under one short lock.  NIL (-1) ends an index list.

2. One truth
   The generations say what is live.  Free bits, fresh counts, magazines, slab states and lists are an index over
   them, rebuilt from them by `recover`, recounted from them by `check`.

3. Alloc ladder
   a. pop the magazine, check that the generation is even, make it odd             (heap.alloc, no lock, no atomics)
   b. refill half a magazine under the lock                                        (heap.slow_alloc)
      from the slab this heap draws from; else a partially used slab, fullest quarter first; else an empty, a
      released, a new one; else a slab that another heap draws from                (slab.pick)
   c. make memory of the reservation usable, outside the lock                      (slab.grow)

4. Free ladder
   a. compare the generation with the handle, make it even, push the magazine      (heap.free, no lock, no atomics)
   b. a full magazine gives its cold half to the slab layer                        (heap.slow_free)
   c. empty slabs that the working set did not need go back to the system          (slab.release)

5. Who may write what
   A generation: whoever holds the record (free) or took the slot from a magazine or the slab layer (alloc).
   A heap: the thread that owns it; its owner word is set under the registry's lock, and back to 0 by the same thread only.
   Free bits, slab rows, lists, counts: the holder of the lock, who owns a heap of the cache.  The frozen part: nobody after
   creation.
   Order of locks: the process's registry, then one cache's lock.  No system call and no C-API call under a
   cache's lock; under the registry's, the end of a thread may give empty slabs back to the system, the opening of a size class
   reserves its addresses and makes them usable, as that of a thread's heaps does, and the address space is looked at.
   The process holds the registry's lock over a fork.  So no cache is opened or closed meanwhile, no heap gets or loses its
   owner, and a cache of which no other thread owns a heap is whole in the child, which then writes nothing to it.  Any other
   may have been copied in the middle of a change: it is TORN, and who first takes its lock in the child rebuilds its index.
   The thread that forks keeps its heaps, magazines and all.  Their owner words are odd while a cache is torn: so the thread
   comes by `heap.claim`, and the index is rebuilt before its magazine changes.

6. Space
   One reservation a cache: heaps | template, scratch | free bits | slab rows, control block, generations | records, each
   part reserved for the largest size and made usable in steps.  Nothing ever moves.  The slab rows grow downwards: so the first
   of them share a page with the control block and the first generations.  Slot i of the cache is at
   ``records + i * stride`` over all slabs.  A size class of an allocator has one, too, without heaps and scratch, from its first
   use on (opening).  The heaps of all classes lie in one region, a thread's side by side (rawlayout).
   A reservation has more slots than the capacity: for those parked in magazines, and for those that will be retired.  Who was
   given no capacity takes a share of what is left of the address space, and is refused the last 128th (process).
   A reservation that ends gives its memory back; its addresses are kept for a while, as compiled code may still hold some.

7. Nodes
   On a machine with several NUMA nodes a cache has one *array set* for each: a CONTROL row, and the slabs whose slots
   ``i >> node_shift`` is its number, with their rows, free bits, generations and records on that node's memory.  A
   thread's heap draws from the set of the node that the thread runs on, looked up at each refill; so a heap holds slots of
   one set only.  A record of another set is freed into the thread's *alien heap* for that set, the row of the same
   number among the set's own heaps: it flushes home when it is full, when its thread moves to that node, and when the
   thread ends.  A set never draws from another, so each holds the whole capacity.  With one node all of this is absent: the
   set is the cache.  User code and Python hold the address of the first set, the *front*; a heap names its set.

Sources: J. Bonwick, "The Slab Allocator", USENIX Summer 1994; J. Bonwick and J. Adams, "Magazines and Vmem",
USENIX 2001; D. Leijen, B. Zorn, L. de Moura, "Mimalloc: Free List Sharding in Action", APLAS 2019.

Laws (every one holds at rest; `recover.check` recounts them, by these numbers)

L1   a slot is in one place only: live, in one magazine, under its free bit, fresh, or retired
L2   live + in magazines + n_free + n_fresh + retired == slots                              (every slab)
L3   n_free == number of free bits                                                          (every slab)
L4   a free bit, a fresh slot and a magazine's slot have an even generation
L5   a fresh slot's generation is not above the slab's ``base``
L6   FULL <=> n_free + n_fresh == 0;  FREE <=> n_free + n_fresh == slots, else PARTIALLY_USED
L7   a slab is on one list: FREE on FRESH if n_fresh == slots, else on EMPTY; PARTIALLY_USED on a partial one; FULL on none
L8   out == sum over the slabs of (slots - n_free - n_fresh);  n_empty == slabs on EMPTY
L9   a magazine holds at most ``rounds`` slots, each below the limit
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .errors import CapacityError, LayoutError

NULL = 0
NIL = -1

HEAPS = 256  # heaps of a cache; a thread beyond them goes to the slab layer at every operation
SHARED_HEAP = HEAPS  # row of the heap that such threads use: no rounds, so every operation takes the slow path
CLOSED_HEAP = HEAPS + 1  # row that a closed cache answers with: nothing in it, nothing below its limit
BACK_HEAP = HEAPS + 2  # row whose magazine such threads use, one at a time: its owner word is a lock
HEAP_ROWS = HEAPS + 3
OWN = HEAP_ROWS  # row of the first of an array set's own heaps: those of threads have the rows before
MAX_NODES = 64
NODE_BORDER = 64 * 1024  # bytes: where a node's records start, so that no page is on two nodes
NODE_SHIFT = 10  # least slots of a node: a page of generations
CPUS = 4096  # CPUs whose node is known; a thread on a later one is taken for one of the first node's
ROUNDS = 512  # most slots in a magazine: half as many cost 25 % on batches of 32 that pass it, 128 on allocs in order 45 %
ROUNDS_BYTES = 256 * 1024  # most bytes of records in a magazine
LINE = 64  # bytes of a cache line
RUN = 16  # generations on one line: slots leave a slab in whole runs, so that two heaps do not share a line
BLOCK = 64  # slots of one word of free bits
PAGE = 4096  # what regions are aligned to; the system's own page may be larger (`_os.page_bytes`)
SLAB_BYTES = 64 * 1024
MAX_SLAB_SHIFT = 16  # most slots a slab: 65,536
QUARTERS = 4  # lists of partially used slabs, by occupancy
EMPTY, FRESH = QUARTERS, QUARTERS + 1  # lists of FREE slabs: with memory behind them; never used, or released
LISTS = QUARTERS + 2
INTERVAL = 512  # refills and flushes of one interval of the working set, at least
TURNOVERS = 4  # times that all slots of the cache could come and go in one interval
HUGE_BYTES = 4 << 20  # records beyond this are in huge pages where the system has them: below, they would be waste
RELEASE_BYTES = 1 << 20  # least that is given back to the system at a time
HOLD = 4096  # most slots moved under one hold of the lock

MAX_SLOTS = 1 << 32
MAX_CAPACITY = MAX_SLOTS
DEFAULT_BYTES = 64 << 30  # of records, reserved when no capacity is given
MAX_CYCLE = 1 << 30  # a slot is retired after its cycle reached this
SPARE_SLOTS = 1 << 22  # slots beyond the capacity that a cache reserves, for those that will be retired
START_BITS = 29  # first cycles of a cache lie below 2**29
RETIRED = 0x80000000  # word of a slot that is not handed out any more, whatever its generation was
TAKEN = RETIRED | 1  # word & TAKEN == 0 <=> free and not retired

FREE, PARTIALLY_USED, FULL = 0, 1, 2  # states of a slab
RELEASING = 3  # on no list while its memory is given back
SOUND, TORN, MENDED = 0, 1, 2  # of a cache: no fork came between; one did, and the index is not rebuilt yet; it was

USERS = 256  # number of the first dtype that is not NumPy's own

NO_INIT, TEMPLATE = 0, 1  # what alloc does with the record
STALE, NO_SLOT, TWICE = 1, 2, 3  # kinds of fault: refused handle; new() on a full cache; slot freed twice in a race


def record(*fields: tuple[Any, ...]) -> np.dtype[Any]:
    """Return the aligned dtype of a metadata row."""
    return np.dtype(list(fields), align=True)


CONTROL = record(
    # Frozen after creation: addresses, geometry.  Kernels may load them once.
    ("heaps", "i8"),  # address of the first of the threads' heaps
    ("words", "i8"),  # address of the generations, u4 a slot
    ("records", "i8"),  # address of slot 0
    ("bits", "i8"),  # address of the free bits, one a slot, in words of 64
    ("slabs", "i8"),  # address of the row of slab 0; the others are before it
    ("scratch", "i8"),  # address of the scratch records that refused handles are answered with
    ("template", "i8"),  # address of the record that is copied into a new one
    ("stride", "i8"),  # bytes from slot to slot
    ("itemsize", "i8"),  # bytes of a record
    ("shift", "i8"),  # slots a slab == 1 << shift
    ("max_slabs", "i8"),  # slabs that the reservation holds, up to the end of this set
    ("capacity", "i8"),  # records that one thread can always have
    ("rounds", "i8"),  # slots that a magazine may hold
    ("start", "i8"),  # first word of a slot: even
    ("colours", "i8"),  # 1: slabs start at different slots, 0: all at slot 0
    ("init", "i8"),  # NO_INIT or TEMPLATE
    ("scratch_step", "i8"),  # bytes from one heap's scratch record to the next, 0: all share one
    ("process", "i8"),  # address of the PROCESS block
    ("row", "i8"),  # row in the process's registry
    # Frozen: which array set this is.
    ("front", "i8"),  # address of the first set, this one's where there is one
    ("nodes", "i8"),  # array sets of the cache
    ("node", "i8"),  # number of this one
    ("node_shift", "i8"),  # slot >> node_shift == number of its set
    ("first_slab", "i8"),  # its first slab; `n_slabs`, `committed`, `max_slabs` and `limit` count from slab 0 of the cache
    ("first_slot", "i8"),
    ("node_slots", "i8"),  # slots from one set to the next
    ("own_heaps", "i8"),  # address of its alien, shared, closed and back heaps; with one node == heaps
    ("cpu_nodes", "i8"),  # address of the number of the set of each CPU, u1[CPUS]; 0: there is one set
    # Frozen: entry points of the slow paths, so that user code neither links nor optimises them again.
    ("f_claim", "i8"),
    ("f_alloc", "i8"),
    ("f_free", "i8"),
    ("f_address", "i8"),
    ("f_alloc_many", "i8"),
    ("f_free_many", "i8"),
    ("f_alloc_few", "i8"),
    ("f_free_few", "i8"),
    ("f_len", "i8"),
    ("f_clear", "i8"),
    ("f_refill", "i8"),
    ("f_flush", "i8"),
    ("f_grow", "i8"),
    ("f_release", "i8"),
    ("f_rebuild", "i8"),
    ("heap_step", "i8"),  # bytes from one thread's heap to the next: between them lie those of an allocator's other classes
    ("own_step", "i8"),  # the same of `own_heaps`
    ("base", "i8"),  # of a size class: number of its first slot
    ("heap_region", "i8"),  # of a size class: address of the region of its allocator's heaps, writable where threads came; else 0
    ("f_note", "i8"),
    ("f_flush_own", "i8"),
    ("pad_entries", "i8", (7,)),
    # Slab layer: written under the lock only.
    ("lock", "i8"),  # 0 free, 1 held
    ("limit", "i8"),  # slots of the slabs made so far; above, every generation reads 0 and no record is touched
    ("n_slabs", "i8"),  # slabs made
    ("committed", "i8"),  # slabs whose memory is usable
    ("out", "i8"),  # slots outside the slab layer: live, in magazines or retired
    ("heads", "i8", (LISTS,)),  # first slab of each list
    ("tails", "i8", (LISTS,)),  # last slab of each list
    ("n_empty", "i8"),  # slabs on the list EMPTY
    ("low_empty", "i8"),  # least n_empty of this interval
    ("ticks", "i8"),  # refills and flushes
    ("refills", "i8"),
    ("flushes", "i8"),
    ("released", "i8"),  # slabs given back to the system
    ("torn", "i8"),  # SOUND, TORN or MENDED
    ("closed", "i8"),
    ("releasing", "i8"),  # 1 while one thread gives slabs back
    ("interval_end", "i8"),  # ticks at which the interval ends
    ("came_home", "i8"),  # slots that other nodes' threads freed and gave back
    ("pad1", "i8", (4,)),
    # Any thread, by atomics.
    ("faults", "i8"),  # faults since the last report
    ("fault_first", "i8"),  # handle of the first
    ("fault_kind", "i8"),  # STALE, NO_SLOT or TWICE
    ("retired", "i8"),  # slots that will not be handed out again
    ("arrivals", "i8"),  # heaps that came to draw from this set: their thread had moved here
    ("claimed", "i8", (2 * HEAP_ROWS // 64 + 1,)),  # one bit a heap row that ever was this set's: of `heaps`, then of `own_heaps`
    ("pad2", "i8", (2,)),
)
HEAP = record(
    # Written by its owner only, but for the owner word.  The first line is all that the fast paths need.
    ("owner", "i8"),  # thread pointer, 0: nobody
    ("top", "i8"),  # slots in the magazine
    ("rounds", "i8"),  # frozen, as the rest of the line: slots it may hold
    ("limit", "i8"),  # slots of the reservation: the generations of all of them can be read
    ("words", "i8"),
    ("records", "i8"),
    ("base", "i8"),  # of a size class: what is added to a handle to get a ptr
    ("stride", "i8"),
    ("control", "i8"),  # array set it draws from; changes when its thread runs on another node
    ("slab", "i4"),  # slab this heap draws from, NIL: none
    ("first", "u4"),  # first slot of the array set
    ("pad", "i8", (6,)),
)  # the magazine follows: u4[ROUNDS]
SLAB = record(
    # Written under the lock only.
    ("next", "i4"),  # next slab of its list, or NIL
    ("prev", "i4"),  # previous slab of its list, or NIL
    ("list", "i4"),  # which list it is on, NIL: none
    ("state", "i4"),  # FREE, PARTIALLY_USED, FULL or RELEASING
    ("n_free", "i4"),  # free bits set
    ("n_fresh", "i4"),  # slots never handed out since the slab was made or released
    ("rover", "i4"),  # word of free bits where the last search ended
    ("drawer", "i4"),  # row of the heap that draws from it, NIL: none
    ("base", "u4"),  # word of a fresh slot: even, not below any that the slab ever issued
    ("shared", "i4"),  # 1: another thread frees what the drawing heap allocates
    # Fixed when the slab is made.
    ("colour", "i4"),  # slot where the fresh slots start; they follow it and wrap
    ("pad", "i4", (5,)),
)
PROCESS = record(
    ("lock", "i8"),  # guards the registry
    ("epoch", "i8"),  # forks that led to this process
    ("key", "i8"),  # thread-exit key, -1: none
    ("n_rows", "i8"),  # registry rows in use, holes counted
    ("n_holes", "i8"),
    ("started", "i8"),  # 1: the system tells of forks and of ends of threads
    ("addresses", "i8"),  # bytes of address space that a process can have, if no limit is set
    ("most", "i8"),  # caches that are open when those without a capacity are refused
    ("path", "i8", (3,)),  # where the system tells how many of them it has, as a C string
    ("text", "i8", (4,)),  # what it tells
    ("pad", "i8", (1,)),
)  # the registry follows: i8 a row, the address of an open cache's control block, 0: a hole
RANGE = record(
    # Of a range of addresses, beside it: what its end needs.
    ("end", "i8"),  # address of the entry point that is the end
    ("start", "i8"),
    ("bytes", "i8"),
    ("control", "i8"),  # address of the one control block in it that was entered in the registry, 0: none, or several
    ("block", "i8"),  # address, of a page, of what keeps its content at the end: compiled code may still look at it
    ("block_bytes", "i8"),
)

assert CONTROL.itemsize % LINE == 0
assert SLAB.itemsize == LINE
assert HEAP.itemsize == PROCESS.itemsize == 2 * LINE

MAGAZINE = HEAP.itemsize  # offset of a heap's magazine
HEAP_BYTES = (MAGAZINE + 4 * ROUNDS) | LINE  # an odd number of lines: equal tops of two heaps fall into different sets
FIRST_ROWS = 8  # slab rows, at least, that share the page of the control block
STAGGERS = 16  # lines that the control blocks of caches start on
STAGGER = (FIRST_ROWS + STAGGERS) * LINE  # the last of them
HEAD_BYTES = STAGGER + CONTROL.itemsize  # what is usable, from a page border on, of the region of a cache's control block
EAGER_BYTES = 2 << 20  # metadata up to this is made usable at once, so that a small cache has few mappings
MAX_ROWS = 1 << 20  # caches open at once in one process
KEPT_SHIFT = 7  # 1/128 of the address space, 1 TiB of 47 bits, is for others than caches that were not told how much to take
FEW_ROWS = 1024  # so many caches take a larger share
FEW_SHIFT, MANY_SHIFT = 9, 12  # a share, of what is left
SMALL_SHIFT, SMALL_BYTES = 3, 1 << 30  # at least so much of it, up to so many bytes, where no capacity is given
META_BYTES = 5  # of a slot, at most, where a slab has many
LEAST_BYTES = 1 << 20  # of records: a share that is less is refused
MAPPINGS = 10  # of a process, at least, for each cache that is open when those without a capacity are refused


def offsets(dtype: np.dtype[Any]) -> dict[str, int]:
    """Return the byte offset of each field."""
    assert dtype.fields is not None
    return {name: int(dtype.fields[name][1]) for name in dtype.names or ()}


C, H = offsets(CONTROL), offsets(HEAP)


# --- Geometry ---


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of one cache, shared by those laid out alike: all from the dtype, the capacity and whether it is coloured."""

    itemsize: int
    stride: int
    shift: int
    capacity: int
    max_slabs: int  # of one node
    rounds: int
    nodes: int  # array sets
    node_shift: int  # slots from one set to the next == 1 << node_shift; with one set above every slot number
    scratch_step: int  # bytes from one heap's scratch record to the next, 0: all share one
    offset: dict[str, int]  # of each region, from the start of the reservation
    total: int  # bytes of the reservation

    @property
    def slots(self) -> int:
        """Slots that the reservation holds; those between the end of one node's slabs and the next node's are never used."""
        return self.nodes << self.node_shift if self.nodes > 1 else self.max_slabs << self.shift


def record_stride(dtype: np.dtype[Any], colouring: bool) -> int:
    """
    Bytes from slot to slot: the itemsize, kept a multiple of the alignment, and one line more where it aliases.

    A stride of 1 KiB or more that is a multiple of 256 bytes puts the first lines of the records into a quarter of
    the cache's sets or fewer; an odd number of lines uses them all.
    """
    return stride_of(dtype.itemsize, max(1, dtype.alignment), colouring)


def stride_of(itemsize: int, align: int, colouring: bool) -> int:
    """Return `record_stride` of a dtype of such a size and alignment."""
    stride = round_up(itemsize, align)
    if colouring and stride >= 1024 and stride % 256 == 0:
        stride += LINE if LINE % align == 0 else align
    return stride


@lru_cache(maxsize=256)
def slab_shape(itemsize: int, align: int, colouring: bool) -> tuple[int, int, int]:
    """Return (stride, shift, rounds) of a dtype of such a size and alignment: a slab has ``1 << shift`` slots."""
    stride = stride_of(itemsize, align, colouring)
    shift = min(max(round(np.log2(SLAB_BYTES / stride)), 0), MAX_SLAB_SHIFT)
    return stride, shift, min(max(ROUNDS_BYTES // stride, 1), ROUNDS)


def check_dtype(value: Any) -> np.dtype[Any]:
    """Return the dtype of a record, or raise `LayoutError`."""
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except MemoryError:
        raise
    except Exception as error:  # of a class with a dtype of its own, whatever that raises
        raise LayoutError(f"not a dtype: {error}{advice(value)}") from error
    if dtype.hasobject:
        raise LayoutError(f"a record cannot hold Python objects{advice(value)}")
    if dtype.names is None or dtype.fields is None:
        base = dtype.base
        one = repr(base.str if base.itemsize else f"{base.kind}8") if is_own(base) and not base.names else base.name
        many = f", {dtype.shape}" if dtype.shape else ""
        raise LayoutError(f"a record needs named fields, got {dtype}; write [('value', {one}{many})]")
    if dtype.itemsize == 0:
        raise LayoutError("a record cannot be of size 0")
    check_places(dtype, "")
    return own_copy(dtype)


def check_places(dtype: np.dtype[Any], within: str) -> None:
    """Raise if fields of a record, or of one in it, overlap."""
    fields: Any = dtype.fields
    end = 0
    for name in sorted(dtype.names or (), key=lambda n: int(fields[n][1])):  # by name: `fields` has titles, too
        field, offset = fields[name][:2]
        if offset < end:
            raise LayoutError(f"fields overlap at byte {offset} ({within + name!r})")
        end = offset + field.itemsize
        if field.base.names is not None:
            check_places(field.base, f"{within}{name}.")


def advice(value: Any) -> str:
    """Return the end of a message: what to write for a class that is no dtype, and for a type of Numba's, alone or in a list."""
    fields = [it[:2] for it in value if isinstance(it, tuple) and len(it) > 1] if isinstance(value, list) else [(None, value)]
    for name, of in fields:
        where = "" if name is None else f"; field {name!r}"
        if isinstance(of, type) and of not in (object, np.object_) and means_objects(of):
            return (
                f"{where}: class {of.__name__} is no dtype; declare its annotations under @jitslab.record,"
                " in the place of dataclass, NamedTuple or TypedDict"
            )
        if type(of).__module__.startswith("numba.") and str(of) in np.sctypeDict:
            return f"{where}: for Numba's {of} write {str(of)!r}"
    return ""


def means_objects(of: type) -> bool:
    """Whether a class is to NumPy one of Python objects."""
    try:
        return np.dtype(of).kind == "O"
    except Exception:  # as in `check_dtype`
        return False


def is_own(dtype: np.dtype[Any]) -> bool:
    """Whether it is one of NumPy's own dtypes, not one of a user's, such as bfloat16."""
    return 0 <= dtype.num < USERS


def own_copy(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Copy a dtype: its names can be assigned, and those of a cache are not to be, by way of the caller's dtype."""
    if has_titles(dtype):
        return copy.deepcopy(dtype)
    return dtype.newbyteorder("|")  # the order stays; a copy by NumPy itself, in 0.2 us instead of 20 to 100, but without titles


def has_titles(dtype: np.dtype[Any]) -> bool:
    """Whether a field, at any depth, has a title, by which it is found as by its name."""
    if dtype.subdtype is not None:
        return has_titles(dtype.base)
    if dtype.names is None or dtype.fields is None:
        return False
    return len(dtype.fields) != len(dtype.names) or any(has_titles(dtype[name]) for name in dtype.names)


def identity(dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """
    Return what tells a dtype from others that NumPy calls equal: alignment, class of the scalars, units as they are written.

    With the dtype itself it is the key of what is made once a dtype.  Metadata is not in it: it need not be hashable.
    """
    if dtype.subdtype is not None:
        return identity(dtype.base)
    if dtype.fields is None or dtype.names is None:
        return dtype.str, dtype.type
    return dtype.isalignedstruct, dtype.type, *[identity(dtype.fields[name][0]) for name in dtype.names]


def round_up(n: int, to: int) -> int:
    """Return the least multiple of `to` that is not below `n`."""
    return -(-n // to) * to


def geometry(
    dtype: np.dtype[Any],
    capacity: int,
    colouring: bool,
    page: int,
    nodes: int = 1,
    has_heaps: bool = True,
    slots: int = 0,
) -> Geometry:
    """
    Lay out one cache: of so many slots, or of as many as its capacity needs.

    With the heaps of threads, or without: those of a size class lie among its allocator's.
    """
    return lay_out(dtype.itemsize, max(1, dtype.alignment), capacity, colouring, page, nodes, has_heaps, slots)


@lru_cache(maxsize=128)
def lay_out(
    itemsize: int, align: int, capacity: int, colouring: bool, page: int, nodes: int, has_heaps: bool, slots: int
) -> Geometry:
    """
    Return the `geometry` of a dtype of such a size and alignment.

    Each node's range alone holds the capacity.  The reservation is larger than the capacity, so that slots parked in other
    threads' magazines, and retired ones, do not make `alloc` fail before `capacity` records are live.
    """
    stride, shift, rounds = slab_shape(itemsize, align, colouring)
    slots = min(slots or capacity + HEAPS * rounds, MAX_SLOTS)
    max_slabs = -(-slots // (1 << shift))
    node_shift, n_slots, where = MAX_SLOTS.bit_length(), max_slabs << shift, ""
    if nodes > 1:
        node_shift = max(((max_slabs << shift) - 1).bit_length(), NODE_SHIFT)
        while (stride << node_shift) % NODE_BORDER:
            node_shift += 1
        n_slots, where = nodes << node_shift, f" on each of {nodes} nodes"
    if n_slots * stride > 1 << 46:
        raise CapacityError(f"{capacity} records of {stride} bytes{where} are more than the address space holds")
    if n_slots > MAX_SLOTS:
        raise CapacityError(f"{capacity} records{where} are more than the 2**32 slots of a cache")
    scratch = round_up(stride, LINE)
    scratch_step = scratch if scratch <= PAGE else 0
    offset, at = {}, 0
    n_heaps = (int(has_heaps) + (0 if nodes == 1 else nodes)) * HEAP_ROWS
    for name, size in (
        ("heaps", n_heaps * HEAP_BYTES + page if n_heaps else 0),
        ("template", scratch),
        ("scratch", HEAP_ROWS * scratch_step if scratch_step else scratch),
        ("cpus", 0 if nodes == 1 else CPUS),
        ("bits", nodes * round_up(-(-(max_slabs << shift) // BLOCK) * 8, page)),
        ("slabs", nodes * round_up(max_slabs * SLAB.itemsize, page)),
        ("control", 0 if nodes == 1 else STAGGER + nodes * CONTROL.itemsize),  # of one set: on the first page of the words
        ("words", n_slots * 4 + BLOCK * 4 + page),
        ("records", n_slots * stride),
    ):
        offset[name] = at
        at = round_up(at + size, page)
    return Geometry(itemsize, stride, shift, capacity, max_slabs, rounds, nodes, node_shift, scratch_step, offset, at)
