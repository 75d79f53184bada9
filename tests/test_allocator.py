"""Records by dtype, dedicated caches by name, and every way to use an allocator wrongly."""

import copy
import os
import pickle
import threading

import numba
import numpy as np
import pytest
from inside import Inside

import jitslab
from jitslab import SlabAllocator, SlabPtr, allocator

POINT = np.dtype([("x", "f8"), ("y", "f8")])
NODE = np.dtype([("value", "f8"), ("next", "i8")])
WIDE = np.dtype([(f"f{i}", "u1") for i in range(9)])


@pytest.fixture
def alloc():
    """Return an allocator."""
    with SlabAllocator("crime") as alloc:
        yield alloc


def refused(exception, message, function, *arguments, **options):
    """Assert that a call raises exactly this."""
    with pytest.raises(jitslab.SlabError) as caught:
        function(*arguments, **options)

    assert (exception, message) == (type(caught.value), str(caught.value))


# --- Records by dtype ---


def test_typed_record_is_written_and_freed(alloc):
    """allocate_typed, the record, free_typed."""
    ptr = alloc.allocate_typed(POINT)
    ptr.record["x"] = 3.0

    assert SlabPtr is type(ptr)
    assert POINT == ptr.dtype
    assert 3.0 == alloc.record(ptr)["x"] == alloc.record(int(ptr), POINT)["x"] == alloc.typed(POINT)[ptr]["x"]
    alloc.free_typed(ptr)
    assert not ptr.is_live
    assert 0 == len(alloc.typed(POINT))


def test_plain_int_of_a_field_is_freed_with_its_dtype(alloc):
    """A list is freed by the links that its records hold."""
    head = 0
    for i in range(10):
        ptr = alloc.allocate_typed(NODE)
        ptr.record["value"], ptr.record["next"] = i, head
        head = ptr
    freed = 0
    while head != 0:
        link = alloc.record(head, NODE)["next"]
        alloc.free_typed(head, NODE)
        head, freed = link, freed + 1

    assert 10 == freed
    assert np.int64 is type(link)
    assert not alloc.report()


def test_equal_dtypes_share_a_cache(alloc):
    """However they are written: one cache, and records of one are freed as those of the other."""
    cache = alloc.typed(POINT)

    for same in (
        np.dtype([("x", "<f8"), ("y", "<f8")]),
        [("x", float), ("y", float)],
        {"names": ["x", "y"], "formats": ["f8", "f8"], "offsets": [0, 8]},
    ):
        assert cache is alloc.typed(same)
        alloc.free_typed(alloc.allocate_typed(POINT), same)
        alloc.free_typed(int(alloc.allocate_typed(same)), POINT)


def linked(target):
    """Return NODE with metadata on a field, as links have it."""
    return np.dtype([("value", "f8"), ("next", np.dtype("i8", metadata={"link": target}))])


OTHER_TYPES = {
    "names": np.dtype([("value", "f8"), ("last", "i8")]),
    "order": np.dtype([("next", "i8"), ("value", "f8")]),
    "offsets": np.dtype({"names": ["value", "next"], "formats": ["f8", "i8"], "offsets": [8, 0]}),
    "size": np.dtype({"names": ["value", "next"], "formats": ["f8", "i8"], "itemsize": 24}),
    "titles": np.dtype([(("the value", "value"), "f8"), ("next", "i8")]),
    "byte order": np.dtype([("value", ">f8"), ("next", "i8")]),
    "a link": linked("nodes"),
    "metadata of the whole": np.dtype([("value", "f8"), ("next", "i8")], metadata={"unit": "m"}),
}


@pytest.mark.parametrize("what", OTHER_TYPES)
def test_dtypes_that_differ_have_caches_of_their_own(alloc, what):
    """Names, order, offsets, size, titles, byte order, and the metadata that NumPy's equality passes over."""
    other = OTHER_TYPES[what]
    ptr = alloc.allocate_typed(other)

    assert alloc.typed(NODE) is not ptr.cache
    assert alloc.typed(other) is ptr.cache
    assert allocator.is_same_type(other, ptr.dtype)
    with pytest.raises(jitslab.RecordTypeError):
        alloc.free_typed(ptr, NODE)
    with pytest.raises(jitslab.RecordTypeError):
        alloc.free_typed(int(ptr), NODE)
    assert ptr.is_live


def test_links_to_different_caches_are_different_types(alloc):
    """And equal ones are one, whichever object says it."""
    assert linked("a") == linked("b")  # for NumPy
    assert alloc.typed(linked("a")) is not alloc.typed(linked("b"))
    assert alloc.typed(linked("a")) is alloc.typed(linked("a"))


class Mass:
    """A class that declares records."""

    dtype = np.dtype([("x", "f8"), ("y", "f8")])


class Speed:
    """Another one, of the same layout."""

    dtype = np.dtype([("x", "f8"), ("y", "f8")])


def test_declared_classes_have_caches_of_their_own(alloc):
    """Also of equal layout; their records are known by the dtype, too, and named by the class."""
    mass, speed, plain = alloc.allocate_typed(Mass), alloc.allocate_typed(Speed), alloc.allocate_typed(POINT)

    assert ["Mass", "Speed"] == [ptr.cache.name for ptr in (mass, speed)]
    assert mass.cache is alloc.typed(Mass) is not speed.cache
    assert plain.cache is mass.cache
    refused(jitslab.RecordTypeError, f"{mass!r} is a record (x, y), not Speed", alloc.free_typed, mass, Speed)
    refused(jitslab.RecordTypeError, f"{int(mass):#x} is of cache 'Mass', not a typed Speed", alloc.free_typed, int(mass), Speed)
    refused(jitslab.RecordTypeError, f"{int(speed):#x} is of cache 'Speed', not a typed Mass", alloc.record, int(speed), Mass)
    alloc.free_typed(int(speed), POINT)
    alloc.free_typed(mass, POINT)
    alloc.free_typed(int(plain), Mass)
    assert not alloc.report()


def test_dtype_with_other_metadata_is_said_to_have_it(alloc):
    """Its fields look the same."""
    ptr = alloc.allocate_typed(linked("nodes"))

    text = f"{ptr!r} is a record (value, next), not (value, next) with other metadata"
    refused(jitslab.RecordTypeError, text, alloc.free_typed, ptr, NODE)


def test_metadata_deep_inside_counts(alloc):
    """In a nested record, and below a sub-array."""
    for wrap in (lambda d: np.dtype([("inner", d)]), lambda d: np.dtype([("inner", d, (3,))])):
        assert alloc.typed(wrap(linked("a"))) is not alloc.typed(wrap(linked("b")))
        assert alloc.typed(wrap(linked("a"))) is alloc.typed(wrap(linked("a")))


def test_typed_cache_has_options_of_its_own(alloc):
    """Given before its first record; the same ones again are no conflict."""
    cache = alloc.typed(POINT, capacity=50, init=(1.0, 2.0))

    assert 50 == cache.capacity
    assert (1.0, 2.0) == alloc.allocate_typed(POINT).record.item()
    assert cache is alloc.typed(POINT, capacity=50, init=np.array((1.0, 2.0), POINT))
    assert cache is alloc.typed(POINT, policy="local")
    refused(jitslab.ConflictError, "cache 'typed(x, y)' exists with another capacity", alloc.typed, POINT, capacity=51)
    text = "cache 'typed(x, y)' exists with another capacity and init"
    refused(jitslab.ConflictError, text, alloc.typed, POINT, capacity=51, init="zero", strict=False)


def test_options_of_the_allocator_are_those_of_its_caches():
    """Unless a cache has its own."""
    with SlabAllocator("options", init="zero", capacity=70) as alloc:
        assert (0.0, 0.0) == alloc.allocate_typed(POINT).record.item()
        assert 70 == alloc.typed(POINT).capacity == alloc.create_cache("a", POINT).capacity
        assert 80 == alloc.create_cache("b", POINT, capacity=80).capacity
        assert alloc.typed(POINT) is alloc.typed(POINT, capacity=70, init="zero")


def test_every_option_of_a_cache_is_passed_on(alloc):
    """Also those of NUMA."""
    cache = alloc.create_cache("nodes", NODE, nodes=4, capacity=100, policy="local", strict=False, colouring=False, init="zero")

    assert 4 == len(cache.nodes)
    with SlabAllocator("simulated", nodes=2) as simulated:
        assert 2 == len(simulated.typed(NODE).nodes)


@numba.njit
def use_stale(nodes, h):
    """Use the record of a handle that is refused."""
    nodes[h + 2**40].value = 1.0


@numba.njit
def build(nodes, n):
    """Make a list of n records; returns its head."""
    head = 0
    for i in range(n):
        h, r = nodes.new()
        r.value, r.next = i, head
        head = h
    return head


def test_compiled_code_has_the_typed_cache(alloc):
    """What it allocates is freed from Python, and what it is given is a pointer."""
    head = build(alloc.typed(NODE), 5)
    alloc.free_typed(head, NODE)

    assert 4 == len(alloc.typed(NODE))


@numba.njit
def fill(alloc, n, size):
    """Take n pieces of raw memory, write to them and give all but the last back."""
    for i in range(n):
        ptr = alloc.allocate(size)
        alloc.bytes(ptr, size)[:] = i
        if i < n - 1:
            alloc.free(ptr, size)
    return ptr


def test_compiled_code_has_raw_memory(alloc):
    """The allocator itself is the argument."""
    ptr = fill(alloc, 10, 100)

    assert [9] * 100 == alloc.view(ptr, 100).tolist()
    assert (1, (ptr,)) == (alloc.report().count, alloc.report().caches[0].handles)
    big = alloc.allocate(5_000_000)
    row = alloc.report().caches[0]
    assert ("larger memory", 1, (big,)) == (row.name, row.count, row.handles)
    assert 5_000_000 <= row.bytes < 5_100_000
    alloc.free(ptr, 100)
    alloc.free(big, 5_000_000)
    assert not alloc.report()


def test_object_is_freed_on_leaving_the_block(alloc):
    """Also by an exception."""
    with alloc.allocate_object(NODE) as node:
        node.value = 4.0
        assert 4.0 == node.value
        assert 1 == len(alloc.typed(NODE))
    assert 0 == len(alloc.typed(NODE))
    with pytest.raises(ZeroDivisionError), alloc.allocate_object(NODE) as node:
        node.value = 1 / 0
    assert 0 == len(alloc.typed(NODE))


def test_wrong_type_is_refused(alloc):
    """Another dtype, for a pointer and for a plain int; nothing is changed."""
    ptr = alloc.allocate_typed(POINT)
    named = alloc.create_cache("nodes", NODE).alloc()
    text = f"<SlabPtr {int(ptr):#x} of cache 'typed(x, y)'> is a record (x, y), not (f0, f1, f2, ...)"
    for use in (alloc.free_typed, alloc.record):
        refused(jitslab.RecordTypeError, text, use, ptr, WIDE)
        refused(jitslab.RecordTypeError, f"{int(ptr):#x} is a plain integer: its dtype must be given, too", use, int(ptr))
        refused(
            jitslab.RecordTypeError, f"{int(ptr):#x} is of cache 'typed(x, y)', not a typed (value, next)", use, int(ptr), NODE
        )
        refused(jitslab.RecordTypeError, f"{named:#x} is of cache 'nodes', not a typed (value, next)", use, named, NODE)
        refused(jitslab.RecordTypeError, "allocator 'crime' has no typed records (value, next)", use, 5, NODE)

    assert ptr.is_live
    assert "(value, next)" not in {cache.name for cache in alloc._record_caches()}


def test_double_free_is_refused(alloc):
    """As a pointer and as an int."""
    ptr = alloc.allocate_typed(POINT)
    alloc.free_typed(ptr)
    slot, cycle = ptr & 0xFFFFFFFF, ptr >> 32

    text = f"slot {slot} of handle {int(ptr):#x} is free (handle cycle {cycle}, slot cycle {cycle + 1})"
    for arguments in ((ptr,), (ptr, POINT), (int(ptr), POINT), (np.int64(ptr), POINT)):
        refused(jitslab.StaleHandleError, text, alloc.free_typed, *arguments)
        refused(jitslab.StaleHandleError, text, alloc.record, *arguments)


def test_what_is_no_handle_is_refused(alloc):
    """NULL, no integer, out of int64."""
    alloc.allocate_typed(POINT)

    refused(jitslab.NullHandleError, "the handle is NULL", alloc.free_typed, 0, POINT)
    refused(jitslab.HandleTypeError, "a handle is an integer, got str", alloc.free_typed, "1", POINT)
    refused(jitslab.HandleTypeError, "a handle is an integer, got NoneType", alloc.free_typed, None)
    refused(jitslab.ForeignHandleError, "-1 is no handle: 1 .. 2**63 - 1", alloc.free_typed, -1, POINT)
    with pytest.raises(jitslab.LayoutError, match="^a record needs named fields, got float64; "):
        alloc.free_typed(1, "f8")


def test_pointer_of_another_allocator_is_refused(alloc):
    """And of a cache made directly; what this one made, by name, it frees."""
    with SlabAllocator("other") as other, jitslab.SlabCache("plain", POINT, capacity=5) as plain:
        theirs, direct = other.allocate_typed(POINT), SlabPtr(plain.alloc(), plain)
        alloc.allocate_typed(POINT)
        refused(jitslab.ForeignHandleError, f"{theirs!r} is not of allocator 'crime'", alloc.free_typed, theirs)
        refused(jitslab.ForeignHandleError, f"{direct!r} is not of allocator 'crime'", alloc.free_typed, direct)
        with pytest.raises(jitslab.ForeignHandleError):
            alloc.free_typed(int(theirs), POINT)
        assert theirs.is_live
        assert direct.is_live
    named = alloc.create_cache("named", POINT)
    alloc.free_typed(SlabPtr(named.alloc(), named))
    assert 0 == len(named)


@pytest.mark.parametrize("dtype", ["f8", [("a", "O")], [], "nonsense", object(), 5])
def test_dtype_that_is_no_record_is_refused(alloc, dtype):
    """By every method that takes one, and nothing is made of it."""
    for use in (alloc.allocate_typed, alloc.allocate_object, alloc.typed, lambda d: alloc.create_cache("bad", d)):
        with pytest.raises(jitslab.LayoutError):
            use(dtype)

    assert "bad" not in alloc.caches
    assert [] == alloc._record_caches()


def test_closed_typed_cache_is_made_anew(alloc):
    """Its pointers stay refused."""
    ptr = alloc.allocate_typed(POINT)
    ptr.cache.close()

    refused(jitslab.ClosedError, "cache 'typed(x, y)' is closed", alloc.free_typed, ptr)
    refused(jitslab.ClosedError, "cache 'typed(x, y)' is closed", lambda: ptr.record)
    refused(jitslab.RecordTypeError, "allocator 'crime' has no typed records (x, y)", alloc.free_typed, int(ptr), POINT)
    again = alloc.allocate_typed(POINT)
    assert again.cache is not ptr.cache
    refused(jitslab.ClosedError, "cache 'typed(x, y)' is closed", alloc.free_typed, ptr)
    with pytest.raises(jitslab.ForeignHandleError):
        alloc.free_typed(int(ptr), POINT)
    assert 1 == len(alloc._record_caches())


# --- Dedicated caches ---


def test_dedicated_cache_is_found_by_its_name(alloc):
    """Until it is closed; then the name is free."""
    nodes = alloc.create_cache("nodes", NODE, capacity=10)

    assert nodes is alloc.caches["nodes"] is alloc.cache("nodes") is alloc.caches.get("nodes")
    assert "nodes" in alloc.caches
    assert ["nodes"] == list(alloc.caches)
    assert {"nodes": nodes} == dict(alloc.caches)
    assert "<caches: 'nodes'>" == repr(alloc.caches)
    nodes.close()
    assert "nodes" not in alloc.caches
    assert (0, None, 7) == (len(alloc.caches), alloc.caches.get("nodes"), alloc.caches.get("nodes", 7))
    assert nodes is not alloc.create_cache("nodes", POINT)


def test_dedicated_cache_is_no_typed_one(alloc):
    """The same dtype has a cache for each purpose."""
    caches = [alloc.create_cache("a", NODE), alloc.create_cache("b", NODE), alloc.typed(NODE)]

    assert 3 == len(set(caches))


def test_registry_is_read_only(alloc):
    """And says nothing of what it does not have."""
    with pytest.raises(TypeError):
        alloc.caches["a"] = 1
    assert "<caches: none>" == repr(alloc.caches)
    assert 5 not in alloc.caches
    assert alloc.caches.get(5) is None


BAD_NAMES = {
    "": "a cache is named by a string that is not empty, got ''",
    None: "a cache is named by a string that is not empty, got None",
    5: "a cache is named by a string that is not empty, got 5",
    b"x": "a cache is named by a string that is not empty, got b'x'",
    "a#1": "the name of a cache is printable, without '#' and without blanks around it, got 'a#1'",
    " a": "the name of a cache is printable, without '#' and without blanks around it, got ' a'",
    "a\n": "the name of a cache is printable, without '#' and without blanks around it, got 'a\\n'",
    "a\0b": "the name of a cache is printable, without '#' and without blanks around it, got 'a\\x00b'",
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_name_is_refused(alloc, name):
    """Of a cache, and of an allocator."""
    refused(jitslab.CapacityError, BAD_NAMES[name], alloc.create_cache, name, NODE)
    refused(jitslab.CapacityError, BAD_NAMES[name].replace("a cache", "an allocator"), SlabAllocator, name)


def test_duplicate_name_is_refused(alloc):
    """And the first cache stays."""
    nodes = alloc.create_cache("nodes", NODE)

    refused(jitslab.DuplicateNameError, "there is a cache 'nodes' already", alloc.create_cache, "nodes", NODE)
    assert nodes is alloc.caches["nodes"]
    with SlabAllocator("other") as other:
        assert nodes is not other.create_cache("nodes", NODE)


def test_unknown_name_is_refused_and_the_near_ones_are_named(alloc):
    """As KeyError, too."""
    alloc.create_cache("net-packet", NODE)
    alloc.create_cache("net-packets", NODE)
    crimes = {
        "net-pakcet": "there is no cache 'net-pakcet'; there is 'net-packet' and 'net-packets'",
        "zebra": "there is no cache 'zebra'",
        5: "there is no cache 5",
    }

    for name, text in crimes.items():
        refused(jitslab.UnknownNameError, text, alloc.cache, name)
        refused(jitslab.UnknownNameError, text, alloc.caches.__getitem__, name)
    with pytest.raises(KeyError):
        alloc.caches["zebra"]


def test_many_named_caches_that_come_and_go_are_forgotten(alloc):
    """A closed cache does not stay because of its name."""
    for i in range(200):
        alloc.create_cache(f"request {i}", NODE, capacity=10).close()

    assert 10 > len(alloc._named) == len(alloc._own)
    assert 0 == len(alloc.caches)


BAD_OPTIONS = [
    ({"capasity": 5}, jitslab.OptionError, "there is no option 'capasity'; the options of a cache: "),
    ({"capacity": 0}, jitslab.CapacityError, "capacity must be 1 .. 2**32, got 0"),
    ({"init": "one"}, jitslab.LayoutError, "init is None or 'zero' for the caches of all dtypes, got 'one'"),
    ({"init": (1.0, 2.0)}, jitslab.LayoutError, "init is None or 'zero' for the caches of all dtypes, got (1.0, 2.0)"),
    ({"policy": "locla"}, jitslab.NodeError, "a policy is 'local', 'interleave', a node or several, got 'locla'"),
    ({"nodes": 0}, jitslab.NodeError, "nodes must be 1 .. "),
]


@pytest.mark.parametrize(("options", "exception", "text"), BAD_OPTIONS, ids=str)
def test_bad_options_are_refused_at_once(alloc, options, exception, text):
    """By the allocator, before it makes any cache; those of one cache by what makes it."""
    with pytest.raises(exception) as caught:
        SlabAllocator("bad", **options)
    assert str(caught.value).startswith(text)
    if options != {"init": (1.0, 2.0)}:
        for use in (alloc.typed, lambda dtype, **options: alloc.create_cache("bad", dtype, **options)):
            with pytest.raises(exception):
                use(NODE, **options)
        assert [] == alloc._record_caches()


# --- The allocator as a whole ---


def test_report_says_what_is_live(alloc):
    """Name, count, bytes and the first few handles; the largest first."""
    points = [alloc.allocate_typed(POINT) for _ in range(6)]
    nodes = alloc.create_cache("nodes", NODE)
    h = nodes.alloc()
    alloc.create_cache("unused", WIDE)
    report = alloc.report()

    assert (7, 112) == (report.count, report.bytes)
    assert [("crime", "typed(x, y)", 6, 96), ("crime", "nodes", 1, 16)] == [
        (row.allocator, row.name, row.count, row.bytes) for row in report.caches
    ]
    assert tuple(sorted(points, key=lambda p: p & 0xFFFFFFFF))[:4] == report.caches[0].handles
    shown = ", ".join(f"{p:#x}" for p in report.caches[0].handles)
    assert str(report).splitlines() == [
        "7 live, 112 bytes:",
        f"  crime/typed(x, y): 6 live, 96 bytes: {shown}, ...",
        f"  crime/nodes: 1 live, 16 bytes: {h:#x}",
    ]
    for ptr in points:
        alloc.free_typed(ptr)
    nodes.free(h)
    assert not alloc.report()
    assert "nothing is live" == str(alloc.report())


def test_raw_memory_is_in_the_report(alloc):
    """Beside the records."""
    ptr = alloc.allocate(100)

    assert 1 == alloc.report().count
    assert ptr == alloc.report().caches[0].handles[0]
    alloc.free(ptr, 100)
    assert not alloc.report()


def test_closed_allocator_refuses_everything():
    """And its pointers, caches and guards; closing twice does nothing, nor does leaving the block of a guard."""
    alloc = SlabAllocator("gone")
    ptr, raw, nodes = alloc.allocate_typed(POINT), alloc.allocate(64), alloc.create_cache("nodes", NODE)
    with alloc.allocate_object(NODE) as guard:
        alloc.close()
        alloc.close()

    assert alloc.closed
    assert "<SlabAllocator 'gone': closed>" == repr(alloc)
    for use in (
        lambda: alloc.allocate_typed(POINT),
        lambda: alloc.allocate_object(POINT),
        lambda: alloc.typed(POINT),
        lambda: alloc.create_cache("a", POINT),
        lambda: alloc.free_typed(ptr),
        lambda: alloc.free_typed(int(ptr), POINT),
        lambda: alloc.record(ptr),
        lambda: alloc.__enter__(),
    ):
        refused(jitslab.ClosedError, "allocator 'gone' is closed", use)
    for use in (lambda: alloc.allocate(64), lambda: alloc.free(raw, 64), nodes.alloc, lambda: ptr.record, lambda: guard.value):
        with pytest.raises(jitslab.ClosedError):
            use()
    assert 0 == len(alloc.caches)
    assert not alloc.report()


def test_allocator_whose_init_never_ran_refuses():
    """Every use, by name; and none is opened twice."""
    never = SlabAllocator.__new__(SlabAllocator)
    for use in (
        lambda: never.allocate_typed(POINT),
        lambda: never.allocate_object(POINT),
        lambda: never.typed(POINT),
        lambda: never.free_typed(5, POINT),
        lambda: never.record(5, POINT),
        lambda: never.create_cache("a", POINT),
        lambda: never.cache("a"),
        lambda: never.caches,
        never.report,
        never.close,
        never.__enter__,
    ):
        refused(jitslab.ClosedError, "this SlabAllocator was never opened", use)
    with SlabAllocator("twice") as alloc:
        ptr = alloc.allocate_typed(POINT)
        with pytest.raises(jitslab.SlabError, match=" is open already$"):
            alloc.__init__("again")
        assert "twice" == alloc.name
        assert ptr in alloc


def test_copies_are_refused(alloc):
    """Handles are of one allocator."""
    text = "<SlabAllocator 'crime': 0 dedicated and 0 typed caches, 0 pieces of raw memory> cannot be "
    for use, end in (
        (copy.copy, "copied: a ptr names memory of one allocator"),
        (copy.deepcopy, "copied: a ptr names memory of one allocator"),
        (pickle.dumps, "pickled: its memory is private to this process"),
    ):
        refused(jitslab.CopyError, text + end, use, alloc)


def test_what_is_done_to_all_is_done_to_every_cache(alloc):
    """check, clear, shrink and raise_faults; what is live is in the allocator."""
    ptr, raw, named = alloc.allocate_typed(POINT), alloc.allocate(64), alloc.create_cache("nodes", NODE)
    handles = named.alloc_many(5)

    assert ptr in alloc
    assert raw in alloc
    assert "x" not in alloc
    assert SlabPtr(handles[0], named) in alloc
    with SlabAllocator("other") as other:
        assert ptr not in other
    alloc.check()
    Inside(named).slabs[0]["n_free"] += 1
    with pytest.raises(jitslab.LawError, match="of cache 'nodes'"):
        alloc.check()
    Inside(named).slabs[0]["n_free"] -= 1
    use_stale(named, handles[0])
    with pytest.raises(jitslab.FaultError, match="^1 fault in compiled code on cache 'nodes', by 'use_stale"):
        alloc.raise_faults()
    assert 7 == alloc.clear()
    assert not alloc.report()
    assert ptr not in alloc
    assert 2 <= alloc.shrink()


# --- Threads and processes ---


def in_threads(n, work):
    """Run work(k) in n threads that start together; raises what one of them raised."""
    start, errors = threading.Barrier(n), []

    def run(k):
        start.wait()
        try:
            work(k)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_that_come_first_share_one_typed_cache(alloc):
    """However many ask for a new dtype at the same time."""
    for i in range(20):
        found = []

        def make(k, i=i, found=found):
            found.append(alloc.allocate_typed(np.dtype([(f"a{i}", "i8")])))

        in_threads(8, make)
        assert 1 == len({ptr.cache for ptr in found})
        assert 8 == len(set(found))


def test_threads_that_want_one_name_get_it_once(alloc):
    """All others are refused."""
    for i in range(10):
        made, denied = [], []

        def make(k, i=i, made=made, denied=denied):
            try:
                made.append(alloc.create_cache(f"name {i}", NODE, capacity=10))
            except jitslab.DuplicateNameError as error:
                denied.append(error)

        in_threads(6, make)
        assert (1, 5) == (len(made), len(denied))
        assert made[0] is alloc.caches[f"name {i}"]


def test_threads_allocate_and_free_each_others_records(alloc):
    """Four of them, of three types, while one looks at names and reports."""
    dtypes, given = [POINT, NODE, WIDE], [[] for _ in range(4)]
    ends = threading.Barrier(4)

    def work(k):
        if k == 3:
            for i in range(30):
                alloc.create_cache(f"passing {i}", NODE, capacity=10)
                assert f"passing {i}" in list(alloc.caches)
                assert alloc.report().count >= 0
                alloc.caches[f"passing {i}"].close()
            ends.wait()
            return
        given[k] = [alloc.allocate_typed(dtypes[i % 3]) for i in range(900)]
        ends.wait()
        for ptr in given[(k + 1) % 3]:
            alloc.free_typed(ptr)

    in_threads(4, work)
    assert not alloc.report()
    for cache in alloc._record_caches():
        cache.check()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads, of newer Pythons
def test_child_of_fork_has_an_allocator_of_its_own(alloc):
    """It frees and closes what it has, while another thread of the parent was making a cache; the parent's is untouched."""
    ptr, nodes = alloc.allocate_typed(POINT), alloc.create_cache("nodes", NODE, capacity=100)
    ptr.record["x"] = 5.0
    inside, leave = threading.Event(), threading.Event()

    def hold_the_lock():
        with jitslab._names.names_lock():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold_the_lock)
    thread.start()
    inside.wait()
    pid = os.fork()
    if pid == 0:
        try:
            fine = 5.0 == alloc.record(ptr)["x"]
            ptr.record["x"] = 6.0
            alloc.free_typed(ptr)
            alloc.create_cache("child", NODE).alloc()
            nodes.alloc_many(50)
            alloc.close()
            fine = fine and not ptr.is_live
        finally:
            os._exit(0 if fine else 1)
    leave.set()
    thread.join()

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert 5.0 == ptr.record["x"]
    assert ["nodes"] == list(alloc.caches)
    assert 0 == len(nodes)
    alloc.free_typed(ptr)
    for cache in alloc._record_caches():
        cache.check()


def test_renamed_dtype_is_another_type(alloc):
    """A dtype object whose fields got other names after its first use is not taken for what it was."""
    mine = np.dtype([("value", "f8"), ("next", "i8")])
    first = alloc.allocate_typed(mine)
    mine.names = ("weight", "next")
    second = alloc.allocate_typed(mine)

    assert first.cache is not second.cache
    assert ("value", "next") == first.dtype.names
    assert ("weight", "next") == second.dtype.names
