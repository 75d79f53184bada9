"""
Replaying a trace: the same events on slab caches and on the process's malloc, every record stamped and verified.

`measure` is the main entry.  An alloc writes a stamp made from the object's number into the record, and a free first verifies it.
Each side runs its events in a compiled loop without the GIL, in any number of threads.  A thread that frees an object waits until
another thread has allocated it.  That cannot lock up: in the trace the alloc comes first, and every thread keeps the order of its
own events.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..cache import SlabCache, counts_of
from ..core.layout import HEAPS
from ..errors import CacheFullError, FaultError, TraceError
from ..machine.compile import Entry
from ..sizes.classes import SizeClasses
from .loops import (
    ALLOCATOR,
    CONTROL,
    FILL,
    REFUSED,
    ROW,
    SIZE,
    SIZES,
    STRIDE,
    WIDTH,
    run_malloc,
    run_malloc_sizes,
    run_sizes,
    run_slabs,
)
from .trace import ALLOC, FREE, NO_CACHE, Trace

Words = npt.NDArray[np.int64]


def stamp_bytes(size: int) -> int:
    """Bytes of the stamp in an object of `size` bytes: the widest that stays aligned in an array of them."""
    return 8 if size % 8 == 0 else 4 if size % 4 == 0 else 1


def record_dtype(size: int) -> np.dtype[Any]:
    """Return the dtype of a record of `size` bytes: a stamp, and the other bytes."""
    width = stamp_bytes(size)
    fields: list[Any] = [("stamp", f"u{width}")]
    if size > width:
        fields.append(("rest", "u1", (size - width,)))
    return np.dtype(fields)


@dataclass(frozen=True)
class SlabInfo:
    """
    One line of the table: a cache at the end of the trace, in the columns of Linux's slabinfo.

    Attributes
    ----------
    name : str
    object_size : int
        Bytes of a record.
    active_objects : int
        Live records.
    total_slots : int
        Slots of all slabs.
    objects_a_slab : int
    slabs : int
    memory : int
        Bytes of the slabs' records and generations.
    """

    name: str
    object_size: int
    active_objects: int
    total_slots: int
    objects_a_slab: int
    slabs: int
    memory: int


@dataclass(frozen=True)
class Pass:
    """
    One run over all events.

    Attributes
    ----------
    ns : float
        Nanoseconds an operation: wall time from the first thread's start to the last one's end, over the number of events.
    mismatches : int
        Records found changed, by the frees of the trace and by those of the records left live after it.
    page_faults : int
        Pages that the system had to give the process meanwhile.
    cpu_ns : float
        Nanoseconds an operation that the process had a CPU: less than `ns` while others had it.
    """

    ns: float
    mismatches: int
    page_faults: int
    cpu_ns: float = 0.0


class Replay:
    """
    A trace, made ready to run: threads that wait, open caches, events as words.

    Parameters
    ----------
    trace : Trace
    threads : int, default 1
        Thread t runs the events of the CPUs whose number modulo `threads` is t.

    Raises
    ------
    TraceError
        If more would be live at once than half of the machine's memory, or `threads` is not 1 .. 256.

    Notes
    -----
    With one thread the events run in the caller's.  Between two passes everything live is freed, each record by the thread that
    allocated it; the caches stay open.

    Examples
    --------
    >>> from jitslab.replay import replay, trace
    >>> with replay.Replay(trace.load(trace.packaged())) as run:
    ...     first = run.slabs()
    ...     names = [line.name for line in run.slabinfo]
    >>> first.mismatches, names[:2]
    (0, ['names_cache', 'filp'])
    """

    _entries: ClassVar[dict[str, Entry]] = {"jitslab": run_slabs, "malloc": run_malloc}

    def __init__(self, trace: Trace, threads: int = 1) -> None:
        if not 1 <= threads <= HEAPS:
            raise TraceError(f"the events can be run by 1 .. {HEAPS} threads, not by {threads}")
        self.trace, self.slabinfo = trace, list[SlabInfo]()
        self._thread = thread = trace.events["thread"] % threads if threads < HEAPS else trace.events["thread"]
        need, have = self._most_bytes(thread), memory_bytes() // 2
        if need > have:
            raise TraceError(f"{need >> 20} MiB can be live at once, more than half of this machine's memory ({have >> 20} MiB)")
        self._programs = split(pack(trace.events), thread, threads)
        rest = trace.allocs[trace.survivors].copy()
        rest["op"] = FREE
        self._drains = split(pack(rest), thread[trace.events["op"] == ALLOC][trace.survivors], threads)
        self._handles = np.zeros(len(trace.allocs) + 1, np.int64)
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._open(stack, thread)
            pools = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(threads if threads > 1 else 0)]
            self._stack = stack.pop_all()
        self._pools = pools
        self._tables = [self._table() for _ in range(threads)]

    def _most_bytes(self, thread: npt.NDArray[Any]) -> int:
        """Bytes that can be live at once."""
        self._most = self.trace.most_live(thread)
        return int((self._most * self.trace.caches["size"].astype(np.int64)).sum())

    def _open(self, stack: ExitStack, thread: npt.NDArray[Any]) -> None:
        """Open the caches."""
        self.caches = [
            stack.enter_context(SlabCache(str(name), record_dtype(int(size)), capacity=max(int(n), 1)))
            for (name, size), n in zip(self.trace.caches, self._most, strict=True)
        ]

    def __enter__(self) -> Replay:
        """Return it; leaving the block ends the threads and closes the caches."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the threads and close the caches; refused frees were counted as mismatches."""
        for cache in self.caches:
            with suppress(FaultError):
                cache.raise_faults()
        self._stack.close()

    def slabs(self) -> Pass:
        """Run the events on caches or the allocator, take `slabinfo`, check the laws, and free live objects."""
        return self._run_and_drain(self._entries["jitslab"], self._look)

    def malloc(self) -> Pass:
        """Run the events on the process's malloc, and free live objects."""
        return self._run_and_drain(self._entries["malloc"], lambda: None)

    def touch(self) -> None:
        """Have the system give the memory of all arrays."""
        self._handles[:] = 0
        sum(int(words.sum()) for words in (*self._programs, *self._drains))

    def events_of(self, side: str) -> int:
        """Run the events of the trace once on "jitslab" or "malloc", and nothing else; returns mismatches."""
        return self._run(self._entries[side], self._programs)[1]

    def steps(self, side: str, count: int) -> Iterator[tuple[int, int]]:
        """
        Run the events once on "jitslab" or "malloc" as `events_of`, in `count` even steps, then free live objects.

        The steps are prepared before it returns.  The iterator gives (events done, mismatches so far) after each step, and again
        when all objects are freed.
        """
        ends = [len(self.trace.events) * step // count for step in range(1, count + 1)]
        cuts = [np.searchsorted(np.flatnonzero(self._thread == t), [0, *ends]) for t in range(len(self._tables))]
        steps = [[words[at[i] : at[i + 1]] for words, at in zip(self._programs, cuts, strict=True)] for i in range(count)]
        return self._run_steps(self._entries[side], ends, steps)

    def _run_steps(self, entry: Entry, ends: list[int], steps: list[list[Words]]) -> Iterator[tuple[int, int]]:
        """Run each thread's events of every step, and free live objects."""
        bad = 0
        self._handles[:] = 0
        for done, programs in zip(ends, steps, strict=True):
            bad += self._run(entry, programs)[1]
            yield done, bad
        yield len(self.trace.events), bad + self._run(entry, self._drains)[1]

    def _look(self) -> None:
        """Take the table and recount every cache."""
        self.slabinfo = [line(cache.name, cache.dtype.itemsize, *counts_of(cache)) for cache in self.caches]
        for cache in self.caches:
            cache.check()

    def _run_and_drain(self, entry: Entry, at_end: Callable[[], None]) -> Pass:
        """Run the events, call `at_end`, and free live objects."""
        _ = entry.address  # compiled before the clock runs
        self._handles[:] = 0
        faults, cpu = page_faults(), time.process_time_ns()
        ns, bad = self._run(entry, self._programs)
        faults, cpu = page_faults() - faults, time.process_time_ns() - cpu
        if (self._handles == REFUSED).any():
            raise CacheFullError("the system gives no memory for the objects of the trace")
        at_end()
        n = max(len(self.trace.events), 1)
        return Pass(ns / n, bad + self._run(entry, self._drains)[1], faults, cpu / n)

    def _run(self, entry: Entry, programs: list[Words]) -> tuple[int, int]:
        """Run each thread's events; returns nanoseconds and mismatches."""
        start = threading.Barrier(len(programs))

        def one(words: Words, table: Words) -> tuple[int, int, int]:
            args = words.ctypes.data, words.size, self._handles.ctypes.data, table.ctypes.data, len(table)
            start.wait()
            began = time.perf_counter_ns()
            bad = entry(*args)
            return began, time.perf_counter_ns(), bad

        if self._pools:
            jobs = zip(self._pools, programs, self._tables, strict=True)
            try:
                results = [future.result() for future in [pool.submit(one, words, table) for pool, words, table in jobs]]
            except BaseException:  # Ctrl-C between two threads: the first would wait for the second for ever
                start.abort()
                raise
        else:
            results = [one(programs[0], self._tables[0])]
        began, ended, bad = zip(*results, strict=True)
        return max(ended) - min(began), sum(bad)

    def _table(self) -> Words:
        """Return one thread's table of the caches."""
        table = np.zeros((len(self.caches), ROW // 8), np.int64)
        for row, cache in zip(table, self.caches, strict=True):
            size = cache.dtype.itemsize
            row[[CONTROL, STRIDE, WIDTH, SIZE]] = cache._address, cache.stride, stamp_bytes(size), size
        return table


class MallocReplay(Replay):
    """
    A trace of malloc, made ready to run on an allocator by size and on the process's malloc; otherwise as `Replay`.

    Parameters
    ----------
    trace : Trace
    threads : int, default 1
    allocator : SizeClasses, optional
        Runs the events; without it, a new one.
    fill : bool, default False
        Zero all bytes of every object: a program would use them, and so each side's pages come to be counted.
    """

    _entries: ClassVar[dict[str, Entry]] = {"jitslab": run_sizes, "malloc": run_malloc_sizes}

    def __init__(self, trace: Trace, threads: int = 1, *, allocator: SizeClasses | None = None, fill: bool = False) -> None:
        self._given, self._fill = allocator, fill
        self._sizes = np.maximum(trace.allocs["size"], 1).astype(np.uint32)
        super().__init__(trace, threads)

    def _most_bytes(self, thread: npt.NDArray[Any]) -> int:
        """Bytes that can be live at once: as the events stand, since no bound is known for several threads but all."""
        events = self.trace.events
        sizes = self._sizes[events["obj"]].astype(np.int64)
        live = np.cumsum(np.where(events["op"] == ALLOC, sizes, -sizes))
        return int(live.max(initial=0)) if not thread.any() else int(self._sizes.sum(dtype=np.int64))

    def _open(self, stack: ExitStack, thread: npt.NDArray[Any]) -> None:
        """Open the allocator."""
        self.caches = []
        self.allocator = self._given if self._given is not None else stack.enter_context(SizeClasses("replay"))

    def touch(self) -> None:
        """Have the system give the memory of all arrays."""
        super().touch()
        self._sizes.sum()

    def _look(self) -> None:
        """Take the table and recount every class."""
        stats = self.allocator.stats
        self.slabinfo = [
            line(f"{each.low + 1} to {each.high}", each.high, each.live, each.slots, each.slabs, each.memory)
            for each in stats.classes
        ]
        if stats.large:
            self.slabinfo.append(line("pages of their own", 0, stats.large, stats.large, stats.large, stats.large_used))
        self.allocator.check()

    def _table(self) -> Words:
        """Return one thread's table: one row."""
        table = np.zeros((1, ROW // 8), np.int64)
        table[0, [ALLOCATOR, SIZES, FILL]] = self.allocator._address, self._sizes.ctypes.data, int(self._fill)
        return table

    @property
    def waste(self) -> float:
        """Share of the bytes given out that nobody asked for, over all allocs of the trace."""
        sizes, counts = np.unique(self._sizes, return_counts=True)
        highs = np.array(self.allocator.table)
        is_large = sizes > highs[-1]
        given = np.where(is_large, -(-sizes.astype(np.int64) // 4096) * 4096, highs[np.searchsorted(highs, sizes) - is_large])
        used = int((given * counts).sum())
        return 1 - int((sizes * counts).sum()) / used if used else 0.0


def make(trace: Trace, threads: int) -> Replay:
    """Return the trace ready to run."""
    return MallocReplay(trace, threads) if trace.is_malloc else Replay(trace, threads)


@dataclass(frozen=True)
class Outcome:
    """
    The measurements of a replay.

    Attributes
    ----------
    slabinfo : list of SlabInfo
        The caches at the end of the trace, at the last pass.
    passes : dict of str to list of Pass
        Of "jitslab" and of "malloc": the first pass, over untouched memory, and the later ones.
    waste : float, optional
        Of a trace of malloc: share of the bytes given out that nobody asked for.
    peak : dict of str to int, optional
        Of a trace of malloc: most bytes of memory that the events took on each side, if they were measured (`peak_bytes`).
    """

    slabinfo: list[SlabInfo]
    passes: dict[str, list[Pass]]
    waste: float | None = None
    peak: dict[str, int] | None = None

    @property
    def mismatches(self) -> int:
        """Records found changed, in all passes."""
        return sum(each.mismatches for side in self.passes.values() for each in side)

    def first(self, side: str) -> float:
        """Nanoseconds an operation of the first pass."""
        return self.passes[side][0].ns

    def later(self, side: str) -> float:
        """Nanoseconds an operation of the later passes: their median."""
        return statistics.median(each.ns for each in self.passes[side][1:])

    def faults(self, side: str) -> float:
        """Page faults of the later passes: their median."""
        return statistics.median(each.page_faults for each in self.passes[side][1:])


def measure(trace: Trace, threads: int = 1, repeat: int = 5, tick: Callable[[], None] = lambda: None) -> Outcome:
    """
    Replay a trace on slab caches and on malloc in turn: once over untouched memory, then `repeat` times more.

    Parameters
    ----------
    trace : Trace
        The trace.
    threads : int, default 1
        As of `Replay`.
    repeat : int, default 5
        Later passes of each side, 1 or more.
    tick : callable, optional
        Called after each pass, 2 + 2 * repeat times.

    Raises
    ------
    TraceError
        As `Replay`; or if `repeat` is not positive.
    """
    if repeat < 1:
        raise TraceError(f"the later passes are run 1 time or more, not {repeat}")
    passes: dict[str, list[Pass]] = {"jitslab": [], "malloc": []}
    with make(trace, threads) as run:
        for _ in range(1 + repeat):
            for side, one in (("jitslab", run.slabs), ("malloc", run.malloc)):
                passes[side].append(one())
                tick()
        return Outcome(run.slabinfo, passes, run.waste if isinstance(run, MallocReplay) else None)


def pack(events: npt.NDArray[np.void]) -> Words:
    """Return one word an event."""
    cache = np.where(events["cache"] == NO_CACHE, 0, events["cache"]).astype(np.int64)
    words: Words = events["obj"].astype(np.int64) << 32 | cache * ROW | events["op"]
    return words


def split(words: Words, thread: npt.NDArray[Any], threads: int) -> list[Words]:
    """Return the words of each thread, in their order."""
    return [np.ascontiguousarray(words[thread == t]) for t in range(threads)]


def line(name: str, size: int, live: int, slots: int, slabs: int, memory: int) -> SlabInfo:
    """Return a line of the table."""
    return SlabInfo(name, size, live, slots, slots // slabs if slabs else 0, slabs, memory)


def memory_bytes() -> int:
    """Bytes of the machine's memory, as far as the system tells."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 40


def page_faults() -> int:
    """Page faults of this process so far, as far as the system tells."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
