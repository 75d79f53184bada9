"""
Batches taken and given back: `alloc_many` and `free_many` beside bulk get and put of DPDK's `rte_mempool`.

The parameters are those of DPDK's test_mempool_perf: so many objects a call, so many kept before they are given back in the
order in which they came.  Nothing is written to the objects.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

import measure
from jitslab import SlabCache
from loops import cache as loops
from loops import floor
from loops.heaps import Heap
from measure import RECORD, Case, Figure, Row, Sizes, Table, ratio
from peers import native

BULKS = (1, 4, 8, 32, 128, 256)
KEEPS = (32, 128, 512, 2_048, 8_192, 32_768)
FEW_KEEPS = (32, 512, 32_768)  # of a quick run
CAPACITY = 65_535  # objects of every pool
MEMORY = 128  # MiB, for the pools of DPDK


# --- Contenders ---


def repeats_of(keep: int, sizes: Sizes) -> int:
    """How often so many objects are taken and given back in a run: runs are short, for few of them to be interrupted."""
    return max(1, sizes.ops // 10 // keep)


def all_back(held: Any, expected: int, freed: int) -> bool:
    """Whether every object was given back, and none was held twice."""
    return freed == expected and np.unique(held).size == held.size


def case_of(loop: Callable[[int], int], held: Any, repeats: int, **more: Any) -> Case:
    """Return the case of a loop in this process, which is told how often; its first turn is not timed."""

    def before() -> None:
        native.rest()
        loop(1)

    return Case(partial(loop, repeats), repeats * held.size, partial(all_back, held, repeats * held.size), before, **more)


def many(bulk: int, keep: int, sizes: Sizes) -> Case:
    """`alloc_many` and `free_many`."""
    slab, held, repeats = SlabCache("bulk", RECORD, capacity=CAPACITY), np.zeros(keep, np.int64), repeats_of(keep, sizes)
    loop = partial(loops.in_bulks, slab, held.reshape(-1, bulk))
    return case_of(loop, held, repeats, close=slab.close)


def single(keep: int, sizes: Sizes) -> Case:
    """`alloc` and `free`, which take no batch."""
    slab, held, repeats = SlabCache("bulk", RECORD, capacity=CAPACITY), np.zeros(keep, np.int64), repeats_of(keep, sizes)
    loop = partial(loops.one_by_one, slab, held)
    return case_of(loop, held, repeats, close=slab.close)


def stack(bulk: int, keep: int, sizes: Sizes) -> Case:
    """A bare stack of slots."""
    heap, held, repeats = Heap("stack", CAPACITY).loop, np.zeros(keep, np.int64), repeats_of(keep, sizes)
    loop = partial(floor.in_bulks, heap.slots, heap.top, held, bulk)
    return case_of(loop, held, repeats)


def generations(bulk: int, keep: int, sizes: Sizes) -> Case:
    """A stack of slots with generations, which refuses stale handles."""
    heap, held, repeats = Heap("generations", CAPACITY).loop, np.zeros(keep, np.int64), repeats_of(keep, sizes)
    loop = partial(floor.in_bulks_checked, heap.slots, heap.top, heap.generations, held, bulk)
    return case_of(loop, held, repeats)


@cache
def pools() -> native.Peer:
    """Start DPDK's pools, once: two of them, one with a cache for each core."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    quiet = ("--no-pci", "--no-telemetry", "--log-level=error")
    peer = native.Peer(native.mempool(), "--no-huge", "--no-shconf", "-m", MEMORY, *quiet, "--lcores", f"0@({cores})")
    atexit.register(peer.close)
    return peer


def mempool(cached: int, bulk: int, keep: int, sizes: Sizes) -> Case:
    """Bulk get and put of a mempool in a process of its own, with a cache for each core or without one."""
    peer, repeats = pools(), repeats_of(keep, sizes)

    def run() -> tuple[float, list[int]]:
        taken, *answer = peer.ask(cached, bulk, keep, repeats)
        return taken / 1e9, answer

    return Case(run, repeats * keep, partial(list.__eq__, [keep, 0]), measures=True)


POOLS = {"rte_mempool": 1, "without cache": 0}


def table(sizes: Sizes) -> Table:
    """Return all operations: a bulk and what is kept."""
    faster = Figure("the faster rte_mempool / cache", lambda t: min(t[name] for name in POOLS) / t["cache"], 1.0, at_least=True)
    figures = (faster, ratio("cache", "bare stack"), ratio("cache", "generations"))
    keeps = KEEPS if sizes is measure.FULL else FEW_KEEPS
    rows = {}
    for bulk, keep in ((bulk, keep) for bulk in BULKS for keep in keeps if bulk <= keep):
        contenders = {
            **{name: partial(mempool, cached, bulk, keep) for name, cached in POOLS.items()},
            "bare stack": partial(stack, bulk, keep),
            "generations": partial(generations, bulk, keep),
            "cache": partial(many, bulk, keep),
        }
        if bulk == 1:
            contenders["alloc()"] = partial(single, keep)
        rows[f"bulk {bulk}, keep {keep:,}"] = Row(contenders, figures, seconds=sizes.seconds / 3)
    return rows
