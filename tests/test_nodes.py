"""Caches on several NUMA nodes: simulated here; tests/vm has what only a machine with nodes can show."""

import os
import signal
import threading
import time
import tracemalloc

import numpy as np
import pytest
from inside import Inside
from numba import njit, objmode, prange
from worker import Worker

import jitslab
from jitslab.core import layout
from jitslab.machine import addresses, numa

ITEM = np.dtype([("x", "i8"), ("y", "i8", 7)])
NODES = 4


@pytest.fixture
def cache():
    """A cache on four simulated nodes, all CPUs on the first."""
    with jitslab.SlabCache("nodes", ITEM, capacity=100_000, nodes=NODES) as cache:
        Inside(cache).run_on(0)
        yield cache


def node_of(cache, handle):
    """Return the simulated node of a record."""
    return cache.object_at(handle).page.node


def items(n, x):
    """Return n records with a stamp."""
    array = np.zeros(n, ITEM)
    array["x"] = x
    return array


@njit
def alloc_some(cache, n):
    """Allocate n records one by one."""
    handles = np.empty(n, np.int64)
    for i in range(n):
        h, r = cache.new()
        r.x = i
        handles[i] = h
    return handles


@njit
def free_all(cache, handles):
    """Free records one by one; returns how many were freed."""
    n = 0
    for h in handles:
        n += cache.free(h)
    return n


@njit
def count_all(cache):
    """Count the records and add them up, by the three ways of iteration."""
    n, total, again = 0, 0, 0
    for h in cache:
        n += 1
    for h, r in cache.items():
        total += r.x
    for h in cache:
        again += cache[h].x
    return n, total, again


@njit(parallel=True)
def churn(cache, rounds):
    """Allocate and free from all threads of a prange; returns how many frees were refused."""
    refused = 0
    for t in prange(16):
        held = np.zeros(64, np.int64)
        for i in range(rounds):
            k = (i * 7 + t) % 64
            if held[k] != 0:
                refused += not cache.free(held[k])
            held[k] = cache.alloc()
        for k in range(64):
            if held[k] != 0:
                refused += not cache.free(held[k])
    return refused


def test_records_are_taken_from_the_node_of_the_calling_thread(cache):
    """A thread that runs on node k gets records of node k: singly, in compiled code, by the batch."""
    for node in (0, 2, 3):
        Inside(cache).run_on(node)
        Worker().do(lambda: None)
        fresh = Worker()  # a new heap: nothing in its magazine
        handles = [fresh.do(cache.alloc), *fresh.do(alloc_some, cache, 500), *fresh.do(cache.alloc_many, 5000)]
        fresh.end()

        assert {node_of(cache, int(h)) for h in handles} == {node}
    cache.check()


def test_heap_follows_a_thread_that_migrates(cache):
    """After a move a thread uses up its magazine and then draws from the new node."""
    before = alloc_some(cache, 1000)
    Inside(cache).run_on(1)
    alloc_some(cache, layout.MAGAZINE_SLOTS)
    after = alloc_some(cache, 1000)

    assert {node_of(cache, int(h)) for h in before} == {0}
    assert {node_of(cache, int(h)) for h in after} == {1}
    assert [node.arrivals for node in cache.nodes] == [0, 1, 0, 0]
    cache.check()


def test_batch_after_a_move_is_of_the_new_node(cache):
    """A batch beyond half a magazine follows at once."""
    cache.alloc()
    Inside(cache).run_on(3)

    assert {node_of(cache, int(h)) for h in cache.alloc_many(5000)} == {3}
    cache.check()


@pytest.mark.parametrize("how", ["C method", "compiled", "one by one without the C method", "small batches", "large batch"])
def test_records_freed_elsewhere_go_home(cache, how):
    """Whichever way a thread frees records of another node, that node has them again."""
    handles = cache.alloc_many(6000)
    Inside(cache).run_on(1)
    stranger = Worker()
    stranger.do(cache.alloc)
    if how == "C method":
        stranger.do(lambda: [cache.free(int(h)) for h in handles])
    elif how == "compiled":
        assert stranger.do(free_all, cache, handles) == 6000
    elif how == "one by one without the C method":
        stranger.do(lambda: [cache._free_slow(int(h)) for h in handles])
    elif how == "small batches":
        stranger.do(lambda: [cache.free_many(part) for part in np.split(handles, 100)])
    else:
        stranger.do(cache.free_many, handles)
    cache.check()
    away = cache.nodes[0]

    assert away.live == 0
    assert cache.nodes[1].live == 1
    if "batch" not in how or "small" in how:
        assert 6000 - layout.MAGAZINE_SLOTS <= away.came_home <= 6000
    stranger.end()
    assert len(cache) == 1
    cache.check()
    Inside(cache).run_on(0)
    again = cache.alloc_many(6000)
    assert {node_of(cache, int(h)) for h in again} == {0}
    assert cache.nodes[0].slabs <= 7  # the same slabs


def test_alien_slots_go_home_when_the_thread_ends(cache):
    """A few slots of another node, freed by a thread that ends, are free again."""
    handles = cache.alloc_many(10)
    Inside(cache).run_on(2)
    stranger = Worker()
    stranger.do(lambda: [cache.free(int(h)) for h in handles])
    parked = int(cache._memory.state["used"][0])
    stranger.end()

    assert parked > 0
    Worker().end()
    cache.check()
    assert len(cache) == 0


def test_stale_handles_are_refused_on_every_node(cache):
    """A record freed by a thread of another node is stale everywhere, at once."""
    handle = cache.alloc()
    Inside(cache).run_on(1)
    stranger = Worker()
    stranger.do(cache.free, handle)

    with pytest.raises(jitslab.StaleHandleError):
        cache.free(handle)
    with pytest.raises(jitslab.StaleHandleError):
        stranger.do(cache.free, handle)
    assert free_all(cache, np.array([handle])) == 0
    stranger.end()


def test_handles_between_the_nodes_are_foreign(cache):
    """A number whose slot lies between two nodes' slabs, or beyond the last, is refused, by all ways, and harms nothing."""
    live = cache.alloc()
    shift = cache._memory.geometry.node_shift
    for slot in ((1 << shift) - 1, (2 << shift) + 5, (4 << shift) - 1, 4 << shift, (1 << 32) - 1):
        handle = live >> 32 << 32 | slot
        with pytest.raises(jitslab.ForeignHandleError):
            cache.free(handle)
        with pytest.raises(jitslab.ForeignHandleError):
            cache[handle]
        with pytest.raises(jitslab.ForeignHandleError):
            cache.object_at(handle)
        with pytest.raises(jitslab.ForeignHandleError) as error:
            cache.free_many(np.full(300, handle))
        assert error.value.positions == tuple(range(300))
        assert handle not in cache
        assert free_all(cache, np.array([handle])) == 0
    cache.check()
    assert len(cache) == 1


def test_iteration_finds_the_records_of_all_nodes(cache):
    """Live records of all nodes are found, and `records` is one array over them."""
    for node in range(NODES):
        Inside(cache).run_on(node)
        fresh = Worker()
        handles = fresh.do(cache.alloc_many, 1000)
        cache.scatter(handles, items(1000, node + 1))
        fresh.end()

    assert count_all(cache) == (4000, 10_000, 10_000)
    assert cache.live().size == len(cache) == len(list(cache)) == 4000
    assert int(cache.gather(cache.live())["x"].sum()) == 10_000
    assert int(cache.records[cache.slots(cache.live())]["x"].sum()) == 10_000
    assert sorted({page.node for page in cache.pages}) == [0, 1, 2, 3]
    assert [page.index for page in cache.pages][-1] * cache.pages[0].capacity < cache.slot_limit
    assert cache.clear() == 4000
    cache.check()


def test_capacity_counts_all_nodes():
    """One thread gets exactly `capacity` records, wherever it runs meanwhile."""
    with jitslab.SlabCache("full", ITEM, capacity=1000, nodes=NODES) as cache:
        handles = []
        for node in range(NODES):
            Inside(cache).run_on(node)
            handles += [cache.alloc() for _ in range(250)]
        with pytest.raises(jitslab.CacheFullError):
            cache.alloc()
        with pytest.raises(jitslab.CacheFullError):
            cache.alloc_many(1)
        with pytest.raises(jitslab.CacheFullError):
            cache.reserve(1)
        cache.free_many(handles)
        cache.check()

        assert cache.alloc_many(1000).size == 1000


def test_each_node_alone_holds_the_capacity():
    """All of it may be on the last node."""
    with jitslab.SlabCache("one", ITEM, capacity=70_000, nodes=3) as cache:
        Inside(cache).run_on(2)
        handles = cache.alloc_many(70_000)

        assert cache.nodes[2].live == 70_000
        assert np.unique(handles).size == 70_000


def test_threads_on_all_nodes_at_once(cache):
    """A prange over simulated nodes, CPUs dealt out to them, hands nothing out twice."""
    at = cache._memory.geometry.offset["cpus"]
    cache._memory.bytes[at : at + numa.CPUS] = np.arange(numa.CPUS) % NODES

    assert churn(cache, 20_000) == 0
    cache.check()
    assert len(cache) == 0


def test_exchange_between_nodes_keeps_every_record():
    """Threads that keep moving pass records to each other and free what others allocated."""
    with jitslab.SlabCache("exchange", ITEM, capacity=20_000, nodes=NODES) as cache:
        inside, boxes, wrong = Inside(cache), [[] for _ in range(4)], []
        barrier = threading.Barrier(4)

        def work(me):
            for step in range(30):
                inside.run_on((me + step) % NODES)
                handles = cache.alloc_many(200 if step % 2 else 40)
                cache.scatter(handles, items(handles.size, me * 1000 + step))
                boxes[(me + 1) % 4].append((me * 1000 + step, handles))
                barrier.wait()
                for stamp, found in boxes[me]:
                    if not (cache.gather(found)["x"] == stamp).all():
                        wrong.append(stamp)
                    if free_all(cache, found) != found.size:
                        wrong.append(-stamp)
                boxes[me].clear()
                barrier.wait()

        threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert not wrong
        assert len(cache) == 0
        cache.check()


def test_shrink_gives_back_the_slabs_of_all_nodes(cache):
    """Empty slabs of every node go back."""
    for node in range(NODES):
        Inside(cache).run_on(node)
        cache.free_many(cache.alloc_many(5000))

    n = sum(node.empty for node in cache.nodes)
    assert n >= 4 * NODES
    assert cache.shrink() >= n
    assert sum(node.empty for node in cache.nodes) == 0
    cache.check()


def test_recover_rebuilds_every_node(cache):
    """A damaged index of one node is rebuilt."""
    Inside(cache).run_on(2)
    cache.alloc_many(5000)
    cache._memory.state["used"][2] += 5

    with pytest.raises(jitslab.LawError, match="law L8 is broken"):
        cache.check()
    cache.recover()
    cache.check()
    assert len(cache) == 5000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_child_of_fork_has_nodes_of_its_own(cache):
    """In a child all nodes' caches go on, aliens and all; the parent sees nothing of it."""
    here = cache.alloc_many(300)
    Inside(cache).run_on(1)
    there = cache.alloc_many(300)
    cache.free(int(here[0]))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            cache.free_many(here[1:])
            cache.free_many(there)
            cache.check()
            status = 0 if len(cache) == 0 and cache.alloc_many(1000).size == 1000 else 2
        finally:
            os._exit(status)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(cache) == 599
    cache.check()


def test_closed_cache_refuses_on_all_nodes():
    """After close every handle of every node is refused."""
    cache = jitslab.SlabCache("closing", ITEM, capacity=1000, nodes=2)
    handles = []
    for node in (0, 1):
        Inside(cache).run_on(node)
        handles += cache.alloc_many(300).tolist()
    view = cache[handles[-1]]
    cache.close()

    assert free_all(cache, np.array(handles)) == 0
    assert int(view["x"]) == 0
    with pytest.raises(jitslab.ClosedError):
        cache.free(handles[0])


# --- Policies ---


@pytest.mark.anonymous
def test_one_numa_node_is_one_node():
    """A machine with one node, an explicit node and an interleaved cache cost nothing: the cache has one node."""
    for options in ({"nodes": 1}, {"nodes": 4, "policy": 2}, {"nodes": 4, "policy": "interleave"}):
        with jitslab.SlabCache("one", ITEM, capacity=10, **options) as cache:
            assert cache._memory.geometry.nodes == 1
            assert cache._numba_type_.has_nodes is False
            assert len(cache.nodes) == 1
    with jitslab.SlabCache("one", ITEM, capacity=10, nodes=4, policy=2) as cache:
        assert cache.nodes[0].node == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "lokal"}, "a policy is 'local', 'interleave', a node or several, got 'lokal'; did you mean 'local'?"),
        ({"policy": 1.5}, "a policy is 'local', 'interleave', a node or several, got 1.5"),
        ({"policy": []}, "a policy is 'local', 'interleave', a node or several, got []"),
        ({"policy": [0, 0]}, "a policy is 'local', 'interleave', a node or several, got [0, 0]"),
        ({"policy": True}, "a policy is 'local', 'interleave', a node or several, got True"),
        ({"policy": None}, "a policy is 'local', 'interleave', a node or several, got None"),
        ({"strict": 1}, "strict is True or False, got 1"),
        ({"nodes": 0}, "nodes must be 1 .. 64 simulated nodes, or None for the machine's, got 0"),
        ({"nodes": 65}, "nodes must be 1 .. 64 simulated nodes, or None for the machine's, got 65"),
        ({"nodes": "4"}, "nodes must be 1 .. 64 simulated nodes, or None for the machine's, got '4'"),
        ({"nodes": 4, "policy": 4}, "node 4 is none of the 4 simulated ones"),
        ({"nodes": 4, "policy": -1}, "node -1 is none of the 4 simulated ones"),
    ],
)
def test_wrong_placement_is_refused(options, message):
    """Bad policies and nodes are refused by name, before anything is made."""
    with pytest.raises(jitslab.NodeError) as error:
        jitslab.SlabCache("wrong", ITEM, capacity=10, **options)

    assert str(error.value) == message


def test_unknown_node_is_refused_with_the_usable_ones():
    """A node that the machine does not have."""
    usable = ", ".join(str(node.id) for node in jitslab.nodes() if node.memory)
    with pytest.raises(jitslab.NodeError) as error:
        jitslab.SlabCache("far", ITEM, capacity=10, policy=900)

    assert str(error.value) == f"node 900 does not exist, or is not allowed to this process; usable: {usable}"


def topology(root, table):
    """Write the files by which the system tells of its nodes."""
    (root / "online").write_text(f"0-{len(table) - 1}\n")
    for number, (cpus, kib, distances) in enumerate(table):
        directory = root / f"node{number}"
        directory.mkdir()
        (directory / "cpulist").write_text(cpus + "\n")
        (directory / "meminfo").write_text(f"Node {number} MemTotal: {kib} kB\nNode {number} MemFree: 5 kB\n")
        (directory / "distance").write_text(distances + "\n")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Two nodes with CPUs and memory, one with CPUs alone, one with memory alone."""
    topology(
        tmp_path,
        [
            ("0-1,4", 1000, "10 21 30 13"),
            ("2-3", 1000, "21 10 12 20"),
            ("5", 0, "30 12 10 40"),
            ("", 500, "13 20 40 10"),
        ],
    )
    monkeypatch.setattr(numa, "_allowed", lambda: (0, 1, 2, 3))
    found = numa.nodes(tmp_path)
    monkeypatch.setattr(numa, "nodes", lambda: found)
    monkeypatch.setattr(numa, "_machine", lambda: tuple(node for node in found if node.memory))
    return found


def test_topology_is_read_from_the_system(machine):
    """CPUs, memory and distances of each node."""
    assert [node.cpus for node in machine] == [(0, 1, 4), (2, 3), (5,), ()]
    assert [node.memory for node in machine] == [1000 << 10, 1000 << 10, 0, 500 << 10]
    assert machine[3].distances == {0: 13, 1: 20, 2: 40, 3: 10}


def test_local_policy_has_a_set_for_each_node_with_cpus_and_memory(machine):
    """CPUs of a node without memory have the nearest set."""
    placement = numa.resolve("local", False, None)

    assert placement.nodes == (0, 1)
    assert placement.mode == 1  # preferred
    assert list(placement.cpu_nodes[:7]) == [0, 0, 1, 1, 0, 1, 0]
    assert numa.resolve("local", True, None).mode == 2  # bind


def test_other_policies_have_one_set(machine):
    """An explicit node, all nodes in turn, some nodes in turn."""
    assert numa.resolve(3, False, None) == numa.Placement((3,), 1)
    assert numa.resolve("interleave", False, None) == numa.Placement((0,), 3, (0, 1, 3))
    assert numa.resolve([3, 1], False, None) == numa.Placement((3,), 3, (3, 1))
    with pytest.raises(jitslab.NodeError, match="node 2 has no memory; usable: 0, 1, 3"):
        numa.resolve([1, 2], False, None)


@pytest.mark.anonymous
def test_refused_placement_warns_once_and_goes_on(machine, monkeypatch):
    """Where mbind is refused the cache works, unbound, and says so once."""
    monkeypatch.setattr(numa.addresses, "bind_memory", lambda *arguments: 1)
    monkeypatch.setattr(numa, "_refused", set())
    with pytest.warns(jitslab.PlacementWarning, match="refuses to place memory on NUMA nodes .*Operation not permitted"):
        cache = jitslab.SlabCache("unbound", ITEM, capacity=100, policy=3)
    with cache, jitslab.SlabCache("silent", ITEM, capacity=100, policy=1) as other:
        assert cache[cache.alloc()] is not None
        assert other.alloc() in other


def test_lists_of_numbers_are_read():
    """As the system writes them."""
    assert numa.parse_list("0-3,8,10-11\n") == (0, 1, 2, 3, 8, 10, 11)
    assert numa.parse_list("\n") == ()


# --- What went wrong once ---


@njit
def free_where_set(cache, is_set, handles):
    """Free through a variable that is not set."""
    if is_set:
        it = cache
    n = 0
    for h in handles:
        n += it.free(h)
    return n


@pytest.mark.parametrize("nodes", [1, 2])
def test_free_through_a_variable_that_no_path_has_set(nodes):
    """Numba makes it zeros: everything is refused."""
    with jitslab.SlabCache("unset", ITEM, capacity=100, nodes=nodes) as cache:
        assert free_where_set(cache, False, np.array([5, cache.alloc()])) == 0


def fork():
    """Fork from compiled code."""
    return os.fork()


@njit
def free_in_a_child(cache):
    """Fork between an alloc and its free; returns the child's process, 0 in it, and whether the record was freed."""
    h = cache.alloc()
    k = cache.alloc()
    cache.free(k)
    with objmode(child="int64"):
        child = fork()
    return child, cache.free(h)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_in_the_middle_of_a_kernel(nodes):
    """The heap that the kernel had is gone in the child: what it frees there is refused, and the parent goes on."""
    with jitslab.SlabCache("kernel", ITEM, capacity=100, nodes=nodes) as cache:
        child, freed = free_in_a_child(cache)
        if child == 0:
            os._exit(10 + freed)

        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (10, 11)
        assert freed


def in_child(work):
    """Return what a child of fork answers, a number; 99: it raised, -14: it hung."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            signal.alarm(20)
            status = int(work())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_child_of_fork_has_the_whole_capacity(cache):
    """Slots that the parent's threads had parked on other nodes do not count as live in the child."""
    cache.free_many(cache.alloc_many(1000))
    first = cache.alloc()
    Inside(cache).run_on(1)

    assert in_child(lambda: len([cache.alloc() for _ in range(99_999)]) == 99_999 and len(cache) == 100_000) == 1
    assert first in cache


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("nodes", [None, 2])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_while_another_thread_opens_and_closes(nodes):
    """The child can close a cache too, once, and its registry has each row once."""
    cache = jitslab.SlabCache("stays", ITEM, capacity=1000, nodes=nodes)
    cache.alloc()
    is_over = threading.Event()

    def churn():
        while not is_over.is_set():
            with jitslab.SlabCache("passing", ITEM, capacity=1000, nodes=nodes) as passing:
                passing.alloc()

    def work():
        cache.close()
        cache.close()
        caches = [jitslab.SlabCache("new", ITEM, capacity=10) for _ in range(3)]
        return len({int(new._memory.field("row")) for new in caches})

    thread = threading.Thread(target=churn)
    thread.start()
    answers = [in_child(work) for _ in range(30)]
    is_over.set()
    thread.join()

    assert answers == [3] * 30
    assert len(cache) == 1


def test_growth_that_ends_while_the_cache_is_closed_leaves_nothing_live():
    """No handle is in a closed cache, however late its slab's memory was made usable."""
    cache = jitslab.SlabCache("late", ITEM, capacity=100_000)
    cache.alloc()
    words = np.frombuffer(cache._memory.generations, np.uint32)
    local, state = cache._memory.control["local"], cache._memory.state
    state["lock"] = 1
    thread = threading.Thread(target=cache.close)
    thread.start()
    time.sleep(0.2)
    more = cache._memory.geometry.max_slabs
    assert addresses.make_usable(int(cache._memory.bytes.ctypes.data), cache._memory.geometry.total)
    local["committed"] = more
    words[90_000] = 2 * 5 + 1
    state["lock"] = 0
    thread.join()

    with pytest.raises(jitslab.ClosedError):
        assert 5 << 32 | 90_000 in cache
    assert not (words & 1).any()


def test_batches_at_once_do_not_exceed_the_capacity():
    """Two threads on two nodes ask for nearly all at once: together they get hardly more than there is."""
    with jitslab.SlabCache("both", ITEM, capacity=400_000, nodes=2) as cache:
        at = cache._memory.geometry.offset["cpus"]
        cache._memory.bytes[at : at + numa.CPUS] = np.arange(numa.CPUS) % 2
        for _ in range(3):
            barrier, got = threading.Barrier(2), []

            def work(barrier=barrier, got=got):
                barrier.wait()
                try:
                    got.append(cache.alloc_many(380_000))
                except jitslab.CacheFullError:
                    got.append(np.zeros(0, np.int64))

            threads = [threading.Thread(target=work) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

            assert len(cache) <= 400_000 + 2 * layout.SLOTS_PER_LOCK
            for handles in got:
                cache.free_many(handles)
            cache.check()


def test_slots_parked_by_a_thread_that_moved_back_do_not_count():
    """Threads that freed another node's records and then moved there give them back, so a reserve keeps its word."""
    wide = np.dtype([("x", "u1", 70_000)])
    with jitslab.SlabCache("wide", wide, capacity=300, nodes=2) as cache:
        inside = Inside(cache)
        inside.run_on(0)
        cache.alloc()
        workers = [Worker() for _ in range(150)]
        for worker in workers:
            mine = [cache.alloc() for _ in range(3)]
            inside.run_on(1)
            worker.do(lambda: cache.free(cache.alloc()))
            worker.do(lambda mine=mine: [cache.free(h) for h in mine])
            inside.run_on(0)
            worker.do(lambda: [cache.free(h) for h in [cache.alloc() for _ in range(6)]])
        rest = 300 - len(cache)
        cache.reserve(rest)
        handles = [cache.alloc() for _ in range(rest)]

        assert len(cache) == 300
        cache.free_many(handles)
        for worker in workers:
            worker.end()
        cache.check()


def test_batch_leaves_nodes_alone_that_it_does_not_concern(cache):
    """Frees of one node's records do not end the intervals of another's working set."""
    Inside(cache).run_on(1)
    cache.free_many(cache.alloc_many(5000))
    before = int(cache._memory.state["ticks"][1])
    Inside(cache).run_on(0)
    for _ in range(20):
        cache.free_many(cache.alloc_many(5000))

    assert int(cache._memory.state["ticks"][1]) == before


def test_one_set_serves_where_limits_do_not_hold_more(machine, monkeypatch):
    """A default cache opens wherever it would on a machine with one node; a simulated one says what it lacks."""
    wanted = []

    def refuse(address, n):
        wanted.append(n)
        return n < 1 << 30 and make_usable(address, n)

    make_usable = addresses.make_usable
    monkeypatch.setattr(addresses, "make_usable", refuse)
    monkeypatch.setattr(addresses, "bind_memory", lambda *arguments: 0)
    with jitslab.SlabCache("narrow", ITEM) as cache:
        assert len(cache.nodes) == 1
        assert max(wanted) > 1 << 30
        assert cache.alloc() in cache
    with jitslab.SlabCache("two", ITEM, capacity=1000) as cache:
        assert [node.node for node in cache.nodes] == [0, 1]
    with jitslab.SlabCache("slots", [("x", "u1")], capacity=1 << 31) as cache:
        assert len(cache.nodes) == 1
    with pytest.raises(jitslab.CapacityError) as error:
        jitslab.SlabCache("slots", [("x", "u1")], capacity=1 << 31, nodes=2)
    assert str(error.value) == f"{1 << 31} records on each of 2 nodes are more than the 2**32 slots of a cache"


def test_large_records_take_no_more_address_space_than_they_need():
    """Records of 512 MiB, on simulated nodes."""
    with jitslab.SlabCache("huge", [("x", "u1", 512 << 20)], capacity=10, nodes=2) as cache:
        assert cache.alloc() in cache


def test_topology_that_cannot_be_read_is_one_node(tmp_path, monkeypatch):
    """Files that are missing, unreadable or strange end nothing."""
    monkeypatch.setattr(numa, "_allowed", lambda: (0, 1))
    assert len(numa.nodes(tmp_path / "none")) == 1
    topology(tmp_path, [("0-1", 1000, "10 20"), ("2", 1000, "20 10")])
    (tmp_path / "node1" / "meminfo").write_text("nothing\n")
    assert [node.id for node in numa.nodes(tmp_path)] == [0]
    assert numa.nodes(tmp_path)[0].memory > 1000 << 10


def test_strict_has_no_interleaved_form(machine):
    """It is refused rather than ignored."""
    for policy in ("interleave", [0, 1]):
        with pytest.raises(jitslab.NodeError, match="strict goes with 'local' or one node"):
            numa.resolve(policy, True, None)


def test_retain_needs_memory_for_the_live_records_alone():
    """Not for the slots between two nodes."""
    with jitslab.SlabCache("retained", ITEM, nodes=2) as cache:
        Inside(cache).run_on(1)
        handles = cache.alloc_many(1000)
        tracemalloc.start()
        assert cache.retain(handles[::2]) == 500
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert peak < 1 << 20
        assert sorted(cache.live()) == sorted(handles[::2])
