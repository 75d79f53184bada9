"""The commands for pools: what they show, what they refuse, and what they write."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jitslab
from jitslab.cli import main
from jitslab.pool.info import short

NODE = np.dtype(
    [
        ("value", "f8"),
        ("next", jitslab.link("nodes")),
        ("name", "S5"),
        ("at", [("x", ">f4"), ("when", "M8[ms]")], (2,)),
    ],
    align=True,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a pool with three records, one of which links to another."""
    path = tmp_path_factory.mktemp("pools") / "original"
    with jitslab.open_pool(path, "x", root=np.dtype([("head", jitslab.link("nodes"))])) as pool:
        nodes = pool.create_cache("nodes", NODE, capacity=1000, init="zero")
        nodes.free(nodes.alloc_many(4)[1])
        pool.commit()
        pool.checkpoint()
        handles = nodes.live()
        slots = nodes.slots(handles)
        nodes.records["value"][slots] = 0.1, 2.0, -3.5
        nodes.records["next"][slots[0]] = handles[1]
        nodes.records["name"][slots] = b"a", b"b,\n", b"\xff"
        nodes.records["at"]["x"][slots[0]] = 0.25, 4.0
        nodes.records["at"]["when"][slots] = np.datetime64("2024-02-03T04:05:06.007")
        pool.root["head"] = handles[0]
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    """Return the path of a copy of it."""
    return Path(shutil.copytree(original, tmp_path / "pool"))


def hashes(path: Path) -> dict[str, tuple[bytes, int]]:
    """Return the content and the time of the last change of each file."""
    return {name: ((path / name).read_bytes(), (path / name).stat().st_mtime_ns) for name in os.listdir(path)}


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """Run a command; returns its status, its output and its errors."""
    status = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


# --- Info ---


def test_info_is_a_table(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the caches, the journal, the file system and the writer; no number is cut."""
    before = hashes(path)
    status, out, err = run(capsys, "info", path)

    assert (0, "") == (status, err)
    assert before == hashes(path)
    assert f"{path}: format 1, commit 3, on " in out
    assert "open to write: by nobody" in out
    row = next(line.split() for line in out.splitlines() if line.split()[:1] == ["nodes"])
    with jitslab.open_pool(path, "r") as pool:
        slots, stride = pool["nodes"]._memory.n_slabs << pool["nodes"]._memory.geometry.shift, NODE.itemsize
    assert ["3", "1000", str(slots), str(stride)] == row[-5:-1]


def test_info_as_json_is_what_python_says(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each number."""
    status, out, _ = run(capsys, "info", path, "--json")
    said = json.loads(out)
    with jitslab.open_pool(path, "r") as pool:
        info = pool.info()

    assert 0 == status
    assert (info.number, info.journal_bytes, info.block_bytes) == (said["number"], said["journal_bytes"], said["block_bytes"])
    assert [cache.live for cache in info.caches] == [cache["live"] for cache in said["caches"]] == [1, 3]
    assert ("root", None, False) == (said["root"], said["writer"], said["is_dax"])
    assert info.caches[1].disk_bytes == sum(os.stat(path / f"1.{kind}").st_blocks * 512 for kind in ("words", "records", "sums"))
    mount = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True).stdout.strip()
    assert info.file_system in mount or mount.startswith(info.file_system[:3])


def test_info_names_the_writer(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is this process, or another one."""
    with jitslab.open_pool(path, "r+") as pool:
        assert pool.info().writer.startswith("this process (")
        assert "open to write: by this process (" in run(capsys, "info", path)[1]
        other = subprocess.run([sys.executable, "-m", "jitslab", "info", str(path)], capture_output=True, text=True, timeout=60)
        assert f"open to write: by process {os.getpid()} on " in other.stdout
    assert "open to write: by nobody" in run(capsys, "info", path)[1]


def test_info_does_not_disturb_a_writer_that_comes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is looked up, not tried."""
    tried = []
    monkeypatch.setattr(jitslab.pool.calls, "lock", lambda *_, **__: tried.append(1))
    with jitslab.open_pool(path, "r") as pool:
        pool.info()

    assert [] == tried


def test_a_holder_that_a_stranger_wrote_is_shown_in_one_line(path: Path) -> None:
    """Control characters do not reach a terminal."""
    with jitslab.open_pool(path, "r+") as pool:
        (path / "writer.lock").write_text(json.dumps({"pid": 7, "host": "h\x1b[2J", "program": "a\nb"}))
        assert pool.info().writer == "process 7 on h?[2J (a?b)"
        (path / "writer.lock").write_text("[" * 4000)
        assert pool.info().writer == "a process that has not written its name yet"


def test_short_dtypes() -> None:
    """Links, nested records and sub-arrays; long ones are cut."""
    assert short(NODE) == "value f8, next -> nodes, name S5, at {x >f4, when M8[ms]}[2]"
    assert len(short(np.dtype([(f"field{i}", "i4") for i in range(100)]))) == 60


# --- Check ---


def test_check_of_a_whole_pool(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0; nothing is written."""
    before = hashes(path)

    assert (0, f"{path}: every law holds\n", "") == run(capsys, "check", path, "--links")
    assert before == hashes(path)


def test_check_beside_a_writer(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It sees the last commit."""
    with jitslab.open_pool(path, "r+") as pool:
        pool["nodes"].alloc_many(900)
        assert 0 == run(capsys, "check", path)[0]


def test_check_names_each_broken_law_and_repairs_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, one line each; with `--repair` what was done, and then status 0."""
    with open(path / "1.words", "r+b") as file:
        file.write(b"x")
    status, out, err = run(capsys, "check", path)

    assert (1, "") == (status, err)
    assert out.startswith("1.words, page 0: its first bytes must be 'jitslabW', got b'xitslabW' (law P3: ")
    assert out.splitlines()[-1] == f"{path}: 2 broken laws"
    status, out, err = run(capsys, "check", path, "--repair")
    assert (0, "") == (status, err)
    assert out.startswith("repaired: ")
    assert out.splitlines()[-1] == f"{path}: every law holds"


def test_check_as_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For programs."""
    with open(path / "0.words", "r+b") as file:
        file.seek(2048 + 4 * 100_000)
        file.write(b"xxxx")
    status, out, _ = run(capsys, "check", path, "--json")
    (broken,) = json.loads(out)["broken"]

    assert 1 == status
    assert (7, "0.words", [100_000, 100_000]) == (broken["law"], broken["file"], broken["slots"])
    assert json.loads(run(capsys, "check", path, "--json", "--repair")[1])["broken"] == []


def test_check_of_damaged_meta_data(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A broken law; a repair is refused in one line."""
    (path / "pool.json").write_bytes(b"jitslab-pool 1 little 00000000 5\n12345")
    status, out, _ = run(capsys, "check", path)

    assert 1 == status
    assert out.startswith("pool.json: its checksum is ")
    status, out, err = run(capsys, "check", path, "--repair")
    assert (2, "") == (status, out)
    assert "it cannot be repaired: nothing else says what the pool holds" in err
    assert 1 == err.count("\n")


# --- Dump ---


def test_npy_has_handles_and_records(path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without metadata and padding; links are as they are."""
    out = tmp_path / "nodes.npy"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (0, f"{out}: 3 records\n", "") == run(capsys, "dump", path, "nodes", out)
        rows = np.load(out)
    with jitslab.open_pool(path, "r") as pool:
        live = pool["nodes"].live()
        assert live.tolist() == rows["handle"].tolist()
        for name in ("value", "next", "name", "at"):
            assert pool["nodes"].gather(live)[name].tolist() == rows["record"][name].tolist()
    assert rows["record"]["next"][0] == rows["handle"][1]


def test_csv_has_a_column_a_value(path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Numbers can be read again; text that is none is escaped."""
    out = tmp_path / "nodes.csv"
    assert 0 == run(capsys, "dump", path, "nodes", out)[0]
    with open(out, encoding="utf-8", newline="") as file:
        head, *lines = csv.reader(file)

    assert head == ["handle", "value", "next", "name", "at.x[0]", "at.x[1]", "at.when[0]", "at.when[1]"]
    with jitslab.open_pool(path, "r") as pool:
        live = pool["nodes"].live().tolist()
    when = "2024-02-03T04:05:06.007"
    assert lines[0] == [str(live[0]), "0.1", str(live[1]), "a", "0.25", "4.0", when, when]
    assert [line[3] for line in lines] == ["a", "b,\n", "\\xff"]


def test_parquet(path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Sub-arrays are lists of fixed size; links are int64."""
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "nodes.parquet"
    assert 0 == run(capsys, "dump", path, "nodes", out)[0]
    table = parquet.read_table(out)

    assert ["handle", "value", "next", "name", "at.x", "at.when"] == table.column_names
    assert ["int64", "double", "int64", "binary"] == [str(table.schema.field(i).type) for i in range(4)]
    assert [0.1, 2.0, -3.5] == table["value"].to_pylist()
    assert [0.25, 4.0] == table["at.x"].to_pylist()[0]
    assert table["next"].to_pylist()[0] == table["handle"].to_pylist()[1]


def test_missing_pyarrow_is_said_in_a_line(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is left."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    status, _, err = run(capsys, "dump", path, "nodes", tmp_path / "x.parquet")

    assert (2, "jitslab dump: Parquet files are written with pyarrow, which is not installed: pip install pyarrow\n") == (
        status,
        err,
    )
    assert not (tmp_path / "x.parquet").exists()


ANY = np.dtype(
    [
        *((kind, kind) for kind in ("?", "i1", ">u8", "f2", "f4", ">f8", "g", "c8", "G", "m8[s]", "m8[fs]", "m8", "M8[D]")),
        *((kind, kind) for kind in ("M8[25ns]", "M8[Y]", "M8", "M8[ns]", "S4", "U3", ">U2", "V3", "S0")),
        ("in", [("l", jitslab.link("any"), (2,)), ("s", "S3")], (2, 3)),
        ("none", "f4", (0,)),
        ("handle", "i4"),
    ]
)


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
@pytest.mark.parametrize("n", [0, 300])
def test_any_bytes_in_any_field_are_written(suffix: str, n: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also what is no text, no date and no bool."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    with jitslab.open_pool(tmp_path / "pool") as pool:
        cache = pool.create_cache("any", ANY, capacity=1000)
        handles = cache.alloc_many(n)
        cache.scatter(handles, np.frombuffer(np.random.default_rng(n).bytes(n * ANY.itemsize), ANY))
    out = tmp_path / f"any{suffix}"

    assert (0, f"{out}: {n} records\n", "") == run(capsys, "dump", tmp_path / "pool", "any", out)
    if suffix == ".csv":
        with open(out, encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
        assert [len(lines[0])] * (n + 1) == [len(line) for line in lines]
        assert ["handle", "handle_1"] == [lines[0][0], lines[0][-1]]


@pytest.mark.parametrize(
    ("cache", "out", "said"),
    [
        ("node", "x.npy", "there is no cache 'node'; there is 'nodes'"),
        ("nodes", "x.xls", "a file to write ends in .npy, .csv, .parquet, got 'x.xls'"),
        ("nodes", "there.csv", "there.csv exists; it is not overwritten"),
        ("nodes", "no/x.csv", "No such file or directory"),
    ],
)
def test_dumps_that_are_refused(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, cache: str, out: str, said: str
) -> None:
    """In one line, with status 2."""
    (tmp_path / "there.csv").write_text("mine")
    status, shown, err = run(capsys, "dump", path, cache, tmp_path / out)

    assert (2, "", 1) == (status, shown, err.count("\n"))
    assert said in err
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_a_dump_that_is_cut_short_leaves_no_file(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while it is written."""

    def pieces(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jitslab.pool.dump, "pieces", pieces)
    status, _, err = run(capsys, "dump", path, "nodes", tmp_path / "x.csv")

    assert (130, "jitslab dump: interrupted\n") == (status, err)
    assert not (tmp_path / "x.csv").exists()


# --- Bad input ---


@pytest.mark.parametrize("command", [["info"], ["info", "--json"], ["check"], ["check", "--repair"], ["dump", "nodes", "x.npy"]])
@pytest.mark.parametrize("what", ["nothing", "file", "link", "empty", "newer"])
def test_what_is_no_pool_is_refused_in_one_line(
    command: list[str], what: str, path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With status 2, and without a change."""
    place = tmp_path / what
    if what == "file":
        place.write_text("mine")
    elif what == "link":
        place.symlink_to(path)
    elif what == "empty":
        place.mkdir()
    elif what == "newer":
        shutil.copytree(path, place)
        (place / "pool.json").write_bytes(b"jitslab-pool 2 little\n")
    status, out, err = run(capsys, command[0], place, *command[1:])

    assert (2, "", 1) == (status, out, err.count("\n"))
    assert err.startswith(f"jitslab {command[0]}: {place}")
    assert what != "empty" or os.listdir(place) == []


@pytest.mark.parametrize("command", ["info", "check", "dump"])
def test_every_command_says_what_it_does(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In its own help."""
    with pytest.raises(SystemExit):
        main([command, "--help"])

    assert capsys.readouterr().out.split("\n\n")[1].rstrip().endswith(".")


def test_missing_rich_is_said(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A check draws no table."""
    monkeypatch.setitem(sys.modules, "rich", None)

    assert 2 == run(capsys, "info", path)[0]
    assert 0 == run(capsys, "info", path, "--json")[0]
    assert 0 == run(capsys, "check", path)[0]
