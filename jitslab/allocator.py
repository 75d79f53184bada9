"""
`SlabAllocator`: raw memory by size, records by dtype, and dedicated caches by name.

It finds or makes the cache for a request; the cache does the work.
"""

from __future__ import annotations

import atexit
import inspect
import itertools
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._names import Names, check_name, names_lock
from ._validate import as_count, as_integer, check_dtype, dtype_identity
from .cache import CLOSED, SlabCache
from .core.layout import NULL
from .declare import plain, template_of
from .errors import ClosedError, ConflictError, FaultError, ForeignHandleError, LayoutError, OptionError, RecordTypeError, shown
from .links import link
from .machine import numa
from .machine.addresses import CAN_GROW
from .njit import cache as compiled
from .pool.pool import open_pool
from .ptr import SlabPtr, bind
from .reach import ByCache, collect, unreachable
from .sizes.classes import SizeClasses
from .views import LiveCache, LiveReport, make_report

CACHE_OPTIONS = {p.name: p.default for p in inspect.signature(SlabCache).parameters.values() if p.kind is p.KEYWORD_ONLY}
del CACHE_OPTIONS["replace"]  # names of caches that are made here are found, or refused
RECORD = type(np.dtype([("x", "u1")]))  # type of the dtypes of records
MOST_SEEN = 1000  # dtype objects that are remembered
SHOWN_FIELDS = 3  # of a dtype in a message, and in the name of a typed cache
SHOWN_HANDLES = 4  # handles that a report shows of each cache
CLOSED_SHARE = 8  # closed caches are dropped from the names when an eighth of them may be


def check_names(options: Mapping[str, Any]) -> None:
    """Raise for an option that no cache has."""
    for name in options:
        if name not in CACHE_OPTIONS:
            raise OptionError(f"there is no option {name!r}; the options of a cache: {', '.join(CACHE_OPTIONS)}")


OF_MEMORY = ("policy", "strict", "nodes", "keep_empty")  # options that raw memory has, too


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return options that every cache of an allocator can have."""
    check_names(options)
    if options.get("capacity") is not None:
        as_count(options["capacity"], "capacity", 1)
    numa.resolve(*((CACHE_OPTIONS | options)[name] for name in OF_MEMORY[:3]))
    init = options.get("init")
    if init is not None and not (isinstance(init, str) and init == "zero"):
        raise LayoutError(f"init is None or 'zero' for the caches of all dtypes, got {shown(init)}")
    return dict(options)


def with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """Return all options of a cache, with the defaults, in a form that can be compared."""
    given = CACHE_OPTIONS | options
    return {name: value if np.isscalar(value) or value is None else tuple(value) for name, value in given.items()}


def metadata_key(dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """Return the metadata, such as links, of a dtype and its fields: NumPy's equality of dtypes passes over it, ours does not."""
    inner = [dtype.base] if dtype.subdtype else [dtype[name] for name in dtype.names or ()]
    return dict(dtype.metadata or {}), *map(metadata_key, inner)


def is_same_type(a: np.dtype[Any], b: np.dtype[Any]) -> bool:
    """Whether records of both dtypes are of one type: equal for NumPy, with equal metadata."""
    return a is b or (a == b and metadata_key(a) == metadata_key(b))


class CacheOrigin(NamedTuple):
    """How a cache of an allocator was made."""

    declared: type | None  # the class that declares its records
    options: dict[str, Any]  # those given for this cache


class SeenDtype(NamedTuple):
    """A dtype object that was seen, and its cache; while its fields keep their names nothing needs to be compared."""

    dtype: np.dtype[Any]
    names: tuple[str, ...] | None
    cache: SlabCache


class SlabAllocator(SizeClasses):
    """
    Raw memory by size, records by dtype, and dedicated caches by name.

    Parameters
    ----------
    name : str
        For messages and reports.
    observe : bool, default False
        Count the sizes of raw memory, for `tune`.
    **options
        Of every cache of records that it makes, as those of `SlabCache`; `init` is None or "zero".  `policy`, `strict`,
        `nodes` and `keep_empty` are those of raw memory, too.

    Raises
    ------
    OptionError
        If there is no such option.
    CapacityError, LayoutError, NodeError
        If the name or an option is out of bounds.

    Notes
    -----
    A typed cache is made at the first use of its dtype.  Equal dtypes share one; NumPy's equality counts (names, formats,
    offsets, titles and size), and the metadata of the dtype and of its fields, so that one with links is another type.  A
    declared class has a cache of its own; its records are also known by their dtype.  An aligned dtype and a packed one that
    are equal have a cache each, as compiled code tells them apart; so has one of `numpy.record`.  Their records are of one type.

    Safe from any number of threads.  After `fork` the child has an allocator of its own.  In compiled code use raw memory by the
    allocator itself, records by ``allocator.typed(dtype)``, which is a `SlabCache`.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> point = np.dtype([("x", "f8"), ("y", "f8")])
    >>> with jitslab.SlabAllocator("doc") as allocator:
    ...     raw = allocator.allocate(100)  # bytes
    ...     allocator.free(raw, 100)
    ...     ptr = allocator.allocate_typed(point)  # a record of a dtype
    ...     ptr.record["x"] = 3.0
    ...     allocator.free_typed(ptr)
    ...     points = allocator.create_cache("points", point, capacity=1000)  # a cache for one purpose
    ...     allocator.caches
    True
    <caches: 'points'>
    """

    # Replaced by `__init__`: one that was never opened has none.
    _own: dict[SlabCache, CacheOrigin] = {}  # noqa: RUF012  # all caches of records
    _typed: dict[np.dtype[Any], list[SlabCache]] = {}  # noqa: RUF012  # those of a dtype: equal for NumPy, then by `metadata_key`
    _seen: dict[int, SeenDtype] = {}  # noqa: RUF012  # by the `id` of the dtype object

    def __init__(self, name: str, *, observe: bool = False, **options: Any) -> None:
        check_name("an allocator", name, {})
        checked = check_options(options)
        super().__init__(name, observe=observe, **{option: checked[option] for option in OF_MEMORY if option in checked})
        self._options = checked
        self._own = {}
        self._typed = {}
        self._seen = {}
        self._named: dict[str, SlabCache] = {}  # those that have a name
        self._creations = 0  # since closed ones were dropped from here
        self._names = Names("cache", self._find_named, self._list_named)
        _made[next(_serials)] = self

    # --- Records by dtype ---

    def allocate_typed(self, dtype: npt.DTypeLike) -> SlabPtr:
        """
        Take a record.

        Parameters
        ----------
        dtype : numpy.dtype, or a declared record class
            Its type.

        Returns
        -------
        SlabPtr
            Its handle, which knows its cache and dtype.

        Raises
        ------
        LayoutError
            If `dtype` cannot be that of a record.
        CacheFullError
            If there is no room or no memory.
        FaultError
            As `SlabCache.alloc`.
        ClosedError
            After `close`.

        Examples
        --------
        >>> import jitslab, numpy as np
        >>> point = np.dtype([("x", "f8"), ("y", "f8")])
        >>> with jitslab.SlabAllocator("doc-allocate-typed") as allocator:
        ...     ptr = allocator.allocate_typed(point)
        ...     ptr.record["x"] = 3.0
        ...     float(allocator.record(ptr)["x"])
        3.0
        """
        seen = self._seen.get(id(dtype))
        if seen is not None and seen.dtype is dtype and dtype.names is seen.names and not seen.cache._c[CLOSED]:
            return bind(seen.cache.alloc(), seen.cache)
        cache = self.typed(dtype)
        if type(dtype) is RECORD:
            if len(self._seen) >= MOST_SEEN:
                self._seen.clear()
            self._seen[id(dtype)] = SeenDtype(dtype, dtype.names, cache)
        return bind(cache.alloc(), cache)

    def free_typed(self, ptr: int, dtype: npt.DTypeLike | None = None) -> None:
        """
        Free a record.

        Parameters
        ----------
        ptr : SlabPtr or int
            From `allocate_typed`, of a record that is live.
        dtype : numpy.dtype, or a declared record class, optional
            Its type; needed for a plain int, such as one read back from a field.

        Raises
        ------
        RecordTypeError
            If the record is of another type, or a plain int comes without one; nothing was changed.
        HandleError
            NullHandleError, StaleHandleError or ForeignHandleError; nothing was changed.
        HandleTypeError
            If it is no integer.
        ClosedError
            If the cache or the allocator was closed.

        Examples
        --------
        >>> import jitslab, numpy as np
        >>> node = np.dtype([("value", "f8"), ("next", "i8")])
        >>> with jitslab.SlabAllocator("doc-free-typed") as allocator:
        ...     ptr = allocator.allocate_typed(node)
        ...     ptr.record["next"] = allocator.allocate_typed(node)
        ...     allocator.free_typed(ptr.record["next"], node)  # a plain int by now
        ...     allocator.free_typed(ptr)
        ...     bool(allocator.report())
        False
        """
        if dtype is None and isinstance(ptr, SlabPtr) and ptr._cache in self._own:
            ptr._cache.free(ptr)
        else:
            self._cache_of(ptr, dtype).free(ptr)

    def allocate_object(self, dtype: npt.DTypeLike, /, **fields: Any) -> Any:
        """
        Take a record with a guard, which frees it.

        Parameters
        ----------
        dtype : numpy.dtype, or a declared record class
            Its type.
        **fields
            Values of fields that the record is born with, as of `SlabCache.alloc`.

        Returns
        -------
        SlabObjectGuard
            Its owner: a context manager with the fields as attributes.

        Raises
        ------
        LayoutError, CacheFullError, FaultError, ClosedError
            As `allocate_typed`.
        FieldNameError, FieldTypeError, FieldRangeError, ArrayError
            As `SlabCache.alloc`; nothing is allocated.

        Examples
        --------
        >>> import jitslab, numpy as np
        >>> my_struct = np.dtype([("id", "i8"), ("data", "u1", 16)])
        >>> with jitslab.SlabAllocator("doc-object") as allocator:
        ...     with allocator.allocate_object(my_struct, id=42) as obj:  # freed on leaving the block, also by an exception
        ...         obj.data.fill(0)
        ...     bool(allocator.report())
        False
        """
        return self.typed(dtype).allocate(**fields)

    def record(self, ptr: int, dtype: npt.DTypeLike | None = None) -> Any:
        """
        Return the record of a handle, read and written in place; `ptr` and `dtype` as in `free_typed`.

        Raises
        ------
        RecordTypeError, HandleError, HandleTypeError, ClosedError
            As `free_typed`.
        """
        return self._cache_of(ptr, dtype)[ptr]

    def typed(self, dtype: npt.DTypeLike, **options: Any) -> SlabCache:
        """
        Return the cache of a dtype, made at the first call: for many records at once, and for compiled code.

        Parameters
        ----------
        dtype : numpy.dtype, or a declared record class
            Type of its records.
        **options
            Of the cache, as those of `SlabCache`; those of the allocator are the defaults.

        Raises
        ------
        LayoutError
            If `dtype` cannot be that of a record.
        ConflictError
            If the cache exists with other options.
        ClosedError
            After `close`.

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> point = np.dtype([("x", "f8"), ("y", "f8")])
        >>> with jitslab.SlabAllocator("doc-typed") as allocator:
        ...     points = allocator.typed(point, capacity=1000)
        ...     handles = points.alloc_many(10)
        ...     allocator.free_typed(handles[3], point)
        ...     len(allocator.typed(point))
        9
        """
        dtype = plain(dtype)
        of, declared = check_dtype(dtype), dtype if isinstance(dtype, type) else None
        cache = self._typed_now(of, declared)
        if cache is None:
            with names_lock():
                self._need_open()
                cache = self._typed_now(of, declared)  # another thread may have made it
                if cache is None:
                    return self._make_typed(of, declared, options)
        if options:
            self._check_same(cache, options)
        return cache

    def _typed_now(self, dtype: np.dtype[Any], declared: type | None, live: int = NULL) -> SlabCache | None:
        """Return the open cache of exactly a dtype; for a handle, the cache of an equal type where it is live, or any."""
        found = [
            cache
            for cache in self._typed.get(dtype, ())
            if metadata_key(cache._dtype) == metadata_key(dtype)
            and (declared is None or self._own[cache].declared is declared)
            and not cache._c[CLOSED]
        ]
        if live != NULL and (owner := next((cache for cache in found if live in cache), None)) is not None:
            return owner
        exact = [cache for cache in found if dtype_identity(cache._dtype) == dtype_identity(dtype)]
        return next(iter(exact if live == NULL else exact + found), None)

    def _make_typed(self, dtype: np.dtype[Any], declared: type | None, options: dict[str, Any]) -> SlabCache:
        """Make the cache of a type."""
        name = f"typed{fields_of(dtype)}" if declared is None else declared.__name__
        cache = self._make_cache(name, dtype if declared is None else declared, options)
        self._typed[dtype] = [*self._typed.get(dtype, ()), cache]
        return cache

    def _settled(self, options: dict[str, Any], cache: SlabCache) -> dict[str, Any]:
        """Return all options of a cache, in a form that can be compared."""
        given = self._options | options
        return with_defaults(given | {"init": template_of(given.get("init"), cache._dtype, cache._declared)})

    def _check_same(self, cache: SlabCache, options: dict[str, Any]) -> None:
        """Raise if a typed cache was made with other options."""
        check_names(options)
        made, asked = (self._settled(given, cache) for given in (self._own[cache].options, options))
        other = [name for name in options if made[name] != asked[name]]
        if other:
            raise ConflictError(f"cache {cache._name!r} exists with another {' and '.join(other)}")

    def _cache_of(self, ptr: Any, dtype: npt.DTypeLike | None) -> SlabCache:
        """Return the cache whose record a handle names, with its dtype or without."""
        self._need_open()
        dtype = plain(dtype)
        of, declared = None if dtype is None else check_dtype(dtype), dtype if isinstance(dtype, type) else None
        if isinstance(ptr, SlabPtr):
            cache = ptr._cache
            cache._need_open()
            made = self._own.get(cache)
            if made is None:
                raise ForeignHandleError(f"{ptr!r} is not of allocator {self._name!r}")
            if (of is not None and not is_same_type(of, cache._dtype)) or declared not in (None, made.declared):
                raise RecordTypeError(
                    f"{ptr!r} is a record {fields_of(cache._dtype)}, not {shown_type(of, declared, cache._dtype)}"
                )
            return cache
        number = as_integer(ptr)
        if of is None:
            raise RecordTypeError(f"{number:#x} is a plain integer: its dtype must be given, too")
        found = self._typed_now(of, declared, number)
        if found is None or number not in found:
            for cache in self._record_caches():
                if number in cache:
                    raise RecordTypeError(f"{number:#x} is of cache {cache.name!r}, not a typed {shown_type(of, declared)}")
            if found is None:
                raise RecordTypeError(f"allocator {self._name!r} has no typed records {shown_type(of, declared)}")
        return found

    # --- Dedicated caches, by name ---

    def create_cache(self, name: str, dtype: npt.DTypeLike, **options: Any) -> SlabCache:
        """
        Make a cache for one purpose, known by its name until it is closed.

        Parameters
        ----------
        name : str
            Printable, without '#' and without blanks around it.
        dtype : numpy.dtype, or a declared record class
            Type of its records.
        **options
            Of the cache, as those of `SlabCache`; those of the allocator are the defaults.

        Raises
        ------
        DuplicateNameError
            If an open cache of this allocator has that name.
        CapacityError
            If the name, or an option, is out of bounds.
        OptionError
            If there is no such option.
        LayoutError
            If `dtype` cannot be that of a record.
        ClosedError
            After `close`.

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> packet = np.dtype([("header", "u1", 20), ("payload", "u1", 1480)])
        >>> with jitslab.SlabAllocator("doc-create") as allocator:
        ...     packets = allocator.create_cache("packets", packet, init="zero")
        ...     allocator.caches["packets"] is packets
        True
        """
        with names_lock():
            self._need_open()
            check_name("a cache", name, self._names)
            cache = self._make_cache(name, dtype, options)
            self._named[name] = cache
            return cache

    def cache(self, name: str) -> SlabCache:
        """
        Return the dedicated cache of that name.

        Raises
        ------
        UnknownNameError
            If there is none; the near names are proposed.
        """
        return self.caches[name]

    @property
    def caches(self) -> Names[SlabCache]:
        """The open dedicated caches by name: a read-only mapping, live."""
        self._need_opened()
        return self._names

    def _find_named(self, name: str) -> SlabCache | None:
        """Return the open dedicated cache of that name, if there is one."""
        cache = self._named.get(name)
        return None if cache is None or cache.closed else cache

    def _list_named(self) -> dict[str, SlabCache]:
        """Return the open dedicated caches by name."""
        return {name: cache for name, cache in list(self._named.items()) if not cache.closed}

    # --- The allocator as a whole ---

    def _make_cache(self, name: str, dtype: Any, options: dict[str, Any]) -> SlabCache:
        """Make a cache of the options of the allocator and its own."""
        check_names(options)
        dtype = plain(dtype)
        cache = SlabCache(name, dtype, **self._options | options)
        cache._is_owned, cache._family = True, weakref.ref(self)
        self._creations += 1
        if self._creations * CLOSED_SHARE > len(self._own):
            self._forget_closed()
        self._own[cache] = CacheOrigin(dtype if isinstance(dtype, type) else None, options)
        return cache

    def _forget_closed(self) -> None:
        """Drop closed caches: as long as the allocator has them, their addresses stay reserved."""
        self._creations = 0
        self._own = {cache: made for cache, made in self._own.items() if not cache.closed}
        self._named = self._list_named()
        self._seen = {}
        typed = {dtype: [cache for cache in caches if not cache.closed] for dtype, caches in self._typed.items()}
        self._typed = {dtype: caches for dtype, caches in typed.items() if caches}

    def _record_caches(self) -> list[SlabCache]:
        """Return the open caches of records."""
        return [cache for cache in list(self._own) if not cache.closed]

    def _count_raw(self) -> list[LiveCache]:
        """Count live raw memory, class by class."""
        found = [
            live_in(self._name, cache, f"{cache.dtype.itemsize} bytes", self._bases[row]) for row, cache in self._open_caches()
        ]
        large = live_in(self._name, self._parts.large, "larger memory", int(self._sizes_row["large_base"]))
        return [*found, replace(large, bytes=int(self._sizes_row["large_bytes"]))]

    def report(self) -> LiveReport:
        """
        Count live records and raw memory: for each cache the number, the bytes, and the first few handles.

        Notes
        -----
        O(slots), some 0.1 ns each; exact while no other thread allocates or frees.
        """
        self._need_opened()
        return make_report(self._count_live())

    def _count_live(self) -> list[LiveCache]:
        """Count live records and raw memory, cache by cache."""
        return [live_in(self._name, cache) for cache in self._record_caches()] + self._count_raw()

    def raise_faults(self) -> None:
        """
        Raise if compiled code used a refused handle or ptr of any of its caches since the last report.

        Raises
        ------
        FaultError
            As `SlabCache.raise_faults`; of several caches, all of them.
        """
        super().raise_faults()

    @property
    def faults(self) -> int:
        """How often compiled code used a refused handle or ptr since the last report."""
        return super().faults + sum(cache.faults for cache in list(self._own))

    def _take_faults(self) -> list[FaultError]:
        """Return the faults that nobody was told of."""
        return super()._take_faults() + [fault for cache in list(self._own) for fault in cache._take_faults()]

    def check(self) -> None:
        """
        Recount every cache, at rest.

        Raises
        ------
        LawError, BusyError, FaultError
            As `SlabCache.check`.
        """
        super().check()
        for cache in self._record_caches():
            cache.check()

    def unreachable(self, roots: Any, links: Mapping[str, SlabCache] | None = None) -> ByCache[npt.NDArray[np.int64]]:
        """
        Return the live records that no path of links from some roots leads to, at rest.

        Links are the fields that `links_of` lists; they lead to the caches of this allocator by name.

        Parameters
        ----------
        roots : int, array_like of int, or mapping
            Handles of one cache; or of several, as ``{cache or name: handles}``.
        links : mapping of str to SlabCache, optional
            Caches that links lead to and that are not of this allocator.  Paths lead through their records, which are not
            reported.

        Returns
        -------
        ByCache
            A dict: for each cache of records, by its name, an array of handles, by slot.  Of typed caches with one name each
            has its number behind ``#``.  Its attribute `dangling` says how many links of reached records are dangling: these
            are passed over.

        Raises
        ------
        HandleError
            If a root is refused.
        HandleTypeError
            If it is no integer.
        RecordTypeError
            If roots are live in several caches, and nobody says which is meant.
        UnknownNameError
            If a root's cache, or a link's, is not found.
        CacheTypeError
            If `links` has something else than caches.
        LayoutError
            If a link is no int64.
        BusyError
            If other threads are using one of the caches.
        FaultError
            As `raise_faults`.

        Notes
        -----
        Needs two bits a slot.  Records of typed caches are reached by links and roots, as all others; raw memory has no links.

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> node = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
        >>> with jitslab.SlabAllocator("doc-unreachable") as allocator:
        ...     nodes = allocator.create_cache("nodes", node, init="zero")
        ...     handles = nodes.alloc_many(4)
        ...     nodes[handles[0]]["next"] = handles[2]
        ...     lost = allocator.unreachable({"nodes": handles[:1]})
        ...     bool((lost["nodes"] == handles[[1, 3]]).all()), lost.dangling
        (True, 0)
        """
        self._need_open()
        return unreachable(self._by_name(), roots, links)

    def collect(self, roots: Any, links: Mapping[str, SlabCache] | None = None) -> ByCache[int]:
        """
        Free the records that `unreachable` returns: all or, if an exception comes, none.

        Guards and handles of these records are refused from then on.

        Parameters
        ----------
        roots, links
            As of `unreachable`.

        Returns
        -------
        ByCache
            A dict: for each cache of records, by its name, how many were freed; with the attribute `dangling`.

        Raises
        ------
        HandleError, HandleTypeError, RecordTypeError, UnknownNameError, CacheTypeError, LayoutError, BusyError, FaultError
            As `unreachable`; nothing is freed.

        Examples
        --------
        >>> import numpy as np, jitslab
        >>> node = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
        >>> with jitslab.SlabAllocator("doc-collect") as allocator:
        ...     nodes = allocator.create_cache("nodes", node, init="zero")
        ...     handles = nodes.alloc_many(4)
        ...     nodes[handles[0]]["next"] = handles[2]
        ...     allocator.collect(handles[0]), len(nodes)
        ({'nodes': 2}, 2)
        """
        self._need_open()
        return collect(self._by_name(), roots, links)

    def _by_name(self) -> dict[str, SlabCache]:
        """Return all open caches of records by name; a typed one has a number, too, if its name is not its alone."""
        listing = self._list_named()
        typed = [cache for cache in self._record_caches() if cache not in set(listing.values())]
        taken = Counter([*listing, *(cache.name for cache in typed)])
        for cache in typed:
            name, numbers = cache.name, itertools.count(1)
            while name in listing or (name == cache.name and taken[name] > 1):
                name = f"{cache.name}#{next(numbers)}"
            listing[name] = cache
        return listing

    def clear(self) -> int:
        """Free all records and raw memory, with no other thread using it; returns how many pieces.  FaultError: none is freed."""
        return super().clear() + sum(cache.clear() for cache in self._record_caches())

    def flush(self) -> int:
        """Give the free slots and places in the calling thread's magazines home, as `SlabCache.flush`; returns how many."""
        return super().flush() + sum(cache.flush() for cache in self._record_caches())

    def shrink(self) -> int:
        """Give the memory of all empty slabs back to the system; returns how many slabs."""
        return super().shrink() + sum(cache.shrink() for cache in self._record_caches())

    def close(self) -> None:
        """
        Close every cache and refuse everything from now on; a second `close` does nothing.

        Handles and guards of live records are refused with `ClosedError` from then on.

        Raises
        ------
        FaultError
            As `SlabCache.close`; all is closed.
        """
        super().close()

    def _end(self) -> FaultError | None:
        """Close every cache; returns the faults that nobody was told of."""
        with names_lock():
            fault = super()._end()
            self._forget_closed()
            return fault

    def _shut(self) -> None:
        """Close."""
        super()._shut()
        for cache in self._record_caches():
            cache._shut()

    def __contains__(self, ptr: object) -> bool:
        """Whether `ptr` is that of a live record of this allocator, as a SlabPtr, or of live raw memory."""
        if isinstance(ptr, SlabPtr):
            return ptr._cache in self._own and ptr.is_live
        return super().__contains__(ptr)

    def __repr__(self) -> str:
        """Short, whatever the size."""
        if not hasattr(self, "_numba_type_") or self.closed:
            return super().__repr__()
        n_named = len(self._list_named())
        n_typed = len(self._record_caches()) - n_named
        what = f"{n_named} dedicated and {n_typed} typed caches, {len(self)} pieces of raw memory"
        return f"<SlabAllocator {self._name!r}: {what}{self._shown_faults()}>"


def fields_of(dtype: np.dtype[Any]) -> str:
    """Show a dtype of any length by its first fields."""
    names = dtype.names or ()
    return f"({', '.join(names[:SHOWN_FIELDS])}{', ...' if len(names) > SHOWN_FIELDS else ''})"


def shown_type(dtype: np.dtype[Any] | None, declared: type | None, other: np.dtype[Any] | None = None) -> str:
    """Show a type, and how it differs from one that is equal for NumPy."""
    if declared is not None:
        return declared.__name__
    assert dtype is not None  # without a class there is a dtype
    return f"{fields_of(dtype)} with other metadata" if dtype == other else fields_of(dtype)


def live_in(allocator: str, cache: SlabCache, name: str | None = None, base: int = 0) -> LiveCache:
    """Count live records of a cache, none if it is closed; `base` is added to the handles that are shown."""
    name = cache.name if name is None else name
    try:
        count, first = cache._first_live(SHOWN_HANDLES)
    except ClosedError:
        return LiveCache(allocator, name, 0, 0, (), cache.faults)
    return LiveCache(allocator, name, count, count * cache.dtype.itemsize, tuple((first + base).tolist()), cache.faults)


_made: weakref.WeakValueDictionary[int, SlabAllocator] = weakref.WeakValueDictionary()
_serials = itertools.count(1)


@atexit.register
def warn_of_open_allocators() -> None:
    """Warn, at the end of the process, of the faults of raw memory of every allocator that is still there."""
    for allocator in list(_made.values()):
        allocator.__del__()


def open_allocators() -> list[SlabAllocator]:
    """Return every open allocator of the process, in the order they were made."""
    made = [reference() for reference in _made.valuerefs()]
    return [allocator for allocator in made if allocator is not None and not allocator.closed]


def warmup() -> None:
    """
    Compile every kernel, or read it from the disk cache.

    Without this call each kernel is compiled when it is first needed: together some seconds once, kept on disk.

    Warns
    -----
    KernelCacheWarning
        Once, as any first use, if compiled code cannot be kept on disk.

    Examples
    --------
    >>> import jitslab
    >>> jitslab.warmup()
    """
    for _, compile_some in WARMUP:
        compile_some()


def _warm_caches() -> None:
    """Use a cache in every way."""
    for init in (None, "zero"):
        with SlabCache("warmup", _WARM, capacity=1000, init=init) as cache:
            cache.reserve(10)
            handles = cache.alloc_many(200)
            cache.gather(handles[:10])
            cache.free_many(handles[:150])
            cache._free_slow(cache._alloc_slow())
            cache.live()
            cache.check()
            cache.recover()
            cache.clear()
            cache.shrink()


def _warm_guards() -> None:
    """Use guards."""
    with SlabCache("warmup", _WARM, capacity=1000) as cache, cache.allocate() as it, cache.allocate_many(2):
        it["x"] = it["x"]


def _warm_allocators() -> None:
    """Use an allocator, with ptrs of all kinds."""
    with SlabAllocator("warmup") as allocator:
        for size in (8, 5000, 2 << 20):
            ptr = allocator.realloc(allocator.allocate(size, zero=True), size, 2 * size)
            allocator.view(ptr, 2 * size)
            allocator.free(ptr, 2 * size)


def _warm_pools() -> None:
    """Use a pool and a reader of it, if the system has them."""
    if not CAN_GROW:
        return
    linked = np.dtype([("next", link("warmup"))])
    with tempfile.TemporaryDirectory() as folder, open_pool(f"{folder}/pool", sync=False) as pool:
        cache = pool.create_cache("warmup", linked, capacity=1000, init="zero")
        cache.alloc_many(10)
        pool.commit()
        cache.dangling()
        pool.collect()
        pool.rollback()
        pool.checkpoint()
        with open_pool(pool.path, "r") as reader:
            len(reader["warmup"])
            reader.refresh()


_WARM = np.dtype([("x", "i8")])
WARMUP = (  # what `warmup` does, step by step
    ("caches", _warm_caches),
    ("guards", _warm_guards),
    ("allocators", _warm_allocators),
    ("pools", _warm_pools),
    ("calls in compiled code", compiled.warm),
)
