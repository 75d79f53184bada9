"""What stands beside the library is what it is said to be: which `malloc` a process has, and what a trace of it holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bench_peers
from jitslab.replay import trace
from measure import SMOKE, SkippedError, WrongAnswerError
from peers import allocators, process, traces


@pytest.mark.parametrize("allocator", allocators.ALLOCATORS)
def test_answer_of_c_allocator_is_right(allocator: str) -> None:
    """Every C allocator runs its rows, at the smallest sizes, and answers rightly."""
    try:
        rows = process.run_with(allocator, "smoke", "bench_peers")
    except SkippedError as why:
        pytest.skip(f"{allocator}: {why}")

    batch = f"{bench_peers.BY_ONE_CALL.format(SMOKE.batch)}, beside {allocator}"
    found = [row["operation"] for row in rows]
    assert (batch in found) == (allocator == "jemalloc")
    assert [name for name in found if name != batch] == [
        f"{name}, beside {allocator}" for name in bench_peers.beside_malloc(SMOKE)
    ]


@pytest.mark.parametrize(
    ("allocator", "file", "version"),
    [("jemalloc", "libc.so.6", "2.36"), ("mimalloc 3", "libmimalloc.so.3", "2.0.9"), ("glibc", "libjemalloc.so.2", "5.3.0")],
)
def test_another_malloc_than_was_asked_for_is_a_wrong_answer(allocator: str, file: str, version: str) -> None:
    """The loader only warns of a library that it cannot load."""
    with pytest.raises(WrongAnswerError, match=f"{allocator} was to be measured"):
        allocators.check(allocator, {"file": file, "version": version})


@pytest.mark.parametrize(("number", "version"), [(209, "2.0.9"), (223, "2.2.3"), (30403, "3.4.3"), (30412, "3.4.12")])
def test_version_of_mimalloc_is_read_from_its_number(number: int, version: str) -> None:
    """It has three digits up to version 2, five from version 3 on."""
    assert allocators.of_mimalloc(SimpleNamespace(mi_version=lambda: number)) == version


def test_a_library_that_is_named_and_missing_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is measured in its place."""
    monkeypatch.setenv(allocators.SNMALLOC, "/nowhere/libsnmallocshim.so")
    with pytest.raises(SkippedError, match=r"SNMALLOC names .*, which is no file"):
        allocators.environment("snmalloc")


def test_what_was_noted_of_malloc_becomes_a_trace(tmp_path: Path) -> None:
    """An address that is used again is another object; what was there before, and events that never came, are none."""
    notes = np.array([(16, 8, 0), (99, -1, 0), (32, 0, 1), (16, -1, 1), (16, 24, 0), (0, 0, 0)], traces.NOTED)
    trace.save(tmp_path / "noted.npz", traces.of_notes(notes))
    events = traces.load(str(tmp_path / "noted.npz")).events

    assert events[["op", "obj", "size", "thread"]].tolist() == [(0, 0, 8, 0), (0, 1, 0, 1), (1, 0, 0, 1), (0, 2, 24, 0)]
