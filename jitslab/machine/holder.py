"""
Objects that compiled code sees as the address of a row: one int64, got by one load.

Such an object is a `Holder`: it has the address of the row, and an array over that memory, so the row lives as long as the
object.  Numba asks any object for its type by an attribute, and a proxy answers like the object behind it: so compiled code
checks the class before it reads the address.  If compiled code returns the address, Python finds the object by it.
"""

from __future__ import annotations

import weakref
from typing import Any, NoReturn

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import NumbaTypeError
from numba.core.imputils import lower_constant
from numba.extending import NativeValue, box, make_attribute_wrapper, models, register_model, unbox

from ..errors import CacheTypeError, ClosedError
from .compile import I32, I64, PTR, name_object
from .cpython import HEAD, make_type, member
from .pointers import StructPointer, make_cast

HOLDER = np.dtype(
    [
        ("head", "u1", (HEAD,)),
        ("address", "i8"),  # of a cache's first CONTROL row, or of an allocator's SIZES row; 0: the object is not open yet
        ("array", "i8"),  # the array that keeps that memory alive
        ("guard_class", "i8"),  # the class of a cache's guards
        ("births", "i8"),  # address of what stores the fields that a cache's records are born with, 0: Python does
        ("records", "i8"),  # the array of a cache's records
    ]
)
holder_at = make_cast(StructPointer("Holder", HOLDER))
PARTS = "address", "array", "guard_class", "births", "records"
ADDRESS, ARRAY, GUARD_CLASS, BIRTHS, RECORDS = (int(HOLDER.fields[name][1]) for name in PARTS)  # type: ignore[index]  # a dtype with names has fields
_members = (
    member("address", "i8", ADDRESS, 0),
    member("array", "object", ARRAY, 0),
    member("guard_class", "object", GUARD_CLASS, 0),
    member("births", "i8", BIRTHS, 0),
    member("records", "object", RECORDS, 0),
)
Holder: Any = make_type((object,), HOLDER.itemsize, {}, _members)
_address, _array, _guard_class, _births, _records = (vars(Holder)[name] for name in PARTS)
for _name in PARTS:  # so only this module sets them
    delattr(Holder, _name)
_classes: dict[type[types.Type], tuple[type, str]] = {}  # the class of a Numba type's objects, and its name for users
_objects: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by the address of their row


def hold(holder: Any, address: int, array: Any) -> None:
    """Give a Holder the row at an address, which is the data of an array; Python then finds the Holder by the address."""
    _array.__set__(holder, array)
    _address.__set__(holder, address)
    _objects[address] = holder


def is_going(holder: Any) -> bool:
    """Whether a Holder is being collected, perhaps together with objects that refer to it."""
    return _objects.get(_address.__get__(holder)) is not holder


def set_guard_class(holder: Any, cls: type) -> None:
    """Set the class of a cache's guards."""
    _guard_class.__set__(holder, cls)


def guard_class_of(holder: Any) -> Any:
    """Return the class of a cache's guards, or None."""
    try:
        return _guard_class.__get__(holder)
    except AttributeError:
        return None


def hold_records(holder: Any, records: Any) -> None:
    """Have a cache hand out records of an array by C."""
    _records.__set__(holder, records)


def set_births(holder: Any, address: int) -> None:
    """Have a cache's records born with fields by C, by the table at an address, which is kept for good."""
    _births.__set__(holder, address)


def has_births(holder: Any) -> bool:
    """Whether a cache has such a table."""
    return bool(_births.__get__(holder))


_constants: list[Any] = []  # objects that are globals of compiled code: never dropped


def has_in_python(holder_type: type[types.Type], name: str) -> bool:
    """Whether the objects of a Numba type have an attribute in Python."""
    return holder_type in _classes and hasattr(_classes[holder_type][0], name)


def is_object(holder_type: type[types.Type], obj: Any) -> bool:
    """Whether an object is of the class of a Numba type, by its real type: a proxy is not."""
    return issubclass(type(obj), _classes[holder_type][0])


def text_of_refusal(holder_type: type[types.Type], obj: Any) -> str:
    """Return the message that an object is a proxy: Numba took it for a cache or an allocator."""
    name = _classes[holder_type][1]
    return f"compiled code takes a {name} itself, got an object of type {type(obj).__name__}, which only answers as one does"


def bind(holder_type: type[types.Type], cls: type, name: str) -> None:
    """Set the class of a Numba type's objects, and its name for users; subclasses count."""

    def refuse(obj: Any) -> NoReturn:
        """Raise for an object that compiled code cannot take."""
        if not is_object(holder_type, obj):
            raise CacheTypeError(text_of_refusal(holder_type, obj))
        raise ClosedError(f"this {type(obj).__name__} was never opened")

    def find(address: int) -> Any:
        """Return the object whose row is at an address."""
        found = _objects.get(address)
        if found is None or not is_object(holder_type, found):
            raise ClosedError(f"the {name} that compiled code returns is gone")
        return found

    _classes[holder_type] = cls, name
    name_object(f"jitslab.class.{holder_type.__name__}", cls)
    name_object(f"jitslab.refuse.{holder_type.__name__}", refuse)
    name_object(f"jitslab.find.{holder_type.__name__}", find)


def register(holder_type: type[types.Type]) -> None:
    """Let compiled code have the objects of a Numba type as arguments, as results and as globals."""

    @register_model(holder_type)
    class HolderModel(models.StructModel):  # type: ignore[misc]  # numba has no types
        def __init__(self, manager: Any, typ: Any) -> None:
            super().__init__(manager, typ, [("ptr", types.int64)])

    make_attribute_wrapper(holder_type, "ptr", "_ptr")

    @unbox(holder_type)  # type: ignore[untyped-decorator]  # numba has no types
    def unbox_holder(typ: Any, obj: Any, c: Any) -> NativeValue:
        builder, cls = c.builder, c.pyapi.get_c_object(f"jitslab.class.{holder_type.__name__}")
        kind = builder.bitcast(c.pyapi.get_type(obj), PTR)
        is_one = cgutils.alloca_once_value(builder, cgutils.true_bit)
        with builder.if_then(builder.icmp_unsigned("!=", kind, builder.bitcast(cls, PTR)), likely=False):
            shape = ir.FunctionType(I32, [PTR, PTR])
            is_subtype = cgutils.get_or_insert_function(builder.module, shape, "PyType_IsSubtype")
            answer = builder.call(is_subtype, [kind, builder.bitcast(cls, PTR)])
            builder.store(builder.icmp_unsigned("!=", answer, I32(0)), is_one)
        address = cgutils.alloca_once_value(builder, I64(0))
        with builder.if_then(builder.load(is_one), likely=True):
            at = builder.gep(builder.bitcast(obj, PTR), [I64(ADDRESS)])
            builder.store(builder.load(builder.bitcast(at, I64.as_pointer())), address)
        struct = cgutils.create_struct_proxy(typ)(c.context, builder)
        struct.ptr = builder.load(address)
        is_missing = cgutils.is_null(builder, struct.ptr)
        with builder.if_then(is_missing, likely=False):
            refuse = c.pyapi.get_c_object(f"jitslab.refuse.{holder_type.__name__}")
            c.pyapi.call_function_objargs(refuse, (obj,))
        return NativeValue(struct._getvalue(), is_error=is_missing)

    @box(holder_type)  # type: ignore[untyped-decorator]  # numba has no types
    def box_holder(typ: Any, value: Any, c: Any) -> Any:
        address = c.pyapi.long_from_longlong(cgutils.create_struct_proxy(typ)(c.context, c.builder, value=value).ptr)
        found = c.pyapi.call_function_objargs(c.pyapi.get_c_object(f"jitslab.find.{holder_type.__name__}"), (address,))
        c.pyapi.decref(address)
        return found

    @lower_constant(holder_type)  # type: ignore[untyped-decorator]  # numba has no types
    def lower_holder(context: Any, builder: Any, typ: Any, obj: Any) -> Any:
        """Emit a global of the function; its address is dynamic, so Numba does not save that function."""
        if not is_object(holder_type, obj):
            raise NumbaTypeError(f"jitslab: {text_of_refusal(holder_type, obj)}")
        _constants.append(obj)
        struct = cgutils.create_struct_proxy(typ)(context, builder)
        pointer = context.add_dynamic_addr(builder, obj._address, info=f"jitslab.{holder_type.__name__}")
        struct.ptr = builder.ptrtoint(pointer, I64)
        return struct._getvalue()
