"""Pools in the hands of several threads, of signals, of full disks, and of strangers: no commit is lost, and nothing breaks."""

import errno
import os

import numpy as np
import pytest

import jitslab
from jitslab.pool import calls

PAIR = np.dtype([("x", "f8"), ("n", "i8")])
ROOT = np.dtype([("n", "i8")])
SYSTEM = calls.system


@pytest.fixture
def path(tmp_path):
    """Return the path of a pool that is not there yet."""
    return str(tmp_path / "pool")


@pytest.fixture
def made(path):
    """Make a pool with a root and a cache of pairs."""
    with jitslab.open_pool(path, "x", root=ROOT) as pool:
        pool.create_cache("pairs", PAIR, capacity=200_000)
        pool.commit()
        yield pool
        if not pool.closed:
            pool.close(commit=False)


@pytest.fixture(autouse=True)
def system():
    """Have the system as it is again after each test."""
    yield
    calls.system = SYSTEM


class Hooked:
    """The system, with a function of its own in the place of one call."""

    def __init__(self, name, function):
        self.name, self.function = name, function

    def __getattr__(self, name):
        return self.function if name == self.name else getattr(SYSTEM, name)


def numbered(handles):
    """Return a pair for each handle, which has its number."""
    pairs = np.zeros(len(handles), PAIR)
    pairs["n"] = np.arange(len(handles))
    return pairs


# --- Commits that failed ---


def test_a_cache_may_be_dropped_after_a_commit_that_found_no_room(path, made):
    """The pages of the dropped cache are not in the next commit."""

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    wide = made.create_cache("wide", PAIR, capacity=100_000)
    wide.alloc_many(90_000)
    handle = made["pairs"].alloc(n=5)
    calls.system = Hooked("pwrite", full)
    with pytest.raises(jitslab.PoolFullError):
        made.commit()
    calls.system = SYSTEM
    made.drop_cache("wide")
    made.commit()
    made.close()

    with jitslab.open_pool(path, "r") as pool:
        assert pool["pairs"][handle]["n"] == 5
        assert list(pool.caches) == ["pairs"]


# --- Rollback ---


@pytest.mark.parametrize("is_written_back", [False, True])
def test_a_rollback_brings_back_records_whose_memory_was_given_back(path, made, is_written_back):
    """`shrink` drops pages without a store: a rollback brings back what the last commit has in them."""
    cache = made["pairs"]
    handles = cache.alloc_many(50_000)
    cache.scatter(handles, numbered(handles))
    made.commit()
    if is_written_back:
        made.checkpoint()
    with pytest.raises(KeyError), made.transaction():
        cache.free_many(handles)
        assert cache.shrink() > 5
        cache.alloc_many(30_000, n=-1)
        raise KeyError

    assert (cache.gather(handles)["n"] == np.arange(50_000)).all()
    cache.check()
    made.root["n"] = 1
    made.commit()
    made.close()
    with jitslab.open_pool(path, "r") as pool:
        assert (pool["pairs"].gather(handles)["n"] == np.arange(50_000)).all()
        pool.check()


def test_a_rollback_after_a_commit_of_what_was_given_back(made):
    """What was given back and committed stays given back."""
    cache = made["pairs"]
    handles = cache.alloc_many(50_000, n=1)
    made.commit()
    cache.free_many(handles)
    cache.shrink()
    made.commit()
    before = made.stats()["private_bytes"]
    cache.alloc(n=2)
    made.rollback()
    assert made.stats()["private_bytes"] < before + 100_000
    assert len(cache) == 0
    cache.check()


@pytest.mark.parametrize("how", ["checkpoint", "reopen"])
def test_handles_of_a_rollback_name_no_record_after(path, how):
    """Generations that a rollback raised are kept when memory is dropped, and when the pool is closed."""
    with jitslab.open_pool(path, "x", keep=0) as pool:
        cache = pool.create_cache("pairs", PAIR, capacity=20_000)
        cache.alloc()
        pool.commit()
        gone = cache.alloc_many(100)
        pool.rollback()
        if how == "checkpoint":
            pool.checkpoint()
            pool.commit()
            pool.checkpoint()
            assert pool.stats()["private_bytes"] == 0 or pool.stats()["dirty"] == "hashes"
            assert not np.isin(gone, cache.alloc_many(10_000)).any()

    with jitslab.open_pool(path) as pool:
        assert not np.isin(gone, pool["pairs"].alloc_many(9_000)).any()
        assert not pool["pairs"].is_live(gone).any()


# --- Strangers' files ---


WIDE = np.dtype([("x", "V65000")])  # a slab has one slot: a page of generations is that of 1,024 slabs


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("place", ["file", "commit"])
def test_a_file_says_that_slots_without_memory_are_live(path, mode, place):
    """A writer refuses generations behind the last slab; a reader takes them for zeros."""
    with jitslab.open_pool(path, "x") as pool:
        cache = pool.create_cache("wide", WIDE, capacity=3000)
        cache.alloc()
        pool.commit()
        memory = cache._memory
        page = memory.view(0)[:4096].copy()
        words = page[2048:].view(np.uint32)
        first = int(words[0])
        words[memory.n_slabs :] = first
        if place == "commit":
            pool._journal.append(np.array([[0, 0, 0, page.ctypes.data, 4096]]))
        else:
            pool.checkpoint()
    if place != "commit":
        with open(f"{path}/0.words", "r+b") as file:
            file.write(page.tobytes())

    if mode == "r+":
        with pytest.raises(jitslab.CorruptPoolError):
            jitslab.open_pool(path, mode)
        return
    with jitslab.open_pool(path, mode) as pool:
        cache = pool["wide"]
        for slot in range(cache._memory.n_slabs, 512):
            handle = first >> 1 << 32 | slot
            assert handle not in cache
            with pytest.raises(jitslab.HandleError):
                cache[handle]
        assert len(cache) <= cache._memory.n_slabs
        cache.check()
