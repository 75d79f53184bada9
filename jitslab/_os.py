"""
The only file with system calls: address space, thread exit, yielding.

Above `_native`.  On Linux and macOS a cache reserves its range without memory behind it and makes it usable in steps;
elsewhere (`CAN_GROW` false) the whole range is usable from the start, so the default capacity is small there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from ._native import kernel
from .errors import CacheFullError

LINUX = sys.platform.startswith("linux")
POSIX = sys.platform != "win32"
PROT_NONE, PROT_READ, PROT_RW = 0, 1, 3
MAP_PRIVATE, MAP_ANONYMOUS = 2, 0x20 if LINUX else 0x1000
MAP_NORESERVE = 0x4000 if LINUX else 0x40
MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_WIPEONFORK = 4, 5, 14, 15, 18

page_bytes = max(mmap.PAGESIZE, 4096)


def has_symbol(name: str) -> bool:
    """Whether the process has a C function of that name; calling a missing one from compiled code would crash."""
    return POSIX and hasattr(ctypes.CDLL(None), name)


CAN_GROW = has_symbol("mprotect") and has_symbol("madvise")
CAN_WATCH_THREADS = has_symbol("pthread_key_create") and has_symbol("pthread_getspecific")
DEFAULT_LIMIT = 1 << 62 if CAN_GROW else 256 << 20  # most bytes a cache without a capacity reserves


class Reservation:
    """
    A range of address space, page-aligned, without memory behind it unless `usable`.

    NumPy sees it as an array of bytes, ``np.asarray(reservation)``, that keeps it alive.

    Parameters
    ----------
    n : int
        Bytes.
    end : callable, optional
        Called with the address, n and the two numbers of `block` when the last array is gone; without it the range stays.

    Attributes
    ----------
    address : int
        Of its first byte.
    block : tuple of int, int
        Address, of a page, and bytes of what keeps its content at the end: compiled code may still look at it.

    Raises
    ------
    CacheFullError
        If the address space, or its limit (RLIMIT_AS), does not hold it.
    """

    __slots__ = ("_end", "_memory", "_n", "address", "block")

    def __init__(self, n: int, end: Callable[[int, int, int, int], Any] | None = None, *, usable: bool = False) -> None:
        self._memory, self._n = None, n
        try:
            if CAN_GROW:
                self.address = _map(n, PROT_RW if usable else PROT_NONE)
            else:
                self._memory, end = mmap.mmap(-1, n), None
                self.address = int(np.frombuffer(self._memory, np.uint8).ctypes.data)
        except (OSError, OverflowError, ValueError) as error:
            raise CacheFullError(f"cannot reserve {n} bytes of address space: {error}") from error
        self.block = self.address, 0
        self._end = end  # last: from here on there is something to end

    def __del__(self, is_over: Callable[[], bool] = sys.is_finalizing) -> None:
        """Have the range end; not with the interpreter, which other threads may outlive."""
        end = getattr(self, "_end", None)
        if end is not None and not is_over():
            end(self.address, self._n, *self.block)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """As NumPy asks for it: to be written to, though nothing may be usable yet."""
        return {"shape": (self._n,), "typestr": "|u1", "data": (self.address, False), "version": 3}


def _map(n: int, prot: int) -> int:
    """Return the address of n bytes of new pages, without a claim to memory."""
    address = _mmap()(None, n, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(address)


@cache
def _mmap() -> Any:
    """Return the C function."""
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    return function


def limits() -> tuple[int, bool]:
    """Return the bytes of address space that this process may have in all, and whether writable memory is counted and limited."""
    total = 1 << 47 if sys.maxsize > 1 << 32 else 1 << 31
    if not LINUX:
        return total, False
    import resource

    space, data = (resource.getrlimit(what)[0] for what in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return total if space == resource.RLIM_INFINITY else min(space, total), data != resource.RLIM_INFINITY or is_strict()


@cache
def is_strict() -> bool:
    """Whether the system lets nobody have more writable memory than there is (vm.overcommit_memory=2)."""
    with contextlib.suppress(OSError), open("/proc/sys/vm/overcommit_memory") as file:
        return file.read().strip() == "2"
    return False


def address_space_left() -> int:
    """Bytes of address space that this process may still reserve, as far as the system tells."""
    total = limits()[0]
    if not LINUX:
        return total
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * mmap.PAGESIZE
    return max(total - used, 0)


def make_usable(address: int, n: int) -> bool:
    """Make n bytes from a page-aligned address readable and writable; whether the system granted it."""
    return not CAN_GROW or _libc("mprotect")(address, n, PROT_RW) == 0


def make_readable(address: int, n: int) -> bool:
    """Make n bytes from a page-aligned address readable, as zeros without memory behind them; whether granted."""
    return not CAN_GROW or _libc("mprotect")(address, n, PROT_READ) == 0


def drop(address: int, n: int) -> bool:
    """Give back the memory of n bytes from a page-aligned address; whether they read as zeros from now on."""
    return LINUX and n > 0 and _libc("madvise")(address, n, MADV_DONTNEED) == 0


@cache
def _libc(name: str) -> Callable[[int, int, int], int]:
    """Return a C function of an address, a size and an int."""
    function = getattr(ctypes.CDLL(None), name)
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function  # type: ignore[no-any-return]  # ctypes has no types


def wipe_on_fork(address: int, n: int) -> bool:
    """Ask that a child of fork sees these pages as zeros; whether the system can (Linux 4.14)."""
    if not LINUX:
        return False
    return _libc("madvise")(address, n, MADV_WIPEONFORK) == 0


def advise_huge_pages(address: int, n: int) -> None:
    """Ask for huge pages in n bytes from a page-aligned address, where the system knows of such a wish."""
    if LINUX and n > 0:
        _libc("madvise")(address, n, MADV_HUGEPAGE)


def refuse_huge_pages(address: int, n: int) -> None:
    """Ask for no huge pages in n bytes from a page-aligned address, whatever the system's default is."""
    if LINUX:
        _libc("madvise")(address, n, MADV_NOHUGEPAGE)


# --- NUMA: the system calls of mbind(2), get_mempolicy(2) and move_pages(2), which the C library does not have ---

MPOL_DEFAULT, MPOL_PREFERRED, MPOL_BIND, MPOL_INTERLEAVE = range(4)
_CALLS = {"x86_64": (237, 279), "aarch64": (235, 239)}.get(platform.machine(), ()) if LINUX else ()
MBIND = _CALLS[0] if _CALLS else -1
MASK_BITS = 1024  # nodes that a mask names; Linux knows up to so many


def node_mask(nodes: tuple[int, ...]) -> bytes:
    """Return one bit a node, as the system takes it."""
    return sum(1 << node for node in nodes).to_bytes(MASK_BITS // 8, "little")


def bind_memory(address: int, n: int, mode: int, nodes: tuple[int, ...]) -> int:
    """Say on which nodes the pages of n bytes from a page-aligned address shall lie; 0, or the errno of the refusal."""
    if not _CALLS:
        return errno.ENOSYS
    mask = node_mask(nodes)
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    long, size = ctypes.c_long, ctypes.c_ulong
    place, bits = (ctypes.c_void_p(address), size(n)), (ctypes.c_char_p(mask), size(MASK_BITS + 1))
    answer = syscall(long(MBIND), *place, long(mode), *bits, long(0))
    return ctypes.get_errno() if answer != 0 else 0


def nodes_of_pages(address: int, n: int) -> npt.NDArray[np.int32]:
    """Node of each page of n bytes from a page-aligned address; negative: no memory there, or not known."""
    count = -(-n // mmap.PAGESIZE)
    status = np.full(count, -errno.ENOSYS, np.int32)
    if _CALLS and count:
        pages = address + np.arange(count, dtype=np.uint64) * np.uint64(mmap.PAGESIZE)
        syscall = ctypes.CDLL(None, use_errno=True).syscall
        pointer, long = ctypes.c_void_p, ctypes.c_long
        syscall(long(_CALLS[1]), long(0), long(count), pointer(pages.ctypes.data), None, pointer(status.ctypes.data), long(0))
    return status


def make_thread_exit_key(destructor: int) -> int:
    """Return a key whose C destructor gets the key's value at the end of each thread that has set one; -1: cannot."""
    if not CAN_WATCH_THREADS:
        return -1
    create = ctypes.CDLL(None).pthread_key_create
    create.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    key = (ctypes.c_uint if LINUX else ctypes.c_ulong)()
    return int(key.value) if create(ctypes.byref(key), destructor) == 0 else -1


def drop_thread_exit_key(key: int) -> None:
    """Delete the key: threads that end from now on call no destructor."""
    delete = ctypes.CDLL(None).pthread_key_delete
    delete.argtypes = [ctypes.c_uint if LINUX else ctypes.c_ulong]
    delete(key)


# --- From kernels ---


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
    def give_back(address: int, n: int) -> None:
        """Give back the memory of n bytes, whole pages both; they read as zeros or as before."""
        _madvise(address, n, _advice)

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
    def give_back(address: int, n: int) -> None:
        """Nothing can be given back."""

    @kernel
    def prefer_huge_pages(address: int, n: int) -> None:
        """No such wish is known."""


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
    _pthread_setspecific = _external("pthread_setspecific", types.int32(_key_type, types.int64))

    @kernel
    def watch_thread_exit(key: int, value: int) -> None:
        """Have the key's destructor called with `value` when the calling thread ends."""
        _pthread_setspecific(key, value)

else:

    @kernel
    def watch_thread_exit(key: int, value: int) -> None:
        """No such notice: the heaps of ended threads are adopted by later ones, or stay."""
