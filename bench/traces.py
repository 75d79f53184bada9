"""
The traces that are replayed: the kernel's that the package carries, those that are named, and one of malloc.

JITSLAB_TRACES names files, separated as in PATH (`run.py --traces` sets it); JITSLAB_MALLOC_TRACE one of malloc.  Without a
trace of malloc one is made: lives and sizes as a program's, most small and short.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from jitslab import trace

MADE = "JITSLAB_MADE_TRACE"  # where the processes that this one starts find the made one


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
    """Return the file of a trace of malloc: one that is named, or one of n allocs, made here."""
    named = [os.environ.get("JITSLAB_MALLOC_TRACE", ""), *os.environ.get("JITSLAB_TRACES", "").split(os.pathsep)]
    for path in filter(None, named):
        if load(path).is_malloc:
            return path
    path = os.environ.get(f"{MADE}_{n}", "")
    if not path:
        path = os.environ[f"{MADE}_{n}"] = str(Path(folder()) / f"made-malloc-{n}.npz")
        trace.save(path, make(n))
    return path


def paths(n: int) -> dict[str, str]:
    """Return {name: file} of all traces; n allocs are in one that is made."""
    named = filter(None, os.environ.get("JITSLAB_TRACES", "").split(os.pathsep))
    found = {"kernel, packaged": str(trace.packaged())} | {Path(path).stem: path for path in named}
    malloc = malloc_path(n)
    return found if malloc in found.values() else found | {Path(malloc).stem.removesuffix(f"-{n}"): malloc}


def threads_of(path: str) -> tuple[int, ...]:
    """How many threads a trace can be replayed by: 1, and 2 if two CPUs are in it."""
    return (1, 2) if len(np.unique(load(path).events["thread"] % 2)) > 1 else (1,)


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
