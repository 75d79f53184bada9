"""
The command line: ``jitslab replay``, ``jitslab record``, ``jitslab cut`` and ``jitslab warmup``.

If the input is wrong, the command ends with one line on the error stream and status 2.  If a replay found a record changed, it
ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import sys
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

NO_RICH = 'jitslab replay draws with rich: pip install "jitslab[cli]"'
COLUMNS = ("name", "size", "active", "slots", "per slab", "slabs", "use %", "KiB")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="jitslab", description="A slab allocator for NumPy-dtype records.")
    parser.add_argument("--version", action="version", version=f"jitslab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("replay", help="run an allocation trace on slab caches and on malloc, and compare")
    one.add_argument("trace", nargs="?", help="an .npz file; without it, the trace that comes with the package")
    one.add_argument("--threads", type=int, default=1, metavar="N", help="threads: events go by CPU number modulo N (default 1)")
    one.add_argument("--repeat", type=int, default=5, metavar="N", help="later passes of each side (default 5)")
    one.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    one = commands.add_parser("record", help="record the kernel's own slab caches while a command runs (Linux, perf, root)")
    one.add_argument("out", help="the .npz file to write")
    one.add_argument("run", nargs="+", metavar="COMMAND", help="after --: the command and its arguments")
    one = commands.add_parser("cut", help="cut a window out of a trace")
    one.add_argument("trace")
    one.add_argument("out")
    one.add_argument("--events", type=int, default=200_000, metavar="N", help="events of the cut (default 200,000)")
    one.add_argument("--start", type=int, default=0, metavar="N", help="event where it begins (default 0)")
    commands.add_parser("warmup", help="compile everything ahead of the first use: for build images and CI")
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
        Status: 0, 1 (a record was found changed) or 2 (bad input, or nothing that is compiled can be kept).
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
    Draw a progress bar, if rich is there; gives the function that moves it one on.

    It is drawn by that function only: a thread of its own would take time from what is measured.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
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


def draw(path: str, loaded: trace.Trace, outcome: replay.Outcome, threads: int) -> None:
    """Draw the caches at the end of the trace, and the times."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    lines = outcome.slabinfo
    active, slots = sum(line.active_objects for line in lines), sum(line.total_slots for line in lines)
    total = ("total", "", active, slots, "", sum(line.slabs for line in lines), percent(active, slots))
    footer = [*map(str, total), f"{sum(line.memory for line in lines) >> 10}"]
    caches = Table(box=box.SIMPLE, show_footer=True, pad_edge=False, collapse_padding=True)
    for heading, foot in zip(COLUMNS, footer, strict=True):
        caches.add_column(heading, foot, justify="left" if heading == "name" else "right", no_wrap=True)
    for line in lines:
        use = percent(line.active_objects, line.total_slots)
        numbers = line.object_size, line.active_objects, line.total_slots, line.objects_a_slab, line.slabs, use, line.memory >> 10
        caches.add_row(Text(line.name), *map(str, numbers))
    times = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for heading in ("ns an operation", "jitslab", "malloc", "ratio", "page faults"):
        times.add_column(heading, justify="left" if heading.startswith("ns") else "right", no_wrap=True)
    repeat = len(outcome.passes["jitslab"]) - 1
    for when, ns, faults in (
        ("first pass, untouched memory", outcome.first, lambda side: outcome.passes[side][0].page_faults),
        (f"later passes, median of {repeat}", outcome.later, outcome.faults),
    ):
        ours, theirs = ns("jitslab"), ns("malloc")
        pages = f"{faults('jitslab'):.0f} / {faults('malloc'):.0f}"
        times.add_row(when, f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.2f}", pages)
    console.print(Text(f"{path}: {len(loaded.events)} events, {len(loaded.allocs)} objects, threads: {threads}"))
    console.print(caches)
    console.print(times)
    if outcome.waste is not None:
        console.print(f"internal waste: {100 * outcome.waste:.1f} % of what was given out was not asked for")
    if outcome.peak is not None:
        ours, theirs = outcome.peak["jitslab"], outcome.peak["malloc"]
        console.print(f"peak memory: jitslab {ours >> 10} KiB, malloc {theirs >> 10} KiB, ratio {ours / max(theirs, 1):.2f}")
    console.print(f"{outcome.mismatches} records found changed")


def percent(part: int, whole: int) -> int:
    """How many hundredths of `whole`."""
    return 100 * part // whole if whole else 0
