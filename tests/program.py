"""A Python program in a process of its own, warnings being errors."""

import os
import subprocess
import sys

import numba
import pytest

needs_machine_code = pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT), reason="with the JIT off functions are Python's, which raise where machine code answers"
)


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
