"""The manager of a process, and the functions of the module over one default manager."""

import copy
import inspect
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from program import run_python

import jitslab
from jitslab import SlabAllocatorManager, SlabCache

NODE = np.dtype([("value", "f8"), ("next", "i8")])
POINT = np.dtype([("x", "f8"), ("y", "f8")])
SET_UP = 'import jitslab, numpy as np\nNODE = np.dtype([("value", "f8"), ("next", "i8")])\n'


@pytest.fixture
def manager():
    """Return a manager of one's own."""
    with SlabAllocatorManager() as manager:
        yield manager


@pytest.fixture
def default():
    """Return the default manager, new."""
    jitslab.shutdown()
    yield jitslab.initialize()
    jitslab.shutdown()
    jitslab.initialize()


def refused(exception, message, function, *arguments, **options):
    """Assert that a call raises exactly this."""
    with pytest.raises(jitslab.SlabError) as caught:
        function(*arguments, **options)

    assert (exception, message) == (type(caught.value), str(caught.value))


def live():
    """Return name and count of what is live in the default allocator; the process may have more."""
    return [(row.name, row.count) for row in jitslab.default_manager().allocator.report().caches]


# --- The example of what it is for ---


def test_usage_of_the_concept(default):
    """Every line of it."""
    my_struct = np.dtype([("id", "i8"), ("data", "u1", 16)])
    network_packet = np.dtype([("header", "u1", 20), ("payload", "u1", 1480)])

    jitslab.initialize()
    ptr = jitslab.allocate(64)
    jitslab.free(ptr, 64)
    ptr = jitslab.allocate_typed(my_struct)
    jitslab.free_typed(ptr)
    with jitslab.allocate_object(my_struct) as obj:
        obj.id = 42
        obj.data.fill(0)
        assert (42, 0) == (obj.id, obj.data.sum())
    cache = jitslab.create_object_cache("net-packet", network_packet)
    with cache.allocate() as packet:
        packet.header.fill(0)
        packet.payload[0] = 42
        assert [("net-packet", 1)] == live()
    assert [] == live()
    assert 0 == len(cache)
    assert cache is jitslab.caches["net-packet"]


@pytest.mark.parametrize(
    "name",
    ["allocate", "free", "realloc", "view", "address", "allocate_typed", "free_typed", "allocate_object", "create_object_cache"],
)
def test_function_of_the_module_is_the_method_of_the_allocator(name):
    """It takes what the method takes, and has its documentation."""
    function = getattr(jitslab, name)
    method = getattr(jitslab.SlabAllocator, name.replace("object_cache", "cache"))
    parameters = [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]

    assert parameters[1:] == [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
    assert inspect.getdoc(function).endswith(inspect.getdoc(method).partition("Examples\n")[2])


# --- Allocators and caches ---


def test_allocators_have_names(manager):
    """Until they are closed; then the name is free."""
    graph = manager.create_allocator("graph", capacity=10)

    assert {"default": manager.allocator, "graph": graph} == dict(manager.allocators)
    assert 10 == graph.typed(NODE).capacity
    refused(jitslab.DuplicateNameError, "there is an allocator 'graph' already", manager.create_allocator, "graph")
    refused(jitslab.DuplicateNameError, "there is an allocator 'default' already", manager.create_allocator, "default")
    refused(jitslab.UnknownNameError, "there is no allocator 'grahp'; there is 'graph'", manager.allocators.__getitem__, "grahp")
    graph.close()
    assert ["default"] == list(manager.allocators)
    assert graph is not manager.create_allocator("graph")


def test_options_of_the_manager_are_those_of_its_allocators():
    """Unless an allocator has its own."""
    with SlabAllocatorManager(init="zero", capacity=20) as manager:
        assert (0.0, 0) == manager.allocator.allocate_typed(NODE).record.item()
        assert 20 == manager.create_allocator("a").typed(NODE).capacity
        assert 30 == manager.create_allocator("b", capacity=30).typed(NODE).capacity


def test_registry_has_every_open_cache(manager):
    """Dedicated ones of any allocator, typed ones, and those made directly."""
    parcels = manager.allocator.create_cache("parcels", NODE)
    typed = manager.allocator.typed(POINT)
    nodes = manager.create_allocator("graph").create_cache("nodes of the graph", NODE)
    manager.allocator.allocate(64)
    with SlabCache("direct", NODE, capacity=10) as direct:
        found = dict(manager.caches)

        assert parcels is found["parcels"] is manager.caches["parcels"]
        assert nodes is found["nodes of the graph"] is manager.caches["nodes of the graph"]
        assert direct is found["direct"] is manager.caches["direct"]
        assert typed in found.values()
        assert len(found) == len(manager.caches) == len(set(found.values()))
    assert "direct" not in manager.caches
    refused(jitslab.UnknownNameError, "there is no cache 'direkt of no kind'", manager.caches.__getitem__, "direkt of no kind")


def test_caches_that_share_a_name_are_told_apart_by_their_number(manager):
    """And each has its name alone when the others are closed; a dedicated one has it always."""
    first, second = (SlabCache("double", NODE, capacity=10) for _ in range(2))
    names = {cache: name for name, cache in manager.caches.items()}

    assert "double" not in manager.caches
    assert names[first] != names[second]
    assert all(names[cache].startswith("double#") and names[cache][7:].isdigit() for cache in (first, second))
    assert second is manager.caches[names[second]]
    with pytest.raises(jitslab.UnknownNameError, match=f"^there is no cache 'double'; there is .*'{names[first]}'"):
        manager.caches["double"]
    first.close()
    assert second is manager.caches["double"]
    assert names[second] not in manager.caches
    dedicated = manager.allocator.create_cache("double", NODE)
    assert dedicated is manager.caches["double"]
    assert second is manager.caches[names[second]]
    odd = SlabCache("odd#1", NODE, capacity=10)
    assert "odd#1" not in manager.caches
    assert [odd] == [cache for name, cache in manager.caches.items() if name.startswith("odd#1#")]
    second.close()
    odd.close()


def test_dropped_cache_leaves_the_registry(manager):
    """It holds no cache that nobody else does."""
    cache = SlabCache("dropped", NODE, capacity=10)

    assert "dropped" in manager.caches
    del cache
    assert "dropped" not in manager.caches


def test_registry_is_read_while_caches_come_and_go(manager):
    """By other threads."""
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            SlabCache("churn", NODE, capacity=10).close()

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            assert all(isinstance(name, str) for name in manager.caches)
            assert manager.report().count >= 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert "churn" not in manager.caches


def test_nodes_are_those_of_the_machine(manager):
    """As the module has them."""
    assert jitslab.nodes() == manager.nodes


# --- Shutdown and reports ---


def test_shutdown_reports_what_is_live_and_closes_what_is_its_own(manager):
    """Records by cache, and raw memory; caches and allocators made directly are counted and stay open."""
    parcels, typed = manager.allocator.create_cache("parcels", NODE), manager.allocator.typed(POINT)
    parcels.alloc_many(3)
    ptr = manager.allocator.allocate_typed(POINT)
    raw = manager.create_allocator("graph").allocate(100)
    guard = manager.allocator.allocate_object(POINT)
    with SlabCache("direct", NODE, capacity=10) as direct, jitslab.SlabAllocator("apart") as apart:
        handles = direct.alloc_many(6)
        apart.allocate_typed(NODE)
        report = manager.shutdown()
        rows = {(row.allocator, row.name): row for row in report.caches}

        assert 3 == rows["default", "parcels"].count
        assert 48 == rows["default", "parcels"].bytes
        assert (2, ptr) == (rows["default", "typed(x, y)"].count, rows["default", "typed(x, y)"].handles[0])
        assert [raw] == [row.handles[0] for row in report.caches if row.allocator == "graph"]
        assert (6, tuple(handles[:4])) == (rows["", "direct"].count, rows["", "direct"].handles)
        assert 1 == rows["apart", "typed(value, next)"].count
        assert f"  direct: 6 live, 96 bytes: {', '.join(map(hex, handles[:4]))}, ..." in str(report).splitlines()
        assert (True, True, False, False) == (parcels.closed, typed.closed, direct.closed, apart.closed)
        assert not any(row.allocator in ("default", "graph") for row in manager.shutdown().caches)
    assert manager.closed
    assert "<SlabAllocatorManager: closed>" == repr(manager)
    with pytest.raises(jitslab.ClosedError, match="^cache 'typed\\(x, y\\)' is closed$"):
        _ = ptr.record
    with pytest.raises(jitslab.ClosedError):
        _ = guard.x
    refused(jitslab.ClosedError, "the manager was shut down", manager.create_allocator, "a")
    refused(jitslab.ClosedError, "the manager was shut down", manager.__enter__)
    refused(jitslab.ClosedError, "allocator 'default' is closed", manager.allocator.allocate_typed, NODE)


def test_shutdown_without_report(manager):
    """It does not count."""
    manager.allocator.allocate_typed(NODE)

    assert jitslab.LiveReport() == manager.shutdown(report=False)
    assert manager.allocator.closed


def test_copies_are_refused(manager):
    """There is one of it."""
    for use, end in (
        (copy.copy, "copied"),
        (copy.deepcopy, "copied"),
        (pickle.dumps, "pickled: its memory is private to this process"),
    ):
        refused(jitslab.CopyError, f"<SlabAllocatorManager: 1 allocators> cannot be {end}", use, manager)


# --- The default manager ---


def test_it_is_made_at_first_need():
    """Without initialize; asking for caches, and shutting down, make none."""
    program = """
assert not jitslab.shutdown()
assert [] == list(jitslab.caches) and "a" not in jitslab.caches
assert jitslab.manager._default is None
ptr = jitslab.allocate_typed(NODE)
manager = jitslab.default_manager()
assert ptr.cache is manager.allocator.typed(NODE)
assert manager is jitslab.initialize() is jitslab.default_manager()
print(jitslab.shutdown().count, jitslab.shutdown().count)
"""
    assert "1 0\n" == run_python(SET_UP + program)


def test_threads_that_come_first_share_it():
    """However many need it at the same time."""
    program = """
import threading
start, found = threading.Barrier(8), []
def run():
    start.wait()
    found.append(jitslab.allocate_typed(NODE))
threads = [threading.Thread(target=run) for _ in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
print(len({ptr.cache for ptr in found}), len(set(found)))
"""
    assert "1 8\n" == run_python(SET_UP + program)


def test_initialize_twice(default):
    """The same options do nothing, others are refused and change nothing."""
    text = "jitslab is initialized, by initialize() or by its first use, with other options"

    assert default is jitslab.initialize() is jitslab.initialize(report_at_exit=False)
    for options in ({"capacity": 5}, {"init": "zero"}, {"report_at_exit": True}):
        refused(jitslab.ConflictError, text, jitslab.initialize, **options)
    refused(
        jitslab.OptionError,
        "there is no option 'sise'; the options of a cache: capacity, colouring, init, policy, strict, nodes, keep_empty",
        jitslab.initialize,
        sise=5,
    )
    assert default is jitslab.default_manager()
    jitslab.shutdown()
    with pytest.raises(jitslab.CapacityError):
        jitslab.initialize(capacity=0)
    refused(jitslab.ClosedError, "jitslab was shut down; initialize() comes first", jitslab.default_manager)
    again = jitslab.initialize(capacity=5, init="zero")
    assert 5 == again.allocator.typed(NODE).capacity
    assert again is jitslab.initialize(init="zero", capacity=5)


USES = {
    "allocate": lambda ptr, raw: jitslab.allocate(64),
    "free": lambda ptr, raw: jitslab.free(raw, 64),
    "realloc": lambda ptr, raw: jitslab.realloc(raw, 64, 100),
    "view": lambda ptr, raw: jitslab.view(raw, 64),
    "address": lambda ptr, raw: jitslab.address(raw),
    "allocate_typed": lambda ptr, raw: jitslab.allocate_typed(NODE),
    "free_typed": lambda ptr, raw: jitslab.free_typed(ptr),
    "allocate_object": lambda ptr, raw: jitslab.allocate_object(NODE).__enter__().__exit__(None, None, None),
    "create_object_cache": lambda ptr, raw: jitslab.create_object_cache("a", NODE),
    "default_manager": lambda ptr, raw: jitslab.default_manager(),
}


@pytest.mark.parametrize("use", USES)
def test_after_shutdown_everything_is_refused_until_initialize(default, use):
    """By name; then it works again."""
    ptr, raw = jitslab.allocate_typed(NODE), jitslab.allocate(64)
    jitslab.shutdown()

    refused(jitslab.ClosedError, "jitslab was shut down; initialize() comes first", USES[use], ptr, raw)
    jitslab.initialize()
    USES[use](jitslab.allocate_typed(NODE), jitslab.allocate(64))


def test_old_pointers_are_refused_by_the_next_manager(default):
    """Typed, plain, raw, and guards; what is live now is untouched."""
    jitslab.allocate(64)
    ptr, raw, guard = jitslab.allocate_typed(NODE), jitslab.allocate(64), jitslab.allocate_object(NODE)
    jitslab.shutdown()
    jitslab.initialize()

    refused(jitslab.RecordTypeError, "allocator 'default' has no typed records (value, next)", jitslab.free_typed, int(ptr), NODE)
    jitslab.allocate_typed(NODE)
    jitslab.allocate(64)
    refused(jitslab.ClosedError, "cache 'typed(value, next)' is closed", jitslab.free_typed, ptr)
    with pytest.raises(jitslab.ForeignHandleError):
        jitslab.free_typed(int(ptr), NODE)
    with pytest.raises(jitslab.HandleError):
        jitslab.free(raw, 64)
    with pytest.raises(jitslab.ClosedError):
        guard.value = 1.0
    assert 2 == len(live())


def test_registry_of_the_module(default):
    """Dedicated caches by name, and every open one; also after shutdown."""
    parcels = jitslab.create_object_cache("parcels", NODE)

    assert parcels is jitslab.caches["parcels"]
    refused(jitslab.DuplicateNameError, "there is a cache 'parcels' already", jitslab.create_object_cache, "parcels", POINT)
    refused(jitslab.UnknownNameError, "there is no cache 'pacrels'; there is 'parcels'", jitslab.caches.__getitem__, "pacrels")
    with SlabCache("direct", NODE, capacity=5) as direct:
        jitslab.shutdown()
        assert "parcels" not in jitslab.caches
        assert direct is jitslab.caches["direct"]


def test_two_managers_have_nothing_in_common(default, manager):
    """But the process, of which both tell."""
    ptr = manager.allocator.allocate_typed(NODE)
    jitslab.create_object_cache("one", NODE)
    mine = manager.allocator.create_cache("one", NODE)

    refused(jitslab.ForeignHandleError, f"{ptr!r} is not of allocator 'default'", jitslab.free_typed, ptr)
    assert mine is manager.caches["one"] is not jitslab.caches["one"]
    assert mine in jitslab.caches.values()
    jitslab.shutdown()
    assert ptr.is_live


# --- At exit ---


def run_to_exit(program, code=0):
    """Run a program; returns what it wrote to the error stream."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SET_UP + program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (code, "") == (done.returncode, done.stdout)
    return done.stderr


def test_report_at_exit():
    """What is live goes to the error stream, once, though it is asked for twice."""
    program = """
jitslab.initialize(report_at_exit=True)
jitslab.initialize(report_at_exit=True)
parcels = jitslab.create_object_cache("parcels", NODE)
h = parcels.alloc()
plain = jitslab.SlabCache("plain", NODE, capacity=10)
plain.alloc_many(2)
"""
    lines = run_to_exit(program).splitlines()

    assert "at exit 3 live, 48 bytes:" == lines[0]
    assert lines[1].startswith("  plain: 2 live, 32 bytes: 0x")
    assert lines[2].startswith("  default/parcels: 1 live, 16 bytes: 0x")
    assert 3 == len(lines)


@pytest.mark.parametrize(
    "program",
    [
        "jitslab.initialize(report_at_exit=True)\njitslab.free_typed(jitslab.allocate_typed(NODE))",
        "jitslab.initialize(report_at_exit=True)\nptr = jitslab.allocate_typed(NODE)\nreport = jitslab.shutdown()",
        "ptr = jitslab.allocate_typed(NODE)",
        "jitslab.initialize(report_at_exit=True)\nptr = jitslab.allocate_typed(NODE)\nimport sys\nsys.stderr = None",
    ],
    ids=["nothing is live", "it was shut down", "nobody asked", "no error stream"],
)
def test_exit_without_report(program):
    """And without any trouble."""
    assert "" == run_to_exit(program)


def test_report_at_exit_after_an_exception():
    """The program's own end stays what it is."""
    lines = run_to_exit("jitslab.initialize(report_at_exit=True)\nptr = jitslab.allocate_typed(NODE)\n1 / 0", 1).splitlines()

    assert "ZeroDivisionError: division by zero" in lines
    assert "at exit 1 live, 16 bytes:" in lines


def test_logging_takes_the_report():
    """To where the program wants it."""
    program = """
import logging
logging.basicConfig(format="%(levelname)s of %(name)s: %(message)s")
manager = jitslab.initialize(report_at_exit=True)
ptr = jitslab.allocate_typed(NODE)
"""
    assert run_to_exit(program).startswith("WARNING of jitslab: at exit 1 live, 16 bytes:\n")


FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


@FORK
def test_child_of_fork_has_a_manager_of_its_own():
    """It shuts down, and starts anew, and the parent goes on; its exit reports nothing of the parent's."""
    program = """
import os, sys
jitslab.initialize(report_at_exit=True)
ptr = jitslab.allocate_typed(NODE)
raw = jitslab.allocate(64, zero=True)
ptr.record["value"] = 5.0
for end in ("shutdown", "exit"):
    pid = os.fork()
    if pid == 0:
        if end == "shutdown":
            assert jitslab.shutdown().count == 2
            assert not ptr.is_live
            jitslab.initialize()
            jitslab.view(jitslab.allocate(64), 64)[:] = 7
            jitslab.allocate_typed(NODE).record["value"] = 7.0
        else:
            ptr.record["value"] = 6.0
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert ptr.is_live and ptr.record["value"] == 5.0 and jitslab.view(raw, 64).sum() == 0
assert jitslab.default_manager().report().count == 2
jitslab.free_typed(ptr)
jitslab.free(raw, 64)
"""
    assert "" == run_to_exit(program)


def test_live_guard_after_shutdown_and_at_exit():
    """Every use is refused, leaving its block is not; collected, or at exit, it does nothing."""
    program = """
guard, second, third = (jitslab.allocate_object(NODE) for _ in range(3))
second.__enter__()
assert jitslab.shutdown().count == 3
for use in (lambda: guard.value, lambda: guard.record, lambda: setattr(guard, "value", 1.0)):
    try:
        use()
    except jitslab.ClosedError:
        pass
    else:
        raise AssertionError
second.__exit__(None, None, None)
del second
jitslab.initialize()
"""
    assert "" == run_to_exit(program)


@FORK
def test_live_guard_in_a_child_of_fork():
    """Left, shut down, collected and at exit in the child: the parent's record stays."""
    program = """
import os, sys
guard = jitslab.allocate_object(NODE)
guard.value = 5.0
for end in ("leave", "shutdown", "collect"):
    pid = os.fork()
    if pid == 0:
        if end == "leave":
            with guard:
                pass
        elif end == "shutdown":
            jitslab.shutdown()
        else:
            del guard
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert guard.value == 5.0
assert jitslab.default_manager().report().count == 1
with guard:
    pass
assert jitslab.default_manager().report().count == 0
"""
    assert "" == run_to_exit(program)


def test_equal_options_are_the_same_however_they_are_spelt():
    """A list and a tuple, a default that is given and one that is not."""
    jitslab.shutdown()
    manager = jitslab.initialize(policy=[0])
    assert jitslab.initialize(policy=(0,), capacity=None) is manager
    with pytest.raises(jitslab.ConflictError):
        jitslab.initialize(policy=[0], capacity=5)
    jitslab.shutdown()
    jitslab.initialize()
