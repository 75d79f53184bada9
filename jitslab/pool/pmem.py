"""
The journal on persistent memory: the file is mapped, and a commit is stored into the mapping, without a system call.

That needs a file system that promises that a store lasts once its line is flushed (MAP_SYNC: DAX), and an instruction to flush
lines.  Data, table and head go out in any order, with one fence at the end: the hash tells whether all are there.

The variable JITSLAB_PMEM decides, too: "off" never maps; "force" maps on any file system, to measure what persistent memory would
give: there a commit outlives the process, not the machine.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from ..machine.addresses import map_shared, mapped_page_bytes
from ..machine.compile import Entry, kernel
from ..machine.flush import CAN_FLUSH, flush_line, store_fence
from ..machine.pointers import address_in, i8s
from . import calls
from .frames import LINE, RUN_WORDS, begin_frame, data_at, data_bytes, end_frame, lines_of, pass_frame, writer_at
from .hashes import copy_piece

VARIABLE = "JITSLAB_PMEM"
POPULATE_WRITE = 23  # MADV_POPULATE_WRITE
BAD_RUNS, NO_ROOM = -1, 0


@kernel
def flush_lines(address: int, n: int) -> None:
    """Flush n bytes, whole lines, from the CPU's caches."""
    for at in range(address, address + n, LINE):
        flush_line(at)


@Entry
def append_mapped(row: int, runs: int, n: int) -> int:
    """
    Append a commit of n runs to the mapped journal, and write into each run its place there; it lasts when this returns.

    Returns its number; NO_ROOM: the file is too short; BAD_RUNS: none, or one that is no multiple of a block.
    """
    writer, words = writer_at(row), i8s(runs)
    total = data_bytes(runs, n)
    if total <= 0:
        return BAD_RUNS
    start = data_at(n)
    if writer.at + start + total > writer.capacity:
        return NO_ROOM
    to = writer.map + writer.at
    begin_frame(writer, to, runs, n, total)
    place = to + start
    for k in range(n):
        size = words[RUN_WORDS * k + 4]
        copy_piece(address_in(writer, "state"), place, words[RUN_WORDS * k + 3], size)
        words[RUN_WORDS * k + 3] = place - writer.map
        flush_lines(place, size)
        place += size
    end_frame(writer, to)
    flush_lines(to, lines_of(n))
    store_fence()
    return pass_frame(writer, start + total, writer.hash, n)


def map_journal(file: int, n: int, first: int) -> tuple[int, Any] | None:
    """
    Map the first n bytes of a journal, which it has; the pages from byte `first` on are there at once, to be written to.

    Returns
    -------
    tuple or None
        The address, and an object whose `close` ends the mapping.  None: commits must be written and synced by system calls.
    """
    wish = os.environ.get(VARIABLE, "")
    try:  # a store into a hole could find the disk full, and end the process
        if not CAN_FLUSH or wish == "off" or calls.has_holes(file, n):
            return None
        address, memory = map_shared(file, n, is_synced=wish != "force")
    except OSError:
        return None
    try:
        memory.madvise(POPULATE_WRITE, first & -mapped_page_bytes, n - (first & -mapped_page_bytes))
    except OSError as error:
        if error.errno != errno.EINVAL:  # which Linux before 5.14 says
            memory.close()
            return None
    return address, memory
