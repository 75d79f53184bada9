"""
The process: a registry of its open caches, what happens at `fork`, at the end of a thread and at the end of memory.

Above `heap` and `_pages`.  One small block of memory, shared by all caches, holds the registry's lock, the count of forks and the
key whose destructor flushes the heaps of a thread that ends.

Compiled code can hold what keeps nothing: an array of a record's field or of raw memory, or a cache itself, in a generator, a
jitclass or a container of Numba's.  So memory that ends gives its pages back, and its addresses stay *kept*: they read as zeros,
and a cache there is a closed one.  A ring has them, the oldest are unmapped; where addresses are wanted, all are.
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
    zero_bytes,
)
from ._pages import map_hole, map_zeros, unmap_pages
from .errors import CacheFullError
from .heap import leave_heap, shut_heap
from .layout import HEAP_ROWS, MAX_ROWS, NIL, PROCESS, C
from .recover import heap_row, next_heap
from .slab import C_LOCK, C_NODES, ZERO, lock, lock_word, set_at, unlock

ROWS = PROCESS.itemsize  # the registry's first row
C_RELEASING = C["releasing"]
# After the registry: what is kept.
MOST_KEPT = 512  # ranges: each takes up to 6 of the 65,530 mappings that Linux gives a process
KEPT_SHARE = 16  # and all together up to a 16th of the address space
KEPT = ROWS + 8 * MAX_ROWS
K_FIRST, K_COUNT, K_BYTES, K_MOST, K_LIMITED = range(5)
K_RANGES = KEPT + 64  # address and bytes of each


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


# --- The end of memory ---


@kernel
def keep(p: int, start: int, n: int) -> None:
    """Keep a range that reads as zeros; the oldest go, so that there are not too many."""
    lock_word(p)
    while True:
        count = load8(p + KEPT, K_COUNT)
        if count < MOST_KEPT and (count == 0 or load8(p + KEPT, K_BYTES) + n <= load8(p + KEPT, K_MOST)):
            break
        unlock_registry(p)
        let_oldest_go(p)
        lock_word(p)
    at = 2 * ((load8(p + KEPT, K_FIRST) + count) & (MOST_KEPT - 1))
    store8(p + K_RANGES, at, start)
    store8(p + K_RANGES, at + 1, n)
    store8(p + KEPT, K_BYTES, load8(p + KEPT, K_BYTES) + n)
    store8(p + KEPT, K_COUNT, count + 1)
    unlock_registry(p)


@kernel
def let_oldest_go(p: int) -> int:
    """Unmap the range that is kept longest; returns its bytes, 0: none is kept."""
    start, n = ZERO, ZERO
    lock_word(p)
    count = load8(p + KEPT, K_COUNT)
    if count > 0:
        first = load8(p + KEPT, K_FIRST)
        start, n = load8(p + K_RANGES, 2 * first), load8(p + K_RANGES, 2 * first + 1)
        store8(p + KEPT, K_FIRST, (first + 1) & (MOST_KEPT - 1))
        store8(p + KEPT, K_COUNT, count - 1)
        store8(p + KEPT, K_BYTES, load8(p + KEPT, K_BYTES) - n)
    unlock_registry(p)
    if n > 0:
        unmap_pages(start, n)
    return n


@kernel
def let_all_kept_go(p: int) -> int:
    """Unmap all ranges that are kept; returns how many bytes."""
    total = ZERO
    while True:
        n = let_oldest_go(p)
        if n == 0:
            return total
        total += n


@Entry
def let_kept_go(p: int) -> int:
    """`let_all_kept_go`, from Python."""
    return let_all_kept_go(p)


@kernel
def part_with(p: int, start: int, n: int) -> None:
    """Give n bytes of pages back that compiled code may have arrays of; their addresses are kept."""
    if n <= load8(p + KEPT, K_MOST) and map_zeros(start, n, load8(p + KEPT, K_LIMITED)):
        keep(p, start, n)
    else:
        unmap_pages(start, n)


@kernel
def part_with_moved(p: int, start: int, n: int) -> None:
    """The same for pages that the system has moved elsewhere."""
    if n <= load8(p + KEPT, K_MOST) and map_hole(start, n, load8(p + KEPT, K_LIMITED)):
        keep(p, start, n)


@Entry
def end_range(p: int, start: int, n: int, block: int, n_block: int) -> int:
    """
    Give a range's memory back; its addresses are kept.

    The bytes from `block` on keep their content.  If the range begins with it, it is one of many mappings, which become one; else
    the others stay, since a closed cache is written to before its block.
    """
    stop, end, is_limited = block + n_block, start + n, load8(p + KEPT, K_LIMITED)
    rest = (stop + _os.page_bytes - 1) & -_os.page_bytes
    is_kept = n <= load8(p + KEPT, K_MOST)
    if is_kept and block > start and is_limited == 0:
        _os.give_back(start, block - start)
        _os.give_back(rest, end - rest)
    elif is_kept:
        is_kept = map_zeros(rest, end - rest, is_limited) and (block == start or map_zeros(start, block - start, is_limited))
    if is_kept:
        zero_bytes(stop, rest - stop)
        keep(p, start, n)
    else:
        unmap_pages(start, n)
    return ZERO


class Process:
    """The block of this process, made with the first cache and kept for good."""

    def __init__(self) -> None:
        self.memory = np.asarray(_os.Reservation(K_RANGES + 16 * MOST_KEPT, usable=True))
        self.block = self.memory[:ROWS].view(PROCESS)
        self.address = int(self.block.ctypes.data)
        self.block["key"] = _os.make_thread_exit_key(leave_thread.address)
        self._kept = self.memory[KEPT:K_RANGES].view(np.int64)
        _ = end_range.address, let_kept_go.address  # compiled while there is memory
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

    def reserve(self, n: int) -> _os.Reservation:
        """
        Reserve a range of addresses whose end is `end_range`.

        Raises
        ------
        CacheFullError
            If the address space does not hold it, not even without what is kept.
        """
        space, is_limited = _os.limits()
        self._kept[K_MOST], self._kept[K_LIMITED] = space // KEPT_SHARE, is_limited
        try:
            return _os.Reservation(n, self._end)
        except CacheFullError:
            if let_kept_go(self.address) == 0:
                raise
            return _os.Reservation(n, self._end)

    def _end(self, start: int, n: int, block: int, n_block: int) -> None:
        """End a range."""
        end_range(self.address, start, n, block, n_block)

    def enter(self, control: int) -> int:
        """Enter a cache; returns its row."""
        row = enter_cache(self.address, control)
        if row == NIL:
            raise CacheFullError(f"{MAX_ROWS} caches are open in this process")
        return int(row)


assert MOST_KEPT & (MOST_KEPT - 1) == 0

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
