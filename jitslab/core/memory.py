"""
The memory of one cache: its reservation, and the control block filled in.

Above `entry`, below `cache`.  The control block is where kernels start: whatever holds its address must keep the `Block`, or an
array of its `bytes`.  A `Block` is what Python sees of that memory, a `NewBlock` is one that lays it out.
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
from . import layout, region
from .dispatch import TABLE
from .layout import CONTROL, NIL, NO_INIT, TEMPLATE, Geometry
from .process import R_BLOCK, R_BLOCK_BYTES, close_cache, let_kept_go, this_process
from .process import reserve as reserve_range
from .slab import grow

STAGGERED = ("control", "heaps", "words")  # regions, in the order of `staggered`

serials = itertools.count()  # of all caches of the process
_process_random = secrets.randbits(layout.START_BITS)


def first_cycle(serial: int) -> int:
    """Return where a cache starts its cycles: each elsewhere, so that caches do not take each other's handles."""
    reversed_ = int(f"{serial:0{layout.START_BITS}b}"[::-1][: layout.START_BITS], 2)
    return (reversed_ ^ _process_random) or 1


@cached
def entry_points() -> dict[str, int]:
    """Return the addresses of the slow paths, by field of the control block."""
    return {field: entry.address for field, entry in TABLE.items()}


class ClassPlace(NamedTuple):
    """What a size class has of its allocator: the block keeps that memory."""

    memory: Any  # array of it
    region: int  # address of the region of its allocator's heaps, 0 for those of a cache of its own
    heaps: int  # address of the first thread's heap of this class
    step: int  # bytes from there to the next thread's
    base: int  # number of its first slot


def reserve(
    dtype: np.dtype[Any], capacity: int | None, colouring: bool, nodes: int, place: ClassPlace | None, has_spare: bool
) -> tuple[Geometry, region.Reservation]:
    """Lay a cache out and reserve its address range: as much as it needs, and spare slots if wanted; or its share."""
    stride, _, rounds = layout.slab_shape(dtype.itemsize, max(1, dtype.alignment), colouring)
    has_heaps, kept = place is None, () if place is None else (place.memory,)
    parked = layout.HEAPS * rounds
    if capacity is not None:
        spare = spare_slots(stride, nodes) if has_spare else 0
        sizes = layout.geometry(dtype, capacity, colouring, addresses.page_bytes, nodes, has_heaps, capacity + max(parked, spare))
        return sizes, reserve_range(sizes.total, *kept)
    least = max(layout.LEAST_BYTES, stride)
    share = this_process().share(without_capacity=True) // nodes
    if share < least and let_kept_go(this_process().address) > 0:
        share = this_process().share(without_capacity=True) // nodes
    if share < least:
        raise CacheFullError(f"{no_room()}: give the cache a capacity")
    most = layout.MAX_SLOTS if nodes == 1 else layout.MAX_SLOTS // nodes // 2
    slots = min(share // (stride + layout.META_BYTES), min(layout.DEFAULT_BYTES, addresses.DEFAULT_LIMIT) // stride, most)
    while True:
        slots = max(slots, 1)
        certain = slots - min(parked, slots >> layout.SMALL_SHIFT)
        sizes = layout.geometry(dtype, certain, colouring, addresses.page_bytes, nodes, has_heaps, slots)
        try:
            return sizes, reserve_range(sizes.total, *kept)
        except CacheFullError:
            if slots == 1:
                raise
            slots //= 2


def spare_slots(stride: int, nodes: int) -> int:
    """
    Return how many slots of one node a cache reserves beyond its capacity, for those that will be retired: a power of two.

    They are addresses and no more; not so with several nodes, where all is usable at once: there they are not for a system
    that counts that.  None where every byte of a reservation is memory.
    """
    if not addresses.CAN_GROW or (nodes > 1 and addresses.counts_usable()):
        return 0
    share = this_process().share(without_capacity=False) // (stride * nodes)
    return 1 << min(share, layout.SPARE_SLOTS).bit_length() >> 1


def no_room() -> str:
    """Say why a cache without a capacity is refused."""
    process = this_process()
    if process.n_open >= process.most_open:
        return f"{process.n_open} caches and size classes are open, and the system limits the mappings of a process"
    return f"what is left of the address space is for others than caches without a capacity{addresses.limit_text()}"


def staggered(serial: Any) -> tuple[Any, Any, Any]:
    """
    Return how far into their regions the control block, the heaps and the generations of a cache start, by its number.

    The same rows of many caches would fall into the same sets of the CPU's caches.  The same goes for slot 0 and its
    generation: two lines of one set can exclude each other (AMD's way prediction: 22 ns a pair, not 2.5).
    """
    control = (layout.FIRST_ROWS + serial * 5 % layout.STAGGERS) * layout.LINE
    return control, serial * 11 % 32 * layout.LINE, control + CONTROL.itemsize


def head_end(offset: dict[str, int]) -> int:
    """Return where in a cache with one array set the pages of its control block end."""
    return offset["control"] + round_up(layout.HEAD_BYTES, addresses.page_bytes)


class Block:
    """
    Views of the memory of one cache, which is entered in the process's registry, and its end.

    Attributes
    ----------
    geometry : Geometry
        Sizes and offsets.
    placement : Placement
        Where the memory shall lie.
    address : int
        Of the control block.
    bytes : ndarray of uint8
        All of the memory; only what the control block says is usable may be touched.
    control : ndarray of CONTROL, shape (n array sets,)
        The control block: a row for each array set.
    control_words : memoryview of int64
        The same, for quick looks.
    words : memoryview of uint32
        The generations.
    records : ndarray of the cache's dtype
        Every slot of the reservation.
    """

    __slots__ = (
        "_base",
        "_place",
        "address",
        "bytes",
        "control",
        "control_words",
        "geometry",
        "placement",
        "records",
        "words",
    )
    geometry: Geometry
    placement: numa.Placement
    bytes: npt.NDArray[np.uint8]
    _base: int
    _place: ClassPlace | None

    def __init__(
        self,
        memory: npt.NDArray[np.uint8],
        sizes: Geometry,
        dtype: np.dtype[Any],
        placement: numa.Placement,
        control: int,
        words: int,
        place: ClassPlace,
    ) -> None:
        self.bytes, self.geometry, self.placement, self._place = memory, sizes, placement, place
        self._base = int(memory.ctypes.data)
        self._view(dtype, control - self._base, words - self._base)

    def _view(self, dtype: np.dtype[Any], at_control: int, at_words: int) -> None:
        """Make the views, from where in the memory the control block and the generations start."""
        sizes = self.geometry
        self.address = self._base + at_control
        end_control = at_control + sizes.nodes * CONTROL.itemsize
        data = self.bytes.data
        self.control = self.bytes[at_control:end_control].view(CONTROL)
        self.control_words = data[at_control:end_control].cast("q")
        self.words = data[at_words : at_words + 4 * sizes.slots].cast("I")
        self.records = np.ndarray((sizes.slots,), dtype, self.bytes, sizes.offset["records"], (sizes.stride,))

    @property
    def first_cycle(self) -> int:
        """The cycle that each slot starts with."""
        return int(self.control["start"][0]) >> 1

    def close(self) -> None:
        """Have the cache refuse everything from now on and give the memory back; the addresses stay mapped."""
        close_cache(this_process().address, self.address)


class NewBlock(Block):
    """The block of a new cache, in a reservation of its own: laid out, filled in, and entered in the registry."""

    __slots__ = ()

    def __init__(
        self,
        dtype: np.dtype[Any],
        capacity: int | None,
        colouring: bool,
        template: bytes | None,
        placement: numa.Placement,
        place: ClassPlace | None = None,
    ) -> None:
        self._place = place
        attempts = [(placement, True), (placement, False)]  # spare slots are wished for, not needed
        if place is not None:
            del attempts[0]
        if len(placement.sets) > 1 and not placement.is_simulated:
            attempts.append((placement.undivided(), False))  # one set needs less
        while True:
            try:
                memory = self._reserve(dtype, capacity, colouring, *attempts.pop(0))
                break
            except (CacheFullError, CapacityError):
                if not attempts:
                    if let_kept_go(this_process().address) == 0:  # else there are more mappings now
                        raise
                    attempts.append((self.placement, False))
        serial = next(serials)
        offset, stagger = self.geometry.offset, staggered(serial)
        at_control, at_heaps, at_words = (offset[region] + n for region, n in zip(STAGGERED, stagger, strict=True))
        self._view(dtype, at_control, at_words)
        memory.words[R_BLOCK] = self._base + offset["control"]
        memory.words[R_BLOCK_BYTES] = (at_words if self.geometry.nodes == 1 else offset["words"]) - offset["control"]
        own = ClassPlace(self.bytes, 0, self._base + at_heaps, layout.HEAP_BYTES, 0)
        self._place_memory(self._base + at_words)
        self._fill(place or own, self._base + at_words, 2 * first_cycle(serial), colouring, template)
        self._fill_sets(own)
        is_split = offset["records"] > layout.EAGER_BYTES and self.control["committed"][0] == 0
        if is_split and capacity is not None and grow(self.address, 1) == 0:  # later it may be one mapping too many
            raise CacheFullError(
                f"the system gives no memory for the first slab of a cache: {self.geometry.stride} bytes a record"
            )
        this_process().enter(self.address, memory.words)  # last: from here on others find it

    def _reserve(
        self, dtype: np.dtype[Any], capacity: int | None, colouring: bool, placement: numa.Placement, has_spare: bool
    ) -> region.Reservation:
        """Reserve the address range, for an array set on each node of the placement."""
        self.placement = placement
        self.geometry, memory = reserve(dtype, capacity, colouring, len(placement.sets), self._place, has_spare)
        self.bytes = np.asarray(memory)
        self._base = memory.address
        self._make_metadata_usable()
        return memory

    def _make_metadata_usable(self) -> None:
        """
        Make usable what every cache needs, and all metadata of a small one; all generations can be read.

        Of a cache with several array sets all is usable at once: `records` is one array over the gaps between them.
        """
        offset = self.geometry.offset
        if self.geometry.nodes > 1:
            if not addresses.make_usable(self._base, self.geometry.total):
                raise CacheFullError(
                    f"the system gives no {self.geometry.total} bytes for a cache on {self.geometry.nodes} nodes"
                )
            return
        control, head, end = offset["control"], head_end(offset), offset["records"]
        usable = end if end <= layout.EAGER_BYTES else head  # all, or all but generations
        parts = [(0, usable)] if usable <= layout.EAGER_BYTES else [(0, offset["bits"]), (control, head - control)]
        for first, n in parts:
            if not addresses.make_usable(self._base + first, n):
                raise CacheFullError(f"the system gives no {n} bytes for the metadata of a cache")
        if usable < end and not addresses.make_readable(self._base + head, end - head):  # a handle may name any slot
            raise CacheFullError(f"the system lets {end - head} bytes of generations not be read")

    def _regions(self, number: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (address, bytes) of the slab rows and of the free bits of an array set."""
        sizes, page = self.geometry, addresses.page_bytes
        n_rows = round_up(sizes.max_slabs * layout.SLAB.itemsize, page)
        n_bits = round_up(-(-(sizes.max_slabs << sizes.shift) // layout.BLOCK) * 8, page)
        rows, bits = self._base + sizes.offset["slabs"], self._base + sizes.offset["bits"]
        return (rows + number * n_rows, n_rows), (bits + number * n_bits, n_bits)

    def _place_memory(self, words: int) -> None:
        """
        Ask for the memory of each array set on its nodes; heaps stay with their threads.

        Before anything is written: a page that is there stays where it is, and a huge page has those around it, too.
        """
        sizes = self.geometry
        if sizes.nodes == 1:
            numa.bind(self._base + sizes.offset["bits"], sizes.total - sizes.offset["bits"], self.placement, 0)
            return
        n_slots = sizes.max_slabs << sizes.shift
        n_records = n_slots * sizes.stride
        beyond = round_up(layout.HUGE_BYTES, addresses.page_bytes)
        for number in range(sizes.nodes):
            first_slot = number << sizes.node_shift
            records = self._base + sizes.offset["records"] + first_slot * sizes.stride
            for start, n in (*self._regions(number), (words + 4 * first_slot, 4 * n_slots), (records, n_records)):
                numa.bind(start, n, self.placement, number)
            addresses.advise_huge_pages(records + beyond, n_records // addresses.page_bytes * addresses.page_bytes - beyond)

    def _fill(self, place: ClassPlace, words: int, start: int, colouring: bool, template: bytes | None) -> None:
        """Fill the control block in."""
        sizes = self.geometry
        values = entry_points() | {region: self._base + sizes.offset[region] for region in ("records", "scratch", "template")}
        values |= {
            "heap_region": place.region,
            "heaps": place.heaps,
            "heap_step": place.step,
            "base": place.base,
            "words": words,
            "front": self.address,
            "nodes": sizes.nodes,
            "node_shift": sizes.node_shift,
            "node_slots": 1 << sizes.node_shift,
            "cpu_nodes": 0,
            "stride": sizes.stride,
            "itemsize": sizes.itemsize,
            "shift": sizes.shift,
            "capacity": sizes.capacity,
            "rounds": sizes.rounds,
            "start": start,
            "colours": int(colouring),
            "init": NO_INIT if template is None else TEMPLATE,
            "scratch_step": sizes.scratch_step,
            "process": this_process().address,
        }
        for row in range(0, len(self.control_words), CONTROL.itemsize // 8):
            for field, value in values.items():
                self.control_words[row + layout.C[field] // 8] = value
        self.control["heads"] = self.control["tails"] = NIL
        if template is not None:
            at = sizes.offset["template"]
            self.bytes[at : at + len(template)] = np.frombuffer(template, np.uint8)

    def _fill_sets(self, own: ClassPlace) -> None:
        """Fill in what the array sets differ in."""
        sizes = self.geometry
        everything_usable = sizes.nodes > 1 or not addresses.CAN_GROW
        if sizes.nodes > 1:
            at = sizes.offset["cpus"]
            self.bytes[at : at + numa.CPUS] = np.frombuffer(self.placement.cpu_sets, np.uint8)
            self.control["cpu_nodes"] = self._base + at
        for number, control in enumerate(self.control):
            first_slot = number << sizes.node_shift if number else 0
            first = first_slot >> sizes.shift
            (rows, n_rows), (bits, _) = self._regions(number)
            end_rows = rows + n_rows if sizes.nodes > 1 else self.address
            control["node"] = number
            control["first_slab"], control["first_slot"] = first, first_slot
            control["slabs"] = end_rows + (first - 1) * layout.SLAB.itemsize  # indexed by the slab's number in the cache
            control["bits"] = bits - first_slot // layout.BLOCK * 8
            control["own_heaps"], control["own_step"] = control["heaps"], control["heap_step"]
            if sizes.nodes > 1:
                before = (int(self._place is None) + number) * layout.HEAP_ROWS
                control["own_heaps"], control["own_step"] = own.heaps + before * own.step, own.step
            control["limit"] = first_slot
            control["n_slabs"] = first
            control["max_slabs"] = first + sizes.max_slabs
            control["committed"] = first + sizes.max_slabs if everything_usable else first
