"""A Python program in a process of its own, warnings being errors."""

import os
import subprocess
import sys


def run_python(program, *options, **environment):
    """Run a program, with options of the interpreter; returns what it wrote."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
