"""Size classes, each opened at its first use, by compiled code or by Python, in a range of addresses that it reserves then."""

import gc
import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from inside import fields_of
from numba import njit
from worker import Worker

import jitslab
from jitslab import NULL
from jitslab.core import layout
from jitslab.core.process import this_process
from jitslab.sizes.classes import SizeClasses

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as Linux tells it")


@njit(nogil=True)
def take(memory, size):
    """Allocate, in compiled code."""
    return memory.allocate(size)


@njit(nogil=True)
def give(memory, ptr, size):
    """Free, in compiled code."""
    return memory.free(ptr, size)


@njit
def look(memory, ptr, size):
    """Return the address, how many bytes are shown, and their sum."""
    shown = memory.bytes(ptr, size)
    return memory.address(ptr, size), shown.size, shown.sum()


def take_elsewhere(memory, size):
    """Allocate by a thread that has no heap."""
    worker = Worker()
    ptr = worker.do(take, memory, size)
    worker.end()
    return ptr


def opened(memory):
    """Sizes of the classes that were opened."""
    rows = memory._rows[: int(memory._sizes_row["n_rows"])]
    return rows["high"][rows["control"] != 0].tolist()


def seen(memory):
    """Sizes of the classes whose caches Python has seen."""
    return [cache.dtype.itemsize for cache in memory._caches if cache is not None]


def rights(start, n):
    """Return the access that the mappings of n bytes from an address have."""
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, end = (int(part, 16) for part in line.split()[0].split("-"))
        if first < start + n and start < end:
            found.add(line.split()[1])
    return found


def run(program):
    """Run a program in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr


# --- What an allocator costs ---


@LINUX
def test_class_costs_nothing_until_it_is_used():
    """No mapping of its own, no row in the process's registry, no object."""
    with SizeClasses("first") as first:
        first.allocate(64)
        maps, rows = Path("/proc/self/maps"), this_process().row
        before, entered = len(maps.read_text().splitlines()), int(rows["n_rows"][0] - rows["n_holes"][0])
        with SizeClasses("idle") as memory:
            assert len(maps.read_text().splitlines()) - before < 15
            assert int(rows["n_rows"][0] - rows["n_holes"][0]) == entered + 1  # large memory
            assert (opened(memory), seen(memory), len(memory)) == ([], [], 0)
            memory.allocate(64)
            assert (opened(memory), seen(memory)) == ([64], [64])


@LINUX
def test_three_hundred_allocators_fit():
    """Each takes less of the address space than the ones before it; in all of them every class holds a GiB."""
    run(
        "import jitslab\n"
        "all = [jitslab.SlabAllocator(f'a{i}') for i in range(300)]\n"
        "for a in (all[0], all[-1]):\n"
        "    ptrs = [a.allocate(n) for n in (64, 5000, 1 << 20)]\n"
        "    assert len(a) == 3\n"
        "    cache = a._cache(4)\n"
        "    assert cache.capacity * 64 >= 1 << 30\n"
        "print('ok')\n"
    )


def test_caches_of_classes_are_listed_nowhere():
    """They are the allocator's."""
    with jitslab.SlabAllocator("hidden") as memory:
        memory.allocate(64)
        take(memory, 100)
        memory.check()

        assert not [name for name in jitslab.caches if name.startswith("hidden-")]


def test_classes_start_on_lines_and_cycles_of_their_own():
    """Control blocks and generations do not fall into the same sets of the CPU's caches; no class takes another's handles."""
    with SizeClasses("apart") as memory:
        for size in memory.table:
            take(memory, size)
        controls = [fields_of(cache._memory) for _, cache in memory._open_caches()]

        assert len(controls) == 60
        assert len({cache._address % 4096 for _, cache in memory._open_caches()}) == 16
        assert len({int(control["generations"]) % 4096 for control in controls}) == 16
        assert all(int(control["generations"]) % 4096 >= 17 * 64 for control in controls)
        assert len({int(control["first_generation"]) for control in controls}) == 60


@pytest.mark.parametrize("capacity", [None, 1, 100_000_000])
def test_regions_of_a_class_do_not_overlap(capacity):
    """Free bits, slab rows, CONTROL, generations, records: one after the other, all in the range; ranges are apart."""
    with SizeClasses("regions", capacity=capacity) as memory:
        for size in memory.table:
            take(memory, size)
        edges = []
        for row, cache in memory._open_caches():
            control, plan = fields_of(cache._memory), memory._parts.plans[row]
            slabs, slots = int(control["max_slabs"]), int(control["max_slabs"]) << int(control["shift"])
            first_row, records = int(control["slabs"]) - (slabs - 1) * layout.SLAB.itemsize, int(control["records"])
            starts = [int(control["bits"]), first_row, cache._address, int(control["generations"]), records]
            ends = [starts[0] + (slots + 63) // 64 * 8, first_row + slabs * layout.SLAB.itemsize]
            ends += [starts[2] + layout.NODE.itemsize, starts[3] + 4 * slots + 256, records + slots * cache.stride]
            edges.append((int(plan["memory"]), int(plan["memory"]) + int(plan["bytes"])))

            assert all(end <= start for end, start in zip(ends, starts[1:], strict=False)), size
            assert edges[-1][0] == starts[0]
            assert ends[-1] <= edges[-1][1]
        assert len(edges) == 60
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(sorted(edges)))


# --- Opened by compiled code ---


def test_memory_that_only_compiled_code_knows_of_is_seen():
    """Counted, listed, described, checked, viewed and freed from Python."""
    with jitslab.SlabAllocator("unseen") as memory:
        ptrs = [take(memory, size) for size in (10, 100, 100, 5000)]
        assert (opened(memory), seen(memory)) == ([16, 112, 5184], [])

        assert len(memory) == 4
        assert sorted(memory.live().tolist()) == sorted(ptrs)
        assert [(each.high, each.live) for each in memory.stats.classes] == [(16, 1), (112, 2), (5184, 1)]
        assert {each.name: each.count for each in memory.report().caches} == {"16 bytes": 1, "112 bytes": 2, "5184 bytes": 1}
        memory.check()
        memory.view(ptrs[1], 100)[:] = 3
        assert look(memory, ptrs[1], 100) == (memory.address(ptrs[1], 100), 100, 300)
        memory.free(ptrs[0], 10)
        with pytest.raises(jitslab.StaleHandleError):
            memory.free(ptrs[0], 10)
        assert give(memory, ptrs[3], 5000)
        assert memory.clear() == 2
        memory.check()


@pytest.mark.parametrize("what", ["view", "free", "in", "realloc", "address", "clear", "shrink", "len", "live"])
def test_python_may_see_a_class_first_by_anything(what):
    """Whatever comes first after compiled code."""
    with SizeClasses("seen") as memory:
        ptr = take(memory, 100)
        first = {
            "view": lambda: memory.view(ptr, 100).size == 100,
            "free": lambda: memory.free(ptr, 100) is True,
            "in": lambda: ptr in memory,
            "realloc": lambda: memory.realloc(ptr, 100, 112) == ptr,
            "address": lambda: memory.address(ptr) % 16 == 0,
            "clear": lambda: memory.clear() == 1,
            "shrink": lambda: memory.shrink() == 0,
            "len": lambda: len(memory) == 1,
            "live": lambda: memory.live().tolist() == [ptr],
        }
        assert first[what]()
        memory.check()


def test_ptr_of_a_class_that_was_never_opened_is_refused():
    """By compiled code and Python; the class stays as it is, until its scratch memory is asked for."""
    with SizeClasses("never") as memory:
        ptr = int(memory._rows[20]["ptr_base"]) + 5 + (7 << 32)
        size = int(memory._rows[20]["high"])
        assert (give(memory, ptr, size), take(memory, 0)) == (False, NULL)
        assert ptr not in memory
        for call in (lambda: memory.free(ptr, size), lambda: memory.view(ptr, size), lambda: memory.address(ptr)):
            with pytest.raises(jitslab.ForeignHandleError, match="never issued ptr"):
                call()
        assert opened(memory) == []

        assert look(memory, ptr, size) == (0, size, 0)
        assert opened(memory) == [size]
        with pytest.raises(jitslab.FaultError):
            memory.raise_faults()
        memory.check()


def test_class_is_not_opened_after_close():
    """Compiled code gets NULL, and scratch memory of the size."""
    memory = SizeClasses("shut")
    used = take(memory, 64)
    memory.close()

    assert (take(memory, 64), take(memory, 5000), give(memory, used, 64), opened(memory)) == (NULL, NULL, False, [64])
    assert look(memory, used, 64) == (0, 64, 0)
    assert look(memory, used, 5000) == (0, 5000, 0)
    memory.close()


def test_threads_that_use_a_class_first_at_once_open_it_once():
    """Every piece is another, and all are of one cache."""
    take(jitslab.SlabAllocator("compiled"), 64)
    for _ in range(20):
        with SizeClasses("at once") as memory:
            barrier, found = threading.Barrier(4), [[] for _ in range(4)]

            def work(mine, memory=memory, barrier=barrier):
                barrier.wait()
                mine += [take(memory, size) for size in (16, 64, 1000) for _ in range(10)]

            threads = [threading.Thread(target=work, args=(mine,)) for mine in found]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            ptrs = [ptr for mine in found for ptr in mine]

            assert NULL not in ptrs
            assert len(set(ptrs)) == len(memory) == 120
            memory.check()


def test_ended_thread_gives_home_what_python_has_not_seen():
    """The registry knows a class from the instant that compiled code opens it."""
    with SizeClasses("ended") as memory:
        thread = threading.Thread(target=lambda: give(memory, take(memory, 64), 64))
        thread.start()
        thread.join()
        state = memory._parts.open_memory(int(np.flatnonzero(memory._rows["high"] == 64)[0])).state
        end = time.monotonic() + 10
        while state["used"][0] and time.monotonic() < end:  # the thread may be in its last steps
            time.sleep(0.001)

        assert int(state["used"][0]) == 0
        assert seen(memory) == []


def test_keep_empty_holds_for_classes_opened_late():
    """The interval of the working set never ends."""
    with SizeClasses("kept", keep_empty=True) as memory:
        take(memory, 64)
        (_, cache), *_ = memory._open_caches()

        assert int(cache._memory.state["interval_end"][0]) == 1 << 62


def test_dropped_allocator_leaves_the_registry():
    """With all classes, seen by Python or not."""
    rows = this_process().row
    gc.collect()
    before = int(rows["n_rows"][0] - rows["n_holes"][0])
    memory = SizeClasses("dropped")
    take(memory, 64)
    memory.allocate(100)
    assert int(rows["n_rows"][0] - rows["n_holes"][0]) == before + 3
    del memory
    gc.collect()

    assert int(rows["n_rows"][0] - rows["n_holes"][0]) == before


def test_end_of_a_range_leaves_other_ranges_in_the_registry():
    """Those before it in memory, and those after it."""
    rows = this_process().row
    gc.collect()
    before = int(rows["n_rows"][0] - rows["n_holes"][0])
    several = [SizeClasses(f"one of {n}") for n in range(3)]
    ptrs = [take(memory, 64) for memory in several]
    del several[1]
    gc.collect()

    assert int(rows["n_rows"][0] - rows["n_holes"][0]) == before + 4
    assert give(several[0], ptrs[0], 64)
    assert give(several[1], ptrs[2], 64)
    for memory in several:
        memory.close()
    assert int(rows["n_rows"][0] - rows["n_holes"][0]) == before


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork")
def test_child_of_fork_opens_classes_of_its_own():
    """What the parent has open goes on in both; what neither had is opened by each, and threads may end in both."""
    run(
        "import os, threading, numba, jitslab\n"
        "@numba.njit\n"
        "def take(m, n): return m.allocate(n)\n"
        "@numba.njit\n"
        "def give(m, p, n): return m.free(p, n)\n"
        "m = jitslab.SlabAllocator('m')\n"
        "p = take(m, 100)\n"
        "pid = os.fork()\n"
        "q, r = take(m, 100), take(m, 5000)\n"
        "assert p != q and r and give(m, r, 5000) and len(m) == 2\n"
        "t = threading.Thread(target=lambda: give(m, take(m, 700), 700)); t.start(); t.join()\n"
        "m.check(); m.free(p, 100); m.free(q, 100); m.check(); m.close()\n"
        "if pid == 0: os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "print('ok')\n"
    )


@LINUX
def test_class_that_the_system_gives_no_memory_for_can_be_opened_later():
    """`allocate` says so; nothing is lost."""
    run(
        "import resource, numba, jitslab\n"
        "@numba.njit\n"
        "def take(m, n): return m.allocate(n)\n"
        "m = jitslab.SlabAllocator('m')\n"
        "take(m, 64)\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_DATA)\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (4096, hard))\n"
        "none = take(m, 100)\n"
        "try: m.allocate(5000)\n"
        "except jitslab.CacheFullError as error: said = str(error)\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))\n"
        "assert none == 0 and said == \"allocator 'm' has no memory for 5000 bytes more: the system gives none\", (none, said)\n"
        "assert take(m, 100) and m.allocate(5000) and len(m) == 3\n"
        "m.check(); print('ok')\n"
    )


# --- Where all is usable from the start ---


@LINUX
def test_small_classes_are_usable_at_once():
    """All metadata of a class that holds little, so that it has few mappings."""
    with SizeClasses("little", capacity=1000) as memory:
        ptr = take(memory, 64)
        plan = memory._parts.plans[int(np.flatnonzero(memory._rows["high"] == 64)[0])]
        metadata = int(memory._open_caches()[0][1]._memory.field("records") - plan["memory"])
        assert rights(int(plan["memory"]), metadata) == {"rw-p"}
        memory.view(ptr, 64)[:] = 1
        memory.check()


def test_tuned_classes_are_opened_at_their_first_use():
    """As those of the fixed table."""
    with SizeClasses("tuned") as memory:
        memory.tune([1030] * 99 + [24] * 50)
        ptrs = [take(memory, size) for size in (24, 1030, 100)]

        assert (len(opened(memory)), len(seen(memory))) == (3, 0)
        assert len(set(ptrs)) == len(memory) == 3
        memory.check()
