"""
The process: a registry of its open caches, what happens at `fork`, at the end of a thread, and at the end of their memory.

Above `heap`.  One small block of memory, shared by all caches, holds the registry's lock, the count of forks and the key
whose destructor flushes the heaps of a thread that ends.  What the registry knows and what is mapped end together: either
natively, as the memory's last array goes (`leave_range`), or not at all.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import threading
from typing import Any

import numpy as np

from . import _os
from ._native import (
    COMPILE_LOCKS,
    Entry,
    c_function,
    c_object,
    control_at,
    frozen,
    heap_at,
    int64,
    keep,
    kernel,
    load8,
    load8_acquire,
    load8_relaxed,
    name_address,
    process_at,
    store8,
    store8_release,
    thread_pointer,
    u4_array,
    zero_bytes,
)
from ._os import address_space_limit, address_space_used
from ._pages import map_hole, map_zeros, reserve_pages, unmap_pages
from .errors import CacheFullError
from .heap import leave_heap, shut_heap
from .layout import (
    BACK_HEAP,
    FEW_ROWS,
    FEW_SHIFT,
    HEAP_ROWS,
    HEAPS,
    KEPT_SHIFT,
    MAGAZINE,
    MANY_SHIFT,
    MAPPINGS,
    MAX_ROWS,
    NIL,
    OWN,
    PROCESS,
    RANGE,
    RETIRED,
    ROUNDS,
    SMALL_BYTES,
    SMALL_SHIFT,
    SOUND,
    TORN,
    C,
    offsets,
)
from .recover import heap_row, is_of, next_claimed, next_heap
from .slab import C_LOCK, C_NODES, ONE, ZERO, lock_word, set_at, slab_at, unlock

ROWS = PROCESS.itemsize  # the registry's first row
P_KEY, P_PATH, P_TEXT = (offsets(PROCESS)[name] for name in ("key", "path", "text"))
TEXT_BYTES = PROCESS["text"].itemsize
R_START, R_BYTES, R_CONTROL, R_BLOCK, R_BLOCK_BYTES = (
    offsets(RANGE)[name] // 8 for name in ("start", "bytes", "control", "block", "block_bytes")
)
C_RELEASING = C["releasing"]
# After the registry: what is kept.
MOST_KEPT = 512  # ranges: each takes up to 6 of the 65,530 mappings that Linux gives a process
KEPT_SHARE = 16  # and all together up to a 16th of the address space
KEPT = ROWS + 8 * MAX_ROWS
K_FIRST, K_COUNT, K_BYTES, K_MOST, K_LIMITED = range(5)
K_RANGES = KEPT + 64  # address and bytes of each
assert MOST_KEPT & (MOST_KEPT - 1) == 0
PASSES = 4  # times that `close` looks for what other threads were in the middle of


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
def enter_cache(p: int, c: int, range_: int) -> int:
    """Enter an open cache, and note in the words of its range that it is; returns its row, or NIL when the registry is full."""
    lock_word(p)
    row = enter_row(p, c)
    if row != NIL:
        for node in range(frozen(c, C_NODES)):
            control_at(set_at(c, node)).row = row
        store8(range_, R_CONTROL, c)
    unlock_registry(p)
    return row


# --- The end of a cache ---


@Entry
def close_cache(p: int, c: int) -> int:
    """Close a cache, as `close` does."""
    close(p, c)
    return ZERO


@kernel
def close(p: int, c: int) -> None:
    """
    Take a cache out of the registry, make it refuse everything, and give its memory back; nothing if that was done.

    Its addresses stay mapped: other threads may be in the middle of an operation.
    """
    lock_word(p)
    row = int64(control_at(c).row)
    is_open = load8(p + ROWS, row) == c
    has_others = close_row(p, row) if is_open else False
    unlock_registry(p)
    if is_open:
        for node in range(frozen(c, C_NODES)):
            give_all_back(set_at(c, node), has_others)


@Entry
def leave_range(words: int) -> int:
    """The end of a `_os.Reservation`: whatever is in it leaves the registry, then its memory is given back."""
    if load8(words, R_START) == 0:  # it was never there
        return ZERO
    p = c_object("jitslab.process")
    control = load8(words, R_CONTROL)
    lock_word(p)
    if control == 0:
        close_rows_in(p, load8(words, R_START), load8(words, R_START) + load8(words, R_BYTES))
    else:
        leave(p, control)
    unlock_registry(p)
    end_range(words)
    return ZERO


@kernel
def leave(p: int, c: int) -> None:
    """
    Close a cache whose memory ends, if it stands in the registry.

    Needs   the registry's lock.
    """
    if load8(p + ROWS, control_at(c).row) == c:
        close_row(p, int64(control_at(c).row))


@kernel
def close_rows_in(p: int, start: int, end: int) -> None:
    """
    Close every cache whose control block lies in a range of addresses.

    Needs   the registry's lock.
    """
    for row in range(process_at(p).n_rows):
        if start <= load8(p + ROWS, row) < end:
            close_row(p, row)


@kernel
def close_row(p: int, row: int) -> bool:
    """
    Make the cache in a row of the registry refuse everything, and empty the row; whether others than this thread had heaps of it.

    Needs   the registry's lock.
    """
    c = load8(p + ROWS, row)
    for node in range(frozen(c, C_NODES)):
        home = set_at(c, node)
        control = control_at(home)
        lock_word(home + C_LOCK)
        control.closed = 1
        control.limit = 0
        control.out = 0
        unlock(home)
    has_others = others_have_heaps(c, thread_pointer())
    for node in range(frozen(c, C_NODES)):
        home = set_at(c, node)
        heap = next_heap(home, ZERO)
        while heap >= 0:
            shut_heap(heap_row(home, heap))
            heap = next_heap(home, heap + 1)
        while load8_relaxed(home + C_RELEASING, 0) != 0:
            _os.yield_core()
    store8(p + ROWS, row, 0)
    process_at(p).n_holes += 1
    return has_others


@kernel
def others_have_heaps(c: int, me: int) -> bool:
    """
    Whether another thread than `me` owns a heap of the cache, or can have one by turns.

    Needs   the registry's lock.
    """
    for node in range(frozen(c, C_NODES)):
        home = set_at(c, node)
        row = next_claimed(home, ZERO)
        while row >= 0:
            owner = load8_acquire(heap_row(home, row), 0)
            if row == OWN + BACK_HEAP or (owner != 0 and not is_of(owner, me)):
                return True
            row = next_claimed(home, row + 1)
    return False


@kernel
def give_all_back(c: int, has_others: bool) -> None:
    """
    Give back the memory of an array set of a closed cache.

    Its generations are even from then on.  If other threads have heaps of it, those of the slots that they can have are those
    of retired slots, and stay: a thread in the middle of a kernel may go on with what its magazine holds, and a zero would be
    a free slot to it.  An operation that it is in the middle of may write over one of them: we look for those again, in its
    magazine, where the slot is.  One that the system has put aside meanwhile keeps the record that it was about to get.
    """
    control = control_at(c)
    words = control.words
    start = words + (control.first_slab << control.shift << 2)
    made, end = words + (control.n_slabs << control.shift << 2), words + (control.committed << control.shift << 2)
    if has_others:
        retire_all(c)
        for _ in range(PASSES):
            _os.yield_core()
            retire_magazines(c)
        start = made
    zero_words(start, end)
    slab_bytes = control.stride << control.shift
    records = control.records + control.first_slab * slab_bytes
    _os.give_back(records, whole_pages((control.committed - control.first_slab) * slab_bytes))
    control.n_slabs = 0
    control.committed = 0


@kernel
def whole_pages(n: int) -> int:
    """Return n bytes, or an address, rounded up to whole pages."""
    return (n + _os.page_bytes - 1) & -_os.page_bytes


@kernel
def retire_all(c: int) -> None:
    """Make the generations of all slots that were ever handed out those of retired slots."""
    control = control_at(c)
    for i in range(control.first_slab, control.n_slabs):
        if slab_at(c, i).n_fresh != ONE << control.shift:
            words = u4_array(control.words + (i << control.shift << 2))
            for j in range(ONE << control.shift):
                words[j] = np.uint32(RETIRED)


@kernel
def retire_magazines(c: int) -> None:
    """Do the same for all that stands in the magazines, whatever their tops say."""
    control = control_at(c)
    words = u4_array(control.words)
    row = next_heap(c, ZERO)
    while row >= 0:
        slots = u4_array(heap_row(c, row) + MAGAZINE)
        for j in range(ROUNDS):
            if control.first_slot <= slots[j] < control.n_slabs << control.shift:
                words[slots[j]] = np.uint32(RETIRED)
        row = next_heap(c, row + 1)


@kernel
def zero_words(start: int, end: int) -> None:
    """Make the generations between two addresses zeros, whole pages of them by giving their memory back."""
    first, last = whole_pages(start), end & -_os.page_bytes
    if first < last and _os.give_back(first, last - first):
        zero_bytes(start, first - start)
        zero_bytes(last, end - last)
    else:
        zero_bytes(start, end - start)


# --- Room for more ---


@kernel
def room_of(p: int) -> int:
    """
    Bytes of address space that is left for caches that were not told how much to take; 0, too, if too many are open.

    Needs   the registry's lock.
    """
    process = process_at(p)
    if process.n_rows - process.n_holes >= process.most:
        return int64(0)
    total = int64(process.addresses)
    limit = address_space_limit(p + P_TEXT)
    if 0 <= limit < total:
        total = limit
    used = address_space_used(p + P_PATH, p + P_TEXT, int64(TEXT_BYTES))
    return max(total - (total >> KEPT_SHIFT) - used, ZERO)


@kernel
def share_of(p: int, room: int) -> int:
    """Bytes of the room that one cache may take beyond what its capacity needs: none if many are open."""
    process = process_at(p)
    return room >> FEW_SHIFT if process.n_rows - process.n_holes < FEW_ROWS else ZERO


@kernel
def range_of(p: int, room: int) -> int:
    """Bytes of the room that a cache without a capacity may take."""
    return max(max(share_of(p, room), room >> MANY_SHIFT), min(room >> SMALL_SHIFT, int64(SMALL_BYTES)))


@Entry
def find_share(p: int, without_capacity: int) -> int:
    """Bytes of address space that one more cache may take: beyond what its capacity needs, or if it was given none."""
    process = process_at(p)
    if without_capacity == 0 and process.n_rows - process.n_holes >= FEW_ROWS:
        return ZERO
    lock_word(p)
    room = room_of(p)
    share = range_of(p, room) if without_capacity != 0 else share_of(p, room)
    unlock_registry(p)
    return share


# --- The end of a thread ---


@kernel
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
        if is_of(load8_acquire(at, 0), me):
            leave_heap(c, at)
        row = next_heap(c, row + 1)


# --- Fork ---


@kernel
def before_fork() -> int:
    """Take the registry's lock: what the child finds is no cache half opened, no heap half claimed."""
    lock_word(c_object("jitslab.process"))
    return ZERO


@kernel
def after_fork_in_parent() -> int:
    """Go on."""
    unlock_registry(c_object("jitslab.process"))
    return ZERO


@kernel
def after_fork_in_child() -> int:
    """
    Make every lock free, and the heaps of the parent's other threads nobody's.

    The locks are not held over the fork: each would be a page less that parent and child share.  A cache of which no other
    thread has a heap was not being changed, and is not written to.  Any other rebuilds its index when it is first used, and
    believes nothing of the old one.
    """
    p = c_object("jitslab.process")
    me = thread_pointer()
    for row in range(process_at(p).n_rows):
        c = load8(p + ROWS, row)
        if c != 0:
            is_torn = others_have_heaps(c, me)
            for node in range(frozen(c, C_NODES)):
                home = set_at(c, node)
                is_torn |= control_at(home).torn != SOUND or control_at(home).releasing != 0
                if load8(home + C_LOCK, 0) != 0:
                    store8(home + C_LOCK, 0, 0)
            if is_torn:
                tear(c, me)
    process_at(p).epoch += 1
    unlock_registry(p)
    return ZERO


@kernel
def tear(c: int, me: int) -> None:
    """Have a cache rebuild its index when it is first used, the heaps of others than thread `me` empty and nobody's."""
    for node in range(frozen(c, C_NODES)):
        home = set_at(c, node)
        control_at(home).torn = TORN
        control_at(home).releasing = 0
        row = next_claimed(home, ZERO)
        while row >= 0:
            at = heap_row(home, row)
            if is_of(load8(at, 0), me):
                if row < HEAPS:
                    store8(at, 0, me | 1)
            elif load8(at, 0) != 0 or heap_at(at).top != 0:  # most pages stay shared with the parent
                heap_at(at).top = 0
                store8(at, 0, 0)
            row = next_claimed(home, row + 1)


@Entry
def start(p: int) -> int:
    """Have the system tell of every fork, and of the ends of threads; once."""
    process = process_at(p)
    if process.started == 0:
        process.started = 1
        _os.make_thread_exit_key(p + P_KEY, c_function(leave_thread))
        _os.watch_forks(c_function(before_fork), c_function(after_fork_in_parent), c_function(after_fork_in_child))
    return ZERO


# --- The end of memory ---


@kernel
def keep_range(p: int, start: int, n: int) -> None:
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
        keep_range(p, start, n)
    else:
        unmap_pages(start, n)


@kernel
def part_with_moved(p: int, start: int, n: int) -> None:
    """The same for pages that the system has moved elsewhere."""
    if n <= load8(p + KEPT, K_MOST) and map_hole(start, n, load8(p + KEPT, K_LIMITED)):
        keep_range(p, start, n)


@kernel
def end_range(words: int) -> None:
    """
    Give the memory of a range back, by its words (`layout.RANGE`); its addresses are kept.

    The block in it keeps its content.  If the range begins with it, it is one of many mappings, which become one; else
    the others stay, since a closed cache is written to before its block.
    """
    p = c_object("jitslab.process")
    start, n, block = load8(words, R_START), load8(words, R_BYTES), load8(words, R_BLOCK)
    stop, end, is_limited = block + load8(words, R_BLOCK_BYTES), start + n, load8(p + KEPT, K_LIMITED)
    rest = (stop + _os.page_bytes - 1) & -_os.page_bytes
    is_kept = block != 0 and n <= load8(p + KEPT, K_MOST)
    if is_kept and block > start and is_limited == 0:
        _os.give_back(start, block - start)
        _os.give_back(rest, end - rest)
    elif is_kept:
        is_kept = map_zeros(rest, end - rest, is_limited) and (block == start or map_zeros(start, block - start, is_limited))
    if is_kept:
        zero_bytes(stop, rest - stop)
        keep_range(p, start, n)
    else:
        unmap_pages(start, n)


@Entry
def map_range_of(p: int, words: int, n: int) -> int:
    """Map a range of addresses, in the place of what is kept if need be, and note it in its words; 0: there are none left."""
    at = reserve_pages(n)
    if at == 0 and let_all_kept_go(p) != 0:
        at = reserve_pages(n)
    if at != 0:
        store8(words, R_BYTES, n)
        store8_release(words, R_START, at)
    return at


# --- From Python ---

_address, _memory = _os.map_range(K_RANGES + 16 * MOST_KEPT, usable=True)
keep(_memory)
name_address("jitslab.process", _address)
STATM = b"/proc/self/statm"


class Process:
    """The block of this process, in use from the first cache on and kept for good."""

    def __init__(self) -> None:
        self.memory = np.frombuffer(_memory, np.uint8)
        self.block = self.memory[:ROWS].view(PROCESS)
        self.address = _address
        self.kept = self.memory[KEPT:K_RANGES].view(np.int64)
        self.block["addresses"] = _os.address_space(self.address)
        self.block["most"] = _os.most_mappings() // MAPPINGS
        self.block["path"].view(np.uint8)[0, : len(STATM)] = np.frombuffer(STATM, np.uint8)
        start(self.address)
        atexit.register(self.forget_threads)

    def forget_threads(self) -> None:
        """Threads that outlive the interpreter must not call into code that goes with it."""
        key = int(self.block["key"][0])
        self.block["key"] = -1  # first: the number may be another's as soon as it is given back
        if key != -1:
            _os.drop_thread_exit_key(key)

    @property
    def most_addresses(self) -> int:
        """Bytes of address space that this process may have."""
        limit, most = _os.address_limit(), int(self.block["addresses"][0])
        return most if limit == -1 else min(limit, most)

    @property
    def n_open(self) -> int:
        """Caches and size classes that are open."""
        return int(self.block["n_rows"][0] - self.block["n_holes"][0])

    @property
    def most_open(self) -> int:
        """So many of them, and those without a capacity are refused."""
        return int(self.block["most"][0])

    def share(self, without_capacity: bool) -> int:
        """Bytes of address space that one more cache may take: beyond what its capacity needs, or if it was given none."""
        return find_share(self.address, int(without_capacity))

    def enter(self, control: int, words: Any) -> None:
        """Enter the cache in a reservation, and note that in its words."""
        if enter_cache(self.address, control, words.ctypes.data) == NIL:
            raise CacheFullError(f"{MAX_ROWS} caches are open in this process")


_process: Process | None = None
_first = threading.RLock()


def this_process() -> Process:
    """Return the block of this process, in use from the first call on."""
    global _process  # one a process, as its name says
    if _process is None:
        with _first:
            if _process is None:
                _process = Process()
    return _process


# Where the locks are that a thread holds while it opens the first cache, or compiles, in the order in which it takes them.
# A child of fork would wait for them for ever.
_PLACES = ((sys.modules[__name__], "_first"), *COMPILE_LOCKS)


class _Held(threading.local):
    """The locks that a thread which forks takes: each is noted before it is taken, so that none is held that is not noted."""

    def __init__(self) -> None:
        self.locks: list[Any] = []


_held = _Held()


def _take_locks() -> None:
    """Before a fork: let others end their compiles."""
    for place, name in _PLACES:
        lock = getattr(place, name)
        if not lock._is_owned():  # else the thread forks while it compiles
            _held.locks.append(lock)
            lock.acquire()


def _release() -> None:
    """After it: release the locks that are noted, as far as they were had; all of them, also if an exception comes."""
    try:
        while _held.locks:
            if _held.locks[-1]._is_owned():
                _held.locks[-1].release()
            _held.locks.pop()
    finally:
        if _held.locks:
            _release()


def _renew_locks() -> None:
    """In the child: make those anew that could not be had, as by Ctrl-C; no thread is there to give them back."""
    for place, name in _PLACES:
        if not getattr(place, name)._is_owned():
            setattr(place, name, threading.RLock())
    _release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take_locks)
    for _ in range(2):  # an exception that comes as the first begins, as by Ctrl-C during the fork, is none to the second
        os.register_at_fork(after_in_parent=_release, after_in_child=_renew_locks)


def reserve(n: int, *kept: Any, end: Entry = leave_range) -> _os.Reservation:
    """
    Reserve a range of addresses for caches, which leave the registry when it ends; `kept` stays as long.

    Raises
    ------
    CacheFullError
        If the address space, or its limit (RLIMIT_AS), does not hold it, not even without what is kept.
    """
    process = this_process()
    process.kept[K_MOST], process.kept[K_LIMITED] = process.most_addresses // KEPT_SHARE, _os.counts_usable()
    reservation = _os.Reservation(np.zeros(RANGE.itemsize // 8, np.int64), end, *kept)
    if map_range_of(process.address, reservation.words.ctypes.data, n) == 0:
        raise CacheFullError(f"cannot reserve {n} bytes of address space{_os.limit_text()}: {os.strerror(errno.ENOMEM)}")
    return reservation
