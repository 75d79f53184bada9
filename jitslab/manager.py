"""
`SlabAllocatorManager`: the allocators and caches of a process, and the functions of the module over one default manager.

The default manager is made at first need.  After `shutdown` only `initialize` makes a new one, so that no code goes on by
accident with memory that was given back.
"""

from __future__ import annotations

import atexit
import inspect
import logging
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ._closable import Closable
from ._faults import joined
from ._names import Names, check_name, names_lock
from .allocator import SlabAllocator, check_options, live_in, open_allocators, with_defaults
from .cache import SlabCache, open_caches
from .errors import ClosedError, ConflictError, FaultError
from .machine.numa import NumaNode, nodes
from .ptr import SlabPtr
from .views import LiveReport, make_report

DEFAULT = "default"  # name of a manager's first allocator
log = logging.getLogger("jitslab")


class SlabAllocatorManager(Closable):
    """
    The allocators and caches of a process.

    The functions of the module (`jitslab.allocate`, ...) are those of `allocator` of one default manager; a library that wants
    its memory apart makes allocators of its own.

    Parameters
    ----------
    report_at_exit : bool, default False
        When the process ends, log the records that are still live, as a warning of the logger ``jitslab``; if logging was not
        set up, it goes to stderr.  Children of `fork` log nothing.
    **options
        Of every cache of records that it makes, as those of `SlabCache`; `init` is None or "zero".

    Attributes
    ----------
    allocator : SlabAllocator
        The first one, named "default".

    Raises
    ------
    OptionError
        If there is no such option.
    CapacityError, LayoutError, NodeError
        If an option is out of bounds.

    Notes
    -----
    Safe from any number of threads.  After `fork` parent and child each have a manager of their own, with all records that were
    live: shutting one down does nothing to the other.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> with jitslab.SlabAllocatorManager() as manager:
    ...     graph = manager.create_allocator("graph")
    ...     nodes = graph.create_cache("nodes", np.dtype([("value", "f8"), ("next", "i8")]))
    ...     handle = nodes.alloc()
    ...     list(manager.allocators)
    ...     manager.caches["nodes"] is nodes
    ...     report = manager.shutdown()  # of the whole process
    ['default', 'graph']
    True
    >>> [str(row) for row in report.caches if row.allocator == "graph"]
    ['graph/nodes: 1 live, 16 bytes: 0x...']
    """

    def __init__(self, *, report_at_exit: bool = False, **options: Any) -> None:
        self._options = check_options(options)
        self._report_at_exit = bool(report_at_exit)
        self._closed = False
        self.allocator = SlabAllocator(DEFAULT, **self._options)
        self._made = {DEFAULT: self.allocator}
        self._allocators = Names("allocator", self._find_allocator, self._list_allocators)
        self._caches = Names("cache", partial(find_cache, self.allocator), partial(list_caches, self.allocator))
        if report_at_exit:
            self._process = os.getpid()
            atexit.register(self._log_at_exit)

    def create_allocator(self, name: str, **options: Any) -> SlabAllocator:
        """
        Make an allocator, known by its name until it is closed.

        Parameters
        ----------
        name : str
            Printable, without '#' and without blanks around it.
        **options
            Of every cache that it makes; those of the manager are the defaults.

        Raises
        ------
        DuplicateNameError
            If an open allocator of this manager has that name.
        CapacityError, LayoutError
            If the name, or an option, is out of bounds.
        OptionError
            If there is no such option.
        ClosedError
            After `shutdown`.
        """
        with names_lock():
            self._need_open()
            check_name("an allocator", name, self._allocators)
            self._made = self._list_allocators()
            self._made[name] = SlabAllocator(name, **self._options | options)
            return self._made[name]

    @property
    def allocators(self) -> Names[SlabAllocator]:
        """The open allocators of this manager by name: a read-only mapping, live."""
        return self._allocators

    @property
    def caches(self) -> Names[SlabCache]:
        """
        Every open cache of records of the process by name: a read-only mapping, live.

        A dedicated cache of `allocator` has its name.  Any other cache has its name, too, unless that is not the only open one
        of that name: then it is ``name#number``, its number in the process.
        """
        return self._caches

    @property
    def nodes(self) -> tuple[NumaNode, ...]:
        """The machine's NUMA nodes that this process may use: `jitslab.nodes`."""
        return nodes()

    @property
    def closed(self) -> bool:
        """Whether `shutdown` was called."""
        return self._closed

    def report(self) -> LiveReport:
        """
        Count live records of every cache of the process, and live raw memory of every allocator.

        Notes
        -----
        O(slots), some 0.1 ns each; exact while no other thread allocates or frees.
        """
        allocators = open_allocators()
        found = [row for allocator in allocators for row in allocator._count_live()]
        owned = {cache for allocator in allocators for cache in (*allocator._own, allocator._parts.large)}
        return make_report(found + [live_in("", cache) for _, cache in open_caches() if cache not in owned])

    def shutdown(self, report: bool = True) -> LiveReport:
        """
        Close every allocator of this manager.

        Handles and guards of live records are refused from then on with `ClosedError`.  Caches and allocators that were made
        directly, by `SlabCache` or `SlabAllocator`, stay open; so do all caches in the other processes of a `fork`.

        Parameters
        ----------
        report : bool, default True
            Count live records before; otherwise the report is empty.

        Returns
        -------
        LiveReport
            As `report`.  The report of a second `shutdown` has records of other caches only.

        Raises
        ------
        FaultError
            As `SlabCache.close`; all is closed, and the error has the report.
        """
        live, fault = self._shut_down(report)
        if fault is not None:
            fault.report = live
            raise fault
        return live

    def _shut_down(self, report: bool) -> tuple[LiveReport, FaultError | None]:
        """Shut down; returns the report, and the faults that nobody was told of."""
        with names_lock():
            live = self.report() if report else LiveReport()
            self._closed = True
            faults = [fault for allocator in list(self._made.values()) if (fault := allocator._end()) is not None]
            self._made = {}
        atexit.unregister(self._log_at_exit)
        return live, joined(faults)

    def _end(self) -> FaultError | None:
        """Shut down; returns the faults that nobody was told of."""
        return self._shut_down(report=False)[1]

    def __repr__(self) -> str:
        """Short, whatever there is."""
        state = "closed" if self._closed else f"{len(self._allocators)} allocators"
        return f"<SlabAllocatorManager: {state}>"

    def _closed_text(self) -> str:
        return "the manager was shut down"

    def _log_at_exit(self) -> None:
        """Log live records, in the process that asked for it; logging does not raise."""
        if os.getpid() == self._process and (live := self.report()):
            log.warning("at exit %s", live)

    def _find_allocator(self, name: str) -> SlabAllocator | None:
        """Return the open allocator of that name, if there is one."""
        allocator = self._made.get(name)
        return None if allocator is None or allocator.closed else allocator

    def _list_allocators(self) -> dict[str, SlabAllocator]:
        """Return the open allocators by name."""
        return {name: allocator for name, allocator in list(self._made.items()) if not allocator.closed}


def find_cache(first: SlabAllocator | None, name: str) -> SlabCache | None:
    """Return the open cache that `list_caches` has under a name, if there is one."""
    dedicated = None if first is None else first._find_named(name)
    return list_caches(first).get(name) if dedicated is None else dedicated


def list_caches(first: SlabAllocator | None) -> dict[str, SlabCache]:
    """Return every open cache of records of the process: those that the first allocator has by name, then the others."""
    listing = {} if first is None else first._list_named()
    known = {*listing.values(), *(allocator._parts.large for allocator in open_allocators())}
    others = [(serial, cache) for serial, cache in open_caches() if cache not in known]
    taken = Counter([*listing, *(cache.name for _, cache in others)])
    for serial, cache in others:
        name = cache.name
        listing[name if taken[name] == 1 and "#" not in name else f"{name}#{serial}"] = cache
    return listing


# --- The functions of the module, over one default manager ---

F = TypeVar("F", bound=Callable[..., Any])
_default: SlabAllocatorManager | None = None


def initialize(*, report_at_exit: bool = False, **options: Any) -> SlabAllocatorManager:
    """
    Make the default manager with options; without this call it is made at first need, without options.

    Parameters
    ----------
    report_at_exit : bool, default False
        When the process ends, log live records: see `SlabAllocatorManager`.
    **options
        Of every cache of records that it makes, as those of `SlabCache`; `init` is None or "zero".

    Returns
    -------
    SlabAllocatorManager
        The default manager.

    Raises
    ------
    ConflictError
        If there is one with other options; with equal options the call does nothing.
    OptionError
        If there is no such option.
    CapacityError, LayoutError, NodeError
        If an option is out of bounds.

    Examples
    --------
    >>> import jitslab
    >>> jitslab.initialize() is jitslab.initialize()
    True
    """
    global _default  # one a process, as its name says
    with names_lock():
        if _default is None or _default.closed:
            _default = SlabAllocatorManager(report_at_exit=report_at_exit, **options)
        elif (_default._report_at_exit, with_defaults(_default._options)) != (
            bool(report_at_exit),
            with_defaults(check_options(options)),
        ):
            raise ConflictError("jitslab is initialized, by initialize() or by its first use, with other options")
        return _default


def shutdown(report: bool = True) -> LiveReport:
    """
    Shut the default manager down: its handles are refused from then on, and `initialize` makes a new one.

    Parameters
    ----------
    report : bool, default True
        Count live records before; otherwise the report is empty.

    Returns
    -------
    LiveReport
        Live records: for each cache the number, the bytes, and the first few handles.

    Raises
    ------
    FaultError
        If compiled code used refused handles, and nobody was told; all is closed, and the error has the report.

    Examples
    --------
    >>> import jitslab
    >>> manager = jitslab.initialize()
    >>> ptr = jitslab.allocate(64)
    >>> report = jitslab.shutdown()
    >>> report.count >= 1
    True
    >>> jitslab.free(ptr, 64)
    Traceback (most recent call last):
        ...
    jitslab.errors.ClosedError: jitslab was shut down; initialize() comes first
    >>> jitslab.initialize()
    <SlabAllocatorManager: 1 allocators>
    """
    with names_lock():
        if _default is None:
            return LiveReport()
        return _default.shutdown(report)


def default_manager() -> SlabAllocatorManager:
    """
    Return the default manager, made at first need.

    Raises
    ------
    ClosedError
        After `shutdown`, until `initialize`.

    Examples
    --------
    >>> import jitslab
    >>> jitslab.default_manager().allocator
    <SlabAllocator 'default': ...>
    """
    if _default is None:
        with names_lock():
            return initialize() if _default is None else _default
    if _default._closed:
        raise ClosedError("jitslab was shut down; initialize() comes first")
    return _default


def _documented_by(method: Callable[..., Any]) -> Callable[[F], F]:
    """Give a function of the module the documentation of the method that it calls, below a summary of its own."""

    def add(function: F) -> F:
        body = (inspect.getdoc(method) or "").partition("\n")[2]
        function.__doc__ = f"{function.__doc__}\n{body}".replace("After `close`.", "After `shutdown`, until `initialize`.")
        return function

    return add


# Each is written out: by one wrapper with *args and **options a call would take 120 ns more.


@_documented_by(SlabAllocator.allocate)
def allocate(size: int, *, align: int | None = None, zero: bool = False) -> int:
    """Take raw memory from the default allocator."""
    return default_manager().allocator.allocate(size, align=align, zero=zero)


@_documented_by(SlabAllocator.free)
def free(ptr: int, size: int) -> bool:
    """Give raw memory back to the default allocator."""
    return default_manager().allocator.free(ptr, size)


@_documented_by(SlabAllocator.realloc)
def realloc(ptr: int, old_size: int, new_size: int) -> int:
    """Change the size of raw memory of the default allocator; what it holds is kept, up to the lesser size."""
    return default_manager().allocator.realloc(ptr, old_size, new_size)


@_documented_by(SlabAllocator.view)
def view(ptr: int, size: int) -> npt.NDArray[np.uint8]:
    """Return raw memory of the default allocator as an array."""
    return default_manager().allocator.view(ptr, size)


@_documented_by(SlabAllocator.address)
def address(ptr: int, size: int | None = None) -> int:
    """Return the address of raw memory of the default allocator, for ctypes and cffi; it is valid until `free`."""
    return default_manager().allocator.address(ptr, size)


@_documented_by(SlabAllocator.allocate_typed)
def allocate_typed(dtype: npt.DTypeLike) -> SlabPtr:
    """Take a record of a dtype from the default allocator."""
    return default_manager().allocator.allocate_typed(dtype)


@_documented_by(SlabAllocator.free_typed)
def free_typed(ptr: int, dtype: npt.DTypeLike | None = None) -> None:
    """Free a record of the default allocator."""
    default_manager().allocator.free_typed(ptr, dtype)


@_documented_by(SlabAllocator.allocate_object)
def allocate_object(dtype: npt.DTypeLike, /, **fields: Any) -> Any:
    """Take a record of a dtype from the default allocator with a guard, which frees it."""
    return default_manager().allocator.allocate_object(dtype, **fields)


@_documented_by(SlabAllocator.create_cache)
def create_object_cache(name: str, dtype: npt.DTypeLike, **options: Any) -> SlabCache:
    """Make a cache for one purpose in the default allocator; ``jitslab.caches[name]`` finds it until it is closed."""
    return default_manager().allocator.create_cache(name, dtype, **options)


def _first() -> SlabAllocator | None:
    """Return the allocator of the default manager, if there is one."""
    return None if _default is None else _default.allocator


caches: Names[SlabCache] = Names("cache", lambda name: find_cache(_first(), name), lambda: list_caches(_first()))
