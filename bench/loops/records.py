"""Alloc and free of records of 64 bytes, each loop written once; `heaps` has what they take the records from."""

from __future__ import annotations

from functools import partial

import numba
import numpy as np

from loops.heaps import alloc, at, give, take
from loops.malloc import SIZE, load, store

njit = partial(numba.njit, cache=True, nogil=True, _nrt=False)  # see `heaps`


@njit
def pair(heap, n):
    """Alloc, write, free: the sum of the refs."""
    s = 0
    for i in range(n):
        ref, address = alloc(heap, SIZE)
        s += ref
        store(address, i)
        give(heap, ref, SIZE)
    return s


@njit
def fill(heap, held):
    """Alloc as many records as `held` has room for, write each."""
    for i in range(held.size):
        ref, address = alloc(heap, SIZE)
        store(address, i)
        held[i] = ref


@njit
def write(heap, held):
    """Write records."""
    for i in range(held.size):
        store(at(heap, held[i], SIZE), i)


@njit
def churn(heap, held, order):
    """Free one of the held records at random, alloc another, write."""
    for i in range(order.size):
        j = order[i]
        give(heap, held[j], SIZE)
        ref, address = alloc(heap, SIZE)
        store(address, np.int64(i))
        held[j] = ref


@njit
def drain(heap, held):
    """Free all held records: the sum of what they held."""
    s = 0
    for i in range(held.size):
        s += load(at(heap, held[i], SIZE))
        give(heap, held[i], SIZE)
    return s


@njit
def free_each(heap, held):
    """Free records one by one: how many were accepted."""
    n = 0
    for i in range(held.size):
        n += give(heap, held[i], SIZE)
    return n


@njit
def free_permuted(heap, held, permutation):
    """Free records one by one in random order: how many were accepted."""
    n = 0
    for i in range(held.size):
        n += give(heap, held[permutation[i]], SIZE)
    return n


@njit
def remove(heap, held, picks):
    """Read and free the picked records: the sum of what they held."""
    s = 0
    for i in range(picks.size):
        ref = held[picks[i]]
        s += load(at(heap, ref, SIZE))
        give(heap, ref, SIZE)
    return s


@njit
def insert(heap, held, picks, first):
    """Put a new record in the place of each picked one; a cache has `new()` for it."""
    for i in range(picks.size):
        ref, address = take(heap, SIZE)
        store(address, np.int64(first + i))
        held[picks[i]] = ref


def last_writes(live, order):
    """Return what the records of a churn hold after it: the last turn that wrote each."""
    expected = np.arange(live, dtype=np.int64)
    expected[order] = np.arange(order.size)
    return int(expected.sum())
