"""
Where pages and records lie on four real nodes, asserted page by page.  `python tests/vm/run.py` runs this file in its machine.

Nodes 0 and 1 have CPUs, 2 and 3 memory only.  Run as a program, outside, it compiles what it calls: inside, Numba then reads
it from disk.
"""

import contextlib
import threading
from functools import partial

import numpy as np
import pytest
from numba import njit
from pages import (
    HUGE,
    INTERLEAVE,
    PAGE,
    PREFERRED,
    Mapping,
    cpus_of,
    free_memory,
    full,
    node_of,
    nodes_of_pages,
    nodes_of_range,
    on_node,
)

import jitslab

NODES = range(4)
POINT = np.dtype([("x", "<f8"), ("id", "<i8"), ("pad", "u1", 48)])  # 64 bytes: 64 records a page
N = 4000  # records: 63 pages
MANY = 200_000  # 12 MiB, some steps of growth


# --- The machine ---


def test_machine_is_as_described():
    """Four nodes; two have CPUs; each has memory."""
    assert [cpus_of(node) for node in NODES] == [{0, 1}, {2, 3}, set(), set()]
    assert all(free_memory(node) > 100 << 20 for node in NODES)


@pytest.mark.parametrize("node", NODES)
def test_preferred_pages_lie_on_their_node(node):
    """Both ways of asking agree."""
    with contextlib.closing(Mapping(HUGE, PREFERRED, [node])) as mapping:
        assert {node} == set(mapping.touch())
        assert node == node_of(mapping.address)


def test_interleaved_pages_lie_evenly():
    """One page in turn on each node."""
    with contextlib.closing(Mapping(HUGE, INTERLEAVE, NODES)) as mapping:
        counts = np.bincount(mapping.touch(), minlength=4)

    assert [HUGE // PAGE // 4] * 4 == counts.tolist()


def test_preferred_pages_spill_when_the_node_is_full():
    """What a full node cannot hold lies elsewhere, and the node has room again afterwards."""
    with full(2), contextlib.closing(Mapping(16 * HUGE, PREFERRED, [2])) as mapping:
        spilled = mapping.touch() != 2

    assert spilled.mean() > 0.5
    with contextlib.closing(Mapping(HUGE, PREFERRED, [2])) as mapping:
        assert {2} == set(mapping.touch())


# --- The library, whatever its policy ---


@njit(cache=True)
def fill(cache, handles):
    """Take a record for each place of `handles` and write it."""
    for i in range(len(handles)):
        handles[i] = cache.alloc()
        record = cache[handles[i]]
        record.id = i
        record.x = i


@njit(cache=True)
def empty(cache, handles):
    """Free them all; return the sum of what they held."""
    total = 0
    for h in handles:
        total += cache[h].id
        cache.free(h)
    return total


def take(cache, n=N):
    """Return the handles of n new records, written to, in compiled code."""
    handles = np.zeros(n, np.int64)
    fill(cache, handles)
    assert handles.all()
    return handles


def test_records_come_and_go():
    """From Python and compiled; what was written is read."""
    with jitslab.SlabCache("points", POINT) as cache:
        h = cache.alloc()
        cache.free(h)
        total = empty(cache, take(cache))

        assert len(cache) == 0
    assert N * (N - 1) // 2 == total


# --- The library's placement ---


def nodes_of_records(cache, handles):
    """Return the node of the first and the last byte of each record, as two rows."""
    first = cache.records.ctypes.data + cache.slots(handles).astype(np.uint64) * np.uint64(cache.stride)
    return np.stack([nodes_of_pages(first), nodes_of_pages(first + np.uint64(POINT.itemsize - 1))])


def assert_on(node, cache, handles):
    """Each of these records lies on `node`, and its slab says so."""
    assert {node} == set(nodes_of_records(cache, handles).ravel().tolist())
    assert {node} == {cache.object_at(int(h)).page.node for h in handles[:: max(1, len(handles) // 50)]}


def in_thread(work, *args):
    """Return what `work` returns in a thread of its own; raises what it raises."""
    outcome = []

    def body():
        try:
            outcome.append((work(*args), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def take_on(node, cache, n=N):
    """Return the handles of n records taken by a new thread on the CPUs of `node`."""

    def work():
        with on_node(node):
            return take(cache, n)

    return in_thread(work)


@pytest.mark.parametrize("node", [0, 1])
def test_local_records_lie_on_the_node_of_the_thread(node):
    """The default policy, from compiled code and from Python."""
    with jitslab.SlabCache("points", POINT) as cache, on_node(node):
        assert_on(node, cache, take(cache))
        handles = np.array([cache.alloc() for _ in range(100)])
        for h in handles:
            cache[int(h)]["id"] = 1
        assert_on(node, cache, handles)
        assert_on(node, cache, cache.live())


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("strict", [False, True], ids=["preferred", "strict"])
def test_records_lie_on_the_node_asked_for(node, strict):
    """An explicit node, with CPUs or without, from both nodes that have CPUs."""
    with jitslab.SlabCache("points", POINT, policy=node, strict=strict) as cache:
        for cpus in (0, 1):
            assert_on(node, cache, take_on(cpus, cache))


def test_interleaved_records_lie_evenly():
    """Every node has its share."""
    with jitslab.SlabCache("points", POINT, policy="interleave") as cache:
        handles = take(cache, MANY)
        nodes = nodes_of_records(cache, handles)
        counts = np.bincount(nodes[0], minlength=4)

        assert (nodes[0] == nodes[1]).all()
        assert counts.min() > 0.8 * MANY / 4


def test_pages_take_turns_on_the_nodes_named():
    """Interleaving over some of the nodes."""
    with jitslab.SlabCache("points", POINT, policy=[0, 3]) as cache:
        counts = np.bincount(nodes_of_records(cache, take(cache, MANY))[0], minlength=4)

        assert counts[1] == counts[2] == 0
        assert counts[[0, 3]].min() > 0.8 * MANY / 2


def test_library_tells_where_pages_lie():
    """`page_nodes` counts what the kernel says; the library's node of each set is where all of its pages are."""
    with jitslab.SlabCache("points", POINT) as cache:
        for node in (0, 1):
            take_on(node, cache, MANY)
        told = cache.page_nodes()

        assert sorted(told) == [0, 1]
        for node in (0, 1):
            assert list(told[node]) == [node]
            assert told[node][node] >= MANY * POINT.itemsize // PAGE
        assert [node.live for node in cache.nodes] == [MANY, MANY]
    assert [node.id for node in jitslab.nodes()] == [0, 1, 2, 3]
    assert [node.cpus for node in jitslab.nodes()] == [(0, 1), (2, 3), (), ()]


def test_metadata_lies_with_its_records():
    """Generations, free bits and rows of a node's slabs are in its memory, too."""
    with jitslab.SlabCache("points", POINT) as cache:
        for node in (0, 1):
            handles = take_on(node, cache)
            cache.free_many(handles[::2])
        for node in (0, 1):
            field = partial(cache._memory.field, node=node)
            first = field("first_slot")
            words = field("generations") + 4 * (first + 1500 * 1)
            rows = field("slabs") - 64 * field("first_slab")
            bits = field("bits") + first // 8
            assert {node} == set(nodes_of_pages(np.array([words, rows, bits], np.uint64)).tolist())


@pytest.mark.parametrize("node", [0, 1, 2, 3])
def test_metadata_lies_on_the_node_asked_for(node):
    """The first generations, too, which share a page with CONTROL, whichever thread wrote to that first."""
    with jitslab.SlabCache("points", POINT, policy=node) as cache:
        cache.free_many(take(cache)[::2])
        field = cache._memory.field
        first = np.array([field(region) for region in ("generations", "slabs", "bits")], np.uint64)
        assert {node} == set(nodes_of_pages(first).tolist())


def test_node_that_is_none_is_refused():
    """A node that the machine does not have; the message names those it has."""
    with pytest.raises(jitslab.NodeError, match="node 4 does not exist, or is not allowed to this process; usable: 0, 1, 2, 3"):
        jitslab.SlabCache("points", POINT, policy=4)


@pytest.mark.parametrize("policy", ["local", 3])
def test_records_lie_there_after_growth(policy):
    """Memory that a cache takes later lies where the first did."""
    with jitslab.SlabCache("points", POINT, policy=policy) as cache:
        node = 1 if policy == "local" else policy
        assert_on(node, cache, take_on(1, cache, 100))
        assert_on(node, cache, take_on(1, cache, MANY))
        assert_on(node, cache, cache.live())


def test_two_nodes_share_a_cache():
    """Records of threads on either node lie apart, in one cache."""
    with jitslab.SlabCache("points", POINT) as cache:
        for _ in range(3):
            for node in (0, 1):
                assert_on(node, cache, take_on(node, cache))


def test_records_freed_on_another_node_go_home():
    """A slot that the other node freed serves its own node again, never the one that freed it."""
    with jitslab.SlabCache("points", POINT) as cache:
        for _ in range(3):
            handles = take_on(0, cache)

            def free_on_1(handles=handles):
                with on_node(1):
                    empty(cache, handles)
                    later = take(cache)
                    assert_on(1, cache, later)
                    return later

            later = in_thread(free_on_1)
            again = take_on(0, cache)
            assert_on(0, cache, again)
            cache.free_many(again)
            cache.free_many(later)
        cache.check()


@pytest.mark.parametrize("node", [2, 3])
def test_records_spill_when_their_node_is_full(node):
    """A cache on a full node still serves: records are whole, most of them lie elsewhere; later ones lie at home again."""
    with jitslab.SlabCache("points", POINT, policy=node) as cache:
        assert_on(node, cache, take(cache, 100))
        with full(node):
            handles = take(cache, MANY)
            nodes = nodes_of_records(cache, handles)
            records = cache.gather(handles)
            assert (nodes >= 0).all()
            assert (nodes != node).mean() > 0.5
            assert records["id"].tolist() == list(range(MANY))
            cache.free_many(handles)
        cache.shrink()
        cache.check()
    with jitslab.SlabCache("points", POINT, policy=node) as cache:
        assert_on(node, cache, take(cache))


def test_records_of_a_thread_that_moved_lie_on_its_new_node():
    """The heap follows its thread, there and back."""
    with jitslab.SlabCache("points", POINT) as cache:

        def move():
            for node in (0, 1, 0, 1):
                with on_node(node):
                    take(cache, 256)  # what its magazine still held
                    assert_on(node, cache, take(cache))

        in_thread(move)
        cache.check()


def write_raw(memory, sizes):
    """Allocate memory of the sizes and write to all of it; returns the ptrs."""
    ptrs = [memory.allocate(size) for size in sizes]
    for ptr, size in zip(ptrs, sizes, strict=True):
        memory.view(ptr, size)[:] = 1
    return ptrs


RAW = [64, 100, 1000, 5000, 70_000, 3 << 20] * 20


def assert_raw_on(node, memory, ptrs):
    """The pages of all of this memory lie on `node`."""
    for ptr, size in zip(ptrs, RAW, strict=True):
        assert {node} == set(nodes_of_range(memory.address(ptr), size).tolist())


def test_raw_memory_lies_on_the_node_of_the_thread():
    """Of all size classes, and above; after it was freed on the other node, too."""
    with jitslab.SlabAllocator("raw") as memory:
        for _ in range(2):
            for node in (0, 1):

                def work(node=node):
                    with on_node(node):
                        return write_raw(memory, RAW)

                ptrs = in_thread(work)
                assert_raw_on(node, memory, ptrs)

                def free(node=node, ptrs=ptrs):
                    with on_node(1 - node):
                        for ptr, size in zip(ptrs, RAW, strict=True):
                            memory.free(ptr, size)

                in_thread(free)
        memory.check()


@pytest.mark.parametrize("node", [2, 3])
def test_raw_memory_lies_on_the_node_asked_for(node):
    """Classes and large memory, on nodes without CPUs."""
    with jitslab.SlabAllocator("raw", policy=node) as memory, on_node(1):
        assert_raw_on(node, memory, write_raw(memory, RAW))


if __name__ == "__main__":
    jitslab.warmup()
    with jitslab.SlabAllocator("raw") as raw:
        for p, size in zip(write_raw(raw, RAW), RAW, strict=True):
            raw.free(p, size)
        raw.check()
    with jitslab.SlabCache("points", POINT) as points:
        empty(points, take(points))
