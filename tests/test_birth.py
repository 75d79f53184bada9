"""Fields at birth: records that begin with the values of a call, in Python and in compiled code."""

import numba
import numpy as np
import pytest
from numba import njit, prange
from program import run_python

import jitslab
from jitslab import NULL

INNER = np.dtype([("x", "<f8"), ("y", "<f4")])
NODE = np.dtype(
    [
        ("value", "<f8"),
        ("next", "<i8"),
        ("id", "u1"),
        ("data", "<f4", (3,)),
        ("matrix", "<i4", (2, 2)),
        ("at", INNER),
        ("text", "S4"),
        ("cache", "<i2"),
        ("self", "?"),
    ]
)
DEFAULT = (0.0, 0, 0, [0, 0, 0], [[0, 0], [0, 0]], (0.0, 0.0), b"", 0, False)


@pytest.fixture(params=["zero", None], ids=["zero", "no init"])
def cache(request):
    """Return a cache of ten nodes, with and without a template."""
    with jitslab.SlabCache("nodes", NODE, capacity=10, init=request.param) as cache:
        cache[cache.alloc()] = (0, 0, 0, 0, 0, (0, 0), b"", 0, False)
        cache.clear()
        yield cache
        if not cache.closed:
            cache.check()


def plain(record):
    """Return the values of a record."""
    return tuple(value.tolist() if isinstance(value, np.ndarray) else value.item() for value in (record[n] for n in NODE.names))


BORN = {
    "alloc": lambda cache, /, **fields: cache[cache.alloc(**fields)].copy(),
    "new": lambda cache, /, **fields: cache.new(**fields)[1].copy(),
    "allocate": lambda cache, /, **fields: cache[cache.allocate(**fields).release()].copy(),
    "alloc_many": lambda cache, /, **fields: cache.gather(cache.alloc_many(1, **fields))[0],
    "allocate_many": lambda cache, /, **fields: cache.gather(cache.allocate_many(1, **fields).release())[0],
}


@pytest.mark.parametrize("birth", BORN)
@pytest.mark.parametrize("turn", ["by Python", "by C"])
def test_record_is_born_with_the_values_of_fields(birth, turn):
    """Numbers, texts, sub-arrays and nested records; the other fields are those of the template."""
    with jitslab.SlabCache("nodes", NODE, capacity=10, init="zero") as cache:
        if turn == "by C":
            BORN[birth](cache, value=0.5)
        record = BORN[birth](cache, value=1.5, next=7, id=255, cache=-3, self=True)
        assert plain(record) == (1.5, 7, 255, *DEFAULT[3:7], -3, True)

        record = BORN[birth](cache, data=[1, 2, 3], matrix=5, at=(1.0, 2.0), text=b"ab", value=np.float32(0.5))
        assert plain(record) == (0.5, 0, 0, [1, 2, 3], [[5, 5], [5, 5]], (1.0, 2.0), b"ab", 0, False)


WRONG = {
    "misspelt": ({"value": 1.0, "valeu": 2.0}, jitslab.FieldNameError, "the record has no field 'valeu'; near it: 'value'"),
    "out of range": ({"value": 1.0, "id": 300}, jitslab.FieldRangeError, "field 'id' takes an integer 0 .. 255, got 300"),
    "NumPy's out of range": ({"id": np.int64(300)}, jitslab.FieldRangeError, "field 'id' takes an integer 0 .. 255, got "),
    "float": ({"next": 1.5}, jitslab.FieldTypeError, "field 'next' takes an integer .*, got "),
    "shape": ({"data": [1, 2]}, jitslab.ArrayError, "field 'data' takes an array of shape .*, got one of shape"),
    "nested": ({"at": (1.0,)}, jitslab.FieldTypeError, "field 'at' takes a record of x, y, got "),
    "bool": ({"self": 1}, jitslab.FieldTypeError, "field 'self' takes a bool, got int 1"),
}


@pytest.mark.parametrize("crime", WRONG)
@pytest.mark.parametrize("birth", BORN)
def test_refused_value_allocates_nothing(cache, birth, crime):
    """All values are converted before a slot is taken: by Python, and when C knows the fields."""
    fields, error, text = WRONG[crime]
    for turn in range(2):
        with pytest.raises(error, match=text):
            BORN[birth](cache, **fields)

        assert len(cache) == turn
        cache.alloc(value=1.0)


def test_converted_values_run_before_anything_is_allocated(cache):
    """A value whose conversion looks at the cache sees no record that is half made."""
    seen = []

    class Number:
        def __float__(self):
            seen.append(len(cache))
            return 2.5

        def __array__(self, dtype=None, copy=None):
            return np.asarray(float(self))

    assert cache[cache.alloc(value=Number())]["value"] == 2.5
    assert set(seen) == {0}


@pytest.mark.parametrize("birth", BORN)
def test_full_cache_gives_no_birth(cache, birth):
    """With the errors of a birth without fields."""
    cache.alloc(value=1.0)
    cache.alloc_many(9)
    with pytest.raises(jitslab.CacheFullError):
        BORN[birth](cache, value=1.0)
    with pytest.raises(jitslab.CacheFullError):
        BORN[birth](cache, text=b"a")
    cache.close()
    with pytest.raises(jitslab.ClosedError):
        BORN[birth](cache, value=1.0)


@pytest.mark.parametrize("method", ["alloc", "new", "allocate"])
def test_fields_are_given_by_name(cache, method):
    """Not by their places; names that no literal of the program is, are found, too."""
    make = getattr(cache, method)
    for fields in ({}, {"value": 2.0}):
        with pytest.raises(
            TypeError, match=rf"SlabCache\.{method}\(\) takes (fields by name, as in value=1.0|1 positional argument)"
        ):
            make(1.0, **fields)
    assert len(cache) == 0
    for _ in range(2):
        made = make(**{"".join(["val", "ue"]): 1.5})
        assert len(cache) == 1
        cache.clear()
    made = make(**dict())  # noqa: C408  # an empty dict, for the C method
    assert len(cache) == 1
    if method == "allocate":
        made.free()


def test_guard_is_made_by_a_method_that_was_kept(cache):
    """Also by one that was taken from a cache before the first guard, when it was not in C."""
    program = """
import numpy as np, jitslab
with jitslab.SlabCache("first", np.dtype([("x", "f8")]), capacity=10) as cache:
    allocate = cache.allocate
    for x in range(3):
        with allocate() as one, allocate(x=x) as two:
            print(len(cache), two.x)
"""
    assert run_python(program).split() == ["2", "0.0", "2", "1.0", "2", "2.0"]


def test_many_are_born_with_one_value_or_one_each(cache):
    """Columns, records and scalars; `out` keeps its meaning."""
    out = np.zeros(3, np.int64)
    assert cache.alloc_many(3, out=out, id=[1, 2, 3], value=0.5, data=np.arange(9).reshape(3, 3)) is out
    records = cache.gather(out)
    assert records["id"].tolist() == [1, 2, 3]
    assert records["value"].tolist() == [0.5] * 3
    assert records["data"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with cache.allocate_many(2, id=[4, 5], at=[(1, 2), (3, 4)]) as batch:
        assert (batch.id.tolist(), batch.at["x"].tolist()) == ([4, 5], [1, 3])
    with pytest.raises(jitslab.ArrayError, match=r"field 'id' takes an array of shape \(3,\), got one of shape \(2,\)"):
        cache.allocate_many(3, id=[1, 2])
    assert cache.alloc_many(0, id=[]).size == 0
    assert len(cache) == 3


def test_objects_of_an_allocator_are_born_with_values():
    """Of the module's and of one's own."""
    point = np.dtype([("x", "f8"), ("dtype", "i4")])
    with jitslab.SlabAllocator("births") as allocator:
        for owner in (allocator, jitslab):
            with owner.allocate_object(point, x=1.5, dtype=3) as it:
                assert (it.x, it["dtype"]) == (1.5, 3)
            with pytest.raises(jitslab.FieldNameError, match="no field 'z'; it has 'x', 'dtype'"):
                owner.allocate_object(point, z=1)
        assert not allocator.report()


# --- In compiled code ---


@njit
def push(cache, head, value):
    """Push a node."""
    return cache.alloc(value=value, next=head)


@njit
def every_kind(cache, array, other):
    """Values of all kinds; returns handle, handle and a field."""
    first = cache.alloc(
        value=1, next=other, id=300, data=array, matrix=((1, 2), (3, 4)), at=(1.5, 2), text=b"ab", cache=3, self=True
    )
    second, record = cache.new(at=cache[first].at, data=2, matrix=array[:2], value=cache[first].next)
    return first, second, record.value


def test_compiled_births(cache):
    """Each value is converted by Numba's rule, sub-arrays and nested records are copied."""
    first, second, value = every_kind(cache, np.array([1.0, 2.0, 3.0]), 7)

    assert plain(cache[first]) == (1.0, 7, 44, [1, 2, 3], [[1, 2], [3, 4]], (1.5, 2.0), b"ab", 3, True)
    assert value == 7.0
    assert plain(cache[second])[3:6] == ([2, 2, 2], [[1, 2], [1, 2]], (1.5, 2.0))
    head = push(cache, push(cache, 0, 2.5), 3.5)
    assert (cache[head]["value"], cache[cache[head]["next"]]["value"]) == (3.5, 2.5)


def test_full_cache_answers_null_to_a_compiled_birth(cache):
    """And writes nothing, without a fault; `new` gives a scratch record and a fault, as it does without fields."""
    handles = [push(cache, 5, float(i)) for i in range(10)]
    before = cache.gather(handles).tobytes()

    assert push(cache, 6, 1.0) == NULL
    assert cache.faults == 0
    assert cache.gather(handles).tobytes() == before
    assert njit(lambda cache: cache.new(value=1.0)[0])(cache) == NULL
    assert cache.faults == 1
    with pytest.raises(jitslab.FaultError):
        cache.raise_faults()
    assert cache.gather(handles).tobytes() == before
    cache.close()
    assert push(cache, 6, 1.0) == NULL


def test_wrong_shape_in_compiled_code_allocates_nothing(cache):
    """It raises as ``record.field[:] = array`` does, before a slot is taken."""
    with pytest.raises(ValueError, match="cannot assign slice of shape"):
        every_kind(cache, np.zeros(4), 0)

    assert len(cache) == 0


@njit(parallel=True)
def born_in_parallel(cache, out):
    """Each iteration makes a node."""
    for i in prange(out.size):
        out[i] = cache.alloc(value=i, next=i)


def test_births_in_prange():
    """Each record has the values of its own iteration."""
    with jitslab.SlabCache("parallel", NODE, capacity=20_000) as cache:
        out = np.zeros(10_000, np.int64)
        born_in_parallel(cache, out)
        records = cache.gather(out)

        assert records["value"].tolist() == records["next"].tolist() == list(range(10_000))
        cache.check()


@njit
def many(cache, out, ids, rows, inner):
    """Many births: columns, and one value for all."""
    return cache.alloc_many(out, id=ids, value=2, data=rows, at=inner, next=7, matrix=((1, 2), (3, 4)))


@pytest.mark.parametrize("n", [1, 5, 10])
def test_many_compiled_births(cache, n):
    """Arrays that have a value for each record; what is of no such shape raises before a slot is taken."""
    out, rows = np.zeros(n, np.int64), np.arange(6.0 * n).reshape(n, 6)[:, ::2]
    inner = np.array([(i, i + 0.5) for i in range(n)], INNER)

    with pytest.raises(ValueError, match="jitslab: field 'id' takes an array of one value for each record"):
        many(cache, out, np.arange(n + 1), rows, inner)
    assert (len(cache), out.tolist()) == (0, [0] * n)
    assert many(cache, out, np.arange(n), rows, inner) == n
    records = cache.gather(out)
    assert records["id"].tolist() == list(range(n))
    assert records["data"].tolist() == rows.tolist()
    assert records["at"].tolist() == inner.tolist()
    assert records["matrix"].tolist() == [[[1, 2], [3, 4]]] * n
    assert (set(records["value"]), set(records["next"])) == ({2.0}, {7})
    packed = np.zeros(n, [("a", "u1"), ("x", "f8")])
    packed["x"] = np.arange(n)
    cache.clear()
    njit(lambda cache, out, x: cache.alloc_many(out=out, value=x))(cache, out, packed["x"])
    assert cache.gather(out)["value"].tolist() == list(range(n))
    cache.alloc_many(10 - n)
    assert many(cache, out, np.arange(n), rows, inner) == 0
    assert cache.faults == 0


NOT_COMPILED = {
    "too deep": (
        lambda c: c.alloc_many(np.zeros(2, np.int64), value=np.zeros((2, 2))),
        "jitslab: field 'value' takes float64, got array",
    ),
    "misspelt, many": (lambda c: c.alloc_many(np.zeros(2, np.int64), valeu=1), "no field 'valeu'; near it: 'value'"),
    "misspelt": (lambda c: c.alloc(valeu=1.0), "jitslab: the record has no field 'valeu'; near it: 'value'"),
    "misspelt, new": (lambda c: c.new(valeu=1.0)[0], "jitslab: the record has no field 'valeu'; near it: 'value'"),
    "place": (lambda c: c.alloc(1.0), "jitslab: alloc: too many positional arguments"),
    "text": (lambda c: c.alloc(value="x"), "jitslab: field 'value' takes float64, got unicode_type"),
    "none": (lambda c: c.alloc(next=None), "jitslab: field 'next' takes int64, got none"),
    "few": (lambda c: c.alloc(data=(1, 2)), "jitslab: field 'data' takes 3 values, got a tuple of 2"),
    "in a tuple": (lambda c: c.alloc(at=(1.0, "y")), "jitslab: field 'at.y' takes float32, got unicode_type"),
    "deep": (lambda c: c.alloc(matrix=((1, 2), (3, None))), r"jitslab: field 'matrix\[1\]\[1\]' takes int32, got none"),
    "no record": (lambda c: c.alloc(at=1.0), r"jitslab: field 'at' takes Record\(.*\), got float64"),
    "no array": (lambda c: c.alloc(data="abc"), r"jitslab: field 'data' takes nestedarray\(float32, \(3,\)\), got unicode_type"),
}


@pytest.mark.parametrize("crime", NOT_COMPILED)
def test_wrong_birth_is_refused_when_it_is_compiled(cache, crime):
    """The message names the field, what it takes and what it got; or the names that are near."""
    function, text = NOT_COMPILED[crime]

    with pytest.raises(numba.TypingError, match=text):
        njit(function)(cache)


def test_compiled_birth_is_kept_on_disk(tmp_path):
    """With `cache=True`, as any call."""
    (tmp_path / "keeps_birth.py").write_text(
        "import numba\n@numba.njit(cache=True)\ndef f(cache, head):\n    return cache.alloc(x=3.0, next=head)\n"
    )
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import keeps_birth, numpy, jitslab
cache = jitslab.SlabCache("k", numpy.dtype([("x", "f8"), ("next", "i8")]), capacity=10)
print(cache[keeps_birth.f(cache, 5)].item(), sum(keeps_birth.f.stats.cache_hits.values()))
"""
    assert [run_python(program) for _ in range(2)] == ["(3.0, 5) 0\n", "(3.0, 5) 1\n"]


def test_births_without_the_jit():
    """The same calls run as Python."""
    program = """
import numba, numpy as np, jitslab
cache = jitslab.SlabCache("k", np.dtype([("x", "f8"), ("next", "i8"), ("d", "f4", 2)]), capacity=10, init="zero")
@numba.njit
def f(cache, head):
    h, r = cache.new(x=1, next=head, d=(1, 2))
    return h, cache.alloc(next=h, x=r.x + r.d[1])
h, other = f(cache, 5)
print(cache[h].tolist()[:2], cache[other]["x"])
"""
    assert run_python(program, NUMBA_DISABLE_JIT="1") == run_python(program) == "(1.0, 5) 3.0\n"
