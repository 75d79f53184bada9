"""`PoolCache` and `ReaderCache`: the caches of a pool, from Python."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Generic, NoReturn

from ..cache import SlabCache, prepare
from ..core.layout import SOUND
from ..core.reader import count_live
from ..core.rebuild import rebuild
from ..errors import ConflictError, FaultError, PoolError, ReadOnlyError
from ..machine.holder import guard_class_of
from .memory import PoolCacheMemory

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from .pool import Pool

    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    R = TypeVar("R")


class PoolCache(SlabCache[R], Generic[R]):
    """
    A cache of a pool: as any `SlabCache`, and its records are there again when the pool is opened again.

    Made by `Pool.create_cache`; found by ``pool[name]``.  It closes with its pool.  Pickled, it is opened as a reader's.

    Examples
    --------
    >>> import tempfile, numpy as np, jitslab
    >>> folder = tempfile.TemporaryDirectory()
    >>> with jitslab.open_pool(f"{folder.name}/book") as pool:
    ...     orders = pool.create_cache("orders", np.dtype([("price", "f8")]), capacity=1000)
    ...     h = orders.alloc(price=9.5)
    >>> with jitslab.open_pool(f"{folder.name}/book", "r") as pool:
    ...     pool["orders"][h]["price"].item()
    9.5
    >>> folder.cleanup()
    """

    __slots__ = ("_is_ending", "_pool")
    _memory: PoolCacheMemory
    _pool: Pool
    _is_ending: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise PoolError(f"{type(self).__name__} is made by pool.create_cache(name, dtype, capacity=n)")

    @property
    def pool(self) -> Pool:
        """The pool that the cache is of."""
        return self._pool

    def shrink(self) -> int:
        """
        Give the memory of all empty slabs back to the system; returns how many slabs.

        As of any cache.  The next checkpoint gives the space of their records in the file back, too, if they are empty in the
        last commit.  Raises BusyError if another thread is in a call of the pool.
        """
        self._need_open()
        with self._pool._alone("shrink"):
            self._pool._before_shrink(self)
            return super().shrink()

    def _declare(self, declared: Any) -> None:
        """Have guards be of a declared class."""
        if declared is None or declared is self._declared:
            return
        if self._declared is not None or guard_class_of(self) is not None:
            raise ConflictError(f"cache {self._name!r} has guards of another class already")
        self._declared = declared

    def _end(self) -> FaultError | None:
        """Refuse to be closed alone: the pool would then find zeros in the place of its records."""
        if not self._is_ending:
            raise PoolError(f"cache {self._name!r} closes with its pool; close that, or call pool.drop_cache({self._name!r})")
        return super()._end()

    def _end_with_pool(self) -> FaultError | None:
        """Close; returns the faults that nobody was told of."""
        self._is_ending = True
        return self._end()

    def _closed_text(self) -> str:
        return f"cache {self._name!r} is closed with its pool, or was dropped"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as the pool's path and the name: the copy is a reader's."""
        return self._pool._reduced(self._name)


class ReaderCache(PoolCache[R], Generic[R]):
    """
    A cache of a pool that was opened to read: the records of one commit, until `Pool.refresh`.

    Python raises `ReadOnlyError` for all that allocates, frees or writes.  In compiled code such calls are refused, which is a
    fault.  Stores of compiled code to records stay in this process, and may vanish at a refresh.
    """

    __slots__ = ()

    def _open(self, name: str, dtype: Any, declared: Any, memory: Any) -> None:
        """Become the cache of some memory, which Python cannot write to."""
        memory.records.flags.writeable = False
        super()._open(name, dtype, declared, memory)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to change anything."""
        self._need_open()
        raise ReadOnlyError(f"cache {self._name!r} is of a pool that was opened to read; mode 'r+' can write")

    alloc = free = _alloc_slow = _free_slow = _alloc_with = _new_slow = _refuse
    new = allocate = _allocate_slow = _allocate_with = adopt = _adopt_slow = allocate_many = alloc_many = free_many = _refuse
    scatter = extend = __setitem__ = clear = retain = reserve = recover = shrink = flush = _refuse

    def __len__(self) -> int:
        """Return the number of live records: a scan of 4 bytes a slot."""
        self._need_open()
        return count_live(self._address)

    def check(self) -> None:
        """Recount everything, as of any cache: the index is built for that, and no thread may use the cache meanwhile."""
        self._need_told()
        self._memory.set_field("torn", SOUND)
        rebuild(self._address)
        try:
            super().check()
        finally:
            self._memory.tear()  # after a refresh the index would be wrong

    @property
    def parked(self) -> int:
        """No slot is in a magazine."""
        self._need_open()
        return 0


def make_cache(pool: Pool, memory: PoolCacheMemory, is_reader: bool) -> PoolCache[Any]:
    """Return the cache of some memory."""
    prepare()
    cls = ReaderCache if is_reader else PoolCache
    cache: PoolCache[Any] = cls.__new__(cls)
    cache._pool, cache._is_ending = pool, False
    cache._open(memory.entry.name, memory.entry.dtype, None, memory)
    cache._is_owned, cache._family = True, weakref.ref(pool)
    return cache
