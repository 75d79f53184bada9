"""Slow paths, called through the table in the control block; the heap of the calling thread."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils

from ..machine.compile import I64, PTR, HeapPointer, Intrinsic, intrinsic, linkonce, literal_intrinsic
from ..machine.disk import SOURCE_HASH
from ..machine.memory import MIX, emit_call_at, emit_thread_pointer
from .layout import CONTROL, HEAP, HEAP_BYTES, HEAPS, PROCESS, SLAB, C, H


def _make_view(dtype: np.dtype[Any]) -> Intrinsic:
    row = from_dtype(dtype)

    @intrinsic
    def view(typing: Any, base: Any) -> Any:
        """The metadata row at `base`: fields are plain loads and stores."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            to = context.get_value_type(row)
            return builder.inttoptr(args[0], to) if isinstance(args[0].type, ir.IntType) else builder.bitcast(args[0], to)

        return row(base), emit

    return view


control_at, heap_at, process_at = _make_view(CONTROL), _make_view(HEAP), _make_view(PROCESS)
slab_view = _make_view(SLAB)


def _table_call(builder: Any, control: Any, field: int, values: list[Any]) -> Any:
    """Call the entry point that stands in a field of the control block."""
    return emit_call_at(builder, builder.add(control, I64(field)), values)


@literal_intrinsic
def slow(typing: Any, heap: Any, field: Any, args: Any) -> Any:
    """
    Call a slow path of the heap: ``entry(heap, *args) -> int64``.

    Never inlined, and it keeps the caller's registers (preserve_mostcc), so that the fast path around it stays short
    enough to be inlined itself: 1.9 ns a pair instead of 4.6.
    """
    if not isinstance(args, types.BaseTuple):
        return None
    offset = field.literal_value

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        values = [values[0], *cgutils.unpack_tuple(builder, values[2])]
        name = f"jitslab.slow.{offset}.{len(values)}.{SOURCE_HASH}"
        shape = ir.FunctionType(I64, [v.type for v in values])
        thunk, is_new = linkonce(builder, name, shape, ("noinline", "nounwind", "cold"))
        if is_new:
            thunk.calling_convention = "preserve_mostcc"
            inner = ir.IRBuilder(thunk.append_basic_block())
            numbers = [inner.ptrtoint(thunk.args[0], I64), *thunk.args[1:]]
            control = inner.load(inner.inttoptr(inner.add(numbers[0], I64(H["control"])), I64.as_pointer()), align=8)
            with inner.if_then(inner.icmp_unsigned("==", control, I64(0)), likely=False):
                inner.ret(I64(0))
            inner.ret(_table_call(inner, control, offset, numbers))
        return builder.call(thunk, values, cconv="preserve_mostcc")

    return types.int64(HeapPointer, field, args), emit


@literal_intrinsic
def call_table(typing: Any, control: Any, field: Any, args: Any) -> Any:
    """Call an entry point of the cache: ``entry(control, *args) -> int64``; 0 of a variable that no path has set."""
    if not isinstance(args, types.BaseTuple):
        return None
    offset = field.literal_value

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        answer = cgutils.alloca_once_value(builder, I64(0))
        with builder.if_then(builder.icmp_unsigned("!=", values[0], I64(0)), likely=True):
            found = _table_call(builder, values[0], offset, [values[0], *cgutils.unpack_tuple(builder, values[2])])
            builder.store(found, answer)
        return builder.load(answer)

    return types.int64(types.int64, field, args), emit


HASH_SHIFT = 64 - 8
assert HEAPS == 1 << 8


@intrinsic
def my_heap(typing: Any, control: Any) -> Any:
    """
    The calling thread's heap of this cache, claimed now if it has none.

    LLVM is told that the answer depends on nothing but the cache, as C tells it of ``__errno_location``: a thread keeps
    its heap, so one call serves a whole function, outside its loops.  The row is one of the heaps, or the shared or
    closed one: always HEAP_BYTES of memory that may be read.  That holds for the zero, too, that Numba gives a variable which
    no path has set: LLVM may call this where the program does not get to.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pure = ("noinline", "nounwind", "readnone", "willreturn", "speculatable")
        thunk, is_new = linkonce(builder, f"jitslab.my_heap.{SOURCE_HASH}", ir.FunctionType(PTR, [I64]), pure)
        if is_new:
            returned = thunk.return_value
            returned.attributes.dereferenceable = HEAP_BYTES
            returned.attributes.align = 64
            returned.add_attribute("nonnull")
            inner = ir.IRBuilder(thunk.append_basic_block())
            cache = thunk.args[0]
            nothing = cgutils.add_global_variable(builder.module, ir.ArrayType(I64, HEAP_BYTES // 8), "jitslab.no_heap")
            nothing.linkage, nothing.align, nothing.initializer = "internal", 64, nothing.type.pointee(None)
            with inner.if_then(inner.icmp_unsigned("==", cache, I64(0)), likely=False):
                inner.ret(inner.bitcast(nothing, PTR))
            me = inner.ptrtoint(emit_thread_pointer(inner), I64)
            row = inner.lshr(inner.mul(me, I64(MIX)), I64(HASH_SHIFT))
            heaps = inner.load(inner.inttoptr(inner.add(cache, I64(C["heaps"])), I64.as_pointer()), align=8)
            step = inner.load(inner.inttoptr(inner.add(cache, I64(C["heap_step"])), I64.as_pointer()), align=8)
            heap = inner.inttoptr(inner.add(heaps, inner.mul(row, step)), PTR)
            owner = inner.load_atomic(inner.bitcast(heap, I64.as_pointer()), "monotonic", 8)
            with inner.if_then(inner.icmp_unsigned("==", owner, me), likely=True):
                inner.ret(heap)
            inner.ret(inner.inttoptr(_table_call(inner, cache, C["f_claim"], [cache, me]), PTR))
        return builder.call(thunk, [args[0]])

    return HeapPointer(types.int64), emit


assert H["owner"] == 0
