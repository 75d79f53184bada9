"""
The values that a record is born with in compiled code: ``cache.alloc(value=1.0, next=head)``.

All values are converted before a slot is taken, so that nothing is allocated if one is refused.  Then they are stored into the
record without a look-up: its slot was taken a moment ago.

A value is converted by Numba's own rule for the fields of records, ``record.field = value``.  Besides, sub-arrays
take an array, as ``record.field[:] = value`` does, or a tuple, and nested records one of the same dtype or a tuple of all fields.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.errors import NumbaTypeError, TypingError
from numba.core.registry import cpu_target
from numba.np.arrayobj import load_item, populate_array

from ..machine.compile import I64
from ..machine.memory import copy_bytes
from .lowering import Site, with_near

Store = Callable[[Any], None]  # emits the store of a value that is converted, into the record at an address


class Place(NamedTuple):
    """Where a value goes: a field of a record, or an element of a field."""

    name: str  # for messages
    of: Any
    offset: int
    is_aligned: bool


class FieldTypes(dict[str, Any]):
    """The fields of a Numba record by name, which say of a name that is none which are near; pickled as what Numba has there."""

    def __missing__(self, name: str) -> Any:
        """Raise for a field that there is not."""
        raise NumbaTypeError(f"jitslab: {with_near(f'the record has no field {name!r}', name, self)}")

    def __reduce__(self) -> Any:
        """Be a dict to Numba's caches on disk: a program without this package can read them."""
        return dict, (dict(self),)


def need_fields(record: Any, fields: Mapping[str, Any]) -> None:
    """Refuse fields that a record does not have, and values that Numba cannot convert, while the user's function is typed."""
    for name, value in fields.items():
        _need_value(_place(record, name), value)


def need_columns(record: Any, fields: Mapping[str, Any]) -> None:
    """Refuse likewise for many records, where an array has a value for each: one dimension more than the field."""
    need_fields(record, {name: _item_of(_place(record, name).of, value) or value for name, value in fields.items()})


def _item_of(of: Any, value: Any) -> Any:
    """Return the type of the value of one record, if an array has one for each; else None."""
    n_own = of.ndim if isinstance(of, types.NestedArray) else 0
    if not isinstance(value, types.Array) or value.ndim != n_own + 1:
        return None
    return types.Array(value.dtype, n_own, "A") if n_own else value.dtype


def _place(record: Any, name: str) -> Place:
    """Return the place of a field."""
    return Place(name, record.typeof(name), record.offset(name), record.aligned)


def _parts(place: Place) -> list[Place]:
    """Return the places of a sub-array's elements along the first axis, or of a nested record's fields."""
    of = place.of
    if isinstance(of, types.Record):
        inner = (_place(of, name) for name in of.fields)
        return [
            it._replace(name=f"{place.name}.{it.name}", offset=place.offset + it.offset, is_aligned=place.is_aligned)
            for it in inner
        ]
    part = of.dtype if of.ndim == 1 else types.NestedArray(of.dtype, of.shape[1:])
    step = of.strides[0]
    return [Place(f"{place.name}[{i}]", part, place.offset + i * step, place.is_aligned) for i in range(of.shape[0])]


def _is_whole(of: Any) -> bool:
    """Whether a field consists of parts."""
    return isinstance(of, (types.Record, types.NestedArray))


def _need_value(place: Place, value: Any) -> None:
    """Refuse a value that a place cannot take."""
    typing, of = cpu_target.typing_context, place.of
    if _is_whole(of) and isinstance(value, types.BaseTuple):
        parts = _parts(place)
        if len(parts) != len(value):
            raise NumbaTypeError(f"jitslab: field {place.name!r} takes {len(parts)} values, got a tuple of {len(value)}")
        for part, it in zip(parts, value, strict=True):
            _need_value(part, it)
        return
    if isinstance(of, types.Record):
        fits = value == of
    elif isinstance(of, types.NestedArray):
        fits = _can_fill(typing, of, value)
    else:
        fits = typing.can_convert(types.unliteral(value), of) is not None or _is_text(of, value)
    if not fits:
        raise NumbaTypeError(f"jitslab: field {place.name!r} takes {of}, got {types.unliteral(value)}")


def _is_text(of: Any, value: Any) -> bool:
    """Whether a field of bytes is given bytes: of these Numba has a conversion, and no rule."""
    return isinstance(of, types.CharSeq) and isinstance(value, types.Bytes)


def _can_fill(typing: Any, of: Any, value: Any) -> bool:
    """Whether Numba assigns such a value to all of an array."""
    if isinstance(value, types.Array) and value.ndim > of.ndim:
        return False
    try:
        return typing.resolve_function_type(operator.setitem, (_array_type(of), types.slice2_type, value), {}) is not None
    except TypingError:
        return False


def _array_type(of: Any) -> Any:
    """Return the type of the array that a sub-array is."""
    return types.Array(of.dtype, of.ndim, "C")


def prepare(site: Site, record: Any, fields: Mapping[str, tuple[Any, Any]]) -> list[Store]:
    """Emit the conversions of values, given with their types, to fields; returns what emits the stores."""
    stores: list[Store] = []
    for name, (of, value) in fields.items():
        _convert(site, _place(record, name), of, value, stores)
    return stores


def _convert(site: Site, place: Place, of: Any, value: Any, stores: list[Store]) -> None:
    """Emit the conversion of one value."""
    context, builder = site.context, site.builder
    if _is_whole(place.of) and isinstance(of, types.BaseTuple):
        for i, part in enumerate(_parts(place)):
            _convert(site, part, of[i], builder.extract_value(value, i), stores)
        return
    if _is_whole(place.of):
        if isinstance(place.of, types.Record):
            source, size = builder.ptrtoint(value, I64), place.of.size
        else:
            source, size = _filled(site, place.of, of, value), place.of.nitems * place.of.strides[-1]
        stores.append(lambda at: site.emit(copy_bytes, builder.add(at, I64(place.offset)), source, I64(size)))
        return
    converted = context.cast(builder, value, of, place.of)

    def store(at: Any) -> None:
        to = builder.inttoptr(builder.add(at, I64(place.offset)), context.get_data_type(place.of).as_pointer())
        context.pack_value(builder, place.of, converted, to, align=None if place.is_aligned else 1)

    stores.append(store)


def _filled(site: Site, place: Any, of: Any, value: Any) -> Any:
    """Emit the assignment of a value to an array on the stack; returns the address of its data."""
    context, builder, array_type = site.context, site.builder, _array_type(place)
    data = cgutils.alloca_once(builder, context.get_data_type(place.dtype), size=place.nitems)
    array = context.make_array(array_type)(context, builder)
    shape, strides = (cgutils.pack_array(builder, list(map(I64, numbers))) for numbers in (place.shape, place.strides))
    size = I64(place.strides[-1])
    populate_array(array, data=builder.bitcast(data, array.data.type), shape=shape, strides=strides, itemsize=size, meminfo=None)
    every = context.make_helper(builder, types.slice2_type)
    every.start, every.stop, every.step = I64(0), I64(place.shape[0]), I64(1)
    function = context.typing_context.resolve_value_type(operator.setitem)
    signature = function.get_call_type(context.typing_context, (array_type, types.slice2_type, of), {})
    given = context.cast(builder, value, of, signature.args[2])
    context.get_function(function, signature)(builder, (array._getvalue(), every._getvalue(), given))
    return builder.ptrtoint(data, I64)


def prepare_columns(site: Site, record: Any, fields: Mapping[str, tuple[Any, Any]], n: Any) -> list[Callable[[Any, Any], None]]:
    """
    Emit the conversions of values, and checks of arrays that have one for each of n records, before any slot is taken.

    Returns what emits the stores, into a record at an address, of what is its own by its number.
    """
    stores: list[Callable[[Any, Any], None]] = []
    for name, (of, value) in fields.items():
        place = _place(record, name)
        if _item_of(place.of, of) is None:
            stores.extend(map(_for_all, prepare(site, record, {name: (of, value)})))
        else:
            stores.append(_column(site, place, of, value, n))
    return stores


def _for_all(store: Store) -> Callable[[Any, Any], None]:
    """Return what emits a store that is the same for each record."""
    return lambda at, i: store(at)


def _column(site: Site, place: Place, of: Any, value: Any, n: Any) -> Callable[[Any, Any], None]:
    """Emit the check of an array that has a value for each record."""
    context, builder = site.context, site.builder
    array = context.make_array(of)(context, builder, value)
    own = place.of.shape if isinstance(place.of, types.NestedArray) else ()
    shape, strides = cgutils.unpack_tuple(builder, array.shape), cgutils.unpack_tuple(builder, array.strides)
    for found, wanted in zip(shape, (n, *map(I64, own)), strict=True):
        with builder.if_then(builder.icmp_signed("!=", found, wanted), likely=False):
            text = f"jitslab: field {place.name!r} takes an array of one value for each record, got another shape"
            context.call_conv.return_user_exc(builder, ValueError, (text,))
    single = place.of.dtype if own else place.of

    def store(at: Any, i: Any) -> None:
        start = builder.add(builder.ptrtoint(array.data, I64), builder.mul(i, strides[0]))
        for index in np.ndindex(*own):
            source = start
            for k, stride in zip(index, strides[1:], strict=True):
                source = builder.add(source, builder.mul(I64(k), stride))
            step = sum(k * size for k, size in zip(index, place.of.strides, strict=True)) if own else 0
            pointer = builder.inttoptr(source, context.get_data_type(of.dtype).as_pointer())
            item = load_item(context, builder, of, pointer)
            inner: list[Store] = []
            _convert(site, place._replace(of=single, offset=place.offset + step), of.dtype, item, inner)
            for each in inner:
                each(at)

    return store
