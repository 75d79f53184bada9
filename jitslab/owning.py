"""
The life of an owner of records that is made in Python: a batch, or a guard if guards are not made in C.

The handles lie in an array.  Before there are any, the array gets an `Owner`; when that ends, it frees the records that are left,
and runs no Python.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from .core.guard_calls import ENTERED, NEW, NOTHING, RELEASED, alloc_owned, free_owned, owner_maker, take_owned
from .errors import FieldNameError, GuardError, HandleError
from .guard import Fields, epoch, has_own

Handles = npt.NDArray[np.int64]


class OwnerBase:
    """The Python part of an `Owner`; `guard_calls` makes the rest in C."""

    __slots__ = ()
    cache: Any
    epoch: int  # forks that led to the process that made it
    array: Handles  # how many handles it owns, or NOTHING; then they
    address: int  # of the array

    def _never_freed(self, n: int, is_finalizing: Any = sys.is_finalizing) -> None:
        """Say that n records were left to the collector, which has freed them."""
        if not is_finalizing() and hasattr(self.cache, "_numba_type_"):  # else the collector is taking the cache apart
            text = f"never freed: {n} records of a batch of cache {self.cache.name!r}"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)


def field_attribute(name: str, doc: str) -> property:
    """Return a field as an attribute that is not made in C."""
    return property(
        lambda owner: owner._read(name), lambda owner, value: owner._write(name, value), lambda owner: owner._delete(name), doc
    )


class PythonFields(Fields):
    """Fields that are not made in C."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        """Raise for an unknown field; if a property failed, raise its error again."""
        if has_own(type(self), name):
            return object.__getattribute__(self, name)
        return self._no_attribute(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign a field; there are no other attributes."""
        if name in INTERNALS:
            self._no_attribute(name)
        try:
            object.__setattr__(self, name, value)
        except FieldNameError:
            raise
        except AttributeError:
            self._no_attribute(name)

    def __delattr__(self, name: str) -> None:
        """Refuse."""
        (self._delete if name in self._fields else self._no_attribute)(name)


INTERNALS = ("_owner", "_state", "_guard")  # slots that are set once, by `object.__setattr__`


class Owning(PythonFields):
    """The life of a batch, or of a guard that is not made in C: its records are owned by an `Owner`."""

    __slots__ = ()
    _owner: Any
    _state: int  # of GUARD_STATES
    _cache: Any = property(lambda self: self._owner.cache)

    def free(self) -> None:
        """Free the records."""
        self._cache._need_open()
        own, owner = self._owned(), self._owner
        refused = np.zeros(owner.array.size - 1, np.uint8)
        freed = free_owned(self._cache._address, owner.address, refused.ctypes.data)  # takes and frees: no line in between
        if freed == NOTHING:
            self._owned()  # raises: another thread was first
        if freed != refused.size:
            self._refused(own, refused)

    def _give_away(self) -> Any:
        """Give the ownership away, to one caller only; returns the handle or handles."""
        own = self._need_live()
        object.__setattr__(self, "_state", RELEASED)
        return own if take_owned(self._owner.address) != NOTHING else self._owned()

    def __enter__(self) -> Any:
        """Return the guard; leaving the block frees the records, also by an exception."""
        self._need_live()
        if self._state == ENTERED:
            raise GuardError("this guard is in a with block already")
        object.__setattr__(self, "_state", ENTERED)
        return self

    def __exit__(self, *args: Any) -> None:
        """Free the records, unless they were freed or released in the block."""
        if self._owner.epoch != epoch() or self._owner.array[0] == NOTHING or self._cache.closed:
            return
        try:
            self.free()
        except HandleError:  # some were freed by another: said, but not in the place of the exception that ended the block
            if args[0] is None:
                raise

    def _need_live(self) -> Any:
        """Return the handle or handles; raise unless all records are live."""
        raise NotImplementedError

    def _refused(self, own: Any, refused: npt.NDArray[np.uint8]) -> NoReturn:
        """Raise because some records were freed by another."""
        raise NotImplementedError


def new_guard(cls: Any, cache: Any, n: int = 1) -> Any:
    """Return a guard for n records of a cache that owns none of them yet."""
    array = np.empty(n + 1, np.int64)
    array[0] = NOTHING
    guard = object.__new__(cls)
    object.__setattr__(guard, "_owner", owner_maker(OwnerBase)(cache, array))
    object.__setattr__(guard, "_state", NEW)
    return guard


def fill(guard: Any, n: int) -> bool:
    """Have a guard own n new records, all or none; whether there was room."""
    return alloc_owned(guard._owner.cache._address, guard._owner.address, n) == n
