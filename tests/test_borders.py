"""What lies at a border: of a page, of a variable's life, of a cache's, of a process's."""

import ctypes
import sys
import threading

import numpy as np
import pytest
from inside import Inside
from numba import njit
from program import run_python

import jitslab
from jitslab.core import process

LINE = np.dtype([("x", "i8"), ("rest", "u1", 56)])


def test_free_bits_of_slabs_below_64_slots_are_committed_to_the_last_word():
    """The bits are used in words of 64 slots: the last word is there even if few of its slots are."""
    large = np.dtype([("a", "u1", 65536)])
    with jitslab.SlabCache("large", large, capacity=40_000) as cache:
        handles = cache.alloc_many(32_769)
        cache.free(int(handles[-1]))
        cache.free_many(handles[:-1])
        cache.shrink()

        assert 0 == len(cache)
        cache.check()


def test_cache_that_no_path_has_set_does_no_harm_where_it_is_not_used():
    """LLVM may look a heap up before the program gets to it, for a variable that was never set."""

    @njit
    def count(a, flag, numbers):
        if flag:
            c = a
        s = 0
        for i in range(numbers.size):
            if numbers[i] > 0:
                s += c.alloc() != 0
        return s

    with jitslab.SlabCache("maybe", LINE, capacity=10) as cache:
        assert 3 == count(cache, True, np.ones(3))
        assert 0 == count(cache, False, np.zeros(3))


def test_first_caches_of_several_threads_share_one_process_memory():
    """Threads that make their first caches at the same instant enter them in one registry."""
    program = """
import threading
import numpy as np, jitslab
from jitslab.core import process
made = []
one = process.ProcessMemory.__init__
def counted(self):
    made.append(self)
    one(self)
process.ProcessMemory.__init__ = counted
barrier = threading.Barrier(4)
def work():
    barrier.wait()
    jitslab.SlabCache("first", np.dtype([("x", "i8")]), capacity=10).alloc()
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(made))
"""
    assert "1\n" == run_python(program)


def test_child_of_fork_closes_a_cache_that_was_being_released():
    """A release in another thread of the parent leaves nothing that the child would wait for."""
    program = """
import os, signal
import numpy as np, jitslab
from jitslab.core.layout import NODE_WORDS
cache = jitslab.SlabCache("released", np.dtype([("x", "i8")]), capacity=1000)
h = cache.alloc()
cache._c[NODE_WORDS["releasing"]] = 1
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    cache.check()
    cache.close()
    os._exit(0)
cache._c[NODE_WORDS["releasing"]] = 0
print(os.waitpid(pid, 0)[1])
"""
    assert "0\n" == run_python(program)


def test_flush_after_close_leaves_an_empty_magazine():
    """A thread that waits to flush while another closes finds its magazine empty, not below empty."""
    from inside import Inside

    from jitslab.core import heap, layout

    cache = jitslab.SlabCache("flush", LINE, capacity=1000)
    cache.alloc()
    inside = Inside(cache)
    row = inside.owned[0]
    at = int(inside.control["heaps"]) + row * layout.HEAP_BYTES
    cache.close()
    heap.flush(cache._address, at, 128)

    assert 0 == int(inside.heap(row)["top"])


def test_check_looks_at_few_slabs_at_a_time():
    """However few the words are that it works with, it finds what it finds with many, and writes to no other."""
    from jitslab.core import check

    with jitslab.SlabCache("windows", LINE, capacity=100_000) as cache:
        cache.free_many(cache.alloc_many(50_000)[::3])
        cache.alloc()
        inside = Inside(cache)
        row = next(row for row in inside.owned if inside.heap(row)["top"] > 1)
        last, slots = int(inside.control["n_slabs"]) - 1, inside.slots
        for n_slabs in (1, 3, 7, last, last + 1, last + 5):
            words = np.full(n_slabs * slots // 64 + 2, -1, np.int64)
            at, n = words[1:].ctypes.data, words.size - 2
            assert check.check_laws(cache._address, at, n) == 0
            for slab in (0, last // 2, last):
                inside.slabs[slab]["n_free"] += 1
                assert check.check_laws(cache._address, at, n) == 3 << 32 | (slab + 1)
                inside.slabs[slab]["n_free"] -= 1
            magazine = inside.magazine(row)
            twice, magazine[0] = int(magazine[0]), magazine[1]
            assert check.check_laws(cache._address, at, n) >> 32 == 1
            magazine[0] = twice
            assert check.check_laws(cache._address, at, n) == 0
            assert (words[0], words[-1]) == (-1, -1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as Linux limits it")
def test_check_works_where_no_memory_is_left():
    """It needs 16 KiB, whatever the size of the cache."""
    program = """
import resource, numpy as np, jitslab
dtype = np.dtype([("a", "u1", 8)])
cache = jitslab.SlabCache("full", dtype, capacity=4_000_000)
cache.alloc_many(4_000_000)
cache.check()
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used + 4096, resource.getrlimit(resource.RLIMIT_DATA)[1]))
try:
    np.ones(500_000, np.uint8)
except MemoryError:
    cache.check()
    print(len(cache))
"""
    assert run_python(program) == "4000000\n"


@pytest.mark.skipif(sys.platform != "linux", reason="memory that is locked can be given back elsewhere")
def test_closed_cache_has_no_odd_generation_where_memory_cannot_be_given_back():
    """The system refuses it for pages that are locked."""
    cache = jitslab.SlabCache("locked", LINE, capacity=100_000)
    cache.alloc_many(5000)
    words = np.frombuffer(cache._generations, np.uint32)
    first = -(-words.ctypes.data // 4096) * 4096
    locked = ctypes.c_void_p(first), ctypes.c_size_t(8192)
    assert ctypes.CDLL(None).mlock(*locked) == 0
    cache.close()
    ctypes.CDLL(None).munlock(*locked)

    assert not words.any()
    assert cache.closed


@pytest.mark.parametrize("handle", [np.int32(5), np.uint8(1), np.int16(-1)])
def test_small_integers_of_numpy_are_refused_as_handles(handle):
    """They are integers, and no handle of this cache."""
    with jitslab.SlabCache("small", LINE, capacity=10) as cache:
        with pytest.raises(jitslab.ForeignHandleError):
            cache[handle]

        assert handle not in cache


def test_array_is_no_handle():
    """One handle is asked for; an array is refused by name."""
    with jitslab.SlabCache("array", LINE, capacity=10) as cache, pytest.raises(jitslab.HandleTypeError):
        cache.free(np.array([1, 2]))


def test_process_block_is_one():
    """Every call answers the same."""
    seen = set()
    threads = [threading.Thread(target=lambda: seen.add(id(process.this_process()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 1 == len(seen)
