"""Ctrl-C, or a want of memory, at every line of a pool's modules: the pool is usable, or says that it failed; the files are whole."""

import itertools
import linecache
import os
import shutil
import sys
import tempfile

import numpy as np
import pytest

import jitslab
from jitslab import pool as package

NODE = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
ROOT = np.dtype([("head", jitslab.link("nodes")), ("n", "i8")])
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # a generator's end is interrupted, too
FOLDER = os.path.dirname(package.__file__)


@pytest.fixture
def folder():
    """Return a folder in memory, since pools are opened often."""
    path = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    yield path
    shutil.rmtree(path)


class Lines:
    """The lines of a pool's modules, of which each is interrupted once: when it is run for the first time in a call."""

    def __init__(self, error):
        self.error, self.done = error, set()

    def run(self, act, *arguments):
        """Run an act until the first line that was not interrupted yet; whether there was one."""
        self.line = None
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            act(*arguments)
        except self.error as error:
            assert type(error) is self.error, error
        finally:
            sys.settrace(before)
        return self.line is not None

    def trace(self, frame, event, _):
        """Raise at a new line."""
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        line = frame.f_code.co_filename, frame.f_lineno
        if event == "line" and self.line is None and line not in self.done:
            self.done.add(line)
            if linecache.getline(*line).strip() != "try:":  # no instruction, so nothing comes there
                self.line = line
                raise self.error
        return self.trace


def image(pool):
    """Return all that a pool holds."""
    caches = {name: {h: cache[h].tobytes() for h in cache.live().tolist()} for name, cache in pool.caches.items()}
    return caches, pool.root.tobytes()


def committed(path):
    """Return what the last commit holds, and check it."""
    with jitslab.open_pool(path, "r") as reader:
        for cache in reader.caches.values():
            cache.check()
        return image(reader)


def make(path):
    """Return a new pool."""
    pool = jitslab.open_pool(path, "c", root=ROOT, keep=0)
    pool.require_cache("nodes", NODE, capacity=20_000)
    pool.commit()
    return pool


def change(pool, rng):
    """Free some nodes, take others, and store into some that are kept."""
    nodes = pool["nodes"]
    live = rng.permutation(nodes.live())
    nodes.free_many(live[: len(live) // 3])
    for handle in live[len(live) // 3 :][:5].tolist():
        nodes[handle]["value"] += 1
    pool.root["head"] = nodes.alloc_many(int(rng.integers(1, 200)), value=float(rng.random()))[0]
    pool.root["n"] += 1


def transact(pool):
    """Change a pool in a transaction."""
    with pool.transaction():
        change(pool, np.random.default_rng(1))


def transact_in_vain(pool):
    """Change a pool in a transaction that ends by an exception."""
    try:
        with pool.transaction():
            change(pool, np.random.default_rng(2))
            raise KeyError
    except KeyError:
        pass


def commit_and_checkpoint(pool):
    """Commit, write to the data files, and map these."""
    pool.commit()
    assert pool.checkpoint()


def add_cache(pool):
    """Make a cache, with a record."""
    pool.create_cache(f"c{len(pool.caches)}", NODE, capacity=10).alloc()


ACTS = {
    "commit": lambda pool: pool.commit(),
    "checkpoint": commit_and_checkpoint,
    "rollback": lambda pool: pool.rollback(),
    "transaction": transact,
    "transaction in vain": transact_in_vain,
    "create_cache": add_cache,
    "drop_cache": lambda pool: pool.drop_cache("drop"),
    "close": lambda pool: pool.close(),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("name", ACTS)
def test_every_line_of_a_writers_call(folder, name, error):
    """Afterwards nothing that was stored is lost, or the pool says that it failed; files hold the last commit or this one."""
    lines, rng, path = Lines(error), np.random.default_rng(0), f"{folder}/pool"
    pool = make(path)
    for n in itertools.count():
        pool.rollback()  # a failed pool was opened again
        if name == "drop_cache" and "drop" not in pool:
            pool.create_cache("drop", NODE, capacity=10).alloc(value=3.0)
            pool.commit()
        before = committed(path)
        change(pool, rng)
        now = image(pool)
        is_over = not lines.run(ACTS[name], pool)
        what = (name, lines.line)
        found = committed(path)
        if name in ("commit", "checkpoint", "close"):
            assert found in (before, now), what
        elif name == "rollback":
            assert found == before, what
        if not pool.closed and not pool._failure:
            change(pool, rng)
            memory = image(pool)
            pool.commit()
            assert committed(path) == memory, what
            for cache in pool.caches.values():
                cache.check()
        else:
            if not pool.closed:
                with pytest.raises(jitslab.PoolFailedError, match="open"):
                    pool.commit()
                pool.close(commit=False)
            else:
                pool.close()
            pool = jitslab.open_pool(path, "r+", keep=0)
            assert image(pool) == found, what
        if is_over:
            break
    assert n > 10
    pool.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("mode", ["r", "r+", "x"])
def test_every_line_of_opening(folder, mode, error):
    """Locks are given back, and the pool opens again as it was."""
    lines, path, n, paths = Lines(error), f"{folder}/pool", 0, itertools.count()
    if mode != "x":
        pool = make(path)
        change(pool, np.random.default_rng(0))
        commit_and_checkpoint(pool)
        change(pool, np.random.default_rng(1))
        pool.close()
        before = committed(path)

    def act():
        made.append(jitslab.open_pool(path, mode, root=ROOT))

    is_over = False
    while not is_over:
        if mode == "x":
            path = f"{folder}/{next(paths)}"
        made, n = [], n + 1
        is_over = not lines.run(act)
        for pool in made:
            pool.close(commit=False)
        with jitslab.open_pool(path, "c", root=ROOT) as pool:
            pool.root["n"] += 1
            if mode == "x":
                assert pool.root["n"] == 1, lines.line
                assert list(pool.caches) == []
        if mode != "x":
            assert committed(path)[0] == before[0]
    assert n > 50


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_every_line_of_refresh(folder, error):
    """The next refresh sees the last commit."""
    lines, rng, path = Lines(error), np.random.default_rng(0), f"{folder}/pool"
    pool = make(path)
    reader = jitslab.open_pool(path, "r")
    is_over = False
    while not is_over:
        kind = len(lines.done) % 3
        if kind == 0:
            assert pool.checkpoint()
        elif kind == 1:
            add_cache(pool)
        elif len(pool.caches) > 1:
            pool.drop_cache(next(name for name in pool.caches if name != "nodes"))
        change(pool, rng)
        pool.commit()
        is_over = not lines.run(reader.refresh) and kind == 0
        assert reader.refresh() == pool.number
        assert image(reader) == image(pool)
        assert pool.checkpoint()
    reader.close()
    pool.close()
