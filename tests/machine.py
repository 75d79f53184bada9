"""
The state machine: random operations on a real cache and on the naive one, from several threads' heaps.

After every step `check()` recounts the laws and the whole state is compared.  Every operation on handles has a form with
live handles and one with stale or arbitrary ones, which must be refused and change nothing.
"""

import numpy as np
import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from inside import Inside
from naive import Naive
from worker import Worker

import jitslab

WORKERS = 2
SLOT = (1 << 32) - 1
ALMOST_WORN = 0x7FFFFFFA  # the slot's generation; three allocs later it is retired
threads = st.integers(0, WORKERS)  # 0: the test's own thread
numbers = st.integers(0, 1 << 30)
handles_of_any_kind = st.integers(-(1 << 63) - 2, (1 << 64) + 2) | st.integers(0, 1 << 40)


class CacheMachine(RuleBasedStateMachine):
    """Operations on a cache; subclasses say which cache (`configure`)."""

    dtype = np.dtype([("a", "i8", 8)])
    capacity = 100
    init = None
    colouring = True
    exact = False  # with one thread the capacity is exact
    nodes = None  # simulated ones

    def __init__(self):
        super().__init__()
        options = {"capacity": self.capacity, "init": self.init, "colouring": self.colouring, "nodes": self.nodes}
        self.cache = jitslab.SlabCache("machine", self.dtype, **options)
        template = None
        if self.init is not None:
            template = bytes(self.dtype.itemsize) if isinstance(self.init, str) else self.init.tobytes()
        self.model = Naive(self.capacity, self.dtype.itemsize, template)
        self.workers = [None, *(Worker() for _ in range(WORKERS))]
        self.stamp = 0

    def teardown(self):
        """End the threads and close the cache."""
        for worker in self.workers[1:]:
            worker.end()
        self.cache.close()

    # --- Means ---

    def do(self, thread, function, *arguments):
        """Run an operation on one of the threads."""
        worker = None if self.exact else self.workers[thread]
        return function(*arguments) if worker is None else worker.do(function, *arguments)

    def content(self):
        """Return new bytes for a record: never the same twice in a row, and never all zero."""
        self.stamp = self.stamp % 250 + 1
        return bytes([self.stamp]) * self.dtype.itemsize

    def started(self, handle):
        """Note a new record, which must hold what it should start with, and write it."""
        found = self.cache[handle].tobytes()
        assert self.model.template in (None, found)
        content = self.content()
        self.cache[handle] = np.frombuffer(content, self.dtype)[0]
        self.model.alloc(handle, content)

    def may_be_full(self, n):
        """Whether n more may be refused: the capacity is a floor, and exact for one thread."""
        return len(self.model) + n > self.capacity

    def mixed(self, picks):
        """Return live, stale and repeated handles by number, each with whether it is to be refused."""
        handles, refused, seen = [], [], set()
        for number, kind in picks:
            handle = (self.model.pick(number), self.model.pick_stale(number), number)[kind]
            if handle is not None:
                handles.append(handle)
                refused.append(handle in seen or handle not in self.model.records)
                seen.add(handle)
        return handles, refused

    @rule(number=numbers)
    def move(self, number):
        """From now on all threads run on another node."""
        if self.nodes:
            Inside(self.cache).run_on(number % self.nodes)

    # --- One record ---

    @rule(thread=threads)
    def alloc(self, thread):
        """Take one slot."""
        try:
            handle = self.do(thread, self.cache.alloc)
        except jitslab.CacheFullError:
            assert self.may_be_full(1)
        else:
            assert not (self.exact and self.may_be_full(1))
            self.started(handle)

    @rule(thread=threads, number=numbers)
    def free(self, thread, number):
        """Free a live record, twice."""
        handle = self.model.pick(number)
        if handle is not None:
            assert self.do(thread, self.cache.free, handle) is True
            self.model.free(handle)
            with pytest.raises(jitslab.StaleHandleError):
                self.do(thread, self.cache.free, handle)

    @rule(thread=threads, number=numbers)
    def free_stale(self, thread, number):
        """A handle that was freed is refused for ever."""
        handle = self.model.pick_stale(number)
        if handle is not None:
            with pytest.raises(jitslab.StaleHandleError):
                self.do(thread, self.cache.free, handle)
            with pytest.raises(jitslab.StaleHandleError):
                self.do(thread, self.cache.__getitem__, handle)

    @rule(thread=threads, handle=handles_of_any_kind)
    def free_anything(self, thread, handle):
        """A number that is no live handle is refused."""
        if handle not in self.model.records:
            note(f"refused: {handle:#x}")
            assert handle not in self.cache
            with pytest.raises(jitslab.HandleError):
                self.do(thread, self.cache.free, handle)
            with pytest.raises(jitslab.HandleError):
                self.cache[handle]

    @rule(thread=threads, number=numbers, cycles=st.integers(-3, 3), slots=st.integers(-2, 2))
    def free_neighbour(self, thread, number, cycles, slots):
        """A live handle with another cycle or slot is refused, unless that one is live itself."""
        handle = self.model.pick(number)
        if handle is not None:
            self.free_anything_of(thread, handle + (cycles << 32) + slots)

    def free_anything_of(self, thread, handle):
        """Refuse to free what is not live."""
        if handle not in self.model.records:
            assert handle not in self.cache
            with pytest.raises(jitslab.HandleError):
                self.do(thread, self.cache.free, handle)

    @rule(thread=threads, number=numbers)
    def write(self, thread, number):
        """Write a record through its view."""
        handle = self.model.pick(number)
        if handle is not None:
            content = self.content()
            self.do(thread, self.cache.__setitem__, handle, np.frombuffer(content, self.dtype)[0])
            self.model.write(handle, content)

    # --- Many ---

    @rule(thread=threads, n=st.integers(0, 8) | st.integers(0, 400))
    def alloc_many(self, thread, n):
        """Take n slots, all or none."""
        n = min(n, max(2 * self.capacity, 8))
        try:
            handles = self.do(thread, self.cache.alloc_many, n)
        except jitslab.CacheFullError:
            assert self.may_be_full(n)
        else:
            assert not (self.exact and self.may_be_full(n))
            assert n == len(handles)
            for handle in handles.tolist():
                self.started(handle)

    @rule(thread=threads, picks=st.lists(st.tuples(numbers, st.integers(0, 2)), max_size=30))
    def free_many_mixed(self, thread, picks):
        """Of live, stale and repeated handles every valid one is freed and the others are named."""
        handles, refused = self.mixed(picks)
        positions = tuple(i for i, bad in enumerate(refused) if bad)
        if positions:
            with pytest.raises(jitslab.HandleError) as caught:
                self.do(thread, self.cache.free_many, np.array(handles, np.int64))

            assert positions == caught.value.positions
        else:
            self.do(thread, self.cache.free_many, np.array(handles, np.int64))
        for handle, bad in zip(handles, refused, strict=True):
            if not bad:
                self.model.free(handle)

    @rule(thread=threads, stop=numbers)
    def free_many_in_order(self, thread, stop):
        """A long batch in order goes to the slab layer by blocks."""
        handles = self.model.live()[: stop % (len(self.model) + 1)]
        self.do(thread, self.cache.free_many, handles)
        for handle in handles:
            self.model.free(handle)

    @rule(thread=threads, picks=st.lists(st.tuples(numbers, st.integers(0, 1)), max_size=10))
    def gather(self, thread, picks):
        """Copies of live records are what the model holds; one refused handle refuses all."""
        handles, _ = self.mixed(picks)
        bad = tuple(i for i, handle in enumerate(handles) if handle not in self.model.records)
        if bad:
            with pytest.raises(jitslab.HandleError) as caught:
                self.do(thread, self.cache.gather, handles)

            assert bad == caught.value.positions
        else:
            found = self.do(thread, self.cache.gather, np.array(handles, np.int64))
            assert b"".join(self.model.records[handle] for handle in handles) == found.tobytes()

    @rule(thread=threads, picks=st.lists(numbers, max_size=10))
    def scatter(self, thread, picks):
        """Of equal handles the last value counts."""
        handles = [handle for number in picks if (handle := self.model.pick(number)) is not None]
        contents = [self.content() for _ in handles]
        values = np.frombuffer(b"".join(contents), self.dtype)
        self.do(thread, self.cache.scatter, np.array(handles, np.int64), values)
        for handle, content in zip(handles, contents, strict=True):
            self.model.write(handle, content)

    # --- The cache as a whole ---

    @rule(thread=threads)
    def shrink(self, thread):
        """Empty slabs go back to the system and nothing is lost."""
        assert self.do(thread, self.cache.shrink) >= 0

    @rule(thread=threads)
    def recover(self, thread):
        """The index is rebuilt from the generations and nothing is lost."""
        self.do(thread, self.cache.recover)

    @rule(thread=threads, n=st.integers(0, 300))
    def reserve(self, thread, n):
        """After `reserve(n)` the next n allocs of that thread succeed."""
        if self.may_be_full(n):
            with pytest.raises(jitslab.CacheFullError):
                self.do(thread, self.cache.reserve, n)
        else:
            self.do(thread, self.cache.reserve, n)
            for _ in range(min(n, 20)):
                self.started(self.do(thread, self.cache.alloc))

    @rule(thread=threads, really=st.sampled_from([False, False, True]))
    def clear(self, thread, really):
        """Everything is freed."""
        if really:
            assert len(self.model) == self.do(thread, self.cache.clear)
            self.model.clear()

    @rule(thread=threads, seed=numbers, by_mask=st.booleans())
    def retain(self, thread, seed, by_mask):
        """Everything is freed but what is kept, said by mask or by handles."""
        handles = self.model.live()
        mask = np.random.default_rng(seed).random(len(handles)) < 0.5
        kept = [handle for handle, keep in zip(handles, mask, strict=True) if keep]
        freed = self.do(thread, self.cache.retain, mask if by_mask else np.array(kept, np.int64))
        assert len(handles) - len(kept) == freed
        for handle in set(handles) - set(kept):
            self.model.free(handle)

    @rule(which=st.integers(1, WORKERS))
    def thread_ends(self, which):
        """A thread ends, its magazines go home, and another one starts."""
        self.workers[which].end()
        self.workers[which] = Worker()

    @rule(number=numbers)
    def wear(self, number):
        """A free slot, by a poked generation, comes within a few allocs of its retirement."""
        if self.model.stale:
            slot = self.model.pick_stale(number) & SLOT
            inside = Inside(self.cache)
            if not inside.generations[slot] & 1 and not inside.is_fresh(slot):
                inside.generations[slot] = max(int(inside.generations[slot]), ALMOST_WORN)

    # --- After every step ---

    @invariant()
    def the_laws_hold(self):
        """`check` finds nothing."""
        self.cache.check()

    @invariant()
    def it_looks_like_the_model(self):
        """Count, handles by slot, contents, membership and pages are those of the model."""
        live = self.model.live()
        assert len(live) == len(self.cache)
        assert live == self.cache.live().tolist()
        assert live == list(self.cache)
        assert b"".join(self.model.records[handle] for handle in live) == self.cache.gather(live).tobytes()
        assert all(handle in self.cache for handle in live)
        assert not any(handle in self.cache for handle in self.model.stale[-50:])
        assert len(live) == sum(page.used for page in self.cache.pages)
