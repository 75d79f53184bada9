"""
The floors, as a user writes them by hand over plain arrays: nothing checked, nothing shared, nothing ever grown.

The bare stack is the fastest that an allocator of slots can be: an int32 array of free slots and its top.  The stack with
generations is the fair floor: the same, and handles that notice a record freed meanwhile, as a careful user would write
it; it has no look at an empty stack, which such a user would also need.
"""

from __future__ import annotations

from functools import partial

import numba
import numpy as np

from measure import RECORD

njit = partial(numba.njit, cache=True, nogil=True)
SLOT_MASK = 0xFFFFFFFF


def bare_stack(slots):
    """Return (stack, top): slot 0 is popped first; top has its line of the cache for itself."""
    top = np.zeros(64, np.int64)[16:32]
    top[0] = slots
    return np.arange(slots, dtype=np.int32)[::-1].copy(), top


# --- Bare stack ---


@njit
def pair(n, stack, top, data):
    """Pop, write, push: the sum of the slots."""
    s = 0
    for i in range(n):
        t = top[0] - 1
        top[0] = t
        slot = stack[t]
        s += slot
        data[slot].x = i
        t = top[0]
        stack[t] = slot
        top[0] = t + 1
    return s


@njit
def fill(held, stack, top, data):
    """Pop as many slots as `held` has room for."""
    for i in range(held.size):
        t = top[0] - 1
        top[0] = t
        held[i] = stack[t]
        data[held[i]].x = i


@njit
def churn(held, stack, top, data, order):
    """Push one of the held slots at random, pop another, write."""
    for i in range(order.size):
        j = order[i]
        t = top[0]
        stack[t] = held[j]
        top[0] = t + 1
        t = top[0] - 1
        top[0] = t
        slot = stack[t]
        data[slot].x = i
        held[j] = slot


@njit
def drain(held, stack, top, data):
    """Push all held slots: the sum of what their records held."""
    s = 0
    for i in range(held.size):
        s += data[held[i]].x
        t = top[0]
        stack[t] = held[i]
        top[0] = t + 1
    return s


@njit
def pop(out, stack, top):
    """Pop a batch."""
    for i in range(out.size):
        t = top[0] - 1
        top[0] = t
        out[i] = stack[t]


@njit
def push(slots, stack, top):
    """Push a batch."""
    for i in range(slots.size):
        t = top[0]
        stack[t] = slots[i]
        top[0] = t + 1


@njit
def push_permuted(slots, permutation, stack, top):
    """Push a batch in random order."""
    for i in range(slots.size):
        t = top[0]
        stack[t] = slots[permutation[i]]
        top[0] = t + 1


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
def put(stack, top, data, held, picks, first):
    """Put a new record in the place of each picked one."""
    for i in range(picks.size):
        t = top[0] - 1
        top[0] = t
        slot = stack[t]
        data[slot].x = first + i
        held[picks[i]] = slot


@njit
def take(stack, top, data, held, picks):
    """Read and push the picked slots: the sum of what their records held."""
    s = 0
    for i in range(picks.size):
        slot = held[picks[i]]
        s += data[slot].x
        t = top[0]
        stack[t] = slot
        top[0] = t + 1
    return s


# --- Stack with generations: odd is live, (generation << 32 | slot) is the handle ---


@njit
def pair_checked(n, stack, top, generations, data):
    """Alloc, write, free: the sum of the handles, 0 if one was refused."""
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
def fill_checked(held, stack, top, generations, data):
    """Alloc as many records as `held` has room for."""
    for i in range(held.size):
        t = top[0] - 1
        top[0] = t
        slot = np.int64(stack[t])
        generation = np.int64(generations[slot]) + 1
        generations[slot] = generation
        held[i] = generation << 32 | slot
        data[slot].x = i


@njit
def churn_checked(held, stack, top, generations, data, order):
    """Free one of the held records at random, alloc another, write: how many handles were refused."""
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


# --- Plain record access ---


@njit
def chase(records, slot, n):
    """Follow n links from record to record: the last slot."""
    for _ in range(n):
        slot = records[slot].x
    return slot


@njit
def read(records, slots):
    """Read records, each independent of the others: the sum."""
    s = 0
    for i in range(slots.size):
        s += records[slots[i]].x
    return s


@njit
def write(records, slots):
    """Write records."""
    for i in range(slots.size):
        records[slots[i]].x = i


@njit
def add(records, slots, sweeps):
    """Add 1 to each of a few hot records, again and again."""
    for _ in range(sweeps):
        for i in range(slots.size):
            records[slots[i]].x += 1


@njit
def scan(records):
    """Read a dense array: the sum."""
    s = 0
    for i in range(records.size):
        s += records[i].x
    return s


@njit
def shuffle(n, state):
    """Return (numbers from 0 in random order, next state of the generator); it is the one of the programs in `foreign`."""
    order = np.arange(n)
    for i in range(n - 1, 0, -1):
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        j = np.int64((state >> np.uint64(33)) % np.uint64(i + 1))
        order[i], order[j] = order[j], order[i]
    return order, state


def record_array(n):
    """Return n records, their memory touched."""
    data = np.empty(n, RECORD)
    data["x"] = -1
    return data
