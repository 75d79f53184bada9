"""Dtypes that NumPy calls equal and are not the same, and fields of sorts that Numba, or NumPy itself, has trouble with."""

import itertools
import re

import numba
import numpy as np
import pytest
from program import run_python

import jitslab
from jitslab._validate import dtype_identity

try:
    from numpy._core._rational_tests import rational  # a dtype that a user registered, as NumPy's own tests have it
except ImportError:  # NumPy 1
    from numpy.core._rational_tests import rational

_names = (f"n{i}" for i in itertools.count())


def record_of(*formats, **options):
    """Return a dtype whose names no other has: what is made once a dtype is made anew."""
    return np.dtype([(next(_names), of) for of in formats], **options)


def named_alike(dtype, *formats, **options):
    """Return a dtype with other formats."""
    return np.dtype(list(zip(dtype.names, formats, strict=True)), **options)


def equal_dtypes():
    """Return pairs of dtypes that are equal to NumPy, by what tells them apart."""
    packed = record_of("f8", "i8")
    inner = record_of("f8", "f8")
    outer = record_of(inner, "i8")
    many = record_of((inner, (2,)))
    units = record_of("m8[1000ms]")
    return {
        "aligned": (packed, named_alike(packed, "f8", "i8", align=True)),
        "aligned inside": (outer, named_alike(outer, named_alike(inner, "f8", "f8", align=True), "i8")),
        "aligned elements": (many, named_alike(many, (named_alike(inner, "f8", "f8", align=True), (2,)))),
        "np.record": (packed, np.dtype((np.record, packed))),
        "units": (units, named_alike(units, "m8[s]")),
        "metadata": (packed, named_alike(packed, "f8", np.dtype("i8", metadata={"of": "the user"}))),
    }


def numba_type(dtype):
    """Return Numba's type of a dtype, or None."""
    try:
        return numba.from_dtype(dtype)
    except numba.NumbaNotImplementedError:
        return None


@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize("what", equal_dtypes())
def test_equal_dtypes_do_not_decide_for_each_other(what, turned):
    """The cache that is opened second is as it would be alone: in compiled code, its records, the fields of its guards."""
    pair = equal_dtypes()[what]
    first, second = reversed(pair) if turned else pair
    assert first == second or second == first  # of units NumPy's answer depends on the order
    a, b = (jitslab.SlabCache(name, dtype, capacity=4) for name, dtype in (("first", first), ("second", second)))
    with a, b, a.allocate(), a.allocate_many(1), b.allocate() as it, b.allocate_many(1) as batch:
        assert numba_type(second) == b._numba_type_.record
        assert dtype_identity(second) == dtype_identity(b.dtype) == dtype_identity(it.record.dtype)
        for name in second.names:
            for guard in (it, batch):
                assert dtype_identity(second[name]) == dtype_identity(guard._fields[name].dtype)


@numba.njit
def put_and_get(cache, h, array):
    """Copy a record in, and out."""
    cache[h] = array[0]
    array[1] = cache[h]


def test_records_of_an_aligned_dtype_are_copied_in_compiled_code_whatever_was_opened_before():
    """A cache of the packed dtype is none of theirs; also where an allocator makes them."""
    packed = record_of("f8", "i8")
    aligned = named_alike(packed, "f8", "i8", align=True)
    with jitslab.SlabCache("first", packed, capacity=4), jitslab.SlabAllocator("both") as both:
        both.typed(packed)
        for cache in (jitslab.SlabCache("second", aligned, capacity=4), both.typed(aligned)):
            array = np.array([(1.5, 2), (0, 0)], aligned)
            put_and_get(cache, cache.alloc(), array)

            assert array[0] == array[1]


@pytest.mark.parametrize("what", sorted(equal_dtypes().keys() - {"units"}))  # those are equal one way round only
def test_allocator_has_a_cache_for_each_and_takes_records_of_either(what):
    """Their records are of one type, unless the metadata differ: freed by either, also from a plain number."""
    first, second = equal_dtypes()[what]
    with jitslab.SlabAllocator("both") as both:
        caches = [both.typed(dtype) for dtype in (first, second)]
        assert caches[0] is not caches[1]
        assert caches == [both.typed(dtype) for dtype in (first, second)]
        for made, given in ((first, second), (second, first)):
            for ptr in (both.allocate_typed(made), int(both.allocate_typed(made))):
                if what == "metadata":
                    with pytest.raises(jitslab.RecordTypeError):
                        both.free_typed(ptr, given)
                else:
                    both.free_typed(ptr, given)
                    with pytest.raises(jitslab.HandleError):
                        both.free_typed(ptr, given)


# --- Fields that Numba cannot type ---

HIDDEN = {  # with the reason that compiled code gives
    "big-endian": (">i4", ">i4"),
    "big-endian date": (">M8[s]", ">M8[s]"),
    "big-endian text": (">U2", None),
    "float16": ("f2", "float16"),
    "longdouble": ("g", None),
    "raw bytes": ("V3", "|V3"),
    "no bytes": ("V0", "|V0"),
    "units of several": ("M8[10s]", "datetime64[10s]"),
    "rational": (rational, None),
    "texts": (("U2", (2,)), None),
    "big-endian elements": ((">f4", (2,)), ">f4"),
    "float16 elements": (("f2", (2,)), "float16"),
    "record of such": ([("b", ">i4")], ">i4"),
}


def attempt(function, *arguments):
    """Return the lines of what Numba says against a function."""
    with pytest.raises(numba.TypingError) as caught:
        numba.njit(function)(*arguments)
    return str(caught.value).splitlines()


@numba.njit
def use_others(cache, h, other):
    """Write the fields that can be typed, copy the record, sum over all."""
    cache[h].x = 1.5
    cache[h]["at"].p = 7
    cache[h].parts[1].a = 3
    cache[other] = cache[h]
    total = 0.0
    for _, record in cache.items():
        total += record.x + record.at.p + record.parts[1].a
    return total


@numba.njit
def record_at(cache, h):
    """Return a record."""
    return cache[h]


@pytest.mark.parametrize("kind", HIDDEN)
def test_field_that_numba_cannot_type_does_not_spoil_the_others(kind):
    """They are used, whole records are copied and returned with all fields; the field itself is refused by name and reason."""
    of, reason = HIDDEN[kind]
    dtype = np.dtype(
        [
            ("x", "f8"),
            (("the title", "hidden"), of),
            ("at", [("p", "i4"), ("hidden", of)]),
            ("parts", [("a", "i2"), ("hidden", of)], (2,)),
        ]
    )
    with jitslab.SlabCache("partly", dtype, capacity=4, init="zero") as cache:
        h, other = cache.alloc(), cache.alloc()
        records = np.frombuffer(np.arange(dtype.itemsize, dtype=np.uint8).tobytes(), dtype)
        cache.scatter([h], records)

        total, record = use_others(cache, h, other), record_at(cache, other)
        expected = records.copy()
        expected["x"], expected["at"]["p"], expected["parts"]["a"][:, 1] = 1.5, 7, 3
        assert 2 * (1.5 + 7 + 3) == total
        assert [expected.tobytes()] * 3 == [cache[h].tobytes(), cache[other].tobytes(), record.tobytes()]
        assert (dtype.names, dtype["at"].names) == (record.dtype.names, record.dtype["at"].names)
        for name, function in {
            "hidden": lambda cache, h: cache[h].hidden,
            "the title": lambda cache, h: cache[h]["the title"],
        }.items():
            (line,) = [line for line in attempt(function, cache, h) if "jitslab: " in line]
            assert line.startswith(f"jitslab: Numba cannot type field {name!r} of these records: {reason or ''}")
        for function in (lambda cache, h: cache[h].at.hidden, lambda cache, h: cache[h].parts[0].hidden):
            assert any("jitslab: Numba cannot type field 'hidden' of these records: " in it for it in attempt(function, cache, h))


def test_caches_that_differ_in_what_numba_cannot_type_are_of_different_types():
    """A record of one is no record of the other, though the fields that are left are the same."""

    @numba.njit
    def copy(a, h, b, i):
        b[i] = a[h]

    dtypes = [[("x", "f8"), ("y", of)] for of in (">i4", ">u4", "V4", [("b", ">i4")], [("c", ">i4")])]
    dtypes += [{"names": ["x", "y"], "formats": ["f8", ">i4"], "offsets": [4, 0]}]
    with jitslab.SlabCache("a", dtypes[0], capacity=9) as a:
        for dtype in dtypes[1:]:
            with jitslab.SlabCache("b", dtype, capacity=4) as b, pytest.raises(numba.TypingError):
                copy(a, a.alloc(), b, b.alloc())
        with jitslab.SlabCache("c", dtypes[0], capacity=4) as c:
            copy(a, a.alloc(), c, c.alloc())


def test_kernel_over_records_that_are_partly_typed_is_kept_on_disk(tmp_path):
    """Their type is found again by another process."""
    (tmp_path / "partly.py").write_text(
        "import numba\n@numba.njit(cache=True)\ndef put(cache, h):\n    cache[h].x = 2.5\n    return cache[h].x\n"
    )
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import jitslab, partly
cache = jitslab.SlabCache("partly", [("x", "f8"), ("y", ">i4")], capacity=4)
print(partly.put(cache, cache.alloc()), sum(partly.put.stats.cache_hits.values()))
"""
    assert ["2.5 0\n", "2.5 1\n"] == [run_python(program, NUMBA_CACHE_DIR="") for _ in range(2)]


# --- Text that is none, text of no width, dtypes of users ---


@pytest.mark.parametrize("order", ["<", ">"])
def test_text_field_that_holds_no_text_is_refused_when_it_is_read(order):
    """Of such code points NumPy makes a str that Python cannot handle: a debug build ends at once.  What is written mends it."""
    dtype = np.dtype([("text", f"{order}U2"), ("at", [("text", f"{order}U2")]), ("n", "i4"), ("texts", f"{order}U2", (2,))])
    with jitslab.SlabCache("garbage", dtype, capacity=4) as cache, cache.allocate() as it, cache.allocate_many(2) as batch:
        cache.records[:] = np.frombuffer(np.full(cache.records.nbytes, 1, np.uint8), dtype)
        message = r"^field 'text' holds no text \(was it ever written\?\): code point not in range\(0x110000\)$"
        for read in (lambda: it.text, lambda: it["text"], lambda: it.at.text, lambda: batch.text, lambda: batch["text"]):
            with pytest.raises(jitslab.FieldTextError, match=message):
                read()
        assert "<SlabObjectGuard of 'garbage': text=<no text>, at=(text=<no text>), n=16843009, texts=<<U2 2>>" == repr(
            it
        ).replace(">U2 2>", "<U2 2>")
        assert "<SlabRecordView .at: text=<no text>>" == repr(it.at)
        it.text, it.at.text, batch.text = "a", "\U0010ffff\ud800", ["b", "cd"]
        it.texts[:] = "ef"
        assert ("a", "\U0010ffff\ud800", ["b", "cd"]) == (it.text, it.at.text, batch.text.tolist())
        assert "text='a'" in repr(it)


@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays_and_records_with_text_are_refused_by_their_dtype(order):
    """It says why; and what is in them may be no text."""
    dtype = np.dtype([("text", f"{order}U2")])
    garbage = np.frombuffer(np.full(3 * dtype.itemsize, 1, np.uint8), dtype)
    plain = np.dtype([("n", "i4"), ("tag", "S2")])
    with jitslab.SlabCache("shown", plain, capacity=4) as cache, cache.allocate() as it:
        for value, text in (
            (garbage["text"], f"ndarray of {dtype['text']}"),
            (garbage, f"ndarray of {dtype}"),
            (garbage[0], f"void of {dtype}"),
            (np.array([b"a"]), "ndarray of |S1"),
        ):
            with pytest.raises((jitslab.FieldTypeError, jitslab.ArrayError)) as caught:
                it.n = value if value.shape == () else value[:1].reshape(())
            assert f"field 'n' takes an integer -2147483648 .. 2147483647, got {text}" == str(caught.value)
        with pytest.raises(jitslab.FieldRangeError, match=r"^field 'tag' takes at most 2 bytes, got ndarray of \|S3$"):
            it.tag = np.array(b"abc")
        with pytest.raises(jitslab.FieldNameError, match=r"^a field is named by a str, got ndarray of \|S3$"):
            it[np.array(b"abc")] = 1
        with pytest.raises(jitslab.LayoutError, match=f"^init must be one record of .*, got ndarray of {re.escape(str(dtype))}$"):
            jitslab.SlabCache("shown", plain, capacity=4, init=garbage)


def test_texts_of_no_width_hold_the_empty_one():
    """And nothing else; also in whole records, where NumPy, asked alone, makes them one wide."""
    dtype = np.dtype([("a", "S0"), ("b", "U0"), ("c", "V0"), ("z", "f4", (0,)), ("n", "u1")])
    record = (b"", "", b"", [], 7)
    cache = jitslab.SlabCache("narrow", [("at", dtype), ("after", "u1")], capacity=4, init=(record, 1))
    with cache, cache.allocate() as it, cache.allocate_many(2) as batch:
        assert 1 == it.at.n - 6 == it.after == batch.after[1]
        for value in (np.zeros((), dtype), dict(zip(dtype.names, record, strict=True)), np.array(record, dtype), record):
            it.at = batch.at = value
        batch.at = [record] * 2
        assert (b"", "", b"", 0, 7) == (it.at.a, it.at.b, it.at.c, it.at.z.size, it.at.n)
        for i, wrong in enumerate((b"\0", "x", b"\0", [1.0, 2.0])):
            with pytest.raises((jitslab.FieldRangeError, jitslab.ArrayError), match="^field 'at"):
                it.at = (*record[:i], wrong, *record[i + 1 :])
        assert [7, 7, 7, 1, 1, 1] == [it.at.n, *batch.at["n"], it.after, *batch.after]


def test_user_dtypes_are_numbers_where_their_values_are():
    """What can be read can be written: rounded as the dtype rounds, but never to infinity, to NaN or to its largest number."""
    ml_dtypes = pytest.importorskip("ml_dtypes", "0.5")
    names = "bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "int4"
    dtype = np.dtype([(name, getattr(ml_dtypes, name)) for name in names] + [("f", "f4"), ("i", "i2"), ("raw", "V2")])
    cache = jitslab.SlabCache("users", dtype, capacity=4, init="zero")
    with cache, cache.allocate() as it, cache.allocate_many(2) as batch:
        it.bfloat16, it.float8_e4m3fn, it.float8_e5m2, it.float4_e2m1fn, it.int4 = 2.7, 0.1, np.float32(0.1), 0.4, -8
        assert (2.703125, 0.1015625, 0.09375, 0.5, -8) == tuple(it[name] for name in names)
        batch.bfloat16 = np.array([1.0, 2.0], "f4")
        batch.f = batch.bfloat16
        batch.i = batch.int4 = np.array([3, -3], ml_dtypes.int4)
        assert ([1, 2], [3, -3], [3, -3]) == (batch.f.tolist(), batch.i.tolist(), batch.int4.tolist())
        before = it.record.tobytes()
        for name, value in (
            ("bfloat16", 3.4e38 * 2**120),
            ("float8_e4m3fn", 500.0),
            ("float8_e4m3fn", np.inf),
            ("float8_e5m2", 1e6),
            ("float4_e2m1fn", 100.0),
            ("float4_e2m1fn", np.nan),
            ("int4", 8),
            ("int4", np.uint64(2**64 - 1)),
            ("int4", -9),
        ):
            with pytest.raises(jitslab.FieldRangeError, match=f"^field '{name}' takes a {name}, got "):
                it[name] = value
        for name, value in (
            ("int4", 1.0),
            ("bfloat16", "1"),
            ("bfloat16", b"ab"),
            ("raw", ml_dtypes.bfloat16(1)),
            ("i", ml_dtypes.bfloat16(1)),
        ):
            with pytest.raises(jitslab.FieldTypeError, match=f"^field '{name}' takes "):
                it[name] = value
        assert before == it.record.tobytes()


def test_user_dtype_of_a_standard_size_is_read_as_what_it_is():
    """Numbers of other packages that are called f4 by NumPy, too, are none of C's floats."""
    dtype = np.dtype([("r", rational), ("n", "i8")])
    with jitslab.SlabCache("rational", dtype, capacity=4, init="zero") as cache, cache.allocate() as it:
        it.r, it.n = rational(1, 3), 5
        assert (rational(1, 3), 5) == (it.r, it.n)
        for value in (1, 0.5, "1/3", np.void(b"12345678"), None):
            with pytest.raises(jitslab.FieldTypeError, match="^field 'r' takes a rational, got "):
                it.r = value
        assert rational(1, 3) == it.r
