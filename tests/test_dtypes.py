"""Dtypes that NumPy calls equal and are not the same, and fields of sorts that Numba, or NumPy itself, has trouble with."""

import itertools

import numba
import numpy as np
import pytest

import jitslab
from jitslab import layout

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
        assert layout.identity(second) == layout.identity(b.dtype) == layout.identity(it.record.dtype)
        for name in second.names:
            for guard in (it, batch):
                assert layout.identity(second[name]) == layout.identity(guard._fields[name].dtype)


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
