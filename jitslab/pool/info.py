"""What a pool is: its caches, its space on disk, and the file system that it is on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..links import LINK
from ..machine.addresses import LINUX, is_on_dax
from . import calls
from .files import DATA, Folder
from .format import FORMAT, JOURNAL, WRITER_LOCK
from .locks import holder_of


@dataclass(frozen=True)
class CacheInfo:
    """
    What `Pool.info` says of one cache.

    Attributes
    ----------
    name : str
    dtype : str
        Its fields in short; ``...`` stands for what is left out.
    live : int
        Live records.
    capacity : int
    slots : int
        Slots of the slabs that were made.
    record_bytes : int
        From record to record.
    disk_bytes : int
        Space that its files take.
    """

    name: str
    dtype: str
    live: int
    capacity: int
    slots: int
    record_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class PoolInfo:
    """
    What `Pool.info` says.

    Attributes
    ----------
    path : str
    format : int
        Of the files.
    number : int
        Of the last commit that the process sees.
    caches : tuple of CacheInfo
        The root's is among them.
    root : str or None
        Name of the root's cache.
    journal_bytes : int
        In use by commits that are in no data file yet.
    journal_disk_bytes : int
        Space that the journal takes.
    file_system : str
        Its type, such as ``"ext4"``; ``"unknown"`` if the system does not say.
    is_dax : bool
        Whether it is persistent memory that is mapped directly.
    block_bytes : int
        Unit of space of the file system.
    writer : str or None
        The process that has the pool open to write.
    """

    path: str
    format: int
    number: int
    caches: tuple[CacheInfo, ...]
    root: str | None
    journal_bytes: int
    journal_disk_bytes: int
    file_system: str
    is_dax: bool
    block_bytes: int
    writer: str | None


def pool_info(folder: Folder, number: int, journal_bytes: int, caches: list[Any], root: int | None) -> PoolInfo:
    """Return what `Pool.info` says of an open pool, in whose directory nothing is written."""
    found = []
    for cache in caches:
        entry, slots = cache._memory.entry, cache._memory.n_slabs << cache._memory.geometry.shift
        disk = sum(calls.disk_bytes_of(folder.file, kind(entry.id)) for kind in DATA)
        found.append(CacheInfo(entry.name, short(entry.dtype), len(cache), entry.capacity, slots, entry.stride, disk))
    return PoolInfo(
        path=folder.path,
        format=FORMAT,
        number=number,
        caches=tuple(found),
        root=next((cache.name for cache in caches if cache._memory.entry.id == root), None),
        journal_bytes=journal_bytes,
        journal_disk_bytes=calls.disk_bytes_of(folder.file, JOURNAL),
        file_system=file_system_of(folder.file),
        is_dax=of_file(folder, JOURNAL, is_on_dax),
        block_bytes=calls.block_bytes(folder.file),
        writer=of_file(folder, WRITER_LOCK, holder_of),
    )


def of_file(folder: Folder, name: str, function: Any) -> Any:
    """Return what a function says of a file of a pool, by its descriptor."""
    file = folder.open(name, write=False)
    try:
        return function(file)
    finally:
        calls.close(file)


def short(dtype: np.dtype[Any], most: int = 60) -> str:
    """
    Return the fields of a record in few characters.

    Examples
    --------
    >>> import jitslab
    >>> short(np.dtype([("value", "f8"), ("next", jitslab.link("nodes")), ("at", [("x", "f4"), ("y", "f4")], (2, 3))]))
    'value f8, next -> nodes, at {x f4, y f4}[2, 3]'
    """
    text = fields_of(dtype)
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def fields_of(dtype: np.dtype[Any]) -> str:
    """Return the fields of a record."""
    return ", ".join(f"{name} {kind_of(dtype[name])}" for name in dtype.names or ())


def kind_of(dtype: np.dtype[Any]) -> str:
    """Return what a field is."""
    shape = f"{list(dtype.shape)}" if dtype.shape else ""
    base = dtype.base
    if base.names is not None:
        return f"{{{fields_of(base)}}}{shape}"
    if base.metadata and LINK in base.metadata:
        return f"-> {base.metadata[LINK]}{shape}"
    return f"{base.str.lstrip('<|')}{shape}"


def file_system_of(file: int) -> str:
    """Return the type of the file system that a file is on."""
    if not LINUX:
        return "unknown"
    device, _ = calls.identity_of(file)
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                mount, _, rest = line.partition(" - ")
                if mount.split(" ")[2] == wanted:
                    return rest.split(" ")[0]
    except (OSError, IndexError):
        pass
    return "unknown"
