"""
The errors: one class for each failure.

Every class is a `SlabError` and also the builtin that a user would expect::

    SlabError(Exception)
    ├── HandleError(SlabError, LookupError)      a handle was refused; nothing changed
    │   ├── NullHandleError                      the handle is NULL (0)
    │   ├── StaleHandleError                     its record was freed, or its guard no longer owns it
    │   ├── ForeignHandleError                   this cache never issued it
    │   └── WrongSizeError                       memory of another size than the one given
    ├── HandleTypeError(SlabError, TypeError)    a handle that is no integer
    ├── CacheFullError(SlabError, MemoryError)   no slot left, or the system gives no memory
    │   └── RetiredError                         its slots were reused as often as handles can tell apart
    ├── LayoutError(SlabError, TypeError)        a dtype that cannot be the record of a cache
    ├── CapacityError(SlabError, ValueError)     a capacity, count or setting out of bounds
    ├── NodeError(SlabError, ValueError)         a NUMA node that does not exist, has no memory or is not allowed
    ├── SizeError(SlabError, ValueError)         a size or an alignment out of bounds
    ├── SizeTypeError(SlabError, TypeError)      a size or an alignment that is no integer
    ├── ArrayError(SlabError, ValueError)        an array of wrong dtype, shape or order, or read-only
    ├── ClosedError(SlabError, ValueError)       the cache or allocator was closed (or never opened)
    ├── BusyError(SlabError, RuntimeError)       other threads are using the cache
    ├── LawError(SlabError, RuntimeError)        `check()` found a broken law
    ├── FaultError(SlabError, RuntimeError)      compiled code used a refused handle
    ├── CopyError(SlabError, TypeError)          copying or pickling a guard, an allocator or a part of one
    ├── GuardError(SlabError, RuntimeError)      a guard that is entered twice, or made by hand
    ├── FieldError(SlabError)                    a field was not read or written; nothing changed
    │   ├── FieldNameError(AttributeError, KeyError)    the record has no such field
    │   ├── FieldTypeError(TypeError)            a value of another kind
    │   ├── FieldRangeError(OverflowError, ValueError)  a value that the field cannot hold
    │   └── FieldTextError(UnicodeError)         a text field that holds no text
    ├── RecordTypeError(SlabError, TypeError)    a handle used as that of another dtype, or of none
    ├── CacheTypeError(SlabError, TypeError)     no cache or allocator, though it answers as one does
    ├── OptionError(SlabError, TypeError)        an option that does not exist
    ├── ConflictError(SlabError, ValueError)     made already, with other options
    ├── DuplicateNameError(SlabError, ValueError)  the name is taken
    ├── UnknownNameError(SlabError, KeyError)    no open cache or allocator has that name
    ├── PoolError(SlabError, RuntimeError)       a pool's files could not be read or written
    │   ├── PoolPathError(OSError)               a path that is no pool, or may not be one
    │   ├── PoolBusyError                        another process writes to the pool
    │   ├── PoolVersionError                     a newer format, or another byte order
    │   ├── CorruptPoolError                     a damaged file, or one that no pool wrote
    │   ├── PoolFullError(MemoryError)           the disk or a quota is full; nothing was committed
    │   ├── PoolLawError(LawError)               `Pool.check()` found broken laws
    │   ├── PoolFailedError                      a sync failed: no more commits until the pool is opened again
    │   ├── ReadOnlyError(TypeError)             a change of a pool that was opened to read
    │   └── TransactionError                     a transaction in another, or a call that none may contain
    ├── ImageError(SlabError)                    the image of a cache, in a file or a pickle, cannot be written or read
    │   ├── ImagePathError(OSError)              a path that cannot be written to or read
    │   ├── ImageFullError(OSError)              the disk or a quota is full; the old file is whole
    │   ├── ImageVersionError(ValueError)        a newer format, or another byte order
    │   └── CorruptImageError(ValueError)        a damaged image, or one that no cache made
    └── TraceError(SlabError, ValueError)        a file that is no trace, or one not supported

All of them can be pickled and copied: every parameter but the message has a default, and sets an attribute.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np

# --- How a value is shown in a message ---

MOST_BITS = 2048  # of integers that are printed: 640 digits can be, whatever limit Python was given
MOST_SHOWN = 80  # characters of a dtype


class _Short(reprlib.Repr):
    """
    Python's, but for two kinds of values.

    Of integers of thousands of digits each version says something else, or fails.  Of arrays and records with text or fields the
    dtype says why they are refused, and their text may be none: it was never written.
    """

    def repr_int(self, x: int, level: int) -> str:
        """Show an integer, or how long it is."""
        return f"int of {x.bit_length()} bits" if x.bit_length() > MOST_BITS else super().repr_int(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        """Show an object, or of which dtype it is."""
        if issubclass(type(x), (np.ndarray, np.void)) and (x.dtype.names is not None or x.dtype.kind in "SU"):
            text = str(x.dtype)
            return f"{type(x).__name__} of {text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + '...'}"
        return super().repr_instance(x, level)


_short = _Short()


def shown(value: Any) -> str:
    """Return a repr, cut where it is long."""
    try:
        return _short.repr(value)
    except Exception:  # it knows types by their names: a user's own `array` or `deque` is none of Python's
        return _short.repr_instance(value, 0)


def shown_with_type(value: Any) -> str:
    """Return the same with the name of its type before it."""
    name, text = type(value).__name__, shown(value)
    return text if text.startswith(f"{name} of ") else f"{name} {text}"


# --- The classes ---


class SlabError(Exception):
    """Base of every error of jitslab."""


class HandleError(SlabError, LookupError):
    """
    A handle was refused, and nothing was changed by it.

    Attributes
    ----------
    positions : tuple of int
        For a batch: places of the refused handles in the array.
    """

    def __init__(self, message: str = "", positions: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.positions = tuple(positions)


class NullHandleError(HandleError):
    """The handle is `jitslab.NULL`."""


class StaleHandleError(HandleError):
    """The record of this handle was freed."""


class ForeignHandleError(HandleError):
    """The cache never issued the handle: another cache's, or a number that is none."""


class WrongSizeError(HandleError):
    """The memory was allocated with another size than the one given."""


class HandleTypeError(SlabError, TypeError):
    """A handle must be an integer."""


class CacheFullError(SlabError, MemoryError):
    """The cache holds `capacity` records, or the system gives no more memory."""


class RetiredError(CacheFullError):
    """So many slots of the cache are retired, each reused as often as handles can tell apart, that none is left."""


class LayoutError(SlabError, TypeError):
    """The dtype cannot be the record of a cache."""


class CapacityError(SlabError, ValueError):
    """A capacity, a count or a setting is out of its bounds."""


class SizeError(SlabError, ValueError):
    """A size of memory, or an alignment, is out of its bounds."""


class SizeTypeError(SlabError, TypeError):
    """A size of memory, or an alignment, is no integer."""


class NodeError(SlabError, ValueError):
    """A NUMA node does not exist, has no memory, or may not be used by this process; or a policy that is none."""


class PlacementWarning(RuntimeWarning):
    """The system refused to place memory on a node, and puts it on a node of its own choice."""


class KernelCacheWarning(RuntimeWarning):
    """Compiled code cannot be kept on disk: it is used from memory, and later processes compile it again."""


class ArrayError(SlabError, ValueError):
    """An array has the wrong dtype, shape or order, or cannot be written."""


class ClosedError(SlabError, ValueError):
    """The cache or allocator was closed, or its making failed."""


class BusyError(SlabError, RuntimeError):
    """The operation needs the cache at rest, and other threads are using it."""


class LawError(SlabError, RuntimeError):
    """
    `check()` found a broken law.

    Attributes
    ----------
    law : int
        Number of the law in `jitslab.core.layout`.
    slab : int
        Index of the slab that breaks the law, or -1 if it is a law of the whole cache.
    """

    def __init__(self, message: str = "", law: int = 0, slab: int = -1) -> None:
        super().__init__(message)
        self.law = law
        self.slab = slab


class FaultError(SlabError, RuntimeError):
    """
    Compiled code used a handle that was refused, and could not raise there.

    Attributes
    ----------
    count : int
        Faults since the last report.
    first : int
        The handle of the first one.
    where : str
        File and line of the Python code that called the first one's kernel, as "file:line"; empty if that is not known, as
        of a thread of `prange`.
    report : LiveReport, optional
        If `shutdown` raised it: what that would have returned.
    """

    def __init__(self, message: str = "", count: int = 0, first: int = 0, where: str = "", report: Any = None) -> None:
        super().__init__(message)
        self.count = count
        self.first = first
        self.where = where
        self.report = report


class CopyError(SlabError, TypeError):
    """A guard is not copied: a record has one owner; nor an allocator, or its memory of any size; nor is a cache an array."""


class GuardError(SlabError, RuntimeError):
    """The guard is in a `with` block already, or was not made by a cache."""


class FieldError(SlabError):
    """A field was not read or written, and nothing was changed."""


class FieldNameError(FieldError, AttributeError, KeyError):
    """The record has no field of this name; the message names near ones, which are looked for when it is shown."""

    def __init__(self, message: str = "", wanted: str = "", fields: Sequence[str] = ()) -> None:
        super().__init__(message)
        self._wanted, self._fields = wanted, tuple(fields)

    def __str__(self) -> str:
        """Return the message, and the names that are near, or all."""
        message = Exception.__str__(self)  # KeyError shows a repr
        if not self._fields:
            return message
        near = difflib.get_close_matches(self._wanted, self._fields, 3, 0.65)
        return f"{message}; {'near it:' if near else 'it has'} {', '.join(map(repr, near or self._fields))}"


class FieldTypeError(FieldError, TypeError):
    """The value is of another kind than the field."""


class FieldRangeError(FieldError, OverflowError, ValueError):
    """The value is of the right kind, and the field cannot hold it."""


class FieldTextError(FieldError, UnicodeError):
    """A text field does not hold a text: it was never written, or not as text."""


class RecordTypeError(SlabError, TypeError):
    """A handle is used as that of another dtype than its record's, or without saying which."""


class CacheTypeError(SlabError, TypeError):
    """An object, such as a weak proxy, answers as a cache or an allocator does, and is none: compiled code cannot take it."""


class OptionError(SlabError, TypeError):
    """No such option."""


class ConflictError(SlabError, ValueError):
    """The cache or manager exists already, with other options."""


class DuplicateNameError(SlabError, ValueError):
    """An open cache or allocator has that name already."""


class UnknownNameError(SlabError, KeyError):
    """No open cache or allocator has that name."""

    __str__ = Exception.__str__  # KeyError shows the text in quotes


class TraceError(SlabError, ValueError):
    """The file is no allocation trace, or one that cannot be replayed."""


class PoolError(SlabError, RuntimeError):
    """A pool's files could not be read or written."""


class PoolPathError(PoolError, OSError):
    """The path is no pool: a file, a symbolic link, a directory of something else; or it may not be used."""


class PoolBusyError(PoolError):
    """Another process, or another object of this process, has the pool open to write."""


class PoolVersionError(PoolError):
    """The pool has a newer format, or another byte order."""


class CorruptPoolError(PoolError):
    """A file of the pool is damaged, or no pool wrote it."""


class PoolFullError(PoolError, MemoryError):
    """The disk, a quota or a limit of file sizes is full; memory and the pool are as before."""


class PoolFailedError(PoolError):
    """A sync of the pool failed before: what it holds is the last commit or the one after; open it again to see."""


class PoolLawError(PoolError, LawError):
    """
    `Pool.check` found broken laws.

    Attributes
    ----------
    broken : tuple of str
        For each, at most 1,000, the file, the page and the slot, and what is wrong.
    """

    def __init__(self, message: str = "", broken: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.broken = broken


class ReadOnlyError(PoolError, TypeError):
    """The pool was opened to read, so nothing in it is allocated, freed or committed."""


class TransactionError(PoolError):
    """A transaction was begun in another one, or a call stands in a transaction that none may contain."""


class ImageError(SlabError):
    """The image of a cache, in a file or a pickle, cannot be written or read."""


class ImagePathError(ImageError, OSError):
    """The file of an image cannot be written or read: it is a directory, it is not there, or the system refuses it."""


class ImageFullError(ImageError, OSError):
    """The disk, a quota or a limit of file sizes is full; a file that was there before is as it was."""


class ImageVersionError(ImageError, ValueError):
    """The image has a newer format, or another byte order."""


class CorruptImageError(ImageError, ValueError):
    """The image is damaged, or no cache made it."""
