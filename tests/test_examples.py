"""The programs of jitslab.examples, run as users run them."""

import subprocess
import sys


def test_workers_read_one_processs_records():
    """Each worker sums its part of each commit; the program compares the sums, and fails if they differ."""
    command = [sys.executable, "-m", "jitslab.examples.workers", "--records", "2000", "--rounds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    lines = done.stdout.splitlines()

    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in lines] == ["commit 2", "commit 2", "commit 3", "commit 3"]
    assert all(f"{n} orders" in line for n, line in zip((2000, 2000, 4000, 4000), lines, strict=True))
    assert [line.rpartition(" ")[2] for line in lines] == ["multiprocessing", "joblib"] * 2
