"""
The command line: ``jitslab replay``, ``jitslab record``, ``jitslab cut`` and ``jitslab warmup``.

If the input is wrong, the command ends with one line on the error stream and status 2.  If a replay found a record changed, it
ends with status 1.  Ctrl-C ends it with status 130, as a shell expects.

A number is never cut.  Where a table does not fit the terminal, each of its rows becomes lines; where the output is no terminal,
no line is broken.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..allocator import WARMUP
from ..errors import KernelCacheWarning, SlabError
from ..machine.disk import where_kept
from . import peak, recorder, replay, trace

NO_RICH = "jitslab replay draws with rich, which is not installed: pip install rich; with --json it is not needed"
INTERRUPTED = 130  # what a shell says of a command that SIGINT ended: 128 + 2
FEW_EVENTS = 10_000  # of fewer a pass takes some 0.05 ms: the first touch of each page and the clock weigh more than the events
UNBROKEN = 10_000  # columns of an output that is no terminal
NO_BREAK = "\0"  # stands for a space where a line is not broken
EVEN = 1.02  # two sides that differ by less are called equal
COLUMNS = ("name", "size", "active", "slots", "per slab", "slabs", "use %", "KiB")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="jitslab", description="A slab allocator for NumPy-dtype records.")
    parser.add_argument("--version", action="version", version=f"jitslab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    one = add_command(commands, "replay", "run an allocation trace on slab caches and on malloc, and compare")
    one.add_argument("trace", nargs="?", help="an .npz file; without it, the trace that comes with the package")
    one.add_argument("--threads", type=int, default=1, metavar="N", help="threads: events go by CPU number modulo N (default 1)")
    one.add_argument("--repeat", type=int, default=5, metavar="N", help="later passes of each side (default 5)")
    one.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    one = add_command(commands, "record", "record the kernel's own slab caches while a command runs (Linux, perf, root)")
    one.add_argument("out", help="the .npz file to write")
    one.add_argument("run", nargs="+", metavar="COMMAND", help="after --: the command and its arguments")
    one = add_command(commands, "cut", "cut a window of events out of a trace: a shorter trace, which replays alone")
    one.add_argument("trace", help="the .npz file to cut from; it stays as it is")
    one.add_argument("out", help="the .npz file to write")
    one.add_argument("--events", type=int, default=200_000, metavar="N", help="events of the cut (default 200,000)")
    one.add_argument("--start", type=int, default=0, metavar="N", help="event where it begins (default 0)")
    add_command(commands, "warmup", "compile everything ahead of the first use: for build images and CI")
    return parser


def add_command(commands: Any, name: str, does: str) -> argparse.ArgumentParser:
    """Add a command, with what it does in the list of commands and in its own help."""
    made: argparse.ArgumentParser = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
    return made


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
        Status: 0, 1 (a record was found changed), 2 (bad input, or nothing that is compiled can be kept) or 130 (Ctrl-C).
    """
    options = make_parser().parse_args(arguments)
    try:
        if options.command == "replay":
            return run_replay(options)
        if options.command == "record":
            return run_record(options)
        return run_warmup() if options.command == "warmup" else run_cut(options)
    except (SlabError, OSError, KernelCacheWarning) as error:
        return refuse(f"jitslab {options.command}: {error}")
    except KeyboardInterrupt:
        sys.stderr.write(f"jitslab {options.command}: interrupted\n")
        return INTERRUPTED


def refuse(line: str) -> int:
    """Write one line to the error stream; returns the status of bad input."""
    sys.stderr.write(f"{line}\n")
    return 2


def run_record(options: argparse.Namespace) -> int:
    """Record a trace; messages go to the error stream, the output is the command's."""
    made, lost = recorder.record(options.run, Path(options.out).absolute().parent)
    trace.save(options.out, made)
    sys.stderr.write(f"{options.out}: {len(made.events)} events of {len(made.caches)} caches, {lost} lost\n")
    return 0


def run_cut(options: argparse.Namespace) -> int:
    """Cut a trace."""
    made = trace.cut(trace.load(options.trace), options.events, options.start)
    trace.save(options.out, made)
    sys.stdout.write(f"{options.out}: {len(made.events)} events\n")
    return 0


def run_warmup() -> int:
    """Compile everything; nothing is worth while unless it can be kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", KernelCacheWarning)
        with bar("compiling", len(WARMUP), "steps") as tick:
            for _, compile_some in WARMUP:
                compile_some()
                tick()
    sys.stdout.write(f"compiled; kept in {where_kept()}\n")
    return 0


def run_replay(options: argparse.Namespace) -> int:
    """Replay a trace, and print a table or a JSON object."""
    if not options.json:
        try:
            import rich  # noqa: F401  # known to be there before the measuring starts
        except ImportError:
            return refuse(NO_RICH)
    path = options.trace if options.trace is not None else trace.packaged()
    loaded = trace.load(path)
    measure = replay.measure if options.json else measure_with_bar
    outcome = measure(loaded, options.threads, options.repeat)
    if loaded.is_malloc and options.threads == 1:
        outcome = replace(outcome, peak={side: peak.peak_bytes(loaded, side) for side in outcome.passes})
    if options.json:
        sys.stdout.write(json.dumps(as_object(str(path), loaded, outcome, options.threads)) + "\n")
    else:
        draw(str(path), loaded, outcome, options.threads)
    return 1 if outcome.mismatches else 0


# --- Output ---


def as_object(path: str, loaded: trace.Trace, outcome: replay.Outcome, threads: int) -> dict[str, Any]:
    """Return the object that `--json` prints; times are nanoseconds an operation."""
    ns = {side: {"first": outcome.first(side), "later": outcome.later(side)} for side in outcome.passes}
    return {
        "version": __version__,
        "trace": path,
        "events": len(loaded.events),
        "objects": len(loaded.allocs),
        "live": len(loaded.survivors),
        "threads": threads,
        "mismatches": outcome.mismatches,
        "ns": ns,
        "ratio": {when: ns["malloc"][when] / ns["jitslab"][when] for when in ("first", "later")},
        "passes": {side: [asdict(each) for each in passes] for side, passes in outcome.passes.items()},
        "caches": [asdict(line) for line in outcome.slabinfo],
        "waste": outcome.waste,
        "peak": outcome.peak,
    }


@contextmanager
def bar(what: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    """
    Draw a progress bar, if rich is there and the error stream is a terminal; gives the function that moves it one on.

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
        yield lambda: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task(what, total=total)
        progress.refresh()

        def tick() -> None:
            progress.advance(task)
            progress.refresh()

        yield tick


def measure_with_bar(loaded: trace.Trace, threads: int, repeat: int) -> replay.Outcome:
    """Measure under a progress bar, which moves between the passes."""
    with bar("replaying", 2 + 2 * max(repeat, 1), "passes") as tick:
        return replay.measure(loaded, threads, repeat, tick)


def headline(path: str, loaded: trace.Trace, outcome: replay.Outcome, threads: int) -> str:
    """Say in one sentence who was faster, or why that cannot be told."""
    events = len(loaded.events)
    what = f"{events:,} events of {'a Linux kernel' if path == str(trace.packaged()) else Path(path).name}"
    what += f" in {threads} threads" if threads > 1 else ""
    if events < FEW_EVENTS:
        return f"{what}: too few to compare, since start and clock weigh as much; a ratio means something from {FEW_EVENTS:,} on"
    ours, theirs = cpu_time(outcome, "jitslab"), cpu_time(outcome, "malloc")
    if max(ours, theirs) < EVEN * min(ours, theirs):
        return f"as fast as malloc on {what}"
    if ours < theirs:
        return f"{theirs / ours:.1f} times as fast as malloc on {what}"
    return f"slower than malloc, which is {ours / theirs:.{1 if ours > 1.05 * theirs else 2}f} times as fast, on {what}"


def cpu_time(outcome: replay.Outcome, side: str) -> float:
    """Return the median of later passes in CPU time: on a busy machine the clock also counts what others do."""
    return statistics.median(each.cpu_ns for each in outcome.passes[side][1:])


def draw(path: str, loaded: trace.Trace, outcome: replay.Outcome, threads: int) -> None:
    """Draw the headline, the caches at the end of the trace, and the times."""
    say(headline(path, loaded, outcome, threads))
    say("")
    say(f"{path}: {len(loaded.events)} events, {len(loaded.allocs)} objects, threads: {threads}")
    lines = outcome.slabinfo
    active, slots = sum(line.active_objects for line in lines), sum(line.total_slots for line in lines)
    total = ("total", "", active, slots, "", sum(line.slabs for line in lines), percent(active, slots))
    footer = [*map(str, total), f"{sum(line.memory for line in lines) >> 10}"]
    rows = []
    for line in lines:
        use = percent(line.active_objects, line.total_slots)
        numbers = line.object_size, line.active_objects, line.total_slots, line.objects_a_slab, line.slabs, use, line.memory >> 10
        rows.append([line.name, *map(str, numbers)])
    draw_table(COLUMNS, rows, footer)
    rows = []
    repeat = len(outcome.passes["jitslab"]) - 1
    for when, ns, faults in (
        ("first pass, untouched memory", outcome.first, lambda side: outcome.passes[side][0].page_faults),
        (f"later passes, median of {repeat}", outcome.later, outcome.faults),
        ("the same in CPU time", lambda side: cpu_time(outcome, side), outcome.faults),
    ):
        ours, theirs = ns("jitslab"), ns("malloc")
        pages = f"{faults('jitslab'):.0f} / {faults('malloc'):.0f}"
        rows.append([when, f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.2f}", pages])
    draw_table(("ns an operation", "jitslab", "malloc", "ratio", "page faults"), rows)
    if outcome.waste is not None:
        say(f"internal waste: {100 * outcome.waste:.1f} % of what was given out was not asked for")
    if outcome.peak is not None:
        ours, theirs = outcome.peak["jitslab"], outcome.peak["malloc"]
        say(f"peak memory: jitslab {ours >> 10} KiB, malloc {theirs >> 10} KiB, ratio {ours / max(theirs, 1):.2f}")
    say(f"{outcome.mismatches} records found changed")


def say(line: str) -> None:
    """Print a line; a terminal gets it broken between words, and a word that is longer, such as a path, whole."""
    if sys.stdout.isatty():
        width = max(shutil.get_terminal_size().columns, 1)
        line = textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
    sys.stdout.write(line.replace(NO_BREAK, " ") + "\n")


def draw_table(headings: Sequence[str], rows: Sequence[Sequence[str]], footer: Sequence[str] | None = None) -> None:
    """Draw a table whose first column is text; where it does not fit, each row is told in words."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    sys.stdout.flush()
    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else UNBROKEN)
    table = Table(box=box.SIMPLE, show_footer=footer is not None, pad_edge=False, collapse_padding=True)
    for i, heading in enumerate(headings):
        table.add_column(heading, footer[i] if footer else "", justify="right" if i else "left", no_wrap=True)
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


def percent(part: int, whole: int) -> int:
    """How many hundredths of `whole`."""
    return 100 * part // whole if whole else 0
