"""
Links between caches: which records are reached from some roots, which are lost, and which links are dangling.

The functions take caches by name, as an allocator or a pool has them.  A link is found by the name that it has: first among
the caches that the caller gives, then its own cache, then those of the allocator or pool.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ._validate import as_handles
from .core import reach as kernels
from .core.layout import WORD_SLOTS
from .core.reach import FOUND, GRAPH, LINK, PART
from .errors import CacheTypeError, ForeignHandleError, LayoutError, RecordTypeError, UnknownNameError, shown
from .links import LINK as LINK_KEY
from .machine.holder import is_object
from .njit.cache import CacheType

if TYPE_CHECKING:
    from .cache import SlabCache

T = TypeVar("T")
Handles = npt.NDArray[np.int64]
Caches = Mapping[str, "SlabCache[Any]"]

QUEUE = 1 << 16  # records in the queue of a walk: 512 KiB, which stay in the CPU's cache
AT_ONCE = 1 << 18  # records or slots of one call: some 10 ms, between which Ctrl-C is heard
MOST_AT_FIRST = 1000  # dangling links for which there is room before they are counted
FREED_AT_ONCE = 1 << 12  # handles of one batch of frees


class ByCache(dict[str, T]):
    """
    What `unreachable` and `collect` found: for each cache, by its name, the handles or how many there were.

    Attributes
    ----------
    dangling : int
        Links of reached records that are neither NULL nor the handle of a live record; they were passed over.
    """

    dangling: int = 0


# --- The links in a dtype ---


class LinkField(NamedTuple):
    """A field that holds handles of one cache, or the values of one or several sub-arrays."""

    path: tuple[str, ...]
    name: str  # of the cache
    offset: int  # of the first value
    levels: list[tuple[int, int]]  # (values, bytes from one to the next) of each level of sub-arrays, the innermost first
    is_swapped: bool

    @property
    def n_values(self) -> int:
        """Values in one record."""
        return int(np.prod([count for count, _ in self.levels], dtype=object))


def link_fields(
    dtype: np.dtype[Any], path: tuple[str, ...] = (), offset: int = 0, levels: tuple[tuple[int, int], ...] = ()
) -> Iterator[LinkField]:
    """Yield the links of a record, or of a field in it."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        levels, dtype = (*levels, (int(np.prod(shape, dtype=object)), base.itemsize)), base
    if dtype.names is not None and dtype.fields is not None:
        for name in dtype.names:
            field, at = dtype.fields[name][:2]
            yield from link_fields(field, (*path, name), offset + at, levels)
    elif dtype.metadata and LINK_KEY in dtype.metadata:
        if dtype.kind not in "iu" or dtype.itemsize != 8:
            raise LayoutError(f"field {'.'.join(path)!r} is a link, and no int64 but {dtype}; use the dtype that link() returns")
        yield LinkField(path, dtype.metadata[LINK_KEY], offset, joined_levels(levels), not dtype.isnative)


def joined_levels(levels: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Return levels, the outermost first, as few levels, the innermost first: values at even distances are one."""
    joined: list[tuple[int, int]] = []
    for count, step in reversed([level for level in levels if level[0] != 1]):
        if joined and step == joined[-1][0] * joined[-1][1]:
            joined[-1] = joined[-1][0] * count, joined[-1][1]
        else:
            joined.append((count, step))
    return joined


# --- Graphs ---


class Graph:
    """
    Caches and the links between their records, as kernels see them.

    Parameters
    ----------
    what : str
        What needs it, for messages.
    caches : sequence of SlabCache
        The first parts.
    family : mapping of str to SlabCache
        Where links find their caches.
    links : mapping of str to SlabCache
        Where they find them first.
    is_walked : bool
        The links of all parts can be followed; otherwise only those of the first part are known.
    """

    def __init__(self, what: str, caches: Sequence[SlabCache], family: Caches, links: Caches, is_walked: bool) -> None:
        self.caches: list[SlabCache] = []
        self.fields: list[list[LinkField]] = []
        self._numbers: dict[SlabCache, int] = {}
        targets = []
        for cache in caches:
            self._add(cache)
        for cache in self.caches if is_walked else self.caches[:1]:  # more are added meanwhile
            self.fields.append(list(link_fields(cache._dtype)))
            targets.append([self._add(target_of(cache, field, family, links)) for field in self.fields[-1]])
        for cache in self.caches:
            cache._need_told()
            cache._need_rest(what)
        self._kept: list[Any] = []  # memory that rows have the addresses of
        self._parts = self._rows(len(self.caches), PART)
        self._graph = self._rows(1, GRAPH)
        self.address = int(self._graph.ctypes.data)
        self._graph["parts"] = self._parts.ctypes.data
        for number, cache in enumerate(self.caches):
            self._parts[number]["control"] = cache._address
            self._parts[number]["limit"] = kernels.end_of(cache._address)
        for number, fields in enumerate(self.fields):
            links_of_part = self._link_rows(fields, targets[number])
            self._parts[number]["n_links"], self._parts[number]["links"] = links_of_part.size, links_of_part.ctypes.data
        if is_walked:
            self._graph["queue"], self._graph["queue_size"] = self._rows(QUEUE, np.dtype("i8")).ctypes.data, QUEUE
            for part in self._parts:
                for bits in "reached", "waiting":
                    part[bits] = self._rows(int(part["limit"]) // WORD_SLOTS, np.dtype("i8")).ctypes.data

    def _add(self, cache: SlabCache) -> int:
        """Make a cache a part, unless it is one; returns its number."""
        if cache not in self._numbers:
            self._numbers[cache] = len(self.caches)
            self.caches.append(cache)
        return self._numbers[cache]

    def _rows(self, n: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return n rows of zeros that live as long as the graph."""
        self._kept.append(np.zeros(n, dtype))
        return self._kept[-1]  # type: ignore[no-any-return]  # an array

    def _link_rows(self, fields: list[LinkField], targets: list[int]) -> npt.NDArray[np.void]:
        """Return the LINK rows of a part."""
        rows = self._rows(len(fields), LINK)
        for row, field, target in zip(rows, fields, targets, strict=True):
            row["target"], row["offset"], row["count"], row["is_swapped"] = target, field.offset, field.n_values, field.is_swapped
            if len(field.levels) == 1:
                row["step"] = field.levels[0][1]
            elif field.levels:
                levels = self._rows(2 * len(field.levels), np.dtype("i8"))
                levels[:] = np.ravel(field.levels)
                row["levels"], row["n_levels"] = levels.ctypes.data, len(field.levels)
        return rows

    def reach(self, roots: Any, names: Caches) -> None:
        """Reach all that links lead to from some roots."""
        for cache, handles in self._by_cache(roots, names):
            array = as_many(handles)
            cache._live_slots(array)  # raises for one that is refused
            kernels.reach_roots(self.address, self._numbers[cache], array.ctypes.data, array.size)
        while kernels.walk(self.address, len(self.caches), AT_ONCE):
            pass

    def _by_cache(self, roots: Any, names: Caches) -> Iterator[tuple[SlabCache, Any]]:
        """Yield each cache with roots, and these."""
        if not isinstance(roots, Mapping):
            if (cache := self._cache_of(as_many(roots))) is not None:
                yield cache, roots
            return
        for key, handles in roots.items():
            cache = names.get(key) if isinstance(key, str) else key
            if cache not in self._numbers:
                what = key.name if is_object(CacheType, key) else key
                raise UnknownNameError(f"there is no cache {shown(what)} among those that are searched")
            yield cache, handles

    def _cache_of(self, handles: Handles) -> SlabCache | None:
        """Return the cache that roots are of if nobody says it; None: there are no roots."""
        if len(self.caches) == 1:
            return self.caches[0]
        found = [cache for cache in self.caches if cache.is_live(handles).any()]
        if len(found) > 1:
            several = " and ".join(repr(cache.name) for cache in found[:2])
            raise RecordTypeError(f"roots are live in caches {several}; say which are meant: {{cache: handles}}")
        if handles.size and not found:
            raise ForeignHandleError(f"root {int(handles[0]):#x} is of no live record, as all others", range(handles.size))
        return found[0] if found else None

    @property
    def dangling(self) -> int:
        """Dangling links that were met so far."""
        return int(self._graph["dangling"][0])

    def lost(self, cache: SlabCache) -> Handles:
        """Return the handles of the live records of a cache that were not reached."""
        part, out = self._parts[self._numbers[cache] :].ctypes.data, np.empty(0, np.int64)
        while (n := kernels.lost_handles(part, out.ctypes.data, out.size)) > out.size:
            out = np.empty(n, np.int64)
        return out[:n]

    def free_lost(self, caches: Caches) -> dict[str, int]:
        """Free the live records that were not reached, of the first parts: all, whatever happens; returns how many, by name."""
        handles = np.empty(FREED_AT_ONCE, np.int64)
        kernels.free_lost(self.address, len(set(caches.values())), handles.ctypes.data, handles.size)
        return {name: int(self._parts["freed"][self._numbers[cache]]) for name, cache in caches.items()}

    def find_dangling(self) -> npt.NDArray[np.void]:
        """Return FOUND rows of the dangling links of the first part."""
        end, room, n = int(self._parts[0]["limit"]), 0, MOST_AT_FIRST
        while n > room:
            room, n = n, 0
            rows = np.empty(room, FOUND)
            for start in range(0, end, AT_ONCE):
                at, left = rows.ctypes.data + n * FOUND.itemsize, max(room - n, 0)
                n += kernels.find_dangling(self.address, start, start + AT_ONCE, at, left)
        return rows[:n]


def target_of(cache: SlabCache, field: LinkField, family: Caches, links: Caches) -> SlabCache:
    """Return the cache that a link leads to."""
    if field.name in links:
        return links[field.name]
    if field.name == cache._name:
        return cache
    if field.name in family:
        return family[field.name]
    raise UnknownNameError(
        f"field {'.'.join(field.path)!r} of cache {cache._name!r} links to cache {field.name!r}, which is not found; "
        f"give it: links={{{field.name!r}: cache}}"
    )


def checked_links(links: Any) -> Caches:
    """Return caches by name that a caller gave, or raise."""
    if not isinstance(links, (Mapping, type(None))):
        raise CacheTypeError(f"links is {{name: cache}}, got {type(links).__name__}")
    for name, cache in (links or {}).items():
        if not is_object(CacheType, cache):
            raise CacheTypeError(f"links[{shown(name)}] is a SlabCache, got {type(cache).__name__}")
        cache._need_open()
    return links or {}


def as_many(handles: Any) -> Handles:
    """Return one handle, or an array of some, as an array."""
    try:
        return as_handles([operator.index(handles)])
    except TypeError:
        return as_handles(handles)


# --- What caches, allocators and pools offer ---


def dangling(cache: SlabCache, family: Caches, links: Caches | None = None) -> npt.NDArray[np.void]:
    """
    Find the dangling links of one cache: `SlabCache.dangling`.

    `family` has the caches of its allocator or pool by name.
    """
    graph = Graph("dangling", [cache], family, checked_links(links), is_walked=False)
    found, paths = graph.find_dangling(), [".".join(field.path) for field in graph.fields[0]]
    longest = max(map(len, paths), default=1)
    rows = np.empty(found.size, [("handle", "i8"), ("field", f"U{longest}"), ("position", "i8"), ("value", "i8")])
    for name in "handle", "position", "value":
        rows[name] = found[name]
    rows["field"] = np.array(paths, f"U{longest}")[found["link"]]
    return rows


def walked(what: str, caches: Caches, roots: Any, links: Caches | None, always: Any) -> Graph:
    """Return the graph of some caches, with all reached that roots lead to, and those that are roots always."""
    given = checked_links(links)
    graph = Graph(what, list(caches.values()), caches, given, is_walked=True)
    graph.reach(always, {})
    graph.reach(roots, {**given, **caches})
    return graph


def unreachable(caches: Caches, roots: Any, links: Caches | None = None, always: Any = ()) -> ByCache[Handles]:
    """
    Return the handles of the live records that no path of links from the roots leads to.

    Parameters
    ----------
    caches : mapping of str to SlabCache
        Whose records are meant.
    roots : int, array_like of int, or mapping
        Handles of one cache; or of several, as ``{cache or name: handles}``.
    links : mapping of str to SlabCache, optional
        Caches that links lead to and that are not among `caches`.  Paths lead through their records, which are not reported.
    always : mapping of SlabCache to array_like of int, optional
        More roots.

    Raises
    ------
    HandleError
        If a root is refused.
    UnknownNameError
        If a root's cache, or a link's, is not among the caches.
    BusyError
        If other threads are using one of the caches.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> from jitslab.reach import unreachable
    >>> node = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
    >>> with jitslab.SlabCache("nodes", node, capacity=10) as nodes:
    ...     last = nodes.alloc(next=jitslab.NULL)
    ...     first = nodes.alloc(next=last)
    ...     lost = nodes.alloc(next=last)
    ...     unreachable({"nodes": nodes}, first)["nodes"].tolist() == [lost]
    True
    """
    graph = walked("unreachable", caches, roots, links, always)
    found = ByCache({name: graph.lost(cache) for name, cache in caches.items()})
    found.dangling = graph.dangling
    return found


def collect(caches: Caches, roots: Any, links: Caches | None = None, always: Any = ()) -> ByCache[int]:
    """
    Free the records that `unreachable` returns, all or none; returns how many of each cache.

    Parameters and errors are those of `unreachable`.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> from jitslab.reach import collect
    >>> node = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
    >>> with jitslab.SlabCache("nodes", node, capacity=10, init="zero") as nodes:
    ...     handles = nodes.alloc_many(5)
    ...     nodes[handles[0]]["next"] = handles[3]
    ...     collect({"nodes": nodes}, handles[0]), len(nodes)
    ({'nodes': 3}, 2)
    """
    graph = walked("collect", caches, roots, links, always)
    for cache in graph.caches:  # a thread that came meanwhile may have moved links
        cache._need_rest("collect")
    freed = ByCache(graph.free_lost(caches))
    freed.dangling = graph.dangling
    return freed
