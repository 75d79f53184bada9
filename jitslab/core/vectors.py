"""Slots in a row, and their generations, several at once by vector instructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..machine.compile import I1, I32, I64, intrinsic, literal_intrinsic
from ..machine.memory import typed_pointer
from ..machine.pointers import U4S, emit_item
from .layout import LINE_SLOTS, NOT_FREE


@intrinsic
def live_mask(typing: Any, generations: Any, first: Any) -> Any:
    """Return a mask: bit i is set if generation i of the 64 from slot `first` on is odd."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _mask_of(builder, args[0], args[1], lambda each: builder.trunc(each, ir.VectorType(I1, LANES)))

    return types.int64(U4S, types.int64), emit


@intrinsic
def matching_mask(typing: Any, generations: Any, first: Any, bits: Any, value: Any) -> Any:
    """Return a mask: bit i is set if generation i of the 64 from slot `first` on has a value in some of its bits."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits, value = (_splat(builder, builder.trunc(it, I32), LANES) for it in args[2:])
        return _mask_of(builder, args[0], args[1], lambda each: builder.icmp_unsigned("==", builder.and_(each, bits), value))

    return types.int64(U4S, types.int64, types.int64, types.int64), emit


@intrinsic
def lower_mask(typing: Any, generations: Any, first: Any, bound: Any) -> Any:
    """Return a mask: bit i is set if generation i of the 64 from slot `first` on is lower than a bound."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bound = _splat(builder, builder.trunc(args[2], I32), LANES)
        return _mask_of(builder, args[0], args[1], lambda each: builder.icmp_unsigned("<", each, bound))

    return types.int64(U4S, types.int64, types.int64), emit


# --- Parts ---

LANES = 16  # generations of one line: one register, or two or four


def _mask_of(builder: Any, generations: Any, first: Any, is_set: Callable[[Any], Any]) -> Any:
    """Emit the mask of a condition on each of 64 generations."""
    vector = _lanes(builder, emit_item(builder, U4S, generations, first), 32, LANES)
    mask = I64(0)
    for k in range(64 // LANES):
        bits = builder.bitcast(is_set(builder.load(builder.gep(vector, [I64(k)]), align=4)), ir.IntType(LANES))
        mask = builder.or_(mask, builder.shl(builder.zext(bits, I64), I64(LANES * k)))
    return mask


def _lanes(builder: Any, address: Any, bits: int, n: int) -> Any:
    """Emit the pointer to a vector of n integers at an address."""
    return typed_pointer(builder, address, ir.VectorType(ir.IntType(bits), n))


def _counted(builder: Any, first: Any, n: int, step: int = 1) -> Any:
    """Emit the vector of `first` and the n - 1 numbers after it; with step -1 the highest comes first."""
    vector = ir.VectorType(first.type, n)
    return builder.add(_splat(builder, first, n), ir.Constant(vector, list(range(n))[::step]))


def _splat(builder: Any, value: Any, n: int) -> Any:
    """Emit the vector of n times one value."""
    one = builder.insert_element(ir.Constant(ir.VectorType(value.type, n), ir.Undefined), value, I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, n), [0] * n))


def _every(vector: Any, value: int) -> Any:
    """Return the constant vector of one value, of the type of another vector."""
    return ir.Constant(vector.type, [value] * vector.type.count)


def _none(builder: Any, conditions: Any) -> Any:
    """Emit whether no lane of a vector of conditions is true."""
    bits = ir.IntType(conditions.type.count)
    return builder.icmp_unsigned("==", builder.bitcast(conditions, bits), bits(0))


# --- Slots in a row ---


@literal_intrinsic
def make_row_live(typing: Any, generations: Any, first: Any, out: Any, n: Any) -> Any:
    """
    Make the n slots from `first` on live if all are free and none is retired; returns whether they were.

    out  int64   address of n handles
    """
    lanes = n.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        generations, first, out = args[:3]
        at = _lanes(builder, emit_item(builder, U4S, generations, first), 32, lanes)
        old = builder.load(at, align=4)
        taken = builder.and_(old, _every(old, NOT_FREE))
        are_free = _none(builder, builder.icmp_unsigned("!=", taken, _every(old, 0)))
        with builder.if_then(are_free, likely=True):
            builder.store(builder.or_(old, _every(old, 1)), at, align=4)
            slots = _counted(builder, first, lanes)
            cycles = builder.shl(builder.zext(old, slots.type), _every(slots, 31))
            builder.store(builder.or_(cycles, slots), _lanes(builder, out, 64, lanes), align=8)
        return are_free

    return types.boolean(U4S, types.int64, types.int64, n), emit


@literal_intrinsic
def free_row(typing: Any, generations: Any, first: Any, handles: Any, n: Any) -> Any:
    """
    Free n records if the handles at an address are those of the n slots from `first` on, all live; returns whether they were.

    handles  int64   address of n handles
    """
    lanes = n.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        generations, first, address = args[:3]
        handles = builder.load(_lanes(builder, address, 64, lanes), align=8)
        at = _lanes(builder, emit_item(builder, U4S, generations, first), 32, lanes)
        old = builder.load(at, align=4)
        even = builder.and_(old, _every(old, -2))
        cycles = builder.shl(builder.zext(even, handles.type), _every(handles, 31))
        others = builder.icmp_unsigned("!=", handles, builder.or_(cycles, _counted(builder, first, lanes)))
        are_live = _none(builder, builder.or_(others, builder.icmp_unsigned("==", old, even)))
        with builder.if_then(are_live, likely=True):
            builder.store(builder.add(old, _every(old, 1)), at, align=4)
        return are_live

    return types.boolean(U4S, types.int64, types.int64, n), emit


@literal_intrinsic
def is_row(typing: Any, at: Any, n: Any) -> Any:
    """Whether the n slots (u4) at an address are in a row, the lowest last: on top of a magazine."""
    lanes = n.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        slots = builder.load(_lanes(builder, args[0], 32, lanes), align=4)
        highest, lowest = (builder.extract_element(slots, I32(lane)) for lane in (0, lanes - 1))
        row = _none(builder, builder.icmp_unsigned("!=", slots, _counted(builder, lowest, lanes, -1)))
        return builder.and_(row, builder.icmp_unsigned(">", highest, lowest))  # no row: slot 2**32 - 1 and slot 0

    return types.boolean(types.int64, n), emit


@intrinsic
def is_line(typing: Any, at: Any) -> Any:
    """Whether the 16 slots (u4) at an address are those of one line of generations, in any order."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        slots = builder.load(_lanes(builder, args[0], 32, LINE_SLOTS), align=4)
        first = _splat(builder, builder.extract_element(slots, I32(0)), LINE_SLOTS)
        others = builder.and_(builder.xor(slots, first), _every(slots, -LINE_SLOTS))
        bits = builder.shl(_every(slots, 1), builder.and_(slots, _every(slots, LINE_SLOTS - 1)))
        name, shape = f"llvm.vector.reduce.or.v{LINE_SLOTS}i32", ir.FunctionType(I32, [slots.type])
        found = builder.call(cgutils.get_or_insert_function(builder.module, shape, name), [bits])
        all_there = builder.icmp_unsigned("==", found, I32((1 << LINE_SLOTS) - 1))
        return builder.and_(_none(builder, builder.icmp_unsigned("!=", others, _every(slots, 0))), all_there)

    return types.boolean(types.int64), emit


@literal_intrinsic
def store_row(typing: Any, at: Any, first: Any, n: Any) -> Any:
    """Write n slots (u4) in a row from `first` on, the lowest last."""
    lanes = n.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(_counted(builder, builder.trunc(args[1], I32), lanes, -1), _lanes(builder, args[0], 32, lanes), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, n), emit
