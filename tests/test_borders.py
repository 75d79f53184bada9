"""What lies at a border: of a page, of a variable's life, of a cache's, of a process's."""

import ctypes
import sys
import threading

import numpy as np
import pytest
from numba import njit
from program import run_python

import jitslab
from jitslab import process

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


def test_first_caches_of_several_threads_share_one_process_block():
    """Threads that make their first caches at the same instant enter them in one registry."""
    program = """
import threading
import numpy as np, jitslab
from jitslab import process
made = []
one = process.Process.__init__
def counted(self):
    made.append(self)
    one(self)
process.Process.__init__ = counted
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
from jitslab.layout import C
cache = jitslab.SlabCache("released", np.dtype([("x", "i8")]), capacity=1000)
h = cache.alloc()
cache._c[C["releasing"] // 8] = 1
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    cache.check()
    cache.close()
    os._exit(0)
print(os.waitpid(pid, 0)[1])
"""
    assert "0\n" == run_python(program)


def test_flush_after_close_leaves_an_empty_magazine():
    """A thread that waits to flush while another closes finds its magazine empty, not below empty."""
    from inside import Inside

    from jitslab import heap, layout

    cache = jitslab.SlabCache("flush", LINE, capacity=1000)
    cache.alloc()
    inside = Inside(cache)
    row = inside.owned[0]
    at = int(inside.control["heaps"]) + row * layout.HEAP_BYTES
    cache.close()
    heap.flush(cache._address, at, 128)

    assert 0 == int(inside.heap(row)["top"])


def test_check_of_a_cache_that_grows_meanwhile_is_refused():
    """The recount does not go beyond the bits that it was given."""
    from jitslab import recover

    with jitslab.SlabCache("grown", LINE, capacity=100_000) as cache:
        cache.alloc_many(5000)
        bits = np.zeros(4, np.int64)

        assert recover.MOVED == recover.check_laws(cache._address, bits.ctypes.data, 1)
        assert not bits.any()


@pytest.mark.skipif(sys.platform != "linux", reason="memory that is locked can be given back elsewhere")
def test_closed_cache_has_no_odd_generation_where_memory_cannot_be_given_back():
    """The system refuses it for pages that are locked."""
    cache = jitslab.SlabCache("locked", LINE, capacity=100_000)
    cache.alloc_many(5000)
    words = np.frombuffer(cache._words, np.uint32)
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
        cache[np.array([1, 2])]


def test_process_block_is_one():
    """Every call answers the same."""
    seen = set()
    threads = [threading.Thread(target=lambda: seen.add(id(process.this_process()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 1 == len(seen)
