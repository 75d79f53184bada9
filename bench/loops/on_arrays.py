"""
The five data structures as users write them by hand: an array of records, and a stack of its free slots.

The floor: nothing is checked, so a slot that was freed meanwhile is read and freed again without a word.  Slot 0 is no slot.
Nothing is done that the structure can do without: all slots are freed by two stores, as `clear` frees all records of a cache,
and a record that is dead says so itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numba
import numpy as np

from loops.access import walk  # noqa: F401  # it is the same for all records
from loops.workload import BIRTH, CANCEL, CHILD, DEATH, DIGEST_MASK, FACTOR, INSERT, LOOKUP, PRICES, STEP, TURNS

njit = partial(numba.njit, cache=True, nogil=True)
TOP, LAST = 0, 1  # where free has the place of the stack's top (LAST if it is empty), and the last slot ever taken
DEAD = TURNS  # when a dead particle was born: later than any turn


@njit
def take(free):
    """Take a slot off the stack; if it is empty, the first slot that was never taken."""
    top = free[TOP]
    if top > LAST:
        free[TOP] = top - 1
        return free[top]
    slot = free[LAST] + 1
    free[LAST] = slot
    return slot


@njit
def give(free, slot):
    """Put a slot on the stack."""
    top = free[TOP] + 1
    free[TOP] = top
    free[top] = slot


@njit
def clear(free):
    """Free all slots: how many were taken."""
    n = free[LAST] + LAST - free[TOP]
    free[TOP] = LAST
    free[LAST] = 0
    return n


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
    """Look keys up: the sum of their values; here as for `in_order` records may be a cache, which checks every handle."""
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
    """Delete keys, all of which are there: the root, 0 if none is left."""
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
    return answer + clear(free)


@njit
def book(records, free, first, last, tops, slots, kinds, levels, quantities):
    """Match all messages: the answer.  An order that was filled or cancelled has nothing left, or its slot another number."""
    digest, cancelled = 0, 0
    for number in range(kinds.size):
        side, level = kinds[number], levels[number]
        if side == CANCEL:
            h = slots[level]
            order = records[h]
            if order.number == level and order.quantity > 0:
                if order.before != 0:
                    records[order.before].after = order.after
                else:
                    first[order.level] = order.after
                if order.after != 0:
                    records[order.after].before = order.before
                else:
                    last[order.level] = order.before
                order.quantity = 0
                give(free, h)
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
    for h in range(1, free[LAST] + 1):
        rest += records[h].quantity
    clear(free)
    return digest + cancelled + rest


@njit
def bank(records, free, n):
    """Let particles live: the answer."""
    for i in range(n):
        particle = records[take(free)]
        particle.x = i
        particle.speed = i % 7 - 3
        particle.seed = i * FACTOR
        particle.born = -1
    for turn in range(TURNS):
        for h in range(1, free[LAST] + 1):
            particle = records[h]
            if particle.born >= turn:
                continue
            seed = particle.seed * FACTOR + STEP
            particle.seed = seed
            particle.x += particle.speed
            draw = seed >> 33 & 1023
            if draw < DEATH:
                particle.born = DEAD
                give(free, h)
            elif draw < BIRTH:
                child = records[take(free)]
                child.x = particle.x
                child.speed = -particle.speed
                child.seed = seed ^ CHILD
                child.born = turn
    s = 0
    for h in range(1, free[LAST] + 1):
        if records[h].born != DEAD:
            s += records[h].x
    return s + (clear(free) << 32)


@njit
def dense_bank(records, free, n):
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

TAKES = {"in_order": ("stack",), "table": ("chains",), "book": ("first", "last", "tops", "orders")}


class Heap:
    """An array of records, and of its free slots."""

    def __init__(self, dtype: Any, room: int) -> None:
        self.free = np.zeros(room + 1 + LAST, np.int64)
        self.free[TOP] = LAST
        self.records = (np.zeros(room + 1, dtype),)
        self.all = (*self.records, self.free)

    def is_clean(self, is_last: bool) -> bool:
        """Whether nothing is left, if nothing may be."""
        return not is_last or int(self.free[TOP] - LAST) == int(self.free[LAST])

    def close(self) -> None:
        """Leave nothing behind."""
