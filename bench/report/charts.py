"""
The results as pictures: all ratios in one, which stands in git; and on demand ratios of every suite, and memory over time.

Above `figures`.  In every chart of ratios the line at 1 is the peer: right of it the library is ahead.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from report.figures import RESULTS, TITLES, Content, Ratio, by_peer, number, ratios, typical

NO_MATPLOTLIB = "charts are drawn with matplotlib, which is not installed: pip install matplotlib"
QUICK_END = "-quick"
SUMMARY, MEMORY, START = "summary", "memory", "start"
# Colours that stay apart to every kind of eye (Okabe and Ito); the same peer has the same one everywhere.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#999999",
)  # fmt: skip
COLOURS = {
    "jitslab": BLUE,
    "jitslab, tuned": "#003A5D",
    "mimalloc 2": ORANGE,
    "mimalloc 3": "#8B5A2B",
    "jemalloc": GREEN,
    "tcmalloc": PURPLE,
    "snmalloc": "#B8A200",
    "glibc": SKY,
    "bare stack": GREY,
    "generations": "#666666",
}
CYCLE = (ORANGE, GREEN, PURPLE, SKY, YELLOW, BLUE, "#8B5A2B", "#44AA99")
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small files
    "svg.hashsalt": "jitslab",  # the same results give the same file
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "legend.frameon": False,
    "path.simplify_threshold": 1.0,
}
BESIDE: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "size": 7}  # a number at its bar
BAR, GAP = 0.17, 0.28  # inches: of a bar, between two operations


def pyplot() -> Any:
    """Return matplotlib's pyplot, drawing without a display; None, said by name, if it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        sys.stderr.write(f"{NO_MATPLOTLIB}\n")
        return None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update(STYLE)
    return plt


def save(figure: Any, name: str, folder: Path) -> str:
    """Write a picture as SVG, and one of full sizes as PNG, too; returns the name of the SVG."""
    path = folder / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight", facecolor="white")
    path.write_text(slim(path.read_text()))
    if not name.endswith(QUICK_END):
        figure.savefig(path.with_suffix(".png"), dpi=110, metadata={"Software": None}, bbox_inches="tight", facecolor="white")
    return path.name


def slim(svg: str) -> str:
    """Return an SVG half as long: numbers to a tenth, the family of fonts once, no comments and empty groups."""
    svg = re.sub(r"<!--.*?-->|^ +| transform=\"rotate\(-0 [^\"]*\"| font-family: [^;]*;", "", svg, flags=re.DOTALL | re.MULTILINE)
    svg = re.sub(r"\d+\.\d{2,}", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), svg)
    svg = re.sub(r"<g id=\"\w+\"/>\n", "", svg)
    svg = re.sub(r"<g id=\"(text|line2d|patch|[xy]tick)_\d+\">", "<g>", svg)
    svg = svg.replace(
        '<style type="text/css">*{', "<style type=\"text/css\">*{font-family: 'DejaVu Sans', Arial, sans-serif; ", 1
    )
    return re.sub(r"\s*\n\s*", "\n", svg)


def colours_of(peers: list[str]) -> dict[str, str]:
    """Return a colour for every peer."""
    rest = [peer for peer in peers if peer not in COLOURS]
    return COLOURS | {peer: CYCLE[i % len(CYCLE)] for i, peer in enumerate(rest)}


def ratio_axis(axes: Any, low: float, high: float) -> None:
    """Make x a logarithmic axis of ratios, with the line at 1."""
    low, high = min(low * 0.8, 0.8), max(high * 1.35, 1.3)
    steps = [step * 10.0**power for power in range(-4, 6) for step in (1, 2, 5)]
    ticks = [step for step in steps if low <= step <= high]
    if len(ticks) > 9:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.axvspan(low, 1, color="#F4F4F4", zorder=0, lw=0)
    axes.axvline(1, color="black", lw=1, zorder=3)
    axes.grid(axis="x", color="#DDDDDD", lw=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def foot(machine: dict[str, Any]) -> str:
    """Return the line below a chart."""
    return f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, Numba {machine['numba']}"


# --- Charts ---


def draw_ratios(plt: Any, suite: str, content: Content, found: list[Ratio]) -> Any:
    """Draw the ratios of a suite, operation by operation: bars of the best times, whiskers to the medians of the rounds."""
    operations: dict[str, list[Ratio]] = {}
    for ratio in found:
        operations.setdefault(ratio.operation, []).append(ratio)
    colours = colours_of(list(dict.fromkeys(ratio.peer for ratio in found)))
    inches = len(found) * BAR + len(operations) * GAP
    figure, axes = plt.subplots(figsize=(7.5, inches + 0.9))
    y, labels = 0.0, []
    for operation, of in operations.items():
        labels.append((y + GAP * 0.45, operation))
        y += GAP
        for ratio in of:
            colour = "#BBBBBB" if ratio.is_floor else colours[ratio.peer]
            missed = ratio.met is False
            axes.barh(
                y, ratio.value - 1, BAR * 0.82, left=1, color=colour, hatch="////" if missed else None, edgecolor="white", lw=0
            )
            axes.plot([ratio.best, ratio.rounds], [y, y], color="black", lw=0.8, zorder=4)
            axes.plot([ratio.rounds], [y], "|", color="black", ms=5, mew=0.8, zorder=4)
            if ratio.target is not None:
                axes.plot([ratio.target], [y], ">" if missed else ".", color=VERMILION if missed else GREEN, ms=4, zorder=5)
            end = max(ratio.value, ratio.rounds, ratio.best, 1.0, ratio.target or 0)
            text = f"{number(ratio.value)}{'  missed' if missed else ''}"
            axes.annotate(
                text, (end, y), (5, 0), textcoords="offset points", va="center", size=7, color=VERMILION if missed else "black"
            )
            name = ratio.ours if ratio.ours not in ("cache", "jitslab") else ""
            labels.append((y, f"{name} beside {ratio.peer}" if name else ratio.peer))
            y += BAR
    axes.set_ylim(y + 0.05, -0.05)
    values = [value for ratio in found for value in (ratio.value, ratio.rounds, ratio.target or 1)]
    ratio_axis(axes, min(values), max(values))
    heads = set(operations)
    axes.set_yticks([at for at, _ in labels], [text for _, text in labels])
    for label, (_, text) in zip(axes.get_yticklabels(), labels, strict=True):
        label.set(size=8 if text in heads else 7, weight="bold" if text in heads else "normal")
    axes.set_title(TITLES.get(suite, suite), loc="left", weight="bold")
    axes.set_xlabel(
        "times as fast as the peer (line at 1); whisker: median of the rounds; dot or arrow: to reach; grey: a floor, which does"
        f" less work\n{foot(content['machine'])}",
        size=7,
    )
    return figure


def draw_summary(plt: Any, results: dict[str, Content], found: list[Ratio]) -> Any:
    """Draw every peer as a line of dots, an operation each, and their geometric mean."""
    table = by_peer(found)
    groups = list(dict.fromkeys(group for group, _ in table))
    figure, axes = plt.subplots(figsize=(8, 0.24 * (len(table) + len(groups)) + 0.9))
    y, labels = 0, []
    for group in groups:
        labels.append((y, group))
        y += 1
        for (of_group, peer), of in table.items():
            if of_group != group:
                continue
            values = [ratio.value for ratio in of]
            ahead, behind = [v for v in values if v >= 1], [v for v in values if v < 1]
            axes.plot([min(values), max(values)], [y, y], color="#CCCCCC", lw=2, zorder=1, solid_capstyle="round")
            axes.plot(ahead, [y] * len(ahead), "o", color=BLUE, ms=4, alpha=0.55, mew=0, zorder=4)
            axes.plot(behind, [y] * len(behind), "x", color=VERMILION, ms=4, mew=1, zorder=4)
            mean = typical(values)
            axes.plot([mean], [y], "D", color="black", ms=4.5, zorder=5)
            axes.annotate(number(mean), (max(values), y), **BESIDE)
            labels.append((y, f"{peer}  ({len(of)})"))
            y += 1
    axes.set_ylim(y - 0.4, -0.7)
    values = [ratio.value for of in table.values() for ratio in of]
    ratio_axis(axes, min(values), max(values))
    axes.set_yticks([at for at, _ in labels], [text for _, text in labels])
    for label, (_, text) in zip(axes.get_yticklabels(), labels, strict=True):
        label.set(size=8, weight="bold" if text in groups else "normal")
    axes.set_title("How many times as fast as what you could use instead", loc="left", weight="bold")
    machine = next(iter(results.values()))["machine"]
    axes.set_xlabel(f"line at 1: as fast; dot: an operation, cross: behind; diamond: geometric mean\n{foot(machine)}", size=8)
    return figure


def draw_memory(plt: Any, content: Content) -> Any:
    """Draw what the events of every trace took of memory, sampled, for each allocator; below them what was live."""
    curves = content["curves"]
    colours = colours_of(list(dict.fromkeys(name for curve in curves for name in curve["memory"])))
    columns = 2 if len(curves) > 1 else 1
    rows = -(-len(curves) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.3 * columns, 2.9 * rows), squeeze=False)
    for axes in grid.flat[len(curves) :]:
        axes.axis("off")
    for axes, curve in zip(grid.flat, curves, strict=False):
        events = [n / 1000 for n in curve["events"]]
        axes.fill_between(events, [n / 1024 for n in curve["live"]], color="#E4E4E4", lw=0, label="bytes live")
        end = events[-1] * 1.04
        for name, memory in curve["memory"].items():
            colour, is_ours = colours[name], name.startswith("jitslab")
            style = {"color": colour, "lw": 2 if is_ours else 1.1, "zorder": 4 if is_ours else 3}
            axes.plot(events, [n / 1024 for n in memory], label=name, **style)
            freed = curve["freed"][name] / 1024
            axes.plot([end], [freed], "o", color=colour, ms=4 if is_ours else 3, zorder=4, clip_on=False)
        axes.set_title(curve["trace"], size=9, loc="left")
        axes.set_xlim(0, end)
        axes.set_ylim(0)
        axes.grid(color="#E8E8E8", lw=0.6)
        axes.set_xlabel("thousand events; dots at the end: all is freed", size=7)
        axes.set_ylabel("MiB", size=8)
        axes.tick_params(labelsize=7)
    named = {label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="lower center", ncols=len(named), fontsize=8, bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    return figure


def draw_start(plt: Any, content: Content) -> Any:
    """Draw the times of what is paid once: bars of the best, whiskers to the medians."""
    rows = [row for row in content["rows"] if row["unit"] in ("s", "ms") and row["contenders"]]
    heights = [len(row["contenders"]) * BAR + 0.75 for row in rows]
    figure, grid = plt.subplots(len(rows), 1, figsize=(7, sum(heights)), squeeze=False, height_ratios=heights)
    for axes, row in zip(grid.flat, rows, strict=True):
        names = list(row["contenders"])
        for y, name in enumerate(names):
            of = row["contenders"][name]
            axes.barh(y, of["min"], 0.75, color=GREY if name.endswith(("numba", "numpy")) else BLUE)
            axes.plot([of["min"], of["median"]], [y, y], color="black", lw=0.8)
            axes.plot([of["median"]], [y], "|", color="black", ms=5)
            axes.annotate(f"{of['min']:.3g}", (max(of["min"], of["median"]), y), **BESIDE)
        axes.set_yticks(range(len(names)), names, size=8)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_title(f"{row['operation']}, {row['unit']}", loc="left", size=9, weight="bold")
        axes.grid(axis="x", color="#DDDDDD", lw=0.6)
        axes.set_axisbelow(True)
    figure.tight_layout()
    return figure


# --- All of them ---


def draw(results: dict[str, Content], is_all: bool, folder: Path = RESULTS) -> dict[str, str]:
    """Draw the summary, or all charts that the results are enough for; returns {suite: SVG}, none without matplotlib."""
    plt = pyplot()
    if plt is None:
        return {}
    end = "" if all(content["sizes"] == "full" for content in results.values()) else QUICK_END
    found, drawn = ratios(results), {}

    def keep(name: str, figure: Any) -> None:
        drawn[name] = save(figure, name + end, folder)
        plt.close(figure)

    if any(not ratio.is_floor for ratio in found):
        keep(SUMMARY, draw_summary(plt, results, found))
    for suite, content in results.items() if is_all else ():
        of = [ratio for ratio in found if ratio.suite == suite]
        if suite == MEMORY and content.get("curves"):
            keep(suite, draw_memory(plt, content))
        elif suite == START and content["rows"]:
            keep(suite, draw_start(plt, content))
        elif of:
            keep(suite, draw_ratios(plt, suite, content, of))
    return drawn
