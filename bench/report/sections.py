"""
The markdown that holds the figures: the section of README, the page in short, and the file of all of them.

Above `figures`, `tails` and `reasons`, below `run`; nobody types a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import reasons, tails
from report.figures import (
    PEERS_HEAD,
    TITLES,
    Content,
    allocators,
    floors,
    groups,
    headlines,
    missed,
    number,
    ratios,
    shown,
    skipped,
    summary,
    wanted,
)

FIGURES = "FIGURES.md"
SUMMARY_TITLE = "How many times as fast as what you could use instead"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
UNKNOWN = "unknown"  # the key of what has no reason yet
NOTES = {
    "bulk": "For context, published and not measured here: [bulks of the Linux kernel](../README.md#published).",
}  # below the heading of a suite
SPREAD = ("min", "lower", "median", "upper")


def table(heads: str, lines: list[tuple[str, ...]]) -> list[str]:
    """Return a markdown table; heads are separated by bars, and ">" aligns right."""
    names = heads.split("|")
    align = ["--:" if name.startswith(">") else "---" for name in names]
    cells = [
        [name.lstrip("> ").strip() for name in names],
        align,
        *([cell.replace("|", "\\|") for cell in line] for line in lines),
    ]
    return [f"| {' | '.join(line)} |" for line in cells] + [""]


def about(results: dict[str, Content], describe: Callable[[dict[str, Any]], str]) -> str:
    """Return a sentence about the machine, or one about each if there were several."""
    by_text: dict[str, list[str]] = {}
    for suite, content in results.items():
        by_text.setdefault(describe(content["machine"]), []).append(suite)
    if len(by_text) == 1:
        return next(iter(by_text))
    return "; ".join(f"{text} ({', '.join(suites)})" for text, suites in by_text.items())


def briefly(machine: dict[str, Any]) -> str:
    """Return what README says of a machine."""
    versions = (f"{label} {machine[key]}" for key, label in (("python", "Python"), ("numba", "Numba"), ("numpy", "NumPy")))
    return ", ".join([machine["cpu"], f"{machine['cores']} cores", *versions])


def fully(machine: dict[str, Any]) -> str:
    """Return all that is known of a machine but for its load."""
    if "caches" not in machine:  # of an older run
        return briefly(machine)
    of = [f"{machine['memory_gib']:g} GiB", f"NUMA nodes: {machine['numa_nodes']}", f"huge pages: {machine['huge_pages']}"]
    system = [f"{machine['system']} {machine['kernel']}", machine["libc"], f"LLVM {machine['llvm']}"]
    return ", ".join([briefly(machine), *machine["caches"], *of, *system])


def peers_of(results: dict[str, Content]) -> list[str]:
    """Return a sentence about the C allocators that were measured, if there are any."""
    found = [f"{name} ({version})" if version else name for name, version in allocators(results).items()]
    return [f"C allocators: {', '.join(found)}.", ""] if found else []


def keys_of_missed(results: dict[str, Content]) -> str:
    """Return the reasons of what was missed, and how many figures have each, the most frequent first."""
    keys = [reasons.key_of(one.suite, one.operation, one.figure["figure"]) or UNKNOWN for one in missed(results)]
    return ", ".join(f"{key} ({n})" for key, n in Counter(keys).most_common())


def short(results: dict[str, Content], command: str, page: str) -> str:
    """Return the figures section of README: headlines, and a line for each group of peers; `page` has the others."""
    lines = [
        f"Measured by `{command}` on {about(results, briefly)}.",
        "",
        *table("what|> best|> median", headlines(results)),
        "How many times as fast (for memory: as small) as what you could use instead: the geometric mean of the operations, from"
        " the nearest peer to the farthest. Below 1 the other side is ahead.",
        "",
        *table("beside|> peers|> times as fast|> operations|> behind in", groups(ratios(results))),
        f"Every peer, what misses its target, and why: [{page}]({page}).",
    ]
    return "\n".join(lines) + "\n"


def section(results: dict[str, Content], command: str, picture: str, there: str) -> str:
    """Return the page of figures: headlines, summary, its picture, what was missed; `there` is the folder of bench."""
    found, lost = ratios(results), len(missed(results))
    judged = sum(
        figure["met"] is not None for content in results.values() for row in content["rows"] for figure in row["figures"]
    )
    lines = [
        f"Measured by `{command}` on {about(results, briefly)}.",
        "Ratios are of the best of interleaved rounds.",
        "",
        *table("what|> best|> median", headlines(results)),
        "How many times as fast (for memory: as small) as what you could use instead. *Typical* is the geometric mean of the"
        " operations; below 1 the other side is ahead:",
        "",
        *table("|".join(PEERS_HEAD[:2]) + "|> " + "|> ".join(PEERS_HEAD[2:]), summary(found)),
        *peers_of(results),
        f"{lost} of {judged} figures with a target miss it: [why, and what was tried]({there}/{reasons.PATH.parent.name}/"
        f"{reasons.PATH.name})" + (f"; by reason: {keys_of_missed(results)}." if lost else "."),
        f"All figures, with medians, spread, latency, memory and charts, are written to `{there}/results/{FIGURES}` by"
        " `python bench/run.py --from-results --report`.",
        "",
        f"![{SUMMARY_TITLE}]({picture})",
        "",
        "How many times as long as a floor, which does less work: it checks no handle, or finds nothing:",
        "",
        *table("suite|floor|> operations|> typical|> range", floors(found)),
    ]
    if names := skipped(results):
        lines += ["Not measured, because this machine does not have it: " + "; ".join(names) + ".", ""]
    return "\n".join(lines)


# --- The file of all figures ---


def everything(results: dict[str, Content], command: str, pictures: dict[str, str]) -> str:
    """Return the file of all figures: a suite a section, times and figures of every row."""
    lines = ["# Figures", "", f"Written by `{command}`; do not edit. Measured on {about(results, fully)}.", ""]
    lines += peers_of(results)
    lines += ["Times are best, median and quartiles of the rounds; figures are computed from the best, or by rounds.", ""]
    lines += [f"- [{TITLES.get(suite, suite)}](#{suite})" for suite in results] + [""]
    lines += why(results)
    for suite, content in results.items():
        lines += suite_of(suite, content, pictures)
    return "\n".join(lines)


def why(results: dict[str, Content]) -> list[str]:
    """Return what misses its target, each figure with the key of its reason, and below them the reasons."""
    keys = [reasons.key_of(one.suite, one.operation, one.figure["figure"]) or UNKNOWN for one in missed(results)]
    found = [
        (
            TITLES.get(one.suite, one.suite),
            one.operation,
            one.figure["figure"],
            shown(one.figure),
            wanted(one.figure),
            link(one.suite, one.operation, one.figure),
        )
        for one in missed(results)
    ]
    lines = ['## <a id="missed"></a>What misses its target', ""]
    lines += table("suite|operation|figure|> measured|> to reach|why", found)
    lines += ["### Why, and what was tried", ""] if keys else []
    for key in dict.fromkeys(keys):
        reason = reasons.REASONS.get(key)
        lines += [f'- <a id="why-{anchor(key)}"></a>**{key}**: {reason.why if reason else "not found yet."}']
        lines += [f"  - Tried: {tried}" for tried in reason.tried] if reason else []
    return [*lines, ""]


def anchor(key: str) -> str:
    """Return a key as a part of a link."""
    return key.replace(" ", "-")


def link(suite: str, operation: str, figure: dict[str, Any]) -> str:
    """Return a link to the reason of a figure that was missed."""
    key = reasons.key_of(suite, operation, figure["figure"]) or UNKNOWN
    return f"[{key}](#why-{anchor(key)})"


def suite_of(suite: str, content: Content, pictures: dict[str, str]) -> list[str]:
    """Return the section of a suite."""
    machine, title = content["machine"], TITLES.get(suite, suite)
    lines = [f'## <a id="{suite}"></a>{title}', ""]
    if "date" in machine:
        taken = f"{content['seconds']} s, " if "seconds" in content else ""
        lines += [f"{machine['date']}, {taken}load {machine['load_at_start']} at the start, governor {machine['governor']}.", ""]
    if "versions" in content:
        lines += [", ".join(f"{name}: {version}" for name, version in content["versions"].items()) + ".", ""]
    if suite in NOTES:
        lines += [NOTES[suite], ""]
    if suite in pictures:
        lines += [f"![{title}]({pictures[suite]})", ""]
    lines += of_tails(content)
    found = [
        (
            row["operation"],
            f["figure"],
            shown(f),
            number(f["of_rounds"]),
            quartiles(f),
            wanted(f),
            f"**missed**: {link(suite, row['operation'], f)}" if f["met"] is False else "",
        )
        for row in content["rows"]
        for f in row["figures"]
    ]
    if found:
        lines += table("operation|figure|> measured|> by rounds|> quartiles|> to reach| ", found)
    times = [
        (row["operation"], name, *(f"{of[key]:.4g}" if key in of else "" for key in SPREAD), row["unit"], str(of["rounds"]))
        for row in content["rows"]
        for name, of in row["contenders"].items()
    ]
    heads = "operation|contender|> best|> lower quartile|> median|> upper quartile|unit|> rounds"
    return lines + folded("times", table(heads, times))


def quartiles(figure: dict[str, Any]) -> str:
    """Return between what a figure was in the middle half of the rounds."""
    return f"{number(figure['lower'])} to {number(figure['upper'])}" if "lower" in figure else ""


def of_tails(content: Content) -> list[str]:
    """Return latency and memory of the stress loops: summed up, then of every loop."""
    if not (found := tails.summed(content)):
        return []
    of_latency, of_memory = "|> ".join(tails.SHARES), "|> ".join(tails.MEMORY)
    heads = f"beside|> threads|> loops|> {of_latency}|> {'|> '.join(tails.SUMMED)}"
    return [
        "Latency of a lap, how many times as short as beside it (geometric mean of the loops); memory of all loops together,"
        " MiB, ours / its:",
        "",
        *table(heads, found),
        *folded("latency of every loop, ns", table(f"operation|lap|side|> {of_latency}", tails.latencies(content))),
        *folded("memory of every loop, MiB", table(f"operation|side|> {of_memory}", tails.memories(content))),
    ]


def folded(name: str, lines: list[str]) -> list[str]:
    """Return lines that are shown when they are asked for; none if there are no lines below the head."""
    return [f"<details><summary>{name}</summary>", "", *lines, "</details>", ""] if len(lines) > 3 else []


def replace_between(path: Path, text: str) -> None:
    """Replace what stands between the markers of a markdown file."""
    before = path.read_text()
    if before.count(BEGIN) != 1 or before.count(END) != 1:
        raise SystemExit(f"{path.name} must have {BEGIN} and {END} once each")
    head, rest = before.split(BEGIN)
    path.write_text(f"{head}{BEGIN}\n{text}{END}{rest.split(END)[1]}")


def between(path: Path) -> str:
    """Return what stands between the markers."""
    return path.read_text().split(BEGIN + "\n")[1].split(END)[0]
