"""The main job: the kernel's slab trace that the package carries, replayed beside glibc `malloc` on the same events."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

import measure
from bench_start import python
from measure import Case, Figure, Row, Sizes, Table


def replay(key: str, threads: int, sizes: Sizes) -> Case:
    """Replay in a fresh process: how many times as fast as malloc it is; both stamp and verify every record."""

    def run() -> tuple[float, bool]:
        found = json.loads(python("-m", "jitslab", "replay", "--json", "--threads", str(threads)))
        return found["ratio"][key], found["mismatches"] == 0 and found["events"] > 0

    return Case(run, measures=True, scale=1)


def table(sizes: Sizes) -> Table:
    """Return all operations."""
    rows: Table = {}
    for threads, limit in ((1, 2.0), (2, None)):
        times = {"later passes": partial(replay, "later", threads), "first pass": partial(replay, "first", threads)}
        figures = (
            Figure("malloc / cache, later passes", lambda t: t["later passes"], limit, at_least=True, by_round=True),
            Figure("malloc / cache, first pass", lambda t: t["first pass"], at_least=True, by_round=True),
        )
        rows[f"replay of a kernel trace, {threads} thread{'s' * (threads > 1)}"] = Row(
            times, figures, unit="times", most=3 if sizes.least > 2 else 1
        )
    return rows


@pytest.mark.parametrize(("operation", "contender"), measure.names(table))
def test_answer_is_right(operation: str, contender: str) -> None:
    """No record held anything but its own stamp."""
    measure.check_answer(table, operation, contender)


@pytest.mark.parametrize(("operation", "contender"), measure.names(table))
def test_speed(benchmark: Any, operation: str, contender: str) -> None:
    """Time of the process; for ratios, see run.py."""
    measure.speed(benchmark, table, operation, contender)
