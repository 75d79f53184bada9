"""A replay does what the trace says, on both sides, and sees a record that was changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jitslab import FaultError, TraceError, __version__
from jitslab._terminal import NO_RICH
from jitslab.cli import main
from jitslab.replay import loops as events
from jitslab.replay import replay, trace
from jitslab.replay.loops import run_malloc, run_slabs
from jitslab.replay.trace import ALLOC, CACHE, EVENT, FREE, Trace

SIDES = pytest.mark.parametrize("entry", [run_slabs, run_malloc], ids=["slabs", "malloc"])


def churn(sizes: list[int], objects: int, cpus: int, seed: int) -> Trace:
    """A random trace: each object is of a random cache, allocated on a random CPU and mostly freed on another."""
    random = np.random.default_rng(seed)
    rows: list[tuple[int, int, int, int, int]] = []
    live: list[tuple[int, int]] = []
    for obj in range(objects):
        cache = int(random.integers(len(sizes)))
        rows.append((ALLOC, int(random.integers(cpus)), cache, sizes[cache], obj))
        live.append((obj, cache))
        while live and random.random() < 0.47:
            gone, cache = live.pop(int(random.integers(len(live))))
            rows.append((FREE, int(random.integers(cpus)), cache, 0, gone))
    return Trace(np.array([(f"cache-{size}", size) for size in sizes], CACHE), np.array(rows, EVENT))


def live_counts(made: Trace) -> list[int]:
    """Live objects of each cache at the end, recounted from the events."""
    allocs = np.bincount(made.allocs["cache"], minlength=len(made.caches))
    return (allocs - np.bincount(made.frees["cache"], minlength=len(made.caches))).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("threads", [1, 2])
def test_packaged_trace_replays_without_mismatch(threads: int) -> None:
    """Every stamp is found as written, and each cache holds what the events leave live."""
    loaded = trace.load(trace.packaged())
    outcome = replay.measure(loaded, threads, repeat=2)

    assert outcome.mismatches == 0
    assert [str(name) for name in loaded.caches["name"]] == [line.name for line in outcome.slabinfo]
    assert live_counts(loaded) == [line.active_objects for line in outcome.slabinfo]
    for line in outcome.slabinfo:
        assert line.active_objects <= line.total_slots == line.slabs * line.objects_a_slab
    assert [len(passes) for passes in outcome.passes.values()] == [3, 3]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_records_of_every_size_replay_in_any_number_of_threads(threads: int) -> None:
    """Stamps of 8, 4 and 1 bytes fit records of any size; a thread waits for what another has not allocated yet."""
    made = churn([1, 2, 3, 4, 7, 8, 12, 16, 20, 24, 184, 4096, 5848, 70_001], 6_000, cpus=7, seed=threads)
    trace.check_events(made)
    with replay.Replay(made, threads) as run:
        passes = [one() for _ in range(3) for one in (run.slabs, run.malloc)]

        assert [each.mismatches for each in passes] == [0] * 6
        assert live_counts(made) == [line.active_objects for line in run.slabinfo]
        assert made.caches["size"].tolist() == [line.object_size for line in run.slabinfo]
        assert [0] * len(made.caches) == [len(cache) for cache in run.caches]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("side", ["jitslab", "malloc"])
def test_steps_do_all_events_in_order_and_free_what_is_live(side: str, threads: int) -> None:
    """Between two steps exactly the objects of the events so far are live; afterwards none is."""
    made = churn([8, 64, 24], 500, 4, seed=5)
    alive = np.cumsum(np.where(made.events["op"] == ALLOC, 1, -1))
    with replay.Replay(made, threads) as run:
        run.touch()
        found = [(done, bad, sum(map(len, run.caches))) for done, bad in run.steps(side, 7)]

    ends = [len(made.events) * step // 7 for step in range(1, 8)]
    expected = [int(alive[end - 1]) if side == "jitslab" else 0 for end in ends] + [0]
    assert [(done, 0, n) for done, n in zip([*ends, ends[-1]], expected, strict=True)] == found


def test_thread_that_only_frees_waits_for_the_one_that_allocates() -> None:
    """All allocs are one thread's, all frees another's."""
    rows = [row for i in range(20_000) for row in ((ALLOC, 0, 0, 64, i), (FREE, 1, 0, 0, i))]
    made = Trace(np.array([("pipe", 64)], CACHE), np.array(rows, EVENT))
    with replay.Replay(made, 2) as run:
        assert run.slabs().mismatches == 0
        assert run.malloc().mismatches == 0


@SIDES
def test_free_of_another_object_is_counted(entry: replay.Entry) -> None:
    """Where two objects' handles are exchanged both stamps are wrong; the third is right."""
    rows = [(ALLOC, 0, 0, 64, i) for i in range(3)]
    with replay.Replay(Trace(np.array([("three", 64)], CACHE), np.array(rows, EVENT))) as run:
        before = run._run(entry, run._programs)[1]
        run._handles[[0, 1]] = run._handles[[1, 0]]

        assert before == 0
        assert run._run(entry, run._drains)[1] == 2


@pytest.mark.parametrize("size", [1, 4, 8, 200])
def test_overwritten_record_is_counted(size: int) -> None:
    """One byte written over the stamp of one live record is one mismatch."""
    rows = [(ALLOC, 0, 0, size, i) for i in range(100)]
    with replay.Replay(Trace(np.array([("hundred", size)], CACHE), np.array(rows, EVENT))) as run:
        run._run(run_slabs, run._programs)
        slot = int(run.caches[0].slots(run._handles[50:51])[0])
        run.caches[0].records["stamp"][slot : slot + 1] ^= 1

        assert run._run(run_slabs, run._drains)[1] == 1


def test_record_freed_behind_the_replay_is_counted() -> None:
    """A free that the cache refuses is a mismatch, too."""
    rows = [(ALLOC, 0, 0, 64, i) for i in range(10)]
    with replay.Replay(Trace(np.array([("ten", 64)], CACHE), np.array(rows, EVENT))) as run:
        run._run(run_slabs, run._programs)
        run.caches[0].free(int(run._handles[3]))

        assert run._run(run_slabs, run._drains)[1] == 1
        with pytest.raises(FaultError, match="^1 fault "):
            run.caches[0].raise_faults()


def test_object_without_memory_does_not_hold_its_thread_up() -> None:
    """Where an alloc found no slot its free is passed over, by whichever thread."""
    rows = [(op, i & 1, 0, 64 * (1 - op), i) for op in (ALLOC, FREE) for i in range(10)]
    made = Trace(np.array([("ten", 64)], CACHE), np.array(rows, EVENT))
    with replay.Replay(made) as run:
        run._handles[:] = replay.REFUSED
        frees = [words[words & 1 == 1] for words in run._programs]

        assert run._run(run_slabs, frees)[1] == 0
        assert run._run(run_malloc, frees)[1] == 0


@pytest.mark.parametrize(
    ("threads", "message"),
    [(0, "the events can be run by 1 .. 256 threads, not by 0"), (257, "the events can be run by 1 .. 256 threads, not by 257")],
)
def test_number_of_threads_has_bounds(threads: int, message: str) -> None:
    """A cache has a heap for each of 256 threads."""
    with pytest.raises(TraceError) as caught:
        replay.Replay(churn([8], 10, 1, 0), threads)

    assert message == str(caught.value)


def test_trace_larger_than_the_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before anything runs, not killed by the system."""
    monkeypatch.setattr(replay, "memory_bytes", lambda: 8 << 20)
    rows = [(ALLOC, 0, 0, 1 << 20, i) for i in range(5)]
    with pytest.raises(TraceError) as caught:
        replay.Replay(Trace(np.array([("large", 1 << 20)], CACHE), np.array(rows, EVENT)))

    assert str(caught.value) == "5 MiB can be live at once, more than half of this machine's memory (4 MiB)"


# --- The command line ---


def test_json_is_one_object() -> None:
    """`python -m jitslab replay --json` prints what a program can read, and nothing else."""
    command = [sys.executable, "-m", "jitslab", "replay", "--json", "--repeat", "1", "--threads", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    printed = json.loads(done.stdout)

    assert (done.returncode, done.stderr) == (0, "")
    assert (printed["events"], printed["threads"], printed["mismatches"]) == (200_000, 2, 0)
    assert printed["live"] == sum(line["active_objects"] for line in printed["caches"])
    assert {"jitslab", "malloc"} == set(printed["ns"])
    assert all(ns > 0 for side in printed["ns"].values() for ns in side.values())


def test_table_has_every_cache_and_both_times(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Names of caches are shown as they are: no markup in them is followed."""
    made = churn([8, 64], 500, 2, 3)
    made.caches["name"][0] = "[bold]odd"
    trace.save(tmp_path / "churn.npz", made)
    status = main(["replay", str(tmp_path / "churn.npz"), "--repeat", "1"])
    printed = capsys.readouterr().out

    assert status == 0
    for word in ("[bold]odd", "cache-64", "total", "first pass", "later passes", "0 records found changed"):
        assert word in printed


def test_changed_records_are_the_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A replay that found a record changed does not end with 0."""
    one = replay.Pass(1.0, 3, 0)
    monkeypatch.setattr(replay, "measure", lambda *_: replay.Outcome([], {"jitslab": [one, one], "malloc": [one, one]}))

    assert main(["replay", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["mismatches"] == 12


def malloc_trace(n: int, seed: int = 2) -> Trace:
    """Return a trace of malloc: n objects, most of them freed."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(2 * n, EVENT)
    rows["cache"] = trace.NO_CACHE
    rows["obj"] = np.tile(np.arange(n, dtype=np.uint32), 2)
    rows["op"][n:] = trace.FREE
    rows["size"][:n] = rng.integers(0, 3000, n)
    rows["size"][n - 1] = 2 << 20
    when = np.concatenate([np.arange(n) * 1.0, np.arange(n) + rng.integers(1, 100, n) + 0.5])
    return Trace(np.zeros(0, CACHE), rows[np.argsort(when, kind="stable")][: -n // 50])


def test_trace_of_malloc_is_replayed_with_waste_and_peak(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """By size classes, every stamp verified; beside malloc."""
    path = tmp_path / "malloc.npz"
    trace.save(path, malloc_trace(2000))
    status = main(["replay", "--json", "--repeat", "1", str(path)])
    printed = json.loads(capsys.readouterr().out)

    assert (status, printed["mismatches"], printed["objects"]) == (0, 0, 2000)
    assert 0 < printed["waste"] < 0.2
    assert min(printed["peak"].values()) > 2 << 20
    assert sum(line["active_objects"] for line in printed["caches"]) == printed["live"] == 40


def test_changed_memory_of_a_malloc_trace_is_found() -> None:
    """One byte is enough."""
    with replay.MallocReplay(malloc_trace(300)) as run:
        run.slabs()
        run._handles[:] = 0
        run._run(events.run_sizes, run._programs)
        ptr = int(run._handles[run.trace.survivors[0]])
        run.allocator.view(ptr, int(run._sizes[run.trace.survivors[0]]))[0] ^= 1

        assert run._run(events.run_sizes, run._drains)[1] == 1
        assert len(run.allocator) == 0


def test_missing_rich_is_said_before_anything_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `--json` does without it."""
    monkeypatch.setitem(sys.modules, "rich", None)
    status = main(["replay", "no-such-file.npz"])

    assert (2, f"jitslab replay {NO_RICH}\n") == (status, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replay", "--threads", "0"], "jitslab replay: the events can be run by 1 .. 256 threads, not by 0\n"),
        (["replay", "--repeat", "0"], "jitslab replay: the later passes are run 1 time or more, not 0\n"),
        (["cut", "no-such.npz", "out.npz"], "jitslab cut: no-such.npz: no such file\n"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and one line."""
    status = main([*arguments, "--json"] if arguments[0] == "replay" else arguments)

    assert (2, message) == (status, capsys.readouterr().err)


def test_cut_from_the_command_line_is_a_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What it writes can be loaded."""
    out = tmp_path / "cut.npz"
    status = main(["cut", os.fspath(trace.packaged()), str(out), "--events", "1000", "--start", "500"])

    assert (0, f"{out}: 1000 events\n") == (status, capsys.readouterr().out)
    assert len(trace.load(out).events) == 1000


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """`jitslab --version`."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert f"jitslab {__version__}\n" == capsys.readouterr().out
