"""Record access through checked handles beside plain arrays; iteration; colour."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import measure
from jitslab import SlabCache
from loops import access as walks
from loops import cache as iteration
from loops import floor
from measure import PAGE_RECORD, RECORD, Case, Row, Sizes, Table, ratio, speed_ratio

SLOT_MASK = 0xFFFFFFFF


# --- Access: the same slots in the same order, by handle and by number ---


def access(loop: str, is_checked: bool, live: int, sizes: Sizes) -> Case:
    """Chase, write or read all records in one random order."""
    cache = SlabCache("access", RECORD, capacity=live)
    handles = cache.alloc_many(live)
    order = sizes.rng().permutation(live)
    handles = handles[order]
    slots = handles & SLOT_MASK
    records, keys = cache.records, handles if is_checked else slots
    records["x"][slots] = np.roll(keys, -1) if loop == "chase" else np.arange(live)
    at = (cache, handles) if is_checked else (records, slots)
    if loop == "chase":
        run: Any = partial(walks.chase, at[0], int(keys[0]), live)
        expected: Any = int(keys[0])
    else:
        run, expected = partial(getattr(walks, loop), *at), {"read": live * (live - 1) // 2, "write": None}[loop]

    def is_right(answer: Any) -> bool:
        return answer == expected and cache.faults == 0 and (loop != "write" or int(records["x"][slots[-1]]) == live - 1)

    return Case(run, live, is_right, close=cache.close)


def scan_of_dense(live: int, sizes: Sizes) -> Case:
    """Read an array of just the live records."""
    data = floor.record_array(live)
    data["x"] = np.arange(live)
    return Case(partial(floor.scan, data), live, partial(int.__eq__, live * (live - 1) // 2))


def scan_of_cache(loop: Any, live: int, percent: int, sizes: Sizes) -> Case:
    """Read the live records of a cache that has so many percent of its slots in use."""
    n = live * 100 // percent
    cache = SlabCache("scan", RECORD, capacity=n)
    handles = cache.alloc_many(n)[sizes.rng().permutation(n)]
    cache.records["x"] = 1 << 40
    cache.free_many(handles[live:])
    cache.records["x"][cache.slots(handles[:live])] = np.arange(live)
    return Case(partial(loop, cache), live, partial(int.__eq__, live * (live - 1) // 2), close=cache.close)


# --- Pointer chase over a list, as it was built or shuffled ---


def chase_of(who: str, is_shuffled: bool, live: int, sizes: Sizes) -> Case:
    """Follow a ring of links through all records: in the order they were made, or a random one."""
    cache = SlabCache("ring", RECORD, capacity=live)
    handles = cache.alloc_many(live)
    handles = handles[np.argsort(handles & SLOT_MASK)]
    order = sizes.rng().permutation(live) if is_shuffled else np.arange(live)
    if who == "dense array":
        records = floor.record_array(live)
        records["x"][order] = np.roll(order, -1)
        start = int(order[0])
        return Case(partial(walks.chase, records, start, live), live, partial(int.__eq__, start), close=cache.close)
    ring = handles[order]
    slots, records = ring & SLOT_MASK, cache.records
    keys = ring if who == "cache[h]" else slots
    records["x"][slots] = np.roll(keys, -1)
    start = int(keys[0])
    run = partial(walks.chase, cache if who == "cache[h]" else records, start, live)
    return Case(run, live, lambda answer: answer == start and cache.faults == 0, close=cache.close)


# --- Colour ---


def first_of_slabs(colouring: bool, is_checked: bool, sizes: Sizes) -> Case:
    """Add to the first record that each of many slabs handed out."""
    slots_each = (64 << 10) // RECORD.itemsize
    cache = SlabCache("slabs", RECORD, capacity=sizes.hot_slabs * slots_each, colouring=colouring)
    handles = np.sort(cache.alloc_many(sizes.hot_slabs * slots_each))
    handles = handles[np.argsort(handles & SLOT_MASK)]
    first = [page.index * page.capacity + page.colour for page in cache.pages]
    return hot(cache, handles[first], is_checked, sizes)


def page_records(colouring: bool, is_checked: bool, sizes: Sizes) -> Case:
    """Add to records of 4,096 bytes each."""
    cache = SlabCache("pages", PAGE_RECORD, capacity=sizes.hot_records, colouring=colouring)
    return hot(cache, cache.alloc_many(sizes.hot_records), is_checked, sizes)


def hot(cache: SlabCache, handles: Any, is_checked: bool, sizes: Sizes) -> Case:
    """Add to a few hot records, by handle or by slot, in random order."""
    handles = handles[sizes.rng().permutation(handles.size)]
    slots, records, n = handles & SLOT_MASK, cache.records, sizes.sweeps * handles.size
    records["x"][slots] = 0
    sums = [0]

    def is_right(_: None) -> bool:
        sums[0] += n
        return int(records["x"][slots].sum()) == sums[0] and cache.faults == 0

    run = partial(walks.add, *((cache, handles) if is_checked else (records, slots)), sizes.sweeps)
    return Case(run, n, is_right, close=cache.close)


# --- The table ---


def table(sizes: Sizes) -> Table:
    """Return all operations."""
    rows: Table = {}
    for live in sizes.accessed:
        for text, loop, limit in (
            ("pointer chase", "chase", 1.15),
            ("random writes", "write", 1.5),
            ("random reads", "read", 2.0),
        ):
            contenders = {"records[slot]": partial(access, loop, False, live), "cache[h]": partial(access, loop, True, live)}
            rows[f"{text}, {live:,} live"] = Row(contenders, (ratio("cache[h]", "records[slot]", limit),))
        for percent, items, handles in ((10, None, None), (50, 0.45, 0.3), (100, None, None)):
            rows[f"iteration, {live:,} live in {live * 100 // percent:,} slots"] = Row(
                {
                    "dense array": partial(scan_of_dense, live),
                    "items()": partial(scan_of_cache, iteration.scan_items, live, percent),
                    "cache[h]": partial(scan_of_cache, iteration.scan_handles, live, percent),
                },
                (speed_ratio("items()", "dense array", items), speed_ratio("cache[h]", "dense array", handles)),
                seconds=2.0 if sizes is measure.FULL else None,
            )
        for text, is_shuffled in (("as built", False), ("shuffled", True)):
            rows[f"list of {live:,}, {text}"] = Row(
                {who: partial(chase_of, who, is_shuffled, live) for who in ("dense array", "records[slot]", "cache[h]")},
                (ratio("cache[h]", "dense array"), ratio("cache[h]", "records[slot]", 1.15)),
                seconds=2.0 if sizes is measure.FULL else None,
            )
    for text, make in (
        (f"{sizes.hot_slabs} slabs, first record of each", first_of_slabs),
        (f"{sizes.hot_records} records of 4,096 bytes", page_records),
    ):
        for by, is_checked in (("by cache[h]", True), ("by records[slot]", False)):
            contenders = {"not coloured": partial(make, False, is_checked), "coloured": partial(make, True, is_checked)}
            rows[f"{text}, {by}"] = Row(contenders, (speed_ratio("coloured", "not coloured", 1.0),))
    return rows
