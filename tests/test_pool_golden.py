"""The format of pools: an archive that was made once is read by every later version; a newer format is refused."""

import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

import jitslab

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
import make  # noqa: E402  # stands beside the archive

sys.path.pop(0)


@pytest.fixture
def path(tmp_path):
    """Return the pool of the archive, unpacked."""
    with tarfile.open(GOLDEN / "pool-1.tar.xz") as archive:
        for entry in archive.getmembers():
            (tmp_path / entry.name).parent.mkdir(mode=0o700, exist_ok=True)
            content = archive.extractfile(entry)
            assert content is not None
            (tmp_path / entry.name).write_bytes(content.read())
    return tmp_path / "pool-1"


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_format_1_is_read(path, mode):
    """Each record, handle and link of it, of files and of the journal."""
    with jitslab.open_pool(path, mode, root=make.ROOT) as pool:
        assert pool.number == 4
        nodes, everything = pool["nodes"], pool["everything"]
        assert len(nodes) == 50
        assert pool.root["n"] == 7
        assert everything.dtype == make.EVERYTHING
        assert jitslab.links_of(everything.dtype) == jitslab.links_of(make.EVERYTHING)
        assert everything.dtype.fields["a title"][0] == np.dtype("?")
        expected = np.array([make.record(k).item() for k in range(8) if k != 3], make.EVERYTHING)
        found = everything.gather(everything.live())
        for name in make.EVERYTHING.names:
            np.testing.assert_array_equal(found[name], expected[name])
        values, handle = [], int(pool.root["head"])
        while handle in nodes:
            values.append(float(nodes[handle]["value"]))
            handle = int(nodes[handle]["next"])
        assert values == [float(k) for k in range(59, 59 - len(values), -1)]
        assert len(nodes.dangling()) == 1
        pool.check()
        if mode == "r+":
            assert nodes[nodes.alloc()]["value"] == 1.5


def test_what_is_written_to_it_is_read(path):
    """A pool of format 1 is a pool as any other."""
    with jitslab.open_pool(path) as pool:
        handles = pool["nodes"].alloc_many(500, value=3.0)
        assert pool.commit() == 5
        assert pool.checkpoint()
    with jitslab.open_pool(path, "r") as pool:
        assert (pool["nodes"][handles, "value"] == 3.0).all()
        pool.check()


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_newer_format_is_refused(path, mode):
    """By its number, and nothing is changed."""
    line, _, body = (path / "pool.json").read_bytes().partition(b"\n")
    assert line.split()[:3] == [b"jitslab-pool", b"1", b"little"]
    assert int(line.split()[3], 16) == zlib.crc32(body)
    (path / "pool.json").write_bytes(line.replace(b" 1 ", b" 2 ", 1) + b"\n" + body)
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "writer.lock"}
    with pytest.raises(jitslab.PoolVersionError, match="2"):
        jitslab.open_pool(path, mode)
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.name != "writer.lock"} == before
