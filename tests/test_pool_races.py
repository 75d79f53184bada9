"""What other processes, threads and children do to a pool at any moment: at each system call, or really beside it."""

import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest

import jitslab
from jitslab.pool import calls

pytestmark = pytest.mark.long

NODE = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
ROOT = np.dtype([("head", jitslab.link("nodes")), ("n", "i8"), ("sum", "i8")])
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or asks Linux alone")
FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SYSTEM = calls.system


@pytest.fixture
def folder():
    """Return a folder in memory, since each case makes a pool."""
    path = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    yield path
    shutil.rmtree(path)


# --- Between two system calls ---


class Between:
    """The system, with something done before the call with a number."""

    def __init__(self, at, act):
        self.left, self.act = at, act

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.left -= 1
            if self.left == -1:
                calls.system = SYSTEM
                self.act()
                calls.system = self
            return getattr(SYSTEM, name)(*arguments, **options)

        return call


def between_all(run, act):
    """Call ``run(between)``, with `act` done before the first system call, then before the second, and so on."""
    at = 0
    while True:
        between = Between(at, act)
        calls.system = between
        try:
            run()
        finally:
            calls.system = SYSTEM
        if between.left >= 0:
            return at
        assert at < 1000
        at += 1


def image(pool):
    """Return all that a pool holds."""
    caches = {name: {h: cache[h].tobytes() for h in cache.live().tolist()} for name, cache in pool.caches.items()}
    return caches, pool.root.tobytes()


class Writer:
    """A writer that does each time something else, and knows all states that were committed."""

    def __init__(self, path):
        self.path, self.n = path, 0
        self.pool = jitslab.open_pool(path, root=ROOT)
        self.pool.create_cache("nodes", NODE, capacity=1000)
        self.states = []
        self.act()

    def note(self):
        """Note what is committed."""
        self.states.append(image(self.pool))

    def act(self):
        """Commit more nodes; make, fill and drop a cache; begin the journal anew."""
        pool, self.n = self.pool, self.n + 1
        pool["nodes"].clear()
        pool.root["head"] = pool["nodes"].alloc_many(20, value=self.n)[0]
        pool.root["n"] = self.n
        pool.commit()
        self.note()
        if f"c{self.n - 1}" in pool:
            pool.drop_cache(f"c{self.n - 1}")
            self.note()
        pool.create_cache(f"c{self.n}", NODE, capacity=10)
        self.note()
        pool[f"c{self.n}"].alloc(value=self.n)
        pool.root["sum"] = self.n
        pool.commit()
        self.note()
        pool.checkpoint()
        pool.root["n"] = -self.n
        pool.commit()
        self.note()


def test_a_writer_between_any_two_calls_of_opening_a_reader(folder):
    """The reader sees a state that was committed."""
    writer = Writer(f"{folder}/pool")

    def run():
        with jitslab.open_pool(writer.path, "r") as reader:
            assert image(reader) in writer.states
        calls.system = SYSTEM
        assert writer.pool.checkpoint()

    assert between_all(run, writer.act) > 30
    writer.pool.close()


@pytest.mark.parametrize("is_behind", [True, False])
def test_a_writer_between_any_two_calls_of_refresh(folder, is_behind):
    """The reader sees a state that was committed, and no older one than before; then the last."""
    writer = Writer(f"{folder}/pool")
    reader = jitslab.open_pool(writer.path, "r")

    def prepare():
        writer.act()
        if not is_behind:
            reader.refresh()

    def run():
        seen = image(reader)
        reader.refresh()
        calls.system = SYSTEM
        assert image(reader) in writer.states[writer.states.index(seen) + is_behind :]
        reader.refresh()
        assert image(reader) == writer.states[-1]
        assert writer.pool.checkpoint()
        prepare()

    def act():
        writer.pool.checkpoint()  # as the first thing, if the reader is not behind
        writer.act()

    prepare()
    assert between_all(run, act) > 5
    reader.close()
    writer.pool.close()


@pytest.mark.parametrize("mode", ["c", "x"])
def test_a_maker_between_any_two_calls_of_making_the_same_pool(folder, mode):
    """What one made, committed and closed, the other does not make again."""
    paths = iter(range(10**6))
    path, made = "", 0

    def other():
        nonlocal made
        try:
            with jitslab.open_pool(path, "c", root=ROOT) as pool:
                pool.root["n"] = 7
            made += 1
        except jitslab.PoolError:
            pass  # the first one has the lock already

    def run():
        nonlocal path
        path, before = f"{folder}/{mode}{next(paths)}", made
        try:
            with jitslab.open_pool(path, mode, root=ROOT) as pool:
                assert pool.root["n"] == 7 * (made - before)
        except jitslab.PoolPathError:
            assert mode == "x"
            assert made > before
        calls.system = SYSTEM
        with jitslab.open_pool(path, "r") as pool:
            assert pool.root["n"] == 7 * (made - before)

    assert between_all(run, other) > 50
    assert made > 3


def test_a_capacity_that_is_raised_beside_a_reader(folder):
    """The reader has a new cache of the name; it sees what the old one had no room for."""
    path = f"{folder}/pool"
    with jitslab.open_pool(path, root=ROOT) as pool:
        pool.create_cache("nodes", NODE, capacity=10).alloc(value=1.0)
    reader = jitslab.open_pool(path, "r")
    old = reader["nodes"]
    with jitslab.open_pool(path, capacity={"nodes": 9_000_000}) as pool:
        pool["nodes"].alloc_many(8_000_000, value=2.0)
        pool.commit()
        reader.refresh()
        assert len(reader["nodes"]) == 8_000_001
        reader["nodes"].check()
        with pytest.raises(jitslab.ClosedError):
            len(old)
    reader.close()


# --- Processes ---

WRITER = """
import sys, numpy as np, jitslab, numba
from test_pool_races import NODE, ROOT
pool = jitslab.open_pool(sys.argv[1], sync=False)
nodes, root = pool["nodes"], pool.root
rng = np.random.default_rng(int(sys.argv[2]))
held = nodes.live()
for k in range(1, int(sys.argv[3]) + 1):
    if len(held) > 3000 or (len(held) > 50 and rng.random() < 0.4):
        rng.shuffle(held)
        nodes.free_many(held[:60])
        held = held[60:]
    values = rng.integers(1, 1000, 50)
    new = nodes.alloc_many(50)
    for h, v in zip(new.tolist(), values.tolist()):
        nodes[h]["value"] = v
    held = np.concatenate([held, new])
    root["n"], root["sum"] = len(held), int(nodes.records["value"][held & 0xFFFFFFFF].sum())
    pool.commit()
    if k % 100 == 0:
        pool.checkpoint()
pool.close()
"""


@LINUX
def test_a_reader_beside_a_writer_of_a_thousand_commits(folder):
    """Each refresh is a state that was committed: the root has the number and the sum of the records."""
    path = f"{folder}/pool"
    with jitslab.open_pool(path, root=ROOT) as pool:
        pool.create_cache("nodes", NODE, capacity=10_000)
        first = pool.number
    with jitslab.open_pool(path, "r") as reader:
        environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path, "1", "1000"], env=environment)
        seen, nodes = set(), reader["nodes"]
        while writer.poll() is None or reader.refresh() not in seen:
            seen.add(reader.refresh())
            live = nodes.live()
            assert len(live) == reader.root["n"]
            assert nodes.records["value"][live & 0xFFFF_FFFF].sum() == reader.root["sum"]
        assert writer.returncode == 0
        assert reader.number == first + 1000
        assert len(seen) > 2
        nodes.check()
