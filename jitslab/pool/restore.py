"""What is committed, copied: a frame of the journal over memory, the journal into the data files, or both back over memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CorruptPoolError
from ..machine.addresses import round_up
from ..machine.compile import Entry
from ..machine.pointers import u4s
from . import calls
from .files import DATA, Folder
from .format import (
    BLOCK,
    GRAIN,
    MOST_SLOTS,
    RECORDS,
    WORDS,
    WORDS_OFFSET,
    CacheEntry,
    Meta,
    check_words_head,
    records_name,
    sums_name,
    words_name,
)
from .journal import Frame, Journal
from .memory import PoolCacheMemory
from .pagemap import hash_blocks

PIECE_BYTES = 4 << 20  # that are copied at a time
SUM_BYTES = 8  # of the sum of one page

Rows = npt.NDArray[Any]
Sums = list[tuple[int, int, npt.NDArray[np.int64]]]  # number of the file, its first page, and the sums of pages from there on


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
    for id_, n_slabs, first in heads_of(frame, {id_: memory.entry for id_, memory in memories.items()}, pool, path):
        if first != memories[id_].field("first_generation"):
            name = memories[id_].entry.name
            raise CorruptPoolError(f"{path}: commit {frame.number} changes the first generation of cache {name!r}")
        memories[id_].make_slabs(n_slabs)
    entries = frame.entries
    offsets, sizes = entries["offset"].astype(np.int64), entries["n_bytes"].astype(np.int64)
    addresses = np.zeros(len(entries), np.int64)
    for id_ in np.unique(entries["cache"]).tolist():
        memory = memories[id_]
        made = memory.made_bytes(memory.n_slabs)
        need_in_use(frame, id_, made, path)
        for which in (WORDS, RECORDS):
            own = (entries["cache"] == id_) & (entries["file"] == which)
            addresses[own] = memory.at[which] + offsets[own]
            sizes[own] = np.clip(made[which] - offsets[own], 0, sizes[own])
    frame.copy_to(addresses, sizes)


def heads_of(frame: Frame, entries: dict[int, CacheEntry], pool: int, path: str) -> Iterator[tuple[int, int, int]]:
    """Yield the cache, n_slabs and first_generation of each head of a file of generations that a commit has."""
    is_head = (frame.entries["file"] == WORDS) & (frame.entries["offset"] == 0)
    for k in np.flatnonzero(is_head).tolist():
        id_ = int(frame.entries["cache"][k])
        data = frame.data[frame.places[k] : frame.places[k] + WORDS_OFFSET].tobytes()
        yield id_, *check_words_head(data, pool, entries[id_], f"{path}/{words_name(id_)} in commit {frame.number}")


def need_in_use(frame: Frame, id_: int, made: tuple[int, int], path: str) -> None:
    """Raise if a commit has bytes of a cache's files behind those that its slabs use, in pages of any machine."""
    for which in (WORDS, RECORDS):
        own = frame.entries[(frame.entries["cache"] == id_) & (frame.entries["file"] == which)]
        end = int((own["offset"] + own["n_bytes"]).max(initial=0))
        if end > round_up(made[which], GRAIN):
            name = DATA[which](id_)
            raise CorruptPoolError(
                f"{path}: commit {frame.number} has byte {end - 1} of {name}, of which {made[which]} are in use"
            )


# --- The last commit back over memory ---


def restore(memory: PoolCacheMemory, journal: Journal, versions: Rows, folder: Folder, runs: Rows) -> None:
    """Copy the last commit over some runs of a cache's memory, which are as of `Journal.append`."""
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
    """Raise n generations of free slots above those that a rollback dropped; those of live slots stay.  Returns how many."""
    old, new, raised = u4s(dropped), u4s(at), 0
    for i in range(n):
        least = old[i] + (old[i] & 1)
        if new[i] & 1 == 0 and new[i] < least:
            new[i] = least
            raised += 1
    return raised


def raise_generations(memory: PoolCacheMemory, dropped: list[tuple[int, npt.NDArray[np.uint8]]]) -> list[int]:
    """
    Raise the generations of free slots above those that a rollback dropped, so that no handle of these names a record.

    Returns the addresses of the runs in which some were raised: there memory is not as the last commit.
    """
    changed = []
    for offset, before in dropped:
        skipped, at = max(WORDS_OFFSET - offset, 0), memory.at[WORDS] + offset  # skipped is the head of the file
        if raise_words(before.ctypes.data + skipped, at + skipped, (len(before) - skipped) // 4) > 0:
            changed.append(at)
    return changed


# --- The journal into the data files ---


def write_back(journal: Journal, folder: Folder, meta: Meta) -> None:
    """Write the newest version of every block of the journal into the data files, and sync these."""
    versions = journal.last_versions()
    for entry in meta.caches:
        own = versions[versions["cache"] == entry.id]
        if not len(own):
            continue
        sums: Sums = []
        for which in (WORDS, RECORDS):
            newest = own[own["file"] == which]
            if len(newest):
                with_file(folder, DATA[which], entry, partial(write_runs, journal, newest, which, sums))
        with_file(folder, sums_name, entry, partial(write_sums, sums=sums))


def punch_empty(folder: Folder, memory: PoolCacheMemory) -> bool:
    """Give the space of released slabs back, where the data files have no live record; returns whether that is so of all."""
    entry, slab_bytes = memory.entry, memory.geometry.stride << memory.geometry.shift
    released = np.asarray(memory.released_slabs(), np.int64)
    sums: Sums = []
    holes: list[tuple[int, int]] = []
    file = folder.open_data(words_name, entry, write=False)
    try:
        empty = empty_slabs(file, released, memory.geometry.shift)
    finally:
        calls.close(file)
    for begin, stop in runs_of(empty, MOST_SLOTS):
        first, end = round_up(begin * slab_bytes, BLOCK), stop * slab_bytes // BLOCK * BLOCK
        if first < end:
            holes.append((first, end - first))
            pages = range(first // BLOCK, end // BLOCK, PIECE_BYTES // 16)
            sums += [(RECORDS, at, np.zeros(min(pages.step, pages.stop - at), np.int64)) for at in pages]
    if holes:  # sums first: a page that no sum is known of is not checked
        with_file(folder, sums_name, entry, partial(write_sums, sums=sums))
        with_file(folder, records_name, entry, partial(punch_all, holes))
    return len(empty) == len(released)


def empty_slabs(file: int, slabs: npt.NDArray[np.int64], shift: int) -> npt.NDArray[np.int64]:
    """Return those of ascending slabs that have no live record, as a file of generations says."""
    found, slots = [slabs[:0]], 1 << shift
    for begin, stop in runs_of(slabs, max(PIECE_BYTES >> shift + 2, 1)):
        data = calls.read_at(file, 4 * slots * (stop - begin), WORDS_OFFSET + 4 * slots * begin)
        words = np.frombuffer(data, np.uint32).reshape(-1, slots)
        found.append(begin + np.flatnonzero(~(words & 1).any(axis=1)))
    return np.concatenate(found)


def runs_of(numbers: npt.NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Yield the first number and the end of each run of ascending numbers, in parts of `most` at most."""
    for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
        for at in range(0, len(run), most):
            yield int(run[at]), int(run[at]) + len(run[at : at + most])


def punch_all(holes: list[tuple[int, int]], file: int) -> None:
    """Punch holes into a file; where the file system cannot, it stays as it is."""
    for at, n in holes:
        calls.punch(file, at, n)


def with_file(folder: Folder, kind: Any, entry: CacheEntry, write: Any) -> None:
    """Write to a data file, and sync it."""
    file = folder.open_data(kind, entry, write=True)
    try:
        write(file)
        calls.sync(file)
    finally:
        calls.close(file)


def write_runs(journal: Journal, newest: Rows, which: int, sums: Sums, file: int) -> None:
    """Write runs of the journal into a data file, and note the sums of their pages."""
    buffer = np.empty(PIECE_BYTES, np.uint8)
    for version in newest:
        offset, place, left = int(version["offset"]), int(version["place"]), int(version["n_bytes"])
        while left:
            n = min(left, PIECE_BYTES)
            journal.read_into(buffer[:n], place)
            calls.write_at(file, buffer[:n], offset)
            sums.append((which, offset // BLOCK, sums_of(buffer[:n])))
            offset, place, left = offset + n, place + n, left - n


def sums_of(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the sum of each page: never 0, which stands for a page that was not written."""
    sums = np.empty(len(data) // BLOCK, np.int64)
    hash_blocks(data.ctypes.data, len(data), 0, sums.ctypes.data)
    sums[sums == 0] = 1
    return sums


def write_sums(file: int, sums: Sums) -> None:
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
