"""
Guards in C: allocation, the two ends of a `with` block, and fields, each read and written at the speed of a C attribute.

Above `_methods`, below `guard`.  A field is a real getset descriptor (`PyDescr_NewGetSet`) over two `@cfunc`s for all fields,
told which by a FIELD row.  Every access compares the generation.  Fast paths are here; for all else (freed, closed, of
another process, a value to refuse, a kind of field not known here) they call a Python method of `guard`, which does it or
raises.  A guard has its slots at the offsets below; they are verified before anything is installed.
"""

from __future__ import annotations

import ctypes
import sys
import sysconfig
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import add_symbol
from numba import types

from ._methods import (
    FAULTS,
    METH_NOARGS,
    SYMBOLS,
    Py_DecRef,
    Py_IncRef,
    PyErr_Clear,
    PyErr_Occurred,
    PyLong_FromLongLong,
    PyMethodDef,
    PyNumber_AsSsize_t,
    PyObject_Call,
    PyTuple_New,
    PyTuple_SetItem,
    c_object,
    method_of,
    slot_offset,
)
from ._native import I64, Entry, copy_bytes, frozen, int64, kernel, literal_intrinsic, load8, my_heap, store8
from .batch import alloc_any
from .blocktype import HEAD
from .heap import H_RECORDS, SLOT_MASK, free_any, is_live
from .layout import NULL, PROCESS, C, offsets, record

METH_FASTCALL = 0x80
GUARD_SLOTS = {"_cache": HEAD, "_entered": HEAD + 8, "_epoch": HEAD + 16, "_handle": HEAD + 24}  # CPython sorts them by name
CACHE, ENTERED, EPOCH, HANDLE = GUARD_SLOTS.values()
GUARD_CLASS = HEAD + 8  # of a cache: the class of its guards
TYPE = HEAD - 8  # of any object: its type
GETATTRO, SETATTRO = 144, 152  # of a type, verified: what reads and writes attributes of its objects
C_STRIDE, C_PROCESS, P_EPOCH = C["stride"], C["process"] // 8, offsets(PROCESS)["epoch"] // 8

# How a field lies in the record; SLOW: NumPy reads and writes it.
SLOW, I1, I2, I4, I8, U1, U2, U4, U8, F4, F8, BOOL, VIEW, OWN_HANDLE = range(14)
KINDS = {"i1": I1, "i2": I2, "i4": I4, "i8": I8, "u1": U1, "u2": U2, "u4": U4, "u8": U8, "f4": F4, "f8": F8, "b1": BOOL}
FIELD = record(
    ("kind", "i8"),
    ("offset", "i8"),  # from the start of the record
    ("least", "i8"),  # of an integer
    ("most", "i8"),
    ("name", "i8"),  # the str, for the slow path
    ("view", "i8"),  # the class of a nested record's view
    ("nested", "i8"),  # 1: of a view, whose first slot holds the guard
)
F_KIND, F_OFFSET, F_LEAST, F_MOST, F_NAME, F_VIEW, F_NESTED = (offset // 8 for offset in offsets(FIELD).values())

_ptr = types.intp
_external: Any = types.ExternalFunction
PyLong_FromUnsignedLongLong = _external("PyLong_FromUnsignedLongLong", _ptr(types.uint64))
PyLong_AsLongLong = _external("PyLong_AsLongLong", types.int64(_ptr))
PyFloat_FromDouble = _external("PyFloat_FromDouble", _ptr(types.float64))
PyFloat_AsDouble = _external("PyFloat_AsDouble", types.float64(_ptr))
PyType_GenericAlloc = _external("PyType_GenericAlloc", _ptr(_ptr, _ptr))
PyObject_GenericGetAttr = _external("PyObject_GenericGetAttr", _ptr(_ptr, _ptr))
PyObject_GenericSetAttr = _external("PyObject_GenericSetAttr", types.int32(_ptr, _ptr, _ptr))
PyErr_ExceptionMatches = _external("PyErr_ExceptionMatches", types.int32(_ptr))
NEEDED = [
    *SYMBOLS,
    "PyLong_FromUnsignedLongLong",
    "PyLong_AsLongLong",
    "PyFloat_FromDouble",
    "PyFloat_AsDouble",
    "PyType_GenericAlloc",
    "PyObject_GenericGetAttr",
    "PyObject_GenericSetAttr",
    "PyErr_ExceptionMatches",
    "PyDescr_NewGetSet",
    "PyType_Modified",
    "PyLong_Type",
    "PyFloat_Type",
    "_Py_NoneStruct",
    "_Py_TrueStruct",
    "_Py_FalseStruct",
]


add_symbol("jitslab.AttributeError", id(AttributeError))  # where the machine code is linked, so that it can be kept on disk


def _ir_type(code: str) -> Any:
    """LLVM's type of a field."""
    if code[0] == "f":
        return ir.FloatType() if code == "f4" else ir.DoubleType()
    return ir.IntType(8 * int(code[1]))


@literal_intrinsic
def peek(typing: Any, at: Any, code: Any) -> Any:
    """The field of that NumPy code at an address, aligned or not; as int64 or float64."""
    text = code.literal_value
    to = types.float64 if text[0] == "f" else types.int64

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(builder.inttoptr(args[0], _ir_type(text).as_pointer()), align=1)
        if text[0] == "f":
            return builder.fpext(value, ir.DoubleType()) if text == "f4" else value
        if text[1] == "8":
            return value
        return builder.sext(value, I64) if text[0] == "i" else builder.zext(value, I64)

    return to(types.int64, code), emit


@literal_intrinsic
def poke(typing: Any, at: Any, value: Any, code: Any) -> Any:
    """Store a value that fits into the field of that NumPy code at an address, aligned or not."""
    text = code.literal_value
    takes = types.float64 if text[0] == "f" else types.int64

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, low = _ir_type(text), args[1]
        if text == "f4":
            low = builder.fptrunc(low, to)
        elif text[0] != "f" and text[1] != "8":
            low = builder.trunc(low, to)
        builder.store(low, builder.inttoptr(args[0], to.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, takes, code), emit


# --- Calls of Python ---


@kernel
def call_with(method: int, a: int, b: int) -> int:
    """Call a bound method, a new reference that is dropped, with one object, or two; 0 with an exception set."""
    if method == 0:
        return 0
    answer = 0
    arguments = PyTuple_New(1 if b == 0 else 2)
    if arguments != 0:
        Py_IncRef(a)  # the tuple takes a reference
        PyTuple_SetItem(arguments, 0, a)
        if b != 0:
            Py_IncRef(b)
            PyTuple_SetItem(arguments, 1, b)
        answer = PyObject_Call(method, arguments, 0)
        Py_DecRef(arguments)
    Py_DecRef(method)
    return answer


@kernel
def call(method: int) -> int:
    """Call a bound method, a new reference that is dropped, without arguments; 0 with an exception set."""
    if method == 0:
        return 0
    answer = 0
    arguments = PyTuple_New(0)
    if arguments != 0:
        answer = PyObject_Call(method, arguments, 0)
        Py_DecRef(arguments)
    Py_DecRef(method)
    return answer


@kernel
def new_reference(obj: int) -> int:
    """Count one more reference."""
    Py_IncRef(obj)
    return obj


# --- The guard's life ---


@kernel
def control_of(guard: int) -> int:
    """Address of the control block of a guard's cache; 0 while the collector takes a cycle of them apart."""
    cache = load8(guard, CACHE // 8)
    array = load8(cache, HEAD // 8) if cache != 0 else 0
    return load8(array, HEAD // 8) if array != 0 else 0


@kernel
def record_of(guard: int) -> int:
    """Address of a guard's record; 0: it owns none, or another has freed it."""
    number = load8(guard, HANDLE // 8)
    c = control_of(guard)
    if number == 0 or c == 0:
        return 0
    heap = my_heap(c)
    handle = PyNumber_AsSsize_t(number, 0)
    if not is_live(heap, handle):
        return 0
    return frozen(heap, H_RECORDS) + (handle & SLOT_MASK) * frozen(c, C_STRIDE)


@kernel
def give_back(guard: int) -> bool:
    """Free a guard's record; False, and nothing is changed, if it owns none or the cache refuses the handle."""
    number = load8(guard, HANDLE // 8)
    c = control_of(guard)
    if number == 0 or c == 0 or not free_any(c, my_heap(c), PyNumber_AsSsize_t(number, 0)):
        return False
    store8(guard, HANDLE // 8, 0)
    Py_DecRef(number)
    return True


def _allocate(self: int, unused: int) -> int:
    array = load8(self, HEAD // 8)
    cls = load8(self, GUARD_CLASS // 8)
    if array != 0 and cls != 0:
        c = load8(array, HEAD // 8)
        if load8(c, FAULTS) == 0:
            handle = alloc_any(c, my_heap(c))
            if handle != NULL:
                number = PyLong_FromLongLong(handle)
                epoch = PyLong_FromLongLong(load8(load8(c, C_PROCESS), P_EPOCH)) if number != 0 else 0
                guard = PyType_GenericAlloc(cls, 0) if epoch != 0 else 0
                if guard == 0:
                    free_any(c, my_heap(c), handle)
                    if number != 0:
                        Py_DecRef(number)
                    if epoch != 0:
                        Py_DecRef(epoch)
                    return 0
                store8(guard, CACHE // 8, new_reference(self))
                store8(guard, EPOCH // 8, epoch)
                store8(guard, HANDLE // 8, number)
                return guard
    return call(method_of(self, "_allocate_slow"))


def _enter(self: int, unused: int) -> int:
    if load8(self, ENTERED // 8) == 0 and record_of(self) != 0:
        store8(self, ENTERED // 8, new_reference(c_object("_Py_TrueStruct")))
        return new_reference(self)
    return call(method_of(self, "_enter_slow"))


def _exit(self: int, arguments: int, n: int) -> int:
    epoch = load8(self, EPOCH // 8)
    c = control_of(self)
    if epoch != 0 and c != 0:
        if PyNumber_AsSsize_t(epoch, 0) == load8(load8(c, C_PROCESS), P_EPOCH) and give_back(self):
            return new_reference(c_object("_Py_NoneStruct"))
    kind = load8(arguments, 0) if n > 0 else c_object("_Py_NoneStruct")
    return call_with(method_of(self, "_exit_slow"), kind, 0)


def _free(self: int, unused: int) -> int:
    if give_back(self):
        return new_reference(c_object("_Py_NoneStruct"))
    return call(method_of(self, "_free_slow"))


def _del(self: int, unused: int) -> int:
    if load8(self, HANDLE // 8) == 0:
        return new_reference(c_object("_Py_NoneStruct"))
    return call(method_of(self, "_collected"))


# --- Fields ---


@kernel
def guard_of(self: int, field: int) -> int:
    """Return the guard that a field is read through: the object itself, or that of a nested view."""
    return load8(self, HEAD // 8) if load8(field, F_NESTED) != 0 else self


@kernel
def read_field(guard: int, field: int, at: int) -> int:
    """Return a new reference to the value of a field, a SLOW one aside; 0 with an exception set."""
    kind = load8(field, F_KIND)
    if kind == I8:
        return PyLong_FromLongLong(peek(at, "i8"))
    if kind == I4:
        return PyLong_FromLongLong(peek(at, "i4"))
    if kind == I2:
        return PyLong_FromLongLong(peek(at, "i2"))
    if kind == I1:
        return PyLong_FromLongLong(peek(at, "i1"))
    if kind == U8:
        return PyLong_FromUnsignedLongLong(peek(at, "u8"))
    if kind == U4:
        return PyLong_FromLongLong(peek(at, "u4"))
    if kind == U2:
        return PyLong_FromLongLong(peek(at, "u2"))
    if kind == U1:
        return PyLong_FromLongLong(peek(at, "u1"))
    if kind == F8:
        return PyFloat_FromDouble(peek(at, "f8"))
    if kind == F4:
        return PyFloat_FromDouble(peek(at, "f4"))
    if kind == BOOL:
        return new_reference(c_object("_Py_TrueStruct") if peek(at, "u1") != 0 else c_object("_Py_FalseStruct"))
    if kind == OWN_HANDLE:
        return new_reference(load8(guard, HANDLE // 8))
    view = PyType_GenericAlloc(load8(field, F_VIEW), 0)
    if view != 0:
        store8(view, HEAD // 8, new_reference(guard))
    return view


def _get(self: int, field: int) -> int:
    guard = guard_of(self, field)
    if guard != 0:
        at = record_of(guard)
        if at != 0 and load8(field, F_KIND) != SLOW:
            return read_field(guard, field, at + load8(field, F_OFFSET))
    if load8(field, F_KIND) == OWN_HANDLE:
        return call(method_of(self, "_handle_slow"))
    return call_with(method_of(self, "_read"), load8(field, F_NAME), 0)


@kernel
def write_integer(kind: int, at: int, value: int) -> None:
    """Store an integer that is in range."""
    if kind == I8 or kind == U8:
        poke(at, value, "i8")
    elif kind == I4 or kind == U4:
        poke(at, value, "i4")
    elif kind == I2 or kind == U2:
        poke(at, value, "i2")
    else:
        poke(at, value, "i1")


@kernel
def write_field(field: int, at: int, obj: int) -> bool:
    """Store an int, float or bool that the field can hold; False: the slow path knows what to do with it."""
    kind = load8(field, F_KIND)
    what = load8(obj, TYPE // 8)
    is_int = what == c_object("PyLong_Type")
    if kind >= I1 and kind <= U8 and is_int:
        value = PyLong_AsLongLong(obj)
        if value == -1 and PyErr_Occurred() != 0:
            PyErr_Clear()
            return False
        if value < load8(field, F_LEAST) or value > load8(field, F_MOST):
            return False
        write_integer(kind, at, value)
        return True
    if (kind == F8 or kind == F4) and (is_int or what == c_object("PyFloat_Type")):
        number = PyFloat_AsDouble(obj)
        if number == -1.0 and PyErr_Occurred() != 0:
            PyErr_Clear()
            return False
        if kind == F8:
            poke(at, number, "f8")
            return True
        if abs(number) < 3.4e38 or number != number or abs(number) == np.inf:  # between: the slow path rounds, and looks
            poke(at, number, "f4")
            return True
        return False
    if kind == BOOL and (obj == c_object("_Py_TrueStruct") or obj == c_object("_Py_FalseStruct")):
        poke(at, 1 if obj == c_object("_Py_TrueStruct") else 0, "i1")
        return True
    return False


def _set(self: int, obj: int, field: int) -> int:
    guard = guard_of(self, field)
    if obj != 0 and guard != 0:
        at = record_of(guard)
        if at != 0 and write_field(field, at + load8(field, F_OFFSET), obj):
            return 0
    name = load8(field, F_NAME)
    answer = call_with(method_of(self, "_write"), name, obj) if obj != 0 else call_with(method_of(self, "_delete"), name, 0)
    if answer == 0:
        return -1
    Py_DecRef(answer)
    return 0


# --- What NumPy has converted, into records that are live ---


class HeldEntry(Entry):
    """An `Entry` that Python calls without giving the GIL up: no Python of another thread comes between its steps."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._held: list[tuple[Any, int, Any]] = []

    def compile(self) -> tuple[Any, int, Any]:
        """Return what Python calls, the address, and what keeps both."""
        if not self._held:
            _, address, kept = super().compile()
            arity = self.function.__code__.co_argcount
            self._held.append((ctypes.PYFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * arity)(address), address, kept))
        return self._held[0]


@kernel
def put(c: int, heap: Any, handle: int, offset: int, size: int, source: int) -> bool:
    """Copy bytes into the record of a handle; False: it is not live."""
    if not is_live(heap, handle):
        return False
    copy_bytes(frozen(heap, H_RECORDS) + (handle & SLOT_MASK) * frozen(c, C_STRIDE) + offset, source, size)
    return True


# `data` and `handles` are contiguous ndarrays, by their ids: NumPy's `ctypes` takes longer than the write.


@HeldEntry
def write_one(c: int, handle: int, offset: int, size: int, data: int) -> int:
    """Copy bytes into a record; 0: it is not live."""
    return int64(put(c, my_heap(c), handle, offset, size, load8(data, HEAD // 8)))


@HeldEntry
def write_many(c: int, handles: int, n: int, offset: int, size: int, data: int) -> int:
    """Copy `size` bytes into each of n records, in turn; returns how many.  If one is not live at the start, none is written."""
    heap, hs, source = my_heap(c), load8(handles, HEAD // 8), load8(data, HEAD // 8)
    for i in range(n):
        if not is_live(heap, load8(hs, i)):
            return int64(0)
    done = int64(0)
    for i in range(n):
        done += put(c, heap, load8(hs, i), offset, size, source + i * size)
    return done


def _getattro(self: int, name: int) -> int:
    answer = PyObject_GenericGetAttr(self, name)
    if answer != 0 or PyErr_ExceptionMatches(c_object("jitslab.AttributeError")) == 0:
        return answer
    PyErr_Clear()
    return call_with(method_of(self, "__getattr__"), name, 0)


def _setattro(self: int, name: int, value: int) -> int:
    status = PyObject_GenericSetAttr(self, name, value)
    if status == 0 or PyErr_ExceptionMatches(c_object("jitslab.AttributeError")) == 0:
        return status
    PyErr_Clear()
    answer = call_with(method_of(self, "_no_attribute"), name, 0)
    if answer != 0:
        Py_DecRef(answer)
    return -1


# --- Installing ---


class PyGetSetDef(ctypes.Structure):
    """CPython's description of a C attribute."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("get", ctypes.c_void_p),
        ("set", ctypes.c_void_p),
        ("doc", ctypes.c_char_p),
        ("closure", ctypes.c_void_p),
    )


ENTRIES = {f.__name__: Entry(f) for f in (_allocate, _enter, _exit, _free, _del, _get, _set, _getattro, _setattro)}
METHODS = {
    "__enter__": ("_enter", METH_NOARGS, "($self, /)"),
    "__exit__": ("_exit", METH_FASTCALL, "($self, /, *args)"),
    "free": ("_free", METH_NOARGS, "($self, /)"),
    "__del__": ("_del", METH_NOARGS, "($self, /)"),
}
_kept: list[Any] = []  # CPython keeps pointers to these for as long as it runs


def keep(*objects: Any) -> None:
    """Keep objects for good: modules lose their globals when the interpreter ends, and a guard may be collected after that."""
    _kept.extend(objects)
    for obj in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(obj))


def can_install(guard: type, view: type) -> bool:
    """Whether this interpreter is one that guards can be made in C for, and the slots of its objects lie as said above."""
    if sys.implementation.name != "cpython" or sys.maxsize < 1 << 32:
        return False
    if sysconfig.get_config_var("Py_GIL_DISABLED"):  # that one thread takes the handle is the GIL's doing
        return False
    if not all(hasattr(ctypes.pythonapi, symbol) for symbol in NEEDED):  # a missing one would end the process
        return False
    slots = [(guard.__dict__[name], name, at) for name, at in GUARD_SLOTS.items()]
    slots.append((view.__dict__["_guard"], "_guard", HEAD))
    if any(slot_offset(descriptor, name) != at for descriptor, name, at in slots):
        return False
    generic = [(GETATTRO, "PyObject_GenericGetAttr"), (SETATTRO, "PyObject_GenericSetAttr")]
    addresses = [(at, ctypes.cast(getattr(ctypes.pythonapi, symbol), ctypes.c_void_p).value) for at, symbol in generic]
    return all(ctypes.c_void_p.from_address(id(object) + at).value == address for at, address in addresses)


def new_method(cls: type, name: str, entry: str, flags: int, parameters: str) -> None:
    """Give a class a C method in the place of its Python method, with its docstring."""
    doc = f"{name}{parameters}\n--\n\n{getattr(cls, name).__doc__}"
    method = PyMethodDef(name.encode(), ENTRIES[entry].address, flags, doc.encode())
    make = ctypes.pythonapi.PyDescr_NewMethod
    make.restype, make.argtypes = ctypes.py_object, [ctypes.py_object, ctypes.c_void_p]
    keep(ENTRIES[entry].compile(), method)
    setattr(cls, name, make(cls, ctypes.addressof(method)))


def install_guard(cls: type) -> None:
    """Give the base class of all guards its C methods."""
    for name, (entry, flags, parameters) in METHODS.items():
        new_method(cls, name, entry, flags, parameters)


def install_allocate(cache: type) -> None:
    """Give `SlabCache` the C method `allocate`."""
    new_method(cache, "allocate", "_allocate", METH_NOARGS, "($self, /)")


def install_field(cls: type, name: str, kind: int, offset: int, nested: bool, view: type | None, doc: str) -> None:
    """Give a class the C attribute of one field."""
    row = np.zeros(1, FIELD)
    least, most = 0, 0
    if I1 <= kind <= U8:
        limits = np.iinfo(next(code for code, it in KINDS.items() if it == kind))
        least, most = int(limits.min), min(int(limits.max), (1 << 63) - 1)
    row[0] = (kind, offset, least, most, id(name), 0 if view is None else id(view), int(nested))
    get, set_ = ENTRIES["_get"], ENTRIES["_set"]
    writer = None if kind == OWN_HANDLE else set_.address
    field = PyGetSetDef(name.encode("utf-8", "replace"), get.address, writer, doc.encode("utf-8", "replace"), row.ctypes.data)
    make = ctypes.pythonapi.PyDescr_NewGetSet
    make.restype, make.argtypes = ctypes.py_object, [ctypes.py_object, ctypes.c_void_p]
    keep(get.compile(), set_.compile(), field, row, name, view)
    setattr(cls, name, make(cls, ctypes.addressof(field)))


def install_attributes(cls: type) -> None:
    """Have a class answer for attributes that it does not have, without a cost for those that it has."""
    get, set_ = ENTRIES["_getattro"], ENTRIES["_setattro"]
    keep(get.compile(), set_.compile())
    ctypes.c_void_p.from_address(id(cls) + GETATTRO).value = get.address
    ctypes.c_void_p.from_address(id(cls) + SETATTRO).value = set_.address
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(cls))
