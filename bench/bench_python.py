"""From Python: one alloc and free beside what Python itself does in that time, and access by handle."""

from __future__ import annotations

import ctypes
import timeit
from functools import partial
from typing import Any

import numpy as np

import measure
from jitslab import SlabAllocator, SlabCache
from measure import RECORD, Case, Figure, Row, Sizes, Table, ratio, speed_ratio

SPARE = 100
SLOT_MASK = 0xFFFFFFFF
POINT = np.dtype([("x", "i8"), ("y", "f8")])


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


def classes() -> Any:
    """The classes and functions that make one record."""
    return {"Slots": Slots, "Struct": Struct, "pool": Pool(SPARE), "zeros": np.zeros, "point": POINT}, lambda: True


def array_and_set() -> Any:
    """An array of records, and a set with a large number in it."""
    array, number = np.zeros(SPARE, RECORD), 1 << 60
    return {"array": array, "known": {number}, "number": number, "i": 50}, lambda: True


# --- What else Python has for records; each statement makes a record, writes and reads a field, and lets it go ---


class Slots:
    """A record as a class with slots."""

    __slots__ = ("x", "y")

    def __init__(self, x: int = 0, y: float = 0.0) -> None:
        self.x, self.y = x, y


class Struct(ctypes.Structure):
    """A record as C has it."""

    _fields_ = (("x", ctypes.c_int64), ("y", ctypes.c_double))


class Pool:
    """Objects kept on a list, as programs keep them to spare the allocator."""

    def __init__(self, n: int) -> None:
        self.spare = [Slots() for _ in range(n)]

    def take(self) -> Slots:
        """Take an object, or make one."""
        return self.spare.pop() if self.spare else Slots()

    def give(self, one: Slots) -> None:
        """Give an object back."""
        self.spare.append(one)


def life(text: str, sizes: Sizes, **extra: Any) -> Case:
    """Make, write, read, drop: a statement that leaves its record's x in `x`, one for each turn."""
    cache = SlabCache("life", POINT, capacity=SPARE)
    cache.free(cache.alloc())  # makes the first slab
    names = {
        "cache": cache,
        "records": cache.records["x"],
        "pool": Pool(SPARE),
        "Slots": Slots,
        "Struct": Struct,
        "zeros": np.zeros,
        "point": POINT,
        "recarray": np.recarray,
        "rows": [],
        "mask": SLOT_MASK,
    } | extra
    code = compile(
        f"def run(turns):\n    s = 0\n    for i in turns:\n        {text}\n        s += x\n    return s", "life", "exec"
    )
    exec(code, names)  # a function, so that names are locals
    run: Any = names["run"]
    turns = range(sizes.calls)

    def is_right(s: int) -> bool:
        return int(s) == sum(turns) and len(cache) == 0 and not names["rows"]

    return Case(partial(run, turns), sizes.calls, is_right, close=cache.close)


# Contenders of a record's life.
LIVES = {
    "__slots__ class": "r = Slots(); r.x = i; x = r.x; del r",
    "ctypes.Structure": "r = Struct(); r.x = i; x = r.x; del r",
    "np.zeros((), dtype)": "r = zeros((), point); r['x'] = i; x = r['x']; del r",
    "np.recarray": "r = recarray(1, point); r.x[0] = i; x = r.x[0]; del r",
    "list of dicts": "rows.append({'x': i, 'y': 0.0}); x = rows[-1]['x']; rows.pop()",
    "pool on a list": "r = pool.take(); r.x = i; x = r.x; pool.give(r)",
    "cache[h]": "h = cache.alloc(); r = cache[h]; r['x'] = i; x = r['x']; cache.free(h)",
    "new()": "h, r = cache.new(); r['x'] = i; x = r['x']; cache.free(h)",
    "guard": "with cache.allocate() as r: r.x = i; x = r.x",
    "guard, free()": "r = cache.allocate(); r.x = i; x = r.x; r.free()",
    "column": "h = cache.alloc(); records[h & mask] = i; x = records[h & mask]; cache.free(h)",
}


def held(kind: str, sizes: Sizes) -> Case:
    """Add 1 to a field of each of many records, held as a Python program would."""
    n = sizes.calls
    cache = SlabCache("held", POINT, capacity=n, init="zero")
    runs: dict[str, Any] = {}
    if kind in ("cache[h]", "column at slots(handles)"):
        handles = cache.alloc_many(n)
        numbers = handles.tolist()
        column = cache.records["x"]

        def by_handle() -> int:
            for h in numbers:
                cache[h]["x"] += 1
            return int(column[handles & SLOT_MASK].sum())

        def by_column() -> int:
            slots = cache.slots(handles)
            column[slots] += 1
            return int(column[slots].sum())

        runs = {"cache[h]": by_handle, "column at slots(handles)": by_column}
    elif kind == "list of dicts":
        rows = [{"x": 0, "y": 0.0} for _ in range(n)]

        def by_key() -> int:
            for row in rows:
                row["x"] += 1
            return sum(row["x"] for row in rows)

        runs = {kind: by_key}
    elif kind in ("__slots__ class", "ctypes.Structure", "guard"):
        make: Any = {"__slots__ class": Slots, "ctypes.Structure": Struct, "guard": cache.allocate}[kind]
        objects: list[Any] = [make() for _ in range(n)]

        def by_name() -> int:
            for one in objects:
                one.x += 1
            return sum(one.x for one in objects)

        runs = {kind: by_name}
    else:
        array = np.zeros(n, POINT).view(np.recarray)

        def by_records() -> int:
            for one in array:
                one.x += 1
            return int(array.x.sum())

        def by_array() -> int:
            array.x += 1
            return int(array.x.sum())

        runs = {"np.recarray": by_records, "np.recarray, column": by_array}
    rounds = [0]

    def is_right(s: int) -> bool:
        rounds[0] += 1
        return s == n * rounds[0]

    def close() -> None:
        if kind == "guard":
            for guard in objects:
                guard.free()
        cache.close()

    return Case(runs[kind], n, is_right, close=close)


LOOPS = ("__slots__ class", "ctypes.Structure", "list of dicts", "np.recarray", "guard", "cache[h]")
COLUMNS = ("np.recarray, column", "column at slots(handles)")


def table(sizes: Sizes) -> Table:
    """Return all operations."""
    below = Figure("alloc + free / two object()", lambda t: t["c.free(c.alloc())"] / t["object(); object()"], 1.0)
    return {
        "alloc + free": Row(
            {
                "c.free(c.alloc())": partial(statement, "c.free(c.alloc())", cache_alone),
                "lst.append(lst.pop())": partial(statement, "lst.append(lst.pop())", list_of_some),
                "object(); object()": partial(statement, "object(); object()", list_of_some),
                "Slots()": partial(statement, "Slots()", classes),
                "Struct()": partial(statement, "Struct()", classes),
                "pool.give(pool.take())": partial(statement, "pool.give(pool.take())", classes),
                "zeros((), point)": partial(statement, "zeros((), point)", classes),
            },
            (
                ratio("c.free(c.alloc())", "lst.append(lst.pop())", 2.5),
                below,
                *(
                    speed_ratio("c.free(c.alloc())", name, 1.0)
                    for name in ("Slots()", "Struct()", "pool.give(pool.take())", "zeros((), point)")
                ),
            ),
        ),
        "a record's life: make, write, read, drop": Row(
            {name: partial(life, text) for name, text in LIVES.items()},
            (
                *(speed_ratio("guard", name, 1.0) for name in list(LIVES)[:6]),
                ratio("guard", "guard, free()"),
                ratio("guard", "cache[h]"),
                ratio("new()", "cache[h]"),
                ratio("column", "cache[h]"),
            ),
            seconds=3.0 if sizes is measure.FULL else None,
        ),
        "add to a field of each record, in a loop": Row(
            {name: partial(held, name) for name in LOOPS},
            (*(speed_ratio("guard", name, 1.0) for name in LOOPS[:4]), ratio("cache[h]", "guard")),
            seconds=3.0 if sizes is measure.FULL else None,
        ),
        "add to a field of each record, vectorised": Row(
            {name: partial(held, name) for name in COLUMNS},
            (ratio(COLUMNS[1], COLUMNS[0]),),
            seconds=1.0 if sizes is measure.FULL else None,
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
