"""
What is paid once: import, first use of each layer, compiling it, opening many caches; and memory: of a small cache, a slot.

Every run is a fresh process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np

import measure
from jitslab import SlabCache
from measure import RECORD, Case, Figure, Row, Sizes, Table, ratio

SLOTS = 1_000_000  # of the cache whose metadata is counted
ALLOC = "import numpy, jitslab; c = jitslab.SlabCache('first', numpy.dtype([('x', 'i8')]), capacity=1000); assert c.alloc()"
KERNEL = "from numpy import zeros; from loops.access import walk; walk(zeros(1, [('value', 'i8'), ('next', 'i8')]), 0)"
WARMUP = "import jitslab; jitslab.warmup()"
POINT = "numpy.dtype([('x', 'i8'), ('y', 'f8')])"
FIRST_USES = {
    "SlabCache, alloc()": f"jitslab.SlabCache('first', {POINT}, capacity=1000).alloc()",
    "SlabCache, guard": f"g = jitslab.SlabCache('first', {POINT}, capacity=1000).allocate(); g.x = 5; g.free()",
    "SlabAllocator, allocate(64)": "jitslab.SlabAllocator('first').allocate(64)",
    "SlabAllocator, allocate_typed()": f"jitslab.SlabAllocator('first').allocate_typed({POINT})",
    "initialize(), allocate(64)": "jitslab.initialize(); jitslab.allocate(64)",
    "initialize(), allocate_object()": f"jitslab.initialize(); o = jitslab.allocate_object({POINT}); o.x = 5; o.free()",
}  # after the import, the first of all that a process does
COMPILED = ("SlabCache, alloc()", "SlabAllocator, allocate(64)")  # the other first uses compile little more
TIMER = "import json, time; import {}; a = time.perf_counter(); {}; print(json.dumps(time.perf_counter() - a))"


def python(*arguments: str, **environment: str) -> str:
    """Run Python; returns what it writes."""
    command = [sys.executable, *arguments]
    environment["PYTHONPATH"] = measure.python_path()
    return subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True).stdout


# --- Time ---


def process_of(code: str, sizes: Sizes) -> Case:
    """Start a process that runs a statement, its compile cache warm, and wait for its end."""
    return Case(lambda: python("-c", code) == "", scale=1)


def within(before: str, code: str, is_cold: bool, sizes: Sizes) -> Case:
    """Seconds that a statement takes within a fresh process, its modules imported before; compiled now if it is cold."""

    def run() -> tuple[float, bool]:
        with tempfile.TemporaryDirectory() as empty:
            text = python("-c", TIMER.format(before, code), **({"NUMBA_CACHE_DIR": empty} if is_cold else {}))
        return float(json.loads(text)), True

    return Case(run, measures=True, scale=1)


def cold(code: str, sizes: Sizes) -> Case:
    """Start a process that has to compile everything."""

    def run() -> bool:
        with tempfile.TemporaryDirectory() as empty:
            return python("-c", code, NUMBA_CACHE_DIR=empty) == ""

    return Case(run, scale=1)


# --- In a process of its own: this file as a script ---


def count(what: str, key: str, sizes: Sizes) -> Case:
    """Return one of the numbers that a function of this file counts, in a fresh process."""

    def run() -> tuple[float, bool]:
        found = json.loads(python(str(Path(__file__)), what, sizes.name))
        return found[key], True

    return Case(run, measures=True, scale=1)


def resident() -> int:
    """Return bytes of this process that are in memory, and not files."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def many_caches(sizes: Sizes) -> dict[str, float]:
    """Open many caches, one record in each."""
    dtype = np.dtype([("x", "i8")])
    first = SlabCache("warm", dtype, capacity=sizes.cache_capacity)
    first.alloc()
    before, start = resident(), time.perf_counter()
    caches = [SlabCache("one of many", dtype, capacity=sizes.cache_capacity) for _ in range(sizes.caches)]
    opened, opened_bytes = time.perf_counter() - start, resident() - before
    handles = [cache.alloc() for cache in caches]
    used_bytes = resident() - before
    assert all(len(cache) == 1 and handle in cache for cache, handle in zip(caches, handles, strict=True))
    start = time.perf_counter()
    for cache in caches:
        cache.close()
    closed = time.perf_counter() - start
    n = sizes.caches
    times = {"open": opened / n * 1e6, "close": closed / n * 1e6}
    return times | {"opened": opened_bytes / n, "one record": used_bytes / n}


def metadata(sizes: Sizes) -> dict[str, float]:
    """Fill a cache whose records nobody touches: what becomes resident is metadata."""
    with SlabCache("warm", RECORD, capacity=SLOTS) as cache:
        cache.alloc_many(SLOTS)
    out = np.full(SLOTS, -1)  # touched
    before = resident()
    cache = SlabCache("metadata", RECORD, capacity=SLOTS)
    cache.alloc_many(SLOTS, out)
    found = resident() - before
    slabs = len(cache.pages)
    return {"all": found / SLOTS, "allowed": (8 * SLOTS + 64 * slabs) / SLOTS}


COUNTS = {"many_caches": many_caches, "metadata": metadata}


# --- The table ---


def table(sizes: Sizes) -> Table:
    """Return all operations."""
    small = {key: partial(count, "many_caches", key) for key in ("opened", "one record")}
    limit = 65536.0
    compiled: Table = {
        "first use after the import, compiled": Row(
            {name: partial(within, "numpy, jitslab", FIRST_USES[name], True) for name in COMPILED},
            tuple(Figure(name, itemgetter(name), unit="s") for name in COMPILED),
            unit="s",
            most=1,
        ),
        "cold compile of everything": Row(
            {"import numba": partial(cold, "import numba"), "warmup()": partial(cold, WARMUP)},
            (Figure("warmup() over import numba", lambda t: t["warmup()"] - t["import numba"], 5.0, unit="s"),),
            unit="s",
            most=1,
        ),
    }  # of the full sizes: they take a minute
    return {
        **(compiled if sizes.least > 2 else {}),
        "fresh process, warm compile cache": Row(
            {
                "import numba": partial(process_of, "import numba"),
                "one cached @njit": partial(process_of, KERNEL),
                "import jitslab, first alloc": partial(process_of, ALLOC),
            },
            (
                Figure("one cached @njit over import numba", lambda t: t["one cached @njit"] - t["import numba"], unit="s"),
                Figure(
                    "first alloc over import numba",
                    lambda t: t["import jitslab, first alloc"] - t["import numba"],
                    0.25,
                    unit="s",
                ),
            ),
            unit="s",
            most=10,
            seconds=10.0,
        ),
        "import": Row(
            {name: partial(within, "sys", f"import {name}", False) for name in ("numpy", "numba", "jitslab")},
            (Figure("jitslab over numba", lambda t: t["jitslab"] - t["numba"], unit="s"),),
            unit="s",
            most=5 if sizes.least > 2 else 1,
            seconds=4.0,
        ),
        "first use after the import, warm compile cache": Row(
            {name: partial(within, "numpy, jitslab", code, False) for name, code in FIRST_USES.items()},
            tuple(Figure(name, itemgetter(name), unit="s") for name in FIRST_USES),
            unit="s",
            most=3 if sizes.least > 2 else 1,
            seconds=6.0,
        ),
        f"{sizes.caches:,} open caches of capacity {sizes.cache_capacity:,}": Row(
            {key: partial(count, "many_caches", key) for key in ("open", "close")},
            (Figure("open", lambda t: t["open"], unit="µs a cache"),),
            unit="µs",
            most=2,
        ),
        f"{sizes.caches:,} open caches, resident": Row(
            small,
            (Figure("with one record", lambda t: t["one record"], limit, unit="bytes"),),
            unit="bytes",
            most=1,
        ),
        f"metadata of {SLOTS:,} slots, resident": Row(
            {"all": partial(count, "metadata", "all"), "allowed": partial(count, "metadata", "allowed")},
            (ratio("all", "allowed", 1.0), Figure("metadata", lambda t: t["all"], unit="bytes a slot")),
            unit="bytes",
            most=1,
        ),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(COUNTS[sys.argv[1]](measure.SIZES[sys.argv[2]])))
