"""
`SlabCache`: the typed cache, from Python.

Every method validates its arguments, calls a kernel, and turns the kernel's answer into a result or an exception.  When the first
cache is made, `alloc` and `free` are replaced by C methods (core/cache_calls.py).
"""

from __future__ import annotations

import atexit
import copy
import itertools
import os
import sys
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cache as cached
from typing import TYPE_CHECKING, Any, Generic, NoReturn, overload

import numba
import numpy as np
import numpy.typing as npt

from . import guard_class, image, reach
from ._closable import Closable
from ._convert import pack
from ._faults import fault_of, joined, shown_count, warn_of_lost
from ._names import names_lock, need_name
from ._validate import as_count, as_handles, as_integer, check_dtype, check_out, is_many
from .batch_guard import SlabBatchGuard
from .core import batch, cache_calls, guard_calls, layout, scan
from .core.check import check_laws
from .core.claim import flush_own
from .core.faults import take_faults
from .core.geometry import record_stride
from .core.grow import release
from .core.heap_table import count, count_in_node, is_active
from .core.layout import LAWS, NEVER, NODE_WORDS, NULL, SLOT_MASK
from .core.memory import CacheMemory, NewCacheMemory
from .core.process import close_cache, let_kept_go
from .core.rebuild import recover
from .declare import declared_class, plain, template_of
from .errors import (
    ArrayError,
    BusyError,
    CacheFullError,
    CapacityError,
    CopyError,
    CorruptImageError,
    FaultError,
    FieldNameError,
    ForeignHandleError,
    HandleError,
    HandleTypeError,
    LawError,
    LayoutError,
    NullHandleError,
    RetiredError,
    SlabError,
    StaleHandleError,
    shown,
)
from .guard import SlabObjectGuard, as_numbers
from .machine import addresses, numa
from .machine.holder import Holder, bind, guard_class_of, has_births, hold, hold_records, set_births, set_guard_class
from .njit.cache import CacheType, cache_type
from .owning import fill, new_guard
from .record_class import with_attributes
from .views import SlabNode, SlabObject, SlabPage, SlabPages, SlabState

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    R = TypeVar("R")

RecordLike = np.dtype[Any] | list[Any] | dict[str, Any] | str  # as numpy.typing.DTypeLike, without the classes
Handles = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]

CLOSED, FAULTS = NODE_WORDS["closed"], NODE_WORDS["faults"]
# Errors and ends call these: they are loaded while there is memory, as they are needed when there is none.
NEEDED_WITHOUT_MEMORY = (
    batch.alloc_one,
    batch.free_one,
    flush_own,
    is_active,
    check_laws,
    close_cache,
    let_kept_go,
    take_faults,
)
SLOTS_AT_ONCE = 1 << 17  # slots that `check` looks at together: it must work with hardly any memory left
REST_TRIES = 3  # a thread that was joined may still be giving its magazines back


class SlabCache(Holder, Closable, Generic[R]):  # type: ignore[misc]  # made by CPython
    """
    A typed cache: slots that each hold one record of `dtype`.

    Records keep their slot, and their address, until they are freed; a freed handle is refused.  Not a container: nothing
    is ordered, searched or resized for you.  The same object is used from Python and, as an argument or a global, in
    `@njit` functions.

    Parameters
    ----------
    name : str
        For messages and tables.
    dtype : numpy.dtype or class
        Record type: with named fields that do not overlap, without Python objects; or a class that `jitslab.record` made.
        Fields that Numba cannot type still work from Python.
    capacity : int, optional
        Records that can be live at once, 1 to 2**32; one thread gets exactly so many, several may get a few more.
        Without it the cache grows within its share of the free address space: 64 GiB of records, or 1/512 of that space if this
        is less.  The cache is refused if less than 1/128 of the address space, 1 TiB of 47 bits, would be left.
    colouring : bool, default True
        Spread the first records of slabs, and strides that alias, over the sets of the CPU's caches.
    init : {None, "zero"} or record, optional
        Contents of a new record: undefined; zeros; or a copy of this record, whose values fit as in a guard.  A declared class
        with defaults has these in the place of the first two, and zeros beside them.
    policy : {"local", "interleave"}, int or sequence of int, default "local"
        Where the memory lies on a machine with several NUMA nodes.  ``"local"``: a record on the node of the thread that
        allocates it; a number: on that node; ``"interleave"``, or numbers: the pages in turn on all nodes, or on these.  A
        full node is helped out by others.
    strict : bool, default False
        Never help out: past a node's memory the system kills the process.  With ``"local"`` or one node.
    nodes : int, optional
        Simulate so many nodes, 1 to 64, on whatever machine this is; for tests of logic.
    replace : bool, default False
        Close the open caches of this name first, for a cell of a notebook that is run again: those that were made by `SlabCache`;
        those of an allocator stay.  Nothing is closed if another argument is refused.
    keep_empty : bool, default False
        Keep the memory of empty slabs until `shrink`.  Otherwise those that the working set did not need for some turnovers of
        the cache go back to the system by themselves, which costs programs that drop and rebuild everything up to 8 % of time.

    Raises
    ------
    LayoutError
        If `dtype` cannot be the record of a cache, or `init` is no record of it.
    CapacityError
        If `capacity` is out of bounds, or `keep_empty` or `replace` is not one of them.
    FaultError
        If compiled code used refused handles of a cache that is replaced, and nobody was told: that is closed, none is made.
    CacheFullError
        If the address range cannot be had; without a capacity, also if too little of the address space would be left.
    NodeError
        If a node does not exist, has no memory or is not allowed to this process.

    Warns
    -----
    PlacementWarning
        Once, if the system refuses to place memory; the cache goes on without.
    ResourceWarning
        If it is collected, or open when the process ends, with faults of compiled code that nobody was told of.

    Notes
    -----
    `alloc` and `free` are O(1), about 1 ns in compiled code; any thread may free.  Memory is taken as it is used and empty
    slabs go back to the system.  Metadata: 4.2 bytes a slot and 64 a slab.  A slot is retired after 2**28 or more
    reuses, so that a stale handle is never taken for a live one.  A cache with a capacity reserves 4 million slots for
    that, or as many as 1/512 of the address space holds: of records of up to 32 KiB there are 10**15 allocs, of 256 KiB
    10**14, even if one is live at a time.

    `copy.copy`, `copy.deepcopy` and `pickle` make another cache with the same records under the same handles, if no other thread
    is using this one; so workers of multiprocessing, joblib and dask get caches as arguments and as results.  From then on each
    has a life of its own: a handle that one of them gives later may name another record of the other.  `save` writes a file.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> point = np.dtype([("x", "f8"), ("y", "f8")])
    >>> cache = jitslab.SlabCache("points", point, capacity=64, init="zero")
    >>> h = cache.alloc()
    >>> cache[h]["x"] = 3.0
    >>> cache[h].item()
    (3.0, 0.0)
    >>> cache.free(h)
    True
    >>> h in cache
    False
    >>> cache.close()
    """

    __slots__ = (
        "__weakref__",
        "_address",
        "_c",
        "_columns",
        "_declared",
        "_dtype",
        "_family",
        "_generations",
        "_is_owned",
        "_memory",
        "_name",
        "_numba_type_",
        "_records",
        "_views",
    )

    def __init__(
        self,
        name: str,
        dtype: type[R] | RecordLike,
        *,
        capacity: int | None = None,
        colouring: bool = True,
        init: Any = None,
        policy: str | int | Sequence[int] = "local",
        strict: bool = False,
        nodes: int | None = None,
        keep_empty: bool = False,
        replace: bool = False,
    ) -> None:
        if hasattr(self, "_numba_type_"):
            raise SlabError(f"{self!r} is open already")
        need_name("a cache", name)
        for option, value in (("keep_empty", keep_empty), ("replace", replace)):
            if not isinstance(value, bool):
                raise CapacityError(f"{option} is True or False, got {shown(value)}")
        prepare()
        dtype = plain(dtype)
        own, declared = check_dtype(dtype), declared_class(dtype)
        arguments = (
            own,
            None if capacity is None else as_count(capacity, "capacity", 1),
            bool(colouring),
            template_of(init, own, declared),
            numa.resolve(policy, strict, nodes),
        )
        if replace:
            close_caches(name)
        memory = NewCacheMemory(*arguments)
        _made[next(_serials)] = self
        if keep_empty:
            memory.state["interval_end"] = NEVER
        self._open(name, own, declared, memory)

    def _open(self, name: str, dtype: np.dtype[Any], declared: Any, memory: CacheMemory) -> None:
        """Become the cache of some memory."""
        self._name, self._dtype, self._declared, self._is_owned = name, dtype, declared, False
        self._family: Any = None  # returns the allocator or pool that it is of, while that lives
        self._memory = memory
        self._address = memory.address
        self._records, self._generations = memory.records, memory.generations
        self._views = self._records.view(with_attributes(self._records.dtype))
        if numba.config.DISABLE_JIT:  # functions that get the array see fields as attributes, as compiled code does
            self._records = self._views
        self._columns: dict[tuple[str, ...], Any] = {}  # of sub-arrays, as guards ask for them
        self._c = memory.node_words
        hold(self, memory.address, memory.control)
        hold_records(self, self._views)
        # Last: a cache with a Numba type is open.
        sizes = memory.geometry
        self._numba_type_: CacheType = cache_type(dtype, sizes.stride, memory.field("init"), sizes.nodes > 1)

    @classmethod
    def numba_type(
        cls,
        dtype: type[Any] | RecordLike,
        *,
        colouring: bool = True,
        init: Any = None,
        policy: str | int | Sequence[int] = "local",
        strict: bool = False,
        nodes: int | None = None,
    ) -> CacheType:
        """
        Return the Numba type of caches of a dtype, for signatures and jitclasses that stand before the first cache.

        Parameters
        ----------
        dtype : numpy.dtype or class
            Record type.
        colouring, init, policy, strict, nodes
            As of the caches: the type says whether records begin with a template, and whether there are several NUMA nodes.

        Returns
        -------
        numba.types.Type
            ``numba.typeof(cache)`` of such a cache.

        Examples
        --------
        >>> import numba, numpy as np, jitslab
        >>> node = np.dtype([("value", "f8"), ("next", "i8")])
        >>> @numba.njit(numba.int64(jitslab.SlabCache.numba_type(node), numba.float64))
        ... def push(cache, value):
        ...     return cache.alloc(value=value)
        >>> with jitslab.SlabCache("doc-type", node, capacity=10) as cache:
        ...     cache[push(cache, 1.5)]["value"].item()
        ...     numba.typeof(cache) == jitslab.SlabCache.numba_type(node)
        1.5
        True
        """
        dtype = plain(dtype)
        own, declared = check_dtype(dtype), declared_class(dtype)
        filling = layout.NO_INIT if template_of(init, own, declared) is None else layout.TEMPLATE
        has_nodes = len(numa.resolve(policy, strict, nodes).nodes) > 1
        return cache_type(own, record_stride(own, bool(colouring)), filling, has_nodes)

    # --- One record ---

    def alloc(self, /, **fields: Any) -> int:
        """
        Take a slot; its record is live until it is freed.

        Parameters
        ----------
        **fields
            Values of fields that the record is born with, checked and converted as by a guard before a slot is taken.

        Returns
        -------
        int
            The handle: positive, below 2**63.

        Raises
        ------
        CacheFullError
            If `capacity` records are live, or the system gives no more memory; `RetiredError` if too many slots are retired.
        FaultError
            If compiled code used a refused handle since the last report; nothing is allocated.
        FieldNameError, FieldTypeError, FieldRangeError, ArrayError
            If there is no such field, or it cannot take its value, as of `SlabObjectGuard`; nothing is allocated.
        ClosedError
            After `close`.

        Notes
        -----
        A number takes some 10 ns; what is no number, some µs.

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> node = np.dtype([("value", "f8"), ("next", "i8")])
        >>> with jitslab.SlabCache("doc-alloc", node, capacity=10, init="zero") as cache:
        ...     head = cache.alloc(value=1.5)
        ...     head = cache.alloc(value=2.5, next=head)
        ...     cache[cache[head]["next"]]["value"].item()
        1.5
        """
        return self._alloc_with(**fields) if fields else self._alloc_slow()

    def free(self, handle: int) -> bool:
        """
        Free a record.

        Parameters
        ----------
        handle : int
            From `alloc`, of a record that is live.

        Returns
        -------
        bool
            True; compiled code, which does not raise, answers False where the handle is refused.

        Raises
        ------
        HandleError
            NullHandleError, StaleHandleError or ForeignHandleError; nothing was changed.
        HandleTypeError
            If it is no integer.
        ClosedError
            After `close`.
        """
        return self._free_slow(handle)

    def _alloc_slow(self) -> int:
        """`alloc` if the C method did not succeed, or there is none."""
        self._need_told()
        handle = batch.alloc_one(self._address)
        if handle == NULL:
            self._raise_full(1)
        return handle

    def _alloc_with(self, /, *args: Any, **fields: Any) -> int:
        """`alloc` with fields if the C method did not succeed, or there is none."""
        self._need_no_places("alloc", args)
        numbers = as_numbers(fields, self._dtype) if has_births(self) else None
        if numbers is not None:
            return SlabCache.alloc(self, **numbers)  # by C now
        values = self._packed(fields)
        handle = SlabCache.alloc(self) if fields else self._alloc_slow()
        self._be_born(handle, values)
        return handle

    def _need_no_places(self, what: str, args: tuple[Any, ...]) -> None:
        """Raise for arguments that are given by their places."""
        if args:
            raise TypeError(
                f"SlabCache.{what}() takes fields by name, as in value=1.0, and no other arguments ({len(args)} given)"
            )

    def _packed(self, fields: dict[str, Any], shape: tuple[int, ...] = ()) -> list[tuple[int, int, Any]]:
        """Return values as the fields hold them, of one record or of many: offset, bytes in a record, and array of each."""
        self._need_open()
        names, of = self._dtype.names or (), self._dtype.fields
        assert of is not None
        packed = []
        for name, value in fields.items():
            if name not in names:
                raise FieldNameError(f"the record has no field {name!r}", name, names)
            dtype, offset = of[name][:2]
            packed.append((int(offset), dtype.itemsize, pack(value, dtype, name, shape)))  # runs others' Python
        if guard_class.IN_C and not has_births(self):
            set_births(self, guard_class.births_of(self._dtype))  # by C from now on, where it can
        return packed

    def _be_born(self, handle: int, values: list[tuple[int, int, Any]]) -> None:
        """Write the values of fields into a record; if it is gone already, by another thread, nothing is written."""
        for offset, size, data in values:
            guard_calls.write_one(self._address, handle, offset, size, id(data))

    def _free_slow(self, handle: Any) -> bool:
        """`free` if the C method did not succeed, or there is none."""
        self._need_open()
        if is_many(handle):
            raise HandleTypeError(f"free takes one handle, got {type(handle).__name__}; free_many(handles) takes many")
        number = as_integer(handle)
        if not 0 <= number < 1 << 63 or not batch.free_one(self._address, number):
            raise self._refusal(number)
        return True

    def __getitem__(self, handle: Any) -> Any:
        """
        Return the record of a handle: a `numpy.void` that reads and writes the record in place; fields are attributes, too.

        It does not keep the record alive: after `free` it shows whatever the slot holds next.  Of a list or an array of handles,
        ``cache[handles]``, copies of the records, as `gather`; and ``cache[handles, "field"]`` copies of that field.
        """
        try:
            slot = handle & SLOT_MASK
            if self._generations[slot] == handle >> 31 | 1:  # `_slot`: a call is 30 ns
                return self._views[slot]
        except (TypeError, AttributeError, OverflowError, ValueError, IndexError):
            pass
        try:
            slot = self._slot(handle)
        except HandleTypeError:
            if not is_many(handle) and not is_of_field(handle):
                raise
        else:
            return self._views[slot]
        return self._read_many(handle)

    def _read_many(self, key: Any) -> Any:
        """``cache[key]`` of handles, with a field's name or without."""
        handles, column = key, self._records
        if is_of_field(key):
            handles, column = key[0], self._records[self._field_name(key[1])]
        return column[self.slots(handles) if is_many(handles) else self._slot(handles)]

    def _field_name(self, name: Any) -> str:
        """Return the name of a field, or raise."""
        names = self._dtype.names or ()
        if not isinstance(name, str) or name not in names:
            raise FieldNameError(f"the records of cache {self._name!r} have no field {shown(name)}", str(name), names)
        return name

    def _write_many(self, key: Any, value: Any) -> None:
        """``cache[key] = value`` of handles, with a field's name or without."""
        handles, column, name = key, self._records, ""
        if is_of_field(key):
            handles, name = key[0], self._field_name(key[1])
            column = self._records[name]
        dtype = self._dtype[name] if name else self._dtype
        shape = as_handles(handles).shape if is_many(handles) else ()
        data = pack(value, dtype, name, shape)  # first: it may run code of the user's
        column[self.slots(handles) if is_many(handles) else self._slot(handles)] = data

    def __setitem__(self, handle: Any, value: Any) -> None:
        """
        Assign a whole record: a tuple or a `numpy.void`.

        To a list or an array of handles, ``cache[handles] = values``: one record for each or one for all; and
        ``cache[handles, "field"] = values``, broadcast.  Values are checked as those of guards are; if one is refused, nothing
        is written.  Of equal handles the last one counts.
        """
        self._need_opened()
        if type(handle) is not int and (is_many(handle) or is_of_field(handle)):
            self._need_told()
            self._write_many(handle, value)
            return
        record = np.zeros((), self._dtype)
        record[()] = value  # first: it may run code of the user's, which may free the record
        self._records[self._slot(handle)] = record

    def __contains__(self, handle: object) -> bool:
        """Whether `handle` is that of a live record; False also for an object that is no handle.  Of many ask `is_live`."""
        try:
            if self._generations[handle & SLOT_MASK] == handle >> 31 | 1:  # type: ignore[operator]  # others than integers are answered below
                return True
        except (TypeError, AttributeError, OverflowError, ValueError, IndexError):
            self._need_opened()
        self._need_open()
        try:
            number = as_integer(handle)
        except HandleTypeError:
            if is_many(handle):
                raise HandleTypeError(
                    f"`in` takes one handle, got {type(handle).__name__}; is_live(handles) takes many"
                ) from None
            return False
        return number is not handle and number in self

    def record(self, handle: int) -> Any:
        """Return ``cache[handle]``; compiled code uses this name if iterations of a `prange` share a record."""
        return self[handle]

    @overload
    def is_live(self, handle: int) -> bool: ...

    @overload
    def is_live(self, handle: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.bool_]: ...

    def is_live(self, handle: Any) -> Any:
        """
        Return ``handle in cache``, or of a list or an array of handles an array of bool; compiled code uses this in a `prange`.

        Raises
        ------
        HandleTypeError
            If it is no integer, nor an array of some.

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> with jitslab.SlabCache("doc-is-live", np.dtype([("x", "f8")]), capacity=10) as cache:
        ...     handles = cache.alloc_many(3)
        ...     cache.free(handles[1])
        ...     cache.is_live(handles), cache.is_live(handles[0])
        True
        (array([ True, False,  True]), True)
        """
        if type(handle) is int:
            return handle in self
        self._need_open()
        if not is_many(handle):
            return as_integer(handle) in self
        array = as_handles(handle)
        refused = np.zeros(array.size, bool)
        scan.find_refused(self._address, array.ctypes.data, array.size, refused.ctypes.data)
        return ~refused

    def at_slot(self, slot: int) -> Any:
        """Return the record at a slot number below `slot_limit`, live or not."""
        self._need_open()
        return self._views[: self.slot_limit][slot]

    def new(self, /, **fields: Any) -> tuple[int, Any]:
        """Take a slot, as `alloc`: its handle and its record."""
        return self._new_slow(**fields)

    def _new_slow(self, /, *args: Any, **fields: Any) -> tuple[int, Any]:
        """`new` if the C method did not succeed, or there is none."""
        self._need_no_places("new", args)
        handle = self._alloc_with(**fields) if fields else self._alloc_slow()
        return handle, self._views[handle & SLOT_MASK]

    def object_at(self, handle: int) -> SlabObject:
        """
        Describe the slot of a handle, live or freed.

        Raises
        ------
        ForeignHandleError
            If the slot was never in use.
        """
        self._need_open()
        number = as_integer(handle)
        slot = number & SLOT_MASK
        index = slot >> self._memory.geometry.shift
        if not 0 < number < 1 << 63 or not self._is_made(index):
            raise self._refusal(number)
        address = int(self._records.ctypes.data) + slot * self._memory.geometry.stride
        return SlabObject(number, slot, self._page(index), address, number in self)

    # --- Guards ---

    def allocate(self, /, **fields: Any) -> SlabObjectGuard[R]:
        """
        Take a slot, and return the guard that owns its record: leaving its `with` block frees it.

        Parameters
        ----------
        **fields
            Values of fields that the record is born with, as of `alloc`.

        Returns
        -------
        SlabObjectGuard
            With the fields as attributes.

        Raises
        ------
        CacheFullError, FaultError, FieldNameError, FieldTypeError, FieldRangeError, ArrayError, ClosedError
            As `alloc`.

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> with jitslab.SlabCache("doc-allocate", np.dtype([("x", "f8"), ("y", "f8")]), capacity=10) as cache:
        ...     with cache.allocate(x=2.5) as it:
        ...         it.y = 2 * it.x
        ...         len(cache), it.y
        ...     len(cache)
        (1, 5.0)
        0
        """
        if guard_class.IN_C:
            self._need_open()
            self._guards()
            return SlabCache.allocate(self, **fields)  # in C from now on
        return self._allocate_with(**fields) if fields else self._allocate_slow()

    def _allocate_slow(self) -> SlabObjectGuard[R]:
        """`allocate` if the C method did not succeed, or there is none."""
        self._need_told()
        is_first = guard_class_of(self) is None
        cls = self._guards()
        if guard_class.IN_C and is_first:
            return SlabCache.allocate(self)
        guard = None if guard_class.IN_C else new_guard(cls, self)
        if guard is None or not fill(guard, 1):
            self._raise_full(1)
        return guard  # type: ignore[no-any-return]  # of a class that was made for the dtype

    def _allocate_with(self, /, *args: Any, **fields: Any) -> SlabObjectGuard[R]:
        """`allocate` with fields, likewise."""
        self._need_no_places("allocate", args)
        numbers = as_numbers(fields, self._dtype) if has_births(self) else None
        if numbers is not None:
            return SlabCache.allocate(self, **numbers)  # by C now
        values = self._packed(fields)
        guard = SlabCache.allocate(self)
        self._be_born(guard._handle, values)
        return guard

    def _guards(self) -> Any:
        """Return the class of this cache's guards, made for the dtype when it is first wanted."""
        if guard_class_of(self) is None:
            if guard_class.IN_C:
                prepare_guards()
            set_guard_class(self, guard_class.guard_class(self._dtype, self._declared))
        return guard_class_of(self)

    def adopt(self, handle: int) -> SlabObjectGuard[R]:
        """
        Return a guard that owns the record of a handle from now on.

        Parameters
        ----------
        handle : int
            Of a live record that nobody else will free: from `alloc`, from compiled code, from a guard's `release`.

        Raises
        ------
        HandleError
            If it is refused.

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> with jitslab.SlabCache("doc-adopt", np.dtype([("x", "f8")]), capacity=10) as cache:
        ...     h = cache.alloc()
        ...     with cache.adopt(h) as it:
        ...         it.x = 1.0
        ...     h in cache
        False
        """
        return self._adopt_slow(handle)

    def _adopt_slow(self, handle: int) -> SlabObjectGuard[R]:
        """`adopt` if the C method did not succeed, or there is none."""
        self._slot(handle)
        cls = self._guards()
        if guard_class.IN_C:
            return SlabCache.adopt(self, as_integer(handle))  # a record that was freed meanwhile is refused above
        return guard_class.adopt(cls, self, as_integer(handle))  # type: ignore[no-any-return]  # likewise

    def allocate_many(self, n: int, /, **fields: Any) -> SlabBatchGuard[R]:
        """
        Take n slots, all or none, and return one guard that owns them: fields are arrays of n.

        Parameters
        ----------
        n : int
            How many, 0 or more.
        **fields
            Values of fields that the records are born with, as of `alloc_many`.

        Raises
        ------
        CacheFullError, CapacityError, FaultError, FieldNameError, FieldTypeError, FieldRangeError, ArrayError, ClosedError
            As `alloc_many`; nothing is allocated.

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> with jitslab.SlabCache("doc-batch", np.dtype([("x", "f8"), ("n", "u1")]), capacity=10) as cache:
        ...     with cache.allocate_many(3, x=[1.0, 2.0, 4.0]) as batch:
        ...         batch.n = 7
        ...         batch.x.sum().item(), batch.n.tolist()
        ...     len(cache)
        (7.0, [7, 7, 7])
        0
        """
        n = self._requested(n)
        values = self._packed(fields, (n,)) if fields else []
        try:
            guard = new_guard(guard_class.batch_class(self._dtype, self._declared), self, n)
        except MemoryError:
            self._raise_full(n)
        if not fill(guard, n):
            self._raise_full(n)
        self._all_be_born(guard._owned() if values else None, values)
        return guard  # type: ignore[no-any-return]  # likewise

    # --- Many records ---

    @overload
    def alloc_many(self, n: int, /, out: Handles | None = None, **fields: Any) -> Handles: ...
    @overload
    def alloc_many(self, n: Handles, /, **fields: Any) -> int: ...
    def alloc_many(self, n: int | Handles, /, out: Handles | None = None, **fields: Any) -> Handles | int:
        """
        Take n slots, all or none.

        Parameters
        ----------
        n : int, or ndarray of int64
            How many, 0 or more; or `out` alone, as compiled code may give it, for as many as it has room for.
        out : ndarray of int64, shape (n,), optional
            Array for the handles; unchanged if there is no room.
        **fields
            Values of fields that the records are born with: one for all, or n of them, checked and converted as by a batch
            guard before any slot is taken.  A field named ``out`` is written afterwards.

        Returns
        -------
        ndarray of int64, shape (n,), or int
            The handles; `out` if it was given; how many, if it was given alone.

        Raises
        ------
        CacheFullError
            If there is no room for n; nothing is allocated.
        ArrayError
            If `out` is not a writable, contiguous int64 array of shape (n,).
        CapacityError
            If n is negative.
        FieldNameError, FieldTypeError, FieldRangeError, ArrayError
            As `alloc`; nothing is allocated.

        Notes
        -----
        About 1 ns a record, one hold of the lock for 4,096; without the GIL.

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> with jitslab.SlabCache("doc-many", np.dtype([("x", "f8")]), capacity=1000) as cache:
        ...     handles = cache.alloc_many(1000)
        ...     cache.scatter(handles, np.arange(1000.0).astype(cache.dtype))
        ...     total = cache.gather(handles)["x"].sum()
        ...     cache.free_many(handles)
        1000
        >>> float(total)
        499500.0

        >>> with jitslab.SlabCache("doc-born", np.dtype([("x", "f8"), ("n", "u1")]), capacity=10) as cache:
        ...     cache.gather(cache.alloc_many(3, x=[1.0, 2.0, 4.0], n=7)).tolist()
        [(1.0, 7), (2.0, 7), (4.0, 7)]
        """
        if out is None and isinstance(n, np.ndarray) and n.ndim > 0:
            return len(self.alloc_many(len(n), n, **fields))
        n = self._requested(n)
        if out is None:
            try:
                out = np.empty(n, np.int64)
            except MemoryError:
                self._raise_full(n)
        else:
            check_out(out, np.dtype(np.int64), n)
        values = self._packed(fields, (n,)) if fields else []
        if n > 0 and batch.alloc_many(self._address, out.ctypes.data, n) != n:
            self._raise_full(n)
        self._all_be_born(out, values)
        return out

    def _all_be_born(self, handles: Any, values: list[tuple[int, int, Any]]) -> None:
        """Write the values of fields into many records."""
        for offset, size, data in values:
            guard_calls.write_many(self._address, id(handles), handles.size, offset, size, id(data))

    def _requested(self, n: Any) -> int:
        """Return how many slots are wanted, as an int; so many may be had."""
        self._need_told()
        number = as_count(n, "n")
        if number > self._memory.geometry.slots:
            self._raise_full(number)
        return number

    def free_many(self, handles: npt.ArrayLike) -> int:
        """
        Free many records: every valid one; then the others are reported.

        Returns
        -------
        int
            How many: all of them.

        Raises
        ------
        HandleError
            If some were refused, or stood there twice; `positions` has their places.  All others are freed.
        HandleTypeError
            If the array is not one of integers.
        """
        self._need_open()
        array = as_handles(handles)
        refused = np.zeros(array.size, np.uint8)
        freed = batch.free_many(self._address, array.ctypes.data, array.size, refused.ctypes.data)
        if freed != array.size:
            self._raise_refused(handles, refused, f"; the other {freed} are freed")
        return int(freed)

    def slots(self, handles: npt.ArrayLike) -> Handles:
        """
        Return the slot numbers of live records: indices into `records`.

        Raises
        ------
        HandleError
            If one is refused.
        FaultError
            If compiled code used a refused handle since the last report, as all that hands out or takes many records does.
        """
        self._need_told()
        return self._live_slots(handles)

    def _live_slots(self, handles: npt.ArrayLike) -> Handles:
        """`slots`, with faults or without."""
        self._need_open()
        array = as_handles(handles)
        refused = np.zeros(array.size, np.uint8)
        if scan.find_refused(self._address, array.ctypes.data, array.size, refused.ctypes.data):
            self._raise_refused(handles, refused, "")
        return array & SLOT_MASK

    def gather(self, handles: npt.ArrayLike, out: Records | None = None) -> Records:
        """
        Copy records out.

        Parameters
        ----------
        handles : array_like of int, shape (n,)
            Of live records.
        out : ndarray of the cache's dtype, shape (n,), optional
            Where the records go.

        Returns
        -------
        ndarray of the cache's dtype, shape (n,)
        """
        slots = self.slots(handles)
        if out is None:
            return self._records[slots]
        check_out(out, self._dtype, slots.size)
        out[:] = self._records[slots]
        return out

    def scatter(self, handles: npt.ArrayLike, values: npt.ArrayLike) -> None:
        """
        Copy records in: ``values[i]`` to the record of ``handles[i]``; of equal handles the last one counts.

        Raises
        ------
        ArrayError
            If `values` are not records of the cache's dtype, one for each handle or one for all.
        """
        array = np.asarray(values)  # first: it may run code of the user's
        slots = self.slots(handles)
        if array.dtype != self._dtype or array.shape not in ((), (1,), slots.shape):
            raise ArrayError(f"values must be {slots.size} records of {self._dtype}, got {array.dtype} of shape {array.shape}")
        self._records[slots] = array

    def extend(self, values: Any) -> Handles:
        """
        Take a slot for each of many records, all or none, and write them.

        Parameters
        ----------
        values : ndarray of the cache's dtype, shape (n,), list of records, or mapping of str to array_like
            Whole records; or columns, such as a dict's or a DataFrame's: arrays of n, or single values for all.  A field
            without a column has what it has in a new record.  Values are checked as those of guards are.

        Returns
        -------
        ndarray of int64, shape (n,)
            The handles.

        Raises
        ------
        CacheFullError, FaultError, ClosedError
            As `alloc_many`; nothing is allocated.
        ArrayError
            If the array is not of one dimension, the columns are not of one length, or there is none.
        FieldNameError, FieldTypeError, FieldRangeError, FieldTextError
            If a column is no field, or a value does not fit; nothing is allocated.

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> point = np.dtype([("x", "f8"), ("n", "u1")])
        >>> with jitslab.SlabCache("doc-extend", point, capacity=10) as cache:
        ...     first = cache.extend(np.array([(1.0, 2), (3.0, 4)], point))
        ...     second = cache.extend({"x": [5.0, 6.0], "n": 7})
        ...     cache[first, "x"].tolist(), cache[second].tolist()
        ([1.0, 3.0], [(5.0, 7), (6.0, 7)])
        """
        self._need_told()
        names, columns, n = self._columns_of(values)
        handles = self.alloc_many(n)
        try:
            slots = handles & SLOT_MASK
            for name, column in zip(names, columns, strict=True):
                (self._records[name] if name else self._records)[slots] = column
        except BaseException:  # Ctrl-C, or no memory
            self.free_many(handles)
            raise
        return handles

    def _columns_of(self, values: Any) -> tuple[list[str], list[Any], int]:
        """Return the names of columns, "" for that of whole records, the columns, checked, and their length."""
        if not hasattr(values, "keys"):
            if isinstance(values, list):
                return [""], [pack(values, self._dtype, "", (len(values),))], len(values)
            array = np.asarray(values)
            if array.ndim != 1:
                raise ArrayError(f"extend takes a 1-d array of records, got shape {array.shape}")
            return [""], [array if array.dtype == self._dtype else pack(array, self._dtype, "", array.shape)], array.size
        names = [self._field_name(name) for name in values.keys()]  # noqa: SIM118  # a DataFrame has only that
        given = [values[name] for name in names]
        lengths = {name: len(it) for name, it in zip(names, given, strict=True) if is_many(it) or isinstance(it, (tuple, range))}
        if len(set(lengths.values())) != 1:
            raise ArrayError(f"extend takes columns of one length, at least one, got {lengths or 'none'}")
        n = next(iter(lengths.values()))
        return names, [pack(it, self._dtype[name], name, (n,)) for name, it in zip(names, given, strict=True)], n

    def live(self) -> Handles:
        """
        Return the handles of all live records, by slot.

        Raises
        ------
        FaultError
            If compiled code used a refused handle since the last report.

        Notes
        -----
        Scans 4 bytes a slot.  Records that are allocated or freed meanwhile may be in it or not.
        """
        self._need_told()
        out = np.empty(len(self), np.int64)
        while (n := scan.live_handles(self._address, out.ctypes.data, out.size)) > out.size:
            out = np.empty(n, np.int64)
        return out[:n]

    def _first_live(self, n: int) -> tuple[int, Handles]:
        """Return how many records are live, and the handles of the first n of them, by slot: one scan, no more memory."""
        self._need_open()
        out = np.empty(as_count(n, "n"), np.int64)
        count = int(scan.live_handles(self._address, out.ctypes.data, out.size))
        return count, out[:count]

    def __iter__(self) -> Iterator[int]:
        """
        Iterate over the handles of the records that are live when the loop starts, by slot.

        Each is visited once, none that is born meanwhile is.  One that was freed before its turn is passed over; if its
        slot has another record by then, that one is visited.  Loops in compiled code do so, too.
        """
        return self._visit((self.live() & SLOT_MASK).tolist())

    def _visit(self, slots: list[int]) -> Iterator[int]:
        """Iterate over the handles of slots that hold a live record when their turn comes."""
        for slot in slots:
            word = self._generations[slot]
            if word & 1:
                yield word >> 1 << 32 | slot
            else:
                self._need_open()

    def items(self) -> Iterator[tuple[int, Any]]:
        """Iterate over (handle, record), as over the handles."""
        return ((handle, self._views[handle & SLOT_MASK]) for handle in self)

    def __len__(self) -> int:
        """Return the number of live records: exact while no other thread allocates or frees."""
        self._need_open()
        return count(self._address)

    def clear(self) -> int:
        """Free every record, with no other thread using the cache; returns how many.  FaultError as `live`: none is freed."""
        self._need_told()
        return batch.clear(self._address)

    def retain(self, keep: npt.ArrayLike) -> int:
        """
        Free every record but those to keep.

        Parameters
        ----------
        keep : array_like of bool or int
            A mask beside `live()`, or the handles to keep.

        Returns
        -------
        int
            How many were freed.

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> with jitslab.SlabCache("doc-retain", np.dtype([("x", "f8")]), capacity=10) as cache:
        ...     cache.scatter(cache.alloc_many(10), np.arange(10.0).astype(cache.dtype))
        ...     cache.retain(cache.gather(cache.live())["x"] > 6.5), len(cache)
        (7, 3)
        """
        live = self.live()
        mask = np.asarray(keep)
        if mask.dtype == bool:
            if mask.shape != live.shape:
                raise ArrayError(f"the mask must have shape {live.shape}, as live() has, got {mask.shape}")
        else:
            mask = np.isin(live & SLOT_MASK, self.slots(keep))
        gone = live[~mask]
        self.free_many(gone)
        return int(gone.size)

    def reserve(self, n: int) -> None:
        """
        Make sure that this thread's next n allocs cannot fail: there is room, and the system has granted the memory.

        Raises
        ------
        CacheFullError
            If there is no room, or no memory.
        """
        self._need_open()
        n = as_count(n, "n")
        answer = batch.make_ready(self._address, n)
        if answer != 0:
            self._raise_full(n)

    # --- The cache as a whole ---

    @property
    def name(self) -> str:
        """Name, as given."""
        self._need_opened()
        return self._name

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of a record, as given."""
        self._need_opened()
        return self._dtype

    @property
    def capacity(self) -> int:
        """Records that one thread can always have."""
        self._need_opened()
        return self._memory.geometry.capacity

    @property
    def stride(self) -> int:
        """Bytes from slot to slot: the itemsize, aligned, and coloured if it would alias."""
        self._need_opened()
        return self._memory.geometry.stride

    @property
    def slot_limit(self) -> int:
        """Slots in use so far: every slot number is below; grows as the cache does."""
        self._need_opened()
        return self._slabs()[-1].stop << self._memory.geometry.shift

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        self._need_opened()
        return self._c[CLOSED] != 0

    @property
    def records(self) -> Records:
        """
        All slots below `slot_limit`, live or not, as one array of the cache's dtype.

        Index it with `slots(handles)`, or pass it to a kernel.  The contents of free slots are undefined; writing there does no
        harm.  The array does not grow: ask again after the cache has grown.  FaultError as `live`.
        """
        self._need_told()
        return self._records[: self.slot_limit]

    @property
    def pages(self) -> SlabPages:
        """The slabs made so far."""
        self._need_open()
        return SlabPages(self._slabs(), self._page)

    def _slabs(self) -> list[range]:
        """Return the numbers of the slabs made so far, for each node that has some; [range(0)] if none has."""
        firsts, ends = self._memory.control["geometry"]["first_slab"].tolist(), self._memory.state["n_slabs"].tolist()
        made = [range(first, n) for first, n in zip(firsts, ends, strict=True)]
        return [slabs for slabs in made if slabs] or [range(0)]

    def _is_made(self, i: int) -> bool:
        """Whether slab i was made."""
        return any(i in slabs for slabs in self._slabs())

    def _page(self, i: int) -> SlabPage:
        """Describe slab i."""
        self._need_open()
        slots = 1 << self._memory.geometry.shift
        generations = np.frombuffer(self._generations, np.uint32, slots, 4 * slots * i)
        row = self._row(i)
        state = SlabState.FREE if row["state"] == layout.RELEASING else SlabState(int(row["state"]))
        live = (generations & 1).astype(bool)
        node = self._memory.placement.nodes[i * slots >> self._memory.geometry.node_shift]
        return SlabPage(i, state, int(live.sum()), slots, int(row["colour"]), node, live)

    def _row(self, i: int) -> Any:
        """Row of slab i."""
        return self._memory.rows(i, i + 1)[0]

    def _node_states(self) -> list[int]:
        """Return the addresses of the CONTROL rows of all nodes."""
        return [self._address + k * layout.NODE_BYTES for k in range(self._memory.geometry.nodes)]

    @property
    def nodes(self) -> tuple[SlabNode, ...]:
        """The cache node by node: one node if its memory is on one, is interleaved, or the machine has no more."""
        self._need_open()
        field = self._memory.field
        return tuple(
            SlabNode(
                node,
                count_in_node(address),
                field("n_slabs", number) - field("first_slab", number),
                *(field(name, number) for name in ("n_empty", "refills", "flushes", "remote_frees", "migrations")),
            )
            for number, (node, address) in enumerate(zip(self._memory.placement.nodes, self._node_states(), strict=True))
        )

    def page_nodes(self) -> dict[int, dict[int, int]]:
        """
        Ask the system for the nodes of the records' pages.

        Returns
        -------
        dict of int to dict of int to int
            For each node of `nodes` the number of its records' pages with memory behind them, by the node they lie on; empty
            if the system does not tell.

        Notes
        -----
        move_pages(2): some 100 ns a page of the slabs made so far.

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> with jitslab.SlabCache("doc-where", np.dtype([("x", "f8")]), capacity=1000, init="zero") as cache:
        ...     handles = cache.alloc_many(1000)
        ...     where = cache.page_nodes()
        >>> len(where)
        1
        """
        self._need_open()
        answer: dict[int, dict[int, int]] = {node: {} for node in self._memory.placement.nodes}
        slab_bytes = self._memory.geometry.stride << self._memory.geometry.shift
        for slabs in self._slabs():
            start = int(self._records.ctypes.data) + slabs.start * slab_bytes
            found = addresses.nodes_of_pages(start // addresses.page_bytes * addresses.page_bytes, len(slabs) * slab_bytes)
            node = self._memory.placement.nodes[slabs.start << self._memory.geometry.shift >> self._memory.geometry.node_shift]
            for where, n in zip(*np.unique(found[found >= 0], return_counts=True), strict=True):
                answer[node][int(where)] = int(n)
        return answer

    @property
    def faults(self) -> int:
        """How often compiled code used a refused handle since the last report."""
        self._need_opened()
        return self._c[FAULTS]

    def raise_faults(self) -> None:
        """
        Raise if compiled code used a refused handle since the last report, and start a new one.

        Raises
        ------
        FaultError
            With the number of faults, the first handle, and the Python line that called its kernel, where that is known.
        """
        self._need_opened()
        if self._c[FAULTS] and (fault := joined(self._take_faults())) is not None:
            raise fault

    def check(self) -> None:
        """
        Recount everything from the generations, at rest.

        Raises
        ------
        LawError
            If a law of `jitslab.core.layout` is broken, naming it and the slab.
        BusyError
            If other threads are using the cache.
        FaultError
            As `raise_faults`.

        Notes
        -----
        O(slots), some 3 ns each.
        """
        self._need_told()
        self._need_rest("check")
        words = np.empty(SLOTS_AT_ONCE // 64, np.int64)
        for address in self._node_states():
            answer = check_laws(address, words.ctypes.data, words.size)
            if answer:
                self._need_rest("check")
                self._need_open()  # if the cache was closed meanwhile, its records are gone
                law, index = answer >> 32, (answer & SLOT_MASK) - 1
                where = f"in slab {index} " if index >= 0 else ""
                raise LawError(f"law L{law} is broken {where}of cache {self._name!r}: {LAWS.get(law, '')}", law, index)

    def recover(self) -> None:
        """
        Rebuild free bits, counts and lists from the generations, at rest.

        For a cache whose index was damaged; a record is live if its generation says so.

        Raises
        ------
        BusyError
            If other threads are using the cache.
        """
        self._need_open()
        self._need_rest("recover")
        for address in self._node_states():
            recover(address)

    def dangling(self, links: Mapping[str, SlabCache] | None = None) -> Records:
        """
        Find the links of live records that are neither NULL nor the handle of a live record of their cache, at rest.

        Links are the fields that `links_of` lists, at every depth.  One with this cache's name leads to this cache; others lead
        to caches of the same allocator or pool.

        Parameters
        ----------
        links : mapping of str to SlabCache, optional
            Caches that links lead to, by name; those that are not among them are looked for as above.

        Returns
        -------
        ndarray of records
            One for each such link, by slot: ``handle`` of the record, ``field`` as its names joined by dots, ``position`` of the
            value in the field, counted in C order over all its sub-arrays, and the ``value``.

        Raises
        ------
        UnknownNameError
            If a link's cache is not found.
        CacheTypeError
            If `links` has something else than caches.
        LayoutError
            If a link is no int64.
        BusyError
            If other threads are using the cache, or one that it links to.
        FaultError
            As `raise_faults`.

        Notes
        -----
        O(slots and links).

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> node = np.dtype([("value", "f8"), ("kids", jitslab.link("nodes"), (2,))])
        >>> with jitslab.SlabCache("nodes", node, capacity=10, init="zero") as nodes:
        ...     kid = nodes.alloc()
        ...     parent = nodes.alloc(kids=[jitslab.NULL, kid])
        ...     nodes.free(kid)
        ...     found = nodes.dangling()
        ...     len(found), found["field"][0].item(), found["position"][0].item()
        ...     (found["handle"][0], found["value"][0]) == (parent, kid)
        True
        (1, 'kids', 1)
        True
        """
        self._need_open()
        return reach.dangling(self, self._relatives(), links)

    def _relatives(self) -> Mapping[str, SlabCache]:
        """Return the caches of the same allocator or pool by name."""
        owner = None if self._family is None else self._family()
        return {} if owner is None else owner._by_name()

    @property
    def parked(self) -> int:
        """Free slots in the magazines of threads: up to 512 of each thread; a slab with one of them is not empty."""
        live, state = len(self), self._memory.state
        return max(int(state["used"].sum() - state["retired"].sum()) - live, 0)

    def flush(self) -> int:
        """
        Give the free slots in the calling thread's magazine home; returns how many.

        For a thread that is going to wait: no other thread can have these slots, and their slabs are kept from `shrink`.

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> with jitslab.SlabCache("doc-flush", np.dtype([("x", "f8")]), capacity=1000) as cache:
        ...     cache.free(cache.alloc())
        ...     cache.parked == cache.flush() > 0, cache.parked
        True
        (True, 0)
        """
        self._need_open()
        return flush_own(self._address)

    def shrink(self) -> int:
        """
        Give the memory of all empty slabs back to the system; returns how many slabs.

        The calling thread's magazine goes home first.  Those of other threads cannot be touched while these live: up to 512
        slots of each, `parked` in all, keep a slab each in memory, until the thread calls `flush` or ends.
        """
        self._need_open()
        flush_own(self._address)
        empty = self._memory.state["n_empty"].tolist()
        return sum(release(address, n) for address, n in zip(self._node_states(), empty, strict=True))

    def close(self) -> None:
        """
        Refuse everything from now on and give the memory back.

        Addresses stay mapped, and read as zeros, until the last array or record of the cache is gone: so an old pointer does no
        harm.  They stay for some time after that (README says how long), since compiled code may have arrays that keep nothing.
        Kernels that run meanwhile in other threads get NULL, and their frees are refused; for that the generations stay, too:
        4 bytes a slot.  A second `close` does nothing.

        Raises
        ------
        FaultError
            If compiled code used a refused handle before, and nobody was told; the cache is closed.  If an exception ends a
            `with` block, that gets a note instead, in its ``__notes__``.
        """
        super().close()

    def _end(self) -> FaultError | None:
        """Close; returns the faults that nobody was told of."""
        self._need_opened()
        faults = self._take_faults()  # before: a kernel that runs on has others, which are told when the cache is collected
        self._shut()
        return joined(faults)

    def _take_faults(self) -> list[FaultError]:
        """Return the faults that nobody was told of."""
        fault = fault_of(self._address, self._name) if self._c[FAULTS] else None
        return [] if fault is None else [fault]

    def __del__(self, is_finalizing: Any = sys.is_finalizing) -> None:
        """Warn of faults that nobody was told of."""
        words = getattr(self, "_c", None)  # None: it was never opened
        if not is_finalizing() and words is not None and words[FAULTS]:  # while it is, the names of this module are gone
            warn_of_lost(self._take_faults())

    def _shut(self) -> None:
        """Close."""
        self._memory.close()

    # --- Copies, pickles and files ---

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write the cache as a file, at rest; `jitslab.load` makes the same cache of it.

        Its handles stay what they are: live ones name the same records, stale ones are refused, links lead where they led.  A
        file that was there is replaced when the new one is whole and on the disk; whatever fails, it stays as it was.

        Parameters
        ----------
        path : str or os.PathLike
            Of a file, as it is: no ending is added.

        Raises
        ------
        ImagePathError
            If it is a directory or no file, or the system does not let it be written.
        ImageFullError
            If the disk, a quota or a limit of file sizes is full.
        LayoutError
            If the dtype means nothing in another process: a field is of a dtype that is not NumPy's own.
        BusyError
            If other threads are using the cache.
        FaultError
            As `raise_faults`; nothing is written.
        CopyError
            If it is a size class of an allocator.

        Notes
        -----
        The file has the slabs in use: the records of those with a live one, and 4 bytes a slot.  This takes some MiB of memory
        beside the cache.  Numbers lie in the byte order of the machine, and only such a machine loads them.

        Examples
        --------
        >>> import numpy as np, jitslab, os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "nodes")
        >>> node = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
        >>> with jitslab.SlabCache("nodes", node, capacity=100) as cache:
        ...     last = cache.alloc(value=2.0, next=jitslab.NULL)
        ...     first = cache.alloc(value=1.0, next=last)
        ...     cache.save(path)
        >>> with jitslab.load(path) as cache:
        ...     cache[cache[first]["next"]]["value"].item()
        2.0
        """
        facts = self._facts("save")
        name = None if self._declared is None else self._declared.__qualname__
        image.write_file(path, self._memory, facts, self._dtype, name)

    def _facts(self, what: str) -> image.Facts:
        """Return the facts of the cache's image, at rest."""
        self._need_told()
        self._need_own(what)
        self._need_rest(what)
        len(self)  # the index of a torn cache is rebuilt
        return image.facts_of(self._memory, self._name)

    def _need_own(self, what: str) -> None:
        """Raise if the memory of the cache is a part of something else."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:  # type: ignore[override]  # the base refuses
        """Return the image of the cache; from protocol 5 on generations and records can be buffers outside the pickle."""
        facts = self._facts("pickle")
        groups = image.as_buffers(image.groups_of(self._memory, facts), protocol)
        arguments = image.as_plain(facts), self._dtype, self._declared, groups
        return self._private_class()._from_image, arguments, getattr(self, "__dict__", None)

    def _private_class(self) -> type[SlabCache[R]]:
        """Return the class of a copy: what an allocator or a pool owns becomes a plain cache."""
        return SlabCache if self._is_owned else type(self)

    @classmethod
    def _from_image(cls, plain: Any, dtype: Any, declared: Any, groups: Any) -> Any:
        """Return a new cache from an image, whose numbers may be any."""
        where = "the pickle of a cache"
        own = image.checked_dtype(dtype, where)
        facts = image.facts_from(plain, own, where)
        declared = same_record(declared, own, f"{where} {facts.name!r}")
        prepare()
        memory = image.memory_for(facts, own, where)
        image.fill(memory, facts, groups, where)
        return cls._of(facts.name, own, declared, memory)

    @classmethod
    def _of(cls, name: str, dtype: np.dtype[Any], declared: Any, memory: NewCacheMemory) -> Any:
        """Return a new cache of some memory."""
        made = cls.__new__(cls)
        _made[next(_serials)] = made
        made._open(name, dtype, declared, memory)
        return made

    def __copy__(self) -> SlabCache[R]:
        """Return a cache with the same records under the same handles, and from then on with a life of its own."""
        return self._copied(getattr(self, "__dict__", None))

    def __deepcopy__(self, memo: Any) -> SlabCache[R]:
        """Return the same, also what a subclass adds."""
        return self._copied(copy.deepcopy(getattr(self, "__dict__", None), memo))

    def _copied(self, attributes: dict[str, Any] | None) -> SlabCache[R]:
        """Return a copy, with attributes of a subclass."""
        facts = self._facts("copy")
        memory = image.memory_for(facts, self._dtype, repr(self))
        image.fill(memory, facts, image.groups_of(self._memory, facts), repr(self))
        made: SlabCache[R] = self._private_class()._of(self._name, self._dtype, self._declared, memory)
        if attributes:
            vars(made).update(attributes)
        return made

    def __repr__(self) -> str:
        """Short, whatever the size."""
        if not hasattr(self, "_numba_type_"):
            return "<SlabCache: never opened>"
        faults = f", {shown_count(self._c[FAULTS])}" if self._c[FAULTS] else ""
        if self.closed:
            return f"<SlabCache {self._name!r}: closed{faults}>"
        what = f"{len(self)} records of {self._dtype.itemsize} bytes live in {len(self.pages)} slabs"
        return f"<SlabCache {self._name!r}: {what}{faults}>"

    # --- Refused ---

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: it would copy the whole address range."""
        raise CopyError(f"{self!r} is no array; use cache.records or cache.gather(handles)")

    # --- Checks ---

    def _closed_text(self) -> str:
        return f"cache {self._name!r} is closed"

    def _need_told(self) -> None:
        """Raise if the cache is closed, or has faults that nobody was told of."""
        self._need_open()
        if self._c[FAULTS]:
            self.raise_faults()

    def _need_rest(self, what: str) -> None:
        """Raise if other threads are using the cache."""
        for _ in range(REST_TRIES):
            if not any(is_active(address) for address in self._node_states()):
                return
            time.sleep(0.001)  # a thread that was joined may be in its last steps
        raise self._busy(what)

    def _busy(self, what: str) -> BusyError:
        """Say that other threads are using the cache."""
        return BusyError(f"{what} needs cache {self._name!r} at rest, and other threads are using it")

    def _slot(self, handle: Any) -> int:
        """Return the slot of a live record."""
        try:
            slot = handle & SLOT_MASK
            if self._generations[slot] == handle >> 31 | 1:
                return slot  # type: ignore[no-any-return]  # an integer
        except (TypeError, AttributeError, OverflowError, ValueError, IndexError):
            self._need_opened()
        self._need_open()
        number = as_integer(handle)
        if number in self:  # integers that `&` and `>>` do not take beside Python's: some of NumPy's, or with `__index__` alone
            return number & SLOT_MASK
        raise self._refusal(number)

    def _refusal(self, handle: int) -> HandleError:
        """Say why a handle is refused."""
        slot, cycle = handle & SLOT_MASK, handle >> 32
        if handle == NULL:
            return NullHandleError("the handle is NULL")
        if not 0 < handle < 1 << 63:
            return ForeignHandleError(f"{shown(handle)} is no handle: 1 .. 2**63 - 1")
        if not self._is_made(slot >> self._memory.geometry.shift):
            limit = self.slot_limit
            where = f"not among the {limit}" if slot >= limit else "between the nodes"
            return ForeignHandleError(f"slot {slot} of handle {handle:#x} is {where} of cache {self._name!r}")
        word = max(
            self._generations[slot], int(self._row(slot >> self._memory.geometry.shift)["min_generation"])
        )  # of a released slab: its last
        if cycle < self._memory.first_cycle or 2 * cycle + 1 > word:
            return ForeignHandleError(
                f"cache {self._name!r} never issued handle {handle:#x}: slot {slot} never had cycle {cycle}"
            )
        state = "is live again" if word & 1 else "is free"
        return StaleHandleError(f"slot {slot} of handle {handle:#x} {state} (handle cycle {cycle}, slot cycle {word >> 1})")

    def _raise_refused(self, handles: npt.ArrayLike, refused: npt.NDArray[np.uint8], suffix: str) -> NoReturn:
        """Raise for a batch with refused handles."""
        positions = np.flatnonzero(refused).tolist()
        given = handles if isinstance(handles, np.ndarray) else np.asarray(handles, object)  # as they are: some fit no int64
        first = self._refusal(as_integer(given[positions[0]]))
        where = ", ".join(map(str, positions[:8])) + (", ..." if len(positions) > 8 else "")
        text = f"{len(positions)} of {refused.size} handles refused, at {where}{suffix}; the first: {first}"
        raise type(first)(text, positions)

    def _raise_full(self, n: int) -> NoReturn:
        """Raise because n slots could not be had."""
        raise self._full(n)

    def _full(self, n: int) -> CacheFullError:
        """Say why n slots could not be had."""
        live, sizes, state = len(self), self._memory.geometry, self._memory.state
        if live + n > sizes.capacity:
            return CacheFullError(f"cache {self._name!r} has {live} of {sizes.capacity} records live, {n} more were asked for")
        used_up = state[state["n_slabs"] == self._memory.control["geometry"]["max_slabs"]]
        if not used_up.size:
            return CacheFullError(f"the system gives cache {self._name!r} no memory for {n} records of {sizes.stride} bytes")
        retired, slots, parked = int(used_up["retired"].sum()), sizes.max_slabs << sizes.shift, self.parked
        if retired and parked <= slots - sizes.capacity:
            return RetiredError(
                f"cache {self._name!r} is worn out: {retired} of its slots are retired, after 2**28 or more reuses each; "
                f"{live} records are live, {n} more were asked for"
            )
        return CacheFullError(
            f"cache {self._name!r} has {live} records live and {parked} free slots in magazines of threads, "
            f"{n} more were asked for"
        )


bind(CacheType, SlabCache, "SlabCache")

_made: weakref.WeakValueDictionary[int, SlabCache] = weakref.WeakValueDictionary()
_serials = itertools.count(1)


def open_caches() -> list[tuple[int, SlabCache]]:
    """Return every open cache of the process with its number, in the order they were made."""
    made = [(known.key, known()) for known in _made.valuerefs()]
    return [
        (serial, cache) for serial, cache in made if cache is not None and hasattr(cache, "_numba_type_") and not cache.closed
    ]


def close_caches(name: str) -> None:
    """Close the open caches of a name that no allocator owns; then raise their faults."""
    with names_lock():
        replaced = [cache for _, cache in open_caches() if cache._name == name and not cache._is_owned]
        fault = joined([fault for cache in replaced if (fault := cache._end()) is not None])
    if fault is not None:
        raise fault


@atexit.register
def warn_of_open_caches() -> None:
    """Warn, at the end of the process, of the faults of every cache that is still there."""
    for cache in list(_made.values()):
        cache.__del__()


def load(path: str | os.PathLike[str], dtype: type[R] | RecordLike | None = None) -> SlabCache[R]:
    """
    Make a cache from a file that `SlabCache.save` wrote: private to this process, with the same handles.

    Parameters
    ----------
    path : str or os.PathLike
        Of the file.
    dtype : numpy.dtype or class, optional
        What its records must be.  With a class that `jitslab.record` made, guards have its methods: a file has no class.

    Returns
    -------
    SlabCache
        With the name, the dtype, the capacity and the contents of new records as they were, and the policy "local".

    Raises
    ------
    ImagePathError
        If there is no such file, or it cannot be read.
    CorruptImageError
        If it is cut off, damaged, or no image of a cache.
    ImageVersionError
        If it has a newer format, or another byte order.
    LayoutError
        If its records are others than those of `dtype`.
    CacheFullError
        If the system has no memory for it.

    Notes
    -----
    The file may be a stranger's: all of it is checked, and nothing in it is run or imported.

    Examples
    --------
    >>> import numpy as np, jitslab, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "points")
    >>> point = np.dtype([("x", "f8"), ("y", "f8")])
    >>> with jitslab.SlabCache("points", point, capacity=64) as cache:
    ...     h = cache.alloc(x=1.0, y=2.0)
    ...     cache.save(path)
    >>> with jitslab.load(path, point) as cache:
    ...     cache.name, cache[h].item()
    ('points', (1.0, 2.0))
    """
    prepare()
    memory, facts, own, class_name = image.read_file(path)
    declared = None
    if dtype is not None:
        given = plain(dtype)
        wanted, declared = check_dtype(given), declared_class(given)
        if wanted != own:
            kind = "" if class_name is None else f" (class {class_name})"
            raise LayoutError(f"the file has records of {own}{kind}, not of {wanted}")
    made: SlabCache[R] = SlabCache._of(facts.name, own, declared, memory)
    return made


def same_record(declared: Any, dtype: np.dtype[Any], what: str) -> Any:
    """Return the declared class of an image, or None; raise if the class has other records by now."""
    cls = declared_class(declared)
    if cls is None and declared is not None:
        raise CorruptImageError(f"{what} has {shown(declared)} in the place of a class of records")
    if cls is not None and cls.dtype != dtype:
        raise LayoutError(f"{what} has records of {dtype}, and class {cls.__qualname__} declares {cls.dtype} by now")
    return cls


def is_of_field(key: Any) -> bool:
    """Whether a key is one of ``cache[handles, "field"]``."""
    return type(key) is tuple and len(key) == 2 and isinstance(key[1], str)


def counts_of(cache: SlabCache) -> tuple[int, int, int, int]:
    """Return the live records of a cache, its slots, its slabs, and the bytes of their records and generations."""
    slots = cache.slot_limit
    return len(cache), slots, len(cache.pages), slots * (cache.stride + 4)


@cached
def prepare() -> None:
    """Compile the entry points and give `SlabCache` its C methods, before the first cache."""
    for entry in NEEDED_WITHOUT_MEMORY:
        entry.compile()
    cache_calls.install(SlabCache)


@cached
def prepare_guards() -> None:
    """Give `SlabCache` the C methods that make guards, before the first guard."""
    guard_calls.install(SlabCache)
