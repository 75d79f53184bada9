"""The linked list as Numba users write it today: a jitclass node with an optional next."""

from __future__ import annotations

import numba
from numba import types
from numba.experimental import jitclass

njit = numba.njit(nogil=True)  # Numba cannot keep functions of a jitclass on disk
node_type = numba.deferred_type()


@jitclass([("value", types.int64), ("next", types.optional(node_type))])
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
