"""What other processes, threads and children do to a pool at any moment: at each system call, or really beside it."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import numba
import numpy as np
import pytest
from program import run_python

import jitslab
from jitslab.pool import calls

NODE = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
ROOT = np.dtype([("head", jitslab.link("nodes")), ("n", "i8"), ("sum", "i8")])
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or asks Linux alone")
FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SYSTEM = calls.system


@pytest.fixture
def folder():
    """Return a folder in memory, since each case makes a pool."""
    path = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    yield path
    shutil.rmtree(path)


# --- Between two system calls ---


class Between:
    """The system, with something done before the call with a number."""

    def __init__(self, at, act):
        self.left, self.act = at, act

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.left -= 1
            if self.left == -1:
                calls.system = SYSTEM
                self.act()
                calls.system = self
            return getattr(SYSTEM, name)(*arguments, **options)

        return call


def between_all(run, act):
    """Call ``run(between)``, with `act` done before the first system call, then before the second, and so on."""
    at = 0
    while True:
        between = Between(at, act)
        calls.system = between
        try:
            run()
        finally:
            calls.system = SYSTEM
        if between.left >= 0:
            return at
        assert at < 1000
        at += 1


def image(pool):
    """Return all that a pool holds."""
    caches = {name: {h: cache[h].tobytes() for h in cache.live().tolist()} for name, cache in pool.caches.items()}
    return caches, pool.root.tobytes()


class Writer:
    """A writer that does each time something else, and knows all states that were committed."""

    def __init__(self, path):
        self.path, self.n = path, 0
        self.pool = jitslab.open_pool(path, root=ROOT)
        self.pool.create_cache("nodes", NODE, capacity=1000)
        self.states = []
        self.act()

    def note(self):
        """Note what is committed."""
        self.states.append(image(self.pool))

    def act(self):
        """Commit more nodes; make, fill and drop a cache; begin the journal anew."""
        pool, self.n = self.pool, self.n + 1
        pool["nodes"].clear()
        pool.root["head"] = pool["nodes"].alloc_many(20, value=self.n)[0]
        pool.root["n"] = self.n
        pool.commit()
        self.note()
        if f"c{self.n - 1}" in pool:
            pool.drop_cache(f"c{self.n - 1}")
            self.note()
        pool.create_cache(f"c{self.n}", NODE, capacity=10)
        self.note()
        pool[f"c{self.n}"].alloc(value=self.n)
        pool.root["sum"] = self.n
        pool.commit()
        self.note()
        pool.checkpoint()
        pool.root["n"] = -self.n
        pool.commit()
        self.note()


def test_a_writer_between_any_two_calls_of_opening_a_reader(folder):
    """The reader sees a state that was committed."""
    writer = Writer(f"{folder}/pool")

    def run():
        with jitslab.open_pool(writer.path, "r") as reader:
            assert image(reader) in writer.states
        calls.system = SYSTEM
        assert writer.pool.checkpoint()

    assert between_all(run, writer.act) > 30
    writer.pool.close()


@pytest.mark.parametrize("is_behind", [True, False])
def test_a_writer_between_any_two_calls_of_refresh(folder, is_behind):
    """The reader sees a state that was committed, and no older one than before; then the last."""
    writer = Writer(f"{folder}/pool")
    reader = jitslab.open_pool(writer.path, "r")

    def prepare():
        writer.act()
        if not is_behind:
            reader.refresh()

    def run():
        seen = image(reader)
        reader.refresh()
        calls.system = SYSTEM
        assert image(reader) in writer.states[writer.states.index(seen) + is_behind :]
        reader.refresh()
        assert image(reader) == writer.states[-1]
        assert writer.pool.checkpoint()
        prepare()

    def act():
        writer.pool.checkpoint()  # as the first thing, if the reader is not behind
        writer.act()

    prepare()
    assert between_all(run, act) > 5
    reader.close()
    writer.pool.close()


def test_a_maker_between_any_two_calls_of_making_the_same_pool(folder):
    """What one made, committed and closed, the other does not make again."""
    for mode in "c", "x":
        paths = iter(range(10**6))
        path, made = "", 0

        def other():
            nonlocal made
            try:
                with jitslab.open_pool(path, "c", root=ROOT) as pool:
                    pool.root["n"] = 7
                made += 1
            except jitslab.PoolError:
                pass  # the first one has the lock already

        def run():
            nonlocal path
            path, before = f"{folder}/{mode}{next(paths)}", made
            try:
                with jitslab.open_pool(path, mode, root=ROOT) as pool:
                    assert pool.root["n"] == 7 * (made - before)
            except jitslab.PoolPathError:
                assert mode == "x"
                assert made > before
            calls.system = SYSTEM
            with jitslab.open_pool(path, "r") as pool:
                assert pool.root["n"] == 7 * (made - before)

        assert between_all(run, other) > 50
        assert made > 3


def test_a_capacity_that_is_raised_beside_a_reader(folder):
    """The reader has a new cache of the name; it sees what the old one had no room for."""
    path = f"{folder}/pool"
    with jitslab.open_pool(path, root=ROOT) as pool:
        pool.create_cache("nodes", NODE, capacity=10).alloc(value=1.0)
    reader = jitslab.open_pool(path, "r")
    old = reader["nodes"]
    with jitslab.open_pool(path, capacity={"nodes": 9_000_000}) as pool:
        pool["nodes"].alloc_many(8_000_000, value=2.0)
        pool.commit()
        reader.refresh()
        assert len(reader["nodes"]) == 8_000_001
        reader["nodes"].check()
        with pytest.raises(jitslab.ClosedError):
            len(old)
    reader.close()


# --- Processes ---

WRITER = """
import sys, numpy as np, jitslab, numba
from test_pool_races import NODE, ROOT
pool = jitslab.open_pool(sys.argv[1], sync=False)
nodes, root = pool["nodes"], pool.root
rng = np.random.default_rng(int(sys.argv[2]))
held = nodes.live()
for k in range(1, int(sys.argv[3]) + 1):
    if len(held) > 3000 or (len(held) > 50 and rng.random() < 0.4):
        rng.shuffle(held)
        nodes.free_many(held[:60])
        held = held[60:]
    values = rng.integers(1, 1000, 50)
    new = nodes.alloc_many(50)
    for h, v in zip(new.tolist(), values.tolist()):
        nodes[h]["value"] = v
    held = np.concatenate([held, new])
    root["n"], root["sum"] = len(held), int(nodes.records["value"][held & 0xFFFFFFFF].sum())
    pool.commit()
    if k % 100 == 0:
        pool.checkpoint()
pool.close()
"""


@LINUX
def test_a_reader_beside_a_writer_of_a_thousand_commits(folder):
    """Each refresh is a state that was committed: the root has the number and the sum of the records."""
    path = f"{folder}/pool"
    with jitslab.open_pool(path, root=ROOT) as pool:
        pool.create_cache("nodes", NODE, capacity=10_000)
        first = pool.number
    with jitslab.open_pool(path, "r") as reader:
        environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path, "1", "1000"], env=environment)
        seen, nodes = set(), reader["nodes"]
        while writer.poll() is None or reader.refresh() not in seen:
            seen.add(reader.refresh())
            live = nodes.live()
            assert len(live) == reader.root["n"]
            assert nodes.records["value"][live & 0xFFFF_FFFF].sum() == reader.root["sum"]
        assert writer.returncode == 0
        assert reader.number == first + 1000
        assert len(seen) > 2
        nodes.check()


OPENER = """
import sys, time, jitslab
path, number = sys.argv[1], int(sys.argv[2])
n_won = 0
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        with jitslab.open_pool(path) as pool:
            root = pool.root
            assert root["head"] == 0, "two writers"
            root["head"] = number  # not committed: no other sees it
            pool.commit()
            root["head"] = 0
            root["n"] += 1
            n_won += 1
    except jitslab.PoolBusyError as error:
        assert "open to write, by " in str(error), error
print(n_won)
"""


@LINUX
def test_many_processes_race_to_open(folder):
    """One wins each time; the others are told so; no commit is lost."""
    path = f"{folder}/pool"
    jitslab.open_pool(path, root=ROOT).close()
    pipe = subprocess.PIPE
    openers = [
        subprocess.Popen([sys.executable, "-c", OPENER, path, str(k)], stdin=pipe, stdout=pipe, text=True) for k in range(1, 5)
    ]
    assert [opener.stdout.readline() for opener in openers] == ["ready\n"] * 4
    for opener in openers:
        opener.stdin.write("go\n")
        opener.stdin.flush()
    won = [int(opener.communicate(timeout=60)[0]) for opener in openers]
    with jitslab.open_pool(path, "r") as pool:
        assert pool.root["n"] == sum(won)
        assert sum(won) > 4


# --- Children of fork ---


@FORK
def test_a_child_of_fork_leaves_the_pool_alone(folder):
    """Guards are finalised there, caches refuse, and it ends by os._exit or sys.exit; the parent's pool goes on."""
    path = f"{folder}/pool"
    pool = jitslab.open_pool(path, root=ROOT)
    nodes = pool.create_cache("nodes", NODE, capacity=1000)
    guards = [nodes.allocate(value=float(i)) for i in range(100)]
    pool.commit()
    for way in ("_exit", "exit"):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                guards.clear()  # they would free their records
                for act in (nodes.alloc, pool.commit, pool.rollback, pool.checkpoint, lambda: len(nodes), lambda: pool.root):
                    with pytest.raises(jitslab.ClosedError):
                        act()
                pool.close()
                with pytest.raises(jitslab.PoolBusyError):
                    jitslab.open_pool(path)
                with jitslab.open_pool(path, "r") as reader:
                    assert len(reader["nodes"]) == 100
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert len(nodes) == 100
        pool.root["n"] += 1
        pool.commit()
        assert pool.checkpoint()
    assert [guard.value for guard in guards] == [float(i) for i in range(100)]
    nodes.check()
    guards.clear()
    pool.close()


@FORK
def test_the_lock_ends_with_the_writer_though_its_children_live(folder):
    """A child of fork does not hold the lock of a writer that died."""
    program = f"""
import os, signal, sys, time
from test_pool_races import ROOT
import jitslab
pool = jitslab.open_pool({folder!r} + "/pool", root=ROOT)
pool.root["n"] = 5
pool.commit()
pid = os.fork()
if pid == 0:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    child = int(done.stdout)
    os.kill(child, 0)  # it lives
    try:
        with jitslab.open_pool(f"{folder}/pool", "r+") as pool:
            assert pool.root["n"] == 5
    finally:
        os.kill(child, signal.SIGKILL)


def count(path):
    """Return the number in the root, as a worker process sees it."""
    with jitslab.open_pool(path, "r") as pool:
        return int(pool.root["n"])


@FORK
def test_workers_of_multiprocessing_that_are_forked(folder):
    """They read the pool that their parent writes."""
    path = f"{folder}/pool"
    with jitslab.open_pool(path, root=ROOT, sync=False) as pool:
        pool.root["n"] = 1
        pool.commit()
        with multiprocessing.get_context("fork").Pool(2) as workers:
            assert workers.map(count, [path] * 4) == [1] * 4
            pool.root["n"] = 2
            pool.commit()
            assert workers.map(count, [path] * 4) == [2] * 4


# --- Threads ---


class Held:
    """The system, of which the first sync waits until it is let go."""

    def __init__(self):
        self.is_in, self.go = threading.Event(), threading.Event()

    def __getattr__(self, name):
        def call(*arguments, **options):
            if name == "fdatasync" and not self.is_in.is_set():
                self.is_in.set()
                assert self.go.wait(60)
            return getattr(SYSTEM, name)(*arguments, **options)

        return call


def test_a_second_thread_is_told_that_a_commit_runs(folder):
    """All calls of the pool are refused meanwhile; the caches are not."""
    with jitslab.open_pool(f"{folder}/pool", root=ROOT) as pool:
        nodes = pool.create_cache("nodes", NODE, capacity=100)
        nodes.alloc()
        calls.system = held = Held()
        try:
            thread = threading.Thread(target=pool.commit)
            thread.start()
            assert held.is_in.wait(60)
            for act in (
                pool.commit,
                pool.rollback,
                pool.checkpoint,
                pool.close,
                lambda: pool.create_cache("a", NODE, capacity=1),
                lambda: pool.drop_cache("nodes"),
                lambda: pool.transaction().__enter__(),
            ):
                with pytest.raises(jitslab.BusyError, match="another thread is in a call of pool"):
                    act()
            handle = nodes.alloc(value=4.0)
        finally:
            held.go.set()
            thread.join()
            calls.system = SYSTEM
        number = pool.number
        assert pool.commit() == number + 1
        with jitslab.open_pool(f"{folder}/pool", "r") as reader:
            assert reader["nodes"][handle]["value"] == 4.0


@numba.njit(nogil=True)
def churn(cache, sums, k, stop, seed):
    """Take, change and free nodes until it is told to stop; keep the sum of those that are live."""
    held = np.zeros(200, np.int64)
    x = seed
    while stop[0] == 0:
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
        i = (x >> 8) % 200
        if held[i]:
            sums[k] -= cache[held[i]].value
            if x & 64:
                cache.free(held[i])
                held[i] = 0
            else:
                cache[held[i]].value = x & 1023
                sums[k] += x & 1023
        else:
            held[i] = cache.alloc(value=x & 1023)
            if held[i]:
                sums[k] += x & 1023


@pytest.mark.parametrize("dirty", ["userfaultfd", "pagemap", "hashes"])
def test_threads_that_store_while_commits_run(folder, monkeypatch, dirty):
    """No store is lost: when the threads have ended, one more commit holds what memory holds."""
    monkeypatch.setenv("JITSLAB_DIRTY", dirty)
    path = f"{folder}/pool"
    with jitslab.open_pool(path, root=ROOT, sync=False) as pool:
        nodes = pool.create_cache("nodes", NODE, capacity=20_000)
        sums, stop = np.zeros(2), np.zeros(1, np.int64)
        stop[0] = 1
        churn(nodes, sums, 0, stop, 1)
        stop[0] = 0
        threads = [threading.Thread(target=churn, args=(nodes, sums, k, stop, 7 + k)) for k in range(2)]
        for thread in threads:
            thread.start()
        for k in range(60):
            pool.commit()
            if k % 20 == 19:
                pool._checkpoint()
        stop[0] = 1
        for thread in threads:
            thread.join()
        pool.commit()
        expected = image(pool)
        assert nodes.records["value"][nodes.live() & 0xFFFF_FFFF].sum() == sums.sum()
        nodes.check()
    with jitslab.open_pool(path, "r") as pool:
        assert image(pool) == expected


# --- What the system does not grant ---

REFUSED = """
import ctypes, errno, os, struct, sys
import numpy as np, jitslab
from jitslab.pool import pagemap
from test_pool_races import NODE, ROOT

def refuse(call):
    # Have the kernel answer EPERM to a system call from now on: a filter of classic BPF.
    libc = ctypes.CDLL(None, use_errno=True)
    code = struct.pack("<HBBIHBBIHBBIHBBI",
        0x20, 0, 0, 0,                           # load the number of the call
        0x15, 0, 1, call,                        # if it is this one,
        0x06, 0, 0, 0x00050000 | errno.EPERM,    # return EPERM,
        0x06, 0, 0, 0x7FFF0000)                  # else allow it
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("<HxxxxxxQ", 4, ctypes.addressof(buffer))
    assert libc.prctl(38, 1, 0, 0, 0) == 0       # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.create_string_buffer(program, 16), 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP, a filter

def use(path):
    with jitslab.open_pool(path, root=ROOT) as pool:
        nodes = pool.create_cache("nodes", NODE, capacity=20_000)
        for k in range(5):
            handles = nodes.alloc_many(1000, value=float(k))
            pool.commit()
            nodes.free_many(handles[::2])
            nodes[int(handles[1])]["value"] = 100.0
        pool.root["n"] = 7
        pool.commit()
        state = nodes.live().tolist(), nodes.gather(nodes.live()).tobytes()
        dirty = pool.stats()["dirty"]
        nodes.clear()
        pool.rollback()
        assert nodes.live().tolist() == state[0]
    with jitslab.open_pool(path, "r") as pool:
        nodes = pool["nodes"]
        assert (nodes.live().tolist(), nodes.gather(nodes.live()).tobytes()) == state
    print(dirty)
"""
CALL = {"x86_64": 323, "aarch64": 282}.get(os.uname().machine if hasattr(os, "uname") else "")


@LINUX
@pytest.mark.skipif(CALL is None, reason="the number of userfaultfd is not known")
def test_seccomp_refuses_userfaultfd(folder):
    """As the default profile of containers does: written pages are found by pagemap and hashes, and stats say so."""
    program = f"{REFUSED}\nrefuse({CALL})\nuse({folder + '/pool'!r})"
    assert run_python(program, PYTHONPATH=os.path.dirname(__file__), JITSLAB_DIRTY="") == "pagemap\n"


@LINUX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can hide /proc")
def test_no_proc(folder):
    """Without /proc all pages are hashed, and stats say so."""
    program = f"""{REFUSED}
libc = ctypes.CDLL(None, use_errno=True)
jitslab.warmup()
if libc.unshare(0x20000) or libc.mount(None, b"/", None, 0x44000, None) or libc.mount(b"none", b"/proc", b"tmpfs", 0, None):
    print("hashes")  # namespaces are not granted
else:
    assert not os.path.exists("/proc/self")
    use({folder + "/pool"!r})
"""
    assert run_python(program, PYTHONPATH=os.path.dirname(__file__), JITSLAB_DIRTY="") == "hashes\n"
