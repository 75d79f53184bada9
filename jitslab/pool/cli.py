"""The commands for pools: ``jitslab info``, ``jitslab check`` and ``jitslab dump``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import __version__
from .._terminal import BAD_INPUT, Tick, add_command, bar, draw_table, lacks_rich, say
from . import calls
from .dump import dump
from .files import Folder, telling
from .info import PoolInfo
from .pool import open_pool
from .repair import check_pool, repair_pool

MIB = 1 << 20
COLUMNS = ("cache", "record", "live", "capacity", "slots", "bytes each", "KiB on disk")


def add_to(commands: Any) -> None:
    """Add the commands to the command line."""
    one = add_command(commands, "info", run_info, "say what is in a pool, and where it is")
    one.add_argument("path", help="the pool's directory")
    one.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    one = add_command(commands, "check", run_check, "recount all that a pool holds, and name every broken law")
    one.add_argument("path", help="the pool's directory")
    one.add_argument("--links", action="store_true", help="follow links, too: each is NULL or names a live record")
    one.add_argument("--repair", action="store_true", help="do what can be done, and say what; without it nothing is written")
    one.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    one = add_command(commands, "dump", run_dump, "write the records of a cache to a file that other programs read")
    one.add_argument("path", help="the pool's directory")
    one.add_argument("cache", help="name of the cache")
    one.add_argument("out", help="a new file: .npy, .csv or .parquet (with pyarrow)")


# --- Info ---


def run_info(options: argparse.Namespace) -> int:
    """Print a table or a JSON object."""
    if lacks_rich(options):
        return BAD_INPUT
    with open_pool(options.path, "r") as pool:
        info = pool.info()
    if options.json:
        sys.stdout.write(json.dumps({"version": __version__, **asdict(info)}) + "\n")
    else:
        draw_info(info)
    return 0


def draw_info(info: PoolInfo) -> None:
    """Draw what a pool is."""
    kind = f"{info.file_system}, {'' if info.is_dax else 'not '}DAX, blocks of {info.block_bytes} bytes"
    say(f"{info.path}: format {info.format}, commit {info.number}, on {kind}")
    say(f"journal: {info.journal_bytes} bytes of commits, {info.journal_disk_bytes >> 10} KiB on disk")
    say(f"open to write: {'by ' + info.writer if info.writer else 'by nobody'}")
    rows = []
    for cache in info.caches:
        numbers = cache.live, cache.capacity, cache.slots, cache.record_bytes, cache.disk_bytes >> 10
        rows.append([cache.name, cache.dtype, *map(str, numbers)])
    if rows:
        draw_table(COLUMNS, rows, n_texts=2)


# --- Check ---


def run_check(options: argparse.Namespace) -> int:
    """Print each broken law on a line, and with `--repair` what was done."""
    done: list[str] = []
    if options.repair:
        with looking(options.path, "repairing") as tick:
            done = repair_pool(options.path, tick=tick)
    with looking(options.path, "checking") as tick:
        found = check_pool(options.path, options.links, tick=tick)
    if options.json:
        laws = [
            {**asdict(broken), "pages": ends(broken.pages), "slots": ends(broken.slots), "line": str(broken)} for broken in found
        ]
        sys.stdout.write(json.dumps({"version": __version__, "path": options.path, "done": done, "broken": laws}) + "\n")
        return 1 if found else 0
    for line in done:
        say(f"repaired: {line}")
    for broken in found:
        say(str(broken))
    ends_with = f"{len(found)} broken {'law' if len(found) == 1 else 'laws'}" if found else "every law holds"
    say(f"{options.path}: {ends_with}")
    return 1 if found else 0


def ends(of: range) -> list[int]:
    """Return the first and the last of some neighbours; nothing if there are none."""
    return [of[0], of[-1]] if of else []


@contextmanager
def looking(path: str, what: str) -> Iterator[Tick]:
    """Draw a progress bar, in MiB, while the files of a pool are looked at."""
    total, seen = space_of(path), 0
    with bar(what, max(1, total // MIB), "MiB") as move:

        def tick(n: int) -> None:
            nonlocal seen
            before, seen = seen, min(seen + n, total)
            if seen // MIB > before // MIB:
                move(seen // MIB - before // MIB)

        yield tick


def space_of(path: str) -> int:
    """Return the bytes that the files of a pool take."""
    with telling(path):
        folder = Folder(str(Path(path).absolute()), "r")
        try:
            return sum(calls.disk_bytes_of(folder.file, name) for name in calls.names_in(folder.file))
        finally:
            folder.close()


# --- Dump ---


def run_dump(options: argparse.Namespace) -> int:
    """Write a file."""
    with open_pool(options.path, "r") as pool:
        cache = pool[options.cache]
        with bar("writing", len(cache), "records") as tick:
            n = dump(cache, options.out, tick)
    sys.stdout.write(f"{options.out}: {n} records\n")
    return 0
