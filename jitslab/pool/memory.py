"""
The memory of a pool's cache: generations and records as two files have them, and beside them an index that is in no file.

The files are mapped privately: stores stay in this process, until a commit copies the pages that were written into the journal.
Slabs that were made since the files were written last have memory of this process alone: so a file has no holes to be read
past its end, and grows by checkpoints alone.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.geometry import lay_out_file
from ..core.grow import grow
from ..core.layout import EAGER_BYTES, ENTRIES, HEAP_BYTES, NEVER, NODE_BYTES, SLAB, TORN
from ..core.memory import HeapPlace, NewCacheMemory, serials, staggered
from ..core.process import this_process
from ..core.reader import READER_TABLE
from ..core.region import AnonymousRegion
from ..errors import CacheFullError, PoolError
from ..machine import numa
from ..machine.addresses import PROT_RW, map_file, page_bytes, refuse_huge_pages, round_up
from ..machine.compile import Entry, fill_table
from ..machine.pointers import i8s
from .format import BLOCK, RECORDS, WORDS, WORDS_HEAD, WORDS_OFFSET, CacheEntry, words_bytes, words_head

_reader_entries: list[Any] = []  # the ENTRIES row of caches that are read only, one a process


def reader_entries() -> int:
    """Return the address of the table of entry points of a cache that is read only."""
    if not _reader_entries:
        row = np.zeros(1, ENTRIES)
        fill_table(row, READER_TABLE)
        _reader_entries.append(row)
    return int(_reader_entries[0].ctypes.data)


class PoolCacheMemory(NewCacheMemory):
    """
    The memory of a pool's cache, as the files have it.

    Parameters
    ----------
    entry : CacheEntry
        Its sizes, as the pool has them.
    first_generation : int
        That every slot started with.
    is_reader : bool
        Whether the cache can be read only.

    Attributes
    ----------
    at : tuple of int
        Addresses of the first bytes of both files: generations and records.
    """

    __slots__ = ("_region", "at", "entry")
    _is_file = True

    def __init__(self, entry: CacheEntry, first_generation: int, is_reader: bool) -> None:
        self.entry = entry
        self._place, self.has_capacity = None, True
        self.placement = numa.resolve("local", False, None).undivided()
        self.geometry = sizes = lay_out_file(
            entry.dtype.itemsize, entry.stride, entry.shift, entry.capacity, entry.slots, words_bytes(entry.slots), page_bytes
        )
        self._region = region = AnonymousRegion(sizes.total)
        self.bytes = np.asarray(region)
        self._base = region.address
        offset = sizes.offset
        at_words, at_records = offset["generations"], offset["records"]
        self.at = self._base + at_words, self._base + at_records
        self._make_usable(at_words if at_words <= EAGER_BYTES else offset["bits"])
        at_control, at_heaps, _ = staggered(next(serials))
        self._view(entry.dtype, offset["control"] + at_control, at_words + WORDS_OFFSET)
        self._set_head(region, offset["control"] + at_control + NODE_BYTES)
        own = HeapPlace(self.bytes, 0, self._base + offset["heaps"] + at_heaps, HEAP_BYTES, 0)
        self._fill(own, self.at[WORDS] + WORDS_OFFSET, first_generation, entry.colouring, entry.template)
        self._fill_nodes(own)
        if is_reader:
            self.set_field("entries", reader_entries())
        self.set_field("interval_end", NEVER)  # slabs of a pool are given back by `shrink` alone

    def _make_usable(self, end: int) -> None:
        """Make the metadata before an offset usable, and let all generations be read."""
        at, n = self.geometry.offset["generations"], words_bytes(self.entry.slots)
        if not self._region.commit(0, end):
            raise CacheFullError(f"the system gives no {end} bytes for the metadata of a cache")
        if not self._region.let_read(at, n):
            raise CacheFullError(f"the system lets {n} bytes of generations not be read")
        refuse_huge_pages(self._base + at, self.geometry.total - at)  # a page is the unit of a commit

    def enter(self) -> None:
        """Enter the cache in the registry: from here on other threads find it."""
        this_process().enter(self.address, self._region.range)

    # --- Files ---

    def map_files(self, words: int, records: int, n_slabs: int) -> None:
        """
        Have the generations and records of the first n slabs as two files have them, by the numbers of their descriptors.

        What a file is too short for is zeros: it is in the journal, or was never written.
        """
        for which, (file, used) in enumerate(zip((words, records), self.made_bytes(n_slabs), strict=True)):
            n = min(used, round_up(os.fstat(file).st_size, page_bytes))
            error = map_file(self.at[which], n, file, PROT_RW) if n else 0
            if error:
                raise PoolError(f"the system does not map {n} bytes of a file: {os.strerror(error)}")
        self._grow(n_slabs)

    def made_bytes(self, n_slabs: int) -> tuple[int, int]:
        """Return how many bytes of the generations' and of the records' file n slabs use, in whole pages."""
        slots, page = n_slabs << self.geometry.shift, max(page_bytes, BLOCK)
        return round_up(WORDS_OFFSET + 4 * slots, page), round_up(slots * self.geometry.stride, page)

    def words_behind(self) -> npt.NDArray[np.uint32]:
        """
        Return the generations behind those of the slabs made, on the same page of the file.

        They are 0 in a file and in a commit that a pool wrote.  If they were not, a handle could name a slot without memory.
        """
        slots, start = self.n_slabs << self.geometry.shift, self.geometry.offset["generations"]
        return self.bytes[start + WORDS_OFFSET + 4 * slots : start + self.made_bytes(self.n_slabs)[WORDS]].view(np.uint32)

    def ranges(self) -> npt.NDArray[np.int64]:
        """Return the address and the bytes of both files, as far as slabs were made; shape (2, 2)."""
        return np.array(list(zip(self.at, self.made_bytes(self.n_slabs), strict=True)), np.int64)

    def note_slabs(self) -> npt.NDArray[np.int64]:
        """Write how many slabs were made into the head of the generations' file; returns `ranges` of that many."""
        n = self.n_slabs
        head = self._head()
        if head["n_slabs"][0] < n:
            head["n_slabs"] = n
        return np.array(list(zip(self.at, self.made_bytes(n), strict=True)), np.int64)

    def start_head(self, pool: int) -> None:
        """Write the head of a new file of generations into memory, as the file has it."""
        data = words_head(pool, self.entry, 0, self.field("first_generation"))
        self._grow(0)
        self.view(WORDS)[: len(data)] = np.frombuffer(data, np.uint8)

    def _head(self) -> npt.NDArray[np.void]:
        """Return the head of the file of generations."""
        return self.view(WORDS)[: WORDS_HEAD.itemsize].view(WORDS_HEAD)

    def copy_of(self, which: int, runs: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.uint8]]]:
        """Return copies of the runs of one file, each with its offset; runs are as of `Journal.append`, all of this cache."""
        view = self.view(which)
        return [(offset, view[offset : offset + n].copy()) for _, of, offset, _, n in runs.tolist() if of == which]

    def view(self, which: int) -> npt.NDArray[np.uint8]:
        """Return the bytes of a file as this process has them; only those of slabs that were made may be touched."""
        offset = self.geometry.offset
        return self.bytes[offset["generations"] : offset["records"]] if which == WORDS else self.bytes[offset["records"] :]

    # --- Slabs ---

    @property
    def n_slabs(self) -> int:
        """Slabs made so far."""
        return self.field("n_slabs")

    def _grow(self, n_slabs: int) -> None:
        """Make memory for n slabs usable; page 0 of the generations' file, with its head, always is."""
        if not self._region.commit(self.geometry.offset["generations"], max(page_bytes, BLOCK)):
            raise CacheFullError("the system gives no memory for the generations of a cache")
        missing = n_slabs - self.field("committed")
        if missing > 0 and grow(self.address, missing) == 0:
            raise CacheFullError(f"the system gives no memory for {n_slabs} slabs of a cache")

    def released_slabs(self) -> list[int]:
        """Return the numbers of the slabs whose memory was given back, and not used since."""
        rows = np.ndarray((self.n_slabs,), SLAB, self.bytes, self.field("slabs") - self._base, (-SLAB.itemsize,))
        return np.flatnonzero(rows["n_fresh"] == 1 << self.geometry.shift).tolist()

    def lost_records(self) -> npt.NDArray[np.int64]:
        """Return the address and the bytes, whole pages, of the records of all slabs whose memory was ever given back."""
        rows = np.ndarray((self.n_slabs,), SLAB, self.bytes, self.field("slabs") - self._base, (-SLAB.itemsize,))
        slabs = np.flatnonzero(rows["min_generation"] > self.field("first_generation"))
        page, n_bytes = max(page_bytes, BLOCK), self.geometry.stride << self.geometry.shift
        first, end = slabs * n_bytes // page, -(-(slabs + 1) * n_bytes // page)
        pages = np.unique(np.concatenate([np.arange(*pair) for pair in zip(first, end, strict=True)] or [first]))
        return np.stack([self.at[RECORDS] + pages * page, np.full(len(pages), page)], axis=1)

    def make_slabs(self, n_slabs: int) -> None:
        """Have at least n slabs made, with memory behind them; the index is rebuilt when it is needed next."""
        if n_slabs > self.n_slabs:
            self._grow(n_slabs)
            self.set_field("limit", n_slabs << self.geometry.shift)
            self.set_field("n_slabs", n_slabs)
            self.tear()

    def tear(self) -> None:
        """Have the index rebuilt from the generations when it is needed next."""
        self.set_field("torn", TORN)


@Entry
def name_runs(runs: int, n: int, ranges: int, files: int, out: int) -> int:
    """
    Write the cache, the file, the offset, the address and the bytes of n runs of memory.

    `ranges` are address and bytes of the files in memory, and `files` id and number of each; runs and ranges are by address.
    """
    run, known, file, named = i8s(runs), i8s(ranges), i8s(files), i8s(out)
    at = 0
    for k in range(n):
        address = run[2 * k]
        while address >= known[2 * at] + known[2 * at + 1]:
            at += 1
        named[5 * k] = file[2 * at]
        named[5 * k + 1] = file[2 * at + 1]
        named[5 * k + 2] = address - known[2 * at]
        named[5 * k + 3] = address
        named[5 * k + 4] = run[2 * k + 1]
    return 0
