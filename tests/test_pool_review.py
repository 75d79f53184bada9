"""Pools in the hands of several threads, of signals, of full disks, and of strangers: no commit is lost, and nothing breaks."""

import errno
import gc
import inspect
import os
import sys
import threading

import numpy as np
import pytest

import jitslab
from jitslab.pool import calls, dirty

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


def test_the_journal_gives_the_space_of_a_long_commit_back(path, made):
    """After a checkpoint it has at most 64 MiB; a reader that had read the long one follows."""
    wide = made.create_cache("wide", np.dtype([("x", "u1", 4096)]), capacity=40_000)
    reader = jitslab.open_pool(path, "r")
    handles = wide.alloc_many(20_000, x=7)
    made.commit()
    reader.refresh()
    assert made.checkpoint()
    assert os.path.getsize(f"{path}/journal") <= 64 << 20
    wide[handles[5]]["x"] = 9
    made.commit()
    reader.refresh()
    assert (reader["wide"][handles[5]]["x"] == 9).all()
    assert (reader["wide"][handles[19_999]]["x"] == 7).all()
    reader.close()
    made.close()
    with jitslab.open_pool(path) as pool:
        assert (pool["wide"][handles[5]]["x"] == 9).all()


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
        own = cache._memory
        page = own.view(0)[:4096].copy()
        words = page[2048:].view(np.uint32)
        first = int(words[0])
        words[own.n_slabs :] = first
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


# --- Several threads ---


class Halted:
    """The system, of which one thread stops before the next call of a name until it may go on."""

    def __init__(self, name):
        self.name, self.is_there, self.may_go = name, threading.Event(), threading.Event()

    def __getattr__(self, name):
        if name == self.name:
            self.is_there.set()
            assert self.may_go.wait(60)
        return getattr(SYSTEM, name)


def in_thread(function):
    """Return a thread that runs a function, and what that raised."""
    raised = []

    def run():
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


@pytest.fixture
def halted(made):
    """Return a thread that is in the middle of a commit, and the system that holds it."""
    made["pairs"].alloc(n=7)
    calls.system = Halted("pwrite")
    thread, raised = in_thread(made.commit)
    assert calls.system.is_there.wait(60)
    yield thread, raised
    calls.system.may_go.set()
    thread.join()


def test_an_exception_closes_a_pool_after_the_commit_of_another_thread(path, made, halted):
    """The commit would go on in files that were closed, and whose numbers other files have by then."""
    committer, raised = halted
    system = calls.system

    def leave():
        with made:
            raise KeyError

    leaver, left = in_thread(leave)
    leaver.join(0.2)
    assert not made.closed
    system.may_go.set()
    committer.join()
    leaver.join()

    assert raised == []
    assert [type(error) for error in left] == [KeyError]
    assert made.closed
    with jitslab.open_pool(path, "r") as pool:
        assert len(pool["pairs"]) == 1


def test_what_is_refused_while_another_thread_commits(made, halted):
    """All that looks for written pages, or takes them away."""
    for call in made.stats, made["pairs"].shrink, made.commit, made.rollback, made.checkpoint, made.check:
        with pytest.raises(jitslab.BusyError, match="another thread is in a call of pool"):
            call()


def test_a_block_that_ends_by_an_exception_after_close(path, made):
    """Nothing more happens."""
    with pytest.raises(KeyError), made:
        made.close()
        raise KeyError
    with jitslab.open_pool(path, "r+"):
        pass


# --- Ctrl-C ---


class Interrupted:
    """Raise KeyboardInterrupt at the n-th place where a signal can: where a function of a pool begins, or a call in one ends."""

    def __init__(self, n):
        self.left = n

    def __enter__(self):
        gc.disable()  # it says nothing of an exception in `__del__`
        sys.setprofile(self.profile)

    def __exit__(self, *_):
        sys.setprofile(None)
        gc.enable()

    def profile(self, frame, event, _):
        """Count the places."""
        if event == "call" and frame.f_code.co_flags & inspect.CO_GENERATOR:  # that would end it past its own handlers
            return
        if event in ("call", "c_return") and frame.f_globals["__name__"].startswith("jitslab.pool."):
            self.left -= 1
            if self.left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt


def state_of(pool):
    """Return what a pool holds: the root, and the numbers of the pairs."""
    pairs = pool["pairs"]
    return int(pool.root["n"]), sorted(pairs.gather(pairs.live())["n"].tolist())


@pytest.mark.parametrize("what", ["commit", "transaction", "broken transaction", "rollback", "checkpoint"])
def test_an_interrupt_anywhere_in_a_call(tmp_path, what):
    """The pool goes on, or says that it failed; reopened it is as a commit was; a rollback is for good."""
    pool = jitslab.open_pool(tmp_path / "pool", root=ROOT)
    pool.create_cache("pairs", PAIR, capacity=10_000)
    pool.commit()
    states, n, is_over = [state_of(pool)], 0, False
    while not is_over:
        n += 1
        pool.root["n"] += 1
        if what != "transaction":
            pool["pairs"].alloc(n=n)
        states.append(state_of(pool))  # of the commit at the start of a transaction
        try:
            with Interrupted(n):
                if "transaction" in what:
                    with pool.transaction():
                        pool["pairs"].alloc(n=n)
                        if "broken" in what:
                            raise KeyError
                else:
                    getattr(pool, what)()
            is_over = True
        except KeyboardInterrupt:
            pass
        except KeyError:
            is_over = True
        try:
            states.append(state_of(pool))
            pool.rollback()
            states = [state_of(pool)]
        except jitslab.PoolFailedError:
            pass
        pool.close(commit=False)
        pool = jitslab.open_pool(tmp_path / "pool", "r+")
        assert state_of(pool) in states, n
        states = [state_of(pool)]
        pool["pairs"].check()
    pool.close()
    assert n > 10


def busy(cache, what):
    """Say that other threads use a cache."""
    raise jitslab.BusyError(what)


def test_a_transaction_that_cannot_be_undone_is_not_committed(made, monkeypatch):
    """`rollback` comes first."""
    pairs = made["pairs"]
    with monkeypatch.context() as patch, pytest.raises(jitslab.BusyError), made.transaction():
        pairs.alloc(n=5)
        patch.setattr(type(pairs), "_need_rest", busy)
        raise KeyError
    for call in made.commit, made.close, made.transaction().__enter__:
        with pytest.raises(jitslab.TransactionError, match="call rollback first"):
            call()
    made.rollback()
    made.commit()
    assert len(pairs) == 0


# --- A pool that is being made, and odd arguments ---


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_reader_comes_before_the_first_commit_of_a_root(path, is_cut):
    """It is told that the pool is not made yet, not that it is damaged; a writer finishes it."""
    said = []

    def rename(*arguments, **options):
        SYSTEM.rename(*arguments, **options)
        with pytest.raises(jitslab.PoolPathError, match="not made yet") as refused:
            jitslab.open_pool(path, "r")
        said.append(refused)
        if is_cut:
            raise KeyboardInterrupt

    calls.system = Hooked("rename", rename)
    if is_cut:
        with pytest.raises(KeyboardInterrupt):
            jitslab.open_pool(path, root=ROOT)
    else:
        jitslab.open_pool(path, root=ROOT).close()
    calls.system = SYSTEM
    assert len(said) == 1
    with jitslab.open_pool(path) as pool:
        assert pool.root["n"] == 0
    with jitslab.open_pool(path, "r") as pool:
        assert pool.root["n"] == 0


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("x" * 300, {}, jitslab.PoolPathError),
        ("a\0b", {}, jitslab.PoolPathError),
        ("pool", {"capacity": 5}, jitslab.CapacityError),
    ],
)
def test_odd_arguments(tmp_path, name, options, error):
    """Each has an error of its own."""
    with pytest.raises(error):
        jitslab.open_pool(f"{tmp_path}/{name}", **options)


def test_generations_at_their_end(made):
    """A rollback retires the slots whose generations a transaction used up."""
    cache = made["pairs"]
    slot = cache.alloc() & 0xFFFF_FFFF
    for last in 0x7FFF_FFFF, 0xFFFF_FFFF:
        cache._memory.generations[slot] = last - 1
        cache.recover()
        made.commit()
        handles = cache.alloc_many(5_000)
        made.rollback()
        cache.check()
        assert not cache.is_live(handles).any()
        assert len(cache) == 0
        made.commit()


def test_blocks_as_whole_pages_of_a_machine_that_has_larger_ones(monkeypatch):
    """A rollback forgets whole pages, without those that have a block which is not as the last commit."""
    monkeypatch.setattr(dirty, "mapped_page_bytes", 16_384)
    page = 16_384
    runs = np.array([[10 * page + 4096, 4096], [11 * page - 4096, 8192], [20 * page, 2 * page]])
    assert dirty.whole_pages(runs, runs[:0]).tolist() == [[10 * page, 2 * page], [20 * page, 2 * page]]
    assert dirty.whole_pages(runs, np.array([[21 * page, 4096]])).tolist() == [[10 * page, 2 * page], [20 * page, page]]


def test_addresses_of_a_closed_pool_do_not_wait_for_the_garbage_collector(path):
    """Nor do those of a pool that could not be opened."""
    with jitslab.open_pool(path) as pool:
        pool.create_cache("wide", np.dtype([("x", "V1024")]), capacity=(1 << 32) - (1 << 20))
    gc.collect()
    gc.disable()
    try:
        for _ in range(60):
            jitslab.open_pool(path).close()
            with pytest.raises(jitslab.ConflictError):
                jitslab.open_pool(path, root=ROOT)
    finally:
        gc.enable()


def test_a_checkpoint_before_what_was_freed_is_committed(path, made):
    """The file still has live records in all slabs that `shrink` gave back: no hole is punched."""
    cache = made["pairs"]
    handles = cache.alloc_many(50_000, n=1)
    made.commit()
    cache.free_many(handles)
    cache.shrink()
    assert made.checkpoint()
    with jitslab.open_pool(path, "r") as pool:
        assert (pool["pairs"].gather(handles)["n"] == 1).all()
    made.rollback()
    assert (cache.gather(handles)["n"] == 1).all()
    made.check()
