"""A SlabPtr is an int everywhere, and knows its cache in Python."""

import copy
import json
import pickle

import numba
import numpy as np
import pytest

import jitslab
from jitslab import SlabPtr

NODE = np.dtype([("value", "f8"), ("next", "i8")])


@pytest.fixture
def cache():
    """Return a cache of nodes."""
    with jitslab.SlabCache("nodes", NODE, capacity=100, init="zero") as cache:
        yield cache


@pytest.fixture
def ptr(cache):
    """Return a pointer to a live record of it."""
    return SlabPtr(cache.alloc(), cache)


def test_it_knows_its_cache_and_dtype(cache, ptr):
    """The cache, the dtype, the record, and whether that is live."""
    ptr.record["value"] = 2.5

    assert cache is ptr.cache
    assert NODE == ptr.dtype
    assert 2.5 == cache[ptr]["value"]
    assert ptr.is_live
    cache.free(ptr)
    assert not ptr.is_live
    with pytest.raises(jitslab.StaleHandleError):
        _ = ptr.record


def test_it_is_the_handle_in_every_cache_method(cache, ptr):
    """The cache takes it wherever it takes a handle."""
    assert ptr in cache
    assert [ptr] == list(cache)
    assert ptr & 0xFFFFFFFF == cache.slots([ptr])[0]
    cache.scatter([ptr], np.array([(1.0, ptr)], NODE))
    assert ptr == cache.gather([ptr])["next"][0]
    cache.free_many([ptr])
    assert ptr not in cache


def test_text_has_the_number_and_repr_says_whose(cache, ptr):
    """What writes numbers writes its number."""
    number = int(ptr)

    assert int is type(number)
    assert str(number) == str(ptr) == f"{ptr}" == json.dumps(ptr)
    assert hex(number) == f"{ptr:#x}" == hex(ptr)
    assert f"<SlabPtr {number:#x} of cache 'nodes'>" == repr(ptr)


def test_it_equals_its_number(ptr):
    """Equality, order and hash are those of the int."""
    assert int(ptr) == ptr
    assert {int(ptr): 1}[ptr] == 1
    assert jitslab.NULL < ptr
    assert ptr


@pytest.mark.parametrize("use", [lambda p: p + 0, lambda p: p | 0, lambda p: +p, lambda p: p * 1, int, abs, round])
def test_arithmetic_yields_a_plain_int(ptr, use):
    """What comes out of arithmetic is no handle of anything."""
    assert int is type(use(ptr))


def test_numpy_stores_it_as_int64(ptr):
    """In arrays, fields and comparisons."""
    links = np.zeros(3, NODE)
    links["next"][1] = ptr
    links[2] = (1.0, ptr)

    assert np.int64 == np.array([ptr, ptr]).dtype == np.array(ptr).dtype == np.asarray([1, ptr]).dtype
    assert [0, int(ptr), int(ptr)] == links["next"].tolist()
    assert [False, True, True] == (links["next"] == ptr).tolist()
    assert int(ptr) == np.int64(ptr) == np.full(1, ptr)[0]


@numba.njit
def follow(cache, h):
    """Read a record, and answer with the handle."""
    return cache[h].value, h


@numba.njit
def double(h):
    """Any function of an int64."""
    return h * 2


def test_compiled_code_takes_it_as_an_int64(cache, ptr):
    """As an argument of its own and in a tuple, by the code that a plain int compiled."""
    ptr.record["value"] = 7.0
    plain = follow(cache, int(ptr))

    assert (7.0, int(ptr)) == plain == follow(cache, ptr)
    assert 1 == len(follow.signatures)
    assert 2 * int(ptr) == double(ptr)
    assert [(numba.types.int64,)] == double.signatures
    assert numba.types.int64 == numba.typeof(ptr)
    assert int(ptr) == numba.njit(lambda pair: pair[1])((1.0, ptr))


def test_compiled_code_takes_it_as_a_global(ptr):
    """A pointer that a function has as a global is the number of that time."""
    assert ptr + 1 == numba.njit(lambda: ptr + 1)()


def test_copies_are_itself(ptr):
    """A handle is a value: a copy names the same record, and no cache is copied."""
    assert ptr is copy.copy(ptr)
    assert ptr is copy.deepcopy({"list": [ptr]})["list"][0]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_it_is_a_plain_int(ptr, protocol):
    """The cache is private to the process."""
    back = pickle.loads(pickle.dumps(ptr, protocol))

    assert int is type(back)
    assert ptr == back


def test_it_cannot_be_turned_to_another_cache(ptr):
    """Cache and dtype are read-only."""
    for name in ("cache", "dtype", "record", "is_live"):
        with pytest.raises(AttributeError):
            setattr(ptr, name, None)


def test_it_keeps_its_cache(ptr):
    """The cache lives as long as a pointer to it."""
    cache = jitslab.SlabCache("kept", NODE, capacity=10)
    kept = SlabPtr(cache.alloc(), cache)
    kept.record["value"] = 1.0
    del cache

    assert kept.is_live
    assert 1.0 == kept.record["value"]
    kept.cache.close()
    assert not kept.is_live
    with pytest.raises(jitslab.ClosedError, match="^cache 'kept' is closed$"):
        _ = kept.record


def test_it_is_made_of_any_integer(cache, ptr):
    """A number read back from a field gets its type again."""
    ptr.record["next"] = ptr
    again = SlabPtr(ptr.record["next"], cache)

    assert again == ptr
    assert again.is_live
    assert SlabPtr(0, cache) == jitslab.NULL
    assert not SlabPtr(0, cache).is_live


def test_what_is_no_handle_or_cache_is_refused(cache):
    """By its own exception, and text."""
    crimes = [
        (("1", cache), jitslab.HandleTypeError, "a handle is an integer, got str"),
        ((1.0, cache), jitslab.HandleTypeError, "a handle is an integer, got float"),
        ((-1, cache), jitslab.ForeignHandleError, "-1 is no handle: 1 .. 2**63 - 1"),
        ((1 << 63, cache), jitslab.ForeignHandleError, f"{1 << 63} is no handle: 1 .. 2**63 - 1"),
        ((1, "nodes"), jitslab.RecordTypeError, "a SlabPtr is of a SlabCache, got str"),
        ((1, jitslab.SlabCache.__new__(jitslab.SlabCache)), jitslab.ClosedError, "this SlabCache was never opened"),
        ((1, None), jitslab.RecordTypeError, "a SlabPtr is of a SlabCache, got NoneType"),
    ]
    for arguments, exception, text in crimes:
        with pytest.raises(jitslab.SlabError) as caught:
            SlabPtr(*arguments)
        assert (exception, text) == (type(caught.value), str(caught.value))
