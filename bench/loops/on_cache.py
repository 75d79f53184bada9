"""The five data structures over a `SlabCache`: records linked by handles; the list stands in `loops`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numba
import numpy as np

from jitslab import SlabCache
from loops import cache as loops
from loops import workload
from loops.workload import BIRTH, CANCEL, CHILD, DEATH, DEEPEST, DIGEST_MASK, FACTOR, INSERT, LOOKUP, PRICES, STEP, TURNS
from measure import Sizes

njit = partial(numba.njit, cache=True, nogil=True)


# --- Binary search tree ---


@njit
def insert(cache, keys):
    """Insert keys, none of them twice: the root."""
    root = 0
    for i in range(keys.size):
        key = keys[i]
        h, leaf = cache.new()
        leaf.key = key
        leaf.value = i
        leaf.left = 0
        leaf.right = 0
        if root == 0:
            root = h
            continue
        at = root
        while True:
            above = cache[at]
            if key < above.key:
                at = above.left
                if at == 0:
                    above.left = h
                    break
            else:
                at = above.right
                if at == 0:
                    above.right = h
                    break
    return root


@njit
def look(cache, root, keys):
    """Look keys up: the sum of their values."""
    s = 0
    for i in range(keys.size):
        key = keys[i]
        at = root
        while at != 0:
            leaf = cache[at]
            if leaf.key == key:
                s += leaf.value
                break
            at = leaf.left if key < leaf.key else leaf.right
    return s


@njit
def in_order(cache, root, stack):
    """Walk over all keys in order: their digest."""
    depth, at, digest = 0, root, 0
    while at != 0 or depth > 0:
        while at != 0:
            stack[depth] = at
            depth += 1
            at = cache[at].left
        depth -= 1
        leaf = cache[stack[depth]]
        digest = (digest * 31 + leaf.key) & DIGEST_MASK
        at = leaf.right
    return digest


@njit
def delete(cache, root, keys):
    """Delete keys, all of which are there: the root."""
    for i in range(keys.size):
        key = keys[i]
        above, at = 0, root
        leaf = cache[at]
        while leaf.key != key:
            above = at
            at = leaf.left if key < leaf.key else leaf.right
            leaf = cache[at]
        if leaf.left != 0 and leaf.right != 0:  # the next key comes here, and its leaf goes
            here = leaf
            above, at = at, leaf.right
            leaf = cache[at]
            while leaf.left != 0:
                above, at = at, leaf.left
                leaf = cache[at]
            here.key = leaf.key
            here.value = leaf.value
        child = leaf.left if leaf.left != 0 else leaf.right
        if above == 0:
            root = child
        elif cache[above].left == at:
            cache[above].left = child
        else:
            cache[above].right = child
        cache.free(at)
    return root


# --- Hash table, order book, bank of particles: from empty to empty in one call ---


@njit
def table(cache, first, operations, keys):
    """Do all operations, from empty chains: their answer."""
    answer = 0
    for i in range(keys.size):
        key, operation = keys[i], operations[i]
        bucket = key & (first.size - 1)
        before, at = 0, first[bucket]
        while at != 0:
            entry = cache[at]
            if entry.key == key:
                break
            before = at
            at = entry.next
        if operation == LOOKUP:
            answer += cache[at].value if at != 0 else 1
        elif operation == INSERT:
            if at != 0:
                cache[at].value = i
            else:
                h, entry = cache.new()
                entry.key = key
                entry.value = i
                entry.next = first[bucket]
                first[bucket] = h
        elif at == 0:
            answer += 3
        else:
            entry = cache[at]
            answer += 3 * entry.value
            if before == 0:
                first[bucket] = entry.next
            else:
                cache[before].next = entry.next
            cache.free(at)
    return answer + cache.clear()


@njit
def book(cache, first, last, tops, handles, kinds, levels, quantities):
    """Match all messages: the answer.  A handle that is stale is an order that was filled or cancelled."""
    digest, cancelled = 0, 0
    for number in range(kinds.size):
        side, level = kinds[number], levels[number]
        if side == CANCEL:
            h = handles[level]
            if h in cache:
                order = cache[h]
                if order.before != 0:
                    cache[order.before].after = order.after
                else:
                    first[order.level] = order.after
                if order.after != 0:
                    cache[order.after].before = order.before
                else:
                    last[order.level] = order.before
                cache.free(h)
                cancelled += 1
            continue
        other, left = 1 - side, quantities[number]
        while left > 0:
            top = tops[other]
            while top >= 0 and first[other * PRICES + top] == 0:
                top -= 1
            tops[other] = top
            if top < 0 or top + level < PRICES - 1:
                break
            queue = other * PRICES + top
            h = first[queue]
            order = cache[h]
            traded = min(left, order.quantity)
            left -= traded
            order.quantity -= traded
            digest = (digest * 31 + order.number * 7 + traded) & DIGEST_MASK
            if order.quantity == 0:
                first[queue] = order.after
                if order.after != 0:
                    cache[order.after].before = 0
                else:
                    last[queue] = 0
                cache.free(h)
        if left > 0:
            h, order = cache.new()
            queue = side * PRICES + level
            order.number = number
            order.quantity = left
            order.level = queue
            order.before = last[queue]
            order.after = 0
            if last[queue] != 0:
                cache[last[queue]].after = h
            else:
                first[queue] = h
            last[queue] = h
            handles[number] = h
            tops[side] = max(tops[side], level)
    rest = 0
    for _h, order in cache.items():  # noqa: PERF102  # a cache has no values()
        rest += order.quantity
    cache.clear()
    return digest + cancelled + rest


@njit
def bank(cache, n):
    """Let particles live: the answer."""
    for i in range(n):
        _h, particle = cache.new()
        particle.x = i
        particle.speed = i % 7 - 3
        particle.seed = i * FACTOR
        particle.born = -1
    for turn in range(TURNS):
        for h, particle in cache.items():
            if particle.born == turn:
                continue
            seed = particle.seed * FACTOR + STEP
            particle.seed = seed
            particle.x += particle.speed
            draw = seed >> 33 & 1023
            if draw < DEATH:
                cache.free(h)
            elif draw < BIRTH:
                _h, child = cache.new()
                child.x = particle.x
                child.speed = -particle.speed
                child.seed = seed ^ CHILD
                child.born = turn
    s = 0
    for _h, particle in cache.items():  # noqa: PERF102  # a cache has no values()
        s += particle.x
    return s + (cache.clear() << 32)


# --- From Python ---


class OnCache:
    """A structure over a cache of its own."""

    dtype: Any
    root = 0

    def __init__(self, sizes: Sizes, **options: Any) -> None:
        self.sizes = sizes
        self.cache = SlabCache("structure", self.dtype, capacity=self.room(sizes), **options)

    def room(self, sizes: Sizes) -> int:
        """Return the most records that are live at once."""
        return sizes.messages

    def is_clean(self) -> bool:
        """Whether nothing is left, and no handle was ever refused."""
        return len(self.cache) == 0 and self.cache.faults == 0

    def close(self) -> None:
        """Close the cache."""
        self.cache.close()


class List(OnCache):
    """A list of nodes."""

    dtype = workload.NODE
    build_loop = staticmethod(loops.build_new)

    def room(self, sizes: Sizes) -> int:
        """Return the nodes."""
        return sizes.nodes

    def build(self) -> bool:
        """Build the list."""
        self.root = self.build_loop(self.sizes.nodes, self.cache)
        return self.root != 0

    def walk(self) -> int:
        """Sum up the values."""
        return int(loops.walk(self.root, self.cache))

    def drop(self) -> int:
        """Free all nodes; how many."""
        return int(loops.drop(self.root, self.cache))


class ListByAlloc(List):
    """The same, its records looked up by handle when they are new."""

    build_loop = staticmethod(loops.build)


class Tree(OnCache):
    """A binary search tree."""

    dtype = workload.LEAF

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.stack = np.empty(DEEPEST, np.int64)

    def room(self, sizes: Sizes) -> int:
        """Return the leaves."""
        return sizes.leaves

    def insert(self) -> bool:
        """Insert all keys."""
        self.root = insert(self.cache, workload.leaves(self.sizes).insert)
        return self.root != 0

    def look(self) -> int:
        """Look all keys up; the sum of their values."""
        return int(look(self.cache, self.root, workload.leaves(self.sizes).look))

    def walk(self) -> int:
        """Walk over all keys in order."""
        return int(in_order(self.cache, self.root, self.stack))

    def delete(self) -> bool:
        """Delete all keys; whether none is left."""
        self.root = delete(self.cache, self.root, workload.leaves(self.sizes).delete)
        return self.root == 0


class HashTable(OnCache):
    """A hash table with chains."""

    dtype = workload.ENTRY

    def run(self) -> int:
        """Do all operations."""
        work = workload.mix(self.sizes)
        return int(table(self.cache, np.zeros(work.buckets, np.int64), work.operations, work.keys))


class Book(OnCache):
    """An order book."""

    dtype = workload.ORDER

    def run(self) -> int:
        """Match all messages."""
        work = workload.messages(self.sizes)
        return int(book(self.cache, *workload.queues(work), work.kinds, work.levels, work.quantities))


class Bank(OnCache):
    """A bank of particles."""

    dtype = workload.PARTICLE

    def room(self, sizes: Sizes) -> int:
        """Return twice the particles: as many die as are born."""
        return 2 * sizes.particles

    def run(self) -> int:
        """Let the particles live."""
        return int(bank(self.cache, self.sizes.particles))
