"""
The format of a pool on disk: names of files, bounds, `pool.json`, dtypes as JSON, and the head of a file of words.

`pool.json` is one line, ``jitslab-pool FORMAT little CRC32 BYTES``, and a JSON object of so many bytes with that checksum::

    {"id": "00c0ffee00c0ffee", "next": 2, "root": null, "caches": [{"id": 1, "name": "orders", "dtype": {...}, ...}]}

All of it is a stranger's until `decode` has looked at every number.  Nothing in it is run, unpickled or imported, and no more
memory is taken than its length allows.  Stride, shift and slots are read from it: the constants of a later jitslab may be others.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .._names import check_name
from ..descriptor import MOST_LEVELS, describe, rebuild_dtype
from ..errors import CapacityError, CorruptPoolError, PoolVersionError, SlabError, shown
from ..machine.addresses import round_up

FORMAT = 1
BLOCK = 4096  # bytes of a page of the format, whatever the pages of the machine
WORDS_OFFSET = 2048  # of the first generation in a file of words: the head is before it
WORDS, RECORDS = 0, 1  # numbers of a cache's two files, as the journal has them

# --- Names of the files in a pool's directory ---

META, JOURNAL, WRITER_LOCK, READER_LOCK = "pool.json", "journal", "writer.lock", "reader.lock"


def words_name(cache: int) -> str:
    """Return the name of a cache's file of generations."""
    return f"{cache}.words"


def records_name(cache: int) -> str:
    """Return the name of a cache's file of records."""
    return f"{cache}.records"


def sums_name(cache: int) -> str:
    """Return the name of the file with the sums of a cache's pages."""
    return f"{cache}.sums"


# --- Bounds ---

MOST_META_BYTES = 16 << 20  # of pool.json
MOST_CACHES = 65_536
MOST_NAME = 255  # characters of the name of a cache, and of a class
MOST_IDS = 1 << 32
MOST_SHIFT = 16  # a slab has 1 << shift slots
MOST_SLOTS = 1 << 32  # of a cache
MOST_BYTES = 1 << 46  # of the records of a cache
MOST_DIGITS = 20  # of a number in JSON
MOST_DEPTH = 4 + 3 * MOST_LEVELS  # of brackets in JSON: three for each level of records

READ_BEYOND = 256  # bytes of words behind the last slot that kernels may read
GRAIN = 65_536  # lengths of data files are multiples of it: the largest page of a machine


@dataclass(frozen=True)
class CacheEntry:
    """
    What a pool knows of one cache; made only if every number is within its bounds.

    Parameters
    ----------
    id : int
        Names the files of the cache; never used again in the pool.
    name : str
    stride : int
        Bytes from record to record.
    shift : int
        A slab has ``1 << shift`` slots.
    capacity : int
    slots : int
        Slots that the files have room for: whole slabs.
    colouring : bool
    template : bytes or None
        A new record's content.
    class_name : str or None
        Of the class that declared the record: for messages only.
    dtype : numpy.dtype

    Raises
    ------
    CapacityError, DuplicateNameError
        If a value is out of its bounds.
    """

    id: int
    name: str
    stride: int
    shift: int
    capacity: int
    slots: int
    colouring: bool
    template: bytes | None
    class_name: str | None
    dtype: np.dtype[Any]

    def __post_init__(self) -> None:
        """Check all but the dtype."""
        itemsize, align = self.dtype.itemsize, max(1, self.dtype.alignment)
        need_integer("id", self.id, 0, MOST_IDS - 1)
        need_text("name", self.name)
        check_name("a cache", self.name, {})
        need_integer("shift", self.shift, 0, MOST_SHIFT)
        need_integer("slots", self.slots, 1, MOST_SLOTS)
        if self.slots % (1 << self.shift):
            raise CapacityError(f"slots must be a multiple of the {1 << self.shift} of a slab, got {self.slots}")
        need_integer("capacity", self.capacity, 1, self.slots)
        need_integer("stride", self.stride, itemsize, MOST_BYTES // self.slots)
        if self.stride % align:
            raise CapacityError(f"stride must be a multiple of {align}, the alignment of the dtype, got {self.stride}")
        if type(self.colouring) is not bool:
            raise CapacityError(f"colouring must be true or false, got {shown(self.colouring)}")
        if self.template is not None and (type(self.template) is not bytes or len(self.template) != itemsize):
            raise CapacityError(f"template must be a record of {itemsize} bytes, got {shown(self.template)}")
        if self.class_name is not None:
            need_text("class", self.class_name)

    @cached_property
    def text(self) -> str:
        """The entry as JSON."""
        return dumped(
            {
                "id": self.id,
                "name": self.name,
                "stride": self.stride,
                "shift": self.shift,
                "capacity": self.capacity,
                "slots": self.slots,
                "colouring": self.colouring,
                "template": None if self.template is None else self.template.hex(),
                "class": self.class_name,
                "dtype": describe(self.dtype),
            }
        )


ENTRY_KEYS = {"id", "name", "stride", "shift", "capacity", "slots", "colouring", "template", "class", "dtype"}


@dataclass(frozen=True)
class Meta:
    """
    The content of `pool.json`; made only if its caches go together.

    Parameters
    ----------
    id : int
        A random number of 64 bits, which all files of the pool have.
    next : int
        Id of the next cache that is made.
    root : int or None
        Id of the cache that holds the root.
    caches : tuple of CacheEntry

    Raises
    ------
    CapacityError, DuplicateNameError
        If a value is out of its bounds, or two caches have one name or one id.
    """

    id: int
    next: int
    root: int | None
    caches: tuple[CacheEntry, ...]

    def __post_init__(self) -> None:
        """Check what the entries do not."""
        need_integer("id", self.id, 0, (1 << 64) - 1)
        need_integer("next", self.next, 0, MOST_IDS)
        if len(self.caches) > MOST_CACHES:
            raise CapacityError(f"a pool holds at most {MOST_CACHES} caches, got {len(self.caches)}")
        names: dict[str, int] = {}
        ids: set[int] = set()
        for number, entry in enumerate(self.caches):
            check_name("a cache", entry.name, names)
            if entry.id in ids or entry.id >= self.next:
                raise CapacityError(f"caches[{number}]: id must be below {self.next} and no other's, got {entry.id}")
            names[entry.name] = entry.id
            ids.add(entry.id)
        if self.root is not None and (type(self.root) is not int or self.root not in ids):
            raise CapacityError(f"root must be the id of a cache, got {shown(self.root)}")


def most_bytes(meta: Meta, cache: int, file: int) -> int:
    """
    Return how many bytes a file of a cache can have; -1: the cache was dropped; 0: there is no such cache or file.

    Both numbers are a stranger's.
    """
    if file not in (WORDS, RECORDS):
        return 0
    for entry in meta.caches:
        if entry.id == cache:
            return words_bytes(entry.slots) if file == WORDS else records_bytes(entry.slots, entry.stride)
    return -1 if cache < meta.next else 0


META_KEYS = {"id", "next", "root", "caches"}


def need_integer(what: str, value: Any, least: int, most: int) -> None:
    """Raise unless a value is an integer within its bounds."""
    if type(value) is not int or not least <= value <= most:
        raise CapacityError(f"{what} must be an integer of {least} .. {most}, got {shown(value)}")


def need_text(what: str, value: Any) -> None:
    """Raise unless a value is a string that a message can show."""
    if type(value) is not str or not 1 <= len(value) <= MOST_NAME or not value.isprintable():
        raise CapacityError(f"{what} must be 1 .. {MOST_NAME} printable characters, got {shown(value)}")


# --- pool.json ---

START = re.compile(rb"jitslab-pool ([1-9][0-9]{0,8}) (little|big)[ \n]")  # stays, whatever a newer format has behind it
REST = re.compile(rb"([0-9a-f]{8}) ([1-9][0-9]{0,7})\n")


def encode(meta: Meta) -> bytes:
    """
    Return the content of `pool.json`.

    Parameters
    ----------
    meta : Meta
        All that the pool knows of its caches.

    Raises
    ------
    LayoutError
        If the dtype of a cache cannot be described.
    CapacityError
        If it were longer than 16 MiB.
    PoolVersionError
        If the machine's byte order is not little-endian.

    Examples
    --------
    >>> from jitslab.pool.format import Meta, decode, encode
    >>> data = encode(Meta(id=12, next=0, root=None, caches=()))
    >>> print(data.decode(), end="")
    jitslab-pool 1 little 1e9aaf7e 59
    {"caches":[],"id":"000000000000000c","next":0,"root":null}
    >>> decode(data, "pool.json")
    Meta(id=12, next=0, root=None, caches=())
    """
    need_little_endian("pool.json")
    caches = ",\n".join(entry.text for entry in meta.caches)
    body = f'{{"caches":[{caches}],"id":"{meta.id:016x}","next":{meta.next},"root":{dumped(meta.root)}}}\n'.encode("ascii")
    data = f"jitslab-pool {FORMAT} little {zlib.crc32(body):08x} {len(body)}\n".encode("ascii") + body
    if len(data) > MOST_META_BYTES:
        raise CapacityError(f"the list of {len(meta.caches)} caches would be {len(data)} bytes, a pool has {MOST_META_BYTES}")
    return data


def decode(data: bytes, path: str) -> Meta:
    """
    Return what a `pool.json` says, if all of it can be.

    Parameters
    ----------
    data : bytes
        Content of the file; its length is to be compared with `MOST_META_BYTES` before it is read.
    path : str
        Of the file, for messages.

    Raises
    ------
    PoolVersionError
        If the format is newer, or the byte order not little-endian.
    CorruptPoolError
        If anything else is wrong.
    """
    need_little_endian(path)
    body = checked_body(data, path)
    try:
        return read_meta(parsed(body))
    except PoolVersionError as error:
        raise PoolVersionError(f"{path}: {error}") from None
    except SlabError as error:
        raise CorruptPoolError(f"{path}: {error}") from None


def need_little_endian(path: str) -> None:
    """Raise on a machine of the other byte order."""
    if sys.byteorder != "little":
        raise PoolVersionError(f"{path}: pools are little-endian, and this machine is not")


def checked_body(data: bytes, path: str) -> bytes:
    """Return what follows the first line, if that line is true."""
    if len(data) > MOST_META_BYTES:
        raise CorruptPoolError(f"{path}: it has {len(data)} bytes, at most {MOST_META_BYTES} can be")
    start = START.match(data)
    if start is None:
        raise CorruptPoolError(f"{path}: it must begin with 'jitslab-pool', a format and a byte order, got {shown(data[:32])}")
    if int(start[1]) > FORMAT:
        raise PoolVersionError(
            f"{path}: its format is {int(start[1])}, this jitslab knows {FORMAT}; open the pool with a newer jitslab"
        )
    if start[2] != b"little":
        raise PoolVersionError(f"{path}: it was written in the byte order {start[2].decode()}-endian, pools are little-endian")
    rest = REST.match(data, start.end())
    if rest is None:
        got = shown(data[start.end() : start.end() + 20])
        raise CorruptPoolError(f"{path}: its first line must end with a checksum and a length, got {got}")
    body = data[rest.end() :]
    if len(body) != int(rest[2]):
        raise CorruptPoolError(f"{path}: {int(rest[2])} bytes should follow its first line, {len(body)} do")
    if zlib.crc32(body) != int(rest[1], 16):
        raise CorruptPoolError(f"{path}: its checksum is {zlib.crc32(body):08x}, it should be {rest[1].decode()}")
    return body


def parsed(body: bytes) -> Any:
    """Return a JSON text as objects; depth and numbers are looked at before there are any."""
    check_depth(body)
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=unique_pairs,
            parse_int=bounded_integer,
            parse_float=refused_number,
            parse_constant=refused_number,
        )
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError
        raise CorruptPoolError(f"no JSON: {error}") from None


def check_depth(body: bytes) -> None:
    """Raise if brackets are nested too deep for a parser that calls itself."""
    text = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)  # each quote left begins or ends a string
    is_outside = np.cumsum(text == ord('"'), dtype=np.uint8) & 1 == 0
    opens = ((text == ord("[")) | (text == ord("{"))) & is_outside
    closes = ((text == ord("]")) | (text == ord("}"))) & is_outside
    depth = int(np.cumsum(opens.view(np.int8) - closes.view(np.int8), dtype=np.int32).max(initial=0))
    if depth > MOST_DEPTH:
        raise CorruptPoolError(f"its brackets are nested {depth} deep, at most {MOST_DEPTH} can be")


def unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose keys all differ."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise CorruptPoolError(f"the key {shown(key)} is there twice")
        made[key] = value
    return made


def bounded_integer(text: str) -> int:
    """Return an integer of few digits."""
    if len(text) > MOST_DIGITS:
        raise CorruptPoolError(f"a number has {len(text)} digits, at most {MOST_DIGITS} can be")
    return int(text)


def refused_number(text: str) -> int:
    """Raise: a pool has integers only."""
    raise CorruptPoolError(f"{shown(text)} is no integer")


def dumped(value: Any) -> str:
    """Return JSON in ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def need_keys(what: str, value: Any, keys: set[str]) -> None:
    """Raise unless a value is an object with these keys."""
    if type(value) is not dict:
        raise CorruptPoolError(f"{what} must be an object, got {shown(value)}")
    if value.keys() != keys:
        missing, foreign = sorted(keys - value.keys()), sorted(value.keys() - keys)
        raise CorruptPoolError(f"{what} has no {shown(missing[0])}" if missing else f"{what} has a foreign {shown(foreign[0])}")


def read_meta(value: Any) -> Meta:
    """Return the object of a `pool.json` as Meta."""
    need_keys("the pool", value, META_KEYS)
    if type(value["id"]) is not str or re.fullmatch("[0-9a-f]{16}", value["id"]) is None:
        raise CorruptPoolError(f"id must be 16 hexadecimal digits, got {shown(value['id'])}")
    if type(value["caches"]) is not list or len(value["caches"]) > MOST_CACHES:
        raise CorruptPoolError(f"caches must be a list of at most {MOST_CACHES}, got {shown(value['caches'])}")
    caches = []
    for number, entry in enumerate(value["caches"]):
        try:
            caches.append(read_entry(entry))
        except SlabError as error:  # noqa: PERF203  # it says which
            raise type(error)(f"caches[{number}]: {error}") from None
    return Meta(int(value["id"], 16), value["next"], value["root"], tuple(caches))


def read_entry(value: Any) -> CacheEntry:
    """Return the object of a cache as its entry."""
    need_keys("the cache", value, ENTRY_KEYS)
    template = value["template"]
    if template is not None:
        if type(template) is not str or re.fullmatch("(?:[0-9a-f]{2})*", template) is None:
            raise CorruptPoolError(f"template must be null or hexadecimal, got {shown(template)}")
        template = bytes.fromhex(template)
    return CacheEntry(
        id=value["id"],
        name=value["name"],
        stride=value["stride"],
        shift=value["shift"],
        capacity=value["capacity"],
        slots=value["slots"],
        colouring=value["colouring"],
        template=template,
        class_name=value["class"],
        dtype=rebuild_dtype(value["dtype"]),
    )


# --- The data files ---

WORDS_HEAD = np.dtype(
    [
        ("magic", "<u8"),
        ("format", "<u4"),
        ("cache", "<u4"),  # id of the cache
        ("pool", "<u8"),  # id of the pool
        ("n_slabs", "<u8"),  # slabs made
        ("first_generation", "<u4"),  # of slots never handed out
        ("pad", "V28"),
    ]
)  # the first bytes of a file of words; zeros follow up to WORDS_OFFSET.  It has no sum: commits change `n_slabs` in place
WORDS_MAGIC = int.from_bytes(b"jitslabW", "little")
MOST_FIRST_GENERATION = (1 << 30) - 1

assert WORDS_HEAD.itemsize == 64


def words_bytes(slots: int) -> int:
    """Return the length of a file of words: the head, the generations, and what is read beyond the last."""
    return round_up(WORDS_OFFSET + 4 * slots + READ_BEYOND, GRAIN)


def records_bytes(slots: int, stride: int) -> int:
    """Return the length of a file of records with room for so many."""
    return round_up(slots * stride, GRAIN)


def words_head(pool: int, entry: CacheEntry, n_slabs: int, first_generation: int) -> bytes:
    """
    Return the first `WORDS_OFFSET` bytes of a file of words.

    Examples
    --------
    >>> import numpy as np
    >>> from jitslab.pool.format import CacheEntry, check_words_head, words_head
    >>> entry = CacheEntry(1, "orders", 8, 13, 1000, 8192, True, None, None, np.dtype([("id", "i8")]))
    >>> check_words_head(words_head(12, entry, 1, 2), 12, entry, "1.words")
    (1, 2)
    """
    head = np.zeros(1, WORDS_HEAD)
    head[0] = (WORDS_MAGIC, FORMAT, entry.id, pool, n_slabs, first_generation, b"")
    return head.tobytes().ljust(WORDS_OFFSET, b"\0")


def check_words_head(data: bytes, pool: int, entry: CacheEntry, path: str) -> tuple[int, int]:
    """
    Return (n_slabs, first_generation) of a file of words, if its head can be.

    Parameters
    ----------
    data : bytes
        The first `WORDS_OFFSET` bytes of the file.
    pool : int
        Id of the pool.
    entry : CacheEntry
        The cache that the file is of.
    path : str
        Of the file, for messages.

    Raises
    ------
    PoolVersionError
        If its format is newer.
    CorruptPoolError
        If anything else is wrong.
    """
    if len(data) != WORDS_OFFSET:
        raise CorruptPoolError(f"{path}: its head has {WORDS_OFFSET} bytes, got {len(data)}")
    head = np.frombuffer(data, WORDS_HEAD, 1)[0]
    got = {name: int(head[name]) for name in WORDS_HEAD.names or () if name != "pad"}
    if got["magic"] != WORDS_MAGIC:
        raise CorruptPoolError(f"{path}: its first bytes must be 'jitslabW', got {shown(data[:8])}")
    if got["format"] > FORMAT:
        raise PoolVersionError(
            f"{path}: its format is {got['format']}, this jitslab knows {FORMAT}; open it with a newer jitslab"
        )
    most = entry.slots >> entry.shift
    for name, is_good, wanted in (
        ("format", got["format"] == FORMAT, FORMAT),
        ("cache", got["cache"] == entry.id, entry.id),
        ("pool", got["pool"] == pool, pool),
        ("n_slabs", got["n_slabs"] <= most, f"0 .. {most}"),
        (
            "first_generation",
            0 < got["first_generation"] <= MOST_FIRST_GENERATION and got["first_generation"] % 2 == 0,
            f"even and of 2 .. {MOST_FIRST_GENERATION - 1}",
        ),
    ):
        if not is_good:
            raise CorruptPoolError(f"{path}: {name} in its head must be {wanted}, got {got[name]}")
    if any(data[WORDS_HEAD.fields["pad"][1] :]):  # type: ignore[index]  # it has fields
        raise CorruptPoolError(f"{path}: zeros must follow its head up to byte {WORDS_OFFSET}")
    return got["n_slabs"], got["first_generation"]
