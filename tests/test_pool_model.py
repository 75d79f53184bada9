"""A pool beside a model in plain Python: commits, rollbacks, deaths, readers and checkpoints in any order."""

import gc
import os
import shutil
import tempfile
import warnings

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import jitslab

RECORD = np.dtype([("value", "i8"), ("next", jitslab.link("a")), ("rest", "u1", (5,))])
ROOT = np.dtype([("n", "i8")])
NAMES = ("a", "b")
numbers = st.integers(1, 1 << 62)


@numba.njit
def store(cache, handles, values):
    """Store values by compiled code, which tells nobody."""
    for i in range(handles.size):
        cache[handles[i]].value = values[i]


class Pools(RuleBasedStateMachine):
    """The model: for each cache the value of each live handle, now and at the last commit."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.path = f"{self.folder}/pool"
        self.pool = jitslab.open_pool(self.path, root=ROOT, sync=False)
        self.now = {name: {} for name in NAMES}
        self.capacity = dict.fromkeys(NAMES, 3000)
        for name in NAMES:
            self.pool.create_cache(name, RECORD, capacity=3000, init="zero")
        self.gone = {name: set() for name in NAMES}  # handles that were freed, and committed so
        self.n = self.kept_n = 0
        self.kept = self.copied()
        self.reader = self.seen = None

    def copied(self):
        """Return a copy of what is there now."""
        return {name: dict(values) for name, values in self.now.items()}

    def teardown(self):
        """Close all, and remove the files."""
        for pool in (self.reader, self.pool):
            if pool is not None:
                pool.close()
        shutil.rmtree(self.folder)

    def some(self, name, data, most=40):
        """Return some live handles."""
        live = sorted(self.now[name])
        start = data.draw(st.integers(0, max(len(live) - 1, 0)))
        return live[start : start + data.draw(st.integers(1, most))]

    # --- Changes ---

    @rule(name=st.sampled_from(NAMES), value=numbers)
    def alloc(self, name, value):
        """Alloc."""
        cache = self.pool[name]
        if len(cache) < self.capacity[name]:
            self.now[name][cache.alloc(value=value)] = value

    @rule(name=st.sampled_from(NAMES), n=st.integers(1, 600), value=numbers)
    def alloc_many(self, name, n, value):
        """Alloc many."""
        cache = self.pool[name]
        n = min(n, self.capacity[name] - len(cache))
        for handle in cache.alloc_many(n, value=value).tolist():
            assert handle not in self.gone[name]
            self.now[name][handle] = value

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def free(self, name, data):
        """Free."""
        handles = self.some(name, data, 500)
        if handles:
            self.pool[name].free_many(handles)
        for handle in handles:
            del self.now[name][handle]

    @rule(name=st.sampled_from(NAMES), value=numbers, data=st.data())
    def write(self, name, value, data):
        """Write."""
        handles = np.array(self.some(name, data), np.int64)
        store(self.pool[name], handles, np.full(handles.size, value))
        self.now[name] |= dict.fromkeys(handles.tolist(), value)

    @rule(n=numbers)
    def write_root(self, n):
        """Write root."""
        self.pool.root["n"] = self.n = n

    @rule(name=st.sampled_from(NAMES))
    def shrink(self, name):
        """Shrink."""
        self.pool[name].shrink()

    # --- What makes them last, or undoes them ---

    def note_commit(self):
        """Note that all there is now lasts."""
        for name in NAMES:
            self.gone[name] |= self.kept[name].keys() - self.now[name].keys()
        self.kept, self.kept_n = self.copied(), self.n

    def note_rollback(self):
        """Note that all is as the last commit."""
        self.now, self.n = {name: dict(values) for name, values in self.kept.items()}, self.kept_n

    @rule()
    def commit(self):
        """Commit."""
        self.pool.commit()
        self.note_commit()

    @rule()
    def rollback(self):
        """Rollback."""
        self.pool.rollback()
        self.note_rollback()

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def transaction_that_fails(self, name, data):
        """Transaction that fails."""
        with pytest.raises(ZeroDivisionError), self.pool.transaction():
            self.note_commit()
            self.alloc_many(name, 50, 7)
            self.free(name, data)
            self.write_root(3)
            raise ZeroDivisionError
        self.note_rollback()

    @rule()
    def checkpoint(self):
        """Checkpoint."""
        assert self.pool.checkpoint() or self.reader is not None

    # --- Ends ---

    @rule()
    def close_and_open(self):
        """Close and open."""
        self.pool.close()
        self.note_commit()
        self.pool = jitslab.open_pool(self.path, "r+", sync=False, keep=0)

    @rule()
    def die_and_open(self):
        """Die and open."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            self.pool._let_go()  # as the end of the process: files and locks go, nothing is written
        self.pool = None
        gc.collect()
        self.pool = jitslab.open_pool(self.path, "r+", sync=False)
        self.note_rollback()

    @rule(name=st.sampled_from(NAMES), more=st.integers(0, 9000))
    def raise_capacity(self, name, more):
        """Raise capacity."""
        self.pool.close()
        self.note_commit()
        self.capacity[name] += more
        self.pool = jitslab.open_pool(self.path, "r+", sync=False, capacity={name: self.capacity[name]})

    @rule(name=st.sampled_from(NAMES))
    def drop_and_make(self, name):
        """Drop and make."""
        self.commit()
        self.pool.drop_cache(name)
        self.pool.create_cache(name, RECORD, capacity=self.capacity[name], init="zero")
        self.now[name], self.kept[name], self.gone[name] = {}, {}, set()
        if self.reader is not None:
            self.refresh()

    # --- A reader ---

    @precondition(lambda self: self.reader is None)
    @rule()
    def open_reader(self):
        """Open reader."""
        self.reader = jitslab.open_pool(self.path, "r")
        self.seen = {name: dict(values) for name, values in self.kept.items()}, self.kept_n

    @precondition(lambda self: self.reader is not None)
    @rule()
    def refresh(self):
        """Refresh."""
        assert self.reader.refresh() == self.pool.number
        self.seen = {name: dict(values) for name, values in self.kept.items()}, self.kept_n

    @precondition(lambda self: self.reader is not None)
    @rule()
    def close_reader(self):
        """Close reader."""
        self.reader.close()
        self.reader = None

    # --- What holds ---

    @invariant()
    def pool_is_as_the_model(self):
        """Pool is as the model."""
        self.compare(self.pool, self.now, self.n)

    @invariant()
    def reader_is_as_its_commit(self):
        """Reader is as its commit."""
        if self.reader is not None:
            self.compare(self.reader, *self.seen)

    def compare(self, pool, values, n):
        """Compare a pool with what it should hold."""
        assert pool.root["n"] == n
        for name in NAMES:
            cache, expected = pool[name], values[name]
            live = cache.live()
            assert sorted(live.tolist()) == sorted(expected)
            assert cache[live, "value"].tolist() == [expected[handle] for handle in live.tolist()]
            assert not cache[live, "rest"].any()
            if pool is self.pool:
                assert not cache.is_live(sorted(self.gone[name])).any()
            cache.check()


@pytest.mark.parametrize("mechanism", ["userfaultfd", "pagemap", "hashes"])
def test_a_pool_is_as_its_model(monkeypatch, mechanism):
    """With each way to find written pages.  ``JITSLAB_EXAMPLES=1000`` makes a long run of it."""
    monkeypatch.setenv("JITSLAB_DIRTY", mechanism)
    examples = int(os.environ.get("JITSLAB_EXAMPLES", "15"))
    run_state_machine_as_test(
        Pools,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=examples < 100,
        ),
    )
