"""The benchmarks' figures and charts come from the results alone; README holds what they say."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))  # files of bench import each other by name

import figures  # noqa: E402  # found there only

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


def test_everything_that_misses_its_target_is_listed():
    """A loss is said as plainly as a win, and what a machine lacks by name."""
    content = results(row("a", figure("glibc / cache", 0.5)), skipped={"jemalloc": "not installed: apt install libjemalloc2"})
    text = figures.everything(content, "run", {})

    assert "| C allocators | a | glibc / cache | 0.50 | at least 1 |" in text
    assert "jemalloc: not installed: apt install libjemalloc2" in figures.section(content, "run", [], "FIGURES.md")
    assert "1 of 1 figures with a target miss it" in figures.section(content, "run", [], "FIGURES.md")


def test_only_what_is_between_the_markers_is_replaced(tmp_path):
    """The rest of a file stays; a file without markers is refused."""
    path = tmp_path / "a.md"
    path.write_text(f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n")
    figures.replace_between(path, "new\n")

    assert f"before\n{figures.BEGIN}\nnew\n{figures.END}\nafter\n" == path.read_text()
    assert "new\n" == figures.between(path)
    path.write_text("nothing")
    with pytest.raises(SystemExit, match="once each"):
        figures.replace_between(path, "new")


def test_readme_holds_what_the_results_say():
    """Nobody types a number: `python bench/run.py --from-results --figures README.md` would change nothing."""
    pytest.importorskip("rich")
    spec = importlib.util.spec_from_file_location("bench_run", ROOT / "bench" / "run.py")  # tests/vm has a run.py, too
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    drawn = {path.stem: path.name for path in figures.RESULTS.glob("*.svg")}
    path = ROOT / "README.md"

    assert run.section(path, figures.load(), drawn, run.FULL) == figures.between(path)


def test_charts_are_small_and_the_same_for_the_same_results(tmp_path):
    """SVG with text as text, and PNG; what is missed is marked."""
    pytest.importorskip("matplotlib")
    charts = pytest.importorskip("charts")
    curve = {"trace": "t", "name": "jitslab", "events": [1, 2], "live": [8, 9], "memory": [4096, 8192], "freed": 4096}
    content = results(row("a", figure("mimalloc / cache", 0.5), figure("cache / bare stack", 1.4, "at most", 1.5)))
    content |= results(row("peak", figure("jitslab / glibc", 0.9, "at most"), unit="MiB"), suite="memory", curves=[curve])
    content |= results(row("import", unit="s"), suite="start")
    drawn = charts.draw(content, tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in drawn.values()}
    charts.draw(content, tmp_path)

    assert {"summary", "peers", "memory", "start"} == set(drawn)
    assert first == {name: (tmp_path / name).read_bytes() for name in drawn.values()}
    assert all(len(svg) < 100_000 and (tmp_path / name).with_suffix(".png").exists() for name, svg in first.items())
    assert b"missed" in first["peers.svg"]


def test_without_matplotlib_nothing_fails(tmp_path, monkeypatch, capsys):
    """It is said by name, with the command that installs it."""
    charts = pytest.importorskip("charts")
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert {} == charts.draw(results(row("a", figure("mimalloc / cache", 0.5))), tmp_path)
    assert "pip install matplotlib" in capsys.readouterr().err
