"""What giving slabs back to the system must leave alone."""

import numpy as np
import pytest

import jitslab


@pytest.mark.parametrize("itemsize", [72, 200, 1120, 5848, 70_000])
def test_release_leaves_the_live_records_of_neighbours_alone(itemsize: int) -> None:
    """Slabs of large records share pages of generations: an empty one's page goes only if all slabs on it do."""
    dtype = np.dtype([("stamp", "i8"), ("rest", "u1", (itemsize - 8,))])
    with jitslab.SlabCache("records", dtype) as cache:
        cache.free(cache.alloc())
        each = len(cache.pages[0].live)
        handles = cache.alloc_many(64 * each)
        cache.records["stamp"][cache.slots(handles)] = handles
        is_kept = (handles & 0xFFFFFFFF) // each % 16 < 8
        cache.free_many(handles[~is_kept])
        released = cache.shrink()

        cache.check()
        assert released >= 24
        assert np.array_equal(cache.gather(handles[is_kept])["stamp"], handles[is_kept])

        again = cache.alloc_many(40 * each)

        assert not np.isin(again, handles).any()
        cache.check()
