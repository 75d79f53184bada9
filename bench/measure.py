"""
How everything here is measured: contenders side by side in interleaved rounds, answers verified, minima compared.

Below every other file of bench.  A table is ``{operation: Row}``, a row ``{contender: setup}``; the same table feeds the tests
of `conftest.py` (answers, and pytest-benchmark) and `run.py` (`measure`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

RECORD = np.dtype([("x", "i8"), ("pad", "u1", (56,))])  # 64 bytes: one line of the CPU's cache
PAGE_RECORD = np.dtype([("x", "i8"), ("pad", "u1", (4088,))])  # 4,096 bytes: aliases without the odd-line stride


@dataclass(frozen=True)
class Sizes:
    """All sizes and seeds of a run."""

    name: str
    seconds: float  # spent on a row, set-up apart
    least: int  # rounds of a row, whatever they take
    most: int  # rounds of a row, however short they are
    ops: int  # operations of a timed loop
    far_ops: int  # the same where most of them miss the CPU's caches
    lives: tuple[int, ...]  # live records of the churns
    peer_lives: tuple[int, ...]  # the same beside the C allocators, which are set up anew in every round
    batch: int  # records of a batch
    nodes: int  # of a linked list
    accessed: tuple[int, ...]  # live records of the access loops
    hot_slabs: int  # slabs with one hot record each
    hot_records: int  # hot records of a page each
    sweeps: int  # over the hot records
    handed: int  # records handed from thread to thread
    thread_ops: int  # of private use: long beside the start of a thread
    ring: int = 4096  # handles in flight between two threads
    churn_live: int = 10_000  # live records of each thread
    repeats: int = 5  # of private pairs after each phase of cross-thread frees
    calls: int = 100_000  # from Python
    caches: int = 10_000  # open at once
    cache_capacity: int = 1_000
    leaves: int = 50_000  # of the tree
    messages: int = 400_000  # to the hash table, and to the order book
    particles: int = 20_000
    seed: int = 20_010_625

    def rng(self) -> np.random.Generator:
        """Return a generator that starts at the seed."""
        return np.random.default_rng(self.seed)


POWERS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
FULL = Sizes(
    "full", 6.0, 5, 60, 1_000_000, 3_000_000, POWERS, (1_000, 100_000, 2_000_000), 1_000_000, 100_000, (100_000, 1_000_000),
    400, 512, 200, 1_000_000, 4_000_000,
)  # fmt: skip
QUICK = Sizes(
    "quick", 0.25, 2, 20, 500_000, 1_000_000, POWERS[:4], (1_000, 100_000), 300_000, 100_000, (100_000,),
    400, 512, 50, 300_000, 2_000_000, caches=1_000, leaves=20_000, messages=100_000,
)  # fmt: skip
SMOKE = Sizes(
    "smoke", 0.0, 1, 1, 5_000, 5_000, (1_000, 10_000), (1_000,), 10_000, 1_000, (1_000,), 20, 32, 2, 5_000, 5_000, 256, 100,
    calls=100, caches=20, leaves=500, messages=3_000, particles=300,
)  # fmt: skip
SIZES = {sizes.name: sizes for sizes in (FULL, QUICK, SMOKE)}


def python_path() -> str:
    """Return the PYTHONPATH of a process that imports files of bench: this folder before what it was."""
    return os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])


class SkippedError(Exception):
    """A contender that this machine does not have; the message says how to get it."""


class WrongAnswerError(Exception):
    """A contender whose loop answered wrongly: its time means nothing."""


def nothing() -> None:
    """Do nothing, before or after a run."""


def is_true(answer: Any) -> bool:
    """Take the answer for its own verdict."""
    return bool(answer)


@dataclass
class Case:
    """One contender, ready to run; only `run` is timed."""

    run: Callable[[], Any]
    ops: float = 1  # operations of a run
    verify: Callable[[Any], bool] = is_true  # whether what `run` answered is right
    before: Callable[[], object] = nothing
    after: Callable[[], object] = nothing
    close: Callable[[], object] = nothing
    measures: bool = False  # `run` returns (what it measured, answer); times are in seconds
    scale: float = 1e9  # units of the row in one second, or in one of what `run` measured

    def once(self) -> float:
        """Run once; returns units an operation."""
        self.before()
        start = time.perf_counter()
        answer = self.run()
        taken = time.perf_counter() - start
        if self.measures:
            taken, answer = answer
        self.after()
        if not self.verify(answer):
            raise WrongAnswerError(f"answered {answer!r}")
        return taken * self.scale / self.ops


Setup = Callable[[Sizes], Case]


@dataclass(frozen=True)
class Figure:
    """A figure to reach, computed from the times of a row."""

    text: str
    compute: Callable[[dict[str, float]], float]
    limit: float | None = None  # None: shown, not judged
    at_least: bool = False
    by_round: bool = False  # the median of what each round gives, not of the best times
    unit: str = ""

    def judge(self, times: dict[str, list[float]]) -> dict[str, Any] | None:
        """Return the figure as JSON; None if a contender is missing."""
        try:
            of_best = self.compute({name: min(values) for name, values in times.items()})
            rounds = [self.compute(dict(zip(times, one, strict=True))) for one in zip(*times.values(), strict=True)]
        except KeyError:
            return None
        lower, of_rounds, upper = np.percentile(rounds, (25, 50, 75)).tolist()
        value = of_rounds if self.by_round else of_best
        met = None if self.limit is None else bool(value >= self.limit if self.at_least else value <= self.limit)
        found = {"figure": self.text, "measured": value, "of_best": of_best, "unit": self.unit}
        found |= {"of_rounds": of_rounds, "lower": lower, "upper": upper}
        return found | {"sense": "at least" if self.at_least else "at most", "target": self.limit, "met": met}


def ratio(over: str, under: str, limit: float | None = None, **more: Any) -> Figure:
    """How many times as long `over` takes as `under`."""
    return Figure(f"{over} / {under}", lambda t: t[over] / t[under], limit, **more)


def speed_ratio(fast: str, slow: str, limit: float | None = None, **more: Any) -> Figure:
    """How many times as fast `fast` is as `slow`; at least the limit."""
    return Figure(f"{slow} / {fast}", lambda t: t[slow] / t[fast], limit, at_least=True, **more)


@dataclass(frozen=True)
class Row:
    """One operation, its contenders, and the figures to reach."""

    contenders: dict[str, Setup]
    figures: tuple[Figure, ...] = ()
    unit: str = "ns"
    most: int | None = None  # rounds, where one is long
    seconds: float | None = None  # spent, where rounds are long or noisy


Table = dict[str, Row]


def spread(values: list[float]) -> dict[str, float]:
    """Return best, quartiles, worst and number of the rounds' times."""
    lower, median, upper = np.percentile(values, (25, 50, 75)).tolist()
    return {"min": min(values), "lower": lower, "median": median, "upper": upper, "max": max(values), "rounds": len(values)}


@dataclass
class Measured:
    """The times of a row."""

    operation: str
    row: Row
    times: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return what a results file holds of it."""
        contenders = {name: spread(values) for name, values in self.times.items()}
        figures = [figure for f in self.row.figures if (figure := f.judge(self.times)) is not None]
        names = {"operation": self.operation, "unit": self.row.unit}
        return {**names, "contenders": contenders, "figures": figures, "skipped": self.skipped}


def set_up(setup: Setup, sizes: Sizes) -> Case | SkippedError:
    """Return a contender ready to run, or why this machine does not have it."""
    try:
        return setup(sizes)
    except SkippedError as why:
        return why


def measure(operation: str, row: Row, sizes: Sizes) -> Measured:
    """Measure a row: all contenders in turn, again and again."""
    measured, cases = Measured(operation, row), {}
    try:
        for name, setup in row.contenders.items():
            case = set_up(setup, sizes)
            if isinstance(case, SkippedError):
                measured.skipped[name] = str(case)
            else:
                cases[name] = case
        if row.most != 1:
            for case in cases.values():  # compiles, and touches memory
                case.once()
        measured.times = {name: [] for name in cases}
        seconds = sizes.seconds if row.seconds is None else min(row.seconds, 5 * sizes.seconds)
        most = sizes.most if row.most is None else min(row.most, sizes.most)
        start, rounds = time.perf_counter(), 0
        while cases and rounds < most and (rounds < sizes.least or time.perf_counter() - start < seconds):
            for name, case in cases.items():
                measured.times[name].append(case.once())
            rounds += 1
    finally:
        for case in cases.values():
            case.close()
    return measured
