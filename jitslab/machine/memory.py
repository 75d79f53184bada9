"""
Typed loads and stores, copies, atomics, thread identity, hints to LLVM.

An address is an int64.  Each load and store needs live memory of its size at the address, aligned to its type.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compile import I1, I32, I64, PTR, X86, Intrinsic, intrinsic, literal_intrinsic

# --- Addresses and pointers ---


def typed_pointer(builder: Any, value: Any, to: Any) -> Any:
    """Emit the cast of an int64 address or a pointer to a pointer to `to`."""
    pointer = to.as_pointer()
    return builder.inttoptr(value, pointer) if isinstance(value.type, ir.IntType) else builder.bitcast(value, pointer)


def _make_load_store(bits: int) -> tuple[Intrinsic, Intrinsic]:
    word = ir.IntType(bits)

    @intrinsic
    def load(typing: Any, address: Any, index: Any) -> Any:
        """Return integer `index` of the array at an address, as int64 (zero-extended)."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.load(builder.gep(typed_pointer(builder, args[0], word), [args[1]]), align=bits // 8)
            return value if bits == 64 else builder.zext(value, I64)

        return types.int64(types.int64, types.int64), emit

    @intrinsic
    def store(typing: Any, address: Any, index: Any, value: Any) -> Any:
        """Store the low bits of `value` into integer `index` of the array at an address."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            low = args[2] if bits == 64 else builder.trunc(args[2], word)
            builder.store(low, builder.gep(typed_pointer(builder, args[0], word), [args[1]]), align=bits // 8)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), emit

    return load, store


load8, store8 = _make_load_store(64)
load1, store1 = _make_load_store(8)


@intrinsic
def copy_bytes(typing: Any, to: Any, source: Any, n: Any) -> Any:
    """Copy n bytes between places that do not overlap; a constant n becomes plain moves."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cgutils.raw_memcpy(builder, builder.inttoptr(args[0], PTR), builder.inttoptr(args[1], PTR), args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


@intrinsic
def zero_bytes(typing: Any, to: Any, n: Any) -> Any:
    """Zero n bytes."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cgutils.memset(builder, builder.inttoptr(args[0], PTR), args[1], 0)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


# --- Threads ---


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the core that this is a spin loop."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name, params = ("llvm.x86.sse2.pause", []) if X86 else ("llvm.aarch64.hint", [I32])
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), params), name)
        builder.call(function, [I32(1)] if params else [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def thread_pointer(typing: Any) -> Any:
    """Return a number that no other live thread has; after a thread's end another can get it."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(emit_thread_pointer(builder), I64)

    return types.int64(), emit


def emit_thread_pointer(builder: Any) -> Any:
    """Emit the calling thread's identity, as a pointer."""
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(PTR, []), "llvm.thread.pointer")
    return builder.call(function, [])


# --- Bits and hints ---


def _make_expect(outcome: int) -> Intrinsic:
    @intrinsic
    def expect(typing: Any, condition: Any) -> Any:
        """Return `condition`, and tell LLVM its usual value."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I1, [I1, I1]), "llvm.expect.i1")
            return builder.call(function, [args[0], I1(outcome)])

        return types.boolean(types.boolean), emit

    return expect


likely, unlikely = _make_expect(1), _make_expect(0)


def _make_prefetch(to_write: int) -> Intrinsic:
    @intrinsic
    def prefetch(typing: Any, address: Any) -> Any:
        """Ask the CPU for the line at an address, which need not be mapped."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            params = ir.FunctionType(ir.VoidType(), [PTR, I32, I32, I32])
            function = cgutils.get_or_insert_function(builder.module, params, "llvm.prefetch.p0")
            builder.call(function, [builder.inttoptr(args[0], PTR), I32(to_write), I32(3), I32(1)])
            return context.get_dummy_value()

        return types.void(types.int64), emit

    return prefetch


prefetch_read, prefetch_write = _make_prefetch(0), _make_prefetch(1)


@intrinsic
def lowest_bit(typing: Any, x: Any) -> Any:
    """Return the index of the lowest bit set; 64 if there is none."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], I1(0))

    return types.int64(types.int64), emit


@intrinsic
def popcount(typing: Any, x: Any) -> Any:
    """Count the bits set."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.int64), emit


MIX = -7046029254386353131  # 2**64 / golden ratio, odd: thread pointers differ in their high bits only


@intrinsic
def fibonacci_hash(typing: Any, x: Any) -> Any:
    """Return `x * MIX`, wrapped; Numba's own product of signed numbers is undefined if it overflows."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.mul(args[0], I64(MIX))

    return types.int64(types.int64), emit


@literal_intrinsic
def shift_right(typing: Any, x: Any, n: Any) -> Any:
    """Return `x >> n` with zeros shifted in: LLVM knows that the result is not negative."""
    bits = n.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.lshr(args[0], I64(bits))

    return types.int64(types.int64, n), emit


# --- Calls ---


def emit_call_at(builder: Any, address: Any, values: list[Any]) -> Any:
    """Emit the call of the C function whose address stands in the int64 at an address."""
    at = builder.inttoptr(address, I64.as_pointer())
    signature = ir.FunctionType(I64, [I64] * len(values))
    return builder.call(builder.inttoptr(builder.load(at, align=8), signature.as_pointer()), values)


@intrinsic
def call_at(typing: Any, address: Any, argument: Any) -> Any:
    """Call the C function whose address stands in the int64 at an address, with one argument."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return emit_call_at(builder, args[0], [args[1]])

    return types.int64(types.int64, types.int64), emit
