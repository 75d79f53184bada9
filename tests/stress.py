"""
Threads that stamp, hand over, verify and free records, as long as you like: ``python tests/stress.py --seconds 60``.

Properties of the workload: every record carries its owner's mark and its own handle while it lives; two thirds of the
records are handed to another thread through a ring and freed there; batches and single operations are mixed; threads
end in the middle with survivors that others free; the cache runs full at times; every fourth run is on three simulated
NUMA nodes, between which the threads keep moving.  It is no benchmark.
"""

import argparse
import sys
import threading
import time

import numpy as np
from numba import njit

import jitslab
from jitslab.machine import numa

MARKED = np.dtype([("handle", "<i8"), ("mark", "<i8"), ("tail", "<i8", 4)])
RING = 1024


@njit(nogil=True)
def work(cache, rings, heads, tails, me, rounds, seed):
    """
    Allocate, mark, hand over, verify and free; returns how many marks were wrong.

    `rings[me]` is read by thread `me` alone and written by the thread before it.
    """
    wrong = 0
    n_threads = rings.shape[0]
    after = (me + 1) % n_threads
    own = np.zeros(500, np.int64)
    batch = np.zeros(200, np.int64)
    state = np.uint64(seed * 2654435761 + 12345)
    for _ in range(rounds):
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        pick = np.int64(state >> np.uint64(33))
        place = pick % own.size
        if own[place] != 0:
            wrong += verify(cache, own[place], me)
            if pick % 3 == 0 or heads[after] - tails[after] >= RING:
                wrong += not cache.free(own[place])
            else:
                cache[own[place]].mark = ~after
                rings[after, heads[after] % RING] = own[place]
                heads[after] += 1
        h = cache.alloc()
        own[place] = h
        if h != 0:
            stamp(cache, h, me)
        if tails[me] < heads[me]:
            h = rings[me, tails[me] % RING]
            tails[me] += 1
            wrong += verify(cache, h, ~me)
            wrong += not cache.free(h)
            wrong += cache.is_live(h)
        if pick % 97 == 0 and cache.alloc_many(batch) == batch.size:
            for h in batch:
                stamp(cache, h, me)
            for h in batch:
                wrong += verify(cache, h, me)
            wrong += cache.free_many(batch) != batch.size
    for h in own:
        if h != 0:
            wrong += verify(cache, h, me)
            wrong += not cache.free(h)
    return wrong


@njit(nogil=True)
def stamp(cache, h, mark):
    """Write owner and handle."""
    record = cache.record(h)
    record.handle = h
    record.mark = mark
    record.tail[3] = h ^ mark


@njit(nogil=True)
def verify(cache, h, mark):
    """1 if the record is not as it was stamped, or handed over."""
    record = cache.record(h)
    owner = record.mark
    right = record.handle == h and owner == mark
    return 0 if right else 1


def drain(cache, rings, heads, tails):
    """Free what is still on the rings."""
    for ring, head, tail in zip(rings, heads, tails, strict=True):
        for at in range(tail, head):
            cache.free(int(ring[at % RING]))


def move_threads(cache, nodes):
    """Deal the CPUs out to the simulated nodes anew."""
    at = cache._memory.geometry.offset["cpus"]
    cache._memory.bytes[at : at + numa.CPUS] = np.random.default_rng().integers(0, nodes, numa.CPUS)
    time.sleep(0.001)


def stress(n_threads, rounds, capacity, seed=1, nodes=None):
    """Run the threads once; returns the cache, empty again."""
    cache = jitslab.SlabCache("stress", MARKED, capacity=capacity, nodes=nodes)
    rings, heads, tails = np.zeros((n_threads, RING), np.int64), np.zeros(n_threads, np.int64), np.zeros(n_threads, np.int64)
    wrong = np.zeros(n_threads, np.int64)

    def run(me):
        wrong[me] = work(cache, rings, heads, tails, me, rounds, seed * 1000 + me)

    threads = [threading.Thread(target=run, args=(me,)) for me in range(n_threads)]
    for thread in threads:
        thread.start()
    while nodes and any(thread.is_alive() for thread in threads):
        move_threads(cache, nodes)
    for thread in threads:
        thread.join()
    drain(cache, rings, heads, tails)
    assert wrong.sum() == 0, wrong
    assert len(cache) == 0, cache
    cache.check()
    return cache


def main():
    """Stress until the time is over, with changing numbers of threads and capacities."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    seed = options.seed
    while time.monotonic() < end:
        n_threads, capacity = 2 + seed % 7, (100_000, 3000, 700)[seed % 3]
        stress(n_threads, 300_000, capacity, seed, nodes=3 if seed % 4 == 0 else None).close()
        seed += 1
    sys.stdout.write(f"{seed - options.seed} runs, nothing wrong\n")


if __name__ == "__main__":
    main()
