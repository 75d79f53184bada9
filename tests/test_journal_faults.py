"""
The journal of a pool alone when something fails: the power, the disk, the process, the file's author.

Power cuts are made on paper: every write and sync is recorded, the record is cut anywhere, and of what was not synced any part is
kept: 512-byte sectors of a file, 64-byte lines of persistent memory.  JITSLAB_CUTS is the number of cuts a test makes.
"""

import errno
import functools
import os
import random
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
from journals import POOL, Commit, any_bounds, entries_of, image_of, random_commit, read_all, versions_of

from jitslab import errors
from jitslab.machine.compile import Entry, c_object, kernel, name_address
from jitslab.machine.flush import CAN_FLUSH
from jitslab.machine.pointers import i8s
from jitslab.pool import calls, frames, journal, pmem
from jitslab.pool.frames import AFTER_SYNCED, BLOCK, ENTRY, FRAME_HEAD, LINE, head_bytes
from jitslab.pool.hashes import STATE_WORDS, hash_memory
from jitslab.pool.heads import JOURNAL_HEAD
from jitslab.pool.journal import Journal

pytestmark = pytest.mark.long

CUTS = int(os.environ.get("JITSLAB_CUTS", "80"))
SECTOR = 512


@pytest.fixture
def folder(tmp_path):
    """Open the folder of a pool."""
    file = os.open(tmp_path, os.O_RDONLY)
    yield file
    os.close(file)


@pytest.fixture(autouse=True)
def by_system_calls(monkeypatch):
    """The journal is not mapped, unless a test says so."""
    monkeypatch.setenv("JITSLAB_PMEM", "off")


def content(folder):
    """Return the bytes of the journal."""
    with open("journal", "rb", opener=lambda name, flags: os.open(name, flags, dir_fd=folder)) as file:
        return file.read()


def put(folder, data):
    """Make the journal have these bytes."""
    file = os.open("journal", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=folder)
    os.write(file, data)
    os.close(file)


# --- Power ---


class Disk(calls.System):
    """The system, which notes what was written, and what was synced."""

    def __init__(self):
        self.log = []

    def pwrite(self, file, data, at):
        """Write, and note it."""
        self.log.append(("write", at, bytes(data)))
        return os.pwrite(file, data, at)

    def fdatasync(self, file):
        """Note a sync."""
        self.log.append(("sync",))

    def ftruncate(self, file, n):
        """Cut a file, and note it."""
        self.log.append(("cut", n))
        os.ftruncate(file, n)

    def note(self, *what):
        """Note what the caller knows now."""
        self.log.append(("note", *what))


def after_cut(start, log, rng):
    """Return what a file of the bytes `start` may hold after the power is cut behind the events of a log, and its last note."""
    synced = max((k for k, event in enumerate(log) if event[0] == "sync"), default=-1)
    share = rng.choice((0.0, 0.1, 0.5, 0.9, 0.99, 1.0))
    data, note = bytearray(start), None
    for k, event in enumerate(log):
        if event[0] == "note":
            note = event[1:]
        elif event[0] == "cut" and (k < synced or rng.random() < share):
            del data[event[1] :]
        elif event[0] == "write":
            at, new = event[1:]
            for first in range(at - at % SECTOR, at + len(new), SECTOR):
                a, b = max(first, at), min(first + SECTOR, at + len(new))
                if k < synced or rng.random() < share:
                    data.extend(bytes(max(b - len(data), 0)))
                    data[a:b] = new[a - at : b - at]
    return bytes(data) + bytes(rng.choice((0, 0, 0, BLOCK, 3 * SECTOR))), note


def work(it, rng, disk, model, steps):
    """Append commits, and reset the journal now and then, as a checkpoint would."""
    for _ in range(steps):
        if rng.random() < 0.1:
            it.reset()
        commit = random_commit(rng, most_runs=rng.choice((1, 6, 200)), most_blocks=rng.choice((1, 1, 5)))
        model.append(commit.entries)
        it.append(commit.runs)
        disk.note(it.number)


def assert_is(it, model, least, most):
    """Assert that a journal holds the commits of a model up to one of two, none lost and none half; returns its number."""
    first = it.number
    commits = read_all(it)

    assert model[first : it.number] == commits
    assert least <= it.number <= most
    assert 0 == it.find_damage()
    return it.number


@pytest.mark.parametrize("seed", range(3))
def test_power_cut_leaves_the_last_commit_or_the_one_in_flight(folder, monkeypatch, seed):
    """Also if the power is cut again while the journal goes on from there."""
    monkeypatch.setattr(journal, "PIECE_BYTES", 16 * BLOCK)
    monkeypatch.setattr(journal, "GROWTH_BYTES", 64 * BLOCK)
    monkeypatch.setattr(journal, "FIRST_BYTES", 16 * BLOCK)
    rng, model = random.Random(seed), []
    disk = Disk()
    monkeypatch.setattr(calls, "system", disk)
    it = Journal.create(folder, POOL)
    disk.note(0)
    made = len(disk.log)
    work(it, rng, disk, model, 40)
    it.close()
    seen = [0, 0]
    for _ in range(CUTS // 3):
        end = rng.randint(made, len(disk.log))
        data, (done,) = after_cut(b"", disk.log[:end], rng)
        put(folder, data)
        again = Disk()
        calls.system = again
        it = Journal.open(folder, POOL, is_writable=True)
        number = assert_is(it, model, done, done + 1)
        seen[number - done] += 1
        again.note(number)
        ours = model[:number]
        work(it, rng, again, ours, rng.randint(1, 4))
        it.close()

        end = rng.randint(1, len(again.log))
        data, note = after_cut(data, again.log[:end], rng)
        put(folder, data)
        calls.system = calls.System()
        it = Journal.open(folder, POOL, is_writable=True)
        assert_is(it, ours, note[0] if note else number, (note[0] if note else number) + 1)
        it.close()

    assert all(seen)


@pytest.mark.parametrize("seed", range(2))
def test_power_cut_without_syncs_leaves_some_commit(folder, monkeypatch, seed):
    """Which one is not promised, but it is one of them, and what is appended then is followed by nothing of the time before."""
    rng, model, disk = random.Random(seed), [], Disk()
    monkeypatch.setattr(calls, "system", disk)
    it = Journal.create(folder, POOL, sync=False)
    for _ in range(30):  # of equal length: one that was lost leaves a place that fits exactly
        model.append([(1, 1, 0, rng.randbytes(BLOCK))])
        it.append(Commit(*model[-1]).runs)
    it.close()
    calls.system, lost = calls.System(), 0
    for _ in range(CUTS // 3):
        log = disk.log[: rng.randint(1, len(disk.log))]
        head, _ = after_cut(b"", [*log[:1], ("sync",)], rng)
        data, _ = after_cut(head, log[1:], rng)
        put(folder, data)
        it = Journal.open(folder, POOL, is_writable=True)
        number = assert_is(it, model, 0, len(model))
        ours = model[:number]
        lost += data.count(b"jitslabf") > number
        for _ in range(rng.randint(1, 3)):
            ours.append([(1, 1, 0, rng.randbytes(BLOCK))])
            it.append(Commit(*ours[-1]).runs)
        it.close()
        it = Journal.open(folder, POOL, is_writable=True)
        assert_is(it, ours, len(ours), len(ours))
        it.close()

    assert lost


# --- Power, and persistent memory ---


MARKS = np.zeros(1 << 12, np.int64)  # how many, then an address and bytes of each flush; bytes 0: a fence
name_address("jitslab_test_marks", MARKS.ctypes.data)


@kernel
def note_flush(address: int, n: int) -> None:
    """Note that lines are flushed."""
    marks = i8s(c_object("jitslab_test_marks"))
    k = marks[0]
    marks[2 * k + 1] = address
    marks[2 * k + 2] = n
    marks[0] = k + 1


@kernel
def note_fence() -> None:
    """Note a fence."""
    note_flush(0, 0)


def recorded(entry):
    """Return an Entry of the same code that notes its flushes and fences."""
    code = entry.function
    names = {**code.__globals__, "__name__": "test_journal_faults", "flush_lines": note_flush, "store_fence": note_fence}
    return Entry(types.FunctionType(code.__code__, names, f"recorded_{code.__name__}"))


@pytest.mark.skipif(not CAN_FLUSH, reason="needs a CPU whose flushes are known")
def test_power_cut_of_persistent_memory_leaves_the_last_commit_or_the_one_in_flight(folder, monkeypatch):
    """Until the fence any line may be on the medium, or not, also half made; after it all that was flushed is."""
    monkeypatch.setenv("JITSLAB_PMEM", "force")
    monkeypatch.setattr(journal, "append_mapped", recorded(pmem.append_mapped))
    rng, model = random.Random(0), []
    it = Journal.create(folder, POOL)

    assert it.is_mapped

    before, cuts = content(folder), 0
    while cuts < CUTS:
        commit = random_commit(rng, most_runs=rng.choice((1, 4, 200)))
        MARKS[0] = 0
        at = it.used
        it.append(commit.runs)
        after = content(folder)
        before = before.ljust(len(after), b"\0")
        *flushes, fence = MARKS[1 : 1 + 2 * MARKS[0]].reshape(-1, 2).tolist()
        lines = {
            k
            for start, n in flushes
            for k in range((start - it._words[journal.MAP]) // LINE, (start - it._words[journal.MAP] + n) // LINE)
        }
        changed = np.flatnonzero(np.frombuffer(before, "V64") != np.frombuffer(after, "V64")).tolist()

        assert [0, 0] == fence
        assert set(changed) <= lines

        for _ in range(12):
            cuts += 1
            data, share = bytearray(before), rng.choice((0.0, 0.1, 0.5, 0.9, 0.99, 1.0))
            for line in changed:
                if rng.random() < share:
                    data[LINE * line : LINE * (line + 1)] = after[LINE * line : LINE * (line + 1)]
            if rng.random() < 0.3:  # the head before its hash
                data[at : at + LINE] = after[at : at + 40] + bytes(8) + after[at + 48 : at + LINE]
            is_whole = bytes(data) == after
            found = frames_in(bytes(data))

            assert ([*model, commit.entries] if is_whole else model) == found
        model.append(commit.entries)
        before = after

        assert model == frames_in(after)
        if len(after) > 8 << 20:
            it.close()
            os.unlink("journal", dir_fd=folder)
            it, model = Journal.create(folder, POOL), []
            before = content(folder)
    it.close()


def frames_in(data):
    """Return the commits in a journal of these bytes."""
    name = f"/dev/shm/jitslab-{os.getpid()}"
    os.makedirs(name, exist_ok=True)
    folder = os.open(name, os.O_RDONLY)
    try:
        put(folder, data)
        it = Journal.open(folder, POOL)
        found = read_all(it)
        it.close()
        os.unlink("journal", dir_fd=folder)
        os.rmdir(name)
        return found
    finally:
        os.close(folder)


# --- Calls that fail ---


class Failing(calls.System):
    """The system, of which call number `n` fails, and, if it `lasts`, later writes; some do less than they were asked for."""

    NAMES = "pwrite", "fdatasync", "pread", "preadv", "fstat", "open", "ftruncate"

    def __init__(self, n=0, code=0, names=NAMES, least=0, lasts=False):
        self.n, self.code, self.names, self.least, self.lasts = n, code, names, least, lasts and n > 0
        self.done = []

    def __getattr__(self, name):
        it = getattr(os, name)
        return self.counted(name, it) if name in self.names else it

    def counted(self, name, it):
        """Return a function that counts its calls."""

        def call(*args, **options):
            self.done.append(name)
            if len(self.done) == self.n or (self.lasts and name == "pwrite" and len(self.done) > self.n):
                raise OSError(self.code, os.strerror(self.code))
            if self.least and name == "pwrite":
                return it(args[0], args[1][: max(self.least, len(args[1]) // 3)], args[2])
            if self.least and name == "preadv":
                return it(args[0], [args[1][0][: max(self.least, len(args[1][0]) // 3)]], args[2])
            if self.least and name == "pread":
                return it(args[0], min(args[1], self.least), args[2])
            return it(*args, **options)

        return call

    def fdatasync(self, file):
        """Sync, and count it."""
        self.counted("fdatasync", os.fdatasync)(file)


def error_of(call, *args):
    """Return the error of pools that a call raises, or None."""
    try:
        call(*args)
    except errors.PoolError as error:
        return error
    return None


CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@pytest.mark.parametrize("form", ["short", "long", "growing", "mapped and growing"])
@pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])
def test_each_call_of_append_may_fail(folder, monkeypatch, form, code):
    """Nothing was committed, and the next commit is; after a failed sync there is none until the journal is opened again."""
    monkeypatch.setattr(journal, "PIECE_BYTES", 4 * BLOCK)
    monkeypatch.setattr(journal, "FIRST_BYTES", 16 * BLOCK)
    monkeypatch.setattr(journal, "GROWTH_BYTES", 32 * BLOCK)
    if form == "mapped and growing":
        if not CAN_FLUSH:
            pytest.skip("needs a CPU whose flushes are known")
        monkeypatch.setenv("JITSLAB_PMEM", "force")
    rng = random.Random(0)
    first = Commit((1, 1, 0, rng.randbytes(BLOCK * (1 if form in ("short", "long") else 28))))
    tried = Commit((1, 1, 0, rng.randbytes(BLOCK * {"short": 2, "long": 13}.get(form, 20))))
    later = Commit((1, 0, 0, rng.randbytes(BLOCK)))
    failed, n = {"pwrite": 0, "fdatasync": 0}, 0
    while True:
        n += 1
        it = Journal.create(folder, POOL)
        it.append(first.runs)
        before = it.used
        failing = Failing(n, code, ("pwrite", "fdatasync"), lasts=code in FULL)
        monkeypatch.setattr(calls, "system", failing)
        error = error_of(it.append, tried.runs)
        if error is not None:
            failed[failing.done[-1]] += 1
        if isinstance(error, errors.PoolFailedError):
            assert "fdatasync" == failing.done[-1]
            assert str(error).startswith("journal: a sync failed: ")

            for again in (error_of(it.append, later.runs), error_of(it.reset)):
                assert (type(error), str(error)) == (type(again), str(again))

            assert n == len(failing.done)

        calls.system = calls.System()
        if error is not None and not isinstance(error, errors.PoolFailedError):
            assert "pwrite" == failing.done[-1]
            assert (errors.PoolFullError if code in FULL else errors.PoolError) is type(error)
            assert "writing commit 2 to the journal: " in str(error)
            assert (1, before) == (it.number, it.used)
            assert os.stat("journal", dir_fd=folder).st_size == it.capacity
            assert 2 == it.append(later.runs)
        is_failed = bool(it._failed)
        it.close()
        again = Journal.open(folder, POOL, is_writable=True)
        found = read_all(again)

        assert 0 == again.find_damage()

        again.close()
        os.unlink("journal", dir_fd=folder)
        done = [[first.entries, tried.entries]]
        assert found in (done if error is None else [*done, [first.entries]] if is_failed else [[first.entries, later.entries]])
        if len(failing.done) < n:
            assert error is None
            break

    assert all(failed.values())


@pytest.mark.parametrize("wish", ["off", "force"])
def test_space_for_a_commit_is_enough(folder, monkeypatch, wish):
    """Without space for zeros ahead."""
    monkeypatch.setenv("JITSLAB_PMEM", wish)
    commit = Commit((1, 1, 0, bytes(1 << 20)))
    it = Journal.create(folder, POOL)
    monkeypatch.setattr(calls, "system", Failing(1, errno.ENOSPC, ("pwrite",)))

    assert 1 == it.append(commit.runs)

    end = BLOCK + head_bytes(1) + (1 << 20)

    assert end <= it.capacity == os.stat("journal", dir_fd=folder).st_size < end + (1 << 20)

    calls.system = calls.System()
    again = Journal.open(folder, POOL)

    assert [commit.entries] == read_all(again)

    again.close()
    it.close()


@pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])
def test_each_call_of_reset_may_fail(folder, monkeypatch, code):
    """The journal is as before, or, after a failed sync, as before or new when it is opened again."""
    commit = random_commit(random.Random(0))
    for n, kind in enumerate(("pwrite", "fdatasync"), 1):
        it = Journal.create(folder, POOL)
        it.append(commit.runs)
        monkeypatch.setattr(calls, "system", Failing(n, code, ("pwrite", "fdatasync")))
        expected = errors.PoolFailedError if kind == "fdatasync" else errors.PoolFullError if code in FULL else errors.PoolError
        with pytest.raises(errors.PoolError) as caught:
            it.reset()
        calls.system = calls.System()

        assert expected is type(caught.value)

        if kind == "fdatasync":
            with pytest.raises(errors.PoolFailedError):
                it.append(commit.runs)
        else:
            assert 2 == it.append(commit.runs)
        it.close()
        again = Journal.open(folder, POOL)

        assert (2 if kind == "pwrite" else 0, 2 if kind == "pwrite" else 1) == (len(read_all(again)), again.number)

        again.close()
        os.unlink("journal", dir_fd=folder)


def test_interrupted_reset_ends_the_journal(folder, monkeypatch):
    """The new head may be there: a commit under the old salt would be lost without a word."""
    it = Journal.create(folder, POOL)
    it.append(random_commit(random.Random(0)).runs)

    def interrupted(file):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(calls.System, "fdatasync", lambda self, file: interrupted(file))
        with pytest.raises(KeyboardInterrupt):
            it.reset()
    with pytest.raises(errors.PoolFailedError, match="^journal: its reset was interrupted; open the pool again$"):
        it.append(random_commit(random.Random(0)).runs)
    it.close()
    it = Journal.open(folder, POOL, is_writable=True)

    assert ([], 1) == (read_all(it), it.number)
    assert 2 == it.append(random_commit(random.Random(0)).runs)

    it.close()


def interrupted_at(n, call):
    """Call a function, which a signal interrupts at the n-th line of the pool's code; returns how many lines ran."""
    lines = 0

    def trace(frame, event, arg):
        nonlocal lines
        if os.path.dirname(frame.f_code.co_filename) != os.path.dirname(journal.__file__):
            return None
        if event == "line":
            lines += 1
            if lines == n:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("wish", ["off", "force"])
@pytest.mark.parametrize("what", ["append", "append and grow", "reset"])
def test_interrupt_at_each_line(folder, monkeypatch, what, wish):
    """A signal between any two steps: the commit was done or not, in memory as in the file, and what comes then is kept."""
    monkeypatch.setenv("JITSLAB_PMEM", wish)
    rng, n, lines = random.Random(0), 0, 1
    first, later = Commit((1, 1, 0, rng.randbytes(BLOCK))), Commit((1, 0, 0, rng.randbytes(BLOCK)))
    entries = [(2, 1, 2 * k * BLOCK, rng.randbytes(BLOCK)) for k in range(300 if what == "append and grow" else 2)]
    tried, seen = Commit(*entries), set()
    while lines >= n:
        n += 1
        it = Journal.create(folder, POOL)
        it.append(first.runs)
        lines = interrupted_at(n, it.reset if what == "reset" else functools.partial(it.append, tried.runs))
        model = [first.entries, tried.entries][: it.number]
        seen.add((it.number, it.used == BLOCK, bool(it._failed)))
        if not it._failed:
            model = [] if it.used == BLOCK else model

            assert image_of(model) == versions_of(it)

            it.append(later.runs)
            model.append(later.entries)
        elif what != "reset":
            model = [first.entries]
        it.close()
        it = Journal.open(folder, POOL, is_writable=True)
        found = read_all(it)

        assert found in ([model, []] if what == "reset" and len(model) == 1 else [model])

        it.close()
        os.unlink("journal", dir_fd=folder)

    assert n > 10
    assert (
        {(1, False, False), (1, False, True), (1, True, False)} if what == "reset" else {(1, False, False), (2, False, False)}
    ) <= seen


@pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])
def test_each_call_of_create_open_and_read_may_fail(folder, monkeypatch, code):
    """Each ends with an error of pools, and leaves no descriptor open."""
    commits = [random_commit(random.Random(k)) for k in range(3)]

    def create():
        os.path.exists(f"/proc/self/fd/{folder}/journal") and os.unlink("journal", dir_fd=folder)
        it = Journal.create(folder, POOL)
        try:
            for commit in commits:
                it.append(commit.runs)
        finally:
            it.close()

    def read(is_writable):
        it = Journal.open(folder, POOL, is_writable=is_writable)
        try:
            read_all(it)
            it.find_damage()
            for *_, place, n in it.last_versions().tolist():
                it.read_into(bytearray(n), place)
        finally:
            it.close()

    for what in (create, lambda: read(True), lambda: read(False)):
        n, before = 0, len(os.listdir("/proc/self/fd"))
        while True:
            n += 1
            failing = Failing(n, code)
            monkeypatch.setattr(calls, "system", failing)
            try:
                what()
            except errors.PoolError:
                assert n <= len(failing.done)
            if len(failing.done) < n:
                break
        calls.system = calls.System()

        assert n > 5
        assert before == len(os.listdir("/proc/self/fd"))


def test_short_reads_and_writes_go_on(folder, monkeypatch):
    """The system may do less than it was asked for."""
    rng, commits = random.Random(4), []
    monkeypatch.setattr(calls, "system", Failing(least=100))
    it = Journal.create(folder, POOL)
    for _ in range(5):
        commits.append(random_commit(rng))
        it.append(commits[-1].runs)
    it.close()
    it = Journal.open(folder, POOL)

    assert [commit.entries for commit in commits] == read_all(it)
    assert image_of(commit.entries for commit in commits) == versions_of(it)

    it.close()


@pytest.mark.parametrize("form", ["synced", "not synced", "mapped"])
def test_limit_of_file_sizes(tmp_path, form):
    """RLIMIT_FSIZE, in a process of its own: full, and the commits before are there; with a higher limit it goes on."""
    program = f"""
import os, resource, sys
import numpy as np
from jitslab import errors
from jitslab.pool.heads import JOURNAL_HEAD
from jitslab.pool.journal import Journal
folder = os.open({str(tmp_path)!r}, os.O_RDONLY)
it = Journal.create(folder, {POOL}, sync={form != "not synced"})
assert it.is_mapped == {form == "mapped"}
page = np.arange(512 * 64)
runs = np.array([[1, 1, 0, page.ctypes.data, page.nbytes]])
resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, resource.RLIM_INFINITY))
for k in range(1000):
    try:
        it.append(runs)
    except errors.PoolFullError as error:
        print(error)
        break
number = it.number
assert 1 < number == k and os.stat("journal", dir_fd=folder).st_size <= 3 << 20
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert it.append(runs) == number + 1
it.close()
it = Journal.open(folder, {POOL})
assert len(list(it.read(lambda cache, file: 1 << 30))) == number + 1
"""
    environment = {**os.environ, "JITSLAB_PMEM": "force" if form == "mapped" else "off"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)

    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.endswith("to the journal: file too large; free some, and commit again\n")


@pytest.mark.parametrize("form", ["synced", "not synced", "mapped"])
def test_killed_process_leaves_the_last_commit_or_the_one_in_flight(tmp_path, form):
    """By SIGKILL at a random instant, while commits and resets follow one another."""
    program = f"""
import os
import numpy as np
from jitslab.pool.heads import JOURNAL_HEAD
from jitslab.pool.journal import Journal
folder = os.open({str(tmp_path)!r}, os.O_RDONLY)
it = Journal.open(folder, {POOL}, is_writable=True, sync={form != "not synced"})
list(it.read(lambda cache, file: 1 << 30))
pages = np.zeros((5, 4096), np.uint8)
runs = np.array([[1, 1, 8192 * k, pages.ctypes.data + 4096 * k, 4096] for k in range(5)])
while True:
    if it.number % 20 == 19:
        it.reset()
    pages.view(np.int64)[:] = it.number + 1
    it.append(runs[: 1 + (it.number + 1) % 5])
    os.write(1, it.number.to_bytes(8, "little"))
"""
    folder = os.open(tmp_path, os.O_RDONLY)
    Journal.create(folder, POOL).close()
    environment = {**os.environ, "JITSLAB_PMEM": "force" if form == "mapped" else "off"}
    rng, number = random.Random(0), 0
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as child:
            told = child.stdout.read(8 * rng.randint(1, 60))
            child.send_signal(signal.SIGKILL)
            told += child.stdout.read()
        done = int.from_bytes(told[len(told) // 8 * 8 - 8 : len(told) // 8 * 8], "little")
        it = Journal.open(folder, POOL, is_writable=True)
        for frame in it.read(any_bounds):
            assert {frame.number} == set(frame.data.view(np.int64).tolist())
            assert 1 + frame.number % 5 == len(frame.entries)

        assert number < done <= it.number <= done + 1
        assert 0 == it.find_damage()

        number = it.number
        it.close()
    os.close(folder)


# --- Damage, and files that no journal wrote ---


def a_journal(folder, n=6, **options):
    """Make a journal of some commits; returns them, and where each stands."""
    rng, model, places = random.Random(5), [], []
    it = Journal.create(folder, POOL, 100, **options)
    for _ in range(n):
        commit = random_commit(rng)
        places.append(it.used)
        it.append(commit.runs)
        model.append(commit.entries)
    places.append(it.used)
    it.close()
    return model, places


@pytest.mark.parametrize("lost", range(6))
def test_damage_in_the_middle_is_told(folder, lost):
    """A commit that was synced, and is none any more, is named; the last one is not known to have been one."""
    model, places = a_journal(folder)
    whole, rng = content(folder), random.Random(lost)
    end = places[lost + 1]
    spots = [places[lost], places[lost] + 8, places[lost] + LINE, end - 1, rng.randrange(end - BLOCK, end)]
    for spot in spots:
        data = bytearray(whole)
        data[spot] ^= 1 << rng.randrange(8)
        put(folder, data)
        it = Journal.open(folder, POOL)

        assert model[:lost] == read_all(it)
        assert (101 + lost if lost < 5 else 0) == it.find_damage()

        it.close()


def test_damage_without_syncs_is_not_told(folder):
    """The commit after a lost one does not say that it was on the medium: losing it breaks no promise."""
    _, places = a_journal(folder, sync=False)
    data = bytearray(content(folder))
    data[places[2] + 8] ^= 1
    put(folder, data)
    it = Journal.open(folder, POOL)

    assert 2 == len(read_all(it))
    assert 0 == it.find_damage()

    it.close()


def test_each_head_alone_is_enough(folder):
    """Either half of block 0 may be lost: the journal is as before, or, if it was the newer, as before its reset."""
    it = Journal.create(folder, POOL)
    it.append(random_commit(random.Random(0)).runs)
    it.reset()
    it.append(random_commit(random.Random(0)).runs)
    it.close()
    whole = content(folder)
    for lost, expected in ((0, (1, 2)), (512, (0, 0))):
        data = bytearray(whole)
        data[lost : lost + 512] = random.Random(1).randbytes(512)
        put(folder, data)
        it = Journal.open(folder, POOL)

        assert expected == (it.number, it.number + len(read_all(it)))

        it.close()
    put(folder, bytes(1024) + whole[1024:])
    with pytest.raises(errors.CorruptPoolError, match="^journal: neither of the heads at byte 0 and 512 is whole$"):
        Journal.open(folder, POOL)


def with_head(data, slot=0, **fields):
    """Return a journal with other fields in a head, and the hash that goes with them."""
    data = bytearray(data)
    head = np.frombuffer(data, JOURNAL_HEAD, 1, 512 * slot).copy()
    for name, value in {**fields, "hash": 0}.items():
        head[name] = value
    head["hash"] = hash_memory(head.ctypes.data, LINE, 0)
    data[512 * slot : 512 * slot + LINE] = head.tobytes()
    return data


def test_head_of_another_format_or_pool_is_refused(folder):
    """With the class that says so."""
    a_journal(folder, 1)
    whole = content(folder)
    cases = (
        ({"format": 2}, errors.PoolVersionError, "journal: format 2 with flags 0; this version reads format 1 with flags 0"),
        ({"format": 0}, errors.PoolVersionError, "journal: format 0 with flags 0; "),
        ({"flags": 1}, errors.PoolVersionError, "journal: format 1 with flags 1; "),
        ({"pool": 7}, errors.CorruptPoolError, "journal: it belongs to pool 0000000000000007, not to f000000000000007"),
        ({"salt": 1 << 62}, errors.CorruptPoolError, "journal: neither of the heads"),
        ({"salt": -1}, errors.CorruptPoolError, "journal: neither of the heads"),
        ({"number": 1 << 62}, errors.CorruptPoolError, "journal: neither of the heads"),
        ({"number": -1}, errors.CorruptPoolError, "journal: neither of the heads"),
        ({"magic": 0}, errors.CorruptPoolError, "journal: neither of the heads"),
    )
    for fields, cls, message in cases:
        put(folder, with_head(whole, **fields))
        with pytest.raises(cls, match=f"^{message}"):
            Journal.open(folder, POOL)


@pytest.mark.parametrize("field", ["salt", "number"])
def test_reset_beyond_the_highest_number_is_refused(folder, field):
    """Its head would not count, and the old one would, without the commits since."""
    a_journal(folder, 0)
    put(folder, with_head(content(folder), **{field: (1 << 62) - 1}))
    it = Journal.open(folder, POOL, is_writable=True)
    read_all(it)
    it.append(random_commit(random.Random(0)).runs)
    with pytest.raises(errors.PoolError, match="is beyond what a head can have$"):
        it.reset()
    it.close()
    it = Journal.open(folder, POOL)

    assert 1 == len(read_all(it))

    it.close()


def with_frame(data, places, k, table=None, **fields):
    """Return a journal whose frame k has another table or head, and the hash that goes with them, as far as there are data."""
    data = bytearray(data)
    at = places[k]
    head = np.frombuffer(data, FRAME_HEAD, 1, at).copy()
    for name, value in {**fields, "hash": 0}.items():
        head[name] = value
    data[at : at + LINE] = head.tobytes()
    if table is not None:
        data[at + LINE : at + LINE + table.nbytes] = table.tobytes()
    n, total = int(head["n_entries"][0]), int(head["n_bytes"][0])
    if head_bytes(n) + total <= len(data) - at and total >= 0:
        frame = np.frombuffer(data, np.uint8, head_bytes(n) + total, at).copy()
        state = np.empty(STATE_WORDS, np.int64)
        head["hash"] = frames.hash_frame(state.ctypes.data, frame.ctypes.data, n, total)
        data[at : at + LINE] = head.tobytes()
    return data


def table_of(data, at):
    """Return the table of the frame at a place."""
    head = np.frombuffer(data, FRAME_HEAD, 1, at)[0]
    return np.frombuffer(data, ENTRY, int(head["n_entries"]), at + LINE).copy()


def bounded(cache, file):
    """Return the bounds of a pool that has two caches, and had a third one."""
    if cache == 70_000:
        return -1
    return 1 << 20 if cache in (1, 2) and file in (0, 1) else 0


BAD_ENTRIES = (
    ("offset", 1 << 20, "an entry for bytes"),
    ("offset", (1 << 20) - BLOCK, "an entry for bytes|two entries"),
    ("offset", 512, "an entry that is no run of whole blocks"),
    ("offset", (1 << 64) - BLOCK, "an entry for bytes 18446744073709547520 to"),
    ("offset", 1 << 63, "an entry for bytes"),
    ("n_bytes", 0, "an entry that is no run of whole blocks"),
    ("n_bytes", 100, "an entry that is no run of whole blocks"),
    ("n_bytes", 1 << 40, "entries whose data are not those of the frame"),
    ("n_bytes", (1 << 64) - BLOCK, "entries whose data are not those of the frame"),
    ("file", 2, "an entry for bytes .* of file 2 of cache"),
    ("file", (1 << 32) - 1, "an entry for bytes"),
    ("cache", 3, "an entry for bytes .* of cache 3, which has 0"),
    ("cache", (1 << 32) - 1, "an entry for bytes"),
)


@pytest.mark.parametrize(("field", "value", "message"), BAD_ENTRIES)
def test_whole_frame_with_a_bad_entry_is_refused(folder, field, value, message):
    """The author of a file gives it any hash: no entry may name bytes outside its file."""
    rng = random.Random(8)
    it = Journal.create(folder, POOL)
    at = it.used
    it.append(Commit((1, 1, 0, rng.randbytes(2 * BLOCK)), (2, 0, 8 * BLOCK, rng.randbytes(2 * BLOCK))).runs)
    it.close()
    whole = content(folder)
    for k in range(2):
        table = table_of(whole, at)
        table[k][field] = value
        put(folder, with_frame(whole, [at], 0, table))
        it = Journal.open(folder, POOL)
        with pytest.raises(errors.CorruptPoolError, match=f"^journal: commit 1 at byte {at} has ({message})"):
            read_all(it, bounded)

        assert 0 == it.number

        it.close()


def test_two_entries_for_one_block_are_refused(folder):
    """Which one counts would depend on their order."""
    it = Journal.create(folder, POOL)
    at = it.used
    it.append(Commit(*[(1, 1, 4 * k * BLOCK, bytes(2 * BLOCK)) for k in range(3)]).runs)
    it.close()
    whole = content(folder)
    for offset in (0, BLOCK, 3 * BLOCK, 4 * BLOCK, 5 * BLOCK):
        table = table_of(whole, at)
        table[2]["offset"] = offset
        put(folder, with_frame(whole, [at], 0, table))
        it = Journal.open(folder, POOL)
        with pytest.raises(errors.CorruptPoolError, match="has two entries for one block"):
            read_all(it, bounded)
        it.close()


def test_entries_of_a_dropped_cache_are_left_out(folder):
    """What the others have is where it was."""
    rng = random.Random(1)
    commit = Commit(*[(cache, 1, 4 * k * BLOCK, rng.randbytes(BLOCK * k)) for k, cache in enumerate((70_000, 1, 70_000, 2), 1)])
    it = Journal.create(folder, POOL)
    it.append(commit.runs)
    it.append(Commit((70_000, 0, 0, bytes(BLOCK))).runs)
    it.close()
    it = Journal.open(folder, POOL)
    left = [entry for entry in commit.entries if entry[0] != 70_000]

    assert [left, []] == read_all(it, bounded)
    assert image_of([left]) == versions_of(it)

    it.close()


def test_frame_is_copied_to_addresses(folder):
    """Each entry to its own."""
    model, _ = a_journal(folder, 1)
    it = Journal.open(folder, POOL)
    (frame,) = it.read(any_bounds)
    targets = [np.full(len(data) + 8, 9, np.uint8) for *_, data in model[0]]
    frame.copy_to(np.array([each.ctypes.data for each in targets]), frame.entries["n_bytes"].astype(np.int64))

    assert model == [entries_of(frame)]
    assert [data + bytes([9] * 8) for *_, data in model[0]] == [each.tobytes() for each in targets]

    it.close()


HEADS = (
    {"n_entries": 0},
    {"n_entries": (1 << 32) - 1},
    {"n_entries": 1000},
    {"n_bytes": 0},
    {"n_bytes": -BLOCK},
    {"n_bytes": 1},
    {"n_bytes": 1 << 42},
    {"n_bytes": (1 << 63) - BLOCK},
    {"number": 104},
    {"number": 102},
    {"number": -1},
    {"salt": 0},
    {"previous": 0},
    {"magic": 0},
)


@pytest.mark.parametrize("fields", HEADS, ids=str)
def test_frame_with_another_head_is_none(folder, fields):
    """Counts beyond the file, another number, another life: the journal ends before it, and takes no memory for it."""
    model, places = a_journal(folder)
    put(folder, with_frame(content(folder), places, 2, **fields))
    it = Journal.open(folder, POOL)

    assert model[:2] == read_all(it)
    assert len(it._buffer) <= 2 * places[-1]
    assert 103 == it.find_damage()

    it.close()


def test_frame_of_the_file_before_a_lost_one_does_not_follow(folder):
    """It has the right place and number, and names the hash of another one."""
    a_journal(folder, 1)
    rng, data = random.Random(0), []
    for _ in range(2):
        os.unlink("journal", dir_fd=folder)
        it = Journal.create(folder, POOL)
        for _ in range(2):
            it.append(Commit((1, 1, 0, rng.randbytes(BLOCK))).runs)
        it.close()
        data.append(content(folder))
    second = np.frombuffer(data[0], FRAME_HEAD, 1, 3 * BLOCK)[0]
    mixed = bytearray(data[1][: 3 * BLOCK] + data[0][3 * BLOCK :])
    salt = int(np.frombuffer(data[1], JOURNAL_HEAD, 1)[0]["salt"])
    put(folder, with_frame(mixed, [3 * BLOCK], 0, salt=salt))
    it = Journal.open(folder, POOL)

    assert 2 == second["number"]
    assert 1 == len(read_all(it))

    it.close()


def test_made_up_heads_take_no_time(folder, monkeypatch):
    """A file full of heads, each of a frame as long as the file: what is hashed is bounded."""
    a_journal(folder, 1)
    data = bytearray(content(folder).ljust(4 << 20, b"\0"))
    salt = int(np.frombuffer(data, JOURNAL_HEAD, 1)[0]["salt"])
    head = np.zeros(1, FRAME_HEAD)
    head["magic"], head["salt"], head["number"], head["n_entries"], head["flags"] = (
        frames.FRAME_MAGIC,
        salt,
        1000,
        1,
        AFTER_SYNCED,
    )
    for at in range(1 << 20, len(data), BLOCK):
        head["n_bytes"] = max(len(data) - at - BLOCK, BLOCK)
        data[at : at + LINE] = head.tobytes()
    put(folder, data)
    it = Journal.open(folder, POOL)
    read_all(it)
    read = []
    monkeypatch.setattr(calls.System, "preadv", lambda self, *args: read.append(os.preadv(*args)) or read[-1], raising=False)

    assert 102 == it.find_damage()
    assert 0 < sum(read) <= 3 * len(data)

    it.close()


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_and_cut_files(folder, seed):
    """Whatever was changed: what is read is what was committed, up to some commit, or an error of pools says what is wrong."""
    model, places = a_journal(folder)
    whole, rng = content(folder)[: places[-1] + 8 * BLOCK], random.Random(seed)
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 20))):
            place = rng.choice(places[:-1])
            spot = rng.choice((rng.randrange(len(data)), place + rng.randrange(200), rng.randrange(64), place + 7))
            data[spot] = rng.choice((data[spot] ^ 1 << rng.randrange(8), rng.randrange(256)))
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        if rng.random() < 0.2:
            a, b = (rng.randrange(len(data) // BLOCK + 1) * BLOCK for _ in range(2))
            data[a : a + BLOCK], data[b : b + BLOCK] = data[b : b + BLOCK], data[a : a + BLOCK]
        put(folder, data)
        try:
            it = Journal.open(folder, POOL, is_writable=True)
        except (errors.CorruptPoolError, errors.PoolVersionError):
            continue
        found = read_all(it)
        it.find_damage()

        assert model[: len(found)] == found

        it.close()
        assert bytes(data) == content(folder)


@pytest.mark.parametrize("size", [0, 1, 64, 512, 1023, 1024, BLOCK - 1, (1 << 43) + 1])
def test_length_of_the_file(folder, size):
    """Too short for a head, or longer than any journal."""
    a_journal(folder, 1)
    file = os.open("journal", os.O_RDWR, dir_fd=folder)
    os.truncate(file, size)
    os.close(file)
    with pytest.raises(errors.CorruptPoolError, match=f"^journal: {size} bytes, not 4096 to 8796093022208$"):
        Journal.open(folder, POOL)


def test_what_is_no_file_is_refused(folder, tmp_path):
    """Links, folders, FIFOs and devices; none is waited for."""
    a_journal(folder, 1)
    os.rename(tmp_path / "journal", tmp_path / "other")
    makers = {
        "link": lambda: os.symlink("other", "journal", dir_fd=folder),
        "folder": lambda: os.mkdir("journal", dir_fd=folder),
        "fifo": lambda: os.mkfifo("journal", dir_fd=folder),
    }
    for make in makers.values():
        make()
        for is_writable in (True, False):
            with pytest.raises(errors.CorruptPoolError, match="^journal of the pool is no regular file"):
                Journal.open(folder, POOL, is_writable=is_writable)
        os.rename(tmp_path / "journal", tmp_path / f"gone-{make.__name__}-{id(make)}")
    with pytest.raises(errors.CorruptPoolError, match="^journal: it is missing$"):
        Journal.open(folder, POOL)


def test_commit_that_was_taken_back_is_told_to_readers(folder):
    """A writer that was interrupted, or opened after a failed sync, may put another commit in the place of one that was read."""
    it = Journal.create(folder, POOL)
    before = content(folder)
    it.append(random_commit(random.Random(1)).runs)
    reader = Journal.open(folder, POOL)

    assert 1 == len(read_all(reader))

    file = os.open("journal", os.O_RDWR, dir_fd=folder)
    os.pwrite(file, before[BLOCK:], BLOCK)
    os.close(file)
    with pytest.raises(errors.PoolError, match="^journal: commit 1 was taken back by its writer; open the pool again$"):
        read_all(reader)
    reader.close()
    it.close()


# --- Where persistent memory is not ---


@pytest.mark.skipif(not CAN_FLUSH, reason="needs a CPU whose flushes are known")
def test_journal_with_holes_is_not_mapped(folder, monkeypatch):
    """A store into a hole could find the disk full, and end the process."""
    monkeypatch.setenv("JITSLAB_PMEM", "force")
    model, _ = a_journal(folder)
    it = Journal.open(folder, POOL, is_writable=True)

    assert it.is_mapped

    it.close()
    file = os.open("journal", os.O_RDWR, dir_fd=folder)
    os.truncate(file, os.fstat(file).st_size + (1 << 20))
    os.close(file)
    it = Journal.open(folder, POOL, is_writable=True)

    assert not it.is_mapped
    assert model == read_all(it)
    assert 107 == it.append(random_commit(random.Random(1)).runs)

    it.close()


@pytest.mark.parametrize("wish", ["", "off", "force"])
def test_variable_decides_on_the_mapping(folder, monkeypatch, wish):
    """Without it a file system that is none of persistent memory is written to by system calls, as are unsynced ones."""
    monkeypatch.setenv("JITSLAB_PMEM", wish)
    for sync in (True, False):
        it = Journal.create(folder, POOL, sync=sync)
        is_dax = wish == "" and it.is_mapped

        assert it.is_mapped == (sync and (is_dax or (wish == "force" and CAN_FLUSH)))

        it.close()
        os.unlink("journal", dir_fd=folder)


@pytest.mark.skipif(not CAN_FLUSH, reason="needs a CPU whose flushes are known")
def test_mapped_commit_makes_no_system_call(folder, monkeypatch):
    """While there is room."""
    monkeypatch.setenv("JITSLAB_PMEM", "force")
    it, commit = Journal.create(folder, POOL), random_commit(random.Random(1))
    it.append(commit.runs)
    monkeypatch.setattr(calls, "system", None)

    assert [2, 3, 4] == [it.append(commit.runs) for _ in range(3)]

    monkeypatch.undo()
    it.close()
