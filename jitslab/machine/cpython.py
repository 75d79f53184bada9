"""
Types and methods of CPython from kernels, by documented calls of its stable ABI.

A C function is a kernel of int64s; `storing` stores its address.  The functions of CPython that such kernels call are declared
here.  `make_type` makes a type; `add_method` and `new_attribute` make C methods and attributes for a class that Python made.
An object of a type that `make_type` made keeps its own data from `HEAD` on; no field of CPython's own structures is read.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compile import I64, PTR, Entry, c_object, int64, intrinsic, keep, kernel, literal_intrinsic
from .memory import load8

HEAD = object.__basicsize__  # where an object's own data starts
METH_NOARGS, METH_O, METH_FASTCALL, METH_KEYWORDS = 4, 8, 0x80, 2
READ_ONLY = 1
MEMBER_KINDS = {"u4": 11, "object": 16, "i8": 17, "size": 19}  # T_UINT, T_OBJECT_EX, T_LONGLONG, T_PYSSIZET
SLOTS = {"dealloc": 52, "doc": 56, "methods": 64, "setattro": 69, "traverse": 71, "members": 72}  # numbers of a type's parts
DEFAULT, BASE_TYPE, HAVE_GC = 1 << 18, 1 << 10, 1 << 14  # flags of a type

_ptr = types.intp
_external: Any = types.ExternalFunction
Py_IncRef = _external("Py_IncRef", types.void(_ptr))
Py_DecRef = _external("Py_DecRef", types.void(_ptr))
PyLong_FromLongLong = _external("PyLong_FromLongLong", _ptr(types.int64))
PyLong_FromUnsignedLongLong = _external("PyLong_FromUnsignedLongLong", _ptr(types.uint64))
PyLong_AsSsize_t = _external("PyLong_AsSsize_t", types.int64(_ptr))  # of an int or an object of a subclass; runs no Python
PyNumber_AsSsize_t = _external("PyNumber_AsSsize_t", types.int64(_ptr, _ptr))  # of any object with `__index__`
PyFloat_FromDouble = _external("PyFloat_FromDouble", _ptr(types.float64))
PyFloat_AsDouble = _external("PyFloat_AsDouble", types.float64(_ptr))
PyBytes_FromStringAndSize = _external("PyBytes_FromStringAndSize", _ptr(_ptr, types.int64))
PyTuple_New = _external("PyTuple_New", _ptr(types.int64))
PyTuple_SetItem = _external("PyTuple_SetItem", types.int32(_ptr, types.int64, _ptr))
PyTuple_GetItem = _external("PyTuple_GetItem", _ptr(_ptr, types.int64))
PyTuple_Size = _external("PyTuple_Size", types.int64(_ptr))
PyDict_New = _external("PyDict_New", _ptr())
PyDict_SetItem = _external("PyDict_SetItem", types.int32(_ptr, _ptr, _ptr))
PyObject_Call = _external("PyObject_Call", _ptr(_ptr, _ptr, _ptr))
PyObject_GetItem = _external("PyObject_GetItem", _ptr(_ptr, _ptr))
PyObject_Type = _external("PyObject_Type", _ptr(_ptr))
PyObject_GenericSetAttr = _external("PyObject_GenericSetAttr", types.int32(_ptr, _ptr, _ptr))
PyObject_ClearWeakRefs = _external("PyObject_ClearWeakRefs", types.void(_ptr))
PyObject_GC_New = _external("_PyObject_GC_New", _ptr(_ptr))  # what the macro PyObject_GC_New calls
PyObject_GC_Track = _external("PyObject_GC_Track", types.void(_ptr))
PyObject_GC_UnTrack = _external("PyObject_GC_UnTrack", types.void(_ptr))
PyObject_GC_Del = _external("PyObject_GC_Del", types.void(_ptr))
PyErr_Occurred = _external("PyErr_Occurred", _ptr())
PyErr_Clear = _external("PyErr_Clear", types.void())
PyErr_ExceptionMatches = _external("PyErr_ExceptionMatches", types.int32(_ptr))
PyErr_WriteUnraisable = _external("PyErr_WriteUnraisable", types.void(_ptr))
PyGILState_GetThisThreadState = _external("PyGILState_GetThisThreadState", _ptr())
PyThreadState_GetUnchecked = _external(
    "PyThreadState_GetUnchecked" if sys.version_info >= (3, 13) else "_PyThreadState_UncheckedGet", _ptr()
)
PyEval_GetFrame = _external("PyEval_GetFrame", _ptr())
PyFrame_GetCode = _external("PyFrame_GetCode", _ptr(_ptr))
PyFrame_GetLineNumber = _external("PyFrame_GetLineNumber", types.int32(_ptr))
PyGC_Disable = _external("PyGC_Disable", types.int32())
PyGC_Enable = _external("PyGC_Enable", types.int32())


# --- Calls of CPython ---


@literal_intrinsic
def method_of(typing: Any, obj: Any, name: Any) -> Any:
    """Return a new reference to an object's attribute, or 0 with an exception set."""
    text = name.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        string = context.insert_const_string(builder.module, text)
        shape = ir.FunctionType(PTR, [PTR, PTR])
        function = cgutils.get_or_insert_function(builder.module, shape, "PyObject_GetAttrString")
        return builder.ptrtoint(builder.call(function, [builder.inttoptr(args[0], PTR), string]), I64)

    return types.int64(types.int64, name), emit


@intrinsic
def take_error(typing: Any) -> Any:
    """Take the exception, if one is set, so that Python can be called; returns three objects for `put_error`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        parts = [cgutils.alloca_once_value(builder, I64(0)) for _ in range(3)]
        if sys.version_info >= (3, 12):
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I64, []), "PyErr_GetRaisedException")
            builder.store(builder.call(function, []), parts[0])
        else:
            shape = ir.FunctionType(ir.VoidType(), [I64.as_pointer()] * 3)
            builder.call(cgutils.get_or_insert_function(builder.module, shape, "PyErr_Fetch"), parts)
        return context.make_tuple(builder, signature.return_type, [builder.load(part) for part in parts])

    return types.UniTuple(types.int64, 3)(), emit


@intrinsic
def put_error(typing: Any, error: Any) -> Any:
    """Put the state back that `take_error` took: an exception, or none."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name, n = ("PyErr_SetRaisedException", 1) if sys.version_info >= (3, 12) else ("PyErr_Restore", 3)
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [I64] * n), name)
        builder.call(function, cgutils.unpack_tuple(builder, args[0])[:n])
        return context.get_dummy_value()

    return types.void(types.UniTuple(types.int64, 3)), emit


@intrinsic
def visit(typing: Any, function: Any, obj: Any, argument: Any) -> Any:
    """Show the collector an object that another holds, as Py_VISIT does; returns the answer of `function`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32 = ir.IntType(32)
        called = builder.inttoptr(args[0], ir.FunctionType(i32, [I64, I64]).as_pointer())
        return builder.sext(builder.call(called, args[1:]), I64)

    return types.int64(types.int64, types.int64, types.int64), emit


def storing(kernels: tuple[Any, ...]) -> Any:
    """Return an intrinsic that makes a C function of each kernel and stores their addresses in the array at an address."""

    @intrinsic
    def store(typing: Any, out: Any) -> Any:
        compiled = []
        for it in kernels:
            arguments = (types.int64,) * it.py_func.__code__.co_argcount
            it.compile(arguments)
            compiled.append(it.overloads[arguments])

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            for i, it in enumerate(compiled):
                shape = ir.FunctionType(I64, [I64] * len(it.signature.args))
                c_function = ir.Function(builder.module, shape, f"jitslab.{it.fndesc.mangled_name}")
                c_function.linkage = "internal"
                inner = ir.IRBuilder(c_function.append_basic_block())
                context.active_code_library.add_linking_library(it.library)
                inner.ret(context.call_internal_no_propagate(inner, it.fndesc, it.signature, c_function.args)[1])
                at = builder.inttoptr(builder.add(args[0], I64(8 * i)), I64.as_pointer())
                builder.store(builder.ptrtoint(c_function, I64), at)
            return I64(len(compiled))

        return types.int64(types.int64), emit

    return store


@kernel
def call(method: int, a: int, b: int) -> int:
    """Call a bound method with up to two objects, 0: none, and drop it; returns 0 if an exception is set."""
    if method == 0:
        return 0
    answer = 0
    arguments = PyTuple_New(0 if a == 0 else 1 if b == 0 else 2)
    if arguments != 0:
        if a != 0:
            PyTuple_SetItem(arguments, 0, new_reference(a))  # the tuple takes over a reference
        if b != 0:
            PyTuple_SetItem(arguments, 1, new_reference(b))
        answer = PyObject_Call(method, arguments, 0)
        Py_DecRef(arguments)
    Py_DecRef(method)
    return answer


@kernel
def call_with(method: int, arguments: int, n: int, names: int) -> int:
    """Call a bound method, likewise, as a method was called: with n arguments, then those of a tuple of names, if it is not 0."""
    if method == 0:
        return 0
    answer = 0
    places, keywords = PyTuple_New(n), PyDict_New()
    if places != 0 and keywords != 0:
        is_complete = True
        for i in range(n):
            PyTuple_SetItem(places, i, new_reference(load8(arguments, i)))
        n_names = PyTuple_Size(names) if names != 0 else 0
        for i in range(n_names):
            if PyDict_SetItem(keywords, PyTuple_GetItem(names, i), load8(arguments, n + i)) != 0:
                is_complete = False
                break
        if is_complete:
            answer = PyObject_Call(method, places, keywords)
    if places != 0:
        Py_DecRef(places)
    if keywords != 0:
        Py_DecRef(keywords)
    Py_DecRef(method)
    return answer


@kernel
def new_reference(obj: int) -> int:
    """Count one more reference."""
    Py_IncRef(obj)
    return obj


@kernel
def none() -> int:
    """Return a new reference to None."""
    return new_reference(c_object("_Py_NoneStruct"))


@kernel
def true() -> int:
    """Return a new reference to True."""
    return new_reference(c_object("_Py_TrueStruct"))


@kernel
def python_caller() -> Any:
    """
    Return what Python runs on this thread: a new reference to its code object, and its line.

    0, 0 where that is not known: a thread of `prange`, or of a function with ``nogil=True``, does not hold the GIL.  A frame is
    made with the collector off, which would run others' Python.
    """
    mine = PyGILState_GetThisThreadState()
    if mine == 0 or mine != PyThreadState_GetUnchecked():
        return 0, 0
    was_on = PyGC_Disable()
    frame = PyEval_GetFrame()
    code, line = 0, 0
    if frame != 0:
        code, line = PyFrame_GetCode(frame), int64(PyFrame_GetLineNumber(frame))
    if was_on != 0:
        PyGC_Enable()
    return code, line


@kernel
def is_exactly(obj: int, cls: int) -> bool:
    """Whether an object is of a class itself, not of a subclass."""
    found = PyObject_Type(obj)
    Py_DecRef(found)
    return found == cls


@kernel
def is_attribute_error() -> bool:
    """Whether the exception that is set is an AttributeError."""
    return PyErr_ExceptionMatches(c_object("PyExc_AttributeError")) != 0


# --- Types, methods, attributes ---


class PyMethodDef(ctypes.Structure):
    """CPython's description of a C method."""

    _fields_ = (("name", ctypes.c_char_p), ("meth", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p))


class PyGetSetDef(ctypes.Structure):
    """CPython's description of a C attribute."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("get", ctypes.c_void_p),
        ("set", ctypes.c_void_p),
        ("doc", ctypes.c_char_p),
        ("closure", ctypes.c_void_p),
    )


class PyMemberDef(ctypes.Structure):
    """CPython's description of a member: a piece of an object's data that Python sees."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("offset", ctypes.c_ssize_t),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class PyTypeSlot(ctypes.Structure):
    """CPython's description of one part of a type."""

    _fields_ = (("number", ctypes.c_int), ("pointer", ctypes.c_void_p))


class PyTypeSpec(ctypes.Structure):
    """CPython's description of a type."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("size", ctypes.c_int),
        ("item_size", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("slots", ctypes.c_void_p),
    )


def addresses_of(entry: Entry, kernels: tuple[Any, ...]) -> dict[str, int]:
    """Return the addresses of the C functions of kernels by name, without the underscore; `entry` stores them."""
    addresses = np.zeros(len(kernels), np.int64)
    entry(addresses.ctypes.data)
    return {kernel.py_func.__name__.lstrip("_"): int(at) for kernel, at in zip(kernels, addresses, strict=True)}


def _api(name: str, *arguments: Any) -> Any:
    """Return a function of CPython that returns an object."""
    function = getattr(ctypes.pythonapi, name)
    function.restype, function.argtypes = ctypes.py_object, list(arguments)
    return function


def _text(text: str) -> bytes:
    """Return a text as UTF-8 for C."""
    return text.encode("utf-8", "replace")


def member(name: str, kind: str, offset: int, flags: int = READ_ONLY) -> PyMemberDef:
    """Describe a member of a kind in `MEMBER_KINDS`."""
    return PyMemberDef(_text(name), MEMBER_KINDS[kind], offset, flags, None)


def method(source: Any, address: int, flags: int, parameters: str) -> PyMethodDef:
    """Describe the C method that replaces a Python method; it has the same name and docstring."""
    name = source.__name__
    return PyMethodDef(_text(name), address, flags, _text(f"{name}{parameters}\n--\n\n{source.__doc__}"))


def make_type(
    bases: tuple[Any, ...],
    size: int,
    functions: dict[str, int],
    members: tuple[PyMemberDef, ...],
    methods: tuple[PyMethodDef, ...] = (),
) -> Any:
    """
    Make a type that is kept for good and can be subclassed; it has the name and the docstring of its last base.

    Parameters
    ----------
    bases : tuple of type
        Their objects have no data of their own.
    size : int
        Bytes of an object.
    functions : dict of str to int
        Addresses of C functions, by the names of `SLOTS`; if "traverse" is among them, the collector sees the objects.
    members, methods
        Members that Python sees, and C methods.
    """
    of = bases[-1]
    arrays: dict[str, Any] = {
        "doc": ctypes.create_string_buffer(_text(of.__doc__ or "")),
        "members": (PyMemberDef * (len(members) + 1))(*members),  # ended by zeros
        "methods": (PyMethodDef * (len(methods) + 1))(*methods),
    }
    pointers = functions | {name: ctypes.addressof(array) for name, array in arrays.items()}
    slots = (PyTypeSlot * (len(pointers) + 1))(*(PyTypeSlot(SLOTS[name], at) for name, at in pointers.items()))
    flags = DEFAULT | BASE_TYPE | (HAVE_GC if "traverse" in functions else 0)
    spec = PyTypeSpec(_text(f"{of.__module__}.{of.__name__}"), size, 0, flags, ctypes.addressof(slots))
    cls = _api("PyType_FromSpecWithBases", ctypes.c_void_p, ctypes.py_object)(ctypes.addressof(spec), bases)
    keep(cls, slots, spec, arrays, members, methods)
    return cls


def add_method(cls: type, name: str, address: int, flags: int, parameters: str) -> None:
    """Replace a Python method of a class by a C method with the same docstring."""
    description = method(getattr(cls, name), address, flags, parameters)
    keep(description)
    setattr(cls, name, _api("PyDescr_NewMethod", ctypes.py_object, ctypes.c_void_p)(cls, ctypes.addressof(description)))


def new_attribute(cls: type, name: str, get: int, set_: int, closure: int, doc: str) -> Any:
    """Return a C attribute for the objects of a class; both functions get `closure` as their last argument."""
    row = PyGetSetDef(_text(name), get, set_, _text(doc), closure)
    keep(row)
    return _api("PyDescr_NewGetSet", ctypes.py_object, ctypes.c_void_p)(cls, ctypes.addressof(row))
