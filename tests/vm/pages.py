"""
What the kernel knows about pages and nodes: asked by system calls, without the library under test.

Addresses and lengths are in bytes.  The node of a page is its number, or a negative errno: -2 (ENOENT) if the page was never
touched, -14 (EFAULT) if it is the shared page of zeros.
"""

import contextlib
import ctypes
import mmap
import os
import platform
import re
from pathlib import Path

import numpy as np

PAGE = mmap.PAGESIZE
HUGE = 2 << 20
NODES = Path("/sys/devices/system/node")

# Numbers of the system calls.
_X86 = {"mbind": 237, "get_mempolicy": 239, "move_pages": 279}
_ARM = {"mbind": 235, "get_mempolicy": 236, "move_pages": 239}
CALLS = _X86 if platform.machine() == "x86_64" else _ARM
DEFAULT, PREFERRED, BIND, INTERLEAVE = range(4)  # MPOL_*
F_NODE, F_ADDR = 1, 2  # MPOL_F_*
MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_POPULATE_WRITE = 14, 15, 23

_libc = ctypes.CDLL(None, use_errno=True)


def call(name, *args):
    """Make a system call of integers and pointers; raise OSError with the call's name when it fails."""
    result = _libc.syscall(CALLS[name], *(ctypes.c_long(a) if isinstance(a, int) else a for a in args))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


# --- Where pages lie ---


def nodes_of_pages(addresses):
    """Return the node of the page at each address (array of int32); moves nothing."""
    addresses = np.ascontiguousarray(addresses, np.uint64) & np.uint64(~(PAGE - 1) & (2**64 - 1))
    nodes = np.full(len(addresses), -1, np.int32)
    call("move_pages", 0, len(addresses), addresses.ctypes.data, 0, nodes.ctypes.data, 0)
    return nodes


def nodes_of_range(address, n):
    """Return the node of each page that the n bytes from `address` touch."""
    return nodes_of_pages(np.arange(address // PAGE * PAGE, address + n, PAGE, dtype=np.uint64))


def node_of(address):
    """Return the node of the page at `address`, by get_mempolicy: touches the page if it never was."""
    node = ctypes.c_int(-1)
    call("get_mempolicy", ctypes.byref(node), 0, 0, address, F_NODE | F_ADDR)
    return node.value


# --- Where pages shall lie ---


class Mapping:
    """Private memory of n bytes, in small pages unless `huge`, with a policy of its own; nothing is touched yet."""

    def __init__(self, n, mode=DEFAULT, nodes=(), *, huge=False):
        self.n = n
        self._map = mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._pin = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._pin)
        self._map.madvise(MADV_HUGEPAGE if huge else MADV_NOHUGEPAGE)
        mask = ctypes.c_ulong(sum(1 << node for node in nodes))
        if mode != DEFAULT:
            call("mbind", self.address, n, mode, ctypes.byref(mask), 8 * ctypes.sizeof(mask), 0)

    def touch(self):
        """Have the kernel give every page; return their nodes."""
        self._map.madvise(MADV_POPULATE_WRITE)
        return nodes_of_range(self.address, self.n)

    def close(self):
        """Give it back."""
        del self._pin
        self._map.close()


# --- Nodes ---


def cpus_of(node):
    """Return the set of CPUs of a node; empty if it has memory only."""
    text = (NODES / f"node{node}/cpulist").read_text().strip()
    ends = [[int(end) for end in part.split("-")] for part in text.split(",") if part]
    return {cpu for first, *last in ends for cpu in range(first, (last or [first])[0] + 1)}


def free_memory(node):
    """Return the free bytes of a node."""
    text = (NODES / f"node{node}/meminfo").read_text()
    return int(re.search(r"MemFree:\s+(\d+) kB", text)[1]) << 10


@contextlib.contextmanager
def on_node(node):
    """Run the calling thread on the CPUs of a node, for the length of a `with`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus_of(node))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def full(node):
    """
    Hold all memory of a node that can be had without killing the process, for the length of a `with`.

    Takes until pages spill over, in large steps and then in small ones.  The kernel may free some of its own memory there
    afterwards: allow for a few pages that still find room.
    """
    held = []
    try:
        for step, huge in ((16 * HUGE, True), (HUGE, True), (HUGE // 2, False)):
            while True:
                held.append(Mapping(step, PREFERRED, [node], huge=huge))
                if (held[-1].touch() != node).any():
                    held.pop().close()
                    break
        yield
    finally:
        for mapping in held:
            mapping.close()
