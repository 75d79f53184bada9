"""
What keeps records on a disk or in persistent memory beside a pool: LMDB, SQLite and PMDK's libpmemobj, each asked for the same.

Below `bench_pool`, which has the pool itself.  Records are numbered in the order in which they came, and hold their numbers until
an update gives them other values.  What a store is given is put into the form that it takes before the clock starts.  Each store
is set up to be as fast as its promise allows: new keys are appended, caches hold all records, PMDK's records have no headers.
LMDB and SQLite keep an index that is sorted by key, which neither PMDK nor a pool has.
"""

from __future__ import annotations

import mmap
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from measure import RECORD, SkippedError, WrongAnswerError
from peers import native

DISK = "JITSLAB_BENCH_DISK"  # the variable that names a folder on the disk that is measured
MEMORY = Path("/dev/shm")  # files that are memory: what stands in for persistent memory
MOUNTS = Path("/proc/mounts")
KEY = np.dtype(">u8")  # of LMDB: sorted as bytes, as numbers
FORCED = {"PMEM_IS_PMEM_FORCE": "1"}  # PMDK flushes lines of the CPU's cache, whatever the file is
MAP_BYTES = 8 << 30  # of LMDB: addresses, not memory
CACHE_KIB = 512 << 10  # of SQLite: all pages of a million records
LOADED = 1_000  # records of a transaction of PMDK, where many are loaded


class Store:
    """A store that is open; times are in seconds."""

    count = 0  # of its records

    def insert(self, n: int, turns: int = 1) -> float:
        """Add records by so many commits of n each; returns what the commits took."""
        raise NotImplementedError

    def remove(self, n: int) -> None:
        """Remove the newest records, and commit."""
        raise NotImplementedError

    def update(self, numbers: Any, values: Any) -> float:
        """Give records other values by one commit; returns what it took."""
        raise NotImplementedError

    def values(self, numbers: Any) -> list[int]:
        """Return what records hold."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it; what was committed stays."""
        raise NotImplementedError


class Embedded(Store):
    """A store in this process, which says how it commits what was prepared for it."""

    path: Path  # of its file, or of its folder

    def prepared(self, numbers: Any, values: Any) -> Any:
        """Return records as the store takes them."""
        raise NotImplementedError

    def commit_new(self, batch: Any) -> None:
        """Add what was prepared, and commit."""
        raise NotImplementedError

    def commit_changed(self, batch: Any) -> None:
        """Change records to what was prepared, and commit."""
        raise NotImplementedError

    def insert(self, n: int, turns: int = 1) -> float:
        """Add records by so many commits of n each; returns what the commits took."""
        batches = []
        for first in range(self.count, self.count + n * turns, n):
            numbers = np.arange(first, first + n)
            batches.append(self.prepared(numbers, numbers))
        start = time.perf_counter()
        for batch in batches:
            self.commit_new(batch)
        taken = time.perf_counter() - start
        self.count += n * turns
        return taken

    def update(self, numbers: Any, values: Any) -> float:
        """Give records other values by one commit; returns what it took."""
        batch = self.prepared(numbers, values)
        start = time.perf_counter()
        self.commit_changed(batch)
        return time.perf_counter() - start


def records_of(values: Any) -> Any:
    """Return records that hold values."""
    records = np.zeros(len(values), RECORD)
    records["x"] = values
    return records


def pieces(array: Any) -> list[bytes]:
    """Return the bytes of each element."""
    data, size = array.tobytes(), array.dtype.itemsize
    return [data[at : at + size] for at in range(0, len(data), size)]


def value_of(record: bytes) -> int:
    """Return what a record holds."""
    return int.from_bytes(record[:8], "little", signed=True)


class Lmdb(Embedded):
    """
    LMDB: a tree sorted by key, its file mapped; with `is_mapped` written by stores, too.

    Its main table, which takes no integer keys: a named one costs each commit a page more.
    """

    def __init__(self, folder: Path, *, sync: bool = True, is_mapped: bool = False) -> None:
        try:
            import lmdb  # an extra
        except ImportError:
            raise SkippedError("not installed: pip install lmdb") from None
        self.path = folder / "lmdb"
        self.env = lmdb.open(str(self.path), map_size=MAP_BYTES, sync=sync, metasync=sync, writemap=is_mapped)
        self.count = self.env.stat()["entries"]

    def prepared(self, numbers: Any, values: Any) -> Any:
        """Return (key, record) of each."""
        return list(zip(pieces(np.asarray(numbers, KEY)), pieces(records_of(values)), strict=True))

    def commit_new(self, batch: Any) -> None:
        """Append in one transaction."""
        with self.env.begin(write=True) as transaction:
            transaction.cursor().putmulti(batch, append=True)

    def commit_changed(self, batch: Any) -> None:
        """Overwrite in one transaction."""
        with self.env.begin(write=True) as transaction:
            transaction.cursor().putmulti(batch)

    def remove(self, n: int) -> None:
        """Delete the newest."""
        with self.env.begin(write=True) as transaction:
            for key in pieces(np.arange(self.count - n, self.count, dtype=KEY)):
                transaction.delete(key)
        self.count -= n

    def values(self, numbers: Any) -> list[int]:
        """Look records up."""
        with self.env.begin() as transaction:
            return [value_of(transaction.get(key)) for key in pieces(np.asarray(numbers, KEY))]

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


class Sqlite(Embedded):
    """SQLite with a write-ahead log: FULL syncs it at every commit, NORMAL before a checkpoint only."""

    def __init__(self, folder: Path, *, synchronous: str = "FULL") -> None:
        self.path = folder / "sqlite"
        self.base = sqlite3.connect(str(self.path), isolation_level=None)
        mode = self.base.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        self.base.execute(f"PRAGMA synchronous = {synchronous}")
        self.base.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self.base.execute("CREATE TABLE IF NOT EXISTS records (number INTEGER PRIMARY KEY, record BLOB NOT NULL)")
        if mode != "wal":
            raise WrongAnswerError(f"SQLite has journal mode {mode}")
        self.count = self.base.execute("SELECT count(*) FROM records").fetchone()[0]

    def prepared(self, numbers: Any, values: Any) -> Any:
        """Return (record, number) of each."""
        return list(zip(pieces(records_of(values)), np.asarray(numbers).tolist(), strict=True))

    def _commit(self, statement: str, batch: Any) -> None:
        self.base.execute("BEGIN IMMEDIATE")
        self.base.executemany(statement, batch)
        self.base.execute("COMMIT")

    def commit_new(self, batch: Any) -> None:
        """Insert in one transaction."""
        self._commit("INSERT INTO records (record, number) VALUES (?, ?)", batch)

    def commit_changed(self, batch: Any) -> None:
        """Update in one transaction."""
        self._commit("UPDATE records SET record = ? WHERE number = ?", batch)

    def remove(self, n: int) -> None:
        """Delete the newest."""
        self._commit("DELETE FROM records WHERE number >= ?", [(self.count - n,)])
        self.count -= n

    def values(self, numbers: Any) -> list[int]:
        """Look records up."""
        find = "SELECT record FROM records WHERE number = ?"
        return [value_of(self.base.execute(find, (number,)).fetchone()[0]) for number in np.asarray(numbers).tolist()]

    def close(self) -> None:
        """Close the connection."""
        self.base.close()


class Pmemobj(Store):
    """
    PMDK's libpmemobj in a program of C, which takes its times itself.

    On a disk every step of a transaction is synced by `msync`.  With `is_flushed`, lines are flushed from the CPU's caches, as
    persistent memory wants it, whatever the file is.
    """

    def __init__(self, folder: Path, mib: int, *, is_flushed: bool) -> None:
        environment = FORCED if is_flushed else {"PMEM_IS_PMEM_FORCE": "0"}
        self.peer = native.Peer(native.pmemobj(), folder / "pmemobj", mib, **environment)
        self.count, flushes = self.peer.ask("count")
        if flushes != is_flushed:
            self.peer.close()
            raise WrongAnswerError("PMDK flushes lines" if flushes else "PMDK calls msync")

    def insert(self, n: int, turns: int = 1) -> float:
        """Add records; more than some by transactions of a thousand, as an undo log of all would not be had."""
        if n > LOADED:
            n, turns = LOADED, n * turns // LOADED
        (taken,) = self.peer.ask("insert", n, turns)
        self.count += n * turns
        return taken / 1e9

    def remove(self, n: int) -> None:
        """Free the newest, a transaction a thousand."""
        for at in range(0, n, LOADED):
            (self.count,) = self.peer.ask("remove", min(LOADED, n - at))

    def update(self, numbers: Any, values: Any) -> float:
        """Write records in one transaction."""
        pairs = np.stack([numbers, values], axis=1).ravel().tolist()
        return self.peer.ask("update", len(numbers), *pairs)[0] / 1e9

    def values(self, numbers: Any) -> list[int]:
        """Read records."""
        return self.peer.ask("values", len(numbers), *np.asarray(numbers).tolist())

    def pair(self, n: int) -> float:
        """Alloc and free one record so often, each atomic by itself; returns what it took."""
        return self.peer.ask("pair", n)[0] / 1e9

    def close(self) -> None:
        """End the program."""
        self.peer.close()
        if self.peer.process.returncode != 0:
            raise WrongAnswerError(f"the program ended with {self.peer.process.returncode}")


class Log(Embedded):
    """The floor: the records' bytes in whole blocks, written over what was there, and one fdatasync if it is synced."""

    BLOCK = 4096

    def __init__(self, folder: Path, bytes_: int, *, sync: bool = True) -> None:
        self.path, self.sync = folder / "log", sync
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        for at in range(0, bytes_, 1 << 20):
            os.pwrite(self.fd, bytes(1 << 20), at)
        os.fsync(self.fd)

    def prepared(self, numbers: Any, values: Any) -> Any:
        """Return whole blocks."""
        data = records_of(values).tobytes()
        return data + bytes(-len(data) % self.BLOCK)

    def commit_new(self, batch: Any) -> None:
        """Write, and sync."""
        os.pwrite(self.fd, batch, 0)
        if self.sync:
            os.fdatasync(self.fd)

    commit_changed = commit_new

    def remove(self, n: int) -> None:
        """Forget the newest."""
        self.count -= n

    def values(self, numbers: Any) -> list[int]:
        """Return what the last commit wrote; the floor knows no numbers."""
        data = os.pread(self.fd, len(numbers) * RECORD.itemsize, 0)
        return np.frombuffer(data, RECORD)["x"].tolist()

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


class Copy(Log):
    """The floor of memory: the same blocks, copied into the mapped file."""

    def __init__(self, folder: Path, bytes_: int) -> None:
        super().__init__(folder, bytes_)
        self.mapped = mmap.mmap(self.fd, bytes_)

    def commit_new(self, batch: Any) -> None:
        """Copy."""
        self.mapped[: len(batch)] = batch

    commit_changed = commit_new

    def close(self) -> None:
        """Close the mapping and the file."""
        self.mapped.close()
        super().close()


# --- Where they are ---


def file_system(folder: Path) -> str:
    """Return the name of a folder's file system, "" where the system does not tell."""
    mounts = [line.split()[1:3] for line in MOUNTS.read_text().splitlines()] if MOUNTS.exists() else []
    found = [(len(place), name) for place, name in mounts if folder.resolve().is_relative_to(place)]
    return max(found)[1] if found else ""


def disk() -> Path:
    """Return a new folder on the disk that is measured; raises `SkippedError` if it is memory."""
    above = Path(os.environ.get(DISK) or native.BUILT)
    above.mkdir(parents=True, exist_ok=True)
    if file_system(above) in ("tmpfs", "ramfs"):
        raise SkippedError(f"{above} is memory: set {DISK} to a folder on a disk")
    return Path(tempfile.mkdtemp(prefix="stores-", dir=above))


def memory() -> Path:
    """Return a new folder in memory; raises `SkippedError` if there is none."""
    if file_system(MEMORY) != "tmpfs":
        raise SkippedError(f"needs {MEMORY} of Linux")
    return Path(tempfile.mkdtemp(prefix="jitslab-bench-", dir=MEMORY))


def versions() -> dict[str, str]:
    """Return the versions of the stores that are installed, and the file system of the disk."""
    found = {"SQLite": sqlite3.sqlite_version}
    try:
        import lmdb

        found["LMDB"] = ".".join(map(str, lmdb.version()))
    except ImportError:
        pass
    package = shutil.which("pkg-config")
    asked = native.done([package, "--modversion", "libpmemobj"]) if package else None
    if asked is not None and asked.returncode == 0:
        found["PMDK"] = asked.stdout.strip()
    return found | {"disk": file_system(Path(os.environ.get(DISK) or native.BUILT))}


def newest(store: Store, n: int) -> Sequence[int]:
    """Return the numbers of the newest records."""
    return range(store.count - n, store.count)
