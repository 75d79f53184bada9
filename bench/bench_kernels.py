"""
The stress loops of allocators' own benchmarks, over C allocators and over jitslab: throughput, latency, memory; 1 and 2 threads.

Each C allocator has a process of its own, as in `bench_peers.py`, with jitslab in it: a `SlabCache` where a loop has one size, a
`SlabAllocator` where sizes vary.  `rows` are those beside the process's own `malloc`.

Shapes and parameters are those of mimalloc-bench and Ralloc, the number of turns scaled down; the loops are in `loops/stress.py`.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

import measure
from jitslab import SlabAllocator, SlabCache
from jitslab.replay import peak
from loops import ring
from loops import stress as kernels
from loops.stress import LAP, SPAN
from measure import Case, Figure, Row, Sizes, Table, speed_ratio

SIDES = ("malloc", "jitslab")
LAST_STEPS = 0.02  # seconds: a thread that was joined gives its magazines back in its last steps
HOLES, CACHED = 10_000, 1_000  # most that are filled before neighbours come; what a thread takes of its cache
CAPACITY = 1 << 21  # records of a cache: reserved, not used
NO_LAPS = np.empty(0, np.int64)
SCALE = {"full": 1.0, "quick": 0.1, "smoke": 0.004}  # of the turns
SECONDS = {"full": 0.8, "quick": 0.05, "smoke": 0.0}  # of a row
LAP_RUNS = {"full": 3, "quick": 1, "smoke": 1}  # runs whose laps are noted
SHARES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
Laps = list[Any]  # of each thread, times of the clock; empty: none are noted
Found = tuple[float, int]  # seconds, and how much was right


@dataclass
class Work:
    """A loop, ready to run."""

    run: Callable[[ring.Team, Laps, bool], Found]
    turns: int  # of all threads: an alloc and its free
    right: int  # what is answered if nothing went wrong
    laps: int  # most laps of a thread
    lap: str = f"{LAP} turns"


@dataclass(frozen=True)
class Kernel:
    """A loop with its parameters."""

    set_up: Callable[[list[Any], int, float], Work]  # heaps, threads, scale
    records: tuple[int, ...] = ()  # bytes of the records where sizes do not vary: a cache each
    threads: tuple[int, ...] = (1, 2)
    by_round: bool = False  # which of two threads waits for the other is luck: rounds are compared, not the best of them

    def figure(self) -> Figure:
        """Return the figure of its rows."""
        return speed_ratio("jitslab", "malloc", 1.0, by_round=self.by_round)


def summed(team: ring.Team, *jobs: Callable[[], Any]) -> Found:
    """Run one job on each thread."""
    seconds, answers = team.run(*jobs)
    return seconds, sum(map(int, answers))


def places(n: int) -> tuple[Any, Any]:
    """Return refs and sizes of n places, their memory touched."""
    return np.full(n, 0, np.int64), np.full(n, 0, np.int64)


def part_of(laps: Laps, i: int, k: int, n: int) -> Any:
    """Return where thread i notes the laps of its k-th n turns; nowhere, if none are noted."""
    return laps[i][k * (n // LAP + 1) :][: n // LAP + 1]


# --- The loops with their parameters ---


def larson(heaps: list[Any], threads: int, scale: float) -> Work:
    """8 to 1,000 bytes, 5,000 places a thread, which it hands over after 100 times as many turns."""
    n, handed, heap = round(500_000 * scale), 4, heaps[0]
    own = [places(5_000) for _ in range(threads)]

    def run(team: ring.Team, laps: Laps, careful: bool) -> Found:
        for i, (refs, sizes) in enumerate(own):
            kernels.larson_fill(heap, refs, sizes, 8, 1_000, 4_141 + i)
        seconds = right = 0
        for k in range(handed):
            jobs = (
                partial(kernels.larson, heap, n, *own[(i + k) % threads], 8, 1_000, 100 * k + i, part_of(laps, i, k, n), careful)
                for i in range(threads)
            )
            took, found = summed(team, *jobs)
            seconds, right = seconds + took, right + found
        return seconds, right + sum(kernels.drain(heap, refs, sizes) for refs, sizes in own)

    turns = n * handed * threads
    return Work(run, turns, turns + 5_000 * threads, handed * (n // LAP + 1))


def xmalloc_test(heaps: list[Any], threads: int, scale: float) -> Work:
    """64 bytes, batches of 4,096; one thread only takes, the other only frees."""
    n, heap = max(1, round(300 * scale)), heaps[0]
    batches = np.zeros((100, 4_096), np.int64)

    def run(team: ring.Team, laps: Laps, careful: bool) -> Found:
        positions = ring.new_positions()
        return summed(
            team,
            lambda: kernels.make_batches(heap, n, batches, positions, laps[0]),
            lambda: kernels.free_batches(heap, n, batches, positions, laps[1], careful),
        )

    return Work(run, n * 4_096, n * 4_096, n * LAP)


def false_sharing(is_given: bool, heaps: list[Any], threads: int, scale: float) -> Work:
    """
    1 byte; 1,000 turns of many writes a thread; before, the main thread may give each thread one, all of them on one line.

    In a process of Python a heap of C has holes, far from each other, and its threads have some of them in their caches; a cache
    of ours is new.  So every heap is asked the same: the main thread takes what fills the holes until neighbours come, each
    thread takes what it has cached, and both hold it to the end of the run.
    """
    heap, rounds, writes = heaps[0], max(2, round(1_000 * scale)), 20_000 // threads
    refs = np.zeros(HOLES if is_given else threads, np.int64)
    own = [np.zeros(CACHED if is_given else 0, np.int64) for _ in range(threads)]

    def run(team: ring.Team, laps: Laps, careful: bool) -> Found:
        taken = kernels.take_neighbours(heap, 1, refs, threads) if is_given else threads
        held, given = refs[: taken - threads], refs[taken - threads : taken]
        jobs = (partial(kernels.scratch, heap, given[i], own[i], rounds, writes, 1, laps[i]) for i in range(threads))
        seconds, right = summed(team, *jobs)
        return seconds, right + kernels.give_all(heap, held, 1) - held.size

    turns = rounds * threads
    return Work(run, turns, turns + (threads if is_given else 0), rounds, "1 turn")


def mstress(heaps: list[Any], threads: int, scale: float) -> Work:
    """Load 50, 25 iterations, each by new threads; half of what is in transfer lives on."""
    heap, iterations = heaps[0], max(1, round(25 * scale))
    allocs = [100 * 50 * (i + 1) for i in range(threads)]
    rows = [n + n // 2 for n in allocs]
    refs, sizes = places(1 + iterations * sum(rows))
    data, kept = [np.zeros(n, np.int64) for n in rows], [np.zeros(n, np.int64) for n in rows]
    transfer = np.zeros(1_000, np.int64)

    def run(_: ring.Team, laps: Laps, careful: bool) -> Found:
        seconds, right, first = 0.0, 0, 1
        for k in range(iterations):
            jobs = []
            for i in range(threads):
                seed, part = 43 * (k * threads + i + 1), part_of(laps, i, k, rows[i])
                jobs.append(partial(kernels.mstress, heap, allocs[i], first, refs, sizes, transfer, data[i], kept[i], seed, part))
                first += rows[i]
            team = ring.Team(threads)
            try:
                took, found = summed(team, *jobs)
            finally:
                team.close()
            percent = 50 if k + 1 < iterations else 100
            found += kernels.clear_transfer(heap, refs, sizes, transfer, percent, 43 * 43 + k)
            seconds, right = seconds + took, right + found
        return seconds, right

    turns = iterations * sum(rows)
    return Work(run, turns, turns, iterations * (max(rows) // LAP + 1))


def sh6bench(heaps: list[Any], threads: int, scale: float) -> Work:
    """1 to 1,000 bytes, most of them small; a window freed partly in reverse, partly in order."""
    heap, rounds = heaps[0], round(20_000 * scale)
    own = [places(4_000) for _ in range(threads)]

    def run(team: ring.Team, laps: Laps, careful: bool) -> Found:
        return summed(team, *(partial(kernels.halving, heap, rounds, *own[i], laps[i], careful) for i in range(threads)))

    turns = kernels.turns_of_halving(rounds)
    return Work(run, turns * threads, turns * threads, turns // LAP + 1)


def sh8bench(heaps: list[Any], threads: int, scale: float) -> Work:
    """The same at random; and each window is freed by the thread that did not fill it."""
    heap, n, handed = heaps[0], max(1, round(25 * scale)) * 4_000, 10
    own = [places(4_000) for _ in range(threads)]

    def run(team: ring.Team, laps: Laps, careful: bool) -> Found:
        seconds = right = 0
        for k in range(handed):
            jobs = (
                partial(kernels.windows, heap, n, *own[(i + k) % threads], 100 * k + i, part_of(laps, i, k, n), careful)
                for i in range(threads)
            )
            took, found = summed(team, *jobs)
            seconds, right = seconds + took, right + found
        return seconds, right + sum(kernels.drain(heap, refs, sizes) for refs, sizes in own)

    turns = n * handed * threads
    return Work(run, turns, turns, handed * (n // LAP + 1))


def alloc_test(heaps: list[Any], threads: int, scale: float) -> Work:
    """6 to 1,024 bytes, half as many of each doubling; 2^18 places for all threads, few of them drawn most of the time."""
    heap, n, many = heaps[0], round(1_000_000 * scale), (1 << 18) // threads
    shares = np.array([0.8**k * 0.2 ** (6 - k) * b for k, b in zip(range(6, -1, -1), (1, 6, 15, 20, 15, 6, 1), strict=True)])
    ranges = np.rint(np.cumsum(shares) * SPAN).astype(np.int64)
    ranges[-1] = SPAN
    offsets = np.concatenate([[0], np.rint(np.cumsum(shares[::-1]) * many)]).astype(np.int64)
    offsets[1], offsets[-1] = max(1, offsets[1]), many
    own = [places(many) for _ in range(threads)]

    def run(team: ring.Team, laps: Laps, careful: bool) -> Found:
        return summed(
            team, *(partial(kernels.alloc_test, heap, n, ranges, offsets, *own[i], 41 + i, laps[i]) for i in range(threads))
        )

    return Work(run, n * threads, 2 * n * threads, n // LAP + 1)


SIMPLE_SIZES, SIMPLE_MANY = (16, 32, 64), (25, 100, 400, 1_600)


def glibc_simple(heaps: list[Any], threads: int, scale: float) -> Work:
    """16, 32, 64 bytes; 25 to 1,600 of them at once."""
    n = round(100_000 * scale)
    refs = [np.zeros(1_600, np.int64) for _ in range(threads)]
    parts = [
        (heap, size, many, max(1, n // many)) for heap, size in zip(heaps, SIMPLE_SIZES, strict=True) for many in SIMPLE_MANY
    ]
    most = sum(many * rounds // LAP + 1 for *_, many, rounds in parts)

    def run(team: ring.Team, laps: Laps, careful: bool) -> Found:
        seconds = right = start = 0
        for heap, size, many, rounds in parts:
            end = start + many * rounds // LAP + 1
            jobs = (
                partial(kernels.simple, heap, many, rounds, size, refs[i], laps[i][start:end], careful) for i in range(threads)
            )
            took, found = summed(team, *jobs)
            seconds, right, start = seconds + took, right + found, end
        return seconds, right

    turns = sum(many * rounds for *_, many, rounds in parts) * threads
    return Work(run, turns, turns, most)


@cache
def inverse_square() -> tuple[Any, Any]:
    """Return 8,000 sizes of 4 to 32,768 bytes, as likely as one over their square, and 4,096 places of 1,024."""
    rng = np.random.default_rng(88)
    sizes = 1 / ((1 / 32_768 - 1 / 4) * rng.random(8_000) + 1 / 4)
    return sizes.astype(np.int64), rng.integers(0, 1_024, 4_096)


def glibc_thread(heaps: list[Any], threads: int, scale: float) -> Work:
    """4 to 32,768 bytes, likely as one over their square; 1,024 places a thread."""
    heap, n, (table, order) = heaps[0], round(1_500_000 * scale), inverse_square()
    own = [places(1_024) for _ in range(threads)]

    def run(team: ring.Team, laps: Laps, careful: bool) -> Found:
        return summed(
            team, *(partial(kernels.by_table, heap, n, table, order, *own[i], laps[i], careful) for i in range(threads))
        )

    return Work(run, n * threads, n * threads, n // LAP + 1)


def threadtest(heaps: list[Any], threads: int, scale: float) -> Work:
    """8 bytes; all threads together take 100,000, then free them."""
    heap, n, rounds = heaps[0], 100_000 // threads, max(1, round(20 * scale))
    refs = [np.zeros(n, np.int64) for _ in range(threads)]

    def run(team: ring.Team, laps: Laps, careful: bool) -> Found:
        return summed(team, *(partial(kernels.threadtest, heap, n, rounds, 8, refs[i], laps[i], careful) for i in range(threads)))

    turns = n * rounds * threads
    return Work(run, turns, turns, n * rounds // LAP + 1)


def prod_con(heaps: list[Any], threads: int, scale: float) -> Work:
    """Objects of 64 bytes through a linked queue, whose nodes are of 16 bytes."""
    nodes, heap = heaps
    n = round(500_000 * scale)

    def run(team: ring.Team, laps: Laps, careful: bool) -> Found:
        first = kernels.first_node(nodes)
        return summed(
            team,
            lambda: kernels.produce(nodes, heap, first, n, laps[0]),
            lambda: kernels.consume(nodes, heap, first, n, laps[1], careful),
        )

    return Work(run, 2 * n, 2 * n + 1, n // LAP + 1)


KERNELS = {
    "larson": Kernel(larson),
    "xmalloc-test": Kernel(xmalloc_test, (64,), (2,)),
    "cache-scratch": Kernel(partial(false_sharing, True), (1,), by_round=True),
    "cache-thrash": Kernel(partial(false_sharing, False), (1,), by_round=True),
    "mstress": Kernel(mstress),
    "sh6bench": Kernel(sh6bench),
    "sh8bench": Kernel(sh8bench),
    "alloc-test": Kernel(alloc_test),
    "glibc-simple": Kernel(glibc_simple, SIMPLE_SIZES),
    "glibc-thread": Kernel(glibc_thread),
    "threadtest": Kernel(threadtest, (8,)),
    "prod-con": Kernel(prod_con, (16, 64), (2,)),
}


# --- One side, ready ---


class Ready:
    """A loop over the heaps of one side."""

    def __init__(self, kernel: Kernel, side: str, threads: int, scale: float) -> None:
        self.kernel, self.side, self.threads, self.scale = kernel, side, threads, scale
        self.heaps: list[Any] = []
        self.team = ring.Team(threads)
        self.runs = 0

    def open(self) -> Ready:
        """Open the heaps."""
        sizes = self.kernel.records
        if self.side == "malloc":
            self.heaps = [0] * max(1, len(sizes))
        elif sizes:
            self.heaps = [SlabCache(f"of-{n}", np.dtype([("bytes", "u1", (n,))]), capacity=CAPACITY) for n in sizes]
        else:
            self.heaps = [SlabAllocator("kernels")]
        self.work = self.kernel.set_up(self.heaps, self.threads, self.scale)
        return self

    @property
    def opened(self) -> list[Any]:
        """Heaps that are ours; those of malloc are the number 0, as empty ones would be false, too."""
        return self.heaps if self.side == "jitslab" else []

    def run(self, laps: Laps | None = None) -> Found:
        """Run once; carefully the first time."""
        self.runs += 1
        return self.work.run(self.team, laps or [NO_LAPS] * self.threads, self.runs == 1)

    def is_right(self, answer: int) -> bool:
        """Whether all was right, nothing is left, and no access was refused."""
        for heap in self.opened:
            heap.raise_faults()
            if len(heap) != 0:
                return False
        return answer == self.work.right

    def checked(self, laps: Laps | None = None) -> float:
        """Run once; raises if anything was wrong."""
        seconds, answer = self.run(laps)
        if not self.is_right(answer):
            raise measure.WrongAnswerError(f"answered {answer}, not {self.work.right}")
        return seconds

    def case(self) -> Case:
        """Return it as a contender."""
        return Case(self.run, self.work.turns, self.is_right, measures=True)

    def shrink(self) -> None:
        """Ask back what is free, on both sides."""
        purge()
        for heap in self.opened:
            heap.shrink()

    def close(self) -> None:
        """End the threads and close the heaps."""
        self.team.close()
        for heap in self.opened:
            heap.close()


def contender(kernel: Kernel, side: str, threads: int, sizes: Sizes) -> Case:
    """One side of a row, which closes itself."""
    ready = Ready(kernel, side, threads, SCALE[sizes.name]).open()
    case = ready.case()
    case.close = ready.close
    return case


def beside_malloc(sizes: Sizes) -> Table:
    """Return all operations; "malloc" is whatever this process has under that name."""
    return {
        f"{name}, {threads} thread{'s' * (threads > 1)}": Row(
            {side: partial(contender, kernel, side, threads) for side in SIDES},
            (kernel.figure(),),
            seconds=SECONDS[sizes.name],
        )
        for name, kernel in KERNELS.items()
        for threads in kernel.threads
    }


# --- Latency ---


@cache
def nanoseconds_a_tick() -> float:
    """Return how long a tick of the loops' clock is."""
    start, first = time.perf_counter_ns(), kernels.now()
    time.sleep(0.05)
    return float((time.perf_counter_ns() - start) / (kernels.now() - first))


def of_laps(times: Laps) -> dict[str, float]:
    """Return nanoseconds of a lap: the shares of all laps of all threads."""
    taken = []
    for each in times:
        noted = each[each != 0]
        lap = np.diff(noted)
        taken.append(lap[lap > 0])
    all_laps = np.concatenate(taken) * nanoseconds_a_tick()
    return {name: float(np.percentile(all_laps, share)) for name, share in SHARES.items()}


def latency(ready: dict[str, Ready], runs: int) -> dict[str, Any]:
    """Return shares of the laps of each side, in ns: the lowest of a few runs in turn."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(runs):
        for side, each in ready.items():
            laps = [np.zeros(each.work.laps, np.int64) for _ in range(each.threads)]
            each.checked(laps)
            found[side].append(of_laps(laps))
    shares = {side: {name: min(run[name] for run in of_side) for name in SHARES} for side, of_side in found.items()}
    return {"lap": ready["malloc"].work.lap} | shares


# --- Memory ---


def purge() -> None:
    """Have malloc give back what it has free, as far as it can."""
    import ctypes

    process = ctypes.CDLL(None)
    if hasattr(process, "mi_collect"):
        process.mi_collect(ctypes.c_bool(True))
    elif hasattr(process, "mallctl"):
        process.mallctl(b"arena.4096.purge", None, None, None, ctypes.c_size_t(0))
    elif hasattr(process, "MallocExtension_ReleaseFreeMemory"):
        process.MallocExtension_ReleaseFreeMemory()
    elif hasattr(process, "malloc_trim"):
        process.malloc_trim(ctypes.c_size_t(0))


def warm_up(kernel: Kernel, side: str, threads: int) -> None:
    """Run once, and ask back what is free; compiled now, and short, so that malloc has few bytes that it might use again."""
    ready = Ready(kernel, side, threads, SCALE["smoke"]).open()
    ready.checked()
    ready.shrink()
    ready.close()


def memory_of(kernel: Kernel, side: str, threads: int, scale: float) -> dict[str, float]:
    """
    Return MiB that one run takes in this process: at most, when all is freed, and when what is free was asked back.

    A short run comes first, for this process to have looked at its code: ours opens its heaps in Python, whose pages would count.
    The threads have ended when free memory is asked back, and so have their magazines and caches.
    """
    warm_up(kernel, side, threads)
    ready = Ready(kernel, side, threads, scale)
    gc.collect()
    purge()
    peak.start_peak()
    before = peak.memory_now("VmRSS")
    ready.open()
    opened = peak.memory_now("VmRSS")
    ready.checked()
    most, settled = peak.memory_now("VmHWM"), peak.memory_now("VmRSS")
    ready.team.close()
    time.sleep(LAST_STEPS)
    ready.shrink()
    trimmed = peak.memory_now("VmRSS")
    ready.close()
    found = {"opened": opened, "peak": most, "settled": settled, "trimmed": trimmed}
    return {name: (n - before) / (1 << 20) for name, n in found.items()}


def in_child(job: Callable[[], Any]) -> Any:
    """Return what a job answers in a forked child, as JSON; this process has one thread."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(send, json.dumps(job()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(send)
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    if os.waitpid(child, 0)[1] != 0:
        raise measure.WrongAnswerError("the child that measures memory failed")
    return json.loads(text)


def memories(scale: float) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the memory of both sides for every loop and number of threads."""
    found = {}
    for name, kernel in KERNELS.items():
        for threads in kernel.threads:
            for side in SIDES:
                warm_up(kernel, side, threads)
            found[name, threads] = {side: in_child(partial(memory_of, kernel, side, threads, scale)) for side in SIDES}
    return found


# --- In a process of its own ---


def rows(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Measure everything beside this process's malloc; memory only at full size."""
    memory = memories(SCALE["full"]) if sizes.name == "full" else {}  # before anything else was taken and freed
    figures: dict[str, list[dict[str, Any]]] = {}
    for name, kernel in KERNELS.items():
        for threads in kernel.threads:
            about = f"{threads} thread{'s' * (threads > 1)}"
            ready = {side: Ready(kernel, side, threads, SCALE[sizes.name]).open() for side in SIDES}
            try:
                contenders: dict[str, Any] = {side: (lambda _, each=each: each.case()) for side, each in ready.items()}
                row = Row(contenders, (kernel.figure(),), seconds=SECONDS[sizes.name])
                found = measure.measure(f"{name}, {about}", row, sizes).as_json()
                found |= {"latency": latency(ready, LAP_RUNS[sizes.name]), "memory": memory.get((name, threads))}
            finally:
                for each in ready.values():
                    each.close()
            yield found
            figures.setdefault(about, []).append(found["figures"][0])
    for about, of in figures.items():
        nothing: dict[str, Any] = {"contenders": {}, "skipped": {}, "unit": "ns"}
        yield nothing | {"operation": f"geometric mean of all loops, {about}", "figures": [mean_of(of)]}


def mean_of(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the geometric mean of the loops' figures as a figure: of the best, of the medians, and of their quartiles."""
    of = {
        key: statistics.geometric_mean(f[key] for f in figures) for key in ("measured", "of_best", "of_rounds", "lower", "upper")
    }
    return figures[0] | of | {"met": of["measured"] >= figures[0]["target"]}
