"""What only a cache has: `new()`, batches, iteration."""

from __future__ import annotations

from functools import partial

import numba

njit = partial(numba.njit, cache=True, nogil=True)


# --- new(), whose record needs no second check ---


@njit
def pair(cache, n):
    """Alloc, write, free: the sum of the handles."""
    s = 0
    for i in range(n):
        h, r = cache.new()
        s += h
        r.x = i
        cache.free(h)
    return s


@njit
def churn(cache, held, order):
    """Free one of the held records at random, alloc another, write."""
    for i in range(order.size):
        j = order[i]
        cache.free(held[j])
        h, r = cache.new()
        r.x = i
        held[j] = h


# --- Batches, and the same one by one ---


@njit
def alloc_many(cache, out):
    """Alloc a batch: how many."""
    return cache.alloc_many(out)


@njit
def free_many(cache, handles):
    """Free a batch: how many."""
    return cache.free_many(handles)


@njit
def free_many_permuted(cache, handles, permutation, shuffled):
    """Free a batch in random order, put together on the way: how many."""
    for i in range(handles.size):
        shuffled[i] = handles[permutation[i]]
    return cache.free_many(shuffled)


@njit
def alloc_each(cache, out):
    """Alloc a batch one by one."""
    for i in range(out.size):
        out[i] = cache.alloc()


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


# --- Iteration ---


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
