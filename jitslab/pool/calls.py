"""
Every system call on the files of a pool.

All go through `system`, which tests replace by one that records the calls, or lets one of them fail.  A file is its descriptor.
Files are opened by name within a folder that is open, never through a symbolic link, and only if they are regular files.
Reads and writes go on until all is done.  Errors are those of the system (OSError); `pool_error` makes errors of pools of them.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import CorruptPoolError, PoolError, PoolFailedError, PoolFullError, PoolPathError
from ..machine.addresses import punch_hole

if sys.platform != "win32":
    import fcntl

Bytes = Any  # an object with a buffer of contiguous bytes
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} if sys.platform != "win32" else {errno.ENOSPC, errno.EFBIG}
PATHS = {  # errors of the path that the user gave
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
}
MOST_PIECES = 1024  # of one call of pwritev
PIECE_BYTES = 1 << 30  # of one call: Linux itself ends a call before 2 GiB


class System:
    """The functions of `os`, and those that it has on some systems only, or nowhere."""

    def __getattr__(self, name: str) -> Any:
        """Return a function of `os`."""
        return getattr(os, name)

    def fdatasync(self, file: int) -> None:
        """Write a file's data, and what is needed to read them, to the medium."""
        if sys.platform == "darwin":
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # fsync leaves the data in the drive's cache there
        else:
            os.fdatasync(file)

    def flock(self, file: int, operation: int) -> None:
        """Take or drop a lock."""
        fcntl.flock(file, operation)  # type: ignore[attr-defined,unused-ignore]  # Windows has none

    def fcntl(self, file: int, command: int, argument: bytes) -> Any:
        """Do what a command says."""
        return fcntl.fcntl(file, command, argument)  # type: ignore[attr-defined,unused-ignore]  # Windows has none

    def punch(self, file: int, at: int, n: int) -> bool:
        """Give the space of n bytes of a file back: they read as zeros; whether the file system did it."""
        return punch_hole(file, at, n)


system: Any = System()


# --- Opening ---


def open_folder(path: str) -> int:
    """Open a folder, which is no symbolic link."""
    return int(system.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))


def open_file(folder: int, name: str, *, write: bool = False, create: bool = False) -> int:
    """
    Open a file of a folder; with `create` a new one.

    Raises
    ------
    CorruptPoolError
        If it is no regular file.
    OSError
        If the system refuses; with `create` also if there is one already.
    """
    flags = os.O_RDWR if write or create else os.O_RDONLY
    flags |= os.O_CREAT | os.O_EXCL if create else 0
    try:  # O_NONBLOCK: the other end of a FIFO is not waited for
        file = int(system.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=folder))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise CorruptPoolError(f"{name} of the pool is no regular file: {error.strerror}") from error
        raise
    try:
        if not stat.S_ISREG(system.fstat(file).st_mode):
            raise CorruptPoolError(f"{name} of the pool is no regular file")
    except BaseException:
        system.close(file)
        raise
    return file


def close(file: int) -> None:
    """Close a file or a folder."""
    system.close(file)


def make_folder(path: str) -> None:
    """Make a folder that only its owner may enter."""
    system.mkdir(path, 0o700)


def names_in(folder: int) -> list[str]:
    """Return the names in a folder, sorted."""
    return sorted(system.listdir(folder))


# --- Reading and writing ---


def size_of(file: int) -> int:
    """Return the length of a file."""
    return int(system.fstat(file).st_size)


def disk_bytes(file: int) -> int:
    """Return the space on the medium that a file takes."""
    return int(system.fstat(file).st_blocks) * 512  # of this size on every system


def disk_bytes_of(folder: int, name: str) -> int:
    """Return the space on the medium that a file of a folder takes; 0 if there is none."""
    try:
        return int(system.stat(name, dir_fd=folder, follow_symlinks=False).st_blocks) * 512
    except FileNotFoundError:
        return 0


def block_bytes(file: int) -> int:
    """Return the unit of space of the file system that a file is on."""
    return int(system.fstatvfs(file).f_frsize)


def identity_of(file: int) -> tuple[int, int]:
    """Return the numbers of the device that a file is on, and of the file there."""
    state = system.fstat(file)
    return int(state.st_dev), int(state.st_ino)


def has_holes(file: int, n: int) -> bool:
    """Whether some of the first n bytes of a file have no space on the medium, so that a store to them may find it full."""
    return int(system.lseek(file, 0, os.SEEK_HOLE)) < n


def data_ranges(file: int, end: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file from one offset to another that have space on the medium: the others read as zeros."""
    at, end = start, min(end, size_of(file))
    while at < end:
        try:
            at = int(system.lseek(file, at, os.SEEK_DATA))
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data
                return
            raise
        stop = min(int(system.lseek(file, at, os.SEEK_HOLE)), end)
        if at < stop:
            yield at, stop
        at = stop if at < stop else end


def read_into(file: int, buffer: Bytes, at: int) -> int:
    """Read from a place in a file until the buffer is full or the file ends; returns how many bytes were read."""
    view, done = memoryview(buffer).cast("B"), 0
    while done < len(view):
        n = system.preadv(file, [view[done : done + PIECE_BYTES]], at + done)
        if n == 0:
            break
        done += n
    return done


def read_at(file: int, n: int, at: int) -> bytes:
    """Return n bytes from a place in a file; fewer if it ends before."""
    parts = []
    while n > 0:
        part = system.pread(file, min(n, PIECE_BYTES), at)
        if not part:
            break
        parts.append(part)
        at, n = at + len(part), n - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_at(file: int, data: Bytes, at: int) -> None:
    """Write all bytes to a place in a file."""
    view = memoryview(data).cast("B")
    while len(view):
        n = system.pwrite(file, view[:PIECE_BYTES], at)
        if n == len(view):
            return
        at, view = at + n, view[n:]


def write_many_at(file: int, pieces: Sequence[Bytes], at: int) -> None:
    """Write pieces one behind the other to a place in a file."""
    left = [memoryview(piece).cast("B") for piece in pieces if memoryview(piece).nbytes]
    first = 0
    while first < len(left):
        n = system.pwritev(file, left[first : first + MOST_PIECES], at)
        at += n
        while first < len(left) and n >= len(left[first]):
            n -= len(left[first])
            first += 1
        if n:
            left[first] = left[first][n:]


def lengthen(file: int, n: int) -> None:
    """Make a file n bytes long, by a hole that reads as zeros; a longer one stays."""
    if size_of(file) < n:
        system.ftruncate(file, n)


def truncate(file: int, n: int) -> None:
    """Make a file n bytes long: what is behind is gone."""
    system.ftruncate(file, n)


def punch(file: int, at: int, n: int) -> bool:
    """Give the space of n bytes of a file back, if the file system can: they read as zeros; whether it did."""
    return bool(system.punch(file, at, n))


# --- Lasting ---


class SyncError(OSError):
    """A sync failed; it must not be tried again: the system forgot the data, and would say nothing."""


def sync(file: int) -> None:
    """Write a file's data, and its length, to the medium; raises SyncError."""
    try:
        system.fdatasync(file)
    except OSError as error:
        raise SyncError(error.errno, error.strerror) from error


def sync_folder(folder: int) -> None:
    """Write the names in a folder to the medium; raises SyncError."""
    try:
        system.fsync(folder)
    except OSError as error:
        raise SyncError(error.errno, error.strerror) from error


def rename(folder: int, old: str, new: str) -> None:
    """Give a file of a folder another name, in place of the file that had it: at any instant there is one of the two."""
    system.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)


def unlink(folder: int, name: str) -> None:
    """Remove a file of a folder."""
    system.unlink(name, dir_fd=folder)


# --- Locks: of the open file, so a process that ends drops them ---


def lock(file: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Take the lock of a file, alone or with others; whether it was free, or became free while this waited."""
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        system.flock(file, operation)
    except BlockingIOError:
        return False
    return True


def unlock(file: int) -> None:
    """Drop the lock of a file."""
    system.flock(file, fcntl.LOCK_UN)


def lock_range(file: int, wanted: bytes, *, wait: bool = False) -> bool:
    """Lock or unlock a range of a file, by a `struct flock`, for the open file; whether that was granted.  Linux only."""
    try:
        system.fcntl(file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, wanted)
    except (BlockingIOError, PermissionError):
        return False
    return True


# --- Errors ---


def pool_error(error: OSError, doing: str) -> PoolError:
    """
    Return the error of pools for one of the system.

    Examples
    --------
    >>> pool_error(OSError(28, "No space left on device"), "writing the journal")
    PoolFullError('writing the journal: no space left on device; free some, and commit again')
    """
    reason = (error.strerror or str(error)).lower()
    if isinstance(error, SyncError):
        return PoolFailedError(f"{doing}: a sync failed: {reason}; open the pool again")
    if error.errno in FULL:
        return PoolFullError(f"{doing}: {reason}; free some, and commit again")
    if error.errno in PATHS:
        return PoolPathError(f"{doing}: {reason}")
    return PoolError(f"{doing}: {reason}")
