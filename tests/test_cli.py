"""The manners of the command line: what it says first, in a narrow terminal, in a pipe, and at Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from jitslab import cli
from jitslab._terminal import NO_RICH
from jitslab.replay import cli as trace_commands
from jitslab.replay import recorder, replay, trace

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
NARROW = (40, 60)


def in_terminal(columns: int, *arguments: str, then: Callable[[int, bytes], None] = lambda fd, seen: None) -> tuple[int, str]:
    """Run the command in a terminal of so many columns: its status, and what it showed; `then` may type."""
    pid, fd = pty.fork()
    if pid == 0:
        signal.alarm(120)  # what hangs ends, too
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell ignores it for what it runs in the background
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        os.execve(sys.executable, [sys.executable, "-m", "jitslab", *arguments], {**environment, "TERM": "xterm"})
    seen = b""
    while True:
        try:
            more = os.read(fd, 65536)
        except OSError:  # Linux says so at the end
            break
        if not more:
            break
        seen += more
        then(fd, seen)
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode()


def outcome(ours: float, theirs: float) -> replay.Outcome:
    """A replay that took so many nanoseconds an operation."""
    passes = {side: [replay.Pass(3 * ns, 0, 0, ns)] * 3 for side, ns in (("jitslab", ours), ("malloc", theirs))}
    line = replay.SlabInfo("a cache", 5848, 8818, 123_456, 2048, 98_765, 3736 << 10)
    return replay.Outcome([line], passes)


# --- What it says first ---


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (10.0, 29.0, "2.9 times as fast as malloc on 200,000 events of a Linux kernel"),
        (10.0, 10.1, "as fast as malloc on 200,000 events of a Linux kernel"),
        (29.0, 10.0, "slower than malloc, which is 2.9 times as fast, on 200,000 events of a Linux kernel"),
        (10.4, 10.0, "slower than malloc, which is 1.04 times as fast, on 200,000 events of a Linux kernel"),
    ],
)
def test_headline_says_who_is_faster(ours: float, theirs: float, said: str) -> None:
    """Also where it is not jitslab."""
    path = trace.packaged()

    assert said == trace_commands.headline(str(path), trace.load(path), outcome(ours, theirs), 1)


def test_headline_of_another_trace_names_its_file_and_threads() -> None:
    """It is not said to be of a Linux kernel."""
    said = trace_commands.headline("some/where/mine.npz", trace.load(trace.packaged()), outcome(1.0, 2.0), 2)

    assert said == "2.0 times as fast as malloc on 200,000 events of mine.npz in 2 threads"


def test_headline_is_of_cpu_time() -> None:
    """The clock goes on while other programs run, and favours who needs less of it."""
    found = outcome(10.0, 29.0)
    found.passes["malloc"][1:] = [replay.Pass(ns, 0, 0, 29.0) for ns in (290.0, 29.0, 310.0)]
    path = trace.packaged()

    assert trace_commands.headline(str(path), trace.load(path), found, 1).startswith("2.9 times as fast")


def test_headline_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    """Before the tables."""
    assert cli.main(["replay", "--repeat", "1"]) == 0
    assert " 200,000 events of a Linux kernel" in capsys.readouterr().out.splitlines()[0]


def test_tiny_trace_says_why_its_ratio_means_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Thirty events take less time than to start."""
    path = tmp_path / "tiny.npz"
    trace.save(path, trace.cut(trace.load(trace.packaged()), 30))
    assert cli.main(["replay", "--repeat", "1", str(path)]) == 0
    first = capsys.readouterr().out.splitlines()[0]

    assert first == (
        "30 events of tiny.npz: too few to compare, since start and clock weigh as much; a ratio means something from 10,000 on"
    )


# --- Narrow terminals and pipes ---


@pytest.mark.parametrize("columns", NARROW)
def test_no_number_is_cut_in_a_narrow_terminal(columns: int) -> None:
    """Every number of every cache stands in one piece; no line is longer than the terminal, unless it is a path."""
    status, seen = in_terminal(columns, "replay", "--repeat", "1")
    shown = ESCAPES.sub("", seen[seen.rindex("\x1b[2K") :]).replace("\r", "").splitlines()

    assert status == 0
    assert "…" not in "".join(shown)
    assert all(len(line) <= columns or str(trace.packaged()) in line for line in shown)
    text = "\n".join(shown)
    for size in trace.load(trace.packaged()).caches["size"].tolist():
        assert re.search(rf"\bsize {size},", text)
    for words in ("slots 2048", "ratio ", "page faults ", "records found changed"):
        assert words in text


def test_wide_terminal_has_tables() -> None:
    """As before."""
    status, seen = in_terminal(100, "replay", "--repeat", "1")

    assert status == 0
    assert "per slab  slabs  use %" in ESCAPES.sub("", seen)


def test_piped_output_breaks_no_line(tmp_path: Path) -> None:
    """However long the path is, and whatever COLUMNS says."""
    place = tmp_path.joinpath(*["a folder with a long name"] * 6)
    place.mkdir(parents=True)
    path = shutil.copy(trace.packaged(), place / "mine.npz")
    command = [sys.executable, "-m", "jitslab", "replay", "--repeat", "1", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "40"})
    lines = done.stdout.splitlines()

    assert (done.returncode, done.stderr) == (0, "")
    assert f"{path}: 200000 events, 107032 objects, threads: 1" in lines
    assert any(line.split() == ["name", "size", "active", "slots", "per", "slab", "slabs", "use", "%", "KiB"] for line in lines)


# --- Ctrl-C ---


def interrupt(*_: object, **__: object) -> None:
    """What Ctrl-C does, at a known place."""
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["replay"], (replay, "measure")),
        (["replay", "--json"], (replay, "measure")),
        (["record", "out.npz", "--", "true"], (recorder, "record")),
        (["cut", "in.npz", "out.npz"], (trace, "load")),
        (["warmup"], (cli, "where_kept")),
    ],
    ids=["replay", "json", "record", "cut", "warmup"],
)
def test_interrupted_command_ends_with_130(
    arguments: list[str], where: tuple[object, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, no traceback."""
    monkeypatch.setattr(*where, interrupt)
    status = cli.main(arguments)

    assert (130, f"jitslab {arguments[0]}: interrupted\n") == (status, capsys.readouterr().err)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_control_c_under_the_progress_bar_gives_the_terminal_back(threads: str) -> None:
    """Typed while the bar is drawn: the bar is gone, the cursor is shown again."""
    typed: list[bytes] = []

    def type_it(fd: int, seen: bytes) -> None:
        if not typed and b"2/" in seen:
            typed.append(b"\x03")
            os.write(fd, b"\x03")

    status, seen = in_terminal(60, "replay", "--repeat", "100000", "--threads", threads, then=type_it)

    assert typed
    assert status == 130
    assert "Traceback" not in seen
    assert "jitslab replay: interrupted" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")


# --- Help and advice ---


@pytest.mark.parametrize("command", ["replay", "record", "cut", "warmup"])
def test_every_command_says_what_it_does(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In its own help."""
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    paragraphs = capsys.readouterr().out.split("\n\n")

    assert paragraphs[1].rstrip().endswith(".")


def test_advice_names_the_package_that_an_index_has() -> None:
    """Jitslab itself is on no index."""
    assert NO_RICH == "draws with rich, which is not installed: pip install rich; with --json it is not needed"
