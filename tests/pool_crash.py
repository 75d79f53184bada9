"""
Pools whose process is killed, or whose machine loses power, at any instant: what is there afterwards is proven.

    python tests/pool_crash.py kill --kills 1000     # kill -9 at random instants
    python tests/pool_crash.py calls                 # death at every system call of every operation, and of the recovery after it
    python tests/pool_crash.py power --images 10000  # power cuts on paper, and cuts of the recovery after them

Properties of the workload: up to three caches with records of 24, 64 and 4,808 bytes; batches and single operations, from Python
and compiled; commits, transactions that end by themselves or by an exception, rollbacks, checkpoints, also such that drop memory
or punch holes; caches are made and dropped; the pool is closed and opened again, also with a higher capacity.

The proof: before each commit its number, and of each cache the count and a XOR over handles and all bytes of its live records,
are written into the root.  A process says by a pipe what it is about to do, and when it is done.  So a pool that is opened again
must be as the last operation that was reported left it, or as the one in flight would have: its caches with their capacities, the
number of the commit, each count and each XOR; `Pool.check` passes; and no file is there but those of its caches.
"""

import argparse
import contextlib
import copy
import fcntl
import functools
import itertools
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback

import numpy as np
from numba import njit
from paper_disk import NEVER, Killed, Medium, Recorder

import jitslab
from jitslab.pool import calls, journal, pool, restore

DTYPES = [np.dtype([("value", "i8"), ("rest", "i8", n)]) for n in (2, 7, 600)]
MOST_CACHES = 3
PROOF = np.dtype([("serial", "i8"), ("n", "i8"), ("xor", "i8")])
ROOT = np.dtype([("number", "i8"), ("serial", "i8"), ("caches", PROOF, MOST_CACHES)])  # the last commit, the last cache, proofs
WEIGHTS = np.random.default_rng(12).integers(1 << 62, size=1 + 601) | 1

FLIGHTS = "opening", "raise", "commit", "create_cache", "drop_cache"  # what may be in flight, by the first number of a message
OPEN, RAISE, COMMIT, MAKE, DROP, DONE = range(6)
MESSAGE = struct.Struct("<3q")
PIPE_BYTES = 1 << 20
AGAIN = 4  # of so many system calls of a recovery one is its last

SMALL = ((journal, "FIRST_BYTES", 1 << 16), (journal, "GROWTH_BYTES", 1 << 18), (journal, "PIECE_BYTES", 1 << 16))
SMALL += ((restore, "PIECE_BYTES", 1 << 16), (pool, "LEAST_JOURNAL", 1 << 18))


@contextlib.contextmanager
def small_sizes():
    """Have journals begin short, grow, be written in pieces and end in a checkpoint soon."""
    before = [(module, name, getattr(module, name)) for module, name, _ in SMALL]
    for module, name, n in SMALL:
        setattr(module, name, n)
    try:
        yield
    finally:
        for module, name, n in before:
            setattr(module, name, n)


# --- What is known of a pool ---


class Known:
    """
    What a process said: which commit and which caches there are, and what is in flight.

    Attributes
    ----------
    number : int
        Of the last commit of the workload; -1: no pool was opened yet.
    capacities : dict of int to int
        By the serial number of a cache.
    flight : tuple or None
        What was begun and not reported: what, a number, and a capacity.
    """

    def __init__(self, number=-1, capacities=()):
        self.number, self.capacities, self.flight = number, dict(capacities), None

    def hear(self, what, number=0, capacity=0):
        """Take note of a message."""
        if what == DONE:
            (self.number, self.capacities), self.flight = self.after(), None
        else:
            self.flight = what, number, capacity

    def find(self, number, capacities):
        """Take note of what a pool was found to be when it was opened again."""
        self.number, self.capacities, self.flight = number, dict(capacities), None

    def after(self):
        """Return the number and the capacities when what is in flight is done."""
        what, number, capacity = self.flight or (None, 0, 0)
        capacities = dict(self.capacities)
        if what in (RAISE, MAKE):
            capacities[number] = capacity
        elif what == DROP:
            del capacities[number]
        return {OPEN: max(self.number, 0), COMMIT: number}.get(what, self.number), capacities

    def states(self):
        """Return the states that a pool may be in."""
        return [(max(self.number, 0), self.capacities), self.after()]

    @property
    def mode(self):
        """How the pool is opened: one that was opened before is there."""
        return "c" if self.number < 0 else "r+"


def proof_of(cache):
    """Return the count of live records, and a XOR over their handles and all their bytes."""
    live = cache.live()
    words = np.column_stack((live, cache.gather(live).view(np.int64).reshape(len(live), cache.dtype.itemsize // 8)))
    return len(live), int(np.bitwise_xor.reduce((words * WEIGHTS[: words.shape[1]]).sum(axis=1)))


def serials_of(it):
    """Return the caches of a pool by their serial numbers."""
    return {int(name[1:]): cache for name, cache in it.caches.items()}


def prove_records(it):
    """Assert that live records are as the root says: that of the last commit."""
    proofs = {int(serial): (int(n), int(xor)) for serial, n, xor in it.root["caches"] if serial}
    for serial, cache in serials_of(it).items():
        found, wanted = proof_of(cache), proofs.get(serial, (0, 0))  # a cache that was made since is empty
        assert found == wanted, f"cache {serial} of commit {it.number} has (count, XOR) {found}, not {wanted}"
        cache.check()


def prove(it, known):
    """Assert that an open pool is in one of the states that are known to be possible; returns it as what is known now."""
    found = int(it.root["number"]), {serial: cache.capacity for serial, cache in serials_of(it).items()}
    assert found in known.states(), f"the pool is {found}, not one of {known.states()}; in flight: {known.flight}"
    assert it.number > found[0], f"commit {it.number} of the pool is {found[0]} of the workload"  # the first made the root
    prove_records(it)
    it.check()
    if it.mode == "r+":
        ids = [0, *(cache._memory.entry.id for cache in it.caches.values())]
        files = {"pool.json", "journal", "writer.lock", "reader.lock"}
        files |= {f"{id_}.{kind}" for id_ in ids for kind in ("words", "records", "sums")}
        strangers = set(os.listdir(it.path)) ^ files
        assert strangers <= {"pool.json.new"}, f"files too many or too few: {strangers}"
    return Known(*found)


def prove_path(path, known, mode=None):
    """Open a pool, assert that it is in a possible state, and close it; returns what is known now."""
    it = jitslab.open_pool(path, mode or known.mode, root=ROOT if mode is None else None)
    try:
        return prove(it, known)
    finally:
        it.close(commit=False)


# --- The workload ---


@njit(nogil=True, cache=True)
def store(cache, handles, key):
    """Change some records, free some, and make one in the place of each."""
    for i in range(handles.size):
        h = handles[i]
        if (h ^ key) % 3 == 0:
            cache.free(h)
            h = cache.alloc()
        if h != 0:
            record = cache.record(h)
            record.value = key ^ h
            record.rest[i % record.rest.size] = key


class UndoneError(Exception):
    """It ends a transaction."""


class Worker:
    """
    A process's work on a pool.

    Parameters
    ----------
    path : str
        Of the pool.
    rng : random.Random
    say : callable
        Called with each message.
    mode : str
        Of the first opening.
    most : int
        Records of a batch.
    sync : bool
    """

    def __init__(self, path, rng, say, mode="c", *, most=100, sync=True):
        self.path, self.rng, self.say, self.most, self.sync = path, rng, say, most, sync
        self.open(mode)

    def open(self, mode, capacity=None):
        """Open the pool; capacity is of a serial number and a higher capacity."""
        if capacity:
            self.say(RAISE, *capacity)
        else:
            self.say(OPEN)
        raised = {f"c{capacity[0]}": capacity[1]} if capacity else None
        keep = self.rng.choice((None, 0))
        self.pool = jitslab.open_pool(self.path, mode, root=ROOT, sync=self.sync, capacity=raised, keep=keep)
        self.say(DONE)

    # --- Changes ---

    def change(self):
        """Change records of some caches."""
        for cache in self.pool.caches.values():
            if self.rng.random() < 0.7:
                self.change_records(cache)

    def change_records(self, cache):
        """Change records of one cache."""
        rng = np.random.default_rng(self.rng.getrandbits(32))
        live = rng.permutation(cache.live())
        most = self.most if cache.dtype.itemsize < 100 else max(self.most // 20, 3)
        n_gone = len(live) if rng.random() < 0.05 else rng.integers(0, min(len(live), most) + 1)
        cache.free_many(live[:n_gone])
        live = live[n_gone:]
        room = max(cache.capacity - len(live), 0)
        new = cache.alloc_many(int(rng.integers(0, min(most, room) + 1)))
        records = np.zeros(len(new), cache.dtype)
        records["value"], records["rest"] = new, rng.integers(1 << 60, size=records["rest"].shape)
        cache.scatter(new, records)
        touched = np.concatenate((live[: int(rng.integers(0, 50))], new[:10]))
        store(cache, touched, int(rng.integers(1 << 60)))

    def note(self):
        """Write the number of the next commit and its proof into the root; returns the number."""
        root, caches = self.pool.root, serials_of(self.pool)
        root["number"] += 1
        root["serial"] = max(int(root["serial"]), *caches, 0)
        root["caches"] = 0
        for k, (serial, cache) in enumerate(caches.items()):
            root["caches"][k] = (serial, *proof_of(cache))
        return int(root["number"])

    # --- Steps ---

    def commit(self):
        """Change, and commit."""
        self.change()
        self.say(COMMIT, self.note())
        self.pool.commit()
        self.say(DONE)

    def transact(self):
        """Change within a transaction."""
        with self.pool.transaction():
            self.change()
            self.say(COMMIT, self.note())
        self.say(DONE)

    def undo(self):
        """Change within a transaction that an exception ends."""
        with contextlib.suppress(UndoneError), self.pool.transaction():
            self.change()
            self.note()
            self.change()
            raise UndoneError
        prove_records(self.pool)

    def roll_back(self):
        """Change, and roll back."""
        self.change()
        self.note()
        self.pool.rollback()
        prove_records(self.pool)

    def checkpoint(self):
        """Checkpoint."""
        assert self.pool.checkpoint()

    def shrink(self):
        """Free all records of a cache, commit, and have the next checkpoint punch holes into its files."""
        caches = list(self.pool.caches.values())
        if caches:
            cache = self.rng.choice(caches)
            cache.clear()
            self.commit()
            cache.shrink()
            self.checkpoint()

    def make(self):
        """Make a cache."""
        serials = serials_of(self.pool)
        if len(serials) == MOST_CACHES:
            return
        serial, capacity = 1 + max(int(self.pool.root["serial"]), *serials, 0), self.rng.choice((200, 1000, 30_000))
        self.say(MAKE, serial, capacity)
        self.pool.create_cache(f"c{serial}", DTYPES[serial % len(DTYPES)], capacity=capacity)
        self.say(DONE)

    def drop(self):
        """Drop a cache."""
        serials = list(serials_of(self.pool))
        if serials:
            serial = self.rng.choice(serials)
            self.say(DROP, serial)
            self.pool.drop_cache(f"c{serial}")
            self.say(DONE)

    def close(self):
        """Close with changes, which commits them."""
        self.change()
        self.say(COMMIT, self.note())
        self.pool.close()
        self.say(DONE)

    def reopen(self):
        """Close and open again."""
        self.close()
        self.open("r+")

    def forget(self):
        """Close without a commit, and open again."""
        self.change()
        self.note()
        self.pool.close(commit=False)
        self.open("r+")
        prove_records(self.pool)

    def raise_capacity(self):
        """Open again with a higher capacity of a cache."""
        caches = list(serials_of(self.pool).items())
        if caches:
            serial, cache = self.rng.choice(caches)
            capacity = min(cache.capacity + self.rng.choice((1, 1000, 20_000)), 200_000)
            self.close()
            self.open("r+", (serial, capacity))

    STEPS = (
        (commit, 40),
        (transact, 8),
        (undo, 8),
        (roll_back, 5),
        (checkpoint, 8),
        (shrink, 3),
        (make, 8),
        (drop, 4),
        (reopen, 5),
        (forget, 3),
        (raise_capacity, 3),
    )  # each with its weight

    def step(self):
        """Do one of the steps."""
        steps, weights = zip(*self.STEPS, strict=True)
        self.rng.choices(steps, weights)[0](self)


def warm_up(folder):
    """Have all be compiled that the workload calls, so that processes which are forked from this one have it."""
    path = f"{folder}/warm"
    worker = Worker(path, random.Random(0), lambda *message: None)
    for _ in range(MOST_CACHES):
        worker.make()
    for step in (*(step for step, _ in Worker.STEPS), Worker.commit):
        step(worker)
    worker.pool.close()
    shutil.rmtree(path)


# --- Processes that die ---


class Child:
    """A process that is forked from this one, and says what it does by a pipe."""

    def __init__(self, run):
        self.pipe, pipe = os.pipe()
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                run(lambda *message: os.write(pipe, MESSAGE.pack(*message, *(0,) * (3 - len(message)))))
                os._exit(0)
            except BaseException:  # nothing of the parent's may run here
                traceback.print_exc()
                os._exit(1)
        os.close(pipe)

    def end(self, known):
        """Wait for its end, and take note of what it said; returns whether it was killed."""
        _, status = os.waitpid(self.pid, 0)
        with open(self.pipe, "rb") as pipe:
            for message in MESSAGE.iter_unpack(pipe.read()):
                known.hear(*message)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the process found something wrong"
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, f"the process died by signal {os.WTERMSIG(status)}"
        return os.WIFSIGNALED(status)


# --- kill -9 at random instants ---


def kill(folder, n_kills, seed=1, most=1000):
    """Kill a process n times; each pool goes on after up to 40 of these; returns how often what was in flight."""
    rng, seen, known = random.Random(seed), {}, Known()
    path = f"{folder}/killed"
    for k in range(n_kills):
        if k % 40 == 0:
            shutil.rmtree(path, ignore_errors=True)
            known, sync = Known(), k % 80 < 40

        def run(say, k=k, mode=known.mode, sync=sync):
            worker = Worker(path, random.Random(seed * 1_000_003 + k), say, mode, most=most, sync=sync)
            while True:
                worker.step()

        child = Child(run)
        time.sleep(rng.uniform(0, 0.02) if rng.random() < 0.2 else rng.uniform(0.03, 0.2))
        os.kill(child.pid, signal.SIGKILL)
        child.end(known)
        was, name = (max(known.number, 0), known.capacities), "nothing" if known.flight is None else FLIGHTS[known.flight[0]]
        if known.number >= 0 and rng.random() < 0.2:
            prove_path(path, known, "r")
        known = prove_path(path, known)
        name += ", which is there" * ((known.number, known.capacities) != was)
        seen[name] = seen.get(name, 0) + 1
    shutil.rmtree(path, ignore_errors=True)
    return seen


# --- Death at every system call ---


class Deadly(calls.System):
    """
    The system, which kills this process.

    Parameters
    ----------
    at : int
        Number of the call; if `is_half`, of the call that writes.
    is_half : bool
        Whether it dies when half is written, rather than before the call.
    """

    def __init__(self, at, is_half=False):
        self.left, self.is_half = at, is_half

    def __getattr__(self, name):
        """Return a function of `os` that may be the last one called."""
        return lambda *arguments, **options: self._call(getattr(os, name), *arguments, **options)

    def _call(self, function, *arguments, **options):
        """Do what a function does, or die."""
        if not self.is_half:
            self._count()
        return function(*arguments, **options)

    def _count(self):
        """Die if this is the call."""
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def fdatasync(self, file):
        """Sync a file, or die."""
        self._call(super().fdatasync, file)

    def flock(self, file, operation):
        """Lock a file, or die."""
        self._call(super().flock, file, operation)

    def fcntl(self, file, command, argument):
        """Lock a range, or die."""
        return self._call(super().fcntl, file, command, argument)

    def punch(self, file, at, n):
        """Give space back, or die."""
        return self._write(super().punch, file, (at, n // 2), (at, n))

    def pwrite(self, file, data, at):
        """Write, or die."""
        return self._write(os.pwrite, file, (data[: len(data) // 2], at), (data, at))

    def _write(self, write, file, half, whole):
        """Write, or die before that, or when half is written."""
        if self.is_half and self.left == 0:
            write(file, *half)
        self._count()
        return write(file, *whole)


def set_up(path, say):
    """Return a worker of a pool with caches, a checkpoint, and commits in the journal behind it."""
    worker = Worker(path, random.Random(3), say)
    for _ in range(MOST_CACHES - 1):
        worker.make()
        worker.commit()
    worker.checkpoint()
    worker.commit()
    worker.commit()
    return worker


def set_up_shrunk(path, say):
    """As `set_up`; the next checkpoint punches holes."""
    worker = set_up(path, say)
    cache = worker.pool.caches["c1"]
    cache.clear()
    worker.commit()
    cache.shrink()
    return worker


def set_up_kept(path, say):
    """As `set_up`; checkpoints drop no memory."""
    worker = set_up(path, say)
    worker.pool._keep = 1 << 40
    return worker


def set_up_dropped(path, say):
    """As `set_up`; checkpoints drop all memory."""
    worker = set_up(path, say)
    worker.pool._keep = 0
    return worker


def set_up_closed(path, say):
    """As `set_up`, closed; and files of a cache that was being made."""
    worker = set_up(path, say)
    worker.close()
    for name in ("77.words", "77.records"):
        with open(f"{path}/{name}", "wb") as file:
            file.write(b"x")
    return worker


def commit_much(worker):
    """Commit as much as makes the journal grow, and then end in a checkpoint."""
    worker.most = 400
    for _ in range(3):
        worker.commit()


ACTS = {
    "make a pool": (None, lambda path, say: Worker(path, random.Random(4), say)),
    "open": (set_up_closed, lambda worker: worker.open("r+")),
    "raise": (set_up_closed, lambda worker: worker.open("r+", (1, 150_000))),
    "commit": (set_up, Worker.commit),
    "commit much": (set_up, commit_much),
    "transaction": (set_up, Worker.transact),
    "rolled back transaction": (set_up, Worker.undo),
    "rollback": (set_up, Worker.roll_back),
    "checkpoint": (set_up_kept, Worker.checkpoint),
    "checkpoint, which drops memory": (set_up_dropped, Worker.checkpoint),
    "checkpoint, which punches": (set_up_shrunk, Worker.checkpoint),
    "create_cache": (set_up, Worker.make),
    "drop_cache": (set_up, Worker.drop),
    "close": (set_up, Worker.close),
}


def run_act(path, name, deadly, say):
    """Do one of the acts, on a system that kills this process."""
    before, act = ACTS[name]
    if before is None:
        calls.system = deadly
        act(path, say)
        return
    worker = before(path, say)
    calls.system = deadly
    act(worker)


def die_at_calls(folder, name, *, every=1, again=False):
    """
    Have a process die at each system call of an act, or every so many, in the middle of each write, and at none.

    With `again` each recovery dies at every fourth of its system calls, too, one after the other on the same files.

    Returns
    -------
    n, n_again : int
        Processes that died in the act, and in a recovery.
    """
    path, n_dead, n_again = f"{folder}/dead", 0, 0
    for is_half in (False, True):
        for at in itertools.count(0, every):
            shutil.rmtree(path, ignore_errors=True)
            known = Known()
            is_dead = Child(lambda say: run_act(path, name, Deadly(at, is_half), say)).end(known)  # noqa: B023  # it runs at once
            if again and is_dead:
                n_again += die_in_recovery(path, known, at % AGAIN)
            go_on(path, prove_path(path, known))
            if not is_dead:
                break
            n_dead += 1
    shutil.rmtree(path)
    return n_dead, n_again


def die_in_recovery(path, known, first):
    """Have a process that opens a pool die at some of its system calls, from the first of these on; returns how many died."""

    def open_and_die(say):
        calls.system = Deadly(at)
        jitslab.open_pool(path, known.mode, root=ROOT)

    at = first
    while Child(open_and_die).end(Known()):
        at += AGAIN
    return (at - first) // AGAIN


def go_on(path, known):
    """Commit to a pool after its recovery, and open it again."""
    worker = Worker(path, random.Random(5), known.hear, "r+")
    worker.make()
    worker.commit()
    worker.pool.close(commit=False)
    prove_path(path, known)


# --- Power cuts on paper ---


class WrongImageError(Exception):
    """An image that is not what it should be; its message says how to make it again."""


def power(folder, n_images, seed=1, *, leaves_out=()):
    """
    Cut the power of sessions at random places, and of each recovery, until there were so many images.

    Parameters
    ----------
    folder : str
        In which pools are made, best in memory.
    n_images : int
        How many images, those after second cuts among them.
    seed : int
        Of the first session; each next one has the next.
    leaves_out : collection of str
        Kinds of syncs that the disk lies about, as of `Recorder`.

    Returns
    -------
    dict of str to int
        How many images there were of each kind: what was in flight, and whether it is there.

    Raises
    ------
    WrongImageError
        If an image is in no state that is possible.
    """
    path, seen = f"{folder}/cut", {}
    while sum(seen.values()) < n_images:
        rng = random.Random(seed)
        log = recorded(path, None, functools.partial(live, path, rng), leaves_out)
        for files, known in images_of(log, None, Known(), rng, 50):
            if sum(seen.values()) >= n_images:
                break
            try:
                cut_again(path, files, known, rng, seen, leaves_out)
            except Exception as error:
                place = f"seed {seed}, image {sum(seen.values())}, in flight {known.flight}"
                raise WrongImageError(f"{place}: {type(error).__name__}: {error}") from error
        seed += 1
    shutil.rmtree(path, ignore_errors=True)
    return seen


def live(path, rng, recorder):
    """Work on a new pool for one to four lives of a process, all but the last of which are cut short at some system call."""
    known, most = Known(), rng.choice((30, 100, 1000))

    def say(*message):
        known.hear(*message)
        recorder.note("say", *message)

    def say_nothing(*message):
        """Until it is known what the life before left."""

    n_lives = rng.randint(1, 4)
    for life in range(n_lives):
        is_last, worker = life == n_lives - 1, None
        recorder.left = NEVER if is_last else rng.randint(0, 100)
        try:
            worker = Worker(path, rng, say_nothing if life else say, known.mode, most=most)
            if life:
                known = prove(worker.pool, known)
                recorder.note("found", known.number, known.capacities)
                worker.say = say
            for _ in range(rng.randint(0, 25)):
                worker.step()
        except Killed:
            pass
        if worker is not None:
            worker.pool.close(commit=False)


def cut_again(path, files, known, rng, seen, leaves_out):
    """Recover from a cut, work on, and open the pool again; then the same after a cut of that."""
    start, log = recover(path, files, known, rng, seen, "", leaves_out)
    for again, known_then in images_of(log, files, start, rng, 1):
        recover(path, again, known_then, rng, seen, "second: ", leaves_out)


def recover(path, files, known, rng, seen, order, leaves_out):
    """
    Assert that an image opens in a possible state, work on, and assert that it opens again; counts it among those seen.

    Returns
    -------
    start, log
        What is known of the image now, and the log of what was done.
    """
    found = []

    def work(recorder):
        if known.number >= 0 and rng.random() < 0.2:
            prove_path(path, known, "r")
        worker = Worker(path, rng, lambda *message: recorder.note("say", *message), known.mode, most=30)
        found.append(prove(worker.pool, known))
        for _ in range(rng.randint(0, 2)):
            worker.step()
        worker.commit()
        worker.pool.close(commit=False)

    log = recorded(path, files, work, leaves_out)
    (now,) = found
    is_there = (now.number, now.capacities) != (max(known.number, 0), known.capacities)
    kind = order + ("nothing" if known.flight is None else FLIGHTS[known.flight[0]] + ", which is there" * is_there)
    seen[kind] = seen.get(kind, 0) + 1
    end = Known(now.number, now.capacities)
    for event in log:
        if event[0] == "say":
            end.hear(*event[1:])
    prove_path(path, end)
    return (now if known.number >= 0 else Known()), log


def recorded(path, files, work, leaves_out):
    """Put files into a folder, and return the log of some work on it."""
    shutil.rmtree(path, ignore_errors=True)
    if files is not None:
        os.mkdir(path)
        for name, file in files.items():
            file.write_to(f"{path}/{name}")
    system, recorder = calls.system, Recorder(path, files, leaves_out)
    calls.system = recorder
    try:
        work(recorder)
    finally:
        calls.system = system
    return recorder.log


def images_of(log, files, known, rng, n):
    """Yield what n cuts of a log leave, each with what was known then; `files` and `known` are as of its start."""
    medium, known = Medium(files), Known(known.number, known.capacities)
    cuts = sorted(rng.randint(0, len(log)) for _ in range(n))
    for at, event in enumerate([*log, None]):
        while cuts and cuts[0] == at:
            del cuts[0]
            yield medium.image(rng), copy.deepcopy(known)
        if event and event[0] == "say":
            known.hear(*event[1:])
        elif event and event[0] == "found":
            known.find(*event[1:])
        elif event:
            medium.follow(event)


# --- Programs ---


def main():
    """Run one of the programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=("kill", "calls", "power"))
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", default="/dev/shm" if os.path.isdir("/dev/shm") else None, help="in which pools are made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pool_crash_", dir=options.folder) as folder, small_sizes():
        warm_up(folder)
        start = time.monotonic()
        if options.program == "kill":
            tell(kill(folder, options.kills, options.seed))
        elif options.program == "power":
            tell(power(folder, options.images, options.seed))
        else:
            seen = {name: die_at_calls(folder, name, again=True) for name in ACTS}
            tell({name: n for name, (n, _) in seen.items()})
            sys.stdout.write(f"{sum(n for _, n in seen.values()):>10}  in recoveries after these\n")
        sys.stdout.write(f"nothing wrong, {time.monotonic() - start:.0f} s\n")


def tell(seen):
    """Write how often what was seen."""
    for name, n in sorted(seen.items()):
        sys.stdout.write(f"{n:>10}  {name}\n")
    sys.stdout.write(f"{sum(seen.values()):>10}  in all\n")


if __name__ == "__main__":
    main()
