"""
Containers with stable keys in other languages: Rust's slab and slotmap, C++'s plf::hive and plf::colony, beside a cache.

Every program is given the same seed and does the same: fills its slots, removes records at random until so many percent are
live, then works on records in random order.  What a key costs to check is its container's affair: slab looks whether the slot is
in use, slotmap and the cache whether the key is stale, an iterator of hive and colony is not checked at all.  A record has 64
bytes, of which one field is written and read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import measure
from jitslab import SlabCache
from loops import access, floor, records
from loops.cache import scan_items
from loops.heaps import Heap
from measure import Case, Row, Setup, Sizes, Table, ratio, speed_ratio
from peers import native

PERCENTS = (10, 50, 100)
SEED = 20_010_625


# --- Contenders ---


class Script:
    """What every contender does, and what it must answer: the records' fields in the order of the keys."""

    def __init__(self, slots: int, percent: int) -> None:
        self.order, state = floor.shuffle(slots, np.uint64(SEED))
        self.live = slots * percent // 100
        self.picks = floor.shuffle(self.live, np.uint64(state))[0][: self.live // 2]
        self.held = self.order[: self.live].copy()
        self.next = slots

    def answer(self, operation: str, repeats: int) -> int:
        """Return the sum of what the operation reads, then of all that is live."""
        if operation in ("get", "iterate"):
            return (repeats + 1) * int(self.held.sum())
        s = 0
        for _ in range(repeats):
            s += int(self.held[self.picks].sum())
            self.held[self.picks] = np.arange(self.next, self.next + self.picks.size)
            self.next += self.picks.size
        return s + int(self.held.sum())


def case_of(operation: str, script: Script, sizes: Sizes, ask: Callable[[int], tuple[int, int]], **more: Any) -> Case:
    """Return the case of a contender that answers (ns, checksum) when told how often to do it."""
    ops = script.live if operation in ("get", "iterate") else script.picks.size
    repeats = max(1, sizes.ops // 20 // ops)  # short, for few runs to be interrupted

    def run() -> tuple[float, int]:
        taken, answer = ask(repeats)
        return taken / 1e9, answer

    return Case(run, ops * repeats, lambda answer: answer == script.answer(operation, repeats + 1), measures=True, **more)


def program(get: Callable[[], Any], words: tuple[str, ...], operation: str, slots: int, percent: int, sizes: Sizes) -> Case:
    """A program of `native`."""
    peer = native.Peer(get(), *words, slots, percent, SEED)

    def ask(repeats: int) -> tuple[int, int]:
        taken, answer = peer.ask(operation, repeats)
        return taken, answer

    return case_of(operation, Script(slots, percent), sizes, ask, close=peer.close)


def timed(operation: str, script: Script, loop: dict[str, Callable[..., Any]], repeats: int) -> tuple[int, int]:
    """Return (ns, checksum) of an operation done so often by compiled loops, and once more before."""
    taken = s = 0
    first = script.next
    for turn in range(repeats + 1):
        if turn == 1:
            taken = 0  # the first turn fetches what it needs
        start = time.perf_counter_ns()
        if operation in ("get", "iterate"):
            s += int(loop[operation]())
            taken += time.perf_counter_ns() - start
            continue
        s += int(loop["remove"]())
        between = time.perf_counter_ns()
        loop["insert"](first)
        taken += between - start if operation == "remove" else time.perf_counter_ns() - between
        first += script.picks.size
    return taken, s + int(loop["iterate"]())


def set_up(heap: Any, slots: int, script: Script) -> Any:
    """Fill all slots, free those that the script has not live; returns the refs of the others."""
    held = np.empty(slots, np.int64)
    records.fill(heap, held)
    records.free_each(heap, held[script.order[script.live :]])
    return held[script.order[: script.live]]


def cache(operation: str, slots: int, percent: int, sizes: Sizes) -> Case:
    """A SlabCache."""
    script, slabs = Script(slots, percent), SlabCache("containers", measure.RECORD, capacity=slots)
    keys = set_up(slabs, slots, script)
    loop = {
        "get": partial(access.read, slabs, keys),
        "iterate": partial(scan_items, slabs),
        "remove": partial(records.remove, slabs, keys, script.picks),
        "insert": partial(records.insert, slabs, keys, script.picks),
    }
    ask = partial(timed, operation, script, loop)
    return case_of(operation, script, sizes, ask, before=native.rest, close=slabs.close)


def bare(operation: str, slots: int, percent: int, sizes: Sizes) -> Case:
    """A bare stack of slots beside an array of records; iteration is that of an array with as many records as are live."""
    script, stack = Script(slots, percent), Heap("stack", slots).loop
    keys, data, dense = set_up(stack, slots, script), stack.records, floor.record_array(script.live)

    def iterate() -> int:
        return int(floor.scan(dense))

    loop = {
        "get": partial(access.read, data, keys),
        "iterate": iterate,
        "remove": partial(floor.remove, *stack, keys, script.picks),
        "insert": partial(records.insert, stack, keys, script.picks),
    }

    def ask(repeats: int) -> tuple[int, int]:
        dense["x"] = data["x"][keys]
        taken, s = timed(operation, script, loop, repeats)
        before = int(dense["x"].sum())
        return taken, s - before + int(data["x"][keys].sum())

    return case_of(operation, script, sizes, ask, before=native.rest)


PROGRAMS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "slab": (native.crates, ("slab",)),
    "slotmap": (native.crates, ("slotmap",)),
    "plf::hive": (partial(native.plf, "hive"), ()),
    "plf::colony": (partial(native.plf, "colony"), ()),
}
FLOORS = {"insert": "bare stack", "remove": "bare stack", "get": "array", "iterate": "array"}


def table(sizes: Sizes) -> Table:
    """Return all operations, at every number of slots and every share that is live."""
    rows = {}
    for slots in sizes.accessed:
        for percent in PERCENTS:
            for operation, lowest in FLOORS.items():
                contenders: dict[str, Setup] = {
                    name: partial(program, get, words, operation, slots, percent) for name, (get, words) in PROGRAMS.items()
                }
                contenders[lowest] = partial(bare, operation, slots, percent)
                contenders["cache"] = partial(cache, operation, slots, percent)
                figures = (*(speed_ratio("cache", name, 1.0) for name in PROGRAMS), ratio("cache", lowest))
                rows[f"{operation}, {percent} % of {slots:,} live"] = Row(contenders, figures, seconds=sizes.seconds / 3)
    return rows
