"""
`SlabObjectGuard`: the owner of one record, with its fields as attributes.

Above `_fields` and `fit`, below `cache`.  Each dtype has a class of guards, made once: a field is an attribute of it, in C where
`_fields` can make it so, else a `FieldAttribute`.  The methods here whose names end in ``_slow``, and `_read` and `_write`, are
what the C methods call where they do not do it themselves.
"""

from __future__ import annotations

import contextlib
import reprlib
import sys
import types
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache as cached
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn

import numpy as np

from . import _fields
from ._methods import slot_offset
from .cast import shown
from .errors import CopyError, FieldNameError, FieldTextError, FieldTypeError, GuardError, HandleError, StaleHandleError
from .fit import is_own, pack, text_of
from .layout import identity
from .process import this_process

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
    """One field of a record: where it lies in the guard's, and the class of views on it if it is a nested record."""

    name: str
    path: tuple[str, ...]
    dtype: np.dtype[Any]
    offset: int
    view: type[SlabRecordView] | None


class FieldAttribute:
    """A field as an attribute, where it cannot be made in C."""

    def __init__(self, name: str, doc: str) -> None:
        self.name = name
        self.__doc__ = doc

    def __get__(self, owner: Any, cls: type) -> Any:
        """Read the field."""
        return self if owner is None else owner._read(self.name)

    def __set__(self, owner: Any, value: Any) -> None:
        """Write the field."""
        owner._write(self.name, value)

    def __delete__(self, owner: Any) -> None:
        """Refuse."""
        owner._delete(self.name)


class Fields:
    """What has fields by attribute and by ``[name]``: guards, views of nested records, batches."""

    __slots__ = ()
    _fields: ClassVar[dict[str, Field]] = {}
    _readers: ClassVar[dict[str, Any]] = {}  # of those that are attributes in C
    _writers: ClassVar[dict[str, Any]] = {}
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
            write = None
        if write is None:
            self._write(name, value)
        else:
            write(self, value)

    def __getattr__(self, name: str) -> Any:
        """Say that there is no such field; of a property that fails, say what it says."""
        if has_own(type(self), name):
            return object.__getattribute__(self, name)
        return self._no_attribute(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign a field; there are no other attributes."""
        try:
            object.__setattr__(self, name, value)
        except FieldNameError:
            raise
        except AttributeError:
            self._no_attribute(name)

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
        """Return what is known of a field."""
        if not isinstance(name, str):
            raise FieldNameError(f"a field is named by a str, got {type(name).__name__} {shown(name)}")
        field = self._fields.get(name)
        return self._no_attribute(name) if field is None else field

    def _read(self, name: str) -> Any:
        """Return a field's value: Python's own where there is one, a view of a sub-array or a nested record."""
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
            value = value if isinstance(value, NUMPY_OWN) else value.item()
        self._live_slot()  # still: so what was read is this record's
        return value

    def _write(self, name: str, value: Any) -> None:
        """Check a value, and write it."""
        field = self._field(name)
        if is_plain_number(value, field.dtype.kind):
            value = value.item()
            if name in self._writers:
                self._writers[name](self, value)  # C knows what to do with it
                return
        self._live_slot()
        handle = self._owned()
        data = pack(value, field.dtype, name)  # runs others' Python, and may take its time
        if not _fields.write_one(self._of_cache()._address, handle, field.offset, data.nbytes, id(data)):
            self._live_slot()  # raises

    def _column(self, name: str) -> Any:
        """Return the field of all slots as an array: reading an element of it takes a third of the time of a record's field."""
        path, cache = self._fields[name].path, self._of_cache()
        try:
            return cache._columns[path]
        except KeyError:
            column = cache._all
            for part in path:
                column = column[part]
            return cache._columns.setdefault(path, column)

    def _live_slot(self) -> int:
        """Return the slot of the record, which is live."""
        raise NotImplementedError

    def _owned(self) -> Any:
        """Return what is owned, live or not, if it was not given up: a handle, or handles."""
        raise NotImplementedError

    def _of_cache(self) -> Any:
        """Return the cache of the record."""
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

    def _shown(self) -> str:
        """Return the fields for a repr, cut where they are long."""
        names = list(self._fields)
        shown = [f"{name}={self._shown_field(name)}" for name in names[:SHOWN_FIELDS]]
        return ", ".join(shown + ["..."] * (len(names) > SHOWN_FIELDS))

    def _shown_field(self, name: str) -> str:
        """Return a field's value for a repr."""
        try:
            return _shown_value(self._read(name))
        except FieldTextError:
            return "<no text>"

    def __copy__(self) -> NoReturn:
        """Refuse: a record has one owner."""
        raise CopyError(f"{type(self).__name__} cannot be copied: a record has one owner; copy guard.record")

    def __deepcopy__(self, memo: Any) -> NoReturn:
        """Refuse, as `__copy__`."""
        self.__copy__()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse to be pickled: the memory is private to this process."""
        raise CopyError(f"{type(self).__name__} cannot be pickled: its memory is private to this process; use record.copy()")


def is_plain_number(value: Any, kind: str) -> bool:
    """Whether a field of that kind takes a NumPy scalar as it takes Python's number."""
    if isinstance(value, np.integer):
        return kind in "iuf" and not isinstance(value, np.timedelta64)
    return kind == "f" and isinstance(value, (np.float64, np.float32))


def _shown_value(value: Any) -> str:
    """Return a field's value, short."""
    if isinstance(value, np.ndarray):
        return f"<{value.dtype.base if value.dtype.names is None else 'records'} {'x'.join(map(str, value.shape))}>"
    return f"({value._shown()})" if isinstance(value, Fields) else _short.repr(value)


def epoch() -> int:
    """Return the number of forks that led to this process."""
    return int(this_process().block["epoch"][0])


class SlabObjectGuard(Fields, _fields.Memory, Generic[R]):  # type: ignore[misc]  # made by CPython
    """
    The owner of one record: its fields are attributes, and leaving the `with` block frees it.

    Made by `SlabCache.allocate` and `SlabCache.adopt`.  Every access compares the generation, so that a record which somebody
    else freed is noticed.  Scalars are read as Python values (dates as NumPy's); sub-arrays as writable NumPy views,
    nested records as views with attributes of their own.  What is assigned is checked: nothing is wrapped, cut or
    rounded to infinity.  A field whose name is one of the guard's own (`free`, `handle`, ...) is ``guard["free"]``.

    Raises
    ------
    StaleHandleError
        By every access after `free`, `release`, or the end of the block.
    ClosedError
        By every access after the cache is closed.
    FieldNameError
        For a field that the record does not have; the message names those that are near.
    FieldTypeError, FieldRangeError, ArrayError
        By an assignment of another kind, out of range, or of another shape; nothing is written.
    CopyError
        If it is copied or pickled.

    Notes
    -----
    A number takes some 20 ns to read or write.  Any thread may use it and free it; of two that free it at once one
    gets the error.  In a child of `fork` it reads the child's copy; leaving the block and being collected do nothing there.
    Collected without having been freed, it frees its record with a `ResourceWarning`.  Views that were handed out keep the
    cache's memory mapped, and show whatever the slot holds next.  Equal to nothing but itself.

    The guard class of a dtype is kept for good, some 15 KB of it.  A guard that dies in one cycle with its cache, which is then
    closed, gives no warning; one that is collected at the recursion limit may leave its record live.

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

    __slots__ = ("__weakref__", "_cache", "_entered", "_epoch", "_handle")
    _cache: SlabCache[R]
    _entered: Any  # True in a with block; "released" after `release`
    _epoch: int  # forks that led to the process that made it
    _handle: int  # absent once it owns no record any more

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a guard is made by a cache."""
        raise GuardError("a guard is made by cache.allocate() or cache.adopt(handle)")

    @property
    def cache(self) -> SlabCache[R]:
        """The cache of the record."""
        return self._cache

    @property
    def handle(self) -> int:
        """Handle of the record: what links hold."""
        return self._handle_slow()

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
        self._free_slow()

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
        self._cache._slot(self._owned())
        handle = self._take()
        _slots["_entered"].__set__(self, "released")
        return handle

    def __enter__(self) -> R:
        """Return the guard; leaving the block frees the record, also by an exception."""
        return self._enter_slow()  # type: ignore[no-any-return]  # itself, which has the fields of R

    def __exit__(self, *args: Any) -> None:
        """Free the record, unless it was freed or released in the block."""
        self._exit_slow(args[0])

    def __del__(self) -> None:
        """Free the record as a last resort."""
        self._collected()

    def __repr__(self) -> str:
        """Say the cache and the fields, cut where they are long."""
        head = f"<{type(self).__name__} of {self._cache.name!r}"
        try:
            return f"{head}: {self._shown()}>"
        except HandleError:
            return f"{head}: {self._gone()}>"
        except ValueError:
            return f"{head}: its cache is closed>"

    # --- What the C methods call where they do not do it themselves ---

    def _gone(self) -> str:
        """Say why the guard owns no record."""
        if hasattr(self, "_handle"):
            return "freed by another"
        return "released" if getattr(self, "_entered", None) == "released" else "freed"

    def _owned(self) -> int:
        """Return the handle, live or not, if the guard has not given it up."""
        try:
            return self._handle
        except AttributeError:
            self._cache._need_open()
            raise StaleHandleError(f"this guard of cache {self._cache.name!r} has no record any more: {self._gone()}") from None

    def _take(self) -> int:
        """Return the handle, to one caller only."""
        handle = self._owned()
        if not self._forget():
            self._owned()
        return handle

    def _forget(self) -> bool:
        """Give the handle up; False if there is none: of two threads one finds nothing."""
        try:
            _slots["_handle"].__delete__(self)
        except AttributeError:
            return False
        return True

    def _live_slot(self) -> int:
        return self._cache._slot(self._owned())

    def _of_cache(self) -> Any:
        return self._cache

    def _handle_slow(self) -> int:
        handle = self._owned()
        self._cache._slot(handle)
        return handle

    def _enter_slow(self) -> Any:
        self._cache._slot(self._owned())
        if getattr(self, "_entered", None) is True:
            raise GuardError("this guard is in a with block already")
        _slots["_entered"].__set__(self, True)
        return self

    def _exit_slow(self, kind: Any) -> None:
        if self._epoch != epoch() or not hasattr(self, "_handle") or self._cache.closed:
            return
        try:
            self._free_slow()
        except HandleError:  # freed by another: said, but not in the place of what ended the block
            if kind is None:
                raise

    def _free_slow(self) -> None:
        self._cache.free(self._take())

    def _collected(self, is_finalizing: Any = sys.is_finalizing) -> None:
        handle = getattr(self, "_handle", None)
        if is_finalizing() or handle is None or self._epoch != epoch() or self._cache.closed or handle not in self._cache:
            return
        try:
            warnings.warn(f"never freed: {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            with contextlib.suppress(StaleHandleError):  # another thread called `__del__`, too, and was first
                self._free_slow()


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
    ...     it.record["at"]["x"], at
    (np.float64(1.5), <SlabRecordView .at: x=1.5, y=0.0>)
    """

    __slots__ = ("_guard",)
    _guard: SlabObjectGuard[Any]
    _path: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def _of(cls, owner: Any) -> SlabRecordView:
        """Return the view of a guard, or of a view."""
        view = object.__new__(cls)
        _view_slot.__set__(view, owner._guard if isinstance(owner, SlabRecordView) else owner)
        return view

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

    def _of_cache(self) -> Any:
        return self._guard._cache

    def __repr__(self) -> str:
        """Say the path and the fields."""
        head = f"<{type(self).__name__} .{'.'.join(self._path)}"
        try:
            return f"{head}: {self._shown()}>"
        except HandleError:
            return f"{head}: {self._guard._gone()}>"
        except ValueError:
            return f"{head}: its cache is closed>"


# --- What only this module sets ---

# The C methods trust what is in these slots: so they are read-only properties to everybody else.
_slots: dict[str, Any] = {name: SlabObjectGuard.__dict__[name] for name in _fields.GUARD_SLOTS}
_view_slot: Any = SlabRecordView.__dict__["_guard"]


def _seal() -> None:
    """Make the slots read-only."""
    for name, slot in _slots.items():
        setattr(SlabObjectGuard, name, property(slot.__get__))
    setattr(SlabRecordView, "_guard", property(_view_slot.__get__))  # noqa: B010  # to mypy it stays what it reads


# --- A class for each dtype ---

_classes: dict[tuple[Any, ...], tuple[Any, Any]] = {}


@cached
def can_be_in_c(cache: type, class_slot: Any, table_slot: Any) -> bool:
    """Give guards and the class of caches their C methods, before the first guard; whether that could be done."""
    can = _can_install and slot_offset(class_slot, "_guard_class") == _fields.GUARD_CLASS
    can &= slot_offset(table_slot, "_guard_table") == _fields.GUARD_TABLE
    if can:
        _fields.install_guard(SlabObjectGuard)
        _fields.install_cache(cache)
    return can


def guard_class(dtype: np.dtype[Any], declared: Any, in_c: bool) -> tuple[Any, Any]:
    """Return the class of the guards of a dtype, or of a declared class, and its table: made once."""
    key = dtype, identity(dtype), declared, in_c
    if key not in _classes:  # of two threads, both take what the first one made
        _fields.write_one.compile()  # now: when the interpreter ends, it cannot be done any more
        _classes.setdefault(key, make_class(SlabObjectGuard, dtype, declared, (), 0, in_c))
    return _classes[key]


def make_class(base: type, dtype: np.dtype[Any], declared: Any, path: tuple[str, ...], start: int, in_c: bool) -> tuple[Any, Any]:
    """
    Make a class whose fields are attributes; returns it and, of guards in C, the table of its fields.

    Parameters
    ----------
    base : type
        `SlabObjectGuard` or `SlabRecordView`.
    dtype : numpy.dtype
        Of its record.
    declared
        The class that declares the record, whose methods it gets; or None.
    path, start
        Where a nested record lies: names, and bytes from the start of the guard's record.
    in_c : bool
        Whether its attributes are made in C.
    """
    bases = (base,) if declared is None else (base, declared)
    name = base.__name__ if declared is None else declared.__name__
    namespace = {"__slots__": (), "__doc__": (declared or base).__doc__, "__module__": (declared or base).__module__}
    cls: Any = types.new_class(name, bases, {}, lambda names: names.update(namespace))
    nested = {} if declared is None else declared.__jitslab_nested__
    fields = {}
    for field_name in dtype.names or ():
        assert dtype.fields is not None
        of, offset = dtype.fields[field_name][:2]
        view = None
        if of.names is not None:
            view, _ = make_class(SlabRecordView, of, nested.get(field_name), (*path, field_name), start + offset, in_c)
        fields[field_name] = Field(field_name, (*path, field_name), of, start + offset, view)
    cls._fields, cls._path, cls._readers, cls._writers = fields, path, {}, {}
    rows = {}
    for field in fields.values():
        if is_free(base, field.name):
            doc = f"field {field.name!r}: {field.dtype}"
            if in_c:
                kind = kind_of(field)
                row = _fields.install_field(cls, field.name, kind, field.offset, base is SlabRecordView, field.view, doc)
                if kind != _fields.SLOW:
                    rows[field.name] = row
                attribute = vars(cls)[field.name]
                cls._readers[field.name], cls._writers[field.name] = attribute.__get__, attribute.__set__
            else:
                setattr(cls, field.name, FieldAttribute(field.name, doc))
    if in_c:
        if base is SlabObjectGuard:
            _fields.install_field(cls, "handle", _fields.OWN_HANDLE, 0, False, None, base.handle.__doc__ or "")
            return cls, _fields.install_guards(cls, rows)
        _fields.install_view(cls)
    return cls, None


def kind_of(field: Field) -> int:
    """Return how C reads and writes a field."""
    if field.view is not None:
        return _fields.VIEW
    is_plain = field.dtype.isnative and field.dtype.subdtype is None and is_own(field.dtype)
    return _fields.KINDS.get(field.dtype.str[1:], _fields.SLOW) if is_plain else _fields.SLOW


def has_own(cls: type, name: str) -> bool:
    """Whether objects of a class have an attribute by way of it; `hasattr` would answer for the class's own, too, as `mro`."""
    return any(name in vars(base) for base in cls.__mro__)


def is_free(base: type, name: str) -> bool:
    """Whether a field of that name can be an attribute: it hides nothing of the guard itself."""
    is_special = name.startswith("__") and name.endswith("__")
    return not is_special and name.isprintable() and not has_own(base, name)  # no NULs, no halves of characters


def wrap(cls: Any, cache: Any, handle: int) -> Any:
    """Return the guard that owns a live record from now on, where it is not made in C."""
    guard = object.__new__(cls)
    _slots["_cache"].__set__(guard, cache)
    _slots["_epoch"].__set__(guard, epoch())
    _slots["_handle"].__set__(guard, handle)
    return guard


_can_install = _fields.can_install(SlabObjectGuard, SlabRecordView)
_seal()
