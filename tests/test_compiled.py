"""What a cache can do in compiled code."""

import gc
import itertools
import re
import threading
import time
import weakref
from pathlib import Path

import numba
import numpy as np
import pytest
from numba import njit, objmode, prange, typed
from numba.experimental import jitclass
from program import needs_machine_code, run_python

import jitslab
from jitslab import NULL

NODE = np.dtype([("value", "<f8"), ("next", "<i8"), ("key", "<i4"), ("pad", "<i4")])
DEEP = np.dtype([("matrix", "<f8", (2, 3)), ("inner", [("a", "<i4"), ("b", "<i2", 4)]), ("flag", "?")])


@pytest.fixture(params=[None, "zero"], ids=["no init", "zero"])
def cache(request):
    """Return a cache of 1,000 nodes, with and without a template."""
    with jitslab.SlabCache("nodes", NODE, capacity=1000, init=request.param) as cache:
        yield cache
        if not cache.closed:
            cache.raise_faults()
            cache.check()


@njit
def build(cache, n):
    """Build a list of n nodes; returns its head."""
    head = 0
    for i in range(n):
        h = cache.alloc()
        node = cache[h]
        node.value = i
        node.next = head
        head = h
    return head


@njit
def walk(cache, head):
    """Sum a list."""
    total = 0.0
    while head != 0:
        node = cache[head]
        total += node.value
        head = node.next
    return total


@njit
def drop(cache, head):
    """Free a list."""
    n = 0
    while head != 0:
        following = cache[head].next
        n += cache.free(head)
        head = following
    return n


# --- Ways in ---


def test_cache_as_argument(cache):
    """A list is built, walked and dropped in compiled code, and seen from Python."""
    head = build(cache, 500)

    assert len(cache) == 500
    assert cache[head]["value"] == 499.0
    assert sum(range(500)) == walk(cache, head)
    assert drop(cache, head) == 500
    assert len(cache) == 0


GLOBAL = jitslab.SlabCache("global", NODE, capacity=100)


@njit
def use_global(x):
    """Use a cache that is a global."""
    h, node = GLOBAL.new()
    node.value = x
    return h


def test_cache_as_global():
    """A function may name a cache of its module, or of the function around it; the cache then lives on."""
    h = use_global(2.5)
    assert GLOBAL[h]["value"] == 2.5

    def make():
        local = jitslab.SlabCache("closure", NODE, capacity=10)
        return njit(lambda: (local.alloc(), len(local)))

    use = make()
    assert [use()[1] for _ in range(3)] == [1, 2, 3]
    GLOBAL.clear()


@needs_machine_code
def test_cache_as_global_is_not_kept_on_disk(tmp_path):
    """Its address is that of one process: Numba says so and does not save the function."""
    module = tmp_path / "uses_global.py"
    module.write_text(
        "import numba, numpy, jitslab\n"
        "CACHE = jitslab.SlabCache('g', numpy.dtype([('x', 'f8')]), capacity=10)\n"
        "@numba.njit(cache=True)\n"
        "def f():\n    return CACHE.alloc()\n"
    )
    program = f"""
import sys, warnings
sys.path.insert(0, {str(tmp_path)!r})
warnings.simplefilter("ignore")
import uses_global
assert uses_global.f() in uses_global.CACHE
print(sum(uses_global.f.stats.cache_hits.values()))
"""
    assert [run_python(program) for _ in range(2)] == ["0\n", "0\n"]


@needs_machine_code
def test_function_with_a_cache_argument_is_kept_on_disk(tmp_path):
    """`cache=True` works: a second process reads the machine code and it works on that process's cache."""
    module = tmp_path / "keeps.py"
    module.write_text(
        "import numba\n@numba.njit(cache=True)\ndef f(cache):\n    h, r = cache.new()\n    r.x = 3.0\n    return h\n"
    )
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import keeps, numpy, jitslab
cache = jitslab.SlabCache("k", numpy.dtype([("x", "f8")]), capacity=10)
other = jitslab.SlabCache("k", numpy.dtype([("y", "i2"), ("x", "f8")]), capacity=10)
for c in (cache, other):
    h = keeps.f(c)
    assert c[h]["x"] == 3.0
print(sum(keeps.f.stats.cache_hits.values()))
"""
    assert [run_python(program) for _ in range(2)] == ["0\n", "2\n"]


class Behind:
    """An object that has all attributes of another, and none of its memory."""

    def __init__(self, it):
        self.it = it

    def __getattr__(self, name):
        return getattr(self.it, name)


STANDS_FOR = {
    "weak proxy": weakref.proxy,
    "object that forwards": Behind,
    "class attribute": lambda it: type("Fake", (), {"_numba_type_": it._numba_type_})(),
}


@needs_machine_code
@pytest.mark.parametrize("kind", ["cache", "allocator"])
@pytest.mark.parametrize("way", STANDS_FOR)
def test_what_only_answers_as_a_cache_is_refused_by_compiled_code(cache, way, kind):
    """As an argument, inside of a tuple, and as a global; what it stands for is used on."""
    allocator = jitslab.SlabAllocator("real")
    it, name = (cache, "SlabCache") if kind == "cache" else (allocator, "SlabAllocator")
    fake = STANDS_FOR[way](it)
    text = f"compiled code takes a {name} itself, got an object of type .*, which only answers as one does"
    take = njit(lambda it: 1)

    for argument in (fake, (it, fake)):
        with pytest.raises(jitslab.CacheTypeError, match=text):
            take(argument)
    with pytest.raises(numba.core.errors.NumbaError, match=text):
        njit(lambda: take(fake))()
    assert take(it) == take((it, it)) == 1
    allocator.close()


@needs_machine_code
def test_subclass_of_a_cache_is_a_cache_in_compiled_code():
    """Whatever else it inherits; one that was not opened is refused by name."""

    class Plain:
        """A class without slots of its own."""

    class Mine(Plain, jitslab.SlabCache):
        """A cache of the user's."""

    class Unopened(Mine):
        """One that says what it will be before it is."""

    with Mine("mine", NODE, capacity=1000) as mine:
        assert walk(mine, build(mine, 100)) == sum(range(100))

        Unopened._numba_type_ = numba.typeof(mine)
        with pytest.raises(jitslab.ClosedError, match="this Unopened was never opened"):
            build(Unopened.__new__(Unopened), 1)


def test_what_keeps_nothing_is_no_cache_and_no_array(cache):
    """A weak proxy says that it is what it stands for: a pointer that had one would not keep its cache, nor a call its array."""
    out = np.zeros(2, np.int64)

    with pytest.raises(jitslab.RecordTypeError, match="a SlabPtr is of a SlabCache, got ProxyType"):
        jitslab.SlabPtr(cache.alloc(), weakref.proxy(cache))
    with pytest.raises(jitslab.ArrayError, match="got ProxyType"):
        cache.alloc_many(2, out=weakref.proxy(out))
    with pytest.raises(TypeError, match="doesn't apply to a"):
        jitslab.SlabCache.alloc(weakref.proxy(cache))


@njit
def move(pair, h):
    """Move a value from one cache of a tuple to another."""
    nodes, deeps = pair
    new = deeps.alloc()
    deeps[new].matrix[1, 2] = nodes[h].value
    nodes.free(h)
    return new


def test_caches_of_several_dtypes_in_a_tuple(cache):
    """A tuple of caches is an argument like any other."""
    deeps = jitslab.SlabCache("deeps", DEEP, capacity=10)
    h = cache.alloc()
    cache[h]["value"] = 4.5
    new = move((cache, deeps), h)

    assert deeps[new]["matrix"][1, 2] == 4.5
    assert len(cache) == 0


@njit
def sum_of_first(caches):
    """Sum over caches of one type in a homogeneous tuple."""
    total = 0.0
    for cache in caches:
        for h in cache:
            total += cache[h].value
    return total


def test_caches_of_one_dtype_share_a_compilation(cache):
    """Two caches of one dtype are of one Numba type."""
    with jitslab.SlabCache("twin", NODE, capacity=10, init=None) as one, jitslab.SlabCache("two", NODE, capacity=20) as two:
        for c in (one, two):
            c[c.alloc()] = (2.0, 0, 0, 0)

        assert numba.typeof(one) is numba.typeof(two)
        assert sum_of_first((one, two)) == 4.0


@njit(parallel=True)
def fill(cache, out):
    """Take a node in every iteration."""
    for i in prange(out.size):
        h = cache.alloc()
        cache[h].value = i
        out[i] = h


@njit(parallel=True)
def free_all(cache, handles):
    """Free a node in every iteration."""
    n = 0
    for i in prange(handles.size):
        n += cache.free(handles[i])
    return n


def test_cache_in_prange(cache):
    """Every iteration has a record of its own, whichever thread it is."""
    out = np.zeros(1000, np.int64)
    fill(cache, out)

    assert 1000 == len(set(out.tolist())) == len(cache)
    assert np.arange(1000.0).tolist() == cache.gather(out)["value"].tolist()
    assert free_all(cache, out) == 1000
    assert len(cache) == 0
    if not numba.config.DISABLE_JIT:
        assert free_all(cache, out) == 0


@njit(parallel=True)
def count_by_getitem(cache, h, n):
    """Add to one record in every iteration, through getitem."""
    seen = np.zeros(n)
    for i in prange(n):
        seen[i] = cache[h].value
        cache[h].value += 1
    return seen


@njit(parallel=True)
def look_by_method(cache, h, n):
    """Free and look in every iteration, through methods."""
    seen = np.zeros(n, np.bool_)
    for i in prange(n):
        if i == 0:
            cache.free(h)
        seen[i] = cache.is_live(h)
    return seen


@njit(parallel=True)
def look_by_in(cache, h, n):
    """Free and look in every iteration, through `in`."""
    seen = np.zeros(n, np.bool_)
    for i in prange(n):
        if i == 0:
            cache.free(h)
        seen[i] = h in cache
    return seen


@njit(parallel=True)
def count_by_record(cache, h, n):
    """Add to one record in every iteration, through `record`."""
    seen = np.zeros(n)
    for i in prange(n):
        seen[i] = cache.record(h).value
        cache.record(h).value += 1
    return seen


@needs_machine_code
def test_prange_hoists_getitem_and_in_but_not_methods():
    """Numba takes getitem and `in` for pure: what does not depend on the loop is evaluated once; methods never are."""
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        with jitslab.SlabCache("hoist", NODE, capacity=10, init="zero") as cache:
            h = cache.alloc()
            assert count_by_getitem(cache, h, 5).tolist() == [0, 0, 0, 0, 0]
            cache[h]["value"] = 0
            assert count_by_record(cache, h, 5).tolist() == [0, 1, 2, 3, 4]
            assert look_by_method(cache, h, 5).tolist() == [False] * 5
            assert look_by_in(cache, cache.alloc(), 5).tolist() == [True] * 5
    finally:
        numba.set_num_threads(threads)


# --- Methods ---


@njit
def every_method(cache):
    """Use everything; returns what came of it."""
    h, node = cache.new()
    node.value = 1.5
    node.key = 7
    same = cache.record(h)
    same.value += 1.0
    out = np.empty(300, np.int64)
    got = cache.alloc_many(out)
    n_live = len(cache)
    slot = h & 0xFFFFFFFF
    at = cache.at_slot(slot).value
    inside = (h in cache, cache.is_live(h), 5 in cache, cache.is_live(0))
    twice = np.concatenate((out, out[:5], np.zeros(2, np.int64)))
    freed = cache.free_many(twice)
    few = cache.free_many(twice[:3])
    cleared = cache.clear()
    return got, n_live, at, inside, freed, few, cleared, len(cache), cache.capacity, cache.faults, slot < cache.slot_limit


@needs_machine_code
def test_every_method_answers_as_in_python(cache):
    """alloc_many, free_many, clear, len, in, is_live, record, at_slot and the attributes."""
    expected = (300, 301, 2.5, (True, True, False, False), 300, 0, 1, 0, 1000, 0, True)

    assert expected == every_method(cache)


def test_new_gives_a_filled_record():
    """With a template every way to alloc in compiled code fills the record."""
    template = np.array((1.5, 3, 4, 5), NODE)[()]
    use = njit(lambda cache, out: (cache.new()[1].value, cache[cache.alloc()].key, cache.alloc_many(out)))
    with jitslab.SlabCache("filled", NODE, capacity=1000, init=template) as cache:
        for _ in range(3):
            out = np.zeros(500, np.int64)
            assert use(cache, out) == (1.5, 4, 500)
            assert {template.tobytes()} == {cache[h].tobytes() for h in cache}
            cache.records["value"] = 9
            cache.clear()


@njit
def sum_items(cache):
    """Sum by items()."""
    total = 0.0
    for _h, node in cache.items():  # no dict: it has no values()
        total += node.value
    return total


@njit
def sum_handles(cache):
    """Sum by handles, their order out of interest."""
    total = 0.0
    for h in cache:
        total += cache[h].value
    return total


@njit
def free_odd(cache):
    """Free the current record while iterating."""
    for h, node in cache.items():
        if node.key % 2:
            cache.free(h)


@njit
def pairs(cache, most):
    """Loop over the same cache twice at once, and leave early."""
    n = 0
    for _ in cache:
        for _h, node in cache.items():  # no dict
            if node.key > most:
                continue
            n += 1
    first = 0
    for h in cache:
        first = h
        break
    return n, first


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
def test_iteration_meets_every_live_record_once(cache, n):
    """By handles, by items, nested, left early, and with the current record freed."""
    handles = cache.alloc_many(n)
    values = np.zeros(n, NODE)
    values["value"], values["key"] = 2.0 ** np.arange(n, dtype=float).clip(0, 40), np.arange(n)
    cache.scatter(handles, values)
    total = values["value"].sum()

    assert total == sum_items(cache) == sum_handles(cache)
    assert n * n == pairs(cache, 1 << 30)[0]
    assert (min(handles.tolist(), key=lambda h: h & 0xFFFFFFFF) if n else 0) == pairs(cache, -1)[1]
    free_odd(cache)
    assert [i for i in range(n) if i % 2 == 0] == sorted(cache.gather(cache.live())["key"].tolist())


def test_iteration_passes_over_released_slabs():
    """A slab without records is skipped, records behind it are found."""
    with jitslab.SlabCache("gaps", NODE, capacity=100_000, colouring=False) as cache:
        handles = cache.alloc_many(100_000)
        cache.records["value"] = 1
        cache.free_many(handles[100:-100])
        cache.shrink()

        assert 200.0 == sum_items(cache) == sum_handles(cache)


# --- How many are live ---


@njit
def grow_and_shrink(cache, n, out):
    """Note the count after each alloc, and after each free."""
    handles = np.empty(n, np.int64)
    for i in range(n):
        handles[i] = cache.alloc()
        out[i] = len(cache)
    for i in range(n):
        cache.free(handles[i])
        out[n + i] = len(cache)


@pytest.mark.parametrize("nodes", [None, 3])
@pytest.mark.parametrize("threads", [0, 3])
def test_count_in_a_kernel_is_exact(threads, nodes):
    """Whether a thread is the only one that ever used the cache, which needs no lock, or not; through refills and flushes."""
    with jitslab.SlabCache("count", NODE, capacity=20_000, nodes=nodes) as cache:
        kept = cache.alloc_many(100)
        for _ in range(threads):
            worker = threading.Thread(target=lambda: cache.free(cache.alloc()))
            worker.start()
            worker.join()
        out = np.zeros(10_000, np.int64)
        grow_and_shrink(cache, 5000, out)

        assert (np.minimum(np.arange(1, 10_001), np.arange(9999, -1, -1)) + 100 == out).all()
        assert 100 == len(cache) == njit(lambda cache: len(cache))(cache)
        cache.free_many(kept)
        assert 0 == njit(lambda cache: len(cache))(cache)
        claimed = cache._memory.control["local"]["claimed"].view(np.uint8)
        assert np.unpackbits(claimed, axis=1).sum(1).tolist() == cache._memory.control["local"]["n_claimed"].tolist()


def test_kernel_can_wait_for_a_count():
    """The count is looked up again at each turn, also if nothing in the loop changes it."""

    @njit(nogil=True)
    def wait(cache):
        while len(cache) > 0:
            pass
        return True

    with jitslab.SlabCache("wait", NODE, capacity=10) as cache:
        h = cache.alloc()
        assert not njit(lambda cache: len(cache) == 0)(cache)
        other = threading.Thread(target=lambda: (time.sleep(0.2), cache.free(h)))
        other.start()
        assert wait(cache)
        other.join()


# --- Births and deaths in a loop: the same in Python and compiled ---


def have_child(cache, others):
    """Each has one child."""
    n = 0
    for _h in cache:
        n += 1
        cache.alloc()
    return n


def have_many(cache, others):
    """Each has as many children as go through several slabs' worth of magazines."""
    n = 0
    for _h, _node in cache.items():  # no dict
        n += 1
        for _ in range(40):
            cache.alloc()
    return n


def die_and_be_two(cache, others):
    """Each dies, and has two children, one in its place."""
    n = 0
    for h in cache:
        n += 1
        cache.free(h)
        cache.alloc()
        cache.alloc()
    return n


def kill_the_next(cache, others):
    """Each kills one whose turn has not come."""
    n = 0
    for _h in cache:
        if n < others.size and others[n] in cache:
            cache.free(others[n])
        n += 1
    return n


def kill_and_replace(cache, others):
    """Each kills one whose turn has not come, and has a child, in its place."""
    n = 0
    for _h in cache:
        if n < others.size and others[n] in cache:
            cache.free(others[n])
            cache.alloc()
        n += 1
    return n


def loop_in_a_loop(cache, others):
    """The inner loop sees the children of the outer one."""
    n = 0
    for _i, _h in enumerate(cache):
        cache.alloc()
        for _other in cache:
            n += 1
    return n


def expected_turns(loop, n):
    """Return how often a loop over n records turns."""
    if loop is loop_in_a_loop:
        return sum(n + i + 1 for i in range(n))
    return n - (n // 2 if loop is kill_the_next else 0)


SIZES_OF_RECORDS = {"bytes": "u1", "numbers": "<i8", "lines": "(16,)<i8", "pages": "(512,)<i8", "slabs": "(9000,)<i8"}


@pytest.mark.parametrize("nodes", [None, 3])
@pytest.mark.parametrize("state", ["packed", "with holes", "parked"])
@pytest.mark.parametrize("size", SIZES_OF_RECORDS)
@pytest.mark.parametrize("loop", [have_child, have_many, die_and_be_two, kill_the_next, kill_and_replace, loop_in_a_loop])
def test_loop_visits_what_is_live_when_it_starts(loop, size, state, nodes):
    """Each record once, none that is born meanwhile: whatever the slabs, the free slots and the magazines are."""
    few, many = loop is loop_in_a_loop or size == "slabs", loop is have_child and size in ("bytes", "numbers")
    n = 30 if few else 9000 if many else 500
    turns, live = [], []
    for compiled in (True, False):
        with jitslab.SlabCache("loop", [("x", SIZES_OF_RECORDS[size])], capacity=60 * n, nodes=nodes) as cache:
            if state == "packed":
                handles = cache.alloc_many(n)
            else:
                all_ = cache.alloc_many(3 * n)
                gone = np.random.default_rng(5).permutation(all_)[n:]
                if state == "with holes":
                    cache.free_many(gone)
                else:
                    for h in gone.tolist():
                        cache.free(h)
                handles = np.setdiff1d(all_, gone)
            by_slot = handles[np.argsort(handles & 0xFFFFFFFF)]
            turns.append((COMPILED[loop] if compiled else loop)(cache, by_slot[::-1]))
            live.append(len(cache))
            cache.check()

    assert turns == [expected_turns(loop, n)] * 2
    assert live[0] == live[1]


COMPILED = {loop: njit(loop) for loop in (have_child, have_many, die_and_be_two, kill_the_next, kill_and_replace, loop_in_a_loop)}


def who_is_visited(cache, victim):
    """Have the first record kill another; returns whom else the loop visits, and the child in the other's place."""
    seen = np.zeros(10, np.int64)
    child = n = 0
    for h in cache:
        if n == 0:
            cache.free(victim)
            child = cache.alloc()
        seen[n] = h
        n += 1
    return seen[:n], child


@pytest.mark.parametrize("visit", [who_is_visited, njit(who_is_visited)], ids=["Python", "compiled"])
def test_slot_that_was_given_to_another_is_visited_once(visit):
    """A record that died before its turn is passed over; the one in its slot is visited in its turn."""
    with jitslab.SlabCache("wolves", NODE, capacity=100) as cache:
        handles = cache.alloc_many(5)
        handles.sort()
        seen, child = visit(cache, handles[3])

        assert child & 0xFFFFFFFF == handles[3] & 0xFFFFFFFF
        assert [*handles[:3].tolist(), child, handles[4]] == seen.tolist()


@needs_machine_code
def test_loop_in_a_child_of_fork():
    """The index that the parent left is rebuilt before a loop believes it."""
    program = """
import os, numpy as np, jitslab, numba
cache = jitslab.SlabCache("f", np.dtype([("x", "i8")]), capacity=100_000)
handles = cache.alloc_many(20_000)
for h in handles[::2].tolist():
    cache.free(h)

@numba.njit
def step(cache):
    n = 0
    for h in cache:
        n += 1
        cache.alloc()
    return n

step.compile((numba.typeof(cache),))
child = os.fork()
if child == 0:
    n = step(cache)
    cache.check()
    os._exit(n != 10_000)
assert os.waitpid(child, 0)[1] == 0
assert step(cache) == 10_000
"""
    assert run_python(program) == ""


@needs_machine_code
def test_loop_without_memory_for_notes():
    """Where there is no memory to note what is live, the loop visits what is live when it comes there: each slot once."""
    program = """
import resource, mmap, numpy as np, jitslab, numba
N = (1 << 24) - 100
cache = jitslab.SlabCache("m", np.dtype([("x", "u1")]), capacity=1 << 24)
cache.alloc_many(N)

@numba.njit
def count(cache):
    n = 0
    for h in cache:
        if n == 0:
            cache.alloc()
        n += 1
    return n

assert count(cache) == N
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * mmap.PAGESIZE
resource.setrlimit(resource.RLIMIT_AS, (used, used))
try:
    bytearray(1 << 20)
except MemoryError:
    print(count(cache) - N)
"""
    assert run_python(program, MALLOC_MMAP_THRESHOLD_="65536") == "2\n"


# --- Whatever takes something to iterate over ---


@njit
def iterate_in_all_ways(cache):
    """Return the same handles, by every builtin that takes them."""
    first = next(iter(cache))
    by_list, by_sorted, by_set = list(cache), sorted(cache, reverse=True), set(cache)
    by_comprehension = [h for h in cache]  # noqa: C416
    by_enumerate = [h for i, h in enumerate(cache, 5) if i >= 5]
    by_zip = [a for a, b, c in zip(cache, range(1000), cache) if a == c and b < 1000]  # noqa: B905
    extended = [first][:0]
    extended.extend(cache)
    by_items = [h for i, (h, r) in enumerate(cache.items()) if r.key == h & 0xFFFFFFFF]
    return by_list, by_sorted[::-1], sorted(by_set), by_comprehension, by_enumerate, by_zip, extended, by_items, [first]


def test_builtins_take_a_cache_in_compiled_code(cache):
    """As they take anything to iterate over."""
    handles = np.sort(cache.alloc_many(300))
    cache.records["key"] = np.arange(cache.slot_limit)
    *ways, first = iterate_in_all_ways(cache)

    assert [handles.tolist()] * len(ways) == ways
    assert [handles[0]] == first


@njit
def first_of(cache):
    """Return the first handle; of none, Numba raises as Python does."""
    return next(iter(cache))


@njit
def handles_of(cache, least):
    """Yield the handles of some records."""
    for h, node in cache.items():
        if node.key >= least:
            yield h


@njit
def total_of_some(cache, least):
    """Use a generator in compiled code, and leave it."""
    n = 0
    for h in handles_of(cache, least):
        n += 1
        if n == 5000:
            break
    return n


@pytest.mark.parametrize("n", [0, 1, 500, 9000])
def test_iterators_live_on(n):
    """In a generator, from Python and from compiled code; what was noted goes with them."""
    with jitslab.SlabCache("generator", NODE, capacity=100_000, init="zero") as cache:
        handles = np.sort(cache.alloc_many(n))
        left = handles_of(cache, 0)
        taken = list(itertools.islice(left, 100))
        cache.alloc_many(50)

        assert [] == list(handles_of(cache, 1))
        assert min(n + 50, 5000) == total_of_some(cache, 0)
        assert handles.tolist() == taken + list(left) if n > 0 else taken == []
    with jitslab.SlabCache("empty", NODE, capacity=10) as cache, pytest.raises(StopIteration):
        first_of(cache)


@needs_machine_code
def test_iterator_leaves_no_memory_behind():
    """Notes of a large cache are memory of Numba's, given back at the end of a loop, however it ends."""
    program = """
import numpy as np, jitslab, numba
from numba.core.runtime import rtsys

@numba.njit
def all_of(cache):
    n = 0
    for h in cache:
        n += 1
    return n

@numba.njit
def some_of(cache):
    for i, h in enumerate(cache):
        if i == 10:
            return h
    return 0

@numba.njit
def yielded(cache):
    for h, node in cache.items():
        yield h

@numba.njit
def consume(cache):
    n = 0
    for h in yielded(cache):
        n += 1
    return n

@numba.njit
def search(cache):
    n = 0
    for h in cache:
        for other in cache:
            n += 1
            if n % 3 == 0:
                break
        if n > 100:
            break
    return n, next(iter(cache)), len(list(zip(cache, cache)))

cache = jitslab.SlabCache("large", np.dtype([("x", "i8")]), capacity=100_000)
cache.alloc_many(50_000)
for turn in range(3):
    if turn == 1:
        before = rtsys.get_allocation_stats()
    all_of(cache), some_of(cache), consume(cache), search(cache), list(yielded(cache))
after = rtsys.get_allocation_stats()
assert after.alloc - before.alloc == after.free - before.free
assert after.alloc - before.alloc > 50
"""
    assert run_python(program, NUMBA_NRT_STATS="1") == ""


@needs_machine_code
def test_iterator_is_not_returned(cache):
    """It would outlive what it points to: refused in words, by Python's call and by compiled code's."""
    give = njit(lambda cache: iter(cache))
    text = "jitslab: an iterator over a cache lives in the function that made it, and cannot be returned"

    with pytest.raises(numba.core.errors.NumbaError, match=text):
        give(cache)
    with pytest.raises(numba.core.errors.NumbaError, match=text):
        njit(lambda cache: next(give(cache)))(cache)


# --- The way back to Python ---


@njit
def tell_python(cache):
    """Use the cache in object mode."""
    cache.alloc()
    with objmode(n="int64"):
        n = len(cache)
    return n + 1000


@njit
def perhaps(cache, allocator, choice):
    """Return one of two, in a tuple, or nothing."""
    return (cache, allocator, 1) if choice else None


def test_compiled_code_gives_a_cache_back(cache):
    """Object mode, what is returned and what containers hold: the same object, its references counted right."""

    class Holder:  # a class statement: Numba looks for what Python 3.13 puts into its namespace
        __init__ = set_cache

    holder = jitclass([("cache", numba.typeof(cache))])(Holder)(cache)
    allocator, many = jitslab.SlabAllocator("back"), typed.List()
    many.append(cache)
    before = [gc.get_referrers(it) and len(gc.get_referrers(it)) for it in (cache, allocator)]

    assert tell_python(cache) == 1001
    for _ in range(100):
        one, other, n = perhaps(cache, allocator, True)
        assert one is holder.cache is many[0] is cache
        assert (other is allocator, n, perhaps(cache, allocator, False)) == (True, 1, None)
    del one, other
    assert before == [len(gc.get_referrers(it)) for it in (cache, allocator)]
    allocator.close()


def set_cache(self, cache):
    """Keep a cache."""
    self.cache = cache


@njit
def write_deep(cache, h):
    """Write nested arrays, sub-records and a whole record."""
    record = cache[h]
    record.matrix[1, 2] = 6.0
    record.matrix[0] = 1.0
    record.inner.a = -5
    record.inner.b[3] = 4
    record.flag = True
    other = cache.alloc()
    cache[other] = record
    cache[other].inner.a += 1
    return other, cache[other].matrix.sum()


def test_nested_arrays_and_sub_records():
    """Every field is read and written in place, and a record is copied whole."""
    with jitslab.SlabCache("deep", DEEP, capacity=10, init="zero") as cache:
        h = cache.alloc()
        other, total = write_deep(cache, h)

        assert total == 9.0
        assert cache[h]["matrix"].tolist() == [[1, 1, 1], [0, 0, 6]]
        assert (cache[h]["inner"]["a"], cache[h]["inner"]["b"].tolist(), cache[h]["flag"]) == (-5, [0, 0, 0, 4], True)
        assert cache[other]["inner"]["a"] == -4


@needs_machine_code
@pytest.mark.parametrize(
    "options",
    [{"error_model": "numpy"}, {"fastmath": True}, {"boundscheck": True}, {"nogil": True}, {"inline": "always"}],
    ids=str,
)
def test_user_options_do_not_matter(cache, options):
    """The options of the user's function are not inherited in a way that changes anything."""
    make = njit(**options)

    head = make(build.py_func)(cache, 300)
    assert sum(range(300)) == make(walk.py_func)(cache, head)
    assert make(drop.py_func)(cache, head) == 300


# --- Full, stale, closed ---


@needs_machine_code
def test_full_cache_answers_null(cache):
    """Alloc gives NULL, alloc_many 0, and new a scratch record with a fault."""
    allocate = njit(lambda cache: cache.alloc())
    many = njit(lambda cache, out: cache.alloc_many(out))
    cache.alloc_many(999)

    assert many(cache, np.zeros(2, np.int64)) == 0
    assert allocate(cache) in cache
    assert allocate(cache) == NULL
    assert many(cache, np.zeros(1, np.int64)) == 0
    assert many(cache, np.zeros(0, np.int64)) == 0
    assert cache.faults == 0
    h, value = njit(lambda cache: (cache.new()[0], cache.new()[1].value))(cache)
    assert (h, value) == (NULL, 0.0)
    with pytest.raises(jitslab.FaultError) as caught:
        cache.raise_faults()
    assert re.fullmatch(
        "2 faults in compiled code on cache 'nodes', by 'h, value = njit.*' at .*test_compiled.py:[0-9]+; "
        r"the first: NULL handle 0x0 \(NULL from a full cache\?\)",
        str(caught.value),
    )


@njit
def read_stale(cache, h):
    """Read a record whatever its handle, write there, and read it again."""
    value, link = cache[h].value, cache[h].next
    cache[h].value = 99.0
    cache[h].next = 12345
    return value, link, cache[h].next, cache.free(h)


@needs_machine_code
def test_stale_read_is_zeroed_and_sets_a_sticky_fault(cache):
    """A refused handle reads zeros, links read NULL at each fault, and Python's allocs and checks report it once."""
    h = cache.alloc()
    cache[h] = (5.0, 77, 1, 2)
    cache.free(h)
    neighbour = cache.alloc()
    cache[neighbour] = (6.0, 78, 1, 2)

    for _ in range(2):
        assert read_stale(cache, h) == (0.0, NULL, NULL, False)
    assert cache[neighbour]["value"] == 6.0
    assert cache.faults >= 2
    count = cache.faults
    with pytest.raises(jitslab.FaultError) as caught:
        cache.alloc()

    called = f"by 'assert read_stale(cache, h) == (0.0, NULL, NULL, False)' at {caught.value.where}"
    first = f"stale or foreign handle {h:#x} (freed before, or another cache's?)"
    assert f"{count} faults in compiled code on cache 'nodes', {called}; the first: {first}" == str(caught.value)
    assert (count, h) == (caught.value.count, caught.value.first)
    assert len(cache) == 1
    assert cache.faults == 0
    cache.alloc()


@needs_machine_code
@pytest.mark.parametrize("use", ["alloc", "alloc_many", "check", "raise_faults"])
def test_faults_are_raised_before_anything_is_done(cache, use):
    """Each of these raises the fault and does nothing else; the next call works."""
    walk(cache, 5 << 32)
    call = {"alloc_many": lambda: cache.alloc_many(10)}.get(use, getattr(cache, use))

    with pytest.raises(jitslab.FaultError):
        call()
    assert len(cache) == 0
    call()


@needs_machine_code
def test_frees_never_raise_faults(cache):
    """Frees and the ends of guards go on with a fault set; it stays set."""
    handles = cache.alloc_many(5)
    with cache.adopt(handles[3]), cache.allocate_many(2):
        walk(cache, 5 << 32)
    cache.free(int(handles[0]))
    cache.free_many(handles[1:3])

    assert 1 == len(cache)
    assert cache.faults == 1
    with pytest.raises(jitslab.FaultError):
        cache.close()


@needs_machine_code
def test_free_of_a_refused_handle_is_no_fault(cache):
    """`free` reports by its result alone."""
    free = njit(lambda cache, h: cache.free(h))
    h = cache.alloc()

    assert [free(cache, x) for x in (h, h, 0, -1, h ^ 1)] == [True, False, False, False, False]
    assert cache.faults == 0


FORGED = [-1, -(1 << 63), (1 << 63) - 1, 0xFFFFFFFF, 1, 1 << 62]


@needs_machine_code
@pytest.mark.parametrize("handle", FORGED)
def test_forged_handle_is_refused(cache, handle):
    """No number that is no handle reaches a record, nor memory beyond the cache."""
    h = cache.alloc()
    cache[h] = (5.0, 77, 1, 2)
    for forged in (handle, (h ^ handle) | (1 << 63) - (1 << 64) if handle > 0 else h + handle):
        assert read_stale(cache, forged) == (0.0, NULL, NULL, False)
        assert not njit(lambda cache, h: h in cache or cache.is_live(h))(cache, forged)

    assert cache[h].item() == (5.0, 77, 1, 2)
    with pytest.raises(jitslab.FaultError):
        cache.raise_faults()


@needs_machine_code
def test_million_random_handles_in_compiled_code(cache):
    """None is accepted but the live ones, by free nor by `in`."""

    @njit
    def free_random(cache, handles):
        n = 0
        for h in handles:
            n += (h in cache) + cache.is_live(h) + cache.free(h)
        return n

    live = cache.alloc_many(600)
    rng = np.random.default_rng(3)
    handles = rng.integers(-(1 << 63), 1 << 63, 1_000_000, np.int64)
    handles[::2] = (live[0] >> 32) + rng.integers(-2, 3, 500_000) << 32 | rng.integers(0, 5000, 500_000)

    assert free_random(cache, handles[~np.isin(handles, live)]) == 0
    assert sorted(live.tolist()) == sorted(cache.live().tolist())


@needs_machine_code
def test_closed_cache_in_compiled_code():
    """NULL, False, empty and zeros: nothing is reached after `close`, by a kernel that has used the cache before or not."""
    for used_before in (False, True):
        cache = jitslab.SlabCache("shut", NODE, capacity=1000)
        h = cache.alloc()
        cache[h] = (5.0, 77, 1, 2)
        if used_before:
            drop(cache, build(cache, 300))
        cache.close()
        many = njit(lambda cache, out: (cache.alloc_many(out), cache.free_many(out), cache.clear(), len(cache)))

        assert build(cache, 1) == NULL
        assert read_stale(cache, h) == (0.0, NULL, NULL, False)
        assert many(cache, np.full(10, h)) == (0, 0, 0, 0)
        assert many(cache, np.full(500, h)) == (0, 0, 0, 0)
        assert 0.0 == sum_items(cache) == sum_handles(cache)
        assert not njit(lambda cache, h: h in cache)(cache, h)
        with pytest.raises(jitslab.ClosedError):
            cache.alloc()
        with pytest.raises(jitslab.FaultError):  # what it was asked for since is told, too
            cache.close()


# --- Typing errors ---


WRONG = {
    "float handle": (lambda c: c[1.5].value, r"jitslab: cache\[handle\] takes an integer handle, got float64"),
    "float to free": (lambda c: c.free(1.5), r"jitslab: free\(handle\) takes an integer handle, got float64"),
    "float to in": (lambda c: 1.5 in c, "jitslab: handle in cache takes an integer handle, got float64"),
    "string to record": (lambda c: c.record("a").value, r"jitslab: record\(handle\) takes an integer handle, got "),
    "none to is_live": (lambda c: c.is_live(None), r"jitslab: is_live\(handle\) takes an integer handle, got none"),
    "float slot": (lambda c: c.at_slot(0.5).value, r"jitslab: at_slot\(slot\) takes an integer handle, got float64"),
    "wrong out": (
        lambda c: c.alloc_many(np.zeros(3)),
        r"jitslab: alloc_many\(out\) takes a writable contiguous 1-d int64 array, got array\(float64, 1d, C\)",
    ),
    "strided out": (
        lambda c: c.alloc_many(np.zeros(6, np.int64)[::2]),
        r"jitslab: alloc_many\(out\) takes a writable contiguous 1-d int64 array, got array\(int64, 1d, A\)",
    ),
    "wrong handles": (
        lambda c: c.free_many(np.zeros(3, np.int32)),
        r"jitslab: free_many\(handles\) takes a contiguous 1-d int64 array, got array\(int32, 1d, C\)",
    ),
}


@needs_machine_code
@pytest.mark.parametrize("crime", WRONG)
def test_wrong_use_is_refused_when_it_is_compiled(cache, crime):
    """The message says what is taken and what was given."""
    function, text = WRONG[crime]

    with pytest.raises(numba.TypingError, match=text):
        njit(function)(cache)


@needs_machine_code
def test_wrong_value_for_a_record_is_refused_when_it_is_compiled(cache):
    """Only a record of the same dtype can be assigned."""

    @njit
    def assign(cache, h):
        cache[h] = 5

    with pytest.raises(numba.TypingError, match=r"jitslab: cache\[handle\] = record takes a record of the cache's dtype, got "):
        assign(cache, cache.alloc())


@needs_machine_code
def test_read_only_out_is_refused_when_it_is_compiled(cache):
    """An array that cannot be written takes no handles, and one that cannot be read from another type frees none."""
    out = np.zeros(3, np.int64)
    out.flags.writeable = False

    with pytest.raises(numba.TypingError, match="takes a writable contiguous 1-d int64 array, got Array"):
        njit(lambda cache, out: cache.alloc_many(out))(cache, out)
    assert njit(lambda cache, out: cache.free_many(out))(cache, out) == 0


@needs_machine_code
@pytest.mark.parametrize("integer", [np.int8, np.int32, np.uint32, np.uint64, np.int64])
def test_every_integer_type_is_a_handle(cache, integer):
    """Narrow and unsigned integers are widened."""
    cache.alloc()

    assert not njit(lambda cache, h: h in cache or cache.is_live(h) or cache.free(h))(cache, integer(1))
    h = cache.alloc()
    assert njit(lambda cache, h: h in cache and cache.is_live(h) and cache.free(h))(cache, np.uint64(h))


# --- Without a JIT ---


def test_user_code_runs_as_python_without_the_jit():
    """Under NUMBA_DISABLE_JIT=1 the user's functions give the same results with the Python methods."""
    program = """
import numba, numpy as np, jitslab
# Fields that are named as attributes of NumPy's records are, and that are nested.
inner = np.dtype([("size", "i4"), ("base", "f8", (2,))])
node = np.dtype([("value", "f8"), ("next", "i8"), ("data", "i4", (3,)), ("dtype", inner), ("shape", "S3")])
cache = jitslab.SlabCache("plain", node, capacity=1000, init="zero")

@numba.njit
def work(cache):
    head = 0
    for i in range(300):
        h, r = cache.new()
        r.value = i
        r["next"] = head
        cache[h].data[1] = i
        cache.record(h).data[:2] += 1
        r.dtype.size = i
        r.dtype.base[0] = cache.at_slot(h & 0xFFFFFFFF).value / 2
        head = h
    total = 0.0
    for h, r in cache.items():
        total += r.data.sum() + r.dtype.size + r.dtype.base.sum()
    for h in cache:
        if cache[h].value < 100:
            cache.free(h)
    head_value = cache[head].value
    while head in cache:
        total += cache.record(head).value
        following = cache[head].next
        cache.free(head)
        head = following
    return total, head_value, len(cache)

values = work(cache)
print(*map(float, values))
cache.check()
h = cache.alloc()
cache[h] = (1.5, 2, (3, 4, 5), (6, (7.0, 8.0)), b"abc")
plain = cache.gather([h]).astype(node)[0]
print(str(cache[h]) == str(plain), repr(cache[h]) == repr(plain), cache.records.dtype == node)
print(plain["value"].item(), *(plain[name].tolist() for name in ("next", "data", "shape")), plain["dtype"]["base"].tolist())
try:
    cache[h].nothing = 1
except AttributeError as error:
    print(error)
"""
    expected, disabled = (run_python(program, NUMBA_DISABLE_JIT=flag).splitlines() for flag in ("0", "1"))

    assert expected[0] == disabled[0]
    assert disabled[1:] == [
        "True True True",
        "1.5 2 [3, 4, 5] b'abc' [7.0, 8.0]",
        "the record has no field 'nothing'; it has 'value', 'next', 'data', 'dtype', 'shape'",
    ]
    assert expected[1] == disabled[1]


def test_example_of_the_readme_runs_without_the_jit():
    """The first one, as it stands there."""
    path = Path(__file__).parent.parent / "README.md"
    program = f"""
import doctest
readme = {path.read_text()!r}
example = readme[readme.index("## In twenty lines") :]
example = example[example.index("```pycon") + 8 : example.index("\\n```\\n")]
assert "nodes[h].value" in example
test = doctest.DocTestParser().get_doctest(example, {{}}, "README", None, 0)
runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
runner.run(test)
print(runner.failures, runner.tries > 10)
"""
    assert run_python(program, NUMBA_DISABLE_JIT="1").splitlines()[-1] == "0 True"
