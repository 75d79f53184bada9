"""Several threads and processes: hand-over, ends of threads, fork, prange."""

import gc
import os
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from inside import Inside
from numba import njit
from program import run_python
from stress import stress
from worker import Worker

import jitslab

DTYPE = np.dtype([("a", "<i8"), ("b", "<i8")])


@njit(nogil=True)
def churn(cache, flag, n):
    """Alloc, write, verify and free until the flag is set, or n times; returns how much was wrong."""
    wrong = 0
    held = np.zeros(50, np.int64)
    for i in range(n):
        if flag[0] != 0:
            break
        place = i % 50
        if held[place] != 0:
            wrong += cache.record(held[place]).a != held[place]
            wrong += not cache.free(held[place])
        held[place] = cache.alloc()
        if held[place] != 0:
            cache.record(held[place]).a = held[place]
    for h in held:
        if h != 0:
            wrong += not cache.free(h)
    return wrong


class Churning:
    """Threads that churn while something else is tried; `wrong` counts what they found."""

    def __init__(self, cache, n=1):
        self.flag, self.wrong = np.zeros(1, np.int64), []
        churn(cache, np.ones(1, np.int64), 1)  # compiled, and the cache grown, before the threads start
        self.threads = [threading.Thread(target=self._run, args=(cache,)) for _ in range(n)]

    def _run(self, cache):
        self.wrong.append(churn(cache, self.flag, 1 << 60))

    def __enter__(self):
        """Start."""
        for thread in self.threads:
            thread.start()
        time.sleep(0.02)
        return self

    def __exit__(self, *_):
        """Stop and join."""
        self.flag[0] = 1
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()


def settle(cache, owned=0):
    """Wait until no more than so many heaps are owned: `join` returns a little before the thread is really at its end."""
    deadline = time.monotonic() + 20
    while len(Inside(cache).owned) > owned and time.monotonic() < deadline:
        time.sleep(0.001)


# --- Many threads ---


@pytest.mark.parametrize(("n_threads", "capacity", "nodes"), [(2, 100_000, None), (4, 3000, None), (7, 700, None), (5, 3000, 3)])
def test_no_record_has_two_owners(n_threads, capacity, nodes):
    """Every record holds its owner's mark until it is freed, by its owner or by another thread, which may be on another node."""
    stress(n_threads, 60_000, capacity, nodes=nodes).close()


@pytest.mark.parametrize("nodes", [1, 2])
def test_more_threads_than_heaps(nodes):
    """Threads beyond the table of heaps share one on each node, under a lock, and see no difference."""
    cache = jitslab.SlabCache("crowd", DTYPE, capacity=100_000, nodes=nodes)
    workers = [Worker() for _ in range(280)]
    handles = [worker.do(cache.alloc) for worker in workers]

    assert 256 == len(Inside(cache).owned)
    assert 280 == len(set(handles)) == len(cache)
    for worker, handle in zip(workers, reversed(handles), strict=True):
        worker.do(cache.free, handle)
    assert 0 == len(cache)
    with pytest.raises(jitslab.StaleHandleError):
        workers[-1].do(cache.free, handles[-1])
    many = workers[-1].do(cache.alloc_many, 500)
    workers[-2].do(cache.free_many, many)
    cache.check()
    for worker in workers:
        worker.end()
    assert 100_000 == cache.alloc_many(100_000).size
    cache.check()


def test_threads_beyond_the_heaps_run_kernels_at_once():
    """The shared way is safe while all of them work."""
    cache = jitslab.SlabCache("crowd", DTYPE, capacity=100_000)
    workers = [Worker() for _ in range(256)]
    for worker in workers:
        worker.do(cache.free, worker.do(cache.alloc))
    flag, wrong = np.zeros(1, np.int64), []
    threads = [threading.Thread(target=lambda: wrong.append(churn(cache, flag, 3000))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for worker in workers:
        worker.end()

    assert [0] * 6 == wrong
    assert 0 == len(cache)
    cache.check()


# --- Threads that end ---


def test_magazines_go_home_when_their_thread_ends():
    """The count is exact, and another thread gets every record up to the capacity."""
    cache = jitslab.SlabCache("home", DTYPE, capacity=500)
    for _ in range(20):
        with Worker() as worker:
            handles = worker.do(cache.alloc_many, 100)
            assert 100 == len(cache)
            worker.do(cache.free_many, handles[:60])
            for h in handles[60:].tolist():
                worker.do(cache.free, h)
            assert 0 == len(cache)
        settle(cache)
        inside = Inside(cache)
        assert 0 == sum(int(inside.heap(row)["top"]) for row in range(256) if row not in inside.owned)
    before = cache.slot_limit

    assert 500 == cache.alloc_many(500).size
    assert before == cache.slot_limit
    assert len(Inside(cache).owned) <= 1
    cache.check()


def test_heaps_of_ended_threads_are_used_again():
    """A thousand threads, one after the other, need no more heaps than there are."""
    cache = jitslab.SlabCache("turns", DTYPE, capacity=1000)
    for _ in range(1000):
        thread = threading.Thread(target=lambda: cache.free(cache.alloc()))
        thread.start()
        thread.join()
    settle(cache)

    assert [] == Inside(cache).owned
    assert 0 == len(cache)
    cache.check()


def test_thread_that_outlives_a_cache_ends_well():
    """A heap of a closed, or dropped, cache is nobody's concern at the end of its thread."""
    stays = jitslab.SlabCache("stays", DTYPE, capacity=100)
    with Worker() as worker:
        cache = jitslab.SlabCache("shut", DTYPE, capacity=100)
        worker.do(cache.alloc)
        cache.close()
        other = jitslab.SlabCache("dropped", DTYPE, capacity=100)
        worker.do(other.alloc)
        del cache, other
        gc.collect()
        h = worker.do(stays.alloc)
    settle(stays)

    assert [] == Inside(stays).owned
    assert h in stays
    stays.check()


# --- Rest ---


def for_long(function):
    """Call it again and again: a look may fall into a moment when the other thread does not run."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        function()


@pytest.mark.parametrize("method", ["check", "recover"])
def test_check_and_recover_are_refused_while_another_thread_works(method):
    """They say so and change nothing; at rest they work."""
    with jitslab.SlabCache("busy", DTYPE, capacity=1000) as cache:
        with Churning(cache) as others, pytest.raises(jitslab.BusyError) as caught:
            for_long(getattr(cache, method))
        assert [0] == others.wrong
        assert f"{method} needs cache 'busy' at rest, and other threads are using it" == str(caught.value)
        getattr(cache, method)()
        assert 0 == len(cache)
        cache.check()


def test_close_while_kernels_run():
    """Kernels that run on find a cache that is full and empty at once; nothing crashes."""
    for _ in range(20):
        cache = jitslab.SlabCache("races", DTYPE, capacity=1000)
        with Churning(cache, 2):
            cache.close()
        assert cache.closed
        with suppress(jitslab.FaultError):  # of the instant between
            cache.raise_faults()


def test_shrink_while_kernels_run():
    """Slabs are released under running kernels, and no record is lost."""
    with jitslab.SlabCache("shrinks", DTYPE, capacity=100_000) as cache:
        with Churning(cache, 2) as others:
            for _ in range(50):
                cache.free_many(cache.alloc_many(20_000))
                cache.shrink()
        assert [0, 0] == others.wrong
        assert 0 == len(cache)
        cache.check()


# --- prange ---


LAYERS = ["workqueue", "omp", "tbb"]


@pytest.mark.parametrize("layer", LAYERS)
def test_prange_under_a_threading_layer(layer):
    """Every threading layer's threads have heaps of their own."""
    program = """
import numba, numpy as np, jitslab
from numba import njit, prange

@njit(parallel=True)
def work(cache, out, n):
    wrong = np.zeros(out.size, np.int64)
    for i in prange(out.size):
        h = cache.alloc()
        cache.record(h).a = i
        mark = -np.int64(i)
        for j in range(n):
            other = cache.alloc()
            cache.record(other).a = mark
            wrong[i] += cache.record(other).a != mark
            wrong[i] += not cache.free(other)
        out[i] = h
    return wrong.sum()

@njit(parallel=True)
def free(cache, handles):
    n = 0
    for i in prange(handles.size):
        n += cache.record(handles[i]).a == i and cache.free(handles[i])
    return n

cache = jitslab.SlabCache("prange", np.dtype([("a", "i8")]), capacity=20_000)
out = np.zeros(10_000, np.int64)
for _ in range(5):
    try:
        assert work(cache, out, 50) == 0
    except ValueError as error:
        print("no such layer" if "No threading layer could be loaded" in str(error) else error)
        break
    assert len(set(out.tolist())) == 10_000 == len(cache)
    assert free(cache, out) == 10_000
    assert len(cache) == 0
else:
    cache.check()
    print(numba.threading_layer())
"""
    said = run_python(program, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="4").strip()

    assert said == layer or (layer == "tbb" and said == "no such layer")


# --- Fork ---


def in_child(function):
    """Run a function in a forked child; whether it succeeded."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:  # the child must never return into the test runner
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.001)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return False


def test_fork_leaves_both_with_a_correct_cache():
    """Parent and child see what was live; what each does then is its own."""
    cache = jitslab.SlabCache("forked", DTYPE, capacity=1000)
    handles = cache.alloc_many(300)
    cache.records["a"][cache.slots(handles)] = np.arange(300)
    with Worker() as worker:
        worker.do(cache.free_many, handles[:100])  # parked in the other thread's magazine
        live = handles[100:]

        def use():
            cache.check()
            assert set(live.tolist()) == set(cache)
            assert list(range(100, 300)) == cache.gather(live)["a"].tolist()
            new = cache.alloc_many(800)
            assert not set(new.tolist()) & set(live.tolist())
            cache.free_many(live)
            cache.check()
            assert 800 == len(cache)
            with Worker() as another:
                another.do(cache.free_many, new)
            assert 0 == len(cache)

        assert in_child(use)
        assert set(live.tolist()) == set(cache)
        assert list(range(100, 300)) == cache.gather(live)["a"].tolist()
        worker.do(cache.alloc_many, 50)
        cache.check()


def test_fork_of_a_fork():
    """Each generation of processes rebuilds for itself."""
    cache = jitslab.SlabCache("forked", DTYPE, capacity=1000)
    kept = cache.alloc_many(10)

    def use(depth):
        more = cache.alloc_many(100)
        assert set(kept.tolist()) <= set(cache)
        if depth:
            assert in_child(lambda: use(depth - 1))
        cache.free_many(more)
        cache.check()

    assert in_child(lambda: use(3))
    use(0)


def test_fork_while_other_threads_run_kernels():
    """Whatever the other threads are in the middle of, the child's cache is whole, and the parent's, too."""
    cache = jitslab.SlabCache("torn", DTYPE, capacity=3000)
    kept = cache.alloc_many(200)
    cache.records["a"][cache.slots(kept)] = np.arange(200)

    def use():
        assert list(range(200)) == cache.gather(kept)["a"].tolist()
        live = len(cache)
        assert 200 <= live <= 200 + 2 * 51 + 2  # what a thread holds, and one that it is about to hold or has let go
        new = cache.alloc_many(2500)
        assert not set(new.tolist()) & set(kept.tolist())
        cache.check()
        cache.free_many(new)
        cache.free_many(kept)
        assert live - 200 == len(cache)
        cache.clear()
        cache.check()

    with Churning(cache, 2) as others:
        good = [in_child(use) for _ in range(50)]

    assert [True] * 50 == good
    assert [0, 0] == others.wrong
    assert sorted(kept.tolist()) == sorted(cache.live().tolist())
    cache.check()


def test_multiprocessing_by_fork():
    """Workers of a pool use the cache that they inherited, each its own copy."""
    program = """
import multiprocessing, numpy as np, jitslab
cache = jitslab.SlabCache("pool", np.dtype([("a", "i8")]), capacity=1000, init="zero")
h = cache.alloc()
cache[h]["a"] = 5

def work(x):
    new = cache.alloc()
    cache[new]["a"] = x
    found = int(cache[h]["a"] + cache[new]["a"])
    cache.free(new)
    cache.check()
    return found

with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(work, range(8)))
print(len(cache))
cache.check()
"""
    assert run_python(program) == "[5, 6, 7, 8, 9, 10, 11, 12]\n1\n"
