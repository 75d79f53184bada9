"""
Two threads on two cores: how private use scales, beside the same on bare stacks; and every record freed by the other.

Needs two cores that have nothing else to do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import measure
from bench_peers import handed_over
from jitslab import SlabCache
from loops import cache, records, ring
from loops.heaps import Heap
from measure import RECORD, Case, Figure, Row, Sizes, Table, speed_ratio

SPARE = 100
Job = Callable[[], Any]


class Stacks:
    """A bare stack for each of two threads: what they share is the machine."""

    def __init__(self, sizes: Sizes, live: int) -> None:
        self.sizes, self.order = sizes, sizes.rng().integers(0, max(live, 1), sizes.thread_ops)
        self.own = [(Heap("stack", live + SPARE), np.empty(live, np.int32)) for _ in range(2)]
        for heap, held in self.own:
            records.fill(heap.loop, held)

    def pair(self, i: int) -> Job:
        """Return the private pairs of thread i."""
        return lambda: records.pair(self.own[i][0].loop, self.sizes.thread_ops) == 0

    def churn(self, i: int) -> Job:
        """Return the private churn of thread i."""
        heap, held = self.own[i]
        return lambda: records.churn(heap.loop, held, self.order) is None


class Shared:
    """One cache that two threads use, and the phases that they go through before they are measured."""

    def __init__(self, sizes: Sizes, live: int) -> None:
        self.sizes, self.live = sizes, live
        self.order = sizes.rng().integers(0, max(live, 1), sizes.thread_ops)
        self.cache: Any = None
        self.open()

    def open(self) -> None:
        """Start with a fresh cache."""
        self.close()
        self.cache = SlabCache("shared", RECORD, capacity=2 * (self.live + self.sizes.handed + self.sizes.ring))
        self.held = [np.empty(self.live, np.int64) for _ in range(2)]
        self.moved = [np.empty(self.sizes.handed // 10, np.int64) for _ in range(2)]

    def close(self) -> None:
        """Close the cache."""
        if self.cache is not None:
            self.cache.close()

    def pair(self, i: int) -> Job:
        """Return the private pairs of thread i."""
        return lambda: records.pair(self.cache, self.sizes.thread_ops) != 0 and self.cache.faults == 0

    def churn(self, i: int) -> Job:
        """Return the private churn of thread i: the records are its own from the start."""
        return lambda: records.churn(self.cache, self.held[i], self.order) is None and self.cache.faults == 0

    def fill(self, team: ring.Team) -> None:
        """Let each thread alloc its own records."""
        team.run(*(partial(records.fill, self.cache, held) for held in self.held))

    def cross(self, team: ring.Team) -> None:
        """Let every record be freed by the other thread: handed over there, back, then in batches both ways at once."""
        n, refs = self.sizes.handed // 10, np.zeros(self.sizes.ring, np.int64)
        for swap in (False, True):
            positions = ring.new_positions()
            jobs = [partial(loop, self.cache, n, refs, positions) for loop in (ring.send, ring.receive)]
            team.run(*(reversed(jobs) if swap else jobs))
        team.run(*(partial(cache.alloc_each, self.cache, moved) for moved in self.moved))
        team.run(*(partial(records.free_each, self.cache, moved) for moved in reversed(self.moved)))


def private(make: Any, loop: str, live: int, threads: int, sizes: Sizes) -> Case:
    """Private use by one thread or two: nobody ever freed a record of another."""
    team, mine = ring.Team(), make(sizes, live)
    is_cache = isinstance(mine, Shared)

    def before() -> None:
        if is_cache:
            mine.open()
            if live:
                mine.fill(team)

    run, close = on_team(lambda: team, mine, loop, threads, 1)

    def stop() -> None:
        team.close()
        close()

    return Case(run, sizes.thread_ops * threads, before=before, close=stop, measures=True)


def after_cross_frees(is_same: bool, threads: int, sizes: Sizes) -> Case:
    """Private pairs of two threads after all records were freed by the other one: the least time of each phase."""
    mine, teams = Shared(sizes, 0), [ring.Team()]

    def before() -> None:
        mine.open()
        mine.cross(teams[0])
        if not is_same:
            teams.pop().close()
            teams.append(ring.Team())

    run, close = on_team(lambda: teams[0], mine, "pair", threads, sizes.repeats)

    def stop() -> None:
        teams.pop().close()
        close()

    return Case(run, sizes.thread_ops * threads, before=before, close=stop, measures=True)


def on_team(team: Callable[[], ring.Team], mine: Any, loop: str, threads: int, repeats: int) -> tuple[Job, Job]:
    """Return (run, close): the loop of one thread or of both."""

    def run() -> tuple[float, bool]:
        jobs = [getattr(mine, loop)(0), getattr(mine, loop)(1) if threads == 2 else partial(bool, 1)]
        found = [team().run(*jobs) for _ in range(repeats)]
        return min(seconds for seconds, _ in found), all(all(answers) for _, answers in found)

    return run, getattr(mine, "close", measure.nothing)


def scaling(t: dict[str, float]) -> float:
    """Scaling of the cache over that of the bare stack: how much more two threads do than one."""
    own = t["cache, 1 thread"] / t["cache, 2 threads"]
    return own / (t["bare stack, 1 thread"] / t["bare stack, 2 threads"])


# Which slots a thread has on top differs from phase to phase, and two cores are seldom both quiet: rounds are compared.
SCALING = Figure("scaling, cache / bare stack", scaling, 0.9, at_least=True, by_round=True)


def table(sizes: Sizes) -> Table:
    """Return all operations."""

    def stacks(loop: str, live: int) -> dict[str, measure.Setup]:
        return {
            "bare stack, 1 thread": partial(private, Stacks, loop, live, 1),
            "bare stack, 2 threads": partial(private, Stacks, loop, live, 2),
        }

    def fresh(loop: str, live: int) -> Row:
        contenders = stacks(loop, live) | {
            "cache, 1 thread": partial(private, Shared, loop, live, 1),
            "cache, 2 threads": partial(private, Shared, loop, live, 2),
        }
        return Row(contenders, (SCALING,), most=200, seconds=10.0)

    def crossed(is_same: bool) -> Row:
        contenders = stacks("pair", 0) | {
            "cache, 1 thread": partial(after_cross_frees, is_same, 1),
            "cache, 2 threads": partial(after_cross_frees, is_same, 2),
        }
        return Row(contenders, (SCALING,), most=60, seconds=10.0)

    live = min(sizes.churn_live, sizes.thread_ops)
    return {
        "private pairs, fresh cache": fresh("pair", 0),
        f"private churn {live:,}, fresh cache": fresh("churn", live),
        "private pairs after cross-thread frees, same threads": crossed(True),
        "private pairs after cross-thread frees, new threads": crossed(False),
        "each record freed by the other thread": Row(
            {"glibc malloc": partial(handed_over, "malloc"), "cache": partial(handed_over, "cache")},
            (speed_ratio("cache", "glibc malloc", 1.0),),
        ),
    }
