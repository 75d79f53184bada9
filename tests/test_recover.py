"""Laws broken on purpose and found by number; the index rebuilt from the generations; slabs given back and worn out."""

import numpy as np
import pytest

import jitslab

KIB = np.dtype([("a", "<i8", 128)])  # 64 slots a slab


def full_cache(**options):
    """Return a cache with 1,000 records in 16 slabs, and their handles."""
    cache = jitslab.SlabCache("law", KIB, capacity=4096, colouring=False, **options)
    return cache, cache.alloc_many(1000)


# --- Slabs given back ---


def test_handles_of_a_released_slab_are_stale_and_never_come_back():
    """A slab that went back to the system restarts above every generation that it issued."""
    cache, handles = full_cache()
    cache.free_many(handles)

    assert cache.shrink() >= 15
    assert not any(handle in cache for handle in handles.tolist())
    with pytest.raises(jitslab.StaleHandleError, match="is free"):
        cache.free(int(handles[0]))

    again = cache.alloc_many(1000)

    assert not set(handles.tolist()) & set(again.tolist())
    assert (again >> 32).min() > (handles >> 32).max()
    with pytest.raises(jitslab.StaleHandleError):
        cache.free(int(handles[0]))
    cache.check()


@pytest.mark.parametrize("itemsize", [200, 5000, 70_000])
def test_release_between_live_slabs_leaves_them_alone(itemsize):
    """Slabs whose generations share a page with those of live ones go back without them."""
    cache = jitslab.SlabCache("between", [("a", "u1", itemsize)], capacity=4000)
    handles = cache.alloc_many(4000)
    page = (handles & 0xFFFFFFFF) // (1 << cache._block.geometry.shift) % 8
    kept, freed = handles[page == 7], handles[page != 7]
    cache.records["a"][cache.slots(kept), 0] = 77
    cache.free_many(freed)
    cache.shrink()

    assert sorted(kept.tolist()) == sorted(cache.live().tolist())
    assert (cache.gather(kept)["a"][:, 0] == 77).all()
    assert all(handle in cache for handle in kept.tolist())
    cache.check()
