"""The hash of pools: XXH64 as others compute it, in one piece and in several, and of what is stored."""

import ctypes
import mmap
import threading
import time

import numpy as np
import pytest

from jitslab.machine.compile import Entry
from jitslab.pool import hashes

xxhash = pytest.importorskip("xxhash")
MASK = (1 << 64) - 1
SEEDS = (0, 1, -1, 1 << 62, -(1 << 63), 0x1234_5678_9ABC_DEF0)


@Entry
def hash_in_pieces(state: int, address: int, pieces: int, n: int, seed: int) -> int:
    """Hash pieces of the lengths in an array of int64."""
    lengths = hashes.i8s(pieces)
    hashes.begin_hash(state, seed)
    for k in range(n):
        hashes.hash_piece(state, address, lengths[k])
        address += lengths[k]
    return hashes.end_hash(state)


@Entry
def copy_and_hash(state: int, to: int, address: int, n: int, seed: int) -> int:
    """Copy one piece and return its hash."""
    hashes.begin_hash(state, seed)
    hashes.copy_piece(state, to, address, n)
    return hashes.end_hash(state)


def words(n, seed=0):
    """Return n random bytes, aligned, as an array."""
    return np.random.default_rng(seed).integers(0, 1 << 63, n // 8 + 1, np.int64).view(np.uint8)[:n]


def hash_of(array, seed=0):
    """Return the hash of an array, unsigned."""
    return hashes.hash_memory(array.ctypes.data, array.nbytes, seed) & MASK


@pytest.mark.parametrize("seed", SEEDS)
def test_hash_is_xxh64(seed):
    """Every length up to some stripes, and long ones."""
    data = words(70_000)
    lengths = [*range(300), 4095, 4096, 4097, 65_536, 70_000]

    assert [xxhash.xxh64_intdigest(data[:n].tobytes(), seed & MASK) for n in lengths] == [
        hash_of(data[:n], seed) for n in lengths
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_hash_of_pieces_is_that_of_the_whole(seed):
    """However the whole is cut, also into no pieces at all."""
    data, state = words(32 * 600), np.zeros(hashes.STATE_WORDS, np.int64)
    rng = np.random.default_rng(seed & 0xFFFF)
    for n in (0, 1, 2, 7, 100):
        lengths = 32 * rng.integers(0, 7, max(n, 1))[:n]
        whole = data[: lengths.sum()]
        got = hash_in_pieces(state.ctypes.data, data.ctypes.data, lengths.ctypes.data, n, seed) & MASK

        assert xxhash.xxh64_intdigest(whole.tobytes(), seed & MASK) == got


def test_copy_is_the_source_and_its_hash():
    """Nothing beside the copy is written."""
    data, state = words(8192), np.zeros(hashes.STATE_WORDS, np.int64)
    copy = np.full(8192 + 64, 7, np.uint8)
    got = copy_and_hash(state.ctypes.data, copy.ctypes.data + 32, data.ctypes.data, 8192, 5) & MASK

    assert xxhash.xxh64_intdigest(data.tobytes(), 5) == got
    assert data.tobytes() == copy[32:-32].tobytes()
    assert {7} == set(copy[:32]) | set(copy[-32:])


def test_two_flipped_bits_change_the_hash():
    """Every pair of bits of one lane that lie near, every pair of sign bits, and each bit alone: no two hashes are equal."""
    data = words(4096)
    bits = [*range(0, 64 * 64, 7), *range(63, 4096 * 8, 64)]
    seen = {hash_of(data)}
    for first in bits[::9]:
        for second in bits[::11]:
            changed = data.copy()
            changed[first // 8] ^= 1 << first % 8
            changed[second // 8] ^= 1 << second % 8
            seen.add(hash_of(changed))
    pairs = {frozenset((a, b)) for a in bits[::9] for b in bits[::11] if a != b}

    assert len(pairs) + 1 == len(seen)


def test_sign_bits_of_one_lane_do_not_cancel():
    """A chain of products has this fault: each sign bit stays the sign bit, wherever in the lane it was flipped."""
    data = words(4096)
    lane = np.arange(7, 4096, 32)  # the byte with the sign bit of each word of the first lane
    found = {hash_of(data)}
    for k in range(1, len(lane)):
        changed = data.copy()
        changed[lane[[0, k]]] ^= 0x80
        found.add(hash_of(changed))

    assert len(lane) == len(found)


def test_copy_beside_a_writer_has_the_hash_of_the_copy():
    """Another thread writes to the source all the time: what was stored is what was hashed."""
    data, state = words(1 << 16), np.zeros(hashes.STATE_WORDS, np.int64)
    copy, stop = np.empty_like(data), threading.Event()
    before = data.tobytes()

    def write():
        numbers = data.view(np.int64)
        while not stop.is_set():
            numbers += 1

    writer = threading.Thread(target=write)
    writer.start()
    wrong, changed = 0, 0
    deadline = time.monotonic() + 20
    try:
        for _ in range(300):
            got = copy_and_hash(state.ctypes.data, copy.ctypes.data, data.ctypes.data, copy.nbytes, 1) & MASK
            wrong += got != xxhash.xxh64_intdigest(copy.tobytes(), 1)
            changed += copy.tobytes() != before
            if time.monotonic() > deadline:
                break
    finally:
        stop.set()
        writer.join()

    assert changed
    assert not wrong


def test_empty_memory_has_the_hash_of_the_seed():
    """Nothing is read at the address."""
    assert xxhash.xxh64_intdigest(b"", 3) == hashes.hash_memory(0, 0, 3) & MASK


def test_hash_reads_nothing_beyond_the_end():
    """The bytes lie at the very end of a mapping, and what follows cannot be read."""
    libc = ctypes.CDLL(None)
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    end = np.frombuffer(memory, np.uint8).ctypes.data + mmap.PAGESIZE
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if libc.mprotect(end, mmap.PAGESIZE, 0) != 0:
        pytest.skip("no protection of pages")
    got = [hashes.hash_memory(end - n, n, 0) & MASK for n in (8, 16, 32, 40, 4096)]
    libc.mprotect(end, mmap.PAGESIZE, 3)

    assert [xxhash.xxh64_intdigest(bytes(n), 0) for n in (8, 16, 32, 40, 4096)] == got
