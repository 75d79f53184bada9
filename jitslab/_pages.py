"""
Whole pages straight from the system, for what is larger than any size class: map, unmap, move.

Above `_native` and `_os`, below `raw`.  Where the system has no such calls, the C library's own memory serves.
"""

from __future__ import annotations

from typing import Any

from numba import types

from ._native import int64, kernel, load8, store8
from ._os import (
    LINUX,
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MASK_BITS,
    MBIND,
    PROT_NONE,
    PROT_READ,
    PROT_RW,
    give_back,
    has_symbol,
    page_bytes,
)

_external: Any = types.ExternalFunction
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
