"""
Links, beside a walk over the same records in plain Python: what they lead to, what is lost, and which are dangling.

Laws: what is reached, lost and free are all slots; `collect` frees exactly what `unreachable` returns; a link counts as dangling
wherever it stands in the record.
"""

import gc
import os
import signal
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from program import needs_machine_code, run_python

import jitslab
from jitslab import NULL, link, reach

NODE = np.dtype([("value", "f8"), ("next", link("nodes"))])
TREE = np.dtype([("value", "f8"), ("kids", link("nodes"), (2,))])
LEAF = np.dtype([("value", "f8")])
STALE = 1 << 32  # one cycle further on: of no live record


@pytest.fixture
def allocator():
    """Return an open allocator."""
    with jitslab.SlabAllocator("reach") as it:
        yield it


@pytest.fixture
def nodes():
    """Return a cache of nodes in a list, of no allocator."""
    with jitslab.SlabCache("nodes", NODE, capacity=100, init="zero") as it:
        yield it


def write(record, path, position, value):
    """Write the value at a position of a field."""
    for name in path[:-1]:
        record = record[name]
    values = np.array(record[path[-1]])
    values.flat[position] = value
    record[path[-1]] = values


def as_lists(found):
    """Return what `unreachable` found with lists in the place of arrays."""
    return {name: handles.tolist() for name, handles in found.items()}


@njit
def use_null(cache):
    """Write the record of a handle that is none."""
    cache[NULL].value = 1.0


# --- The oracle ---


def walked(caches, roots, links=None):
    """Return (reached records, dangling links met) of a walk in plain Python; a record is (name of its cache, handle)."""
    known = {**caches, **(links or {})}
    live = {name: set(cache.live().tolist()) for name, cache in known.items()}
    todo = [(name, handle) for name, handles in roots.items() for handle in handles]
    reached, dangling = set(), 0
    while todo:
        at = todo.pop()
        if at in reached:
            continue
        reached.add(at)
        record = known[at[0]].gather([at[1]])
        for path, name in jitslab.links_of(record.dtype).items():
            column = record
            for part in path:
                column = column[part]
            for handle in np.ravel(column).tolist():
                if handle in live[name]:
                    todo.append((name, handle))
                elif handle != NULL:
                    dangling += 1
    return reached, dangling


def expected_lost(caches, roots, links=None):
    """Return what `unreachable` must return, and its `dangling`."""
    reached, dangling = walked(caches, roots, links)
    return {name: [h for h in cache.live().tolist() if (name, h) not in reached] for name, cache in caches.items()}, dangling


# --- Lists, trees and rings ---


def test_list_is_reached_from_its_head(allocator):
    """What is behind the head is reached, what is before is not."""
    nodes = allocator.create_cache("nodes", NODE, init="zero")
    handles = nodes.alloc_many(10)
    nodes[handles[:-1], "next"] = handles[1:]

    assert {"nodes": handles[:4].tolist()} == as_lists(allocator.unreachable(handles[4]))
    assert {"nodes": 4} == allocator.collect([handles[4]])
    assert handles[4:].tolist() == nodes.live().tolist()
    allocator.check()


def test_ring_that_no_root_holds_is_lost(allocator):
    """Cycles end, reached or not."""
    nodes = allocator.create_cache("nodes", NODE)
    rings = nodes.alloc_many(10).reshape(2, 5)
    for ring in rings:
        nodes[ring, "next"] = np.roll(ring, -1)

    assert {"nodes": rings[1].tolist()} == as_lists(allocator.unreachable(int(rings[0, 3])))
    assert {"nodes": 5} == allocator.collect({nodes: rings[0, 3]})
    assert set(rings[0].tolist()) == set(nodes.live().tolist())


def test_record_that_links_to_itself_needs_a_root(allocator):
    """A link to the own record holds nothing."""
    nodes = allocator.create_cache("nodes", NODE, init="zero")
    a, b = nodes.alloc_many(2).tolist()
    nodes[[a, b], "next"] = [a, b]

    assert {"nodes": [b]} == as_lists(allocator.unreachable(a))
    assert {"nodes": 2} == allocator.collect([])
    assert 0 == len(nodes)


def test_caches_that_link_each_other_are_one_graph(allocator):
    """A path may lead from cache to cache and back."""
    orders = allocator.create_cache("orders", [("lines", link("lines"))], init="zero")
    lines = allocator.create_cache("lines", [("order", link("orders")), ("next", link("lines"))], init="zero")
    first, second = orders.alloc(), orders.alloc()
    ends = [lines.alloc(order=order, next=lines.alloc(order=order)) for order in (first, second)]
    orders[[first, second], "lines"] = ends
    lost = allocator.unreachable({"orders": [first]})

    assert [second] == lost["orders"].tolist()
    assert set(lines.live().tolist()) - {ends[0], int(lines[ends[0]]["next"])} == set(lost["lines"].tolist())
    assert {"orders": 1, "lines": 2} == allocator.collect({lines: [ends[0]]})
    assert {"orders": 0, "lines": 0} == allocator.collect(first)


@pytest.mark.parametrize("queue", [1, 2, 64, reach.QUEUE])
@pytest.mark.parametrize("at_once", [1, 7, reach.AT_ONCE])
def test_walk_is_the_same_with_a_small_queue_and_in_small_steps(allocator, monkeypatch, queue, at_once):
    """A full queue makes records wait; they are followed later, once each."""
    monkeypatch.setattr(reach, "QUEUE", queue)
    monkeypatch.setattr(reach, "AT_ONCE", at_once)
    nodes = allocator.create_cache("nodes", TREE, init="zero")
    leaves = allocator.create_cache("leaves", LEAF)
    leaves.alloc_many(3)
    handles = nodes.alloc_many(700)
    order = np.random.default_rng(3).permutation(600)
    tree = handles[order]  # its node i has the children 2 i + 1 and 2 i + 2
    for k in 1, 2:
        kids = 2 * np.arange(600) + k
        nodes.records["kids"][nodes.slots(tree), k - 1] = np.where(kids < 600, tree[np.minimum(kids, 599)], NULL)

    assert handles[600:].tolist() == allocator.unreachable({"nodes": [tree[0]]})["nodes"].tolist()
    assert {"nodes": 1 + 100, "leaves": 3} == allocator.collect({"nodes": tree[[1, 2]]})
    assert set(tree[1:].tolist()) == set(nodes.live().tolist())


def test_list_of_a_million_records_is_walked(allocator):
    """There is no recursion, and records lie in any order."""
    n = 1_000_000
    nodes = allocator.create_cache("nodes", NODE, capacity=n + 1000)
    handles = nodes.alloc_many(n)
    order = handles[np.random.default_rng(1).permutation(n)]
    nodes[order, "next"] = np.append(order[1:], NULL)

    assert 0 == nodes.dangling().size
    assert {"nodes": 10} == allocator.collect(order[10])
    assert n - 10 == len(nodes)
    assert {"nodes": 0} == allocator.collect(order[10:11])
    nodes.check()


def test_all_kinds_of_slabs_are_swept(allocator):
    """Records of many sizes, live in some slabs, with empty ones between them."""
    for itemsize in (8, 200, 3000, 9000, 70_000):
        cache = allocator.create_cache(f"size {itemsize}", [("a", "u1", (itemsize,))], capacity=4000)
        handles = cache.alloc_many(2000)
        keep = np.concatenate([handles[:3], handles[1500:1501], handles[-2:]])
        cache.free_many(np.setdiff1d(handles, keep)[::2])
        cache.free_many(np.setdiff1d(cache.live(), np.concatenate([keep, handles[1000:1500]])))
        cache.shrink()
        lost = np.setdiff1d(cache.live(), keep)
        rest = {other: other.live() for other in allocator.caches.values() if other is not cache}

        assert 200 < lost.size
        assert lost.tolist() == allocator.unreachable({cache: keep, **rest})[cache.name].tolist()
        assert lost.size == allocator.collect({cache: keep, **rest})[cache.name]
        assert sorted(keep.tolist()) == sorted(cache.live().tolist())
        cache.check()


def test_caches_of_several_nodes_are_swept():
    """Slots of other nodes are far away; links lead there and back."""
    with jitslab.SlabAllocator("reach", nodes=3) as allocator:
        nodes = allocator.create_cache("nodes", NODE, capacity=1000, init="zero")
        handles = nodes.alloc_many(900)
        nodes[handles[:-1], "next"] = handles[1:]

        assert {"nodes": handles[:100].tolist()} == as_lists(allocator.unreachable(handles[100]))
        assert 0 == nodes.dangling().size
        assert {"nodes": 100} == allocator.collect(handles[100])
        nodes.check()


# --- Where links can stand ---


LINK = link("nodes")
INNER = np.dtype([("pad", "u1"), ("both", LINK, (2,))])
ALIGNED = np.dtype([("x", "u1"), ("n", LINK)], align=True)
SHAPES = {  # a dtype, and how many values each of its links has
    "plain": (np.dtype([("next", LINK)]), {("next",): 1}),
    "array": (np.dtype([("a", "i4"), ("kids", LINK, (3, 4))], align=True), {("kids",): 12}),
    "packed": (np.dtype([("a", "u1"), ("n", LINK), ("b", "u1"), ("kids", LINK, (3,))]), {("n",): 1, ("kids",): 3}),
    "nested": (np.dtype([("a", "u1"), ("in", INNER)]), {("in", "both"): 2}),
    "array of records": (np.dtype([("a", "u1"), ("in", INNER, (2, 3))]), {("in", "both"): 12}),
    "arrays three deep": (np.dtype([("a", [("x", "f4"), ("in", INNER, (3,))], (2,))]), {("a", "in", "both"): 12}),
    "even steps": (np.dtype([("in", [("one", LINK)], (5,))]), {("in", "one"): 5}),
    "aligned": (np.dtype([("a", ALIGNED, (4,)), ("z", "u1")], align=True), {("a", "n"): 4}),
    "other order": (np.dtype([("n", LINK, (2,)), ("x", "u1")]).newbyteorder("S"), {("n",): 2}),
    "mixed order": (np.dtype([("m", LINK), ("n", LINK.newbyteorder("S"))]), {("m",): 1, ("n",): 1}),
    "no values": (np.dtype([("m", LINK, (0,)), ("n", LINK)]), {("m",): 0, ("n",): 1}),
    "title": (np.dtype([(("the next one", "n"), LINK)]), {("n",): 1}),
    "own offsets": (
        np.dtype({"names": ["b", "a"], "formats": [LINK, LINK], "offsets": [13, 2], "itemsize": 40}),
        {("b",): 1, ("a",): 1},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_place_of_a_link_is_found(allocator, shape):
    """Of every value, at its own position: it holds a record, and if that is gone, it is dangling."""
    dtype, places = SHAPES[shape]
    nodes = allocator.create_cache("nodes", dtype, init="zero")
    root, kid = nodes.alloc(), nodes.alloc()
    record = nodes[root]

    assert places == {field.path: field.n_values for field in reach.link_fields(nodes.dtype)}
    for path, count in places.items():
        for position in range(count):
            write(record, path, position, kid)

            assert {"nodes": []} == as_lists(allocator.unreachable(root))
            write(record, path, position, kid + STALE)
            lost = allocator.unreachable(root)

            assert ({"nodes": [kid]}, 1) == (as_lists(lost), lost.dangling)
            assert [(root, ".".join(path), position, kid + STALE)] == nodes.dangling().tolist()
            write(record, path, position, NULL)


def test_bad_values_are_dangling(nodes):
    """Numbers that no cache ever issued, negative ones, and handles of freed records; NULL is none of them."""
    freed, h = sorted(nodes.alloc_many(2).tolist())
    nodes.free(freed)
    slot = h & 0xFFFFFFFF
    for value in (
        freed,
        h + STALE,
        h - STALE,
        h ^ (1 << 31),
        h | 0xFFFFFFFF,
        -1,
        -h,
        h | -(1 << 63),
        slot,
        slot + 1,
        1,
        2**63 - 1,
    ):
        nodes[h]["next"] = value

        assert [(h, "next", 0, value)] == nodes.dangling().tolist()
    for value in (NULL, h):
        nodes[h]["next"] = value

        assert [] == nodes.dangling().tolist()


def test_many_dangling_links_are_all_found_in_the_order_of_slots(nodes):
    """More than there is room for at first."""
    with jitslab.SlabCache("trees", [("kids", link("nodes"), (20,))], capacity=5000) as trees:
        handles = trees.alloc_many(5000, kids=7)
        found = trees.dangling({"nodes": nodes})

        assert np.repeat(np.sort(handles & 0xFFFFFFFF), 20).tolist() == (found["handle"] & 0xFFFFFFFF).tolist()
        assert list(range(20)) * 5000 == found["position"].tolist()
        assert {("kids", 7)} == set(found[["field", "value"]].tolist())
        assert trees.is_live(found["handle"]).all()


def test_records_without_links_have_none_dangling():
    """The result has no rows, but its fields."""
    with jitslab.SlabCache("leaves", LEAF, capacity=10) as leaves:
        leaves.alloc_many(5)

        assert (0, ("handle", "field", "position", "value")) == (leaves.dangling().size, leaves.dangling().dtype.names)


# --- Where links find their caches ---


def test_links_are_found_in_the_allocator_first_where_they_are_given(allocator):
    """An allocator's caches by name, dedicated or typed; others must be given, and come first."""
    nodes = allocator.create_cache("nodes", NODE, init="zero")
    heads = allocator.typed([("head", link("nodes"))])
    h = heads.alloc(head=nodes.alloc())
    with jitslab.SlabCache("others", NODE, capacity=10) as others:
        assert 0 == heads.dangling().size
        assert [(h, "head", 0, int(heads[h]["head"]))] == heads.dangling({"nodes": others}).tolist()


def test_typed_caches_are_part_of_the_graph(allocator):
    """By name; those of one name have numbers; the own name is the own cache, whatever else has it."""
    a = allocator.typed([("x", "f8"), ("self", link("typed(x, self)"))])
    b = allocator.typed([("x", "f4"), ("self", link("typed(x, self)"))])
    leaf = allocator.typed(LEAF)
    with_names = {"typed(x, self)#1": a, "typed(x, self)#2": b, "typed(value)": leaf}
    for cache in a, b:
        first = cache.alloc(x=0.0, self=NULL)
        cache.alloc(x=1.0, self=first)

    assert list(with_names) == list(allocator.unreachable([]))
    assert 0 == a.dangling().size == b.dangling().size
    second = int(b.live()[1]) if b[b.live()[1]]["x"] == 1 else int(b.live()[0])
    assert {"typed(x, self)#1": 2, "typed(x, self)#2": 0, "typed(value)": 0} == allocator.collect({b: second})


def test_given_caches_are_passed_through_and_kept(allocator, nodes):
    """A path may lead through a cache of nobody's; its records stay, whether they are reached or not."""
    ends = allocator.create_cache("ends", [("via", link("hubs"))], init="zero")
    with jitslab.SlabCache("hubs", [("end", link("ends"))], capacity=10, init="zero") as hubs:
        last, lost = ends.alloc(), ends.alloc()
        hub = hubs.alloc(end=last)
        hubs.alloc(end=lost)
        first = ends.alloc(via=hub)

        assert {"ends": [lost]} == as_lists(allocator.unreachable(first, {"hubs": hubs}))
        assert {"ends": [first]} == as_lists(allocator.unreachable({hubs: hubs.live()}, {"hubs": hubs}))
        assert {"ends": [first]} == as_lists(allocator.unreachable({"hubs": hubs.live()}, {"hubs": hubs}))
        assert {"ends": 1} == allocator.collect({"ends": first}, {"hubs": hubs})
        assert 2 == len(hubs)


def test_cache_may_have_two_names(nodes):
    """It is one part of the graph; both names say the same of it."""
    first, lost = nodes.alloc_many(2).tolist()
    caches = {"nodes": nodes, "again": nodes}

    assert {"nodes": [lost], "again": [lost]} == as_lists(reach.unreachable(caches, first))
    assert {"nodes": 1, "again": 1} == reach.collect(caches, {"again": first})
    assert [first] == nodes.live().tolist()


def test_link_to_no_known_cache_is_refused(allocator, nodes):
    """With the field, the cache, and what to do; nothing is freed."""
    cache = allocator.create_cache("trees", [("in", np.dtype([("kid", link("nodes"))]))], init="zero")
    h = cache.alloc()
    text = "field 'in.kid' of cache 'trees' links to cache 'nodes', which is not found; give it: links={'nodes': cache}"
    for call in (cache.dangling, lambda: allocator.unreachable(h), lambda: allocator.collect([])):
        with pytest.raises(jitslab.UnknownNameError) as caught:
            call()
        assert text == str(caught.value)
    assert 0 == cache.dangling({"nodes": nodes}).size
    assert 1 == len(cache)


def test_cache_outlives_its_allocator():
    """It then knows itself alone."""
    allocator = jitslab.SlabAllocator("reach")
    nodes, gone = allocator.create_cache("nodes", NODE, init="zero"), weakref.ref(allocator)
    nodes.alloc()

    assert 0 == nodes.dangling().size
    del allocator
    gc.collect()
    assert gone() is None
    assert 0 == nodes.dangling().size


def test_link_must_be_an_int64(allocator):
    """Metadata alone makes no handle."""
    wrong = np.dtype("f4", metadata=dict(link("nodes").metadata))
    cache = allocator.create_cache("nodes", [("a", np.dtype([("next", wrong)]))])
    for call in (cache.dangling, lambda: allocator.collect([])):
        with pytest.raises(jitslab.LayoutError) as caught:
            call()
        assert "field 'a.next' is a link, and no int64 but float32; use the dtype that link() returns" == str(caught.value)


@pytest.mark.parametrize(
    ("links", "text"),
    [
        ([], "links is {name: cache}, got list"),
        ({"nodes": None}, "links['nodes'] is a SlabCache, got NoneType"),
        ({"nodes": "nodes"}, "links['nodes'] is a SlabCache, got str"),
    ],
)
def test_wrong_links_are_refused(allocator, links, text):
    """Caches by name, and nothing that only answers as one."""
    cache = allocator.create_cache("trees", [("kid", link("nodes"))])
    for call in (cache.dangling, lambda it: allocator.unreachable([], it), lambda it: allocator.collect([], it)):
        with pytest.raises(jitslab.CacheTypeError) as caught:
            call(links)
        assert text == str(caught.value)


def test_proxy_of_a_cache_is_no_cache(allocator, nodes):
    """It would not keep the cache."""
    cache = allocator.create_cache("trees", [("kid", link("nodes"))])
    with pytest.raises(jitslab.CacheTypeError, match="got weakproxy$|got ProxyType$|got weakref.ProxyType$"):
        cache.dangling({"nodes": weakref.proxy(nodes)})


def test_closed_caches_are_refused_or_not_there(allocator, nodes):
    """A given one is refused; one of the allocator is not found."""
    target = allocator.create_cache("nodes", NODE)
    cache = allocator.create_cache("trees", [("kid", link("nodes"))])
    target.close()
    nodes.close()
    with pytest.raises(jitslab.UnknownNameError, match="links to cache 'nodes', which is not found"):
        cache.dangling()
    with pytest.raises(jitslab.ClosedError, match="^cache 'nodes' is closed$"):
        cache.dangling({"nodes": nodes})
    allocator.close()
    for call in (allocator.unreachable, allocator.collect):
        with pytest.raises(jitslab.ClosedError):
            call([])


# --- Roots ---


def test_no_roots_reach_nothing(allocator):
    """An empty list, mapping or array."""
    nodes = allocator.create_cache("nodes", NODE, init="zero")
    handles = nodes.alloc_many(5)
    nodes[handles[:-1], "next"] = handles[1:]
    for roots in ([], {}, np.zeros(0, np.int64), {"nodes": []}, {nodes: ()}):
        assert {"nodes": sorted(handles.tolist())} == {n: sorted(it.tolist()) for n, it in allocator.unreachable(roots).items()}
    assert {"nodes": 5} == allocator.collect({})
    assert {"nodes": 0} == allocator.collect(())


def test_allocator_without_caches_has_nothing_to_reach(allocator):
    """And no record that could be a root."""
    assert {} == allocator.unreachable([]) == allocator.collect({})
    with pytest.raises(jitslab.ForeignHandleError):
        allocator.unreachable(5)


REFUSED = {
    "stale": (lambda h: [h - STALE], jitslab.HandleError),
    "freed before": (lambda h: h + STALE, jitslab.HandleError),
    "NULL": (lambda h: [h, NULL], jitslab.NullHandleError),
    "negative": (lambda h: [-h], jitslab.ForeignHandleError),
    "enormous": (lambda h: [1 << 70], jitslab.ForeignHandleError),
    "no integer": (lambda h: [1.5], jitslab.HandleTypeError),
    "text": (lambda h: "nodes", jitslab.HandleTypeError),
    "nothing": (lambda h: None, jitslab.HandleTypeError),
    "two dimensions": (lambda h: [[h]], jitslab.ArrayError),
    "of a name": (lambda h: {"leaves": [h]}, jitslab.UnknownNameError),
    "of a key": (lambda h: {5: [h]}, jitslab.UnknownNameError),
    "of None": (lambda h: {None: [h]}, jitslab.UnknownNameError),
    "of a cache": (lambda h: {"nodes": [h], "nodes ": []}, jitslab.UnknownNameError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_roots_free_nothing(allocator, case):
    """Each by its error."""
    nodes = allocator.create_cache("nodes", NODE, init="zero")
    h = nodes.alloc_many(3).tolist()[0]
    make, error = REFUSED[case]
    for call in (allocator.unreachable, allocator.collect):
        with pytest.raises(error):
            call(make(h))
    assert 3 == len(nodes)


def test_refused_root_among_good_ones_is_named(allocator):
    """As a batch of frees names it."""
    nodes = allocator.create_cache("nodes", NODE, init="zero")
    handles = nodes.alloc_many(4)
    nodes.free(handles[2])
    with pytest.raises(jitslab.StaleHandleError) as caught:
        allocator.collect({"nodes": handles})
    assert (2,) == caught.value.positions
    assert str(caught.value).startswith("1 of 4 handles refused, at 2; the first: slot ")


def test_roots_tell_their_cache_if_it_is_the_only_one(allocator):
    """Of several caches, the one where they are live; where that is not clear, it must be said."""
    nodes = allocator.create_cache("nodes", NODE, init="zero")
    leaves = allocator.create_cache("leaves", LEAF)
    h, leaf = nodes.alloc(), leaves.alloc()

    assert {"nodes": [], "leaves": [leaf]} == as_lists(allocator.unreachable(h))
    assert {"nodes": [h], "leaves": []} == as_lists(allocator.unreachable([leaf]))
    with pytest.raises(jitslab.RecordTypeError) as caught:
        allocator.unreachable([h, leaf])
    assert "roots are live in caches 'nodes' and 'leaves'; say which are meant: {cache: handles}" == str(caught.value)
    with pytest.raises(jitslab.ForeignHandleError) as caught:
        allocator.unreachable([h + STALE, leaf + STALE])
    assert f"root {h + STALE:#x} is of no live record, as all others" == str(caught.value)
    assert (0, 1) == caught.value.positions


def test_cache_of_another_allocator_has_no_roots_here(allocator, nodes):
    """It is not searched."""
    allocator.create_cache("nodes", NODE)
    with pytest.raises(jitslab.UnknownNameError, match="^there is no cache 'nodes' among those that are searched$"):
        allocator.unreachable({nodes: []})


def test_roots_are_pointers_of_typed_records(allocator):
    """A SlabPtr is an integer."""
    dtype = [("next", link("typed(next)"))]
    a, b, c = (allocator.allocate_typed(dtype) for _ in range(3))
    a.record["next"] = b

    assert {"typed(next)": [int(c)]} == as_lists(allocator.unreachable(a))
    assert {"typed(next)": 1} == allocator.collect([a])
    assert (True, True, False) == (a.is_live, b.is_live, c.is_live)


# --- What happens to what is freed ---


def test_guard_of_a_collected_record_is_refused(allocator):
    """As after any other free."""
    nodes = allocator.create_cache("nodes", NODE, init="zero")
    guard = nodes.allocate()

    assert {"nodes": 1} == allocator.collect([])
    with pytest.raises(jitslab.StaleHandleError):
        guard.value = 1.0


@needs_machine_code
def test_faults_come_first(allocator):
    """What compiled code did wrong is told before anything is freed."""
    nodes = allocator.create_cache("nodes", NODE, init="zero")
    nodes.alloc()
    for call in (nodes.dangling, lambda: allocator.unreachable([]), lambda: allocator.collect([])):
        use_null(nodes)
        with pytest.raises(jitslab.FaultError):
            call()
    assert 1 == len(nodes)


INTERRUPTED = """
import signal, numpy as np, jitslab

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
node = np.dtype([("next", jitslab.link("nodes"))])
n, outcomes = 300_000, set()
for k in range(30):
    with jitslab.SlabAllocator("reach") as allocator:
        nodes = allocator.create_cache("nodes", node, capacity=n)
        order = np.random.default_rng(k).permutation(nodes.alloc_many(n))
        nodes[order, "next"] = np.append(order[1:], 0)
        allocator.unreachable([])
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.001 * k)
        try:
            allocator.collect(order[1000])
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            pass
        outcomes.add(len(nodes))
        nodes.check()
assert outcomes <= {n, n - 1000}, outcomes
print("ok")
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="a timer that interrupts is a matter of Unix")
def test_interrupted_collect_frees_all_or_nothing():
    """At whatever instant Ctrl-C comes."""
    assert "ok" == run_python(INTERRUPTED).strip()


def test_without_memory_nothing_is_freed(allocator, monkeypatch):
    """The first thing that is made for a walk is what it needs."""
    nodes = allocator.create_cache("nodes", NODE, capacity=1000, init="zero")
    nodes.alloc_many(1000)
    monkeypatch.setattr(reach, "QUEUE", 1 << 50)
    with pytest.raises(MemoryError):
        allocator.collect([])
    assert 1000 == len(nodes)


@njit(nogil=True)
def churn(cache, flag):
    """Alloc and free until the flag is set."""
    while flag[0] == 0:
        cache.free(cache.alloc())


@needs_machine_code
def test_links_are_followed_at_rest_alone(allocator):
    """While another thread uses a cache, or one that is linked to, that is said; nothing is freed."""
    nodes = allocator.create_cache("nodes", NODE, init="zero")
    heads = allocator.create_cache("heads", [("head", link("nodes"))], init="zero")
    heads.alloc(head=nodes.alloc())
    stop = np.zeros(1, np.int64)
    churn(nodes, np.ones(1, np.int64))
    thread = threading.Thread(target=churn, args=(nodes, stop))
    thread.start()
    try:
        for name, call in (
            ("dangling", heads.dangling),
            ("unreachable", lambda: allocator.unreachable([])),
            ("collect", lambda: allocator.collect({heads: heads.live()})),
        ):
            with pytest.raises(jitslab.BusyError) as caught:
                for _ in range(10_000):  # a look may fall into a moment when the other thread does not run
                    call()
            assert f"{name} needs cache 'nodes' at rest, and other threads are using it" == str(caught.value)
    finally:
        stop[0] = 1
        thread.join()
    assert {"nodes": 0, "heads": 0} == allocator.collect({heads: heads.live()})
    assert (1, 1) == (len(nodes), len(heads))


FORKED = """
import os, threading, numpy as np, jitslab

node = np.dtype([("next", jitslab.link("nodes"))])
with jitslab.SlabAllocator("reach") as allocator:
    nodes = allocator.create_cache("nodes", node, capacity=10_000, init="zero")
    handles = nodes.alloc_many(5000)
    nodes[handles[:-1], "next"] = handles[1:]
    came, gone = threading.Event(), threading.Event()

    def use():  # it owns a heap then: so the child's index is torn
        nodes.free(nodes.alloc())
        came.set()
        gone.wait()

    thread = threading.Thread(target=use)
    thread.start()
    came.wait()
    pid = os.fork()
    if pid == 0:
        assert nodes.dangling().size == 0
        assert allocator.collect(handles[4000]) == {"nodes": 4000}
        assert len(nodes) == 1000
        nodes.check()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    gone.set()
    thread.join()
    assert len(nodes) == 5000
print("ok")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_child_of_fork_follows_links():
    """Its index may be torn: it is rebuilt first."""
    assert "ok" == run_python(FORKED, "-W", "ignore::DeprecationWarning").strip()


# --- Any graph ---


HUB = np.dtype([("tag", "u1"), ("links", np.dtype([("a", link("hubs")), ("x", "u1"), ("b", link("ends"), (2,))]), (2,))])
END = np.dtype([("back", link("hubs")), ("self", link("ends"))], align=True)
PICK = st.integers(0, 40)  # of a record of some list, of NULL, or of a bad value


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 20),
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(0, 500), PICK), max_size=60),
    st.sets(st.integers(0, 19), max_size=6),
    st.sets(st.integers(0, 19), max_size=6),
    st.lists(st.tuples(st.booleans(), st.integers(0, 19)), max_size=4),
    st.sampled_from([1, 4, reach.QUEUE]),
)
def test_any_graph_is_as_in_python(n_hubs, n_ends, edges, dead_hubs, dead_ends, roots, queue):
    """Whatever links there are: `unreachable`, `collect` and `dangling` say what a walk in Python does."""
    before, reach.QUEUE = reach.QUEUE, queue
    try:
        with jitslab.SlabAllocator("any") as allocator:
            caches = {
                "hubs": allocator.create_cache("hubs", HUB, init="zero"),
                "ends": allocator.create_cache("ends", END, init="zero"),
            }
            made = {"hubs": caches["hubs"].alloc_many(n_hubs), "ends": caches["ends"].alloc_many(n_ends)}
            for at, to in edges:
                write_link(caches, made, at, to)
            for name, dead in (("hubs", dead_hubs), ("ends", dead_ends)):
                caches[name].free_many([made[name][k] for k in dead if k < made[name].size])
            starts = {name: [] for name in caches}
            for is_hub, k in roots:
                name = "hubs" if is_hub else "ends"
                if k < made[name].size and made[name][k] in caches[name]:
                    starts[name].append(int(made[name][k]))
            lost, met = expected_lost(caches, starts)
            found = allocator.unreachable(starts)

            assert (lost, met) == (as_lists(found), found.dangling)
            for name, cache in caches.items():
                assert bad_links(caches, cache) == cache.dangling().tolist()
                assert {*cache.live().tolist()} >= {*lost[name]}
            freed = allocator.collect(starts)
            assert ({name: len(handles) for name, handles in lost.items()}, met) == (freed, freed.dangling)
            reached, _ = walked(caches, starts)
            assert reached == {(name, h) for name, cache in caches.items() for h in cache.live().tolist()}
            allocator.check()
    finally:
        reach.QUEUE = before


def write_link(caches, made, at, to):
    """Write one of all the links: `at` counts them, `to` counts the records of its cache; then NULL, and bad values."""
    places = [("hubs", k, p) for k in range(made["hubs"].size) for p in range(6)]
    places += [("ends", k, p) for k in range(made["ends"].size) for p in range(2)]
    if not places:
        return
    name, k, p = places[at % len(places)]
    record = caches[name][made[name][k]]
    if name == "hubs":
        links, target = record["links"][p // 3], "hubs" if p % 3 == 0 else "ends"
    else:
        target = "hubs" if p == 0 else "ends"
    handles = made[target]
    if handles.size == 0:
        value = 77
    else:
        value = int(handles[to % handles.size]) if to < 38 else (NULL, -1, int(handles[0]) + STALE)[to - 38]
    if name == "hubs" and target == "hubs":
        links["a"] = value
    elif name == "hubs":
        links["b"][p % 3 - 1] = value
    else:
        record["back" if p == 0 else "self"] = value


def bad_links(caches, cache):
    """Return what `dangling` must return for a cache."""
    found = []
    for handle in cache.live().tolist():
        record = cache.gather([handle])
        for path, name in jitslab.links_of(cache.dtype).items():
            column = record
            for part in path:
                column = column[part]
            for position, value in enumerate(np.ravel(column).tolist()):
                if value != NULL and value not in caches[name]:
                    found.append((handle, ".".join(path), position, value))
    return found


# --- Without links ---


PLAIN = {
    "link": link("nodes"),
    "other order": link("nodes").newbyteorder("S"),
    "array": np.dtype((link("nodes"), (2, 3))),
    "record": NODE,
    "aligned": np.dtype([("a", "u1"), ("n", link("nodes"))], align=True),
    "own offsets": np.dtype({"names": ["a", "b"], "formats": ["u1", link("n")], "offsets": [3, 16], "itemsize": 40}),
    "titles": np.dtype([(("the title", "a"), link("n")), ("b", "f4"), (("more", "c"), "i2")]),
    "nested": np.dtype([("a", "M8[3s]"), ("in", np.dtype([("x", "u1"), (("t", "n"), link("n"), (2,))], align=True), (2, 3))]),
    "numpy.record": np.dtype((np.record, [("n", link("nodes"))])),
}


def shape_of(dtype):
    """Return what tells a dtype from others, but for metadata."""
    if dtype.subdtype is not None:
        return dtype.shape, shape_of(dtype.base)
    fields = [(name, *map(str, dtype.fields[name][1:]), shape_of(dtype[name])) for name in dtype.names or ()]
    return dtype.str, dtype.type, dtype.itemsize, dtype.alignment, dtype.isalignedstruct, fields


@pytest.mark.parametrize("case", PLAIN)
def test_plain_dtype_differs_in_the_links_alone(case, tmp_path):
    """Fields, offsets, alignment and titles are kept; NumPy saves it without a warning."""
    dtype = PLAIN[case]
    bare = jitslab.plain(dtype)
    np.save(tmp_path / "a.npy", np.zeros(3, dtype).view(bare) if dtype.subdtype is None else np.zeros(3, bare))

    assert dtype == bare
    assert shape_of(dtype) == shape_of(bare)
    assert "metadata" not in repr(bare)
    assert [] == list(jitslab.links.links_within(bare, ()))
    assert [] != list(jitslab.links.links_within(dtype, ()))


def test_plain_dtype_without_links_is_the_dtype():
    """Nothing is made anew."""
    for dtype in (np.dtype("f8"), LEAF, np.dtype((LEAF, (2,)))):
        assert jitslab.plain(dtype) is dtype


def test_plain_dtype_keeps_other_metadata():
    """The name of the cache alone goes."""
    unit = np.dtype("f8", metadata={"unit": "m"})
    both = np.dtype("i8", metadata={**link("nodes").metadata, "unit": "s"})
    dtype = np.dtype([("x", unit), ("n", both)], metadata={"version": 3})
    bare = jitslab.plain(dtype)

    assert ({"unit": "m"}, {"unit": "s"}, {"version": 3}) == tuple(dict(it.metadata) for it in (bare["x"], bare["n"], bare))


def test_plain_dtype_of_a_declared_class_and_of_none():
    """Whatever stands for a dtype."""

    @jitslab.record
    class Node:
        value: jitslab.f8
        next: np.int64

    assert Node.dtype is jitslab.plain(Node) or Node.dtype == jitslab.plain(Node)
    with pytest.raises(jitslab.LayoutError, match="^not a dtype: "):
        jitslab.plain("no such type")
