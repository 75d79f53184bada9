"""
Workers read the records of one process, without a copy: a pool in memory, whose caches are arguments of other processes.

    python -m jitslab.examples.workers [--records N] [--rounds N]

The writer builds an order book and commits.  Its workers, of `multiprocessing` and of joblib where that is installed, get the
cache as an argument: they open the pool to read, map its files, and sum a part of the orders in compiled code.  Between two
rounds the writer changes the book, and the workers refresh.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from typing import Any

import numba
import numpy as np

import jitslab

ORDER = np.dtype([("price", "f8"), ("size", "i4"), ("next", jitslab.link("orders"))])
ROOT = np.dtype([("first", jitslab.link("orders"))])
WORKERS = 2


@numba.njit
def fill(orders: Any, root: Any, n: int, seed: int) -> None:
    """Put n orders in front of the list."""
    np.random.seed(seed)
    for _ in range(n):
        root.first = orders.alloc(price=100.0 + np.random.normal(), size=np.random.randint(1, 100), next=root.first)


@numba.njit
def value(orders: Any, handle: int, part: int, parts: int) -> float:
    """Return the value of each order of a part: of those whose place in the list, divided by `parts`, leaves `part`."""
    total, place = 0.0, 0
    while handle != 0:
        order = orders[handle]
        if place % parts == part:
            total += order.price * order.size
        place += 1
        handle = order.next
    return total


def value_of(orders: Any, part: int) -> tuple[float, int]:
    """Return the value of a part of the orders, and the commit it is of: what a worker runs."""
    commit = orders.pool.refresh()
    return value(orders, int(orders.pool.root["first"]), part, WORKERS), commit


def run(folder: str, records: int, rounds: int) -> list[str]:
    """Run the example; returns a line for each round and kind of worker."""
    lines = []
    with jitslab.open_pool(os.path.join(folder, "book"), root=ROOT, sync=False) as pool:
        orders = pool.create_cache("orders", ORDER, capacity=records * rounds)
        with multiprocessing.get_context("spawn").Pool(WORKERS) as workers:
            for number in range(rounds):
                fill(orders, pool.root, records, number)
                commit = pool.commit()
                live = orders[orders.live()]
                expected = float((live["price"] * live["size"]).sum())
                tasks = [(orders, part) for part in range(WORKERS)]
                lines.append(told("multiprocessing", workers.starmap(value_of, tasks), expected, commit, len(orders)))
                try:
                    from joblib import Parallel, delayed
                except ImportError:
                    continue
                answers = Parallel(WORKERS)(delayed(value_of)(*task) for task in tasks)
                lines.append(told("joblib", answers, expected, commit, len(orders)))
    return lines


def told(kind: str, answers: list[tuple[float, int]], expected: float, commit: int, n: int) -> str:
    """Return a line about the answers of workers, or raise if they are wrong."""
    total = sum(part for part, _ in answers)
    if {number for _, number in answers} != {commit} or not np.isclose(total, expected):
        raise AssertionError(f"{kind}: {answers}, not {expected} of commit {commit}")
    return f"commit {commit}: {n} orders, value {total:.2f}, summed by {len(answers)} workers of {kind}"


def main() -> None:
    """Run the example by the command line."""
    parser = argparse.ArgumentParser(description="Workers read the records of one process.")
    parser.add_argument("--records", type=int, default=100_000, help="orders that each round adds (default 100,000)")
    parser.add_argument("--rounds", type=int, default=3, help="commits (default 3)")
    options = parser.parse_args()
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        for line in run(folder, options.records, options.rounds):
            print(line)  # noqa: T201  # its output


if __name__ == "__main__":
    main()
