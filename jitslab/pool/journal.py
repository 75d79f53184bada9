"""
The journal of a pool: a file of frames, one a commit, appended and synced; what stands in it is in `heads` and `frames`.

A commit is durable when `append` returns, and at no instant half durable: a frame counts if its hash does.  `read` yields the
frames that count, in order, and takes the journal's place behind the last.  After a checkpoint has written the newest version of
every block (`last_versions`) into the pool's files, `reset` begins the journal anew.

Overwriting zeros is two to eight times faster than making a file longer, so the file grows ahead, by zeros that are synced before
they are used.  On persistent memory a frame is stored into the mapped file without a system call: `pmem`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import CorruptPoolError, PoolError, PoolFailedError, ReadOnlyError
from ..machine.addresses import columns_of, is_on_dax, round_up
from . import calls
from .frames import (
    AFTER_SYNCED,
    BLOCK,
    ENTRY,
    FRAME_HEAD,
    FRAME_MAGIC,
    LINE,
    MOST_BYTES,
    RUN_BYTES,
    RUN_WORDS,
    WRITER,
    Bounds,
    copy_entries,
    finish_frame,
    hash_frame,
    head_bytes,
    refusal,
    stage_data,
    start_frame,
    sum_runs,
    take_place,
)
from .hashes import STATE_WORDS
from .heads import HEAD_BYTES, HEAD_HASH_AT, HEAD_STEP, MOST_NUMBER, find_head, make_head
from .pmem import BAD_RUNS, NO_ROOM, append_mapped, map_journal
from .versions import newest, places_of

NAME = "journal"
SALT_STEP = 1 << 20  # a salt rises by as much at most, at random: it is new even if the head of a later reset was lost
NOT_READ = "it was not read to its end"  # why a writer that has just opened it may not append: it would overwrite commits
FIRST_BYTES = 1 << 20  # of a new journal
GROWTH_BYTES = 16 << 20  # most zeros that are written ahead; a longer frame is written beyond the end
KEPT_BYTES = 64 << 20  # most that a reset keeps of the file
MOST_HOLES = 64 << 20  # bytes of a frame that may be holes of the file: some file systems keep no zeros
MOST_HOLES_SHARE = 1024  # a longer frame has one byte on the medium for so many
PIECE_BYTES = 4 << 20  # of data copied, hashed and written at a time
WORD = {name: WRITER.fields[name][1] // 8 for name in WRITER.names or ()}  # type: ignore[index]  # they are its fields
SALT, NUMBER, PREVIOUS, FLAGS, AT, MAP, CAPACITY, N_RUNS, SEEN, HASH = (
    WORD[name] for name in ("salt", "number", "previous", "flags", "at", "map", "capacity", "n_runs", "seen", "hash")
)


class Frame(NamedTuple):
    """
    A commit, as it was read.

    Attributes
    ----------
    number : int
        Of the commit.
    entries : ndarray of ENTRY
        Without those of caches that were dropped.
    places : ndarray of int64
        Where the data of each entry begin in `data`.
    data : ndarray of uint8
        It holds until the next frame is read, as `entries` does.
    """

    number: int
    entries: npt.NDArray[np.void]
    places: npt.NDArray[np.int64]
    data: npt.NDArray[np.uint8]

    def copy_to(self, addresses: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> None:
        """Copy so many bytes of each entry to an address, which must have room for them."""
        copy_entries(self.data.ctypes.data, self.places.ctypes.data, addresses.ctypes.data, sizes.ctypes.data, len(sizes))


class Journal:
    """
    The journal of an open pool.  One thread uses it at a time.

    It is made by `create` or `open`.

    Examples
    --------
    >>> import os, tempfile
    >>> folder = os.open(tempfile.mkdtemp(), os.O_RDONLY)
    >>> journal = Journal.create(folder, 7, sync=False)
    >>> page = np.full(4096, 5, np.uint8)
    >>> journal.append(np.array([[1, 0, 8192, page.ctypes.data, 4096]]))  # page 2 of the words of cache 1
    1
    >>> journal.close()
    >>> journal = Journal.open(folder, 7)
    >>> for frame in journal.read(lambda cache, file: 1 << 20):
    ...     print(frame.number, frame.entries, frame.data[:3])
    1 [(1, 0, 8192, 4096)] [5 5 5]
    >>> journal.close()
    >>> os.close(folder)
    """

    __slots__ = (
        "_buffer",
        "_failed",
        "_file",
        "_mapped",
        "_pool",
        "_row",
        "_runs",
        "_runs_at",
        "_slot",
        "_staging",
        "_words",
        "is_writable",
        "sync",
    )

    def __init__(self, file: int, pool: int, head: tuple[int, int, int, int], *, is_writable: bool, sync: bool) -> None:
        slot, salt, number, hash_ = head
        self._file, self._pool, self._slot = file, pool, slot
        self.is_writable, self.sync = is_writable, sync
        row = np.zeros(WRITER.itemsize // 8, np.int64)
        self._row, self._words = row.ctypes.data, row.data
        self._words[NUMBER] = number
        self._runs = np.zeros((64, RUN_WORDS), np.int64)  # of all frames; the place in the file stands for the address in memory
        self._runs_at = self._runs.ctypes.data
        self._mapped: Any = None  # it ends with the mapping
        self._failed = ""  # why nothing can be appended any more
        self._staging: npt.NDArray[np.uint8] | None = None
        self._buffer = np.empty(0, np.uint8)
        self._start(salt, hash_)

    def _start(self, salt: int, hash_: int) -> None:
        """Stand behind the head, before the first frame."""
        words = self._words
        words[SALT], words[PREVIOUS], words[AT] = salt, hash_, BLOCK
        words[FLAGS] = AFTER_SYNCED if self.sync else 0
        words[N_RUNS] = 0
        words[SEEN] = HEAD_STEP * self._slot + HEAD_HASH_AT

    # --- Opening ---

    @classmethod
    def create(cls, folder: int, pool: int, number: int = 0, *, sync: bool = True) -> Journal:
        """
        Make the journal of a new pool, and open it to write.  The caller syncs the folder.

        Parameters
        ----------
        folder : int
            Descriptor of the pool's folder.
        pool : int
            Id of the pool, 64 bits.
        number : int
            Of the last commit before the journal.
        sync : bool
            Whether commits outlive the machine, or the process only.

        Raises
        ------
        PoolFullError, PoolPathError, PoolError
            If the system refuses.
        """
        try:
            file = calls.open_file(folder, NAME, create=True)
        except OSError as error:
            raise calls.pool_error(error, "making the journal") from error
        try:
            slot, salt = 0, secrets.randbelow(MOST_NUMBER >> 1)
            head, hash_ = make_head(pool, salt, number)
            journal = cls(file, pool, (slot, salt, number, hash_), is_writable=True, sync=sync)
            try:
                calls.write_at(file, head.ljust(BLOCK, b"\0"), 0)
                journal._words[CAPACITY] = BLOCK
                if sync:
                    journal._add_zeros(FIRST_BYTES - BLOCK)
            except OSError as error:
                raise calls.pool_error(error, "making the journal") from error
            journal._map()
        except BaseException:
            calls.close(file)
            raise
        return journal

    @classmethod
    def open(cls, folder: int, pool: int, *, is_writable: bool = False, sync: bool = True) -> Journal:
        """
        Open the journal of a pool.  It stands before the first frame: a writer reads it to its end before it appends.

        Raises
        ------
        CorruptPoolError
            If the file is no journal of this pool.
        PoolVersionError
            If a newer format stands in it.
        PoolPathError, PoolError
            If the system refuses.
        """
        try:
            file = calls.open_file(folder, NAME, write=is_writable)
        except FileNotFoundError:
            raise CorruptPoolError("journal: it is missing") from None
        except OSError as error:
            raise calls.pool_error(error, "opening the journal") from error
        try:
            try:
                size, start = calls.size_of(file), calls.read_at(file, HEAD_STEP + HEAD_BYTES, 0)
            except OSError as error:
                raise calls.pool_error(error, "reading the journal") from error
            if not BLOCK <= size <= MOST_BYTES:
                raise CorruptPoolError(f"journal: {size} bytes, not {BLOCK} to {MOST_BYTES}")
            journal = cls(file, pool, find_head(start, pool), is_writable=is_writable, sync=sync)
            journal._words[CAPACITY] = size & -BLOCK
            journal._failed = NOT_READ
            if is_writable and sync:
                journal._sync()  # what was read is on the medium, before a commit says so
            if is_writable:
                journal._map()
        except BaseException:
            calls.close(file)
            raise
        return journal

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._unmap()
        file, self._file = self._file, -1
        if file >= 0:
            calls.close(file)

    # --- What it holds ---

    @property
    def number(self) -> int:
        """Number of the last commit that was read or appended."""
        return self._words[NUMBER]

    @property
    def used(self) -> int:
        """Bytes of the file that are in use."""
        return self._words[AT]

    @property
    def capacity(self) -> int:
        """Bytes of the file."""
        return self._words[CAPACITY]

    @property
    def is_mapped(self) -> bool:
        """Whether commits are stored to persistent memory, without a system call."""
        return self._words[MAP] != 0

    @property
    def is_dax(self) -> bool:
        """Whether the pool is on persistent memory that is mapped directly, however commits are written; or is taken to be."""
        return self.is_mapped or is_on_dax(self._file)

    def last_versions(self) -> npt.NDArray[np.void]:
        """
        Return where in the journal the newest version of every block stands.

        Returns
        -------
        ndarray of versions.VERSION
            Runs of blocks that are neighbours in their file and in the journal, sorted by cache, file and offset.
        """
        return newest(self._runs[: self._words[N_RUNS]])

    def read_into(self, buffer: Any, place: int) -> None:
        """
        Read data that `last_versions` names.

        Raises
        ------
        PoolError
            If the system refuses, or the file was cut.
        """
        try:
            n = calls.read_into(self._file, buffer, place)
        except OSError as error:
            raise calls.pool_error(error, "reading the journal") from error
        if n < memoryview(buffer).nbytes:
            raise CorruptPoolError(f"journal: it ends at byte {place + n}, within commits that were read before")

    # --- Reading ---

    def read(self, bounds: Bounds) -> Iterator[Frame]:
        """
        Yield the frames from where the journal stands to its end, each once.

        Parameters
        ----------
        bounds : callable
            Called with the id of a cache and a file (0: words, 1: records); returns the bytes that the file can have; negative:
            the cache was dropped, and its entries are left out; 0: there never was such a cache or file.

        Raises
        ------
        CorruptPoolError
            If a whole frame has entries out of these bounds, or two for one block.
        PoolError
            If the system refuses, or if the last frame that was read is no longer there.
        """
        try:
            if not self.is_writable and not self._see_size():
                return
            while True:
                frame = self._next(bounds)
                if frame is None:
                    break
                yield frame
            if self._failed == NOT_READ:
                self._failed = ""
        except OSError as error:
            raise calls.pool_error(error, "reading the journal") from error

    def follow_reset(self) -> bool:
        """
        Stand before the first frame again, if the writer began the journal anew, with the last commit that was read here.

        Returns
        -------
        bool
            Whether it did.  Then all commits that were read are in the pool's files.

        Raises
        ------
        PoolError
            If the journal began anew with a later commit, or the system refuses.
        CorruptPoolError
            If it is no journal of this pool any more.
        """
        try:
            start = calls.read_at(self._file, HEAD_STEP + LINE, 0)
        except OSError as error:
            raise calls.pool_error(error, "reading the journal") from error
        slot, salt, number, hash_ = find_head(start, self._pool)
        if salt == self._words[SALT]:
            return False
        if number != self.number:
            raise PoolError(f"journal: it begins behind commit {number}, and {self.number} was read; open the pool again")
        self._slot = slot
        self._start(salt, hash_)
        return True

    def _see_size(self) -> bool:
        """Take note of the file's length; False if the writer began the journal anew since `follow_reset`."""
        seen = calls.read_at(self._file, 8, self._words[SEEN])
        if int.from_bytes(seen, "little", signed=True) != self._words[PREVIOUS]:
            if find_head(calls.read_at(self._file, HEAD_STEP + LINE, 0), self._pool)[1] != self._words[SALT]:
                return False
            raise PoolError(f"journal: commit {self.number} was taken back by its writer; open the pool again")
        self._words[CAPACITY] = min(calls.size_of(self._file), MOST_BYTES) & -BLOCK
        return True

    def _next(self, bounds: Bounds) -> Frame | None:
        """Read the frame at the journal's place, and take the place behind it; None: none counts there."""
        words = self._words
        at, number = words[AT], words[NUMBER] + 1
        found = self._frame_at(at)
        if found is None:
            return None
        head, data = found
        if int(head["number"]) != number or int(head["previous"]) != words[PREVIOUS]:
            return None
        n, total = int(head["n_entries"]), int(head["n_bytes"])
        table = data[LINE : LINE + n * ENTRY.itemsize].view(ENTRY)
        reason, is_kept = refusal(table, total, bounds)
        if reason:
            raise CorruptPoolError(f"journal: commit {number} at byte {at} has {reason}")
        start, places = head_bytes(n), places_of(table["n_bytes"].astype(np.int64))
        if not is_kept.all():
            table, places = table[is_kept], places[is_kept]
        first, end = words[N_RUNS], self._need_runs(len(table))
        for k, values in enumerate((table["cache"], table["file"], table["offset"], at + start + places, table["n_bytes"])):
            self._runs[first:end, k] = values
        take_place(self._row, start + total, int(head["hash"]), len(table))
        return Frame(number, table, places, data[start:])

    def _frame_at(self, at: int) -> tuple[np.void, npt.NDArray[np.uint8]] | None:
        """Return the head and the bytes of a frame of this life of the journal, if a whole one stands at a place."""
        raw = calls.read_at(self._file, LINE, at) if at + BLOCK <= self._words[CAPACITY] else b""
        length = self._length(raw, at)
        if length == 0:
            return None
        self._need_data(length, at)
        if len(self._buffer) < length:
            self._buffer = np.empty(max(length, 2 * len(self._buffer)), np.uint8)
        data = self._buffer[:length]
        if calls.read_into(self._file, data, at) < length or self._length(data[:LINE].tobytes(), at) != length:
            return None
        head = data[:LINE].view(FRAME_HEAD)[0]
        state = np.empty(STATE_WORDS, np.int64)
        if hash_frame(state.ctypes.data, data.ctypes.data, int(head["n_entries"]), int(head["n_bytes"])) != int(head["hash"]):
            return None
        return head.copy(), data

    def _need_data(self, length: int, at: int) -> None:
        """Raise if a frame would be read that is a hole for the most part, and takes the memory that it says it has."""
        if length > MOST_HOLES and length // MOST_HOLES_SHARE > (space := calls.disk_bytes(self._file)):
            raise CorruptPoolError(f"journal: a commit of {length} bytes at byte {at}, of which the medium has {space} at most")

    def _length(self, raw: bytes, at: int) -> int:
        """Return the bytes of the frame whose head was read at a place; 0: it is none of this life, or ends beyond the file."""
        if len(raw) < LINE:
            return 0
        head = np.frombuffer(raw, FRAME_HEAD)[0]
        n, total = int(head["n_entries"]), int(head["n_bytes"])
        if int(head["magic"]) != FRAME_MAGIC or int(head["salt"]) != self._words[SALT]:
            return 0
        if n == 0 or total % BLOCK or total < n * BLOCK:
            return 0
        length = head_bytes(n) + total
        return length if length <= self._words[CAPACITY] - at else 0

    def find_damage(self) -> int:
        """
        Return the number of a commit that was on the medium and is none any more; 0: none is known to be lost.

        That is known if a later frame stands behind the last one that counts, and says that the frame before it was synced.  It
        is asked before the journal is written to.
        """
        budget = 2 * self.capacity
        try:
            if self.used == BLOCK and self._is_outlived():
                return self.number + 1
            size = calls.size_of(self._file)
            if size < self.capacity:
                raise CorruptPoolError(f"journal: it was {self.capacity} bytes long, and is {size} now")
            for start, end in calls.data_ranges(self._file, self.capacity, self.used):
                first = start // BLOCK * BLOCK
                heads = columns_of(self._file, first, end, BLOCK, LINE).view(FRAME_HEAD)[:, 0]
                later = (heads["magic"] == FRAME_MAGIC) & (heads["salt"] == self._words[SALT])
                later &= (heads["flags"] & AFTER_SYNCED != 0) & (heads["number"] > self.number + 1)
                for k in np.flatnonzero(later).tolist():
                    at = first + k * BLOCK
                    length = self._length(heads[k].tobytes(), at)
                    budget -= length  # heads that were made up, each of a frame as long as the file, would take for ever
                    if budget < 0 or (length and self._frame_at(at) is not None):
                        return self.number + 1
        except OSError as error:
            raise calls.pool_error(error, "reading the journal") from error
        return 0

    def _is_outlived(self) -> bool:
        """Whether the first frame is of a later life of the journal, so that the head of that is lost."""
        raw = calls.read_at(self._file, LINE, BLOCK)
        named = head_named_by(raw, self._pool)
        return (
            named is not None and named[0] > self._words[SALT] and bool(np.frombuffer(raw, FRAME_HEAD)[0]["flags"] & AFTER_SYNCED)
        )

    # --- Writing ---

    def append(self, runs: npt.NDArray[np.int64]) -> int:
        """
        Append a commit; when this returns it lasts, if the journal syncs.

        Parameters
        ----------
        runs : ndarray of int64, shape (n, 5)
            Of each run of blocks the cache's id, the file (0: words, 1: records), the offset in the file, the address in memory
            and the bytes.  Offset and bytes are multiples of BLOCK, the address of 8.

        Returns
        -------
        int
            The number of the commit.

        Raises
        ------
        PoolFullError
            If there is no space.  The journal is as before.
        PoolError
            If the system refuses to write.  The journal is as before.
        PoolFailedError
            If a sync fails, or has failed before: whether the last commit is on the medium is known when the pool is opened
            again.
        """
        if self._failed or not self.is_writable:
            self._refuse()
        words, n, first = self._words, len(runs), self._words[N_RUNS]
        end = first + n
        if end > len(self._runs):
            self._need_runs(n)
        self._runs[first:end] = runs
        address = self._runs_at + RUN_BYTES * first
        number = append_mapped(self._row, address, n) if words[MAP] else NO_ROOM
        if number == NO_ROOM:
            number = self._append(address, n)
        if number == BAD_RUNS:
            raise PoolError("a commit of no blocks, or of parts of blocks")
        return number

    def _need_runs(self, n: int) -> int:
        """Have room for n more runs; returns how many there are then."""
        end = self._words[N_RUNS] + n
        if end > len(self._runs):
            runs = np.resize(self._runs, (2 * end, RUN_WORDS))
            self._runs, self._runs_at = runs, runs.ctypes.data
        return end

    def _append(self, runs: int, n: int) -> int:
        """Append a commit by system calls, or, if it finds room then, as `append_mapped`; returns the same."""
        words = self._words
        total = sum_runs(runs, n)
        if total <= 0:
            return BAD_RUNS
        length = head_bytes(n) + total
        try:
            if words[AT] + length > words[CAPACITY]:
                self._make_room(length)
            if words[MAP]:
                return append_mapped(self._row, runs, n)
            self._write(runs, n, total)
            if self.sync:
                self._sync()
                words[FLAGS] = AFTER_SYNCED
            return take_place(self._row, length, words[HASH], n)
        except OSError as error:
            self._cut()
            raise calls.pool_error(error, f"writing commit {words[NUMBER] + 1} to the journal") from error
        except PoolFailedError:
            raise
        except BaseException:  # a signal: the whole frame may stand there, and count if the process ends now
            self._take_back()
            raise

    def _take_back(self) -> None:
        """Have no frame stand at the journal's place."""
        self._failed = "an interrupted commit could not be taken back"
        with suppress(OSError):
            calls.write_at(self._file, bytes(LINE), self._words[AT])
            self._cut()
            self._failed = ""

    def _write(self, runs: int, n: int, total: int) -> None:
        """Write a frame at the journal's place: the data in pieces, the head last; a short one at once."""
        staging = self._staging
        if staging is None:
            staging = self._staging = np.empty(PIECE_BYTES, np.uint8)
        row, at, first = self._row, self._words[AT], head_bytes(n)
        to = staging.ctypes.data
        if first + total <= PIECE_BYTES:
            start_frame(row, to, runs, n, total)
            stage_data(row, to + first, runs, n, total)
            finish_frame(row, to, runs, n)
            calls.write_at(self._file, staging[: first + total], at)
            return
        head = np.empty(first, np.uint8)
        start_frame(row, head.ctypes.data, runs, n, total)
        place = at + first
        while (staged := stage_data(row, to, runs, n, PIECE_BYTES)) > 0:
            calls.write_at(self._file, staging[:staged], place)
            place += staged
        finish_frame(row, head.ctypes.data, runs, n)
        calls.write_at(self._file, head, at)

    def _make_room(self, length: int) -> None:
        """Lengthen the file by zeros for a frame, if they are worth it; what is mapped must be there."""
        if not self.is_mapped and (not self.sync or length > GROWTH_BYTES):
            return
        try:
            self._add_zeros(round_up(max(length, min(self.capacity, GROWTH_BYTES)), FIRST_BYTES))
        except OSError as error:
            if error.errno not in calls.FULL:
                raise
            self._cut()
            if self.is_mapped:
                self._add_zeros(length)  # no more than is needed

    def _add_zeros(self, n: int) -> None:
        """Write n zeros behind the end of the file, and sync them."""
        end, zeros = self.capacity + n, bytes(FIRST_BYTES)
        for place in range(self.capacity, end, FIRST_BYTES):
            calls.write_at(self._file, zeros[: end - place], place)
        self._sync()
        was_mapped = self.is_mapped
        self._unmap()
        self._words[CAPACITY] = end
        if was_mapped:
            self._map()

    def _cut(self) -> None:
        """Give back what a write that failed took."""
        with suppress(OSError):
            if calls.size_of(self._file) > self.capacity:
                calls.system.ftruncate(self._file, self.capacity)

    def reset(self) -> None:
        """
        Begin anew, without frames: after the newest version of every block was written to the pool's files and synced.

        Raises
        ------
        PoolFullError, PoolError
            If the system refuses to write.  The journal is as before.
        PoolFailedError
            If a sync fails, or has failed before.
        """
        if self._failed or not self.is_writable:
            self._refuse()
        slot, salt = 1 - self._slot, self._words[SALT] + 1 + secrets.randbelow(SALT_STEP)
        if max(salt, self.number) >= MOST_NUMBER:
            raise PoolError(f"journal: salt {salt} or commit {self.number} is beyond what a head can have")
        head, hash_ = make_head(self._pool, salt, self.number)
        self._failed = "its reset was interrupted"  # an append under the old salt would be lost if the new head is there
        try:
            calls.write_at(self._file, head, HEAD_STEP * slot)
        except OSError as error:
            with suppress(OSError):
                if calls.read_at(self._file, HEAD_BYTES, HEAD_STEP * slot) != head:
                    self._failed = ""
            raise calls.pool_error(error, "resetting the journal") from error
        if self.sync:
            self._sync()
        self._slot = slot
        self._start(salt, hash_)
        self._failed = ""
        if self.capacity > KEPT_BYTES:
            self._shorten()

    def _shorten(self) -> None:
        """Give the space of long commits back: to open a journal takes a look at each of its blocks."""
        was_mapped = self.is_mapped
        self._unmap()
        with suppress(OSError):
            calls.truncate(self._file, KEPT_BYTES)
            self._words[CAPACITY] = KEPT_BYTES
        if was_mapped:
            self._map()

    def _sync(self) -> None:
        """Sync the file, or fail for good: the system forgets what it could not write, so a second call would say nothing."""
        try:
            calls.sync(self._file)
        except OSError as error:
            self._failed = "a sync failed"  # before any call: a signal could interrupt that
            self._failed += f": {(error.strerror or str(error)).lower()}"
            raise PoolFailedError(f"journal: {self._failed}; open the pool again") from error

    def _refuse(self) -> None:
        """Raise: nothing can be written."""
        if not self.is_writable:
            raise ReadOnlyError("the journal was opened to read")
        raise PoolFailedError(f"journal: {self._failed}" + ("" if self._failed == NOT_READ else "; open the pool again"))

    # --- Persistent memory ---

    def _map(self) -> None:
        """Map the file, if it is on persistent memory and commits are to outlive the machine."""
        self._unmap()
        mapped = map_journal(self._file, self.capacity, self.used) if self.sync else None
        if mapped is not None:
            address, self._mapped = mapped
            self._words[MAP] = address

    def _unmap(self) -> None:
        """End the mapping."""
        self._words[MAP], mapped, self._mapped = 0, self._mapped, None
        if mapped is not None:
            mapped.close()


def head_named_by(raw: bytes, pool: int) -> tuple[int, bytes] | None:
    """Return the salt and the bytes of the journal's head whose hash the first frame has; None: it has that of none."""
    if len(raw) < LINE:
        return None
    frame = np.frombuffer(raw, FRAME_HEAD)[0]
    salt, number = int(frame["salt"]), int(frame["number"]) - 1
    if int(frame["magic"]) != FRAME_MAGIC or not (0 <= salt < MOST_NUMBER and 0 <= number < MOST_NUMBER):
        return None
    head, hash_ = make_head(pool, salt, number)
    return (salt, head) if hash_ == int(frame["previous"]) else None
