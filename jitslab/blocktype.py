"""
Numba types of objects that are, in compiled code, the address of a block: one int64, got by three loads.

Above `_native`, below `compiled` and `sizetype`.  Such an object keeps an ndarray in its first slot, and the array's data is the
block; so the block lives as long as the object does.  Numba asks any object for its type by an attribute, and a proxy answers as
the object behind it does: so compiled code looks at the class before it looks into the object.  On the way back the address finds
the object that it is of.
"""

from __future__ import annotations

import weakref
from typing import Any, NoReturn

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import NumbaTypeError
from numba.core.imputils import lower_constant
from numba.extending import NativeValue, box, make_attribute_wrapper, models, register_model, unbox

from ._native import I32, I64, PTR, name_object
from .errors import CacheTypeError, ClosedError

HEAD = object.__basicsize__  # first slot of an object, and where an ndarray keeps the pointer to its data
TYPE = HEAD - 8  # of any object: its class
_classes: dict[type[types.Type], tuple[type, str]] = {}  # the class of the objects of a type, and what users call it
_objects: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by the address of their block
_constants: list[Any] = []  # objects that compiled code has as globals: never dropped


def is_object(block_type: type[types.Type], obj: Any) -> bool:
    """Whether an object is one of the class of a type, whatever it says of itself."""
    return issubclass(type(obj), _classes[block_type][0])


def text_of_refusal(block_type: type[types.Type], obj: Any) -> str:
    """Say that an object is no cache or allocator, though Numba takes it for one."""
    name = _classes[block_type][1]
    return f"compiled code takes a {name} itself, got an object of type {type(obj).__name__}, which only answers as one does"


def bind(block_type: type[types.Type], cls: type, name: str) -> None:
    """Say which class the objects of a type are of, and what users call it; its subclasses count."""

    def refuse(obj: Any) -> NoReturn:
        """Raise for an object that compiled code cannot take."""
        if not is_object(block_type, obj):
            raise CacheTypeError(text_of_refusal(block_type, obj))
        raise ClosedError(f"this {type(obj).__name__} was never opened")

    def find(address: int) -> Any:
        """Return the object whose block is at an address."""
        found = _objects.get(address)
        if found is None or not is_object(block_type, found):
            raise ClosedError(f"the {name} that compiled code returns is gone")
        return found

    _classes[block_type] = cls, name
    name_object(f"jitslab.class.{block_type.__name__}", cls)
    name_object(f"jitslab.refuse.{block_type.__name__}", refuse)
    name_object(f"jitslab.find.{block_type.__name__}", find)


def know(obj: Any) -> None:
    """Have compiled code find an object when it returns it to Python."""
    _objects[obj._address] = obj


def register(block_type: type[types.Type]) -> None:
    """Let compiled code have objects of such a type, as arguments and as globals."""

    @register_model(block_type)
    class BlockModel(models.StructModel):  # type: ignore[misc]  # numba has no types
        def __init__(self, manager: Any, typ: Any) -> None:
            super().__init__(manager, typ, [("ptr", types.int64)])

    make_attribute_wrapper(block_type, "ptr", "_ptr")

    @unbox(block_type)  # type: ignore[untyped-decorator]  # numba has no types
    def unbox_block(typ: Any, obj: Any, c: Any) -> NativeValue:
        builder, cls = c.builder, c.pyapi.get_c_object(f"jitslab.class.{block_type.__name__}")
        kind = load_pointer(builder, obj, TYPE)
        is_one = cgutils.alloca_once_value(builder, cgutils.true_bit)
        with builder.if_then(builder.icmp_unsigned("!=", kind, builder.bitcast(cls, PTR)), likely=False):
            shape = ir.FunctionType(I32, [PTR, PTR])
            is_subtype = cgutils.get_or_insert_function(builder.module, shape, "PyType_IsSubtype")
            answer = builder.call(is_subtype, [kind, builder.bitcast(cls, PTR)])
            builder.store(builder.icmp_unsigned("!=", answer, I32(0)), is_one)
        array = cgutils.alloca_once_value(builder, ir.Constant(PTR, None))
        with builder.if_then(builder.load(is_one), likely=True):
            builder.store(load_pointer(builder, obj, HEAD), array)
        struct = cgutils.create_struct_proxy(typ)(c.context, builder)
        is_missing = cgutils.is_null(builder, builder.load(array))
        with builder.if_else(is_missing, likely=False) as (missing, present):
            with missing:
                refuse = c.pyapi.get_c_object(f"jitslab.refuse.{block_type.__name__}")
                c.pyapi.call_function_objargs(refuse, (obj,))
            with present:
                struct.ptr = builder.ptrtoint(load_pointer(builder, builder.load(array), HEAD), I64)
        return NativeValue(struct._getvalue(), is_error=is_missing)

    @box(block_type)  # type: ignore[untyped-decorator]  # numba has no types
    def box_block(typ: Any, value: Any, c: Any) -> Any:
        address = c.pyapi.long_from_longlong(cgutils.create_struct_proxy(typ)(c.context, c.builder, value=value).ptr)
        found = c.pyapi.call_function_objargs(c.pyapi.get_c_object(f"jitslab.find.{block_type.__name__}"), (address,))
        c.pyapi.decref(address)
        return found

    @lower_constant(block_type)  # type: ignore[untyped-decorator]  # numba has no types
    def lower_block(context: Any, builder: Any, typ: Any, obj: Any) -> Any:
        """A global of the function; its address is dynamic, so Numba does not save that function."""
        if not is_object(block_type, obj):
            raise NumbaTypeError(f"jitslab: {text_of_refusal(block_type, obj)}")
        _constants.append(obj)
        struct = cgutils.create_struct_proxy(typ)(context, builder)
        pointer = context.add_dynamic_addr(builder, obj._address, info=f"jitslab.{block_type.__name__}")
        struct.ptr = builder.ptrtoint(pointer, I64)
        return struct._getvalue()


def load_pointer(builder: Any, base: Any, offset: int) -> Any:
    """Emit the load of a pointer at an offset from another."""
    at = builder.gep(builder.bitcast(base, PTR), [I64(offset)])
    return builder.load(builder.bitcast(at, PTR.as_pointer()))
