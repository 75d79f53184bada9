"""Faults, refused handles in compiled code, are told: by the next call that could hand out what is wrong, or at the end."""

import gc
import warnings

import numpy as np
import pytest
from numba import njit, prange
from program import run_python

import jitslab
from jitslab import NULL

NODE = np.dtype([("value", "f8"), ("next", "i8")])


@njit
def push_all(cache, n):
    """Push n records, as a program does that does not look for NULL."""
    head = 0
    for i in range(n):
        h = cache.alloc()
        cache[h].value = i
        cache[h].next = head
        head = h
    return head


@njit
def use_null(cache):
    """Write the record of a handle that is none."""
    cache[NULL].value = 1.0


@pytest.fixture
def cache():
    """Return a cache with 4 of 10 records live, and no faults at its end."""
    with jitslab.SlabCache("nodes", NODE, capacity=10) as cache:
        push_all(cache, 4)
        yield cache


MANY = {
    "gather": lambda c, h: c.gather(h),
    "scatter": lambda c, h: c.scatter(h, np.zeros((), NODE)),
    "slots": lambda c, h: c.slots(h),
    "live": lambda c, h: c.live(),
    "items": lambda c, h: c.items(),
    "iteration": lambda c, h: iter(c),
    "records": lambda c, h: c.records,
    "retain": lambda c, h: c.retain(h),
    "clear": lambda c, h: c.clear(),
    "alloc_many": lambda c, h: c.alloc_many(1),
    "allocate_many": lambda c, h: c.allocate_many(1).free(),
    "allocate": lambda c, h: c.allocate().free(),
    "alloc": lambda c, h: c.alloc(),
    "new": lambda c, h: c.new(),
    "check": lambda c, h: c.check(),
}


@pytest.mark.parametrize("use", MANY)
def test_what_hands_out_or_takes_many_records_raises_faults_first(cache, use):
    """It raises, does nothing else, and works when it is called again."""
    handles = cache.live()
    use_null(cache)

    with pytest.raises(jitslab.FaultError, match="^1 fault in compiled code on cache 'nodes'"):
        MANY[use](cache, handles)
    assert 4 == len(cache)
    MANY[use](cache, handles)


def test_fields_of_a_batch_raise_faults(cache):
    """Reading and writing them; its end is silent."""
    with pytest.raises(jitslab.FaultError), cache.allocate_many(2) as batch:
        use_null(cache)
        with pytest.raises(jitslab.FaultError):
            batch.value
        use_null(cache)
        with pytest.raises(jitslab.FaultError):
            batch.value = 1.0
        use_null(cache)
        batch.free()
        assert 4 == len(cache)
        cache.raise_faults()


def test_close_gives_the_memory_back_and_then_raises():
    """Once; a kernel that goes on with the closed cache is told of by the next close."""
    cache = jitslab.SlabCache("nodes", NODE, capacity=10)
    push_all(cache, 30)
    assert repr(cache) == "<SlabCache 'nodes': 10 records of 16 bytes live in 1 slabs, 40 faults>"

    with pytest.raises(jitslab.FaultError, match="^40 faults in compiled code on cache 'nodes'"):
        cache.close()
    assert cache.closed
    cache.close()
    use_null(cache)
    assert repr(cache) == "<SlabCache 'nodes': closed, 1 fault>"
    with pytest.raises(jitslab.FaultError):
        cache.close()


def test_block_that_ends_well_raises():
    """The cache is closed by then."""
    with pytest.raises(jitslab.FaultError, match="^1 fault "), jitslab.SlabCache("nodes", NODE, capacity=10) as cache:
        use_null(cache)
    assert cache.closed


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_block_that_ends_by_an_exception_adds_a_note_to_it(kind):
    """The exception is the program's own."""
    with pytest.raises(kind) as caught, jitslab.SlabCache("nodes", NODE, capacity=10) as cache:
        use_null(cache)
        raise kind
    (note,) = caught.value.__notes__
    assert note.startswith("jitslab.errors.FaultError: 1 fault in compiled code on cache 'nodes', by 'use_null(cache)' at ")
    assert cache.closed


def test_fault_that_was_raised_in_the_block_is_no_note():
    """It was told."""
    with pytest.raises(jitslab.FaultError) as caught, jitslab.SlabCache("nodes", NODE, capacity=10) as cache:
        use_null(cache)
        cache.live()
    assert not hasattr(caught.value, "__notes__")


def test_error_says_which_line_called_the_kernel(cache):
    """Its text and its place; a thread without the GIL is not known, and says nothing."""
    push_all(cache, 10)
    with pytest.raises(jitslab.FaultError) as caught:
        cache.alloc()
    first = "the first: NULL handle 0x0 (NULL from a full cache?)"
    line = caught.value.where.rpartition(":")[2]
    assert caught.value.where == f"{__file__}:{line}"
    assert str(caught.value) == (
        f"8 faults in compiled code on cache 'nodes', by 'push_all(cache, 10)' at {caught.value.where}; {first}"
    )

    njit(nogil=True)(use_null.py_func)(cache)
    with pytest.raises(jitslab.FaultError) as caught:
        cache.raise_faults()
    assert ("", f"1 fault in compiled code on cache 'nodes'; {first}") == (caught.value.where, str(caught.value))


def test_faults_of_all_threads_are_counted(cache):
    """Whichever thread has the first."""

    @njit(parallel=True)
    def use_stale(cache):
        for i in prange(10_000):
            cache.record(5 << 32).value = i

    use_stale(cache)
    with pytest.raises(jitslab.FaultError, match="^10000 faults .*stale or foreign handle 0x500000000 "):
        cache.raise_faults()


def test_collected_cache_with_faults_warns():
    """Open or closed; one without is silent."""
    for told in (False, True):
        for is_closed in (False, True):
            cache = jitslab.SlabCache("lost", NODE, capacity=10)
            if is_closed:
                cache.close()
            use_null(cache)
            if told:
                with pytest.raises(jitslab.FaultError):
                    cache.raise_faults()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del cache
                gc.collect()
            texts = [str(each.message) for each in caught]
            assert [] == texts if told else texts[0].startswith("never reported: 1 fault in compiled code on cache 'lost', by ")
            assert all(each.category is ResourceWarning for each in caught)


def test_cache_open_at_exit_with_faults_warns():
    """Also one that compiled code keeps, and raw memory."""
    program = """
import numba, numpy as np, jitslab
cache = jitslab.SlabCache("left", np.dtype([("x", "f8")]), capacity=10)
memory = jitslab.SlabAllocator("memory")

@numba.njit
def use(memory):
    cache[0].x = 1.0
    memory.bytes(5, 100)[0] = 1

use(memory)
del cache
"""
    for action in ("default", "error"):
        text = run_python(f"import sys; sys.stderr = sys.stdout\n{program}", "-W", action)
        for name in ("left", "memory-112"):
            start = f"ResourceWarning: never reported: 1 fault in compiled code on cache '{name}', by '"
            assert start in text


def test_end_of_the_interpreter_is_silent():
    """Also of caches that end when the names of the package are gone, or that were never opened; faults were told before."""
    program = """
import builtins, numpy as np, jitslab
from jitslab.machine import holder
dtype = np.dtype([("x", "f8")])
holder._constants.append(jitslab.SlabCache("late", dtype, capacity=10))
builtins.kept = [jitslab.SlabCache("late", dtype, capacity=10), jitslab.SlabAllocator("late")]
builtins.blank = [cls.__new__(cls) for cls in (jitslab.SlabCache, jitslab.SlabAllocator)]

class Mine(jitslab.SlabCache):
    _numba_type_ = kept[0]._numba_type_

Mine.__new__(Mine)
"""
    assert run_python(program) == ""


# --- Allocators ---


@pytest.fixture
def allocator():
    """Return an allocator."""
    with jitslab.SlabAllocator("graph") as allocator:
        yield allocator


@njit
def misuse(memory, nodes):
    """Use a ptr and a handle that are none."""
    memory.bytes(5, 100)[0] = 1
    nodes[5].value = 1.0


@pytest.mark.parametrize("use", ["live", "clear", "check", "raise_faults"])
def test_allocator_raises_faults_first(allocator, use):
    """Of raw memory and of its caches, and does nothing else."""
    nodes = allocator.create_cache("nodes", NODE, capacity=10)
    nodes.alloc_many(3), allocator.allocate(100)
    misuse(allocator, nodes)
    assert repr(allocator).endswith("1 pieces of raw memory, 2 faults>")
    assert {"112 bytes": 1, "nodes": 1} == {row.name: row.faults for row in allocator.report().caches}

    with pytest.raises(jitslab.FaultError):
        getattr(allocator, use)()
    assert (1, 3) == (len(allocator), len(nodes))
    if use == "check":
        with pytest.raises(jitslab.FaultError):
            allocator.check()
    getattr(allocator, use)()


def test_closed_allocator_raises_the_faults_of_all_its_caches():
    """In one error; everything is closed."""
    allocator = jitslab.SlabAllocator("graph")
    nodes = allocator.create_cache("nodes", NODE, capacity=10)
    misuse(allocator, nodes)

    with pytest.raises(jitslab.FaultError) as caught:
        allocator.close()
    assert 2 == caught.value.count
    assert ["graph-112", "nodes"] == [line.split("'")[1] for line in str(caught.value).split("\n")]
    assert allocator.closed
    assert nodes.closed
    allocator.close()


def test_shutdown_raises_faults_with_the_report():
    """The report is in the error, and tells them, too."""
    manager = jitslab.SlabAllocatorManager()
    nodes = manager.allocator.create_cache("nodes", NODE, capacity=10)
    nodes.alloc_many(2)
    misuse(manager.allocator, nodes)

    with pytest.raises(jitslab.FaultError) as caught:
        manager.shutdown()
    rows = {row.name: row for row in caught.value.report.caches if row.allocator == "default"}
    assert {"nodes": (2, 1), "112 bytes": (0, 1)} == {name: (row.count, row.faults) for name, row in rows.items()}
    assert str(rows["nodes"]).endswith("; 1 fault in compiled code")
    assert manager.closed
    assert nodes.closed


def test_manager_that_ends_by_an_exception_adds_a_note_to_it():
    """As a cache does."""
    with pytest.raises(ZeroDivisionError) as caught, jitslab.SlabAllocatorManager() as manager:
        misuse(manager.allocator, manager.allocator.create_cache("nodes", NODE, capacity=10))
        raise ZeroDivisionError
    assert 1 == len(caught.value.__notes__)
    assert manager.closed
