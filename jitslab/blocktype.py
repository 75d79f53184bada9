"""
Objects that are, in compiled code, the address of a block: one int64, got by one load.

Above `_cpython`, below `compiled` and `sizetype`.  Such an object is a `BlockHolder`: it has the address, and the array whose
data the block is; so the block lives as long as the object does.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_constant
from numba.extending import NativeValue, make_attribute_wrapper, models, register_model, unbox

from ._cpython import HEAD, make_type, member
from ._native import I64, PTR

# In a BlockHolder: the block's address, 0 before it has one; the array that keeps the block; the class of a cache's guards.
ADDRESS, ARRAY, GUARD_CLASS, HOLDER_BYTES = range(HEAD, HEAD + 32, 8)
_members = (
    member("address", "i8", ADDRESS, 0),
    member("array", "object", ARRAY, 0),
    member("guard_class", "object", GUARD_CLASS, 0),
)
BlockHolder: Any = make_type((object,), HOLDER_BYTES, {}, _members)
_address, _array, _guard_class = (vars(BlockHolder)[name] for name in ("address", "array", "guard_class"))
for _name in ("address", "array", "guard_class"):  # so nothing but this module sets them
    delattr(BlockHolder, _name)


def hold(holder: Any, address: int, array: Any) -> None:
    """Have a BlockHolder hold the block at an address, which is the data of an array."""
    _array.__set__(holder, array)
    _address.__set__(holder, address)


def set_guard_class(holder: Any, cls: type) -> None:
    """Have a cache make guards of a class."""
    _guard_class.__set__(holder, cls)


def guard_class_of(holder: Any) -> Any:
    """Return the class of a cache's guards, or None."""
    try:
        return _guard_class.__get__(holder)
    except AttributeError:
        return None


_constants: list[Any] = []  # objects that compiled code has as globals: never dropped


def register(block_type: type[types.Type], name: str) -> None:
    """Let compiled code have objects of such a type, as arguments and as globals; `name` is what users call them."""

    @register_model(block_type)
    class BlockModel(models.StructModel):  # type: ignore[misc]  # numba has no types
        def __init__(self, manager: Any, typ: Any) -> None:
            super().__init__(manager, typ, [("ptr", types.int64)])

    make_attribute_wrapper(block_type, "ptr", "_ptr")

    @unbox(block_type)  # type: ignore[untyped-decorator]  # numba has no types
    def unbox_block(typ: Any, obj: Any, c: Any) -> NativeValue:
        builder = c.builder
        struct = cgutils.create_struct_proxy(typ)(c.context, builder)
        struct.ptr = builder.load(builder.bitcast(builder.gep(builder.bitcast(obj, PTR), [I64(ADDRESS)]), I64.as_pointer()))
        is_missing = cgutils.is_null(builder, struct.ptr)
        with builder.if_then(is_missing, likely=False):
            c.pyapi.err_set_string("PyExc_ValueError", f"this {name} was never opened")
        return NativeValue(struct._getvalue(), is_error=is_missing)

    @lower_constant(block_type)  # type: ignore[untyped-decorator]  # numba has no types
    def lower_block(context: Any, builder: Any, typ: Any, obj: Any) -> Any:
        """A global of the function; its address is dynamic, so Numba does not save that function."""
        _constants.append(obj)
        struct = cgutils.create_struct_proxy(typ)(context, builder)
        pointer = context.add_dynamic_addr(builder, obj._address, info=f"jitslab.{name}")
        struct.ptr = builder.ptrtoint(pointer, I64)
        return struct._getvalue()
