"""The slab layer: states, lists, colours, runs, and what a cache costs."""

import ctypes
import re
import subprocess
import sys

import numba
import numpy as np
import pytest
from inside import Inside
from program import run_python

import jitslab
from jitslab import SlabState
from jitslab.core import layout, slab
from jitslab.core.process import let_kept_go, this_process
from jitslab.machine.memory import lowest_bit, popcount

LINE = np.dtype([("a", "<i8", 8)])
KIB = np.dtype([("a", "<i8", 125)])
fitting = numba.njit(lambda free, room: slab.pick_bits(free, room))


@pytest.mark.parametrize("room", [1, 3, 15, 16, 17, 40, 63])
@pytest.mark.parametrize("free", [(1 << 63) - 1, 0x00FF00FF00FF00FF, 0x8000000000000001 - (1 << 64), -1, 0xFFFF0001])
def test_fitting_takes_whole_runs_where_they_fit(free, room):
    """Never more than there is room for, never what is not free, and something always."""
    taken = int(fitting(np.int64(free), np.int64(room)))

    assert taken & ~free == 0
    n = (taken & (1 << 64) - 1).bit_count()
    assert 1 <= n <= room or (free & (1 << 64) - 1).bit_count() <= room
    runs = [free >> k & 0xFFFF for k in range(0, 64, 16)]
    if any(run and run.bit_count() <= room for run in runs):
        assert all(taken >> k & 0xFFFF in (0, run) for k, run in zip(range(0, 64, 16), runs, strict=True))


def test_slabs_go_through_their_states():
    """FREE, PARTIALLY_USED, FULL and back, as slots are handed out and come back."""
    with jitslab.SlabCache("states", KIB, capacity=10_000, colouring=False) as cache:
        handles = cache.alloc_many(640)
        assert [page.state for page in cache.pages[:10]] == [SlabState.FULL] * 10
        cache.free_many(handles[:32])
        cache.shrink()  # the magazine goes home
        assert cache.pages[0].state == SlabState.PARTIALLY_USED
        assert cache.pages[0].used == 32
        cache.free_many(handles[32:64])
        cache.shrink()
        assert cache.pages[0].state == SlabState.FREE
        assert cache.pages[0].used == 0
        assert sum(page.used for page in cache.pages) == 576
        cache.check()


def test_fuller_slabs_are_preferred():
    """New records go to the partially used slab that is fullest, so that the others can become empty."""
    with jitslab.SlabCache("fuller", KIB, capacity=10_000, colouring=False) as cache:
        handles = cache.alloc_many(640)
        cache.free_many(handles[0:60])
        cache.free_many(handles[64:72])
        cache.recover()
        cache.shrink()
        cache.recover()
        again = cache.slots(cache.alloc_many(8))

        assert {1} == set((again // 64).tolist())


def test_lowest_slots_first_within_a_batch():
    """A batch from an uncoloured new cache lies in order: records that are made together are neighbours."""
    with jitslab.SlabCache("order", LINE, capacity=10_000, colouring=False) as cache:
        assert list(range(5000)) == cache.slots(cache.alloc_many(5000)).tolist()


@pytest.mark.parametrize("dtype", [LINE, KIB], ids=["64 bytes", "1000 bytes"])
def test_slabs_start_at_different_colours(dtype):
    """Fresh slots start at the slab's colour and wrap; without colouring they start at slot 0."""
    with jitslab.SlabCache("colours", dtype, capacity=50_000) as cache:
        slots = cache.slots(cache.alloc_many(20_000))
        pages = cache.pages
        n = pages[0].capacity

        colours = [page.colour for page in pages]
        assert len(set(colours[: min(n, 16)])) == min(n, len(colours), 16)
        for page in pages[:3]:
            mine = [slot - page.index * n for slot in slots.tolist() if slot // n == page.index]
            assert sorted(mine) == list(range(n))
            assert page.colour in mine[:64]
    with jitslab.SlabCache("plain", dtype, capacity=50_000, colouring=False) as cache:
        cache.alloc_many(20_000)
        assert {0} == {page.colour for page in cache.pages}


def test_records_lie_where_the_layout_says():
    """Slot i is at ``records + i * stride``, aligned, and `records` is the same memory."""
    dtype = np.dtype([("a", "<f8"), ("b", "u1", 1016)], align=True)
    with jitslab.SlabCache("flat", dtype, capacity=1000) as cache:
        handles = cache.alloc_many(500)
        base = cache.records.ctypes.data

        assert 1088 == cache.stride == cache.records.strides[0]
        for h in handles[::50].tolist():
            it = cache.object_at(h)
            assert base + it.slot * cache.stride == it.address
            assert it.address % 8 == 0
            cache[h]["a"] = it.slot
            assert it.slot == cache.records["a"][it.slot]


@pytest.mark.anonymous
@pytest.mark.parametrize("capacity", [10, 100_000, 50_000_000])
def test_first_rows_and_generations_share_the_page_of_control(capacity):
    """Rows before it, the later ones on pages before; generations behind it."""
    for _ in range(20):
        with jitslab.SlabCache("tight", LINE, capacity=capacity) as cache:
            handle = cache.alloc()
            control, inside = cache._address, Inside(cache)
            rows, words = int(inside.control["slabs"]), int(inside.control["generations"])

            assert control - layout.SLAB.itemsize == rows
            assert control + layout.NODE.itemsize == words
            assert (rows - 7 * layout.SLAB.itemsize) // 4096 == control // 4096 == words // 4096
            assert inside.generations[handle & 0xFFFFFFFF] & 1


@pytest.mark.parametrize("capacity", [10, 50_000_000])
def test_closed_cache_has_no_odd_generation(capacity):
    """Nor on the page that it keeps."""
    cache = jitslab.SlabCache("shut", LINE, capacity=capacity)
    cache.alloc_many(5000 if capacity > 5000 else capacity)
    words = np.frombuffer(cache._generations, np.uint32, 10_000)
    assert words.any()
    cache.close()

    assert not words.any()
    assert cache.closed


def test_reserve_makes_the_next_allocs_certain():
    """Memory for n is granted at once, and none is taken later."""
    with jitslab.SlabCache("reserved", LINE, capacity=200_000) as cache:
        cache.reserve(100_000)
        committed = int(Inside(cache).control["committed"])
        cache.alloc_many(100_000)

        assert committed == int(Inside(cache).control["committed"])
        assert committed << cache._memory.geometry.shift >= 100_000


def test_reserve_does_nothing_where_there_is_room():
    """What is free already needs no growth."""
    with jitslab.SlabCache("reserved", LINE, capacity=200_000) as cache:
        cache.free_many(cache.alloc_many(50_000))
        before = int(Inside(cache).control["committed"])
        cache.reserve(50_000)

        assert before == int(Inside(cache).control["committed"])


def test_bits_kernels():
    """The two that LLVM provides."""
    low, count = numba.njit(lambda x: lowest_bit(x)), numba.njit(lambda x: popcount(x))

    assert [low(np.int64(x)) for x in (0, -1, -(1 << 63), 96)] == [64, 0, 63, 5]
    assert [count(np.int64(x)) for x in (0, -1, -(1 << 63), 96)] == [0, 64, 1, 2]


def test_working_set_is_kept_and_the_surplus_goes_back():
    """After a peak the empty slabs that no interval needed go back to the system by themselves."""
    with jitslab.SlabCache("surplus", LINE, capacity=200_000) as cache:
        cache.free_many(cache.alloc_many(150_000))
        for _ in range(8000):
            cache.free_many(cache.alloc_many(600))

        assert int(Inside(cache).control["released"]) > 100
        cache.check()


def test_empty_slabs_can_be_kept():
    """Nothing goes back by itself; `shrink` still gives it back."""
    with jitslab.SlabCache("kept", LINE, capacity=200_000, keep_empty=True) as cache:
        cache.free_many(cache.alloc_many(150_000))
        for _ in range(8000):
            cache.free_many(cache.alloc_many(600))

        assert int(Inside(cache).control["released"]) == 0
        assert cache.shrink() > 100
        cache.check()


def test_ten_thousand_caches():
    """10,000 caches are open at once, within the system's limit of mappings, and each works."""
    program = """
import numpy as np, jitslab
dtype = np.dtype([("a", "i8", 8)])
caches = [jitslab.SlabCache(f"c{i}", dtype, capacity=1000) for i in range(10_000)]
handles = [cache.alloc() for cache in caches]
with open("/proc/self/maps") as maps:
    n = sum(1 for line in maps)
assert n < 65_530, n
assert len(set(handles)) == 10_000
assert all(h in cache for h, cache in zip(handles, caches))
for cache in caches[::100]:
    cache.check()
for cache in caches[::2]:
    cache.close()
assert all(h in cache for h, cache in zip(handles[1::2], caches[1::2]))
more = [jitslab.SlabCache("again", dtype, capacity=10) for _ in range(100)]
print(len({cache.alloc() for cache in more}))
"""
    assert run_python(program) == "100\n"


def test_cache_with_one_record_is_small():
    """At most 64 KiB of memory each, over 200 caches."""
    program = """
import gc, numpy as np, jitslab
jitslab.warmup()
dtype = np.dtype([("a", "i8", 8)])
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
keep = [jitslab.SlabCache("before", dtype, capacity=1000)]
keep[0].alloc()
gc.collect()
before = resident()
for i in range(200):
    keep.append(jitslab.SlabCache(f"c{i}", dtype, capacity=1000))
    keep[-1].alloc()
each = (resident() - before) / 200
assert 4096 <= each <= 65536, each
"""
    assert run_python(program) == ""


def test_default_capacity_is_large_and_costs_nothing():
    """Without a capacity a cache reserves up to 64 GiB of addresses; two thousand of them do not exhaust them."""
    caches = [jitslab.SlabCache("default", LINE) for _ in range(300)]

    assert all(cache.alloc() in cache for cache in caches)
    assert all(cache.capacity > 1_000_000 for cache in caches)


def test_repr_is_short():
    """One line, whatever the size."""
    with jitslab.SlabCache("repr", LINE) as cache:
        cache.alloc_many(5000)
        assert repr(cache) == "<SlabCache 'repr': 5000 records of 64 bytes live in 5 slabs>"
        assert re.fullmatch(r"<SlabPage 0: FULL, 1024 of 1024 used, colour \d+>", repr(cache.pages[0]))
        assert repr(cache.pages) == "<SlabPages: 5>"
        h = cache.alloc()
        assert f"<SlabObject {h:#x}: slot {h & 0xFFFFFFFF}, slab {(h & 0xFFFFFFFF) >> 10}, live>" == repr(cache.object_at(h))


def test_memory_goes_with_the_last_view():
    """A cache that is dropped gives its memory back, but not before its last record is dropped; its addresses are kept."""

    def mapped():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[0])

    let_kept_go(this_process().address)
    before = mapped()
    cache = jitslab.SlabCache("dropped", LINE, capacity=1 << 24)
    record = cache[cache.alloc()]
    record["a"] = 5
    at = ctypes.c_int64.from_address(record["a"].ctypes.data)
    del cache
    assert record["a"].tolist() == [5] * 8
    del record
    assert at.value == 0
    assert mapped() - before > (1 << 30) // 4096
    let_kept_go(this_process().address)
    assert mapped() - before < (1 << 29) // 4096


def test_import_of_the_package_compiles_nothing():
    """Import is cheap: kernels are compiled when they are first needed."""
    program = "import jitslab, jitslab.core.heap as h; print(h.alloc.signatures)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "[]\n"


def test_process_ends_quietly_with_open_caches():
    """Caches that live to the end of the process, as globals of compiled functions do, do not complain there."""
    program = """
import builtins, numba, numpy as np, jitslab
CACHE = jitslab.SlabCache("global", np.dtype([("x", "f8")]), capacity=10)
builtins.keep = jitslab.SlabCache("outlives the package", np.dtype([("x", "f8")]), capacity=10)

@numba.njit
def use():
    return CACHE.alloc() != 0

assert use()
print("done")
"""
    assert run_python(program) == "done\n"
