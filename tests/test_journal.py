"""The journal of a pool alone: commits are there again, in order and to the byte, in each of its forms."""

import os
import random
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from journals import POOL, Commit, any_bounds, image_of, random_commit, read_all, versions_of

from jitslab import errors
from jitslab.machine.flush import CAN_FLUSH
from jitslab.pool import journal
from jitslab.pool.frames import BLOCK, ENTRY, FRAME_HEAD, head_bytes
from jitslab.pool.heads import JOURNAL_HEAD
from jitslab.pool.journal import Journal


@pytest.fixture
def folder(tmp_path):
    """Open the folder of a pool."""
    file = os.open(tmp_path, os.O_RDONLY)
    yield file
    os.close(file)


FORMS = ("synced", "not synced", "mapped")  # mapped as on persistent memory, whatever the file system


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Run a test with each form of the journal."""
    if request.param == "mapped" and not CAN_FLUSH:
        pytest.skip("needs a CPU whose flushes are known")
    monkeypatch.setenv("JITSLAB_PMEM", "force" if request.param == "mapped" else "off")
    return request.param


@pytest.fixture
def opened(folder):
    """Return functions that make or open a journal of the folder; all are closed at the end."""
    made = []

    def make(number=0, **options):
        made.append(Journal.create(folder, POOL, number, **options))
        return made[-1]

    def again(**options):
        made.append(Journal.open(folder, POOL, **options))
        return made[-1]

    make.again = again
    yield make
    for each in made:
        each.close()


# --- What is appended is there ---


def test_new_journal_is_empty(opened, form):
    """It has the number of the last commit before it."""
    it = opened(41, sync=form != "not synced")
    again = opened.again()

    assert (41, 41) == (it.number, again.number)
    assert [] == read_all(again)
    assert 0 == len(again.last_versions())
    assert (BLOCK, BLOCK) == (it.used, again.used)


def test_second_journal_of_a_pool_is_refused(opened):
    """Whoever makes one would destroy commits."""
    opened()
    with pytest.raises(errors.PoolPathError, match="making the journal: file exists"):
        opened()


@pytest.mark.parametrize("seed", range(6))
def test_commits_are_read_as_they_were_appended(folder, opened, form, seed):
    """By a reader, and by the next writer, who appends behind them."""
    rng = random.Random(seed)
    sync = form != "not synced"
    it, model = opened(seed, sync=sync), []
    for life in range(3):
        for _ in range(rng.randint(0, 9)):
            commit = random_commit(rng, most_runs=rng.choice((1, 6, 300)))
            model.append(commit.entries)
            number = it.append(commit.runs)

            assert seed + len(model) == number == it.number

        reader = opened.again()

        assert model == read_all(reader)
        assert image_of(model) == versions_of(reader) == versions_of(it)
        assert (it.number, it.used) == (reader.number, reader.used)
        assert reader.used <= reader.capacity == os.stat("journal", dir_fd=folder).st_size

        it.close()
        it = opened.again(is_writable=True, sync=sync)

        assert (form == "mapped") == it.is_mapped
        assert model == read_all(it)
        assert 0 == it.find_damage()


def test_long_commits_are_written_in_pieces(opened, form, monkeypatch):
    """Longer than the staging memory, than the zeros ahead, and of more entries than fit on a block."""
    monkeypatch.setattr(journal, "PIECE_BYTES", 3 * BLOCK)
    monkeypatch.setattr(journal, "GROWTH_BYTES", 1 << 20)
    rng, it = random.Random(0), opened(sync=form != "not synced")
    model = [
        Commit((1, 0, 0, rng.randbytes(20 * BLOCK)), (1, 1, 0, rng.randbytes(BLOCK))),
        Commit(*[(3, 1, 2 * k * BLOCK, rng.randbytes(BLOCK)) for k in range(700)]),
        Commit((2, 1, BLOCK, rng.randbytes(3 * BLOCK))),
        Commit((2, 1, BLOCK, rng.randbytes(2 * BLOCK))),
    ]
    for commit in model:
        it.append(commit.runs)

    assert [commit.entries for commit in model] == read_all(opened.again())


def test_reset_begins_anew(opened, form):
    """The number stays, what was there before does not come back, and the file keeps its length."""
    sync, rng = form != "not synced", random.Random(1)
    it = opened(sync=sync)
    for life in range(5):
        commits = [random_commit(rng) for _ in range(3)]
        for commit in commits:
            it.append(commit.runs)

        assert [commit.entries for commit in commits] == read_all(opened.again())

        before = it.capacity
        it.reset()

        assert (3 * (life + 1), BLOCK, before) == (it.number, it.used, it.capacity)
        assert 0 == len(it.last_versions())

        reader = opened.again()

        assert ([], it.number) == (read_all(reader), reader.number)
        if life % 2:
            it.close()
            it = opened.again(is_writable=True, sync=sync)

            assert [] == read_all(it)


def test_reader_follows_the_writer(opened, form):
    """Each `read` yields what came since, each commit once."""
    rng, it = random.Random(2), opened(5, sync=form != "not synced")
    reader = opened.again()
    for _ in range(30):
        commits = [random_commit(rng) for _ in range(rng.randint(0, 3))]
        for commit in commits:
            it.append(commit.runs)

        assert [commit.entries for commit in commits] == read_all(reader)
        assert it.number == reader.number
    assert versions_of(it) == versions_of(reader)


def test_reader_beside_a_writer_sees_whole_commits(folder, opened, form):
    """A process appends as fast as it can: all the blocks of a commit hold its number."""
    writer = opened(sync=form != "not synced")
    program = f"""
import os, sys
import numpy as np
from jitslab.pool.heads import JOURNAL_HEAD
from jitslab.pool.journal import Journal
it = Journal.open({os.dup(folder)}, {POOL}, is_writable=True, sync={writer.sync})
list(it.read(lambda cache, file: 1 << 30))
pages = np.zeros((5, 4096), np.uint8)
runs = np.array([[1, 1, 8192 * k, pages.ctypes.data + 4096 * k, 4096] for k in range(5)])
print("ready", flush=True)
for number in range(1, 501):
    pages.view(np.int64)[:] = number
    it.append(runs[: 1 + number % 5])
"""
    writer.close()
    reader, numbers = opened.again(), []
    fds = [int(program.split("Journal.open(")[1].split(",")[0])]
    with subprocess.Popen([sys.executable, "-c", program], pass_fds=fds, stdout=subprocess.PIPE, text=True) as child:
        assert "ready\n" == child.stdout.readline()

        deadline = time.monotonic() + 60
        while reader.number < 500 and time.monotonic() < deadline:
            for frame in reader.read(any_bounds):
                numbers.append(frame.number)

                assert {frame.number} == set(frame.data.view(np.int64).tolist())
                assert 1 + frame.number % 5 == len(frame.entries)
    os.close(fds[0])

    assert list(range(1, 501)) == numbers


def test_commit_of_memory_that_is_written_to_meanwhile_is_whole(opened, form):
    """What was stored is what was hashed, whatever another thread does: or this commit, and all after it, would be lost."""
    it, memory, stop = opened(sync=form != "not synced"), np.zeros(BLOCK * 64, np.uint8), threading.Event()
    runs = np.array([[1, 1, 0, memory.ctypes.data, memory.nbytes]])

    def write():
        words = memory.view(np.int64)
        while not stop.is_set():
            words += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(100):
            it.append(runs)
    finally:
        stop.set()
        thread.join()
    frames_of = [frame.data.view(np.int64).copy() for frame in opened.again().read(any_bounds)]

    assert 100 == len(frames_of)
    assert len({data.tobytes() for data in frames_of}) > 1


def test_what_is_no_commit_is_refused(opened, form):
    """No blocks, parts of blocks, places within blocks: nothing is written."""
    it, page = opened(sync=form != "not synced"), np.zeros(3 * BLOCK, np.uint8)
    at = page.ctypes.data
    for runs in ([], [[1, 0, 0, at, 0]], [[1, 0, 0, at, 100]], [[1, 0, 512, at, BLOCK]], [[1, 0, 0, at, -BLOCK]]):
        with pytest.raises(errors.PoolError, match="a commit of no blocks, or of parts of blocks"):
            it.append(np.array(runs, np.int64).reshape(-1, 5))

    assert 1 == it.append(np.array([[1, 0, 0, at, BLOCK]]))
    assert 1 == len(read_all(opened.again()))


def test_reader_writes_nothing(folder, opened):
    """Its methods are refused, and the file stays as it was, also its time."""
    opened().append(random_commit(random.Random(3)).runs)
    before = os.stat("journal", dir_fd=folder)
    reader = opened.again()
    read_all(reader)
    for call in (reader.reset, lambda: reader.append(random_commit(random.Random(3)).runs)):
        with pytest.raises(errors.ReadOnlyError, match="the journal was opened to read"):
            call()
    after = os.stat("journal", dir_fd=folder)

    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


def test_close_is_repeated_in_vain(opened, form):
    """A second call does nothing, also to a file that got the descriptor meanwhile."""
    it = opened(sync=form != "not synced")
    it.close()
    file = os.open(os.devnull, os.O_RDONLY)
    it.close()
    os.fstat(file)
    os.close(file)


def test_writer_reads_before_it_appends(opened, form):
    """Otherwise it would overwrite commits."""
    commit = random_commit(random.Random(4))
    opened(sync=form != "not synced").append(commit.runs)
    it = opened.again(is_writable=True, sync=form != "not synced")
    frames = it.read(any_bounds)
    for _ in range(2):
        for call in (it.reset, lambda: it.append(commit.runs)):
            with pytest.raises(errors.PoolFailedError, match="^journal: it was not read to its end$"):
                call()
        next(frames, None)
    assert 2 == it.append(commit.runs)


# --- The format ---


def plain_read(data):
    """Read a journal by the format alone: returns the number before, and the commits."""
    xxh64 = pytest.importorskip("xxhash").xxh64_intdigest
    heads = []
    for at in (0, 512):
        magic, form, flags, pool, salt, number, hash_, *zeros = struct.unpack_from("<8sIIQQQQ2Q", data, at)
        raw = data[at : at + 40] + bytes(8) + data[at + 48 : at + 64]
        if (magic, form, flags, pool, zeros) == (b"jitslabj", 1, 0, POOL, [0, 0]) and xxh64(raw, 0) == hash_:
            heads.append((salt, number, hash_))
    salt, number, previous = max(heads)
    at, commits = BLOCK, []
    while at + BLOCK <= len(data):
        magic, its_salt, its_number, before, n_bytes, hash_, n, flags, zero = struct.unpack_from("<8sQQQQQIIQ", data, at)
        if (magic, its_salt, its_number, before) != (b"jitslabf", salt, number + len(commits) + 1, previous):
            break
        lines, start = -(-(64 + 24 * n) // 64) * 64, -(-(64 + 24 * n) // BLOCK) * BLOCK
        raw = data[at : at + 40] + bytes(8) + data[at + 48 : at + lines] + data[at + start : at + start + n_bytes]
        if xxh64(raw, 0) != hash_:
            break
        place, commit = at + start, []

        assert not any(data[at + 64 + 24 * n : at + lines])

        for k in range(n):
            cache, file, offset, size = struct.unpack_from("<IIQQ", data, at + 64 + 24 * k)
            commit.append((cache, file, offset, data[place : place + size]))
            place += size
        commits.append(commit)
        at, previous = place, hash_
    return number, commits


@pytest.mark.parametrize("resets", range(4))
def test_file_is_what_the_format_says(folder, opened, form, resets):
    """A reader that knows the format alone, and computes XXH64 by others' code, reads the same."""
    rng, it = random.Random(resets), opened(9, sync=form != "not synced")
    for _ in range(resets):
        it.append(random_commit(rng).runs)
        it.reset()
    model = [random_commit(rng, most_runs=200) for _ in range(5)]
    for commit in model:
        it.append(commit.runs)
    with open("journal", "rb", opener=lambda name, flags: os.open(name, flags, dir_fd=folder)) as file:
        number, commits = plain_read(file.read())

    assert (9 + resets, [commit.entries for commit in model]) == (number, commits)


def test_sizes_of_rows():
    """They stand on the medium."""
    assert (64, 64, 24) == (JOURNAL_HEAD.itemsize, FRAME_HEAD.itemsize, ENTRY.itemsize)
    assert [0, 8, 12, 16, 24, 32, 40, 48] == [JOURNAL_HEAD.fields[name][1] for name in JOURNAL_HEAD.names]
    assert [0, 8, 16, 24, 32, 40, 48, 52, 56] == [FRAME_HEAD.fields[name][1] for name in FRAME_HEAD.names]
    assert [0, 4, 8, 16] == [ENTRY.fields[name][1] for name in ENTRY.names]
    assert (4096, 4096, 8192) == (head_bytes(1), head_bytes(168), head_bytes(169))
