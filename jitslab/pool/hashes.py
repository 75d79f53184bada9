"""
Hashes of memory: XXH64, exactly, so that any program can recompute what a pool's files hold.

A hash tells a torn or damaged page from a whole one.  It is no signature: the author of a file can give it any hash, so what a
file says is checked against bounds, too.  A plain chain of products would not do: two sign bits flipped in one lane cancel.

`hash_bytes` is for one piece of memory.  What lies in several pieces, each of a multiple of STRIPE bytes, is hashed in turn with
a *state*, a row of STATE_WORDS int64: `begin_hash`, then `hash_piece` or `copy_piece`, then `end_hash`.  `copy_piece` loads each
word once, stores it and hashes it: so the hash is that of the copy, also if another thread writes to the source meanwhile.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from ..machine.compile import Entry, inlined, int64, kernel, uint64
from ..machine.memory import load1
from ..machine.pointers import i8s, load_relaxed, u4s

STRIPE = 32  # bytes: 8 for each of four lanes
STATE_WORDS = 6  # the four lanes, bytes so far, the seed

Unsigned: TypeAlias = Any  # an uint64, which wraps; a result that is annotated as an int would be an int64

# The primes of XXH64.
P1 = uint64(0x9E3779B185EBCA87)
P2 = uint64(0xC2B2AE3D27D4EB4F)
P3 = uint64(0x165667B19E3779F9)
P4 = uint64(0x85EBCA77C2B2AE63)
P5 = uint64(0x27D4EB2F165667C5)


# --- One word ---


@inlined
def turned(x: Unsigned, n: Unsigned) -> Unsigned:
    """Return `x` with its bits turned left by n, which is not 0 nor 64."""
    return (x << n) | (x >> (uint64(64) - n))


@inlined
def stirred(lane: Unsigned, word: int) -> Unsigned:
    """Return a lane after one more word."""
    return turned(lane + uint64(word) * P2, uint64(31)) * P1


@inlined
def merged(x: Unsigned, lane: Unsigned) -> Unsigned:
    """Return a hash after one more lane."""
    return (x ^ stirred(uint64(0), lane)) * P1 + P4


# --- Pieces ---


@kernel
def begin_hash(at: int, seed: int) -> None:
    """Fill in the state at an address."""
    state, first = i8s(at), uint64(seed)
    state[0] = int64(first + P1 + P2)
    state[1] = int64(first + P2)
    state[2] = seed
    state[3] = int64(first - P1)
    state[4] = 0
    state[5] = seed


@kernel
def hash_piece(at: int, address: int, n: int) -> None:
    """Hash n more bytes, a multiple of STRIPE, from an address aligned to 8."""
    state, words = i8s(at), i8s(address)
    a, b, c, d = uint64(state[0]), uint64(state[1]), uint64(state[2]), uint64(state[3])
    for k in range(0, n // 8, 4):
        a = stirred(a, words[k])
        b = stirred(b, words[k + 1])
        c = stirred(c, words[k + 2])
        d = stirred(d, words[k + 3])
    state[0], state[1], state[2], state[3] = int64(a), int64(b), int64(c), int64(d)
    state[4] += n


@kernel
def copy_piece(at: int, to: int, address: int, n: int) -> None:
    """Copy n bytes, a multiple of STRIPE, between addresses aligned to 8, and hash what is stored."""
    state, words, copies = i8s(at), i8s(address), i8s(to)
    a, b, c, d = uint64(state[0]), uint64(state[1]), uint64(state[2]), uint64(state[3])
    for k in range(0, n // 8, 4):
        p = load_relaxed(words, k)  # atomic: LLVM never loads it twice
        q = load_relaxed(words, k + 1)
        r = load_relaxed(words, k + 2)
        s = load_relaxed(words, k + 3)
        copies[k] = p
        copies[k + 1] = q
        copies[k + 2] = r
        copies[k + 3] = s
        a = stirred(a, p)
        b = stirred(b, q)
        c = stirred(c, r)
        d = stirred(d, s)
    state[0], state[1], state[2], state[3] = int64(a), int64(b), int64(c), int64(d)
    state[4] += n


@kernel
def finished(x: Unsigned, address: int, n: int) -> int:
    """Return the hash of all, after the last n bytes, fewer than a stripe, from an address aligned to 8."""
    words, left, done = i8s(address), n, 0
    while left >= 8:
        x = turned(x ^ stirred(uint64(0), words[done // 8]), uint64(27)) * P1 + P4
        done += 8
        left -= 8
    if left >= 4:
        x = turned(x ^ (uint64(u4s(address)[done // 4]) * P1), uint64(23)) * P2 + P3
        done += 4
        left -= 4
    while left > 0:
        x = turned(x ^ (uint64(load1(address, done)) * P5), uint64(11)) * P1
        done += 1
        left -= 1
    x = (x ^ (x >> uint64(33))) * P2
    x = (x ^ (x >> uint64(29))) * P3
    return int64(x ^ (x >> uint64(32)))


@kernel
def folded(p: int, q: int, r: int, s: int) -> Unsigned:
    """Return the hash of four lanes."""
    a, b, c, d = uint64(p), uint64(q), uint64(r), uint64(s)
    x = turned(a, uint64(1)) + turned(b, uint64(7)) + turned(c, uint64(12)) + turned(d, uint64(18))
    return merged(merged(merged(merged(x, a), b), c), d)


@kernel
def end_hash(at: int) -> int:
    """Return the hash of all pieces, as an int64."""
    state = i8s(at)
    if state[4] == 0:
        return finished(uint64(state[5]) + P5, at, 0)
    return finished(folded(state[0], state[1], state[2], state[3]) + uint64(state[4]), at, 0)


# --- One piece of any length ---


@kernel
def hash_bytes(address: int, n: int, seed: int) -> int:
    """Return the hash of n bytes from an address aligned to 8, as an int64."""
    words, first, whole = i8s(address), uint64(seed), n & ~(STRIPE - 1)
    if whole == 0:
        return finished(first + P5 + uint64(n), address, n)
    a, b, c, d = first + P1 + P2, first + P2, first, first - P1
    for k in range(0, whole // 8, 4):
        a = stirred(a, words[k])
        b = stirred(b, words[k + 1])
        c = stirred(c, words[k + 2])
        d = stirred(d, words[k + 3])
    x = folded(int64(a), int64(b), int64(c), int64(d)) + uint64(n)
    return finished(x, address + whole, n - whole)


@Entry
def hash_memory(address: int, n: int, seed: int) -> int:
    """As `hash_bytes`, for Python."""
    return hash_bytes(address, n, seed)
