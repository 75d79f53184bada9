"""
How stores reach persistent memory: a line is flushed from the CPU's caches, then a fence.

The flush is the best one that Numba compiles for: CLWB keeps the line in the caches, CLFLUSHOPT and CLFLUSH drop it.  Only x86-64
is known here (`CAN_FLUSH`).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .addresses import LINUX
from .compile import PTR, X86, intrinsic

CAN_FLUSH = LINUX and X86  # a mapping of persistent memory that needs no system call is Linux's alone
FLUSHES = (("+clwb", "llvm.x86.clwb"), ("+clflushopt", "llvm.x86.clflushopt"), ("", "llvm.x86.sse2.clflush"))


def _call(builder: Any, name: str, *args: Any) -> None:
    """Emit the call of one of LLVM's intrinsics, without a result."""
    shape = ir.FunctionType(ir.VoidType(), [each.type for each in args])
    builder.call(cgutils.get_or_insert_function(builder.module, shape, name), args)


@intrinsic
def flush_line(typing: Any, address: Any) -> Any:
    """Write the line of an address back from the CPU's caches, some time before the next fence ends."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if CAN_FLUSH:
            features = context.codegen().magic_tuple()[2].split(",")
            name = next(name for feature, name in FLUSHES if feature in ("", *features))
            _call(builder, name, builder.inttoptr(args[0], PTR))
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def store_fence(typing: Any) -> Any:
    """Wait until all stores, and all flushes, that came before are done."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if CAN_FLUSH:
            _call(builder, "llvm.x86.sse.sfence")
        return context.get_dummy_value()

    return types.void(), emit
