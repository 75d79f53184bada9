"""
The peak memory of a replay of a trace of malloc, each side in a process of its own.

As a program, this module runs the events once, writes every byte of every object, and prints by how many bytes the process's
memory grew at most.  Memory that the process had before the first event, such as its arrays and compiled code, does not count.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..errors import TraceError
from ..machine.addresses import LINUX, has_symbol
from .replay import MallocReplay
from .trace import Trace, cut, load, save

WARM_EVENTS = 1000


def peak_bytes(trace: Trace, side: str, environment: Mapping[str, str] | None = None, classes: int = 0) -> int:
    """
    Return the most bytes of memory that the events of a trace of malloc take, measured in a new process.

    Parameters
    ----------
    trace : Trace
        Of malloc.
    side : str
        "jitslab" or "malloc".
    environment : mapping, optional
        Of the new process: LD_PRELOAD puts another allocator in the place of malloc.
    classes : int, default 0
        Most classes of a table tuned to the trace; 0: the fixed table.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.npz"
        save(path, trace)
        command = [sys.executable, "-m", "jitslab.replay.peak", side, str(path), str(classes)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise TraceError(f"the peak of {side} was not measured: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


def memory_now(field: str) -> int:
    """Bytes of memory of this process: VmRSS now, or VmHWM at most since `start_peak`."""
    if LINUX:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def start_peak() -> None:
    """Have malloc give its free memory back, and forget the peak so far, if the system can."""
    if has_symbol("malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    if LINUX:
        Path("/proc/self/clear_refs").write_text("5")


def main(side: str, path: str, classes: str) -> int:
    """Measure one side."""
    trace = load(path)
    with MallocReplay(cut(trace, WARM_EVENTS), fill=True) as warm:
        (warm.slabs if side == "jitslab" else warm.malloc)()
    with MallocReplay(trace, fill=True) as run:
        assert isinstance(run, MallocReplay)
        if int(classes):
            run.allocator.tune(run._sizes, int(classes))
        run.touch()
        start_peak()
        before = memory_now("VmRSS")
        bad = run.events_of(side)
        peak = memory_now("VmHWM")
    return peak - before if bad == 0 else -1


if __name__ == "__main__":
    sys.stdout.write(f"{main(*sys.argv[1:])}\n")
