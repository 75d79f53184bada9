"""
The journal's frames: what stands where, and the kernels that make and check them.

A *frame* is one commit.  It begins at the border of a block, behind the block of the heads or behind the frame before:
FRAME_HEAD, then a table of its entries, then, from the border of a block, the data of all entries.  An *entry* is a run of
neighbouring blocks of one file of one cache.  The hash of a frame is XXH64 with seed 0 of the head, in which the hash is 0, of
the table up to the border of a line, padded by zeros, and of the data.  What pads the table to the border of a block is not
hashed, and not written to a mapped journal.

Frames are numbered, and each names the hash of the one before, the first that of the journal's head.  So a frame of an earlier
life of the journal, or one that a lost frame was before, never follows another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..machine.compile import Entry, inlined, kernel
from ..machine.memory import copy_bytes, zero_bytes
from ..machine.pointers import StructPointer, address_in, i8s, make_cast
from .hashes import STATE_WORDS, begin_hash, copy_piece, end_hash, hash_piece

BLOCK = 4096  # bytes of a block, on every machine
LINE = 64
MOST_BYTES = 1 << 43  # of a journal
FRAME_MAGIC = int.from_bytes(b"jitslabf", "little")
AFTER_SYNCED = 1  # flag of a frame: the frame before was on the medium when this one was written
RUN_WORDS = 5  # int64 of a run: cache id, file, offset, address in memory (once it is in the journal: place there), bytes
RUN_BYTES = 8 * RUN_WORDS
WORDS_FILE, RECORDS_FILE = 0, 1  # `file` of an entry

FRAME_HEAD = np.dtype(
    [
        ("magic", "<i8"),  # FRAME_MAGIC
        ("salt", "<i8"),  # of the journal's head
        ("number", "<i8"),  # of the commit
        ("previous", "<i8"),  # hash of the frame before, or of the journal's head
        ("n_bytes", "<i8"),  # of data
        ("hash", "<i8"),  # of the frame
        ("n_entries", "<u4"),
        ("flags", "<u4"),  # AFTER_SYNCED or 0
        ("zeros", "<i8"),
    ]
)
ENTRY = np.dtype(
    [
        ("cache", "<u4"),  # id of the cache
        ("file", "<u4"),  # WORDS_FILE or RECORDS_FILE
        ("offset", "<u8"),  # in the file
        ("n_bytes", "<u8"),
    ]
)
WRITER = np.dtype(
    [
        ("salt", "i8"),
        ("number", "i8"),  # of the last frame
        ("previous", "i8"),  # its hash
        ("flags", "i8"),  # of the next frame
        ("at", "i8"),  # where the next frame starts in the file
        ("map", "i8"),  # address of the mapped file, 0: it is not mapped
        ("capacity", "i8"),  # bytes of the file that may be written to without making it longer
        ("n_runs", "i8"),  # of all frames
        ("seen", "i8"),  # where in the file `previous` stands
        ("run", "i8"),  # of the frame that is being made: how many runs are copied
        ("done", "i8"),  # bytes copied of the next run
        ("state", "i8", (STATE_WORDS,)),  # of its hash
        ("hash", "i8"),  # of the frame that was made last
    ]
)
HASH_AT = FRAME_HEAD.fields["hash"][1]  # type: ignore[index]  # it has this field
frame_at = make_cast(StructPointer("FrameHead", FRAME_HEAD))
WriterPointer = StructPointer("JournalWriter", WRITER)
writer_at = make_cast(WriterPointer)
Writer = Any  # a pointer to a WRITER row

assert FRAME_HEAD.itemsize == LINE
assert ENTRY.itemsize == 24


# --- Sizes ---


def round_up(n: int, to: int) -> int:
    """Return the least multiple of a power of two that is not below `n`."""
    return n + to - 1 & -to


def head_bytes(n_entries: int) -> int:
    """Return the bytes from a frame's start to its data."""
    return round_up(LINE + ENTRY.itemsize * n_entries, BLOCK)


@inlined
def lines_of(n_entries: int) -> int:
    """Return the bytes of a frame's head and table, up to the border of a line."""
    return (LINE + 24 * n_entries + LINE - 1) & -LINE


@inlined
def data_at(n_entries: int) -> int:
    """Return the bytes from a frame's start to its data."""
    return (LINE + 24 * n_entries + BLOCK - 1) & -BLOCK


@kernel
def data_bytes(runs: int, n: int) -> int:
    """Return the bytes of n runs; -1: one of them is no multiple of a block."""
    words, total, odd = i8s(runs), 0, 0
    for k in range(n):
        total += words[RUN_WORDS * k + 4]
        odd |= (words[RUN_WORDS * k + 4] | words[RUN_WORDS * k + 2]) & (BLOCK - 1)
        if words[RUN_WORDS * k + 4] <= 0:
            return -1
    return total if odd == 0 else -1


# --- Making a frame ---


@Entry
def sum_runs(runs: int, n: int) -> int:
    """As `data_bytes`, for Python."""
    return data_bytes(runs, n)


@kernel
def begin_frame(writer: Writer, to: int, runs: int, n: int, total: int) -> None:
    """Write the head, still without its hash, and the table of a frame of n runs to memory; begin the hash."""
    head, table, words = frame_at(to), i8s(to + LINE), i8s(runs)
    lines = lines_of(n)
    zero_bytes(to + lines - LINE, LINE)  # the end of the table
    head.magic = FRAME_MAGIC
    head.salt = writer.salt
    head.number = writer.number + 1
    head.previous = writer.previous
    head.n_bytes = total
    head.hash = 0
    head.n_entries = n
    head.flags = writer.flags
    head.zeros = 0
    for k in range(n):
        table[3 * k] = words[RUN_WORDS * k] | words[RUN_WORDS * k + 1] << 32
        table[3 * k + 1] = words[RUN_WORDS * k + 2]
        table[3 * k + 2] = words[RUN_WORDS * k + 4]
    state = address_in(writer, "state")
    begin_hash(state, 0)
    hash_piece(state, to, lines)
    writer.run = 0
    writer.done = 0


@kernel
def end_frame(writer: Writer, to: int) -> None:
    """Write the hash into the head."""
    writer.hash = end_hash(address_in(writer, "state"))
    frame_at(to).hash = writer.hash


@Entry
def start_frame(row: int, to: int, runs: int, n: int, total: int) -> int:
    """Write the head and the table of a frame to memory, padded to a block; returns the bytes."""
    begin_frame(writer_at(row), to, runs, n, total)
    zero_bytes(to + lines_of(n), data_at(n) - lines_of(n))
    return data_at(n)


@Entry
def stage_data(row: int, to: int, runs: int, n: int, room: int) -> int:
    """Copy the next blocks of a frame's data, `room` bytes at most, to memory, and hash them; returns the bytes."""
    writer, words = writer_at(row), i8s(runs)
    state, staged = address_in(writer, "state"), 0
    while staged < room and writer.run < n:
        run = RUN_WORDS * writer.run
        piece = min(words[run + 4] - writer.done, room - staged)
        copy_piece(state, to + staged, words[run + 3] + writer.done, piece)
        staged += piece
        writer.done += piece
        if writer.done == words[run + 4]:
            writer.run += 1
            writer.done = 0
    return staged


@Entry
def finish_frame(row: int, to: int, runs: int, n: int) -> int:
    """Write the hash into the head, and into each run its place in the journal."""
    writer, words = writer_at(row), i8s(runs)
    end_frame(writer, to)
    place = writer.at + data_at(n)
    for k in range(n):
        words[RUN_WORDS * k + 3] = place
        place += words[RUN_WORDS * k + 4]
    return 0


@kernel
def pass_frame(writer: Writer, length: int, digest: int, n: int) -> int:
    """Take the place behind a frame of n runs; returns its number."""
    writer.number += 1
    writer.previous = digest
    writer.seen = writer.at + HASH_AT
    writer.at += length
    writer.capacity = max(writer.capacity, writer.at)
    writer.n_runs += n
    return writer.number  # type: ignore[no-any-return]  # a field has no type


@Entry
def take_place(row: int, length: int, digest: int, n: int) -> int:
    """As `pass_frame`, for Python, which no signal interrupts here: all is done or nothing."""
    return pass_frame(writer_at(row), length, digest, n)


# --- Reading a frame ---


@Entry
def hash_frame(state: int, frame: int, n: int, total: int) -> int:
    """Return the hash of a whole frame of n entries and `total` bytes of data in memory; the hash in its head counts as 0."""
    head = frame_at(frame)
    given, head.hash = head.hash, 0
    begin_hash(state, 0)
    hash_piece(state, frame, lines_of(n))
    hash_piece(state, frame + data_at(n), total)
    head.hash = given
    return end_hash(state)


@Entry
def copy_entries(data: int, places: int, addresses: int, sizes: int, n: int) -> int:
    """Copy the data of n entries to their addresses."""
    at, to, bytes_ = i8s(places), i8s(addresses), i8s(sizes)
    for k in range(n):
        copy_bytes(to[k], data + at[k], bytes_[k])
    return 0


Bounds = Callable[[int, int], int]


def refusal(table: npt.NDArray[np.void], total: int, bounds: Bounds) -> tuple[str, npt.NDArray[np.bool_]]:
    """
    Say what is wrong with the table of a frame, and which entries are of caches that are there.

    Parameters
    ----------
    table : ndarray of ENTRY
        As it was read: any bytes.
    total : int
        Bytes of the frame's data, not above MOST_BYTES.
    bounds : callable
        Called with the id of a cache and a file; returns the bytes that the file can have; negative: the cache was dropped, and
        its entries are left out; 0: there never was such a cache or file.

    Returns
    -------
    reason, is_kept
        An empty reason if nothing is wrong.
    """
    is_kept = np.ones(len(table), np.bool_)
    offset, n = table["offset"], table["n_bytes"]
    if ((offset | n) & np.uint64(BLOCK - 1)).any() or (n == 0).any():
        return "an entry that is no run of whole blocks", is_kept
    blocks = n // np.uint64(BLOCK)
    if (n > total).any() or int(blocks.sum()) * BLOCK != total:  # no sum overflows: MOST_BYTES is (1 << 31) blocks
        return "entries whose data are not those of the frame", is_kept
    keys, kind = np.unique(table["cache"].astype(np.uint64) << np.uint64(32) | table["file"], return_inverse=True)
    most = np.array([bounds(int(key) >> 32, int(key) & 0xFFFF_FFFF) for key in keys], np.int64)
    limit = most[kind]
    is_kept = limit >= 0
    most_offset = np.where(is_kept, limit, MOST_BYTES << 10).astype(np.uint64)
    if ((offset > most_offset) | (n > most_offset - np.minimum(offset, most_offset))).any():
        k = int(np.argmax((offset > most_offset) | (n > most_offset - np.minimum(offset, most_offset))))
        cache, file, at, size = table[k].item()
        return f"an entry for bytes {at} to {at + size} of file {file} of cache {cache}, which has {limit[k]}", is_kept
    order = np.lexsort((offset, kind))
    offset, n, kind = offset[order], n[order], kind[order]
    if ((kind[1:] == kind[:-1]) & (offset[1:] - offset[:-1] < n[:-1])).any():
        return "two entries for one block", is_kept
    return "", is_kept
