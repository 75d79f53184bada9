"""Guards from Python: the `with` block beside one that does nothing, and fields beside those of `numpy.recarray`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from bench_python import SPARE, statement
from jitslab import SlabCache
from measure import Case, Figure, Row, Sizes, Table, ratio, speed_ratio

RECORD = np.dtype([("id", "i8"), ("weight", "f8"), ("flags", "u1"), ("data", "f4", (4,)), ("at", [("x", "f8"), ("y", "f8")])])


class open_nothing:  # noqa: N801  # read as a function, as `open` is
    """An empty context manager."""

    __slots__ = ()

    def __enter__(self) -> open_nothing:
        """Do nothing."""
        return self

    def __exit__(self, *args: object) -> None:
        """Do nothing."""


class Plain:
    """An object with one attribute."""

    __slots__ = ("id",)


def empty_cache() -> Any:
    """A cache with nothing in it."""
    cache = SlabCache("guards", RECORD, capacity=SPARE, init="zero")
    return {"cache": cache}, lambda: len(cache) == 0


def nothing() -> Any:
    """The empty context manager."""
    return {"open_nothing": open_nothing}, lambda: True


def of_guard(text: str, sizes: Sizes) -> Case:
    """A statement about a guard of a record, which is freed in the end."""
    cache = SlabCache("guards", RECORD, capacity=SPARE, init="zero")
    o = cache.allocate()
    o.id = 5
    case = statement(text, lambda: ({"o": o}, lambda: o.id == 5 and o.weight in (0.0, 0.5) and o.at.x in (0.0, 0.5)), sizes)
    case.close = o.free
    return case


def rows() -> Any:
    """The same records in an array, and a row of it."""
    rec = np.zeros(SPARE, RECORD).view(np.recarray)
    rec["id"] = 5
    return {"rec": rec, "row": rec[5]}, lambda: (rec["id"] == 5).all()


def plain() -> Any:
    """A Python object with slots."""
    p = Plain()
    p.id = 5
    return {"p": p}, lambda: p.id == 5


def figures(fast: str, slow: str, *more: Figure) -> tuple[Figure, ...]:
    """A time to keep below, and how many times as fast as recarray."""
    return Figure(fast, lambda t: t[fast], 60.0, unit="ns"), speed_ratio(fast, slow, 20.0), *more


def table(sizes: Sizes) -> Table:
    """Return all operations."""
    block, empty = "with cache.allocate() as o: pass", "with open_nothing() as o: pass"
    return {
        "with block of a guard": Row(
            {block: partial(statement, block, empty_cache), empty: partial(statement, empty, nothing)},
            (ratio(block, empty, 3.0),),
        ),
        "field read": Row(
            {
                "o.id": partial(of_guard, "o.id"),
                "o.weight": partial(of_guard, "o.weight"),
                "rec[5].id": partial(statement, "rec[5].id", rows),
                "row.id": partial(statement, "row.id", rows),
                "p.id": partial(statement, "p.id", plain),
            },
            (*figures("o.id", "rec[5].id", ratio("o.id", "p.id")), Figure("o.weight", lambda t: t["o.weight"], 60.0, unit="ns")),
        ),
        "field write": Row(
            {
                "o.id = 5": partial(of_guard, "o.id = 5"),
                "o.weight = 0.5": partial(of_guard, "o.weight = 0.5"),
                "rec[5].id = 5": partial(statement, "rec[5].id = 5", rows),
                "p.id = 5": partial(statement, "p.id = 5", plain),
            },
            (
                *figures("o.id = 5", "rec[5].id = 5", ratio("o.id = 5", "p.id = 5")),
                Figure("o.weight = 0.5", lambda t: t["o.weight = 0.5"], 60.0, unit="ns"),
            ),
        ),
        "nested field, sub-array": Row(
            {
                "o.at.x": partial(of_guard, "o.at.x"),
                "o.data": partial(of_guard, "o.data"),
                "rec[5].at.x": partial(statement, "rec[5].at.x", rows),
                "rec[5].data": partial(statement, "rec[5].data", rows),
            },
            (
                Figure("rec[5].at.x / o.at.x", lambda t: t["rec[5].at.x"] / t["o.at.x"]),
                Figure("rec[5].data / o.data", lambda t: t["rec[5].data"] / t["o.data"]),
            ),
        ),
    }
