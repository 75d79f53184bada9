"""
The law of the gate: a field reads back exactly what was assigned, or the value is refused by name and nothing is written.

What a value is, and whether a field holds it, is worked out here anew: numbers as fractions, dates and durations in attoseconds;
floats by the neighbours of what was stored.
"""

import array
import bisect
import collections
import ctypes
import datetime
import decimal
import enum
import functools
import ipaddress
import math
import uuid
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jitslab

try:
    from numpy._core._rational_tests import rational  # a dtype that a user registered, as NumPy's own tests have it
except ImportError:  # NumPy 1
    from numpy.core._rational_tests import rational
try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None
try:
    import pandas as pd
except ImportError:
    pd = None

UTC = datetime.timezone.utc
TICK = datetime.timedelta(microseconds=1)
ATTO = {"as": 1, "fs": 10**3, "ps": 10**6, "ns": 10**9, "us": 10**12, "ms": 10**15, "s": 10**18}
ATTO |= {"m": 60 * 10**18, "h": 3600 * 10**18, "D": 86400 * 10**18, "W": 7 * 86400 * 10**18}


# --- What a value is ---


class Letter(str, enum.Enum):
    """Of Python's sub-classes of str the most common; its str() is another text."""

    A = "x"


class Level(enum.IntEnum):
    """An int with a name."""

    HIGH = 3


class Shouting(str):
    """A text that shows itself as another."""

    def __str__(self):
        return self.upper() + "!"


class Counting(int):
    """An int that says of itself that it is another."""

    def __int__(self):
        return 77

    __index__ = __int__


class Measuring(float):
    """A float that does."""

    def __float__(self):
        return 7.5


class Turning(complex):
    """A complex number that does."""

    def __complex__(self):
        return 7.5j


class Packing(bytes):
    """Bytes that do."""

    def __bytes__(self):
        return b"zz"


class Moment(datetime.datetime):
    """A date with nanoseconds, as some packages have it."""

    nanosecond = 789


class Span(datetime.timedelta):
    """A duration with nanoseconds."""

    nanoseconds = 789


class Stamp(datetime.datetime):
    """A date that says itself what it is to NumPy."""

    def to_datetime64(self):
        """A time of day that Python's dates cannot have."""
        return np.datetime64("2024-01-01T00:00:00.000000000001", "ps")


class Lapse(datetime.timedelta):
    """A duration that does."""

    def to_timedelta64(self):
        """One that Python's cannot be."""
        return np.timedelta64(1, "ps")


class Indexing:
    """No number, though Python can make one of it."""

    def __index__(self):
        return 3


class Floating:
    """Likewise."""

    def __float__(self):
        return 3.0


def start_of(months):
    """Attoseconds from 1970 to the start of a month; 400 years have 146,097 days."""
    periods, months = divmod(months, 4800)
    day = datetime.date(1970 + months // 12, months % 12 + 1, 1) - datetime.date(1970, 1, 1)
    return (periods * 146097 + day.days) * ATTO["D"]


def real(value):
    """Return a fraction; "nan", "inf" or "-inf" for what is no number."""
    return Fraction(*value.as_integer_ratio()) if np.isfinite(value) else str(float(value))


def meaning(value):
    """
    Return what a value is: a kind, and exactly how much.

    Of moments and spans the attoseconds, or "NaT"; of spans of months, that have no length, the months.  None: no field holds it.
    """
    if isinstance(value, np.generic) and type(value).__module__ != "numpy":
        number = value.item()
        return ("user's", value) if isinstance(number, np.generic) or type(number) is type(value) else meaning(number)
    if isinstance(value, (bool, np.bool_)):
        return "bool", Fraction(bool(value))
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return meaning_of_numpys_date(value)
    if isinstance(value, (datetime.date, datetime.timedelta)):
        return meaning_of_date(value)
    if isinstance(value, int):
        return "int", Fraction(int.__pos__(value))
    if isinstance(value, np.integer):
        return "int", Fraction(int(value))
    if isinstance(value, Fraction):
        return "float", value
    if isinstance(value, float):
        return "float", real(float.__pos__(value))
    if isinstance(value, np.floating):
        return "float", real(value)
    if isinstance(value, (complex, np.complexfloating)):
        value = complex.__pos__(value) if isinstance(value, complex) else value
        return "complex", (real(value.real), real(value.imag))
    if isinstance(value, str):
        return "str", str.__str__(value)
    if isinstance(value, bytes):
        return "bytes", bytes.__getitem__(value, slice(None))
    if isinstance(value, np.void) and value.dtype.names is None:
        return "raw", value.tobytes()
    if isinstance(value, ctypes._SimpleCData):
        return meaning(value.value)
    return None


def meaning_of_numpys_date(value):
    """Return the meaning of NumPy's dates and durations."""
    kind = "moment" if isinstance(value, np.datetime64) else "span"
    unit, count = np.datetime_data(value.dtype)
    n = int(value.astype(np.int64)) * count
    if np.isnat(value):
        return kind, "NaT"
    if unit == "generic":
        return "ticks", n
    if unit in "YM":
        months = 12 * n if unit == "Y" else n
        return (kind, start_of(months)) if kind == "moment" else ("months", months)
    return kind, n * ATTO[unit]


def meaning_of_date(value):
    """Return the meaning of Python's dates and durations, and of sub-classes."""
    if getattr(value, "tzinfo", None) is not None or getattr(value, "fold", 0):
        return None
    if pd is not None and value is pd.NaT:
        return "NaT", "NaT"
    if hasattr(value, "to_datetime64") or hasattr(value, "to_timedelta64"):
        return meaning(value.to_datetime64() if hasattr(value, "to_datetime64") else value.to_timedelta64())
    if isinstance(value, datetime.timedelta):
        return "span", value // TICK * ATTO["us"] + getattr(value, "nanoseconds", 0) * ATTO["ns"]
    time = datetime.time.min
    if isinstance(value, datetime.datetime):
        time = datetime.time(value.hour, value.minute, value.second, value.microsecond)
    since = datetime.datetime.combine(datetime.date(value.year, value.month, value.day), time) - datetime.datetime(1970, 1, 1)
    return "moment", since // TICK * ATTO["us"] + getattr(value, "nanosecond", 0) * ATTO["ns"]


# --- What a field holds ---

TAKES = {
    "b": {"bool"},
    "i": {"bool", "int"},
    "u": {"bool", "int"},
    "f": {"bool", "int", "float"},
    "c": {"bool", "int", "float", "complex"},
    "S": {"bytes"},
    "U": {"str"},
    "V": {"bytes", "raw"},
    "M": {"moment", "NaT"},
    "m": {"span", "months", "ticks", "NaT"},
}


def is_users(dtype):
    """Whether it is none of NumPy's own."""
    return dtype.num >= 256


@functools.cache
def values_of(dtype):
    """Return all numbers of a small dtype of a user's, as fractions, in their order."""
    bits = np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}")
    with np.errstate(invalid="ignore"):
        return sorted({Fraction(it) for it in bits.view(dtype).astype("f8").tolist() if math.isfinite(it)})


def kind_of(dtype):
    """Return the letter of a field's kind."""
    if not is_users(dtype):
        return dtype.kind
    return {"int": "i", "float": "f"}.get(meaning(np.zeros(1, dtype)[0])[0])


def holds(dtype, what, amount):
    """Whether a field holds what is meant, a float as its nearest number."""
    kind = kind_of(dtype)
    if what == "user's" or kind is None:
        return what == "user's" and amount.dtype == dtype
    if what not in TAKES[kind]:
        return False
    if kind == "b":
        return True
    if kind in "SUV":
        width = dtype.itemsize // 4 if kind == "U" else dtype.itemsize
        return (
            len(amount) == width if kind == "V" else len(amount) <= width and not amount.endswith("\0" if kind == "U" else b"\0")
        )
    if kind in "mM":
        return holds_date(dtype, what, amount)
    if is_users(dtype):
        known = values_of(dtype)
        if kind == "i":
            return amount in known
        if isinstance(amount, str):
            return amount == str(float(dtype.type(float(amount))))
        return known[0] <= amount <= known[-1]
    if kind in "iu":
        return np.iinfo(dtype).min <= amount <= np.iinfo(dtype).max
    most = np.finfo(dtype).max
    limit = real(most) + (real(most) - real(np.nextafter(most, most.dtype.type(0)))) / 2  # from here on it rounds to infinity
    return all(isinstance(it, str) or abs(it) < limit for it in (amount if what == "complex" else (amount,)))


def holds_date(dtype, what, amount):
    """Whether a field of dates or durations does."""
    unit, count = np.datetime_data(dtype)
    if amount == "NaT":
        return True
    if "generic" in unit or what == "ticks":
        return unit == "generic" and what == "ticks"
    if what == "months":
        ticks = Fraction(amount, {"Y": 12, "M": 1}[unit] * count) if unit in "YM" else Fraction(1, 2)
    elif unit in "YM":
        if what == "span":
            return False
        months = bisect.bisect_left(range(-(1 << 50), 1 << 50), amount, key=start_of) - (1 << 50)
        ticks = Fraction(months, {"Y": 12, "M": 1}[unit] * count) if start_of(months) == amount else Fraction(1, 2)
    else:
        ticks = Fraction(amount, ATTO[unit] * count)
    return ticks.denominator == 1 and abs(ticks) < 1 << 63


def is_beyond(dtype, value):
    """Whether NumPy does not convert a date to the units of a field, whatever the date: too many of them are one of its own."""
    units = [np.datetime_data(it)[0] for it in (dtype, getattr(value, "dtype", dtype)) if it.kind in "mM"]
    return len(units) == 2 and set(units) <= set(ATTO) and ATTO[units[1]] // ATTO[units[0]] >= 1 << 56


def is_nearest(stored, wanted, dtype):
    """Whether a float is the one that is nearest to a fraction; of two the even one."""
    if isinstance(wanted, str):
        return str(float(stored)) == wanted
    if is_users(dtype):
        at = bisect.bisect_left(values_of(dtype), wanted)
        return abs(real(float(stored)) - wanted) == min(abs(it - wanted) for it in values_of(dtype)[max(at - 1, 0) : at + 1])
    part = np.zeros((), dtype).real.dtype.newbyteorder("=")
    stored = part.type(stored)
    away = abs(real(stored) - wanted)
    with np.errstate(over="ignore"):
        others = [np.nextafter(stored, part.type(to)) for to in (-np.inf, np.inf)]
    ties = [abs(real(it) - wanted) for it in others if np.isfinite(it)]
    if min(ties) == away != 0 and part.itemsize <= 8:
        return int(stored.view(f"u{part.itemsize}")) % 2 == 0
    return away <= min(ties)


def is_held(dtype, read, what, amount):
    """Whether what was read from a field is what is meant."""
    kind = kind_of(dtype)
    if kind is None:
        return read == amount and type(read) is type(amount)
    if kind == "c":
        parts = amount if what == "complex" else (amount, Fraction(0))
        return all(is_nearest(it, wanted, dtype) for it, wanted in zip((read.real, read.imag), parts, strict=True))
    if kind == "f":
        return is_nearest(read, amount, dtype)
    if kind in "mM":
        return meaning(read)[1] == amount
    if kind == "V":
        return meaning(read)[1] == amount
    return meaning(read) == ({"b": "bool", "i": "int", "u": "int"}.get(kind, what), amount)


# --- The matrix ---

FIELDS = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u8", "f2", "f4", "f8", ">f4", ">f8", "g"]
FIELDS += ["c8", "c16", "G", ">c8", "S0", "S1", "S4", "U0", "U1", "U4", ">U4", "V0", "V2", "V4"]
FIELDS += [f"M8[{unit}]" for unit in ("Y", "M", "D", "h", "10s", "s", "ms", "us", "ns", "ps")] + ["M8", ">M8[ns]"]
FIELDS += [f"m8[{unit}]" for unit in ("Y", "M", "W", "D", "m", "7s", "s", "ms", "us", "ns", "ps")] + ["m8", ">m8[us]"]
FIELDS += [rational]
if ml_dtypes is not None:
    FIELDS += [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4, ml_dtypes.uint4]

PYTHONS = [True, False, 0, 1, -1, 7, 8, 127, 128, 255, 256, -129, 2049, 2**24 + 1, 2**31, 2**53 + 1, 2**60 + 2**36 + 1]
PYTHONS += [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64, 2**64 + 2**11, 2**70 + 1, -(2**80), 10**400, Level.HIGH]
PYTHONS += [Counting(5), 0.0, -0.0, 0.5, 0.1, 1e-40, 5e-324, 6.0, 448.0, 65504.0, 65519.9, 65520.0, 3.4e38, 3.5e38, 1e300]
PYTHONS += [math.inf, -math.inf, math.nan, Measuring(1.5), 1j, 1e39 + 1j, complex(math.nan, 1), 2 + 0j, Turning(1 - 2j)]
PYTHONS += [Fraction(1, 2), Fraction(1, 3), Fraction(10**400), Fraction(2**60 + 2**36 + 1), Fraction(-1, 7**30), Fraction(3)]
PYTHONS += [
    decimal.Decimal("0.5"),
    decimal.Decimal("NaN"),
    None,
    "",
    "x",
    "abcd",
    "abcde",
    "x\0",
    "\0",
    "a\0b",
    "äöü€",
    "\U0001f600",
]
PYTHONS += ["\ud800", Letter.A, Shouting("abc"), b"", b"x", b"ab", b"abcd", b"abcde", b"x\0", b"\0\0", b"a\0b", Packing(b"ab")]
PYTHONS += [uuid.UUID(int=5), ipaddress.ip_address("1.2.3.4"), ipaddress.ip_network("1.2.3.0/30")]
PYTHONS += [Indexing(), Floating(), object(), {1}, {"a": 1}, lambda: 0]
PYTHONS += [ctypes.c_int(5), ctypes.c_double(0.5), ctypes.c_bool(True), ctypes.c_char(b"x")]
DAY = datetime.datetime(2024, 1, 1)
PYTHONS += [datetime.date(2024, 1, 1), datetime.date(1, 1, 1), datetime.date(9999, 12, 31), datetime.date(2024, 2, 29), DAY]
PYTHONS += [datetime.datetime(2024, 5, 6, 7, 8, 9, 123456), datetime.datetime.max, datetime.datetime.min, DAY.replace(tzinfo=UTC)]
PYTHONS += [DAY.replace(fold=1), datetime.time(1), datetime.time(1, tzinfo=UTC), Moment(2024, 1, 1), Moment(9999, 1, 1), Span(1)]
PYTHONS += [Moment(1969, 12, 31, 23, 59, 59, 999999), Span(-1, 0, 999), Span(days=10**6), Stamp(2000, 1, 1), Lapse(5)]
PYTHONS += [datetime.timedelta(0), datetime.timedelta(7), datetime.timedelta.max, datetime.timedelta.min, TICK, -TICK]
PYTHONS += [datetime.timedelta(seconds=70), datetime.timedelta(milliseconds=1)]
with warnings.catch_warnings():  # from NumPy 2.5 on
    warnings.simplefilter("ignore", DeprecationWarning)
    GENERIC = [np.datetime64("NaT"), np.timedelta64("NaT"), np.timedelta64(5)]
NUMPYS = [np.bool_(True), np.int8(-3), np.uint8(200), np.int64(2**62 + 1), np.uint64(2**64 - 1), np.float16(0.1), np.float32(0.1)]
NUMPYS += [
    np.float32(np.inf),
    np.float64(0.1),
    np.longdouble(1) / 3,
    np.longdouble("1e400"),
    np.longdouble(2**63 + 1),
    np.complex64(1j),
]
NUMPYS += [np.clongdouble(1.5), np.str_("abc"), np.str_("x\0"), np.bytes_(b"ab"), np.bytes_(b"x\0"), np.void(b"ab"), np.void(b"")]
NUMPYS += [
    GENERIC[0],
    np.datetime64("NaT", "s"),
    np.datetime64("2024"),
    np.datetime64("2024-05"),
    np.datetime64("2024-05-06"),
]
NUMPYS += [
    np.datetime64("2024-05-06T07:08:09.123456789"),
    np.datetime64(2**62, "s"),
    np.datetime64(-(2**62), "ns"),
    np.datetime64(3, "10s"),
]
NUMPYS += [np.datetime64(2**62, "D"), np.datetime64(5, "as"), GENERIC[1], GENERIC[2], np.timedelta64(1, "Y")]
NUMPYS += [
    np.timedelta64(24, "M"),
    np.timedelta64(1, "W"),
    np.timedelta64(2**62, "s"),
    np.timedelta64(7, "10s"),
    np.timedelta64(1, "fs"),
]
NUMPYS += [rational(1, 2), np.array((1,), [("a", "i2")])[()], np.zeros((), "V4")[()]]
if ml_dtypes is not None:
    NUMPYS += [
        ml_dtypes.bfloat16(2.5),
        ml_dtypes.float8_e5m2(0.75),
        ml_dtypes.int4(-3),
        ml_dtypes.uint4(15),
        ml_dtypes.bfloat16(np.nan),
    ]
PANDAS = []
if pd is not None:
    PANDAS += [
        pd.NA,
        pd.NaT,
        pd.Timestamp("2024-01-01 00:00:00.123456789"),
        pd.Timestamp(1, unit="ns"),
        pd.Timestamp("2024-01-01"),
    ]
    PANDAS += [
        pd.Timestamp(np.datetime64("20000-01-01", "s")),
        pd.Timestamp("2024-01-01", tz="UTC"),
        pd.Timestamp("2024-01-01").date(),
    ]
    PANDAS += [
        pd.Timedelta(123456789, "ns"),
        pd.Timedelta(-1, "ns"),
        pd.Timedelta(np.timedelta64(2**60, "s")),
        pd.Timedelta(days=7),
    ]
    PANDAS += [pd.Period("2024-01"), pd.Interval(0, 1), pd.Interval(pd.Timestamp(0), pd.Timestamp(1)), pd.offsets.Day(1)]
VALUES = PYTHONS + NUMPYS + PANDAS
ARRAYS = [bytearray(b"ab"), memoryview(b"abcd"), array.array("d", [1.5]), range(2), [], [[]], (), [1], np.zeros(1), ["x"]]


class Owners:
    """A guard and a batch of one field, in all the places that it can have; nothing but that field is ever written."""

    def __init__(self, of):
        self.dtype = np.dtype([("x", of)])["x"]
        place = np.dtype([("x", of)])
        fields = [("before", "u1"), ("x", of), ("after", "u1"), ("at", place), ("places", place, (2,))]
        if self.dtype.itemsize:  # NumPy has no arrays of texts of no width
            fields.append(("two", of, (2,)))
        whole = np.dtype(fields)
        self.cache = jitslab.SlabCache("values", whole, capacity=4)
        self.guard, self.batch = self.cache.allocate(), self.cache.allocate_many(2)

        self.pattern = 0 if self.dtype.kind == "U" else 0xA5
        records = np.full(len(self.cache.records) * self.cache.dtype.itemsize, self.pattern, np.uint8)
        self.cache.records[:] = np.frombuffer(records, self.cache.dtype)

    def close(self):
        """Give all back."""
        self.guard.free(), self.batch.free(), self.cache.close()

    def ways(self, value):
        """Return the ways to assign a value, each with the one to read what came of it, all places it went to."""
        guard, batch = self.guard, self.batch
        pair = np.empty(2, object)
        pair[0] = pair[1] = value
        return {
            "attribute": (lambda: setattr(guard, "x", value), lambda: [guard.x]),
            "name": (lambda: guard.__setitem__("x", value), lambda: [guard["x"]]),
            "nested": (lambda: setattr(guard.at, "x", value), lambda: [guard.at.x]),
            "tuple": (lambda: setattr(guard, "at", (value,)), lambda: [guard.at.x]),
            "lists": (lambda: setattr(guard, "two", [value, value]), lambda: list(guard.two)),
            "tuples": (lambda: setattr(guard, "places", [(value,), {"x": value}]), lambda: list(guard.places["x"])),
            "batch": (lambda: setattr(batch, "x", value), lambda: list(batch.x)),
            "batch of a list": (lambda: setattr(batch, "x", [value, value]), lambda: list(batch.x)),
            "batch of objects": (lambda: setattr(batch, "x", pair), lambda: list(batch.x)),
            "batch of lists": (lambda: setattr(batch, "two", [[value] * 2] * 2), lambda: list(batch.two.ravel())),
            "batch of a deque": (lambda: setattr(batch, "x", collections.deque([value] * 2)), lambda: list(batch.x)),
            "batch of tuples": (lambda: setattr(batch, "at", [(value,)] * 2), lambda: list(batch.at["x"])),
        }

    def check(self, value, some=None):
        """Assert the law for a value, each way."""
        means = meaning(value)
        fits = means is not None and holds(self.dtype, *means)
        for way, (write, read) in self.ways(value).items():
            if (some is not None and way not in some) or ("lists" in way and not self.dtype.itemsize):
                continue
            error = self.attempt(write)
            if error is None:
                assert fits, (way, value, read())
                assert all(is_held(self.dtype, found, *means) for found in read()), (way, value, read())
            else:
                assert not fits or is_beyond(self.dtype, value), (way, value, str(error))

    def attempt(self, write):
        """Assign something; if it was refused, assert that it was by name and without a trace, and return the error."""
        before = self.cache.records.tobytes()
        try:
            write()
        except (jitslab.FieldTypeError, jitslab.FieldRangeError, jitslab.ArrayError) as error:
            refused = error
        else:
            names = ["before", "after"]
            assert {self.pattern} == {n for name in names for n in self.cache.records[name].tolist()}
            return None
        assert before == self.cache.records.tobytes()
        assert str(refused).startswith(tuple(f"field '{name}" for name in ("x' takes ", "at.x' ", "two' ", "places.x' ")))
        return refused

    def check_pair(self, a, b):
        """Assert the law for two values in one list: each is what it is, whatever the other one is."""
        means = meaning(a), meaning(b)
        fits = all(it is not None and holds(self.dtype, *it) for it in means)
        for pair in ([a, b], (a, b), [np.asarray(a, None if isinstance(a, np.generic) else object), b]):
            error = self.attempt(lambda pair=pair: setattr(self.batch, "x", pair))
            assert (error is None) == fits, (pair, str(error))
            if fits:
                assert all(is_held(self.dtype, found, *it) for found, it in zip(self.batch.x, means, strict=True)), (
                    pair,
                    self.batch.x,
                )


@pytest.mark.parametrize("of", FIELDS, ids=str)
def test_every_value_is_held_exactly_or_refused_by_every_field(of):
    """Of Python, of NumPy, of pandas and ml_dtypes where they are installed; alone, in lists, in records, in batches."""
    owners = Owners(of)
    for value in VALUES:
        owners.check(value)
    before = owners.cache.records.tobytes()
    for value in ARRAYS:
        with pytest.raises((jitslab.ArrayError, jitslab.FieldTypeError)):
            owners.guard.x = value
    assert before == owners.cache.records.tobytes()
    owners.close()


UNITS = ["W", "D", "h", "m", "s", "ms", "us", "ns", "ps"]
PAIRED = [True, 7, -1, 2**53 + 1, 2**63, 2**64 - 1, 0.5, 2**60 + 2**36 + 1, Fraction(1, 4), 1j, "x", b"x", "7", Letter.A, None]
PAIRED += [
    np.float32(0.1),
    np.int8(3),
    np.uint64(2**63),
    np.longdouble(2**63 + 1),
    np.str_("ab"),
    np.void(b"ab"),
    np.bool_(False),
]
PAIRED += [np.datetime64(2**40, "s"), np.datetime64(5, "ns"), GENERIC[0], Moment(2024, 1, 1), datetime.date(2024, 1, 1)]
PAIRED += [np.timedelta64(2**40, "s"), np.timedelta64(5, "ns"), GENERIC[2], np.timedelta64(1, "Y"), Span(1), TICK]


@pytest.mark.parametrize("of", FIELDS, ids=str)
def test_values_of_several_kinds_in_one_list_are_what_each_of_them_is(of):
    """NumPy makes one kind of them: text of numbers, durations of numbers, doubles of integers, wrapped dates of finer ones."""
    owners = Owners(of)
    for a in PAIRED:
        for b in PAIRED:
            owners.check_pair(a, b)
    owners.close()


STRATEGIES = [
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.floats(width=32),
    st.fractions(),
    st.complex_numbers(),
    st.decimals(),
    st.text(max_size=6),
    st.binary(max_size=6),
    st.datetimes(),
    st.dates(),
    st.timedeltas(),
    st.builds(np.datetime64, st.integers(-(2**63) + 1, 2**63 - 1), st.sampled_from(UNITS)),
    st.builds(np.timedelta64, st.integers(-(2**63) + 1, 2**63 - 1), st.sampled_from(UNITS)),
    st.builds(lambda n, power: Fraction(n) * Fraction(2) ** power, st.integers(-(2**30), 2**30), st.integers(-1080, 1030)),
]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from([of for of in FIELDS if of not in (rational,)]), st.one_of(STRATEGIES))
def test_values_at_random_are_held_exactly_or_refused(of, value):
    """As above."""
    owners = Owners(of)
    owners.check(value, ("attribute", "batch of a list", "tuple"))
    owners.close()
