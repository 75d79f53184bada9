"""What stands beside the library is what it is said to be: whose `malloc` a process has, what traces hold, what stores keep."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bench_peers
from jitslab.replay import trace
from measure import SMOKE, SkippedError, WrongAnswerError
from peers import allocators, native, process, stores, traces


@pytest.mark.parametrize("allocator", allocators.ALLOCATORS)
def test_answer_of_c_allocator_is_right(allocator: str) -> None:
    """Every C allocator runs its rows, at the smallest sizes, and answers rightly."""
    try:
        rows = process.run_with(allocator, "smoke", "bench_peers")
    except SkippedError as why:
        pytest.skip(f"{allocator}: {why}")

    batch = f"{bench_peers.BY_ONE_CALL.format(SMOKE.batch)}, beside {allocator}"
    found = [row["operation"] for row in rows]
    assert (batch in found) == (allocator == "jemalloc")
    assert [name for name in found if name != batch] == [
        f"{name}, beside {allocator}" for name in bench_peers.beside_malloc(SMOKE)
    ]


@pytest.mark.parametrize(
    ("allocator", "file", "version"),
    [("jemalloc", "libc.so.6", "2.36"), ("mimalloc 3", "libmimalloc.so.3", "2.0.9"), ("glibc", "libjemalloc.so.2", "5.3.0")],
)
def test_another_malloc_than_was_asked_for_is_a_wrong_answer(allocator: str, file: str, version: str) -> None:
    """The loader only warns of a library that it cannot load."""
    with pytest.raises(WrongAnswerError, match=f"{allocator} was to be measured"):
        allocators.check(allocator, {"file": file, "version": version})


@pytest.mark.parametrize(("number", "version"), [(209, "2.0.9"), (223, "2.2.3"), (30403, "3.4.3"), (30412, "3.4.12")])
def test_version_of_mimalloc_is_read_from_its_number(number: int, version: str) -> None:
    """It has three digits up to version 2, five from version 3 on."""
    assert allocators.of_mimalloc(SimpleNamespace(mi_version=lambda: number)) == version


def test_a_library_that_is_named_and_missing_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is measured in its place."""
    monkeypatch.setenv(allocators.SNMALLOC, "/nowhere/libsnmallocshim.so")
    with pytest.raises(SkippedError, match=r"SNMALLOC names .*, which is no file"):
        allocators.environment("snmalloc")


def test_what_was_noted_of_malloc_becomes_a_trace(tmp_path: Path) -> None:
    """An address that is used again is another object; what was there before, and events that never came, are none."""
    notes = np.array([(16, 8, 0), (99, -1, 0), (32, 0, 1), (16, -1, 1), (16, 24, 0), (0, 0, 0)], traces.NOTED)
    trace.save(tmp_path / "noted.npz", traces.of_notes(notes))
    events = traces.load(str(tmp_path / "noted.npz")).events

    assert events[["op", "obj", "size", "thread"]].tolist() == [(0, 0, 8, 0), (0, 1, 0, 1), (1, 0, 0, 1), (0, 2, 24, 0)]


STORES = {
    "LMDB": lambda folder: stores.Lmdb(folder),
    "LMDB, mapped": lambda folder: stores.Lmdb(folder, is_mapped=True),
    "LMDB without a sync": lambda folder: stores.Lmdb(folder, sync=False),
    "SQLite FULL": lambda folder: stores.Sqlite(folder),
    "SQLite NORMAL": lambda folder: stores.Sqlite(folder, synchronous="NORMAL"),
    "PMDK": lambda folder: stores.Pmemobj(folder, 64, is_flushed=False),
    "PMDK, flushed": lambda folder: stores.Pmemobj(folder, 64, is_flushed=True),
}


@pytest.mark.parametrize("name", STORES)
def test_a_store_has_what_was_committed_when_it_is_opened_again(name: str, tmp_path: Path) -> None:
    """Inserts by several commits, updates, what is left after a removal: read back, now and later."""
    try:
        store = STORES[name](tmp_path)
    except SkippedError as why:
        pytest.skip(f"{name}: {why}")
    assert store.insert(10, 3) > 0
    assert store.update([3, 29, 7], [-5, 1 << 60, 0]) > 0
    expected = [n if n not in (3, 7) else {3: -5, 7: 0}[n] for n in range(28)]
    store.remove(2)
    assert store.values(range(28)) == expected
    store.close()

    store = STORES[name](tmp_path)
    assert (store.count, store.values(range(28))) == (28, expected)
    store.insert(2)
    assert store.values(stores.newest(store, 2)) == [28, 29]
    store.close()


@pytest.mark.parametrize("floor", [stores.Log, stores.Copy])
def test_a_floor_writes_whole_blocks_of_the_records(floor: type[stores.Log], tmp_path: Path) -> None:
    """As many as hold them, from the start of the file, over what was there."""
    log = floor(tmp_path, 1 << 20)
    log.insert(65, 2)

    assert log.values(stores.newest(log, 65)) == list(range(65, 130))
    data = log.path.read_bytes()
    assert len(data) == 1 << 20
    assert not any(data[65 * 64 :])
    assert len(log.prepared(range(65), range(65))) == 2 * log.BLOCK
    log.close()


def test_a_disk_that_is_memory_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync there does nothing."""
    if stores.file_system(stores.MEMORY) != "tmpfs":
        pytest.skip(f"needs {stores.MEMORY} of Linux")
    monkeypatch.setenv(stores.DISK, str(stores.MEMORY))
    with pytest.raises(SkippedError, match="set JITSLAB_BENCH_DISK to a folder on a disk"):
        stores.disk()


def test_pmdk_that_syncs_otherwise_than_was_asked_is_a_wrong_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It says itself whether it flushes lines or calls msync."""
    try:
        native.pmemobj()
    except SkippedError as why:
        pytest.skip(str(why))
    monkeypatch.setattr(stores, "FORCED", {})
    monkeypatch.setenv("PMEM_IS_PMEM_FORCE", "0")
    with pytest.raises(WrongAnswerError, match="PMDK calls msync"):
        stores.Pmemobj(tmp_path, 64, is_flushed=True)
