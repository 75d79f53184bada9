"""The system calls that kernels make: pages, threads, forks, yielding; each with an answer where the system has no such call."""

from __future__ import annotations

import os
import sys
from typing import Any

from numba import types

from .addresses import (
    CAN_GROW,
    CAN_WATCH_THREADS,
    LINUX,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MASK_BITS,
    MBIND,
    PROT_NONE,
    PROT_READ,
    PROT_RW,
    has_symbol,
    mapped_page_bytes,
    page_bytes,
)
from .compile import int64, kernel
from .memory import load1, load8, store8

if sys.platform.startswith("linux"):
    import resource

_external: Any = types.ExternalFunction
_key_type = types.uint32 if LINUX else types.uint64

if CAN_GROW:
    _mprotect = _external("mprotect", types.int32(types.int64, types.int64, types.int32))
    _madvise = _external("madvise", types.int32(types.int64, types.int64, types.int32))
    _advice = MADV_DONTNEED if LINUX else MADV_FREE

    @kernel
    def commit(address: int, n: int) -> bool:
        """Make n bytes from a page-aligned address usable; whether the system granted it."""
        return _mprotect(address, n, PROT_RW) == 0  # type: ignore[no-any-return]  # a C function has no types

    @kernel
    def let_read(address: int, n: int) -> bool:
        """Make n bytes from a page-aligned address readable, as `make_readable` does; whether the system granted it."""
        return _mprotect(address, n, PROT_READ) == 0  # type: ignore[no-any-return]  # a C function has no types

    @kernel
    def give_back(address: int, n: int) -> bool:
        """Give back the memory of n bytes, whole pages both; whether they read as zeros from now on, and not as before."""
        return _madvise(address, n, _advice) == 0 and LINUX

    @kernel
    def prefer_huge_pages(address: int, n: int) -> None:
        """Ask for huge pages in n bytes from a page-aligned address; only Linux knows of such a wish."""
        if LINUX:
            _madvise(address, n, MADV_HUGEPAGE)

else:

    @kernel
    def commit(address: int, n: int) -> bool:
        """All is usable from the start."""
        return True

    @kernel
    def let_read(address: int, n: int) -> bool:
        """All is usable from the start."""
        return True

    @kernel
    def give_back(address: int, n: int) -> bool:
        """Nothing can be given back."""
        return False

    @kernel
    def prefer_huge_pages(address: int, n: int) -> None:
        """No such wish is known."""


if LINUX and all(map(has_symbol, ("open", "read", "close", "getrlimit"))):
    _open = _external("open", types.int32(types.int64, types.int32))
    _read = _external("read", types.int64(types.int32, types.int64, types.int64))
    _close = _external("close", types.int32(types.int32))
    _getrlimit = _external("getrlimit", types.int32(types.int32, types.int64))
    _RLIMIT_AS, _TO_READ = resource.RLIMIT_AS, os.O_RDONLY | os.O_CLOEXEC

    @kernel
    def address_space_used(path: int, text: int, n: int) -> int:
        """
        Bytes of address space that the process has in use, as the file at a path tells; 0: it cannot be read.

        The path is a C string; what the file tells, a number of pages first, goes to the n bytes at `text`.
        """
        file = _open(path, _TO_READ)
        if file < 0:
            return 0
        length = _read(file, text, n)
        _close(file)
        pages = int64(0)
        for k in range(length):
            digit = load1(text, k) - 48
            if not 0 <= digit <= 9:
                break
            pages = pages * 10 + digit
        return pages * mapped_page_bytes  # type: ignore[no-any-return]  # int64 has no type

    @kernel
    def address_space_limit(pair: int) -> int:
        """RLIMIT_AS, by way of the two int64 at an address; negative: there is none."""
        return load8(pair, int64(0)) if _getrlimit(_RLIMIT_AS, pair) == 0 else -1

else:

    @kernel
    def address_space_used(path: int, text: int, n: int) -> int:
        """Not known."""
        return 0

    @kernel
    def address_space_limit(pair: int) -> int:
        """There is none."""
        return -1


if has_symbol("sched_getcpu"):
    _sched_getcpu = _external("sched_getcpu", types.int32())

    @kernel
    def current_cpu() -> int:
        """Number of the CPU that the calling thread runs on; negative: not known."""
        return _sched_getcpu()  # type: ignore[no-any-return]  # a C function has no types

else:

    @kernel
    def current_cpu() -> int:
        """Not known."""
        return -1


if has_symbol("sched_yield"):
    _sched_yield = _external("sched_yield", types.int32())

    @kernel
    def yield_core() -> None:
        """Let another thread run."""
        _sched_yield()

else:

    @kernel
    def yield_core() -> None:
        """Nothing to call: the caller pauses."""


if CAN_WATCH_THREADS:
    _pthread_key_create = _external("pthread_key_create", types.int32(types.int64, types.int64))
    _pthread_setspecific = _external("pthread_setspecific", types.int32(_key_type, types.int64))

    @kernel
    def make_thread_exit_key(at: int, destructor: int) -> None:
        """
        Write to the int64 at an address a key, whose C destructor gets its value at the end of each thread that has set one.

        -1: the system has none left.
        """
        store8(at, 0, 0)
        if _pthread_key_create(at, destructor) != 0:
            store8(at, 0, -1)

    @kernel
    def watch_thread_exit(key: int, value: int) -> None:
        """Have the key's destructor called with `value` when the calling thread ends."""
        _pthread_setspecific(key, value)

else:

    @kernel
    def make_thread_exit_key(at: int, destructor: int) -> None:
        """There are none."""
        store8(at, 0, -1)

    @kernel
    def watch_thread_exit(key: int, value: int) -> None:
        """No such notice: the heaps of ended threads are adopted by later ones, or stay."""


if has_symbol("__register_atfork"):  # the C library's pthread_atfork is no symbol of glibc's, and calls this
    _register_atfork = _external("__register_atfork", types.int32(*[types.int64] * 4))

    @kernel
    def watch_forks(before: int, in_parent: int, in_child: int) -> None:
        """Have C functions called around every fork, whoever calls it: in reverse order before it, in order after it."""
        _register_atfork(before, in_parent, in_child, 0)

elif has_symbol("pthread_atfork"):
    _pthread_atfork = _external("pthread_atfork", types.int32(*[types.int64] * 3))

    @kernel
    def watch_forks(before: int, in_parent: int, in_child: int) -> None:
        """Have C functions called around every fork, whoever calls it: in reverse order before it, in order after it."""
        _pthread_atfork(before, in_parent, in_child)

else:

    @kernel
    def watch_forks(before: int, in_parent: int, in_child: int) -> None:
        """There is no fork."""


MREMAP_MAYMOVE = 1
MAP_FIXED, MAP_FIXED_NOREPLACE = 0x10, 0x100000
CAN_MAP = has_symbol("mmap") and has_symbol("munmap")
CAN_MOVE = LINUX and CAN_MAP and has_symbol("mremap")

if CAN_MAP:
    _i, _n = types.int64, types.int32
    _mmap = _external("mmap", _i(_i, _i, _n, _n, _n, _i))
    _munmap = _external("munmap", _n(_i, _i))

    @kernel
    def map_pages(n: int) -> int:
        """Address of n bytes of new pages, zeros; 0: the system gives none."""
        at = _mmap(int64(0), n, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, int64(0))
        return int64(0) if at == -1 else at  # type: ignore[no-any-return]  # a C function has no types

    @kernel
    def reserve_pages(n: int) -> int:
        """Address of n bytes of address space, in whole pages, without memory behind them; 0: there are none left."""
        at = _mmap(int64(0), n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, int64(0))
        return int64(0) if at == -1 else at  # type: ignore[no-any-return]  # a C function has no types

    @kernel
    def map_spare_pages(n: int) -> int:
        """Address of n bytes of pages that will hardly be touched, zeros; 0: there are no addresses left."""
        at = _mmap(int64(0), n, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, int64(0))
        return int64(0) if at == -1 else at  # type: ignore[no-any-return]  # a C function has no types

    @kernel
    def unmap_pages(address: int, n: int) -> None:
        """Give n bytes of pages back, addresses and all; where the system refuses (too many mappings), the memory alone."""
        if _munmap(address, n) != 0:
            give_back(address, n)

    @kernel
    def map_zeros(address: int, n: int, is_limited: int) -> bool:
        """
        Give the memory of n bytes of pages back and have them read as zeros, and written to without harm; whether granted.

        Where writable memory is limited they can only be read: what nobody uses shall not count there.
        """
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
        if is_limited == 0 and _mmap(address, n, PROT_RW, flags, -1, int64(0)) == address:
            return True
        return _mmap(address, n, PROT_READ, flags, -1, int64(0)) == address  # type: ignore[no-any-return]  # likewise

    @kernel
    def map_hole(address: int, n: int, is_limited: int) -> bool:
        """Do the same where pages were that the system has moved; False, too, if others have mapped something there meanwhile."""
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
        at = _mmap(address, n, PROT_RW if is_limited == 0 else PROT_READ, flags, -1, int64(0))
        if at != -1 and at != address:  # before Linux 4.17
            _munmap(at, n)
        return at == address  # type: ignore[no-any-return]  # likewise

else:
    _calloc = _external("calloc", types.int64(types.int64, types.int64))
    _free = _external("free", types.void(types.int64))

    @kernel
    def map_pages(n: int) -> int:
        """Address of n zeroed bytes, on the border of a page; 0: the system gives none."""
        given = _calloc(n + page_bytes, int64(1))
        if given == 0:
            return given  # type: ignore[no-any-return]  # a C function has no types
        at = (given + page_bytes) & -page_bytes  # the C library's are at least 16 bytes before
        store8(at - 8, int64(0), given)
        return at  # type: ignore[no-any-return]  # a C function has no types

    map_spare_pages = reserve_pages = map_pages

    @kernel
    def unmap_pages(address: int, n: int) -> None:
        """Give the bytes back."""
        _free(load8(address - 8, int64(0)))

    @kernel
    def map_zeros(address: int, n: int, is_limited: int) -> bool:
        """No such call: the addresses go with the memory."""
        return False

    @kernel
    def map_hole(address: int, n: int, is_limited: int) -> bool:
        """Nothing is moved."""
        return False


if MBIND >= 0 and has_symbol("syscall"):
    _syscall = _external("syscall", types.int64(*[types.int64] * 7))

    @kernel
    def place_pages(address: int, n: int, mode: int, mask: int) -> None:
        """Ask for pages on the nodes of a mask; where that is refused they lie where they are first written to."""
        _syscall(int64(MBIND), address, n, mode, mask, int64(MASK_BITS + 1), int64(0))

else:

    @kernel
    def place_pages(address: int, n: int, mode: int, mask: int) -> None:
        """No such wish is known."""


if CAN_MOVE:
    _mremap = _external("mremap", types.int64(types.int64, types.int64, types.int64, types.int32))

    @kernel
    def move_pages(address: int, old: int, new: int) -> int:
        """Make `old` bytes of pages `new` bytes, elsewhere where they do not fit; 0: not granted, nothing changed."""
        at = _mremap(address, old, new, MREMAP_MAYMOVE)
        return int64(0) if at == -1 else at  # type: ignore[no-any-return]  # a C function has no types

else:

    @kernel
    def move_pages(address: int, old: int, new: int) -> int:
        """No such call: the caller copies."""
        return int64(0)  # type: ignore[no-any-return]  # int64 has no type, either
