"""The system calls of kernels: pages, threads, forks, yielding.  If the system lacks a call, another body stands for it."""

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
    MAP_FIXED,
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
from .memory import load1, load8, pause, store8

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
        """Make n bytes from a page-aligned address usable; returns whether the system granted it."""
        return _mprotect(address, n, PROT_RW) == 0  # type: ignore[no-any-return]  # a C function has no types

    @kernel
    def let_read(address: int, n: int) -> bool:
        """Make n bytes from a page-aligned address readable, as `make_readable` does; returns whether the system granted it."""
        return _mprotect(address, n, PROT_READ) == 0  # type: ignore[no-any-return]  # a C function has no types

    @kernel
    def give_back(address: int, n: int) -> bool:
        """Give the memory of n bytes, whole pages, back; returns whether they read as zeros now: if not, they are as before."""
        return _madvise(address, n, _advice) == 0 and LINUX

    @kernel
    def prefer_huge_pages(address: int, n: int) -> None:
        """Ask for huge pages in n bytes from a page-aligned address; only Linux has them."""
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
        Return the bytes of address space that the process uses, from the file at a path; 0: the file cannot be read.

        The path is a C string.  The file begins with a number of pages; its content is read into the n bytes at `text`.
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
        """Return RLIMIT_AS, read into the two int64 at an address; negative: there is no limit."""
        return load8(pair, int64(0)) if _getrlimit(_RLIMIT_AS, pair) == 0 else -1

else:

    @kernel
    def address_space_used(path: int, text: int, n: int) -> int:
        """Not known."""
        return 0

    @kernel
    def address_space_limit(pair: int) -> int:
        """There is no limit."""
        return -1


if has_symbol("sched_getcpu"):
    _sched_getcpu = _external("sched_getcpu", types.int32())

    @kernel
    def current_cpu() -> int:
        """Return the number of the CPU that the calling thread runs on; negative: not known."""
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
        """No such call: the caller pauses."""


@kernel
def relax(tries: int) -> None:
    """Wait a moment in a loop that looks for another thread: a few times on the core, then others run."""
    if tries & 15:
        pause()
    else:
        yield_core()


if CAN_WATCH_THREADS:
    _pthread_key_create = _external("pthread_key_create", types.int32(types.int64, types.int64))
    _pthread_setspecific = _external("pthread_setspecific", types.int32(_key_type, types.int64))

    @kernel
    def make_thread_exit_key(at: int, destructor: int) -> None:
        """
        Make a key and write it to the int64 at an address; -1: the system has no more keys.

        Whenever a thread ends that has set a value of the key, the C function `destructor` gets that value.
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
        """No such call."""
        store8(at, 0, -1)

    @kernel
    def watch_thread_exit(key: int, value: int) -> None:
        """No such call: later threads adopt the heaps of ended ones, or those heaps stay."""


if has_symbol("__register_atfork"):  # glibc has no symbol pthread_atfork, which calls this
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
        """No forks."""


MREMAP_MAYMOVE = 1
MAP_FIXED_NOREPLACE = 0x100000
CAN_MAP = has_symbol("mmap") and has_symbol("munmap")
CAN_MOVE = LINUX and CAN_MAP and has_symbol("mremap")

if CAN_MAP:
    _i, _n = types.int64, types.int32
    _mmap = _external("mmap", _i(_i, _i, _n, _n, _n, _i))
    _munmap = _external("munmap", _n(_i, _i))

    @kernel
    def map_pages(n: int) -> int:
        """Return the address of n bytes of new, zeroed pages; 0: the system refuses."""
        at = _mmap(int64(0), n, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, int64(0))
        return int64(0) if at == -1 else at  # type: ignore[no-any-return]  # a C function has no types

    @kernel
    def reserve_pages(n: int) -> int:
        """Reserve n bytes, whole pages, without memory behind them; returns the address, or 0: no addresses are left."""
        at = _mmap(int64(0), n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, int64(0))
        return int64(0) if at == -1 else at  # type: ignore[no-any-return]  # a C function has no types

    @kernel
    def map_spare_pages(n: int) -> int:
        """Return the address of n bytes of zeroed pages that are rarely touched; 0: no addresses are left."""
        at = _mmap(int64(0), n, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, int64(0))
        return int64(0) if at == -1 else at  # type: ignore[no-any-return]  # a C function has no types

    @kernel
    def unmap_pages(address: int, n: int) -> None:
        """Unmap n bytes of pages; if the system refuses (too many mappings), give their memory back."""
        if _munmap(address, n) != 0:
            give_back(address, n)

    @kernel
    def map_zeros(address: int, n: int, is_limited: int) -> bool:
        """
        Give the memory of n bytes of pages back: they read as zeros, and can be written to.  Returns whether that was granted.

        If writable memory is limited, they can only be read: so they do not count.
        """
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
        if is_limited == 0 and _mmap(address, n, PROT_RW, flags, -1, int64(0)) == address:
            return True
        return _mmap(address, n, PROT_READ, flags, -1, int64(0)) == address  # type: ignore[no-any-return]  # a C function has no types

    @kernel
    def map_hole(address: int, n: int, is_limited: int) -> bool:
        """Do `map_zeros` at addresses whose pages the system has moved; also False if another mapping lies there by now."""
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
        at = _mmap(address, n, PROT_RW if is_limited == 0 else PROT_READ, flags, -1, int64(0))
        if at != -1 and at != address:  # Linux before 4.17 maps elsewhere
            _munmap(at, n)
        return at == address  # type: ignore[no-any-return]  # a C function has no types

else:
    _calloc = _external("calloc", types.int64(types.int64, types.int64))
    _free = _external("free", types.void(types.int64))

    @kernel
    def map_pages(n: int) -> int:
        """Return the address of n zeroed bytes from the border of a page on; 0: the system refuses."""
        given = _calloc(n + page_bytes, int64(1))
        if given == 0:
            return given  # type: ignore[no-any-return]  # a C function has no types
        at = (given + page_bytes) & -page_bytes  # at least 16 bytes after `given`, which is stored between
        store8(at - 8, int64(0), given)
        return at  # type: ignore[no-any-return]  # a C function has no types

    map_spare_pages = reserve_pages = map_pages

    @kernel
    def unmap_pages(address: int, n: int) -> None:
        """Give the bytes back."""
        _free(load8(address - 8, int64(0)))

    @kernel
    def map_zeros(address: int, n: int, is_limited: int) -> bool:
        """No such call: the addresses are given back with the memory."""
        return False

    @kernel
    def map_hole(address: int, n: int, is_limited: int) -> bool:
        """No such call: the system moves nothing."""
        return False


if MBIND >= 0 and has_symbol("syscall"):
    _syscall = _external("syscall", types.int64(*[types.int64] * 7))

    @kernel
    def place_pages(address: int, n: int, mode: int, mask: int) -> None:
        """Ask for pages on the nodes of a mask; if refused, each lies on the node of the thread that first writes to it."""
        _syscall(int64(MBIND), address, n, mode, mask, int64(MASK_BITS + 1), int64(0))

else:

    @kernel
    def place_pages(address: int, n: int, mode: int, mask: int) -> None:
        """No such wish is known."""


if CAN_MOVE:
    _mremap = _external("mremap", types.int64(types.int64, types.int64, types.int64, types.int32))

    @kernel
    def move_pages(address: int, old: int, new: int) -> int:
        """Resize `old` bytes of pages to `new`, moved if they do not fit; returns the address, or 0: refused, nothing changed."""
        at = _mremap(address, old, new, MREMAP_MAYMOVE)
        return int64(0) if at == -1 else at  # type: ignore[no-any-return]  # a C function has no types

else:

    @kernel
    def move_pages(address: int, old: int, new: int) -> int:
        """No such call: the caller copies."""
        return int64(0)  # type: ignore[no-any-return]  # int64 has no type, either
