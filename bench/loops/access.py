"""Access to records: one text over an array by slot and over a cache by handle, which is checked at every access."""

from __future__ import annotations

from functools import partial

import numba

njit = partial(numba.njit, cache=True, nogil=True)


@njit
def chase(records, ref, n):
    """Follow n links from record to record: the last ref."""
    for _ in range(n):
        ref = records[ref].x
    return ref


@njit
def read(records, refs):
    """Read records, each independent of the others: the sum."""
    s = 0
    for i in range(refs.size):
        s += records[refs[i]].x
    return s


@njit
def write(records, refs):
    """Write records."""
    for i in range(refs.size):
        records[refs[i]].x = i


@njit
def add(records, refs, sweeps):
    """Add 1 to each of a few hot records, again and again."""
    for _ in range(sweeps):
        for i in range(refs.size):
            records[refs[i]].x += 1


@njit
def walk(records, first):
    """Sum up the values of a list; 0 ends it."""
    s, at = 0, first
    while at != 0:
        node = records[at]
        s += node.value
        at = node.next
    return s
