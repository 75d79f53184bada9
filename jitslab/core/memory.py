"""
The memory of one cache: its region, and its CONTROL and STATE rows filled in.

Kernels start at the address of the CONTROL row: an object that has it must keep the `CacheMemory`, or an array of its `bytes`.
`CacheMemory` shows Python that memory; `NewCacheMemory` also lays it out.
"""

from __future__ import annotations

import itertools
import secrets
from functools import cache as cached
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import CacheFullError, CapacityError
from ..machine import addresses, numa
from ..machine.addresses import round_up
from ..machine.compile import fill_table
from .dispatch import TABLE
from .geometry import Geometry, Shape, bits_bytes, geometry, magazine_slots, record_stride
from .grow import grow
from .layout import (
    CONTROL,
    DEFAULT_BYTES,
    EAGER_BYTES,
    FIRST_ROWS,
    HEAD_BYTES,
    HEAP_BYTES,
    HEAP_ROWS,
    HEAPS,
    HUGE_BYTES,
    LINE,
    MAX_SLOTS,
    NIL,
    NO_INIT,
    NODE,
    NODE_BYTES,
    NODE_WORDS,
    SLAB,
    SPARE_SLOTS,
    STAGGERS,
    START_BITS,
    TEMPLATE,
    WORD_SLOTS,
)
from .process import SMALL_SHIFT, close_cache, let_kept_go, this_process
from .region import AnonymousRegion, Region

META_BYTES = 5  # metadata of a slot, at most, if a slab has many slots
LEAST_BYTES = 1 << 20  # of records: a smaller share is refused
STAGGERED = ("control", "heaps", "generations")  # parts, in the order of `staggered`

serials = itertools.count()  # of all caches of the process
_process_random = secrets.randbits(START_BITS)


def first_cycle(serial: int) -> int:
    """Return the first cycle of a cache: each starts elsewhere, so that caches refuse each other's handles."""
    reversed_ = int(f"{serial:0{START_BITS}b}"[::-1][:START_BITS], 2)
    return (reversed_ ^ _process_random) or 1


@cached
def entries_address() -> int:
    """Return the address of the table of entry points, which the first cache fills in."""
    process = this_process()
    fill_table(process.row["entries"], TABLE)
    return process.entries


class HeapPlace(NamedTuple):
    """The place of a size class's heaps in its allocator's memory."""

    memory: Any  # array of that memory
    region: int  # address of all heaps of the allocator, 0: the cache has heaps of its own
    heaps: int  # address of the first thread's heap of this class
    step: int  # bytes from there to the next thread's
    ptr_base: int  # number of the class's first slot


class Origin(NamedTuple):
    """The cache whose place another one takes: so that its handles are handles of that one, too."""

    shape: Shape
    first_generation: int


# --- How much is reserved ---


def reserve(
    dtype: np.dtype[Any],
    capacity: int | None,
    colouring: bool,
    nodes: int,
    place: HeapPlace | None,
    has_spare: bool,
    shape: Shape | None = None,
) -> tuple[Geometry, AnonymousRegion]:
    """Lay a cache out and reserve its addresses: its capacity, with spare slots if wanted; without a capacity its share."""
    stride, needed = (record_stride(dtype, colouring), 1) if shape is None else (shape.stride, shape.slots)
    has_heaps, kept = place is None, () if place is None else (place.memory,)
    parked, page = HEAPS * magazine_slots(stride), addresses.page_bytes
    if capacity is not None:
        spare = spare_slots(stride, nodes) if has_spare else 0
        slots = max(capacity + max(parked, spare), needed)
        sizes = geometry(dtype, capacity, colouring, page, nodes, has_heaps, slots, shape)
        return sizes, AnonymousRegion(sizes.total, *kept)
    least = max(LEAST_BYTES, stride)
    share = this_process().share(without_capacity=True) // nodes
    if share < least and let_kept_go(this_process().address) > 0:
        share = this_process().share(without_capacity=True) // nodes
    if share < least:
        raise CacheFullError(f"{no_room()}: give the cache a capacity")
    most = MAX_SLOTS if nodes == 1 else MAX_SLOTS // nodes // 2
    slots = min(share // (stride + META_BYTES), min(DEFAULT_BYTES, addresses.DEFAULT_LIMIT) // stride, most)
    while True:
        slots = max(slots, needed)
        certain = slots - min(parked, slots >> SMALL_SHIFT)
        sizes = geometry(dtype, certain, colouring, page, nodes, has_heaps, slots, shape)
        try:
            return sizes, AnonymousRegion(sizes.total, *kept)
        except CacheFullError:
            if slots == needed:
                raise
            slots //= 2


def spare_slots(stride: int, nodes: int) -> int:
    """
    Return how many slots a cache reserves on one node beyond its capacity, for those that will be retired: a power of two.

    They take addresses only.  It is 0 if they would count as memory: if all of a reservation is memory, or if there are several
    nodes, whose slots are all usable, and the system counts usable memory.
    """
    if not addresses.CAN_GROW or (nodes > 1 and addresses.counts_usable()):
        return 0
    share = this_process().share(without_capacity=False) // (stride * nodes)
    return 1 << min(share, SPARE_SLOTS).bit_length() >> 1


def no_room() -> str:
    """Say why a cache without a capacity is refused."""
    process = this_process()
    if process.n_open >= process.most_open:
        return f"{process.n_open} caches and size classes are open, and the system limits the mappings of a process"
    return f"what is left of the address space is for others than caches without a capacity{addresses.limit_text()}"


def staggered(serial: Any) -> tuple[Any, Any, Any]:
    """
    Return how far into their parts the CONTROL row, the heaps and the generations of a cache start, by its number.

    Otherwise the same rows of many caches fall into one set of the CPU's cache; slot 0 and its generation, too, and two lines
    of one set can exclude each other (AMD's way prediction: 22 ns a pair, not 2.5).
    """
    control = (FIRST_ROWS + serial * 5 % STAGGERS) * LINE
    return control, serial * 11 % 32 * LINE, control + NODE_BYTES


# --- Views for Python ---


class CacheMemory:
    """
    The memory of one cache that stands in the process's registry, as arrays.

    Attributes
    ----------
    geometry : Geometry
        Sizes and offsets.
    placement : Placement
        NUMA nodes of the memory.
    address : int
        Address of the first CONTROL row.
    bytes : ndarray of uint8
        All of the memory; only the parts that are usable, by the CONTROL row, may be touched.
    control : ndarray of CONTROL, shape (n nodes,)
    state : ndarray of STATE, shape (n nodes,)
    node_words : memoryview of int64
        The NODE rows, for fast access.
    generations : memoryview of uint32
    records : ndarray of the cache's dtype
        Every slot of the reservation.
    has_capacity : bool
        Whether its capacity was given; otherwise that follows from the address space.
    """

    __slots__ = (
        "_base",
        "_place",
        "address",
        "bytes",
        "control",
        "generations",
        "geometry",
        "has_capacity",
        "node_words",
        "placement",
        "records",
        "state",
    )
    geometry: Geometry
    placement: numa.Placement
    bytes: npt.NDArray[np.uint8]
    _base: int
    _place: HeapPlace | None

    def __init__(
        self,
        memory: npt.NDArray[np.uint8],
        sizes: Geometry,
        dtype: np.dtype[Any],
        placement: numa.Placement,
        control: int,
        generations: int,
        place: HeapPlace,
    ) -> None:
        self.bytes, self.geometry, self.placement, self._place, self.has_capacity = memory, sizes, placement, place, True
        self._base = int(memory.ctypes.data)
        self._view(dtype, control - self._base, generations - self._base)

    def _view(self, dtype: np.dtype[Any], at_control: int, at_generations: int) -> None:
        """Make the arrays, by the offsets of the CONTROL row and the generations."""
        sizes = self.geometry
        self.address = self._base + at_control
        end = at_control + sizes.nodes * NODE_BYTES
        data = self.bytes.data
        nodes = self.bytes[at_control:end].view(NODE)
        self.control, self.state = nodes["control"], nodes["state"]
        self.node_words = data[at_control:end].cast("q")
        self.generations = data[at_generations : at_generations + 4 * sizes.slots].cast("I")
        self.records = np.ndarray((sizes.slots,), dtype, self.bytes, sizes.offset["records"], (sizes.stride,))

    def field(self, name: str, node: int = 0) -> int:
        """Return a field of a CONTROL or STATE row."""
        return self.node_words[node * (NODE_BYTES // 8) + NODE_WORDS[name]]

    def set_field(self, name: str, value: int, node: int = 0) -> None:
        """Write a field of a CONTROL or STATE row."""
        self.node_words[node * (NODE_BYTES // 8) + NODE_WORDS[name]] = value

    def rows(self, first: int, stop: int) -> npt.NDArray[np.void]:
        """Return the rows of some slabs of one node, by slab."""
        node = first << self.geometry.shift >> self.geometry.node_shift
        at = self.field("slabs", node) - self._base - (stop - 1) * LINE
        return self.bytes[at : at + (stop - first) * LINE].view(SLAB)[::-1]  # they lie by falling addresses

    @property
    def template(self) -> npt.NDArray[np.uint8] | None:
        """The bytes that new records begin with; None: they begin with what happens to be there."""
        if self.field("init") == NO_INIT:
            return None
        at = self.field("template") - self._base
        return self.bytes[at : at + self.geometry.itemsize]

    @property
    def first_cycle(self) -> int:
        """The cycle that each slot starts with."""
        return self.field("first_generation") >> 1

    def close(self) -> None:
        """Close the cache: it refuses everything from now on, and its memory goes back; the addresses stay mapped."""
        close_cache(self.address)


# --- A new one ---


class NewCacheMemory(CacheMemory):
    """The memory of a new cache, in a region of its own: laid out, filled in, and entered in the registry."""

    __slots__ = ("_origin",)
    _is_file = False  # whether generations and records are in files: then the slab rows have pages of their own

    def __init__(
        self,
        dtype: np.dtype[Any],
        capacity: int | None,
        colouring: bool,
        template: bytes | None,
        placement: numa.Placement,
        place: HeapPlace | None = None,
        origin: Origin | None = None,
    ) -> None:
        self._place, self._origin, self.has_capacity = place, origin, capacity is not None
        region = self._reserve(dtype, capacity, colouring, placement)
        serial = next(serials)
        offset, stagger = self.geometry.offset, staggered(serial)
        at_control, at_heaps, at_generations = (offset[part] + n for part, n in zip(STAGGERED, stagger, strict=True))
        self._view(dtype, at_control, at_generations)
        head_end = at_generations if self.geometry.nodes == 1 else offset["generations"]
        self._set_head(region, head_end)
        own = HeapPlace(self.bytes, 0, self._base + at_heaps, HEAP_BYTES, 0)
        self._place_memory(region, at_generations)
        first = 2 * first_cycle(serial) if origin is None else origin.first_generation
        self._fill(place or own, self._base + at_generations, first, colouring, template)
        self._fill_nodes(own)
        is_split = offset["records"] > EAGER_BYTES and self.field("committed") == 0
        if is_split and capacity is not None and grow(self.address, 1) == 0:  # done now: later it could be one mapping too many
            raise CacheFullError(
                f"the system gives no memory for the first slab of a cache: {self.geometry.stride} bytes a record"
            )
        this_process().enter(self.address, region.range)  # last: from here on other threads find it

    # --- Its region ---

    def _set_head(self, region: Region, end: int) -> None:
        """Note which part of the region keeps its content at the end: from CONTROL to an offset."""
        region.range["head"] = self._base + self.geometry.offset["control"]
        region.range["head_bytes"] = end - self.geometry.offset["control"]

    def _reserve(self, dtype: np.dtype[Any], capacity: int | None, colouring: bool, placement: numa.Placement) -> AnonymousRegion:
        """Reserve the addresses for each node of the placement; if refused, without spare slots, then with one node."""
        attempts = [(placement, True), (placement, False)]  # spare slots are not needed
        if self._place is not None:
            del attempts[0]
        if len(placement.nodes) > 1 and not placement.is_simulated and self._origin is None:
            attempts.append((placement.undivided(), False))  # one node needs less
        while True:
            try:
                return self._attempt(dtype, capacity, colouring, *attempts.pop(0))
            except (CacheFullError, CapacityError):  # noqa: PERF203  # a loop of four turns at most
                if not attempts:
                    if let_kept_go(this_process().address) == 0:  # otherwise there are more mappings now
                        raise
                    attempts.append((self.placement, False))

    def _attempt(
        self, dtype: np.dtype[Any], capacity: int | None, colouring: bool, placement: numa.Placement, has_spare: bool
    ) -> AnonymousRegion:
        """Reserve the addresses, and make the first parts usable."""
        self.placement = placement
        shape = None if self._origin is None else self._origin.shape
        self.geometry, region = reserve(dtype, capacity, colouring, len(placement.nodes), self._place, has_spare, shape)
        self.bytes = np.asarray(region)
        self._base = region.address
        self._make_metadata_usable(region)
        return region

    def _make_metadata_usable(self, region: Region) -> None:
        """
        Make the first page of CONTROL usable, or all metadata of a small cache, and let all generations be read.

        A cache with several nodes is all usable at once: its array `records` spans the gaps between the nodes.
        """
        offset = self.geometry.offset
        if self.geometry.nodes > 1:
            if not region.commit(0, self.geometry.total):
                raise CacheFullError(
                    f"the system gives no {self.geometry.total} bytes for a cache on {self.geometry.nodes} nodes"
                )
            return
        control, end = offset["control"], offset["records"]
        head = control + round_up(HEAD_BYTES, addresses.page_bytes)
        usable = end if end <= EAGER_BYTES else head  # all metadata, or all but the generations
        parts = [(0, usable)] if usable <= EAGER_BYTES else [(0, offset["bits"]), (control, head - control)]
        for first, n in parts:
            if not region.commit(first, n):
                raise CacheFullError(f"the system gives no {n} bytes for the metadata of a cache")
        if usable < end and not region.let_read(head, end - head):  # a handle can name any slot
            raise CacheFullError(f"the system lets {end - head} bytes of generations not be read")

    def _parts_of(self, number: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (offset, bytes) of the slab rows and of the free bits of a node."""
        sizes, page = self.geometry, addresses.page_bytes
        n_rows = round_up(sizes.max_slabs * LINE, page)
        n_bits = bits_bytes(sizes.max_slabs << sizes.shift, page)
        return (sizes.offset["slabs"] + number * n_rows, n_rows), (sizes.offset["bits"] + number * n_bits, n_bits)

    def _place_memory(self, region: Region, generations: int) -> None:
        """
        Place the memory of each node on its NUMA nodes; heaps lie with their threads.

        Nothing may be written before: a page that exists does not move, and with huge pages it spans its neighbours.
        """
        sizes = self.geometry
        if sizes.nodes == 1:
            region.place(sizes.offset["bits"], sizes.total - sizes.offset["bits"], self.placement, 0)
            return
        n_slots = sizes.max_slabs << sizes.shift
        n_records = n_slots * sizes.stride
        beyond = round_up(HUGE_BYTES, addresses.page_bytes)
        for number in range(sizes.nodes):
            first_slot = number << sizes.node_shift
            records = sizes.offset["records"] + first_slot * sizes.stride
            for start, n in (*self._parts_of(number), (generations + 4 * first_slot, 4 * n_slots), (records, n_records)):
                region.place(start, n, self.placement, number)
            region.prefer_huge_pages(records + beyond, n_records // addresses.page_bytes * addresses.page_bytes - beyond)

    # --- Its rows ---

    def _fill(self, place: HeapPlace, generations: int, first: int, colouring: bool, template: bytes | None) -> None:
        """Fill in the fields that are equal for all nodes."""
        sizes = self.geometry
        values = {part: self._base + sizes.offset[part] for part in ("records", "scratch", "template")}
        values |= {
            "entries": entries_address(),
            "process": this_process().address,
            "heap_region": place.region,
            "heaps": place.heaps,
            "heap_step": place.step,
            "ptr_base": place.ptr_base,
            "generations": generations,
            "first_node": self.address,
            "nodes": sizes.nodes,
            "node_shift": sizes.node_shift,
            "node_slots": 1 << sizes.node_shift,
            "cpu_nodes": 0,
            "stride": sizes.stride,
            "itemsize": sizes.itemsize,
            "shift": sizes.shift,
            "capacity": sizes.capacity,
            "magazine_size": sizes.magazine_size,
            "first_generation": first,
            "is_coloured": int(colouring),
            "is_file": int(self._is_file),
            "init": NO_INIT if template is None else TEMPLATE,
            "scratch_step": sizes.scratch_step,
        }
        for number in range(sizes.nodes):
            for name, value in values.items():
                self.set_field(name, value, number)
        self.state["heads"] = self.state["tails"] = NIL
        if template is not None:
            at = sizes.offset["template"]
            self.bytes[at : at + len(template)] = np.frombuffer(template, np.uint8)

    def _fill_nodes(self, own: HeapPlace) -> None:
        """Fill in the fields that differ between nodes."""
        sizes = self.geometry
        everything_usable = sizes.nodes > 1 or not addresses.CAN_GROW
        at_cpus = sizes.offset.get("cpus", 0)
        if sizes.nodes > 1:
            self.bytes[at_cpus : at_cpus + numa.CPUS] = np.frombuffer(self.placement.cpu_nodes, np.uint8)
        for number in range(sizes.nodes):
            first_slot = number << sizes.node_shift if number else 0
            first = first_slot >> sizes.shift
            (rows, n_rows), (bits, _) = self._parts_of(number)
            end_rows = self._base + rows + n_rows if sizes.nodes > 1 or self._is_file else self.address
            control = self.address + number * NODE_BYTES
            values = {
                "state": control + CONTROL.itemsize,
                "node": number,
                "first_slab": first,
                "first_slot": first_slot,
                "slabs": end_rows + (first - 1) * LINE,  # indexed by the slab's number in the cache
                "bits": self._base + bits - first_slot // WORD_SLOTS * 8,
                "node_heaps": self.field("heaps"),
                "node_heap_step": self.field("heap_step"),
                "max_slabs": first + sizes.max_slabs,
                "committed": first + sizes.max_slabs if everything_usable else first,
                "limit": first_slot,
                "n_slabs": first,
            }
            if sizes.nodes > 1:
                before = (int(self._place is None) + number) * HEAP_ROWS
                values |= {
                    "node_heaps": own.heaps + before * own.step,
                    "node_heap_step": own.step,
                    "cpu_nodes": self._base + at_cpus,
                }
            for name, value in values.items():
                self.set_field(name, value, number)
