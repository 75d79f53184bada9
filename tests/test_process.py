"""What can come between: Ctrl-C, a want of memory, another thread's kernel, a fork.  Each case is a process of its own."""

import sys

import pytest
from program import run_python

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, sets Linux's limits")

# --- Ctrl-C, and any other exception, at every line ---

INTERRUPTED = """
import gc, os, sys, threading
import numpy as np, jitslab
from jitslab.core.process import let_kept_go, this_process

PACKAGE = os.path.dirname(jitslab.__file__)
ITEM = np.dtype([("x", "f8")])
keep = jitslab.SlabCache("keep", ITEM, capacity=100)
keep.alloc()
sys.unraisablehook = lambda _: None  # an exception in a finaliser is told there, and goes no further

def rows():
    process = this_process()
    return [at for at in process.memory[process.row.itemsize:][: 8 * int(process.row["n_rows"][0])].view(np.int64) if at]

def mapped():
    with open("/proc/self/maps") as maps:
        return [[int(n, 16) for n in line.split()[0].split("-")] for line in maps]

def run_until(act, number, error, steps):
    # Run it until the step with that number, where the error is raised; whether it came to that.
    left = [number]
    def trace(frame, event, arg):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = steps == "opcode"
        if event == steps:
            left[0] -= 1
            if left[0] == -1:
                raise error
        return trace
    sys.settrace(trace)
    try:
        act()
    except error:
        pass
    finally:
        sys.settrace(None)
    return left[0] < 0

def everywhere(act, error, steps="line", stride=1):
    act()
    gc.collect()
    known, before = len(rows()), len(mapped())
    number = 0
    while run_until(act, number, error, steps):
        number += stride
        if len(rows()) != known:
            gc.collect()
        spans = mapped() if number % 10 < stride else []
        assert len(rows()) == known, (number, len(rows()), known)
        assert not spans or all(any(start <= at < end for start, end in spans) for at in rows()), number
    assert number > 20, number
    gc.collect()
    let_kept_go(this_process().address)
    assert len(mapped()) <= before + 20, (len(mapped()), before)

def use_after():
    thread = threading.Thread(target=keep.alloc)
    thread.start()
    thread.join()
    pid = os.fork()
    if pid == 0:
        keep.alloc()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    keep.check()
"""


@LINUX
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("error", ["KeyboardInterrupt", "MemoryError"])
def test_opening_and_collecting_a_cache_interrupted_at_every_line(error):
    """The registry knows what is mapped, and nothing else; threads end and children run."""
    program = f"""
def act():
    cache = jitslab.SlabCache("x", ITEM, capacity=1000)
    cache.alloc()
everywhere(act, {error})
use_after()
print("ok")
"""
    assert run_python(INTERRUPTED + program) == "ok\n"


@LINUX
def test_opening_a_cache_interrupted_between_instructions():
    """Not only between lines."""
    program = """
def act():
    cache = jitslab.SlabCache("x", ITEM, capacity=1000)
    cache.alloc()
    cache.close()
everywhere(act, KeyboardInterrupt, "opcode", 7)
use_after()
print("ok")
"""
    assert run_python(INTERRUPTED + program) == "ok\n"


@LINUX
def test_closing_interrupted_at_every_line():
    """A cache is open, or it is closed and out of the registry; nothing is between."""
    program = """
caches = []
def act():
    caches.append(jitslab.SlabCache("x", ITEM, capacity=1000))
    handles = caches[-1].alloc_many(100)
    caches[-1].close()
def check():
    act.n += 1
    known = rows()
    for cache in caches:
        assert cache.closed == (cache._address not in known)
        if cache.closed:
            assert not (np.frombuffer(cache._generations, np.uint32)[:100] & 1).any()
    caches.clear()
act.n = 0
number = 0
while run_until(act, number, KeyboardInterrupt, "line"):
    check()
    number += 1
assert act.n > 20
use_after()
print("ok")
"""
    assert run_python(INTERRUPTED + program) == "ok\n"


@LINUX
@pytest.mark.parametrize("nodes", [None, 2])
def test_opening_and_collecting_an_allocator_interrupted(nodes):
    """Its ranges, its classes, its large memory, and arrays that keep pages of that mapped."""
    program = f"""
def act():
    memory = jitslab.SlabAllocator("m", nodes={nodes}, capacity=1 << 20)
    for n in (10, 1000):
        memory.allocate(n)
    memory.allocate(100, align=64)
    ptr = memory.allocate(3 << 20)
    memory.view(ptr, 3 << 20)[0] = 1
    memory.free(ptr, 3 << 20)
    memory.allocate(5 << 20)
everywhere(act, KeyboardInterrupt, "line", {7 if nodes is None else 997})
use_after()
print("ok")
"""
    assert run_python(INTERRUPTED + program) == "ok\n"


@LINUX
def test_tables_of_classes_that_were_interrupted_are_made_anew():
    """What `tune` and an alignment begin and do not end is written over by the next ones."""
    program = """
sizes = iter(range(1030, 1 << 20, 8))
memory = jitslab.SlabAllocator("m", capacity=1 << 16)
ptrs = []
def act():
    memory.tune([next(sizes)] * 99 + [24] * 50)
    ptrs.append((memory.allocate(24 + len(ptrs)), 24 + len(ptrs)))
number = 0
while len(memory._caches) < 150 and run_until(act, number, KeyboardInterrupt, "line"):
    number += 5
    for ptr, size in ptrs:
        memory.view(ptr, size)[:] = 7
    if number % 50 == 0:
        memory.check()
memory.check()
for ptr, size in ptrs:
    memory.free(ptr, size)
assert len(memory) == 0
del memory
gc.collect()
use_after()
print("ok")
"""
    assert run_python(INTERRUPTED + program) == "ok\n"


@LINUX
def test_signals_while_caches_are_made_and_dropped():
    """Real ones, at random."""
    program = """
import random, signal, time
is_armed = False
def boom(*_):
    global is_armed
    if is_armed:
        is_armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, boom)
end = time.monotonic() + 3
n = hits = 0
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(20e-6, 600e-6), 2e-3)
        is_armed = True
        while is_armed:  # or it fell into a finaliser
            jitslab.SlabCache("s", ITEM, capacity=100)
            n += 1
    except KeyboardInterrupt:
        hits += 1
signal.setitimer(signal.ITIMER_REAL, 0)
gc.collect()
assert n > 10 and hits > 10
assert len(rows()) == 1, len(rows())
use_after()
print("ok")
"""
    assert run_python(INTERRUPTED + program) == "ok\n"


# --- No memory, no mappings, no files ---

LIMITED = """
import ctypes, gc, os, resource, sys, threading
import numpy as np, jitslab

ITEM = np.dtype([("a", "f8", (8,))])

def used(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(field))

def set_limit(which, value):
    resource.setrlimit(which, (value, resource.getrlimit(which)[1]))

libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

def use_up_mappings(left=0):
    with open("/proc/sys/vm/max_map_count") as limit, open("/proc/self/maps") as maps:
        most, made = int(limit.read()), sum(1 for _ in maps)
    at = libc.mmap(None, 8192 * most, 0, 0x4022, -1, 0)
    for k in range((most - made - left + 1) // 2 + (left == 0) * made):
        if libc.mprotect(at + 8192 * k, 4096, 1):
            break

def full(act):
    try:
        act()
    except jitslab.CacheFullError as error:
        return str(error)
    raise AssertionError("it was not full")

def refused(kind, act):
    try:
        act()
    except kind:
        return
    raise AssertionError("it was not refused")

def fill(cache):
    n = 0
    try:
        while True:
            handles[n] = cache.alloc()
            n += 1
    except jitslab.CacheFullError as error:
        return n, str(error)

handles = np.full(1 << 20, 1)
other = jitslab.SlabCache("other", ITEM, capacity=1000)
stale = other.alloc()
other.free(stale)
live = [other.alloc() for _ in range(1000)]
cache = jitslab.SlabCache("c", ITEM)
LIMIT()
n, said = fill(cache)
print(said)

# What errors and ends do, for the first time.
refused(jitslab.StaleHandleError, lambda: other.free(stale))
refused(jitslab.NullHandleError, lambda: cache[0])
refused(jitslab.ForeignHandleError, lambda: cache.free(1 << 40 | 5))
assert (len(cache), len(other)) == (n, 1000), (len(cache), n)
full(other.alloc)
full(lambda: cache.alloc_many(1 << 18))
full(lambda: cache.reserve(1 << 25))
cache.check(), other.check()
cache.raise_faults()
if n:
    for handle in handles[:1000]:
        cache.free(handle)
    cache.free(cache.alloc())
other.free(live[0])
refused(jitslab.StaleHandleError, lambda: other.free(live[0]))
other.free_many(np.array(live[1:500]))
refused(jitslab.StaleHandleError, lambda: other.free_many(live[1:500]))
again = other.alloc()
assert again in other
cache.check(), other.check()
assert (cache.clear(), other.clear()) == (max(n - 1000, 0), 501)
cache.check(), other.check()
cache.shrink(), other.shrink()
assert not n or cache.alloc() in cache
cache.close()
other.close()
refused(jitslab.ClosedError, cache.alloc)
del cache, other
gc.collect()
print("ok")
"""


def limited(limit):
    """Run the program above under a limit; returns what `alloc` said."""
    said, end, rest = run_python(LIMITED.replace("LIMIT()", limit)).split("\n")
    assert (end, rest) == ("ok", "")
    return said


@LINUX
def test_ends_work_when_mappings_are_used_up():
    """Nothing is loaded any more that needs one."""
    assert "the system gives cache 'c' no memory" in limited("use_up_mappings()")


@LINUX
def test_ends_work_when_data_is_used_up():
    """RLIMIT_DATA: what a process may have that it writes to."""
    assert "the system gives cache 'c' no memory" in limited("set_limit(resource.RLIMIT_DATA, used('VmData') + (8 << 20))")


@LINUX
def test_ends_work_when_no_file_can_be_opened():
    """And an allocator's; caches open without any file, too."""
    limit = """
import jitslab.sizes.kernels
set_limit(resource.RLIMIT_NOFILE, 3)
more = jitslab.SlabCache("more", ITEM)
more.free(more.alloc())
more.close()
set_limit(resource.RLIMIT_DATA, used_before + (8 << 20))
"""
    limit = "used_before = used('VmData')\n" + limit
    assert "the system gives cache 'c' no memory" in limited(limit)


@LINUX
@pytest.mark.parametrize(
    "limit",
    [
        "use_up_mappings()",
        "set_limit(resource.RLIMIT_DATA, used('VmData') + (1 << 20))",
        "set_limit(resource.RLIMIT_AS, used('VmSize') + (1 << 20))",
    ],
    ids=["mappings", "data", "addresses"],
)
def test_whatever_is_used_first_at_a_limit_is_refused_by_name(limit):
    """Caches, allocators and guards, and kernels that were never loaded: `CacheFullError`, and the process goes on."""
    program = (
        LIMITED.partition("handles = ")[0]
        + f"""
cache = jitslab.SlabCache("c", ITEM, capacity=1000)
memory = jitslab.SlabAllocator("m", capacity=1 << 20)
cache.alloc(), memory.allocate(100)
{limit}
def act(*acts):
    for each in acts:
        try:
            each()
        except jitslab.CacheFullError as error:
            said.append(str(error))
said = []
act(
    lambda: jitslab.SlabCache("new", ITEM, capacity=10_000_000),
    lambda: jitslab.SlabAllocator("new"),
    lambda: memory.allocate(5 << 20),
    lambda: memory.allocate(5000),
    cache.allocate,
    lambda: cache.allocate_many(3),
    cache.live,
    cache.recover,
    lambda: cache.retain([]),
)
assert said, said
cache.check(), memory.check()
memory.close(), cache.close()
print("ok")
"""
    )
    assert run_python(program) == "ok\n"


@LINUX
def test_looking_for_room_for_code_leaves_nothing_at_the_limit_of_mappings():
    """What is mapped to look is unmapped again, whether there was room or not, also while somebody has the error."""
    program = """
from jitslab.machine.addresses import need_room_for_code
own = libc.mmap(None, 8192 * 40, 0, 0x4022, -1, 0)
use_up_mappings(50)
before, refusals = used("VmSize"), []
for k in range(40):
    try:
        need_room_for_code()
    except jitslab.CacheFullError as error:
        refusals.append(error)
    assert used("VmSize") < before + (16 << 20), k
    libc.mprotect(own + 8192 * k, 4096, 1)
print(0 < len(refusals) < 40)
"""
    assert run_python(LIMITED.partition("handles = ")[0] + program) == "True\n"


@LINUX
def test_caches_close_when_they_have_used_up_the_mappings():
    """Those that were opened until no more could be."""
    program = """
use_up_mappings(1000)
dtype = np.dtype([("a", "i8")])
caches = []
try:
    while True:
        cache = jitslab.SlabCache("x", dtype, capacity=1000)
        cache.alloc()
        caches.append(cache)
except jitslab.CacheFullError as error:
    print(len(caches) > 100)
for cache in caches:
    cache.close()
assert all(cache.closed for cache in caches)
del cache, caches
print(jitslab.SlabCache("x", dtype, capacity=1000).alloc() != 0)
"""
    assert run_python(LIMITED.partition("handles = ")[0] + program) == "True\nTrue\n"


@LINUX
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_cache_that_is_collected_while_no_file_can_be_opened_is_gone():
    """Threads that used it end, and children of fork run."""
    program = """
import gc, os, resource, threading
import numpy as np, jitslab
from jitslab.core.process import this_process
dtype = np.dtype([("a", "i8")])
keep = jitslab.SlabCache("keep", dtype, capacity=1000)
cache = jitslab.SlabCache("gone", dtype, capacity=1000)
ready, go = threading.Event(), threading.Event()
def work():
    keep.alloc(), cache.alloc()
    ready.set()
    go.wait()
thread = threading.Thread(target=work, daemon=True)
thread.start()
ready.wait()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
del cache
gc.collect()
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
row = this_process().row[0]
assert row["n_rows"] - row["n_holes"] == 1
pid = os.fork()
if pid == 0:
    keep.alloc()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
go.set()
thread.join()
keep.check()
print(len(keep))
"""
    assert run_python(program, "-W", "ignore:This process:DeprecationWarning") == "1\n"


# --- `close` beside a running kernel ---


@pytest.mark.parametrize("kernel", ["pairs", "bursts", "batches", "filled"])
def test_close_beside_running_kernels_hands_out_nothing(kernel):
    """No handle that the cache never issued comes out, no generation is odd when all is freed, and NULL comes at last."""
    program = f"""
import random, threading, time
import numpy as np, jitslab
from numba import njit
ITEM = np.dtype([("h", "i8"), ("x", "f8", (6,))])

@njit(nogil=True)
def pairs(cache, is_over, seen):
    while is_over[0] == 0 and seen[1] < 3:
        h = cache.alloc()
        seen[1] += h == 0
        seen[0] += h != 0 and h >> 32 == 0
        cache.free(h)

filled = pairs

@njit(nogil=True)
def bursts(cache, is_over, seen):
    own = np.zeros(700, np.int64)
    while is_over[0] == 0 and seen[1] < 3:
        for i in range(700):
            own[i] = cache.alloc()
            seen[0] += own[i] != 0 and own[i] >> 32 == 0
        seen[1] += own[699] == 0
        for i in range(700):
            cache.free(own[i])

@njit(nogil=True)
def batches(cache, is_over, seen):
    own = np.zeros(30, np.int64)
    while is_over[0] == 0 and seen[1] < 3:
        n = cache.alloc_many(own)
        seen[1] += n == 0
        for h in own[:n]:
            seen[0] += h >> 32 == 0
        cache.free_many(own[:n])

def run(capacity):
    init, nodes = "zero" if "{kernel}" == "filled" else None, random.choice((None, None, 3))
    cache = jitslab.SlabCache("c", ITEM, capacity=capacity, init=init, nodes=nodes)
    is_over = np.zeros(1, np.int64)
    seen = [np.zeros(2, np.int64) for _ in range(3)]
    threads = [threading.Thread(target={kernel}, args=(cache, is_over, mine)) for mine in seen]
    for thread in threads:
        thread.start()
    time.sleep(random.uniform(0, 0.002))
    cache.close()
    words = np.frombuffer(cache._generations, np.uint32)[: capacity + 2000]
    end = time.monotonic() + 0.1  # most have seen NULL and ended; one that goes on with a record of before `close` is told
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
    is_over[0] = 1
    for thread in threads:
        thread.join()
    assert sum(mine[0] for mine in seen) == 0, seen
    assert not (words & 1).any()
    return sum(mine[1] >= 3 for mine in seen)

run(10_000)
ended = sum(run(random.choice((2000, 10_000, 100_000))) for _ in range(60))
assert ended >= 60, ended  # of 180
print("ok")
"""
    assert run_python(program) == "ok\n"


def test_close_of_an_allocator_beside_running_kernels():
    """Its classes are closed as caches are."""
    program = """
import random, threading, time
import numpy as np, jitslab
from numba import njit

@njit(nogil=True)
def work(memory, is_over, seen):
    while is_over[0] == 0 and seen[1] < 3:
        for n in (8, 48, 700, 5000):
            ptr = memory.allocate(n)
            seen[1] += ptr == 0
            seen[0] += ptr != 0 and ptr >> 32 == 0
            memory.free(ptr, n)

def run():
    memory = jitslab.SlabAllocator("m", capacity=1 << 20)
    is_over = np.zeros(1, np.int64)
    seen = [np.zeros(2, np.int64) for _ in range(3)]
    threads = [threading.Thread(target=work, args=(memory, is_over, mine)) for mine in seen]
    for thread in threads:
        thread.start()
    time.sleep(random.uniform(0, 0.002))
    memory.close()
    end = time.monotonic() + 0.1
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
    is_over[0] = 1
    for thread in threads:
        thread.join()
    assert sum(mine[0] for mine in seen) == 0, seen
    return sum(mine[1] >= 3 for mine in seen)

run()
ended = sum(run() for _ in range(40))
assert ended >= 40, ended  # of 120
print("ok")
"""
    assert run_python(program) == "ok\n"


def test_closed_cache_keeps_no_more_than_the_generations_that_a_thread_can_reach():
    """Records go back to the system; so do the generations where no other thread has a heap."""
    program = """
import threading
import numpy as np, jitslab
from jitslab.core.layout import RETIRED
ITEM = np.dtype([("x", "f8", (8,))])

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))

for others in (0, 1):
    cache = jitslab.SlabCache("c", ITEM, capacity=1 << 20)
    handles = cache.alloc_many(1 << 20)
    cache.records["x"] = 1
    go = threading.Event()
    threads = [threading.Thread(target=lambda: (cache.free(cache.alloc()), go.wait())) for _ in range(others)]
    cache.free(int(handles[0]))
    for thread in threads:
        thread.start()
    while len(cache) < (1 << 20) - 1:
        pass
    del handles
    before = resident()
    cache.close()
    assert before - resident() > (60 << 20), (before, resident())
    words = np.frombuffer(cache._generations, np.uint32)[: 1 << 20]
    assert (words == (RETIRED if others else 0)).all()
    go.set()
    for thread in threads:
        thread.join()
print("ok")
"""
    assert run_python(program) == "ok\n"


def test_cache_that_a_kernel_closes_gives_it_null():
    """By object mode, in the middle: the heap that it has is empty from then on, and what it frees is refused."""
    program = """
import numpy as np, jitslab
from numba import njit, objmode
cache = jitslab.SlabCache("c", np.dtype([("x", "f8")]), capacity=1000)

@njit
def work(cache):
    own = np.zeros(100, np.int64)
    for i in range(100):
        own[i] = cache.alloc()
    for i in range(50):
        cache.free(own[i])
    with objmode:
        jitslab.caches["c"].close()  # a global cache would be pickled by older Numbas
    n = 0
    for i in range(100):
        n += cache.free(own[i])
        n += cache.alloc() != 0
        n += own[i] in cache
    return n

print(work(cache))
"""
    assert run_python(program) == "0\n"


# --- Fork ---

FORK = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork")
FORKED = """
import ctypes, os, signal, sys, threading, time, warnings
import numpy as np, jitslab
from numba import njit, objmode

warnings.filterwarnings("ignore", "This process", DeprecationWarning)
ITEM = np.dtype([("x", "f8")])

def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

class Others:
    # Threads that have heaps of a cache, and slots in them, until the block ends.
    def __init__(self, n, use):
        self.go, ready = threading.Event(), threading.Barrier(n + 1)
        def work():
            use()
            ready.wait()
            self.go.wait()
        self.threads = [threading.Thread(target=work, daemon=True) for _ in range(n)]
        for thread in self.threads:
            thread.start()
        ready.wait()
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.go.set()
        for thread in self.threads:
            thread.join()
"""


@FORK
@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("nodes", [None, 3])
def test_kernel_that_forks_goes_on_in_the_child(nodes, others):
    """By object mode, in a loop: what it has allocated it frees there, and the cache is whole."""
    program = f"""
cache = jitslab.SlabCache("k", ITEM, capacity=2000, nodes={nodes})

def fork():
    return os.fork()

@njit
def work(cache, n, own):
    freed = 0
    child = 1
    for i in range(own.size):
        own[i] = cache.alloc()
    for turn in range(n):
        if turn == 1:
            with objmode(child="int64"):
                child = fork()
        for i in range(own.size):
            cache[own[i]].x += 1
            freed += cache.free(own[i])
        for i in range(own.size):
            own[i] = cache.alloc()
    return child, freed

kept = cache.alloc_many(100)
with Others({others}, lambda: cache.free_many(cache.alloc_many(300))):
    own = np.zeros(700, np.int64)
    child, freed = work(cache, 3, own)
    good = freed == 3 * 700 and len(set(own.tolist())) == 700 and 0 not in own and len(cache) == 800
    if child == 0:
        cache.check()
        good &= len(cache.alloc_many(1200)) == 1200
        os._exit(not good)
    assert good and status_of(child) == 0
    cache.check()
print("ok")
"""
    assert run_python(FORKED + program) == "ok\n"


@FORK
def test_kernel_on_raw_memory_that_forks_goes_on_in_the_child():
    """An allocator's heaps are as a cache's."""
    program = """
memory = jitslab.SlabAllocator("m")

def fork():
    return os.fork()

@njit
def work(memory, n):
    own = np.zeros(300, np.int64)
    freed = 0
    child = 1
    for turn in range(n):
        for i in range(300):
            own[i] = memory.allocate(1 + i * 7)
            memory.bytes(own[i], 1 + i * 7)[:] = i & 255
        if turn == 1:
            with objmode(child="int64"):
                child = fork()
        for i in range(300):
            if (memory.bytes(own[i], 1 + i * 7) == i & 255).all():
                freed += memory.free(own[i], 1 + i * 7)
    return child, freed

for others in (0, 2):
    with Others(others, lambda: [memory.free(memory.allocate(n), n) for n in (8, 64, 1000)]):
        child, freed = work(memory, 3)
        if child == 0:
            memory.check()
            os._exit(freed != 900 or len(memory) != 0)
        assert freed == 900 and status_of(child) == 0
        memory.check()
print("ok")
"""
    assert run_python(FORKED + program) == "ok\n"


@FORK
def test_fork_by_a_c_library_is_as_one_of_python():
    """Whoever calls fork: with heaps of this thread alone, and with those of others."""
    program = """
fork = ctypes.CDLL(None).fork
cache = jitslab.SlabCache("x", ITEM, capacity=3000)
cache.alloc_many(1000), cache.alloc()
memory = jitslab.SlabAllocator("m")
memory.free(memory.allocate(64), 64)
sys.stdout.flush()
with cache.allocate() as guard:
    pid = fork()
    if pid == 0:
        guard.x = 5.0
        good = len(cache) == 1002
if pid == 0:
    good &= len(cache) == 1002  # the guard is the parent's
    cache.check(), memory.check()
    good &= len(cache.alloc_many(1998)) == 1998
    try:
        cache.alloc()
        good = False
    except jitslab.CacheFullError:
        pass
    os._exit(not good)
assert status_of(pid) == 0
assert len(cache) == 1001
print("ok")
"""
    assert run_python(FORKED + program) == "ok\n"


@FORK
def test_child_writes_nothing_to_caches_that_one_thread_uses():
    """Their pages stay shared; others' heaps are nobody's, and the index is rebuilt once."""
    program = """
from jitslab.core.layout import MENDED, SOUND, TORN
sound = [jitslab.SlabCache("sound", ITEM, capacity=1000) for _ in range(20)]
torn = [jitslab.SlabCache("torn", ITEM, capacity=1000) for _ in range(20)]
for cache in (*sound, *torn):
    cache.free(cache.alloc())
def states(caches):
    return {cache._memory.field("torn") for cache in caches}
def child(act):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return status_of(pid)
def act():
    assert (states(sound), states(torn)) == ({SOUND}, {TORN})
    for cache in (*sound, *torn):
        assert len(cache.alloc_many(1000)) == 1000
        cache.check()
    assert (states(sound), states(torn)) == ({SOUND}, {MENDED})
    assert child(again) == 0
def again():
    assert (states(sound), states(torn)) == ({SOUND}, {TORN})
    for cache in (*sound, *torn):
        assert len(cache) == 1000
        cache.clear()
        cache.check()
with Others(2, lambda: [cache.free_many(cache.alloc_many(200)) for cache in torn]):
    assert child(act) == 0
assert (states(sound), states(torn)) == ({SOUND}, {SOUND})
print("ok")
"""
    assert run_python(FORKED + program) == "ok\n"


@FORK
def test_thread_that_forks_and_ends_gives_its_magazines_home():
    """In the child, too, where it has not used the cache."""
    program = """
cache = jitslab.SlabCache("c", ITEM, capacity=1000)
cache.free_many(cache.alloc_many(300))
answers = []
def work():
    cache.free_many(cache.alloc_many(100))
    pid = os.fork()
    answers.append(pid)
thread = threading.Thread(target=work)
thread.start()
thread.join()
if answers[0] == 0:  # no thread of the child but the one that forked comes here
    os._exit(99)
assert status_of(answers[0]) in (0, 120), answers  # what CPython ends such a child with
cache.check()
print("ok")
"""
    assert run_python(FORKED + program) == "ok\n"


@FORK
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1, 0.2])
def test_fork_while_another_thread_opens_the_first_cache(delay):
    """The child does not wait for what that thread was doing."""
    program = f"""
thread = threading.Thread(target=lambda: jitslab.SlabCache("first", ITEM, capacity=10).alloc())
thread.start()
time.sleep({delay})
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    cache = jitslab.SlabCache("child", ITEM, capacity=10)
    with cache.allocate() as it:
        it.x = 1.0
    cache.check()
    os._exit(0)
thread.join()
assert status_of(pid) == 0
print("ok")
"""
    assert run_python(FORKED + program) == "ok\n"


@FORK
def test_fork_while_other_threads_compile():
    """Numba's and llvmlite's locks are nobody's in the child: it compiles there, too."""
    program = """
cache = jitslab.SlabCache("c", ITEM, capacity=1000)
is_over = threading.Event()

def compile_one(k):
    @njit
    def work(cache):
        h = cache.alloc()
        cache[h].x = k
        return cache.free(h)
    return work(cache)

def compile_many():
    k = 0
    while not is_over.is_set():
        assert compile_one(k)
        k += 1

threads = [threading.Thread(target=compile_many, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
for turn in range(8):
    time.sleep(0.03 * turn)
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        os._exit(not compile_one(1000))
    assert status_of(pid) == 0, turn
is_over.set()
for thread in threads:
    thread.join()
cache.check()
print("ok")
"""
    assert run_python(FORKED + program) == "ok\n"


@FORK
def test_locks_that_a_fork_could_not_have_are_made_anew():
    """Ctrl-C ends the wait for them; parent and child go on."""
    program = """
import numba.core.compiler_lock as numbas
from jitslab.core import process
told = []
sys.unraisablehook = told.append
cache = jitslab.SlabCache("c", ITEM, capacity=10)
held, go = threading.Event(), threading.Event()
def hold():
    with numbas.global_compiler_lock:
        held.set()
        go.wait()
thread = threading.Thread(target=hold, daemon=True)
thread.start()
held.wait()
def stop(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.2)
pid = os.fork()
if pid == 0:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)
    @njit
    def work(cache):
        return cache.free(cache.alloc())
    os._exit(not work(cache))
assert status_of(pid) == 0
assert [each.exc_type for each in told] == [KeyboardInterrupt]
assert process._first.acquire(timeout=1)
process._first.release()
go.set()
thread.join()
print("ok")
"""
    assert run_python(FORKED + program) == "ok\n"


@FORK
def test_fork_interrupted_at_any_step_leaves_every_lock_free():
    """An exception as the locks around a fork are taken, or given back: other threads of parent and child can have them."""
    program = """
from jitslab.core import process
cache = jitslab.SlabCache("c", ITEM, capacity=10)
cache.free(cache.alloc())
told = []
sys.unraisablehook = lambda it: told.append(it.exc_type)

def are_free():
    found = []
    def look():
        for place, name in process._PLACES:
            lock = getattr(place, name)
            found.append(lock.acquire(timeout=5))
            if found[-1]:
                lock.release()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return all(found) and not process._held.locks

def trace(frame, event, arg):
    global left
    if frame.f_code.co_filename != process.__file__:
        return None
    frame.f_trace_opcodes = True
    if event in ("call", "opcode"):
        left -= 1
        if left == -1:
            raise KeyboardInterrupt
    return trace

number, status = 0, 1
while status:
    left = number
    sys.settrace(trace)
    pid = os.fork()
    sys.settrace(None)
    if pid == 0:
        signal.alarm(60)
        os._exit((left < 0) if are_free() else 2)
    status = status_of(pid)
    assert status != 2 and are_free(), number
    status |= left < 0
    number += 1
assert number > 50 and set(told) == {KeyboardInterrupt} and len(told) > 30, (number, told)
print("ok")
"""
    assert run_python(FORKED + program) == "ok\n"


@FORK
def test_fork_by_a_thread_that_compiles_leaves_it_its_lock():
    """It gives back after the fork what it took for it, and no more."""
    program = """
import numba.core.compiler_lock as numbas
from jitslab.core import process
jitslab.SlabCache("c", ITEM, capacity=10)
with numbas.global_compiler_lock:
    pid = os.fork()
    assert numbas.global_compiler_lock._lock._is_owned()
if pid == 0:
    os._exit(numbas.global_compiler_lock._lock._is_owned())
assert status_of(pid) == 0
assert not numbas.global_compiler_lock._lock._is_owned()
print("ok")
"""
    assert run_python(FORKED + program) == "ok\n"
