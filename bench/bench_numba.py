"""
Five data structures in nopython code, as Numba users can write them: what they take to run, and until they run first.

A row is one step in a structure's life; the steps before it are done before the clock starts, those after it afterwards.
"""

from __future__ import annotations

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

import numpy as np

import measure
from loops.structures import Structure, life
from measure import SMOKE, Case, Figure, Row, Sizes, Table, ratio, speed_ratio

FLOOR = "arrays + free list"
# Who builds each structure: the module, and what its kernels are called if not as the steps.
CONTENDERS: dict[str, dict[str, tuple[str, dict[str, str]]]] = {
    "linked list": {
        FLOOR: ("on_arrays", {}),
        "cache": ("on_cache", {}),
        "cache, alloc()": ("on_cache", {"build": "build_by_alloc"}),
        "jitclass": ("on_objects", {}),
    },
    "binary tree": {FLOOR: ("on_arrays", {}), "cache": ("on_cache", {}), "jitclass": ("on_objects", {})},
    "hash table": {
        FLOOR: ("on_arrays", {}),
        "cache": ("on_cache", {}),
        "jitclass": ("on_objects", {}),
        "typed.List": ("on_containers", {"table": "table_of_lists"}),
        "typed.Dict": ("on_containers", {"table": "table_of_dict"}),
    },
    "order book": {
        FLOOR: ("on_arrays", {}),
        "cache": ("on_cache", {}),
        "jitclass": ("on_objects", {}),
        "typed.List + Dict": ("on_containers", {}),
    },
    "particle bank": {
        "dense array": ("on_arrays", {"bank": "dense_bank"}),
        FLOOR: ("on_arrays", {}),
        "cache": ("on_cache", {}),
        "jitclass": ("on_objects", {}),
        "structref": ("on_objects", {"bank": "bank_of_structref"}),
        "typed.List": ("on_containers", {"bank": "bank_of_list"}),
        "typed.Dict": ("on_containers", {"bank": "bank_of_dict"}),
        "np.empty(1)": ("on_containers", {"bank": "bank_of_arrays"}),
    },
}
UNCHECKED = (FLOOR, "dense array")  # faster may be these, and only these


def make(structure: str, contender: str, sizes: Sizes) -> Structure:
    """Return a contender's structure, empty; its module is imported now: jitclasses compile at that."""
    return Structure(structure, *CONTENDERS[structure][contender], sizes)


def step_of(structure: str, contender: str, step: str, sizes: Sizes) -> Case:
    """One step; those before and after it are done, and right, but not timed."""
    mine = make(structure, contender, sizes)
    order = list(mine.steps)
    at = order.index(step)

    def do(names: list[str]) -> None:
        for name in names:
            answer = mine.run(name)
            if not mine.is_right(name, answer):
                raise measure.WrongAnswerError(f"{name} answered {answer!r}")

    def ready() -> None:
        do(order[:at])
        np.empty(8_000)  # glibc sorts now what another contender freed: else the next array of a kernel would pay for it

    run, is_right, after = partial(mine.run, step), partial(mine.is_right, step), partial(do, order[at + 1 :])
    return Case(run, mine.steps[step].ops, is_right, ready, after, mine.heap.close)


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

    life(structure, SMOKE)  # its input is made
    start = time.perf_counter()
    mine = make(structure, contender, SMOKE)
    answers = {step: mine.run(step) for step in mine.steps}
    taken = time.perf_counter() - start
    assert answers == {name: step.answer for name, step in mine.steps.items()}
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
        for step in life(structure, sizes):
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
