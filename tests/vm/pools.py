"""
Pools on persistent memory, mapped directly (DAX), beside the same NVDIMM with pages in memory, and a file system in memory.

`python tests/vm/run.py` runs this file in its machine.  Each pool is compared with a model that knows every record.  What must
not happen is a read that hangs: a watch ends the process then.  Run as a program, outside, it compiles what it calls.
"""

import faulthandler
import gc
import itertools
import os
import shutil
import subprocess
import tempfile

import numpy as np
import pytest
from numba import njit

import jitslab

DEVICE, MOUNT, IN_MEMORY = "/dev/pmem0", "/mnt/pmem", "/dev/shm"
PLACES = "DAX", "not DAX", "tmpfs"
SECONDS = 400  # until a test counts as hung
MB = 1 << 20
ROOT = np.dtype([("n", "i8")])
SMALL = np.dtype([("key", "i8"), ("rest", "i8", 2)])
LARGE = np.dtype([("key", "i8"), ("rest", "i8", 511)])  # a page each
N_LARGE = 3000  # 12 MB: huge pages of the file, where the file system has them


@pytest.fixture(autouse=True)
def no_hang():
    """End the process, with a trace, if a test hangs: in a kernel that faults for ever nothing else can."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module", params=PLACES)
def place(request):
    """A file system of each kind; the NVDIMM is mounted anew for it."""
    dax = {"DAX": "always", "not DAX": "never"}.get(request.param)
    if dax:
        mount_again(dax)
    yield request.param
    if dax == "never":
        mount_again("always")


def mount_again(dax):
    """Mount the file system of the NVDIMM so that it maps it directly, or never does."""
    gc.collect()  # generations of closed caches stay mapped, for handles that come late
    subprocess.run(["umount", MOUNT], check=True)
    subprocess.run(["mount", "-t", "ext4", "-o", f"dax={dax}", DEVICE, MOUNT], check=True)


@pytest.fixture
def folder(place):
    """Return a new folder there."""
    path = tempfile.mkdtemp(prefix="pools-", dir=IN_MEMORY if place == "tmpfs" else MOUNT)
    yield path
    shutil.rmtree(path)


@njit(cache=True)
def add_up(cache, handles):
    """Return the sum of the keys of records."""
    total = 0
    for h in handles:
        total += cache[h].key
    return total


class Twin:
    """A pool, and a model of it: for each cache a dict of what its records hold."""

    def __init__(self, path, **options):
        self.path, self.options, self.keys = path, options, itertools.count(1)
        self.pool = jitslab.open_pool(path, "x", root=ROOT, **options)
        self.small = self.pool.create_cache("small", SMALL, capacity=100_000)
        self.large = self.pool.create_cache("large", LARGE, capacity=10_000)
        self.now = {"small": {}, "large": {}}
        self.commit()

    def add(self, name, n):
        """Make records; returns their handles."""
        cache = self.pool[name]
        handles = cache.alloc_many(n)
        self.write(name, handles.tolist())
        return handles.tolist()

    def write(self, name, handles):
        """Write to records."""
        for h in handles:
            record, key = self.pool[name][h], next(self.keys)
            record["key"], record["rest"] = key, -key
            self.now[name][h] = key

    def free(self, name, handles):
        """Free records."""
        self.pool[name].free_many(np.array(handles))
        for h in handles:
            del self.now[name][h]

    def commit(self):
        """Commit."""
        number = self.pool.commit()
        self.last = {name: dict(records) for name, records in self.now.items()}
        return number

    def rollback(self):
        """Roll back."""
        self.pool.rollback()
        self.now = {name: dict(records) for name, records in self.last.items()}

    def checkpoint(self):
        """Checkpoint."""
        assert self.pool.checkpoint()

    def prove(self, pool=None, model=None):
        """Assert that a pool, or this one, is as the model."""
        pool, model = pool or self.pool, model or self.now
        for name, records in model.items():
            cache, handles = pool[name], np.array(sorted(records), np.int64)
            assert np.sort(cache.live()).tolist() == handles.tolist()
            found = cache.gather(handles)
            keys = np.array([records[h] for h in handles.tolist()], np.int64)
            assert (found["key"] == keys).all()
            assert (found["rest"] == -keys[:, None]).all()
            assert add_up(cache, handles) == keys.sum()

    def reopen(self, **options):
        """Close without a commit, as a process that dies, and open again."""
        self.pool.close(commit=False)
        self.now = {name: dict(records) for name, records in self.last.items()}
        self.pool = jitslab.open_pool(self.path, "r+", **self.options, **options)


def read_unwritten(twin):
    """Make records where memory was given back, and read before anything is written there: that is what would hang."""
    cache = twin.pool["large"]
    for n in 1, 100, 2500:
        handles = cache.alloc_many(n)
        assert n == len(cache.gather(handles))
        cache.free_many(handles)


def some(handles, k, n):
    """Return every k-th of some handles, n at most."""
    return handles[::k][:n]


def live(twin):
    """Go through a pool's life, with proofs; returns its twin, still open."""
    small, large = twin.add("small", 20_000), twin.add("large", 600)
    twin.commit()
    twin.prove()
    twin.checkpoint()
    twin.prove()
    for round_ in range(4):  # each remaps the files, if written pages are not kept
        twin.write("small", some(small, 501, 30))
        twin.write("large", some(large, 7 + round_, 60))
        twin.commit()
        twin.write("large", some(large, 11, 40))
        more = twin.add("large", 80)
        twin.rollback()
        twin.prove()
        assert not any(h in twin.pool["large"] for h in more)
        large += twin.add("large", 70)
        twin.write("large", some(large, 13, 40))
        twin.commit()
        if round_ % 2:
            twin.checkpoint()
        twin.prove()
    twin.free("large", large[:400])
    twin.commit()
    large = large[400:]
    twin.pool["large"].shrink()
    twin.checkpoint()
    twin.prove()
    large += twin.add("large", 300)
    twin.write("large", some(large, 3, 100))
    twin.commit()
    twin.prove()
    twin.reopen()
    twin.prove()
    twin.write("large", some(large, 5, 100))
    twin.commit()
    twin.checkpoint()
    twin.prove()
    twin.pool.check()
    return twin


# --- What it is ---


def test_the_pool_says_where_it_is(place, folder):
    """The journal is mapped on persistent memory alone; the exact way of finding written pages is used on all."""
    with jitslab.open_pool(f"{folder}/pool", "x", root=ROOT) as pool:
        info, stats = pool.info(), pool.stats()

    assert info.is_dax == (place == "DAX")
    assert info.file_system == ("tmpfs" if place == "tmpfs" else "ext4")
    assert stats["journal"] == ("mapped" if place == "DAX" else "file")
    assert stats["dirty"] == "userfaultfd"


def test_written_pages_stay_in_memory_except_on_dax(place, folder):
    """After a checkpoint records are read from the medium itself, where it is memory."""
    twin = Twin(f"{folder}/pool")
    twin.add("large", 500)
    twin.commit()
    assert twin.pool.stats()["private_bytes"] >= 500 * LARGE.itemsize
    twin.checkpoint()

    twin.prove()
    left = twin.pool.stats()["private_bytes"]
    assert left == 0 if place == "DAX" else left >= 500 * LARGE.itemsize
    twin.pool.close()


# --- Its life ---


@pytest.mark.parametrize("dirty", ["userfaultfd", "pagemap", "hashes"])
@pytest.mark.parametrize("keep", [None, 0])
def test_a_life(folder, monkeypatch, dirty, keep):
    """Commits, checkpoints, rollbacks, holes and new mappings, however written pages are found."""
    monkeypatch.setenv("JITSLAB_DIRTY", dirty)
    twin = live(Twin(f"{folder}/pool", keep=keep))

    assert twin.pool.stats()["dirty"] == dirty
    twin.pool.close()


@pytest.mark.parametrize(("wish", "sync"), [("", False), ("off", True), ("off", False)])
def test_a_life_without_a_mapped_journal(folder, monkeypatch, wish, sync):
    """The data files are mapped directly all the same."""
    monkeypatch.setenv("JITSLAB_PMEM", wish)
    twin = live(Twin(f"{folder}/pool", sync=sync))

    assert twin.pool.stats()["journal"] == "file"
    twin.pool.close()


def test_a_commit_has_what_was_written_alone(folder):
    """Also where most pages are those of the file, mapped by large pages or small ones."""
    twin = Twin(f"{folder}/pool", keep=0)
    handles = twin.add("large", N_LARGE)
    twin.commit()
    twin.checkpoint()
    twin.prove()
    for k in range(3):
        twin.write("large", handles[k::500])
        before = twin.pool.stats()["journal_bytes"]
        twin.commit()
        used = twin.pool.stats()["journal_bytes"] - before
        assert used <= (2 * len(handles[k::500]) + 2) * 4096  # a record begins within a page
        twin.prove()
        assert twin.pool.commit() == twin.pool.number  # to read writes nothing
    twin.pool.close()


def test_holes_are_punched_and_read(folder):
    """Space of the file is given back; what is there then is read, written to and committed."""
    twin = Twin(f"{folder}/pool", keep=0)
    handles = twin.add("large", N_LARGE)
    twin.commit()
    twin.checkpoint()
    twin.prove()
    full = records_disk_bytes(twin)
    twin.free("large", handles[100:])
    twin.commit()
    twin.prove()
    twin.pool["large"].shrink()
    twin.checkpoint()
    assert records_disk_bytes(twin) < full - 8 * MB
    read_unwritten(twin)
    for n in 50, 500, 1000:
        twin.prove()
        twin.add("large", n)
        twin.prove()
        twin.commit()
        twin.checkpoint()
    twin.reopen()
    twin.prove()
    twin.pool.check()
    twin.pool.close()


def records_disk_bytes(twin):
    """Return the space that records of the large cache take."""
    return os.stat(f"{twin.path}/{twin.pool['large']._memory.entry.id}.records").st_blocks * 512


@pytest.mark.parametrize("keep", [0, MB << 10])
@pytest.mark.parametrize("sync", [True, False])
def test_shrink_between_growth_and_commit(folder, sync, keep):
    """Slabs that were made since the last commit are not watched yet."""
    twin = Twin(f"{folder}/pool", sync=sync, keep=keep)
    handles = twin.add("large", 1000)
    twin.commit()
    twin.reopen()
    twin.checkpoint()
    twin.reopen()
    twin.prove()
    twin.commit()
    twin.write("large", some(handles, 9, 50))
    twin.commit()
    twin.free("large", handles[200:] + twin.add("large", 2000))
    twin.pool["large"].shrink()
    read_unwritten(twin)
    twin.prove()
    twin.commit()
    twin.prove()
    twin.checkpoint()
    twin.add("large", 1500)
    twin.prove()
    twin.rollback()
    twin.prove()
    twin.pool["large"].shrink()
    read_unwritten(twin)
    twin.rollback()
    twin.prove()
    twin.pool.close()


# --- Readers ---


def test_a_reader_keeps_its_commit_until_it_refreshes(folder):
    """While the writer commits, makes checkpoints and punches holes."""
    twin = Twin(f"{folder}/pool")
    handles = twin.add("large", 600)
    twin.commit()
    with jitslab.open_pool(twin.path, "r") as reader:
        for k in range(4):
            seen = {name: dict(records) for name, records in twin.last.items()}
            twin.write("large", some(handles, 3 + k, 100))
            handles += twin.add("large", 40)
            twin.free("large", [handles.pop() for _ in range(10)])
            twin.commit()
            twin.prove(reader, seen)
            assert not twin.pool.checkpoint()
            assert reader.refresh() == twin.pool.number
            twin.prove(reader)
            if k == 2:
                twin.free("large", handles[300:])
                del handles[300:]
                twin.commit()
                reader.refresh()
                twin.pool["large"].shrink()
            twin.checkpoint()
            twin.prove(reader)
            assert reader.refresh() == twin.pool.number
            twin.prove(reader)
    twin.pool.close()


def test_a_reader_in_another_process(folder):
    """A child of fork reads what its parent commits."""
    twin = Twin(f"{folder}/pool", keep=0)
    handles = twin.add("large", 300)
    twin.commit()
    (to_child, child_end), (from_child, parent_end) = os.pipe()[::-1], os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            reader = jitslab.open_pool(twin.path, "r")
            for _ in range(3):
                os.write(parent_end, b"r")
                number, total = np.frombuffer(os.read(child_end, 16), np.int64).tolist()
                if reader.refresh() != number or add_up(reader["large"], reader["large"].live()) != total:
                    break
            else:
                status = 0
        finally:
            os._exit(status)
    for k in range(3):
        assert os.read(from_child, 1) == b"r"
        twin.write("large", handles[k::4])
        number = twin.commit()
        os.write(to_child, np.array([number, sum(twin.now["large"].values())]).tobytes())
        if k == 1:
            twin.pool.checkpoint()
    assert os.waitpid(pid, 0)[1] == 0
    twin.checkpoint()
    twin.prove()
    twin.pool.close()
    for file in to_child, child_end, from_child, parent_end:
        os.close(file)


# --- Death ---


def test_a_writer_that_dies(folder):
    """What it committed is there, what it wrote since is not."""
    path = f"{folder}/pool"
    pid = os.fork()
    if pid == 0:
        try:
            twin = Twin(path)
            twin.add("large", 200)
            twin.pool.root["n"] = 200
            twin.commit()
            twin.checkpoint()
            twin.add("small", 3000)
            twin.pool.root["n"] = 3000
            twin.commit()
            twin.add("small", 10)
            twin.free("large", list(twin.now["large"])[:50])
        finally:
            os._exit(7)
    assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 7

    with jitslab.open_pool(path, "r+") as pool:
        assert (pool.root["n"], len(pool["small"]), len(pool["large"])) == (3000, 3000, 200)
        keys = pool["large"].gather(pool["large"].live())["key"]
        assert sorted(keys.tolist()) == list(range(1, 201))
        pool.check()


if __name__ == "__main__":
    os.environ["JITSLAB_PMEM"] = "force"
    with tempfile.TemporaryDirectory() as name:
        made = live(Twin(f"{name}/pool"))
        with jitslab.open_pool(made.path, "r") as other:
            made.prove(other)
        made.pool.close()
