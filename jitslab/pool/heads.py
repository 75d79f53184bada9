"""
The journal's heads: block 0 of the file has two, at byte 0 and at byte HEAD_STEP, which are written in turn.

The whole one with the higher salt counts.  Each reset writes the other one, so a torn write leaves the one before.
"""

from __future__ import annotations

import numpy as np

from ..errors import CorruptPoolError, PoolVersionError
from .hashes import hash_memory

FORMAT = 1
HEAD_BYTES = 64
HEAD_STEP = 512  # bytes from one head to the other: a sector, which the medium writes whole or not at all
HEAD_MAGIC = int.from_bytes(b"jitslabj", "little")
MOST_NUMBER = 1 << 62  # salts and numbers are below

JOURNAL_HEAD = np.dtype(
    [
        ("magic", "<i8"),  # HEAD_MAGIC
        ("format", "<u4"),
        ("flags", "<u4"),  # 0
        ("pool", "<u8"),  # id of the pool
        ("salt", "<i8"),  # higher at each reset, from a random number on; of the two heads the higher one counts
        ("number", "<i8"),  # of the last commit before the first frame
        ("hash", "<i8"),  # XXH64 with seed 0 of the head with 0 here
        ("zeros", "<i8", (2,)),
    ]
)
HEAD_HASH_AT = JOURNAL_HEAD.fields["hash"][1]  # type: ignore[index]  # it has this field

assert JOURNAL_HEAD.itemsize == HEAD_BYTES


def make_head(pool: int, salt: int, number: int) -> tuple[bytes, int]:
    """Return a JOURNAL_HEAD and its hash."""
    head = np.zeros(1, JOURNAL_HEAD)
    head["magic"], head["format"], head["pool"], head["salt"], head["number"] = HEAD_MAGIC, FORMAT, pool, salt, number
    hash_ = head["hash"] = hash_memory(head.ctypes.data, HEAD_BYTES, 0)
    return head.tobytes(), hash_


def find_head(start: bytes, pool: int) -> tuple[int, int, int, int]:
    """
    Return the slot, the salt, the number and the hash of the head that counts, from the first bytes of a journal.

    Raises
    ------
    CorruptPoolError
        If neither head is whole, or the journal belongs to another pool.
    PoolVersionError
        If the head has a newer format.
    """
    found = []
    for slot in (0, 1):
        raw = start[HEAD_STEP * slot : HEAD_STEP * slot + HEAD_BYTES]
        head = np.frombuffer(raw.ljust(HEAD_BYTES, b"\0"), JOURNAL_HEAD).copy()
        magic, format_, flags, owner, salt, number, hash_, _ = head[0].item()
        head["hash"] = 0
        is_whole = magic == HEAD_MAGIC and hash_memory(head.ctypes.data, HEAD_BYTES, 0) == hash_
        if is_whole and 0 <= salt < MOST_NUMBER and 0 <= number < MOST_NUMBER:
            found.append((salt, slot, number, hash_, format_, flags, owner))
    if not found:
        raise CorruptPoolError(f"journal: neither of the heads at byte 0 and {HEAD_STEP} is whole")
    salt, slot, number, hash_, format_, flags, owner = max(found)
    if format_ != FORMAT or flags != 0:
        raise PoolVersionError(f"journal: format {format_} with flags {flags}; this version reads format {FORMAT} with flags 0")
    if owner != pool:
        raise CorruptPoolError(f"journal: it belongs to pool {owner:016x}, not to {pool:016x}")
    return slot, salt, number, hash_
