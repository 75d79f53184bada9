"""
`SlabObjectGuard`: the owner of one record, with its fields as attributes.

`guard_class` makes a class of guards for each dtype.  The C methods of that class take the common paths, and call methods of this
file for the others: `_read` and `_write`, `_not_freed` and `_never_freed`, `_need_live` and `_refuse_enter`.
"""

from __future__ import annotations

import reprlib
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn

import numpy as np
from numba.core.errors import NumbaTypeError
from numba.extending import typeof_impl

from ._closable import Unique
from ._convert import pack, text_of
from .core.guard_calls import RELEASED, write_one
from .core.process import this_process
from .errors import FieldNameError, FieldTextError, FieldTypeError, GuardError, HandleError, StaleHandleError, shown_with_type

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from .cache import SlabCache

    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    R = TypeVar("R")

NUMPY_OWN = np.datetime64, np.timedelta64  # values that stay NumPy's
SHOWN_FIELDS = 8  # in a repr
_short = reprlib.Repr()
_short.maxother = _short.maxstring = 40


@dataclass(frozen=True)
class Field:
    """One field of a record: its place in the guard's record, and the class of its views if it is a nested record."""

    name: str
    path: tuple[str, ...]
    dtype: np.dtype[Any]
    offset: int
    view: Any  # None if it is no nested record


class Fields(Unique):
    """Fields by attribute and by ``[name]``, of guards, views of nested records, and batches."""

    __slots__ = ()
    _fields: ClassVar[dict[str, Field]] = {}
    _readers: ClassVar[dict[str, Any]] = {}  # of fields in C: of those, too, whose names are the guard's own
    _writers: ClassVar[dict[str, Any]] = {}
    _not_copied: ClassVar[str] = ": a record has one owner; copy guard.record"
    _not_pickled: ClassVar[str] = f"{Unique._not_pickled}; use record.copy()"
    _cache: Any  # of the record
    _state: int  # of GUARD_STATES
    __class__: Any = property(type)  # read-only: with another dtype's class, the fields would lie elsewhere

    @property
    def record(self) -> Any:
        """The record as NumPy sees it, by reference."""
        raise NotImplementedError

    def __getitem__(self, name: str) -> Any:
        """Read a field, also one whose name is that of a method."""
        try:
            read = self._readers[name]
        except (KeyError, TypeError):
            return self._read(name)
        return read(self)

    def __setitem__(self, name: str, value: Any) -> None:
        """Write a field, also one whose name is that of a method."""
        try:
            write = self._writers[name]
        except (KeyError, TypeError):
            self._write(name, value)
            return
        write(self, value)

    def _no_attribute(self, name: str) -> NoReturn:
        """Raise for an attribute that is no field."""
        if name.startswith("_"):  # asked for by tools, again and again
            raise FieldNameError(f"the record has no field {name!r}")
        if name in self._fields:
            raise FieldNameError(f"{name!r} is a name of the guard itself; write guard[{name!r}] for the field")
        if has_own(type(self), name):
            raise FieldNameError(f"{name!r} is a name of the guard itself, and the record has no such field")
        raise FieldNameError(f"the record has no field {name!r}", name, tuple(self._fields))

    def _field(self, name: Any) -> Field:
        """Return the description of a field."""
        if not isinstance(name, str):
            raise FieldNameError(f"a field is named by a str, got {shown_with_type(name)}")
        field = self._fields.get(name)
        return self._no_attribute(name) if field is None else field

    def _read(self, name: str) -> Any:
        """Return a field's value: as Python's own type if there is one; a view of a sub-array or a nested record."""
        field = self._field(name)
        slot = self._live_slot()
        if field.view is not None:
            return field.view._of(self)
        column = self._column(name)
        if column.dtype.kind == "U" and column.ndim == 1:
            value: Any = text_of(column[slot : slot + 1], name)
        else:
            value = column[slot]
            if isinstance(value, np.ndarray):
                return value  # by reference
            value = as_python(value)
        self._live_slot()  # still: so the value is this record's
        return value

    def _write(self, name: str, value: Any) -> None:
        """Check a value, and write it."""
        field = self._field(name)
        if is_plain_number(value, field.dtype.kind):
            value = value.item()
            if name in self._writers:
                self._writers[name](self, value)  # in C
                return
        self._live_slot()
        handle = self._owned()
        data = pack(value, field.dtype, name)  # runs others' Python, and may take its time
        if not write_one(self._cache._address, handle, field.offset, data.nbytes, id(data)):
            self._live_slot()  # raises

    def _column(self, name: str) -> Any:
        """Return the field of all slots as an array: reading an element of it takes a third of the time of a record's field."""
        path, cache = self._fields[name].path, self._cache
        try:
            return cache._columns[path]
        except KeyError:
            column = cache._records
            for part in path:
                column = column[part]
            return cache._columns.setdefault(path, column)

    def _live_slot(self) -> int:
        """Return the slot of the record, which is live."""
        raise NotImplementedError

    def _gone(self) -> str:
        """Say why nothing is owned any more."""
        return "released" if self._state == RELEASED else "freed"

    def _place(self) -> str:
        """Return the place of the fields, for a repr."""
        return f"of {self._cache.name!r}"

    def _summary(self) -> str:
        """Return the fields, for a repr."""
        return shown_record(self.record)

    def __repr__(self) -> str:
        """Show the place of the fields and their values, cut if they are long."""
        head = f"<{type(self).__name__} {self._place()}"
        try:
            return f"{head}: {self._summary()}>"
        except HandleError:
            return f"{head}: {self._gone()}>"
        except ValueError:
            return f"{head}: its cache is closed>"

    def _owned(self) -> Any:
        """Return the handle or handles that are owned, live or not; raise if they were given up."""
        raise NotImplementedError

    def _delete(self, name: str) -> NoReturn:
        """Refuse to delete a field."""
        raise FieldTypeError(f"field {name!r} cannot be deleted")

    def __dir__(self) -> Iterable[str]:
        """List fields and methods, for completion."""
        return sorted({name for name in object.__dir__(self) if not name.startswith("_")} | set(self._fields))

    def _ipython_key_completions_(self) -> list[str]:
        """List the fields, for completion of ``guard["``."""
        return list(self._fields)

    def _subject(self) -> str:
        return type(self).__name__


@typeof_impl.register(Fields)  # type: ignore[untyped-decorator]  # numba has no types
def typeof_guard(value: Any, context: Any) -> NoReturn:
    """Refuse a guard, a batch or a view in compiled code."""
    text = f"compiled code takes no {type(value).__name__}: guards are Python's"
    raise NumbaTypeError(f"jitslab: {text}; give it the cache and guard.handle, or have it make records by cache.new()")


def is_plain_number(value: Any, kind: str) -> bool:
    """Whether a field of that kind takes a NumPy scalar as it takes Python's number."""
    if isinstance(value, np.integer):
        return kind in "iuf" and not isinstance(value, np.timedelta64)
    return kind == "f" and isinstance(value, (np.float64, np.float32))


def as_numbers(fields: dict[str, Any], dtype: np.dtype[Any]) -> dict[str, Any] | None:
    """Return values of fields with Python's numbers in the place of such NumPy scalars; None if there are none among them."""
    of: Any = dtype.fields
    numbers = {name: value.item() for name, value in fields.items() if name in of and is_plain_number(value, of[name][0].kind)}
    return fields | numbers if numbers else None


def shown_record(record: Any) -> str:
    """Return the fields of a record for a repr, cut if they are long."""
    names = list(record.dtype.names)
    parts = [f"{name}={_shown_field(record, name)}" for name in names[:SHOWN_FIELDS]]
    return ", ".join(parts + ["..."] * (len(names) > SHOWN_FIELDS))


def _shown_field(record: Any, name: str) -> str:
    """Return a field's value, short."""
    if record.dtype[name].kind == "U":
        try:
            return _short.repr(text_of(np.asarray(record).reshape(1)[name], name))
        except FieldTextError:
            return "<no text>"
    value = record[name]
    if isinstance(value, np.ndarray):
        return f"<{value.dtype.base if value.dtype.names is None else 'records'} {'x'.join(map(str, value.shape))}>"
    if value.dtype.names is not None:
        return f"({shown_record(value)})"
    return _short.repr(as_python(value))


def as_python(value: Any) -> Any:
    """Return a NumPy scalar as Python's own type, if there is one."""
    return value if isinstance(value, NUMPY_OWN) else value.item()


def epoch() -> int:
    """Return the number of forks that led to this process."""
    return this_process().epoch


class SlabObjectGuard(Fields, Generic[R]):
    """
    The owner of one record: its fields are attributes, and leaving the `with` block frees it.

    Made by `SlabCache.allocate` and `SlabCache.adopt`.  Every access compares the generation, so that a record which somebody
    else freed is noticed.  Scalars are read as Python values (dates as NumPy's); sub-arrays as writable NumPy views,
    nested records as views with attributes of their own.  Assigned values are checked: nothing is wrapped, cut or
    rounded to infinity.  A field whose name is one of the guard's own (`free`, `handle`, ...) is ``guard["free"]``.

    Raises
    ------
    StaleHandleError
        By every access after `free`, `release`, or the end of the block.
    ClosedError
        By every access after the cache is closed.
    FieldNameError
        For a field that the record does not have, by an assignment and by ``guard["name"]``; the message names those that are
        near.  Reading such an attribute raises CPython's own AttributeError, which proposes near names when it is shown.
    FieldTypeError, FieldRangeError, ArrayError
        By an assignment of another kind, out of range, or of another shape; nothing is written.
    FieldTextError
        By reading a text field that holds no text.
    CopyError
        If it is copied or pickled.

    Notes
    -----
    A number takes some 30 ns to read or write.  Any thread may use it and free it; of two that free it at once one
    gets the error.  In a child of `fork` it reads the child's copy; leaving the block and being collected do nothing there.
    Collected without having been freed, it frees its record with a `ResourceWarning`.  Views that were handed out keep the
    cache's memory mapped, and show whatever the slot holds next.  Equal to nothing but itself.

    The guard class of a dtype is kept for good, some 15 KB of it.  A guard that dies in one cycle with its cache, which is then
    closed, gives no warning.  Whatever exception comes when a guard ends, its record is freed: also by Ctrl-C, at the recursion
    limit and without memory.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> dtype = np.dtype([("id", "u1"), ("data", "f4", (3,)), ("at", [("x", "f8"), ("y", "f8")])])
    >>> cache = jitslab.SlabCache("doc-guard", dtype, capacity=10, init="zero")
    >>> with cache.allocate() as it:
    ...     it.id = 42
    ...     it.data[0] = 0.5
    ...     it.at.x = 1.5
    ...     it
    <SlabObjectGuard of 'doc-guard': id=42, data=<float32 3>, at=(x=1.5, y=0.0)>
    >>> len(cache)
    0
    >>> with cache.allocate() as it:
    ...     it.id = 300
    Traceback (most recent call last):
        ...
    jitslab.errors.FieldRangeError: field 'id' takes an integer 0 .. 255, got 300
    >>> len(cache)
    0
    >>> cache.close()
    """

    __slots__ = ()
    # Its class has these: in C as data of the object, in Python as slots or properties.
    _cache: SlabCache[R]
    _epoch: int  # forks that led to the process that made it
    _handle: int  # 0 once it owns no record any more

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a guard is made by a cache."""
        raise GuardError("a guard is made by cache.allocate() or cache.adopt(handle)")

    @property
    def cache(self) -> SlabCache[R]:
        """The cache of the record."""
        return self._cache

    @property
    def handle(self) -> int:
        """Handle of the record, as links hold it."""
        handle = self._owned()
        self._cache._slot(handle)
        return handle

    @property
    def record(self) -> Any:
        """The record as a `numpy.void` that reads and writes it in place."""
        return self._cache[self._owned()]

    def free(self) -> None:
        """
        Free the record now.

        Raises
        ------
        StaleHandleError
            If the guard owns no record any more, or somebody else freed it.
        ClosedError
            After the cache was closed.
        """
        raise NotImplementedError

    def release(self) -> int:
        """
        Give the ownership away: the record stays live, and the guard is done.

        Returns
        -------
        int
            The handle; whoever has it frees it, or adopts it by ``cache.adopt(handle)``.

        Raises
        ------
        StaleHandleError
            If the guard owns no record any more.
        """
        raise NotImplementedError

    def __enter__(self) -> R:
        """Return the guard; leaving the block frees the record, also by an exception."""
        raise NotImplementedError

    def __exit__(self, *args: Any) -> None:
        """Free the record, unless it was freed or released in the block."""
        raise NotImplementedError

    # --- Called by the C methods on their rare paths ---

    def _gone(self) -> str:
        return "freed by another" if self._handle else super()._gone()

    def _owned(self) -> int:
        """Return the handle, live or not; raise if the guard has given it up."""
        handle = self._handle
        if handle == 0:
            self._cache._need_open()
            raise StaleHandleError(f"this guard of cache {self._cache.name!r} has no record any more: {self._gone()}")
        return handle

    def _live_slot(self) -> int:
        return self._cache._slot(self._owned())

    _need_live = _live_slot

    def _refuse_enter(self) -> NoReturn:
        """Raise the reason why the guard cannot be entered."""
        self._need_live()
        raise GuardError("this guard is in a with block already")

    def _not_freed(self, handle: int) -> None:
        """Raise the reason why the record of a handle could not be freed; 0: the guard owned none."""
        self._cache.free(handle or self._owned())

    def _never_freed(self, held: bytes | None = None, is_finalizing: Any = sys.is_finalizing) -> None:
        """Say that the record was left to the collector, which has freed it; `held` are its bytes."""
        cache = self._cache
        if is_finalizing() or not hasattr(cache, "_numba_type_"):  # the collector is taking the cache apart
            return
        fields = "" if held is None else shown_record(np.frombuffer(held, cache.dtype)[0])
        text = f"never freed: <{type(self).__name__} of {cache.name!r}: {fields}>"
        warnings.warn(text, ResourceWarning, stacklevel=2, source=self)


class SlabRecordView(Fields):
    """
    A nested record of a guard's record, by reference: its fields are attributes, checked as the guard's own are.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> dtype = np.dtype([("at", [("x", "f8"), ("y", "f8")])])
    >>> with jitslab.SlabCache("doc-view", dtype, capacity=10, init="zero") as cache, cache.allocate() as it:
    ...     at = it.at
    ...     at.x = 1.5
    ...     it.record["at"].item(), at
    ((1.5, 0.0), <SlabRecordView .at: x=1.5, y=0.0>)
    """

    __slots__ = ()
    _guard: SlabObjectGuard[Any]  # in C data of the object, in Python a slot
    _path: ClassVar[tuple[str, ...]] = ()
    _cache: Any = property(lambda self: self._guard._cache)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a view is made by reading a guard's field."""
        raise GuardError("a view of a nested record is made by reading a guard's field")

    @property
    def record(self) -> Any:
        """The nested record as a `numpy.void` that reads and writes it in place."""
        record = self._guard.record
        for name in self._path:
            record = record[name]
        return record

    def _live_slot(self) -> int:
        return self._guard._live_slot()

    def _owned(self) -> int:
        return self._guard._owned()

    def _gone(self) -> str:
        return self._guard._gone()

    def _place(self) -> str:
        return f".{'.'.join(self._path)}"


def has_own(cls: type, name: str) -> bool:
    """Whether objects of a class have an attribute by way of it; `hasattr` would answer for the class's own, too, as `mro`."""
    return any(name in vars(base) for base in cls.__mro__)
