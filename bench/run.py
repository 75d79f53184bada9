"""
Run everything: ratios from interleaved rounds, beside the figures to reach.

    python bench/run.py                          all, below 20 minutes
    python bench/run.py --quick                  smaller sizes, below 2 minutes
    python bench/run.py --only alloc threads     some
    python bench/run.py --traces a.npz b.npz     and replay these traces, too
    python bench/run.py --figures README.md      and write them: in short into that file, the page FIGURES.md, the picture of all
    python bench/run.py --report                 and write bench/results/FIGURES.md: every figure, with a chart for each suite
    python bench/run.py --from-results --report  the same from the results that are there, without measuring

Writes bench/results/<suite>.json, or <suite>-quick.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jitslab import SlabError
from measure import FULL, QUICK, SMOKE, Sizes, SkippedError, measure
from peers import allocators, process, traces
from report import charts, figures, hardware, sections
from report.figures import RESULTS, TITLES, Content, number, shown, wanted

SUITES = (
    "alloc",
    "peers",
    "threads",
    "nodes",
    "python",
    "numba",
    "guard",
    "access",
    "links",
    "start",
    "replay",
    "memory",
    "bulk",
    "containers",
    "kernels",
    "pool",
)
BESIDE_MALLOC = ("peers", "replay", "kernels")  # suites that are measured in a process for each C allocator
PAGE = Path(__file__).resolve().parent / "FIGURES.md"  # what README says in short


def measured(suite: str, sizes: Sizes, console: Console) -> Content:
    """Measure a suite, showing every row as it is there; returns its results."""
    content: Content = {"suite": suite, "sizes": sizes.name, "machine": hardware.describe(), "rows": [], "skipped": {}}
    if suite in (*BESIDE_MALLOC, charts.MEMORY):
        content["allocators"] = allocators.versions()
        traces.paths(sizes.batch, sizes.least > 2)  # got here, for all processes that this one starts
    if suite in BESIDE_MALLOC:
        for allocator in allocators.ALLOCATORS:
            try:
                rows = process.run_with(allocator, sizes.name, f"bench_{suite}")
            except SkippedError as why:
                console.print(f"{allocator} skipped: {why}")
                content["skipped"][allocator] = str(why)
                continue
            for row in rows:
                content["rows"].append(row)
                show(row, console)
    module = importlib.import_module(f"bench_{suite}")
    for operation, row in module.table(sizes).items() if hasattr(module, "table") else ():
        content["rows"].append(measure(operation, row, sizes).as_json())
        show(content["rows"][-1], console)
    if hasattr(module, "versions"):
        content["versions"] = module.versions()
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


def as_text(value: Any, indent: str = "\n") -> str:
    """Return results as JSON: what holds no lists and dicts on one line, numbers to eight digits."""
    if isinstance(value, float):
        return json.dumps(float(f"{value:.8g}"))
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    texts = [as_text(one, indent + " ") for one in inner]
    if isinstance(value, dict):
        texts = [f"{json.dumps(key)}: {text}" for key, text in zip(value, texts, strict=True)]
    elif not isinstance(value, list):
        return json.dumps(value)
    is_leaf = not any(isinstance(one, dict | list) for one in inner)
    text = ", ".join(texts) if is_leaf else f"{indent} " + f",{indent} ".join(texts) + indent
    return f"{{{text}}}" if isinstance(value, dict) else f"[{text}]"


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


def short(path: Path, results: dict[str, Content], sizes: Sizes) -> str:
    """Return the figures section of a markdown file, which names the page of figures."""
    return sections.short(results, command(sizes), os.path.relpath(PAGE, path.resolve().parent))


def section(path: Path, results: dict[str, Content], sizes: Sizes) -> str:
    """Return the section of the page of figures."""
    there = os.path.relpath(RESULTS.parent, path.resolve().parent)
    return sections.section(results, command(sizes), f"{there}/{RESULTS.name}/{charts.SUMMARY}.svg", there)


def command(sizes: Sizes) -> str:
    """Return what measures all of it."""
    return f"python bench/run.py{'' if sizes is FULL else f' --{sizes.name}'}"


def write(path: Path | None, is_all: bool, results: dict[str, Content], sizes: Sizes, console: Console) -> None:
    """Write the section of a markdown file, the page of figures, and its picture; and all figures, with all charts."""
    drawn = charts.draw(results, is_all)
    if is_all:
        (RESULTS / sections.FIGURES).write_text(sections.everything(results, f"{command(sizes)} --report", drawn))
        console.print(f"all figures written to {RESULTS.name}/{sections.FIGURES}")
    if path is not None:
        sections.replace_between(path, short(path, results, sizes))
        sections.replace_between(PAGE, section(PAGE, results, sizes))
        console.print(f"figures written to {path.name} and {PAGE.name}")


def main() -> None:
    """Measure, show, write, draw."""
    parser = argparse.ArgumentParser(description="Run the benchmarks of jitslab.")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, below 2 minutes")
    parser.add_argument("--smoke", action="store_true", help="smallest sizes: only that everything runs")
    parser.add_argument("--only", nargs="+", choices=SUITES, default=SUITES, help="which suites")
    parser.add_argument("--traces", nargs="+", type=Path, metavar="FILE", help="traces to replay besides the packaged one")
    parser.add_argument("--figures", type=Path, help="markdown file whose figures section is written anew, with FIGURES.md")
    parser.add_argument("--report", action="store_true", help="write all figures, with their charts")
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
            path.write_text(as_text(results[suite]) + "\n")
    tabulate(figures.load(sizes.name) if chosen.from_results else results, console)
    if sizes is not SMOKE:
        if chosen.figures or chosen.report:
            write(chosen.figures, chosen.report, figures.load(sizes.name), sizes, console)
        console.print(f"{time.perf_counter() - start:.0f} s; written to {RESULTS.name}/ of {Path(__file__).parent.name}/")


if __name__ == "__main__":
    sys.exit(main())
