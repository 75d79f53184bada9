"""The commands for traces: ``jitslab replay``, ``jitslab record`` and ``jitslab cut``."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .. import __version__
from .._terminal import BAD_INPUT, add_command, bar, draw_table, lacks_rich, say
from . import peak, recorder, replay, trace

FEW_EVENTS = 10_000  # of fewer a pass takes some 0.05 ms: the first touch of each page and the clock weigh more than the events
EVEN = 1.02  # two sides that differ by less are called equal
COLUMNS = ("name", "size", "active", "slots", "per slab", "slabs", "use %", "KiB")


def add_to(commands: Any) -> None:
    """Add the commands to the command line."""
    one = add_command(commands, "replay", run_replay, "run an allocation trace on slab caches and on malloc, and compare")
    one.add_argument("trace", nargs="?", help="an .npz file; without it, the trace that comes with the package")
    one.add_argument("--threads", type=int, default=1, metavar="N", help="threads: events go by CPU number modulo N (default 1)")
    one.add_argument("--repeat", type=int, default=5, metavar="N", help="later passes of each side (default 5)")
    one.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    does = "record the kernel's own slab caches while a command runs (Linux, perf, root)"
    one = add_command(commands, "record", run_record, does)
    one.add_argument("out", help="the .npz file to write")
    one.add_argument("run_this", nargs="+", metavar="COMMAND", help="after --: the command and its arguments")
    does = "cut a window of events out of a trace: a shorter trace, which replays alone"
    one = add_command(commands, "cut", run_cut, does)
    one.add_argument("trace", help="the .npz file to cut from; it stays as it is")
    one.add_argument("out", help="the .npz file to write")
    one.add_argument("--events", type=int, default=200_000, metavar="N", help="events of the cut (default 200,000)")
    one.add_argument("--start", type=int, default=0, metavar="N", help="event where it begins (default 0)")


def run_record(options: argparse.Namespace) -> int:
    """Record a trace; messages go to the error stream, the output is the command's."""
    made, lost = recorder.record(options.run_this, Path(options.out).absolute().parent)
    trace.save(options.out, made)
    sys.stderr.write(f"{options.out}: {len(made.events)} events of {len(made.caches)} caches, {lost} lost\n")
    return 0


def run_cut(options: argparse.Namespace) -> int:
    """Cut a trace."""
    made = trace.cut(trace.load(options.trace), options.events, options.start)
    trace.save(options.out, made)
    sys.stdout.write(f"{options.out}: {len(made.events)} events\n")
    return 0


def run_replay(options: argparse.Namespace) -> int:
    """Replay a trace, and print a table or a JSON object."""
    if lacks_rich(options):  # known before the measuring starts
        return BAD_INPUT
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


def percent(part: int, whole: int) -> int:
    """How many hundredths of `whole`."""
    return 100 * part // whole if whole else 0
