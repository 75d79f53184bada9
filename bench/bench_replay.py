"""
Traces of real programs, replayed: `jitslab replay` of the kernel's, as a user runs it, and all traces beside all C allocators.

Both sides run the same events in one compiled loop, stamp every record and verify it before it is freed.  Kernel traces run on
a cache for each of the kernel's; those of malloc on an allocator by size.
"""

from __future__ import annotations

import json
from functools import partial

import measure
from bench_start import python
from jitslab.replay import replay
from measure import Case, Figure, Row, Sizes, Table
from peers import traces

SECONDS = 1.2  # of a row beside malloc: a pass takes some hundredths of one


def command(key: str, threads: int, sizes: Sizes) -> Case:
    """Replay in a fresh process: how many times as fast as malloc it is."""

    def run() -> tuple[float, bool]:
        found = json.loads(python("-m", "jitslab", "replay", "--json", "--threads", str(threads)))
        return found["ratio"][key], found["mismatches"] == 0 and found["events"] > 0

    return Case(run, measures=True, scale=1)


def table(sizes: Sizes) -> Table:
    """Return the rows of the command."""
    rows: Table = {}
    for threads, limit in ((1, 2.0), (2, 1.0)):
        times = {"later passes": partial(command, "later", threads), "first pass": partial(command, "first", threads)}
        figures = (
            Figure("glibc / later passes", lambda t: t["later passes"], limit, at_least=True, by_round=True),
            Figure("glibc / first pass", lambda t: t["first pass"], 1.0, at_least=True, by_round=True),
        )
        rows[f"the command jitslab replay, {traces.named(threads)}"] = Row(
            times, figures, unit="times", most=3 if sizes.least > 2 else 1
        )
    return rows


def passes(side: str, path: str, threads: int, sizes: Sizes) -> Case:
    """Run all events of a trace on one side; memory that is there already, for the first pass is not counted."""
    made = replay.make(traces.load(path), threads)
    one = made.slabs if side == "jitslab" else made.malloc

    def run() -> tuple[float, bool]:
        found = one()
        return found.ns, found.mismatches == 0

    return Case(run, measures=True, scale=1, close=lambda: made.__exit__(None, None, None))


def beside_malloc(sizes: Sizes) -> Table:
    """Return a row for every trace and number of threads; "malloc" is whatever this process has under that name."""
    beside = (measure.speed_ratio("jitslab", "malloc", 1.0),)
    return {
        f"{name}, {traces.named(threads)}": Row(
            {side: partial(passes, side, path, threads) for side in ("malloc", "jitslab")},
            beside,
            seconds=min(SECONDS, sizes.seconds),
        )
        for name, path in traces.paths(sizes.batch, sizes.least > 2).items()
        for threads in traces.threads_of(path)
    }
