"""
The image of a cache: what makes the same cache somewhere else, where the same handles name the same records.

An image is its facts (`Facts`) and its slabs in groups.  Of each slab it has one number: 0, or, if none of its slots is in use,
the generation that they start with.  Of the slabs with a 0 it has the generations, lifted to what they are worth, and of those
with a live record the records, as they lie.  `rebuild` makes the index from the generations, so an image has none.

A pickle carries the groups as buffers, a file in pieces, each with a checksum::

    jitslab-image 1 little CRC32 BYTES and the end of a line
    JSON of so many bytes and that checksum: the facts, and the dtype
    for each group:  u4 a slab;  u4 a slot of the slabs with a 0;  records;  CRC32 of these three, u4

An image is input: whoever made it, each number in it is checked before a kernel sees it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pickle import PickleBuffer
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._validate import check_dtype
from .core.geometry import Shape
from .core.grow import grow
from .core.layout import (
    HUGE_BYTES,
    MAX_SLAB_SHIFT,
    MAX_SLOTS,
    NEVER,
    NODE_BORDER,
    NODE_BYTES,
    NODE_SHIFT,
    RETIRED,
    START_BITS,
)
from .core.memory import CacheMemory, NewCacheMemory, Origin
from .core.rebuild import recover
from .core.slab import COLOUR_STEP
from .descriptor import describe, rebuild_dtype
from .errors import (
    CacheFullError,
    CapacityError,
    CorruptImageError,
    ImageFullError,
    ImagePathError,
    ImageVersionError,
    LayoutError,
    PoolVersionError,
    shown,
)
from .machine import numa

FORMAT = 1
MOST_BYTES = 1 << 46  # of the records of a cache
MOST_HEAD = 16 << 20  # bytes of the JSON in a file
MOST_DIGITS = 20  # of an integer in it
GROUP_SLOTS = 1 << 18  # least slots of a group in a file: so 1 MiB of generations is in memory at a time
PIECE = 1 << 18  # bytes that are written to a file at a time
FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
HEAD = re.compile(rb"jitslab-image ([0-9]{1,9}) ([a-z]{1,9}) ([0-9a-f]{8}) ([0-9]{1,9})\n")
LONGEST_LINE = 64  # bytes of the first line, at most


@dataclass(frozen=True)
class Facts:
    """What an image says of its cache besides the dtype; of policies of NUMA nodes nothing: they are the new machine's."""

    name: str
    capacity: int | None  # None: it follows from the address space
    colouring: bool
    keep_empty: bool
    template: bytes | None
    stride: int
    shift: int
    node_shift: int  # 0 with one node
    first_generation: int
    slabs: tuple[int, ...]  # made so far, on each node

    @property
    def nodes(self) -> int:
        """How many nodes the cache has."""
        return len(self.slabs)

    def ranges(self, most: int) -> Iterator[tuple[int, int]]:
        """Yield the slabs of each group, of up to `most`: the first, and the one after the last."""
        for number, n in enumerate(self.slabs):
            first = number << self.node_shift >> self.shift
            for start in range(first, first + n, most):
                yield start, min(start + most, first + n)


class Group(NamedTuple):
    """Some slabs in an image; all that follow each other on a node, or a part of them."""

    lowest: Any  # buffer of u4 a slab
    words: Any  # buffer of u4 a slot of the slabs with a 0
    records: Sequence[Any]  # buffers, each of a run of slabs with live records


class Slabs:
    """Slabs of one node, as arrays over the memory of their cache, by slab."""

    def __init__(self, memory: CacheMemory, first: int, stop: int) -> None:
        sizes, n, slots = memory.geometry, stop - first, 1 << memory.geometry.shift
        self.first, self.slots = first, slots
        self.generations = np.frombuffer(memory.generations, np.uint32, n * slots, 4 * first * slots).reshape(n, slots)
        self.rows = memory.rows(first, stop)
        slab_bytes = sizes.stride * slots
        start = sizes.offset["records"] + first * slab_bytes
        self.records = memory.bytes[start : start + n * slab_bytes].reshape(n, slab_bytes)

    def look(self, first_generation: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Return the number of each slab, and the generations of those with a 0."""
        lowest = np.maximum(self.rows["min_generation"], np.uint32(first_generation))
        is_fresh = self.rows["n_fresh"] == self.slots
        words = self.generations[~is_fresh]
        np.maximum(words, lowest[~is_fresh, None], out=words)  # of slots that are fresh in a slab that is not
        return np.where(is_fresh, lowest, np.uint32(0)), words

    def runs(self, lowest: npt.NDArray[np.uint32], words: npt.NDArray[np.uint32]) -> list[npt.NDArray[np.uint8]]:
        """Return the bytes of the records of each run of slabs with live ones, which lie in memory without a gap."""
        has_live = np.zeros(lowest.size + 2, bool)
        has_live[1:-1][lowest == 0] = np.bitwise_or.reduce(words, axis=1) & 1
        edges = np.flatnonzero(has_live[1:] != has_live[:-1]).tolist()
        return [self.records[a:b].reshape(-1) for a, b in zip(edges[::2], edges[1::2], strict=True)]

    def put(
        self, lowest: npt.NDArray[np.uint32], words: npt.NDArray[np.uint32], facts: Facts, where: str
    ) -> list[npt.NDArray[np.uint8]]:
        """Check the numbers of an image, and write them; returns the bytes where its records belong."""
        is_fresh = lowest != 0
        starts, first = lowest[is_fresh], facts.first_generation
        if starts.size and ((starts & 1).any() or starts.min() < first or starts.max() >= RETIRED):
            raise CorruptImageError(f"{where}: a slab starts with a generation that no cache gives one")
        if words.size and (words.min() < first or words.max() > RETIRED):
            raise CorruptImageError(f"{where}: a slot has a generation that is not among {first} .. {RETIRED}")
        self.generations[~is_fresh] = words
        numbers = np.arange(self.first, self.first + lowest.size)[is_fresh]
        self.rows["n_fresh"][is_fresh] = self.slots
        self.rows["min_generation"][is_fresh] = starts
        self.rows["colour"][is_fresh] = numbers * COLOUR_STEP & self.slots - 1 if facts.colouring else 0
        return self.runs(lowest, words)


# --- A cache as an image ---


def facts_of(memory: CacheMemory, name: str) -> Facts:
    """Return the facts of a cache at rest."""
    sizes, nodes = memory.geometry, range(memory.geometry.nodes)
    return Facts(
        name,
        sizes.capacity if memory.has_capacity else None,
        memory.field("is_coloured") != 0,
        memory.field("interval_end") >= NEVER,
        None if memory.template is None else memory.template.tobytes(),
        sizes.stride,
        sizes.shift,
        sizes.node_shift if sizes.nodes > 1 else 0,
        memory.field("first_generation"),
        tuple(memory.field("n_slabs", node) - memory.field("first_slab", node) for node in nodes),
    )


def as_plain(facts: Facts) -> dict[str, Any]:
    """Return facts as a pickle has them: values that mean the same to every version."""
    return {"format": FORMAT, "order": sys.byteorder} | asdict(facts)


def groups_of(memory: CacheMemory, facts: Facts) -> list[Group]:
    """Return the slabs of a cache, those of a node together; records are the memory of the cache itself, no copies."""
    groups = []
    for first, stop in facts.ranges(MAX_SLOTS):
        slabs = Slabs(memory, first, stop)
        lowest, words = slabs.look(facts.first_generation)
        groups.append(Group(lowest, words, slabs.runs(lowest, words)))
    return groups


def as_buffers(groups: list[Group], protocol: int) -> list[tuple[Any, Any, list[Any]]]:
    """Return groups as a pickle has them: from protocol 5 on as buffers that can stay outside of it, without a copy."""
    pack: Any = PickleBuffer if protocol >= 5 else bytes
    return [(pack(lowest), pack(words), [pack(run) for run in runs]) for lowest, words, runs in groups]


# --- An image as a cache ---


def facts_from(plain: Any, dtype: np.dtype[Any], where: str) -> Facts:
    """
    Return the facts of an image, each of them checked.

    Raises
    ------
    CorruptImageError
        If one is missing, of another type, or out of its bounds.
    ImageVersionError
        If the image is of a newer format, or of another byte order.
    """

    def need(holds: bool, name: str) -> None:
        """Raise unless a fact is right."""
        if not holds:
            raise CorruptImageError(f"{where}: {name} is {shown(plain.get(name))}, which no cache has")

    if not isinstance(plain, dict):
        raise CorruptImageError(f"{where} has no facts of a cache, but {shown(plain)}")
    need(type(plain.get("format")) is int and plain["format"] > 0, "format")
    check_version(plain["format"], plain.get("order"), where)
    names = {field.name for field in fields(Facts)}
    if plain.keys() != names | {"format", "order"}:
        raise CorruptImageError(f"{where}: it has the facts {shown(sorted(map(str, plain)))}")
    facts = Facts(**{name: plain[name] for name in names})
    need(isinstance(facts.name, str) and facts.name != "", "name")
    need(facts.capacity is None or _is_in(facts.capacity, 1, MAX_SLOTS), "capacity")
    need(isinstance(facts.colouring, bool), "colouring")
    need(isinstance(facts.keep_empty, bool), "keep_empty")
    need(facts.template is None or (type(facts.template) is bytes and len(facts.template) == dtype.itemsize), "template")
    need(_is_in(facts.stride, dtype.itemsize, MOST_BYTES) and facts.stride % max(1, dtype.alignment) == 0, "stride")
    need(_is_in(facts.shift, 0, MAX_SLAB_SHIFT), "shift")
    need(_is_in(facts.first_generation, 2, (1 << START_BITS + 1) - 2) and facts.first_generation % 2 == 0, "first_generation")
    need(isinstance(facts.slabs, (tuple, list)) and 1 <= len(facts.slabs) <= numa.MAX_NODES, "slabs")
    if facts.nodes == 1:
        need(type(facts.node_shift) is int and facts.node_shift == 0, "node_shift")
        node_slots = MAX_SLOTS
    else:
        need(_is_in(facts.node_shift, max(NODE_SHIFT, facts.shift), 32), "node_shift")
        node_slots = 1 << facts.node_shift
        need(facts.nodes << facts.node_shift <= MAX_SLOTS and (facts.stride << facts.node_shift) % NODE_BORDER == 0, "node_shift")
        need(facts.capacity is None or facts.capacity <= node_slots, "capacity")
    need(all(_is_in(n, 0, min(node_slots, MOST_BYTES // facts.stride) >> facts.shift) for n in facts.slabs), "slabs")
    return facts


def check_version(number: int, order: Any, where: str) -> None:
    """Raise unless an image of a format and a byte order can be read here."""
    if number > FORMAT:
        raise ImageVersionError(f"{where} has format {number}; this version of jitslab reads up to {FORMAT}")
    if order != sys.byteorder:
        raise ImageVersionError(f"{where} has byte order {shown(order)}, and this machine {sys.byteorder!r}")


def _is_in(n: Any, least: int, most: int) -> bool:
    """Whether an object is an int within bounds."""
    return type(n) is int and least <= n <= most


def checked_dtype(dtype: Any, where: str) -> np.dtype[Any]:
    """Return the dtype of an image as that of a cache."""
    if not isinstance(dtype, np.dtype):
        raise CorruptImageError(f"{where} has no dtype, but {shown(dtype)}")
    try:
        return check_dtype(dtype)
    except LayoutError as error:
        raise CorruptImageError(f"{where}: {error}") from error


def memory_for(facts: Facts, dtype: np.dtype[Any], where: str) -> NewCacheMemory:
    """Return memory for the cache of an image: with its geometry, placed as this machine has it."""
    shape = Shape(facts.stride, facts.shift, facts.node_shift, max(max(facts.slabs) << facts.shift, 1))
    placement = numa.resolve("local", False, None)
    if len(placement.nodes) != facts.nodes:
        placement = placement.undivided() if facts.nodes == 1 else numa.resolve("local", False, facts.nodes)
    origin = Origin(shape, facts.first_generation)
    try:
        memory = NewCacheMemory(dtype, facts.capacity, facts.colouring, facts.template, placement, None, origin)
    except CapacityError as error:
        raise CorruptImageError(f"{where}: {error}") from error
    if facts.keep_empty:
        memory.state["interval_end"] = NEVER
    if facts.nodes == 1:
        _make_usable(memory, facts)
    return memory


def _make_usable(memory: CacheMemory, facts: Facts) -> None:
    """Make the slabs of an image usable; as of a cache that grows, those beyond HUGE_BYTES in huge pages."""
    n = facts.slabs[0]
    for wanted in (min(n, HUGE_BYTES // (facts.stride << facts.shift) + 1), n):
        more = wanted - memory.field("committed")
        if more > 0 and grow(memory.address, more) == 0:
            raise CacheFullError(f"the system gives no memory for the {n} slabs of an image")


def fill(memory: CacheMemory, facts: Facts, groups: Any, where: str) -> None:
    """Write the groups of a pickle into new memory, and build the index."""
    ranges = list(facts.ranges(MAX_SLOTS))
    if not isinstance(groups, (list, tuple)) or len(groups) != len(ranges):
        raise CorruptImageError(f"{where} has not the slabs of {len(ranges)} nodes")
    for (first, stop), group in zip(ranges, groups, strict=True):
        slabs = Slabs(memory, first, stop)
        if not isinstance(group, (list, tuple)) or len(group) != 3 or not isinstance(group[2], (list, tuple)):
            raise CorruptImageError(f"{where}: slabs {first} to {stop - 1} are no numbers, generations and records")
        lowest = _as_array(group[0], stop - first, np.uint32, where)
        words = _as_array(group[1], int(np.count_nonzero(lowest == 0)) * slabs.slots, np.uint32, where).reshape(-1, slabs.slots)
        runs = slabs.put(lowest, words, facts, where)
        if len(runs) != len(group[2]):
            raise CorruptImageError(f"{where}: records of {len(group[2])} runs of slabs, and {len(runs)} have live ones")
        for run, records in zip(runs, group[2], strict=True):
            run[:] = _as_array(records, run.size, np.uint8, where)
    finish(memory, facts)


def _as_array(buffer: Any, n: int, dtype: Any, where: str) -> npt.NDArray[Any]:
    """Return a buffer as an array of n numbers."""
    wanted = n * np.dtype(dtype).itemsize
    try:
        view = memoryview(buffer)
        array = np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise CorruptImageError(f"{where}: {type(buffer).__name__} in the place of a buffer of {wanted} bytes") from error
    if array.size != wanted:
        raise CorruptImageError(f"{where}: a buffer of {array.size} bytes in the place of one of {wanted}")
    numbers: npt.NDArray[Any] = array.view(dtype)
    return numbers if numbers.flags.aligned else numbers.copy()


def finish(memory: CacheMemory, facts: Facts) -> None:
    """Build the index of memory whose generations and records are those of an image."""
    for node, n in enumerate(facts.slabs):
        memory.set_field("n_slabs", memory.field("first_slab", node) + n, node)
        recover(memory.address + node * NODE_BYTES)


# --- Files ---


def write_file(path: Any, memory: CacheMemory, facts: Facts, dtype: np.dtype[Any], class_name: str | None) -> None:
    """
    Write the image of a cache at rest as a file, which is there whole or not at all.

    Raises
    ------
    ImagePathError, ImageFullError
        As `SlabCache.save`.
    LayoutError
        If the dtype cannot be described.
    """
    head = as_plain(facts) | {"dtype": describe(dtype), "class": class_name}
    if facts.template is not None:
        head["template"] = facts.template.hex()
    text = json.dumps(head, sort_keys=True).encode()
    with replaced(path) as file:
        file.write(b"jitslab-image %d %s %08x %d\n" % (FORMAT, sys.byteorder.encode(), zlib.crc32(text), len(text)))
        file.write(text)
        staging = np.empty(PIECE, np.uint8)
        for first, stop in facts.ranges(max(GROUP_SLOTS >> facts.shift, 1)):
            slabs, crc = Slabs(memory, first, stop), 0
            lowest, words = slabs.look(facts.first_generation)
            parts: list[npt.NDArray[Any]] = [lowest, words.reshape(-1), *slabs.runs(lowest, words)]
            for part in parts:
                crc = write_part(file, part.view(np.uint8), staging, crc)
            file.write(np.uint32(crc).tobytes())


def write_part(file: IO[bytes], part: npt.NDArray[np.uint8], staging: npt.NDArray[np.uint8], crc: int) -> int:
    """Write bytes to a file; returns the CRC of what was written, even if a thread stores there meanwhile."""
    for at in range(0, part.size, staging.size):
        piece = part[at : at + staging.size]
        copy = staging[: piece.size]
        copy[:] = piece
        crc = zlib.crc32(copy.data, crc)
        file.write(copy.data)
    return crc


def path_of(path: Any) -> str:
    """Return a path as text, links followed."""
    try:
        text = os.fspath(path)
        return os.path.realpath(os.fsdecode(text))
    except (TypeError, ValueError) as error:  # also a character of code 0
        raise ImagePathError(f"a path is a str or an os.PathLike, got {shown(path)}: {error}") from None


def need_file(path: str) -> os.stat_result | None:
    """Return the state of a file, None if there is none, or raise if it is something else."""
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ImagePathError(f"cannot use {shown_path(path)}: {reason(error)}") from error
    if not stat.S_ISREG(state.st_mode):
        what = "a directory" if stat.S_ISDIR(state.st_mode) else "no file"
        raise ImagePathError(f"cannot use {shown_path(path)}: it is {what}")
    return state


def shown_path(path: str) -> str:
    """Return a path as messages show it."""
    return repr(path) if len(path) <= 200 else f"{path[:200]!r}..."


def reason(error: BaseException) -> str:
    """Return why the system refuses a file."""
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def replaced(path: Any) -> Iterator[IO[bytes]]:
    """Open a new file that takes the place of another at the end; if that fails, the other stays."""
    target = path_of(path)
    old = need_file(target)
    part = os.path.join(os.path.dirname(target), f".jitslab-{secrets.token_hex(8)}")
    try:
        try:
            with open(part, "xb") as file:
                if old is not None:
                    with suppress(OSError):
                        os.chmod(part, stat.S_IMODE(old.st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except BaseException:  # also Ctrl-C
            with suppress(OSError):
                os.unlink(part)
            raise
        sync_folder(os.path.dirname(target))
    except OSError as error:
        kind = ImageFullError if error.errno in FULL else ImagePathError
        raise kind(f"cannot write {shown_path(target)}: {reason(error)}") from error


def sync_folder(path: str) -> None:
    """Make the names in a folder durable, where the system can."""
    if os.name != "posix":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_file(path: Any) -> tuple[NewCacheMemory, Facts, np.dtype[Any], str | None]:
    """
    Make the memory of a cache from a file; returns it, the facts, the dtype, and the name of the declared class.

    Raises
    ------
    ImagePathError, ImageVersionError, CorruptImageError, CacheFullError
        As `jitslab.load`.
    """
    source = path_of(path)
    where = f"file {shown_path(source)}"
    if need_file(source) is None:
        raise ImagePathError(f"cannot read {shown_path(source)}: {os.strerror(errno.ENOENT)}")
    try:
        with open(source, "rb") as file:
            plain, dtype, class_name = read_head(file, where)
            facts = facts_from(plain, dtype, where)
            if sum(facts.slabs) * 4 > os.fstat(file.fileno()).st_size:
                raise CorruptImageError(f"{where} is cut off: it has {sum(facts.slabs)} slabs")
            memory = memory_for(facts, dtype, where)
            for first, stop in facts.ranges(max(GROUP_SLOTS >> facts.shift, 1)):
                read_group(file, Slabs(memory, first, stop), facts, where)
            if file.read(1):
                raise CorruptImageError(f"{where}: there is something after the last record")
    except OSError as error:
        if isinstance(error, ImagePathError):
            raise
        raise ImagePathError(f"cannot read {shown_path(source)}: {reason(error)}") from error
    finish(memory, facts)
    return memory, facts, dtype, class_name


def read_head(file: IO[bytes], where: str) -> tuple[Any, np.dtype[Any], str | None]:
    """Read the first line and the JSON; returns the facts, not checked yet, the dtype, and the name of the class."""
    line = file.readline(LONGEST_LINE)
    match = HEAD.fullmatch(line)
    if match is None:
        raise CorruptImageError(f"{where} is no image of a cache: it begins with {shown(line[:16])}")
    check_version(int(match[1]), match[2].decode(), where)
    size = int(match[4])
    if size > MOST_HEAD:
        raise CorruptImageError(f"{where}: {size} bytes of facts; at most {MOST_HEAD} can be")
    text = file.read(size)
    if len(text) != size or zlib.crc32(text) != int(match[3], 16):
        raise CorruptImageError(f"{where}: the facts have not the checksum that they were written with")
    try:
        plain = json.loads(text, parse_int=_bounded)
    except (ValueError, RecursionError) as error:
        raise CorruptImageError(f"{where}: the facts are no JSON: {error}") from error
    if not isinstance(plain, dict) or not {"dtype", "class"} <= plain.keys():
        raise CorruptImageError(f"{where}: the facts have no dtype")
    try:
        dtype = rebuild_dtype(plain.pop("dtype"))
    except PoolVersionError as error:
        raise ImageVersionError(f"{where}: {error}") from error
    except LayoutError as error:
        raise CorruptImageError(f"{where}: {error}") from error
    class_name = plain.pop("class")
    if isinstance(plain.get("template"), str):
        with suppress(ValueError):
            plain["template"] = bytes.fromhex(plain["template"])
    return plain, checked_dtype(dtype, where), class_name if isinstance(class_name, str) else None


def _bounded(digits: str) -> int:
    """Return an integer of JSON, of which no fact has more than 20 digits: thousands take Python long."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def read_group(file: IO[bytes], slabs: Slabs, facts: Facts, where: str) -> None:
    """Read a group into memory."""
    lowest = np.empty(len(slabs.rows), np.uint32)
    crc = read_parts(file, [lowest], 0, where)
    words = np.empty((np.count_nonzero(lowest == 0), slabs.slots), np.uint32)
    crc = read_parts(file, [words.reshape(-1)], crc, where)
    crc = read_parts(file, slabs.put(lowest, words, facts, where), crc, where)
    written = np.empty(1, np.uint32)
    read_parts(file, [written], 0, where)
    if int(written[0]) != crc:
        first = slabs.first
        raise CorruptImageError(f"{where}: slabs {first} to {first + lowest.size - 1} have not the checksum of what was written")


def read_parts(file: IO[bytes], parts: Iterable[npt.NDArray[Any]], crc: int, where: str) -> int:
    """Read bytes of a file into arrays; returns their CRC."""
    for part in parts:
        view = part.view(np.uint8).data
        for at in range(0, len(view), PIECE):
            piece = view[at : at + PIECE]
            if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]  # a file that is read has it
                raise CorruptImageError(f"{where} is cut off")
            crc = zlib.crc32(piece, crc)
    return crc
