"""Pools that a stranger changed: some random ones, and those that once did harm."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pool_fuzz
import pytest
from pool_fuzz import LINE, flat, frame_places, seal, write_pool

import jitslab
from jitslab.pool.format import BLOCK, WORDS_HEAD, WORDS_OFFSET
from jitslab.pool.frames import ENTRY, FRAME_HEAD

pytestmark = pytest.mark.long

RICH, EMPTY, WIDE, DROPPED = range(4)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Return the pools that are changed, made in another process: theirs are made without chance."""
    folder = tmp_path_factory.mktemp("kinds")
    program = "import sys, pickle, pool_fuzz; pickle.dump(pool_fuzz.make_kinds(sys.argv[1]), open(sys.argv[2], 'wb'))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", program, str(folder), str(folder / "made")], env=environment, check=True, timeout=120)
    import pickle

    return pickle.loads((folder / "made").read_bytes())


@pytest.fixture
def change(kinds, tmp_path):
    """Return a function that changes commit k of a pool's journal, and gives all the right hashes; it returns the pool's path."""

    def changed(kind, k, how):
        pool = dict(kinds[kind])
        size, raw = pool["journal"][0], flat(pool["journal"])
        whole, places = np.frombuffer(raw, np.uint8), frame_places(raw)
        at, length = places[k]
        head = whole[at : at + LINE].view(FRAME_HEAD)
        n = int(head["n_entries"][0])
        table = whole[at + LINE : at + LINE + n * ENTRY.itemsize].view(ENTRY)
        how(head, table, whole[at + length - int(head["n_bytes"][0]) : at + length])
        seal(whole, places, k)
        pool["journal"] = pool_fuzz.unflat(size, raw)
        write_pool(pool, tmp_path / "pool")
        return tmp_path / "pool"

    return changed


def test_random_changes_do_no_harm():
    """Some hundred cases of `pool_fuzz`, in children."""
    program = Path(__file__).parent / "pool_fuzz.py"
    done = subprocess.run([sys.executable, str(program), "--cases", "100"], capture_output=True, text=True, timeout=300)

    assert (0, "") == (done.returncode, done.stderr), done.stdout
    assert "100 cases" in done.stdout


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("file", [2, 3, 1 << 31, (1 << 32) - 4096])
def test_a_commit_of_a_file_that_no_cache_has(change, mode, file):
    """Its data were copied to an address that nobody had set."""

    def how(head, table, data):
        table["file"][0] = file

    path = change(RICH, 0, how)
    with pytest.raises(jitslab.CorruptPoolError, match=rf"byte 4096 has an entry for bytes .* of file {file} of cache"):
        jitslab.open_pool(path, mode)
    assert 5 in [broken.law for broken in jitslab.check_pool(path)]


@pytest.fixture
def odd(change):
    """Return the path of a pool whose last commit has generations behind those of all slabs."""

    def how(head, table, data):
        places = np.cumsum(table["n_bytes"]) - table["n_bytes"]
        for k in np.flatnonzero((table["file"] == 0) & (table["offset"] == 0)):
            page = data[int(places[k]) : int(places[k]) + BLOCK]
            if page[: WORDS_HEAD.itemsize].view(WORDS_HEAD)["cache"][0] == 0:
                page[WORDS_OFFSET:].view(np.uint32)[:] = 1

    return change(WIDE, 1, how)


def test_a_reader_does_without_generations_behind_the_slabs(odd):
    """They named slots without memory, which compiled code then touched."""
    with jitslab.open_pool(odd, "r") as pool:
        wide = pool["wide"]
        n = wide._memory.n_slabs << wide._memory.geometry.shift
        assert len(wide) == len(wide.live()) == n
        assert not wide.is_live(np.arange(n, n + 400)).any()
        assert wide.records["x"][wide.slots(wide.live())].sum(dtype=np.int64) == 9 * 20_000 * 3
        wide.check()


def test_a_writer_refuses_generations_behind_the_slabs(odd):
    """The next slabs would take them for their own; a repair zeroes them."""
    with pytest.raises(jitslab.CorruptPoolError, match=r"0\.words: from byte 2096 on it should be 0, and is not"):
        jitslab.open_pool(odd, "r+")
    jitslab.repair_pool(odd)
    jitslab.open_pool(odd, "r+").close()


def test_a_writer_refuses_generations_far_behind_the_slabs(kinds, tmp_path):
    """Where no memory is mapped yet."""
    write_pool(kinds[RICH], tmp_path / "pool")
    with open(tmp_path / "pool" / "1.words", "r+b") as file:
        file.seek(WORDS_OFFSET + 4 * 100_001)
        file.write(b"x")
    with pytest.raises(jitslab.CorruptPoolError, match=r"1\.words: from byte 20480 on it should be 0, and is not"):
        jitslab.open_pool(tmp_path / "pool", "r+")
    jitslab.open_pool(tmp_path / "pool", "r").close()
    jitslab.repair_pool(tmp_path / "pool")
    jitslab.open_pool(tmp_path / "pool", "r+").close()


@pytest.mark.parametrize("name", ["0.words", "0.records", "0.sums", "journal", "pool.json", "reader.lock", "writer.lock"])
def test_a_writer_needs_every_file(kinds, tmp_path, name):
    """Sums were missed at the first checkpoint only, which commits put off for ever."""
    write_pool(kinds[RICH], tmp_path / "pool")
    os.unlink(tmp_path / "pool" / name)
    before = sorted(os.listdir(tmp_path / "pool"))
    with pytest.raises((jitslab.CorruptPoolError, jitslab.PoolPathError), match=name.replace(".", r"\.")):
        jitslab.open_pool(tmp_path / "pool", "r+")

    assert before == sorted(os.listdir(tmp_path / "pool"))


def rss():
    """Return the bytes of memory of this process."""
    return pool_fuzz.rss_of(os.getpid())


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_long_journal_of_nothing_takes_no_memory(kinds, tmp_path, mode):
    """All of it was mapped and read in the search for lost commits: minutes, and 16 GiB, if that was its length."""
    write_pool(kinds[RICH], tmp_path / "pool")
    try:
        os.truncate(tmp_path / "pool" / "journal", 1 << 40)
    except OSError:
        pytest.skip("the file system has no files of that length")
    before, space = rss(), os.stat(tmp_path / "pool" / "journal").st_blocks
    with jitslab.open_pool(tmp_path / "pool", mode) as pool:
        assert len(pool["nodes"]) == 853
    assert [] == jitslab.check_pool(tmp_path / "pool")

    assert rss() - before < 100 << 20
    assert os.stat(tmp_path / "pool" / "journal").st_blocks <= space + (0 if mode == "r" else 1000)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_long_commit_of_nothing_takes_no_memory(kinds, tmp_path, mode):
    """A head that says so is no reason to read a hole."""
    pool = dict(kinds[RICH])
    raw = flat(pool["journal"])
    whole = np.frombuffer(raw, np.uint8)
    head = whole[BLOCK : BLOCK + LINE].view(FRAME_HEAD)
    head["n_bytes"] = 1 << 39
    pool["journal"] = pool_fuzz.unflat(1 << 40, raw)
    try:
        write_pool(pool, tmp_path / "pool")
    except OSError:
        pytest.skip("the file system has no files of that length")
    before = rss()
    with pytest.raises(jitslab.CorruptPoolError, match="commit of 549755.* bytes at byte 4096, of which the medium has"):
        jitslab.open_pool(tmp_path / "pool", mode)
    assert [5] == [broken.law for broken in jitslab.check_pool(tmp_path / "pool")]

    assert rss() - before < 100 << 20


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_commits_of_a_machine_with_larger_pages(kinds, tmp_path, mode):
    """It commits 64 KiB where this machine commits 4: what is behind the slabs here is left out."""
    pool = dict(kinds[EMPTY])
    write_pool(pool, tmp_path / "pool")
    with jitslab.open_pool(tmp_path / "pool", sync=False) as made:
        handles = made.create_cache("points", np.dtype([("x", "f8"), ("y", "f8")]), capacity=10).alloc_many(10, x=2.5)
    pool = {name: pool_fuzz.read_file(tmp_path / "pool" / name) for name in os.listdir(tmp_path / "pool")}
    raw = flat(pool["journal"])
    ((at, _),) = frame_places(raw)
    head = np.frombuffer(raw[at : at + LINE], FRAME_HEAD).copy()
    table = np.frombuffer(raw[at + LINE : at + LINE + int(head["n_entries"][0]) * ENTRY.itemsize], ENTRY).copy()
    data, runs = raw[at + BLOCK :], []
    for n in table["n_bytes"].tolist():
        runs.append(data[:n].ljust(-(-n // 65_536) * 65_536, b"\0"))
        data = data[n:]
    assert [65_536] * len(table) == [len(run) for run in runs]
    assert table["n_bytes"].max() < 65_536
    table["n_bytes"], head["n_bytes"] = [len(run) for run in runs], sum(map(len, runs))
    raw = raw[:at] + (head.tobytes() + table.tobytes()).ljust(BLOCK, b"\0") + b"".join(runs)
    seal(np.frombuffer(raw, np.uint8), frame_places(raw), 0)
    pool["journal"] = pool_fuzz.unflat_all(raw)
    write_pool(pool, tmp_path / "other")

    assert [] == jitslab.check_pool(tmp_path / "other")
    with jitslab.open_pool(tmp_path / "other", mode) as again:
        assert again["points"].live().tolist() == sorted(handles.tolist())
        assert (again["points"].gather(handles)["x"] == 2.5).all()
        again.check()


def test_a_long_file_of_the_writers_name_takes_no_memory(kinds, tmp_path):
    """The name was padded to its length."""
    write_pool({**kinds[RICH], "writer.lock": (1 << 33, {})}, tmp_path / "pool")
    before = rss()
    with jitslab.open_pool(tmp_path / "pool", "r+") as pool:
        assert "this process" in pool.info().writer

    assert rss() - before < 100 << 20
    assert os.stat(tmp_path / "pool" / "writer.lock").st_size <= 4096
