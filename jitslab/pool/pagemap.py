"""
Which pages of this process were written, as kernels: what Linux tells, and hashes of blocks where that is too little.

A *block* is BLOCK bytes, the unit of a pool's files; a page of the machine is one block or several.  A page is *there* if it is
in memory or swapped; it is *private* if it is a copy of this process alone: the first store to a page of a private mapping of a
file makes one.

A search runs over some ranges and finds *runs*, pairs of an address and a number of bytes.  It returns how many.  If the room for
runs ends, it returns MORE, and goes on where it stopped when it is called again; the first call of a search is told so.

`find_written` asks three questions.  PAGEMAP_SCAN for WRITTEN alone is a loop of its own in the kernel, 0.6 ns a page; it tells
pages that are not there, too.  Where it tells any, PAGEMAP_SCAN for pages that are there protects them: one step under the lock
of the page table, 2 ns a page.  Of those that it tells, /proc/self/pagemap says which are private.  A store before the second
step is told now; a store after it faults, and is told the next time.

On DAX, files on persistent memory that are mapped directly, two things differ.  The kernel does not say which pages are the
file's, so a page is private if `move_pages` knows its NUMA node.  And where a protected page is taken away, a mark stays: with
any other file it is of no account, but the read of a marked page of a DAX file faults for ever (seen with Linux 6.12).  So
there pages that are not there are never protected, nor holes, which go when the file is written to; `unprotect_all` comes before
pages are dropped; and `try_dax` shows in a child process that no read hangs.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from numba import types

from ..machine.addresses import LINUX, has_symbol
from ..machine.compile import Entry, kernel
from ..machine.memory import fibonacci_hash, shift_right
from ..machine.pointers import StructPointer, address_in, i8s, load_relaxed, make_cast, store_release, u1s, u4s
from ..machine.system import give_back
from .hashes import hash_bytes

BLOCK = 4096
BLOCK_SHIFT = 12
SPANS = 512  # regions that one system call tells
ENTRIES = 512  # pages whose entries of /proc/self/pagemap one system call reads
NEAR = 512  # pages between two spans that are protected by one call: the call costs as much as 700 pages
DONE, MORE, FAILED = 0, -1, -2  # answers of a search, if not the number of runs
UNKNOWN = 0  # hash of a block that has none

SCAN = np.dtype(
    [
        ("pagemap", "i8"),  # file descriptor of /proc/self/pagemap
        ("uffd", "i8"),  # file descriptor of the userfaultfd
        ("page_bytes", "i8"),  # of the machine
        ("is_dax", "i8"),
        # The search.
        ("ranges", "i8"),  # address of pairs: address, bytes
        ("n_ranges", "i8"),
        ("range", "i8"),  # the one searched now
        ("at", "i8"),  # where in it; 0: at its start
        ("runs", "i8"),  # address of the pairs found
        ("most", "i8"),  # runs that there is room for
        ("n", "i8"),  # runs found
        # Hashes of blocks: a table of pairs, block number (0: none) and hash.
        ("hashes", "i8"),  # its address
        ("mask", "i8"),  # pairs of the table - 1
        ("n_hashes", "i8"),  # pairs in use
        ("seed", "i8"),
        ("compares", "i8"),  # 1: blocks whose hash is as before are left out
        # Arguments and answers of the system calls.
        ("scan", "i8", (12,)),  # struct pm_scan_arg
        ("register", "i8", (4,)),  # struct uffdio_register
        ("spans", "i8", (3 * SPANS,)),  # struct page_region
        ("regions", "i8", (3 * SPANS,)),
        ("entries", "i8", (ENTRIES,)),
        ("pages", "i8", (ENTRIES,)),  # addresses, and what move_pages says of each
        ("status", "i4", (ENTRIES,)),
        ("path", "u1", (24,)),  # a C string
    ]
)
scan_at = make_cast(StructPointer("Scan", SCAN))

_external: Any = types.ExternalFunction
# Numbers of userfaultfd(2), move_pages(2) and clone(2).
_USERFAULTFD, _MOVE_PAGES, _CLONE = {"x86_64": (323, 279, 56), "aarch64": (282, 239, 220)}.get(platform.machine(), (-1, -1, -1))
_CALLS = "syscall", "ioctl", "open", "close", "waitpid", "kill", "usleep", "_exit"
PATH = b"/proc/self/pagemap"
HAS_PAGEMAP = LINUX and has_symbol("pread") and has_symbol("syscall") and _MOVE_PAGES > 0
CAN_SCAN = HAS_PAGEMAP and all(map(has_symbol, _CALLS))


# --- Hashes of blocks ---


@kernel
def hash_of(address: int, seed: int) -> int:
    """Return the hash of the block at an address, never UNKNOWN."""
    found = hash_bytes(address, BLOCK, seed)
    return found if found != UNKNOWN else 1


@kernel
def pair_of(table: int, mask: int, block: int) -> int:
    """Return the address of the block's pair in the table, or of an unused one."""
    k = shift_right(fibonacci_hash(block), 16) & mask
    while i8s(table)[2 * k] != 0 and i8s(table)[2 * k] != block:
        k = (k + 1) & mask
    return table + 16 * k


@kernel
def set_hash(row: int, block: int, found: int) -> None:
    """Store the hash of a block; the table has room."""
    scan = scan_at(row)
    pair = i8s(pair_of(scan.hashes, scan.mask, block))
    if pair[0] == 0:
        pair[0] = block
        scan.n_hashes += 1
    pair[1] = found


@Entry
def move_hashes(row: int, table: int, mask: int) -> int:
    """Move the hashes to a larger table, which is zeroed."""
    scan = scan_at(row)
    old, n = i8s(scan.hashes), scan.mask + 1
    scan.hashes = table
    scan.mask = mask
    scan.n_hashes = 0
    for k in range(n):
        if old[2 * k] != 0 and old[2 * k + 1] != UNKNOWN:
            set_hash(row, old[2 * k], old[2 * k + 1])
    return 0


@Entry
def store_hashes(row: int, runs: int, n: int, hashes: int) -> int:
    """Store the hashes of the blocks of n runs: from an array of one a block, or if its address is 0, of what is in memory."""
    scan, done = scan_at(row), 0
    for k in range(n):
        first = i8s(runs)[2 * k]
        for address in range(first, first + i8s(runs)[2 * k + 1], BLOCK):
            found = i8s(hashes)[done] if hashes != 0 else hash_of(address, scan.seed)
            set_hash(row, address >> BLOCK_SHIFT, found)
            done += 1
    return 0


@Entry
def drop_hashes(row: int) -> int:
    """Make the hashes of the blocks of the ranges unknown."""
    scan = scan_at(row)
    table = i8s(scan.hashes)
    for k in range(scan.n_ranges):
        first = i8s(scan.ranges)[2 * k] >> BLOCK_SHIFT
        end = first + (i8s(scan.ranges)[2 * k + 1] >> BLOCK_SHIFT)
        if end - first <= scan.mask:
            for block in range(first, end):
                pair = i8s(pair_of(scan.hashes, scan.mask, block))
                if pair[0] != 0:
                    pair[1] = UNKNOWN
        else:
            for place in range(scan.mask + 1):
                if first <= table[2 * place] and table[2 * place] < end:
                    table[2 * place + 1] = UNKNOWN
    return 0


@Entry
def hash_blocks(address: int, n: int, seed: int, hashes: int) -> int:
    """Write the hash of each block of n bytes at an address into an array: of what was copied from there, for a commit."""
    for k in range(n >> BLOCK_SHIFT):
        i8s(hashes)[k] = hash_of(address + (k << BLOCK_SHIFT), seed)
    return 0


# --- Runs ---


@kernel
def append(row: int, start: int, end: int) -> None:
    """Append a run, or lengthen the last one if it is of this range."""
    scan = scan_at(row)
    last, first = i8s(scan.runs + 16 * (scan.n - 1)), i8s(scan.ranges)[2 * scan.range]
    if scan.n > 0 and last[0] + last[1] == start and start != first:
        last[1] += end - start
    else:
        last[2] = start
        last[3] = end - start
        scan.n += 1


@kernel
def judge(row: int, start: int, end: int) -> None:
    """Append pages; if hashes are compared, only the blocks whose hash is another than before or unknown."""
    scan = scan_at(row)
    if scan.compares == 0:
        append(row, start, end)
        return
    for address in range(start, end, BLOCK):
        known = i8s(pair_of(scan.hashes, scan.mask, address >> BLOCK_SHIFT))[1]
        if known == UNKNOWN or known != hash_of(address, scan.seed):
            append(row, address, address + BLOCK)


@kernel
def begin(row: int, is_first: int) -> None:
    """Begin a search, or go on with it."""
    if is_first != 0:
        scan = scan_at(row)
        scan.range = 0
        scan.at = 0
        scan.n = 0


@kernel
def room(row: int) -> int:
    """Return how many pages can be judged at most, so that there is room for their runs."""
    scan = scan_at(row)
    return (scan.most - scan.n) // (scan.page_bytes >> BLOCK_SHIFT)


@Entry
def find_all(row: int, is_first: int) -> int:
    """Judge all pages of the ranges."""
    begin(row, is_first)
    scan = scan_at(row)
    while scan.range < scan.n_ranges:
        pair = i8s(scan.ranges + 16 * scan.range)
        at, end = max(scan.at, pair[0]), pair[0] + pair[1]
        while at < end:
            stop = min(end, at + scan.page_bytes * room(row))
            if stop == at:
                scan.at = at
                return MORE
            judge(row, at, stop)
            at = stop
        scan.range += 1
        scan.at = 0
    return scan.n


# --- What Linux tells ---

if HAS_PAGEMAP:
    _pread = _external("pread", types.int64(types.int32, types.int64, types.int64, types.int64))
    _syscall = _external("syscall", types.int64(*[types.int64] * 7))

    @kernel
    def judge_there(row: int, start: int, end: int) -> None:
        """Judge the private ones of pages that are in memory, and are not known to be the file's."""
        scan = scan_at(row)
        if scan.is_dax == 0:
            if start < end:
                judge(row, start, end)
            return
        page, at = scan.page_bytes, start
        while at < end:
            n = min(ENTRIES, (end - at) // page)
            for k in range(n):
                scan.pages[k] = at + k * page
            statuses = address_in(scan, "status")
            refused = _syscall(_MOVE_PAGES, 0, n, address_in(scan, "pages"), 0, statuses, 0)
            for k in range(n):
                if refused != 0 or u4s(statuses)[k] >> 31 == 0:  # not an error: the number of a node
                    judge(row, at + k * page, at + (k + 1) * page)
            at += n * page

    @kernel
    def judge_private(row: int, start: int, end: int) -> int:
        """Judge the pages that are there and private, by /proc/self/pagemap; there is room for all."""
        scan = scan_at(row)
        entries, at, page = scan.entries, start, scan.page_bytes
        while at < end:
            n = min(ENTRIES, (end - at) // page)
            if _pread(scan.pagemap, address_in(scan, "entries"), 8 * n, at // page * 8) != 8 * n:
                return FAILED
            first = 0
            for k in range(n):  # bit 63: in memory; 62: swapped; 61: the file's
                if entries[k] >= 0 or (entries[k] >> 61) & 1 != 0:
                    judge_there(row, at + first * page, at + k * page)
                    first = k + 1
                    if (entries[k] >> 61) == 2:
                        judge(row, at + k * page, at + first * page)
            judge_there(row, at + first * page, at + n * page)
            at += n * page
        return DONE

    @Entry
    def find_private(row: int, is_first: int) -> int:
        """Judge the pages that are there and private."""
        begin(row, is_first)
        scan = scan_at(row)
        while scan.range < scan.n_ranges:
            pair = i8s(scan.ranges + 16 * scan.range)
            at, end = max(scan.at, pair[0]), pair[0] + pair[1]
            while at < end:
                stop = min(end, at + scan.page_bytes * room(row))
                if stop == at:
                    scan.at = at
                    return MORE
                if judge_private(row, at, stop) != DONE:
                    return FAILED
                at = stop
            scan.range += 1
            scan.at = 0
        return scan.n

else:
    find_private = find_all


if CAN_SCAN:
    _ioctl = _external("ioctl", types.int32(types.int32, types.int64, types.int64))
    _close = _external("close", types.int32(types.int32))

    _USER_MODE_ONLY, _CLOEXEC, _NONBLOCK = 1, 0o2000000, 0o4000
    _UFFDIO_API, _UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
    _UFFD_API, _FEATURES = 0xAA, 1 << 15 | 1 << 13  # WP_ASYNC, WP_UNPOPULATED
    _MODE_WP = 2
    _PAGEMAP_SCAN = 0xC0606610
    _WP_MATCHING, _CHECK_WPASYNC = 1, 2  # protect what is told; refuse ranges that are not registered
    _WRITTEN, _PRESENT, _SWAPPED, _ZEROS = 2, 8, 16, 32  # categories of pages
    _WALK_END = 4  # the place in `scan` where the kernel says how far it came

    @kernel
    def new_uffd(row: int) -> int:
        """Return a userfaultfd that lets stores pass and notes them; -1: this kernel has none, or the process may not use it."""
        scan = scan_at(row)
        fd = _syscall(_USERFAULTFD, _CLOEXEC | _NONBLOCK | _USER_MODE_ONLY, 0, 0, 0, 0, 0)
        if fd < 0:
            return -1
        api = scan.register
        api[0] = _UFFD_API
        api[1] = _FEATURES
        api[2] = 0
        if _ioctl(fd, _UFFDIO_API, address_in(scan, "register")) != 0 or api[1] & _FEATURES != _FEATURES:
            _close(fd)
            return -1
        return fd

    @Entry
    def open_uffd(row: int) -> int:
        """As `new_uffd`, for Python."""
        return new_uffd(row)

    @kernel
    def register_all(row: int) -> int:
        """Have stores to the ranges noted; ranges may be registered already."""
        scan = scan_at(row)
        for k in range(2 * scan.n_ranges):
            scan.register[k & 1] = i8s(scan.ranges)[k]
            scan.register[2] = _MODE_WP
            scan.register[3] = 0
            if k & 1 == 1 and scan.register[1] > 0 and _ioctl(scan.uffd, _UFFDIO_REGISTER, address_in(scan, "register")) != 0:
                return FAILED
        return DONE

    @Entry
    def register_ranges(row: int) -> int:
        """As `register_all`, for Python."""
        return register_all(row)

    @kernel
    def ask(row: int, start: int, end: int, flags: int, any_of: int, without: int, told: int, regions: int, most: int) -> int:
        """Scan pages in category WRITTEN and not in another; returns the number of regions, negative: refused."""
        scan = scan_at(row)
        args = scan.scan
        args[0] = 8 * 12
        args[1] = flags
        args[2] = start
        args[3] = end
        args[_WALK_END] = 0
        args[5] = regions
        args[6] = SPANS
        args[7] = most  # pages; 0: no limit
        args[8] = without
        args[9] = _WRITTEN | without
        args[10] = any_of
        args[11] = told
        return _ioctl(scan.pagemap, _PAGEMAP_SCAN, address_in(scan, "scan"))

    @kernel
    def find_in_span(row: int, start: int, end: int) -> int:
        """Protect the written pages of a span that are there; those that are private are judged."""
        scan = scan_at(row)
        at, regions, without = start, scan.regions, _ZEROS if scan.is_dax != 0 else 0
        while at < end:
            most = room(row)
            if most == 0:
                scan.at = at
                return MORE
            flags, there = _WP_MATCHING | _CHECK_WPASYNC, _PRESENT | _SWAPPED
            n = ask(row, at, end, flags, there, without, _WRITTEN, address_in(scan, "regions"), most)
            if n < 0:
                return FAILED
            at = scan.scan[_WALK_END]
            for k in range(n):
                if judge_private(row, regions[3 * k], regions[3 * k + 1]) != DONE:
                    return FAILED
        return DONE

    @kernel
    def find_noted(row: int, is_first: int) -> int:
        """Judge the pages that were written since they were protected, and protect them."""
        begin(row, is_first)
        scan = scan_at(row)
        spans, near = scan.spans, NEAR * scan.page_bytes
        while scan.range < scan.n_ranges:
            pair = i8s(scan.ranges + 16 * scan.range)
            at, end = max(scan.at, pair[0]), pair[0] + pair[1]
            while at < end:
                n = ask(row, at, end, 0, 0, 0, _WRITTEN, address_in(scan, "spans"), 0)
                if n < 0:
                    return FAILED
                at = scan.scan[_WALK_END]
                k = 0
                while k < n:
                    start, stop = spans[3 * k], spans[3 * k + 1]
                    k += 1
                    while k < n and spans[3 * k] - stop <= near:
                        stop = spans[3 * k + 1]
                        k += 1
                    answer = find_in_span(row, start, stop)
                    if answer != DONE:
                        return answer
            scan.range += 1
            scan.at = 0
        return scan.n

    @Entry
    def find_written(row: int, is_first: int) -> int:
        """As `find_noted`, for Python."""
        return find_noted(row, is_first)

    # --- DAX ---

    _open = _external("open", types.int32(types.int64, types.int32))
    _waitpid = _external("waitpid", types.int32(types.int32, types.int64, types.int32))
    _kill = _external("kill", types.int32(types.int32, types.int32))
    _usleep = _external("usleep", types.int32(types.uint32))
    _exit = _external("_exit", types.void(types.int32))
    _UFFDIO_WRITEPROTECT = 0xC018AA06
    _WNOHANG, _WALL, _SIGKILL = 1, 0x40000000, 9

    @kernel
    def unprotect_all(row: int) -> int:
        """End the protection of the ranges, and take marks away."""
        scan = scan_at(row)
        for k in range(scan.n_ranges):
            scan.register[0] = i8s(scan.ranges)[2 * k]
            scan.register[1] = i8s(scan.ranges)[2 * k + 1]
            scan.register[2] = 0
            if scan.register[1] > 0 and _ioctl(scan.uffd, _UFFDIO_WRITEPROTECT, address_in(scan, "register")) != 0:
                return FAILED
        return DONE

    @Entry
    def unprotect_ranges(row: int) -> int:
        """As `unprotect_all`, for Python."""
        return unprotect_all(row)

    @kernel
    def find_quietly(row: int) -> int:
        """Search; returns the number of runs, or of the last of them if there is no room for all."""
        answer = find_noted(row, 1)
        while answer == MORE:
            scan_at(row).n = 0
            answer = find_noted(row, 0)
        return answer

    @kernel
    def read_all(row: int) -> int:
        """Read a byte of each page of the ranges; returns their sum."""
        scan, total = scan_at(row), 0
        for k in range(scan.n_ranges):
            first = i8s(scan.ranges)[2 * k]
            for at in range(first, first + i8s(scan.ranges)[2 * k + 1], scan.page_bytes):
                total += load_relaxed(u1s(at), 0)
        return total

    @kernel
    def write_some(row: int) -> int:
        """Store into every seventh page of the ranges what stands there; returns how many."""
        scan, n = scan_at(row), 0
        for k in range(scan.n_ranges):
            first = i8s(scan.ranges)[2 * k]
            for at in range(first, first + i8s(scan.ranges)[2 * k + 1], 7 * scan.page_bytes):
                store_release(u1s(at), 0, load_relaxed(u1s(at), 0))
                n += 1
        return n

    @kernel
    def tells(row: int) -> bool:
        """Whether a search finds what is written, after all was read, no more and no less; it writes to the ranges."""
        scan = scan_at(row)
        scan.compares = 0
        for again in range(3):
            read_all(row)
            if find_quietly(row) < 0:
                return False
            n = write_some(row)
            read_all(row)
            if find_quietly(row) != n or find_quietly(row) != 0:
                return False
            read_all(row)
            if find_quietly(row) != 0:
                return False
            if again == 1:
                unprotect_all(row)
                for k in range(scan.n_ranges):
                    give_back(i8s(scan.ranges)[2 * k], i8s(scan.ranges)[2 * k + 1])
        return True

    @Entry
    def try_dax(row: int, most: int) -> int:
        """
        Whether `find_written` tells what is written to the ranges, in a child process that has them, too: 1 or 0.

        It is 0 also if the child is not done after `most` milliseconds: then it hangs, and is killed.
        """
        scan = scan_at(row)
        child = _syscall(_CLONE, 0, 0, 0, 0, 0, 0)  # a fork without its handlers: the child makes system calls alone
        if child == 0:
            scan.pagemap = _open(address_in(scan, "path"), 0)
            scan.uffd = new_uffd(row)
            is_right = scan.pagemap >= 0 and scan.uffd >= 0 and register_all(row) == DONE and tells(row)
            _exit(0 if is_right else 1)
        if child < 0:
            return 0
        status = address_in(scan, "status")
        for _ in range(most):
            ended = _waitpid(child, status, _WNOHANG | _WALL)
            if ended != 0:
                return 1 if ended == child and u4s(status)[0] == 0 else 0
            _usleep(1000)
        _kill(child, _SIGKILL)
        _waitpid(child, status, _WALL)
        return 0

else:
    find_written = register_ranges = find_all

    @Entry
    def unprotect_ranges(row: int) -> int:
        """Nothing is protected."""
        return DONE

    @Entry
    def try_dax(row: int, most: int) -> int:
        """It is not used here."""
        return 0

    @Entry
    def open_uffd(row: int) -> int:
        """No such call."""
        return -1
