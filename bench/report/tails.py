"""
What the stress loops tell beside their times: the latency of laps, and memory; as lines of tables, and summed up.

Above `figures`, below `sections`.  Of a row beside an allocator, "latency" is {side: {share: ns}}, "memory" {side: {when: MiB}}.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from report.figures import Content, number, typical

OURS = "jitslab"
SHARES = ("p50", "p99", "p99.9", "max")
MEMORY = ("opened", "peak", "settled", "trimmed")
SUMMED = MEMORY[1:]  # what is opened is address space, and the pages of a new allocator
Line = tuple[str, ...]


def loop_of(row: dict[str, Any]) -> tuple[str, str]:
    """Return the loop of a row, and the threads and the allocator that it is beside."""
    loop, threads, beside = row["operation"].split(", ", 2)
    return loop, f"{beside.removeprefix('beside ')}, {threads}"


def sides(row: dict[str, Any], what: str) -> dict[str, dict[str, float]]:
    """Return what was found of each side."""
    return {side: found for side, found in (row.get(what) or {}).items() if isinstance(found, dict)}


def lines(content: Content, what: str, names: tuple[str, ...], text: Callable[[float], str]) -> list[Line]:
    """Return (operation, side, a number for each name) of every row that has them."""
    return [
        (row["operation"], side, *(text(found[name]) for name in names))
        for row in content["rows"]
        for side, found in sides(row, what).items()
    ]


def latencies(content: Content) -> list[Line]:
    """Return (operation, turns of a lap, side, nanoseconds of each share)."""
    laps = {row["operation"]: row["latency"]["lap"] for row in content["rows"] if row.get("latency")}
    return [(line[0], laps[line[0]], *line[1:]) for line in lines(content, "latency", SHARES, lambda n: f"{n:,.0f}")]


def memories(content: Content) -> list[Line]:
    """Return (operation, side, MiB at each time)."""
    return lines(content, "memory", MEMORY, lambda n: f"{n:.2f}")


def summed(content: Content) -> list[Line]:
    """
    Return a line for every allocator and number of threads: (allocator, threads, loops, latencies, memory).

    Latencies are geometric means over the loops of the other's through ours; memory is that of all loops, "ours / its" in MiB.
    """
    table: dict[str, list[dict[str, Any]]] = {}
    for row in content["rows"]:
        if row.get("latency"):
            table.setdefault(loop_of(row)[1], []).append(row)
    found = []
    for place, rows in table.items():
        peer, threads = place.rsplit(", ", 1)
        latency = [sides(row, "latency") for row in rows]
        memory = [sides(row, "memory") for row in rows if sides(row, "memory")]
        means = [typical([each[peer][share] / each[OURS][share] for each in latency]) for share in SHARES]
        totals = [tuple(math.fsum(each[side][when] for each in memory) for side in (OURS, peer)) for when in SUMMED]
        marked = (f"**{number(mean)}**" if mean < 1 else number(mean) for mean in means)
        taken = (f"{ours:.0f} / {its:.0f}" if memory else "" for ours, its in totals)
        found.append((peer, threads.split()[0], str(len(rows)), *marked, *taken))
    return found
