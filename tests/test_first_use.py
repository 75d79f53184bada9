"""The first use with nothing on disk: what is said of it, and `jitslab warmup`."""

import os
import pty
import subprocess
import sys

import pytest
from program import run_python

FIRST = """
import numpy as np, jitslab
jitslab.SlabCache("first", np.dtype([("x", "i8")]), capacity=10).alloc()
"""
LOGGED = f"""
import logging
logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
{FIRST}
"""


def on_terminal(program, **environment):
    """Run a program whose error stream is a terminal; returns what is written there."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", program], stderr=theirs, env={**os.environ, **environment}) as running:
        os.close(theirs)
        text = b""
        try:
            while part := os.read(ours, 1000):
                text += part
        except OSError:  # the other side is closed
            pass
        os.close(ours)
        assert running.wait(120) == 0
    return text.decode().replace("\r\n", "\n")


def kept_in(folder):
    """The line that names a folder."""
    return f"jitslab compiles its kernels, once, some 3 s; kept in {folder}"


def test_terminal_is_told_once_and_only_if_something_is_compiled(tmp_path):
    """Of caches, guards and allocators together; a later process compiles nothing and says nothing."""
    program = FIRST + "jitslab.allocate(100)\nimport os\n(folder,) = os.listdir(os.environ['NUMBA_CACHE_DIR'])\nprint(folder)"
    told = on_terminal(program, NUMBA_CACHE_DIR=str(tmp_path))
    (folder,) = tmp_path.iterdir()

    assert told == kept_in(folder) + "\n"
    assert on_terminal(program, NUMBA_CACHE_DIR=str(tmp_path)) == ""


def test_what_is_no_terminal_is_told_nothing(tmp_path):
    """A log file or a pipe has only what the logger is set to."""
    run_python(FIRST, NUMBA_CACHE_DIR=str(tmp_path))


def test_logger_is_told_at_info_and_no_line_is_written_twice(tmp_path):
    """A program that shows INFO shows it on a terminal, too."""
    told = on_terminal(LOGGED, NUMBA_CACHE_DIR=str(tmp_path))
    (folder,) = tmp_path.iterdir()

    assert told == f"jitslab INFO {kept_in(folder)}\n"


@pytest.mark.parametrize("program", [FIRST, LOGGED], ids=["terminal", "logger"])
def test_quiet_is_quiet(tmp_path, program):
    """Where it is asked for."""
    assert on_terminal(program, NUMBA_CACHE_DIR=str(tmp_path), JITSLAB_QUIET="1") == ""


def test_terminal_is_told_that_nothing_can_be_kept(tmp_path):
    """Together with the warning, which names the variable."""
    (tmp_path / "file").write_bytes(b"")
    told = on_terminal(FIRST + "jitslab.allocate(100)", NUMBA_CACHE_DIR=str(tmp_path / "file"))

    assert told.startswith("jitslab compiles its kernels, some 3 s in every process: there is no folder to keep them in\n")
    assert told.count("KernelCacheWarning: jitslab keeps compiled code in memory only") == 1
    assert told.count("the environment variable NUMBA_CACHE_DIR names a folder for it") == 1


def command(*options, **environment):
    """Run the command line; returns its status, output and error stream."""
    done = subprocess.run(
        [sys.executable, *options, "warmup"], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


WITHOUT_RICH = "import sys; sys.modules['rich'] = None; from jitslab.cli import main; sys.exit(main())"


@pytest.mark.parametrize("options", [("-m", "jitslab"), ("-c", WITHOUT_RICH)], ids=["rich", "no rich"])
def test_warmup_leaves_nothing_to_compile(tmp_path, options):
    """It says where everything is kept; what comes later writes nothing there."""
    status, told, errors = command(*options, NUMBA_CACHE_DIR=str(tmp_path))
    (folder,) = tmp_path.iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    run_python(FIRST + "jitslab.warmup()", NUMBA_CACHE_DIR=str(tmp_path))

    assert (status, told, errors.strip()) == (0, f"compiled; kept in {folder}\n", "")
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) > 10


def test_warmup_moves_a_bar_on_a_terminal(tmp_path):
    """From none to all."""
    program = "import sys; from jitslab.cli import main; sys.exit(main(['warmup']))"
    told = on_terminal(program, NUMBA_CACHE_DIR=str(tmp_path), TERM="xterm", COLUMNS="100")

    assert all(f"{k}/5" in told for k in range(6))


def test_warmup_that_is_in_vain_fails(tmp_path):
    """With the reason, and status 2."""
    (tmp_path / "file").write_bytes(b"")
    status, told, errors = command("-m", "jitslab", NUMBA_CACHE_DIR=str(tmp_path / "file"))

    assert (status, told) == (2, "")
    assert "jitslab warmup: jitslab keeps compiled code in memory only" in errors
