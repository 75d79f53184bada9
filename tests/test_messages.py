"""What Numba's messages say of caches, and the ways in which Numba takes and gives them back."""

import pickle
from collections import namedtuple

import numba
import numpy as np
import pytest
from numba import cfunc, guvectorize, njit, typed, types, vectorize
from numba.core.errors import NumbaTypeError
from numba.experimental import jitclass
from program import run_python

import jitslab

INNER = np.dtype([("x", "<f8"), ("y", "<f8")])
NODE = np.dtype([("value", "<f8"), ("next", "<i8"), ("at", INNER), ("data", "<f4", (3,)), ("half", "<f2")])


@pytest.fixture
def cache():
    """Return a cache of nodes, one of which has a field that Numba cannot type."""
    with jitslab.SlabCache("nodes", NODE, capacity=100, init="zero") as cache:
        yield cache


# --- Messages ---


def test_type_is_named_by_its_fields(cache):
    """What tells types apart for compile caches stands behind; many fields are cut, and names need be no identifiers."""
    name = str(numba.typeof(cache))
    assert name.startswith("SlabCache[value f8, next i8, at (x f8, y f8), data f4[3], half f2; ")
    others = [
        np.dtype([(f"f{i}", "i4") for i in range(20)]),
        np.dtype([(f"f{i}", "i4") for i in range(21)]),
        np.dtype([("a b", ">f8"), ("\u00e9", "M8[ns]")]),
    ]
    names = [str(jitslab.SlabCache.numba_type(other)) for other in others]
    assert len(set(names)) == 3
    assert names[0].startswith("SlabCache[f0 i4, f1 i4, f2 i4, f3 i4, f4 i4, f5 i4, ...; ")
    assert names[2].startswith("SlabCache[a b >f8, '\\xe9' M8[ns]; ")
    with pytest.raises(numba.TypingError, match=r"SlabCache\[value f8, next i8, "):
        njit(lambda cache: cache + 1)(cache)


def assign(cache, h):
    """Write a field that is misspelt."""
    cache[h].valeu = 1.0


REFUSED = {
    "guard": (lambda c, h: c.allocate(), r"jitslab: allocate is .* Python only.*: write h, r = cache.new\(\) here"),
    "batch": (lambda c, h: c.allocate_many(3), r"jitslab: allocate_many is .* Python only.*: write h, r = cache.new\(\) here"),
    "gather": (lambda c, h: c.gather(h), r"jitslab: gather is .* Python only, not in compiled code; read cache\[h\] in a loop"),
    "live": (lambda c, h: c.live(), "jitslab: live is .* Python only, not in compiled code; write for h in cache"),
    "any other": (lambda c, h: c.check(), "jitslab: check is .* Python only, .*; call it before or after, or within objmode"),
    "misspelt method": (lambda c, h: c.aloc(), "jitslab: there is no 'aloc' in compiled code; near it: 'alloc'"),
    "misspelt field": (lambda c, h: c[h].valeu, "jitslab: the record has no field 'valeu'; near it: 'value'"),
    "misspelt and written": (assign, "jitslab: the record has no field 'valeu'; near it: 'value'"),
    "misspelt and nested": (lambda c, h: c[h].at.z, "jitslab: the record has no field 'z'; it has 'x', 'y'"),
    "misspelt by name": (lambda c, h: c[h]["valeu"], "Field 'valeu' was not found in record with fields"),
    "not typed": (lambda c, h: c[h].half, "jitslab: Numba cannot type field 'half'"),
}


@pytest.mark.parametrize("crime", REFUSED)
def test_what_compiled_code_does_not_have_is_said_with_what_it_has(cache, crime):
    """When the function is compiled."""
    function, text = REFUSED[crime]

    with pytest.raises(numba.TypingError, match=text):
        njit(function)(cache, cache.alloc())


def test_allocator_says_likewise():
    """What only Python has, and what is near a misspelt name."""
    with jitslab.SlabAllocator("words") as memory:
        with pytest.raises(numba.TypingError, match="jitslab: allocate_object is there in Python only"):
            njit(lambda memory: memory.allocate_object(1))(memory)
        with pytest.raises(numba.TypingError, match="jitslab: there is no 'alocate' in compiled code; near it: 'allocate'"):
            njit(lambda memory: memory.alocate(8))(memory)


def test_guard_in_compiled_code_is_refused_by_name(cache):
    """As an argument and as a global, also in a `with`."""
    text = r"compiled code takes no Slab\w+: guards are Python's; .* cache.new\(\)"

    def enter(guard):
        with guard:
            pass

    with cache.allocate() as guard, cache.allocate_many(2) as batch:
        for it in (guard, batch, guard.at):
            for function in (lambda it: it.x, enter):
                with pytest.raises(NumbaTypeError, match=text):
                    njit(function)(it)
        with pytest.raises(NumbaTypeError, match=text):
            njit(lambda: guard.value)()


def test_record_types_are_pickled_as_those_of_numba():
    """So compile caches on disk are read by programs without this package; a hidden field stays one."""
    with jitslab.SlabCache("plain", INNER, capacity=10) as cache:
        record = numba.typeof(cache).record
        assert b"jitslab" not in pickle.dumps(record)
        assert pickle.loads(pickle.dumps(record)) == record == numba.from_dtype(INNER)
    partial = numba.typeof(jitslab.SlabCache("partial", NODE, capacity=10)).record
    assert pickle.loads(pickle.dumps(partial)).hidden == partial.hidden


# --- Ways in and out ---


@pytest.mark.parametrize("options", [{}, {"init": "zero"}, {"nodes": 2}, {"colouring": False}], ids=str)
def test_type_of_a_cache_is_known_before_there_is_one(options):
    """Of a dtype and of a declared class, with the options that are in it."""
    big = np.dtype([("x", "f8", (128,))])

    @jitslab.record
    class Point:
        x: jitslab.f8 = 1.0

    for of in (NODE, big, Point):
        with jitslab.SlabCache("known", of, capacity=10, **options) as cache:
            assert numba.typeof(cache) is jitslab.SlabCache.numba_type(of, **options)


Pair = namedtuple("Pair", "nodes n")


def test_signatures_and_named_tuples_take_caches(cache):
    """A signature that is given, and a member of a named tuple."""
    signature = types.int64(numba.typeof(cache), types.float64)
    push = njit(signature)(lambda cache, x: cache.alloc(value=x))

    assert cache[push(cache, 2.5)]["value"] == 2.5
    h = njit(lambda pair: pair.nodes.alloc(value=pair.n))(Pair(cache, 3))
    assert cache[h]["value"] == 3.0


def test_global_of_other_decorators(cache):
    """`vectorize`, `guvectorize` and `cfunc` look records up in a global cache; `vectorize` takes none as an argument."""
    handles = np.array([cache.alloc(value=x) for x in (1.5, 2.5)])

    def read(h):
        return cache[h].value

    def read_all(hs, out):
        for i in range(hs.size):
            out[i] = cache[hs[i]].value

    assert vectorize(["float64(int64)"])(read)(handles).tolist() == [1.5, 2.5]
    assert vectorize(read)(handles).tolist() == [1.5, 2.5]
    assert guvectorize(["(int64[:],float64[:])"], "(n)->(n)")(read_all)(handles).tolist() == [1.5, 2.5]
    assert cfunc("float64(int64)")(read).ctypes(int(handles[1])) == 2.5
    with pytest.raises(numba.TypingError):
        vectorize(lambda cache, h: cache[h].value)(cache, handles)


def test_members_and_items(cache):
    """A jitclass that allocates, lists and dicts in both worlds."""

    @jitclass([("nodes", jitslab.SlabCache.numba_type(NODE, init="zero")), ("head", types.int64)])
    class Stack:
        def __init__(self, nodes):
            self.nodes = nodes
            self.head = 0

        def push(self, value):
            self.head = self.nodes.alloc(value=value, next=self.head)

    stack = Stack(cache)
    stack.push(1.5)
    stack.push(2.5)
    assert cache[cache[stack.head]["next"]]["value"] == 1.5
    assert stack.nodes is cache

    @njit
    def lists(cache):
        """Return what was put into lists."""
        many = typed.List()
        many.append(cache)
        return many[0], [cache][0], many

    one, other, many = lists(cache)
    assert one is other is many[0] is cache
    by_name = typed.Dict.empty(types.unicode_type, numba.typeof(cache))
    by_name["a"] = cache
    assert njit(lambda by_name: len(by_name["a"]))(by_name) == 2


def test_cache_is_printed_by_compiled_code():
    """As Python prints it, also in object mode."""
    program = """
import numba, numpy as np, jitslab
from numba import objmode
cache = jitslab.SlabCache("printed", np.dtype([("x", "f8")]), capacity=10)
@numba.njit
def f(cache):
    print("it:", cache)
    with objmode():
        print(cache)
f(cache)
"""
    text = "<SlabCache 'printed': 0 records of 8 bytes live in 0 slabs>"

    assert run_python(program).splitlines() == [f"it: {text}", text]
