"""
Which pages of private mappings of files were written since the last commit.

Three mechanisms, the best that the system grants.  JITSLAB_DIRTY names another one:

    userfaultfd  Linux 6.7: notes of stores, exact.  A search costs 0.6 ns a page in memory, the first store to a page 1 to 3 us
    pagemap      Linux: the pages that are private, 10 to 70 ns a page, and a hash of each private page, 350 ns
    hashes       anywhere: a hash of every page

The first registers the pages at the first `take`, no earlier: in registered mappings Linux maps no neighbours of a page that is
read, so cold reads take longer.  What was forgotten before that, such as the pages of a journal that was replayed, is known by
hashes.

A search takes the kernel's notes.  If an exception, such as KeyboardInterrupt, comes before `take` has noted them itself, they
are lost: then all that is private counts as written.  For the same reason memory that the searches use is replaced in such an
order that they never see any that was given back.

Below pool.py, above pagemap.py, where the searches are.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..core.layout import offset_of
from ..errors import ArrayError, ClosedError, OptionError, shown
from ..machine.addresses import map_range, mapped_page_bytes
from . import pagemap
from .pagemap import BLOCK, BLOCK_SHIFT, DONE, FAILED, HAS_PAGEMAP, MORE, PATH, SCAN

Runs: TypeAlias = npt.NDArray[np.int64]  # (k, 2): address, bytes

MECHANISMS = "userfaultfd", "pagemap", "hashes"
VARIABLE = "JITSLAB_DIRTY"
FIRST_RUNS = 1024  # runs that there is room for at first
FIRST_HASHES = 1024  # hashes that there is room for at first, twice
# The pages that are tried on DAX before the first search: parts that are large enough for two huge pages.
DAX_RANGES, DAX_PAGES, DAX_MILLISECONDS = 4, 1024, 5000
_PLACE = {name: offset_of(SCAN, name) // 8 for name in SCAN.names or ()}
_open: weakref.WeakSet[Written] = weakref.WeakSet()


class Written:
    """
    The pages of some ranges of memory that were written since they were last committed.

    Pages that `take` returned are returned again until `done` says that they were committed.  A store during `take`, or after it,
    is in a page of this `take` or of the next one.

    Parameters
    ----------
    is_dax : bool, default False
        Whether the pages are those of a file on persistent memory, mapped directly.

    Examples
    --------
    >>> import numpy as np
    >>> from jitslab.machine.addresses import map_range, page_bytes
    >>> from jitslab.pool.dirty import Written
    >>> address, memory = map_range(8 * page_bytes, usable=True)
    >>> written, ranges = Written(), np.array([[address, 8 * page_bytes]])
    >>> written.forget(ranges)
    >>> memory[3 * page_bytes] = 1
    >>> [((at - address) // page_bytes, n // page_bytes) for at, n in written.take(ranges).tolist()]
    [(3, 1)]
    >>> written.close()
    """

    def __init__(self, *, is_dax: bool = False) -> None:
        self.is_dax = is_dax
        self.pid = os.getpid()
        self._mechanism = ""  # not chosen yet
        self._is_noting = False  # whether the kernel notes stores: some ranges were registered
        self._is_registered = False  # whether these ranges were
        self._pending: Runs = np.empty((0, 2), np.int64)  # taken, and not committed
        self._has_lost = False  # whether notes of stores were lost
        self._given: bytes | None = None  # the ranges, as they were given last
        self._ranges = self._pending
        self._tables: list[Runs] = []  # the last one has the hashes of blocks; others are about to be given up
        self._room = _room_for(FIRST_RUNS)
        self._words = np.zeros(SCAN.itemsize // 8, np.int64)
        self._row = self._words.ctypes.data
        self._new_table()
        self._set("pagemap", -1)
        self._set("uffd", -1)
        self._set("is_dax", int(is_dax))
        path = _PLACE["path"]
        self._words[path : path + len(PATH) // 8 + 1].view(np.uint8)[: len(PATH)] = list(PATH)
        self._set("seed", int.from_bytes(os.urandom(8), "little", signed=True))
        self._set("page_bytes", mapped_page_bytes)
        _open.add(self)

    # --- What a pool calls ---

    def take(self, ranges: Runs) -> Runs:
        """
        Return the pages that may differ from what was committed last.

        Parameters
        ----------
        ranges : numpy.ndarray of int64, shape (k, 2)
            Address and bytes, whole pages of the machine, of all memory that may have been written.  They do not overlap.

        Returns
        -------
        numpy.ndarray of int64, shape (m, 2)
            Runs of blocks of 4,096 bytes: address and bytes, by ascending addresses, each within one range.

        Raises
        ------
        ClosedError
            If it was closed, or belongs to the process that forked this one.
        """
        self._need_open()
        mechanism = self.mechanism
        if ranges.tobytes() != self._given:
            self._set_ranges(ranges)
        runs = self._written() if mechanism == "userfaultfd" else self._changed()
        if len(self._pending):
            runs = _runs_of(np.union1d(_blocks_of(self._pending), _blocks_of(runs)), self._ranges)
        self._pending = runs
        self._has_lost = False
        return runs

    def done(self, hashes: npt.NDArray[np.int64] | None = None) -> None:
        """
        Note that what `take` returned was committed.

        Parameters
        ----------
        hashes : numpy.ndarray of int64, optional
            If `needs_hashes`: the hash of each block that was committed, by `pagemap.hash_blocks` with `seed`, in the order of
            the runs.  They are those of the copies that were committed, since another thread may have written meanwhile.
            Without them the next `take` returns these pages again.
        """
        self._need_open()
        if self.needs_hashes and len(self._pending):
            blocks = int(self._pending[:, 1].sum()) // BLOCK
            given = np.zeros(blocks, np.int64) if hashes is None else np.ascontiguousarray(hashes, np.int64)
            if len(given) != blocks:
                raise ArrayError(f"one hash for each of {blocks} blocks wanted, got {len(given)}")
            self._store_hashes(self._pending, given)
        self._pending = self._pending[:0]

    def forget(self, ranges: Runs) -> None:
        """
        Take what is in some pages now for what was committed: after a pool was opened, rolled back or refreshed.

        Parameters
        ----------
        ranges : numpy.ndarray of int64, shape (k, 2)
            Address and bytes, whole pages of the machine.
        """
        self._need_open()
        is_noting, had_lost = self.mechanism == "userfaultfd" and self._is_noting, self._has_lost
        self._set_ranges(ranges)
        if len(self._pending):
            left = np.setdiff1d(_blocks_of(self._pending), _blocks_of(self._ranges), assume_unique=True)
            self._pending = _runs_of(left, self._pending)
        if is_noting:
            self._written()
        if not self._is_noting:
            self._hash_now()
        self._has_lost = had_lost

    def count(self, ranges: Runs) -> None:
        """
        Count some pages as written, whatever the system says: those whose content went without a store.

        Parameters
        ----------
        ranges : numpy.ndarray of int64, shape (k, 2)
            Address and bytes, whole pages of the machine, within the ranges that the next `take` is given.
        """
        self._need_open()
        self._pending = _runs_of(np.union1d(_blocks_of(self._pending), _blocks_of(ranges)), ranges)

    def before_drop(self, ranges: Runs) -> None:
        """
        Prepare pages for being taken away, by MADV_DONTNEED or by a hole that is punched into their file; then `forget` them.

        On persistent memory the next read of a page that was taken away without this might hang.

        Parameters
        ----------
        ranges : numpy.ndarray of int64, shape (k, 2)
            Address and bytes, whole pages of the machine.
        """
        self._need_open()
        if self.is_dax and self._is_noting:
            self._set_ranges(ranges)
            pagemap.unprotect_ranges(self._row)

    def private_bytes(self, ranges: Runs) -> int:
        """Return how many bytes of some ranges are memory of this process alone; where the system does not tell, all."""
        self._need_open()
        self._set_ranges(ranges)
        self._given = b""
        self._set("compares", 0)
        runs = self._search(pagemap.find_private) if self.mechanism != "hashes" else None
        return int((ranges if runs is None else runs)[:, 1].sum())

    def close(self) -> None:
        """End it: pages are no longer watched.  It may be called again."""
        for name in "uffd", "pagemap":
            self._close_file(name)
        self._mechanism, self.pid = "closed", 0
        _open.discard(self)

    @property
    def mechanism(self) -> str:
        """How written pages are found: "userfaultfd", "pagemap" or "hashes"; "closed" after `close`."""
        if not self._mechanism:
            self._choose()
        return self._mechanism

    @property
    def needs_hashes(self) -> bool:
        """Whether `done` needs the hashes of what was committed."""
        return self.mechanism not in ("userfaultfd", "closed")

    @property
    def seed(self) -> int:
        """The seed of the hashes, of this object alone."""
        return int(self._get("seed"))

    # --- Searches ---

    def _written(self) -> Runs:
        """Return the pages of the ranges that were written since they were protected, and protect them."""
        is_new, has_lost = not self._is_noting, self._has_lost
        if not (is_new and self.is_dax and self._hangs()) and self._register():
            self._has_lost = True
            self._set("compares", int(is_new))  # of what was written before, hashes tell what was forgotten
            runs = self._search(pagemap.find_written)
            if runs is None:  # other mappings lie there now
                has_lost = self._register(again=True)
            if has_lost:
                self._set("compares", 0)
                runs = self._search(pagemap.find_private)
            if runs is not None:
                if is_new and self._is_noting:
                    self._new_table()
                return runs
        self._use("pagemap")
        return self._changed()

    def _changed(self) -> Runs:
        """Return the blocks of the ranges whose hash is another than before, or unknown."""
        self._set("compares", 1)
        return self._candidates()

    def _candidates(self) -> Runs:
        """Return the pages of the ranges that are private, or where the system does not tell, all; as far as hashes say."""
        runs = self._search(pagemap.find_private) if self._mechanism != "hashes" else None
        if runs is None and self._mechanism != "hashes":
            self._use("hashes")
        if runs is None:
            runs = self._search(pagemap.find_all)
            assert runs is not None  # it asks nothing of the system
        return runs

    def _hash_now(self) -> None:
        """Store the hashes of what is in the ranges."""
        self._set("compares", 0)
        runs = self._candidates()
        pagemap.drop_hashes(self._row)
        self._store_hashes(runs)

    def _search(self, find: Callable[[int, int], int]) -> Runs | None:
        """Return the runs that a search finds; None: the system refused."""
        n = find(self._use_room(), 1)
        while n == MORE:
            self._room = _room_for(2 * len(self._room[0]), self._room[0])
            n = find(self._use_room(), 0)
        return None if n == FAILED else self._room[0][:n].copy()

    def _use_room(self) -> int:
        """Have the searches write to the room for runs; returns the address of their row."""
        runs, address = self._room
        self._set("runs", address)
        self._set("most", len(runs))
        return self._row

    def _set_ranges(self, ranges: Runs) -> None:
        """Search these ranges from now on."""
        if ranges.dtype != np.int64 or ranges.ndim != 2 or ranges.shape[1] != 2 or (ranges % mapped_page_bytes).any():
            raise ArrayError(f"pairs of address and bytes wanted, whole pages of {mapped_page_bytes} bytes, got {shown(ranges)}")
        self._given = None
        self._ranges = np.ascontiguousarray(ranges[np.argsort(ranges[:, 0])])
        self._is_registered = False
        self._set("ranges", self._ranges.ctypes.data)
        self._set("n_ranges", len(self._ranges))
        self._given = ranges.tobytes()

    def _register(self, *, again: bool = False) -> bool:
        """Have the kernel note stores to the ranges; whether it does."""
        if again or not self._is_registered:
            self._is_registered = pagemap.register_ranges(self._row) == DONE
            self._is_noting = self._is_noting or len(self._ranges) > 0
        return self._is_registered

    def _need_open(self) -> None:
        """Raise if it was closed, or in a child of fork: its files tell of the parent's memory."""
        if self.pid != os.getpid():
            raise ClosedError("the watch over written pages was closed, or it is another process's: open the pool anew")

    # --- Hashes of blocks ---

    def _new_table(self) -> None:
        """Begin with a table in which no hash is known."""
        self._tables.append(np.zeros((FIRST_HASHES, 2), np.int64))
        self._set("mask", FIRST_HASHES - 1)  # never larger than the table
        self._set("hashes", self._tables[-1].ctypes.data)
        self._set("n_hashes", 0)
        del self._tables[:-1]

    def _store_hashes(self, runs: Runs, hashes: npt.NDArray[np.int64] | None = None) -> None:
        """Store the hashes of the blocks of runs, as given or of what is in memory."""
        needed = 2 * (self._get("n_hashes") + int(runs[:, 1].sum()) // BLOCK)
        if needed > self._get("mask"):
            self._tables.append(np.zeros((1 << needed.bit_length(), 2), np.int64))
            pagemap.move_hashes(self._row, self._tables[-1].ctypes.data, len(self._tables[-1]) - 1)
            del self._tables[:-1]
        pagemap.store_hashes(self._row, runs.ctypes.data, len(runs), 0 if hashes is None else hashes.ctypes.data)

    # --- The mechanism ---

    def _choose(self) -> None:
        """Use the best mechanism that the system grants, or the one that is asked for."""
        wanted = os.environ.get(VARIABLE, "") or MECHANISMS[0]
        if wanted not in MECHANISMS:
            raise OptionError(f"{VARIABLE} is {shown(wanted)}, and not one of {', '.join(MECHANISMS)}")
        for name in MECHANISMS[MECHANISMS.index(wanted) :]:
            self._use(name)
            if self._open_files() and self._proves():
                return

    def _use(self, name: str) -> None:
        """Use a mechanism from now on."""
        self._mechanism, self._is_noting, self._is_registered = name, False, False
        if name != "userfaultfd":
            self._close_file("uffd")

    def _open_files(self) -> bool:
        """Open what the mechanism needs; whether the system lets us."""
        if self._mechanism == "hashes":
            return True
        if not HAS_PAGEMAP:
            return False
        if self._get("pagemap") < 0:
            try:
                self._set("pagemap", os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                return False
        if self._mechanism == "userfaultfd":
            self._set("uffd", pagemap.open_uffd(self._row))
            return self._get("uffd") >= 0
        return True

    def _proves(self) -> bool:
        """Whether the mechanism tells the pages of four that are written to, and no others."""
        if self._mechanism == "hashes":
            return True
        page = mapped_page_bytes
        address, memory = map_range(4 * page, usable=True)
        self._set_ranges(np.array([[address, 4 * page]]))
        told = []
        for k in 0, 2:
            memory[k * page] = 1
            if self._mechanism == "userfaultfd" and not self._register():
                return False
            runs = self._search(pagemap.find_written if self._mechanism == "userfaultfd" else pagemap.find_private)
            told.append([] if runs is None else [(at - address) // page for at in runs[:, 0].tolist()])
        self._is_noting, self._given = False, None
        return told == [[0], [2] if self._mechanism == "userfaultfd" else [0, 2]]

    def _close_file(self, name: str) -> None:
        """Close a file, if it is open."""
        file = self._get(name)
        self._set(name, -1)  # first: if it were closed twice, that might be another's
        if file >= 0:
            os.close(file)

    def _hangs(self) -> bool:
        """Whether a child process that did what this one is about to do would hang, or find something else than it wrote."""
        whole = self._ranges
        part = whole[whole[:, 1] > 0][:DAX_RANGES].copy()
        np.minimum(part[:, 1], DAX_PAGES * mapped_page_bytes, out=part[:, 1])
        self._set_ranges(part)
        is_right = pagemap.try_dax(self._use_room(), DAX_MILLISECONDS)
        self._set_ranges(whole)
        return not is_right

    def _get(self, name: str) -> int:
        """Return a field of the row that the searches read."""
        return int(self._words[_PLACE[name]])

    def _set(self, name: str, value: int) -> None:
        """Set a field of the row that the searches read."""
        self._words[_PLACE[name]] = value


# --- Runs ---


def _room_for(n: int, runs: Runs | None = None) -> tuple[Runs, int]:
    """Return room for n runs, of which some may be there, and its address."""
    room = np.empty((n, 2), np.int64)
    if runs is not None:
        room[: len(runs)] = runs
    return room, room.ctypes.data


def whole_pages(runs: Runs, without: Runs) -> Runs:
    """Return the whole pages of the machine that some runs of blocks are in, without those that other runs are in."""
    size = mapped_page_bytes >> BLOCK_SHIFT
    pages = np.setdiff1d(_blocks_of(runs) // size, _blocks_of(without) // size)
    return _runs_of((pages[:, None] * size + np.arange(size)).ravel(), runs[:0])


def _blocks_of(runs: Runs) -> npt.NDArray[np.int64]:
    """Return the numbers of the blocks of runs."""
    counts = runs[:, 1] >> BLOCK_SHIFT
    ends = np.cumsum(counts)
    return np.repeat((runs[:, 0] >> BLOCK_SHIFT) - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)


def _runs_of(blocks: npt.NDArray[np.int64], ranges: Runs) -> Runs:
    """Return the runs of ascending numbers of blocks; none goes on beyond the start of a range."""
    is_first = np.diff(blocks, prepend=-1) != 1
    is_first |= np.isin(blocks, ranges[:, 0] >> BLOCK_SHIFT)
    firsts = np.flatnonzero(is_first)
    counts = np.diff(firsts, append=len(blocks))
    return np.stack([blocks[firsts], counts], axis=1) << BLOCK_SHIFT


def _close_in_child() -> None:
    """Close what the parent watches: in the child of a fork the files tell of the parent's memory."""
    for each in list(_open):
        each.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
