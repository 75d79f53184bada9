"""
The address space of this process and the limits that the system sets, for Python.

On Linux and macOS a range is reserved without memory behind it and made usable in steps; elsewhere (`CAN_GROW` false) the
whole range is usable from the start, so the default capacity is small there.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import platform
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CacheFullError

LINUX = sys.platform.startswith("linux")
if LINUX:
    import resource
POSIX = sys.platform != "win32"
PROT_NONE, PROT_READ, PROT_RW = 0, 1, 3
MAP_PRIVATE, MAP_ANONYMOUS = 2, 0x20 if LINUX else 0x1000
MAP_NORESERVE = 0x4000 if LINUX else 0x40
MAP_FIXED = 0x10
MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 4, 5, 14, 15

mapped_page_bytes = mmap.PAGESIZE
page_bytes = max(mapped_page_bytes, 4096)


def round_up(n: int, to: int) -> int:
    """Return the least multiple of `to` that is not below `n`."""
    return -(-n // to) * to


def has_symbol(name: str) -> bool:
    """Whether the process has a C function; compiled code that calls a missing one crashes."""
    return POSIX and hasattr(ctypes.CDLL(None), name)


CAN_GROW = has_symbol("mprotect") and has_symbol("madvise")
CAN_WATCH_THREADS = has_symbol("pthread_key_create") and has_symbol("pthread_getspecific")
DEFAULT_LIMIT = 1 << 62 if CAN_GROW else 256 << 20  # most bytes a cache without a capacity reserves


CODE_BYTES = 32 << 20  # compiling the largest kernel takes 15 MiB, loading it 1
CODE_MAPPINGS = 16


def map_range(n: int, *, usable: bool = False) -> tuple[int, Any]:
    """
    Reserve n bytes of address space, page-aligned, without memory behind it unless `usable`.

    Returns its address, and an object: the range is unmapped when that object ends.

    Raises
    ------
    CacheFullError
        If the address space, or its limit (RLIMIT_AS), does not hold it.
    """
    try:
        if CAN_GROW:
            prot = PROT_RW if usable else PROT_NONE
            memory = mmap.mmap(-1, n, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, prot=prot)
        else:
            memory = mmap.mmap(-1, n)
    except (OSError, OverflowError, ValueError) as error:
        raise CacheFullError(f"cannot reserve {n} bytes of address space{limit_text()}: {error}") from error
    return int(np.frombuffer(memory, np.uint8).ctypes.data), memory


def need_room_for_code() -> None:
    """
    Raise if the system has no memory, or no mappings, for one more kernel: LLVM would end the process.

    Raises
    ------
    CacheFullError
        If the system refuses CODE_BYTES.
    """
    if not CAN_GROW:
        return
    try:
        address, memory = map_range(CODE_BYTES, usable=True)
    except CacheFullError as error:
        raise CacheFullError(f"the system gives no memory to load machine code: {error}") from error
    step = 2 * page_bytes
    has_room = all(make_readable(address + k * step, page_bytes) for k in range(CODE_MAPPINGS // 2))
    make_usable(address, CODE_BYTES)  # one mapping again: at the limit the system does not unmap parts
    del memory
    if not has_room:
        raise CacheFullError("the system gives no mappings to load machine code: the process has as many as it may")


def address_limit() -> int:
    """Return RLIMIT_AS, the most bytes of address space of this process; -1: there is no such limit."""
    if not LINUX:
        return -1
    return resource.getrlimit(resource.RLIMIT_AS)[0]


def limit_text() -> str:
    """Return the end of messages about refused addresses: RLIMIT_AS, if it is set."""
    limit = address_limit()
    return "" if limit == -1 else f" (RLIMIT_AS, ulimit -v, allows {limit} bytes of address space)"


def address_space(address: int) -> int:
    """Return the bytes of address space of a process, judged by where a new reservation and the C library lie."""
    library = ctypes.cast(ctypes.CDLL(None).mmap, ctypes.c_void_p).value if POSIX else None
    return 1 << max(address, library or 0).bit_length()


def most_mappings() -> int:
    """Return how many mappings a process can have; outside Linux a number that none reaches."""
    if not LINUX:
        return 1 << 30
    try:
        with open("/proc/sys/vm/max_map_count") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 65_530


def counts_usable() -> bool:
    """Whether the system counts usable pages as memory of this process, touched or not: by RLIMIT_DATA, or for all processes."""
    if not LINUX:
        return False
    return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY or _is_strict()


@cache
def _is_strict() -> bool:
    """Whether all usable memory must exist: vm.overcommit_memory is 2."""
    try:
        with open("/proc/sys/vm/overcommit_memory") as file:
            return file.read().strip() == "2"
    except OSError:
        return False


def make_usable(address: int, n: int) -> bool:
    """Make n bytes from a page-aligned address readable and writable; whether the system granted it."""
    return not CAN_GROW or _libc("mprotect")(address, n, PROT_RW) == 0


def make_readable(address: int, n: int) -> bool:
    """Make n bytes from a page-aligned address readable, as zeros without memory behind them; whether granted."""
    return not CAN_GROW or _libc("mprotect")(address, n, PROT_READ) == 0


@cache
def _libc(name: str) -> Callable[[int, int, int], int]:
    """Return a C function of an address, a size and an int."""
    function = getattr(ctypes.CDLL(None), name)
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function  # type: ignore[no-any-return]  # ctypes has no types


def map_file(address: int, n: int, file: int, prot: int) -> int:
    """
    Map the first n bytes of a file over n bytes of pages: private, so that stores stay in memory.

    Returns 0, or the errno of the refusal.
    """
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    flags = MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED
    return 0 if function(address, n, prot, flags, file, 0) == address else ctypes.get_errno()


def advise_huge_pages(address: int, n: int) -> None:
    """Ask for huge pages in n bytes from a page-aligned address; only Linux has them."""
    if LINUX and n > 0:
        _libc("madvise")(address, n, MADV_HUGEPAGE)


def refuse_huge_pages(address: int, n: int) -> None:
    """Ask for no huge pages in n bytes from a page-aligned address, whatever the system's default is."""
    if LINUX:
        _libc("madvise")(address, n, MADV_NOHUGEPAGE)


# --- Files ---

MAP_SHARED, MAP_SHARED_VALIDATE, MAP_SYNC = 1, 3, 0x80000
PUNCH = 1 | 2  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE


def map_shared(file: int, n: int, *, is_synced: bool) -> tuple[int, Any]:
    """
    Map the first n bytes of a file: stores go to the file.  Returns the address, and an object: it ends with the mapping.

    With `is_synced` the file system promises that a store lasts once its line is flushed from the CPU's caches.

    Raises
    ------
    OSError
        If the file system does not promise that, or cannot map.
    """
    flags = MAP_SHARED_VALIDATE | MAP_SYNC if is_synced else MAP_SHARED
    memory = mmap.mmap(file, n, flags=flags, prot=PROT_RW)
    return int(np.frombuffer(memory, np.uint8).ctypes.data), memory


def columns_of(file: int, start: int, end: int, step: int, width: int) -> npt.NDArray[np.uint8]:
    """
    Return a copy of the first `width` bytes of each `step` bytes of a file from `start` to `end`, a row for each whole step.

    The file is mapped for that, which costs a twentieth of reading all of it.  It must be that long.

    Raises
    ------
    OSError
        If the system cannot map it.
    """
    skipped = start % mmap.ALLOCATIONGRANULARITY
    with mmap.mmap(file, end - start + skipped, access=mmap.ACCESS_READ, offset=start - skipped) as memory:
        part = np.frombuffer(memory, np.uint8)[skipped:]
        columns = part[: len(part) // step * step].reshape(-1, step)[:, :width].copy()
        del part  # a mapping that an array is of is not closed
        return columns


def punch_hole(file: int, at: int, n: int) -> bool:
    """Give the space of n bytes of a file back: they read as zeros; whether the system did it."""
    if not LINUX:
        return False
    fallocate = ctypes.CDLL(None).fallocate
    return bool(fallocate(ctypes.c_int(file), ctypes.c_int(PUNCH), ctypes.c_int64(at), ctypes.c_int64(n)) == 0)


STATX_EMPTY_PATH, STATX_BYTES, STATX_DAX = 0x1000, 256, 0x200000  # AT_EMPTY_PATH; of a struct statx; STATX_ATTR_DAX


def is_on_dax(file: int) -> bool:
    """Whether a file is on persistent memory that is mapped without a page cache, as far as the system says it."""
    if not LINUX or not has_symbol("statx"):
        return False
    answer = np.zeros(STATX_BYTES, np.uint8)
    empty, at = ctypes.c_char_p(b""), ctypes.c_void_p(answer.ctypes.data)
    status = ctypes.CDLL(None).statx(ctypes.c_int(file), empty, ctypes.c_int(STATX_EMPTY_PATH), ctypes.c_uint(0), at)
    return bool(status == 0 and int(answer.view(np.uint64)[1]) & STATX_DAX)  # stx_attributes


# --- NUMA: the system calls of mbind(2), get_mempolicy(2) and move_pages(2), which the C library does not have ---

MPOL_DEFAULT, MPOL_PREFERRED, MPOL_BIND, MPOL_INTERLEAVE = range(4)
_CALLS = {"x86_64": (237, 279), "aarch64": (235, 239)}.get(platform.machine(), ()) if LINUX else ()
MBIND = _CALLS[0] if _CALLS else -1
MASK_BITS = 1024  # nodes in a mask: the most that Linux has


def node_mask(nodes: tuple[int, ...]) -> bytes:
    """Return a mask for the system: one bit a node."""
    return sum(1 << node for node in nodes).to_bytes(MASK_BITS // 8, "little")


def bind_memory(address: int, n: int, mode: int, nodes: tuple[int, ...]) -> int:
    """Place the pages of n bytes from a page-aligned address on some nodes; returns 0, or the errno of the refusal."""
    if not _CALLS:
        return errno.ENOSYS
    mask = node_mask(nodes)
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    long, size = ctypes.c_long, ctypes.c_ulong
    place, bits = (ctypes.c_void_p(address), size(n)), (ctypes.c_char_p(mask), size(MASK_BITS + 1))
    answer = syscall(long(MBIND), *place, long(mode), *bits, long(0))
    return ctypes.get_errno() if answer != 0 else 0


def nodes_of_pages(address: int, n: int) -> npt.NDArray[np.int32]:
    """Return the node of each page of n bytes from a page-aligned address; negative: the page has no memory, or is not known."""
    count = -(-n // mmap.PAGESIZE)
    status = np.full(count, -errno.ENOSYS, np.int32)
    if _CALLS and count:
        pages = address + np.arange(count, dtype=np.uint64) * np.uint64(mmap.PAGESIZE)
        syscall = ctypes.CDLL(None, use_errno=True).syscall
        pointer, long = ctypes.c_void_p, ctypes.c_long
        syscall(long(_CALLS[1]), long(0), long(count), pointer(pages.ctypes.data), None, pointer(status.ctypes.data), long(0))
    return status


def drop_thread_exit_key(key: int) -> None:
    """Delete a key: threads that end from now on call no destructor."""
    delete = ctypes.CDLL(None).pthread_key_delete
    delete.argtypes = [ctypes.c_uint if LINUX else ctypes.c_ulong]
    delete(key)
