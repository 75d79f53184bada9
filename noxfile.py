"""
The tests on every Python that this machine has, and with the oldest and the newest Numba and NumPy.

``nox`` runs all that README.md says is supported; ``nox -s oldest``, ``nox -s "with_numba(0.65)"`` one session; what stands after
``--`` goes to pytest.
"""

import nox

nox.needs_version = ">=2025.2.9"
PROJECT = nox.project.load_toml("pyproject.toml")["project"]
PYTHONS = nox.project.python_versions({"project": PROJECT})
OLDEST = [dependency.replace(">=", "==") for dependency in PROJECT["dependencies"]]
BETWEEN = ["0.63", "0.64", "0.65", "0.66", "0.67"]

nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["oldest", "tests", "newest"]


def run(session: nox.Session, *packages: str) -> None:
    """Install the package with these others, and run the whole suite; kernels are kept in the session's own environment."""
    session.install("-e", ".[test]", *packages)
    session.run("python", "-c", "import sys, numba, numpy; sys.exit(print(sys.version, numba.__version__, numpy.__version__))")
    session.run("python", "-m", "pytest", *session.posargs, env={"NUMBA_CACHE_DIR": f"{session.virtualenv.location}/numba"})


@nox.session(python=[*PYTHONS, "3.15"])
def tests(session: nox.Session) -> None:
    """Run on one Python, with the newest releases that it has; 3.15 is tried, and not yet claimed."""
    run(session)


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """Run with what pyproject.toml admits as the oldest, exactly."""
    run(session, *OLDEST)


@nox.session(python=PYTHONS[-1])
def newest(session: nox.Session) -> None:
    """Run with the newest Numba and NumPy, releases or not."""
    session.install("--pre", "--upgrade", "numba", "numpy")
    run(session)


@nox.session(python=PYTHONS[0])
@nox.parametrize("numba", BETWEEN)
def with_numba(session: nox.Session, numba: str) -> None:
    """Run with a Numba between the oldest and the newest, only where it is asked for."""
    run(session, f"numba=={numba}.*")
