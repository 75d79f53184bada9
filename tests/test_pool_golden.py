"""A pool of format 1 that was made once is read for ever; a newer format is refused, and stays as it is."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

import jitslab
from jitslab.pool import format as form
from jitslab.pool import journal

spec = importlib.util.spec_from_file_location("golden_make", Path(__file__).parent / "golden" / "make.py")
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)


@pytest.fixture
def path(tmp_path):
    """Return the path of a copy."""
    return str(tmp_path / "pool")


@pytest.fixture
def expected(path):
    """Return what it holds."""
    return golden.unpack(path)


def compare(pool, expected):
    """Compare a pool with what the archive says, and with what the script does."""
    assert pool.number == expected["number"]
    assert pool.root.tobytes() == expected["root"].tobytes()
    dtypes = {"nodes": golden.NODE, "kinds": golden.KINDS, "aligned": golden.ALIGNED}
    assert set(pool.caches) == set(dtypes)
    for name, dtype in dtypes.items():
        cache, handles = pool[name], expected[f"{name} handles"]
        assert cache.dtype == dtype
        assert cache.dtype.isalignedstruct == dtype.isalignedstruct
        assert jitslab.links_of(cache.dtype) == jitslab.links_of(dtype)
        assert cache.live().tolist() == handles.tolist()
        assert cache.gather(handles).tobytes() == expected[f"{name} records"].tobytes()
    nodes = pool["nodes"]
    for handle in expected["refused"].tolist():
        assert handle not in nodes
    first = expected["nodes handles"][0]
    for i, handle in enumerate(expected["kinds handles"].tolist()):
        record, made = pool["kinds"][handle], golden.kind_of(i, int(pool["kinds"][handle]["inner"]["to"]))
        assert record.tobytes() == made.tobytes()
        assert record["inner"]["to"] in nodes
    handle, n = int(pool.root["head"]), 0
    while handle in nodes:
        handle, n = int(nodes[handle]["next"]), n + 1
    assert n == 450  # up to the nodes that were freed
    assert first in nodes
    for cache in pool.caches.values():
        cache.check()


def test_it_is_read(path, expected):
    """A reader and a writer see all of it, and a checkpoint changes nothing."""
    with jitslab.open_pool(path, "r") as pool:
        compare(pool, expected)
    with jitslab.open_pool(path, "r+", root=golden.ROOT) as pool:
        assert pool.stats()["journal_bytes"] > 4096
        compare(pool, expected)
        assert pool.checkpoint()
    with jitslab.open_pool(path, "r") as pool:
        compare(pool, expected)


def test_it_is_written_to(path, expected):
    """New records have the template; generations go on where they were."""
    with jitslab.open_pool(path, "r+") as pool:
        new = pool["aligned"].alloc()
        assert pool["aligned"][new].item() == golden.TEMPLATE
        assert not np.isin(pool["nodes"].alloc_many(300), expected["refused"]).any()
        pool["kinds"].free_many(expected["kinds handles"])
    with jitslab.open_pool(path, "r") as pool:
        assert (len(pool["nodes"]), len(pool["kinds"]), len(pool["aligned"])) == (850, 0, 4)


def contents(path):
    """Return all bytes of a pool."""
    return {name: (Path(path) / name).read_bytes() for name in sorted(os.listdir(path))}


def newer_meta(path):
    """Raise the format of pool.json."""
    file = Path(path) / "pool.json"
    line, _, rest = file.read_bytes().partition(b"\n")
    assert line.startswith(b"jitslab-pool 1 ")
    file.write_bytes(line.replace(b"jitslab-pool 1 ", b"jitslab-pool 2 ") + b"\n" + rest)


def newer_journal(path):
    """Raise the format of the journal's head."""
    with open(Path(path) / "journal", "r+b") as file:
        slot, salt, number, _ = journal.find_head(file.read(4096), int(golden_id(path), 16))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal, "FORMAT", 2)
            head, _ = journal.make_head(int(golden_id(path), 16), salt, number)
        file.seek(journal.HEAD_STEP * slot)
        file.write(head)


def newer_words(path):
    """Raise the format of a file of generations."""
    with open(Path(path) / "1.words", "r+b") as file:
        head = np.frombuffer(file.read(form.WORDS_HEAD.itemsize), form.WORDS_HEAD).copy()
        head["format"] = 2
        file.seek(0)
        file.write(head.tobytes())


def golden_id(path):
    """Return the id of the pool, in hexadecimal digits."""
    return f"{form.decode((Path(path) / 'pool.json').read_bytes(), 'pool.json').id:016x}"


@pytest.mark.parametrize("change", [newer_meta, newer_journal, newer_words])
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_newer_format_is_refused(path, expected, change, mode):
    """The error says so; nothing is written."""
    change(path)
    before = contents(path)
    with pytest.raises(jitslab.PoolVersionError, match="format 2"):
        jitslab.open_pool(path, mode)
    after = contents(path)
    assert {name for name in before if before[name] != after[name]} <= {"writer.lock"}


def test_the_script_makes_such_a_pool_still(path):
    """The one of today has the same records, though other handles."""
    made = golden.make(path)
    with jitslab.open_pool(path, "r") as pool:
        compare(pool, made)
