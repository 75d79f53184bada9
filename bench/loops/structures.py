"""
The five structures' lives, step by step, for every contender: what a kernel is given, and what it must answer.

A contender is a module with a kernel for each step, a class `Heap` and a table TAKES.  `Heap` is made with a dtype and the most
records that are live at once.  Kernels that alloc and free are given its `all`, those that only read its `records`.  TAKES says
which arrays a kernel is given besides: they come from Python, as Numba takes 0.13 s to compile one `np.zeros`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from loops import workload
from loops.workload import DEEPEST, PRICES, TURNS
from measure import Sizes

STRUCTURES = ("linked list", "binary tree", "hash table", "order book", "particle bank")
DTYPES = (workload.NODE, workload.LEAF, workload.ENTRY, workload.ORDER, workload.PARTICLE)


@dataclass(frozen=True)
class Step:
    """A kernel, its operations, what it is given, and its answer."""

    kernel: str
    ops: int
    answer: Any  # True: it makes the root, which is something
    inputs: tuple[Any, ...] = ()
    reads: bool = False  # it is given the records alone
    root: bool = False  # it is given the root


def life(structure: str, sizes: Sizes) -> dict[str, Step]:
    """Return the steps of a structure's life, in order."""
    if structure == "linked list":
        n = sizes.nodes
        walk = Step("walk", n, n * (n - 1) // 2, reads=True, root=True)
        return {"build": Step("build", n, True, (n,)), "walk": walk, "drop": Step("drop", n, n, root=True)}
    if structure == "binary tree":
        n, keys = sizes.leaves, workload.leaves(sizes)
        return {
            "insert": Step("insert", n, True, (keys.insert,)),
            "look": Step("look", n, keys.looked_up, (keys.look,), reads=True, root=True),
            "walk": Step("in_order", n, keys.walked, reads=True, root=True),
            "delete": Step("delete", n, 0, (keys.delete,), root=True),
        }
    if structure == "hash table":
        mix = workload.mix(sizes)
        return {"run": Step("table", sizes.messages, mix.answer, (mix.operations, mix.keys))}
    if structure == "order book":
        sent = workload.messages(sizes)
        return {"run": Step("book", sizes.messages, sent.answer, (sent.kinds, sent.levels, sent.quantities))}
    return {"run": Step("bank", sizes.particles * TURNS, workload.particles(sizes), (sizes.particles,))}


def room(structure: str, sizes: Sizes) -> int:
    """Return the most records that are live at once; of particles as many die as are born."""
    rooms = {"linked list": sizes.nodes, "binary tree": sizes.leaves, "particle bank": 2 * sizes.particles}
    return rooms.get(structure, sizes.messages)


def extra(name: str, sizes: Sizes) -> Any:
    """Return an array, or a number, that some kernels are given besides."""
    if name == "stack":
        return np.empty(DEEPEST, np.int64)
    if name in ("buckets", "chains"):
        buckets = workload.mix(sizes).buckets
        return buckets if name == "buckets" else np.zeros(buckets, np.int64)
    if name == "tops":
        return np.full(2, -1)
    return np.zeros(sizes.messages if name == "orders" else 2 * PRICES, np.int64)


class Structure:
    """A contender's structure, empty; `renamed` has names of kernels that differ from those of the steps."""

    def __init__(self, structure: str, module: str, renamed: dict[str, str], sizes: Sizes) -> None:
        kernels = importlib.import_module(f"loops.{module}")
        self.sizes, self.root = sizes, None
        self.steps = life(structure, sizes)
        self.kernels = {name: renamed.get(step.kernel, step.kernel) for name, step in self.steps.items()}
        self.takes = {name: kernels.TAKES.get(kernel, ()) for name, kernel in self.kernels.items()}
        self.loops = {name: getattr(kernels, kernel) for name, kernel in self.kernels.items()}
        self.heap = kernels.Heap(DTYPES[STRUCTURES.index(structure)], room(structure, sizes))

    def run(self, name: str) -> Any:
        """Do a step; returns its answer."""
        step, heap = self.steps[name], self.heap
        more = [extra(one, self.sizes) for one in self.takes[name]]
        root = (self.root,) if step.root else ()
        answer: Any = self.loops[name](*(heap.records if step.reads else heap.all), *root, *more, *step.inputs)
        if step.answer is True:
            self.root = answer
            return answer is not None and answer != 0
        if step.root and not step.reads:
            self.root = None
        return int(answer)

    def is_right(self, name: str, answer: Any) -> bool:
        """Whether a step answered rightly, and nothing was refused; nothing is live after the last."""
        is_last = name == list(self.steps)[-1]
        return answer == self.steps[name].answer and self.heap.is_clean(is_last)
