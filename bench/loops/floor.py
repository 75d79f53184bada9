"""
The floors that are written out, as they are faster so: some loops of the bare stack of `heaps`, and the stack with generations.

That is the fair floor: handles notice a record freed meanwhile, as a careful user would write it.  It has no look at an empty
stack, which such a user would also need.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np

from measure import RECORD

njit = partial(numba.njit, cache=True, nogil=True)
SLOT_MASK = 0xFFFFFFFF


def record_array(n):
    """Return n records, their memory touched."""
    data = np.empty(n, RECORD)
    data["x"] = -1
    return data


# --- Bare stack ---


@njit
def pop(out, stack, top):
    """Pop a batch."""
    for i in range(out.size):
        t = top[0] - 1
        top[0] = t
        out[i] = stack[t]


@njit
def remove(stack, top, data, held, picks):
    """Read and push the picked slots: the sum of what their records held."""
    s = 0
    for i in range(picks.size):
        slot = held[picks[i]]
        s += data[slot].x
        t = top[0]
        stack[t] = slot
        top[0] = t + 1
    return s


@njit
def in_bulks(stack, top, held, bulk, repeats):
    """Pop and push as many as `held` has room for, a bulk a turn: how many."""
    freed = 0
    for _ in range(repeats):
        for at in range(0, held.size, bulk):
            t = top[0] - bulk
            top[0] = t
            for i in range(bulk):
                held[np.uint64(at + i)] = stack[np.uint64(t + i)]
        for at in range(0, held.size, bulk):
            t = top[0]
            top[0] = t + bulk
            for i in range(bulk):
                stack[np.uint64(t + i)] = held[np.uint64(at + i)]
            freed += bulk
    return freed


@njit
def scan(records):
    """Read a dense array: the sum."""
    s = 0
    for i in range(records.size):
        s += records[i].x
    return s


# --- Stack with generations: odd is live, (generation << 32 | slot) is the handle ---


class Checked(NamedTuple):
    """A stack of slots, and the generations of its records."""

    slots: Any
    top: Any
    generations: Any
    records: Any


@njit
def pair_checked(heap, n):
    """Alloc, write, free: the sum of the handles, 0 if one was refused."""
    stack, top, generations, data = heap
    s = 0
    for i in range(n):
        t = top[0] - 1
        top[0] = t
        slot = np.int64(stack[t])
        generation = np.int64(generations[slot]) + 1
        generations[slot] = generation
        handle = generation << 32 | slot
        s += handle
        slot = handle & SLOT_MASK
        if np.int64(generations[slot]) != handle >> 32:
            return 0
        data[slot].x = i
        if np.int64(generations[slot]) != handle >> 32:
            return 0
        generations[slot] = (handle >> 32) + 1
        t = top[0]
        stack[t] = slot
        top[0] = t + 1
    return s


@njit
def fill_checked(heap, held):
    """Alloc as many records as `held` has room for."""
    stack, top, generations, data = heap
    for i in range(held.size):
        t = top[0] - 1
        top[0] = t
        slot = np.int64(stack[t])
        generation = np.int64(generations[slot]) + 1
        generations[slot] = generation
        held[i] = generation << 32 | slot
        data[slot].x = i


@njit
def churn_checked(heap, held, order):
    """Free one of the held records at random, alloc another, write: how many handles were refused."""
    stack, top, generations, data = heap
    refused = 0
    for i in range(order.size):
        j = order[i]
        handle = held[j]
        slot = handle & SLOT_MASK
        if np.int64(generations[slot]) != handle >> 32:
            refused += 1
            continue
        generations[slot] = (handle >> 32) + 1
        t = top[0]
        stack[t] = slot
        top[0] = t + 1
        t = top[0] - 1
        top[0] = t
        slot = np.int64(stack[t])
        generation = np.int64(generations[slot]) + 1
        generations[slot] = generation
        handle = generation << 32 | slot
        slot = handle & SLOT_MASK
        if np.int64(generations[slot]) != handle >> 32:
            refused += 1
            continue
        data[slot].x = i
        held[j] = handle
    return refused


@njit
def in_bulks_checked(stack, top, generations, held, bulk, repeats):
    """Alloc and free as many as `held` has room for, a bulk a turn: how many handles were not refused."""
    freed = 0
    for _ in range(repeats):
        for at in range(0, held.size, bulk):
            t = top[0] - bulk
            top[0] = t
            for i in range(bulk):
                slot = np.int64(stack[np.uint64(t + i)])
                generation = np.int64(generations[slot]) + 1
                generations[slot] = generation
                held[np.uint64(at + i)] = generation << 32 | slot
        for at in range(0, held.size, bulk):
            t = top[0]
            for i in range(bulk):
                handle = held[np.uint64(at + i)]
                slot = handle & SLOT_MASK
                if np.int64(generations[slot]) == handle >> 32:
                    generations[slot] = (handle >> 32) + 1
                    stack[np.uint64(t)] = slot
                    t += 1
            freed += t - top[0]
            top[0] = t
    return freed


# --- Random order ---


@njit
def shuffle(n, state):
    """Return (numbers from 0 in random order, next state of the generator); it is the one of the programs in `foreign`."""
    order = np.arange(n)
    for i in range(n - 1, 0, -1):
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        j = np.int64((state >> np.uint64(33)) % np.uint64(i + 1))
        order[i], order[j] = order[j], order[i]
    return order, state
