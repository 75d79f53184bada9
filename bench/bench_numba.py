"""
Five data structures in nopython code, as Numba users can write them: what they take to run, and until they run first.

A row is one step in a structure's life; the steps before it are done before the clock starts, those after it afterwards.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache as cached
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import measure
from loops import workload
from measure import SMOKE, Case, Figure, Row, Sizes, Table, ratio, speed_ratio

FLOOR = "arrays + free list"
# Who builds each structure, and where; modules are imported when they are needed: jitclasses compile at that.
CONTENDERS: dict[str, dict[str, tuple[str, str]]] = {
    "linked list": {
        FLOOR: ("loops.on_arrays", "List"),
        "cache": ("loops.on_cache", "List"),
        "cache, alloc()": ("loops.on_cache", "ListByAlloc"),
        "jitclass": ("loops.on_objects", "List"),
    },
    "binary tree": {
        FLOOR: ("loops.on_arrays", "Tree"),
        "cache": ("loops.on_cache", "Tree"),
        "jitclass": ("loops.on_objects", "Tree"),
    },
    "hash table": {
        FLOOR: ("loops.on_arrays", "HashTable"),
        "cache": ("loops.on_cache", "HashTable"),
        "jitclass": ("loops.on_objects", "HashTable"),
        "typed.List": ("loops.on_containers", "ListTable"),
        "typed.Dict": ("loops.on_containers", "DictTable"),
    },
    "order book": {
        FLOOR: ("loops.on_arrays", "Book"),
        "cache": ("loops.on_cache", "Book"),
        "jitclass": ("loops.on_objects", "Book"),
        "typed.List + Dict": ("loops.on_containers", "Book"),
    },
    "particle bank": {
        "dense array": ("loops.on_arrays", "DenseBank"),
        FLOOR: ("loops.on_arrays", "Bank"),
        "cache": ("loops.on_cache", "Bank"),
        "jitclass": ("loops.on_objects", "Bank"),
        "structref": ("loops.on_objects", "StructrefBank"),
        "typed.List": ("loops.on_containers", "ListBank"),
        "typed.Dict": ("loops.on_containers", "DictBank"),
        "np.empty(1)": ("loops.on_containers", "ArrayBank"),
    },
}
UNCHECKED = (FLOOR, "dense array")  # faster may be these, and only these


def steps(structure: str, sizes: Sizes) -> dict[str, tuple[float, Any]]:
    """Return operations and the right answer of each step of a structure's life, in order."""
    if structure == "linked list":
        n = sizes.nodes
        return {"build": (n, True), "walk": (n, n * (n - 1) // 2), "drop": (n, n)}
    if structure == "binary tree":
        n, work = sizes.leaves, workload.leaves(sizes)
        return {"insert": (n, True), "look": (n, work.looked_up), "walk": (n, work.walked), "delete": (n, True)}
    if structure == "particle bank":
        return {"run": (sizes.particles * workload.TURNS, workload.particles(sizes))}
    return {"run": (sizes.messages, (workload.mix if structure == "hash table" else workload.messages)(sizes).answer)}


def make(structure: str, contender: str, sizes: Sizes) -> Any:
    """Return a contender's structure, empty."""
    module, name = CONTENDERS[structure][contender]
    return getattr(importlib.import_module(module), name)(sizes)


def step_of(structure: str, contender: str, step: str, sizes: Sizes) -> Case:
    """One step; those before and after it are done, and right, but not timed."""
    mine, known = make(structure, contender, sizes), steps(structure, sizes)
    order = list(known)
    at = order.index(step)

    def do(names: list[str]) -> None:
        for name in names:
            answer = getattr(mine, name)()
            if answer != known[name][1]:
                raise measure.WrongAnswerError(f"{name} answered {answer!r}")

    def ready() -> None:
        do(order[:at])
        np.empty(8_000)  # glibc sorts now what another contender freed: else the next array of a kernel would pay for it

    n, expected = known[step]
    after = partial(do, order[at + 1 :])
    return Case(getattr(mine, step), n, lambda answer: answer == expected and mine.is_clean(), ready, after, mine.close)


# --- Until it runs first: a process of its own, this file as a script ---


@cached
def kept() -> tempfile.TemporaryDirectory[str]:
    """Return a disk cache with the kernels of the library, as its first use leaves them."""
    directory = tempfile.TemporaryDirectory()
    run_python("-c", "import jitslab; jitslab.warmup()", directory=directory.name)
    return directory


def run_python(*arguments: str, directory: str) -> str:
    """Run Python with a disk cache; returns what it writes."""
    environment = os.environ | {"PYTHONPATH": measure.python_path(), "NUMBA_CACHE_DIR": directory}
    return subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def first_call(structure: str, contender: str, before: str, sizes: Sizes) -> Case:
    """Run every step once in a fresh process: its disk cache empty, or as the library or an earlier run left it."""
    arguments = (str(Path(__file__)), structure, contender)

    def run() -> tuple[float, bool]:
        with tempfile.TemporaryDirectory() as parent:
            directory = str(Path(parent, "cache"))
            if before == "library":
                shutil.copytree(kept().name, directory)
            elif before == "run":
                run_python(*arguments, directory=directory)
            return float(run_python(*arguments, directory=directory)), True

    return Case(run, measures=True, scale=1)


def time_first_call(structure: str, contender: str) -> float:
    """Seconds until every step ran once, on a few records, when NumPy, Numba and the library are imported."""
    import jitslab  # noqa: F401  # its import is measured in bench_start

    known = steps(structure, SMOKE)
    start = time.perf_counter()
    mine = make(structure, contender, SMOKE)
    answers = {step: getattr(mine, step)() for step in known}
    taken = time.perf_counter() - start
    assert answers == {step: answer for step, (_, answer) in known.items()}
    return taken


# --- The table ---


def beside(contenders: list[str]) -> tuple[Figure, ...]:
    """Return the figures of a row: ahead of every peer, and how far from the floors."""
    peers = [name for name in contenders if name not in UNCHECKED and not name.startswith("cache")]
    floors = [name for name in contenders if name in UNCHECKED]
    return (
        *(speed_ratio("cache", peer, 1.0) for peer in peers),
        *(ratio("cache", name) for name in floors),
    )


def table(sizes: Sizes) -> Table:
    """Return all operations."""
    rows: Table = {}
    seconds = 1.5 if sizes is measure.FULL else None
    for structure, contenders in CONTENDERS.items():
        figures = beside(list(contenders))
        for step in steps(structure, sizes):
            setups: dict[str, Callable[[Sizes], Case]] = {name: partial(step_of, structure, name, step) for name in contenders}
            rows[structure if step == "run" else f"{structure}, {step}"] = Row(setups, figures, seconds=seconds)
    return rows | first_runs(sizes)


def first_runs(sizes: Sizes) -> Table:
    """Return how long each takes until it ran first; but for the full sizes only that it can be measured."""
    rows: Table = {}
    is_full = sizes is measure.FULL  # the library compiles for seconds, from scratch
    for structure in CONTENDERS if is_full else ("linked list",):
        names = [name for name in CONTENDERS[structure] if name not in ("cache, alloc()", "dense array")]
        if not is_full:
            names.remove("cache")
        setups = {name: partial(first_call, structure, name, "library" if name == "cache" else "nothing") for name in names}
        rows[f"{structure}, first run, compiled"] = Row(setups, beside(names), unit="s", most=1)
    if is_full:
        names = [FLOOR, "cache", "jitclass"]
        for text, before in (("compiled, library too", "nothing"), ("in a second process", "run")):
            setups = {name: partial(first_call, "linked list", name, before) for name in names}
            rows[f"linked list, first run, {text}"] = Row(setups, beside(names), unit="s", most=1)
    return rows


if __name__ == "__main__":
    sys.stdout.write(str(time_first_call(*sys.argv[1:])))
