"""Calls of slow paths through the table of entry points, and the look-up of the calling thread's heap."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..machine.compile import I64, PTR, intrinsic, linkonce, literal_intrinsic
from ..machine.disk import SOURCE_HASH
from ..machine.memory import MIX, emit_call_at, emit_thread_pointer
from ..machine.pointers import StructPointer, emit_field, lower_field
from .layout import HASH_SHIFT, HEAP_BYTES, ControlPointer, HeapPointer


def _as_numbers(builder: Any, values: list[Any]) -> list[Any]:
    """Emit the arguments of an entry point: a pointer becomes its address."""
    return [builder.ptrtoint(value, I64) if isinstance(value.type, ir.PointerType) else value for value in values]


def _emit_call(context: Any, builder: Any, of: Any, row: Any, name: str, values: list[Any]) -> Any:
    """Emit the call of an entry point by its name in the table of a row."""
    entries = lower_field(context, builder, of, row, "entries")
    at = builder.ptrtoint(emit_field(builder, of.addresses["entries"], entries, name), I64)
    return emit_call_at(builder, at, _as_numbers(builder, values))


def _can_be_arguments(args: Any) -> bool:
    """Whether an entry point takes arguments of these types."""
    return isinstance(args, types.BaseTuple) and all(
        isinstance(arg, (types.Integer, types.Boolean, StructPointer)) for arg in args
    )


def _as_arguments(args: Any) -> Any:
    """Return the type of the tuple of arguments, in which every integer is an int64."""
    return types.Tuple(tuple(arg if isinstance(arg, StructPointer) else types.int64 for arg in args))


@literal_intrinsic
def slow(typing: Any, heap: Any, name: Any, args: Any) -> Any:
    """
    Call the slow path of a heap by the name of its entry point: ``entry(control, heap, *args) -> int64``.

    It is never inlined and keeps the caller's registers (preserve_mostcc): so the fast path around it stays short enough to be
    inlined (1.9 ns a pair instead of 4.6).
    """
    if not (isinstance(heap, StructPointer) and isinstance(name, types.StringLiteral) and _can_be_arguments(args)):
        return None
    field = name.literal_value

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        values = [values[0], *_as_numbers(builder, cgutils.unpack_tuple(builder, values[2]))]
        shape = ir.FunctionType(I64, [v.type for v in values])
        symbol = f"jitslab.slow.{field}.{len(values)}.{SOURCE_HASH}"
        thunk, is_new = linkonce(builder, symbol, shape, ("noinline", "nounwind", "cold"))
        if is_new:
            thunk.calling_convention = "preserve_mostcc"
            inner = ir.IRBuilder(thunk.append_basic_block())
            control = lower_field(context, inner, HeapPointer, thunk.args[0], "control")
            with inner.if_then(cgutils.is_null(inner, control), likely=False):
                inner.ret(I64(0))
            inner.ret(_emit_call(context, inner, ControlPointer, control, field, [control, *thunk.args]))
        return builder.call(thunk, values, cconv="preserve_mostcc")

    return types.int64(HeapPointer, name, _as_arguments(args)), emit


@literal_intrinsic
def call(typing: Any, row: Any, name: Any, args: Any) -> Any:
    """
    Call an entry point by its name in the table of a row: ``entry(row, *args) -> int64``.

    The row is a CONTROL or a SIZES row.  If its address is 0 (a variable that no path has set), the answer is 0.
    """
    if not (isinstance(row, StructPointer) and isinstance(name, types.StringLiteral) and _can_be_arguments(args)):
        return None
    field = name.literal_value

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        answer = cgutils.alloca_once_value(builder, I64(0))
        with builder.if_then(cgutils.is_not_null(builder, values[0]), likely=True):
            arguments = [values[0], *cgutils.unpack_tuple(builder, values[2])]
            builder.store(_emit_call(context, builder, row, values[0], field, arguments), answer)
        return builder.load(answer)

    return types.int64(row, name, _as_arguments(args)), emit


@intrinsic
def my_heap(typing: Any, control: Any) -> Any:
    """
    Return the calling thread's heap of this cache; a thread without one claims it now.

    LLVM is told that the answer depends on the cache alone, as C does for ``__errno_location``: a thread keeps its heap, so
    one call serves a whole function, outside its loops.  The answer is a thread's heap, the shared or the closed one: always
    HEAP_BYTES of readable memory.  That holds for NULL, too, the value of a variable that no path has set: LLVM may call this
    on paths that the program does not take.
    """
    if control != ControlPointer:
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pure = ("noinline", "nounwind", "readnone", "willreturn", "speculatable")
        thunk, is_new = linkonce(builder, f"jitslab.my_heap.{SOURCE_HASH}", ir.FunctionType(PTR, [PTR]), pure)
        if is_new:
            returned = thunk.return_value
            returned.attributes.dereferenceable = HEAP_BYTES
            returned.attributes.align = 64
            returned.add_attribute("nonnull")
            inner = ir.IRBuilder(thunk.append_basic_block())
            cache = thunk.args[0]
            nothing = cgutils.add_global_variable(builder.module, ir.ArrayType(I64, HEAP_BYTES // 8), "jitslab.no_heap")
            nothing.linkage, nothing.align, nothing.initializer = "internal", 64, nothing.type.pointee(None)
            with inner.if_then(cgutils.is_null(inner, cache), likely=False):
                inner.ret(inner.bitcast(nothing, PTR))
            me = inner.ptrtoint(emit_thread_pointer(inner), I64)
            index = inner.lshr(inner.mul(me, I64(MIX)), I64(HASH_SHIFT))
            heaps = lower_field(context, inner, ControlPointer, cache, "heaps")
            step = lower_field(context, inner, ControlPointer, cache, "heap_step")
            heap = inner.inttoptr(inner.add(heaps, inner.mul(index, step)), PTR)
            owner = inner.load_atomic(emit_field(inner, HeapPointer, heap, "owner"), "monotonic", 8)
            with inner.if_then(inner.icmp_unsigned("==", owner, me), likely=True):
                inner.ret(heap)
            inner.ret(inner.inttoptr(_emit_call(context, inner, ControlPointer, cache, "claim", [cache, me]), PTR))
        return builder.call(thunk, [args[0]])

    return HeapPointer(ControlPointer), emit
