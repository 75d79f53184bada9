"""The directory of a pool: made, opened, and read, with its meta data and the data files of its caches."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import numpy.typing as npt

from ..errors import CorruptPoolError, PoolError, PoolPathError
from . import calls
from .format import (
    BLOCK,
    JOURNAL,
    META,
    MOST_META_BYTES,
    READER_LOCK,
    WORDS_OFFSET,
    WRITER_LOCK,
    CacheEntry,
    Meta,
    check_words_head,
    decode,
    encode,
    records_bytes,
    records_name,
    sums_name,
    words_bytes,
    words_head,
    words_name,
)

NEW_META = "pool.json.new"  # becomes META
DATA = (words_name, records_name, sums_name)
OWN = {META, NEW_META, JOURNAL, WRITER_LOCK, READER_LOCK, *(name(0) for name in DATA)}  # that a pool has while it is made
MODES = ("r", "r+", "c", "x")
PIECE_BYTES = 4 << 20  # that are read at a time
Kind = Callable[[int], str]


@contextmanager
def telling(doing: str) -> Iterator[None]:
    """Make errors of pools of those of the system."""
    try:
        yield
    except OSError as error:
        if isinstance(error, PoolError):
            raise
        raise calls.pool_error(error, doing) from error


class Folder:
    """
    An open directory of a pool.

    Parameters
    ----------
    path : str
        Absolute.
    mode : {"r", "r+", "c", "x"}
        As of `open_pool`; a directory is made if the mode says so.

    Attributes
    ----------
    is_new : bool
        Whether there is no pool in it yet.
    """

    def __init__(self, path: str, mode: str) -> None:
        self.path, self.file, self.is_new = path, -1, False
        self._read: tuple[bytes, Meta] | None = None  # what was read last, and what it says
        with telling(path):
            if mode in ("c", "x"):
                with suppress(FileExistsError):
                    calls.make_folder(path)
            self._open()
            try:
                self.look(mode)
            except BaseException:
                self.close()
                raise

    def _open(self) -> None:
        """Open the directory."""
        try:
            self.file = calls.open_folder(self.path)
        except FileNotFoundError:
            raise PoolPathError(f"{self.path}: there is no pool; mode 'c' makes one") from None
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            what = "a symbolic link" if os.path.islink(self.path) else "no directory"
            raise PoolPathError(f"{self.path} is {what}; a pool is a directory of its own") from None

    def look(self, mode: str) -> None:
        """See whether the directory holds a pool, and may be used; a writer looks again when it has the lock."""
        names = set(calls.names_in(self.file))
        self.is_new = META not in names
        if not self.is_new:
            if mode == "x":
                raise PoolPathError(f"{self.path}: there is a pool already; mode 'r+' opens it")
            self._need_owner()
            return
        if mode in ("r", "r+"):
            raise PoolPathError(f"{self.path} is no pool: it has no {META}; mode 'c' makes one")
        strangers = sorted(names - OWN)
        if strangers:
            raise PoolPathError(f"{self.path} is a directory of something else: it has {strangers[0]!r}")
        self._need_owner()
        if JOURNAL in names:
            self._need_no_commits()

    def _need_no_commits(self) -> None:
        """Raise if the meta data of a pool are missing; a pool that was being made has no commits."""
        file = self.open(JOURNAL, write=False)
        try:
            if any(calls.read_at(file, BLOCK, BLOCK)):
                raise CorruptPoolError(f"{self.path}: {META} is missing, and the journal has commits")
        finally:
            calls.close(file)

    def sync_name(self) -> None:
        """Have the name of the directory last, which this process made, or one that was killed."""
        parent = calls.open_folder(os.path.dirname(self.path))
        try:
            calls.sync_folder(parent)
        finally:
            calls.close(parent)

    def remove_half_made(self) -> None:
        """Remove what is left of a pool whose making was cut short."""
        for name in OWN - {WRITER_LOCK}:
            with suppress(FileNotFoundError):
                calls.unlink(self.file, name)

    def _need_owner(self) -> None:
        """Raise if the directory belongs to another user, who could change it at any time."""
        owner = os.fstat(self.file).st_uid
        if owner != os.geteuid():
            raise PoolPathError(f"{self.path} belongs to user {owner}, this process runs as user {os.geteuid()}")

    def close(self) -> None:
        """Close it."""
        if self.file >= 0:
            file, self.file = self.file, -1
            calls.close(file)

    def open(self, name: str, *, write: bool, create: bool = False) -> int:
        """Open one of its files; with `create` one that may be new."""
        if create:
            with suppress(FileExistsError):
                return calls.open_file(self.file, name, write=True, create=True)
        try:
            return calls.open_file(self.file, name, write=write)
        except FileNotFoundError:
            raise CorruptPoolError(f"{self.path}: {name} is missing") from None

    # --- Meta data ---

    def read_meta(self) -> Meta:
        """Return what the pool says of its caches."""
        file = self.open(META, write=False)
        try:
            data = calls.read_at(file, min(calls.size_of(file), MOST_META_BYTES) + 256, 0)
        finally:
            calls.close(file)
        if self._read is None or self._read[0] != data:
            self._read = data, decode(data, f"{self.path}/{META}")
        return self._read[1]

    def write_meta(self, meta: Meta) -> None:
        """Replace it: at any instant there is the old one or the new one, whole."""
        data = encode(meta)
        with suppress(FileNotFoundError):
            calls.unlink(self.file, NEW_META)
        file = calls.open_file(self.file, NEW_META, create=True)
        try:
            calls.write_at(file, data, 0)
            calls.sync(file)
        finally:
            calls.close(file)
        calls.rename(self.file, NEW_META, META)
        calls.sync_folder(self.file)

    def remove_orphans(self, meta: Meta) -> None:
        """Remove the files of caches that the pool does not know: they were being made, or were dropped."""
        known = {name(entry.id) for entry in meta.caches for name in DATA}
        for name in calls.names_in(self.file):
            number, _, kind = name.partition(".")
            if number.isascii() and number.isdigit() and kind in ("words", "records", "sums") and name not in known:
                calls.unlink(self.file, name)

    # --- Data files ---

    def make_data(self, pool: int, entry: CacheEntry, first_generation: int) -> None:
        """Make the files of a new cache: its generations in full length, nothing else."""
        for name in DATA:
            with suppress(FileNotFoundError):
                calls.unlink(self.file, name(entry.id))
        for name in DATA:
            file = calls.open_file(self.file, name(entry.id), create=True)
            try:
                if name is words_name:
                    calls.lengthen(file, words_bytes(entry.slots))
                    calls.write_at(file, words_head(pool, entry, 0, first_generation), 0)
                elif name is records_name:  # the file system must be able to hold all records
                    calls.lengthen(file, records_bytes(entry.slots, entry.stride))
                    calls.truncate(file, 0)
                calls.sync(file)
            finally:
                calls.close(file)
        calls.sync_folder(self.file)

    def remove_data(self, entry: CacheEntry) -> None:
        """Remove the files of a cache that was dropped."""
        for name in DATA:
            with suppress(FileNotFoundError):
                calls.unlink(self.file, name(entry.id))

    def open_data(self, kind: Kind, entry: CacheEntry, *, write: bool) -> int:
        """Open a data file of a cache."""
        return self.open(kind(entry.id), write=write)

    @contextmanager
    def data_files(self, entry: CacheEntry) -> Iterator[tuple[int, int]]:
        """Open the generations and the records of a cache to read, for a block."""
        words = self.open_data(words_name, entry, write=False)
        try:
            records = self.open_data(records_name, entry, write=False)
            try:
                yield words, records
            finally:
                calls.close(records)
        finally:
            calls.close(words)

    def read_words_head(self, file: int, pool: int, entry: CacheEntry) -> tuple[int, int]:
        """Return (n_slabs, first_generation) of a cache's file of generations, as the last checkpoint wrote it."""
        path = f"{self.path}/{words_name(entry.id)}"
        size = calls.size_of(file)
        if size < words_bytes(entry.slots):  # it is longer if the raise of a capacity was cut short
            raise CorruptPoolError(f"{path} has {size} bytes instead of {words_bytes(entry.slots)}")
        return check_words_head(calls.read_at(file, WORDS_OFFSET, 0), pool, entry, path)

    def need_zeros_behind(self, entry: CacheEntry, start: int) -> None:
        """Raise if generations from a byte of their file on are not 0: later slabs would find them."""
        file = self.open_data(words_name, entry, write=False)
        try:
            for at, stop in calls.data_ranges(file, words_bytes(entry.slots), start):
                for place in range(at, stop, PIECE_BYTES):
                    if any(calls.read_at(file, min(PIECE_BYTES, stop - place), place)):
                        raise odd_generations(self.path, entry, start)
        finally:
            calls.close(file)


def odd_generations(path: str, entry: CacheEntry, start: int) -> CorruptPoolError:
    """Return the error that generations behind those of all slabs are not 0."""
    name = words_name(entry.id)
    return CorruptPoolError(f"{path}/{name}: from byte {start} on it should be 0, and is not; jitslab check --repair makes it so")


def new_id() -> int:
    """Return a random number that all files of a pool have."""
    return secrets.randbits(64)


def read_block_runs(file: int, memory: npt.NDArray[np.uint8], offset: int, n: int) -> None:
    """Read n bytes of a file from an offset on to that offset of an array; what the file does not have becomes zeros."""
    part = memory[offset : offset + n]
    got = calls.read_into(file, part, offset)
    part[got:] = 0
