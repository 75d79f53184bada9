"""The same loops over a `SlabCache`, as its user writes them: handles checked at every access and at every free."""

from __future__ import annotations

from functools import partial

import numba
import numpy as np

njit = partial(numba.njit, cache=True, nogil=True)


# --- One record at a time ---


@njit
def pair(n, cache):
    """Alloc, write, free: the sum of the handles."""
    s = 0
    for i in range(n):
        h = cache.alloc()
        s += h
        cache[h].x = i
        cache.free(h)
    return s


@njit
def pair_new(n, cache):
    """The same with `new()`, whose record needs no second check."""
    s = 0
    for i in range(n):
        h, r = cache.new()
        s += h
        r.x = i
        cache.free(h)
    return s


@njit
def fill(held, cache):
    """Alloc as many records as `held` has room for."""
    for i in range(held.size):
        h = cache.alloc()
        cache[h].x = i
        held[i] = h


@njit
def churn(held, cache, order):
    """Free one of the held records at random, alloc another, write."""
    for i in range(order.size):
        j = order[i]
        cache.free(held[j])
        h = cache.alloc()
        cache[h].x = i
        held[j] = h


@njit
def churn_new(held, cache, order):
    """The same with `new()`."""
    for i in range(order.size):
        j = order[i]
        cache.free(held[j])
        h, r = cache.new()
        r.x = i
        held[j] = h


@njit
def drain(held, cache):
    """Free all held records: the sum of what they held."""
    s = 0
    for i in range(held.size):
        s += cache[held[i]].x
        cache.free(held[i])
    return s


# --- Batches ---


@njit
def alloc_many(out, cache):
    """Alloc a batch: how many."""
    return cache.alloc_many(out)


@njit
def free_many(handles, cache):
    """Free a batch: how many."""
    return cache.free_many(handles)


@njit
def free_many_permuted(handles, permutation, shuffled, cache):
    """Free a batch in random order, put together on the way: how many."""
    for i in range(handles.size):
        shuffled[i] = handles[permutation[i]]
    return cache.free_many(shuffled)


@njit
def alloc_each(out, cache):
    """Alloc a batch one by one."""
    for i in range(out.size):
        out[i] = cache.alloc()


@njit
def free_each(handles, cache):
    """Free a batch one by one: how many."""
    n = 0
    for i in range(handles.size):
        n += cache.free(handles[i])
    return n


@njit
def free_each_permuted(handles, permutation, cache):
    """Free a batch one by one in random order: how many."""
    n = 0
    for i in range(handles.size):
        n += cache.free(handles[permutation[i]])
    return n


@njit
def in_bulks(cache, bulks, repeats):
    """Take and give back, a row of the array a call: how many were freed."""
    freed = 0
    for _ in range(repeats):
        for i in range(bulks.shape[0]):
            cache.alloc_many(bulks[i])
        for i in range(bulks.shape[0]):
            freed += cache.free_many(bulks[i])
    return freed


@njit
def one_by_one(cache, held, repeats):
    """Take and give back as many, one by one: how many were freed."""
    freed = 0
    for _ in range(repeats):
        for i in range(held.size):
            held[i] = cache.alloc()
        for i in range(held.size):
            freed += cache.free(held[i])
    return freed


@njit
def put(cache, held, picks, first):
    """Put a new record in the place of each picked one."""
    for i in range(picks.size):
        h, r = cache.new()
        r.x = first + i
        held[picks[i]] = h


@njit
def take(cache, held, picks):
    """Read and free the picked records: the sum of what they held."""
    s = 0
    for i in range(picks.size):
        h = held[picks[i]]
        s += cache[h].x
        cache.free(h)
    return s


# --- A linked list ---


@njit
def build(n, cache):
    """Push n nodes at the front: the handle of the first."""
    first = 0
    for i in range(n):
        h = cache.alloc()
        node = cache[h]
        node.value = i
        node.next = first
        first = h
    return first


@njit
def build_new(n, cache):
    """The same with `new()`."""
    first = 0
    for i in range(n):
        h, node = cache.new()
        node.value = i
        node.next = first
        first = h
    return first


@njit
def walk(first, cache):
    """Sum up the values."""
    s = 0
    h = first
    while h != 0:
        node = cache[h]
        s += node.value
        h = node.next
    return s


@njit
def drop(first, cache):
    """Free every node: how many."""
    n = 0
    h = first
    while h != 0:
        following = cache[h].next
        n += cache.free(h)
        h = following
    return n


# --- Record access ---


@njit
def chase(cache, handle, n):
    """Follow n links from record to record: the last handle."""
    for _ in range(n):
        handle = cache[handle].x
    return handle


@njit
def read(cache, handles):
    """Read records, each independent of the others: the sum."""
    s = 0
    for i in range(handles.size):
        s += cache[handles[i]].x
    return s


@njit
def write(cache, handles):
    """Write records."""
    for i in range(handles.size):
        cache[handles[i]].x = i


@njit
def add(cache, handles, sweeps):
    """Add 1 to each of a few hot records, again and again."""
    for _ in range(sweeps):
        for i in range(handles.size):
            cache[handles[i]].x += 1


@njit
def scan_items(cache):
    """Read all live records by items(): the sum."""
    s = 0
    for _h, r in cache.items():  # noqa: PERF102  # a cache has no values()
        s += r.x
    return s


@njit
def scan_handles(cache):
    """Read all live records by handle: the sum."""
    s = 0
    for h in cache:
        s += cache[h].x
    return s


def last_writes(live, order):
    """Return what the records of a churn hold after it: the last turn that wrote each."""
    expected = np.arange(live, dtype=np.int64)
    expected[order] = np.arange(order.size)
    return int(expected.sum())
