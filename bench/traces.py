"""
The traces that are replayed: the kernel's that the package carries, those that are named, and one of malloc.

JITSLAB_TRACES names files, separated as in PATH (`run.py --traces` sets it); JITSLAB_MALLOC_TRACE one of malloc.  Without a
trace of malloc one is recorded here: of Python itself, which compiles with two threads (`compiles`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import native
from jitslab import trace
from measure import SkippedError

RECORDED = "JITSLAB_RECORDED_TRACE"  # where the processes that this one starts find the recorded one
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


def malloc_path(n: int) -> str:
    """Return the file of a trace of malloc: one that is named, or one of n allocs or so, recorded here."""
    named = [os.environ.get("JITSLAB_MALLOC_TRACE", ""), *os.environ.get("JITSLAB_TRACES", "").split(os.pathsep)]
    for path in filter(None, named):
        if load(path).is_malloc:
            return path
    path = os.environ.get(f"{RECORDED}_{n}", "")
    if not path:
        path = os.environ[f"{RECORDED}_{n}"] = str(Path(folder()) / f"python-malloc-{n}.npz")
        trace.save(path, record(2 * n))
    return path


def paths(n: int) -> dict[str, str]:
    """Return {name: file} of all traces; n allocs are in one that is made."""
    named = filter(None, os.environ.get("JITSLAB_TRACES", "").split(os.pathsep))
    found = {"kernel, packaged": str(trace.packaged())} | {Path(path).stem: path for path in named}
    try:
        malloc = malloc_path(n)
    except SkippedError as why:
        sys.stderr.write(f"no trace of malloc: {why}\n")
        return found
    return found if malloc in found.values() else found | {Path(malloc).stem.removesuffix(f"-{n}"): malloc}


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
