"""
Tables of size classes: the fixed table, and the table that wastes least on observed sizes.

A table is an ascending list of sizes.  A class serves the sizes above the class before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.layout import LINE
from ..errors import SizeError, SizeTypeError, shown
from .layout import GRANULE, LARGEST

Counts = npt.NDArray[np.int64]
ODD_FROM = 1024  # from here on a class is an odd number of lines: its records use all sets of the CPU's caches
MOST_CANDIDATES = 96  # of an octave; more are thinned out


def fixed_table() -> list[int]:
    """
    Return the classes of an untuned allocator, 16 bytes to 1 MiB and a line.

    Steps of 16 bytes up to 128, then four to a doubling; from 1 KiB on, a line more.

    Examples
    --------
    >>> from jitslab.sizes import table as classes
    >>> table = classes.fixed_table()
    >>> len(table), table[:10], table[-1]
    (60, [16, 32, 48, 64, 80, 96, 112, 128, 160, 192], 1048640)
    """
    table, step = list(range(16, 128, 16)), 32
    while step <= LARGEST // 8:
        table += [step * times for times in range(4, 8)]
        step *= 2
    table.append(step * 4)
    return [size + LINE if size >= ODD_FROM else size for size in table]


def as_class(size: int) -> int:
    """Return the least size that a class may have for records of `size` bytes."""
    rounded = -(-size // GRANULE) * GRANULE
    if rounded < ODD_FROM:
        return rounded
    lines = -(-size // LINE)
    return (lines | 1) * LINE


OCTAVE_CLASSES = [size for size in fixed_table() if (size - LINE if size >= ODD_FROM else size).bit_count() == 1]
"""One class of each doubling, which every table has: so no size, observed or not, wastes more than half."""


@dataclass(frozen=True)
class Tuning:
    """
    The answer of `SizeClasses.tune`.

    Attributes
    ----------
    classes : tuple of int
        The proposed table.
    before, after : float
        Share of the bytes given out that nobody asked for, of the observed sizes: by the table in force until now, and by
        the proposed one.
    fixed : float
        The same by the fixed table.
    observed : int
        How many sizes were observed.
    applied : bool
        Whether the proposed table is in force.
    """

    classes: tuple[int, ...]
    before: float
    after: float
    fixed: float
    observed: int
    applied: bool


def as_counts(sizes: Mapping[int, int] | npt.ArrayLike) -> tuple[Counts, Counts]:
    """Return the different sizes, ascending, and how often each was observed; those above the largest class are left out."""
    values = list(sizes.values()) if isinstance(sizes, Mapping) else None
    array = np.asarray(list(sizes) if isinstance(sizes, Mapping) else sizes)
    if array.size == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise SizeTypeError(f"observed sizes are integers, got {array.dtype} of shape {array.shape}")
    if array.min() < 1:
        raise SizeError(f"an observed size must be at least 1, got {array.min()}")
    times = np.ones(array.size, np.int64) if values is None else np.asarray(values)
    if times.dtype.kind not in "iu" or times.shape != array.shape or times.min() < 0:
        raise SizeError("how often a size was observed must be an integer of at least 0")
    small = array <= LARGEST
    unique, where = np.unique(array[small].astype(np.int64), return_inverse=True)
    counts = np.zeros(unique.size, np.int64)
    np.add.at(counts, where, times[small].astype(np.int64))
    return unique[counts > 0], counts[counts > 0]


def used_bytes(table: Iterable[int], sizes: Counts, counts: Counts) -> int:
    """Return the bytes that a table gives out for the observed sizes."""
    highs = np.array(sorted(table), np.int64)
    return int((highs[np.searchsorted(highs, sizes)] * counts).sum())


def waste(table: Iterable[int], sizes: Counts, counts: Counts) -> float:
    """Return the share of the bytes given out that nobody asked for."""
    used = used_bytes(table, sizes, counts)
    return 1 - int((sizes * counts).sum()) / used if used else 0.0


def best_table(sizes: Counts, counts: Counts, most: int) -> list[int]:
    """
    Return the table of at most `most` classes that gives out the fewest bytes for the observed sizes.

    Every table has the `OCTAVE_CLASSES`, so the sizes between two of them, an octave, are a problem of their own.  For each one
    the best choice of 0, 1, 2, ... more classes is found by dynamic programming over the candidates: the observed sizes, and the
    fixed classes.  How many classes each octave gets is found by dynamic programming, too.

    Raises
    ------
    SizeError
        If `most` is less than the number of `OCTAVE_CLASSES`.
    """
    if most < len(OCTAVE_CLASSES):
        raise SizeError(f"a table has {len(OCTAVE_CLASSES)} classes or more, got {shown(most)}")
    wanted = {as_class(int(size)) for size in sizes} | set(fixed_table())
    spare = most - len(OCTAVE_CLASSES)
    best: list[tuple[int, list[int]]] = [(0, [])]  # by classes spent so far: bytes, and the classes
    low = 0
    for high in OCTAVE_CLASSES:
        inside = (sizes > low) & (sizes <= high)
        candidates = thin(sorted(n for n in wanted if low < n < high), high)
        choices = best_of_octave(candidates, high, sizes[inside], counts[inside], spare)
        joined: list[tuple[int, list[int]]] = []
        for total in range(min(len(best) + len(choices) - 1, spare + 1)):
            pairs = [
                (best[total - k][0] + choices[k][0], total - k, k) for k in range(len(choices)) if 0 <= total - k < len(best)
            ]
            cost, before, k = min(pairs)
            joined.append((cost, best[before][1] + choices[k][1]))
        best, low = joined, high
    return sorted(OCTAVE_CLASSES + min(best, key=lambda each: each[0])[1])


def thin(candidates: list[int], high: int) -> list[int]:
    """Return at most `MOST_CANDIDATES` of the candidates, and the fixed classes among them."""
    if len(candidates) <= MOST_CANDIDATES:
        return candidates
    step = len(candidates) / MOST_CANDIDATES
    kept = {candidates[int(i * step)] for i in range(MOST_CANDIDATES)}
    return sorted(kept | (set(fixed_table()) & set(candidates)))


def best_of_octave(candidates: list[int], high: int, sizes: Counts, counts: Counts, most: int) -> list[tuple[int, list[int]]]:
    """Return for 0, 1, 2, ... classes chosen of the candidates, besides `high`, the fewest bytes and the classes."""
    ends = [*candidates, high]
    upto = np.concatenate([[0], np.cumsum(counts)])[np.searchsorted(sizes, ends, side="right")].tolist()  # pieces up to an end
    m = len(ends)
    cost = [ends[j] * upto[j] for j in range(m)]  # all that is up to end j in one class
    chosen: list[list[int]] = [[] for _ in range(m)]
    answers = [(cost[-1], chosen[-1])]
    for _ in range(min(len(candidates), most)):
        new_cost, new_chosen = list(cost), list(chosen)
        for j in range(1, m):
            total, i = min((cost[i] + ends[j] * (upto[j] - upto[i]), i) for i in range(j))
            if total < new_cost[j]:
                new_cost[j], new_chosen[j] = total, [*chosen[i], ends[i]]
        if new_cost == cost:
            break
        cost, chosen = new_cost, new_chosen
        answers.append((cost[-1], chosen[-1]))
    return answers
