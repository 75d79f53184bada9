"""
The laws of a pool, looked at again: in its files, and in its caches once they are open.

`broken_files` needs no open pool: it reads every page that has a sum, every commit of the journal, and every generation that
should be 0.  Meanwhile no checkpoint runs; a writer commits, and readers read, as ever.  `broken_caches` needs an open pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.layout import SLOT_MASK
from ..errors import CorruptPoolError, LawError, UnknownNameError
from ..links import links_of
from ..machine.addresses import page_bytes, round_up
from ..reach import dangling
from . import calls
from .cache import PoolCache
from .files import DATA, Folder
from .format import (
    BLOCK,
    JOURNAL,
    META,
    READER_LOCK,
    RECORDS,
    WORDS,
    WORDS_OFFSET,
    WRITER_LOCK,
    CacheEntry,
    Meta,
    check_words_head,
    most_bytes,
    records_bytes,
    records_name,
    words_bytes,
    words_name,
)
from .journal import Frame, Journal
from .locks import ReaderLock
from .restore import SUM_BYTES, heads_of, need_in_use, sums_of

LAWS = {
    1: "pool.json has its checksum, all in it is within bounds, and no two caches have one name or one id",
    2: "every file is there, is a regular file, and holds the slabs that were made",
    3: "the head of a file of generations names its pool and cache, and its numbers are within bounds",
    4: "a page that no commit of the journal has has its sum",
    5: "the commits in the journal are whole, follow each other, and stay within the files",
    6: "L1 to L9 of `jitslab.core.layout` hold of every cache",
    7: "generations behind those of the slabs that were made are 0",
    8: "a link of a live record is NULL, or the handle of a live record of its cache",
    9: "one record of the root's cache is live",
}

MOST_FOUND = 1000  # broken laws that are told: runs of pages count as one
TRIES = 5  # if the writer makes or drops caches meanwhile
PIECE_PAGES = 1024  # pages that are read at a time: 4 MiB
PIECE_SUMS = 1 << 16  # pairs of sums that are read at a time: 1 MiB

Pages = npt.NDArray[np.int64]
Tick = Callable[[int], None]  # is told of bytes that were looked at


def no_tick(n: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Broken:
    """
    A broken law of a pool, and where.

    Attributes
    ----------
    law : int
        Its number in `LAWS`.
    file : str
        Name of the file in the pool's directory.
    text : str
        What is wrong.
    pages, slots : range
        Pages of 4,096 bytes of the file, and slots of the cache; empty if it is none in particular.
    """

    law: int
    file: str
    text: str
    pages: range = range(0)
    slots: range = range(0)

    def __str__(self) -> str:
        """In one line."""
        text = self.text.rpartition(f"{self.file}: ")[2]
        places = [named(kind, of) for kind, of in (("page", self.pages), ("slot", self.slots)) if of]
        return f"{', '.join([self.file, *places])}: {text} (law P{self.law}: {LAWS[self.law]})"


def named(kind: str, of: range) -> str:
    """Return the name of one or some neighbours."""
    return f"{kind} {of[0]}" if len(of) == 1 else f"{kind}s {of[0]} to {of[-1]}"


# --- Files ---


def broken_files(folder: Folder, tick: Tick = no_tick) -> list[Broken]:
    """
    Return the broken laws P1 to P5 and P7 of a pool's files, at most MOST_FOUND.

    Raises
    ------
    PoolVersionError
        If a file has a newer format.
    PoolError, OSError
        If the system refuses to read.
    """
    found: list[Broken] = []
    for _ in range(TRIES):
        with ExitStack() as stack:
            disk = Disk(folder, stack, tick)
            found = list(islice(disk.broken(), MOST_FOUND))
            if not found or not disk.is_outdated():
                break
    return found


class Disk:
    """
    The files of a pool, which do not change meanwhile: no checkpoint runs.

    Parameters
    ----------
    folder : Folder
        Of the pool.
    stack : ExitStack
        Whose end closes all that is opened.
    tick : callable
        Is told of bytes that were looked at.
    """

    meta: Meta
    journal: Journal

    def __init__(self, folder: Folder, stack: ExitStack, tick: Tick = no_tick) -> None:
        self.folder, self.stack, self.tick = folder, stack, tick
        self.versions: npt.NDArray[Any] | None = None  # of pages in the journal
        self.n_slabs: dict[int, int] = {}  # of each cache whose head was read
        self.sound_end = BLOCK  # of the journal: where the first commit that is not sound starts

    def is_outdated(self) -> bool:
        """Whether a writer made or dropped caches since the meta data were read."""
        try:
            return self.folder.read_meta() != getattr(self, "meta", None)
        except CorruptPoolError:
            return False

    def broken(self) -> Iterator[Broken]:
        """Yield what is wrong."""
        for name in (WRITER_LOCK, READER_LOCK):
            try:
                file = self.open(name, self.stack)
            except CorruptPoolError as error:
                yield Broken(2, name, str(error))
                continue
            if name == READER_LOCK:
                ReaderLock(file).begin()  # it ends with the file
        try:
            self.meta = self.folder.read_meta()
        except CorruptPoolError as error:
            yield Broken(1, META, str(error))
            return
        yield from self.broken_journal()
        for entry in self.meta.caches:
            yield from self.broken_cache(entry)

    def open(self, name: str, stack: ExitStack) -> int:
        """Open a file to read."""
        file = self.folder.open(name, write=False)
        stack.callback(calls.close, file)
        return file

    # --- The journal ---

    def broken_journal(self) -> Iterator[Broken]:
        """Yield what is wrong with the journal; note which pages it has."""
        try:
            self.journal = Journal.open(self.folder.file, self.meta.id)
        except CorruptPoolError as error:
            is_missing = JOURNAL not in calls.names_in(self.folder.file)
            yield Broken(2 if is_missing else 5, JOURNAL, str(error))
            return
        self.stack.callback(self.journal.close)
        try:
            for _ in self.frames():
                pass
            lost = self.journal.find_damage()
            while lost and any(True for _ in self.frames()):  # a writer wrote it meanwhile
                lost = self.journal.find_damage()
            if lost:
                yield Broken(5, JOURNAL, f"commit {lost} is damaged, and a later one follows it", self.place())
        except CorruptPoolError as error:
            yield Broken(5, JOURNAL, str(error), self.place())
        self.versions = self.journal.last_versions()

    def place(self) -> range:
        """Return the page at which the first commit that is not sound starts."""
        page = self.sound_end // BLOCK
        return range(page, page + 1)

    def frames(self) -> Iterator[Frame]:
        """Yield the commits, as long as they are sound."""
        entries = {entry.id: entry for entry in self.meta.caches}
        at = self.journal.used
        for frame in self.journal.read(partial(most_bytes, self.meta)):
            for id_, n, _ in heads_of(frame, entries, self.meta.id, self.folder.path):
                self.n_slabs[id_] = n
            for id_ in np.unique(frame.entries["cache"]).tolist():
                entry = entries[id_]
                n_slabs = self.slabs_of(entry)
                most = made_bytes(entry, entry.slots >> entry.shift if n_slabs is None else n_slabs)
                need_in_use(frame, id_, most, self.folder.path)
            yield frame
            self.sound_end = self.journal.used
            self.tick(self.sound_end - at)
            at = self.sound_end

    def slabs_of(self, entry: CacheEntry) -> int | None:
        """Return how many slabs a cache has, as the journal or the head of its file says; None: neither can be read."""
        if entry.id not in self.n_slabs:
            with ExitStack() as stack, suppress(CorruptPoolError):
                head = calls.read_at(self.open(words_name(entry.id), stack), WORDS_OFFSET, 0)
                self.n_slabs[entry.id] = check_words_head(head, self.meta.id, entry, words_name(entry.id))[0]
        return self.n_slabs.get(entry.id)

    # --- A cache ---

    def broken_cache(self, entry: CacheEntry) -> Iterator[Broken]:
        """Yield what is wrong with the files of a cache."""
        with ExitStack() as stack:
            files = []
            for kind in DATA:
                try:
                    files.append(self.open(kind(entry.id), stack))
                except CorruptPoolError as error:  # noqa: PERF203  # each file is told
                    yield Broken(2, kind(entry.id), str(error))
            if len(files) == len(DATA):
                yield from self.broken_data(entry, *files)

    def broken_data(self, entry: CacheEntry, words: int, records: int, sums: int) -> Iterator[Broken]:
        """Yield what is wrong with the content of these files."""
        size = calls.size_of(words)
        if size < words_bytes(entry.slots):
            yield Broken(2, words_name(entry.id), f"it has {size} bytes instead of {words_bytes(entry.slots)}")
        try:
            check_words_head(calls.read_at(words, WORDS_OFFSET, 0), self.meta.id, entry, words_name(entry.id))
        except CorruptPoolError as error:
            yield Broken(3, words_name(entry.id), str(error), range(1))
        for which, file in ((WORDS, words), (RECORDS, records)):
            for law, pages in self.bad_pages(entry, which, file, sums):
                text = (
                    "it has another sum" if law == 4 else f"the file ends at byte {calls.size_of(file)}, and the page has a sum"
                )
                yield Broken(law, DATA[which](entry.id), text, pages, slots_on(entry, which, pages))
        yield from self.odd_words(entry, words)

    def versions_of(self, entry: CacheEntry, which: int) -> npt.NDArray[Any]:
        """Return the pages of a file that are in the journal."""
        versions = self.versions
        if versions is None:
            return np.empty(0, [("offset", "i8"), ("n_bytes", "i8"), ("place", "i8")])
        return np.asarray(versions[(versions["cache"] == entry.id) & (versions["file"] == which)])

    def bad_pages(self, entry: CacheEntry, which: int, file: int, sums: int) -> Iterator[tuple[int, range]]:
        """Yield the pages of a file that have another sum (law 4), or that the file is too short for (2), as runs."""
        newest, size = self.versions_of(entry, which), calls.size_of(file)
        length = words_bytes(entry.slots) if which == WORDS else records_bytes(entry.slots, entry.stride)
        bad: list[tuple[int, int, int]] = []
        for first, values in pieces_of_sums(sums, length // BLOCK):
            pages = first + np.flatnonzero(values[:, which])
            pages = pages[~is_within(pages * BLOCK, newest)]
            is_there = pages * BLOCK < size
            bad += [(2, start, end) for start, end in runs_of(pages[~is_there])]
            for start, end in runs_of(pages[is_there]):
                for at in range(start, end, PIECE_PAGES):
                    stop = min(at + PIECE_PAGES, end)
                    is_bad = sums_of(read_pages(file, at, stop)) != values[at - first : stop - first, which]
                    bad += [(4, *run) for run in runs_of(at + np.flatnonzero(is_bad))]
                    self.tick((stop - at) * BLOCK)
            while len(bad) > 1:  # the last may go on in the next piece
                yield from take_joined(bad)
        for law, start, end in bad:
            yield law, range(start, end)

    def odd_words(self, entry: CacheEntry, file: int) -> Iterator[Broken]:
        """Yield the generations that are not 0 and behind the slabs that were made."""
        n_slabs = self.slabs_of(entry)
        if n_slabs is None:
            return
        for at, words in self.committed_words(entry, file, WORDS_OFFSET + 4 * (n_slabs << entry.shift)):
            for first, last in runs_of(np.flatnonzero(words)):
                offset = at + 4 * first
                pages = range(offset // BLOCK, (at + 4 * last - 1) // BLOCK + 1)
                slot = (offset - WORDS_OFFSET) // 4
                yield Broken(7, words_name(entry.id), "they are not 0", pages, range(slot, slot + last - first))
            self.tick(words.nbytes)

    def committed_words(self, entry: CacheEntry, file: int, start: int) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
        """Yield, with its offset, what the last commit has in a file of generations from a byte on; zeros are left out."""
        newest = self.versions_of(entry, WORDS)
        for at, stop in committed_parts(file, start, words_bytes(entry.slots), newest):
            data = np.zeros(round_up(stop - at, 4), np.uint8)
            calls.read_into(file, data, at)
            for version in newest[is_touching(newest, at, stop)]:
                begin, end = max(int(version["offset"]), at), min(int(version["offset"] + version["n_bytes"]), stop)
                self.journal.read_into(data[begin - at : end - at], int(version["place"]) + begin - int(version["offset"]))
            yield at, data.view(np.uint32)


# --- Pages ---


def made_bytes(entry: CacheEntry, n_slabs: int) -> tuple[int, int]:
    """Return how many bytes of the generations' and of the records' file n slabs use, in whole pages of the machine."""
    slots, page = n_slabs << entry.shift, max(page_bytes, BLOCK)
    return round_up(WORDS_OFFSET + 4 * slots, page), round_up(slots * entry.stride, page)


def slots_on(entry: CacheEntry, which: int, pages: range) -> range:
    """Return the slots whose generations or records are on some pages, at least in part."""
    start, end = pages[0] * BLOCK, (pages[-1] + 1) * BLOCK
    if which == WORDS:
        return range(max(start - WORDS_OFFSET, 0) // 4, min((end - WORDS_OFFSET) // 4, entry.slots))
    stride = max(entry.stride, 1)
    return range(start // stride, min(-(-end // stride), entry.slots))


def pieces_of_sums(file: int, n_pages: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield the first page and the sums, those of both files, of pages that may have some."""
    end = min(calls.size_of(file), 2 * n_pages * SUM_BYTES)
    pair = 2 * SUM_BYTES
    for start, stop in calls.data_ranges(file, end):
        for at in range(start // pair * pair, stop, PIECE_SUMS * pair):
            n = min(-(-(stop - at) // pair), PIECE_SUMS, n_pages - at // pair)
            both = np.zeros((n, 2), np.int64)
            calls.read_into(file, both, at)
            yield at // pair, both


def read_pages(file: int, start: int, end: int) -> npt.NDArray[np.uint8]:
    """Return some pages of a file; what it is too short for is zeros."""
    data = np.zeros((end - start) * BLOCK, np.uint8)
    calls.read_into(file, data, start * BLOCK)
    return data


def runs_of(numbers: Pages) -> list[tuple[int, int]]:
    """Return runs of neighbours, as (first, last + 1), of numbers that rise."""
    if not len(numbers):
        return []
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    starts, ends = numbers[np.append(0, breaks)], numbers[np.append(breaks - 1, len(numbers) - 1)] + 1
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def take_joined(runs: list[tuple[int, int, int]]) -> Iterator[tuple[int, range]]:
    """Take the first of several runs of pages; if the second goes on where it ends, they become one."""
    law, start, end = runs.pop(0)
    if runs[0][:2] == (law, end):
        runs[0] = law, start, runs[0][2]
    else:
        yield law, range(start, end)


def is_within(offsets: Pages, versions: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each offset in a file is of a page that the journal has."""
    if not len(versions):
        return np.zeros(len(offsets), np.bool_)
    at = np.searchsorted(versions["offset"], offsets, "right") - 1
    ends = versions["offset"] + versions["n_bytes"]
    return np.asarray((at >= 0) & (offsets < ends[np.maximum(at, 0)]), np.bool_)


def is_touching(versions: npt.NDArray[Any], start: int, end: int) -> npt.NDArray[np.bool_]:
    """Whether each run of pages of the journal has some of the bytes from one offset to another."""
    return np.asarray((versions["offset"] < end) & (versions["offset"] + versions["n_bytes"] > start), np.bool_)


def committed_parts(file: int, start: int, end: int, versions: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Yield parts of a file, of a few MiB at most, that the file or the journal has data of."""
    runs = np.stack([versions["offset"], versions["offset"] + versions["n_bytes"]], axis=1)
    ranges = [*calls.data_ranges(file, end), *map(tuple, runs.tolist())]
    at = start
    for first, stop in sorted(ranges):
        first, stop = max(first, at), min(stop, end)
        while first < stop:
            at = min(first + PIECE_PAGES * BLOCK, stop)
            yield first, at
            first = at


# --- Caches ---


def broken_caches(caches: list[PoolCache[Any]], root: int | None, links: bool) -> list[Broken]:
    """
    Return the broken laws P6, P8 and P9 of the caches of an open pool.

    Parameters
    ----------
    caches : list of PoolCache
        All of the pool.
    root : int or None
        Id of the root's cache.
    links : bool
        Whether links are followed.

    Raises
    ------
    BusyError
        If other threads are using a cache.
    FaultError
        If compiled code used a refused handle of one, and nobody was told.
    """
    found = []
    for cache in caches:
        id_ = cache._memory.entry.id
        try:
            cache.check()
        except LawError as error:
            found.append(Broken(6, words_name(id_), str(error)))
        if id_ == root and len(cache) != 1:
            found.append(Broken(9, words_name(id_), f"{len(cache)} are"))
    if links:
        family = {cache.name: cache for cache in caches}
        for cache in caches:
            found += broken_links(cache, family)
    return found


def broken_links(cache: PoolCache[Any], family: dict[str, PoolCache[Any]]) -> Iterator[Broken]:
    """Yield the fields of a cache with links that lead to no live record."""
    if not links_of(cache.dtype):
        return
    file = records_name(cache._memory.entry.id)
    try:
        rows = dangling(cache, family)
    except UnknownNameError as error:
        yield Broken(8, file, str(error).partition(";")[0])
        return
    for field in np.unique(rows["field"]).tolist():
        own = rows[rows["field"] == field]
        slot = int(own["handle"][0]) & SLOT_MASK
        text = (
            f"field {field!r} of cache {cache.name!r} has {len(own)} dangling links, first in record {int(own['handle'][0]):#x}"
        )
        yield Broken(8, file, text, slots=range(slot, slot + 1))
