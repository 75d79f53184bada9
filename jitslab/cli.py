"""
The command line: ``jitslab info``, ``check`` and ``dump`` of pools, ``replay``, ``record`` and ``cut`` of traces, and ``warmup``.

If the input is wrong, the command ends with one line on the error stream and status 2.  If a replay found a record changed, or
a check a broken law, it ends with status 1.  Ctrl-C ends it with status 130, as a shell expects.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from . import __version__
from ._terminal import add_command, bar, refuse
from .allocator import WARMUP
from .errors import KernelCacheWarning, SlabError
from .machine.disk import where_kept
from .pool import cli as pool_commands
from .replay import cli as trace_commands

INTERRUPTED = 130  # what a shell says of a command that SIGINT ended: 128 + 2


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="jitslab", description="A slab allocator for NumPy-dtype records.")
    parser.add_argument("--version", action="version", version=f"jitslab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    pool_commands.add_to(commands)
    trace_commands.add_to(commands)
    add_command(commands, "warmup", run_warmup, "compile everything ahead of the first use: for build images and CI")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; ``sys.argv[1:]`` if not given.

    Returns
    -------
    int
        Status: 0, 1 (a record was found changed, or a law of a pool broken), 2 (bad input, or nothing that is compiled can be
        kept) or 130 (Ctrl-C).
    """
    options = make_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (SlabError, OSError, KernelCacheWarning) as error:
        return refuse(f"jitslab {options.command}: {error}")
    except KeyboardInterrupt:
        sys.stderr.write(f"jitslab {options.command}: interrupted\n")
        return INTERRUPTED


def run_warmup(options: argparse.Namespace) -> int:
    """Compile everything; nothing is worth while unless it can be kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", KernelCacheWarning)
        with bar("compiling", len(WARMUP), "steps") as tick:
            for _, compile_some in WARMUP:
                compile_some()
                tick()
    sys.stdout.write(f"compiled; kept in {where_kept()}\n")
    return 0
