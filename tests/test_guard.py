"""Guards: fields as attributes, what is assigned is checked, liveness at every access, and whose record it is."""

import contextlib
import copy
import ctypes
import datetime
import decimal
import fractions
import gc
import inspect
import operator
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
import weakref
from pathlib import Path

import numba
import numpy as np
import pytest
from program import run_python

import jitslab
from jitslab import guard as guard_module
from jitslab import guard_class

PACKET = np.dtype(
    [
        ("id", "u1"),
        ("count", "i8"),
        ("weight", "f8"),
        ("small", "f4"),
        ("ok", "?"),
        ("header", "u1", (4,)),
        ("at", [("x", "f8"), ("deep", [("n", "u2"), ("when", "M8[s]")])]),
        ("free", "i4"),
        ("big", ">i4"),
        ("half", "f2"),
        ("wide", "c16"),
        ("tag", "S4"),
        ("text", "U3"),
        ("when", "M8[ns]"),
        ("took", "m8[ms]"),
        ("raw", "V3"),
        ("u8", "u8"),
        ("parts", [("a", "i2"), ("b", "f4")], (2,)),
    ]
)
INTEGERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]


@pytest.fixture
def cache():
    """Return a cache of 20 packets, zeroed."""
    with jitslab.SlabCache("packets", PACKET, capacity=20, init="zero") as cache:
        yield cache


@pytest.fixture
def it(cache):
    """Return the guard of a packet."""
    it = cache.allocate()
    yield it
    if repr(it).endswith(("freed>", "released>", "closed>", "freed by another>")):
        return
    it.free()


def refused(exception, message, function, *arguments):
    """Assert that a call raises exactly this."""
    with pytest.raises(exception) as caught:
        function(*arguments)

    assert exception is type(caught.value)
    assert message == str(caught.value)
    return caught.value


def gone(why="freed"):
    """Return the message of a guard that owns no record."""
    return f"this guard of cache 'packets' has no record any more: {why}"


@numba.njit
def use_null(cache):
    """Read the record of a handle that is none: a fault."""
    cache.record(0)


# --- Fields ---


def test_fields_are_read_and_written_in_place(it):
    """What is written through the guard stands in the record, and the other way round."""
    it.id, it.count, it.weight, it.small, it.ok = 42, -(1 << 63), 0.1, 0.5, True
    record = it.record

    assert (42, -(1 << 63), 0.1, 0.5, True) == (record["id"], record["count"], record["weight"], record["small"], record["ok"])
    record["count"] = 7
    record["ok"] = False
    assert (7, False) == (it.count, it.ok)
    assert [int, int, float, float, bool] == [type(getattr(it, n)) for n in ("id", "count", "weight", "small", "ok")]


@pytest.mark.parametrize("code", INTEGERS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_integers_of_every_size_hold_their_limits_and_no_more(code, order):
    """The least and the most go in and come out; one further is refused, and nothing is written."""
    dtype = np.dtype([("pad", "u1"), ("n", order + code), ("after", "u1")])  # not aligned
    least, most = int(np.iinfo(code).min), int(np.iinfo(code).max)
    with jitslab.SlabCache("integers", dtype, capacity=4, init="zero") as cache, cache.allocate() as it:
        for value in (least, most, 0, 1, True, np.int8(3), np.array(4)):
            it.n = value
            assert int(value) == it.n == it.record["n"]
            assert int is type(it.n)
        for value in (least - 1, most + 1, 1 << 70, -(1 << 70)):
            refused(
                jitslab.FieldRangeError, f"field 'n' takes an integer {least} .. {most}, got {value}", setattr, it, "n", value
            )
        assert (0, 4, 0) == it.record.item()


@pytest.mark.parametrize("code", ["f2", "f4", "f8", ">f4", ">f8"])
def test_floats_round_and_keep_infinity_and_nan(code):
    """What a float of that size can be, a field can hold; what rounds to infinity is refused."""
    dtype = np.dtype([("pad", "u1"), ("x", code)])
    with jitslab.SlabCache("floats", dtype, capacity=4) as cache, cache.allocate() as it:
        most = float(np.finfo(code).max)
        for value in (0.1, -0.0, most, -most, float("inf"), -float("inf"), 7, True, np.float32(0.25), np.int8(3), np.float64(1)):
            it.x = value
            assert float(np.dtype(code).type(float(value))) == it.x
            assert float is type(it.x)
        it.x = float("nan")
        assert it.x != it.x
        it.x = 5.0
        for value in (1 << 2000, -(1 << 2000)) if code.endswith("8") else (most * 1.01, -most * 2, 1 << 2000):
            with pytest.raises(jitslab.FieldRangeError, match=r"^field 'x' takes a float of \d\d bits, got "):
                it.x = value
        assert 5.0 == it.x


def test_float_just_above_the_largest_rounds_as_numpy_rounds(it):
    """A double that rounds to the largest float32 is held; the next one that rounds to infinity is not."""
    most = float(np.finfo("f4").max)
    it.small = most * (1 + 2**-26)
    assert most == it.small
    with pytest.raises(jitslab.FieldRangeError):
        it.small = most * (1 + 2**-24)


def test_other_kinds_come_out_as_they_went_in(it):
    """Bytes, text, dates, complex numbers and raw bytes."""
    values = {
        "wide": 1.5 - 2j,
        "tag": b"abcd",
        "text": "äöü",
        "when": np.datetime64("2024-05-06T07:08:09.123456789"),
        "took": np.timedelta64(5, "ms"),
        "raw": b"\x01\x00\x02",
        "half": 0.5,
        "big": -2,
    }
    for name, value in values.items():
        setattr(it, name, value)
        assert value == getattr(it, name)
        assert type(value) is type(getattr(it, name))
    it.weight = fractions.Fraction(1, 4)
    assert 0.25 == it.weight
    it.when = datetime.datetime(2020, 1, 2, 3, 4, 5)
    assert np.datetime64("2020-01-02T03:04:05") == it.when
    it.took = datetime.timedelta(seconds=2)
    assert np.timedelta64(2000, "ms") == it.took
    it.took = np.timedelta64(1, "s")
    assert np.timedelta64(1000, "ms") == it.took
    it.when = np.datetime64("NaT", "ns")
    assert np.isnat(it.when)


def test_sub_arrays_are_writable_views(it):
    """A view writes to the record; assigning broadcasts."""
    view = it.header
    view[1] = 9
    view.fill(3)
    assert [3, 3, 3, 3] == it.record["header"].tolist()
    it.header = [1, 2, 3, 4]
    it.header[0] = 7
    assert [7, 2, 3, 4] == view.tolist()
    it.header = 5
    assert [5] * 4 == view.tolist()
    it.header = np.arange(4)
    assert [0, 1, 2, 3] == view.tolist()
    it.parts[1]["a"] = 6
    assert 6 == it.record["parts"][1]["a"]
    it.parts = (1, 2.5)
    assert [(1, 2.5), (1, 2.5)] == it.parts.tolist()


def test_nested_records_are_views_with_attributes(it):
    """Two levels down, fields are read, written and checked as at the top."""
    it.at.x = 2.5
    it.at.deep.n = 65535
    it.at.deep.when = np.datetime64("2020-01-01")
    deep = it.at.deep

    assert (2.5, 65535) == (it.record["at"]["x"], it.record["at"]["deep"]["n"])
    assert 65535 == it["at"]["deep"]["n"] == deep.n == deep["n"]
    refused(jitslab.FieldRangeError, "field 'n' takes an integer 0 .. 65535, got 65536", setattr, deep, "n", 65536)
    assert "<SlabRecordView .at.deep: n=65535, when=np.datetime64('2020-01-01T00:00:00')>" == repr(deep).replace("numpy.", "np.")
    it.at = (1, (2, np.datetime64("2021-01-01")))
    assert (1.0, 2) == (it.at.x, deep.n)
    it.at = {"x": 3, "deep": {"n": 4, "when": np.datetime64("2021-01-01")}}
    assert (3.0, 4) == (it.at.x, deep.n)
    with it.cache.allocate() as other:
        other.at = it.at
        assert (3.0, 4) == (other.at.x, other.at.deep.n)
    refused(jitslab.FieldRangeError, "field 'at.deep.n' takes an integer 0 .. 65535, got -1", setattr, it, "at", (1, (-1, None)))
    assert (3.0, 4) == (it.at.x, deep.n)
    it.free()
    refused(jitslab.StaleHandleError, gone(), getattr, deep, "n")
    refused(jitslab.StaleHandleError, gone(), setattr, deep, "n", 1)
    assert "<SlabRecordView .at.deep: freed>" == repr(deep)


def test_field_named_as_a_method_is_by_name_only(it):
    """The attribute is the method; the field is guard["free"]."""
    it["free"] = 5

    assert 5 == it["free"] == it.record["free"]
    assert callable(it.free)
    text = "'free' is a name of the guard itself; write guard['free'] for the field"
    refused(jitslab.FieldNameError, text, setattr, it, "free", 3)


@pytest.mark.parametrize("name", ["handle", "record", "cache", "release", "_handle", "_cache", "__class__", "__del__", "_fields"])
def test_no_field_name_changes_a_guard(name):
    """Whatever a field is called, the guard works, and the field is there by name."""
    with jitslab.SlabCache("names", np.dtype([(name, "i8")]), capacity=4) as cache:
        with cache.allocate() as it:
            it[name] = 77
            assert 77 == it[name] == it.record[name]
            assert it.handle in cache
            with pytest.raises(jitslab.FieldNameError):
                setattr(it, name, 3)
        assert 0 == len(cache)


@pytest.mark.parametrize("name", ["", "a b", "a.b", "ä", "if", "a\0b", "\ud800"])
def test_any_name_is_a_field(name):
    """Names that are no identifiers are fields by name, and by getattr if they can be printed."""
    dtype = np.dtype({"names": [name], "formats": ["i4"]})
    with jitslab.SlabCache("names", dtype, capacity=4) as cache, cache.allocate() as it:
        it[name] = 5
        it[name] += 1
        assert 6 == it[name] == it.record[0]
        if name.isprintable():
            setattr(it, name, 7)
            assert 7 == getattr(it, name)


def test_aliased_dtypes_share_a_class_and_others_do_not(cache):
    """Each dtype's class of guards is made once."""
    with (
        jitslab.SlabCache("same", np.dtype(PACKET.descr[:1]), capacity=4) as a,
        jitslab.SlabCache("same", np.dtype(PACKET.descr[:1]), capacity=9) as b,
        a.allocate() as x,
        b.allocate() as y,
        cache.allocate() as z,
    ):
        assert type(x) is type(y)
        assert type(x) is not type(z)


# --- What is refused ---

BAD_VALUES = {
    "above": ("id", 300, jitslab.FieldRangeError, "field 'id' takes an integer 0 .. 255, got 300"),
    "below": ("id", -1, jitslab.FieldRangeError, "field 'id' takes an integer 0 .. 255, got -1"),
    "float": ("id", 1.5, jitslab.FieldTypeError, "field 'id' takes an integer 0 .. 255, got float 1.5"),
    "whole float": ("id", 1.0, jitslab.FieldTypeError, "field 'id' takes an integer 0 .. 255, got float 1.0"),
    "nan": ("id", float("nan"), jitslab.FieldTypeError, "field 'id' takes an integer 0 .. 255, got float nan"),
    "inf": ("id", float("inf"), jitslab.FieldTypeError, "field 'id' takes an integer 0 .. 255, got float inf"),
    "str": ("id", "1", jitslab.FieldTypeError, "field 'id' takes an integer 0 .. 255, got str '1'"),
    "bytes": ("id", b"1", jitslab.FieldTypeError, "field 'id' takes an integer 0 .. 255, got bytes b'1'"),
    "None": ("id", None, jitslab.FieldTypeError, "field 'id' takes an integer 0 .. 255, got NoneType None"),
    "list": ("id", [1], jitslab.ArrayError, "field 'id' takes an array of shape (), got one of shape (1,)"),
    "ragged": ("header", [[1], [2, 3]], jitslab.FieldTypeError, None),
    "big": ("u8", 1 << 64, jitslab.FieldRangeError, f"field 'u8' takes an integer 0 .. {2**64 - 1}, got {1 << 64}"),
    "complex": ("weight", 1j, jitslab.FieldTypeError, "field 'weight' takes a float of 64 bits, got complex 1j"),
    "str into float": ("weight", "nan", jitslab.FieldTypeError, "field 'weight' takes a float of 64 bits, got str 'nan'"),
    "None into float": ("weight", None, jitslab.FieldTypeError, "field 'weight' takes a float of 64 bits, got NoneType None"),
    "overflow": ("small", 1e39, jitslab.FieldRangeError, "field 'small' takes a float of 32 bits, got 1e+39"),
    "half": ("half", 1e5, jitslab.FieldRangeError, "field 'half' takes a float of 16 bits, got 100000.0"),
    "huge": ("weight", 10**400, jitslab.FieldRangeError, None),
    "number into bool": ("ok", 1, jitslab.FieldTypeError, "field 'ok' takes a bool, got int 1"),
    "big-endian": ("big", 1 << 31, jitslab.FieldRangeError, None),
    "long bytes": ("tag", b"abcde", jitslab.FieldRangeError, "field 'tag' takes at most 4 bytes, got b'abcde'"),
    "NUL bytes": ("tag", b"abcd\0", jitslab.FieldRangeError, "field 'tag' takes at most 4 bytes, got b'abcd\\x00'"),
    "str into bytes": ("tag", "abc", jitslab.FieldTypeError, "field 'tag' takes at most 4 bytes, got str 'abc'"),
    "number into bytes": ("tag", 5, jitslab.FieldTypeError, "field 'tag' takes at most 4 bytes, got int 5"),
    "long str": ("text", "abcd", jitslab.FieldRangeError, "field 'text' takes a str of at most 3, got 'abcd'"),
    "bytes into str": ("text", b"abc", jitslab.FieldTypeError, "field 'text' takes a str of at most 3, got bytes b'abc'"),
    "number into date": ("when", 5, jitslab.FieldTypeError, "field 'when' takes a datetime64[ns], got int 5"),
    "str into date": ("when", "2020", jitslab.FieldTypeError, "field 'when' takes a datetime64[ns], got str '2020'"),
    "date out of range": ("when", np.datetime64("9999-01-01"), jitslab.FieldRangeError, None),
    "too fine a time": ("took", np.timedelta64(1500, "us"), jitslab.FieldRangeError, None),
    "short raw bytes": ("raw", b"ab", jitslab.FieldRangeError, "field 'raw' takes 3 raw bytes, got b'ab'"),
    "shape": ("header", [1, 2, 3], jitslab.ArrayError, "field 'header' takes an array of shape (4,), got one of shape (3,)"),
    "element": ("header", [1, 2, 3, 256], jitslab.FieldRangeError, "field 'header' takes an integer 0 .. 255, got 256"),
    "float elements": ("header", [1.0] * 4, jitslab.FieldTypeError, None),
    "huge element": ("header", [1, 2, 3, 1 << 70], jitslab.FieldRangeError, None),
    "None among": ("header", [1, 2, 3, None], jitslab.FieldTypeError, None),
    "years into dates": ("when", np.datetime64(1 << 60, "Y"), jitslab.FieldRangeError, None),
    "time zone": ("when", datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc), jitslab.FieldTypeError, None),
    "generator": ("header", (i for i in range(4)), jitslab.FieldTypeError, None),
    "fraction into integer": ("id", fractions.Fraction(1), jitslab.FieldTypeError, None),
    "decimal": ("weight", decimal.Decimal(1), jitslab.FieldTypeError, None),
    "nested short": ("at", (1,), jitslab.FieldTypeError, "field 'at' takes a record of x, deep, got tuple (1,)"),
    "nested names": ("at", {"x": 1}, jitslab.FieldTypeError, "field 'at' takes a record of x, deep, got dict {'x': 1}"),
    "nested number": ("at", 5, jitslab.FieldTypeError, "field 'at' takes a record of x, deep, got int 5"),
}


@pytest.mark.parametrize("crime", BAD_VALUES)
def test_value_that_does_not_fit_is_refused_and_nothing_written(it, crime):
    """By its own class, by name; the record is as it was, byte for byte."""
    name, value, exception, text = BAD_VALUES[crime]
    before = it.record.tobytes()

    for assign in (setattr, type(it).__setitem__):
        with pytest.raises(exception) as caught:
            assign(it, name, value)
        assert exception is type(caught.value)
        assert text is None or text == str(caught.value)
        assert str(caught.value).startswith(f"field {name!r} takes ")
        assert isinstance(caught.value, jitslab.SlabError)
    assert before == it.record.tobytes()


def test_random_values_never_corrupt(it):
    """Whatever is assigned: it is held as NumPy would hold it, or refused by a SlabError; the neighbours stay."""
    rng = random.Random(3)
    pool = [0, 1, -1, 255, 256, 1 << 31, 1 << 63, -(1 << 63), 1 << 64, 1.5, 1e39, float("nan"), "x", b"x", None, True, 1j]
    pool += [
        np.float32(2),
        np.uint64(1 << 63),
        np.bool_(True),
        [1] * 4,
        (),
        {},
        np.zeros(4, "u1"),
        object(),
        np.datetime64(0, "s"),
    ]
    names = list(PACKET.names)
    for _ in range(3000):
        name, value = rng.choice(names), rng.choice(pool)
        others = {n: it.record[n].tobytes() for n in names if n != name}
        try:
            it[name] = value
        except jitslab.SlabError:
            pass
        assert others == {n: it.record[n].tobytes() for n in names if n != name}


def test_missing_field_names_those_that_are_near(it):
    """A misspelt field is refused when it is read, written, deleted or asked for by name."""
    text = "the record has no field 'wieght'; near it: 'weight'"
    refused(jitslab.FieldNameError, text, setattr, it, "wieght", 1.0)
    refused(jitslab.FieldNameError, text, delattr, it, "wieght")
    refused(jitslab.FieldNameError, text, it.__getitem__, "wieght")
    refused(jitslab.FieldNameError, text, it.__setitem__, "wieght", 1.0)
    refused(jitslab.FieldNameError, "the record has no field 'zzz'; it has 'x', 'deep'", setattr, it.at, "zzz", 1)
    refused(jitslab.FieldNameError, "the record has no field 'zzz'; it has 'x', 'deep'", it.at.__getitem__, "zzz")
    refused(jitslab.FieldNameError, "a field is named by a str, got int 3", it.__getitem__, 3)
    refused(jitslab.FieldTypeError, "field 'weight' cannot be deleted", delattr, it, "weight")
    with pytest.raises(AttributeError):
        it.nothing
    with pytest.raises(KeyError):
        it["nothing"]
    assert not hasattr(it, "nothing")
    assert 7 == getattr(it, "nothing", 7)


READ = """
import numpy as np, jitslab
cache = jitslab.SlabCache("packets", np.dtype([("weight", "f8"), ("at", [("deep", "f8")])]), capacity=20)
it = cache.allocate()
try:
    it{path}
finally:
    it.free()
"""


@pytest.mark.parametrize(("path", "near"), [(".wieght", "weight"), (".at.deeep", "deep")])
def test_missing_attribute_that_is_read_proposes_those_that_are_near(path, near, in_c):
    """By CPython itself when the error is shown, for guards in C; or in the message."""
    done = subprocess.run(
        [sys.executable, "-c", READ.format(path=path)],
        env={**os.environ, **FORM[in_c]},
        capture_output=True,
        text=True,
        timeout=60,
    )

    name = path.rsplit(".", 1)[1]
    proposal = f"has no attribute '{name}'. Did you mean: '{near}'?" if in_c else f"has no field '{name}'; near it: '{near}'"
    assert proposal in done.stderr


def test_internals_cannot_be_set(it):
    """What the C methods trust is not for writing; nor is the class, with whose fields others would be read."""
    with jitslab.SlabCache("other", np.dtype([("x", "i8", (1000,))]), capacity=4) as cache, cache.allocate() as other:
        for name, value in [
            ("_cache", None),
            ("_handle", "x"),
            ("_epoch", None),
            ("_entered", None),
            ("handle", 3),
            ("record", 4),
        ]:
            with pytest.raises(jitslab.FieldNameError):
                setattr(it, name, value)
            with pytest.raises((AttributeError, TypeError)):
                object.__setattr__(it, name, value)
        with pytest.raises((AttributeError, TypeError)):
            it.__class__ = type(other)
        with pytest.raises((AttributeError, TypeError)):
            object.__setattr__(it, "__class__", type(other))
        with pytest.raises((AttributeError, TypeError)):
            type(it).__dict__["weight"].__get__(other, type(other))
    assert isinstance(it, jitslab.SlabObjectGuard)


def test_every_way_to_set_an_attribute_is_checked(it):
    """The method, that of the class, and by name; also of a view.  That of `object` is refused by Python, as for any C type."""
    for target, name in ((it, "id"), (it.at.deep, "n")):
        for write in (setattr, type(target).__setattr__, lambda *a: a[0].__setattr__(*a[1:]), type(target).__setitem__):
            write(target, name, 7)
            assert 7 == getattr(target, name)
            with pytest.raises(jitslab.FieldRangeError):
                write(target, name, 1 << 20)
            assert 7 == target[name]
            setattr(target, name, 0)
        for delete in (delattr, type(target).__delattr__, lambda *a: a[0].__delattr__(*a[1:])):
            refused(jitslab.FieldTypeError, f"field {name!r} cannot be deleted", delete, target, name)
        for write, *value in ((object.__setattr__, 1 << 20), (object.__delattr__,)):
            with pytest.raises((TypeError, jitslab.FieldError)):
                write(target, name, *value)
        assert 0 == target[name]


def test_class_of_another_dtype_is_refused(it):
    """Whatever way it comes: its fields lie elsewhere."""
    dtype = np.dtype([("far", "i8", (1000,)), ("at", [("x", "i8")])])
    with jitslab.SlabCache("other", dtype, capacity=4) as cache, cache.allocate() as other:
        for target, cls in ((it, type(other)), (it.at, type(other.at)), (it, type(it.at)), (it, jitslab.SlabObjectGuard)):
            for assign in (setattr, lambda target, name, value: object.__dict__["__class__"].__set__(target, value)):
                with pytest.raises((AttributeError, TypeError)):
                    assign(target, "__class__", cls)


def test_guard_made_by_hand_is_refused_and_harmless(it):
    """Only a cache makes guards; one without a record is refused everywhere, and does not crash."""
    refused(jitslab.GuardError, "a guard is made by cache.allocate() or cache.adopt(handle)", jitslab.SlabObjectGuard)
    refused(jitslab.GuardError, "a guard is made by cache.allocate() or cache.adopt(handle)", type(it))
    refused(jitslab.GuardError, "a view of a nested record is made by reading a guard's field", type(it.at))
    for cls in (type(it), type(it.at)):
        empty = object.__new__(cls)
        for use in (lambda e: e.x, lambda e: e.weight, lambda e: e.free(), lambda e: e.__enter__(), lambda e: e.handle):
            with pytest.raises(AttributeError):
                use(empty)


# --- Whose record it is ---


def test_leaving_the_block_frees(cache):
    """Also by an exception, which goes on."""
    with cache.allocate() as it:
        handle = it.handle
        assert handle in cache
    assert handle not in cache
    with pytest.raises(ZeroDivisionError), cache.allocate() as it:
        1 / 0
    assert 0 == len(cache)
    assert "<SlabObjectGuard of 'packets': freed>" == repr(it)


USES = {
    "read": lambda it: it.weight,
    "write": lambda it: setattr(it, "weight", 1.0),
    "refused write": lambda it: setattr(it, "weight", "x"),
    "array": lambda it: it.header,
    "nested": lambda it: it.at,
    "by name": lambda it: it["weight"],
    "write by name": lambda it: it.__setitem__("weight", 1.0),
    "slow": lambda it: it.tag,
    "record": lambda it: it.record,
    "handle": lambda it: it.handle,
    "free": lambda it: it.free(),
    "release": lambda it: it.release(),
    "enter": lambda it: it.__enter__(),
}


@pytest.mark.parametrize("use", USES)
def test_every_use_after_free_is_refused(cache, use):
    """After free, after release, after the end of the block: none reaches the slot's next record."""
    guards = [cache.allocate() for _ in range(3)]
    guards[0].free()
    kept = guards[1].release()
    with guards[2]:
        pass
    others = cache.alloc_many(3)
    before = cache.gather(others).tobytes()

    for it, why in zip(guards, ("freed", "released", "freed"), strict=True):
        refused(jitslab.StaleHandleError, gone(why), USES[use], it)
    assert before == cache.gather(others).tobytes()
    assert kept in cache


@pytest.mark.parametrize("use", USES)
def test_record_freed_by_another_is_noticed(cache, use):
    """The generation is compared at every access."""
    it = cache.allocate()
    handle = it.handle
    cache.free(handle)
    again = cache.alloc()
    slot, cycle = handle & 0xFFFFFFFF, handle >> 32
    assert slot == again & 0xFFFFFFFF

    text = f"slot {slot} of handle {handle:#x} is live again (handle cycle {cycle}, slot cycle {cycle + 1})"
    refused(jitslab.StaleHandleError, text, USES[use], it)
    assert again in cache
    assert repr(it) in ("<SlabObjectGuard of 'packets': freed by another>", "<SlabObjectGuard of 'packets': freed>")


@pytest.mark.parametrize("use", USES)
def test_closed_cache_is_said(use):
    """After close every access says so; leaving the block does not."""
    cache = jitslab.SlabCache("packets", PACKET, capacity=20)
    view = None
    with cache.allocate() as it, cache.allocate() as other:
        view = it.header
        view[:] = 3
        cache.close()
        refused(jitslab.ClosedError, "cache 'packets' is closed", USES[use], other)
    assert "<SlabObjectGuard of 'packets': its cache is closed>" == repr(it)
    del it, other, cache
    gc.collect()
    view[:] = 5  # still mapped
    assert 4 == view.size


def test_leaving_the_block_says_that_another_freed(cache):
    """A record that was freed under the guard is an error of the program; but not in the place of another error."""
    with pytest.raises(jitslab.StaleHandleError), cache.allocate() as it:
        cache.free(it.handle)
    with pytest.raises(ZeroDivisionError), cache.allocate() as it:
        cache.free(it.handle)
        1 / 0
    assert 0 == len(cache)


def test_free_and_release_in_the_block_are_fine(cache):
    """Leaving the block then does nothing."""
    with cache.allocate() as it:
        it.free()
    with cache.allocate() as it:
        handle = it.release()
    assert handle in cache
    assert 1 == len(cache)
    with cache.adopt(handle) as it:
        assert handle == it.handle
    assert 0 == len(cache)


def test_block_is_entered_once(cache):
    """A guard that is in a block cannot be entered again, and the record is freed once."""
    it = cache.allocate()
    with it:
        refused(jitslab.GuardError, "this guard is in a with block already", it.__enter__)
        assert 1 == len(cache)
    refused(jitslab.StaleHandleError, gone(), it.__enter__)


def test_adopting_what_is_not_live_is_refused(cache):
    """Only a live record gets an owner."""
    handle = cache.alloc()
    cache.free(handle)
    with pytest.raises(jitslab.StaleHandleError):
        cache.adopt(handle)
    with pytest.raises(jitslab.NullHandleError):
        cache.adopt(jitslab.NULL)
    refused(jitslab.HandleTypeError, "a handle is an integer, got float", cache.adopt, 1.0)
    with cache.adopt(np.int64(cache.alloc())) as it:
        assert int is type(it.handle)


def test_full_cache_is_said(cache):
    """As `alloc` says it; and a fault in compiled code, too."""
    guards = [cache.allocate() for _ in range(20)]
    refused(jitslab.CacheFullError, "cache 'packets' has 20 of 20 records live, 1 more were asked for", cache.allocate)
    for it in guards:
        it.free()
    cache.close()
    refused(jitslab.ClosedError, "cache 'packets' is closed", cache.allocate)


def test_faults_of_compiled_code_are_said():
    """As `alloc` says them, before anything is allocated; a block that is left says nothing."""
    with jitslab.SlabCache("faulty", np.dtype([("x", "f8")]), capacity=20) as cache:
        with cache.allocate() as it:
            it.x = 1.0
            use_null(cache)
        assert 0 == len(cache)
        for allocate in (cache.allocate, lambda: cache.allocate_many(2)):
            use_null(cache)
            with pytest.raises(jitslab.FaultError):
                allocate()
            assert 0 == len(cache)
        assert 0 == cache.faults


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_are_refused(it, copying):
    """A record has one owner."""
    for thing in (it, it.at):
        with pytest.raises(jitslab.CopyError, match=r"^Slab\w+ cannot be (copied|pickled): "):
            copying(thing)
    assert 1 == len(it.cache)


def test_equal_to_itself_only(cache):
    """Guards are equal and hashed by identity, whatever their records hold."""
    with cache.allocate() as a, cache.allocate() as b:
        assert a == a
        assert a != b
        assert {a: 1, b: 2}[a] == 1
        assert weakref.ref(a)() is a


def test_completion_and_repr(it):
    """Fields are offered for completion; a repr is short."""
    assert set(PACKET.names) | {"handle", "record", "release", "cache"} <= set(dir(it))
    assert list(PACKET.names) == it._ipython_key_completions_()
    assert ["deep", "record", "x"] == [name for name in dir(it.at) if not name.startswith("_")]
    it.tag = b"abc"
    text = repr(it)
    assert text.startswith(
        "<SlabObjectGuard of 'packets': id=0, count=0, weight=0.0, small=0.0, ok=False, header=<uint8 4>, at=("
    )
    assert text.endswith(", ...>")
    assert len(text) < 300


# --- The collector, threads, fork, the end ---


def test_collected_guard_warns_and_frees(cache):
    """As a last resort; one that was freed, released, or whose record another freed, says nothing."""
    with pytest.warns(ResourceWarning, match=r"^never freed: <SlabObjectGuard of 'packets': id=9, "):
        it = cache.allocate()
        it.id = 9
        del it
        gc.collect()
    assert 0 == len(cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, b, c, d = (cache.allocate() for _ in range(4))
        a.free()
        b.release()
        cache.free(c.handle)
        with d:
            pass
        del a, b, c, d
        gc.collect()
    assert 1 == len(cache)


def test_cycle_of_guards_is_collected(cache):
    """A guard in a cycle is freed by the collector."""
    cycle = [cache.allocate()]
    cycle.append(cycle)
    with pytest.warns(ResourceWarning):
        del cycle
        gc.collect()
    assert 0 == len(cache)


def test_references_are_balanced(cache):
    """Nothing is leaked or dropped twice by a million paths, refused ones among them."""
    it = cache.allocate()
    objects = [cache, type(it), type(it.at), it, PACKET]

    def round_():
        with cache.allocate() as other:
            other.count, other.weight, other.ok, other.id = 1 << 40, 0.3, True, 3
            other.count, other.weight, other.ok, other.at.x, other.at.deep.n, other.handle, other.header
            for name, value in (("id", 300), ("weight", None), ("ok", 3), ("count", 1 << 70), ("nothing", 1), ("small", 1e39)):
                try:
                    setattr(other, name, value)
                except jitslab.SlabError:
                    pass
            try:
                other.nothing
            except AttributeError:
                pass
        for use in (other.free, other.__enter__):
            try:
                use()
            except jitslab.SlabError:
                pass
        try:
            other.weight
        except jitslab.SlabError:
            pass
        cache.adopt(cache.allocate().release()).free()

    for _ in range(300):
        round_()
    gc.collect()
    counts, blocks = [sys.getrefcount(o) for o in objects], sys.getallocatedblocks()
    for _ in range(3000):
        round_()
    gc.collect()

    assert counts == [sys.getrefcount(o) for o in objects]
    assert abs(sys.getallocatedblocks() - blocks) < 500
    it.free()
    cache.check()


def test_collector_at_every_allocation(cache):
    """With the collector run all the time, guards in cycles among them, every record is given back."""
    old = gc.get_threshold()
    gc.set_threshold(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            for i in range(2000):
                with cache.allocate() as it:
                    it.count = i
                    assert i == it.count
                    assert it.at.x == 0.0
                if i % 10 == 0:
                    cycle = [cache.allocate()]
                    cycle.append(cycle)
                    del cycle
    finally:
        gc.set_threshold(*old)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert 0 == len(cache)
    cache.check()


def test_guard_works_in_other_threads(cache):
    """Any thread reads, writes and frees; of those that free at once one wins, and the others get the error."""
    for _ in range(50):
        it = cache.allocate()
        barrier, outcomes = threading.Barrier(4), []

        def work(it=it, barrier=barrier, outcomes=outcomes):
            it.count = 5
            assert 5 == it.count
            barrier.wait()
            try:
                it.free()
                outcomes.append("freed")
            except jitslab.StaleHandleError:
                outcomes.append("refused")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ["freed", "refused", "refused", "refused"] == sorted(outcomes)
    assert 0 == len(cache)


FORK = """
import os, gc, warnings
warnings.simplefilter("error")
import numpy as np, jitslab
cache = jitslab.SlabCache("forked", np.dtype([("n", "i8"), ("sub", [("x", "f8")])]), capacity=50)
batch = cache.allocate_many(5)
batch.n = 3
loose = cache.allocate()
loose.n = 9
held = cache.allocate()
with cache.allocate() as it:
    it.n = 7
    handle = it.handle
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads
        pid = os.fork()
    if pid == 0:
        assert it.n == 7 and it.handle == handle and loose.n == 9 and batch.n.tolist() == [3] * 5
        it.n = 8  # the child's copy
if pid == 0:
    assert handle in cache and it.n == 8  # leaving the block did nothing here
    with batch:
        pass
    del loose, batch
    gc.collect()
    assert len(cache) == 8, len(cache)
    held.free()  # on purpose: the child's copy
    assert len(cache) == 7
    with cache.allocate() as mine:  # the child's own
        mine.n = 1
    assert len(cache) == 7
    cache.check()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert handle not in cache and len(cache) == 7 and loose.n == 9 and batch.n.tolist() == [3] * 5
loose.free(); batch.free(); held.free()
cache.check()
print("fine")
"""


def test_child_of_fork_frees_nothing(in_c):
    """Leaving a block and being collected do nothing in a child; access reads its copy, and `free` frees it there."""
    assert "fine\n" == run_python(FORK, **FORM[in_c])


END = """
import sys
import numpy as np, jitslab
cache = jitslab.SlabCache("ends", np.dtype([("n", "i8"), ("sub", [("x", "f8")])]), capacity=50)
one, many = cache.allocate(), cache.allocate_many(3)
import builtins, collections
builtins.late = cache.allocate()
collections.later = [cache.allocate(), one.sub]
class Late:
    def __init__(self): self.it = cache.allocate()
    def __del__(self):
        self.it.n = 3
        sys.stdout.write(f"{self.it.n}\\n") if sys and sys.stdout else None
builtins.latest = Late()
cycle = [cache.allocate()]; cycle.append(cycle)
"""


def test_interpreter_ends_in_silence_with_live_guards(in_c):
    """No crash, no noise, wherever the guards are kept."""
    assert run_python(END, "-X", "dev", "-W", "error", **FORM[in_c]) in ("", "3\n")


FORM = {True: {"JITSLAB_PYTHON_GUARDS": ""}, False: {"JITSLAB_PYTHON_GUARDS": "1"}}  # environments


@pytest.fixture(params=[True, False], ids=["in C", "in Python"])
def in_c(request):
    """Whether guards are in C."""
    return request.param


def test_guards_are_in_c_where_they_can_be(cache, it):
    """On this interpreter the C methods are there; or this is the run without them."""
    kinds = {type(inspect.getattr_static(it, name)).__name__ for name in ("weight", "free")}

    expected = {"getset_descriptor", "method_descriptor"} if guard_class.IN_C else {"property", "function"}
    assert expected == kinds
    assert "free" in (type(it).free.__doc__ or "").lower()


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="guards are in C on CPython")
@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="guards in C need the GIL")
def test_guards_can_be_in_c():
    """So they are on every CPython with a GIL."""
    assert "True\n" == run_python("from jitslab import guard_class\nprint(guard_class.IN_C)", **FORM[True])


@pytest.mark.skipif(not guard_class.IN_C, reason="this is the run without C methods")
def test_everything_here_holds_without_c_methods():
    """Where C methods cannot be made, the same tests pass on the Python methods."""
    here = Path(__file__)
    arguments = [str(here), "-q", "-x", "-p", "no:cacheprovider", "-k", "not child_of_fork and not interpreter_ends"]
    text = f"import sys, pytest\nsys.path.insert(0, {str(here.parent)!r})\nsys.exit(pytest.main({arguments!r}))"

    assert re.search(r"\[100%\]", run_python(text, **FORM[False]))


def test_numpy_scalars_and_names_are_as_python_numbers_and_attributes(it):
    """Written by name or by attribute, as NumPy's scalars or as Python's: the same is held, the same is refused."""
    for scalar in (
        np.int8(-3),
        np.uint64(7),
        np.int64(200),
        np.float32(0.5),
        np.float64(1e300),
        np.timedelta64(3, "ms"),
        np.longdouble(1.5),
    ):
        for name in ("id", "count", "u8", "big", "weight", "small", "half", "ok", "tag"):
            outcomes = []
            for write in (setattr, type(it).__setitem__):
                it.record[name] = 0
                try:
                    write(it, name, scalar)
                    outcomes.append(it[name])
                except jitslab.FieldError as error:
                    outcomes.append(type(error))
                    assert 0 == it.record[name] or b"0" == it.record[name]
            assert outcomes[0] == outcomes[1]
            fits = (isinstance(scalar, np.integer) and not isinstance(scalar, np.timedelta64), isinstance(scalar, np.floating))
            if name in ("ok", "tag") or not any(fits) or (fits[1] and name not in ("weight", "small", "half")):
                assert jitslab.FieldTypeError is outcomes[0]
            elif outcomes[0] is not jitslab.FieldRangeError:
                assert scalar == outcomes[0] == getattr(it, name)
    text = "field 'id' takes an integer 0 .. 255, got 300"
    refused(jitslab.FieldRangeError, text, setattr, it, "id", np.int64(300))
    it.free()
    refused(jitslab.StaleHandleError, gone(), setattr, it, "id", np.int64(3))
    refused(jitslab.StaleHandleError, gone(), it.__getitem__, "id")
    refused(jitslab.StaleHandleError, gone(), it.__setitem__, "id", 3)


RECORDS = {  # with what comes of them: the records, or the shape that is refused
    "none": ([], (0,)),
    "one for all": ([(1, 2.0)], [(1, 2.0)] * 3),
    "one short": ([(1, 2.0)] * 2, (2,)),
    "all": ([(1, 2.0), (3, 4.0), {"a": 5, "b": 6}], [(1, 2.0), (3, 4.0), (5, 6.0)]),
    "one long": ([(1, 2.0)] * 4, (4,)),
}


@pytest.mark.parametrize("many", RECORDS)
def test_lists_of_records_are_as_long_as_the_field(many):
    """Or of one, for all: in sub-arrays, in batches, and in sub-arrays of batches."""
    value, expected = RECORDS[many]
    part = np.dtype([("a", "i2"), ("b", "f4")])
    dtype = np.dtype([("one", part), ("parts", part, (3,)), ("square", part, (2, 3))])
    cache = jitslab.SlabCache("lists", dtype, capacity=9, init="zero")
    with cache, cache.allocate() as it, cache.allocate_many(3) as three, cache.allocate_many(2) as two:
        if isinstance(expected, tuple):
            text = f"takes an array of shape (3,), got one of shape {expected}"
            for guard, field in ((it, "parts"), (three, "one"), (two, "parts"), (three, "square"), (it, "square")):
                refused(jitslab.ArrayError, f"field {field!r} {text}", setattr, guard, field, value)
            assert bytes(dtype.itemsize * 6) == it.record.tobytes() + two.records.tobytes() + three.records.tobytes()
            return
        it.parts = three.one = two.parts = it.square = value
        two.square = [[value, value], [value, value]]
        assert expected == it.parts.tolist() == three.one.tolist()
        assert [expected] * 2 == two.parts.tolist() == it.square.tolist()
        assert [[expected] * 2] * 2 == two.square.tolist()
        with pytest.raises(jitslab.FieldTypeError):
            it.parts = [value] * 3


def test_values_that_numpy_would_change_are_refused():
    """Infinite parts beside a NaN, masked elements, years counted in seconds, integers too long to print, dates without unit."""
    dtype = np.dtype(
        [("c", "c8"), ("n", "i4"), ("pair", "f4", (2,)), ("s", "m8[s]"), ("y", "M8"), ("at", [("x", "f8")]), ("m", "m8")]
    )
    nan, inf = float("nan"), float("inf")
    with jitslab.SlabCache("changed", dtype, capacity=4, init="zero") as cache, cache.allocate() as it:
        for value in (complex(nan, 1e39), complex(1e39, nan), complex(0, 1e39), 1e39):
            refused(
                jitslab.FieldRangeError, f"field 'c' takes a complex number of 64 bits, got {value!r}", setattr, it, "c", value
            )
        masked = np.ma.array([(1.5,)], dtype["at"], mask=[(True,)])
        for name, value in (("n", np.ma.masked), ("pair", np.ma.array([1, 2], mask=[0, 1])), ("at", masked[0]), ("at", masked)):
            with pytest.raises(jitslab.FieldTypeError, match="got an array with masked elements; fill them$"):
                it[name] = value
        for value in (np.timedelta64(1, "Y"), np.timedelta64(400, "Y"), np.timedelta64(1, "M")):
            with pytest.raises(jitslab.FieldRangeError, match=r"^field 's' takes a timedelta64\[s\], got "):
                it.s = value
        for name, value in (("y", np.datetime64("2020")), ("m", np.timedelta64(1, "s"))):
            with pytest.raises(jitslab.FieldRangeError, match="^field '.' takes a (date|timedelta)"):
                it[name] = value
        huge = 10**5000
        text = "field 'n' takes an integer -2147483648 .. 2147483647, got int of 16610 bits"
        refused(jitslab.FieldRangeError, text, setattr, it, "n", huge)
        with pytest.raises(jitslab.FieldRangeError, match="got <Fraction instance"):
            it.c = fractions.Fraction(huge)
        with pytest.raises(jitslab.FieldTypeError, match=r"got list \[int of 16610 bits\]$"):
            it.at = [huge]
        with pytest.raises(jitslab.FieldNameError, match="got int of 16610 bits$"):
            it[huge]
        assert bytes(dtype.itemsize) == it.record.tobytes()
        for value in (complex(nan, inf), complex(-inf, nan), complex(nan, 1.5)):
            it.c = value
            assert repr(value) == repr(it.c)
        it.pair, it.s = np.ma.array([1, 2], mask=[0, 0]), np.timedelta64(1, "W")
        assert ([1, 2], np.timedelta64(7, "D")) == (it.pair.tolist(), it.s)


def test_dtype_that_is_renamed_afterwards_changes_no_cache():
    """The caller's dtype, and one nested in it, are the caller's; the cache has its own, links and all."""
    inner = np.dtype([("a", "i4"), ("b", "f2")])
    dtype = np.dtype([("ab", "f2"), ("ba", "f2"), ("at", inner), ("next", jitslab.link("nodes"))], align=True)
    with jitslab.SlabCache("renamed", dtype, capacity=4, init="zero") as cache, cache.allocate() as it:
        dtype.names = ("ba", "ab", "at", "next")
        inner.names = ("p", "q")
        it.ab, it.at.b = 1, 2
        assert (1, 0, 2) == (it.ab, it.ba, it.at.b)
        assert (("ab", "ba", "at", "next"), ("a", "b")) == (cache.dtype.names, cache.dtype["at"].names)
        assert {("next",): "nodes"} == jitslab.links_of(cache.dtype)
        assert cache.dtype.isalignedstruct


def test_names_that_are_near_are_looked_for_when_they_are_shown(it, monkeypatch):
    """Not by every hasattr."""
    looked = []
    monkeypatch.setattr("difflib.get_close_matches", lambda *arguments: looked.append(arguments) or ["weight"])
    assert not hasattr(it, "wieght")
    assert [] == looked
    with pytest.raises(jitslab.FieldNameError) as caught:
        it.wieght = 1
    assert [] == looked
    assert (
        "the record has no field 'wieght'; near it: 'weight'"
        == str(caught.value)
        == str(pickle.loads(pickle.dumps(caught.value)))
    )
    assert 2 == len(looked)


def test_more_than_there_is_room_for_is_refused_at_once(cache, monkeypatch):
    """Whatever the number: the handles alone would fill the memory."""
    for n in (1 << 32, 1 << 31):
        text = f"cache 'packets' has 0 of 20 records live, {n} more were asked for"
        refused(jitslab.CacheFullError, text, cache.allocate_many, n)
        refused(jitslab.CacheFullError, text, cache.alloc_many, n)

    def no_memory(*arguments):
        raise MemoryError

    monkeypatch.setattr("numpy.empty", no_memory)
    refused(jitslab.CacheFullError, "cache 'packets' has 0 of 20 records live, 21 more were asked for", cache.alloc_many, 21)
    assert 0 == len(cache)


def test_batch_has_no_slices(cache):
    """It says what there is instead."""
    with cache.allocate_many(3) as batch:
        text = "batch[i] is one record; of several, batch.records[i:k] are copies"
        for key in (slice(0, 2), [0, 1], np.array([0, 1])):
            refused(jitslab.FieldNameError, text, batch.__getitem__, key)


def test_guard_that_is_collected_is_freed_before_it_says_so(cache, monkeypatch):
    """Whatever is done with it then finds nothing to free, and whatever goes wrong then loses nothing."""
    seen = []

    def warn(text, category, *, source, stacklevel):
        seen.append((text, len(cache), weakref.ref(source)))
        refused(jitslab.StaleHandleError, gone(), source.free)

    monkeypatch.setattr(guard_module.warnings, "warn", warn)
    it = cache.allocate()
    it.id = 9
    del it
    (text, live, reference), *more = seen
    gc.collect()  # the traceback of the refusal had it
    assert ([], 0, None) == (more, live, reference())
    assert text.startswith("never freed: <SlabObjectGuard of 'packets': id=9, count=0, ")


DAY = datetime.timedelta(days=1)
TICK = datetime.timedelta(microseconds=1)
TIMES = np.dtype(
    [(unit, f"m8[{unit}]") for unit in ("us", "ms", "s", "D")] + [("pair", "m8[us]", (2,)), ("pairs", "m8[s]", (2,))]
)
DURATIONS = {  # with the units that hold them
    "longest": (datetime.timedelta.max, ()),
    "shortest": (datetime.timedelta.min, ("ms", "s", "D")),
    "last day in microseconds": (106751991 * DAY, ("us", "ms", "s", "D")),
    "first day after": (106751992 * DAY, ("ms", "s", "D")),
    "last before": (-106751991 * DAY, ("us", "ms", "s", "D")),
    "first before": (-106751992 * DAY, ("ms", "s", "D")),
    "most": (((1 << 63) - 1) * TICK, ("us",)),
    "one more": ((1 << 63) * TICK, ()),
    "least": (-((1 << 63) - 1) * TICK, ("us",)),
    "near the least": (-9223372036854 * 10**6 * TICK, ("us", "ms", "s")),
    "milliseconds": (110000000 * DAY + 5000 * TICK, ("ms",)),
    "seconds": (2 * 10**6 * TICK, ("us", "ms", "s")),
    "ticks": (1 * TICK, ("us",)),
}


@pytest.mark.parametrize("duration", DURATIONS)
def test_python_durations_are_exact_or_refused(duration):
    """Those beyond 2**63 microseconds, too: in the units that hold them; alone and in lists."""
    value, units = DURATIONS[duration]
    span = value // TICK
    with jitslab.SlabCache("times", TIMES, capacity=4, init="zero") as cache, cache.allocate() as it:
        for unit, size in {"us": 1, "ms": 1000, "s": 10**6, "D": 86400 * 10**6}.items():
            if unit in units:
                it[unit] = value
                assert span == int(it[unit].astype(np.int64)) * size
            else:
                with pytest.raises(jitslab.FieldRangeError, match=f"^field '{unit}' takes a timedelta64"):
                    it[unit] = value
                assert 0 == it[unit].astype(np.int64)
        for name, unit, size in (("pair", "us", 1), ("pairs", "s", 10**6)):
            if unit in units:
                it[name] = [DAY, value]
                assert [86400 * 10**6, span] == [size * n for n in it[name].astype(np.int64).tolist()]
            else:
                with pytest.raises(jitslab.FieldRangeError):
                    it[name] = [DAY, value]
                assert [0, 0] == it[name].astype(np.int64).tolist()


def test_lists_of_integers_are_integers():
    """NumPy makes floats of a list with one that needs u8 and one that does not."""
    dtype = np.dtype([("n", "u8"), ("pair", "u8", (2,)), ("i", "i8", (2,)), ("square", "u8", (2, 2))])
    most = (1 << 64) - 1
    with jitslab.SlabCache("lists", dtype, capacity=4, init="zero") as cache, cache.allocate_many(2) as batch:
        with cache.allocate() as it:
            for value in ([most, 0], (1 << 63, 1), [most, True], [np.uint64(most), 0], [np.uint64(most), np.int8(3)], (0, most)):
                it.pair = value
                assert [int(n) for n in value] == it.pair.tolist()
                batch.n = value
                assert [int(n) for n in value] == batch.n.tolist()
            it.square = [[most, 0], [1, 2]]
            assert [[most, 0], [1, 2]] == it.square.tolist()
            it.pair = [1, 2]
            for value in ([1 << 63, -1], [np.uint64(1 << 63), -1]):
                refused(jitslab.FieldRangeError, f"field 'pair' takes an integer 0 .. {most}, got -1", setattr, it, "pair", value)
                with pytest.raises(jitslab.FieldRangeError):
                    it.i = value
            text = f"field 'pair' takes an integer 0 .. {most}, got float 1.0"
            refused(jitslab.FieldTypeError, text, setattr, it, "pair", [most, 1.0])
            refused(jitslab.FieldTypeError, text, setattr, it, "pair", [1.0, 2])
            text = "field 'pair' takes an array of shape (2,), got one of shape (3,)"
            refused(jitslab.ArrayError, text, setattr, it, "pair", [most, 0, 1])
            assert ([1, 2], [0, 0]) == (it.pair.tolist(), it.i.tolist())
        text = f"field 'n' takes an integer 0 .. {most}, got -1"
        refused(jitslab.FieldRangeError, text, setattr, batch, "n", [most, -1])
        assert [0, most] == batch.n.tolist()


# --- What happens while a value is converted, or read ---

SLOW_VALUES = {"count": 666, "tag": b"evil", "when": np.datetime64("2020-01-01"), "header": [6] * 4, "parts": (6, 6.0)}


class Evil:
    """An array that does something when it is looked at."""

    def __init__(self, value, dtype, act):
        self.value, self.dtype_wanted, self.act = value, dtype, act

    def __array__(self, dtype=None, copy=None):
        """Act, then be the array."""
        self.act()
        return np.array(self.value, self.dtype_wanted)


def evil(field, value, act):
    """Return a value of a field that does something when it is converted; of a record, its first part does."""
    return (Evil(value[0], "i2", act), value[1]) if field == "parts" else Evil(value, PACKET[field].base, act)


@pytest.fixture
def others(cache):
    """Return a function that frees something, and takes records in its place: it returns them, and what they held."""

    def swap(free, n=1):
        free()
        handles = cache.alloc_many(n)
        swap.taken = handles, cache.gather(handles).tobytes()

    yield swap
    handles, held = swap.taken
    assert held == cache.gather(handles).tobytes()


@pytest.mark.parametrize("field", SLOW_VALUES)
def test_record_freed_while_a_value_is_converted_is_not_written(cache, others, field):
    """The value's own code frees the record, and its slot is another's: that one is not touched."""
    it = cache.allocate()
    value = evil(field, SLOW_VALUES[field], lambda: others(it.free))

    refused(jitslab.StaleHandleError, gone(), setattr, it, field, value)


def test_nested_record_freed_while_a_value_is_converted_is_not_written(cache, others):
    """Nor through a view, nor when another frees it by its handle."""
    it = cache.allocate()
    handle, deep = it.handle, it.at.deep
    with pytest.raises(jitslab.StaleHandleError, match="is live again"):
        deep.n = Evil(666, "i8", lambda: others(lambda: cache.free(handle)))


@pytest.mark.parametrize("field", SLOW_VALUES)
def test_batch_freed_while_values_are_converted_is_not_written(cache, others, field):
    """All freed, or the last of them: none is written, and no other record."""
    batch = cache.allocate_many(3)
    value = evil(field, SLOW_VALUES[field], lambda: others(batch.free, 3))
    text = "this batch of cache 'packets' has no records any more: freed"
    refused(jitslab.StaleHandleError, text, setattr, batch, field, value)


def test_batch_that_is_torn_while_values_are_converted_is_not_written(cache, others):
    """One of it freed by another, its slot taken anew: the other two are not written either."""
    batch = cache.allocate_many(3)
    batch.count = 1
    handles = batch.handles.tolist()
    with pytest.raises(jitslab.StaleHandleError) as caught:
        batch.count = Evil([6] * 3, "i8", lambda: others(lambda: cache.free(handles[2])))
    assert (2,) == caught.value.positions
    assert [1, 1] == cache.gather(handles[:2])["count"].tolist()

    again = cache.allocate_many(3)
    handles = again.handles.tolist()
    record = again.records[0].item()
    value = dict(zip(PACKET.names, record, strict=True))
    value["count"] = Evil(666, "i8", lambda: others(lambda: cache.free(handles[1])))
    value["at"] = (0, (0, np.datetime64("2020-01-01")))
    value |= {name: again[0][name] for name in ("header", "when", "took", "raw", "tag", "parts", "half", "wide", "big")}
    with pytest.raises(jitslab.StaleHandleError):
        again[1] = value
    for torn in (batch, again):
        with pytest.raises(jitslab.StaleHandleError):
            torn.free()


@pytest.mark.parametrize("field", ["tag", "text", "when", "wide", "half", "big", "raw"])
def test_value_read_is_the_records_own(cache, field):
    """The record is freed between the check and the read, and its slot is another's: nothing of that one is returned."""
    it = cache.allocate()
    freed = []

    def interfere(frame, event, argument):
        if event == "call" and frame.f_code.co_name == "_column":
            sys.setprofile(None)
            it.free()
            freed.append(cache.alloc())

    sys.setprofile(interfere)
    try:
        with pytest.raises(jitslab.StaleHandleError):
            getattr(it, field)
    finally:
        sys.setprofile(None)
    assert 1 == len(freed)


def test_threads_that_write_what_others_free_write_nothing_of_theirs(cache):
    """A thread writes through a guard that another frees; the record that takes the slot stays as it was born."""
    old, current, going, refusals = sys.getswitchinterval(), [cache.allocate()], [True], []

    def write():
        while going:
            try:
                current[0].tag = b"evil"
            except jitslab.StaleHandleError:
                refusals.append(1)

    thread = threading.Thread(target=write)
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        for _ in range(3000):
            current[0].free()
            handle = cache.alloc()
            for _ in range(3):
                assert b"" == cache[handle]["tag"]
            cache.free(handle)
            current[0] = cache.allocate()
    finally:
        going.clear()
        thread.join()
        sys.setswitchinterval(old)
    current[0].free()
    cache.check()


# --- Many ---


def test_batch_owns_all_or_none(cache):
    """A batch that does not fit leaves nothing behind; leaving the block frees all."""
    with cache.allocate_many(15) as batch:
        assert 15 == len(batch) == len(cache)
        with pytest.raises(jitslab.CacheFullError):
            cache.allocate_many(6)
        assert 15 == len(cache)
    assert 0 == len(cache)
    with pytest.raises(ZeroDivisionError), cache.allocate_many(3):
        1 / 0
    assert 0 == len(cache)
    with cache.allocate_many(0) as none:
        assert 0 == len(none)
        assert (0,) == none.weight.shape
        none.weight = []
    refused(jitslab.CapacityError, "n must be 0 .. 2**32, got -1", cache.allocate_many, -1)
    refused(jitslab.CapacityError, "n must be an integer, got float", cache.allocate_many, 1.0)


def test_batch_fields_are_arrays(cache):
    """Reading gathers, assigning scatters and checks; a copy that is written to would be a write lost, so it cannot be."""
    with cache.allocate_many(4) as batch:
        batch.weight = [0.5, 1.5, 2.5, 3.5]
        batch.weight = batch.weight * 2
        batch.id = 7
        batch.header = np.arange(16).reshape(4, 4)
        batch.tag = b"ab"
        batch["free"] = np.arange(4)
        batch.at = (1.0, (2, np.datetime64("2020-01-01")))

        assert [1.0, 3.0, 5.0, 7.0] == batch.weight.tolist() == [r["weight"] for r in batch]
        assert [7] * 4 == batch.id.tolist()
        assert [8, 9, 10, 11] == batch[2]["header"].tolist()
        assert [0, 1, 2, 3] == batch["free"].tolist()
        assert [2] * 4 == batch.at["deep"]["n"].tolist()
        assert (4,) == batch.records.shape
        with pytest.raises(ValueError, match="read-only"):
            batch.weight[0] = 3
        with pytest.raises(ValueError, match="read-only"):
            batch.handles[0] = 3
        cache.records["weight"][batch.slots] += 1
        assert [2.0, 4.0, 6.0, 8.0] == batch.weight.tolist()
        batch[-1]["weight"] = 9
        assert 9 == batch.weight[3]
        before = batch.records.tobytes()
        refused(jitslab.FieldRangeError, "field 'id' takes an integer 0 .. 255, got 300", setattr, batch, "id", [1, 2, 3, 300])
        refused(jitslab.FieldTypeError, "field 'id' takes an integer 0 .. 255, got float 1.5", setattr, batch, "id", 1.5)
        text = "field 'id' takes an array of shape (4,), got one of shape (3,)"
        refused(jitslab.ArrayError, text, setattr, batch, "id", [1, 2, 3])
        text = "the record has no field 'wieght'; near it: 'weight'"
        refused(jitslab.FieldNameError, text, getattr, batch, "wieght")
        refused(jitslab.FieldNameError, text, setattr, batch, "wieght", 3)
        refused(jitslab.FieldNameError, "a field is named by a str, got float 1.5", batch.__getitem__, 1.5)
        with pytest.raises(IndexError):
            batch[4]
        assert before == batch.records.tobytes()


BATCH_USES = {
    "read": lambda b: b.weight,
    "write": lambda b: setattr(b, "weight", 1.0),
    "handles": lambda b: b.handles,
    "slots": lambda b: b.slots,
    "records": lambda b: b.records,
    "free": lambda b: b.free(),
    "release": lambda b: b.release(),
    "enter": lambda b: b.__enter__(),
    "item": lambda b: b[1],
}


@pytest.mark.parametrize("use", BATCH_USES)
def test_batch_after_free_is_refused(cache, use):
    """As a single guard is; and when one record of it was freed by another, which one is said."""
    batch, kept, torn = (cache.allocate_many(3) for _ in range(3))
    batch.free()
    handles = kept.release()
    cache.free(int(torn.handles[1]))
    text = "this batch of cache 'packets' has no records any more: "

    refused(jitslab.StaleHandleError, text + "freed", BATCH_USES[use], batch)
    refused(jitslab.StaleHandleError, text + "released", BATCH_USES[use], kept)
    with pytest.raises(jitslab.StaleHandleError) as caught:
        BATCH_USES[use](torn)
    assert use == "item" or (1,) == caught.value.positions
    assert 3 == sum(h in cache for h in handles.tolist())
    cache.free_many(handles)
    if use != "free":
        with pytest.raises(jitslab.StaleHandleError):
            torn.free()
    assert 0 == len(cache)
    assert "<SlabBatchGuard of 'packets': released>" == repr(kept)
    cache.close()
    refused(jitslab.ClosedError, "cache 'packets' is closed", BATCH_USES[use], batch)


def test_batch_collected_warns_and_frees(cache):
    """As a last resort."""
    with pytest.warns(ResourceWarning, match=r"^never freed: 3 records of a batch of cache 'packets'$"):
        cache.allocate_many(3)
        gc.collect()
    assert 0 == len(cache)
    refused(jitslab.GuardError, "a batch is made by cache.allocate_many(n)", jitslab.SlabBatchGuard)
    with cache.allocate_many(2) as batch:
        refused(jitslab.GuardError, "this guard is in a with block already", batch.__enter__)
        for copying in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(jitslab.CopyError):
                copying(batch)


OPERATORS = {
    "add": (operator.iadd, 3),
    "subtract": (operator.isub, [1, 2, 3]),
    "multiply": (operator.imul, 2),
    "divide": (operator.ifloordiv, 2),
    "rest": (operator.imod, 3),
    "power": (operator.ipow, 2),
    "and": (operator.iand, 6),
    "or": (operator.ior, 8),
    "xor": (operator.ixor, 7),
    "left": (operator.ilshift, 1),
    "right": (operator.irshift, 1),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_augmented_assignment_writes_all_records_of_a_batch(cache, name):
    """As that of a guard writes its one; by attribute and by name."""
    operate, other = OPERATORS[name]
    with cache.allocate_many(3) as batch:
        batch.count = [4, 5, 6]
        expected = operate(np.array([4, 5, 6]), other)
        batch.count = operate(batch.count, other)  # what Python makes of `batch.count += other`
        assert expected.tolist() == batch.count.tolist()
        again = operate(expected, other)
        batch["count"] = operate(batch["count"], other)
        assert again.tolist() == [record["count"] for record in batch]


def test_augmented_assignment_of_a_batch_is_checked(cache):
    """What the field does not take is refused; sub-arrays go, too; an array that was read stays as it was read."""
    with cache.allocate_many(2) as batch:
        batch.weight += 0.5
        batch.header += np.arange(4, dtype="u1")
        batch.small *= 2
        assert ([0.5, 0.5], [[0, 1, 2, 3]] * 2) == (batch.weight.tolist(), batch.header.tolist())
        with pytest.raises(jitslab.FieldTypeError):
            batch.count /= 2
        read = before = batch.weight
        read += 1
        assert ([1.5, 1.5], [0.5, 0.5]) == (read.tolist(), before.tolist())
        assert [0.5, 0.5] == batch.weight.tolist()
        own = batch.weight.copy()
        other = own
        own += 1
        assert [1.5, 1.5] == other.tolist()


def test_what_is_computed_from_a_batch_is_numpys_own(cache):
    """Arrays and scalars of NumPy's own types, also by pickle; compiled code takes the copy."""
    with cache.allocate_many(3) as batch:
        batch.weight = [1.0, 2.0, 4.0]
        weight = batch.weight
        assert "array([1., 2., 4.])" == repr(weight)
        for array in (
            weight * 2,
            weight == 1,
            -weight,
            np.sqrt(weight),
            pickle.loads(pickle.dumps(weight)),
            copy.copy(weight) + 1,
        ):
            assert np.ndarray is type(array)
        for scalar in (weight.sum(), weight.max(), weight.mean(), weight[0], weight @ weight):
            assert np.float64 is type(scalar)
        assert 7.0 == numba.njit(lambda a: a.sum())(weight)


# --- Exceptions at any line ---


class StopError(Exception):
    """What comes from outside: as Ctrl-C, or a time limit."""


def use_guard(cache):
    """All that a guard does, in a block."""
    with cache.allocate() as it:
        it.tag = b"abcd"
        it.at.deep.n = 3
        it.at = (1.0, (2, np.datetime64("2020-01-01")))
        repr(it)


def use_batch(cache):
    """All that a batch does, in a block."""
    with cache.allocate_many(3) as batch:
        batch.weight = [1, 2, 3]
        batch.weight += 1
        batch[1] = batch.records[0]
        repr(batch)


LIVES = {
    "guard used": use_guard,
    "guard freed": lambda cache: cache.allocate().free(),
    "guard freed in its block": lambda cache: cache.allocate().__enter__().free(),
    "guard dropped": lambda cache: cache.allocate(),
    "guard adopted again": lambda cache: cache.adopt(cache.allocate().release()).free(),
    "guards of a cycle": lambda cache: (cycle := [cache.allocate()]).append(cycle),
    "batch used": use_batch,
    "batch freed": lambda cache: cache.allocate_many(3).free(),
    "large batch freed": lambda cache: cache.allocate_many(20).free(),
    "batch dropped": lambda cache: cache.allocate_many(3),
    "batch freed in its block": lambda cache: cache.allocate_many(3).__enter__().free(),
}
GIVEN_AWAY = (
    {"guard adopted again"} if not guard_class.IN_C else set()
)  # between two guards nobody owns it: in C that is one step


def stopped(function, cache, k):
    """Call a function, with an exception at the k-th line of the library's own that it comes to; whether it came so far."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if "jitslab" not in Path(frame.f_code.co_filename).parts[-2:-1]:
            return None
        if event in ("line", "return"):
            count += 1
            if count == k:
                sys.settrace(None)
                raise StopError
        return trace

    sys.settrace(trace)
    try:
        function(cache)
    except StopError:
        pass
    finally:
        sys.settrace(None)
    return count >= k


@pytest.mark.parametrize("life", sorted(LIVES.keys() - GIVEN_AWAY))
@pytest.mark.parametrize("is_first", [False, True], ids=["", "first use"])
def test_exception_at_any_line_loses_no_record(life, is_first, monkeypatch):
    """Whatever line of the library it comes at, also while an owner ends: the record is freed, by itself or by the collector."""
    monkeypatch.setattr(sys, "unraisablehook", lambda it: None)
    k, cache = 1, None
    while True:
        if cache is None or is_first:
            if cache is not None:
                cache.close()
            cache = jitslab.SlabCache("packets", PACKET, capacity=20, init="zero")
        if not is_first:
            LIVES[life](cache) if life != "guards of a cycle" else None
            gc.collect() if k == 1 else None
        went_on = stopped(LIVES[life], cache, k)
        if len(cache):
            gc.collect()
        assert 0 == len(cache), f"line {k}"
        cache.check()
        if not went_on:
            cache.close()
            return
        k += 1


def test_what_ends_a_batch_is_loaded_before_it_has_handles(in_c):
    """So no want of memory for machine code comes between a batch and its end."""
    assert "ok\n" == run_python(NO_MORE_CODE, **FORM[in_c])


NO_MORE_CODE = """
import numpy as np, jitslab
from jitslab.machine import compile as machine_compile
cache = jitslab.SlabCache("c", np.dtype([("x", "f8")]), capacity=20)
freed, released, left = [cache.allocate_many(3) for _ in range(3)]

def refuse():
    raise jitslab.CacheFullError("no memory to load machine code")

machine_compile.need_room = refuse
with left:
    freed.free()
    handles = released.release()
assert len(cache) == 3
cache.free_many(handles)
cache.close()
print("ok")
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="a signal that comes at any time is wanted")
@pytest.mark.parametrize("life", sorted(LIVES.keys() - {"guard adopted again", "guards of a cycle"}))
def test_signals_at_any_time_lose_no_record(life, cache, monkeypatch):
    """Some hundred signals whose handler raises, at times that are chance."""
    monkeypatch.setattr(sys, "unraisablehook", lambda it: None)
    rng, stops = random.Random(5), 0

    def stop(number, frame):
        raise StopError

    def live_for_a_while():
        end = time.monotonic() + 1e-3  # it comes within, or was raised where nobody sees it: in a dealloc
        while time.monotonic() < end:
            LIVES[life](cache)

    LIVES[life](cache)
    old = signal.signal(signal.SIGALRM, stop)
    try:
        for _ in range(150):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(10e-6, 300e-6))
                live_for_a_while()  # a call: Python 3.13.0 catches no exception that comes as a loop of its own `try` jumps back
                signal.setitimer(signal.ITIMER_REAL, 0)
            except StopError:
                stops += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    gc.collect()
    assert 0 == len(cache)
    assert stops > 0
    cache.check()


@pytest.mark.parametrize("life", sorted(LIVES.keys() - {"guards of a cycle"}))
def test_recursion_limit_loses_no_record(life, cache, monkeypatch):
    """An owner that ends where nothing can be called any more frees what it has."""
    monkeypatch.setattr(sys, "unraisablehook", lambda it: None)

    def deep(n):
        if n > 0:
            deep(n - 1)
        else:
            LIVES[life](cache)

    LIVES[life](cache)
    for n in range(sys.getrecursionlimit() - 120, sys.getrecursionlimit()):
        with contextlib.suppress(RecursionError, ctypes.ArgumentError):  # the latter says so, too
            deep(n)
    gc.collect()
    if life not in GIVEN_AWAY:
        assert 0 == len(cache)
    cache.check()


def test_exception_that_is_on_its_way_goes_on(cache):
    """An owner that ends meanwhile frees what it has, says so, and leaves the exception alone."""
    for make in (cache.allocate, lambda: cache.allocate_many(3)):
        with pytest.warns(ResourceWarning, match="^never freed: "), pytest.raises(ZeroDivisionError):
            [make(), 1 / 0]
        assert 0 == len(cache)


def test_cache_in_a_cycle_with_its_own_guards_is_collected(in_c):
    """A class made from `SlabCache` has room for them."""
    assert "None\n" == run_python(CYCLE, **FORM[in_c])


CYCLE = """
import gc, weakref
import numpy as np, jitslab
class Store(jitslab.SlabCache):
    pass
store = Store("store", np.dtype([("x", "f8"), ("at", [("y", "f8")])]), capacity=20)
store.root, store.many = store.allocate(), store.allocate_many(3)
store.view = store.root.at
reference = weakref.ref(store)
del store
gc.collect()
print(reference())
"""


# --- What is behind the attributes in C ---


def test_class_that_was_changed_is_seen(cache):
    """A field is found fast as long as its class is as it was; what is put in its place is what is read from then on."""
    with cache.allocate() as it:
        cls, field = type(it), type(it).__dict__["count"]
        it.count = 5
        try:
            cls.count = property(lambda self: "mine")
            assert "mine" == it.count
            with pytest.raises(jitslab.FieldNameError):
                it.count = 6
        finally:
            cls.count = field
        assert 5 == it.count
        it.count = 7
        assert (7, 7) == (it.count, it["count"])


def test_memory_of_ended_guards_is_like_new(cache):
    """Guards that come after others know nothing of them: not their block, their references, nor that they were collected."""
    for _ in range(3):
        guards = [cache.allocate() for _ in range(20)]
        references = [weakref.ref(it) for it in guards]
        for i, it in enumerate(guards):
            with it:
                assert gc.is_tracked(it)
                it.count = i
                assert i == it.count
        del it
        guards.clear()
        assert [None] * 20 == [reference() for reference in references]

    for _ in range(3):  # a guard that the collector ended warns, and so does the next one in its place
        cycle = [cache.allocate()]
        cycle.append(cycle)
        with pytest.warns(ResourceWarning):
            del cycle
            gc.collect()
    assert 0 == len(cache)


def test_guard_that_is_collected_can_come_back(cache, monkeypatch):
    """Whoever takes hold of it in its last moment has it, freed; and it ends once more, in silence."""
    kept = []
    monkeypatch.setattr(guard_module.warnings, "warn", lambda *arguments, source, **named: kept.append(source))
    it = cache.allocate()
    del it
    gc.collect()
    refused(jitslab.StaleHandleError, gone(), lambda: kept[0].count)
    kept.clear()
    assert 0 == len(cache)


def test_adopt_takes_what_is_a_handle(cache):
    """Integers of any kind that are the handle of a live record; nothing else, and nothing is changed."""
    handle = cache.alloc()
    for same in (handle, np.int64(handle), jitslab.SlabPtr(handle, cache)):
        it = cache.adopt(same)
        assert handle == it.release()
    for wrong in (0, -1, True, 1 << 63, 1 << 70, handle ^ 1 << 40):
        with pytest.raises(jitslab.HandleError):
            cache.adopt(wrong)
    for wrong in (None, 1.0, "x", float(handle)):
        with pytest.raises(jitslab.HandleTypeError):
            cache.adopt(wrong)
    assert 1 == len(cache)
    cache.free(handle)
    slot, cycle = handle & 0xFFFFFFFF, handle >> 32
    text = f"slot {slot} of handle {handle:#x} is free (handle cycle {cycle}, slot cycle {cycle + 1})"
    refused(jitslab.StaleHandleError, text, cache.adopt, handle)
    cache.close()
    refused(jitslab.ClosedError, "cache 'packets' is closed", cache.adopt, handle)
