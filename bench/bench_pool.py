"""
Pools: what a commit takes beside LMDB, SQLite and PMDK; what the rest takes beside a private cache, or beside nothing.

Every store holds so many records of 64 bytes, and does the same: so many commits of n inserts, removed again before the next run;
one commit of random updates; a load into an empty store.  The rows say what a commit promises:

- "on disk": it outlives a power cut.  SQLite's is FULL; a transaction of PMDK calls msync for each step, as it must on a disk;
- "without a sync": it outlives the process.  SQLite's is NORMAL, which syncs before checkpoints still and keeps its order;
- "flushed": persistent memory, for which files in memory stand in: PMDK and the pool flush lines of the CPU's cache.

LMDB and SQLite keep an index sorted by key besides, and SQLite writes the one page that an insert needs: it is to be ahead for
single inserts.  PMDK writes lines, not pages: for small transactions on persistent memory it is to be far ahead.  Before a run
"on disk" all that others have written is synced.  As a script this file is a reader: it refreshes when it is asked.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

import bench_alloc
import bench_start
import jitslab
import measure
from measure import RECORD, Case, Figure, Row, Sizes, Table, ratio, speed_ratio
from peers import native, stores
from peers.stores import Copy, Embedded, Lmdb, Log, Pmemobj, Sqlite, Store

INSERTS = (1, 10, 100, 1_000)  # of a commit
UPDATES = 10_000
TURNS = {1: 20, 10: 20, 100: 10, 1_000: 5}  # commits of a run
SLOW_TURNS = {1: 5, 10: 2, 100: 1, 1_000: 1}  # of PMDK on a disk
FLUSHED_TURNS = {1: 500, 10: 100, 100: 20, 1_000: 5}
SPARE = 100_000  # records that a store has room for besides those that live in it
RECORDS = "records"  # the name of the cache in every pool
WRITTEN = (1, 100, 1_000, 10_000)  # pages that a commit finds written
REFRESHED = (1, 1_000)  # pages that a reader finds new
PER_PAGE = 4096 // RECORD.itemsize
OPENED = (1_000, 100_000, 10_000_000, 100_000_000)  # slots of the pools that are opened
SMALL = np.dtype([("x", "i8")])  # of these pools: it is the slots that count
PART = 10_000_000  # slots that a pool gets by one commit
FORCE = "JITSLAB_PMEM"  # the variable that makes a pool map its journal on any file system


@contextmanager
def forced(is_forced: bool) -> Iterator[None]:
    """Have pools opened within map their journals, as on persistent memory."""
    if is_forced:
        os.environ[FORCE] = "force"
    try:
        yield
    finally:
        if is_forced:
            del os.environ[FORCE]


class Pool(Embedded):
    """A pool of one cache; a record is its handle."""

    def __init__(self, folder: Path, capacity: int, *, sync: bool = True, is_flushed: bool = False) -> None:
        self.path, self.handles = folder / "pool", np.zeros(capacity, np.int64)
        is_new = not self.path.exists()
        with forced(is_flushed):
            self.pool: Any = jitslab.open_pool(self.path, "c", sync=sync)
        if is_new:
            self.records = self.pool.create_cache(RECORDS, RECORD, capacity=capacity)
            return
        self.records = self.pool[RECORDS]
        held = self.records.live()
        self.count = held.size
        self.handles[self.records.gather(held)["x"]] = held

    def prepared(self, numbers: Any, values: Any) -> Any:
        """Return numbers and records."""
        return np.asarray(numbers), stores.records_of(values)

    def commit_new(self, batch: Any) -> None:
        """Alloc, write, commit."""
        numbers, records = batch
        handles = self.handles[numbers[0] : numbers[-1] + 1]
        self.records.alloc_many(handles)
        self.records.scatter(handles, records)
        self.pool.commit()

    def commit_changed(self, batch: Any) -> None:
        """Write, commit."""
        numbers, records = batch
        self.records.scatter(self.handles[numbers], records)
        self.pool.commit()

    def remove(self, n: int) -> None:
        """Free the newest."""
        self.records.free_many(self.handles[self.count - n : self.count])
        self.pool.commit()
        self.count -= n

    def values(self, numbers: Any) -> list[int]:
        """Read records."""
        return self.records.gather(self.handles[np.asarray(numbers)])["x"].tolist()

    def close(self) -> None:
        """Close the pool."""
        self.pool.close()


# --- Commits ---


def log_bytes(records: int) -> int:
    """Return what a log needs for so many records, whole MiB."""
    return (records * RECORD.itemsize >> 20) + 2 << 20


def mib_of(records: int) -> int:
    """Return the MiB of a pool of PMDK: twice its records, and what the library has for itself."""
    return (records * 2 * RECORD.itemsize >> 20) + 128


def pmemobj_on_disk(folder: Path, live: int) -> Pmemobj:
    """Open PMDK on a disk; its records are there before, written without a sync each, or they would take minutes."""
    filled = Pmemobj(folder, mib_of(live + SPARE), is_flushed=True)
    filled.insert(live)
    filled.close()
    os.sync()
    return Pmemobj(folder, mib_of(live + SPARE), is_flushed=False)


Open = Callable[[Path, int], Store]  # in a folder, for so many records
WRITE_AND_SYNC, WRITE, COPY = "write + fdatasync", "write", "copy"
FLOORS = (WRITE_AND_SYNC, WRITE, COPY)

ON_DISK: dict[str, Open] = {
    WRITE_AND_SYNC: lambda folder, live: Log(folder, log_bytes(live + SPARE)),
    "LMDB": lambda folder, live: Lmdb(folder),
    "LMDB, mapped": lambda folder, live: Lmdb(folder, is_mapped=True),
    "SQLite": lambda folder, live: Sqlite(folder),
    "PMDK": pmemobj_on_disk,
    "pool": lambda folder, live: Pool(folder, live + SPARE),
}
WITHOUT_SYNC: dict[str, Open] = {
    WRITE: lambda folder, live: Log(folder, log_bytes(live + SPARE), sync=False),
    "LMDB": lambda folder, live: Lmdb(folder, sync=False),
    "SQLite": lambda folder, live: Sqlite(folder, synchronous="NORMAL"),
    "pool": lambda folder, live: Pool(folder, live + SPARE, sync=False),
}
FLUSHED: dict[str, Open] = {
    COPY: lambda folder, live: Copy(folder, log_bytes(live + SPARE)),
    "PMDK": lambda folder, live: Pmemobj(folder, mib_of(live + SPARE), is_flushed=True),
    "pool": lambda folder, live: Pool(folder, live + SPARE, is_flushed=True),
}
PLACES: dict[str, tuple[Callable[[], Path], dict[str, Open]]] = {
    "on disk": (stores.disk, ON_DISK),
    "without a sync": (stores.disk, WITHOUT_SYNC),
    "flushed": (stores.memory, FLUSHED),
}  # what a commit promises: where the stores are, and which


def in_new_folder(folder: Path, opened: Callable[[], Any]) -> Any:
    """Return what is opened in a new folder, which goes if it cannot be."""
    try:
        return opened()
    except BaseException:
        shutil.rmtree(folder)
        raise


@cache
def shared(place: str, name: str, live: int) -> Store:
    """Return a store with so many live records, which all rows have until the process ends."""
    where, contenders = PLACES[place]
    folder = where()
    store: Store = in_new_folder(folder, partial(contenders[name], folder, live))
    atexit.register(shutil.rmtree, folder)
    atexit.register(store.close)  # before its folder goes
    if store.count < live:
        store.insert(live - store.count)
    return store


def quiet() -> None:
    """Have all that others wrote be on the disk, for no sync to wait for it; and sleep a moment."""
    os.sync()
    native.rest()


def before_run(place: str) -> Callable[[], None]:
    """Return what is done before a run: where nothing is synced, a sync would only make pages dirty anew."""
    return quiet if place == "on disk" else native.rest


def inserts(place: str, name: str, n: int, turns: int, sizes: Sizes) -> Case:
    """So many commits of n inserts; what was inserted is removed again."""
    store = shared(place, name, sizes.batch)

    def run() -> tuple[float, bool]:
        taken = store.insert(n, turns)
        expected = stores.newest(store, n)
        is_right = store.count == sizes.batch + n * turns and store.values(expected) == list(expected)
        store.remove(n * turns)
        return taken, is_right and store.count == sizes.batch

    return Case(run, turns, before=before_run(place), measures=True, scale=1e6)


def updates(place: str, name: str, n: int, sizes: Sizes) -> Case:
    """One commit of n updates at random: other records in every run, each of them once."""
    store, rng = shared(place, name, sizes.batch), sizes.rng()

    def run() -> tuple[float, bool]:
        numbers, values = rng.permutation(sizes.batch)[:n], rng.integers(1 << 60, size=n)
        taken = store.update(numbers, values)
        return taken, store.values(numbers) == values.tolist()

    return Case(run, before=before_run(place), measures=True, scale=1e6)


def load(place: str, name: str, sizes: Sizes) -> Case:
    """Insert all records into an empty store; all are there when it is opened again."""
    where, contenders = PLACES[place]
    opener, n = contenders[name], sizes.batch
    some = range(0, n, max(1, n // 100))

    def run() -> tuple[float, bool]:
        folder = where()
        try:
            store = opener(folder, n)
            before_run(place)()
            taken = store.insert(n)
            store.close()
            if name in FLOORS:
                return taken, True
            store = opener(folder, n)
            is_right = store.count == n and store.values(some) == list(some)
            store.close()
        finally:
            shutil.rmtree(folder)
        return taken, is_right

    shared(place, name, sizes.batch)  # what this machine does not have is skipped here
    return Case(run, n, measures=True)


def written(n: int, name: str, sizes: Sizes) -> Case:
    """One commit that finds n pages written, a record in each; the floor writes as many blocks."""
    store = shared("on disk", name, sizes.batch)
    if name == "pool":
        assert isinstance(store, Pool)
        handles, rng = store.handles[: sizes.batch : PER_PAGE][:n], sizes.rng()

        def run() -> tuple[float, bool]:
            store.records.scatter(
                handles, stores.records_of(rng.integers(1 << 60, size=n))
            )  # what is the same again is not written
            start, before = time.perf_counter(), store.pool.number
            store.pool.commit()
            return time.perf_counter() - start, store.pool.number == before + 1

    else:
        assert isinstance(store, Log)
        blocks = bytes(n * Log.BLOCK)

        def run() -> tuple[float, bool]:
            start = time.perf_counter()
            store.commit_new(blocks)
            return time.perf_counter() - start, True

    return Case(run, before=quiet, measures=True, scale=1e6)


def scan(turns: int, sizes: Sizes) -> Case:
    """A commit that finds nothing written: what it takes for each page that is there."""
    folder, n = stores.memory(), sizes.batch * 16
    store: Pool = in_new_folder(folder, lambda: Pool(folder, n, sync=False))
    for _ in range(0, n, sizes.batch):
        store.insert(sizes.batch)
    pages = n * (RECORD.itemsize + 4) // 4096
    number = store.pool.number

    def run() -> bool:
        for _ in range(turns):
            store.pool.commit()
        return bool(store.pool.number == number)

    return Case(run, turns * pages, before=native.rest, close=partial(gone, store, folder))


def gone(store: Store, folder: Path) -> None:
    """Close a store, and remove its folder."""
    store.close()
    shutil.rmtree(folder)


# --- Without a commit: as fast as a private cache ---


def in_pool(setup: Callable[..., Case], commits: bool, *args: Any) -> Case:
    """Return a case of `bench_alloc` on a cache of a pool; what a run writes is committed before the next if it `commits`."""
    folder, opened = stores.disk(), []

    def make(name: str, dtype: Any, capacity: int) -> Any:
        opened.append(jitslab.open_pool(folder / "pool", "c"))
        return opened[0].create_cache(name, dtype, capacity=capacity)

    case: Case = in_new_folder(folder, partial(setup, *args, make=make))

    def close() -> None:
        opened[0].close()
        shutil.rmtree(folder)

    def before() -> None:
        opened[0].commit()
        native.rest()

    return replace(case, close=close, before=before if commits else native.rest)


def pmemobj_pair(sizes: Sizes) -> Case:
    """Alloc and free of one record, each atomic by itself, which is more than the others promise."""
    store = shared("flushed", "PMDK", sizes.batch)
    assert isinstance(store, Pmemobj)
    n = sizes.ops // 10
    return Case(lambda: (store.pair(n), store.count == sizes.batch), n, measures=True)


def without_commits(setup: Callable[..., Case], *args: Any) -> dict[str, measure.Setup]:
    """Return the contenders of a row: the same case on a private cache and on one of a pool."""
    return {
        "cache": partial(setup, *args),
        "pool": partial(in_pool, setup, False, *args),
        "pool, just committed": partial(in_pool, setup, True, *args),
    }


# --- Opening, and reading beside a writer ---


@cache
def made(slots: int, is_full: bool) -> Path:
    """Return a pool on the disk whose slots are all live, or every other of them at random; all is in its data files."""
    folder = stores.disk()
    atexit.register(shutil.rmtree, folder)
    pool: Any = jitslab.open_pool(folder / "pool", "c")
    records, rng = pool.create_cache(RECORDS, SMALL, capacity=slots + SPARE), measure.FULL.rng()
    for first in range(0, slots, PART):
        handles = records.alloc_many(min(PART, slots - first))
        if not is_full:
            records.free_many(handles[rng.random(handles.size) < 0.5])
        pool.commit()
    pool.checkpoint()
    pool.close()
    return folder / "pool"


def rebuild(slots: int, is_full: bool, sizes: Sizes) -> Case:
    """The first alloc after opening, which finds all free slots."""
    path = made(slots, is_full)

    def run() -> tuple[float, bool]:
        pool: Any = jitslab.open_pool(path, "r+")
        records = pool[RECORDS]
        start = time.perf_counter()
        handle = records.alloc()
        taken = time.perf_counter() - start
        is_right = handle in records and (not is_full or len(records) == slots + 1)
        pool.close(commit=False)  # as it was
        return taken, is_right

    return Case(run, slots, before=native.rest, measures=True)


def opening(slots: int, sizes: Sizes) -> Case:
    """Open a pool in a fresh process, all imported."""
    code = f"p = jitslab.open_pool({str(made(slots, True))!r}, 'r+'); c = p[{RECORDS!r}]"
    return replace(bench_start.within("numpy, jitslab", code, False, sizes), scale=1e3)


def refresh(name: str, n: int, sizes: Sizes) -> Case:
    """A reader in another process sees a commit of n pages, a record in each, and reads one of them."""
    store = shared("on disk", name, sizes.batch)
    assert isinstance(store, Embedded)
    numbers = np.arange(sizes.batch)[::PER_PAGE][:n]
    last = int(store.handles[numbers[-1]]) if isinstance(store, Pool) else int(numbers[-1])
    reader = native.Peer(Path(sys.executable), Path(__file__), name, store.path, last)
    rng = sizes.rng()
    reader.ask("refresh")  # it is open

    def run() -> tuple[float, bool]:
        values = rng.integers(1 << 60, size=numbers.size)
        store.update(numbers, values)
        native.rest()
        taken, found = reader.ask("refresh")
        return taken / 1e9, found == values[-1]

    return Case(run, measures=True, scale=1e6, close=reader.close)


def reader_of(name: str, path: str, last: int) -> Callable[[], int]:
    """Return what sees all that was committed, and reads one record."""
    if name == "pool":
        pool: Any = jitslab.open_pool(path, "r")
        records = pool[RECORDS]

        def read() -> int:
            pool.refresh()
            return int(records.gather([last])["x"][0])

        return read
    store: Lmdb | Sqlite = Lmdb(Path(path).parent) if name == "LMDB" else Sqlite(Path(path).parent)
    return lambda: store.values([last])[0]


def read_when_asked(name: str, path: str, last: str) -> None:
    """Answer every line by ns and what the record holds."""
    read = reader_of(name, path, int(last))
    for _ in sys.stdin:
        start = time.perf_counter_ns()
        value = read()
        sys.stdout.write(f"{time.perf_counter_ns() - start} {value}\n")
        sys.stdout.flush()


# --- The table ---


def named(n: int, what: str) -> str:
    """Return how many of what a commit has."""
    return f"commit of {n:,} {what}{'' if n == 1 else 's'}"


AT_LEAST: dict[tuple[str, int], dict[str, float]] = {
    ("on disk", 1): {"LMDB": 1.0, "LMDB, mapped": 1.0, "SQLite": 1.0, "PMDK": 1.0},
    ("on disk", 10): {"LMDB": 1.0, "LMDB, mapped": 1.0, "SQLite": 1.0, "PMDK": 5.0},
    ("on disk", 100): {"LMDB": 1.0, "LMDB, mapped": 1.0, "SQLite": 1.0, "PMDK": 30.0},
    ("on disk", 1_000): {"LMDB": 1.2, "LMDB, mapped": 1.0, "SQLite": 4.0, "PMDK": 30.0},
    ("on disk", UPDATES): {"LMDB": 1.5, "LMDB, mapped": 1.0, "SQLite": 4.0},
    ("flushed", 1_000): {"PMDK": 3.0},
}  # how many times as fast as each a pool is to be, where it is more than 1


def figures(place: str, n: int, names: dict[str, Any]) -> tuple[Figure, ...]:
    """Return the figures of a row: a pool beside every peer, and beside the floor."""
    least, (floor, *peers, _) = AT_LEAST.get((place, n), {}), names
    return (*(speed_ratio("pool", peer, least.get(peer, 1.0)) for peer in peers), ratio("pool", floor))


def commits(sizes: Sizes) -> Table:
    """Return the rows of commits and loads."""
    rows = {}
    for place, (_, contenders) in PLACES.items():
        seconds = sizes.seconds if place == "on disk" else sizes.seconds / 2
        for n in INSERTS:
            turns = FLUSHED_TURNS[n] if place == "flushed" else TURNS[n]
            setups: dict[str, measure.Setup] = {
                name: partial(inserts, place, name, n, SLOW_TURNS[n] if (place, name) == ("on disk", "PMDK") else turns)
                for name in contenders
            }
            rows[f"{named(n, 'insert')} {place}"] = Row(setups, figures(place, n, setups), unit="µs", seconds=seconds)
        others = [name for name in contenders if (place, name) != ("on disk", "PMDK")]  # a sync for each record: minutes
        n = min(UPDATES, sizes.batch // 2)
        setups = {name: partial(updates, place, name, n) for name in others}
        found = figures(place, UPDATES, setups)
        rows[f"{named(n, 'update')} at random {place}"] = Row(setups, found, unit="µs", seconds=seconds)
        if place != "without a sync":
            setups = {name: partial(load, place, name) for name in others}
            least = {"LMDB": 2.0, "LMDB, mapped": 1.0, "SQLite": 15.0, "PMDK": 1.0}
            found = (*(speed_ratio("pool", name, least[name]) for name in others[1:-1]), ratio("pool", others[0]))
            rows[f"load of {sizes.batch:,} {place}"] = Row(setups, found, most=3)
    return rows


def table(sizes: Sizes) -> Table:
    """Return all operations."""
    is_full, third = sizes.least > 2, sizes.seconds / 3
    rows = commits(sizes)
    for n in (n for n in WRITTEN if n * PER_PAGE <= sizes.batch):
        setups: dict[str, measure.Setup] = {name: partial(written, n, name) for name in (WRITE_AND_SYNC, "pool")}
        rows[f"{named(n, 'written page')} on disk"] = Row(setups, (ratio("pool", WRITE_AND_SYNC),), unit="µs", seconds=third)
    scanned = Figure("scan of a page", lambda t: t["pool"], 2.0, unit="ns")
    rows["commit of nothing, a page that is there"] = Row({"pool": partial(scan, 10)}, (scanned,), seconds=third)

    as_fast = ratio("pool", "cache", 1.1)
    more = (as_fast, ratio("pool, just committed", "cache"))
    pairs = without_commits(bench_alloc.pair, "cache") | {"PMDK": pmemobj_pair}
    rows["pair without a commit"] = Row(pairs, (*more, speed_ratio("pool", "PMDK", 1.0)))
    for live in sizes.lives:
        rows[f"churn {live:,} without a commit"] = Row(without_commits(bench_alloc.churn, "cache", live), more)

    slots = sizes.batch * 10
    found = tuple(
        Figure(f"rebuild, {name}", lambda t, name=name: 1e3 / t[name], 250.0, at_least=True, unit="million slots a second")
        for name in ("all live", "half live")
    )
    setups = {"all live": partial(rebuild, slots, True), "half live": partial(rebuild, slots, False)}
    rows[f"first alloc of {slots:,} slots"] = Row(setups, found, most=20)
    opened = [n for n in OPENED if is_full or n <= sizes.batch]
    setups = {f"{n:,} slots": partial(opening, n) for n in opened}
    found = tuple(Figure(f"open {name}", lambda t, name=name: t[name], 5.0, unit="ms") for name in setups)
    rows["open, after the import"] = Row(setups, found, unit="ms", most=10)
    for n in (n for n in REFRESHED if n * PER_PAGE <= sizes.batch):
        names = ("LMDB", "SQLite", "pool")
        setups = {name: partial(refresh, name, n) for name in names}
        found = tuple(speed_ratio("pool", name, 1.0) for name in names[:-1])
        rows[f"reader after a commit of {n:,} page{'' if n == 1 else 's'}"] = Row(setups, found, unit="µs", seconds=third)
    return rows


versions = stores.versions


if __name__ == "__main__":
    read_when_asked(*sys.argv[1:])
