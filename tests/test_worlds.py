"""The same from Python, in compiled code, and with the JIT off: run as it is, and with NUMBA_DISABLE_JIT=1 (`.ci/run`)."""

from __future__ import annotations

import bdb
import copy
import pickle

import numba
import numpy as np
import pytest
from numba import njit
from program import needs_machine_code, run_python

import jitslab
from jitslab import NULL

INNER = np.dtype([("x", "f8"), ("tags", "i2", (3,))])
NODE = np.dtype([("value", "f8"), ("next", "i8"), ("at", INNER), ("parts", INNER, (2,))])


@pytest.fixture(params=[None, "zero"], ids=["no init", "zero"])
def cache(request):
    """Return a cache of 100 nodes."""
    with jitslab.SlabCache("nodes", NODE, capacity=100, init=request.param) as cache:
        yield cache


def both(function):
    """Give a test the function as Python runs it, and as Numba does (the same if the JIT is off)."""
    return pytest.mark.parametrize("run", [function, njit(function)], ids=["Python", "compiled"])


# --- Records ---


def use_fields(cache, h):
    """Read and write fields, nested ones and elements."""
    cache[h].value = 1.5
    cache[h].at.x = cache[h].value + 1
    cache.record(h).at.tags[1] = 7
    cache[h].parts[1].x = 0.25
    other, r = cache.new()
    r.next = h
    r.value = cache.at_slot(h & 0xFFFFFFFF).value * 2
    total = 0.0
    for each, s in cache.items():
        s.at.tags[0] = 3
        total += s.value
    return total, cache[h].at.x, cache[h].at.tags[1], cache[h].parts[1].x, cache[cache[other].next].at.tags[0]


@both(use_fields)
def test_fields_are_attributes(cache, run):
    """Of every record that a cache gives, nested ones too."""
    assert (4.5, 2.5, 7, 0.25, 3) == run(cache, cache.alloc())


def test_fields_are_read_by_name_too(cache):
    """As before; both are views of the same record."""
    h = cache.alloc()
    cache[h]["value"] = 2.0
    cache[h].at["x"] = 3.0
    cache[h]["parts"]["x"][0] = 4.0

    assert (cache[h].value, cache[h]["at"].x, cache[h].parts[0].x) == (2.0, 3.0, 4.0)
    assert cache.gather([h])["value"].tolist() == [2.0]


def test_misspelt_field_is_refused(cache):
    """Nothing is set beside the record."""
    record = cache[cache.alloc()]
    with pytest.raises(jitslab.FieldNameError, match="the record has no field 'valeu'; near it: 'value'"):
        record.valeu = 1.0
    with pytest.raises(AttributeError, match="has no attribute 'valeu'"):
        record.valeu


def test_record_is_numpys(cache):
    """It is a `numpy.void`, prints and compares as one, is taken by compiled code, and is pickled as one."""
    h = cache.alloc()
    cache[h] = np.zeros((), NODE)
    cache[h].value = 2.0
    record, plain = cache[h], cache.gather([h]).astype(NODE)[0]

    assert isinstance(record, np.void)
    assert (repr(record), str(record)) == (repr(plain), str(plain))
    assert record == plain
    assert (record.dtype, record.dtype.type) == (cache.dtype, np.void)
    assert record.item()[0] == 2.0
    assert njit(lambda r: r.at.x + r.value)(record) == 2.0
    for made in (pickle.loads(pickle.dumps(record)), pickle.loads(pickle.dumps(np.array(record)))[()], copy.deepcopy(record)):
        assert made == plain
    assert type(pickle.loads(pickle.dumps(record))) is np.void


def test_fields_hide_what_numpy_has():
    """A field that is named as an attribute of NumPy's, in Python as in compiled code."""
    odd = np.dtype([("dtype", "f8"), ("item", "i4"), ("view", "i4"), ("shape", "f4", (2,)), ("setfield", "?"), ("_plain", "i4")])
    with jitslab.SlabCache("odd", odd, capacity=10, init="zero") as cache:
        record = cache[cache.alloc()]
        record.dtype, record.item, record.view, record.setfield = 1.5, 2, 3, True
        record.shape[1] = 4

        assert (record.dtype, record.item, record.view, record["shape"][1], record.setfield) == (1.5, 2, 3, 4, True)
        assert repr(record) == repr(cache.gather(cache.live()).astype(odd)[0])


def test_aligned_dtype_with_links_keeps_both():
    """The record is of the cache's dtype to compiled code, and to `links_of`."""
    inner = np.dtype([("a", "i1"), ("next", jitslab.link("linked"))], align=True)
    dtype = np.dtype([("b", "i1"), ("in", inner), ("f", "f8")], align=True)
    with jitslab.SlabCache("linked", dtype, capacity=10, init="zero") as cache:
        h, other = cache.alloc(), cache.alloc()
        cache[h].f = 2.0

        def assign(cache, h, record):
            cache[h] = record

        njit(assign)(cache, other, cache[h])
        assert cache[other].f == 2.0
        assert jitslab.links_of(cache[h].dtype) == {("in", "next"): "linked"}
        assert cache[h]["in"].dtype == inner


# --- Freeing and taking ---


def free_twice(cache, h, handles):
    """Free one record, and some."""
    return cache.free(h), cache.free_many(handles)


@both(free_twice)
def test_free_tells(cache, run):
    """True, and how many."""
    h, handles = cache.alloc(), cache.alloc_many(7)

    assert run(cache, h, handles) == (True, 7)
    assert len(cache) == 0


def test_raw_memory_frees_alike():
    """`free(ptr, size)` answers True from Python as from compiled code."""
    with jitslab.SlabAllocator("raw") as memory:
        use = njit(lambda memory, ptr, size: memory.free(ptr, size))

        for size in (8, 5000, 2 << 20):
            assert memory.free(memory.allocate(size), size) is True
            assert use(memory, memory.allocate(size), size)
    assert jitslab.free(jitslab.allocate(64), 64) is True


def take_both(cache, out, n):
    """Take as many as an array has room for, and a number."""
    got = cache.alloc_many(out)
    more = cache.alloc_many(n)
    return got, more, cache.alloc_many(0)


@both(take_both)
@pytest.mark.parametrize("n", [1, 5, 90])
def test_alloc_many_takes_an_array_or_a_number(cache, run, n):
    """How many for an array, a new array for a number."""
    out = np.zeros(10, np.int64)
    got, more, none = run(cache, out, n)

    assert (got, more.dtype, more.shape, none.shape) == (10, np.int64, (n,), (0,))
    assert sorted([*out.tolist(), *more.tolist()]) == sorted(cache.live().tolist())


@both(take_both)
def test_new_records_of_alloc_many_are_filled(run):
    """By the template."""
    with jitslab.SlabCache("filled", NODE, capacity=100, init=(1.5, 3, (0.5, 1), (0.0, 0))) as cache:
        run(cache, np.zeros(10, np.int64), 20)

        assert {cache[h].value for h in cache} == {1.5}


@needs_machine_code
@pytest.mark.parametrize("n", [-1, 101, 1 << 60, np.uint64((1 << 64) - 1), -(1 << 63)])
def test_alloc_many_of_too_many_gives_an_empty_array_in_compiled_code(cache, n):
    """All or none; no memory is asked for what cannot be had."""
    take = njit(lambda cache, n: cache.alloc_many(n))

    assert take(cache, n).shape == (0,)
    assert take(cache, 100).shape == (100,)
    assert take(cache, 1).shape == (0,)
    assert len(cache) == 100
    assert cache.faults == 0


@needs_machine_code
def test_array_of_alloc_many_is_numbas_own():
    """It is counted as any array of compiled code: what was taken is given back."""
    program = """
import numba, numpy as np, jitslab
from numba.core.runtime import rtsys

@numba.njit
def use(cache):
    total = 0
    for _ in range(1000):
        total += cache.free_many(cache.alloc_many(50)) + cache.alloc_many(101).size
    return total

cache = jitslab.SlabCache("own", np.dtype([("value", "f8")]), capacity=100)
before = rtsys.get_allocation_stats()
assert use(cache) == 50_000
after = rtsys.get_allocation_stats()
print(after.alloc - before.alloc >= 2000, after.alloc - before.alloc == after.free - before.free)
"""
    assert run_python(program, NUMBA_NRT_STATS="1") == "True True\n"


def test_closed_cache_gives_no_array():
    """Raised from Python, none in compiled code."""
    cache = jitslab.SlabCache("shut", NODE, capacity=100)
    cache.close()

    with pytest.raises(jitslab.ClosedError):
        cache.alloc_many(3)
    if not numba.config.DISABLE_JIT:
        assert njit(lambda cache: cache.alloc_many(3))(cache).shape == (0,)


def test_wrong_array_is_refused(cache):
    """As an `out` is."""
    for out in (np.zeros(3), np.zeros((2, 2), np.int64), np.zeros(6, np.int64)[::2]):
        with pytest.raises(jitslab.ArrayError):
            cache.alloc_many(out)


# --- Refused: the one rule ---


def test_functions_without_the_jit_refuse_as_python_does():
    """They are Python: what compiled code answers by NULL, False or a scratch record is raised, and no fault is set."""
    program = """
import numba, numpy as np, jitslab
cache = jitslab.SlabCache("one", np.dtype([("value", "f8")]), capacity=1)
run = {
    "free": numba.njit(lambda c, h: c.free(h)),
    "free_many": numba.njit(lambda c, h: c.free_many(np.array([h]))),
    "read": numba.njit(lambda c, h: c[h].value),
    "alloc": numba.njit(lambda c, h: c.alloc() + c.alloc()),
    "many": numba.njit(lambda c, h: c.alloc_many(2)),
    "out": numba.njit(lambda c, h: c.alloc_many(np.zeros(2, np.int64))),
    "in": numba.njit(lambda c, h: h in c),
}
h = cache.alloc()
cache.free(h)
for name, use in run.items():
    try:
        print(name, use(cache, h))
    except jitslab.SlabError as error:
        print(name, type(error).__name__)
print(cache.faults)
"""
    said = run_python(program, NUMBA_DISABLE_JIT="1").splitlines()

    assert said == [
        "free StaleHandleError",
        "free_many StaleHandleError",
        "read StaleHandleError",
        "alloc CacheFullError",
        "many CacheFullError",
        "out CacheFullError",
        "in False",
        "0",
    ]


# --- Debugger and coverage ---


@njit
def push(cache, head, value):
    """Put a node before a list."""
    h = cache.alloc()
    if h == NULL:
        return head
    cache[h].value = value
    cache[h].next = head
    return h


class Watcher(bdb.Bdb):
    """A debugger that stops at a line of `push` and looks at its variables."""

    def __init__(self, line):
        super().__init__()
        self.line, self.seen = line, []

    def user_line(self, frame):
        """Note what stands in the frame, and go on."""
        if frame.f_lineno == self.line and frame.f_code.co_name == "push":
            h = frame.f_locals["h"]
            self.seen.append((float(frame.f_locals["cache"][h].value), h in frame.f_locals["cache"]))
        self.set_continue()


DEBUGGED = """
import sys
sys.path.insert(0, {folder!r})
from test_worlds import NODE, Watcher, jitslab, push
cache = jitslab.SlabCache("seen", NODE, capacity=10, init="zero")
line = push.__code__.co_firstlineno + 7  # cache[h].next = head
watcher = Watcher(line)
watcher.set_break(push.__code__.co_filename, line)
watcher.runcall(push, cache, 0, 2.5)
print(watcher.seen)

covered = set()
def trace(frame, event, argument):
    if event == "line" and frame.f_code is push.__code__:
        covered.add(frame.f_lineno - push.__code__.co_firstlineno)
    return trace
sys.settrace(trace)
push(cache, 0, 1.0)
sys.settrace(None)
print(sorted(covered))
"""


def test_debugger_and_coverage_see_a_function_without_the_jit():
    """A breakpoint stops in it and sees records; a trace function, as coverage sets it, gets its lines."""
    folder = __file__.rpartition("/")[0]
    said = run_python(DEBUGGED.format(folder=folder), NUMBA_DISABLE_JIT="1").splitlines()

    assert said == ["[(2.5, True)]", "[3, 4, 6, 7, 8]"]
