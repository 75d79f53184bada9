"""
The process: a registry of its open caches, what happens at `fork` and at the end of a thread.

Above `heap`.  One small block of memory, shared by all caches, holds the registry's lock, the count of forks and the key
whose destructor flushes the heaps of a thread that ends.
"""

from __future__ import annotations

import atexit
import os
import threading

import numpy as np

from . import _os
from ._native import (
    Entry,
    control_at,
    frozen,
    heap_at,
    int64,
    kernel,
    load8,
    load8_acquire,
    load8_relaxed,
    process_at,
    store8,
    store8_release,
    thread_pointer,
)
from .errors import CacheFullError
from .heap import leave_heap, shut_heap
from .layout import HEAP_ROWS, MAX_ROWS, NIL, PROCESS, C
from .recover import heap_row, next_heap
from .slab import C_LOCK, C_NODES, ZERO, lock, lock_word, set_at, unlock

ROWS = PROCESS.itemsize  # the registry's first row
C_RELEASING = C["releasing"]


@kernel
def unlock_registry(p: int) -> None:
    """Give the registry's lock back."""
    store8_release(p, 0, 0)


@kernel
def enter_row(p: int, c: int) -> int:
    """
    Enter the address of a control block; returns its row, or NIL when the registry is full.

    Needs   the registry's lock.
    """
    process = process_at(p)
    row = int64(process.n_rows)
    if process.n_holes > 0:
        row = int64(0)
        while load8(p + ROWS, row) != 0:
            row += 1
        process.n_holes -= 1
    elif row < MAX_ROWS:
        process.n_rows = row + 1
    else:
        row = int64(NIL)
    if row != NIL:
        store8(p + ROWS, row, c)
    return row


@Entry
def enter_cache(p: int, c: int) -> int:
    """Enter an open cache; returns its row, or NIL when the registry is full."""
    lock_word(p)
    for node in range(frozen(c, C_NODES)):
        control_at(set_at(c, node)).epoch = process_at(p).epoch
    row = enter_row(p, c)
    unlock_registry(p)
    return row


@Entry
def close_cache(p: int, c: int) -> int:
    """
    Take a cache out of the registry and make it refuse everything.

    Its memory stays where it is: other threads may be in the middle of an operation.  Returns the number of slabs, from the
    cache's first on, whose memory was usable, or NIL if the cache was closed.
    """
    row = int64(control_at(c).row)
    answer = int64(NIL)
    lock_word(p)
    if load8(p + ROWS, row) == c:  # it may be closed: by the parent of this process, which was not done yet
        answer = close_row(p, row)
    unlock_registry(p)
    return answer


@Entry
def close_caches_in(p: int, start: int, end: int) -> int:
    """
    Close every cache whose control block lies in a range of addresses, which is about to go; returns how many.

    A child of `fork` may have one there that its parent was about to open, and that only the registry knows.
    """
    n = int64(0)
    lock_word(p)
    for row in range(process_at(p).n_rows):
        if start <= load8(p + ROWS, row) < end:
            close_row(p, row)
            n += 1
    unlock_registry(p)
    return n


@kernel
def close_row(p: int, row: int) -> int:
    """
    Close the cache in a row of the registry, as `close_cache` does.

    Needs   the registry's lock.
    """
    c = load8(p + ROWS, row)
    answer = int64(NIL)
    for node in range(frozen(c, C_NODES)):
        answer = max(answer, close_set(set_at(c, node)))
    store8(p + ROWS, row, 0)  # last: until here a child of fork finds it, and frees its locks
    process_at(p).n_holes += 1
    return answer


@kernel
def close_set(c: int) -> int:
    """Make one array set refuse everything; returns the number of slabs, from the cache's first on, that were usable."""
    control = control_at(c)
    lock(c)
    usable = int64(control.committed)
    control.closed = 1
    control.limit = 0
    control.n_slabs = 0
    control.committed = 0
    control.out = 0
    unlock(c)
    row = next_heap(c, ZERO)
    while row >= 0:
        shut_heap(heap_row(c, row))
        row = next_heap(c, row + 1)
    while load8_relaxed(c + C_RELEASING, 0) != 0:
        _os.yield_core()
    return usable


@Entry
def leave_thread(p: int) -> int:
    """Give the heaps of the calling thread, which ends, home: in every cache."""
    me = thread_pointer()
    lock_word(p)
    for row in range(process_at(p).n_rows):
        c = load8(p + ROWS, row)
        if c != 0:
            if frozen(c, C_NODES) > 1:  # alien heaps first: they go with the row of the thread's own
                for node in range(frozen(c, C_NODES)):
                    leave_set(set_at(c, node), int64(HEAP_ROWS), me)
            for node in range(frozen(c, C_NODES)):
                leave_set(set_at(c, node), ZERO, me)
    unlock_registry(p)
    return int64(0)


@kernel
def leave_set(c: int, first: int, me: int) -> None:
    """Give the heaps of thread `me` home that are among the rows of an array set from `first` on."""
    row = next_heap(c, first)
    while row >= 0:
        at = heap_row(c, row)
        if load8_acquire(at, 0) == me:
            leave_heap(c, at)
        row = next_heap(c, row + 1)


@Entry
def after_fork(p: int, wipe: int) -> int:
    """
    In a child of `fork`: every lock is free, and the heaps of the parent's threads are nobody's.

    They read as zeros, or are wiped here where the system does not do it (`wipe`).  Each cache rebuilds its index when it is
    first used, and believes nothing of the old one; so the parent need not hold the locks over the fork, where a thread that
    waits for one with the GIL would never let the fork go on.
    """
    process = process_at(p)
    for row in range(process.n_rows):
        front = load8(p + ROWS, row)
        if front != 0:
            for node in range(frozen(front, C_NODES)):
                c = set_at(front, node)
                if load8(c + C_LOCK, 0) != 0:  # most pages stay shared with the parent
                    store8(c + C_LOCK, 0, 0)
                if load8(c + C_RELEASING, 0) != 0:
                    store8(c + C_RELEASING, 0, 0)
                heap = next_heap(c, ZERO) if wipe != 0 else int64(NIL)
                while heap >= 0:
                    at = heap_row(c, heap)
                    heap_at(at).top = 0
                    store8_release(at, 0, 0)
                    heap = next_heap(c, heap + 1)
    process.epoch += 1
    store8(p, 0, 0)
    return ZERO


class Process:
    """The block of this process, made with the first cache and kept for good."""

    def __init__(self) -> None:
        self.memory = np.asarray(_os.Reservation(ROWS + 8 * MAX_ROWS, usable=True))
        self.block = self.memory[:ROWS].view(PROCESS)
        self.address = int(self.block.ctypes.data)
        self.block["key"] = _os.make_thread_exit_key(leave_thread.address)
        self.heaps_are_wiped = True  # by the system, at fork; false as soon as one cache could not have it
        if hasattr(os, "register_at_fork"):
            _ = after_fork.address  # compiled before it is needed
            os.register_at_fork(after_in_child=lambda: after_fork(self.address, int(not self.heaps_are_wiped)))
        atexit.register(self.forget_threads)

    def forget_threads(self) -> None:
        """Threads that outlive the interpreter must not call into code that goes with it."""
        if self.block["key"][0] != -1:
            _os.drop_thread_exit_key(int(self.block["key"][0]))
            self.block["key"] = -1

    def enter(self, control: int) -> int:
        """Enter a cache; returns its row."""
        row = enter_cache(self.address, control)
        if row == NIL:
            raise CacheFullError(f"{MAX_ROWS} caches are open in this process")
        return int(row)


_process: Process | None = None
_first = threading.Lock()


def this_process() -> Process:
    """Return the block of this process, made at the first call."""
    global _process  # one a process, as its name says
    if _process is None:
        with _first:
            if _process is None:
                _process = Process()
    return _process
