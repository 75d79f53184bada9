"""
Which pages were written, by each mechanism, on real mappings of real files.

The law: what `take` returns, copied into an image, makes the image equal to memory whenever nobody writes.  Besides, no page is
told that was not written.
"""

import mmap
import os
import sys
import threading
import time

import numpy as np
import pytest

from jitslab.machine.compile import Entry, int64
from jitslab.machine.memory import store8
from jitslab.machine.pointers import fetch_add, i8s, load_relaxed
from jitslab.pool import pagemap
from jitslab.pool.dirty import MECHANISMS, VARIABLE, Written
from jitslab.pool.pagemap import BLOCK

PAGE = mmap.PAGESIZE
LINUX = sys.platform.startswith("linux")


def best():
    """Return the best mechanism of this machine."""
    written = Written()
    found = written.mechanism
    written.close()
    return found


HERE = MECHANISMS[MECHANISMS.index(best()) :]  # those that this machine has
FOLDERS = ["/dev/shm", None] if os.path.isdir("/dev/shm") else [None]


class Mapping:
    """A private mapping of a file of random bytes, and the image of what was committed of it."""

    def __init__(self, folder, pages=64, is_dax=False):
        self.path = os.path.join(folder, f"dirty-{os.getpid()}-{id(self)}")
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        self.content = np.random.default_rng(1).integers(0, 256, pages * PAGE, np.uint8)
        os.pwrite(self.file, self.content.tobytes(), 0)
        os.fsync(self.file)
        os.unlink(self.path)
        self.map = mmap.mmap(self.file, pages * PAGE, flags=mmap.MAP_PRIVATE)
        self.bytes = np.frombuffer(self.map, np.uint8)
        self.address = self.bytes.ctypes.data
        self.image = self.content.copy()
        self.ranges = self.part(0, pages)
        self.written = Written(is_dax=is_dax)

    def part(self, first, pages):
        """Return a range of pages."""
        return np.array([[self.address + first * PAGE, pages * PAGE]])

    def take(self, ranges=None):
        """Take; return the pages that have a block in a run."""
        self.runs = self.written.take(self.ranges if ranges is None else ranges)
        assert (np.diff(self.runs[:, 0]) > 0).all()
        assert (self.runs[1:, 0] >= self.runs[:-1].sum(axis=1)).all()
        return self.pages()

    def pages(self):
        """Return the pages of the runs."""
        blocks = [range(at - self.address, at - self.address + n, BLOCK) for at, n in self.runs.tolist()]
        return sorted({at // PAGE for each in blocks for at in each})

    def copy(self):
        """Copy the runs into the image; return the hashes of the copies."""
        hashes = []
        for at, n in self.runs.tolist():
            start = at - self.address
            self.image[start : start + n] = self.bytes[start : start + n]
            part = np.empty(n // BLOCK, np.int64)
            pagemap.hash_blocks(self.image.ctypes.data + start, n, self.written.seed, part.ctypes.data)
            hashes.append(part)
        return np.concatenate(hashes) if hashes else np.empty(0, np.int64)

    def commit(self, ranges=None):
        """Take, copy, done; return the pages."""
        pages = self.take(ranges)
        self.written.done(self.copy())
        return pages

    def write(self, *pages):
        """Change one byte of each page."""
        for page in pages:
            self.bytes[page * PAGE + 77] ^= 1 + page % 255

    def close(self):
        """Close all."""
        self.written.close()
        del self.bytes
        self.map.close()
        os.close(self.file)


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder or "tmp")
def folder(request, tmp_path):
    """A folder in memory, and one on a disk."""
    return request.param or str(tmp_path)


@pytest.fixture(params=HERE)
def mechanism(request, monkeypatch):
    """Each mechanism that this machine has."""
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@pytest.fixture
def mapping(folder, mechanism):
    """A mapping whose content was forgotten."""
    made = Mapping(folder)
    made.written.forget(made.ranges)
    yield made
    assert made.written.mechanism == mechanism  # it did not fall back meanwhile
    made.close()


# --- What was written is told ---


def test_written_pages_are_told_and_no_others(mapping):
    """A page that was only read is not told."""
    mapping.bytes[::PAGE].sum()
    mapping.write(3, 4, 40)

    assert mapping.commit() == [3, 4, 40]
    assert mapping.runs.tolist()[0][0] == mapping.address + 3 * PAGE
    assert mapping.commit() == []
    mapping.write(4)
    mapping.bytes[::PAGE].sum()
    assert mapping.commit() == [4]
    assert (mapping.image == mapping.bytes).all()


def test_pages_are_told_again_until_they_are_committed(mapping):
    """A commit that failed loses nothing."""
    mapping.write(5)
    assert mapping.take() == [5]
    mapping.write(7)
    assert mapping.take() == [5, 7]
    assert mapping.commit() == [5, 7]
    assert mapping.commit() == []


def test_forgotten_pages_are_not_told(mapping):
    """Before the first `take` and after it; also pages that a commit that failed had taken."""
    mapping.write(1, 2)
    mapping.written.forget(mapping.part(2, 1))
    assert mapping.commit() == [1]
    mapping.write(3, 4, 5)
    assert mapping.take() == [3, 4, 5]
    mapping.write(6)
    mapping.written.forget(mapping.part(4, 60))
    assert mapping.commit() == [3]
    mapping.write(4)
    assert mapping.commit() == [4]


def test_pages_written_before_their_range_was_known_are_told(mapping):
    """Ranges grow; the new part was written before."""
    mapping.written.forget(mapping.ranges)
    mapping.write(1, 20)
    assert mapping.commit(mapping.part(0, 10)) == [1]
    mapping.write(2, 21)
    assert mapping.commit(mapping.part(0, 30)) == [2, 20, 21]
    assert mapping.commit() == []


def test_pages_never_seen_before_are_told_if_they_were_written(folder, mechanism):
    """Nothing was forgotten: memory is as the file, but for what was written."""
    mapping = Mapping(folder)
    mapping.bytes[: 10 * PAGE : PAGE].sum()
    mapping.write(3, 4)
    found = mapping.commit()

    assert found == ([3, 4] if mechanism != "hashes" else list(range(64)))
    assert mapping.commit() == []
    mapping.close()


def test_runs_end_at_the_borders_of_ranges(mapping):
    """Neighbouring ranges are parts of different files."""
    ranges = np.concatenate([mapping.part(10, 10), mapping.part(0, 10)])
    mapping.write(8, 9, 10, 11)
    two = [[mapping.address + 8 * PAGE, 2 * PAGE], [mapping.address + 10 * PAGE, 2 * PAGE]]

    mapping.take(ranges)
    assert mapping.runs.tolist() == two
    mapping.take(ranges)
    assert mapping.runs.tolist() == two


def test_many_scattered_pages(folder, mechanism):
    """More runs than there is room for at first, and dense ones."""
    mapping = Mapping(folder, pages=9000)
    mapping.written.forget(mapping.ranges)
    odd = list(range(1, 8000, 2))
    mapping.write(*odd)
    assert mapping.commit() == odd
    mapping.write(*range(3000, 9000))
    assert mapping.commit() == list(range(3000, 9000))
    assert mapping.commit() == []
    assert (mapping.image == mapping.bytes).all()
    mapping.close()


def test_no_ranges_and_empty_ranges(mapping):
    """A pool without caches."""
    assert mapping.commit(np.empty((0, 2), np.int64)) == []
    mapping.written.forget(np.empty((0, 2), np.int64))
    mapping.write(1)
    assert mapping.commit(np.concatenate([mapping.part(0, 0), mapping.part(0, 2)])) == [1]


def test_pages_read_from_a_file_are_told(mapping):
    """The kernel itself writes into the pages."""
    mapping.commit()
    with open("/dev/urandom", "rb", buffering=0) as file:
        assert file.readinto(memoryview(mapping.map)[5 * PAGE : 7 * PAGE]) == 2 * PAGE

    assert mapping.commit() == [5, 6]
    assert (mapping.image == mapping.bytes).all()


@pytest.mark.skipif(not LINUX, reason="MADV_DONTNEED drops pages on Linux only")
def test_dropped_pages_are_as_the_file_and_told_when_they_are_written(mapping):
    """What was committed is in the file, too; then the page is dropped, its cache as well."""
    mapping.write(3, 4)
    mapping.commit()
    for again in range(3):
        os.pwrite(mapping.file, mapping.image.tobytes(), 0)
        os.fsync(mapping.file)
        mapping.map.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(mapping.file, 0, 0, os.POSIX_FADV_DONTNEED)
        assert mapping.commit() == []
        assert (mapping.image == mapping.bytes).all()
        assert mapping.commit() == []
        mapping.write(3, 9 + again)
        assert mapping.commit() == [3, 9 + again]
        mapping.write(3)
        assert mapping.commit() == [3]


# --- Threads ---


@Entry
def keep_writing(address, n, seed, stop):
    """Store into n pages at random, back and forth, until told to stop; returns the number of stores."""
    x, done = seed, 0
    fetch_add(i8s(stop), 1, 1)
    while load_relaxed(i8s(stop), 0) == 0:
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
        place = address + ((x >> 8) % n) * 4096 + (x & 0x1F8)
        store8(place, int64(0), x & 1)
        done += 1
    return done


@pytest.mark.parametrize("writers", [1, 3])
def test_no_store_of_a_thread_is_lost(mapping, writers):
    """Threads write all the time, values that come back, too: at rest one more commit makes image and memory equal."""
    for turn in range(6):
        stop = np.zeros(2, np.int64)
        words = mapping.address, len(mapping.bytes) // BLOCK
        threads = [threading.Thread(target=keep_writing, args=(*words, turn + k, stop.ctypes.data)) for k in range(writers)]
        for thread in threads:
            thread.start()
        while stop[1] < writers:
            time.sleep(0.001)
        told = sum(len(mapping.commit()) for _ in range(20 if mapping.written.needs_hashes else 100))
        stop[0] = 1
        for thread in threads:
            thread.join()

        assert told > 0
        mapping.commit()
        assert (mapping.image == mapping.bytes).all()
        assert mapping.commit() == []


def test_a_value_that_was_there_during_the_search_alone_is_not_taken_for_committed(mapping):
    """Searched as 2, committed as 3, then 2 again."""
    mapping.bytes[7] = 2
    assert mapping.take() == [0]
    mapping.bytes[7] = 3
    hashes = mapping.copy()
    mapping.bytes[7] = 2
    mapping.written.done(hashes)

    assert mapping.commit() == [0]
    assert (mapping.image == mapping.bytes).all()


def test_without_hashes_nothing_is_taken_for_committed(mapping):
    """A pool that cannot say what it committed commits the page again."""
    mapping.write(2)
    mapping.take()
    mapping.written.done()

    assert mapping.take() == ([2] if mapping.written.needs_hashes else [])
