"""
The journal of a pool alone: commits are there again or not at all, whatever happened in between.

The model is a list: of each commit its entries as (cache, file, offset, bytes).
"""

import os
import random

import numpy as np
import pytest

from jitslab import errors
from jitslab.pool.frames import BLOCK
from jitslab.pool.journal import Journal

POOL = 0xF000_0000_0000_0007


def any_bounds(cache, file):
    """Return a bound that all entries of these tests keep."""
    return 1 << 46


class Commit:
    """The runs of a commit, in memory that lives as long, and as the model has them."""

    def __init__(self, *entries):
        self.entries = [(cache, file, offset, bytes(data)) for cache, file, offset, data in entries]
        self.arrays = [np.frombuffer(data + bytes(64), np.uint8) for *_, data in self.entries]
        rows = zip(self.entries, self.arrays, strict=True)
        runs = [(c, f, at, array.ctypes.data, len(data)) for (c, f, at, data), array in rows]
        self.runs = np.array(runs, np.int64).reshape(-1, 5)


def random_commit(rng, *, most_runs=6, most_blocks=3):
    """Return a commit of some runs, none of which overlap."""
    n, at, entries = rng.randint(1, most_runs), 0, []
    for _ in range(n):
        at += BLOCK * rng.randint(0, 3)
        data = rng.randbytes(BLOCK * rng.randint(1, most_blocks))
        entries.append((rng.choice((1, 2, 70_000)), rng.randint(0, 1), at, data))
        at += len(data)
    rng.shuffle(entries)
    return Commit(*entries)


def entries_of(frame):
    """Return the entries of a frame as the model has them."""
    rows = zip(frame.entries, frame.places.tolist(), strict=True)
    return [
        (int(e["cache"]), int(e["file"]), int(e["offset"]), frame.data[at : at + int(e["n_bytes"])].tobytes()) for e, at in rows
    ]


def read_all(it, bounds=any_bounds):
    """Read what a journal holds, as a list of commits."""
    return [entries_of(frame) for frame in it.read(bounds)]


def image_of(commits):
    """Return the newest version of every block: what a checkpoint writes."""
    blocks = {}
    for commit in commits:
        for cache, file, offset, data in commit:
            for k in range(0, len(data), BLOCK):
                blocks[cache, file, offset + k] = data[k : k + BLOCK]
    return blocks


def versions_of(it):
    """Return the same of a journal, by `last_versions`."""
    blocks = {}
    for cache, file, offset, place, n in it.last_versions().tolist():
        data = bytearray(n)
        it.read_into(data, place)
        for k in range(0, n, BLOCK):
            assert (cache, file, offset + k) not in blocks
            blocks[cache, file, offset + k] = bytes(data[k : k + BLOCK])
    return blocks


@pytest.fixture
def folder(tmp_path):
    """Open the folder of a pool."""
    file = os.open(tmp_path, os.O_RDONLY)
    yield file
    os.close(file)


@pytest.fixture(params=(True, False), ids=("sync", "no sync"))
def sync(request):
    """Run a test with syncs and without."""
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


def test_new_journal_is_empty(opened, sync):
    """It has the number of the last commit before it."""
    it = opened(41, sync=sync)
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
def test_commits_are_read_as_they_were_appended(folder, opened, sync, seed):
    """By a reader, and by the next writer, who appends behind them."""
    rng = random.Random(seed)
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

        assert model == read_all(it)
        assert 0 == it.find_damage()
