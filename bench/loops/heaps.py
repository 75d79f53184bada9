"""
What a loop takes memory from, by the type of its first argument: so a loop is written once, over C, a cache and a floor.

0 stands for C `malloc` and `free`, a `SlabAllocator` for memory by size, a `SlabCache` for its records, and `Stack` for the bare
stack: an int32 array of free slots and its top, as a user writes it by hand.  Nothing is checked there, not even that it is
empty, nothing shared, nothing ever grown: nothing that hands out slots can be faster.  A cache is asked in both ways that its
user has: by `take` with `new()`, by `alloc` with `alloc()` and a look-up.

The stack with generations is not among them, see `floor`: written out it is 5 to 8 % faster.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from jitslab import SlabCache
from loops import floor
from loops import malloc as c
from loops.floor import SLOT_MASK
from measure import RECORD

njit = partial(numba.njit, cache=True, nogil=True)
# Compiled into the loop, as a C compiler does; without NRT, which would count references to the stack's arrays in every turn.
PART = {"forceinline": True, "_nrt": False}
part = partial(njit, **PART)


class Stack(NamedTuple):
    """A bare stack: slot 0 is popped first."""

    slots: Any
    top: Any  # on a line of the CPU's cache for itself
    records: Any


# --- Take, look up, give back ---


def take(heap, size):
    """Take memory: (ref, its address)."""
    raise NotImplementedError


def alloc(heap, size):
    """The same, a record of a cache by its handle."""
    raise NotImplementedError


def at(heap, ref, size):
    """Return the address of memory."""
    raise NotImplementedError


def give(heap, ref, size):
    """Free memory: whether it was accepted."""
    raise NotImplementedError


@intrinsic
def address_of(typing, record):
    """The address of a record."""

    def emit(context, builder, signature, args):
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(record), emit


@part
def take_from_malloc(size):
    """Take memory from C."""
    p = c.malloc(size)
    return p, p


@part
def give_to_malloc(ref):
    """Free memory of C."""
    c.free(ref)
    return True


@part
def take_by_size(heap, size):
    """Take memory by size."""
    return heap.new(size)


@part
def take_new(cache):
    """Take a record, which needs no second check."""
    ref, record = cache.new()
    return ref, address_of(record)


@part
def take_by_alloc(cache):
    """Take a record, and look it up."""
    ref = cache.alloc()
    return ref, address_of(cache[ref])


@part
def pop(slots, top, records):
    """Take a slot."""
    t = top[0] - 1
    top[0] = t
    slot = slots[t]
    return slot, address_of(records[slot])


@part
def push(slots, top, slot):
    """Give a slot back."""
    t = top[0]
    slots[t] = slot
    top[0] = t + 1
    return True


def kind(heap: Any) -> Any:
    """Return what a Numba type stands for."""
    if isinstance(heap, types.Integer):
        return "malloc"
    return getattr(heap, "instance_class", "cache" if str(heap).startswith("SlabCache[") else "by size")


@overload(take, jit_options=PART)
def overload_take(heap, size):
    """By the type of the heap."""
    found: dict[Any, Callable[..., Any]] = {
        "malloc": lambda heap, size: take_from_malloc(size),
        "cache": lambda heap, size: take_new(heap),
        "by size": lambda heap, size: take_by_size(heap, size),
        Stack: lambda heap, size: pop(heap.slots, heap.top, heap.records),
    }
    return found[kind(heap)]


@overload(alloc, jit_options=PART)
def overload_alloc(heap, size):
    """By the type of the heap."""
    if kind(heap) == "cache":
        return lambda heap, size: take_by_alloc(heap)
    return lambda heap, size: take(heap, size)


@overload(at, jit_options=PART)
def overload_at(heap, ref, size):
    """By the type of the heap."""
    found: dict[Any, Callable[..., Any]] = {
        "malloc": lambda heap, ref, size: ref,
        "cache": lambda heap, ref, size: address_of(heap[ref]),
        "by size": lambda heap, ref, size: heap.address(ref, size),
        Stack: lambda heap, ref, size: address_of(heap.records[ref]),
    }
    return found[kind(heap)]


@overload(give, jit_options=PART)
def overload_give(heap, ref, size):
    """By the type of the heap."""
    found: dict[Any, Callable[..., Any]] = {
        "malloc": lambda heap, ref, size: give_to_malloc(ref),
        "cache": lambda heap, ref, size: heap.free(ref),
        "by size": lambda heap, ref, size: heap.free(ref, size),
        Stack: lambda heap, ref, size: push(heap.slots, heap.top, ref),
    }
    return found[kind(heap)]


# --- Opened in Python ---


class Heap:
    """
    What a contender takes records from: "stack", "generations", "cache" or "malloc"; `loop` is what its loops are given.

    A cache is what `make` makes of a name, a dtype, the capacity and the options.
    """

    def __init__(self, name: str, slots: int = 0, make: Callable[..., Any] = SlabCache, **options: Any) -> None:
        self.slots, self.cache, self.dtype = slots, None, np.int64
        self.loop: Any = 0
        if name == "cache":
            self.loop = self.cache = make("bench", RECORD, capacity=slots, **options)
        elif name != "malloc":
            records, top = floor.record_array(slots), np.zeros(64, np.int64)[16:32]
            free = np.arange(slots, dtype=np.int32)[::-1].copy()
            top[0] = slots
            self.loop = Stack(free, top, records)
            if name == "generations":
                self.loop = floor.Checked(free, top, np.zeros(slots, np.uint32), records)
            else:
                self.dtype = np.int32

    @property
    def x(self) -> Any:
        """The field that is written, of all records."""
        return (self.loop if self.cache is None else self.cache).records["x"]

    def refs(self, n: int) -> Any:
        """Return room for the refs of n records."""
        return np.empty(n, self.dtype)

    def slots_of(self, refs: Any) -> Any:
        """Return the slots of records."""
        return refs if self.dtype is np.int32 else refs & SLOT_MASK

    def is_clean(self, live: int) -> bool:
        """Whether so many records are live, and no handle was ever refused; malloc does not say."""
        if self.cache is not None:
            return len(self.cache) == live and self.cache.faults == 0
        return self.loop == 0 or int(self.loop.top[0]) == self.slots - live

    def close(self) -> None:
        """Close the cache, if it is one."""
        if self.cache is not None:
            self.cache.close()
