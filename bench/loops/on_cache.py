"""The five data structures over a `SlabCache`: records linked by handles."""

from __future__ import annotations

from functools import partial
from typing import Any

import numba

from jitslab import SlabCache
from loops.access import walk  # noqa: F401  # these are the same for all records
from loops.on_arrays import in_order, look  # noqa: F401
from loops.workload import BIRTH, CANCEL, CHILD, DEATH, DIGEST_MASK, FACTOR, INSERT, LOOKUP, PRICES, STEP, TURNS

njit = partial(numba.njit, cache=True, nogil=True)


# --- Linked list ---


@njit
def build(cache, n):
    """Push n nodes at the front: the handle of the first."""
    first = 0
    for i in range(n):
        h, node = cache.new()
        node.value = i
        node.next = first
        first = h
    return first


@njit
def build_by_alloc(cache, n):
    """The same, each record looked up by handle when it is new."""
    first = 0
    for i in range(n):
        h = cache.alloc()
        node = cache[h]
        node.value = i
        node.next = first
        first = h
    return first


@njit
def drop(cache, first):
    """Free every node: how many."""
    n = 0
    h = first
    while h != 0:
        following = cache[h].next
        n += cache.free(h)
        h = following
    return n


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
def delete(cache, root, keys):
    """Delete keys, all of which are there: the root, 0 if none is left."""
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

TAKES = {"in_order": ("stack",), "table": ("chains",), "book": ("first", "last", "tops", "orders")}


class Heap:
    """A cache of a structure's own."""

    def __init__(self, dtype: Any, room: int) -> None:
        self.cache = SlabCache("structure", dtype, capacity=room)
        self.all = self.records = (self.cache,)

    def is_clean(self, is_last: bool) -> bool:
        """Whether no handle was ever refused, and nothing is left, if nothing may be."""
        return self.cache.faults == 0 and (not is_last or len(self.cache) == 0)

    def close(self) -> None:
        """Close the cache."""
        self.cache.close()
