"""
Memory over the events of traces: what each allocator takes of the system, sampled, in a process of its own; and its peak.

A sample is by how much the process's resident set is larger than before the first event; what it had already does not count,
but the caches that are open do.  The C allocators run in a small C program (foreign/residence.c): in a process of Python they
would serve the trace from what Python's start left in them.  As a script this file is our side: it writes its samples as JSON.
Objects of malloc traces are written whole, those of kernel traces stamped: an untouched page is nobody's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from jitslab.replay import peak, replay, trace
from measure import Case, Row, Sizes, SkippedError, Table, WrongAnswerError, ratio
from peers import allocators, native, traces
from peers.allocators import ALLOCATORS

RESIDENT = Path("/proc/self/smaps_rollup")  # counted page by page: the other sources of a resident set are some pages off
SAMPLES = 120
TUNED = "jitslab, tuned"  # its classes fitted to the sizes of the trace
MOST_CLASSES = 36  # as many as the traces use of those that it has; with 24 nothing changed, and each more costs pages
INSTALL = "apt install gcc"
DRAWN = slice(1, None, 2)  # samples that are kept, the last among them
sampled: dict[str, dict[str, Any]] = {}  # by trace: what `curves` returns


# --- Our side, in a process of its own: this file as a script ---


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(RESIDENT.read_text().split("Rss:")[1].split()[0]) << 10


def sample(path: str, threads: int, classes: int) -> list[int]:
    """Run a trace once, in steps; returns mismatches, and the memory after each step and when all was freed."""
    loaded = traces.load(path)
    options: dict[str, Any] = {"fill": True} if loaded.is_malloc else {}
    kind: Any = replay.MallocReplay if loaded.is_malloc else replay.Replay
    opened = 0

    class Opened(kind):
        """A replay whose open caches are counted."""

        def _open(self, stack: ExitStack, thread: Any) -> None:
            nonlocal opened
            before = resident()
            super()._open(stack, thread)
            opened = resident() - before

    with kind(trace.cut(loaded, peak.WARM_EVENTS), threads, **options) as warm:
        list(warm.steps("jitslab", 2))
    with Opened(loaded, threads, **options) as run:
        if classes:
            run.allocator.tune(run._sizes, classes)
        run.touch()
        memory, bad, steps = np.zeros(SAMPLES + 1, np.int64), 0, run.steps("jitslab", SAMPLES)
        peak.start_peak()
        before = resident() - opened
        for i, (_, found) in enumerate(steps):
            memory[i], bad = resident() - before, found
    return [bad, *memory.tolist()]


# --- C allocators ---


@cache
def words_of(path: str, threads: int) -> str:
    """Return the file of a trace as the C program reads it."""
    loaded = traces.load(path)
    events, sizes = loaded.events, np.maximum(loaded.allocs["size"], 1).astype(np.int64)
    head = np.array([len(events), len(sizes), threads, loaded.is_malloc, 0, 0], np.int64)
    words = events["obj"].astype(np.int64) << 8 | (events["thread"] % threads).astype(np.int64) << 1 | events["op"]
    with tempfile.NamedTemporaryFile(dir=traces.folder(), suffix=".words", delete=False) as file:
        np.concatenate([head, words, sizes]).tofile(file)
    return file.name


@cache
def program() -> str:
    """Return the C program."""
    gcc = native.compiler("gcc", INSTALL)
    return str(native.build("residence", [gcc, "-pthread"], [native.SOURCES / "residence.c"], INSTALL))


def sample_malloc(allocator: str, path: str, threads: int) -> list[int]:
    """Run a trace once on an allocator; returns as `sample`."""
    command = [program(), words_of(path, threads), str(SAMPLES), ALLOCATORS[allocator].file]
    done = subprocess.run(command, env=allocators.environment(allocator), stdout=subprocess.PIPE, text=True, check=True)
    is_there, *found = map(int, done.stdout.split())
    if not is_there:
        raise WrongAnswerError(f"{allocator} was not preloaded")
    return found


# --- The table ---


def peak_of(contender: str, name: str, path: str, threads: int, sizes: Sizes) -> Case:
    """The peak of the samples."""
    if not RESIDENT.exists():
        raise SkippedError(f"needs {RESIDENT} of Linux")
    is_ours = contender.startswith("jitslab")
    if not is_ours:
        program()
        allocators.environment(contender)

    def run() -> tuple[float, bool]:
        if is_ours:
            arguments = path, str(threads), str(MOST_CLASSES if contender == TUNED else 0)
            command = [sys.executable, str(Path(__file__)), *arguments]
            bad, *memory = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        else:
            bad, *memory = sample_malloc(contender, path, threads)
        *memory, freed = memory
        curve = sampled.setdefault(name, {"trace": name, **live(path), "memory": {}, "freed": {}})
        curve["memory"][contender], curve["freed"][contender] = [n >> 10 for n in memory[DRAWN]], freed >> 10
        return max(memory) / 2**20, bad == 0 and max(memory) > 0

    return Case(run, measures=True, scale=1)


@cache
def live(path: str) -> dict[str, list[int]]:
    """Return how many events each sample that is kept has behind it, and the KiB that are live then."""
    loaded = traces.load(path)
    events, sizes = loaded.events, loaded.allocs["size"].astype(np.int64)
    now = np.cumsum(np.where(events["op"] == trace.ALLOC, 1, -1) * sizes[events["obj"]])
    ends = [len(events) * step // SAMPLES for step in range(1, SAMPLES + 1)][DRAWN]
    return {"events": ends, "live": [int(now[end - 1]) >> 10 if end else 0 for end in ends]}


def curves() -> list[dict[str, Any]]:
    """Return the samples of all that was run, in KiB."""
    return list(sampled.values())


def table(sizes: Sizes) -> Table:
    """Return all operations."""
    rows: Table = {}
    for name, path in traces.paths(sizes.batch, sizes.least > 2).items():
        ours = ["jitslab", TUNED] if traces.load(path).is_malloc else ["jitslab"]
        figures = tuple(ratio(one, other, 1.0) for one in ours for other in ALLOCATORS)
        for threads in traces.threads_of(path) if sizes.least > 2 else (1,):
            of = f"{name}, {traces.named(threads)}"
            contenders = {one: partial(peak_of, one, of, path, threads) for one in (*ours, *ALLOCATORS)}
            rows[f"peak, {of}"] = Row(contenders, figures, unit="MiB", most=3 if sizes.least > 2 else 1)
    return rows


if __name__ == "__main__":
    sys.stdout.write(json.dumps(sample(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
