"""
The traces that are replayed: the kernel's that the package carries, those that are named, and one of malloc.

JITSLAB_TRACES names files, separated as in PATH (`run.py --traces` sets it); JITSLAB_MALLOC_TRACE one of malloc.  Without a
trace of malloc one is recorded here: of Python itself, which compiles with two threads (`compiles`); and one made, of sizes that
vary more.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from jitslab.replay import trace
from measure import SkippedError
from peers import native

NOTED = np.dtype([("at", "i8"), ("bytes", "i8"), ("thread", "i8")])  # an event of foreign/record.c


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """Return the folder of what is made here; it goes with this process."""
    return tempfile.TemporaryDirectory(prefix="jitslab-bench-")


def folder() -> str:
    """Return where what is made here is put."""
    return _temporary().name


def named(threads: int) -> str:
    """Return "1 thread" or "2 threads"."""
    return f"{threads} thread{'s' * (threads > 1)}"


@cache
def load(path: str) -> trace.Trace:
    """Read a trace, once."""
    return trace.load(path)


def named_paths() -> list[str]:
    """Return the files that are named."""
    of_malloc = os.environ.get("JITSLAB_MALLOC_TRACE", "")
    return [path for path in (of_malloc, *os.environ.get("JITSLAB_TRACES", "").split(os.pathsep)) if path]


def once(kind: str, n: int, get: Callable[[], trace.Trace]) -> str:
    """Return the file of a trace of some n allocs; got and saved once, here or by the process that started this one."""
    variable = f"JITSLAB_{kind.upper()}_TRACE_{n}"
    if variable not in os.environ:
        path = str(Path(folder()) / f"{kind}-malloc-{n}.npz")
        trace.save(path, get())
        os.environ[variable] = path
    return os.environ[variable]


def paths(n: int, made: bool) -> dict[str, str]:
    """
    Return {name: file} of all traces.

    If none of malloc is named, one of n allocs or so is recorded, and one made, too, if it is asked for.
    """
    found = {"kernel, packaged": str(trace.packaged())} | {Path(path).stem: path for path in named_paths()}
    if any(load(path).is_malloc for path in named_paths()):
        return found
    try:
        found["python-malloc"] = once("python", n, partial(record, 2 * n))
    except SkippedError as why:
        sys.stderr.write(f"no trace of malloc is recorded: {why}\n")
    return found | ({"made-malloc": once("made", n, partial(make, n))} if made else {})


def threads_of(path: str) -> tuple[int, ...]:
    """How many threads a trace can be replayed by: 1, and 2 if two CPUs are in it."""
    return (1, 2) if len(np.unique(load(path).events["thread"] % 2)) > 1 else (1,)


# --- A trace of malloc, recorded ---


def record(n: int) -> trace.Trace:
    """Return the first n events of malloc of the program `compiles`; raises `SkippedError` without a C compiler."""
    gcc = native.compiler("gcc", "apt install gcc")
    library = native.build("record.so", [gcc, "-shared", "-fPIC"], [native.SOURCES / "record.c"], "apt install gcc")
    path = Path(folder()) / "events"
    with path.open("wb") as file:
        file.truncate(n * NOTED.itemsize)
    around = {"LD_PRELOAD": str(library), "MALLOC_RECORD": str(path), "PYTHONMALLOC": "malloc", "PYTHONHASHSEED": "0"}
    subprocess.run([sys.executable, str(Path(__file__).with_name("compiles.py"))], env=os.environ | around, check=True)
    return of_notes(np.fromfile(path, NOTED))


def of_notes(notes: Any) -> trace.Trace:
    """Return the trace of what was noted: objects by number, without frees of what was there before."""
    events, kept, live, n = np.zeros(len(notes), trace.EVENT), 0, {}, 0
    for at, size, thread in notes[notes["at"] != 0].tolist():
        obj = live.pop(at, None) if size < 0 else n
        if obj is None:
            continue
        if size >= 0:
            live[at], n = n, n + 1
        events[kept] = (trace.FREE if size < 0 else trace.ALLOC, thread, trace.NO_CACHE, max(size, 0), obj)
        kept += 1
    return trace.Trace(np.zeros(0, trace.CACHE), events[:kept])


# --- A trace of malloc, made ---


def make(n: int, seed: int = 7) -> trace.Trace:
    """Return a trace of n allocs: sizes are log-normal, every other object dies young."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(np.exp(rng.normal(4, 1.2, n)), 1, 1 << 17).astype(np.uint32)
    life = np.where(rng.random(n) < 0.6, rng.integers(1, 20, n), rng.integers(1, 60_000, n))
    when = np.concatenate([np.arange(n) * 1.0, np.arange(n) + life + 0.5])
    events = np.zeros(2 * n, trace.EVENT)
    events["obj"] = np.tile(np.arange(n, dtype=np.uint32), 2)
    events["op"][n:] = trace.FREE
    events["size"][:n] = sizes
    events["cache"] = trace.NO_CACHE
    return trace.Trace(np.zeros(0, trace.CACHE), events[np.argsort(when, kind="stable")])
