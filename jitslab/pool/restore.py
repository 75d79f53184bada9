"""What is committed, copied: a frame of the journal over memory, the journal into the data files, or both back over memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CorruptPoolError, PoolFailedError
from ..machine.compile import Entry
from ..machine.pointers import u4s
from . import calls
from .files import DATA, Folder
from .format import BLOCK, RECORDS, WORDS, WORDS_OFFSET, CacheEntry, Meta, check_words_head, sums_name, words_name
from .journal import Frame, Journal
from .memory import PoolCacheMemory
from .pagemap import hash_blocks

PIECE_BYTES = 4 << 20  # that are copied at a time
SUM_BYTES = 8  # of the sum of one page

Rows = npt.NDArray[Any]


# --- A frame over memory ---


def apply_frame(frame: Frame, memories: dict[int, PoolCacheMemory], pool: int, path: str) -> None:
    """
    Copy the pages of a commit over the memory of the caches, and make the slabs that it made.

    Parameters
    ----------
    frame : Frame
        Each of its entries is of a cache among the memories.
    memories : dict of int to PoolCacheMemory
        By the id of the cache.
    pool : int
        Id of the pool.
    path : str
        Of the pool, for messages.
    """
    entries, places = frame.entries, frame.places
    is_head = (entries["file"] == WORDS) & (entries["offset"] == 0)
    for k in np.flatnonzero(is_head).tolist():
        memory = memories[int(entries["cache"][k])]
        data = frame.data[places[k] : places[k] + WORDS_OFFSET].tobytes()
        n_slabs, first = check_words_head(
            data, pool, memory.entry, f"{path}/{words_name(memory.entry.id)} in commit {frame.number}"
        )
        if first != memory.field("first_generation"):
            raise CorruptPoolError(f"{path}: commit {frame.number} changes the first generation of cache {memory.entry.name!r}")
        memory.make_slabs(n_slabs)
    addresses = np.empty(len(entries), np.int64)
    for id_ in np.unique(entries["cache"]).tolist():
        memory = memories[id_]
        made = memory.made_bytes(memory.n_slabs)
        for which in (WORDS, RECORDS):
            own = (entries["cache"] == id_) & (entries["file"] == which)
            offsets = entries["offset"][own].astype(np.int64)
            ends = offsets + entries["n_bytes"][own].astype(np.int64)
            if len(ends) and ends.max() > made[which]:
                name = DATA[which](id_)
                raise CorruptPoolError(
                    f"{path}: commit {frame.number} has byte {ends.max() - 1} of {name}, of which {made[which]} are in use"
                )
            addresses[own] = memory.at[which] + offsets
    frame.copy_to(addresses)


# --- The last commit back over memory ---


def restore(memory: PoolCacheMemory, journal: Journal, versions: Rows, folder: Folder, runs: Rows) -> None:
    """
    Copy the last commit over some runs of a cache's memory.

    Parameters
    ----------
    memory : PoolCacheMemory
    journal : Journal
    versions : ndarray of VERSION
        The newest versions of the journal's blocks.
    folder : Folder
    runs : ndarray of int64, shape (n, 5)
        As of `Journal.append`, all of this cache.
    """
    for which in (WORDS, RECORDS):
        own = runs[runs[:, 1] == which]
        newest = versions[(versions["cache"] == memory.entry.id) & (versions["file"] == which)]
        if len(own):
            file = folder.open_data(DATA[which], memory.entry, write=False)
            try:
                restore_file(memory.view(which), journal, newest, file, own)
            finally:
                calls.close(file)


def restore_file(view: npt.NDArray[np.uint8], journal: Journal, newest: Rows, file: int, runs: Rows) -> None:
    """Copy the last commit over some runs of one file, as it is in memory."""
    starts, ends = newest["offset"], newest["offset"] + newest["n_bytes"]
    for offset, n in runs[:, [2, 4]].tolist():
        part = view[offset : offset + n]
        part[calls.read_into(file, part, offset) :] = 0
        first, last = np.searchsorted(ends, offset, "right"), np.searchsorted(starts, offset + n, "left")
        for version in newest[first:last]:
            begin = max(int(version["offset"]), offset)
            end = min(int(version["offset"] + version["n_bytes"]), offset + n)
            journal.read_into(view[begin:end], int(version["place"]) + begin - int(version["offset"]))


@Entry
def raise_words(dropped: int, at: int, n: int) -> int:
    """Raise n generations of free slots above those that a rollback dropped; those of live slots stay."""
    old, new = u4s(dropped), u4s(at)
    for i in range(n):
        least = old[i] + (old[i] & 1)
        if new[i] & 1 == 0 and new[i] < least:
            new[i] = least
    return 0


def raise_generations(memory: PoolCacheMemory, dropped: list[tuple[int, npt.NDArray[np.uint8]]]) -> None:
    """Raise the generations of free slots above those that a rollback dropped, so that no handle of these names a record."""
    for offset, before in dropped:
        skipped = max(WORDS_OFFSET - offset, 0)  # the head of the file
        n = (len(before) - skipped) // 4
        raise_words(before.ctypes.data + skipped, memory.at[WORDS] + offset + skipped, n)


# --- The journal into the data files ---


def write_back(journal: Journal, folder: Folder, meta: Meta, shrunk: dict[int, bool]) -> None:
    """
    Write the newest version of every block of the journal into the data files, and sync these.

    Parameters
    ----------
    journal : Journal
    folder : Folder
    meta : Meta
    shrunk : dict of int to bool
        The ids of caches of which empty slabs were given back.
    """
    versions = journal.last_versions()
    for entry in meta.caches:
        own = versions[versions["cache"] == entry.id]
        if not len(own):
            continue
        sums: list[tuple[int, int, npt.NDArray[np.int64]]] = []
        for which in (WORDS, RECORDS):
            newest = own[own["file"] == which]
            if len(newest):
                with_file(folder, DATA[which], entry, lambda file: sums.extend(write_runs(journal, file, newest, which)))  # noqa: B023  # called at once
        with_file(folder, sums_name, entry, lambda file: write_sums(file, sums))  # noqa: B023  # likewise


def with_file(folder: Folder, kind: Any, entry: CacheEntry, write: Any) -> None:
    """Write to a data file, and sync it."""
    file = folder.open_data(kind, entry, write=True)
    try:
        write(file)
        try:
            calls.sync(file)
        except OSError as error:
            raise PoolFailedError(
                f"{folder.path}/{kind(entry.id)}: a sync failed: {error.strerror}; open the pool again"
            ) from error
    finally:
        calls.close(file)


def write_runs(journal: Journal, file: int, newest: Rows, which: int) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
    """Write runs of the journal into a data file; yields the file's number, the first page and the sums of each run."""
    buffer = np.empty(PIECE_BYTES, np.uint8)
    for version in newest:
        offset, place, left = int(version["offset"]), int(version["place"]), int(version["n_bytes"])
        while left:
            n = min(left, PIECE_BYTES)
            journal.read_into(buffer[:n], place)
            calls.write_at(file, buffer[:n], offset)
            yield which, offset // BLOCK, sums_of(buffer[:n])
            offset, place, left = offset + n, place + n, left - n


def sums_of(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the sum of each page: never 0, which stands for a page that was not written."""
    sums = np.empty(len(data) // BLOCK, np.int64)
    hash_blocks(data.ctypes.data, len(data), 0, sums.ctypes.data)
    sums[sums == 0] = 1
    return sums


def write_sums(file: int, sums: list[tuple[int, int, npt.NDArray[np.int64]]]) -> None:
    """Write sums of pages: those of page i of both files are neighbours."""
    for which, first, values in sums:
        if len(values) == 1:
            calls.write_at(file, values, (2 * first + which) * SUM_BYTES)
            continue
        at = 2 * first * SUM_BYTES
        both = np.zeros((len(values), 2), np.int64)
        calls.read_into(file, both, at)
        both[:, which] = values
        calls.write_at(file, both, at)
