"""
Five data structures' work, the same for all who build them: seeded input, and the answer that plain Python or NumPy finds.

A list, a binary search tree, a hash table with chains, an order book, a bank of particles.  The contenders stand in
`on_cache`, `on_arrays`, `on_objects` and `on_containers`; `structures` gives them what they need, `bench_numba` runs them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cache as cached
from typing import Any

import numpy as np

from measure import Sizes

NODE = np.dtype([("value", "i8"), ("next", "i8")])
LEAF = np.dtype([("key", "i8"), ("value", "i8"), ("left", "i8"), ("right", "i8")])
ENTRY = np.dtype([("key", "i8"), ("value", "i8"), ("next", "i8")])
ORDER = np.dtype([("number", "i8"), ("quantity", "i8"), ("level", "i8"), ("before", "i8"), ("after", "i8")])
PARTICLE = np.dtype([("x", "i8"), ("speed", "i8"), ("seed", "i8"), ("born", "i8")])

DIGEST_MASK = (1 << 48) - 1  # digests stay far from where int64 wraps
DEEPEST = 1_000  # nodes on a path of a tree of random keys: some 60 at a million
LOOKUP, INSERT, REMOVE = 0, 1, 2
BID, ASK, CANCEL = 0, 1, 2
PRICES = 1_000
FACTOR, STEP, CHILD = 6364136223846793005, 1442695040888963407, 0x5DEECE66D  # Knuth's generator; what a child's seed differs by
DEATH, BIRTH = 32, 64  # of 1,024 draws: below DEATH it dies, below BIRTH it splits
TURNS = 20


@dataclass(frozen=True)
class Leaves:
    """Keys of a tree, in the orders of insertion, lookup and deletion; the answers."""

    insert: Any
    look: Any
    delete: Any
    looked_up: int
    walked: int


@cached
def leaves(sizes: Sizes) -> Leaves:
    """Return the work of the tree: key k has the value at which it came."""
    rng, n = sizes.rng(), sizes.leaves
    keys = rng.permutation(4 * n)[:n]
    digest = 0
    for key in np.sort(keys).tolist():
        digest = (digest * 31 + key) & DIGEST_MASK
    return Leaves(keys, rng.permutation(keys), rng.permutation(keys), n * (n - 1) // 2, digest)


@dataclass(frozen=True)
class Mix:
    """Operations on a table of keys, and the answer."""

    buckets: int
    operations: Any
    keys: Any
    answer: int


@cached
def mix(sizes: Sizes) -> Mix:
    """Return the work of the hash table: half of it lookups, half of the keys there once it is warm."""
    rng, n = sizes.rng(), sizes.messages
    buckets = 1 << max(4, n // 24).bit_length()
    universe = rng.integers(1, 1 << 62, 2 * buckets)
    operations, keys = rng.choice([LOOKUP, LOOKUP, INSERT, REMOVE], n), rng.choice(universe, n)
    known: dict[int, int] = {}
    answer = 0
    for i, (operation, key) in enumerate(zip(operations.tolist(), keys.tolist(), strict=True)):
        if operation == LOOKUP:
            answer += known.get(key, 1)
        elif operation == INSERT:
            known[key] = i
        else:
            answer += 3 * known.pop(key, 1)
    return Mix(buckets, operations, keys, answer + len(known))


@dataclass(frozen=True)
class Messages:
    """What an exchange is sent: orders by their number, and cancels of earlier ones; the answer."""

    kinds: Any
    levels: Any  # how eager: of a bid its price, of an ask PRICES - 1 - price; of a cancel the number of an order
    quantities: Any
    answer: int


@cached
def messages(sizes: Sizes) -> Messages:
    """Return the work of the order book: two thirds orders around a middle price, a third cancels, some too late."""
    rng, n = sizes.rng(), sizes.messages
    kinds = rng.choice([BID, ASK, CANCEL], n)
    levels = np.clip(rng.normal(PRICES // 2 - 20, 20, n), 0, PRICES - 1).astype(np.int64)
    cancels = np.flatnonzero(kinds == CANCEL)
    levels[cancels] = np.maximum(0, cancels - rng.integers(1, 2_000, cancels.size))
    quantities = rng.integers(1, 100, n)
    return Messages(kinds, levels, quantities, book_of_python(kinds.tolist(), levels.tolist(), quantities.tolist()))


def book_of_python(kinds: list[int], levels: list[int], quantities: list[int]) -> int:
    """Match all messages, in dictionaries: digest of the trades, the cancels, and what rests in the end."""
    queues: list[list[OrderedDict[int, int]]] = [[OrderedDict() for _ in range(PRICES)] for _ in (BID, ASK)]
    tops, where, digest, cancelled = [-1, -1], {}, 0, 0
    for number, (kind, level, quantity) in enumerate(zip(kinds, levels, quantities, strict=True)):
        if kind == CANCEL:
            queue = where.get(level, {})
            cancelled += queue.pop(level, None) is not None
            continue
        other, left = 1 - kind, quantity
        while left > 0:
            while tops[other] >= 0 and not queues[other][tops[other]]:
                tops[other] -= 1
            if tops[other] < 0 or tops[other] + level < PRICES - 1:
                break
            queue = queues[other][tops[other]]
            first, there = next(iter(queue.items()))
            traded = min(left, there)
            left -= traded
            digest = (digest * 31 + first * 7 + traded) & DIGEST_MASK
            if traded == there:
                del queue[first]
            else:
                queue[first] = there - traded
        if left > 0:
            where[number] = queues[kind][level]
            queues[kind][level][number] = left
            tops[kind] = max(tops[kind], level)
    rest = sum(left for side in queues for queue in side for left in queue.values())
    return digest + cancelled + rest


@cached
def particles(sizes: Sizes) -> int:
    """Return the answer of the bank of particles: places of those alive in the end, and how many."""
    n = np.arange(sizes.particles)
    x, speed, seed = n.copy(), n % 7 - 3, n * FACTOR
    for _ in range(TURNS):
        seed = seed * FACTOR + STEP
        x = x + speed
        draw = seed >> 33 & 1023
        splits, stays = (draw >= DEATH) & (draw < BIRTH), draw >= DEATH
        x, speed, seed = (
            np.concatenate([x[stays], x[splits]]),
            np.concatenate([speed[stays], -speed[splits]]),
            np.concatenate([seed[stays], seed[splits] ^ CHILD]),
        )
    return int(x.sum()) + (x.size << 32)
