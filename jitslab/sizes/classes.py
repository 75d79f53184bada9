"""
`SizeClasses`: raw memory by size, from Python.

Every method validates its arguments, calls a cache or a kernel, and turns the answer into a result or an exception.
"""

from __future__ import annotations

import itertools
import operator
import sys
import weakref
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from .._closable import Closable
from .._faults import fault_of, joined, shown_count, warn_of_lost
from .._names import names_lock, need_name
from .._validate import as_integer
from ..cache import SlabCache, counts_of
from ..core.geometry import record_stride, slab_shape
from ..core.layout import HEAP_BYTES, HEAPS, MAGAZINE_SLOTS, NEVER, NULL, SLAB_BYTES, SLOT_MASK
from ..core.memory import LEAST_BYTES, CacheMemory, HeapPlace, NewCacheMemory, no_room
from ..core.process import this_process
from ..core.region import AnonymousRegion
from ..errors import (
    CacheFullError,
    CapacityError,
    CopyError,
    FaultError,
    ForeignHandleError,
    HandleError,
    HandleTypeError,
    NullHandleError,
    SizeError,
    SizeTypeError,
    SlabError,
    StaleHandleError,
    WrongSizeError,
    shown,
)
from ..machine import numa
from ..machine.addresses import (
    CAN_GROW,
    DEFAULT_LIMIT,
    limit_text,
    node_mask,
    page_bytes,
    refuse_huge_pages,
    round_up,
)
from ..machine.holder import Holder, bind, hold
from ..machine.owner import owner
from ..views import ClassStats, SizeStats
from . import kernels, layout
from .large import drop_retained, pin_pages, unpin_pages
from .layout import (
    CLASS,
    COARSE,
    FINE,
    LARGE,
    LARGEST,
    MAX_ALIGN,
    MAX_BYTES,
    MAX_CLASSES,
    NATURAL,
    PLAN,
    SIZES,
    place_of,
    retained_size,
)
from .njit import SizeClassesType, size_classes_type
from .range import ClassMemory, PlannedClass, dtype_of, memory_of, plan_classes
from .table import ODD_FROM, Tuning, as_counts, best_table, fixed_table, used_bytes, waste

Bytes = npt.NDArray[np.uint8]

SLOTS = 1 << 32
RESERVED_SMALL = 8 << 30  # most bytes of a class of up to 1 KiB: more would leave no slot numbers for tuned classes
RESERVED = 16 << 30  # most bytes of a larger one
ALL_SHIFT = 4  # if all classes are opened at once, each has 1/16 of a cache's share of the address space
SPARE = HEAPS * MAGAZINE_SLOTS  # least slots of a class if there is room, since some will be retired
MOST_LARGE = 1 << 16  # mappings of a Linux process by default
_numbers = itertools.count(1)  # of arrays that keep pages mapped


class LargePages:
    """The pages of one piece of large memory, seen by NumPy: they stay mapped while an array shows them."""

    __slots__ = ("__array_interface__", "__weakref__", "_owner")

    def __init__(self, parts: AllocatorMemory, ptr: int, size: int) -> None:
        pinned = np.array([0, parts.address, ptr, next(_numbers), 0, round_up(size, page_bytes)], np.int64)
        self._owner = owner(unpin_pages, pinned, parts.memory)
        pages = pin_pages(pinned.ctypes.data, size)  # 0: they could not be had
        self.__array_interface__: dict[str, Any] = {"shape": (size,), "typestr": "|u1", "data": (pages, False), "version": 3}


class AllocatorMemory:
    """The tables and caches of an allocator; its large memory goes back to the system when it is closed, or with the tables."""

    __slots__ = ("address", "caches", "large", "memory", "placement", "plans", "rows")

    def __init__(self, memory: npt.NDArray[np.uint8], address: int, large: SlabCache, placement: numa.Placement) -> None:
        self.memory, self.address, self.large, self.placement = memory, address, large, placement
        self.rows = memory[layout.CLASSES : layout.CLASS_OF_PLACE].view(CLASS)
        self.plans = memory[layout.PLANS : layout.PLANS + MAX_CLASSES * PLAN.itemsize].view(PLAN)
        self.caches: list[ClassCache | None] = [None]  # by row of the class; None if Python has not needed it yet

    def place_of(self, row: int) -> HeapPlace:
        """Where the heaps of a class are."""
        region = self.address + layout.HEAPS_AT
        return HeapPlace(self.memory, region, region + row * HEAP_BYTES, layout.THREAD_BYTES, int(self.rows[row]["ptr_base"]))

    def take_faults(self, name: str) -> list[FaultError]:
        """Return the faults of raw memory that nobody was told of, class by class, of an allocator of that name."""
        found = [
            fault_of(int(self.rows[row]["control"]), f"{name}-{self.rows[row]['high']}")
            for row in np.flatnonzero(self.rows["control"]).tolist()
        ]
        return [fault for fault in found if fault is not None] + self.large._take_faults()

    def open_memory(self, row: int) -> CacheMemory | None:
        """Return the memory of a class that was opened by its plan; None: it was not."""
        if self.rows[row]["control"] == 0:
            return None
        memory = np.asarray(ClassMemory(self.plans[row], self.memory))
        return memory_of(memory, self.rows[row], self.plans[row], self.placement, self.place_of(row))


class ClassCache(SlabCache[Any]):
    """The cache of a size class, as Python sees it; its allocator closes it."""

    __slots__ = ()

    def __init__(self, name: str, memory: CacheMemory) -> None:
        self._open(name, memory.records.dtype, None, memory)

    def _need_own(self, what: str) -> NoReturn:
        """Refuse: a size class is a part of an allocator."""
        raise CopyError(f"{what} is not for {self!r}: it is a part of an allocator; gather(handles) copies its records")


class SizeClasses(Holder, Closable):  # type: ignore[misc]  # made by CPython
    """
    Memory of any size, as `malloc` gives it: by size classes, each of them a cache.

    A *ptr* is no address but a handle: one that is stale, freed twice, another allocator's, or given back with a size of another
    class is refused.  The same object is used from Python and, as an argument or a global, in `@njit` functions.

    Parameters
    ----------
    name : str, default "memory"
        For messages and tables.
    capacity : int, optional
        Bytes of each class that can be live at once.  Without it 8 GiB; for classes above 1 KiB 16 GiB or 131,072 pieces.  If
        the address space is small or in use, an eighth of its free part at the first use of the class, up to 1 GiB.
    policy, strict, nodes, keep_empty
        NUMA nodes of the memory, and whether empty slabs stay, as of `SlabCache`.  Large memory of the local policy lies on the
        node that first writes to it.  With n nodes a class holds 1/(2 n) of the above on each.
    observe : bool, default False
        Count the sizes that are asked for, for `tune`; it takes every operation through its slow path, some 10 ns.

    Raises
    ------
    CapacityError
        If the name or the capacity is not one.
    CacheFullError
        If the address range cannot be had; without a capacity, too, if less than 1/128 of the address space would be left.

    Warns
    -----
    ResourceWarning
        If it is collected, or open when the process ends, with faults of compiled code that nobody was told of.

    Notes
    -----
    60 classes: steps of 16 bytes up to 128, then four to a doubling, up to 1 MiB.  At most 20 % of the bytes given out were not
    asked for, up to 128 bytes at most 15 bytes.  Addresses are multiples of 16, of tuned classes of 8, or of `align`.  Larger
    memory has pages of its own, and takes some microseconds.  All else is O(1), some 2 ns in compiled code.

    An allocator takes 0.5 ms to make, and 75 KiB.  Compiled code or Python opens a class when it first uses it: that takes some
    10 us, and one or two pages beside those of the records.  The first use from Python takes 50 us more.

    Examples
    --------
    >>> import jitslab
    >>> with jitslab.SlabAllocator("doc") as memory:
    ...     ptr = memory.allocate(100, zero=True)
    ...     memory.view(ptr, 100)[:5] = 7
    ...     ptr = memory.realloc(ptr, 100, 5000)
    ...     print(memory.view(ptr, 5000)[:6])
    ...     memory.free(ptr, 5000)
    [7 7 7 7 7 0]
    True
    """

    __slots__ = (
        "__weakref__",
        "_address",
        "_bases",
        "_caches",
        "_capacity",
        "_counts",
        "_largest",
        "_map",
        "_name",
        "_numba_type_",
        "_of_caches",
        "_owners",
        "_parts",
        "_placement",
        "_real",
        "_rows",
        "_sizes_row",
        "_table",
    )
    _not_copied = ": a ptr names memory of one allocator"

    def __init__(
        self,
        name: str = "memory",
        *,
        capacity: int | None = None,
        observe: bool = False,
        policy: str | int | Sequence[int] = "local",
        strict: bool = False,
        nodes: int | None = None,
        keep_empty: bool = False,
    ) -> None:
        if hasattr(self, "_numba_type_"):
            raise SlabError(f"{self!r} is open already")
        need_name("an allocator", name)
        if capacity is not None:
            try:
                capacity = operator.index(capacity)
            except TypeError:
                raise CapacityError(f"capacity must be an integer, got {shown(capacity)}") from None
            if not 1 <= capacity <= RESERVED:
                raise CapacityError(f"capacity must be 1 .. {RESERVED} bytes, got {shown(capacity)}")
        self._name, self._capacity = name, capacity
        self._of_caches: dict[str, Any] = {"policy": policy, "strict": strict, "nodes": nodes, "keep_empty": keep_empty}
        self._placement = numa.resolve(policy, strict, nodes)
        if capacity is None and this_process().share(without_capacity=True) < LEAST_BYTES:
            raise CacheFullError(f"{no_room()}: give the allocator a capacity")
        try:
            self._make()
        except CacheFullError:
            if len(self._placement.nodes) == 1 or self._placement.is_simulated:
                raise
            self._forget_memory()
            self._placement = self._placement.undivided()  # one node needs less
            self._of_caches["nodes"] = 1  # all caches of an allocator have as many
            self._make()
        self._numba_type_ = size_classes_type  # last: an allocator with a Numba type is open
        self._see_observed(bool(observe))

    def _make(self) -> None:
        """Make the memory, and the classes of the fixed table."""
        self._make_memory()
        self._switch_table([(low, high, False) for low, high in itertools.pairwise([0, *fixed_table()])])

    def _forget_memory(self) -> None:
        """Drop all that `_make_memory` made, with its addresses."""
        hold(self, 0, None)
        for name in ("_parts", "_caches", "_rows", "_real", "_map", "_counts", "_sizes_row"):
            if hasattr(self, name):
                delattr(self, name)

    def _make_memory(self) -> None:
        """Lay out the SIZES row, the CLASS rows and the maps."""
        for entry in (kernels.close_sizes, drop_retained):
            entry.compile()  # while there is memory
        large = SlabCache(f"{self._name}-large", LARGE, capacity=MOST_LARGE, **self._of_caches)
        large._is_owned = True
        region = AnonymousRegion(layout.SIZES_BYTES, large._memory.bytes, end=kernels.end_sizes)
        memory = np.asarray(region)
        self._address = region.address
        heaps, n_heaps = layout.HEAPS_AT, layout.SIZES_BYTES - layout.HEAPS_AT
        of_threads = layout.THREAD_BYTES * HEAPS  # all are readable; a thread makes its own writable
        granted = region.commit(0, layout.HEAPS_AT) and region.let_read(heaps, of_threads)
        if not (granted and region.commit(heaps + of_threads, n_heaps - of_threads)):
            raise CacheFullError(f"the system gives no memory for the tables of allocator {self._name!r}")
        refuse_huge_pages(self._address + heaps, n_heaps)  # a thread needs some pages, far from the next one's
        self._parts = AllocatorMemory(memory, self._address, large, self._placement)
        self._caches = self._parts.caches
        self._bases: list[int] = [0]
        self._rows = self._parts.rows
        self._real = memory[layout.CLASS_OF_PLACE : layout.CLASS_OF_PLACE + layout.PLACES]
        self._map = memory[layout.HEAP_OF_PLACE : layout.HEAP_OF_PLACE + 2 * layout.PLACES].view(np.uint16)
        self._table = self._real.tobytes()
        self._counts = memory[layout.COUNTS : layout.COUNTS + 8 * (LARGEST + 1)].view(np.int64)
        self._owners: weakref.WeakValueDictionary[int, LargePages] = weakref.WeakValueDictionary()
        sizes = memory[: SIZES.itemsize].view(SIZES)
        self._sizes_row = sizes[0]
        values: dict[str, Any] = {
            "entries": kernels.entries_address(),
            "n_rows": 1,
            "nodes": len(self._placement.nodes),
            "large": large._address,
            "large_base": SLOTS - large._memory.geometry.slots,
        }
        if len(self._placement.nodes) == 1:  # else large memory lies on the node that first writes to it
            mask = np.frombuffer(node_mask(self._placement.nodes_of(0)), np.int64)
            values |= {"mode": self._placement.mode, "mask": mask}
        for field, value in values.items():
            sizes[field] = value
        region.range["head"], region.range["head_bytes"] = self._address, SIZES.itemsize
        region.range["control"] = large._address  # from here on there is an allocator to end
        self._largest = LARGEST
        hold(self, self._address, sizes)

    # --- One piece of memory ---

    def allocate(self, size: int, *, align: int | None = None, zero: bool = False) -> int:
        """
        Take memory.

        Parameters
        ----------
        size : int
            Bytes, 1 to 2**46.
        align : int, optional
            The address is to be a multiple of this: a power of two up to 4,096.
        zero : bool, default False
            Whether the memory is to hold zeros; otherwise its contents are undefined.

        Returns
        -------
        int
            The ptr: positive, below 2**63.

        Raises
        ------
        SizeError, SizeTypeError
            If `size` or `align` is out of bounds, or no integer.
        CacheFullError
            If there is no more memory for this size.
        FaultError
            If compiled code used a refused ptr of this class since the last report; nothing is allocated.
        ClosedError
            After `close`.

        Examples
        --------
        >>> import jitslab
        >>> with jitslab.SlabAllocator("doc") as memory:
        ...     ptr = memory.allocate(300, align=256)
        ...     memory.address(ptr) % 256
        0
        """
        if align is None and not zero and type(size) is int:
            try:
                if 0 < size <= self._largest:
                    row = self._table[
                        size + 7 >> 3 if size <= FINE else (size + 63 >> 7) + COARSE
                    ]  # `place_of`: a call is 100 ns
                    return self._caches[row].alloc() + self._bases[row]  # type: ignore[union-attr]  # row 0 is no size's
            except (TypeError, AttributeError, CacheFullError):
                self._need_opened()
        return self._allocate_slow(size, align, zero)

    def free(self, ptr: int, size: int) -> bool:
        """
        Free memory; True, as in compiled code.

        Parameters
        ----------
        ptr : int
            From `allocate` or `realloc`.
        size : int
            The size that it was asked for with.

        Raises
        ------
        HandleError
            NullHandleError, StaleHandleError, ForeignHandleError, or WrongSizeError if `size` is one of another class;
            nothing was changed.
        HandleTypeError, SizeError, SizeTypeError
            If the ptr is no integer; if the size is none, or out of bounds.
        ClosedError
            After `close`.

        Examples
        --------
        >>> import jitslab
        >>> with jitslab.SlabAllocator("doc") as memory:
        ...     ptr = memory.allocate(64)
        ...     memory.free(ptr, 64)
        ...     memory.free(ptr, 64)
        Traceback (most recent call last):
            ...
        jitslab.errors.StaleHandleError: the memory of ptr ... was freed
        """
        if type(size) is int and type(ptr) is int:
            try:
                if 0 < size <= LARGEST:
                    row = self._table[
                        size + 7 >> 3 if size <= FINE else (size + 63 >> 7) + COARSE
                    ]  # `place_of`: a call is 100 ns
                    return self._caches[row].free(ptr - self._bases[row])  # type: ignore[union-attr]  # row 0 is no size's
            except (SlabError, TypeError, AttributeError):
                self._need_opened()
        return self._free_slow(ptr, size)

    def realloc(self, ptr: int, old_size: int, new_size: int) -> int:
        """
        Change the size of memory; its contents are kept, up to the lesser size.

        Parameters
        ----------
        ptr : int
            From `allocate` or `realloc`.
        old_size : int
            The size that it was asked for with.
        new_size : int
            Bytes, 1 to 2**46.

        Returns
        -------
        int
            The ptr from now on: the old one if the memory could stay.  An alignment is kept only then.

        Raises
        ------
        HandleError, SizeError, SizeTypeError, HandleTypeError, ClosedError
            As `free`; nothing was changed.
        CacheFullError
            If there is no memory of the new size; the old one stays.

        Examples
        --------
        >>> import jitslab
        >>> with jitslab.SlabAllocator("doc") as memory:
        ...     ptr = memory.allocate(64)
        ...     memory.view(ptr, 64)[:] = 7
        ...     ptr = memory.realloc(ptr, 64, 1000)
        ...     int(memory.view(ptr, 1000)[63])
        7
        """
        self._need_open()
        number, old, new = as_integer(ptr), as_size(old_size), as_size(new_size)
        answer = kernels.realloc(self._address, number, old, new) if 0 < number < 1 << 63 else NULL
        if answer == NULL:
            self._locate(number, old)
            self._raise_full(new, int(self._real[place_of(new)]) if new <= LARGEST else 0)
        return answer

    def view(self, ptr: int, size: int) -> Bytes:
        """
        Return live memory as an array.

        Parameters
        ----------
        ptr : int
            From `allocate` or `realloc`.
        size : int
            The size that it was asked for with.

        Returns
        -------
        ndarray of uint8, shape (size,)
            Reads and writes the memory in place.  It keeps the addresses, not the contents: after `free` it shows the next
            contents of the memory, and a write there harms their owner.

        Raises
        ------
        HandleError, SizeError, SizeTypeError, HandleTypeError, ClosedError
            As `free`.

        Examples
        --------
        >>> import jitslab, numpy as np
        >>> with jitslab.SlabAllocator("doc") as memory:
        ...     numbers = memory.view(memory.allocate(800), 800).view(np.float64)
        ...     numbers[:] = np.arange(100)
        ...     float(numbers.sum())
        4950.0
        """
        self._need_open()
        number, n = as_integer(ptr), as_size(size)
        row, slot = self._locate(number, n)
        cache = self._cache(row)
        if cache is None:
            return np.asarray(self._pages(number, n))
        offset = cache._memory.geometry.offset["records"] + slot * cache.stride
        return cache._memory.bytes[offset : offset + n]

    def bytes(self, ptr: int, size: int) -> Bytes:
        """Return ``view(ptr, size)``; compiled code uses this name, since Numba lets only arrays have a method `view`."""
        return self.view(ptr, size)

    def address(self, ptr: int, size: int | None = None) -> int:
        """
        Return the address of live memory, for ctypes and cffi; it is valid until `free`.

        Parameters
        ----------
        ptr : int
            From `allocate` or `realloc`.
        size : int, optional
            The size that it was asked for with; without it the ptr alone is checked.

        Returns
        -------
        int
            The address; it stays the same until the memory is freed.

        Raises
        ------
        HandleError, SizeError, SizeTypeError, HandleTypeError, ClosedError
            As `free`.

        Examples
        --------
        >>> import ctypes, jitslab
        >>> with jitslab.SlabAllocator("doc") as memory:
        ...     ptr = memory.allocate(8, zero=True)
        ...     ctypes.c_int64.from_address(memory.address(ptr)).value = 258
        ...     memory.view(ptr, 8)[:3].tolist()
        [2, 1, 0]
        """
        self._need_open()
        number = as_integer(ptr)
        n = 0 if size is None else as_size(size)
        at = kernels.address_slow(self._address, number, n) if 0 < number < 1 << 63 else 0
        if at == 0:
            raise self._refusal(number, n)
        return at

    def _allocate_slow(self, size: Any, align: Any, zero: bool) -> int:
        """`allocate` of everything that is not plain."""
        self._need_open()
        n = as_size(size)
        alignment = NATURAL if align is None else as_alignment(align)
        row = int(self._real[place_of(n)]) if n <= LARGEST else 0
        cache = self._cache(row) if row else self._parts.large
        if cache is not None:
            cache.raise_faults()
        if align is None or row == 0 or self._rows[row]["stride"] % alignment == 0:  # pages are aligned to themselves
            ptr = (kernels.allocate_zeros if zero and n > LARGEST else kernels.allocate_slow)(self._address, n)
        else:
            row = self._aligned_row(kernels.quarter_size(n, alignment))
            ptr = kernels.allocate_in(self._address, self._row_address(row))
        if ptr == NULL:
            self._raise_full(n, row)
        if cache is None:
            self._cache(row)  # it is open: from now on `allocate` finds it
        if zero and n <= LARGEST:
            kernels.zero(kernels.address_slow(self._address, ptr, 0), n)
        return ptr

    def _free_slow(self, ptr: Any, size: Any) -> bool:
        """`free` if the class of the size refused the ptr, or there is none."""
        self._need_open()
        number, n = as_integer(ptr), as_size(size)
        if n <= LARGEST:
            self._cache(int(self._real[place_of(n)]))  # if compiled code opened it: from now on `free` finds it
        if not 0 < number < 1 << 63 or not kernels.free_slow(self._address, number, n):
            raise self._refusal(number, n)
        return True

    def _pages(self, ptr: int, size: int) -> LargePages:
        """Return the object that keeps the pages of large memory mapped; one for all arrays on them."""
        with names_lock():
            pages = self._owners.get(ptr)
            if pages is None:
                pages = LargePages(self._parts, ptr, size)
                if pages.__array_interface__["data"][0] == 0:
                    raise self._refusal(ptr, size)
                self._owners[ptr] = pages
            return pages

    # --- Classes ---

    def _row_address(self, row: int) -> int:
        """Address of a row."""
        return self._address + layout.CLASSES + row * CLASS.itemsize

    def _cache(self, row: int) -> ClassCache | None:
        """Return the cache of a class, which Python may see now for the first time; None: the class was never used."""
        cache = self._caches[row]
        if cache is None and (memory := self._parts.open_memory(row)) is not None:
            cache = self._caches[row] = ClassCache(f"{self._name}-{self._rows[row]['high']}", memory)
        return cache

    def _open_caches(self) -> list[tuple[int, ClassCache]]:
        """Return the caches of the classes that were ever used, with their rows."""
        found = ((row, self._cache(row)) for row in np.flatnonzero(self._rows["control"][: self._sizes_row["n_rows"]]).tolist())
        return [(row, cache) for row, cache in found if cache is not None]

    def _switch_table(self, table: list[tuple[int, int, bool]]) -> None:
        """Have new memory come from the classes of a table of (low, high, whether for alignments only), one thread at a time."""
        n_rows = int(self._sizes_row["n_rows"])
        known = {int(row["high"]): i for i, row in enumerate(self._rows[:n_rows]) if i and not row["is_aligned"]}
        new = [each for each in table if each[2] or each[1] not in known]
        if len(new) + n_rows > MAX_CLASSES:
            raise SizeError(f"allocator {self._name!r} cannot have more than {MAX_CLASSES - 1} classes, old ones among them")
        if new:
            self._make_rows(self._planned(new))
            known |= {high: i for i, (_, high, is_aligned) in enumerate(new, n_rows) if not is_aligned}
        real = self._real.copy()
        for low, high, is_aligned in table:
            if not is_aligned:
                row = known[high]
                self._rows[row]["low"] = min(int(self._rows[row]["low"]), low)
                real[place_of(low) + 1 : place_of(high) + 1] = row
        self._real[:] = real
        self._table = real.tobytes()
        if not self._sizes_row["observe"]:
            self._map[:] = real.astype(np.uint16) * layout.HEAP_LINES

    def _planned(self, new: list[tuple[int, int, bool]]) -> tuple[PlannedClass, ...]:
        """Return new classes with their capacities, or their shares of the slot numbers."""
        part = 0.9 if self._sizes_row["n_rows"] == 1 else 0.3 if len(new) > 1 else 0.1  # of the slot numbers that are left
        room = int(self._free_slots()[1] * part) // self._spread - sum(spare(high) for _, high, _ in new)
        most = [self._capacity or most_bytes(high) for _, high, _ in new]
        if self._spread > 1 and self._capacity is None:  # all are opened now
            space = this_process().share(without_capacity=True) >> ALL_SHIFT
            most = [min(n, RESERVED, space) for n in most]
        pieces = [max(n // high, 1) for n, (_, high, _) in zip(most, new, strict=True)]
        share = min(1.0, room / sum(pieces))
        wanted = []
        for (low, high, is_aligned), n in zip(new, pieces, strict=True):
            n = int(n * share)
            if n < 1:
                raise CacheFullError(f"allocator {self._name!r} has no slot numbers left for a class of {high} bytes")
            parked = HEAPS * slab_shape(high, 1, not is_aligned)[2]
            if self._capacity is None:
                wanted.append(PlannedClass(low, high, is_aligned, 0, 1, n))
            else:
                wanted.append(PlannedClass(low, high, is_aligned, n, n + parked, n + (SPARE if CAN_GROW else parked)))
        return tuple(wanted)

    @property
    def _spread(self) -> int:
        """Slots that a class takes, at most, for each piece that it can hold: on each of several nodes a power of two."""
        n_nodes = len(self._placement.nodes)
        return 1 if n_nodes == 1 else 2 * n_nodes

    def _make_rows(self, wanted: tuple[PlannedClass, ...]) -> None:
        """Make the rows of new classes, each to be opened at its first use; with several nodes they are opened now."""
        if len(self._placement.nodes) > 1:
            for each in wanted:
                self._open_row(each)
            return
        first = int(self._sizes_row["n_rows"])
        end = first + len(wanted)
        interval_end = NEVER if self._of_caches["keep_empty"] else 0
        self._parts.plans[first:end], self._rows[first:end] = plan_classes(
            wanted, self._free_slots()[0], interval_end, self._address
        )
        self._bases[first:] = self._rows["ptr_base"][first:end].tolist()
        self._caches[first:] = [None] * len(wanted)
        self._sizes_row["n_rows"] = end

    def _open_row(self, wanted: PlannedClass) -> None:
        """Open a class with several nodes, in a reservation of its own; the new number of rows makes it known."""
        row, base = int(self._sizes_row["n_rows"]), self._free_slots()[0]
        self._rows[row]["ptr_base"] = base
        place = self._parts.place_of(row)
        dtype = dtype_of(wanted.high)
        memory = NewCacheMemory(dtype, wanted.capacity or wanted.most, not wanted.is_aligned, None, self._placement, place)
        if self._of_caches["keep_empty"]:
            memory.state["interval_end"] = NEVER
        cache = ClassCache(f"{self._name}-{wanted.high}", memory)
        stride, end = record_stride(dtype, not wanted.is_aligned), base + memory.geometry.slots
        self._caches[row:], self._bases[row:] = [cache], [base]
        self._rows[row] = (base, stride, memory.address, end, wanted.low, wanted.high, wanted.is_aligned, 0)
        self._sizes_row["n_rows"] = row + 1

    def _free_slots(self) -> tuple[int, int]:
        """Return the first slot number that no class has, and how many there are from there."""
        first = int(self._rows["end"][: self._sizes_row["n_rows"]].max())
        return first, int(self._sizes_row["large_base"]) - first

    def _aligned_row(self, high: int) -> int:
        """Return the row of the class for alignments, opened when it is first needed."""
        with names_lock():
            for i, row in enumerate(self._rows[: self._sizes_row["n_rows"]]):
                if row["is_aligned"] and row["high"] == high:
                    return i
            self._switch_table([(high - 1, high, True)])
            return len(self._caches) - 1

    @property
    def table(self) -> tuple[int, ...]:
        """Sizes of the classes in force."""
        self._need_opened()
        rows = np.unique(self._real[1:])
        return tuple(sorted(int(self._rows[i]["high"]) for i in rows if i))

    @property
    def observe(self) -> bool:
        """Whether the sizes that are asked for are counted; can be set."""
        self._need_opened()
        return bool(self._sizes_row["observe"])

    @observe.setter
    def observe(self, value: bool) -> None:
        self._need_open()
        self._see_observed(bool(value))

    def _see_observed(self, value: bool) -> None:
        """Have every size, or none, go through the slow path, which counts it."""
        with names_lock():
            self._sizes_row["observe"] = int(value)
            self._map[:] = 0 if value else self._real.astype(np.uint16) * layout.HEAP_LINES
            self._largest = 0 if value else LARGEST

    def tune(self, sizes: Any = None, classes: int = 60) -> Tuning:
        """
        Find the table of classes that wastes least on the observed sizes, and use it for new memory.

        Parameters
        ----------
        sizes : array_like of int, or mapping of size to count, optional
            What was observed; without it, what was counted while `observe` was on.
        classes : int, default 60
            Most classes of the table, 17 or more.

        Returns
        -------
        Tuning
            The table, and the waste before and after.

        Raises
        ------
        SizeError, SizeTypeError
            If a size or `classes` is out of bounds, or no integer; SizeError, too, if the new table does not fit: an
            allocator has room for 255 classes in its life, those that were in force before among them.
        CacheFullError
            If there are no slot numbers left for new classes; nothing was changed.

        Notes
        -----
        Found by dynamic programming: no table of as many classes, with one at each doubling, gives out fewer bytes for the
        observed sizes.  If it would give out no fewer than the table in force, nothing changes.  Ptrs stay valid: memory of
        a class that is no longer in force is freed as before.  Some milliseconds.

        Examples
        --------
        >>> import jitslab
        >>> with jitslab.SlabAllocator("doc") as memory:
        ...     found = memory.tune([1030] * 99 + [24] * 50)
        ...     print(found.applied, 24 in memory.table, f"{found.before:.3f} {found.after:.3f}")
        True True 0.056 0.053
        """
        self._need_open()
        most = as_integer(classes, "classes must be", SizeTypeError)
        observed, counts = self.observed() if sizes is None else as_counts(sizes)
        if most >= MAX_CLASSES:
            raise SizeError(f"a table has at most {MAX_CLASSES - 1} classes, got {shown(most)}")
        found = best_table(observed, counts, most)
        with names_lock():
            before, after, fixed = (waste(table, observed, counts) for table in (self.table, found, fixed_table()))
            is_better = bool(observed.size) and after < before
            if is_better:
                self._switch_table([(low, high, False) for low, high in itertools.pairwise([0, *found])])
        return Tuning(tuple(found), before, after, fixed, int(counts.sum()), is_better)

    def observed(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the different sizes that were asked for while `observe` was on, and how often each was."""
        self._need_open()
        sizes = np.flatnonzero(self._counts)
        return sizes, self._counts[sizes]

    # --- The allocator as a whole ---

    def _raw_caches(self) -> list[SlabCache]:
        """Return the caches of the classes that were ever used, and of large memory."""
        return [*(cache for _, cache in self._open_caches()), self._parts.large]

    @property
    def name(self) -> str:
        """Name, as given."""
        self._need_opened()
        return self._name

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        self._need_opened()
        return bool(self._sizes_row["closed"])

    @property
    def stats(self) -> SizeStats:
        """Counts of live memory and observed sizes; exact while no other thread allocates or frees."""
        self._need_open()
        lines = []
        for i, cache in self._open_caches():
            if cache.slot_limit:
                row = self._rows[i]
                lines.append(ClassStats(int(row["low"]), int(row["high"]), *counts_of(cache)))
        pages, n_large = int(self._sizes_row["large_bytes"]), len(self._parts.large)
        sizes, counts = self.observed()
        return SizeStats(
            live=sum(line.live for line in lines) + n_large,
            used=sum(line.live * line.high for line in lines) + pages,
            memory=sum(line.memory for line in lines) + pages + sum(map(retained_size, self._sizes_row["retained"].tolist())),
            large=n_large,
            large_used=pages,
            observed=int(counts.sum()),
            asked=int((sizes * counts).sum()),
            given=used_bytes(self.table, sizes, counts) if sizes.size else 0,
            classes=tuple(sorted(lines, key=lambda line: line.high)),
        )

    def live(self) -> npt.NDArray[np.int64]:
        """Return the ptrs of all live memory; FaultError as `SlabCache.live`."""
        self._need_open()
        self.raise_faults()
        parts = [cache.live() + self._bases[row] for row, cache in self._open_caches()]
        return np.concatenate([*parts, self._parts.large.live() + int(self._sizes_row["large_base"])])

    def __len__(self) -> int:
        """Return how many pieces of memory are live."""
        self._need_open()
        return sum(map(len, self._raw_caches()))

    def __contains__(self, ptr: object) -> bool:
        """Whether `ptr` is that of live memory."""
        self._need_open()
        try:
            number = as_integer(ptr)
        except HandleTypeError:
            return False
        return 0 < number < 1 << 63 and kernels.address_slow(self._address, number, 0) != 0

    def clear(self) -> int:
        """Free everything, with no other thread using the allocator; returns how many pieces.  FaultError: none is freed."""
        self._need_open()
        self.raise_faults()
        large, base = self._parts.large, int(self._sizes_row["large_base"])
        n = sum(kernels.free_slow(self._address, h + base, int(large[h]["asked"])) for h in large.live().tolist())
        n += large.clear()  # those whose pages another thread had in hand when this process was forked
        return n + sum(cache.clear() for _, cache in self._open_caches())

    def flush(self) -> int:
        """Give the free places in the calling thread's magazines home, as `SlabCache.flush`; returns how many."""
        self._need_open()
        return sum(cache.flush() for cache in self._raw_caches())

    def shrink(self) -> int:
        """
        Give the memory of all empty slabs, and freed large memory, back to the system; returns how many slabs.

        Places in the magazines of other threads stay, as of `SlabCache.shrink`.
        """
        self._need_open()
        drop_retained(self._address)
        return sum(cache.shrink() for _, cache in self._open_caches())

    def raise_faults(self) -> None:
        """
        Raise if compiled code viewed memory by a refused ptr since the last report, and start a new one.

        Raises
        ------
        FaultError
            With the number of faults and the first ptr; of several classes, all of them.
        """
        self._need_opened()
        fault = joined(self._take_faults())
        if fault is not None:
            raise fault

    @property
    def faults(self) -> int:
        """How often compiled code used a refused ptr since the last report."""
        self._need_opened()
        return sum(cache.faults for cache in self._raw_caches())

    def _take_faults(self) -> list[FaultError]:
        """Return the faults that nobody was told of."""
        return self._parts.take_faults(self._name)

    def __del__(self, is_finalizing: Any = sys.is_finalizing) -> None:
        """Warn of faults of raw memory that nobody was told of."""
        parts = getattr(self, "_parts", None)  # None: it was never opened
        if not is_finalizing() and parts is not None:
            warn_of_lost(parts.take_faults(self._name))

    def check(self) -> None:
        """
        Recount every class, at rest.

        Raises
        ------
        LawError, BusyError, FaultError
            As `SlabCache.check`.
        """
        self._need_open()
        for cache in self._raw_caches():
            cache.check()

    def close(self) -> None:
        """
        Refuse everything from now on and give the memory back; a second `close` does nothing.

        Addresses stay mapped while an array shows them.  No compiled code may be using large memory meanwhile.

        Raises
        ------
        FaultError
            As `SlabCache.close`; all is closed.
        """
        super().close()

    def _end(self) -> FaultError | None:
        """Close; returns the faults that nobody was told of."""
        self._need_opened()
        faults = self._take_faults()
        self._shut()
        return joined(faults)

    def _shut(self) -> None:
        """Close."""
        kernels.close_sizes(self._address)
        self._largest = 0

    def __repr__(self) -> str:
        """Short, whatever the size."""
        kind = type(self).__name__
        if not hasattr(self, "_numba_type_"):
            return f"<{kind}: never opened>"
        if self.closed:
            return f"<{kind} {self._name!r}: closed{self._shown_faults()}>"
        return f"<{kind} {self._name!r}: {len(self)} pieces live in {len(self.table)} classes{self._shown_faults()}>"

    def _shown_faults(self) -> str:
        """Return the end of a repr."""
        return f", {shown_count(n)}" if (n := self.faults) else ""

    # --- Checks ---

    def _closed_text(self) -> str:
        return f"allocator {self._name!r} is closed"

    def _find(self, ptr: int) -> int:
        """Return the row whose slot numbers hold a ptr's; -1: large memory; 0: none."""
        slot = ptr & SLOT_MASK
        if slot >= int(self._sizes_row["large_base"]):
            return -1
        n = len(self._caches)
        found = np.flatnonzero((self._rows["ptr_base"][:n] <= slot) & (slot < self._rows["end"][:n]))
        return int(found[0]) if found.size else 0

    def _locate(self, ptr: int, size: int) -> tuple[int, int]:
        """Return row (0: large memory) and slot of live memory, or raise."""
        if not 0 < ptr < 1 << 63 or kernels.address_slow(self._address, ptr, size) == 0:
            raise self._refusal(ptr, size)
        row = max(self._find(ptr), 0)
        base = self._bases[row] if row else int(self._sizes_row["large_base"])
        return row, (ptr & SLOT_MASK) - base

    def _refusal(self, ptr: int, size: int) -> HandleError:
        """Say why a ptr is refused; a size of 0 stands for any."""
        if ptr == NULL:
            return NullHandleError("the ptr is NULL")
        if not 0 < ptr < 1 << 63:
            return ForeignHandleError(f"{shown(ptr)} is no ptr: 1 .. 2**63 - 1")
        row = self._find(ptr)
        if row == 0:
            return ForeignHandleError(f"allocator {self._name!r} never issued ptr {ptr:#x}")
        cache = self._parts.large if row < 0 else self._cache(row)
        if cache is None:
            return ForeignHandleError(f"allocator {self._name!r} never issued ptr {ptr:#x}")
        handle = ptr - (int(self._sizes_row["large_base"]) if row < 0 else self._bases[row])
        if handle in cache:
            if row < 0:
                asked = int(cache[handle]["asked"])
                return WrongSizeError(f"ptr {ptr:#x} is of {asked} bytes, not of {size}")
            low, high = int(self._rows[row]["low"]) + 1, int(self._rows[row]["high"])
            if self._rows[row]["is_aligned"]:
                return WrongSizeError(f"ptr {ptr:#x} is aligned memory of up to {high} bytes, not of {size}")
            return WrongSizeError(f"ptr {ptr:#x} is of the class of {low} to {high} bytes, not of {size}")
        why = cache._refusal(handle)
        if isinstance(why, StaleHandleError):
            return StaleHandleError(f"the memory of ptr {ptr:#x} was freed")
        return ForeignHandleError(f"allocator {self._name!r} never issued ptr {ptr:#x}")

    def _raise_full(self, n: int, row: int = 0) -> NoReturn:
        """Raise because memory of n bytes could not be had, of a class if its row is given."""
        self._need_open()
        text = f"allocator {self._name!r} has no memory for {n} bytes more"
        cache = self._cache(row) if row else None
        if cache is not None:
            why = cache._full(1)
            raise type(why)(f"{text}: {why}")
        is_refused = row and self._capacity is None and this_process().share(without_capacity=True) < LEAST_BYTES
        raise CacheFullError(f"{text}: {no_room() if is_refused else f'the system gives none{limit_text()}'}")


bind(SizeClassesType, SizeClasses, "SlabAllocator")


def most_bytes(high: int) -> int:
    """Return the bytes of a class that was given no capacity, as far as there is room."""
    return min(max(RESERVED_SMALL if high < ODD_FROM else RESERVED, high * SPARE), DEFAULT_LIMIT)


def spare(high: int) -> int:
    """Most slots that the cache of a class has beyond its capacity: in reserve, to fill a slab, to end on a border."""
    return SPARE + 2 * SLAB_BYTES // high + 1 + (1 << 12)


def as_size(size: Any) -> int:
    """Return a size as an int within its bounds."""
    n = as_integer(size, "a size is", SizeTypeError)
    if not 1 <= n <= MAX_BYTES:
        raise SizeError(f"a size must be 1 .. 2**46 bytes, got {shown(n)}")
    return n


def as_alignment(align: Any) -> int:
    """Return an alignment as an int within its bounds."""
    n = as_integer(align, "an alignment is", SizeTypeError)
    if not 1 <= n <= MAX_ALIGN or n & (n - 1):
        raise SizeError(f"an alignment must be a power of two, 1 .. {MAX_ALIGN}, got {shown(n)}")
    return n
