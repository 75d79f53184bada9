"""What a trace file must be, and what is refused before anything runs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jitslab import TraceError
from jitslab.replay import trace
from jitslab.replay.trace import ALLOC, CACHE, EVENT, FREE, Trace


def small(events: list[tuple[int, int, int, int, int]] | None = None, caches: list[tuple[str, int]] | None = None) -> Trace:
    """A trace of two caches and three objects, one live at the end; or with other rows."""
    if events is None:
        events = [
            (ALLOC, 0, 0, 8, 0),
            (ALLOC, 1, 1, 24, 1),
            (FREE, 0, 1, 0, 1),
            (ALLOC, 0, 0, 8, 2),
            (FREE, 1, 0, 0, 0),
        ]
    return Trace(np.array(caches or [("small", 8), ("large", 24)], CACHE), np.array(events, EVENT))


def with_events(**changes: tuple[int, int]) -> Callable[[Path], None]:
    """Write the small trace with a field of one event changed: ``field=(event, value)``."""

    def write(path: Path) -> None:
        made = small()
        for field, (event, value) in changes.items():
            made.events[field][event] = value
        trace.save(path, made)

    return write


def with_caches(*caches: tuple[str, int]) -> Callable[[Path], None]:
    """Write a trace of other caches, without events."""
    return lambda path: trace.save(path, Trace(np.array(list(caches), CACHE), np.zeros(0, EVENT)))


def with_arrays(**arrays: Any) -> Callable[[Path], None]:
    """Write the small trace with arrays replaced, or left out where None."""

    def write(path: Path) -> None:
        made = small()
        wanted = {"caches": made.caches, "events": made.events} | arrays
        np.savez(path, **{name: array for name, array in wanted.items() if array is not None})

    return write


def with_header(shape: tuple[int, ...], rows: int) -> Callable[[Path], None]:
    """Write a trace whose events claim to be of `shape`, and are `rows` rows."""

    def write(path: Path) -> None:
        header = io.BytesIO()
        description = {"descr": EVENT.descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, description)
        caches = io.BytesIO()
        np.lib.format.write_array(caches, small().caches)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("caches.npy", caches.getvalue())
            archive.writestr("events.npy", header.getvalue() + bytes(rows * EVENT.itemsize))

    return write


def with_name_out_of_range(path: Path) -> None:
    """Write a trace whose cache is named by what is no character."""
    caches = small().caches.copy()
    caches.view("<u4")[0] = 0x7FFFFFFF
    np.savez(path, caches=caches, events=small().events)


REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing file": (lambda path: None, "no such file"),
    "not a zip": (lambda path: path.write_text("hello") and None, "no trace: File is not a zip file"),
    "empty file": (lambda path: path.touch(), "no trace: File is not a zip file"),
    "no events": (with_arrays(events=None), "no trace: it has no array 'events'"),
    "no caches": (with_arrays(caches=None), "no trace: it has no array 'caches'"),
    "wrong dtype": (
        with_arrays(events=np.zeros(3)),
        f"'events' must be an array of {EVENT.descr}, got float64",
    ),
    "wrong byte order": (
        with_arrays(events=np.zeros(3, EVENT.newbyteorder(">"))),
        f"'events' must be an array of {EVENT.descr}, got {EVENT.newbyteorder('>').descr}",
    ),
    "Python objects": (
        with_arrays(caches=np.array([None, {}], object)),
        f"'caches' must be an array of {CACHE.descr}, got object",
    ),
    "two dimensions": (with_arrays(events=np.zeros((2, 2), EVENT)), "'events' must be a 1-d array, got shape (2, 2)"),
    "no dimension": (with_arrays(events=np.zeros((), EVENT)), "'events' must be a 1-d array, got shape ()"),
    "more rows than can be": (with_header((1 << 40,), 1), f"'events' has {1 << 40} rows, at most {1 << 26} can be replayed"),
    "fewer rows than said": (with_header((1000,), 10), "'events' should have 1000 rows and has 10"),
    "more rows than said": (with_header((10,), 1000), "'events' should have 10 rows and has more"),
    "too many caches": (
        with_caches(*[("c", 8)] * 1025),
        "'caches' has 1025 rows, at most 1024 can be replayed",
    ),
    "event of malloc": (with_events(cache=(0, 0xFFFF)), "event 0: an event of malloc in a trace with caches"),
    "cache without name": (with_caches(("fine", 8), ("", 8)), "cache 1 has no name that can be shown"),
    "escape in a name": (with_caches(("\x1b[2J", 8)), "cache 0 has no name that can be shown"),
    "no character in a name": (with_name_out_of_range, "cache 0 has no name that can be shown"),
    "size 0": (with_caches(("none", 0)), "objects of cache 'none' are of 0 bytes, they must be of 1 .. 4194304"),
    "enormous size": (
        with_caches(("big", 0xFFFFFFFF)),
        "objects of cache 'big' are of 4294967295 bytes, they must be of 1 .. 4194304",
    ),
    "op 2": (with_events(op=(3, 2)), "event 3: op is 2, must be 0 (alloc) or 1 (free)"),
    "cache out of range": (with_events(cache=(1, 2)), "event 1: cache 2 is not among the 2"),
    "another size": (with_events(size=(1, 25)), "event 1: size 25 is not that of the objects of cache 1"),
    "objects not counted up": (
        with_events(obj=(3, 7)),
        "event 3: alloc of object 7, but objects are counted up from 0",
    ),
    "object allocated twice": (
        with_events(obj=(1, 0)),
        "event 1: alloc of object 0, but objects are counted up from 0",
    ),
    "free of the unknown": (with_events(obj=(4, 9)), "event 4: free of object 9, never allocated before"),
    "free before alloc": (with_events(obj=(2, 2)), "event 2: free of object 2, never allocated before"),
    "free twice": (with_events(obj=(4, 1), cache=(4, 1)), "event 4: free of object 1, freed before"),
    "free into another cache": (
        with_events(cache=(4, 1)),
        "event 4: free of object 0 into cache 1, which is not its own",
    ),
}


@pytest.mark.parametrize(("write", "message"), REFUSALS.values(), ids=REFUSALS)
def test_bad_file_is_refused_by_name_of_what_is_wrong(write: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    """Each defect is a TraceError of one line that names the file and the first thing wrong."""
    path = tmp_path / "bad.npz"
    write(path)

    with pytest.raises(TraceError) as caught:
        trace.load(path)

    assert f"{path}: {message}" == str(caught.value)


def test_truncated_and_scrambled_files_are_refused_or_load_whole(tmp_path: Path) -> None:
    """Whatever bytes are lost or changed, nothing but a TraceError comes out, or a trace that holds together."""
    path = tmp_path / "trace.npz"
    trace.save(path, trace.cut(trace.load(trace.packaged()), 50))
    good = path.read_bytes()
    random = np.random.default_rng(1)
    messages = []
    for turn in range(400):
        data = bytearray(good[: random.integers(len(good))] if turn % 4 == 0 else good)
        for at in random.integers(len(good), size=turn % 3 + 1):
            if at < len(data):
                data[at] = random.integers(256)
        path.write_bytes(data)
        try:
            trace.check_events(trace.load(path))
        except TraceError as error:
            messages.append(str(error))

    assert len(messages) > 200
    assert not any("\n" in message for message in messages)


def test_saved_trace_loads_as_it_was(tmp_path: Path) -> None:
    """`save` and `load` are inverse."""
    trace.save(tmp_path / "trace.npz", small())
    loaded = trace.load(tmp_path / "trace.npz")

    assert np.array_equal(small().caches, loaded.caches)
    assert np.array_equal(small().events, loaded.events)
    assert loaded.survivors.tolist() == [2]


def test_trace_without_events_loads(tmp_path: Path) -> None:
    """A trace in which nothing happens holds together."""
    with_caches(("idle", 8))(tmp_path / "idle.npz")

    assert len(trace.load(tmp_path / "idle.npz").events) == 0


def test_cut_passes_over_frees_of_objects_from_before() -> None:
    """A window keeps the order, numbers its objects from 0 and frees only what it allocated."""
    made = trace.cut(small(), 10, start=1)

    trace.check_events(made)
    assert [(int(op), int(obj)) for op, obj in made.events[["op", "obj"]]] == [(ALLOC, 0), (FREE, 0), (ALLOC, 1)]
    assert len(trace.cut(small(), 2, start=1).events) == 2


@pytest.mark.parametrize("start", [0, 1, 777, 150_000, 200_000, 300_000])
def test_every_window_of_a_trace_is_a_trace(start: int) -> None:
    """A cut holds together wherever it begins."""
    whole = trace.load(trace.packaged())
    made = trace.cut(whole, 5_000, start)

    trace.check_events(made)
    assert len(made.events) <= 5_000


def test_most_live_is_the_peak_of_each_cache() -> None:
    """In one thread it is the peak of the running count; in several, the sum of what each can reach by itself."""
    whole = trace.load(trace.packaged())
    one = whole.most_live(np.zeros(len(whole.events), np.uint8))
    two = whole.most_live(whole.events["thread"])
    for row in range(len(whole.caches)):
        mine = whole.events["cache"] == row
        change = np.where(whole.events["op"] == ALLOC, 1, -1)
        expected = int(np.cumsum(change * mine).max())

        assert expected == one[row]
        assert expected <= two[row]


def test_packaged_trace_is_small() -> None:
    """It goes into every wheel."""
    assert trace.packaged().stat().st_size < 1 << 20


def test_trace_of_malloc_has_no_events_of_caches(tmp_path: Path) -> None:
    """And asks for no more than can be had."""
    events = np.zeros(1, EVENT)
    events["size"] = 8
    path = tmp_path / "malloc.npz"
    trace.save(path, Trace(np.zeros(0, CACHE), events))
    with pytest.raises(TraceError, match="event 0: cache 0 in a trace of malloc, which has none"):
        trace.load(path)
    events["cache"], events["size"] = trace.NO_CACHE, (1 << 31) + 1
    trace.save(path, Trace(np.zeros(0, CACHE), events))
    with pytest.raises(TraceError, match="event 0: size 2147483649 is above 2147483648"):
        trace.load(path)
