"""
The C allocators beside a cache, in the same loops, round by round in one process; `peers` chooses the allocator.

What a contender takes is set up and given back within the run, as the C allocators must.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import measure
from loops import cache, records, ring
from loops.heaps import Heap
from loops.malloc import SIZE
from measure import Case, Row, Setup, Sizes, Table, speed_ratio
from peers import allocators

SPARE = 100
BY_ONE_CALL = "{:,} allocs by one call"  # only beside an allocator that has such a call
FLOOR = "bare stack"  # in times only: its ratios are those of the rows of `bench_alloc`
BOTH = {"malloc": "malloc", "cache": "cache"}
ALL = {**BOTH, FLOOR: "stack"}  # contenders, and their heaps


def pair(name: str, sizes: Sizes) -> Case:
    """Alloc, write and free of one record."""
    heap = Heap(name, SPARE)
    return Case(lambda: records.pair(heap.loop, sizes.ops), sizes.ops, lambda s: heap.is_clean(0), close=heap.close)


def churn(name: str, loop: Any, live: int, sizes: Sizes) -> Case:
    """Fill, churn, drain; counted as the turns of the churn."""
    heap, order = Heap(name, live + SPARE), sizes.rng().integers(0, live, sizes.far_ops)
    held = heap.refs(live)

    def run() -> int:
        records.fill(heap.loop, held)
        loop(heap.loop, held, order)
        return int(records.drain(heap.loop, held))

    return Case(run, order.size, partial(int.__eq__, records.last_writes(live, order)), close=heap.close)


def allocs(name: str, fill: Callable[[Any, Any], object], sizes: Sizes) -> Case:
    """Alloc and write a batch; what was written is read before it is freed, when the clock has stopped."""
    heap, n, read = Heap(name, sizes.batch), sizes.batch, [0]
    held = heap.refs(n)

    def after() -> None:
        read[0] = int(records.drain(heap.loop, held))

    return Case(lambda: fill(heap.loop, held), n, lambda _: read[0] == n * (n - 1) // 2, after=after, close=heap.close)


def frees(name: str, order: Any, sizes: Sizes) -> Case:
    """Free a batch that was written, a call a record, in the order that the generator gives."""
    heap, n, at = Heap(name, sizes.batch), sizes.batch, order(sizes.rng(), sizes.batch)
    held, shuffled = heap.refs(n), heap.refs(n)

    def before() -> None:
        records.fill(heap.loop, held)
        np.take(held, at, out=shuffled)

    return Case(lambda: records.free_each(heap.loop, shuffled), n, partial(int.__eq__, n), before, close=heap.close)


def by_one_call(batch_alloc: Any) -> dict[str, Setup]:
    """Return the contenders of a batch that one call allocs; it is written record by record."""

    def of_malloc(heap: Any, held: Any) -> None:
        batch_alloc(held, SIZE)
        records.write(heap, held)

    def of_cache(heap: Any, held: Any) -> None:
        cache.alloc_many(heap, held)
        records.write(heap, held)

    return {"malloc": partial(allocs, "malloc", of_malloc), "cache": partial(allocs, "cache", of_cache)}


def in_order(_: Any, n: int) -> Any:
    """Positions in order."""
    return np.arange(n)


def in_reverse(_: Any, n: int) -> Any:
    """Positions from the last to the first."""
    return np.arange(n)[::-1]


def at_random(rng: Any, n: int) -> Any:
    """Positions in random order."""
    return rng.permutation(n)


# --- By two threads ---


def by_two(jobs: Sequence[Callable[[], Any]], ops: int, is_right: Callable[[Any], bool], heap: Heap) -> Case:
    """Two threads that share nothing but the allocator."""
    team = ring.Team()

    def run() -> tuple[float, bool]:
        seconds, answers = team.run(*jobs)
        return seconds, all(map(is_right, answers))

    def close() -> None:
        team.close()
        heap.close()

    return Case(run, 2 * ops, close=close, measures=True)


def pairs(name: str, sizes: Sizes) -> Case:
    """Alloc, write and free of one record, by two threads."""
    heap = Heap(name, SPARE)
    return by_two([partial(records.pair, heap.loop, sizes.ops)] * 2, sizes.ops, bool, heap)


def churns(name: str, live: int, sizes: Sizes) -> Case:
    """Fill, churn, drain, by two threads: each its own records."""
    heap, order = Heap(name, 2 * live + SPARE), sizes.rng().integers(0, live, sizes.ops)

    def job(held: Any) -> int:
        records.fill(heap.loop, held)
        records.churn(heap.loop, held, order)
        return int(records.drain(heap.loop, held))

    jobs = [partial(job, heap.refs(live)) for _ in range(2)]
    return by_two(jobs, order.size, partial(int.__eq__, records.last_writes(live, order)), heap)


def handed_over(name: str, sizes: Sizes) -> Case:
    """Every record freed by the other thread."""
    heap, team, n = Heap(name, 2 * sizes.ring), ring.Team(), sizes.handed
    refs = np.zeros(sizes.ring, np.int64)

    def run() -> tuple[float, int]:
        positions = ring.new_positions()
        jobs = (partial(loop, heap.loop, n, refs, positions) for loop in (ring.send, ring.receive))
        seconds, answers = team.run(*jobs)
        return seconds, answers[1]

    def close() -> None:
        team.close()
        heap.close()

    return Case(run, n, partial(int.__eq__, n), close=close, measures=True)


# --- The table ---


def beside_malloc(sizes: Sizes) -> Table:
    """Return all operations; "malloc" is whatever this process has under that name."""
    beside = (speed_ratio("cache", "malloc", 1.0),)
    rows: Table = {}

    def add(operation: str, contenders: dict[str, Setup], *more: measure.Figure) -> None:
        rows[operation] = Row(contenders, (*beside, *more), seconds=sizes.seconds * 0.4)

    add("pair", {name: partial(pair, heap) for name, heap in ALL.items()})
    for live in sizes.peer_lives:
        contenders: dict[str, Setup] = {name: partial(churn, heap, records.churn, live) for name, heap in ALL.items()}
        contenders["new()"] = partial(churn, "cache", cache.churn, live)
        add(f"churn {live:,}, set-up counted in", contenders, speed_ratio("new()", "malloc", 1.0))
    add(f"{sizes.batch:,} allocs, each a call", {name: partial(allocs, heap, records.fill) for name, heap in ALL.items()})
    if (batch_alloc := allocators.batch_alloc()) is not None:
        add(BY_ONE_CALL.format(sizes.batch), by_one_call(batch_alloc))
    for text, order in (("in order", in_order), ("in reverse", in_reverse), ("in random order", at_random)):
        add(f"{sizes.batch:,} frees {text}, each a call", {name: partial(frees, heap, order) for name, heap in ALL.items()})
    add("pair, by two threads", {name: partial(pairs, heap) for name, heap in BOTH.items()})
    live = sizes.churn_live
    add(f"churn {live:,}, by two threads, set-up counted in", {name: partial(churns, heap, live) for name, heap in BOTH.items()})
    add("each record freed by the other thread", {name: partial(handed_over, heap) for name, heap in BOTH.items()})
    return rows
