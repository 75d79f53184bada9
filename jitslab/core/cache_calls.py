"""
`SlabCache.alloc` and `SlabCache.free` as C methods, which cost a third of a call through Numba's dispatcher.

Each is the fast path.  Anything else (closed, full, faults to report, a handle that is refused or is no integer) is a call of
the Python method ``_alloc_slow`` or ``_free_slow``, which raises.
"""

from __future__ import annotations

from ..machine import cpython as _cpython
from ..machine.compile import Entry
from ..machine.cpython import PyErr_Clear, PyErr_Occurred, PyLong_FromLongLong, PyNumber_AsSsize_t, call, method_of
from ..machine.holder import holder_at
from ..machine.pointers import address_of
from .calls import my_heap
from .heap import alloc_any, free_any
from .layout import NULL, control_at


@Entry
def alloc(self: int, unused: int) -> int:
    """`SlabCache.alloc`."""
    control = control_at(holder_at(self).address)
    if address_of(control) != 0 and control.faults == 0:
        handle = alloc_any(control, my_heap(control))
        if handle != NULL:
            return PyLong_FromLongLong(handle)
    return call(method_of(self, "_alloc_slow"), 0, 0)


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
    """Give a class with the methods ``_alloc_slow()`` and ``_free_slow(handle)`` the C methods `alloc` and `free`."""
    _cpython.add_method(cls, "alloc", alloc.address, _cpython.METH_NOARGS, "($self, /)")
    _cpython.add_method(cls, "free", free.address, _cpython.METH_O, "($self, handle, /)")
