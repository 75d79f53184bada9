"""A pool beside a dict: any order of calls, commits, rollbacks, deaths and readers leaves what the dict says, byte for byte."""

import os
import shutil
import tempfile

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

import jitslab

NODE = np.dtype([("value", "<i8"), ("next", jitslab.link("nodes")), ("text", "S5")])
WIDE = np.dtype([("x", "<f4", (300,)), ("n", "<u2")])
PAIR = np.dtype([("a", "<i4"), ("b", "<i4")])
DTYPES = {"nodes": NODE, "wide": WIDE, "pairs": PAIR}
ROOT = np.dtype([("head", jitslab.link("nodes")), ("n", "<i8")])
NAMES = st.sampled_from(sorted(DTYPES))
VALUES = st.integers(0, 2**31 - 1)


@numba.njit
def store(records, slots, value):
    """Store into some nodes, as compiled code does."""
    for i in range(len(slots)):
        records[slots[i]].value = value + i


def record_of(dtype, value):
    """Return a record made of a number."""
    record = np.zeros((), dtype)
    record.view("u1")[:] = np.frombuffer(np.random.default_rng(value).bytes(dtype.itemsize), "u1")
    return record


class State:
    """What a pool holds: of each cache the records by handle, and the root."""

    def __init__(self, caches=None, root=b"\0" * ROOT.itemsize):
        self.caches, self.root = caches or {}, root

    def copy(self):
        """Return a copy."""
        return State({name: dict(records) for name, records in self.caches.items()}, self.root)


class PoolMachine(RuleBasedStateMachine):
    """A writer, up to one reader, and the model of both."""

    handles = Bundle("handles")  # (name, handle): of records that were live once

    @initialize(sync=st.booleans(), keep=st.sampled_from([0, None]))
    def begin(self, sync, keep):
        """Make a pool."""
        self.folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.path, self.options = f"{self.folder}/pool", {"sync": sync, "keep": keep}
        self.now, self.committed, self.history = State(), State(), {}
        self.rolled_back = set()  # handles that may name a later record: the limit of rollback
        self.reader, self.capacities = None, {}
        self.pool = jitslab.open_pool(self.path, root=ROOT, **self.options)
        self.note()

    def teardown(self):
        """Check, and close all."""
        if not hasattr(self, "pool"):
            return
        if self.reader is not None:
            self.compare(self.reader, self.snapshot)
            for cache in self.reader.caches.values():
                cache.check()
            self.reader.close()
        for cache in self.pool.caches.values():
            cache.check()
        self.pool.close()
        with jitslab.open_pool(self.path, "r") as pool:
            self.compare(pool, self.now)
        shutil.rmtree(self.folder)

    def note(self):
        """Note that all is committed."""
        self.committed = self.now.copy()
        self.history[self.pool.number] = self.committed

    def compare(self, pool, state):
        """Compare a pool with what it should hold."""
        assert pool.root.tobytes() == state.root
        assert set(pool.caches) == set(state.caches)
        for name, records in state.caches.items():
            cache = pool[name]
            assert len(cache) == len(records)
            assert cache.live().tolist() == sorted(records, key=lambda handle: handle & 0xFFFF_FFFF)
            for handle, record in records.items():
                assert cache[handle].tobytes() == record

    # --- Caches ---

    @rule(name=NAMES, capacity=st.sampled_from([1, 50, 5000]))
    def create(self, name, capacity):
        """Make a cache."""
        if name in self.now.caches:
            with pytest.raises(jitslab.DuplicateNameError):
                self.pool.create_cache(name, DTYPES[name], capacity=capacity)
            return
        self.pool.create_cache(name, DTYPES[name], capacity=capacity)
        self.capacities[name] = capacity
        for state in (self.now, self.committed):
            state.caches[name] = {}
        self.note_caches()

    @rule(name=NAMES)
    def drop(self, name):
        """Drop a cache."""
        if name not in self.now.caches:
            with pytest.raises(jitslab.UnknownNameError):
                self.pool.drop_cache(name)
            return
        self.pool.drop_cache(name)
        for state in (self.now, self.committed):
            state.caches.pop(name)
        self.note_caches()

    def note_caches(self):
        """Note that the caches of the last commit are others: they last at once."""
        self.committed = self.committed.copy()
        self.history[self.pool.number] = self.committed

    # --- Records ---

    @rule(target=handles, name=NAMES, n=st.sampled_from([1, 1, 3, 40, 700]), value=VALUES)
    def alloc(self, name, n, value):
        """Take records, of a cache that may be full."""
        if name not in self.now.caches:
            return multiple()
        cache, records = self.pool[name], self.now.caches[name]
        if len(records) + n > self.capacities[name]:
            with pytest.raises(jitslab.CacheFullError):
                cache.alloc_many(n)
            return multiple()
        new = cache.alloc_many(n).tolist() if n > 1 else [cache.alloc()]
        for i, handle in enumerate(new):
            assert handle not in records
            record = record_of(DTYPES[name], value + i)
            cache[handle] = record
            records[handle] = record.tobytes()
        return multiple(*[(name, handle) for handle in new[:3]])

    @rule(chosen=consumes(handles))
    def free(self, chosen):
        """Free a record, if it is live."""
        name, handle = chosen
        if name not in self.now.caches:
            return
        if handle in self.now.caches[name]:
            self.pool[name].free(handle)
            del self.now.caches[name][handle]
        elif (name, handle) not in self.rolled_back:
            with pytest.raises(jitslab.StaleHandleError):
                self.pool[name].free(handle)

    @rule(name=NAMES, share=st.integers(1, 4))
    def free_some(self, name, share):
        """Free each second, third, ... record."""
        if name in self.now.caches:
            gone = list(self.now.caches[name])[::share]
            assert self.pool[name].free_many(gone) == len(gone)
            for handle in gone:
                del self.now.caches[name][handle]

    @rule(chosen=handles, value=VALUES)
    def write(self, chosen, value):
        """Store into a record from Python."""
        name, handle = chosen
        if handle in self.now.caches.get(name, ()):
            record = record_of(DTYPES[name], value)
            self.pool[name][handle] = record
            self.now.caches[name][handle] = record.tobytes()

    @rule(value=VALUES, share=st.integers(1, 5))
    def write_compiled(self, value, share):
        """Store into nodes from compiled code."""
        chosen = list(self.now.caches.get("nodes", ()))[::share]
        if chosen:
            cache = self.pool["nodes"]
            store(cache.records, np.array(chosen, np.int64) & 0xFFFF_FFFF, value)
            for i, handle in enumerate(chosen):
                record = np.frombuffer(self.now.caches["nodes"][handle], NODE).copy()
                record["value"] = value + i
                self.now.caches["nodes"][handle] = record.tobytes()

    @rule(value=VALUES)
    def write_root(self, value):
        """Store into the root, a link to a node or NULL, and a number."""
        self.pool.root["head"] = next(iter(self.now.caches.get("nodes", ())), 0)
        self.pool.root["n"] = value
        self.now.root = self.pool.root.tobytes()

    @rule(name=NAMES, what=st.sampled_from(["shrink", "flush", "clear", "recover"]))
    def maintain(self, name, what):
        """Give memory back; or free all; or rebuild the index."""
        if name in self.now.caches:
            getattr(self.pool[name], what)()
            if what == "clear":
                self.now.caches[name] = {}

    # --- The pool ---

    @rule()
    def commit(self):
        """Commit."""
        before = self.pool.number
        number = self.pool.commit()
        assert number in (before, before + 1)
        self.note()

    @rule()
    def rollback(self):
        """Undo all."""
        self.forget_handles()
        self.pool.rollback()
        self.now = self.committed.copy()

    def forget_handles(self):
        """Note the handles that are undone."""
        for name, records in self.now.caches.items():
            self.rolled_back |= {(name, handle) for handle in records.keys() - self.committed.caches[name].keys()}

    @rule(value=VALUES, n=st.integers(1, 30), is_good=st.booleans())
    def transaction(self, value, n, is_good):
        """Change the root and a cache in a transaction, which ends well or by an exception."""
        name = min(self.now.caches, default=None)
        try:
            with self.pool.transaction():
                self.note()
                self.write_root(value)
                if name is not None:
                    self.free_some(name, 2)
                    self.alloc(name, n, value)
                if not is_good:
                    self.forget_handles()
                    raise ZeroDivisionError
        except ZeroDivisionError:
            self.now = self.committed.copy()
        else:
            self.note()

    @rule()
    def checkpoint(self):
        """Write the journal into the data files, unless the reader is behind."""
        is_behind = self.reader is not None and self.reader.number < self.pool.number
        assert self.pool.checkpoint() != (is_behind and self.pool.stats()["journal_bytes"] > 4096)

    @rule(way=st.sampled_from(["close", "close without a commit", "die"]), raised=st.booleans())
    def reopen(self, way, raised):
        """End and open again; the capacity of a cache may be raised."""
        if way == "close":
            self.pool.close()
            self.committed = self.now.copy()
        elif way == "die":  # nothing is committed, flushed or closed, but for the descriptors, as when a process is killed
            self.forget_handles()
            self.pool._let_go()
        else:
            self.forget_handles()
            self.pool.close(commit=False)
        self.now = self.committed.copy()
        capacity = {}
        if raised and self.now.caches:
            name = max(self.now.caches)
            capacity[name] = self.capacities[name] = self.capacities[name] + 1000
        self.pool = jitslab.open_pool(self.path, "r+", capacity=capacity, **self.options)
        self.note()

    # --- The reader ---

    @rule()
    def read(self):
        """Open a reader, or close it."""
        if self.reader is None:
            self.reader = jitslab.open_pool(self.path, "r")
            self.see()
        else:
            self.reader.close()
            self.reader = None

    @precondition(lambda self: self.reader is not None)
    @rule()
    def refresh(self):
        """Have the reader see the last commit."""
        assert self.reader.refresh() == self.pool.number
        self.see()

    def see(self):
        """Note what the reader sees."""
        assert self.reader.number == self.pool.number
        self.snapshot = self.history[self.reader.number].copy()
        self.compare(self.reader, self.snapshot)

    @invariant()
    def holds_what_the_model_says(self):
        """The writer has its changes, the reader its snapshot."""
        if hasattr(self, "pool"):
            self.compare(self.pool, self.now)
            if self.reader is not None:
                self.compare(self.reader, self.snapshot)


@pytest.mark.parametrize("dirty", ["userfaultfd", "pagemap", "hashes"])
def test_a_pool_is_as_a_dict(monkeypatch, dirty):
    """With each way to find the pages that were written; a short journal has commits make checkpoints."""
    monkeypatch.setenv("JITSLAB_DIRTY", dirty)
    examples = int(os.environ.get("JITSLAB_EXAMPLES", "8"))
    run_state_machine_as_test(
        PoolMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize="JITSLAB_EXAMPLES" not in os.environ,
            database=None,
        ),
    )


