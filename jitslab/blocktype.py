"""
Numba types of objects that are, in compiled code, the address of a block: one int64, got by two loads.

Above `_native`, below `compiled` and `sizetype`.  Such an object keeps an ndarray in its first slot, and the array's data is the
block; so the block lives as long as the object does.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_constant
from numba.extending import NativeValue, make_attribute_wrapper, models, register_model, unbox

from ._native import I64, PTR

HEAD = object.__basicsize__  # first slot of an object, and where an ndarray keeps the pointer to its data
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
        array = builder.load(builder.bitcast(builder.gep(builder.bitcast(obj, PTR), [I64(HEAD)]), PTR.as_pointer()))
        struct = cgutils.create_struct_proxy(typ)(c.context, builder)
        is_missing = cgutils.is_null(builder, array)
        with builder.if_else(is_missing) as (missing, present):
            with missing:
                c.pyapi.err_set_string("PyExc_ValueError", f"this {name} was never opened")
            with present:
                struct.ptr = builder.load(builder.bitcast(builder.gep(array, [I64(HEAD)]), I64.as_pointer()))
        return NativeValue(struct._getvalue(), is_error=is_missing)

    @lower_constant(block_type)  # type: ignore[untyped-decorator]  # numba has no types
    def lower_block(context: Any, builder: Any, typ: Any, obj: Any) -> Any:
        """A global of the function; its address is dynamic, so Numba does not save that function."""
        _constants.append(obj)
        struct = cgutils.create_struct_proxy(typ)(context, builder)
        pointer = context.add_dynamic_addr(builder, obj._address, info=f"jitslab.{name}")
        struct.ptr = builder.ptrtoint(pointer, I64)
        return struct._getvalue()
