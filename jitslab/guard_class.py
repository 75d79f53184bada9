"""
A class of guards for each dtype, made once: in C, or in Python if that is impossible.

A field is an attribute of the class.  In C the GIL makes sure that one thread alone takes a guard's handle; so interpreters
without a GIL have the Python form.  The environment variable JITSLAB_PYTHON_GUARDS asks for it on any interpreter.
"""

from __future__ import annotations

import itertools
import os
import sys
import sysconfig
import types
from typing import Any

import numpy as np

from ._validate import dtype_identity, is_own
from .batch_guard import SlabBatchGuard
from .core import guard_calls
from .core.guard_calls import NOTHING
from .guard import Field, SlabObjectGuard, SlabRecordView, epoch, has_own
from .machine.holder import is_going
from .owning import Owning, PythonFields, field_attribute, new_guard

IN_C = not sysconfig.get_config_var("Py_GIL_DISABLED") and not os.environ.get("JITSLAB_PYTHON_GUARDS")
_classes: dict[tuple[Any, ...], Any] = {}
_numbers = itertools.count()  # of classes in Python


class PythonGuard(Owning):
    """The methods of a guard in Python, in the place of C methods."""

    __slots__ = ("__weakref__", "_owner", "_state")
    _epoch = property(lambda self: self._owner.epoch)
    _handle = property(lambda self: 0 if self._owner.array[0] == NOTHING else int(self._owner.array[1]))

    def release(self) -> Any:
        """See `SlabObjectGuard`."""
        return self._give_away()

    def _need_live(self) -> Any:
        handle = self._owned()
        self._cache._slot(handle)
        return handle

    def _refused(self, own: Any, refused: Any) -> Any:
        raise self._cache._refusal(own)

    def __del__(self, is_finalizing: Any = sys.is_finalizing) -> None:
        """Free the record as a last resort; if this is interrupted, the Owner does it."""
        if is_finalizing() or not hasattr(self, "_owner") or self._epoch != epoch() or self._cache.closed:
            return
        if is_going(self._cache) or self._handle not in self._cache:  # also 0
            return
        held = self.record.tobytes()
        if guard_calls.free_owned(self._cache._address, self._owner.address, 0) > 0:
            self._never_freed(held)


class PythonView(PythonFields):
    """The methods of a view in Python, in the place of C methods."""

    __slots__ = ("_guard",)

    @classmethod
    def _of(cls, owner: Any) -> Any:
        """Return the view of a guard, or of a view."""
        view = object.__new__(cls)
        object.__setattr__(view, "_guard", owner._guard if isinstance(owner, SlabRecordView) else owner)
        return view


def guard_class(dtype: np.dtype[Any], declared: Any) -> Any:
    """Return the class of the guards of a dtype, or of a declared class: made once."""
    key = "guard", dtype, dtype_identity(dtype), declared, IN_C
    if key not in _classes:  # two threads take the class of the first
        guard_calls.write_one.compile()  # now: when the interpreter ends, it cannot be done any more
        _classes.setdefault(key, make_class(SlabObjectGuard, dtype, declared, (), 0))
    return _classes[key]


def batch_class(dtype: np.dtype[Any], declared: Any) -> Any:
    """Return the class of the batches of a dtype, or of a declared class: made once."""
    key = "batch", dtype, dtype_identity(dtype), declared
    if key not in _classes:
        guard_calls.write_many.compile(), guard_calls.write_one.compile()  # now, as above
        assert dtype.fields is not None
        names = dtype.names or ()
        cls = subclass((SlabBatchGuard,))
        cls._fields = {name: Field(name, (name,), dtype.fields[name][0], int(dtype.fields[name][1]), None) for name in names}
        add_attributes(cls)
        _classes.setdefault(key, cls)
    return _classes[key]


def births_of(dtype: np.dtype[Any]) -> int:
    """Return the address of the table by which C stores the fields that records of a dtype are born with: made once."""
    key = "births", dtype, dtype_identity(dtype)
    if key not in _classes:
        assert dtype.fields is not None
        found = [(name, dtype.fields[name][0], int(dtype.fields[name][1])) for name in dtype.names or ()]
        of = [(name, kind_of(Field(name, (name,), it, offset, it.names)), offset) for name, it, offset in found]
        _classes.setdefault(key, guard_calls.new_births(dtype.itemsize, of))
    return int(_classes[key])


def adopt(cls: Any, cache: Any, handle: int) -> Any:
    """Return a guard in Python that owns the live record of a handle from now on."""
    guard = new_guard(cls, cache)
    array = guard._owner.array
    array[1] = handle
    array[0] = 1
    return guard


def make_class(base: Any, dtype: np.dtype[Any], declared: Any, path: tuple[str, ...], start: int) -> Any:
    """
    Make a class whose fields are attributes.

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
    """
    is_guard = base is SlabObjectGuard
    nested = {} if declared is None else declared.__jitslab_nested__
    fields = {}
    for name in dtype.names or ():
        assert dtype.fields is not None
        of, offset = dtype.fields[name][:2]
        view = None
        if of.names is not None:
            view = make_class(SlabRecordView, of, nested.get(name), (*path, name), start + offset)
        fields[name] = Field(name, (*path, name), of, start + offset, view)
    bases = () if declared is None else (declared,)
    is_plain = type(declared) is type  # else a metaclass makes the class
    if IN_C:
        make = guard_calls.guard_type if is_guard else guard_calls.view_type
        cls = make(base, bases if is_plain else ())
        add_special_methods(cls, base)
    else:  # a slot that no other class has: so none takes the place of another
        cls = subclass((PythonGuard if is_guard else PythonView, base, *bases), (f"_number_{next(_numbers)}",))
    cls._fields, cls._path, cls._readers, cls._writers = fields, path, {}, {}
    if IN_C:
        add_c_attributes(cls, not is_guard)
    else:
        add_attributes(cls)
    return cls if declared is None or is_plain or not IN_C else subclass((cls, declared))


def subclass(bases: tuple[Any, ...], slots: tuple[str, ...] = ()) -> Any:
    """Return a class with the name and the docstring of its last base."""
    of = bases[-1]
    names = {"__slots__": slots, "__doc__": of.__doc__, "__module__": of.__module__}
    return types.new_class(of.__name__, bases, {}, lambda namespace: namespace.update(names))


def add_special_methods(cls: Any, base: type) -> None:
    """Have operators call the special methods of a declared class: of a class in C, CPython looks at the first base's only."""
    for name in dir(cls):
        owner = next((it for it in cls.__mro__ if name in vars(it)), object)
        if name.startswith("__") and owner not in (cls, *base.__mro__) and isinstance(vars(owner)[name], types.FunctionType):
            setattr(cls, name, vars(owner)[name])


def add_attributes(cls: Any) -> None:
    """Make fields attributes in Python."""
    for field in cls._fields.values():
        if is_free(cls, field.name):
            setattr(cls, field.name, field_attribute(field.name, description(field)))


def add_c_attributes(cls: Any, nested: bool) -> None:
    """Make fields attributes in C; those that cannot be are found by name."""
    for field in cls._fields.values():
        kind = kind_of(field)
        attribute = guard_calls.new_field(cls, field.name, kind, field.offset, nested, field.view, description(field))
        cls._readers[field.name], cls._writers[field.name] = attribute.__get__, attribute.__set__
        if is_free(cls, field.name):
            setattr(cls, field.name, attribute)


def description(field: Field) -> str:
    """Return the docstring of a field's attribute."""
    return f"field {field.name!r}: {field.dtype}"


def kind_of(field: Field) -> int:
    """Return how C reads and writes a field."""
    if field.view is not None:
        return guard_calls.VIEW
    is_plain = field.dtype.isnative and field.dtype.subdtype is None and is_own(field.dtype)
    return guard_calls.KINDS.get(field.dtype.str[1:], guard_calls.SLOW) if is_plain else guard_calls.SLOW


def is_free(cls: type, name: str) -> bool:
    """Whether a field of that name can be an attribute: it hides nothing of the guard itself."""
    is_special = name.startswith("__") and name.endswith("__")
    return not is_special and name.isprintable() and not has_own(cls, name)  # no NULs, no halves of characters
