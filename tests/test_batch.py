"""Batches in compiled code: slots in a row are moved several an instruction, and each handle is judged as if it came alone."""

import numpy as np
import pytest
from inside import Inside
from numba import njit

import jitslab
from jitslab.core import layout
from jitslab.core.vectors import is_row

CYCLE = 1 << 32
SIZES = [2, 4, 5, 8, 12, 15, 16, 40, 64, 200, 700]  # of a batch: single slots, rows of 4, 8 and 16, the slab layer
BYTES = [64, 1000, 2000, 4096, 9000, 65536]  # of a record: from 1,024 slots a slab to one

CRIMES = {
    "twice, first": lambda handles, p: handles[p + 1 - handles.size],
    "twice, second": lambda handles, p: handles[p - 1],
    "stale": lambda handles, p: handles[p] - CYCLE,
    "of a later cycle": lambda handles, p: handles[p] + CYCLE,
    "of a slot far away": lambda handles, p: handles[p] ^ (1 << 31),
    "beyond all slots": lambda handles, p: handles[p] | 0xFFFFFFFF,
    "negative": lambda handles, p: handles[p] | np.int64(-(1 << 63)),
    "NULL": lambda handles, p: jitslab.NULL,
}


@njit
def alloc_many(cache, out):
    """Allocate a batch."""
    return cache.alloc_many(out)


@njit
def free_many(cache, handles):
    """Free a batch."""
    return cache.free_many(handles)


def open_cache(itemsize=64, **options):
    """Return a cache of records of so many bytes."""
    return jitslab.SlabCache("batch", np.dtype([("a", "u1", itemsize)]), capacity=3000, **options)


def taken(cache, n):
    """Return the handles of n records that compiled code allocates."""
    handles = np.zeros(n, np.int64)
    assert alloc_many(cache, handles) == n
    return handles


def some(n):
    """Positions of a batch: all of a small one, those about the borders of rows and blocks of a large one."""
    return range(n) if n <= 64 else sorted({0, 1, 15, 16, 17, 62, 63, 64, 65, n // 2, n - 17, n - 16, n - 2, n - 1})


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("crime", CRIMES)
def test_refused_handle_in_a_batch(crime, n):
    """Wherever it stands, it alone is refused, and the record that it stands for stays live."""
    with open_cache() as cache:
        for p in some(n):
            handles = taken(cache, n)
            wrong = handles.copy()
            wrong[p] = CRIMES[crime](handles, p)

            assert free_many(cache, wrong) == n - 1
            assert list(cache) == [handles[p]]
            assert cache.free_many(handles[p : p + 1]) == 1

        cache.check()


@pytest.mark.parametrize("n", SIZES)
def test_record_of_a_batch_that_was_freed_before(n):
    """It is refused, and the slot is not free twice."""
    with open_cache() as cache:
        for p in some(n):
            handles = taken(cache, n)
            cache.free(handles[p])

            assert free_many(cache, handles) == n - 1
            assert free_many(cache, handles) == 0
            assert len(cache) == 0

        cache.check()


@pytest.mark.parametrize("itemsize", BYTES)
@pytest.mark.parametrize("n", SIZES)
def test_batches_of_slabs_of_any_size(itemsize, n):
    """Slots of a batch are all different, whatever the number of slots a slab, and so are those of the next one."""
    with open_cache(itemsize) as cache:
        first, second = taken(cache, n), taken(cache, n)
        assert len(set(np.concatenate([first, second]) & 0xFFFFFFFF)) == 2 * n
        assert free_many(cache, first[::-1].copy()) == n
        assert free_many(cache, first) == 0
        third = taken(cache, n)

        assert set(cache) == {*second, *third}
        assert free_many(cache, np.concatenate([second, third])) == 2 * n
        cache.check()


@pytest.mark.parametrize("itemsize", [64, 4096])
def test_batches_as_a_set_has_them(itemsize):
    """Of batches of any size, freed in any order and with handles of before among them, exactly the live ones are freed."""
    rng = np.random.default_rng(20_010_625)
    with open_cache(itemsize) as cache:
        live, gone = set(), []
        for turn in range(600):
            new = taken(cache, int(rng.integers(1, 90)))
            assert live.isdisjoint(new)
            live.update(new.tolist())
            picks = rng.permutation(sorted(live)) if turn % 2 else np.array(sorted(live))
            picks = picks[: rng.integers(0, picks.size + 1)]
            if turn % 3 == 0 and gone:
                picks = np.insert(picks, rng.integers(0, picks.size + 1), gone)
            expected = live.intersection(picks.tolist())
            assert free_many(cache, picks) == len(expected)
            live -= expected
            gone = sorted(expected)[:3]
            if len(live) > 1500:
                assert free_many(cache, np.array(sorted(live))) == len(live)
                live = set()
            assert len(cache) == len(live)

        assert set(cache) == live
        cache.check()


@pytest.mark.parametrize("n", [4, 16, 40, 600])
def test_retired_slot_is_left_out_of_a_batch(n):
    """A slot whose cycles are used up is dropped where it stands in a row."""
    for p in some(n):
        with open_cache() as cache:
            handles = taken(cache, n)
            free_many(cache, handles)
            slot = int(handles[p]) & 0xFFFFFFFF
            Inside(cache).generations[slot] = 2 * layout.MAX_CYCLE

            again = taken(cache, n)
            assert slot not in again & 0xFFFFFFFF
            assert len(set(again)) == n
            assert free_many(cache, again) == n
            cache.check()


@pytest.mark.parametrize("crime", CRIMES)
def test_refused_handle_in_a_batch_of_several_nodes(crime):
    """Rows of one node beside rows of another go home to both, and a refused handle among them is refused alone."""
    with open_cache(nodes=3) as cache:
        for p in (0, 15, 16, 299, 300, 450, 599):
            Inside(cache).run_on(1)
            first = taken(cache, 300)
            Inside(cache).run_on(2)
            handles = np.concatenate([first, taken(cache, 300)])
            wrong = handles.copy()
            wrong[p] = CRIMES[crime](handles, p)

            assert free_many(cache, wrong) == 599
            assert list(cache) == [handles[p]]
            assert free_many(cache, handles) == 1

        cache.check()


def test_last_slot_and_the_first_are_no_neighbours():
    """Of a cache with all 2**32 slots: a row from the last one on would end beyond all memory."""

    @njit
    def is_row_of_four(at):
        return is_row(at, 4)

    rows = {(3, 2, 1, 0): True, (2, 1, 0, 0xFFFFFFFF): False, (0, 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD): False, (7, 6, 5, 3): False}
    for slots, expected in rows.items():
        assert is_row_of_four(np.array(slots, np.uint32).ctypes.data) == expected


def test_small_batch_continues_over_a_refill_and_a_flush():
    """A batch that the magazine has only a part of, or room for only a part of, is taken and freed whole."""
    with open_cache() as cache:
        rounds = int(Inside(cache).control["magazine_size"])
        for n in (3, 7, 17, 100, rounds // 2 - 1):
            batches = [taken(cache, n) for _ in range(2 * rounds // n)]
            assert len(set(np.concatenate(batches))) == n * len(batches)
            assert sum(free_many(cache, batch) for batch in batches) == n * len(batches)
            assert len(cache) == 0

        cache.check()


def test_batch_beyond_the_capacity_takes_nothing():
    """All or none: what was taken before the cache was full is given back."""
    with open_cache() as cache:
        held = taken(cache, 2990)
        for n in (11, 16, 40, 300):
            assert alloc_many(cache, np.zeros(n, np.int64)) == 0
            assert len(cache) == 2990
        last = taken(cache, 10)

        assert free_many(cache, np.concatenate([held, last])) == 3000
        cache.check()


def refused_in_python(cache, out):
    """Have a batch refused."""
    with pytest.raises(jitslab.CacheFullError):
        cache.alloc_many(out.size, out=out)


def refused_in_compiled_code(cache, out):
    """Likewise."""
    assert alloc_many(cache, out) == 0


@pytest.mark.parametrize("refuse", [refused_in_python, refused_in_compiled_code])
@pytest.mark.parametrize("n", [1, 3, 16, 40, 127, 128, 700])
@pytest.mark.parametrize("parked", [0, 1, 20])
@pytest.mark.parametrize("init", [None, "zero"])
def test_array_keeps_what_it_holds_when_a_batch_is_refused(refuse, n, parked, init):
    """The handles of the batch before, so that it can be freed by them; whatever is in the magazine."""
    with jitslab.SlabCache("batch", np.dtype([("a", "u1", 64)]), capacity=2 * n - 1 + parked, init=init) as cache:
        cache.free_many(cache.alloc_many(parked))
        out = cache.alloc_many(n)
        others = cache.alloc_many(parked)
        before = out.copy()
        for _ in range(3):
            refuse(cache, out)
            assert before.tolist() == out.tolist()
            assert n + parked == len(cache)
        cache.free_many(out)
        assert n == alloc_many(cache, out)
        cache.free_many(others)
        cache.check()
