"""
Ctrl-C, or a want of memory, in every call of a pool's modules: the pool is usable, or says that it failed; its files are whole.

With JITSLAB_LONG=1 each call is interrupted by each exception; else every second call by one of the two, of opening every fourth.
"""

import dis
import itertools
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
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]  # a generator's end is interrupted
IS_LONG = bool(os.environ.get("JITSLAB_LONG"))
ERRORS = [[KeyboardInterrupt], [MemoryError]] if IS_LONG else [[KeyboardInterrupt, MemoryError]]
FOLDER = os.path.dirname(package.__file__)


@pytest.fixture
def folder():
    """Return a folder in memory, since pools are opened often."""
    path = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    yield path
    shutil.rmtree(path)


class Calls:
    """
    The calls that the code of a pool's modules makes, of which each is interrupted once, when it has just returned.

    There the interpreter looks for signals: nowhere else, but for the starts of functions and the ends of loops.
    """

    def __init__(self, errors, every=1, first=0):
        self.errors, self.every, self.n = errors, every, -first
        self.done, self.last, self.ends = set(), {}, {}

    def run(self, act, *arguments):
        """Run an act until the first call that was not interrupted yet; whether there was one."""
        self.where = None
        self.last.clear()
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            act(*arguments)
        except (KeyboardInterrupt, MemoryError) as error:
            assert type(error) in self.errors, error  # noqa: PT017  # the act may also succeed
        finally:
            sys.settrace(before)
        return self.where is not None

    def trace(self, frame, event, _):
        """Raise behind a new call."""
        code = frame.f_code
        if event == "call":
            if not code.co_filename.startswith(FOLDER) or is_finaliser(frame):
                return None
            frame.f_trace_opcodes = True
            if code not in self.ends:
                self.ends[code] = {at.offset for at in dis.get_instructions(code) if at.opname.startswith("CALL")}
        elif event == "opcode":
            before, self.last[frame] = self.last.get(frame), frame.f_lasti
            if before in self.ends[code] and self.where is None and (code, before) not in self.done:
                self.done.add((code, before))
                self.n += 1
                if self.n % self.every == 0:
                    self.where = code.co_name, frame.f_lineno
                    raise self.errors[self.n // self.every % len(self.errors)]
        return self.trace


def is_finaliser(frame):
    """Whether a frame is of a finaliser, which is called at any line: no exception leaves it."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def image(pool):
    """Return all that a pool holds."""
    caches = {name: {h: cache[h].tobytes() for h in cache.live().tolist()} for name, cache in pool.caches.items()}
    return caches, pool.root.tobytes()


def committed(path):
    """Return what the last commit holds."""
    with jitslab.open_pool(path, "r") as reader:
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


@pytest.mark.parametrize("errors", ERRORS)
@pytest.mark.parametrize("name", ACTS)
def test_every_call_in_a_writers_call(folder, name, errors):
    """Afterwards nothing that was stored is lost, or the pool says that it failed; files hold the last commit or this one."""
    calls, rng, path = Calls(errors, 1 if IS_LONG else 2), np.random.default_rng(0), f"{folder}/pool"
    pool = make(path)
    for n in itertools.count():
        pool.rollback()  # a failed pool was opened again
        if n % 10 == 9:
            assert pool.checkpoint()
            change(pool, rng)
            pool.commit()
        if name == "drop_cache" and "drop" not in pool:
            pool.create_cache("drop", NODE, capacity=10).alloc(value=3.0)
            pool.commit()
        before = committed(path)
        change(pool, rng)
        now = image(pool)
        is_over = not calls.run(ACTS[name], pool)
        what = (name, calls.where)
        found = committed(path)
        if name in ("commit", "checkpoint", "close"):
            assert found in (before, now), what
        elif name == "rollback":
            assert found == before, what
        try:
            try:
                pool.commit()
            except jitslab.TransactionError:  # its rollback was interrupted
                pool.rollback()
                assert image(pool) == found, what
            assert committed(path) == image(pool), what
            change(pool, rng)
            pool.commit()
            assert committed(path) == image(pool), what
        except (jitslab.PoolFailedError, jitslab.ClosedError):
            pool.close(commit=False)
            pool = jitslab.open_pool(path, "r+", keep=0)
            assert image(pool) == found, what
        if is_over:
            break
    assert n > 10
    for cache in pool.caches.values():
        cache.check()
    pool.close()


@pytest.mark.parametrize("errors", ERRORS)
@pytest.mark.parametrize("mode", ["r", "r+", "x"])
def test_every_call_in_opening(folder, mode, errors):
    """Locks are given back, and the pool opens again as it was."""
    calls = Calls(errors) if IS_LONG else Calls(errors, 4, ("r", "r+", "x").index(mode))
    path, n, paths = f"{folder}/pool", 0, itertools.count()
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
        is_over = not calls.run(act)
        for pool in made:
            pool.close(commit=False)
        with jitslab.open_pool(path, "c", root=ROOT) as pool:
            if mode == "x":
                assert pool.root["n"] == 0, calls.where
                assert list(pool.caches) == []
            else:
                assert image(pool) == before, calls.where
    assert n > 50
    assert pool.closed


@pytest.mark.parametrize("errors", ERRORS)
def test_every_call_in_refresh(folder, errors):
    """The next refresh sees the last commit."""
    calls, rng, path = Calls(errors), np.random.default_rng(0), f"{folder}/pool"
    pool = make(path)
    reader = jitslab.open_pool(path, "r")
    n_whole = 0  # refreshes since the last one that was interrupted
    for n in itertools.count():
        kind = n % 3
        if kind == 0:
            assert pool.checkpoint()
        elif kind == 1:
            add_cache(pool)
        elif len(pool.caches) > 1:
            pool.drop_cache(next(name for name in pool.caches if name != "nodes"))
        change(pool, rng)
        pool.commit()
        n_whole = 0 if calls.run(reader.refresh) else n_whole + 1
        assert reader.refresh() == pool.number
        assert image(reader) == image(pool)
        assert pool.checkpoint()
        if n_whole == 3:
            break
    assert n > 20
    reader.close()
    pool.close()
