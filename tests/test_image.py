"""Caches by value: copies, pickles of every protocol, files, workers; and images that no cache made."""

import copy
import errno
import json
import multiprocessing
import os
import pickle
import random
import stat
import subprocess
import sys
import threading
import zlib
from importlib.util import find_spec
from typing import Annotated

import numba
import numpy as np
import pytest

import jitslab
from jitslab import image
from jitslab.core.layout import NEVER, RETIRED
from jitslab.machine import numa

XY = np.dtype([("x", "f8"), ("y", "f8")])
NODE = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
LINUX = sys.platform.startswith("linux")


@jitslab.record
class Node:
    """A record with a default, a link and a method."""

    value: jitslab.f8 = 1.5
    next: Annotated[int, jitslab.link("nodes")]

    def double(self):
        """Return twice the value."""
        return 2 * self.value


def filled(n=10_000, **options):
    """Return a cache with some records live, some freed, some freed and used again; and all handles that it ever gave."""
    cache = jitslab.SlabCache("nodes", NODE, **{"capacity": 20_000} | options)
    handles = cache.alloc_many(n)
    cache[handles, "value"] = np.arange(n)
    cache[handles, "next"] = np.roll(handles, 1)
    cache.free_many(handles[::3])
    again = cache.alloc_many(n // 10)
    cache[again, "value"] = -1.0
    cache[again, "next"] = 0
    return cache, np.concatenate([handles, again])


def by_pickle(protocol):
    """Return a way to copy a cache."""
    return lambda cache, path: pickle.loads(pickle.dumps(cache, protocol))


def by_buffers(cache, path):
    """Copy a cache by a pickle with its buffers beside it."""
    buffers = []
    data = pickle.dumps(cache, 5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(each) for each in buffers])


def by_file(cache, path):
    """Copy a cache by a file."""
    cache.save(path / "image")
    return jitslab.load(path / "image")


WAYS = {f"protocol {k}": by_pickle(k) for k in range(pickle.HIGHEST_PROTOCOL + 1)}
WAYS |= {"buffers": by_buffers, "file": by_file}
WAYS |= {"copy": lambda cache, path: copy.copy(cache), "deepcopy": lambda cache, path: copy.deepcopy(cache)}


@pytest.fixture(params=WAYS)
def copied(request, tmp_path):
    """A way to copy a cache."""
    return lambda cache: WAYS[request.param](cache, tmp_path)


NONE = np.zeros(0, np.int64)


def raw(cache, handles):
    """Return the bytes of records, also those between fields."""
    memory, size = cache._memory, cache.dtype.itemsize
    start = memory.geometry.offset["records"]
    slots = np.ndarray((memory.geometry.slots,), f"V{size}", memory.bytes, start, (cache.stride,))
    return slots[cache.slots(handles)].tobytes()


def same_content(cache, other, handles=NONE):
    """Whether two caches are equal in all that a user sees; `handles` are any that were given once."""
    other.check()
    live = cache.live()

    assert live.tolist() == other.live().tolist()
    assert raw(cache, live) == raw(other, live)
    assert cache.is_live(handles).tolist() == other.is_live(handles).tolist()
    assert (cache.name, cache.capacity, cache.stride, cache.slot_limit) == (
        other.name,
        other.capacity,
        other.stride,
        other.slot_limit,
    )
    assert cache.dtype == other.dtype
    assert jitslab.links_of(cache.dtype) == jitslab.links_of(other.dtype)
    assert numba.typeof(cache) == numba.typeof(other)


# --- What a copy is ---


def test_copy_has_the_same_records_under_the_same_handles(copied):
    """Live handles name the same records, stale ones are stale, and links lead where they led."""
    cache, handles = filled()
    other = copied(cache)

    same_content(cache, other, handles)
    linked = [h for h in cache.live().tolist() if cache[h]["next"] in cache]
    assert linked
    assert all(other[other[h]["next"]].tobytes() == cache[cache[h]["next"]].tobytes() for h in linked)
    stale = handles[~cache.is_live(handles)]
    for h in stale[:5].tolist():
        with pytest.raises(jitslab.StaleHandleError) as told:
            other[h]
        with pytest.raises(jitslab.StaleHandleError) as expected:
            cache[h]
        assert str(expected.value) == str(told.value)


def test_copy_has_its_own_life(copied):
    """What is done to one is not done to the other; both keep all laws."""
    cache, _ = filled()
    other = copied(cache)
    live = cache.live()
    before = cache.gather(live).tobytes()
    other.clear()
    other.alloc_many(20_000)
    other.check()

    assert before == cache.gather(cache.live()).tobytes()
    cache.close()
    assert 20_000 == len(other)


def test_handles_that_a_copy_gives_are_new(copied):
    """No handle of the original, live or stale, is given again by the copy."""
    cache, handles = filled()
    other = copied(cache)
    new = other.alloc_many(5000)

    assert not np.isin(new, handles).any()
    other.check()


def test_empty_cache(copied):
    """A cache without a record, and one that never had one."""
    never = jitslab.SlabCache("nodes", NODE, capacity=100)
    same_content(never, copied(never))
    emptied, handles = filled()
    emptied.clear()
    other = copied(emptied)

    same_content(emptied, other, handles)
    assert 0 == len(other)
    assert not other.is_live(handles).any()
    assert 20_000 == other.alloc_many(20_000).size


def test_full_cache(copied):
    """Each record that fits is live; one more is refused by both."""
    cache = jitslab.SlabCache("nodes", NODE, capacity=5000)
    handles = cache.alloc_many(5000)
    cache[handles, "value"] = np.arange(5000)
    other = copied(cache)

    same_content(cache, other, handles)
    other.free(handles[7])
    other.alloc_many(1)


@pytest.mark.parametrize("stride", [1, 24, 4096, 70_000])
def test_records_of_any_size(copied, stride):
    """Slabs of 65,536 slots and of one."""
    cache = jitslab.SlabCache("bytes", np.dtype([("a", "u1", (stride,))]), capacity=300)
    handles = cache.alloc_many(200)
    for h in handles.tolist():
        cache[h]["a"] = h % 251
    cache.free_many(handles[50:150])

    same_content(cache, copied(cache), handles)


def test_nodes_keep_their_slots(copied):
    """A cache of several nodes, whose numbers are in its handles, has as many afterwards."""
    cache = jitslab.SlabCache("nodes", NODE, capacity=5000, nodes=2)
    cpus = cache._memory.geometry.offset["cpus"]
    for node in (0, 1):
        cache._memory.bytes[cpus : cpus + numa.CPUS] = node  # all CPUs are of this node
        thread = threading.Thread(target=lambda: cache.alloc_many(1500))
        thread.start()
        thread.join()
    handles = cache.live()
    cache[handles, "value"] = np.arange(handles.size)
    cache.free_many(handles[::4])
    other = copied(cache)

    same_content(cache, other, handles)
    assert 2 == len(other.nodes)
    assert all(each.slabs for each in cache.nodes)
    assert cache._memory.geometry.node_shift == other._memory.geometry.node_shift
    other.alloc_many(2000)
    other.check()


def test_nodes_of_which_one_has_a_slab(copied):
    """The first node may have none."""
    cache = jitslab.SlabCache("nodes", NODE, capacity=5000, nodes=3)
    cpus = cache._memory.geometry.offset["cpus"]
    cache._memory.bytes[cpus : cpus + numa.CPUS] = 1
    handles = cache.alloc_many(10)
    assert [0, 1, 0] == [each.slabs for each in cache.nodes]
    cache[handles] = (1.0, 0)

    same_content(cache, copied(cache), handles)


def test_retired_slots_stay_retired(copied):
    """A slot whose generations are used up is handed out by no copy."""
    cache = jitslab.SlabCache("nodes", NODE, capacity=100)
    handles = cache.alloc_many(10)
    slot = int(handles[3]) & 0xFFFFFFFF
    cache._generations[slot] = RETIRED - 1
    last = RETIRED - 1 >> 1 << 32 | slot
    cache._generations[slot] = RETIRED - 1 | 1
    cache.free(last)
    cache.flush()
    assert RETIRED == cache._generations[slot]
    other = copied(cache)

    same_content(cache, other, handles)
    assert RETIRED == other._generations[slot]
    assert 1 == other._memory.state["retired"].sum()
    assert slot not in other.alloc_many(91) & 0xFFFFFFFF


def test_released_slabs_stay_released(copied):
    """Handles of slabs that went back to the system are stale in the copy, too, and its records of them take no bytes."""
    cache = jitslab.SlabCache("nodes", NODE, capacity=100_000)
    handles = cache.alloc_many(100_000)
    cache.free_many(handles[50:])
    assert cache.shrink() > 10
    other = copied(cache)

    same_content(cache, other, handles)
    again = other.alloc_many(99_950)
    assert not np.isin(again, handles).any()
    other.check()
    buffers = []
    pickle.dumps(cache, 5, buffer_callback=buffers.append)
    assert sum(each.raw().nbytes for each in buffers) < 100_000


@pytest.mark.parametrize("keep_empty", [True, False])
@pytest.mark.parametrize("colouring", [True, False])
@pytest.mark.parametrize("init", [None, "zero", (7.0, 5)])
def test_options_stay(copied, keep_empty, colouring, init):
    """A new record of the copy begins as one of the original does; so do its slabs."""
    cache = jitslab.SlabCache("nodes", NODE, capacity=9000, init=init, keep_empty=keep_empty, colouring=colouring)
    cache[cache.alloc()] = (3.0, 0)
    other = copied(cache)

    if init is not None:
        assert cache[cache.alloc()].tobytes() == other[other.alloc()].tobytes()
    for each in (cache._memory, other._memory):
        assert keep_empty == (each.field("interval_end") == NEVER)
        assert colouring == each.field("is_coloured")
        assert (init is not None) == each.field("init")


def test_cache_without_a_capacity_has_none_afterwards(copied):
    """It grows within the address space of its process, whatever that of the first one was."""
    cache = jitslab.SlabCache("nodes", NODE)
    handles = cache.alloc_many(1000)
    cache[handles] = (1.0, 0)
    other = copied(cache)

    same_content(cache, other, handles)
    assert not other._memory.has_capacity


def test_dtypes_stay(copied):
    """Titles, alignment, offsets, byte orders, sub-arrays and nesting, to the byte."""
    inner = np.dtype([(("a title", "a"), "u1"), ("to", jitslab.link("others"))], align=True)
    dtypes = [
        np.dtype([("x", ">f4"), ("when", "M8[ms]"), ("text", "U3"), ("ok", "?")]),
        np.dtype({"names": ["a", "b"], "formats": ["u2", "f8"], "offsets": [3, 16], "itemsize": 40}),
        np.dtype([("pairs", inner, (2, 3)), ("c", "c8")], align=True),
        np.dtype((np.record, [("a", "i8")])),
    ]
    for dtype in dtypes:
        cache = jitslab.SlabCache("any", dtype, capacity=10)
        cache.alloc_many(10)
        other = copied(cache)

        same_content(cache, other)
        assert dtype.isalignedstruct == other.dtype.isalignedstruct
        assert dtype.type is other.dtype.type
        assert repr(dtype) == repr(other.dtype)


def test_dtypes_that_are_not_numpys_own_are_pickled_and_not_saved(tmp_path):
    """A pickle has the dtype itself; a file has no words for it."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    cache = jitslab.SlabCache("brain", [("x", ml_dtypes.bfloat16)], capacity=10)
    cache[cache.alloc()] = (1.5,)

    same_content(cache, pickle.loads(pickle.dumps(cache)))
    with pytest.raises(jitslab.LayoutError, match="bfloat16"):
        cache.save(tmp_path / "image")
    assert [] == list(tmp_path.iterdir())


def test_declared_class_stays():
    """Guards of the copy have its methods; a file gets them from `load`."""
    cache = jitslab.SlabCache("nodes", Node, capacity=10)
    h = cache.alloc(value=4.0)
    for other in (copy.copy(cache), pickle.loads(pickle.dumps(cache))):
        with other.adopt(h) as guard:
            assert isinstance(guard, Node)
            assert 8.0 == guard.double()
        assert 1.5 == other[other.alloc()]["value"]


def test_file_has_no_class(tmp_path):
    """`load` without a class gives records of the dtype; another dtype is refused."""
    cache = jitslab.SlabCache("nodes", Node, capacity=10)
    h = cache.alloc(value=4.0)
    cache.save(tmp_path / "image")

    with jitslab.load(tmp_path / "image") as other, other.adopt(h) as guard:
        assert not isinstance(guard, Node)
        assert 4.0 == guard.value
    with jitslab.load(tmp_path / "image", Node) as other, other.adopt(h) as guard:
        assert 8.0 == guard.double()
    with jitslab.load(tmp_path / "image", Node.dtype) as other:
        assert 4.0 == other[h]["value"]
    with pytest.raises(jitslab.LayoutError, match=r"^the file has records of .*'next'.*\(class Node\), not of .*'y'"):
        jitslab.load(tmp_path / "image", XY)


def test_declared_class_that_changed_is_refused():
    """Records of a class that declares other fields by now are not taken for its records."""
    cache = jitslab.SlabCache("nodes", Node, capacity=10)
    function, (plain, dtype, _, groups), _ = cache.__reduce_ex__(5)

    @jitslab.record
    class Other:
        value: jitslab.f4

    with pytest.raises(jitslab.LayoutError, match=r"^the pickle of a cache 'nodes' has records of .* declares .* by now$"):
        function(plain, dtype, Other, groups)


class Named(jitslab.SlabCache):
    """A cache with something of its own."""


def test_subclass_keeps_its_class_and_attributes():
    """A copy is of the same class and has what was added."""
    cache = Named("nodes", NODE, capacity=10)
    cache.origin = ["here"]
    shallow, deep, pickled = copy.copy(cache), copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))

    assert {Named} == {type(shallow), type(deep), type(pickled)}
    assert cache.origin is shallow.origin
    assert cache.origin is not deep.origin
    assert [["here"]] * 3 == [shallow.origin, deep.origin, pickled.origin]


# --- When a copy can be had ---


def test_guard_keeps_its_record(copied):
    """A record in a guard's life is live in the copy, where no guard owns it."""
    cache = jitslab.SlabCache("nodes", NODE, capacity=10)
    with cache.allocate(value=2.0, next=0) as guard:
        other = copied(cache)
        h = guard.handle
        assert h in other
    assert h not in cache
    assert 2.0 == other[h]["value"]
    other.free(h)


@numba.njit
def use(cache, h):
    """Read a record that may be freed."""
    return cache[h].value


def test_faults_are_told_first(copied):
    """Faults of compiled code are raised, once, before anything is copied."""
    cache, handles = filled()
    use(cache, handles[0])

    with pytest.raises(jitslab.FaultError):
        copied(cache)
    same_content(cache, copied(cache), handles)


@numba.njit(nogil=True)
def churn(cache, stop):
    """Alloc and free until told to stop."""
    n = 0
    while stop[0] == 0:
        n += cache.free(cache.alloc())
        n += stop[1]
    return n


def test_cache_in_use_is_refused(copied):
    """As `check`, a copy needs the cache at rest."""
    cache, handles = filled()
    stop = np.zeros(2, np.int64)
    churn(cache, np.ones(2, np.int64))
    thread = threading.Thread(target=churn, args=(cache, stop))
    thread.start()
    try:
        with pytest.raises(jitslab.BusyError, match=r"^(copy|pickle|save) needs cache 'nodes' at rest"):
            for _ in range(100):  # the thread may not have begun
                copied(cache)
    finally:
        stop[0] = 1
        thread.join()
    same_content(cache, copied(cache), handles)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_child_of_fork_can_copy():
    """The index of a cache in a child may be torn; it is rebuilt first."""
    cache, handles = filled()
    worker = threading.Thread(target=lambda: cache.alloc_many(10))
    worker.start()
    worker.join()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            same_content(cache, copy.copy(cache), handles)
            same_content(cache, pickle.loads(pickle.dumps(cache)), handles)
            status = 0
        finally:
            os._exit(status)

    assert 0 == os.waitpid(pid, 0)[1]


def test_cache_of_an_allocator_becomes_a_private_one(copied):
    """Its copy is of no allocator, and outlives it."""
    with jitslab.SlabAllocator("owner") as owner:
        cache = owner.create_cache("nodes", NODE, capacity=100)
        h = cache.alloc(value=1.0, next=0)
        other = copied(cache)
        same_content(cache, other, [h])

    assert 1.0 == other[h]["value"]
    other.close()


def test_cache_of_a_pool_becomes_a_private_one(tmp_path):
    """Of one that is written to, and of a reader's; a pickle of either is a reader of the pool, not a copy."""
    with jitslab.open_pool(tmp_path / "pool") as pool:
        cache = pool.create_cache("nodes", NODE, capacity=20_000)
        handles = cache.alloc_many(10_000)
        cache[handles, "value"] = np.arange(10_000)
        cache.free_many(handles[::3])
        live, content = cache.live().tolist(), raw(cache, cache.live())
        copies = [copy.copy(cache), by_file(cache, tmp_path)]
    with jitslab.open_pool(tmp_path / "pool", "r") as pool:
        copies += [copy.deepcopy(pool["nodes"]), by_file(pool["nodes"], tmp_path)]

    for each in copies:
        each.check()
        assert type(each) is jitslab.SlabCache
        assert live == each.live().tolist()
        assert content == raw(each, live)
        assert not each.is_live(handles[::3]).any()
        assert not np.isin(each.alloc_many(5000), handles).any()


def test_size_class_is_refused():
    """It is a part of an allocator, whose ptrs count slots over all of them."""
    with jitslab.SlabAllocator("owner") as owner:
        owner.allocate(100)
        small = owner._open_caches()[0][1]
        for use, what in ((copy.copy, "copy"), (pickle.dumps, "pickle"), (lambda c: c.save("never"), "save")):
            with pytest.raises(jitslab.CopyError, match=f"^{what} is not for <.*>: it is a part of an allocator; gather"):
                use(small)


# --- Buffers ---


def test_records_and_generations_stay_outside_a_pickle():
    """In-band are facts and a dtype; a buffer of records is the memory of the cache itself."""
    cache, handles = filled(20_000, capacity=30_000)
    buffers = []
    data = pickle.dumps(cache, 5, buffer_callback=buffers.append)

    assert len(data) < 1000
    records = [np.frombuffer(each, np.uint8) for each in buffers[2:]]
    assert sum(each.size for each in records) >= 16 * len(cache)
    assert all(np.shares_memory(each, cache.records.view(np.uint8)) for each in records)
    live = int(cache.live()[7])
    cache[live]["value"] = 12345.0
    assert 12345.0 == pickle.loads(data, buffers=buffers)[live]["value"]


def test_buffers_may_be_anywhere():
    """Unaligned, read-only, or of another form."""
    cache, handles = filled()
    buffers = []
    data = pickle.dumps(cache, 5, buffer_callback=buffers.append)
    forms = (
        lambda raw: memoryview(b"?" + raw)[1:],
        lambda raw: bytearray(raw),
        lambda raw: np.frombuffer(raw, np.uint8),
        lambda raw: np.frombuffer(raw, np.uint32),
    )
    for form in forms:
        same_content(cache, pickle.loads(data, buffers=[form(bytes(each)) for each in buffers]), handles)


# --- Workers ---


def sum_of(cache, handles):
    """Return what a worker finds: the sum of values along links, and whether the handles are live."""
    cache.check()
    values = [cache[cache[h]["next"]]["value"].item() for h in handles if cache[h]["next"] in cache]
    return sum(values), cache.is_live(handles).all().item(), compiled_sum(cache)


@numba.njit
def compiled_sum(cache):
    """Return the sum of all values."""
    total = 0.0
    for h in cache:
        total += cache[h].value
    return total


def emptied(cache):
    """Return a cache after a worker changed it."""
    cache.clear()
    cache[cache.alloc()] = (42.0, 0)
    return cache


def needed(cache):
    """Return the handles that a worker asks for, and what it must find."""
    handles = cache.live().tolist()
    return handles, sum_of(cache, handles)


def test_spawned_process_gets_the_records():
    """Arguments and results are pickled by multiprocessing."""
    cache, _ = filled(1000)
    handles, expected = needed(cache)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert expected == pool.apply(sum_of, (cache, handles))
        back = pool.apply(emptied, (cache,))

    assert [42.0] == [back[h]["value"] for h in back]
    assert len(handles) == len(cache)


def test_loky_gets_the_records():
    """The processes of joblib."""
    joblib = pytest.importorskip("joblib")
    cache, _ = filled(1000)
    handles, expected = needed(cache)
    with joblib.parallel_config("loky", n_jobs=2):
        assert [expected] * 2 == joblib.Parallel()(joblib.delayed(sum_of)(cache, handles) for _ in range(2))
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)


DASK = """
from typing import Annotated
import sys, warnings
import jitslab
from distributed import Client, LocalCluster
from test_image import NODE, emptied, filled, needed, sum_of

@jitslab.record
class Point:
    x: jitslab.f8 = 2.5
    next: Annotated[int, jitslab.link("points")]
    def double(self):
        return 2 * self.x

def doubled(cache):
    with cache.allocate() as guard:
        return [cache.adopt(h).double() for h in cache.live().tolist() if h != guard.handle], guard.double()

if __name__ == "__main__":
    cache, _ = filled(1000)
    handles, expected = needed(cache)
    points = jitslab.SlabCache("points", Point, capacity=10)
    points.alloc(x=4.0)
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            assert expected == client.submit(sum_of, cache, handles).result(60)
            held = client.scatter(cache)
            assert expected == client.submit(sum_of, held, handles, pure=False).result(60)
            back = client.submit(emptied, cache).result(60)
            assert [42.0] == [back[h]["value"] for h in back]
            assert ([8.0], 5.0) == client.submit(doubled, points).result(60)
    print("done")
"""


@pytest.mark.skipif(find_spec("distributed") is None, reason="dask.distributed is not installed")
def test_dask_gets_the_records(tmp_path):
    """
    Workers of dask.distributed; also records of a class that a script declares, which cloudpickle sends by value.

    In a process of its own: as it is imported, distributed changes how all errors of the process are pickled.
    """
    program = tmp_path / "program.py"
    program.write_text(DASK)
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "60s"}
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=180, env=environment, cwd=tmp_path)

    assert "done\n" == ended.stdout, ended.stderr


def test_class_by_value_gets_the_layout_of_guards():
    """A class that cloudpickle made has a __dict__, which guards have no room for: that crashed once."""
    cloudpickle = pytest.importorskip("cloudpickle")
    program = """
import sys, typing, jitslab, cloudpickle
@jitslab.record
class Inner:
    n: jitslab.i4 = 3
    def next(self):
        return self.n + 1
class Plain:
    __slots__ = ()
    def who(self):
        return "plain"
@jitslab.record
class Base(Plain):
    inner: Inner
    def double(self):
        return 2 * self.inner.n
@jitslab.record
class Whole(Base):
    x: jitslab.f8 = 1.0
cache = jitslab.SlabCache("by value", Whole, capacity=10)
cache.alloc(x=5.0)
sys.stdout.buffer.write(cloudpickle.dumps((cache, Whole)))
"""
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120)
    assert 0 == made.returncode, made.stderr
    cache, cls = cloudpickle.loads(made.stdout)
    with cache.adopt(cache.live()[0]) as guard:
        assert (6, 4, 5.0, "plain") == (guard.double(), guard.inner.next(), guard.x, guard.who())
    with jitslab.SlabCache("another", cls, capacity=10) as another, another.allocate() as guard:
        assert (6, 1.0) == (guard.double(), guard.x)
        assert type(guard).__mro__[-3].__name__ in {"Whole", "Base", "Plain", "Generic"}

    @jitslab.record
    class Outer:
        whole: cls
        more: jitslab.i8

    with jitslab.SlabCache("outer", Outer, capacity=10) as outer, outer.allocate() as guard:
        assert (6, 4) == (guard.whole.double(), guard.whole.inner.next())


# --- Files ---


def test_file_is_replaced_whole(tmp_path):
    """A second save takes the place of the first, with its mode; no other file is left."""
    path = tmp_path / "image"
    cache, _ = filled(1000)
    cache.save(str(path))
    path.chmod(0o640)
    cache.clear()
    cache.save(path)

    assert ["image"] == os.listdir(tmp_path)
    assert 0 == len(jitslab.load(path))
    if os.name == "posix":
        assert 0o640 == stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need rights elsewhere")
def test_file_behind_a_link_is_replaced(tmp_path):
    """The link stays a link."""
    cache, handles = filled(1000)
    cache.save(tmp_path / "image")
    (tmp_path / "link").symlink_to("image")
    cache.clear()
    cache.save(tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert 0 == len(jitslab.load(tmp_path / "image"))
    assert 0 == len(jitslab.load(tmp_path / "link"))


def test_bad_paths_are_refused(tmp_path):
    """By name; nothing is written, and nothing is waited for."""
    cache, _ = filled(100)
    cache.save(tmp_path / "image")
    (tmp_path / "folder").mkdir()
    bad = {
        tmp_path / "folder": "it is a directory",
        tmp_path / "none" / "image": "No such file or directory",
        tmp_path / "image" / "image": "Not a directory",
        tmp_path / ("x" * 300): "File name too long",
        "with\0null": "a path is a str or an os.PathLike",
        5: "a path is a str or an os.PathLike",
        None: "a path is a str or an os.PathLike",
        "": "it is a directory",
    }
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "loop").symlink_to("loop")
        bad |= {tmp_path / "fifo": "it is no file", "/dev/null": "it is no file", tmp_path / "loop": "symbolic links"}
    for path, why in bad.items():
        for use in (cache.save, jitslab.load):
            with pytest.raises(jitslab.ImagePathError, match=why):
                use(path)
    with pytest.raises(jitslab.ImagePathError, match=r"^cannot read '.*none': No such file"):
        jitslab.load(tmp_path / "none")

    assert {"image", "folder"} == {name for name in os.listdir(tmp_path) if name not in ("fifo", "loop")}


@pytest.mark.skipif(os.name != "posix" or (os.geteuid() == 0 and not LINUX), reason="rights of POSIX")
def test_missing_rights_are_told(tmp_path):
    """A folder that may not be written to, a file that may not be read: as another user, if root runs this."""
    cache, _ = filled(100)
    path = tmp_path / "image"
    cache.save(path)
    path.chmod(0)
    tmp_path.chmod(0o555)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                for up in tmp_path.parents[:3]:
                    os.chmod(up, os.stat(up).st_mode | 0o111)
                os.setuid(65534)
            for use in (cache.save, jitslab.load):
                with pytest.raises(jitslab.ImagePathError, match="Permission denied"):
                    use(path)
            status = 0
        finally:
            os._exit(status)
    answer = os.waitpid(pid, 0)[1]
    tmp_path.chmod(0o755)

    assert 0 == answer


@pytest.mark.skipif(not LINUX, reason="a limit of file sizes by resource")
def test_full_disk_leaves_the_old_file():
    """RLIMIT_FSIZE stands for a full disk; also Ctrl-C leaves nothing behind."""
    program = """
import os, resource, tempfile, numpy as np, jitslab
folder = tempfile.mkdtemp()
path = os.path.join(folder, "image")
cache = jitslab.SlabCache("big", [("x", "f8")], capacity=100_000)
h = cache.alloc()
cache.save(path)
before = open(path, "rb").read()
cache.alloc_many(99_999)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000,) * 2)
try:
    cache.save(path)
except jitslab.ImageFullError as error:
    print(str(error).replace(folder, ""), isinstance(error, OSError))
print(os.listdir(folder), before == open(path, "rb").read(), len(cache), len(jitslab.load(path)))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)

    assert "cannot write '/image': File too large True\n['image'] True 100000 1\n" == ended.stdout, ended.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EINTR])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_refused_calls_leave_the_old_file(tmp_path, monkeypatch, call, number):
    """Each step may fail; the file is as it was, and no part of another is left."""
    path = tmp_path / "image"
    cache, _ = filled(1000)
    cache.save(path)
    before = path.read_bytes()
    cache.clear()

    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    kind = jitslab.ImageFullError if number in image.FULL else jitslab.ImagePathError
    with pytest.raises(kind, match="^cannot write '.*image': ") as caught:
        cache.save(path)

    assert type(caught.value) is kind
    assert ["image"] == os.listdir(tmp_path)
    assert before == path.read_bytes()


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    """Ctrl-C in the middle."""
    path = tmp_path / "image"
    cache, _ = filled(1000)
    cache.save(path)
    before = path.read_bytes()

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.save(path)

    assert ["image"] == os.listdir(tmp_path)
    assert before == path.read_bytes()


def test_large_cache_is_saved_without_a_second_copy(tmp_path):
    """Beside the cache a save takes some MiB, whatever is in it."""
    pytest.importorskip("resource")
    program = f"""
import resource, numpy as np, jitslab
cache = jitslab.SlabCache("big", [("x", "f8", (1024,))], capacity=30_000)
handles = cache.alloc_many(30_000)
cache.records["x"] = 1.0
jitslab.SlabCache("small", [("x", "f8")], capacity=10).save({str(tmp_path / "small")!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cache.save({str(tmp_path / "big")!r})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    unit = 1 if sys.platform == "darwin" else 1024

    assert (tmp_path / "big").stat().st_size > 240_000_000
    assert int(ended.stdout) * unit < 20 << 20


# --- Images that no cache made ---


def small_file(path):
    """Return the bytes of a file with several slabs: full, partly used, empty, released."""
    cache = jitslab.SlabCache(
        "nodes", np.dtype([("a", "u1", (5000,)), ("next", jitslab.link("nodes"))]), capacity=64, init="zero"
    )
    handles = cache.alloc_many(60)
    cache.free_many(handles[10:40])
    cache.shrink()
    cache.free_many(handles[50:55])
    cache.save(path)
    return path.read_bytes()


def loads_or_refuses(path, data):
    """Whether a file loads; if so, the cache keeps all laws and can be used."""
    path.write_bytes(data)
    try:
        cache = jitslab.load(path)
    except (jitslab.CorruptImageError, jitslab.ImageVersionError):
        return False
    use_all(cache)
    return True


def use_all(cache):
    """Check a cache, and alloc and free in it."""
    with cache:
        cache.check()
        live = cache.live()
        cache.gather(live)
        cache.free_many(live[::2])
        cache.alloc_many(max(min(10, cache.capacity - len(cache)), 0))
        cache.check()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a file."""
    return small_file(tmp_path_factory.mktemp("whole") / "image")


def test_every_truncation_is_refused(tmp_path, whole):
    """Wherever a file is cut; and if something follows it."""
    rng = random.Random(1)
    cuts = {*range(600), *rng.sample(range(len(whole)), 300), *range(len(whole) - 50, len(whole))}

    assert loads_or_refuses(tmp_path / "image", whole)
    assert [] == [n for n in sorted(cuts) if loads_or_refuses(tmp_path / "image", whole[:n])]
    assert not loads_or_refuses(tmp_path / "image", whole + b"\0")


def test_every_changed_byte_is_refused(tmp_path, whole):
    """One bit of the head, or of any other part."""
    rng = random.Random(2)
    wrong = []
    for k in range(3000):
        at = k if k < 600 else rng.randrange(len(whole))
        data = bytearray(whole)
        data[at] ^= 1 << rng.randrange(8)
        if loads_or_refuses(tmp_path / "image", bytes(data)):
            wrong.append(at)

    assert [] == wrong


VALUES = (0, 1, -1, 2, 3, 5, 12, 16, 31, 32, 33, 63, 64, 2**16, 2**29, 2**30, 2**31, 2**32, 2**46, 2**47, 2**63, 2**64, 10**30)
VALUES += (1.5, True, None, "", "x", [], [1], {}, "00" * 10)


def remade(whole, change):
    """Return a file whose facts a function changed, with a valid checksum."""
    _, _, rest = whole.partition(b"\n")
    size = int(whole.partition(b"\n")[0].split()[-1])
    head = json.loads(rest[:size])
    text = json.dumps(change(head) or head).encode()
    return b"jitslab-image 1 little %08x %d\n" % (zlib.crc32(text), len(text)) + text + rest[size:]


@pytest.mark.skipif(sys.byteorder != "little", reason="the file is little-endian")
def test_crafted_facts_load_or_are_refused(tmp_path, whole):
    """With a valid checksum: any value for any fact, one and several; the process lives and no law is broken."""
    rng = random.Random(3)
    path, n_loaded = tmp_path / "image", 0
    names = ["capacity", "colouring", "first_generation", "format", "keep_empty", "name", "node_shift", "order"]
    names += ["shift", "slabs", "stride", "template", "dtype", "class"]

    def change(head):
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            name, value = rng.choice(names), rng.choice(VALUES)
            if name == "slabs" and rng.random() < 0.9:
                head["slabs"] = [rng.choice(VALUES[:20]) for _ in range(rng.choice((1, 1, 2, 3, 65)))]
            elif name == "dtype" and rng.random() < 0.9:
                if isinstance(head["dtype"], dict):
                    field = rng.choice(head["dtype"]["fields"])
                    field[rng.randrange(6)] = value
            elif rng.random() < 0.05:
                del head[name]
                return
            else:
                head[name] = value

    for _ in range(2000):
        n_loaded += loads_or_refuses(path, remade(whole, change))

    assert 0 < n_loaded < 2000


@pytest.mark.skipif(sys.byteorder != "little", reason="the file is little-endian")
def test_crafted_heads_are_refused(tmp_path, whole):
    """Each for its reason."""
    path = tmp_path / "image"
    deep = b"[" * 100_000 + b"]" * 100_000
    many = b'{"dtype": 1, "class": null, "x": ' + b"9" * 100_000 + b"}"
    cases = {
        b"": "is no image of a cache",
        b"\x93NUMPY": "is no image of a cache",
        b"jitslab-image 2 little 00000000 0\n": "has format 2; this version of jitslab reads up to 1",
        b"jitslab-image 1 big 00000000 0\n": "has byte order 'big', and this machine 'little'",
        b"jitslab-image 1 little 00000000 99999999\n": "99999999 bytes of facts; at most 16777216 can be",
        b"jitslab-image 1 little 00000001 0\n": "the facts have not the checksum",
        b"jitslab-image 1 little %08x %d\n" % (zlib.crc32(deep), len(deep)) + deep: "the facts are no JSON",
        b"jitslab-image 1 little %08x %d\n" % (zlib.crc32(many), len(many)) + many: "an integer of 100000 digits",
        b"jitslab-image 1 little %08x 2\n[]" % zlib.crc32(b"[]"): "the facts have no dtype",
        remade(whole, lambda head: head.update(stride=5007)): "stride is 5007, which no cache has",
        remade(whole, lambda head: head.update(first_generation=7)): "first_generation is 7, which no cache has",
        remade(whole, lambda head: head.update(slabs=[1 << 33])): f"slabs is [{1 << 33}], which no cache has",
        remade(whole, lambda head: head.update(more=1)): "it has the facts ",
        remade(whole, lambda head: head.update(slabs=[1 << 20])): "is cut off",
    }
    for data, why in cases.items():
        path.write_bytes(data)
        with pytest.raises((jitslab.CorruptImageError, jitslab.ImageVersionError)) as caught:
            jitslab.load(path)
        assert why in str(caught.value)
        assert isinstance(caught.value, jitslab.ImageVersionError) == ("has format" in why or "byte order" in why)


def parts_of(cache):
    """Return the arguments of an image, to be changed."""
    function, (plain, dtype, declared, groups), _ = cache.__reduce_ex__(5)
    groups = [[bytearray(a), bytearray(b), [bytearray(run) for run in runs]] for a, b, runs in groups]
    return function, [dict(plain), dtype, declared, groups]


def test_crafted_pickles_load_or_are_refused():
    """Any value for any fact, any bytes in the place of generations, buffers of other lengths and types: 10,000 of them."""
    rng = random.Random(4)
    dtype = np.dtype([("a", "u1", (5000,)), ("next", jitslab.link("nodes"))])
    cache = jitslab.SlabCache("nodes", dtype, capacity=64, init="zero")
    handles = cache.alloc_many(60)
    cache.free_many(handles[10:40])
    cache.shrink()
    nodes = jitslab.SlabCache("nodes", dtype, capacity=64, nodes=2)
    nodes.alloc_many(10)
    n_loaded = 0
    for k in range(10_000):
        function, parts = parts_of(nodes if k % 4 == 0 else cache)
        group = parts[3][0]
        for _ in range(rng.choice((1, 1, 2))):
            which = rng.randrange(8)
            if which < 2:
                parts[0][rng.choice([*parts[0]])] = rng.choice(VALUES)
            elif which == 2:
                parts[rng.randrange(1, 4)] = rng.choice((*VALUES, np.dtype("f8"), np.dtype("O"), XY))
            elif which < 6:
                words = group[rng.choice((0, 1, 1))]
                if isinstance(words, bytearray) and words:
                    at = rng.randrange(len(words) // 4) * 4
                    words[at : at + 4] = rng.choice((0, 1, 2, 1 << 30, RETIRED - 2, RETIRED, RETIRED + 1, 2**32 - 1)).to_bytes(
                        4, sys.byteorder
                    )
            elif which == 6 and isinstance(group[2], list):
                group[2] = rng.choice(([], [b""], None, group[2][:-1], [each[:-1] for each in group[2]], group[2] * 2))
            else:
                group[rng.randrange(2)] = rng.choice((b"", b"123", None, 5, bytearray(1 << 16), np.zeros((4, 4))[:, ::2]))
        try:
            other = function(*parts)
        except (jitslab.ImageError, jitslab.LayoutError):
            continue
        use_all(other)
        n_loaded += 1

    assert 100 < n_loaded < 9000


def test_pickle_names_what_is_wrong():
    """Each for its reason."""
    cache = jitslab.SlabCache("nodes", NODE, capacity=64)
    cache.alloc_many(10)
    cases = {
        "format is 'x', which no cache has": lambda p: p[0].update(format="x"),
        "has format 2; this version of jitslab reads up to 1": lambda p: p[0].update(format=2),
        "capacity is 0, which no cache has": lambda p: p[0].update(capacity=0),
        "has no dtype, but 5": lambda p: p.__setitem__(1, 5),
        "a record cannot hold Python objects": lambda p: p.__setitem__(1, np.dtype([("x", "O")])),
        "has no facts of a cache, but 5": lambda p: p.__setitem__(0, 5),
        "has 5 in the place of a class of records": lambda p: p.__setitem__(2, 5),
        "has not the slabs of 1 nodes": lambda p: p[3].clear(),
        "a buffer of 3 bytes in the place of one of 4": lambda p: p[3][0].__setitem__(0, b"123"),
        "int in the place of a buffer of 4 bytes": lambda p: p[3][0].__setitem__(0, 5),
        "a slab starts with a generation that no cache gives one": lambda p: p[3].__setitem__(0, [b"\1\0\0\0", b"", []]),
        f".. {RETIRED}": lambda p: p[3][0][1].__setitem__(slice(0, 4), b"\xff" * 4),
        "records of 0 runs of slabs, and 1 have live ones": lambda p: p[3][0].__setitem__(2, []),
    }
    for why, change in cases.items():
        function, parts = parts_of(cache)
        change(parts)
        with pytest.raises(jitslab.ImageError) as caught:
            function(*parts)
        assert why in str(caught.value)


def test_errors_of_images_have_their_builtins():
    """Who knows only Python's exceptions catches them, and they can be pickled."""
    for kind, builtin in (
        (jitslab.ImagePathError, OSError),
        (jitslab.ImageFullError, OSError),
        (jitslab.ImageVersionError, ValueError),
        (jitslab.CorruptImageError, ValueError),
    ):
        error = pickle.loads(pickle.dumps(kind("text")))

        assert isinstance(error, jitslab.ImageError)
        assert isinstance(error, builtin)
        assert "text" == str(error)
