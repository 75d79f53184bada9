"""From Python: one alloc and free beside what Python itself does in that time, and access by handle."""

from __future__ import annotations

import timeit
from functools import partial
from typing import Any

import numpy as np
import pytest

import measure
from jitslab import SlabAllocator, SlabCache
from measure import RECORD, Case, Figure, Row, Sizes, Table, ratio

SPARE = 100


def statement(text: str, make: Any, sizes: Sizes) -> Case:
    """A statement, as timeit runs it; `make` returns the names it uses and whether all is right afterwards."""
    names, is_right = make()
    timer = timeit.Timer(text, globals=names)
    return Case(lambda: (timer.timeit(sizes.calls), None), sizes.calls, lambda _: is_right(), measures=True)


def cache_alone() -> Any:
    """A cache with nothing in it."""
    cache = SlabCache("python", RECORD, capacity=SPARE)
    return {"c": cache}, lambda: len(cache) == 0


def cache_with_one() -> Any:
    """A cache with a record, and its handle."""
    cache = SlabCache("python", RECORD, capacity=SPARE)
    h = cache.alloc()
    return {"c": cache, "h": h}, lambda: h in cache and len(cache) == 1


def allocator() -> Any:
    """An allocator with nothing in it, and a dtype."""
    made = SlabAllocator("python")
    made.typed(RECORD, capacity=SPARE)
    return {"a": made, "d": RECORD}, lambda: not made.report()


def list_of_some() -> Any:
    """A list."""
    some = list(range(SPARE))
    return {"lst": some}, lambda: some == list(range(SPARE))


def array_and_set() -> Any:
    """An array of records, and a set with a large number in it."""
    array, number = np.zeros(SPARE, RECORD), 1 << 60
    return {"array": array, "known": {number}, "number": number, "i": 50}, lambda: True


def table(sizes: Sizes) -> Table:
    """Return all operations."""
    below = Figure("alloc + free / two object()", lambda t: t["c.free(c.alloc())"] / t["object(); object()"], 1.0)
    return {
        "alloc + free": Row(
            {
                "c.free(c.alloc())": partial(statement, "c.free(c.alloc())", cache_alone),
                "lst.append(lst.pop())": partial(statement, "lst.append(lst.pop())", list_of_some),
                "object(); object()": partial(statement, "object(); object()", list_of_some),
            },
            (ratio("c.free(c.alloc())", "lst.append(lst.pop())", 2.5), below),
        ),
        "typed record": Row(
            {
                "a.free_typed(a.allocate_typed(d))": partial(statement, "a.free_typed(a.allocate_typed(d))", allocator),
                "object(); object()": partial(statement, "object(); object()", list_of_some),
            },
            (ratio("a.free_typed(a.allocate_typed(d))", "object(); object()"),),
        ),
        "record of a handle": Row(
            {"c[h]": partial(statement, "c[h]", cache_with_one), "array[i]": partial(statement, "array[i]", array_and_set)},
            (ratio("c[h]", "array[i]"),),
        ),
        "is it live": Row(
            {
                "h in c": partial(statement, "h in c", cache_with_one),
                "number in known": partial(statement, "number in known", array_and_set),
            },
            (ratio("h in c", "number in known"),),
        ),
    }


@pytest.mark.parametrize(("operation", "contender"), measure.names(table))
def test_answer_is_right(operation: str, contender: str) -> None:
    """Every contender does what the row says."""
    measure.check_answer(table, operation, contender)


@pytest.mark.parametrize(("operation", "contender"), measure.names(table))
def test_speed(benchmark: Any, operation: str, contender: str) -> None:
    """Time of every contender; for ratios, see run.py."""
    measure.speed(benchmark, table, operation, contender)
