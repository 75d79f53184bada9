"""The C allocators beside a cache, in the same loops, round by round in one process; `peers` chooses the allocator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import measure
from jitslab import SlabCache
from loops import cache as loops
from loops import floor, malloc, ring
from measure import RECORD, Case, Row, Sizes, Table, speed_ratio
from peers import allocators

SPARE = 100
BY_ONE_CALL = "{:,} allocs by one call"  # only beside an allocator that has such a call
FLOOR = "bare stack"  # in times only: its ratios are those of the rows of `bench_alloc`


# --- Contenders: these set up and tear down within the run, as the C allocators must ---


def pair_of_malloc(sizes: Sizes) -> Case:
    """Alloc, write and free of one record."""
    return Case(lambda: malloc.pair(sizes.ops), sizes.ops)


def pair_of_stack(sizes: Sizes) -> Case:
    """Pop, write and push of one slot: always slot 0."""
    (stack, top), data = floor.bare_stack(SPARE), floor.record_array(SPARE)
    return Case(lambda: floor.pair(sizes.ops, stack, top, data), sizes.ops, lambda s: s == 0 and top[0] == SPARE)


def pair_of_cache(sizes: Sizes) -> Case:
    """Alloc, write and free of one record."""
    cache = SlabCache("pair", RECORD, capacity=SPARE)
    return Case(lambda: loops.pair(sizes.ops, cache), sizes.ops, close=cache.close)


def churn_of_malloc(live: int, sizes: Sizes) -> Case:
    """Fill, churn, drain; counted as the turns of the churn."""
    held, order = np.empty(live, np.int64), sizes.rng().integers(0, live, sizes.far_ops)

    def run() -> int:
        malloc.fill(held)
        malloc.churn(held, order)
        return int(malloc.drain(held))

    return Case(run, order.size, partial(int.__eq__, loops.last_writes(live, order)))


def churn_of_stack(live: int, sizes: Sizes) -> Case:
    """Fill, churn, drain; counted as the turns of the churn."""
    held, order = np.empty(live, np.int32), sizes.rng().integers(0, live, sizes.far_ops)
    (stack, top), data = floor.bare_stack(live + SPARE), floor.record_array(live + SPARE)

    def run() -> int:
        floor.fill(held, stack, top, data)
        floor.churn(held, stack, top, data, order)
        return int(floor.drain(held, stack, top, data))

    return Case(run, order.size, partial(int.__eq__, loops.last_writes(live, order)))


def churn_of_cache(loop: Any, live: int, sizes: Sizes) -> Case:
    """Fill, churn, drain; counted as the turns of the churn."""
    held, order = np.empty(live, np.int64), sizes.rng().integers(0, live, sizes.far_ops)
    cache = SlabCache("churn", RECORD, capacity=live + SPARE)

    def run() -> int:
        loops.fill(held, cache)
        loop(held, cache, order)
        return int(loops.drain(held, cache))

    return Case(run, order.size, partial(int.__eq__, loops.last_writes(live, order)), close=cache.close)


def allocs(fill: Any, drain: Any, held: Any, close: Any = measure.nothing) -> Case:
    """Alloc and write a batch, a call a record; what was written is read before it is freed, when the clock has stopped."""
    n, read = held.size, [0]

    def after() -> None:
        read[0] = int(drain(held))

    return Case(lambda: fill(held), n, lambda _: read[0] == n * (n - 1) // 2, after=after, close=close)


def allocs_of_malloc(sizes: Sizes) -> Case:
    """Alloc and write a batch."""
    return allocs(malloc.fill, malloc.drain, np.empty(sizes.batch, np.int64))


def allocs_of_stack(sizes: Sizes) -> Case:
    """Pop and write a batch."""
    (stack, top), data = floor.bare_stack(sizes.batch), floor.record_array(sizes.batch)
    fill, drain = (lambda held: floor.fill(held, stack, top, data)), (lambda held: floor.drain(held, stack, top, data))
    return allocs(fill, drain, np.empty(sizes.batch, np.int32))


def allocs_of_cache(sizes: Sizes) -> Case:
    """Alloc and write a batch."""
    cache = SlabCache("allocs", RECORD, capacity=sizes.batch)
    fill, drain = (lambda held: loops.fill(held, cache)), (lambda held: loops.drain(held, cache))
    return allocs(fill, drain, np.empty(sizes.batch, np.int64), cache.close)


def batch_of_malloc(batch_alloc: Any, sizes: Sizes) -> Case:
    """Alloc a batch by one call, write it."""

    def fill(held: Any) -> None:
        batch_alloc(held, malloc.SIZE)
        malloc.write(held)

    return allocs(fill, malloc.drain, np.empty(sizes.batch, np.int64))


def batch_of_cache(sizes: Sizes) -> Case:
    """Alloc a batch by one call, write it."""
    cache = SlabCache("allocs", RECORD, capacity=sizes.batch)

    def fill(held: Any) -> None:
        loops.alloc_many(held, cache)
        loops.write(cache, held)

    return allocs(fill, lambda held: loops.drain(held, cache), np.empty(sizes.batch, np.int64), cache.close)


def frees_of_malloc(order: Any, sizes: Sizes) -> Case:
    """Free a batch that was written, a call a record, in the order that the generator gives."""
    held, shuffled, at = np.empty(sizes.batch, np.int64), np.empty(sizes.batch, np.int64), order(sizes.rng(), sizes.batch)

    def before() -> None:
        malloc.fill(held)
        np.take(held, at, out=shuffled)

    return Case(lambda: malloc.free_each(shuffled), sizes.batch, partial(int.__eq__, sizes.batch), before)


def frees_of_stack(order: Any, sizes: Sizes) -> Case:
    """Push a batch, in the order that the generator gives."""
    held, shuffled, at = np.empty(sizes.batch, np.int32), np.empty(sizes.batch, np.int32), order(sizes.rng(), sizes.batch)
    (stack, top), data = floor.bare_stack(sizes.batch), floor.record_array(sizes.batch)

    def before() -> None:
        floor.fill(held, stack, top, data)
        np.take(held, at, out=shuffled)

    return Case(lambda: floor.push(shuffled, stack, top), sizes.batch, lambda _: top[0] == sizes.batch, before)


def frees_of_cache(order: Any, sizes: Sizes) -> Case:
    """Free a batch that was written, a call a record, in the order that the generator gives."""
    held, shuffled, at = np.empty(sizes.batch, np.int64), np.empty(sizes.batch, np.int64), order(sizes.rng(), sizes.batch)
    cache = SlabCache("frees", RECORD, capacity=sizes.batch)

    def before() -> None:
        loops.fill(held, cache)
        np.take(held, at, out=shuffled)

    run = partial(loops.free_each, shuffled, cache)
    return Case(run, sizes.batch, partial(int.__eq__, sizes.batch), before, close=cache.close)


def in_order(_: Any, n: int) -> Any:
    """Positions in order."""
    return np.arange(n)


def in_reverse(_: Any, n: int) -> Any:
    """Positions from the last to the first."""
    return np.arange(n)[::-1]


def at_random(rng: Any, n: int) -> Any:
    """Positions in random order."""
    return rng.permutation(n)


def by_two(jobs: Sequence[Callable[[], Any]], ops: int, is_right: Callable[[Any], bool], close: Any = measure.nothing) -> Case:
    """Two threads that share nothing but the allocator."""
    team = ring.Team()

    def run() -> tuple[float, bool]:
        seconds, answers = team.run(*jobs)
        return seconds, all(map(is_right, answers))

    def stop() -> None:
        team.close()
        close()

    return Case(run, 2 * ops, close=stop, measures=True)


def pairs_of_malloc(sizes: Sizes) -> Case:
    """Alloc, write and free of one record, by two threads."""
    return by_two([partial(malloc.pair, sizes.ops)] * 2, sizes.ops, bool)


def pairs_of_cache(sizes: Sizes) -> Case:
    """Alloc, write and free of one record, by two threads on one cache."""
    cache = SlabCache("pairs", RECORD, capacity=SPARE)
    return by_two([partial(loops.pair, sizes.ops, cache)] * 2, sizes.ops, bool, cache.close)


def churns(fill: Any, churn: Any, drain: Any, live: int, sizes: Sizes, close: Any = measure.nothing) -> Case:
    """Fill, churn, drain, by two threads: each its own records."""
    order = sizes.rng().integers(0, live, sizes.ops)

    def job(held: Any) -> int:
        fill(held)
        churn(held, order)
        return int(drain(held))

    jobs = [partial(job, np.empty(live, np.int64)) for _ in range(2)]
    return by_two(jobs, order.size, partial(int.__eq__, loops.last_writes(live, order)), close)


def churns_of_malloc(live: int, sizes: Sizes) -> Case:
    """Fill, churn, drain, by two threads."""
    return churns(malloc.fill, malloc.churn, malloc.drain, live, sizes)


def churns_of_cache(live: int, sizes: Sizes) -> Case:
    """Fill, churn, drain, by two threads on one cache."""
    cache = SlabCache("churns", RECORD, capacity=2 * live + SPARE)

    def fill(held: Any) -> None:
        loops.fill(held, cache)

    def churn(held: Any, order: Any) -> None:
        loops.churn(held, cache, order)

    def drain(held: Any) -> Any:
        return loops.drain(held, cache)

    return churns(fill, churn, drain, live, sizes, cache.close)


def handed_over(give: Any, take: Any, close: Any, sizes: Sizes) -> Case:
    """Every record freed by the other thread."""
    team, handles, n = ring.Team(), np.zeros(sizes.ring, np.int64), sizes.handed

    def run() -> tuple[float, int]:
        positions = ring.new_positions()
        seconds, answers = team.run(lambda: give(n, handles, positions), lambda: take(n, handles, positions))
        return seconds, answers[1]

    def stop() -> None:
        team.close()
        close()

    return Case(run, n, partial(int.__eq__, n), close=stop, measures=True)


def handed_over_by_cache(sizes: Sizes) -> Case:
    """Every record freed by the other thread."""
    cache = SlabCache("handed", RECORD, capacity=2 * sizes.ring)

    def give(n: int, handles: Any, positions: Any) -> None:
        ring.give(n, cache, handles, positions)

    def take(n: int, handles: Any, positions: Any) -> int:
        return int(ring.take(n, cache, handles, positions))

    return handed_over(give, take, cache.close, sizes)


def handed_over_by_malloc(sizes: Sizes) -> Case:
    """Every record freed by the other thread."""
    return handed_over(ring.give_malloc, ring.take_malloc, measure.nothing, sizes)


def beside_malloc(sizes: Sizes) -> Table:
    """Return all operations; "malloc" is whatever this process has under that name."""
    beside, seconds = (speed_ratio("cache", "malloc", 1.0),), sizes.seconds * 0.4
    rows = {"pair": Row({"malloc": pair_of_malloc, "cache": pair_of_cache, FLOOR: pair_of_stack}, beside, seconds=seconds)}
    for live in sizes.peer_lives:
        rows[f"churn {live:,}, set-up counted in"] = Row(
            {
                "malloc": partial(churn_of_malloc, live),
                "cache": partial(churn_of_cache, loops.churn, live),
                "new()": partial(churn_of_cache, loops.churn_new, live),
                FLOOR: partial(churn_of_stack, live),
            },
            (*beside, speed_ratio("new()", "malloc", 1.0)),
            seconds=seconds,
        )
    rows[f"{sizes.batch:,} allocs, each a call"] = Row(
        {"malloc": allocs_of_malloc, "cache": allocs_of_cache, FLOOR: allocs_of_stack}, beside, seconds=seconds
    )
    if (batch_alloc := allocators.batch_alloc()) is not None:
        contenders = {"malloc": partial(batch_of_malloc, batch_alloc), "cache": batch_of_cache}
        rows[BY_ONE_CALL.format(sizes.batch)] = Row(contenders, beside, seconds=seconds)
    sides = {"malloc": frees_of_malloc, "cache": frees_of_cache, FLOOR: frees_of_stack}
    for text, order in (("in order", in_order), ("in reverse", in_reverse), ("in random order", at_random)):
        contenders = {side: partial(frees, order) for side, frees in sides.items()}
        rows[f"{sizes.batch:,} frees {text}, each a call"] = Row(contenders, beside, seconds=seconds)
    rows["pair, by two threads"] = Row({"malloc": pairs_of_malloc, "cache": pairs_of_cache}, beside, seconds=seconds)
    live = sizes.churn_live
    contenders = {"malloc": partial(churns_of_malloc, live), "cache": partial(churns_of_cache, live)}
    rows[f"churn {live:,}, by two threads, set-up counted in"] = Row(contenders, beside, seconds=seconds)
    contenders = {"malloc": handed_over_by_malloc, "cache": handed_over_by_cache}
    rows["each record freed by the other thread"] = Row(contenders, beside, seconds=seconds)
    return rows
