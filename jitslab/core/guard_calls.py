"""
Guards in C: allocation, the two ends of a `with` block, and fields, read and written at the speed of a C attribute.

An owner is an object of a type made here: a guard has the handle of its record, an `Owner` the array of its batch's handles.
When an owner ends, its dealloc frees the records without running Python, and only then calls Python to report it: so an
exception at any line loses no record.  Fast paths are here.  For all else (freed, closed, a value to refuse, an unknown kind of
field) they call a Python method of `guard`, which does the work or raises.

The handle of a guard is a number in its data, not a Python int, so an access neither makes nor reads one.  Beside it stand the
addresses of the generation and of the record, which stay mapped as long as the guard has its cache.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache as cached
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from ..machine import cpython as _cpython
from ..machine.compile import I64, Entry, HeldEntry, c_object, inlined, int64, keep, kernel, literal_intrinsic
from ..machine.cpython import (
    HEAD,
    Py_DecRef,
    PyBytes_FromStringAndSize,
    PyErr_Clear,
    PyErr_Occurred,
    PyErr_WriteUnraisable,
    PyFloat_AsDouble,
    PyFloat_FromDouble,
    PyLong_AsSsize_t,
    PyLong_FromLongLong,
    PyLong_FromUnsignedLongLong,
    PyNumber_AsSsize_t,
    PyObject_ClearWeakRefs,
    PyObject_GC_Del,
    PyObject_GC_New,
    PyObject_GC_Track,
    PyObject_GC_UnTrack,
    PyObject_GenericSetAttr,
    PyObject_Type,
    PyTuple_GetItem,
    PyTuple_Size,
    call,
    call_with,
    is_attribute_error,
    is_exactly,
    method_of,
    new_reference,
    none,
    put_error,
    take_error,
    visit,
)
from ..machine.holder import holder_at
from ..machine.memory import copy_bytes, load8, shift_right
from ..machine.pointers import U4S, StructPointer, address_of, compare_exchange, i8s, load_relaxed, make_cast, u4s
from .calls import call as call_entry
from .calls import my_heap
from .heap import alloc_any, free_any, is_live
from .layout import NULL, SLOT_MASK, Control, Heap, control_at, names_of, offset_of, row
from .scan import find_refused

# --- The objects ---

GROUP = "guards"  # of entry points: compiled with the first guard, apart from those of caches
GUARD_STATES = NEW, ENTERED, RELEASED = range(3)  # never entered; in a `with` block now or before; given away
NOTHING = -1  # first item of an Owner's array if it owns nothing; otherwise the number of handles that follow
_OF_EVERY_OWNER = (
    ("head", "u1", (HEAD,)),
    ("owned", "i8"),  # of a guard its handle, of an Owner the address of its array; 0: it owns nothing
    ("cache", "i8"),  # the cache
    ("epoch", "u4"),  # forks that led to the process that made it
    ("state", "u4"),  # of GUARD_STATES
)
GUARD = row(
    *_OF_EVERY_OWNER,
    ("generation", "i8"),  # address of the slot's generation
    ("record", "i8"),  # address of the record
    ("weakrefs", "i8"),
)
OWNER = row(*_OF_EVERY_OWNER, ("array", "i8"))  # the array of a batch's handles
VIEW_OBJECT = row(("head", "u1", (HEAD,)), ("guard", "i8"))  # the guard of a nested record
guard_at = make_cast(StructPointer("Guard", GUARD, addresses={"generation": U4S}))
owner_at, view_at = make_cast(StructPointer("Owner", OWNER)), make_cast(StructPointer("View", VIEW_OBJECT))

# The kind of a field in a record; SLOW: NumPy reads and writes it.
SLOW, I1, I2, I4, I8, U1, U2, U4, U8, F4, F8, BOOL, VIEW = range(13)
KINDS = {"i1": I1, "i2": I2, "i4": I4, "i8": I8, "u1": U1, "u2": U2, "u4": U4, "u8": U8, "f4": F4, "f8": F8, "b1": BOOL}
FIELD = row(
    ("kind", "i8"),
    ("offset", "i8"),  # from the start of the record
    ("least", "i8"),  # least value of an integer field
    ("most", "i8"),
    ("name", "i8"),  # the str, for the slow path
    ("view_class", "i8"),  # the class of a nested record's view
)
field_at = make_cast(StructPointer("Field", FIELD, frozen=names_of(FIELD)))
BIRTHS = row(
    ("n", "i8"),  # how many fields a record has
    ("staging", "i8"),  # address of a record that is no cache's, to try values on; written with the GIL alone
)  # their rows follow
births_at = make_cast(StructPointer("Births", BIRTHS, frozen=names_of(BIRTHS)))
FIELD_BYTES, BIRTHS_BYTES = FIELD.itemsize, BIRTHS.itemsize


def _ir_type(code: str) -> Any:
    """Return LLVM's type of a field."""
    if code[0] == "f":
        return ir.FloatType() if code == "f4" else ir.DoubleType()
    return ir.IntType(8 * int(code[1]))


@literal_intrinsic
def peek(typing: Any, at: Any, code: Any) -> Any:
    """Return the field of a NumPy code at an address, aligned or not, as int64 or float64."""
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
    """Store a value that fits into the field of a NumPy code at an address, aligned or not."""
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


# --- Owners ---


@inlined
def control_of(owner: int) -> Control:
    """Return the CONTROL row of an owner's cache."""
    return control_at(holder_at(owner_at(owner).cache).address)


@inlined
def is_at_home(owner: int) -> bool:
    """Whether this process made the owner: it is no child of `fork`."""
    return owner_at(owner).epoch == control_of(owner).process.epoch


@inlined
def begin(owner: int, owned: int, cache: int, control: Control) -> None:
    """Fill in the fields of every owner and show it to the collector; the caller has filled in the other fields."""
    it = owner_at(owner)
    it.owned = owned
    it.cache = new_reference(cache)
    it.epoch = control.process.epoch
    it.state = NEW
    PyObject_GC_Track(owner)


@kernel
def tell(owner: int, what: int) -> None:
    """
    Make an owner that ends report the freed records `what`, which is dropped; 0 with an exception set: not known.

    One reference keeps the owner alive for this; `Py_DecRef` then calls its dealloc again, unless there are more by now.
    """
    if what == 0:
        PyErr_Clear()
    PyObject_GC_Track(owner)
    answer = call(method_of(new_reference(owner), "_never_freed"), what, 0)
    if answer != 0:
        Py_DecRef(answer)
    else:
        PyErr_WriteUnraisable(owner)
    if what != 0:
        Py_DecRef(what)


@inlined
def end(obj: int, held: int) -> None:
    """Give the memory of an object back, and drop the object that it held, if any."""
    cls = PyObject_Type(obj)
    PyObject_GC_Del(obj)
    if held != 0:
        Py_DecRef(held)
    Py_DecRef(cls)
    Py_DecRef(cls)  # the object's own reference


@inlined
def _traverse(self: int, function: int, argument: int) -> int:
    return visit_held(self, owner_at(self).cache, function, argument)


@kernel
def visit_held(obj: int, held: int, function: int, argument: int) -> int:
    """Show the collector an object's class, and the object that it holds, if any."""
    cls = PyObject_Type(obj)
    Py_DecRef(cls)
    answer = visit(function, cls, argument)
    return visit(function, held, argument) if answer == 0 and held != 0 else answer


# --- A guard's life ---


@inlined
def record_of(guard: int) -> int:
    """Return the address of a guard's record; 0: the guard owns none, or its record was freed elsewhere."""
    it = guard_at(guard)
    handle = it.owned
    if handle == 0 or load_relaxed(it.generation, 0) != shift_right(handle, 31) | 1:
        return 0
    return it.record


@inlined
def make_guard(cache: int, control: Control, handle: int) -> int:
    """Return a new guard that owns the record of a handle; 0 with an exception set."""
    guard = PyObject_GC_New(holder_at(cache).guard_class)
    if guard != 0:
        slot, it = handle & SLOT_MASK, guard_at(guard)
        it.generation = u4s(address_of(control.generations) + 4 * slot)
        it.record = control.records + slot * control.stride
        it.weakrefs = 0
        begin(guard, handle, cache, control)
    return guard


@inlined
def allocate(self: int) -> int:
    """Return a guard of a new record; 0 with an exception set."""
    control = control_at(holder_at(self).address)
    if address_of(control) != 0 and holder_at(self).guard_class != 0 and control.faults == 0:
        heap = my_heap(control)
        handle = alloc_any(control, heap)
        if handle != NULL:
            guard = make_guard(self, control, handle)
            if guard == 0:
                free_any(control, heap, handle)
            return guard
    return call(method_of(self, "_allocate_slow"), 0, 0)


@inlined
def _allocate(self: int, arguments: int, n: int, names: int) -> int:
    return allocate(self) if n | names == 0 else allocate_with(self, arguments, n, names)


@kernel
def allocate_with(self: int, arguments: int, n: int, names: int) -> int:
    """`SlabCache.allocate` with fields: by C if all of them are numbers that the fields can hold, else by Python."""
    if n == 0 and holder_at(self).guard_class != 0 and can_be_born(self, names, arguments):
        guard = allocate(self)
        if guard != 0:
            be_born(self, names, arguments, guard_at(guard).record)
        return guard
    return call_with(method_of(self, "_allocate_with"), arguments, n, names)


@inlined
def _adopt(self: int, obj: int) -> int:
    control = control_at(holder_at(self).address)
    if address_of(control) != 0 and holder_at(self).guard_class != 0:
        handle = PyNumber_AsSsize_t(obj, 0)
        if handle == -1 and PyErr_Occurred() != 0:
            PyErr_Clear()
        elif is_live(my_heap(control), handle):
            return make_guard(self, control, handle)
    return call(method_of(self, "_adopt_slow"), obj, 0)


@inlined
def _guard_dealloc(self: int, unused: int) -> int:
    PyObject_GC_UnTrack(self)
    if owner_at(self).owned != 0 and was_left(self):
        return 0
    if guard_at(self).weakrefs != 0:
        PyObject_ClearWeakRefs(self)
    end(self, owner_at(self).cache)
    return 0


@kernel
def was_left(guard: int) -> bool:
    """Free the record of a guard that ends; if it was live, report that, end the guard, and return True."""
    if not is_at_home(guard):
        return False
    handle, control = owner_at(guard).owned, control_of(guard)
    heap = my_heap(control)
    owner_at(guard).owned = 0
    if not is_live(heap, handle):
        return False
    error = take_error()
    held = PyBytes_FromStringAndSize(guard_at(guard).record, control.itemsize)
    free_any(control, heap, handle)
    tell(guard, held)
    put_error(error)
    Py_DecRef(guard)
    return True


@inlined
def give_back(guard: int) -> bool:
    """Free a guard's record; returns False, changing nothing, if it owns none or the cache refuses the handle."""
    handle = owner_at(guard).owned
    if handle == 0:
        return False
    control = control_of(guard)
    if not free_any(control, my_heap(control), handle):
        return False
    owner_at(guard).owned = 0
    return True


@kernel
def not_freed(guard: int) -> int:
    """Make the guard own nothing, and let Python report why its record was not freed; 0 with an exception set."""
    number = PyLong_FromLongLong(owner_at(guard).owned)
    owner_at(guard).owned = 0
    answer = call(method_of(guard, "_not_freed"), number, 0)
    Py_DecRef(number)
    return answer


@inlined
def _free(self: int, unused: int) -> int:
    return none() if give_back(self) else not_freed(self)


@inlined
def _enter(self: int, unused: int) -> int:
    if owner_at(self).state == NEW and record_of(self) != 0:
        owner_at(self).state = ENTERED
        return new_reference(self)
    return call(method_of(self, "_refuse_enter"), 0, 0)


@inlined
def _exit(self: int, arguments: int, n: int) -> int:
    if owner_at(self).owned == 0 or not is_at_home(self) or give_back(self) or control_of(self).closed != 0:
        return none()
    if n > 0 and load8(arguments, 0) != c_object("_Py_NoneStruct"):
        owner_at(self).owned = 0  # freed elsewhere: not reported, since the exception that ended the block matters more
        return none()
    return not_freed(self)


@inlined
def _release(self: int, unused: int) -> int:
    if record_of(self) == 0:
        return call(method_of(self, "_need_live"), 0, 0)
    number = PyLong_FromLongLong(owner_at(self).owned)
    if number != 0:
        owner_at(self).owned = 0
        owner_at(self).state = RELEASED
    return number


@inlined
def _handle(self: int, unused: int) -> int:
    if record_of(self) == 0:
        return call(method_of(self, "_need_live"), 0, 0)
    return PyLong_FromLongLong(owner_at(self).owned)


# --- An array of handles with an owner ---


@kernel
def take(array: int) -> int:
    """Return how many handles an Owner's array owns, to one caller only; NOTHING to all others."""
    while True:
        n = i8s(array)[0]
        if n < 0 or compare_exchange(i8s(array), 0, n, NOTHING):
            return n


@Entry
def take_owned(array: int) -> int:
    """Give the ownership of an array's handles away: `take` from Python."""
    return take(array)


@Entry
def alloc_owned(c: int, array: int, n: int) -> int:
    """Fill an array with n handles that it owns from now on; returns n, or 0 if there is no room."""
    done = call_entry(control_at(c), "alloc_many", (array + 8, n))
    if done == n:
        i8s(array)[0] = n
    return done


@Entry
def free_owned(c: int, array: int, refused: int) -> int:
    """Free the handles that an array owns, as `free_many` does; returns NOTHING if it owns none."""
    n = take(array)
    return call_entry(control_at(c), "free_many", (array + 8, n, refused)) if n > 0 else n


@inlined
def _new_owner(cls: int, cache: int, array: int, address: int) -> int:
    owner = PyObject_GC_New(cls)
    if owner != 0:
        owner_at(owner).array = new_reference(array)
        begin(owner, address, cache, control_at(holder_at(cache).address))
    return owner


@inlined
def _owner_dealloc(self: int, unused: int) -> int:
    PyObject_GC_UnTrack(self)
    array = owner_at(self).owned
    if array != 0 and is_at_home(self):
        n = take(array)
        freed = call_entry(control_of(self), "free_many", (array + 8, n, 0)) if n > 0 else 0
        if freed > 0:
            error = take_error()
            tell(self, PyLong_FromLongLong(freed))
            put_error(error)
            Py_DecRef(self)
            return 0
    array = owner_at(self).array
    end(self, owner_at(self).cache)
    if array != 0:
        Py_DecRef(array)
    return 0


# --- Fields ---


@inlined
def read_field(guard: int, field: int, at: int) -> int:
    """Return a new reference to the value of a field that is not SLOW; 0 with an exception set."""
    kind = field_at(field).kind
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
    view = PyObject_GC_New(field_at(field).view_class)
    if view != 0:
        view_at(view).guard = new_reference(guard)
        PyObject_GC_Track(view)
    return view


@inlined
def _view_traverse(self: int, function: int, argument: int) -> int:
    return visit_held(self, view_at(self).guard, function, argument)


@inlined
def _view_dealloc(self: int, unused: int) -> int:
    PyObject_GC_UnTrack(self)
    end(self, view_at(self).guard)
    return 0


@inlined
def get(self: int, guard: int, at: int, field: int) -> int:
    """Return a new reference to a field's value in the record at an address, for a guard or its view; 0 with an exception set."""
    if at != 0 and field_at(field).kind != SLOW:
        return read_field(guard, field, at + field_at(field).offset)
    return call(method_of(self, "_read"), field_at(field).name, 0)


@inlined
def _get(self: int, field: int) -> int:
    return get(self, self, record_of(self), field)


@inlined
def _view_get(self: int, field: int) -> int:
    guard = view_at(self).guard
    return get(self, guard, record_of(guard) if guard != 0 else 0, field)


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


EXACT_INTS = 1 << 53  # integers below this are exact as doubles


@kernel
def write_float(kind: int, at: int, number: float) -> bool:
    """Store a float; returns False if the slow path must round it and check whether it becomes infinite."""
    if kind == F8:
        poke(at, number, "f8")
    elif abs(number) < 3.4e38 or number != number or abs(number) == np.inf:
        poke(at, number, "f4")
    else:
        return False
    return True


@inlined
def write_field(field: int, at: int, obj: int) -> bool:
    """Store an int, float or bool that the field can hold; returns False if the slow path is needed.  Runs no Python."""
    kind = field_at(field).kind
    is_float = kind == F8 or kind == F4
    if is_float and is_exactly(obj, c_object("PyFloat_Type")):
        return write_float(kind, at, PyFloat_AsDouble(obj))
    if kind == BOOL and (obj == c_object("_Py_TrueStruct") or obj == c_object("_Py_FalseStruct")):
        poke(at, int64(obj == c_object("_Py_TrueStruct")), "i1")
        return True
    if not is_float and (kind < I1 or kind > U8):
        return False
    value = PyLong_AsSsize_t(obj)
    if value == -1 and PyErr_Occurred() != 0:
        PyErr_Clear()
        return False
    if is_float:
        if kind == F4 and abs(value) >= EXACT_INTS:
            return False  # it would be rounded twice
        return write_float(kind, at, float(value))
    if value < field_at(field).least or value > field_at(field).most:
        return False
    write_integer(kind, at, value)
    return True


# --- Fields at birth ---


@kernel
def be_born(cache: int, names: int, values: int, at: int) -> bool:
    """
    Store the values of a call, by the tuple of their names, into the record at an address, as guards do.

    False: there is no such field, or the slow path knows what to do with a value.  Runs no Python: so what `can_be_born` said of
    the values holds.
    """
    births = holder_at(cache).births
    end = births + BIRTHS_BYTES + births_at(births).n * FIELD_BYTES
    for i in range(PyTuple_Size(names)):
        name = PyTuple_GetItem(names, i)
        field = births + BIRTHS_BYTES
        while field < end and field_at(field).name != name:
            field += FIELD_BYTES
        if field == end or not write_field(field, at + field_at(field).offset, load8(values, i)):
            return False
    return True


@kernel
def can_be_born(cache: int, names: int, values: int) -> bool:
    """Whether `be_born` can store all values of a call."""
    births = holder_at(cache).births
    return births != 0 and be_born(cache, names, values, births_at(births).staging)


@inlined
def set_(self: int, at: int, obj: int, field: int) -> int:
    """Write a field, of a guard or its view; an `obj` of 0 deletes it.  Returns 0, or -1 with an exception set."""
    if obj != 0 and at != 0 and write_field(field, at + field_at(field).offset, obj):
        return 0
    name = field_at(field).name
    answer = call(method_of(self, "_write"), name, obj) if obj != 0 else call(method_of(self, "_delete"), name, 0)
    if answer == 0:
        return -1
    Py_DecRef(answer)
    return 0


@inlined
def _set(self: int, obj: int, field: int) -> int:
    return set_(self, record_of(self), obj, field)


@inlined
def _view_set(self: int, obj: int, field: int) -> int:
    guard = view_at(self).guard
    return set_(self, record_of(guard) if guard != 0 else 0, obj, field)


@inlined
def _setattro(self: int, name: int, value: int) -> int:
    status = int64(PyObject_GenericSetAttr(self, name, value))
    if status != 0 and is_attribute_error():
        PyErr_Clear()
        call(method_of(self, "_no_attribute"), name, 0)  # raises
    return status


# --- Values that NumPy has converted, into live records ---


@kernel
def put(control: Control, heap: Heap, handle: int, offset: int, size: int, source: int) -> bool:
    """Copy bytes into the record of a handle; returns False if it is not live."""
    if not is_live(heap, handle):
        return False
    copy_bytes(heap.records + (handle & SLOT_MASK) * control.stride + offset, source, size)
    return True


# `data` and `handles` are the ids of contiguous ndarrays, which hold the address of their data: asking NumPy takes longer.


@HeldEntry
def write_one(c: int, handle: int, offset: int, size: int, data: int) -> int:
    """Copy bytes into a record; returns 0 if it is not live."""
    control = control_at(c)
    return int64(put(control, my_heap(control), handle, offset, size, load8(data, HEAD // 8)))


@HeldEntry
def write_many(c: int, handles: int, n: int, offset: int, size: int, data: int) -> int:
    """Copy `size` bytes into each of n records; returns how many.  If one is not live at the start, none is written."""
    control = control_at(c)
    heap, hs, source = my_heap(control), i8s(load8(handles, HEAD // 8)), load8(data, HEAD // 8)
    for i in range(n):
        if not is_live(heap, hs[i]):
            return 0
    done = 0
    for i in range(n):
        done += put(control, heap, hs[i], offset, size, source + i * size)
    return done


# --- The types ---


# The C functions of a tuple are one piece of machine code.  If each were a piece of its own, all would start at the border of a
# page, in the same sets of the CPU's cache, and evict each other: a record's life took 15 % longer.
FIELD_FUNCTIONS = _get, _set, _view_get, _view_set, _setattro
LIFE_FUNCTIONS = (
    _allocate,
    _adopt,
    _enter,
    _exit,
    _free,
    _release,
    _handle,
    _guard_dealloc,
    _traverse,
    _view_dealloc,
    _view_traverse,
)
GUARD_FUNCTIONS = (*FIELD_FUNCTIONS, *LIFE_FUNCTIONS)
OWNER_FUNCTIONS = (_new_owner, _owner_dealloc, _traverse)
store_guard_functions, store_owner_functions = _cpython.storing(GUARD_FUNCTIONS), _cpython.storing(OWNER_FUNCTIONS)


@Entry
def write_guard_functions(out: int) -> int:
    """Write the addresses of the C functions of guards and views to the array at `out`."""
    return store_guard_functions(out)


@Entry
def write_owner_functions(out: int) -> int:
    """Write the addresses of the C functions of an Owner to the array at `out`."""
    return store_owner_functions(out)


@cached
def functions() -> dict[str, int]:
    """Return the addresses of the C functions of guards and views."""
    return _cpython.addresses_of(write_guard_functions, GUARD_FUNCTIONS)


@cached
def owner_maker(base: type) -> Any:
    """
    Return the function that makes an Owner of a cache and an array of handles; `base` has the method ``_never_freed(n)``.

    The entry points that the end of an Owner calls are compiled here: before any Owner has handles.
    """
    for entry in (alloc_owned, find_refused, free_owned, take_owned):
        entry.compile()
    at = _cpython.addresses_of(write_owner_functions, OWNER_FUNCTIONS)
    slots = {"dealloc": at["owner_dealloc"], "traverse": at["traverse"]}
    members = (
        _cpython.member("cache", "object", offset_of(OWNER, "cache")),
        _cpython.member("epoch", "u4", offset_of(OWNER, "epoch")),
        _cpython.member("array", "object", offset_of(OWNER, "array")),
        _cpython.member("address", "i8", offset_of(OWNER, "owned")),
    )
    cls = _cpython.make_type((base,), OWNER.itemsize, slots, members)
    make = ctypes.PYFUNCTYPE(ctypes.py_object, *[ctypes.py_object] * 3, ctypes.c_int64)(at["new_owner"])
    return lambda cache, array: make(cls, cache, array, array.ctypes.data)


def guard_type(base: Any, declared: Any) -> Any:
    """Return a new class of guards, without fields; `base` has its Python methods, a declared class has more."""
    at = functions()
    slots = {"dealloc": at["guard_dealloc"], "traverse": at["traverse"], "setattro": at["setattro"]}
    members = (
        _cpython.member("__weaklistoffset__", "size", offset_of(GUARD, "weakrefs")),
        _cpython.member("_cache", "object", offset_of(OWNER, "cache")),
        _cpython.member("_epoch", "u4", offset_of(OWNER, "epoch")),
        _cpython.member("_state", "u4", offset_of(OWNER, "state")),
        _cpython.member("_handle", "i8", offset_of(OWNER, "owned")),
    )
    methods = (
        _cpython.method(base.__enter__, at["enter"], _cpython.METH_NOARGS, "($self, /)"),
        _cpython.method(base.__exit__, at["exit"], _cpython.METH_FASTCALL, "($self, /, *args)"),
        _cpython.method(base.free, at["free"], _cpython.METH_NOARGS, "($self, /)"),
        _cpython.method(base.release, at["release"], _cpython.METH_NOARGS, "($self, /)"),
    )
    cls = _cpython.make_type((base, *declared), GUARD.itemsize, slots, members, methods)
    cls.handle = _cpython.new_attribute(cls, "handle", at["handle"], 0, 0, base.handle.__doc__ or "")
    return cls


def view_type(base: Any, declared: Any) -> Any:
    """Return a new class of views of a nested record, without fields."""
    at = functions()
    slots = {"dealloc": at["view_dealloc"], "traverse": at["view_traverse"], "setattro": at["setattro"]}
    return _cpython.make_type(
        (base, *declared), VIEW_OBJECT.itemsize, slots, (_cpython.member("_guard", "object", offset_of(VIEW_OBJECT, "guard")),)
    )


def describe_field(row: Any, kind: int, offset: int, name: str, view: type | None) -> None:
    """Fill the FIELD row of a field in; the name and the view are kept for good."""
    least, most = 0, 0
    if I1 <= kind <= U8:
        limits = np.iinfo(next(code for code, it in KINDS.items() if it == kind))
        least, most = int(limits.min), min(int(limits.max), (1 << 63) - 1)
    row[0] = (kind, offset, least, most, id(name), 0 if view is None else id(view))
    keep(name, view)


def new_births(itemsize: int, fields: list[tuple[str, int, int]]) -> int:
    """Return the address of a table, kept for good, of fields that records are born with: name, kind and offset of each."""
    head, rows, staging = np.zeros(1, BIRTHS), np.zeros(len(fields), FIELD), np.zeros(itemsize, np.uint8)
    for i, (name, kind, offset) in enumerate(fields):
        describe_field(rows[i : i + 1], kind, offset, sys.intern(name), None)  # as the names are that a call has in it
    head[0] = (len(fields), staging.ctypes.data)
    table = np.frombuffer(head.tobytes() + rows.tobytes(), np.uint8).copy()
    keep(table, staging)
    return int(table.ctypes.data)


def new_field(cls: type, name: str, kind: int, offset: int, nested: bool, view: type | None, doc: str) -> Any:
    """Return the C attribute of a field for the objects of a class."""
    row = np.zeros(1, FIELD)
    describe_field(row, kind, offset, name, view)
    keep(row)
    get, set_ = ("view_get", "view_set") if nested else ("get", "set")
    return _cpython.new_attribute(cls, name, functions()[get], functions()[set_], row.ctypes.data, doc)


def install(cache: type) -> None:
    """Give `SlabCache` the C methods that make guards."""
    at = functions()
    _cpython.add_method(
        cache, "allocate", at["allocate"], _cpython.METH_FASTCALL | _cpython.METH_KEYWORDS, "($self, /, **fields)"
    )
    _cpython.add_method(cache, "adopt", at["adopt"], _cpython.METH_O, "($self, handle, /)")
