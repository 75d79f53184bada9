"""Links of many records, in lists and trees: followed, and judged, beside loops over plain arrays."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from jitslab import SlabAllocator, link
from loops import links as loops
from measure import Case, Row, Sizes, Table, ratio, speed_ratio

SHAPES = {  # the links of a node, and its bytes
    "list of 16 bytes": (1, 16),
    "list of 64 bytes": (1, 64),
    "tree of 24 bytes": (2, 24),
    "tree of 64 bytes": (2, 64),
}


class Graph:
    """A list or a binary tree of records of an allocator, in the order of their slots or in a random one."""

    def __init__(self, shape: str, is_shuffled: bool, sizes: Sizes) -> None:
        n_links, itemsize = SHAPES[shape]
        node = np.dtype([("links", link("nodes"), (n_links,)), ("pad", "u1", (itemsize - 8 * n_links,))])
        self.n = sizes.accessed[-1]
        self.allocator = SlabAllocator("links")
        self.nodes = self.allocator.create_cache("nodes", node, capacity=self.n, init="zero", colouring=False)
        handles = self.nodes.alloc_many(self.n)
        handles = handles[np.argsort(self.nodes.slots(handles))]
        order = handles[sizes.rng().permutation(self.n)] if is_shuffled else handles
        self.root, self.live = int(order[0]), handles
        self.links = self.nodes.records["links"]
        for k in range(n_links):
            to = np.arange(self.n) * n_links + k + 1
            self.links[self.nodes.slots(order), k] = np.where(to < self.n, order[np.minimum(to, self.n - 1)], 0)
        self.generations = np.zeros(self.nodes.slot_limit, np.uint32)
        self.generations[handles & loops.SLOT_MASK] = handles >> 31 | 1

    def case(self, run: Any, expected: int) -> Case:
        """Return a case with one operation a record."""
        return Case(run, self.n, partial(int.__eq__, expected), close=self.allocator.close)

    def count_by_numpy(self) -> int:
        """Return how many links are dangling."""
        links = self.links[self.live & loops.SLOT_MASK].ravel()
        links = links[links != 0]
        return int((self.generations[links & loops.SLOT_MASK] != links >> 31 | 1).sum())

    def walk_by_loop(self) -> int:
        """Return how many records are reached."""
        return int(loops.walk(self.links, self.root, np.zeros(self.generations.size, bool), np.empty(self.n, np.int64)))


def dangling(who: str, shape: str, is_shuffled: bool, sizes: Sizes) -> Case:
    """Look for dangling links, where there are none."""
    graph = Graph(shape, is_shuffled, sizes)
    run = {
        "dangling()": lambda: len(graph.nodes.dangling()),
        "loop": lambda: loops.dangling(graph.links, graph.generations, graph.live),
        "NumPy": graph.count_by_numpy,
    }[who]
    return graph.case(run, 0)


def unreachable(who: str, shape: str, is_shuffled: bool, sizes: Sizes) -> Case:
    """Follow the links of all records from one root."""
    graph = Graph(shape, is_shuffled, sizes)
    if who == "loop":
        return graph.case(graph.walk_by_loop, graph.n)
    return graph.case(lambda: len(graph.allocator.unreachable(graph.root)["nodes"]), 0)


def table(sizes: Sizes) -> Table:
    """Return all operations."""
    rows: Table = {}
    for shape in SHAPES:
        for text, is_shuffled in (("as built", False), ("shuffled", True)):
            where = f"{shape}, {sizes.accessed[-1]:,}, {text}"
            rows[f"dangling, {where}"] = Row(
                {who: partial(dangling, who, shape, is_shuffled) for who in ("loop", "NumPy", "dangling()")},
                (ratio("dangling()", "loop"), speed_ratio("dangling()", "NumPy")),
            )
            rows[f"unreachable, {where}"] = Row(
                {who: partial(unreachable, who, shape, is_shuffled) for who in ("loop", "unreachable()")},
                (ratio("unreachable()", "loop"),),
            )
    return rows
