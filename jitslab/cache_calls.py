"""
`SlabCache.alloc` and `SlabCache.free` as real C methods: a third of what a call through Numba's dispatcher costs.

Above `entry`, below `cache`; the one file beside `_native` and `_os` that knows a C struct.  Each method is a `@cfunc` behind
a `PyMethodDef`: the fast path in C, and for everything else (closed, full, faults to report, a handle that is refused or
is no plain integer) a call of the Python method ``_alloc_slow`` or ``_free_slow``, which raises.  Where this cannot be
done `install` answers False, and the class keeps its Python methods.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from llvmlite import ir
from numba import types

from ._native import I64, PTR, Entry, literal_intrinsic, load8, my_heap
from .batch import alloc_any
from .blocktype import HEAD
from .heap import free_any
from .layout import NULL, C

METH_NOARGS, METH_O = 4, 8
FAULTS = C["faults"] // 8

_ptr = types.intp
_external: Any = types.ExternalFunction
PyLong_FromLongLong = _external("PyLong_FromLongLong", _ptr(types.int64))
PyNumber_AsSsize_t = _external("PyNumber_AsSsize_t", types.int64(_ptr, _ptr))
PyErr_Occurred = _external("PyErr_Occurred", _ptr())
PyErr_Clear = _external("PyErr_Clear", types.void())
PyObject_CallNoArgs = _external("PyObject_CallNoArgs", _ptr(_ptr))
PyObject_Call = _external("PyObject_Call", _ptr(_ptr, _ptr, _ptr))
PyTuple_New = _external("PyTuple_New", _ptr(_ptr))
PyTuple_SetItem = _external("PyTuple_SetItem", types.int32(_ptr, _ptr, _ptr))
SYMBOLS = [
    "PyLong_FromLongLong",
    "PyNumber_AsSsize_t",
    "PyErr_Occurred",
    "PyErr_Clear",
    "PyObject_CallNoArgs",
    "PyObject_Call",
    "PyTuple_New",
    "PyTuple_SetItem",
    "Py_IncRef",
    "Py_DecRef",
    "PyObject_GetAttrString",
    "PyDescr_NewMethod",
]
Py_IncRef = _external("Py_IncRef", types.void(_ptr))
Py_DecRef = _external("Py_DecRef", types.void(_ptr))


@literal_intrinsic
def method_of(typing: Any, obj: Any, name: Any) -> Any:
    """New reference to an object's attribute, or 0 with an exception set."""
    text = name.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        string = context.insert_const_string(builder.module, text)
        getattr_ = ir.FunctionType(PTR, [PTR, PTR])
        function = builder.module.globals.get("PyObject_GetAttrString") or ir.Function(
            builder.module, getattr_, "PyObject_GetAttrString"
        )
        return builder.ptrtoint(builder.call(function, [builder.inttoptr(args[0], PTR), string]), I64)

    return types.int64(types.int64, name), emit


@literal_intrinsic
def c_object(typing: Any, name: Any) -> Any:
    """Address of one of CPython's own objects."""
    symbol = name.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(context.get_python_api(builder).get_c_object(symbol), I64)

    return types.int64(name), emit


def _alloc(self: int, unused: int) -> int:
    array = load8(self + HEAD, 0)
    if array != 0:
        c = load8(array + HEAD, 0)
        if load8(c, FAULTS) == 0:
            handle = alloc_any(c, my_heap(c))
            if handle != NULL:
                return PyLong_FromLongLong(handle)  # type: ignore[no-any-return]  # C functions have no types
    method = method_of(self, "_alloc_slow")
    if method == 0:
        return 0
    answer = PyObject_CallNoArgs(method)
    Py_DecRef(method)
    return answer  # type: ignore[no-any-return]  # likewise


def _free(self: int, obj: int) -> int:
    array = load8(self + HEAD, 0)
    if array != 0:
        handle = PyNumber_AsSsize_t(obj, 0)
        if handle == -1 and PyErr_Occurred() != 0:
            PyErr_Clear()
        elif free_any(load8(array + HEAD, 0), my_heap(load8(array + HEAD, 0)), handle):
            none = c_object("_Py_NoneStruct")
            Py_IncRef(none)
            return none  # type: ignore[no-any-return]  # likewise
    method = method_of(self, "_free_slow")
    if method == 0:
        return 0
    answer = 0
    arguments = PyTuple_New(1)
    if arguments != 0:
        Py_IncRef(obj)  # the tuple takes a reference
        PyTuple_SetItem(arguments, 0, obj)
        answer = PyObject_Call(method, arguments, 0)
        Py_DecRef(arguments)
    Py_DecRef(method)
    return answer


class PyMethodDef(ctypes.Structure):
    """CPython's description of a C method."""

    _fields_ = (("name", ctypes.c_char_p), ("meth", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p))


_kept: list[Any] = []  # CPython keeps pointers to these for as long as it runs


def slot_offset(descriptor: Any, name: str) -> int:
    """Return where an object keeps the `__slots__` entry of a member descriptor; -1 if the descriptor looks unusual."""
    definition = ctypes.c_void_p.from_address(id(descriptor) + HEAD + 3 * 8).value or 0
    if not definition or ctypes.c_char_p.from_address(definition).value != name.encode():
        return -1
    return int(ctypes.c_ssize_t.from_address(definition + 16).value)


def install(cls: type, block: Any, name: str) -> bool:
    """
    Give `cls` the C methods `alloc` and `free`; whether that could be done.

    Parameters
    ----------
    cls : type
        A class with the methods ``_alloc_slow()`` and ``_free_slow(handle)``.
    block, name
        Descriptor and name of the slot, the first of its objects, that holds the ndarray of the control block.
    """
    if sys.implementation.name != "cpython" or sys.maxsize < 1 << 32 or slot_offset(block, name) != HEAD:
        return False
    if not all(hasattr(ctypes.pythonapi, symbol) for symbol in SYMBOLS):  # a missing one would end the process
        return False
    new_method = ctypes.pythonapi.PyDescr_NewMethod
    new_method.restype = ctypes.py_object
    new_method.argtypes = [ctypes.py_object, ctypes.c_void_p]
    for name_, flags, parameters, function in (
        ("alloc", METH_NOARGS, "$self, /", _alloc),
        ("free", METH_O, "$self, handle, /", _free),
    ):
        compiled = Entry(function)
        doc = f"{name_}({parameters})\n--\n\n{getattr(cls, name_).__doc__}"
        method = PyMethodDef(name_.encode(), compiled.address, flags, doc.encode())
        _kept.append((compiled, method))
        setattr(cls, name_, new_method(cls, ctypes.addressof(method)))
    return True
