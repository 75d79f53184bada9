"""
`Pool`: named caches whose records are in files, and the operations that make their changes last.

A commit copies the pages that were written since the last one into the journal.  A checkpoint copies the journal into the data
files.  To open a pool, its data files are mapped, and the journal is copied over them.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import reach
from .._closable import Closable
from .._faults import joined
from .._names import Names, check_name
from .._validate import as_count, check_dtype
from ..cache import RecordLike, SlabCache
from ..core.geometry import slab_shape
from ..core.layout import HEAPS, MAX_SLOTS, NODE_WORDS, SPARE_SLOTS
from ..core.memory import first_cycle, serials
from ..core.rebuild import recover
from ..declare import declared_class, plain, template_of
from ..descriptor import describe
from ..errors import (
    BusyError,
    CapacityError,
    ClosedError,
    ConflictError,
    CorruptPoolError,
    FaultError,
    PoolError,
    PoolFailedError,
    PoolLawError,
    PoolPathError,
    ReadOnlyError,
    TransactionError,
    shown,
)
from ..machine.addresses import CAN_GROW
from ..reach import ByCache
from . import calls
from .cache import PoolCache, make_cache
from .check import broken_caches, broken_files
from .dirty import Written, whole_pages
from .files import MODES, Folder, new_id, odd_generations, telling
from .format import (
    BLOCK,
    MOST_BYTES,
    READER_LOCK,
    RECORDS,
    WORDS,
    WRITER_LOCK,
    CacheEntry,
    Meta,
    most_bytes,
    sums_name,
    words_bytes,
    words_name,
)
from .frames import RUN_WORDS, copy_entries
from .info import PoolInfo, pool_info
from .journal import Journal
from .locks import ReaderLock, WriterLock
from .memory import PoolCacheMemory, name_runs
from .pagemap import hash_blocks
from .restore import apply_frame, punch_empty, raise_generations, restore, write_back

N_SLABS = NODE_WORDS["n_slabs"]
ROOT = "root"  # name of the cache that holds the root
LEAST_JOURNAL = 64 << 20  # bytes of a journal that a commit leaves as they are; more if that is less than a quarter of the data
KEPT_SHARE = 4  # a quarter of the machine's memory may be pages of pools that a checkpoint keeps
OPEN_TRIES = 5  # times that a reader looks again if the writer makes or drops caches meanwhile


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()  # those that are open


def open_pool(
    path: str | os.PathLike[str],
    mode: str = "c",
    *,
    root: type[Any] | RecordLike | None = None,
    capacity: Mapping[str, int] | None = None,
    sync: bool = True,
    keep: int | None = None,
) -> Pool:
    """
    Open a pool: a directory with named caches, whose records are as the last commit left them.

    Parameters
    ----------
    path : str or path
        The directory.
    mode : {"c", "r", "r+", "x"}, default "c"
        ``"r"``: read the last commit, beside a writer and other readers.  The others write: ``"r+"`` a pool that exists, ``"x"``
        a new one, ``"c"`` one or the other.  One process at a time can write.
    root : numpy.dtype or class, optional
        Dtype of `Pool.root`, one record by which a program finds its data: needed when the pool is made, checked later.
    capacity : mapping of str to int, optional
        Higher capacities of caches that exist.
    sync : bool, default True
        Have commits outlast a loss of power.  Otherwise they outlast the death of the process, at a tenth of the time or less.
    keep : int, optional
        Bytes of memory that `Pool.checkpoint` leaves to pages that were written: a quarter of the machine's memory; 0 on
        persistent memory.

    Returns
    -------
    Pool

    Raises
    ------
    PoolPathError
        If there is no pool, one already, or something else at the path; if it belongs to another user, or may not be used.
    PoolBusyError
        If another process writes to it.
    PoolVersionError, CorruptPoolError
        If it has a newer format, or a file of it is damaged.
    ConflictError
        If the root has another dtype.
    CapacityError
        If a mode is none of these, or a capacity is lower than it was.

    Notes
    -----
    Takes some milliseconds, whatever the pool holds.  The first alloc, free or count of a cache takes 3 to 7 ns a slot once.

    Examples
    --------
    >>> import tempfile, numpy as np, jitslab
    >>> folder = tempfile.TemporaryDirectory()
    >>> node = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
    >>> with jitslab.open_pool(f"{folder.name}/list", root=np.dtype([("head", jitslab.link("nodes"))])) as pool:
    ...     nodes = pool.create_cache("nodes", node, capacity=1000)
    ...     for value in (1.0, 2.0):
    ...         pool.root["head"] = nodes.alloc(value=value, next=pool.root["head"])
    >>> with jitslab.open_pool(f"{folder.name}/list", "r") as pool:
    ...     pool["nodes"][pool.root["head"]]["value"].item()
    2.0
    >>> folder.cleanup()
    """
    if mode not in MODES:
        raise CapacityError(f"mode is one of {', '.join(map(repr, MODES))}, got {shown(mode)}")
    for option, value in (("sync", sync),):
        if not isinstance(value, bool):
            raise CapacityError(f"{option} is True or False, got {shown(value)}")
    if not CAN_GROW or sys.platform == "win32":
        raise PoolError("pools need private mappings of files, which this system does not have")
    where = os.path.abspath(os.fsdecode(os.fspath(path)))
    if "\0" in where:
        raise PoolPathError(f"a path has no character 0, got {shown(path)}")
    if not isinstance(capacity or {}, Mapping):
        raise CapacityError(f"capacity has the capacities of caches by name, got {shown(capacity)}")
    raised = {name: as_count(n, f"capacity of {name!r}", 1) for name, n in (capacity or {}).items()}
    most = None if keep is None else as_count_of_bytes(keep)
    pool = Pool.__new__(Pool)
    pool._start(where, mode, sync)
    try:
        pool._load(mode, root, raised, most)
        _pools.add(pool)
    except BaseException:
        pool._end()
        raise
    return pool


class Pool(Closable):
    """
    Named caches whose records are in files, atomic at every commit; made by `open_pool`.

    Everything in it, allocs, frees and plain stores of compiled code, is made to last by `commit`: all since the last commit,
    or nothing.  If the process or the machine ends at any instant, the pool is as the last commit left it when it is opened next.

    Leaving a `with` block commits and closes; an exception that ends the block closes without a commit.

    Notes
    -----
    A commit that runs beside stores of other threads has some of these, and the next commit has the others: commit between
    kernels.  A cache of the pool must fit the address space; pages that were written since the last checkpoint must fit memory.
    Not for network file systems.  A child of `fork` finds the pool closed.

    Examples
    --------
    >>> import tempfile, numpy as np, jitslab
    >>> folder = tempfile.TemporaryDirectory()
    >>> pool = jitslab.open_pool(f"{folder.name}/book")
    >>> orders = pool.create_cache("orders", np.dtype([("price", "f8"), ("size", "i4")]), capacity=10**6)
    >>> h = orders.alloc(price=9.5, size=100)
    >>> pool.commit()
    1
    >>> reader = jitslab.open_pool(f"{folder.name}/book", "r")
    >>> orders[h]["size"] = 50
    >>> pool.commit(), reader["orders"][h]["size"].item()
    (2, 100)
    >>> reader.refresh(), reader["orders"][h]["size"].item()
    (2, 50)
    >>> reader.close(), pool.close()
    (None, None)
    >>> folder.cleanup()
    """

    __slots__ = (
        "__weakref__",
        "_caches",
        "_checkpoints",
        "_commits",
        "_dropped",
        "_failure",
        "_files",
        "_folder",
        "_in_transaction",
        "_is_closed",
        "_is_cut",
        "_is_half_done",
        "_journal",
        "_keep",
        "_lock",
        "_made",
        "_meta",
        "_mode",
        "_most_journal",
        "_pid",
        "_places",
        "_postponed",
        "_ranges",
        "_readers",
        "_root",
        "_shrunk",
        "_sync",
        "_writer",
        "_written",
        "path",
    )
    path: str
    _caches: dict[int, PoolCache[Any]]  # by id
    _is_cut: bool  # whether a reader was interrupted while it read: it reads all anew
    _is_half_done: bool  # whether a transaction ended, and its changes are neither committed nor undone
    _places: tuple[int, int]  # addresses of `_ranges` and `_files`
    _made: list[int]  # slabs of each cache, when `_ranges` were made
    _keep: int  # bytes of written pages that a checkpoint leaves in memory
    _shrunk: set[PoolCache[Any]]  # caches that gave memory of empty slabs back: their files still have its content
    _dropped: set[PoolCache[Any]]  # those that did since the last commit: a rollback needs the content
    _meta: Meta
    _journal: Journal
    _written: Written
    _root: int  # handle of the root
    _not_copied = "; open it again to read, with mode 'r'"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise PoolError("a pool is made by jitslab.open_pool(path)")

    # --- Open ---

    def _start(self, path: str, mode: str, sync: bool) -> None:
        """Set what an error on the way needs."""
        self.path, self._mode, self._sync = path, "r" if mode == "r" else "r+", sync
        self._pid, self._is_closed, self._failure, self._in_transaction = os.getpid(), False, "", False
        self._is_cut = self._is_half_done = False
        self._lock, self._caches, self._made = threading.Lock(), {}, []
        self._shrunk, self._dropped = set(), set()
        self._ranges = self._files = np.empty((0, 2), np.int64)
        self._commits = self._checkpoints = self._postponed = self._most_journal = 0
        self._places = 0, 0
        self._folder: Folder | None = None
        self._writer: WriterLock | None = None
        self._readers: ReaderLock | None = None

    def _load(self, mode: str, root: Any, capacity: dict[str, int], keep: int | None) -> None:
        """Open the files, take the locks, and make the caches."""
        self._folder = folder = Folder(self.path, mode)
        with telling(self.path):
            if self._is_writer:
                self._writer = WriterLock(folder.open(WRITER_LOCK, write=True, create=folder.is_new))
                self._writer.take(self.path)
                if folder.is_new:
                    folder.look(mode)  # another process may have made it since
                if folder.is_new:
                    self._make(root)
            self._readers = ReaderLock(folder.open(READER_LOCK, write=self._is_writer))
            self._meta = folder.read_meta()
            if not self._is_writer:
                self._keep_trying(self._read_anew)
                if capacity:
                    raise ReadOnlyError("a capacity is raised by a writer: open the pool with mode 'r+'")
                return self._need_root(root)
            self._journal = Journal.open(folder.file, self._meta.id, is_writable=True, sync=self._sync)
            self._written = Written(is_dax=self._journal.is_dax)
            self._keep = most_kept(self._journal.is_dax) if keep is None else keep
            if self._sync:
                calls.sync_folder(folder.file)  # a process that was killed may have renamed the meta data that were read
            folder.remove_orphans(self._meta)
            self._raise_capacities(capacity)
            self._read_all()
        return self._need_root(root)

    def _make(self, root: Any) -> None:
        """Make an empty pool in the directory; its meta data come last."""
        folder = self._the_folder
        folder.sync_name()
        folder.remove_half_made()
        calls.close(folder.open(READER_LOCK, write=True, create=True))
        meta = Meta(new_id(), 0, None, ())
        Journal.create(folder.file, meta.id, 0, sync=self._sync).close()
        if root is not None:
            entry = new_entry(0, ROOT, root, 1, False, "zero")
            folder.make_data(meta.id, entry, 2 * first_cycle(next(serials)))
            meta = replace(meta, next=1, root=0, caches=(entry,))
        calls.sync_folder(folder.file)  # the meta data's name never lasts without the others
        folder.write_meta(meta)
        folder.is_new = False

    def _raise_capacities(self, capacity: dict[str, int]) -> None:
        """Give caches room for more records."""
        entries = {entry.name: entry for entry in self._meta.caches}
        for name, n in capacity.items():
            if name not in entries:
                raise CapacityError(f"capacity: there is no cache {name!r} in {self.path}")
            entry = entries[name]
            if n < entry.capacity:
                raise CapacityError(f"cache {name!r} has a capacity of {entry.capacity}, which cannot be lowered to {n}")
            slots = max(slots_of(entry.stride, entry.shift, n), entry.slots)
            entries[name] = replace(entry, capacity=n, slots=slots)
            file = self._the_folder.open_data(words_name, entry, write=True)
            try:
                calls.lengthen(file, words_bytes(slots))
                calls.sync(file)
            finally:
                calls.close(file)
        if capacity:
            self._meta = replace(self._meta, caches=tuple(entries[entry.name] for entry in self._meta.caches))
            self._the_folder.write_meta(self._meta)

    def _read_all(self) -> None:
        """Map the data files, and copy what the journal has over them."""
        memories = {entry.id: self._map_cache(entry) for entry in self._meta.caches}
        for frame in self._journal.read(partial(most_bytes, self._meta)):
            apply_frame(frame, memories, self._meta.id, self.path)
        if lost := self._journal.find_damage():
            raise CorruptPoolError(f"{self.path}: commit {lost} is damaged in the journal, and a later one follows it")
        for memory in memories.values():
            self._need_zeros_behind(memory)
            self._add_cache(memory)

    def _need_zeros_behind(self, memory: PoolCacheMemory) -> None:
        """Raise if generations behind those of the slabs made are not 0; a reader does without them."""
        behind, entry = memory.words_behind(), memory.entry
        if self._is_writer:
            end = memory.made_bytes(memory.n_slabs)[WORDS]
            if behind.any():
                raise odd_generations(self.path, entry, end - behind.nbytes)
            self._the_folder.need_zeros_behind(entry, end)
        elif behind.any():
            behind[:] = 0

    def _map_cache(self, entry: CacheEntry) -> PoolCacheMemory:
        """Return the memory of a cache, as the data files have it."""
        folder = self._the_folder
        if self._is_writer:
            calls.close(folder.open_data(sums_name, entry, write=True))  # or the first checkpoint would miss it
        with folder.data_files(entry) as (words, records):
            n_slabs, first = folder.read_words_head(words, self._meta.id, entry)
            memory = PoolCacheMemory(entry, first, not self._is_writer)
            memory.map_files(words, records, n_slabs)
        memory.make_slabs(n_slabs)
        return memory

    def _add_cache(self, memory: PoolCacheMemory) -> PoolCache[Any]:
        """Return the cache of some memory, which is as the last commit left it."""
        memory.tear()
        if self._is_writer:
            self._written.forget(memory.ranges())
        memory.enter()
        cache = self._caches[memory.entry.id] = make_cache(self, memory, not self._is_writer)
        self._made = []
        return cache

    # --- Commit ---

    def commit(self) -> int:
        """
        Make all changes since the last commit last, at once: allocs, frees and stores, in all caches.

        Returns
        -------
        int
            Number of the last commit; if nothing was written since, there is no new one.

        Raises
        ------
        PoolFullError
            If the disk, a quota or the limit of file sizes is full.  Memory and the pool are as before: free some, commit again.
        PoolFailedError
            If the system could not sync, now or before.  The pool holds the last commit or this one; open it again.
        ReadOnlyError, ClosedError
            If the pool was opened to read, or is closed.
        TransactionError
            Within a transaction, whose end commits.
        BusyError
            If another thread is in a call of the pool.

        Notes
        -----
        Some 10 µs, 1 ns for each page of 4 KiB in memory, 0.5 µs for each page that was written, and the sync of the medium.

        Examples
        --------
        >>> import tempfile, numpy as np, jitslab
        >>> folder = tempfile.TemporaryDirectory()
        >>> with jitslab.open_pool(f"{folder.name}/pool") as pool:
        ...     cache = pool.create_cache("points", np.dtype([("x", "f8")]), capacity=10)
        ...     h = cache.alloc(x=1.0)
        ...     pool.commit(), pool.commit()
        (1, 1)
        >>> folder.cleanup()
        """
        with self._alone("commit"):
            self._need_writer()
            self._need_outside("commit")
            return self._commit()

    def _commit(self) -> int:
        """Make all changes last."""
        self._need_sound()
        if self._is_half_done:
            raise TransactionError(f"the changes of a transaction of pool {self.path!r} are not undone yet: call rollback first")
        runs = self._written.take(self._note_slabs())
        if len(runs):
            named = self._named(runs)
            staged = stage(named) if self._written.needs_hashes else None
            try:
                self._journal.append(named)
            except PoolFailedError as error:
                self._failure = str(error)
                raise
            self._written.done(None if staged is None else hashes_of(staged, self._written.seed))
            self._commits += 1
            self._dropped.clear()
            if self._journal.used > self._most_journal:
                self._try_checkpoint()
        return self._journal.number

    def _note_slabs(self) -> npt.NDArray[np.int64]:
        """Write into the head of each file of generations how many slabs were made; returns the memory of all caches."""
        made = [cache._c[N_SLABS] for cache in self._caches.values()]
        if made != self._made:
            memories = [cache._memory for cache in self._caches.values()]
            ranges = np.array([row for memory in memories for row in memory.note_slabs()], np.int64).reshape(-1, 2)
            files = np.array([(id_, which) for id_ in self._caches for which in (WORDS, RECORDS)], np.int64).reshape(-1, 2)
            order = np.argsort(ranges[:, 0])
            self._ranges = np.ascontiguousarray(ranges[order])
            self._files = np.ascontiguousarray(files[order])
            self._places = self._ranges.ctypes.data, self._files.ctypes.data
            self._most_journal = max(LEAST_JOURNAL, int(ranges[:, 1].sum()) // 4)
            self._made = made
        return self._ranges

    def _named(self, runs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return runs of memory with the cache, the file and the offset of each, as of `Journal.append`."""
        named = np.empty((len(runs), RUN_WORDS), np.int64)
        name_runs(runs.ctypes.data, len(runs), *self._places, named.ctypes.data)
        return named

    # --- Rollback and transactions ---

    def rollback(self) -> None:
        """
        Undo all changes since the last commit.

        Needs that no other thread uses the caches.  Handles of records that are gone are refused, and so are their guards, with
        one exception: if a slot was live at the last commit, then freed and taken again, a handle from after that may name a
        later record of the slot.

        Raises
        ------
        BusyError
            If other threads are using a cache, or are in a call of the pool; nothing is undone.
        ReadOnlyError, ClosedError, PoolFailedError, TransactionError
            As `commit`.
        """
        with self._alone("rollback"):
            self._need_writer()
            self._need_outside("rollback")
            self._rollback()

    def _rollback(self) -> None:
        """Undo all changes."""
        self._need_sound()
        for cache in self._caches.values():
            cache._need_rest("rollback")
        for cache in self._dropped:
            self._written.count(cache._memory.lost_records())
        runs = self._written.take(self._note_slabs())
        if not len(runs):
            self._is_half_done = False
            return
        named = self._named(runs)
        before = {id_: cache._memory.copy_of(WORDS, named[named[:, 0] == id_]) for id_, cache in self._caches.items()}
        self._failure, self._made, raised = "a rollback was cut short", [], []
        versions = self._journal.last_versions()
        with telling(self.path):
            try:
                for id_, cache in self._caches.items():
                    own = named[named[:, 0] == id_]
                    if len(own):
                        restore(cache._memory, self._journal, versions, self._the_folder, own)
                        raised += raise_generations(cache._memory, before[id_])
                        recover(cache._address)
            except (OSError, PoolError) as error:
                raise PoolFailedError(f"{self.path}: a rollback was cut short: {error}; open the pool again") from error
        self._failure, self._is_half_done = "", False
        self._dropped.clear()
        is_raised = np.isin(runs[:, 0], raised)  # these are committed next
        self._written.forget(whole_pages(runs[~is_raised], runs[is_raised]))

    @contextmanager
    def transaction(self) -> Iterator[Pool]:
        """
        Make the changes of a block last together: it ends with a commit, or by an exception with a rollback.

        What was written before the block is committed first.

        Raises
        ------
        TransactionError
            Within another transaction.
        BusyError, PoolFullError, PoolFailedError, ReadOnlyError, ClosedError
            As `commit` and `rollback`.  If the commit at the end finds no room, the changes stay, not yet committed.  If the
            rollback at the end is refused or interrupted, `commit` is refused until `rollback` was called.

        Examples
        --------
        >>> import tempfile, numpy as np, jitslab
        >>> folder = tempfile.TemporaryDirectory()
        >>> with jitslab.open_pool(f"{folder.name}/pool") as pool:
        ...     cache = pool.create_cache("points", np.dtype([("x", "f8")]), capacity=10)
        ...     try:
        ...         with pool.transaction():
        ...             h = cache.alloc(x=1.0)
        ...             raise ValueError("no")
        ...     except ValueError:
        ...         len(cache), h in cache
        (0, False)
        >>> folder.cleanup()
        """
        has_begun = False
        try:
            with self._alone("transaction"):
                self._need_writer()
                self._need_outside("transaction")
                self._commit()
                has_begun = self._in_transaction = True
            yield self
            with self._alone("commit", waits=True):
                self._need_writer()
                has_begun = self._in_transaction = False
                self._commit()
        except BaseException as error:
            if has_begun:
                self._is_half_done = True
                try:
                    if not (isinstance(error, GeneratorExit) and self._lock.locked()):  # it can be collected within a call
                        with self._lock:
                            if not self._is_closed:
                                self._rollback()
                finally:
                    self._in_transaction = False
            raise

    # --- Checkpoint ---

    def checkpoint(self) -> bool:
        """
        Write what is committed from the journal into the data files, so that the journal is empty again.

        Commits do that by themselves when the journal is long.  This call also gives memory back: if more pages than `keep`
        allows are in memory because they were written, and nothing was written since the last commit.  For that no other
        thread may write to records meanwhile.

        Returns
        -------
        bool
            False if a reader still sees an earlier commit: until it calls `refresh` or ends, the journal stays.

        Raises
        ------
        PoolFullError
            If the disk or a quota is full; nothing is lost, and the journal stays.
        PoolFailedError, ReadOnlyError, ClosedError, TransactionError, BusyError
            As `commit`.
        """
        with self._alone("checkpoint"), self._telling():
            self._need_writer()
            self._need_outside("checkpoint")
            self._need_sound()
            is_done = self._checkpoint()
            if is_done:
                self._drop_memory()
            return is_done

    def _try_checkpoint(self) -> None:
        """Write a long journal into the data files after a commit: if that fails, the commit holds, and the next tries again."""
        try:
            self._checkpoint()
        except PoolFailedError as error:
            self._failure = str(error)
        except PoolError:
            self._postponed += 1

    def _checkpoint(self) -> bool:
        """Write the journal into the data files, unless a reader is behind."""
        if self._journal.used == BLOCK:  # it has no frames
            return True
        number = self._journal.number
        with telling(self.path):
            try:
                if not self._the_readers.exclude(number):
                    self._postponed += 1
                    return False
                write_back(self._journal, self._the_folder, self._meta)
                self._journal.reset()
                self._shrunk = {cache for cache in self._shrunk if not self._punch(cache._memory)}
            finally:
                self._the_readers.admit(number)
        self._checkpoints += 1
        return True

    def _punch(self, memory: PoolCacheMemory) -> bool:
        """Give the space of released slabs in the file back; returns False if the last commit has live records in one."""
        self._written.before_drop(memory.ranges())
        return punch_empty(self._the_folder, memory)

    def _drop_memory(self) -> None:
        """Have memory be as the files are, if too many pages were written and all are committed."""
        if self._private_bytes() <= self._keep or len(self._written.take(self._note_slabs())):
            return
        with telling(self.path):
            for cache in self._caches.values():
                cache._need_rest("checkpoint")
            for cache in self._caches.values():
                self._map_again(cache._memory)
        self._renew_written()

    def _map_again(self, memory: PoolCacheMemory) -> None:
        """Map the data files of a cache once more."""
        with self._the_folder.data_files(memory.entry) as (words, records):
            n_slabs, _ = self._the_folder.read_words_head(words, self._meta.id, memory.entry)
            memory.make_slabs(n_slabs)  # a writer has more than the file, perhaps
            memory.map_files(words, records, memory.n_slabs)

    def _renew_written(self) -> None:
        """Look for written pages of new mappings."""
        self._written.close()
        self._written = Written(is_dax=self._journal.is_dax)
        self._written.forget(self._note_slabs())

    def _before_shrink(self, cache: PoolCache[Any]) -> None:
        """Prepare a cache for giving memory of empty slabs back: the next checkpoint gives back that of the file."""
        self._need_open()
        self._written.before_drop(cache._memory.ranges())
        self._shrunk.add(cache)
        self._dropped.add(cache)

    # --- Readers ---

    def refresh(self) -> int:
        """
        See the last commit, as a reader; returns its number.

        Handles of records that were freed since are refused from now on.  Kernels that run meanwhile in other threads may see
        parts of both commits: refresh between kernels.  A writer sees its own changes always.

        Raises
        ------
        CorruptPoolError
            If a file is damaged.
        PoolError
            If the system refuses to read.
        ClosedError, BusyError
            As `commit`.

        Notes
        -----
        O(pages changed): some 1 µs each.  If an exception ends it, the records may be of no commit, until it is called again and
        succeeds.
        """
        with self._alone("refresh"):
            self._need_open()
            if not self._is_writer:
                with telling(self.path):
                    self._keep_trying(self._refresh)
            return self._journal.number

    def _keep_trying(self, read: Callable[[], None]) -> None:
        """Read the pool; if a writer made or dropped caches meanwhile, read it anew."""
        for _ in range(OPEN_TRIES):
            meta = self._meta
            try:
                return read()
            except CorruptPoolError:
                if self._the_folder.read_meta() == meta:
                    raise
                read = self._read_anew
        return read()

    def _refresh(self) -> None:
        """Read what the journal has more; if that was cut short before, read all."""
        meta = self._the_folder.read_meta()
        if self._is_cut or not self._has_room(meta):
            return self._read_anew()
        journal, self._is_cut = self._journal, True
        self._follow_caches(meta)
        if journal.follow_reset():  # all that was read before is in the data files now
            self._map_all()
        self._read_journal()
        self._is_cut = False
        return None

    def _read_anew(self) -> None:
        """Read the data files and the whole journal; the writer makes no checkpoint meanwhile."""
        self._is_cut = True
        self._the_readers.begin()
        if hasattr(self, "_journal"):
            self._journal.close()
        meta = self._the_folder.read_meta()
        self._journal = Journal.open(self._the_folder.file, meta.id)
        if not hasattr(self, "_written"):
            self._written = Written(is_dax=self._journal.is_dax)
        self._follow_caches(meta)
        self._map_all()
        self._read_journal()
        self._is_cut = False

    def _has_room(self, meta: Meta) -> bool:
        """Whether no cache has another capacity than before."""
        return all(self._caches[entry.id]._memory.entry == entry for entry in meta.caches if entry.id in self._caches)

    def _follow_caches(self, meta: Meta) -> None:
        """Follow a writer that made or dropped caches, or raised a capacity."""
        if meta.id != self._meta.id:
            raise CorruptPoolError(f"{self.path} is another pool now")
        self._meta, entries = meta, {entry.id: entry for entry in meta.caches}
        for id_ in [id_ for id_, cache in self._caches.items() if entries.get(id_) != cache._memory.entry]:
            self._caches.pop(id_)._end_with_pool()
        for entry in meta.caches:
            if entry.id not in self._caches:
                self._add_cache(self._map_cache(entry))

    def _map_all(self) -> None:
        """Have the memory of all caches be as the data files are."""
        for cache in self._caches.values():
            self._map_again(cache._memory)

    def _read_journal(self) -> None:
        """Copy what the journal has more over memory."""
        memories = {id_: cache._memory for id_, cache in self._caches.items()}
        for frame in self._journal.read(partial(most_bytes, self._meta)):
            apply_frame(frame, memories, self._meta.id, self.path)
        for memory in memories.values():
            self._need_zeros_behind(memory)
        self._the_readers.move(self._journal.number)

    # --- Caches ---

    def create_cache(
        self,
        name: str,
        dtype: type[Any] | RecordLike,
        *,
        capacity: int,
        colouring: bool = True,
        init: Any = None,
    ) -> PoolCache[Any]:
        """
        Make a cache in the pool; it lasts at once, empty.

        Parameters
        ----------
        name : str
            1 to 255 printable characters, without ``#``.
        dtype : numpy.dtype or class
            As of `SlabCache`; of the dtypes NumPy's own, with at most 4,096 fields in at most 16 levels.
        capacity : int
            Records that can be live at once, up to 2**32; no space is taken before it is used.  Opening the pool can raise it.
        colouring, init
            As of `SlabCache`.

        Returns
        -------
        PoolCache

        Raises
        ------
        DuplicateNameError
            If the pool has a cache of that name; `require_cache` returns it.
        LayoutError
            If the dtype cannot be the record of a cache in a pool, or `init` is no record of it.
        CapacityError
            If the name or the capacity is out of bounds, or the file system does not hold files of that length.
        ReadOnlyError, ClosedError, PoolFullError, PoolFailedError, TransactionError, BusyError
            As `commit`.
        """
        with self._alone("create_cache"):
            self._need_writer()
            self._need_outside("create_cache")
            self._need_sound()
            check_name("a cache", name, {cache.name: cache for cache in self._caches.values()})
            entry = new_entry(self._meta.next, name, dtype, as_count(capacity, "capacity", 1), bool(colouring), init)
            meta = replace(self._meta, next=entry.id + 1, caches=(*self._meta.caches, entry))
            first = 2 * first_cycle(next(serials))
            with self._telling(f"{self.path}: the files of cache {name!r}"):
                self._the_folder.make_data(meta.id, entry, first)
                memory = PoolCacheMemory(entry, first, is_reader=False)
                memory.start_head(meta.id)
                self._replace_meta(meta)
            cache = self._add_cache(memory)
            cache._declare(declared_class(plain(dtype)))
            self._failure = ""
            return cache

    def require_cache(self, name: str, dtype: type[Any] | RecordLike, *, capacity: int, **options: Any) -> PoolCache[Any]:
        """
        Return the cache of a name, made if there is none; guards are of the class, if `dtype` is one.

        Raises
        ------
        ConflictError
            If there is one of another dtype.
        LayoutError, CapacityError, ReadOnlyError, ClosedError, PoolFullError, PoolFailedError, TransactionError, BusyError
            As `create_cache`.
        """
        self._need_open()
        cache = self._find(name)
        if cache is None:
            return self.create_cache(name, dtype, capacity=capacity, **options)
        self._need_dtype(cache, dtype)
        cache._declare(declared_class(plain(dtype)))
        return cache

    def _need_dtype(self, cache: PoolCache[Any], dtype: Any) -> None:
        """Raise unless a cache has a dtype."""
        wanted = check_dtype(plain(dtype))
        if describe(wanted) != describe(cache.dtype):
            raise ConflictError(f"cache {cache.name!r} of {self.path} has records of {cache.dtype}, not of {wanted}")

    def drop_cache(self, name: str) -> None:
        """
        Remove a cache and its records from the pool, at once and for good; its object is closed, and so are its guards.

        Raises
        ------
        UnknownNameError
            If there is none of that name.
        FaultError
            If compiled code used a refused handle of it, and nobody was told; it is dropped.
        ReadOnlyError, ClosedError, PoolFullError, PoolFailedError, TransactionError, BusyError
            As `commit`.
        """
        with self._alone("drop_cache"):
            self._need_writer()
            self._need_outside("drop_cache")
            self._need_sound()
            cache = self.caches[name]
            entry = cache._memory.entry
            if entry.id == self._meta.root:
                raise PoolError("the root cannot be dropped")
            meta = replace(self._meta, caches=tuple(other for other in self._meta.caches if other.id != entry.id))
            with self._telling():
                self._replace_meta(meta)
            self._written.forget(cache._memory.ranges())  # while it has its slabs: none of their pages may stay among the written
            del self._caches[entry.id]
            self._shrunk.discard(cache)
            self._dropped.discard(cache)
            self._made = []
            fault = cache._end_with_pool()
            self._failure = ""
            with suppress(OSError):  # what stays is removed when the pool is opened next
                self._the_folder.remove_data(entry)
            if fault is not None:
                raise fault

    def _replace_meta(self, meta: Meta) -> None:
        """Have other meta data, in the file and here; until the caller has followed, the pool counts as failed."""
        self._failure = "a change of its caches was cut short"
        try:
            self._the_folder.write_meta(meta)
        except (OSError, PoolError):
            self._failure = ""
            raise
        self._meta = meta

    @property
    def caches(self) -> Names[PoolCache[Any]]:
        """The caches by name, without the root's: a read-only mapping."""
        return Names("cache", self._find, lambda: {cache.name: cache for cache in self._own_caches()})

    def _own_caches(self) -> list[PoolCache[Any]]:
        """Return the caches, without the root's."""
        return [cache for id_, cache in self._caches.items() if id_ != self._meta.root]

    def _find(self, name: str) -> PoolCache[Any] | None:
        """Return the cache of a name, or None."""
        return next((cache for cache in self._own_caches() if cache.name == name), None)

    def __getitem__(self, name: str) -> PoolCache[Any]:
        """Return the cache of a name; raises UnknownNameError, which proposes names near it."""
        self._need_open()
        return self.caches[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is a cache of a name."""
        return isinstance(name, str) and self._find(name) is not None

    @property
    def root(self) -> Any:
        """
        The root: one record, by reference, as ``cache[h]`` is; a reader's cannot be written to.

        Raises
        ------
        PoolError
            If the pool was made without a root.
        """
        self._need_open()
        if self._meta.root is None:
            raise PoolError(f"{self.path} was made without a root: give open_pool the dtype of one when the pool is made")
        return self._caches[self._meta.root][self._root]

    def _need_root(self, root: Any) -> None:
        """Take the slot of a new root; raise if the root has another dtype than it should have."""
        if root is not None and self._meta.root is None:
            raise ConflictError(f"{self.path} was made without a root")
        if self._meta.root is None:
            return
        cache = self._caches[self._meta.root]
        if root is not None:
            self._need_dtype(cache, root)
        n, first = cache._first_live(1)
        if n == 0 and self._is_writer:
            first = cache.alloc_many(1)
            self._commit()
        elif n == 0 and self._journal.number == 0:
            raise PoolPathError(f"{self.path}: the pool is not made yet, it has no commit with its root; mode 'r+' makes it")
        elif n != 1:
            raise CorruptPoolError(f"{self.path} has {n} roots")
        self._root = int(first[0])

    def _reduced(self, name: str) -> tuple[Any, ...]:
        """Return how a cache is pickled."""
        return open_cache, (self.path, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as the path: the copy is a reader."""
        self._need_open()
        return reader_of, (self.path,)

    # --- Links ---

    def unreachable(self, roots: Any = (), links: Mapping[str, SlabCache[Any]] | None = None) -> ByCache[npt.NDArray[np.int64]]:
        """
        Return the live records that no path of links from the pool's root, or from other roots, leads to.

        Parameters
        ----------
        roots : int, array_like of int, or mapping, optional
            More roots than the pool's: handles of one cache; or of several, as ``{cache or name: handles}``.
        links : mapping of str to SlabCache, optional
            Caches that links lead to and that are not of this pool.

        Returns
        -------
        ByCache
            A dict: for each cache, by its name, an array of handles, by slot.  Its attribute `dangling` says how many links of
            reached records are dangling: these are passed over.

        Raises
        ------
        HandleError, HandleTypeError, RecordTypeError, UnknownNameError, CacheTypeError, LayoutError, BusyError, FaultError
            As `SlabAllocator.unreachable`.
        ClosedError
            After `close`.

        Examples
        --------
        >>> import tempfile, numpy as np, jitslab
        >>> folder = tempfile.TemporaryDirectory()
        >>> node = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
        >>> root = np.dtype([("head", jitslab.link("nodes"))])
        >>> with jitslab.open_pool(f"{folder.name}/pool", root=root) as pool:
        ...     nodes = pool.create_cache("nodes", node, capacity=10, init="zero")
        ...     pool.root["head"], lost = nodes.alloc(), nodes.alloc()
        ...     pool.unreachable()["nodes"].tolist() == [lost], pool.collect()
        (True, {'nodes': 1})
        >>> folder.cleanup()
        """
        with self._alone("unreachable"):
            self._need_open()
            found = reach.unreachable(self._by_name(), roots, links, self._always())
            found.pop(ROOT, None)
            return found

    def collect(self, roots: Any = (), links: Mapping[str, SlabCache[Any]] | None = None) -> ByCache[int]:
        """
        Free the live records that `unreachable` returns; returns how many of each cache.

        It is not committed: `rollback` undoes it.

        Raises
        ------
        ReadOnlyError
            If the pool was opened to read.
        Exception
            As `unreachable`; nothing is freed.
        """
        with self._alone("collect"):
            self._need_writer()
            freed = reach.collect(self._by_name(), roots, links, self._always())
            freed.pop(ROOT, None)
            return freed

    def _by_name(self) -> dict[str, SlabCache[Any]]:
        """Return all caches by name, the root's among them."""
        return {cache.name: cache for cache in self._caches.values()}

    def _always(self) -> dict[SlabCache[Any], list[int]]:
        """Return the root as a root of links."""
        return {} if self._meta.root is None else {self._caches[self._meta.root]: [self._root]}

    # --- What it is ---

    def check(self, links: bool = False) -> None:
        """
        Look at everything again: all that the last commit left in the files, and the caches as they are.

        Parameters
        ----------
        links : bool, default False
            Follow links, too: each is NULL or the handle of a live record.

        Raises
        ------
        PoolLawError
            If a law of `jitslab.pool.check` is broken; its `broken` names each, with file, page and slot.
        BusyError
            If other threads are using a cache, or are in a call of the pool.
        FaultError
            If compiled code used a refused handle, and nobody was told.
        ClosedError
            If the pool is closed.

        Notes
        -----
        Reads each page that was ever written, some 0.4 ns a byte; 3 ns a slot.  Other processes read and commit meanwhile, but
        make no checkpoint.  ``jitslab check --repair`` does what can be done.

        Examples
        --------
        >>> import tempfile, numpy as np, jitslab
        >>> folder = tempfile.TemporaryDirectory()
        >>> with jitslab.open_pool(f"{folder.name}/pool") as pool:
        ...     cache = pool.create_cache("nodes", np.dtype([("next", jitslab.link("nodes"))]), capacity=10)
        ...     h = cache.alloc(next=12345)
        ...     pool.check()
        ...     try:
        ...         pool.check(links=True)
        ...     except jitslab.PoolLawError as error:
        ...         print(error.broken[0].partition(",")[0])
        0.records
        >>> folder.cleanup()
        """
        with self._alone("check"):
            self._need_open()
            with telling(self.path):
                found = broken_files(self._the_folder)
            found += broken_caches(list(self._caches.values()), self._meta.root, links)
        if found:
            more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
            raise PoolLawError(f"{self.path}: {found[0]}{more}", tuple(map(str, found)))

    @property
    def number(self) -> int:
        """Number of the last commit that this process sees: 0 of a new pool."""
        self._need_open()
        return self._journal.number

    @property
    def mode(self) -> str:
        """``"r"`` or ``"r+"``."""
        return self._mode

    @property
    def _is_writer(self) -> bool:
        return self._mode != "r"

    def info(self) -> PoolInfo:
        """
        Say what the pool is: its caches, their live records and their space on disk, the journal, the file system, the writer.

        Returns
        -------
        PoolInfo
            A frozen dataclass: ``path``, ``format``, ``number``, ``caches``, ``root``, ``journal_bytes``, ``journal_disk_bytes``,
            ``file_system``, ``is_dax``, ``block_bytes``, ``writer``.

        Notes
        -----
        Counts live records: 4 bytes a slot are read.

        Examples
        --------
        >>> import tempfile, numpy as np, jitslab
        >>> folder = tempfile.TemporaryDirectory()
        >>> with jitslab.open_pool(f"{folder.name}/book") as pool:
        ...     h = pool.create_cache("orders", np.dtype([("price", "f8")]), capacity=10**6).alloc(price=9.5)
        ...     info = pool.info()
        >>> info.number, info.caches[0].name, info.caches[0].dtype, info.caches[0].live
        (0, 'orders', 'price f8', 1)
        >>> folder.cleanup()
        """
        with self._alone("info"), telling(self.path):
            journal, caches = self._journal, list(self._caches.values())
            return pool_info(self._the_folder, journal.number, journal.used - BLOCK, caches, self._meta.root)

    def stats(self) -> dict[str, Any]:
        """
        Count what the pool did since it was opened.

        Returns
        -------
        dict
            ``number``: of the last commit; ``commits``, ``checkpoints``, ``postponed`` (by readers or failures);
            ``journal_bytes`` in use; ``private_bytes``: memory of pages that were written; ``dirty``: how written pages are
            found, ``"userfaultfd"``, ``"pagemap"`` or ``"hashes"``; ``journal``: ``"file"`` or ``"mapped"``.

        Raises
        ------
        ClosedError, BusyError
            As `commit`.
        """
        with self._alone("stats"):
            self._need_open()
            return {
                "number": self._journal.number,
                "commits": self._commits,
                "checkpoints": self._checkpoints,
                "postponed": self._postponed,
                "journal_bytes": self._journal.used,
                "private_bytes": self._private_bytes(),
                "dirty": self._written.mechanism,
                "journal": "mapped" if self._journal.is_mapped else "file",
            }

    def _private_bytes(self) -> int:
        """Return how much memory this process has for pages that were written."""
        memories = [cache._memory for cache in self._caches.values()]
        return self._written.private_bytes(np.concatenate([memory.ranges() for memory in memories])) if memories else 0

    # --- The end ---

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._is_closed

    def close(self, *, commit: bool = True) -> None:
        """
        Commit, and close: the caches refuse everything from now on.  A second `close` does nothing.

        Parameters
        ----------
        commit : bool, default True
            False drops what was written since the last commit.

        Raises
        ------
        PoolFullError, PoolFailedError
            If it cannot commit; the pool stays open.
        FaultError
            If compiled code used refused handles of a cache, and nobody was told; the pool is closed.
        TransactionError
            Within a transaction.
        BusyError
            If another thread is in a call of the pool.
        """
        if self._is_closed:
            self._let_go()  # as far as the first call was cut short
            return
        with self._alone("close"):
            self._need_open()
            self._need_outside("close")
            if commit and self._is_writer:
                self._commit()
            fault = self._end()
        if fault is not None:
            raise fault

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Commit and close, or, if an exception ends the block, close alone."""
        if error is None:
            return self.close()
        with suppress(ClosedError), self._alone("close", waits=True):  # another thread may be in the middle of a commit
            self._need_open()
            super().__exit__(kind, error, trace)
        return None

    def _end(self) -> FaultError | None:
        """Close the caches and the files; returns the faults that nobody was told of."""
        self._is_closed = True
        faults = [fault for cache in self._caches.values() if (fault := cache._end_with_pool()) is not None]
        self._caches = {}  # they hold the pool: their addresses would wait for the garbage collector
        self._let_go()
        return joined(faults)

    def __del__(self, is_finalizing: Any = sys.is_finalizing) -> None:
        """Close the files, and warn that the pool was not closed."""
        if is_finalizing() or getattr(self, "_is_closed", True):
            return
        number = self._journal.number
        self._let_go()
        if self._pid == os.getpid() and self._is_writer:
            text = f"never closed: pool {self.path!r}; what was written since commit {number} is dropped"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)

    def _let_go(self) -> None:
        """Close the files, which gives the locks back; a second call does what the first did not do."""
        self._is_closed = True
        for name in ("_written", "_journal", "_folder", "_readers", "_writer"):
            if getattr(self, name, None) is not None:
                with suppress(OSError):  # what was committed was synced; or the program closed a descriptor by its number
                    getattr(self, name).close()

    def _leave_in_child(self) -> None:
        """Close in a child of fork: the pool is the parent's."""
        self._lock = threading.Lock()
        for cache in self._caches.values():
            cache._end_with_pool()
        self._let_go()

    def __repr__(self) -> str:
        """Short, whatever the size."""
        if self._is_closed:
            return f"<Pool {self.path!r}: closed>"
        names = ", ".join(repr(cache.name) for cache in self._own_caches()) or "no caches"
        return f"<Pool {self.path!r}, mode {self._mode!r}, commit {self._journal.number}: {names}>"

    # --- Checks ---

    def _closed_text(self) -> str:
        if self._pid != os.getpid():
            return f"pool {self.path!r} is its parent's: a child of fork opens it again"
        return f"pool {self.path!r} is closed"

    def _need_open(self) -> None:
        if self._pid != os.getpid():  # of a fork that Python did not see
            self._is_closed = True
        super()._need_open()

    def _need_writer(self) -> None:
        """Raise unless the pool is open to write."""
        self._need_open()
        if not self._is_writer:
            raise ReadOnlyError(f"pool {self.path!r} was opened to read; mode 'r+' can write")

    def _need_outside(self, what: str) -> None:
        """Raise within a transaction."""
        if self._in_transaction:
            raise TransactionError(f"{what} within a transaction of pool {self.path!r}: leave its block first")

    def _need_sound(self) -> None:
        """Raise if the pool failed before."""
        if self._failure:
            raise PoolFailedError(f"pool {self.path!r} failed before, open it again: {self._failure}")

    def _alone(self, what: str, *, waits: bool = False) -> threading.Lock:
        """
        Return the lock that keeps other threads out of the pool's calls, for a `with` block; if one is in: waits or raises.

        The block looks whether the pool is still open.  It is a lock itself: between a lock that Python code takes, and the block
        that gives it back, an interrupt would leave it locked.
        """
        self._need_open()
        if not waits and self._lock.locked():
            raise BusyError(f"{what}: another thread is in a call of pool {self.path!r}")
        return self._lock

    @contextmanager
    def _telling(self, doing: str = "") -> Iterator[None]:
        """Make errors of pools of those of the system; after a failed sync the pool refuses to write."""
        try:
            with telling(doing or self.path):
                yield
        except PoolFailedError as error:
            self._failure = self._failure or str(error)
            raise

    @property
    def _the_folder(self) -> Folder:
        assert self._folder is not None
        return self._folder

    @property
    def _the_readers(self) -> ReaderLock:
        assert self._readers is not None
        return self._readers


# --- Copies of what is committed ---


def stage(runs: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Copy runs of memory, as of `Journal.append`, have them name the copy, and return that."""
    staged = np.empty(int(runs[:, 4].sum()), np.uint8)
    sizes, source = np.ascontiguousarray(runs[:, 4]), np.ascontiguousarray(runs[:, 3])
    to = int(staged.ctypes.data) + np.cumsum(sizes) - sizes
    copy_entries(0, source.ctypes.data, to.ctypes.data, sizes.ctypes.data, len(runs))
    runs[:, 3] = to
    return staged


def hashes_of(staged: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.int64]:
    """Return the hash of each block."""
    hashes = np.empty(len(staged) // BLOCK, np.int64)
    hash_blocks(staged.ctypes.data, len(staged), seed, hashes.ctypes.data)
    return hashes


# --- Entries ---


def new_entry(id_: int, name: str, dtype: Any, capacity: int, colouring: bool, init: Any) -> CacheEntry:
    """Return the entry of a new cache."""
    own, declared = check_dtype(plain(dtype)), declared_class(plain(dtype))
    describe(own)
    stride, shift, _ = slab_shape(own.itemsize, max(1, own.alignment), colouring)
    slots = slots_of(stride, shift, capacity)
    class_name = None if declared is None else declared.__qualname__
    return CacheEntry(id_, name, stride, shift, capacity, slots, colouring, template_of(init, own, declared), class_name, own)


def slots_of(stride: int, shift: int, capacity: int) -> int:
    """Return how many slots a cache has: its capacity, those parked in magazines, and those that will be retired."""
    most = min(MAX_SLOTS, MOST_BYTES // stride) >> shift << shift
    if capacity > most:
        raise CapacityError(f"a cache of records of {stride} bytes has a capacity of at most {most}, got {capacity}")
    spare = max(HEAPS * 512, SPARE_SLOTS)
    return min(-(-(capacity + spare) >> shift << shift), most)


def memory_bytes() -> int:
    """Return the bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def most_kept(is_dax: bool) -> int:
    """Return how many bytes of written pages a checkpoint leaves in memory; on DAX none, as the files are memory themselves."""
    return 0 if is_dax else memory_bytes() // KEPT_SHARE


def as_count_of_bytes(n: Any) -> int:
    """Return a number of bytes as an int."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 0:
        raise CapacityError(f"keep is a number of bytes, 0 or more, got {shown(n)}")
    return n


# --- Readers that are unpickled ---


def reader_of(path: str) -> Pool:
    """Return a reader of a pool: the one that this process has open, or a new one."""
    for pool in list(_pools):
        if pool.path == path and pool._mode == "r" and not pool.closed:
            return pool
    return open_pool(path, "r")


def open_cache(path: str, name: str) -> PoolCache[Any]:
    """Return a cache of a pool that is opened to read."""
    return reader_of(path)[name]


# --- Fork ---


def _leave_all() -> None:
    """Close the pools of the parent in a child of fork."""
    for pool in list(_pools):
        if not pool.closed:
            pool._leave_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
