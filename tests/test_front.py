"""Kernels compiled from their source in one pass answer what Numba's own passes make of them, and what Python answers."""

import importlib
import itertools
import linecache

import numba
import numpy as np
import pytest
from numba import types
from test_disk import of_type

import jitslab
from jitslab.machine import build
from jitslab.machine.compile import Entry, inlined, int64, kernel, uint64
from jitslab.machine.front import UnsupportedError, source
from jitslab.machine.library import EntryLibrary, KernelLibrary
from jitslab.machine.pointers import i8s

NUMBERS = (0, 1, 2, 3, 7, -1, -2, -7, 40, 1 << 40, -(1 << 40))
SEVEN, STEPS, FLAG = 7, int64(3), True


@kernel
def parts(a: int, b: int) -> object:
    """Several results of several types."""
    return a + b, a < b, a


@inlined
def is_odd(a: int) -> bool:
    """A boolean."""
    return a & 1 != 0


@kernel
def nothing(a: int) -> None:
    """No result."""


@kernel
def bit_of(flag: bool, a: int) -> int:
    """Take a boolean."""
    return a if flag else -a


def arithmetic(a, b):
    """Operators of two numbers, and of one."""
    return a + b * 3 - (a & b) + (a | 5) ^ (b - ~a) + -b


def shifts(a, b):
    """Both ways."""
    return (a << (b & 31)) + (a >> (b & 31)) + (a >> 1 << SEVEN)


def division(a, b):
    """Floor division, and what is left of it."""
    return a // 8 * 1000 + a % 8 + (a // b if b != 0 else 5) + (a % b if b != 0 else 3)


def comparisons(a, b):
    """Alone, in chains, and joined."""
    n = 0
    if a < b:
        n += 1
    if a <= b <= 7:
        n += 10
    if -2 < a < b < 50 or not (b < 3 or is_odd(a)):
        n += 100
    return n + (a == b) * 1000 + (a >= 0 > b)


def booleans(a, b):
    """Kept, passed on, and counted."""
    x = a < b and is_odd(a)
    y = is_odd(b) or a == 1 or x
    z = x | (a > 2)
    z &= y
    return bit_of(z, 5) + bit_of(x and not y, 100) + (7 if FLAG else 9) + int(y) * 1000


def choices(a, b):
    """One of several values."""
    c = a if a > b else b if b > 3 else 3
    d = (a > b) if a != 0 else (b > 2)
    return c * 2 + d + min(a, b, 3) + max(a, b) + min(max(a, -1), 4) + abs(b)


def loops(a, b):
    """Over ranges and constants, left and gone on with."""
    n = 0
    for i in range(a & 7):
        if i == 2:
            continue
        for j in range(b & 3, 9, 2):
            if j > 6:
                break
            n += i * j
        i += 100  # the next round does not see it
    for k in range(9, 0, -STEPS):
        n = n * 3 + k
    for k in range(5, b & 7, -1):
        n += k
    for k in (3, STEPS, a):
        if k == 1:
            break
        n ^= k
    while True:
        n += 1
        if n & 3 == 0:
            return n
    return 77


def whiles(a, b):
    """As long as something is so."""
    left, found = a & 15, 0
    while left > 0 and found < 6:
        left -= 1
        if left == b:
            continue
        found += left
    return found


def several(a, b):
    """Tuples, and a call for nothing."""
    total, is_less, c = parts(a, b)
    nothing(a)
    pair = (total, c)
    a, b = b, a
    return total * 4 + is_less + pair[1] - pair[0] + a * 9 - b


def kinds(a, b):
    """Numbers of other widths, and a variable that is of two."""
    x = a > b  # a boolean first
    if b > 2:
        x = b
    return x + (uint64(a) < uint64(b)) * 10 + np.uint32(a) + np.int8(b) + bool(a) + int64(x)


def fractions(a, b):
    """Floats."""
    x = float(a) * 0.5
    return (1 if x > float(b) else 0) + (x + 1.5 == 2.0) * 10


def arrays(a, b):
    """Items of an array."""
    at = i8s(a)
    at[1] = b
    at[0] += at[1] * 2
    at[b & 1] |= 8
    return at[0] + at[1]


def late(a, b):
    """Results of two types."""
    if a > 3:
        return a
    if b > 3:
        return b
    return a == b


FUNCTIONS = (arithmetic, shifts, division, comparisons, booleans, choices, loops, whiles, several, kinds, fractions, late)


def by_front(function):
    """Compile by the one pass; there is no other way to an EntryLibrary."""
    entry = Entry(function)
    assert isinstance(entry.compile()[2], EntryLibrary)
    return entry


def by_numba(function):
    """Compile by Numba's own passes."""
    return build.by_numba(function, (types.int64,) * function.__code__.co_argcount)[1].ctypes


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda each: each.__name__)
def test_kernel_answers_what_numba_makes_of_it(function):
    """For all pairs of numbers."""
    one, other = by_front(function), by_numba(function)
    for a, b in itertools.product(NUMBERS, NUMBERS):
        assert one(a, b) == other(a, b), (a, b)


def test_what_entry_points_call_has_no_name_in_their_code(tmp_path, monkeypatch):
    """The linker would take it for what is linked into user code by that name, which answers where this one need not."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    by_front(several)
    (path,) = tmp_path.rglob("*.nbc")
    code = path.read_bytes()

    assert code.count(b"jitslab.entry.") > 0
    assert b"_ZN" not in code


def test_array_is_read_and_written():
    """Items and changed items."""
    entry, array = by_front(arrays), np.array([5, 6], np.int64)
    assert entry(array.ctypes.data, 4) == (13 | 8) + 4
    assert array.tolist() == [13 | 8, 4]


def raises(a, b):
    """An exception."""
    if a > b:
        raise ValueError
    return b


def has_a_list(a, b):
    """A list."""
    return [a, b][1]


def has_a_keyword(a, b):
    """A keyword."""
    return parts(a, b=b)[0]


def beyond(a, b):
    """A number beyond int64."""
    return np.int64(18446744073709551615 & a) + b


@pytest.mark.parametrize("function", [raises, has_a_list, has_a_keyword, beyond], ids=lambda each: each.__name__)
def test_what_the_pass_does_not_know_is_left_to_numba(function):
    """It answers as any other."""
    entry = Entry(function)
    assert not isinstance(entry.compile()[2], EntryLibrary)
    assert entry(1, 2) in (2, 3)


def test_source_that_is_not_the_code_is_not_used(tmp_path, monkeypatch):
    """A file that was changed after it was imported."""
    path = tmp_path / "changed.py"
    path.write_text("def f(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    changed = importlib.import_module("changed")

    assert source(changed.f).name == "f"
    path.write_text("def f(x):\n    return x + 2\n")
    linecache.clearcache()
    with pytest.raises(UnsupportedError):
        source(changed.f)
    assert Entry(changed.f)(1) == 2


def test_every_kernel_of_the_library_is_compiled_by_the_pass():
    """None is left to Numba's passes, which take ten times as long."""
    from test_disk import Dispatcher

    jitslab.warmup()
    entries = [each for each in of_type(Entry) if (each.function.__module__ or "").startswith("jitslab.") and each._made]
    kernels = [each for each in of_type(Dispatcher) if (each.py_func.__module__ or "").startswith("jitslab.")]

    assert len(entries) > 40
    assert {type(each.compile()[2]) for each in entries} == {EntryLibrary}
    assert {type(made.library) for each in kernels for made in each.overloads.values()} == {KernelLibrary}
