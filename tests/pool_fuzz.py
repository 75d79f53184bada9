"""
Pools that a stranger changed, as many as you like: ``python tests/pool_fuzz.py --cases 100000``.

Each case is a pool of a few kinds with one to four changes: bits, bytes, lengths, pages that change places, files that do;
missing files, and links, FIFOs, folders and devices in the place of files; meta data, heads and commits with other numbers and a
checksum that is right.  Such a pool opens, or raises an error of pools that says what is wrong: never a crash (cases run in
children), a hang (a limit of CPU time and an alarm end them), memory without bound (the parent looks), or a write while it is
open to read (content and times of all files are compared).  A pool that opens is walked, checked and written to, and opens
again; some are repaired.

A case is made of its number alone: ``python tests/pool_fuzz.py --case 4711`` shows one, and runs it in this process.
"""

import argparse
import copy
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numba
import numpy as np

import jitslab
from jitslab.core import memory
from jitslab.pool.format import BLOCK, FORMAT, META, WORDS_HEAD, WORDS_OFFSET, words_bytes
from jitslab.pool.frames import ENTRY, FRAME_HEAD, FRAME_MAGIC, LINE, hash_frame
from jitslab.pool.hashes import STATE_WORDS
from jitslab.pool.heads import HEAD_STEP, JOURNAL_HEAD, make_head
from jitslab.pool.repair import check_pool, repair_pool

CPU_SECONDS, SECONDS = 30, 600  # of one case
MOST_RSS = 2 << 30  # bytes of memory of a child
BATCH = 1000  # cases of one child
ALLOWED = jitslab.CorruptPoolError, jitslab.PoolVersionError, jitslab.PoolPathError
ZEROS = bytes(BLOCK)
SMALL = 0, 1, 2, 3, 7, 8, 255, 256, 4095, 4096, 65_535, 1 << 20, 1 << 22
NUMBERS = [*SMALL, *((1 << n) + d for n in (31, 32, 46, 63) for d in (-1, 0, 1))]
STRANGE = "nothing", "fifo", "folder", "link", "link to a device", "link to itself", "device", "socket", "unreadable"
FOREIGN = "9.words", "7.records", "pool.json.new", "thesis.tex", "journal.cut-4096.0", "é.words", "1.words.damaged-0", "٣.sums"
TEXTS = "", "x", "nodes", "<i8", "|O", "<f4", "|V0", "\0", "\ud800", "a#1", "é"
DEVICES = {"null": (1, 3), "zero": (1, 5), "random": (1, 9)}
NODE = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
PAIR = np.dtype([("a", jitslab.link("nodes")), ("b", jitslab.link("nested"), (3,))])
NESTED = np.dtype([("id", "u1"), ("pair", PAIR, (2,)), ("x", "V9")])
ROOT = np.dtype([("head", jitslab.link("nodes")), ("n", "i8")])


# --- Pools in memory: of each file its length, and its data by offset ---


def make_kinds(folder):
    """Return pools to change: each file as (length, {offset: bytes}), by name."""
    kinds, rng = [], random.Random(1)
    secrets.randbits, secrets.randbelow = rng.getrandbits, rng.randrange  # the pools of every child are equal
    memory._process_random = 4711
    for number, make in enumerate((make_rich, make_empty, make_wide, make_dropped)):
        path = f"{folder}/kind{number}"
        make(path)
        Path(path, "writer.lock").write_text("{}")
        kinds.append({name: read_file(f"{path}/{name}") for name in sorted(os.listdir(path))})
        shutil.rmtree(path)
    return kinds


def make_rich(path):
    """Make a pool with data files, commits in its journal, links, and free and live slots."""
    with jitslab.open_pool(path, "x", root=ROOT, sync=False) as pool:
        nodes = pool.create_cache("nodes", NODE, capacity=2000)
        nested = pool.create_cache("nested", NESTED, capacity=300, init="zero")
        handles = nodes.alloc_many(1000, value=1.5, next=0)
        nested.alloc_many(100)
        pool.commit()
        pool.checkpoint()
        for n in range(3):
            nodes.free_many(handles[n * 100 : n * 100 + 50])
            pool.root["head"] = nodes.alloc(value=n, next=handles[900])
            pool.root["n"] = n
            nested.alloc_many(20)
            pool.commit()


def make_empty(path):
    """Make a pool without a cache."""
    jitslab.open_pool(path, "x", sync=False).close()


def make_wide(path):
    """Make a pool with slabs of few slots, and one of very many, without a checkpoint."""
    with jitslab.open_pool(path, "x", sync=False) as pool:
        pool.create_cache("wide", np.dtype([("x", "u1", 20_000)]), capacity=40).alloc_many(9, x=3)
        pool.create_cache("thin", np.dtype([("x", "u4")]), capacity=50_000, colouring=False).alloc_many(5000)
        pool.commit()
        pool["wide"].alloc_many(3)


def make_dropped(path):
    """Make a pool whose journal has commits of a cache that was dropped."""
    with jitslab.open_pool(path, "x", root=ROOT, sync=False) as pool:
        pool.create_cache("gone", NODE, capacity=100).alloc_many(50)
        pool.create_cache("stays", NODE, capacity=100).alloc_many(50)
        pool.commit()
        pool.drop_cache("gone")
        pool.root["n"] = 5


def read_file(path):
    """Return the length of a file, and its data, by the offset of each page that is not 0."""
    data = {}
    with open(path, "rb", buffering=0) as file:
        for start, end in data_parts(file.fileno()):
            for at in range(start, end, BLOCK):
                page = os.pread(file.fileno(), BLOCK, at)
                if page != ZEROS[: len(page)]:
                    data[at] = page
        return os.fstat(file.fileno()).st_size, data


def data_parts(file):
    """Yield where a file has data."""
    at, size = 0, os.fstat(file).st_size
    while at < size:
        try:
            at = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(file, at, os.SEEK_HOLE)
        yield at, end
        at = end


def write_pool(pool, path):
    """Write a pool to a new folder; a file may be a function that makes something else."""
    os.mkdir(path, 0o700)
    for name, it in pool.items():
        if callable(it):
            it(f"{path}/{name}")
            continue
        size, data = it
        file = os.open(f"{path}/{name}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(file, size)
            for at, page in data.items():
                if at < size:
                    os.pwrite(file, page[: size - at], at)
        finally:
            os.close(file)


def flat(it):
    """Return the data of a file up to its last page that is not 0."""
    size, data = it
    whole = bytearray(min(size, max(data, default=-BLOCK) + BLOCK))
    for at, page in data.items():
        whole[at : at + len(page)] = page[: max(len(whole) - at, 0)]
    return whole


def unflat(size, whole):
    """Return data as those of a file."""
    return size, {at: bytes(whole[at : at + BLOCK]) for at in range(0, len(whole), BLOCK) if any(whole[at : at + BLOCK])}


# --- Changes ---


def real_files(pool):
    """Return the names of the files that are files."""
    return [name for name in sorted(pool) if not callable(pool[name])]


def pick_file(rng, pool, *suffixes):
    """Return the name of a file with one of some suffixes, and its data; None: there is none."""
    names = [name for name in real_files(pool) if not suffixes or name.endswith(suffixes)]
    return rng.choice(names) if names else None


def pick_place(rng, pool, name):
    """Return an offset in a file, mostly where there are data."""
    size, data = pool[name]
    if not data or size == 0 or rng.random() < 0.05:
        return rng.randrange(max(size, 1))
    return min(rng.choice(sorted(data)) + (rng.randrange(64) if rng.random() < 0.4 else rng.randrange(BLOCK)), size - 1)


def put(pool, name, at, raw):
    """Write bytes to a file of a pool."""
    size, data = pool[name]
    for k, byte in enumerate(raw):
        if at + k < size:
            page = (at + k) // BLOCK * BLOCK
            old = bytearray(data.get(page, b"").ljust(BLOCK, b"\0"))
            old[at + k - page] = byte
            data[page] = bytes(old)


def get(pool, name, at, n):
    """Return bytes of a file of a pool."""
    _, data = pool[name]
    return b"".join(data.get(k // BLOCK * BLOCK, b"").ljust(BLOCK, b"\0")[k % BLOCK : k % BLOCK + 1] for k in range(at, at + n))


def flip_bits(rng, pool):
    """Flip some bits of a file."""
    name = pick_file(rng, pool)
    if name is not None:
        for _ in range(rng.randint(1, 8)):
            at = pick_place(rng, pool, name)
            put(pool, name, at, bytes([get(pool, name, at, 1)[0] ^ 1 << rng.randrange(8)]))


def set_number(rng, pool):
    """Write a number at an aligned place of a file."""
    name = pick_file(rng, pool, "words", "records", "sums", "journal")
    if name is not None:
        size = rng.choice((1, 2, 4, 8))
        at = pick_place(rng, pool, name) // size * size
        put(pool, name, at, (rng.choice(NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, "little"))


def swap_bytes(rng, pool):
    """Write the numbers of a head in the other byte order."""
    name = pick_file(rng, pool, "words", "journal", "sums")
    if name is not None:
        at = rng.choice((0, 0, 0, HEAD_STEP, BLOCK))
        raw = get(pool, name, at, LINE)
        width = rng.choice((4, 8))
        put(pool, name, at, b"".join(raw[k : k + width][::-1] for k in range(0, LINE, width)))


def random_pages(rng, pool):
    """Fill pages with random bytes, or with generations that are live or retired."""
    name = pick_file(rng, pool, "words", "records", "sums")
    if name is not None:
        size, data = pool[name]
        for _ in range(rng.randint(1, 4)):
            page = pick_place(rng, pool, name) // BLOCK * BLOCK
            fill = rng.choice((rng.randbytes(BLOCK), b"\xff" * BLOCK, b"\1\0\0\0" * (BLOCK // 4), b"\0\0\0\x80" * (BLOCK // 4)))
            keep = WORDS_OFFSET if page == 0 and name.endswith("words") else 0  # the head
            data[page] = data.get(page, b"").ljust(BLOCK, b"\0")[:keep] + fill[keep:]


def set_length(rng, pool):
    """Cut a file, or make it longer."""
    name = pick_file(rng, pool)
    if name is not None:
        size, data = pool[name]
        length = rng.choice((0, 1, size // 2, size - 1, size + 1, size - BLOCK, size + BLOCK, size // BLOCK * BLOCK, size * 2))
        length = rng.randrange(size + 2 * BLOCK) if rng.random() < 0.5 else length
        length = 1 << rng.randrange(30, 41) if rng.random() < 0.05 else length
        pool[name] = min(max(length, 0), 1 << 40), data


def move_pages(rng, pool):
    """Swap two pages, or copy or zero one, in a file or two."""
    names = [name for name in (pick_file(rng, pool), pick_file(rng, pool)) if name is not None]
    if len(names) == 2:
        (one, a), (other, b) = ((name, pick_place(rng, pool, name) // BLOCK * BLOCK) for name in names)
        first, second = pool[one][1], pool[other][1]
        old_a, old_b = first.get(a, bytes(BLOCK)), second.get(b, bytes(BLOCK))
        what = rng.choice(("swap", "copy", "zero"))
        first[a] = bytes(BLOCK) if what == "zero" else old_b
        if what == "swap":
            second[b] = old_a


def swap_files(rng, pool):
    """Have two files change places, or give one the content of another."""
    names = real_files(pool)
    if len(names) > 1:
        one, other = rng.sample(names, 2)
        if rng.random() < 0.5 and not {one, other} & {META}:
            pool[one] = copy.deepcopy(pool[other])
        else:
            pool[one], pool[other] = pool[other], pool[one]


def replace_file(rng, pool):
    """Remove a file, or put something else in its place."""
    name = rng.choice(sorted(pool))
    what = rng.choice(STRANGE)
    if what == "nothing":
        del pool[name]
        return
    it, device = pool[name], rng.choice(sorted(DEVICES))

    def make(path):
        if what == "fifo":
            os.mkfifo(path)
        elif what == "folder":
            os.mkdir(path)
        elif what == "link" and not callable(it):
            target = f"{os.path.dirname(path)}.target"
            Path(target).write_bytes(flat(it))
            os.symlink(target, path)
        elif what == "link to a device":
            os.symlink(f"/dev/{device}", path)
        elif what == "link to itself":
            os.symlink(path, path)
        elif what == "device" and os.geteuid() == 0:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(*DEVICES[device]))
        elif what == "socket":
            with socket.socket(socket.AF_UNIX) as it_self:
                it_self.bind(path)
        else:
            Path(path).write_bytes(b"")
            os.chmod(path, 0)

    pool[name] = make


def add_file(rng, pool):
    """Add a file that is not known."""
    name = rng.choice(FOREIGN)
    pool.setdefault(name, (100, {0: rng.randbytes(100)}))


# --- Changes with a checksum that is right ---


def pack_meta(body, version=FORMAT, order="little"):
    """Return a file of meta data."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return unflat_all(b"jitslab-pool %d %s %08x %d\n" % (version, order.encode(), zlib.crc32(raw), len(raw)) + raw)


def unflat_all(raw):
    """Return bytes as a file."""
    return unflat(len(raw), raw)


def change_meta(rng, pool):
    """Change the meta data: any value in them, or their text."""
    if META not in real_files(pool):
        return
    raw = bytes(flat(pool[META])[: pool[META][0]])
    try:
        body = json.loads(raw.partition(b"\n")[2])
    except ValueError:
        return
    if rng.random() < 0.1:
        pool[META] = pack_meta(body, rng.choice((0, 1, 2, 999)), rng.choice(("little", "big", "middle")))
        return
    if rng.random() < 0.1:
        text = bytearray(json.dumps(body).encode())
        text[rng.randrange(len(text))] = rng.randrange(256)
        pool[META] = pack_meta(bytes(text))
        return
    for _ in range(rng.randint(1, 3)):
        change_value(rng, body)
    pool[META] = pack_meta(body)


def change_value(rng, body):
    """Change one value somewhere in objects of JSON."""
    at = body
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.85:
            at = at[key]
            continue
        break
    how = rng.random()
    if how < 0.1:
        del at[key]
    elif how < 0.2 and isinstance(at, list):
        at.append(copy.deepcopy(at[key]))
    elif isinstance(at[key], int) and not isinstance(at[key], bool) and how < 0.9:
        at[key] = rng.choice((at[key] + 1, at[key] - 1, -at[key], at[key] * 2, at[key] << 1 & -2, at[key] // 2, *NUMBERS))
    elif isinstance(at[key], str) and how < 0.9:
        at[key] = rng.choice((*TEXTS, at[key] * 2, at[key][::-1]))
    else:
        at[key] = copy.deepcopy(rng.choice((None, True, False, 0, -1, 1.5, [], {}, "x", body)))


def grow_cache(rng, pool):
    """Give a cache many slots, files for them, and slabs."""
    if META not in real_files(pool):
        return
    try:
        body = json.loads(bytes(flat(pool[META])).partition(b"\n")[2].rstrip(b"\0"))
        entry = rng.choice(body["caches"])
        words = f"{entry['id']}.words"
        size, data = pool[words]
        slots = (entry["slots"] << rng.randint(0, 3)) >> entry["shift"] << entry["shift"]
        slots = min(slots, 1 << 24)
        entry["slots"] = slots
        pool[META] = pack_meta(body)
        pool[words] = max(size, words_bytes(slots)), data
        n_slabs = rng.choice((slots >> entry["shift"], rng.randrange((slots >> entry["shift"]) + 1)))
        if rng.random() < 0.7:
            put(pool, words, 24, n_slabs.to_bytes(8, "little"))
            put(pool, words, WORDS_OFFSET + 4 * rng.randrange(slots), b"\1")
    except (IndexError, KeyError, TypeError, ValueError, OverflowError):
        pass


def change_words_head(rng, pool):
    """Write a number into a field of the head of generations, which has no sum."""
    name = pick_file(rng, pool, "words")
    if name is not None:
        field = rng.choice([name for name in WORDS_HEAD.names if name != "pad"])
        kind, at = WORDS_HEAD.fields[field][:2]
        number = rng.choice([*NUMBERS, rng.randrange(64)]) & (1 << 8 * kind.itemsize) - 1
        put(pool, name, at, number.to_bytes(kind.itemsize, "little"))


def change_journal_head(rng, pool):
    """Write a journal's head with other numbers and the right hash."""
    if "journal" in real_files(pool):
        raw = get(pool, "journal", 0, HEAD_STEP + LINE)
        head = np.frombuffer(raw[:LINE], JOURNAL_HEAD).copy()[0]
        owner, salt, number = int(head["pool"]), int(head["salt"]), int(head["number"])
        what = rng.randrange(3)
        made, _ = make_head(
            rng.choice((owner, 7)) if what == 0 else owner,
            (salt + rng.choice((-1, 1, 0))) & (1 << 62) - 1 if what == 1 else salt,
            rng.choice([*NUMBERS, number]) & (1 << 62) - 1 if what == 2 else number,
        )
        put(pool, "journal", rng.choice((0, HEAD_STEP)), made)


def change_frames(rng, pool):
    """Change a commit: its table, its numbers, its data; it and all later ones get the right hash, and name the one before."""
    if "journal" not in real_files(pool):
        return
    size, _ = pool["journal"]
    raw = flat(pool["journal"])
    places = frame_places(raw)
    if not places:
        return
    changed = rng.randrange(len(places))
    at, length = places[changed]
    whole = np.frombuffer(raw, np.uint8)  # a view: the bytearray changes with it
    head = whole[at : at + LINE].view(FRAME_HEAD)
    n = int(head["n_entries"][0])
    if n == 0:
        return
    table = whole[at + LINE : at + LINE + n * ENTRY.itemsize].view(ENTRY)
    start = at + (LINE + n * ENTRY.itemsize + BLOCK - 1) // BLOCK * BLOCK
    for _ in range(rng.randint(1, 3)):
        how = rng.randrange(6)
        if how == 0:
            field = rng.choice(ENTRY.names)
            bits = 8 * ENTRY[field].itemsize
            old = int(table[field][k := rng.randrange(n)])
            new = rng.choice([*NUMBERS, old + BLOCK, old - BLOCK, old * 2, old ^ 1, rng.randrange(1 << 24) * BLOCK])
            table[field][k] = new & (1 << bits) - 1
        elif how == 1:
            field = rng.choice(("salt", "number", "previous", "n_bytes", "n_entries", "flags"))
            old = int(head[field][0])
            new = rng.choice([*NUMBERS, old + 1, old - 1, old + BLOCK]) & (1 << 8 * FRAME_HEAD[field].itemsize) - 1
            head[field] = np.array([new], np.uint64).astype(FRAME_HEAD[field], casting="unsafe")
        elif how == 2 and n > 1:
            table[rng.randrange(n)] = table[rng.randrange(n)]
        elif how in (3, 4):  # a head of generations, or generations, or records
            page = start + rng.randrange(max((length - (start - at)) // BLOCK, 1)) * BLOCK
            page = start if rng.random() < 0.3 else page
            if page + BLOCK <= len(whole):
                field = rng.choice([name for name in WORDS_HEAD.names if name != "pad"])
                if how == 3 and whole[page : page + 8].tobytes() == b"jitslabW":
                    kind, offset = WORDS_HEAD.fields[field][:2]
                    new = rng.choice([*NUMBERS, *range(8)]) & (1 << 8 * kind.itemsize) - 1
                    place = page + offset
                    whole[place : place + kind.itemsize] = np.frombuffer(new.to_bytes(kind.itemsize, "little"), np.uint8)
                else:
                    place = page + (WORDS_OFFSET if whole[page : page + 8].tobytes() == b"jitslabW" else 0)
                    fill = rng.choice((b"\1\0\0\0" * 1024, b"\xff" * BLOCK, rng.randbytes(BLOCK)))
                    whole[place : page + BLOCK] = np.frombuffer(fill[: page + BLOCK - place], np.uint8)
        else:
            head["n_entries"] = max(n - 1, 0)
    seal(whole, places, changed)
    pool["journal"] = unflat(size, raw)


def frame_places(raw):
    """Return where commits begin in a journal, and their lengths."""
    at, places = BLOCK, []
    while at + BLOCK <= len(raw):
        head = np.frombuffer(raw[at : at + LINE], FRAME_HEAD)[0]
        length = (LINE + int(head["n_entries"]) * ENTRY.itemsize + BLOCK - 1) // BLOCK * BLOCK + int(head["n_bytes"])
        if head["magic"] != FRAME_MAGIC or not BLOCK < length <= len(raw) - at or length % BLOCK:
            break
        places.append((at, length))
        at += length
    return places


def seal(whole, places, first):
    """Write the hashes of commits from one on, and into each that of the one before."""
    state = np.empty(STATE_WORDS, np.int64)
    previous = None
    for at, length in places[first:]:
        data = np.ascontiguousarray(whole[at : at + length]).copy()
        head = data[:LINE].view(FRAME_HEAD)
        if previous is not None:
            head["previous"] = previous
        n, total = int(head["n_entries"][0]), int(head["n_bytes"][0])
        if (LINE + n * ENTRY.itemsize + BLOCK - 1) // BLOCK * BLOCK + total <= length and 0 <= total:
            head["hash"] = hash_frame(state.ctypes.data, data.ctypes.data, n, total)
        previous = int(head["hash"][0])
        whole[at : at + length] = data


CHANGES = (
    *[flip_bits] * 2,
    *[set_number] * 2,
    *[random_pages] * 2,
    swap_bytes,
    set_length,
    move_pages,
    swap_files,
    replace_file,
    add_file,
    *[change_meta] * 4,
    *[grow_cache] * 2,
    *[change_words_head] * 2,
    change_journal_head,
    *[change_frames] * 5,
)


def make_case(number, kinds):
    """Return the pool of a case, and the names of its changes."""
    rng = random.Random(number)
    pool = copy.deepcopy(rng.choice([kinds[0], kinds[0], *kinds]))
    changes = [rng.choice(CHANGES) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4)))]
    for change in changes:
        change(rng, pool)
    return pool, [change.__name__ for change in changes]


# --- What a case must do ---


class BrokenPromiseError(Exception):
    """A pool did what it must not do."""


def fingerprint(path):
    """Return a hash of the content, kind and times of all in a folder."""
    found = {}
    for name in sorted(os.listdir(path)):
        state = os.lstat(f"{path}/{name}")
        content = hash_file(f"{path}/{name}") if stat.S_ISREG(state.st_mode) else None
        found[name] = state.st_mode, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, content
    return found


def hash_file(path):
    """Return a hash of a file's pages that are not 0: on tmpfs to read a hole through a mapping fills it with zeros."""
    made = hashlib.blake2b()
    with open(path, "rb", buffering=0) as file:
        for start, end in data_parts(file.fileno()):
            data = os.pread(file.fileno(), end - start, start)
            for at in range(0, len(data), BLOCK):
                if data[at : at + BLOCK].strip(b"\0"):
                    made.update((start + at).to_bytes(8, "little") + data[at : at + BLOCK])
    return made.hexdigest()


def opened(path, mode, outcomes):
    """Return the open pool, or None if it is refused as it should be."""
    try:
        pool = jitslab.open_pool(path, mode, sync=False)
    except ALLOWED as error:
        if not str(error).strip() or "\n" in str(error):
            raise BrokenPromiseError(f"a message that says nothing: {error!r}") from error
        outcomes[type(error).__name__] = outcomes.get(type(error).__name__, 0) + 1
        return None
    except jitslab.CacheFullError as error:
        if "address space" not in str(error):
            raise
        outcomes["no address space"] = outcomes.get("no address space", 0) + 1
        return None
    outcomes[f"open {mode}"] = outcomes.get(f"open {mode}", 0) + 1
    return pool


def walk(pool, rng):
    """Read all records, follow what may be handles, and forge some."""
    for cache in [*pool.caches.values(), *([pool.root_cache] if hasattr(pool, "root_cache") else [])]:
        live = cache.live()
        if len(live) != len(cache):
            raise BrokenPromiseError(f"{len(live)} records are live, and {len(cache)} are")
        total = 0
        for some in np.array_split(live, max(len(live) >> 14, 1)):
            total += int(np.frombuffer(cache.gather(some).tobytes(), np.uint8).sum())
        slots = rng.integers(0, 1 << 32, 200, np.int64)
        slots[:50] = rng.integers(0, max(cache._memory.n_slabs << cache._memory.geometry.shift, 1) + 2000, 50)
        near = np.array([cache._memory.entry.slots + d for d in (-1, 0, 1)], np.int64)
        cycles = rng.integers(0, 1 << 31, 203, np.int64)
        forged = np.append(slots, near) | cycles << 32
        words = live[rng.integers(0, max(len(live), 1), 50)] ^ np.int64(1) << rng.integers(0, 63, 50) if len(live) else live
        for handles in (forged, words, np.append(slots, near) | 1 << 32):
            ok = cache.is_live(handles)
            for handle in handles[:40].tolist():
                try:
                    bytes(cache[handle].tobytes())
                except jitslab.SlabError:
                    pass
            if ok.any():
                cache.gather(handles[ok])
            if cache.dtype == NODE and cache._memory.entry.stride == NODE.itemsize:
                follow_all(cache, handles)
    if pool._meta.root is not None:
        bytes(pool.root.tobytes())


def follow_all(cache, handles):
    """Have compiled code read the records of handles, and what their links lead to; those that are refused are faults."""
    n_refused, _ = follow(cache, handles)
    try:
        cache.raise_faults()
        n_told = 0
    except jitslab.FaultError as error:
        n_told = error.count
    if n_refused != n_told:
        raise BrokenPromiseError(f"{n_refused} handles were refused, and {n_told} faults told")


@numba.njit
def follow(cache, handles):
    """Return how many handles were refused, and a sum, for which the records are read."""
    n_refused, total = 0, 0.0
    for handle in handles:
        for _ in range(10):
            n_refused += not cache.is_live(handle)
            total += cache[handle].value
            handle = cache[handle].next if cache.is_live(handle) else 0
            if handle == 0:
                break
    return n_refused, total


def run_case(number, kinds, folder, outcomes):
    """Run one case; raises if a promise is broken."""
    pool, _ = make_case(number, kinds)
    path, rng = f"{folder}/pool", np.random.default_rng(number)
    write_pool(pool, path)
    try:
        before = fingerprint(path)
        reader = opened(path, "r", outcomes)
        if reader is not None:
            with reader:
                walk(reader, rng)
                try:
                    reader.info()
                except jitslab.CorruptPoolError:  # writer.lock is no file
                    pass
                if number % 2:
                    check(reader, outcomes)
                reader.refresh()
        if number % 2 == 0:
            look(path, outcomes)
        if fingerprint(path) != before:
            raise BrokenPromiseError("a file was changed by a reader")
        write(number, path, rng, outcomes)
        if number % 4 == 0:
            clean(folder)
            write_pool(pool, path)
            mend(path, outcomes)
    finally:
        clean(folder)


def clean(folder):
    """Remove the pool of a case."""
    for name in ("pool", "pool.target"):
        path = f"{folder}/{name}"
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)


def check(pool, outcomes):
    """Check an open pool: a broken law is told as one."""
    try:
        pool.check(links=True)
    except jitslab.PoolLawError as error:
        if not error.broken:
            raise BrokenPromiseError("no law is named") from error
        outcomes["broken laws"] = outcomes.get("broken laws", 0) + 1


def look(path, outcomes):
    """Check the files of a pool."""
    try:
        check_pool(path, links=True)
    except (*ALLOWED, jitslab.CacheFullError):
        return


def write(number, path, rng, outcomes):
    """Write to a pool that opens, and open it again."""
    pool = opened(path, "r+", outcomes)
    if pool is None:
        return
    with pool:
        walk(pool, rng)
        handles = {}
        for cache in pool.caches.values():
            try:
                handles[cache.name] = cache.alloc_many(min(cache.capacity, 100))
            except jitslab.CacheFullError:
                handles[cache.name] = np.empty(0, np.int64)
            cache.free_many(handles[cache.name][::2])
            live = cache.live()
            cache.free_many(live[:20])
        pool.commit()
        for cache in pool.caches.values():
            kept = handles[cache.name][1::2]
            kept = kept[cache.is_live(kept)]
            cache.free_many(kept[:10])
        pool.rollback()
        expected = {cache.name: cache.live() for cache in pool.caches.values()}
        try:
            pool.checkpoint()
        except jitslab.PoolError as error:
            if "beyond what a head can have" not in str(error):
                raise
        if number % 2:
            check(pool, outcomes)
    again = jitslab.open_pool(path, "r")
    with again:
        for name, live in expected.items():
            if not np.array_equal(again[name].live(), live):
                raise BrokenPromiseError(f"cache {name!r} has other records when it is opened again")
    jitslab.open_pool(path, "r+").close()


def mend(path, outcomes):
    """Repair a pool; if that says that laws hold, it opens."""
    try:
        done = repair_pool(path)
        left = check_pool(path)
    except (*ALLOWED, jitslab.CacheFullError, jitslab.PoolBusyError):
        return
    outcomes["repaired" if done and not left else "not repaired" if left else "whole"] = (
        outcomes.get("repaired" if done and not left else "not repaired" if left else "whole", 0) + 1
    )
    if not left:
        jitslab.open_pool(path, "r").close()
        jitslab.open_pool(path, "r+").close()
        if again := repair_pool(path):
            raise BrokenPromiseError(f"a second repair did {again}")


# --- Children ---


def run_child(first, last, folder, report):
    """Run cases one after the other; the report has the number of the one that runs, and failures."""
    kinds = make_kinds(folder)
    outcomes, failures = {}, []
    for number in range(first, last):
        Path(report).write_text(json.dumps([number, outcomes, failures]))
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.alarm(SECONDS)
        try:
            run_case(number, kinds, folder, outcomes)
        except Exception as error:
            failures.append([number, f"{type(error).__name__}: {error}"])
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    Path(report).write_text(json.dumps([last, outcomes, failures]))


def rss_of(pid):
    """Return the bytes of memory of a process."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def run_batch(first, last, folder):
    """Run cases in a child; returns (number of the next case, outcomes, failures)."""
    place = tempfile.mkdtemp(dir=folder)
    report = f"{place}/report"
    Path(report).write_text(json.dumps([first, {}, []]))
    os.mkdir(f"{place}/pools")
    child = subprocess.Popen([sys.executable, __file__, "--child", str(first), str(last), f"{place}/pools", report])
    is_too_large = False
    while child.poll() is None:
        time.sleep(0.05)
        if rss_of(child.pid) > MOST_RSS:
            is_too_large = True
            child.kill()
            child.wait()
    number, outcomes, failures = json.loads(Path(report).read_text())
    if child.returncode:
        name = f"more than {MOST_RSS >> 20} MiB" if is_too_large else f"ended with {child.returncode}"
        failures.append([number, name])
        number += 1
    shutil.rmtree(place)
    return number, outcomes, failures


def run_batches(number, last, folder):
    """Run cases in a child, and in the next if one ends it; returns (outcomes, failures)."""
    total, failed = {}, []
    while number < last:
        number, outcomes, failures = run_batch(number, last, folder)
        for name, count in outcomes.items():
            total[name] = total.get(name, 0) + count
        failed += failures
    return total, failed


def say(line):
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main():
    """Run all cases; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0].strip())
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=1, help="children at a time")
    parser.add_argument("--case", type=int, help="show one case, and run it in this process")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        first, last, folder, report = options.child
        run_child(int(first), int(last), folder, report)
        return 0
    folder = tempfile.mkdtemp(prefix="pool-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    try:
        if options.case is not None:
            kinds, outcomes = make_kinds(folder), {}
            say(f"{options.case}: {', '.join(make_case(options.case, kinds)[1])}")
            run_case(options.case, kinds, folder, outcomes)
            say(str(outcomes))
            return 0
        return run_all(options.first, options.first + options.cases, folder, options.jobs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_all(first, end, folder, jobs):
    """Run cases in children, and print what came out; returns 1 if one failed."""
    total, failed, start = {}, [], time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        batches = [pool.submit(run_batches, at, min(at + BATCH, end), folder) for at in range(first, end, BATCH)]
        for n, batch in enumerate(as_completed(batches), 1):
            outcomes, failures = batch.result()
            for name, count in outcomes.items():
                total[name] = total.get(name, 0) + count
            failed += failures
            for case, text in failures:
                say(f"FAILED {case}: {text[:300]}")
            done = min(n * BATCH, end - first)
            say(f"{done} cases, {time.monotonic() - start:.0f} s, {len(failed)} failed: {total}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
