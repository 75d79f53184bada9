"""
The five data structures over objects that Numba counts references to: jitclass, and structref where it can do it.

A structref cannot have a field of its own type (Numba 0.68: LLVM ends the process), so it is a particle only.  A `typed.List`
cannot hold a jitclass that refers to its own type (not to be pickled): lists of those live inside one function.
"""

from __future__ import annotations

from typing import Any

import numba
from numba import types
from numba.experimental import jitclass, structref
from numba.typed import List as TypedList

from loops.workload import BIRTH, CANCEL, CHILD, DEATH, DIGEST_MASK, FACTOR, INSERT, LOOKUP, PRICES, STEP, TURNS

njit = numba.njit(nogil=True)  # Numba cannot keep functions of a jitclass on disk
integer = types.int64


# --- Linked list ---

node_type = numba.deferred_type()


@jitclass([("value", integer), ("next", types.optional(node_type))])
class Node:
    """A value and the next node."""

    def __init__(self, value, following) -> None:
        self.value = value
        self.next = following


node_type.define(Node.class_type.instance_type)


@njit
def build(n):
    """Push n nodes at the front: the first."""
    first = Node(0, None)
    for i in range(1, n):
        first = Node(i, first)
    return first


@njit
def walk(first):
    """Sum up the values."""
    s = 0
    node = first
    while True:
        s += node.value
        following = node.next
        if following is None:
            break
        node = following
    return s


@njit
def drop(first):
    """Unlink every node, so that each is freed by itself and not by recursion: how many."""
    n = 1
    node = first
    while True:
        following = node.next
        if following is None:
            break
        node.next = None
        node = following
        n += 1
    return n


# --- Binary search tree ---

leaf_type = numba.deferred_type()


@jitclass([("key", integer), ("value", integer), ("left", types.optional(leaf_type)), ("right", types.optional(leaf_type))])
class Leaf:
    """A key, its value and what is below."""

    def __init__(self, key, value) -> None:
        self.key = key
        self.value = value
        self.left = None
        self.right = None


leaf_type.define(Leaf.class_type.instance_type)


@njit
def insert(keys):
    """Insert keys, none of them twice, below a root that is smaller than all: the root."""
    root = Leaf(-1, 0)
    for i in range(keys.size):
        key = keys[i]
        leaf = Leaf(key, i)
        above = root
        while True:
            if key < above.key:
                below = above.left
                if below is None:
                    above.left = leaf
                    break
            else:
                below = above.right
                if below is None:
                    above.right = leaf
                    break
            above = below
    return root


@njit
def look(root, keys):
    """Look keys up: the sum of their values."""
    s = 0
    for i in range(keys.size):
        key = keys[i]
        leaf = root
        while True:
            if leaf.key == key:
                s += leaf.value
                break
            below = leaf.left if key < leaf.key else leaf.right
            if below is None:
                break
            leaf = below
    return s


@njit
def in_order(root):
    """Walk over all keys in order: their digest."""
    stack = [root]
    stack.pop()
    digest = 0
    first = root.right
    if first is None:
        return digest
    leaf, descends = first, True
    while descends or len(stack) > 0:
        while descends:
            stack.append(leaf)
            below = leaf.left
            if below is None:
                descends = False
            else:
                leaf = below
        leaf = stack.pop()
        digest = (digest * 31 + leaf.key) & DIGEST_MASK
        below = leaf.right
        if below is not None:
            leaf = below
            descends = True
    return digest


@njit
def delete(root, keys):
    """Delete keys, all of which are there: 0 if none is left."""
    for i in range(keys.size):
        key = keys[i]
        above, leaf = root, root
        while leaf.key != key:
            above = leaf
            below = leaf.left if key < leaf.key else leaf.right
            if below is None:
                break
            leaf = below
        left, right = leaf.left, leaf.right
        if left is not None and right is not None:  # the next key comes here, and its leaf goes
            here = leaf
            above, leaf = leaf, right
            while True:
                below = leaf.left
                if below is None:
                    break
                above = leaf
                leaf = below
            here.key = leaf.key
            here.value = leaf.value
        child = leaf.left if leaf.left is not None else leaf.right
        beside = above.left
        if beside is not None and beside.key == leaf.key:  # `is` answers False for jitclasses
            above.left = child
        else:
            above.right = child
    return 0 if root.left is None and root.right is None else 1


# --- Hash table: before the first entry of each chain stands one that is none ---

entry_type = numba.deferred_type()


@jitclass([("key", integer), ("value", integer), ("next", types.optional(entry_type))])
class Entry:
    """A key, its value and the next of the chain."""

    def __init__(self, key, value, following) -> None:
        self.key = key
        self.value = value
        self.next = following


entry_type.define(Entry.class_type.instance_type)


@njit
def table(buckets, operations, keys):
    """Do all operations: their answer."""
    chains = [Entry(0, 0, None) for _ in range(buckets)]
    answer, live = 0, 0
    for i in range(keys.size):
        key, operation = keys[i], operations[i]
        before = chains[key & (buckets - 1)]
        found = False
        entry = before
        while True:
            following = before.next
            if following is None:
                break
            entry = following
            if entry.key == key:
                found = True
                break
            before = entry
        if operation == LOOKUP:
            answer += entry.value if found else 1
        elif operation == INSERT:
            if found:
                entry.value = i
            else:
                head = chains[key & (buckets - 1)]
                head.next = Entry(key, i, head.next)
                live += 1
        elif not found:
            answer += 3
        else:
            answer += 3 * entry.value
            before.next = entry.next
            live -= 1
    return answer + live


# --- Order book: a queue is a ring with one that is no order; rings are cut in the end, or they would never be freed ---

order_type = numba.deferred_type()


@jitclass(
    [
        ("number", integer),
        ("quantity", integer),
        ("before", types.optional(order_type)),
        ("after", types.optional(order_type)),
    ]
)
class Order:
    """An order and its neighbours in the queue."""

    def __init__(self, number, quantity) -> None:
        self.number = number
        self.quantity = quantity
        self.before = None
        self.after = None


order_type.define(Order.class_type.instance_type)


@njit
def unlink(order):
    """Take an order out of its queue."""
    left, right = order, order
    before, after = order.before, order.after
    if before is not None:  # an optional one has no attributes to set
        left = before
    if after is not None:
        right = after
    left.after = right
    right.before = left
    order.before = None
    order.after = None


@njit
def book(tops, kinds, levels, quantities):
    """Match all messages: the answer."""
    queues = [Order(-1, 0) for _ in range(2 * PRICES)]
    for queue in queues:
        queue.before = queue
        queue.after = queue
    none = Order(-1, 0)
    orders = [none] * kinds.size
    digest, cancelled = 0, 0
    for number in range(kinds.size):
        side, level = kinds[number], levels[number]
        if side == CANCEL:
            order = orders[level]
            if order.number >= 0:
                unlink(order)
                orders[level] = none
                cancelled += 1
            continue
        other, left = 1 - side, quantities[number]
        while left > 0:
            top = tops[other]
            first = none
            while top >= 0:
                after = queues[other * PRICES + top].after
                if after is not None:
                    first = after
                if first.number >= 0:
                    break
                top -= 1
            tops[other] = top
            if top < 0 or top + level < PRICES - 1:
                break
            traded = min(left, first.quantity)
            left -= traded
            first.quantity -= traded
            digest = (digest * 31 + first.number * 7 + traded) & DIGEST_MASK
            if first.quantity == 0:
                unlink(first)
                orders[first.number] = none
        if left > 0:
            order, queue = Order(number, left), queues[side * PRICES + level]
            last = queue
            before = queue.before
            if before is not None:
                last = before
            order.before = last
            order.after = queue
            last.after = order
            queue.before = order
            orders[number] = order
            tops[side] = max(tops[side], level)
    rest = 0
    for order in orders:
        if order.number >= 0:
            rest += order.quantity
            unlink(order)
    for queue in queues:
        unlink(queue)
    return digest + cancelled + rest


# --- Bank of particles: one text for both kinds of object ---


@jitclass([("x", integer), ("speed", integer), ("seed", integer), ("born", integer)])
class Particle:
    """Where a particle is and what it does next."""

    def __init__(self, x, speed, seed, born) -> None:
        self.x = x
        self.speed = speed
        self.seed = seed
        self.born = born


@structref.register
class ParticleType(types.StructRef):
    """The Numba type of the same as a structref."""


class ParticleRef(structref.StructRefProxy):
    """The same as a structref."""


structref.define_proxy(ParticleRef, ParticleType, ["x", "speed", "seed", "born"])


def bank_of(make: Any, on_disk: bool) -> Any:
    """Return the kernel for one kind of object."""

    @numba.njit(nogil=True, cache=on_disk)
    def bank(n):
        """Let particles live, the last moved to where one dies: the answer."""
        particles = TypedList()
        for i in range(n):
            particles.append(make(i, i % 7 - 3, i * FACTOR, -1))
        for turn in range(TURNS):
            i = 0
            while i < len(particles):
                particle = particles[i]
                if particle.born != turn:
                    seed = particle.seed * FACTOR + STEP
                    particle.seed = seed
                    particle.x += particle.speed
                    draw = seed >> 33 & 1023
                    if draw < DEATH:
                        last = particles.pop()
                        if i < len(particles):
                            particles[i] = last
                        continue
                    if draw < BIRTH:
                        particles.append(make(particle.x, -particle.speed, seed ^ CHILD, turn))
                i += 1
        s = 0
        for particle in particles:
            s += particle.x
        return s + (len(particles) << 32)

    return bank


bank, bank_of_structref = bank_of(Particle, False), bank_of(ParticleRef, True)


# --- From Python ---

TAKES = {"table": ("buckets",), "book": ("tops",)}


class Heap:
    """Numba's own, which counts references."""

    all = records = ()

    def __init__(self, dtype: Any, room: int) -> None:
        """Take what is needed when it is."""

    def is_clean(self, is_last: bool) -> bool:
        """Numba counts what is left."""
        return True

    def close(self) -> None:
        """Leave nothing behind."""
