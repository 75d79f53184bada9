"""
The five data structures as users write them by hand: an array of records, and a stack of its free slots.

The floor: nothing is checked, so a slot that was freed meanwhile is read and freed again without a word.  Slot 0 is no slot.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numba
import numpy as np

import workload
from measure import Sizes
from workload import BIRTH, CANCEL, CHILD, DEATH, DEEPEST, DIGEST_MASK, FACTOR, INSERT, LOOKUP, PRICES, STEP, TURNS

njit = partial(numba.njit, cache=True, nogil=True)


@njit
def take(free):
    """Take a slot off the stack; free[0] is how many are on it."""
    top = free[0]
    free[0] = top - 1
    return free[top]


@njit
def give(free, slot):
    """Put a slot on the stack."""
    top = free[0] + 1
    free[0] = top
    free[top] = slot


# --- Linked list ---


@njit
def build(records, free, n):
    """Push n nodes at the front: the first."""
    first = 0
    for i in range(n):
        h = take(free)
        node = records[h]
        node.value = i
        node.next = first
        first = h
    return first


@njit
def walk(records, first):
    """Sum up the values."""
    s, at = 0, first
    while at != 0:
        s += records[at].value
        at = records[at].next
    return s


@njit
def drop(records, free, first):
    """Free every node: how many."""
    n, at = 0, first
    while at != 0:
        following = records[at].next
        give(free, at)
        n += 1
        at = following
    return n


# --- Binary search tree ---


@njit
def insert(records, free, keys):
    """Insert keys, none of them twice: the root."""
    root = 0
    for i in range(keys.size):
        key = keys[i]
        h = take(free)
        leaf = records[h]
        leaf.key = key
        leaf.value = i
        leaf.left = 0
        leaf.right = 0
        if root == 0:
            root = h
            continue
        at = root
        while True:
            above = records[at]
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
def look(records, root, keys):
    """Look keys up: the sum of their values."""
    s = 0
    for i in range(keys.size):
        key = keys[i]
        at = root
        while at != 0:
            leaf = records[at]
            if leaf.key == key:
                s += leaf.value
                break
            at = leaf.left if key < leaf.key else leaf.right
    return s


@njit
def in_order(records, root, stack):
    """Walk over all keys in order: their digest."""
    depth, at, digest = 0, root, 0
    while at != 0 or depth > 0:
        while at != 0:
            stack[depth] = at
            depth += 1
            at = records[at].left
        depth -= 1
        leaf = records[stack[depth]]
        digest = (digest * 31 + leaf.key) & DIGEST_MASK
        at = leaf.right
    return digest


@njit
def delete(records, free, root, keys):
    """Delete keys, all of which are there: the root."""
    for i in range(keys.size):
        key = keys[i]
        above, at = 0, root
        leaf = records[at]
        while leaf.key != key:
            above = at
            at = leaf.left if key < leaf.key else leaf.right
            leaf = records[at]
        if leaf.left != 0 and leaf.right != 0:  # the next key comes here, and its leaf goes
            here = leaf
            above, at = at, leaf.right
            leaf = records[at]
            while leaf.left != 0:
                above, at = at, leaf.left
                leaf = records[at]
            here.key = leaf.key
            here.value = leaf.value
        child = leaf.left if leaf.left != 0 else leaf.right
        if above == 0:
            root = child
        elif records[above].left == at:
            records[above].left = child
        else:
            records[above].right = child
        give(free, at)
    return root


# --- Hash table, order book, bank of particles: from empty to empty in one call ---


@njit
def table(records, free, first, operations, keys):
    """Do all operations, from empty chains: their answer."""
    answer = 0
    for i in range(keys.size):
        key, operation = keys[i], operations[i]
        bucket = key & (first.size - 1)
        before, at = 0, first[bucket]
        while at != 0:
            entry = records[at]
            if entry.key == key:
                break
            before = at
            at = entry.next
        if operation == LOOKUP:
            answer += records[at].value if at != 0 else 1
        elif operation == INSERT:
            if at != 0:
                records[at].value = i
            else:
                h = take(free)
                entry = records[h]
                entry.key = key
                entry.value = i
                entry.next = first[bucket]
                first[bucket] = h
        elif at == 0:
            answer += 3
        else:
            entry = records[at]
            answer += 3 * entry.value
            if before == 0:
                first[bucket] = entry.next
            else:
                records[before].next = entry.next
            give(free, at)
    left = 0
    for bucket in range(first.size):
        at = first[bucket]
        while at != 0:
            left += 1
            give(free, at)
            at = records[at].next
    return answer + left


@njit
def book(records, free, first, last, tops, slots, kinds, levels, quantities):
    """Match all messages: the answer.  A slot of 0 is an order that was filled or cancelled."""
    digest, cancelled = 0, 0
    for number in range(kinds.size):
        side, level = kinds[number], levels[number]
        if side == CANCEL:
            h = slots[level]
            if h != 0:
                order = records[h]
                if order.before != 0:
                    records[order.before].after = order.after
                else:
                    first[order.level] = order.after
                if order.after != 0:
                    records[order.after].before = order.before
                else:
                    last[order.level] = order.before
                give(free, h)
                slots[level] = 0
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
            order = records[h]
            traded = min(left, order.quantity)
            left -= traded
            order.quantity -= traded
            digest = (digest * 31 + order.number * 7 + traded) & DIGEST_MASK
            if order.quantity == 0:
                first[queue] = order.after
                if order.after != 0:
                    records[order.after].before = 0
                else:
                    last[queue] = 0
                slots[order.number] = 0
                give(free, h)
        if left > 0:
            h = take(free)
            order = records[h]
            queue = side * PRICES + level
            order.number = number
            order.quantity = left
            order.level = queue
            order.before = last[queue]
            order.after = 0
            if last[queue] != 0:
                records[last[queue]].after = h
            else:
                first[queue] = h
            last[queue] = h
            slots[number] = h
            tops[side] = max(tops[side], level)
    rest = 0
    for number in range(kinds.size):
        if slots[number] != 0:
            rest += records[slots[number]].quantity
            give(free, slots[number])
    return digest + cancelled + rest


@njit
def bank(records, free, live, n):
    """Let particles live, found by a flag for each slot: the answer."""
    end = 0
    for i in range(n):
        h = take(free)
        live[h] = True
        end = max(end, h + 1)
        particle = records[h]
        particle.x = i
        particle.speed = i % 7 - 3
        particle.seed = i * FACTOR
        particle.born = -1
    for turn in range(TURNS):
        for h in range(1, end):
            particle = records[h]
            if not live[h] or particle.born == turn:
                continue
            seed = particle.seed * FACTOR + STEP
            particle.seed = seed
            particle.x += particle.speed
            draw = seed >> 33 & 1023
            if draw < DEATH:
                live[h] = False
                give(free, h)
            elif draw < BIRTH:
                new = take(free)
                live[new] = True
                end = max(end, new + 1)
                child = records[new]
                child.x = particle.x
                child.speed = -particle.speed
                child.seed = seed ^ CHILD
                child.born = turn
    s, left = 0, 0
    for h in range(1, end):
        if live[h]:
            s += records[h].x
            left += 1
            live[h] = False
            give(free, h)
    return s + (left << 32)


@njit
def dense_bank(records, n):
    """Let particles live, the last moved to where one dies, so that none keeps its place: the answer."""
    for i in range(n):
        particle = records[i]
        particle.x = i
        particle.speed = i % 7 - 3
        particle.seed = i * FACTOR
    for _turn in range(TURNS):
        i, old = 0, n
        while i < old:
            particle = records[i]
            seed = particle.seed * FACTOR + STEP
            particle.seed = seed
            particle.x += particle.speed
            draw = seed >> 33 & 1023
            if draw < DEATH:
                old -= 1
                records[i] = records[old]
                n -= 1
                records[old] = records[n]
                continue
            if draw < BIRTH:
                child = records[n]
                child.x = particle.x
                child.speed = -particle.speed
                child.seed = seed ^ CHILD
                n += 1
            i += 1
    s = 0
    for i in range(n):
        s += records[i].x
    return s + (n << 32)


# --- From Python ---


class OnArrays:
    """A structure over an array of its own."""

    dtype: Any
    root = 0

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, n = sizes, self.room(sizes)
        self.records = np.zeros(n + 1, self.dtype)
        self.free = np.arange(n + 1)[::-1].copy()  # slot 1 is on top
        self.free = np.concatenate([[n], self.free[:-1]])

    def room(self, sizes: Sizes) -> int:
        """Return the most records that are live at once."""
        return sizes.messages

    def is_clean(self) -> bool:
        """Whether nothing is left."""
        return int(self.free[0]) == self.records.size - 1

    def close(self) -> None:
        """Leave nothing behind."""


class List(OnArrays):
    """A list of nodes."""

    dtype = workload.NODE

    def room(self, sizes: Sizes) -> int:
        """Return the nodes."""
        return sizes.nodes

    def build(self) -> bool:
        """Build the list."""
        self.root = build(self.records, self.free, self.sizes.nodes)
        return self.root != 0

    def walk(self) -> int:
        """Sum up the values."""
        return int(walk(self.records, self.root))

    def drop(self) -> int:
        """Free all nodes; how many."""
        return int(drop(self.records, self.free, self.root))


class Tree(OnArrays):
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
        self.root = insert(self.records, self.free, workload.leaves(self.sizes).insert)
        return self.root != 0

    def look(self) -> int:
        """Look all keys up; the sum of their values."""
        return int(look(self.records, self.root, workload.leaves(self.sizes).look))

    def walk(self) -> int:
        """Walk over all keys in order."""
        return int(in_order(self.records, self.root, self.stack))

    def delete(self) -> bool:
        """Delete all keys; whether none is left."""
        self.root = delete(self.records, self.free, self.root, workload.leaves(self.sizes).delete)
        return self.root == 0


class HashTable(OnArrays):
    """A hash table with chains."""

    dtype = workload.ENTRY

    def run(self) -> int:
        """Do all operations."""
        work = workload.mix(self.sizes)
        return int(table(self.records, self.free, np.zeros(work.buckets, np.int64), work.operations, work.keys))


class Book(OnArrays):
    """An order book."""

    dtype = workload.ORDER

    def run(self) -> int:
        """Match all messages."""
        work = workload.messages(self.sizes)
        return int(book(self.records, self.free, *workload.queues(work), work.kinds, work.levels, work.quantities))


class Bank(OnArrays):
    """A bank of particles."""

    dtype = workload.PARTICLE

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.live = np.zeros(self.records.size, np.bool_)

    def room(self, sizes: Sizes) -> int:
        """Return twice the particles: as many die as are born."""
        return 2 * sizes.particles

    def run(self) -> int:
        """Let the particles live."""
        return int(bank(self.records, self.free, self.live, self.sizes.particles))


class DenseBank(Bank):
    """A bank without holes."""

    def run(self) -> int:
        """Let the particles live."""
        return int(dense_bank(self.records, self.sizes.particles))
