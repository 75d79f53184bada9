"""
Memory of mixed sizes: an allocator by size beside C allocators on the events of a trace of malloc, time and peak memory.

The trace is the file that JITSLAB_MALLOC_TRACE names, or one made here: lives and sizes as a program's, most small and short.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import measure
import peer
from jitslab import peak, replay, trace
from measure import Case, Figure, Row, Sizes, Table

WORKER = (
    "import json, sys; from jitslab import replay, trace; from bench_sizes import times; print(json.dumps(times(*sys.argv[1:])))"
)


@cache
def trace_path(n: int) -> str:
    """Return the file of the trace."""
    given = os.environ.get("JITSLAB_MALLOC_TRACE")
    if given:
        return given
    path = Path(tempfile.mkdtemp()) / "made.npz"
    trace.save(path, make_trace(n))
    return str(path)


def make_trace(n: int, seed: int = 7) -> trace.Trace:
    """Return a trace of n allocs: sizes are log-normal, every other object dies young."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(np.exp(rng.normal(4, 1.2, n)), 1, 1 << 17).astype(np.uint32)
    life = np.where(rng.random(n) < 0.6, rng.integers(1, 20, n), rng.integers(1, 60_000, n))
    when = np.concatenate([np.arange(n) * 1.0, np.arange(n) + life + 0.5])
    events = np.zeros(2 * n, trace.EVENT)
    events["obj"] = np.tile(np.arange(n, dtype=np.uint32), 2)
    events["op"][n:] = trace.FREE
    events["size"][:n] = sizes
    events["cache"] = trace.NO_CACHE
    return trace.Trace(np.zeros(0, trace.CACHE), events[np.argsort(when, kind="stable")])


def times(path: str, rounds: str) -> dict[str, Any]:
    """Return nanoseconds an event of the best pass of each side, passes in turn; and whether all stamps were there."""
    with replay.MallocReplay(trace.load(path)) as run:
        passes = [(run.slabs(), run.malloc()) for _ in range(int(rounds) + 1)][1:]
    return {
        "jitslab": min(ours.ns for ours, _ in passes),
        "malloc": min(theirs.ns for _, theirs in passes),
        "mismatches": sum(each.mismatches for pair in passes for each in pair),
        "libraries": peer.loaded_libraries(),
    }


def beside(allocator: str, sizes: Sizes) -> Case:
    """How many times as long the allocator's events take as ours, both in one process, in turn."""
    around = peer.environment(allocator)

    def run() -> tuple[float, bool]:
        command = [sys.executable, "-c", WORKER, trace_path(sizes.batch), "40" if sizes.least > 2 else "3"]
        found = json.loads(subprocess.run(command, env=around, stdout=subprocess.PIPE, text=True, check=True).stdout)
        peer.check_preloaded(allocator, found["libraries"])
        return found["malloc"] / found["jitslab"], found["mismatches"] == 0

    return Case(run, measures=True, scale=1)


def peak_beside(classes: int, sizes: Sizes) -> Case:
    """How many times the peak memory of glibc's malloc ours is; each in a process of its own, every byte written."""

    def run() -> tuple[float, bool]:
        loaded = trace.load(trace_path(sizes.batch))
        ours, theirs = peak.peak_bytes(loaded, "jitslab", classes=classes), peak.peak_bytes(loaded, "malloc")
        return ours / theirs, min(ours, theirs) > 0

    return Case(run, measures=True, scale=1)


def table(sizes: Sizes) -> Table:
    """Return all operations."""
    most = 3 if sizes.least > 2 else 1
    speed: dict[str, Any] = {name: partial(beside, name) for name in peer.ALLOCATORS}
    best = Figure(
        "best C allocator / jitslab",
        lambda t: min(t[name] for name in t if name != "glibc"),
        1 / 1.5,
        at_least=True,
        by_round=True,
    )
    glibc = Figure("glibc / jitslab", lambda t: t["glibc"], 1.0, at_least=True, by_round=True)
    peaks = {"fixed classes": partial(peak_beside, 0), "24 tuned classes": partial(peak_beside, 24)}
    return {
        "mixed sizes, events of a trace of malloc": Row(speed, (glibc, best), unit="times", most=most),
        "mixed sizes, peak memory": Row(
            peaks,
            tuple(Figure(f"{name} / glibc", lambda t, name=name: t[name], 1.1, by_round=True) for name in peaks),
            unit="times",
            most=most,
        ),
    }


@pytest.mark.parametrize(("operation", "contender"), measure.names(table))
def test_answer_is_right(operation: str, contender: str) -> None:
    """No memory held anything but its own stamp."""
    measure.check_answer(table, operation, contender)


@pytest.mark.parametrize(("operation", "contender"), measure.names(table))
def test_speed(benchmark: Any, operation: str, contender: str) -> None:
    """Time of the process; for ratios, see run.py."""
    measure.speed(benchmark, table, operation, contender)
