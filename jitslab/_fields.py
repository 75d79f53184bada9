"""
Guards in C: allocation, the two ends of a `with` block, and fields, each read and written at the speed of a C attribute.

Above `_methods`, below `guard`.  A field is a real getset descriptor (`PyDescr_NewGetSet`) over two `@cfunc`s for all fields,
told which by a FIELD row.  Every access compares the generation.  Fast paths are here; for all else (freed, closed, of
another process, a value to refuse, a kind of field not known here) they call a Python method of `guard`, which does it or
raises.  A guard has its memory and its slots at the offsets below; they are verified before anything is installed.

A guard's own attributes are found by their names' addresses in a TABLE of the class, as CPython's own instructions find
those of classes that it knows: valid while the class has the version that it had when the table was made.

What a guard owns is a number in its memory, not a Python int: an access makes none and reads none.  Beside it stand the addresses
of its generation and its record, valid as long as the cache has its control block, which is looked at first: the collector may
have taken a cycle of both apart.
"""

from __future__ import annotations

import ctypes
import sys
import sysconfig
from functools import cache as cached
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import add_symbol
from numba import types

from ._methods import (
    FAULTS,
    METH_NOARGS,
    METH_O,
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
from ._native import (
    I64,
    Entry,
    copy_bytes,
    frozen,
    inlined,
    int64,
    intrinsic,
    kernel,
    literal_intrinsic,
    load4,
    load4_relaxed,
    load8,
    my_heap,
    shift_right,
    store8,
)
from .batch import alloc_any
from .blocktype import HEAD
from .heap import H_RECORDS, SLOT_MASK, free_any, is_live
from .layout import NULL, PROCESS, C, offsets, record

METH_FASTCALL = 0x80
# In a guard: 0 if it owns none; addresses of generation and record; forks that led to its process; address of the class's table.
HANDLE, WORD, AT, EPOCH, TABLE = range(HEAD, HEAD + 40, 8)
MEMORY_END = HEAD + 40
CACHE, ENTERED = MEMORY_END, MEMORY_END + 8
GUARD_SLOTS = {"_cache": CACHE, "_entered": ENTERED, "_epoch": MEMORY_END + 16, "_handle": MEMORY_END + 24}  # CPython sorts them
GUARD_CLASS, GUARD_TABLE = HEAD + 8, HEAD + 16  # of a cache: the class of its guards, and the ndarray of the class's table
TYPE = HEAD - 8  # of any object: its type
DEALLOC, GETATTRO, SETATTRO = 48, 144, 152  # of a type, verified: what ends its objects; reads, writes their attributes
FINALIZE = 392  # likewise: what is called before an object is collected
VERSION = 384 // 4  # of a type: a number that it has as long as it, and its bases, are not changed; 0: none
TABLE_SIZE = 12  # most fields in a table: those after them are found as attributes of any class are
# Of a table, i8; then (address of the name, address of its FIELD) for each field.
T_CLASS, T_VERSION, T_COUNT, T_FIRST = range(4)
SPARE = 64  # most ended guards whose memory is kept for the next ones
C_STRIDE, C_WORDS, C_RECORDS = C["stride"], C["words"], C["records"]
C_PROCESS, P_EPOCH = C["process"] // 8, offsets(PROCESS)["epoch"] // 8

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
PyObject_Init = _external("PyObject_Init", _ptr(_ptr, _ptr))
PyObject_GC_Track = _external("PyObject_GC_Track", types.void(_ptr))
PyObject_GC_UnTrack = _external("PyObject_GC_UnTrack", types.void(_ptr))
PyObject_GC_IsFinalized = _external("PyObject_GC_IsFinalized", types.int32(_ptr))
PyObject_GC_Del = _external("PyObject_GC_Del", types.void(_ptr))
PyObject_ClearWeakRefs = _external("PyObject_ClearWeakRefs", types.void(_ptr))
PyObject_CallFinalizerFromDealloc = _external("PyObject_CallFinalizerFromDealloc", types.int32(_ptr))
PyErr_SetNone = _external("PyErr_SetNone", types.void(_ptr))
call_finalizer = _external("jitslab.call_finalizer", types.void(_ptr))  # CPython's call of `__del__`
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
    "PyErr_SetNone",
    "PyObject_Init",
    "PyObject_GC_Track",
    "PyObject_GC_UnTrack",
    "PyObject_GC_IsFinalized",
    "PyObject_GC_Del",
    "PyObject_ClearWeakRefs",
    "PyObject_CallFinalizerFromDealloc",
    "PyType_GetSlot",
    "PyDescr_NewGetSet",
    "PyType_Modified",
    "PyLong_Type",
    "PyFloat_Type",
    "_Py_NoneStruct",
    "_Py_TrueStruct",
    "_Py_FalseStruct",
]


_spare = np.zeros(1 + SPARE, np.int64)  # how many, and their addresses
# Where the machine code is linked, so that it can be kept on disk.
add_symbol("jitslab.AttributeError", id(AttributeError))
add_symbol("jitslab.spare_guards", _spare.ctypes.data)


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


@intrinsic
def c_function(typing: Any, function: Any) -> Any:
    """The address of a C function of int64s that calls a kernel."""
    arguments = (types.int64,) * function.dispatcher.py_func.__code__.co_argcount
    function.get_call_type(typing, arguments, {})
    compiled = function.dispatcher.overloads[arguments]

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        shape = ir.FunctionType(I64, [I64] * len(arguments))
        c_function = ir.Function(builder.module, shape, f"jitslab.{compiled.fndesc.mangled_name}")
        c_function.linkage = "internal"
        inner = ir.IRBuilder(c_function.append_basic_block())
        context.add_linking_libs([compiled.library])
        inner.ret(context.call_internal_no_propagate(inner, compiled.fndesc, compiled.signature, c_function.args)[1])
        return builder.ptrtoint(c_function, I64)

    return types.int64(function), emit


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
    handle = load8(guard, HANDLE // 8)
    cache = load8(guard, CACHE // 8)
    if handle == 0 or cache == 0 or load8(cache, HEAD // 8) == 0:
        return 0
    if load4_relaxed(load8(guard, WORD // 8), 0) != shift_right(handle, 31) | 1:
        return 0
    return load8(guard, AT // 8)


@kernel
def make_guard(cache: int, cls: int, c: int, handle: int) -> int:
    """Return a guard that owns the record of a handle; 0 with an exception set.  In the memory of one that ended, if there is."""
    spare, table = c_object("jitslab.spare_guards"), load8(load8(cache, GUARD_TABLE // 8), HEAD // 8)
    left = load8(spare, 0) if load8(table, T_CLASS) == cls else int64(0)
    if left > 0:
        store8(spare, 0, left - 1)
        guard = PyObject_Init(load8(spare, left), cls)
    else:
        guard = PyType_GenericAlloc(cls, 0)
    if guard != 0:
        slot = handle & SLOT_MASK
        store8(guard, HANDLE // 8, handle)
        store8(guard, WORD // 8, frozen(c, C_WORDS) + 4 * slot)
        store8(guard, AT // 8, frozen(c, C_RECORDS) + slot * frozen(c, C_STRIDE))
        store8(guard, EPOCH // 8, load8(load8(c, C_PROCESS), P_EPOCH))
        store8(guard, TABLE // 8, table)
        store8(guard, CACHE // 8, new_reference(cache))
        if left > 0:
            PyObject_GC_Track(guard)
    return guard


@kernel
def drop(obj: int, offset: int) -> None:
    """Empty a slot of an object."""
    held = load8(obj, offset // 8)
    store8(obj, offset // 8, 0)
    if held != 0:
        Py_DecRef(held)


@inlined
def _dealloc(self: int, unused: int) -> int:
    PyObject_GC_UnTrack(self)
    if load8(self, HANDLE // 8) != 0:  # as CPython's own function does for any object with a `__del__`
        PyObject_GC_Track(self)
        if PyObject_CallFinalizerFromDealloc(self) < 0:
            return 0  # somebody has it again
        PyObject_GC_UnTrack(self)
    PyObject_ClearWeakRefs(self)
    drop(self, CACHE)
    drop(self, ENTERED)
    cls, table, spare = load8(self, TYPE // 8), load8(self, TABLE // 8), c_object("jitslab.spare_guards")
    n = load8(spare, 0)
    if n < SPARE and table != 0 and load8(table, T_CLASS) == cls and PyObject_GC_IsFinalized(self) == 0:
        store8(spare, n + 1, self)
        store8(spare, 0, n + 1)
    else:
        PyObject_GC_Del(self)
    Py_DecRef(cls)
    return 0


@kernel
def give_back(guard: int) -> bool:
    """Free a guard's record; False, and nothing is changed, if it owns none or the cache refuses the handle."""
    handle = load8(guard, HANDLE // 8)
    c = control_of(guard)
    if handle == 0 or c == 0 or not free_any(c, my_heap(c), handle):
        return False
    store8(guard, HANDLE // 8, 0)
    return True


@inlined
def _allocate(self: int, unused: int) -> int:
    array = load8(self, HEAD // 8)
    cls = load8(self, GUARD_CLASS // 8)
    if array != 0 and cls != 0:
        c = load8(array, HEAD // 8)
        if load8(c, FAULTS) == 0:
            heap = my_heap(c)
            handle = alloc_any(c, heap)
            if handle != NULL:
                guard = make_guard(self, cls, c, handle)
                if guard == 0:
                    free_any(c, heap, handle)
                return guard
    return call(method_of(self, "_allocate_slow"))


@inlined
def _adopt(self: int, obj: int) -> int:
    array = load8(self, HEAD // 8)
    cls = load8(self, GUARD_CLASS // 8)
    if array != 0 and cls != 0 and load8(obj, TYPE // 8) == c_object("PyLong_Type"):
        c = load8(array, HEAD // 8)
        handle = PyNumber_AsSsize_t(obj, 0)  # without an error: what does not fit is no handle
        if is_live(my_heap(c), handle):
            return make_guard(self, cls, c, handle)
    return call_with(method_of(self, "_adopt_slow"), obj, 0)


@inlined
def _enter(self: int, unused: int) -> int:
    if load8(self, ENTERED // 8) == 0 and record_of(self) != 0:
        store8(self, ENTERED // 8, new_reference(c_object("_Py_TrueStruct")))
        return new_reference(self)
    return call(method_of(self, "_enter_slow"))


@inlined
def _exit(self: int, arguments: int, n: int) -> int:
    c = control_of(self)
    if c != 0 and load8(self, EPOCH // 8) == load8(load8(c, C_PROCESS), P_EPOCH) and give_back(self):
        return new_reference(c_object("_Py_NoneStruct"))
    kind = load8(arguments, 0) if n > 0 else c_object("_Py_NoneStruct")
    return call_with(method_of(self, "_exit_slow"), kind, 0)


@inlined
def _free(self: int, unused: int) -> int:
    if give_back(self):
        return new_reference(c_object("_Py_NoneStruct"))
    return call(method_of(self, "_free_slow"))


@inlined
def _forget(self: int, unused: int) -> int:
    owned = load8(self, HANDLE // 8) != 0
    store8(self, HANDLE // 8, 0)
    return new_reference(c_object("_Py_TrueStruct") if owned else c_object("_Py_FalseStruct"))


@inlined
def _own(self: int, offset: int) -> int:
    number = load8(self + offset, 0)
    if number == 0 and offset == HANDLE:
        PyErr_SetNone(c_object("jitslab.AttributeError"))
        return 0
    return PyLong_FromLongLong(number)


@inlined
def _finalize(self: int, unused: int) -> int:
    if load8(self, HANDLE // 8) != 0:
        call_finalizer(self)
    return 0


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
        return PyLong_FromLongLong(load8(guard, HANDLE // 8))
    view = PyType_GenericAlloc(load8(field, F_VIEW), 0)
    if view != 0:
        store8(view, HEAD // 8, new_reference(guard))
    return view


@inlined
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
        most = 9007199254740992.0 if is_int else 3.4e38  # an int above is no double, and would be rounded twice
        if abs(number) < most or number != number or abs(number) == np.inf:  # between: the slow path rounds, and looks
            poke(at, number, "f4")
            return True
        return False
    if kind == BOOL and (obj == c_object("_Py_TrueStruct") or obj == c_object("_Py_FalseStruct")):
        poke(at, 1 if obj == c_object("_Py_TrueStruct") else 0, "i1")
        return True
    return False


@inlined
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


@kernel
def field_of(guard: int, name: int) -> int:
    """Return the FIELD that a guard's class has in its table by that name; 0: it has none, or was changed."""
    table = load8(guard, TABLE // 8)
    if table != 0 and load8(table, T_VERSION) == load4(load8(guard, TYPE // 8), VERSION):
        for i in range(T_FIRST, T_FIRST + 2 * load8(table, T_COUNT), 2):
            if load8(table, i) == name:
                return load8(table, i + 1)
    return int64(0)


@inlined
def _guard_getattro(self: int, name: int) -> int:
    field = field_of(self, name)
    if field != 0:
        at = record_of(self)
        if at != 0:
            return read_field(self, field, at + load8(field, F_OFFSET))
    return attribute_of(self, name)


@inlined
def _guard_setattro(self: int, name: int, value: int) -> int:
    field = field_of(self, name)
    if field != 0 and value != 0:
        at = record_of(self)
        if at != 0 and write_field(field, at + load8(field, F_OFFSET), value):
            return 0
    return set_attribute(self, name, value)


@inlined
def _getattro(self: int, name: int) -> int:
    return attribute_of(self, name)


@inlined
def _setattro(self: int, name: int, value: int) -> int:
    return set_attribute(self, name, value)


@kernel
def attribute_of(self: int, name: int) -> int:
    """Return a new reference to an attribute, found as CPython does; 0 with an exception set."""
    answer = PyObject_GenericGetAttr(self, name)
    if answer != 0 or PyErr_ExceptionMatches(c_object("jitslab.AttributeError")) == 0:
        return answer
    PyErr_Clear()
    return call_with(method_of(self, "__getattr__"), name, 0)


@kernel
def set_attribute(self: int, name: int, value: int) -> int:
    """Set an attribute, found as CPython does; -1 with an exception set."""
    status = int64(PyObject_GenericSetAttr(self, name, value))
    if status == 0 or PyErr_ExceptionMatches(c_object("jitslab.AttributeError")) == 0:
        return status
    PyErr_Clear()
    answer = call_with(method_of(self, "_no_attribute"), name, 0)
    if answer != 0:
        Py_DecRef(answer)
    return int64(-1)


# --- Installing ---


PY_TP_DEALLOC, PY_TP_FINALIZE, PY_TP_GETATTRO, PY_TP_SETATTRO = 52, 80, 58, 69  # CPython's numbers of what a type has
BASETYPE, VERSION_TAG = 1 << 10, 1 << 18  # flags of a type: of classes that Python makes, too


class PyTypeSlot(ctypes.Structure):
    """CPython's description of one thing that a type has."""

    _fields_ = (("number", ctypes.c_int), ("function", ctypes.c_void_p))


class PyTypeSpec(ctypes.Structure):
    """CPython's description of a type."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("size", ctypes.c_int),
        ("item_size", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("slots", ctypes.c_void_p),
    )


class PyGetSetDef(ctypes.Structure):
    """CPython's description of a C attribute."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("get", ctypes.c_void_p),
        ("set", ctypes.c_void_p),
        ("doc", ctypes.c_char_p),
        ("closure", ctypes.c_void_p),
    )


FUNCTIONS = (
    "_allocate",
    "_adopt",
    "_enter",
    "_exit",
    "_free",
    "_forget",
    "_own",
    "_finalize",
    "_dealloc",
    "_get",
    "_set",
    "_guard_getattro",
    "_guard_setattro",
    "_getattro",
    "_setattro",
)


@Entry
def write_addresses(out: int) -> int:
    """
    Write the addresses of the C functions, in the order of `FUNCTIONS`, to the array at `out`.

    They are one piece of machine code.  In pieces of their own, all would start where a page does, in the same sets of the CPU's
    cache, and be there in turns: a record's life took 15 % longer.
    """
    store8(out, 0, c_function(_allocate))
    store8(out, 1, c_function(_adopt))
    store8(out, 2, c_function(_enter))
    store8(out, 3, c_function(_exit))
    store8(out, 4, c_function(_free))
    store8(out, 5, c_function(_forget))
    store8(out, 6, c_function(_own))
    store8(out, 7, c_function(_finalize))
    store8(out, 8, c_function(_dealloc))
    store8(out, 9, c_function(_get))
    store8(out, 10, c_function(_set))
    store8(out, 11, c_function(_guard_getattro))
    store8(out, 12, c_function(_guard_setattro))
    store8(out, 13, c_function(_getattro))
    store8(out, 14, c_function(_setattro))
    return int64(15)


@cached
def c_functions() -> dict[str, int]:
    """Return the addresses of the C functions by their names."""
    addresses = np.zeros(len(FUNCTIONS), np.int64)
    write_addresses(addresses.ctypes.data)
    keep(write_addresses.compile())
    return dict(zip(FUNCTIONS, addresses.tolist(), strict=True))


METHODS = {
    "__enter__": ("_enter", METH_NOARGS, "($self, /)"),
    "__exit__": ("_exit", METH_FASTCALL, "($self, /, *args)"),
    "free": ("_free", METH_NOARGS, "($self, /)"),
    "_forget": ("_forget", METH_NOARGS, "($self, /)"),
}
_kept: list[Any] = []  # CPython keeps pointers to these for as long as it runs


def keep(*objects: Any) -> None:
    """Keep objects for good: modules lose their globals when the interpreter ends, and a guard may be collected after that."""
    _kept.extend(objects)
    for obj in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(obj))


def make_memory() -> type:
    """Return the base class of guards: its objects have memory, zeroed, that Python does not see; where that cannot be, none."""
    make = getattr(ctypes.pythonapi, "PyType_FromSpec", None)
    if make is None:
        return type("Memory", (), {"__slots__": ()})
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p]
    slots = PyTypeSlot(0, None)  # no more of them: all is as of `object`
    spec = PyTypeSpec(b"jitslab._fields.Memory", MEMORY_END, 0, BASETYPE | VERSION_TAG, ctypes.addressof(slots))
    keep(slots, spec)
    return make(ctypes.addressof(spec))


Memory: Any = make_memory()


def slot_of(cls: type, number: int) -> int:
    """Return the address of a function that a type has; 0: none."""
    get = ctypes.pythonapi.PyType_GetSlot
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_int]
    return get(cls, number) or 0


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

    class Kind:
        """A class as Python makes it."""

        __slots__ = ()

        def __del__(self) -> None:
            """Do nothing."""

    places = {PY_TP_DEALLOC: DEALLOC, PY_TP_GETATTRO: GETATTRO, PY_TP_SETATTRO: SETATTRO, PY_TP_FINALIZE: FINALIZE}
    found = {number: slot_of(Kind, number) for number in places}
    if any(not found[number] or pointer_at(id(Kind) + at) != found[number] for number, at in places.items()):
        return False
    generic = [(PY_TP_GETATTRO, "PyObject_GenericGetAttr"), (PY_TP_SETATTRO, "PyObject_GenericSetAttr")]
    if any(ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value != found[number] for number, name in generic):
        return False
    version = version_of(Kind) if hasattr(Kind, "__del__") else 0  # what is looked up in it gives it one
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(Kind))
    if version == 0 or version_of(Kind) != 0:
        return False
    add_symbol("jitslab.call_finalizer", found[PY_TP_FINALIZE])
    keep(_spare)
    return True


def version_of(cls: type) -> int:
    """Return the version of a class; 0: it was changed since something was looked up in it."""
    return ctypes.c_uint.from_address(id(cls) + 4 * VERSION).value


def pointer_at(address: int) -> int:
    """Return the pointer that stands at an address."""
    return ctypes.c_void_p.from_address(address).value or 0


def new_method(cls: type, name: str, entry: str, flags: int, parameters: str) -> None:
    """Give a class a C method in the place of its Python method, with its docstring."""
    doc = f"{name}{parameters}\n--\n\n{getattr(cls, name).__doc__}"
    method = PyMethodDef(name.encode(), c_functions()[entry], flags, doc.encode())
    make = ctypes.pythonapi.PyDescr_NewMethod
    make.restype, make.argtypes = ctypes.py_object, [ctypes.py_object, ctypes.c_void_p]
    keep(method)
    setattr(cls, name, make(cls, ctypes.addressof(method)))


def install_guard(cls: type) -> None:
    """Give the base class of all guards its C methods, and have what a guard owns read from its memory."""
    for name, (entry, flags, parameters) in METHODS.items():
        new_method(cls, name, entry, flags, parameters)
    for name, at in (("_handle", HANDLE), ("_epoch", EPOCH)):
        new_attribute(cls, name, "_own", None, at, "")


def install_cache(cache: type) -> None:
    """Give `SlabCache` the C methods that make guards."""
    new_method(cache, "allocate", "_allocate", METH_NOARGS, "($self, /)")
    new_method(cache, "adopt", "_adopt", METH_O, "($self, handle, /)")


def new_attribute(cls: type, name: str, get: str, set_: str | None, closure: int, doc: str) -> None:
    """Give a class a C attribute; `closure` is what the two functions are told."""
    writer = None if set_ is None else c_functions()[set_]
    row = PyGetSetDef(name.encode("utf-8", "replace"), c_functions()[get], writer, doc.encode("utf-8", "replace"), closure)
    make = ctypes.pythonapi.PyDescr_NewGetSet
    make.restype, make.argtypes = ctypes.py_object, [ctypes.py_object, ctypes.c_void_p]
    keep(row)
    setattr(cls, name, make(cls, ctypes.addressof(row)))


def install_field(cls: type, name: str, kind: int, offset: int, nested: bool, view: type | None, doc: str) -> int:
    """Give a class the C attribute of one field; returns the address of its FIELD."""
    row = np.zeros(1, FIELD)
    least, most = 0, 0
    if I1 <= kind <= U8:
        limits = np.iinfo(next(code for code, it in KINDS.items() if it == kind))
        least, most = int(limits.min), min(int(limits.max), (1 << 63) - 1)
    row[0] = (kind, offset, least, most, id(name), 0 if view is None else id(view), int(nested))
    keep(row, name, view)
    writer = None if kind == OWN_HANDLE else "_set"
    new_attribute(cls, name, "_get", writer, row.ctypes.data, doc)
    return int(row.ctypes.data)


def install_view(cls: type) -> None:
    """Have a class of views answer for attributes that it does not have, without a cost for those that it has."""
    put_slots(cls, {GETATTRO: "_getattro", SETATTRO: "_setattro"})


def install_guards(cls: type, fields: dict[str, int]) -> Any:
    """Do the same for a class of guards, find its fields by a table, and look at its end; returns the table."""
    entries = {GETATTRO: "_guard_getattro", SETATTRO: "_guard_setattro", FINALIZE: "_finalize"}
    table = np.zeros(T_FIRST + 2 * TABLE_SIZE, np.int64)
    size = MEMORY_END + 8 * (len(GUARD_SLOTS) + (cls.__weakrefoffset__ > 0))
    if cls.__basicsize__ == size and cls.__dictoffset__ == 0:  # so their memory serves any of them
        entries[DEALLOC] = "_dealloc"
        table[T_CLASS] = id(cls)
    put_slots(cls, entries)
    found = [(sys.intern(name), at) for name, at in fields.items()][:TABLE_SIZE]
    keep(table, *(name for name, _ in found))
    for i, (name, at) in enumerate(found):
        table[T_FIRST + 2 * i : T_FIRST + 2 * i + 2] = id(name), at
        getattr(cls, name)  # CPython gives a class its version when something is looked up in it
    table[T_VERSION] = version_of(cls)
    table[T_COUNT] = len(found) if table[T_VERSION] != 0 else 0
    return table


def put_slots(cls: type, entries: dict[int, str]) -> None:
    """Set what CPython calls for objects of a class."""
    for at, entry in entries.items():
        ctypes.c_void_p.from_address(id(cls) + at).value = c_functions()[entry]
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(cls))
