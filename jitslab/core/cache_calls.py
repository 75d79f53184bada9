"""
`SlabCache.alloc`, `new` and `free` as C methods, which cost a third of a call through Numba's dispatcher.

Each is the fast path.  Anything else (closed, full, faults to report, a handle that is refused or is no integer, a field that
takes no number) is a call of the Python method ``_alloc_slow``, ``_alloc_with``, ``_new_slow`` or ``_free_slow``, which does it
or raises.
"""

from __future__ import annotations

from ..machine import cpython as _cpython
from ..machine.compile import Entry, kernel
from ..machine.cpython import (
    Py_DecRef,
    PyErr_Clear,
    PyErr_Occurred,
    PyLong_FromLongLong,
    PyNumber_AsSsize_t,
    PyObject_GetItem,
    PyTuple_New,
    PyTuple_SetItem,
    call,
    call_with,
    method_of,
)
from ..machine.holder import holder_at
from ..machine.pointers import address_of
from .calls import my_heap
from .guard_calls import be_born, can_be_born
from .heap import alloc_any, free_any
from .layout import NULL, SLOT_MASK, control_at


@Entry
def alloc(self: int, arguments: int, n: int, names: int) -> int:
    """`SlabCache.alloc`."""
    if n | names != 0:
        return alloc_with(self, arguments, n, names)
    control = control_at(holder_at(self).address)
    if address_of(control) != 0 and control.faults == 0:
        handle = alloc_any(control, my_heap(control))
        if handle != NULL:
            return PyLong_FromLongLong(handle)
    return call(method_of(self, "_alloc_slow"), 0, 0)


@kernel
def alloc_with(self: int, arguments: int, n: int, names: int) -> int:
    """`SlabCache.alloc` with fields: by C if all of them are numbers that the fields can hold, else by Python."""
    control = control_at(holder_at(self).address)
    if address_of(control) != 0 and n == 0 and control.faults == 0 and can_be_born(self, names, arguments):
        handle = alloc_any(control, my_heap(control))
        if handle != NULL:
            be_born(self, names, arguments, control.records + (handle & SLOT_MASK) * control.stride)
            return PyLong_FromLongLong(handle)
    return call_with(method_of(self, "_alloc_with"), arguments, n, names)


@Entry
def new(self: int, arguments: int, n: int, names: int) -> int:
    """`SlabCache.new`."""
    control = control_at(holder_at(self).address)
    handle, records = NULL, holder_at(self).records
    if address_of(control) != 0 and records != 0 and n == 0 and control.faults == 0:
        if names == 0 or can_be_born(self, names, arguments):
            handle = alloc_any(control, my_heap(control))
    if handle == NULL:
        return call_with(method_of(self, "_new_slow"), arguments, n, names)
    slot = handle & SLOT_MASK
    if names != 0:
        be_born(self, names, arguments, control.records + slot * control.stride)
    pair = pair_of(PyLong_FromLongLong(handle), item_of(records, PyLong_FromLongLong(slot)))
    if pair == 0:
        free_any(control, my_heap(control), handle)
    return pair


@kernel
def item_of(array: int, index: int) -> int:
    """Return the item of an array at an index, which is dropped; 0 with an exception set."""
    if index == 0:
        return 0
    item = PyObject_GetItem(array, index)
    Py_DecRef(index)
    return item


@kernel
def pair_of(first: int, second: int) -> int:
    """Return a tuple of two objects, which are dropped; 0 with an exception set."""
    pair = 0
    if first != 0 and second != 0:
        pair = PyTuple_New(2)
    if pair != 0:
        PyTuple_SetItem(pair, 0, first)  # the tuple takes the references
        PyTuple_SetItem(pair, 1, second)
        return pair
    if first != 0:
        Py_DecRef(first)
    if second != 0:
        Py_DecRef(second)
    return 0


@Entry
def free(self: int, obj: int) -> int:
    """`SlabCache.free`."""
    control = control_at(holder_at(self).address)
    if address_of(control) != 0:
        handle = PyNumber_AsSsize_t(obj, 0)
        if handle == -1 and PyErr_Occurred() != 0:
            PyErr_Clear()
        elif free_any(control, my_heap(control), handle):
            return _cpython.true()
    return call(method_of(self, "_free_slow"), obj, 0)


def install(cls: type) -> None:
    """Give a class with the methods of the slow paths the C methods `alloc`, `new` and `free`."""
    by_name = _cpython.METH_FASTCALL | _cpython.METH_KEYWORDS
    _cpython.add_method(cls, "alloc", alloc.address, by_name, "($self, /, **fields)")
    _cpython.add_method(cls, "new", new.address, by_name, "($self, /, **fields)")
    _cpython.add_method(cls, "free", free.address, _cpython.METH_O, "($self, handle, /)")
