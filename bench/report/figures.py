"""
What the results say: ratios of one direction, a summary by peer, what is behind.

Below `sections`, `charts` and `run`.  Everything comes from the files of bench/results; nothing is measured here, and nobody
types a number.
The text of a figure "A / B" is a ratio of times: where it is to be at least something, B is ours; otherwise A is.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"

TITLES = {
    "alloc": "One cache, in compiled code",
    "peers": "C allocators",
    "kernels": "Workloads of allocator benchmarks",
    "replay": "Traces of real programs",
    "memory": "Memory of traces",
    "threads": "Two threads",
    "nodes": "NUMA",
    "numba": "What Numba has",
    "python": "What Python has",
    "guard": "Guards",
    "access": "Access and iteration",
    "links": "Links",
    "bulk": "Bulks",
    "containers": "Containers of Rust and C++",
    "pool": "Pools",
    "start": "Start",
}  # of the suites, in the order in which a reader meets them
GROUPS = {
    "C allocators, called from compiled code": ("peers", "kernels", "replay", "threads"),
    "What Numba has": ("numba",),
    "What Python has": ("python", "guard"),
    "Bulks: DPDK": ("bulk",),
    "Containers of Rust and C++": ("containers",),
    "Stacks and arrays made by hand": ("alloc", "access", "links", "nodes"),
    "Stores on disk and in persistent memory": ("pool",),
}  # of the summary; a suite that no group has is one of its own
HEADLINES = (
    ("a record: alloc, write, free, in compiled code", "alloc", "pair", "cache"),
    ("the same on a bare stack of slots that checks nothing", "alloc", "pair", "bare stack"),
    ("one of 100,000 records at random: free, alloc, write", "alloc", "churn 100,000", "cache"),
    ("alloc and free from Python", "python", "alloc + free", "c.free(c.alloc())"),
    ("two `object()`", "python", "alloc + free", "object(); object()"),
    ("field of a guard, read from Python", "guard", "field read", "o.id"),
    ("a process that imports jitslab and allocs", "start", "fresh process, warm compile cache", "import jitslab, first alloc"),
    ("a process that imports numba", "start", "fresh process, warm compile cache", "import numba"),
    ("a process that compiles everything", "start", "cold compile of everything", "warmup()"),
    ("metadata of a slot", "start", "metadata of 1,000,000 slots, resident", "all"),
)  # (what a reader asks, suite, operation, contender)
SAME = {
    "Slots()": "__slots__ class",
    "Struct()": "ctypes.Structure",
    "zeros((), point)": "np.zeros((), dtype)",
    "pool.give(pool.take())": "pool on a list",
    "two object()": "object()",
    "glibc malloc": "glibc",
    "the faster rte_mempool": "rte_mempool",
    "rec[5].id": "np.recarray",
    "rec[5].id = 5": "np.recarray",
}  # names that a row has for a peer that other rows name otherwise
OURS = ("cache", "cache[h]", "jitslab", "allowed")  # what else of ours a row compares with
TIMES = ("ns", "µs", "ms", "s", "times")
BYTES = ("bytes", "KiB", "MiB")

PEERS_HEAD = ("group", "beside", "operations", "typical", "range", "behind in")

Content = dict[str, Any]  # of a results file


@dataclass(frozen=True)
class Ratio:
    """How many times as fast (as small) as a peer ours is: above 1 is ahead."""

    suite: str
    operation: str
    peer: str
    ours: str
    value: float
    best: float  # of the best times
    rounds: float  # median of the rounds
    target: float | None  # the same way round
    met: bool | None
    unit: str  # of the row
    is_floor: bool  # the other side does less work: only how far behind counts
    is_mean: bool = False  # of other rows, which count already


@dataclass(frozen=True)
class Missed:
    """A figure that did not reach its target."""

    suite: str
    operation: str
    figure: dict[str, Any]


def load(sizes: str = "full", folder: Path = RESULTS) -> dict[str, Content]:
    """Return the results of all suites, in the order of `TITLES`."""
    end = "" if sizes == "full" else f"-{sizes}"
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if content["sizes"] == sizes and path.stem == content["suite"] + end:
            found[content["suite"]] = content
    order = [*TITLES, *sorted(set(found) - set(TITLES))]
    return {suite: found[suite] for suite in order if suite in found}


def ratio_of(suite: str, row: dict[str, Any], figure: dict[str, Any]) -> Ratio | None:
    """Return a figure as a ratio; None if it is something else."""
    text, at_least, limit = figure["figure"], figure["sense"] == "at least", figure["target"]
    if figure["unit"] or text.count(" / ") != 1 or text.startswith("scaling") or row["unit"] not in TIMES + BYTES:
        return None
    over, under = text.split(" / ")
    ours, peer = (under, over) if at_least else (over, under)
    values = [figure["measured"], figure["of_best"], figure["of_rounds"]]
    if peer in OURS or not all(value > 0 and math.isfinite(value) for value in values):
        return None
    if not at_least:
        values = [1 / value for value in values]
    target = limit if limit is None or at_least else 1 / limit
    is_floor = target is None or target < 1
    place = suite, row["operation"].split(", beside ")[0], SAME.get(peer, peer), ours
    return Ratio(*place, *values, target, figure["met"], row["unit"], is_floor, not row["contenders"])


def ratios(results: dict[str, Content]) -> list[Ratio]:
    """Return all ratios."""
    pairs = ((suite, row, figure) for suite, found in results.items() for row in found["rows"] for figure in row["figures"])
    return [ratio for pair in pairs if (ratio := ratio_of(*pair)) is not None]


def group_of(ratio: Ratio) -> str:
    """Return the group of the summary."""
    if ratio.unit in BYTES:
        return "Memory at its peak"
    if ratio.unit in ("s", "ms"):
        return "First run, compiled"
    return next((group for group, suites in GROUPS.items() if ratio.suite in suites), TITLES.get(ratio.suite, ratio.suite))


def by_peer(found: list[Ratio]) -> dict[tuple[str, str], list[Ratio]]:
    """Return the ratios of each (group, peer), but for floors and means; an operation counts once, by its first figure."""
    table: dict[tuple[str, str], dict[tuple[str, str], Ratio]] = {}
    for group in dict.fromkeys([*GROUPS, *map(group_of, found)]):
        for ratio in found:
            if not ratio.is_floor and not ratio.is_mean and group_of(ratio) == group:
                table.setdefault((group, ratio.peer), {}).setdefault((ratio.suite, ratio.operation), ratio)
    return {place: list(of.values()) for place, of in table.items()}


def typical(values: list[float]) -> float:
    """Return the geometric mean."""
    return math.exp(statistics.fmean(map(math.log, values)))


def number(value: float) -> str:
    """Return a value to two digits behind the point, or four in all."""
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def shown(figure: dict[str, Any]) -> str:
    """Return what was measured."""
    return f"{number(figure['measured'])} {figure['unit']}".strip()


def wanted(figure: dict[str, Any]) -> str:
    """Return what is to be reached."""
    return "shown only" if figure["target"] is None else f"{figure['sense']} {figure['target']:,g}"


def headlines(results: dict[str, Content]) -> list[tuple[str, ...]]:
    """Return (what, best, median) of the figures that a reader asks for first."""
    found = []
    for label, suite, operation, contender in HEADLINES:
        for row in results.get(suite, {"rows": []})["rows"]:
            if row["operation"] == operation and contender in row["contenders"]:
                of = row["contenders"][contender]
                found.append((label, f"{of['min']:.3g} {row['unit']}", f"{of['median']:.3g} {row['unit']}"))
    return found


def summary(found: list[Ratio]) -> list[tuple[str, ...]]:
    """Return (group, peer, number of operations, typical, range, behind) of every peer."""
    lines, last = [], ""
    for (group, peer), of in by_peer(found).items():
        values = [ratio.value for ratio in of]
        behind, mark = sum(value < 1 for value in values), "**" if typical(values) < 1 else ""
        span = f"{number(min(values))} to {number(max(values))}"
        lines.append(
            (
                group if group != last else "",
                peer,
                str(len(of)),
                f"{mark}{number(typical(values))}{mark}",
                span,
                str(behind or "none"),
            )
        )
        last = group
    return lines


def groups(found: list[Ratio]) -> list[tuple[str, ...]]:
    """Return (group, number of peers, from and to of what is typical, operations, behind) of every group of peers."""
    table: dict[str, list[list[float]]] = {}
    for (group, _), of in by_peer(found).items():
        table.setdefault(group, []).append([ratio.value for ratio in of])
    lines = []
    for group, peers in table.items():
        means = sorted(map(typical, peers))
        span = number(means[0]) + (f" to {number(means[-1])}" if len(means) > 1 else "")
        every = [value for values in peers for value in values]
        lines.append((group, str(len(peers)), span, str(len(every)), str(sum(value < 1 for value in every) or "none")))
    return lines


def floors(found: list[Ratio]) -> list[tuple[str, ...]]:
    """Return (group, floor, number of operations, typical, range) of what does less work."""
    table: dict[tuple[str, str], list[float]] = {}
    for ratio in found:
        if ratio.is_floor and ratio.unit not in (*BYTES, "s", "ms"):
            table.setdefault((TITLES.get(ratio.suite, ratio.suite), ratio.peer), []).append(1 / ratio.value)
    many = {key: values for key, values in table.items() if len(values) > 1}
    return [
        (suite, floor, str(len(of)), number(typical(of)), f"{number(min(of))} to {number(max(of))}")
        for (suite, floor), of in many.items()
    ]


def missed(results: dict[str, Content]) -> list[Missed]:
    """Return all figures that did not reach their targets."""
    return [
        Missed(suite, row["operation"], figure)
        for suite, content in results.items()
        for row in content["rows"]
        for figure in row["figures"]
        if figure["met"] is False
    ]


def allocators(results: dict[str, Content]) -> dict[str, str]:
    """Return the versions of the C allocators that were measured."""
    return {name: version for content in results.values() for name, version in content.get("allocators", {}).items()}


def skipped(results: dict[str, Content]) -> list[str]:
    """Return a line for every contender that the machine did not have."""
    found = {f"{name}: {why}" for content in results.values() for row in content["rows"] for name, why in row["skipped"].items()}
    found |= {f"{name}: {why}" for content in results.values() for name, why in content.get("skipped", {}).items()}
    return sorted(found)
