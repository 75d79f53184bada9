"""The benchmarks' figures and charts come from the results alone; README holds what they say."""

import importlib.util
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))  # files of bench import each other by name

import bench_peers  # noqa: E402  # found there only
import measure  # noqa: E402
from peers import allocators  # noqa: E402
from report import figures, reasons, sections, tails  # noqa: E402

pytestmark = pytest.mark.skipif(not figures.RESULTS.exists(), reason="a package without its benchmarks")

MACHINE = {"cpu": "a CPU", "cores": 2, "python": "3.11", "numba": "0.6", "numpy": "2.0"}


def figure(text, measured, sense="at least", target=1.0, unit=""):
    """Return a figure as a results file has it."""
    met = None if target is None else measured >= target if sense == "at least" else measured <= target
    of = {"of_best": measured, "of_rounds": measured, "unit": unit, "sense": sense, "target": target, "met": met}
    return {"figure": text, "measured": measured} | of


def row(operation, *found, unit="ns"):
    """Return a row as a results file has it."""
    times = {"min": 1.0, "lower": 1.5, "median": 2.0, "upper": 2.5, "max": 9.0, "rounds": 5}
    return {"operation": operation, "unit": unit, "contenders": {"cache": times}, "figures": list(found), "skipped": {}}


def results(*rows, suite="peers", **more):
    """Return the results of one suite."""
    return {suite: {"suite": suite, "sizes": "full", "machine": MACHINE, "rows": list(rows), **more}}


def test_a_ratio_above_one_is_ahead_whichever_way_it_was_written():
    """What a peer takes over ours, and ours over a peer's, are one direction."""
    found = figures.ratios(results(row("a", figure("malloc / cache", 2.0), figure("cache / pool", 0.5, "at most"))))

    assert [("malloc", 2.0), ("pool", 2.0)] == [(ratio.peer, ratio.value) for ratio in found]
    assert [1.0, 1.0] == [ratio.target for ratio in found]


@pytest.mark.parametrize(
    ("text", "more"),
    [("open", {}), ("a / b", {"unit": "s"}), ("scaling, a / b", {}), ("a / b / c", {}), ("glibc / cache", {"measured": 0.0})],
)
def test_what_is_no_ratio_is_left_out(text, more):
    """Seconds, shares and what cannot be divided have no place on an axis of ratios."""
    assert [] == figures.ratios(results(row("a", figure(text, **{"measured": 2.0} | more))))


def test_a_floor_is_known_by_its_target():
    """What may be so many times as slow as something is compared with a floor, and is not in the summary."""
    found = figures.ratios(
        results(row("a", figure("cache / bare stack", 1.4, "at most", 1.5), figure("new() / x", 2.0, "at most", None)))
    )

    assert [True, True] == [ratio.is_floor for ratio in found]
    assert [] == figures.summary(found)


def test_the_summary_counts_where_a_peer_is_ahead():
    """Typical is the geometric mean; losses are counted."""
    both = results(
        row("a, beside mimalloc", figure("mimalloc / cache", 4.0)), row("b, beside mimalloc", figure("mimalloc / cache", 0.25))
    )

    assert [("C allocators, called from compiled code", "mimalloc", "2", "1.00", "0.25 to 4.00", "1")] == figures.summary(
        figures.ratios(both)
    )


def test_an_operation_counts_once_in_a_mean():
    """A second way to do it has its own figure, but no second vote."""
    found = figures.ratios(results(row("a", figure("malloc / cache", 2.0), figure("malloc / new()", 8.0))))

    assert [("malloc", "1", "2.00")] == [line[1:4] for line in figures.summary(found)]


def test_everything_that_misses_its_target_is_listed():
    """A loss is said as plainly as a win, and what a machine lacks by name."""
    content = results(row("a", figure("glibc / cache", 0.5)), skipped={"jemalloc": "not installed: apt install libjemalloc2"})
    text = sections.everything(content, "run", {})

    assert "| C allocators | a | glibc / cache | 0.50 | at least 1 | [unknown](#why-unknown) |" in text
    assert "jemalloc: not installed: apt install libjemalloc2" in sections.section(content, "run", "summary.svg", "bench")
    assert "1 of 1 figures with a target miss it" in sections.section(content, "run", "summary.svg", "bench")


def test_a_miss_has_its_reason_beside_it_and_what_was_tried_below(monkeypatch):
    """The first line that a figure matches names its reason; README counts the figures of each."""
    monkeypatch.setattr(reasons, "ROWS", (("peers", "a*", "glibc / *", "two words"), ("peers", "*", "*", "other")))
    monkeypatch.setattr(reasons, "REASONS", {"two words": reasons.Reason("it is slow.", ("this: 5 %.", "that: nothing."))})
    content = results(row("ab", figure("glibc / cache", 0.5)), row("ab", figure("glibc / cache", 2.0)))
    text = sections.everything(content, "run", {})

    assert "| glibc / cache | 0.50 | at least 1 | [two words](#why-two-words) |" in text
    assert "| ab | glibc / cache | 0.50 | 0.50 |  | at least 1 | **missed**: [two words](#why-two-words) |" in text
    assert '<a id="why-two-words"></a>**two words**: it is slow.\n  - Tried: this: 5 %.\n  - Tried: that: nothing.' in text
    assert (
        "1 of 2 figures with a target miss it: [why, and what was tried](bench/report/reasons.json); by reason: two words (1)."
        in (sections.section(content, "run", "summary.svg", "bench"))
    )


def test_every_miss_has_a_reason():
    """Ahead in every row, or the row says why not."""
    lost = figures.missed(figures.load())

    assert [] == [one for one in lost if reasons.key_of(one.suite, one.operation, one.figure["figure"]) is None]


def test_every_reason_is_of_a_row_and_tells_of_two_attempts():
    """A reason whose row is gone goes, too; a row of the C allocators may be out of the results until they are measured anew."""
    found = {(suite, row["operation"]) for suite, content in figures.load().items() for row in content["rows"]}
    found |= {
        ("peers", f"{row}, beside {one}") for row in bench_peers.beside_malloc(measure.FULL) for one in allocators.ALLOCATORS
    }

    assert [] == [
        line for line in reasons.ROWS if not any(suite == line[0] and fnmatchcase(name, line[1]) for suite, name in found)
    ]
    assert {key for *_, key in reasons.ROWS} == set(reasons.REASONS)
    assert [] == [key for key, reason in reasons.REASONS.items() if len(set(reason.tried)) < 2]


def loop(operation, ours, its):
    """Return a row of a stress loop: latencies of its laps, and memory at all times."""
    sides = {"jitslab": ours, "glibc": its}
    latency = {"lap": "64 turns"} | {side: dict.fromkeys(tails.SHARES, ns) for side, (ns, _) in sides.items()}
    memory = {side: dict.fromkeys(tails.MEMORY, mib) for side, (_, mib) in sides.items()}
    return row(operation, figure("glibc / jitslab", 2.0)) | {"latency": latency, "memory": memory}


def test_latency_and_memory_of_the_stress_loops_are_shown_and_summed_up():
    """Latencies by their geometric mean, below 1 in bold; memory by its sum."""
    content = results(
        loop("a, 1 thread, beside glibc", (10, 1), (20, 4)),
        loop("b, 1 thread, beside glibc", (10, 1), (80, 1)),
        loop("b, 2 threads, beside glibc", (10, 3), (5, 2)),
        suite="kernels",
    )
    text = sections.everything(content, "run", {})

    assert "| glibc | 1 | 2 | 4.00 | 4.00 | 4.00 | 4.00 | 2 / 5 | 2 / 5 | 2 / 5 |" in text
    assert "| glibc | 2 | 1 | **0.50** | **0.50** | **0.50** | **0.50** | 3 / 2 | 3 / 2 | 3 / 2 |" in text
    assert "| b, 2 threads, beside glibc | 64 turns | jitslab | 10 | 10 | 10 | 10 |" in text
    assert "| a, 1 thread, beside glibc | glibc | 4.00 | 4.00 | 4.00 | 4.00 |" in text


def test_a_mean_of_rows_is_not_counted_with_them():
    """It is a row without contenders."""
    mean = row("mean, beside glibc", figure("glibc / cache", 3.0)) | {"contenders": {}}

    assert ["1"] == [line[2] for line in figures.summary(figures.ratios(results(row("a", figure("glibc / cache", 3.0)), mean)))]


def test_versions_of_allocators_and_quartiles_are_shown():
    """What was measured, and how much it scattered."""
    content = results(
        row("a", figure("mimalloc 3 / cache", 2.0) | {"lower": 1.8, "upper": 2.25}),
        allocators={"mimalloc 3": "3.4.3", "snmalloc": ""},
        seconds=17,
    )

    assert "C allocators: mimalloc 3 (3.4.3), snmalloc." in sections.everything(content, "run", {})
    assert "| a | mimalloc 3 / cache | 2.00 | 2.00 | 1.80 to 2.25 | at least 1 |" in sections.everything(content, "run", {})


def test_only_what_is_between_the_markers_is_replaced(tmp_path):
    """The rest of a file stays; a file without markers is refused."""
    path = tmp_path / "a.md"
    path.write_text(f"before\n{sections.BEGIN}\nold\n{sections.END}\nafter\n")
    sections.replace_between(path, "new\n")

    assert f"before\n{sections.BEGIN}\nnew\n{sections.END}\nafter\n" == path.read_text()
    assert "new\n" == sections.between(path)
    path.write_text("nothing")
    with pytest.raises(SystemExit, match="once each"):
        sections.replace_between(path, "new")


@pytest.fixture(scope="module")
def run():
    """The program that measures and writes; tests/vm has a run.py, too."""
    pytest.importorskip("rich")
    spec = importlib.util.spec_from_file_location("bench_run", ROOT / "bench" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_and_its_page_hold_what_the_results_say(run):
    """Nobody types a number: `python bench/run.py --from-results --figures README.md` would change nothing."""
    path = ROOT / "README.md"

    assert run.short(path, figures.load(), run.FULL) == sections.between(path)
    assert run.section(run.PAGE, figures.load(), run.FULL) == sections.between(run.PAGE)
    assert all((ROOT / "bench" / name).exists() for name in ("results/summary.svg", "report/reasons.json"))


def test_results_are_written_a_line_a_figure_and_read_back(run):
    """What holds no lists and dicts stands on one line; a file that is read is written the same."""
    value = {"a": [{"x": 1 / 3, "s": "b[0] {c}"}, {}], "n": [1, 2], "none": None, "is": True}
    text = '{\n "a": [\n  {"x": 0.33333333, "s": "b[0] {c}"},\n  {}\n ],\n "n": [1, 2],\n "none": null,\n "is": true\n}'

    assert text == run.as_text(value)
    for suite, content in figures.load().items():
        assert (figures.RESULTS / f"{suite}.json").read_text() == run.as_text(content) + "\n"


def test_charts_are_small_and_the_same_for_the_same_results(tmp_path):
    """SVG with text as text, and PNG; what is missed is marked."""
    pytest.importorskip("matplotlib")
    charts = pytest.importorskip("report.charts")
    curve = {"trace": "t", "events": [1, 2], "live": [3, 7], "memory": {"jitslab": [4, 8]}, "freed": {"jitslab": 4}}
    content = results(row("a", figure("mimalloc / cache", 0.5), figure("cache / bare stack", 1.4, "at most", 1.5)))
    content |= results(row("peak", figure("jitslab / glibc", 0.9, "at most"), unit="MiB"), suite="memory", curves=[curve])
    content |= results(row("import", unit="s"), suite="start")
    drawn = charts.draw(content, True, tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in drawn.values()}
    charts.draw(content, True, tmp_path)

    assert {"summary", "peers", "memory", "start"} == set(drawn)
    assert first == {name: (tmp_path / name).read_bytes() for name in drawn.values()}
    assert all(len(svg) < 100_000 and (tmp_path / name).with_suffix(".png").exists() for name, svg in first.items())
    assert b"missed" in first["peers.svg"]
    assert {"summary": "summary.svg"} == charts.draw(content, False, tmp_path)


def test_without_matplotlib_nothing_fails(tmp_path, monkeypatch, capsys):
    """It is said by name, with the command that installs it."""
    charts = pytest.importorskip("report.charts")
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert {} == charts.draw(results(row("a", figure("mimalloc / cache", 0.5))), True, tmp_path)
    assert "pip install matplotlib" in capsys.readouterr().err
