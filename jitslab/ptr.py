"""
`SlabPtr`: a handle that knows its cache.

In a field of a record, in an array, in compiled code and in a file it is an int64, as every handle; the Python object alone knows
the cache.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from ._validate import as_integer
from .cache import SlabCache
from .errors import ForeignHandleError, RecordTypeError, shown


class SlabPtr(int):
    """
    A handle that knows its cache, and by it the dtype of its record.

    An int in every respect: NumPy stores it as an int64, `@njit` functions take it as an int64, arithmetic yields plain ints.  It
    keeps its cache alive, not its record.  A copy is the object itself; pickled it is a plain int, as the cache is private to the
    process.

    Parameters
    ----------
    handle : int
        Such as one that was read back from a field; it is checked when it is used.
    cache : SlabCache
        Where the record is.

    Raises
    ------
    HandleTypeError
        If the handle is no integer.
    ForeignHandleError
        If the handle is outside of 0 .. 2**63 - 1.
    RecordTypeError
        If `cache` is no SlabCache.
    ClosedError
        If its making failed.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> node = np.dtype([("value", "f8"), ("next", "i8")])
    >>> with jitslab.SlabAllocator("doc-ptr") as allocator:
    ...     first, second = allocator.allocate_typed(node), allocator.allocate_typed(node)
    ...     first.record["next"] = second
    ...     link = first.record["next"]  # a number again
    ...     int(link) == second, jitslab.SlabPtr(link, first.cache).dtype == node
    (True, True)
    """

    _cache: SlabCache
    _numba_type_ = numba.types.int64

    def __new__(cls, handle: int, cache: SlabCache) -> SlabPtr:
        """Check both and bind them."""
        number = as_integer(handle)
        if not 0 <= number < 1 << 63:
            raise ForeignHandleError(f"{shown(number)} is no handle: 1 .. 2**63 - 1")
        if not issubclass(type(cache), SlabCache):  # a weak proxy, which passes isinstance, would not keep the cache
            raise RecordTypeError(f"a SlabPtr is of a SlabCache, got {type(cache).__name__}")
        cache._need_opened()
        return bind(number, cache, cls)

    @property
    def cache(self) -> SlabCache:
        """Where the record is."""
        return self._cache

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the record."""
        return self._cache.dtype

    @property
    def record(self) -> Any:
        """
        The record, read and written in place: ``cache[handle]``.

        Raises
        ------
        HandleError
            If it was freed.
        ClosedError
            If the cache was closed.
        """
        return self._cache[self]

    @property
    def is_live(self) -> bool:
        """Whether the record is live; False once the cache is closed."""
        return not self._cache.closed and self in self._cache

    def __repr__(self) -> str:
        """Show handle and cache; `str`, `format` and JSON show the number."""
        return f"<SlabPtr {int(self):#x} of cache {self._cache.name!r}>"

    __str__ = int.__repr__

    def __copy__(self) -> SlabPtr:
        """Return itself: a handle is a value."""
        return self

    def __deepcopy__(self, memo: Any) -> SlabPtr:
        """Return itself, as `__copy__`."""
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[type[int], tuple[int]]:
        """Pickle as a plain int."""
        return int, (int(self),)


def bind(handle: int, cache: SlabCache, cls: type[SlabPtr] = SlabPtr) -> SlabPtr:
    """Make a SlabPtr of a handle that the cache gave: nothing to check."""
    ptr = int.__new__(cls, handle)
    ptr._cache = cache
    return ptr
