"""
A pool without an open pool: looked at by `check_pool`, and made whole by `repair_pool`, as far as that can be.

A repair first has the journal end before the first commit that is damaged, and what it cuts off is kept in a file beside it.
Then it writes the journal into the data files, as a checkpoint does; what is left is in these alone.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count

import numpy as np

from ..core.memory import first_cycle, serials
from ..errors import CorruptPoolError, PoolBusyError
from . import calls
from .check import PIECE_PAGES, Broken, Disk, Tick, broken_caches, broken_files, named, no_tick, read_pages, slots_on
from .files import DATA, Folder, telling
from .format import (
    BLOCK,
    JOURNAL,
    READER_LOCK,
    RECORDS,
    WORDS,
    WORDS_HEAD,
    WORDS_MAGIC,
    WORDS_OFFSET,
    WRITER_LOCK,
    CacheEntry,
    check_words_head,
    records_bytes,
    sums_name,
    words_bytes,
    words_head,
    words_name,
)
from .frames import LINE, MOST_BYTES
from .heads import HEAD_BYTES, HEAD_STEP, MOST_NUMBER, find_head
from .journal import Journal, head_named_by
from .locks import ReaderLock, WriterLock
from .pool import open_pool
from .restore import sums_of, with_file, write_back, write_sums

PIECE_BYTES = PIECE_PAGES * BLOCK


def check_pool(path: str | os.PathLike[str], links: bool = False, *, tick: Tick = no_tick) -> list[Broken]:
    """
    Look at all that a pool's files hold, and at its caches, beside a writer and other readers; nothing is written.

    Parameters
    ----------
    path : str or path
        The pool's directory.
    links : bool, default False
        Follow links, too.
    tick : callable, optional
        Called with numbers of bytes that were looked at.

    Returns
    -------
    list of Broken
        The broken laws of `jitslab.pool.check`, at most 1,000 of the files'.

    Raises
    ------
    PoolPathError
        If there is no pool, or it may not be read.
    PoolVersionError
        If it has a newer format.

    Examples
    --------
    >>> import tempfile, numpy as np, jitslab
    >>> folder = tempfile.TemporaryDirectory()
    >>> jitslab.open_pool(f"{folder.name}/pool").close()
    >>> jitslab.check_pool(f"{folder.name}/pool")
    []
    >>> with open(f"{folder.name}/pool/pool.json", "r+b") as file:
    ...     _ = file.seek(50), file.write(b"?")
    >>> [broken.law for broken in jitslab.check_pool(f"{folder.name}/pool")]
    [1]
    >>> folder.cleanup()
    """
    with telling(os.fsdecode(path)):
        folder = Folder(os.path.abspath(os.fsdecode(path)), "r")
        try:
            found = broken_files(folder, tick)
        finally:
            folder.close()
    if any(broken.law == 1 for broken in found):
        return found
    try:
        pool = open_pool(path, "r")
    except CorruptPoolError as error:
        law = 9 if "roots" in str(error) else 5
        return found or [Broken(law, "", str(error))]
    with pool:
        return found + broken_caches(list(pool._caches.values()), pool._meta.root, links)


def repair_pool(path: str | os.PathLike[str], *, tick: Tick = no_tick) -> list[str]:
    """
    Make a damaged pool one that can be opened, if its files say enough for that.

    Parameters
    ----------
    path : str or path
        The pool's directory; no process may have it open.
    tick : callable, optional
        Called with numbers of bytes that were looked at.

    Returns
    -------
    list of str
        What was done, and what was lost.  Nothing is written to a pool whose laws hold, but that files of no cache are removed.

    Raises
    ------
    PoolBusyError
        If a process has it open.
    CorruptPoolError
        If ``pool.json`` is damaged: nothing else says what the pool holds.
    PoolPathError, PoolVersionError
        As of `check_pool`.

    Notes
    -----
    Commits before the first damaged one in the journal stay; the others are kept in a file ``journal.cut-BYTE``.  Damaged pages
    of generations and records are taken as they are.  A head of generations is made again.  Missing records are zeros.
    `check_pool` says what is broken still: lost generations are not made up.

    Examples
    --------
    >>> import os, tempfile, numpy as np, jitslab
    >>> folder = tempfile.TemporaryDirectory()
    >>> with jitslab.open_pool(f"{folder.name}/pool") as pool:
    ...     h = pool.create_cache("points", np.dtype([("x", "f8")]), capacity=10).alloc(x=1.0)
    ...     _ = pool.commit(), pool.checkpoint()
    >>> os.truncate(f"{folder.name}/pool/0.records", 0)
    >>> jitslab.repair_pool(f"{folder.name}/pool")[-1]
    '0.records, page 0, slots 0 to 511: taken as it is; what it should be is lost'
    >>> with jitslab.open_pool(f"{folder.name}/pool") as pool:
    ...     pool["points"][h]["x"].item()
    0.0
    >>> folder.cleanup()
    """
    where = os.path.abspath(os.fsdecode(path))
    with telling(where):
        folder = Folder(where, "r+")
        try:
            done = Repair(folder, tick).run()
        finally:
            folder.close()
    with suppress(CorruptPoolError):
        pool = open_pool(where, "r")
        pool.close()
        return done
    if [broken.law for broken in check_pool(where)] == [9]:
        open_pool(where, "r+").close()  # which makes a new root, if there is none
        done.append("the root was not live: it is a new record")
    return done


class Repair:
    """The repair of one pool, in a directory that is open."""

    def __init__(self, folder: Folder, tick: Tick) -> None:
        self.folder, self.tick = folder, tick
        self.done: list[str] = []

    def run(self) -> list[str]:
        """Do all that can be done; returns what was done."""
        with ExitStack() as stack:
            writer = WriterLock(self.open_lock(WRITER_LOCK, stack))
            writer.take(self.folder.path)
            readers = ReaderLock(self.open_lock(READER_LOCK, stack))
            found = broken_files(self.folder, self.tick)
            if any(broken.law == 1 for broken in found):
                raise CorruptPoolError(f"{found[0].text}; it cannot be repaired: nothing else says what the pool holds")
            if not readers.exclude(MOST_NUMBER):
                raise PoolBusyError(f"{self.folder.path} is being read; a repair needs a pool that no process has open")
            self.meta = self.folder.read_meta()
            if found:
                self.mend()
            self.remove_orphans()
        return self.done

    def open_lock(self, name: str, stack: ExitStack) -> int:
        """Open a file of locks, which may be missing."""
        file = self.folder.open(name, write=True, create=True)
        stack.callback(calls.close, file)
        return file

    def mend(self) -> None:
        """Make files, journal, heads and pages whole, in this order."""
        entries = [entry for entry in self.meta.caches if self.mend_files(entry)]
        self.mend_journal()
        with ExitStack() as stack:
            journal = Journal.open(self.folder.file, self.meta.id, is_writable=True)
            stack.callback(journal.close)
            disk = Disk(self.folder, stack)
            disk.meta, disk.journal = self.meta, journal
            for _ in disk.frames():
                pass
            disk.versions = journal.last_versions()
            for entry in entries:
                self.mend_head(entry, disk)
            if len(entries) == len(self.meta.caches):  # the journal has pages of a cache that cannot be repaired
                write_back(journal, self.folder, self.meta)
                journal.reset()
                disk.versions = None
                self.done.append(f"commits up to {journal.number} were written into the data files")
            for entry in entries:
                with self.folder.data_files(entry) as files:
                    self.mend_pages(entry, disk, files)

    # --- Files ---

    def mend_files(self, entry: CacheEntry) -> bool:
        """Have all files of a cache, in the length that they need; returns False if its generations are missing."""
        for kind in DATA:
            name = kind(entry.id)
            try:
                file = self.folder.open(name, write=True)
            except CorruptPoolError as error:
                if kind is words_name:
                    self.done.append(f"{error}; the generations of cache {entry.name!r} are lost, so nothing of it was repaired")
                    return False
                self.set_aside(name)
                file = calls.open_file(self.folder.file, name, create=True)
                if kind is sums_name:
                    self.make_sums(entry, file)
                self.done.append(f"{name} was made anew: {'sums of the pages as they are' if kind is sums_name else 'all zeros'}")
            try:
                if kind is words_name and calls.size_of(file) < words_bytes(entry.slots):
                    self.done.append(f"{name} had {calls.size_of(file)} bytes: lengthened to {words_bytes(entry.slots)} by zeros")
                    calls.lengthen(file, words_bytes(entry.slots))
                calls.sync(file)
            finally:
                calls.close(file)
        calls.sync_folder(self.folder.file)
        return True

    def set_aside(self, name: str) -> str:
        """Give what stands in the place of a file another name, if there is something; returns the name."""
        aside = next(new for k in count() if (new := f"{name}.damaged-{k}") not in calls.names_in(self.folder.file))
        with suppress(FileNotFoundError):
            calls.rename(self.folder.file, name, aside)
            self.done.append(f"{name} was set aside as {aside}")
        return aside

    def make_sums(self, entry: CacheEntry, sums: int) -> None:
        """Write the sums of all pages that are on the medium."""
        with self.folder.data_files(entry) as files:
            for which, (file, most) in enumerate(zip(files, (words_bytes(entry.slots), all_records(entry)), strict=True)):
                for start, stop in calls.data_ranges(file, most):
                    for page in range(start // BLOCK, -(-stop // BLOCK), PIECE_PAGES):
                        end = min(page + PIECE_PAGES, -(-stop // BLOCK))
                        write_sums(sums, [(which, page, sums_of(read_pages(file, page, end)))])

    def remove_orphans(self) -> None:
        """Remove the files of caches that the pool does not know."""
        before = set(calls.names_in(self.folder.file))
        self.folder.remove_orphans(self.meta)
        for name in sorted(before - set(calls.names_in(self.folder.file))):
            self.done.append(f"{name} was removed: it is of no cache")

    # --- The journal ---

    def mend_journal(self) -> None:
        """Have a journal whose head is there, and whose commits are all sound."""
        try:
            file = self.folder.open(JOURNAL, write=True)
        except CorruptPoolError as error:
            self.done.append(str(error))
            self.begin_journal()
        else:
            try:
                self.mend_journal_head(file)
            finally:
                calls.close(file)
        with ExitStack() as stack:
            disk = Disk(self.folder, stack)
            disk.meta = self.meta
            broken = list(disk.broken_journal())
            if broken:
                self.done.append(str(broken[0]))
                self.cut_journal(disk.sound_end)

    def mend_journal_head(self, file: int) -> None:
        """Write the head that the first commit names, if it is newer than those that are there; or begin a journal."""
        named = head_named_by(calls.read_at(file, LINE, BLOCK), self.meta.id)
        try:
            if not BLOCK <= calls.size_of(file) <= MOST_BYTES:
                raise CorruptPoolError(f"the journal has {calls.size_of(file)} bytes")
            _, salt, _, _ = find_head(calls.read_at(file, HEAD_STEP + HEAD_BYTES, 0), self.meta.id)
        except CorruptPoolError as error:
            self.done.append(str(error))
            if named is None:
                return self.begin_journal()
            salt = -1
        if named is not None and named[0] > salt:
            calls.write_at(file, named[1].ljust(BLOCK, b"\0"), 0)
            calls.sync(file)
            self.done.append("the journal's head was made again, from the first commit, which has its hash")
        return None

    def begin_journal(self) -> None:
        """Begin a journal anew."""
        self.set_aside(JOURNAL)
        Journal.create(self.folder.file, self.meta.id, 0).close()
        calls.sync_folder(self.folder.file)
        self.done.append("a new journal was begun: commits since the last checkpoint are lost, the next one has number 1")

    def cut_journal(self, end: int) -> None:
        """Have the journal end at a byte; what is behind is kept in another file."""
        name = next(new for k in count() if (new := f"journal.cut-{end}.{k}") not in calls.names_in(self.folder.file))
        with ExitStack() as stack:
            file = self.folder.open(JOURNAL, write=True)
            stack.callback(calls.close, file)
            copy = calls.open_file(self.folder.file, name, create=True)
            stack.callback(calls.close, copy)
            size = calls.size_of(file)
            for start, stop in calls.data_ranges(file, size):
                for at in range(max(start, end), stop, PIECE_BYTES):
                    calls.write_at(copy, calls.read_at(file, min(PIECE_BYTES, stop - at), at), at - end)
            calls.sync(copy)
            calls.sync_folder(self.folder.file)
            calls.truncate(file, end)
            calls.sync(file)
        self.done.append(f"the journal was cut at byte {end}; the {size - end} bytes behind it are in {name}")

    # --- Heads and pages ---

    def mend_head(self, entry: CacheEntry, disk: Disk) -> None:
        """Make the head of a file of generations again, if it is damaged and the journal does not have it."""
        name = words_name(entry.id)
        with ExitStack() as stack:
            file = self.folder.open(name, write=True)
            stack.callback(calls.close, file)
            data = calls.read_at(file, WORDS_OFFSET, 0)
            try:
                check_words_head(data, self.meta.id, entry, name)
                return
            except CorruptPoolError as error:
                if self.is_anothers(data, entry):
                    self.done.append(f"{error}; it seems to be another file, so it was not repaired")
                    return
            newest = disk.versions_of(entry, WORDS)
            if len(newest) and newest["offset"][0] == 0:
                return
            n_slabs = self.slabs_used(entry, disk, file)
            calls.write_at(file, words_head(self.meta.id, entry, n_slabs, 2 * first_cycle(next(serials))), 0)
            calls.sync(file)
            self.write_sums_of(entry, WORDS, file, range(1))
            disk.n_slabs[entry.id] = n_slabs
        self.done.append(f"the head of {name} was made again: {n_slabs} slabs have generations or records")

    def is_anothers(self, data: bytes, entry: CacheEntry) -> bool:
        """Whether a head is that of another pool, or of another cache of this one."""
        if len(data) < WORDS_HEAD.itemsize:
            return False
        head = np.frombuffer(data, WORDS_HEAD, 1)[0]
        others = {other.id for other in self.meta.caches} - {entry.id}
        return bool(head["magic"] == WORDS_MAGIC and (head["pool"] != self.meta.id or int(head["cache"]) in others))

    def slabs_used(self, entry: CacheEntry, disk: Disk, file: int) -> int:
        """Return how many slabs have generations that are not 0, or pages in the journal."""
        slots = 0
        for at, words in disk.committed_words(entry, file, WORDS_OFFSET):
            used = np.flatnonzero(words)
            if len(used):
                slots = (at - WORDS_OFFSET) // 4 + int(used[-1]) + 1
        records = disk.versions_of(entry, RECORDS)
        if len(records):
            end = int(records["offset"][-1] + records["n_bytes"][-1])
            slots = max(slots, -(-end // max(entry.stride, 1)))
        return min(-(-slots >> entry.shift), entry.slots >> entry.shift)

    def zero_words(self, entry: CacheEntry, disk: Disk, file: int) -> None:
        """Zero the generations behind the slabs that were made."""
        n_slabs = disk.slabs_of(entry)
        if n_slabs is None:
            return
        start, n = WORDS_OFFSET + 4 * (n_slabs << entry.shift), 0
        for at, words in disk.committed_words(entry, file, start):
            odd = np.flatnonzero(words)
            if len(odd):
                n += len(odd)
                with_file(self.folder, words_name, entry, partial(calls.write_at, data=bytes(words.nbytes), at=at))
                pages = range(at // BLOCK, (at + words.nbytes - 1) // BLOCK + 1)
                self.write_sums_of(entry, WORDS, file, pages)
        if n:
            self.done.append(f"{words_name(entry.id)}: {n} generations behind the slabs that were made are 0 now")

    def mend_pages(self, entry: CacheEntry, disk: Disk, files: tuple[int, int]) -> None:
        """Zero generations behind the slabs, and take pages with another sum as they are."""
        self.zero_words(entry, disk, files[WORDS])
        sums = self.folder.open(sums_name(entry.id), write=False)
        try:
            bad = [(which, pages) for which in (WORDS, RECORDS) for _, pages in disk.bad_pages(entry, which, files[which], sums)]
        finally:
            calls.close(sums)
        for which, pages in bad:
            name = DATA[which](entry.id)
            with_file(self.folder, DATA[which], entry, partial(calls.lengthen, n=(pages[-1] + 1) * BLOCK))
            self.write_sums_of(entry, which, files[which], pages)
            where = f"{name}, {named('page', pages)}, {named('slot', slots_on(entry, which, pages))}"
            is_one = len(pages) == 1
            taken = "taken as it is; what it" if is_one else "taken as they are; what they"
            self.done.append(f"{where}: {taken} should be is lost")

    def write_sums_of(self, entry: CacheEntry, which: int, file: int, pages: range) -> None:
        """Write the sums of some pages, as they are."""
        for at in range(pages[0], pages[-1] + 1, PIECE_PAGES):
            values = sums_of(read_pages(file, at, min(at + PIECE_PAGES, pages[-1] + 1)))
            with_file(self.folder, sums_name, entry, partial(write_sums, sums=[(which, at, values)]))


def all_records(entry: CacheEntry) -> int:
    """Return how long the file of records can be."""
    return records_bytes(entry.slots, entry.stride)
