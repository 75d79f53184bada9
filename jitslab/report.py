"""
What is still live: the report of an allocator, and of the process.

Above `cache`, below `allocator`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .cache import SlabCache
from .errors import ClosedError

FIRST = 4  # handles that a report shows of each cache


@dataclass(frozen=True)
class LiveCache:
    """
    What is live in one cache.

    Attributes
    ----------
    allocator : str
        Name of the allocator whose cache it is; empty for a cache that was made directly.
    name : str
        Name of the cache, or what its raw memory is.
    count : int
        Records, or pieces of raw memory, that are live.
    bytes : int
        Their size together.
    handles : tuple of int
        The first few, by slot.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> with jitslab.SlabAllocator("doc-live") as allocator:
    ...     node = allocator.create_cache("nodes", np.dtype([("x", "f8"), ("next", "i8")]))
    ...     handles = node.alloc_many(3)
    ...     (live,) = allocator.report().caches
    >>> live.allocator, live.name, live.count, live.bytes, live.handles == tuple(handles)
    ('doc-live', 'nodes', 3, 48, True)
    """

    allocator: str
    name: str
    count: int
    bytes: int
    handles: tuple[int, ...]

    def __str__(self) -> str:
        """One line."""
        name = f"{self.allocator}/{self.name}" if self.allocator else self.name
        shown = ", ".join(f"{h:#x}" for h in self.handles) + (", ..." if self.count > len(self.handles) else "")
        return f"{name}: {self.count:,} live, {self.bytes:,} bytes: {shown}"


@dataclass(frozen=True)
class LiveReport:
    """
    What is live in the caches of an allocator, or of the process; false when nothing is.

    Attributes
    ----------
    caches : tuple of LiveCache
        One for each cache in which something is live, the most bytes first.

    Examples
    --------
    >>> import jitslab
    >>> with jitslab.SlabAllocator("doc-report") as allocator:
    ...     ptr = allocator.allocate_typed([("x", "f8")])
    ...     report = allocator.report()
    >>> print(report)
    1 live, 8 bytes:
      doc-report/typed(x): 1 live, 8 bytes: 0x...
    >>> bool(report), bool(jitslab.LiveReport())
    (True, False)
    """

    caches: tuple[LiveCache, ...] = ()

    @property
    def count(self) -> int:
        """Records and pieces of raw memory that are live."""
        return sum(cache.count for cache in self.caches)

    @property
    def bytes(self) -> int:
        """Their size together."""
        return sum(cache.bytes for cache in self.caches)

    def __bool__(self) -> bool:
        """Whether anything is live."""
        return bool(self.caches)

    def __str__(self) -> str:
        """A line for each cache."""
        if not self:
            return "nothing is live"
        return "\n".join([f"{self.count:,} live, {self.bytes:,} bytes:", *(f"  {cache}" for cache in self.caches)])


def live_in(allocator: str, cache: SlabCache, name: str | None = None, base: int = 0) -> LiveCache:
    """Count what is live in a cache, nothing if it is closed; `base` is what its handles are shown with."""
    shown = cache.name if name is None else name
    try:
        count, first = cache._first_live(FIRST)
    except ClosedError:
        return LiveCache(allocator, shown, 0, 0, ())
    return LiveCache(allocator, shown, count, count * cache.dtype.itemsize, tuple((first + base).tolist()))


def make_report(found: list[LiveCache]) -> LiveReport:
    """Put the caches together in which something is live."""
    return LiveReport(tuple(sorted((cache for cache in found if cache.count), key=lambda cache: -cache.bytes)))
