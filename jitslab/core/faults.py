"""
Faults: refused handles that compiled code used, counted in the first node's CONTROL row until the next report.

`heap` notes them, and `_faults` makes the report.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..machine.compile import ObjectEntry, kernel
from ..machine.cpython import none, python_caller
from ..machine.pointers import fetch_add, fetch_and, i8s
from .layout import AFTER_CLOSE, Control, control_at


class Faults(NamedTuple):
    """Those since the last report."""

    n: int
    first: int  # handle of the first one
    kind: int  # STALE, EXHAUSTED, DOUBLE_FREE or AFTER_CLOSE
    line: int  # of the Python function that called its kernel
    code: Any  # of that function, None: not known


@kernel
def note_fault(control: Control, handle: int, kind: int) -> None:
    """Count a fault; of the first one since the last report the handle is remembered, and which Python called the kernel."""
    first = control.first_node
    if fetch_add(first, "faults", 1) == 0:
        first.fault_first = handle
        first.fault_kind = kind if first.closed == 0 else AFTER_CLOSE
        code, line = python_caller()
        if code != 0:
            first.fault_code, first.fault_line = code, line


@ObjectEntry
def take_faults(c: int, out: int) -> int:
    """
    Write the first four of `Faults` to the int64s at `out`, and start a new report.

    Returns the code object, or None if it is not known.
    """
    control, words = control_at(c), i8s(out)
    words[0] = fetch_and(control, "faults", 0)
    words[1], words[2], words[3] = control.fault_first, control.fault_kind, control.fault_line
    code = control.fault_code
    control.fault_code = 0
    return code if code != 0 else none()


def take(address: int) -> Faults | None:
    """Return the faults since the last report of the cache with the CONTROL row at an address, and start a new one."""
    words = np.empty(4, np.int64)
    code = take_faults(address, words.ctypes.data)
    n, first, kind, line = words.tolist()
    return Faults(n, first, kind, line, code) if n else None
