"""Alloc and free in compiled code, beside the floors: pair, churns by number of live records, batches."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np

from loops import cache, floor, records
from loops.heaps import Heap
from measure import Case, Row, Sizes, Table, ratio

SPARE = 100  # slots beyond those that are used
# Contenders: what they take records from, and their loops.
WAYS: dict[str, tuple[str, Any, Any, Any]] = {
    "bare stack": ("stack", records.pair, records.fill, records.churn),
    "generations": ("generations", floor.pair_checked, floor.fill_checked, floor.churn_checked),
    "cache": ("cache", records.pair, records.fill, records.churn),
    "new()": ("cache", cache.pair, records.fill, cache.churn),
}


def pair(way: str, sizes: Sizes, **options: Any) -> Case:
    """Alloc and free of one record."""
    name, loop, *_ = WAYS[way]
    heap, n = Heap(name, SPARE, **options), sizes.ops

    def is_right(s: int) -> bool:
        return (s != 0) == (way != "bare stack") and int(heap.x.max()) == n - 1 and heap.is_clean(0)

    return Case(lambda: loop(heap.loop, n), n, is_right, close=heap.close)


def churn(way: str, live: int, sizes: Sizes, **options: Any) -> Case:
    """Free one of the records at random, alloc another; set up once, and each run leaves what the one before left."""
    name, _, fill, loop = WAYS[way]
    heap, order = Heap(name, live + SPARE, **options), sizes.rng().integers(0, live, turns(live, sizes))
    held = heap.refs(live)
    fill(heap.loop, held)
    expected = records.last_writes(live, order)

    def is_right(refused: int | None) -> bool:
        return not refused and int(heap.x[heap.slots_of(held)].sum()) == expected and heap.is_clean(live)

    return Case(lambda: loop(heap.loop, held, order), order.size, is_right, close=heap.close)


def turns(live: int, sizes: Sizes) -> int:
    """Return how many turns a churn has."""
    return sizes.ops if live <= 100_000 else sizes.far_ops


# --- Batches ---


def pop(stack: Any, out: Any) -> None:
    """Pop a batch."""
    floor.pop(out, stack.slots, stack.top)


BATCHES: dict[str, tuple[str, Any, Any]] = {
    "bare stack": ("stack", pop, records.free_each),
    "many": ("cache", cache.alloc_many, cache.free_many),
    "each": ("cache", cache.alloc_each, records.free_each),
}


def allocs(way: str, sizes: Sizes) -> Case:
    """Alloc a batch."""
    name, alloc, free = BATCHES[way]
    heap = Heap(name, sizes.batch)
    out = heap.refs(sizes.batch)
    run, after = partial(alloc, heap.loop, out), partial(free, heap.loop, out)
    return Case(run, sizes.batch, lambda _: is_every_slot(heap, out), after=after, close=heap.close)


def frees(way: str, sizes: Sizes) -> Case:
    """Free a batch in order."""
    name, alloc, free = BATCHES[way]
    heap = Heap(name, sizes.batch)
    out = heap.refs(sizes.batch)
    run, before = partial(free, heap.loop, out), partial(alloc, heap.loop, out)
    return Case(run, sizes.batch, lambda n: n == sizes.batch and heap.is_clean(0), before, close=heap.close)


def permuted(way: str, beforehand: bool, sizes: Sizes) -> Case:
    """Alloc a batch, and free it in random order: put together on the way, or beforehand."""
    name, alloc, free = BATCHES[way]
    n, heap = sizes.batch, Heap(name, sizes.batch)
    out, order, shuffled = heap.refs(n), sizes.rng().permutation(n), heap.refs(n)

    def run() -> tuple[float, Any]:
        taken, _ = clock(alloc, heap.loop, out)
        if beforehand:
            more, freed = clock(free, heap.loop, out[order])
        elif way == "many":
            more, freed = clock(cache.free_many_permuted, heap.loop, out, order, shuffled)
        else:
            more, freed = clock(records.free_permuted, heap.loop, out, order)
        return taken + more, freed

    return Case(run, n, lambda freed: freed == n and is_every_slot(heap, out), measures=True, close=heap.close)


def clock(loop: Any, *args: Any) -> tuple[float, Any]:
    """Seconds and answer of a call."""
    start = time.perf_counter()
    answer = loop(*args)
    return time.perf_counter() - start, answer


def is_every_slot(heap: Heap, refs: Any) -> bool:
    """Whether no slot was handed out twice, and all are given back."""
    return heap.is_clean(0) and int(np.bincount(heap.slots_of(refs)).max()) == 1


# --- The table ---


def churn_row(live: int) -> Row:
    """Return the row of a churn; its figures are those of its size."""
    by_alloc, by_new = {1_000: (1.6, 1.4), 100_000: (2.4, 2.1)}.get(live, (2.4 if live <= 100_000 else 3.5, None))
    figures = (ratio("cache", "bare stack", by_alloc), ratio("new()", "bare stack", by_new), ratio("cache", "generations", 1.0))
    return Row({way: partial(churn, way, live) for way in WAYS}, figures)


def table(sizes: Sizes) -> Table:
    """Return all operations."""
    figures = (ratio("cache", "bare stack", 1.5), ratio("new()", "bare stack", 1.5), ratio("cache", "generations", 1.0))
    rows = {"pair": Row({way: partial(pair, way) for way in WAYS}, figures)}
    rows |= {f"churn {live:,}": churn_row(live) for live in sizes.lives}
    for one, setup in (("alloc", allocs), ("free", frees)):
        names = {"bare stack": "bare stack", f"{one}_many": "many", f"{one} each": "each"}
        rows[f"{sizes.batch:,} {one}s in order"] = Row(
            {name: partial(setup, way) for name, way in names.items()},
            (ratio(f"{one}_many", "bare stack", 1.4), ratio(f"{one} each", "bare stack")),
        )
    for text, beforehand in (("in random order", False), ("shuffled beforehand", True)):
        rows[f"{sizes.batch:,} allocs + frees, {text}"] = Row(
            {way: partial(permuted, way, beforehand) for way in BATCHES},
            (ratio("many", "bare stack", 4.0), ratio("each", "bare stack", 4.0)),
        )
    return rows
