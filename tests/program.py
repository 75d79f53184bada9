"""A Python program in a process of its own, warnings being errors."""

import os
import subprocess
import sys


def run_python(program, **environment):
    """Run a program; returns what it wrote."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
