"""Every way to use a cache wrongly: the crime, the exception, the exact message; and nothing is changed by it."""

import copy
import pickle
import re

import numba
import numpy as np
import pytest
from inside import Inside
from program import run_python

import jitslab
from jitslab import NULL

XY = np.dtype([("x", "<f8"), ("y", "<i4"), ("z", "<i4")])


@pytest.fixture
def cache():
    """Return a cache of 100 records of 16 bytes."""
    with jitslab.SlabCache("crime", XY, capacity=100) as cache:
        yield cache


def refused(exception, message, function, *arguments, **options):
    """Assert that a call raises exactly this; returns the exception."""
    with pytest.raises(exception) as caught:
        function(*arguments, **options)

    assert exception is type(caught.value)
    assert message == str(caught.value)
    return caught.value


# --- Handles ---


def test_double_free_is_refused(cache):
    """A record is freed once."""
    h = cache.alloc()
    cache.free(h)
    slot, cycle = h & 0xFFFFFFFF, h >> 32

    text = f"slot {slot} of handle {h:#x} is free (handle cycle {cycle}, slot cycle {cycle + 1})"
    refused(jitslab.StaleHandleError, text, cache.free, h)


def test_stale_handle_of_a_slot_in_use_again_is_refused(cache):
    """The slot's next record is not taken for the one before."""
    h = cache.alloc()
    cache.free(h)
    again = cache.alloc()
    slot, cycle = h & 0xFFFFFFFF, h >> 32

    assert slot == again & 0xFFFFFFFF
    text = f"slot {slot} of handle {h:#x} is live again (handle cycle {cycle}, slot cycle {cycle + 1})"
    for use in (cache.free, cache.__getitem__, cache.record):
        refused(jitslab.StaleHandleError, text, use, h)
    assert cache.is_live(again)
    assert not cache.is_live(h)


def test_only_the_live_cycle_of_every_slot_is_accepted(cache):
    """Never-allocated slots, also with a neighbour's cycle, and cycles a little off are refused for every slot."""
    live = set(cache.alloc_many(40).tolist())
    some = min(live)
    cycle = some >> 32
    for slot in range(cache.slot_limit + 3):
        for off in (-2, -1, 0, 1, 2):
            h = (cycle + off) << 32 | slot
            assert (h in live) == (h in cache)
            if h not in live:
                with pytest.raises(jitslab.HandleError):
                    cache.free(h)

    assert live == set(cache)
    cache.check()


def test_never_allocated_slot_with_a_neighbours_cycle_is_foreign(cache):
    """A slot that was never handed out never had the cycle of a live one."""
    h = cache.alloc()
    never = next(slot for slot in range(cache.slot_limit) if Inside(cache).is_fresh(slot))
    forged = h >> 32 << 32 | never

    text = f"cache 'crime' never issued handle {forged:#x}: slot {never} never had cycle {h >> 32}"
    refused(jitslab.ForeignHandleError, text, cache.free, forged)


def test_slot_out_of_range_is_refused(cache):
    """A slot beyond those of the cache is named."""
    h = cache.alloc()
    limit = cache.slot_limit
    for slot in (limit, limit + 1, 0xFFFFFFFF):
        far = h >> 32 << 32 | slot
        text = f"slot {slot} of handle {far:#x} is not among the {limit} of cache 'crime'"
        refused(jitslab.ForeignHandleError, text, cache.free, far)
        refused(jitslab.ForeignHandleError, text, cache.object_at, far)


def test_handles_of_a_thousand_caches_are_refused_by_the_others(cache):
    """Each cache starts its cycles elsewhere, so young handles are not taken for those of another cache."""
    others = [jitslab.SlabCache("other", XY, capacity=10, colouring=False) for _ in range(1000)]
    handles = [other.alloc() for other in others]

    assert 1000 == len(set(handles))
    for i, other in enumerate(others[:50]):
        assert [i] == [j for j, h in enumerate(handles) if h in other]
    with pytest.raises(jitslab.ForeignHandleError):
        cache.free(handles[0])


@pytest.mark.parametrize("number", [-1, -(1 << 63), -(1 << 80), 1 << 63, (1 << 63) + 5, 1 << 64, 1 << 90])
def test_number_outside_of_int64_is_no_handle(cache, number):
    """Negative numbers and 2**63 and above are refused by name, and are not `in` the cache."""
    cache.alloc()
    text = f"{number} is no handle: 1 .. 2**63 - 1"

    for use in (cache.free, cache.__getitem__, cache.object_at):
        refused(jitslab.ForeignHandleError, text, use, number)
    refused(jitslab.ForeignHandleError, text, cache.__setitem__, number, (1.0, 2, 3))
    assert number not in cache


def test_negative_forms_of_a_live_handle_are_refused(cache):
    """No bits above the 63 are dropped on the way."""
    h = cache.alloc()
    for number in (h - (1 << 63), h - (1 << 64), h + (1 << 63), h + (1 << 64), -h, ~h):
        refused(jitslab.ForeignHandleError, f"{number} is no handle: 1 .. 2**63 - 1", cache.free, number)
        assert number not in cache
    cache.free(h)


def test_null_is_refused_by_name(cache):
    """NULL is never live."""
    cache.alloc_many(100)

    assert NULL not in cache
    for use in (cache.free, cache.__getitem__, cache.object_at):
        refused(jitslab.NullHandleError, "the handle is NULL", use, NULL)
    refused(
        jitslab.NullHandleError,
        "1 of 1 handles refused, at 0; the other 0 are freed; the first: the handle is NULL",
        cache.free_many,
        [NULL],
    )


@pytest.mark.parametrize("thing", [1.0, np.float64(3), "1", b"1", None, (1,), {}, 1j, object])
def test_what_is_no_integer_is_refused(cache, thing):
    """Floats, strings and the like are no handles, whole or not."""
    cache.alloc()
    text = f"a handle is an integer, got {type(thing).__name__}"

    for use in (cache.free, cache.__getitem__, cache.object_at, cache._free_slow):
        refused(jitslab.HandleTypeError, text, use, thing)
    assert thing not in cache


class Number:
    """What Python takes for an integer in every index, and NumPy and operators do not."""

    def __init__(self, number):
        self.number = number

    def __index__(self):
        return self.number


INTEGERS = {
    "int": int,
    "int64": np.int64,
    "uint64": np.uint64,
    "longlong": np.longlong,
    "ulonglong": np.ulonglong,
    "uintp": np.uintp,
    "big-endian": lambda h: np.array(h, ">u8")[()],
    "array of no dimensions": np.array,
    "unsigned array of no dimensions": lambda h: np.array(h, np.uint64),
    "number by __index__": Number,
}


@pytest.mark.parametrize("kind", INTEGERS)
def test_every_integer_type_is_a_handle(cache, kind):
    """What is an integer to Python names a record in every method, one handle or a batch; a stale one is refused as an int is."""
    integer = INTEGERS[kind]
    h, others = cache.alloc(), cache.alloc_many(2).tolist()
    cache[integer(h)] = (1.0, 2, 3)

    assert integer(h) in cache
    assert cache.is_live(integer(h))
    assert 2 == cache[integer(h)]["y"] == cache.record(integer(h))["y"]
    assert h == cache.object_at(integer(h)).handle == jitslab.SlabPtr(integer(h), cache) == cache.adopt(integer(h)).release()
    assert [h & 0xFFFFFFFF] == cache.slots([integer(h)]).tolist()
    assert 3 == cache.gather([others[0], integer(h)])["z"][1]
    assert 0 == cache.retain([*others, integer(h)])
    cache.free(integer(h))
    assert h not in cache
    assert integer(h) not in cache
    text = f"slot {h & 0xFFFFFFFF} of handle {h:#x} is free"
    for use in (cache.free, cache.__getitem__, cache.adopt, lambda h: cache.free_many([h, others[0]])):
        with pytest.raises(jitslab.StaleHandleError, match=text):
            use(integer(h))
    assert others[1:] == cache.live().tolist()


@pytest.mark.parametrize("kind", INTEGERS)
def test_every_integer_type_is_a_ptr(kind):
    """Of raw memory, too."""
    integer = INTEGERS[kind]
    with jitslab.SlabAllocator("integers") as memory:
        ptr = memory.allocate(24)

        assert integer(ptr) in memory
        assert 24 == memory.view(integer(ptr), 24).nbytes
        assert memory.address(ptr) == memory.address(integer(ptr))
        ptr = memory.realloc(integer(ptr), 24, 100)
        memory.free(integer(ptr), 100)
        assert integer(ptr) not in memory


@pytest.mark.parametrize("thing", [np.timedelta64(1, "s"), np.datetime64(1, "s"), np.array(1.0), np.ma.masked])
def test_scalars_of_numpy_that_are_no_integers_are_no_handles(cache, thing):
    """Refused by name, under each NumPy."""
    cache.alloc()
    for use in (cache.free, cache.__getitem__, cache.object_at, cache.adopt, lambda h: jitslab.SlabPtr(h, cache)):
        refused(jitslab.HandleTypeError, f"a handle is an integer, got {type(thing).__name__}", use, thing)
    with jitslab.SlabAllocator("none") as memory:
        assert thing not in memory
    assert thing not in cache
    assert 1 == len(cache)


@pytest.mark.filterwarnings("ignore:In future, it will be an error for 'np.bool_' scalars:DeprecationWarning")
def test_truth_is_no_handle(cache):
    """Python's is the integer 1, which no cache issues; NumPy's is that or no integer, by its version."""
    cache.alloc()
    for thing in (True, np.True_):
        for use in (cache.free, cache.__getitem__, cache.adopt):
            with pytest.raises((jitslab.ForeignHandleError, jitslab.HandleTypeError)):
                use(thing)
        assert thing not in cache
    assert 1 == len(cache)


def test_signed_and_unsigned_handles_make_one_batch(cache):
    """NumPy makes floats of such a list; here each is what it is, and what fits no handle is refused as it was given."""
    handles = cache.alloc_many(4).tolist()
    mixed = [np.uint64(handles[0]), handles[1], np.int64(handles[2]), jitslab.SlabPtr(handles[3], cache)]
    cache.records["y"][cache.slots(handles)] = np.arange(4)

    assert [0, 1, 2, 3] == cache.gather(mixed)["y"].tolist()
    assert [3, 0] == cache.gather(np.array(mixed[::-3], object))["y"].tolist()
    for wrong in (1 << 63, (1 << 64) + handles[1], -5):
        text = f"1 of 2 handles refused, at 1; the first: {wrong} is no handle: 1 .. 2**63 - 1"
        error = refused(jitslab.ForeignHandleError, text, cache.slots, [np.uint64(handles[0]), wrong])
        assert (1,) == error.positions
    for wrong in (1.0, np.float64(1), None, "1"):
        with pytest.raises(jitslab.HandleTypeError, match="^handles are integers, got an array of "):
            cache.free_many([np.uint64(handles[0]), wrong])
    assert 4 == len(cache)
    cache.free_many(mixed)
    assert 0 == len(cache)


def test_million_random_handles_are_refused_and_change_nothing(cache):
    """Of a million random numbers none is accepted but the live ones."""
    live = np.sort(cache.alloc_many(60))
    cache.records["y"][cache.slots(live)] = np.arange(60)
    before = cache.gather(live).tobytes()
    words = bytes(Inside(cache).generations)
    rng = np.random.default_rng(7)
    handles = rng.integers(-(1 << 63), 1 << 63, 1_000_000, np.int64)
    near = rng.random(handles.size) < 0.5
    handles[near] = rng.integers(0, 2 * cache.slot_limit, near.sum()) | (live[0] >> 32) + rng.integers(-3, 4, near.sum()) << 32
    handles = handles[~np.isin(handles, live)]

    with pytest.raises(jitslab.HandleError) as caught:
        cache.free_many(handles)

    assert handles.size == len(caught.value.positions)
    assert words == bytes(Inside(cache).generations)
    assert before == cache.gather(live).tobytes()
    assert 60 == len(cache)
    with pytest.raises(jitslab.HandleError) as caught:
        cache.slots(np.append(handles, live))
    assert tuple(range(handles.size)) == caught.value.positions
    assert not any(h in cache for h in handles[:20_000].tolist())
    cache.check()


# --- Batches ---


def test_duplicates_in_free_many_are_named_and_the_rest_is_freed(cache):
    """A handle that stands there twice is freed once."""
    a, b, c = cache.alloc_many(3).tolist()
    slot, cycle = a & 0xFFFFFFFF, a >> 32
    text = (
        "2 of 5 handles refused, at 2, 4; the other 3 are freed; the first: "
        f"slot {slot} of handle {a:#x} is free (handle cycle {cycle}, slot cycle {cycle + 1})"
    )
    error = refused(jitslab.StaleHandleError, text, cache.free_many, [a, b, a, c, b])

    assert (2, 4) == error.positions
    assert 0 == len(cache)


def test_duplicates_in_a_long_free_many_are_named(cache):
    """The same through the slab layer, which takes long batches."""
    with jitslab.SlabCache("long", XY, capacity=5000) as cache:
        handles = cache.alloc_many(4000)
        with pytest.raises(jitslab.StaleHandleError) as caught:
            cache.free_many(np.concatenate([handles, handles[100:108], [NULL]]))

        assert tuple(range(4000, 4009)) == caught.value.positions
        assert "9 of 4009 handles refused, at 4000, 4001, 4002, 4003, 4004, 4005, 4006, 4007, ...; " in str(caught.value)
        assert 0 == len(cache)
        cache.check()


OUT = "out must be an array of int64 and shape (3,), got "
BAD_OUTS = {
    "dtype": (np.zeros(3, np.int32), OUT + "int32 of shape (3,)"),
    "unsigned": (np.zeros(3, np.uint64), OUT + "uint64 of shape (3,)"),
    "byte order": (np.zeros(3, ">i8"), OUT + ">i8 of shape (3,)"),
    "length": (np.zeros(4, np.int64), OUT + "int64 of shape (4,)"),
    "shape": (np.zeros((3, 1), np.int64), OUT + "int64 of shape (3, 1)"),
    "list": ([0, 0, 0], OUT + "list"),
    "strided": (np.zeros(6, np.int64)[::2], "out must be writable, contiguous and of native byte order"),
    "read-only": (np.frombuffer(bytes(24), np.int64), "out must be writable, contiguous and of native byte order"),
}


@pytest.mark.parametrize("crime", BAD_OUTS)
def test_alloc_many_refuses_a_wrong_out(cache, crime):
    """Only a writable, contiguous int64 array of n takes handles; nothing is allocated."""
    out, text = BAD_OUTS[crime]

    refused(jitslab.ArrayError, text, cache.alloc_many, 3, out)
    assert 0 == len(cache)


BAD_GATHERS = {
    "dtype": np.zeros(2, [("x", "<f4")]),
    "shape": np.zeros(3, XY),
    "byte order": np.zeros(2, XY.newbyteorder(">")),
    "list": [],
    "read-only": np.frombuffer(bytes(32), XY),
    "strided": np.zeros(4, XY)[::2],
}


@pytest.mark.parametrize("crime", BAD_GATHERS)
def test_gather_refuses_a_wrong_out(cache, crime):
    """Only an array of the cache's own records is written to."""
    handles = cache.alloc_many(2)

    with pytest.raises(jitslab.ArrayError, match=r"^out must be "):
        cache.gather(handles, BAD_GATHERS[crime])


BAD_HANDLES = {
    "floats": ([1.0, 2.0], jitslab.HandleTypeError, "handles are integers, got an array of float64"),
    "strings": (["a"], jitslab.HandleTypeError, "handles are integers, got an array of <U1"),
    "objects": ([None], jitslab.HandleTypeError, "handles are integers, got an array of object"),
    "booleans": ([True], jitslab.HandleTypeError, "handles are integers, got an array of bool"),
    "two dimensions": ([[1, 2]], jitslab.ArrayError, "handles must be a 1-d array, got shape (1, 2)"),
    "scalar": (5, jitslab.ArrayError, "handles must be a 1-d array, got shape ()"),
}


@pytest.mark.parametrize("crime", BAD_HANDLES)
def test_batches_refuse_what_are_no_handles(cache, crime):
    """Every method that takes handles refuses the same things."""
    handles, exception, text = BAD_HANDLES[crime]
    cache.alloc()

    for use in (cache.free_many, cache.slots, cache.gather):
        refused(exception, text, use, handles)
    refused(exception, text, cache.scatter, handles, np.zeros(2, XY))
    if crime != "booleans":
        refused(exception, text, cache.retain, handles)
    assert 1 == len(cache)


def test_big_unsigned_handles_are_refused_in_batches(cache):
    """2**63 and above in a uint64 array is no handle of int64's."""
    h = cache.alloc()
    for use in (cache.free_many, cache.slots):
        with pytest.raises(jitslab.ForeignHandleError):
            use(np.array([h + (1 << 63)], np.uint64))
    assert h in cache


def test_scatter_refuses_wrong_values(cache):
    """Values are records of the cache's dtype, one each or one for all."""
    handles = cache.alloc_many(2)
    text = f"values must be 2 records of {XY}, got "

    refused(jitslab.ArrayError, text + "float64 of shape (2,)", cache.scatter, handles, np.zeros(2))
    refused(jitslab.ArrayError, f"{text}{XY} of shape (3,)", cache.scatter, handles, np.zeros(3, XY))
    cache.scatter(handles, np.ones((), XY))
    assert [1.0, 1.0] == cache.gather(handles)["x"].tolist()


def test_retain_refuses_a_wrong_mask(cache):
    """A mask lies beside `live()`; handles to keep must be live."""
    cache.alloc_many(3)

    refused(jitslab.ArrayError, "the mask must have shape (3,), as live() has, got (2,)", cache.retain, np.ones(2, bool))
    with pytest.raises(jitslab.ForeignHandleError):
        cache.retain([5])
    assert 3 == len(cache)


@pytest.mark.parametrize("method", ["alloc_many", "reserve"])
def test_counts_out_of_bounds_are_refused(cache, method):
    """Counts are integers from 0 to 2**32."""
    use = getattr(cache, method)

    refused(jitslab.CapacityError, "n must be 0 .. 2**32, got -1", use, -1)
    refused(jitslab.CapacityError, f"n must be 0 .. 2**32, got {2**32 + 1}", use, 2**32 + 1)
    refused(jitslab.CapacityError, "n must be an integer, got float", use, 3.0)
    refused(jitslab.CapacityError, "n must be an integer, got NoneType", use, None)
    use(0)
    assert 0 == len(cache)


# --- Dtypes ---


PADDED = np.dtype({"names": ["a", "b"], "formats": ["<i4", "<i4"], "offsets": [0, 2]})
BAD_DTYPES = {
    "no fields": ("f8", "a record needs named fields, got float64; write [('value', '<f8')]"),
    "sub-array alone": (("f8", 3), "a record needs named fields, got ('<f8', (3,)); write [('value', '<f8', (3,))]"),
    "objects": ([("a", "O")], "a record cannot hold Python objects"),
    "objects inside": ([("a", [("b", "O")])], "a record cannot hold Python objects"),
    "size 0": ([("a", "V0")], "a record cannot be of size 0"),
    "no field at all": ([], "a record cannot be of size 0"),
    "overlapping": (PADDED, "fields overlap at byte 2 ('b')"),
    "overlapping inside": ([("a", "i4"), ("at", [("in", PADDED, (2,))])], "fields overlap at byte 2 ('at.in.b')"),
}


@pytest.mark.parametrize("crime", BAD_DTYPES)
def test_dtype_that_is_no_record_is_refused(crime):
    """The dtype is refused before anything is reserved."""
    dtype, text = BAD_DTYPES[crime]

    refused(jitslab.LayoutError, text, jitslab.SlabCache, "bad", dtype, capacity=10)


@pytest.mark.parametrize("thing", ["nonsense", 3, [("a", "no such type")]])
def test_what_is_no_dtype_is_refused(thing):
    """NumPy's own word is passed on."""
    with pytest.raises(jitslab.LayoutError, match=r"^not a dtype: "):
        jitslab.SlabCache("bad", thing, capacity=10)


GOOD_DTYPES = {
    "packed": [("a", "u1"), ("b", "<f8"), ("c", "<i2")],
    "aligned": np.dtype([("a", "u1"), ("b", "<f8")], align=True),
    "nested": [("a", "<i4"), ("b", [("c", "<f8"), ("d", [("e", "u1")])])],
    "sub-arrays": [("a", "<i4", (2, 3)), ("b", "u1", 5)],
    "big-endian": [("a", ">i4"), ("b", ">f8")],
    "strings": [("a", "S5"), ("b", "U3"), ("c", "<i8")],
    "datetimes": [("a", "M8[ns]"), ("b", "m8[s]")],
    "float16": [("a", "f2")],
    "longdouble": [("a", "g")],
    "complex": [("a", "c8"), ("b", "c16")],
    "booleans": [("a", "?")],
    "raw bytes": [("a", "V7")],
    "gaps": {"names": ["a", "b"], "formats": ["u1", "<i4"], "offsets": [0, 8], "itemsize": 20},
    "titles": [(("title", "a"), "<i4")],
    "empty field among others": [("a", "<i4"), ("b", "V0")],
}


@pytest.mark.parametrize("kind", GOOD_DTYPES)
@pytest.mark.parametrize("init", [None, "zero"])
def test_dtype_that_memory_allows_works_from_python(kind, init):
    """Every layout without overlaps and objects is kept as it is, and its records read back."""
    dtype = np.dtype(GOOD_DTYPES[kind])
    with jitslab.SlabCache("good", dtype, capacity=300, init=init) as cache:
        handles = cache.alloc_many(300)
        if init:
            assert bytes(300 * dtype.itemsize) == b"".join(cache[h].tobytes() for h in handles.tolist())
        values = np.zeros(300, dtype)
        values.view(np.uint8)[:] = np.random.default_rng(1).integers(0, 2, 300 * dtype.itemsize, np.uint8)
        cache.scatter(handles, values)

        assert dtype == cache.dtype
        assert dtype == cache.records.dtype
        assert repr(values.tolist()) == repr(cache.gather(handles).tolist())
        cache.free_many(handles)
        cache.check()


@numba.njit
def write_a(cache, h):
    """Write a field of a record."""
    cache[h].a = 1


@numba.njit
def alloc_and_free(cache):
    """Take a slot and free it."""
    h = cache.alloc()
    return h in cache and cache.free(h) and h not in cache


@pytest.mark.parametrize("kind", ["big-endian", "raw bytes", "float16", "longdouble"])
def test_dtype_that_numba_cannot_type_is_refused_by_compiled_code_clearly(kind):
    """Records without a field that it can type are out of reach of compiled code, which says so; slots still are not."""
    cache = jitslab.SlabCache("untypable", GOOD_DTYPES[kind], capacity=10)

    with pytest.raises(numba.TypingError, match="jitslab: Numba cannot type the records of this cache: "):
        write_a(cache, cache.alloc())
    assert alloc_and_free(cache)


# --- Capacities, names, templates ---


BAD_CAPACITIES = {
    0: "capacity must be 1 .. 2**32, got 0",
    -1: "capacity must be 1 .. 2**32, got -1",
    2**32 + 1: "capacity must be 1 .. 2**32, got 4294967297",
    2**70: f"capacity must be 1 .. 2**32, got {2**70}",
    1.5: "capacity must be an integer, got float",
    10.0: "capacity must be an integer, got float",
    "10": "capacity must be an integer, got str",
}


@pytest.mark.parametrize("capacity", BAD_CAPACITIES)
def test_capacity_out_of_bounds_is_refused(capacity):
    """A capacity is an integer from 1 to 2**32."""
    refused(jitslab.CapacityError, BAD_CAPACITIES[capacity], jitslab.SlabCache, "bad", XY, capacity=capacity)


def test_capacity_beyond_the_address_space_is_refused():
    """More than the address space holds is said to be so."""
    text = "4294967296 records of 100000 bytes are more than the address space holds"

    refused(jitslab.CapacityError, text, jitslab.SlabCache, "bad", [("a", "u1", 100_000)], capacity=2**32)


def test_capacity_of_one_and_of_2_to_the_32_work():
    """Both ends of the bounds."""
    with jitslab.SlabCache("one", XY, capacity=1) as one:
        h = one.alloc()
        refused(jitslab.CacheFullError, "cache 'one' has 1 of 1 records live, 1 more were asked for", one.alloc)
        one.free(h)
        assert one.alloc() not in (NULL, h)
    with jitslab.SlabCache("all", [("a", "u1")], capacity=2**32) as most:
        h = most.alloc()
        most[h]["a"] = 5
        assert 5 == most[h]["a"]
        most.check()


def test_full_cache_allocates_nothing(cache):
    """A refused batch leaves no half behind, and what is freed can be had again."""
    handles = cache.alloc_many(98)
    text = "cache 'crime' has 98 of 100 records live, 3 more were asked for"
    error = refused(jitslab.CacheFullError, text, cache.alloc_many, 3)

    assert isinstance(error, MemoryError)
    assert 98 == len(cache)
    assert sorted(handles.tolist()) == sorted(cache.live().tolist())
    refused(jitslab.CacheFullError, text, cache.reserve, 3)
    cache.alloc_many(2)
    refused(jitslab.CacheFullError, "cache 'crime' has 100 of 100 records live, 1 more were asked for", cache.alloc)
    cache.free(int(handles[5]))
    assert cache.alloc() not in handles
    cache.check()


@pytest.mark.parametrize("n", [129, 5000, 2**32])
def test_full_cache_refuses_long_batches(cache, n):
    """The same through the slab layer."""
    if n <= 5000:
        text = f"cache 'crime' has 0 of 100 records live, {n} more were asked for"
        refused(jitslab.CacheFullError, text, cache.alloc_many, n)
    text = f"cache 'crime' has 0 of 100 records live, {n} more were asked for"
    refused(jitslab.CacheFullError, text, cache.reserve, n)
    assert 0 == len(cache)
    cache.check()


@pytest.mark.parametrize("name", ["", None, 5, b"x"])
def test_name_must_be_a_string(name):
    """A cache is named."""
    text = f"a cache is named by a string that is not empty, got {name!r}"

    refused(jitslab.CapacityError, text, jitslab.SlabCache, name, XY, capacity=1)


def test_wrong_init_is_refused():
    """What new records hold is nothing, zeros, or one record."""
    make = jitslab.SlabCache

    refused(jitslab.LayoutError, "init is None, 'zero' or a record, got 'one'", make, "bad", XY, capacity=1, init="one")
    with pytest.raises(jitslab.LayoutError, match=f"^init is no record of {re.escape(str(XY))}: "):
        make("bad", XY, capacity=1, init=(1, 2))
    with pytest.raises(jitslab.LayoutError, match=r"^init is no record of "):
        make("bad", XY, capacity=1, init=(10**5000, 2, 3))
    text = f"init must be one record of {XY}, got ndarray of {XY}"
    refused(jitslab.LayoutError, text, make, "bad", XY, capacity=1, init=np.zeros(2, XY))
    many = np.dtype([(f"field{i}", "i4") for i in range(30)])
    text = f"init must be one record of {XY}, got ndarray of {str(many)[:77]}..."
    refused(jitslab.LayoutError, text, make, "bad", XY, capacity=1, init=np.zeros(2, many))
    with pytest.raises(jitslab.LayoutError, match=r"^init must be one record of "):
        make("bad", XY, capacity=1, init=np.zeros((), XY.newbyteorder(">"))[()])
    with pytest.raises(jitslab.LayoutError, match=r"^init is no record of "):
        make("bad", XY, capacity=1, init=np.zeros((), [("x", "<f4")])[()])
    for dtype, init in (("u1", 300), ("i4", 1.5), ("M8[s]", np.datetime64(1, "ns")), ("S2", b"abc"), ("f4", 1e39), ("u1", "1")):
        with pytest.raises(jitslab.LayoutError, match=r"^init is no record of \[\('n', '.*'\)\]: field 'n' takes "):
            make("bad", [("n", dtype)], capacity=1, init=(init,))


# --- After close, and before open ---


USES = {
    "alloc with fields": lambda c: c.alloc(x=1.0),
    "new with fields": lambda c: c.new(x=1.0),
    "allocate with fields": lambda c: c.allocate(x=1.0),
    "allocate_many with fields": lambda c: c.allocate_many(2, x=1.0),
    "alloc_many with fields": lambda c: c.alloc_many(2, x=1.0),
    "alloc": lambda c: c.alloc(),
    "allocate": lambda c: c.allocate(),
    "allocate_many": lambda c: c.allocate_many(3),
    "adopt": lambda c: c.adopt(5),
    "free": lambda c: c.free(5),
    "free of no integer": lambda c: c.free("x"),
    "alloc_many": lambda c: c.alloc_many(3),
    "alloc_many of none": lambda c: c.alloc_many(0),
    "free_many": lambda c: c.free_many([5]),
    "free_many of none": lambda c: c.free_many(np.zeros(0, np.int64)),
    "getitem": lambda c: c[5],
    "getitem of no integer": lambda c: c["x"],
    "setitem": lambda c: c.__setitem__(5, (1, 2, 3)),
    "contains": lambda c: 5 in c,
    "nodes": lambda c: c.nodes,
    "page_nodes": lambda c: c.page_nodes(),
    "contains of no integer": lambda c: "x" in c,
    "record": lambda c: c.record(5),
    "is_live": lambda c: c.is_live(5),
    "is_live of many": lambda c: c.is_live([5]),
    "getitem of many": lambda c: c[[5]],
    "getitem of a field": lambda c: c[[5], "x"],
    "setitem of many": lambda c: c.__setitem__([5], (1, 2, 3)),
    "extend": lambda c: c.extend([(1, 2, 3)]),
    "at_slot": lambda c: c.at_slot(0),
    "new": lambda c: c.new(),
    "object_at": lambda c: c.object_at(5),
    "slots": lambda c: c.slots([5]),
    "gather": lambda c: c.gather([5]),
    "scatter": lambda c: c.scatter([5], np.zeros(1, XY)),
    "live": lambda c: c.live(),
    "iter": lambda c: iter(c),
    "items": lambda c: list(c.items()),
    "len": lambda c: len(c),
    "clear": lambda c: c.clear(),
    "retain": lambda c: c.retain([]),
    "reserve": lambda c: c.reserve(1),
    "records": lambda c: c.records,
    "pages": lambda c: c.pages,
    "check": lambda c: c.check(),
    "dangling": lambda c: c.dangling(),
    "recover": lambda c: c.recover(),
    "shrink": lambda c: c.shrink(),
    "flush": lambda c: c.flush(),
    "parked": lambda c: c.parked,
    "save": lambda c: c.save("never"),
    "copy": lambda c: copy.copy(c),
    "deepcopy": lambda c: copy.deepcopy(c),
    "pickle": lambda c: pickle.dumps(c),
    "with": lambda c: c.__enter__(),
}
STILL_KNOWN = {"name", "dtype", "capacity", "stride", "slot_limit", "closed", "faults", "raise_faults"}


@pytest.mark.parametrize("use", USES)
def test_closed_cache_refuses(use):
    """Everything but what the cache is known by is refused after `close`."""
    cache = jitslab.SlabCache("shut", XY, capacity=10)
    cache.alloc()
    cache.close()

    refused(jitslab.ClosedError, "cache 'shut' is closed", USES[use], cache)


def test_every_public_name_is_among_the_uses():
    """A new method is added to the table above or is known after `close`."""
    public = {name for name in dir(jitslab.SlabCache) if not name.startswith("_")}

    assert public == {use for use in USES if use.isidentifier() and hasattr(jitslab.SlabCache, use)} | STILL_KNOWN | {
        "close",
        "numba_type",
    }


def test_closed_cache_is_still_known_by_name(cache):
    """What was given at its making is still told, and a second close does nothing."""
    cache.close()
    cache.close()

    assert ("crime", XY, 100, 16, 0, True, 0) == tuple(
        getattr(cache, name) for name in ("name", "dtype", "capacity", "stride", "slot_limit", "closed", "faults")
    )
    assert "<SlabCache 'crime': closed>" == repr(cache)
    cache.raise_faults()


def test_views_outlive_a_closed_cache():
    """Arrays and records of a cache stay readable after its end; what they read is zeros."""
    cache = jitslab.SlabCache("views", XY, capacity=10)
    _, record = cache.new()
    records, pages = cache.records, cache.pages
    record["y"] = 7
    cache.close()

    assert 0 == record["y"]
    records["y"][:] = 3
    del cache
    assert 3 == record["y"]
    assert (records["y"] == 3).all()
    refused(jitslab.ClosedError, "cache 'views' is closed", pages.__getitem__, 0)


BLANK_USES = (
    USES
    | {name: (lambda c, name=name: getattr(c, name)) for name in sorted(STILL_KNOWN - {"raise_faults"})}
    | {
        "raise_faults": lambda c: c.raise_faults(),
        "close": lambda c: c.close(),
        "_alloc_slow": lambda c: c._alloc_slow(),
        "_free_slow": lambda c: c._free_slow(5),
        "kernel": lambda c: alloc_and_free(c),
    }
)


@pytest.mark.parametrize("use", BLANK_USES)
def test_cache_whose_init_never_ran_refuses(use, cache):
    """`object.__new__(SlabCache)` gives an object that refuses all, and never crashes."""
    blank = object.__new__(jitslab.SlabCache)

    kinds = (jitslab.ClosedError, numba.TypingError)
    with pytest.raises(kinds, match=r"never opened|Cannot determine Numba type") as caught:
        BLANK_USES[use](blank)

    assert (use == "kernel") == isinstance(caught.value, numba.TypingError)
    assert "<SlabCache: never opened>" == repr(blank)


def test_cache_whose_init_failed_refuses():
    """The same after an `__init__` that raised; another `__init__` may then succeed."""
    half = object.__new__(jitslab.SlabCache)
    with pytest.raises(jitslab.LayoutError):
        half.__init__("half", "f8")

    refused(jitslab.ClosedError, "this SlabCache was never opened", half.alloc)
    refused(jitslab.ClosedError, "this SlabCache was never opened", half.close)
    half.__init__("half", XY, capacity=1)
    assert half.alloc() in half


def test_second_init_is_refused(cache):
    """An open cache stays what it is; a closed one, too."""
    h = cache.alloc()
    text = "<SlabCache 'crime': 1 records of 16 bytes live in 1 slabs> is open already"
    refused(jitslab.SlabError, text, cache.__init__, "other", XY)

    assert h in cache
    cache.close()
    refused(jitslab.SlabError, "<SlabCache 'crime': closed> is open already", cache.__init__, "other", XY)


def test_control_cannot_be_replaced(cache):
    """What compiled code unboxes is set once and has no name."""
    with pytest.raises(AttributeError):
        cache._control = np.zeros(100)
    with pytest.raises(AttributeError):
        del cache._control


def test_c_methods_refuse_another_type():
    """The C methods check whose they are."""
    with pytest.raises(TypeError):
        jitslab.SlabCache.alloc(object())
    with pytest.raises(TypeError):
        jitslab.SlabCache.free(5, 5)


# --- What is not done ---


def test_cache_is_no_array(cache):
    """A reservation of gigabytes is never copied by accident."""
    it = repr(cache)

    refused(jitslab.CopyError, f"{it} is no array; use cache.records or cache.gather(handles)", np.array, cache)
    refused(jitslab.CopyError, f"{it} is no array; use cache.records or cache.gather(handles)", np.asarray, cache)


# --- Limits of the process ---


def test_default_capacity_opens_small_under_a_limit_of_the_address_space():
    """Under RLIMIT_AS a cache without a capacity takes a part of what is left; an explicit huge one is refused."""
    program = """
import gc, pathlib, resource, numpy as np, jitslab
from jitslab.core.process import let_kept_go, this_process
jitslab.warmup()
gc.collect()
let_kept_go(this_process().address)  # addresses that it would give up are no part of what is used
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
dtype = np.dtype([("a", "u1", 64)])
caches = [jitslab.SlabCache("small", dtype) for _ in range(5)]
for cache in caches:
    cache.alloc_many(1000)
    cache.check()
    assert 1000 < cache.capacity < 1 << 25, cache.capacity
try:
    jitslab.SlabCache("huge", dtype, capacity=1 << 30)
except jitslab.CacheFullError as error:
    print(error)
"""
    assert run_python(program).startswith("cannot reserve ")


def test_memory_refused_by_the_system_is_a_full_cache():
    """Where memory is refused in the middle of growth, nothing is half allocated."""
    program = """
import pathlib, resource, numpy as np, jitslab
jitslab.warmup()
cache = jitslab.SlabCache("grows", np.dtype([("a", "u1", 64)]), capacity=1 << 24)
first, out = cache.alloc_many(1000), np.arange(1 << 20)
with open("/proc/self/status") as status:
    data = int([line for line in status if line.startswith("VmData")][0].split()[1]) << 10
limits = resource.getrlimit(resource.RLIMIT_DATA)
resource.setrlimit(resource.RLIMIT_DATA, (data + (1 << 24), limits[1]))
try:
    cache.alloc_many(1 << 20, out)
except jitslab.CacheFullError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_DATA, limits)  # Python, too, needs memory for what follows
assert 1000 == len(cache) and set(first) == set(cache.live())
assert (out == np.arange(1 << 20)).all()  # memory is asked for before the first handle is written
cache.check()
"""
    expected = "the system gives cache 'grows' no memory for 1048576 records of 64 bytes\n"
    assert expected == run_python(program)


def test_dtype_with_fields_out_of_order_that_numba_cannot_type_works_from_python():
    """Its field order has no `descr`, and needs none."""
    dtype = np.dtype({"names": ["a", "b"], "formats": [">i4", ">i4"], "offsets": [4, 0]})
    with jitslab.SlabCache("turned", dtype, capacity=5) as cache:
        h = cache.alloc()
        cache[h]["a"] = 7

        assert 7 == cache[h]["a"]


def test_iteration_ends_with_the_cache_and_passes_over_what_is_freed():
    """A record freed by the loop's body is not met later; after `close` the next step is refused."""
    cache = jitslab.SlabCache("loop", XY, capacity=10)
    handles = cache.alloc_many(10)
    met = []
    for h in cache:
        met.append(h)
        if h == handles[0]:
            cache.free_many(handles[1:9])
    steps = cache.items()
    next(steps)
    cache.close()

    assert [int(handles[0]), int(handles[9])] == met
    with pytest.raises(jitslab.ClosedError):
        next(steps)


def test_check_of_a_cache_that_is_closed_meanwhile_finds_no_law_broken(monkeypatch):
    """What it counted is gone; that is no law."""
    cache = jitslab.SlabCache("checked", np.dtype([("x", "f8")]), capacity=10)

    def close_and_find(*arguments):
        cache.close()
        return 1 << 32

    monkeypatch.setattr(jitslab.cache, "check_laws", close_and_find)
    with pytest.raises(jitslab.ClosedError, match="^cache 'checked' is closed$"):
        cache.check()


def test_record_freed_by_what_is_assigned_is_not_written():
    """A value whose conversion frees the record, and takes its slot again, is refused; the new record is untouched."""
    with jitslab.SlabCache("evil", [("a", "i8")], capacity=10) as cache:
        handle, others = cache.alloc(), []

        class Evil:
            def __int__(self):
                cache.free(handle)
                others.append(cache.alloc())
                cache[others[0]]["a"] = 111
                return 666

            __index__ = __int__

        with pytest.raises(jitslab.StaleHandleError):
            cache[handle] = (Evil(),)

        assert int(cache[others[0]]["a"]) == 111


ENORMOUS = 10**5000  # more digits than Python prints
ENORMOUS_USES = {
    "handle": (lambda c: c.free(ENORMOUS), jitslab.ForeignHandleError),
    "negative handle": (lambda c: c[-ENORMOUS], jitslab.ForeignHandleError),
    "count": (lambda c: c.alloc_many(ENORMOUS), jitslab.CapacityError),
    "batch of guards": (lambda c: c.allocate_many(ENORMOUS), jitslab.CapacityError),
    "adopted handle": (lambda c: c.adopt(ENORMOUS), jitslab.ForeignHandleError),
    "capacity": (lambda c: jitslab.SlabCache("big", XY, capacity=ENORMOUS), jitslab.CapacityError),
    "node": (lambda c: jitslab.SlabCache("big", XY, policy=ENORMOUS), jitslab.NodeError),
    "simulated nodes": (lambda c: jitslab.SlabCache("big", XY, nodes=ENORMOUS), jitslab.NodeError),
    "handle of a ptr": (lambda c: jitslab.SlabPtr(ENORMOUS, c), jitslab.ForeignHandleError),
    "size": (lambda c: jitslab.allocate(ENORMOUS), jitslab.SizeError),
    "alignment": (lambda c: jitslab.allocate(8, align=ENORMOUS), jitslab.SizeError),
    "raw ptr": (lambda c: jitslab.free(ENORMOUS, 8), jitslab.ForeignHandleError),
    "one of a batch": (lambda c: c.free_many([5, ENORMOUS][::-1]), jitslab.ForeignHandleError),
    "name": (lambda c: jitslab.SlabCache(ENORMOUS, XY), jitslab.CapacityError),
    "name of an allocator": (lambda c: jitslab.SlabAllocator(ENORMOUS), jitslab.CapacityError),
    "name to look up": (lambda c: jitslab.caches[ENORMOUS], jitslab.UnknownNameError),
    "name of a link": (lambda c: jitslab.link(ENORMOUS), jitslab.LayoutError),
    "flag": (lambda c: jitslab.SlabCache("big", XY, keep_empty=ENORMOUS), jitslab.CapacityError),
    "strict": (lambda c: jitslab.SlabCache("big", XY, strict=ENORMOUS), jitslab.NodeError),
    "policy": (lambda c: jitslab.SlabCache("big", XY, policy=[0, ENORMOUS, None]), jitslab.NodeError),
    "init of all": (lambda c: jitslab.SlabAllocator("big", init=ENORMOUS), jitslab.LayoutError),
}


@pytest.mark.parametrize("use", ENORMOUS_USES)
def test_enormous_numbers_are_refused_by_the_error_of_small_ones(cache, use):
    """Also where the number itself cannot be printed, alone and in a list."""
    function, kind = ENORMOUS_USES[use]

    with pytest.raises(kind, match="of 16610 bits"):
        function(cache)
