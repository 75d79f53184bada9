"""Alloc and free in compiled code, beside the floors: pair, churns by number of live records, batches."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np

from jitslab import SlabCache
from loops import cache as loops
from loops import floor
from measure import RECORD, Case, Row, Sizes, Table, ratio

SLOT_MASK = 0xFFFFFFFF
SPARE = 100  # slots beyond those that are used


# --- Pair ---


def pair_of_stack(sizes: Sizes) -> Case:
    """Pop and push on a bare stack: always slot 0."""
    stack, top = floor.bare_stack(SPARE)
    data, n = floor.record_array(SPARE), sizes.ops
    return Case(lambda: floor.pair(n, stack, top, data), n, lambda s: s == 0 and top[0] == SPARE and data["x"][0] == n - 1)


def pair_of_generations(sizes: Sizes) -> Case:
    """Pop and push on a stack with generations."""
    stack, top = floor.bare_stack(SPARE)
    data, generations, n = floor.record_array(SPARE), np.zeros(SPARE, np.uint32), sizes.ops

    def is_right(s: int) -> bool:
        return s != 0 and s & SLOT_MASK == 0 and top[0] == SPARE and data["x"][0] == n - 1

    return Case(lambda: floor.pair_checked(n, stack, top, generations, data), n, is_right)


def pair_of_cache(loop: Any, sizes: Sizes, **options: Any) -> Case:
    """Alloc and free of one record of a cache."""
    cache, n = SlabCache("pair", RECORD, capacity=SPARE, **options), sizes.ops
    cache.free(h := cache.alloc())
    slot = h & SLOT_MASK

    def is_right(s: int) -> bool:
        return s & SLOT_MASK == n * slot & SLOT_MASK and cache.records["x"][slot] == n - 1 and is_clean(cache, 0)

    return Case(lambda: loop(n, cache), n, is_right, close=cache.close)


def is_clean(cache: SlabCache, live: int) -> bool:
    """Whether a cache has so many records live and no faults."""
    return len(cache) == live and cache.faults == 0


# --- Churn: set up once; each run leaves what the one before left ---


def churn_of_stack(live: int, sizes: Sizes) -> Case:
    """Churn on a bare stack."""
    order = churn_order(live, sizes)
    stack, top = floor.bare_stack(live + SPARE)
    data, held = floor.record_array(live + SPARE), np.empty(live, np.int32)
    floor.fill(held, stack, top, data)
    expected = loops.last_writes(live, order)

    def is_right(_: None) -> bool:
        return int(data["x"][held].sum()) == expected and top[0] == SPARE

    return Case(lambda: floor.churn(held, stack, top, data, order), order.size, is_right)


def churn_of_generations(live: int, sizes: Sizes) -> Case:
    """Churn on a stack with generations."""
    order = churn_order(live, sizes)
    stack, top = floor.bare_stack(live + SPARE)
    data, held, generations = floor.record_array(live + SPARE), np.empty(live, np.int64), np.zeros(live + SPARE, np.uint32)
    floor.fill_checked(held, stack, top, generations, data)
    expected = loops.last_writes(live, order)

    def is_right(refused: int) -> bool:
        return refused == 0 and int(data["x"][held & SLOT_MASK].sum()) == expected

    return Case(lambda: floor.churn_checked(held, stack, top, generations, data, order), order.size, is_right)


def churn_of_cache(loop: Any, live: int, sizes: Sizes, **options: Any) -> Case:
    """Churn on a cache."""
    order = churn_order(live, sizes)
    cache, held = SlabCache("churn", RECORD, capacity=live + SPARE, **options), np.empty(live, np.int64)
    loops.fill(held, cache)
    expected = loops.last_writes(live, order)

    def is_right(_: None) -> bool:
        return int(cache.records["x"][cache.slots(held)].sum()) == expected and is_clean(cache, live)

    return Case(lambda: loop(held, cache, order), order.size, is_right, close=cache.close)


def churn_order(live: int, sizes: Sizes) -> Any:
    """Which of the held records goes, turn by turn."""
    return sizes.rng().integers(0, live, sizes.ops if live <= 100_000 else sizes.far_ops)


# --- Batches ---


def allocs_of_stack(sizes: Sizes) -> Case:
    """Pop a batch."""
    n, (stack, top), out = sizes.batch, floor.bare_stack(sizes.batch), np.empty(sizes.batch, np.int32)
    return Case(lambda: floor.pop(out, stack, top), n, lambda _: is_every_slot(out), after=lambda: floor.push(out, stack, top))


def frees_of_stack(sizes: Sizes) -> Case:
    """Push a batch."""
    n, (stack, top), out = sizes.batch, floor.bare_stack(sizes.batch), np.empty(sizes.batch, np.int32)
    return Case(lambda: floor.push(out, stack, top), n, lambda _: top[0] == n, before=lambda: floor.pop(out, stack, top))


def allocs_of_cache(alloc: Any, sizes: Sizes) -> Case:
    """Alloc a batch."""
    cache, out = SlabCache("allocs", RECORD, capacity=sizes.batch), np.empty(sizes.batch, np.int64)

    def is_right(_: Any) -> bool:
        return is_every_slot(out & SLOT_MASK) and is_clean(cache, 0)

    free = partial(loops.free_many, out, cache)
    return Case(lambda: alloc(out, cache), sizes.batch, is_right, after=free, close=cache.close)


def frees_of_cache(free: Any, sizes: Sizes) -> Case:
    """Free a batch in order."""
    cache, out = SlabCache("frees", RECORD, capacity=sizes.batch), np.empty(sizes.batch, np.int64)

    def is_right(n: int) -> bool:
        return n == sizes.batch and is_clean(cache, 0)

    alloc = partial(loops.alloc_many, out, cache)
    return Case(lambda: free(out, cache), sizes.batch, is_right, before=alloc, close=cache.close)


def permuted_of_stack(beforehand: bool, sizes: Sizes) -> Case:
    """Pop a batch, and push it in random order."""
    n, (stack, top), out = sizes.batch, floor.bare_stack(sizes.batch), np.empty(sizes.batch, np.int32)
    order = sizes.rng().permutation(n)

    def run() -> tuple[float, Any]:
        taken, _ = clock(floor.pop, out, stack, top)
        if beforehand:
            more, _ = clock(floor.push, out[order], stack, top)
        else:
            more, _ = clock(floor.push_permuted, out, order, stack, top)
        return taken + more, None

    return Case(run, n, lambda _: is_every_slot(out) and top[0] == n, measures=True)


def permuted_of_cache(many: bool, beforehand: bool, sizes: Sizes) -> Case:
    """Alloc a batch, and free it in random order."""
    n, cache, out = sizes.batch, SlabCache("permuted", RECORD, capacity=sizes.batch), np.empty(sizes.batch, np.int64)
    order, shuffled = sizes.rng().permutation(n), np.empty(n, np.int64)

    def run() -> tuple[float, Any]:
        taken, _ = clock(loops.alloc_many if many else loops.alloc_each, out, cache)
        if beforehand:
            more, freed = clock(loops.free_many if many else loops.free_each, out[order], cache)
        elif many:
            more, freed = clock(loops.free_many_permuted, out, order, shuffled, cache)
        else:
            more, freed = clock(loops.free_each_permuted, out, order, cache)
        return taken + more, freed

    def is_right(freed: int) -> bool:
        return freed == n and is_every_slot(out & SLOT_MASK) and is_clean(cache, 0)

    return Case(run, n, is_right, measures=True, close=cache.close)


def clock(loop: Any, *args: Any) -> tuple[float, Any]:
    """Seconds and answer of a call."""
    start = time.perf_counter()
    answer = loop(*args)
    return time.perf_counter() - start, answer


def is_every_slot(slots: Any) -> bool:
    """Whether no slot was handed out twice."""
    return int(np.bincount(slots).max()) == 1


# --- The table ---


def churn_row(live: int) -> Row:
    """Return the row of a churn; its figures are those of its size."""
    cache, new = {1_000: (1.6, 1.4), 100_000: (2.4, 2.1)}.get(live, (2.4 if live <= 100_000 else 3.5, None))
    contenders = {
        "bare stack": partial(churn_of_stack, live),
        "generations": partial(churn_of_generations, live),
        "cache": partial(churn_of_cache, loops.churn, live),
        "new()": partial(churn_of_cache, loops.churn_new, live),
    }
    figures = (ratio("cache", "bare stack", cache), ratio("new()", "bare stack", new), ratio("cache", "generations", 1.0))
    return Row(contenders, figures)


def table(sizes: Sizes) -> Table:
    """Return all operations."""
    batch = f"{sizes.batch:,}"
    rows = {
        "pair": Row(
            {
                "bare stack": pair_of_stack,
                "generations": pair_of_generations,
                "cache": partial(pair_of_cache, loops.pair),
                "new()": partial(pair_of_cache, loops.pair_new),
            },
            (ratio("cache", "bare stack", 1.5), ratio("new()", "bare stack", 1.5), ratio("cache", "generations", 1.0)),
        )
    }
    rows |= {f"churn {live:,}": churn_row(live) for live in sizes.lives}
    rows[f"{batch} allocs in order"] = Row(
        {
            "bare stack": allocs_of_stack,
            "alloc_many": partial(allocs_of_cache, loops.alloc_many),
            "alloc each": partial(allocs_of_cache, loops.alloc_each),
        },
        (ratio("alloc_many", "bare stack", 1.4), ratio("alloc each", "bare stack")),
    )
    rows[f"{batch} frees in order"] = Row(
        {
            "bare stack": frees_of_stack,
            "free_many": partial(frees_of_cache, loops.free_many),
            "free each": partial(frees_of_cache, loops.free_each),
        },
        (ratio("free_many", "bare stack", 1.4), ratio("free each", "bare stack")),
    )
    for text, beforehand in (("in random order", False), ("shuffled beforehand", True)):
        rows[f"{batch} allocs + frees, {text}"] = Row(
            {
                "bare stack": partial(permuted_of_stack, beforehand),
                "many": partial(permuted_of_cache, True, beforehand),
                "each": partial(permuted_of_cache, False, beforehand),
            },
            (ratio("many", "bare stack", 4.0), ratio("each", "bare stack", 4.0)),
        )
    return rows
