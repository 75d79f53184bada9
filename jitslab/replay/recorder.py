"""
Recording the kernel's own slab caches with perf, as a trace.

``perf record`` writes every alloc and free of the tracepoints of `kmem_cache_alloc` and
`kmem_cache_free` on all CPUs while a command runs; ``perf script`` prints them in the order of time, and `parse` reads it line by
line.  Needs Linux 6.1 or later, perf, and the right to trace: root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..errors import TraceError
from .trace import ALLOC, CACHE, EVENT, FREE, MAX_CACHES, MAX_EVENTS, Trace

TRACEPOINTS = "kmem:kmem_cache_alloc,kmem:kmem_cache_free"
BUFFER = "8M"  # a CPU: with perf's own half a megabyte a busy machine loses events
LINE = re.compile(
    r"\[(\d+)\]\s+kmem:kmem_cache_(alloc|free):.* ptr=0x0*([1-9a-f][0-9a-f]*) name=(.+?)(?: bytes_req=(\d+) .*)?\s*$"
)
LOST = re.compile(r"PERF_RECORD_LOST\D*(\d+)")


def record(command: Sequence[str], directory: Path) -> tuple[Trace, int]:
    """
    Run a command and record the events of the kernel's slab caches meanwhile, on all CPUs.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments; its output is shown.
    directory : Path
        Folder for perf's data until it is read: some 150 bytes an event.

    Returns
    -------
    Trace
    int
        Events that perf lost.

    Raises
    ------
    TraceError
        If there is no perf, no such command or directory, or perf may not trace.
    """
    if shutil.which("perf") is None:
        raise TraceError("there is no perf here; it comes with the package linux-perf or linux-tools")
    if shutil.which(command[0]) is None:
        raise TraceError(f"there is no command {command[0]!r}")
    if not directory.is_dir():
        raise TraceError(f"there is no directory {str(directory)!r}")
    start = ["perf", "record", "-q", "-a", "-m", BUFFER, "-e", TRACEPOINTS, "-o"]
    trial = subprocess.run([*start, os.devnull, "--", "true"], capture_output=True, text=True)
    if trial.returncode != 0:
        raise TraceError(f"perf cannot record the kernel's slab caches: {reason(trial.stderr)}")
    with tempfile.TemporaryDirectory(dir=directory) as place:
        data = os.path.join(place, "perf.data")
        subprocess.run([*start, data, "--", *command])  # its status is the command's
        return read(data)


def reason(text: str) -> str:
    """Return the line of perf's message that has the reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("Error:").strip() for line in lines if line.startswith("Error:")]
    return (errors or lines or ["it says nothing"])[0]


def read(data: str) -> tuple[Trace, int]:
    """Return the trace in a file of perf's, and how many events were lost."""
    if not os.path.exists(data):
        raise TraceError("perf recorded nothing")
    script = ["perf", "script", "-i", data, "-F", "trace:cpu,event,trace", "--show-lost-events"]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(script, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace") as perf,
    ):
        assert perf.stdout is not None
        made = parse(perf.stdout)
        if perf.wait() != 0:
            errors.seek(0)
            raise TraceError(f"perf cannot read what it recorded: {reason(errors.read())}")
    return made


def parse(lines: Iterable[str]) -> tuple[Trace, int]:
    """
    Read the lines of ``perf script``.

    Frees of objects from before the recording are left out.  Where a free was missed (lost, or one of a whole batch, which
    has no tracepoint) and the address is handed out again, the object before is freed there.

    Parameters
    ----------
    lines : iterable of str
        With CPU, event and the text of the tracepoint; others are passed over.

    Returns
    -------
    Trace
    int
        Events lost.
    """
    columns = {field: array(code) for field, code in zip(EVENT.names or (), "BBHII", strict=True)}
    rows: dict[tuple[str, int], int] = {}
    live: dict[str, tuple[int, int]] = {}  # address: object, row of its cache
    n_objects = lost = 0
    for line in lines:
        if (found := LINE.search(line)) is None:
            lost += int(gone.group(1)) if (gone := LOST.search(line)) else 0
            continue
        cpu, kind, address, name, asked = found.groups()
        if kind == "alloc" and asked is None:
            continue
        if (before := live.pop(address, None)) is not None:
            append(columns, op=FREE, thread=int(cpu) & 0xFF, cache=before[1], size=0, obj=before[0])
        if kind == "alloc":
            row = rows.setdefault((name[:32], int(asked)), len(rows))
            if row >= MAX_CACHES or len(columns["op"]) >= MAX_EVENTS - 1:
                raise TraceError(f"more than {MAX_CACHES} caches or {MAX_EVENTS} events: record a shorter time")
            append(columns, op=ALLOC, thread=int(cpu) & 0xFF, cache=row, size=int(asked), obj=n_objects)
            live[address] = n_objects, row
            n_objects += 1
    if not n_objects:
        raise TraceError("no event with the name of a cache was recorded; Linux 6.1 and later write it")
    events = np.zeros(len(columns["op"]), EVENT)
    for field, column in columns.items():
        events[field] = column
    return Trace(np.array(list(rows), CACHE), events), lost


def append(columns: dict[str, array[int]], **values: int) -> None:
    """Append one event."""
    for field, value in values.items():
        columns[field].append(value)
