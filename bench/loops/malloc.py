"""C `malloc` and `free` for compiled code: the C library's, or those of the allocator that LD_PRELOAD put before it."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# As integers, so that LLVM does not know them for the functions that they are and leave a pair of them out.
malloc = types.ExternalFunction("malloc", types.int64(types.int64))
free = types.ExternalFunction("free", types.void(types.int64))
SIZE = 64


@intrinsic
def store(typing, address, value):
    """Store an int64 at an address."""

    def emit(context, builder, signature, args):
        builder.store(args[1], builder.inttoptr(args[0], ir.IntType(64).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def load(typing, address):
    """Load an int64 from an address."""

    def emit(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(types.int64), emit
