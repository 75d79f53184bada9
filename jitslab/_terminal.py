"""
What the commands write to a terminal: lines, tables, progress bars, and the one line that says why nothing was done.

A number is never cut.  Where a table does not fit the terminal, each of its rows becomes lines; where the output is no terminal,
no line is broken.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

BAD_INPUT = 2  # status of a command
NO_RICH = "draws with rich, which is not installed: pip install rich; with --json it is not needed"
UNBROKEN = 10_000  # columns of an output that is no terminal
NO_BREAK = "\0"  # stands for a space where a line is not broken

Tick = Callable[..., None]  # moves a progress bar on: by one, or by so many


def add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], does: str) -> argparse.ArgumentParser:
    """Add a command, with what it does in the list of commands and in its own help, and the function that runs it."""
    made: argparse.ArgumentParser = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
    made.set_defaults(run=run)
    return made


def refuse(line: str) -> int:
    """Write one line to the error stream; returns the status of bad input."""
    sys.stderr.write(f"{line}\n")
    return BAD_INPUT


def lacks_rich(options: argparse.Namespace) -> bool:
    """Whether a command would draw tables and the package for that is missing; that is said."""
    lacks = not options.json and importlib.util.find_spec("rich") is None
    if lacks:
        refuse(f"jitslab {options.command} {NO_RICH}")
    return lacks


@contextmanager
def bar(what: str, total: int, unit: str) -> Iterator[Tick]:
    """
    Draw a progress bar, if rich is there and the error stream is a terminal; gives the function that moves it on.

    It is drawn by that function only: a thread of its own would take time from what is measured.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        is_drawn = False
    else:
        is_drawn = sys.stderr.isatty()
    if not is_drawn:
        yield lambda n=1: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task(what, total=total)
        progress.refresh()

        def tick(n: int = 1) -> None:
            progress.advance(task, n)
            progress.refresh()

        yield tick


def say(line: str) -> None:
    """Print a line; a terminal gets it broken between words, and a word that is longer, such as a path, whole."""
    if sys.stdout.isatty():
        width = max(shutil.get_terminal_size().columns, 1)
        line = textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
    sys.stdout.write(line.replace(NO_BREAK, " ") + "\n")


def draw_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], footer: Sequence[str] | None = None, n_texts: int = 1
) -> None:
    """Draw a table whose first columns are text; where it does not fit, each row is told in words."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    sys.stdout.flush()
    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else UNBROKEN)
    table = Table(box=box.SIMPLE, show_footer=footer is not None, pad_edge=False, collapse_padding=True)
    for i, heading in enumerate(headings):
        table.add_column(heading, footer[i] if footer else "", justify="right" if i >= n_texts else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    if console.measure(table, options=console.options.update(width=UNBROKEN)).maximum <= console.width:
        console.print(table)
        return
    for row in [*rows, *([footer] if footer else [])]:
        say("")
        say(row[0])
        pairs = zip(headings[1:], row[1:], strict=True)
        say(", ".join(f"{heading} {value}".replace(" ", NO_BREAK) for heading, value in pairs if value))
    say("")
