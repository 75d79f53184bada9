"""
Typed pointers for kernels: ``heap.top``, ``heap.generations[slot]``, ``state.heads[which]``.

A `StructPointer` is the address of a row of one dtype, an `ArrayPointer` that of an array of integers.  Pointers to rows of
different dtypes are different types, so Numba refuses one in place of another.  Every integer that is read is an int64; a value
that is assigned is cut to the width of its field.

A field that never changes after its row was filled in is *frozen*: LLVM may load it once for a whole loop.  A kernel that fills
a row in may not read a frozen field of that row.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.imputils import lower_builtin, lower_getattr_generic, lower_setattr_generic
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_getattr, infer_global, signature
from numba.extending import models, register_model

from .compile import I64, PTR, Intrinsic, intrinsic, literal_intrinsic


class ArrayPointer(types.Type):  # type: ignore[misc]  # numba has no types
    """Numba type of the address of an array of integers: ``array[i]`` reads an int64."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        super().__init__(f"jitslab.u{bits // 8}*")


U1S, U2S, U4S, I8S = (ArrayPointer(bits) for bits in (8, 16, 32, 64))


class StructPointer(types.Type):  # type: ignore[misc]  # numba has no types
    """
    Numba type of the address of a row.

    Parameters
    ----------
    name : str
        Name of the row, for messages.
    dtype : numpy.dtype
        Dtype of the row: integers, arrays of integers, and nested rows of both, whose fields are fields of this row.
    frozen : collection of str
        Fields that never change after the row was filled in.
    addresses : mapping of str to Type
        Fields that hold an address, and the pointer type that they are read as.
    tail : tuple of str and ArrayPointer, optional
        Name and type of the array that follows the row.
    """

    def __init__(
        self,
        name: str,
        dtype: np.dtype[Any],
        frozen: Collection[str] = (),
        addresses: Mapping[str, Any] | None = None,
        tail: tuple[str, ArrayPointer] | None = None,
    ) -> None:
        self.fields: dict[str, tuple[int, np.dtype[Any]]] = {}  # offset and dtype
        self._add(dtype, 0)
        self.frozen = frozenset(frozen)
        self.addresses = dict(addresses or {})
        if tail is not None:
            self.fields[tail[0]] = dtype.itemsize, np.dtype((f"u{tail[1].bits // 8}", (1,)))
        super().__init__(f"jitslab.{name}*")
        _structs[self.name] = self

    def __reduce__(self) -> Any:
        """Pickle by the name: machine code on disk belongs to the same sources."""
        return _struct_named, (self.name,)

    def _add(self, dtype: np.dtype[Any], start: int) -> None:
        """Add the fields of a dtype; a nested row is a field, too, whose address can be taken."""
        for name in dtype.names or ():
            field, offset = dtype.fields[name][:2]  # type: ignore[index]  # a dtype with names has fields
            self.fields[name] = start + offset, field
            if field.names is not None:
                self._add(field, start + offset)

    def type_of(self, name: str) -> Any:
        """Return the type that a field is read as; None: the row has no such field."""
        if name not in self.fields:
            return None
        dtype = self.fields[name][1]
        if dtype.subdtype is not None:
            return ArrayPointer(8 * dtype.base.itemsize)
        return self.addresses.get(name, types.int64)


_structs: dict[str, StructPointer] = {}


def _struct_named(name: str) -> StructPointer:
    """Return the pointer type of a name."""
    return _structs[name]


@register_model(StructPointer)
@register_model(ArrayPointer)
class PointerModel(models.PrimitiveModel):  # type: ignore[misc]  # numba has no types
    """The pointer in LLVM: to bytes."""

    def __init__(self, manager: Any, typ: Any) -> None:
        super().__init__(manager, typ, PTR)


# --- Fields ---


@infer_getattr
class StructAttributes(AttributeTemplate):  # type: ignore[misc]  # numba has no types
    """The fields of a row, to Numba's type inference."""

    key = StructPointer

    def generic_resolve(self, typ: Any, name: str) -> Any:
        """Return the type of a field."""
        return typ.type_of(name)


def emit_field(builder: Any, typ: StructPointer, row: Any, name: str) -> Any:
    """Emit the address of a field, as a pointer to its integer."""
    offset, dtype = typ.fields[name]
    return builder.bitcast(builder.gep(row, [I64(offset)]), ir.IntType(8 * dtype.base.itemsize).as_pointer())


def widened(builder: Any, value: Any, dtype: np.dtype[Any]) -> Any:
    """Emit an integer of a dtype as an int64."""
    if value.type == I64:
        return value
    return builder.sext(value, I64) if dtype.kind == "i" else builder.zext(value, I64)


@lower_getattr_generic(StructPointer)  # type: ignore[untyped-decorator]  # numba has no types
def lower_field(context: Any, builder: Any, typ: Any, row: Any, name: str) -> Any:
    """Emit the load of a field; a field that is an array is its address."""
    at, dtype = emit_field(builder, typ, row, name), typ.fields[name][1]
    if dtype.subdtype is not None:
        return builder.bitcast(at, PTR)
    value = builder.load(at, align=dtype.itemsize)
    if name in typ.frozen:
        value.set_metadata("invariant.load", builder.module.add_metadata([]))
    value = widened(builder, value, dtype)
    return builder.inttoptr(value, PTR) if name in typ.addresses else value


@lower_setattr_generic(StructPointer)  # type: ignore[untyped-decorator]  # numba has no types
def lower_store(context: Any, builder: Any, sig: Any, args: Any, name: str) -> Any:
    """Emit the store of an integer, or of a pointer's address, into a field."""
    typ, dtype = sig.args[0], sig.args[0].fields[name][1]
    value = builder.ptrtoint(args[1], I64) if isinstance(args[1].type, ir.PointerType) else args[1]
    width = ir.IntType(8 * dtype.itemsize)
    value = value if value.type == width else builder.trunc(value, width)
    builder.store(value, emit_field(builder, typ, args[0], name), align=dtype.itemsize)


# --- Items of arrays ---


def emit_item(builder: Any, typ: ArrayPointer, array: Any, index: Any) -> Any:
    """Emit the address of an item, as a pointer to its integer."""
    return builder.gep(builder.bitcast(array, ir.IntType(typ.bits).as_pointer()), [index])


@infer_global(operator.getitem)
class GetItem(AbstractTemplate):  # type: ignore[misc]  # numba has no types
    """``array[i]``, to Numba's type inference."""

    def generic(self, args: Any, kws: Any) -> Any:
        """Return the signature for an array."""
        return signature(types.int64, args[0], types.int64) if isinstance(args[0], ArrayPointer) else None


@infer_global(operator.setitem)
class SetItem(AbstractTemplate):  # type: ignore[misc]  # numba has no types
    """``array[i] = n``, to Numba's type inference."""

    def generic(self, args: Any, kws: Any) -> Any:
        """Return the signature for an array."""
        return signature(types.none, args[0], types.int64, types.int64) if isinstance(args[0], ArrayPointer) else None


@lower_builtin(operator.getitem, ArrayPointer, types.int64)  # type: ignore[untyped-decorator]  # numba has no types
def lower_get_item(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Emit the load of an item."""
    value = builder.load(emit_item(builder, sig.args[0], *args), align=sig.args[0].bits // 8)
    return value if value.type == I64 else builder.zext(value, I64)


@lower_builtin(operator.setitem, ArrayPointer, types.int64, types.int64)  # type: ignore[untyped-decorator]  # numba has no types
def lower_set_item(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Emit the store of an item."""
    array, index, value = args
    bits = sig.args[0].bits
    value = value if bits == 64 else builder.trunc(value, ir.IntType(bits))
    builder.store(value, emit_item(builder, sig.args[0], array, index), align=bits // 8)
    return context.get_dummy_value()


# --- Addresses ---


def make_cast(pointer: Any) -> Intrinsic:
    """Return an intrinsic that makes an address a pointer of one type."""

    @intrinsic
    def cast(typing: Any, address: Any) -> Any:
        """Return an address as a pointer."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], PTR)

        return pointer(types.int64), emit

    return cast


u1s, u2s, u4s, i8s = map(make_cast, (U1S, U2S, U4S, I8S))


@intrinsic
def address_of(typing: Any, pointer: Any) -> Any:
    """Return the address in a pointer, as an int64."""
    if not isinstance(pointer, (StructPointer, ArrayPointer)):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], I64)

    return types.int64(pointer), emit


@literal_intrinsic
def address_in(typing: Any, row: Any, field: Any) -> Any:
    """Return the address of a field by its name: of an integer, an array or a nested row."""
    if not (isinstance(row, StructPointer) and isinstance(field, types.StringLiteral)):
        return None
    offset = row.fields[field.literal_value][0]

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(builder.gep(args[0], [I64(offset)]), I64)

    return types.int64(row, field), emit


# --- Atomics: of a field by its name, of an item of an array by its number ---


def _place(builder: Any, typ: Any, base: Any, key: Any, index: Any) -> tuple[Any, np.dtype[Any]]:
    """Emit the pointer to a field or an item; returns it and the dtype."""
    if isinstance(typ, StructPointer):
        return emit_field(builder, typ, base, key.literal_value), typ.fields[key.literal_value][1].base
    return emit_item(builder, typ, base, index), np.dtype(f"u{typ.bits // 8}")


def _key_of(base: Any, key: Any) -> Any:
    """Return the type of a key, a field's name or an item's number; None: `base` has no such key."""
    if isinstance(base, StructPointer):
        return key if isinstance(key, types.StringLiteral) and key.literal_value in base.fields else None
    return types.int64 if isinstance(base, ArrayPointer) and isinstance(key, types.Integer) else None


def _make_atomic_load(order: str) -> Intrinsic:
    @literal_intrinsic
    def load(typing: Any, base: Any, key: Any) -> Any:
        """Load the integer in a field or an item, atomically."""
        key = _key_of(base, key)

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            at, dtype = _place(builder, base, args[0], key, args[1])
            return widened(builder, builder.load_atomic(at, order, dtype.itemsize), dtype)

        return None if key is None else (types.int64(base, key), emit)

    return load


load_acquire, load_relaxed = _make_atomic_load("acquire"), _make_atomic_load("monotonic")


@literal_intrinsic
def store_release(typing: Any, base: Any, key: Any, value: Any) -> Any:
    """Store an integer into a field or an item, atomically, after all that was stored before."""
    key = _key_of(base, key)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, dtype = _place(builder, base, args[0], key, args[1])
        value = args[2] if dtype.itemsize == 8 else builder.trunc(args[2], ir.IntType(8 * dtype.itemsize))
        builder.store_atomic(value, at, "release", dtype.itemsize)
        return context.get_dummy_value()

    return None if key is None else (types.void(base, key, types.int64), emit)


@literal_intrinsic
def compare_exchange(typing: Any, base: Any, key: Any, old: Any, new: Any) -> Any:
    """Store `new` into an int64 if it is `old`; returns whether it was."""
    key = _key_of(base, key)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, _ = _place(builder, base, args[0], key, args[1])
        return builder.extract_value(builder.cmpxchg(at, args[2], args[3], "acq_rel", "acquire"), 1)

    return None if key is None else (types.boolean(base, key, types.int64, types.int64), emit)


def _make_update(operation: str) -> Intrinsic:
    @literal_intrinsic
    def update(typing: Any, base: Any, key: Any, value: Any) -> Any:
        """Update an int64 atomically; returns the old value."""
        key = _key_of(base, key)

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.atomic_rmw(operation, _place(builder, base, args[0], key, args[1])[0], args[2], "monotonic")

        return None if key is None else (types.int64(base, key, types.int64), emit)

    return update


fetch_add, fetch_and, fetch_or = map(_make_update, ("add", "and", "or"))
