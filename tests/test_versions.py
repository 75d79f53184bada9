"""Which Pythons, Numbas and NumPys are supported: said once in pyproject.toml, and an older Numba is refused."""

import re
from pathlib import Path

from program import run_python

ROOT = Path(__file__).parent.parent


def test_import_refuses_a_numba_that_loses_results():
    """LLVM before 17 compiles a cold path that answers an address; nothing of the library is to be had there."""
    said = run_python("""
import llvmlite.binding
llvmlite.binding.llvm_version_info = (16, 0, 6)
try:
    import jitslab
except ImportError as error:
    print(error)
""")

    assert re.match(r"jitslab needs Numba 0\.62 or later, got \S+: ", said)


def test_readme_names_the_versions_that_pyproject_admits():
    """The bounds in the limits are those that pip sees; the tests on other versions take them from there."""
    project = (ROOT / "pyproject.toml").read_text()
    oldest = dict(re.findall(r'"(numba|numpy)>=([\d.]+)"', project))
    pythons = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    least = re.search(r'requires-python = ">=([\d.]+)"', project).group(1)

    assert pythons == [f"3.{minor}" for minor in range(int(least[2:]), int(pythons[-1][2:]) + 1)]
    text = f"CPython {least} to {pythons[-1]}, Numba from {oldest['numba']} and NumPy from {oldest['numpy']} are supported"
    assert text in " ".join((ROOT / "README.md").read_text().split())
