"""Caches that are made again under their name, and whether a cache is open."""

import numpy as np
import pytest
from numba import njit

import jitslab

POINT = np.dtype([("x", "f8")])


def points(**options):
    """Run the cell of a notebook."""
    return jitslab.SlabCache("replaced", POINT, capacity=10, **options)


def test_cell_that_runs_again_closes_the_cache_of_before():
    """Every open one of that name, and no other; the name finds the new one."""
    with jitslab.SlabCache("another", POINT, capacity=10) as another:
        first, second = points(), points()
        handle = first.alloc()
        with points(replace=True) as third, points(replace=True) as fourth:
            assert [True] * 3 == [cache.closed for cache in (first, second, third)]
            assert not fourth.closed
            assert not another.closed
            assert jitslab.caches["replaced"] is fourth
            with pytest.raises(jitslab.ClosedError):
                first.free(handle)
        with points(replace=True) as last:
            assert 1 == last.alloc_many(1).size


def test_cache_of_an_allocator_is_not_replaced():
    """Dedicated, typed, and that of large memory."""
    with jitslab.SlabAllocator("replaced") as allocator:
        owned = [allocator.create_cache("replaced", POINT), allocator.typed(POINT), allocator._parts.large]
        for cache in owned:
            with jitslab.SlabCache(cache.name, POINT, capacity=10, replace=True):
                assert not cache.closed


REFUSED = {
    "dtype": ({"dtype": "f8"}, jitslab.LayoutError),
    "capacity": ({"capacity": 0}, jitslab.CapacityError),
    "init": ({"init": "one"}, jitslab.LayoutError),
    "policy": ({"policy": "remote"}, jitslab.NodeError),
    "keep_empty": ({"keep_empty": 1}, jitslab.CapacityError),
    "replace": ({"replace": "yes"}, jitslab.CapacityError),
}


@pytest.mark.parametrize("crime", REFUSED)
def test_refused_argument_closes_nothing(crime):
    """The old cache goes on."""
    given, error = REFUSED[crime]
    with points() as cache:
        with pytest.raises(error):
            jitslab.SlabCache(**{"name": "replaced", "dtype": POINT, "replace": True} | given)
        assert not cache.closed


def test_allocators_have_no_such_option():
    """They refuse a name that is taken."""
    with jitslab.SlabAllocator("options") as allocator, pytest.raises(jitslab.OptionError, match="no option 'replace'"):
        allocator.create_cache("replaced", POINT, replace=True)


def test_faults_of_a_replaced_cache_are_told():
    """It is closed, and none is made; the next run makes one."""
    cache = points()
    njit(lambda cache: cache[5].x)(cache)

    with pytest.raises(jitslab.FaultError, match="^1 fault in compiled code on cache 'replaced'"):
        points(replace=True)
    assert cache.closed
    assert "replaced" not in jitslab.caches
    points(replace=True).close()


def test_open_cache_is_true():
    """Empty or not, in Python and compiled; closed or never opened it is false.  So of allocators and managers."""
    compiled = njit(lambda cache: (bool(cache), not cache, 1 if cache else 2))
    with points() as cache:
        assert 0 == len(cache)
        assert bool(cache) is True
        assert (True, False, 1) == compiled(cache)
    assert bool(cache) is False
    assert (False, True, 2) == compiled(cache)
    for cls in (jitslab.SlabCache, jitslab.SlabAllocator):
        assert bool(cls.__new__(cls)) is False
    for it in (jitslab.SlabAllocator("truth"), jitslab.SlabAllocatorManager()):
        with it:
            assert bool(it) is True
        assert bool(it) is False
