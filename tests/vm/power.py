#!/usr/bin/env python3
"""
Pools on an NVDIMM whose machine loses power, for real: what is there when it starts again is proven.

    python tests/vm/power.py                 10 cuts on a DAX file system, 10 on one that keeps pages in memory
    python tests/vm/power.py --cuts 100      as many on each

The machine of run.py works on a pool (`Worker` of pool_crash.py), and says before and after each commit what it does, in a file
of this machine that it syncs.  At a random instant its power goes: the kernel resets the machine, without a sync, or qemu is
killed.  The machine starts again on the same NVDIMM, whose file system recovers itself.  The pool must be as the last commit that
was reported left it, or as the one in flight would have; `Pool.check` passes; and the work goes on, until the next cut.

Uses the standard library only; what runs inside needs the package.
"""

import argparse
import collections
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import run

HERE = Path(__file__).resolve().parent
PLACES = {"DAX": "always", "not DAX": "never"}  # and how the file system is mounted
POOL = "/mnt/pmem/pool"
WINDOW = 6.0  # seconds, from before the pool is opened, in which the power goes
KILLED = 0.4  # part of the cuts that kill qemu; the others reset the machine
READY = "ready"
TRIES = 3  # of a machine that does not come up


# --- Outside ---


class Place:
    """A file system, its NVDIMM, and the cuts there."""

    def __init__(self, name, work, options):
        self.name, self.options, self.rng = name, options, random.Random(f"{options.seed} {name}")
        self.work = Path(work) / PLACES[name]
        self.work.mkdir()
        self.pid, self.seen, self.failure = self.work / "pid", collections.Counter(), ""

    def work_on(self):
        """Cut the power again and again, and look once more at the end."""
        try:
            for cut in range(self.options.cuts):
                how = "kill" if self.rng.random() < KILLED else "reset"
                self.boot(cut, how, self.rng.uniform(0, WINDOW))
            self.boot(self.options.cuts, "end", 0)
        except Exception as error:
            self.failure = f"{self.name}: {error!r}"
            say(self.failure)

    def boot(self, cut, how, delay):
        """Have the machine open the pool, prove it, and work until its power goes."""
        inside = [sys.executable, str(HERE / "power.py"), "--inside", f"{self.options.seed} {self.name} {cut}", how, str(delay)]
        command = [sys.executable, str(HERE / "run.py"), "--pmem", str(self.work / "pmem"), "--pmem-mb", "256"]
        command += ["--dax", PLACES[self.name], "--pidfile", str(self.pid), "--timeout", "600", *inside]
        for _ in range(TRIES):
            machine = subprocess.Popen(command, cwd=self.work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            lines, started = [], time.monotonic()
            with machine:
                for line in machine.stdout:
                    lines.append(line.rstrip())
                    if line.strip() == READY and how == "kill":
                        time.sleep(delay)
                        os.kill(int(self.pid.read_text()), 9)
                errors = machine.stderr.read()
            if lines:
                break
        found = [line for line in lines if line != READY]
        say(f"{self.name}, start {cut}, {how}, {time.monotonic() - started:.0f} s: {'; '.join(found)}")
        expected = 0 if how == "end" else run.NO_MACHINE
        if machine.returncode != expected or READY not in lines:
            raise RuntimeError(f"status {machine.returncode} instead of {expected}\n" + "\n".join(lines) + errors)
        if how != "end":
            self.seen[how] += 1
        for line in found:
            if line.startswith("cut while "):
                self.seen[line] += 1


def outside(options):
    """Cut the power on all places at once; returns the status to exit with."""
    run.need_tools()
    machine = run.arguments([])
    run.base_image(machine)
    run.compile_for_both(machine, "power.py", "--warm")
    with tempfile.TemporaryDirectory(prefix="power-", dir=options.folder) as work:
        places = [Place(name, work, options) for name in PLACES]
        threads = [threading.Thread(target=place.work_on) for place in places]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for place in places:
        kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(place.seen.items()))
        say(f"{place.name}: {kinds}{'; FAILED' if place.failure else '; all proven'}")
    return int(any(place.failure for place in places))


def say(text):
    """Tell the user."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def warm():
    """Compile what is called inside."""
    sys.path.insert(0, str(HERE.parent))
    import pool_crash

    os.environ["JITSLAB_PMEM"] = "force"
    with pool_crash.small_sizes(), tempfile.TemporaryDirectory() as folder:
        pool_crash.warm_up(folder)


# --- Inside ---


class Log:
    """What the workload says, in a file of the machine outside: each line is there when `hear` returns."""

    def __init__(self, path):
        self.file = os.open(path, os.O_RDWR | os.O_CREAT)  # not to append: the system outside would, what is written twice, too
        self.end = 0

    def read(self, known):
        """Return what is known of a pool."""
        with open(self.file, "rb", closefd=False) as file:
            for line in file:
                if not line.endswith(b"\n"):  # its writer did not return from `hear`
                    break
                message = json.loads(line)
                if message[0] == "found":
                    known.find(message[1], {int(serial): capacity for serial, capacity in message[2].items()})
                else:
                    known.hear(*message)
                self.end += len(line)
        os.ftruncate(self.file, self.end)
        return known

    def hear(self, *message):
        """Write a message."""
        line = (json.dumps(message) + "\n").encode()
        os.pwrite(self.file, line, self.end)
        os.fsync(self.file)
        self.end += len(line)


def cut_after(delay):
    """Have this machine reset itself after some seconds."""
    if os.fork() == 0:
        with open("/proc/sysrq-trigger", "wb", buffering=0) as trigger:
            time.sleep(delay)
            trigger.write(b"b")
        os._exit(1)


def inside(seed, how, delay):
    """Prove what is there, and work until the power goes."""
    sys.path.insert(0, str(HERE.parent))
    import pool_crash  # it needs the package, which is slow to import inside

    log, rng = Log("said"), random.Random(seed)
    known = log.read(pool_crash.Known())
    if known.number >= 0 or known.flight:
        what = "between operations" if known.flight is None else f"in {pool_crash.FLIGHTS[known.flight[0]]}"
        say(f"cut while {what}")
        say(f"commit {max(known.number, 0)} was reported")
    with pool_crash.small_sizes():
        pool_crash.warm_up("/dev/shm")
        say(READY)
        if how == "reset":
            cut_after(delay)
        if how != "end" and known.number < 0 and known.flight is None:
            log.hear(pool_crash.OPEN)
            known.hear(pool_crash.OPEN)
        known = pool_crash.prove_path(POOL, known)
        log.hear("found", known.number, known.capacities)
        say(f"commit {known.number} is proven, {len(known.capacities)} caches")
        if how == "end":
            return
        worker = pool_crash.Worker(POOL, rng, log.hear, "r+", most=300)
        say(f"dirty {worker.pool.stats()['dirty']}, journal {worker.pool.stats()['journal']}")
        while True:
            worker.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--cuts", type=int, default=10, help="on each of the two file systems [10]")
    parser.add_argument("--seed", type=int, default=1, help="of the work and the instants [1]")
    parser.add_argument("--folder", help="for the NVDIMMs' files, 512 MiB")
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.warm:
        warm()
    elif given.inside:
        inside(given.inside[0], given.inside[1], float(given.inside[2]))
    else:
        sys.exit(outside(given))
