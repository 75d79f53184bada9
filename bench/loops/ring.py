"""
Two threads: a team that starts together, and a ring through which records go from the one to the other.

The ring carries what `heaps` calls a ref: the handle of a cache, or an address of C.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from loops.heaps import alloc, at, give
from loops.malloc import SIZE, load, store

njit = partial(numba.njit, cache=True, nogil=True)
sched_yield = types.ExternalFunction("sched_yield", types.int32())
SHARE = 64  # records that are published at a time
HEAD, TAIL, PLACES = 16, 32, 48  # each on a line of its own


class Team:
    """Threads that stay the same from job to job, each on a core of its own; the jobs of one call start together."""

    def __init__(self, size: int = 2) -> None:
        self._barrier = threading.Barrier(size)
        self._jobs: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(size)]
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, args=(i,), daemon=True) for i in range(size)]
        for thread in self._threads:
            thread.start()

    def _work(self, i: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[i % len(cores)]})
        while (job := self._jobs[i].get()) is not None:
            self._barrier.wait()
            start = time.perf_counter()
            try:
                answer = job()
            except BaseException as error:  # raised in `run`
                answer = error
            self._done.put((i, start, time.perf_counter(), answer))

    def run(self, *jobs: Callable[[], Any]) -> tuple[float, list[Any]]:
        """Run one job on each thread; returns seconds from the first start to the last end, and the answers."""
        for waiting, job in zip(self._jobs, jobs, strict=True):
            waiting.put(job)
        found = sorted(self._done.get() for _ in jobs)
        for *_, answer in found:
            if isinstance(answer, BaseException):
                raise answer
        return max(f[2] for f in found) - min(f[1] for f in found), [f[3] for f in found]

    def close(self) -> None:
        """End the threads, and wait until they have ended."""
        for waiting in self._jobs:
            waiting.put(None)
        for thread in self._threads:
            thread.join()


# --- Positions: published after the records that they cover ---


@intrinsic
def publish(typing, array, index, value):
    """Store an int64 into an array, after everything stored before it."""

    def emit(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        builder.store_atomic(args[2], builder.gep(data, [args[1]]), "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), emit


@intrinsic
def published(typing, array, index):
    """Load an int64 from an array, before everything that is loaded after it."""

    def emit(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(builder.gep(data, [args[1]]), "acquire", 8)

    return types.int64(array, types.int64), emit


def new_positions() -> Any:
    """Return the positions of an empty ring."""
    return np.zeros(PLACES, np.int64)


@njit
def wait_for_room(positions, i, room):
    """Publish what is written; wait until the reader is fewer than `room` behind: its position."""
    publish(positions, HEAD, i)
    tail = published(positions, TAIL)
    while i - tail > room:
        sched_yield()
        tail = published(positions, TAIL)
    return tail


@njit
def wait_for_more(positions, i):
    """Publish what is read; wait until there is more: up to where."""
    publish(positions, TAIL, i)
    head = published(positions, HEAD)
    while head == i:
        sched_yield()
        head = published(positions, HEAD)
    return head


# --- Records that go through it ---


@njit
def send(heap, n, ring, positions):
    """Alloc n records, write each, put its ref into the ring."""
    tail = 0
    for i in range(n):
        if i - tail > ring.size - 1 - SHARE:
            tail = wait_for_room(positions, i, ring.size - 1 - SHARE)
        ref, address = alloc(heap, SIZE)
        store(address, i)
        ring[i & (ring.size - 1)] = ref
        if i % SHARE == SHARE - 1:
            publish(positions, HEAD, i + 1)
    publish(positions, HEAD, n)


@njit
def receive(heap, n, ring, positions):
    """Take n records from the ring, read each, free it: how many were as they should be."""
    head = 0
    right = 0
    for i in range(n):
        if i == head:
            head = wait_for_more(positions, i)
        ref = ring[i & (ring.size - 1)]
        is_right = load(at(heap, ref, SIZE)) == i
        right += give(heap, ref, SIZE) and is_right
        if i % SHARE == SHARE - 1:
            publish(positions, TAIL, i + 1)
    publish(positions, TAIL, n)
    return right
