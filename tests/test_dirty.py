"""
Which pages were written, by each mechanism, on real mappings of real files.

The law: what `take` returns, copied into an image, makes the image equal to memory whenever nobody writes.  Besides, no page is
told that was not written.
"""

import contextlib
import ctypes
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from jitslab.errors import ArrayError, ClosedError, OptionError
from jitslab.machine.compile import Entry, int64
from jitslab.machine.memory import store8
from jitslab.machine.pointers import fetch_add, i8s, load_relaxed
from jitslab.pool import dirty, pagemap
from jitslab.pool.dirty import MECHANISMS, VARIABLE, Written
from jitslab.pool.pagemap import BLOCK

PAGE = mmap.PAGESIZE
LINUX = sys.platform.startswith("linux")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files are written and removed as POSIX has it")


def best():
    """Return the best mechanism of this machine."""
    written = Written()
    found = written.mechanism
    written.close()
    return found


HERE = MECHANISMS[MECHANISMS.index(best()) :]  # those that this machine has
DAX = "/mnt/pmem"  # of the machine in tests/vm: python tests/vm/run.py python -m pytest tests/test_dirty.py -k mnt
FOLDERS = [each for each in ("/dev/shm", DAX) if os.path.ismount(each)] + [None]


class Mapping:
    """A private mapping of a file of random bytes, and the image of what was committed of it."""

    def __init__(self, folder, pages=64):
        self.path = os.path.join(folder, f"dirty-{os.getpid()}-{id(self)}")
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        self.content = np.random.default_rng(1).integers(0, 256, pages * PAGE, np.uint8)
        os.pwrite(self.file, self.content.tobytes(), 0)
        os.fsync(self.file)
        os.unlink(self.path)
        self.map = mmap.mmap(self.file, pages * PAGE, access=mmap.ACCESS_COPY)
        self.bytes = np.frombuffer(self.map, np.uint8)
        self.address = self.bytes.ctypes.data
        self.image = self.content.copy()
        self.stores = 0
        self.ranges = self.part(0, pages)
        self.written = Written(is_dax=folder == DAX)

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
        """Store a number that was never there into each page."""
        for page in pages:
            self.stores += 1
            self.bytes[page * PAGE + 72 : page * PAGE + 80].view(np.int64)[0] = self.stores

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
        mapping.written.before_drop(mapping.ranges)
        mapping.map.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(mapping.file, 0, 0, os.POSIX_FADV_DONTNEED)
        assert mapping.commit() == []
        assert (mapping.image == mapping.bytes).all()
        assert mapping.commit() == []
        mapping.write(3, 9 + again)
        assert mapping.commit() == [3, 9 + again]
        mapping.write(3)
        assert mapping.commit() == [3]


@pytest.mark.skipif(not LINUX, reason="MADV_DONTNEED drops pages on Linux only")
def test_a_content_of_long_ago_is_not_taken_for_committed(mapping):
    """Committed as one thing, rolled back to another, then written as the first again."""
    mapping.write(3)
    mapping.commit()
    first = mapping.bytes[3 * PAGE : 4 * PAGE].copy()
    mapping.written.before_drop(mapping.ranges)
    mapping.map.madvise(mmap.MADV_DONTNEED)
    mapping.written.forget(mapping.part(0, 10))
    mapping.image[:] = mapping.bytes
    mapping.bytes[3 * PAGE : 4 * PAGE] = first

    assert mapping.commit() == [3]
    assert (mapping.image == mapping.bytes).all()


# --- Exceptions ---


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_exception_during_a_search_loses_nothing(mapping, monkeypatch, when):
    """KeyboardInterrupt comes when the kernel's notes are taken, and before they are returned; then some pages are forgotten."""
    mapping.write(1, 2)
    mapping.commit()
    mapping.write(3, 4, 5)

    def interrupted(self, find):
        if when == "after":
            search(self, find)
        raise KeyboardInterrupt

    search = Written._search
    with monkeypatch.context() as patch:
        patch.setattr(Written, "_search", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mapping.take()
    mapping.written.forget(mapping.part(5, 1))
    mapping.image[5 * PAGE : 6 * PAGE] = mapping.bytes[5 * PAGE : 6 * PAGE]

    assert {3, 4} <= set(mapping.commit()) <= {1, 2, 3, 4, 5}
    assert mapping.commit() == []
    mapping.write(4)
    assert mapping.commit() == [4]
    assert (mapping.image == mapping.bytes).all()


def test_interrupts_at_any_time_lose_nothing(mapping):
    """A signal raises an exception somewhere in `take`, `done` or `forget`, a hundred times."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        pytest.skip("the system has no timer")

    class RingError(Exception):
        """The timer rang."""

    def ring(number, frame):
        raise RingError

    old = signal.signal(signal.SIGALRM, ring)
    rung = 0
    try:
        for turn in range(100):
            mapping.write(turn % 64, turn * 7 % 64)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + turn * 2e-6)
                mapping.take()
                hashes = mapping.copy()
                mapping.written.done(hashes)
                mapping.written.forget(mapping.part(0, 0))
                signal.setitimer(signal.ITIMER_REAL, 0)
            except RingError:
                rung += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            mapping.commit()
            assert (mapping.image == mapping.bytes).all()
    finally:
        signal.signal(signal.SIGALRM, old)
    assert rung > 0


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


@Entry
def write_once(address, n, value, stop):
    """Store a value into each of n pages, once, in a mixed order."""
    fetch_add(i8s(stop), 1, 1)
    while load_relaxed(i8s(stop), 0) == 0:
        pass
    for k in range(n):
        store8(address + (k * 2741 % n) * 4096, int64(0), value)
    fetch_add(i8s(stop), 1, -1)
    return 0


def test_no_store_is_lost_that_comes_once(folder, mechanism):
    """A store that came between two steps of a search would never be told: its page is not written to again."""
    mapping = Mapping(folder, pages=2048)
    mapping.written.forget(mapping.ranges)
    for turn in range(1, 2 if mapping.written.needs_hashes else 12):
        stop = np.zeros(2, np.int64)
        thread = threading.Thread(target=write_once, args=(mapping.address, len(mapping.bytes) // BLOCK, turn, stop.ctypes.data))
        thread.start()
        while stop[1] < 1:
            time.sleep(0.001)
        stop[0] = 1
        while stop[1] > 0:
            mapping.take()
            mapping.written.done(mapping.copy())
        thread.join()
        mapping.commit()
        assert (mapping.image == mapping.bytes).all()
        assert (mapping.image[::BLOCK] == turn).all()
    assert mapping.written.mechanism == mechanism
    mapping.close()


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


# --- Forks and other processes ---


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_the_child_of_a_fork_watches_nothing_and_the_parent_all(mapping):
    """The files of the parent tell of the parent's memory: in the child they are closed."""
    mapping.write(1)
    mapping.commit()
    mapping.write(2)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            mapping.written.take(mapping.ranges)
            answer = b"taken"
        except ClosedError as error:
            mapping.write(3)
            mapping.written.close()
            answer = f"{mapping.written.mechanism}: {error}".encode()
        os.write(write, answer)
        time.sleep(0.3)  # pages are shared with the parent meanwhile
        os._exit(0)
    answer = os.read(read, 1000)
    mapping.write(1, 5)
    assert answer == b"closed: the watch over written pages was closed, or it is another process's: open the pool anew"
    assert mapping.commit() == [1, 2, 5]
    mapping.write(5, 6)
    assert mapping.commit() == [5, 6]
    os.waitpid(child, 0)
    mapping.write(5, 7)
    assert mapping.commit() == [5, 7]
    os.close(read)
    os.close(write)


def test_after_close_it_is_refused(mapping):
    """Twice closed is closed once."""
    mapping.written.take(mapping.ranges)
    other = Written()
    other.take(mapping.ranges)
    other.close()
    other.close()

    for call in (other.take, other.forget, other.before_drop):
        with pytest.raises(ClosedError, match="closed"):
            call(mapping.ranges)
    with pytest.raises(ClosedError, match="closed"):
        other.done()
    assert other.mechanism == "closed"
    assert not other.needs_hashes


@pytest.mark.skipif(not LINUX, reason="/proc is Linux's")
def test_files_are_closed(mechanism):
    """None is left behind, and none goes to a program that is started."""

    def files():
        return {
            int(fd): os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        }

    before = files()
    written = Written()
    assert written.mechanism == mechanism
    new = {fd: name for fd, name in files().items() if fd not in before}
    assert len(new) == {"userfaultfd": 2, "pagemap": 1, "hashes": 0}[mechanism]
    assert not any(map(os.get_inheritable, new))
    written.close()
    assert files() == before


# --- When the system refuses ---


@pytest.fixture
def noted(folder, monkeypatch):
    """A mapping whose stores the kernel notes."""
    if HERE[0] != "userfaultfd":
        pytest.skip("the system has no userfaultfd that notes stores")
    monkeypatch.setenv(VARIABLE, "userfaultfd")
    made = Mapping(folder)
    made.written.forget(made.ranges)
    yield made
    made.close()


def replace(mapping, first, pages):
    """Map a part of the file again, over the old mapping."""
    call = ctypes.CDLL(None).mmap
    call.restype, call.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    at, fixed = mapping.address + first * PAGE, 0x10
    assert call(at, pages * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | fixed, mapping.file, first * PAGE) == at


def test_another_mapping_in_its_place_is_registered_anew(noted):
    """A part of a pool was mapped anew: pages that are private then may be told, those written must."""
    noted.write(1, 40)
    assert noted.commit() == [1, 40]
    replace(noted, 8, 16)
    noted.image[8 * PAGE : 24 * PAGE] = noted.content[8 * PAGE : 24 * PAGE]
    noted.write(10, 50)

    assert {10, 50} <= set(noted.commit()) <= {1, 10, 40, 50}
    assert noted.written.mechanism == "userfaultfd"
    noted.commit()
    noted.write(11)
    assert noted.commit() == [11]
    assert (noted.image == noted.bytes).all()


def test_a_mechanism_that_fails_later_is_replaced_by_the_next(noted):
    """Its files are gone; nothing is lost."""
    noted.write(1, 2)
    assert noted.commit() == [1, 2]
    noted.write(3)
    assert noted.take() == [3]
    os.dup2(0, noted.written._get("uffd"), inheritable=False)
    noted.write(4)

    assert noted.commit() == [1, 2, 3, 4]
    assert noted.written.mechanism == "pagemap"
    noted.write(2, 5)
    assert noted.commit() == [2, 5]
    os.dup2(0, noted.written._get("pagemap"), inheritable=False)
    noted.write(6)
    assert 6 in noted.commit()
    assert noted.written.mechanism == "hashes"
    noted.write(2, 7)
    assert noted.commit() == [2, 7]
    assert (noted.image == noted.bytes).all()


def test_a_read_that_would_hang_is_tried_in_a_child(noted, monkeypatch):
    """A child that is not done in time is killed, and the next mechanism taken."""
    assert noted.written.mechanism == "userfaultfd"
    noted.written._set_ranges(noted.ranges)
    assert pagemap.try_dax(noted.written._use_room(), 5000) == 1
    assert pagemap.try_dax(noted.written._use_room(), 0) == 0
    monkeypatch.setattr(dirty, "DAX_MILLISECONDS", 0)
    written = Written(is_dax=True)
    written.forget(noted.ranges)
    noted.write(4)
    assert written.take(noted.ranges).tolist() == [[noted.address + 4 * PAGE, PAGE]]
    assert written.mechanism == "pagemap"
    written.close()
    dead = (0, 0)
    with contextlib.suppress(ChildProcessError):  # there are no children at all
        dead = os.waitpid(-1, os.WNOHANG | 0x40000000)  # __WALL: children of any kind
    assert dead == (0, 0)


def test_pages_are_prepared_beside_some_that_are_not_watched_yet(noted):
    """Slabs that were made since the last commit are not registered: the pages after them lose their protection all the same."""
    noted.written.is_dax = True
    upper = noted.part(32, 32)
    noted.write(40, 41)
    assert noted.commit(upper) == [40, 41]
    assert noted.commit(upper) == []
    noted.written.before_drop(np.concatenate([noted.part(0, 16), upper]))
    assert noted.take(upper) == [40, 41]


ALONE = """
import ctypes, mmap, os, sys
import numpy as np
from jitslab.pool import pagemap
from jitslab.pool.dirty import Written

pagemap.hash_blocks.address  # compiled while all is there
{before}
PAGE = mmap.PAGESIZE
memory = mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
array = np.frombuffer(memory, np.uint8)
ranges = np.array([[array.ctypes.data, 16 * PAGE]])
written = Written()
written.forget(ranges)
array[5 * PAGE] = 1
runs = written.take(ranges)
print(written.mechanism, [(int(at) - array.ctypes.data) // PAGE for at in runs[:, 0]])
"""

FORBID = """
class Program(ctypes.Structure):
    _fields_ = [("n", ctypes.c_ushort), ("at", ctypes.c_void_p)]
steps = np.array([(0x20, 0, 0, 0), (0x15, 0, 1, {number}), (0x06, 0, 0, 0x50000 | 1), (0x06, 0, 0, 0x7FFF0000)], "u2,u1,u1,u4")
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.byref(Program(4, steps.ctypes.data)), 0, 0) == 0  # PR_SET_SECCOMP, by a filter
"""


def alone(before):
    """Return what a process prints in which something was done before."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-c", ALONE.format(before=before)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(HERE[0] != "userfaultfd" or os.uname().machine != "x86_64", reason="numbers of system calls are x86-64's")
@pytest.mark.parametrize(
    ("number", "mechanism"), [(323, "pagemap"), (16, "pagemap"), (17, "hashes")], ids=["userfaultfd", "ioctl", "pread"]
)
def test_forbidden_system_calls(number, mechanism):
    """As in a container, they are answered with EPERM: the next mechanism serves."""
    assert alone(FORBID.format(number=number)) == f"{mechanism} [5]"


@pytest.mark.skipif(not LINUX or os.geteuid() != 0, reason="chroot needs root")
def test_without_proc(tmp_path):
    """No /proc is mounted."""
    assert alone(f"os.chroot({str(tmp_path)!r})") == "hashes [5]"


# --- Misuse ---


@pytest.mark.parametrize(
    "ranges",
    [
        np.zeros((1, 3), np.int64),
        np.zeros(2, np.int64),
        np.zeros((1, 2), np.int32),
        np.array([[1, PAGE]]),
        np.array([[PAGE, 100]]),
    ],
    ids=["three", "flat", "int32", "address", "bytes"],
)
def test_ranges_of_another_kind_are_refused(mapping, ranges):
    """They are no input of users, but of the pool: a mistake there must show."""
    for call in (mapping.written.take, mapping.written.forget):
        with pytest.raises(ArrayError, match=f"whole pages of {PAGE} bytes"):
            call(ranges)


def test_hashes_of_another_number_of_blocks_are_refused(mapping):
    """They would stand for other blocks."""
    mapping.write(1, 5)
    mapping.take()
    if mapping.written.needs_hashes:
        with pytest.raises(ArrayError, match=f"one hash for each of {2 * PAGE // BLOCK} blocks wanted, got 1"):
            mapping.written.done(np.zeros(1, np.int64))
    assert mapping.commit() == [1, 5]


def test_unknown_mechanism_is_refused(monkeypatch):
    """The variable names one of three."""
    monkeypatch.setenv(VARIABLE, "magic")
    with pytest.raises(OptionError, match="JITSLAB_DIRTY is 'magic', and not one of userfaultfd, pagemap, hashes"):
        Written().take(np.empty((0, 2), np.int64))


# --- Against a model ---

PAGES = 48
some = st.lists(st.integers(0, PAGES - 1), max_size=12)


class Machine(RuleBasedStateMachine):
    """What was written and is not committed must be told; besides that only pages that were stored to without a change."""

    @initialize(kind=st.sampled_from(HERE), where=st.sampled_from(FOLDERS), n=st.integers(1, PAGES))
    def start(self, kind, where, n):
        """Make a mapping whose content was forgotten; a part of it is in use."""
        os.environ[VARIABLE] = kind
        self.kind, self.n = kind, n
        self.mapping = Mapping(where or tempfile.gettempdir(), PAGES)
        self.mapping.written.forget(self.mapping.ranges)
        self.changed, self.stored, self.pending = set(), set(), set()

    @rule(pages=some)
    def write(self, pages):
        """Change pages."""
        self.mapping.write(*pages)
        self.changed |= set(pages)

    @rule(pages=some)
    def store(self, pages):
        """Store into pages what is there already."""
        for page in pages:
            self.mapping.bytes[page * PAGE] = self.mapping.bytes[page * PAGE]
        self.stored |= set(pages)

    @rule(pages=some)
    def read(self, pages):
        """Read pages."""
        for page in pages:
            int(self.mapping.bytes[page * PAGE])

    @rule(more=st.integers(1, 8))
    def grow(self, more):
        """Use more pages."""
        self.n = min(PAGES, self.n + more)

    @rule()
    def fail(self):
        """Take, and fail to commit."""
        used = set(range(self.n))
        must = (self.changed & used) | self.pending
        told = set(self.mapping.take(self.mapping.part(0, self.n)))
        assert must <= told <= must | (self.stored & used)
        self.changed -= used
        self.stored -= used
        self.pending = told

    @rule()
    def commit(self):
        """Take, copy, done."""
        self.fail()
        self.mapping.written.done(self.mapping.copy())
        self.pending = set()
        end = self.n * PAGE
        assert (self.mapping.image[:end] == self.mapping.bytes[:end]).all()

    @rule(first=st.integers(0, PAGES - 1), n=st.integers(0, PAGES))
    def forget(self, first, n):
        """Take what is there for committed."""
        gone = set(range(first, min(PAGES, first + n)))
        self.mapping.written.forget(self.mapping.part(first, len(gone)))
        part = slice(first * PAGE, (first + len(gone)) * PAGE)
        self.mapping.image[part] = self.mapping.bytes[part]
        self.changed, self.stored, self.pending = self.changed - gone, self.stored - gone, self.pending - gone

    @rule()
    def drop(self):
        """Write what was committed to the file, and drop all pages: what was not committed is lost, as in a rollback."""
        if not LINUX:
            return
        os.pwrite(self.mapping.file, self.mapping.image.tobytes(), 0)
        self.mapping.written.before_drop(self.mapping.ranges)
        self.mapping.map.madvise(mmap.MADV_DONTNEED)
        self.stored |= self.changed
        self.changed = set()
        assert (self.mapping.image == self.mapping.bytes).all()

    @rule()
    def fork(self):
        """Have a child that ends at once."""
        if hasattr(os, "fork"):
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)

    def teardown(self):
        """Close all."""
        if hasattr(self, "mapping"):
            self.commit()
            assert self.mapping.written.mechanism == self.kind
            self.mapping.close()
        os.environ.pop(VARIABLE, None)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
