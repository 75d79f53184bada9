"""
Run everything: ratios from interleaved rounds, beside the figures to reach.

    python bench/run.py                          all, below 20 minutes
    python bench/run.py --quick                  smaller sizes, below 2 minutes
    python bench/run.py --only alloc threads     some
    python bench/run.py --traces a.npz b.npz     and replay these traces, too
    python bench/run.py --figures README.md      and write the figures between the markers of that file
    python bench/run.py --from-results --figures README.md    the same from the results that are there, without measuring

Writes bench/results/<suite>.json, or <suite>-quick.json, and draws them (see charts.py).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import allocators
import charts
import figures
import hardware
import peer
import sections
import traces
from figures import RESULTS, TITLES, Content, number, shown, wanted
from jitslab import SlabError
from measure import FULL, QUICK, SMOKE, Sizes, SkippedError, measure

SUITES = (
    "alloc",
    "peers",
    "threads",
    "nodes",
    "python",
    "numba",
    "guard",
    "access",
    "start",
    "replay",
    "memory",
    "bulk",
    "containers",
    "kernels",
)
BESIDE_MALLOC = {
    "peers": ("peer", "table"),
    "replay": ("bench_replay", "beside_malloc"),
    "kernels": ("bench_kernels", "rows"),
}  # suites that are measured in a process for each C allocator: the module and its function
IN_README = {
    charts.SUMMARY: "How many times as fast as each alternative",
    "peers": "Beside C allocators",
    charts.MEMORY: "Memory over the events of traces",
}  # charts, and what they show in words


def measured(suite: str, sizes: Sizes, console: Console) -> Content:
    """Measure a suite, showing every row as it is there; returns its results."""
    content: Content = {"suite": suite, "sizes": sizes.name, "machine": hardware.describe(), "rows": [], "skipped": {}}
    if suite in (*BESIDE_MALLOC, charts.MEMORY):
        content["allocators"] = allocators.versions()
        traces.paths(sizes.batch, sizes.least > 2)  # got here, for all processes that this one starts
    if suite in BESIDE_MALLOC:
        for allocator in allocators.ALLOCATORS:
            try:
                rows = peer.run_with(allocator, sizes.name, *BESIDE_MALLOC[suite])
            except SkippedError as why:
                console.print(f"{allocator} skipped: {why}")
                content["skipped"][allocator] = str(why)
                continue
            for row in rows:
                content["rows"].append(row)
                show(row, console)
    if suite in ("peers", "kernels"):  # all of them are beside malloc
        return content
    module = importlib.import_module(f"bench_{suite}")
    for operation, row in module.table(sizes).items():
        content["rows"].append(measure(operation, row, sizes).as_json())
        show(content["rows"][-1], console)
    if hasattr(module, "curves"):
        content["curves"] = module.curves()
    return content


def show(row: dict[str, Any], console: Console) -> None:
    """Print a row: its times, then its figures."""
    times = ", ".join(f"{name} {found['min']:.4g} ({found['median']:.4g})" for name, found in row["contenders"].items())
    console.print(f"[bold]{escape(row['operation'])}[/]: {escape(times)} {row['unit']}, best (median)")
    for name, why in row["skipped"].items():
        console.print(f"  {escape(name)} skipped: {escape(why)}")
    for figure in row["figures"]:
        text = f"{escape(figure['figure'])}: {shown(figure)} (by rounds {number(figure['of_rounds'])}); {wanted(figure)}"
        console.print(f"  {text} {MARKS[figure['met']]}")
    for text, unit in (("latency", "ns"), ("memory", "MiB")):  # of the stress loops
        found = row.get(text) or {}
        sides = {side: values for side, values in found.items() if isinstance(values, dict)}
        parts = [f"{side} " + ", ".join(f"{name} {n:.4g}" for name, n in values.items()) for side, values in sides.items()]
        if parts:
            console.print(f"  {text}{' of ' + found['lap'] if 'lap' in found else ''}, {unit}: {escape('; '.join(parts))}")


def as_text(content: Content) -> str:
    """Return results as JSON, lists of numbers on one line."""
    text = json.dumps(content, indent=1)
    return re.sub(r"\[[-\d.,\s]+\]", lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n"


MARKS = {True: "[green]reached[/]", False: "[red]missed[/]", None: ""}


def tabulate(results: dict[str, Content], console: Console) -> None:
    """Print the figures of every suite, and how many times as fast as each peer the library is."""
    for suite, content in results.items():
        table = Table("operation", "figure", title=TITLES.get(suite, suite), title_justify="left")
        for heading in ("measured", "by rounds", "to reach", ""):
            table.add_column(heading, justify="right")
        for row in content["rows"]:
            for i, figure in enumerate(row["figures"]):
                found = shown(figure), number(figure["of_rounds"]), wanted(figure), MARKS[figure["met"]]
                table.add_row(escape(row["operation"]) if i == 0 else "", escape(figure["figure"]), *found)
        if table.row_count:
            console.print(table)
    table = Table(*figures.PEERS_HEAD, title="Times as fast, or as small", title_justify="left")
    for line in figures.summary(figures.ratios(results)):
        table.add_row(*(escape(cell.strip("*")) for cell in line), style="red" if line[-1] != "none" else None)
    if table.row_count:
        console.print(table)


def section(path: Path, results: dict[str, Content], drawn: dict[str, str], sizes: Sizes) -> str:
    """Return the figures section of a markdown file, with the charts that are drawn."""
    there = os.path.relpath(RESULTS, path.resolve().parent)
    pictures = [(text, f"{there}/{drawn[name]}") for name, text in IN_README.items() if name in drawn]
    return sections.section(results, command(sizes), pictures, f"{there}/{sections.FIGURES}")


def command(sizes: Sizes) -> str:
    """Return what measures all of it."""
    return f"python bench/run.py{'' if sizes is FULL else f' --{sizes.name}'}"


def write(path: Path | None, results: dict[str, Content], sizes: Sizes, console: Console) -> None:
    """Draw the charts; write the file of all figures, and the section of a markdown file."""
    drawn = charts.draw(results)
    if path is None:
        return
    (RESULTS / sections.FIGURES).write_text(sections.everything(results, f"{command(sizes)} --figures {path.name}", drawn))
    sections.replace_between(path, section(path, results, drawn, sizes))
    console.print(f"figures written to {path.name} and {RESULTS.name}/{sections.FIGURES}")


def main() -> None:
    """Measure, show, write, draw."""
    parser = argparse.ArgumentParser(description="Run the benchmarks of jitslab.")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, below 2 minutes")
    parser.add_argument("--smoke", action="store_true", help="smallest sizes: only that everything runs")
    parser.add_argument("--only", nargs="+", choices=SUITES, default=SUITES, help="which suites")
    parser.add_argument("--traces", nargs="+", type=Path, metavar="FILE", help="traces to replay besides the packaged one")
    parser.add_argument("--figures", type=Path, help="markdown file whose figures section is written anew")
    parser.add_argument("--from-results", action="store_true", help="measure nothing: from the results that are there")
    chosen = parser.parse_args()
    sizes = SMOKE if chosen.smoke else QUICK if chosen.quick else FULL
    try:
        for path in chosen.traces or ():
            traces.load(str(path.resolve()))
    except (SlabError, OSError) as error:
        parser.error(f"--traces: {error}")
    if chosen.traces:
        os.environ["JITSLAB_TRACES"] = os.pathsep.join(str(path.resolve()) for path in chosen.traces)
    console, start = Console(), time.perf_counter()
    results: dict[str, Content] = {}
    for suite in () if chosen.from_results else chosen.only:
        begun = time.perf_counter()
        results[suite] = measured(suite, sizes, console)
        results[suite]["seconds"] = round(time.perf_counter() - begun)
        if sizes is not SMOKE:
            RESULTS.mkdir(exist_ok=True)
            path = RESULTS / f"{suite}{'' if sizes is FULL else '-' + sizes.name}.json"
            path.write_text(as_text(results[suite]))
    tabulate(figures.load(sizes.name) if chosen.from_results else results, console)
    if sizes is not SMOKE:
        write(chosen.figures, figures.load(sizes.name), sizes, console)
        console.print(f"{time.perf_counter() - start:.0f} s; written to {RESULTS.name}/ of {Path(__file__).parent.name}/")


if __name__ == "__main__":
    sys.exit(main())
