"""
`SlabBatchGuard`: the owner of many records, with each field as an array.

Reading a field gathers it into a copy, assigning to it scatters the values; every access compares the generations of all records.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, NoReturn

import numpy as np
import numpy.typing as npt

from ._convert import pack, text_of
from ._validate import as_handles
from .core.guard_calls import NOTHING, write_many, write_one
from .errors import FieldNameError, GuardError, StaleHandleError
from .owning import Handles, Owning

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from .cache import SlabCache

    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    R = TypeVar("R")


class FieldCopy(np.ndarray[Any, Any]):
    """
    A copy of a field of a batch; it cannot be written to, so that no write is lost.

    ``batch.x += 1`` makes a new array here, which is then assigned to the records.  Arrays computed from a copy, and unpickled
    copies, are plain arrays.
    """

    __slots__ = ()

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = True) -> Any:
        """Return a result as NumPy returns those of plain arrays."""
        plain = np.asarray(array)
        return plain[()] if plain.ndim == 0 and return_scalar else plain

    def __reduce__(self) -> Any:
        """Be pickled as a plain array."""
        return np.asarray(self).__reduce__()

    def __repr__(self) -> str:
        """Show it as a plain array."""
        return repr(np.asarray(self))


def _out_of_place(name: str) -> Any:
    """Return the operator of that name, as in "add", for ``copy += other``."""
    in_place, plain = getattr(np.ndarray, f"__i{name}__"), getattr(np.ndarray, f"__{name}__")
    return lambda self, other: (in_place if self.flags.writeable else plain)(self, other)


for _name in ["add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and", "xor", "or"]:
    if hasattr(np.ndarray, f"__i{_name}__"):
        setattr(FieldCopy, f"__i{_name}__", _out_of_place(_name))


class SlabBatchGuard(Owning, Generic[R]):
    """
    The owner of many records of one cache: a field is an array, leaving the `with` block frees all.

    Made by `SlabCache.allocate_many`.  ``batch.x`` is a copy of the field of all records, shape (n, ...), which cannot be
    written to, so that no write is lost; ``batch.x = values`` writes it, checked as the field of a single guard is, and
    broadcast; ``batch.x += 1`` reads, computes as NumPy does, and writes.  ``batch[i]`` is record i by reference, as
    ``cache[handle]`` is; ``cache.records[batch.slots]`` gives vectorised access to whole records.

    Raises
    ------
    HandleError
        By every access when records were freed by somebody else (`positions` says which), or all by this guard.
    FieldNameError, FieldTypeError, FieldRangeError, FieldTextError, ArrayError, ClosedError, CopyError
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
    ...         batch.x *= 10
    ...         batch.at = [0.5, 1.5]
    ...         batch[2]["x"].item(), batch.at.shape, len(batch)
    ...     len(cache)
    (20.0, (4, 2), 4)
    0
    """

    __slots__ = ("__weakref__", "_owner", "_state")
    _cache: SlabCache[R]

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
        return self._need_live()

    @property
    def slots(self) -> Handles:
        """Slots of the records: indices into ``cache.records``."""
        return self._cache.slots(self._owned())

    @property
    def records(self) -> Any:
        """A copy of all records, shape (n,)."""
        return self._cache.gather(self._owned())

    record = records  # `Fields` reads nested fields of it

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
        super().free()

    def release(self) -> Handles:
        """
        Give the ownership away: the records stay live, and the guard is done.

        Returns
        -------
        ndarray of int64, shape (n,)
            The handles; whoever has them frees them.
        """
        handles: Handles = self._need_live().copy()
        self._give_away()
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
        return super().__enter__()  # type: ignore[no-any-return]  # itself

    def _summary(self) -> str:
        self._cache._need_open()
        return f"{len(self)} records of {', '.join(self._fields)}"

    def _owned(self) -> Handles:
        """Return the handles, if it has not given them up."""
        array = self._owner.array
        if array[0] == NOTHING:
            self._cache._need_open()
            raise StaleHandleError(f"this batch of cache {self._cache.name!r} has no records any more: {self._gone()}")
        return read_only(array[1:])  # type: ignore[no-any-return]  # an array of handles

    def _need_live(self) -> Handles:
        own = self._owned()
        self._cache._live_slots(own)
        return own

    def _refused(self, own: Handles, refused: npt.NDArray[np.uint8]) -> NoReturn:
        self._cache._raise_refused(own, refused, f"; the other {int((refused == 0).sum())} are freed")

    def _read(self, name: str) -> Any:
        """Gather a field."""
        self._field(name)
        values = self._cache._records[name][self.slots]
        if values.dtype.kind == "U":
            text_of(values, name)  # raises
        self._need_live()  # still: so the values are theirs
        return read_only(values.view(FieldCopy))

    def _write(self, name: str, value: Any) -> None:
        """Check values, and scatter them."""
        field = self._field(name)
        own = as_handles(self.handles)
        data = pack(value, field.dtype, name, own.shape)  # runs others' Python, and may take its time
        self._cache.raise_faults()
        size = field.dtype.itemsize
        if write_many(self._cache._address, id(own), own.size, field.offset, size, id(data)) != own.size:
            self._cache.slots(self._owned())  # raises


def read_only(array: Any) -> Any:
    """Return an array, not to be written to from now on."""
    array.flags.writeable = False
    return array
