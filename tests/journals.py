"""Commits for a journal, and the model beside it: a list that has of each commit its entries as (cache, file, offset, bytes)."""

import numpy as np

from jitslab.pool.frames import BLOCK

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
