"""
Run everything: ratios from interleaved rounds, beside the figures to reach.

    python bench/run.py                          all, below 15 minutes
    python bench/run.py --quick                  smaller sizes, below 2 minutes
    python bench/run.py --only alloc threads     some
    python bench/run.py --figures README.md      and write the figures between the markers of that file

Writes bench/results/<suite>.json, or <suite>-quick.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

import numba
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import bench_kernels
import jitslab
import peer
from measure import FULL, QUICK, SMOKE, Sizes, SkippedError, measure

SUITES = ("alloc", "peers", "threads", "nodes", "python", "guard", "access", "start", "replay", "sizes", "kernels")
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def machine() -> dict[str, Any]:
    """Describe the machine, without naming it."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.+)", text)
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numba": numba.__version__,
        "numpy": np.__version__,
        "jitslab": jitslab.__version__,
    }


def rows_of(suite: str, sizes: Sizes, console: Console) -> list[dict[str, Any]]:
    """Measure a suite; shows every row as it is there."""
    found: list[dict[str, Any]] = []
    if suite in ("peers", "kernels"):
        script = peer if suite == "peers" else bench_kernels
        for allocator in script.ALLOCATORS:
            try:
                rows = peer.run_with(allocator, sizes.name, str(script.__file__))
            except SkippedError as why:
                console.print(f"{allocator} skipped: {why}")
                continue
            for row in rows:
                named = json.loads(json.dumps(row).replace("malloc /", f"{allocator} /").replace('"malloc"', f'"{allocator}"'))
                found.append(named | {"operation": f"{row['operation']}, beside {allocator}"})
                show(found[-1], console)
        return found
    table = importlib.import_module(f"bench_{suite}").table(sizes)
    for operation, row in table.items():
        found.append(measure(operation, row, sizes).as_json())
        show(found[-1], console)
    return found


def show(row: dict[str, Any], console: Console) -> None:
    """Print a row: its times, then its figures."""
    times = ", ".join(f"{name} {found['min']:.4g} ({found['median']:.4g})" for name, found in row["contenders"].items())
    console.print(f"[bold]{row['operation']}[/]: {escape(times)} {row['unit']}, best (median)")
    for name, why in row["skipped"].items():
        console.print(f"  {name} skipped: {why}")
    for figure in row["figures"]:
        mark = {True: "[green]reached[/]", False: "[red]missed[/]", None: ""}[figure["met"]]
        console.print(
            f"  {escape(figure['figure'])}: {shown(figure)} (by rounds {figure['of_rounds']:.2f}); {wanted(figure)} {mark}"
        )
    show_more(row, console)


def show_more(row: dict[str, Any], console: Console) -> None:
    """Print what a row of the stress loops has beside its times."""
    for text, unit in (("latency", "ns"), ("memory", "MiB")):
        found = row.get(text)
        if not found:
            continue
        sides = {side: values for side, values in found.items() if isinstance(values, dict)}
        parts = [f"{side} " + ", ".join(f"{name} {n:.4g}" for name, n in values.items()) for side, values in sides.items()]
        console.print(f"  {text}{' of ' + found['lap'] if 'lap' in found else ''}, {unit}: {escape('; '.join(parts))}")


def shown(figure: dict[str, Any]) -> str:
    """Return what was measured, to two digits behind the point or four in all."""
    value = figure["measured"]
    return (
        f"{value:.2f}{figure['unit'] and ' '}{figure['unit']}" if abs(value) < 100 else f"{value:,.0f} {figure['unit']}".strip()
    )


def wanted(figure: dict[str, Any]) -> str:
    """Return what is to be reached."""
    return "shown only" if figure["target"] is None else f"{figure['sense']} {figure['target']:,g}"


def summary(results: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str, str, str]]:
    """Return (operation, figure, measured, target) of all figures."""
    return [
        (row["operation"], figure["figure"], shown(figure) + ("" if figure["met"] is not False else " (missed)"), wanted(figure))
        for rows in results.values()
        for row in rows
        for figure in row["figures"]
    ]


def write_figures(path: Path, results: dict[str, list[dict[str, Any]]], name: str) -> None:
    """Replace what stands between the markers of a markdown file."""
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{path.name} must have {BEGIN} and {END} once each")
    about = machine()
    lines = [
        f"Measured by `python bench/run.py` ({name} sizes) on {about['cpu']}, {about['cores']} cores, Python {about['python']},"
        f" Numba {about['numba']}, NumPy {about['numpy']}; ratios of the best of interleaved rounds.",
        "",
        "| operation | figure | measured | to reach |",
        "|---|---|---|---|",
        *(f"| {' | '.join(line)} |" for line in summary(results)),
    ]
    head, rest = text.split(BEGIN)
    path.write_text(head + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])


def main() -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(description="Run the benchmarks of jitslab.")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, below 2 minutes")
    parser.add_argument("--smoke", action="store_true", help="smallest sizes: only that everything runs")
    parser.add_argument("--only", nargs="+", choices=SUITES, default=SUITES, help="which suites")
    parser.add_argument("--figures", type=Path, help="markdown file whose figures section is written anew")
    chosen = parser.parse_args()
    sizes = SMOKE if chosen.smoke else QUICK if chosen.quick else FULL
    console, start = Console(), time.perf_counter()
    results: dict[str, list[dict[str, Any]]] = {}
    for suite in chosen.only:
        results[suite] = rows_of(suite, sizes, console)
        if sizes is SMOKE:
            continue
        RESULTS.mkdir(exist_ok=True)
        content = {"suite": suite, "sizes": sizes.name, "machine": machine(), "rows": results[suite]}
        (RESULTS / f"{suite}{'' if sizes is FULL else '-' + sizes.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    table = Table("operation", "figure", "measured", "to reach", title=f"Figures ({sizes.name} sizes)")
    for line in summary(results):
        table.add_row(*map(escape, line), style="red" if "(missed)" in line[2] else None)
    console.print(table)
    console.print(f"{time.perf_counter() - start:.0f} s; written to {RESULTS.name}/ of {Path(__file__).parent.name}/")
    if chosen.figures:
        write_figures(chosen.figures, results, sizes.name)


if __name__ == "__main__":
    sys.exit(main())
