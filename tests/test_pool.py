"""Pools: what a commit keeps, what a rollback undoes, what a reader sees, and what is refused."""

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import numpy as np
import pytest

import jitslab
from jitslab import errors
from jitslab.machine.flush import CAN_FLUSH
from jitslab.pool import journal

NODE = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
ROOT = np.dtype([("head", jitslab.link("nodes")), ("n", "i8")])


@numba.njit
def push_many(cache, root, n):
    """Put n nodes in front of the list of the root."""
    for i in range(n):
        handle = cache.alloc(value=i, next=root["head"])
        if handle == 0:
            return False
        root["head"] = handle
        root["n"] += 1
    return True


@numba.njit
def total(cache, head):
    """Return the sum of a list."""
    sum_ = 0.0
    while head:
        sum_ += cache[head].value
        head = cache[head].next
    return sum_


@pytest.fixture
def path(tmp_path):
    """Return the path of a pool that is not there yet."""
    return str(tmp_path / "pool")


@pytest.fixture
def made(path):
    """Make a pool with a root and a cache of nodes."""
    with jitslab.open_pool(path, "x", root=ROOT) as pool:
        pool.create_cache("nodes", NODE, capacity=100_000)
        yield pool


class TestCommit:
    """What is committed is there when the pool is opened again."""

    def test_records_handles_and_links_are_there_again(self, path, made):
        """Records handles and links are there again."""
        push_many(made["nodes"], made.root, 5000)
        assert made.commit() == 2
        expected = made["nodes"].live()
        made.close()

        with jitslab.open_pool(path, "r+") as pool:
            assert pool.number == 2
            assert pool["nodes"].live().tolist() == expected.tolist()
            assert total(pool["nodes"], pool.root["head"]) == sum(range(5000))
            pool["nodes"].check()

    def test_nothing_written_makes_no_commit(self, made):
        """Nothing written makes no commit."""
        before = made.commit()

        assert made.commit() == before

    def test_what_is_not_committed_is_gone(self, path, made):
        """What is not committed is gone."""
        push_many(made["nodes"], made.root, 10)
        made.commit()
        push_many(made["nodes"], made.root, 7)
        made.close(commit=False)

        with jitslab.open_pool(path, "r") as pool:
            assert len(pool["nodes"]) == pool.root["n"] == 10

    def test_stale_handles_stay_stale_after_reopening(self, path, made):
        """Stale handles stay stale after reopening."""
        handle = made["nodes"].alloc()
        made["nodes"].free(handle)
        made.close()

        with jitslab.open_pool(path) as pool:
            with pytest.raises(jitslab.StaleHandleError):
                pool["nodes"].free(handle)
            assert handle not in pool["nodes"].alloc_many(1000)

    def test_a_cache_refills_what_was_freed(self, path, made):
        """A cache refills what was freed."""
        cache = made["nodes"]
        handles = cache.alloc_many(100_000)
        made.commit()
        cache.free_many(handles[::2])
        made.close()

        with jitslab.open_pool(path) as pool:
            cache = pool["nodes"]
            assert len(cache) == 50_000
            assert not np.isin(cache.alloc_many(50_000), handles).any()
            with pytest.raises(jitslab.CacheFullError):
                cache.alloc()
            cache.check()

    @pytest.mark.parametrize("n_commits", [1, 30])
    def test_checkpoints_change_nothing(self, path, made, n_commits):
        """Checkpoints change nothing."""
        for _ in range(n_commits):
            push_many(made["nodes"], made.root, 500)
            made.commit()
            assert made.checkpoint()
        assert made.stats()["journal_bytes"] == 4096
        made.close()

        with jitslab.open_pool(path, "r") as pool:
            assert total(pool["nodes"], pool.root["head"]) == n_commits * sum(range(500))
            pool["nodes"].check()


class TestCheckpoint:
    """What a checkpoint leaves in memory."""

    @pytest.mark.parametrize("wish", ["force", "off"])
    def test_no_written_pages_stay_in_memory_if_the_files_are_memory(self, path, monkeypatch, wish):
        """On persistent memory no written pages stay, unless the caller says how many."""
        monkeypatch.setenv("JITSLAB_PMEM", wish)
        for keep in None, 1 << 30:
            with jitslab.open_pool(f"{path}{keep}", "x", root=ROOT, keep=keep) as pool:
                assert (pool.stats()["journal"] == "mapped") == (wish == "force" and CAN_FLUSH)
                nodes = pool.create_cache("nodes", NODE, capacity=100_000)
                push_many(nodes, pool.root, 5000)
                pool.commit()
                before = pool.stats()["private_bytes"]
                assert pool.checkpoint()
                if pool.stats()["journal"] == "mapped" and keep is None and pool.stats()["dirty"] != "hashes":
                    assert pool.stats()["private_bytes"] == 0
                else:
                    assert pool.stats()["private_bytes"] >= before
                assert total(nodes, pool.root["head"]) == sum(range(5000))

    def test_persistent_memory_is_known_however_commits_are_written(self, path, monkeypatch):
        """Also by readers, and if commits are not synced: the search for written pages must know it."""
        monkeypatch.setattr(journal, "is_on_dax", lambda file: True)
        with jitslab.open_pool(path, "x", root=ROOT, sync=False) as pool, jitslab.open_pool(path, "r") as reader:
            assert (pool.stats()["journal"], pool._keep) == ("file", 0)
            assert (pool._written.is_dax, reader._written.is_dax) == (True, True)


class TestRollback:
    """What is rolled back was never there."""

    def test_an_exception_undoes_a_block(self, made):
        """An exception undoes a block."""
        cache = made["nodes"]
        push_many(cache, made.root, 1000)
        made.commit()
        kept = cache.live()

        with pytest.raises(ZeroDivisionError), made.transaction():
            cache.free_many(kept[:500])
            push_many(cache, made.root, 3000)
            cache[int(kept[700])]["value"] = -1.0
            raise ZeroDivisionError

        assert cache.live().tolist() == kept.tolist()
        assert total(cache, made.root["head"]) == sum(range(1000))
        cache.check()

    def test_handles_of_a_rollback_name_no_record_later(self, made):
        """Handles of a rollback name no record later."""
        cache = made["nodes"]
        gone = cache.alloc_many(2000)
        made.rollback()

        assert not cache.is_live(gone).any()
        assert not np.isin(gone, cache.alloc_many(4000)).any()
        assert not cache.is_live(gone).any()
        cache.check()

    def test_a_handle_of_a_slot_that_was_live_before_may_name_a_later_record(self, made):
        """The limit that the documentation of `rollback` states."""
        cache = made["nodes"]
        old = cache.alloc()
        made.commit()
        cache.free(old)
        new = cache.alloc()
        assert new & 0xFFFFFFFF == old & 0xFFFFFFFF
        made.rollback()

        assert old in cache
        assert new not in cache
        cache.free(old)
        assert cache.alloc() == new

    def test_changes_before_a_transaction_are_committed(self, made):
        """Changes before a transaction are committed."""
        made.root["n"] = 5
        with pytest.raises(KeyError), made.transaction():
            made.root["n"] = 6
            raise KeyError

        assert made.root["n"] == 5

    def test_transactions_are_not_nested(self, made):
        """Transactions are not nested."""
        refused = pytest.raises(jitslab.TransactionError, match="within a transaction")
        with made.transaction(), refused, made.transaction():
            pass

    @pytest.mark.parametrize("what", ["commit", "rollback", "checkpoint", "close"])
    def test_calls_that_no_transaction_contains(self, made, what):
        """Calls that no transaction contains."""
        with made.transaction(), pytest.raises(jitslab.TransactionError, match=f"{what} within a transaction"):
            getattr(made, what)()

    def test_rollback_after_rollback_and_commit(self, path, made):
        """Rollback after rollback and commit."""
        cache = made["nodes"]
        for n in range(1, 6):
            push_many(cache, made.root, 100)
            made.rollback()
            push_many(cache, made.root, 10)
            made.commit()
            assert len(cache) == 10 * n
        made.close()

        with jitslab.open_pool(path, "r") as pool:
            assert len(pool["nodes"]) == 50


class TestReader:
    """A reader sees one commit, until it refreshes."""

    def test_a_snapshot_is_stable_until_refresh(self, path, made):
        """A snapshot is stable until refresh."""
        push_many(made["nodes"], made.root, 10)
        made.commit()
        reader = jitslab.open_pool(path, "r")
        push_many(made["nodes"], made.root, 5000)
        made.commit()

        assert reader.root["n"] == len(reader["nodes"]) == 10
        assert reader.refresh() == made.number
        assert reader.root["n"] == len(reader["nodes"]) == 5010
        assert total(reader["nodes"], reader.root["head"]) == total(made["nodes"], made.root["head"])
        reader["nodes"].check()
        reader.close()

    def test_a_reader_behind_puts_a_checkpoint_off(self, path, made):
        """A reader behind puts a checkpoint off."""
        made.root["n"] = 1
        made.commit()
        with jitslab.open_pool(path, "r") as reader:
            made.root["n"] = 2
            made.commit()
            assert not made.checkpoint()
            assert made.stats()["postponed"] == 1
            reader.refresh()
            assert made.checkpoint()
            assert reader.root["n"] == 2

    def test_a_reader_follows_checkpoints(self, path, made):
        """A reader follows checkpoints."""
        cache = made["nodes"]
        with jitslab.open_pool(path, "r") as reader:
            for k in range(1, 20):
                push_many(cache, made.root, 300)
                made.commit()
                reader.refresh()
                assert made.checkpoint() == (k % 3 != 7)
                assert reader.root["n"] == len(reader["nodes"]) == 300 * k
                assert total(reader["nodes"], reader.root["head"]) == k * sum(range(300))
            reader["nodes"].check()

    def test_a_reader_follows_caches_that_are_made_and_dropped(self, path, made):
        """A reader follows caches that are made and dropped."""
        with jitslab.open_pool(path, "r") as reader:
            other = made.create_cache("other", NODE, capacity=10)
            handle = other.alloc(value=3.0)
            made.commit()
            reader.refresh()
            seen = reader["other"]
            assert seen[handle]["value"] == 3.0
            made.drop_cache("other")
            reader.refresh()
            assert "other" not in reader
            with pytest.raises(jitslab.ClosedError):
                len(seen)

    @pytest.mark.parametrize("name", ["alloc", "new", "allocate", "clear", "shrink", "flush", "recover"])
    def test_python_changes_nothing(self, path, made, name):
        """Python changes nothing."""
        made.commit()
        with jitslab.open_pool(path, "r") as reader, pytest.raises(jitslab.ReadOnlyError, match="opened to read"):
            getattr(reader["nodes"], name)()

    def test_python_writes_nothing(self, path, made):
        """Python writes nothing."""
        handle = made["nodes"].alloc(value=1.0)
        made.commit()
        with jitslab.open_pool(path, "r") as reader:
            cache = reader["nodes"]
            for change in (
                lambda: cache.free(handle),
                lambda: cache.free_many([handle]),
                lambda: cache.adopt(handle),
                lambda: cache.alloc_many(2),
                lambda: cache.allocate_many(2),
                lambda: cache.extend([(1.0, 0)]),
                lambda: cache.__setitem__(handle, (2.0, 0)),
                reader.commit,
                reader.rollback,
                reader.checkpoint,
                lambda: reader.create_cache("b", NODE, capacity=1),
                lambda: reader.drop_cache("nodes"),
                lambda: reader.transaction().__enter__(),
            ):
                with pytest.raises(jitslab.ReadOnlyError):
                    change()
            with pytest.raises(ValueError, match="read-only"):
                cache[handle]["value"] = 2.0
            with pytest.raises(ValueError, match="read-only"):
                cache.records["value"] = 2.0
            with pytest.raises(ValueError, match="read-only"):
                reader.root["n"] = 2
            assert cache[handle]["value"] == 1.0

    def test_compiled_code_that_allocates_or_frees_is_a_fault(self, path, made):
        """Compiled code that allocates or frees is a fault."""
        handle = made["nodes"].alloc(value=1.0)
        made.commit()

        @numba.njit
        def change(cache, handle):
            """Change a cache that is read only."""
            return cache.alloc(), cache.free(handle), len(cache.alloc_many(3)), cache.free_many(np.array([handle])), len(cache)

        with jitslab.open_pool(path, "r") as reader:
            cache = reader["nodes"]
            assert numba.typeof(cache) == numba.typeof(made["nodes"])
            assert change(cache, handle) == (0, False, 0, 0, 1)
            with pytest.raises(jitslab.FaultError, match="opened to read"):
                cache.raise_faults()
            assert handle in cache

    def test_loops_in_compiled_code_see_all_records(self, path, made):
        """Loops in compiled code see all records."""
        push_many(made["nodes"], made.root, 3000)
        made.commit()

        @numba.njit
        def walk(cache):
            """Sum all records in a loop over the cache."""
            sum_, n = 0.0, 0
            for handle, record in cache.items():
                sum_ += record.value
                n += 1
            return sum_, n

        with jitslab.open_pool(path, "r") as reader:
            assert walk(reader["nodes"]) == (sum(range(3000)), 3000)
            push_many(made["nodes"], made.root, 3000)
            made.commit()
            reader.refresh()
            assert walk(reader["nodes"]) == (2 * sum(range(3000)), 6000)

    def test_python_finds_all_records_first_thing(self, path, made):
        """Python finds all records first thing."""
        push_many(made["nodes"], made.root, 3000)
        made.commit()
        expected = made["nodes"].live().tolist()
        for ask in (
            lambda cache: cache.live(),
            lambda cache: [h for h, _ in cache.items()],
            lambda cache: list(cache),
            lambda cache: np.array(expected)[cache.is_live(expected)],
        ):
            with jitslab.open_pool(path, "r") as reader:
                assert [int(h) for h in ask(reader["nodes"])] == expected


class TestPath:
    """What is no pool is refused, and stays as it is."""

    def test_no_pool(self, path):
        """A pool that is to be there and is not is refused."""
        for mode in ("r", "r+"):
            with pytest.raises(jitslab.PoolPathError, match="there is no pool"):
                jitslab.open_pool(path, mode)
        assert not os.path.exists(path)

    def test_one_already(self, path, made):
        """A pool that is to be new and is not is refused."""
        made.close()
        with pytest.raises(jitslab.PoolPathError, match="there is a pool already"):
            jitslab.open_pool(path, "x")

    def test_a_file(self, path):
        """A file is no pool, and stays."""
        Path(path).write_text("mine")
        for mode in ("r", "r+", "c", "x"):
            with pytest.raises(jitslab.PoolPathError):
                jitslab.open_pool(path, mode)
        assert Path(path).read_text() == "mine"

    def test_a_symbolic_link(self, path, made, tmp_path):
        """A link to a pool is refused."""
        made.close()
        os.symlink(path, tmp_path / "link")
        for mode in ("r", "r+", "c", "x"):
            with pytest.raises(jitslab.PoolPathError):
                jitslab.open_pool(tmp_path / "link", mode)

    def test_a_directory_of_something_else(self, tmp_path):
        """A directory of something else."""
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(jitslab.PoolPathError, match=r"thesis\.tex"):
            jitslab.open_pool(tmp_path)
        assert os.listdir(tmp_path) == ["thesis.tex"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_another_users(self, path, made):
        """Another user's pool is refused."""
        made.close()
        os.chown(path, 1234, -1)
        with pytest.raises(jitslab.PoolPathError, match="belongs to user 1234"):
            jitslab.open_pool(path)

    def test_modes_of_files(self, path, made):
        """Only the owner can read a pool."""
        assert os.stat(path).st_mode & 0o777 == 0o700
        assert {os.stat(os.path.join(path, name)).st_mode & 0o777 for name in os.listdir(path)} == {0o600}

    @pytest.mark.parametrize("cut", ["before meta", "empty"])
    def test_making_that_was_cut_short_begins_again(self, path, made, cut):
        """Making that was cut short begins again."""
        made.close()
        for name in os.listdir(path):
            if cut == "empty" or name in ("pool.json", "0.words"):
                os.unlink(os.path.join(path, name))
        if cut == "before meta":
            for name in ("1.words", "1.records", "1.sums"):
                os.unlink(os.path.join(path, name))
            with open(os.path.join(path, "journal"), "r+b") as file:  # it had no commits yet
                file.truncate(4096)
        with jitslab.open_pool(path) as pool:
            assert pool.number == 0
            assert list(pool.caches) == []


class TestArguments:
    """Each bad argument has an error of its own class."""

    @pytest.mark.parametrize("name", ["", " a", "a#b", "a\n", "x" * 10_000, 7, None])
    def test_names(self, made, name):
        """A name is 1 to 255 printable characters."""
        with pytest.raises(jitslab.CapacityError):
            made.create_cache(name, NODE, capacity=10)
        assert list(made.caches) == ["nodes"]

    def test_a_name_that_exists_or_is_missing(self, made):
        """A name that exists or is missing."""
        with pytest.raises(jitslab.DuplicateNameError, match="'nodes'"):
            made.create_cache("nodes", NODE, capacity=10)
        with pytest.raises(jitslab.UnknownNameError, match="there is 'nodes'"):
            made["node"]
        with pytest.raises(jitslab.UnknownNameError):
            made.drop_cache("node")

    def test_dtypes(self, made):
        """A dtype must have a form in a file, and be that of the cache."""
        with pytest.raises(jitslab.LayoutError, match="Python objects"):
            made.create_cache("a", np.dtype([("x", "O")]), capacity=10)
        with pytest.raises(jitslab.ConflictError, match="not of"):
            made.require_cache("nodes", np.dtype([("x", "f8")]), capacity=10)
        with pytest.raises(jitslab.ConflictError):  # it differs in a link alone
            made.require_cache("nodes", np.dtype([("value", "f8"), ("next", "i8")]), capacity=10)
        assert made.require_cache("nodes", NODE, capacity=10) is made["nodes"]

    @pytest.mark.parametrize("capacity", [0, -1, 1 << 33, 1.5, "many"])
    def test_capacities(self, made, capacity):
        """A capacity is 1 to 2**32."""
        with pytest.raises(jitslab.CapacityError):
            made.create_cache("a", NODE, capacity=capacity)

    def test_a_capacity_that_files_cannot_have(self, made):
        """A capacity that files cannot have."""
        big = np.dtype([("x", "V1000000")])
        with pytest.raises(jitslab.SlabError):
            made.create_cache("a", big, capacity=1 << 32)
        assert "a" not in made

    def test_capacity_is_raised_and_not_lowered(self, path, made):
        """Capacity is raised and not lowered."""
        handles = made["nodes"].alloc_many(100_000)
        made.close()
        with pytest.raises(jitslab.CapacityError, match="cannot be lowered"):
            jitslab.open_pool(path, capacity={"nodes": 10})
        with pytest.raises(jitslab.CapacityError, match="no cache 'other'"):
            jitslab.open_pool(path, capacity={"other": 10})
        with jitslab.open_pool(path, capacity={"nodes": 9_000_000}) as pool:
            cache = pool["nodes"]
            assert cache.capacity == 9_000_000
            assert cache.is_live(handles).all()
            cache.alloc_many(5_000_000)
            cache.check()
        with jitslab.open_pool(path, "r") as pool:
            assert len(pool["nodes"]) == 5_100_000

    def test_root(self, path, made, tmp_path):
        """The root has the dtype that it was made with."""
        made.close()
        with pytest.raises(jitslab.ConflictError, match="not of"):
            jitslab.open_pool(path, root=NODE)
        with jitslab.open_pool(tmp_path / "b") as pool, pytest.raises(jitslab.PoolError, match="without a root"):
            pool.root
        with pytest.raises(jitslab.ConflictError, match="without a root"):
            jitslab.open_pool(tmp_path / "b", root=NODE)

    @pytest.mark.parametrize("option", [{"mode": "w"}, {"mode": None}, {"sync": 1}, {"keep": -1}, {"keep": "1G"}])
    def test_options(self, path, option):
        """A mode or an option that is none is refused, and nothing is made."""
        with pytest.raises(jitslab.CapacityError):
            jitslab.open_pool(path, **option)
        assert not os.path.exists(path)

    def test_a_cache_closes_with_its_pool(self, made):
        """A cache closes with its pool."""
        cache = made["nodes"]
        with pytest.raises(jitslab.PoolError, match="closes with its pool"):
            cache.close()
        handle = cache.alloc()
        jitslab.SlabCache("nodes", NODE, capacity=10, replace=True).close()
        assert handle in cache
        made.close()
        with pytest.raises(jitslab.ClosedError):
            cache.alloc()
        made.close()
        with pytest.raises(jitslab.ClosedError):
            made.commit()

    def test_a_guard_of_a_dropped_cache_is_refused(self, path, made):
        """A guard of a dropped cache is refused."""
        guard = made["nodes"].allocate(value=1.0)
        made.drop_cache("nodes")
        with pytest.raises(jitslab.ClosedError):
            guard.value
        made.close()
        assert not [name for name in os.listdir(path) if name.startswith("1.")]

    def test_caches_are_not_made_by_hand(self):
        """Caches are not made by hand."""
        from jitslab.pool.cache import PoolCache

        with pytest.raises(jitslab.PoolError, match="create_cache"):
            PoolCache("a", NODE)
        with pytest.raises(jitslab.PoolError, match="open_pool"):
            jitslab.Pool()


class TestProcesses:
    """One writer, any number of readers, and children."""

    def test_the_name_of_the_writer_takes_no_more_room_each_time(self, path):
        """The name of the writer takes no more room each time."""
        sizes = set()
        for _ in range(3):
            jitslab.open_pool(path).close()
            sizes.add(os.path.getsize(f"{path}/writer.lock"))

        assert 1 == len(sizes)

    def test_a_second_writer_is_told_of_the_first(self, path, made):
        """A second writer is told of the first."""
        with pytest.raises(jitslab.PoolBusyError, match="this process"):
            jitslab.open_pool(path)
        code = f"import jitslab\ntry: jitslab.open_pool({path!r})\nexcept jitslab.PoolBusyError as e: print(e)"
        text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert f"process {os.getpid()} on " in text
        made.close()
        jitslab.open_pool(path).close()

    def test_a_child_of_fork_has_no_pool(self, path, made):
        """A child of fork has no pool."""
        cache = made["nodes"]
        handle = cache.alloc(value=4.0)
        made.commit()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with pytest.raises(jitslab.ClosedError, match="child of fork"):
                    made.commit()
                with pytest.raises(jitslab.ClosedError):
                    cache.alloc()
                with jitslab.open_pool(path, "r") as reader:
                    assert reader["nodes"][handle]["value"] == 4.0
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert cache[handle]["value"] == 4.0
        cache.free(handle)
        made.commit()

    def test_a_pickled_cache_is_a_readers(self, path, made):
        """A pickled cache is a reader's."""
        push_many(made["nodes"], made.root, 100)
        made.commit()
        with multiprocessing.get_context("spawn").Pool(2) as workers:
            answers = workers.starmap(total, [(made["nodes"], int(made.root["head"]))] * 4)
        assert answers == [sum(range(100))] * 4


def test_errors_are_pickled():
    """Errors are pickled."""
    import pickle

    for cls in (errors.PoolError, errors.PoolPathError, errors.CorruptPoolError, errors.PoolFullError, errors.ReadOnlyError):
        assert str(pickle.loads(pickle.dumps(cls("text")))) == "text"


def test_a_pool_without_its_meta_data_is_not_made_anew(tmp_path):
    """A pool without its meta data is not made anew."""
    with jitslab.open_pool(tmp_path / "p", root=ROOT) as pool:
        pool.root["n"] = 3
    os.unlink(tmp_path / "p" / "pool.json")
    with pytest.raises(jitslab.CorruptPoolError, match="journal has commits"):
        jitslab.open_pool(tmp_path / "p")


def test_shrink_gives_space_of_the_file_back(path, made):
    """Shrink gives space of the file back."""
    cache = made.create_cache("wide", np.dtype([("x", "f8", 64)]), capacity=100_000)
    handles = cache.alloc_many(50_000, x=1.0)
    made.commit()
    made.checkpoint()
    file = os.path.join(path, "2.records")
    before = os.stat(file).st_blocks
    cache.free_many(handles[1000:])
    cache.shrink()
    made.commit()
    assert made.checkpoint()
    assert os.stat(file).st_blocks < before / 10
    assert (cache[handles[:1000], "x"] == 1.0).all()
    again = cache.alloc_many(49_000, x=2.0)
    made.close()

    with jitslab.open_pool(path) as pool:
        cache = pool["wide"]
        assert (cache[handles[:1000], "x"] == 1.0).all()
        assert (cache[again, "x"] == 2.0).all()
        assert not cache.is_live(handles[1000:]).any()
        cache.check()


def test_links_of_a_pool(path, made):
    """Links are followed from the root; what they do not reach is found and freed."""
    nodes = made["nodes"]
    push_many(nodes, made.root, 100)
    lost = nodes.alloc_many(5, next=jitslab.NULL)
    nodes[lost[0]]["next"] = lost[1]
    assert made.unreachable()["nodes"].tolist() == sorted(lost.tolist())
    assert made.unreachable(lost[:1])["nodes"].tolist() == sorted(lost[2:].tolist())
    assert made.unreachable({"nodes": lost})["nodes"].tolist() == []
    gone = nodes.alloc()
    nodes[lost[2]]["next"] = gone
    nodes.free(gone)
    assert nodes.dangling()["handle"].tolist() == [lost[2]]
    made.commit()

    with jitslab.open_pool(path, "r") as reader:
        assert reader.unreachable()["nodes"].tolist() == sorted(lost.tolist())
        assert reader["nodes"].dangling()["value"].tolist() == [gone]
        with pytest.raises(jitslab.ReadOnlyError):
            reader.collect()
    assert made.collect() == {"nodes": 5}
    assert len(nodes) == 100
    made.rollback()
    assert len(nodes) == 105


def test_a_pool_that_is_dropped_gives_its_lock_back_and_says_so(path, made):
    """A pool that is dropped gives its lock back and says so."""
    made.close()
    pool = jitslab.open_pool(path)
    number, files = pool.number, len(os.listdir("/proc/self/fd"))
    pool["nodes"].alloc()
    with pytest.warns(ResourceWarning, match=f"never closed: pool .* since commit {number} is dropped"):
        del pool
        gc.collect()
    assert len(os.listdir("/proc/self/fd")) < files
    with jitslab.open_pool(path) as again:
        assert len(again["nodes"]) == 0


def test_the_end_of_a_transaction_waits_for_a_call_of_another_thread(made):
    """The end of a transaction waits for a call of another thread."""

    class SlowError(ValueError):
        pass

    with pytest.raises(SlowError), made.transaction():
        made["nodes"].alloc()
        made._lock.acquire()
        threading.Timer(0.2, made._lock.release).start()
        raise SlowError
    assert len(made["nodes"]) == 0
    made.commit()


def test_a_reader_that_was_checked_finds_later_records(path, made):
    """The index that a check builds is not used after a refresh."""
    cache = made["nodes"]
    handles = cache.alloc_many(50_000)
    cache.free_many(handles)
    made.commit()
    with jitslab.open_pool(path, "r") as reader:
        seen = reader["nodes"]
        seen.check()
        assert len(seen) == seen.live().size == 0
        again = np.sort(cache.alloc_many(40_000))
        made.commit()
        reader.refresh()
        assert np.sort(seen.live()).tolist() == again.tolist()
        assert seen.is_live(again).all()
        seen.check()
        assert sorted(seen) == again.tolist()
