"""What a cache can do in compiled code."""

import gc
import weakref

import numba
import numpy as np
import pytest
from numba import njit, objmode, prange, typed
from numba.experimental import jitclass
from program import run_python

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
    assert free_all(cache, out) == 0
    assert len(cache) == 0


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
    holder = jitclass([("cache", numba.typeof(cache))])(type("Holder", (), {"__init__": set_cache}))(cache)
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
    text = "2 faults in compiled code on cache 'nodes'; the first: NULL handle (an alloc that found no slot?) 0x0"
    with pytest.raises(jitslab.FaultError) as caught:
        cache.raise_faults()
    assert text == str(caught.value)


@njit
def read_stale(cache, h):
    """Read a record whatever its handle, write there, and read it again."""
    value, link = cache[h].value, cache[h].next
    cache[h].value = 99.0
    cache[h].next = 12345
    return value, link, cache[h].next, cache.free(h)


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
    text = f"{count} faults in compiled code on cache 'nodes'; the first: stale or foreign handle {h:#x}"
    with pytest.raises(jitslab.FaultError) as caught:
        cache.alloc()

    assert (text, count, h) == (str(caught.value), caught.value.count, caught.value.first)
    assert len(cache) == 1
    assert cache.faults == 0
    cache.alloc()


@pytest.mark.parametrize("use", ["alloc", "alloc_many", "check", "raise_faults"])
def test_faults_are_raised_before_anything_is_done(cache, use):
    """Each of these raises the fault and does nothing else; the next call works."""
    walk(cache, 5 << 32)
    call = {"alloc_many": lambda: cache.alloc_many(10)}.get(use, getattr(cache, use))

    with pytest.raises(jitslab.FaultError):
        call()
    assert len(cache) == 0
    call()


def test_frees_and_closing_never_raise_faults(cache):
    """Freeing, reading and closing go on with a fault set; it stays set."""
    handles = cache.alloc_many(5)
    walk(cache, 5 << 32)
    cache.free(int(handles[0]))
    cache.free_many(handles[1:3])
    cache.clear()
    with cache:
        pass

    assert cache.closed
    assert cache.faults == 1


def test_free_of_a_refused_handle_is_no_fault(cache):
    """`free` reports by its result alone."""
    free = njit(lambda cache, h: cache.free(h))
    h = cache.alloc()

    assert [free(cache, x) for x in (h, h, 0, -1, h ^ 1)] == [True, False, False, False, False]
    assert cache.faults == 0


FORGED = [-1, -(1 << 63), (1 << 63) - 1, 0xFFFFFFFF, 1, 1 << 62]


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


@pytest.mark.parametrize("crime", WRONG)
def test_wrong_use_is_refused_when_it_is_compiled(cache, crime):
    """The message says what is taken and what was given."""
    function, text = WRONG[crime]

    with pytest.raises(numba.TypingError, match=text):
        njit(function)(cache)


def test_wrong_value_for_a_record_is_refused_when_it_is_compiled(cache):
    """Only a record of the same dtype can be assigned."""

    @njit
    def assign(cache, h):
        cache[h] = 5

    with pytest.raises(numba.TypingError, match=r"jitslab: cache\[handle\] = record takes a record of the cache's dtype, got "):
        assign(cache, cache.alloc())


def test_read_only_out_is_refused_when_it_is_compiled(cache):
    """An array that cannot be written takes no handles, and one that cannot be read from another type frees none."""
    out = np.zeros(3, np.int64)
    out.flags.writeable = False

    with pytest.raises(numba.TypingError, match="takes a writable contiguous 1-d int64 array, got Array"):
        njit(lambda cache, out: cache.alloc_many(out))(cache, out)
    assert njit(lambda cache, out: cache.free_many(out))(cache, out) == 0


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
cache = jitslab.SlabCache("plain", np.dtype([("value", "f8"), ("next", "i8")]), capacity=1000)

@numba.njit
def work(cache):
    head = 0
    for i in range(300):
        h, node = cache.new()
        node["value"] = i
        node["next"] = head
        head = h
    total = 0.0
    while head != 0:
        total += cache.record(head)["value"]
        following = cache[head]["next"]
        cache.free(head)
        head = int(following)
    return float(total), len(cache)

assert work.__class__.__name__ == "function"
print(work(cache))
cache.check()
"""
    assert f"({float(sum(range(300)))}, 0)\n" == run_python(program, NUMBA_DISABLE_JIT="1")
