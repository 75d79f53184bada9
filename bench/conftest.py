"""
Every contender of every bench_*.py as two tests: that its answer is right, and its time, by pytest-benchmark.

A module has a function `table`, or `beside_malloc`, or both; here "malloc" is this process's own.
JITSLAB_BENCH chooses the sizes.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from measure import SIZES, Case, Row, SkippedError, Table, set_up

SIZE = SIZES[os.environ.get("JITSLAB_BENCH", "quick")]
TABLES = ("table", "beside_malloc")
NO_TIMES = ("bytes", "MiB", "times")  # units of what a contender measures, and pytest-benchmark cannot


def rows_of(module: ModuleType) -> Table:
    """Return all rows of a module."""
    tables = [getattr(module, name)(SIZE) for name in TABLES if hasattr(module, name)]
    return {operation: row for table in tables for operation, row in table.items()}


def test_answer_is_right(row: Row, contender: str) -> None:
    """Every contender does what its row says, twice; `once` raises if an answer is wrong."""
    case = ready(row, contender)
    try:
        case.once()
        case.once()
    finally:
        case.close()


def test_speed(benchmark: Any, row: Row, contender: str) -> None:
    """Time of every contender, one after the other; for ratios, see run.py."""
    case = ready(row, contender)
    try:
        case.once()  # compiles, touches memory, verifies
        rounds = min(SIZE.least, row.most or SIZE.least)
        benchmark.pedantic(case.run, setup=lambda: case.before() and None, teardown=lambda: case.after(), rounds=rounds)
        benchmark.extra_info["operations a round"] = case.ops
    finally:
        case.close()


def ready(row: Row, contender: str) -> Case:
    """Set a contender up, or skip its test by name."""
    case = set_up(row.contenders[contender], SIZE)
    if isinstance(case, SkippedError):
        pytest.skip(f"{contender}: {case}")
    return case


class Rows(pytest.Module):
    """A module that has rows, and with them the two tests."""

    def collect(self) -> Any:
        """Give the module its tests, and collect them."""
        self.obj.test_answer_is_right, self.obj.test_speed = test_answer_is_right, test_speed
        return super().collect()


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Take bench_*.py for modules that have rows."""
    return Rows.from_parent(parent, path=module_path) if module_path.name.startswith("bench_") else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run them for every contender of every row."""
    if "contender" not in metafunc.fixturenames:
        return
    is_speed = "benchmark" in metafunc.fixturenames
    found = [
        pytest.param(row, contender, id=f"{operation}-{contender}".replace(" ", "_"))
        for operation, row in rows_of(metafunc.module).items()
        for contender in row.contenders
        if not (is_speed and row.unit in NO_TIMES)
    ]
    metafunc.parametrize(("row", "contender"), found)
