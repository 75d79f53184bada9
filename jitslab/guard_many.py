"""
`SlabBatchGuard`: the owner of many records, with each field as an array.

Above `guard`, below `cache`.  Reading a field gathers it into a copy, assigning scatters what was assigned; every access
compares the generations of all records.
"""

from __future__ import annotations

import operator
import sys
import types
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic

import numpy as np
import numpy.typing as npt

from ._fields import write_many, write_one
from .cast import as_handles
from .errors import FieldNameError, GuardError, HandleError, StaleHandleError
from .fit import pack, text_of
from .guard import Field, FieldAttribute, Fields, epoch, is_free
from .layout import identity

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from .cache import SlabCache

    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    R = TypeVar("R")

Handles = npt.NDArray[np.int64]


class SlabBatchGuard(Fields, Generic[R]):
    """
    The owner of many records of one cache: a field is an array, leaving the `with` block frees all.

    Made by `SlabCache.allocate_many`.  ``batch.x`` is a copy of the field of all records, shape (n, ...), which cannot be
    written to, so that no write is lost; ``batch.x = values`` writes it, checked as the field of a single guard is, and
    broadcast.  ``batch[i]`` is record i by reference, as ``cache[handle]`` is; ``cache.records[batch.slots]`` gives
    vectorised access to whole records.

    Raises
    ------
    HandleError
        By every access when records were freed by somebody else (`positions` says which), or all by this guard.
    FieldNameError, FieldTypeError, FieldRangeError, ArrayError, ClosedError, CopyError
        As of `SlabObjectGuard`.

    Notes
    -----
    Some ns a record for reading or writing a field, and some µs for each access.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> with jitslab.SlabCache("doc-many", np.dtype([("x", "f8"), ("at", "f4", (2,))]), capacity=100) as cache:
    ...     with cache.allocate_many(4) as batch:
    ...         batch.x = np.arange(4)
    ...         batch.x = batch.x * 10
    ...         batch.at = [0.5, 1.5]
    ...         batch[2]["x"], batch.at.shape, len(batch)
    ...     len(cache)
    (np.float64(20.0), (4, 2), 4)
    0
    """

    __slots__ = ("__weakref__", "_cache", "_entered", "_epoch", "_own")
    _cache: SlabCache[R]
    _entered: Any  # True in a with block; "released" after `release`
    _epoch: int  # forks that led to the process that made it
    _own: Handles  # absent once it owns no records any more

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a guard is made by a cache."""
        raise GuardError("a batch is made by cache.allocate_many(n)")

    @property
    def cache(self) -> SlabCache[R]:
        """The cache of the records."""
        return self._cache

    @property
    def handles(self) -> Handles:
        """Handles of the records, int64 of shape (n,), not to be written to."""
        own = self._owned()
        self._cache.slots(own)
        return own

    @property
    def slots(self) -> Handles:
        """Slots of the records: indices into ``cache.records``."""
        return self._cache.slots(self._owned())

    @property
    def records(self) -> Any:
        """A copy of all records, shape (n,)."""
        return self._cache.gather(self._owned())

    record = records  # what `Fields` reads a nested field of

    def free(self) -> None:
        """
        Free all records.

        Raises
        ------
        HandleError
            If some were freed by somebody else; all others are freed now.
        ClosedError
            After the cache was closed.
        """
        self._cache.free_many(self._take())

    def release(self) -> Handles:
        """
        Give the ownership away: the records stay live, and the guard is done.

        Returns
        -------
        ndarray of int64, shape (n,)
            The handles; whoever has them frees them.
        """
        self._cache.slots(self._owned())
        handles = self._take().copy()
        self._entered = "released"
        return handles

    def __len__(self) -> int:
        """Return the number of records, also after they were freed elsewhere."""
        return len(self._owned())

    def __getitem__(self, key: Any) -> Any:
        """Read a field, or return record i by reference."""
        if isinstance(key, str):
            return self._read(key)
        try:
            i = operator.index(key)
        except TypeError:
            if isinstance(key, (slice, list, np.ndarray)):
                raise FieldNameError("batch[i] is one record; of several, batch.records[i:k] are copies") from None
            return self._field(key)  # raises
        return self._cache[int(self._owned()[i])]

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write a field, or the whole of record i."""
        if isinstance(key, str):
            self._write(key, value)
            return
        record, cache = self[key], self._cache
        handle = int(self._owned()[operator.index(key)])
        data = pack(value, record.dtype, "")
        if not write_one(cache._address, handle, 0, data.nbytes, id(data)):
            cache._slot(handle)  # raises

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the records, by reference."""
        return (self[i] for i in range(len(self)))

    def __enter__(self) -> SlabBatchGuard[R]:
        """Return the guard; leaving the block frees the records, also by an exception."""
        self._cache.slots(self._owned())
        if getattr(self, "_entered", None) is True:
            raise GuardError("this guard is in a with block already")
        self._entered = True
        return self

    def __exit__(self, *args: Any) -> None:
        """Free the records, unless that, or a release, was done in the block."""
        if self._epoch != epoch() or not hasattr(self, "_own") or self._cache.closed:
            return
        try:
            self.free()
        except HandleError:  # some freed by another: said, but not in the place of what ended the block
            if args[0] is None:
                raise

    def __del__(self, is_finalizing: Any = sys.is_finalizing) -> None:
        """Free the records as a last resort."""
        if is_finalizing() or not hasattr(self, "_own") or self._epoch != epoch() or self._cache.closed:
            return
        live = [handle for handle in self._take().tolist() if handle in self._cache]
        text = f"never freed: {len(live)} records of a batch of cache {self._cache.name!r}"
        try:
            if live:
                warnings.warn(text, ResourceWarning, stacklevel=2, source=self)
        finally:
            self._cache.free_many(np.array(live, np.int64))

    def __repr__(self) -> str:
        """Say the cache, the number of records and the fields."""
        head = f"<{type(self).__name__} of {self._cache.name!r}"
        if self._cache.closed:
            return f"{head}: its cache is closed>"
        try:
            return f"{head}: {len(self)} records of {', '.join(self._fields)}>"
        except StaleHandleError:
            return f"{head}: {self._gone()}>"

    def _gone(self) -> str:
        """Say why it owns no records."""
        return "released" if getattr(self, "_entered", None) == "released" else "freed"

    def _owned(self) -> Handles:
        """Return the handles, if it has not given them up."""
        try:
            return self._own
        except AttributeError:
            self._cache._need_open()
            raise StaleHandleError(f"this batch of cache {self._cache.name!r} has no records any more: {self._gone()}") from None

    def _take(self) -> Handles:
        """Return the handles, to one caller only."""
        own = self._owned()
        try:
            del self._own  # of two threads one finds nothing
        except AttributeError:
            self._owned()
        return own

    def _read(self, name: str) -> Any:
        """Gather a field."""
        self._field(name)
        values = self._cache.records[name][self.slots]
        if values.dtype.kind == "U":
            text_of(values, name)  # raises
        self._cache.slots(self._owned())  # live still: so what was read is theirs
        values.flags.writeable = False
        return values

    def _write(self, name: str, value: Any) -> None:
        """Check values, and scatter them."""
        field = self._field(name)
        own = as_handles(self.handles)
        data = pack(value, field.dtype, name, own.shape)  # runs others' Python, and may take its time
        size = field.dtype.itemsize
        if write_many(self._cache._address, id(own), own.size, field.offset, size, id(data)) != own.size:
            self._cache.slots(self._owned())  # raises


_classes: dict[tuple[Any, ...], Any] = {}


def batch_class(dtype: np.dtype[Any], declared: Any) -> Any:
    """Return the class of the batches of a dtype, or of a declared class: made once."""
    key = dtype, identity(dtype), declared
    if key not in _classes:
        write_many.compile(), write_one.compile()  # now: when the interpreter ends, it cannot be done any more
        assert dtype.fields is not None
        names = dtype.names or ()
        cls: Any = types.new_class(
            SlabBatchGuard.__name__, (SlabBatchGuard,), {}, lambda it: it.update(__slots__=(), __module__=__name__)
        )
        cls._fields = {name: Field(name, (name,), dtype.fields[name][0], int(dtype.fields[name][1]), None) for name in names}
        for name in names:
            if is_free(SlabBatchGuard, name):
                setattr(cls, name, FieldAttribute(name, f"field {name!r}: {dtype[name]}"))
        _classes.setdefault(key, cls)
    return _classes[key]


def wrap_many(cls: Any, cache: Any, handles: Handles) -> Any:
    """Return the guard that owns live records from now on."""
    batch = object.__new__(cls)
    handles.flags.writeable = False
    batch._cache, batch._epoch, batch._own = cache, epoch(), handles
    return batch
