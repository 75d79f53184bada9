"""What compiled code returns or holds, and that keeps nothing: memory that has ended reads as zeros, a cache there is closed."""

import ctypes
import weakref

import pytest
from program import run_python

import jitslab
from jitslab.core.layout import MOST_KEPT
from jitslab.core.process import KEPT_SHARE, let_kept_go, this_process

# Each program runs in a process of its own, which a wrong access would end.
SHOW = ("-X", "faulthandler")
ARRAYS = """
import gc, threading, weakref
import jitslab, numba, numpy as np
from numba import njit, typed

DTYPE = np.dtype([("n", "i8"), ("data", "i4", (500,)), ("inner", [("deep", "f8", (2, 3))])])

def all_zero(arrays):
    assert not any(array.any() for array in arrays)
    for array in arrays:
        array[...] = 1
        assert array.all()

def drop(*objects):
    gc.collect()
    assert [it() for it in objects] == [None] * len(objects)
"""


def test_array_of_a_record_outlives_its_cache():
    """By whatever way it leaves compiled code: it reads as zeros, and takes what is written, once its cache is gone."""
    program = """
WAYS_OUT = [
    njit(lambda c, h, rs, r: (c[h].data, c[h].inner.deep)),
    njit(lambda c, h, rs, r: (c.record(h).data[10:20:3],)),
    njit(lambda c, h, rs, r: [r.data for k, r in c.items()]),
    njit(lambda c, h, rs, r: (c.new()[1].data,)),
    njit(lambda c, h, rs, r: (r.data, rs[h & 0xFFFFFFFF].data)),  # what Python gave it
    njit(lambda c, h, rs, r: typed.List([c[h].data])),
]
for nodes in (None, 2):
    for capacity in (100, None):
        for is_closed in (False, True):
            cache = jitslab.SlabCache("x", DTYPE, capacity=capacity, init="zero", nodes=nodes)
            cache.alloc_many(50)
            h = cache.alloc()
            cache[h]["data"], cache[h]["inner"]["deep"] = 5, 5
            arrays = [array for way in WAYS_OUT for array in way(cache, h, cache.records, cache[h])]
            assert sum(int(array.any()) for array in arrays) >= 7
            if is_closed:
                cache.close()
            gone = weakref.ref(cache)
            del cache
            drop(gone)
            all_zero(arrays)
"""
    assert run_python(ARRAYS + program, *SHOW) == ""


def test_bytes_outlive_their_memory():
    """Raw memory of every size, freed, moved, closed or collected: its bytes can be read and written."""
    program = """
view = njit(lambda m, p, n: m.bytes(p, n))
for end in ("free", "realloc", "close", "collect"):
    for n in (100, 5000, 1 << 20, 3 << 20, 40 << 20):
        memory = jitslab.SlabAllocator("m")
        p = memory.allocate(n)
        array = view(memory, p, n)
        array[:] = 7
        if end == "free":
            memory.free(p, n)
        elif end == "realloc":
            assert view(memory, memory.realloc(p, n, 3 * n), 3 * n)[:n].sum() == 7 * n
        elif end == "close":
            memory.close()
        else:
            memory = None
            gc.collect()
        if end in ("close", "collect"):
            assert not array.any()
        array[:] = 9
        assert array.sum() == 9 * n
"""
    assert run_python(ARRAYS + program, *SHOW) == ""


def test_pages_that_are_given_up_outlive_their_memory():
    """Parked pages, cut pages, pages that an array of Python kept, pages that were made fewer: arrays of them are harmless."""
    program = """
MIB = 1 << 20
memory = jitslab.SlabAllocator("m")
view = njit(lambda m, p, n: m.bytes(p, n))
arrays = []

def piece(n):
    p = memory.allocate(n)
    arrays.append(view(memory, p, n))
    arrays[-1][:] = 7
    return p

p = piece(5 * MIB)
memory.free(p, 5 * MIB)
q = piece(5 * MIB - 300_000)  # the end of the parked pages goes
memory.free(q, 5 * MIB - 300_000)
memory.shrink()
p = piece(30 * MIB)
p = memory.realloc(p, 30 * MIB, 4 * MIB)
p = memory.realloc(p, 4 * MIB, 60 * MIB)
kept = memory.view(p, 60 * MIB)
memory.free(p, 60 * MIB)
del kept
for array in arrays:
    array[:] = 3
    assert array.sum() == 3 * array.size
"""
    assert run_python(ARRAYS + program, *SHOW) == ""


def test_cache_that_a_container_holds_is_closed_when_it_is_gone():
    """A container of Numba's does not keep the cache: what is left answers as a closed cache does, in any thread."""
    program = """
from numba.experimental import jitclass

@njit
def use(c, h):
    record = c[h]
    record.n = 5
    n = 0
    for k in c:
        n += 1
    for k, r in c.items():
        r.n = 1
        n += 1
    new, other = c.new()
    other.n = 7
    out = np.empty(300, np.int64)
    some = c.alloc_many(out) + c.free_many(out) + c.clear() + len(c) + c.slot_limit
    return record.n, new, c.alloc(), int(c.free(h)), int(h in c), n, some

use_first = njit(lambda held, h: use(held[0], h))
use_attribute = njit(lambda held, h: use(held.cache, h))
for nodes, init in ((None, None), (2, "zero")):
    cache = jitslab.SlabCache("held", DTYPE, capacity=10_000, init=init, nodes=nodes)

    @jitclass([("cache", numba.typeof(cache))])
    class Holder:
        def __init__(self, cache):
            self.cache = cache

    listed = typed.List()
    listed.append(cache)
    holders = [(listed, use_first), (Holder(cache), use_attribute)]
    for held, use_held in holders:
        cache.alloc_many(1500)
        assert use_held(held, cache.alloc())[1] > 0
    h = cache.alloc()
    gone = weakref.ref(cache)
    del cache
    drop(gone)
    answers = []
    for held, use_held in holders:
        answers += [use_held(held, h), use_held(held, h)]
        thread = threading.Thread(target=lambda: answers.append(use_held(held, h)))
        thread.start()
        thread.join()
    assert [answer[1:] for answer in answers] == [(0, 0, 0, 0, 0, 0)] * 6, answers
    for get in (lambda: listed[0], lambda: holders[1][0].cache):
        try:
            get()
        except jitslab.ClosedError as error:
            assert str(error) == "the SlabCache that compiled code returns is gone"
        else:
            raise AssertionError
"""
    assert run_python(ARRAYS + program, *SHOW) == ""


def test_generator_of_a_cache_that_is_gone_ends():
    """It does not keep the cache, either."""
    program = """
@njit
def handles(c):
    for h in c:
        yield h

for n in (100, 20_000):
    cache = jitslab.SlabCache("x", np.dtype([("a", "i8")]), capacity=50_000)
    cache.alloc_many(n)
    generator = handles(cache)
    assert next(generator) in cache
    gone = weakref.ref(cache)
    del cache
    drop(gone)
    assert list(generator) == []
"""
    assert run_python(ARRAYS + program, *SHOW) == ""


def test_allocator_that_a_container_holds_is_closed_when_it_is_gone():
    """It gives nothing, refuses every ptr, and its bytes are scratch."""
    program = """
sizes = np.array([1, 64, 1000, 100_000, 1 << 20, (1 << 20) + 100, 5 << 20])

@njit
def make(m, ptrs):
    for i in range(sizes.size):
        ptrs[i] = m.allocate(sizes[i])

@njit
def use(held, ptrs):
    m, n = held[0], 0
    for i in range(sizes.size):
        p, size = ptrs[i], sizes[i]
        n += m.free(p, size) + (m.address(p, size) != 0) + m.bytes(p, size).sum() + (m.realloc(p, size, 2 * size) != 0)
        n += (m.allocate(size) != 0) + (m.new(size)[0] != 0)
    return n

memory = jitslab.SlabAllocator("m")
held, ptrs = typed.List(), np.zeros(sizes.size, np.int64)
held.append(memory)
make(memory, ptrs)
assert use(held, ptrs) >= 3 * sizes.size
make(memory, ptrs)
gone = weakref.ref(memory)
try:
    memory.raise_faults()
except jitslab.FaultError:
    pass
del memory
drop(gone)
answers = [use(held, ptrs), use(held, ptrs)]
thread = threading.Thread(target=lambda: answers.append(use(held, ptrs)))
thread.start()
thread.join()
assert answers == [0, 0, 0]
"""
    assert run_python(ARRAYS + program, *SHOW) == ""


def kept():
    """Return how many ranges are kept, and their bytes."""
    row = this_process().row[0]
    return int(row["n_kept"]), int(row["kept_bytes"])


def test_what_is_kept_has_bounds():
    """A number of ranges, and a share of the address space; the oldest go first, and no memory stays behind them."""
    let_kept_go(this_process().address)
    assert kept() == (0, 0)
    first = jitslab.SlabCache("first", [("x", "i8")], capacity=10)
    for _ in range(MOST_KEPT + 50):
        jitslab.SlabCache("small", [("x", "i8")], capacity=10)
    assert kept()[0] == MOST_KEPT
    for _ in range(200):
        jitslab.SlabCache("large", [("x", "i8")])
    assert kept()[1] <= (1 << 47) // KEPT_SHARE

    record = first[first.alloc()]
    record["x"] = 7
    at = ctypes.c_int64.from_address(record.__array_interface__["data"][0])
    gone = weakref.ref(first)
    del first
    assert gone() is None
    assert at.value == 7
    del record
    assert at.value == 0


@pytest.mark.parametrize(("limit", "limit_bytes"), [("RLIMIT_AS", 16 << 30), ("RLIMIT_DATA", 1 << 30)])
def test_what_is_kept_makes_way(limit, limit_bytes):
    """Where addresses, or writable memory, are limited, kept ranges are no reason to refuse a cache."""
    program = f"""
import resource
first = jitslab.SlabCache("first", DTYPE, capacity=1000, init="zero")
array = njit(lambda c, h: c[h].data)(first, first.alloc())
resource.setrlimit(resource.{limit}, ({limit_bytes}, {limit_bytes}))
del first
gc.collect()
assert not array.any()
for i in range(300):
    cache = jitslab.SlabCache("x", DTYPE, capacity=100_000, init="zero")
    cache.alloc_many(2000)
    cache[cache.alloc()]["n"] = 5
    del cache
memory = jitslab.SlabAllocator("m")
for i in range(300):
    p = memory.allocate(100 << 20)
    assert p
    memory.free(p, 100 << 20)
"""
    assert run_python(ARRAYS + program, *SHOW) == ""


def test_kept_memory_in_a_child_of_fork():
    """Parent and child have what is kept, each for itself."""
    program = """
import os
cache = jitslab.SlabCache("x", DTYPE, capacity=1000, init="zero")
array = njit(lambda c, h: c[h].data)(cache, cache.alloc())
held = typed.List()
held.append(cache)
count = njit(lambda held: (held[0].alloc(), len(held[0])))
count(held)
del cache
gc.collect()
child = os.fork()
all_zero([array])
assert count(held) == (0, 0)
for _ in range(20):
    jitslab.SlabCache("y", DTYPE, capacity=1000).alloc()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert array.all()
"""
    assert run_python(ARRAYS + program, *SHOW) == ""
