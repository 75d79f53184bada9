"""
Locks between processes: one writer of a pool, and which commits its readers see.

The writer locks a file with its name in it.  A reader of commit number n holds a lock on byte n + 1 of another file; byte 0
stands for a reader that is being opened.  The writer may change the data files when no reader is behind its last commit: for that
it locks all bytes up to that commit.  Locks belong to an open file: the end of a process, however it comes, ends them.

Where ranges of a file cannot be locked so (all but Linux), a reader locks the whole file, and a checkpoint waits for its end.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from typing import Any

from ..errors import PoolBusyError
from . import calls

if sys.platform != "win32":
    import fcntl

FLOCK = struct.Struct("hhxxxxqqixxxx")  # struct flock of Linux on 64 bits: type, whence, start, length, process
HAS_RANGES = sys.platform.startswith("linux")
MOST_HOLDER = 4096  # bytes that are read of the holder's name
MOST_PROGRAM = 1000  # characters of a command line
SHARED, ALONE, NOT_AT_ALL = "shared", "alone", "not at all"


class Lock:
    """A file that is locked until it is closed."""

    def __init__(self, file: int) -> None:
        self.file = file

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        file, self.file = self.file, -1
        if file >= 0:
            calls.close(file)


class WriterLock(Lock):
    """The lock of the one writer, with a line in its file that says which program holds it."""

    def take(self, path: str) -> None:
        """Take the lock, or raise with the name of its holder."""
        if not calls.lock(self.file):
            raise PoolBusyError(
                f"{path} is open to write, by {holder_line(self.file)[1]}; with mode 'r' it can be read meanwhile"
            )
        line = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "program": " ".join(sys.argv)[:MOST_PROGRAM]})
        size = calls.size_of(self.file)
        if size > MOST_HOLDER:  # no writer made it so long
            calls.truncate(self.file, size := 0)
        calls.write_at(self.file, line.encode("ascii").ljust(size) + b"\n", 0)


def holder_line(file: int) -> tuple[Any, str]:
    """Return the number and the name of the process that took the writer's lock last, as far as its line can be read."""
    try:
        line = json.loads(calls.read_at(file, MOST_HOLDER, 0))
        pid, host, program = (line[name] for name in ("pid", "host", "program"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, "a process that has not written its name yet"
    where = "this process" if pid == os.getpid() and host == socket.gethostname() else f"process {pid} on {host}"
    return pid, "".join(c if c.isprintable() else "?" for c in f"{where} ({program})")


def holder_of(file: int) -> str | None:
    """
    Return the name of the process that holds the writer's lock; None: nobody does.

    The lock is not tried: a writer that came meanwhile would be refused.  Linux lists all locks; elsewhere the last holder is
    named.
    """
    pid, name = holder_line(file)
    device, inode = calls.identity_of(file)
    places = f"{os.major(device):02x}:{os.minor(device):02x}", str(pid)
    try:
        with open("/proc/locks", encoding="ascii") as lines:
            found = (line.split() for line in lines if f":{inode} " in line)
            return name if any(is_lock(fields, places) for fields in found) else None
    except OSError:
        return name if calls.size_of(file) else None


def is_lock(fields: list[str], places: tuple[str, str]) -> bool:
    """Whether a line of Linux's list is of a whole file, on a device or, where that has another number there, of a process."""
    return len(fields) > 5 and fields[1] == "FLOCK" and (fields[5].startswith(places[0]) or fields[4] == places[1])


class ReaderLock(Lock):
    """A reader's lock, on the number of the commit that it sees; or the writer's view of all of them."""

    def __init__(self, file: int) -> None:
        super().__init__(file)
        self._held = 0  # the byte that is locked

    def begin(self) -> None:
        """Lock before the journal is read from its start, and wait while a checkpoint runs."""
        self._lock(SHARED, 0, wait=True)
        if self._held:
            self._lock(NOT_AT_ALL, self._held)
        self._held = 0

    def move(self, number: int) -> None:
        """See another commit: its byte is locked before the old one is released."""
        byte = number + 1
        if HAS_RANGES and byte != self._held:
            self._lock(SHARED, byte, wait=True)
            self._lock(NOT_AT_ALL, self._held)
        self._held = byte

    def exclude(self, number: int) -> bool:
        """Lock out readers of commits before a number, and new ones; returns False, with nothing locked, if there is one."""
        return self._lock(ALONE, 0, number + 1)

    def admit(self, number: int) -> None:
        """Let readers in again, whether they were locked out or not."""
        try:
            self._lock(NOT_AT_ALL, 0, number + 1)
        except BaseException:  # Ctrl-C in it, say: readers that are being opened would wait for ever
            self._lock(NOT_AT_ALL, 0, number + 1)
            raise

    def _lock(self, how: str, start: int, n: int = 1, wait: bool = False) -> bool:
        """Lock or unlock some bytes, or the whole file where bytes cannot be; whether that was granted."""
        if HAS_RANGES:
            kind = {SHARED: fcntl.F_RDLCK, ALONE: fcntl.F_WRLCK, NOT_AT_ALL: fcntl.F_UNLCK}[how]
            return calls.lock_range(self.file, FLOCK.pack(kind, os.SEEK_SET, start, n, 0), wait=wait)
        if how == NOT_AT_ALL:
            calls.unlock(self.file)
            return True
        return calls.lock(self.file, shared=how == SHARED, wait=wait)
