"""
Cycles and instructions of a turn of the pair and churn loops.

Counted by the machine where it has counters (perf_event_open); these repeat to 1 % where times drift by 10.  Elsewhere the
instructions of a turn are counted in the machine code, and llvm-mca, where it is installed, says what a turn costs on this
CPU with everything in the first cache.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from typing import Any

import numba
from rich.console import Console
from rich.table import Table

import bench_alloc
from measure import FULL, Case

SYSCALL = {"x86_64": 298, "aarch64": 241}  # number of perf_event_open
EVENTS = {"cycles": 0, "instructions": 1, "branch misses": 5}
ENABLE, DISABLE, RESET = 0x2400, 0x2401, 0x2403
NO_KERNEL = 1 << 5 | 1 << 6  # exclude_kernel, exclude_hv
TURNS = 1_000  # that llvm-mca simulates


# --- Counted by the machine ---


def open_counters() -> list[int]:
    """Return file descriptors of one group of counters; raises OSError where the machine has none."""
    libc, group = ctypes.CDLL(None, use_errno=True), []
    if platform.machine() not in SYSCALL:
        raise OSError("perf_event_open has no number here")
    for event in EVENTS.values():
        attributes = bytearray(128)
        first = not group
        struct.pack_into("IIQQQQQ", attributes, 0, 0, 128, event, 0, 0, 0, int(first) | NO_KERNEL)
        view = (ctypes.c_char * 128).from_buffer(attributes)
        fd = libc.syscall(SYSCALL[platform.machine()], view, 0, -1, -1 if first else group[0], 0)
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        group.append(fd)
    return group


def counted(group: list[int], case: Case) -> list[float]:
    """Return the events of a turn: the round with the fewest cycles."""
    case.once()
    best: list[float] = []
    for _ in range(9):
        for fd in group:
            fcntl.ioctl(fd, RESET, 0)
        fcntl.ioctl(group[0], ENABLE, 1)
        case.run()
        fcntl.ioctl(group[0], DISABLE, 1)
        found = [struct.unpack("Q", os.read(fd, 8))[0] / case.ops for fd in group]
        best = min(best, found) if best else found
    return best


# --- Counted in the machine code ---


def hot_loop(kernel: Any, signature: Any) -> list[str]:
    """Return the instructions of the longest loop of a kernel; the slow paths lie outside of it."""
    text = kernel.inspect_asm(signature)
    body = text[text.index("\n_ZN") :].split("\n.Lfunc_end", 1)[0].splitlines()
    place = {line.split(":")[0]: i for i, line in enumerate(body) if re.match(r"\.\w+:", line)}
    longest: list[str] = []
    for i, line in enumerate(body):
        jump = re.match(r"\s+j(?!mp)\w+\s+(\.\w+)", line)
        if jump and place.get(jump[1], i) < i - len(longest):
            longest = body[place[jump[1]] : i + 1]
    lines = [line.split("#")[0].strip() for line in longest]
    return [line for line in lines if line and not line.startswith(".")]


def simulated(instructions: list[str]) -> str:
    """Return cycles of a turn, as llvm-mca sees this CPU; jumps are taken for predicted."""
    tool = shutil.which("llvm-mca")
    if tool is None:
        return "llvm-mca is not installed: apt install llvm"
    straight = "\n".join(x for x in instructions if not re.match(r"j|call", x))
    command = [tool, "-mcpu=native", f"-iterations={TURNS}"]
    done = subprocess.run(command, input=straight, capture_output=True, text=True)
    cycles = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    return f"{int(cycles[1]) / TURNS:.2f}" if cycles else "not understood"


def main() -> None:
    """Show a table."""
    sizes, table = FULL, Table(title="a turn of the loop")
    rows = {"pair": bench_alloc.table(sizes)["pair"], "churn": bench_alloc.table(sizes)["churn 1,000"]}
    try:
        group = open_counters()
    except OSError as why:
        group = []
        sys.stdout.write(f"this machine has no counters of cycles ({why}): instructions are counted in the machine code\n")
    columns = ("loop", "contender", *(EVENTS if group else ("instructions", "cycles by llvm-mca")))
    for column in columns:
        table.add_column(column)
    for operation in rows:
        for name, (_, pair, _, churn) in bench_alloc.WAYS.items():
            kernel = {"pair": pair, "churn": churn}[operation]
            case = rows[operation].contenders[name](sizes)
            if group:
                table.add_row(operation, name, *(f"{value:.2f}" for value in counted(group, case)))
            else:
                case.run()
                again = numba.njit(nogil=True, _nrt=False)(kernel.py_func)
                again.compile(kernel.signatures[0])
                body = hot_loop(again, kernel.signatures[0])
                table.add_row(operation, name, str(len(body)), simulated(body))
            case.close()
    Console().print(table)


if __name__ == "__main__":
    main()
