"""
The same loops over C `malloc` and `free`: the C library's, or those of the allocator that LD_PRELOAD put before it.

Called from the same compiled code as the cache, through the symbols that the process has.
"""

from __future__ import annotations

from functools import partial

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

njit = partial(numba.njit, cache=True, nogil=True)
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


@njit
def pair(n):
    """Alloc, write, free: the sum of the addresses."""
    s = 0
    for i in range(n):
        p = malloc(SIZE)
        s += p
        store(p, i)
        free(p)
    return s


@njit
def fill(held):
    """Alloc as many records as `held` has room for."""
    for i in range(held.size):
        p = malloc(SIZE)
        store(p, i)
        held[i] = p


@njit
def churn(held, order):
    """Free one of the held records at random, alloc another, write."""
    for i in range(order.size):
        j = order[i]
        free(held[j])
        p = malloc(SIZE)
        store(p, np.int64(i))
        held[j] = p


@njit
def drain(held):
    """Free all held records: the sum of what they held."""
    s = 0
    for i in range(held.size):
        s += load(held[i])
        free(held[i])
    return s


@njit
def write(held):
    """Write records."""
    for i in range(held.size):
        store(held[i], i)


@njit
def free_each(held):
    """Free a batch: how many."""
    for i in range(held.size):
        free(held[i])
    return held.size
