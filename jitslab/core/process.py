"""
The process: a registry of its open caches, and the steps at `fork`, at the end of a thread and at the end of memory.

All caches share the PROCESS row: the registry and its lock, the table of entry points, the count of forks, and the key whose
destructor flushes the heaps of a thread that ends.  When the last array of a cache's memory ends, the cache leaves the registry
and its memory is given back in one native step (`leave_range`): both are done, or neither.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import Any

import numpy as np

from ..errors import CacheFullError
from ..machine import addresses, system
from ..machine.addresses import page_bytes
from ..machine.compile import COMPILE_LOCKS, Entry, c_function, c_object, keep, kernel, name_address
from ..machine.memory import thread_pointer, zero_bytes
from ..machine.pointers import address_in, address_of, load_acquire, load_relaxed, store_release, u4s
from ..machine.system import map_hole, map_zeros, reserve_pages, unmap_pages, yield_core
from .claim import leave_heap, shut_heap
from .grow import whole_pages
from .heap_table import heap_at_index, is_owner, next_claimed, next_heap
from .layout import (
    BACK_HEAP,
    FIRST_NODE_HEAP,
    HEAP_ROWS,
    HEAPS,
    MAGAZINE_SLOTS,
    MAX_ROWS,
    MOST_KEPT,
    NIL,
    PROCESS,
    RETIRED,
    SOUND,
    TORN,
    Control,
    Process,
    Range,
    control_at,
    process_at,
    range_at,
)
from .slab import lock_row, node_at, slab_row, unlock, unlock_row

TEXT_BYTES = PROCESS["text"].itemsize
KEPT_SHARE = 16  # 1/16 of the address space may be kept
PASSES = 4  # times that `close` looks for operations that other threads were in the middle of
RESERVED_SHIFT = 7  # caches without a capacity leave 1/128 of the address space, 1 TiB of 47 bits, to others
FEW_ROWS = 1024  # the first caches take a larger share: as many as these
FEW_SHIFT, MANY_SHIFT = 9, 12  # a share of the addresses that are left: 1/512, later 1/4096
SMALL_SHIFT, SMALL_BYTES = 3, 1 << 30  # without a capacity at least 1/8 of them, up to 1 GiB
MAPPINGS = 10  # least mappings of a process for each open cache: if there are fewer, caches without a capacity are refused


@kernel
def the_process() -> Process:
    """Return the PROCESS row of this process, by the name of its address."""
    return process_at(c_object("jitslab.process"))


# --- The registry ---


@kernel
def enter_row(process: Process, control: Control) -> int:
    """
    Enter a cache; returns its row, or NIL if the registry is full.

    Needs   the registry's lock.
    """
    row = process.n_rows
    if process.n_holes > 0:
        row = 0
        while process.rows[row] != 0:
            row += 1
        process.n_holes -= 1
    elif row < MAX_ROWS:
        process.n_rows = row + 1
    else:
        row = NIL
    if row != NIL:
        process.rows[row] = address_of(control)
    return row


@Entry
def enter_cache(c: int, range_: int) -> int:
    """Enter an open cache, and note it in its RANGE row; returns its row in the registry, or NIL if that is full."""
    control = control_at(c)
    process = control.process
    lock_row(process)
    row = enter_row(process, control)
    if row != NIL:
        for number in range(control.nodes):
            node_at(control, number).row = row
        range_at(range_).control = c
    unlock_row(process)
    return row


# --- The end of a cache ---


@Entry
def close_cache(c: int) -> int:
    """Call `close` from Python."""
    close(control_at(c))
    return 0


@kernel
def close(control: Control) -> None:
    """
    Take a cache out of the registry, make it refuse everything, and give its memory back; a closed cache is left alone.

    Its addresses stay mapped, since other threads may be in the middle of an operation.
    """
    process = control.process
    lock_row(process)
    row = control.row
    is_open = process.rows[row] == address_of(control)
    has_others = close_row(process, row) if is_open else False
    unlock_row(process)
    if is_open:
        for number in range(control.nodes):
            give_all_back(node_at(control, number), has_others)


@Entry
def leave_range(range_: int) -> int:
    """End a range of addresses: the caches in it leave the registry, then its memory is given back."""
    memory = range_at(range_)
    if memory.start == 0:  # nothing was mapped
        return 0
    process = the_process()
    lock_row(process)
    if memory.control == 0:
        close_rows_in(process, memory.start, memory.start + memory.bytes)
    else:
        leave(process, control_at(memory.control))
    unlock_row(process)
    end_range(memory)
    return 0


@kernel
def leave(process: Process, control: Control) -> None:
    """
    Close a cache whose memory ends, if it stands in the registry.

    Needs   the registry's lock.
    """
    if process.rows[control.row] == address_of(control):
        close_row(process, control.row)


@kernel
def close_rows_in(process: Process, start: int, end: int) -> None:
    """
    Close every cache whose CONTROL lies in a range of addresses.

    Needs   the registry's lock.
    """
    for row in range(process.n_rows):
        if start <= process.rows[row] < end:
            close_row(process, row)


@kernel
def close_row(process: Process, row: int) -> bool:
    """
    Close the cache in a row of the registry, and empty the row; returns whether other threads had heaps of it.

    Needs   the registry's lock.
    """
    control = control_at(process.rows[row])
    for number in range(control.nodes):
        node = node_at(control, number)
        lock_row(node.state)
        node.closed = 1
        node.state.limit = 0
        node.state.used = 0
        unlock(node)
    has_others = others_have_heaps(control, thread_pointer())
    for number in range(control.nodes):
        node = node_at(control, number)
        index = next_heap(node, 0)
        while index >= 0:
            shut_heap(heap_at_index(node, index))
            index = next_heap(node, index + 1)
        while load_relaxed(node.state, "releasing") != 0:
            yield_core()
    process.rows[row] = 0
    process.n_holes += 1
    return has_others


@kernel
def others_have_heaps(control: Control, me: int) -> bool:
    """
    Whether another thread than `me` owns a heap of the cache, or can use the back heap.

    Needs   the registry's lock.
    """
    for number in range(control.nodes):
        node = node_at(control, number)
        index = next_claimed(node, 0)
        while index >= 0:
            owner = load_acquire(heap_at_index(node, index), "owner")
            if index == FIRST_NODE_HEAP + BACK_HEAP or (owner != 0 and not is_owner(owner, me)):
                return True
            index = next_claimed(node, index + 1)
    return False


@kernel
def give_all_back(control: Control, has_others: bool) -> None:
    """
    Give back the memory of a node of a closed cache.

    Its generations are even from then on.  If other threads have heaps of it, the slots that they can reach get the generation
    of retired slots, which stays: a thread in the middle of a kernel may go on with the slots in its magazine, and a zero would
    be a free slot to it.  Its operation may write over one of these generations: so the slots in its magazine are looked at
    again.  If the system suspends the thread for longer than that, its operation keeps the record that it was about to get.
    """
    state, generations = control.state, address_of(control.generations)
    start, end = generations + (control.first_slab << control.shift << 2), generations + (control.committed << control.shift << 2)
    if has_others:
        retire_all(control)
        for _ in range(PASSES):
            yield_core()
            retire_magazines(control)
        start = generations + (state.n_slabs << control.shift << 2)
    zero_pages(control, start, end)
    slab_bytes = control.stride << control.shift
    records = control.records + control.first_slab * slab_bytes
    make_zeros(control, records, whole_pages((control.committed - control.first_slab) * slab_bytes))
    state.n_slabs = 0
    control.committed = 0


@kernel
def retire_all(control: Control) -> None:
    """Retire all slots that were ever handed out, by their generations."""
    slots = 1 << control.shift
    for i in range(control.first_slab, control.state.n_slabs):
        if slab_row(control, i).n_fresh != slots:
            generations = u4s(address_of(control.generations) + (i << control.shift << 2))
            for j in range(slots):
                generations[j] = RETIRED


@kernel
def retire_magazines(control: Control) -> None:
    """Retire all slots in the magazines, also those above their tops."""
    generations, first, end = control.generations, control.first_slot, control.state.n_slabs << control.shift
    index = next_heap(control, 0)
    while index >= 0:
        magazine = heap_at_index(control, index).magazine
        for j in range(MAGAZINE_SLOTS):
            if first <= magazine[j] < end:
                generations[magazine[j]] = RETIRED
        index = next_heap(control, index + 1)


@kernel
def make_zeros(control: Control, start: int, n: int) -> bool:
    """
    Give the memory of n bytes, whole pages, back; returns whether they read as zeros now.

    Pages of a file are replaced: given back, they would read as the file.
    """
    if control.is_file != 0:
        return map_zeros(start, n, 0)
    return system.give_back(start, n)


@kernel
def zero_pages(control: Control, start: int, end: int) -> None:
    """Zero the bytes between two addresses; the memory of whole pages is given back."""
    first, last = whole_pages(start), end & -page_bytes
    if first < last and make_zeros(control, first, last - first):
        zero_bytes(start, first - start)
        zero_bytes(last, end - last)
    else:
        zero_bytes(start, end - start)


# --- Room for more ---


@kernel
def room_of(process: Process) -> int:
    """
    Return the bytes of address space that are left for caches without a capacity; 0 also if too many caches are open.

    Needs   the registry's lock.
    """
    if process.n_rows - process.n_holes >= process.most_rows:
        return 0
    text = address_in(process, "text")
    total = process.address_space
    limit = system.address_space_limit(text)
    if 0 <= limit < total:
        total = limit
    used = system.address_space_used(address_in(process, "path"), text, TEXT_BYTES)
    return max(total - (total >> RESERVED_SHIFT) - used, 0)


@kernel
def share_of(process: Process, room: int) -> int:
    """Return the bytes of the room that one cache may take beyond its capacity: 0 if many are open."""
    return room >> FEW_SHIFT if process.n_rows - process.n_holes < FEW_ROWS else 0


@kernel
def range_of(process: Process, room: int) -> int:
    """Return the bytes of the room that a cache without a capacity may take."""
    share = max(share_of(process, room), room >> MANY_SHIFT)
    return max(share, min(room >> SMALL_SHIFT, SMALL_BYTES))


@Entry
def find_share(p: int, without_capacity: int) -> int:
    """Return the bytes of address space that one more cache may take: beyond its capacity, or without one."""
    process = process_at(p)
    if without_capacity == 0 and process.n_rows - process.n_holes >= FEW_ROWS:
        return 0
    lock_row(process)
    room = room_of(process)
    share = range_of(process, room) if without_capacity != 0 else share_of(process, room)
    unlock_row(process)
    return share


# --- The end of a thread ---


@kernel
def leave_thread(p: int) -> int:
    """Release the heaps of the calling thread, which ends, in every cache."""
    process, me = process_at(p), thread_pointer()
    lock_row(process)
    for row in range(process.n_rows):
        if process.rows[row] != 0:
            control = control_at(process.rows[row])
            if control.nodes > 1:  # alien heaps first: they are found by the row of the thread's own heap
                for number in range(control.nodes):
                    leave_node(node_at(control, number), HEAP_ROWS, me)
            for number in range(control.nodes):
                leave_node(node_at(control, number), 0, me)
    unlock_row(process)
    return 0


@kernel
def leave_node(control: Control, first: int, me: int) -> None:
    """Release the heaps of thread `me` among the heap rows of a node from `first` on."""
    index = next_heap(control, first)
    while index >= 0:
        heap = heap_at_index(control, index)
        if is_owner(load_acquire(heap, "owner"), me):
            leave_heap(control, heap)
        index = next_heap(control, index + 1)


# --- Fork ---


@kernel
def before_fork() -> int:
    """Take the registry's lock: so the child finds every cache opened or not, every heap claimed or not."""
    lock_row(the_process())
    return 0


@kernel
def after_fork_in_parent() -> int:
    """Give the registry's lock back."""
    unlock_row(the_process())
    return 0


@kernel
def after_fork_in_child() -> int:
    """
    Free every lock, and take the heaps from the parent's other threads.

    The locks of caches are not held over the fork: for each of them parent and child would share one page less.  If no other
    thread had a heap of a cache, no thread was changing it, and it is not written to.  Any other cache is torn: at its first use
    its index is rebuilt from the generations alone.
    """
    process, me = the_process(), thread_pointer()
    for row in range(process.n_rows):
        if process.rows[row] != 0:
            control = control_at(process.rows[row])
            is_torn = others_have_heaps(control, me)
            for number in range(control.nodes):
                node = node_at(control, number)
                if node.torn != SOUND or node.state.releasing != 0:
                    is_torn = True
                if node.state.lock != 0:
                    node.state.lock = 0
            if is_torn:
                tear(control, me)
    process.epoch += 1
    unlock_row(process)
    return 0


@kernel
def tear(control: Control, me: int) -> None:
    """Mark a cache as torn; the heaps of all threads but `me` become empty and unowned."""
    for number in range(control.nodes):
        node = node_at(control, number)
        node.torn = TORN
        node.state.releasing = 0
        index = next_claimed(node, 0)
        while index >= 0:
            heap = heap_at_index(node, index)
            if is_owner(heap.owner, me):
                if index < HEAPS:
                    heap.owner = me | 1
            elif heap.owner != 0 or heap.top != 0:  # otherwise it is not written to: its page stays shared with the parent
                heap.top = 0
                heap.owner = 0
            index = next_claimed(node, index + 1)


@Entry
def start(p: int) -> int:
    """Register for every fork and every end of a thread, once."""
    process = process_at(p)
    if process.started == 0:
        process.started = 1
        system.make_thread_exit_key(address_in(process, "exit_key"), c_function(leave_thread))
        system.watch_forks(c_function(before_fork), c_function(after_fork_in_parent), c_function(after_fork_in_child))
    return 0


# --- The end of memory ---


@kernel
def keep_range(process: Process, start: int, n: int) -> None:
    """Keep the addresses of a range that reads as zeros; if too many are kept, the oldest are unmapped."""
    lock_row(process)
    while process.n_kept >= MOST_KEPT or (process.n_kept > 0 and process.kept_bytes + n > process.most_kept_bytes):
        unlock_row(process)
        let_oldest_go(process)
        lock_row(process)
    at = 2 * ((process.kept_first + process.n_kept) & (MOST_KEPT - 1))
    process.kept[at] = start
    process.kept[at + 1] = n
    process.kept_bytes += n
    process.n_kept += 1
    unlock_row(process)


@kernel
def let_oldest_go(process: Process) -> int:
    """Unmap the oldest range that is kept; returns its bytes, 0: none is kept."""
    start, n = 0, 0
    lock_row(process)
    if process.n_kept > 0:
        first = process.kept_first
        start, n = process.kept[2 * first], process.kept[2 * first + 1]
        process.kept_first = (first + 1) & (MOST_KEPT - 1)
        process.n_kept -= 1
        process.kept_bytes -= n
    unlock_row(process)
    if n > 0:
        unmap_pages(start, n)
    return n


@kernel
def let_all_kept_go(process: Process) -> int:
    """Unmap all ranges that are kept; returns their bytes."""
    total = 0
    while True:
        n = let_oldest_go(process)
        if n == 0:
            return total
        total += n


@Entry
def let_kept_go(p: int) -> int:
    """Call `let_all_kept_go` from Python."""
    return let_all_kept_go(process_at(p))


@kernel
def part_with(process: Process, start: int, n: int) -> None:
    """Give the memory of n bytes of pages back; the addresses are kept, since compiled code may have arrays there."""
    if n <= process.most_kept_bytes and map_zeros(start, n, process.is_limited):
        keep_range(process, start, n)
    else:
        unmap_pages(start, n)


@kernel
def part_with_moved(process: Process, start: int, n: int) -> None:
    """Keep the addresses of pages that the system has moved elsewhere."""
    if n <= process.most_kept_bytes and map_hole(start, n, process.is_limited):
        keep_range(process, start, n)


@kernel
def end_range(memory: Range) -> None:
    """
    Give the memory of a range back; its addresses are kept.

    Its head keeps its content.  If the range begins with the head, its many mappings become one.  Otherwise the pages before
    the head stay writable, since a thread may still write to a closed cache there.
    """
    process = the_process()
    start, n, head = memory.start, memory.bytes, memory.head
    stop, end = head + memory.head_bytes, start + n
    rest = whole_pages(stop)
    is_kept = head != 0 and n <= process.most_kept_bytes
    if is_kept and head > start and process.is_limited == 0:
        system.give_back(start, head - start)
        system.give_back(rest, end - rest)
    elif is_kept:
        is_kept = map_zeros(rest, end - rest, process.is_limited)
        if is_kept and head != start:
            is_kept = map_zeros(start, head - start, process.is_limited)
    if is_kept:
        zero_bytes(stop, rest - stop)
        keep_range(process, start, n)
    else:
        unmap_pages(start, n)


@Entry
def map_range_of(p: int, range_: int, n: int) -> int:
    """Map a range of addresses and note it in its RANGE row; kept ranges are given up if needed; returns 0 if none are left."""
    at = reserve_pages(n)
    if at == 0 and let_all_kept_go(process_at(p)) != 0:
        at = reserve_pages(n)
    if at != 0:
        range_at(range_).bytes = n
        store_release(range_at(range_), "start", at)
    return at


# --- From Python ---

_address, _memory = addresses.map_range(PROCESS.itemsize + 8 * MAX_ROWS, usable=True)
keep(_memory)
name_address("jitslab.process", _address)
STATM = b"/proc/self/statm"


class ProcessMemory:
    """The PROCESS row and the registry of this process, used from the first cache on and kept for good."""

    def __init__(self) -> None:
        self.memory = np.frombuffer(_memory, np.uint8)
        self.row = self.memory[: PROCESS.itemsize].view(PROCESS)
        self.address = _address
        self.entries = _address + int(PROCESS.fields["entries"][1])  # type: ignore[index]  # a dtype with names has fields
        self.row["address_space"] = addresses.address_space(self.address)
        self.row["most_rows"] = addresses.most_mappings() // MAPPINGS
        self.row["path"].view(np.uint8)[0, : len(STATM)] = np.frombuffer(STATM, np.uint8)
        start(self.address)
        atexit.register(self.forget_threads)

    def forget_threads(self) -> None:
        """Delete the exit key: threads that outlive the interpreter must not call code that ends with it."""
        key = int(self.row["exit_key"][0])
        self.row["exit_key"] = -1  # first: the system may give the number to another key as soon as this one is deleted
        if key != -1:
            addresses.drop_thread_exit_key(key)

    @property
    def most_addresses(self) -> int:
        """Bytes of address space that this process may have."""
        limit, most = addresses.address_limit(), int(self.row["address_space"][0])
        return most if limit == -1 else min(limit, most)

    @property
    def epoch(self) -> int:
        """Forks that led to this process."""
        return int(self.row["epoch"][0])

    @property
    def n_open(self) -> int:
        """How many caches and size classes are open."""
        return int(self.row["n_rows"][0] - self.row["n_holes"][0])

    @property
    def most_open(self) -> int:
        """How many may be open before caches without a capacity are refused."""
        return int(self.row["most_rows"][0])

    def share(self, without_capacity: bool) -> int:
        """Return the bytes of address space that one more cache may take: beyond its capacity, or without one."""
        return find_share(self.address, int(without_capacity))

    def prepare_to_keep(self) -> None:
        """Note how many bytes of addresses may be kept, and whether the system counts usable memory."""
        self.row["most_kept_bytes"] = self.most_addresses // KEPT_SHARE
        self.row["is_limited"] = addresses.counts_usable()

    def enter(self, control: int, range_: Any) -> None:
        """Enter the cache in a range of addresses, and note it in the RANGE row."""
        if enter_cache(control, range_.ctypes.data) == NIL:
            raise CacheFullError(f"{MAX_ROWS} caches are open in this process")


_process: ProcessMemory | None = None
_first = threading.RLock()


def this_process() -> ProcessMemory:
    """Return the memory of this process; the first call makes it."""
    global _process  # one a process, as its name says
    if _process is None:
        with _first:
            if _process is None:
                _process = ProcessMemory()
    return _process


# Where the locks are that a thread holds while it opens the first cache or compiles, in the order in which it takes them.
# A child of fork would wait for them for ever.
_PLACES = ((sys.modules[__name__], "_first"), *COMPILE_LOCKS)


class _Held(threading.local):
    """The locks that a thread takes before it forks: each is noted before it is taken, so every lock that it has is noted."""

    def __init__(self) -> None:
        self.locks: list[Any] = []


_held = _Held()


def _take_locks() -> None:
    """Before a fork: wait until no other thread compiles."""
    for place, name in _PLACES:
        lock = getattr(place, name)
        if not lock._is_owned():  # otherwise the thread forks while it compiles
            _held.locks.append(lock)
            lock.acquire()


def _release() -> None:
    """After a fork: release every noted lock that was taken, even if an exception comes."""
    try:
        while _held.locks:
            if _held.locks[-1]._is_owned():
                _held.locks[-1].release()
            _held.locks.pop()
    finally:
        if _held.locks:
            _release()


def _renew_locks() -> None:
    """In the child: replace the locks that were not taken (Ctrl-C), since no thread is there to release them."""
    for place, name in _PLACES:
        if not getattr(place, name)._is_owned():
            setattr(place, name, threading.RLock())
    _release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take_locks)
    for _ in range(2):  # if Ctrl-C during the fork ends the first attempt, the second succeeds
        os.register_at_fork(after_in_parent=_release, after_in_child=_renew_locks)
